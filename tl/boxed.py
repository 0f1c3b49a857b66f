"""Data sets with boxes, as readers of their layouts return them, and their split where they have none.

This module doesn't import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tl.alike import Groups
from tl.boxes import Box
from tl.dividing import divide
from tl.errors import DataError
from tl.findings import LeftOut
from tl.layout import Split
from tl.seeding import seed_for

GIVE = "give the split yourself (a COCO file for each of train and val)"
"""Advice in messages of sets that can't be split here."""


@dataclass(frozen=True, kw_only=True)
class BoxedImage:
    """An image of a data set with boxes."""

    file: str
    """Path relative to the root of the data set, with forward slashes."""
    objects: tuple[Box, ...]
    """Their labels are indices into `Boxed.classes`."""
    split: Split | None
    """None if the data set has no split."""


@dataclass(frozen=True, kw_only=True)
class Boxed:
    """What a reader of a layout found: images with boxes, as they are on disk."""

    place: Path
    """The folder or file that was given, for messages."""
    root: Path
    """The folder that has all images."""
    classes: tuple[str, ...]
    """All classes that are declared, in their order; some may have no object."""
    images: tuple[BoxedImage, ...]
    origin: str
    """Says where boxes and splits are from, without a full stop."""
    left_out: tuple[LeftOut, ...] = ()


def divide_boxed(
    objects: Sequence[Sequence[Box]], groups: Groups, keys: Sequence[str], classes: Sequence[str], names: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Return which images are validation images, `(N,) bool`: about a fifth of them, by `tl.dividing.divide`.

    Args:
        objects: of each image; labels are indices into `classes`, each of which has an object.
        groups: images with the same number are on the same side.
        keys: what identifies an image, such as the digest of its file.
        classes: names, for messages.
        names: of the images, for messages.

    An image counts for the rarest of its classes, and one without objects for the most frequent class. Raises
    `DataError` for a class that can't be on both sides, and for one that would only be in validation images.
    """
    inside = [{box.label for box in some} for some in objects]
    totals = Counter(label for some in inside for label in some)
    usual = min(totals, key=lambda label: (-totals[label], label))
    labels = [min(some, key=lambda label: (totals[label], label), default=usual) for some in inside]
    single = {label for label, count in Counter(labels).items() if count < 2 and totals[label] > 1}
    labels = [usual if label in single else label for label in labels]
    chosen = divide(labels, groups, keys, classes, seed_for("validation split"), names, give=GIVE)
    learnt = {label for some, val in zip(inside, chosen, strict=True) if not val for label in some}
    if lost := sorted(set(totals) - learnt):
        raise DataError(
            f"class {classes[lost[0]]!r} can't be split: its {totals[lost[0]]} images would all become validation "
            f"images, since they also have rarer classes: leave a class out, add images, or {GIVE}"
        )
    return chosen
