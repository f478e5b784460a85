"""Helpers for dot plots with a row for each item: row labels, dots with intervals, a line at no change, a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssetools.plots import RULE


def set_rows(axes: Axes, names: Sequence[str], label: str, reference: float = 0.0) -> None:
    """Labels the rows from the top, and draws a vertical line at the reference value.

    Args:
        axes: Axes of the plot.
        names: Name of each row.
        label: Label of the horizontal axis.
        reference: Position of the line.
    """
    axes.axvline(reference, color=RULE, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(label)


def dot(axes: Axes, row: float, change: Mapping, colour: str, marker: str = "o", size: float = 8, **options) -> None:
    """Draws a change (`percent` or `value`) in its row, with its interval if it has one."""
    if change.get("low") is not None:
        axes.plot([change["low"], change["high"]], [row, row], color=colour, linewidth=2)
    axes.plot(change.get("percent", change.get("value")), row, marker, color=colour, ms=size, **options)


def legend_above(figure: Figure) -> None:
    """Adds one legend for all axes above them."""
    handles: dict = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=2, frameon=False, fontsize=10)
