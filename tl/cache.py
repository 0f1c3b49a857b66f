"""The cache folder, which keeps derived and downloaded files between runs.

It is `$TL_CACHE` if that is set, else the platform's cache folder for this user.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import platformdirs

from tl.errors import UserError


def cache_dir() -> Path:
    """Return the cache folder. It is not created here.

    Raises `UserError` if this user has no home folder, and nothing else says where the cache is.
    """
    if given := os.environ.get("TL_CACHE"):
        return Path(given)
    try:
        folder = platformdirs.user_cache_path("tl-bench", appauthor=False)
    except RuntimeError:
        folder = Path("~")
    if not folder.is_absolute():  # older versions of platformdirs return `~` where there is no home
        raise UserError("this user has no home folder for the cache; set TL_CACHE to a folder")
    return folder


def offline() -> bool:
    """Return True if `$TL_OFFLINE` forbids downloads."""
    return os.environ.get("TL_OFFLINE", "") not in ("", "0")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) atomically: a reader sees the old file or the new one, never half of it.

    Raises `OSError` if the folder can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode(errors="replace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def to_json(value: Any) -> str:
    """Serialise to JSON that diffs well: indented, UTF-8 not escaped, one newline at the end. NaN is an error."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_bounded(path: Path, limit: int) -> str:
    """Read a text file (UTF-8) of at most `limit` bytes.

    Raises `UserError` that names the file if it can't be read, is not a regular file (a pipe or a device could hang
    this process or fill its memory), or is larger.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: is not a regular file")
            content = file.read(limit + 1) if status.st_size <= limit else b""
            if status.st_size > limit or len(content) > limit:
                size = max(status.st_size, len(content))
                raise UserError(f"{path}: has {size:,} bytes; at most {limit:,} are read")
        return content.decode()
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8: {error}") from error


def _without_waiting(path: str, flags: int) -> int:
    """Open a file. Without O_NONBLOCK, which Windows lacks, opening a pipe would wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
