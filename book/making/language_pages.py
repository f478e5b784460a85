"""A page for each trained language: two sentences about it, its results, and outputs of its executed notebooks."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter

from making.compared import METHOD_TITLES, as_change, summary
from making.results import (
    BOOK,
    join_words,
    language_name,
    metrics_by_language,
    percent,
    percent_trained,
    read,
    table_cell,
    unseen_genre,
    with_interval,
)
from making.tables import format_people
from ssetools.languages import get_language

PAGES = BOOK / "languages"
_REPOSITORY = "https://github.com/ssetools/ssetools/blob/main"
_GAIN = "target, sentences"
_REPEATED, _LONG = 5, 5
"""How often a word must occur in a sample to be reported as repeated, and how many letters it must have."""


def pages() -> dict[str, str]:
    """Returns the page of each language with results, by code."""
    return {code: page(code, metrics) for code, metrics in metrics_by_language().items()}


def pictures() -> dict[str, bytes]:
    """Returns the figures of the executed notebooks that the pages show, by file name."""
    files = {}
    for code in metrics_by_language():
        for name, call in (("gain", "plots.before_after"), ("others", "plots.retention")):
            for output, _ in _outputs(code, call):
                if "image/png" in output.get("data", {}):
                    files[f"{code}-{name}.png"] = base64.b64decode("".join(output["data"]["image/png"]))
    return files


def page(code: str, metrics: dict) -> str:
    """Returns the page of one language."""
    language = get_language(code)
    speakers = read("../speakers.json")["speakers"][code]
    parts = [
        f"# {language.name}",
        f'<span class="own-name" lang="{code}">{language.own_name}</span>',
        f"{language.family}, {format_people(speakers)} speakers, code `{code}`.",
        f"{what_it_gained(code, metrics)} {how_methods_compare(code)}".strip(),
        "## Perplexity",
        perplexities(code, metrics),
        *_figure(code, "gain", "plots.before_after"),
        "## Every other language",
        who_lost(metrics),
        *_figure(code, "others", "plots.retention"),
        "## What the model writes",
        *samples(code),
        "## Tasks",
        *tasks(code),
        "## Do it yourself",
        do_it(code),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def what_it_gained(code: str, metrics: dict) -> str:
    """States what was trained, and the changes in the language and in the others on the unseen genre."""
    adapter, genre = metrics["adapter"], unseen_genre(metrics)
    changes = metrics["summary"][genre] if genre else next(iter(metrics["summary"].values()))
    target = changes["target"]
    inconclusive = target["low"] is not None and target["low"] <= 0 <= target["high"]
    which = "LAPE" if adapter.get("selection", "lape") == "lape" else "specific"
    scale = f", used at scale {adapter['scale']:g}," if adapter.get("scale", 1) != 1 else ""
    return (
        f"Training the {adapter['neurons']:,} {which} neurons of {language_name(code)} ({percent_trained(adapter):.2f}% of the "
        f"weights){scale} on {adapter['tokens']:,} tokens changes its perplexity on the {'unseen' if genre else 'seen'} genre by "
        f"{with_interval(target)}{', which is inconclusive' if inconclusive else ''}, and that of {len(changes['others'])} other "
        f"languages by {percent(changes['mean_of_others'])} on average."
    )


def how_methods_compare(code: str) -> str:
    """States which method of the comparison gained most in this language; empty if none was run."""
    comparison = summary()
    if not comparison or code not in comparison["languages"]:
        return ""
    methods = comparison["languages"][code]["methods"]
    gains = {name: x["changes"][_GAIN] for name, x in methods.items() if _GAIN in x["changes"]}
    best = min(gains, key=lambda name: gains[name]["value"])
    seeds = len(methods[best]["seeds"])
    opening = f"Of {len(gains)} methods in the comparison ({seeds} seed{'s' if seeds > 1 else ''}), "
    if best == "lape":
        return (
            f"{opening}the largest gain is with the language's LAPE neurons: {with_interval(as_change(gains[best]))}."
        )
    own = with_interval(as_change(gains["lape"]))
    return f"{opening}the largest gain is with {METHOD_TITLES[best]}: {with_interval(as_change(gains[best]))}; with its LAPE neurons: {own}."


def perplexities(code: str, metrics: dict) -> str:
    """Tabulates perplexity before and after in the language and in English, the unseen genre first."""
    unseen = unseen_genre(metrics)
    genres = sorted(metrics["summary"], key=lambda genre: genre != unseen)
    lines = ["| text | change | before | after |", "|:--|--:|--:|--:|"]
    for genre in genres:
        label = "unseen genre" if genre == unseen else "seen genre"
        for lang, change in ((code, metrics["summary"][genre]["target"]), ("en", metrics["summary"][genre]["english"])):
            if change is not None:
                scores = [f"{metrics[when][genre][lang]['perplexity']:.1f}" for when in ("before", "after")]
                lines.append(
                    f"| {language_name(lang)}, {genre} ({label}) | {table_cell(change)} | {' | '.join(scores)} |"
                )
    return "\n".join(lines)


def who_lost(metrics: dict) -> str:
    """Names the other languages with the largest changes on the unseen genre."""
    changes = metrics["summary"][unseen_genre(metrics) or next(iter(metrics["summary"]))]["others"]
    order = sorted(changes, key=lambda lang: changes[lang]["percent"])
    named = [
        [f"{language_name(lang)} {percent(changes[lang]['percent'])}" for lang in part]
        for part in (order[:3], order[:-4:-1])
    ]
    return (
        f"On the unseen genre the largest decreases of perplexity are in {join_words(named[0])}; the largest increases, or "
        f"smallest decreases, in {join_words(named[1])}. Each other language is a few sentences, so small changes are within chance."
    )


def samples(code: str) -> list[str]:
    """Returns continuations of a test text by the base and the tuned model, and which words they repeat."""
    greedy = (
        "A test text, continued by always taking the most probable next word. A model of this size does not write well in "
        "this language, before or after training."
    )
    drawn = (
        "The same text, continued by drawing each word from the most probable ones, which have 90% of the probability."
    )
    parts = []
    for call, explanation in (("continue_text(lm, tokenizer, prompt)", greedy), ("**sampling", drawn)):
        for output, _ in _outputs(code, call):
            text = "".join(output.get("text", [])).rstrip()
            parts.append(f"{explanation} {repetitions(text)}".strip())
            parts.append(f"```{{code-block}} text\n:class: sample\n{text}\n```")
    return parts or ["Not executed yet."]


def repetitions(text: str) -> str:
    """States which word each line of a sample ("model: text") repeats; empty if none does."""
    sentences = []
    for line in text.splitlines():
        who, _, words = line.partition(":")
        counts = Counter(word for word in re.findall(r"[^\s.,:;!?]+", words) if len(word) >= _LONG)
        for word, times in counts.most_common(1):
            if times >= _REPEATED:
                sentences.append(f"The output of *{who.strip()}* has the word *{word}* {times} times.")
    return " ".join(sentences)


def tasks(code: str) -> list[str]:
    """Returns the table of task scores of the notebook."""
    for output, _ in _outputs(code, "task_table"):
        if html := "".join(output.get("data", {}).get("text/html", [])):
            words = "Base and tuned model on a few questions and translations. Compare with *chance* before reading the change."
            translated = [repetitions("".join(x.get("text", []))) for x, _ in _outputs(code, 'f"{lang}-en"')]
            return [
                " ".join([words, *translated]).strip(),
                f'<div class="cell_output" tabindex="0" role="region" aria-label="Scores">\n{html.strip()}\n</div>',
            ]
    return ["Not executed yet."]


def do_it(code: str) -> str:
    """Returns the command, and links to the executed notebooks."""
    links = [
        f"[{title}]({_REPOSITORY}/book/languages/{code}/{name}.ipynb)"
        for name, title in (("03_finetune", "fine-tuning"), ("04_evaluate", "evaluation"))
        if (PAGES / code / f"{name}.ipynb").is_file()
    ]
    executed = f"The executed notebooks of this language: {join_words(links)}. " if links else ""
    return (
        f"```bash\nmake finetune lang={code}\n```\n\n{executed}[Fine-tune](yo/03_finetune.ipynb) and "
        "[Evaluate](yo/04_evaluate.ipynb) explain every step. [Which method should I use?](../which_method.md) has the "
        "other methods. [All languages of the gallery](../gallery.md)."
    )


def _figure(code: str, name: str, call: str) -> list[str]:
    for output, alt in _outputs(code, call):
        if "image/png" in output.get("data", {}):
            return [f"```{{image}} ../_generated/{code}-{name}.png\n:class: from-notebook\n:alt: {alt}\n```"]
    return []


def _outputs(code: str, call: str) -> list[tuple[dict, str]]:
    """Returns the outputs of the cell of the executed evaluation that makes a call, with the figure's description."""
    path = PAGES / code / "04_evaluate.ipynb"
    if not path.is_file():
        return []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code" and call in "".join(cell["source"]):
            alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
            return [(output, alt) for output in cell["outputs"]]
    return []
