"""Makes records with known values, for measurements of the suite alone and for its tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from bench.store.environment import Environment, environment
from bench.store.records import Cell, Record
from tl.config import TrainConfig
from tl.regimes import REGIMES
from tl.results import EpochResult, Predictions, TrainResult, Trial
from tl.weights import Weights

TRUTH = (0,) * 50 + (1,) * 50
PRETRAINED = Weights(kind="pretrained", source="package x", label="x", digest="d" * 64)
RANDOM = Weights(kind="random", source="random", reason="the moon is in the way")


@cache
def this_environment() -> Environment:
    """Found out once: that takes longer than all else of a record."""
    return environment()


def record(
    backbone: str,
    regime: str,
    *,
    seconds: float = 10.0,
    right: int = 95,
    status: str = "done",
    seed: int = 0,
    weights: Weights = PRETRAINED,
    epochs: int = 4,
    classes: tuple[str, ...] = ("ants", "bees"),
    frozen: bool | None = None,
    rate: float | None = None,
    **settings: Any,
) -> Record:
    """A record with epochs of about `seconds` each and `right` of 100 validation images right; see `result_of`."""
    config = TrainConfig(backbone=backbone, regime=regime, epochs=epochs, weights=weights.kind, seed=seed, **settings)
    cell = Cell(config=config, weights_digest=weights.digest, dataset_digest="0" * 64, device="cpu")
    result = result_of(config, weights, classes=classes, seconds=seconds, right=right, frozen=frozen, rate=rate)
    return Record(
        cell_id=cell.id,
        cell=cell,
        dataset="own",
        train_images=244,
        weights=weights,
        status=status,
        reason="" if status == "done" else "took | too <b>long</b>",
        traceback="" if status == "done" else "Traceback <script>",
        started=datetime(2026, 1, 1, tzinfo=UTC),
        wall_seconds=result.training_seconds + 1,
        environment=this_environment(),
        result=result if status == "done" else None,
    )


def result_of(
    config: TrainConfig,
    weights: Weights,
    *,
    truth: Sequence[int] = TRUTH,
    classes: tuple[str, ...] = ("ants", "bees"),
    seconds: float = 10.0,
    right: int = 95,
    frozen: bool | None = None,
    rate: float | None = None,
) -> TrainResult:
    """A result with epochs of about `seconds` each, a fifth of it for validation.

    Args:
        config: the settings; the number of epochs is theirs.
        weights: weights that the backbone started from.
        truth: labels of the validation images.
        classes: names of the classes.
        seconds: duration of an epoch.
        right: percentage of the images that are predicted right in each epoch: the first ones.
        frozen: `frozen_verified`.
        rate: learning rate that tuning chose; by default the first one with protocol `tuned`.
    """
    trains = REGIMES[config.regime].trains
    rates = config.learning_rates if trains and config.protocol == "tuned" else ()
    hits = [100 * index < right * len(truth) for index in range(len(truth))]
    labels = [label if hit else (label + 1) % len(classes) for label, hit in zip(truth, hits, strict=True)]
    rows = [
        EpochResult(
            epoch=i,
            learning_rate=1e-3 if trains else None,
            train_seconds=seconds * 0.8 + i / 100 if trains else None,
            val_seconds=seconds * 0.2,
            train_loss=0.5 if trains else None,
            train_accuracy=0.9 if trains else None,
            val_loss=0.4,
            val_accuracy=sum(hits) / len(hits),
        )
        for i in range(config.passes)
    ]
    last = Predictions(epoch=len(rows) - 1, labels=labels, confidences=[0.9] * len(labels))
    return TrainResult(
        config=config,
        weights=weights,
        classes=classes,
        device="cpu",
        device_name="CPU",
        threads=2,
        memory_format="channels_last",
        epochs=tuple(rows),
        best=last.replace(epoch=0) if config.protocol == "fixed" else last,
        last=last,
        total_params=10,
        trainable_params=2 if trains else 0,
        frozen_verified=frozen,
        setup_seconds=0.1,
        training_seconds=sum((row.train_seconds or 0.0) + row.val_seconds for row in rows),
        baseline_rss_bytes=100,
        peak_rss_bytes=100 + int(seconds * 2**20),
        memory_method="VmHWM",
        trials=tuple(
            Trial(learning_rate=each, held_out_accuracy=0.9, held_out_loss=0.4, seconds=0.5 / len(rates))
            for each in rates
        ),
        learning_rate_chosen=rate if rate is not None else next(iter(rates), None),
        tuning_seconds=0.5 if rates else None,
    )
