"""What is found in a folder of images beside its images: what is left out and why, and images that are the same file.

Each kind is one finding with a count and an example. It goes with the data set from `tl.datasets.scan` to the terminal,
the manifest of a run and its report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from tl.strict import Strict

Reason = Literal[
    "broken link",
    "loop of links",
    "image outside a class folder",
    "image in a format that is not read",
    "entry that is not a regular file",
    "file without an image's ending",
    "hidden file",
    "hidden folder",
    "hidden folder with images",
    "system leftover",
    "placeholder for a missing photograph",
]
"""Why an entry of a folder is no image of the data set."""

_PLURALS: dict[Reason, str] = {
    "broken link": "broken links",
    "loop of links": "loops of links",
    "image outside a class folder": "images outside a class folder",
    "image in a format that is not read": "images in a format that is not read",
    "entry that is not a regular file": "entries that are not regular files",
    "file without an image's ending": "files without an image's ending",
    "hidden file": "hidden files",
    "hidden folder with images": "hidden folders with images",
    "hidden folder": "hidden folders",
    "system leftover": "system leftovers",
    "placeholder for a missing photograph": "placeholders for missing photographs",
}
"""Reason → its plural, in the order in which findings are shown."""
_SERIOUS = (
    *("broken link", "loop of links", "image outside a class folder", "image in a format that is not read"),
    "hidden folder with images",
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
_EXACT = "only identical files are found, not re-encoded copies"


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
    """Images of a data set that are the same file, byte for byte. Copies in another size or format are not found."""

    kind: Literal["train and val", "two classes", "copies"] = Field(
        description="`copies` are of the same split and class"
    )
    count: int = Field(
        ge=1,
        description="of `train and val`: validation images that are also training images; of `two classes`: different "
        "images; of `copies`: files beyond the first of each image",
    )
    example: tuple[str, str] = Field(description="paths of two equal files, relative to the data set's root")

    @property
    def serious(self) -> bool:
        """True if accuracy is not what it seems to be."""
        return self.kind != "copies"

    def __str__(self) -> str:
        """One line. Paths are quoted, so that control characters in a name are visible."""
        one, other = self.example
        several, are = ("s", "are") if self.count > 1 else ("", "is")
        if self.kind == "train and val":
            what = f"{self.count} validation image{several} {are} also in train/, such as {one!r} = {other!r}"
            effect = "validation accuracy is too high for new images"
        elif self.kind == "two classes":
            what = f"{self.count} image{several} {are} in two classes, such as {one!r} = {other!r}"
            effect = "at most one of the labels is right"
        else:
            what = f"{self.count} image{several} {are} in the same class again, such as {one!r} = {other!r}"
            effect = "with protocols tuned and kfold, both sides of a split can have one of them"
        return f"{what}: {effect} ({_EXACT})"


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


def find_duplicates(digests: Mapping[str, str], labels: Mapping[str, int]) -> tuple[Duplicate, ...]:
    """Find equal images across splits, across classes, and within a class of a split.

    `digests` are the SHA-256 of all files, and `labels` their classes. A file's path begins with `train/` or `val/`.
    """
    if len(set(digests.values())) == len(digests):
        return ()
    files: dict[str, list[str]] = {}
    for name, digest in digests.items():
        files.setdefault(digest, []).append(name)
    pairs: dict[Literal["train and val", "two classes", "copies"], list[tuple[str, str]]]
    pairs = {"train and val": [], "two classes": [], "copies": []}
    for equal in files.values():
        first: dict[tuple[str, int], str] = {}
        train = next((name for name in equal if name.startswith("train/")), None)
        unlike = next((name for name in equal if labels[name] != labels[equal[0]]), None)
        if unlike:
            pairs["two classes"].append((equal[0], unlike))
        for name in equal if len(equal) > 1 else ():
            split = name.partition("/")[0]
            if split == "val" and train:
                pairs["train and val"].append((name, train))
            if (split, labels[name]) in first:
                pairs["copies"].append((name, first[split, labels[name]]))
            first.setdefault((split, labels[name]), name)
    return tuple(Duplicate(kind=kind, count=len(some), example=some[0]) for kind, some in pairs.items() if some)
