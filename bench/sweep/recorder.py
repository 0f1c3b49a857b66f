"""Writes records and shows progress from the events of an executor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from bench.execution.base import Attempt, Outcome
from bench.execution.signals import signals_delivered
from bench.store.environment import Environment
from bench.store.records import Cell, Record
from bench.sweep.options import Options
from bench.sweep.plan import Sweep
from bench.sweep.progress import Reporter
from bench.sweep.weights import Answer
from tl.folds import images_per_epoch
from tl.progress import PassProgress
from tl.results import EpochResult
from tl.weights import Weights


@dataclass
class Recorder:
    """Writes a record when a cell has ended, and reports progress. It implements `bench.execution.base.Events`."""

    sweep: Sweep
    options: Options
    reporter: Reporter
    records: dict[str, Record]
    """Cell id → record. New records are added here."""
    located: dict[str, Answer]
    """Cell id → weights, with the path of their file."""
    machine: Environment
    """The environment of the process that runs the sweep."""
    order: int
    """Position of the next cell to start among all cells that the command runs."""

    def __post_init__(self) -> None:
        self.blocks = sorted({cell.config.seed for cell in self.sweep.cells.values()})
        self.orders: dict[str, int] = {}
        self.ran_out: dict[str, int] = {}
        """Key of a cell without its seed and batch size → the smallest batch size that ran out of memory."""
        for record in self.sweep.done.values():  # from seeds that this command has already run
            self._note_oom(record.cell, record.status)

    def _note_oom(self, cell: Cell, status: str) -> None:
        if status == "oom":
            key = cell.key("seed", "batch_size")
            self.ran_out[key] = min(cell.config.batch_size, self.ran_out.get(key, cell.config.batch_size))

    def started(self, cell: Cell) -> None:  # noqa: D102 - see Events
        self.orders[cell.id] = self.order
        self.order += 1
        with signals_delivered():  # writing to a terminal can block
            self.reporter.started(cell)

    def progressed(self, cell: Cell, event: EpochResult | PassProgress | str) -> None:  # noqa: D102 - see Events
        with signals_delivered():
            if isinstance(event, str):
                self.reporter.stage(cell, event)
            elif isinstance(event, PassProgress):
                self.reporter.moved(cell, event)
            else:
                self.reporter.epoch(cell, event)

    def warned(self, text: str) -> None:  # noqa: D102 - see Events
        # Signals stay deferred: a warning may come when the cell has ended and its record is not written yet.
        self.reporter.warned(text)

    def skip(self, cell: Cell) -> bool:  # noqa: D102 - see Events
        answer, smallest = self.located[cell.id], self.ran_out.get(cell.key("seed", "batch_size"), math.inf)
        if isinstance(answer, str):
            self._record_unstarted(cell, "failed", answer)
        elif self.options.skip_larger_after_oom and smallest < cell.config.batch_size:
            reason = f"not tried: batch size {smallest} ran out of memory (--skip-larger-after-oom)"
            self._record_unstarted(cell, "skipped", reason)
        else:
            return False
        return True

    def _record_unstarted(self, cell: Cell, status: Literal["failed", "skipped"], reason: str) -> None:
        self.started(cell)
        outcome = Outcome(status=status, reason=reason, wall_seconds=0.0)
        now = datetime.now(UTC)
        self.ended(cell, Attempt(outcome=outcome, started=now, environment=self.machine, machine=None, attempts=0))

    def ended(self, cell: Cell, attempt: Attempt) -> None:  # noqa: D102 - see Events
        splits, answer, outcome = self.sweep.splits, self.located[cell.id], attempt.outcome
        self._note_oom(cell, outcome.status)
        result, allocator = outcome.value if outcome.status == "done" else (None, "")
        record = Record(
            cell_id=cell.id,
            cell=cell,
            dataset=splits.name,
            train_images=images_per_epoch(cell.config, splits),
            fallback=splits.fallback,
            weights=answer if isinstance(answer, Weights) else None,
            status=outcome.status,
            reason=outcome.reason,
            epochs=outcome.value if outcome.status == "diverged" else (),
            traceback=outcome.traceback,
            started=attempt.started,
            block=self.blocks.index(cell.config.seed),
            order=self.orders[cell.id],
            attempts=attempt.attempts,
            wall_seconds=outcome.wall_seconds,
            allocator=allocator,
            environment=attempt.environment,
            machine=attempt.machine,
            result=result,
        )
        self.records[cell.id] = record
        self.sweep.run.write_record(record)
        with signals_delivered():
            self.reporter.ended(record)
            if self.options.on_record:
                self.options.on_record(self.sweep.run)
