"""Digests of files and folders. They identify a data set wherever its folder is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tl.errors import DataError


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex. Raises `OSError` if it can't be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(root: Path, files: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each file below `root`.

    Raises `DataError` with the number of files that can't be read, and the name of the first.
    """

    def digest(name: str) -> str | OSError:
        try:
            return file_digest(root / name)
        except OSError as error:
            return error

    names, found, failed = list(files), {}, []
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        for name, one in zip(names, pool.map(digest, names), strict=True):
            if isinstance(one, OSError):
                failed.append((name, one))
            else:
                found[name] = one
    if failed:
        name, error = failed[0]
        more = f" (the first of {len(failed)} of {len(names)} files)" if len(failed) > 1 else ""
        raise DataError(f"{root / name}: can't be read: {error.strerror}{more}") from error
    return found


def files_below(folder: Path, *, hidden: bool) -> Iterator[Path]:
    """All files of a folder, those behind links too, each folder once. With `hidden`, those in hidden folders too."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        known = os.path.realpath(place) in seen  # through a link, such as one to a folder around it
        seen.add(os.path.realpath(place))
        folders[:] = [] if known else sorted(name for name in folders if hidden or not name.startswith("."))
        if not known:
            yield from (path for name in files if (path := Path(place, name)).is_file())


def set_digest(digests: dict[str, str], more: Iterable[str] = ()) -> str:
    """Return the SHA-256 over the sorted lines `relative/path sha256-of-file` and then the lines of `more`, in hex."""
    lines = [*sorted(f"{name} {digest}\n" for name, digest in digests.items()), *(f"{line}\n" for line in more)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
