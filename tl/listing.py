"""Walks folders of images: which files of a class are images, and what is left out, counted by reason.

Subfolders and links are followed as by torchvision's `ImageFolder`. Files are known by their directory entry and, for
links, by their target's status: none is opened before it is known to be regular, so a named pipe can't hang the walk.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from tl import hymenoptera
from tl.errors import DataError
from tl.findings import Reason, Tally

_UNREAD = (
    *(".heic", ".heif", ".jxl", ".jpe", ".jpx", ".jpf", ".apng", ".dib", ".ico", ".svg", ".tga", ".pcx"),
    *(".psd", ".xcf", ".exr", ".hdr", ".dds", ".dcm"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),  # cameras
)
"""Endings of images that are not read. They only distinguish lost images from other files."""
_LEFTOVERS = (
    *("__macosx", ".ds_store", ".appledouble", ".fseventsd", ".spotlight-v100", ".trashes"),  # macOS
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),  # Windows
    *(".directory", "lost+found", "@eadir", "#recycle", "#snapshot"),  # Linux desktops, ext4, storage servers
    *(".ipynb_checkpoints", "__pycache__"),
)
"""Names, in lower case, of files and folders that systems and programs leave behind. None of them is a class."""
_REVISITS = 1000
"""Number of times that links may lead into folders that were entered before, for each class.

Links that branch at every level lead to exponentially many folders without any loop.
"""


def unreadable(path: str | Path, error: OSError) -> DataError:
    """The error for a file or folder that exists but can't be read."""
    return DataError(f"{path}: can't be read: {error.strerror}")


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name. Raises `DataError` if it can't be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(folder, error) from error


def classify(entry: os.DirEntry[str], endings: tuple[str, ...]) -> Literal["image", "folder"] | Reason:
    """Say whether an entry is an image or a folder, or else why it is left out.

    `endings` are those of images, in lower case. Raises `DataError` if a name is not valid text, or if it can't be
    found out what a link leads to.
    """
    lower = entry.name.lower()
    if lower in _LEFTOVERS or lower.startswith(("._", ".trash-")):
        return "system leftover"
    if lower.startswith("."):
        if not leads_to_folder(entry):
            return "hidden file"
        return "hidden folder with images" if holds_images(entry, endings) else "hidden folder"
    try:
        lower.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{Path(entry.path).parent}: the name {entry.name!r} is not valid text; rename it") from error
    try:
        if entry.is_file():
            if lower.endswith(endings):
                return "placeholder for a missing photograph" if hymenoptera.is_placeholder(entry) else "image"
            return "image in a format that is not read" if lower.endswith(_UNREAD) else "file without an image's ending"
        if entry.is_dir():
            return "folder"
        Path(entry.path).stat()
    except FileNotFoundError:
        return "broken link"
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG):
            return "broken link"
        raise unreadable(entry.path, error) from error
    return "entry that is not a regular file"


def shown(entry: os.DirEntry[str], name: str) -> str:
    """The name of an entry that is left out: that of a folder ends with a slash."""
    return f"{name}/" if leads_to_folder(entry) else name


def holds_images(folder: str | os.DirEntry[str], endings: tuple[str, ...]) -> bool:
    """Return True if a folder, without its subfolders, has images; False if it can't be read."""
    try:
        with os.scandir(folder) as found:
            return any(entry.name.lower().endswith(endings) and entry.is_file() for entry in found)
    except OSError:
        return False


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Return True for a folder, or a link to one; False if that can't be found out."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def real(entry: os.DirEntry[str], parent: str) -> str:
    """The path of a folder without links. `parent` is that of the folder that the entry was found in."""
    return str(Path(entry.path).resolve()) if entry.is_symlink() else f"{parent}/{entry.name}"


def list_images(
    folder: str,
    name: str,
    walked: tuple[str, ...],
    tally: Tally,
    endings: tuple[str, ...],
    known: Collection[str] = frozenset(),
) -> list[str]:
    """List the images in a class folder and its subfolders, in the order of torchvision's `ImageFolder`.

    Args:
        folder: its path.
        name: its path relative to the data set's root, with forward slashes; the images' names begin with it. Empty for
            the root itself.
        walked: real paths of the folders that led to it, and its own. A link to one of them is a loop.
        tally: counts what is left out.
        endings: those of images, in lower case.
        known: names of files that are neither listed nor counted.

    Raises `DataError` if anything can't be read, or if links lead to the same folders again and again.
    """
    found: dict[str, list[str]] = {}
    entered: set[str] = set()
    revisits = 0
    folders = deque([(folder, name, frozenset(walked), walked[-1])])
    while folders:  # no recursion, so any depth is fine
        path, place, around, own = folders.popleft()
        revisits += own in entered
        if revisits > _REVISITS:
            raise DataError(f"{folder}: links lead into the same folders more than {_REVISITS} times; remove some")
        entered.add(own)
        for entry in entries(path):
            entry_name = f"{place}/{entry.name}" if place else entry.name
            if entry_name in known:
                continue
            kind = classify(entry, endings)
            if kind == "image":
                found.setdefault(place, []).append(entry_name)
            elif kind != "folder":
                tally.add(kind, shown(entry, entry_name))
            elif (target := real(entry, own)) in around:
                tally.add("loop of links", entry_name)
            else:
                folders.append((entry.path, entry_name, around | {target}, target))
    return [file for place in sorted(found) for file in found[place]]
