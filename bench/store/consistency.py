"""Checks a record against itself and against its run's manifest: figures that can't all be true count as damage.

The types of `bench.store.records` already refuse values that are impossible on their own. The checks here run only on
reading, so a mistake in one of them never loses the result of a cell that has just ended.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from bench.store.pairs import PairRecord
from bench.store.records import SETTLED, Cell, Manifest, Record
from tl.config import TrainConfig
from tl.regimes import REGIMES, Regime
from tl.results import EpochResult, Predictions, TrainResult
from tl.stopping import epochs_until_end
from tl.tasks import TASKS, Task
from tl.text import shortened

_TRAINING: dict[str, Callable[[Regime, Task], bool]] = {
    "train_seconds": lambda regime, task: regime.trains,
    **dict.fromkeys(("learning_rate", "train_loss"), lambda regime, task: regime.by_steps),
    "train_accuracy": lambda regime, task: regime.by_steps and task.right_or_wrong,
}
"""Figure of an epoch → whether a regime has it, with a task."""
_ROUNDING = 1e-6
_CLOCKS = timedelta(days=1)
"""How much the clocks of two machines may differ, with their time zones."""


def contradiction(record: Record, manifest: Manifest) -> str:
    """Say in what a record contradicts itself or its run's manifest; empty if it doesn't."""
    return next(_contradictions(record, manifest), "")


def _contradictions(record: Record, manifest: Manifest) -> Iterator[str]:
    cell, result = record.cell, record.result
    if manifest.cells.get(record.cell_id, cell) != cell:
        yield "the manifest has another cell of this id"
    yield from _of_epochs("epochs", record.epochs, cell.config)
    if record.epochs and record.status != "diverged":
        yield f"status {record.status!r} with epochs beside the result"
    # A clock may be wrong, so a record is only later than now if the commands that planned it are not.
    now, planned = datetime.now(UTC), manifest.invocations[-1].started
    if record.started > now + _CLOCKS and planned <= now:
        yield f"started={record.started:%Y-%m-%d %H:%M}: it is {now:%Y-%m-%d %H:%M} now"
    if record.status == "done" and record.reason:
        yield f"reason={shortened(repr(record.reason))} of a cell that is done"
    if record.status in SETTLED and record.attempts == 0:
        yield f"attempts=0, and status {record.status!r}"
    of_kfold = (cell.config.folds - 1) * len(manifest.dataset.val_files)
    images = of_kfold if cell.config.protocol == "kfold" else manifest.dataset.train_images
    if record.train_images != images:
        yield f"train_images={record.train_images}: the run has {images}"
    if record.epochs and len(record.epochs) >= cell.config.passes:
        yield f"it diverged after {len(record.epochs)} of {cell.config.passes} epochs"
    if result is not None:
        yield from _of_result(result, cell)
        yield from _of_images(result, manifest)
        yield from _of_probe(result, manifest)
        if (record.overhead_seconds or 0.0) < -_ROUNDING * record.wall_seconds:
            rest = record.wall_seconds - (record.overhead_seconds or 0.0)
            yield f"wall_seconds={record.wall_seconds}: its trainings and extractions took {rest}"
        if record.weights is not None and record.weights != result.weights:
            yield "result.weights are other ones than the record's"


def pair_contradiction(record: PairRecord, manifest: Manifest) -> str:
    """Say in what a record of paired timing contradicts itself or its run's manifest; empty if it doesn't."""
    return next(_pair_contradictions(record, manifest), "")


def _pair_contradictions(record: PairRecord, manifest: Manifest) -> Iterator[str]:
    if manifest.pairs.get(record.pair_id, record.pair) != record.pair:
        yield "the manifest has another pair of this id"
    if record.train_images != manifest.dataset.train_images:
        yield f"train_images={record.train_images}: the run has {manifest.dataset.train_images}"
    if record.val_images != len(manifest.dataset.val_files):
        yield f"val_images={record.val_images}: the run has {len(manifest.dataset.val_files)}"
    counts = {len(side.turns) for side in record.sides if side.turns}
    if record.status == "done" and len(counts) > 1:
        yield f"its sides took {' and '.join(map(str, sorted(counts)))} turns"
    for number, (cell, side) in enumerate(zip(record.pair.cells, record.sides, strict=True)):
        if side.turns is None:
            continue
        trains = REGIMES[cell.config.regime].trains
        if bool(side.turns.train_seconds) is not trains:
            what = "trains" if trains else "trains nothing"
            yield f"sides.{number}.turns.train_seconds has {len(side.turns.train_seconds)} values: its regime {what}"
        most = cell.config.batch_size + 1  # an image that is left over joins the batch before it
        for name, images, batches in (
            ("train_images", side.turns.train_images, record.steps),
            ("val_images", side.turns.val_images, record.batches),
        ):
            if wrong := next((count for count in images if not batches <= count <= most * batches), None):
                yield f"sides.{number}.turns.{name} has {wrong}: {batches} batches have at most {most} images each"


def _of_result(result: TrainResult, cell: Cell) -> Iterator[str]:
    config = cell.config
    if result.config != config:
        for name in TrainConfig.model_fields:
            if (found := getattr(result.config, name)) != (planned := getattr(config, name)):
                yield f"result.config has {name}={shortened(repr(found))}, and its cell has {shortened(repr(planned))}"
    if (result.weights.kind, result.weights.digest) != (config.weights, cell.weights_digest):
        yield f"result.weights are other ones than the cell's {config.weights} weights"
    for where, epochs in (
        ("result.epochs", result.epochs),
        *((f"result.folds.{n}", e) for n, e in enumerate(result.folds)),
    ):
        yield from _of_epochs(where, epochs, config)
        planned = epochs_until_end(_val_losses(epochs), config.early_stopping, config.passes)
        if len(epochs) != planned:
            what = "its losses end it after" if planned < config.passes else "the cell has"
            yield f"{where} has {len(epochs)} epochs, and {what} {planned}"
    if result.folds and len(result.folds) != (planned := config.folds if config.protocol == "kfold" else 0):
        yield f"result.folds has {len(result.folds)} folds, and the cell has {planned}"
    total = sum((row.train_seconds or 0.0) + row.val_seconds for row in result.epochs)
    if not math.isclose(result.training_seconds, total, rel_tol=_ROUNDING):
        yield f"result.training_seconds={result.training_seconds}: its epochs took {total}"
    if result.threads == 0:
        yield "result.threads=0: a training has at least one"
    if _type(result.device) != _type(cell.device):
        yield f"result.device={result.device!r}, and its cell's is {cell.device!r}"
    if (result.trainable_params > 0) is not REGIMES[config.regime].trains:
        what = "trains" if REGIMES[config.regime].trains else "trains nothing"
        yield f"result.trainable_params={result.trainable_params}: regime {config.regime!r} {what}"
    if result.trainable_params > result.total_params:
        yield f"result.trainable_params={result.trainable_params}: there are {result.total_params} parameters"
    if result.work is not None and result.work.step_images > config.batch_size + 1:
        yield f"result.work.step_images={result.work.step_images}: the batch size is {config.batch_size}"
    yield from _of_periods(result)
    yield from _of_parts(result)
    yield from _of_tuning(result, config)
    rate = result.epochs[0].learning_rate
    if rate is not None and not math.isclose(rate, result.learning_rate or 0.0, rel_tol=_ROUNDING):
        yield f"result.epochs.0.learning_rate={rate}: the training begins with {result.learning_rate}"


def _val_losses(epochs: Sequence[EpochResult]) -> list[float]:
    """Those that are known: a task has all or none."""
    return [row.val_loss for row in epochs if row.val_loss is not None]


def _of_periods(result: TrainResult) -> Iterator[str]:
    """Periods begin every `unfreeze_every` epochs, and each trains more than the one before."""
    config, periods = result.config, result.periods
    if not periods:
        return
    if REGIMES[config.regime].trainable.in_turn is None:
        yield f"result.periods of regime {config.regime!r}, which trains the same in all epochs"
    for number, period in enumerate(periods):
        if period.first_epoch != (planned := number * config.unfreeze_every) or planned >= config.epochs:
            yield f"result.periods.{number}.first_epoch={period.first_epoch}: one begins every {config.unfreeze_every}"
    sizes = [period.trainable_params for period in periods]
    if sizes != sorted(set(sizes)) or sizes[-1] != result.trainable_params:
        yield f"result.periods train {sizes} parameters, and result.trainable_params={result.trainable_params}"
    if result.work != periods[-1].work:
        yield "result.work is not that of the last of result.periods"


_WHOLES = {
    "train_rss_bytes": "peak_rss_bytes",
    "val_rss_bytes": "peak_rss_bytes",
    "cuda_train_allocated_bytes": "cuda_allocated_bytes",
    "cuda_val_allocated_bytes": "cuda_allocated_bytes",
    "resident_image_bytes": "cuda_allocated_bytes",
    "cuda_allocated_bytes": "cuda_reserved_bytes",
}
"""Figure of a result → another one that is never smaller; both are unknown or known."""


def _of_parts(result: TrainResult) -> Iterator[str]:
    """Figures that are larger than what they are a part of, and sums that are not those of their parts."""
    for name, whole in _WHOLES.items():
        part, most = getattr(result, name), getattr(result, whole)
        if part is not None and most is not None and part > most:
            yield f"result.{name}={part}: result.{whole} is {most}"
    if result.features_reused and result.extracting_seconds:
        yield f"result.extracting_seconds={result.extracting_seconds}, and all features were cached"
    for number, row in enumerate(result.epochs):
        for name in ("train_seconds", "val_seconds"):
            parts = [getattr(fold[number], name) for fold in result.folds if number < len(fold)]
            if parts and None not in parts and not math.isclose(sum(parts), getattr(row, name), rel_tol=_ROUNDING):
                yield f"result.epochs.{number}.{name}={getattr(row, name)}: its folds took {sum(parts)}"


def _type(device: str) -> str:
    """`cuda` of `cuda:1` and of a cluster's `cuda@kind`: which of several it was is not compared."""
    return re.split("[:@]", device, maxsplit=1)[0]


