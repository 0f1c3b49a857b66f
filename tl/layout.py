"""Finds the parts of a data set in a folder: `train/`, `val/` and `test/` under their usual names, or classes alone.

What can't be understood is refused with advice. Most folders are nearly right: all is one folder too deep, say.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tl.errors import DataError, nearest
from tl.listing import classify, entries, holds_images, leads_to_folder, unreadable
from tl.text import without_hidden

Split = Literal["train", "val", "test"]
LAYOUT = (
    "the layout is train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg without a split, or a CSV or Parquet file of "
    "path and label"
)
_ALSO_CALLED: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "trn", "train_set", "trainset", "training_set", "train_images", "train_data"),
    "val": (
        *("val", "valid", "validation", "val_set", "valset", "validation_set", "val_images", "val_data"),
        *("dev", "eval", "evaluation", "holdout"),
    ),
    "test": ("test", "testing", "tst", "test_set", "testset", "test_images", "test_data"),
}
"""Split → the names that data sets have for it, in lower case, the likeliest first."""
_MOST = 5
"""Largest number of names in a message."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The folders of a data set's splits, by their names in its root."""

    train: str
    val: str | None
    """None if validation images must be split off the training images."""
    test: str | None
    beside: tuple[str, ...] = ()
    """Other folders in the root that have images, which are in no split."""

    @property
    def renamed(self) -> str:
        """Says which folders have other names than `train` and `val`; empty if none has."""
        what = {"training": ("train", self.train), "validation": ("val", self.val)}
        other = {images: name for images, (usual, name) in what.items() if name not in (usual, None)}
        return " and ".join(f"{images} images are those in {f'{name}/'!r}" for images, name in other.items())


def split_called(name: str) -> Split | None:
    """The split that a folder's name, or a value in a table's column, usually means; None if it means none."""
    plain = _plain(name)
    return next((split for split, names in _ALSO_CALLED.items() if plain in names), None)


def find_parts(root: Path, endings: tuple[str, ...]) -> Parts | None:
    """Find the folders of the splits in a folder; None if it has class folders without a split.

    A folder called `train` whose images are in no class folders is a class, if there are other classes beside it.
    `endings` are those of images. Raises `DataError` with advice for what is neither or may be both, if two folders
    have names of the same split, or if a split has splits for classes.
    """
    try:
        for split in ("train", "val"):
            if os.path.lexists(root / split) and not (root / split).is_dir():
                what = "a link that leads to no folder" if (root / split).is_symlink() else "no folder"
                raise DataError(f"{root}: has no folder {split}/; {split!r} is {what}")
        folders = [entry.name for entry in entries(root) if not entry.name.startswith(".") and leads_to_folder(entry)]
    except OSError as error:
        raise unreadable(root, error) from error
    beside = _beside_splits(root, endings)
    called = [name for name in folders if split_called(name) == "train"]
    if not called or (beside and all(_is_flat(root / name, endings) for name in called)):
        _check_classes(root, endings)
        return None
    train, val, test = (_folder_of(split, root, folders) for split in ("train", "val", "test"))
    assert train is not None
    parts = [part for part in (train, val) if part]
    for part in parts:
        _check_nesting(root, part, endings)
    if beside and not any(_inner_with_images(root / name, endings) for name in (val, test) if name):
        inner = _inner_with_images(root / train, endings)
        if inner:
            raise DataError(
                f"{root}: {f'{train}/'!r} may be a split, with the classes {_named(inner)}, or a class beside "
                f"{_named(beside)}: move {_named(beside)} elsewhere if {train!r} is a split, rename {train!r} if it is "
                f"a class ({LAYOUT})"
            )
    return Parts(train=train, val=val, test=test, beside=tuple(beside))


def called_like_splits(classes: Iterable[str]) -> str:
    """Say which classes of a set without a split have the name of one; empty if none has."""
    names = [repr(name) for name in classes if split_called(name)]
    if not names:
        return ""
    if len(names) == 1:
        return f"{names[0]} is a class, not a split"
    return f"{', '.join(names[:-1])} and {names[-1]} are classes, not splits"


