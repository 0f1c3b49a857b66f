"""What a training does by its task (`tl.tasks`), in torch: the targets of images, and what outputs say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from tl import box_precision
from tl.average_precision import mean_average_precision
from tl.datasets import ImageList

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Outputs and targets of a batch → its loss, `()`."""


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
    val_loss = True
    """False if a validation pass has no loss, since that would need another pass."""
    same_shapes = True
    """False if what a step computes depends on the images, so that no CUDA graph can replay it."""
    whole_images = False
    """True if training sees whole images, mirrored at random: a crop would cut what targets are about."""

    def rows(self, images: ImageList, classes: int) -> Sequence[Any]:
        """Return the target of each image, as a loader stacks them to those of a batch."""
        raise NotImplementedError

    def targets(self, images: ImageList, classes: int) -> torch.Tensor:
        """Return the targets of all images, `(N, …)`."""
        stacked: torch.Tensor = default_collate(list(self.rows(images, classes)))
        return stacked

    def mirrored(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the targets of the mirrored images, left and right exchanged. Only called if `whole_images`."""
        raise NotImplementedError

    def loss(
        self, head: nn.Module, features: Any, targets: torch.Tensor, loss_function: Loss
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the head in a training step. Returns its outputs, as `hits` reads them, and the loss of the batch."""
        outputs: torch.Tensor = head(features)
        return outputs, loss_function(outputs.float(), targets)

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


class LabelSets(Learning):
    """Any number of classes for each image: outputs are logits `(B, classes)`, targets 0 or 1 for each of them."""

    counts_hits = False

    def rows(self, images: ImageList, classes: int) -> Sequence[torch.Tensor]:
        """See `Learning.rows`; each is `(classes,) float32`."""
        rows = torch.zeros(len(images), classes)
        for row, some in zip(rows, images.targets, strict=True):
            row[list(some)] = 1.0
        return list(rows)

    def judged(self, outputs: torch.Tensor, targets: torch.Tensor) -> Judged:
        """See `Learning.judged`. The score is that of the probabilities as they are kept, rounded."""
        unknown = (~outputs.isfinite().all(1)).sum()
        shares = [[round(value, 6) for value in row] for row in outputs.sigmoid().tolist()]
        truth = [row.nonzero()[:, 0].tolist() for row in targets.cpu()]
        return Judged(
            said={"labels": [], "confidences": [], "probabilities": shares},
            score=lambda: mean_average_precision(shares, truth),
            unknown=int(unknown),
        )


class Objects(Learning):
    """Objects with boxes. Targets are `(B, M, 5) float32`, one row for each object of an image.

    A row is label, left, top, right and bottom, in shares of the image's width and height; an image with fewer objects
    than M has further rows with label -1. Outputs are `(B, 100, 6) float32`, one row for each box that is found, the
    surest first: label, score and edges, with further rows as before. They are NaN if the network's own numbers are.
    """

    counts_hits = False
    val_loss = False  # torchvision's detectors return losses or boxes, and draw other proposals for each
    same_shapes = False
    whole_images = True

    def rows(self, images: ImageList, classes: int) -> Sequence[torch.Tensor]:
        """See `Learning.rows`; each is `(M, 5) float32`, with the largest number M of objects in an image."""
        rows = torch.zeros(len(images), max(1, *map(len, images.objects)), 5)
        rows[:, :, 0] = -1
        for row, boxes in zip(rows, images.objects, strict=True):
            if boxes:
                row[: len(boxes)] = torch.tensor(boxes)
        return list(rows)

    def mirrored(self, targets: torch.Tensor) -> torch.Tensor:
        """See `Learning.mirrored`, for targets `(…, 5)`."""
        label, left, top, right, bottom = targets.unbind(-1)
        return torch.stack([label, 1 - right, top, 1 - left, bottom], -1)

    def loss(
        self, head: nn.Module, features: Any, targets: torch.Tensor, loss_function: Loss
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Learning.loss`. The head gives its losses, which depend on the targets; there are no outputs."""
        losses = head(features, targets)
        return losses.detach(), loss_function(losses, targets)

    def judged(self, outputs: torch.Tensor, targets: torch.Tensor) -> Judged:
        """See `Learning.judged`. The score is that of the boxes as they are kept, rounded."""
        unknown = int((~outputs.isfinite().flatten(1).all(1)).sum())
        found = [
            [
                (int(label), round(score, 5), *(round(min(max(edge, 0.0), 1.0), 5) for edge in edges))
                for label, score, *edges in rows
                if label >= 0
            ]
            for rows in (outputs.cpu().double().tolist() if not unknown else ())
        ]
        truth = [[tuple(row) for row in rows if row[0] >= 0] for rows in targets.cpu().double().tolist()]
        return Judged(
            said={"labels": [], "confidences": [], "detections": found},
            score=lambda: coco_precision(found, truth),
            unknown=unknown,
        )


def coco_precision(found: Sequence[Sequence[Sequence[float]]], truth: Sequence[Sequence[Sequence[float]]]) -> float:
    """Return the mAP of boxes by torchmetrics. Arguments are those of `tl.box_precision.mean_average_precision`."""
    from torchmetrics.detection import MeanAveragePrecision  # of an extra

    metric = MeanAveragePrecision(
        backend="faster_coco_eval",
        iou_thresholds=list(box_precision.OVERLAPS),
        rec_thresholds=list(box_precision.RECALLS),
        max_detection_thresholds=[1, 10, box_precision.MOST],
    )
    metric.update([_as_dict(rows, 2) for rows in found], [_as_dict(rows, 1) for rows in truth])
    return float(metric.compute()["map"])


def _as_dict(rows: Sequence[Sequence[float]], first: int) -> dict[str, torch.Tensor]:
    """Return boxes as torchmetrics takes them; their edges begin at `first`."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), first + 4)
    scores = {"scores": table[:, 1]} if first == 2 else {}
    return {"boxes": table[:, first:], "labels": table[:, 0].long(), **scores}


CLASSIFICATION = Classification()
"""What a training does unless its task says otherwise."""
LEARNING: dict[str, Learning] = {
    "classification": CLASSIFICATION,
    "multilabel": LabelSets(),
    "detection": Objects(),
}
"""The entry of each task of `tl.tasks.TASKS`."""
