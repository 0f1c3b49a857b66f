"""Groups the finished cells of a run that differ only in their seed, and finds the groups that can be compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from bench.analysis.metrics import METRICS, RATED_BY, Finished, finished
from bench.analysis.scores import largest_class
from bench.analysis.stats import wilson
from bench.store.records import AIMS, OF_PARTS, USUAL, Cell, Record
from tl.config import READ_BY_REGIME, READ_BY_STEPS, TrainConfig
from tl.regimes import REGIMES
from tl.results import Predictions, TrainResult
from tl.tasks import TASKS, Task

APART = 2.0
"""Ratio of the times per epoch of two seeds from which on neither can be trusted alone."""
_ROUNDING = 1e-9
"""A mean over seeds of one and the same accuracy may differ from it in the last digit."""
_IDENTIFYING_FIELDS = ("backbone", "regime", *USUAL, "seed", "weights")
"""Config fields that every table shows or that identify a group."""


_READ_BY_SOME: dict[str, Callable[[TrainConfig], str]] = {
    **dict.fromkeys(READ_BY_REGIME, lambda config: config.regime),
    "code": lambda config: f"{config.backbone} {config.regime}",
}
"""Setting that not every config reads → among which configs it must differ, for a table to show it."""


def varying_settings(configs: Iterable[TrainConfig]) -> list[str]:
    """Config fields other than `_IDENTIFYING_FIELDS` in which some configs differ. Tables must show them.

    A setting that only some regimes read must differ within a regime, and code within a backbone and regime.
    """
    several = list(configs)

    def differ(name: str) -> bool:
        first: dict[str, Any] = {}
        """Who reads the setting, if that matters → the value of its first config."""
        values = [
            (of_whom(one) if (of_whom := _READ_BY_SOME.get(name)) else "", getattr(one, name))
            for one in several
            if name not in READ_BY_STEPS or REGIMES[one.regime].fit == "steps"
        ]
        return any(first.setdefault(regime, value) != value for regime, value in values)

    return [name for name in TrainConfig.model_fields if name not in _IDENTIFYING_FIELDS and differ(name)]


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """A metric summarised over the seeds of a group, in the metric's unit."""

    value: float
    """Mean or median over seeds; see `Metric.over_seeds`."""
    low: float
    high: float
    bars: Literal["interval", "deviation", "extremes"]
    """Meaning of `low` and `high`: the 95% interval of one seed's accuracy (Wilson), the mean ± one standard deviation,
    or the smallest and largest seed. With one seed and no interval, both equal `value`."""
    n: int
    """Number of seeds with a known value."""

    @property
    def deviation(self) -> float:
        """Half the distance from `low` to `high`."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, kw_only=True)
class Group:
    """The finished cells of a run that differ only in their seed."""

    run: str
    cell: Cell
    """The cell with seed 0; the group need not contain that seed."""
    records: tuple[Record, ...]
    truth: tuple[Any, ...]
    """What is true of the validation images, by the task: their classes."""

    @property
    def config(self) -> TrainConfig:
        """The config that all its cells share, apart from the seed."""
        return self.cell.config

    @property
    def results(self) -> list[TrainResult]:
        """One result per seed."""
        return [record.result for record in self.records if record.result]

    @property
    def counted(self) -> TrainResult:
        """The first result with counted work; the first result if none has it."""
        return next((result for result in self.results if result.work), self.results[0])

    @property
    def label(self) -> str:
        """Backbone and regime, as words for a sentence."""
        return f"{self.config.backbone} {self.config.regime}"

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy after the last epoch over seeds; None if random weights replaced pretrained ones."""
        return self.typical(RATED_BY)

    @cached_property
    def largest_class(self) -> tuple[str, float] | None:
        """The largest class of the validation images and its share of them; None if their labels are unknown."""
        if not self.truth or self.config.task != "classification":
            return None
        label, rate = largest_class(self.truth)
        return self.results[0].classes[label], rate

    @cached_property
    def same_answer(self) -> float | None:
        """The score of giving all validation images the same answer, such as the largest class; None if unknown."""
        return self.task.same_answer(self.truth) if self.truth else None

    @property
    def beats_same_answer(self) -> bool:
        """True if its accuracy is above that of giving all images the same answer, or if that is unknown."""
        rate = self.same_answer or 0.0
        return self.accuracy is not None and self.accuracy > rate + _ROUNDING

    def median(self, value_of: Callable[[TrainResult], float | None]) -> float | None:
        """Median over seeds of a value of each result; None if no seed has it."""
        values = [value for result in self.results if (value := value_of(result)) is not None]
        return statistics.median(values) if values else None

    @cached_property
    def _finished(self) -> list[Finished]:
        in_order = sorted(self.records, key=lambda record: record.started)
        return [cell for record in in_order if (cell := finished(record, self.truth))]

    def values(self, metric: str) -> dict[int, float]:
        """Seed → value of a metric, for seeds where it is known, in the order in which they ran."""
        read = {cell.record.cell.config.seed: METRICS[metric].of(cell) for cell in self._finished}
        return {seed: value for seed, value in read.items() if value is not None}

    def typical(self, metric: str) -> float | None:
        """Mean or median of a metric over seeds; None if no seed has it. See `Metric.over_seeds`."""
        values = self.values(metric).values()
        return _middle(metric, values) if values else None

    def over_seeds(self, metric: str) -> OverSeeds | None:
        """The typical value of a metric together with its uncertainty; None if no seed has it."""
        values = self.values(metric).values()
        if not values:
            return None
        value, n, low, high = _middle(metric, values), len(values), min(values), max(values)
        if METRICS[metric].over_seeds == "median":
            return OverSeeds(value=value, low=low, high=high, bars="extremes", n=n)
        if n > 1:
            deviation = statistics.stdev(values)
            return OverSeeds(value=value, low=value - deviation, high=value + deviation, bars="deviation", n=n)
        if METRICS[metric].predictions and self.truth and self.task.right_or_wrong:
            interval = wilson(round(value * len(self.truth)), len(self.truth))
            return OverSeeds(value=value, low=interval.low, high=interval.high, bars="interval", n=n)
        return OverSeeds(value=value, low=low, high=high, bars="extremes", n=n)

    @property
    def doubt(self) -> str:
        """What speaks against its times, in a few words; empty if nothing is known to."""
        disturbed = sum(bool(record.machine and record.machine.warnings) for record in self.records)
        said = []
        if disturbed:
            said.append("disturbed" if len(self.records) == 1 else f"{disturbed} of {len(self.records)} disturbed")
        times = self.values("epoch_seconds").values()
        if times and max(times) > APART * min(times) > 0:
            ratio = max(times) / min(times)
            said.append(f"seeds {ratio:.0f}× apart" if ratio >= 10 else f"seeds {ratio:.1f}× apart")
        return ", ".join(said)

    @property
    def only_epoch_seconds(self) -> float | None:
        """Median seconds of the only epoch of trainings by steps, which is a cold one; None if some had more."""
        if not REGIMES[self.config.regime].by_steps or any(len(result.epochs) > 1 for result in self.results):
            return None
        return self.typical("first_epoch_seconds")

    @property
    def seconds(self) -> float:
        """Median seconds of a training, at the pace of its warm epochs; infinite if unknown.

        A single epoch is as long as it was, cold.
        """
        value = self.median(_training_seconds)
        return float("inf") if value is None else value

    @property
    def task(self) -> Task:
        """What its networks are to say of an image."""
        return TASKS[self.config.task]

    def by_image(self, predictions: Callable[[TrainResult], Predictions] = lambda r: r.last) -> dict[int, list[float]]:
        """Seed → the score of each validation image, by the task: of a class, whether it is right.

        By default after the last epoch.
        """
        return {
            record.cell.config.seed: self.task.image_scores(predictions(record.result), self.truth)
            for record in self.records
            if record.result
        }


