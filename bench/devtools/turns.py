"""Two processes with the same benchmarks take turns, one round each, so that a machine that drifts favours neither.

The timed gate starts a process for each side, with a pipe in each direction. A process waits for its turn before its
first benchmark, and before every round of one hands it over and waits until it comes back; what it does between two
rounds, setting up and checking included, it does in its own turn: torch's threads wait for work busily, and two
processes that use all cores at once take many times as long as one after the other. Times of one and the same code
differ by a fifth from process to process on a shared machine: rounds that lie milliseconds apart don't see most of
that.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

VARIABLE = "BENCHMARK_TURNS"
"""Of the environment: file descriptors to read and to write, and 1 for the process that begins."""
ROUNDS, WARM_UP = 30, 3
TASKS = Path("/proc/self/task")


@dataclass
class Turns:
    """This process's end of the two pipes; does nothing where there is no other process, or no more."""

    read: int | None = None
    write: int | None = None
    ours: bool = True
    met: bool = field(default=False, init=False)
    """Both have loaded their modules, and the first turn has begun."""

    @classmethod
    def given(cls, environment: Mapping[str, str] = os.environ) -> Turns:
        """As the gate has set it."""
        if VARIABLE not in environment:
            return cls()
        read, write, first = environment[VARIABLE].split(",")
        return cls(int(read), int(write), first == "1")

    def take(self) -> None:
        """Return when it is this process's turn; at once where it is already. At first both wait for each other."""
        if not self.met:
            self.met = True
            self._send()
            self._receive()
        if not self.ours:
            self._receive()
            self.ours = True

    def next(self) -> None:
        """Hand the turn over and return when it comes back; without it, when it comes."""
        if self.write is not None and self.ours and self.met:
            settle()
            self.ours = False
            self._send()
        self.take()

    def end(self) -> None:
        """Take part no more. The other's last round is waited for: what follows would disturb it."""
        self.next()
        self._close()

    def _send(self) -> None:
        if self.write is not None:
            with contextlib.suppress(BrokenPipeError):  # the other process has ended: reading tells
                os.write(self.write, b".")

    def _receive(self) -> None:
        if self.read is not None and os.read(self.read, 1) == b"":  # has ended
            self._close()

    def _close(self) -> None:
        for end in (self.read, self.write):
            if end is not None:
                os.close(end)
        self.read = self.write = None


def settle() -> None:
    """Return when no other thread of this process runs, after 0.1 s at most.

    Those of OpenMP spin for some milliseconds after their last work, on a core that is the other process's by then:
    frozen steps of 10 ms took 12.
    """
    if not TASKS.is_dir():  # not Linux
        time.sleep(0.01)
        return
    for _ in range(100):
        if not _others_run():
            return
        time.sleep(0.001)


def _others_run() -> bool:
    """Whether the kernel has another thread of this process as running (proc(5)). Its CPU time tells too late: that of
    threads on other cores is known at the kernel's ticks.
    """
    for task in TASKS.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # has just ended
            state = (task / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
            if state == "R" and task.name != str(threading.get_native_id()):
                return True
    return False


TURNS = Turns.given()


def timed(benchmark: BenchmarkFixture, function: Callable[[], object], repeats: int = 1) -> None:
    """Time a function, taking turns; of a quick one several calls make a round, and its time is theirs together."""

    def calls() -> None:
        for _ in range(repeats):
            function()

    benchmark.pedantic(calls, setup=TURNS.next, rounds=ROUNDS, warmup_rounds=WARM_UP)
