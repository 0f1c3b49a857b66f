"""What a training does by its task (`tl.tasks`), in torch: the targets of images, and what outputs say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import default_collate

from tl.datasets import ImageList


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the outputs for some images say, in their order."""

    said: dict[str, Any]
    """Fields of `tl.results.Predictions`, but for its epoch."""
    score: Callable[[], float]
    """Returns the score of the task. It is called outside of all times."""
    unknown: int
    """Number of images with an output that is not finite."""


class Learning:
    """What a training asks of its task. Outputs are those of the network for a batch, `(B, …) float32`."""

    counts_hits: bool
    """True if `hits` says how good a training pass is while weights change. Otherwise that is unknown."""

    def rows(self, images: ImageList, classes: int) -> Sequence[Any]:
        """Return the target of each image, as a loader stacks them to those of a batch."""
        raise NotImplementedError

    def targets(self, images: ImageList, classes: int) -> torch.Tensor:
        """Return the targets of all images, `(N, …)`."""
        stacked: torch.Tensor = default_collate(list(self.rows(images, classes)))
        return stacked

    def hits(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return how many images of a batch are right, `()`. Only called if `counts_hits`."""
        raise NotImplementedError

    def judged(self, outputs: torch.Tensor, targets: torch.Tensor) -> Judged:
        """Read what the outputs say of all images of a pass."""
        raise NotImplementedError


class Classification(Learning):
    """One class for each image: outputs are logits `(B, classes)`, targets the classes, `(B,) int64`."""

    counts_hits = True

    def rows(self, images: ImageList, classes: int) -> Sequence[int]:
        """See `Learning.rows`."""
        return images.labels

    def hits(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `Learning.hits`."""
        return (outputs.argmax(1) == targets).sum()

    def judged(self, outputs: torch.Tensor, targets: torch.Tensor) -> Judged:
        """See `Learning.judged`."""
        unknown = (~outputs.isfinite().all(1)).sum()
        confidences, predicted = outputs.softmax(1).max(1)
        correct = int((predicted == targets).sum())
        return Judged(
            said={
                "labels": predicted.tolist(),
                "confidences": [round(value, 6) for value in confidences.tolist()],
            },
            score=lambda: correct / len(targets),
            unknown=int(unknown),
        )


LEARNING: dict[str, Learning] = {"classification": Classification()}
"""The entry of each task of `tl.tasks.TASKS`."""
