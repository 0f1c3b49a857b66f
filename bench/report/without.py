"""Groups what has no result by how it ended and why: cells that differ in their seed alone, and process pairs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from bench.analysis.metrics import listed
from bench.report.summary import Summary

_FEWEST_IN_A_ROW = 3
"""From this many neighbouring numbers on only the ends are named."""


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


@dataclass
class _Found:
    """What is collected of one status and reason."""

    reasons: dict[str, None]
    """Those that differ in figures alone, in their order."""
    traceback: str
    numbers: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """Name and noun (`seed` or `pair`) → numbers."""


def without_result(summary: Summary) -> list[Without]:
    """All cells without a result, and pairs that failed or lost one, with what ended in the same way in one entry."""
    found: dict[tuple[str, str], _Found] = {}

    def add(status: str, reason: str, name: str, noun: str, number: int, traceback: str = "") -> None:
        one = found.setdefault((status, _without_figures(reason)), _Found({}, traceback))
        one.reasons[reason] = None
        one.numbers.setdefault((name, noun), []).append(number)

    several = len(summary.runs) > 1
    for run, record in summary.records:
        if record.status != "done":
            name, seed = record.cell.name, record.cell.config.seed
            add(record.status, record.reason, _of_run(name, run, several), "seed", seed, record.traceback)
    for run, cell in summary.missing:
        add("not run yet", "", _of_run(cell.name, run, several), "seed", cell.config.seed)
    for run, pair in summary.pairs:
        for status, reason in pair.lost:
            add(status, reason, _of_run(pair.pair.name, run, several), "pair", pair.pair.number + 1)
    return [
        Without(
            status=status,
            reason=_reason(list(one.reasons)),
            names=tuple(_names(one.numbers.items())),
            traceback=one.traceback,
        )
        for (status, _), one in found.items()
    ]


def _reason(several: Sequence[str]) -> str:
    return several[0] if len(several) == 1 else f"such as: {several[0]}"


def _of_run(name: str, run: str, several: bool) -> str:
    return f"{name} ({run})" if several else name


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
