"""The cache folder, which keeps derived and downloaded files between runs.

It is `$TL_CACHE` if that is set, else the platform's cache folder for this user.
"""

from __future__ import annotations

import json
import os
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
