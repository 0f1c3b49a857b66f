"""Average precision, as pure functions: how well scores put what is true before what is not. No torch, no numpy.

We don't use scikit-learn: it has no batch form for many images, warns for classes without images, and importing it
takes longer than reading a run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import compress
from statistics import fmean


def average_precision(scores: Sequence[float], true: Sequence[bool]) -> float | None:
    """Mean precision at each true one, with the highest scores first: sum of (R_n - R_(n-1)) P_n over thresholds.

    Equal scores are one threshold, so their order doesn't matter. None if none is true, since recall is undefined then.
    This equals scikit-learn's `average_precision_score`.
    """
    found = sorted(compress(scores, true))
    if not found:
        return None
    everything = sorted(scores)
    return fmean(_at_least(score, found) / _at_least(score, everything) for score in found)


def _at_least(score: float, ascending: Sequence[float]) -> int:
    """How many of these are not below a score that is among them."""
    return len(ascending) - bisect_left(ascending, score)


def mean_average_precision(scores: Sequence[Sequence[float]], truth: Sequence[Sequence[int]]) -> float:
    """Mean over classes of the average precision with which the class's scores rank the images.

    Args:
        scores: of each image for each class.
        truth: the classes of each image, of which there may be none.

    Classes that no image has are left out. One image at least has a class, as in the splits of a data set.
    """
    sets = [frozenset(classes) for classes in truth]
    of_classes = (
        average_precision([row[number] for row in scores], [number in some for some in sets])
        for number in range(len(scores[0]))
    )
    known = [value for value in of_classes if value is not None]
    return sum(known) / len(known)


def of_images(scores: Sequence[Sequence[float]], truth: Sequence[Sequence[int]]) -> list[float]:
    """For each image, the average precision with which its scores rank the classes. Arguments: see above.

    It is 1 for an image without classes: no order of them is wrong, and so it never tells two networks apart. The mean
    over images equals scikit-learn's `label_ranking_average_precision_score` where no scores are equal.
    """
    found = []
    for row, classes in zip(scores, truth, strict=True):
        value = average_precision(row, [number in classes for number in range(len(row))])
        found.append(1.0 if value is None else value)
    return found
