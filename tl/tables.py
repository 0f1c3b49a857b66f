"""Reads tables of images: CSV, Parquet or JSON Lines files. Each row has a path, a label and, if there is one, a split.

Tables with several labels for an image are read by `tl.label_sets`, with the parts of this module.

Paths are relative to the table's folder. This module doesn't import torch.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from tl.cache import is_file, read_text
from tl.errors import DataError, UserError
from tl.layout import Split, split_called
from tl.text import shortened

ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl")
COLUMNS = {
    "path": (
        *("path", "file_name", "filename", "file", "filepath", "file_path", "image_path", "image_file", "image"),
        *("img_path", "img"),
    ),
    "label": ("label", "class", "class_name", "label_name", "target", "category"),
    "split": ("split", "subset", "partition"),
}
"""What a row has → the names of its column in lower case, the likeliest first."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names of the tables in folders of Hugging Face's `imagefolder`."""
EXAMPLE = '{"path": "0.jpg", "label": "bee"}'
"""A line of a JSON Lines file, for messages."""
LIMIT_BYTES = 1 << 28
"""A larger CSV or JSON Lines file is refused. It would have millions of rows."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a table."""

    file: str
    """Path relative to the root of the table that it is in, with forward slashes."""
    label: str
    split: Split | None
    """None if the table has no splits."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a table."""

    root: Path
    """The table's folder, or the folder that has all images if one lies outside of it."""
    rows: tuple[Row, ...]


def is_table(path: Path) -> bool:
    """Return True if a file's ending is that of a table."""
    return path.name.lower().endswith(ENDINGS)


def read_table(path: Path) -> Listing:
    """Read a table and check that its images exist.

    Raises `DataError` if it can't be read, has no rows or no column of paths or of labels, or if a row lacks a value,
    has an unknown split, an image that isn't there, or one that an earlier row has. The message counts such rows, and
    names the first.
    """
    return _checked([(path, None)], path.parent.resolve())


def metadata_of(folder: Path) -> Path | None:
    """The table of labels in a folder of Hugging Face's `imagefolder`; None if it has none, or one without labels."""
    path = metadata_in(folder)
    return path if path and not _lacking(_columns(path)[0]) else None


def without_labels(folder: Path) -> str:
    """Says what the table in a folder of Hugging Face's `imagefolder` lacks; empty if it lacks nothing, or if there is
    no table."""
    path = metadata_in(folder)
    header = _columns(path)[0] if path else []
    return f"{path.name!r} {_lacks(header)}" if path and _lacking(header) else ""


def metadata_in(folder: Path) -> Path | None:
    """The table of a folder of Hugging Face's `imagefolder`; None if it has none."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def read_metadata(root: Path, tables: Iterable[tuple[Path, Split | None]]) -> Listing:
    """Read the tables of a Hugging Face folder, each with the split that it is of, or None for one that covers all.

    In a table that covers all and has no column of splits, an image is of the split whose folder it is in. Raises
    `DataError` as `read_table` does.
    """
    return _checked(tables, root)


def _checked(tables: Iterable[tuple[Path, Split | None]], root: Path) -> Listing:
    found = [row for path, split in tables for row in _rows(path, split)]
    if not all(place.is_relative_to(root) for place, _, _ in found):
        try:
            root = Path(os.path.commonpath([place.parent for place, _, _ in found]))
        except ValueError as error:
            raise DataError(f"{root}: the images are on several drives; they must have a folder in common") from error
    rows = (Row(file=place.relative_to(root).as_posix(), label=label, split=split) for place, label, split in found)
    return Listing(root=root, rows=tuple(rows))


def _rows(path: Path, of: Split | None) -> list[tuple[Path, str, Split | None]]:
    """The absolute path, the label and the split of each image of one table."""
    header, lines = _columns(path)
    file, label, split = (_column(what, header) for what in COLUMNS)
    if lines is None or file is None or label is None:
        several = "; several labels for each image are for task 'multilabel'" if "labels" in header else ""
        raise DataError(f"{path}: {_lacks(header)}; path and label are needed, split is optional{several}")
    folder, texts = path.parent.resolve(), {what: lines[name] for what, name in (("file", file), ("label", label))}
    count = len(texts["file"])
    if not count:
        raise DataError(f"{path}: has no rows; each row is an image")
    for what, name in (("file", file), ("label", label)):
        refuse(path, [number for number, text in enumerate(texts[what]) if not text], f"no {name!r}", count)
    splits: Sequence[Split | None] = [of] * count
    if split is not None:
        splits = splits_of(path, split, lines[split])
    elif of is None and path.name in METADATA:
        inner = [split_called(PurePosixPath(text).parts[0]) if "/" in text else None for text in texts["file"]]
        splits = inner if "train" in inner and None not in inner else splits
    places = places_of(path, folder, texts["file"])
    refuse_repeated(path, places, texts["file"], texts["label"], splits)
    return list(zip(places, texts["label"], splits, strict=True))


def splits_of(path: Path, name: str, texts: Sequence[str]) -> list[Split | None]:
    """The split that each text of a table's column `name` means. Raises `DataError` for one that means none."""
    splits, count = [split_called(text) for text in texts], len(texts)
    empty = [number for number, text in enumerate(texts) if not text]
    refuse(path, empty, f"no {name!r}, and others have one; known are train, val and test", count)
    unknown = [number for number, one in enumerate(splits) if one is None]
    if unknown:
        wrong = shortened(repr(texts[unknown[0]]))
        refuse(path, unknown, f"an unknown {name!r}, {_such(unknown)}{wrong}; known are train, val and test", count)
    return splits


