"""Chooses a backbone and a regime for a set of images, from rungs that get dearer: pure functions over groups.

A rung may only drop what is clearly worse than its best: statistical ties stay, and who is trained first among them
is a matter of order, not of choice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from bench.analysis.groups import Group, most_accurate
from bench.analysis.probe import Ranked
from bench.analysis.recommend import NO_WORSE, TIE
from bench.analysis.speedups import compare_accuracy
from bench.analysis.stats import LEVEL, Interval, wilson
from bench.store.picks import Chosen, Considered, Rung, Tied
from tl.regimes import REGIMES
from tl.results import TrainResult

_ROUNDING = 1e-9
RUNGS: tuple[Rung, ...] = get_args(Rung)


def seconds_to_train(group: Group) -> float | None:
    """Median seconds of a whole training over seeds: all epochs, and what runs once before them."""
    return group.median(lambda result: result.training_seconds + result.once_seconds)


def peak_memory(group: Group, groups: Sequence[Group]) -> float | None:
    """Median bytes of a training at its peak over seeds; None if unknown.

    A training that found its features in the cache needed little, but whoever trains it anew extracts them, which takes
    most: then the peak of that group counts which extracted them here.
    """
    own = group.median(lambda result: result.peak_memory_bytes)
    if own is not None or REGIMES[group.config.regime].features != "once":
        return own
    others = [other for other in groups if _network(other) == _network(group)]
    extracted = [
        peak
        for other in others
        if REGIMES[other.config.regime].features == "once"
        and (peak := other.median(lambda result: result.peak_memory_bytes)) is not None
    ]
    return max(extracted, default=None)


def latency(group: Group, groups: Sequence[Group]) -> float | None:
    """Median seconds to predict one image, of all groups with the same backbone on the same device; None if unknown.

    A head takes no time beside its backbone.
    """
    same = [one for one in groups if _network(one) == _network(group)]
    known = [seconds for one in same if (seconds := one.typical("latency_seconds")) is not None]
    return statistics.median(known) if known else None


def _network(group: Group) -> tuple[str, str, str]:
    return group.config.backbone, group.cell.device, group.config.precision


def _seconds(group: Group, groups: Sequence[Group]) -> float | None:
    return seconds_to_train(group)


@dataclass(frozen=True, kw_only=True)
class Priority:
    """What matters most, and how much of it a group takes."""

    words: str
    """What the choice is, in words for a card."""
    cost: Callable[[Group, Sequence[Group]], float | None]
    """Seconds or bytes of a group among all groups; None if unknown, which is never chosen for it."""
    may_lose: float
    """Accuracy that the choice may lose against the best, as a share."""


PRIORITIES: dict[str, Priority] = {
    "accuracy": Priority(words="most accurate", cost=_seconds, may_lose=0.0),
    "time": Priority(words="fastest to train", cost=_seconds, may_lose=NO_WORSE),
    "inference": Priority(words="fastest to predict", cost=latency, may_lose=NO_WORSE),
    "memory": Priority(words="least memory", cost=peak_memory, may_lose=NO_WORSE),
}
"""What can matter most → how the choice is made."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """The choice if one thing matters most."""

    priority: str
    group: Group
    tied: tuple[Group, ...]
    """Other groups that are statistically tied with the most accurate, best first; only for `accuracy`."""
    peak_memory_bytes: float | None
    """See `peak_memory`."""
    latency_seconds: float | None
    """See `latency`."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A backbone that could have been chosen, and how far it came."""

    backbone: str
    rung: Rung
    ranked: Ranked | None = None
    """Its place by its probe; None if it has none."""
    groups: tuple[Group, ...] = ()
    """Its whole trainings, one group per regime."""
    reason: str = ""
    """Why something of it came no further; empty if nothing was kept from it."""


def survivors(groups: Sequence[Group]) -> list[Group]:
    """The groups that are not clearly less accurate than the best, the most accurate first.

    The test is that of `compare_accuracy`, adjusted for all groups (Holm). Groups without a meaningful accuracy are
    dropped.
    """
    rated = sorted((group for group in groups if group.accuracy is not None), key=_rank)
    if not rated:
        return []
    best, *others = rated
    tests = compare_accuracy([(best, other) for other in others])
    return [best, *(other for other, test in zip(others, tests, strict=True) if test is None or test.p >= LEVEL)]


def _rank(group: Group) -> tuple[float, float]:
    return -(group.accuracy or 0.0), seconds_to_train(group) or math.inf


