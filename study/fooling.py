"""Five ways to fool yourself about a fine-tuned model, each shown by a small run: book/results/fooling.json.

Run: python -m study.fooling [--lang yo] [--only bos merging] [--other-text sib200:FOLDER]
An experiment takes two to four minutes on two cores, is written as soon as it is done, and is not done again.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import tempfile
import time
import warnings
from pathlib import Path

import bitsandbytes
import torch
from peft import PeftModel

from ssetools.embedded_model import EMBEDDED_MODEL
from ssetools.evaluation.perplexity import score_languages
from ssetools.files import provenance, write_json
from ssetools.languages import get_language
from ssetools.loss import IGNORED, chunked_loss
from ssetools.models import evaluation_mode, load_model
from ssetools.steps import get_neurons, neurons_for
from ssetools.text.sources import default_source, load_texts, parse_sources
from ssetools.text.windows import pack_tokens
from ssetools.training.finetune import finetune
from ssetools.training.methods import METHODS, attach_method
from ssetools.training.subnetwork import Subnetwork

RESULTS = Path(__file__).resolve().parent.parent / "book" / "results" / "fooling.json"
OTHERS = ("is", "cy", "ka", "en", "fr", "de")
WINDOW, BATCH = 256, 2
BUDGETS = {"target": 2048, "*": 512}
TOKENS = 8192
EPOCHS = (1, 3, 8)
RATES = (3e-4, 3e-5)
PADDED, PADDED_BATCH, PADDED_STEPS, PADDED_TEST = 64, 8, 32, 96


class Bench:
    """What the experiments share: the language, its texts, and the model with its neurons, loaded when needed."""

    def __init__(self, lang: str, model: str, runs: str, other_text: str):
        self.lang, self.name, self.runs, self.other_text = lang, model, runs, other_text

    @functools.cached_property
    def model(self) -> tuple:
        return load_model(self.name)

    @functools.cached_property
    def neurons(self):
        return get_neurons(*self.model, self.runs)

    def train(self, texts, method="lape", tokenizer=None, **settings):
        """Fine-tunes, keeping the last weights: choosing the best by other text would hide what is to be shown."""
        neurons = neurons_for(self.neurons, self.lang, method, seed=0)
        settings = {"max_tokens": TOKENS, "batch_size": BATCH, "window": WINDOW, **settings}
        model, own = self.model
        how = "subnetwork" if METHODS[method].selection else method
        return finetune(model, tokenizer or own, texts, how, neurons, **settings)

    def score(self, texts: dict, tokenizer=None, model=None) -> dict:
        """Scores texts by kind and language, as `score_languages` does."""
        budgets = {"*": BUDGETS["*"], self.lang: BUDGETS["target"]}
        loaded, own = self.model if model is None else (model, None)
        return score_languages(loaded, tokenizer or own, texts, budgets, window=WINDOW)

    def sentences(self, languages=()) -> dict:
        """Test sentences of another kind than the training text, of the target and other languages."""
        return {"sentences": {x: load_texts(self.other_text, x, "test") for x in (self.lang, *languages)}}


def missing_bos(bench: Bench) -> dict:
    """Trains with and without BOS before each window, and measures both ways, in seven languages.

    Gemma without BOS is a worse model in every language; training without it teaches to do without it, in all at once.
    """
    tokenizer = bench.model[1]
    ways = {"with": tokenizer, "without": without_bos(tokenizer)}
    texts, training = bench.sentences(OTHERS), load_texts(default_source(), bench.lang, "train")
    found = {"base": {way: bench.score(texts, own)["sentences"] for way, own in ways.items()}}
    for trained, own in ways.items():
        result = bench.train(training, tokenizer=own, learning_rate=3e-4)
        found[f"trained {trained}"] = {way: bench.score(texts, x)["sentences"] for way, x in ways.items()}
        result.adapter.detach()
    return found


def without_bos(tokenizer):
    """Returns a tokenizer that is the same but has no BOS, so that no window gets one."""
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = None
    return bare


def memorised(bench: Bench) -> dict:
    """Trains on one short document for more and more passes at a high rate, and measures on three kinds of text."""
    document = load_texts("udhr", bench.lang, "train")
    texts = {
        "trained on": {bench.lang: document},
        "same document": {bench.lang: load_texts("udhr", bench.lang, "test")},
        "messages": {bench.lang: load_texts("mediawiki", bench.lang, "test")},
        **bench.sentences(),
    }
    found = {"0": bench.score(texts)}
    for epochs in EPOCHS:
        result = bench.train(document, learning_rate=5e-4, epochs=epochs, max_tokens=10**6)
        found[str(epochs)] = bench.score(texts)
        result.adapter.detach()
    return {"passes": {passes: {k: v[bench.lang] for k, v in by_kind.items()} for passes, by_kind in found.items()}}


def unequal_rates(bench: Bench) -> dict:
    """Trains the language's neurons and the random control, each at a high and at a low rate."""
    texts, training = bench.sentences(), load_texts(default_source(), bench.lang, "train")
    found = {"base": bench.score(texts)["sentences"][bench.lang], "runs": []}
    for method in ("lape", "random"):
        for rate in RATES:
            result = bench.train(training, method, learning_rate=rate, max_tokens=int(1.5 * TOKENS))
            scores = bench.score(texts)["sentences"][bench.lang]
            found["runs"].append({"method": method, "learning_rate": rate, "scores": scores})
            result.adapter.detach()
    return found


