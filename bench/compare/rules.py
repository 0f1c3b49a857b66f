"""Rules: how large a change must be to count, and limits that the new side must keep."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from pydantic import Field, model_validator

from bench.compare.sides import SECONDS, Quantity, Repeats, SampleName, Side, SideCell, Value, quantities
from tl.errors import ConfigError, not_one_of
from tl.strict import Strict


class Rule(Strict):
    """How large a change must be to count, or a limit. Of several rules that fit, the last one with a value applies."""

    metric: str = Field(
        "*", description="a metric, which is then compared, or a pattern with * and ? for compared metrics"
    )
    cells: str = Field("*", description="a cell's label, or a pattern")
    factor: float | None = Field(None, gt=1, description="for times and memory: a smaller change doesn't count")
    points: float | None = Field(None, gt=0, description="for shares: a smaller change, in points, doesn't count")
    max: float | None = Field(None, ge=0, description="largest allowed mean of the new side, in the metric's unit")
    min: float | None = Field(
        None, ge=0, description="smallest allowed mean; for counters, max and min hold for each value"
    )

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        given = {"factor": self.factor, "points": self.points, "max": self.max, "min": self.min}
        if all(value is None for value in given.values()):
            raise ConfigError("a rule needs factor, points, max or min")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ConfigError(f"min={self.min:g}, max={self.max:g}: no value is at least min and at most max")
        return self

    def fits(self, metric: str, cell: str) -> bool:
        """True if the rule applies to that metric of the cell with that label."""
        return matches(metric, self.metric) and matches(cell, self.cells)

    def is_elsewhere(self, repeats: Collection[Repeats], metrics: Collection[str]) -> bool:
        """True if the rule can't apply here: its metric is only for runs or only for benchmarks, or is not compared."""
        if metrics and not any(matches(name, self.metric) for name in metrics):
            return any(matches(name, self.metric) for name in (*quantities(), SECONDS.name))
        if self.is_of_runs:
            return "seed" not in repeats
        return self.metric == SECONDS.name and "round" not in repeats

    @property
    def is_of_runs(self) -> bool:
        """True if only runs have its metric. Benchmarks can have exact counters of the same names."""
        of_runs = quantities()
        return self.metric in of_runs and of_runs[self.metric].compared != "exact"

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.model_dump().items() if value not in (None, "*"))


def matches(text: str, pattern: str) -> bool:
    """Match a pattern as a shell does, except that brackets are literal, since pytest puts them into names."""
    return text == pattern or fnmatchcase(text, pattern.replace("[", "[[]"))


DEFAULTS = (Rule(factor=1.05), Rule(points=2.0))
"""Default rules for ratios and for differences. Exact counters have none: any change of them counts."""


CellTexts = tuple[tuple[str, str], ...]
"""Pairs of a cell's label and a sentence about it."""
CheckedCell = tuple[Side, SideCell, Quantity, SideCell | None]
"""A new side, one of its cells, a quantity, and the same cell of the base side, if it has one."""


def check_rule(rule: Rule, wanted: Mapping[str, Quantity], sides: Sequence[Side]) -> None:
    """Raise `ConfigError` for a rule that fits nothing, since the user would believe that it applies.

    A rule may fit a cell without a result; the missing result is reported elsewhere.
    """
    if not any(matches(name, rule.metric) for name in wanted):
        raise ConfigError(f"rule {rule}: {not_one_of('metric', rule.metric, wanted)}")
    cells = [cell for side in sides for cell in side.cells.values()]
    fitting = [cell for cell in cells if matches(cell.label, rule.cells)]
    if not fitting:
        raise ConfigError(f"rule {rule}: no cell fits cells={rule.cells!r}; an existing cell is {cells[0].label!r}")
    known = [q for q in wanted.values() if matches(q.name, rule.metric) and any(q.name in e.samples for e in fitting)]
    if not known:
        if any(cell.lost for cell in fitting):
            return
        raise ConfigError(f"rule {rule}: none of the cells that fit has that metric")
    for compared, given in (("ratio", rule.factor), ("difference", rule.points)):
        if given is not None and not any(quantity.compared == compared for quantity in known):
            name = "factor" if compared == "ratio" else "points"
            what = "times and memory have factor, shares such as accuracies have points, exact counters have neither"
            raise ConfigError(f"rule {rule}: {known[0].name} can't have {name}: {what}")
    limits = rule.max is not None or rule.min is not None
    if not limits and not any(matches(cell.label, rule.cells) for cell in sides[0].cells.values()):
        raise ConfigError(f"rule {rule}: {sides[0].name} has no cell that fits, so there is nothing to compare with")


def check_limits(checked: Sequence[CheckedCell], rules: Sequence[Rule]) -> tuple[CellTexts, CellTexts]:
    """Check the cells of new sides against absolute limits. Returns broken limits, and those that can't be checked.

    Means are checked; for counters, every value is. A limit can't be checked if a sample's value is unknown, unless it
    is unknown on the base side too.
    """
    broken: list[tuple[str, str]] = []
    unchecked: list[tuple[str, str]] = []
    limits = [rule for rule in rules if rule.max is not None or rule.min is not None]
    for side, cell, quantity, before in checked:
        fitting = [rule for rule in limits if rule.fits(quantity.name, cell.label)]
        if not fitting:
            continue
        samples = cell.samples.get(quantity.name, {})
        gaps = cell.done - samples.keys()
        if samples and before:
            gaps &= before.samples.get(quantity.name, {}).keys() | (gaps - before.done)
        if gaps or not samples:
            what = f" in {samples_text(cell, gaps)}" if gaps and samples else ""
            words = f"{side.name}: {quantity.label} is unknown{what}, so its limit can't be checked"
            unchecked.append((cell.label, words))
        if not samples:
            continue
        exact = quantity.compared == "exact"
        middle = typical(samples.values(), quantity)
        high, low = (max(samples.values()), min(samples.values())) if exact else (middle, middle)
        most = [rule.max for rule in fitting if rule.max is not None][-1:]
        least = [rule.min for rule in fitting if rule.min is not None][-1:]
        violations = [f"{quantity.show(high)} is above max {quantity.show(limit)}" for limit in most if high > limit]
        violations += [f"{quantity.show(low)} is below min {quantity.show(limit)}" for limit in least if low < limit]
        broken += [(cell.label, f"{quantity.label}: {words}") for words in violations]
    return tuple(broken), tuple(unchecked)


def typical(values: Collection[Value], quantity: Quantity) -> float:
    """Geometric mean for ratios, mean for differences, largest value for counters; NaN without values."""
    if not values:
        return math.nan
    if quantity.compared == "exact":
        return max(values)
    return (
        statistics.geometric_mean(values)
        if quantity.compared == "ratio" and min(values) > 0
        else statistics.fmean(values)
    )


def samples_text(cell: SideCell, samples: Collection[SampleName]) -> str:
    """Name some seeds or rounds, such as `seeds 0, 2`."""
    names = sorted(map(str, samples), key=lambda name: (len(name), name))
    return f"{cell.repeats}{'s' if len(names) > 1 else ''} {', '.join(names)}"
