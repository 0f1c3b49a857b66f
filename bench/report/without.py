"""Groups what has no result by how it ended and why: cells that differ in their seed alone, and process pairs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bench.analysis.metrics import listed
from bench.report.summary import Summary
from bench.store.pairs import PairRecord
from bench.store.records import Record

_FEWEST_IN_A_ROW = 3
"""From this many neighbouring numbers on only the ends are named."""
_NAMED = 3
"""So many cells or pairs a line on the terminal names."""


@dataclass(frozen=True, kw_only=True)
class Without:
    """Cells or process pairs that ended in the same way for the same reason."""

    status: str
    reason: str
    """That of all, or that of the first after "such as", where the others' have other figures in it."""
    names: tuple[str, ...]
    """Each cell with its seeds, or each set of cells with the numbers of its pairs."""
    traceback: str
    """That of the first; empty without one."""

    @property
    def bad(self) -> bool:
        """True if there should be a result."""
        return self.status != "skipped"

    def __str__(self) -> str:
        """A line for the terminal, which names the first few."""
        some = [*self.names[:_NAMED], *([f"{more} more"] if (more := len(self.names) - _NAMED) > 0 else [])]
        return ": ".join(text for text in (self.status, "; ".join(some), self.reason) if text)


@dataclass
class _Reasons:
    """What is collected of one status and reason."""

    traceback: str
    texts: dict[str, None] = field(default_factory=dict)
    """Those that differ in figures alone, in their order."""
    numbers: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """Name and noun (`seed` or `pair`) → numbers."""


class _Found:
    """Collects what has no result."""

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, str], _Reasons] = {}

    def add(self, status: str, reason: str, name: str, noun: str, number: int, traceback: str = "") -> None:
        one = self._reasons.setdefault((status, _without_figures(reason)), _Reasons(traceback))
        one.texts[reason] = None
        one.numbers.setdefault((name, noun), []).append(number)

    def add_cell(self, record: Record, run: str = "") -> None:
        if record.status != "done":
            name, seed = _of_run(record.cell.name, run), record.cell.config.seed
            self.add(record.status, record.reason, name, "seed", seed, record.traceback)

    def add_pair(self, record: PairRecord, run: str = "") -> None:
        for status, reason in record.lost:
            self.add(status, reason, _of_run(record.pair.name, run), "pair", record.pair.number + 1)

    def entries(self) -> list[Without]:
        return [
            Without(
                status=status,
                reason=_reason(list(one.texts)),
                names=tuple(_names(one.numbers.items())),
                traceback=one.traceback,
            )
            for (status, _), one in self._reasons.items()
        ]


def without_result(summary: Summary) -> list[Without]:
    """All cells without a result, and pairs that failed or lost one, with what ended in the same way in one entry."""
    several = len(summary.runs) > 1
    found = _Found()
    for run, record in summary.records:
        found.add_cell(record, run if several else "")
    for run, cell in summary.missing:
        found.add("not run yet", "", _of_run(cell.name, run if several else ""), "seed", cell.config.seed)
    for run, pair in summary.pairs:
        found.add_pair(pair, run if several else "")
    return found.entries()


def lost(records: Iterable[Record | PairRecord]) -> list[Without]:
    """The same of records of one run."""
    found = _Found()
    for record in records:
        found.add_pair(record) if isinstance(record, PairRecord) else found.add_cell(record)
    return found.entries()


def _reason(several: Sequence[str]) -> str:
    return several[0] if len(several) == 1 else f"such as: {several[0]}"


def _of_run(name: str, run: str) -> str:
    return f"{name} ({run})" if run else name


def _without_figures(reason: str) -> str:
    """A reason without bytes, seconds and the like, which differ from seed to seed; an exit status stays."""
    return re.sub(r"\d+(?:[.,]\d+)*(?= ?(?:[KMGT]i?B|bytes|m?s|seconds|minutes|h)\b)", "#", reason)


def _names(found: Iterable[tuple[tuple[str, str], Sequence[int]]]) -> list[str]:
    names = []
    for (name, noun), numbers in found:
        comma = "," if noun == "pair" else ""
        plural = "s" if len(numbers) > 1 else ""
        names.append(f"{name}{comma} {noun}{plural} {_ranges(numbers)}")
    return names


def _ranges(numbers: Sequence[int]) -> str:
    """Such as `0–4 and 7`."""
    ordered = sorted(set(numbers))
    starts = [0, *(at + 1 for at, (one, other) in enumerate(pairwise(ordered)) if other != one + 1), len(ordered)]
    rows = [ordered[start:end] for start, end in pairwise(starts)]
    texts = [
        [f"{row[0]}–{row[-1]}"] if len(row) >= _FEWEST_IN_A_ROW else [str(number) for number in row] for row in rows
    ]
    return listed([text for some in texts for text in some])
