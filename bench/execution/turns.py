"""Times a process pair: one process per cell, all alive at the same time, of which one at a time takes a turn.

On a shared machine the speed of everything drifts by 15% within minutes. Two cells that run one after the other differ
by that; their neighbouring turns, a second apart, hardly do. Processes are prepared side by side. Then each in turn
runs its warm-up steps, and turns begin: a round has one turn of each process, and every second round has them in the
opposite order (A B, B A, A B …), so that drift favours none. A turn ends when no thread of its process runs. All turns
of all processes have the same number of training steps and of validation batches, which is chosen once, after warm-up.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Protocol, Self

import psutil

from bench.execution.base import Limits, Outcome, PairAttempt, PairEvents, PairJob
from bench.execution.failure import readable
from bench.execution.log import log_size, shorten
from bench.execution.monitor import Monitor
from bench.store.environment import Environment, MachineState, environment
from bench.store.pairs import SideStatus, TimedSide, Turns
from bench.store.records import Cell
from tl.errors import CacheWarning
from tl.images import checked_files
from tl.machine import usable_cores

TIME_CELL = "bench.execution.worker:time_cell"
TURN_SECONDS = {"fast": 0.3, "plain": 0.6}
"""Execution → length of the slowest process's turn, in seconds, unless a single step takes longer.

Shorter turns see less drift. But the cores' caches are cold at the beginning of each, and with `plain` workers load
batches beside the steps, at times that differ from step to step.
"""
WHOLE_SECONDS = 2.0
"""Where the ends of a pass are unlike its middle, turns are whole passes if an epoch takes at most this long."""
_FEW_GROUPS = 4
LEAST_ROUNDS = 6
"""Rounds of a pair, whatever time it is given: the median of fewer would be too close to a single turn."""


class RunningCall(Protocol):
    """A call in a process of its own that sends events and receives orders. Leaving its context ends the process."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def send(self, order: Any) -> None:
        """Send an order. Nothing happens if the process has ended: `receive` says so."""

    def receive(self) -> Any:
        """Wait for the next event; or return the `Outcome` once the call has ended."""


Start = Callable[..., RunningCall]
"""Starts `function(*arguments, orders, emit)` with `limits`; see `bench.execution.process.ProcessExecutor.start`."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A process sends this when its training is prepared. It then waits for the order `WARM_UP`."""

    train_batches: int
    """Training batches per epoch; 0 if nothing trains."""
    val_batches: int
    margin: int = 0
    """See `tl.timing.TimedTraining.margin`."""
    least: int = 1
    """See `tl.timing.TimedTraining.least`."""
    group: int = 1
    """See `tl.timing.TimedTraining.group`."""
    seconds: float
    """Seconds from the start of the call until now, by the process's own clock."""


@dataclass(frozen=True, kw_only=True)
class Warm:
    """A process sends this after its warm-up. Each order `(steps, batches)` is then a turn."""

    step_seconds: float
    """Seconds of a training step; 0.0 if nothing trains."""
    batch_seconds: float
    """Seconds of a validation batch."""
    peak_bytes: int | None = None
    """Peak memory so far, measured as that of a training; None if it is unknown."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A process sends this after each turn."""

    train_seconds: float | None
    train_images: int
    val_seconds: float
    val_images: int


_EFFECT = "while the pair was timed: its turns scatter more"
WARM_UP, END = "warm up", "end"
"""Orders to a process. After `END` its call returns a dictionary of fields of `TimedSide`."""


def run_pairs_one_by_one(start: Start, jobs: Iterable[PairJob], events: PairEvents, stop: Callable[[], bool]) -> None:
    """`Executor.run_pairs` for executors that time one pair at a time on this machine."""
    cached_environment = cache(environment)  # asking git and looking up package versions takes a moment
    for job in jobs:
        if stop():
            return
        events.pair_started(job.pair)
        events.pair_ended(job.pair, run_pair(start, job, events.warned, cached_environment))


