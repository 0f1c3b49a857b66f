"""Tests of protocols: their choices, the images they use, and their results."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

import tl
from tests.conftest import TINY
from tests.weights import TRAINING
from tl import protocols
from tl.cache import to_json
from tl.config import PROTOCOLS
from tl.datasets import ImageList
from tl.folds import every_image, tuning_splits
from tl.heads import TrainedHead
from tl.images import Store
from tl.protocols import RUNNERS, choose, run_protocol
from tl.results import Trial

RATES = (1e-3, 3e-2, 3e-1)


def config(protocol: str, regime: str = "frozen", **settings: Any) -> tl.TrainConfig:
    if protocol == "tuned":
        settings = {"learning_rates": RATES, **settings}
    return tl.TrainConfig(
        backbone=TINY[1], regime=regime, weights="random", protocol=protocol, **{"epochs": 2, **settings}
    )


def run(settings: tl.TrainConfig, splits: tl.Splits, **more: Any) -> tl.TrainResult:
    return run_protocol(settings, splits, device="cpu", **more)


def trial(rate: float, accuracy: float | None, loss: float | None) -> Trial:
    return Trial(learning_rate=rate, held_out_accuracy=accuracy, held_out_loss=loss, seconds=1.0)


@pytest.fixture(scope="module")
def trained(mini: tl.Splits) -> tl.TrainResult:
    """Return the result of a short training."""
    return tl.train_model(config("fixed", epochs=1), mini, device="cpu")


def pretend(result: tl.TrainResult, settings: tl.TrainConfig, splits: tl.Splits) -> tl.TrainResult:
    """Change a result as if it were that of another config and other images, without training."""
    count = len(splits.val)
    said = result.last.replace(labels=[0] * count, confidences=[0.5] * count)
    rows = tuple(result.epochs[0].replace(epoch=epoch) for epoch in range(settings.epochs))
    return result.replace(config=settings, epochs=rows, best=said, last=said, model=None)


def test_every_protocol_that_can_be_named_can_be_run() -> None:
    """Both tables have the same names."""
    assert PROTOCOLS.keys() == RUNNERS.keys()


def test_fixed_is_train_model(mini: tl.Splits) -> None:
    """The numbers are the same, and there are no figures of tuning."""
    one, other = run(config("fixed"), mini), tl.train_model(config("fixed"), mini, device="cpu")
    assert [row.val_loss for row in one.epochs] == [row.val_loss for row in other.epochs]
    assert (one.trials, one.tuning_seconds, one.learning_rate_chosen) == ((), None, None)
    assert one.learning_rate == 1e-3


@pytest.mark.parametrize("protocol", ["tuned", "kfold"])
def test_train_model_trains_once_or_not_at_all(mini: tl.Splits, protocol: str) -> None:
    """It refuses protocols with several trainings."""
    with pytest.raises(tl.ConfigError, match=f"protocol='{protocol}': train_model trains once; tl.run_protocol"):
        tl.train_model(config(protocol), mini, device="cpu")


@pytest.mark.parametrize(
    ("trials", "rate"),
    [
        ([trial(1e-3, 0.8, 0.5), trial(1e-2, 0.9, 0.6)], 1e-2),
        ([trial(1e-3, 0.9, 0.5), trial(1e-2, 0.9, 0.4)], 1e-2),
        ([trial(1e-3, 0.9, 0.4), trial(1e-2, 0.9, 0.4)], 1e-3),
        ([trial(1e-2, 0.9, 0.4), trial(1e-3, 0.9, 0.4)], 1e-3),
        ([trial(1e-3, None, None), trial(1e-2, 0.0, 9.0)], 1e-2),
        ([trial(1e-3, None, None), trial(1e-2, None, None)], None),
    ],
    ids=["accuracy", "loss", "smaller", "smaller comes last", "one diverged", "all diverged"],
)
def test_the_choice_among_trials(trials: list[Trial], rate: float | None) -> None:
    """Accuracy decides, then loss, then the smaller rate; a trial that diverged is never chosen."""
    chosen = choose(trials)
    assert (chosen.learning_rate if chosen else None) == rate


def test_tuned_is_a_training_at_the_rate_that_did_best_on_held_out_images(mini: tl.Splits) -> None:
    """Trials and final training equal those of `train_model`, at the last epoch and on all images."""
    result = run(config("tuned"), mini)
    fixed = config("fixed")
    for one, rate in zip(result.trials, RATES, strict=True):
        alone = tl.train_model(fixed.replace(learning_rate=rate), tuning_splits(mini), device="cpu")
        last = alone.epochs[-1]
        assert (one.learning_rate, one.held_out_accuracy, one.held_out_loss) == (rate, last.val_accuracy, last.val_loss)
    chosen = choose(result.trials).learning_rate  # type: ignore[union-attr]
    assert result.learning_rate_chosen == result.learning_rate == result.epochs[0].learning_rate == chosen
    final = tl.train_model(fixed.replace(learning_rate=chosen), mini, device="cpu", keep="last")
    assert result.best == result.last, "the validation images don't choose the epoch either"
    assert [row.val_loss for row in result.epochs] == [row.val_loss for row in final.epochs]
    assert result.best == final.best and result.work == final.work and result.frozen_verified
    assert result.config == config("tuned") and result.model is not None
    assert result.tuning_seconds == pytest.approx(sum(one.seconds for one in result.trials))
    assert result.training_seconds == pytest.approx(sum(r.train_seconds + r.val_seconds for r in result.epochs))


def test_a_trial_counts_at_its_last_epoch(
    mini: tl.Splits, trained: tl.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its best epoch doesn't count: 3e-2 is worse after a lucky epoch, so 1e-3 is chosen."""
    accuracies = {1e-3: (0.5, 0.8), 3e-2: (1.0, 0.7)}

    def scripted(settings: tl.TrainConfig, splits: tl.Splits, **more: Any) -> tl.TrainResult:
        result = pretend(trained, settings, splits)
        said = accuracies[settings.learning_rate]
        rows = [row.replace(val_accuracy=value) for row, value in zip(result.epochs, said, strict=True)]
        return result.replace(epochs=tuple(rows))

    monkeypatch.setattr(protocols, "train_model", scripted)
    assert run(config("tuned", learning_rates=(1e-3, 3e-2)), mini).learning_rate_chosen == 1e-3


