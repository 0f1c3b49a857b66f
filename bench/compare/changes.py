"""What changed from one side to the other: a verdict for every cell and quantity, with one error rate for all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, model_validator

from bench.analysis.metrics import METRICS
from bench.analysis.stats import (
    LEVEL,
    MIN_SAMPLES,
    Estimate,
    accuracy_difference,
    difference,
    holm,
    ratio,
    ratio_of_means,
)
from bench.compare.sides import (
    MEMORY_METHOD,
    SECONDS,
    Entry,
    Figure,
    Quantity,
    Repeats,
    Sample,
    Side,
    compared_by_default,
    quantities,
)
from tl.errors import ConfigError, UserError, not_one_of
from tl.strict import Strict

Verdict = Literal["worse", "better", "same", "inconclusive", "too few samples", "not comparable", "unknown"]


class Rule(Strict):
    """How much of a change counts. Of several that fit a cell and a metric, the last that says something holds."""

    metric: str = Field(
        "*", description="a metric's name, which is compared then, or a pattern with * and ? of those that are"
    )
    cells: str = Field("*", description="a cell's label, or a pattern")
    factor: float | None = Field(None, gt=1, description="of times and memory: a smaller one doesn't count")
    points: float | None = Field(None, gt=0, description="of shares such as accuracies, percentage points")
    max: float | None = Field(None, description="most that the new side may have on average, in the metric's unit")
    min: float | None = Field(None, description="least that it may have on average; each of a counter's values")

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        given = {"factor": self.factor, "points": self.points, "max": self.max, "min": self.min}
        if all(value is None for value in given.values()):
            raise ConfigError("a rule needs factor, points, max or min")
        for name, value in given.items():
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{name}={value}: must be finite")
        return self

    def fits(self, metric: str, cell: str) -> bool:
        """Whether it says something of that metric in the cell of that label."""
        return _like(metric, self.metric) and _like(cell, self.cells)

    def is_elsewhere(self, kinds: Collection[Repeats], metrics: Collection[str]) -> bool:
        """Whether its metric is of runs alone where there are none, of benchmarks alone, or known and not compared."""
        if metrics and not any(_like(name, self.metric) for name in metrics):
            return any(_like(name, self.metric) for name in (*quantities(), SECONDS.name))
        if self.is_of_runs:
            return "seed" not in kinds
        return self.metric == SECONDS.name and "round" not in kinds

    @property
    def is_of_runs(self) -> bool:
        """Whether no benchmark can have its metric: exact counters have the same names everywhere."""
        of_runs = quantities()
        return self.metric in of_runs and of_runs[self.metric].kind != "exact"

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.model_dump().items() if value not in (None, "*"))


def _like(text: str, pattern: str) -> bool:
    """As in a shell, but for brackets, which stand for themselves: pytest puts them into names."""
    return text == pattern or fnmatchcase(text, pattern.replace("[", "[[]"))


DEFAULTS = (Rule(factor=1.05), Rule(points=2.0))
"""For all metrics of the kind that they fit. Exact counters have none: any change counts."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A condition that is not known to be one and the same on both sides; `str(difference)` is for people."""

    condition: str
    """Such as `cpu`, or `SOURCE`."""
    base: tuple[str, ...]
    """Its values there, in order; an empty one is unknown."""
    new: tuple[str, ...]

    def __str__(self) -> str:
        base, new = (" and ".join(sorted(value or "unknown" for value in values)) for values in (self.base, self.new))
        return f"{self.condition}: {base} → {new}"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One quantity of one cell on both sides."""

    cell: str
    quantity: Quantity
    base: dict[Sample, Figure]
    """Sample → figure: of those that the estimate rests on, where both sides have some in common that make pairs."""
    new: dict[Sample, Figure]
    new_side: str
    estimate: Estimate | None
    """New over base, or new minus base; None of exact counters, and where nothing can be estimated."""
    allowed: float | None
    """Factor, or share: a smaller change doesn't count. None of exact counters."""
    verdict: Verdict
    p: float | None = None
    """That there is no difference, adjusted (Holm) over the whole comparison; None where there was no test."""
    differs: tuple[Difference, ...] = ()
    """Conditions that forbid a comparison."""
    alike: bool = False
    """Of accuracies of one cell in two runs: with each seed both were right on the very same images. Of two regimes or
    backbones that would not show that they are equally good."""
    looks: int = 1
    """How many times such a comparison may be made before it is over."""

    @property
    def no_worse(self) -> bool:
        """Shown not to be worse by as much as counts: with one look, the 95% interval's bad end lies within it."""
        return self._within(worse_is_more=self.quantity.better == "lower")

    @property
    def shown_same(self) -> bool:
        """Shown to be neither worse nor better by as much as counts."""
        return self.alike or (self._within(worse_is_more=True) and self._within(worse_is_more=False))

    def _within(self, *, worse_is_more: bool) -> bool:
        """Shown to lie on this side of what counts, above or below, with one error rate for all looks."""
        if self.estimate is None or self.allowed is None:
            return False
        if worse_is_more:
            p = self.estimate.p_not_below(self.allowed)
        else:
            p = self.estimate.p_not_above(1 / self.allowed if self.estimate.scale == "ratio" else -self.allowed)
        return p < LEVEL / 2 / self.looks

    @property
    def is_open(self) -> bool:
        """More samples could decide it: neither a verdict, nor shown to be no worse."""
        return self.verdict in ("inconclusive", "too few samples") and not self.no_worse

    @property
    def typical(self) -> tuple[float, float]:
        """Of base and new: geometric means of ratios, means of differences; NaN where a side has no samples."""
        return typical(self.base.values(), self.quantity), typical(self.new.values(), self.quantity)


