"""Tests that no text is parsed as data: names and reasons survive with any separators in them."""

from __future__ import annotations

import importlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from bench.compare.changes import Mismatch, compare
from bench.compare.gate import NOT_COMPARABLE, decide
from bench.compare.sides import read_sides
from bench.devtools.instant import InstantExecutor
from bench.execution.base import Outcome
from bench.report import terminal
from bench.report.heatmap import make_heatmap
from bench.report.pictures import find_images
from bench.report.summary import summarise
from bench.store.records import SCHEMA_VERSION, Lost, Record, Status, WeightsKey, by_policy
from bench.store.runs import RunFolder
from bench.sweep import plan as planning
from bench.sweep import progress
from bench.sweep.describe import describe
from bench.sweep.execute import execute
from bench.sweep.grid import AXES, Grid, Matrix
from bench.sweep.options import Options
from tests.runs import RANDOM, of_images, record, write_run
from tests.test_compare import benchmark_file
from tl import Splits
from tl.config import TrainConfig
from tl.machine import DeviceKey, pick
from tl.results import Note
from tl.specs import Spec
from tl.weights import Weights

NAMES = ("a b", "a@b", "a:b", "auto c", "a/b", "x.pth", "a · b")
"""Names of backbones, each with a separator in it."""


def as_version_5(folder: Path, path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a file of a run as a version without digests would have written it."""
    data = json.loads((folder / path).read_text())
    del data["digest"]
    edit(data)
    for part in (data, data["dataset"]) if isinstance(data["dataset"], dict) else (data,):
        if "fallback" in part:
            part["stand_in"] = part.pop("fallback")
    (folder / path).write_text(json.dumps(data | {"schema_version": 4}))


@given(st.text())
@example("timm:")
@example(":x")
@example("timm:a:b")
def test_a_spec_is_what_it_was_made_of(text: str) -> None:
    """Any text comes out as it went in."""
    spec = Spec.parse(text)
    assert str(spec) == text and spec.matches(spec)
    assert ":" not in spec.source and (spec.source == "") == (":" not in text or text.startswith(":"))


@pytest.mark.parametrize("name", NAMES)
def test_names_of_backbones_with_separators_inside(name: str, tmp_path: Path) -> None:
    """Tables, progress and the heat map show them in full, with or without their source."""
    assert Spec.parse(f"timm:{name}") == Spec("timm", name)
    one = record(f"timm:{name}", "frozen")
    lost = record(f"timm:{name}", "finetune", status="failed")
    assert progress._short(one.cell) == f"frozen {name} cpu"
    summary = summarise([write_run(tmp_path / "r", [one, lost])], "r")
    assert summary.short(summary.groups[0]) == name
    ((row, squares),) = make_heatmap(summary).rows
    assert row == name and [square.status for square in squares if square] == ["failed", ""]
    table, _ = terminal._cells(summary, width=1)
    assert list(map(str, table.columns[0].cells)) == [name], "a narrow table has no room for the source"


def test_a_bare_name_is_a_name(tmp_path: Path) -> None:
    """A config may name a backbone without its source."""
    one = record("resnet26", "frozen")
    summary = summarise([write_run(tmp_path / "r", [one])], "r")
    assert summary.short(summary.groups[0]) == TrainConfig(backbone="resnet26").spec.name == "resnet26"
    assert progress._short(one.cell) == "frozen resnet26 cpu"
    table, _ = terminal._cells(summary, width=1)
    assert list(map(str, table.columns[0].cells)) == ["resnet26"]


@given(st.text().filter(lambda text: not text.endswith("@")))
@example("cuda:0@a@b")
def test_a_device_is_what_it_was_made_of(text: str) -> None:
    """Any text comes out as it went in."""
    assert str(DeviceKey.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "name", "machine", "kind"),
    [
        ("cpu", "cpu", "", "cpu"),
        ("cuda:1", "cuda:1", "", "cuda"),
        ("cuda:0@h100:a@b", "cuda:0", "h100:a@b", "cuda"),
        ("cpu@cuda-box-8", "cpu", "cuda-box-8", "cpu"),
    ],
)
def test_parts_of_devices(text: str, name: str, machine: str, kind: str) -> None:
    """The kind of a machine may have any separator in its name."""
    key = DeviceKey.parse(text)
    assert (key.name, key.machine, key.kind) == (name, machine, kind)
    assert pick(name, {text: "", "mps": ""}) == text


@pytest.mark.parametrize(
    ("axis", "entry", "wanted", "stays"),
    [
        ("backbone", "resnet18", "torchvision:resnet18", True),
        ("backbone", "torchvision:resnet18", "resnet18", True),
        ("backbone", "timm:resnet18", "torchvision:resnet18", False),
        ("backbone", "timm:a:b", "b", False),
        ("device", "cuda", "cuda:0", True),
        ("device", "cuda:0", "cuda", True),
        ("device", "cuda:1", "cuda", False),
        ("device", "cpu", "cpu@a-2", True),
        ("device", "cpu@a-2", "cpu", True),
        ("device", "cpu@a-2", "cpu@b-2", False),
        ("device", "cuda", "cuda:0@h100", True),
        ("device", "cuda:0@h100", "cuda", True),
        ("precision", "bf16", "bf16", True),
        ("precision", "bf16", "fp32", False),
        ("execution", "plain", "plain", True),
        ("execution", "plain", "fast", False),
    ],
)
def test_entries_of_a_replaced_axis(axis: str, entry: str, wanted: str, stays: bool) -> None:
    """An entry stays if it can mean what is wanted. A part of a name doesn't match."""
    key = AXES[axis]
    grid = Grid(name="g", matrix=Matrix(backbones=["timm:x"]), include=[{axis: entry}])
    assert bool(grid.override({key: [wanted]}, {}).include) is stays


@pytest.mark.parametrize("name", NAMES)
def test_weights_by_policy_and_backbone(name: str, tmp_path: Path) -> None:
    """They are kept and found under any name of a backbone, in current manifests and in those of version 5."""
    resolved = {
        WeightsKey(policy=policy, backbone=f"timm:{name}"): RANDOM.replace(reason=policy)
        for policy in ("auto", "random")
    }
    run = write_run(tmp_path / "r", [], missing=[record("timm:a", "frozen").cell])
    manifest = run.manifest()
    run.write_manifest(manifest.replace(weights=by_policy(resolved)))
    assert run.manifest().resolved == resolved

    def older(data: dict[str, Any]) -> None:
        data["weights"] = {
            f"{policy} {backbone}": weights
            for policy, some in data["weights"].items()
            for backbone, weights in some.items()
        }

    as_version_5(run.folder, Path("manifest.json"), older)
    assert f'"auto timm:{name}"' in (run.folder / "manifest.json").read_text().encode().decode("unicode_escape")
    assert run.manifest().resolved == resolved


@pytest.mark.parametrize("status", get_args(Status))
@pytest.mark.parametrize("reason", ["", "oom: 8 GiB", "not run", "a: b"])
def test_why_a_cell_has_no_result(status: Any, reason: str, tmp_path: Path) -> None:
    """Its status decides whether it newly fails, not the first words of its reason."""
    good = [record("timm:a", "frozen", seed=seed) for seed in range(3)]
    if status == "done":
        with pytest.raises(ValueError, match="has a result"):
            Lost.of(good[2])
        return
    lost = good[2].replace(status=status, result=None, reason=reason)
    write_run(tmp_path / "old", good)
    write_run(tmp_path / "new", [*good[:2], lost])
    _, new = sides = read_sides([str(tmp_path / "old"), str(tmp_path / "new")])
    (cell,) = new.cells.values()
    assert cell.lost == {2: Lost(status=status, reason=reason)} == {2: Lost.of(lost)}
    found = compare(sides)
    texts = (("timm:a frozen cpu", f"new: {status}: {reason}" if reason else f"new: {status}"),)
    failed = status != "skipped"
    assert (found.newly_failing, found.incomplete) == ((texts, ()) if failed else ((), texts))
    assert str(Lost.of(None)) == "not run" and not Lost.of(None).failed


@pytest.mark.parametrize(("condition", "is_noise"), [("source", True), ("source: of the library", False)])
def test_a_condition_that_begins_like_another(condition: str, is_noise: bool, tmp_path: Path) -> None:
    """Only a difference in the benchmark's own code counts as noise."""
    for name in ("old", "new"):
        for turn in range(5):
            benchmark_file(tmp_path / name / f"{turn}.json", {"t::a": [1.0]}, **{condition: name})
    comparison = compare(read_sides([str(tmp_path / "old"), str(tmp_path / "new")]))
    assert comparison.changes[0].mismatches == (Mismatch(condition=condition, base=("old",), new=("new",)),)
    decision = decide(comparison)
    assert decision.status == NOT_COMPARABLE and decision.is_noise is is_noise


def test_values_of_a_condition_with_separators_inside(tmp_path: Path) -> None:
    """Two values differ from one that reads like two, though their texts are equal. An unknown value is empty."""
    for name, values in (("old", ["x", "y"]), ("new", ["x and y", "x and y"]), ("none", ["", ""])):
        for turn, value in enumerate(values):
            benchmark_file(tmp_path / name / f"{turn}.json", {"t::a": [1.0]}, source=value)
    for name, values in (("new", ("x and y",)), ("none", ("",))):
        (change,) = compare(read_sides([str(tmp_path / "old"), str(tmp_path / name)])).changes
        assert change.mismatches == (Mismatch(condition="source", base=("x", "y"), new=values),)
        assert str(change.mismatches[0]) == f"source: x and y → {values[0] or 'unknown'}"


def with_notes(one: Record, *notes: Note) -> Record:
    assert one.result is not None
    return one.replace(result=one.result.replace(notes=notes))


def test_notes_that_end_alike(tmp_path: Path) -> None:
    """A report leaves out notes that it shows elsewhere, and keeps notes that only end in the same words."""
    synthetic, random = "synthetic", RANDOM.reason
    notes = (
        Note(about="images", text=f"the images are {synthetic}"),
        Note(about="weights", text=f"random weights: {random}"),
        Note(about="figures", text=f"every line was {synthetic}"),
        Note(about="figures", text=random),
    )
    one = with_notes(record("timm:a", "frozen", weights=RANDOM), *notes).replace(fallback=synthetic)
    run = write_run(tmp_path / "r", [one], fallback=synthetic)
    assert summarise([run], "r").notes == [f"every line was {synthetic}", random]
    elsewhere = write_run(tmp_path / "real", [one])
    assert summarise([elsewhere], "r").notes == [str(notes[0]), *map(str, notes[2:])], (
        "here the report shows it nowhere else"
    )


def test_notes_of_version_5(tmp_path: Path) -> None:
    """Their texts are sorted by the record's own reasons, as reports of that version did."""
    kept = "synthetic; so this run began, and --fresh looks again"
    texts = ["the images are " + kept, f"random weights: {RANDOM.reason}", "the loss was not finite"]
    one = record("timm:a", "frozen", weights=RANDOM)
    run = write_run(tmp_path / "r", [one], fallback="synthetic")

    def older(data: dict[str, Any]) -> None:
        data["result"]["notes"], data["fallback"] = texts, kept

    as_version_5(run.folder, Path("cells") / f"{one.cell_id}.json", older)
    as_version_5(run.folder, Path("manifest.json"), lambda data: data["dataset"].update(fallback=kept))
    (found,) = run.records().values()
    assert found.result is not None and found.fallback == run.manifest().dataset.fallback == "synthetic"
    assert [note.about for note in found.result.notes] == ["images", "weights", "figures"]
    assert [note.text for note in found.result.notes] == texts
    assert summarise([run], "r").notes == ["the loss was not finite"]


@pytest.mark.parametrize(
    ("command", "data"),
    [
        ("python -m bench run", None),
        ("python -m bench run --data here --data 'my photos'", "my photos"),
        ("python -m bench run '--data=a=b --data c'", "a=b --data c"),
        ("python -m bench run --name 'x --data y'", None),
        ("python -m bench run --data", None),
        ("python -m bench run 'unbalanced", None),
    ],
)
def test_the_data_of_a_command(command: str, data: str | None, tmp_path: Path) -> None:
    """In version 5 it is read from the command line. From version 6 on, it has a field of its own."""
    run = write_run(tmp_path / "r", [record("timm:a", "frozen")])

    def older(manifest: dict[str, Any]) -> None:
        (call,) = manifest["invocations"]
        del call["data"]
        call["command"] = command

    shutil.copytree(run.folder, tmp_path / "old")
    as_version_5(tmp_path / "old", Path("manifest.json"), older)
    (call,) = RunFolder(tmp_path / "old").manifest().invocations
    assert (call.command, call.data) == (command, data)
    manifest = run.manifest()
    (call,) = manifest.invocations
    run.write_manifest(manifest.replace(invocations=(call.replace(command=command, data="elsewhere"),)))
    assert [one.data for one in run.manifest().invocations] == ["elsewhere"]


def test_images_are_found_without_a_command(mini: Splits, tmp_path: Path) -> None:
    """A sweep that wasn't started from a command line knows where its images were."""
    run = write_run(tmp_path / "r", [of_images(record("timm:a", "frozen"), mini.digest)])
    manifest = run.manifest()
    (call,) = manifest.invocations
    run.write_manifest(
        manifest.replace(
            dataset=manifest.dataset.replace(name="moved"),
            invocations=(call.replace(command="a notebook --data nowhere", data=str(mini.root)),),
        )
    )
    assert find_images(summarise([run], "r")).root == mini.root


def test_a_run_goes_on_with_its_images(mini: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for synthetic images stays the first one. Only the terminal says that it was kept."""
    asked: list[str] = []

    def load(name: str, **_: Any) -> Splits:
        asked.append(name)
        return replace(mini, fallback=f"synthetic ({len(asked)})")

    monkeypatch.setattr(planning, "load_splits", load)
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))  # the executor below invents names of backbones
    grid = Grid(name="g", dataset="auto", matrix=Matrix(backbones=["timm:b00000"], regimes=["frozen"], devices=["cpu"]))
    said = []
    for seeds in (1, 2, 3):
        console = Console(file=io.StringIO(), width=500, record=True)
        executor: Any = InstantExecutor()
        chosen, options = grid.override({"seeds": seeds}, {}), Options(name="r", results=tmp_path)
        sweep = planning.plan(chosen, options, executor, console)
        describe(sweep, console)
        execute(sweep, chosen, options, executor, console)
        said.append(console.export_text())
    assert asked == ["auto", mini.name, mini.name]
    run = RunFolder(tmp_path / "r")
    assert run.manifest().dataset.fallback == "synthetic (1)"
    assert {one.fallback for one in run.records().values()} == {"synthetic (1)"} and len(run.records()) == 3
    assert summarise([run], "r").fallbacks == ["synthetic (1)"]
    kept = "; this run started like that, use --fresh to look again"
    assert f"the images are synthetic (1){kept}" not in said[0] and f": {RANDOM.reason}{kept}" not in said[0]
    for text in said[1:]:
        assert f"the images are synthetic (1){kept}\n" in text and f": {RANDOM.reason}{kept}\n" in text
    assert [call.data for call in run.manifest().invocations] == [None, None, None]


def test_the_doctor_shows_a_reason_in_full(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It shows a reason with any separators, and leaves out advice for commands that need weights."""
    reason = "/tmp/timm:a; b/x.pth is damaged; remove it"

    class Executor(InstantExecutor):
        def call(self, function: str, *arguments: Any, **named: Any) -> Outcome:
            outcome = super().call(function, *arguments, **named)
            specs, policy, *_ = arguments
            found = Weights(kind="random", source="random", reason=reason)
            return replace(outcome, value=dict.fromkeys(specs, found if policy == "auto" else f"x: {reason}; use …"))

    doctor = importlib.import_module("bench.sweep.doctor")  # the command has the module's name
    monkeypatch.setattr(doctor, "make_executor", lambda name: Executor())
    monkeypatch.setattr(doctor, "load_splits", lambda name, download: pytest.fail("no images") if download else _none())
    doctor.examine()
    assert f"weights torchvision:resnet18: {reason}\n" in capsys.readouterr().out


def _none() -> Any:
    from tl.errors import DataError

    raise DataError("none")


def test_other_files_among_earlier_records(tmp_path: Path) -> None:
    """Files with other names are left alone and cause no error."""
    one = record("timm:a", "frozen", status="failed")
    run = write_run(tmp_path / "r", [one])
    attic = run.folder / "superseded"
    attic.mkdir()
    names = [attic / f"{one.cell_id}-{name}.json" for name in ("1", "1 (copy)", "old")]
    for path in names:
        path.write_text("mine")
    run.write_record(one)
    assert all(path.read_text() == "mine" for path in names)
    (new,) = set(attic.iterdir()) - set(names)
    assert json.loads(new.read_text())["cell_id"] == one.cell_id
    assert json.loads(new.read_text())["schema_version"] == SCHEMA_VERSION
