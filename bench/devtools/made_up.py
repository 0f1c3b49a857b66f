"""Makes records with known values, for measurements of the suite alone and for its tests."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Any

from bench.store.environment import Environment, environment
from bench.store.records import Cell, Record
from tl.config import TrainConfig
from tl.results import EpochResult, Predictions, TrainResult
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
    classes: tuple[str, str] = ("ants", "bees"),
    frozen: bool | None = None,
    rate: float | None = None,
    **settings: Any,
) -> Record:
    """A record with 4 epochs of about `seconds` each and `right` of 100 validation images right.

    `rate` is the learning rate that tuning chose; None if nothing was tuned.
    """
    config = TrainConfig(backbone=backbone, regime=regime, epochs=epochs, weights=weights.kind, seed=seed, **settings)
    cell = Cell(config=config, weights_digest=weights.digest, dataset_digest="0" * 64, device="cpu")
    labels = [label if index < right else 1 - label for index, label in enumerate(TRUTH)]
    predictions = Predictions(epoch=0, labels=labels, confidences=[0.9] * 100)
    rows = [
        EpochResult(
            epoch=i,
            learning_rate=1e-3,
            train_seconds=seconds * 0.8 + i / 100,
            val_seconds=seconds * 0.2,
            train_loss=0.5,
            train_accuracy=0.9,
            val_loss=0.4,
            val_accuracy=right / 100,
        )
        for i in range(4)
    ]
    result = TrainResult(
        config=config,
        weights=weights,
        classes=classes,
        device="cpu",
        device_name="CPU",
        threads=2,
        memory_format="channels_last",
        epochs=tuple(rows),
        best=predictions,
        last=predictions,
        total_params=10,
        trainable_params=2,
        frozen_verified=frozen,
        setup_seconds=0.1,
        training_seconds=4 * seconds,
        baseline_rss_bytes=100,
        peak_rss_bytes=100 + int(seconds * 2**20),
        memory_method="VmHWM",
        learning_rate_chosen=rate,
        tuning_seconds=None if rate is None else 0.5,
    )
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
        wall_seconds=4 * seconds + 1,
        environment=this_environment(),
        result=result if status == "done" else None,
    )
