"""Paired timing in a sweep: which cells are paired, what a grid says, and what a run keeps when things go wrong."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.console import Console

import bench
from bench.analysis.claims import Claim
from bench.execution import process as process_executor
from bench.execution.base import PairAttempt
from bench.execution.executors import EXECUTORS
from bench.execution.turns import LEAST_ROUNDS
from bench.store import runs
from bench.store.pairs import PairRecord
from bench.store.records import Cell, PlannedPair
from bench.store.runs import RunFolder, seal
from bench.sweep import pairs
from bench.sweep.execute import execute
from bench.sweep.grid import Grid, Matrix, Paired, load_grid, shipped
from bench.sweep.options import Options
from bench.sweep.pairs import PairRecorder, claims_timed, pair_jobs, pairings, plan_pairs
from bench.sweep.plan import Sweep, choose_grid, plan
from bench.sweep.progress import make_reporter
from tests import light
from tests.commands import LIGHT, light_here
from tests.damage import flip
from tests.runs import TRUTH, pair_record, record, write_run
from tl.cache import write_atomic
from tl.config import TrainConfig
from tl.datasets import Splits
from tl.errors import ConfigError, UserError
from tl.weights import Weights

GRID = (
    'dataset = "synthetic-mini"\n{paired}\n[matrix]\nbackbones = {backbones}\nregimes = {regimes}\ndevices = ["cpu"]\n'
)
TWO = ("finetune", "frozen")
QUICK = "paired = {pairs = 3, seconds = 0.01}"
RUN = ("run", "--grid", "grid.toml", "--no-report")


# Which cells are paired


def cells(
    regimes: Sequence[str],
    backbones: Sequence[str] = ("timm:a",),
    executions: Sequence[str] = ("fast",),
    seeds: int = 1,
    **settings: Any,
) -> list[Cell]:
    """Cells in the order of a grid; `scratch` has weights of its own."""
    found = []
    for seed, backbone, execution, regime in product(range(seeds), backbones, executions, regimes):
        kind = "random" if regime == "scratch" else "pretrained"
        config = TrainConfig(
            backbone=backbone, regime=regime, seed=seed, execution=execution, weights=kind, **{"epochs": 2, **settings}
        )
        digest = "" if regime == "scratch" else "d" * 64
        found.append(Cell(config=config, weights_digest=digest, dataset_digest="0" * 64, device="cpu"))
    return found


def rotations(some: Sequence[Cell], *own: Claim) -> list[list[str]]:
    """The regimes of each rotation."""
    return [[cell.config.regime for cell in one] for one in pairings(some, claims_timed(own))]


def timed_claim(**fields: Any) -> Claim:
    return Claim(name="mine", statement="It is so", low=1.0, **{"metric": "epoch_seconds", **fields})


@pytest.mark.parametrize(
    "settings",
    [{}, {"fold": True}, {"lookahead": 4}, {"checkpointing": True}, {"views": 3}, {"compile": True}],
    ids=str,
)
def test_settings_that_one_regime_alone_reads_keep_none_apart(settings: dict[str, Any]) -> None:
    """Fine-tuning doesn't read `fold`, and a frozen backbone doesn't read `checkpointing`."""
    assert rotations([cell.but(**settings) for cell in cells(TWO)]) == [["finetune", "frozen"]]


def test_all_that_is_compared_with_one_cell_shares_a_rotation() -> None:
    """The cell that others are compared with is first, wherever the grid has it; the others keep the grid's order."""
    assert rotations(cells(("frozen-tutorial", "frozen", "finetune"))) == [["finetune", "frozen-tutorial", "frozen"]]


def test_seeds_share_their_pairs_and_nothing_else_does() -> None:
    """A pair has seed 0. Cells of other backbones, executions or settings are never compared."""
    some = cells(TWO, ("timm:a", "timm:b"), ("fast", "plain"), seeds=3)
    found = pairings(some, claims_timed([]))
    assert len(found) == 4 and all(cell.config.seed == 0 for one in found for cell in one)
    assert {(one[0].config.backbone, one[0].config.execution) for one in found} == set(
        product(("timm:a", "timm:b"), ("fast", "plain"))
    )
    assert all(len({cell.bare for cell in one}) == 1 for one in found)


