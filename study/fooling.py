"""Five common mistakes in evaluating a fine-tuned model, each shown by a small experiment: book/results/fooling.json.

Run: python -m study.fooling [--lang yo] [--only bos merging] [--other-text sib200:FOLDER]
An experiment takes two to four minutes on two cores. Each is saved when it is done, and saved experiments are not repeated.
"""

from __future__ import annotations

import argparse
import copy
import functools
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import bitsandbytes
import torch
from peft import PeftModel

from ssetools.evaluation.perplexity import score_languages
from ssetools.files import kept, provenance, write_json
from ssetools.languages import get_language
from ssetools.loss import IGNORED, chunked_loss
from ssetools.models import evaluation_mode, load_model
from ssetools.neurons.sets import NeuronSets
from ssetools.steps import get_neurons, neurons_for
from ssetools.text.embedded import EMBEDDED_MODEL
from ssetools.text.sources import default_source, load_texts, parse_sources
from ssetools.text.windows import pack_tokens
from ssetools.training.finetune import TrainingResult, finetune
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


class Setup:
    """What the experiments share: the language, its texts, and the model and neurons, which are loaded when needed."""

    def __init__(self, lang: str, model: str, runs: str, other_text: str):
        self.lang, self.model_name, self.runs, self.other_text = lang, model, runs, other_text

    @functools.cached_property
    def model(self) -> tuple:
        """The model in 8 bits and its tokenizer."""
        return load_model(self.model_name)

    @functools.cached_property
    def neurons(self) -> NeuronSets:
        """The neuron sets of all profiled languages."""
        return get_neurons(*self.model, self.runs)

    def train(self, texts: Sequence[str], method: str = "lape", tokenizer=None, **settings) -> TrainingResult:
        """Fine-tunes and keeps the last weights: choosing a checkpoint by other text would hide some of the mistakes."""
        neurons = neurons_for(self.neurons, self.lang, method, seed=0)
        settings = {"max_tokens": TOKENS, "batch_size": BATCH, "window": WINDOW, **settings}
        model, default = self.model
        trained = "subnetwork" if METHODS[method].selection else method
        return finetune(model, tokenizer or default, texts, trained, neurons, **settings)

    def score(self, texts: dict, tokenizer=None, model=None) -> dict:
        """Scores texts by genre and language, as `score_languages` does."""
        budgets = {"*": BUDGETS["*"], self.lang: BUDGETS["target"]}
        loaded, default = self.model if model is None else (model, None)
        return score_languages(loaded, tokenizer or default, texts, budgets, window=WINDOW)

    def sentences(self, languages: Sequence[str] = ()) -> dict:
        """Loads test sentences of an unseen genre, of the target and other languages."""
        return {"sentences": {x: load_texts(self.other_text, x, "test") for x in (self.lang, *languages)}}


def missing_bos(setup: Setup) -> dict:
    """Trains with and without BOS before each window, and scores both models with and without it, in seven languages.

    Without BOS, Gemma's loss is higher in every language. Training without BOS adapts the model to its absence, which
    lowers the loss without BOS in all languages.
    """
    tokenizer = setup.model[1]
    tokenizers = {"with": tokenizer, "without": without_bos(tokenizer)}
    texts, training_texts = setup.sentences(OTHERS), load_texts(default_source(), setup.lang, "train")
    scores = {"base": {way: setup.score(texts, x)["sentences"] for way, x in tokenizers.items()}}
    for trained, own in tokenizers.items():
        result = setup.train(training_texts, tokenizer=own, learning_rate=3e-4)
        scores[f"trained {trained}"] = {way: setup.score(texts, x)["sentences"] for way, x in tokenizers.items()}
        result.adapter.detach()
    return scores


def without_bos(tokenizer):
    """Returns a copy of a tokenizer without a BOS token, so that windows do not start with one."""
    copied = copy.deepcopy(tokenizer)
    copied.bos_token = None
    return copied


