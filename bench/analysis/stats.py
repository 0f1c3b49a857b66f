"""Statistics as pure functions over floats: estimates with intervals, tests with their smallest reachable p-value.

Process pairs are the unit of repetition for times and memory, and seeds for accuracies, and for times where no pairs
were timed. The epochs of one seed, and the rounds of one pair, scatter less than repeated runs of the same cell do, so
they can't show how precise a speed-up is. Intervals are therefore over pairs or seeds, and need `MIN_SAMPLES`. They
assume that these are independent; `ratio_in_order` allows for seeds that resemble those that ran just before them, and
`ratio_of_pairs` for pairs that clearly do. Of small whole numbers, such as epochs, only the order counts
(`ratio_by_signs`).

Functions import scipy when they are called: it takes a second, and a sweep plans and runs without it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np

Compared = Literal["ratio", "difference"]
"""How an estimate compares two sides; see `bench.analysis.metrics.ComparedBy`. Exact counters have no estimate."""
Key = TypeVar("Key", bound=Hashable)
MIN_SAMPLES = 3
"""Smallest number of seeds or pairs from which scatter is estimated."""
MIN_SIGNS = 6
"""Smallest number of seeds that a sign test can decide by. With five that all agree, its two-sided p is 0.0625."""
MIN_IN_ORDER = 5
"""Smallest number of seeds or pairs whose order is looked at. With four, no order is rare enough for `LEVEL`."""
LEVEL = 0.05
"""Error rate of both ends of an interval together, and of all tests of one table together."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A share with its 95% interval and the number of samples."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Dependence:
    """How much values resemble their neighbours in the order in which they were measured."""

    values: tuple[float, ...]
    """At least `MIN_IN_ORDER` values, not all equal."""

    @cached_property
    def correlation(self) -> float:
        """Autocorrelation at lag 1, without its bias: in independent values its mean is -1/n. The error is about 1/√n.

        With few values it underestimates a real correlation: of 0.5, it finds 0.15 on average in five, 0.3 in ten.
        """
        return float(_lag_1(np.array(self.values))) + 1 / len(self.values)

    @cached_property
    def p(self) -> float:
        """One-sided p-value against "the order is random", by permutation: exact up to seven values.

        The power is low: with a correlation of 0.5, p is below 0.05 in 7% of cases for five values, and in 33% for ten.
        So a large p-value does not show that the values are independent.
        """
        from scipy.stats import permutation_test

        found: Any = permutation_test(
            (np.array(self.values),),
            _lag_1,
            permutation_type="pairings",
            alternative="greater",
            n_resamples=math.factorial(7),
            vectorized=True,
            rng=0,
        )
        return float(found.pvalue)

    @property
    def inflation(self) -> float:
        """Factor of the variance of the mean, (1 + r) / (1 - r), for a positive correlation r; 1 for others.

        r is limited so that at least two independent values remain of n: n / inflation is the effective number.
        """
        n = len(self.values)
        r = min(max(0.0, self.correlation), (n - 2) / (n + 2))
        return (1 + r) / (1 - r)


