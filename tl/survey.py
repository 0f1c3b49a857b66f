"""A report on a data set before anything trains: counts, sizes, repeated images, conflicting labels, damaged files.

It decodes every image once; what it found out about images is kept in the cache (`tl.alike`). This module doesn't
import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import chain
from statistics import median

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tl.alike import groups_of, looks_of, members
from tl.datasets import ImageList, Splits
from tl.digest import file_digests
from tl.findings import Duplicate, LeftOut, find_near_duplicates
from tl.layout import alike
from tl.strict import Count, Positive, Share, Strict

IMBALANCED = 3.0
"""If the largest class has more than this many times the training images of the smallest, a note says so."""
MOST_NAMED = 5
"""Examples that are named; all are counted."""


class Range(Strict):
    """The smallest, the middle and the largest value of some images, in pixels."""

    min: Positive
    median: float = Field(ge=1)
    max: Positive


class Sizes(Strict):
    """Widths and heights of the images that could be decoded."""

    width: Range
    height: Range


class ShareRange(Strict):
    """The smallest, the middle and the largest value of some boxes, as shares of the image."""

    min: Share
    median: Share
    max: Share


class ObjectCounts(Strict):
    """The boxes of a data set."""

    objects: dict[str, dict[str, Count]] = Field(description="class → split → number of objects")
    without: dict[str, Count] = Field(description="split → images without objects")
    most: Positive = Field(description="largest number of objects in an image")
    width: ShareRange = Field(description="widths of boxes, as shares of the image's")
    height: ShareRange


class Baseline(Strict):
    """What always answering the largest class achieves on the validation images. Accuracy means something above it."""

    name: str = Field(description="the class")
    rate: Share = Field(description="its share of the validation images")


class Pair(Strict):
    """Two images that are the same, or look the same."""

    file: str
    other: str
    distance: Count = Field(description="bits of 64 in which their hashes differ; 0 for the same file")


class Repeats(Strict):
    """Images that repeat others."""

    identical: Count = Field(description="images that are the same file as another one")
    near: Count = Field(description="images that are other files and look the same, such as resized copies")
    examples: tuple[Pair, ...] = Field(description="the first of them, each with what it repeats")

    @property
    def count(self) -> int:
        """Number of images, identical and nearly identical."""
        return self.identical + self.near


class Damaged(Strict):
    """An image that can't be decoded."""

    file: str
    reason: str


class Unreadable(Strict):
    """All images that can't be decoded."""

    count: Count
    first: tuple[Damaged, ...]


class Survey(Strict):
    """What a data set holds. Paths are relative to its root."""

    name: str
    task: str = Field(description="what the labels are for, a key of `tl.tasks.TASKS`")
    origin: str = Field(description="how the split came about; empty for folders train/ and val/")
    images: Positive
    classes: dict[str, dict[str, Count]] = Field(description="class → split → number of images")
    splits: dict[str, Count] = Field(description="split → number of images")
    sizes: Sizes | None = Field(description="None if no image could be decoded")
    baseline: Baseline | None = Field(description="None for other tasks than classification")
    boxes: ObjectCounts | None = Field(description="None for other tasks than detection")
    imbalance: float = Field(ge=1, description="training images of the largest class ÷ those of the smallest")
    duplicates_within_splits: Repeats = Field(description="images beyond the first of their kind in a split")
    duplicates_across_splits: Repeats = Field(
        description="validation images that repeat training images, and test images that repeat either"
    )
    conflicting_labels: Repeats = Field(description="images that repeat one of another class")
    unreadable: Unreadable
    left_out: tuple[LeftOut, ...]
    near_duplicates: tuple[Duplicate, ...] = Field(description="near-identical training and validation images, by kind")
    warnings: tuple[str, ...] = Field(description="sentences on what makes accuracy other than it seems to be")
    notes: tuple[str, ...] = Field(description="sentences on all else that was found")