def test_a_regime_alone_is_not_paired() -> None:
    """Nor are two that no claim about time or memory compares."""
    assert rotations(cells(("finetune",))) == rotations(cells(("frozen", "frozen-tutorial"))) == []
    assert rotations(cells(("finetune", "scratch"))) == []


def test_claims_of_a_grid_pair_cells_too() -> None:
    """Also a regime that starts from other weights. Claims about accuracies pair nothing."""
    assert rotations(cells(("finetune", "scratch")), timed_claim(regime="scratch")) == [["finetune", "scratch"]]
    only_memory = timed_claim(regime="quantized", metric="peak_memory_bytes")
    assert rotations(cells(("finetune", "quantized")), only_memory) == [["finetune", "quantized"]]
    accuracy = timed_claim(regime="scratch", metric="val_accuracy_last")
    assert rotations(cells(("finetune", "scratch")), accuracy) == []
    both = timed_claim(regime="frozen-tutorial", against="frozen")
    three = rotations(cells(("finetune", "frozen", "frozen-tutorial")), both)
    assert three == [["finetune", "frozen", "frozen-tutorial"], ["frozen", "frozen-tutorial"]]


@pytest.mark.parametrize(
    ("regimes", "settings", "left"),
    [
        (("finetune", "frozen", "cached"), {}, [["finetune", "frozen"]]),
        (("finetune", "frozen", "zeroshot"), {}, [["finetune", "frozen"]]),
        (TWO, {"protocol": "kfold"}, []),
        (TWO, {"protocol": "tuned"}, [["finetune", "frozen"]]),
    ],
)
def test_what_has_no_turns_is_left_out(regimes: Sequence[str], settings: dict[str, Any], left: list[list[str]]) -> None:
    """Features that are extracted once, no training, and several trainings on other images, whatever is claimed."""
    anything = timed_claim(regime="*")
    assert rotations(cells(regimes, **settings), anything) == left


