"""A drawn set of images with boxes, for tests: bright rectangles of two colours on noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import tl
from tl.boxes import Box
from tl.datasets import ImageList

COLOURS = ((230, 40, 40), (40, 60, 230))
"""Of the objects of each class."""
NAMES = ("red", "blue")


def draw(path: Path, seed: int, most: int = 2) -> tuple[Box, ...]:
    """Write a picture of noise with one to `most` rectangles side by side, and return their boxes."""
    rng = np.random.default_rng(seed)
    height, width = 96, 128
    pixels = rng.integers(90, 150, (height, width, 3)).astype(np.uint8)
    boxes, count = [], int(rng.integers(1, most + 1))
    for place in range(count):
        label = int(rng.integers(0, 2))
        room = width // count
        wide, high = int(rng.integers(room // 2, room - 4)), int(rng.integers(30, 80))
        left, top = place * room + int(rng.integers(0, room - wide)), int(rng.integers(0, height - high))
        pixels[top : top + high, left : left + wide] = COLOURS[label]
        boxes.append(Box(label, left / width, top / height, (left + wide) / width, (top + high) / height))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return tuple(boxes)


def drawn_boxes(root: Path, *, train: int = 8, val: int = 4, empty: int = 1, same: bool = False) -> tl.Splits:
    """Write images, and return them as a data set. The last `empty` images of training have no object.

    With `same`, the validation images are the training images.
    """
    found = {f"{number}.png": draw(root / f"{number}.png", seed=number) for number in range(train + val)}
    rng = np.random.default_rng(99)
    for number in range(train - empty, train):
        name = f"{number}.png"
        Image.fromarray(rng.integers(90, 150, (96, 128, 3)).astype(np.uint8)).save(root / name)
        found[name] = ()
    names = list(found)

    def listed(files: list[str]) -> ImageList:
        return ImageList(files=tuple(files), objects=tuple(found[name] for name in files))

    return tl.Splits(
        name="drawn",
        root=root,
        digest=f"{train}{val}{empty}{int(same)}".ljust(64, "0"),
        classes=NAMES,
        task="detection",
        train=listed(names[:train]),
        val=listed(names[:train] if same else names[train:]),
    )
