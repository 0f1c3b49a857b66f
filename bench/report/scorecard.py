"""Makes the scorecard of claims: a verdict each, and for each comparison a dot with its intervals on a scale."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.analysis.claims import Claim
from bench.analysis.deciding import more_images, more_samples
from bench.analysis.metrics import points
from bench.analysis.verdicts import ClaimVerdict, Finding, overall
from bench.report.answers import overalls
from bench.report.headline import ICONS
from bench.report.pick_text import duration
from bench.report.summary import Summary

MOST_OPEN = 12
"""With more comparisons than this a claim's rows are folded."""
_SIGNS: dict[ClaimVerdict, str] = {"supported": "supported", "above": "refuted", "below": "refuted"}
"""Verdict → the key of `ICONS` and of its colour; all others are open."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The scale that all comparisons of a claim share, logarithmic for ratios."""

    low: float
    high: float
    ratio: bool

    def place(self, value: float) -> float:
        """Where a value lies, in percent from the left; values beyond an end are at that end."""
        at = math.log(max(value, 1e-9)) if self.ratio else value
        start, end = (math.log(each) if self.ratio else each for each in (self.low, self.high))
        return round(100 * min(1.0, max(0.0, (at - start) / (end - start))), 2)

    def bar(self, low: float, high: float) -> Bar:
        """The part between two values."""
        left, right = self.place(low), self.place(high)
        return Bar(left=left, width=round(right - left, 2))


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A part of the scale, in percent."""

    left: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Dots:
    """One comparison on the scale, in percent."""

    dot: float
    thick: Bar | None
    """The 95% interval; None below three samples."""
    thin: Bar | None
    """The interval that the verdict rests on."""
    words: str
    """The same in words, for readers who can't see it."""


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One comparison."""

    name: str
    sign: str
    """A key of `ICONS`."""
    verdict: str
    measured: str
    predicted: str
    dots: Dots | None
    deciding: str
    """What would decide it; empty where it is decided, or where nothing foreseeable would."""

    @property
    def icon(self) -> str:
        """The sign of its verdict."""
        return ICONS[self.sign]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A claim with its verdict."""

    claim: Claim
    said: str
    """The overall verdict, and how many comparisons have which verdict."""
    sign: str
    """A key of `ICONS`; empty if the claim was not tested."""
    band: Bar | None
    """Where the claim holds."""
    marks: tuple[tuple[float, str], ...]
    """Places and texts of the claim's bounds, and of no difference."""
    rows: tuple[ScoreRow, ...]

    @property
    def icon(self) -> str:
        """The sign of its verdict."""
        return ICONS.get(self.sign, "–")

    @property
    def folded(self) -> bool:
        """True if it has so many rows that the page shows them only on request."""
        return len(self.rows) > MOST_OPEN


def scorecard(summary: Summary) -> list[Score]:
    """Every claim of the report with its comparisons; what was not tested comes last."""
    scores = [_score(claim, said, summary) for claim, said in overalls(summary)]
    return sorted(scores, key=lambda score: not score.rows)


def _score(claim: Claim, said: str, summary: Summary) -> Score:
    about = [finding for finding in summary.findings if finding.claim.name == claim.name]
    axis = _axis(claim, about)
    ends = [end for end in claim.bounds if math.isfinite(end)]
    none = 1.0 if claim.is_ratio else 0.0
    marks = () if axis is None else tuple((axis.place(end), claim.show(end)) for end in dict.fromkeys((*ends, none)))
    return Score(
        claim=claim,
        said=said,
        sign=overall(about) if about else "",
        band=axis.bar(*claim.bounds) if axis else None,
        marks=tuple(sorted(_apart(marks))),
        rows=tuple(_row(finding, axis, summary) for finding in about),
    )


def _apart(marks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Marks whose texts don't cover those of earlier ones."""
    kept: list[tuple[float, str]] = []
    for place, text in marks:
        if all(abs(place - other) > 22 for other, _ in kept):
            kept.append((place, text))
    return kept


def _axis(claim: Claim, findings: Sequence[Finding]) -> Axis | None:
    """A scale with all values, 95% intervals and bounds. Adjusted ones may be cut off: few seeds make them wide."""
    estimates = [finding.estimate for finding in findings if finding.estimate is not None]
    values = [end for one in estimates for end in (one.value, one.low, one.high) if end is not None]
    values += [*claim.bounds, 1.0 if claim.is_ratio else 0.0]
    values = [each for each in values if math.isfinite(each) and (each > 0 or not claim.is_ratio)]
    if not estimates:
        return None
    low, high = min(values), max(values)
    if claim.is_ratio:
        room = max(1.05, (high / low) ** 0.2)
        return Axis(low=low / room, high=high * room, ratio=True)
    room = max(0.005, 0.2 * (high - low))
    return Axis(low=low - room, high=high + room, ratio=False)


def _row(finding: Finding, axis: Axis | None, summary: Summary) -> ScoreRow:
    claim = finding.claim
    return ScoreRow(
        name=f"{summary.short(finding.group)}, {finding.group.config.regime} against {claim.against}",
        sign=_SIGNS.get(finding.verdict, "open"),
        verdict=finding.words,
        measured=finding.shown,
        predicted="" if finding.predicted is None else claim.show(finding.predicted),
        dots=_dots(finding, axis) if axis else None,
        deciding=_deciding(finding, summary),
    )


def _dots(finding: Finding, axis: Axis) -> Dots | None:
    estimate = finding.estimate
    if estimate is None:
        return None
    thick = None if estimate.low is None or estimate.high is None else axis.bar(estimate.low, estimate.high)
    words = f"{finding.shown}; the claim: {finding.claim.region}"
    if adjusted := finding.adjusted:
        words += f"; adjusted for all verdicts: {' to '.join(_end(finding.claim, end) for end in adjusted)}"
    thin = axis.bar(*adjusted) if adjusted else None
    return Dots(dot=axis.place(estimate.value), thick=thick, thin=thin, words=words)


def _end(claim: Claim, end: float) -> str:
    if math.isinf(end):
        return "unknown"
    return claim.show(end) if claim.is_ratio else points(end)


def _deciding(finding: Finding, summary: Summary) -> str:
    """Such as `2 more seeds, about 12 min`."""
    if (count := more_samples(finding)) is not None:
        what = finding.by if count > 1 else finding.by.removesuffix("s")
        return f"{count} more {what}{_time(finding, count, summary)}"
    if (times := more_images(finding)) is not None:
        return f"about {times} times as many validation images"
    return "" if finding.verdict != "inconclusive" else "nothing foreseeable: it lies too near a bound"


def _time(finding: Finding, count: int, summary: Summary) -> str:
    """How long so many more samples take, by those that there are."""
    if finding.by == "pairs":
        both = {finding.group.cell.repeats, finding.against.cell.repeats}
        seconds = [
            record.wall_seconds
            for run, record in summary.pairs
            if run == finding.group.run and both <= {cell.repeats for cell in record.pair.cells}
        ]
        return f", about {duration(count * statistics.median(seconds))}" if seconds else ""
    sides = [[record.wall_seconds for record in side.records] for side in (finding.group, finding.against)]
    return f", about {duration(count * sum(map(statistics.median, sides)))}"
