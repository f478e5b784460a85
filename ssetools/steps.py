"""The steps of a run. Each loads the file of an earlier call if it was made from the same inputs, or makes it.

get_profile   runs/<model>/profile.safetensors
get_neurons   runs/<model>/neurons-specific.safetensors, neurons.safetensors of LAPE
get_run       runs/<model>/<lang>/<method>-seed<k>/adapter.*
get_metrics   runs/<model>/<lang>/<method>-seed<k>/metrics.json, metrics-scale0.4.json for another scale
"""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ssetools import processes
from ssetools.errors import InvalidInput, OutOfMemory, TextUnavailable
from ssetools.evaluation.perplexity import change, score_languages
from ssetools.files import digest_of, kept, model_dir, provenance, read_json, reading, run_dir, write_json
from ssetools.languages import CONTRAST_LANGUAGES, PROFILED_LANGUAGES, get_language, num_words
from ssetools.memory_plan import GIB, plan_memory
from ssetools.models import device_of, model_precision, model_source, num_parameters, quantization_of
from ssetools.neurons.counts import ActivationProfile, profile_languages
from ssetools.neurons.selection import neurons_per_layer, select_neurons, select_specific
from ssetools.neurons.sets import LayerNeurons, NeuronSets
from ssetools.text.sources import TextPlan, default_source, describe_source, load_texts, parse_sources
from ssetools.text.streams import stream_texts
from ssetools.training.adapter import Adapter, adapter_facts, check_scale
from ssetools.training.finetune import best_scale, choose_scale, finetune
from ssetools.training.loop import TrainingSettings
from ssetools.training.methods import METHODS, SELECTIONS, check_method, load_adapter, method_with

TOKENS_PER_LANGUAGE = 2048
_BYTES_PER_TOKEN = 16  # more than any tokenizer needs on average
_NO_MEMORY = "allocate memory|enough memory|out of memory"
_RETRAIN = "Ask for the same (text and neuron_ids are digests), name another seed, or delete the run's folder."


def get_profile(
    model: nn.Module,
    tokenizer: Any,
    runs: str | Path = "runs",
    source: str | None = None,
    languages: Sequence[str] | None = None,
    tokens_per_language: int = TOKENS_PER_LANGUAGE,
) -> ActivationProfile:
    """Loads `runs/<model>/profile.safetensors`, or counts activations and writes it.

    Args:
        model, tokenizer: A causal language model and its tokenizer.
        runs: Folder of runs.
        source: Text to count on; None takes the default.
        languages: Codes in any order; None takes those of the file, and `PROFILED_LANGUAGES` when there is no file.
        tokens_per_language: Tokens to count in each language.

    Raises:
        ValueError: If the file is for another model, revision, text, number of tokens or list of languages.
    """
    source = source or default_source()
    path = model_dir(model_source(model)["model"], runs) / "profile.safetensors"
    facts = {"source": source, "tokens_per_language": tokens_per_language}
    identity = model_source(model) | model_precision(model)
    identity.pop("weights", None)  # older files have none
    del identity["model" if identity["revision"] else "revision"]  # a folder can be moved
    wanted = identity | facts | ({"languages": sorted(languages)} if languages else {})
    if kept(path, wanted, remedy="Ask for the same, name another folder of runs, or delete it to profile again."):
        return ActivationProfile.load(path)
    languages = languages or PROFILED_LANGUAGES
    print(f"Profiling {len(languages)} languages on {source}, {tokens_per_language} tokens each ...", flush=True)
    limit = _BYTES_PER_TOKEN * tokens_per_language if _is_streamed(source) else None
    texts = {lang: load_texts(source, lang, "train", limit) for lang in languages}
    return profile_languages(model, tokenizer, texts, tokens_per_language, path=path, metadata=facts | provenance())


def get_neurons(
    model: nn.Module,
    tokenizer: Any,
    runs: str | Path = "runs",
    top_rate: float = 0.05,
    selection: str = "specific",
    **profile_options: Any,
) -> NeuronSets:
    """Loads the neuron sets in `runs/<model>/`, or selects them from the profile and writes them.

    Args:
        model, tokenizer: A causal language model and its tokenizer.
        runs: Folder of runs.
        top_rate: Share of all neurons that LAPE selects. Sets of another rate or profile are replaced.
        selection: "specific" (`neurons-specific.safetensors`: 1% of the weights, equally many neurons in each layer) or
            "lape" (`neurons.safetensors`). "random" returns the specific sets, of which `get_run` draws controls.
        **profile_options: As in `get_profile`, like the errors.
    """
    _, selection = method_with("subnetwork", selection)
    profile = get_profile(model, tokenizer, runs, **profile_options)
    select: Any = select_neurons
    name, size = "neurons", {"top_rate": top_rate}
    if selection == "specific":
        name, select, size = "neurons-specific", select_specific, {"per_layer": neurons_per_layer(model)}
    path = model_dir(model_source(model)["model"], runs) / f"{name}.safetensors"
    if kept(path, profile.metadata | size | {"profiled_languages": profile.languages}, on_change="remake"):
        return NeuronSets.load(path)
    neurons = select(profile, **size)
    if processes.is_main():
        neurons.save(path)
    return neurons


