"""Which text trains and which measures, so that some of what is measured on was never trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssetools import embedded
from ssetools.corpora import load_texts
from ssetools.hub_corpora import HUB_CORPORA, TextUnavailable

_KINDS = {"udhr": "articles", "mediawiki": "messages", "sib200": "sentences", "flores": "sentences"}
_KINDS |= {"flores_plus": "sentences", "glotcc": "web pages", "fineweb2": "web pages", "wikipedia": "encyclopedia"}


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
        other_text: Where text of another kind comes from: "sib200", "flores" or "flores_plus" (the hub), or one of them
            with a local copy: "sib200:FOLDER".
        lang: Language to try it with.

    Returns:
        The plan. With "auto" and text of another kind at hand, both embedded sources train; without it, one of them is
        left out of training, to be the text of another kind.
    """
    try:
        load_texts(other_text, lang, "test")
        other, missing = {"sentences": other_text}, ""
    except TextUnavailable as error:
        other, missing = {}, str(error)
    if source == "auto":
        source = default_source()
        if not other and source == "udhr+mediawiki":
            kinds = {"messages": "mediawiki", "articles": "udhr"}
            title = HUB_CORPORA[other_text.split(":")[0]].title
            reason = f"{title} cannot be reached, so the declaration is left out of training, to measure on."
            return TextPlan("mediawiki", kinds, ("messages",), reason)
    source = "+".join(part.strip() for part in source.split("+"))
    if other_text.split(":")[0] in {part.split(":")[0] for part in source.split("+")}:
        other, missing = {}, f"{other_text} is what trains."
    kinds: dict[str, str] = {}
    for part in source.split("+"):
        name = part.split(":")[0]
        kind = _KINDS.get(name, Path(part).name)
        kinds[_apart(kind, part, kinds)] = part
    same = tuple(kinds)
    other = {_apart(kind, part, kinds): part for kind, part in other.items()}
    if not other:
        spare = [x for x in default_source().split("+") if x not in source.split("+")]
        other = {_KINDS[spare[0]]: spare[0]} if spare else {}
    if other:
        reason = f"Text of another kind: {next(iter(other.values()))}, never trained on."
    else:
        reason = f"There is no text of another kind to measure on. {missing}"
    return TextPlan(source, {**kinds, **other}, same, reason)


def _apart(kind: str, part: str, kinds: dict[str, str]) -> str:
    """The kind's name, with the source's where two sources are of one kind: they are measured apart."""
    name = part.split(":")[0]
    return f"{kind} ({HUB_CORPORA[name].title if name in HUB_CORPORA else part})" if kind in kinds else kind
