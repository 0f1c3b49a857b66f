"""A drawn set of images with several labels each, for tests: colours that are somewhere in a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (50, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}
NAMES = tuple(COLOURS)


def draw(path: Path, labels: Sequence[str], seed: int) -> None:
    """Write a picture of noise with a square of each colour in `labels`."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 150, (48, 64, 3)).astype(np.uint8)
    for number, name in enumerate(NAMES):
        if name in labels:
            top = int(rng.integers(0, 30))
            pixels[top : top + 16, 20 * number : 20 * number + 20] = COLOURS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def drawn(root: Path, *, train: int = 12, val: int = 8, form: str = "together", seed: int = 0) -> Path:
    """Write images and `labels.csv` in one of its forms, and return the folder. Some images have no label.

    `form` is `together` for a column `labels`, or `apart` for a column of 0 and 1 for each.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(train + val):
        labels = [name for name in NAMES if rng.random() < 0.5]
        if number % max(train, 1) == 1:
            labels = []
        draw(root / f"{number}.png", labels, seed=1000 * seed + number)
        rows.append((f"{number}.png", "train" if number < train else "val", labels))
    write_table(root / "labels.csv", rows, form=form)
    return root


def write_table(path: Path, rows: Sequence[tuple[str, str, Sequence[str]]], *, form: str = "together") -> None:
    """Write rows of a path, a split and labels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "split", *(NAMES if form == "apart" else ["labels"])])
        for place, split, labels in rows:
            cells = [str(int(name in labels)) for name in NAMES] if form == "apart" else [";".join(labels)]
            table.writerow([place, split, *cells])
