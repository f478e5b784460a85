"""Adapters that travel: a LoRA checkpoint or a merged model, with a card that says what it is, to a folder or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ssetools.errors import InvalidInput
from ssetools.evaluation.intervals import percent
from ssetools.evaluation.perplexity import perplexity
from ssetools.files import atomic_write, read_json
from ssetools.languages import get_language
from ssetools.models import load_model
from ssetools.report import percent_trained
from ssetools.steps import results_at_scale, scale_of_run
from ssetools.text.embedded import EMBEDDED_MODEL, EMBEDDED_MODELS
from ssetools.text.hub import hub_reachable
from ssetools.text.sources import load_texts
from ssetools.training.adapter import Adapter
from ssetools.training.methods import METHODS, load_adapter

_FORMATS = {"peft": "peft", "gguf-lora": "llama.cpp", "merged": "transformers"}  # and what loads them
_FORMATS_OF = {"IA3": ("peft", "merged"), "ssetools-weights": ("merged",)}
_SCORED_TOKENS = 2048
_NEEDED = ("language", "model_parameters", "tokens", "source", "seed", "settings")
_HUB_IDS = {EMBEDDED_MODEL: "google/gemma-3-270m", "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_WHICH = {"lape": "that fire for", "specific": "most specific to"}


def export_run(
    run: str | Path,
    output: str | Path,
    model: str,
    form: str = "peft",
    uniform_rank: bool = False,
    scale: float | str | None = None,
) -> Path:
    """Writes a trained run in a form that other programs load, with a model card beside it.

    Args:
        run: A run's folder, with adapter.json and, for the numbers of the card, metrics.json.
        output: Folder to write.
        model: The base: embedded name, hub id or local folder. It is loaded in 16 bits.
        form: "peft", a checkpoint for the 8-bit or 16-bit base; "gguf-lora", `adapter.gguf` for llama.cpp; or "merged",
            a bfloat16 model with the trained change added, scored again, since it was trained beside 8-bit weights.
        uniform_rank: For "peft": pad all modules to one rank, as vLLM needs.
        scale: `adapter.scale` of what is written; None: as the run was saved; "auto": the one that was chosen.

    Raises:
        ValueError: For a form that the adapter does not have, or an adapter of another model or without facts for a card.
    """
    if form not in _FORMATS:
        raise InvalidInput(f"Unknown format {form!r}: use one of {', '.join(_FORMATS)}.")
    scale = scale_of_run(run, scale)
    metrics_path, about = results_at_scale(run, "metrics.json", scale)
    forms = _FORMATS_OF.get(about.get("peft_type", about["format"]), _FORMATS)
    if form not in forms:
        raise InvalidInput(f"The adapter in {run} has no {form} form: use {' or '.join(forms)}.")
    if lacking := [name for name in _NEEDED if about.get(name) is None]:
        raise InvalidInput(
            f"{run}/adapter.json lacks {', '.join(lacking)}, which the model card needs: pass them to finetune as facts=."
        )
    metrics = read_json(metrics_path) if metrics_path.exists() else None
    # A CPU without bfloat16 would compute in float32, and write a checkpoint of twice the size.
    base, tokenizer = load_model(model, load_in_8bit=False, dtype="bfloat16" if form == "merged" else None)
    adapter = load_adapter(run, base)
    adapter.scale = scale
    rescored = None
    if form == "peft":
        adapter.to_peft(output, uniform_rank)
    elif form == "gguf-lora":
        adapter.to_gguf_lora(Path(output) / "adapter.gguf")
    else:
        sources = metrics["request"]["kinds"] if metrics else {}
        rescored = _merge(adapter, tokenizer, about["language"], sources, output)
    with atomic_write(Path(output) / "README.md") as scratch:
        scratch.write_text(model_card(about, metrics, form, rescored), encoding="utf-8")
    return Path(output)


def _merge(adapter: Adapter, tokenizer: Any, lang: str, sources: Mapping, output: str | Path) -> dict:
    """Merges, scores the target language before and after on the run's genres, and saves the model."""
    texts = {genre: load_texts(source, lang, "test") for genre, source in sources.items()}
    with adapter.switched_off() as model:
        before = {genre: perplexity(model, tokenizer, text, max_tokens=_SCORED_TOKENS) for genre, text in texts.items()}
    merged: Any = adapter.merge()
    after = {genre: perplexity(merged, tokenizer, text, max_tokens=_SCORED_TOKENS) for genre, text in texts.items()}
    with atomic_write(output) as scratch:
        merged.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    return {genre: (before[genre], after[genre]) for genre in before}


