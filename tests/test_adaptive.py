"""Adaptive sampling, `--until-decided`: when it stops, which pairs it adds, and what is on disk then."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import bench
from bench.analysis.paired import compare
from bench.analysis.stats import MIN_IN_ORDER, Estimate, ratio, ratio_in_order, ratio_of_pairs
from bench.store.pairs import PairRecord
from bench.store.records import Record
from bench.store.runs import RunFolder
from bench.sweep import adaptive
from bench.sweep.adaptive import Goal, make_goal, seconds, without_last
from bench.sweep.grid import Grid, Matrix, Paired
from bench.sweep.options import Options
from bench.sweep.pairs import claims_timed, pairings, plan_pairs
from bench.sweep.plan import Sweep
from tests.commands import here as command
from tests.commands import light_command
from tests.light import LEAVES
from tests.runs import TRUTH, pair_record, record
from tl.errors import ConfigError

PAIR = (
    'dataset = "synthetic-mini"\npaired = {pairs = 3, seconds = 0.01}\n[matrix]\nbackbones = ["timm:quick0"]\n'
    'regimes = ["finetune", "frozen"]\ndevices = ["cpu"]\n[train]\nepochs = 2\n'
)
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


class Fake:
    """A sweep whose speed-ups are given, by backbone and number of the pair. No cell or pair runs."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        speed_ups: Mapping[str, Sequence[float]],
        *,
        fails: Mapping[str, int] | None = None,
        apart: Sequence[int] = (),
        execution: str = "fast",
        **settings: Any,
    ) -> None:
        """`fails` maps a backbone to the number of the first pair that fails.

        Pairs with a number in `apart` are timed one after the other.
        """
        self.speed_ups, self.fails, self.apart = speed_ups, fails or {}, apart
        self.disk: dict[str, PairRecord] = {}
        self.ran: list[tuple[str, int]] = []
        """Backbone and number of each pair that ran, in order."""
        self.executed: Callable[[], object] = lambda: None
        """Called whenever something is executed."""
        self.records = {
            one.cell_id: one
            for backbone in speed_ups
            for regime in ("finetune", "frozen")
            if (one := record(backbone, regime, execution=execution, **settings))
        }
        self.console = Console(record=True, width=300, file=io.StringIO())
        monkeypatch.setattr(adaptive, "execute", self.execute)

    def last_line(self, goal: Goal, pairs: int = 5) -> str:
        """Run, and return the last line of the output."""
        return self.run(goal, pairs).splitlines()[-1]

    def run(self, goal: Goal, pairs: int = 5) -> str:
        """Run, and return the output."""
        grid = Grid(
            name="g", matrix=Matrix(backbones=["timm:a"]), train={"epochs": 4}, paired=Paired(pairs=pairs, seconds=4.0)
        )
        adaptive.run_until_decided(self.plan(grid), grid, Options(name="r"), None, self.console, goal)  # type: ignore[arg-type]
        return self.console.export_text().strip()

    def plan(self, grid: Grid) -> Sweep:
        assert grid.paired
        cells = {key: one.cell for key, one in self.records.items()}
        planned = plan_pairs(pairings(cells.values(), claims_timed([])), grid.paired.pairs, grid.paired.seconds, "r")
        manifest = SimpleNamespace(dataset=SimpleNamespace(truth=TRUTH), pairs={})
        run: Any = SimpleNamespace(name="r", folder=Path("r"), manifest=lambda: manifest, pairs=lambda: dict(self.disk))
        return Sweep(
            run=run,
            splits=None,  # type: ignore[arg-type]
            survey=None,  # type: ignore[arg-type]
            cells=cells,
            weights={},
            resolved={},
            done={},
            damaged={},
            pairs=planned,
            done_pairs={},
            unpaired="" if planned else "nothing to compare",
            previous=None,
        )

    def execute(self, sweep: Sweep, *_: object, first_pair: int) -> dict[str, Record]:
        assert first_pair == len(self.ran)
        self.executed()
        for pair in sweep.missing_pairs.values():
            backbone = pair.cells[0].config.backbone
            fails = pair.number >= self.fails.get(backbone, 1000)
            speed_up = self.speed_ups[backbone][pair.number]
            one = pair_record(
                pair.cells,
                (10.0 * speed_up, 10.0),
                number=pair.number,
                status="oom" if fails else "done",
                apart="no memory" if pair.number in self.apart else "",
            )
            assert one.pair_id == pair.id and pair.id not in self.disk, "each pair runs once"
            self.ran.append((backbone, pair.number))
            self.disk[pair.id] = one
        return {} if self.records.keys() == sweep.done.keys() else self.records

    @property
    def counts(self) -> dict[str, int]:
        """Backbone → how many pairs ran."""
        return dict(Counter(backbone for backbone, _ in self.ran))


