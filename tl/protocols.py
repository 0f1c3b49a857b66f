"""`run_protocol`: one training, or several that add up to one result, as a config's `protocol` says.

`fixed` trains once, at the rate of the config, as the tutorial does. One rate for all favours one regime or
another; `tuned` gives each the same budget of rates. `kfold` judges every image, the training images too, for
accuracies with narrower intervals. All of them train with the one `train_model`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tl.config import READ_BY, TrainConfig
from tl.datasets import Splits
from tl.folds import check_protocol, every_image, fold_splits, tuning_splits
from tl.images import open_store
from tl.regimes import REGIMES
from tl.results import EpochResult, Phases, Predictions, TrainResult, Trial
from tl.train import train_model
from tl.weights import Weights

Train = Callable[[TrainConfig, Splits], TrainResult]
Stage = Callable[[str], None]


def run_protocol(
    config: TrainConfig,
    splits: Splits,
    *,
    device: str = "auto",
    weights: Weights | None = None,
    weights_dir: str | Path | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    on_stage: Stage | None = None,
) -> TrainResult:
    """Train as `config.protocol` says, once or several times, on `splits`.

    Args:
        config: what to train; see `TrainConfig`.
        splits: training and validation images, from `tl.load_splits`.
        device: `cpu`, `cuda[:i]`, `mps` or `auto`.
        weights: what the backbone starts from; by default found by `config.weights`.
        weights_dir: a folder of weight files, looked at first.
        on_epoch: called after each epoch of each training, outside its timing.
        on_stage: called before each training with a few words on it, such as `tuning 2/4`; not with `fixed`.

    Returns:
        A `TrainResult` of that config. `TrainResult` says what its figures are with several trainings.

    Raises `UserError` as `train_model` does, and `ConfigError` where a class has too few images for the protocol.
    """
    check_protocol(config, splits)
    # Decoded pixels are kept for the whole data set; the parts that it is split into below would be half a store.
    open_store(splits)
    train = partial(
        train_model,
        device=device,
        weights=weights,
        weights_dir=weights_dir,
        on_epoch=on_epoch,
        # The tutorial's protocol keeps the epoch that the validation images like best; the others choose nothing.
        keep="best" if config.protocol == "fixed" else "last",
    )
    return RUNNERS[config.protocol](config, splits, train, on_stage or (lambda text: None))


def _fixed(config: TrainConfig, splits: Splits, train: Train, on_stage: Stage) -> TrainResult:
    return train(config, splits)


def _tuned(config: TrainConfig, splits: Splits, train: Train, on_stage: Stage) -> TrainResult:
    """A trial of each rate without the held-out training images, then one training on all at the rate chosen.

    A regime that trains nothing has no rate to choose: it is judged once, as ever.
    """
    if not REGIMES[config.regime].trains:
        return train(_one_training(config), splits).replace(config=config)
    parts = tuning_splits(splits)
    trials, baselines = [], []
    for number, rate in enumerate(config.learning_rates, 1):
        on_stage(f"tuning {number}/{len(config.learning_rates)}")
        started = time.perf_counter()
        result = train(_one_training(config, learning_rate=rate), parts)
        last = result.epochs[-1]
        trials.append(
            Trial(
                learning_rate=rate,
                held_out_accuracy=last.val_accuracy,
                held_out_loss=last.val_loss,
                seconds=time.perf_counter() - started,
            )
        )
        baselines.append(result.baseline_rss_bytes)
        del result
        _release()
    rate = choose(trials).learning_rate
    on_stage(f"training at {rate:g}")
    result = train(_one_training(config, learning_rate=rate), splits)
    return result.replace(
        config=config,
        trials=tuple(trials),
        learning_rate_chosen=rate,
        tuning_seconds=sum(trial.seconds for trial in trials),
        # The allocator keeps pages of the trials, which the training then uses: they are memory of the training.
        baseline_rss_bytes=baselines[0],
    )


def choose(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest held-out accuracy; on ties the lower held-out loss, then the smaller rate.

    One whose loss is not finite loses to any other.
    """

    def merit(trial: Trial) -> tuple[bool, float, float, float]:
        loss = trial.held_out_loss
        if loss is None:
            return (False, 0.0, 0.0, -trial.learning_rate)
        return (True, trial.held_out_accuracy, -loss, -trial.learning_rate)

    return max(trials, key=merit)


