"""Writes names beside the points of a figure: none covers a point or another name, or leaves the axes but above."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from bench.report.palette import GREY

_AWAY = 5.0
"""Points between the edge of a mark and a name beside it."""
_STEP = 4.0
"""Points between two heights at which a name is tried."""
_GAP = 2.0
"""Points that are kept free around names and marks."""
_LED = 12.0
"""Points between a name and its mark from which a line leads from one to the other."""
_COVERS = 1e6
"""Cost of a name that covers another, or a mark: more than any distance."""
_CROSSES = 30.0
"""Cost, in points of distance, of a name on a line, for each of its samples."""
_MISREAD = 40.0
"""Cost, in points of distance, of a name that stands about as near to another mark as to its own."""
_ALL_ORDERS = 3
"""Up to so many names, all orders are tried; of more, the first ones get the best places."""
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
    """Write names near their points.

    Args:
        axes: whose limits are settled. Names have its letters.
        names: the most important first.
        marks: the middle of each mark, and how many points its edge is away from there.
        steps: corners of step lines, which names cross only if there is no other place.
    """
    if not names:
        return
    axes.get_xlim(), axes.get_ylim()  # settles the scales, which are otherwise settled when drawn
    to_points = 72 / axes.figure.get_dpi()

    def at(points: Sequence[tuple[float, float]]) -> Points:
        return np.asarray(axes.transData.transform(np.asarray(points, dtype=float).reshape(-1, 2))) * to_points

    corner, opposite = np.array(axes.bbox.min) * to_points + 2 * _GAP, np.array(axes.bbox.max) * to_points - _GAP
    opposite[1] += 2.5 * float(axes.xaxis.label.get_fontsize())  # nothing else stands above
    edges = at([(x, y) for x, y, _ in marks]), np.array([edge for _, _, edge in marks])
    lines = np.concatenate([np.empty((0, 2)), *(_samples(_corners(at(some))) for some in steps)])
    scene = _Scene(corner=corner, opposite=opposite, edges=edges, lines=lines)
    spots = [_spot(axes, name, at([(name.x, name.y)])[0], edges, to_points) for name in names]
    orders = permutations(spots) if len(spots) <= _ALL_ORDERS else [spots]
    tried = [scene.placed(order) for order in orders]
    for spot, box in min(tried, key=lambda each: each[0])[1]:
        axes.annotate(
            spot.name.text,
            (spot.name.x, spot.name.y),
            xytext=(box.left - spot.place[0], box.bottom - spot.place[1]),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": spot.edge}
            if spot.away(box) > _LED
            else None,
            **_letters(axes),
        )


def _letters(axes: Axes) -> dict[str, Any]:
    return {"ha": "left", "va": "bottom", "fontsize": axes.xaxis.label.get_fontsize(), "linespacing": 1.05}


@dataclass(frozen=True, kw_only=True)
class _Spot:
    """A name and its point, in points."""

    name: PointName
    place: Points
    edge: float
    """How far the edge of its mark is away from the point."""
    size: Points
    """Width and height of the name."""

    def away(self, box: _Box) -> float:
        """How far a box is away from the edge of the mark."""
        return float(box.distances(self.place[None])[0]) - self.edge

    def boxes(self, corner: Points, opposite: Points) -> Iterator[_Box]:
        """Where the name can stand between two corners: at the left or right of its point, above or below it."""
        most = np.maximum(opposite - self.size, corner)
        away, (x, y), (width, height) = self.edge + _AWAY, self.place, self.size
        beside = y + np.array([self.edge / 2, -height / 2, away, -away - height])
        for left in (x - away - width, x + away, x - width / 2, corner[0], most[0]):
            for bottom in (*beside, *np.arange(corner[1], most[1] + 1e-9, _STEP)):
                inside = np.clip([left, bottom], corner, most)
                yield _Box(float(inside[0]), float(inside[1]), float(width), float(height))


def _spot(axes: Axes, name: PointName, place: Points, edges: tuple[Points, Points], to_points: float) -> _Spot:
    text = axes.text(name.x, name.y, name.text, **_letters(axes))
    extent = text.get_window_extent()
    text.remove()
    edge = float(max(edges[1][np.hypot(*(edges[0] - place).T) < 1], default=0.0))
    return _Spot(name=name, place=place, edge=edge, size=np.array([extent.width, extent.height]) * to_points)


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """What names are written between, all in points."""

    corner: Points
    """Lower left corner of the room for names."""
    opposite: Points
    edges: tuple[Points, Points]
    """The middles of marks, and how far their edges are away from there."""
    lines: Points
    """Places on lines."""

    def placed(self, order: Sequence[_Spot]) -> tuple[float, list[tuple[_Spot, _Box]]]:
        """The boxes of names that are placed one after the other, and what all of them cost."""
        whole, lines, written = 0.0, self.lines, list[tuple[_Spot, _Box]]()
        for spot in order:
            boxes = [(self._cost(box, spot, lines, written), box) for box in spot.boxes(self.corner, self.opposite)]
            cost, box = min(boxes, key=lambda each: each[0])
            whole += cost
            if cost >= _COVERS and not spot.name.needed:
                continue
            written.append((spot, box))
            if spot.away(box) > _LED:
                lines = np.concatenate([lines, _samples(np.array([box.middle, spot.place]))])
        return whole, written

    def _cost(self, box: _Box, spot: _Spot, lines: Points, written: Sequence[tuple[_Spot, _Box]]) -> float:
        """How bad a box is: by its distance, its side, what it covers and crosses, and whose name it seems to be."""
        middles, edges = self.edges
        distances = box.distances(middles) - edges
        away, others = spot.away(box), np.hypot(*(middles - spot.place).T) >= 1
        cost = away + _MISREAD * bool(np.any(distances[others] < away + 2 * _GAP))
        cost += 12.0 * (bool(box.middle[0] > spot.place[0]) is not spot.name.right)
        cost += 6.0 * (not spot.name.right and box.middle[1] < spot.place[1])
        covered = int(np.sum(distances < _GAP)) + sum(box.covers(other) for _, other in written) * 100
        crossed = int(np.sum(box.distances(lines) < _GAP))
        if away > _LED:
            lead = _samples(np.array([box.middle, spot.place]))
            crossed += sum(int(np.sum(other.distances(lead) < _GAP)) for _, other in written)
        return float(cost + _COVERS * covered + _CROSSES * crossed)


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