def cards(groups: Sequence[Group]) -> list[Card]:
    """The choice for each of `PRIORITIES`: the cheapest of those that are accurate enough for it.

    There is none for a priority whose cost no such group has, and none at all if no group beats the largest class.
    """
    rated = [group for group in groups if group.beats_same_answer and not REGIMES[group.config.regime].control]
    best = most_accurate(rated)
    if best is None:
        return []
    tied, found = survivors(rated), []
    for name, priority in PRIORITIES.items():
        able = _within(rated, best, priority.may_lose)
        known = [(cost, group) for group in able if (cost := priority.cost(group, rated)) is not None]
        if known:
            least = min(cost for cost, _ in known)
            near = [group for cost, group in known if cost <= TIE * least]
            chosen = max(near, key=lambda group: (group.accuracy or 0.0, -(seconds_to_train(group) or math.inf)))
            others = () if priority.may_lose else tuple(group for group in tied if group is not chosen)
            memory = peak_memory(chosen, rated)
            found.append(
                Card(
                    priority=name,
                    group=chosen,
                    tied=others,
                    peak_memory_bytes=memory,
                    latency_seconds=latency(chosen, rated),
                )
            )
    return found


def _within(groups: Sequence[Group], best: Group, may_lose: float) -> list[Group]:
    least = (best.accuracy or 0.0) - may_lose - _ROUNDING
    return [group for group in groups if (group.accuracy or 0.0) >= least]


def interval(group: Group) -> Interval | None:
    """95% interval of a group's mean accuracy over other images like these (Wilson); None if it is unknown.

    Seeds are evaluated on the same images, so more of them make it no narrower.
    """
    images = len(group.truth)
    return None if group.accuracy is None or not images else wilson(round(group.accuracy * images), images)


def expected_seconds(one_epoch: TrainResult, wall_seconds: float, epochs: int) -> float:
    """Seconds that a cell with so many epochs takes, by one that had a single epoch and took `wall_seconds`."""
    return wall_seconds + (epochs - 1) * one_epoch.training_seconds


def first_guess(probe: TrainResult, wall_seconds: float, regime: str, images: int, trained: int) -> float | None:
    """Seconds that one epoch of a regime takes with its process, by a probe's extraction of all `images`.

    A step that trains the backbone runs it forward once and backward, which takes twice as long; one that trains the
    head alone runs it forward. `trained` of the images are trained on, all others only validated. None if the
    extraction was not timed.
    """
    if probe.extraction_seconds is None:
        return None
    forward = probe.extraction_seconds / images
    passes = 3 if REGIMES[regime].trainable.backbone is not None else 1
    spent = probe.extracting_seconds or 0.0
    return max(0.0, wall_seconds - spent) + forward * (passes * trained + images - trained)


def chosen(card: Card) -> Chosen:
    """The choice of a card, with its figures, as a record keeps it."""
    group, found = card.group, interval(card.group)
    label, rate = group.largest_class or (None, None)
    return Chosen(
        backbone=group.config.backbone,
        regime=group.config.regime,
        cell=group.records[0].cell_id,
        device=group.cell.device,
        seeds=len(group.records),
        accuracy=group.accuracy,
        low=found.low if found else None,
        high=found.high if found else None,
        baseline=rate,
        largest_class=label,
        seconds_to_train=seconds_to_train(group),
        peak_memory_bytes=None if card.peak_memory_bytes is None else round(card.peak_memory_bytes),
        latency_seconds=card.latency_seconds,
        tied=tuple(
            Tied(
                backbone=one.config.backbone,
                regime=one.config.regime,
                accuracy=one.accuracy,
                seconds_to_train=seconds_to_train(one),
            )
            for one in card.tied
        ),
    )


def considered(candidates: Iterable[Candidate]) -> tuple[Considered, ...]:
    """Candidates as a record keeps them: those that came furthest first, then by accuracy, or else by their probe."""
    found = []
    for one in candidates:
        accuracies = {group.config.regime: group.accuracy for group in one.groups if group.accuracy is not None}
        found.append(
            Considered(
                backbone=one.backbone,
                rung=one.rung,
                probe=one.ranked.probe if one.ranked else None,
                low=one.ranked.low if one.ranked else None,
                high=one.ranked.high if one.ranked else None,
                tied=one.ranked.tied if one.ranked else None,
                accuracies=accuracies,
                reason=one.reason,
            )
        )

    def place(one: Considered) -> tuple[int, float, float]:
        return RUNGS.index(one.rung), -max(one.accuracies.values(), default=0.0), -(one.probe or 0.0)

    return tuple(sorted(found, key=place))
