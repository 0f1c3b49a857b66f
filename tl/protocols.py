"""`run_protocol` runs the trainings of a config's `protocol`, one or several, and combines them into one result.

`fixed` trains once at the config's learning rate, as the tutorial does. A single rate for all regimes favours some of
them, so `tuned` gives each regime the same number of rates to try. `kfold` evaluates every image, training images too,
which gives accuracies with narrower intervals. All protocols use the same `train_model`; only the trials of a regime
that extracts features once run at once (`tl.heads`), which gives the same figures.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from tl import devices
from tl.calls import Place, checked
from tl.config import TrainConfig, one_training
from tl.datasets import Splits
from tl.deferred import compiler_loaded
from tl.errors import DivergedError
from tl.fits import load_fits
from tl.folds import check_protocol, every_image, fold_splits, tuning_splits
from tl.heads import TrainedHead, train_heads, trainable_at_once
from tl.images import open_store
from tl.memory import MemoryMarks
from tl.regimes import REGIMES
from tl.results import EpochResult, Note, Phases, Predictions, TrainResult, Trial
from tl.train import train_model
from tl.tryout import chosen
from tl.weights import Weights

Stage = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Trains by a config on images; all else is the same for all trainings of a protocol."""

    settings: dict[str, Any]
    """Arguments of `train_model` and `train_heads`, by name."""
    keep: Literal["best", "last"]
    inference: bool = False
    """Measure what the network of the protocol costs in use."""

    def __call__(self, config: TrainConfig, splits: Splits, *, final: bool = False) -> TrainResult:
        """Train once. `final` is True for a training whose network is the protocol's, and for one fold."""
        return train_model(config, splits, keep=self.keep, inference=self.inference and final, **self.settings)

    def fits_at_once(self, config: TrainConfig, splits: Splits) -> bool:
        """Return True if `at_once` can train the heads of such configs."""
        if REGIMES[config.regime].features != "once":
            return False  # without having chosen a precision for nothing
        where = devices.resolve(self.settings["device"])
        choice = chosen(config, splits, where, self.settings["weights"], self.settings["weights_dir"])
        return trainable_at_once(config, choice)

    def at_once(self, configs: Sequence[TrainConfig], splits: Splits) -> list[TrainedHead]:
        """Train a head per config."""
        return train_heads(configs, splits, **self.settings)


@checked
def run_protocol(
    config: TrainConfig,
    splits: Splits,
    *,
    device: str = "auto",
    weights: Weights | None = None,
    weights_dir: Place | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    on_stage: Stage | None = None,
    inference: bool = False,
) -> TrainResult:
    """Train on `splits`, once or several times, by the protocol of `config`.

    Args:
        config: what to train; see `TrainConfig`.
        splits: training and validation images, from `tl.load_splits`.
        device: `cpu`, `cuda[:i]`, `mps` or `auto`.
        weights: initial weights of the backbone; by default found by `config.weights`.
        weights_dir: a folder that is searched first for files of weights.
        on_epoch: called after each epoch of each training, outside its timing.
        on_stage: called before each training with a short description, such as `tuning 2/4`, or once before those that
            run at once (`tuning 4 rates at once`); not with `fixed`.
        inference: measure what the trained network costs in use, too; see `TrainResult.inference`.

    Returns:
        A `TrainResult` of that config. `TrainResult` documents how it combines several trainings.

    Raises `UserError` as `train_model` does, and `ConfigError` if a class has too few images for the protocol.
    `DivergedError` means that some fold diverged, or the training at the chosen rate, or the trials of all rates.
    """
    check_protocol(config, splits)
    config = config.with_code()
    # Build the store of pixels for the whole data set first: a training on a part would build one of that part.
    open_store(splits)
    train = Train(
        settings={"device": device, "weights": weights, "weights_dir": weights_dir, "on_epoch": on_epoch},
        # The tutorial keeps the epoch with the best validation accuracy; the other protocols choose no epoch.
        keep="best" if config.protocol == "fixed" else "last",
        inference=inference,
    )
    return RUNNERS[config.protocol](config, splits, train, on_stage or (lambda text: None))


