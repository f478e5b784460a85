"""The steps of a study, each finding its file or making it: profile, neurons, run, metrics.

`runs/<model>/profile.safetensors -> neurons.safetensors -> <lang>/<method>-seed<k>/{adapter.*, metrics.json}`.
The notebooks, the command line and `make finetune` all call these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ssetools import embedded
from ssetools.corpora import SOURCES, TextUnavailable, describe_source, load_texts
from ssetools.evaluation import change, evaluate, score_texts
from ssetools.ffn import find_ffn_blocks
from ssetools.interventions import deactivated
from ssetools.languages import CONTRAST_LANGUAGES, TARGET_LANGUAGES
from ssetools.lape import select_neurons
from ssetools.models import model_source
from ssetools.neurons import LayerNeurons, NeuronSets
from ssetools.paths import model_dir, run_dir, write_json
from ssetools.profiling import ActivationProfile, profile_languages
from ssetools.provenance import provenance
from ssetools.subnetwork import Subnetwork
from ssetools.training import METHODS, TrainingSettings, finetune

PROFILED_LANGUAGES = (*TARGET_LANGUAGES, *CONTRAST_LANGUAGES)
TOKENS_PER_LANGUAGE = 2048
_VALIDATION_WORDS = 600


@dataclass(frozen=True)
class TextPlan:
    """Which text trains, and which measures.

    Attributes:
        train: Source of the training and validation text.
        kinds: Source by name of the kind of test text.
        same_kind: Names of the kinds that the training text is of.
        reason: One sentence on why it is so.
    """

    train: str
    kinds: dict[str, str]
    same_kind: tuple[str, ...]
    reason: str

    @property
    def other_kind(self) -> str | None:
        """Name of the kind of text that training never saw, or None."""
        return next((kind for kind in self.kinds if kind not in self.same_kind), None)


def default_source() -> str:
    """Returns the default text: declaration and messages where apt is at hand, the declaration elsewhere."""
    return "udhr+mediawiki" if embedded.has_apt() else "udhr"


def plan_texts(source: str = "auto", other_text: str = "sib200", lang: str = "en") -> TextPlan:
    """Decides what to train on and what to measure on, so that some test text is of a kind never trained on.

    Args:
        source: Training source, or "auto".
        other_text: Where text of another kind comes from: "sib200" (the hub) or "sib200:FOLDER".
        lang: Language to try it with.

    Returns:
        The plan. With "auto" and SIB-200 at hand, both embedded sources train; without it, one of them is left out
        of training, to be the text of another kind.
    """
    names = {"udhr": "articles", "mediawiki": "messages"}
    try:
        load_texts(other_text, lang, "test")
        other, missing = {"sentences": other_text}, ""
    except TextUnavailable as error:
        other, missing = {}, str(error)
    if source == "auto":
        source = default_source()
        if not other and source == "udhr+mediawiki":
            kinds = {"messages": "mediawiki", "articles": "udhr"}
            reason = "SIB-200 cannot be reached, so the declaration is left out of training, to measure on."
            return TextPlan("mediawiki", kinds, ("messages",), reason)
    kinds = {names.get(part, Path(part).name): part for part in source.split("+")}
    same = tuple(kinds)
    if not other:
        spare = [x for x in default_source().split("+") if x not in source.split("+")]
        other = {names[spare[0]]: spare[0]} if spare else {}
    if other:
        reason = f"Text of another kind: {next(iter(other.values()))}, never trained on."
    else:
        reason = f"There is no text of another kind to measure on. {missing}"
    return TextPlan(source, {**kinds, **other}, same, reason)


def get_profile(
    model,
    tokenizer,
    runs="runs",
    source: str | None = None,
    languages: Sequence[str] = PROFILED_LANGUAGES,
    tokens_per_language: int = TOKENS_PER_LANGUAGE,
) -> ActivationProfile:
    """Loads `runs/<model>/profile.safetensors`, or makes it.

    Raises:
        ValueError: If the file is for another model, revision, text, budget or list of languages.
    """
    source = source or default_source()
    about = model_source(model)
    path = model_dir(about["model"], runs) / "profile.safetensors"
    if path.exists():
        profile = ActivationProfile.load(path)
        wanted = {key: about[key] for key in ("model", "revision", "load_in_8bit", "dtype")}
        wanted |= {"source": source, "tokens_per_language": tokens_per_language, "languages": list(languages)}
        found = {**profile.metadata, "languages": profile.languages}
        differ = [f"{k}: {found.get(k)!r}, wanted {v!r}" for k, v in wanted.items() if found.get(k) != v]
        if differ:
            raise ValueError(f"{path} was made for something else ({'; '.join(differ)}). Delete it to profile again.")
        return profile
    print(f"Profiling {len(languages)} languages on {source}, {tokens_per_language} tokens each ...", flush=True)
    texts = {lang: load_texts(source, lang, "train") for lang in languages}
    facts = {"source": source, "tokens_per_language": tokens_per_language, **provenance()}
    return profile_languages(model, tokenizer, texts, tokens_per_language, path=path, metadata=facts)


def get_neurons(model, tokenizer, runs="runs", top_rate: float = 0.05, **profile_options) -> NeuronSets:
    """Loads `runs/<model>/neurons.safetensors` for this rate, or selects from the (found or made) profile."""
    path = model_dir(model_source(model)["model"], runs) / "neurons.safetensors"
    profile = get_profile(model, tokenizer, runs, **profile_options)
    if path.exists():
        neurons = NeuronSets.load(path)
        neurons.check_model(model)
        if neurons.metadata.get("top_rate") == top_rate and neurons.languages == profile.languages:
            return neurons
    neurons = select_neurons(profile, top_rate)
    neurons.save(path)
    return neurons


def neurons_for(neurons: NeuronSets, lang: str, method: str, seed: int) -> LayerNeurons:
    """Returns the neurons that a method trains: the language's own, or a random control of the same size.

    Raises:
        ValueError: If the language has no selected neurons, or the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}: use one of {', '.join(METHODS)}.")
    if lang in neurons and neurons.count(lang) == 0:
        raise ValueError(
            f"No neuron is selected for {lang!r} at top_rate {neurons.metadata.get('top_rate')}: raise it."
        )
    if method == "lape":
        return neurons[lang]
    return neurons.random_like(lang, seed, depth_matched=method == "random")


