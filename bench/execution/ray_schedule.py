"""Schedules cells and process pairs on the nodes of a Ray cluster, and retries those whose node was lost."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal, Protocol

from bench.execution import ray_node
from bench.execution.base import Attempt, Events, Job, Outcome, PairAttempt, PairEvents, PairJob
from bench.execution.failure import describe
from bench.execution.log import open_log
from bench.execution.ray_cluster import Cluster, Slot, reason_of
from bench.execution.ray_node import MakeExecutor, Payload
from bench.execution.signals import signals_delivered
from bench.store.environment import MachineState, environment
from bench.store.pairs import TimedSide
from tl.errors import UserError
from tl.weights import Weights

MOST_ATTEMPTS = 3
"""Attempts per cell when its node keeps dying."""
WAIT_FOR_NODE_SECONDS = 60.0
"""How long cells wait for a node of the kind that they need before they fail, in seconds."""
REFRESH_SECONDS = 1.0
"""Time between two updates of the list of nodes, in seconds."""


class Work(Protocol):
    """A job, and how its progress is reported: all in which a cell and a process pair differ here."""

    @property
    def job(self) -> Job | PairJob:
        """The job; a node gets it with the number of its threads."""

    @property
    def id(self) -> str:
        """Id of the cell or pair."""

    @property
    def device(self) -> str:
        """The kind of device that it needs."""

    @property
    def weights(self) -> tuple[Weights, ...]:
        """All weights that its node needs."""

    def skip(self) -> bool:
        """True to skip it. Called just before launch."""

    def started(self) -> None:
        """Report its start."""

    def progressed(self, event: Any) -> None:
        """Report its progress."""

    def ended(self, end: Any, attempts: int) -> None:
        """Report its end: what `ray_node.run` has sent."""

    def ended_without(self, status: Literal["failed", "oom"], reason: str, trace: str, attempts: int) -> None:
        """Report an end without an outcome. Its environment is unknown, so the driver's is recorded."""


@dataclass(frozen=True)
class CellWork:
    """A cell to run; see `Work`."""

    job: Job
    events: Events

    @property
    def id(self) -> str:  # noqa: D102
        return self.job.cell.id

    @property
    def device(self) -> str:  # noqa: D102
        return self.job.cell.device

    @property
    def weights(self) -> tuple[Weights, ...]:  # noqa: D102
        return (self.job.weights,)

    def __str__(self) -> str:
        return str(self.job.cell)

    def skip(self) -> bool:  # noqa: D102
        return self.events.skip(self.job.cell)

    def started(self) -> None:  # noqa: D102
        self.events.started(self.job.cell)

    def progressed(self, event: Any) -> None:  # noqa: D102
        self.events.progressed(self.job.cell, event)

    def ended(self, end: Attempt, attempts: int) -> None:  # noqa: D102
        self.events.ended(self.job.cell, replace(end, attempts=attempts))

    def ended_without(  # noqa: D102
        self, status: Literal["failed", "oom"], reason: str, trace: str, attempts: int
    ) -> None:
        outcome = Outcome(status=status, reason=reason, traceback=trace, wall_seconds=0.0)
        machine = MachineState() if attempts else None
        end = Attempt(outcome=outcome, started=datetime.now(UTC), environment=_environment(), machine=machine)
        self.ended(end, attempts)


@dataclass(frozen=True)
class PairWork:
    """A process pair to time; see `Work`. Its processes run on one node, in the slot of a single cell."""

    job: PairJob
    events: PairEvents

    @property
    def id(self) -> str:  # noqa: D102
        return self.job.pair.id

    @property
    def device(self) -> str:  # noqa: D102
        return self.job.pair.cells[0].device

    @property
    def weights(self) -> tuple[Weights, ...]:  # noqa: D102
        return self.job.weights

    def __str__(self) -> str:
        return str(self.job.pair)

    def skip(self) -> bool:  # noqa: D102
        return False

    def started(self) -> None:  # noqa: D102
        self.events.pair_started(self.job.pair)

    def progressed(self, event: Any) -> None:  # noqa: D102
        pass

    def ended(self, end: PairAttempt, attempts: int) -> None:  # noqa: D102
        self.events.pair_ended(self.job.pair, replace(end, attempts=attempts))

    def ended_without(  # noqa: D102
        self, status: Literal["failed", "oom"], reason: str, trace: str, attempts: int
    ) -> None:
        side = TimedSide(status=status, reason=reason, traceback=trace)
        end = PairAttempt(
            status=status,
            reason=reason,
            sides=(side,) * len(self.job.pair.cells),
            started=datetime.now(UTC),
            wall_seconds=0.0,
            environment=_environment(),
            machine=MachineState() if attempts else None,
        )
        self.ended(end, attempts)


_environment = cache(environment)


@dataclass(frozen=True, kw_only=True)
class _Running:
    """A job that runs on a node."""

    work: Work
    slot: Slot
    attempt: int


