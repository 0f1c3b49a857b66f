"""Reads data sets in COCO's format: JSON files of images, categories and annotations with boxes, for task `detection`.

| what | its split |
| --- | --- |
| `annotations/instances_train*.json`, `annotations/instances_val*.json` and folders of images | as it is |
| `train/_annotations.coco.json`, `valid/_annotations.coco.json` beside the images (Roboflow) | as it is |
| `train.json`, `val.json` and folders of images | as it is |
| one JSON file, or a folder with one | none |

Images lie beside the JSON file, in a folder of the split's name, or in `images/`. This module doesn't import torch.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tl.boxed import Boxed, BoxedImage
from tl.boxes import Box, fault_of
from tl.cache import is_file, is_folder, read_text
from tl.decoding import size_of
from tl.errors import DataError, UserError
from tl.findings import Tally
from tl.layout import Split, split_called
from tl.listing import entries, leads_to_folder
from tl.tables import is_address, place_of
from tl.text import shortened

LIMIT_BYTES = 1 << 30
"""A larger JSON file is refused; COCO's largest has 448 MB."""
ANNOTATIONS = "annotations"
IMAGES = "images"
_LISTS = ("images", "categories", "annotations")


def annotation_files(folder: Path) -> dict[Split | None, Path]:
    """The JSON files of a folder's splits; the only key is None for one file without a split. Empty if it has none.

    Raises `DataError` if a split has several.
    """
    inner = [(folder / entry.name, split_called(entry.name)) for entry in entries(folder) if leads_to_folder(entry)]
    places: list[list[tuple[Path, Split | None]]] = [
        [(folder / ANNOTATIONS, None)],
        [(place, split) for place, split in inner if split],
        [(folder, None)],
    ]
    for some in places:
        found = [(path, split or _split_in(path)) for place, split in some for path in _json_in(place)]
        found = [each for each in found if each[0].name.startswith("instances")] or found
        if any(split for _, split in found):
            found = [each for each in found if each[1]]
        by: dict[Split | None, list[Path]] = {}
        for path, split in found:
            by.setdefault(split, []).append(path)
        for split, paths in by.items():
            if len(paths) > 1:
                of = f" for {split}" if split else ""
                names = shortened(", ".join(path.relative_to(folder).as_posix() for path in paths))
                raise DataError(
                    f"{folder}: has {len(paths)} JSON files{of} ({names}), and one is needed: move the others "
                    "elsewhere, or give the path of one"
                )
        if by:
            return {split: paths[0] for split, paths in by.items()}
    return {}


def read(place: Path) -> Boxed:
    """Read a COCO file, or those in a folder, and check that images exist and boxes lie in them.

    Edges that are outside of the image are moved to its border. Annotations of crowds (`iscrowd`) are left out and
    counted. Of categories with the same name, only one may have annotations. Raises `DataError`, with the number of
    faults and the first of them, for a file that can't be read as JSON or has no lists of images, categories and
    annotations; for an image that isn't there, is in two splits, or has another size than the file says; for an
    annotation of an unknown image or category; and for an empty box.
    """
    place = place.resolve() if is_folder(place) else place.parent.resolve() / place.name
    files = annotation_files(place) if is_folder(place) else {None: place}
    if not files:
        raise DataError(f"{place}: has no JSON file in {ANNOTATIONS}/, in train/ or beside the images")
    if "train" not in files and None not in files:
        only = " and ".join(str(path.relative_to(place)) for path in files.values())
        raise DataError(
            f"{place}: has no JSON file for train, only {only}; give the path of a file to have its images split"
        )
    parts = {split: _Part(path, split or _split_in(path)) for split, path in files.items()}
    order: dict[str, None] = {}
    for part in sorted(parts.values(), key=lambda part: part.split != "train"):
        order |= dict.fromkeys(part.categories.values())
    numbers = {name: number for number, name in enumerate(order)}
    seen: dict[Path, Split | None] = {}
    found: list[tuple[Path, tuple[Box, ...], Split | None]] = []
    for split, part in parts.items():
        for path, boxes in part.images(numbers):
            if path in seen:
                both = f"{seen[path]} and {split}" if seen[path] != split else "the file twice"
                raise DataError(f"{part.path}: the image {shortened(repr(path.name))} is in {both}")
            seen[path] = split
            found.append((path, boxes, split))
    root = place if is_folder(place) else place.parent
    if not all(path.is_relative_to(root) for path in seen):
        root = Path(os.path.commonpath([path.parent for path in seen]))
    names = sorted(os.path.relpath(path, place if is_folder(place) else place.parent) for path in files.values())
    tally = Tally()
    for part in parts.values():
        for path in part.crowds:
            tally.add("annotation of a crowd", path.relative_to(root).as_posix())
    return Boxed(
        place=place,
        root=root,
        classes=tuple(order),
        images=tuple(
            BoxedImage(file=path.relative_to(root).as_posix(), objects=boxes, split=split)
            for path, boxes, split in found
        ),
        origin=f"boxes{' and splits' if None not in files else ''} are those of {' and '.join(map(repr, names))}",
        left_out=tally.left_out,
    )


