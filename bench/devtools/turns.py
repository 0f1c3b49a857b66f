"""Lets two processes with the same benchmarks take turns, one round each, so that drift of the machine favours neither.

The timed gate starts one process per side, with a pipe in each direction. A process waits for its turn before its first
benchmark. Before every round of a benchmark it hands the turn over and waits until it gets it back. Everything between
two rounds, such as set-up and checks, happens in the process's own turn: torch's threads spin while they wait for work,
and two processes that use all cores at the same time take many times as long as one after the other.

On a shared machine, times of the same code differ by 20% between processes. Rounds that are milliseconds apart don't
see most of that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pytest_benchmark.fixture import BenchmarkFixture

from tl.machine import wait_for_threads

VARIABLE = "BENCHMARK_TURNS"
"""Environment variable with the file descriptors to read and to write, and 1 for the process that goes first."""
ROUNDS, WARM_UP = 30, 3


@dataclass
class Alternation:
    """This process's ends of the two pipes. It does nothing if there is no other process, or if that has ended."""

    read: int | None = None
    write: int | None = None
    ours: bool = True
    """True while it is this process's turn."""
    started: bool = field(default=False, init=False)
    """True once both processes have loaded their modules, and the first turn has begun."""

    @classmethod
    def given(cls, environment: Mapping[str, str] = os.environ) -> Alternation:
        """Make it from the variable that the gate has set; without the variable there is no other process."""
        if VARIABLE not in environment:
            return cls()
        read, write, first = environment[VARIABLE].split(",")
        return cls(int(read), int(write), first == "1")

    def take(self) -> None:
        """Return when it is this process's turn. The first call waits until both processes have called it."""
        if not self.started:
            self.started = True
            self._send()
            self._receive()
        if not self.ours:
            self._receive()
            self.ours = True

    def next(self) -> None:
        """Hand the turn over if this process has it, and return when this process gets it."""
        if self.write is not None and self.ours and self.started:
            wait_for_threads()
            self.ours = False
            self._send()
        self.take()

    def end(self) -> None:
        """Stop taking turns. It waits for the other's current round, which this process would disturb otherwise."""
        self.next()
        self._close()

    def _send(self) -> None:
        if self.write is not None:
            with contextlib.suppress(BrokenPipeError):  # the other process has ended; `_receive` handles that
                os.write(self.write, b".")

    def _receive(self) -> None:
        if self.read is not None and os.read(self.read, 1) == b"":  # the other process has ended
            self._close()

    def _close(self) -> None:
        for end in (self.read, self.write):
            if end is not None:
                os.close(end)
        self.read = self.write = None


TURNS = Alternation.given()


def timed(benchmark: BenchmarkFixture, function: Callable[[], object], repeats: int = 1) -> None:
    """Time a function, taking turns. A round is `repeats` calls, and its time is their sum."""

    def calls() -> None:
        for _ in range(repeats):
            function()

    benchmark.pedantic(calls, setup=TURNS.next, rounds=ROUNDS, warmup_rounds=WARM_UP)
