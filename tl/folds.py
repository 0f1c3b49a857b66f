"""Splits made from a data set's own: a part of the training images held out for tuning, and stratified folds.

What they depend on is named by their seeds: never the regime, the backbone or the device, so that all are tuned
and judged on the same images. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tl.config import TrainConfig
from tl.datasets import ImageList, Splits
from tl.errors import ConfigError
from tl.seeding import seed_for

HELD_OUT = 5
"""One training image in so many is held out to choose a learning rate on."""


def check_protocol(config: TrainConfig, splits: Splits) -> None:
    """Raise `ConfigError` where a class has too few images for the config's protocol."""
    if config.protocol == "tuned":
        name, count = _rarest(splits.train, splits)
        if count < 2:
            raise ConfigError(
                f"protocol='tuned': class {name!r} has {count} training image; at least 2 are needed, since one is "
                "held out to choose a learning rate on"
            )
    if config.protocol == "kfold":
        name, count = _rarest(every_image(splits), splits)
        if count < config.folds:
            raise ConfigError(
                f"folds={config.folds}: class {name!r} has {count} images, training and validation together; "
                f"at most {count} folds have one of it each"
            )


def every_image(splits: Splits) -> ImageList:
    """Training images, then validation images, each in their order."""
    return ImageList(files=splits.train.files + splits.val.files, labels=splits.train.labels + splits.val.labels)


def judged_images(config: TrainConfig, splits: Splits) -> ImageList:
    """The images that a result's predictions are of, in their order."""
    return every_image(splits) if config.protocol == "kfold" else splits.val


def images_an_epoch(config: TrainConfig, splits: Splits) -> int:
    """How many images an epoch trains on; with `kfold` those of all its folds together."""
    if config.protocol == "kfold":
        return (config.folds - 1) * len(every_image(splits))
    return len(splits.train)


def tuning_splits(splits: Splits) -> Splits:
    """A fifth of the training images of each class, at least one, held out as validation images.

    The same for every seed: it depends on the training labels alone. The data set's validation images are in
    neither part.
    """
    held_out = set(hold_out(splits.train.labels, seed_for("tuning split")).tolist())
    rest = [place for place in range(len(splits.train)) if place not in held_out]
    return replace(splits, train=_some(splits.train, rest), val=_some(splits.train, sorted(held_out)))


def fold_splits(splits: Splits, folds: int, seed: int) -> list[tuple[Splits, npt.NDArray[np.int64]]]:
    """For each fold all other images as training images, its own as validation images, and their places.

    Places are `(n,) int64`, ascending, in `every_image`. Which image is in which fold depends on the labels and
    on `seed` alone.
    """
    images = every_image(splits)
    assigned = stratified_folds(images.labels, folds, seed_for("folds", seed))
    made = []
    for fold in range(folds):
        inside, outside = np.flatnonzero(assigned == fold), np.flatnonzero(assigned != fold)
        made.append((replace(splits, train=_some(images, outside), val=_some(images, inside)), inside))
    return made


def stratified_folds(labels: Sequence[int], folds: int, seed: int) -> npt.NDArray[np.int64]:
    """The fold of each image, `(N,) int64` in [0, folds), drawn at random.

    Two folds differ by one image at most, in each class and altogether.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]
    assigned = np.empty(len(labels), dtype=np.int64)
    # Dealt out like cards, a class after the other, without starting over at the first fold.
    assigned[by_class] = np.arange(len(labels)) % folds
    return assigned


def hold_out(labels: Sequence[int], seed: int) -> npt.NDArray[np.int64]:
    """Places of the images held out, `(n,) int64`: of each class a fifth, rounded, and one at least."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    classes = np.asarray(labels)[shuffled]
    parts = [shuffled[classes == label] for label in np.unique(classes)]
    return np.concatenate([part[: max(1, round(len(part) / HELD_OUT))] for part in parts])


def _rarest(images: ImageList, splits: Splits) -> tuple[str, int]:
    """The class with the fewest images, and how many it has."""
    counts = np.bincount(images.labels, minlength=len(splits.classes))
    return splits.classes[int(counts.argmin())], int(counts.min())


def _some(images: ImageList, places: Collection[int] | npt.NDArray[np.int64]) -> ImageList:
    return ImageList(files=tuple(images.files[i] for i in places), labels=tuple(images.labels[i] for i in places))
