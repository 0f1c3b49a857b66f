"""Monitors what else the machine does while a cell runs: other processes, the hypervisor, and the state of the GPU.

Counters are read once before and once after a cell. Polling in between would slow down what is measured. This module
doesn't import torch; the cell's process sends what only torch knows (see `bench.execution.worker`).
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
"""We warn if others use more cores than this. Operations wait for their slowest thread: 10% of a core costs 10%."""
BUSY_SHARE = 0.02
"""The same as a share of all cores. A large machine's own services use more than `BUSY_CORES` and disturb nothing."""
BUSY_SECONDS = 0.1
"""We ignore less CPU time of others than this, in seconds. Counters advance in steps of 10 ms and err by as much."""
BUSY_GPU_PERCENT = 10
EFFECT = "while the cell ran: its times are too long"
CHECK_SECONDS = 0.25
RECENT_SECONDS = 10.0
"""A longer time says little about how busy the CPU is now."""
CHECK_CORES = 0.25
"""Cores in use by others that `busy_warning` detects reliably. Counters advance in steps of 10 ms per core."""

_STAT = Path("/proc/stat")


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Counters of the machine at one moment, in seconds."""

    at: float
    """Time of a monotonic clock."""
    busy: float
    """CPU time of all processes on the cores that this process may use."""
    stolen: float
    """Time in which the hypervisor ran something else on one of those cores."""
    own: float
    """CPU time of this process and all its descendants, including those that have ended."""


class Monitor:
    """Monitors the machine from its construction to `end`. It passes each warning, one line, to `report`."""

    def __init__(self, report: Callable[[str], None], *, effect: str = EFFECT, partners: int = 0) -> None:
        """`effect` ends a warning of other processes.

        `partners` is the number of other processes of ours that hold memory of the same GPU, but don't use it.
        """
        self._report, self._effect, self._partners = report, effect, partners
        self._state = MachineState(
            governor=cpu_governor(),
            load_before=_load(),
            memory_available_bytes=psutil.virtual_memory().available,
        )
        self._before = read_counters()

    def receive(self, part: MachineState) -> None:
        """Add what the cell's process has sent."""
        self._add(**{name: getattr(part, name) for name in part.model_fields_set})
        if part.gpu_before:
            self._warn(*_busy_gpu(part.gpu_before), *self._shared_gpu(part.gpu_before, "before the cell began"))
        if part.gpu_after:
            self._warn(*self._shared_gpu(part.gpu_after, "as training ended"))

    def end(self) -> MachineState:
        """Return what was observed. The cell's process must have ended, so that its CPU time counts as our own."""
        after = read_counters()
        self._add(load_after=_load())
        if self._before and after:
            cores = len(core_numbers())
            other, stolen = shares(self._before, after, cores)
            self._add(other_cpu_share=other, steal_share=stolen)
            wall = after.at - self._before.at
            if _noticeable(other, cores, wall):
                self._warn(f"other processes took {other * cores:.2g} of {cores} cores {self._effect}")
            if _noticeable(stolen, cores, wall):
                self._warn(f"the hypervisor took {stolen * cores:.2g} of {cores} cores away (steal) {self._effect}")
        return self._state

    def _shared_gpu(self, state: GpuState, when: str) -> list[str]:
        found, others = [], (state.other_processes or 0) - self._partners
        if others > 0:
            several = "es" if others > 1 else ""
            found.append(f"{others} other process{several} on the GPU {when}: times and free memory suffer")
        slowed = [reason for reason in state.throttle_reasons or () if reason in gpu.SLOWDOWNS]
        if slowed:
            found.append(f"the GPU slowed itself down {when} ({', '.join(slowed)}): times are too long")
        return found

    def _add(self, **fields: object) -> None:
        self._state = self._state.replace(**fields)

    def _warn(self, *texts: str) -> None:
        self._add(warnings=(*self._state.warnings, *texts))
        for text in texts:
            self._report(text)


def busy_warning(since: Counters | None = None) -> str:
    """Check for `CHECK_SECONDS` whether the CPU is busy, before measuring. Returns a warning, or an empty text.

    With counters that were read up to `RECENT_SECONDS` ago, the check begins there, and need not wait.
    """
    before = read_counters()
    if before is None:
        return ""
    passed = before.at - since.at if since else 0.0
    if since and passed < RECENT_SECONDS:
        before = since
        time.sleep(max(0.0, CHECK_SECONDS - passed))
    else:
        time.sleep(CHECK_SECONDS)
    after, cores = read_counters(), len(core_numbers())
    if after is None:
        return ""
    other, stolen = (share * cores for share in shares(before, after, cores))
    if max(other, stolen) < max(CHECK_CORES, BUSY_SHARE * cores):
        return ""
    what = "other processes use" if other > stolen else "the hypervisor takes"
    return f"{what} {max(other, stolen):.1f} of {cores} cores now: times will be too long and will vary"


def shares(before: Counters, after: Counters, cores: int) -> tuple[float, float]:
    """Shares in [0, 1] of the cores' time that other processes used and that the hypervisor took away."""
    # Counters are rounded, and some kernels count stolen time as the process's own: the difference can be negative.
    other, stolen = (after.busy - before.busy) - (after.own - before.own), after.stolen - before.stolen
    whole = (after.at - before.at) * cores
    return min(1.0, max(0.0, other) / whole), min(1.0, max(0.0, stolen) / whole)


def read_counters() -> Counters | None:
    """The counters now; None without /proc/stat (not Linux), or if it holds only zeros (some sandboxes)."""
    try:
        busy, stolen = parse_stat(_STAT.read_text(encoding="ascii"), core_numbers())
    except OSError:
        return None
    if not busy:
        return None
    return Counters(at=time.perf_counter(), busy=busy, stolen=stolen, own=_own_seconds())


def parse_stat(text: str, cores: Collection[int]) -> tuple[float, float]:
    """Busy and stolen seconds since boot, summed over `cores`; `text` is the content of /proc/stat."""
    tick = os.sysconf("SC_CLK_TCK")
    busy = stolen = 0.0
    for line in text.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
            # The guest times, which follow, are already included in `user` and `nice`.
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            busy += (user + nice + system + irq + softirq) / tick
            stolen += steal / tick
    return busy, stolen


def gpu_before(uuid: str) -> GpuState:
    """The GPU's state before a cell.

    NVML averages the utilisation over up to a second, so it may include the previous cell. We read it again then.
    """
    state = gpu.state(uuid)
    if (state.utilisation_percent or 0) > BUSY_GPU_PERCENT:
        time.sleep(1.0)
        state = gpu.state(uuid)
    return state


def _busy_gpu(state: GpuState) -> list[str]:
    """A warning if the GPU was in use. Utilisation is checked before a cell only: afterwards it is the cell's own."""
    if (state.utilisation_percent or 0) <= BUSY_GPU_PERCENT:
        return []
    return [f"the GPU was {state.utilisation_percent}% busy before the cell began: its times are too long"]


def _noticeable(share: float, cores: int, wall: float) -> bool:
    used = share * cores
    return used > max(BUSY_CORES, BUSY_SHARE * cores) and used * wall > BUSY_SECONDS


def _own_seconds() -> float:
    """CPU seconds of this process and its descendants; a parent's counters include its children that have ended."""
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
