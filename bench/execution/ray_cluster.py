"""A Ray cluster (https://docs.ray.io): the connection to it, its nodes, and the resources for cells on each node."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.execution import ray_node
from bench.execution.failure import describe
from tl.errors import ConfigError, UserError
from tl.machine import DeviceKey, usable_cores

ASK_SECONDS = 120.0
"""Time limit for a node's description of itself, in seconds: the node may have to import torch first."""
ASK_AGAIN_SECONDS = 300.0
"""Time after which a node that did not answer is asked again, in seconds."""
_INSTEAD = "run on a machine of the cluster, with --ray-address auto or its head's HOST:6379"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The resources of a node that one cell may use."""

    node: str
    """Ray's id of the node."""
    device: str
    """The device's name in cells, with the kind of machine: `cpu@MODEL-CORES`, `cuda:0@MODEL`."""
    model: str
    cpus: float
    gpus: int
    count: int
    """How many such cells the node can run at a time."""


class Cluster:
    """The nodes of a cluster that cells can run on."""

    def __init__(self, address: str | None = None) -> None:
        """Connect to the cluster at `address`, or start one on this machine.

        Raises `ConfigError` if Ray isn't installed, and `UserError` if no cluster answers.
        """
        self.ray = _connect(address)
        self.slots: dict[str, tuple[Slot, ...]] = {}
        """Node → its slots, for nodes that are alive and have described themselves."""
        self.unusable: dict[str, str] = {}
        """Node → why it can't be used, such as: the suite isn't installed there, or another job uses its GPUs."""
        self._asked: dict[str, tuple[Any, float]] = {}
        """Node → the task that describes it, and when that was sent; for nodes that have not answered yet."""
        self._ask_again: dict[str, float] = {}
        """Node → when to ask it again; for nodes that did not answer in time."""
        self._devices: dict[str, str] = {}
        self._tasks: dict[tuple[Any, ...], Any] = {}

    def devices(self) -> dict[str, str]:
        """Kinds of devices of all nodes → their models, GPUs first.

        Later calls return what the first call found, so that `all` means the same whenever a sweep plans again. Raises
        `UserError` if a node can't describe its devices.
        """
        if self._devices:
            return self._devices
        self.refresh(wait_seconds=ASK_SECONDS)
        for reason in self.unusable.values():
            raise UserError(reason)
        if self._asked:
            raise UserError(f"{len(self._asked)} nodes of the cluster didn't list their devices in {ASK_SECONDS:g} s")
        if not self.slots:
            raise UserError("no node of the cluster has CPUs to run cells on")
        found = {slot.device: slot.model for slots in self.slots.values() for slot in slots}
        self._devices = dict(sorted(found.items(), key=lambda item: (DeviceKey.parse(item[0]).kind == "cpu", item[0])))
        return self._devices

    @property
    def is_asking(self) -> bool:
        """True while a node has not yet described itself."""
        return bool(self._asked)

    def refresh(self, wait_seconds: float = 0.0) -> None:
        """Add nodes that have joined and forget nodes that have left; wait at most so long for their descriptions."""
        alive = {each["NodeID"]: each for each in self.ray.nodes() if each["Alive"] and each["Resources"].get("CPU")}
        self.slots = {name: slots for name, slots in self.slots.items() if name in alive}
        self._asked = {name: answer for name, answer in self._asked.items() if name in alive}
        for name in [name for name, when in self._ask_again.items() if when <= time.monotonic()]:
            del self._ask_again[name]
            self.unusable.pop(name, None)
        for name in alive.keys() - self.slots.keys() - self._asked.keys() - self.unusable.keys():
            # The task sees a GPU only if it requests a part of one. It waits while other jobs use all of them.
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
                    f"node {host}: didn't list its devices in {ASK_SECONDS:g} s; does another job use its GPUs?"
                )
                self._ask_again[name] = time.monotonic() + ASK_AGAIN_SECONDS
            except self.ray.exceptions.RayTaskError as error:
                self.unusable[name] = f"node {host}: can't list its devices: {reason_of(error)}"
            except self.ray.exceptions.RayError:  # the node has left again
                pass
            else:
                self.slots[name] = tuple(_slots(name, alive[name]["Resources"], devices, cores))
            del self._asked[name]

    def mark_lost(self, name: str) -> None:
        """Give a node that has failed no cell until it has described itself again."""
        self.slots.pop(name, None)

    def task(self, name: str, function: Callable[..., Any], *, cpus: float, gpus: float, **options: Any) -> Any:
        """A function as a Ray task on that node. Ray itself doesn't retry it; `Schedule` decides that."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        key = (name, function, cpus, gpus)
        if key not in self._tasks:  # making a task sends its function to the cluster
            where = NodeAffinitySchedulingStrategy(name, soft=False)
            make = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, scheduling_strategy=where, **options)
            self._tasks[key] = make(function)
        return self._tasks[key]


def _connect(address: str | None) -> Any:
    """Connect, and return the module `ray`. Ray's own log is switched off: cells' records hold the errors."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns that this will be the default
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
            signal.signal(signal.SIGTERM, before)  # Ray has installed a handler of its own
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise UserError(f"--ray-address {address or 'local'}: no Ray cluster there: {error}") from error
    return ray


def _unreachable(address: str) -> str:
    """Why nothing answers at HOST:PORT; empty if something does, or for other kinds of addresses.

    Ray itself would try for many minutes.
    """
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
    """A model's name in a form that can be part of a device's name."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")


def reason_of(error: Any) -> str:
    """One line on the exception that a task raised; Ray wraps that exception in `error`."""
    return describe(error.cause or error)[1]