def run_pair(
    start: Start,
    job: PairJob,
    warned: Callable[[str], None],
    get_environment: Callable[[], Environment] = environment,
) -> PairAttempt:
    """Time a pair now, on this machine.

    If memory doesn't suffice to make all its processes ready, or for two of them in their turns, they are timed one
    after the other, with the same rules, and the attempt says so in `apart`, with the sizes that are known. Once turns
    have begun, a process that dies ends neither the others nor what they have measured, as long as two are left to
    compare.
    """
    found, started, begun = get_environment(), datetime.now(UTC), time.perf_counter()
    before, monitor = log_size(job.log), Monitor(warned, effect=_EFFECT, partners=len(job.pair.cells) - 1)
    apart = _too_large(job)
    if not apart:
        sides = _Pair(start, job, monitor, warned).together()
        apart = _ran_out(job, sides)
    if apart:
        sides = _one_after_the_other(_Pair(start, job, monitor, warned).sides, job.pair.seconds)
    machine = monitor.end()
    with contextlib.suppress(OSError):  # if the disk fails, the result matters more than its log
        shorten(job.log, before)
    done = [side for side in sides if side.result.status == "done"]
    lost = sorted((side for side in sides if side.result.status != "done"), key=_last_to_name)
    status: SideStatus = "done" if len(done) >= 2 else lost[0].result.status
    reason = "" if len(done) >= 2 else f"{lost[0].cell.config.regime}: {lost[0].result.reason}"
    return PairAttempt(
        status=status,
        reason=reason,
        apart=apart,
        steps=sides[0].steps,
        batches=sides[0].batches,
        sides=tuple(side.result for side in sides),
        started=started,
        wall_seconds=time.perf_counter() - begun,
        environment=found,
        machine=machine,
    )


def _too_large(job: PairJob) -> str:
    """Why the cells can't be alive at the same time, with the sizes; empty if they can, or if that is unknown."""
    if not job.needed_bytes or None in job.needed_bytes or job.pair.cells[0].device.partition("@")[0] != "cpu":
        return ""
    needed, free = sum(filter(None, job.needed_bytes)), psutil.virtual_memory().available
    if needed <= free:
        return ""
    sizes = " + ".join(readable(size) for size in job.needed_bytes if size is not None)
    return f"together they need {sizes} of memory, and {readable(free)} are free"


def _ran_out(job: PairJob, sides: Sequence[_Side]) -> str:
    """Why the cells must be timed one after the other: memory ran out although each of them may have enough alone.

    Empty if it didn't, if a process ran out of what it may use alone, and if two have turns that would be lost.
    """
    lost = next((side for side in sides if side.ran_out_beside_others), None)
    if lost is None or sum(side.result.status == "done" for side in sides) >= 2:
        return ""
    sizes = []
    for side, before in zip(sides, job.needed_bytes or (None,) * len(sides), strict=True):
        if peak := max(before or 0, side.peak_bytes or 0):
            sizes.append(f"{side.cell.config.regime} {readable(peak)}")
    known = f"; known peaks: {', '.join(sizes)}" if sizes else ""
    return f"{lost.cell.config.regime} failed beside the others: {lost.result.reason}{known}"


def _last_to_name(side: _Side) -> tuple[bool, bool]:
    """Sorts sides that are lost: first those that another attempt may save, last those that lost nothing themselves."""
    return side.abandoned, side.result.status in ("diverged", "skipped")


