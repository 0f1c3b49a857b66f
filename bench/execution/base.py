"""What an executor is, and what goes in and out of it. `bench.execution.executors` lists them.

An executor runs functions by their names, so that the process that plans and reports never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from bench.store.environment import Environment, MachineState
from bench.store.records import Cell
from tl.datasets import Splits
from tl.results import EpochResult
from tl.weights import Weights

Emit = Callable[[Any], None]
"""What a function calls to report progress; the value must pickle."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call ended."""

    status: Literal["done", "failed", "oom", "timeout", "skipped"]
    value: Any = None
    """What the function returned; None unless it is done."""
    reason: str = ""
    """One line; empty when done."""
    traceback: str = ""
    wall_seconds: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a call may use, and where its output goes."""

    seconds: float | None = None
    """The call is ended after so many seconds; None for no limit."""
    memory_bytes: int | None = None
    """Main memory that its process may allocate beyond what it starts with; None for no limit."""
    log: Path | None = None
    """The file that receives its standard output and error; None leaves them as they are."""


NO_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell and everything needed to run it. Unlike the cell, it knows where images and weights are."""

    cell: Cell
    splits: Splits
    weights: Weights
    log: Path
    timeout_seconds: float | None = None
    memory_bytes: int | None = None
    threads: int | None = None
    """The most CPU threads that torch may use; None for one per core of the machine."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How a job ended, and on which machine."""

    outcome: Outcome
    started: datetime
    environment: Environment
    machine: MachineState | None
    """None if the job was not started."""
    attempts: int = 1
    """How often the job was started: more than once where machines of a cluster were lost."""


class Events(Protocol):
    """What an executor reports while jobs run. Calls come one at a time."""

    def skip(self, cell: Cell) -> bool:
        """True to skip the cell. Called just before launch."""

    def started(self, cell: Cell) -> None:
        """A cell starts."""

    def progressed(self, cell: Cell, event: EpochResult | str) -> None:
        """An epoch of the cell has ended, or a few words say what it does now."""

    def warned(self, text: str) -> None:
        """Something disturbs a cell."""

    def ended(self, cell: Cell, attempt: Attempt) -> None:
        """The cell has ended, with or without a result."""


class Executor(Protocol):
    """Runs functions and jobs. Functions go by name, `module:function`: this process need not import their module."""

    has_limits: bool
    """Whether it enforces `Limits`."""
    runs_here: bool
    """Whether cells run on this machine."""

    def prepare(self) -> None:
        """Load the libraries where cells will run, so that the first cell's clock doesn't count it."""
        ...

    def call(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, on_event: Emit | None = None) -> Outcome:
        """Run `function(*arguments, emit)` and say how it ended.

        Never raises for what the function does. `KeyboardInterrupt` passes through after the call was ended.
        """
        ...

    def devices(self) -> dict[str, str]:
        """Devices that cells can run on: name → model, best first. Raises `UserError` if they can't be asked."""
        ...

    def run_jobs(self, jobs: Iterable[Job], events: Events, stop: Callable[[], bool]) -> None:
        """Run jobs and report each start and end; start none once `stop()` is true.

        No two jobs share cores or a GPU, so that their times stay apart. Never raises for what a job does.
        """
        ...


def load(function: str) -> Callable[..., Any]:
    """The function of that name, `module:function`; its module is imported."""
    module, _, name = function.partition(":")
    loaded: Callable[..., Any] = getattr(import_module(module), name)
    return loaded