def places_of(path: Path, folder: Path, texts: Sequence[str]) -> list[Path]:
    """The files that the paths in a table mean, relative to its folder. Raises `DataError` if one isn't there."""
    elsewhere = [number for number, text in enumerate(texts) if is_address(text)]
    if elsewhere:
        first = shortened(repr(texts[elsewhere[0]]))
        what = f"an address, {_such(elsewhere)}{first}: addresses aren't downloaded, images must be files"
        refuse(path, elsewhere, what, len(texts))
    places = [place_of(folder, text) for text in texts]
    gone = [number for number, place in enumerate(places) if not is_file(place)]
    if gone:
        first = shortened(repr(texts[gone[0]]))
        if os.path.isdir(places[gone[0]]):  # noqa: PTH112 (raises nothing)
            raise DataError(f"{path}: {first} in row {gone[0] + 1} is a folder; each row is one image")
        raise DataError(
            f"{path}: {len(gone)} of {len(texts)} images are not there, the first is {first} in row {gone[0] + 1}; "
            f"paths are relative to {folder}"
        )
    return places


def is_address(text: str) -> bool:
    """True for `https://…` and the like, but not for `file://…`; one letter before the colon is a drive."""
    return re.match(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+://", text, re.IGNORECASE) is not None


def place_of(folder: Path, text: str) -> Path:
    """The file that a table in `folder` means. Backslashes are those of Windows where no file has them in its name."""
    if text.lower().startswith("file://"):
        text = unquote(text[len("file://") :].removeprefix("localhost"))
    place = Path(os.path.normpath(folder / text))
    if "\\" in text and not os.path.lexists(place):
        return Path(os.path.normpath(folder / text.replace("\\", "/")))
    return place


def refuse_repeated(
    path: Path, places: list[Path], texts: Sequence[str], labels: Sequence[object], splits: Sequence[Split | None]
) -> None:
    """Raise `DataError` if an image has more than one row. `texts` are its paths as the table has them."""
    first: dict[Path, int] = {}
    again = [(number, first[place]) for number, place in enumerate(places) if first.setdefault(place, number) != number]
    if not again:
        return
    number, before = again[0]
    other = f", once as {labels[before]!r} and once as {labels[number]!r}" if labels[before] != labels[number] else ""
    if splits[before] != splits[number]:
        other += f", once in {splits[before]} and once in {splits[number]}"
    counts = Counter(places)
    several = sum(count > 1 for count in counts.values())
    raise DataError(
        f"{path}: {several} image{'s have' if several > 1 else ' has'} more than one row, the first is "
        f"{shortened(repr(texts[before]))} in rows {before + 1} and {number + 1}{other}"
    )


def refuse(path: Path, rows: list[int], what: str, count: int) -> None:
    """Raise `DataError` if rows have that, of `count`; the message counts them and names the first."""
    if rows:
        have, first = ("have", "the first is") if len(rows) > 1 else ("has", "it is")
        raise DataError(f"{path}: {len(rows)} of {count} rows {have} {what}; {first} row {rows[0] + 1}")


def _such(rows: Sequence[int]) -> str:
    """What stands before an example of such rows; an only one is none."""
    return "such as " if len(rows) > 1 else ""


def _lacking(header: Sequence[str]) -> list[str]:
    return [what for what in ("path", "label") if _column(what, header) is None]


def _lacks(header: Sequence[str]) -> str:
    """Says which columns a header lacks, and which it has."""
    missing = " and no column ".join(f"{what} (or {', '.join(COLUMNS[what][1:4])}, …)" for what in _lacking(header))
    return f"has no column {missing}; its columns are {shortened(', '.join(map(repr, header)))}"


def _column(what: str, header: Sequence[str]) -> str | None:
    """The name of a column in a table's header; None if it has none of the usual names."""
    return called(COLUMNS[what], header)


def called(names: Sequence[str], header: Sequence[str]) -> str | None:
    """The first of these names, in lower case, that a table's header has, as it is there; None if it has none."""
    plain = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in reversed(header)}
    return next((plain[name] for name in names if name in plain), None)


