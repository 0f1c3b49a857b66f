"""Two processes with the same benchmarks take turns, one round each, so that a machine that drifts favours neither.

The timed gate starts a process for each side, with a pipe in each direction. Before every round a process hands the
turn over and waits until it comes back; what it does between two benchmarks it does in its own turn. Times of one and
the same code differ by a fifth from process to process on a shared machine: rounds that lie milliseconds apart don't
see most of that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pytest_benchmark.fixture import BenchmarkFixture

VARIABLE = "BENCHMARK_TURNS"
"""Of the environment: file descriptors to read and to write, and 1 for the process that begins."""
ROUNDS, WARM_UP = 30, 3


@dataclass
class Turns:
    """This process's end of the two pipes; does nothing where there is no other process, or no more."""

    read: int | None = None
    write: int | None = None
    ours: bool = True
    begun: bool = field(default=False, init=False)

    @classmethod
    def given(cls, environment: Mapping[str, str] = os.environ) -> Turns:
        """As the gate has set it."""
        if VARIABLE not in environment:
            return cls()
        read, write, first = environment[VARIABLE].split(",")
        return cls(int(read), int(write), first == "1")

    def next(self) -> None:
        """End this process's turn, if it has it, and return when the next one begins."""
        if self.read is None or self.write is None:
            return
        if self.ours and not self.begun:
            self.begun = True
            return
        try:
            if self.ours:
                os.write(self.write, b".")
            self.begun = self.ours = True
            alone = os.read(self.read, 1) == b""
        except OSError:
            alone = True
        if alone:  # the other process has ended
            self.read = self.write = None


TURNS = Turns.given()


def timed(benchmark: BenchmarkFixture, function: Callable[[], object], repeats: int = 1) -> None:
    """Time a function, taking turns; of a quick one several calls make a round, and its time is theirs together."""

    def calls() -> None:
        for _ in range(repeats):
            function()

    benchmark.pedantic(calls, setup=TURNS.next, rounds=ROUNDS, warmup_rounds=WARM_UP)