def _fixed(config: TrainConfig, splits: Splits, train: Train, on_stage: Stage) -> TrainResult:
    return train(config, splits, final=True)


def _tuned(config: TrainConfig, splits: Splits, train: Train, on_stage: Stage) -> TrainResult:
    """Run a trial of each rate without the held-out training images, then train on all of them at the chosen rate.

    A trial that diverges is never chosen. A regime that doesn't train by steps has no rate to choose: one training, or
    one evaluation, is all.
    """
    if not REGIMES[config.regime].by_steps:
        return train(one_training(config), splits, final=True).replace(config=config)
    parts = tuning_splits(splits)
    load_fits(REGIMES[config.regime])
    baseline = MemoryMarks(torch.device("cpu")).baseline
    tried = [one_training(config, learning_rate=rate) for rate in config.learning_rates]
    at_once = train.fits_at_once(tried[0], parts)
    trials = _trials_at_once(train, tried, parts, on_stage) if at_once else _trials(train, tried, parts, on_stage)
    best = choose(trials)
    if best is None:
        raise DivergedError(f"all {len(trials)} learning rates diverged; the smallest: {trials[0].reason}")
    rate = best.learning_rate
    on_stage(f"training at {rate:g}")
    result = train(one_training(config, learning_rate=rate), splits, final=True)
    return result.replace(
        config=config,
        trials=tuple(trials),
        learning_rate_chosen=rate,
        tuning_seconds=sum(trial.seconds for trial in trials),
        # The allocator keeps pages of the trials, and the training uses them: they count as memory of the training.
        **baseline,
        notes=(*result.notes, *([_AT_ONCE] if at_once else [])),
    )


_AT_ONCE = Note(about="figures", text="all learning rates were tried at once: a trial's seconds are an equal share")


def _trials(train: Train, configs: Sequence[TrainConfig], parts: Splits, on_stage: Stage) -> list[Trial]:
    """Try the learning rate of each config, one after the other."""
    trials = []
    for number, config in enumerate(configs, 1):
        on_stage(f"tuning {number}/{len(configs)}")
        started = time.perf_counter()
        last, reason = None, ""
        try:
            last = train(config, parts).epochs[-1]
        except DivergedError as error:
            reason = str(error)
        trials.append(_trial(config, last, time.perf_counter() - started, reason))
        _free_memory()
    return trials


def _trials_at_once(train: Train, configs: Sequence[TrainConfig], parts: Splits, on_stage: Stage) -> list[Trial]:
    """Try the learning rates of all configs at once. Each trial takes an equal share of the time of all together."""
    on_stage(f"tuning {len(configs)} rates at once")
    started = time.perf_counter()
    heads = train.at_once(configs, parts)
    share = (time.perf_counter() - started) / len(heads)
    trials = [
        _trial(one.config, None, share, str(one.diverged))
        if one.diverged
        else _trial(one.config, one.epochs[-1], share)
        for one in heads
    ]
    _free_memory()
    return trials


def _trial(config: TrainConfig, last: EpochResult | None, seconds: float, reason: str = "") -> Trial:
    """Return the trial of a training with that last epoch. One that diverged has its reason, and no figures."""
    return Trial(
        learning_rate=config.learning_rate,
        held_out_accuracy=last.val_accuracy if last else None,
        held_out_loss=last.val_loss if last else None,
        seconds=seconds,
        reason=reason,
    )