def flipped(images: ImageList) -> ImageList:
    return replace(images, labels=tuple(1 - label for label in images.labels))


def test_the_validation_images_choose_nothing(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every validation label wrong, trials and choice stay the same; no trial reads a validation file."""
    read: list[str] = []
    original = Store.read

    def reading(self: Store, file: str) -> Any:
        read.append(file)
        return original(self, file)

    monkeypatch.setattr(Store, "read", reading)
    before: dict[str, list[str]] = {}
    settings = config("tuned")
    result = run(settings, mini, on_stage=lambda text: before.setdefault(text, list(read)))
    before_final = before[f"training at {result.learning_rate:g}"]
    assert before_final and set(before_final) == set(mini.train.files)
    assert set(read) == set(mini.train.files + mini.val.files)
    other = run(settings, replace(mini, val=flipped(mini.val)))
    assert [one.replace(seconds=0.0) for one in other.trials] == [one.replace(seconds=0.0) for one in result.trials]
    assert other.learning_rate_chosen == result.learning_rate_chosen
    assert other.val_accuracy_last == pytest.approx(1 - result.val_accuracy_last)


def test_all_regimes_and_seeds_are_tuned_on_the_same_images(
    mini: tl.Splits, trained: tl.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They also have the same number of trials."""
    seen: list[tuple[ImageList, ImageList]] = []

    def recorded(settings: tl.TrainConfig, splits: tl.Splits, **more: Any) -> tl.TrainResult:
        seen.append((splits.train, splits.val))
        return pretend(trained, settings, splits)

    def recorded_at_once(several: list[tl.TrainConfig], splits: tl.Splits, **more: Any) -> list[TrainedHead]:
        return [
            TrainedHead(config=one, head=nn.Identity(), epochs=list(recorded(one, splits).epochs)) for one in several
        ]

    monkeypatch.setattr(protocols, "train_model", recorded)
    monkeypatch.setattr(protocols, "train_heads", recorded_at_once)
    monkeypatch.setattr(protocols.gc, "collect", lambda: 0)  # nothing trains, and it takes most of the test's time
    for regime, seed in [*((regime, 0) for regime in TRAINING), ("frozen", 1)]:
        run(config("tuned", regime, seed=seed, epochs=1), mini)
    assert len(seen) == (len(TRAINING) + 1) * (len(RATES) + 1)
    assert len(set(seen)) == 2, "one split for all trials, and the data set's own for all final trainings"


def test_memory_of_the_trials_counts_for_the_training(
    mini: tl.Splits, trained: tl.TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The baseline is that before the first trial, since the training uses pages that the allocator keeps."""
    baselines = iter([5_000, 6_000, 7_000, 8_000])

    def grown(settings: tl.TrainConfig, splits: tl.Splits, **more: Any) -> tl.TrainResult:
        monkeypatch.setattr(protocols, "MemoryMarks", None)  # too late
        return tl.train_model(settings, splits, **more).replace(
            baseline_rss_bytes=next(baselines), peak_rss_bytes=9_000
        )

    monkeypatch.setattr(protocols, "MemoryMarks", lambda device: SimpleNamespace(baseline={"baseline_rss_bytes": 100}))
    monkeypatch.setattr(protocols, "train_model", grown)
    assert run(config("tuned", epochs=1), mini).peak_memory_bytes == 8_900


@pytest.mark.parametrize("regime", ["finetune", "frozen"])
def test_kfold_is_one_training_per_fold(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, regime: str) -> None:
    """Predictions have the order of the images; figures are sums, means over images, or maxima."""
    parts: list[tl.Splits] = []
    results: list[tl.TrainResult] = []

    def recorded(settings: tl.TrainConfig, splits: tl.Splits, **more: Any) -> tl.TrainResult:
        made = tl.train_model(settings, splits, **more).replace(
            peak_rss_bytes=10**9 - len(results), frozen_verified=len(results) != 1 if regime == "frozen" else None
        )
        parts.append(splits)
        results.append(made)
        return made

    monkeypatch.setattr(protocols, "train_model", recorded)
    settings = config("kfold", regime, folds=3)
    result = run(settings, mini)
    images = every_image(mini)
    assert len(results) == 3 and result.config == settings and result.model is None
    assert {one.config for one in results} == {config("fixed", regime)}
    said = dict(zip(images.files, zip(result.best.labels, result.best.confidences, strict=True), strict=True))
    for one, split in zip(results, parts, strict=True):
        assert [said[f] for f in split.val.files] == list(zip(one.last.labels, one.last.confidences, strict=True))
    assert result.best == result.last and result.last.epoch == 1
    right = sum(a == b for a, b in zip(result.last.labels, images.labels, strict=True))
    assert result.val_accuracy_best == result.val_accuracy_last == pytest.approx(right / len(images))
    for epoch, row in enumerate(result.epochs):
        rows = [one.epochs[epoch] for one in results]
        assert row.train_seconds == pytest.approx(sum(r.train_seconds for r in rows))
        assert row.phases.forward == pytest.approx(sum(r.phases.forward for r in rows))
        assert row.train_seconds + row.val_seconds == pytest.approx(sum(row.phases.model_dump().values()))
        losses = [r.val_loss * len(s.val) for r, s in zip(rows, parts, strict=True)]
        assert row.val_loss == pytest.approx(sum(losses) / 40)
        losses = [r.train_loss * len(s.train) for r, s in zip(rows, parts, strict=True)]
        assert row.train_loss == pytest.approx(sum(losses) / 80)
    assert result.training_seconds == pytest.approx(sum(one.training_seconds for one in results))
    assert result.setup_seconds == pytest.approx(sum(one.setup_seconds for one in results))
    assert (result.peak_rss_bytes, result.baseline_rss_bytes) == (10**9, results[0].baseline_rss_bytes)
    assert result.work == results[0].work
    assert result.frozen_verified is (False if regime == "frozen" else None), "one fold that moved is enough"
    assert tl.TrainResult.from_json(to_json(result.model_dump(mode="json"))).last == result.last


def test_regimes_have_the_same_folds(mini: tl.Splits, trained: tl.TrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds depend on the seed, but not on the regime."""
    seen: dict[tuple[str, int], list[ImageList]] = {}

    def recorded(settings: tl.TrainConfig, splits: tl.Splits, **more: Any) -> tl.TrainResult:
        seen.setdefault((settings.regime, settings.seed), []).append(splits.val)
        return pretend(trained, settings, splits)

    monkeypatch.setattr(protocols, "train_model", recorded)
    for regime, seed in (("finetune", 0), ("frozen", 0), ("frozen", 1)):
        run(config("kfold", regime, seed=seed, folds=2, epochs=1), mini)
    assert seen["finetune", 0] == seen["frozen", 0] != seen["frozen", 1]


@pytest.mark.parametrize(
    ("protocol", "stages"),
    [
        ("fixed", []),
        ("tuned", ["tuning 1/3", "tuning 2/3", "tuning 3/3", "training at 0.001"]),
        ("kfold", ["fold 1/2", "fold 2/2"]),
    ],
)
def test_progress_is_reported_and_counted(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, protocol: str, stages: list[str]
) -> None:
    """Each training is announced by a few words, and the number of epochs is that of the config."""
    monkeypatch.setattr(protocols, "choose", lambda trials: trials[0])
    settings = config(protocol, **({"folds": 2} if protocol == "kfold" else {}))
    announced: list[str] = []
    epochs: list[tl.EpochResult] = []
    run(settings, mini, on_stage=announced.append, on_epoch=epochs.append)
    assert announced == stages
    assert len(epochs) == settings.epochs * settings.trainings


def test_a_missing_store_is_built_for_all_images(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The first training uses a part of the images, but the store must not have only that part."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "empty"))
    assert run(config("tuned", epochs=1), mini).epochs
    assert run(config("fixed", epochs=1), mini).epochs


def test_predictions_of_kfold_can_be_shown(mini: tl.Splits) -> None:
    """They are for all images, not only for the validation images."""
    result = run(config("kfold", folds=2, epochs=1), mini)
    odd = replace(mini, classes=(r"a$\frac$", "b\u202e"))
    figure = tl.show_predictions(result, odd, count=40)
    figure.savefig(io.BytesIO())
    assert len(figure.axes) == 40 and not any("\u202e" in axes.get_title() for axes in figure.axes)
