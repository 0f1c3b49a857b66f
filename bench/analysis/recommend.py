"""Recommends what to use on each device, by accuracy and by each cost, and finds statistical ties."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.analysis.groups import Group, most_accurate
from bench.analysis.metrics import RATED_BY, costs, costs_on_request
from bench.analysis.speedups import compare_accuracy
from bench.analysis.stats import LEVEL, Estimate, accuracy_difference, holm, ratio
from bench.store.records import Cell, Manifest, Record
from tl.regimes import REGIMES

TIE = 1.05
"""Costs within this factor of the best count as tied."""
NO_WORSE = 0.02
"""Accuracy that a cheaper choice may lose, as a share."""


@dataclass(frozen=True, kw_only=True)
class Priority:
    """The recommendation for one device if one metric matters most."""

    metric: str
    groups: tuple[Group, ...]
    """The best group first, then the groups statistically tied with it, fastest first."""


@dataclass(frozen=True, kw_only=True)
class Cheaper:
    """The fastest group that is statistically tied with the best, and not shown to be about as accurate."""

    group: Group
    loses: Estimate | None
    """Accuracy of the best group minus its own; None without a seed in common."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The recommendation for one device."""

    run: str
    device: str
    best: Group
    pick: Group
    """The fastest of the best group and of those that are shown to be less accurate by at most `NO_WORSE`."""
    cheaper: Cheaper | None
    """What is faster and may be as accurate, though that isn't shown; None if nothing is."""
    tied: int
    """How many other groups are statistically tied with the best."""
    left_out: tuple[str, ...]
    """Backbones without pretrained weights."""
    not_above: tuple[Group, ...]
    """Groups that are not more accurate than always answering the largest class; they are not considered."""
    failed: tuple[Rival, ...]
    """Combinations that ended without a result; they are not considered."""
    priorities: tuple[Priority, ...]
    """The best group by accuracy, by each of `metrics.costs`, and by each known one of `metrics.costs_on_request`."""
    front: tuple[Group, ...]
    """Groups that no other group beats in accuracy and all costs at once (Pareto), the most accurate first."""


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A planned combination without a result, which might be better than those that have one."""

    run: str
    cell: Cell
    """Its cell with seed 0."""
    status: str
    """How it ended, or `not run` if the run's latest command left it out; empty if it has not ended yet."""


@dataclass(frozen=True, kw_only=True)
class Undecided:
    """A run and device for which nothing can be recommended yet, since there is nothing to choose from."""

    run: str
    device: str
    best: Group
    """The most accurate group so far."""
    others: int
    """How many other groups have an accuracy."""
    rivals: tuple[Rival, ...]
    """Combinations without a result."""
    left_out: tuple[str, ...]
    """Backbones without pretrained weights."""


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


def rivals_of(run: str, manifest: Manifest, records: Iterable[Record]) -> list[Rival]:
    """The planned combinations of a run without a result for any seed, but for controls."""
    ended: dict[str, list[Record]] = {}
    for record in records:
        ended.setdefault(record.cell.repeats, []).append(record)
    latest = {manifest.cells[each].repeats for each in manifest.invocations[-1].cell_ids if each in manifest.cells}
    found: dict[str, Rival] = {}
    for cell in manifest.cells.values():
        tries = ended.get(cell.repeats, [])
        if not REGIMES[cell.config.regime].control and not any(record.status == "done" for record in tries):
            status = tries[0].status if tries else "" if cell.repeats in latest else "not run"
            found.setdefault(cell.repeats, Rival(run=run, cell=cell.but(seed=0), status=status))
    return list(found.values())


def undecided(groups: Sequence[Group], rivals: Sequence[Rival] = ()) -> list[Undecided]:
    """Runs and devices where a choice would have no alternative: one candidate alone, or some that have not ended."""
    found = []
    for (run, device), here in _places(groups).items():
        rated = _rated(here)
        mine = _at(rivals, run, device)
        best = most_accurate(rated)
        waiting = any(not rival.status for rival in mine)
        if best is None or not (waiting or (len(rated) == 1 and best.beats_largest_class)):
            continue
        found.append(
            Undecided(
                run=run, device=device, best=best, others=len(rated) - 1, rivals=mine, left_out=_without_weights(here)
            )
        )
    return found