def choose(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the highest held-out accuracy; ties go to the lower held-out loss, then the smaller rate.

    None if all trials diverged; one that did is never chosen.
    """
    rated = [
        ((trial.held_out_accuracy, -trial.held_out_loss, -trial.learning_rate), trial)
        for trial in trials
        if trial.held_out_accuracy is not None and trial.held_out_loss is not None
    ]
    return max(rated, key=lambda pair: pair[0])[1] if rated else None


def _kfold(config: TrainConfig, splits: Splits, train: Train, on_stage: Stage) -> TrainResult:
    """Train once per fold, on all other images, and evaluate its own at the last epoch: nothing is chosen on them.

    One fold that diverges leaves its images without predictions, so no accuracy is known.
    """
    results, places = [], []
    for number, (parts, inside) in enumerate(fold_splits(splits, config.folds, config.seed), 1):
        on_stage(f"fold {number}/{config.folds}")
        try:
            result = train(one_training(config), parts, final=number == 1)
        except DivergedError as error:
            raise DivergedError(f"fold {number} of {config.folds}: {error}", error.epochs) from error
        results.append(result.replace(model=None))
        places.append(inside)
        del result
        _free_memory()
    evaluated = [len(inside) for inside in places]
    total = len(every_image(splits))
    trained = [total - count for count in evaluated]
    labels: list[int] = [0] * total
    confidences: list[float | None] = [None] * total
    for result, inside in zip(results, places, strict=True):
        for place, label, confidence in zip(inside.tolist(), result.last.labels, result.last.confidences, strict=True):
            labels[place], confidences[place] = label, confidence
    last = Predictions(epoch=config.passes - 1, labels=labels, confidences=confidences)
    checks = [result.frozen_verified for result in results]
    return results[0].replace(
        config=config,
        epochs=tuple(_combined(rows, trained, evaluated) for rows in zip(*(r.epochs for r in results), strict=True)),
        best=last,
        last=last,
        frozen_verified=None if None in checks else all(checks),
        folds=tuple(result.epochs for result in results),
        probe=None,  # the results' own are each of other images
        setup_seconds=sum(result.setup_seconds for result in results),
        extraction_seconds=_largest([result.extraction_seconds for result in results]),
        extracting_seconds=_sum([result.extracting_seconds for result in results]),
        head_start_seconds=_sum([result.head_start_seconds for result in results]),
        quantization_seconds=_sum([result.quantization_seconds for result in results]),
        features_reused=None if results[0].features_reused is None else all(r.features_reused for r in results),
        training_seconds=sum(result.training_seconds for result in results),
        # The baseline stays that of the first fold: later ones include pages that the allocator has kept.
        **{name: _largest([getattr(result, name) for result in results]) for name in PEAKS},
        notes=tuple(dict.fromkeys(note for result in results for note in result.notes)),
    )


def _combined(rows: Sequence[EpochResult], trained: list[int], evaluated: list[int]) -> EpochResult:
    """Combine the same epoch of all folds: seconds are sums, the rest means over trained or evaluated images."""

    def mean(name: str, images: list[int]) -> Any:
        values = [getattr(row, name) for row in rows]
        return None if None in values else float(np.average(values, weights=images))

    def total(name: str) -> float | None:
        values = [getattr(row, name) for row in rows]
        return None if None in values else sum(values)

    phases = [row.phases for row in rows if row.phases]
    return rows[0].replace(
        train_seconds=total("train_seconds"),
        val_seconds=sum(row.val_seconds for row in rows),
        train_loss=mean("train_loss", trained),
        train_accuracy=mean("train_accuracy", trained),
        val_loss=mean("val_loss", evaluated),
        val_accuracy=mean("val_accuracy", evaluated),
        phases=Phases(**{name: sum(getattr(one, name) for one in phases) for name in Phases.model_fields})
        if phases
        else None,
    )


def _free_memory() -> None:
    """Free the memory of a training, so that it doesn't count for the next one."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if compiler_loaded():
        torch.compiler.reset()  # discard the compiled network: the compiler gives up after a few of them


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _largest(values: Sequence[float | None]) -> Any:
    known = [value for value in values if value is not None]
    return max(known) if known else None


PEAKS = {name for name in TrainResult.model_fields if name.endswith("_bytes") and not name.startswith("baseline_")}
"""Memory fields of a result; the largest value of several trainings counts."""
RUNNERS: dict[str, Callable[[TrainConfig, Splits, Train, Stage], TrainResult]] = {
    "fixed": _fixed,
    "tuned": _tuned,
    "kfold": _kfold,
}
"""The function that runs each protocol of `tl.config.PROTOCOLS`."""
