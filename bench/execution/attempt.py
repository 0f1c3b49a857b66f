"""One attempt at a cell on this machine: its process, what else the machine did meanwhile, and its log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cache, partial

from bench.execution.base import Attempt, Events, Executor, Job, Limits
from bench.execution.log import log_size, shorten
from bench.execution.monitor import Monitor
from bench.store.environment import Environment, MachineState, environment
from tl.machine import usable_cores
from tl.results import EpochResult

GET_READY = "bench.execution.worker:get_ready"
RUN_CELL = "bench.execution.worker:run_cell"


def run_one_by_one(executor: Executor, jobs: Iterable[Job], events: Events, stop: Callable[[], bool]) -> None:
    """`Executor.run_jobs` on this machine."""
    here = cache(environment)  # git and the versions of packages take a moment
    for job in jobs:
        if stop():
            return
        events.started(job.cell)
        attempt = run_job(executor, job, partial(events.progressed, job.cell), events.warned, here)
        events.ended(job.cell, attempt)


def run_job(
    executor: Executor,
    job: Job,
    progressed: Callable[[EpochResult | str], None],
    warned: Callable[[str], None],
    here: Callable[[], Environment] = environment,
) -> Attempt:
    """Run a job now, on this machine."""
    where, started, monitor = here(), datetime.now(UTC), Monitor(warned)

    def on_event(event: EpochResult | MachineState | str) -> None:
        if isinstance(event, MachineState):
            monitor.receive(event)
        else:
            progressed(event)

    threads = min(job.threads or usable_cores(), usable_cores())
    arguments = (job.cell, job.splits, job.weights, threads)
    limits = Limits(seconds=job.timeout_seconds, memory_bytes=job.memory_bytes, log=job.log)
    before = log_size(job.log)
    outcome = executor.call(RUN_CELL, *arguments, limits=limits, on_event=on_event)
    machine = monitor.end()
    with contextlib.suppress(OSError):  # on a disk that fails, the result is worth more than its log
        shorten(job.log, before)
    return Attempt(outcome=outcome, started=started, environment=where, machine=machine)