class Schedule:
    """The jobs of one sweep: those that wait and those that run."""

    def __init__(
        self,
        cluster: Cluster,
        make: MakeExecutor,
        jobs: Iterable[Work],
        warned: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> None:
        """`make` makes the executor that runs a job on its node."""
        self._cluster, self._make, self._ray = cluster, make, cluster.ray
        self._jobs, self._warned, self._stop = iter(jobs), warned, stop
        self._waiting: list[tuple[Work, int]] = []
        """Jobs that are ready to start, each with the number of its next attempt."""
        self._running: dict[Any, _Running] = {}
        """Ray's generator of references to `ray_node.Message` → the job that sends them."""
        self._payloads: dict[str, Payload] = {}
        """Digest of the images or weights → the payload with them. It is packed when the first node lacks them."""
        self._started: set[str] = set()
        """Ids of jobs whose start was reported."""
        self._refreshed, self._idle_since = -REFRESH_SECONDS, time.monotonic()

    def step(self) -> bool:
        """Launch the cells that can start, and receive messages. Returns false when nothing is left to do."""
        now = time.monotonic()
        if now - self._refreshed >= REFRESH_SECONDS:
            known = set(self._cluster.unusable)
            with signals_delivered():
                self._cluster.refresh()
            for name in self._cluster.unusable.keys() - known:  # the sweep goes on without this node
                self._warned(f"{self._cluster.unusable[name]}; it gets no cell")
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
            for work, attempt in self._waiting:
                reason = f"no node has {work.device}, and none joined within {WAIT_FOR_NODE_SECONDS:g} s"
                reason = "; ".join([reason, *self._cluster.unusable.values()])
                self._end_without(work, attempt - 1, "failed", reason)
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
                    work, attempt = taken
                    if work.id in self._started or not work.skip():
                        self._launch(work, attempt, slot)

    def _has_room(self, slot: Slot) -> bool:
        """True if another cell can start in that slot. Cells on the GPUs and on the cores of a node exclude each other,
        since a cell on the CPU uses all cores.
        """
        occupied = [running.slot for running in self._running.values() if running.slot.node == slot.node]
        return len(occupied) < slot.count and all(other.device == slot.device for other in occupied)

    def _next(self, device: str) -> tuple[Work, int] | None:
        """The first job for that kind of device. It takes only as many new jobs as it has to."""
        for place, (work, _) in enumerate(self._waiting):
            if work.device == device:
                return self._waiting.pop(place)
        while self._take():
            if self._waiting[-1][0].device == device:
                return self._waiting.pop()
        return None

    def _take(self) -> bool:
        """Take one more job; false if none is left."""
        for work in self._jobs:
            self._waiting.append((work, 1))
            return True
        return False

    def _launch(self, work: Work, attempt: int, slot: Slot) -> None:
        images = self._payloads.get(work.job.splits.digest)
        weights = {each.digest: self._payloads[each.digest] for each in work.weights if each.digest in self._payloads}
        self._start(work)
        job = replace(work.job, threads=max(1, int(slot.cpus)))
        task = self._cluster.task(slot.node, ray_node.run, cpus=slot.cpus, gpus=slot.gpus, num_returns="streaming")
        self._running[task.remote(job, images, weights, self._make)] = _Running(work=work, slot=slot, attempt=attempt)

    def _start(self, work: Work) -> None:
        """Report that a job starts. It is reported once, though the job may be sent to a node several times."""
        if work.id not in self._started:
            self._started.add(work.id)
            work.started()

    def _pack(self, work: Work) -> None:
        """Put the images and weights of a job into payloads, for all nodes that lack them. Raises `UserError`."""
        splits = work.job.splits
        files = {splits.digest: {name: splits.root / name for name in (*splits.train.files, *splits.val.files)}}
        files |= {each.digest: {ray_node.sent_name(each.path): each.path} for each in work.weights if each.path}
        try:
            for digest in files.keys() - self._payloads.keys():
                with signals_delivered():
                    self._payloads[digest] = ray_node.pack(files[digest], self._ray.put)
        except self._ray.exceptions.RayError as error:
            raise UserError(f"images or weights can't be sent to the cluster's nodes: {error}") from error

    def _receive(self, messages: Any) -> None:
        """Handle the next message of a job, or the end of its task."""
        running, errors = self._running[messages], self._ray.exceptions
        work, attempt = running.work, running.attempt
        try:
            kind, *content = self._ray.get(next(messages))
        except errors.RayTaskError as error:  # raised by the suite's own code on the node
            del self._running[messages]
            self._end_without(work, attempt, "failed", f"on its node: {reason_of(error)}", error)
        except errors.OutOfMemoryError as error:
            del self._running[messages]
            self._end_without(work, attempt, "oom", "ended by Ray, because its node's memory ran out", error)
        except (errors.RayError, StopIteration) as error:
            del self._running[messages]
            self._lost(running, type(error).__name__)
        else:
            if kind == "progressed":
                work.progressed(content[0])
            elif kind == "warned":
                self._warned(f"{work}: {content[0]}")
            elif kind == "missing":
                del self._running[messages]
                self._pack(work)
                self._waiting.insert(0, (work, attempt))
            else:
                del self._running[messages]
                end, log = content
                work.ended(end, attempt)
                if log:
                    with contextlib.suppress(OSError), os.fdopen(open_log(work.job.log), "ab") as file:
                        file.write(log)  # the result is already on disk

    def _lost(self, running: _Running, how: str) -> None:
        work, attempt = running.work, running.attempt
        self._cluster.mark_lost(running.slot.node)
        if attempt == MOST_ATTEMPTS:
            reason = f"its node, or its worker there, was lost, {attempt} times in a row ({how})"
            self._end_without(work, attempt, "failed", reason)
            return
        self._waiting.insert(0, (work, attempt + 1))
        self._warned(
            f"{work}: its node, or its worker there, was lost ({how}); attempt {attempt + 1} of {MOST_ATTEMPTS} begins"
        )

    def _end_without(
        self,
        work: Work,
        attempts: int,
        status: Literal["failed", "oom"],
        reason: str,
        error: BaseException | None = None,
    ) -> None:
        """Report the end of a job that sent no outcome."""
        self._start(work)
        work.ended_without(status, reason, describe(error)[2] if error else "", attempts)
