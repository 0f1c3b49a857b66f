"""`run --until-decided`: more seeds, a block at a time, until every speed-up is known well enough."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

from rich.console import Console

from bench.analysis.claims import HALF_THE_TIME
from bench.analysis.groups import make_groups
from bench.analysis.stats import MIN_SAMPLES
from bench.analysis.verdicts import Finding, judge, planned
from bench.console import say
from bench.execution.base import Executor
from bench.store.records import Record
from bench.sweep import run as runner
from bench.sweep.grid import Grid
from bench.sweep.options import Options
from tl.errors import ConfigError

MAX_SEEDS = 10
"""Where neither a number of seeds nor a budget is given."""
MOST_SEEDS = 1_000
"""Whatever the budget."""
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When enough seeds were run."""

    within: float = 0.05
    """Half-width of every speed-up's 95% interval, as a share of it."""
    max_seeds: int = MAX_SEEDS
    budget_seconds: float | None = None


def make_goal(grid: Grid, within_percent: float, max_seeds: int | None, budget: str | None) -> Goal:
    """What the options say. Raises `ConfigError` for a value that can't be, or a grid with nothing to decide."""
    if not 0 < within_percent < 100:
        raise ConfigError(f"--within {within_percent:g}: must be a percentage above 0 and below 100")
    seeds, epochs = grid.matrix.seeds, grid.protocol["epochs"]
    if not isinstance(seeds, int):
        raise ConfigError(f"--until-decided: the grid names its seeds ({seeds}); give --seeds a number")
    if epochs < 2:
        raise ConfigError(f"--until-decided: epochs={epochs}: the first epoch is warm-up, so at least 2 are needed")
    least = max(MIN_SAMPLES, seeds)
    if max_seeds is not None and max_seeds < least:
        raise ConfigError(f"--max-seeds {max_seeds}: must be at least {least}, what an interval and the grid need")
    return Goal(
        within=within_percent / 100,
        max_seeds=max_seeds or max(MAX_SEEDS if budget is None else MOST_SEEDS, least),
        budget_seconds=None if budget is None else seconds("--budget", budget),
    )


def seconds(option: str, text: str) -> float:
    """`90`, `90s`, `10m`, `1.5h` in seconds. Raises `ConfigError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip())
    if not match or float(match[1]) == 0:
        raise ConfigError(f"{option} {text!r}: must be a time above 0, such as 90s, 10m or 1.5h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def run_until_decided(
    whole: runner.Sweep, grid: Grid, options: Options, executor: Executor, console: Console, goal: Goal
) -> dict[str, Record]:
    """Run the grid one seed at a time, at least as many as it has, until the goal is reached or the budget spent.

    The goal counts as reached when it was after two seeds in a row: an interval from few seeds is narrow by chance
    now and then, and to stop there would favour such chances. No seed is begun that would, taking as long as the
    longest before it, end beyond the budget. Says at the end which speed-ups stayed open. A cell that has failed in
    this command is not tried again by it. `whole` is the sweep of the grid. Returns the records of all
    seeds; what it raises is as `runner.execute`. Raises `ConfigError` where the grid compares nothing.
    """
    if not planned(HALF_THE_TIME, whole.cells.values()):
        both = f"{HALF_THE_TIME.against} and a regime that trains only the head"
        raise ConfigError(f"--until-decided: no backbone has both {both}")
    here = replace(options, fresh=False, name=whole.run.folder.name)  # --fresh has chosen its folder: all seeds join it
    with runner.alone(whole.run, options, console):  # between two seeds, too
        return _until_decided(whole, grid, here, executor, console, goal)


def _until_decided(
    whole: runner.Sweep, grid: Grid, options: Options, executor: Executor, console: Console, goal: Goal
) -> dict[str, Record]:
    begun, seeds, ran, settled_before = time.monotonic(), 0, 0, False
    records: dict[str, Record] = {}
    while True:
        seeds += 1
        wider = grid.override({"seeds": seeds}, {})
        first = _first_seed(whole) if seeds == 1 else None
        sweep = first if first and first.cells else runner.plan(wider, options, executor, console)
        tried = {cell_id: record for cell_id, record in records.items() if record.status != "done"}
        sweep = replace(sweep, done={**sweep.done, **tried})
        missing = len(sweep.missing)
        records |= runner.execute(sweep, wider, options, executor, console, first_order=ran)
        ran += missing
        found = _speed_ups(sweep, records)
        unsettled = [finding for finding in found if not _settled(finding, goal)]
        lost = planned(HALF_THE_TIME, sweep.cells.values()) - len(found)
        said = f"until decided: {_outcome(found, unsettled, goal)}{_without(lost)}"
        longest = max(_duration(records, seed) for seed in range(seeds))
        enough = seeds >= grid.matrix.seeds  # type: ignore[operator]  # a number: see `make_goal`
        decided = enough and settled_before and not unsettled
        if why := _why_stop(goal, decided, seeds, time.monotonic() - begun + longest):
            say(console, f"{said}; {seeds} seeds, {why}")
            return records
        settled_before = not unsettled
        say(console, f"{said}; going on with seed {seeds}")


def _first_seed(sweep: runner.Sweep) -> runner.Sweep:
    """The part of a sweep that is its first seed's: what was planned needn't be looked up again."""
    cells = {cell_id: cell for cell_id, cell in sweep.cells.items() if cell.config.seed == 0}
    done = {cell_id: record for cell_id, record in sweep.done.items() if cell_id in cells}
    return replace(sweep, cells=cells, done=done)


def _speed_ups(sweep: runner.Sweep, records: dict[str, Record]) -> list[Finding]:
    run = sweep.run.name
    groups = make_groups(((run, record) for record in records.values()), {run: sweep.run.manifest().dataset.val_labels})
    return judge({run: [HALF_THE_TIME]}, groups)


def _settled(finding: Finding, goal: Goal) -> bool:
    width = finding.estimate.half_width if finding.estimate else None
    return width is not None and width <= goal.within


def _duration(records: dict[str, Record], seed: int) -> float:
    """Seconds that the cells of a seed took, whenever they were run."""
    return sum(record.wall_seconds for record in records.values() if record.cell.config.seed == seed)


def _why_stop(goal: Goal, decided: bool, seeds: int, until_next: float) -> str:
    """Why no seed is added; empty where one is. `until_next` is the time spent once it were over."""
    if decided:
        return "nothing left to decide"
    if seeds >= goal.max_seeds:
        return f"as many as allowed (--max-seeds {goal.max_seeds})"
    if goal.budget_seconds is not None and until_next > goal.budget_seconds:
        return f"one more would overrun the budget of {goal.budget_seconds:g} s"
    return ""


def _outcome(found: list[Finding], unsettled: list[Finding], goal: Goal) -> str:
    """How many speed-ups are known well enough, and which are not."""
    text = f"{len(found) - len(unsettled)} of {len(found)} speed-ups within ±{100 * goal.within:g}%"
    return text + (f"; open: {', '.join(map(_named, unsettled))}" if unsettled else "")


def _without(lost: int) -> str:
    return f"; {lost} more can't be compared, for want of a result" if lost > 0 else ""


def _named(finding: Finding) -> str:
    width = finding.estimate.half_width if finding.estimate else None
    return f"{finding.group.cell.but(seed=0)} ({'±?' if width is None else f'±{width:.1%}'})".replace(" seed 0", "")