def padding(bench: Bench) -> dict:
    """Trains on short messages, one a window, filled up with padding: with the padding in the loss, and without."""
    model, tokenizer = bench.model
    train = padded(tokenizer, load_texts("mediawiki", bench.lang, "train"), PADDED_STEPS * PADDED_BATCH)
    test = padded(tokenizer, load_texts("mediawiki", bench.lang, "test"), PADDED_TEST)
    found = {"padding share": (train[1] == IGNORED).float().mean().item(), "runs": {}}
    found["base"] = {counted: padded_loss(model, *test, counted == "counted") for counted in ("counted", "ignored")}
    for counted in ("counted", "ignored"):
        adapter = attach_method(model, "lape", bench.neurons[bench.lang])
        history = train_padded(adapter, *train, counted == "counted")
        after = {seen: padded_loss(model, *test, seen == "counted") for seen in ("counted", "ignored")}
        found["runs"][counted] = {"history": history, "after": after}
        adapter.detach()
    return found


def padded(tokenizer, texts, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Fills each text up to a window with padding; returns ids and labels, where padding is `IGNORED`.

    Returns:
        Two LongTensors [count, PADDED].
    """
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = torch.full((count, PADDED), pad)
    labels = torch.full((count, PADDED), IGNORED)
    for row, text in enumerate(texts[:count]):
        (tokens,) = pack_tokens(tokenizer, [text], PADDED, max_tokens=PADDED)
        ids[row, : len(tokens)] = tokens
        labels[row, : len(tokens)] = tokens
    return ids, labels


def padded_loss(model, ids, labels, counted: bool) -> float:
    """Returns the mean loss per token of padded windows, in nats, with or without their padding."""
    total = tokens = 0
    with evaluation_mode(model), torch.no_grad():
        for rows, marked in zip(ids.split(PADDED_BATCH), labels.split(PADDED_BATCH), strict=True):
            marked = rows if counted else marked
            seen = (marked[:, 1:] != IGNORED).sum().item()
            total += chunked_loss(model, rows, marked).item() * seen
            tokens += seen
    return total / tokens


def train_padded(adapter, ids, labels, counted: bool) -> list[float]:
    """Trains one pass over padded windows at a constant rate; returns the loss of each step, as it was taken."""
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4)
    history = []
    with evaluation_mode(adapter.model):
        for rows, marked in zip(ids.split(PADDED_BATCH), labels.split(PADDED_BATCH), strict=True):
            loss = chunked_loss(adapter.model, rows, rows if counted else marked)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            history.append(loss.item())
    return history


def merging(bench: Bench) -> dict:
    """Trains a small delta beside the 8-bit base, and compares it there, merged into int8, and merged into 16 bits."""
    tokenizer, texts = bench.model[1], bench.sentences()
    training = load_texts(default_source(), bench.lang, "train")

    def scored(model):
        return bench.score(texts, tokenizer, model)["sentences"][bench.lang]

    found = {"8-bit base": scored(bench.model[0])}
    result = bench.train(training, learning_rate=1e-4)
    found["delta beside 8-bit"] = scored(bench.model[0])
    with tempfile.TemporaryDirectory() as scratch:
        saved, exported = result.adapter.save(Path(scratch) / "own"), result.adapter.to_peft(Path(scratch) / "peft")
        deltas = {piece.projection.path: piece for piece in result.adapter.slices.values()}
        result.adapter.detach()
        model, _ = load_model(bench.name)
        before = {path: dequantised(model.get_submodule(path)) for path in deltas}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Merge lora module to 8-bit")  # it says what is shown here
            merged = PeftModel.from_pretrained(model, exported).merge_and_unload()
        found["merged into int8"] = scored(merged)
        found["projections"] = arrived(merged, before, deltas)
        del model, merged, before
        whole, _ = load_model(bench.name, load_in_8bit=False)
        found["16-bit base"] = scored(whole)
        Subnetwork.load(saved, whole).merge()
        found["merged into 16-bit"] = scored(whole)
    return found


def dequantised(layer) -> torch.Tensor:
    """Returns the weight of an 8-bit layer in float32."""
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.data, scales)


def arrived(model, before: dict, deltas: dict) -> list[dict]:
    """Says, for gate, up and down, how much of the deltas a merge into int8 left.

    Returns:
        By projection: `step`, median size of one int8 step; `delta`, median size of the deltas' numbers; `error`, the
        norm of what the merge did at the trained numbers less the delta, relative to the delta's.
    """
    rows: dict[str, dict[str, list]] = {}
    for path, piece in deltas.items():
        at = rows.setdefault(piece.projection.name, {"steps": [], "deltas": [], "errors": []})
        moved = dequantised(model.get_submodule(path)) - before[path]
        axis = piece.projection.axis
        delta = piece.delta.detach()
        at["errors"].append((moved.index_select(axis, piece.columns) - delta).square().sum())
        at["deltas"].append(delta.flatten())
        at["steps"].append(before[path].abs().amax(1) / 127)
    return [
        {
            "projection": name,
            "step": torch.cat(at["steps"]).median().item(),
            "delta": torch.cat(at["deltas"]).abs().median().item(),
            "error": (torch.stack(at["errors"]).sum() / torch.cat(at["deltas"]).square().sum()).sqrt().item(),
        }
        for name, at in rows.items()
    ]


EXPERIMENTS = {
    "bos": missing_bos,
    "memorised": memorised,
    "rates": unequal_rates,
    "padding": padding,
    "merging": merging,
}


def run(bench: Bench, names, path: Path = RESULTS) -> dict:
    """Runs the experiments that the file does not hold, and writes each when it is done.

    Raises:
        ValueError: If the file is of another model, language or text.
    """
    about = {"model": bench.name, "lang": bench.lang, "other_text": parse_sources(bench.other_text)[0].name}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**about, "experiments": {}}
    found = {key: kept[key] for key in about}
    if found != about:
        raise ValueError(f"{path} holds experiments of {found}, wanted {about}: delete it, or write to another file.")
    for name in names:
        if name in kept["experiments"]:
            print(f"{name}: found in {path}", flush=True)
            continue
        print(f"{name}: {EXPERIMENTS[name].__doc__.splitlines()[0]}", flush=True)
        began = time.monotonic()
        kept["experiments"][name] = {**EXPERIMENTS[name](bench), **provenance()}
        write_json(path, kept)
        print(f"{name}: done in {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    return kept


def main() -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lang", default="yo")
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--other-text", default="sib200", help='"sib200" (the hub) or "sib200:FOLDER"')
    parser.add_argument("--only", nargs="+", default=list(EXPERIMENTS), choices=list(EXPERIMENTS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    bench = Bench(get_language(arguments.lang).code, arguments.model, arguments.runs, arguments.other_text)
    run(bench, arguments.only, arguments.output)


if __name__ == "__main__":
    main()
