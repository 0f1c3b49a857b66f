"""Compares two cells by paired timing. Pure functions over the records of process pairs.

**The estimator was fixed beforehand.** A turn's time is weighted to an epoch: seconds per image of its training steps
times the training images, and the same for validation. Each round has one turn of each cell. The logarithm of its
ratio (the other cell's epoch ÷ this cell's) is free of what the machine does for longer than a round. A process pair
gives one value, the median over its rounds. The estimate is the mean of these values, with Student's t over process
pairs: at least `MIN_SAMPLES`, five by default; it is widened only where the order of the pairs clearly speaks against
their independence (`ratio_of_pairs`). Every pair with a result counts, with all its rounds; pairs timed one after the
other count only where no pair took turns (`PairedComparison.unused`). Rounds of one process are no repetitions: they
share its memory layout and its neighbours, so they scatter less than pairs do.

Starting and ending a loader's workers happens once per epoch. It is measured beside the turns, and added to each.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.analysis.stats import MIN_SAMPLES, Estimate, ratio, ratio_of_pairs
from bench.store.pairs import PairRecord, TimedSide
from bench.store.records import USUAL, Cell
from tl.config import TrainConfig
from tl.results import Work

Part = Callable[[PairRecord, TimedSide], list[float]]
"""Values of a side, one per turn; no value if they are unknown."""
AXES = ("regime", *USUAL)
"""Axes in which cells that are compared may differ."""
RatioOf = Callable[[Mapping[int, float], Mapping[int, float]], Estimate | None]
"""Estimates a ratio over pairs."""
Both = tuple[PairRecord, TimedSide, TimedSide]
"""A process pair with its sides of the two cells that are compared."""


def epoch_seconds(record: PairRecord, side: TimedSide) -> list[float]:
    """Seconds per epoch, training and validation together, by turn."""
    if side.turns is None:
        return []
    training = train_seconds(record, side) or [0.0] * len(side.turns)
    validating = _weighted(side.turns.val_seconds, side.turns.val_images, record.val_images)
    start = side.start_seconds or 0.0
    return [train + val + start for train, val in zip(training, validating, strict=True)]


def train_seconds(record: PairRecord, side: TimedSide) -> list[float]:
    """Seconds per epoch of the training steps alone, by turn; empty if nothing trains."""
    if side.turns is None:
        return []
    return _weighted(side.turns.train_seconds, side.turns.train_images, record.train_images)


def _weighted(seconds: Sequence[float], images: Sequence[int], per_epoch: int) -> list[float]:
    return [time / count * per_epoch for time, count in zip(seconds, images, strict=True)]


@dataclass(frozen=True, kw_only=True)
class LostPair:
    """A process pair without a result for two cells."""

    number: int
    status: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Two cells, compared by process pairs. Ratios are the other cell's value ÷ this cell's."""

    cell: Cell
    against: Cell
    speed_up: Estimate | None
    """Ratio of the seconds per epoch; None if no pair has a result."""
    training: Estimate | None
    """Ratio of the seconds of the training steps alone."""
    memory: Estimate | None
    """Ratio of the peaks of memory; None also if the two were measured in different ways."""
    seconds: float | None
    """Median over pairs of this cell's seconds per epoch."""
    against_seconds: float | None
    train_seconds: float | None
    """Median over pairs of this cell's seconds per epoch in training steps; None if nothing trains."""
    against_train_seconds: float | None
    peak_bytes: float | None
    """Median over pairs of this cell's peak of memory."""
    against_peak_bytes: float | None
    pairs: int
    """Pairs with a result that count."""
    unused: int
    """Pairs with a result that don't count: they were timed one after the other, and others took turns."""
    rounds: tuple[int, ...]
    """Rounds of each pair, in the order of their start."""
    scatter: float | None
    """Standard deviation of the pairs' log ratios; None below two pairs."""
    within: float | None
    """Median over pairs of the standard deviation of the log ratios of a pair's rounds."""
    drift: float | None
    """Median over pairs of the change of the ratio from a pair's first round to its last, relative, on a line."""
    trend: float | None
    """Change of the ratio from one pair to the next, relative, on a line through all; None below `MIN_SAMPLES`."""
    apart: str
    """Why the cells were timed one after the other; empty if they took turns."""
    lost: tuple[LostPair, ...]
    work: tuple[Work | None, Work | None]
    """Counted work of a step of this cell and of the other."""
    precisions: tuple[str, str]
    """The precisions in which this cell and the other ran, several with commas; empty if unknown."""
    train_images: int
    val_images: int

    @property
    def axis(self) -> str:
        """The axis or setting in which the two cells differ, the first of `AXES` if several; `regime` for twins."""
        ours, theirs = self.cell.config, self.against.config
        settings = (name for name in TrainConfig.model_fields if name not in {*AXES, "seed"})
        return next((name for name in (*AXES, *settings) if getattr(ours, name) != getattr(theirs, name)), AXES[0])

    @property
    def names(self) -> tuple[str, str]:
        """What this cell and the other have there, in words."""
        ours, theirs = getattr(self.cell.config, self.axis), getattr(self.against.config, self.axis)
        if self.axis in AXES:
            return ours, theirs
        return _setting(self.axis, ours), _setting(self.axis, theirs)

    @property
    def share(self) -> float | None:
        """This cell's share of the other's time per epoch."""
        return 1 / self.speed_up.value if self.speed_up else None


