"""`run --until-decided`: more seeds, a block at a time, until every speed-up is known well enough."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from rich.console import Console

from bench import runner
from bench.claims import HALF_THE_TIME
from bench.executors import Executor
from bench.findings import Finding, judge
from bench.grid import Grid
from bench.groups import make_groups
from bench.options import Options
from bench.records import Record
from bench.stats import MIN_SAMPLES
from tl.errors import ConfigError

MAX_SEEDS = 10
"""Where neither a number of seeds nor a budget is given."""
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When enough seeds were run."""

    within: float = 0.05
    """Half-width of every speed-up's 95% interval, as a share of it."""
    max_seeds: int | None = None
    budget_seconds: float | None = None

    @property
    def most_seeds(self) -> float:
        """Seeds beyond which nothing is added."""
        if self.max_seeds is not None:
            return self.max_seeds
        return MAX_SEEDS if self.budget_seconds is None else float("inf")


def make_goal(within_percent: float, max_seeds: int | None, budget: str | None) -> Goal:
    """What the options say. Raises `ConfigError` for a value that can't be."""
    if not 0 < within_percent < 100:
        raise ConfigError(f"--within {within_percent:g}: must be a percentage above 0 and below 100")
    if max_seeds is not None and max_seeds < MIN_SAMPLES:
        raise ConfigError(f"--max-seeds {max_seeds}: must be at least {MIN_SAMPLES}: fewer have no interval")
    return Goal(
        within=within_percent / 100,
        max_seeds=max_seeds,
        budget_seconds=None if budget is None else seconds("--budget", budget),
    )


def seconds(option: str, text: str) -> float:
    """`90`, `90s`, `10m`, `1.5h` in seconds. Raises `ConfigError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip())
    if not match or float(match[1]) == 0:
        raise ConfigError(f"{option} {text!r}: must be a time above 0, such as 90s, 10m or 1.5h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def check_seeds(grid: Grid) -> None:
    """Raise `ConfigError` for a grid whose seeds are named one by one: there is no next one."""
    if not isinstance(grid.matrix.seeds, int):
        raise ConfigError(f"--until-decided: the grid names its seeds ({grid.matrix.seeds}); give --seeds a number")


def run_until_decided(
    first: runner.Sweep, grid: Grid, options: Options, executor: Executor, console: Console, goal: Goal
) -> dict[str, Record]:
    """Run the sweep, then one more seed of all its cells at a time, until the goal is reached or the budget spent.

    No block is begun that would, taking as long as the longest before it, end beyond the budget. Says at the end
    which speed-ups stayed open. Returns the records of all blocks; what it raises is as `runner.execute`.
    """
    begun, longest = time.monotonic(), 0.0
    sweep, records, ran = first, dict[str, Record](), 0
    while True:
        block_begun = time.monotonic()
        missing = len(sweep.missing)
        records |= runner.execute(sweep, grid, options, executor, console, first_order=ran)
        ran += missing
        longest = max(longest, time.monotonic() - block_begun)
        found = _speed_ups(sweep, records)
        unsettled = [finding for finding in found if not _settled(finding, goal)]
        seeds = len({cell.config.seed for cell in sweep.cells.values()})
        why = _why_stop(goal, unsettled, seeds, time.monotonic() - begun + longest)
        if why:
            _say(console, f"until decided: {_outcome(found, unsettled, goal)}; {seeds} seeds, {why}")
            return records
        grid = grid.override({"seeds": seeds + 1}, {})
        _say(console, f"until decided: {_outcome(found, unsettled, goal)}; adding seed {seeds}")
        sweep = runner.plan(grid, options, executor, console)


def _speed_ups(sweep: runner.Sweep, records: dict[str, Record]) -> list[Finding]:
    truths = {sweep.run.name: sweep.run.manifest().dataset.val_labels}
    return judge([HALF_THE_TIME], make_groups(((sweep.run.name, record) for record in records.values()), truths))


def _settled(finding: Finding, goal: Goal) -> bool:
    width = finding.estimate.half_width if finding.estimate else None
    return width is not None and width <= goal.within


def _why_stop(goal: Goal, unsettled: list[Finding], seeds: int, until_next: float) -> str:
    """Why no block is added; empty where one is. `until_next` is the time spent once it were over."""
    if not unsettled:
        return "nothing left to decide"
    if seeds >= goal.most_seeds:
        return f"as many as allowed (--max-seeds {goal.most_seeds:g})"
    if goal.budget_seconds is not None and until_next > goal.budget_seconds:
        return f"one more would overrun the budget of {goal.budget_seconds:g} s"
    return ""


def _outcome(found: list[Finding], unsettled: list[Finding], goal: Goal) -> str:
    """How many speed-ups are known well enough, and which are not."""
    text = f"{len(found) - len(unsettled)} of {len(found)} speed-ups within ±{100 * goal.within:g}%"
    return text + (f"; open: {', '.join(map(_named, unsettled))}" if unsettled else "")


def _named(finding: Finding) -> str:
    width = finding.estimate.half_width if finding.estimate else None
    config = finding.group.config
    return (
        f"{config.backbone} {config.regime} {finding.group.cell.device} ({'±?' if width is None else f'±{width:.1%}'})"
    )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
