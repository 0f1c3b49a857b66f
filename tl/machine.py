"""Facts about the machine, and settings of this process. This module doesn't import torch."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tl.errors import DeviceError, UserError


@dataclass(frozen=True)
class DeviceKey:
    """The name of a device in its parts; `str(key)` is the text that cells and records have."""

    name: str
    """The name that torch uses: `cpu`, `cuda:0`, `mps`."""
    machine: str = ""
    """The kind of machine that has it, on a cluster; empty elsewhere."""

    @classmethod
    def parse(cls, text: str) -> DeviceKey:
        """Take apart `NAME` or `NAME@MACHINE`."""
        name, _, machine = text.partition("@")
        return cls(name, machine)

    @property
    def kind(self) -> str:
        """The name without a number: `cuda` of `cuda:0`."""
        return self.name.partition(":")[0]

    def means(self, other: DeviceKey) -> bool:
        """True if this name, as a user writes it, can mean `other`.

        `cuda` means `cuda:0`, and a name without a machine means any machine.
        """
        name = "cuda:0" if self.name == "cuda" else self.name
        return name == other.name and self.machine in ("", other.machine)

    def __str__(self) -> str:
        return f"{self.name}@{self.machine}" if self.machine else self.name


def cpu_name() -> str:
    """Return the processor's model name, as the operating system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_governor() -> str:
    """Return the frequency governor of the first core, such as `performance`; empty if it is unknown."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def core_numbers() -> set[int]:
    """Return the numbers of the logical cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Return how many logical cores this process may run on."""
    return len(core_numbers())


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Switch Python's garbage collector off inside the block.

    It may begin at any time, and so disturb what is measured. Records are many objects without cycles: scanning them
    again and again takes a third of the time of reading ten thousand.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


PAGES_KEPT = "glibc, freed pages kept"
"""What records say of the allocator after `keep_freed_pages`."""
_pages_kept = False


def keep_freed_pages() -> bool:
    """Make glibc's allocator keep freed memory for the next tensor. Returns True if that worked.

    By default glibc maps every large block anew and returns it to the kernel. The page faults cost networks of many
    small operations up to half of their time on a CPU. The setting lasts for the life of this process.
    """
    global _pages_kept
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    _pages_kept = bool(mallopt(mmap_threshold, 1 << 30)) and bool(mallopt(trim_threshold, (1 << 31) - 1))
    return _pages_kept


def allocator() -> str:
    """Return what records say of the C library's allocator: its setting in this process."""
    return PAGES_KEPT if _pages_kept else "default"


def limit_memory(size: int) -> None:
    """Limit main memory of this process and of each of its children to `size` bytes more than this process has now.

    The kernel counts private writable memory, written or not, and refuses more (`RLIMIT_DATA`, getrlimit(2)). Raises
    `UserError` outside Linux, where kernels don't.
    """
    import resource

    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError as error:
        raise UserError("a limit on memory needs Linux") from error
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:"))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = 1024 * kib + size
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def lift_memory_limit() -> None:
    """Undo `limit_memory`."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


_PROCESSES = Path("/proc")
_LONGEST_WAIT_SECONDS = 0.1


def wait_for_threads() -> None:
    """Return when no other thread of this process is running, or after 0.1 s.

    OpenMP's threads spin for some milliseconds after their last work. By then the core belongs to the other process
    that takes turns with this one, whose frozen steps took 12 ms instead of 10.
    """
    if not (_PROCESSES / "self" / "task").is_dir():  # not Linux
        time.sleep(0.01)
        return
    deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
    while _other_threads_run() and time.monotonic() < deadline:
        time.sleep(0.001)


def stop_processes(numbers: Iterable[int]) -> None:
    """Stop these processes until `resume_processes`. Nothing happens to one that has ended."""
    for number in numbers:
        with contextlib.suppress(psutil.Error):
            psutil.Process(number).suspend()


def resume_processes(numbers: Iterable[int]) -> None:
    """Let these processes go on, stopped or not. Nothing happens to one that has ended."""
    for number in numbers:
        with contextlib.suppress(psutil.Error):
            psutil.Process(number).resume()


def _other_threads_run() -> bool:
    """True if another thread of this process is running or waits for a disk, according to its state in proc(5).

    Its CPU time would show that too late: the kernel updates it at its ticks only, for threads on other cores.
    """
    this = str(threading.get_native_id())
    for task in (_PROCESSES / "self" / "task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
            state = (task / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
            if state in "RD" and task.name != this:
                return True
    return False


def pick(device: str, have: dict[str, str]) -> str:
    """Return the key of `have` that `device` means: `auto` → the first one, `cuda` → `cuda:0`, and on a cluster
    `cpu` → `cpu@KIND` if all its machines are of one kind. Raises `DeviceError` if there is none, or several.
    """
    name = next(iter(have)) if device == "auto" else device
    kinds = [each for each in have if DeviceKey.parse(name).means(DeviceKey.parse(each))]
    if len(kinds) > 1:
        raise DeviceError(
            f"device={device!r}: there are several kinds of it, {', '.join(kinds)}; name one of them, or use 'all'"
        )
    if not kinds:
        raise DeviceError(f"device={device!r}: not on this machine, which has {', '.join(have)}")
    return kinds[0]
