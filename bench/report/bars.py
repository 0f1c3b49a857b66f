"""Draws a bar for each combination, below the name of its backbone, so that both fit a phone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bench.report.hero import LETTERS, WIDTH
from bench.report.palette import GREY

_LETTER, _LINE, _KEY = 0.088, 0.2, 0.4
"""Inches of a letter, of a line of the legend, and of the mark before its text."""
_ROW = 0.24
"""Inches of a bar, and of the name of a backbone."""
_BESIDE: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": LETTERS}
"""How text stands beside the place that it belongs to."""
_NARROWEST = 1.6
"""Inches that bars have at least, however long names are."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One combination."""

    backbone: str
    """Its short name; bars of one backbone stand below it."""
    name: str
    """What is at the left of the bar: the regime."""
    parts: tuple[tuple[float, str], ...]
    """Lengths and colours of its parts, from the left."""
    text: str = ""
    """What stands at its end."""


def draw_bars(bars: Sequence[Bar], label: str, legend: Mapping[str, str] | None = None) -> Figure:
    """Draw bars under a common axis that says `label`; `legend` has names of parts and their colours."""
    by_backbone: dict[str, list[Bar]] = {}
    for bar in bars:
        by_backbone.setdefault(bar.backbone, []).append(bar)
    above = room_of(list(legend or ()))
    left = 0.1 + _LETTER * max(len(bar.name) for bar in bars)
    right = 0.05 + _LETTER * max(len(bar.text) for bar in bars)
    width = max(WIDTH, left + right + _NARROWEST)
    tall = _ROW * (len(bars) + len(by_backbone))
    height = above + tall + 0.5
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, 0.5 / height, (width - left - right) / width, tall / height))
    place = 0
    for backbone, some in by_backbone.items():
        axes.annotate(backbone, (0, place), xytext=(4, 0), ha="left", fontweight="bold", **_BESIDE)
        for at, bar in enumerate(some, place + 1):
            _draw(axes, at, bar)
        place += 1 + len(some)
    axes.set_ylim(place - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.tick_params(labelsize=LETTERS)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="x", color=GREY, alpha=0.25, lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(label, fontsize=LETTERS)
    if legend:
        legend_above(figure, {name: Patch(color=colour) for name, colour in legend.items()})
    return figure


def room_of(names: Sequence[str]) -> float:
    """Inches that a legend above a figure takes."""
    return _LINE * math.ceil(len(names) / _across(names)) + 0.1 if names else 0.0


def legend_above(figure: Figure, marks: Mapping[str, Artist]) -> None:
    """Draw a legend of these names and marks above all else, as wide as the figure."""
    figure.legend(
        list(marks.values()),
        list(marks),
        ncols=_across(list(marks)),
        fontsize=LETTERS,
        loc="upper left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0,
        borderpad=0,
        handlelength=1.5,
        handletextpad=0.5,
        columnspacing=1.0,
        labelspacing=0.25,
    )


def _across(names: Sequence[str]) -> int:
    """How many entries of a legend have room beside each other."""
    return max(1, min(len(names), int(WIDTH / (_KEY + _LETTER * max(map(len, names))))))


def _draw(axes: Axes, place: int, bar: Bar) -> None:
    start = 0.0
    for length, colour in bar.parts:
        axes.barh(place, length, left=start, color=colour, height=0.72, lw=0)
        start += length
    axes.annotate(bar.name, (0, place), xytext=(-5, 0), ha="right", **_BESIDE)
    if bar.text:
        axes.annotate(bar.text, (start, place), xytext=(4, 0), ha="left", **_BESIDE)
