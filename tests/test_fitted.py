"""Tests regimes that fit their head at once: what they read, what their results have, and their runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import bench
import tl
from bench.analysis.groups import Counterparts, all_else, make_groups, varying_settings
from bench.analysis.recommend import recommend
from bench.report.answers import answers
from bench.report.summary import summarise
from bench.store.records import Cell
from bench.store.runs import RunFolder
from bench.sweep.grid import expand, load_grid
from tests.commands import here as command
from tests.conftest import TINY
from tests.runs import TRUTH, record, write_run
from tests.weights import FITTED, published, weights_for
from tl import train as train_module
from tl.config import READ_BY_STEPS, TrainConfig
from tl.errors import ConfigError
from tl.features import Features
from tl.fits import FITS
from tl.logme import logme
from tl.regimes import HEAD, REGIMES, Regime
from tl.results import Probe

OTHER = {
    "epochs": 3,
    "batch_size": 7,
    "optimizer": "adamw",
    "learning_rate": 0.5,
    "momentum": 0.1,
    "weight_decay": 0.2,
    "schedule": "cosine",
    "step_size": 2,
    "gamma": 0.3,
    "loss": "focal",
    "label_smoothing": 0.1,
    "head": "mlp",
    "views": 3,
}


def config(regime: str, **settings: object) -> TrainConfig:
    return TrainConfig(backbone=TINY[1], regime=regime, weights="pretrained", **settings)


def run(splits: tl.Splits, regime: str, **settings: object) -> tl.TrainResult:
    return tl.run_protocol(config(regime, **settings), splits, device="cpu", weights_dir=published())


@pytest.mark.parametrize("regime", FITTED)
def test_settings_of_steps_are_not_read(regime: str) -> None:
    """With others a cell is the same, so nothing runs twice; regimes that train by steps do read them."""
    assert config(regime, **OTHER) == config(regime)
    assert config(regime, protocol="tuned", learning_rates=(0.1, 0.2)).learning_rates == config("frozen").learning_rates
    assert set(OTHER) - {"views"} == set(READ_BY_STEPS) - {"learning_rates"}
    assert all(getattr(config("cached", **OTHER), name) == value for name, value in OTHER.items())


@pytest.mark.parametrize("regime", FITTED)
def test_a_fit_is_a_result_like_others(mini: tl.Splits, regime: str) -> None:
    """It has one epoch, whose training pass is the fit, and a probe of the training images."""
    result = run(mini, regime)
    (row,) = result.epochs
    assert row.train_seconds > 0 and row.seconds == row.train_seconds + row.val_seconds
    assert (row.learning_rate, row.train_loss, row.train_accuracy, row.phases) == (None, None, None, None)
    assert (result.work, result.learning_rate, result.epoch_seconds) == (None, None, None)
    assert result.frozen_verified is True and result.cold_seconds >= row.seconds
    probe = result.probe
    assert probe.truth == list(mini.train.labels) and len(probe.labels) == len(mini.train)
    assert probe.accuracy == sum(a == b for a, b in zip(probe.labels, probe.truth, strict=True)) / len(probe.truth)
    assert probe.logme < 0
    assert tl.TrainResult.from_json(result.model_dump_json()).probe == probe
    assert run(mini, "cached", epochs=1).probe is None


def test_the_fit_sees_the_features_of_all_training_images(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the network in eval mode on centre views, in the order of the images."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def noted(features: torch.Tensor, labels: torch.Tensor) -> float | None:
        seen.append((features, labels))
        return logme(features, labels)

    monkeypatch.setattr(train_module, "logme", noted)
    result = run(mini, "ridge")
    ((features, labels),) = seen
    assert labels.tolist() == list(mini.train.labels) and len(features) == len(mini.train)
    again = FITS["ridge"].run(features, labels, 2)
    assert again.labels == result.probe.labels and torch.equal(again.head.weight, result.model.head.weight)


@pytest.mark.parametrize(("regime", "fit"), [("knn", "knn"), ("lp-ft", "logistic")])
def test_images_that_look_the_same_are_left_out_together(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, regime: str, fit: str
) -> None:
    """The set says which do. If all are one group, each is left out alone, since nothing else would be left."""
    first, second, *_ = mini.train.files
    seen: list[list[int] | None] = []
    real = FITS[fit]

    def noted(*given: Any) -> Any:
        seen.append(None if given[3] is None else given[3].tolist())
        return real.run(*given)

    monkeypatch.setitem(FITS, fit, replace(real, run=noted))
    for together in (((first, second),), (mini.train.files,), ()):
        given = config(regime, epochs=1)
        tl.train_model(given, replace(mini, together=together), device="cpu", weights_dir=weights_for(regime))
    groups, one, none = seen
    assert groups is not None and groups[0] == groups[1] and len(set(groups)) == len(mini.train) - 1
    assert one is None and none is None


@pytest.mark.parametrize("regime", FITTED)
def test_there_is_no_rate_to_choose_and_folds_are_fitted_each(mini: tl.Splits, regime: str) -> None:
    """Protocol `tuned` fits once; `kfold` fits a head per fold, and predicts each image by the one without it."""
    tuned = run(mini, regime, protocol="tuned")
    assert (tuned.trials, tuned.learning_rate_chosen) == ((), None) and tuned.config.trainings == 1
    assert tuned.last == run(mini, regime).last
    folded = run(mini, regime, protocol="kfold", folds=3)
    assert len(folded.last.labels) == len(mini.train) + len(mini.val) and len(folded.folds) == 3
    assert folded.probe is None, "each fold has other training images"


def test_features_that_are_not_finite_are_no_features(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training ends with a message that counts the images."""
    given = Features.first_view

    def spoiled(self: Features) -> tuple[torch.Tensor, torch.Tensor]:
        features, labels = given.fget(self)
        features = features.clone()
        features[:2, 0] = torch.nan
        return features, labels

    monkeypatch.setattr(Features, "first_view", property(spoiled))
    with pytest.raises(tl.DivergedError, match=r"^the features of 2 of 24 training images were not finite although"):
        run(mini, "knn")


