"""Data sets: folders of images in `train/CLASS/*`, `val/CLASS/*` layout, and where to find them.

To add one by name, add an entry to `DATASETS`. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tl import hymenoptera, synthetic
from tl.errors import DataError, not_one_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """The images of one split, in a fixed order: by class, then by name."""

    files: tuple[str, ...]
    """Paths relative to the data set's root, with forward slashes."""
    labels: tuple[int, ...]
    """Index into `Splits.classes`, one a file."""

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A data set on disk: its images by split, its class names, and the digest that identifies it."""

    name: str
    root: Path
    digest: str
    """SHA-256 over the sorted lines `relative/path sha256-of-file` of all images, in hex."""
    classes: tuple[str, ...]
    train: ImageList
    val: ImageList
    stand_in: str = ""
    """Why the images are drawn ones and not the real set; empty for real images."""
    ignored: tuple[str, ...] = ()
    """Files in class folders that are not images by their suffix."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set that has a name."""

    summary: str
    find: Callable[[bool], Path]
    """Returns the folder, drawing it if need be, and downloading it only if its argument is true."""
    stand_in: str = ""
    digest: str | None = None
    """The digest it must have, where one is known."""


DRAWN = "a drawn stand-in: times and memory hold, accuracy says nothing about real images"

DATASETS: dict[str, Dataset] = {
    "hymenoptera": Dataset(
        summary="244 + 153 photographs of ants and bees, from the PyTorch transfer-learning tutorial",
        find=hymenoptera.find,
        digest=hymenoptera.DIGEST,
    ),
    "synthetic": Dataset(
        summary="244 + 153 drawn ants and bees, the same bytes every time",
        find=lambda download: synthetic.find(synthetic.FULL),
        stand_in=DRAWN,
    ),
    "synthetic-mini": Dataset(
        summary="24 + 16 small drawn ants and bees, for a quick look and for tests",
        find=lambda download: synthetic.find(synthetic.MINI),
        stand_in=DRAWN,
    ),
}


def load_splits(data: str | Path = "auto", *, download: bool = True) -> Splits:
    """Find a data set, list its images and compute its digest.

    `data` is a key of `DATASETS`, a folder, or `auto`: the real ants and bees where they can be had,
    else the drawn ones, with the reason in `Splits.stand_in`. With `download=False` nothing is fetched.

    Raises `DataError` when the folder is missing, incomplete or not the set that it claims to be. Whether
    each image can be decoded is checked by `tl.images.open_store`.
    """
    name = str(data)
    if name == "auto":
        try:
            return _load_named("hymenoptera", download=download)
        except hymenoptera.NotAtHand as reason:
            drawn = _load_named("synthetic", download=download)
            return replace(drawn, stand_in=f"{DRAWN} ({reason})")
    if name in DATASETS:
        return _load_named(name, download=download)
    folder = Path(data).expanduser()
    if not folder.is_dir():
        known = [*DATASETS, "auto"]
        raise DataError(f"no such folder; as a name, {not_one_of('data', name, known)}")
    splits = scan(folder)
    for known_name, dataset in DATASETS.items():
        if dataset.digest == splits.digest:
            return replace(splits, name=known_name)
    return splits


def _load_named(name: str, *, download: bool) -> Splits:
    dataset = DATASETS[name]
    root = dataset.find(download)
    splits = scan(root)
    if dataset.digest and splits.digest != dataset.digest:
        found = file_digests(root, [*splits.train.files, *splits.val.files])
        raise DataError(hymenoptera.first_difference(root, found))
    return replace(splits, name=name, stand_in=dataset.stand_in)


def scan(root: Path) -> Splits:
    """List a folder in `train/CLASS/*`, `val/CLASS/*` layout.

    Raises `DataError` when `train` or `val` is missing, a class is empty, there are fewer than two
    classes, or the two splits have different classes.
    """
    root = root.resolve()
    found: dict[str, dict[str, list[str]]] = {}
    ignored: list[str] = []
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise DataError(f"{root}: has no folder {split}/; the layout is train/CLASS/*.jpg and val/CLASS/*.jpg")
        found[split] = {}
        for folder in sorted(_visible(root / split), key=lambda p: p.name):
            if not folder.is_dir():
                continue
            files = sorted(p.name for p in _visible(folder) if p.is_file())
            images = [f"{split}/{folder.name}/{f}" for f in files if f.lower().endswith(IMAGE_SUFFIXES)]
            ignored += [f"{split}/{folder.name}/{f}" for f in files if not f.lower().endswith(IMAGE_SUFFIXES)]
            if not images:
                raise DataError(f"{folder}: class {folder.name!r} has no images ({', '.join(IMAGE_SUFFIXES)})")
            found[split][folder.name] = images
    classes = tuple(found["train"])
    if classes != tuple(found["val"]):
        only = sorted(set(classes) ^ set(found["val"]))
        where = "train" if only[0] in found["train"] else "val"
        raise DataError(f"{root}: train and val have different classes: {only[0]!r} is only in {where}/")
    if len(classes) < 2:
        raise DataError(f"{root}: {len(classes)} class{'' if classes else 'es'} in train/; at least 2 are needed")

    def listed(split: str) -> ImageList:
        pairs = [(f, label) for label, name in enumerate(classes) for f in found[split][name]]
        return ImageList(files=tuple(f for f, _ in pairs), labels=tuple(label for _, label in pairs))

    train, val = listed("train"), listed("val")
    lines = sorted(f"{name} {digest}\n" for name, digest in file_digests(root, [*train.files, *val.files]).items())
    return Splits(
        name=root.name,
        root=root,
        digest=hashlib.sha256("".join(lines).encode()).hexdigest(),
        classes=classes,
        train=train,
        val=val,
        ignored=tuple(ignored),
    )


def _visible(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if not p.name.startswith(".")]


def file_digests(root: Path, files: list[str]) -> dict[str, str]:
    """SHA-256 in hex of each file, read in parallel. Raises `DataError` for one that can't be read."""

    def digest(name: str) -> str:
        try:
            with (root / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{root / name}: can't be read: {error.strerror}") from error

    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        return dict(zip(files, pool.map(digest, files), strict=True))
