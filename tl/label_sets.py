"""Reads tables of images with several labels each, for task `multilabel`: CSV, Parquet or JSON Lines files.

A row has a path, a split, and its labels: in a column `labels`, separated by `;` or `|` or, in Parquet and JSON Lines,
as a list; or in a column of 0 and 1 for each label. An image may have no label. Paths are relative to the table's
folder. This module doesn't import torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tl.errors import DataError
from tl.layout import Split
from tl.tables import COLUMNS, called, columns_of, is_table, metadata_in, places_of, refuse, refuse_repeated, splits_of
from tl.text import shortened

LABELS = ("labels", "tags", "label_names", "class_names", "classes", "categories", "targets")
"""Names of the column that has all labels of an image, in lower case, the likeliest first."""
SEPARATORS = ";|"
"""What separates the labels of an image: the first of these that some row has."""
_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")
_FORMS = (
    "needed are a path, a split, and either a column labels, such as 'ant;bee', or a column of 0 and 1 for each label"
)


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """One image of a table."""

    file: str
    """Path relative to the root of the table, with forward slashes."""
    labels: frozenset[str]
    split: Split


@dataclass(frozen=True, kw_only=True)
class LabelSets:
    """The images of a table."""

    place: Path
    """The table."""
    root: Path
    """The table's folder, or the folder that has all images if one lies outside of it."""
    images: tuple[LabelledImage, ...]


def table_in(place: Path) -> Path:
    """The table itself, or the only one in a folder. Raises `DataError` if there is none, or if there are several."""
    if not place.is_dir():
        if not is_table(place):
            raise DataError(f"{place}: is neither a folder nor a table (.csv, .tsv, .parquet or .jsonl)")
        return place
    if usual := metadata_in(place):
        return usual
    found = sorted(each for each in place.iterdir() if is_table(each) and each.is_file())
    if len(found) != 1:
        which = f"{len(found)} tables ({', '.join(each.name for each in found[:3])})" if found else "no table"
        raise DataError(f"{place}: has {which}; task 'multilabel' needs one with the labels of all images, or its path")
    return found[0]


def read_label_sets(place: Path) -> LabelSets:
    """Read a table, or the one in a folder, and check that its images exist.

    Raises `DataError` if it can't be read, has no rows, lacks a column, has a column of labels with something else than
    0 and 1 in it or labels that only commas separate, or if a row has an unknown split, or an image that isn't there or
    that an earlier row has.
    """
    path = table_in(place)
    header, lines = columns_of(path, _wanted, SEPARATORS[0])
    file, split = (called(COLUMNS[what], header) for what in ("path", "split"))
    if lines is None or file is None or split is None:
        shown = shortened(", ".join(map(repr, header)))
        raise DataError(f"{path}: has the columns {shown}; {_FORMS}")
    texts = lines[file]
    if not texts:
        raise DataError(f"{path}: has no rows; each row is an image")
    refuse(path, [number for number, text in enumerate(texts) if not text], f"no {file!r}", len(texts))
    labels = _labels(path, lines, but=(file, split))
    splits = splits_of(path, split, lines[split])
    root = path.parent.resolve()
    places = places_of(path, root, texts)
    shown_labels = [";".join(sorted(some)) for some in labels]
    refuse_repeated(path, places, texts, shown_labels, splits)
    if not all(each.is_relative_to(root) for each in places):
        root = Path(os.path.commonpath([each.parent for each in places]))
    images = (
        LabelledImage(file=each.relative_to(root).as_posix(), labels=some, split=one)
        for each, some, one in zip(places, labels, splits, strict=True)
        if one is not None  # `splits_of` has refused those
    )
    return LabelSets(place=path, root=root, images=tuple(images))


def _wanted(header: Sequence[str]) -> list[str]:
    """The columns to read of a table with this header; none if it lacks one."""
    file, split = (called(COLUMNS[what], header) for what in ("path", "split"))
    if file is None or split is None:
        return []
    together = called(LABELS, header)
    each = [together] if together else [name for name in header if name not in (file, split)]
    return [file, split, *each] if each else []


def _labels(path: Path, lines: dict[str, list[str]], but: Sequence[str]) -> list[frozenset[str]]:
    """The labels of each row."""
    names = [name for name in lines if name not in but]
    if together := called(LABELS, names):
        texts = lines[together]
        separator = next((each for each in SEPARATORS if any(each in text for text in texts)), "")
        if not separator and (commas := [number for number, text in enumerate(texts) if "," in text]):
            first = shortened(repr(texts[commas[0]]))
            raise DataError(
                f"{path}: the column {together!r} has {first} in row {commas[0] + 1}, and labels are separated by ';' "
                "or '|'; end a label with ';' if it has a comma in it"
            )
        parts = (text.split(separator or SEPARATORS[0]) for text in texts)
        return [frozenset(filter(None, map(str.strip, some))) for some in parts]
    rows = len(lines[names[0]])
    for name in names:
        for number, text in enumerate(lines[name]):
            if text.lower() not in (*_YES, *_NO):
                raise DataError(
                    f"{path}: the column {name!r} has {shortened(repr(text))} in row {number + 1}, and the column of a "
                    "label has 0 or 1; leave the column out, or put all labels into one called 'labels'"
                )
    return [frozenset(name for name in names if lines[name][row].lower() in _YES) for row in range(rows)]
