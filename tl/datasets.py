"""Data sets: finds, lists and checks folders of images in `train/CLASS/*`, `val/CLASS/*` layout.

To add a named data set, add an entry to `DATASETS`. This module doesn't import torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tl import hymenoptera, synthetic
from tl.digest import file_digests, set_digest
from tl.errors import DataError, FallbackWarning, not_one_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """The images of one split, in a fixed order: by class, then by name."""

    files: tuple[str, ...]
    """Paths relative to the data set's root, with forward slashes."""
    labels: tuple[int, ...]
    """Class of each file, as an index into `Splits.classes`."""

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
    fallback: str = ""
    """Says that the images are synthetic, and why; empty for real images."""
    ignored: tuple[str, ...] = ()
    """Files in class folders whose suffix is not that of an image."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named data set."""

    summary: str
    find: Callable[[bool], Path]
    """Returns the folder, generating the images if needed. It downloads only if its argument is true."""


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
}


def load_splits(data: str | Path = "auto", *, download: bool = True) -> Splits:
    """Find a data set, list its images and compute its digest.

    `data` is a key of `DATASETS`, a folder, or `auto`. `auto` means the real ants and bees if they are available,
    else the synthetic ones, with a `FallbackWarning` and the reason in `Splits.fallback`. With `download=False`
    nothing is downloaded.

    Raises `DataError` if the folder is missing, incomplete or not the set that it claims to be. It doesn't check
    that images can be decoded: `tl.images.open_store` does.
    """
    name = str(data)
    if name == "auto":
        try:
            return scan(DATASETS["hymenoptera"].find(download), name="hymenoptera")
        except hymenoptera.Unavailable as reason:
            generated = scan(DATASETS["synthetic"].find(download), name="synthetic")
            fallback = replace(generated, fallback=f"{generated.fallback} ({reason})")
            warnings.warn(f"the images are {fallback.fallback}", FallbackWarning, stacklevel=2)
            return fallback
    if name in DATASETS:
        return scan(DATASETS[name].find(download), name=name)
    try:
        folder = Path(data).expanduser()
    except RuntimeError as error:  # `~name` of a user that doesn't exist
        raise DataError(f"data={name!r}: can't be found: {error}") from error
    if not folder.is_dir():
        raise DataError(f"no such folder, and {not_one_of('data', name, [*DATASETS, 'auto'])}")
    return scan(folder)


def scan(root: Path, *, name: str | None = None) -> Splits:
    """List a folder in `train/CLASS/*`, `val/CLASS/*` layout and check that it is the set called `name`.

    Without `name` the set is recognised by its content, or else named after its folder.

    Raises `DataError` if `train` or `val` is missing, a class is empty, there are fewer than two
    classes, the two splits have different classes, or the content is a damaged copy of the real ants and bees.
    """
    root = root.resolve()
    found: dict[str, dict[str, list[str]]] = {}
    ignored: list[str] = []
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise DataError(f"{root}: has no folder {split}/; the layout is train/CLASS/*.jpg and val/CLASS/*.jpg")
        found[split] = {}
        for folder in _visible(root / split):
            if not folder.is_dir():
                continue
            files = [f"{split}/{folder.name}/{path.name}" for path in _visible(folder) if path.is_file()]
            images = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)]
            ignored += [file for file in files if file not in images]
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
    digests = file_digests(root, [*train.files, *val.files])
    if (name == "hymenoptera" or hymenoptera.resembles(digests)) and digests != hymenoptera.expected():
        raise DataError(hymenoptera.first_difference(root, digests))
    return Splits(
        name=name or _name(root, set_digest(digests)),
        root=root,
        digest=set_digest(digests),
        classes=classes,
        train=train,
        val=val,
        fallback=synthetic.SYNTHETIC_NOTE if synthetic.set_name(root) else "",
        ignored=tuple(ignored),
    )


def _name(root: Path, digest: str) -> str:
    """Name a data set by its content, else by its folder; `folder:NAME` if another set has that name."""
    if digest == hymenoptera.DIGEST:
        return "hymenoptera"
    if known := synthetic.set_name(root):
        return known
    return f"folder:{root.name}" if root.name in (*DATASETS, "auto") else root.name


def _visible(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted by name, without hidden ones."""
    try:
        found = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda p: p.name)
    except OSError as error:
        raise DataError(f"{folder}: can't be read: {error.strerror}") from error
    for path in found:
        if any("\ud800" <= character <= "\udfff" for character in path.name):
            raise DataError(f"{folder}: the name {path.name!r} is not valid text; rename it")
    return found
