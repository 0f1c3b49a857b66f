"""Figures for notebooks: the images that a network gets, and its predictions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch

from tl.backbones import known_names
from tl.batches import Batches
from tl.calls import checked
from tl.datasets import Splits
from tl.errors import ConfigError
from tl.folds import evaluated_images
from tl.images import open_store
from tl.library import library
from tl.results import TrainResult
from tl.specs import find
from tl.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRONG, RIGHT = "#b2182b", "#1a6faf"


def _only_classes(splits: Splits) -> None:
    if splits.task != "classification":
        raise ConfigError(f"task={splits.task!r}: pictures are titled by one class, and these images have several")


@checked
def show_batch(splits: Splits, backbone: str, *, count: int = 16, seed: int = 0, epoch: int = 0) -> Figure:
    """Show the first `count` training images of an epoch, cropped and flipped as `backbone` gets them.

    They are the images of `train_model` with that seed and epoch. No weights are needed or loaded.
    """
    _at_least_one(count)
    _only_classes(splits)
    spec = find(backbone, known_names())
    preprocessing = library(spec.source).preprocessing(spec.name)
    batches = Batches(open_store(splits), splits.train, preprocessing, torch.device("cpu"))
    images, labels = next(batches.training(count, seed=seed, epoch=epoch))
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    pixels = (images.permute(0, 2, 3, 1) * std + mean).clamp(0, 1)
    titles = [(splits.classes[label], "black") for label in labels.tolist()]
    return _grid([image.numpy() for image in pixels], titles)


@checked
def show_predictions(result: TrainResult, splits: Splits, *, count: int = 16, wrong_first: bool = True) -> Figure:
    """Show validation images with the predicted class, its probability and, if that is wrong, the true class.

    Predictions are those of the best epoch. With protocol `kfold` they are those of the last epoch, for all images.
    `wrong_first` puts mistakes first, the most confident ones ahead.
    """
    _at_least_one(count)
    _only_classes(splits)
    images = evaluated_images(result.config, splits)
    rows = list(zip(result.best.labels, result.best.confidences, images.labels, images.files, strict=True))
    if wrong_first:
        rows.sort(key=lambda row: (row[0] == row[2], -row[1]))
    store = open_store(splits)
    chosen = rows[:count]
    titles = [
        (
            f"{splits.classes[label]} {confidence:.0%}" + ("" if label == truth else f"\n({splits.classes[truth]})"),
            RIGHT if label == truth else WRONG,
        )
        for label, confidence, truth, _ in chosen
    ]
    return _grid([store.read(file) for *_, file in chosen], titles)


def _at_least_one(count: int) -> None:
    if count < 1:
        raise ConfigError(f"count={count}: at least 1 is needed")


def _grid(images: list[npt.NDArray[Any]], titles: list[tuple[str, str]]) -> Figure:
    # Made by pyplot, so that a notebook shows it; closed, so that it is shown only once and not kept.
    from matplotlib import pyplot

    columns = min(4, len(images))
    rows = math.ceil(len(images) / columns)
    figure = pyplot.figure(figsize=(2.4 * columns, 2.7 * rows), layout="constrained")
    pyplot.close(figure)
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if place < len(images):
            axes.imshow(images[place])
            text, colour = titles[place]
            axes.set_title(visible(text, keep="\n"), color=colour, fontsize=10, parse_math=False)
    return figure
