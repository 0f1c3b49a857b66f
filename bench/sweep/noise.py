"""`bench doctor --noise`: measures the smallest difference in epoch time that this machine can show.

One small cell is compared with itself: it runs alternately under two labels, A B A B, each time in a process of its
own. The difference between the labels is noise. A difference between two real cells must be larger to mean anything.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from scipy.special import stdtrit

from bench.console import say, tell
from bench.execution.base import Executor, Limits
from bench.execution.executors import make_executor
from bench.execution.monitor import Monitor
from bench.store.environment import MachineState
from bench.store.records import Cell
from tl.config import TrainConfig
from tl.datasets import Splits, load_splits
from tl.errors import CacheWarning, UserError
from tl.images import checked_files, open_store
from tl.machine import usable_cores
from tl.weights import Weights

CONFIG = TrainConfig(backbone="timm:mobilenetv3_small_100", regime="finetune", weights="random", epochs=4, batch_size=4)
"""A network of many small operations, which is more sensitive to noise than a large one."""
FEWEST_PAIRS, MOST_PAIRS = 3, 8
BUDGET_SECONDS = 55.0
"""Time limit for all runs together, in seconds."""
LARGE = 0.05
"""Noise, relative to an epoch's time, above which we give advice."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise of the machine. All figures but `pairs` are relative: 0.01 is 1% of an epoch's time."""

    pairs: int
    """Number of pairs of runs."""
    one_run: float
    """Half-width of the 95% t interval of the log ratio of two neighbouring runs: two cells with one run each."""
    all_runs: float
    """Half-width of that interval for the mean over all pairs: two cells with `pairs` runs each."""
    mean: float
    """Geometric mean of B ÷ A, minus 1. Both are the same cell, so it should be within `all_runs` of 0."""
    drift: float
    """Change from the first run to the last, on a line fitted to the logarithms of all times."""


def noise(pairs: Sequence[tuple[float, float]]) -> Noise:
    """Compute the noise from epoch seconds of (A, B), in the order in which they ran. Needs two pairs or more."""
    ratios = [math.log(second / first) for first, second in pairs]
    count = len(ratios)
    half = float(stdtrit(count - 1, 0.975)) * statistics.stdev(ratios)
    logs = np.log(np.asarray(pairs, float).ravel())
    slope = float(np.polyfit(np.arange(len(logs)), logs, 1)[0])
    return Noise(
        pairs=count,
        one_run=math.expm1(half),
        all_runs=math.expm1(half / math.sqrt(count)),
        mean=math.expm1(statistics.fmean(ratios)),
        drift=math.expm1(slope * (len(logs) - 1)),
    )


def examine_noise() -> None:
    """Measure the noise and print it; this takes about a minute. Raises `UserError` if the cell fails."""
    console, executor = Console(), make_executor("process")
    device = next(iter(executor.devices()))
    splits = load_splits("synthetic-mini")
    open_store(splits)
    cell = Cell(config=CONFIG, weights_digest="", dataset_digest=splits.digest, device=device)
    say(console, f"running the same cell again and again, {cell}, for about a minute:")
    executor.prepare()
    monitor = Monitor(lambda text: None)
    pairs = measure(cell, splits, executor, console, monitor)
    state = monitor.end()
    found = noise(pairs)
    for line in _findings(found, statistics.median(seconds for pair in pairs for seconds in pair)):
        say(console, line)
    for text in dict.fromkeys(state.warnings):
        say(console, f"WARNING: {text}", style="yellow")
    if advice := _advice(found, busy=bool(state.warnings)):
        say(console, f"advice: {advice}", style="yellow")


def measure(
    cell: Cell, splits: Splits, executor: Executor, console: Console, monitor: Monitor
) -> list[tuple[float, float]]:
    """Epoch seconds of the cell as (A, B), for as many pairs as fit into the time limit.

    Raises `UserError` if there are too few pairs, or if the cell fails.
    """
    pairs: list[tuple[float, float]] = []
    deadline = time.monotonic() + BUDGET_SECONDS
    while len(pairs) < MOST_PAIRS:
        first, second = (_epoch_seconds(cell, splits, executor, deadline, monitor) for _ in "AB")
        if first is None or second is None:
            break
        pairs.append((first, second))
        times = f"A {first:.4f} s per epoch, B {second:.4f} s ({second / first - 1:+.1%})"
        say(console, f"  pair {len(pairs)} of at most {MOST_PAIRS}: {times}")
    if len(pairs) < FEWEST_PAIRS:
        raise UserError(
            f"only {len(pairs)} pairs of runs in {BUDGET_SECONDS:.0f} s, and {FEWEST_PAIRS} are needed: "
            "the machine is too busy or too slow; end other programs and try again"
        )
    return pairs


def _epoch_seconds(cell: Cell, splits: Splits, executor: Executor, deadline: float, monitor: Monitor) -> float | None:
    """Run the cell once. None if it doesn't end before the deadline. Raises `UserError` if the cell fails."""
    left = deadline - time.monotonic()
    if left <= 0:
        return None
    weights = Weights(kind="random", source="random")

    def on_event(event: object) -> None:
        if isinstance(event, MachineState):
            monitor.receive(event)
        elif isinstance(event, CacheWarning):
            tell(f"WARNING: {event}")

    arguments = (cell, splits, weights, usable_cores(), checked_files())
    outcome = executor.call(
        "bench.execution.worker:run_cell", *arguments, limits=Limits(seconds=left), on_event=on_event
    )
    if outcome.status == "timeout":
        return None
    if outcome.status != "done":
        raise UserError(f"{cell}: {outcome.status}: {outcome.reason}")
    result, _ = outcome.value
    seconds: float = result.epoch_seconds
    return seconds


def _findings(found: Noise, seconds: float) -> list[str]:
    n = found.pairs
    return [
        f"smallest difference in epoch time that this machine shows (95%): {found.one_run:.1%} between two cells with "
        f"one run each, {found.all_runs:.1%} with {n} runs each",
        f"  n = {n} pairs, {seconds:.3f} s per epoch; half-widths of the t interval of log ratios between neighbouring "
        f"runs, for one pair and for the mean of {n}",
        f"  mean difference of B from A, which is the same cell: {found.mean:+.1%}",
        f"  drift from the first run to the last: {found.drift:+.1%}",
    ]


def _advice(found: Noise, *, busy: bool) -> str:
    """Advice in one line if the noise is large; otherwise empty."""
    if max(found.one_run, abs(found.drift)) <= LARGE:
        return ""
    if busy:
        return "end other programs on this machine, and measure again"
    if abs(found.drift) > found.one_run:
        return "the machine drifts, perhaps because it warms up: let it run for a while first; compare within one run"
    return "use mains power and a fixed clock, end other programs, or use more --seeds: n seeds reduce the noise by √n"
