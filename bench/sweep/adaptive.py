"""Adaptive sampling, `run --until-decided`: add seeds one by one until every speed-up is known precisely enough."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

from rich.console import Console

from bench.analysis.claims import HALF_THE_TIME
from bench.analysis.groups import make_groups
from bench.analysis.stats import LEVEL, MIN_IN_ORDER, MIN_SAMPLES, Dependence, holm
from bench.analysis.verdicts import Finding, decide_claims, planned
from bench.console import say
from bench.execution.base import Executor
from bench.store.records import Record
from bench.sweep.execute import execute
from bench.sweep.folder import held
from bench.sweep.grid import Grid
from bench.sweep.options import Options
from bench.sweep.plan import Sweep, plan
from tl.errors import ConfigError

MAX_SEEDS = 10
"""Maximum number of seeds if neither `--max-seeds` nor `--budget` is given."""
MOST_SEEDS = 1_000
"""Maximum number of seeds with `--budget` alone."""
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When to stop adding seeds."""

    within: float = 0.05
    """Largest half-width of every speed-up's 95% interval, relative to the speed-up."""
    max_seeds: int = MAX_SEEDS
    budget_seconds: float | None = None
    """Time for the whole command, in seconds; None for no limit."""


def make_goal(
    grid: Grid, *, until_decided: bool, within: float | None, max_seeds: int | None, budget: str | None
) -> Goal | None:
    """The goal that the options ask for; None without `--until-decided`.

    `within` is in percent. Raises `ConfigError` if a value is out of range, or if the grid can't add seeds.
    """
    if not until_decided:
        for option, value in {"--within": within, "--max-seeds": max_seeds, "--budget": budget}.items():
            if value is not None:
                raise ConfigError(f"{option} {value} needs --until-decided")
        return None
    within_percent = 5.0 if within is None else within
    if not 0 < within_percent < 100:
        raise ConfigError(f"--within {within_percent:g} must be a percentage above 0 and below 100")
    seeds, epochs = grid.matrix.seeds, grid.shared_settings["epochs"]
    if not isinstance(seeds, int):
        raise ConfigError(
            f"--until-decided needs a number of seeds, but the grid lists its seeds ({seeds}); give one with --seeds"
        )
    if epochs < 2:
        raise ConfigError(f"--until-decided needs at least 2 epochs, since the first is warm-up; epochs={epochs}")
    least = max(MIN_SAMPLES, seeds)
    if max_seeds is not None and max_seeds < least:
        raise ConfigError(
            f"--max-seeds {max_seeds} must be at least {least} (an interval needs {MIN_SAMPLES}, the grid {seeds})"
        )
    return Goal(
        within=within_percent / 100,
        max_seeds=max_seeds or max(MAX_SEEDS if budget is None else MOST_SEEDS, least),
        budget_seconds=None if budget is None else seconds("--budget", budget),
    )


