"""The steps of a study up to a trained adapter, each finding its file or making it.

`runs/<model>/profile.safetensors -> neurons.safetensors -> <lang>/<method>-seed<k>/adapter.*`; `measuring` adds
`metrics.json`. The notebooks, the command line and `make finetune` all call these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ssetools import processes
from ssetools.errors import InvalidInput
from ssetools.files import model_dir, provenance, run_dir
from ssetools.languages import PROFILED_LANGUAGES, get_language, num_words
from ssetools.models import model_precision, model_source, num_parameters, other_model
from ssetools.neurons.counts import ActivationProfile, profile_languages
from ssetools.neurons.selection import select_neurons
from ssetools.neurons.sets import LayerNeurons, NeuronSets
from ssetools.text.sources import STREAMED, TextPlan, default_source, describe_source, digest_of, load_texts
from ssetools.text.streams import TextStream, stream_texts
from ssetools.training.adapter import adapter_facts
from ssetools.training.finetune import finetune
from ssetools.training.loop import TrainingSettings
from ssetools.training.methods import METHODS, check_method, load_adapter
from ssetools.training.subnetwork import Subnetwork

TOKENS_PER_LANGUAGE = 2048
_VALIDATION_WORDS = 600


def get_profile(
    model,
    tokenizer,
    runs="runs",
    source: str | None = None,
    languages: Sequence[str] | None = None,
    tokens_per_language: int = TOKENS_PER_LANGUAGE,
) -> ActivationProfile:
    """Loads `runs/<model>/profile.safetensors`, or makes it.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        runs: Folder of runs.
        source: Text to count on; None takes the default.
        languages: Codes; None takes those of the file, and `PROFILED_LANGUAGES` when there is none. The file's
            order stands.
        tokens_per_language: Tokens to count in each.

    Raises:
        ValueError: If the file is for another model, revision, text, budget or list of languages.
    """
    source = source or default_source()
    about = model_source(model)
    path = model_dir(about["model"], runs) / "profile.safetensors"
    if path.exists():
        profile = ActivationProfile.load(path)
        wanted = model_precision(model) | {"source": source, "tokens_per_language": tokens_per_language}
        found = profile.metadata
        differ = [f"{k}: {found.get(k)!r}, wanted {v!r}" for k, v in wanted.items() if found.get(k) != v]
        if languages and set(languages) != set(profile.languages):
            odd = sorted(set(languages) ^ set(profile.languages))
            listed = ", ".join(odd[:5]) + (" ..." if len(odd) > 5 else "")
            differ.append(f"languages: {len(profile.languages)}, wanted {len(languages)}; only in one: {listed}")
        if differs := other_model(profile.metadata, model):
            differ.insert(0, differs)
        if differ:
            raise InvalidInput(
                f"{path} was made for something else ({'; '.join(differ)}). Ask for the same, name another folder of runs, "
                "or delete the file to profile again."
            )
        return profile
    languages = languages or PROFILED_LANGUAGES
    print(f"Profiling {len(languages)} languages on {source}, {tokens_per_language} tokens each ...", flush=True)
    # Sixteen bytes a token are plenty, and streamed text has no end.
    limit = 16 * tokens_per_language if _is_streamed(source) else None
    texts = {lang: load_texts(source, lang, "train", limit) for lang in languages}
    facts = {"source": source, "tokens_per_language": tokens_per_language, **provenance()}
    return profile_languages(model, tokenizer, texts, tokens_per_language, path=path, metadata=facts)


def get_neurons(model, tokenizer, runs="runs", top_rate: float = 0.05, **profile_options) -> NeuronSets:
    """Loads `runs/<model>/neurons.safetensors` for this rate, or selects from the (found or made) profile."""
    path = model_dir(model_source(model)["model"], runs) / "neurons.safetensors"
    profile = get_profile(model, tokenizer, runs, **profile_options)
    if path.exists():
        neurons = NeuronSets.load(path)
        neurons.check_model(model)
        fresh = {**profile.metadata, "top_rate": top_rate, "profiled_languages": profile.languages}
        if {key: neurons.metadata.get(key) for key in fresh} == json.loads(json.dumps(fresh)):
            return neurons
    neurons = select_neurons(profile, top_rate)
    if processes.is_main():
        neurons.save(path)
    return neurons


def neurons_for(neurons: NeuronSets | None, lang: str, method: str, seed: int) -> LayerNeurons | None:
    """Returns the neurons that a method is given: the language's own, or a random control of the same size, or none.

    Raises:
        ValueError: If the language has no selected neurons, or the method is unknown.
    """
    check_method(method)
    if not METHODS[method].needs_neurons:
        return None
    if lang in neurons and neurons.count(lang) == 0:
        raise InvalidInput(
            f"No neuron is selected for {lang!r} at top_rate {neurons.metadata.get('top_rate')}: raise it."
        )
    if method.startswith("random"):
        return neurons.random_like(lang, seed, depth_matched=method == "random")
    return neurons[lang]


def get_run(
    model,
    tokenizer,
    lang: str,
    neurons: NeuronSets | None,
    plan: TextPlan,
    method="lape",
    seed=0,
    runs="runs",
    **settings,
) -> Path:
    """Attaches the adapter of `runs/<model>/<lang>/<method>-seed<k>`, training it first when it is not there.

    `neurons` may be None for the methods that need none.

    Returns:
        The run's folder.

    Raises:
        ValueError: If a finished run there has other settings, or trained other neurons or on other text.
    """
    settings = TrainingSettings(seed=seed, **settings).for_method(method)
    folder = run_dir(model_source(model)["model"], lang, method, seed, runs)
    chosen = neurons_for(neurons, lang, method, seed)
    top_rate = neurons.metadata.get("top_rate") if chosen is not None else None
    texts = None if _is_streamed(plan.train) else load_texts(plan.train, lang, "train")
    digest = None if texts is None else digest_of(texts)
    if (folder / "adapter.json").exists():
        about = adapter_facts(folder)
        wanted = {**asdict(settings), "source": plan.train, "top_rate": top_rate}
        found = {**about["settings"], "source": about.get("source"), "top_rate": about.get("top_rate")}
        differ = [f"{k}: {found.get(k)!r}, wanted {v!r}" for k, v in wanted.items() if found.get(k) != v]
        if differ:
            raise InvalidInput(
                f"{folder} holds a run with other settings ({'; '.join(differ)}). Ask for the settings it was trained with "
                "(`--source`, `--max-tokens` and so on), name another seed or folder of runs, or delete it to train again."
            )
        if None not in (digest, about.get("text")) and about["text"] != digest:
            raise InvalidInput(
                f"{folder} holds a run that was trained before the text of {plan.train!r} changed. Name another seed or "
                "folder of runs, or delete it to train again."
            )
        adapter = load_adapter(folder, model)
        if isinstance(adapter, Subnetwork) and not all(map(torch.equal, adapter.neurons, chosen)):
            adapter.detach()
            raise InvalidInput(
                f"{folder} holds a run of other neurons of {lang!r}: the profile or the selection was made anew since. Name "
                "another seed or folder of runs, or delete it to train again."
            )
        print(f"Found the adapter in {folder}.", flush=True)
        return folder
    facts = {"language": lang, "seed": seed, "source": plan.train, "top_rate": top_rate, "text": digest}
    facts |= {"corpus": describe_source(plan.train, lang), "model_parameters": num_parameters(model), **provenance()}
    if chosen is not None:
        facts["neurons"] = sum(len(ids) for ids in chosen)
    finetune(
        model,
        tokenizer,
        _stream_of(plan, lang) if texts is None else texts,
        method,
        chosen,
        validation_texts=_about(load_texts(plan.train, lang, "validation"), lang, _VALIDATION_WORDS),
        run_dir=folder,
        facts=facts,
        **asdict(settings),
    )
    return folder


def _is_streamed(source: str) -> bool:
    return any(part.strip().split(":")[0] in STREAMED for part in source.split("+"))


def _stream_of(plan: TextPlan, lang: str) -> TextStream:
    """The training text where it may be larger than memory, kept apart from all that is measured on."""
    avoid = [text for source in plan.kinds.values() for text in load_texts(source, lang, "test")]
    return stream_texts(plan.train, lang, avoid + load_texts(plan.train, lang, "validation"))


def _about(texts: Sequence[str], lang: str, words: int) -> list[str]:
    """Takes documents at even distances, as many as hold about `words` words."""
    total = sum(num_words(text, get_language(lang).script) for text in texts)
    stride = max(1, total // words)
    return list(texts[::stride])
