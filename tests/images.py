"""Makes small image folders for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, *, size: tuple[int, int] = (40, 32), seed: int = 0) -> Path:
    """Write a noise image of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def picture(seed: int, *, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of smooth random colours, which has a hash of its own as photographs have."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def write_pictures(root: Path, counts: dict[str, int], *, first: int = 0) -> Path:
    """Write `CLASS/NUMBER.png` of pictures that look different from each other, so many of each class."""
    number = first
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture(number).save(root / name / f"{index}.png")
            number += 1
    return root


def write_folder(
    root: Path, classes: tuple[str, ...] = ("a", "b"), *, train: int = 3, val: int = 2, size: tuple[int, int] = (40, 32)
) -> Path:
    """Write a folder in `train/CLASS/*, val/CLASS/*` layout. No two images are the same."""
    for first, split, count in ((0, "train", train), (10_000, "val", val)):
        for label, name in enumerate(classes):
            for index in range(count):
                write_image(root / split / name / f"{index}.jpg", size=size, seed=first + 100 * label + index)
    return root
