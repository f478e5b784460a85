"""Every method on equal terms: one grid of rates, one text, one number of steps, several seeds, all resumable."""

from __future__ import annotations

import functools
import gc
import math
import shutil
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import pandas
from filelock import FileLock

from ssetools.evaluation.drift import drift, sample_from_base
from ssetools.evaluation.intervals import percent
from ssetools.evaluation.perplexity import change, score_languages
from ssetools.files import model_dir, provenance, read_json, write_json
from ssetools.languages import CONTRAST_LANGUAGES, PROFILED_LANGUAGES, get_language
from ssetools.models import has_8bit_layers, load_model, model_revision, num_parameters
from ssetools.neurons.ffn import find_ffn_blocks
from ssetools.neurons.selection import select_budget, select_neurons
from ssetools.steps import get_profile, neurons_for
from ssetools.text.sources import default_source, load_texts, parse_sources
from ssetools.training.finetune import finetune
from ssetools.training.methods import check_method, load_adapter
from study.compare.runs import METHODS, SEEDS, Arm, ablations_of, own_seed

_TRAINING = {
    "window": 256,
    "batch_size": 2,
    "validate_every": 8,
    "checkpoint_every": 10**9,
}  # a run takes a minute: no checkpoint
_VALIDATION_DOCUMENTS = 45
_ABLATED = ("lape", "random")

TRACED = ("lape", "random", "lora-equal", "full")
"""Methods scored at every rate of their search, one seed: a higher rate gains more and harms more, and the search, which
looks at the target language alone, does not see the harm."""


