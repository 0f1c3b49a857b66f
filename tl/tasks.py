"""Tasks: what a network predicts for an image, and how well it does.

A task has two entries with one name: here what needs no torch, in `tl.learning` what a training does by it.
`train_model`, records, statistics and reports know nothing else of a task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from tl import box_precision
from tl.average_precision import mean_average_precision, of_images
from tl.errors import ConfigError
from tl.regimes import Regime


class Said(Protocol):
    """What a network said of some images, in their order: `tl.results.Predictions`."""

    @property
    def labels(self) -> Sequence[int]:
        """Predicted classes; empty for tasks other than classification."""

    @property
    def probabilities(self) -> Sequence[Sequence[float]] | None:
        """Of each class; None for tasks other than `multilabel`."""

    @property
    def detections(self) -> Sequence[Sequence[Sequence[float]]] | None:
        """Boxes of each image; None for tasks other than `detection`."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What records, statistics and reports ask of a task."""

    summary: str
    score: str
    """What the score of a pass over images is called, such as `accuracy`. It is a share in [0, 1]; more is better."""
    right_or_wrong: bool
    """True if an image's own score is 1 or 0, and the score of a pass is their mean."""
    overall: Callable[[Said, Sequence[Any]], float]
    """The score of what was said of some images, given the truth of each."""
    image_scores: Callable[[Said, Sequence[Any]], list[float]]
    """The score of each image, a share in [0, 1], by which two networks are compared image by image."""
    same_answer: Callable[[Sequence[Any]], float]
    """The score of giving all images the same answer, the best there is: what is not above it has learnt nothing."""
    answering: str
    """Such an answer, in words, as the beginning of a sentence has them."""
    prediction_bytes: Callable[[int], int]
    """The most bytes that what is said of an image takes in a record, which is indented JSON, by the number of classes.
    """
    image_score: str
    """What the score of an image is called."""
    scored: str
    """What the score is, in a sentence's words after its name."""
    compared: str
    """How cells are compared, in a sentence; empty where it is by the score itself."""
    losses: tuple[str, ...]
    """The keys of `tl.config.LOSSES` that the task reads, first the one that it has by default."""
    protocols: tuple[str, ...]
    """The keys of `tl.config.PROTOCOLS` that it has."""
    no_regime: Callable[[Regime], str]
    """Why a regime has no meaning with the task; empty if it has one."""
    unread: tuple[str, ...] = ()
    """Settings of training that it doesn't read; they keep their defaults."""
    detects: bool = False
    """True if its networks are detectors (`tl.detector_names`), whose heads and losses are their own."""
    val_loss: bool = True
    """False if a validation pass has no loss."""
    extra: str = ""
    """The extra of the suite that has the packages it needs beside those that are always installed; empty for none."""
    packages: tuple[str, ...] = ()
    """Those packages, as they are imported."""

    def check_packages(self) -> None:
        """Raise `ConfigError`, with the command that installs them, unless its packages are installed."""
        if missing := [name for name in self.packages if find_spec(name) is None]:
            names, verb = " and ".join(missing), "aren't" if len(missing) > 1 else "isn't"
            raise ConfigError(
                f"task={self.extra!r}: needs {names}, which {verb} installed: pip install 'tl-bench[{self.extra}]'"
            )


def _right(said: Said, truth: Sequence[int]) -> list[float]:
    """For each image, True if its predicted class is right."""
    return [label == true for label, true in zip(said.labels, truth, strict=True)]


def _accuracy(said: Said, truth: Sequence[int]) -> float:
    return sum(_right(said, truth)) / len(truth)


def _largest_class(truth: Sequence[int]) -> float:
    return max(Counter(truth).values()) / len(truth)


def _mean_prevalence(truth: Sequence[Sequence[int]]) -> float:
    """Mean over classes, without those that no image has, of the share of images with the class.

    With equal scores all images are one threshold, whose precision that is.
    """
    counts = Counter(label for classes in truth for label in set(classes))
    return sum(counts.values()) / len(counts) / len(truth)