Told = tuple[tuple[str, str], ...]
"""Cells, each with what is to be said of it."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of base against all other sides."""

    base: Side
    others: tuple[Side, ...]
    changes: tuple[Change, ...]
    beyond_limits: Told
    """Absolute limits that another side breaks."""
    unchecked: Told
    """Absolute limits on what another side doesn't know."""
    newly_failing: Told
    """Cells with a sample that base has and the other side fails at → what became of it there."""
    incomplete: Told
    """Cells without results on a side, but for those newly failing; cells and samples that only base has."""
    only_new: Told
    """Cells and samples that only another side has → its name."""
    level: float
    """Error rate of all changes together, at this look."""
    looks: int = 1
    """How many there may be."""

    def having(self, *verdicts: Verdict) -> list[Change]:
        """Changes with one of these verdicts."""
        return [change for change in self.changes if change.verdict in verdicts]


def compare(
    sides: Sequence[Side],
    *,
    metrics: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    level: float = LEVEL,
    looks: int = 1,
) -> Comparison:
    """Hold every side against the first.

    A change counts, as better or worse, when its estimate is at least as large as the rules allow, and a test that
    there is none fails at `level` over the whole comparison (Holm 1979). `same` is shown, not assumed: the 95% interval
    lies within what is allowed, or both runs were right on the very same images with each of three seeds or more.
    Times and memory of runs are compared as independent samples (Welch 1947, on logarithms); of rounds that have names
    in common as pairs; accuracies seed by seed over the same images; other shares seed by seed (Student's t), which
    says nothing of other images; exact counters sample by sample.

    Args:
        sides: see `read_sides`.
        metrics: names to compare; by default those that say so (`Metric.by_default`), those that a rule names, all
            exact counters, and all of benchmarks.
        rules: beyond `DEFAULTS`.
        level: error rate of all changes together, over all looks.
        looks: how many times the same comparison may be made, with more samples each time; each has its share of the
            error rates (Bonferroni).

    Raises `UserError` where the sides have nothing in common, and for rules and metrics that fit nothing.
    """
    base, *others = sides
    wanted, asked = _wanted(sides, metrics, rules)
    shared = [(side, key) for side in others for key in base.entries if key in side.entries]
    if not shared:
        raise UserError(_nothing_in_common(base, others))
    drafts = [
        _draft(base.entries[key], side.entries[key], quantity, side, [*DEFAULTS, *rules], looks)
        for side, key in shared
        for name, quantity in wanted.items()
        if _is_due(name, base.entries[key], side.entries[key], asked)
    ]
    kinds = {(entry.repeats, name) for side in sides for entry in side.entries.values() for name in entry.samples}
    held = [
        (side, entry, quantity, base.entries.get(key))
        for side in others
        for key, entry in side.entries.items()
        for quantity in wanted.values()
        if (entry.repeats, quantity.name) in kinds
    ]
    for name in metrics:
        if not any(change.quantity.name == name and (change.base or change.new) for change in drafts):
            raise UserError(f"nothing to compare: no cell has {name} on either side")
    for rule in rules:
        _check(rule, wanted, sides)
    beyond, unchecked = _limits(held, rules)
    failing, incomplete, only_new = _lost(base, others, shared, wanted)
    if not any(change.base or change.new for change in drafts) and not failing and not incomplete:
        raise UserError(f"nothing to compare: no cell has {', '.join(wanted)} on either side")
    p_values = {
        place: change.estimate.p
        for place, change in enumerate(drafts)
        if change.estimate and change.estimate.error is not None and not change.differs
    }
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return Comparison(
        base=base,
        level=level / looks,
        looks=looks,
        others=tuple(others),
        changes=tuple(
            replace(change, p=adjusted.get(place), verdict=_verdict(change, adjusted.get(place), level / looks))
            for place, change in enumerate(drafts)
        ),
        beyond_limits=beyond,
        unchecked=unchecked,
        newly_failing=failing,
        incomplete=incomplete,
        only_new=only_new,
    )


