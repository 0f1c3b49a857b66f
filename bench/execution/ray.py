"""Runs cells on a Ray cluster (https://docs.ray.io): several at a time, but never two on the same cores or GPU.

A cell is a task on a chosen node, which asks for one GPU and its share of the cores, or for all cores. In there it
runs as on one's own machine, in a process of its own (`bench.execution.ray_node`). Records are written by the driver.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

from bench.execution import ray_node
from bench.execution.attempt import Ended, Events, Work
from bench.execution.base import NO_LIMITS, Emit, Limits, Outcome
from bench.execution.failure import describe
from bench.execution.process import ProcessExecutor
from bench.execution.ray_node import MakeExecutor, Parcel
from bench.execution.signals import let_through
from bench.store.environment import MachineState, environment
from tl.errors import ConfigError, UserError
from tl.machine import DeviceKey, usable_cores

MOST_ATTEMPTS = 3
"""At a cell whose node is lost each time."""
WAIT_FOR_NODE_SECONDS = 60.0
"""For a node of the right kind to come (back), before the cells that need one are given up."""
LOOK_SECONDS = 1.0
"""Between two looks at which nodes there are."""
ASK_SECONDS = 120.0
"""That a node has for saying what it is: it may have to import torch for that."""
ASK_AGAIN_SECONDS = 300.0
"""After which a node that didn't answer is asked again."""
_INSTEAD = "run on a machine of the cluster, with --ray-address auto or its head's HOST:6379"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What one cell may use of a node."""

    node: str
    """Ray's id."""
    device: str
    """As cells call it, with its kind: `cpu@MODEL-CORES`, `cuda:0@MODEL`."""
    model: str
    cpus: float
    gpus: int
    count: int
    """How many such cells the node has room for at a time."""


@dataclass(frozen=True, kw_only=True)
class _Flight:
    """A cell that runs somewhere."""

    work: Work
    slot: Slot
    attempt: int


