"""A training whose loss is no longer finite has no accuracy: `DivergedError`, and status `diverged` in a run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import bench
import tl
from bench.analysis.verdicts import verdict_counts
from bench.compare.changes import compare
from bench.compare.gate import REGRESSED, decide
from bench.compare.sides import read_sides
from bench.report.answers import answers
from bench.report.heatmap import make_heatmap
from bench.report.summary import summarise
from bench.report.write import write_report
from bench.store.records import Record
from bench.store.runs import RunFolder
from tests.commands import ONE_CELL
from tests.commands import here as command
from tests.conftest import TINY
from tests.runs import PRETRAINED, record, write_run
from tests.test_report import pages
from tests.weights import TRAINING, network
from tl import protocols
from tl.config import EXECUTIONS
from tl.prepare import WAYS
from tl.protocols import run_protocol
from tl.regimes import REGIMES
from tl.train import val_pass

ABSURD = 3e38
"""A learning rate that overflows single precision at once, in a head alone too."""
WHY = "the training loss was NaN in epoch 2 of 4, at learning rate 1"


def config(regime: str = "frozen", **settings: Any) -> tl.TrainConfig:
    return tl.TrainConfig(backbone=TINY[1], regime=regime, **{"epochs": 2, "weights": "random", **settings})


@pytest.mark.parametrize("regime", TRAINING)
def test_every_regime_that_learns_can_diverge(mini: tl.Splits, regime: str) -> None:
    """It ends with an error that says where, and no epoch after that runs."""
    seen: list[tl.EpochResult] = []
    with pytest.raises(
        tl.DivergedError, match=r"^the training loss was (NaN|infinite) in epoch 1 of 2, at .* 3e\+3[78]$"
    ):
        tl.train_model(config(regime, learning_rate=ABSURD), mini, device="cpu", on_epoch=seen.append)
    assert seen == []


def spoiled(folder: Path, value: float, spec: str = TINY[1]) -> Path:
    """Write weights with one value that is not finite, and return their folder."""
    state = network(spec).state_dict()
    next(weight for name, weight in state.items() if name.endswith("weight")).view(-1)[0] = value
    torch.save(state, folder / f"{spec.replace(':', '-')}.pth")
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("regime", [name for name, entry in REGIMES.items() if entry.start == "pretrained"])
def test_damaged_weights_have_no_accuracy(mini: tl.Splits, tmp_path: Path, regime: str, value: float) -> None:
    """It is found with every regime: features that are integers, or are cached, don't hide it."""
    with pytest.raises(tl.DivergedError, match=r"NaN|infinite|not finite"):
        tl.train_model(config(regime, weights="pretrained"), mini, device="cpu", weights_dir=spoiled(tmp_path, value))


class Says(nn.Module):
    """Stands for a network: its logits are its inputs."""

    backbone = head = staticmethod(lambda values: values)


class Given:
    """Four validation images with given logits."""

    device = torch.device("cpu")

    def __init__(self, last: list[float]) -> None:
        self.logits = torch.tensor([[0.0, 1.0]] * 3 + [last])

    def __len__(self) -> int:
        return 4

    def evaluation(self, size: int) -> Any:
        yield self.logits, torch.ones(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("last", "fault"),
    [
        ([0.0, 1.0], ""),
        ([0.0, float("nan")], "loss was NaN"),
        ([0.0, float("-inf")], "loss was infinite"),
        ([float("-inf"), 0.0], "outputs of 1 of 4 images were not finite"),
    ],
)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_what_counts_in_validation(last: list[float], fault: str, execution: str) -> None:
    """The loss counts, and outputs that are infinite although the loss is finite, with every execution."""
    given: Any = Given(last)
    evaluation = WAYS[execution].evaluation(None, Says(), Says.backbone, "fp32", Given.device)
    assert val_pass(evaluation, given, nn.functional.cross_entropy, config()).fault == fault


def later(monkeypatch: pytest.MonkeyPatch, epoch: int, kind: str) -> None:
    """Let the loss of one epoch be NaN, in training or in validation."""
    import tl.train as module

    name = {"train": "_train_pass", "val": "val_pass"}[kind]
    original = getattr(module, name)
    calls: list[None] = []

    def spoil(*arguments: Any) -> Any:
        found = original(*arguments)
        calls.append(None)
        return replace(found, fault="loss was NaN") if len(calls) == epoch else found

    monkeypatch.setattr(module, name, spoil)


