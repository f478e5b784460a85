"""One run: train a recipe, measure its curve along the scale, choose a scale under each limit, score test text there."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from ssetools.evaluation.drift import sample_from_base
from ssetools.files import model_dir, provenance, read_json, write_json
from ssetools.languages import CONTRAST_LANGUAGES
from ssetools.models import evaluation_mode, load_model, model_precision, model_revision, quantization_of
from ssetools.steps import get_profile
from ssetools.text.windows import pack_in_memory
from ssetools.training.finetune import peak_memory_gib, reset_peak_memory
from ssetools.training.loop import Run, TrainingSettings
from study.harm.recipes import Recipe
from study.harm.score import TEST, VALIDATION, Scores, mean_drift, num_tokens, score, scored_sentences
from study.harm.select import attach, share_of
from study.harm.text import RealText

GRID = (1 / 3, 2 / 3, 1.0)
"""Scales that are measured on validation text; between them a cubic through scale 0 is read."""
STEP = 0.02
GENERAL_MEAN, GENERAL_WORST = 0.01, 0.03
"""The general limit: relative increase of the loss of the well-served languages, on average and at worst."""
LIMITS: dict[str, dict[str, float]] = {
    "general": {},
    "drift 0.02": {"drift": 0.02},
    "drift 0.03": {"drift": 0.03},
    "neighbours": {"neighbours": 0.0},
}
"""The limits beside the general one, which always holds."""
PROTOCOL = 1
_ROUNDING = 1e-9  # of a cubic through four points


class Study:
    """The runs of one model on real text, each read from its file or made.

    Results are at `<results>/<model>/<lang>/<recipe>.json`, the base's scores beside them. Several processes may work in
    the same folders: a run that another process holds is passed over.

    Args:
        model: Embedded name, hub id or local folder.
        text: The real text.
        results: Folder of results.
        runs: Folder of the profile and of locks.
    """

    def __init__(self, model: str, text: RealText, results: str | Path, runs: str):
        self.model, self.text, self.runs = model, text, runs
        self.results = model_dir(model, results)
        self._loaded: tuple | None = None

    def make(self, lang: str, recipe: Recipe) -> bool:
        """Makes a run's file unless it exists or another process is making it. Returns whether it made it."""
        path = self.path(lang, recipe)
        if path.exists():
            return False
        lock = model_dir(self.model, self.runs) / "locks" / f"{lang}-{recipe.name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=0):
                if path.exists():
                    return False
                write_json(path, self._run(lang, recipe))
        except Timeout:
            return False
        return True

    def make_shared(self) -> None:
        """Makes what all runs share unless it exists: the profile, and samples of the base, both in 8 bits."""
        model, tokenizer = self._load(True)
        get_profile(model, tokenizer, self.runs)
        self._samples(model, tokenizer)

    def path(self, lang: str, recipe: Recipe) -> Path:
        """Returns the file of a run."""
        return self.results / lang / f"{recipe.name}.json"

    def _run(self, lang: str, recipe: Recipe) -> dict:
        began = time.perf_counter()
        model, tokenizer = self._load(recipe.on_8bit)
        samples = self._samples(model, tokenizer)
        base = self._base(lang, "validation"), self._base(lang, "test")
        texts, left_out = self.text.training(lang)
        if recipe.text == "placebo":
            texts, left_out = self.text.other_languages(lang, characters=recipe.tokens), 0
        adapter = attach(model, tokenizer, lang, recipe, self.text, self.runs)
        try:
            training = self._train(adapter, tokenizer, texts, recipe)
            curve = self._curve(model, tokenizer, lang, adapter, samples["validation"], base[0])
            chosen = {name: choose_scale(curve, limit) for name, limit in LIMITS.items()}
            test = {}
            for scale in sorted({s for s in chosen.values() if s > 0}):
                adapter.scale = scale
                scores = score(model, tokenizer, scored_sentences(self.text, lang, "test"))
                test[f"{scale:.2f}"] = {"scores": scores, "drift": mean_drift(model, samples["test"])}
            share = share_of(model, adapter)
        finally:
            adapter.detach()
        result = {
            "recipe": asdict(recipe),
            "language": lang,
            "protocol": PROTOCOL,
            "base": f"base-{self._precision()}-test.json",
            **model_precision(model),
            "parameters": adapter.num_parameters,
            "share": share,
            "training": training,
            "lines_left_out": left_out,
            "curve": curve,
            "chosen": chosen,
            "test": test,
            "corpus": self.text.describe(lang),
            "seconds": round(time.perf_counter() - began, 1),
            "model": self.results.name,
            "revision": model_revision(self.model),
            **provenance(),
        }
        print(f"{lang} {recipe.name}: {_in_words(result)}", flush=True)
        return result

    def _train(self, adapter, tokenizer, texts: Sequence[str], recipe: Recipe) -> dict:
        settings = TrainingSettings(
            learning_rate=recipe.learning_rate,
            max_tokens=recipe.tokens,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            checkpoint_every=10**9,
        )
        windows = pack_in_memory(tokenizer, texts, settings.window)
        steps = min(len(windows), recipe.tokens // settings.window) // recipe.batch_size
        reset_peak_memory()
        began = time.perf_counter()
        run = Run(adapter, windows, [], steps, settings, None, recipe.method)
        with evaluation_mode(adapter.model):
            run.train()
        return {
            "steps": steps,
            "tokens": run.history[-1]["tokens"],
            "seconds": round(time.perf_counter() - began, 1),
            "peak_memory_gib": round(peak_memory_gib(), 2),
            "optimizer_bytes": run.optimizer_bytes(),
            "losses": [round(row["loss"], 4) for row in run.history],
        }

    def _curve(self, model, tokenizer, lang: str, adapter, samples, base: dict) -> list[dict]:
        sentences = scored_sentences(self.text, lang, "validation")
        points = [{"scale": 0.0, "target": 0.0, "english": 0.0, "served": {}, "neighbours": 0.0, "drift": 0.0}]
        for scale in GRID:
            adapter.scale = scale
            scores = score(model, tokenizer, sentences)
            points.append({"scale": scale, **summary(lang, base, scores), "drift": mean_drift(model, samples)})
        return points

    def _samples(self, model, tokenizer) -> dict:
        path = model_dir(self.model, self.runs) / "harm-samples-{}.safetensors"
        return {
            split: sample_from_base(
                model, tokenizer, CONTRAST_LANGUAGES, str(path).format(split), samples=1, tokens=128, seed=seed
            )
            for split, seed in (("validation", 0), ("test", 1))
        }

    def _base(self, lang: str, split: str) -> dict:
        """Scores of the loaded base and token counts, read from their file or made."""
        model, tokenizer = self._load(None)
        path = self.results / lang / f"base-{self._precision()}-{split}.json"
        sizes = asdict(VALIDATION if split == "validation" else TEST)
        if path.exists() and (kept := read_json(path))["sizes"] == sizes:
            return kept
        sentences = scored_sentences(self.text, lang, split)
        made = {
            "scores": score(model, tokenizer, sentences),
            "tokens": num_tokens(tokenizer, sentences),
            "sizes": sizes,
        }
        write_json(path, made | {"revision": model_revision(self.model), **provenance()})
        return made

    def _precision(self) -> str:
        """Names how the base is loaded: machines compute in different dtypes, and each has base scores of its own."""
        precision = model_precision(self._load(None)[0])
        return ("8bit-" if precision["load_in_8bit"] else "") + precision["dtype"]

    def _load(self, load_in_8bit: bool | None):
        if self._loaded and load_in_8bit is not None and (quantization_of(self._loaded[0]) == "int8") != load_in_8bit:
            self._loaded = None
            gc.collect()
        if not self._loaded:
            self._loaded = load_model(self.model, load_in_8bit=bool(load_in_8bit))
        return self._loaded


def summary(lang: str, base: Mapping, scores: Scores) -> dict:
    """Summarises scores against the base's.

    Args:
        lang: Language that was trained.
        base: "scores" and "tokens" of the base.
        scores: Of the trained model.

    Returns:
        "target": change of the loss in nats per token, averaged over genres; "english", "served" and "each_neighbour" (by
        language): relative change of the loss; "neighbours": mean relative change over languages.
    """
    relative: dict[str, list[float]] = {}
    target = []
    for genre, by_lang in scores.items():
        for other, losses in by_lang.items():
            before = sum(base["scores"][genre][other])
            if other == lang:
                target.append((sum(losses) - before) / sum(base["tokens"][genre][other]))
            else:
                relative.setdefault(other, []).append(sum(losses) / before - 1)
    means = {other: sum(x) / len(x) for other, x in relative.items()}
    neighbours = {other: x for other, x in means.items() if other not in CONTRAST_LANGUAGES}
    return {
        "target": sum(target) / len(target),
        "english": means.get("en", 0.0),
        "served": {x: means[x] for x in CONTRAST_LANGUAGES if x in means},
        "each_neighbour": neighbours,
        "neighbours": sum(neighbours.values()) / len(neighbours),
    }


def choose_scale(curve: Sequence[Mapping], limit: Mapping[str, float]) -> float:
    """Returns the scale with the largest gain under the general limit and one more, on a grid of 0.02; 0 if none has.

    Every measure is read off a cubic through scale 0 and the measured points.
    """
    scales = np.arange(0, curve[-1]["scale"] + STEP / 2, STEP)
    points = [{**point, **point["served"]} for point in curve]
    served = {x: read_along(points, x, scales) for x in CONTRAST_LANGUAGES}
    allowed = np.mean(list(served.values()), axis=0) <= GENERAL_MEAN + _ROUNDING
    allowed &= np.max(list(served.values()), axis=0) <= GENERAL_WORST + _ROUNDING
    for name, most in limit.items():
        allowed &= read_along(curve, name, scales) <= most + _ROUNDING
    gain = read_along(curve, "target", scales)
    gain[~allowed] = np.inf
    best = int(gain.argmin())
    return round(float(scales[best]), 2) if gain[best] < 0 else 0.0


def read_along(curve: Sequence[Mapping], name: str, scales: Sequence[float] | np.ndarray) -> np.ndarray:
    """Reads a measure at scales off the cubic through the points of a curve; a language without text counts as 0."""
    measured = [point.get(name, 0.0) for point in curve]
    return np.polyval(np.polyfit([p["scale"] for p in curve], measured, len(curve) - 1), scales)


def _in_words(result: dict) -> str:
    full = result["curve"][-1]
    chosen = ", ".join(f"{name} {scale:g}" for name, scale in result["chosen"].items())
    return f"target {100 * full['target']:+.1f}, drift {full['drift']:.3f} at scale 1; scales: {chosen}; {result['seconds']:.0f} s"