class _Side:
    """One process of a pair, as its parent sees it."""

    def __init__(
        self, start: Start, job: PairJob, number: int, monitor: Monitor, warned: Callable[[str], None]
    ) -> None:
        self.cell, self._weights = job.pair.cells[number], job.weights[number]
        self.steps = self.batches = 0
        self.turns: list[Taken] = []
        self.peak_bytes: int | None = None
        """Peak memory when it was warm; None if it is unknown."""
        self._start, self._job = start, job
        self._monitor, self._warned = monitor, warned
        self._call: RunningCall | None = None
        self._outcome: Outcome | None = None
        self._marks: list[float] = []
        """Seconds that its preparation and its warm-up took."""

    @property
    def alive(self) -> bool:
        """True until its call has ended."""
        return self._outcome is None

    @property
    def abandoned(self) -> bool:
        """True if its process did all that it was asked for, and no other was left to compare it with."""
        return self._outcome is not None and self._outcome.status == "done"

    @property
    def ran_out_beside_others(self) -> bool:
        """True if memory ran out that it may have alone. A limit of its own is the same then."""
        outcome = self._outcome
        own = outcome is not None and outcome.at_limit and self.cell.device.partition("@")[0] == "cpu"
        return outcome is not None and outcome.status == "oom" and not own

    def begin(self, stack: ExitStack) -> None:
        """Start its process; the stack ends it."""
        job = self._job
        threads = min(job.threads or usable_cores(), usable_cores())
        arguments = (self.cell, job.splits, self._weights, threads, checked_files(), job.pair.number)
        limits = Limits(seconds=job.timeout_seconds, memory_bytes=job.memory_bytes, log=job.log)
        self._call = stack.enter_context(self._start(TIME_CELL, *arguments, limits=limits))

    def answer(self, order: Any = None) -> Any:
        """Send an order, if one is given, and return the process's answer; None if it has ended."""
        assert self._call is not None
        if order is not None:
            self._call.send(order)
        while True:
            event = self._call.receive()
            if isinstance(event, Outcome):
                self._outcome = event
                return None
            if isinstance(event, MachineState):
                self._monitor.receive(event)
            elif isinstance(event, CacheWarning):
                self._warned(str(event))
            else:
                return event

    def prepared(self) -> Prepared | None:
        """Wait until its training is prepared."""
        answer: Prepared | None = self.answer()
        if answer:
            self._marks.append(answer.seconds)
        return answer

    def warm_up(self) -> Warm | None:
        """Let it run its warm-up steps."""
        begun = time.perf_counter()
        answer: Warm | None = self.answer(WARM_UP)
        if answer:
            self._marks.append(time.perf_counter() - begun)
            self.peak_bytes = answer.peak_bytes
        return answer

    def take_turn(self, *, counts: bool = True) -> None:
        """Let it take a turn."""
        taken: Taken | None = self.answer((self.steps, self.batches))
        if taken and counts:
            self.turns.append(taken)

    def end(self) -> None:
        """Let its call return."""
        if self.alive:
            self.answer(END)
            assert self._outcome is not None

    @property
    def result(self) -> TimedSide:
        """What it measured. Its call must have ended."""
        outcome = self._outcome
        if outcome is None or outcome.status != "done" or not self.turns:
            reason = outcome.reason if outcome else ""
            return TimedSide(
                status=outcome.status if outcome and outcome.status != "done" else "failed",
                reason=reason or "it took no turn, because no other process was left to compare it with",
                traceback=outcome.traceback if outcome else "",
            )
        trains = self.turns[0].train_seconds is not None
        return TimedSide(
            status="done",
            turns=Turns(
                train_seconds=tuple(turn.train_seconds for turn in self.turns) if trains else (),
                train_images=tuple(turn.train_images for turn in self.turns) if trains else (),
                val_seconds=tuple(turn.val_seconds for turn in self.turns),
                val_images=tuple(turn.val_images for turn in self.turns),
            ),
            setup_seconds=self._marks[0],
            warm_up_seconds=self._marks[1],
            **outcome.value,
        )


@dataclass
class _Pair:
    """The processes of a pair that is timed now."""

    start: Start
    job: PairJob
    monitor: Monitor
    warned: Callable[[str], None]
    sides: list[_Side] = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.job.pair.cells)
        self.sides = [_Side(self.start, self.job, number, self.monitor, self.warned) for number in range(count)]

    def together(self) -> list[_Side]:
        """Time all cells in turns."""
        with ExitStack() as stack:
            for side in self.sides:
                side.begin(stack)
            ready = [(side, side.prepared()) for side in self.sides]
            warm = [(side, prepared, side.warm_up()) for side, prepared in ready if prepared]
            sizes = [(prepared, seconds) for _, prepared, seconds in warm if seconds]
            # Nothing is measured yet, so nothing is lost if they are timed one after the other instead.
            if len(self._alive) >= 2 and not any(side.ran_out_beside_others for side in self.sides):
                steps, batches = turn_size(sizes, turn_seconds(self.job.pair.cells))
                for side in self.sides:
                    side.steps, side.batches = steps, batches
                self._rounds()
            for side in self.sides:
                side.end()
        return self.sides

    @property
    def _alive(self) -> list[_Side]:
        return [side for side in self.sides if side.alive]

    def _rounds(self) -> None:
        """Let the processes take turns, first in a round that doesn't count, since its turns are the first of their
        length.
        """
        self._round(forwards=False, counts=False)
        begun, number = time.perf_counter(), 0
        while len(self._alive) >= 2:
            self._round(forwards=number % 2 == 0)
            number += 1
            enough = time.perf_counter() - begun >= self.job.pair.seconds and number >= LEAST_ROUNDS
            if enough and number % 2 == 0:
                break

    def _round(self, *, forwards: bool, counts: bool = True) -> None:
        sides = self._alive
        for side in sides if forwards else reversed(sides):
            side.take_turn(counts=counts)


