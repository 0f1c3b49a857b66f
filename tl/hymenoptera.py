"""The ants-and-bees set of the PyTorch transfer-learning tutorial: finding, fetching and checking it.

Its photographs are not ours to ship. `hymenoptera.sha256` holds the SHA-256 of each of its 397 JPEGs, so
that a damaged copy can be told apart, file by file.
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

from tl.cache import cache_dir, offline
from tl.digest import file_digests
from tl.errors import DataError

URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
DIGEST = "41771d210287175073b7b183f7b57163e019b854f530d8edd91705379c9212ae"
LOCAL = Path("data/hymenoptera_data")
UNPACKED_LIMIT_BYTES = 1 << 30


class NotAtHand(DataError):
    """The real images are nowhere on this machine and can't be downloaded."""


def find(download: bool) -> Path:
    """The folder: `$TL_DATA`, else `data/hymenoptera_data`, else the user's cache, else downloaded.

    Raises `NotAtHand` when it is nowhere and can't be downloaded, `DataError` when `$TL_DATA` names no folder.
    """
    given = os.environ.get("TL_DATA")
    if given:
        if not Path(given).is_dir():
            raise DataError(
                f"TL_DATA={given!r}: no such folder; unset it, or let it name the folder with train/ and val/"
            )
        return Path(given)
    cached = cache_dir() / "hymenoptera_data"
    for folder in (LOCAL, cached):
        if folder.is_dir():
            return folder
    if not download or offline():
        raise NotAtHand("the real images are not on this machine" + (", and TL_OFFLINE is set" if offline() else ""))
    return fetch(URL, cached, expected())


def fetch(url: str, destination: Path, wanted: dict[str, str]) -> Path:
    """Download the archive, unpack it safely, check its files and put them at `destination` in one step.

    `wanted` maps each JPEG to its SHA-256. Raises `NotAtHand`, leaving nothing behind, when the address
    can't be reached, the cache can't be written, or the archive is not what it should be.
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
                raise NotAtHand(f"{url}: the archive has no folder with train/ in it")
            files = [p.relative_to(tops[0]).as_posix() for p in tops[0].glob("*/*/*.jp*g")]
            found = file_digests(tops[0], files)
            if found != wanted:
                raise NotAtHand(first_difference(url, found, wanted))
            try:
                tops[0].rename(destination)
            except OSError:
                # Another process was quicker: its copy was checked like ours.
                if not destination.is_dir():
                    raise
    # A damaged archive shows in many ways: zlib.error and RuntimeError come from its members.
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise NotAtHand(f"{url} could not be downloaded: {_short(error)}") from error
    return destination


def unpack(archive: Path, destination: Path) -> Path:
    """Unpack a ZIP into `destination`. Raises `ValueError` for a member that would land outside it, a link,
    or more than `UNPACKED_LIMIT_BYTES` in all."""
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        total = sum(member.file_size for member in members)
        if total > UNPACKED_LIMIT_BYTES:
            raise ValueError(f"the archive would unpack to {total} bytes")
        root = destination.resolve()
        for member in members:
            if not (root / member.filename).resolve().is_relative_to(root) or stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"unsafe member {member.filename!r} in the archive")
        file.extractall(root)
    return destination


def expected() -> dict[str, str]:
    """Relative path → SHA-256 of the 397 JPEGs."""
    text = resources.files("tl").joinpath("hymenoptera.sha256").read_text(encoding="utf-8")
    return {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}


def resembles(found: dict[str, str]) -> bool:
    """Whether the file names are, nine of ten, those of the real set: then a difference is damage."""
    wanted = expected().keys()
    return len(wanted & found.keys()) >= 0.9 * max(len(wanted), len(found))


def first_difference(where: Path | str, found: dict[str, str], wanted: dict[str, str] | None = None) -> str:
    """One line naming the first file, in sorted order, in which a copy differs from the real set."""
    wanted = expected() if wanted is None else wanted
    name = next(n for n in sorted(wanted.keys() | found.keys()) if found.get(n) != wanted.get(n))
    what = "is missing" if name not in found else "is not part of it" if name not in wanted else "differs"
    return f"{where}: not the hymenoptera set: {name} {what} ({len(found)} images of {len(wanted)})"


def _short(error: BaseException) -> str:
    """The innermost cause: connection errors nest three deep, and only the core helps."""
    seen = error
    while seen.__cause__ or seen.__context__:
        seen = seen.__cause__ or seen.__context__ or seen
    return str(seen) or type(seen).__name__