def _probabilities(said: Said) -> Sequence[Sequence[float]]:
    if said.probabilities is None:
        raise ValueError("has no probabilities of classes")
    return said.probabilities


def _detections(said: Said) -> Sequence[Sequence[Sequence[float]]]:
    if said.detections is None:
        raise ValueError("has no boxes")
    return said.detections


def _without_detectors(regime: Regime) -> str:
    if regime.fit != "steps" or regime.head_start != "random":
        return "its head is fitted to one class for each image"
    if regime.head == "own":
        return "its head is ImageNet's, which has one class for each image"
    if regime.features == "once":
        return "a detector's features are maps of several sizes, which aren't kept"
    if regime.extractor != "float":
        return "a detector isn't converted to int8"
    return "low-rank updates are for networks that return one row of features" if regime.adapter != "none" else ""


def _without_label_sets(regime: Regime) -> str:
    if regime.fit != "steps" or regime.head_start != "random":
        return "its head is fitted to one class for each image"
    return "its head is ImageNet's, which has one class for each image" if regime.head == "own" else ""


TASKS: dict[str, Task] = {
    "classification": Task(
        summary="one class for each image",
        score="accuracy",
        right_or_wrong=True,
        overall=_accuracy,
        image_scores=_right,
        same_answer=_largest_class,
        answering="always answering the largest class",
        prediction_bytes=lambda classes: 100,
        image_score="accuracy",
        scored="is the share of images that are predicted right",
        compared="",
        losses=("cross_entropy", "focal"),
        protocols=("fixed", "tuned", "kfold"),
        no_regime=lambda regime: "",
    ),
    "multilabel": Task(
        summary="any number of classes for each image",
        score="mAP",
        right_or_wrong=False,
        overall=lambda said, truth: mean_average_precision(_probabilities(said), truth),
        image_scores=lambda said, truth: of_images(_probabilities(said), truth),
        scored="(mean average precision) is the mean over classes of the average precision with which a class's "
        "probabilities rank the images; classes that no image has are left out",
        same_answer=_mean_prevalence,
        answering="giving all images the same probabilities",
        prediction_bytes=lambda classes: 20 + 16 * classes,
        image_score="image AP",
        compared="A single image has no mAP, so differences between combinations, their intervals and their tests are "
        "of the image AP: the average precision with which the probabilities of one image rank the classes, 1 for an "
        "image without any.",
        losses=("bce",),
        protocols=("fixed",),
        no_regime=_without_label_sets,
        unread=("label_smoothing", "class_weights"),
    ),
    "detection": Task(
        summary="the objects in each image, with a box around each",
        score="mAP",
        right_or_wrong=False,
        overall=lambda said, truth: box_precision.mean_average_precision(_detections(said), truth),
        image_scores=lambda said, truth: box_precision.of_images(_detections(said), truth),
        scored="(mean average precision of boxes, COCO's but for crowds) is the mean over classes, and over overlaps "
        "from 0.50 to 0.95 that count as found, of the average precision with which a class's boxes are found; classes "
        "that no image has are left out",
        same_answer=lambda truth: 0.0,
        answering="finding nothing in any image",
        prediction_bytes=lambda classes: 20 + 120 * box_precision.MOST,
        image_score="image AP50",
        compared="A single image has no mAP, so differences between combinations, their intervals and their tests are "
        "of the image AP50: the mean over the classes in an image of the average precision with which their boxes are "
        "found there, with an overlap of 0.5 or more; 1 for an image without objects.",
        losses=("detector",),
        protocols=("fixed",),
        no_regime=_without_detectors,
        unread=("label_smoothing", "class_weights", "head", "views", "fold", "lookahead", "early_stopping"),
        detects=True,
        val_loss=False,
        extra="detection",
        packages=("torchmetrics", "faster_coco_eval"),
    ),
}
"""The tasks that a config may name."""
