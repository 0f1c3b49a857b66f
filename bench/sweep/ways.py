"""Measures precisions before the cells that leave them open (`precision = "auto"`), in processes of their own.

A cell makes such a choice itself where there is none in the cache. But then its process has had two networks in memory
before its own figures begin, and processes of a pair would measure at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from bench.console import say
from bench.execution.base import NO_LIMITS, Executor, Limits
from bench.store.records import Cell
from tl.choice import Choice
from tl.config import AUTO
from tl.datasets import Splits
from tl.images import checked_files
from tl.machine import usable_cores
from tl.weights import Weights


def choose_ways(
    cells: Iterable[tuple[Cell, Weights]],
    splits: Splits,
    executor: Executor,
    console: Console,
    limits: Limits = NO_LIMITS,
) -> None:
    """Choose for each kind of cell, and say what is chosen and why. Choices of earlier commands are only read.

    A cell that can't be measured is left to its own process, which reports the reason. Elsewhere than on this machine,
    each cell chooses where it runs.
    """
    if not executor.runs_here:
        return
    left = {cell.repeats: (cell, weights) for cell, weights in cells if cell.config.precision == AUTO}
    for cell, weights in left.values():
        say(console, f"measuring precisions of {cell.name} …", style="dim")
        arguments = (cell, splits, weights, usable_cores(), checked_files())
        outcome = executor.call("bench.execution.worker:choose_way", *arguments, limits=limits)
        if isinstance(outcome.value, Choice):
            say(console, f"{cell.config.backbone} {cell.config.regime}: {outcome.value.reason}", style="dim")