def memorised(setup: Setup) -> dict:
    """Trains on one short document for an increasing number of passes at a high rate, and scores three genres."""
    document = load_texts("udhr", setup.lang, "train")
    texts = {
        "trained on": {setup.lang: document},
        "same document": {setup.lang: load_texts("udhr", setup.lang, "test")},
        "messages": {setup.lang: load_texts("mediawiki", setup.lang, "test")},
        **setup.sentences(),
    }
    scores = {"0": setup.score(texts)}
    for epochs in EPOCHS:
        result = setup.train(document, learning_rate=5e-4, epochs=epochs, max_tokens=10**6)
        scores[str(epochs)] = setup.score(texts)
        result.adapter.detach()
    return {"passes": {x: {genre: y[setup.lang] for genre, y in by_genre.items()} for x, by_genre in scores.items()}}


def unequal_rates(setup: Setup) -> dict:
    """Trains the language's neurons and the random control, each at a high and at a low learning rate."""
    texts, training_texts = setup.sentences(), load_texts(default_source(), setup.lang, "train")
    scores = {"base": setup.score(texts)["sentences"][setup.lang], "runs": []}
    for method in ("lape", "random"):
        for rate in RATES:
            result = setup.train(training_texts, method, learning_rate=rate, max_tokens=int(1.5 * TOKENS))
            score = setup.score(texts)["sentences"][setup.lang]
            scores["runs"].append({"method": method, "learning_rate": rate, "scores": score})
            result.adapter.detach()
    return scores


def padding(setup: Setup) -> dict:
    """Trains on short padded messages, one per window, with padding included in the loss and excluded from it."""
    model, tokenizer = setup.model
    train = padded(tokenizer, load_texts("mediawiki", setup.lang, "train"), PADDED_STEPS * PADDED_BATCH)
    test = padded(tokenizer, load_texts("mediawiki", setup.lang, "test"), PADDED_TEST)
    results = {"padding share": (train[1] == IGNORED).float().mean().item(), "runs": {}}
    results["base"] = {counted: padded_loss(model, *test, counted == "counted") for counted in ("counted", "ignored")}
    for counted in ("counted", "ignored"):
        adapter = attach_method(model, "lape", setup.neurons[setup.lang])
        history = train_padded(adapter, *train, counted == "counted")
        after = {scored: padded_loss(model, *test, scored == "counted") for scored in ("counted", "ignored")}
        results["runs"][counted] = {"history": history, "after": after}
        adapter.detach()
    return results


def padded(tokenizer, texts, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads each text to a window.

    Returns:
        Ids and labels, two LongTensors [count, PADDED]; the label of padding is `IGNORED`.
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
    """Returns the mean loss of padded windows in nats per token, with padding included or excluded."""
    total = tokens = 0
    with evaluation_mode(model), torch.no_grad():
        for rows, masked in zip(ids.split(PADDED_BATCH), labels.split(PADDED_BATCH), strict=True):
            targets = rows if counted else masked
            scored = (targets[:, 1:] != IGNORED).sum().item()
            total += chunked_loss(model, rows, targets).item() * scored
            tokens += scored
    return total / tokens


def train_padded(adapter, ids, labels, counted: bool) -> list[float]:
    """Trains one pass over padded windows at a constant rate; returns the training loss of each step."""
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4)
    history = []
    with evaluation_mode(adapter.model):
        for rows, masked in zip(ids.split(PADDED_BATCH), labels.split(PADDED_BATCH), strict=True):
            loss = chunked_loss(adapter.model, rows, rows if counted else masked)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            history.append(loss.item())
    return history


