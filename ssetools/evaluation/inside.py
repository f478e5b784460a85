"""What is inside a model, and what training changed: alignment between languages, weights, and neuron sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from ssetools.errors import InvalidInput
from ssetools.evaluation.intervals import interval
from ssetools.evaluation.perplexity import prompt_ids, window_losses, within_budget
from ssetools.models import body_of, device_of, evaluation_mode, int8_scales
from ssetools.neurons.ffn import Projection, find_ffn_blocks
from ssetools.neurons.sets import NeuronSets, deactivated
from ssetools.text.sources import SPLITS, load_parallel, load_texts
from ssetools.text.windows import bos_ids, pack_tokens
from ssetools.training.adapter import Adapter
from ssetools.training.methods import WholeWeights
from ssetools.training.subnetwork import Subnetwork

if TYPE_CHECKING:
    import pandas
    from transformers import PreTrainedTokenizerBase

_NEURONS_AT_ONCE = 1024
_THIRDS = ("first third", "middle third", "last third")

# --- alignment ---


@dataclass(frozen=True)
class Alignment:
    """How similar a model's states are for the same passages in two languages, by layer and pair of passages.

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
        """FloatTensor [layers + 1, pairs], matched minus shuffled: the similarity of the *same* passages only."""
        return self.matched - self.shuffled

    def table(self, base: Alignment | None = None, seed: int = 0) -> pandas.DataFrame:
        """Summarises each layer over pairs, or the paired differences from another model on the same passages, `base`.

        Returns:
            One row per layer and measure ("matched", "shuffled", "margin", "retrieved"): `layer`, `measure`, `mean`
            and its 95% interval over pairs, `low` and `high` (`intervals.interval`).

        Raises:
            InvalidInput: If the two alignments are of different passages or models.
        """
        import pandas

        if base is not None and base.matched.shape != self.matched.shape:
            shapes = f"{list(base.matched.shape)} and {list(self.matched.shape)}"
            raise InvalidInput(f"These alignments cannot be compared: their shapes, [layers + 1, pairs], are {shapes}.")
        rows = []
        for measure in ("matched", "shuffled", "margin", "retrieved"):
            values = getattr(self, measure) - (0 if base is None else getattr(base, measure))
            for layer, row in enumerate(values.double()):
                rows.append([layer, measure, *interval(row[None], torch.ones_like(row), seed)])
        return pandas.DataFrame(rows, columns=["layer", "measure", "mean", "low", "high"])


