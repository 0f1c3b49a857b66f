"""Checks that a folder has `train/` and `val/`, and says what to do if it hasn't: most folders are nearly right."""

from __future__ import annotations

from pathlib import Path

from tl.errors import DataError
from tl.listing import classify, entries, holds_images, unreadable

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
    """Raise `DataError` with advice if a folder lacks `train/` or `val/`. `endings` are those of images."""
    try:
        missing = [split for split in _ALSO_CALLED if not (root / split).is_dir()]
    except OSError as error:
        raise unreadable(root, error) from error
    if missing:
        named = " and no folder ".join(f"{split}/" for split in missing)
        raise DataError(f"{root}: has no folder {named}; {_advice(root, missing, endings)}")


def _advice(root: Path, missing: list[str], endings: tuple[str, ...]) -> str:
    """Say what to do, as far as the folder's content tells."""
    for split in missing:
        if (root / split).is_symlink():
            return f"{split!r} is a link that leads to no folder"
    folders = [entry.name for entry in entries(root) if classify(entry, endings) == "folder"]
    advice = []
    for split in missing:
        there = [name for also in _ALSO_CALLED[split] for name in folders if _plain(name) == also]
        if there:
            what = f"{_named(there)}: rename it" if len(there) == 1 else f"{_named(there)}: rename one of them"
            advice.append(f"there is {what} to {split}/")
    if advice:
        return f"{'; '.join(advice)} ({LAYOUT})"
    inside = [name for name in folders if _has_both(root / name)]
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


def _has_both(folder: Path) -> bool:
    try:
        return all((folder / split).is_dir() for split in _ALSO_CALLED)
    except OSError:
        return False


def _named(folders: list[str]) -> str:
    """Quote the first names, so that control characters in them are visible."""
    rest = [f"{len(folders) - _MOST} more"] if len(folders) > _MOST else []
    return ", ".join([*(repr(f"{name}/") for name in folders[:_MOST]), *rest])