def merging(setup: Setup) -> dict:
    """Trains a delta beside the 8-bit base, and scores it there, merged into int8, and merged into 16 bits."""
    tokenizer, texts = setup.model[1], setup.sentences()
    training_texts = load_texts(default_source(), setup.lang, "train")

    def score(model) -> dict:
        return setup.score(texts, tokenizer, model)["sentences"][setup.lang]

    results = {"8-bit base": score(setup.model[0])}
    adapter = setup.train(training_texts, learning_rate=1e-4).adapter
    results["delta beside 8-bit"] = score(setup.model[0])
    with tempfile.TemporaryDirectory() as scratch:
        saved, exported = adapter.save(Path(scratch) / "own"), adapter.to_peft(Path(scratch) / "peft")
        slices = {x.projection.path: x for x in adapter.slices.values()}
        adapter.detach()
        model, _ = load_model(setup.model_name)
        before = {path: dequantised(model.get_submodule(path)) for path in slices}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Merge lora module to 8-bit")  # this experiment measures what it warns of
            merged = PeftModel.from_pretrained(model, exported).merge_and_unload()
        results["merged into int8"] = score(merged)
        results["projections"] = merge_errors(merged, before, slices)
        del model, merged, before
        model_16bit, _ = load_model(setup.model_name, load_in_8bit=False)
        results["16-bit base"] = score(model_16bit)
        Subnetwork.load(saved, model_16bit).merge()
        results["merged into 16-bit"] = score(model_16bit)
    return results


def dequantised(layer) -> torch.Tensor:
    """Returns the weight of an 8-bit layer in float32."""
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.data, scales)


def merge_errors(model, before: dict, slices: dict) -> list[dict]:
    """Measures how far the weights after a merge into int8 are from the trained ones.

    Returns:
        For gate, up and down: `step`, median size of an int8 step; `delta`, median size of the deltas' elements; `error`, the
        norm of (merged weight - base weight - delta) over the trained elements, relative to the norm of the delta.
    """
    values: dict[str, dict[str, list]] = {}
    for path, piece in slices.items():
        of_projection = values.setdefault(piece.projection.name, {"steps": [], "deltas": [], "errors": []})
        change = dequantised(model.get_submodule(path)) - before[path]
        delta = piece.delta.detach()
        of_projection["errors"].append(
            (change.index_select(piece.projection.axis, piece.columns) - delta).square().sum()
        )
        of_projection["deltas"].append(delta.flatten())
        of_projection["steps"].append(before[path].abs().amax(1) / 127)
    return [
        {
            "projection": name,
            "step": torch.cat(x["steps"]).median().item(),
            "delta": torch.cat(x["deltas"]).abs().median().item(),
            "error": (torch.stack(x["errors"]).sum() / torch.cat(x["deltas"]).square().sum()).sqrt().item(),
        }
        for name, x in values.items()
    ]


EXPERIMENTS = {
    "bos": missing_bos,
    "memorised": memorised,
    "rates": unequal_rates,
    "padding": padding,
    "merging": merging,
}


def run(setup: Setup, names: Sequence[str], path: Path = RESULTS) -> dict:
    """Runs the experiments that are not in the file, and saves each when it is done.

    Raises:
        ValueError: If the file is of another model, language or text.
    """
    facts = {"model": setup.model_name, "lang": setup.lang, "other_text": parse_sources(setup.other_text)[0].name}
    results = kept(path, facts, remedy="Delete it, or name another file with --output.") or {**facts, "experiments": {}}
    for name in names:
        if name in results["experiments"]:
            print(f"{name}: found in {path}", flush=True)
            continue
        print(f"{name}: {EXPERIMENTS[name].__doc__.splitlines()[0]}", flush=True)
        started = time.monotonic()
        results["experiments"][name] = {**EXPERIMENTS[name](setup), **provenance()}
        write_json(path, results)
        print(f"{name}: done in {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    return results


def main() -> None:
    """Parses the command line and runs the experiments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lang", default="yo", help="language code")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="embedded name, hub id or local folder")
    parser.add_argument("--runs", default="runs", help="folder of the neuron sets")
    parser.add_argument("--other-text", default="sib200", help='text of the unseen genre: "sib200" or "sib200:FOLDER"')
    parser.add_argument("--only", nargs="+", default=list(EXPERIMENTS), choices=list(EXPERIMENTS))
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of the results")
    arguments = parser.parse_args()
    setup = Setup(get_language(arguments.lang).code, arguments.model, arguments.runs, arguments.other_text)
    run(setup, arguments.only, arguments.output)


if __name__ == "__main__":
    main()
