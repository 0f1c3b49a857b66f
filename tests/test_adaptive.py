"""Adaptive sampling, `--until-decided`: when it stops, and what is on disk then."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import bench
from bench.analysis.stats import MIN_IN_ORDER, MIN_SAMPLES, Estimate, ratio, ratio_in_order
from bench.store.records import Record
from bench.sweep import adaptive
from bench.sweep.adaptive import Goal, _why_stop, make_goal, seconds
from bench.sweep.grid import Grid, Matrix
from bench.sweep.options import Options
from bench.sweep.plan import Sweep
from tests.commands import ONE_CELL, light_command
from tests.commands import here as command
from tests.runs import TRUTH, record
from tl.errors import ConfigError

PAIR = ONE_CELL.replace('["frozen"]', '["finetune", "frozen"]') + "seeds = 2\n[train]\nepochs = 2\n"
RUN = ("run", "--grid", "pair.toml", "--name", "pair", "--weights", "random", "--no-report", "--until-decided")


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("90s", 90), ("10m", 600), ("10 min", 600), ("1.5h", 5400)])
def test_times_are_read(text: str, value: float) -> None:
    """Seconds, minutes and hours are understood."""
    assert seconds("--budget", text) == value


@pytest.mark.parametrize("text", ["", "0m", "-5m", "ten", "5 weeks", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """The message has examples of valid times."""
    with pytest.raises(ConfigError, match=r"--budget .* must be a time above 0, such as 90s, 10m or 1.5h"):
        seconds("--budget", text)


@pytest.mark.parametrize(
    ("goal", "decided", "seeds", "seconds_after_next", "why"),
    [
        (Goal(), True, 4, 0, "nothing left"),
        (Goal(), False, 3, 1e9, ""),
        (Goal(), False, 10, 0, "as many as allowed"),
        (Goal(max_seeds=4), False, 4, 0, "as many as allowed"),
        (Goal(budget_seconds=60, max_seeds=100), False, 99, 59, ""),
        (Goal(budget_seconds=60), False, 3, 61, "would overrun the budget of 60 s"),
        (Goal(budget_seconds=60, max_seeds=5), False, 5, 1, "as many as allowed"),
    ],
)
def test_when_it_stops(goal: Goal, decided: bool, seeds: int, seconds_after_next: float, why: str) -> None:
    """It stops when everything is decided, or when seeds or budget are used up. The default is ten seeds."""
    reason = _why_stop(goal, decided, seeds, seconds_after_next)
    assert why in reason and bool(why) == bool(reason)


def test_seeds_are_added_until_the_limit_and_undecided_comparisons_are_named(tmp_path: Path) -> None:
    """All seeds are in one run, one block per seed, and the order continues. ±0.01% is out of reach."""
    Path("pair.toml").write_text(PAIR)
    done = command(*RUN, "--within", "0.01", "--max-seeds", "4")
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("until decided: 0 of 1 speed-ups within ±0.01%; undecided: timm:test_resnet frozen cpu (±")
    assert last.endswith("4 seeds, as many as allowed (--max-seeds 4)")
    table = bench.load_results("results/pair")
    assert sorted(table["seed"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sorted(table["order"]) == list(range(8)) and (table["block"] == table["seed"]).all()


class Fake:
    """Replaces real cells by records with given epoch seconds per regime and seed. `ran` lists the cells that ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: dict[str, list[float]], failed: str = "") -> None:
        self.times, self.failed = times, failed
        self.disk: dict[str, Record] = {}
        self.ran: list[str] = []
        self.planned: Callable[[], None] = lambda: None
        """Called whenever seeds are planned."""
        self.console = Console(record=True, width=300, file=io.StringIO())
        monkeypatch.setattr(adaptive, "plan", self.plan)
        monkeypatch.setattr(adaptive, "execute", self.execute)

    def run(self, goal: Goal, seeds: int = 1) -> str:
        """Run, and return the last line of the output."""
        return self.report(goal, seeds).splitlines()[-1]

    def report(self, goal: Goal, seeds: int = 1) -> str:
        """Run, and return the output."""
        grid = Grid(name="g", matrix=Matrix(backbones=["timm:a"], seeds=seeds))
        adaptive.run_until_decided(self.plan(grid), grid, Options(name="r"), None, self.console, goal)  # type: ignore[arg-type]
        return self.console.export_text().strip()

    def plan(self, grid: Grid, *_: object) -> Sweep:
        self.planned()
        manifest = SimpleNamespace(dataset=SimpleNamespace(val_labels=TRUTH))
        run: Any = SimpleNamespace(name="r", folder=Path("r"), manifest=lambda: manifest)
        cells = {one.cell_id: one.cell for one in self.records(grid)}
        done = {key: one for key, one in self.disk.items() if key in cells and one.status == "done"}
        none: Any = None
        return Sweep(run=run, splits=none, cells=cells, weights={}, resolved={}, done=done, damaged={}, previous=None)

    def records(self, grid: Grid) -> list[Record]:
        return [
            record(
                "timm:a", regime, seconds=seconds[seed], seed=seed, status="oom" if regime == self.failed else "done"
            )
            for seed in range(grid.matrix.seeds)  # type: ignore[arg-type]
            for regime, seconds in self.times.items()
        ]

    def execute(self, sweep: Sweep, grid: Grid, *_: object, first_order: int) -> dict[str, Record]:
        assert first_order == len(self.ran)
        new = {one.cell_id: one for one in self.records(grid) if one.cell_id in sweep.missing}
        self.ran += [f"{one.cell.config.regime} {one.cell.config.seed}" for one in new.values()]
        self.disk |= new
        return {**sweep.done, **new}


