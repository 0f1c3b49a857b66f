"""Recommends what to use on each device, by accuracy and by each cost, and finds statistical ties."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.analysis.groups import Group, most_accurate
from bench.analysis.metrics import RATED_BY, costs, costs_on_request
from bench.analysis.speedups import compare_accuracy
from bench.analysis.stats import LEVEL, holm, ratio
from tl.regimes import REGIMES

TIE = 1.05
"""Costs within this factor of the best count as tied."""


@dataclass(frozen=True, kw_only=True)
class Priority:
    """The recommendation for one device if one metric matters most."""

    metric: str
    groups: tuple[Group, ...]
    """The best group first, then the groups statistically tied with it, fastest first."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The recommendation for one device."""

    run: str
    device: str
    best: Group
    pick: Group
    """The fastest among the best group and those statistically tied with it."""
    tied: int
    """How many other groups are statistically tied with the best."""
    left_out: tuple[str, ...]
    """Backbones without pretrained weights."""
    not_above: tuple[Group, ...]
    """Groups that are not more accurate than always answering the largest class; they are not considered."""
    priorities: tuple[Priority, ...]
    """The best group by accuracy, by each of `metrics.costs`, and by each known one of `metrics.costs_on_request`."""
    front: tuple[Group, ...]
    """Groups that no other group beats in accuracy and all costs at once (Pareto), the most accurate first."""


def _least(groups: list[Group], metric: str) -> Priority | None:
    """The group with the least of a metric, and the groups tied with it.

    A group is tied if it takes less than `TIE` times as much, or if Student's t over seeds (Holm-adjusted) finds no
    difference.
    """
    known = [(group, statistics.geometric_mean(values)) for group in groups if (values := _above_0(group, metric))]
    if not known:
        return None
    least, _ = min(known, key=lambda pair: pair[1])
    others = [group for group, _ in known if group is not least]
    ratios = [ratio(group.values(metric), least.values(metric)) for group in others]
    tests = holm([found.p if found and found.error is not None else 0.0 for found in ratios])
    tied = [
        group
        for group, found, p in zip(others, ratios, tests, strict=True)
        if found is None or found.value < TIE or p >= LEVEL
    ]
    return Priority(metric=metric, groups=(least, *sorted(tied, key=lambda group: group.seconds)))


def _above_0(group: Group, metric: str) -> list[float]:
    values = list(group.values(metric).values())
    return values if values and min(values) > 0 else []


def _front(groups: list[Group]) -> list[Group]:
    """The Pareto front of accuracy and costs, the most accurate first. An unknown value counts as the worst."""

    def cost(group: Group) -> tuple[float, ...]:
        known = (list(group.values(name).values()) for name in costs())
        return (-(group.accuracy or 0.0), *(statistics.median(values) if values else math.inf for values in known))

    rated = [(group, cost(group)) for group in groups]
    front = [
        group
        for group, mine in rated
        if not any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for _, other in rated)
    ]
    return sorted(front, key=lambda group: -(group.accuracy or 0.0))


def recommend(groups: Sequence[Group]) -> list[Choice]:
    """One choice for each run and device where a group is more accurate than always answering the largest class.

    Controls are never chosen.
    """
    choices = []
    for (run, device), here in _places(groups).items():
        rated = [group for group in _rated(here) if group.beats_largest_class]
        best = most_accurate(rated)
        if best is None:
            continue
        others = [group for group in rated if group is not best]
        tests = compare_accuracy([(best, other) for other in others])
        tied = [other for other, test in zip(others, tests, strict=True) if test is None or test.p >= LEVEL]
        tied = sorted(tied, key=lambda group: group.seconds)
        choices.append(
            Choice(
                run=run,
                device=device,
                best=best,
                pick=min([best, *tied], key=lambda group: group.seconds),
                tied=len(tied),
                left_out=tuple(dict.fromkeys(group.config.backbone for group in here if group.accuracy is None)),
                not_above=tuple(group for group in _rated(here) if not group.beats_largest_class),
                priorities=(
                    Priority(metric=RATED_BY, groups=(best, *tied)),
                    *(found for name in (*costs(), *costs_on_request()) if (found := _least(rated, name))),
                ),
                front=tuple(_front(rated)),
            )
        )
    return choices


def nothing_beats(groups: Sequence[Group]) -> list[Group]:
    """The most accurate group of each run and device where none is above always answering the largest class."""
    found = (most_accurate(_rated(here)) for here in _places(groups).values())
    return [best for best in found if best is not None and not best.beats_largest_class]


def _places(groups: Sequence[Group]) -> dict[tuple[str, str], list[Group]]:
    """Run and device → their groups."""
    places: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        places.setdefault((group.run, group.cell.device), []).append(group)
    return places


def _rated(groups: Sequence[Group]) -> list[Group]:
    """Groups with a meaningful accuracy, without controls."""
    return [group for group in groups if group.accuracy is not None and not REGIMES[group.config.regime].control]