def _lag_1(values: Any, axis: int = -1) -> Any:
    """Autocorrelation at lag 1 along an axis: the sum of products of neighbouring deviations, over that of squares."""
    away = np.moveaxis(values - values.mean(axis=axis, keepdims=True), axis, -1)
    return (away[..., 1:] * away[..., :-1]).sum(-1) / (away**2).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A ratio or a difference of two regimes over seeds or process pairs, with its standard error.

    The interval is Student's t on the estimate's own scale, which is logarithmic for ratios. Below `MIN_SAMPLES` there
    is none.
    """

    compared: Compared
    centre: float
    """The logarithm of a ratio, or the difference itself."""
    error: float | None
    """Standard error of `centre`; None below `MIN_SAMPLES`."""
    freedom: float
    """Degrees of freedom of `error`."""
    n: int
    """Number of seeds that both sides have, or of process pairs."""
    dependence: Dependence | None = None
    """The resemblance of neighbouring seeds or pairs; None if it was not looked at.

    `error` and `freedom` allow for it: always for seeds, for pairs where it is clear (`ratio_of_pairs`).
    """

    @property
    def fewest(self) -> int:
        """Smallest `n` from which there is an interval."""
        return MIN_SAMPLES

    @property
    def value(self) -> float:
        """The ratio (a geometric mean) or the mean difference."""
        return self._back(self.centre)

    @property
    def low(self) -> float | None:
        """Lower end of the 95% interval."""
        return None if self.error is None else self.interval()[0]

    @property
    def high(self) -> float | None:
        """Upper end of the 95% interval."""
        return None if self.error is None else self.interval()[1]

    @property
    def half_width(self) -> float | None:
        """Half-width of the interval; None below `MIN_SAMPLES`.

        For a ratio it is relative (0.05 is ±5%), and that of the upper half, which is the wider one.
        """
        if self.error is None:
            return None
        margin = self._margin(LEVEL)
        return margin if self.compared == "difference" else math.expm1(margin)

    @property
    def p(self) -> float:
        """Two-sided p-value against "there is no difference" (a ratio of 1); 1.0 below `MIN_SAMPLES`."""
        none = 1.0 if self.compared == "ratio" else 0.0
        return min(1.0, 2 * min(self.p_not_above(none), self.p_not_below(none)))

    def p_not_above(self, bound: float) -> float:
        """One-sided p-value against "the truth is not above `bound`"; 1.0 below `MIN_SAMPLES`."""
        return self._tail(bound, 1)

    def p_not_below(self, bound: float) -> float:
        """One-sided p-value against "the truth is not below `bound`"; 1.0 below `MIN_SAMPLES`."""
        return self._tail(bound, -1)

    def _tail(self, bound: float, side: int) -> float:
        if self.error is None:
            return 1.0
        if math.isinf(bound):
            return 0.0 if side * bound < 0 else 1.0
        there = math.log(bound) if self.compared == "ratio" and bound > 0 else bound
        if self.compared == "ratio" and bound <= 0:
            there = -math.inf
        distance = side * (self.centre - there)
        if self.error == 0.0:
            return 0.0 if distance > 0 else 1.0
        from scipy.special import stdtr

        return float(stdtr(self.freedom, -distance / self.error))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Both ends of the interval with an error rate of `level`, at both ends together.

        Below `MIN_SAMPLES` they are infinite, but for the lower end of a ratio, which is 0.
        """
        margin = self._margin(level)
        return self._back(self.centre - margin), self._back(self.centre + margin)

    def _margin(self, level: float) -> float:
        if self.error is None:
            return math.inf
        from scipy.special import stdtrit

        return float(stdtrit(self.freedom, 1 - level / 2)) * self.error

    def _back(self, value: float) -> float:
        if self.compared == "difference":
            return value
        try:
            return math.exp(value)
        except OverflowError:
            return math.inf