def test_only_a_head_on_kept_features_can_be_fitted() -> None:
    """Any other regime with a fit is refused."""
    with pytest.raises(ConfigError, match=r"fit='ridge': fits a new head alone, to features that are extracted once"):
        Regime(summary="x", start="pretrained", trainable=HEAD, fit="ridge")


def test_one_cell_whatever_the_seeds(tmp_path: Path) -> None:
    """A fit is the same for every seed. With protocol kfold it isn't, since folds differ."""
    grid = tmp_path / "g.toml"
    regimes = ", ".join(f'"{name}"' for name in ("frozen", *FITTED))
    matrix = f'backbones = ["{TINY[1]}"]\nregimes = [{regimes}]\ndevices = ["cpu"]\nseeds = 3\n'
    grid.write_text(f"[matrix]\n{matrix}[train]\nepochs = 2\n")
    for protocol, count in (("fixed", 1), ("kfold", 3)):
        chosen = load_grid(str(grid)).override({}, {"protocol": protocol})
        planned = expand(chosen, weights="auto", spec=lambda spec: spec, devices=lambda: {"cpu": ""})
        found = [one.config.regime for one in planned]
        assert found.count("frozen") == 3 and [found.count(name) for name in FITTED] == [count] * len(FITTED)


def test_fits_are_compared_with_trainings_whatever_their_steps() -> None:
    """A fit has no epochs that could differ; two trainings with other rates are still told apart."""
    fine, fitted = (
        record("timm:a", "finetune", epochs=4, learning_rate=0.01),
        record("timm:a", "knn", epochs=4, learning_rate=0.01),
    )
    other = record("timm:a", "finetune", epochs=4, learning_rate=0.02)
    assert all_else(fine.cell, "knn") == all_else(fitted.cell, "finetune") == all_else(other.cell, "knn")
    assert all_else(fine.cell, "frozen") != all_else(other.cell, "frozen")
    groups = make_groups([("r", fine), ("r", fitted)], {"r": TRUTH})
    assert Counterparts(groups).of(groups[1], "finetune") is groups[0]
    configs = [one.cell.config for one in (fine, fitted)]
    assert varying_settings(configs) == [] and "learning_rate" in varying_settings([*configs, other.cell.config])


