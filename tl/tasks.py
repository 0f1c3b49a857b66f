"""Tasks: what a network is to say of an image, and how well it says it.

A task has two entries with one name: here what needs no torch, in `tl.learning` what a training does by it.
`train_model`, records, statistics and reports know nothing else of a task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tl.average_precision import mean_average_precision, of_images
from tl.regimes import Regime


class Said(Protocol):
    """What a network said of some images, in their order: `tl.results.Predictions`."""

    @property
    def labels(self) -> Sequence[int]:
        """Predicted classes; empty for tasks other than classification."""

    @property
    def probabilities(self) -> Sequence[Sequence[float]] | None:
        """Of each class; None for tasks other than `multilabel`."""


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
    settings: tuple[str, ...] = ()
    """Settings of training that it reads and not every task does."""


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
        image_score="accuracy",
        scored="is the share of images that are predicted right",
        compared="",
        losses=("cross_entropy", "focal"),
        protocols=("fixed", "tuned", "kfold"),
        no_regime=lambda regime: "",
        settings=("label_smoothing", "class_weights"),
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
        image_score="image AP",
        compared="A single image has no mAP, so differences between combinations, their intervals and their tests are "
        "of the image AP: the average precision with which the probabilities of one image rank the classes, 1 for an "
        "image without any.",
        losses=("bce",),
        protocols=("fixed",),
        no_regime=_without_label_sets,
    ),
}
"""The tasks that a config may name."""
