"""Groups: the finished cells of a run that differ in their seed alone, and which of them can be compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from bench.analysis.metrics import METRICS, RATED_BY, Finished, finished
from bench.analysis.stats import wilson
from bench.store.records import Cell, Record
from tl.config import TrainConfig
from tl.regimes import REGIMES
from tl.results import Predictions, TrainResult

AXES = ("backbone", "regime", "precision", "seed", "weights")
"""Fields of a config that every table shows, or that make up a group."""


def varying_settings(configs: Iterable[TrainConfig]) -> list[str]:
    """Fields of a config, other than `AXES`, in which some configs differ: a table must show them."""
    several = list(configs)
    fields = [name for name in TrainConfig.model_fields if name not in AXES]
    return [name for name in fields if any(getattr(one, name) != getattr(several[0], name) for one in several)]


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """What the seeds of a group say of a metric, in the metric's unit."""

    value: float
    """Their mean or median: see `Metric.over_seeds`."""
    low: float
    high: float
    bars: Literal["interval", "deviation", "extremes"]
    """What lies between `low` and `high`: a 95% interval of one seed's accuracy (Wilson), mean ± one standard
    deviation, or all seeds. With one seed and no interval both are the value."""
    n: int
    """Seeds that know it."""

    @property
    def deviation(self) -> float:
        """Half of the way from `low` to `high`."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, kw_only=True)
class Group:
    """The finished cells of a run that differ in their seed alone."""

    run: str
    cell: Cell
    """With seed 0, whichever seeds there are."""
    records: tuple[Record, ...]
    truth: tuple[int, ...]
    """True labels of the validation images."""

    @property
    def config(self) -> TrainConfig:
        """Of all its cells, but for the seed."""
        return self.cell.config

    @property
    def results(self) -> list[TrainResult]:
        """One a seed."""
        return [record.result for record in self.records if record.result]

    @property
    def counted(self) -> TrainResult:
        """The first result whose work was counted, else the first."""
        return next((result for result in self.results if result.work), self.results[0])

    @property
    def label(self) -> str:
        """Backbone and regime, for a sentence."""
        return f"{self.config.backbone} {self.config.regime}"

    @property
    def accuracy(self) -> float | None:
        """Mean best accuracy over seeds; None where it says nothing (random weights in place of pretrained ones)."""
        return self.typical(RATED_BY)

    def median(self, figure: Callable[[TrainResult], float | None]) -> float | None:
        """Median over seeds of a figure; None where no seed has it."""
        values = [value for result in self.results if (value := figure(result)) is not None]
        return statistics.median(values) if values else None

    @cached_property
    def _finished(self) -> list[Finished]:
        return [cell for record in self.records if (cell := finished(record, self.truth))]

    def values(self, metric: str) -> dict[int, float]:
        """Seed → a metric, where it is known."""
        read = {cell.record.cell.config.seed: METRICS[metric].of(cell) for cell in self._finished}
        return {seed: value for seed, value in read.items() if value is not None}

    def typical(self, metric: str) -> float | None:
        """What stands for a metric's seeds, their mean or median; None where no seed has it."""
        values = self.values(metric).values()
        return _middle(metric, values) if values else None

    def over_seeds(self, metric: str) -> OverSeeds | None:
        """The same with what tells how far it may be off; None where no seed has it."""
        values = self.values(metric).values()
        if not values:
            return None
        value, n, low, high = _middle(metric, values), len(values), min(values), max(values)
        if METRICS[metric].over_seeds == "median":
            return OverSeeds(value=value, low=low, high=high, bars="extremes", n=n)
        if n > 1:
            deviation = statistics.stdev(values)
            return OverSeeds(value=value, low=value - deviation, high=value + deviation, bars="deviation", n=n)
        if METRICS[metric].predictions and self.truth:
            interval = wilson(round(value * len(self.truth)), len(self.truth))
            return OverSeeds(value=value, low=interval.low, high=interval.high, bars="interval", n=n)
        return OverSeeds(value=value, low=low, high=high, bars="extremes", n=n)

    @property
    def seconds(self) -> float:
        """Median time of an epoch, with its share of what is done once; infinite where it is not known."""
        value = self.median(_amortised)
        return float("inf") if value is None else value

    def right(self, predictions: Callable[[TrainResult], Predictions] = lambda r: r.best) -> dict[int, list[bool]]:
        """Seed → whether each validation image was judged right, by default at the best epoch."""
        return {
            record.cell.config.seed: [
                a == b for a, b in zip(predictions(record.result).labels, self.truth, strict=True)
            ]
            for record in self.records
            if record.result
        }


def _middle(metric: str, values: Collection[float]) -> float:
    return statistics.fmean(values) if METRICS[metric].over_seeds == "mean" else statistics.median(values)


def _amortised(result: TrainResult) -> float | None:
    warm = result.epoch_seconds
    return None if warm is None else warm + result.once_seconds / result.config.passes


def make_groups(records: Iterable[tuple[str, Record]], truths: dict[str, tuple[int, ...]]) -> list[Group]:
    """Finished records, each with the name of its run, as groups, in the order of their first record.

    `truths` has the true labels of the validation images, by run.
    """
    found: dict[tuple[str, str], list[Record]] = {}
    for run, record in records:
        if record.status == "done":
            found.setdefault((run, record.cell.repeats), []).append(record)
    return [
        Group(run=key[0], cell=some[0].cell.but(seed=0), records=tuple(some), truth=truths[key[0]])
        for key, some in found.items()
    ]


def most_accurate(groups: Iterable[Group]) -> Group | None:
    """The quickest of the most accurate groups; None where no accuracy counts."""
    rated = (group for group in groups if group.accuracy is not None)
    return max(rated, key=lambda group: (group.accuracy or 0.0, -group.seconds), default=None)


class Counterparts:
    """Finds the group of the same run that has another regime, all else being equal."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self._groups: dict[tuple[str, str], list[Group]] = {}
        for group in groups:
            self._groups.setdefault((group.run, group.config.regime), []).append(group)
        self._found: dict[tuple[str, str, bool], dict[str, Group]] = {}

    def of(self, group: Group, regime: str) -> Group | None:
        """None where there is none."""
        same_start = REGIMES[regime].start == REGIMES[group.config.regime].start
        place = (group.run, regime, same_start)
        if place not in self._found:
            here = self._groups.get((group.run, regime), [])
            self._found[place] = {all_else(other.cell, group.config.regime): other for other in reversed(here)}
        return self._found[place].get(all_else(group.cell, regime))


def all_else(cell: Cell, other_regime: str) -> str:
    """What of a cell must be equal for it to be compared with one of another regime, as an id.

    Seeds are repetitions. Weights must be equal unless the regimes start from different ones by their nature
    (`scratch`).
    """
    same_start = REGIMES[other_regime].start == REGIMES[cell.config.regime].start
    return (cell.bare if same_start else cell.without_start).id
