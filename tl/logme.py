"""LogME: how well a linear model explains labels by features, as Bayesian evidence (You et al. 2021, arXiv 2102.11005).

Each class's column of zeros and ones is a linear function of the features plus noise; weights and noise are Gaussian,
with variances for which the column is likeliest. LogME is the mean over classes of that largest log-likelihood per
image. Larger is better, and it may be negative. It needs no validation image, and no choice.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import one_hot

from tl.fits import rotated

TOLERANCE = 1e-6
"""Relative change of the ratio of variances at which the maximum counts as found."""
MOST_ROUNDS = 1000


def logme(features: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Return the LogME of features `(N, width)` for labels `(N,) int64`, both on the CPU.

    Classes without an image are left out. None if a class has no finite evidence, such as with features that are all 0.
    """
    by_axis = rotated(features.double())
    if not len(by_axis.variances):
        return None
    columns = one_hot(labels).double()
    columns = columns[:, columns.any(0)]
    projected = (by_axis.coordinates.T @ columns) / by_axis.variances.sqrt()[:, None]
    found = [
        _evidence(by_axis.variances, along.square(), float(column.square().sum()), features.shape)
        for along, column in zip(projected.T, columns.T, strict=True)
    ]
    mean = math.fsum(found) / len(found) / len(features)
    return mean if math.isfinite(mean) else None


def _evidence(variances: torch.Tensor, along: torch.Tensor, total: float, shape: torch.Size) -> float:
    """Return the largest log evidence of a column.

    Args:
        variances: squares of the singular values of the features, `(r,)`.
        along: squares of the column's coordinates on the features' axes, `(r,)`.
        total: the column's squared length.
        shape: images and width of the features.
    """
    images, width = shape
    outside = max(0.0, total - float(along.sum()))  # what no weights explain
    weights, noise = 1.0, 1.0  # inverse variances: alpha and beta of the paper
    for _ in range(MOST_ROUNDS):
        ratio = weights / noise
        shrunk = variances / (variances + ratio)
        used = float(shrunk.sum())  # gamma of the paper, the effective number of weights
        length = float((along * shrunk / (variances + ratio)).sum())
        rest = float((along * (1.0 - shrunk).square()).sum()) + outside
        if length <= 0.0 or rest <= 0.0:
            return math.nan
        weights, noise = used / length, (images - used) / rest
        if noise <= 0.0:  # the features explain the labels to the last digit
            return math.nan
        if abs(weights / noise - ratio) <= TOLERANCE * ratio:
            break
    spread = float((weights + noise * variances).log().sum()) + (width - len(variances)) * math.log(weights)
    shrunk = variances / (variances + weights / noise)
    length = float((along * shrunk / (variances + weights / noise)).sum())
    rest = float((along * (1.0 - shrunk).square()).sum()) + outside
    return 0.5 * (
        width * math.log(weights)
        + images * math.log(noise)
        - spread
        - noise * rest
        - weights * length
        - images * math.log(2 * math.pi)
    )
