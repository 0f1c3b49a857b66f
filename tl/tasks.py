"""Tasks: what a network is to say of an image, and how well it says it.

A task has two entries with one name: here what needs no torch, in `tl.learning` what a training does by it.
`train_model`, records, statistics and reports know nothing else of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Said(Protocol):
    """What a network said of some images, in their order: `tl.results.Predictions`."""

    @property
    def labels(self) -> Sequence[int]:
        """Predicted classes."""


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


def _right(said: Said, truth: Sequence[int]) -> list[float]:
    """For each image, True if its predicted class is right."""
    return [label == true for label, true in zip(said.labels, truth, strict=True)]


def _accuracy(said: Said, truth: Sequence[int]) -> float:
    return sum(_right(said, truth)) / len(truth)


TASKS: dict[str, Task] = {
    "classification": Task(
        summary="one class for each image",
        score="accuracy",
        right_or_wrong=True,
        overall=_accuracy,
        image_scores=_right,
    ),
}
"""The tasks that a config may name."""