def get_run(
    model, tokenizer, lang: str, neurons: NeuronSets, plan: TextPlan, method="lape", seed=0, runs="runs", **settings
) -> Path:
    """Attaches the adapter of `runs/<model>/<lang>/<method>-seed<k>`, training it first when it is not there.

    Returns:
        The run's folder.

    Raises:
        ValueError: If a finished run there has other settings.
    """
    settings = TrainingSettings(seed=seed, **settings)
    folder = run_dir(model_source(model)["model"], lang, method, seed, runs)
    chosen = neurons_for(neurons, lang, method, seed)
    if (folder / "adapter.json").exists():
        about = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
        wanted = {**asdict(settings), "source": plan.train, "top_rate": neurons.metadata.get("top_rate")}
        found = {**about["settings"], "source": about.get("source"), "top_rate": about.get("top_rate")}
        differ = [f"{k}: {found.get(k)!r}, wanted {v!r}" for k, v in wanted.items() if found.get(k) != v]
        if differ:
            raise ValueError(
                f"{folder} holds a run with other settings ({'; '.join(differ)}). Delete it to train again."
            )
        print(f"Found the adapter in {folder}.", flush=True)
        Subnetwork.load(folder, model)
        return folder
    size = sum(len(ids) for ids in chosen)
    facts = {"language": lang, "seed": seed, "source": plan.train, "top_rate": neurons.metadata.get("top_rate")}
    facts |= {"neurons": size, "corpus": describe_source(plan.train, lang), **provenance()}
    facts["percent_of_parameters"] = 100 * size * find_ffn_blocks(model)[0].weights_per_neuron / num_parameters(model)
    finetune(
        model,
        tokenizer,
        load_texts(plan.train, lang, "train"),
        method,
        chosen,
        validation_texts=_about(load_texts(plan.train, lang, "validation"), _VALIDATION_WORDS),
        run_dir=folder,
        facts=facts,
        **asdict(settings),
    )
    return folder


def num_parameters(model) -> int:
    """Counts the model's weights, whether stored in 8 bits or more; tied ones once."""
    return sum(p.numel() for p in model.parameters())