def model_card(about: Mapping, metrics: Mapping | None, form: str, rescored: Mapping | None = None) -> str:
    """Writes the card of a run, of its adapter.json and metrics.json: language, data, numbers, licence.

    `rescored` has, for the `form` "merged", the perplexity of the 16-bit base and of the merged model by genre.
    """
    from huggingface_hub import ModelCardData

    base, lang = about["base"]["model"], about["language"]
    name, licence = get_language(lang).name, licence_of(base)
    hub_id, tags = _HUB_IDS.get(base, base), ["ssetools", "language-neurons"]
    data = ModelCardData(language=lang, base_model=hub_id, library_name=_FORMATS[form], license=licence, tags=tags)
    method, scale = about.get("method", "lape"), about.get("scale", 1.0)
    what = METHODS[method].trains
    if METHODS[method].selection:
        which = _WHICH.get(method, "drawn at random, a control for")
        what = f"the weights of {about['neurons']:,} FFN neurons {which} {name}"
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {base}, better at {name}",
        f"{about['parameters']:,} numbers ({percent_trained(about):.2f}% of the model), {what}, were trained on "
        f"{about['tokens']:,} tokens of {about['source']} with seed {about['seed']} at a peak rate of "
        f"{about['settings']['learning_rate']:g}."
        + ("" if scale == 1 else f" Of the trained change, {scale:g} times as much is used."),
    ]
    if metrics:
        lines += ["## What it gained and what it kept", *_numbers(metrics)]
    if rescored:
        lines += ["## This file", "Merged into the 16-bit base and scored again, perplexity before and after:"]
        lines.append("\n".join(f"- {genre}: {a:.2f} to {b:.2f}" for genre, (a, b) in rescored.items()))
    terms = f"The licence of the base model, {base}{f', {licence}' if licence else ''}, applies to this derivative."
    if licence == "gemma":
        terms = (
            "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms."
        )
    lines += ["## Licence", terms]
    return "\n\n".join(lines) + "\n"


def _numbers(metrics: Mapping) -> list[str]:
    rows = ["| text | target | English | other languages, mean |", "|---|---|---|---|"]
    for genre, summary in metrics["summary"].items():
        seen = "seen genre" if genre in metrics["same_kind"] else "unseen genre"
        moved = [x and x["percent"] for x in (summary["target"], summary["english"])]
        cells = ["" if x is None else percent(x) for x in (*moved, summary["mean_of_others"])]
        rows.append(f"| {genre} ({seen}) | {' | '.join(cells)} |")
    return ["\n".join(rows), "Change of perplexity on held-out text, adapter against base; lower is better."]


def licence_of(base: str) -> str | None:
    """Returns the licence that a model's own card names, from its folder, the hub or the hub's cache; None if none."""
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if base in EMBEDDED_MODELS:
        return "gemma" if base == EMBEDDED_MODEL else "apache-2.0"
    folder = Path(base)
    if folder.is_dir() and not (folder / "README.md").is_file():
        return None
    hub_reachable()  # without a network the libraries ask their caches, and do not retry for half a minute
    try:
        card = ModelCard.load(folder / "README.md" if folder.is_dir() else base, ignore_metadata_errors=True)
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
        print(f"The card of {base} cannot be read ({type(error).__name__}); its licence is not named.", flush=True)
        return None
    return cast(Any, card.data).license


def push_to_hub(folder: str | Path, repo_id: str, private: bool = True) -> str:
    """Uploads what `export_run` wrote to "user/name" on the Hugging Face hub; returns the address of the commit.

    A repository that is new is made, private or not. Needs a token (`hf auth login`), and the hub: a ConnectionError.
    """
    from huggingface_hub import create_repo, upload_folder

    if not hub_reachable():
        raise ConnectionError(f"The hub cannot be reached, to upload {folder} to {repo_id}: push it from where it can.")
    create_repo(repo_id, private=private, exist_ok=True)
    return upload_folder(repo_id=repo_id, folder_path=folder).commit_url