def _wanted(
    sides: Sequence[Side], metrics: Sequence[str], rules: Sequence[Rule]
) -> tuple[dict[str, Quantity], set[str]]:
    """What is compared, and the names of what must be told of where no side knows it."""
    there = {name: quantity for side in sides for name, quantity in side.quantities.items()}
    for name in metrics:
        if name not in there:
            raise UserError(not_one_of("--metric", name, there))
    if metrics:
        return {name: there[name] for name in dict.fromkeys(metrics)}, set(metrics)
    named = (rule.metric for rule in rules)  # whoever has a rule for a metric wants it held
    own = {name: there[name] for name in (*compared_by_default(), *named) if name in there}
    rest = {name: quantity for name, quantity in there.items() if quantity.kind == "exact" or name not in METRICS}
    return own | rest, set(own)


def _is_due(name: str, base: Entry, new: Entry, asked: Collection[str]) -> bool:
    """Whether a side knows it, or both should: benchmarks have no metrics of runs."""
    known = name in base.samples or name in new.samples
    return known or (name in asked and name in METRICS and base.repeats == "seed")


def _nothing_in_common(base: Side, others: Sequence[Side]) -> str:
    def first(side: Side) -> str:
        return f"{side.name} has {next((entry.label for entry in side.entries.values()), 'no cells')}"

    labels = {entry.label for entry in base.entries.values()}
    alike = any(entry.label in labels for side in others for entry in side.entries.values())
    why = "their cells differ in images, weights or settings" if alike else ", ".join(map(first, [base, *others]))
    return f"{base.name}: has no cell in common with {' or '.join(side.name for side in others)}: {why}"


Held = tuple[Side, Entry, Quantity, Entry | None]
"""A cell of a new side, what is measured of such cells, and the cell of base."""


def _check(rule: Rule, wanted: Mapping[str, Quantity], sides: Sequence[Side]) -> None:
    """Raises `ConfigError` for a rule that fits nothing: it would be taken for one that holds.

    A cell without a result fits: that it has none is told in its place.
    """
    if not any(_like(name, rule.metric) for name in wanted):
        raise ConfigError(f"rule {rule}: {not_one_of('metric', rule.metric, wanted)}")
    entries = [entry for side in sides for entry in side.entries.values()]
    fitting = [entry for entry in entries if _like(entry.label, rule.cells)]
    if not fitting:
        raise ConfigError(f"rule {rule}: no cell fits cells={rule.cells!r}; there is {entries[0].label!r}, for one")
    known = [q for q in wanted.values() if _like(q.name, rule.metric) and any(q.name in e.samples for e in fitting)]
    if not known:
        if any(entry.lost for entry in fitting):
            return
        raise ConfigError(f"rule {rule}: no cell that fits has that metric")
    for kind, said in (("ratio", rule.factor), ("difference", rule.points)):
        if said is not None and not any(quantity.kind == kind for quantity in known):
            what = "times and memory have a factor, shares such as accuracies have points, exact counters have neither"
            raise ConfigError(f"rule {rule}: {known[0].name} is none of that kind: {what}")
    limits = rule.max is not None or rule.min is not None
    if not limits and not any(_like(entry.label, rule.cells) for entry in sides[0].entries.values()):
        raise ConfigError(f"rule {rule}: no cell that fits is in {sides[0].name}: nothing to compare with")