class _Part:
    """One JSON file. `split` is the one that its images are probably in, if any; it helps to find their folder."""

    def __init__(self, path: Path, split: Split | None) -> None:
        self.path, self.split = path, split
        data = _parsed(path)
        lists: list[list[dict[str, Any]]] = [_dicts(path, name, data.get(name)) for name in _LISTS]
        self._images, categories, self._annotations = lists
        if not self._images:
            raise DataError(f"{path}: has no images")
        self.crowds: list[Path] = []
        """The image of each annotation of a crowd, once `images` has been called."""
        self.categories: dict[Hashable, str] = {}
        """Id → name, in the order of ids."""
        for number, each in enumerate(categories):
            key, name = _id(path, "categories", number, each), each.get("name")
            if not isinstance(name, str) or not name.strip():
                raise DataError(f"{path}: category {key!r} has the name {shortened(repr(name))}; a text is needed")
            if key in self.categories:
                raise DataError(f"{path}: two categories have the id {key!r}")
            self.categories[key] = name
        self.categories = self._with_names_once(self.categories)

    def _with_names_once(self, categories: dict[Hashable, str]) -> dict[Hashable, str]:
        """Categories in the order of their ids, without those that repeat a name and have no annotation.

        Roboflow writes one for the whole set, which may have the name of a class. Raises `DataError` if two that have
        annotations have one name.
        """
        used = {key for each in self._annotations if _is_id(key := each.get("category_id"))}
        counts = Counter(name for key, name in categories.items() if key in used)
        if twice := next((name for name, count in counts.items() if count > 1), None):
            raise DataError(f"{self.path}: two categories with annotations have the name {twice!r}")
        kept = [(key, name) for key, name in categories.items() if key in used or name not in counts]
        found: dict[Hashable, str] = dict(sorted(kept, key=lambda item: _order(item[0])))
        return found

    def images(self, numbers: dict[str, int]) -> Iterator[tuple[Path, tuple[Box, ...]]]:
        """Yield the path and the objects of each image. `numbers` are the labels of categories' names."""
        names: dict[Hashable, str] = {}
        for number, each in enumerate(self._images):
            key, name = _id(self.path, "images", number, each), each.get("file_name")
            if not isinstance(name, str) or not name or is_address(name):
                shown = shortened(repr(name))
                raise DataError(f"{self.path}: image {key!r} has the file_name {shown}; the path of a file is needed")
            if key in names:
                raise DataError(f"{self.path}: two images have the id {key!r}")
            names[key] = name
        places = self._places(names)
        sizes = self._sizes(places)
        objects: dict[Hashable, list[Box]] = {key: [] for key in names}
        unknown, unclear, strange, faulty = [], [], [], []
        for number, each in enumerate(self._annotations):
            said, image, category = f"annotation {_said(each, number)}", each.get("image_id"), each.get("category_id")
            if not _is_id(image) or image not in names:
                unknown.append(f"{said} has the image_id {shortened(repr(image))}")
                continue
            said += f" of {shortened(repr(names[image]))}"
            crowd = each.get("iscrowd")
            if crowd not in (None, 0, 1):
                unclear.append(f"{said} has the iscrowd {shortened(repr(crowd))}")
            elif crowd:
                self.crowds.append(places[image])
            elif not _is_id(category) or category not in self.categories:
                strange.append(f"{said} has the category_id {shortened(repr(category))}")
            elif isinstance(box := _box(numbers[self.categories[category]], each.get("bbox"), sizes[image]), Box):
                objects[image].append(box)
            else:
                faulty.append(f"{said} has the bbox {shortened(repr(each.get('bbox')))}, {box}")
        total = len(self._annotations)
        self._refuse(unknown, total, "annotations are of no image in 'images'")
        self._refuse(unclear, total, "annotations have an iscrowd that is neither 0 nor 1")
        known = shortened(", ".join(f"{key!r} ({name})" for key, name in self.categories.items()))
        self._refuse(strange, total, f"annotations have an unknown category, known are {known or 'none'}")
        self._refuse(faulty, total, "annotations have no box [left, top, width, height] in their image, in pixels")
        for key in names:
            yield places[key], tuple(objects[key])

    def _refuse(self, faults: Sequence[str], total: int, what: str) -> None:
        if faults:
            raise DataError(f"{self.path}: {len(faults)} of {total} {what}; the first: {faults[0]}")

    def _places(self, names: dict[Hashable, str]) -> dict[Hashable, Path]:
        """The file of each image. Raises `DataError` if one isn't there."""
        folders = _folders(self.path, self.split)
        likely = (folder for folder in folders if any(is_file(place_of(folder, name)) for name in names.values()))
        folder = next(likely, folders[-1])
        places = {key: place_of(folder, name) for key, name in names.items()}
        gone = [names[key] for key, place in places.items() if not is_file(place)]
        if gone:
            raise DataError(
                f"{self.path}: {len(gone)} of {len(names)} images are not there, the first is "
                f"{shortened(repr(gone[0]))}; file names are relative to {folder}"
            )
        return places

    def _sizes(self, places: dict[Hashable, Path]) -> dict[Hashable, tuple[int, int]]:
        """Width and height of each image as it is decoded; those of the JSON file if its header can't be read.

        Raises `DataError` if they differ: boxes would be elsewhere.
        """
        sizes: dict[Hashable, tuple[int, int]] = {}
        other, unknown = [], []
        for each in self._images:
            key = each["id"]
            stated: tuple[Any, Any] = (each.get("width"), each.get("height"))
            name, real = shortened(repr(each["file_name"])), size_of(places[key])
            given = all(_is_number(value) and value >= 1 for value in stated)
            if real and given and real != stated:
                turned = real == stated[::-1]
                why = ", perhaps by an EXIF orientation, which isn't applied: turn its pixels" if turned else ""
                other.append(
                    f"{name} has {real[0]} × {real[1]} pixels, and the file says {stated[0]} × {stated[1]}{why}"
                )
            elif real or given:
                sizes[key] = real or (int(stated[0]), int(stated[1]))
            else:
                unknown.append(f"{name}, which can't be decoded")
        self._refuse(other, len(self._images), "images have another size, so boxes would be elsewhere")
        self._refuse(unknown, len(self._images), "images have no known width and height")
        return sizes


