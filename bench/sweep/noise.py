"""`bench doctor --noise`: how small a difference in epoch time this machine can show.

One small cell runs against itself, in turn under two labels, A B A B, each time in a process of its own. What
the two labels differ by is noise: a difference between two real cells must be larger to mean anything.
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

from bench.console import say
from bench.execution.base import Executor, Limits
from bench.execution.executors import make_executor
from bench.execution.monitor import Monitor
from bench.store.environment import MachineState
from bench.store.records import Cell
from tl.config import TrainConfig
from tl.datasets import Splits, load_splits
from tl.errors import UserError
from tl.images import open_store
from tl.machine import usable_cores
from tl.weights import Weights

CONFIG = TrainConfig(backbone="timm:mobilenetv3_small_100", regime="finetune", weights="random", epochs=4, batch_size=4)
"""A network of many small operations: a machine's noise shows more in it than in a large one."""
FEWEST_PAIRS, MOST_PAIRS = 3, 8
BUDGET_SECONDS = 55.0
"""No run goes on beyond that."""
LARGE = 0.05
"""Of an epoch's time: above that the advice is given."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Relative figures: 0.01 is 1% of an epoch's time."""

    pairs: int
    one_run: float
    """Half-width of the 95% t interval of the log ratio of two neighbouring runs: two cells, one run each."""
    all_runs: float
    """The same of the mean over all pairs: two cells with as many runs each."""
    mean: float
    """B over A, less 1, the geometric mean over pairs: the same cell, so it should be within `all_runs` of 0."""
    drift: float
    """Change from the first run to the last, on a line through the logarithms of all."""


def noise(pairs: Sequence[tuple[float, float]]) -> Noise:
    """From epoch seconds of A and B, pair by pair in the order in which they ran. Two pairs at least."""
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
    """Measure and print. Takes about a minute. Raises `UserError` where the cell can't be run."""
    console, executor = Console(), make_executor("process")
    device = next(iter(executor.devices()))
    splits = load_splits("synthetic-mini")
    open_store(splits)
    cell = Cell(config=CONFIG, weights_digest="", dataset_digest=splits.digest, device=device)
    say(console, f"the same cell again and again, {cell}, for about a minute:")
    executor.prepare()
    watch = Monitor(lambda text: None)
    pairs = measure(cell, splits, executor, console, watch)
    state = watch.end()
    found = noise(pairs)
    for line in _findings(found, statistics.median(seconds for pair in pairs for seconds in pair)):
        say(console, line)
    for text in dict.fromkeys(state.warnings):
        say(console, f"WARNING: {text}", style="yellow")
    if advice := _advice(found, busy=bool(state.warnings)):
        say(console, f"advice: {advice}", style="yellow")


def measure(
    cell: Cell, splits: Splits, executor: Executor, console: Console, watch: Monitor
) -> list[tuple[float, float]]:
    """Epoch seconds of the cell as A and as B, pair by pair, as many as fit into the time.

    Raises `UserError` where these are too few to say anything, or where the cell fails.
    """
    pairs: list[tuple[float, float]] = []
    deadline = time.monotonic() + BUDGET_SECONDS
    while len(pairs) < MOST_PAIRS:
        first, second = (_epoch_seconds(cell, splits, executor, deadline, watch) for _ in "AB")
        if first is None or second is None:
            break
        pairs.append((first, second))
        told = f"A {first:.4f} s an epoch, B {second:.4f} s ({second / first - 1:+.1%})"
        say(console, f"  pair {len(pairs)} of at most {MOST_PAIRS}: {told}")
    if len(pairs) < FEWEST_PAIRS:
        raise UserError(
            f"only {len(pairs)} pairs of runs in {BUDGET_SECONDS:.0f} s, and {FEWEST_PAIRS} are needed: "
            "the machine is too busy or too slow; end other programs and try again"
        )
    return pairs


def _epoch_seconds(cell: Cell, splits: Splits, executor: Executor, deadline: float, watch: Monitor) -> float | None:
    """None where the time is up before it ends. Raises `UserError` where the cell failed."""
    left = deadline - time.monotonic()
    if left <= 0:
        return None
    weights = Weights(kind="random", source="random")

    def on_event(told: object) -> None:
        if isinstance(told, MachineState):
            watch.receive(told)

    arguments = (cell, splits, weights, usable_cores())
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
        f"smallest difference in epoch time that shows here (95%): {found.one_run:.1%} between two cells with one "
        f"run each, {found.all_runs:.1%} with {n} runs each",
        f"  n = {n} pairs, {seconds:.3f} s an epoch; half-widths of the t interval of log ratios between neighbouring "
        f"runs, for one pair and for the mean of {n}",
        f"  B was {found.mean:+.1%} of A's time in the mean, and is the same cell",
        f"  drift from the first run to the last: {found.drift:+.1%}",
    ]


def _advice(found: Noise, *, busy: bool) -> str:
    """One line where the noise is large, else nothing."""
    if max(found.one_run, abs(found.drift)) <= LARGE:
        return ""
    if busy:
        return "end what else uses this machine, and measure again"
    if abs(found.drift) > found.one_run:
        return "the machine drifts, as one that warms up: let it run for a while first; compare within one run alone"
    return "use mains power and a fixed clock, end other programs, or take several --seeds: n of them narrow it by √n"
