"""What else a machine did while a cell ran: other processes, the hypervisor, and the state of a GPU.

Counters are read once before and once after a cell, and nothing in between: polling would take time from
what is measured. Imports no torch; what only torch knows, the cell's process tells (see `bench.execution.worker`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.store.environment import MachineState
from tl import gpu
from tl.gpu import GpuState
from tl.machine import core_numbers, cpu_governor

BUSY_CORES = 0.1
"""A tenth of one core: an operation waits for its slowest thread, so that much may cost a tenth of the time."""
BUSY_SHARE = 0.02
"""Of all cores: on a large machine its own services take more than a tenth of one core, and harm none."""
BUSY_SECONDS = 0.1
"""Of CPU time: below that the counters, which advance in steps of 10 ms each, say nothing of a short cell."""
BUSY_GPU_PERCENT = 10
LOOK_SECONDS = 0.25
LOOK_CORES = 0.25
"""For the short look: its counters advance in steps of 10 ms a core, so it sees no less than this for sure."""

_STAT = Path("/proc/stat")


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Seconds that have been counted up to one moment."""

    at: float
    """Of a clock that only runs forward."""
    busy: float
    """CPU time of all processes on the cores that this process may use."""
    stolen: float
    """Time in which a hypervisor had taken one of those cores away."""
    own: float
    """CPU time of this process and all that descend from it, ended ones included."""


class Monitor:
    """Looks at the machine from here to `end`; what disturbs a cell goes to `tell`, a line each."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._state = MachineState(
            governor=cpu_governor(),
            load_before=_load(),
            memory_available_bytes=psutil.virtual_memory().available,
        )
        self._before = read_counters()

    def receive(self, part: MachineState) -> None:
        """Take over what the cell's process knows."""
        self._add(**{name: getattr(part, name) for name in part.model_fields_set})
        if part.gpu_before:
            self._warn(*_busy_gpu(part.gpu_before), *_shared_gpu(part.gpu_before, "before the cell began"))
        if part.gpu_after:
            self._warn(*_shared_gpu(part.gpu_after, "as training ended"))

    def end(self) -> MachineState:
        """The cell is over, its process gone."""
        after = read_counters()
        self._add(load_after=_load())
        if self._before and after:
            cores = len(core_numbers())
            other, stolen = shares(self._before, after, cores)
            self._add(other_cpu_share=other, steal_share=stolen)
            slow = "while the cell ran: its times are too long"
            wall = after.at - self._before.at
            if _noticeable(other, cores, wall):
                self._warn(f"other processes took {other * cores:.2g} of {cores} cores {slow}")
            if _noticeable(stolen, cores, wall):
                self._warn(f"the hypervisor took {stolen * cores:.2g} of {cores} cores away (steal) {slow}")
        return self._state

    def _add(self, **fields: object) -> None:
        self._state = self._state.replace(**fields)

    def _warn(self, *texts: str) -> None:
        self._add(warnings=(*self._state.warnings, *texts))
        for text in texts:
            self._tell(text)


def busy_warning() -> str:
    """A short look at the CPU before anything is measured: a warning, or an empty text."""
    before = read_counters()
    if before is None:
        return ""
    time.sleep(LOOK_SECONDS)
    after, cores = read_counters(), len(core_numbers())
    if after is None:
        return ""
    other, stolen = (share * cores for share in shares(before, after, cores))
    if max(other, stolen) < max(LOOK_CORES, BUSY_SHARE * cores):
        return ""
    what = "other processes use" if other > stolen else "the hypervisor takes"
    return f"{what} {max(other, stolen):.1f} of {cores} cores now: times will be too long, and will move"


def shares(before: Counters, after: Counters, cores: int) -> tuple[float, float]:
    """Shares in [0, 1] of the cores' time that other processes used, and that was stolen."""
    # Counters are rounded, and a kernel may count stolen time as the process's own: never less than nothing.
    other = max(0.0, (after.busy - before.busy) - (after.own - before.own))
    whole = (after.at - before.at) * cores
    return min(1.0, other / whole), min(1.0, (after.stolen - before.stolen) / whole)


def read_counters() -> Counters | None:
    """The counters now; None where there is no /proc/stat (outside Linux), or only zeros in it (some sandboxes)."""
    try:
        busy, stolen = parse_stat(_STAT.read_text(encoding="ascii"), core_numbers())
    except OSError:
        return None
    if not busy:
        return None
    return Counters(at=time.perf_counter(), busy=busy, stolen=stolen, own=_own_seconds())


def parse_stat(text: str, cores: Collection[int]) -> tuple[float, float]:
    """Busy and stolen seconds of some cores since boot, from the text of /proc/stat."""
    tick = os.sysconf("SC_CLK_TCK")
    busy = stolen = 0.0
    for line in text.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
            # Guests' time, which would follow, is part of `user` and `nice` already.
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            busy += (user + nice + system + irq + softirq) / tick
            stolen += steal / tick
    return busy, stolen


def gpu_before(uuid: str) -> GpuState:
    """The GPU before a cell. NVML's utilisation looks back up to a second, and so might see the cell before."""
    state = gpu.state(uuid)
    if (state.utilisation_percent or 0) > BUSY_GPU_PERCENT:
        time.sleep(1.0)
        state = gpu.state(uuid)
    return state


def _busy_gpu(state: GpuState) -> list[str]:
    """Utilisation says something only before a cell: after it, it is the cell's own."""
    if (state.utilisation_percent or 0) <= BUSY_GPU_PERCENT:
        return []
    return [f"the GPU was {state.utilisation_percent}% busy before the cell began: its times are too long"]


def _shared_gpu(state: GpuState, when: str) -> list[str]:
    found = []
    if state.other_processes:
        several = "es" if state.other_processes > 1 else ""
        found.append(f"{state.other_processes} other process{several} on the GPU {when}: times and free memory suffer")
    slowed = [reason for reason in state.throttle_reasons or () if reason in gpu.SLOWDOWNS]
    if slowed:
        found.append(f"the GPU slowed itself down {when} ({', '.join(slowed)}): times are too long")
    return found


def _noticeable(share: float, cores: int, wall: float) -> bool:
    used = share * cores
    return used > max(BUSY_CORES, BUSY_SHARE * cores) and used * wall > BUSY_SECONDS


def _own_seconds() -> float:
    """CPU time of this process and its descendants, with what ended children have left to their parents."""
    me, seconds = psutil.Process(), 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None