def _folder_of(split: Split, root: Path, folders: list[str]) -> str | None:
    """The only folder with a usual name of a split; None if there is none.

    Raises `DataError` for two of them that have files, since one would be left out. Links to one folder are one.
    """
    order = _ALSO_CALLED[split]
    there = sorted(
        (name for name in folders if _plain(name) in order), key=lambda name: (order.index(_plain(name)), name)
    )
    filled = [name for name in there if any(files for _, _, files in os.walk(root / name))]
    if len({os.path.realpath(root / name) for name in filled}) > 1:
        images = {"train": "training", "val": "validation", "test": "test"}[split]
        raise DataError(
            f"{root}: there is {_named(filled)}, and only one folder can have the {images} images: call that one "
            f"{split}/, and move the rest into it or elsewhere ({LAYOUT})"
        )
    return next(iter(filled or there), None)


def _beside_splits(root: Path, endings: tuple[str, ...]) -> list[str]:
    """The folders of `root` that have images and no name of a split, nor one with a number, such as `test1`."""
    names = [name for name in _folders(root, endings) if split_called(name.rstrip("0123456789")) is None]
    return [name for name in names if _has_images(root / name, endings)]


def _is_flat(folder: Path, endings: tuple[str, ...]) -> bool:
    """True if a folder has images, and none of its subfolders has."""
    return holds_images(str(folder), endings) and not _inner_with_images(folder, endings)


