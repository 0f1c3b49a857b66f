"""Lays out the dot plot of a comparison: each change with its intervals, on both sides of no change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.compare.answer import ICONS, SIGNS, change_text, parts
from bench.compare.changes import Change, Comparison
from bench.report.scorecard import Axis, Bar, Dots

MOST_DOTS = 30
"""Largest number of changes in a panel; the tables have all."""
WIDEST = 3.0
"""A scale reaches this many times as far as its largest change, so that one wide interval squeezes no others."""
MARKED = 0.75
"""About this share of half a scale from its middle stands a mark, so that its text isn't cut off."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One change in the plot."""

    sign: str
    """A key of `answer.ICONS`."""
    verdict: str
    name: str
    dots: Dots
    band: Bar
    """The changes that are too small to count."""
    text: str

    @property
    def icon(self) -> str:
        """The character of its verdict."""
        return ICONS[self.sign]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """All changes on one scale. No change is in its middle."""

    title: str
    left: str
    """What the left half means: `better` or `worse`."""
    right: str
    marks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]
    left_out: int
    """How many changes the plot has no room for."""


def panels(comparison: Comparison) -> list[Panel]:
    """A panel for each kind of scale: ratios or differences, where less is better or more is.

    They have the changes with an estimate, but for what can't be compared: in the order of `answer.parts`.
    """
    kinds: dict[tuple[str, str], list[Change]] = {}
    for part in parts(comparison):
        for change in part.changes:
            if part.sign != "apart" and change.estimate is not None and change.allowed is not None:
                kinds.setdefault((change.estimate.compared, change.quantity.better), []).append(change)
    return [_panel(changes, comparison) for _, changes in sorted(kinds.items(), reverse=True)]


def _panel(changes: Sequence[Change], comparison: Comparison) -> Panel:
    shown = changes[:MOST_DOTS]
    axis = _axis(shown)
    labels = ", ".join(dict.fromkeys(change.quantity.label for change in changes))
    lower = changes[0].quantity.better == "lower"
    several = len(comparison.others) > 1
    new = "new side" if several else comparison.others[0].name
    return Panel(
        title=f"{labels}: {new} {'÷' if axis.ratio else '−'} {comparison.base.name}",
        left="better" if lower else "worse",
        right="worse" if lower else "better",
        marks=tuple(_marks(axis)),
        lines=tuple(_line(change, axis, several=several) for change in shown),
        left_out=len(changes) - len(shown),
    )


def _axis(changes: Sequence[Change]) -> Axis:
    """A symmetric scale with all values and bands, and with intervals as far as `WIDEST` allows."""
    estimates = [change.estimate for change in changes if change.estimate is not None]
    ratio = estimates[0].compared == "ratio"
    bands = [change.allowed for change in changes if change.allowed is not None]
    least = math.log(max(bands)) if ratio else max(bands)
    largest = max(least, *(abs(one.centre) for one in estimates))
    ends = [abs(math.log(end) if ratio else end) for one in estimates for end in (one.low, one.high) if end]
    reach = 1.1 * max(2 * least, largest, min(WIDEST * largest, max(ends, default=0.0)))
    low, high = (math.exp(-reach), math.exp(reach)) if ratio else (-reach, reach)
    return Axis(low=low, high=high, ratio=ratio)


def _marks(axis: Axis) -> list[tuple[float, str]]:
    """No change, and a round one on both sides of it."""
    if not axis.ratio:
        most = _round_down(MARKED * axis.high)
        return [(axis.place(value), f"{100 * value:+.3g}" if value else "0") for value in (-most, 0.0, most)]
    most = axis.high**MARKED
    most = _round_down(most) if most >= 2 else 1 + _round_down(most - 1)
    return [(axis.place(value), f"{value:.3g}×") for value in (1 / most, 1.0, most)]


def _round_down(value: float) -> float:
    """To one digit: 0.086 becomes 0.08."""
    power = 10.0 ** math.floor(math.log10(value))
    return math.floor(value / power) * power


def _line(change: Change, axis: Axis, *, several: bool) -> Line:
    estimate, allowed = change.estimate, change.allowed
    assert estimate is not None and allowed is not None
    thick = None if estimate.low is None or estimate.high is None else axis.bar(estimate.low, estimate.high)
    thin = None if change.adjusted is None else axis.bar(*change.adjusted)
    name = f"{change.cell}: {change.quantity.label}"
    return Line(
        sign=SIGNS[change.verdict],
        verdict=change.verdict,
        name=f"{name} ({change.new_side})" if several else name,
        dots=Dots(dot=axis.place(estimate.value), thick=thick, thin=thin, words=f"{name}: {change_text(change)}"),
        band=axis.bar(1 / allowed if axis.ratio else -allowed, allowed),
        text=change_text(change),
    )
