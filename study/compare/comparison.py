"""Runs every method under equal conditions: same text, same number of steps, same size of rate grid, several seeds."""

from __future__ import annotations

import functools
import gc
import math
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas
from filelock import FileLock

from ssetools.errors import TrainingDiverged
from ssetools.evaluation.drift import drift, sample_from_base
from ssetools.evaluation.intervals import percent
from ssetools.evaluation.perplexity import change, score_languages
from ssetools.files import kept, model_dir, provenance, read_json, write_json
from ssetools.languages import CONTRAST_LANGUAGES, PROFILED_LANGUAGES, get_language
from ssetools.models import load_model, model_revision, num_parameters, quantization_of
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.neurons.selection import select_neurons
from ssetools.neurons.sets import NeuronSets
from ssetools.steps import get_profile, neurons_for
from ssetools.text.sources import default_source, load_texts, parse_sources
from ssetools.training.finetune import finetune
from ssetools.training.methods import check_method, load_adapter
from study.budget import select_budget
from study.compare.runs import METHODS, SEARCH, SEEDS, RunSettings, ablation_settings, read_run, seed_of

_TRAINING = {
    "window": 256,
    "batch_size": 2,
    "validate_every": 8,
    "checkpoint_every": 10**9,  # a run takes a minute, so it writes no checkpoint
}
_VALIDATION_DOCUMENTS = 45
_ABLATED_METHODS = ("lape", "random")

SCORED_AT_EVERY_RATE = ("lape", "random", "lora-equal", "full")
"""Methods that are scored at every rate of their search, with one seed. A higher rate gains more and harms more, and the
search, which measures the target language only, does not see the harm."""


def validation_loss(run: Mapping) -> float:
    """Returns a run's lowest loss on validation text, in nats per token; infinity if it diverged."""
    return math.inf if "diverged" in run else run["validation_loss"]