def seconds(option: str, text: str) -> float:
    """Convert a time such as `90`, `90s`, `10m` or `1.5h` to seconds. Raises `ConfigError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip())
    if not match or float(match[1]) == 0:
        raise ConfigError(f"{option} {text!r} must be a time above 0, such as 90s, 10m or 1.5h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def run_until_decided(
    whole: Sweep, grid: Grid, options: Options, executor: Executor, console: Console, goal: Goal
) -> dict[str, Record]:
    """Run the grid one seed at a time until the goal is reached or the budget is spent, but at least the grid's seeds.

    The goal must hold after two seeds in a row, and after `MIN_IN_ORDER` seeds. With few seeds an interval is sometimes
    narrow by chance, and stopping at the first one would favour such chances.

    Intervals keep their promise only if seeds are independent. They are widened for seeds that resemble those before
    them (`ratio_in_order`), which needs `MIN_IN_ORDER` seeds, and the last lines say what was found. Stopping when 95%
    intervals are within 5%, at most ten seeds whose scatter is 4% cover the true value in 96% of simulated runs if they
    are independent, and in 85% (79% without the widening) if neighbours correlate by 0.5 (`tests/test_adaptive.py`).

    A seed is expected to take as long as the longest seed before it; one that would exceed the budget is not started.
    At the end, the speed-ups that stay undecided are printed. A cell that failed is not retried by the same command.

    `whole` is the sweep of the grid. Returns the records of all seeds. Raises what `execute` raises, and `ConfigError`
    if the grid compares nothing.
    """
    if not _planned(whole):
        both = f"{HALF_THE_TIME[0].against} and a regime that trains only the head"
        raise ConfigError(f"--until-decided: no backbone has both {both}")
    same_folder = replace(options, fresh=False, name=whole.run.folder.name)  # --fresh has made a folder for all seeds
    with held(whole.run, options, console):  # also between two seeds
        return _add_seeds(whole, grid, same_folder, executor, console, goal)


def _add_seeds(
    whole: Sweep, grid: Grid, options: Options, executor: Executor, console: Console, goal: Goal
) -> dict[str, Record]:
    started, seeds, ran, reached_before = time.monotonic(), 0, 0, False
    records: dict[str, Record] = {}
    while True:
        seeds += 1
        wider = grid.override({"seeds": seeds}, {})
        first = _first_seed(whole) if seeds == 1 else None
        sweep = first if first and first.cells else plan(wider, options, executor, console)
        tried = {cell_id: record for cell_id, record in records.items() if record.status != "done"}
        sweep = replace(sweep, done={**sweep.done, **tried})
        missing = len(sweep.missing)
        records |= execute(sweep, wider, options, executor, console, first_order=ran)
        ran += missing
        found = _speed_ups(sweep, records)
        undecided = [finding for finding in found if not _is_decided(finding, goal)]
        missing_comparisons = _planned(sweep) - len(found)
        status = f"until decided: {_outcome(found, undecided, goal)}{_without_result(missing_comparisons)}"
        longest = max(_duration(records, seed) for seed in range(seeds))
        enough = seeds >= grid.matrix.seeds and seeds >= MIN_IN_ORDER  # type: ignore[operator]  # a number: see `make_goal`
        decided = enough and reached_before and not undecided
        if why := _why_stop(goal, decided, seeds, time.monotonic() - started + longest):
            text, is_warning = _independence(found)
            say(console, f"until decided: {text}", style="yellow" if is_warning else "")
            say(console, f"{status}; {seeds} seeds, {why}")
            return records
        reached_before = not undecided
        say(console, f"{status}; continuing with seed {seeds}")


def _first_seed(sweep: Sweep) -> Sweep:
    """The part of a sweep with its first seed, so that it need not be planned again."""
    cells = {cell_id: cell for cell_id, cell in sweep.cells.items() if cell.config.seed == 0}
    done = {cell_id: record for cell_id, record in sweep.done.items() if cell_id in cells}
    return replace(sweep, cells=cells, done=done)


def _speed_ups(sweep: Sweep, records: dict[str, Record]) -> list[Finding]:
    run = sweep.run.name
    groups = make_groups(((run, record) for record in records.values()), {run: sweep.run.manifest().dataset.val_labels})
    return decide_claims({run: HALF_THE_TIME}, groups)


def _planned(sweep: Sweep) -> int:
    return sum(planned(claim, sweep.cells.values()) for claim in HALF_THE_TIME)


def _is_decided(finding: Finding, goal: Goal) -> bool:
    width = finding.estimate.half_width if finding.estimate else None
    return width is not None and width <= goal.within


def _duration(records: dict[str, Record], seed: int) -> float:
    """Seconds that the cells of a seed took, including cells of earlier commands."""
    return sum(record.wall_seconds for record in records.values() if record.cell.config.seed == seed)


def _why_stop(goal: Goal, decided: bool, seeds: int, seconds_after_next: float) -> str:
    """Why no seed is added; empty to add one. `seconds_after_next` is the time that would be spent after one more."""
    if decided:
        return "nothing left to decide"
    if seeds >= goal.max_seeds:
        return f"as many as allowed (--max-seeds {goal.max_seeds})"
    if goal.budget_seconds is not None and seconds_after_next > goal.budget_seconds:
        return f"one more would overrun the budget of {goal.budget_seconds:g} s"
    return ""


def _outcome(found: list[Finding], undecided: list[Finding], goal: Goal) -> str:
    """How many speed-ups are known precisely enough, and which are not."""
    text = f"{len(found) - len(undecided)} of {len(found)} speed-ups within ±{100 * goal.within:g}%"
    return text + (f"; undecided: {', '.join(map(_label, undecided))}" if undecided else "")


def _independence(found: list[Finding]) -> tuple[str, bool]:
    """What the intervals assume, and whether the seeds' order speaks against it; and True if it does."""
    assumed = "the intervals assume that seeds are independent of each other"
    looked: list[tuple[Finding, Dependence]] = [
        (finding, finding.estimate.dependence)
        for finding in found
        if finding.estimate is not None and finding.estimate.dependence is not None
    ]
    if not looked:
        return f"{assumed}, which needs {MIN_IN_ORDER} seeds to be tested", False
    adjusted = holm([dependence.p for _, dependence in looked])
    (finding, dependence), p = min(
        zip(looked, adjusted, strict=True), key=lambda pair: (pair[1], -pair[0][1].correlation)
    )
    n, name, r = len(dependence.values), finding.group.cell.name, dependence.correlation
    clearest = f"the clearest correlation of neighbouring seeds is {r:+.2f} ({name}, p = {p:.2g})"
    if p < LEVEL:
        return f"WARNING: {assumed}, and they are not: {clearest}; intervals are widened, and may still be narrow", True
    weak = f"a test of {n} seeds seldom finds one; intervals are widened for positive ones"
    return f"{assumed}; {clearest}; {weak}", False


def _without_result(comparisons: int) -> str:
    return f"; {comparisons} more can't be compared, because a cell has no result" if comparisons > 0 else ""


def _label(finding: Finding) -> str:
    width = finding.estimate.half_width if finding.estimate else None
    return f"{finding.group.cell.name} ({'±?' if width is None else f'±{width:.1%}'})"
