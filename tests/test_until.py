"""More seeds until speed-ups are known: when it stops, and what is on disk then."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import bench
from bench import until
from bench.grid import Grid, Matrix
from bench.until import Goal, _why_stop, make_goal, seconds
from tests.commands import ONE_CELL, command
from tests.test_report import TRUTH, record
from tl.errors import ConfigError

PAIR = ONE_CELL.replace('["frozen"]', '["finetune", "frozen"]') + "seeds = 2\n[train]\nepochs = 2\n"
RUN = ("run", "--grid", "pair.toml", "--name", "pair", "--weights", "random", "--no-report", "--until-decided")


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("90s", 90), ("10m", 600), ("10 min", 600), ("1.5h", 5400)])
def test_times_are_read(text: str, value: float) -> None:
    """In seconds, minutes, hours."""
    assert seconds("--budget", text) == value


@pytest.mark.parametrize("text", ["", "0m", "-5m", "ten", "5 weeks", "nan"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """With an example of what is."""
    with pytest.raises(ConfigError, match=r"--budget .*: must be a time above 0, such as 90s, 10m or 1.5h"):
        seconds("--budget", text)


@pytest.mark.parametrize(
    ("goal", "open_", "seeds", "until_next", "why"),
    [
        (Goal(), 0, 3, 0, "nothing left"),
        (Goal(), 1, 3, 1e9, ""),
        (Goal(), 1, 10, 0, "as many as allowed"),
        (Goal(max_seeds=4), 1, 4, 0, "as many as allowed"),
        (Goal(budget_seconds=60), 1, 99, 59, ""),
        (Goal(budget_seconds=60), 1, 3, 61, "would overrun the budget of 60 s"),
        (Goal(budget_seconds=60, max_seeds=5), 1, 5, 1, "as many as allowed"),
    ],
)
def test_when_it_stops(goal: Goal, open_: int, seeds: int, until_next: float, why: str) -> None:
    """Everything decided, seeds or budget used up; by default ten seeds, with a budget as many as fit."""
    told = _why_stop(goal, [None] * open_, seeds, until_next)  # type: ignore[list-item]
    assert why in told and bool(why) == bool(told)


def test_seeds_are_added_until_the_limit_and_the_open_ones_are_named(tmp_path: Path) -> None:
    """One run, a block a seed, the order going on; ±0.01% is out of reach."""
    Path("pair.toml").write_text(PAIR)
    done = command(*RUN, "--within", "0.01", "--max-seeds", "4")
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("until decided: 0 of 1 speed-ups within ±0.01%; open: timm:test_resnet frozen cpu (±")
    assert last.endswith("4 seeds, as many as allowed (--max-seeds 4)")
    table = bench.load_results("results/pair")
    assert sorted(table["seed"]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sorted(table["order"]) == list(range(8)) and (table["block"] == table["seed"]).all()


def test_it_stops_as_soon_as_everything_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before the three seeds that an interval needs, and not after the first at which it is narrow enough."""
    times = {"finetune": [20.0, 20.4, 19.2, 20.0, 20.1], "frozen": [10.0, 9.8, 10.4, 10.0, 10.0]}

    def plan(grid: Grid, *_: object) -> SimpleNamespace:
        records = {
            one.cell_id: one
            for seed in range(grid.matrix.seeds)  # type: ignore[arg-type]
            for regime, seconds in times.items()
            for one in [record("timm:a", regime, seconds=seconds[seed], seed=seed)]
        }
        cells = {key: one.cell for key, one in records.items()}
        manifest = SimpleNamespace(dataset=SimpleNamespace(val_labels=TRUTH))
        run = SimpleNamespace(name="r", manifest=lambda: manifest)
        return SimpleNamespace(run=run, cells=cells, missing=cells, records=records)

    monkeypatch.setattr(until.runner, "plan", plan)
    monkeypatch.setattr(until.runner, "execute", lambda sweep, *_, **__: sweep.records)
    said = Console(record=True, width=200, file=io.StringIO())
    grid = Grid(name="g", matrix=Matrix(backbones=["timm:a"], seeds=2))

    def seeds_run(within: float) -> int:
        records = until.run_until_decided(plan(grid), grid, None, None, said, Goal(within=within, max_seeds=5))  # type: ignore[arg-type]
        return len({one.cell.config.seed for one in records.values()})

    assert [seeds_run(within) for within in (1.0, 0.06, 0.001)] == [3, 5, 5]
    told = [line for line in said.export_text().splitlines() if line.endswith(("decide", "5)"))]
    assert "1 of 1 speed-ups within ±100%; 3 seeds, nothing left to decide" in told[0]
    assert "1 of 1 speed-ups within ±6%; 5 seeds, nothing left to decide" in told[1]
    assert "0 of 1 speed-ups within ±0.1%; open: timm:a frozen cpu (±" in told[2]


def test_done_seeds_count_and_are_not_run_again(tmp_path: Path) -> None:
    """The same command with more seeds allowed goes on where it stopped."""
    Path("pair.toml").write_text(PAIR)
    assert command(*RUN, "--within", "0.01", "--max-seeds", "3").returncode == 0
    before = {path.name: path.read_text() for path in Path("results/pair/cells").iterdir()}
    assert command(*RUN, "--within", "0.01", "--max-seeds", "4").returncode == 0
    after = {path.name: path.read_text() for path in Path("results/pair/cells").iterdir()}
    assert len(after) == 8 and before.items() <= after.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "10m"], "--budget 10m: says when --until-decided is to stop"),
        (["--until-decided", "--within", "0"], "--within 0: must be a percentage above 0"),
        (["--until-decided", "--max-seeds", "2"], "--max-seeds 2: must be at least 3"),
        (["--until-decided", "--budget", "soon"], "--budget 'soon': must be a time above 0"),
    ],
)
def test_mistakes_end_in_one_line(options: list[str], message: str) -> None:
    """Before anything is run."""
    done = command("run", "--grid", "smoke", *options)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_named_seeds_have_no_next_one() -> None:
    """A grid that lists its seeds is refused."""
    Path("pair.toml").write_text(PAIR.replace("seeds = 2", "seeds = [3, 5]"))
    assert "the grid names its seeds ([3, 5])" in command(*RUN).stderr


def test_a_goal_is_what_the_options_say() -> None:
    """Percent become a share."""
    assert make_goal(5.0, 7, "10m") == Goal(within=0.05, max_seeds=7, budget_seconds=600)