@dataclass(frozen=True, kw_only=True)
class SignEstimate(Estimate):
    """A ratio over seeds of which only the order counts: `centre` is the median of `logs`, tests are exact sign tests.

    The interval is the one of the median that follows from them (Thompson 1936): its ends are two of the ratios.
    `error` is that of a mean; nothing here follows from it, and below `MIN_SIGNS` it is None.
    """

    logs: tuple[float, ...]
    """Logarithms of the seeds' ratios."""

    @property
    def fewest(self) -> int:
        """Smallest `n` from which there is an interval."""
        return MIN_SIGNS

    @property
    def half_width(self) -> float | None:
        """Width of the upper part of the interval, relative; None below `MIN_SIGNS`."""
        return None if self.high is None else self.high / self.value - 1

    def _tail(self, bound: float, side: int) -> float:
        if self.error is None:
            return 1.0
        there = math.log(bound) if bound > 0 else -math.inf
        return _at_least(sum(side * (each - there) > _ROUNDING for each in self.logs), self.n)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Both ends of the interval, with an error rate of at most `level`; 0 and infinity where seeds are too few."""
        ordered = sorted(self.logs)
        left_out = sum(_at_least(self.n - place, self.n) <= level / 2 for place in range(self.n // 2))
        if self.error is None or not left_out:
            return 0.0, math.inf
        return self._back(ordered[left_out - 1]), self._back(ordered[-left_out])


_ROUNDING = 1e-9
"""Logarithms of ratios that are equal differ by less."""


def _at_least(count: int, n: int) -> float:
    """Probability that at least `count` of `n` fair coins show heads."""
    return sum(math.comb(n, heads) for heads in range(count, n + 1)) / float(2**n)


def ratio_by_signs(above: Mapping[Key, float], below: Mapping[Key, float]) -> Estimate | None:
    """Ratio of two small whole numbers that are paired by seed, such as numbers of epochs: their median, by sign tests.

    Such numbers are often equal, and so are their ratios: three seeds with 2 against 1 have no scatter at all, and
    Student's t would be certain. In simulations without an effect it gave 16% of the reports on 20 backbones and three
    seeds a false verdict. A sign test is exact: without an effect neither side has the smaller number more often. A
    seed whose ratio isn't beyond a bound counts against that, so ties favour nothing. From `MIN_SIGNS` seeds on it can
    decide (`tests/test_stats.py`). Returns None without a seed in common, or if a value is not above 0.
    """
    logs = _log_ratios(above, below)
    if not logs:
        return None
    found = _over_seeds("ratio", logs)
    return SignEstimate(
        compared="ratio",
        centre=statistics.median(logs),
        error=found.error if found.n >= MIN_SIGNS else None,
        freedom=found.freedom,
        n=found.n,
        logs=tuple(logs),
    )


def ratio(above: Mapping[Key, float], below: Mapping[Key, float]) -> Estimate | None:
    """Ratio of two quantities that are paired by seed, such as seed → median seconds per epoch.

    Seeds are taken as independent. The interval is Student's t on the logarithms of the seeds' ratios. It includes the
    scatter of epochs within a seed, since that moves the seed's median. We rejected a bootstrap over seeds, and over
    epochs within them: with three seeds its 95% interval contains the true value in 86% of cases, with five in 92%
    (`tests/test_stats.py`). Returns None without a seed in common, or if a value is not above 0.
    """
    logs = _log_ratios(above, below)
    return _over_seeds("ratio", logs) if logs else None


def ratio_in_order(above: Mapping[Key, float], below: Mapping[Key, float]) -> Estimate | None:
    """`ratio` for seeds that may resemble those that ran just before. `above` has the seeds in the order of their runs.

    A machine that slows down for minutes does so for several seeds, which then say less than independent ones: the
    variance of their mean is larger by (1 + r) / (1 - r) for a correlation r that falls with distance (AR(1); Bartlett
    1946). From `MIN_IN_ORDER` seeds on, the error and the degrees of freedom are those of so many fewer seeds. With a
    true correlation of 0.5, five to twenty seeds, and a nominal 95%, the interval covers the true value in 88 to 91% of
    cases, where Student's t covers 75 to 79%; independent seeds are covered in 97%. With few seeds no method can do
    better, since r itself is hardly known.
    """
    estimate = _ratio_with_order(above, below)
    if estimate is None or estimate.error is None or estimate.dependence is None:
        return estimate
    inflation = estimate.dependence.inflation
    return replace(estimate, error=estimate.error * math.sqrt(inflation), freedom=estimate.n / inflation - 1)


def ratio_of_pairs(above: Mapping[Key, float], below: Mapping[Key, float]) -> Estimate | None:
    """`ratio` for process pairs, widened where their order speaks against independence: `Dependence.p` < `LEVEL`.

    The error is then larger by the square root of `Dependence.inflation`, at most √(n/2). The cells of a pair take
    turns, so what the machine does for minutes cancels out in its ratio, and a correlation is not expected. Widening
    for every positive one, as `ratio_in_order` does, would hide a difference of 5% in one of ten comparisons of five
    pairs that scatter by 1% (`tests/test_stats.py`). Degrees of freedom stay n - 1: with those of `ratio_in_order`
    intervals hold the truth hardly more often, and one of a hundred is ten times as wide as the plain one. In
    simulations of eight pairs it is held in 95% of cases without a correlation, 89% with one of 0.3 and 80% with 0.5,
    where plain intervals hold it in 95, 87 and 76%. With five pairs hardly any order is clear: of five values in a
    straight line p is 0.067.
    """
    estimate = _ratio_with_order(above, below)
    if estimate is None or estimate.error is None or (dependence := estimate.dependence) is None:
        return estimate
    clear = dependence.inflation > 1 and dependence.p < LEVEL
    return replace(estimate, error=estimate.error * math.sqrt(dependence.inflation)) if clear else estimate


def _ratio_with_order(above: Mapping[Key, float], below: Mapping[Key, float]) -> Estimate | None:
    """`ratio` with its `dependence`, for which its error doesn't allow; without it if values are too few or equal."""
    logs = _log_ratios(above, below)
    if not logs:
        return None
    estimate = _over_seeds("ratio", logs)
    looked_at = estimate.n >= MIN_IN_ORDER and estimate.error
    return replace(estimate, dependence=Dependence(tuple(logs))) if looked_at else estimate


