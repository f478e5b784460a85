"""Tables and cards of the languages: the gallery, and the results of the walk-through."""

from __future__ import annotations

from making.results import (
    join_words,
    language_name,
    languages_without_results,
    metrics_by_language,
    percent,
    percent_trained,
    read,
    table_cell,
    trained_how,
    unseen_genre,
    with_interval,
)
from ssetools.languages import TARGET_LANGUAGES, get_language


def fragments() -> dict[str, str]:
    """Returns MyST text by the name of the file that pages include."""
    return {
        "gallery": gallery(),
        "languages": languages_table(),
        "not-yet": without_results(),
        "trained-how": trained_how(),
        "worst": worst_languages(),
    }


def without_results() -> str:
    """Lists the languages that have no results yet; empty if all have."""
    names = join_words([language_name(code) for code in languages_without_results()])
    if not names:
        return ""
    return f"```{{note}}\nNo results yet: {names}. `make notebooks` runs what is missing and adds it here.\n```\n"


def languages_table() -> str:
    """Returns a table with the neurons and the changes of perplexity by genre, a row for each language."""
    metrics = metrics_by_language()
    genres = list(dict.fromkeys(genre for x in metrics.values() for genre in x["summary"]))
    unseen = {unseen_genre(x) for x in metrics.values()}
    genres.sort(key=lambda genre: genre not in unseen)  # the unseen genre first, where it is visible on a phone
    titles = [f"{genre},<br>unseen genre" if genre in unseen else genre for genre in genres]
    lines = ["| language | " + " | ".join(titles) + " | English | others |"]
    lines.append("|:--|" + "--:|" * (len(genres) + 2))
    for code, x in metrics.items():
        summary = x["summary"]
        retention = summary[unseen_genre(x) or next(iter(summary))]
        cells = [f"{language_name(code)}<br><small>{x['adapter']['neurons']:,} neurons</small>"]
        cells += [table_cell(summary[genre]["target"]) if genre in summary else "" for genre in genres]
        cells += [table_cell(retention["english"]), percent(retention["mean_of_others"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def worst_languages() -> str:
    """Lists, for each trained language, the other language whose perplexity rose most on the unseen genre."""
    lines = []
    for code, metrics in metrics_by_language().items():
        others = metrics["summary"][unseen_genre(metrics) or next(iter(metrics["summary"]))]["others"]
        worst = max(others, key=lambda x: others[x]["percent"])
        if others[worst]["percent"] > 0:
            change = percent(others[worst]["percent"])
            lines.append(f"- {language_name(code)} trained: {language_name(worst)} {change}")
    return "\n".join(lines) + "\n"


def gallery() -> str:
    """Returns a card for each language."""
    metrics = metrics_by_language()
    speakers = read("../speakers.json")["speakers"]
    cards = [_card(code, metrics.get(code), speakers[code]) for code in TARGET_LANGUAGES]
    return ":::::{grid} 1 2 2 2\n:gutter: 3\n\n" + "\n".join(cards) + ":::::\n"


def _card(code: str, metrics: dict | None, speakers: int) -> str:
    language = get_language(code)
    own_name = f'<span class="own-name" lang="{code}">{language.own_name}</span>'
    lines = [f"::::{{grid-item-card}} {language.name}", ":class-card: language"]
    lines += [f":link: languages/{code}", ":link-type: doc"] if metrics else []
    lines += ["", own_name, "", f"{language.family}, {format_people(speakers)} speakers", ""]
    lines += [*(_card_facts(metrics) if metrics else ["*No results yet.*"]), ""]
    return "\n".join([*lines, "::::", ""])


def _card_facts(metrics: dict) -> list[str]:
    adapter, summary = metrics["adapter"], metrics["summary"]
    lines = [f"- {adapter['neurons']:,} neurons, {percent_trained(adapter):.2f}% of the weights"]
    seen = [f"{x} {percent(summary[x]['target']['percent'])}" for x in metrics["same_kind"] if x in summary]
    lines.append(f"- seen genres: {', '.join(seen)}")
    if genre := unseen_genre(metrics):
        changes = summary[genre]
        lines.append(f"- **unseen genre: {with_interval(changes['target'])}**")
        if changes["mean_of_others"] is not None:
            lines.append(f"- {len(changes['others'])} other languages: {percent(changes['mean_of_others'])}")
    return lines


def format_people(number: int) -> str:
    """Formats a number of people with two significant digits: 24,000,000 as "24 million"."""
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if number >= unit:
            return f"{number / unit:.1f} {name}" if number < 10 * unit else f"{round(number / unit)} {name}"
    return f"{round(number, -3):,}"
