"""What is found in a folder of images beside its images: what is left out and why, and images that are the same file.

Each kind is one finding with a count and an example. It goes with the data set from `tl.datasets.scan` to the terminal,
the manifest of a run and its report.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from tl.strict import Strict

Reason = Literal[
    "broken link",
    "loop of links",
    "image outside a class folder",
    "folder with images beside the splits",
    "image of a test folder that can't be used",
    "image that the table of labels lacks",
    "annotation of a crowd",
    "image in a format that is not read",
    "entry that is not a regular file",
    "file without an image's ending",
    "folder without images",
    "hidden file",
    "hidden folder",
    "hidden folder with images",
    "system leftover",
    "placeholder for a missing photograph",
]
"""Why an entry of a folder is no image of the data set, or an annotation no object of its image."""

_PLURALS: dict[Reason, str] = {
    "broken link": "broken links",
    "loop of links": "loops of links",
    "image outside a class folder": "images outside a class folder",
    "folder with images beside the splits": "folders with images beside the splits",
    "image of a test folder that can't be used": "images of a test folder that can't be used",
    "image that the table of labels lacks": "images that the table of labels lacks",
    "annotation of a crowd": "annotations of crowds",
    "image in a format that is not read": "images in a format that is not read",
    "entry that is not a regular file": "entries that are not regular files",
    "file without an image's ending": "files without an image's ending",
    "folder without images": "folders without images",
    "hidden file": "hidden files",
    "hidden folder with images": "hidden folders with images",
    "hidden folder": "hidden folders",
    "system leftover": "system leftovers",
    "placeholder for a missing photograph": "placeholders for missing photographs",
}
"""Reason → its plural, in the order in which findings are shown."""
_SERIOUS = (
    *("broken link", "loop of links", "image outside a class folder", "image in a format that is not read"),
    *("hidden folder with images", "folder without images", "folder with images beside the splits"),
    *("image of a test folder that can't be used", "image that the table of labels lacks"),
)
"""Reasons that mean that images are probably missing."""
_LOST_CLASS = (
    "broken link",
    "loop of links",
    "image outside a class folder",
    "hidden folder",
    "hidden folder with images",
)
"""Reasons that explain why a class is missing."""


Kind = Literal["train and val", "two classes", "copies"]


class LeftOut(Strict):
    """The files and folders that are left out for one reason. A folder counts once, whatever is in it."""

    reason: Reason
    count: int = Field(ge=1)
    example: str = Field(description="path of the first one, relative to the data set's root; folders end with a slash")

    @property
    def serious(self) -> bool:
        """True if images are probably missing."""
        return self.reason in _SERIOUS

    def __str__(self) -> str:
        """One line. The example is quoted, so that control characters in a name are visible."""
        if self.count == 1:
            return f"left out 1 {self.reason}: {self.example!r}"
        return f"left out {self.count} {_PLURALS[self.reason]}, such as {self.example!r}"


class Duplicate(Strict):
    """Images of a data set that are the same file, byte for byte, or look the same (`near`; see `tl.alike`)."""

    kind: Kind = Field(description="`copies` are of the same split and class")
    count: int = Field(
        ge=1,
        description="of `train and val`: validation images that are also training images; of `two classes`: different "
        "images; of `copies`: files beyond the first of each image",
    )
    example: tuple[str, str] = Field(description="paths of two equal files, relative to the data set's root")
    near: bool = Field(
        False,
        description="true for files that differ and look the same, such as resized copies; none before version 11",
    )

    @property
    def serious(self) -> bool:
        """True if accuracy is not what it seems to be."""
        return self.kind != "copies"

    def __str__(self) -> str:
        """One line. Paths are quoted, so that control characters in a name are visible."""
        several, are = ("s", "are") if self.count > 1 else ("", "is")
        images = f"image{several} {are}{' nearly' if self.near else ''}"
        such = f"{self.example[0]!r} {'~' if self.near else '='} {self.example[1]!r}"
        such = f"such as {such}" if self.count > 1 else such
        if self.kind == "train and val":
            also = "also training images" if self.count > 1 else "also a training image"
            what = "the same as a training image" if self.near else also
            return f"{self.count} validation {images} {what}, {such}: validation accuracy is too high for new images"
        if self.kind == "two classes":
            what = "the same as one of another class" if self.near else "in two classes"
            return f"{self.count} {images} {what}, {such}: at most one of the labels is right"
        other = "other images of their class" if self.count > 1 else "another image of its class"
        what = f"the same as {other}" if self.near else "in the same class again"
        return (
            f"{self.count} {images} {what}, {such}: with protocols tuned and kfold, both sides of a split can have one "
            "of them"
        )


@dataclass
class Tally:
    """Counts what is left out of a folder, by reason."""

    found: dict[Reason, LeftOut] = field(default_factory=dict)

    def add(self, reason: Reason, example: str, count: int = 1) -> None:
        """Count entries. The first example of a reason stays."""
        before = self.found.get(reason)
        # A name that is not valid text could neither be saved nor printed.
        name = before.example if before else example.encode(errors="backslashreplace").decode()
        self.found[reason] = LeftOut(reason=reason, count=count + (before.count if before else 0), example=name)

    def merge(self, other: Tally) -> None:
        """Add what another tally has counted."""
        for each in other.found.values():
            self.add(each.reason, each.example, each.count)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """One finding for each reason."""
        return tuple(self.found[reason] for reason in _PLURALS if reason in self.found)

    @property
    def lost_classes(self) -> list[str]:
        """What was left out that explains why a class is missing, in words."""
        return [str(finding) for finding in self.left_out if finding.reason in _LOST_CLASS]


def find_duplicates(
    digests: Mapping[str, str], labels: Mapping[str, Hashable], train: Collection[str]
) -> tuple[Duplicate, ...]:
    """Find equal images across splits, across classes, and within a class of a split.

    `digests` are the SHA-256 of all files, `labels` their classes (or sets of classes), and `train` the training images
    among them.
    """
    if len(set(digests.values())) == len(digests):
        return ()
    training = frozenset(train)
    files: dict[str, list[str]] = {}
    for name, digest in digests.items():
        files.setdefault(digest, []).append(name)
    pairs: dict[Kind, list[tuple[str, str]]] = {"train and val": [], "two classes": [], "copies": []}
    for equal in files.values():
        first: dict[tuple[bool, Hashable], str] = {}
        trained = next((name for name in equal if name in training), None)
        unlike = next((name for name in equal if labels[name] != labels[equal[0]]), None)
        if unlike:
            pairs["two classes"].append((equal[0], unlike))
        for name in equal if len(equal) > 1 else ():
            if name not in training and trained:
                pairs["train and val"].append((name, trained))
            if (name in training, labels[name]) in first:
                pairs["copies"].append((name, first[name in training, labels[name]]))
            first.setdefault((name in training, labels[name]), name)
    return tuple(Duplicate(kind=kind, count=len(some), example=some[0]) for kind, some in pairs.items() if some)


def find_near_duplicates(
    groups: Iterable[Sequence[str]], digests: Mapping[str, str], labels: Mapping[str, Hashable], train: Collection[str]
) -> tuple[Duplicate, ...]:
    """Find images that look the same and are different files, counted as `find_duplicates` counts equal ones.

    `groups` are the images that look the same (see `tl.alike`); an image that is also the same file is not counted.
    """
    training = frozenset(train)
    pairs: dict[Kind, list[tuple[str, str]]] = {"train and val": [], "two classes": [], "copies": []}
    for group in groups:
        # One of equal files in a split and class: the others are counted as such.
        distinct = list({(digests[name], name in training, labels[name]): name for name in reversed(group)}.values())[
            ::-1
        ]
        first: dict[tuple[bool, Hashable], str] = {}
        trained = [name for name in distinct if name in training]
        leaked = {digests[name] for name in trained}
        one = distinct[0]
        others = (name for name in distinct if labels[name] != labels[one] and digests[name] != digests[one])
        if unlike := next(others, None):
            pairs["two classes"].append((one, unlike))
        for name in distinct:
            if name not in training and trained and digests[name] not in leaked:
                pairs["train and val"].append((name, trained[0]))
            key = (name in training, labels[name])
            if key in first:
                pairs["copies"].append((name, first[key]))
            first.setdefault(key, name)
    return tuple(
        Duplicate(kind=kind, count=len(some), example=some[0], near=True) for kind, some in pairs.items() if some
    )
