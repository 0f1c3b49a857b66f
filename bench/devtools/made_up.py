"""Makes records with known values, for measurements of the suite alone and for its tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np

from bench.store.environment import Environment, environment
from bench.store.pairs import PairRecord, SideStatus, TimedSide, Turns
from bench.store.records import Cell, PlannedPair, Record
from tl.config import TrainConfig
from tl.regimes import REGIMES
from tl.results import EpochResult, Predictions, Probe, TrainResult, Trial
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
    probe: Probe | None = None,
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
        train_images=244 if config.protocol != "kfold" else (config.folds - 1) * len(TRUTH),
        weights=weights,
        status=status,
        reason="" if status == "done" else "took | too <b>long</b>",
        traceback="" if status == "done" else "Traceback <script>",
        started=datetime(2026, 1, 1, tzinfo=UTC),
        wall_seconds=result.training_seconds + 1,
        environment=this_environment(),
        result=result.replace(probe=probe) if status == "done" else None,
    )


def pair_record(
    cells: Sequence[Cell],
    seconds: Sequence[float],
    *,
    number: int = 0,
    turns: int = 8,
    noise: float = 0.0,
    status: SideStatus = "done",
    apart: str = "",
    memory: Sequence[int | None] | None = None,
    start_seconds: float = 0.0,
    train_images: int = 244,
    val_images: int = len(TRUTH),
    **fields: Any,
) -> PairRecord:
    """A record of paired timing of cells whose epochs take `seconds` each, a fifth of it for validation.

    Args:
        cells: the cells; their seeds are replaced by 0.
        seconds: duration of an epoch of each.
        number: number of the pair.
        turns: turns of each cell, of 4 training steps and 3 validation batches, at batch size 4.
        noise: standard deviation of a turn's time, relative; the pair's number is the seed.
        status: if it is not `done`, the last cell has this status and the pair too unless two others are left.
        apart: why the cells were timed one after the other; empty if they were not.
        memory: peak bytes of each cell.
        start_seconds: seconds per epoch of each cell that are not in the turns.
        train_images, val_images: images of an epoch.
        fields: other fields of the record.
    """
    pair = PlannedPair(cells=tuple(cell.but(seed=0) for cell in cells), number=number, seconds=4.0)
    steps, batches, scatter = 4, 3, np.random.default_rng(number)
    sides = []
    for place, (cell, whole) in enumerate(zip(pair.cells, seconds, strict=True)):
        if status != "done" and place == len(cells) - 1:
            sides.append(TimedSide(status=status, reason="took | too <b>long</b>"))
            continue
        trains = REGIMES[cell.config.regime].trains
        speed = np.exp(scatter.normal(0.0, noise, turns)).tolist()
        share = 0.8 if trains else 0.0
        train = share * (whole - start_seconds) * 4 * steps / train_images
        val = (1 - share) * (whole - start_seconds) * 4 * batches / val_images
        sides.append(
            TimedSide(
                status="done",
                turns=Turns(
                    train_seconds=tuple(train * each for each in speed) if trains else (),
                    train_images=(4 * steps,) * turns if trains else (),
                    val_seconds=tuple(val * each for each in speed),
                    val_images=(4 * batches,) * turns,
                ),
                start_seconds=start_seconds,
                setup_seconds=1.0,
                warm_up_seconds=1.0,
                peak_memory_bytes=memory[place] if memory else int(whole * 2**20),
                memory_method="VmHWM",
                threads=2,
                device_name="CPU",
            )
        )
    done = sum(side.status == "done" for side in sides) >= 2
    return PairRecord(
        pair_id=pair.id,
        pair=pair,
        dataset="own",
        train_images=train_images,
        val_images=val_images,
        status="done" if done else status,
        reason="" if done else f"{cells[-1].config.regime}: took | too <b>long</b>",
        together=not apart,
        apart=apart,
        steps=steps,
        batches=batches,
        sides=tuple(sides),
        order=number,
        wall_seconds=10.0,
        environment=this_environment(),
        **{"started": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number), **fields},
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
    trains, by_steps = REGIMES[config.regime].trains, REGIMES[config.regime].by_steps
    rates = config.learning_rates if by_steps and config.protocol == "tuned" else ()
    begins = config.first_rate(rate if rate is not None else next(iter(rates), config.learning_rate))
    hits = [100 * index < right * len(truth) for index in range(len(truth))]
    labels = [label if hit else (label + 1) % len(classes) for label, hit in zip(truth, hits, strict=True)]
    rows = [
        EpochResult(
            epoch=i,
            learning_rate=begins if by_steps else None,
            train_seconds=seconds * 0.8 + i * min(0.01, seconds / 10) if trains else None,
            val_seconds=seconds * 0.2,
            train_loss=0.5 if by_steps else None,
            train_accuracy=0.9 if by_steps else None,
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
        setup_seconds=min(0.1, seconds),
        training_seconds=sum((row.train_seconds or 0.0) + row.val_seconds for row in rows),
        baseline_rss_bytes=100,
        peak_rss_bytes=100 + int(seconds * 2**20),
        memory_method="VmHWM",
        trials=tuple(
            Trial(learning_rate=each, held_out_accuracy=0.9, held_out_loss=0.4, seconds=min(0.5, seconds) / len(rates))
            for each in rates
        ),
        learning_rate_chosen=rate if rate is not None else next(iter(rates), None),
        tuning_seconds=min(0.5, seconds) if rates else None,
    )