def _setting(name: str, value: Any) -> str:
    return f"{name}={json.dumps(value) if isinstance(value, bool | list | tuple) else value}"


def compare(cell: Cell, against: Cell, records: Iterable[PairRecord]) -> PairedComparison | None:
    """Compare two cells, whatever their seeds, by all pairs that have both; None if there is none.

    Cells may occur in several rotations; all of them count. Pairs that were timed one after the other, since memory
    didn't suffice, are used only where no others are.
    """
    both = sorted(
        (
            (record, ours, theirs)
            for record in records
            if (ours := record.side(cell)) and (theirs := record.side(against))
        ),
        key=lambda each: (each[0].started, each[0].pair.number),
    )
    return _compared(cell.but(seed=0), against.but(seed=0), both) if both else None


def compare_twins(records: Iterable[PairRecord]) -> PairedComparison | None:
    """Compare the first two sides of each record, which may be processes of one cell; None without a record."""
    both = sorted(
        ((record, record.sides[1], record.sides[0]) for record in records),
        key=lambda each: (each[0].started, each[0].pair.number),
    )
    if not both:
        return None
    first, second, *_ = both[0][0].pair.cells
    return _compared(second, first, both)


class Comparisons:
    """The comparisons that the process pairs of a run allow. Each is computed once, in time that its own pairs take."""

    def __init__(self, records: Iterable[PairRecord]) -> None:
        self._with: dict[str, list[PairRecord]] = {}
        """Cell without its seed → records of the pairs that have it."""
        for record in records:
            for cell in record.pair.cells:
                self._with.setdefault(cell.repeats, []).append(record)
        self._found: dict[tuple[str, str], PairedComparison | None] = {}

    def base(self, cell: Cell) -> Cell | None:
        """The cell that the latest pair with `cell` compares it with, which is the first of its rotation.

        It is `cell` itself if that is the first one, and None if no pair has it.
        """
        records = self._with.get(cell.repeats)
        return max(records, key=lambda record: record.started).pair.cells[0] if records else None

    def of(self, cell: Cell, against: Cell) -> PairedComparison | None:
        """See `compare`."""
        key = (cell.repeats, against.repeats)
        if key not in self._found:
            self._found[key] = compare(cell, against, self._with.get(cell.repeats, ()))
        return self._found[key]


def _sides(both: Sequence[Both]) -> tuple[list[TimedSide], list[TimedSide]]:
    return [ours for _, ours, _ in both], [theirs for _, _, theirs in both]