class Comparison:
    """The runs of one model, each found in its file or made.

    Results lie in `<results>/<model>/<lang>/<arm>.json` (one per run, with the base's scores in `base-8bit.json` and
    `base-16bit.json`), adapters under `<runs>/<model>/<lang>/compare/` until they are scored. What is there is
    never run again, so that a comparison can be stopped anywhere; the model is loaded when the first run needs it.
    Several processes may work in the same folders, on other languages or other methods: one that comes to a run that
    another is making waits for its file.

    Training text: declaration and messages. The rate and the number of steps are chosen by the loss on validation
    text of another kind (SIB-200). Tested on the declaration's test articles, on SIB-200's test sentences, and by
    the divergence from the base on text that the base wrote in each contrast language.

    Args:
        model: Embedded name, hub id or local folder.
        results: Folder of results.
        runs: Folder of runs.
        other_text: "sib200" (the hub) or "sib200:FOLDER".
    """

    def __init__(self, model="gemma-3-270m", results="book/results/compare", runs="runs", other_text="sib200"):
        self.model, self.runs, self.other_text = model, runs, other_text
        self.results = model_dir(model, results)
        self._loaded: tuple | None = None
        self._profile = None

    def language(
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
            seeds: Seeds to run at the chosen rate; None: `SEEDS`, or with `like` the one of `own_seed`.
            like: Languages whose search chooses the rate; none searches for this language itself.

        Returns:
            The scored runs, a dict per method and seed.
        """
        for code in (lang, *like):
            get_language(code)
        for method in methods:
            check_method(method)
        seeds = seeds or ([own_seed(lang)] if like else SEEDS)
        scored = []
        for method in sorted(methods, key=lambda m: not METHODS[m].on_8bit):  # each base is loaded once
            rate = self.chosen_rate(method, like or [lang])
            scored += [self.scored(lang, Arm(method, rate, seed)) for seed in seeds]
            if method in TRACED and not like:
                self.traced(lang, method)
            for tried in METHODS[method].search:  # other methods' adapters may still wait to be scored
                with self._alone(lang, Arm(method, tried).name):
                    shutil.rmtree(self._folder(lang, Arm(method, tried)), ignore_errors=True)
        return scored

    def traced(self, lang: str, method: str) -> list[dict]:
        """Scores a method at every rate of its grid, with the seed of the search; returns the runs, lowest rate first."""
        tried = {rate: self.trained(lang, Arm(method, rate)) for rate in METHODS[method].search}
        return [self.scored(lang, Arm(method, rate)) for rate, run in tried.items() if "diverged" not in run]

    def ablations(self, lang: str) -> list[dict]:
        """Runs `lape` and its control with other shares, other amounts of text and a budget, one seed each.

        All train at the rate chosen for `lape`, so that nothing else changes. A share at which the language has no
        neuron is left out, and said.

        Args:
            lang: Language code.

        Returns:
            The scored runs, the comparison's own at the default share and amount among them.
        """
        rate = self.chosen_rate("lape", [lang])
        scored = []
        for method in _ABLATED:
            for arm in ablations_of(method, rate):
                if self._found(lang, arm) is None and not self._has_neurons(lang, arm):
                    print(f"{lang} {arm.name}: left out, no neuron of {lang!r} is among the selected.", flush=True)
                    continue
                scored.append(self.scored(lang, arm))
        return scored

    def chosen_rate(self, method: str, languages: Sequence[str]) -> float:
        """Returns the rate of the grid with the lowest validation loss, in the mean over languages."""
        return min(
            METHODS[method].search,
            key=lambda rate: sum(self.trained(lang, Arm(method, rate))["validation_loss"] for lang in languages),
        )

    def searched(self, lang: str, methods: Iterable[str] = tuple(METHODS)) -> pandas.DataFrame:
        """Tabulates the search: method, learning_rate, best_step and validation_loss of every run of the grids."""
        runs = [self.trained(lang, Arm(method, rate)) for method in methods for rate in METHODS[method].search]
        columns = ["best_step", "validation_loss"]
        rows = [[r["arm"]["method"], r["arm"]["learning_rate"], *(r[c] for c in columns)] for r in runs]
        return pandas.DataFrame(rows, columns=["method", "learning_rate", *columns])

    def trained(self, lang: str, arm: Arm) -> dict:
        """Returns a run's result, training it when there is none."""
        with self._alone(lang, arm.name):
            return self._found(lang, arm) or self._train(lang, arm)

    def scored(self, lang: str, arm: Arm) -> dict:
        """Returns a run's result with its scores on test text, training and scoring as needed."""
        with self._alone(lang, arm.name):
            return self._scored(lang, arm)

    def _scored(self, lang, arm):
        result = self._found(lang, arm)
        if result and "after" in result:
            return result
        folder = self._folder(lang, arm)
        if not (result and (folder / "adapter.json").exists()):
            result = self._train(lang, arm)
        model, tokenizer = self._load(METHODS[arm.method].on_8bit)
        with self._alone("shared"):
            samples = sample_from_base(model, tokenizer, CONTRAST_LANGUAGES, self.results / "samples.safetensors")
        texts, budgets = self._test(lang)
        began = time.perf_counter()
        result["base"] = self._score_base(lang, texts, budgets)
        adapter = load_adapter(folder, model)
        result["after"] = score_languages(model, tokenizer, texts, budgets)
        result["drift"] = drift(model, samples)
        result["scoring_seconds"] = round(time.perf_counter() - began, 1)
        adapter.detach()
        write_json(self._path(lang, arm), result)
        shutil.rmtree(folder)
        print(f"{lang} {arm.name}: {_in_words(result, self.bases(lang)[result['base']], lang)}", flush=True)
        return result

    def bases(self, lang: str) -> dict[str, dict]:
        """Returns the scores of the bases that runs of a language start from, by the name that the runs give them."""
        found = {path.name: read_json(path) for path in (self.results / lang).glob("base-*.json")}
        return {name: base["scores"] for name, base in found.items()}

    # --- one run ---

    def _train(self, lang, arm):
        model, tokenizer = self._load(METHODS[arm.method].on_8bit)
        folder, began = self._folder(lang, arm), time.perf_counter()
        shutil.rmtree(folder, ignore_errors=True)
        try:
            result = finetune(
                model,
                tokenizer,
                load_texts(default_source(), lang, "train"),
                "subnetwork" if METHODS[arm.method].selection else arm.method,
                self._neurons_for(lang, arm),
                validation_texts=load_texts(self.other_text, lang, "validation")[:_VALIDATION_DOCUMENTS],
                run_dir=folder,
                learning_rate=arm.learning_rate,
                max_tokens=arm.max_tokens,
                seed=arm.seed,
                **_TRAINING,
            )
        except FloatingPointError as error:
            return self._diverged(lang, arm, error)
        result.adapter.detach()
        seconds = [_TRAINING["batch_size"] * _TRAINING["window"] / row["tokens_per_second"] for row in result.history]
        found = {
            "arm": asdict(arm),
            "protocol": self._protocol(),
            "load_in_8bit": METHODS[arm.method].on_8bit,
            "parameters": result.adapter.num_parameters,
            "optimizer_bytes": result.optimizer_bytes,
            "peak_memory_gib": round(result.peak_memory_gib, 2),
            "adapter_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
            "seconds_per_step": round(statistics.median(seconds), 3),
            "seconds": round(time.perf_counter() - began, 1),
            "best_step": result.best_step,
            "validation_loss": min(row["validation_loss"] for row in result.history if "validation_loss" in row),
            "history": [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in result.history],
            **self._made(),
        }
        write_json(self._path(lang, arm), found)
        print(f"{lang} {arm.name}: validation {found['validation_loss']:.4f} at step {result.best_step}", flush=True)
        return found

    def _diverged(self, lang, arm, error):
        """Keeps a rate that is too high as what it is, the worst of its search; at the rate chosen it is an error."""
        if arm.seed != SEEDS[0] or arm.learning_rate not in METHODS[arm.method].search:
            raise error
        found = {"arm": asdict(arm), "protocol": self._protocol(), "load_in_8bit": METHODS[arm.method].on_8bit}
        found |= {"validation_loss": math.inf, "best_step": 0, "history": [], "diverged": str(error), **self._made()}
        write_json(self._path(lang, arm), found)
        print(f"{lang} {arm.name}: {error}", flush=True)
        return found

    def _score_base(self, lang, texts, budgets):
        """Scores the loaded base, once for each language, precision, revision and hardware; returns its file's name."""
        model, tokenizer = self._loaded
        about, stem = self._made(), f"base-{'8bit' if has_8bit_layers(model) else '16bit'}"
        with self._alone(lang, stem):
            have = sorted((self.results / lang).glob(f"{stem}*.json"), key=lambda path: (len(path.name), path.name))
            for path in have:
                base = read_json(path)
                if all(base[key] == about[key] for key in ("hardware", "revision")):
                    return path.name
            path = self.results / lang / (f"{stem}-{len(have) + 1}.json" if have else f"{stem}.json")
            scores = score_languages(model, tokenizer, texts, budgets)
            write_json(path, {"scores": scores, "protocol": self._protocol(), **about})
        return path.name

    # --- what the runs share ---

    def _found(self, lang, arm):
        path = self._path(lang, arm)
        if not path.exists():
            return None
        result = read_json(path)
        if result["protocol"] != self._protocol():
            raise ValueError(f"{path} was made by another protocol, {result['protocol']}: delete it to run it again.")
        if result["revision"] != self._revision:
            raise ValueError(
                f"{path} was made with revision {result['revision']} of {result['model']}, and this is {self._revision}: "
                "name another folder with --results, or delete it to run it again."
            )
        return result

    def _path(self, lang, arm):
        return self.results / lang / f"{arm.name}.json"

    def _folder(self, lang, arm):
        return model_dir(self.model, self.runs) / lang / "compare" / arm.name

    @functools.cached_property
    def _revision(self):
        return model_revision(self.model)

    def _made(self):
        """What was run, by which versions and where; the model by its name and no path."""
        return {"model": self.results.name, "revision": self._revision, **provenance()}

    def _protocol(self):
        """What must be the same for two runs to be comparable; no paths."""
        text = parse_sources(self.other_text)[0].name
        return {"train": default_source(), "validation": text, "test": ["udhr", text], **_TRAINING}

    def _test(self, lang):
        sources = {"articles": "udhr", "sentences": self.other_text}
        languages = dict.fromkeys([lang, "en", *PROFILED_LANGUAGES])
        texts = {kind: {x: load_texts(source, x, "test") for x in languages} for kind, source in sources.items()}
        return texts, {"*": 256, "en": 1024, lang: 2048}

    def _neurons_for(self, lang, arm):
        if not METHODS[arm.method].needs_neurons:
            return None
        return neurons_for(self._selected(arm), lang, arm.method, arm.seed)

    def _has_neurons(self, lang, arm):
        self._load(METHODS[arm.method].on_8bit)
        return self._selected(arm).count(lang) > 0

    def _selected(self, arm):
        model = self._loaded[0]
        if self._profile is None:
            with self._alone("shared"):
                self._profile = get_profile(*self._loaded, self.runs)
        if arm.budget is None:
            return select_neurons(self._profile, arm.top_rate)
        per_neuron = find_ffn_blocks(model)[0].weights_per_neuron
        return select_budget(self._profile, round(arm.budget * num_parameters(model) / per_neuron))

    def _alone(self, *what):
        """A lock for what several processes may make; it is let go when its process ends, however it ends."""
        path = model_dir(self.model, self.runs) / "locks" / f"compare-{'-'.join(what)}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def _load(self, load_in_8bit):
        if self._loaded and has_8bit_layers(self._loaded[0]) != load_in_8bit:
            self._loaded = None
            gc.collect()
        if not self._loaded:
            self._loaded = load_model(self.model, load_in_8bit=load_in_8bit)
        return self._loaded


def _in_words(result: dict, base: dict, lang: str) -> str:
    moved = [
        f"{kind} {percent(change(base[kind][lang], result['after'][kind][lang])['percent'])}"
        for kind in result["after"]
    ]
    kl = statistics.mean(one["kl"] for one in result["drift"].values())
    return f"{', '.join(moved)}, drift {kl:.4f} nats"
