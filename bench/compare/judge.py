"""What changed from one side to the other: a verdict for every cell and quantity, with one error rate for all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, model_validator

from bench.compare.sides import COMPARED, QUANTITIES, Entry, Quantity, Sample, Side
from bench.stats import LEVEL, Estimate, accuracy_difference, difference, holm, ratio, ratio_of_means
from tl.errors import ConfigError, UserError, not_one_of
from tl.strict import Strict

Verdict = Literal["worse", "better", "same", "inconclusive", "too few samples", "not comparable", "unknown"]


class Rule(Strict):
    """How much of a change counts. Of several that fit a cell and a metric, the last that says something holds."""

    metric: str = Field("*", description="a metric's name, or a pattern with * and ?")
    cells: str = Field("*", description="a cell's label, or a pattern")
    factor: float | None = Field(None, gt=1, description="of times and memory: a smaller one doesn't count")
    points: float | None = Field(None, gt=0, description="of accuracies, percentage points")
    max: float | None = Field(None, description="most that the new side may have, in the metric's unit")
    min: float | None = Field(None, description="least that it may have")

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        given = {"factor": self.factor, "points": self.points, "max": self.max, "min": self.min}
        if all(value is None for value in given.values()):
            raise ConfigError("a rule needs factor, points, max or min")
        for name, value in given.items():
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{name}={value}: must be finite")
        return self

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.model_dump().items() if value not in (None, "*"))


DEFAULTS = (Rule(factor=1.05), Rule(points=2.0))
"""For all metrics of the kind that they fit. Exact counters have none: any change counts."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One quantity of one cell on both sides."""

    cell: str
    quantity: Quantity
    base: dict[Sample, float]
    new: dict[Sample, float]
    new_side: str
    estimate: Estimate | None
    """New over base, or new minus base; None of exact counters, and where nothing can be estimated."""
    allowed: float | None
    """Factor, or share: a smaller change doesn't count. None of exact counters."""
    verdict: Verdict
    p: float | None = None
    """That there is no difference, adjusted (Holm) over the whole comparison; None where there was no test."""
    differs: tuple[str, ...] = ()
    """Conditions that forbid a comparison, with what they are on either side."""
    limits: tuple[str, ...] = ()
    """Absolute limits that the new side breaks."""

    @property
    def no_worse(self) -> bool:
        """Shown not to be worse by as much as counts: the 95% interval's bad end lies within it."""
        if self.estimate is None or self.allowed is None or self.estimate.low is None or self.estimate.high is None:
            return False
        ratio_like = self.estimate.scale == "ratio"
        if self.quantity.better == "lower":
            return self.estimate.high < self.allowed
        return self.estimate.low > (1 / self.allowed if ratio_like else -self.allowed)

    @property
    def is_open(self) -> bool:
        """More samples could decide it: neither a verdict, nor shown to be no worse."""
        return self.verdict in ("inconclusive", "too few samples") and not self.no_worse

    @property
    def typical(self) -> tuple[float, float]:
        """Of base and new: geometric means of ratios, means of the rest; NaN where a side has no samples."""
        return _typical(self.base, self.quantity), _typical(self.new, self.quantity)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of base against all other sides."""

    base: Side
    others: tuple[Side, ...]
    changes: tuple[Change, ...]
    newly_failing: tuple[tuple[str, str], ...]
    """Cells with a sample that base has and the other side fails at → what became of it there."""
    incomplete: tuple[tuple[str, str], ...]
    """Cells without results on a side, but for those newly failing, and cells that only base has."""
    only_new: tuple[tuple[str, str], ...]
    """Cells that only another side has → its name."""
    level: float
    """Error rate of all changes together."""

    def having(self, *verdicts: Verdict) -> list[Change]:
        """Changes with one of these verdicts."""
        return [change for change in self.changes if change.verdict in verdicts]


def compare(
    sides: Sequence[Side], *, metrics: Sequence[str] = (), rules: Sequence[Rule] = (), level: float = LEVEL
) -> Comparison:
    """Hold every side against the first.

    A change counts, as better or worse, when its estimate is at least as large as the rules allow, and a test that
    there is none fails at `level` over the whole comparison (Holm 1979). `same` is shown, not assumed: the 95% interval
    lies within what is allowed. Times and memory of runs are compared as independent samples (Welch 1947, on
    logarithms); of rounds with the same names on both sides as pairs; accuracies seed by seed over the same images.

    Args:
        sides: see `read_sides`.
        metrics: names to compare; by default `COMPARED`, those that a rule names, all exact counters, and all of
            benchmarks.
        rules: beyond `DEFAULTS`.
        level: error rate of all changes together.

    Raises `UserError` where the sides have nothing in common, and for rules and metrics that fit nothing.
    """
    base, *others = sides
    wanted = _wanted(sides, metrics, rules)
    shared = [(side, key) for side in others for key in base.entries if key in side.entries]
    if not shared:
        raise UserError(_nothing_in_common(base, others))
    _check(rules, [base.entries[key].label for _, key in shared], wanted)
    drafts = [
        _draft(base.entries[key], side.entries[key], quantity, side, [*DEFAULTS, *rules])
        for side, key in shared
        for name, quantity in wanted.items()
        if name in base.entries[key].samples or name in side.entries[key].samples
    ]
    p_values = {
        place: change.estimate.p
        for place, change in enumerate(drafts)
        if change.estimate and change.estimate.error is not None and not change.differs
    }
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    failing, incomplete = _lost(base, others, shared)
    if not drafts and not failing and not incomplete:
        raise UserError(f"nothing to compare: no cell has {', '.join(wanted)} on either side")
    return Comparison(
        base=base,
        level=level,
        others=tuple(others),
        changes=tuple(
            replace(change, p=adjusted.get(place), verdict=_verdict(change, adjusted.get(place), level))
            for place, change in enumerate(drafts)
        ),
        newly_failing=tuple(failing),
        incomplete=tuple(incomplete),
        only_new=tuple(
            (entry.label, side.name)
            for side in others
            for key, entry in side.entries.items()
            if key not in base.entries
        ),
    )


def _wanted(sides: Sequence[Side], metrics: Sequence[str], rules: Sequence[Rule]) -> dict[str, Quantity]:
    there = {name: quantity for side in sides for name, quantity in side.quantities.items()}
    for name in metrics:
        if name not in there:
            raise UserError(not_one_of("--metric", name, there))
    if metrics:
        return {name: there[name] for name in dict.fromkeys(metrics)}
    named = (rule.metric for rule in rules)  # whoever has a rule for a metric wants it held
    own = {name: there[name] for name in (*COMPARED, *named) if name in there}
    return own | {name: q for name, q in there.items() if q.kind == "exact" or name not in QUANTITIES}


def _nothing_in_common(base: Side, others: Sequence[Side]) -> str:
    def first(side: Side) -> str:
        return f"{side.name} has {next((entry.label for entry in side.entries.values()), 'no cells')}"

    labels = {entry.label for entry in base.entries.values()}
    alike = any(entry.label in labels for side in others for entry in side.entries.values())
    why = "their cells differ in images, weights or settings" if alike else ", ".join(map(first, [base, *others]))
    return f"{base.name}: has no cell in common with {' or '.join(side.name for side in others)}: {why}"


def _check(rules: Sequence[Rule], labels: Sequence[str], wanted: Mapping[str, Quantity]) -> None:
    """Raises `ConfigError` for a rule that fits nothing: it would be taken for one that holds."""
    for rule in rules:
        named = [quantity for name, quantity in wanted.items() if fnmatchcase(name, rule.metric)]
        if not named:
            raise ConfigError(f"rule {rule}: {not_one_of('metric', rule.metric, wanted)}")
        if not any(fnmatchcase(label, rule.cells) for label in labels):
            raise ConfigError(f"rule {rule}: no cell fits cells={rule.cells!r}; there is {labels[0]!r}, for one")
        for kind, said in (("ratio", rule.factor), ("difference", rule.points)):
            if said is not None and all(quantity.kind != kind for quantity in named):
                what = "times and memory have a factor, accuracies have points, exact counters have neither"
                raise ConfigError(f"rule {rule}: {named[0].name} is none of that kind: {what}")


def _draft(base: Entry, new: Entry, quantity: Quantity, side: Side, rules: Sequence[Rule]) -> Change:
    ours, theirs = new.samples.get(quantity.name, {}), base.samples.get(quantity.name, {})
    fitting = [
        rule for rule in rules if fnmatchcase(quantity.name, rule.metric) and fnmatchcase(base.label, rule.cells)
    ]
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
        differs=tuple(_differences(base, new)) if quantity.kind == "ratio" else (),
        limits=tuple(_broken(ours, quantity, fitting)),
    )


def _estimate(base: Entry, new: Entry, quantity: Quantity) -> Estimate | None:
    ours, theirs = new.samples.get(quantity.name, {}), base.samples.get(quantity.name, {})
    if not ours or not theirs or quantity.kind == "exact":
        return None
    if quantity.kind == "difference":
        here, there = new.right.get(quantity.name), base.right.get(quantity.name)
        if here and there and len(next(iter(here.values()))) == len(next(iter(there.values()))):
            return accuracy_difference(here, there)
        return difference(ours, theirs)
    if ours.keys() == theirs.keys() and all(isinstance(sample, str) for sample in ours):
        return ratio(ours, theirs)
    return ratio_of_means(list(ours.values()), list(theirs.values()))


def _differences(base: Entry, new: Entry) -> Iterator[str]:
    """Conditions that are not the same on both sides; nothing where a side has no result."""
    if base.conditions and new.conditions:
        for name in dict.fromkeys([*base.conditions, *new.conditions]):
            there, here = (" and ".join(sorted(e.conditions.get(name, {"unknown"}))) for e in (base, new))
            if there != here:
                yield f"{name}: {there} → {here}"


def _broken(samples: Mapping[Sample, float], quantity: Quantity, rules: Sequence[Rule]) -> Iterator[str]:
    if not samples:
        return
    value = _typical(samples, quantity)
    most = [rule.max for rule in rules if rule.max is not None][-1:]
    least = [rule.min for rule in rules if rule.min is not None][-1:]
    if most and value > most[0]:
        yield f"{quantity.show(value)} is above max {quantity.show(most[0])}"
    if least and value < least[0]:
        yield f"{quantity.show(value)} is below min {quantity.show(least[0])}"


def _typical(samples: Mapping[Sample, float], quantity: Quantity) -> float:
    values = list(samples.values())
    if not values:
        return math.nan
    return (
        statistics.geometric_mean(values) if quantity.kind == "ratio" and min(values) > 0 else statistics.fmean(values)
    )


def _verdict(change: Change, p: float | None, level: float) -> Verdict:
    if not change.base or not change.new:
        return "unknown"
    if change.quantity.kind == "exact":
        there, here = set(change.base.values()), set(change.new.values())
        if there == here:
            return "same"
        return _direction(change, max(here) > max(there) or (max(here) == max(there) and min(here) > min(there)))
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
    return "same" if low < estimate.low and estimate.high < high else "inconclusive"


def _direction(change: Change, more: bool) -> Verdict:
    return "worse" if more == (change.quantity.better == "lower") else "better"


def _lost(
    base: Side, others: Sequence[Side], shared: Sequence[tuple[Side, str]]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Cells that newly fail, and those without a result for another reason."""
    failing, incomplete = [], []
    for side, key in shared:
        there, here = base.entries[key], side.entries[key]
        new = [words for sample, words in here.lost.items() if sample not in there.lost and _failed(words)]
        old = [words for sample, words in here.lost.items() if words not in new]
        if new:
            failing.append((there.label, f"{side.name}: {new[0]}"))
        elif old:
            incomplete.append((there.label, f"{side.name}: {old[0]}"))
        if there.lost:
            incomplete.append((there.label, f"{base.name}: {next(iter(there.lost.values()))}"))
    for side in others:
        incomplete += [
            (entry.label, f"{side.name}: has no such cell")
            for key, entry in base.entries.items()
            if key not in side.entries
        ]
    return failing, list(dict.fromkeys(incomplete))


def _failed(words: str) -> bool:
    return words.partition(":")[0] in ("failed", "oom", "timeout")
