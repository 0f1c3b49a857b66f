"""What predicted labels and their confidences are worth beyond accuracy, as pure functions. No torch, no numpy.

Each takes the predicted classes of some images in the order of their true ones, and returns a share in [0, 1]. Two
counters do all the work: scikit-learn would save no line, and importing it takes longer than reading a run.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence

BINS = 15
"""Of the calibration error: the number that Guo et al. use."""
_EDGES = tuple(edge / BINS for edge in range(1, BINS))


def macro_f1(predicted: Sequence[int], truth: Sequence[int]) -> float:
    """Mean over classes of F1, the harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN).

    The mean is over the classes that occur, as labels or as predictions. One that occurs and is never right counts
    with 0, also where it was never predicted and its precision is undefined. This is scikit-learn's
    `f1_score(average="macro", zero_division=0)`.
    """
    right = _right(predicted, truth)
    occurs = Counter([*predicted, *truth])
    return statistics.fmean(2 * right[label] / count for label, count in occurs.items())


def balanced_accuracy(predicted: Sequence[int], truth: Sequence[int]) -> float:
    """Mean over classes of recall, the share of a class's images that are right; each class counts the same.

    The mean is over the classes that have images: of the others there is no recall. This is scikit-learn's
    `balanced_accuracy_score`.
    """
    right = _right(predicted, truth)
    return statistics.fmean(right[label] / count for label, count in Counter(truth).items())


def calibration_error(predicted: Sequence[int], confidences: Sequence[float], truth: Sequence[int]) -> float:
    """Expected calibration error (ECE): by how much the confidence in the predicted class differs from accuracy.

    Images are sorted into `BINS` bins of equal width by that confidence, bin m taking (m - 1) / BINS < confidence <=
    m / BINS; the error is the mean over images of their bin's |accuracy - mean confidence| (Guo et al. 2017, "On
    calibration of modern neural networks", equation 3). 0 is best.
    """
    gaps: defaultdict[int, float] = defaultdict(float)
    for label, confidence, true in zip(predicted, confidences, truth, strict=True):
        gaps[bisect_left(_EDGES, confidence)] += confidence - (label == true)
    return math.fsum(map(abs, gaps.values())) / len(truth)


def _right(predicted: Sequence[int], truth: Sequence[int]) -> Counter[int]:
    """Class → how many of its images are right."""
    return Counter(label for label, true in zip(predicted, truth, strict=True) if label == true)
