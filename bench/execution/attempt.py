"""One attempt at a cell on this machine: its process, what else the machine did meanwhile, and what it wrote."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Protocol

from bench.execution.base import Executor, Limits, Outcome
from bench.execution.log import log_size, shorten
from bench.execution.monitor import Watch
from bench.store.environment import Environment, MachineState, environment
from bench.store.records import Cell
from tl.datasets import Splits
from tl.machine import usable_cores
from tl.results import EpochResult
from tl.weights import Weights

RUN_CELL = "bench.execution.worker:run_cell"


@dataclass(frozen=True, kw_only=True)
class Work:
    """A cell and all that it needs; images and weights are here by their places, which a cell doesn't know."""

    cell: Cell
    splits: Splits
    weights: Weights
    log: Path
    timeout_seconds: float | None = None
    memory_bytes: int | None = None
    threads: int | None = None
    """That torch uses at most; None for as many as this machine has cores."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a cell ended, and on which machine."""

    outcome: Outcome
    started: datetime
    environment: Environment
    machine: MachineState | None
    """None where the cell was not begun."""
    attempts: int = 1


class Events(Protocol):
    """What is told while cells run; calls come one at a time."""

    def declined(self, cell: Cell) -> bool:
        """Whether a cell is not to be begun after all; then it needs no more. Asked as late as can be."""

    def started(self, cell: Cell) -> None:
        """A cell begins."""

    def told(self, cell: Cell, event: EpochResult | str) -> None:
        """One of its epochs is over, or a few words on what it does now."""

    def warned(self, text: str) -> None:
        """Something disturbs a cell."""

    def ended(self, cell: Cell, end: Ended) -> None:
        """The cell is over, with or without a result."""


def one_by_one(executor: Executor, work: Iterable[Work], events: Events, stop: Callable[[], bool]) -> None:
    """`Executor.run_cells` on this machine."""
    here = cache(environment)  # git and the versions of packages take a moment
    for one in work:
        if stop():
            return
        events.started(one.cell)
        end = attempt(executor, one, partial(events.told, one.cell), events.warned, here)
        events.ended(one.cell, end)


def attempt(
    executor: Executor,
    work: Work,
    told: Callable[[EpochResult | str], None],
    warned: Callable[[str], None],
    here: Callable[[], Environment] = environment,
) -> Ended:
    """Run a cell here and now."""
    where, started, watch = here(), datetime.now(UTC), Watch(warned)

    def on_event(event: EpochResult | MachineState | str) -> None:
        if isinstance(event, MachineState):
            watch.hear(event)
        else:
            told(event)

    threads = min(work.threads or usable_cores(), usable_cores())
    arguments = (work.cell, work.splits, work.weights, threads)
    limits = Limits(seconds=work.timeout_seconds, memory_bytes=work.memory_bytes, log=work.log)
    before = log_size(work.log)
    outcome = executor.call(RUN_CELL, *arguments, limits=limits, on_event=on_event)
    machine = watch.end()
    with contextlib.suppress(OSError):  # on a disk that fails, the result is worth more than its log
        shorten(work.log, before)
    return Ended(outcome=outcome, started=started, environment=where, machine=machine)
