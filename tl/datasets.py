"""Data sets: finds, lists and checks folders of images in `train/CLASS/**`, `val/CLASS/**` layout.

To add a named data set, add an entry to `DATASETS`. This module doesn't import torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tl import hymenoptera, synthetic
from tl.cache import is_folder
from tl.calls import Place, checked
from tl.decoding import conversions
from tl.digest import file_digests, set_digest
from tl.errors import DataError, DataWarning, FallbackWarning, not_one_of
from tl.findings import Duplicate, LeftOut, Tally, find_duplicates
from tl.layout import alike, check_layout, check_names, difference, too_deep
from tl.listing import classify, entries, list_images, real, shown

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".avif", ".jp2", ".j2k"),
)
"""Endings of the formats that are decoded, in lower case; names may have them in either case."""


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """The images of one split, in a fixed order: by class, then by subfolder, then by name."""

    files: tuple[str, ...]
    """Paths relative to the data set's root, with forward slashes."""
    labels: tuple[int, ...]
    """Class of each file, as an index into `Splits.classes`."""

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A data set on disk: its images by split, its class names, and the digest that identifies it.

    Raises `DataError` for data that no folder has, such as a split without images.
    """

    name: str
    root: Path
    digest: str
    """SHA-256 over the sorted lines `relative/path sha256-of-file` of all images, in hex.

    A line `decoding N` follows if an image has more than 8 bits or transparency (see `tl.decoding.conversions`)."""
    classes: tuple[str, ...]
    train: ImageList
    val: ImageList
    fallback: str = ""
    """Says that the images are synthetic, and why; empty for real images."""
    left_out: tuple[LeftOut, ...] = ()
    """What lies in `train/` and `val/` and is no image of the set, by reason."""
    duplicates: tuple[Duplicate, ...] = ()
    """Images that are the same file. Parts of a data set, such as folds, keep what was found in the whole."""

    def __post_init__(self) -> None:
        """Raise `DataError` if a split has no images, or another number of labels, or a label without a class."""
        for split, images in (("train", self.train), ("val", self.val)):
            if not len(images) or len(images) != len(images.labels):
                raise DataError(
                    f"{self.name}: {split} has {len(images)} images and {len(images.labels)} labels; "
                    "one image at least is needed, and a label for each"
                )
            if unknown := set(images.labels).difference(range(len(self.classes))):
                raise DataError(
                    f"{self.name}: {split} has the label {min(unknown)}; labels of {len(self.classes)} classes are "
                    f"0 to {len(self.classes) - 1}"
                )

    @property
    def findings(self) -> tuple[LeftOut | Duplicate, ...]:
        """All that was found. `str(finding)` is a line for users."""
        return (*self.left_out, *self.duplicates)


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


@checked
def load_splits(data: Place = "auto", *, download: bool = True) -> Splits:
    """Find a data set, list its images and compute its digest.

    `data` is a key of `DATASETS`, a folder, or `auto`. `auto` means the real ants and bees if they are available,
    else the synthetic ones, with a `FallbackWarning` and the reason in `Splits.fallback`. With `download=False`
    nothing is downloaded.

    Raises `UserError` if the folder is missing, and its subclass `DataError` if it is incomplete or not the set that it
    claims to be. It doesn't check that images can be decoded: `tl.images.open_store` does.
    """
    splits = _found(str(data), download=download)
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
        return scan(DATASETS[name].find(download), name=name)
    folder = Path(name)
    if not is_folder(folder):
        raise DataError(f"no such folder, and {not_one_of('data', name, [*DATASETS, 'auto'])}")
    return scan(folder)


def scan(root: Path, *, name: str | None = None) -> Splits:
    """List a folder in `train/CLASS/**`, `val/CLASS/**` layout and check that it is the set called `name`.

    A class has the images in its folder and in all subfolders; links are followed. Without `name` the set is recognised
    by its content, or else named after its folder. What is found beside the images, and images that are the same file,
    are counted in the result.

    Raises `DataError` if `train` or `val` is missing or holds splits itself, a class is empty, there are fewer than two
    classes, the two splits have different classes, two classes' names look alike, a file or folder can't be read, or
    the content is a damaged copy of the real ants and bees.
    """
    root = root.resolve()
    check_layout(root, IMAGE_SUFFIXES)
    tally = Tally()
    found = {split: _classes(root, split, tally) for split in ("train", "val")}
    classes = tuple(found["train"])
    check_names(root, found)
    if classes != tuple(found["val"]):
        hints = [difference(root, found), *too_deep(root, found, IMAGE_SUFFIXES), *tally.lost_classes]
        raise DataError(f"{root}: train and val have different classes: {'; '.join(hints)}")
    if len(classes) < 2:
        hints = ["at least 2 are needed", *too_deep(root, found, IMAGE_SUFFIXES), *tally.lost_classes]
        raise DataError(f"{root}: {len(classes)} class{'' if classes else 'es'} in train/; {'; '.join(hints)}")

    def listed(split: str) -> ImageList:
        pairs = [(f, label) for label, name in enumerate(classes) for f in found[split][name]]
        return ImageList(files=tuple(f for f, _ in pairs), labels=tuple(label for _, label in pairs))

    train, val = listed("train"), listed("val")
    digests = file_digests(root, [*train.files, *val.files])
    if (name == "hymenoptera" or hymenoptera.resembles(digests)) and digests != hymenoptera.expected():
        raise DataError(hymenoptera.first_difference(root, digests))
    digest = set_digest(digests, conversions(root, [*train.files, *val.files]))
    labels = dict(zip((*train.files, *val.files), (*train.labels, *val.labels), strict=True))
    return Splits(
        name=name or _name(root, digest),
        root=root,
        digest=digest,
        classes=classes,
        train=train,
        val=val,
        fallback=synthetic.SYNTHETIC_NOTE if synthetic.set_name(root) else "",
        left_out=tally.left_out,
        duplicates=find_duplicates(digests, labels),
    )


def _classes(root: Path, split: str, tally: Tally) -> dict[str, list[str]]:
    """List the images of each class of a split. Raises `DataError` if a class has none."""
    above = (str(root), str((root / split).resolve()))
    found = {}
    for entry in entries(root / split):
        kind, name = classify(entry, IMAGE_SUFFIXES), f"{split}/{entry.name}"
        if kind == "image":
            tally.add("image outside a class folder", name)
        elif kind != "folder":
            tally.add(kind, shown(entry, name))
        elif (own := real(entry, above[-1])) in above:
            tally.add("loop of links", name)
        else:
            inside = Tally()
            found[entry.name] = list_images(entry.path, name, (*above, own), inside, IMAGE_SUFFIXES)
            if not found[entry.name]:
                why = "; ".join(map(str, inside.left_out)) or "the folder is empty"
                raise DataError(
                    f"{entry.path}: class {entry.name!r} has no images ({', '.join(IMAGE_SUFFIXES)}): {why}"
                )
            tally.merge(inside)
    return found


def _name(root: Path, digest: str) -> str:
    """Name a data set by its content, else by its folder; `folder:NAME` if another set has that name."""
    if digest == hymenoptera.DIGEST:
        return "hymenoptera"
    if known := synthetic.set_name(root):
        return known
    return f"folder:{root.name}" if root.name in (*DATASETS, "auto") else root.name