def _about(texts: Sequence[str], words: int) -> list[str]:
    """Takes documents at even distances until they hold about `words` words."""
    total = sum(len(t.split()) for t in texts)
    stride = max(1, total // words)
    return list(texts[::stride])


# --- measuring --------------------------------------------------------------------------------------------------


def test_texts(plan: TextPlan, lang: str, languages: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Loads the test text of every kind: the target's from any source, other languages' where the source has them."""
    texts: dict[str, dict[str, list[str]]] = {}
    for kind, source in plan.kinds.items():
        # Text of your own is in the target language; the named corpora have them all.
        others = [x for x in languages if x != lang] if source.split(":")[0] in SOURCES else []
        texts[kind] = {x: load_texts(source, x, "test") for x in [lang, *others]}
    return texts


def get_metrics(
    model,
    tokenizer,
    lang: str,
    folder: Path,
    plan: TextPlan,
    runs="runs",
    languages: Sequence[str] = PROFILED_LANGUAGES,
    budgets: dict[str, int] | None = None,
) -> dict:
    """Loads `metrics.json` of a run, or scores the attached adapter against the base and writes it.

    Args:
        model: The model, with the run's adapter attached.
        tokenizer: Its tokenizer.
        lang: The target language.
        folder: The run's folder.
        plan: What to measure on.
        runs: Folder of runs; the base's scores are kept there, for every language that comes later.
        languages: Languages to measure retention in; English is always among them.
        budgets: Tokens to score, by language; "*" for the others.

    Returns:
        The metrics, see `summarise`.
    """
    path = folder / "metrics.json"
    budgets = budgets or {"*": 256, "en": 1024, lang: 2048}
    request = {"kinds": plan.kinds, "languages": list(languages), "budgets": budgets}
    if path.exists():
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if metrics["request"] == request:
            return metrics
    texts = test_texts(plan, lang, dict.fromkeys([lang, "en", *languages]))
    print(f"Scoring {len(texts)} kinds of text in up to {len(languages)} languages, after and before ...", flush=True)
    after = evaluate(model, tokenizer, texts, budgets)
    subnet = Subnetwork.attached_to(model)
    with subnet.switched_off():
        before = _base_scores(model, tokenizer, texts, budgets, plan, runs)
    about = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    metrics = {
        "folder": folder.as_posix(),
        "request": request,
        "same_kind": plan.same_kind,
        "reason": plan.reason,
        "adapter": about,
    }
    metrics |= {"before": before, "after": after, "summary": summarise(before, after, lang), **provenance()}
    write_json(path, metrics)
    return metrics


def _base_scores(model, tokenizer, texts, budgets, plan, runs):
    """Scores the base, reusing what earlier languages of the same model and text have scored."""
    about = model_source(model)
    path = model_dir(about["model"], runs) / "base.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"model": about, "scores": {}}
    if kept["model"] != about:
        kept = {"model": about, "scores": {}}
    found: dict = {}
    for kind, by_language in texts.items():
        for lang, documents in by_language.items():
            budget = budgets.get(lang, budgets["*"])
            key = f"{plan.kinds[kind]} {lang} {budget}"
            if key not in kept["scores"]:
                one = evaluate(model, tokenizer, {kind: {lang: documents}}, budgets)
                kept["scores"][key] = one[kind][lang]
            found.setdefault(kind, {})[lang] = kept["scores"][key]
    write_json(path, kept)
    return found


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


def summarise(before: dict, after: dict, lang: str) -> dict:
    """Summarises scores by kind: the target's change, each other language's, their mean, and English's.

    Returns:
        By kind: "target", "english", "others" (by language) and "mean_of_others". Changes are of perplexity, in
        percent; the mean is of ln perplexity, as a percentage.
    """
    summary = {}
    for kind in before:
        changes = {x: change(before[kind][x], after[kind][x]) for x in before[kind]}
        others = {x: c for x, c in changes.items() if x != lang}
        mean = sum(math.log1p(c["percent"] / 100) for c in others.values()) / len(others) if others else None
        summary[kind] = {
            "target": changes[lang],
            "english": changes.get("en"),
            "others": others,
            "mean_of_others": None if mean is None else 100 * math.expm1(mean),
        }
    return summary