def neurons_for(neurons: NeuronSets | None, lang: str, method: str, seed: int) -> LayerNeurons | None:
    """Returns the neurons that a method is given: the language's own, a random control of the same size, or none.

    A ValueError if the language has no selected neurons, or the method is unknown or needs other ones.
    """
    check_method(method)
    if not METHODS[method].needs_neurons:
        return None
    if neurons is None:
        raise InvalidInput(f"Method {method!r} needs neurons: pass the NeuronSets of `get_neurons`.")
    wanted, selected_by = METHODS[method].selection, neurons.metadata.get("selection", "lape")
    if wanted in ("lape", "specific") and "specific" in (wanted, selected_by) and wanted != selected_by:
        raise InvalidInput(
            f"Method {method!r} trains other neurons than the ones given, which were selected as {selected_by!r}: set "
            f"selection={wanted!r} (`-p selection`, `--selection`)."
        )
    if lang in neurons and neurons.count(lang) == 0:
        raise InvalidInput(
            f"No neuron is selected for {lang!r} at top_rate {neurons.metadata.get('top_rate')}: raise it, or set "
            'selection="specific", which gives every language as many.'
        )
    if method.startswith("random"):
        return neurons.random_like(lang, seed, depth_matched=method == "random")
    return neurons[lang]


def get_run(
    model: nn.Module,
    tokenizer: Any,
    lang: str,
    neurons: NeuronSets | None,
    plan: TextPlan,
    method: str = "subnetwork",
    seed: int = 0,
    runs: str | Path = "runs",
    scale: float | Literal["auto"] | None = None,
    **settings: Any,
) -> Path:
    """Attaches the adapter of `runs/<model>/<lang>/<method>-seed<k>`, training it first when there is none.

    Returns the folder. A ValueError if a finished run there has other settings, or trained other neurons or on other text;
    `OutOfMemory` with the run's plan.

    Args:
        model, tokenizer: A causal language model and its tokenizer.
        lang: Language to train.
        neurons: Neuron sets; None for the methods that need none.
        plan: The text to train on, and the text that must stay out of it.
        method: A name of `METHODS`; for "subnetwork" the run takes the name of the selection that made `neurons`.
        seed: Seed of the order of the text, and of random neurons.
        runs: Folder of runs.
        scale: `adapter.scale`. A number, or "auto" to choose it by forward passes (`choose_scale`); a finished run
            takes it without training. None: as the run was saved, "auto" for a new one.
        **settings: Fields of `TrainingSettings`.
    """
    if neurons:
        neurons.check_model(model)
    selected_by = neurons.metadata.get("selection", "lape") if neurons else "lape"
    method = selected_by if method == "subnetwork" and selected_by in SELECTIONS else method
    training = asdict(TrainingSettings(seed=seed, **settings).for_method(method))
    folder = run_dir(model_source(model)["model"], lang, method, seed, runs)
    chosen = neurons_for(neurons, lang, method, seed)
    # Streamed text can be larger than memory; it is identified by its revision alone.
    texts = None if _is_streamed(plan.train) else load_texts(plan.train, lang, "train")
    facts = {
        "source": plan.train,
        "text": None if texts is None else digest_of(texts),
        "top_rate": neurons.metadata.get("top_rate") if neurons and chosen else None,
        "neuron_ids": digest_of([ids.tolist() for ids in chosen]) if chosen else None,
    }
    if kept(folder / "adapter.json", {**facts, "settings": training}, remedy=_RETRAIN):
        adapter = load_adapter(folder, model)
        print(f"Found the adapter in {folder}.", flush=True)
        if scale == "auto" and not (folder / "scales.json").is_file():
            curve = choose_scale(adapter, tokenizer, _validation_texts(plan.train, lang), _retention_texts(plan, lang))
            if processes.is_main():
                write_json(folder / "scales.json", curve)
            processes.state().wait_for_everyone()
        adapter.scale = scale_of_run(folder, scale)
        return folder
    scale = "auto" if scale is None else scale
    facts |= {"method": method, "selection": selected_by if chosen else None, "language": lang, "seed": seed}
    facts |= {"corpus": describe_source(plan.train, lang), "model_parameters": num_parameters(model), **provenance()}
    facts |= {"neurons": sum(map(len, chosen))} if chosen else {}
    if texts is None:  # without the documents that are measured on
        held_out = [text for source in plan.genres.values() for text in load_texts(source, lang, "test")]
        texts = stream_texts(plan.train, lang, held_out + load_texts(plan.train, lang, "validation"))
    options: dict[str, Any] = {"run_dir": folder, "facts": facts, "scale": scale}
    options["validation_texts"] = _validation_texts(plan.train, lang)
    options["retention_texts"] = _retention_texts(plan, lang) if scale == "auto" else None
    trained = "subnetwork" if METHODS[method].selection else method
    try:
        finetune(model, tokenizer, texts, trained, chosen, **options, **training)
    except (MemoryError, RuntimeError) as error:  # the latter of PyTorch, on CPUs without a class of its own
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not re.search(_NO_MEMORY, str(error)):
            raise
        traceback.clear_frames(error.__traceback__)  # which hold the step's tensors
        raise OutOfMemory(_memory_advice(model, trained, chosen, training)) from error
    return folder


