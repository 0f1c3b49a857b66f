"""Decides what changed from one side to another: one verdict per cell and quantity, one error rate for all."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from bench.analysis.deciding import MOST, with_more
from bench.analysis.metrics import METRICS
from bench.analysis.stats import (
    LEVEL,
    MIN_SAMPLES,
    Estimate,
    accuracy_difference,
    difference,
    holm,
    holm_levels,
    ratio,
    ratio_by_signs,
    ratio_of_means,
)
from bench.compare.rules import DEFAULTS, CellTexts, Rule, check_limits, check_rule, samples_text, typical
from bench.compare.sides import (
    MEMORY_METHOD,
    SECONDS,
    TAILS,
    Quantity,
    SampleName,
    Side,
    SideCell,
    Value,
    benchmark_key,
    compared_by_default,
)
from tl.errors import UserError, not_one_of
from tl.text import shortened

ChangeVerdict = Literal["worse", "better", "same", "inconclusive", "too few samples", "not comparable", "unknown"]
Order = Literal["in turn", "not in turn", "unknown", "no pairs"]
"""Whether rounds that have a name on both sides were also measured side by side, so that they are pairs."""
GROSS = 2.0
"""A tail that grows by this factor is reported even if the rounds are too few or too noisy for a test."""


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A condition that is not known to be equal on both sides; `str(mismatch)` describes it for people."""

    condition: str
    """Name of the condition, such as `cpu` or `SOURCE`."""
    base: tuple[str, ...]
    """Its values on the base side, sorted; an empty value is unknown."""
    new: tuple[str, ...]

    def __str__(self) -> str:
        base, new = (" and ".join(sorted(value or "unknown" for value in values)) for values in (self.base, self.new))
        return f"{self.condition}: {base} → {new}"


@dataclass(frozen=True, kw_only=True)
class Tail:
    """A summary of raw times that grew although the median didn't grow as much. It decides nothing."""

    name: str
    """One of `TAILS`."""
    estimate: Estimate

    def __str__(self) -> str:
        return f"{self.name} {self.estimate.value:.3g}×"


