"""Draws how trainings went, epoch by epoch: a panel for each backbone, all with the same axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from bench.analysis.groups import Group
from bench.report.bars import legend_above, room_of
from bench.report.hero import LETTERS, WIDTH, short_among, shortened
from bench.report.palette import GREY, colours, markers
from bench.report.summary import Summary
from tl.regimes import REGIMES

COLUMNS = 2
"""Panels beside each other, which leaves each enough room on a phone."""
_LETTER = 0.086
"""Inches of a letter of a backbone's name above its panel; the middle of a name without room is left out."""
_LEFT, _GAP, _TITLE = 0.85, 0.14, 0.3
"""Inches for the axis, between panels, and for the title of each."""
_HEIGHT = 1.25
"""Inches of a panel, if there are several rows of them."""
_MOST_BANDS = 4
"""Curves of a panel that have a band each; those of more would hide one another."""
_ALL_TICKS = 6
"""With more epochs than this not each has a mark at the axis."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The mean over the seeds of one combination, epoch by epoch."""

    regime: str
    epochs: tuple[int, ...]
    """Counted from 1."""
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    """Standard deviations over seeds; 0 with one seed."""


def panels(summary: Summary, quantity: str) -> dict[str, list[Curve]]:
    """Short name of each backbone → its curves of one field of `EpochResult`: of what trains by steps, and not from
    random weights in place of pretrained ones."""
    by_steps = [group for group in summary.groups if REGIMES[group.config.regime].by_steps]
    known = [(group, curve) for group in by_steps if (curve := _curve(group, quantity))]
    all_groups = [group for group, _ in known]
    found: dict[str, list[Curve]] = {}
    for group, curve in known:
        found.setdefault(short_among(group, all_groups, summary), []).append(curve)
    return found


def _curve(group: Group, quantity: str) -> Curve | None:
    values: dict[int, list[float]] = {}
    for result in group.results:
        for row in result.epochs if result.accuracy_counts else ():
            if (value := getattr(row, quantity)) is not None and math.isfinite(value):
                values.setdefault(row.epoch + 1, []).append(value)
    if not values:
        return None
    several = [values[epoch] for epoch in sorted(values)]
    return Curve(
        regime=group.config.regime,
        epochs=tuple(sorted(values)),
        means=tuple(map(fmean, several)),
        deviations=tuple(stdev(some) if len(some) > 1 else 0.0 for some in several),
    )


def curves(quantity: str, label: str, *, percent: bool) -> Callable[[Summary], Figure | None]:
    """The figure of one field of `EpochResult`; `label` is what the upright axis says."""

    def function(summary: Summary) -> Figure | None:
        found = panels(summary, quantity)
        if not found:
            return None
        all_curves = [curve for some in found.values() for curve in some]
        regimes = [name for name in REGIMES if any(curve.regime == name for curve in all_curves)]
        columns = min(COLUMNS, len(found))
        rows = math.ceil(len(found) / columns)
        low, high = _range(all_curves)
        names = [f"{regime}{_beyond(regime, all_curves, low, high)}" for regime in regimes]
        legend = room_of(names)
        each = _HEIGHT if rows > 1 else 2 * _HEIGHT
        height = legend + rows * (each + _TITLE) + 0.5
        figure = Figure(figsize=(WIDTH, height))
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        wide = (WIDTH - _LEFT - (columns - 1) * _GAP) / columns
        top, bottom = 1 - (legend + _TITLE) / height, 0.5 / height
        spaces = {"wspace": _GAP / wide, "hspace": _TITLE / each}
        figure.subplots_adjust(left=_LEFT / WIDTH, right=1, top=top, bottom=bottom, **spaces)
        for axes, (name, some) in zip(grid.flat, found.items(), strict=False):
            axes.set_title(shortened(name, int(wide / _LETTER)), fontsize=LETTERS, loc="left", pad=4)
            for curve in some:
                _draw(axes, curve, band=len(some) <= _MOST_BANDS)
        for axes in grid.flat[len(found) :]:
            axes.remove()
        grid[0, 0].set_ylim(low, high)
        _settle(list(grid.flat)[: len(found)], columns, max(curve.epochs[-1] for curve in all_curves))
        if percent:
            grid[0, 0].yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
        figure.supylabel(summary.words(label), fontsize=LETTERS, x=0.0, y=(top + bottom) / 2, ha="left")
        figure.supxlabel("epoch", fontsize=LETTERS, x=(1 + _LEFT / WIDTH) / 2, y=0.0, va="bottom")
        legend_above(figure, {name: _key(regime) for name, regime in zip(names, regimes, strict=True)})
        return figure

    return function


def _range(several: Sequence[Curve]) -> tuple[float, float]:
    """The ends of the upright axis: of all curves but the controls', which may be far off and squeeze the rest."""
    compared = [curve for curve in several if not REGIMES[curve.regime].control] or several
    ends = [(mean - sd, mean + sd) for one in compared for mean, sd in zip(one.means, one.deviations, strict=True)]
    low, high = min(end for end, _ in ends), max(end for _, end in ends)
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room


def _beyond(regime: str, several: Sequence[Curve], low: float, high: float) -> str:
    """Where the curves of a regime are if no panel shows any of them; empty if one does."""
    means = [mean for curve in several if curve.regime == regime for mean in curve.means]
    return ", below" if max(means) < low else ", above" if min(means) > high else ""


def _draw(axes: Axes, curve: Curve, *, band: bool) -> None:
    colour = colours()[curve.regime]
    ends = list(zip(curve.means, curve.deviations, strict=True))
    if band and any(curve.deviations):
        low, high = [mean - sd for mean, sd in ends], [mean + sd for mean, sd in ends]
        axes.fill_between(curve.epochs, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(curve.epochs, curve.means, color=colour, marker=markers()[curve.regime], ms=4, lw=1.4, mew=0)


def _settle(several: Sequence[Axes], columns: int, last: int) -> None:
    """Marks, ranges and grid of the axes that all panels share."""
    ticks = FixedLocator(range(1, last + 1)) if last <= _ALL_TICKS else MaxNLocator(4, integer=True)
    several[0].set_xlim(1 - 0.06 * max(1, last - 1), last + 0.06 * max(1, last - 1))
    several[0].xaxis.set_major_locator(ticks)
    several[0].yaxis.set_major_locator(MaxNLocator(4))
    for place, axes in enumerate(several):
        axes.tick_params(labelsize=LETTERS, labelbottom=place >= len(several) - columns, length=3)
        axes.grid(axis="y", color=GREY, alpha=0.25, lw=0.8)
        axes.set_axisbelow(True)


def _key(regime: str) -> Line2D:
    return Line2D([], [], color=colours()[regime], marker=markers()[regime], ms=5, lw=1.4, mew=0)
