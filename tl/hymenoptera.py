"""Finds, downloads and checks the ants-and-bees images of the PyTorch transfer-learning tutorial.

We may not redistribute the photographs. `hymenoptera.sha256` holds the SHA-256 of each of the 397 JPEGs, so that
every damaged file of a copy can be named.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import zipfile
import zlib
from importlib import resources
from pathlib import Path

from tl.cache import cache_dir, is_folder, offline, user_path
from tl.digest import file_digest, file_digests
from tl.errors import DataError
from tl.network import unreachable
from tl.text import shortened

URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
DIGEST = "41771d210287175073b7b183f7b57163e019b854f530d8edd91705379c9212ae"
PLACEHOLDER = "imageNotFound.gif"
PLACEHOLDER_DIGEST = "6b4966252973c581b521f804453c6a0649ea6a2ce7e3e5c7deeb7d80623de231"
LOCAL = Path("data/hymenoptera_data")
UNPACKED_LIMIT_BYTES = 1 << 30


class Unavailable(DataError):
    """The real images are not on this machine and can't be downloaded."""


def find(download: bool) -> Path:
    """Return the folder: `$TL_DATA`, else `data/hymenoptera_data`, else that in the user's cache, else a download.

    Raises `Unavailable` if there is none and it can't be downloaded, `UserError` if `$TL_DATA` is not a folder.
    """
    given = os.environ.get("TL_DATA")
    if given:
        if not is_folder(folder := user_path("TL_DATA=", given)):
            advice = "unset it, or set it to the folder with train/ and val/"
            raise DataError(f"TL_DATA={shortened(repr(given))}: no such folder; {advice}")
        return folder
    cached = cache_dir() / "hymenoptera_data"
    for folder in (LOCAL, cached):
        if folder.is_dir():
            return folder
    if not download or offline():
        problem = unreachable(URL)
        missing = "the real images are not on this machine" + (f", and {problem}" if problem else "")
        raise Unavailable(f"{missing}; put the folder with train/ and val/ at {LOCAL.as_posix()}, or set TL_DATA to it")
    return fetch(URL, cached, expected())


def fetch(url: str, destination: Path, wanted: dict[str, str]) -> Path:
    """Download the archive, unpack it safely, check its files and put them at `destination` in one step.

    `wanted` maps each JPEG to its SHA-256. Raises `Unavailable` and leaves nothing behind if the address
    can't be reached, the cache can't be written, or the archive has other files.
    """
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".download-") as scratch:
            # The archive has no published hash: its files are checked one by one after unpacking.
            archive = pooch.retrieve(url, known_hash=None, fname="hymenoptera_data.zip", path=scratch, progressbar=True)
            unpacked = unpack(Path(archive), Path(scratch) / "unpacked")
            tops = [p for p in unpacked.iterdir() if (p / "train").is_dir()]
            if not tops:
                raise Unavailable(f"{url}: the archive has no folder with train/ in it")
            files = [p.relative_to(tops[0]).as_posix() for p in tops[0].glob("*/*/*.jp*g")]
            found = file_digests(tops[0], files)
            if found != wanted:
                raise Unavailable(first_difference(url, found, wanted))
            try:
                tops[0].rename(destination)
            except OSError:
                # Another process was faster; its copy has passed the same checks.
                if not destination.is_dir():
                    raise
    # A damaged archive raises many kinds of errors: zlib.error and RuntimeError come from its members.
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Unavailable(f"{url} could not be downloaded: {_root_cause(error)}") from error
    return destination


def unpack(archive: Path, destination: Path) -> Path:
    """Unpack a ZIP into `destination`.

    Raises `ValueError` if a member is a link or would land outside, or if the total exceeds `UNPACKED_LIMIT_BYTES`.
    """
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        total = sum(member.file_size for member in members)
        if total > UNPACKED_LIMIT_BYTES:
            raise ValueError(f"the archive would unpack to {total} bytes, more than {UNPACKED_LIMIT_BYTES}")
        root = destination.resolve()
        for member in members:
            if not (root / member.filename).resolve().is_relative_to(root) or stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"unsafe member {member.filename!r} in the archive")
        file.extractall(root)
    return destination


def expected() -> dict[str, str]:
    """Return the SHA-256 of each of the 397 JPEGs, by relative path."""
    text = resources.files("tl").joinpath("hymenoptera.sha256").read_text(encoding="utf-8")
    return {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}


def resembles(found: dict[str, str]) -> bool:
    """Return True if nine in ten file names are those of the real set; any difference is then damage."""
    wanted = expected().keys()
    return len(wanted & found.keys()) >= 0.9 * max(len(wanted), len(found))


def is_placeholder(file: os.DirEntry[str]) -> bool:
    """Return True for the GIF among the archive's ants that a photo site sent in place of a photograph.

    It has always been left out. Raises `DataError` if it can't be read.
    """
    if file.name != PLACEHOLDER:
        return False
    try:
        return file_digest(Path(file.path)) == PLACEHOLDER_DIGEST
    except OSError as error:
        raise DataError(f"{file.path}: can't be read: {error.strerror}") from error


def first_difference(where: Path | str, found: dict[str, str], wanted: dict[str, str] | None = None) -> str:
    """Return a message about the first file, in sorted order, in which a copy differs from the real set."""
    wanted = expected() if wanted is None else wanted
    name = next(n for n in sorted(wanted.keys() | found.keys()) if found.get(n) != wanted.get(n))
    what = "is missing" if name not in found else "is not part of it" if name not in wanted else "differs"
    return f"{where}: not the hymenoptera set: {name} {what} ({len(found)} images of {len(wanted)})"


def _root_cause(error: BaseException) -> str:
    """Return the message of the innermost cause: connection errors nest three deep, and only the last helps."""
    seen = error
    while seen.__cause__ or seen.__context__:
        seen = seen.__cause__ or seen.__context__ or seen
    return str(seen) or type(seen).__name__
