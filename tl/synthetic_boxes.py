"""Synthetic ants and bees with boxes, for task `detection`: several in a picture, in COCO's format (`tl.boxes_coco`).

The box of an insect is the smallest around all that was drawn of it, with legs and wings, inside the picture. Boxes are
known to a hundredth of a pixel.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tl.seeding import seed_for
from tl.synthetic import SCALE, VERSION, Point, clutter, ground, insect, light

CLASSES = ("ants", "bees")
MOST = 4
"""Largest number of insects in a picture. There may be none."""
_TRIES = 10
"""Places that are tried for an insect, until it covers no other."""
Edges = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """A synthetic set with boxes, as `tl.synthetic.Set` has it."""

    name: str
    train: int
    """Number of training pictures."""
    val: int
    """Number of validation pictures."""
    longest: tuple[int, int]
    """Range of the longer side, in pixels."""

    def paths(self) -> list[str]:
        """See `Set.paths`."""
        images = [f"{split}/{index:03d}.jpg" for split, count in self._counts() for index in range(count)]
        return [*(f"annotations/instances_{split}.json" for split, _ in self._counts()), *images]

    def write(self, root: Path) -> None:
        """See `Set.write`."""
        (root / "annotations").mkdir(parents=True)
        for split, count in self._counts():
            (root / split).mkdir()

            def one(index: int, split: str = split) -> tuple[Image.Image, list[tuple[str, Edges]]]:
                rng = np.random.default_rng(seed_for("synthetic boxes", VERSION, self.name, split, index))
                picture, insects = draw(rng, longest=int(rng.integers(*self.longest, endpoint=True)))
                picture.save(root / split / f"{index:03d}.jpg", quality=int(rng.integers(80, 95)))
                return picture, insects

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                content = json.dumps(_coco(list(pool.map(one, range(count)))), indent=1)
            (root / "annotations" / f"instances_{split}.json").write_text(content + "\n", encoding="utf-8")

    def _counts(self) -> list[tuple[str, int]]:
        return [("train", self.train), ("val", self.val)]


FULL = Boxes(name="synthetic-boxes", train=120, val=60, longest=(320, 480))
MINI = Boxes(name="synthetic-boxes-mini", train=24, val=16, longest=(120, 180))


def draw(rng: np.random.Generator, *, longest: int) -> tuple[Image.Image, list[tuple[str, Edges]]]:
    """Draw an RGB picture with a longer side of `longest` pixels; return it with the class and the box of each insect.

    Insects don't overlap much, so that each can be seen.
    """
    shorter = int(longest * rng.uniform(0.62, 1.0))
    width, height = (longest, shorter) if rng.random() < 0.75 else (shorter, longest)
    canvas = ground(rng, width * SCALE, height * SCALE)
    clutter(ImageDraw.Draw(canvas, "RGBA"), rng, canvas.size, count=int(rng.integers(4, 14)))
    insects: list[tuple[str, Edges]] = []
    placed: list[tuple[Point, float]] = []
    for _ in range(int(rng.integers(1, MOST + 1)) if rng.random() < 0.9 else 0):
        kind, turn = CLASSES[rng.integers(len(CLASSES))], rng.uniform(0, 2 * math.pi)
        unit = rng.uniform(0.08, 0.16) * min(canvas.size)
        for _ in range(_TRIES):
            centre = (rng.uniform(0.15, 0.85) * canvas.width, rng.uniform(0.15, 0.85) * canvas.height)
            if all(math.dist(centre, other) > 1.6 * (unit + of_other) for other, of_other in placed):
                break
        else:
            continue  # it would cover another one
        placed.append((centre, unit))
        pen = _Measuring(canvas, "RGBA")
        insect(pen, kind, rng, unit=unit, turn=turn, centre=centre)
        insects.append((kind, _inside(pen.edges(), (width, height))))
    clutter(ImageDraw.Draw(canvas, "RGBA"), rng, canvas.size, count=int(rng.integers(0, 5)))
    small = canvas.resize((width, height), Image.Resampling.BOX)
    if rng.random() < 0.7:
        small = small.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.4))))
    return light(small, rng), insects


class _Measuring(ImageDraw.ImageDraw):
    """A pen that knows the smallest box around all that it has drawn."""

    def __init__(self, canvas: Image.Image, mode: str) -> None:
        super().__init__(canvas, mode)
        self._drawn: list[tuple[Point, float]] = []

    def polygon(self, xy: Any, fill: Any = None, outline: Any = None, width: int = 1) -> None:
        """See Pillow; the points of `xy` are measured."""
        self._drawn += [(point, 0.0) for point in xy]
        super().polygon(xy, fill, outline, width)

    def line(self, xy: Any, fill: Any = None, width: int = 1, joint: str | None = None) -> None:
        """See Pillow; the points of `xy` are measured with half of `width` around them."""
        self._drawn += [(point, width / 2) for point in xy]
        super().line(xy, fill, width, joint)

    def edges(self) -> Edges:
        """The box, in pixels of the canvas."""
        (left, top), (right, bottom) = (
            [pick(point[axis] + sign * reach for point, reach in self._drawn) for axis in (0, 1)]
            for pick, sign in ((min, -1), (max, 1))
        )
        return left, top, right, bottom


def _inside(edges: Edges, size: tuple[int, int]) -> Edges:
    """The edges in pixels of the reduced picture, not outside of it."""
    left, top, right, bottom = (
        round(min(max(edge / SCALE, 0.0), float(limit)), 2) for edge, limit in zip(edges, size * 2, strict=True)
    )
    return left, top, right, bottom


def _coco(pictures: Sequence[tuple[Image.Image, Sequence[tuple[str, Edges]]]]) -> dict[str, Any]:
    """The content of a COCO file of pictures that are called `000.jpg` and so on."""
    annotations: list[dict[str, Any]] = []
    for number, (_, insects) in enumerate(pictures):
        for kind, (left, top, right, bottom) in insects:
            wide, high = round(right - left, 2), round(bottom - top, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": CLASSES.index(kind) + 1,
                    "bbox": [left, top, wide, high],
                    "area": round(wide * high, 2),
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": number + 1, "file_name": f"{number:03d}.jpg", "width": picture.width, "height": picture.height}
            for number, (picture, _) in enumerate(pictures)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)],
        "annotations": annotations,
    }
