"""Checks that a folder has `train/` and `val/` with classes in them, and says what to do if not.

Most folders are nearly right: a name is another, or all is one folder too deep.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from tl.errors import DataError, nearest
from tl.listing import classify, entries, holds_images, unreadable
from tl.text import without_hidden

LAYOUT = "the layout is train/CLASS/*.jpg and val/CLASS/*.jpg"
_ALSO_CALLED = {
    "train": ("train", "training", "trn", "train_set", "trainset", "training_set", "train_images", "train_data"),
    "val": (
        *("val", "valid", "validation", "val_set", "valset", "validation_set", "val_images", "val_data"),
        *("dev", "eval", "evaluation", "holdout", "test", "testing", "tst", "test_set", "testset"),
    ),
}
"""Split → other names that data sets have for it, in lower case, the likeliest first."""
_MOST = 5
"""Largest number of names in a message."""


def check_layout(root: Path, endings: tuple[str, ...]) -> None:
    """Raise `DataError` with advice if a folder lacks `train/` or `val/`, or if one of them has splits for classes.

    `endings` are those of images.
    """
    try:
        missing = [split for split in _ALSO_CALLED if not (root / split).is_dir()]
    except OSError as error:
        raise unreadable(root, error) from error
    if missing:
        named = " and no folder ".join(f"{split}/" for split in missing)
        raise DataError(f"{root}: has no folder {named}; {_advice(root, missing, endings)}")
    for split in _ALSO_CALLED:
        _check_nesting(root, split, endings)


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
    """Say which class is in one split alone, and what the other split has in its place."""
    train, val = (set(classes[split]) for split in _ALSO_CALLED)
    only = min(train ^ val)
    where, other, others = ("train", "val", val - train) if only in train else ("val", "train", train - val)
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
            yield f"{f'{split}/{name}/'!r} holds {_named(inner)}: if these are the classes, move them up into {split}/"


def _check_nesting(root: Path, split: str, endings: tuple[str, ...]) -> None:
    """Raise `DataError` if a split holds folders of both splits, which would be classes named `train` and `val`.

    One of these names alone may be a class, such as `test`. Both may be classes beside others, unless they have a
    folder in common, which is then a class.
    """
    folders = _folders(root / split, endings)
    of = {each: [name for name in folders if _plain(name) in names] for each, names in _ALSO_CALLED.items()}
    if not all(of.values()):
        return
    splits = [*of["train"], *of["val"]]
    inner = [set().union(*(_folders(root / split / name, endings) for name in names)) for names in of.values()]
    if len(splits) < len(folders) and not inner[0] & inner[1]:
        return
    advice = f"give {root / split}, if that is the data set" if any(inner) else LAYOUT
    raise DataError(
        f"{root}: {split}/ has {_named(splits)} where its classes should be: {advice}; if they are classes, rename them"
    )


def _folders(folder: Path, endings: tuple[str, ...]) -> list[str]:
    return [entry.name for entry in entries(folder) if classify(entry, endings) == "folder"]


def _advice(root: Path, missing: list[str], endings: tuple[str, ...]) -> str:
    """Say what to do, as far as the folder's content tells."""
    for split in missing:
        if (root / split).is_symlink():
            return f"{split!r} is a link that leads to no folder"
    folders = _folders(root, endings)
    advice = []
    for split in missing:
        there = [name for also in _ALSO_CALLED[split] for name in folders if _plain(name) == also]
        if there:
            what = f"{_named(there)}: rename it" if len(there) == 1 else f"{_named(there)}: rename one of them"
            advice.append(f"there is {what} to {split}/")
    if advice:
        return f"{'; '.join(advice)} ({LAYOUT})"
    inside = [name for name in folders if _has_both(root / name)]
    if inside and all(holds_images(str(root / name / "train"), endings) for name in inside):
        return f"{_named(inside)} has both, with images in them: classes belong into splits ({LAYOUT})"
    if inside:
        return f"{_named(inside)} has both: give that folder"
    if _has_both(root.parent):
        return f"{root.parent} has both: give that folder"
    classes = [name for name in folders if holds_images(str(root / name), endings)]
    if len(missing) == 2 and classes:
        return (
            f"{_named(classes)} with images in it looks like a class: move such folders into train/, and some images "
            f"of each class into folders of the same names in val/ ({LAYOUT})"
        )
    return LAYOUT


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _has_both(folder: Path) -> bool:
    try:
        return all((folder / split).is_dir() for split in _ALSO_CALLED)
    except OSError:
        return False


def _named(folders: list[str]) -> str:
    """Quote the first names, so that control characters in them are visible."""
    rest = [f"{len(folders) - _MOST} more"] if len(folders) > _MOST else []
    return ", ".join([*(repr(f"{name}/") for name in folders[:_MOST]), *rest])
