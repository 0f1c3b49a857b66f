"""Scores of predicted labels and their confidences beyond accuracy, as pure functions. No torch, no numpy.

Each function takes predicted and true classes of the same images, in the same order, and returns a share in [0, 1].
We don't use scikit-learn: it would save no line, and importing it takes longer than reading a run.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence

BINS = 15
"""Number of bins of the calibration error, as in Guo et al. (2017)."""
_EDGES = tuple(edge / BINS for edge in range(1, BINS))


def macro_f1(predicted: Sequence[int], truth: Sequence[int]) -> float:
    """Mean over classes of F1, the harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN).

    The mean is over the classes that occur as labels or as predictions. A class without a right prediction counts as
    0, even if it was never predicted, so that its precision is undefined. This equals scikit-learn's
    `f1_score(average="macro", zero_division=0)`.
    """
    right = _right(predicted, truth)
    occurs = Counter([*predicted, *truth])
    return statistics.fmean(2 * right[label] / count for label, count in occurs.items())


def balanced_accuracy(predicted: Sequence[int], truth: Sequence[int]) -> float:
    """Mean over classes of recall, the share of a class's images that are predicted right. All classes weigh the same.

    Classes without images are left out, since they have no recall. This equals scikit-learn's
    `balanced_accuracy_score`.
    """
    right = _right(predicted, truth)
    return statistics.fmean(right[label] / count for label, count in Counter(truth).items())


def largest_class(truth: Sequence[int]) -> tuple[int, float]:
    """The class with the most images, the first of several, and its share of all: the accuracy of always answering it.

    An accuracy means something only above that share: with 95 of 100 images in one class, 95% takes no network.
    """
    label, count = min(Counter(truth).items(), key=lambda item: (-item[1], item[0]))
    return label, count / len(truth)


def calibration_error(predicted: Sequence[int], confidences: Sequence[float], truth: Sequence[int]) -> float:
    """Expected calibration error (ECE): by how much the confidence in the predicted class differs from accuracy.

    Images are sorted by that confidence into `BINS` bins of equal width. Bin m takes (m - 1) / BINS < confidence <=
    m / BINS. The error is the mean over images of their bin's |accuracy - mean confidence| (Guo et al. 2017, "On
    calibration of modern neural networks", equation 3). 0 is best.
    """
    gaps: defaultdict[int, float] = defaultdict(float)
    for label, confidence, true in zip(predicted, confidences, truth, strict=True):
        gaps[bisect_left(_EDGES, confidence)] += confidence - (label == true)
    return math.fsum(map(abs, gaps.values())) / len(truth)


def _right(predicted: Sequence[int], truth: Sequence[int]) -> Counter[int]:
    """Class → number of its images that are predicted right."""
    return Counter(label for label, true in zip(predicted, truth, strict=True) if label == true)