def _of_epochs(where: str, epochs: Sequence[EpochResult], config: TrainConfig) -> Iterator[str]:
    regime = REGIMES[config.regime]
    for number, row in enumerate(epochs):
        if row.epoch != number:
            yield f"{where}.{number}.epoch={row.epoch}: epochs are counted from 0"
        for name, has in _TRAINING.items():
            if (getattr(row, name) is not None) is not has(regime, TASKS[config.task]):
                what = "trains nothing" if not regime.trains else "trains" if regime.by_steps else "fits its head"
                yield f"{where}.{number}.{name}={getattr(row, name)}: regime {config.regime!r} {what}"
        if (row.val_loss is not None) is not TASKS[config.task].val_loss:
            right = "has one" if TASKS[config.task].val_loss else "has none"
            yield f"{where}.{number}.val_loss={row.val_loss}: task {config.task!r} {right}"
        for name in ("train_loss", "val_loss", "learning_rate"):
            if (getattr(row, name) or 0.0) < 0:
                yield f"{where}.{number}.{name}={getattr(row, name)}: is never below 0"
        if row.phases and row.seconds is not None:
            total = sum(row.phases.model_dump().values())
            if not math.isclose(total, row.seconds, rel_tol=_ROUNDING):
                yield f"{where}.{number}.phases take {total} s, and the epoch takes {row.seconds}"