@dataclass(frozen=True, kw_only=True)
class Change:
    """The change of one quantity of one cell from the base side to a new side."""

    cell: str
    quantity: Quantity
    base: dict[SampleName, Value]
    """Sample → value. If the estimate rests on pairs, these are only the samples that both sides have."""
    new: dict[SampleName, Value]
    new_side: str
    estimate: Estimate | None
    """New divided by base, or new minus base; None for exact counters, and if nothing can be estimated."""
    allowed: float | None
    """Smallest change that counts, as a factor or a share; None for exact counters."""
    verdict: ChangeVerdict
    p: float | None = None
    """p-value against "no difference", adjusted (Holm) over the whole comparison; None without a test."""
    level: float | None = None
    """Error rate of the interval that `worse` and `better` rest on, by that adjustment; None without a test."""
    mismatches: tuple[Mismatch, ...] = ()
    """Conditions that forbid a comparison."""
    alike: bool = False
    """True for accuracies of one cell in two runs if with every seed both were right on exactly the same images. It
    stays False for two regimes or backbones, since that would not show that they are equally good."""
    looks: int = 1
    """Largest number of times that this comparison is made, with more samples each time."""
    paired: bool = False
    """True if the estimate rests on pairs of rounds."""
    obstacle: str = ""
    """Why samples can't show anything, however many there are; empty if they can."""
    tails: tuple[Tail, ...] = ()
    """Tails that grew."""

    @property
    def adjusted(self) -> tuple[float, float] | None:
        """Both ends of the interval that `worse` and `better` rest on: a change is shown without "no difference" in it.

        It is wider than the 95% interval, since all changes share one error rate. None without a test.
        """
        return None if self.level is None or self.estimate is None else self.estimate.interval(self.level)

    @property
    def size(self) -> float:
        """The change in units of the smallest one that counts, above 0 if it is for the worse; NaN if it is unknown.

        A changed counter has size 1, since any change of it counts.
        """
        if self.quantity.compared == "exact":
            return {"worse": 1.0, "better": -1.0, "same": 0.0}.get(self.verdict, math.nan)
        if self.estimate is None or self.allowed is None:
            return math.nan
        least = math.log(self.allowed) if self.estimate.compared == "ratio" else self.allowed
        return self.estimate.centre / least * (1 if self.quantity.better == "lower" else -1)

    @property
    def no_worse(self) -> bool:
        """True if it is shown not to be worse by a change that counts.

        With one look, this means that the worse end of the 95% interval lies within what is allowed.
        """
        return self._within(worse_is_more=self.quantity.better == "lower")

    @property
    def shown_same(self) -> bool:
        """True if it is shown to be neither worse nor better by a change that counts."""
        return self.alike or (self._within(worse_is_more=True) and self._within(worse_is_more=False))

    def _within(self, *, worse_is_more: bool) -> bool:
        """True if it is shown to lie below the upper bound (`worse_is_more`) or above the lower one, over all looks."""
        if self.estimate is None or self.allowed is None or self.obstacle:
            return False
        if worse_is_more:
            p = self.estimate.p_not_below(self.allowed)
        else:
            p = self.estimate.p_not_above(1 / self.allowed if self.estimate.compared == "ratio" else -self.allowed)
        return p < LEVEL / 2 / self.looks

    @property
    def is_open(self) -> bool:
        """True if more samples could decide it: it has no verdict, and isn't shown to be no worse."""
        return not self.obstacle and self.verdict in ("inconclusive", "too few samples") and not self.no_worse

    @property
    def more(self) -> int | None:
        """How many more samples on each side would decide it, if their mean and scatter stay as they are.

        None if it is not open, and if more than `MOST` would be needed.
        """
        if not self.is_open or self.estimate is None:
            return None
        if self.estimate.error is None:
            return max(1, self.estimate.fewest - self.estimate.n)
        tries = ((extra, replace(self, estimate=with_more(self.estimate, extra))) for extra in range(1, MOST + 1))
        return next((extra for extra, later in tries if later.no_worse or later._shown), None)

    @property
    def _shown(self) -> bool:
        """True if the estimate is a change that counts, and its adjusted interval excludes no change."""
        if self.adjusted is None or self.estimate is None or self.allowed is None:
            return False
        none = 1.0 if self.estimate.compared == "ratio" else 0.0
        return _counts(self.estimate, self.allowed) and not self.adjusted[0] <= none <= self.adjusted[1]

    @property
    def typical(self) -> tuple[float, float]:
        """Typical values of base and new; see `rules.typical`. NaN for a side without samples."""
        return typical(self.base.values(), self.quantity), typical(self.new.values(), self.quantity)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The base side compared with all other sides."""

    base: Side
    others: tuple[Side, ...]
    changes: tuple[Change, ...]
    beyond_limits: CellTexts
    """Absolute limits that a new side breaks."""
    unchecked: CellTexts
    """Absolute limits that can't be checked, since a new side doesn't know the value."""
    newly_failing: CellTexts
    """Cells with a sample that succeeded on the base side and failed on a new side, and how it failed."""
    incomplete: CellTexts
    """Cells without results on a side, except newly failing ones, and cells and samples that only the base side has."""
    only_new: CellTexts
    """Cells and samples that only a new side has, and the name of that side."""
    level: float
    """Error rate of all changes together, per look."""
    looks: int = 1
    """Largest number of looks; see `Change.looks`."""

    def having(self, *verdicts: ChangeVerdict) -> list[Change]:
        """The changes with one of these verdicts."""
        return [change for change in self.changes if change.verdict in verdicts]


def compare(
    sides: Sequence[Side],
    *,
    metrics: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    level: float = LEVEL,
    looks: int = 1,
) -> Comparison:
    """Compare every other side with the first.

    A change is better or worse if its estimate is at least as large as the rules require, and a test of "no change" is
    rejected at `level` over the whole comparison (Holm 1979). `same` must be shown: the 95% interval lies within what
    the rules allow, or both runs were right on exactly the same images with each of at least three seeds.

    - Times and memory of runs are independent samples (Welch 1947, on logarithms).
    - Rounds of benchmarks with names in common are pairs if they were measured in turn; see `order_of`. Otherwise they
      are independent samples too.
    - Accuracies are compared seed by seed over the same images.
    - Other shares are compared seed by seed (Student's t); that says nothing about other images.
    - Small whole numbers, such as epochs, are compared seed by seed, by signs.
    - Exact counters are compared sample by sample.

    Args:
        sides: see `read_sides`.
        metrics: names of metrics to compare. By default: those with `Metric.by_default`, those that a rule names, all
            exact counters, and everything that benchmarks measure.
        rules: rules in addition to `DEFAULTS`.
        level: error rate of all changes together, over all looks.
        looks: largest number of times that the comparison is made, with more samples each time. The looks share the
            error rates equally (Bonferroni).

    Raises `UserError` if the sides have nothing in common, and for rules and metrics that fit nothing.
    """
    base, *others = sides
    wanted, asked = _wanted(sides, metrics, rules)
    shared = [(side, key) for side in others for key in base.cells if key in side.cells]
    if not shared:
        raise UserError(_nothing_in_common(base, others))
    paired = {side.name: order_of(base, side) == "in turn" for side in others}
    drafts = [
        _draft(base, side, key, quantity, [*DEFAULTS, *rules], looks, paired=paired[side.name])
        for side, key in shared
        for name, quantity in wanted.items()
        if _is_due(name, base.cells[key], side.cells[key], asked)
    ]
    measured = {(cell.repeats, name) for side in sides for cell in side.cells.values() for name in cell.samples}
    checked = [
        (side, cell, quantity, base.cells.get(key))
        for side in others
        for key, cell in side.cells.items()
        for quantity in wanted.values()
        if (cell.repeats, quantity.name) in measured
    ]
    for name in metrics:
        if not any(change.quantity.name == name and (change.base or change.new) for change in drafts):
            raise UserError(f"nothing to compare: no cell of either side has {name}")
    for rule in rules:
        check_rule(rule, wanted, sides)
    beyond, unchecked = check_limits(checked, rules)
    failing, incomplete, only_new = _lost(base, others, shared, wanted)
    if not any(change.base or change.new for change in drafts) and not failing and not incomplete:
        raise UserError(f"nothing to compare: no cell of either side has {', '.join(wanted)}")
    p_values = {
        place: change.estimate.p
        for place, change in enumerate(drafts)
        if change.estimate and change.estimate.error is not None and not change.mismatches and not change.obstacle
    }
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    levels = dict(zip(p_values, holm_levels(list(p_values.values()), level / looks), strict=True))
    decided = [
        replace(
            change,
            p=adjusted.get(place),
            level=levels.get(place),
            verdict=_verdict(change, adjusted.get(place), level / looks),
        )
        for place, change in enumerate(drafts)
    ]
    return Comparison(
        base=base,
        level=level / looks,
        looks=looks,
        others=tuple(others),
        changes=tuple(_with_tails(decided, base, others, level / looks)),
        beyond_limits=beyond,
        unchecked=unchecked,
        newly_failing=failing,
        incomplete=incomplete,
        only_new=only_new,
    )


def _wanted(
    sides: Sequence[Side], metrics: Sequence[str], rules: Sequence[Rule]
) -> tuple[dict[str, Quantity], set[str]]:
    """The quantities to compare, and the names of those that must be reported even if no side knows them."""
    known = {name: quantity for side in sides for name, quantity in side.quantities.items()}
    for name in metrics:
        if name not in known:
            raise UserError(not_one_of("--metric", name, known))
    if metrics:
        return {name: known[name] for name in dict.fromkeys(metrics)}, set(metrics)
    named = (rule.metric for rule in rules)  # a rule for a metric asks to compare it
    own = {name: known[name] for name in (*compared_by_default(), *named) if name in known}
    rest = {name: quantity for name, quantity in known.items() if quantity.compared == "exact" or name not in METRICS}
    return own | rest, set(own)


def _is_due(name: str, base: SideCell, new: SideCell, asked: Collection[str]) -> bool:
    """True if a side has the quantity, or if both should have it. Benchmarks don't have the metrics of runs."""
    known = name in base.samples or name in new.samples
    return known or (name in asked and name in METRICS and base.repeats == "seed")


def _nothing_in_common(base: Side, others: Sequence[Side]) -> str:
    def first(side: Side) -> str:
        return f"{side.name} has {shortened(next((cell.label for cell in side.cells.values()), 'no cells'))}"

    labels = {cell.label for cell in base.cells.values()}
    alike = any(cell.label in labels for side in others for cell in side.cells.values())
    why = "their cells differ in images, weights or settings" if alike else ", ".join(map(first, [base, *others]))
    return f"{base.name}: has no cell in common with {' or '.join(side.name for side in others)}: {why}"


def order_of(base: Side, side: Side) -> Order:
    """Whether the sides were measured in turn: the two files of a round follow each other, whichever came first.

    Only then the two files of a round had the same neighbours and clocks. If a side ran all its rounds first, a round's
    number says nothing about when the other side ran its round of that number.
    """
    common = [name for name in base.rounds if name in side.rounds]
    if not common:
        return "no pairs"
    if any(name not in each.written for each in (base, side) for name in common):
        return "unknown"
    spans = sorted(sorted((base.written[name], side.written[name])) for name in common)
    return "in turn" if all(before[1] <= after[0] for before, after in pairwise(spans)) else "not in turn"


def _draft(
    base_side: Side, side: Side, key: str, quantity: Quantity, rules: Sequence[Rule], looks: int, *, paired: bool
) -> Change:
    base, new = base_side.cells[key], side.cells[key]
    ours, theirs = new.samples.get(quantity.name, {}), base.samples.get(quantity.name, {})
    common = [sample for sample in theirs if sample in ours]
    paired = paired and bool(common) and base.repeats == "round" and quantity.compared == "ratio"
    if common and (quantity.compared == "difference" or quantity.by_signs or paired):
        ours, theirs = ({sample: some[sample] for sample in common} for some in (ours, theirs))
    fitting = [rule for rule in rules if rule.fits(quantity.name, base.label)]
    allowed = None
    if quantity.compared == "ratio":
        allowed = [rule.factor for rule in fitting if rule.factor is not None][-1]
    elif quantity.compared == "difference":
        allowed = [rule.points for rule in fitting if rule.points is not None][-1] / 100
    return Change(
        cell=base.label,
        quantity=quantity,
        base=theirs,
        new=ours,
        new_side=side.name,
        estimate=_estimate(base, new, quantity, paired=paired),
        allowed=allowed,
        verdict="unknown",
        mismatches=tuple(_mismatches(base, new, quantity)) if quantity.compared == "ratio" else (),
        looks=looks,
        paired=paired,
        obstacle=_obstacle(base_side, side, key) if quantity is SECONDS else "",
        alike=side.by == "run" and _alike(base.by_image.get(quantity.name, {}), new.by_image.get(quantity.name, {})),
    )


def _alike(base: Mapping[int, Sequence[float]], new: Mapping[int, Sequence[float]]) -> bool:
    """True if there are enough common seeds, and with each of them both sides have the same score for each image."""
    common = base.keys() & new.keys()
    return len(common) >= MIN_SAMPLES and all(base[seed] == new[seed] for seed in common)


def _obstacle(base: Side, side: Side, key: str) -> str:
    """Name the rounds with a single raw time, which can't be distinguished from the warm-up of its process."""
    single = [(each.name, each.cells[key]) for each in (base, side) if each.cells[key].single]
    found = " and ".join(f"{samples_text(cell, cell.single)} of {name}" for name, cell in single)
    return f"a single raw time in {found}; each needs at least two" if found else ""


def _with_tails(changes: Sequence[Change], base: Side, others: Sequence[Side], level: float) -> Iterator[Change]:
    """Add the tails that grew by more than the rules allow, and by more than the median did.

    They must also fail a test of no change at `level` over all tails together (Holm), or grow by the factor `GROSS`.
    """
    sides = {side.name: side for side in others}
    found: list[tuple[int, Tail]] = []
    for place, change in enumerate(changes):
        if change.quantity is not SECONDS or change.mismatches or change.obstacle or change.verdict == "worse":
            continue
        here, there = (side.cells.get(benchmark_key(change.cell)) for side in (sides[change.new_side], base))
        if here is None or there is None:
            continue
        for name in TAILS:
            estimate = _ratio_of(here.tails.get(name, {}), there.tails.get(name, {}), paired=change.paired)
            if estimate is not None:
                found.append((place, Tail(name=name, estimate=estimate)))
    adjusted = holm([tail.estimate.p for _, tail in found])
    grown: dict[int, list[Tail]] = {}
    for (place, tail), p in zip(found, adjusted, strict=True):
        median, allowed = changes[place].estimate, changes[place].allowed
        least = (allowed or 1.0) * max(1.0, median.value if median else 1.0)
        if tail.estimate.value >= least and (p < level or tail.estimate.value >= GROSS):
            grown.setdefault(place, []).append(tail)
    for place, change in enumerate(changes):
        yield replace(change, tails=tuple(grown.get(place, ())))


def _ratio_of(ours: Mapping[SampleName, float], theirs: Mapping[SampleName, float], *, paired: bool) -> Estimate | None:
    return ratio(ours, theirs) if paired else ratio_of_means(list(ours.values()), list(theirs.values()))


def _estimate(base: SideCell, new: SideCell, quantity: Quantity, *, paired: bool) -> Estimate | None:
    ours, theirs = new.samples.get(quantity.name, {}), base.samples.get(quantity.name, {})
    if not ours or not theirs or quantity.compared == "exact":
        return None
    if quantity.compared == "difference":
        here, there = new.by_image.get(quantity.name), base.by_image.get(quantity.name)
        if here and there and len(next(iter(here.values()))) == len(next(iter(there.values()))):
            return accuracy_difference(here, there)
        return difference(ours, theirs)
    if quantity.by_signs:
        return ratio_by_signs(ours, theirs)
    return _ratio_of(ours, theirs, paired=paired)


def _mismatches(base: SideCell, new: SideCell, quantity: Quantity) -> Iterator[Mismatch]:
    """Conditions that are not known to be equal on both sides; none if a side has no result."""
    if not base.done or not new.done:
        return
    for name in dict.fromkeys([*base.conditions, *new.conditions]):
        if name == MEMORY_METHOD and not quantity.in_bytes:
            continue
        there, here = ({cell.conditions.get(name, {}).get(sample, "") for sample in cell.done} for cell in (base, new))
        if there != here or len(there) > 1 or "" in there:
            yield Mismatch(condition=name, base=tuple(sorted(there)), new=tuple(sorted(here)))


def _verdict(change: Change, p: float | None, level: float) -> ChangeVerdict:
    if not change.base or not change.new:
        return "unknown"
    if change.quantity.compared == "exact":
        return _exact_verdict(change)
    if change.mismatches:
        return "not comparable"
    estimate, allowed = change.estimate, change.allowed
    if estimate is None or allowed is None:
        return "unknown"
    if change.obstacle or p is None or estimate.low is None or estimate.high is None:
        return "too few samples"
    if p < level and _counts(estimate, allowed):
        return _direction(change, estimate.value >= allowed)
    return "same" if change.shown_same else "inconclusive"


def _counts(estimate: Estimate, allowed: float) -> bool:
    """True if an estimate is at least as large as the smallest change that counts."""
    return not (1 / allowed if estimate.compared == "ratio" else -allowed) < estimate.value < allowed


def _exact_verdict(change: Change) -> ChangeVerdict:
    """The verdict on an exact counter. Any change counts.

    Common samples are compared one by one. A value of any other new sample must also occur on the base side.
    """
    common = change.base.keys() & change.new.keys()
    moved = {change.new[sample] > change.base[sample] for sample in common if change.new[sample] != change.base[sample]}
    there, here = set(change.base.values()), set(change.new.values())
    if not common and there != here:
        moved = {max(here) > max(there)}
    moved |= {value > max(there) for sample, value in change.new.items() if sample not in common and value not in there}
    if not moved:
        return "same"
    return "worse" if len(moved) == 2 else _direction(change, moved == {True})


def _direction(change: Change, more: bool) -> ChangeVerdict:
    return "worse" if more == (change.quantity.better == "lower") else "better"


def _lost(
    base: Side, others: Sequence[Side], shared: Sequence[tuple[Side, str]], wanted: Mapping[str, Quantity]
) -> tuple[CellTexts, CellTexts, CellTexts]:
    """Newly failing cells, other cells without a result on a side, and cells and samples that only new sides have."""
    failing: list[tuple[str, str]] = []
    incomplete: list[tuple[str, str]] = []
    only_new: list[tuple[str, str]] = []
    for side, key in shared:
        there, here = base.cells[key], side.cells[key]
        new = [lost for sample, lost in here.lost.items() if sample in there.done and lost.failed]
        old = [lost for lost in here.lost.values() if lost not in new]
        if new:
            failing.append((there.label, f"{side.name}: {new[0]}"))
        if old:
            incomplete.append((there.label, f"{side.name}: {old[0]}"))
        if there.lost:
            incomplete.append((there.label, f"{base.name}: {next(iter(there.lost.values()))}"))
        for name, samples in there.samples.items():
            known = here.samples.get(name, {})
            if name in wanted and known and (unknown := samples.keys() & here.done - known.keys()):
                what = f"{wanted[name].label} is unknown in {samples_text(there, unknown)}"
                incomplete.append((there.label, f"{side.name}: {what}"))
        if there.repeats == "round" and order_of(base, side) != "in turn":
            continue  # rounds that are not pairs are independent samples, so none is missing
        if missing := there.done - here.done - here.lost.keys():
            incomplete.append((there.label, f"{side.name} has no {samples_text(there, missing)}"))
        if more := here.done - there.done - there.lost.keys():
            only_new.append((f"{there.label}, {samples_text(there, more)}", side.name))
    for side in others:
        incomplete += [
            (cell.label, f"{side.name} has no such cell") for key, cell in base.cells.items() if key not in side.cells
        ]
        for cell in (cell for key, cell in side.cells.items() if key not in base.cells):
            only_new.append((cell.label, side.name))
            incomplete += [(cell.label, f"{side.name}: {lost}") for lost in list(cell.lost.values())[:1]]
    return tuple(failing), tuple(dict.fromkeys(incomplete)), tuple(only_new)