def _inner_with_images(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """The subfolders of a folder that have images."""
    return [name for name in _folders(folder, endings) if _has_images(folder / name, endings)]


def _has_images(folder: Path, endings: tuple[str, ...]) -> bool:
    """True if a folder has images, or one of its subfolders has."""
    return any(holds_images(place, endings) for place, _, _ in os.walk(folder))


def _check_classes(root: Path, endings: tuple[str, ...]) -> None:
    """Raise `DataError` with advice if the folders of `root`, which has no training part, can't be its classes."""
    folders = _folders(root, endings)
    inside = [name for name in folders if _has_both(root / name)]
    if inside and all(holds_images(str(root / name / "train"), endings) for name in inside):
        raise DataError(
            f"{root}: has no folder train/; {_named(inside)} has both, with images in them: classes belong into splits "
            f"({LAYOUT})"
        )
    if inside:
        raise DataError(f"{root}: has no folder train/; {_named(inside)} has both: give that folder")
    if split_called(root.name) and _has_both(root.parent):
        raise DataError(f"{root}: has no folder train/; {root.parent} has both: give that folder")
    # A folder called `test` may be a class. One that holds no images but folders is a split.
    splits = [name for name in folders if split_called(name) and not holds_images(str(root / name), endings)]
    splits = [name for name in splits if _folders(root / name, endings)]
    flat = [name for name in folders if split_called(name) == "train"]
    if splits and flat:
        raise DataError(
            f"{root}: {_named(splits)} has class folders, and {_named(flat)} has images in none: rename them if they "
            f"are classes ({LAYOUT})"
        )
    if splits:
        raise DataError(f"{root}: has no folder train/ beside {_named(splits)} ({LAYOUT})")
    if not folders:
        raise DataError(f"{root}: has no folders of classes{_beside(root, endings)}; {LAYOUT}")


def _beside(root: Path, endings: tuple[str, ...]) -> str:
    """What a folder without subfolders has, in words."""
    names = [entry.name for entry in entries(root) if not leads_to_folder(entry)]
    images = sum(name.lower().endswith(endings) for name in names)
    tables = [name for name in names if name.lower().endswith((".csv", ".tsv", ".parquet", ".jsonl"))]
    if tables:
        return f"; is {tables[0]!r} a table of its images? Give that file"
    return f", only {images} image{'s' if images > 1 else ''} of unknown class" if images else ""


def check_names(root: Path, classes: Mapping[str, Collection[str]]) -> None:
    """Raise `DataError` if two classes' names look alike everywhere, since they differ in what nobody sees.

    `classes` are the names of the classes in each split.
    """
    seen: dict[str, tuple[str, str]] = {}
    for split, names in classes.items():
        for name in names:
            before, first = seen.setdefault(unicodedata.normalize("NFC", without_hidden(name)), (split, name))
            if first != name:
                hidden = without_hidden(first) != first or without_hidden(name) != name
                what = "hidden characters" if hidden else "Unicode normalisation"
                raise DataError(
                    f"{root}: the classes {first!a} in {before}/ and {name!a} in {split}/ look alike, and "
                    f"differ only in {what}; rename one of them"
                )


def alike(classes: Collection[str]) -> list[str]:
    """Say in a line each which classes differ only in case, or in forms of the same letters. They may be meant."""
    first: dict[str, str] = {}
    return [
        f"the classes {other!a} and {name!a} differ only in the case or the form of their letters"
        for name in classes
        if (other := first.setdefault(_folded(name), name)) != name
    ]


def difference(root: Path, classes: Mapping[str, Collection[str]]) -> str:
    """Say which class is in one of two splits alone, and what the other split has in its place.

    `classes` are the names of the classes in both splits, by the splits' names.
    """
    (first, second), (train, val) = classes, map(set, classes.values())
    only = min(train ^ val)
    where, other, others = (first, second, val - train) if only in train else (second, first, train - val)
    there = root / other / only
    if there.is_symlink() and not there.exists():
        return f"{only!r} is only in {where}/, and {f'{other}/{only}'!r} is a broken link"
    folded = {_folded(name): name for name in others}
    close = folded.get(_folded(only)) or next(iter(nearest(only, others)), "")
    if not close:
        return f"{only!r} is only in {where}/"
    # Letters of another alphabet look the same, and so do those of another width.
    alike = only.isascii() != close.isascii() or _folded(only) == _folded(close)
    shown = ascii if alike else repr
    return f"{shown(only)} is only in {where}/, and {shown(close)} only in {other}/"


def too_deep(root: Path, classes: Mapping[str, Collection[str]], endings: tuple[str, ...]) -> Iterator[str]:
    """Yield advice for each split whose only class is a folder of folders: these are probably the classes."""
    for split, (name, *others) in ((split, names) for split, names in classes.items() if names):
        folder = root / split / name
        inner = [] if others or holds_images(str(folder), endings) else _folders(folder, endings)
        if len(inner) > 1:
            place = folder.relative_to(root).as_posix()
            what = "give that folder" if folder.parent == root else f"move them up into {split}/"
            yield f"{f'{place}/'!r} holds {_named(inner)}: if these are the classes, {what}"


def _check_nesting(root: Path, split: str, endings: tuple[str, ...]) -> None:
    """Raise `DataError` if a split holds folders of both splits, which would be classes named `train` and `val`.

    One of these names alone may be a class, such as `test`. Both may be classes beside others, unless they have a
    folder in common, which is then a class.
    """
    folders = _folders(root / split, endings)
    names = {"train": _ALSO_CALLED["train"], "val": (*_ALSO_CALLED["val"], *_ALSO_CALLED["test"])}
    of = {each: [name for name in folders if _plain(name) in called] for each, called in names.items()}
    if not all(of.values()):
        return
    splits = [*of["train"], *of["val"]]
    inner = [set().union(*(_folders(root / split / name, endings) for name in some)) for some in of.values()]
    if len(splits) < len(folders) and not inner[0] & inner[1]:
        return
    advice = f"give {root / split}, if that is the data set" if any(inner) else LAYOUT
    raise DataError(
        f"{root}: {split}/ has {_named(splits)} where its classes should be: {advice}; if they are classes, rename them"
    )


def _folders(folder: Path, endings: tuple[str, ...]) -> list[str]:
    return [entry.name for entry in entries(folder) if classify(entry, endings) == "folder"]


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _has_both(folder: Path) -> bool:
    try:
        return all((folder / split).is_dir() for split in ("train", "val"))
    except OSError:
        return False


def _named(folders: list[str]) -> str:
    """Quote the first names, so that control characters in them are visible."""
    rest = [f"{len(folders) - _MOST} more"] if len(folders) > _MOST else []
    return ", ".join([*(repr(f"{name}/") for name in folders[:_MOST]), *rest])
