"""`bench doctor --noise`: measures the smallest difference in epoch time that this machine can show in a minute.

One small cell is compared with itself, by process pairs as a sweep compares two cells: two processes of the cell take
turns. Their difference is noise. A difference between two real cells must be larger to mean anything.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from bench.analysis.metrics import signed
from bench.analysis.paired import compare_twins, epoch_seconds
from bench.analysis.stats import MIN_SAMPLES
from bench.analysis.words import counted
from bench.console import say
from bench.execution.base import Executor, PairAttempt, PairJob
from bench.execution.executors import make_executor
from bench.store.pairs import PairRecord
from bench.store.records import Cell, PlannedPair
from bench.sweep.pairs import make_pair_record
from tl.config import TrainConfig
from tl.datasets import Splits, load_splits
from tl.errors import UserError
from tl.images import open_store
from tl.weights import Weights

CONFIG = TrainConfig(backbone="timm:mobilenetv3_small_100", regime="finetune", weights="random", batch_size=4)
"""A network of many small operations, which is more sensitive to noise than a large one."""
MOST_PAIRS = 20
PAIR_SECONDS = 3.0
"""Time for the turns of a pair, in seconds."""
BUDGET_SECONDS = 55.0
"""Time limit for all pairs together, in seconds."""
LARGE = 0.05
"""Noise, relative to an epoch's time, above which we give advice."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise of the machine. All figures but `pairs` and `seconds` are relative: 0.01 is 1% of an epoch's time."""

    pairs: int
    smallest: float
    """Half-width of the 95% interval of the ratio: the smallest difference that shows."""
    mean: float
    """Second process ÷ first, minus 1. Both run the same, so it should be within `smallest` of 0."""
    scatter: float
    """Standard deviation of the pairs' log ratios."""
    within: float | None
    """Standard deviation of the log ratios of a pair's rounds, typically."""
    drift: float
    """Change of the epoch's time from the first pair to the last, on a line fitted to its logarithms.

    Ratios are free of it.
    """
    seconds: float
    """Typical seconds per epoch."""


def noise(records: Sequence[PairRecord]) -> Noise:
    """Compute the noise from pairs whose two processes ran the same cell. Needs `MIN_SAMPLES` pairs."""
    found = compare_twins(records)
    if found is None or found.speed_up is None or found.speed_up.half_width is None or found.scatter is None:
        raise ValueError(f"fewer than {MIN_SAMPLES} pairs")
    times = [statistics.median(epoch_seconds(one, side)) for one in records for side in one.sides if side.turns]
    by_pair = np.log(np.asarray(times)).reshape(-1, 2).mean(axis=1)
    slope = float(np.polyfit(np.arange(len(by_pair)), by_pair, 1)[0])
    return Noise(
        pairs=found.pairs,
        smallest=found.speed_up.half_width,
        mean=1 / found.speed_up.value - 1,
        scatter=found.scatter,
        within=found.within,
        drift=math.expm1(slope * (len(by_pair) - 1)),
        seconds=statistics.median(times),
    )


def examine_noise() -> None:
    """Measure the noise and print it; this takes about a minute. Raises `UserError` if the cell fails."""
    console, executor = Console(), make_executor("process")
    device = next(iter(executor.devices()))
    splits = load_splits("synthetic-mini")
    open_store(splits)
    cell = Cell(config=CONFIG, weights_digest="", dataset_digest=splits.digest, device=device)
    say(console, f"timing two processes that run the same cell, in turns, for about a minute: {cell}")
    executor.prepare()
    events = measure(cell, splits, executor, console)
    found = noise(events.records)
    for line in _findings(found):
        say(console, line)
    if advice := _advice(found, busy=events.busy):
        say(console, f"advice: {advice}", style="yellow")


