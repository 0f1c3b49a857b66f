"""Says what would decide an open verdict: how many more samples, if their mean and scatter stay as they are."""

from __future__ import annotations

import math
from dataclasses import replace

from bench.analysis.stats import Estimate
from bench.analysis.verdicts import Finding, likeliest_verdict

MOST = 30
"""With more further samples, or times the images, nothing is promised: the value lies too near a bound."""


def more_samples(finding: Finding) -> int | None:
    """How many more pairs or seeds would decide a finding; None if none would, or if it is not open.

    The scatter of images is part of an accuracy's error, and more seeds don't make that smaller; see `more_images`.
    """
    estimate = finding.estimate
    if estimate is None:
        return None
    if finding.verdict == "too few samples":
        return max(1, estimate.fewest - estimate.n)
    if finding.verdict != "inconclusive" or not finding.claim.is_ratio or finding.claim.by_signs:
        return None
    found = (extra for extra in range(1, MOST + 1) if _decides(finding, with_more(estimate, extra)))
    return next(found, None)


def more_images(finding: Finding) -> int | None:
    """How many times as many validation images would decide a finding on accuracies; None if none would."""
    estimate = finding.estimate
    if estimate is None or estimate.error is None or finding.verdict != "inconclusive" or finding.claim.is_ratio:
        return None
    error = estimate.error
    found = (
        times for times in range(2, MOST + 1) if _decides(finding, replace(estimate, error=error / math.sqrt(times)))
    )
    return next(found, None)


def with_more(estimate: Estimate, extra: int) -> Estimate:
    """What the estimate would be with so many more samples, if their mean and scatter stay as they are."""
    error = (estimate.error or 0.0) * math.sqrt(estimate.n / (estimate.n + extra))
    return replace(estimate, error=error, freedom=estimate.freedom + extra, n=estimate.n + extra)


def _decides(finding: Finding, estimate: Estimate) -> bool:
    _, p = likeliest_verdict(finding.claim, estimate)
    return finding.level is not None and p < finding.level