def survey(splits: Splits, *, test: bool = False) -> Survey:
    """Look at all training and validation images of a data set, and with `test` also at its test images.

    Trainings have no use for the test images, so only a report on the data itself looks at them. Raises `DataError` if
    a file can't be read at all; images that can't be decoded are counted.
    """
    parts = {"train": splits.train, "val": splits.val}
    if test and splits.test is not None:
        parts["test"] = splits.test
    files = [file for images in parts.values() for file in images.files]
    labels = _numbered([content for images in parts.values() for content in images.contents])
    part = np.repeat(np.arange(len(parts)), [len(images) for images in parts.values()])
    digests = file_digests(splits.root, files)
    looks = looks_of(splits.root, digests)
    same = _numbered([digests[file] for file in files])
    groups = groups_of(looks, [digests[file] for file in files])
    repeated = _Repeated(files, labels, part, same, groups, looks.hashes)
    across, within, conflicts = repeated.across(), repeated.within(), repeated.conflicts()
    alike_files = [[files[index] for index in some if part[index] < 2] for some in members(groups)]
    by_name = dict(zip(files, labels.tolist(), strict=True))
    near = find_near_duplicates([some for some in alike_files if len(some) > 1], digests, by_name, splits.train.files)
    damaged = [Damaged(file=f, reason=why) for f, why in zip(files, looks.reasons, strict=True) if why]
    by_split = {split: class_counts(images, splits.classes) for split, images in parts.items()}
    counts = by_split["train"]
    findings = [*splits.findings, *near]
    warnings = [str(each) for each in findings if each.serious]
    if damaged:
        several, first = "s" if len(damaged) > 1 else "", f"{damaged[0].file!r} ({damaged[0].reason})"
        such = f"such as {first}" if several else first
        advice = f"repair or remove {'them' if several else 'it'} before you train"
        warnings.insert(0, f"{len(damaged)} image{several} can't be decoded, {such}: {advice}")
    if "test" in parts and (leaked := repeated.across(split=2)).count:
        warnings.append(
            f"{leaked.count} test image{'s repeat' if leaked.count > 1 else ' repeats'} training or validation images, "
            f"such as {leaked.examples[0].file!r}: test accuracy is too high for new images"
        )
    return Survey(
        name=splits.name,
        task=splits.task,
        origin=splits.origin,
        images=len(files),
        classes={
            name: {split: each[number] for split, each in by_split.items()}
            for number, name in enumerate(splits.classes)
        },
        splits={split: len(images) for split, images in parts.items()},
        sizes=_sizes(looks.sizes),
        baseline=_baseline(splits),
        boxes=_boxes(parts, splits.classes) if splits.task == "detection" else None,
        imbalance=max(counts) / min(counts),
        duplicates_within_splits=within,
        duplicates_across_splits=across,
        conflicting_labels=conflicts,
        unreadable=Unreadable(count=len(damaged), first=tuple(damaged[:MOST_NAMED])),
        left_out=splits.left_out,
        near_duplicates=near,
        warnings=(*warnings, *alike(splits.classes)),
        notes=(
            *(str(each) for each in findings if not each.serious),
            *imbalance_note(counts, splits.classes, splits.task),
        ),
    )


def class_counts(images: ImageList, classes: Sequence[str]) -> tuple[int, ...]:
    """The number of images of each class. An image with several counts once for each of them."""
    of_objects = ({box.label for box in some} for some in images.objects)
    counts = Counter(chain(images.labels, chain.from_iterable(images.targets), chain.from_iterable(of_objects)))
    return tuple(counts[label] for label in range(len(classes)))


def imbalance_note(counts: Sequence[int], classes: Sequence[str], task: str) -> list[str]:
    """A sentence on classes of very different sizes, by their training images; nothing if similar or unknown."""
    if not counts or max(counts) <= IMBALANCED * min(counts):
        return []
    least, most = min(counts), max(counts)
    small, large = classes[counts.index(least)], classes[counts.index(most)]
    advice = ": balanced accuracy and macro-F1 say more than accuracy" if task == "classification" else ""
    return [
        f"the classes are imbalanced: {large!r} has {most} training images, {most / least:.1f} times as many as "
        f"{small!r} ({least}){advice}"
    ]


