"""The interface of executors, and the types that they take and return. `bench.execution.executors` lists them all.

An executor runs functions by name, so the process that plans and reports never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tl.deferred import deferred

if TYPE_CHECKING:  # a command starts its server before it loads these
    from bench.store.environment import Environment, MachineState
    from bench.store.pairs import SideStatus, TimedSide
    from bench.store.records import Cell, PlannedPair
    from tl.datasets import Splits
    from tl.progress import PassProgress
    from tl.results import EpochResult
    from tl.weights import Weights

Emit = Callable[[Any], None]
"""A function calls this to report progress; the value must be picklable."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call ended."""

    status: Literal["done", "failed", "oom", "timeout", "skipped", "diverged"]
    value: Any = None
    """The function's return value if the status is `done`; the epochs before if it is `diverged`; otherwise None."""
    reason: str = ""
    """One line; empty if the status is `done`."""
    traceback: str = ""
    wall_seconds: float
    at_limit: bool = False
    """True if main memory ran out at the call's own `Limits.memory_bytes`, and not because the machine had no more."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The time and memory that a call may use, and the file for its output."""

    seconds: float | None = None
    """Time limit, in seconds; None for no limit."""
    memory_bytes: int | None = None
    """Main memory that its process may allocate beyond what it starts with; None for no limit."""
    log: Path | None = None
    """The file that receives its standard output and error; None doesn't redirect them."""


NO_LIMITS = Limits()
GET_READY = "bench.execution.worker:get_ready"
"""The function that does nothing but load the libraries."""


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
    """Most CPU threads that torch may use; None for one per core of the machine."""
    inference: bool = False
    """Measure what the trained network costs in use, too."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How a job ended, and on which machine."""

    outcome: Outcome
    started: datetime
    environment: Environment
    machine: MachineState | None
    """None if the job was not started."""
    attempts: int = 1
    """How often the job was started; more than once if its node of a cluster was lost."""


class Events(Protocol):
    """An executor reports to this while jobs run. It makes one call at a time."""

    def skip(self, cell: Cell) -> bool:
        """True to skip the cell. Called just before launch."""

    def started(self, cell: Cell) -> None:
        """A cell starts."""

    def progressed(self, cell: Cell, event: EpochResult | PassProgress | str) -> None:
        """An epoch of the cell has ended, a pass goes on, or a stage has begun, which a few words name."""

    def warned(self, text: str) -> None:
        """Something disturbs a cell, such as another process or a damaged cache."""

    def ended(self, cell: Cell, attempt: Attempt) -> None:
        """The cell has ended, with or without a result."""


@dataclass(frozen=True, kw_only=True)
class PairJob:
    """A process pair and everything needed to time it."""

    pair: PlannedPair
    splits: Splits
    weights: tuple[Weights, ...]
    """Weights of each cell, in the order of the pair's cells."""
    log: Path
    """The file that receives the output of all processes of the pair."""
    timeout_seconds: float | None = None
    """Time limit for each process; None for no limit."""
    memory_bytes: int | None = None
    """Main memory that each process may allocate; None for no limit."""
    threads: int | None = None
    """Most CPU threads that torch may use; None for one per core of the machine."""
    needed_bytes: tuple[int | None, ...] = ()
    """Peak memory of each cell where it is known, from its training or from earlier pairs. If their sum is more than
    there is, the cells are timed one after the other; empty if none is known."""


@dataclass(frozen=True, kw_only=True)
class PairAttempt:
    """How a process pair ended. Fields have the meaning that they have in `bench.store.pairs.PairRecord`."""

    status: SideStatus
    reason: str = ""
    apart: str = ""
    steps: int = 0
    batches: int = 0
    sides: tuple[TimedSide, ...]
    started: datetime
    wall_seconds: float
    environment: Environment
    machine: MachineState | None = None
    """None if no process was started."""
    attempts: int = 1


class PairEvents(Protocol):
    """An executor reports to this while pairs are timed. It makes one call at a time."""

    def pair_started(self, pair: PlannedPair) -> None:
        """A pair starts."""

    def warned(self, text: str) -> None:
        """Something disturbs a pair, such as another process or a damaged cache."""

    def pair_ended(self, pair: PlannedPair, attempt: PairAttempt) -> None:
        """The pair has ended, with or without turns."""


class Executor(Protocol):
    """Runs functions and jobs. Functions are given by name, `module:function`; this process doesn't import them."""

    has_limits: bool
    """True if it enforces `Limits`."""
    runs_here: bool
    """True if cells run on this machine."""
    takes_turns: bool
    """True if it can keep several processes alive, as `run_pairs` needs."""

    def prepare(self) -> None:
        """Load the libraries where cells will run, so that the first cell's time doesn't include loading them."""
        ...

    def call(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, on_event: Emit | None = None) -> Outcome:
        """Run `function(*arguments, emit)` and return how it ended.

        An exception in the function becomes an outcome and is never raised. `KeyboardInterrupt` is raised after the
        call has been ended.
        """
        ...

    def devices(self) -> dict[str, str]:
        """Devices that cells can run on: name → model, best first. Raises `UserError` if they can't be found out."""
        ...

    def run_jobs(self, jobs: Iterable[Job], events: Events, stop: Callable[[], bool]) -> None:
        """Run jobs and report each start and end; start none once `stop()` is true.

        Jobs that run at the same time never share cores or a GPU, so they don't slow each other down. An exception in
        a job becomes its outcome and is never raised.
        """
        ...

    def run_pairs(self, jobs: Iterable[PairJob], events: PairEvents, stop: Callable[[], bool]) -> None:
        """Time process pairs and report each start and end; start none once `stop()` is true.

        Nothing else of this executor runs meanwhile on the same cores or GPU. Raises `ConfigError` if it can't: see
        `takes_turns`.
        """
        ...


def load(function: str) -> Callable[..., Any]:
    """Import and return the function `module:function`."""
    module, _, name = function.partition(":")
    with deferred():
        loaded: Callable[..., Any] = getattr(import_module(module), name)
    return loaded