@pytest.mark.parametrize(("kind", "named"), [("train", "training"), ("val", "validation")])
def test_the_epochs_before_are_kept(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, kind: str, named: str) -> None:
    """The error has their losses and times, also in another process."""
    later(monkeypatch, 2, kind)
    seen: list[tl.EpochResult] = []
    with pytest.raises(tl.DivergedError) as caught:
        tl.train_model(config(epochs=4), mini, device="cpu", on_epoch=seen.append)
    assert str(caught.value) == f"the {named} loss was NaN in epoch 2 of 4, at learning rate 0.001"
    assert list(caught.value.epochs) == seen and [row.epoch for row in seen] == [0]
    assert pickle.loads(pickle.dumps(caught.value)).epochs == caught.value.epochs


def test_a_trial_that_diverges_is_never_chosen(mini: tl.Splits) -> None:
    """It has its reason in place of an accuracy."""
    tuned = config("cached", protocol="tuned", learning_rates=(1e-3, ABSURD))
    result = run_protocol(tuned, mini, device="cpu")
    sound, wild = result.trials
    assert result.learning_rate_chosen == 1e-3 and sound.reason == "" and sound.held_out_accuracy is not None
    assert wild.held_out_accuracy is wild.held_out_loss is None and wild.reason.endswith("at learning rate 3e+38")


def test_if_all_trials_diverge_so_does_the_cell(mini: tl.Splits) -> None:
    """There is no rate to train with."""
    tuned = config("cached", protocol="tuned", learning_rates=(2.9e38, ABSURD))
    with pytest.raises(tl.DivergedError, match=r"all 2 learning rates diverged; the smallest: the .* rate 2.9e\+38"):
        run_protocol(tuned, mini, device="cpu")


