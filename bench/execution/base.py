"""Executors: where work runs. To add one, add an entry to `EXECUTORS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from bench.execution.attempt import Events, Work

Emit = Callable[[Any], None]
"""What work calls to report progress; the value must pickle."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a piece of work ended."""

    status: Literal["done", "failed", "oom", "timeout", "skipped"]
    value: Any = None
    reason: str = ""
    traceback: str = ""
    wall_seconds: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a piece of work may use, and where what it writes goes."""

    seconds: float | None = None
    """After which it is ended."""
    memory_bytes: int | None = None
    """That its process may allocate, beyond what it begins with."""
    log: Path | None = None
    """A file that takes its standard output and error; None leaves them as they are."""


NO_LIMITS = Limits()


class Executor(Protocol):
    """Runs work, which goes by name, `module:function`, so that this process need not import its module."""

    has_limits: bool
    """Whether it can hold work to `Limits`."""

    def call(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, on_event: Emit | None = None) -> Outcome:
        """Run `function(*arguments, emit)` and tell how it ended.

        Never raises for what the work does; `KeyboardInterrupt` passes through, with the work ended.
        """
        ...

    def devices(self) -> dict[str, str] | None:
        """Devices that cells can run on, by name, best first, with their models; None for those of this machine."""
        ...

    def run_cells(self, work: Iterable[Work], events: Events, stop: Callable[[], bool]) -> None:
        """Run cells, and tell of each once that it starts and that it ended; begin none once `stop()` is true.

        Times are to be kept apart: no two cells share cores or a GPU. Never raises for what a cell does.
        """
        ...


def load(function: str) -> Callable[..., Any]:
    """The function of that name, its module imported."""
    module, _, name = function.partition(":")
    loaded: Callable[..., Any] = getattr(import_module(module), name)
    return loaded


def make_executor(name: str, address: str | None = None) -> Executor:
    """The executor of that name; `address` is of the cluster that it uses, if it uses one.

    Raises `ConfigError` where it can't be had.
    """
    return EXECUTORS[name](address)


def _process(address: str | None) -> Executor:
    from bench.execution.process import ProcessExecutor

    return ProcessExecutor()


def _inline(address: str | None) -> Executor:
    from bench.execution.inline import InlineExecutor

    return InlineExecutor()


def _ray(address: str | None) -> Executor:
    from bench.execution.ray import RayExecutor

    return RayExecutor(address)


EXECUTORS: dict[str, Callable[[str | None], Executor]] = {"process": _process, "inline": _inline, "ray": _ray}