def _one_after_the_other(sides: list[_Side], pair_seconds: float) -> list[_Side]:
    """Time the cells one after the other, each with as many turns as the first one that is done."""
    size: tuple[int, int] | None = None
    seconds = pair_seconds / len(sides)
    for side in sides:
        with ExitStack() as stack:
            side.begin(stack)
            prepared = side.prepared()
            warm = side.warm_up() if prepared else None
            if prepared and warm:
                size = size or turn_size([(prepared, warm)], turn_seconds([each.cell for each in sides]))
                side.steps, side.batches = size
                side.take_turn(counts=False)
                most = max((len(other.turns) for other in sides if other.result.status == "done"), default=0)
                begun = time.perf_counter()
                while side.alive and (
                    len(side.turns) < most
                    if most
                    else time.perf_counter() - begun < seconds or len(side.turns) < LEAST_ROUNDS
                ):
                    side.take_turn()
            side.end()
    for side in sides:
        side.steps, side.batches = size or (0, 0)
    return sides


def turn_seconds(cells: Iterable[Cell]) -> float:
    """The length of a turn that suits all these cells."""
    return max(TURN_SECONDS[cell.config.execution] for cell in cells)


def turn_size(sizes: Sequence[tuple[Prepared, Warm]], seconds: float) -> tuple[int, int]:
    """Training steps and validation batches of a turn, in about the proportion that they have in an epoch.

    The slowest process's turn takes about `seconds`, but there is at least one of each, and at most an epoch.
    Training steps are 0 if nothing trains in any process.

    Where the ends of a pass are unlike its middle (`Prepared.margin`), a turn is a piece of the middle, or a whole
    pass if that is short or has no room for such a piece. If a process runs its network on several batches at once, a
    turn has whole groups of them.
    """
    prepared = max((each for each, _ in sizes), key=lambda each: each.train_batches)
    if prepared.train_batches:
        share = prepared.val_batches / prepared.train_batches
        slowest = max(warm.step_seconds + share * warm.batch_seconds for _, warm in sizes)
        steps = _between(seconds / slowest, prepared.train_batches)
        batches = _between(steps * share, prepared.val_batches)
        epoch = slowest * prepared.train_batches
    else:
        slowest = max(warm.batch_seconds for _, warm in sizes)
        steps, batches = 0, _between(seconds / slowest, prepared.val_batches)
        epoch = slowest * prepared.val_batches
    group = math.lcm(*(each.group for each, _ in sizes))
    steps, batches = _whole(steps, prepared.train_batches, group), _whole(batches, prepared.val_batches, group)
    if margin := max(each.margin for each, _ in sizes):
        least = _whole(max(each.least for each, _ in sizes), prepared.val_batches, group)
        steps = _piece(max(steps, least), prepared.train_batches, margin, epoch) if steps else 0
        batches = _piece(max(batches, least), prepared.val_batches, margin, epoch)
    return steps, batches


def _whole(size: int, per_pass: int, group: int) -> int:
    """Whole groups of batches, at least `size`; or a pass, if that has few groups: its last one may be much smaller."""
    if group == 1 or not size:
        return size
    return per_pass if per_pass < _FEW_GROUPS * group else math.ceil(size / group) * group


def _piece(size: int, per_pass: int, margin: int, epoch_seconds: float) -> int:
    """A piece from the middle of a pass, of this size, or the whole pass."""
    whole = epoch_seconds <= WHOLE_SECONDS or size + 2 * margin > per_pass
    return per_pass if whole else size


def _between(value: float, most: int) -> int:
    return max(1, min(most, round(value)))