Wanted = Callable[[Sequence[str]], list[str]]
"""A table's header → the names of the columns to read; none if it lacks one."""


def _usual(header: Sequence[str]) -> list[str]:
    return [] if _lacking(header) else [name for what in COLUMNS if (name := _column(what, header)) is not None]


def _columns(path: Path) -> tuple[list[str], dict[str, list[str]] | None]:
    return columns_of(path, _usual)


def columns_of(path: Path, wanted: Wanted, mark: str = "") -> tuple[list[str], dict[str, list[str]] | None]:
    """The names of all columns of a table, and the texts of those that are wanted.

    None in place of the texts if one is missing. In a list of Parquet or JSON Lines each text ends with `mark`; without
    a mark lists are refused. Raises `DataError` for a table that can't be read.
    """
    if path.suffix.lower() == ".parquet":
        return _of_parquet(path, wanted, mark)
    return _of_json_lines(path, wanted, mark) if path.suffix.lower() == ".jsonl" else _of_csv(path, wanted)


def _of_csv(path: Path, wanted: Wanted) -> tuple[list[str], dict[str, list[str]] | None]:
    text = _text_of(path)
    try:
        options: dict[str, Any] = {"skipinitialspace": True}  # quotes may follow a space
        headers = {
            mark: next(csv.reader(io.StringIO(text, newline=""), delimiter=mark, **options), []) for mark in ",;\t"
        }
        if not any(headers[","]):
            raise DataError(f"{path}: is empty; its first line has the names of columns, such as path,label")
        known = (mark for mark, names in headers.items() if wanted(names))
        mark = next(known, None) or max(headers, key=lambda each: len(headers[each]))
        header = headers[mark]
        chosen = {name: header.index(name) for name in wanted(header)}
        if not chosen:
            return header, None
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, **options)
        next(reader)
        texts: dict[str, list[str]] = {name: [] for name in chosen}
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{path}: line {reader.line_num} has {len(row)} values, and the first line {len(header)}"
                )
            for name, place in chosen.items():
                texts[name].append(row[place].strip())
    except csv.Error as error:
        raise DataError(f"{path}: can't be read as CSV: {error}") from error
    return header, texts


def _of_json_lines(path: Path, wanted: Wanted, mark: str) -> tuple[list[str], dict[str, list[str]] | None]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} can't be read as JSON; each line is an image's object") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number} has {shortened(line)}, not an object such as {EXAMPLE}")
        rows.append(row)
    header = list(dict.fromkeys(name for row in rows for name in row))
    if not header:
        raise DataError(f"{path}: is empty; each line is an image's object, such as {EXAMPLE}")
    chosen = wanted(header)
    if not chosen:
        return header, None
    for name in () if mark else chosen:
        nested = [number for number, row in enumerate(rows) if isinstance(row.get(name), dict | list)]
        refuse(path, nested, f"no text but a list or an object for {name!r}", len(rows))
    return header, {name: _texts(path, name, [row.get(name) for row in rows], mark) for name in chosen}


def _text_of(path: Path) -> str:
    try:
        return read_text(path, LIMIT_BYTES)
    except UserError as error:
        raise DataError(str(error)) from error


def _of_parquet(path: Path, wanted: Wanted, mark: str) -> tuple[list[str], dict[str, list[str]] | None]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            header = list(schema.names)
            chosen = wanted(header)
            if not chosen:
                return header, None
            for name in chosen:
                kind = schema.field(name).type
                is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
                if pyarrow.types.is_nested(kind) and not (mark and is_list):
                    raise DataError(
                        f"{path}: the column {name!r} has {shortened(str(kind))}, not text; images must be files, and "
                        "the table has their paths"
                    )
            table = file.read(columns=chosen)
            return header, {name: _texts(path, name, table[name].to_pylist(), mark) for name in chosen}
    except (pyarrow.ArrowException, OSError) as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{path}: can't be read as Parquet: {shortened(why)}") from error


def _texts(path: Path, name: str, values: Sequence[Any], mark: str) -> list[str]:
    """The values of a column as texts; in a list each ends with `mark`. Raises `DataError` for what is no text."""
    parts = [value if isinstance(value, list) else [value] for value in values]
    others = [number for number, some in enumerate(parts) if any(isinstance(each, dict | list) for each in some)]
    refuse(path, others, f"a list or an object for {name!r}, not a text or a list of texts", len(values))
    texts = [[_text(each) for each in some] for some in parts]
    marked = [n for n, value in enumerate(values) if isinstance(value, list) and any(mark in each for each in texts[n])]
    refuse(path, marked, f"a list with {mark!r} in one of its texts for {name!r}", len(values))
    return [
        "".join(f"{each}{mark}" for each in some) if isinstance(value, list) else some[0]
        for value, some in zip(values, texts, strict=True)
    ]


def _text(value: Any) -> str:
    """A value of a Parquet or JSON file as text; empty for a missing one."""
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if whole else value).strip()