def test_a_fitted_head_can_be_recommended(tmp_path: Path) -> None:
    """Among ties it is the fastest, and the answer says what its time is of."""
    records = [record("timm:a", "finetune", seconds=20.0), record("timm:a", "knn", seconds=3.0)]
    (choice,) = recommend(make_groups([("r", one) for one in records], {"r": TRUTH}))
    assert choice.pick.config.regime == "knn" and choice.best is not None
    (said,) = answers(summarise([write_run(tmp_path / "r", records)], "r"))[:1]
    assert "timm:a, knn" in said and "3 s to fit its head and validate" in said and "n/a" not in said


def test_a_run_of_fits(tmp_path: Path) -> None:
    """Records, export, report and claims of a run that has nothing but fits; a second command has nothing to do."""
    for spec in TINY:
        name = f"{spec.replace(':', '-')}.pth"
        shutil.copy(published() / name, tmp_path / name)
    arguments = ["run", "--grid", "smoke", "--device", "cpu", "--weights-dir", ".", "--name", "fits", "--seeds", "2"]
    arguments += [word for regime in FITTED for word in ("--regime", regime)]
    done = command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fit: accuracy" in done.stdout and "after the last epoch" not in done.stdout
    assert len(RunFolder(Path("results/fits")).records()) == len(FITTED) * len(TINY)
    table = bench.load_results("fits").set_index(["backbone", "regime"])
    for row in (table.loc[(spec, regime)] for spec in TINY for regime in FITTED):
        assert row["status"] == "done" and row["frozen_verified"] and 0 <= row["probe_accuracy"] <= 1
        assert row["logme"] < 0 and row["first_epoch_seconds"] > 0 and row["trainable_params"] > 0
        assert row[["epochs", "batch_size", "learning_rate", "epoch_seconds", "forward_flops"]].isna().all()
    assert table["logme"].nunique() == len(TINY), "of the features, whatever head is fitted to them"
    assert "probe accuracy" in Path("reports/fits.md").read_text()
    raw = command("export", "fits", "--raw", "--output", "raw.csv")
    assert raw.returncode == 0 and pd.read_csv("raw.csv")["train_seconds"].notna().all()
    said = command("claims", "fits").stdout
    assert "probe-picks: The probe picks the winner? unknown: no backbone has both a probe and trainings" in said
    assert "nothing to run" in (again := command(*arguments)).stdout.lower() or "6 of them done before" in again.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1]}, "it has 2 labels, and 3 true ones"),
        ({"labels": [0, 1, 5]}, "probe has class 5, and there are 2"),
    ],
)
def test_a_probe_that_contradicts_itself_is_refused(change: dict[str, object], message: str) -> None:
    """As damage is."""
    result = record("timm:a", "knn").result
    with pytest.raises(ConfigError, match=message):
        result.replace(probe=Probe(**{"labels": [0, 1, 1], "truth": [0, 1, 0], "chosen": 20.0, **change}))


@pytest.mark.parametrize("regime", ["knn", "cached"])
def test_a_probe_of_other_images_is_damage(tmp_path: Path, regime: str) -> None:
    """A record's probe is of all training images of its run, and only fits have one."""
    good = Probe(labels=[0] * 244, truth=[0] * 244, chosen=20.0)
    bad = good if regime == "cached" else Probe(labels=[0] * 3, truth=[0] * 3, chosen=20.0)
    whole = write_run(tmp_path / "whole", [record("timm:a", regime, probe=good if regime == "knn" else None)])
    assert len(whole.records()) == 1
    with pytest.raises(
        tl.UserError, match=r"damaged: result\.probe (has 3 predictions, and the run has 244|of regime)"
    ):
        write_run(tmp_path / "other", [record("timm:a", regime, probe=bad)]).records()


def test_regimes_that_fit_are_regimes_of_a_head_on_features() -> None:
    """Their ids depend on nothing that they don't read."""
    cells = [
        Cell(config=config(regime, **settings), weights_digest="d", dataset_digest="e", device="cpu")
        for regime in FITTED
        for settings in ({}, OTHER)
    ]
    assert len({cell.id for cell in cells}) == len(FITTED)
    assert all(REGIMES[name].features == "once" and REGIMES[name].trainable.only_head for name in FITTED)
