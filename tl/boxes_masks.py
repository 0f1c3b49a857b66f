"""Reads the layout of the Penn-Fudan pedestrians, whose objects are masks, for task `detection`.

`PNGImages/NAME.png` is an image and `PedMasks/NAME_mask.png` has a number for each of its pixels: 0 for the background,
and another one for each object. The set has no split. This module doesn't import torch.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tl.boxed import Boxed, BoxedImage
from tl.boxes import Box
from tl.decoding import in_threads, numbers_or_say_why, size_of
from tl.errors import DataError
from tl.findings import Tally
from tl.listing import list_images

IMAGES, MASKS = "PNGImages", "PedMasks"
CLASS = "person"


def has_masks(folder: Path) -> bool:
    """True if a folder has the layout, or a half of it."""
    return (folder / IMAGES).is_dir() or (folder / MASKS).is_dir()


def read(place: Path, endings: tuple[str, ...]) -> Boxed:
    """Read the images and masks of a folder; the box of an object is the smallest around its pixels.

    `endings` are those of images, in lower case. Raises `DataError`, with the number of faults and the first of them,
    for an image without a mask, a mask without an image, and a mask that can't be read, has more than one channel or
    another size than its image.
    """
    root, tally = place.resolve(), Tally()
    found = {}
    for folder in (IMAGES, MASKS):
        if not (root / folder).is_dir():
            raise DataError(f"{root}: has no folder {folder}/ beside {MASKS if folder == IMAGES else IMAGES}/")
        above = (str(root), str((root / folder).resolve()))
        found[folder] = list_images(str(root / folder), folder, above, tally, endings)
    for folder, files in found.items():
        twice = [file for file, count in Counter(_stem(file, folder) for file in files).items() if count > 1]
        if twice:
            raise DataError(f"{root}: {folder}/ has {len(twice)} names with several endings, the first is {twice[0]!r}")
    images = {_stem(file, IMAGES): file for file in found[IMAGES]}
    masks = {_stem(file, MASKS).removesuffix("_mask"): file for file in found[MASKS]}
    if not images:
        raise DataError(f"{root / IMAGES}: has no images")
    for what, ours, theirs in (("images have no mask", images, masks), ("masks have no image", masks, images)):
        if alone := sorted(ours[name] for name in ours.keys() - theirs.keys()):
            raise DataError(
                f"{root}: {len(alone)} of {len(ours)} {what}, the first is {alone[0]!r}; the mask of "
                f"{IMAGES}/NAME.png is {MASKS}/NAME_mask.png"
            )
    order = sorted(images)
    boxes: list[tuple[Box, ...]] = []
    faults: list[str] = []
    for name, (mask, numbers) in zip(
        order, in_threads(root, [masks[name] for name in order], numbers_or_say_why), strict=True
    ):
        if isinstance(numbers, str):
            faults.append(f"{mask!r}: {numbers}")
            continue
        height, width = numbers.shape
        size = size_of(root / images[name])
        if size is not None and size != (width, height):
            faults.append(f"{mask!r} has {width} × {height} pixels, and its image {size[0]} × {size[1]}")
        boxes.append(_boxes(numbers))
    if faults:
        raise DataError(f"{root}: {len(faults)} of {len(order)} masks can't be used; the first: {faults[0]}")
    return Boxed(
        place=place,
        root=root,
        classes=(CLASS,),
        images=tuple(
            BoxedImage(file=images[name], objects=some, split=None) for name, some in zip(order, boxes, strict=True)
        ),
        origin=f"boxes are those around the masks in '{MASKS}/'",
        left_out=tally.left_out,
    )


def _stem(file: str, folder: str) -> str:
    return file.removeprefix(f"{folder}/").rpartition(".")[0]


def _boxes(numbers: npt.NDArray[np.int64]) -> tuple[Box, ...]:
    """The box around the pixels of each number but 0, in the order of numbers. `numbers` is `(H, W)`."""
    height, width = numbers.shape
    found = []
    for number in np.unique(numbers):
        if number:
            rows, columns = (np.flatnonzero((numbers == number).any(axis=axis)) for axis in (1, 0))
            edges = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
            found.append(Box(0, *map(float, edges)))
    return tuple(found)