def test_the_time_to_find_them_grows_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell is looked up once per claim, so ten thousand cells take no minutes."""
    calls, real = 0, pairs.all_else

    def counted(cell: Cell, regime: str) -> str:
        nonlocal calls
        calls += 1
        return real(cell, regime)

    monkeypatch.setattr(pairs, "all_else", counted)
    some = cells(("finetune", "frozen", "frozen-tutorial"), [f"timm:n{number}" for number in range(100)])
    assert len(pairings(some, claims_timed([]))) == 100
    assert calls <= len(some) * len(claims_timed([]))


def test_pairs_run_round_by_round_in_an_order_of_their_own() -> None:
    """A machine that drifts for minutes does so for all comparisons. The order is random, and always the same."""
    found = pairings(cells(TWO, [f"timm:n{number}" for number in range(8)]), claims_timed([]))

    def order(run: str, number: int = 5) -> list[PlannedPair]:
        planned = plan_pairs(found, number, 6.0, run)
        assert [pair.id for pair in planned.values()] == list(planned)
        return list(planned.values())

    planned = order("r")
    assert [pair.number for pair in planned] == sorted([*range(5)] * 8)
    names = [[pair.cells[0].config.backbone for pair in planned if pair.number == number] for number in range(5)]
    assert all(sorted(each) == [f"timm:n{number}" for number in range(8)] for each in names)
    assert len({tuple(each) for each in names}) == 5 and planned == order("r") != order("s")
    assert order("r", 7)[:40] == planned, "later pairs change nothing about earlier ones"


# What a grid says


def grid_file(text: str = QUICK, backbones: Sequence[str] = light.QUICK[:1], regimes: Sequence[str] = TWO) -> None:
    """Write `grid.toml`; `text` stands before its tables."""
    Path("grid.toml").write_text(
        GRID.format(paired=text, backbones=json.dumps([*backbones]), regimes=json.dumps([*regimes]))
    )


def test_a_grid_says_how_often_and_how_long() -> None:
    """Each key has a default, and `false` leaves it all out."""
    found = {}
    for text in ("", "paired = {pairs = 9}", "paired = {seconds = 2}", "paired = false"):
        grid_file(text)
        found[text] = load_grid("grid.toml").paired
    assert list(found.values()) == [Paired(), Paired(pairs=9), Paired(seconds=2.0), None]
    assert (Paired().pairs, Paired().seconds) == (5, 6.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("paired = {pairs = 1}", "grid.toml: paired.pairs=1: "),
        ("paired = {pairs = 2}", "grid.toml: paired.pairs=2: "),
        ("paired = {pairs = 2.5}", "grid.toml: paired.pairs=2.5: "),
        ("paired = {seconds = 0}", "grid.toml: paired.seconds=0: "),
        ("paired = {seconds = -1}", "grid.toml: paired.seconds=-1: "),
        ("paired = {seconds = nan}", "grid.toml: paired.seconds=nan: "),
        ('paired = {seconds = "6"}', "grid.toml: paired.seconds='6': "),
        ("paired = {second = 6}", "grid.toml: paired.second: unknown key; nearest valid key: 'seconds'"),
        ("paired = true", "grid.toml: paired=True: must be a table, [paired], or false"),
        ("paired = 5", "grid.toml: paired=5: must be a table, [paired], or false"),
    ],
)
def test_mistakes_in_a_grid_are_one_line(text: str, said: str) -> None:
    """The key, the value, and what would be right."""
    grid_file(text)
    with pytest.raises(ConfigError) as caught:
        load_grid("grid.toml")
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_options_replace_what_the_grid_says() -> None:
    """`--pairs` also turns on what a grid has off, such as `smoke`. The run stays the same run."""
    assert choose_grid("smoke", {}, {}).paired is None
    assert choose_grid("smoke", {}, {}, pairs=3).paired == Paired(pairs=3)
    grid_file()
    chosen = choose_grid("grid.toml", {}, {}, pairs=4)
    assert chosen.paired == Paired(pairs=4, seconds=0.01)
    assert choose_grid("grid.toml", {}, {}, paired=False).paired is None
    assert chosen.shared_settings == choose_grid("grid.toml", {}, {}, paired=False).shared_settings
    with pytest.raises(ConfigError, match="--pairs 4 and --no-paired: give one of them"):
        choose_grid("grid.toml", {}, {}, pairs=4, paired=False)


@pytest.mark.parametrize("number", ["1", "0", "-3", "1001"])
def test_a_number_of_pairs_that_can_not_be_is_one_line(number: str) -> None:
    """An interval needs three."""
    grid_file()
    done = light_here(*RUN, "--pairs", number)
    assert done.returncode == 2 and done.stderr.startswith(f"error: pairs={number}: ") and done.stderr.count("\n") == 1
    assert not Path("results").exists()


# What a run keeps


@pytest.fixture(autouse=True)
def _light(light_commands: None) -> None:
    """Cells of these tests are quick, and need no torch."""


def run(*more: str) -> subprocess.CompletedProcess[str]:
    """The command in this process, with quick cells."""
    return light_here(*RUN, *more)


def the_run() -> RunFolder:
    return RunFolder(Path("results/grid"))


def files() -> dict[str, bytes]:
    """All records of cells and pairs."""
    folders = ("cells", "pairs")
    return {
        f"{name}/{path.name}": path.read_bytes() for name in folders for path in (the_run().folder / name).glob("*")
    }


def numbers() -> Counter[str]:
    """Backbone → its pairs that are done."""
    return Counter(one.pair.cells[0].config.backbone for one in the_run().pairs().values() if one.status == "done")


def sweep_here(**changes: Any) -> tuple[Sweep, Grid, Options, light.LightExecutor, Console]:
    """The arguments of `execute` for `grid.toml`, with changes of the plan."""
    grid, options, console = load_grid("grid.toml"), Options(name="grid"), Console(quiet=True)
    executor = light.LightExecutor(process_executor.PRELOAD)
    return replace(plan(grid, options, executor, console), **changes), grid, options, executor, console


def test_pairs_are_timed_after_the_cells_and_described_before() -> None:
    """Each has a record with its place among those of the command; the description says how many and how long."""
    grid_file(backbones=light.QUICK[:2], regimes=(*TWO, "zeroshot"))
    done = run()
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "speed: 2 comparisons, each by 3 pairs of processes that take turns for 0.01 s; not compared: " in text
    assert text.index("[6/6]") < text.index("[pair 1/6] timm:quick")
    assert "finetune and frozen cpu, pair 3" in text and " turns each" in text
    found = list(the_run().pairs().values())
    assert [one.order for one in found] == [0, 1, 2, 3, 4, 5]
    assert [one.pair.number for one in found] == [0, 0, 1, 1, 2, 2]
    assert numbers() == dict.fromkeys(light.QUICK[:2], 3)
    assert list(the_run().manifest().pairs) == [one.pair_id for one in found]
    assert all(len(side.turns or ()) >= LEAST_ROUNDS for one in found for side in one.sides)


def test_from_python_they_are_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same mistakes."""
    monkeypatch.setitem(EXECUTORS, "process", lambda address: light.LightExecutor(process_executor.PRELOAD))
    grid_file()
    bench.run("grid.toml", name="grid", pairs=4, progress=False)
    assert numbers() == {light.QUICK[0]: 4}
    assert RunFolder(bench.run("grid.toml", name="without", paired=False, progress=False).folder).pairs() == {}
    with pytest.raises(ConfigError, match="give one of them"):
        bench.run("grid.toml", name="neither", pairs=4, paired=False)
    with pytest.raises(ConfigError, match="pairs=2: "):
        bench.run("grid.toml", name="neither", pairs=2)
    assert not Path("results/neither").exists()