def alignment(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    lang: str,
    other: str = "en",
    source: str = "udhr",
    splits: Sequence[str] = SPLITS,
    max_pairs: int = 100,
    max_tokens: int = 512,
) -> Alignment:
    """Measures how similar a model's states are for parallel passages of two languages, with or without an adapter.

    A passage is the mean of its hidden states over its tokens, BOS excluded. All states of a model share a large
    common direction, so that any two passages have a high cosine: read `matched` against `shuffled` only.

    Args:
        model, tokenizer: A causal language model and its tokenizer.
        lang, other: Codes of the two languages.
        source, splits: Parallel text, as in `load_parallel`, and the splits of it to take passages from.
        max_pairs: Pairs at most, at even distances.
        max_tokens: Tokens of a passage at most, BOS included.

    Raises:
        InvalidInput: If the languages are the same, or share fewer than two passages.
    """
    if lang == other:
        raise InvalidInput(f"Alignment needs two languages; got {lang!r} twice.")
    parts = [load_parallel(source, [lang, other], split) for split in splits]
    first, second = (sum((part[code] for part in parts), []) for code in (lang, other))
    stride = max(1, -(-len(first) // max_pairs))
    return align_passages(model, tokenizer, first[::stride], second[::stride], max_tokens)


def align_passages(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    first: Sequence[str],
    second: Sequence[str],
    max_tokens: int = 512,
) -> Alignment:
    """Measures alignment on passages of your own: `second[i]` is the translation of `first[i]`. Errors as above."""
    if len(first) != len(second) or len(first) < 2:
        raise InvalidInput(f"Alignment needs two or more pairs of passages; got {len(first)} and {len(second)}.")
    a, b = (F.normalize(_mean_states(model, tokenizer, texts, max_tokens), dim=-1) for texts in (first, second))
    cosines, pairs = a @ b.transpose(1, 2), len(first)  # [layers + 1, pairs of first, pairs of second]
    matched = cosines.diagonal(dim1=1, dim2=2)
    # The mean over all wrong pairings is the expectation over shuffles, without sampling noise.
    shuffled = (cosines.sum(1) + cosines.sum(2) - 2 * matched) / (2 * (pairs - 1))
    truth = torch.arange(pairs)
    retrieved = ((cosines.argmax(2) == truth).float() + (cosines.argmax(1) == truth).float()) / 2
    return Alignment(matched, shuffled, retrieved)


def _mean_states(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int
) -> torch.Tensor:
    """Averages the hidden states of each text over its tokens: float32 on the CPU, [layers + 1, texts, hidden]."""
    # BOS is left out of the mean: its state is the same in every language and many times larger.
    opening, device = len(bos_ids(tokenizer)), device_of(model)
    means = []
    with evaluation_mode(model), torch.no_grad():
        for place, text in enumerate(texts):
            ids = prompt_ids(tokenizer, text)
            if len(ids) == opening:
                raise InvalidInput(f"Passage {place} is empty: leave it out in both languages.")
            row = torch.tensor([ids[:max_tokens]], device=device)
            states = body_of(model)(input_ids=row, use_cache=False, output_hidden_states=True).hidden_states
            means.append(torch.stack([state[0, opening:].float().mean(0) for state in states]).cpu())
    return torch.stack(means, 1)


# --- weights ---


def weight_change(adapter: Adapter | nn.Module) -> pandas.DataFrame:
    """Measures how far an adapter moves each projection of each layer, relative to the base's weights.

    Nothing is merged; `adapter` may be the model that it is attached to. IA3 multiplies activations, which equals adding
    a share of a weight's own rows or columns. Of an 8-bit layer, no more rows are dequantised at a time than are needed.

    Returns:
        DataFrame, one row per layer and projection: `layer`, `projection`, `neurons` (touched), `delta` (Frobenius
        norm of the change), `base` (of the same neurons' base weights), `relative` (their ratio), `matrix` (of the
        whole base matrix) and `relative_to_matrix`.

    Raises:
        InvalidInput: If no adapter is attached to the model, or it changes no FFN projection.
    """
    import pandas

    if not isinstance(adapter, Adapter):
        adapter = Adapter.attached_to(adapter)
    rows = []
    for layer, block in enumerate(find_ffn_blocks(adapter.model)):
        every = torch.arange(block.num_neurons)
        touched = adapter.neurons[layer] if isinstance(adapter, Subnetwork) else every
        for projection in block.projections:
            delta = _delta(adapter, layer, projection, touched)
            if delta is not None:
                norms = (_base_norm(adapter, projection, neurons) for neurons in (touched, every))
                rows.append([layer, projection.name, len(touched), delta.norm().item(), *norms])
    if not rows:
        raise InvalidInput(f"This {adapter.format} adapter changes no FFN projection: there is no change to measure.")
    table = pandas.DataFrame(rows, columns=["layer", "projection", "neurons", "delta", "base", "matrix"])
    return table.assign(relative=table.delta / table.base, relative_to_matrix=table.delta / table.matrix)


def _delta(adapter: Adapter, layer: int, projection: Projection, neurons: torch.Tensor) -> torch.Tensor | None:
    """Returns what an adapter adds to a projection [neurons, hidden], or None where it changes nothing."""
    module: Any = projection.module
    if isinstance(adapter, Subnetwork):
        if not len(neurons):
            return None
        delta = cast(Any, adapter.slices[f"{layer}-{projection.name}"]).scaled(adapter.scale).detach().float().cpu()
        return delta.T if projection.axis else delta
    if isinstance(adapter, WholeWeights):
        return projection.take(module.weight.detach().float(), neurons) - _base_rows(adapter, projection, neurons)
    if hasattr(module, "get_delta_weight"):
        return projection.take(module.get_delta_weight("default").detach().float(), neurons)
    if not hasattr(module, "ia3_l"):
        return None
    factors = module.ia3_l["default"].detach().float().flatten().cpu() - 1
    if module.is_feedforward == (projection.axis == 1):  # a factor for each neuron, else for each hidden dimension
        factors = factors[neurons + projection.offset][:, None]
    return _base_rows(adapter, projection, neurons) * factors


def _base_norm(adapter: Adapter, projection: Projection, neurons: torch.Tensor) -> float:
    parts = (_base_rows(adapter, projection, ids) for ids in neurons.split(_NEURONS_AT_ONCE))
    return sum(rows.square().sum().item() for rows in parts) ** 0.5


def _base_rows(adapter: Adapter, projection: Projection, neurons: torch.Tensor) -> torch.Tensor:
    """Returns the base weights of some neurons, dequantised if need be: float32 on the CPU, [k, hidden]."""
    module: Any = getattr(projection.module, "base_layer", projection.module)  # PEFT wraps the layer it adapts
    rows = projection.take(adapter.base_value(module.weight).detach(), neurons).float()
    if module.weight.dtype != torch.int8:
        return rows
    scale = int8_scales(module).float().cpu() / 127
    return rows * (scale if projection.axis else scale[neurons + projection.offset][:, None])


def change_by_depth(changes: pandas.DataFrame, num_layers: int) -> pandas.DataFrame:
    """Pools what `weight_change` returns over thirds of the model's depth.

    Returns a DataFrame [projections, thirds] of norms of the change over norms of the same weights; NaN where a third has
    no touched neuron.
    """
    thirds = [_THIRDS[min(2, 3 * layer // num_layers)] for layer in changes["layer"]]
    squares = changes.assign(delta=changes["delta"] ** 2, base=changes["base"] ** 2, third=thirds)
    pooled = squares.pivot_table(["delta", "base"], "projection", "third", "sum")
    ratios = cast("pandas.DataFrame", pooled["delta"] / pooled["base"]) ** 0.5
    projections = [name for name in ("gate", "up", "down") if name in ratios.index]
    return ratios.reindex(index=projections, columns=list(_THIRDS))


# --- neuron sets ---


def deactivation_matrix(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    neurons: NeuronSets,
    languages: Sequence[str],
    max_tokens: int = 400,
) -> pandas.DataFrame:
    """Switches off each language's neurons and measures every language on `max_tokens` of the declaration's test split.

    Returns a DataFrame of changes in ln perplexity; rows are the sets switched off and "random" (as many neurons as the
    first language has, in the same layers), columns the languages measured.
    """
    import pandas

    texts = {lang: within_budget(load_texts("udhr", lang, "test"), tokenizer, max_tokens)[0] for lang in languages}
    windows = {lang: pack_tokens(tokenizer, documents) for lang, documents in texts.items()}
    sets = {"none": [torch.empty(0, dtype=torch.long)] * neurons.num_layers}
    sets |= {lang: neurons[lang] for lang in languages} | {"random": neurons.random_like(languages[0])}
    rows = {}
    for name, chosen in sets.items():
        with deactivated(model, chosen):
            sums = ([x.sum().item() for x in window_losses(model, windows[lang])] for lang in languages)
            rows[name] = [loss / tokens for loss, tokens in sums]
    changes = pandas.DataFrame.from_dict(rows, orient="index", columns=list(languages))
    return (changes - changes.loc["none"]).drop(index="none")


def compare_neurons(
    first: NeuronSets, second: NeuronSets, languages: Mapping[str, str] | None = None
) -> pandas.DataFrame:
    """Compares two files of neuron sets of the same model, by language and layer.

    `languages` are codes in `second` by code in `first`, where they are named differently; None takes all common codes.

    Returns:
        DataFrame with a row for each language and layer, and one for all layers together (layer "all"): `language`,
        `layer`, `first` and `second` (neurons), `shared`, and `jaccard`, NaN where both are empty.

    Raises:
        InvalidInput: If the sets are of models of different shape, or have no language in common.
    """
    import pandas

    if first.num_layers != second.num_layers:
        raise InvalidInput(f"These sets have {first.num_layers} and {second.num_layers} layers: not the same model.")
    pairs = dict(languages) if languages else {lang: lang for lang in first if lang in second}
    if not pairs:
        raise InvalidInput(f"No language is in both: {' '.join(first)} | {' '.join(second)}. Pass languages={{...}}.")
    tables = []
    for lang, other in pairs.items():
        layers = zip(first[lang], second[other], strict=True)
        sizes = [(len(a), len(b), int(torch.isin(a, b).sum())) for a, b in layers]
        table = pandas.DataFrame(sizes, columns=["first", "second", "shared"])
        table = pandas.concat([table, table.sum().to_frame().T], ignore_index=True)
        table.insert(0, "language", lang)
        table.insert(1, "layer", [*range(first.num_layers), "all"])
        tables.append(table.assign(jaccard=table.shared / (table["first"] + table.second - table.shared)))
    return pandas.concat(tables, ignore_index=True)
