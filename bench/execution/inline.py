"""Runs cells in this process, for debuggers and profilers.

It enforces no limits, a crash ends the sweep, and memory figures include what earlier cells left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from bench.execution.attempt import run_one_by_one
from bench.execution.base import GET_READY, NO_LIMITS, Emit, Events, Job, Limits, Outcome, PairEvents, PairJob, load
from bench.execution.discovery import local_devices
from bench.execution.failure import ended_by
from bench.execution.signals import signals_delivered
from tl.errors import ConfigError


class InlineExecutor:
    """See the module."""

    has_limits = False
    runs_here = True
    takes_turns = False

    def prepare(self) -> None:
        """Load torch, torchvision and timm."""
        self.call(GET_READY)

    def call(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, on_event: Emit | None = None) -> Outcome:
        """See `bench.execution.base.Executor`. The function writes to this process's standard output and error."""
        started = time.perf_counter()
        try:
            with signals_delivered():
                value = load(function)(*arguments, on_event or (lambda event: None))
        except Exception as error:
            return ended_by(error, time.perf_counter() - started)
        return Outcome(status="done", value=value, wall_seconds=time.perf_counter() - started)

    def devices(self) -> dict[str, str]:
        """Devices of this machine."""
        return local_devices(self)

    def run_jobs(self, jobs: Iterable[Job], events: Events, stop: Callable[[], bool]) -> None:
        """Run one job after the other."""
        run_one_by_one(self, jobs, events, stop)

    def run_pairs(self, jobs: Iterable[PairJob], events: PairEvents, stop: Callable[[], bool]) -> None:
        """Raise `ConfigError`: all calls share this process."""
        raise ConfigError("executor 'inline' has one process, so it can't time cells in turns; use executor 'process'")
