"""Splits derived from those of a data set: images held out for tuning, stratified folds, and all images for training.

They depend only on labels and seeds, never on regime, backbone or device, so all of those are tuned and evaluated on
the same images. This module doesn't import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tl.config import TrainConfig
from tl.datasets import ImageList, Splits
from tl.dividing import divide
from tl.errors import ConfigError
from tl.seeding import seed_for

HELD_OUT = 5
"""One training image in HELD_OUT is held out to choose the learning rate."""


def check_protocol(config: TrainConfig, splits: Splits) -> None:
    """Raise `ConfigError` if a class has too few images for the config's protocol."""
    if config.protocol == "tuned":
        name, count = _rarest(splits.train, splits)
        if count < 2:
            raise ConfigError(
                f"protocol='tuned': class {name!r} has {count} training image; at least 2 are needed, since one is "
                "held out to choose the learning rate"
            )
        tuning_splits(splits)  # raises if images that look the same can't be kept together
    if config.protocol == "kfold":
        name, count = _rarest(every_image(splits), splits)
        if count < config.folds:
            raise ConfigError(
                f"folds={config.folds}: class {name!r} has {count} images, training and validation together; "
                f"use at most {count} folds, so that each has one of it"
            )
        if splits.together:
            images = every_image(splits)
            groups = {(label, group) for label, group in zip(images.labels, groups_in(images, splits), strict=True)}
            different = ImageList(files=tuple("" for _ in groups), labels=tuple(sorted(label for label, _ in groups)))
            name, count = _rarest(different, splits)
            if count < config.folds:
                raise ConfigError(
                    f"folds={config.folds}: class {name!r} has {count} images that don't look the same; use at most "
                    f"{count} folds, so that each has one of it"
                )


def every_image(splits: Splits) -> ImageList:
    """Return the training images followed by the validation images."""
    train, val = splits.train, splits.val
    return ImageList(
        files=train.files + val.files,
        labels=train.labels + val.labels,
        targets=train.targets + val.targets,
        objects=train.objects + val.objects,
    )


def evaluated_images(config: TrainConfig, splits: Splits) -> ImageList:
    """Return the images that the predictions of a result are for, in the same order."""
    return every_image(splits) if config.protocol == "kfold" else splits.val


def origin(config: TrainConfig, splits: Splits) -> str:
    """Say how the split came about that a config's protocol uses, as `Splits.origin` does."""
    if config.protocol == "kfold" and splits.origin:
        return f"{splits.origin}; the folds take training and validation images together"
    return splits.origin


def images_per_epoch(config: TrainConfig, splits: Splits) -> int:
    """Return the number of images that an epoch trains on; with `kfold` the sum over all folds."""
    if config.protocol == "kfold":
        return (config.folds - 1) * len(every_image(splits))
    return len(splits.train)


def tuning_splits(splits: Splits) -> Splits:
    """Hold out a fifth of the training images of each class, at least one, as validation images.

    The split depends only on the training labels, so it is the same for every seed. The data set's validation images
    are in neither part. Images that look the same, where the set says which, are in one part; see `Splits.together`.
    """
    seed = seed_for("tuning split")
    if splits.together:
        groups = groups_in(splits.train, splits)
        chosen = divide(splits.train.labels, groups, splits.train.files, splits.classes, seed, splits.train.files)
        held_out = set(np.flatnonzero(chosen).tolist())
    else:
        held_out = set(hold_out(splits.train.labels, seed).tolist())
    rest = [index for index in range(len(splits.train)) if index not in held_out]
    return replace(splits, train=splits.train.subset(rest), val=splits.train.subset(sorted(held_out)))


def fold_splits(splits: Splits, folds: int, seed: int) -> list[tuple[Splits, npt.NDArray[np.int64]]]:
    """Return for each fold its splits, and the indices of its validation images in `every_image`.

    The images of the fold are the validation images, and all others are the training images. Indices are `(n,) int64`,
    ascending. The assignment of images to folds depends only on the labels and on `seed`. Images that look the same,
    where the set says which, are in one fold; see `Splits.together`.
    """
    images = every_image(splits)
    if splits.together:
        assigned = grouped_folds(images.labels, groups_in(images, splits), folds, seed_for("folds", seed))
    else:
        assigned = stratified_folds(images.labels, folds, seed_for("folds", seed))
    made = []
    for fold in range(folds):
        inside, outside = np.flatnonzero(assigned == fold), np.flatnonzero(assigned != fold)
        made.append((replace(splits, train=images.subset(outside), val=images.subset(inside)), inside))
    return made


def stratified_folds(labels: Sequence[int], folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Assign each image to a fold at random: `(N,) int64` in [0, folds).

    The sizes of two folds differ by one image at most, in each class and in total.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(np.asarray(labels)[shuffled], kind="stable")]
    assigned = np.empty(len(labels), dtype=np.int64)
    # Deal images like cards, class after class, without restarting at the first fold: so totals stay even too.
    assigned[by_class] = np.arange(len(labels)) % folds
    return assigned


def grouped_folds(labels: Sequence[int], groups: Sequence[int], folds: int, seed: int) -> npt.NDArray[np.int64]:
    """As `stratified_folds`, but all images of a group are in one fold, so sizes differ by what groups make necessary.

    Large groups come first, so that the others even out the sizes. Each goes to the fold that has the fewest images of
    its first image's class, of those to the one with the fewest images.
    """
    inside: dict[int, list[int]] = {}
    for index in np.random.default_rng(seed).permutation(len(labels)):
        inside.setdefault(groups[index], []).append(int(index))
    assigned = np.empty(len(labels), dtype=np.int64)
    of_class = np.zeros((folds, max(labels) + 1), dtype=np.int64)
    for images in sorted(inside.values(), key=len, reverse=True):
        sizes = zip(of_class[:, labels[images[0]]].tolist(), of_class.sum(axis=1).tolist(), range(folds), strict=True)
        fold = min(sizes)[2]
        assigned[images] = fold
        for index in images:
            of_class[fold, labels[index]] += 1
    return assigned


def hold_out(labels: Sequence[int], seed: int) -> npt.NDArray[np.int64]:
    """Return the indices of held-out images, `(n,) int64`: a rounded fifth of each class, at least one."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    classes = np.asarray(labels)[shuffled]
    parts = [shuffled[classes == label] for label in np.unique(classes)]
    return np.concatenate([part[: max(1, round(len(part) / HELD_OUT))] for part in parts])


def groups_in(images: ImageList, splits: Splits) -> list[int]:
    """Return the number of each image's group of `Splits.together`; images in no group have numbers of their own."""
    number = {file: index for index, group in enumerate(splits.together) for file in group}
    return [number.get(file, len(splits.together) + index) for index, file in enumerate(images.files)]


def on_all_images(splits: Splits) -> Splits:
    """Return splits that train on the training and the validation images.

    Nothing is left for validation. Each training evaluates some images, so one training image of each class is its
    validation image too: what it finds there says only whether outputs are finite.
    """
    images = every_image(splits)
    firsts = [images.labels.index(label) for label in sorted(set(images.labels))]
    return replace(splits, train=images, val=images.subset(firsts))


def _rarest(images: ImageList, splits: Splits) -> tuple[str, int]:
    """Return the class with the fewest images, and their number."""
    counts = np.bincount(images.labels, minlength=len(splits.classes))
    return splits.classes[int(counts.argmin())], int(counts.min())
