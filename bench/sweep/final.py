"""Trains a model with the settings of a run's cell, on all images of its data set, and saves it in files.

A run measures combinations and keeps no network: each was trained without the validation images. Once something is
chosen these images can be trained on too. None is left that could choose an epoch, so the last one's network is saved.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.analysis.groups import make_groups
from bench.analysis.metrics import METRICS, RATED_BY, finished
from bench.analysis.recommend import recommend, rivals_of
from bench.execution.base import Executor, Limits
from bench.execution.model_jobs import TRAIN_FINAL, FinalJob, FinalModel
from bench.store.records import Cell, Manifest, Record
from bench.store.runs import RunFolder
from bench.sweep.plan import find_images
from bench.sweep.weights import look_up
from tl.config import AUTO, TrainConfig, one_training
from tl.datasets import Splits
from tl.errors import CacheWarning, ConfigError, UserError, nearest
from tl.exporting import IMAGES, check_forms
from tl.folds import evaluated_images, on_all_images
from tl.images import checked_files, open_store
from tl.machine import DeviceKey, usable_cores
from tl.regimes import REGIMES
from tl.results import EpochResult
from tl.saved import Measured, check_unused, new_folder, why_not_saved
from tl.weights import Weights, check_folder

MOST_NAMED = 3
"""Cells that a message names."""
MEASURED = (RATED_BY, "balanced_accuracy_last", "macro_f1_last", "calibration_error_last", "largest_class_rate")
"""Metrics of the cell that the model's card repeats."""


@dataclass(frozen=True, kw_only=True)
class Final:
    """A training to come, with everything that it needs."""

    record: Record
    """The cell that the run measured."""
    cell: Cell
    """The training: the same settings, once."""
    splits: Splits
    """The images as the run had them."""
    weights: Weights
    measured: Measured
    all_images: bool
    """Train on the validation images too."""

    @property
    def images(self) -> Splits:
        """The images to train on."""
        return on_all_images(self.splits) if self.all_images else self.splits


def plan_final(
    run: RunFolder,
    executor: Executor,
    *,
    cell: str | None = None,
    data: str | None = None,
    weights_dir: Path | None = None,
    device: str | None = None,
    all_images: bool = True,
) -> Final:
    """Check all that can be checked before the training.

    Args:
        run: the run.
        executor: looks for the weights.
        cell: a cell's id, or the beginning of it; None for the one that the run recommends.
        data: the images, a folder or a name; by default where the run's commands found them.
        weights_dir: a folder that is searched first for the weights.
        device: where to train; by default the cell's device.
        all_images: train on the validation images too.

    Raises `UserError` if the run has no such cell, or if its images or weights aren't here or are others.
    """
    manifest = run.manifest()
    record = _measured_cell(run, manifest, cell)
    result, config = record.result, record.cell.config
    assert result is not None
    if REGIMES[config.regime].extractor != "float":
        raise ConfigError(
            f"cell {record.cell_id}: regime {config.regime!r} makes an int8 network, which a file of safetensors can't "
            "hold; choose another --cell"
        )
    if why := why_not_saved(config):
        raise ConfigError(f"cell {record.cell_id}: {why}")
    if weights_dir:
        check_folder("--weights-dir ", weights_dir)
    splits = _images(run, manifest, record, data)
    rate = {} if result.learning_rate_chosen is None else {"learning_rate": result.learning_rate_chosen}
    # What ended early is trained as long as it was: of all images, none is left to say when.
    ended = {"early_stopping": 0, "epochs": len(result.epochs)} if config.early_stopping else {}
    once = one_training(config, **rate, **ended)
    if once.precision == AUTO and result.precision:
        once = once.replace(precision=result.precision)
    evaluated = evaluated_images(config, splits)
    known = finished(record, evaluated.truth)
    assert known is not None
    return Final(
        record=record,
        cell=record.cell.replace(config=once, device=device or DeviceKey.parse(record.cell.device).name),
        splits=splits,
        weights=_weights(record, weights_dir, executor),
        measured=Measured(
            run=run.name,
            cell=record.cell_id,
            images=len(evaluated),
            values={name: METRICS[name].of(known) for name in MEASURED},
            note=_note(config, len(evaluated), all_images=all_images),
        ),
        all_images=all_images,
    )