def test_a_dry_run_lists_them_and_writes_nothing() -> None:
    """Each has a line with its state."""
    grid_file()
    done = run("--dry-run")
    assert done.stdout.count("to do     timm:quick0 finetune and frozen cpu, pair ") == 3
    assert not Path("results").exists()
    assert run().returncode == 0
    before = files()
    assert run("--dry-run", "--pairs", "4").stdout.count("  done      timm:quick0 finetune and frozen cpu, pair ") == 3
    assert files() == before


def test_more_pairs_continue_and_other_seconds_begin_anew() -> None:
    """Nothing that is done runs again, and nothing is replaced."""
    grid_file()
    assert run().returncode == 0
    first = files()
    assert "[pair" not in run().stdout
    assert run("--pairs", "5").returncode == 0
    assert numbers() == {light.QUICK[0]: 5} and first.items() <= files().items()
    more = files()
    assert run("--pairs", "3").returncode == 0 and files() == more
    grid_file("paired = {pairs = 3, seconds = 0.02}")
    assert run().stdout.count("[pair ") == 3
    assert numbers() == {light.QUICK[0]: 8} and more.items() <= files().items()


def test_a_run_without_pairs_gets_them_later() -> None:
    """Also one of schema 8, which knew none. Its cells don't run again."""
    grid_file()
    done = run("--no-paired")
    assert done.returncode == 0 and "speed: not timed in pairs of processes that take turns: " in done.stdout
    assert the_run().pairs() == {} and the_run().manifest().pairs == {}
    path, cells_before = the_run().folder / "manifest.json", files()
    data = json.loads(path.read_bytes())
    del data["digest"], data["pairs"], data["invocations"][0]["grid"]["paired"]
    path.write_bytes(seal((json.dumps({**data, "schema_version": 8}, indent=1) + "\n").encode()))
    done = run()
    assert done.returncode == 0 and "[1/" not in done.stdout and numbers() == {light.QUICK[0]: 3}
    assert cells_before.items() <= files().items()


