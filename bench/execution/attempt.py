"""One attempt at a cell on this machine: run it, monitor the machine meanwhile, and keep its log short."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import cache, partial

from bench.execution.base import Attempt, Events, Executor, Job, Limits
from bench.execution.log import log_size, shorten
from bench.execution.monitor import Monitor
from bench.store.environment import Environment, MachineState, environment
from tl.errors import CacheWarning
from tl.images import checked_files
from tl.machine import usable_cores
from tl.progress import PassProgress
from tl.results import EpochResult

RUN_CELL = "bench.execution.worker:run_cell"


def run_one_by_one(executor: Executor, jobs: Iterable[Job], events: Events, stop: Callable[[], bool]) -> None:
    """`Executor.run_jobs` for executors that run one job at a time on this machine."""
    cached_environment = cache(environment)  # asking git and looking up package versions takes a moment
    for job in jobs:
        if stop():
            return
        events.started(job.cell)
        attempt = run_job(executor, job, partial(events.progressed, job.cell), events.warned, cached_environment)
        events.ended(job.cell, attempt)


def run_job(
    executor: Executor,
    job: Job,
    progressed: Callable[[EpochResult | PassProgress | str], None],
    warned: Callable[[str], None],
    get_environment: Callable[[], Environment] = environment,
) -> Attempt:
    """Run a job now, on this machine."""
    machine_environment, started, monitor = get_environment(), datetime.now(UTC), Monitor(warned)

    def on_event(event: EpochResult | PassProgress | MachineState | CacheWarning | str) -> None:
        if isinstance(event, MachineState):
            monitor.receive(event)
        elif isinstance(event, CacheWarning):
            warned(str(event))
        else:
            progressed(event)

    threads = min(job.threads or usable_cores(), usable_cores())
    arguments = (job.cell, job.splits, job.weights, threads, checked_files(), job.inference)
    limits = Limits(seconds=job.timeout_seconds, memory_bytes=job.memory_bytes, log=job.log)
    before = log_size(job.log)
    outcome = executor.call(RUN_CELL, *arguments, limits=limits, on_event=on_event)
    machine = monitor.end()
    with contextlib.suppress(OSError):  # if the disk fails, the result matters more than its log
        shorten(job.log, before)
    return Attempt(outcome=outcome, started=started, environment=machine_environment, machine=machine)
