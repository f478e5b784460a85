"""Work shared by several processes, started by `accelerate launch` (GPUs) or `torchrun` (CPUs).

Each process holds the whole model and takes a share of the text. Counts are summed and gradients of the trained
parameters are averaged; nothing else is sent. In a single process these functions cost nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from accelerate import PartialState


@functools.cache
def state() -> PartialState:
    """Returns accelerate's state: the number of processes, this one's place, and how to wait for the others."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())  # several CPU processes need cpu=True to find each other


def count() -> int:
    """Returns how many processes share the work."""
    return state().num_processes


def is_main() -> bool:
    """Says whether this is the process that prints and writes files."""
    return state().is_main_process


def total(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the sum over all processes, the same in each."""
    if count() == 1:
        return tensor
    from accelerate.utils import reduce

    return cast(torch.Tensor, reduce(tensor.clone(), "sum"))


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces each gradient by its mean over all processes; one that is missing counts as zero."""
    if count() > 1:
        for parameter in parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = total(gradient) / count()


def in_step(items: Iterable, together: bool) -> Iterator:
    """Yields this process's items; with `together`, then None for as long as another process still has some.

    All processes gather the layers of a sharded model in each forward pass, so none may make fewer passes than another.
    """
    items = iter(items)
    while True:
        item = next(items, None)
        remaining = item is not None
        if together:
            remaining = bool(total(torch.tensor(float(remaining), device=state().device)) > 0)
        if not remaining:
            return
        yield item