def test_a_pair_that_failed_is_listed_and_tried_again() -> None:
    """The others go on. The exit status says that something failed, and the earlier record is kept."""
    grid_file(backbones=(light.QUICK[0], light.CRASHES))
    for attempt in (1, 2):
        done = run()
        assert done.returncode == 1
        assert "3 of 6 process pairs have no result" in done.stdout
        assert f"  failed: {light.CRASHES} finetune and frozen cpu, pairs 1–3: frozen: " in done.stdout
        assert numbers() == {light.QUICK[0]: 3}
        assert done.stdout.count("[pair ") == (6 if attempt == 1 else 3)
        crashed = [one for one in the_run().pairs().values() if one.status != "done"]
        assert {one.status for one in crashed} == {"failed"} and all("SIGSEGV" in one.reason for one in crashed)
        kept = [path for path in the_run().folder.glob("superseded/*") if path.stem[:12] in the_run().manifest().pairs]
        assert len(kept) == 3 * (attempt - 1)


def test_a_pair_that_lost_a_side_is_tried_again() -> None:
    """It has a result of the other two, and the status is 1 until it has one of all."""
    grid_file(backbones=[light.LIMPS], regimes=(*TWO, "frozen-tutorial"))
    for attempt in (1, 2):
        done = run()
        assert done.returncode == 1 and done.stdout.count("[pair ") == 3
        assert "3 of 3 process pairs have no result, or none of one cell" in done.stdout
        assert "pairs 1–3: frozen-tutorial: " in done.stdout and "SIGSEGV" in done.stdout
        assert numbers() == {light.LIMPS: 3}
        assert len(list(the_run().folder.glob("superseded/*"))) == 3 * (attempt - 1)
    Path(light.GO).touch()
    done = run()
    assert done.returncode == 0 and done.stdout.count("[pair ") == 3
    assert not any(one.lost for one in the_run().pairs().values())
    assert len(list(the_run().folder.glob("superseded/*"))) == 6
    done = run()
    assert done.returncode == 0 and "[pair" not in done.stdout


@pytest.mark.parametrize("worse", ["fewer", "apart"])
def test_a_record_with_less_does_not_take_the_place_of_an_earlier_one(worse: str, tmp_path: Path) -> None:
    """It is kept beside it, and a line says so. One with as much takes it."""
    three = [record("timm:a", regime) for regime in (*TWO, "frozen-tutorial")]
    cells = [one.cell for one in three]
    lame = pair_record(cells, (10.0, 5.0, 5.0), status="oom")
    folder = write_run(tmp_path / "r", three, pairs=[lame])
    said: list[str] = []
    images: Any = SimpleNamespace(name="own", train=range(244), val=range(len(TRUTH)), fallback="")
    recorder = PairRecorder(
        run=folder,
        splits=images,
        on_start=lambda pair: None,
        on_warning=said.append,
        on_end=lambda one: None,
        order=0,
        earlier=folder.pairs(),
    )
    path = folder.folder / "pairs" / f"{lame.pair_id}.json"
    before = path.read_bytes()
    made = pair_record(cells, (10.0, 5.0, 5.0), apart="no memory" if worse == "apart" else "")
    fewer = [one if place == 0 else lame.sides[2] for place, one in enumerate(made.sides)]
    status, sides = ("done", made.sides) if worse == "apart" else ("oom", tuple(fewer))
    recorder.pair_started(lame.pair)
    recorder.pair_ended(lame.pair, attempt_of(made, status=status, sides=sides))
    assert path.read_bytes() == before and len(said) == 1 and "the earlier record stays" in said[0]
    (kept,) = (folder.folder / "superseded").iterdir()
    assert f'"status":"{status}"' in kept.read_text().replace(" ", "")
    recorder.pair_ended(lame.pair, attempt_of(pair_record(cells, (10.0, 5.0, 5.0))))
    assert folder.pairs()[lame.pair_id].lost == [] and len(said) == 1
    assert len(list((folder.folder / "superseded").iterdir())) == 2


def attempt_of(one: PairRecord, **fields: Any) -> PairAttempt:
    """The attempt that a record is of, with some fields replaced."""
    names = ("status", "reason", "apart", "steps", "batches", "sides", "started", "wall_seconds", "environment")
    return PairAttempt(**{**{name: getattr(one, name) for name in names}, **fields})