def around(middle: float, scatter: float, count: int = 30) -> list[float]:
    """Speed-ups that are above and below the middle in turn, by nearly so much."""
    return [middle * math.exp(scatter * (-1) ** n * (1 + n % 3 / 10)) for n in range(count)]


@pytest.mark.parametrize(
    ("middle", "scatter", "within", "counts", "line"),
    [
        (2.0, 0.01, 0.05, 5, "1 of 1 speed-ups decided or within ±5%; 5 pairs each, nothing left to decide"),
        (2.5, 0.01, 0.05, 5, "1 of 1 speed-ups decided or within ±5%; 5 pairs each, nothing left to decide"),
        (2.0, 0.05, 0.0001, 5, "1 of 1 speed-ups decided or within ±0.01%; 5 pairs each, nothing left to decide"),
        (2.5, 0.05, 0.0001, 9, "0 of 1 speed-ups decided or within ±0.01%; undecided: timm:a frozen cpu (±"),
    ],
)
def test_a_speed_up_is_decided_by_its_interval_or_by_its_verdict(
    middle: float, scatter: float, within: float, counts: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a claim's edge, 2.5, there is no verdict, and with so narrow a goal no interval suffices."""
    fake = Fake(monkeypatch, {"timm:a": around(middle, scatter)})
    last = fake.last_line(Goal(within=within, max_pairs=9))
    assert line in last and fake.counts == {"timm:a": counts}
    assert counts < 9 or last.endswith("; 9 pairs each, as many as allowed (--max-pairs 9)")


def test_it_must_hold_without_the_last_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first interval that is narrow is so by chance more often than others."""
    goal = Goal(within=0.05, max_pairs=30)
    values = [2.5 * math.exp(x) for x in (0.033, -0.033, 0.036, -0.036, 0.0, 0.0, 0.0)]
    five = ratio_in_order(dict(enumerate(values[:5])), dict.fromkeys(range(5), 1.0))
    four = ratio_in_order(dict(enumerate(values[:4])), dict.fromkeys(range(4), 1.0))
    assert five and four and (five.half_width or 1) <= 0.05 < (four.half_width or 0)
    fake = Fake(monkeypatch, {"timm:a": values})
    assert "adding 1 pair" in fake.run(goal) and fake.counts == {"timm:a": 6}


def test_five_pairs_are_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer their order can't be looked at."""
    fake = Fake(monkeypatch, {"timm:a": around(2.0, 0.001)})
    assert "; 5 pairs each, nothing left" in fake.last_line(Goal(), pairs=3)
    assert fake.ran == [("timm:a", number) for number in range(5)]


def test_pairs_are_added_only_where_something_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are as precise as they need to be."""
    fake = Fake(monkeypatch, {"timm:a": around(2.0, 0.01), "timm:b": around(2.5, 0.08), "timm:c": around(3.5, 0.01)})
    last = fake.last_line(Goal(within=0.05, max_pairs=8))
    assert fake.counts == {"timm:a": 5, "timm:b": 8, "timm:c": 5}
    assert "2 of 3 speed-ups" in last and "5 to 8 pairs each, as many as allowed" in last
    assert [number for _, number in fake.ran[15:]] == [5, 6, 7]


def test_the_grid_s_pairs_run_in_any_case_and_no_more_if_the_budget_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round is expected to take as long as the longest pairs before it, 10 s each."""
    speed_ups = {"timm:a": around(2.5, 0.08), "timm:b": around(2.5, 0.08)}
    fake = Fake(monkeypatch, speed_ups)
    assert "5 pairs each, one more pair would overrun the budget of 15 s" in fake.last_line(Goal(budget_seconds=15))
    assert fake.counts == {"timm:a": 5, "timm:b": 5}
    fake = Fake(monkeypatch, speed_ups)
    assert "as many as allowed" in fake.last_line(Goal(budget_seconds=1e6, max_pairs=7))


def test_what_failed_is_not_tried_again_by_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison without a result is reported as missing, not as decided. Nothing is added where the last failed."""
    fake = Fake(monkeypatch, {"timm:a": around(2.0, 0.01)}, fails={"timm:a": 0})
    line = fake.last_line(Goal())
    assert "0 of 0 speed-ups decided or within ±5%; 1 more can't be compared, because a cell or a pair has no" in line
    fake = Fake(monkeypatch, {"timm:a": around(2.5, 0.08)}, fails={"timm:a": 6})
    assert "undecided: timm:a" in (line := fake.last_line(Goal()))
    assert line.endswith("; 6 pairs each, no pair is added where the last one failed") and fake.counts == {"timm:a": 7}


@pytest.mark.parametrize(("apart", "ran", "count"), [((1, 3), 9, 7), (range(5, 30), 14, 5), (range(30), 7, 7)])
def test_pairs_that_do_not_count_use_up_none_that_are_allowed(
    apart: Sequence[int], ran: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were timed one after the other beside others that took turns. There are at most twice as many."""
    fake = Fake(monkeypatch, {"timm:a": around(2.5, 0.08)}, apart=apart)
    line = fake.last_line(Goal(max_pairs=7))
    assert fake.counts == {"timm:a": ran}
    assert line.endswith(f"; {count} pairs each, as many as allowed (--max-pairs 7)")


def pairs_of(regimes: Sequence[str], *statuses: str, apart: Sequence[int] = ()) -> list[PairRecord]:
    """Pairs of one rotation. The last cell of each has the status."""
    cells = [record("timm:a", regime).cell for regime in regimes]
    times = (10.0, 5.0, 5.0)[: len(cells)]
    return [
        pair_record(cells, times, number=number, status=status, apart="no memory" if number in apart else "")  # type: ignore[arg-type]
        for number, status in enumerate(statuses)
    ]


def test_the_last_pair_is_the_last_that_counts() -> None:
    """Without one that has no result the rest says the same; so does it without one that isn't used."""
    failed = pairs_of(("finetune", "frozen"), "done", "done", "done", "oom")
    assert without_last(failed) == [*failed[:2], failed[3]]
    apart = pairs_of(("finetune", "frozen"), "done", "done", "done", apart=[2])
    assert without_last(apart) == [apart[0], apart[2]]
    all_apart = pairs_of(("finetune", "frozen"), "done", "done", apart=[0, 1])
    assert without_last(all_apart) == all_apart[:1]


def test_each_comparison_of_a_rotation_has_a_last_pair_of_its_own() -> None:
    """The last one here has a result for two of its three cells."""
    lame = pairs_of(("finetune", "frozen", "frozen-tutorial"), "done", "done", "oom")
    left = without_last(lame)
    assert [one.pair_id for one in left] == [one.pair_id for one in lame[:2]]
    assert left[0] == lame[0] and [side.status for side in left[1].sides] == ["done", "done", "failed"]
    finetune, frozen, tutorial = lame[0].pair.cells
    for cell in (frozen, tutorial):
        now, before = compare(cell, finetune, lame), compare(cell, finetune, left)
        assert now and before and before.pairs == now.pairs - 1


def test_a_grid_that_compares_no_speeds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a grid has nothing to decide. One pair of cells may be timed for a claim about memory alone."""
    with pytest.raises(ConfigError, match="--until-decided: no pairs are timed: nothing to compare"):
        Fake(monkeypatch, {}).run(Goal())
    with pytest.raises(ConfigError, match="--until-decided: no claim about time compares two of these cells"):
        Fake(monkeypatch, {"timm:a": around(2.0, 0.01)}, execution="plain").run(Goal())


def _is_free(folder: Path) -> bool:
    """True if another process can lock the folder."""
    code = (
        "import sys; from pathlib import Path; from bench.store.lock import locked\n"
        "with locked(Path(sys.argv[1]), 'other'): pass"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "is working there" in done.stderr, done.stderr
    return done.returncode == 0


def test_no_other_command_begins_between_two_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another command between two pairs would end this one, perhaps after hours."""
    fake, free = Fake(monkeypatch, {"timm:a": around(2.5, 0.08)}), []
    fake.executed = lambda: free.append(_is_free(Path("r")))
    fake.run(Goal(max_pairs=6))
    assert free == [False, False] and _is_free(Path("r"))


def in_time(rng: np.random.Generator, count: int, correlation: float, deviation: float) -> list[float]:
    """Values with mean 0 whose neighbours correlate, as on a machine that is slow for a while (AR(1))."""
    values = [rng.normal(0, deviation)]
    for _ in range(count - 1):
        fresh = rng.normal(0, deviation * math.sqrt(1 - correlation**2))
        values.append(correlation * values[-1] + fresh)
    return values


def coverage(
    estimate_of: Callable[..., Estimate | None], least: int, correlation: float, most: int
) -> tuple[float, float]:
    """The share of 1,000 runs whose interval has the true ratio, 1.0, and of those that call it above 1.0.

    Pairs that scatter by 4% are added until the interval is within 5% or without 1.0, with and without the last pair.
    """
    rng = np.random.default_rng(most)
    held = above = 0
    for _ in range(1_000):
        ratios = np.exp(in_time(rng, most, correlation, 0.04))
        before, n = False, least - 1
        while True:
            estimate = estimate_of(dict(enumerate(ratios[:n])), dict.fromkeys(range(n), 1.0))
            assert estimate is not None and estimate.low is not None and estimate.high is not None
            enough = (estimate.half_width or 1.0) <= 0.05 or not estimate.low <= 1.0 <= estimate.high
            if (enough and before and n >= least) or n >= most:
                break
            before, n = enough, n + 1
        held += estimate.low <= 1.0 <= estimate.high
        above += estimate.low > 1.0
    return held / 1_000, above / 1_000


def test_stopping_when_it_looks_decided_costs_little_coverage() -> None:
    """With independent pairs, intervals keep nearly their 95%. Exactly on an edge, few are called above it."""
    held, above = coverage(ratio_of_pairs, MIN_IN_ORDER, 0.0, 20)
    assert held >= 0.93 and above <= 0.035


def test_pairs_that_resemble_each_other_cost_less_coverage() -> None:
    """With a correlation of 0.5 plain intervals cover fewer; those widened for any correlation lose less.

    Those of pairs are widened for a clear one only, which so few pairs seldom show: see `ratio_of_pairs`.
    """
    (plain, _), (widened, _), (ours, _) = (
        coverage(each, MIN_IN_ORDER, 0.5, 20) for each in (ratio, ratio_in_order, ratio_of_pairs)
    )
    assert plain < 0.78 and widened > plain + 0.05 and ours >= plain - 0.01


def test_what_the_intervals_assume_is_said_with_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line before the verdict names the assumption, and warns if the order of the pairs speaks against it."""
    drifting = [2.0, 2.02, 2.04, 2.3, 2.32, 2.33, 2.34, 2.35]
    for speed_ups, pairs, words in (
        (around(2.0, 0.01), 6, "independent of each other; the clearest correlation of neighbouring pairs is "),
        (drifting, 8, "WARNING: the intervals assume that process pairs are independent of each other, and they are"),
    ):
        fake = Fake(monkeypatch, {"timm:a": speed_ups})
        assert words in fake.run(Goal(within=0.0001, max_pairs=pairs), pairs=pairs)


def test_with_fresh_all_pairs_are_in_one_folder(tmp_path: Path) -> None:
    """All pairs are in the folder that was made for this command."""
    Path("pair.toml").write_text(PAIR)
    for _ in range(2):
        assert light_command(*RUN, "--fresh").returncode == 0
    assert sorted(path.name for path in Path("results").iterdir()) == ["pair", "pair-2"]
    assert len(bench.load_results("results/pair-2")) == 2
    assert [one.pair.number for one in RunFolder(Path("results/pair-2")).pairs().values()] == [0, 1, 2, 3, 4]


def test_done_pairs_count_and_are_not_timed_again(tmp_path: Path) -> None:
    """The same command continues where it stopped, and retries a pair beyond the grid's that failed."""
    Path("pair.toml").write_text(PAIR)
    done = light_command(*RUN)
    assert done.returncode == 0 and done.stdout.count("; adding 1 pair\n") == 2, done.stdout
    run = RunFolder(Path("results/pair"))
    before = {path.name: path.read_text() for path in (run.folder / "pairs").iterdir()}
    assert len(before) == 5 and len(run.manifest().pairs) == 5
    assert "[pair" not in light_command(*RUN).stdout
    last = list(run.pairs().values())[-1]
    cells = last.pair.cells
    lost = pair_record(cells, (10.0, 5.0), status="oom", number=4, train_images=last.train_images)
    run.write_pair(lost.replace(pair=last.pair, pair_id=last.pair_id, val_images=last.val_images))
    again = light_command(*RUN)
    assert again.returncode == 0 and again.stdout.count("[pair ") == 1, again.stdout
    after = {path.name: path.read_text() for path in (run.folder / "pairs").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {f"{last.pair_id}.json"}


def test_cells_that_failed_are_not_tried_again_with_each_pair(tmp_path: Path) -> None:
    """The next command tries them again, as always. Their speed-up is counted as missing."""
    Path("pair.toml").write_text(PAIR.replace('"timm:quick0"', f'"timm:quick0", "{LEAVES}"'))
    for _ in range(2):
        done = light_command(*RUN)
        tried = re.findall(rf"(?m)^\[\d/4\] {LEAVES} ", done.stdout)
        assert done.returncode == 1 and len(tried) == 2, done.stdout
        assert "1 more can't be compared, because a cell or a pair has no result; 5 pairs each" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "10m"], "--budget 10m needs --until-decided"),
        (["--max-pairs", "9"], "--max-pairs 9 needs --until-decided"),
        (["--until-decided", "--pairs", "5", "--within", "0"], "--within 0 must be a percentage above 0"),
        (["--until-decided", "--pairs", "5", "--max-pairs", "4"], "--max-pairs 4 must be at least 5, the grid's pairs"),
        (["--until-decided", "--pairs", "5", "--max-pairs", "1001"], "--max-pairs 1001 must be at least 5, "),
        (["--until-decided"], "--until-decided adds process pairs, and this grid times none; leave out --no-paired"),
        (["--until-decided", "--pairs", "5", "--budget", "soon"], "--budget 'soon' must be a time above 0"),
        (["--max-seeds", "4"], "--max-seeds 4: --until-decided adds process pairs, not seeds; give --max-pairs"),
    ],
)
def test_mistakes_end_in_one_line(options: list[str], message: str) -> None:
    """The message comes before anything runs. The smoke grid times no pairs."""
    done = command("run", "--grid", "smoke", *options)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_from_python_the_limit_on_seeds_is_refused_too() -> None:
    """It would otherwise be an unknown setting."""
    with pytest.raises(ConfigError, match="max_seeds 4: --until-decided adds process pairs, not seeds"):
        bench.run("smoke", max_seeds=4)


def test_a_goal_is_what_the_options_say() -> None:
    """Percents become a share. With a budget, the number of pairs is only limited if it is given."""
    grid = Grid(name="g", matrix=Matrix(backbones=["timm:a"]))

    def goal(within: float | None = None, max_pairs: int | None = None, budget: str | None = None) -> Goal:
        made = make_goal(grid, until_decided=True, within=within, max_pairs=max_pairs, budget=budget)
        assert made is not None
        return made

    assert goal(5.0, 7, "10m") == Goal(within=0.05, max_pairs=7, budget_seconds=600)
    assert goal().within == 0.05 and goal().max_pairs == 20 < goal(budget="10m").max_pairs
    assert make_goal(grid, until_decided=False, within=None, max_pairs=None, budget=None) is None
