"""Writes names beside the points of a figure, so that none covers a point or another name, or leaves the axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.text import Text

from bench.report.palette import GREY

_AWAY = 5.0
"""Points between the edge of a mark and a name beside it."""
_STEP = 4.0
"""Points between two heights at which a name is tried."""
_GAP = 2.0
"""Points that are kept free around names and marks."""
_LED = 16.0
"""Points between a name and its mark from which a line leads from one to the other."""
_COVERS = 1e6
"""Cost of a name that covers another, or a mark: more than any distance."""
_CROSSES = 30.0
"""Cost, in points of distance, of a name on a line, for each of its samples."""
_MISREAD = 15.0
"""Cost, in points of distance, of a name that stands nearer to another mark than to its own."""
_SAMPLES = 12
"""Places of a line at which it is looked whether a name covers it."""

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PointName:
    """The name of a point."""

    x: float
    y: float
    text: str
    right: bool
    """True if it stands best at the right of its point, otherwise at its upper left."""
    needed: bool
    """True if it is written even where there is no free place; all others are then left out."""


@dataclass(frozen=True)
class _Box:
    """A rectangle, in points."""

    left: float
    bottom: float
    width: float
    height: float

    def distances(self, points: Points) -> Points:
        """How far each of the points `(N, 2)` is away; 0 inside."""
        low = np.array([self.left, self.bottom])
        high = low + np.array([self.width, self.height])
        return np.asarray(np.hypot(*np.maximum(np.maximum(low - points, points - high), 0.0).T))

    def covers(self, other: _Box) -> bool:
        """True if the two overlap, or nearly touch each other."""
        return (
            self.left < other.left + other.width + _GAP
            and other.left < self.left + self.width + _GAP
            and self.bottom < other.bottom + other.height + _GAP
            and other.bottom < self.bottom + self.height + _GAP
        )

    @property
    def middle(self) -> Points:
        """The centre of the box."""
        return np.array([self.left + self.width / 2, self.bottom + self.height / 2])


def name_points(
    axes: Axes,
    names: Sequence[PointName],
    marks: Sequence[tuple[float, float, float]],
    steps: Sequence[Sequence[tuple[float, float]]],
) -> None:
    """Write names near their points, the most important first.

    Args:
        axes: whose limits are settled. Names have its letters.
        names: the first ones get the best places.
        marks: the middle of each mark, and how many points its edge is away from there.
        steps: corners of step lines, which names cross only if there is no other place.
    """
    if not names:
        return
    axes.get_xlim(), axes.get_ylim()  # settles the scales, which are otherwise settled when drawn
    to_points = 72 / axes.figure.get_dpi()

    def at(points: Sequence[tuple[float, float]]) -> Points:
        return np.asarray(axes.transData.transform(np.asarray(points, dtype=float).reshape(-1, 2))) * to_points

    corner, opposite = axes.bbox.min * to_points + 2 * _GAP, axes.bbox.max * to_points - _GAP
    edges = at([(x, y) for x, y, _ in marks]), np.array([edge for _, _, edge in marks])
    lines = np.concatenate([np.empty((0, 2)), *(_samples(_corners(at(some))) for some in steps)])
    written: list[_Box] = []
    for name in names:
        (place,) = at([(name.x, name.y)])
        text = axes.annotate(
            name.text,
            (name.x, name.y),
            xytext=(0, 0),
            textcoords="offset points",
            ha="left",
            va="bottom",
            fontsize=axes.xaxis.label.get_fontsize(),
            linespacing=1.05,
        )
        extent = Text.get_window_extent(text)
        size = np.array([extent.width, extent.height]) * to_points
        own = float(max(edges[1][np.hypot(*(edges[0] - place).T) < 1], default=0.0))
        tried = [
            (_cost(box, name, place, edges, lines, written), box) for box in _boxes(place, own, size, corner, opposite)
        ]
        cost, box = min(tried, key=lambda each: each[0])
        text.remove()
        if cost >= _COVERS and not name.needed:
            continue
        written.append(box)
        led = float(box.distances(place[None])[0]) - own > _LED
        axes.annotate(
            name.text,
            (name.x, name.y),
            xytext=(box.left - place[0], box.bottom - place[1]),
            textcoords="offset points",
            ha="left",
            va="bottom",
            fontsize=axes.xaxis.label.get_fontsize(),
            linespacing=1.05,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": own} if led else None,
        )
        if led:
            lines = np.concatenate([lines, _samples(np.array([box.middle, place]))])


def _boxes(place: Points, own: float, size: Points, corner: Points, opposite: Points) -> Iterator[_Box]:
    """Where the name of a point can stand, inside the axes: at its left or right, above or below it."""
    most = np.maximum(opposite - size, corner)
    away = own + _AWAY
    wanted = place[0] - away - size[0], place[0] + away, place[0] - size[0] / 2, corner[0], most[0]
    heights = np.arange(corner[1], most[1] + 1e-9, _STEP)
    beside = place[1] + np.array([own / 2, -size[1] / 2, away, -away - size[1]])
    for left in wanted:
        for bottom in (*beside, *heights):
            x, y = np.clip([left, bottom], corner, most)
            yield _Box(float(x), float(y), float(size[0]), float(size[1]))


def _cost(
    box: _Box, name: PointName, place: Points, marks: tuple[Points, Points], lines: Points, written: Sequence[_Box]
) -> float:
    """How bad a place is: by its distance, its side, what it covers and crosses, and whose name it seems to be."""
    distance = float(box.distances(place[None])[0])
    wrong_side = (box.middle[0] > place[0]) is not name.right
    too_low = not name.right and box.middle[1] < place[1]
    covered = sum(box.covers(other) for other in written) * 100
    away = box.distances(marks[0]) - marks[1]
    covered += int(np.sum(away < _GAP))
    others = np.hypot(*(marks[0] - place).T) >= 1
    misread = bool(np.any(away[others] < distance))
    crossed = int(np.sum(box.distances(lines) < _GAP)) if len(lines) else 0
    return distance + 12.0 * wrong_side + 6.0 * too_low + _MISREAD * misread + _COVERS * covered + _CROSSES * crossed


def _corners(points: Points) -> Points:
    """All corners of a line that goes right first and then up to the next point."""
    between = np.column_stack([points[1:, 0], points[:-1, 1]])
    both = np.empty((2 * len(points) - 1, 2))
    both[::2], both[1::2] = points, between
    return both


def _samples(corners: Points) -> Points:
    """Places on the line through these corners."""
    shares = np.linspace(0, 1, _SAMPLES)[:, None]
    return np.concatenate([corners[:1], *(start + shares * (end - start) for start, end in pairwise(corners))])