def _middle(metric: str, values: Collection[float]) -> float:
    return statistics.fmean(values) if METRICS[metric].over_seeds == "mean" else statistics.median(values)


def _training_seconds(result: TrainResult) -> float | None:
    """All epochs as long as a warm one, with the work that is done once. A fitted head has one pass, which is cold, and
    so is the only epoch of a training.

    With periods the first epoch is as long as it was, since those after it train more.
    """
    if not REGIMES[result.config.regime].by_steps:
        return result.cold_seconds
    warm, first = result.epoch_seconds, result.epochs[0].seconds
    if warm is None:
        return result.cold_seconds
    cold = first if result.periods and first is not None else warm
    return cold + warm * (len(result.epochs) - 1) + result.once_seconds


def make_groups(records: Iterable[tuple[str, Record]], truths: dict[str, tuple[Any, ...]]) -> list[Group]:
    """Group finished records. Groups are in the order of their first record.

    `records` are pairs of a run's name and a record. `truths` maps a run's name to what is true of its validation
    images.
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
    """The fastest of the most accurate groups; None if no group has a meaningful accuracy."""
    rated = (group for group in groups if group.accuracy is not None)
    return max(rated, key=lambda group: (group.accuracy or 0.0, -group.seconds), default=None)


class Counterparts:
    """Finds, for a group, the group of the same run with another regime, all else being equal."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self._groups: dict[tuple[str, str], list[Group]] = {}
        for group in groups:
            self._groups.setdefault((group.run, group.config.regime), []).append(group)
        self._found: dict[tuple[str, str, str], dict[str, Group]] = {}

    def of(self, group: Group, regime: str) -> Group | None:
        """The counterpart of `group` with `regime`, the first that was planned; None if the run has none."""
        place = (group.run, regime, group.config.regime)
        if place not in self._found:
            here = self._groups.get((group.run, regime), [])
            self._found[place] = {all_else(other.cell, group.config.regime): other for other in reversed(here)}
        return self._found[place].get(all_else(group.cell, regime))


def all_else(cell: Cell, other_regime: str) -> str:
    """An id that is equal for cells that can be compared across these two regimes.

    It leaves out the seed, since seeds are repetitions. It includes the weights, unless the two regimes start from
    different weights by design (`scratch`), and the settings of training by steps, unless one of them has no steps.
    Settings that only some regimes read are in it if both do and they matter to both (`AIMS`, `OF_PARTS`).
    """
    same_start, both_by_steps = _shared(other_regime, cell.config.regime)
    alike = cell.bare if same_start else cell.without_start
    names = [name for name in AIMS if not READ_BY_REGIME[name](REGIMES[other_regime], cell.config.execution)]
    names += [] if both_by_steps else READ_BY_STEPS
    changes = {name: TrainConfig.model_fields[name].default for name in names}
    for name in OF_PARTS:  # `bare` is without them
        value, read = getattr(cell.config, name), READ_BY_REGIME[name](REGIMES[other_regime], cell.config.execution)
        if read and value != TrainConfig.model_fields[name].default:
            changes[name] = value
    return alike.but(**changes).id if changes else alike.id


def _shared(one: str, other: str) -> tuple[bool, bool]:
    """Whether two regimes start from the same weights, and whether both read the settings of training by steps."""
    first, second = REGIMES[one], REGIMES[other]
    return first.start == second.start, first.fit == second.fit == "steps"