def recommend(groups: Sequence[Group], rivals: Sequence[Rival] = ()) -> list[Choice]:
    """One choice for each run and device where a group is more accurate than always answering the largest class.

    Controls are never chosen, and nothing is where `undecided` says so.
    """
    choices = []
    open_places = {(one.run, one.device) for one in undecided(groups, rivals)}
    for (run, device), here in _places(groups).items():
        rated = [group for group in _rated(here) if group.beats_largest_class]
        best = most_accurate(rated)
        if best is None or (run, device) in open_places:
            continue
        others = [group for group in rated if group is not best]
        tests = compare_accuracy([(best, other) for other in others])
        loses = [accuracy_difference(best.by_image(), other.by_image()) for other in others]
        pick = min([best, *_no_worse(others, loses)], key=lambda group: group.seconds)
        alike = [
            Cheaper(group=other, loses=lost)
            for other, lost, test in zip(others, loses, tests, strict=True)
            if test is None or test.p >= LEVEL
        ]
        alike.sort(key=lambda one: one.group.seconds)
        tied = [one.group for one in alike]
        choices.append(
            Choice(
                run=run,
                device=device,
                best=best,
                pick=pick,
                cheaper=next((one for one in alike if TIE * one.group.seconds < pick.seconds), None),
                tied=len(tied),
                left_out=_without_weights(here),
                not_above=tuple(group for group in _rated(here) if not group.beats_largest_class),
                failed=_at(rivals, run, device),
                priorities=(
                    Priority(metric=RATED_BY, groups=(best, *tied)),
                    *(found for name in (*costs(), *costs_on_request()) if (found := _least(rated, name))),
                ),
                front=tuple(_front(rated)),
            )
        )
    return choices


def _no_worse(others: Sequence[Group], loses: Sequence[Estimate | None]) -> list[Group]:
    """Those that are less accurate than the best by at most `NO_WORSE`, adjusted for their number (Holm).

    `loses` has for each the accuracy of the best minus its own. A tie is no proof: few images leave much else tied.
    Below three seeds in common there is none.
    """
    tests = holm([one.p_not_below(NO_WORSE) if one else 1.0 for one in loses])
    return [other for other, p in zip(others, tests, strict=True) if p < LEVEL / 2]


def nothing_beats(groups: Sequence[Group], rivals: Sequence[Rival] = ()) -> list[Group]:
    """The most accurate group of each run and device where none is above always answering the largest class.

    Where candidates have not ended yet, nothing is said.
    """
    waiting = {(rival.run, rival.cell.device) for rival in rivals if not rival.status}
    found = (most_accurate(_rated(here)) for place, here in _places(groups).items() if place not in waiting)
    return [best for best in found if best is not None and not best.beats_largest_class]


def _at(rivals: Iterable[Rival], run: str, device: str) -> tuple[Rival, ...]:
    return tuple(rival for rival in rivals if (rival.run, rival.cell.device) == (run, device))


def _without_weights(groups: Iterable[Group]) -> tuple[str, ...]:
    """Backbones whose accuracy says nothing, since they had no pretrained weights."""
    return tuple(dict.fromkeys(group.config.backbone for group in groups if group.accuracy is None))


def _places(groups: Sequence[Group]) -> dict[tuple[str, str], list[Group]]:
    """Run and device → their groups."""
    places: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        places.setdefault((group.run, group.cell.device), []).append(group)
    return places


def _rated(groups: Sequence[Group]) -> list[Group]:
    """Groups with a meaningful accuracy, without controls."""
    return [group for group in groups if group.accuracy is not None and not REGIMES[group.config.regime].control]
