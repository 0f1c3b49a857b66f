"""Rules: how much of a change counts, and limits that the new side must keep."""

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
        return matches(metric, self.metric) and matches(cell, self.cells)

    def is_elsewhere(self, kinds: Collection[Repeats], metrics: Collection[str]) -> bool:
        """Whether its metric is of runs alone where there are none, of benchmarks alone, or known and not compared."""
        if metrics and not any(matches(name, self.metric) for name in metrics):
            return any(matches(name, self.metric) for name in (*quantities(), SECONDS.name))
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


def matches(text: str, pattern: str) -> bool:
    """As in a shell, but for brackets, which stand for themselves: pytest puts them into names."""
    return text == pattern or fnmatchcase(text, pattern.replace("[", "[[]"))


DEFAULTS = (Rule(factor=1.05), Rule(points=2.0))
"""For all metrics of the kind that they fit. Exact counters have none: any change counts."""


CellTexts = tuple[tuple[str, str], ...]
"""A cell's label and what is said of it."""
CheckedCell = tuple[Side, SideCell, Quantity, SideCell | None]
"""A cell of a new side, what is measured of such cells, and the cell of base."""


def check_rule(rule: Rule, wanted: Mapping[str, Quantity], sides: Sequence[Side]) -> None:
    """Raises `ConfigError` for a rule that fits nothing: it would be taken for one that holds.

    A cell without a result fits: that it has none is told in its place.
    """
    if not any(matches(name, rule.metric) for name in wanted):
        raise ConfigError(f"rule {rule}: {not_one_of('metric', rule.metric, wanted)}")
    cells = [cell for side in sides for cell in side.cells.values()]
    fitting = [cell for cell in cells if matches(cell.label, rule.cells)]
    if not fitting:
        raise ConfigError(f"rule {rule}: no cell fits cells={rule.cells!r}; there is {cells[0].label!r}, for one")
    known = [q for q in wanted.values() if matches(q.name, rule.metric) and any(q.name in e.samples for e in fitting)]
    if not known:
        if any(cell.lost for cell in fitting):
            return
        raise ConfigError(f"rule {rule}: no cell that fits has that metric")
    for kind, said in (("ratio", rule.factor), ("difference", rule.points)):
        if said is not None and not any(quantity.kind == kind for quantity in known):
            what = "times and memory have a factor, shares such as accuracies have points, exact counters have neither"
            raise ConfigError(f"rule {rule}: {known[0].name} is none of that kind: {what}")
    limits = rule.max is not None or rule.min is not None
    if not limits and not any(matches(cell.label, rule.cells) for cell in sides[0].cells.values()):
        raise ConfigError(f"rule {rule}: no cell that fits is in {sides[0].name}: nothing to compare with")


def limits(held: Sequence[CheckedCell], rules: Sequence[Rule]) -> tuple[CellTexts, CellTexts]:
    """Absolute limits of every cell of the new sides: those that are broken, and those that can't be checked.

    CheckedCell against them are means; of counters, each value. A sample that base doesn't know either is no gap.
    """
    broken: list[tuple[str, str]] = []
    unchecked: list[tuple[str, str]] = []
    limits = [rule for rule in rules if rule.max is not None or rule.min is not None]
    for side, cell, quantity, before in held:
        fitting = [rule for rule in limits if rule.fits(quantity.name, cell.label)]
        if not fitting:
            continue
        samples = cell.samples.get(quantity.name, {})
        gaps = cell.done - samples.keys()
        if samples and before:
            gaps &= before.samples.get(quantity.name, {}).keys() | (gaps - before.done)
        if gaps or not samples:
            what = f" in {samples_text(cell, gaps)}" if gaps and samples else ""
            words = f"{side.name}: {quantity.label} is not known{what}, so its limit isn't checked"
            unchecked.append((cell.label, words))
        if not samples:
            continue
        exact = quantity.kind == "exact"
        middle = typical(samples.values(), quantity)
        high, low = (max(samples.values()), min(samples.values())) if exact else (middle, middle)
        most = [rule.max for rule in fitting if rule.max is not None][-1:]
        least = [rule.min for rule in fitting if rule.min is not None][-1:]
        told = [f"{quantity.show(high)} is above max {quantity.show(limit)}" for limit in most if high > limit]
        told += [f"{quantity.show(low)} is below min {quantity.show(limit)}" for limit in least if low < limit]
        broken += [(cell.label, f"{quantity.label}: {words}") for words in told]
    return tuple(broken), tuple(unchecked)


def typical(values: Collection[Value], quantity: Quantity) -> float:
    """Geometric mean of times and memory, mean of shares; of counters the largest. NaN without values."""
    if not values:
        return math.nan
    if quantity.kind == "exact":
        return max(values)
    return (
        statistics.geometric_mean(values) if quantity.kind == "ratio" and min(values) > 0 else statistics.fmean(values)
    )


def samples_text(cell: SideCell, samples: Collection[SampleName]) -> str:
    """Seeds or rounds by name, such as `seeds 0, 2`."""
    names = sorted(map(str, samples), key=lambda name: (len(name), name))
    return f"{cell.repeats}{'s' if len(names) > 1 else ''} {', '.join(names)}"
