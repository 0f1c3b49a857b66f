"""Tests statistics against scipy and known answers, and the coverage of intervals by simulation."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from bench.analysis.claims import CLAIMS
from bench.analysis.stats import (
    LEVEL,
    MIN_IN_ORDER,
    MIN_SAMPLES,
    Dependence,
    Estimate,
    accuracy_difference,
    holm,
    mcnemar,
    ratio,
    ratio_by_signs,
    ratio_in_order,
    ratio_of_pairs,
    wilson,
)
from bench.analysis.verdicts import DECIDED, decide_together

DRAWS = 2_000
POSITIVE = st.floats(0.1, 100)
PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=MIN_SAMPLES, max_size=12)


def by_seed(values: object) -> dict[int, float]:
    return dict(enumerate(values))  # type: ignore[arg-type]


def interval(estimate: Estimate | None) -> tuple[float, float]:
    assert estimate is not None and estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


@pytest.mark.parametrize(("right", "low", "high"), [(143, 0.884, 0.964), (146, 0.909, 0.978)])
def test_wilson_has_the_published_values(right: int, low: float, high: float) -> None:
    """The values are for 153 images."""
    found = wilson(right, 153)
    assert (round(found.low, 3), round(found.high, 3)) == (low, high)


@given(PAIRS)
def test_a_ratio_is_scipys_t_interval_on_logarithms(pairs: list[tuple[float, float]]) -> None:
    """Value, both ends and all one-sided p-values agree. The inverse ratio has the inverse interval."""
    tops, bottoms = zip(*pairs, strict=True)
    logs = np.log(np.array(tops) / np.array(bottoms))
    estimate = ratio(by_seed(tops), by_seed(bottoms))
    assert estimate is not None and estimate.n == len(pairs)
    assert estimate.value == pytest.approx(reference.gmean(np.array(tops) / np.array(bottoms)))
    if np.std(logs) < 1e-9:
        return  # scipy warns of identical samples
    theirs = reference.ttest_1samp(logs, 0.0)
    ends = theirs.confidence_interval(1 - LEVEL)
    assert np.log(interval(estimate)) == pytest.approx((ends.low, ends.high), rel=1e-6, abs=1e-9)
    for bound in (0.5, 1.0, 2.0):
        for side, p in (("greater", estimate.p_not_above(bound)), ("less", estimate.p_not_below(bound))):
            expected = reference.ttest_1samp(logs, math.log(bound), alternative=side).pvalue
            assert p == pytest.approx(expected, rel=1e-6, abs=1e-12)
    low, high = interval(ratio(by_seed(bottoms), by_seed(tops)))
    assert (1 / high, 1 / low) == pytest.approx(interval(estimate))


def test_only_seeds_that_both_sides_have_count_and_too_few_have_no_interval() -> None:
    """Two seeds give no interval. Without a common seed, or with a value of 0, there is no estimate."""
    estimate = ratio({0: 4.0, 1: 4.0, 2: 9.0}, {0: 2.0, 1: 2.0, 7: 1.0})
    assert estimate is not None and (estimate.value, estimate.n) == (pytest.approx(2.0), 2)
    assert estimate.low is estimate.high is estimate.half_width is None
    assert estimate.p_not_above(0.1) == estimate.p_not_below(100) == 1.0
    assert ratio({0: 1.0}, {1: 1.0}) is None
    assert ratio({0: 0.0}, {0: 1.0}) is None
    assert accuracy_difference({0: [True]}, {1: [True]}) is None


def test_bounds_at_infinity_and_below_zero() -> None:
    """A missing bound is never crossed, and a ratio is certainly above 0."""
    estimate = ratio(by_seed([2.0, 2.1, 1.9]), by_seed([1.0] * 3))
    assert estimate is not None
    assert estimate.p_not_above(-math.inf) == 0.0 and estimate.p_not_below(math.inf) == 0.0
    assert estimate.p_not_above(math.inf) == 1.0 and estimate.p_not_below(-math.inf) == 1.0
    assert estimate.p_not_above(-1.0) == 0.0


def test_equal_seeds_have_an_interval_of_width_0() -> None:
    """Equal values have no scatter, so the interval is a point, which lies on one side of every bound."""
    estimate = ratio(by_seed([4.0] * 3), by_seed([2.0] * 3))
    assert interval(estimate) == pytest.approx((2.0, 2.0))
    assert estimate is not None and (estimate.p_not_above(1.9), estimate.p_not_above(2.1)) == (0.0, 1.0)


def _epochs(
    rng: np.random.Generator, seeds: int, *, between: float, within: float, disturbed: float
) -> tuple[np.ndarray, np.ndarray]:
    """Warm epochs of two regimes with true ratio 2.2, shape (seeds, 4) each; standard deviations are of logarithms."""
    slow = np.log(2.2) + rng.normal(0, between, (seeds, 1)) + rng.normal(0, within, (seeds, 4))
    fast = rng.normal(0, within, (seeds, 4))
    for side in (slow, fast):
        side += np.where(rng.random(side.shape) < disturbed, rng.uniform(0.1, 0.7, side.shape), 0.0)
    return np.exp(slow), np.exp(fast)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    ("between", "within", "disturbed"),
    [(0.03, 0.02, 0.0), (0.0, 0.02, 0.0), (0.02, 0.02, 0.03)],
    ids=["runs differ", "only epochs differ", "some epochs are disturbed"],
)
def test_a_95_percent_interval_of_a_speed_up_holds_the_truth_95_times_in_100(
    seeds: int, between: float, within: float, disturbed: float
) -> None:
    """Coverage is within two points of 95% over 2,000 samples, from three seeds on, for each source of scatter."""
    rng = np.random.default_rng(seeds)
    held = 0
    for _ in range(DRAWS):
        slow, fast = _epochs(rng, seeds, between=between, within=within, disturbed=disturbed)
        low, high = interval(ratio(by_seed(np.median(slow, axis=1)), by_seed(np.median(fast, axis=1))))
        held += low <= 2.2 <= high
    assert 0.93 <= held / DRAWS <= 0.97


@pytest.mark.parametrize(("count", "covered"), [(3, 0.86), (5, 0.92)])
def test_a_hierarchical_bootstrap_would_not(count: int, covered: float) -> None:
    """A bootstrap over seeds, and over epochs within them, covers less than it claims. So we don't use one."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(500):
        slow, fast = _epochs(rng, count, between=0.03, within=0.02, disturbed=0.0)
        seeds, epochs = rng.integers(count, size=(500, count, 1)), rng.integers(4, size=(2, 500, count, 4))
        logs = [np.log(np.median(side[seeds, pick], axis=2)) for side, pick in zip((slow, fast), epochs, strict=True)]
        low, high = np.quantile(np.exp((logs[0] - logs[1]).mean(axis=1)), [0.025, 0.975])
        held += low <= 2.2 <= high
    assert held / 500 == pytest.approx(covered, abs=0.03)


