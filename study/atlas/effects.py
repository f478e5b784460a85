"""Effect of switching off each language's neuron set, compared with random neurons of the same layers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
import pandas
import torch
from torch import nn

from ssetools.errors import InvalidInput
from ssetools.evaluation.intervals import INTERVAL
from ssetools.evaluation.perplexity import window_losses
from ssetools.files import kept, read_json, write_json
from ssetools.models import model_source
from ssetools.neurons.sets import NeuronSets, deactivated
from ssetools.text.windows import bos_ids, pack_tokens
from study.atlas.shards import atlas_texts

WINDOWS = 6
WINDOW_TOKENS = 32
CONTROLS = 2
_BATCH = 16


def score_declarations(
    model: nn.Module, tokenizer, languages: Sequence[str], path: str | Path, seconds: float | None = None
) -> dict:
    """Measures token counts and loss on each language's declaration, and saves after each language.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        languages: Language codes.
        path: JSON file of the results so far; languages in it are not measured again.
        seconds: No language is started after this time; None sets no limit.

    Returns:
        By language: `tokens`, `words` and `bytes` of the whole text, and `nats`, the mean loss per token over windows
        that are spaced evenly over it.
    """
    path = Path(path)
    scores = read_json(path) if path.is_file() else {}
    started = time.monotonic()
    for lang in languages:
        if lang in scores:
            continue
        if seconds is not None and time.monotonic() - started > seconds:
            break
        texts = atlas_texts("udhr", lang)
        ids = tokenizer([text + "\n" for text in texts], add_special_tokens=False)["input_ids"]
        losses, tokens = window_losses(model, _windows(tokenizer, texts, 4, 100), _BATCH)
        scores[lang] = {
            "tokens": sum(map(len, ids)),
            "words": sum(len(text.split()) for text in texts),
            "bytes": sum(len((text + "\n").encode()) for text in texts),
            "nats": round((losses.sum() / tokens.sum()).item(), 4),
        }
        write_json(path, scores)
    return scores


def deactivation_losses(
    model: nn.Module,
    tokenizer,
    neurons: NeuronSets,
    languages: Sequence[str],
    path: str | Path,
    source: str = "mediawiki",
    seconds: float | None = None,
) -> dict:
    """Measures the loss in every language with no set, each language's set, and each set's controls switched off.

    A control is as many random neurons as the set has, in the same layers; each set has two. Results are saved after
    every measurement.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        neurons: Neuron sets; every language needs some neurons.
        languages: Language codes: the sets that are switched off, and the languages in which the loss is measured.
        path: JSON file of the results so far; rows in it are not measured again.
        source: Text on which the loss is measured; it should differ from the text that selected the sets.
        seconds: No row is started after this time; None sets no limit.

    Returns:
        `languages`, and under `rows` by name ("base", "set yo", "control0 yo") the losses [languages, windows], in nats
        per token.

    Raises:
        ValueError: If the file was made with another model, other languages or other text.
    """
    facts = {"model": model_source(model), "languages": list(languages), "source": source}
    facts["window_tokens"] = WINDOW_TOKENS
    losses = kept(path, facts, remedy="Delete it to measure again.") or {**facts, "rows": {}}
    windows = torch.cat([_windows(tokenizer, atlas_texts(source, x), WINDOWS, WINDOW_TOKENS) for x in languages])
    started = time.monotonic()
    no_neurons = [torch.empty(0, dtype=torch.long)] * neurons.num_layers
    for name in row_names(languages):
        if name in losses["rows"] or (seconds is not None and time.monotonic() - started > seconds):
            continue
        kind, _, lang = name.partition(" ")
        if kind.startswith("control"):
            switched_off = neurons.random_like(lang, seed=int(kind.removeprefix("control")))
        else:
            switched_off = neurons[lang] if kind == "set" else no_neurons
        with deactivated(model, switched_off):
            totals, tokens = window_losses(model, windows, _BATCH)
        means = (totals / tokens).view(len(languages), WINDOWS)
        losses["rows"][name] = [[round(x, 4) for x in row] for row in means.tolist()]
        write_json(path, losses)
    return losses


def row_names(languages: Sequence[str]) -> list[str]:
    """Returns the names of the rows that `deactivation_losses` measures."""
    kinds = ("set", *(f"control{k}" for k in range(CONTROLS)))
    return ["base", *(f"{kind} {lang}" for lang in languages for kind in kinds)]


def _windows(tokenizer, texts: Sequence[str], count: int, tokens: int) -> torch.Tensor:
    """Returns windows spaced evenly over a text, LongTensor [count, tokens + BOS]."""
    size = tokens + len(bos_ids(tokenizer))
    full = [window for window in pack_tokens(tokenizer, texts, size) if len(window) == size]
    if len(full) < count:
        raise InvalidInput(
            f"The text has {len(full)} windows of {tokens} tokens; {count} are needed. Use a longer text."
        )
    return torch.stack([full[i * len(full) // count] for i in range(count)])


def specificity(losses: Mapping, resamples: int = 2000, seed: int = 0) -> dict:
    """Tests whether each language's set affects that language more than the others.

    The effect of the set of A on language B is the loss that it adds, minus the mean loss that A's controls add. The
    specificity of A is its effect on A minus the median of its effects on the other languages.

    Args:
        losses: From `deactivation_losses`.
        resamples: Bootstrap resamples over each language's windows, over the other languages, and over the controls.
        seed: Seed of the bootstrap.

    Returns:
        By language: `own` and `control` (loss added to the language itself, nats per token), `others` (median effect on
        the others), `specificity` with `low` and `high` (95%), `worst` (the set with the largest effect on this
        language), and `fails`: the interval includes zero or less, or another set has a larger effect on the language.
    """
    languages = losses["languages"]
    added, by_control = _added_losses(losses)
    control = by_control.mean(1)
    effects = added - control
    rng = numpy.random.default_rng(seed)
    windows, table = added.shape[2], {}
    for i, lang in enumerate(languages):
        others = numpy.delete(numpy.arange(len(languages)), i)
        samples = []
        # By hand: windows, languages and controls are three nested samples, and `scipy.stats.bootstrap` draws one.
        for _ in range(resamples):
            effect = added[i] - by_control[i, rng.integers(CONTROLS, size=CONTROLS)].mean(0)
            own = effect[i, rng.integers(windows, size=windows)].mean()
            rows = rng.choice(others, len(others))
            columns = rng.integers(windows, size=(len(rows), windows))
            samples.append(own - numpy.median(effect[rows[:, None], columns].mean(1)))
        low, high = numpy.quantile(samples, INTERVAL)
        on_this = effects[:, i].mean(1)
        median = float(numpy.median(effects[i, others].mean(1)))
        worst = languages[int(on_this.argmax())]
        table[lang] = {
            "own": round(float(added[i, i].mean()), 4),
            "control": round(float(control[i, i].mean()), 4),
            "others": round(median, 4),
            "specificity": round(float(on_this[i]) - median, 4),
            "low": round(float(low), 4),
            "high": round(float(high), 4),
            "worst": worst,
            "fails": bool(low <= 0 or worst != lang),
        }
    return table


def _added_losses(losses: Mapping) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Returns the loss added by sets, [sets, languages, windows], and by controls, [sets, controls, languages, windows]."""
    rows = {name: numpy.array(values) - losses["rows"]["base"] for name, values in losses["rows"].items()}
    sets = numpy.stack([rows[f"set {lang}"] for lang in losses["languages"]])
    controls = [[rows[f"control{k} {lang}"] for k in range(CONTROLS)] for lang in losses["languages"]]
    return sets, numpy.array(controls)


def effect_table(losses: Mapping) -> pandas.DataFrame:
    """Returns the effects in nats per token: rows are sets switched off, columns the languages measured."""
    added, by_control = _added_losses(losses)
    return pandas.DataFrame((added - by_control.mean(1)).mean(2), losses["languages"], losses["languages"])