def _box(label: int, given: Any, size: tuple[int, int]) -> Box | str:
    """The box of an annotation in shares of the image, or why there is none."""
    if not isinstance(given, list) or len(given) != 4 or not all(map(_is_number, given)):
        return "which is not four numbers"
    left, top, width, height = given
    if not (width > 0 and height > 0):
        return f"which is {width:g} wide and {height:g} high"
    edges = [min(max(edge / whole, 0.0), 1.0) for edge, whole in zip((left, top), size, strict=True)]
    edges += [min(max(edge / whole, 0.0), 1.0) for edge, whole in zip((left + width, top + height), size, strict=True)]
    box = Box(label, *edges)
    if not (box.left < box.right and box.top < box.bottom):
        return f"outside of {size[0]} × {size[1]} pixels"
    return "which is too thin for single precision" if fault_of(box) else box


def _parsed(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path, LIMIT_BYTES))
    except UserError as error:
        raise DataError(str(error)) from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: can't be read as JSON: {error.msg} in line {error.lineno}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: can't be read as JSON: {error}") from error
    missing = [name for name in _LISTS if not isinstance(data, dict) or name not in data]
    if missing:
        lacks = " and ".join(map(repr, missing))
        raise DataError(f"{path}: has no {lacks}; a COCO file is an object with the lists {', '.join(_LISTS)}")
    found: dict[str, Any] = data
    return found


def _dicts(path: Path, name: str, given: Any) -> list[dict[str, Any]]:
    """A list of a COCO file, whose elements are objects."""
    if not isinstance(given, list):
        raise DataError(f"{path}: {name!r} is {shortened(repr(given))}; it must be a list")
    for number, each in enumerate(given):
        if not isinstance(each, dict):
            raise DataError(f"{path}: {name!r} has {shortened(repr(each))} at place {number + 1}; it must be an object")
    return given


def _id(path: Path, name: str, number: int, given: dict[str, Any]) -> Hashable:
    key = given.get("id")
    if not _is_id(key):
        raise DataError(
            f"{path}: {name!r} has the id {shortened(repr(key))} at place {number + 1}; a number or a text is needed"
        )
    found: Hashable = key
    return found


def _said(annotation: dict[str, Any], number: int) -> str:
    """The id of an annotation, or its place where it has none."""
    return shortened(repr(annotation["id"])) if "id" in annotation else f"at place {number + 1}"


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """True for a finite number that pixels can have; Python's integers have no largest one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15  # NaN isn't


def _order(key: Hashable) -> tuple[bool, int, str]:
    """Numbers in their order before texts."""
    return (False, key, "") if isinstance(key, int) else (True, 0, str(key))


def _json_in(folder: Path) -> list[Path]:
    """The JSON files of a folder, sorted by name; none if there is no such folder."""
    if not is_folder(folder):
        return []
    names = (entry.name for entry in entries(folder) if not entry.name.startswith("."))
    return [folder / name for name in names if name.lower().endswith(".json") and is_file(folder / name)]


def _split_in(path: Path) -> Split | None:
    """The split that a word in a file's name means; None if none does."""
    return next(filter(None, map(split_called, re.split(r"[^A-Za-z]+", path.stem))), None)


def _folders(path: Path, split: Split | None) -> list[Path]:
    """Folders that may have the images of a JSON file, the likeliest first, its own at the end."""
    bases = [path.parent, *([path.parent.parent] if path.parent.name.lower() == ANNOTATIONS else [])]
    bases = [base for base in (*(base / IMAGES for base in bases), *reversed(bases)) if is_folder(base)]
    inner = [
        base / entry.name
        for base in bases
        for entry in (entries(base) if split else ())
        if split_called(entry.name.rstrip("0123456789")) == split and leads_to_folder(entry)
    ]
    return [*inner, *bases]
