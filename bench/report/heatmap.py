"""The heat map of a report. It has one row per backbone (and device and setting, if several), one column per regime."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.analysis.groups import Group
from bench.analysis.metrics import METRICS, ComparedBy, headline
from bench.report.summary import Summary
from bench.report.tables import show
from bench.store.records import Cell, Lost
from tl.regimes import REGIMES

LEAST: dict[ComparedBy, float] = {"difference": 0.1, "ratio": math.log(2), "exact": math.log(2)}
"""Smallest range of values that the shades span, so that small differences look small: 10 points, or a factor of 2."""
FEWEST = 3
"""With fewer values there is no shade: darker than one other says nothing."""


MOST_ACROSS = 9
"""With more columns than this the matrix is turned if that makes it narrower, and its headings stand upright."""


Ends = tuple[float, float]
"""The values that the shades of a metric span."""


@dataclass(frozen=True, kw_only=True)
class Shade:
    """The value and the shade of one metric in one square."""

    text: str
    unit: str
    share: float | None
    """How good the value is among all squares, from 0 (worst) to 1 (best); None if unknown, or one of too few."""


@dataclass(frozen=True, kw_only=True)
class Square:
    """The square of one row and one regime."""

    number: int | None
    """Index of its group in the summary; None without a result."""
    shades: dict[str, Shade]
    """Metric → shade; empty without a result."""
    status: str
    """What happened to seeds without a result: `failed`, `2 of 3 seeds: oom`, `not run`; empty if there are none."""
    reason: str
    bad: bool
    """True if a seed lacks a result that it should have; skipped seeds should not."""


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """All cells of a report, as rows of squares."""

    regimes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Square | None, ...]], ...]
    """Name of each row and its squares, one per regime; None for a combination that was not planned."""
    metrics: tuple[str, ...]
    """The headline metrics that some cell has. The page first shows the first of them."""

    @property
    def turned(self) -> bool:
        """True if a page shows a row per regime, since the columns of regimes would not fit."""
        return len(self.rows) < len(self.regimes) > MOST_ACROSS

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the columns on a page."""
        return tuple(name for name, _ in self.rows) if self.turned else self.regimes

    @property
    def lines(self) -> tuple[tuple[str, tuple[Square | None, ...]], ...]:
        """Headings and squares of the rows on a page."""
        if not self.turned:
            return self.rows
        by_regime = zip(*(squares for _, squares in self.rows), strict=True)
        return tuple(zip(self.regimes, by_regime, strict=True))

    @property
    def dense(self) -> bool:
        """True if there are so many columns that their headings stand upright."""
        return len(self.columns) > MOST_ACROSS


def make_heatmap(summary: Summary) -> Heatmap:
    """Make the heat map of all planned cells: finished, failed, skipped or not run."""
    finished: dict[tuple[str, str], tuple[int, Group]] = {}
    lost: dict[tuple[str, str], list[Lost]] = {}
    names: dict[str, None] = {}
    for number, group in enumerate(summary.groups):
        name = summary.short(group)
        names[name] = None
        finished[name, group.config.regime] = (number, group)
    unfinished: list[tuple[str, Cell, Lost]] = [
        (run, r.cell, Lost.of(r)) for run, r in summary.records if r.status != "done"
    ]
    unfinished += [(run, cell, Lost.of(None)) for run, cell in summary.missing]
    for run, cell, why in unfinished:
        name = summary.short_name(cell, run)
        names[name] = None
        lost.setdefault((name, cell.config.regime), []).append(why)
    planned = {regime for _, regime in (*finished, *lost)}
    regimes = tuple(regime for regime in REGIMES if regime in planned)
    metrics = tuple(name for name in headline() if any(group.values(name) for group in summary.groups))
    ranges = {name: _range(name, summary) for name in metrics}
    return Heatmap(
        regimes=regimes,
        metrics=metrics,
        rows=tuple(
            (
                name,
                tuple(
                    _square(finished.get((name, regime)), lost.get((name, regime), []), ranges) for regime in regimes
                ),
            )
            for name in names
        ),
    )


def _square(
    found: tuple[int, Group] | None, lost: list[Lost], ranges: dict[str, tuple[float, float] | None]
) -> Square | None:
    if found is None and not lost:
        return None
    number, group = found or (None, None)
    status = ", ".join(dict.fromkeys(why.status for why in lost))
    if group is not None and lost:
        status = f"{len(lost)} of {len(lost) + len(group.records)} seeds: {status}"
    return Square(
        number=number,
        shades={name: _shade(group, name, ends) for name, ends in ranges.items()} if group else {},
        status=status,
        reason="; ".join(dict.fromkeys(why.reason for why in lost if why.reason)),
        bad=any(why.status != "skipped" for why in lost),
    )


def _shade(group: Group, name: str, ends: Ends | None) -> Shade:
    metric, value = METRICS[name], group.typical(name)
    share = None
    if value is not None and ends is not None:
        low, high = ends
        share = min(1.0, max(0.0, (_scaled(value, name) - low) / (high - low)))
        share = 1 - share if metric.better == "lower" else share
    return Shade(text=show(group, name), unit="" if value is None else metric.unit_beside, share=share)


def _scaled(value: float, name: str) -> float:
    """A value on the scale of its shade: logarithmic for times and memory, where factors matter."""
    return value if METRICS[name].compared == "difference" else math.log(max(value, 1e-12))


def _range(name: str, summary: Summary) -> Ends | None:
    """What the shades of a metric span; None if too few groups have it. Controls, which may be far off, don't count."""
    groups = [group for group in summary.groups if not REGIMES[group.config.regime].control]
    values = [_scaled(value, name) for group in groups if (value := group.typical(name)) is not None]
    if len(values) < FEWEST:
        return None
    low, high, least = min(values), max(values), LEAST[METRICS[name].compared]
    if METRICS[name].better == "lower":
        return low, max(high, low + least)
    return min(low, high - least), high
