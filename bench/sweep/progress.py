"""Progress of a sweep: one live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from bench.analysis.metrics import METRICS, RATED_BY, costs, finished, headline
from bench.analysis.paired import compare
from bench.analysis.tally import Tally, tally
from bench.analysis.words import counted, in_words
from bench.console import say
from bench.store.pairs import PairRecord
from bench.store.records import Cell, PlannedPair, Record
from bench.sweep.pace import Pace
from tl.progress import EXTRACTING, PassProgress
from tl.regimes import REGIMES
from tl.results import EpochResult, accuracy_counts
from tl.tasks import TASKS
from tl.text import visible


class Reporter(Protocol):
    """Shows the progress of a sweep."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def started(self, cell: Cell) -> None:
        """A cell starts."""

    def stage(self, cell: Cell, text: str) -> None:
        """One of several trainings of a cell starts; `text` describes it in a few words."""

    def epoch(self, cell: Cell, row: EpochResult) -> None:
        """An epoch of a cell has ended."""

    def moved(self, cell: Cell, progress: PassProgress) -> None:
        """A pass of a cell over images goes on."""

    def warned(self, text: str) -> None:
        """Something disturbs a cell, such as another process."""

    def ended(self, record: Record) -> None:
        """A cell has ended, with or without a result."""

    def pair_started(self, pair: PlannedPair) -> None:
        """A process pair starts."""

    def pair_ended(self, record: PairRecord) -> None:
        """A process pair has ended, with or without turns."""


def make_reporter(
    console: Console,
    cells: Sequence[Cell],
    pairs: int = 0,
    *,
    before: Sequence[Record] = (),
    pairs_before: Sequence[PairRecord] = (),
) -> Reporter:
    """A live display if `console` is a terminal, otherwise plain lines.

    `cells` and `pairs` are those that the command runs; `before` and `pairs_before` are those of its cells and pairs
    that have ended before it.
    """
    make = LiveReporter if console.is_terminal else PlainReporter
    count = _Count(cells, tally((pair.status for pair in pairs_before), pairs, "pair"), before)
    return make(console, count)


FIRST_GUESS_SECONDS = 10.0
"""What a process pair is assumed to take until one has ended."""
SILENT_SECONDS = 30.0
"""Longest time without a line, where there is no live display and a pass goes on."""
WIDE = 100
"""Columns of a terminal that has room for a bar."""


class _Count:
    """Counts cells, epochs and process pairs, and estimates the time left."""

    def __init__(self, cells: Sequence[Cell], pairs: Tally, before: Sequence[Record]) -> None:
        self.cells, self.pairs = tally((record.status for record in before), len(cells)), pairs
        self.epochs = sum(cell.config.passes * cell.config.trainings for cell in cells)
        self.epochs_done = self.pairs_timed = 0
        self.pair_seconds = 0.0
        """Wall time of the pairs that have ended."""
        self.running: dict[str, int] = {}
        """Id of a running cell → its epochs so far; several cells run at a time on a cluster."""
        self._pace = Pace(cells)

    def left(self) -> str:
        """A rough estimate of the time left; empty while it can't be known. See `bench.sweep.pace`."""
        seconds = self._pace.left()
        if seconds is None or (not self.cells.left and not self.pairs_timed):
            return ""
        each = self.pair_seconds / self.pairs_timed if self.pairs_timed else FIRST_GUESS_SECONDS
        return f"about {_duration(seconds + each * self.pairs.left)} left"

    def start(self, cell: Cell) -> int:
        """Count a cell that starts, and return its number, from 1."""
        self.running[cell.id] = 0
        self._pace.start(cell)
        return self.cells.ended + len(self.running)

    def epoch(self, cell: Cell) -> None:
        self.epochs_done += 1
        self.running[cell.id] = self.running.get(cell.id, 0) + 1
        self._pace.epoch(cell)

    def end(self, record: Record) -> None:
        cell = record.cell
        self.cells = self.cells.after(record.status)
        # A cell that failed had fewer epochs than planned; one that was restarted on a cluster may have had more.
        self.epochs -= cell.config.passes * cell.config.trainings - self.running.pop(cell.id, 0)
        self._pace.end(cell, record.wall_seconds if record.status == "done" else None)

    def end_pair(self, record: PairRecord) -> None:
        self.pairs = self.pairs.after(record.status)
        self.pairs_timed += 1
        self.pair_seconds += record.wall_seconds

    def prefix(self, cell: Cell) -> str:
        """The cell's name as a prefix for a line; empty if only one cell runs."""
        return f"{_short(cell)}: " if len(self.running) > 1 else ""

    def moved(self, cell: Cell, progress: PassProgress) -> str:
        """How far the present epoch of a cell is, in words."""
        number = self.running.get(cell.id, 0) % cell.config.passes + 1
        in_epoch = REGIMES[cell.config.regime].by_steps and progress.what != EXTRACTING
        return f"epoch {number}/{cell.config.epochs}: {progress}" if in_epoch else f"{progress}"