def _log_ratios(above: Mapping[Key, float], below: Mapping[Key, float]) -> list[float]:
    """Logarithms of the ratios of seeds that both sides have; none if a value is not above 0."""
    pairs = [(above[seed], below[seed]) for seed in above if seed in below]
    if not pairs or min(min(pair) for pair in pairs) <= 0:
        return []
    return [math.log(top) - math.log(bottom) for top, bottom in pairs]  # a quotient may be too large for a float


def ratio_of_means(above: Sequence[float], below: Sequence[float]) -> Estimate | None:
    """Ratio of the geometric means of two independent samples, with Welch's interval on the logarithms.

    Welch's method (1947) allows unequal scatter. Returns None if a side has no sample, or one that is not above 0.
    """
    if not above or not below or min(*above, *below) <= 0:
        return None
    sides = [[math.log(value) for value in side] for side in (above, below)]
    centre = statistics.fmean(sides[0]) - statistics.fmean(sides[1])
    n = min(map(len, sides))
    if n < MIN_SAMPLES:
        return Estimate(compared="ratio", centre=centre, error=None, freedom=1, n=n)
    parts = [statistics.variance(side) / len(side) for side in sides]
    spread = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    freedom = sum(parts) ** 2 / spread if spread else 2.0 * n - 2
    return Estimate(compared="ratio", centre=centre, error=math.sqrt(sum(parts)), freedom=max(1.0, freedom), n=n)


def difference(first: Mapping[Key, float], second: Mapping[Key, float]) -> Estimate | None:
    """Mean difference of two quantities that are paired by seed, with Student's t; None without a seed in common."""
    values = [first[seed] - second[seed] for seed in first if seed in second]
    return _over_seeds("difference", values) if values else None


def _over_seeds(compared: Compared, values: list[float]) -> Estimate:
    n = len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n >= MIN_SAMPLES else None
    return Estimate(compared=compared, centre=statistics.fmean(values), error=error, freedom=max(1, n - 1), n=n)


def accuracy_difference(first: Mapping[int, Sequence[float]], second: Mapping[int, Sequence[float]]) -> Estimate | None:
    """Accuracy of `first` minus accuracy of `second`. Both map a seed to right or wrong for each of the same images.

    A task may score images by shares in place of right (1) or wrong (0): then it is the difference of the means of
    these scores.

    The error has three sources: the choice of seeds, the choice of images, and their interaction. All seeds classify
    the same images, so the variance of the mean is that of a two-way layout with random rows and columns. Degrees of
    freedom follow Satterthwaite (1946). The images' part includes two imaginary images, one that only the first side
    gets right and one that only the second does (Bonett and Price 2012): if no image distinguishes the two sides, that
    is no proof that none would. Returns None without a seed in common.
    """
    seeds = [seed for seed in first if seed in second]
    if not seeds:
        return None
    table = np.array([np.asarray(first[s], float) - np.asarray(second[s], float) for s in seeds])
    rows, columns = table.shape
    mean = float(table.mean())
    if rows < MIN_SAMPLES:
        return Estimate(compared="difference", centre=mean, error=None, freedom=1, n=rows)
    by_seed, by_image = table.mean(axis=1), table.mean(axis=0)
    rest = table - by_seed[:, None] - by_image[None, :] + mean
    # The part of each source in the variance of the mean.
    seeds_part = float(by_seed.var(ddof=1)) / rows
    images_part = ((by_image**2).sum() + 2 - by_image.sum() ** 2 / (columns + 2)) / (columns + 2) ** 2
    both = max(1, (rows - 1) * (columns - 1))
    rest_part = float((rest**2).sum()) / both / (rows * columns)
    # The interaction is part of both other sources, so it is subtracted once; the larger source is the lower limit.
    variance = max(seeds_part + images_part - rest_part, seeds_part, images_part)
    spread = seeds_part**2 / (rows - 1) + images_part**2 / (columns + 1) + rest_part**2 / both
    return Estimate(
        compared="difference",
        centre=mean,
        error=math.sqrt(variance),
        freedom=float(max(1.0, variance**2 / spread)),
        n=rows,
    )


