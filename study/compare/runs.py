"""The runs that a comparison is made of: which method, at which rate, with which seed, and what ablations change."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ssetools.languages import get_language
from ssetools.training import methods

COMPARED = ("lape", "random", "random-uniform", "ffn", "full", "lora", "lora-equal", "ia3")
METHODS = {name: methods.METHODS[name] for name in COMPARED}
"""The methods that are compared, by name."""

SEEDS = (0, 1, 2)
"""Seeds of a language that searches for its own rates; the first is that of the search."""

ABLATIONS = {
    "top_rate": (0.01, 0.02, 0.05, 0.10),
    "max_tokens": (4096, 8192, 16_384, 32_768),
    "budget": (None, 0.01),
}
"""What the ablations change, one at a time: fields of `Arm`, and their values, the comparison's own among them."""


@dataclass(frozen=True)
class Arm:
    """One training run of the comparison.

    Attributes:
        method: A name of `METHODS`.
        learning_rate: Peak rate.
        seed: Of the order of the text, of LoRA's start, and of the random neurons.
        max_tokens: Training tokens.
        top_rate: Share of all neurons selected, over all languages.
        budget: None, or the share of all weights that the language's own lowest-entropy neurons make up, in place of
            the pooled selection.
    """

    method: str
    learning_rate: float
    seed: int = 0
    max_tokens: int = 16_384
    top_rate: float = 0.05
    budget: float | None = None

    @property
    def name(self) -> str:
        """File name: method, what differs from the defaults, rate and seed."""
        special = f"-{self.max_tokens}tokens" if self.max_tokens != Arm.max_tokens else ""
        special += f"-top{self.top_rate:g}" if self.top_rate != Arm.top_rate else ""
        special += f"-budget{self.budget:g}" if self.budget else ""
        return f"{self.method}{special}-lr{self.learning_rate:.1e}-seed{self.seed}"


def ablations_of(method: str, learning_rate: float) -> list[Arm]:
    """Returns the runs that differ from the comparison's own in one of `ABLATIONS`, and that one, each once."""
    base = Arm(method, learning_rate)
    return list(dict.fromkeys(replace(base, **{key: x}) for key, values in ABLATIONS.items() for x in values))


def own_seed(lang: str) -> int:
    """Returns the seed of a language that is run once: its code read as a number.

    Random neurons are drawn by seed alone. With one seed for all, every language would meet the same random neurons, and
    a mean over languages would take one draw for many.
    """
    return int.from_bytes(get_language(lang).code.encode(), "big")