def _is_free(folder: Path) -> bool:
    """True if another process can lock the folder."""
    code = (
        "import sys; from pathlib import Path; from bench.store.lock import locked\n"
        "with locked(Path(sys.argv[1]), 'other'): pass"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "is working there" in done.stderr, done.stderr
    return done.returncode == 0


def test_no_other_command_begins_between_two_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another command between two seeds would end this one, perhaps after hours."""
    fake, free = Fake(monkeypatch, TIMES), []
    fake.planned = lambda: free.append(not Path("r/.lock").exists() or _is_free(Path("r")))
    fake.run(Goal(within=1.0, max_seeds=3))
    assert free == [True, False, False] and _is_free(Path("r"))


TIMES = {"finetune": [20.0, 20.4, 19.2, 20.0, 20.1, 20.0], "frozen": [10.0, 9.8, 10.4, 10.0, 10.0, 10.0]}


@pytest.mark.parametrize(
    ("within", "seeds", "line"),
    [
        (1.0, 5, "1 of 1 speed-ups within ±100%; 5 seeds, nothing left to decide"),
        (0.06, 6, "1 of 1 speed-ups within ±6%; 6 seeds, nothing left to decide"),
        (0.001, 6, "0 of 1 speed-ups within ±0.1%; undecided: timm:a frozen cpu (±"),
    ],
)
def test_it_stops_once_everything_is_decided_twice_in_a_row(
    monkeypatch: pytest.MonkeyPatch, within: float, seeds: int, line: str
) -> None:
    """The order of the seeds is looked at from five on, so it stops after five at the earliest, or at the limit."""
    fake = Fake(monkeypatch, TIMES)
    assert line in fake.run(Goal(within=within, max_seeds=6))
    assert fake.ran == [f"{regime} {seed}" for seed in range(seeds) for regime in TIMES]


def test_the_seeds_of_the_grid_are_run_in_any_case_but_for_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid's seeds run although the goal needs fewer; a seed of 122 s that exceeds the budget does not start."""
    assert "; 6 seeds, nothing left" in Fake(monkeypatch, TIMES).run(Goal(within=1.0), seeds=6)
    assert "; 1 seeds, one more would overrun the budget of 100 s" in Fake(monkeypatch, TIMES).run(
        Goal(within=1.0, budget_seconds=100), seeds=6
    )


def test_a_cell_that_failed_is_not_tried_again_by_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its comparison is reported as missing, not as decided."""
    fake = Fake(monkeypatch, TIMES, failed="finetune")
    line = fake.run(Goal(), seeds=3)
    assert "0 of 0 speed-ups within ±5%; 1 more can't be compared, because a cell has no result" in line
    assert len(fake.ran) == len(set(fake.ran))


def test_a_grid_that_compares_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a grid has nothing to decide."""
    with pytest.raises(ConfigError, match="no backbone has both finetune and a regime that trains only the head"):
        Fake(monkeypatch, {"frozen": TIMES["frozen"]}).run(Goal())


def in_time(rng: np.random.Generator, count: int, correlation: float, deviation: float) -> list[float]:
    """Values with mean 0 whose neighbours correlate, as on a machine that is slow for a while (AR(1))."""
    values = [rng.normal(0, deviation)]
    for _ in range(count - 1):
        fresh = rng.normal(0, deviation * math.sqrt(1 - correlation**2))
        values.append(correlation * values[-1] + fresh)
    return values


def coverage(estimate_of: Callable[..., Estimate | None], least: int, correlation: float, seeds: int) -> float:
    """The share of 1,000 runs whose interval has the true ratio, with seeds added until it is within 5% twice."""
    rng = np.random.default_rng(seeds)
    held = 0
    for _ in range(1_000):
        ratios = np.exp(in_time(rng, seeds, correlation, 0.04))
        before, n = False, MIN_SAMPLES
        while True:
            estimate = estimate_of(dict(enumerate(ratios[:n])), dict.fromkeys(range(n), 1.0))
            assert estimate is not None and estimate.low is not None and estimate.high is not None
            narrow = (estimate.half_width or 1.0) <= 0.05
            if (narrow and before and n >= least) or n >= seeds:
                break
            before, n = narrow, n + 1
        held += estimate.low <= 1.0 <= estimate.high
    return held / 1_000


@pytest.mark.parametrize("seeds", [3, 10])
def test_stopping_when_it_looks_narrow_costs_no_coverage(seeds: int) -> None:
    """With independent seeds, stopping leaves the interval its 95%, but for the error of 1,000 draws."""
    assert coverage(ratio_in_order, MIN_IN_ORDER, 0.0, seeds) >= 0.936


def test_seeds_that_resemble_each_other_cost_less_coverage() -> None:
    """With a correlation of 0.5 plain intervals, from four seeds on, cover 3 in 4; widened ones lose half as much."""
    plain, widened = coverage(ratio, 4, 0.5, 10), coverage(ratio_in_order, MIN_IN_ORDER, 0.5, 10)
    assert plain < 0.80 and widened >= 0.81 and widened > plain + 0.05


def test_what_the_intervals_assume_is_said_with_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line before the verdict names the assumption, and warns if the order of the seeds speaks against it."""
    drifting = {"finetune": [20.0, 20.2, 20.4, 23.0, 23.2, 23.3, 23.4], "frozen": [10.0] * 7}
    for times, seeds, words in (
        (TIMES, 6, "independent of each other; the clearest correlation of neighbouring seeds is "),
        (TIMES, 4, "independent of each other, which needs 5 seeds to be tested"),
        (drifting, 7, "WARNING: the intervals assume that seeds are independent of each other, and they are not: "),
    ):
        fake = Fake(monkeypatch, times)
        assert words in fake.report(Goal(within=0.0001, max_seeds=seeds))


LIGHT_PAIR = PAIR.replace("timm:test_resnet", "timm:quick0")


def test_with_fresh_all_seeds_are_in_one_folder(tmp_path: Path) -> None:
    """All seeds are in the folder that was made for this command."""
    Path("pair.toml").write_text(LIGHT_PAIR)
    for _ in range(2):
        assert light_command(*RUN, "--fresh", "--within", "0.01", "--max-seeds", "3").returncode == 0
    assert sorted(path.name for path in Path("results").iterdir()) == ["pair", "pair-2"]
    assert len(bench.load_results("results/pair-2")) == 6


def test_done_seeds_count_and_are_not_run_again(tmp_path: Path) -> None:
    """The same command with more seeds allowed continues where it stopped."""
    Path("pair.toml").write_text(LIGHT_PAIR)
    assert light_command(*RUN, "--within", "0.01", "--max-seeds", "3").returncode == 0
    before = {path.name: path.read_text() for path in Path("results/pair/cells").iterdir()}
    assert light_command(*RUN, "--within", "0.01", "--max-seeds", "4").returncode == 0
    after = {path.name: path.read_text() for path in Path("results/pair/cells").iterdir()}
    assert len(after) == 8 and before.items() <= after.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "10m"], "--budget 10m needs --until-decided"),
        (["--until-decided", "--within", "0"], "--within 0 must be a percentage above 0"),
        (["--until-decided", "--max-seeds", "2"], "--max-seeds 2 must be at least 3"),
        (["--until-decided", "--seeds", "5", "--max-seeds", "4"], "--max-seeds 4 must be at least 5"),
        (
            ["--until-decided", "--epochs", "1"],
            "--until-decided needs at least 2 epochs, since the first is warm-up; epochs=1",
        ),
        (["--until-decided", "--budget", "soon"], "--budget 'soon' must be a time above 0"),
    ],
)
def test_mistakes_end_in_one_line(options: list[str], message: str) -> None:
    """The message comes before anything runs."""
    done = command("run", "--grid", "smoke", *options)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_named_seeds_have_no_next_one() -> None:
    """A grid that lists its seeds is refused."""
    Path("pair.toml").write_text(PAIR.replace("seeds = 2", "seeds = [3, 5]"))
    assert "the grid lists its seeds ([3, 5])" in command(*RUN).stderr


def test_a_goal_is_what_the_options_say() -> None:
    """Percents become a share. With a budget, the number of seeds is only limited if it is given."""
    grid = Grid(name="g", matrix=Matrix(backbones=["timm:a"]))

    def goal(within: float | None = None, max_seeds: int | None = None, budget: str | None = None) -> Goal:
        made = make_goal(grid, until_decided=True, within=within, max_seeds=max_seeds, budget=budget)
        assert made is not None
        return made

    assert goal(5.0, 7, "10m") == Goal(within=0.05, max_seeds=7, budget_seconds=600)
    assert goal().within == 0.05 and goal().max_seeds == 10 < goal(budget="10m").max_seeds
    assert make_goal(grid, until_decided=False, within=None, max_seeds=None, budget=None) is None
