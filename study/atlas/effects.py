"""What the atlas's neurons do: losses with each language's set switched off, against a control in the same layers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
import torch
from torch import nn

from ssetools.evaluation.inside import losses_switched_off
from ssetools.evaluation.intervals import INTERVAL
from ssetools.evaluation.perplexity import window_losses
from ssetools.files import read_json, write_json
from ssetools.models import model_source
from ssetools.neurons.sets import NeuronSets
from ssetools.text.windows import bos_ids, pack_tokens
from study.atlas.shards import atlas_texts

WINDOWS = 6
WINDOW_TOKENS = 32
CONTROLS = 2
_BATCH = 16


def score_declarations(
    model: nn.Module, tokenizer, languages: Sequence[str], path: str | Path, seconds: float | None = None
) -> dict:
    """Measures how the tokenizer and the model take each language's declaration; goes on from what `path` holds.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        languages: Codes.
        path: JSON file of what is measured so far.
        seconds: Stop after the language that reaches this time.

    Returns:
        By language: `tokens`, `words` and `bytes` of the whole text, and `nats`, the mean loss per token over windows
        that are spread over it.
    """
    path = Path(path)
    found = read_json(path) if path.is_file() else {}
    started = time.monotonic()
    for lang in languages:
        if lang in found:
            continue
        if seconds is not None and time.monotonic() - started > seconds:
            break
        texts = atlas_texts("udhr", lang)
        ids = tokenizer([text + "\n" for text in texts], add_special_tokens=False)["input_ids"]
        losses, tokens = window_losses(model, _windows(tokenizer, texts, 4, 100), _BATCH)
        found[lang] = {
            "tokens": sum(map(len, ids)),
            "words": sum(len(text.split()) for text in texts),
            "bytes": sum(len((text + "\n").encode()) for text in texts),
            "nats": round((losses.sum() / tokens.sum()).item(), 4),
        }
        write_json(path, found)
    return found


def deactivation_losses(
    model: nn.Module,
    tokenizer,
    neurons: NeuronSets,
    languages: Sequence[str],
    path: str | Path,
    source: str = "mediawiki",
    seconds: float | None = None,
) -> dict:
    """Measures every language with no set, each set, and each set's controls switched off; goes on from what `path` holds.

    A control is as many random neurons as the set has, in the same layers; each set has two of them.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        neurons: Sets, in which every language has some neurons.
        languages: Codes: the sets that are switched off, and the languages that are measured.
        path: JSON file of the rows that are measured so far.
        source: Text to measure on; the sets should come from another.
        seconds: Stop after the row that reaches this time.

    Returns:
        `languages`, and under `rows` by name ("base", "set yo", "control0 yo"): losses [languages, windows], in nats per token.
    """
    path = Path(path)
    found = {"model": model_source(model), "languages": list(languages), "source": source}
    found |= {"window_tokens": WINDOW_TOKENS, "rows": {}}
    if path.is_file():
        kept = read_json(path)
        if {**kept, "rows": {}} != found:
            raise ValueError(f"{path} was made for another model, other languages or text. Delete it to measure again.")
        found = kept
    windows = torch.cat([_windows(tokenizer, atlas_texts(source, x), WINDOWS, WINDOW_TOKENS) for x in languages])
    started = time.monotonic()
    empty = [torch.empty(0, dtype=torch.long)] * neurons.num_layers
    for name in row_names(languages):
        if name in found["rows"] or (seconds is not None and time.monotonic() - started > seconds):
            continue
        kind, _, lang = name.partition(" ")
        if kind.startswith("control"):
            chosen = neurons.random_like(lang, seed=int(kind.removeprefix("control")))
        else:
            chosen = neurons[lang] if kind == "set" else empty
        losses, tokens = losses_switched_off(model, chosen, windows, _BATCH)
        losses = (losses / tokens).view(len(languages), WINDOWS)
        found["rows"][name] = [[round(x, 4) for x in row] for row in losses.tolist()]
        write_json(path, found)
    return found


def row_names(languages: Sequence[str]) -> list[str]:
    """Returns the names of the rows that `deactivation_losses` measures."""
    kinds = ("set", *(f"control{k}" for k in range(CONTROLS)))
    return ["base", *(f"{kind} {lang}" for lang in languages for kind in kinds)]


def _windows(tokenizer, texts: Sequence[str], count: int, tokens: int) -> torch.Tensor:
    """Returns windows spread evenly over a text, LongTensor [count, tokens + BOS]."""
    opening = len(bos_ids(tokenizer))
    full = [w for w in pack_tokens(tokenizer, texts, tokens + opening) if len(w) == tokens + opening]
    if len(full) < count:
        raise ValueError(f"The text has {len(full)} windows of {tokens} tokens, not {count}.")
    return torch.stack([full[i * len(full) // count] for i in range(count)])


def specificity(losses: Mapping, resamples: int = 2000, seed: int = 0) -> dict:
    """Says of each language's set whether it is that language's.

    The effect of set A on language B is the loss it adds, less what A's controls add. The specificity of A is its effect on
    A less the median of its effects on the other languages.

    Args:
        losses: From `deactivation_losses`.
        resamples: Bootstrap over each language's windows, over the other languages, and over the controls.
        seed: Seed of the bootstrap.

    Returns:
        By language: `own` and `control` (loss added to itself, nats per token), `others` (median effect on the others),
        `specificity` with `low` and `high` (95%), `worst` (the set with the largest effect on this language), and
        `fails`: the interval reaches zero, or another set does more harm.
    """
    languages = losses["languages"]
    added, controls = _added(losses)
    control = controls.mean(1)
    effects = added - control
    rng = numpy.random.default_rng(seed)
    windows, found = added.shape[2], {}
    for i, lang in enumerate(languages):
        others = numpy.delete(numpy.arange(len(languages)), i)
        drawn = []
        for _ in range(resamples):
            one = added[i] - controls[i, rng.integers(controls.shape[1], size=controls.shape[1])].mean(0)
            own = one[i, rng.integers(windows, size=windows)].mean()
            picks = rng.choice(others, len(others))
            cells = rng.integers(windows, size=(len(picks), windows))
            drawn.append(own - numpy.median(one[picks[:, None], cells].mean(1)))
        low, high = numpy.quantile(drawn, INTERVAL)
        column = effects[:, i].mean(1)
        median = float(numpy.median(effects[i, others].mean(1)))
        worst = languages[int(column.argmax())]
        found[lang] = {
            "own": round(float(added[i, i].mean()), 4),
            "control": round(float(control[i, i].mean()), 4),
            "others": round(median, 4),
            "specificity": round(float(column[i]) - median, 4),
            "low": round(float(low), 4),
            "high": round(float(high), 4),
            "worst": worst,
            "fails": bool(low <= 0 or worst != lang),
        }
    return found


def _added(losses: Mapping) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Returns the losses that sets add, [sets, languages, windows], and controls, [sets, controls, languages, windows]."""
    rows = {name: numpy.array(values) - losses["rows"]["base"] for name, values in losses["rows"].items()}
    sets = numpy.stack([rows[f"set {lang}"] for lang in losses["languages"]])
    controls = [[rows[f"control{k} {lang}"] for k in range(CONTROLS)] for lang in losses["languages"]]
    return sets, numpy.array(controls)


def effect_table(losses: Mapping):
    """Returns the effects as a DataFrame: rows are sets switched off, columns languages, less each set's controls."""
    import pandas

    added, controls = _added(losses)
    return pandas.DataFrame((added - controls.mean(1)).mean(2), losses["languages"], losses["languages"])