class _Warnings:
    """Lets each warning through once. Figures in it don't make it another one; those in paths do."""

    def __init__(self) -> None:
        self._times: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def is_new(self, text: str) -> bool:
        """Count the warning; True if there was none like it."""
        key = text if "/" in text else re.sub(r"\d+(\.\d+)?", "#", text)
        self._first.setdefault(key, text)
        self._times[key] += 1
        return self._times[key] == 1

    def repeated(self) -> list[str]:
        """A line for each warning that came several times."""
        more = {key: count - 1 for key, count in self._times.items() if count > 1}
        return [f"{count} more time{'s' if count > 1 else ''}: {self._first[key]}" for key, count in more.items()]


class PlainReporter:
    """Prints one line for each start, epoch and end of a cell or pair."""

    def __init__(self, console: Console, count: _Count) -> None:
        self._console, self._count, self._warnings = console, count, _Warnings()
        self._said = time.monotonic()
        """When the latest line was printed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for text in self._warnings.repeated():
            self._say(f"WARNING, {text}")

    def started(self, cell: Cell) -> None:  # noqa: D102 - see Reporter
        self._say(f"[{self._count.start(cell)}/{self._count.cells.planned}] {cell}")

    def stage(self, cell: Cell, text: str) -> None:  # noqa: D102
        self._say(f"    {self._count.prefix(cell)}{text}")

    def moved(self, cell: Cell, progress: PassProgress) -> None:  # noqa: D102
        if time.monotonic() - self._said >= SILENT_SECONDS:
            self._say(f"    {self._count.prefix(cell)}{self._count.moved(cell, progress)}")

    def epoch(self, cell: Cell, row: EpochResult) -> None:  # noqa: D102
        self._count.epoch(cell)
        left = self._count.left()
        self._say(f"    {self._count.prefix(cell)}{_epoch_text(cell, row)}{', ' + left if left else ''}")

    def warned(self, text: str) -> None:  # noqa: D102
        if self._warnings.is_new(text):
            self._say(f"    WARNING: {text}")

    def ended(self, record: Record) -> None:  # noqa: D102
        prefix = self._count.prefix(record.cell)
        self._count.end(record)
        self._say(f"    {prefix}{_end_text(record)}")

    def pair_started(self, pair: PlannedPair) -> None:  # noqa: D102
        self._say(f"[pair {self._count.pairs.ended + 1}/{self._count.pairs.planned}] {pair}")

    def pair_ended(self, record: PairRecord) -> None:  # noqa: D102
        self._count.end_pair(record)
        left = self._count.left() if self._count.pairs.left else ""
        self._say(f"    {_pair_text(record)}{', ' + left if left else ''}")

    def _say(self, text: str) -> None:
        say(self._console, text)
        self._said = time.monotonic()


class LiveReporter:
    """Updates one line at the bottom of the terminal, and prints a line above it for each cell that has ended."""

    def __init__(self, console: Console, count: _Count) -> None:
        self._console, self._count, self._warnings = console, count, _Warnings()
        bar = [BarColumn(bar_width=10)] if console.width >= WIDE else []
        # Redrawing more often than once per second would disturb the measurement.
        self._bar = Progress(
            _CellColumn(table_column=Column(ratio=1, no_wrap=True)),
            *bar,
            TextColumn("{task.fields[cells]}", table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
            refresh_per_second=1,
            transient=True,
        )
        self._stages: dict[str, str] = {}
        """Id of a cell → the text of its current stage."""
        self._task = self._bar.add_task("", total=None, cells="", cell="", left="")
        self._update(cell="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        for text in self._warnings.repeated():
            self._bar.console.print(Text(visible(f"! {text}"), style="yellow"), soft_wrap=True)
        self._bar.stop()

    def started(self, cell: Cell) -> None:  # noqa: D102 - see Reporter
        self._stages.pop(cell.id, None)
        self._count.start(cell)
        self._update(cell=f"{_short(cell)}")

    def stage(self, cell: Cell, text: str) -> None:  # noqa: D102
        self._stages[cell.id] = f"{text}, "
        self._update(cell=f"{text} · {_short(cell)}")

    def moved(self, cell: Cell, progress: PassProgress) -> None:  # noqa: D102
        changing = f"{self._stages.get(cell.id, '')}{self._count.moved(cell, progress)}"
        self._update(cell=f"{changing} · {_short(cell)}")

    def epoch(self, cell: Cell, row: EpochResult) -> None:  # noqa: D102
        self._count.epoch(cell)
        # What changes comes first, since a narrow terminal cuts off the end.
        changing = f"{self._stages.get(cell.id, '')}{_pass_text(cell, row)}, {_accuracy_text(cell, row)}"
        self._update(cell=f"{changing} · {_short(cell)}")

    def warned(self, text: str) -> None:  # noqa: D102
        if self._warnings.is_new(text):
            self._bar.console.print(Text(visible(f"! {text}"), style="yellow"), soft_wrap=True)

    def ended(self, record: Record) -> None:  # noqa: D102
        self._count.end(record)
        mark, colour = {"done": ("✓", "green"), "skipped": ("–", "yellow")}.get(record.status, ("✗", "red"))
        line = Text.assemble(
            (f"{mark} ", colour),
            visible(f"{record.cell}  "),
            (visible(_end_text(record)), "dim" if colour == "green" else colour),
        )
        self._bar.console.print(line, soft_wrap=True)
        self._update(cell="")

    def pair_started(self, pair: PlannedPair) -> None:  # noqa: D102
        self._update(cell=f"{pair}")

    def pair_ended(self, record: PairRecord) -> None:  # noqa: D102
        self._count.end_pair(record)
        mark, colour = ("✓", "green") if record.status == "done" else ("✗", "red")
        text = visible(_pair_text(record))
        line = Text.assemble(
            (f"{mark} ", colour), visible(f"{record.pair}  "), (text, "dim" if mark == "✓" else colour)
        )
        self._bar.console.print(line, soft_wrap=True)
        self._update(cell="")

    def _update(self, *, cell: str) -> None:
        count = self._count
        now = count.pairs if count.pairs.planned and not count.cells.left else count.cells
        self._bar.update(
            self._task,
            completed=count.epochs_done + count.pairs_timed,
            total=count.epochs + count.pairs_timed + count.pairs.left,
            cells=now.short,
            cell=cell,
            left=count.left(),
            refresh=True,
        )


class _CellColumn(ProgressColumn):
    """What runs, cut to the available width."""

    def render(self, task: Task) -> Text:
        return Text(visible(task.fields["cell"]), overflow="ellipsis", no_wrap=True)


def _short(cell: Cell) -> str:
    return " ".join([cell.config.regime, cell.config.spec.name, cell.device, *cell.unusual()])


def _pass_text(cell: Cell, row: EpochResult) -> str:
    if row.seconds is None:
        return "validation pass"
    return f"epoch {row.epoch + 1}/{cell.config.epochs}" if REGIMES[cell.config.regime].by_steps else "fit"


def _epoch_text(cell: Cell, row: EpochResult) -> str:
    text = f"{_pass_text(cell, row)}: {_accuracy_text(cell, row)}"
    if row.seconds is None or row.train_loss is None:
        return f"{text}, {row.val_seconds:.1f} s"
    return f"{text}, loss {row.train_loss:.3f}, {row.seconds:.1f} s"


def _accuracy_text(cell: Cell, row: EpochResult) -> str:
    counts = accuracy_counts(cell.config.regime, cell.config.weights)
    score = TASKS[cell.config.task].score
    return f"{score} {row.val_accuracy:.1%}" if counts else f"{score} n/a"


def _end_text(record: Record) -> str:
    cell = finished(record)
    if cell is None:
        return f"{record.status}: {record.reason}"
    values = {name: METRICS[name].of(cell) for name in headline()}
    by_steps = REGIMES[record.cell.config.regime].by_steps
    left_out = set() if by_steps else {name for name in costs() if values[name] is None}
    task = TASKS[record.cell.config.task]
    said = {name: in_words(METRICS[name].phrase, task).format(METRICS[name].say(values[name])) for name in values}
    if by_steps:
        said[RATED_BY] += " after the last epoch"
    figures = [text for name, text in said.items() if name not in left_out]
    if constant := cell.result.constant_prediction:
        figures.append(f"predicts {constant!r} for every image")
    if cell.result.frozen_verified is False:
        figures.append("NOT FROZEN")
    return f"done in {_duration(record.wall_seconds)}: {', '.join(figures)}"


def _pair_text(record: PairRecord) -> str:
    took = f"in {_duration(record.wall_seconds)}"
    apart = f"; one after the other, because {record.apart}" if record.apart else ""
    lost = [f"{status}: {reason}" for status, reason in record.lost]
    turns = counted(max(len(side.turns or ()) for side in record.sides), "turn")
    timed = [f"timed {took}, {turns} each: {_shares(record)}{apart}"] if record.status == "done" else []
    return "; ".join([*timed, *lost]) + ("" if timed else apart)


def _shares(record: PairRecord) -> str:
    """What each cell takes of the time of the first one that has a result."""
    first, *others = (cell for cell, side in zip(record.pair.cells, record.sides, strict=True) if side.status == "done")
    found = [one for cell in others if (one := compare(cell, first, [record])) and one.share]
    shares = [f"{one.names[0]} {one.share:.0%}" for one in found]
    return f"{', '.join(shares)} of the time of {found[0].names[1] if found else first.config.regime}"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{round(seconds, 1):g} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
