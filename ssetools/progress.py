"""Progress of what takes longer than a few seconds: a bar in a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

_DELAY = 5  # seconds: what is finished before shows nothing
_EVERY = 10  # seconds between lines


class _Lines:
    """Turns tqdm's redrawn bar into lines, and leaves out what it writes to clear the bar and to leave an inner one."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if text := text.replace("\x1b[A", "").strip("\r\n "):
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress(total: int, doing: str, unit: str, done: int = 0, show: bool = True) -> tqdm:
    """Returns a tqdm bar on stderr that says what is being done, how far, and how long it will still take.

    Nothing appears in the first five seconds. Where stderr is no terminal (a log, `make`, a notebook) a line is written
    every ten seconds.

    Args:
        total: Number of units.
        doing: What is being done, such as "Profiling".
        unit: Plural of what is counted, such as "windows".
        done: Units that an earlier call finished.
        show: False writes nothing, for processes beside the main one.
    """
    options: dict[str, Any] = {"mininterval": 0.2, "smoothing": 0}  # on average: steps that validate take longer
    if not sys.stderr.isatty():
        form = "{desc}: {n_fmt} of {total_fmt} {unit}, {remaining} left{postfix}"
        options |= {"file": _Lines(sys.stderr), "mininterval": _EVERY, "miniters": 1, "bar_format": form}
    return tqdm(
        total=total, initial=done, desc=doing, unit=unit, delay=_DELAY, leave=False, disable=not show, **options
    )
