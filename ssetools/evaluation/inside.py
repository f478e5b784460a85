"""What training changed inside the model: alignment between languages, weights by layer, and the course of training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ssetools.errors import InvalidInput
from ssetools.evaluation.perplexity import score_texts
from ssetools.files import model_dir
from ssetools.models import body_of, device_of, evaluation_mode, int8_scales
from ssetools.neurons.ffn import Projection, find_ffn_blocks
from ssetools.neurons.sets import NeuronSets, deactivated
from ssetools.text.sources import SPLITS, load_parallel, load_texts
from ssetools.text.windows import bos_ids
from ssetools.training.adapter import Adapter
from ssetools.training.methods import WholeWeights
from ssetools.training.subnetwork import Subnetwork

_RESAMPLES = 2000
_NEURONS_AT_ONCE = 1024
_THIRDS = ("first third", "middle third", "last third")

# --- alignment --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alignment:
    """How near a model holds the same passages in two languages, for each layer and each pair of passages.

    Layer 0 is the embedding, layer *l* the output of the model's *l*-th block, the last one after the final norm.

    Attributes:
        matched: FloatTensor [layers + 1, pairs], cosine of a passage and its translation.
        shuffled: FloatTensor [layers + 1, pairs], the control: mean cosine of a passage and all other translations.
        retrieved: FloatTensor [layers + 1, pairs], share of the two directions in which the translation is the
            nearest of all: 0, 0.5 or 1.
    """

    matched: torch.Tensor
    shuffled: torch.Tensor
    retrieved: torch.Tensor

    @property
    def margin(self) -> torch.Tensor:
        """FloatTensor [layers + 1, pairs], matched minus shuffled: what is common to the *same* passages only."""
        return self.matched - self.shuffled

    def table(self, base: Alignment | None = None, seed: int = 0):
        """Summarises each layer over pairs, as a DataFrame.

        Args:
            base: Another model's alignment on the same passages; the table then holds the paired differences from it.
            seed: Seed of the bootstrap.

        Returns:
            One row per layer and measure ("matched", "shuffled", "margin", "retrieved"): `layer`, `measure`, `mean`
            and the 95% interval `low`, `high` from resampling pairs.

        Raises:
            ValueError: If the two alignments are of different passages or models.
        """
        import pandas

        if base is not None and base.matched.shape != self.matched.shape:
            shapes = f"{list(base.matched.shape)} and {list(self.matched.shape)}"
            raise InvalidInput(f"These alignments do not compare: their [layers + 1, pairs] are {shapes}.")
        pairs = self.matched.shape[1]
        picks = torch.randint(pairs, (_RESAMPLES, pairs), generator=torch.Generator().manual_seed(seed))
        rows = []
        for measure in ("matched", "shuffled", "margin", "retrieved"):
            values = getattr(self, measure) - (0 if base is None else getattr(base, measure))
            for layer, row in enumerate(values):
                low, high = row[picks].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
                rows.append({"layer": layer, "measure": measure, "mean": row.mean().item(), "low": low, "high": high})
        return pandas.DataFrame(rows)


def alignment(
    model: nn.Module,
    tokenizer,
    lang: str,
    other: str = "en",
    source: str = "udhr",
    splits: Sequence[str] = SPLITS,
    max_pairs: int = 100,
    max_tokens: int = 512,
) -> Alignment:
    """Measures how near a model holds parallel passages of two languages.

    A passage is the mean of its hidden states over its tokens, BOS excluded. All states of a model share a large
    common direction, so that any two passages have a high cosine: read `matched` against `shuffled` only.

    Args:
        model: A causal language model, with or without an adapter attached.
        tokenizer: Its tokenizer.
        lang: Language code.
        other: Code of the language to align with.
        source: Parallel text: "udhr", "mediawiki" or "sib200", or a local copy.
        splits: Splits to take passages from.
        max_pairs: Pairs at most, at even distances.
        max_tokens: Tokens of a passage at most, BOS included.

    Returns:
        The alignment.

    Raises:
        ValueError: If the languages are the same, or share fewer than two passages.
    """
    if lang == other:
        raise InvalidInput(f"Alignment needs two languages; got {lang!r} twice.")
    passages: dict[str, list[str]] = {lang: [], other: []}
    for split in splits:
        for code, texts in load_parallel(source, [lang, other], split).items():
            passages[code] += texts
    stride = -(-len(passages[lang]) // max_pairs)
    chosen = {code: texts[::stride] for code, texts in passages.items()} if stride else passages
    return align_passages(model, tokenizer, chosen[lang], chosen[other], max_tokens)


def align_passages(
    model: nn.Module, tokenizer, first: Sequence[str], second: Sequence[str], max_tokens: int = 512
) -> Alignment:
    """Does the work of `alignment` for passages of your own: `first[i]` says the same as `second[i]`."""
    if len(first) != len(second) or len(first) < 2:
        raise InvalidInput(f"Alignment needs two or more pairs of passages; got {len(first)} and {len(second)}.")
    a = F.normalize(mean_hidden_states(model, tokenizer, first, max_tokens), dim=-1)
    b = F.normalize(mean_hidden_states(model, tokenizer, second, max_tokens), dim=-1)
    cosines = a @ b.transpose(1, 2)  # [layers + 1, pairs of first, pairs of second]
    pairs = cosines.shape[1]
    matched = cosines.diagonal(dim1=1, dim2=2)
    # Every wrong pairing counts: the mean over all shuffles, with nothing left to chance.
    shuffled = (cosines.sum(1) + cosines.sum(2) - 2 * matched) / (2 * (pairs - 1))
    truth = torch.arange(pairs)
    retrieved = ((cosines.argmax(2) == truth).float() + (cosines.argmax(1) == truth).float()) / 2
    return Alignment(matched, shuffled, retrieved)


def mean_hidden_states(model: nn.Module, tokenizer, texts: Sequence[str], max_tokens: int = 512) -> torch.Tensor:
    """Averages the hidden states of each text over its tokens, for the embedding and every layer.

    BOS opens every text and is left out of the mean: its state is the same in every language and many times larger.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        texts: Passages.
        max_tokens: Tokens of a passage at most, BOS included.

    Returns:
        FloatTensor [layers + 1, texts, hidden], float32, on the CPU.

    Raises:
        ValueError: If a text is empty.
    """
    opening = bos_ids(tokenizer)
    device = device_of(model)
    means = []
    with evaluation_mode(model), torch.no_grad():
        for text in texts:
            ids = opening + tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) == len(opening):
                raise InvalidInput("A passage is empty: there is nothing to average.")
            row = torch.tensor([ids[:max_tokens]], device=device)
            states = body_of(model)(input_ids=row, use_cache=False, output_hidden_states=True).hidden_states
            means.append(torch.stack([state[0, len(opening) :].float().mean(0) for state in states]).cpu())
    return torch.stack(means, 1)


# --- weights ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightDelta:
    """What an adapter adds to one projection, at some of its neurons. Every kind of adapter can be written so.

    Attributes:
        layer: Layer, from 0.
        projection: The projection.
        neurons: LongTensor [k], ids of the neurons.
        delta: FloatTensor [k, hidden], one row a neuron, for the down projection too.
    """

    layer: int
    projection: Projection
    neurons: torch.Tensor
    delta: torch.Tensor


def weight_deltas(adapter: Adapter) -> Iterator[WeightDelta]:
    """Yields what an attached adapter adds to each FFN projection of each layer; nothing is merged.

    IA3 multiplies activations, which is to add a share of a weight's own rows or columns.

    Raises:
        ValueError: If the adapter touches no FFN projection.
    """
    blocks = find_ffn_blocks(adapter.model)
    if isinstance(adapter, Subnetwork):
        for name, piece in adapter.slices.items():
            layer = int(name.split("-")[0])
            delta = adapter.scale * piece.delta.detach().float().cpu()
            rows = delta.T if piece.projection.name == "down" else delta
            yield WeightDelta(layer, piece.projection, adapter.neurons[layer], rows)
        return
    every, touched = torch.arange(blocks[0].num_neurons), False
    for layer, block in enumerate(blocks):
        for projection in block.projections:
            delta = _change_of(adapter, projection, every)
            if delta is not None:
                touched = True
                yield WeightDelta(layer, projection, every, delta)
    if not touched:
        raise InvalidInput(f"This {adapter.format} adapter changes no FFN projection: there is no change to measure.")


def _change_of(adapter: Adapter, projection: Projection, every: torch.Tensor) -> torch.Tensor | None:
    """The change of one projection [neurons, hidden], or None where the adapter leaves it alone."""
    module = projection.module
    if isinstance(adapter, WholeWeights):
        return _rows(projection, (module.weight - adapter.base_value(module.weight)).detach().float(), every)
    if hasattr(module, "get_delta_weight"):
        return _rows(projection, module.get_delta_weight("default").detach().float(), every)
    if not hasattr(module, "ia3_l"):
        return None
    factors = module.ia3_l["default"].detach().float().flatten().cpu() - 1
    of_neurons = module.is_feedforward == (projection.name == "down")  # else a factor for each hidden dimension
    if of_neurons:
        factors = factors[every + projection.offset][:, None]
    return neuron_weights(projection, every) * factors


def weight_change(adapter: Adapter | nn.Module):
    """Measures how far an adapter moves each projection of each layer, relative to the base's weights.

    Of an 8-bit layer, no more rows are dequantised at a time than the norms need.

    Args:
        adapter: An attached adapter, or the model it is attached to.

    Returns:
        DataFrame, one row per layer and projection: `layer`, `projection`, `neurons` (touched), `delta` (Frobenius
        norm of the change), `base` (of the same neurons' base weights), `relative` (their ratio), `matrix` (of the
        whole base matrix) and `relative_to_matrix`.

    Raises:
        ValueError: If no adapter is attached to the model, or it changes no FFN projection.
    """
    import pandas

    if not isinstance(adapter, Adapter):
        adapter = Adapter.attached_to(adapter)
    every = torch.arange(find_ffn_blocks(adapter.model)[0].num_neurons).split(_NEURONS_AT_ONCE)
    rows = []
    for part in weight_deltas(adapter):
        matrix = sum(_base_rows(adapter, part.projection, ids).square().sum().item() for ids in every) ** 0.5
        touched = part.neurons.split(_NEURONS_AT_ONCE)
        base = sum(_base_rows(adapter, part.projection, ids).square().sum().item() for ids in touched) ** 0.5
        row = {"layer": part.layer, "projection": part.projection.name, "neurons": len(part.neurons)}
        rows.append({**row, "delta": part.delta.norm().item(), "base": base, "matrix": matrix})
    table = pandas.DataFrame(rows)
    return table.assign(relative=table.delta / table.base, relative_to_matrix=table.delta / table.matrix)


def _base_rows(adapter, projection, neurons):
    if isinstance(adapter, WholeWeights):
        return _rows(projection, adapter.base_value(projection.module.weight).detach(), neurons).float()
    return neuron_weights(projection, neurons)


def neuron_weights(projection: Projection, neurons: torch.Tensor) -> torch.Tensor:
    """Returns the base weights of some neurons, dequantised if need be.

    Args:
        projection: Gate, up or down projection of a layer, 8-bit or not.
        neurons: LongTensor [k], ids of neurons.

    Returns:
        FloatTensor [k, hidden], float32, on the CPU; one row a neuron, for the down projection too.
    """
    module = getattr(projection.module, "base_layer", projection.module)  # PEFT wraps the layer it adapts
    rows = _rows(projection, module.weight.data, neurons).float()
    if module.weight.dtype != torch.int8:
        return rows
    scale = int8_scales(module).float().cpu() / 127
    return rows * (scale if projection.name == "down" else scale[neurons + projection.offset][:, None])


def _rows(projection: Projection, matrix: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
    """Takes some neurons out of a matrix shaped as the projection's weight: [k, hidden], on the CPU."""
    axis = 1 if (projection.name == "down") != projection.transposed else 0
    found = matrix.index_select(axis, (neurons + projection.offset).to(matrix.device))
    return (found.T if axis else found).cpu()


