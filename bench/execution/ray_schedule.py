"""Schedules cells on the nodes of a Ray cluster, and retries cells whose node was lost."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

from bench.execution import ray_node
from bench.execution.base import Attempt, Events, Job, Outcome
from bench.execution.failure import describe
from bench.execution.log import open_log
from bench.execution.ray_cluster import Cluster, Slot, reason_of
from bench.execution.ray_node import MakeExecutor, Payload
from bench.execution.signals import signals_delivered
from bench.store.environment import MachineState, environment
from tl.errors import UserError

MOST_ATTEMPTS = 3
"""Attempts per cell when its node keeps dying."""
WAIT_FOR_NODE_SECONDS = 60.0
"""How long cells wait for a node of the kind that they need before they fail, in seconds."""
REFRESH_SECONDS = 1.0
"""Time between two updates of the list of nodes, in seconds."""


@dataclass(frozen=True, kw_only=True)
class _Running:
    """A cell that runs on a node."""

    job: Job
    slot: Slot
    attempt: int


class Schedule:
    """The jobs of one sweep: those that wait and those that run."""

    def __init__(
        self, cluster: Cluster, make: MakeExecutor, jobs: Iterable[Job], events: Events, stop: Callable[[], bool]
    ) -> None:
        """`make` makes the executor that runs a job on its node."""
        self._cluster, self._make, self._ray = cluster, make, cluster.ray
        self._jobs, self._events, self._stop = iter(jobs), events, stop
        self._waiting: list[tuple[Job, int]] = []
        """Jobs that are ready to start, each with the number of its next attempt."""
        self._running: dict[Any, _Running] = {}
        """Ray's generator of references to `ray_node.Message` → the cell that sends them."""
        self._payloads: dict[str, Payload] = {}
        """Digest of the images or weights → the payload with them. It is packed when the first node lacks them."""
        self._started: set[str] = set()
        """Ids of cells whose start was reported."""
        self._environment = cache(environment)
        self._refreshed, self._idle_since = -REFRESH_SECONDS, time.monotonic()

    def step(self) -> bool:
        """Launch the cells that can start, and receive messages. Returns false when nothing is left to do."""
        now = time.monotonic()
        if now - self._refreshed >= REFRESH_SECONDS:
            known = set(self._cluster.unusable)
            with signals_delivered():
                self._cluster.refresh()
            for name in self._cluster.unusable.keys() - known:  # the sweep goes on without this node
                self._events.warned(f"{self._cluster.unusable[name]}; it gets no cell")
            self._refreshed = now
        if not self._stop():
            self._launch_waiting()
        if self._running:
            with signals_delivered():
                ready, _ = self._ray.wait(list(self._running), timeout=REFRESH_SECONDS, fetch_local=False)
            for messages in ready:
                self._receive(messages)
            self._idle_since = time.monotonic()
            return True
        if self._stop() or not (self._waiting or self._take()):
            return False
        if now - self._idle_since > WAIT_FOR_NODE_SECONDS and not self._cluster.is_asking:
            while self._take():
                pass
            for job, attempt in self._waiting:
                reason = f"no node has {job.cell.device}, and none joined within {WAIT_FOR_NODE_SECONDS:g} s"
                reason = "; ".join([reason, *self._cluster.unusable.values()])
                self._end_without(job, attempt - 1, "failed", reason)
            self._waiting = []
        with signals_delivered():
            time.sleep(REFRESH_SECONDS / 10)
        return True

    def cancel(self) -> None:
        """End all running cells at once."""
        for messages in self._running:
            with contextlib.suppress(Exception):  # the task may have ended already
                self._ray.cancel(messages, force=True)

    def _launch_waiting(self) -> None:
        for slots in self._cluster.slots.values():
            for slot in slots:
                while self._has_room(slot) and (taken := self._next(slot.device)):
                    job, attempt = taken
                    if job.cell.id in self._started or not self._events.skip(job.cell):
                        self._launch(job, attempt, slot)

    def _has_room(self, slot: Slot) -> bool:
        """True if another cell can start in that slot. Cells on the GPUs and on the cores of a node exclude each other,
        since a cell on the CPU uses all cores.
        """
        occupied = [running.slot for running in self._running.values() if running.slot.node == slot.node]
        return len(occupied) < slot.count and all(other.device == slot.device for other in occupied)

    def _next(self, device: str) -> tuple[Job, int] | None:
        """The first job for that kind of device. It takes only as many new jobs as it has to."""
        for place, (job, _) in enumerate(self._waiting):
            if job.cell.device == device:
                return self._waiting.pop(place)
        while self._take():
            if self._waiting[-1][0].cell.device == device:
                return self._waiting.pop()
        return None

    def _take(self) -> bool:
        """Take one more job; false if none is left."""
        for job in self._jobs:
            self._waiting.append((job, 1))
            return True
        return False

    def _launch(self, job: Job, attempt: int, slot: Slot) -> None:
        images, weights = self._payloads.get(job.splits.digest), self._payloads.get(job.weights.digest)
        self._start(job)
        threads = max(1, int(slot.cpus))
        task = self._cluster.task(slot.node, ray_node.run_cell, cpus=slot.cpus, gpus=slot.gpus, num_returns="streaming")
        messages = task.remote(replace(job, threads=threads), images, weights, self._make)
        self._running[messages] = _Running(job=job, slot=slot, attempt=attempt)

    def _start(self, job: Job) -> None:
        """Report that a cell starts. It is reported once, though the cell may be sent to a node several times."""
        if job.cell.id not in self._started:
            self._started.add(job.cell.id)
            self._events.started(job.cell)

    def _pack(self, job: Job) -> None:
        """Put the cell's images and weights into payloads, for all nodes that lack them. Raises `UserError`."""
        splits, path = job.splits, job.weights.path
        files = {splits.digest: {name: splits.root / name for name in (*splits.train.files, *splits.val.files)}}
        files |= {job.weights.digest: {ray_node.sent_name(path): path}} if path else {}
        try:
            for digest in files.keys() - self._payloads.keys():
                with signals_delivered():
                    self._payloads[digest] = ray_node.pack(files[digest], self._ray.put)
        except self._ray.exceptions.RayError as error:
            raise UserError(f"images or weights can't be sent to the cluster's nodes: {error}") from error

    def _receive(self, messages: Any) -> None:
        """Handle the next message of a cell, or the end of its task."""
        running, errors = self._running[messages], self._ray.exceptions
        job, attempt = running.job, running.attempt
        try:
            kind, *content = self._ray.get(next(messages))
        except errors.RayTaskError as error:  # raised by the suite's own code on the node
            del self._running[messages]
            self._end_without(job, attempt, "failed", f"on its node: {reason_of(error)}", error)
        except errors.OutOfMemoryError as error:
            del self._running[messages]
            self._end_without(job, attempt, "oom", "ended by Ray, because its node's memory ran out", error)
        except (errors.RayError, StopIteration) as error:
            del self._running[messages]
            self._lost(running, type(error).__name__)
        else:
            if kind == "progressed":
                self._events.progressed(job.cell, content[0])
            elif kind == "warned":
                self._events.warned(f"{job.cell}: {content[0]}")
            elif kind == "missing":
                del self._running[messages]
                self._pack(job)
                self._waiting.insert(0, (job, attempt))
            else:
                del self._running[messages]
                end, log = content
                self._events.ended(job.cell, replace(end, attempts=attempt))
                if log:
                    with contextlib.suppress(OSError), os.fdopen(open_log(job.log), "ab") as file:
                        file.write(log)  # the result is already on disk

    def _lost(self, running: _Running, how: str) -> None:
        cell, attempt = running.job.cell, running.attempt
        self._cluster.mark_lost(running.slot.node)
        if attempt == MOST_ATTEMPTS:
            reason = f"its node, or its worker there, was lost, {attempt} times in a row ({how})"
            self._end_without(running.job, attempt, "failed", reason)
            return
        self._waiting.insert(0, (running.job, attempt + 1))
        self._events.warned(
            f"{cell}: its node, or its worker there, was lost ({how}); attempt {attempt + 1} of {MOST_ATTEMPTS} begins"
        )

    def _end_without(
        self,
        job: Job,
        attempts: int,
        status: Literal["failed", "oom"],
        reason: str,
        error: BaseException | None = None,
    ) -> None:
        """Report the end of a cell that sent no outcome. Its environment is unknown, so we record the driver's."""
        self._start(job)
        trace = describe(error)[2] if error else ""
        outcome = Outcome(status=status, reason=reason, traceback=trace, wall_seconds=0.0)
        end = Attempt(
            outcome=outcome,
            started=datetime.now(UTC),
            environment=self._environment(),
            machine=MachineState() if attempts else None,
            attempts=attempts,
        )
        self._events.ended(job.cell, end)
