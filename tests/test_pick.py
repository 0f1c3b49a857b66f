"""`bench pick`: which rungs run, who comes further, what is chosen, and what it says without time or choice."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import bench
from bench.analysis.groups import Group, make_groups
from bench.analysis.picking import cards, latency, peak_memory, survivors
from bench.execution import executors
from bench.execution.process import PRELOAD
from bench.report.pick_text import print_pick, rule, sentence, tied_with
from bench.store.picks import Chosen, PickRecord, Tied
from bench.store.records import Cell, Record
from bench.store.runs import RunFolder
from bench.sweep import final, pick
from bench.sweep.grid import Grid, Matrix, expand
from bench.sweep.options import Options
from bench.sweep.pick import Aim, Budget
from bench.sweep.plan import Sweep
from tests.commands import light_command
from tests.images import write_folder, write_image
from tests.light import LightExecutor
from tests.runs import PRETRAINED, TRUTH, record, write_pick, write_run
from tl.errors import ConfigError, UserError
from tl.results import InferenceCost

PROBES = pick.probes()
REGIMES = ("finetune", "frozen")


@dataclass(frozen=True)
class Score:
    """Stands for `Ranked`."""

    backbone: str
    probe: float
    tied: bool
    low: float = 0.5
    high: float = 1.0


@dataclass
class World:
    """Backbones whose accuracy and speed are given. No cell runs; a clock goes on as if they did."""

    monkeypatch: pytest.MonkeyPatch
    right: Mapping[str, int]
    """Backbone → validation images of 100 that it classifies right, fine-tuned; its head alone has one less."""
    scores: Mapping[str, float]
    """Backbone → its probe."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Backbone → seconds of an epoch, 1 by default."""
    without: tuple[str, ...] = ()
    """Backbones without pretrained weights."""
    fails: tuple[tuple[str, str], ...] = ()
    """Backbones and regimes whose cells fail."""
    tied_within: float = 0.01
    now: float = 0.0
    ran: list[tuple[str, str, int, int]] = field(default_factory=list)
    """Backbone, regime, epochs and seed of each cell that ran, in order."""
    disk: dict[str, dict[str, Record]] = field(default_factory=dict)
    written: list[PickRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.console = Console(record=True, width=300, file=io.StringIO())
        for name, put in {
            "plan": self.plan,
            "execute": self.execute,
            "describe": lambda *_, **__: None,
            "held": lambda *_: contextlib.nullcontext(),
            "executor_for": lambda options: SimpleNamespace(has_limits=True),
            "rank_by_probe": self.rank,
            "Budget": partial(Budget, clock=lambda: self.now),
        }.items():
            self.monkeypatch.setattr(pick, name, put)

    def pick(self, *, seeds: int | list[int] = 3, epochs: int = 5, top: int = 3, **aim: Any) -> PickRecord:
        """Run, and return the record that was written."""
        grid = Grid(
            name="pick", matrix=Matrix(backbones=list(self.scores), seeds=seeds), train={"epochs": epochs}, paired=None
        )
        options = Options(name="p", weights="pretrained", command="bench pick images")
        outcome = pick.run_pick(grid, options, self.console, Aim(top=top, **aim))
        assert outcome and outcome.record is self.written[-1]
        return outcome.record

    def plan(self, grid: Grid, options: Options, executor: object, console: Console) -> Sweep:
        planned = expand(grid, weights="pretrained", spec=lambda name: name, devices=lambda: {"cpu": "a CPU"})
        cells, weights = {}, {}
        for item in planned:
            lacks = item.config.backbone in self.without
            cell = Cell(
                config=item.config,
                weights_digest="" if lacks else PRETRAINED.digest,
                dataset_digest="0" * 64,
                device=item.device,
            )
            cells[cell.id], weights[cell.id] = cell, "no network" if lacks else PRETRAINED
        disk = self.disk.setdefault(options.name, {})
        run: Any = SimpleNamespace(
            folder=SimpleNamespace(name=options.name),
            records=lambda: dict(disk),
            write_pick=self.written.append,
        )
        splits: Any = SimpleNamespace(train=range(244), val=_Images(), test=None)
        return Sweep(
            run=run,
            splits=splits,
            cells=cells,
            weights=weights,
            resolved={},
            done={key: disk[key] for key in cells if key in disk},
            damaged={},
            pairs={},
            done_pairs={},
            unpaired="",
            previous=None,
            survey=None,  # type: ignore[arg-type]
        )

    def execute(self, sweep: Sweep, grid: Grid, options: Options, *_: object) -> dict[str, Record]:
        found = dict(sweep.done)
        for cell_id, cell in sweep.cells.items():
            if cell_id in found or (options.admit and not options.admit(cell)):
                continue
            config = cell.config
            self.ran.append((config.backbone, config.regime, config.epochs, config.seed))
            head = 0 if config.regime == "finetune" else 1
            failed = (config.backbone, config.regime) in self.fails
            made = record(
                config.backbone,
                config.regime,
                seconds=self.seconds.get(config.backbone, 1.0),
                right=self.right[config.backbone] - head,
                status="failed" if failed else "done",
                seed=config.seed,
                epochs=config.epochs,
            )
            if config.regime in PROBES and made.result:
                extraction = {"extraction_seconds": made.wall_seconds - 1, "extracting_seconds": made.wall_seconds - 1}
                made = made.replace(result=made.result.replace(**extraction))
            found[cell_id] = made.replace(cell=cell, cell_id=cell_id)
            self.now += made.wall_seconds
            self.disk[options.name][cell_id] = found[cell_id]
        return found

    def rank(self, records: list[Record], *, regime: str) -> list[Any]:
        probed = {one.cell.config.backbone for one in records if one.status == "done"}
        best = max(self.scores[name] for name in probed)
        ordered = sorted(probed, key=lambda name: -self.scores[name])
        return [Score(name, self.scores[name], self.scores[name] >= best - self.tied_within) for name in ordered]

    def trained(self, epochs: int) -> dict[tuple[str, str], list[int]]:
        """Backbone and regime → the seeds with so many epochs, without probes."""
        found: dict[tuple[str, str], list[int]] = {}
        for backbone, regime, passes, seed in self.ran:
            if regime not in PROBES and passes == epochs:
                found.setdefault((backbone, regime), []).append(seed)
        return found


class _Images:
    labels = TRUTH

    def __len__(self) -> int:
        return len(TRUTH)


def test_all_are_probed_and_the_best_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rung has fewer backbones than the one before; those that fall out have the reason."""
    names = {"timm:a": 0.95, "timm:b": 0.93, "timm:c": 0.9, "timm:d": 0.8}
    world = World(monkeypatch, {"timm:a": 97, "timm:b": 96, "timm:c": 60, "timm:d": 70}, names)
    found = world.pick()
    assert {(name, regime) for name, regime, _, _ in world.ran if regime in PROBES} == {
        (name, regime) for name in names for regime in PROBES
    }
    assert set(world.trained(1)) == {(name, regime) for name in ["timm:a", "timm:b", "timm:c"] for regime in REGIMES}
    whole = world.trained(5)
    assert whole == {(name, regime): [0, 1, 2] for name in ("timm:a", "timm:b") for regime in REGIMES}
    rungs = {one.backbone: (one.rung, one.reason) for one in found.candidates}
    assert rungs["timm:a"] == rungs["timm:b"] == ("trained", "")
    assert rungs["timm:c"] == ("one epoch", "after one epoch it is clearly less accurate than the best")
    assert rungs["timm:d"][0] == "probe" and "not among the best 3" in rungs["timm:d"][1]
    assert [one.backbone for one in found.candidates] == ["timm:a", "timm:b", "timm:c", "timm:d"]
    assert found.pick and found.pick.backbone == "timm:a" and found.pick.seeds == 3


def test_ties_with_the_best_probe_are_tried_too_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come after those that `top` names, and one that there is no time for has the reason."""
    scores = {f"timm:{name}": 0.95 - place / 1000 for place, name in enumerate("abcde")}
    accuracies = dict.fromkeys(scores, 95)
    world = World(monkeypatch, accuracies, scores)
    world.pick(top=2)
    assert set(world.trained(1)) == {(name, regime) for name in scores for regime in REGIMES}
    assert list(dict.fromkeys(name for name, _ in world.trained(1)))[2:] == list(scores)[2:]

    # Five probes take three cells of 2 s each, and a rung of one epoch 4 s a backbone.
    short = World(monkeypatch, accuracies, scores)
    found = short.pick(top=2, budget_seconds=pick.REPORT_SECONDS + 5 * len(PROBES) * 2 + 9)
    assert set(short.trained(1)) < {(name, regime) for name in scores for regime in REGIMES}
    refused = [one for one in found.candidates if one.rung == "probe"]
    assert refused and all("no time left" in one.reason or "it would take" in one.reason for one in refused)


def test_the_budget_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cell starts that would overrun it, and the answer says what more time would buy."""
    scores = {"timm:a": 0.95, "timm:b": 0.94}
    for budget in (30.0, 60.0, 120.0, 200.0):
        world = World(monkeypatch, dict.fromkeys(scores, 95), scores, seconds=dict.fromkeys(scores, 5.0))
        found = world.pick(budget_seconds=budget)
        # A probe has no estimate before it runs; it starts only while there is time.
        assert world.now <= max(budget - pick.REPORT_SECONDS, len(PROBES) * 2 * 6)
        assert any("more" in text and "--budget" in text for text in found.more)
    whole = World(monkeypatch, dict.fromkeys(scores, 95), scores)
    assert not any("--budget" in text for text in whole.pick(budget_seconds=3600).more)


def test_more_time_is_said_for_the_least_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole training has an estimate after one epoch; what had not even that takes at least one epoch."""
    scores = {"timm:a": 0.95, "timm:b": 0.94}
    world = World(monkeypatch, {"timm:a": 95, "timm:b": 95}, scores, seconds={"timm:a": 5.0, "timm:b": 8.0})
    probes = len(PROBES) * (6.0 + 9.0)
    (text,) = [one for one in world.pick(budget_seconds=pick.REPORT_SECONDS + probes + 5.0).more if "--budget" in one]
    assert not world.trained(1), "an epoch of each takes longer than the 5 s that are left"
    names = "timm:a finetune, timm:a frozen, timm:b finetune, timm:b frozen"
    assert text.startswith(f"With more time (--budget), these could be trained: {names}. ")
    seconds = [float(one) for one in re.findall(r"at least ([\d.]+) s", text)]
    assert "timm:a frozen alone takes at least" in text and "all 4 together take at least" in text
    assert 2 * seconds[0] < seconds[1], "all take more than the least"
    assert "minutes" not in text, "such a budget was hardly meant in minutes"

    # One epoch of each is run: 6 s for two combinations and 9 s for two. Of five epochs no seed has time.
    one_epoch = World(monkeypatch, {"timm:a": 95, "timm:b": 95}, scores, seconds={"timm:a": 5.0, "timm:b": 8.0})
    budget = pick.REPORT_SECONDS + probes + 2 * (6.0 + 9.0) + 20.0
    (text,) = [one for one in one_epoch.pick(budget_seconds=budget).more if "--budget" in one]
    assert one_epoch.trained(1) and not one_epoch.trained(5)
    assert "timm:a finetune alone takes about 78 s, all 4 together take about 7 minutes" in text

    short = World(monkeypatch, {"timm:a": 95}, {"timm:a": 0.9}, seconds={"timm:a": 9.0})
    (text,) = [one for one in short.pick(budget_seconds=pick.REPORT_SECONDS + 5.0).more if "--budget" in one]
    assert text.endswith("`--budget 20m` is 20 minutes, a number alone is seconds.")


def test_the_same_command_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has ended isn't run again, and the answer is the same."""
    scores = {"timm:a": 0.95, "timm:b": 0.94}
    world = World(monkeypatch, {"timm:a": 95, "timm:b": 90}, scores)
    first = world.pick()
    ran = list(world.ran)
    again = world.pick()
    assert world.ran == ran
    assert again.cards == first.cards and again.candidates == first.candidates


def test_only_what_the_command_asks_for_is_chosen_among(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run may have better cells, of an earlier command with other candidates."""
    world = World(monkeypatch, {"timm:a": 99, "timm:b": 80}, {"timm:a": 0.95})
    world.pick()
    world.scores = {"timm:b": 0.9}
    found = world.pick()
    assert {card.backbone for card in found.cards.values()} == {"timm:b"}
    assert [one.backbone for one in found.candidates] == ["timm:b"]


def test_whoever_is_not_tied_has_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties need not be neighbours: tests of pairs on the same images may tell the fourth apart and not the fifth."""
    scores = {f"timm:{name}": 0.95 - place / 1000 for place, name in enumerate("abcde")}
    world = World(monkeypatch, dict.fromkeys(scores, 95), scores)
    tied = {"timm:a": True, "timm:b": True, "timm:c": True, "timm:d": False, "timm:e": True}
    monkeypatch.setattr(
        pick, "rank_by_probe", lambda records, *, regime: [Score(name, scores[name], tied[name]) for name in scores]
    )
    found = {one.backbone: one for one in world.pick().candidates}
    assert found["timm:d"].rung == "probe" and "clearly below the best" in found["timm:d"].reason
    assert found["timm:e"].rung == "trained" and not found["timm:e"].reason


def test_probes_have_the_first_seed_of_the_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups without a seed in common can't be compared."""
    world = World(monkeypatch, {"timm:a": 95}, {"timm:a": 0.9})
    world.pick(seeds=[3, 4])
    assert {seed for _, _, epochs, seed in world.ran if epochs != 5} == {3}
    assert world.trained(5)["timm:a", "frozen"] == [3, 4]


def test_backbones_without_weights_are_no_candidates_that_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are shown with the reason, and nothing of theirs runs. The one with weights has no rival: it is no pick."""
    world = World(monkeypatch, {"timm:a": 95, "timm:b": 90}, {"timm:a": 0.9, "timm:b": 0.99}, without=("timm:b",))
    found = world.pick()
    assert {name for name, *_ in world.ran} == {"timm:a"}
    assert found.pick is None and not found.cards
    assert found.why_none == "only timm:a has a result, and 1 rival has none; `--backbone timm:a` picks how to train it"
    assert next(one for one in found.candidates if one.backbone == "timm:a").accuracies["finetune"] == pytest.approx(
        0.95
    )
    assert found.candidates[-1].backbone == "timm:b" and found.candidates[-1].reason == "no network"
    assert found.candidates[-1].rung == "not tried"
    assert any("1 more candidate could be tried" in text for text in found.more)


def test_without_any_weights_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names the candidates and the reason."""
    world = World(monkeypatch, {"timm:a": 95}, {"timm:a": 0.9}, without=("timm:a",))
    with pytest.raises(UserError, match=r"no candidate has pretrained weights here .*timm:a.*no network"):
        world.pick()
    assert not world.ran and not world.written


def test_what_fails_is_no_choice_and_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A combination without a result is never picked."""
    world = World(
        monkeypatch, {"timm:a": 99, "timm:b": 80}, {"timm:a": 0.9, "timm:b": 0.9}, fails=(("timm:a", "finetune"),)
    )
    found = world.pick()
    assert found.pick and (found.pick.backbone, found.pick.regime) != ("timm:a", "finetune")
    assert "finetune: took" in next(one.reason for one in found.candidates if one.backbone == "timm:a")


def test_nothing_is_picked_if_nothing_beats_the_largest_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the images are of the larger class."""
    world = World(monkeypatch, {"timm:a": 50, "timm:b": 50}, {"timm:a": 0.9, "timm:b": 0.9})
    found = world.pick()
    assert found.pick is None and not found.cards
    assert "always answering" in found.why_none


LIGHT = (
    "pick",
    "synthetic-mini",
    "--backbone",
    "timm:quick0,timm:quick1",
    "--name",
    "p",
    "--epochs",
    "2",
    "--seeds",
    "1",
)


def test_the_command_prints_the_answer_and_writes_the_report(tmp_path: Path) -> None:
    """Text for people, JSON for programs; the report begins with the same sentence. Progress is on standard error."""
    done = light_command(*LIGHT)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder(tmp_path / "results" / "p")
    found = run.pick()
    assert found and found.pick
    assert " ".join(done.stdout.split()).startswith(sentence(found))
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith(("timm:", "With", "note")))
    assert sentence(found) in (tmp_path / "reports" / "p.md").read_text(encoding="utf-8").replace("\\", "")
    assert "Candidates" in (tmp_path / "reports" / "p.html").read_text(encoding="utf-8")
    assert "1." in done.stderr and "[1/2]" in done.stderr and "[1/4]" in done.stderr
    again = light_command(*LIGHT, "--format", "json")
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert {
        "backbone",
        "regime",
        "accuracy",
        "low",
        "high",
        "baseline",
        "seconds_to_train",
        "peak_memory_bytes",
    } <= set(told["pick"])
    assert {"backbone", "probe", "low", "high", "rung", "reason"} <= set(told["ranking"][0])
    assert told["data"]["images"] == 40 and told["data"]["baseline"]["rate"] > 0
    assert told["pick"]["backbone"] == found.pick.backbone and told["seconds"] > 0
    assert len(list((run.folder / "superseded").glob("pick-*.json"))) == 1, "the earlier one is kept"


def test_test_images_are_for_the_pick_alone(tmp_path: Path) -> None:
    """One cell sees them, in a run of its own. A damaged one is no reason to lose the choice."""
    root = write_folder(tmp_path / "photos")
    for number, name in enumerate(path.name for path in (root / "train").iterdir()):
        write_image(root / "test" / name / "a.png", seed=900 + number)
    # One repeats a training image. Another repeats a validation image, which nothing is trained on.
    shutil.copy(root / "train" / "a" / "0.jpg", root / "test" / "a" / "b.jpg")
    shutil.copy(root / "val" / "b" / "0.jpg", root / "test" / "b" / "b.jpg")
    several = ("pick", "photos", *LIGHT[2:])
    done = light_command(*several)
    assert done.returncode == 0, done.stdout + done.stderr
    found, tested = RunFolder(tmp_path / "results" / "p").pick(), RunFolder(tmp_path / "results" / "p-test")
    assert found and found.test and found.test.images == 4
    assert "test images, which played no part in the choice" in done.stdout
    assert [one.result.config.backbone for one in tested.records().values() if one.result] == [found.pick.backbone]
    assert not any("test/" in file for file in RunFolder(tmp_path / "results" / "p").manifest().dataset.val_files)
    leaked = "1 of the 4 test images repeats a training image, so the accuracy on them is too high for new images."
    assert leaked in found.notes and leaked in " ".join(done.stdout.split())
    next((root / "test").rglob("*.png")).write_bytes(b"no picture")
    again = light_command(*several, "--fresh", "--no-report")
    assert again.returncode == 0, again.stdout + again.stderr
    spoilt = RunFolder(tmp_path / "results" / "p-2").pick()
    assert spoilt and spoilt.pick and spoilt.test is None and any("can't be used" in text for text in spoilt.notes)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """It says which backbones would be probed, and how the best are trained."""
    done = light_command(*LIGHT, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "would probe: timm:quick0, timm:quick1" in done.stderr and "would train" in done.stderr
    assert not (tmp_path / "results").exists() and not (tmp_path / "reports").exists()


def test_fresh_starts_over_in_a_new_folder(tmp_path: Path) -> None:
    """Nothing of the earlier pick is used or changed."""
    assert light_command(*LIGHT, "--no-report").returncode == 0
    before = (tmp_path / "results" / "p" / "pick.json").read_bytes()
    assert light_command(*LIGHT, "--no-report", "--fresh").returncode == 0
    assert (tmp_path / "results" / "p-2" / "pick.json").exists()
    assert (tmp_path / "results" / "p" / "pick.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pick", "nowhere", "--backbone", "timm:quick0"), "no such folder"),
        (("pick", "synthetic-mini", "--budget", "soon"), "--budget 'soon' must be a time above 0"),
        (("pick", "synthetic-mini", "--budget", "5s"), "--budget 5s must be more than"),
        (("pick", "synthetic-mini", "--tune-top", "0"), "--tune-top 0 must be a number from 1"),
        (("pick", "synthetic-mini", "--backbone", "timm:quik0"), "near matches: timm:quick0"),
        (("pick", "synthetic-mini", "--epochs", "0"), "epochs=0"),
        (("pick", "synthetic-mini", "--executor", "rey"), "executor='rey': not one of"),
        (("pick", "synthetic-mini", "--timeout", "0"), "--timeout 0 must be a number of seconds above 0"),
        (("pick", "synthetic-mini", "--memory-limit", "much"), "--memory-limit 'much' must be a size"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """With exit status 2."""
    done = light_command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert not (tmp_path / "results").exists() and not (tmp_path / "reports").exists()


def test_a_notebook_has_it_as_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that it returns knows the choice."""
    monkeypatch.setitem(executors.EXECUTORS, "process", lambda address: LightExecutor(PRELOAD))
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    run = bench.pick("synthetic-mini", backbones=["timm:quick0", "timm:quick1"], seeds=1, epochs=2, progress=False)
    assert run.name == "pick-synthetic-mini"
    found = run.pick()
    assert found and found.pick and run.answers()[0] == sentence(found)  # others may doubt times, on a busy machine
    assert found.command.startswith("bench.pick(data='synthetic-mini'")


def test_a_training_has_the_time_limit_that_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own, or what is left of the budget; an executor that can't end a cell has none."""
    world = World(monkeypatch, {"timm:a": 95}, {"timm:a": 0.9})
    execute, seen = world.execute, list[float | None]()

    def noted(sweep: Sweep, grid: Grid, options: Options, *others: Any) -> Any:
        seen.append(options.timeout)
        return execute(sweep, grid, options, *others)

    monkeypatch.setattr(pick, "execute", noted)
    options = Options(name="p", weights="pretrained", timeout=50.0)
    grid = Grid(name="pick", matrix=Matrix(backbones=["timm:a"], seeds=1), train={"epochs": 5}, paired=None)
    pick.run_pick(grid, options, world.console, Aim(budget_seconds=1000.0))
    assert set(seen) == {50.0}
    seen.clear()
    world.disk.clear()
    pick.run_pick(grid, options, world.console, Aim(budget_seconds=pick.REPORT_SECONDS + 30))
    assert seen[0] == 30.0 and all(limit is not None and limit <= 30.0 for limit in seen)
    seen.clear()
    world.disk.clear()
    monkeypatch.setattr(pick, "executor_for", lambda options: SimpleNamespace(has_limits=False))
    pick.run_pick(grid, Options(name="p", weights="pretrained"), world.console, Aim(budget_seconds=1000.0))
    assert set(seen) == {None}


def test_a_model_is_trained_of_what_was_picked(tmp_path: Path) -> None:
    """Not of what the figures alone would recommend."""
    best, cheap = record("timm:a", "finetune", right=99), record("timm:b", "frozen", right=80)
    run = write_run(tmp_path / "results" / "r", [best, cheap])
    assert final._recommended(run, run.manifest(), run.records()).cell_id == best.cell_id
    write_pick(run, cheap, "time")
    assert final._recommended(run, run.manifest(), run.records()).cell_id == cheap.cell_id


def _groups(*made: Record) -> list[Group]:
    return make_groups((("r", one) for one in made), {"r": TRUTH})


def test_survivors_are_those_that_are_not_clearly_worse() -> None:
    """By McNemar's test on the same images, adjusted for the number of groups."""
    near, far = record("timm:b", "frozen", right=92), record("timm:c", "frozen", right=60)
    left = survivors(_groups(record("timm:a", "frozen", right=95), near, far))
    assert [group.config.backbone for group in left] == ["timm:a", "timm:b"]
    assert not survivors([])


def test_each_priority_has_its_card() -> None:
    """The cheapest is chosen only among what is nearly as accurate as the best."""
    best = record("timm:best", "finetune", right=96, seconds=10)
    near = record("timm:near", "frozen", right=95, seconds=3)
    poor = record("timm:poor", "frozen", right=60, seconds=0.1)
    found = {card.priority: card.group.config.backbone for card in cards(_groups(best, near, poor))}
    assert found == {"accuracy": "timm:best", "time": "timm:near", "memory": "timm:near"}, "no latency is known"
    (accurate,) = [card for card in cards(_groups(best, near, poor)) if card.priority == "accuracy"]
    assert [group.config.backbone for group in accurate.tied] == ["timm:near"]
    clear = {
        card.priority: card.group.config.backbone for card in cards(_groups(record("timm:a", "frozen", right=99), poor))
    }
    assert set(clear.values()) == {"timm:a"}


def _chosen(seconds: float, *tied: tuple[float, float]) -> PickRecord:
    """A pick of 90%, and what is tied with it: accuracy and seconds."""
    others = tuple(
        Tied(backbone=f"timm:t{number}", regime="ridge", accuracy=accuracy, seconds_to_train=time)
        for number, (accuracy, time) in enumerate(tied)
    )
    one = Chosen(
        **{"backbone": "timm:a", "regime": "frozen", "cell": "x", "device": "cpu", "seeds": 3},
        **{"accuracy": 0.9, "low": 0.85, "high": 0.95, "seconds_to_train": seconds, "tied": others},
    )
    return PickRecord(
        **{"command": "bench pick", "ended": datetime.now(UTC), "priority": "accuracy", "cards": {"accuracy": one}},
        **{"candidates": (), "val_images": 100, "first_answer_seconds": 1.0, "seconds": 2.0},
    )


def test_the_sentence_counts_all_ties_and_names_those_that_are_faster() -> None:
    """As many as the card counts. A time that reads the same is none that is less, and a far accuracy is not named."""
    found = _chosen(29.4, (0.917, 29.3), (0.9, 28.6), (0.7, 3.0), (0.89, 20.0))
    assert tied_with(found.cards["accuracy"]) == "4 more are statistically tied with it"
    assert sentence(found).endswith(
        "4 more are statistically tied with it; 1 of them is faster to train, with an accuracy in its interval: "
        "timm:t3, ridge (89.0%, 20 s)."
    )
    alone = sentence(_chosen(29.4, (0.917, 10.0)))
    assert "1 more is statistically tied with it, and faster to train, with an accuracy in its interval: " in alone
    assert sentence(_chosen(29.4, (0.917, 29.3))).endswith("1 more is statistically tied with it.")
    minutes = sentence(_chosen(750.0, (0.9, 700.0)))
    assert minutes.endswith("1 more is statistically tied with it."), "both take 12 min"
    assert "tied" not in sentence(_chosen(29.4))


def test_what_is_cheaper_and_less_accurate_is_left_out_in_words() -> None:
    """The terminal says among which combinations the fastest and the least are, in at most 80 columns."""
    found = _chosen(29.4)
    one = found.cards["accuracy"]
    every = found.replace(cards=dict.fromkeys(("accuracy", "time", "inference", "memory"), one))
    console = Console(record=True, width=80, file=io.StringIO())
    print_pick(every, "results/p", console)
    lines = console.export_text().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert (
        "Fastest to train, fastest to predict and least memory: among those measured at most 2 points less accurate "
        "than the best."
    ) in " ".join(" ".join(lines).split())
    assert "fastest to predict" in " ".join(lines[:12]) and "best in all" not in " ".join(lines)
    assert rule(["accuracy"]) == ""
    assert rule(["time"]) == "Fastest to train: among those measured at most 2 points less accurate than the best"


def _with_latency(made: Record, seconds: float) -> Record:
    assert made.result
    cost = InferenceCost(latency_seconds=(seconds,), batch_size=32, batch_seconds=(1.0,), model_bytes=1, seconds=1.0)
    return made.replace(result=made.result.replace(inference=cost))


def test_what_a_network_costs_in_use_is_known_of_all_with_its_backbone() -> None:
    """Measured for one of them; another backbone's says nothing."""
    measured = _with_latency(record("timm:a", "finetune", right=95), 0.2)
    head, other = record("timm:a", "frozen", right=96), _with_latency(record("timm:b", "frozen", right=95), 0.1)
    groups = _groups(measured, head, other)
    assert [latency(group, groups) for group in groups] == [0.2, 0.2, 0.1]
    assert latency(groups[1], _groups(head, other)) is None
    (quick,) = [card for card in cards(groups) if card.priority == "inference"]
    assert quick.group.config.backbone == "timm:b" and quick.latency_seconds == 0.1


def test_the_peak_of_an_extraction_counts_for_those_that_used_its_features() -> None:
    """Who trains such a head anew extracts them; fine-tuning has its own peak, or an unknown one."""
    reused = record("timm:a", "ridge")
    assert reused.result
    reused = reused.replace(result=reused.result.replace(extraction_seconds=1.0, features_reused=True))
    groups = _groups(record("timm:a", "knn", seconds=7), reused, record("timm:a", "finetune", seconds=50))
    assert [peak_memory(group, groups) for group in groups] == [7 << 20, 7 << 20, 50 << 20]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top": 0}, "--tune-top 0 must be a number from 1"),
        ({"priority": "speed"}, "--priority='speed'"),
        ({"budget_seconds": 5.0}, "--budget 5s must be more than 15 s, .*; `--budget 5m` is 5 minutes"),
    ],
)
def test_aims_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    """In one line, with what would be right."""
    with pytest.raises(ConfigError, match=message):
        Aim(**settings)


def test_a_later_command_with_little_time_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has ended costs nothing, so no budget can take it away."""
    scores = {"timm:a": 0.95, "timm:b": 0.94}
    world = World(monkeypatch, {"timm:a": 95, "timm:b": 90}, scores, seconds=dict.fromkeys(scores, 5.0))
    first = world.pick()
    world.ran.clear()
    again = world.pick(budget_seconds=pick.REPORT_SECONDS + 1)
    assert not world.ran
    assert again.cards == first.cards and again.candidates == first.candidates
    assert not any("--budget" in text for text in again.more)