def _memory_advice(model: nn.Module, method: str, neurons: LayerNeurons | None, training: dict[str, Any]) -> str:
    """Says how much memory a run needs, and which settings need less."""
    source, device = model_source(model), "cuda" if device_of(model).type == "cuda" else "cpu"
    quantized = quantization_of(model) is not None
    plan = plan_memory(source["model"], neurons, method, quantized, source["dtype"], device, **training)
    return (
        f"Training ran out of memory. `ssetools plan` estimates {plan.peak / GIB:.2f} GiB for this run on {device}, "
        f"{plan.step / GIB:.2f} GiB of it for a step. Lower batch_size ({training['batch_size']}) or window "
        f"({training['window']}), or set checkpoint_activations=True (--batch-size, --window, --checkpoint-activations)."
    )


def _retention_texts(plan: TextPlan, lang: str) -> dict[str, list[str]]:
    """Loads validation text in well-served languages: of the unseen genre if that has some, else the declaration."""
    unseen = plan.genres.get(plan.unseen_genre or "", "udhr")
    source = unseen if parse_sources(unseen)[0].multilingual else "udhr"
    try:
        return {x: _validation_texts(source, x, words=200) for x in CONTRAST_LANGUAGES if x != lang}
    except TextUnavailable as error:
        raise TextUnavailable(f"{error} A number as scale, such as 1, needs no text in other languages.") from error


def _is_streamed(source: str) -> bool:
    return any(part.streamed for part in parse_sources(source))