def train_final(
    final: Final,
    out: Path,
    executor: Executor,
    *,
    exports: Sequence[str] = (),
    on_event: Callable[[EpochResult | CacheWarning | str], None] = lambda event: None,
) -> FinalModel:
    """Train in a process of its own, and save the model in the new folder `out`, whole or not at all.

    `exports` are keys of `tl.exporting.FORMS`. `on_event` gets each epoch, each warning of the cache, and a few words
    before each later step. Raises `UserError` if there is something at `out`, or if the training fails.
    """
    check_unused(out)
    check_forms(exports)
    open_store(final.splits)
    splits = final.images
    compared = final.splits.val.files[:: max(1, -(-len(final.splits.val) // IMAGES))]
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        job = FinalJob(
            cell=final.cell,
            splits=splits,
            parts="train and val" if final.all_images else "train",
            weights=final.weights,
            measured=final.measured,
            folder=folder,
            exports=tuple(dict.fromkeys(exports)),
            compared_on=tuple(splits.root / file for file in compared),
            threads=usable_cores(),
        )
        outcome = executor.call(
            TRAIN_FINAL,
            job,
            checked_files(),
            limits=Limits(log=Path(scratch) / "log"),
            on_event=lambda event: on_event(event) if isinstance(event, EpochResult | CacheWarning | str) else None,
        )
        if outcome.status != "done":
            raise UserError(f"no model: {outcome.reason}")
    trained: FinalModel = outcome.value
    return trained


def _measured_cell(run: RunFolder, manifest: Manifest, wanted: str | None) -> Record:
    """Find the record of a cell. Raises `ConfigError` if there is none, or none with a result."""
    records = run.records()
    if wanted is None:
        return _recommended(run, manifest, records)
    found = [cell_id for cell_id in manifest.cells if cell_id.startswith(wanted.lower())]
    if not found:
        close = [f"{each} ({manifest.cells[each]})" for each in nearest(wanted.lower(), manifest.cells, n=MOST_NAMED)]
        hint = f"near matches: {', '.join(close)}" if close else f"`python -m bench export {run.name}` lists them"
        raise ConfigError(f"--cell {wanted!r}: {run.name} has no such cell; {hint}")
    if len(found) > 1:
        named = ", ".join(f"{each} ({manifest.cells[each]})" for each in found[:MOST_NAMED])
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise ConfigError(f"--cell {wanted!r}: {len(found)} cells begin like that: {named}{more}")
    record = records.get(found[0])
    if record is None or record.result is None:
        why = "has not run yet" if record is None else f"has no result ({record.status}: {record.reason})"
        raise ConfigError(f"--cell {wanted!r}: {manifest.cells[found[0]]} {why}; choose another cell")
    return record


def _recommended(run: RunFolder, manifest: Manifest, records: dict[str, Record]) -> Record:
    """The record of the first seed of what a pick chose here, or else of the one thing that the run recommends."""
    if (picked := run.pick()) and picked.pick and (record := records.get(picked.pick.cell)) and record.result:
        return record
    truths = {run.name: manifest.dataset.truth}
    groups = make_groups([(run.name, record) for record in records.values()], truths)
    rivals = rivals_of(run.name, manifest, records.values())
    choices = recommend(groups, rivals)
    picks = [min(choice.pick.records, key=lambda record: record.cell.config.seed) for choice in choices]
    waiting = [rival.cell.name for rival in rivals if not rival.status]
    if not picks and waiting:
        more = f" and {len(waiting) - 1} more have" if len(waiting) > 1 else " has"
        raise ConfigError(f"{run.name} recommends nothing yet: {waiting[0]}{more} no result; wait, or name a --cell")
    if not picks:
        raise ConfigError(
            f"{run.name} recommends nothing, so --cell is needed; `python -m bench export` lists the cells"
        )
    if len(picks) > 1:
        named = ", ".join(f"{record.cell_id} ({record.cell})" for record in picks)
        raise ConfigError(f"{run.name} has a recommendation for each device; choose one with --cell: {named}")
    return picks[0]


def _images(run: RunFolder, manifest: Manifest, record: Record, data: str | None) -> Splits:
    """Find the run's images, where it is said, or else where its commands found them, or by the set's name."""
    wanted = manifest.dataset
    places = [data] if data else [*(call.data for call in manifest.invocations if call.data), wanted.name]
    reasons = []
    for place in dict.fromkeys(places):
        try:
            splits = find_images(place, download=True)
        except UserError as error:
            reasons.append(f"{place}: {error}")
            continue
        if splits.digest != wanted.digest:
            reasons.append(f"{place} has other images ({splits.digest[:8]}) than {run.name} ({wanted.digest[:8]})")
        elif evaluated_images(record.cell.config, splits).files != wanted.val_files:
            reasons.append(f"{place} has the images of {run.name}, but another split")
        else:
            return splits
    raise UserError(f"--data: the images of {run.name} are not here: {reasons[0]}")


def _weights(record: Record, weights_dir: Path | None, executor: Executor) -> Weights:
    """Find the weights that the cell started from."""
    cell, before = record.cell, record.weights
    if cell.config.weights == "random" or REGIMES[cell.config.regime].start == "random":
        return Weights(kind="random", source="random")
    spec = cell.config.backbone
    found = look_up([spec], "pretrained", weights_dir, executor, download=True)[spec]
    if isinstance(found, str):
        raise UserError(found)
    if found.digest != cell.weights_digest:
        first = f"{before.source}, " if before else ""
        raise UserError(
            f"{spec}: the available weights ({found.source}, {found.digest[:8]}) are not those that cell "
            f"{record.cell_id} started from ({first}{cell.weights_digest[:8]}); see --weights-dir"
        )
    return found


def _note(config: TrainConfig, images: int, *, all_images: bool) -> str:
    by = "the networks of other folds" if config.protocol == "kfold" else "a network that was trained without them"
    measured = f"Measured by the run on {images} images, with {by}"
    if all_images:
        return f"{measured}. This model was trained on these images too, so it has no accuracy of its own on them."
    return f"{measured}. This model is another training with the same settings and training images."
