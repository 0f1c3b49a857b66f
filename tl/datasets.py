"""Data sets: finds, lists and checks folders of images by class, with or without a split, and tables of images.

| what | its split |
| --- | --- |
| `train/CLASS/**`, `val/CLASS/**` and perhaps `test/CLASS/**`, or other usual names such as `valid` | as it is |
| the same without `val/` | a fifth of each class of `train/` becomes validation images |
| `CLASS/**` | a fifth of each class becomes validation images |
| a CSV, Parquet or JSON Lines file of `path,label,split` (`tl.tables`) | as it is; without validation images as above |
| a Hugging Face folder: one of these in `data/`, or `metadata.csv` with `file_name` and `label` | as it is |

A table with labels in a Hugging Face folder decides, whatever folders the images are in; without labels the folders do.

For task `multilabel` the set is a table with several labels for each image, or the folder that it is in
(`tl.label_sets`), and its split is as it is. For task `detection` it has boxes, as COCO files (`tl.boxes_coco`) or
around masks (`tl.boxes_masks`); without validation images a fifth of all becomes such.

What is split here is split by content, with a fixed seed; images that look the same stay on one side (`tl.dividing`).

To add a named data set, add an entry to `DATASETS`. This module doesn't import torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from tl import boxes_coco, boxes_masks, hymenoptera, synthetic, synthetic_boxes
from tl.alike import Groups, groups_of, looks_of, members
from tl.boxed import Boxed, BoxedImage, divide_boxed
from tl.boxes import Box, fault_of
from tl.cache import is_file, is_folder
from tl.calls import Place, checked
from tl.decoding import conversions
from tl.digest import file_digests, set_digest
from tl.dividing import divide
from tl.errors import ConfigError, DataError, DataWarning, FallbackWarning, not_one_of
from tl.findings import Duplicate, LeftOut, Tally, find_duplicates
from tl.label_sets import read_label_sets
from tl.layout import Split, alike, called_like_splits, check_names, difference, find_parts, split_called, too_deep
from tl.listing import classify, entries, leads_to_folder, list_images, real, shown
from tl.seeding import seed_for
from tl.tables import Listing, is_table, metadata_of, read_metadata, read_table, without_labels
from tl.tasks import TASKS

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".avif", ".jp2", ".j2k"),
)
"""Endings of the formats that are decoded, in lower case; names may have them in either case."""
_BOXES = (
    "needed are COCO files (annotations/instances_train*.json and …val*.json, or train/_annotations.coco.json), or "
    "masks (PNGImages/ and PedMasks/)"
)


_TRUTHS = {"classification": "labels", "multilabel": "targets", "detection": "objects"}
"""Task → the field of `ImageList` that has what is true of each image."""
_NOTHING = {"multilabel": "a label", "detection": "an object"}
"""Task in which images may have nothing → what not all images of a split may lack."""


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """The images of one split, in a fixed order: by class, then by subfolder, then by name."""

    files: tuple[str, ...]
    """Paths relative to the data set's root, with forward slashes."""
    labels: tuple[int, ...] = ()
    """Class of each file, as an index into `Splits.classes`; empty for tasks other than classification."""
    targets: tuple[tuple[int, ...], ...] = ()
    """For task `multilabel`: the classes of each file, ascending, of which there may be none."""
    objects: tuple[tuple[Box, ...], ...] = ()
    """For task `detection`: the objects of each file, of which there may be none."""

    def __len__(self) -> int:
        return len(self.files)

    @property
    def truth(self) -> tuple[Any, ...]:
        """What is true of each image, as scores of the task take it: its class, its classes or its objects."""
        return self.objects or self.targets or self.labels

    @property
    def contents(self) -> tuple[Hashable, ...]:
        """What copies of an image must have in common: its class, its classes, or those of its objects.

        Boxes are no part of it: those around copies of another size differ by fractions of a pixel.
        """
        return tuple(tuple(sorted(box.label for box in some)) for some in self.objects) or self.truth

    def subset(self, indices: Iterable[int]) -> ImageList:
        """Return the images at these places, in this order."""
        chosen = list(indices)
        return ImageList(
            files=tuple(self.files[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen) if self.labels else (),
            targets=tuple(self.targets[i] for i in chosen) if self.targets else (),
            objects=tuple(self.objects[i] for i in chosen) if self.objects else (),
        )


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A data set on disk: its images by split, its class names, and the digest that identifies it.

    Raises `DataError` for data that no folder has, such as a split without images.
    """

    name: str
    root: Path
    digest: str
    """SHA-256 over the sorted lines `relative/path sha256-of-file` of training and validation images, in hex.

    A line `decoding N` follows if an image has more than 8 bits or transparency (see `tl.decoding.conversions`), and if
    `assigned` a line for each image with its split and class. The test images have no part in it."""
    classes: tuple[str, ...]
    task: str = "classification"
    """What a network is to say of the images, a key of `tl.tasks.TASKS`."""
    train: ImageList
    val: ImageList
    test: ImageList | None = None
    """Images that no training decodes or looks at; see `for_test`. A class may be missing among them."""
    origin: str = ""
    """How the split came about, in a sentence without a full stop; empty for folders `train/` and `val/`."""
    assigned: bool = False
    """True if the paths don't say the split and class of an image, so that the digest must."""
    together: tuple[tuple[str, ...], ...] = ()
    """Groups of images that look the same, which were kept on one side when the set was split here.

    Folds, the tuning split and probes keep them together too. They follow from the files' content and from the versions
    of the libraries that decode and hash it, and are no part of the digest: sets that were split here have digests in
    committed and in users' runs, with no groups in them, and would be other sets with every version of a library. So
    two versions that group otherwise and split alike share the cells of a run."""
    fallback: str = ""
    """Says that the images are synthetic, and why; empty for real images."""
    left_out: tuple[LeftOut, ...] = ()
    """What lies in `train/` and `val/`, or beside them, and is no image of the set, by reason."""
    duplicates: tuple[Duplicate, ...] = ()
    """Images that are the same file. Parts of a data set, such as folds, keep what was found in the whole."""

    def __post_init__(self) -> None:
        """Raise `DataError` if a split has no images, another number of labels, an unknown label or a faulty box."""
        parts = {"train": self.train, "val": self.val} | ({"test": self.test} if self.test is not None else {})
        if self.task not in TASKS:
            raise DataError(f"{self.name}: {not_one_of('task', self.task, TASKS)}")
        for split, images in parts.items():
            given = getattr(images, _TRUTHS.get(self.task, "targets"))
            if not len(images) or len(images) != len(given):
                raise DataError(
                    f"{self.name}: {split} has {len(images)} images and {len(given)} labels; "
                    "one image at least is needed, and a label for each"
                )
            if what := _NOTHING.get(self.task) if not any(given) else None:
                raise DataError(f"{self.name}: no image of {split} has {what}; there is nothing to learn or to score")
            for file, boxes in zip(images.files, images.objects, strict=False):
                if why := next(filter(None, map(fault_of, boxes)), ""):
                    raise DataError(f"{self.name}: an object of {file!r} has a faulty box: {why}")
            used = set(images.labels).union(*images.targets, (box.label for some in images.objects for box in some))
            if unknown := used.difference(range(len(self.classes))):
                raise DataError(
                    f"{self.name}: {split} has the label {min(unknown)}; labels of {len(self.classes)} classes are "
                    f"0 to {len(self.classes) - 1}"
                )

    @property
    def findings(self) -> tuple[LeftOut | Duplicate, ...]:
        """All that was found. `str(finding)` is a line for users."""
        return (*self.left_out, *self.duplicates)

    def for_test(self) -> Splits:
        """The data set whose validation images are the test images, for one evaluation when all choices are made.

        It has a digest of its own, for which the test images are read now. Raises `DataError` without test images.
        """
        if self.test is None:
            raise DataError(f"{self.name}: has no test images")
        origin = "; ".join(filter(None, (self.origin, "the validation images are the test images")))
        made = replace(self, name=f"{self.name}:test", val=self.test, test=None, origin=origin, assigned=True)
        return replace(made, digest=digest_at(made, made.root), duplicates=())


def digest_at(splits: Splits, root: Path) -> str:
    """The digest that the images of a data set have in another folder: that of the set if they are the same.

    Raises `DataError` if a file is missing there.
    """
    return _digest(root, splits.classes, splits.train, splits.val, assigned=splits.assigned)


def _digest(
    root: Path,
    classes: tuple[str, ...],
    train: ImageList,
    val: ImageList,
    *,
    assigned: bool,
    digests: dict[str, str] | None = None,
) -> str:
    files = [*train.files, *val.files]
    more = [*conversions(root, files)]
    if assigned:
        for split, images in (("train", train), ("val", val)):
            pairs = zip(images.files, images.truth, strict=True)
            more += sorted(f"{split} {_named(label, classes)} {file}" for file, label in pairs)
    return set_digest(digests or file_digests(root, files), more)


def _named(truth: int | tuple[int, ...] | tuple[Box, ...], classes: Sequence[str]) -> str:
    """The class of an image, or its classes or objects in a form that no others have."""
    if isinstance(truth, int):
        return classes[truth]
    return json.dumps([[classes[each[0]], *each[1:]] if isinstance(each, Box) else classes[each] for each in truth])


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named data set."""

    summary: str
    find: Callable[[bool], Path]
    """Returns the folder, generating the images if needed. It downloads only if its argument is true."""
    task: str = "classification"
    """What its labels are for, a key of `tl.tasks.TASKS`."""


DATASETS: dict[str, Dataset] = {
    "hymenoptera": Dataset(
        summary="244 + 153 photographs of ants and bees, from the PyTorch transfer-learning tutorial",
        find=hymenoptera.find,
    ),
    "synthetic": Dataset(
        summary="244 + 153 synthetic pictures of ants and bees, the same bytes every time",
        find=lambda download: synthetic.find(synthetic.FULL),
    ),
    "synthetic-mini": Dataset(
        summary="24 + 16 small synthetic pictures of ants and bees, for a quick look and for tests",
        find=lambda download: synthetic.find(synthetic.MINI),
    ),
    "synthetic-boxes": Dataset(
        summary="120 + 60 synthetic pictures of several ants and bees each, with boxes around them",
        find=lambda download: synthetic.find(synthetic_boxes.FULL),
        task="detection",
    ),
    "synthetic-boxes-mini": Dataset(
        summary="24 + 16 small synthetic pictures with boxes, for a quick look and for tests",
        find=lambda download: synthetic.find(synthetic_boxes.MINI),
        task="detection",
    ),
}


@checked
def load_splits(data: Place = "auto", *, task: str = "classification", download: bool = True) -> Splits:
    """Find a data set, list its images and compute its digest.

    `task` is what its labels are for, a key of `tl.tasks.TASKS`. `data` is a key of `DATASETS`, a folder or table as
    this module's table says, or `auto`. `auto` means the real ants and bees if they are available, else the synthetic
    ones, with a `FallbackWarning` and the reason in `Splits.fallback`. With `download=False` nothing is downloaded.

    Raises `UserError` if the folder is missing, and its subclass `DataError` if it is incomplete or not the set that it
    claims to be. It doesn't check that images can be decoded: `tl.images.open_store` does.
    """
    if task not in TASKS:
        raise ConfigError(not_one_of("task", task, TASKS))
    if task == "detection":
        splits = scan_boxes(data, download=download)
    else:
        splits = _found(str(data), download=download) if task == "classification" else scan_label_sets(data, task)
    if splits.fallback and str(data) == "auto":
        warnings.warn(f"the images are {splits.fallback}", FallbackWarning, stacklevel=2)
    for said in (*(finding for finding in splits.findings if finding.serious), *alike(splits.classes)):
        warnings.warn(f"{splits.root}: {said}", DataWarning, stacklevel=2)
    return splits


def _found(name: str, *, download: bool) -> Splits:
    if name == "auto":
        try:
            return scan(DATASETS["hymenoptera"].find(download), name="hymenoptera")
        except hymenoptera.Unavailable as reason:
            generated = scan(DATASETS["synthetic"].find(download), name="synthetic")
            return replace(generated, fallback=f"{generated.fallback} ({reason})")
    if name in DATASETS:
        if DATASETS[name].task != "classification":
            raise DataError(f"data={name!r}: has boxes around objects; it is for task {DATASETS[name].task!r}")
        return scan(DATASETS[name].find(download), name=name)
    place = Path(name)
    if is_folder(place):
        return scan(place)
    if is_file(place):
        return scan_table(place)
    raise DataError(f"there is no such folder or table, and {not_one_of('data', name, [*DATASETS, 'auto'])}")


def scan(root: Path, *, name: str | None = None) -> Splits:
    """List a folder of images in one of the layouts of this module's table and check that it is the set called `name`.

    A class has the images in its folder and in all subfolders; links are followed. Without `name` the set is recognised
    by its content, or else named after its folder. What is found beside the images, and images that are the same file,
    are counted in the result.

    Raises `DataError` if the folder has none of the layouts, a class is empty, there are fewer than two classes, the
    training and the validation images have different classes, two classes' names look alike, a file or folder can't be
    read, a class can't be split, or the content is a damaged copy of the real ants and bees.
    """
    given = root.resolve()
    root = _inner(given)
    if tables := _metadata(root):
        return _labelled(root, tables, name or _name(given, ""))
    parts = find_parts(root, IMAGE_SUFFIXES)
    tally = Tally()
    for beside in parts.beside if parts else ():
        tally.add("folder with images beside the splits", f"{beside}/")
    folders = [each for each in (parts.train, parts.val) if each] if parts else [""]
    found = {folder: _classes(root, folder, tally) for folder in folders}
    classes = tuple(found[folders[0]])
    check_names(root, {folder or ".": names for folder, names in found.items()})
    for other in folders[1:]:
        if classes != tuple(found[other]):
            hints = [difference(root, found), *too_deep(root, found, IMAGE_SUFFIXES), *tally.lost_classes]
            raise DataError(f"{root}: {folders[0]} and {other} have different classes: {'; '.join(hints)}")
    if parts is None and classes and set(classes) <= set(_box_files(root)):
        raise DataError(f"{root}: {', '.join(map(repr, classes))}: are no classes; {', '.join(_with_boxes(root))}")
    if len(classes) < 2:
        hints = ["at least 2 are needed", *too_deep(root, found, IMAGE_SUFFIXES), *tally.lost_classes]
        where = f"{parts.train}/" if parts else "the folder"
        hints += filter(None, map(without_labels, (root / parts.train, root) if parts else (root,)))
        hints += _with_boxes(root)
        raise DataError(
            f"{root}: {len(classes)} class{'' if len(classes) == 1 else 'es'} in {where}; {'; '.join(hints)}"
        )
    lists = [_listed([(f, label) for label, c in enumerate(classes) for f in found[each][c]]) for each in folders]
    test, said = _test_images(root, parts.test, classes, tally) if parts and parts.test else (None, "")
    return _made(
        root,
        name,
        given,
        classes,
        lists[0],
        lists[1] if len(lists) > 1 else None,
        test,
        [parts.renamed if parts else called_like_splits(classes), said],
        tally=tally,
        what="no split was given" if parts is None else f"{parts.train!r} has no validation images beside it",
    )


def _box_files(root: Path) -> dict[str, Path]:
    """Folders of images in a layout of task `detection` → what has their boxes; empty for other layouts."""
    if boxes_masks.has_masks(root):
        return dict.fromkeys((boxes_masks.IMAGES, boxes_masks.MASKS), root / boxes_masks.MASKS)
    with contextlib.suppress(DataError):  # what is wrong with its boxes is said once that task is asked for
        files = boxes_coco.annotation_files(root).values()
        return {file.stem.removeprefix(f"{boxes_coco.INSTANCES}_"): file for file in files}
    return {}


def _with_boxes(root: Path) -> list[str]:
    """Advice for a folder that looks like one of task `detection`; empty for others."""
    files = [path.relative_to(root).as_posix() for path in _box_files(root).values()]
    return [f"{files[0]!r} may have boxes around objects: try `--task detection`"] if files else []


def scan_table(path: Path) -> Splits:
    """Read a CSV, Parquet or JSON Lines file of images; see `tl.tables`. The set is named after the file.

    Raises `DataError` for a table that `tl.tables.read_table` refuses, a label that one split lacks, fewer than two
    labels, a class that can't be split, or another kind of file.
    """
    if not is_table(path):
        raise DataError(f"{path}: is neither a folder nor a table (.csv, .tsv, .parquet or .jsonl)")
    return _of_listing(read_table(path), path.stem, path)


def scan_label_sets(data: Place, task: str = "multilabel") -> Splits:
    """Read a table of images with several labels each, or the one in a folder; see `tl.label_sets`.

    The classes are the labels of the training images. The set is named after the table, or after its folder. Raises
    `DataError` for a table that `read_label_sets` refuses, without training or validation images, with fewer than two
    labels or names of labels that look alike, for a label that no training image has, and for a split without any.
    """
    place = Path(data)
    if str(data) in DATASETS or str(data) == "auto" or not (is_folder(place) or is_file(place)):
        named = DATASETS.get(str(data), DATASETS["hymenoptera"])
        held = "boxes around objects" if named.task == "detection" else "one class for each image"
        what = f"has {held}" if str(data) in (*DATASETS, "auto") else "is no folder and no table"
        raise DataError(f"data={str(data)!r}: {what}; task {task!r} needs a table of images with several labels each")
    given = read_label_sets(place)
    used = {
        split: {label for image in given.images if image.split == split for label in image.labels}
        for split in dict.fromkeys(image.split for image in given.images)
    }
    for split in ("train", "val"):
        if split not in used:
            raise DataError(f"{given.place}: no image is in {split}; its splits are {', '.join(sorted(used))}")
    classes = tuple(sorted(used["train"]))
    check_names(given.root, {split: sorted(names) for split, names in used.items()})
    for split, names in used.items():
        if lost := sorted(names - used["train"]):
            raise DataError(f"{given.place}: the label {lost[0]!r} is only in {split}, so no training image has it")
    if len(classes) < 2:
        has = f"1 label, {classes[0]!r}" if classes else "no label"
        raise DataError(f"{given.place}: its training images have {has}; at least 2 are needed")
    number = {label: index for index, label in enumerate(classes)}
    lists: dict[str, ImageList] = {}
    for split in used:
        some = sorted((image for image in given.images if image.split == split), key=lambda image: image.file)
        lists[split] = ImageList(
            files=tuple(image.file for image in some),
            targets=tuple(tuple(sorted(number[label] for label in image.labels)) for image in some),
        )
    train, val, test = lists["train"], lists["val"], lists.get("test")
    digests = file_digests(given.root, [*train.files, *val.files])
    truths = {file: truth for images in (train, val) for file, truth in zip(images.files, images.targets, strict=True)}
    return Splits(
        name=place.resolve().name if is_folder(place) else given.place.stem,
        root=given.root,
        digest=_digest(given.root, classes, train, val, assigned=True, digests=digests),
        classes=classes,
        task=task,
        train=train,
        val=val,
        test=test,
        origin="; ".join(filter(None, (f"labels and splits are those of {given.place.name!r}", _kept(test)))),
        assigned=True,
        duplicates=find_duplicates(digests, truths, train.files),
    )


def scan_boxes(data: Place, *, download: bool = True) -> Splits:
    """Read a set of images with boxes around objects, in one of the layouts of `tl.boxes_coco` or `tl.boxes_masks`.

    The classes are those that training images have an object of, in the order of the set. A set without validation
    images is split here. Raises `DataError` for what a reader refuses, another kind of data, names of classes that look
    alike, a split without objects, a class that no training image has, and a set that can't be split.
    """
    named, place = DATASETS.get(str(data)), Path(data)
    boxed_sets = ", ".join(name for name, each in DATASETS.items() if each.task == "detection")
    if str(data) == "auto" or (named and named.task != "detection"):
        raise DataError(f"data={str(data)!r}: has one class for each image; sets with boxes are {boxed_sets}")
    if named:
        place = named.find(download)
    elif not is_folder(place) and not is_file(place):
        raise DataError(
            f"there is no such folder or COCO file, and {not_one_of('data', str(data), boxed_sets.split(', '))}"
        )
    if is_folder(place) and boxes_masks.has_masks(place):
        found = boxes_masks.read(place, IMAGE_SUFFIXES)
    elif not is_folder(place) and place.suffix.lower() != ".json":
        raise DataError(f"{place}: is neither a folder nor a COCO file (.json); task 'detection' needs boxes")
    elif is_folder(place) and not boxes_coco.annotation_files(place):
        raise DataError(f"{place}: has no boxes; {_BOXES}")
    else:
        found = boxes_coco.read(place)
    return _of_boxes(found, str(data) if named else "")


def _of_boxes(found: Boxed, name: str) -> Splits:
    """The data set of what a reader found; without `name` it is named after its folder or file."""
    images = sorted(found.images, key=lambda image: image.file)
    digests = file_digests(found.root, [image.file for image in images if image.split != "test"])
    used = {
        split: {box.label for image in images if image.split in some for box in image.objects}
        for split, some in (("train", ("train", None)), ("val", ("val",)), ("test", ("test",)))
    }
    learnt = used["train"]
    check_names(found.root, {split: [found.classes[label] for label in sorted(used[split])] for split in used})
    for split, labels in used.items():
        if lost := sorted(labels - learnt):
            only = found.classes[lost[0]]
            raise DataError(f"{found.place}: the class {only!r} is only in {split}, so no training image has it")
    if not learnt:
        raise DataError(f"{found.place}: no training image has an object; there is nothing to learn")
    classes = tuple(each for number, each in enumerate(found.classes) if number in learnt)
    number = {label: index for index, label in enumerate(sorted(learnt))}

    def listed(some: Iterable[BoxedImage]) -> ImageList:
        chosen = list(some)
        return ImageList(
            files=tuple(image.file for image in chosen),
            objects=tuple(tuple(box._replace(label=number[box.label]) for box in image.objects) for image in chosen),
        )

    train, val, test = (listed(image for image in images if image.split == split) for split in ("train", "val", "test"))
    said = [found.origin, _kept(test)]
    together: tuple[tuple[str, ...], ...] = ()
    if not val.files:
        whole = listed(image for image in images if image.split != "test")
        train, val, together = _split_off(
            found.root,
            whole,
            digests,
            found.place,
            lambda groups, content: divide_boxed(whole.objects, groups, content, classes, whole.files),
        )
        what = "there are no validation images" if len(whole) < len(images) or images[0].split else "there is no split"
        said.append(_split_off_note(what, val, whole, "about a fifth", together))
    contents = dict(zip((*train.files, *val.files), (*train.contents, *val.contents), strict=True))
    own = synthetic.set_name(found.root)
    return Splits(
        name=name or (_name(found.place.resolve(), "") if is_folder(found.place) else found.place.stem),
        root=found.root,
        digest=_digest(found.root, classes, train, val, assigned=True, digests=digests),
        classes=classes,
        task="detection",
        train=train,
        val=val,
        test=test if test.files else None,
        origin="; ".join(filter(None, said)),
        assigned=True,
        together=together,
        fallback=synthetic.SYNTHETIC_NOTE if own else "",
        left_out=found.left_out,
        duplicates=find_duplicates(digests, contents, train.files),
    )


def _of_listing(listing: Listing, name: str, place: Path, tally: Tally | None = None) -> Splits:
    """The data set of a table that was read from `place`; `tally` has what is left out of its folder, where known."""
    rows, root = listing.rows, listing.root
    labels = {split: {row.label for row in rows if row.split == split} for split in {row.split for row in rows}}
    training: Split | None = None if None in labels else "train"
    if training not in labels:
        raise DataError(f"{place}: no image is a training image; its splits are {', '.join(sorted(map(str, labels)))}")
    classes = tuple(sorted(labels[training]))
    check_names(root, {split or ".": sorted(names) for split, names in labels.items()})
    for split, names in labels.items():
        # Test images may lack a class; a class that only they have can't be learnt.
        lost = (names - labels[training]) | (labels[training] - names if split == "val" else set())
        if lost:
            only = min(lost)
            others = [str(each) for each in labels if only in labels[each]]
            raise DataError(
                f"{place}: the label {only!r} is only in {' and '.join(sorted(others))}, not in "
                f"{split if only in labels[training] else 'train'}"
            )
    if len(classes) < 2:
        raise DataError(f"{place}: has 1 class, {classes[0]!r}; at least 2 are needed")
    number = {label: index for index, label in enumerate(classes)}

    def images(split: Split | None) -> ImageList | None:
        if split not in labels:
            return None
        found = [(row.file, number[row.label]) for row in rows if row.split == split]
        return _listed(sorted(found, key=lambda one: (one[1], str(PurePosixPath(one[0]).parent), one[0])))

    train, said = images(training), f"labels{' and splits' if training else ''} are those of {place.name!r}"
    assert train is not None
    what = "it has no split" if training is None else "it has no validation images"
    test = images("test")
    said_all = [said, _kept(test)]
    return _made(root, name, root, classes, train, images("val"), test, said_all, what=what, tally=tally, table=place)


def _made(
    root: Path,
    name: str | None,
    given: Path,
    classes: tuple[str, ...],
    train: ImageList,
    val: ImageList | None,
    test: ImageList | None,
    said: Iterable[str],
    *,
    what: str,
    tally: Tally | None = None,
    table: Path | None = None,
) -> Splits:
    """The data set of these images. Without `val` (`what` says why) a part of `train` becomes validation images.

    `table` has the labels, if the folders haven't.
    """
    assigned = table is not None
    labels = dict(zip(train.files, train.labels, strict=True))
    labels |= dict(zip(val.files, val.labels, strict=True)) if val else {}
    digests = file_digests(root, labels)
    if (name == "hymenoptera" or hymenoptera.resembles(digests)) and digests != hymenoptera.expected():
        raise DataError(hymenoptera.first_difference(root, digests))
    said = list(said)
    together: tuple[tuple[str, ...], ...] = ()
    if val is None:
        whole = train
        train, val, together = _split_off(
            root,
            whole,
            digests,
            table or root,
            lambda groups, content: divide(
                whole.labels, groups, content, classes, seed_for("validation split"), whole.files
            ),
        )
        said.append(_split_off_note(what, val, whole, "a fifth of each class", together))
        assigned = True
    digest = _digest(root, classes, train, val, assigned=assigned, digests=digests)
    return Splits(
        name=name or _name(given, digest),
        root=root,
        digest=digest,
        classes=classes,
        train=train,
        val=val,
        test=test,
        origin="; ".join(filter(None, said)),
        assigned=assigned,
        together=together,
        fallback=synthetic.SYNTHETIC_NOTE if synthetic.set_name(root) else "",
        left_out=tally.left_out if tally else (),
        duplicates=find_duplicates(digests, labels, train.files),
    )


def _split_off(
    root: Path,
    images: ImageList,
    digests: Mapping[str, str],
    place: Path,
    chosen_by: Callable[[Groups, list[str]], npt.NDArray[np.bool_]],
) -> tuple[ImageList, ImageList, tuple[tuple[str, ...], ...]]:
    """Split images into training and validation images, and say which of them look the same.

    `place` is the folder or the file that errors name. `chosen_by` returns which images are validation images, by the
    groups of those that look the same and the digests of files.
    """
    content = [digests[file] for file in images.files]
    groups = groups_of(looks_of(root, {file: digests[file] for file in images.files}), content)
    try:
        chosen = chosen_by(groups, content)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    train, val = (images.subset(np.flatnonzero(side).tolist()) for side in (~chosen, chosen))
    return train, val, tuple(tuple(images.files[index] for index in some) for some in members(groups))


def _split_off_note(what: str, val: ImageList, whole: ImageList, share: str, together: Sequence[object]) -> str:
    """Say that, and how, a set was split; `what` it lacked before."""
    groups = f"{len(together)} group{'s' if len(together) > 1 else ''}"
    kept = f", and images that look the same stay on one side ({groups})" if together else ""
    return f"{what}: {len(val)} of {len(whole)} images, {share}, are for validation, chosen by a fixed seed{kept}"


def _test_images(root: Path, folder: str, classes: tuple[str, ...], tally: Tally) -> tuple[ImageList | None, str]:
    """The images of a test folder, and what to say of it. None if it can't be used: no training needs it.

    Its images are then counted as left out.
    """
    try:
        found = _classes(root, folder, Tally())
    except DataError:
        found, why = {}, "a class in it has no images, or can't be read"
    else:
        strange = sorted(found.keys() - set(classes))
        why = f"its class {strange[0]!r} is no class of the training images" if strange else ""
        why = why if found else "it has no class folders"
    if why:
        with contextlib.suppress(DataError):  # of a folder that can't be read, nobody knows how many images it has
            above = (str(root), str((root / folder).resolve()))
            if lost := list_images(str(root / folder), folder, above, Tally(), IMAGE_SUFFIXES):
                tally.add("image of a test folder that can't be used", lost[0], len(lost))
        return None, f"{f'{folder}/'!r} is left out: {why}"
    test = _listed((file, label) for label, name in enumerate(classes) for file in found.get(name, ()))
    return test, _kept(test)


def _kept(test: ImageList | None) -> str:
    return f"{len(test)} test images are kept apart, and no training looks at them" if test else ""


def _listed(pairs: Iterable[tuple[str, int]]) -> ImageList:
    found = list(pairs)
    return ImageList(files=tuple(file for file, _ in found), labels=tuple(label for _, label in found))


def _inner(root: Path) -> Path:
    """The folder `data/` of a Hugging Face data set, if it has the splits and `root` hasn't; else `root`."""
    inner = root / "data"
    if not is_folder(root) or not is_folder(inner) or "train" in _splits_in(root):
        return root
    return inner if "train" in _splits_in(inner) else root


def _splits_in(root: Path) -> dict[Split, list[str]]:
    """Split → the folders in `root` that have its name, or another usual name of it."""
    found: dict[Split, list[str]] = {}
    for entry in entries(root):
        if (split := split_called(entry.name)) and leads_to_folder(entry):
            found.setdefault(split, []).append(entry.name)
    return found


def _metadata(root: Path) -> list[tuple[Path, Split | None]]:
    """The tables that label the images of a Hugging Face folder, each with its split; none if class folders do.

    Raises `DataError` if the training images have such a table, and the validation images have none.
    """
    if (whole := metadata_of(root)) is not None:
        return [(whole, None)]
    splits = _splits_in(root)
    tables: list[tuple[Path, Split | None]] = []
    tables += [(table, split) for split, some in splits.items() for name in some if (table := metadata_of(root / name))]
    there = {split: table for table, split in tables}
    if "train" not in there:
        return []
    if "val" in splits and "val" not in there:
        labels, val = there["train"].relative_to(root).as_posix(), splits["val"][0]
        raise DataError(
            f"{root}: {labels!r} has the labels of the training images, and {f'{val}/'!r} has no such table"
        )
    return tables


def _labelled(root: Path, tables: list[tuple[Path, Split | None]], name: str) -> Splits:
    """The data set of a Hugging Face folder with tables. Images that no table has are counted."""
    listing, tally = read_metadata(root, tables), Tally()
    used = [*(listing.root / row.file for row in listing.rows), *(table for table, _ in tables)]
    known = {os.path.relpath(file, root).replace(os.sep, "/") for file in used}
    if rest := list_images(str(root), "", (str(root),), tally, IMAGE_SUFFIXES, known):
        tally.add("image that the table of labels lacks", rest[0], len(rest))
    return _of_listing(listing, name, tables[0][0], tally)


def _classes(root: Path, split: str, tally: Tally) -> dict[str, list[str]]:
    """List the images of each class of a split's folder; `split` is empty if the classes are in `root` itself.

    Raises `DataError` if a class of a split has no images. Beside classes without a split it is another folder.
    """
    above = (str(root), str((root / split).resolve()))
    found = {}
    for entry in entries(root / split):
        kind, name = classify(entry, IMAGE_SUFFIXES), f"{split}/{entry.name}" if split else entry.name
        if kind == "image":
            tally.add("image outside a class folder", name)
        elif kind != "folder":
            tally.add(kind, shown(entry, name))
        elif (own := real(entry, above[-1])) in above:
            tally.add("loop of links", name)
        else:
            inside = Tally()
            images = list_images(entry.path, name, (*above, own), inside, IMAGE_SUFFIXES)
            tally.merge(inside)
            if images:
                found[entry.name] = images
            elif not split:
                tally.add("folder without images", f"{name}/")
            else:
                why = "; ".join(map(str, inside.left_out)) or "the folder is empty"
                raise DataError(
                    f"{entry.path}: class {entry.name!r} has no images ({', '.join(IMAGE_SUFFIXES)}): {why}"
                )
    return found


def _name(root: Path, digest: str) -> str:
    """Name a data set by its content, else by its folder; `folder:NAME` if another set has that name."""
    if digest == hymenoptera.DIGEST:
        return "hymenoptera"
    if known := synthetic.set_name(root):
        return known
    return f"folder:{root.name}" if root.name in (*DATASETS, "auto") else root.name