def change_by_depth(changes, num_layers: int):
    """Pools `weight_change` over thirds of the model's depth.

    Args:
        changes: What `weight_change` returned.
        num_layers: Layers of the model.

    Returns:
        DataFrame [projections, thirds] of norms of the change over norms of the same weights; NaN where a third has
        no touched neuron.
    """
    parts = changes.assign(third=[_THIRDS[min(2, 3 * layer // num_layers)] for layer in changes.layer])
    squares = parts.assign(delta=parts.delta**2, base=parts.base**2).groupby(["projection", "third"])
    pooled = squares[["delta", "base"]].sum()
    ratios = (pooled.delta / pooled.base).pow(0.5).unstack()
    projections = [name for name in ("gate", "up", "down") if name in ratios.index]
    return ratios.reindex(index=projections, columns=list(_THIRDS))


# --- training ---------------------------------------------------------------------------------------------------


def training_logs(model: str, lang: str, runs: str | Path = "runs"):
    """Reads the log.csv of every run of a language that is there.

    Args:
        model: The model's name, as in `load_model`.
        lang: Language code.
        runs: Folder of runs.

    Returns:
        DataFrame of the logs' columns and `run` (such as "lape-seed0") and `seconds` (spent on training steps so
        far, without validation), in the order of the runs' names.

    Raises:
        FileNotFoundError: If there is no run.
    """
    import pandas

    logs = []
    folder = model_dir(model, runs) / lang
    for path in sorted(folder.glob("*/log.csv")):
        log = pandas.read_csv(path)
        if len(log):
            seconds = log.tokens.diff().fillna(log.tokens.iloc[0]) / log.tokens_per_second
            logs.append(log.assign(run=path.parent.name, seconds=seconds.cumsum()))
    if not logs:
        raise FileNotFoundError(f"There is no log.csv of a run in {folder}: train one with 03_finetune.ipynb first.")
    return pandas.concat(logs, ignore_index=True)


def deactivation_matrix(model, tokenizer, neurons: NeuronSets, languages: Sequence[str], max_tokens: int = 400):
    """Switches off each language's neurons and measures every language.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        neurons: Its neuron sets.
        languages: Codes: rows and columns of the matrix.
        max_tokens: Tokens of the declaration's test articles to score, per language.

    Returns:
        DataFrame of changes in ln perplexity; rows are the sets switched off and "random" (as many neurons as the
        first language has, in the same layers), columns the languages measured.
    """
    import pandas

    texts = {lang: load_texts("udhr", lang, "test") for lang in languages}

    def losses():
        scores = {x: score_texts(model, tokenizer, texts[x], max_tokens=max_tokens) for x in languages}
        return pandas.Series({x: math.log(score.perplexity) for x, score in scores.items()})

    base = losses()
    rows = {}
    for name in [*languages, "random"]:
        with deactivated(model, neurons.random_like(languages[0]) if name == "random" else neurons[name]):
            rows[name] = losses() - base
    return pandas.DataFrame(rows).T
