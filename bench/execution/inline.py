"""Runs work in this process: for debuggers and profilers. No limits, no protection, memory adds up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from bench.execution.base import NO_LIMITS, Emit, Limits, Outcome, load
from bench.execution.failure import describe
from bench.execution.signals import let_through

if TYPE_CHECKING:
    from bench.execution.attempt import Events, Work


class InlineExecutor:
    """See the module."""

    has_limits = False

    def call(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, on_event: Emit | None = None) -> Outcome:
        """See `bench.execution.base.Executor`; what the work writes goes where this process writes."""
        started = time.perf_counter()
        try:
            with let_through():
                value = load(function)(*arguments, on_event or (lambda event: None))
        except Exception as error:
            status, reason, trace = describe(error)
            wall = time.perf_counter() - started
            return Outcome(status=status, reason=reason, traceback=trace, wall_seconds=wall)
        return Outcome(status="done", value=value, wall_seconds=time.perf_counter() - started)

    def devices(self) -> None:
        """This machine's."""

    def run_cells(self, work: Iterable[Work], events: Events, stop: Callable[[], bool]) -> None:
        """One after the other."""
        from bench.execution.attempt import one_by_one

        one_by_one(self, work, events, stop)