def wilson(successes: int, trials: int) -> Interval:
    """Share of successes with its 95% interval after Wilson (1927)."""
    from scipy.stats import binomtest

    test = binomtest(successes, trials).proportion_ci(method="wilson")
    return Interval(value=successes / trials, low=float(test.low), high=float(test.high), n=trials)


@dataclass(frozen=True, kw_only=True)
class Test:
    """A p-value, and the smallest p-value that samples of this size can give."""

    p: float
    smallest: float


def mcnemar(first: Sequence[float], second: Sequence[float]) -> Test:
    """Exact two-sided test that two classifiers are right equally often on the same images (McNemar 1947).

    Only images that exactly one of them gets right count. With fewer than six of those, no p-value is below 0.05. Where
    images have shares as scores, it is the exact sign test, on the images whose scores differ.
    """
    from scipy.stats import binomtest

    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(b > a for a, b in zip(first, second, strict=True))
    disagree = only_first + only_second
    p = float(binomtest(only_first, disagree).pvalue) if disagree else 1.0
    return Test(p=p, smallest=min(1.0, 2 * 0.5**disagree))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple testing (Holm 1979), in the order given."""
    count, adjusted, largest = len(p_values), [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def holm_levels(p_values: Sequence[float], level: float = LEVEL) -> list[float]:
    """Error rates with which Holm's method compares p-values, in the order given.

    The smallest of m has `level` ÷ m, the next one `level` ÷ (m - 1), up to the first that is too large: what is left
    is undecided at the error rate of that one.
    """
    clear = sum(p < level for p in holm(p_values))
    levels = [0.0] * len(p_values)
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        levels[place] = level / (len(p_values) - min(rank, clear))
    return levels


def weighted_kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau in which exchanges of high ranks count more (Vigna 2015); None if a side has only one value."""
    from scipy.stats import weightedtau

    found = float(weightedtau(first, second).statistic)
    return None if math.isnan(found) else found


@dataclass(frozen=True, kw_only=True)
class Regret:
    """How much less accurate a candidate is than the most accurate one: 0 if it is that one itself."""

    value: float
    low: float | None
    high: float | None
    """The 95% interval; None below `MIN_SAMPLES` seeds."""
    verdict: tuple[bool, float] | None
    """Whether it is at most the bound that was asked about, and that verdict's two-sided p-value; None with `low`."""
    n: int
    """Number of seeds that all candidates have."""


def regret(candidates: Sequence[Mapping[int, Sequence[float]]], picked: int, bound: float) -> Regret | None:
    """Regret of taking the candidate at place `picked`, by its differences to each other one (`accuracy_difference`).

    Each candidate maps a seed to right or wrong for each of the same images. The most accurate one is not known for
    certain, and the mean of the best of several that are equal is above their common truth: a bootstrap of it refuted
    picks among equals. So the regret is shown to be within the bound if it is for every other candidate (Berger 1982),
    and to be beyond it if it is for one of them, adjusted for their number (Bonferroni). The interval follows from the
    same tests. Returns None without a seed in common, and for fewer than two candidates.
    """
    others = [each for place, each in enumerate(candidates) if place != picked]
    seeds = [seed for seed in candidates[picked] if all(seed in other for other in others)]
    if not seeds or not others:
        return None
    own = {seed: candidates[picked][seed] for seed in seeds}
    found = [accuracy_difference(each, own) for each in others]
    differences = [one for one in found if one is not None]
    value = max(0.0, *(one.value for one in differences))
    if len(seeds) < MIN_SAMPLES:
        return Regret(value=value, low=None, high=None, verdict=None, n=len(seeds))
    within = max(one.p_not_below(bound) for one in differences)
    beyond = min(1.0, len(others) * min(one.p_not_above(bound) for one in differences))
    level = LEVEL / len(others)
    return Regret(
        value=value,
        low=max(0.0, *(one.interval(level)[0] for one in differences)),
        high=max(0.0, *(one.interval(LEVEL)[1] for one in differences)),
        verdict=(within < beyond, min(1.0, 2 * min(within, beyond))),
        n=len(seeds),
    )