def _limits(held: Sequence[Held], rules: Sequence[Rule]) -> tuple[Told, Told]:
    """Absolute limits of every cell of the new sides: those that are broken, and those that can't be checked.

    Held against them are means; of counters, each value. A sample that base doesn't know either is no gap.
    """
    broken: list[tuple[str, str]] = []
    unchecked: list[tuple[str, str]] = []
    limits = [rule for rule in rules if rule.max is not None or rule.min is not None]
    for side, entry, quantity, before in held:
        fitting = [rule for rule in limits if rule.fits(quantity.name, entry.label)]
        if not fitting:
            continue
        samples = entry.samples.get(quantity.name, {})
        gaps = entry.done - samples.keys()
        if samples and before:
            gaps &= before.samples.get(quantity.name, {}).keys() | (gaps - before.done)
        if gaps or not samples:
            what = f" in {_samples(entry, gaps)}" if gaps and samples else ""
            words = f"{side.name}: {quantity.label} is not known{what}, so its limit isn't checked"
            unchecked.append((entry.label, words))
        if not samples:
            continue
        exact = quantity.kind == "exact"
        middle = typical(samples.values(), quantity)
        high, low = (max(samples.values()), min(samples.values())) if exact else (middle, middle)
        most = [rule.max for rule in fitting if rule.max is not None][-1:]
        least = [rule.min for rule in fitting if rule.min is not None][-1:]
        told = [f"{quantity.show(high)} is above max {quantity.show(limit)}" for limit in most if high > limit]
        told += [f"{quantity.show(low)} is below min {quantity.show(limit)}" for limit in least if low < limit]
        broken += [(entry.label, f"{quantity.label}: {words}") for words in told]
    return tuple(broken), tuple(unchecked)


def _draft(base: Entry, new: Entry, quantity: Quantity, side: Side, rules: Sequence[Rule], looks: int) -> Change:
    ours, theirs = new.samples.get(quantity.name, {}), base.samples.get(quantity.name, {})
    common = [sample for sample in theirs if sample in ours]
    if common and (quantity.kind == "difference" or (base.repeats == "round" and quantity.kind == "ratio")):
        ours, theirs = ({sample: some[sample] for sample in common} for some in (ours, theirs))
    fitting = [rule for rule in rules if rule.fits(quantity.name, base.label)]
    allowed = None
    if quantity.kind == "ratio":
        allowed = [rule.factor for rule in fitting if rule.factor is not None][-1]
    elif quantity.kind == "difference":
        allowed = [rule.points for rule in fitting if rule.points is not None][-1] / 100
    return Change(
        cell=base.label,
        quantity=quantity,
        base=theirs,
        new=ours,
        new_side=side.name,
        estimate=_estimate(base, new, quantity),
        allowed=allowed,
        verdict="unknown",
        differs=tuple(_differences(base, new, quantity)) if quantity.kind == "ratio" else (),
        looks=looks,
        alike=side.by == "run" and _alike(base.right.get(quantity.name, {}), new.right.get(quantity.name, {})),
    )


def _alike(base: Mapping[int, Sequence[bool]], new: Mapping[int, Sequence[bool]]) -> bool:
    """Enough seeds in common, and the same images right with each of them."""
    common = base.keys() & new.keys()
    return len(common) >= MIN_SAMPLES and all(base[seed] == new[seed] for seed in common)


def _estimate(base: Entry, new: Entry, quantity: Quantity) -> Estimate | None:
    ours, theirs = new.samples.get(quantity.name, {}), base.samples.get(quantity.name, {})
    if not ours or not theirs or quantity.kind == "exact":
        return None
    if quantity.kind == "difference":
        here, there = new.right.get(quantity.name), base.right.get(quantity.name)
        if here and there and len(next(iter(here.values()))) == len(next(iter(there.values()))):
            return accuracy_difference(here, there)
        return difference(ours, theirs)
    if base.repeats == "round" and ours.keys() & theirs.keys():
        return ratio(ours, theirs)
    return ratio_of_means(list(ours.values()), list(theirs.values()))