def test_pairs_that_another_command_has_timed_meanwhile_are_not_timed_again() -> None:
    """With --wait a command is planned while another one still works."""
    grid_file()
    assert run().returncode == 0
    path = sorted((the_run().folder / "pairs").iterdir())[0]
    elsewhere = path.rename(path.parent.parent / path.name)
    arguments = sweep_here()
    assert [pair.id for pair in arguments[0].missing_pairs.values()] == [path.stem]
    elsewhere.rename(path)
    before = files()
    execute(*arguments)
    assert files() == before and not (the_run().folder / "superseded").exists()


def test_a_damaged_record_is_set_aside_and_its_pair_timed_again() -> None:
    """Whoever only reads refuses it by name."""
    grid_file()
    assert run().returncode == 0
    before = files()
    path = sorted((the_run().folder / "pairs").iterdir())[1]
    flip(path)
    broken = path.read_bytes()
    with pytest.raises(UserError, match=f"{path.name}.*`bench run` sets it aside and runs its pair again"):
        the_run().pairs()
    done = run()
    assert done.returncode == 0 and done.stdout.count("[pair 3/3]") == 1 and "its pair is timed again" in done.stdout
    assert (the_run().folder / "set-aside" / f"{path.stem}-1.json").read_bytes() == broken
    after = files()
    assert numbers() == {light.QUICK[0]: 3} and after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {f"pairs/{path.name}"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_ends_the_run_with_the_pair_that_is_lost(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names it. The next command continues from there."""
    grid_file()

    def fail(path: Path, content: str | bytes) -> None:
        if path.parent.name == "pairs" and len(list(path.parent.glob("*.json"))) == 1:
            raise OSError(number, os.strerror(number), str(path))
        write_atomic(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_atomic", fail)
        with pytest.raises(UserError, match=f"{os.strerror(number)}; the pair that has just ended .*was NOT saved"):
            execute(*sweep_here())
    assert numbers() == {light.QUICK[0]: 1} and not list(the_run().folder.rglob(".*.tmp"))
    before = files()
    done = run()
    assert done.returncode == 0 and done.stdout.count("[pair ") == 2 and before.items() <= files().items()


def test_an_executor_without_processes_says_that_it_times_no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and the cells run."""
    grid_file()
    monkeypatch.setattr(light.LightExecutor, "takes_turns", False)
    done = run()
    assert (
        done.returncode == 0
        and "speed: not timed in pairs of processes that take turns: this executor can't keep several" in done.stdout
    )
    assert the_run().pairs() == {} and len(the_run().records()) == 2


@pytest.mark.parametrize(
    ("regimes", "protocol", "said"),
    [
        (("frozen",), "fixed", "no claim about time or memory compares two of these cells"),
        (TWO, "kfold", "protocol kfold trains several times on other images"),
        (("cached",), "fixed", "its features are extracted once"),
    ],
)
def test_why_nothing_is_timed_is_one_line(regimes: Sequence[str], protocol: str, said: str) -> None:
    """Before anything runs."""
    grid_file(regimes=regimes)
    done = run("--dry-run", "--protocol", protocol, "--epochs", "2")
    assert f"speed: not timed in pairs of processes that take turns: {said}\n" in done.stdout


def test_cells_without_partners_are_counted_where_there_are_many() -> None:
    """A line names a few."""
    grid_file(backbones=light.QUICK, regimes=(*TWO, "cached"))
    (line,) = [line for line in run("--dry-run").stdout.splitlines() if line.startswith("speed: ")]
    assert line.count(" cached cpu") == 5 and line.endswith(" and 7 more")


def test_without_weights_a_pair_fails_before_it_starts() -> None:
    """Its record has the reason; nothing was started."""
    grid_file()
    planned, *others = sweep_here()
    execute(replace(planned, weights=dict.fromkeys(planned.cells, "no pretrained weights here")), *others)
    found = the_run().pairs().values()
    assert {(one.status, one.reason, one.attempts) for one in found} == {("failed", "no pretrained weights here", 0)}
    assert len(found) == 3


@pytest.mark.parametrize("seeds", ["1", "[1, 2]"])
def test_pairs_of_cells_that_others_replace_are_retired(seeds: str) -> None:
    """A cell without weights gives way to the same cell with weights, and so do its pairs, whatever its seed."""
    grid_file()
    with Path("grid.toml").open("a") as file:
        file.write(f"seeds = {seeds}\n")
    planned, *others = sweep_here()
    execute(planned, *others)
    old = [one.pair_id for one in the_run().pairs().values()]
    with_weights = [cell.replace(weights_digest="e" * 64) for cell in planned.cells.values()]
    later = plan_pairs(pairings(with_weights, claims_timed([])), 3, 0.01, "grid")
    execute(
        *(
            replace(
                planned,
                cells={cell.id: cell for cell in with_weights},
                weights=dict.fromkeys((cell.id for cell in with_weights), Weights(kind="random", source="random")),
                pairs=later,
                done={},
                previous=the_run().manifest(),
            ),
            *others,
        )
    )
    assert set(the_run().manifest().pairs) == set(the_run().pairs()) == set(later)
    assert all((the_run().folder / "superseded" / f"{pair_id}-1.json").is_file() for pair_id in old)


def test_the_memory_of_cells_that_ended_goes_with_the_job(mini: Splits, tmp_path: Path) -> None:
    """So that pairs that can't be alive together are known beforehand. Unknown stays unknown."""
    ended = [record("timm:a", "finetune", seed=seed, seconds=10.0 + seed) for seed in range(2)]
    frozen = record("timm:a", "frozen", status="failed")
    both = (ended[0].cell, frozen.cell)
    planned = PlannedPair(cells=both, number=0, seconds=1.0)
    random = dict.fromkeys((cell.repeats for cell in both), Weights(kind="random", source="random"))
    recorder: Any = Recorder(RunFolder(tmp_path))
    (job,) = pair_jobs(
        [planned], random, [*ended, frozen], mini, recorder, ended[0].environment, timeout=9.0, memory_bytes=1 << 30
    )
    assert job.needed_bytes == (11 << 20, None)
    assert (job.timeout_seconds, job.memory_bytes) == (9.0 + 2 * 1.0, 1 << 30), "turns have time of their own"
    assert job.log == tmp_path / "logs" / f"{planned.id}.log"


class Recorder:
    """As much of a `PairRecorder` as `pair_jobs` needs."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run


# Ends of the command


FAMILY = "TEST_FAMILY"
"""An environment variable that marks all processes that a test starts."""


def begin(*more: str) -> subprocess.Popen[str]:
    """The command in a process of its own, which is not waited for."""
    words = [*LIGHT, *RUN, *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def line_with(process: subprocess.Popen[str], wanted: str) -> str:
    """The next line of the output that contains a text."""
    assert process.stdout is not None
    return next(line for line in process.stdout if wanted in line)


def family() -> list[psutil.Process]:
    """All processes of this test's commands that still run."""
    found = []
    for one in psutil.process_iter():
        try:
            mine = one.environ().get(FAMILY) == os.environ[FAMILY]
            if mine and one.pid != os.getpid() and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except psutil.Error:  # it has ended, or belongs to another user
            continue
    return found


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose cells and first pairs are done. Its other pairs wait, in their first turn, for the returned file."""
    go = tmp_path / "go"
    monkeypatch.setenv("LIGHT_GO", str(go))
    monkeypatch.setenv(FAMILY, str(tmp_path))
    grid_file(backbones=(light.QUICK[0], light.WAITS))
    go.touch()
    assert subprocess.run([*LIGHT, *RUN, "--no-paired"], check=False, capture_output=True).returncode == 0
    assert subprocess.run([*LIGHT, *RUN, "--backbone", "quick0"], check=False, capture_output=True).returncode == 0
    assert numbers() == {light.QUICK[0]: 3} and len(the_run().records()) == 4
    go.unlink()
    return go


@pytest.mark.parametrize("victim", ["command", "group", "processes"])
def test_kill_9_loses_no_pair_and_leaves_nothing(victim: str, waiting: Path) -> None:
    """Pairs that are done keep their bytes and are not timed again; the one in flight is."""
    before = files()
    process = begin()
    line_with(process, "[pair 4/6]")
    time.sleep(0.3)  # at any moment of the pair
    if victim == "processes":
        for one in psutil.Process(process.pid).children(recursive=True):
            if one.pid == os.getsid(one.pid) and one.pid != process.pid:
                one.kill()
        process.send_signal(signal.SIGTERM)
    elif victim == "command":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    deadline = time.monotonic() + 60
    while family() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not family(), "no process of the pair outlives its parent"
    assert before.items() <= files().items() and numbers() == {light.QUICK[0]: 3}
    waiting.touch()
    done = subprocess.run([*LIGHT, *RUN], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and done.stdout.count("[pair ") == 3, done.stdout + done.stderr
    assert before.items() <= files().items() and numbers() == {light.QUICK[0]: 3, light.WAITS: 3}
    left = [path.name for path in the_run().folder.rglob(".*") if path.is_file()]
    assert left == [".lock"], "no temporary file, no reserved space"


def test_ctrl_c_once_lets_the_pair_end(waiting: Path) -> None:
    """It is written, none starts after it, and the last line says how many are done."""
    process = begin()
    line_with(process, "[pair 4/6]")
    process.send_signal(signal.SIGINT)
    assert "pair" in line_with(process, "stopping: ")
    waiting.touch()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "[pair 5/6]" not in out and err == "", out + err
    assert "interrupted: 4 cells done; 4 of 6 process pairs done, 2 left; the same command continues" in out
    assert numbers() == {light.QUICK[0]: 3, light.WAITS: 1}


def test_ctrl_c_twice_ends_the_pair_at_once(waiting: Path) -> None:
    """What it has measured is not kept, and none of its processes is left."""
    process = begin()
    line_with(process, "[pair 4/6]")
    process.send_signal(signal.SIGINT)
    line_with(process, "stopping: ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "3 of 6 process pairs done, 3 left" in out and err == "", out + err
    deadline = time.monotonic() + 60
    while family() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not family() and numbers() == {light.QUICK[0]: 3}


# Progress


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_says_what_a_pair_lost(terminal: bool) -> None:
    """A pair of three is done although one of them died; it names that one. It also says what took no turns."""
    three = [record("timm:a", regime).cell for regime in ("finetune", "frozen", "frozen-tutorial")]
    lame = pair_record(three, (10.0, 5.0, 5.0), status="oom")
    apart = pair_record(three[:2], (10.0, 5.0), apart="together they need 9 GiB, and 8 GiB are free", number=1)
    text = io.StringIO()
    with make_reporter(Console(file=text, width=200, force_terminal=terminal), (), 2) as reporter:
        for one in (lame, apart):
            reporter.pair_started(one.pair)
            reporter.pair_ended(one)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert (
        "timed in 10 s, 8 turns each: frozen 50% of the time of finetune; oom: frozen-tutorial: took | too <b>long</b>"
        in plain
    )
    assert (
        "8 turns each: frozen 50% of the time of finetune; one after the other, because together they need 9 GiB"
        in plain
    )
    assert lame.lost == [("oom", "frozen-tutorial: took | too <b>long</b>")] and apart.lost == []


def test_a_matrix_without_a_table_has_the_defaults() -> None:
    """Also a grid that is made in Python."""
    assert Grid(name="g", matrix=Matrix(backbones=["timm:a"])).paired == Paired()


def test_the_shipped_grids_compare_speeds_where_times_mean_something() -> None:
    """`smoke` has tiny networks, and `pick` chooses. The default grid has as many seconds as ten minutes allow."""
    assert {name: load_grid(name).paired for name in shipped()} == {
        "default": Paired(pairs=8, seconds=4.0),
        "detection-smoke": None,
        "full": Paired(),
        "pick": None,
        "regimes": Paired(pairs=5, seconds=4.0),
        "smoke": None,
        "tutorial": Paired(),
    }