def _of_tuning(result: TrainResult, config: TrainConfig) -> Iterator[str]:
    rates = config.learning_rates if config.protocol == "tuned" and REGIMES[config.regime].by_steps else ()
    if (tried := tuple(trial.learning_rate for trial in result.trials)) != rates:
        yield f"result.trials are of {len(tried)} learning rates, and the cell has {list(rates)} to try"
    chosen, seconds = result.learning_rate_chosen, result.tuning_seconds
    if chosen not in (rates or (None,)):
        yield f"result.learning_rate_chosen={chosen}: the cell has {list(rates)} to try"
    for number, trial in enumerate(result.trials):
        if (trial.held_out_accuracy is None) is not (trial.held_out_loss is None):
            yield f"result.trials.{number} has an accuracy or a loss, and not both"
    best = max((t.held_out_accuracy for t in result.trials if t.held_out_accuracy is not None), default=0.0)
    # Before version 7 a trial that diverged had an accuracy and could be chosen; on reading it loses that.
    accuracies = [t.held_out_accuracy for t in result.trials if chosen == t.learning_rate]
    if any(accuracy is not None and accuracy < best for accuracy in accuracies):
        yield f"result.learning_rate_chosen={chosen}: another rate was more accurate"
    total = sum(trial.seconds for trial in result.trials) if rates else None
    if (seconds is None) is not (total is None) or not math.isclose(seconds or 0.0, total or 0.0, rel_tol=_ROUNDING):
        yield f"result.tuning_seconds={seconds}: its trials took {total}"


