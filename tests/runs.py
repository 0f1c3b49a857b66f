"""Makes records with known values, and runs of them on disk."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from bench.store.environment import Environment, environment
from bench.store.records import Cell, DatasetIdentity, Invocation, Manifest, Record
from bench.store.runs import RunFolder
from tl.config import TrainConfig
from tl.results import EpochResult, Predictions, TrainResult
from tl.weights import Weights

TRUTH = (0,) * 50 + (1,) * 50
PRETRAINED = Weights(kind="pretrained", source="package x", label="x", digest="d" * 64)
RANDOM = Weights(kind="random", source="random", reason="the moon is in the way")


@cache
def _environment() -> Environment:
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
        environment=_environment(),
        result=result if status == "done" else None,
    )


def untrained(backbone: str, *, right: int = 95, weights: Weights = PRETRAINED) -> Record:
    """A record of regime `zeroshot`, which has only a validation pass of 2 seconds."""
    one = record(backbone, "zeroshot", right=right, frozen=True, weights=weights)
    assert one.result is not None
    nothing = dict.fromkeys(("learning_rate", "train_seconds", "train_loss", "train_accuracy"))
    row = one.result.epochs[0].replace(**nothing, val_seconds=2.0)
    result = one.result.replace(epochs=(row,), trainable_params=0, training_seconds=2.0)
    return one.replace(result=result, wall_seconds=4.0)


def write_run(
    folder: Path,
    records: list[Record],
    *,
    classes: tuple[str, str] = ("ants", "bees"),
    fallback: str = "",
    missing: Sequence[Cell] = (),
) -> RunFolder:
    """Write a run with these records. The cells in `missing` were planned and have no record."""
    run = RunFolder(folder)
    cells = {record.cell_id: record.cell for record in records} | {cell.id: cell for cell in missing}
    now = datetime(2026, 1, 1, tzinfo=UTC)
    run.write_manifest(
        Manifest(
            name=folder.name,
            protocol=(records[0].cell.config if records else TrainConfig(backbone="x")).model_dump(),
            dataset=DatasetIdentity(
                name="own",
                digest="0" * 64,
                classes=classes,
                train_images=244,
                val_files=tuple(f"{i}.jpg" for i in range(100)),
                val_labels=TRUTH,
                fallback=fallback,
            ),
            weights={},
            cells=cells,
            invocations=(
                Invocation(
                    command="python -m bench run",
                    started=now,
                    grid={},
                    environment=_environment(),
                    cell_ids=tuple(cells),
                ),
            ),
        )
    )
    for one in records:
        run.write_record(one)
    return run
