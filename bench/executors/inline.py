"""Runs work in this process: for debuggers and profilers. No timeout, no protection, memory adds up."""

from __future__ import annotations

import time
from typing import Any

from bench.executors import Emit, Outcome, load
from bench.executors.failure import describe


class InlineExecutor:
    """See the module."""

    has_timeout = False

    def call(
        self, function: str, *arguments: Any, timeout: float | None = None, on_event: Emit | None = None
    ) -> Outcome:
        """See `bench.executors.Executor`."""
        started = time.perf_counter()
        try:
            value = load(function)(*arguments, on_event or (lambda event: None))
        except Exception as error:
            status, reason, trace = describe(error)
            wall = time.perf_counter() - started
            return Outcome(status=status, reason=reason, traceback=trace, wall_seconds=wall)
        return Outcome(status="done", value=value, wall_seconds=time.perf_counter() - started)
