"""Boxes around the objects of an image, for task `detection`. This module doesn't import torch."""

from __future__ import annotations

from array import array
from typing import NamedTuple


class Box(NamedTuple):
    """An object: its class, and the edges of the box around it.

    Edges are shares of the image's width and height, 0 to 1 from left to right and from top to bottom, so a box holds
    for whatever size the image is decoded or resized to. The image is the one that `tl.decoding` returns.
    """

    label: int
    """Class of the object, as an index into `Splits.classes`. The background is no class."""
    left: float
    top: float
    right: float
    """Greater than `left`."""
    bottom: float
    """Greater than `top`."""

    @property
    def width(self) -> float:
        """Share of the image's width."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Share of the image's height."""
        return self.bottom - self.top


def fault_of(box: Box) -> str:
    """What is wrong with the edges of a box, in words; empty if nothing is.

    Edges must differ in single precision, too: a training has them so, and a box without an area has no finite loss.
    """
    left, top, right, bottom = array("f", box[1:])
    for what, low, high, rounded in (
        ("left and right", box.left, box.right, (left, right)),
        ("top and bottom", box.top, box.bottom, (top, bottom)),
    ):
        if not 0 <= low < high <= 1:  # NaN is neither
            return f"its {what} are {low:g} and {high:g}; both must be from 0 to 1, the first below the second"
        if rounded[0] == rounded[1]:
            return f"its {what} are {low!r} and {high!r}, which are the same in single precision"
    return ""
