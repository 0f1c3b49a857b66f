"""Executors: where a piece of work runs. To add one, add an entry to `EXECUTORS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

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


class Executor(Protocol):
    """Runs `function(*arguments, emit)` and tells how it ended. One piece of work at a time.

    The function goes by name, `module:function`, so that this process need not import its module.
    """

    has_timeout: bool

    def call(
        self, function: str, *arguments: Any, timeout: float | None = None, on_event: Emit | None = None
    ) -> Outcome:
        """Never raises for what the work does; `KeyboardInterrupt` passes through, with the work ended."""
        ...


def load(function: str) -> Callable[..., Any]:
    """The function of that name, its module imported."""
    module, _, name = function.partition(":")
    loaded: Callable[..., Any] = getattr(import_module(module), name)
    return loaded


def make_executor(name: str) -> Executor:
    """The executor of that name."""
    return EXECUTORS[name]()


def _process() -> Executor:
    from bench.executors.process import ProcessExecutor

    return ProcessExecutor()


def _inline() -> Executor:
    from bench.executors.inline import InlineExecutor

    return InlineExecutor()


EXECUTORS: dict[str, Callable[[], Executor]] = {"process": _process, "inline": _inline}
