"""Statistics as pure functions over floats. Each says what its interval is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 9_999


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with a 95% interval and the number of samples that it rests on (the smaller side's)."""

    value: float
    low: float
    high: float
    n: int


def ratio_of_medians(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Median of `above` over median of `below`, with a percentile-bootstrap 95% interval over the samples.

    The resampling is seeded: the same samples give the same interval. It knows the scatter of the samples
    alone: what differs from one run to the next is not in it.
    """
    rng = np.random.default_rng(0)
    tops = np.median(rng.choice(np.asarray(above, float), size=(RESAMPLES, len(above))), axis=1)
    bottoms = np.median(rng.choice(np.asarray(below, float), size=(RESAMPLES, len(below))), axis=1)
    low, high = np.quantile(tops / bottoms, [0.025, 0.975])
    value = float(np.median(above) / np.median(below))
    return Interval(value=value, low=float(low), high=float(high), n=min(len(above), len(below)))


def wilson(successes: int, trials: int) -> Interval:
    """Share of successes with its Wilson 95% interval (Wilson 1927)."""
    test = binomtest(successes, trials).proportion_ci(method="wilson")
    return Interval(value=successes / trials, low=float(test.low), high=float(test.high), n=trials)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing all of them at once (Holm 1979); in the order given."""
    count, adjusted, largest = len(p_values), [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p-value that two classifiers are equally often right on the same images.

    1.0 when they never disagree.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    disagree = only_first + only_second
    return float(binomtest(only_first, disagree).pvalue) if disagree else 1.0