class Comparison:
    """The runs of one model; a run whose result file exists is read, any other is made.

    Results are saved in `<results>/<model>/<lang>/<settings>.json`, one file per run, and the scores of the base models
    beside them in `base-8bit.json` and `base-16bit.json`. Adapters are in `<runs>/<model>/<lang>/compare/` until they are
    scored. The comparison can be interrupted and resumed at any time; the model is loaded when the first run needs it.
    Several processes may share the folders: a process that needs a run which another one is making waits for its file.

    Training text is the declaration and interface messages. The rate and the number of steps are chosen by the loss on
    validation text of an unseen genre (SIB-200). Runs are tested on the test articles of the declaration, on the test
    sentences of SIB-200, and by the divergence from the base model on text that the base generated in each contrast
    language.

    Args:
        model: Embedded name, hub id or local folder.
        results: Folder of results.
        runs: Folder of runs.
        other_text: Text of the unseen genre, "sib200" (the hub) or "sib200:FOLDER".
    """

    def __init__(
        self,
        model: str = "gemma-3-270m",
        results: str | Path = "book/results/compare",
        runs: str | Path = "runs",
        other_text: str = "sib200",
    ):
        self.model, self.runs, self.other_text = model, runs, other_text
        self.results = model_dir(model, results)
        self._loaded: tuple | None = None
        self._profile = None

    def run_language(
        self,
        lang: str,
        methods: Iterable[str] = tuple(METHODS),
        seeds: Sequence[int] | None = None,
        like: Sequence[str] = (),
    ) -> list[dict]:
        """Runs every method on a language.

        Args:
            lang: Language code.
            methods: Names of `METHODS`.
            seeds: Seeds of the runs at the chosen rate; None: `SEEDS`, or with `like` the one of `seed_of`.
            like: Languages whose search chooses the rate; none: a search in this language.

        Returns:
            The scored runs, one per method and seed.

        Raises:
            TrainingDiverged: If a method diverges at every rate of its search.
        """
        for code in (lang, *like):
            get_language(code)
        for method in methods:
            check_method(method)
        seeds = seeds or ([seed_of(lang)] if like else SEEDS)
        scored = []
        for method in sorted(methods, key=lambda x: not METHODS[x].on_8bit):  # so that each base is loaded once
            rate = self.chosen_rate(method, like or [lang])
            scored += [self.score(lang, RunSettings(method, rate, seed)) for seed in seeds]
            if method in SCORED_AT_EVERY_RATE and not like:
                self.score_every_rate(lang, method)
            for tried in SEARCH[method]:  # only this method's adapters: those of others may not be scored yet
                with self._lock(lang, RunSettings(method, tried).name):
                    shutil.rmtree(self._adapter_folder(lang, RunSettings(method, tried)), ignore_errors=True)
        return scored

    def score_every_rate(self, lang: str, method: str) -> list[dict]:
        """Scores a method at every rate of its grid with the seed of the search, except where it diverged.

        Returns:
            The scored runs, in ascending order of rate.
        """
        runs = {rate: self.train(lang, RunSettings(method, rate)) for rate in SEARCH[method]}
        return [self.score(lang, RunSettings(method, rate)) for rate, run in runs.items() if "diverged" not in run]

    def run_ablations(self, lang: str) -> list[dict]:
        """Runs `lape` and its control with other shares of neurons, other amounts of text and a budget, one seed each.

        All use the rate chosen for `lape`, so that only one setting changes. A share at which the language has no neurons
        is skipped with a printed sentence.

        Args:
            lang: Language code.

        Returns:
            The scored runs, including those with the default settings.
        """
        rate = self.chosen_rate("lape", [lang])
        scored = []
        for method in _ABLATED_METHODS:
            for settings in ablation_settings(method, rate):
                if self._saved_run(lang, settings) is None and not self._has_neurons(lang, settings):
                    print(f"{lang} {settings.name}: skipped, the selection has no neurons of {lang!r}.", flush=True)
                    continue
                scored.append(self.score(lang, settings))
        return scored

    def chosen_rate(self, method: str, languages: Sequence[str]) -> float:
        """Returns the rate of the grid with the lowest validation loss, averaged over languages.

        Raises:
            TrainingDiverged: If at every rate the method diverges in one of the languages.
        """
        losses = {
            rate: sum(validation_loss(self.train(lang, RunSettings(method, rate))) for lang in languages)
            for rate in SEARCH[method]
        }
        rate = min(losses, key=losses.__getitem__)
        if losses[rate] == math.inf:
            raise TrainingDiverged(
                f"{method} diverged in {' or '.join(languages)} at every rate of its search "
                f"({', '.join(f'{x:g}' for x in losses)}). Add lower rates to its search in ssetools/training/methods.py, or "
                "leave it out with --methods."
            )
        return rate

    def search_table(self, lang: str, methods: Iterable[str] = tuple(METHODS)) -> pandas.DataFrame:
        """Tabulates the search: method, learning_rate, best_step and validation_loss of every run of the grids."""
        runs = [self.train(lang, RunSettings(method, rate)) for method in methods for rate in SEARCH[method]]
        rows = [
            [run["settings"]["method"], run["settings"]["learning_rate"], run["best_step"], validation_loss(run)]
            for run in runs
        ]
        return pandas.DataFrame(rows, columns=["method", "learning_rate", "best_step", "validation_loss"])

    def train(self, lang: str, settings: RunSettings) -> dict:
        """Returns a run's result, training it when there is none."""
        with self._lock(lang, settings.name):
            return self._saved_run(lang, settings) or self._train(lang, settings)

    def score(self, lang: str, settings: RunSettings) -> dict:
        """Returns a run's result with its scores on test text, training and scoring it as needed."""
        with self._lock(lang, settings.name):
            run = self._saved_run(lang, settings)
            return run if run and "after" in run else self._score(lang, settings, run)

    def _score(self, lang: str, settings: RunSettings, run: dict | None) -> dict:
        folder = self._adapter_folder(lang, settings)
        if not (run and (folder / "adapter.json").exists()):
            run = self._train(lang, settings)
        if "diverged" in run:
            raise TrainingDiverged(f"{lang} {settings.name} cannot be scored: {run['diverged']}")
        model, tokenizer = self._load(METHODS[settings.method].on_8bit)
        with self._lock("shared"):
            samples = sample_from_base(model, tokenizer, CONTRAST_LANGUAGES, self.results / "samples.safetensors")
        texts, budgets = self._test_texts(lang)
        started = time.perf_counter()
        run["base"] = self._score_base(lang, texts, budgets)
        adapter = load_adapter(folder, model)
        run["after"] = score_languages(model, tokenizer, texts, budgets)
        run["drift"] = drift(model, samples)
        run["scoring_seconds"] = round(time.perf_counter() - started, 1)
        adapter.detach()
        write_json(self._path(lang, settings), run)
        shutil.rmtree(folder)
        print(f"{lang} {settings.name}: {_summary_line(run, self.base_scores(lang)[run['base']], lang)}", flush=True)
        return run

    def base_scores(self, lang: str) -> dict[str, dict]:
        """Returns the scores of the base models of a language's runs, by the file name to which the runs refer."""
        return {path.name: read_json(path)["scores"] for path in (self.results / lang).glob("base-*.json")}

    # --- one run ---

    def _train(self, lang: str, settings: RunSettings) -> dict:
        model, tokenizer = self._load(METHODS[settings.method].on_8bit)
        folder, started = self._adapter_folder(lang, settings), time.perf_counter()
        shutil.rmtree(folder, ignore_errors=True)
        facts = {
            "settings": asdict(settings),
            "protocol": self._protocol(),
            "load_in_8bit": METHODS[settings.method].on_8bit,
        }
        try:
            result = finetune(
                model,
                tokenizer,
                load_texts(default_source(), lang, "train"),
                "subnetwork" if METHODS[settings.method].selection else settings.method,
                self._neurons_for(lang, settings),
                validation_texts=load_texts(self.other_text, lang, "validation")[:_VALIDATION_DOCUMENTS],
                run_dir=folder,
                learning_rate=settings.learning_rate,
                max_tokens=settings.max_tokens,
                seed=settings.seed,
                **_TRAINING,
            )
        except FloatingPointError as error:
            # A rate of the search may be too high: it is recorded, with no validation loss. Any other run is an error.
            if settings.seed != SEEDS[0] or settings.learning_rate not in SEARCH[settings.method]:
                raise
            run = {**facts, "validation_loss": None, "best_step": 0, "history": [], "diverged": str(error)}
            outcome = str(error)
        else:
            result.adapter.detach()
            tokens_per_step = _TRAINING["batch_size"] * _TRAINING["window"]
            seconds = [tokens_per_step / row["tokens_per_second"] for row in result.history]
            run = {
                **facts,
                "parameters": result.adapter.num_parameters,
                "optimizer_bytes": result.optimizer_bytes,
                "peak_memory_gib": round(result.peak_memory_gib, 2),
                "adapter_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
                "seconds_per_step": round(statistics.median(seconds), 3),
                "seconds": round(time.perf_counter() - started, 1),
                "best_step": result.best_step,
                "validation_loss": min(row["validation_loss"] for row in result.history if "validation_loss" in row),
                "history": [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in result.history],
            }
            outcome = f"validation {run['validation_loss']:.4f} at step {result.best_step}"
        run |= self._provenance()
        write_json(self._path(lang, settings), run)
        print(f"{lang} {settings.name}: {outcome}", flush=True)
        return run

    def _score_base(self, lang: str, texts: Mapping, budgets: Mapping) -> str:
        """Scores the loaded base once per language, precision, revision and hardware; returns its file's name."""
        model, tokenizer = self._loaded
        facts, stem = self._provenance(), f"base-{'8bit' if quantization_of(model) == 'int8' else '16bit'}"
        wanted = {key: facts[key] for key in ("hardware", "revision")}
        with self._lock(lang, stem):
            files = sorted((self.results / lang).glob(f"{stem}*.json"), key=lambda path: (len(path.name), path.name))
            for path in files:
                if kept(path, wanted, on_change="remake"):
                    return path.name
            path = self.results / lang / (f"{stem}-{len(files) + 1}.json" if files else f"{stem}.json")
            scores = score_languages(model, tokenizer, texts, budgets)
            write_json(path, {"scores": scores, "protocol": self._protocol(), **facts})
        return path.name

    # --- what the runs share ---

    def _saved_run(self, lang: str, settings: RunSettings) -> dict | None:
        path = self._path(lang, settings)
        wanted = {"protocol": self._protocol(), "revision": self._revision}
        remedy = "Name another folder with --results, or delete it to run it again."
        return read_run(path) if kept(path, wanted, remedy=remedy) else None

    def _path(self, lang: str, settings: RunSettings) -> Path:
        return self.results / lang / f"{settings.name}.json"

    def _adapter_folder(self, lang: str, settings: RunSettings) -> Path:
        return model_dir(self.model, self.runs) / lang / "compare" / settings.name

    @functools.cached_property
    def _revision(self) -> str | None:
        return model_revision(self.model)

    def _provenance(self) -> dict:
        """Model, versions and hardware; the model by name, without paths."""
        return {"model": self.results.name, "revision": self._revision, **provenance()}

    def _protocol(self) -> dict:
        """What two runs must have in common to be comparable; no paths."""
        text = parse_sources(self.other_text)[0].name
        return {"train": default_source(), "validation": text, "test": ["udhr", text], **_TRAINING}

    def _test_texts(self, lang: str) -> tuple[dict, dict]:
        sources = {"articles": "udhr", "sentences": self.other_text}
        languages = dict.fromkeys([lang, "en", *PROFILED_LANGUAGES])
        texts = {genre: {x: load_texts(source, x, "test") for x in languages} for genre, source in sources.items()}
        return texts, {"*": 256, "en": 1024, lang: 2048}

    def _neurons_for(self, lang: str, settings: RunSettings) -> list | None:
        if not METHODS[settings.method].needs_neurons:
            return None
        return neurons_for(self._selection(settings), lang, settings.method, settings.seed)

    def _has_neurons(self, lang: str, settings: RunSettings) -> bool:
        self._load(METHODS[settings.method].on_8bit)
        return self._selection(settings).count(lang) > 0

    def _selection(self, settings: RunSettings) -> NeuronSets:
        model = self._loaded[0]
        if self._profile is None:
            with self._lock("shared"):
                self._profile = get_profile(*self._loaded, self.runs)
        if settings.budget is None:
            return select_neurons(self._profile, settings.top_rate)
        per_neuron = find_ffn_blocks(model)[0].weights_per_neuron
        return select_budget(self._profile, round(settings.budget * num_parameters(model) / per_neuron))

    def _lock(self, *names: str) -> FileLock:
        """Returns a lock between processes; the operating system releases it when its process ends."""
        path = model_dir(self.model, self.runs) / "locks" / f"compare-{'-'.join(names)}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def _load(self, load_in_8bit: bool) -> tuple:
        if self._loaded and (quantization_of(self._loaded[0]) == "int8") != load_in_8bit:
            self._loaded = None
            gc.collect()
        if not self._loaded:
            self._loaded = load_model(self.model, load_in_8bit=load_in_8bit)
        return self._loaded


def _summary_line(run: Mapping, base: Mapping, lang: str) -> str:
    changes = [
        f"{genre} {percent(change(base[genre][lang], scores[lang])['percent'])}"
        for genre, scores in run["after"].items()
    ]
    kl = statistics.mean(language["kl"] for language in run["drift"].values())
    return f"{', '.join(changes)}, drift {kl:.4f} nats"
