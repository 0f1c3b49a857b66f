"""Divides images into two parts by class, without tearing images apart that look the same.

The division depends only on the images' content, labels and groups, not on their names or their order.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tl.errors import DataError

SHARE = 5
"""One image in SHARE of each class is a validation image."""
GIVE = "give the split yourself (folders train/ and val/, or a table with a column split)"
"""Advice in messages of sets that can't be split here."""


def divide(
    labels: Sequence[int],
    groups: Sequence[int] | npt.NDArray[np.int64],
    keys: Sequence[str],
    classes: Sequence[str],
    seed: int,
    names: Sequence[str],
    *,
    give: str = GIVE,
) -> npt.NDArray[np.bool_]:
    """Return which images are validation images, `(N,) bool`: about a fifth of each class, and never all of one.

    Args:
        labels: class of each image, as an index into `classes`.
        groups: images with the same number are on the same side.
        keys: what identifies an image, such as the digest of its file. With `seed` it decides on the side.
        classes: names, for messages.
        seed: of the random order in which groups become validation images.
        names: of the images, for messages.
        give: advice in messages: how a user gives the split.

    Groups are tried in random order, and taken where no class gets more than a rounded fifth of its images. A class
    that has none then gets its smallest group. Raises `DataError` for a class whose images can't be on both sides.
    """
    totals = Counter(labels)
    for label, count in sorted(totals.items()):
        if count < 2:
            raise DataError(
                f"class {classes[label]!r} has {count} image; at least 2 are needed, since some of each class become "
                "validation images: add another one, or leave the class out"
            )
    wanted = {label: max(1, round(count / SHARE)) for label, count in totals.items()}
    inside: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        inside.setdefault(int(group), []).append(index)
    parts = [
        _Part(sorted(some, key=lambda index: (keys[index], labels[index])), labels, keys, seed)
        for some in inside.values()
    ]
    parts.sort(key=lambda part: part.order)
    taken: Counter[int] = Counter()
    chosen: list[_Part] = []

    def take(part: _Part, most: dict[int, int]) -> bool:
        if any(taken[label] + count > most[label] for label, count in part.counts.items()):
            return False
        taken.update(part.counts)
        chosen.append(part)
        return True

    for part in parts:
        take(part, wanted)
    most = {label: count - 1 for label, count in totals.items()}
    for label in sorted(totals):
        if not taken[label]:
            ours = sorted((part for part in parts if label in part.counts), key=lambda part: (part.size, part.order))
            if not any(take(part, most) for part in ours):
                raise DataError(f"class {classes[label]!r} can't be split: {_why(label, ours, classes, names, give)}")
    validation = np.zeros(len(labels), dtype=np.bool_)
    for part in chosen:
        validation[part.images] = True
    return validation


class _Part:
    """Images that stay together."""

    def __init__(self, images: list[int], labels: Sequence[int], keys: Sequence[str], seed: int) -> None:
        self.images = images
        self.labels = [labels[index] for index in images]
        self.counts = Counter(self.labels)
        self.size = len(images)
        self.order = hashlib.sha256(f"{seed} {keys[images[0]]} {labels[images[0]]}".encode()).hexdigest()
        """Random, and the same for the same images."""


def _why(label: int, parts: Sequence[_Part], classes: Sequence[str], names: Sequence[str], give: str) -> str:
    """Why a class with these parts can't be on both sides, with an example, and what to do."""
    ties = []
    for part in parts:
        ours = [names[index] for index, own in zip(part.images, part.labels, strict=True) if own == label]
        others = [names[index] for index, own in zip(part.images, part.labels, strict=True) if own != label]
        ties += [(min(ours), min(others))] if others else []
    give = f"or {give}"
    if len(parts) == 1 and not ties:
        first, second = sorted(names[index] for index in parts[0].images)[:2]
        such = "such as " if parts[0].size > 2 else ""
        return (
            f"its {parts[0].size} images look the same, {such}{first!r} ~ {second!r}, so some can't be for "
            f"validation while others are for training: add different ones, leave the class out, {give}"
        )
    also = {own for part in parts for own in part.labels if own != label}
    first, second = min(ties)
    return (
        f"its images look the same as some of {' and '.join(repr(classes[other]) for other in sorted(also))}, such as "
        f"{first!r} ~ {second!r}, and would all be on one side: remove those that are in two classes, add different "
        f"ones, {give}"
    )