def _kfold(config: TrainConfig, splits: Splits, train: Train, on_stage: Stage) -> TrainResult:
    """A training a fold, on all other images. Its own are judged at the last epoch: nothing is chosen on them."""
    results, places = [], []
    for number, (parts, inside) in enumerate(fold_splits(splits, config.folds, config.seed), 1):
        on_stage(f"fold {number}/{config.folds}")
        result = train(_one_training(config), parts)
        results.append(result.replace(model=None))
        places.append(inside)
        del result
        _release()
    judged = [len(inside) for inside in places]
    total = len(every_image(splits))
    trained = [total - count for count in judged]
    labels: list[int] = [0] * total
    confidences: list[float | None] = [None] * total
    for result, inside in zip(results, places, strict=True):
        for place, label, confidence in zip(inside.tolist(), result.last.labels, result.last.confidences, strict=True):
            labels[place], confidences[place] = label, confidence
    last = Predictions(epoch=config.passes - 1, labels=labels, confidences=confidences)
    checks = [result.frozen_verified for result in results]
    return results[0].replace(
        config=config,
        epochs=tuple(_together(rows, trained, judged) for rows in zip(*(r.epochs for r in results), strict=True)),
        best=last,
        last=last,
        frozen_verified=None if None in checks else all(checks),
        folds=tuple(result.epochs for result in results),
        setup_seconds=sum(result.setup_seconds for result in results),
        extraction_seconds=_largest([result.extraction_seconds for result in results]),
        extracting_seconds=_sum([result.extracting_seconds for result in results]),
        quantization_seconds=_sum([result.quantization_seconds for result in results]),
        features_reused=None if results[0].features_reused is None else all(r.features_reused for r in results),
        training_seconds=sum(result.training_seconds for result in results),
        # The first fold's baseline, which is in `results[0]`: later ones hold pages that the allocator has kept.
        **{name: _largest([getattr(result, name) for result in results]) for name in PEAKS},
        notes=tuple(dict.fromkeys(note for result in results for note in result.notes)),
    )


def _together(rows: Sequence[EpochResult], trained: list[int], judged: list[int]) -> EpochResult:
    """The same epoch of all folds: seconds are sums, the rest means over the images trained on or judged."""

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
        val_loss=mean("val_loss", judged),
        val_accuracy=mean("val_accuracy", judged),
        phases=Phases(**{name: sum(getattr(one, name) for one in phases) for name in Phases.model_fields})
        if phases
        else None,
    )


def _one_training(config: TrainConfig, **settings: Any) -> TrainConfig:
    """The config of one of a protocol's trainings: `fixed`, without what it does not read."""
    unread = [name for name, protocols in READ_BY.items() if "fixed" not in protocols]
    plain = {name: TrainConfig.model_fields[name].default for name in unread}
    return config.replace(protocol="fixed", **plain, **settings)


def _release() -> None:
    """Free what the training before has left, so that it is not counted for the next one."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    torch.compiler.reset()  # what was compiled for this training; the compiler gives up after a few networks


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _largest(values: Sequence[float | None]) -> Any:
    known = [value for value in values if value is not None]
    return max(known) if known else None


PEAKS = {name for name in TrainResult.model_fields if name.endswith("_bytes")} - {"baseline_rss_bytes"}
"""Memory of a result; of several trainings the largest counts."""
RUNNERS: dict[str, Callable[[TrainConfig, Splits, Train, Stage], TrainResult]] = {
    "fixed": _fixed,
    "tuned": _tuned,
    "kfold": _kfold,
}
"""What each protocol of `tl.config.PROTOCOLS` does."""
