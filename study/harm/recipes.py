"""What is run: each recipe is a method, the neurons it trains, and its settings; the lists of the study's tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

SEARCHED = ("is", "yo", "lt", "sl")
"""Languages in which recipes are compared, and in which methods have three seeds."""
UNTUNED = "mt"
"""A language that no recipe was chosen on."""
TOKENS = 49_152


@dataclass(frozen=True)
class Recipe:
    """One way of training.

    Attributes:
        method: "subnetwork", "lora", "ia3", "ffn" or "full".
        selection: Which neurons a subnetwork trains: "lape", "lape filled" (lowest entropy up to the share), "specific
            mean", "specific top 3", "specific moved" (specific, ranked by how far a short FFN run moved them) or "random".
        share: Weights of the selected neurons over the model's weights; None takes LAPE's own number.
        learning_rate: Peak rate of AdamW.
        batch_size: Windows of 256 tokens for each step.
        projections: Slices that train.
        decorrelated: Whether gate and up see their inputs through the inverse covariance of other languages' inputs.
        rank: Rank of LoRA.
        text: "own", or "placebo": as much text of the other under-served languages.
        tokens: Training tokens.
        seed: Order of the text, initial numbers and random neurons.
    """

    method: str = "subnetwork"
    selection: str = ""
    share: float | None = 0.01
    learning_rate: float = 4e-4
    batch_size: int = 2
    projections: tuple[str, ...] = ("gate", "up", "down")
    decorrelated: bool = False
    rank: int = 0
    text: str = "own"
    tokens: int = TOKENS
    seed: int = 0

    @property
    def on_8bit(self) -> bool:
        """Whether the base is loaded in 8 bits."""
        return self.method not in ("ffn", "full")

    @property
    def label(self) -> str:
        """Tells every setting but text and seed, which runs of one recipe differ in."""
        parts = [self.method, self.selection.replace(" ", "-")]
        parts += [f"r{self.rank}"] if self.rank else []
        parts += [f"{100 * self.share:g}pc"] if self.selection and self.share else []
        parts += ["-".join(self.projections)] if len(self.projections) < 3 else []
        parts += ["decorrelated"] if self.decorrelated else []
        parts += [f"lr{self.learning_rate:.1e}", f"b{self.batch_size}", f"{self.tokens}"]
        return "_".join(filter(None, parts))

    @property
    def name(self) -> str:
        """A file name that tells every setting."""
        parts = [self.label, *([self.text] if self.text != "own" else [])]
        return "_".join([*parts, f"seed{self.seed}"])


LAPE = Recipe(selection="lape", share=None, learning_rate=8e-4)
TOP_3 = Recipe(selection="specific top 3")
MEAN = Recipe(selection="specific mean")
RANDOM = Recipe(selection="random")
LORA_16 = Recipe("lora", share=None, learning_rate=3e-4, rank=18)
LORA_32 = Recipe("lora", share=None, learning_rate=3e-4, rank=32)
IA3 = Recipe("ia3", share=None, learning_rate=1.2e-2)
FFN = Recipe("ffn", share=None, learning_rate=2e-5)
FULL = Recipe("full", share=None, learning_rate=1.5e-5)

CANDIDATES = (
    TOP_3,
    MEAN,
    LAPE,
    Recipe(selection="lape filled"),
    Recipe(selection="specific moved"),
    replace(TOP_3, share=0.003, learning_rate=8e-4),
    replace(TOP_3, share=0.03, learning_rate=3e-4),
    replace(TOP_3, batch_size=1),
    replace(TOP_3, batch_size=4, learning_rate=6e-4),
    replace(TOP_3, decorrelated=True),
    replace(TOP_3, share=0.03, projections=("down",)),
)
"""Recipes from which the default is chosen, on validation text."""

COMPARED = (TOP_3, MEAN, LAPE, LORA_16, FULL, RANDOM, LORA_32, IA3, FFN)
"""Methods of the comparison."""

NAMES = {
    TOP_3.label: "specific",
    MEAN.label: "specific-mean",
    LAPE.label: "lape",
    RANDOM.label: "random",
    LORA_16.label: "lora",
    LORA_32.label: "lora-32",
    IA3.label: "ia3",
    FFN.label: "ffn",
    FULL.label: "full",
}
"""Short names of the methods by `Recipe.label`, in the order of tables."""

PLACEBO = (TOP_3, LAPE, LORA_16, FULL)
AMOUNTS = (8_192, 16_384, 49_152, 98_304, 196_608)


def runs_of(table: str) -> Iterator[tuple[str, Recipe]]:
    """Yields (language, recipe) of a table of the study, most informative first.

    Args:
        table: "candidates", "comparison", "placebo", "rates", "seeds", "amounts", or "grid" (rates and seeds in every
            language).
    """
    from ssetools.languages import TARGET_LANGUAGES

    ordered = (*SEARCHED, UNTUNED, *(x for x in TARGET_LANGUAGES if x not in (*SEARCHED, UNTUNED)))
    if table == "candidates":
        yield from ((lang, recipe) for recipe in CANDIDATES for lang in (*SEARCHED, UNTUNED))
    elif table == "comparison":
        yield from ((lang, recipe) for recipe in COMPARED for lang in ordered)
    elif table == "placebo":
        yield from ((lang, replace(recipe, text="placebo")) for recipe in PLACEBO for lang in ordered)
        others = (recipe for recipe in COMPARED if recipe not in PLACEBO)
        yield from ((lang, replace(recipe, text="placebo")) for recipe in others for lang in ("is", "yo"))
    elif table == "rates":
        halved = ((recipe, factor) for recipe in COMPARED for factor in (0.5, 2))
        yield from (
            (lang, replace(recipe, learning_rate=recipe.learning_rate * factor))
            for recipe, factor in halved
            for lang in ("is", "lt")
        )
    elif table == "seeds":
        yield from ((lang, replace(r, seed=seed)) for r in COMPARED for seed in (1, 2) for lang in SEARCHED)
    elif table == "amounts":
        yield from ((lang, replace(r, tokens=n)) for n in AMOUNTS for r in PLACEBO for lang in ("is", "lt"))
    elif table == "grid":
        varied = [replace(r, learning_rate=r.learning_rate * factor) for factor in (0.5, 2) for r in COMPARED]
        varied += [replace(r, seed=seed) for seed in (1, 2) for r in COMPARED]
        yield from ((lang, recipe) for recipe in varied for lang in ordered)
    else:
        raise ValueError(
            f"Unknown table {table!r}: use candidates, comparison, placebo, rates, seeds, amounts or grid."
        )
