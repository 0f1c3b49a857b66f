"""Small data sets with boxes, for tests: COCO files in three layouts, and masks as Penn-Fudan has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.images import picture

SIZE = (80, 60)
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}]
Pixels = tuple[str, tuple[float, float, float, float]]
"""The category of an object, and its left, top, width and height in pixels."""


def coco(images: Mapping[str, Sequence[Pixels]], *, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """The content of a COCO file, with one annotation for each object."""
    ids = {each["name"]: each["id"] for each in CATEGORIES}
    annotations = [
        {"image_id": number, "category_id": ids[name], "bbox": list(box), "iscrowd": 0}
        for number, objects in enumerate(images.values(), start=10)
        for name, box in objects
    ]
    return {
        "images": [
            {"id": number, "file_name": name, "width": size[0], "height": size[1]}
            for number, name in enumerate(images, start=10)
        ],
        "categories": CATEGORIES,
        "annotations": [{"id": 100 + number} | each for number, each in enumerate(annotations)],
    }


TRAIN: dict[str, list[Pixels]] = {
    "0.png": [("dog", (8, 6, 40, 30)), ("cat", (0, 0, 20, 15))],
    "1.png": [("cat", (40, 30, 40, 30))],
    "2.png": [],
}
VAL: dict[str, list[Pixels]] = {"3.png": [("dog", (20, 15, 20, 15))]}


def write_images(folder: Path, names: Sequence[str], *, size: tuple[int, int] = SIZE) -> None:
    """Write a picture for each name, which is a number with an ending; no two look the same."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        picture(int(name.partition(".")[0]), size=size).save(folder / name)


def write_coco(root: Path, layout: str) -> Path:
    """Write `TRAIN` and `VAL` in a layout (`coco`, `roboflow` or `flat`), and return the folder."""
    for split, images in (("train", TRAIN), ("val", VAL)):
        if layout == "coco":
            folder, file = root / f"{split}2017", root / "annotations" / f"instances_{split}2017.json"
        elif layout == "roboflow":
            folder = root / {"train": "train", "val": "valid"}[split]
            file = folder / "_annotations.coco.json"
        else:
            folder, file = root / "images", root / f"{split}.json"
        write_images(folder, list(images))
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(coco(images)), encoding="utf-8")
    return root


def write_masks(root: Path, images: int = 10) -> Path:
    """Write images and masks as Penn-Fudan has them; every third image has two objects, and the last one none."""
    names = [f"{number}.png" for number in range(images)]
    write_images(root / "PNGImages", names)
    (root / "PedMasks").mkdir()
    for number, name in enumerate(names):
        mask = np.zeros(SIZE[::-1], dtype=np.uint8)
        if number < images - 1:
            mask[10:20, 30:50] = 1
        if number % 3 == 0 and number < images - 1:
            mask[0:30, 60:80] = 2
        shown = Image.fromarray(mask, mode="L").convert("P") if number % 2 else Image.fromarray(mask)
        shown.save(root / "PedMasks" / name.replace(".png", "_mask.png"))
    return root
