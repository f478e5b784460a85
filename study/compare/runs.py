"""Settings of the runs that the comparison consists of: methods, rates, seeds, and what the ablations change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ssetools.files import read_json
from ssetools.languages import get_language
from ssetools.training import methods

COMPARED = ("lape", "random", "random-uniform", "ffn", "full", "lora", "lora-equal", "ia3")
METHODS = {name: methods.METHODS[name] for name in COMPARED}
SEARCH = dict.fromkeys(methods.METHODS, (3.3e-5, 1e-4, 3e-4, 9e-4, 27e-4, 81e-4))
"""Learning rates that are tried, by method."""
SEARCH |= dict.fromkeys(("ffn", "full"), (3.3e-6, 1e-5, 3e-5, 9e-5, 27e-5, 81e-5))
SEARCH["ia3"] = (6.7e-4, 2e-3, 6e-3, 18e-3, 54e-3, 162e-3)
"""The methods that are compared, by name."""

SEEDS = (0, 1, 2)
"""Seeds of a language with a rate search of its own; the first is the seed of the search."""

ABLATIONS = {
    "top_rate": (0.01, 0.02, 0.05, 0.10),
    "max_tokens": (4096, 8192, 16_384, 32_768),
    "budget": (None, 0.01),
}
"""The fields of `RunSettings` that the ablations vary one at a time, and their values, including the default."""


@dataclass(frozen=True)
class RunSettings:
    """Settings of one training run.

    Attributes:
        method: Name of a method in `METHODS`.
        learning_rate: Peak learning rate.
        seed: Seed of the text order, of LoRA's initialisation, and of the random neurons.
        max_tokens: Training tokens.
        top_rate: Share of all neurons selected, over all languages together.
        budget: None for this pooled selection; otherwise the share of all weights to which the language's neurons with
            the lowest entropy are filled up.
    """

    method: str
    learning_rate: float
    seed: int = 0
    max_tokens: int = 16_384
    top_rate: float = 0.05
    budget: float | None = None

    @property
    def name(self) -> str:
        """Name of the result file: method, settings that differ from the defaults, rate and seed."""
        changed = f"-{self.max_tokens}tokens" if self.max_tokens != RunSettings.max_tokens else ""
        changed += f"-top{self.top_rate:g}" if self.top_rate != RunSettings.top_rate else ""
        changed += f"-budget{self.budget:g}" if self.budget else ""
        return f"{self.method}{changed}-lr{self.learning_rate:.1e}-seed{self.seed}"


def read_run(path: str | Path) -> dict:
    """Reads the result of one run; files written before the settings were renamed have them under "arm"."""
    run = read_json(path)
    return {"settings": run.pop("arm"), **run} if "arm" in run else run


def ablation_settings(method: str, learning_rate: float) -> list[RunSettings]:
    """Returns the default settings of a method, and those that differ from them in one field of `ABLATIONS`."""
    default = RunSettings(method, learning_rate)
    return list(dict.fromkeys(replace(default, **{key: x}) for key, values in ABLATIONS.items() for x in values))


def seed_of(lang: str) -> int:
    """Returns the seed of a language that is run once: its code read as a number.

    Random neurons are determined by the seed. With one seed for all, every language would train the same random neurons,
    and a mean over languages would depend on a single draw.
    """
    return int.from_bytes(get_language(lang).code.encode(), "big")