class _Repeated:
    """Counts repeated images: equal files and images that look the same, by split and class. All arrays are `(N,)`."""

    def __init__(
        self,
        files: Sequence[str],
        labels: npt.NDArray[np.int64],
        part: npt.NDArray[np.int64],
        same: npt.NDArray[np.int64],
        groups: npt.NDArray[np.int64],
        hashes: npt.NDArray[np.uint64],
    ) -> None:
        self.files, self.labels, self.part = files, labels, part
        self.same, self.groups, self.hashes = same, groups, hashes
        self.order = np.arange(len(files))

    def across(self, split: int | None = None) -> Repeats:
        """Images that repeat one of an earlier split; with `split` only those of that split."""
        counts = self.part == split if split is not None else np.ones(len(self.files), dtype=np.bool_)
        near, equal = ((_lowest(keys, self.part) < self.part) & counts for keys in (self.groups, self.same))
        return self._repeats(near, equal, lambda image: self.part < self.part[image])

    def within(self) -> Repeats:
        """Images that repeat an earlier one of their split."""
        parts = int(self.part.max()) + 1
        near, equal = (_lowest(keys * parts + self.part, self.order) < self.order for keys in (self.groups, self.same))
        return self._repeats(near, equal, lambda image: (self.part == self.part[image]) & (self.order < image))

    def conflicts(self) -> Repeats:
        """Images that repeat one of another class."""
        near, equal = (
            (_lowest(keys, self.labels) < self.labels) | (_lowest(keys, -self.labels) < -self.labels)
            for keys in (self.groups, self.same)
        )
        return self._repeats(near, equal, lambda image: self.labels != self.labels[image])

    def _repeats(
        self,
        near: npt.NDArray[np.bool_],
        equal: npt.NDArray[np.bool_],
        repeated: Callable[[int], npt.NDArray[np.bool_]],
    ) -> Repeats:
        """Count images that repeat others, and find what the first of them repeat. Equal files are also near."""
        examples = []
        for image in np.flatnonzero(near)[:MOST_NAMED].tolist():
            candidates = np.flatnonzero(repeated(image) & (self.groups == self.groups[image]))
            others = candidates[self.same[candidates] == self.same[image]]
            other = int((others if len(others) else candidates)[0])
            distance = int(np.bitwise_count(self.hashes[image] ^ self.hashes[other]))
            examples.append(Pair(file=self.files[image], other=self.files[other], distance=distance))
        return Repeats(identical=int(equal.sum()), near=int((near & ~equal).sum()), examples=tuple(examples))


def _lowest(keys: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each element the smallest value among those with the same key."""
    _, keys = np.unique(keys, return_inverse=True)
    found = np.full(len(keys), np.iinfo(np.int64).max)
    np.minimum.at(found, keys, values)
    return found[keys]


def _numbered(keys: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    """The index of the first element with the same key, for each."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(key, number) for number, key in enumerate(keys)], dtype=np.int64)


def _sizes(sizes: npt.NDArray[np.int64]) -> Sizes | None:
    known = sizes[sizes[:, 0] > 0]
    if not len(known):
        return None
    height, width = (
        Range(min=int(values.min()), median=float(np.median(values)), max=int(values.max())) for values in known.T
    )
    return Sizes(width=width, height=height)


def _boxes(parts: Mapping[str, ImageList], classes: Sequence[str]) -> ObjectCounts:
    """Count the objects of each class and split, and measure their boxes."""
    labels = {split: Counter(box.label for some in images.objects for box in some) for split, images in parts.items()}
    boxes = [box for images in parts.values() for some in images.objects for box in some]
    width, height = (
        ShareRange(min=min(values), median=median(values), max=max(values))
        for values in ([box.width for box in boxes], [box.height for box in boxes])
    )
    return ObjectCounts(
        objects={name: {split: each[number] for split, each in labels.items()} for number, name in enumerate(classes)},
        without={split: sum(not some for some in images.objects) for split, images in parts.items()},
        most=max(len(some) for images in parts.values() for some in images.objects),
        width=width,
        height=height,
    )


def _baseline(splits: Splits) -> Baseline | None:
    """The class with the most validation images, the first of several, and its share of all."""
    if splits.task != "classification":
        return None
    label, count = min(Counter(splits.val.labels).items(), key=lambda item: (-item[1], item[0]))
    return Baseline(name=splits.classes[label], rate=count / len(splits.val))
