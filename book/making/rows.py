"""What the dot plots share: a row a thing, dots with intervals, a line at no change, a legend above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssetools.plots import RULE


def set_rows(axes: Axes, names: Sequence[str], label: str, mark: float = 0.0) -> None:
    """Names the rows from the top, and draws the line that values are read against.

    Args:
        axes: Where the dots are.
        names: Name of each row.
        label: What the horizontal axis says.
        mark: Where the line stands.
    """
    axes.axvline(mark, color=RULE, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(label)


def dot(axes: Axes, row: float, moved: Mapping, colour: str, marker: str = "o", size: float = 8, **look) -> None:
    """Draws a change (`percent` or `value`) in its row, with its interval where there is one."""
    if moved.get("low") is not None:
        axes.plot([moved["low"], moved["high"]], [row, row], color=colour, linewidth=2)
    axes.plot(moved.get("percent", moved.get("value")), row, marker, color=colour, ms=size, **look)


def legend_above(figure: Figure) -> None:
    """Puts one legend of all that is named above the axes."""
    named: dict = {}
    for axes in figure.axes:
        named |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(named.values(), named, loc="outside upper left", ncols=2, frameon=False, fontsize=10)
