"""Paired timing in a sweep: which cells are timed against each other, the pairs' jobs, and their records.

Claims about times and memory say which cells are compared. All cells that are comparable with the same one are timed
in one rotation, so a pair of `finetune`, `frozen` and `frozen-tutorial` serves two comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np

from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.groups import all_else
from bench.execution.base import PairAttempt, PairJob
from bench.execution.signals import signals_delivered
from bench.store.environment import Environment
from bench.store.pairs import PairRecord, TimedSide
from bench.store.records import Cell, PlannedPair, Record
from bench.store.runs import RunFolder
from bench.sweep.weights import Answer
from tl.datasets import Splits
from tl.regimes import REGIMES
from tl.seeding import seed_for
from tl.weights import Weights

T = TypeVar("T")
TIMED = ("epoch_seconds", "train_epoch_seconds", "peak_memory_bytes")
"""Metrics that pairs measure. Claims about them say which cells are paired."""


def pairings(cells: Collection[Cell], claims: Iterable[Claim]) -> list[tuple[Cell, ...]]:
    """The cells that are timed in turns, per rotation: first the one that the others are compared with.

    Cells have seed 0. Cells without turns (`without_turns`) are left out.
    """
    bare = list(dict.fromkeys(cell.but(seed=0) for cell in cells if not without_turns(cell)))
    found: dict[tuple[str, str], dict[str, Cell]] = {}
    """Two regimes → key that a cell of the first has for the second (`all_else`) → that cell; the first that was
    planned counts, as for claims."""

    def counterpart(cell: Cell, regime: str) -> Cell | None:
        place = (regime, cell.config.regime)
        if place not in found:
            others = [one for one in bare if one.config.regime == regime]
            found[place] = {all_else(one, cell.config.regime): one for one in reversed(others)}
        return found[place].get(all_else(cell, regime))

    rotations: dict[str, set[str]] = {}
    """Id of a cell → ids of those that are compared with it."""
    for claim in claims:
        for cell in bare:
            if not claim.is_about(cell.config.regime, cell.config.execution):
                continue
            if other := counterpart(cell, claim.against):
                rotations.setdefault(other.id, set()).add(cell.id)
    order = {cell.id: (place, cell) for place, cell in enumerate(bare)}
    return [
        (cell, *(each for _, each in sorted((order[one] for one in rotations[cell.id]), key=lambda pair: pair[0])))
        for cell in bare
        if cell.id in rotations
    ]


def without_turns(cell: Cell) -> str:
    """Why a cell can't be timed in turns; empty if it can."""
    regime = REGIMES[cell.config.regime]
    if cell.config.protocol == "kfold":
        return "protocol kfold trains several times on other images"
    if not regime.trains:
        return "it trains nothing"
    if regime.trainable.in_turn:
        return "it trains other stages in other epochs"
    return "" if regime.features == "each step" else "its features are extracted once"


def why_unpaired(cells: Collection[Cell], claims: Iterable[Claim]) -> str:
    """Why none of these cells are paired, in words."""
    reasons = {without_turns(cell) for cell in cells}
    if len(reasons) == 1 and (only := reasons.pop()):
        return only
    for claim in claims:
        against = [cell for cell in cells if cell.config.regime == claim.against]
        about = [cell for cell in cells if claim.is_about(cell.config.regime, cell.config.execution)]
        for cell in (*about, *against) if about and against else ():
            if why := without_turns(cell):
                return f"regime {cell.config.regime!r} can't be: {why}"
    return "no claim about time or memory compares two of these cells"


def plan_pairs(rotations: Sequence[tuple[Cell, ...]], count: int, seconds: float, run: str) -> dict[str, PlannedPair]:
    """Id → pair, `count` of each rotation, in the order in which they run.

    The pairs with the same number run one after the other, in random order, so a machine that drifts for minutes does
    so for all rotations. The order depends only on the arguments.
    """
    planned: dict[str, PlannedPair] = {}
    for number in range(count):
        for cells in in_random_order(rotations, run, number):
            pair = PlannedPair(cells=cells, number=number, seconds=seconds)
            planned[pair.id] = pair
    return planned


def in_random_order(some: Sequence[T], run: str, number: int) -> list[T]:
    """What a run times in a round with this number, in an order that depends only on the arguments."""
    shuffled = np.random.default_rng(seed_for("order of pairs", run, number)).permutation(len(some))
    return [some[place] for place in shuffled.tolist()]


