"""Statistics against scipy and known answers, and the claim's verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from bench.claims import HALF_THE_TIME
from bench.stats import Interval, mcnemar, ratio_of_medians, wilson


@pytest.mark.parametrize(("right", "low", "high"), [(143, 0.884, 0.964), (146, 0.909, 0.978)])
def test_wilson_has_the_published_values(right: int, low: float, high: float) -> None:
    """Of 153 images."""
    interval = wilson(right, 153)
    assert (round(interval.low, 3), round(interval.high, 3)) == (low, high)


@given(st.lists(st.floats(0.1, 100), min_size=3, max_size=20), st.lists(st.floats(0.1, 100), min_size=3, max_size=20))
def test_the_ratio_lies_in_its_interval_and_turns_over(above: list[float], below: list[float]) -> None:
    """The figure is the ratio of medians; n is the smaller side's; scaling a side scales all."""
    ratio = ratio_of_medians(above, below)
    assert ratio.value == pytest.approx(np.median(above) / np.median(below))
    assert ratio.low <= ratio.high
    assert min(above) / max(below) <= ratio.low * (1 + 1e-9) and ratio.high <= max(above) / min(below) * (1 + 1e-9)
    assert ratio.n == min(len(above), len(below))
    double = ratio_of_medians([2 * x for x in above], below)
    assert (double.low, double.high) == pytest.approx((2 * ratio.low, 2 * ratio.high))


def test_the_ratio_interval_is_scipys_percentile_bootstrap() -> None:
    """The same method from scipy, with draws of its own."""
    rng = np.random.default_rng(1)
    above, below = rng.normal(20, 1, 25), rng.normal(10, 1, 25)
    theirs = reference.bootstrap(
        (above, below),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
        vectorized=True,
    ).confidence_interval
    ours = ratio_of_medians(above, below)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    """Only images on which the two disagree count."""
    first = [True] * 10 + [False] * 2 + [True] * 50
    second = [False] * 10 + [True] * 2 + [True] * 50
    assert mcnemar(first, second) == pytest.approx(reference.binomtest(2, 12, 0.5).pvalue)
    assert mcnemar(first, first) == 1.0
    assert mcnemar(first, second) == pytest.approx(mcnemar(second, first))


@pytest.mark.parametrize(
    ("low", "high", "n", "verdict"),
    [
        (1.7, 2.4, 4, "supported"),
        (1.6, 2.5, 4, "supported"),
        (2.6, 3.0, 4, "faster than claimed"),
        (1.1, 1.5, 4, "slower than claimed"),
        (1.5, 1.8, 4, "inconclusive"),
        (2.4, 2.6, 4, "inconclusive"),
        (1.7, 2.4, 2, "too few samples"),
    ],
)
def test_verdicts(low: float, high: float, n: int, verdict: str) -> None:
    """Supported only where the whole interval is in the region, refuted only where none of it is."""
    assert HALF_THE_TIME.verdict(Interval(value=(low + high) / 2, low=low, high=high, n=n)) == verdict