def test_one_fold_that_diverges_is_enough(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of that fold have no predictions."""
    original, calls = protocols.train_model, iter([1e-3, ABSURD])

    def scripted(settings: tl.TrainConfig, splits: tl.Splits, **more: Any) -> tl.TrainResult:
        return original(settings.replace(learning_rate=next(calls)), splits, **more)

    monkeypatch.setattr(protocols, "train_model", scripted)
    with pytest.raises(tl.DivergedError, match=r"^fold 2 of 3: the training loss was"):
        run_protocol(config("cached", protocol="kfold", folds=3), mini, device="cpu")


def diverged(backbone: str, regime: str, seed: int = 0) -> Record:
    """A record of a cell that diverged in its second epoch."""
    one = record(backbone, regime, seed=seed)
    assert one.result is not None
    return one.replace(status="diverged", reason=WHY, epochs=one.result.epochs[:1], result=None)


def test_a_run_with_a_diverged_cell(tmp_path: Path) -> None:
    """It is a record with its reason, status 1 as for a failed cell, and is not run again without --fresh."""
    grid = tmp_path / "wild.toml"
    grid.write_text(ONE_CELL.replace('["frozen"]', '["finetune", "cached"]') + "[train]\nlearning_rate = 1e30\n")
    arguments = ("run", "--grid", str(grid), "--weights", "random", "--name", "wild")
    done = command(*arguments, "--epochs", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (
        "\n1 of 2 cells done, 1 failed\n  diverged: timm:test_resnet finetune cpu seed 0: the training" in done.stdout
    )
    run = RunFolder(tmp_path / "results" / "wild")
    by_regime = {one.cell.config.regime: one for one in run.records().values()}
    assert {name: one.status for name, one in by_regime.items()} == {"finetune": "diverged", "cached": "done"}
    assert by_regime["finetune"].result is None and by_regime["finetune"].traceback == ""
    assert not list(run.logs.glob("*")) or "Traceback" not in "".join(p.read_text() for p in run.logs.iterdir())
    assert "diverged" in Path("reports/wild.md").read_text()
    before = {path.name: path.read_bytes() for path in (run.folder / "cells").iterdir()}
    again = command(*arguments, "--epochs", "1")
    assert again.returncode == 1 and "  diverged: timm:test_resnet finetune" in again.stdout
    assert "1 of them done before, 1 diverged before and would diverge again" in again.stdout
    assert before == {path.name: path.read_bytes() for path in (run.folder / "cells").iterdir()}
    assert not (run.folder / "superseded").exists()
    listed = command(*arguments, "--epochs", "1", "--dry-run").stdout
    assert "  diverged  timm:test_resnet finetune" in listed and "  done      timm:test_resnet cached" in listed


def test_a_diverged_cell_is_shown_like_a_failed_one(tmp_path: Path) -> None:
    """It is in the page, in Markdown, on the terminal and in exports, and no figure of it is used."""
    records = [record("timm:a", "finetune", seconds=20), diverged("timm:a", "frozen"), record("timm:b", "frozen")]
    run = write_run(tmp_path / "r", records)
    summary = summarise([run], "r")
    assert summary.speed_ups == () and sum(summary.without_result.values()) > 0
    for page in pages(run, tmp_path):
        assert "diverged" in page and WHY in page
    shown = command("show", str(run.folder)).stdout
    assert f"diverged: timm:a frozen cpu seed 0: {WHY}" in " ".join(shown.split())
    (squares,) = [squares for name, squares in make_heatmap(summary).rows if name == "a"]
    assert [(square.status, square.bad) for square in squares if square and square.status] == [("diverged", True)]
    assert {choice.pick.config.backbone for choice in summary.choices} <= {"timm:a", "timm:b"}
    assert all(group.config.regime != "frozen" or group.config.backbone != "timm:a" for group in summary.groups)
    table = bench.load_results(run.folder).set_index("cell_id").loc[records[1].cell_id]
    assert (table["status"], table["reason"]) == ("diverged", WHY)
    assert all(pd.isna(table[name]) for name in ("val_accuracy_last", "val_accuracy_best", "epoch_seconds"))
    raw = bench.Run(run.folder).frame(per_epoch=True)
    mine = raw[raw["cell_id"] == records[1].cell_id]
    assert list(mine["status"]) == ["diverged"] and list(mine["train_loss"]) == [0.5]


def test_a_cell_that_diverges_only_now_is_a_regression(tmp_path: Path) -> None:
    """`compare` names it with its reason, and `gate` fails."""
    write_run(tmp_path / "old", [record("timm:a", "frozen", seed=seed) for seed in range(3)])
    new = [record("timm:a", "frozen", seed=0), record("timm:a", "frozen", seed=1), diverged("timm:a", "frozen", 2)]
    write_run(tmp_path / "new", new)
    found = compare(read_sides([str(tmp_path / "old"), str(tmp_path / "new")]))
    assert found.newly_failing == (("timm:a frozen cpu", f"new: diverged: {WHY}"),)
    assert decide(found).status == REGRESSED


def test_claims_count_it_as_a_comparison_without_result(tmp_path: Path) -> None:
    """A claim doesn't hold everywhere if a training diverged."""
    records = [record("timm:a", regime, seconds=s, seed=seed) for seed in range(3) for regime, s in PAIR]
    records += [diverged("timm:b", "finetune", seed) for seed in range(3)]
    records += [record("timm:b", "frozen", seed=seed) for seed in range(3)]
    run = write_run(tmp_path / "r", records)
    said = command("claims", str(run.folder)).stdout
    assert "1 more has no result on one side" in said
    assert "1 more has no result on one side" in " ".join(answers(summarise([run], "r")))
    timed = [finding for finding in summarise([run], "r").findings if finding.claim.name == "half-the-time-fast"]
    assert verdict_counts(timed).startswith("1 comparison")


PAIR = (("finetune", 20.0), ("frozen", 10.0))


def as_version_6(run: RunFolder, one: Record, edit: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a record as an older version would have written it."""
    path = run.folder / "cells" / f"{one.cell_id}.json"
    data = json.loads(path.read_text())
    del data["digest"], data["epochs"]
    edit(data["result"])
    path.write_text(json.dumps(data | {"schema_version": 4, "stand_in": data.pop("fallback")}))


def lose_confidence(result: dict[str, Any]) -> None:
    result["last"]["confidences"][7] = None


@pytest.mark.parametrize(
    ("edit", "reason", "kept"),
    [
        (lambda result: result["epochs"][2].update(train_loss=None), "the training loss was not finite in epoch 3", 2),
        (lambda result: result["epochs"][0].update(val_loss=None), "the validation loss was not finite in epoch 1", 0),
        (lose_confidence, "the output for a validation image was not finite in epoch 4", 3),
    ],
)
def test_older_records_of_such_cells_are_read_as_diverged(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], reason: str, kept: int
) -> None:
    """They were `done`, with an empty loss and the accuracy of class 0."""
    one, sound = record("timm:a", "frozen"), record("timm:b", "frozen", protocol="tuned")
    run = write_run(tmp_path / "r", [one, sound])
    as_version_6(run, one, edit)
    as_version_6(run, sound, lambda result: result["trials"][0].update(held_out_loss=None))
    found = run.records()
    assert (found[one.cell_id].status, found[one.cell_id].reason) == ("diverged", reason)
    assert found[one.cell_id].result is None and len(found[one.cell_id].epochs) == kept
    result = found[sound.cell_id].result
    assert result is not None and result.trials[0].held_out_accuracy is None and result.trials[0].reason
    assert [left.best.config.backbone for left in summarise([run], "r").undecided] == ["timm:b"]


def test_a_report_of_diverged_cells_alone(tmp_path: Path) -> None:
    """Nothing is recommended."""
    run = write_run(tmp_path / "r", [diverged("timm:a", "frozen")])
    assert answers(summarise([run], "r")) == ["No cell has a result yet."]
    assert WHY in write_report(summarise([run], "r"), tmp_path / "reports")[0].read_text()
    assert PRETRAINED.kind == "pretrained"