def _validation_texts(source: str, lang: str, words: int = 600) -> list[str]:
    """Takes validation documents at even distances, about `words` words of them."""
    texts = load_texts(source, lang, "validation")
    total = sum(num_words(text, get_language(lang).script) for text in texts)
    return texts[:: max(1, total // words)]


def results_at_scale(folder: str | Path, name: str, scale: float) -> tuple[Path, dict[str, Any]]:
    """Returns where a run keeps results at a scale, and its facts with that scale.

    The file is `name`, such as "metrics.json", for the scale that the run was saved with, else "metrics-scale0.4.json".
    """
    path, about = Path(folder) / name, adapter_facts(folder)
    if scale != about.get("scale", 1.0):
        path, about["scale"] = path.with_name(f"{path.stem}-scale{scale:g}{path.suffix}"), scale
    return path, about


def scale_of_run(folder: str | Path, scale: float | str | None) -> float:
    """Returns the scale asked of a finished run: a number, None (as saved) or "auto" (the best in scales.json).

    A FileNotFoundError if there is no adapter or no scales.json, a ValueError for a negative number.
    """
    if scale is None:
        return adapter_facts(folder).get("scale", 1.0)
    if scale != "auto":
        return check_scale(scale)
    path = Path(folder) / "scales.json"
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: `ssetools evaluate` with `--scale auto` makes it.")
    return best_scale(read_json(path))


def get_metrics(
    model: nn.Module,
    tokenizer: Any,
    lang: str,
    folder: Path,
    plan: TextPlan,
    runs: str | Path = "runs",
    languages: Sequence[str] = PROFILED_LANGUAGES,
    budgets: Mapping[str, int] | None = None,
) -> dict:
    """Loads the metrics of a run at the adapter's scale (`results_at_scale`), or scores it and its base.

    Args:
        model, tokenizer: The model, with the run's adapter attached, and its tokenizer.
        lang: The target language.
        folder: The run's folder.
        plan: What to measure on.
        runs: Folder of runs, in which the scores of the base are cached for every language.
        languages: Languages to measure retention in; English is always among them.
        budgets: Tokens to score, by language; "*" for the others.

    Returns:
        "before" and "after" (scores), "summary" (`summarise`), "scales" (of `choose_scale`, if any), and what was asked for.
    """
    path, about = results_at_scale(folder, "metrics.json", Adapter.attached_to(model).scale)
    budgets = dict(budgets or {"*": 256, "en": 1024, lang: 2048})
    texts = {}
    for kind, source in plan.genres.items():  # text of your own is in the target alone
        others = ["en", *languages] if parse_sources(source)[0].multilingual else ()
        texts[kind] = {code: load_texts(source, code, "test") for code in dict.fromkeys([lang, *others])}
    request = {"kinds": plan.genres, "languages": list(languages), "budgets": budgets, "text": digest_of(texts)}
    inputs = {"request": request | model_precision(model), "adapter": about}
    if metrics := kept(path, inputs, on_change="remake"):
        return metrics
    print(f"Scoring {len(texts)} genres in up to {len(languages)} languages, after and before ...", flush=True)
    after = score_languages(model, tokenizer, texts, budgets)
    with Adapter.attached_to(model).switched_off():
        before = _base_scores(model, tokenizer, texts, budgets, plan.genres, Path(runs))
    metrics = {"folder": folder.as_posix(), "same_kind": plan.same_genre, "reason": plan.reason, **inputs}
    if (folder / "scales.json").is_file():
        metrics["scales"] = read_json(folder / "scales.json")
    metrics |= {"before": before, "after": after, "summary": summarise(before, after, lang), **provenance()}
    write_json(path, metrics)
    return metrics


def _base_scores(model: Any, tokenizer: Any, texts: Mapping, budgets: Mapping, sources: Mapping, runs: Path) -> dict:
    """Scores the base by genre and language; `runs/<model>/base.json` has what earlier runs scored."""
    base = model_source(model)
    path, hardware = model_dir(base["model"], runs) / "base.json", provenance()["hardware"]  # which rounds differently
    cache = kept(path, {"model": base}, on_change="remake") or {"model": base, "scores": {}}
    with reading(path, "a file of scores of the base"):
        for score in cache["scores"].values():
            numbers = [score[x] for x in ("perplexity", "bits_per_byte", "tokens")]
            numbers += sum(zip(score["window_losses"], score["window_tokens"], strict=True), ())
            if not all(isinstance(x, int | float) for x in numbers):
                raise InvalidInput("a score is not a number")
    keys = {
        (kind, lang): f"{sources[kind]} {lang} {budgets.get(lang, budgets['*'])} {digest_of(documents)}, {hardware}"
        for kind, by_language in texts.items()
        for lang, documents in by_language.items()
    }
    missing: dict[str, dict] = {kind: {} for kind in texts}
    for (kind, lang), key in keys.items():
        if key not in cache["scores"]:
            missing[kind][lang] = texts[kind][lang]
    for kind, by_language in score_languages(model, tokenizer, missing, budgets).items():
        cache["scores"] |= {keys[kind, lang]: score for lang, score in by_language.items()}
    write_json(path, cache)
    return {kind: {lang: cache["scores"][keys[kind, lang]] for lang in texts[kind]} for kind in texts}


def summarise(before: Mapping, after: Mapping, lang: str) -> dict:
    """Summarises the change of perplexity by genre of text, from scores of `score_languages` on the same text.

    Returns:
        By genre: "target" (`lang`), "english" and "others" (by language), each as from `change`, in percent, and
        "mean_of_others", the mean change of ln perplexity of the other languages, as a percentage.
    """
    summary = {}
    for kind, scores in before.items():
        changes = {code: change(score, after[kind][code]) for code, score in scores.items()}
        others = {code: moved for code, moved in changes.items() if code != lang}
        logs = [math.log1p(moved["percent"] / 100) for moved in others.values()]
        mean = 100 * math.expm1(sum(logs) / len(logs)) if logs else None
        summary[kind] = {
            "target": changes[lang],
            "english": changes.get("en"),
            "others": others,
            "mean_of_others": mean,
        }
    return summary
