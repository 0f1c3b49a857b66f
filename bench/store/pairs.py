"""Records of paired timing, one file per process pair (`bench.store.runs`). Imports neither torch nor pandas.

A process pair is one fresh process for each of several cells. All are kept alive and take turns. A turn is a fixed
number of training steps and of validation batches, timed apart.
"""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field, model_validator

from bench.store.environment import Environment, MachineState
from bench.store.records import SCHEMA_VERSION, Cell, PlannedPair
from tl.results import Work
from tl.strict import Count, PassSeconds, Positive, Seconds, Strict

SideStatus = Literal["done", "failed", "oom", "timeout", "skipped", "diverged"]


class Turns(Strict):
    """The raw turns of one process, in the order in which it took them. All tuples have one value per turn."""

    train_seconds: tuple[PassSeconds, ...] = Field(description="empty if the cell trains nothing")
    train_images: tuple[Positive, ...] = Field(description="images of the training steps of each turn")
    val_seconds: tuple[PassSeconds, ...] = Field(min_length=1)
    val_images: tuple[Positive, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_value_per_turn(self) -> Turns:
        count = len(self.val_seconds)
        for name in ("val_images", "train_seconds", "train_images"):
            values = getattr(self, name)
            if len(values) != count and (values or name == "val_images"):
                raise ValueError(f"{name} has {len(values)} values, and there are {count} turns")
        if bool(self.train_seconds) is not bool(self.train_images):
            raise ValueError("train_seconds and train_images must both have values, or neither")
        return self

    def __len__(self) -> int:
        return len(self.val_seconds)


class TimedSide(Strict):
    """What one process of a pair measured."""

    status: SideStatus
    reason: str = Field("", description="one line; empty when done")
    traceback: str = ""
    turns: Turns | None = Field(None, description="None if the status is not `done`")
    start_seconds: Seconds | None = Field(
        None,
        description="seconds per epoch for starting and ending the loaders' workers, which turns leave out; 0 for "
        "execution `fast`, which has none",
    )
    setup_seconds: Seconds | None = Field(
        None,
        description="from the start of the call in its process until its training was prepared, while the pair's other "
        "processes prepared theirs",
    )
    warm_up_seconds: Seconds | None = Field(None, description="warm-up steps before the first turn")
    peak_memory_bytes: Count | None = Field(
        None, description="peak of the turns, measured as that of a training; None if it is unknown"
    )
    memory_method: str = ""
    threads: Positive | None = None
    device_name: str = ""
    allocator: str = ""
    work: Work | None = Field(None, description="work of the first warm-up step; None if nothing trains")
    precision: str = Field("", description="the precision that ran, never `auto`; empty before version 10")
    memory_format: str = Field("", description="the layout of tensors; empty before version 10")

    @model_validator(mode="after")
    def _turns_if_done(self) -> TimedSide:
        if (self.status == "done") is not (self.turns is not None):
            raise ValueError(f"status {self.status!r} {'without' if self.turns is None else 'with'} turns")
        return self


class PairRecord(Strict):
    """The outcome of a process pair."""

    schema_version: int = SCHEMA_VERSION
    pair_id: str
    pair: PlannedPair
    dataset: str
    train_images: Positive = Field(description="training images of an epoch")
    val_images: Positive = Field(description="validation images of an epoch")
    fallback: str = Field("", description="why the images are synthetic; empty for real images")
    status: SideStatus = Field(description="`done` if at least two sides are")
    reason: str = Field("", description="one line; empty when done")
    together: bool = Field(
        True, description="False if memory didn't suffice for all at once, so they were timed one after the other"
    )
    apart: str = Field("", description="why they were timed one after the other, with sizes; empty if together")
    steps: Count = Field(description="training steps of a turn; 0 if nothing trains or no turn was taken")
    batches: Count = Field(description="validation batches of a turn; 0 if no turn was taken")
    sides: tuple[TimedSide, ...] = Field(description="one per cell of the pair, in the same order")
    started: AwareDatetime
    order: Count | None = Field(None, description="position of the pair among the pairs that its command ran, from 0")
    attempts: Count = 1
    wall_seconds: Seconds
    environment: Environment
    machine: MachineState | None = Field(None, description="None if no process was started")

    @model_validator(mode="after")
    def _a_side_per_cell(self) -> PairRecord:
        if len(self.sides) != len(self.pair.cells):
            raise ValueError(f"{len(self.sides)} sides, and the pair has {len(self.pair.cells)} cells")
        done = sum(side.status == "done" for side in self.sides)
        if (self.status == "done") is not (done >= 2):
            raise ValueError(f"status {self.status!r} with {done} sides that are done")
        if bool(self.apart) is self.together:
            raise ValueError(f"together={self.together} with apart={self.apart!r}")
        return self

    def side(self, cell: Cell) -> TimedSide | None:
        """The side of a cell, whatever its seed; None if the pair has no such cell."""
        keys = [each.repeats for each in self.pair.cells]
        return self.sides[keys.index(cell.repeats)] if cell.repeats in keys else None

    @property
    def lost(self) -> list[tuple[SideStatus, str]]:
        """Status and reason of the pair if it is not done, otherwise of each side that is not; reasons name regimes."""
        if self.status != "done":
            return [(self.status, self.reason)]
        sides = zip(self.pair.cells, self.sides, strict=True)
        return [(side.status, f"{cell.config.regime}: {side.reason}") for cell, side in sides if side.status != "done"]

    @property
    def settled(self) -> bool:
        """True if the pair need not be timed again: what it lost would diverge again, or, beside two sides that are
        done, makes no sense. As with cells, a pair that was skipped as a whole is tried again.
        """
        again = ("diverged",) if self.status != "done" else ("diverged", "skipped")
        return all(status in again for status, _ in self.lost)

    def has_all_of(self, other: PairRecord) -> bool:
        """True if nothing that another record of this pair has is missing here: no side that is done, and no turns of
        processes that were alive at the same time.
        """
        if other.status != "done":
            return True
        sides = zip(self.sides, other.sides, strict=True)
        kept = all(mine.status == "done" for mine, theirs in sides if theirs.status == "done")
        return kept and (self.together or not other.together)

    def __str__(self) -> str:
        return str(self.pair)
