"""Estimates how much longer a sweep takes, and says nothing while it can't know.

A cell's time per epoch is the product of what its backbone takes and of what its regime, device, precision, execution
and batch size make of it. Both factors are fitted to the cells that have ended, and to running ones from their second
epoch on. So a large network that waits counts for more than a small one that has ended.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bench.analysis.stats import MIN_SAMPLES
from bench.store.records import Cell

KNOWN_SHARE = 0.5
"""Share of the epochs that wait for which something must be known, before a time is given."""
ROUNDS = 20
"""Rounds in which the factors are fitted, one kind after the other."""
SHRINKING = 0.02
"""Cells that a factor of 1 counts for, so that one odd cell doesn't decide it alone."""
FREE_SECONDS = 0.01
"""An estimate that takes longer, in CPU time, is made less often: at most a twentieth of the time goes into them."""

Kind = tuple[str, tuple[object, ...]]
"""Backbone, and all else that decides how long an epoch takes."""


def _kind(cell: Cell) -> Kind:
    config = cell.config
    return config.backbone, (config.regime, cell.device, config.precision, config.execution, config.batch_size)


def _passes(cell: Cell) -> int:
    return cell.config.passes * cell.config.trainings


@dataclass
class _Running:
    """A running cell."""

    cell: Cell
    started: float
    warm: list[float] = field(default_factory=list)
    """Seconds of its epochs but the first."""
    epochs: int = 0
    last: float = 0.0
    """When its latest epoch ended."""


class Pace:
    """Estimates the seconds that are left, from the cells of a command and what happens to them."""

    def __init__(self, cells: Iterable[Cell], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: Counter[Kind] = Counter()
        """Kind → passes of cells that have not started."""
        for cell in cells:
            self._waiting[_kind(cell)] += _passes(cell)
        self._running: dict[str, _Running] = {}
        self._known: dict[Kind, list[float]] = {}
        """Kind → seconds per pass of its cells that have ended, all that happens once included."""
        self._most_at_once = 1
        self._again, self._said = 0.0, None if self._waiting else 0.0

    def start(self, cell: Cell) -> None:
        """A cell starts."""
        self._waiting[_kind(cell)] -= _passes(cell)
        now = self._clock()
        self._running[cell.id] = _Running(cell=cell, started=now, last=now)
        self._most_at_once = max(self._most_at_once, len(self._running))

    def epoch(self, cell: Cell) -> None:
        """An epoch of a cell has ended."""
        if one := self._running.get(cell.id):
            now = self._clock()
            if one.epochs:
                one.warm.append(now - one.last)
            one.epochs, one.last = one.epochs + 1, now

    def end(self, cell: Cell, seconds: float | None) -> None:
        """A cell has ended after so many seconds; None if it has no result, so that they say nothing of others."""
        self._running.pop(cell.id, None)
        if seconds is not None:
            self._known.setdefault(_kind(cell), []).append(seconds / _passes(cell))

    def left(self) -> float | None:
        """Seconds until all cells have ended; None while they can't be known."""
        now = self._clock()
        if now >= self._again:
            began = time.thread_time()
            self._said = self._estimate(now)
            self._again = now + 20 * max(0.0, time.thread_time() - began - FREE_SECONDS)
        return self._said

    def _estimate(self, now: float) -> float | None:
        known = {kind: statistics.fmean(values) for kind, values in self._known.items()}
        for one in self._running.values():
            if one.warm or one.epochs >= _passes(one.cell):
                whole = one.last - one.started + self._rest(one)
                known.setdefault(_kind(one.cell), whole / _passes(one.cell))
        predict = _fitted(known)
        running = [self._of_running(one, predict, now) for one in self._running.values()]
        waiting = {kind: passes for kind, passes in self._waiting.items() if passes > 0}
        foreseen = {kind: per_pass for kind in waiting if (per_pass := predict(kind)) is not None}
        if None in running or sum(waiting[kind] for kind in foreseen) < KNOWN_SHARE * sum(waiting.values()):
            return None
        typical = statistics.fmean(foreseen.values()) if foreseen else 0.0
        seconds = sum(each or 0.0 for each in running)
        seconds += sum(passes * foreseen.get(kind, typical) for kind, passes in waiting.items())
        return seconds / self._most_at_once

    def _rest(self, one: _Running) -> float:
        """Seconds of the epochs that a running cell still has, if each takes what its warm ones took."""
        rest = max(0, _passes(one.cell) - one.epochs)
        return rest * statistics.fmean(one.warm) if rest else 0.0

    def _of_running(self, one: _Running, predict: Callable[[Kind], float | None], now: float) -> float | None:
        if one.warm or one.epochs >= _passes(one.cell):
            return max(0.0, self._rest(one) - (now - one.last))
        per_pass = predict(_kind(one.cell))
        return None if per_pass is None else max(0.0, per_pass * _passes(one.cell) - (now - one.started))


def _fitted(known: dict[Kind, float]) -> Callable[[Kind], float | None]:
    """Fit the factors, and return what gives the seconds per pass of a kind; None if nothing like it is known.

    A kind is like known ones if both its parts are, or if its second part is, with backbones enough for an average.
    """
    logs = {kind: math.log(max(seconds, 1e-9)) for kind, seconds in known.items()}
    mean = statistics.fmean(logs.values()) if logs else 0.0
    factors: tuple[dict[object, float], dict[object, float]] = ({}, {})
    for _ in range(ROUNDS):
        for side, other in ((0, 1), (1, 0)):
            rest: dict[object, list[float]] = {}
            for kind, value in logs.items():
                rest.setdefault(kind[side], []).append(value - mean - factors[other].get(kind[other], 0.0))
            factors[side].update({part: sum(some) / (len(some) + SHRINKING) for part, some in rest.items()})
    enough = len(factors[0]) >= MIN_SAMPLES

    def predict(kind: Kind) -> float | None:
        if kind in known:
            return known[kind]
        if kind[1] not in factors[1] or not (enough or kind[0] in factors[0]):
            return None
        return math.exp(mean + factors[0].get(kind[0], 0.0) + factors[1][kind[1]])

    return predict