def claims_timed(own: Sequence[Claim]) -> list[Claim]:
    """The claims of a run that are about times or memory; `own` are those of its grid."""
    return [claim for claim in (*CLAIMS.values(), *own) if claim.metric in TIMED]


def make_pair_record(
    pair: PlannedPair, attempt: PairAttempt, splits: Splits, *, order: int | None = None
) -> PairRecord:
    """The record of a pair that has ended."""
    return PairRecord(
        pair_id=pair.id,
        pair=pair,
        dataset=splits.name,
        train_images=len(splits.train),
        val_images=len(splits.val),
        fallback=splits.fallback,
        status=attempt.status,
        reason=attempt.reason,
        together=not attempt.apart,
        apart=attempt.apart,
        steps=attempt.steps,
        batches=attempt.batches,
        sides=attempt.sides,
        started=attempt.started,
        order=order,
        attempts=attempt.attempts,
        wall_seconds=attempt.wall_seconds,
        environment=attempt.environment,
        machine=attempt.machine,
    )


@dataclass
class PairRecorder:
    """Writes a record when a pair has ended, and reports progress. It implements `bench.execution.base.PairEvents`."""

    run: RunFolder
    splits: Splits
    on_start: Callable[[PlannedPair], None]
    on_warning: Callable[[str], None]
    on_end: Callable[[PairRecord], None]
    order: int
    """Position of the next pair among all pairs that the command runs."""
    earlier: Mapping[str, PairRecord]
    """Id → record of the pairs that were timed before and have lost something."""

    def __post_init__(self) -> None:
        self._orders: dict[str, int] = {}

    def pair_started(self, pair: PlannedPair) -> None:  # noqa: D102 - see PairEvents
        self._orders[pair.id] = self.order
        self.order += 1
        with signals_delivered():  # writing to a terminal can block
            self.on_start(pair)

    def warned(self, text: str) -> None:  # noqa: D102 - see PairEvents
        self.on_warning(text)

    def pair_ended(self, pair: PlannedPair, attempt: PairAttempt) -> None:  # noqa: D102 - see PairEvents
        record = make_pair_record(pair, attempt, self.splits, order=self._orders[pair.id])
        earlier = self.earlier.get(pair.id)
        worse = earlier is not None and not record.has_all_of(earlier)
        self.run.write_pair(record, beside=worse)
        with signals_delivered():
            if worse:
                text = (
                    f"{pair}: has less than the time before; the earlier record stays, and this one is in superseded/"
                )
                self.on_warning(text)
            self.on_end(record)

    def without_weights(self, pair: PlannedPair, reason: str, machine: Environment) -> None:
        """Record a pair that can't start, because a backbone has no weights."""
        self.pair_started(pair)
        sides = (TimedSide(status="failed", reason=reason),) * len(pair.cells)
        now = datetime.now(UTC)
        self.pair_ended(
            pair,
            PairAttempt(
                status="failed",
                reason=reason,
                sides=sides,
                started=now,
                wall_seconds=0.0,
                environment=machine,
                attempts=0,
            ),
        )


def time_limit(pair: PlannedPair, seconds: float | None) -> float | None:
    """The limit of each process of a pair: that of a training, and the time for turns, in which it mostly waits."""
    return None if seconds is None else seconds + pair.seconds * len(pair.cells)


def pair_jobs(
    pairs: Iterable[PlannedPair],
    weights: Mapping[str, Answer],
    records: Collection[Record],
    splits: Splits,
    recorder: PairRecorder,
    machine: Environment,
    *,
    timeout: float | None,
    memory_bytes: int | None,
) -> Iterator[PairJob]:
    """Yield the jobs of the pairs, without those that can't start.

    `weights` maps a cell without its seed (`Cell.repeats`) to its weights with the path of their file. `timeout` is
    that of a training, in seconds.
    """
    needed: dict[str, int] = {}
    for record in records:
        if record.result and (peak := record.result.peak_memory_bytes):
            key = record.cell.repeats
            needed[key] = max(peak, needed.get(key, 0))
    for pair in pairs:
        given = [weights[cell.repeats] for cell in pair.cells]
        if missing := next((each for each in given if isinstance(each, str)), ""):
            recorder.without_weights(pair, missing, machine)
            continue
        yield PairJob(
            pair=pair,
            splits=splits,
            weights=tuple(each for each in given if isinstance(each, Weights)),
            log=recorder.run.log(pair.id),
            timeout_seconds=time_limit(pair, timeout),
            memory_bytes=memory_bytes,
            needed_bytes=tuple(needed.get(cell.repeats) for cell in pair.cells),
        )
