"""Draws a set of pictures with any number of classes, as a folder per class and without a split.

    python -m bench.devtools.drawn FOLDER --classes 4 --images 600

A class is a shape and how it is filled. Place, size, turn, colours, background and noise are random, so they say
nothing of the class. The same arguments draw the same bytes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from bench.program import end
from tl.errors import ConfigError
from tl.seeding import seed_for

SIDE = 240
"""Width and height of a picture, in pixels."""
CLUTTER = 14
"""Lines in the background."""
Point = tuple[float, float]


def _polygon(corners: int, inner: float = 1.0) -> list[Point]:
    """Corners on the unit circle; with `inner` below 1 every other one lies that far from the centre: a star."""
    count = corners if inner == 1.0 else 2 * corners
    radii = [1.0 if inner == 1.0 or not index % 2 else inner for index in range(count)]
    angles = [2 * math.pi * index / count for index in range(count)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


_CROSS = [(0.3, 1), (0.3, 0.3), (1, 0.3), (1, -0.3), (0.3, -0.3), (0.3, -1)]
SHAPES: dict[str, list[Point]] = {
    "triangle": _polygon(3),
    "square": _polygon(4),
    "hexagon": _polygon(6),
    "star": _polygon(5, 0.45),
    "cross": [*_CROSS, *((-x, -y) for x, y in _CROSS)],
}
"""Name → corners, in a square from -1 to 1."""
FILLS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "plain": lambda x, y, step: np.zeros(x.shape, bool),
    "striped": lambda x, y, step: (x // step) % 2 == 0,
    "checked": lambda x, y, step: (x // step + y // step) % 2 == 0,
    "dotted": lambda x, y, step: np.hypot(x % step - step / 2, y % step - step / 2) < step / 3,
}
"""Name → where the second colour is, for pixels at `x`, `y` and a step in pixels."""


def class_names(count: int) -> list[str]:
    """The first classes, such as `striped-star`; neighbours differ in shape and fill. Raises `ConfigError`."""
    fills, shapes = list(FILLS), list(SHAPES)  # as many as have no common divisor, so every pair comes once
    if not 2 <= count <= len(fills) * len(shapes):
        raise ConfigError(f"--classes {count} must be a number from 2 to {len(fills) * len(shapes)}")
    return [f"{fills[index % len(fills)]}-{shapes[index % len(shapes)]}" for index in range(count)]


def draw(name: str, number: int) -> Image.Image:
    """Draw picture `number` of a class."""
    chance = np.random.default_rng(seed_for("drawn", name, number))
    fill, _, shape = name.partition("-")
    colours = [tuple(int(part) for part in chance.integers(0, 256, 3)) for _ in range(3)]
    picture = Image.new("RGB", (SIDE, SIDE), colours[0])
    pen = ImageDraw.Draw(picture)
    for _ in range(CLUTTER):
        ends = chance.integers(0, SIDE, 4).tolist()
        pen.line(ends, fill=tuple(chance.integers(0, 256, 3).tolist()), width=int(chance.integers(1, 6)))
    radius, turn = chance.uniform(0.12, 0.3) * SIDE, chance.uniform(0, 2 * math.pi)
    middle = chance.uniform(radius, SIDE - radius, 2)
    squeeze = chance.uniform(0.7, 1.0)
    corners = [
        (
            middle[0] + radius * (x * math.cos(turn) - squeeze * y * math.sin(turn)),
            middle[1] + radius * (x * math.sin(turn) + squeeze * y * math.cos(turn)),
        )
        for x, y in SHAPES[shape]
    ]
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    across, down = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    angle = chance.uniform(0, math.pi)
    x, y = across * math.cos(angle) + down * math.sin(angle), down * math.cos(angle) - across * math.sin(angle)
    second = FILLS[fill](x, y, float(chance.uniform(8, 16)))
    inside = np.where(second[..., None], np.array(colours[1]), np.array(colours[2])).astype(np.uint8)
    picture.paste(Image.fromarray(inside), mask=mask)
    picture = picture.filter(ImageFilter.GaussianBlur(float(chance.uniform(0, 1.5))))
    noise = chance.normal(0, chance.uniform(5, 30), (SIDE, SIDE, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def write(folder: Path, classes: int, images: int, first: int = 0) -> None:
    """Draw `images` pictures of so many classes into a new folder. Raises `ConfigError`, also if it exists.

    `first` is the number of the first picture of each class: other numbers are other pictures.
    """
    names = class_names(classes)
    if images < 2 * classes:
        raise ConfigError(f"--images {images} must be at least {2 * classes}: two of each class")
    if folder.exists():
        raise ConfigError(f"{folder} exists; give a folder that doesn't")
    for index in range(images):
        name, number = names[index % classes], first + index // classes
        (folder / name).mkdir(parents=True, exist_ok=True)
        draw(name, number).save(folder / name / f"{number:04}.jpg", quality=90)


def main() -> int:
    """Draw the set that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--first", type=int, default=0, help="number of the first picture of each class")
    given = parser.parse_args()
    write(given.folder, given.classes, given.images, given.first)
    return 0


if __name__ == "__main__":
    end(main)