def _compared(cell: Cell, against: Cell, both: Sequence[Both]) -> PairedComparison:
    done = [each for each in both if each[1].turns and each[2].turns]
    used = [each for each in done if each[0].together] or done
    lost = [_lost(*each) for each in both if not (each[1].turns and each[2].turns)]
    measured_alike = [each for each in used if each[1].memory_method == each[2].memory_method]
    ratios = [_log_ratios(record, ours, theirs, epoch_seconds) for record, ours, theirs in used]
    medians = [statistics.median(each) for each in ratios]
    newest = both[-1][0]
    precisions = [", ".join(sorted({side.precision for side in sides} - {""})) for sides in _sides(used)]
    return PairedComparison(
        cell=cell,
        against=against,
        speed_up=_estimate(used, epoch_seconds, ratio_of_pairs),
        training=_estimate(used, train_seconds, ratio_of_pairs),
        memory=_estimate(measured_alike, _peak, ratio),  # a peak doesn't follow the machine's speed
        seconds=_typical(((record, ours) for record, ours, _ in used), epoch_seconds),
        against_seconds=_typical(((record, theirs) for record, _, theirs in used), epoch_seconds),
        train_seconds=_typical(((record, ours) for record, ours, _ in used), train_seconds),
        against_train_seconds=_typical(((record, theirs) for record, _, theirs in used), train_seconds),
        precisions=(precisions[0], precisions[1]),
        peak_bytes=_middle(ours.peak_memory_bytes for _, ours, _ in used),
        against_peak_bytes=_middle(theirs.peak_memory_bytes for _, _, theirs in used),
        pairs=len(used),
        unused=len(done) - len(used),
        rounds=tuple(map(len, ratios)),
        scatter=statistics.stdev(medians) if len(medians) > 1 else None,
        within=_middle(statistics.stdev(each) for each in ratios if len(each) > 1),
        drift=_middle(math.expm1(_slope(each) * (len(each) - 1)) for each in ratios if len(each) > 1),
        trend=math.expm1(_slope(medians)) if len(medians) >= MIN_SAMPLES else None,
        apart=next((record.apart for record, _, _ in used if record.apart), ""),
        lost=tuple(lost),
        work=next(((ours.work, theirs.work) for _, ours, theirs in used if ours.work and theirs.work), (None, None)),
        train_images=newest.train_images,
        val_images=newest.val_images,
    )


def _log_ratios(record: PairRecord, ours: TimedSide, theirs: TimedSide, part: Part) -> list[float]:
    """Logarithm of the other's value ÷ ours, by round."""
    values = zip(part(record, theirs), part(record, ours), strict=True)
    return [math.log(other) - math.log(own) for other, own in values]


def _estimate(used: Sequence[Both], part: Part, ratio_of: RatioOf) -> Estimate | None:
    """The ratio over pairs. Pairs without the value are left out of it."""
    logs = {
        number: statistics.median(found)
        for number, (record, ours, theirs) in enumerate(used)
        if part(record, ours) and part(record, theirs) and (found := _log_ratios(record, ours, theirs, part))
    }
    values = {number: math.exp(log) for number, log in logs.items()}
    return ratio_of(values, dict.fromkeys(values, 1.0))


def _peak(record: PairRecord, side: TimedSide) -> list[float]:
    return [float(side.peak_memory_bytes)] if side.peak_memory_bytes else []


def _typical(sides: Iterable[tuple[PairRecord, TimedSide]], part: Part) -> float | None:
    return _middle(statistics.median(found) for record, side in sides if (found := part(record, side)))


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _slope(logs: Sequence[float]) -> float:
    return float(np.polyfit(np.arange(len(logs)), logs, 1)[0])


def _lost(record: PairRecord, ours: TimedSide, theirs: TimedSide) -> LostPair:
    side = ours if ours.status != "done" else theirs
    return LostPair(number=record.pair.number, status=side.status, reason=side.reason)