def measure(cell: Cell, splits: Splits, executor: Executor, console: Console) -> Measurement:
    """Time as many pairs of two processes of the cell as fit into the time limit.

    Raises `UserError` if there are too few pairs, or if the cell fails.
    """
    events = Measurement(splits, console)
    with tempfile.TemporaryDirectory(prefix="tl-bench-") as logs:
        executor.run_pairs(_jobs(cell, splits, Path(logs), events), events, lambda: events.failed is not None)
    if events.failed:
        raise UserError(f"{cell}: {events.failed.status}: {events.failed.reason}")
    some = counted(len(events.records), "process pair")
    if len(events.records) < MIN_SAMPLES and events.apart:
        raise UserError(
            f"only {some} took turns, and {MIN_SAMPLES} are needed: others were timed one after the other, because "
            f"{events.apart}; end other programs and try again"
        )
    if len(events.records) < MIN_SAMPLES:
        raise UserError(
            f"only {some} ended in {BUDGET_SECONDS:.0f} s, and {MIN_SAMPLES} are needed: the machine is too busy or "
            "too slow; end other programs and try again"
        )
    return events


@dataclass
class Measurement:
    """The pairs that have ended, and what happened meanwhile. It implements `PairEvents`."""

    splits: Splits
    console: Console
    records: list[PairRecord] = field(default_factory=list)
    """Pairs with a result, whose processes took turns."""
    apart: str = ""
    """Why pairs without a place among the records were timed one after the other; empty if none was."""
    failed: PairAttempt | None = None
    busy: bool = False
    """True if something else used the machine."""

    def pair_started(self, pair: PlannedPair) -> None:  # noqa: D102 - see PairEvents
        pass

    def warned(self, text: str) -> None:  # noqa: D102 - see PairEvents
        self.busy = True
        say(self.console, f"  WARNING: {text}", style="yellow")

    def pair_ended(self, pair: PlannedPair, attempt: PairAttempt) -> None:  # noqa: D102 - see PairEvents
        if attempt.status == "timeout":
            return  # the time is up
        if attempt.status != "done":
            self.failed = attempt
            return
        if attempt.apart:  # their difference has what the machine does within seconds, which turns are free of
            self.apart = attempt.apart
            text = f"pair {pair.number + 1} doesn't count: it was timed one after the other, because {attempt.apart}"
            say(self.console, f"  WARNING: {text}", style="yellow")
            return
        record = make_pair_record(pair, attempt, self.splits, order=len(self.records))
        self.records.append(record)
        found = compare_twins([record])
        assert found and found.speed_up
        longer = 1 / found.speed_up.value - 1
        said = f"the second process was {abs(longer):.1%} {'slower' if longer > 0 else 'faster'} than the first"
        say(self.console, f"  pair {len(self.records)}: {said}, over {found.rounds[0]} rounds")


def _jobs(cell: Cell, splits: Splits, logs: Path, events: Measurement) -> Iterator[PairJob]:
    """Yield pairs while another of the usual length fits into the time limit; at first as many as are needed."""
    deadline = time.monotonic() + BUDGET_SECONDS
    for number in range(MOST_PAIRS):
        left = deadline - time.monotonic()
        usual = max((one.wall_seconds for one in events.records), default=0.0)
        if left <= (usual if number >= MIN_SAMPLES else 0):
            return
        pair = PlannedPair(cells=(cell, cell), number=number, seconds=PAIR_SECONDS)
        weights = Weights(kind="random", source="random")
        yield PairJob(
            pair=pair, splits=splits, weights=(weights,) * 2, log=logs / f"{pair.id}.log", timeout_seconds=left
        )


def _findings(found: Noise) -> list[str]:
    within = "" if found.within is None else f", those of the rounds within a pair by {found.within:.1%}"
    return [
        f"smallest difference in epoch time that this machine shows in a minute (95%): {found.smallest:.1%}",
        f"  this is the half-width of the t interval of the ratio, over {found.pairs} process pairs",
        f"  an epoch takes {found.seconds:.3f} s",
        f"  the ratios of pairs scatter by {found.scatter:.1%}{within}",
        f"  mean difference of the second process from the first: {signed(found.mean, '.1%')} (both run the same)",
        f"  drift of the epoch time from the first pair to the last: {signed(found.drift, '.1%')} (not in the ratios)",
    ]


def _advice(found: Noise, *, busy: bool) -> str:
    """Advice in one line if the noise is large; otherwise empty."""
    if found.smallest <= LARGE:
        return ""
    if busy:
        return "end other programs on this machine, and measure again"
    return (
        "use mains power and a fixed clock, or end other programs; if that doesn't help, give `run` and `time` more "
        "--pairs: four times as many halve the noise"
    )