def _differences(base: Entry, new: Entry, quantity: Quantity) -> Iterator[Difference]:
    """Conditions that are not known to be one and the same on both sides; nothing where a side has no result."""
    if not base.done or not new.done:
        return
    for name in dict.fromkeys([*base.conditions, *new.conditions]):
        if name == MEMORY_METHOD and not quantity.in_bytes:
            continue
        there, here = (
            {entry.conditions.get(name, {}).get(sample, "") for sample in entry.done} for entry in (base, new)
        )
        if there != here or len(there) > 1 or "" in there:
            yield Difference(condition=name, base=tuple(sorted(there)), new=tuple(sorted(here)))


def typical(values: Collection[Figure], quantity: Quantity) -> float:
    """Geometric mean of times and memory, mean of shares; of counters the largest. NaN without values."""
    if not values:
        return math.nan
    if quantity.kind == "exact":
        return max(values)
    return (
        statistics.geometric_mean(values) if quantity.kind == "ratio" and min(values) > 0 else statistics.fmean(values)
    )


def _verdict(change: Change, p: float | None, level: float) -> Verdict:
    if not change.base or not change.new:
        return "unknown"
    if change.quantity.kind == "exact":
        return _exact_verdict(change)
    if change.differs:
        return "not comparable"
    estimate, allowed = change.estimate, change.allowed
    if estimate is None or allowed is None:
        return "unknown"
    if p is None or estimate.low is None or estimate.high is None:
        return "too few samples"
    low, high = (1 / allowed, allowed) if estimate.scale == "ratio" else (-allowed, allowed)
    if p < level and not low < estimate.value < high:
        return _direction(change, estimate.value >= high)
    return "same" if change.shown_same else "inconclusive"


def _exact_verdict(change: Change) -> Verdict:
    """Sample by sample where the sides have some in common, and by all values that there are; any change counts."""
    common = change.base.keys() & change.new.keys()
    moved = {change.new[sample] > change.base[sample] for sample in common if change.new[sample] != change.base[sample]}
    there, here = set(change.base.values()), set(change.new.values())
    if not common and there != here:
        moved = {max(here) > max(there)}
    moved |= {value > max(there) for sample, value in change.new.items() if sample not in common and value not in there}
    if not moved:
        return "same"
    return "worse" if len(moved) == 2 else _direction(change, moved == {True})


def _direction(change: Change, more: bool) -> Verdict:
    return "worse" if more == (change.quantity.better == "lower") else "better"


def _lost(
    base: Side, others: Sequence[Side], shared: Sequence[tuple[Side, str]], wanted: Mapping[str, Quantity]
) -> tuple[Told, Told, Told]:
    """Cells that newly fail, those without a result on a side for another reason, and what only others have."""
    failing: list[tuple[str, str]] = []
    incomplete: list[tuple[str, str]] = []
    only_new: list[tuple[str, str]] = []
    for side, key in shared:
        there, here = base.entries[key], side.entries[key]
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
                what = f"{wanted[name].label} is unknown in {_samples(there, unknown)}"
                incomplete.append((there.label, f"{side.name}: {what}"))
        if there.repeats == "round" and not there.done & here.done:
            continue  # rounds with names of their own are no pairs, and none is missing
        if missing := there.done - here.done - here.lost.keys():
            incomplete.append((there.label, f"{side.name}: has no {_samples(there, missing)}"))
        if more := here.done - there.done - there.lost.keys():
            only_new.append((f"{there.label}, {_samples(there, more)}", side.name))
    for side in others:
        incomplete += [
            (entry.label, f"{side.name}: has no such cell")
            for key, entry in base.entries.items()
            if key not in side.entries
        ]
        for entry in (entry for key, entry in side.entries.items() if key not in base.entries):
            only_new.append((entry.label, side.name))
            incomplete += [(entry.label, f"{side.name}: {lost}") for lost in list(entry.lost.values())[:1]]
    return tuple(failing), tuple(dict.fromkeys(incomplete)), tuple(only_new)


def _samples(entry: Entry, samples: Collection[Sample]) -> str:
    names = sorted(map(str, samples), key=lambda name: (len(name), name))
    return f"{entry.repeats}{'s' if len(names) > 1 else ''} {', '.join(names)}"