class RayExecutor:
    """See the module."""

    has_limits = True

    def __init__(self, address: str | None = None, make: MakeExecutor = ProcessExecutor) -> None:
        """Connect to the cluster at `address`, or start one on this machine.

        `make` makes the executor that runs cells on a node. Raises `ConfigError` where Ray isn't installed, and
        `UserError` where no cluster answers.
        """
        self.ray, self.make = _connected(address), make
        self.slots: dict[str, tuple[Slot, ...]] = {}
        """By node, of those that are there and have said what they have."""
        self._asked: dict[str, tuple[Any, float]] = {}
        """By node, of those that have yet to say it: the task that asks, and since when it does."""
        self.unusable: dict[str, str] = {}
        """Nodes that can't say it, and why: the suite isn't installed there, or their GPUs are another job's."""
        self._ask_again: dict[str, float] = {}
        """When, of those that didn't answer."""
        self._here = make()
        self._devices: dict[str, str] = {}
        self._tasks: dict[tuple[Any, ...], Any] = {}

    def call(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, on_event: Emit | None = None) -> Outcome:
        """On this machine, the driver's: names are the same everywhere, and weights are sent from here."""
        if function == "bench.execution.worker:get_ready":  # nodes do that, and no cell runs here
            return Outcome(status="done", wall_seconds=0.0)
        return self._here.call(function, *arguments, limits=limits, on_event=on_event)

    def devices(self) -> dict[str, str]:
        """Kinds of devices of all nodes, GPUs first, as they were when this was asked first: a sweep that plans more
        than once means the same by `all`. Raises `UserError` where a node can't be asked.
        """
        if self._devices:
            return self._devices
        self.look(wait_seconds=ASK_SECONDS)
        for reason in self.unusable.values():
            raise UserError(reason)
        if self._asked:
            raise UserError(f"{len(self._asked)} nodes of the cluster didn't say in {ASK_SECONDS:g} s what they have")
        if not self.slots:
            raise UserError("no node of the cluster has CPUs to run cells on")
        found = {slot.device: slot.model for slots in self.slots.values() for slot in slots}
        self._devices = dict(sorted(found.items(), key=lambda item: (DeviceKey.parse(item[0]).kind == "cpu", item[0])))
        return self._devices

    @property
    def is_asking(self) -> bool:
        """Whether a node has yet to say what it has."""
        return bool(self._asked)

    def look(self, wait_seconds: float = 0.0) -> None:
        """Learn of nodes that have come, and forget those that have gone."""
        alive = {each["NodeID"]: each for each in self.ray.nodes() if each["Alive"] and each["Resources"].get("CPU")}
        self.slots = {name: slots for name, slots in self.slots.items() if name in alive}
        self._asked = {name: answer for name, answer in self._asked.items() if name in alive}
        for name in [name for name, when in self._ask_again.items() if when <= time.monotonic()]:
            del self._ask_again[name]
            self.unusable.pop(name, None)
        for name in alive.keys() - self.slots.keys() - self._asked.keys() - self.unusable.keys():
            # A part of a GPU, so that the task sees it: it waits while all are another job's.
            gpus = 0.01 if alive[name]["Resources"].get("GPU") else 0
            self._asked[name] = self.task(name, ray_node.describe_node, cpus=0, gpus=gpus).remote(), time.monotonic()
        deadline = time.monotonic() + wait_seconds
        for name, (answer, since) in list(self._asked.items()):
            host = alive[name]["NodeManagerHostname"]
            try:
                devices, cores = self.ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
            except self.ray.exceptions.GetTimeoutError:
                if time.monotonic() - since < ASK_SECONDS:
                    continue
                with contextlib.suppress(Exception):
                    self.ray.cancel(answer, force=True)
                self.unusable[name] = (
                    f"node {host}: didn't say in {ASK_SECONDS:g} s what it has; are its GPUs another job's?"
                )
                self._ask_again[name] = time.monotonic() + ASK_AGAIN_SECONDS
            except self.ray.exceptions.RayTaskError as error:
                self.unusable[name] = f"node {host}: can't say what it has: {_reason(error)}"
            except self.ray.exceptions.RayError:  # it has gone again
                pass
            else:
                self.slots[name] = tuple(_slots(name, alive[name]["Resources"], devices, cores))
            del self._asked[name]

    def doubt(self, name: str) -> None:
        """A node has failed: it gets no cell until it has said anew what it has, if it is there at all."""
        self.slots.pop(name, None)

    def task(self, name: str, function: Callable[..., Any], *, cpus: float, gpus: float, **options: Any) -> Any:
        """A function as a task of that node. Ray is not to begin it anew: that is decided here."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        key = (name, function, cpus, gpus)
        if key not in self._tasks:  # each is sent to the cluster
            where = NodeAffinitySchedulingStrategy(name, soft=False)
            make = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, scheduling_strategy=where, **options)
            self._tasks[key] = make(function)
        return self._tasks[key]

    def run_cells(self, work: Iterable[Work], events: Events, stop: Callable[[], bool]) -> None:
        """Each on a free node of the kind that it needs. One whose node is lost begins again, a few times."""
        flights = _Flights(self, work, events, stop)
        try:
            while flights.go_on():
                pass
        finally:
            flights.cancel()


class _Flights:
    """The cells of one sweep: those to come, and those that run."""

    def __init__(self, executor: RayExecutor, work: Iterable[Work], events: Events, stop: Callable[[], bool]) -> None:
        self._executor, self._work, self._events, self._stop = executor, iter(work), events, stop
        self._ray = executor.ray
        self._waiting: list[tuple[Work, int]] = []
        """Taken from the work, each with the number of its next attempt."""
        self._running: dict[Any, _Flight] = {}
        """By Ray's generator of references to `ray_node.Message`."""
        self._parcels: dict[str, Parcel] = {}
        """By digest of what is in them: packed when the first node says that it hasn't got it."""
        self._begun: set[str] = set()
        self._here = cache(environment)
        self._looked, self._idle_since = -LOOK_SECONDS, time.monotonic()

    def go_on(self) -> bool:
        """Begin what can begin, and hear what is told; false when nothing is left to do."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            known = set(self._executor.unusable)
            with let_through():
                self._executor.look()
            for name in self._executor.unusable.keys() - known:  # it came while others are at work: they go on
                self._events.warned(f"{self._executor.unusable[name]}; it gets no cell")
            self._looked = now
        if not self._stop():
            self._begin()
        if self._running:
            with let_through():
                ready, _ = self._ray.wait(list(self._running), timeout=LOOK_SECONDS, fetch_local=False)
            for messages in ready:
                self._hear(messages)
            self._idle_since = time.monotonic()
            return True
        if self._stop() or not (self._waiting or self._take()):
            return False
        if now - self._idle_since > WAIT_FOR_NODE_SECONDS and not self._executor.is_asking:
            while self._take():
                pass
            for work, attempt in self._waiting:
                reason = f"no node has {work.cell.device}, and none came within {WAIT_FOR_NODE_SECONDS:g} s"
                reason = "; ".join([reason, *self._executor.unusable.values()])
                self._end_without(work, attempt - 1, "failed", reason)
            self._waiting = []
        with let_through():
            time.sleep(LOOK_SECONDS / 10)
        return True

    def cancel(self) -> None:
        """End all that runs, at once."""
        for messages in self._running:
            with contextlib.suppress(Exception):  # what has gone already need not be ended
                self._ray.cancel(messages, force=True)

    def _begin(self) -> None:
        for slots in self._executor.slots.values():
            for slot in slots:
                while self._has_room(slot) and (taken := self._next(slot.device)):
                    work, attempt = taken
                    if work.cell.id in self._begun or not self._events.declined(work.cell):
                        self._launch(work, attempt, slot)

    def _has_room(self, slot: Slot) -> bool:
        """What asks for all cores of a node waits for all that runs there, and the other way round."""
        there = [flight.slot for flight in self._running.values() if flight.slot.node == slot.node]
        return len(there) < slot.count and all(other.device == slot.device for other in there)

    def _next(self, device: str) -> tuple[Work, int] | None:
        """The first cell for that kind of device; more is taken from the work only as far as need be."""
        for place, (work, _) in enumerate(self._waiting):
            if work.cell.device == device:
                return self._waiting.pop(place)
        while self._take():
            if self._waiting[-1][0].cell.device == device:
                return self._waiting.pop()
        return None

    def _take(self) -> bool:
        """Take one more cell from the work; false when there is none."""
        for work in self._work:
            self._waiting.append((work, 1))
            return True
        return False

    def _launch(self, work: Work, attempt: int, slot: Slot) -> None:
        images, weights = self._parcels.get(work.splits.digest), self._parcels.get(work.weights.digest)
        self._start(work)
        threads = max(1, int(slot.cpus))
        task = self._executor.task(
            slot.node, ray_node.run_cell, cpus=slot.cpus, gpus=slot.gpus, num_returns="streaming"
        )
        messages = task.remote(replace(work, threads=threads), images, weights, self._executor.make)
        self._running[messages] = _Flight(work=work, slot=slot, attempt=attempt)

    def _start(self, work: Work) -> None:
        """Tell that a cell begins; it may be sent to a node more than once."""
        if work.cell.id not in self._begun:
            self._begun.add(work.cell.id)
            self._events.started(work.cell)

    def _pack(self, work: Work) -> None:
        """For all nodes that don't have them: the cell's images and weights. Raises `UserError`."""
        splits, path = work.splits, work.weights.path
        files = {splits.digest: {name: splits.root / name for name in (*splits.train.files, *splits.val.files)}}
        files |= {work.weights.digest: {ray_node.sent_name(path): path}} if path else {}
        try:
            for digest in files.keys() - self._parcels.keys():
                with let_through():
                    self._parcels[digest] = ray_node.pack(files[digest], self._ray.put)
        except self._ray.exceptions.RayError as error:
            raise UserError(f"images or weights can't be sent to the cluster's nodes: {error}") from error

    def _hear(self, messages: Any) -> None:
        """Take the next message of a cell, or learn that none will come."""
        flight, errors = self._running[messages], self._ray.exceptions
        work, attempt = flight.work, flight.attempt
        try:
            kind, *told = self._ray.get(next(messages))
        except errors.RayTaskError as error:  # of the suite's own code on the node
            del self._running[messages]
            self._end_without(work, attempt, "failed", f"on its node: {_reason(error)}", error)
        except errors.OutOfMemoryError as error:
            del self._running[messages]
            self._end_without(work, attempt, "oom", "ended by Ray, because its node's memory ran out", error)
        except (errors.RayError, StopIteration) as error:
            del self._running[messages]
            self._lost(flight, type(error).__name__)
        else:
            if kind == "told":
                self._events.told(work.cell, told[0])
            elif kind == "warned":
                self._events.warned(f"{work.cell}: {told[0]}")
            elif kind == "missing":
                del self._running[messages]
                self._pack(work)
                self._waiting.insert(0, (work, attempt))
            else:
                del self._running[messages]
                end, log = told
                self._events.ended(work.cell, replace(end, attempts=attempt))
                if log:
                    with contextlib.suppress(OSError), work.log.open("ab") as file:  # the result is on disk by now
                        file.write(log)

    def _lost(self, flight: _Flight, how: str) -> None:
        cell, attempt = flight.work.cell, flight.attempt
        self._executor.doubt(flight.slot.node)
        if attempt == MOST_ATTEMPTS:
            reason = f"its node, or its worker there, was lost, {attempt} times in a row ({how})"
            self._end_without(flight.work, attempt, "failed", reason)
            return
        self._waiting.insert(0, (flight.work, attempt + 1))
        self._events.warned(
            f"{cell}: its node, or its worker there, was lost ({how}); attempt {attempt + 1} of {MOST_ATTEMPTS} follows"
        )

    def _end_without(
        self,
        work: Work,
        attempts: int,
        status: Literal["failed", "oom"],
        reason: str,
        error: BaseException | None = None,
    ) -> None:
        """A cell that ended and couldn't say how, nor where: the environment is the driver's."""
        self._start(work)
        trace = describe(error)[2] if error else ""
        outcome = Outcome(status=status, reason=reason, traceback=trace, wall_seconds=0.0)
        end = Ended(
            outcome=outcome,
            started=datetime.now(UTC),
            environment=self._here(),
            machine=MachineState() if attempts else None,
            attempts=attempts,
        )
        self._events.ended(work.cell, end)


def _connected(address: str | None) -> Any:
    """The module `ray`, connected. It is told to be quiet: what it has to say of a cell is in the cell's record."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns that this will be so one day
    try:
        import ray
    except ImportError as error:
        raise ConfigError('--executor ray: Ray isn\'t installed: pip install "tl-bench[ray]"') from error
    if ray.is_initialized():
        return ray
    if address and address.startswith("ray://"):
        raise ConfigError(f"--ray-address {address!r}: Ray's client can't run a sweep: {_INSTEAD}")
    if address and (problem := _unreachable(address)):
        raise UserError(f"--ray-address {address}: no Ray cluster there: {problem}")
    start: dict[str, Any] = {"num_cpus": usable_cores(), "include_dashboard": False} if address is None else {}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **start)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray takes it for itself
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise UserError(f"--ray-address {address or 'local'}: no Ray cluster there: {error}") from error
    return ray


def _unreachable(address: str) -> str:
    """Why nobody answers at HOST:PORT; empty for an address of another kind. Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return ""
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        return str(error)
    return ""


def _slots(name: str, resources: dict[str, float], devices: dict[str, str], cores: int) -> Iterator[Slot]:
    cpus, gpus = resources["CPU"], int(resources.get("GPU", 0))
    model = next((model for device, model in devices.items() if DeviceKey.parse(device).kind == "cuda"), "")
    if gpus and model:
        device = str(DeviceKey("cuda:0", _slug(model)))
        yield Slot(node=name, device=device, model=model, cpus=max(1, cpus // gpus), gpus=1, count=gpus)
    threads, model = int(min(cpus, cores)), devices["cpu"]
    device = str(DeviceKey("cpu", f"{_slug(model)}-{threads}"))
    yield Slot(node=name, device=device, model=f"{model}, {threads} cores", cpus=cpus, gpus=0, count=1)


def _slug(model: str) -> str:
    """A model's name as part of a device's."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")


def _reason(error: Any) -> str:
    """Of what was raised in a task, which Ray puts into an error of its own."""
    return describe(error.cause or error)[1]