def _predictions(
    rng: np.random.Generator, seeds: int, images: int, *, between: float, of_images: float
) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong predictions of two equally good regimes on the same images, shape (seeds, images) each."""
    hardness = rng.normal(0, of_images, images)
    sides = []
    for _ in range(2):
        logit = 2.5 + hardness + rng.normal(0, between, (seeds, 1)) + rng.normal(0, 0.7, (1, images))
        sides.append(rng.random((seeds, images)) < 1 / (1 + np.exp(-logit)))
    return sides[0], sides[1]


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize(("between", "of_images"), [(0.3, 2.0), (0.5, 1.0)])
def test_a_95_percent_interval_of_an_accuracy_difference_holds_the_truth(
    seeds: int, between: float, of_images: float
) -> None:
    """Seeds and images are both random samples, so the interval must include the scatter of both."""
    rng = np.random.default_rng(seeds)
    held = 0
    for _ in range(DRAWS):
        one, other = _predictions(rng, seeds, 153, between=between, of_images=of_images)
        low, high = interval(accuracy_difference(dict(enumerate(one)), dict(enumerate(other))))
        held += low <= 0.0 <= high
    assert 0.93 <= held / DRAWS <= 0.98


@pytest.mark.parametrize("images", [30, 60, 100, 153, 400])
def test_seeds_that_agree_prove_nothing_of_other_images(images: int) -> None:
    """The error rate is at most 5% if each image is lost with probability 2%, equally in all seeds.

    It is computed exactly, from the verdict and the probability of each number of lost images.
    """
    wrong = 0.0
    for count in range(images + 1):
        kept = dict.fromkeys(range(3), [False] * count + [True] * (images - count))
        estimate = accuracy_difference(kept, dict.fromkeys(range(3), [True] * images))
        assert estimate is not None
        if 2 * estimate.p_not_above(-0.02) < LEVEL:
            wrong += reference.binom.pmf(count, images, 0.02)
    assert wrong <= LEVEL


def test_identical_predictions_have_an_interval_that_depends_on_the_number_of_images() -> None:
    """The interval is centred at 0 and narrower with more images."""
    widths = []
    for images in (20, 200):
        low, high = interval(accuracy_difference(*[{seed: [True] * images for seed in range(4)}] * 2))
        assert low == pytest.approx(-high)
        widths.append(high)
    assert widths[0] > 5 * widths[1] > 0


def test_the_test_of_no_difference_is_two_sided() -> None:
    """The p-value is the same whichever side is larger."""
    up, down = ratio(by_seed([2.0, 2.1, 1.9]), by_seed([1.0] * 3)), ratio(by_seed([1.0] * 3), by_seed([2.0, 2.1, 1.9]))
    assert up is not None and down is not None
    assert up.p == pytest.approx(down.p) == pytest.approx(2 * up.p_not_above(1.0))


def test_mcnemar_is_the_exact_binomial_test() -> None:
    """Only images on which the two disagree count. At least six are needed for significance."""
    first = [True] * 10 + [False] * 2 + [True] * 50
    second = [False] * 10 + [True] * 2 + [True] * 50
    assert mcnemar(first, second).p == pytest.approx(reference.binomtest(2, 12, 0.5).pvalue)
    assert (mcnemar(first, first).p, mcnemar(first, first).smallest) == (1.0, 1.0)
    assert mcnemar(first, second).p == pytest.approx(mcnemar(second, first).p)
    five, six = ([True] * n + [True] * 9 for n in (5, 6))
    assert mcnemar(five, [False] * 5 + [True] * 9).smallest > LEVEL
    test = mcnemar(six, [False] * 6 + [True] * 9)
    assert test.p == test.smallest < LEVEL


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_procedure(values: list[float]) -> None:
    """An adjusted p-value is below a level exactly if stepwise testing at that level rejects the test."""
    adjusted = holm(values)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
            if values[place] * (len(values) - rank) > level:
                break
            rejected.add(place)
        assert {place for place, p in enumerate(adjusted) if p <= level} == rejected


def logs_of(*values: float) -> dict[int, float]:
    return by_seed(np.exp(values))


def in_order(*values: float) -> Estimate:
    found = ratio_in_order(logs_of(*values), dict.fromkeys(range(len(values)), 1.0))
    assert found is not None
    return found


@given(st.lists(st.floats(-1, 1).map(lambda value: round(value, 3)), min_size=MIN_SAMPLES, max_size=12))
def test_the_order_only_ever_widens_an_interval(logs: list[float]) -> None:
    """The ratio is the same. Below five seeds, or without positive correlation, so is the interval."""
    plain = ratio(logs_of(*logs), dict.fromkeys(range(len(logs)), 1.0))
    found = in_order(*logs)
    assert plain is not None and found.value == plain.value and found.error is not None and plain.error is not None
    assert found.error >= plain.error and found.freedom <= plain.freedom
    if len(logs) < MIN_IN_ORDER:
        assert found == plain and found.dependence is None
    elif found.dependence and found.dependence.correlation <= 0:
        assert (found.error, found.freedom) == (plain.error, plain.freedom)
    if found.dependence:
        n, inflation = len(logs), found.dependence.inflation
        assert found.error == pytest.approx(plain.error * math.sqrt(inflation))
        assert 2 - 1e-9 <= n / inflation <= n + 1e-9


def test_the_correlation_of_neighbours() -> None:
    """In a random order its mean is 0, by definition, and its p-value is exact up to seven values."""
    values = (1.0, 2.0, 4.0, 8.0, 16.0)
    orders = [Dependence(order) for order in permutations(values)]
    assert np.mean([one.correlation for one in orders]) == pytest.approx(0, abs=1e-12)
    most = max(orders, key=lambda one: one.correlation)
    assert most.p == pytest.approx(2 / 120), "this order and its reverse"
    assert Dependence((1.0, 5.0, 2.0, 6.0, 1.5)).inflation == 1
    few = [Dependence(order).p for order in permutations(values[:4])]
    assert min(few) > LEVEL, "so four values are too few for a test"


@pytest.mark.parametrize("count", [5, 10])
@pytest.mark.parametrize(("correlation", "before", "after"), [(0.0, 0.93, 0.945), (0.5, 0.73, 0.85)])
def test_coverage_by_correlation(count: int, correlation: float, before: float, after: float) -> None:
    """At a fixed number of seeds, intervals cover at least so much without, and with, regard to their order."""
    rng, held, plain_held = np.random.default_rng(count), 0, 0
    ones = dict.fromkeys(range(count), 1.0)
    for _ in range(1_000):
        logs = [rng.normal()]
        while len(logs) < count:
            logs.append(correlation * logs[-1] + math.sqrt(1 - correlation**2) * rng.normal())
        low, high = interval(in_order(*logs))
        held += low <= 1 <= high
        low, high = interval(ratio(logs_of(*logs), ones))
        plain_held += low <= 1 <= high
    assert held / 1_000 >= after and before <= plain_held / 1_000 <= max(0.97, after)
    assert correlation == 0 or plain_held / 1_000 < 0.82


def test_pairs_find_what_a_correction_for_every_correlation_would_hide() -> None:
    """Of five independent pairs that scatter by 1%, a difference of 5% is found in 97%, and one where none is in 5%."""
    rng = np.random.default_rng(3)

    def ends(each: Callable[..., Estimate | None], logs: list[float]) -> tuple[float, float]:
        estimate = each({n: math.exp(value) for n, value in enumerate(logs)}, dict.fromkeys(range(len(logs)), 1.0))
        assert estimate is not None and estimate.low is not None and estimate.high is not None
        return estimate.low, estimate.high

    found, hidden, false = 0, 0, 0
    for _ in range(500):
        logs = rng.normal(0, 0.01, 5)
        found += ends(ratio_of_pairs, (logs + math.log(1.05)).tolist())[0] > 1
        hidden += ends(ratio_in_order, (logs + math.log(1.05)).tolist())[0] <= 1
        low, high = ends(ratio_of_pairs, logs.tolist())
        false += not low <= 1 <= high
    assert found >= 480 and hidden >= 40 and false <= 35


@pytest.mark.parametrize("logs", [[-2.4, -0.08, 0.06, 0.09, -0.06], [0.02 * n for n in range(8)]])
def test_pairs_that_drift_are_widened(logs: list[float]) -> None:
    """Where the order clearly speaks against independence, the error is that of so many fewer pairs."""
    drifting = {n: math.exp(log) for n, log in enumerate(logs)}
    ones = dict.fromkeys(drifting, 1.0)
    plain, ours, seeds = (each(drifting, ones) for each in (ratio, ratio_of_pairs, ratio_in_order))
    assert plain is not None and ours is not None and seeds is not None and ours.dependence == seeds.dependence
    assert ours.error == seeds.error and (ours.error or 0) > (plain.error or 1) and ours.freedom == plain.freedom


def test_pairs_in_no_order_are_not_widened() -> None:
    """The same values in another order have the plain interval."""
    drifting = {n: 1.02**n for n in range(8)}
    ones = dict.fromkeys(drifting, 1.0)
    mixed = {n: drifting[place] for n, place in enumerate((0, 7, 2, 5, 4, 3, 6, 1))}
    plain, ours = ratio(mixed, ones), ratio_of_pairs(mixed, ones)
    assert plain is not None and ours is not None and ours.dependence is not None
    assert (ours.low, ours.high) == (plain.low, plain.high)


def test_pairs_that_resemble_each_other_are_covered_more_often_and_never_absurdly_wide() -> None:
    """With a correlation of 0.5 between neighbours, and with none; of eight pairs."""
    rng = np.random.default_rng(5)
    for correlation, least in ((0.0, 0.93), (0.5, 0.76)):  # 1,000 intervals: 95% ± 0.7, and 80% ± 1.3
        held, plain_held, widest = 0, 0, 0.0
        for _ in range(1000):
            logs = [rng.normal()]
            for noise in rng.normal(size=7):
                logs.append(correlation * logs[-1] + math.sqrt(1 - correlation**2) * noise)
            values = {n: math.exp(0.01 * log) for n, log in enumerate(logs)}
            ones = dict.fromkeys(values, 1.0)
            plain, ours = interval(ratio(values, ones)), interval(ratio_of_pairs(values, ones))
            held += ours[0] <= 1 <= ours[1]
            plain_held += plain[0] <= 1 <= plain[1]
            widest = max(widest, math.log(ours[1] / ours[0]) / math.log(plain[1] / plain[0]))
        assert held / 1000 >= least and held >= plain_held + (15 if correlation else 0) and widest <= 2.01


@pytest.mark.parametrize("logs", [[0.7] * 6, [0.7] * 9 + [0.0], [-1, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4]])
def test_signs_are_tested_as_by_scipy(logs: list[float]) -> None:
    """A ratio is above a bound if more seeds are than fair coins would show; those at the bound count against it."""
    found = ratio_by_signs(logs_of(*logs), dict.fromkeys(range(len(logs)), 1.0))
    assert found.centre == pytest.approx(statistics.median(logs))
    for bound in (-0.5, 0.0, 0.5, 1.0, 2.5):
        above, below = sum(each > bound for each in logs), sum(each < bound for each in logs)
        for p, count in ((found.p_not_above, above), (found.p_not_below, below)):
            assert p(math.exp(bound)) == pytest.approx(
                reference.binomtest(count, len(logs), alternative="greater").pvalue
            )
    low, high = interval(found)
    assert found.p_not_above(low * 0.999) <= 0.025 < found.p_not_above(low * 1.001)
    assert found.p_not_below(high * 1.001) <= 0.025 < found.p_not_below(high * 0.999)


def test_too_few_signs_decide_nothing() -> None:
    found = ratio_by_signs(logs_of(*[0.7] * 5), dict.fromkeys(range(5), 1.0))
    assert (found.low, found.high, found.half_width, found.p, found.fewest) == (None, None, None, 1.0, 6)
    more = ratio_by_signs(logs_of(*[0.7] * 6), dict.fromkeys(range(6), 1.0))
    assert more.p == pytest.approx(2 / 64) and more.interval(0.01) == (0.0, math.inf)
    assert ratio_by_signs({}, {}) is None


@pytest.mark.parametrize("epochs", [(1, 2), (1, 2, 3), (5, 10), tuple(range(1, 30))])
@pytest.mark.parametrize(("seeds", "backbones"), [(6, 1), (8, 20)])
def test_small_numbers_that_agree_by_chance_give_no_verdict(
    epochs: tuple[int, ...], seeds: int, backbones: int
) -> None:
    """Without an effect, few reports have a verdict on whether one regime is sooner, however few values there are."""
    draw, reports, wrong = random.Random(1), 200, 0
    for _ in range(reports):
        sides = [[{seed: float(draw.choice(epochs)) for seed in range(seeds)} for _ in "ab"] for _ in range(backbones)]
        found = decide_together([(CLAIMS["lp-ft-sooner"], ratio_by_signs(*both)) for both in sides])
        wrong += any(verdict in DECIDED for verdict, _ in found)
    assert wrong <= 0.05 * reports