def _of_images(result: TrainResult, manifest: Manifest) -> Iterator[str]:
    dataset = manifest.dataset
    if result.config.task != dataset.task:
        yield f"result.config has task={result.config.task!r}, and the run's images are for {dataset.task!r}"
        return
    if result.classes != dataset.classes:
        ours, theirs = (shortened(repr(classes)) for classes in (result.classes, dataset.classes))
        yield f"result.classes={ours}: the run's images have {theirs}"
    yield from _of_predictions("best", result.best, result, dataset.truth)
    if result.last != result.best:  # scoring boxes takes a while
        yield from _of_predictions("last", result.last, result, dataset.truth)
    for number, row in enumerate(result.epochs if TASKS[result.config.task].right_or_wrong else ()):
        hits = row.val_accuracy * len(dataset.val_labels)
        if abs(hits - round(hits)) > _ROUNDING * len(dataset.val_labels):
            whole = f"of {len(dataset.val_labels)} images, {hits:g} would be right"
            yield f"result.epochs.{number}.val_accuracy={row.val_accuracy}: {whole}"
    accuracies = [row.val_accuracy for row in result.epochs]
    last = len(accuracies) - 1
    # The tutorial keeps the first epoch with the best accuracy; the other protocols choose none.
    best = accuracies.index(max(accuracies)) if result.config.protocol == "fixed" else last
    for name, found, right in (("best", result.best.epoch, best), ("last", result.last.epoch, last)):
        if found != right:
            yield f"result.{name} is of epoch {found}, and the {name} is {right}"


def _of_probe(result: TrainResult, manifest: Manifest) -> Iterator[str]:
    """A probe is of the training images, and of a training that fits its head once."""
    if result.probe is None:
        return
    if REGIMES[result.config.regime].fit == "steps" or result.config.protocol == "kfold":
        yield f"result.probe of regime {result.config.regime!r} with protocol {result.config.protocol!r}"
    if len(result.probe.labels) != (images := manifest.dataset.train_images):
        yield f"result.probe has {len(result.probe.labels)} predictions, and the run has {images} images to train on"


def _of_predictions(name: str, said: Predictions, result: TrainResult, truth: Sequence[Any]) -> Iterator[str]:
    if said.images != len(truth):
        yield f"result.{name} has {said.images} predictions, and the run has {len(truth)} images to validate"
        return
    task = TASKS[result.config.task]
    score, stated = task.overall(said, truth), result.epochs[said.epoch].val_accuracy
    if not math.isclose(score, stated, abs_tol=_ROUNDING):
        what = f"of its predictions, {score} are right" if task.right_or_wrong else f"its predictions have {score}"
        yield f"result.epochs.{said.epoch}.val_accuracy={stated}: {what}"
