"""Average precision of boxes, as COCO defines it, as pure functions. No torch, no numpy.

A training's mAP comes from torchmetrics. These functions give the score of a single image, and check the mAP of a
record wherever it is read, also where torchmetrics isn't installed.

A box that was found is `(label, score, left, top, right, bottom)`, and one that is true `(label, left, top, right,
bottom)`. Edges are shares of the image's width and height: overlaps are the same in shares as in pixels. True ones are
rounded to single precision, in which a training has them, so that both compute the same overlaps.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean

Found = Sequence[float]
True_ = Sequence[float]
OVERLAPS = tuple(percent / 100 for percent in range(50, 100, 5))
"""Overlaps from which on a box counts as found; mAP is the mean over them."""
RECALLS = tuple(percent / 100 for percent in range(101))
"""Recalls at which precision is read."""
MOST = 100
"""Boxes per image that count: those with the highest scores."""
IMAGE_OVERLAP = 0.5
"""Overlap from which on a box counts as found in the score of a single image."""


def overlap(found: Sequence[float], true: Sequence[float]) -> float:
    """Intersection over union of two boxes `(left, top, right, bottom)`."""
    width = min(found[2], true[2]) - max(found[0], true[0])
    height = min(found[3], true[3]) - max(found[1], true[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((found[2] - found[0]) * (found[3] - found[1]) + (true[2] - true[0]) * (true[3] - true[1]) - both)


def mean_average_precision(
    found: Sequence[Sequence[Found]], truth: Sequence[Sequence[True_]], overlaps: Sequence[float] = OVERLAPS
) -> float:
    """Mean over classes and overlaps of the average precision with which a class's boxes are found.

    Args:
        found: the boxes that were found in each image.
        truth: the true boxes of each image, of which there may be none.
        overlaps: those from which on a box counts as found.

    Classes that no image has are left out. One image at least has an object, as in the splits of a data set.
    """
    values = []
    for images in _by_class(found, truth).values():
        count = sum(true for _, _, true in images)
        for least in overlaps:
            hits = [each for scores, rows, _ in images for each in zip(scores, _hits(rows, least), strict=True)]
            values.append(_average_precision(hits, count))
    return fmean(values)


def of_images(found: Sequence[Sequence[Found]], truth: Sequence[Sequence[True_]]) -> list[float]:
    """For each image, the mean over its classes of the average precision with which their boxes are found.

    A box counts as found from `IMAGE_OVERLAP` on. The score is 1 for an image without objects: it tells no two networks
    apart. Classes that the image doesn't have are left out, so boxes of them change nothing.
    """
    return [
        mean_average_precision([some], [boxes], [IMAGE_OVERLAP]) if boxes else 1.0
        for some, boxes in zip(found, truth, strict=True)
    ]


def _by_class(
    found: Sequence[Sequence[Found]], truth: Sequence[Sequence[True_]]
) -> dict[int, list[tuple[list[float], list[list[float]], int]]]:
    """Class → each image with boxes of it, in their order; only classes that are true somewhere, in ascending order.

    An image has the scores of the boxes that were found, the highest first, the overlap of each with each true box, and
    the number of true ones.
    """
    classes: dict[int, list[tuple[list[float], list[list[float]], int]]] = {
        label: [] for label in sorted({int(box[0]) for boxes in truth for box in boxes})
    }
    for some, boxes in zip(found, truth, strict=True):
        first: dict[int, list[Found]] = {}
        for one in sorted(some, key=_score, reverse=True)[:MOST]:
            first.setdefault(int(one[0]), []).append(one)
        true: dict[int, list[True_]] = {}
        for box in boxes:
            true.setdefault(int(box[0]), []).append(array("f", box))
        for label in first.keys() | true.keys():
            if label in classes:
                own, real = first.get(label, []), true.get(label, [])
                rows = [[overlap(one[2:], box[1:]) for box in real] for one in own]
                classes[label].append(([one[1] for one in own], rows, len(real)))
    return classes


def _score(found: Found) -> float:
    return found[1]


def _hits(overlaps: Sequence[Sequence[float]], least: float) -> list[bool]:
    """Whether each box finds a true one that none before it has found: the one that it overlaps most.

    `overlaps` has the overlap of each box, with the highest score first, with each true one.
    """
    taken: set[int] = set()
    hits = []
    for row in overlaps:
        best, place = least, -1
        for number, value in enumerate(row):
            if value >= best and number not in taken:
                best, place = value, number
        if place >= 0:
            taken.add(place)
        hits.append(place >= 0)
    return hits


def _average_precision(hits: Sequence[tuple[float, bool]], count: int) -> float:
    """Mean over `RECALLS` of the best precision at that recall or a higher one; `hits` are scores with their hit.

    `count` is the number of true boxes, at least 1.
    """
    ordered = [hit for _, hit in sorted(hits, key=lambda each: each[0], reverse=True)]
    right = list(accumulate(map(int, ordered)))
    precisions = [hit / (place + 1) for place, hit in enumerate(right)]
    for place in range(len(precisions) - 2, -1, -1):
        precisions[place] = max(precisions[place], precisions[place + 1])
    recalls = [hit / count for hit in right]
    places = [bisect_left(recalls, recall) for recall in RECALLS]
    return fmean(precisions[place] if place < len(precisions) else 0.0 for place in places)
