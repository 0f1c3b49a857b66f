"""The cache folder, which keeps derived and downloaded files between runs, and how files are read and written.

The folder is `$TL_CACHE` if that is set, else the platform's cache folder for this user.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import platformdirs

from tl.errors import UserError
from tl.text import shortened


def cache_dir() -> Path:
    """Return the cache folder. It is not created here.

    Raises `UserError` if this user has no home folder, and nothing else says where the cache is.
    """
    if given := os.environ.get("TL_CACHE"):
        return user_path("TL_CACHE=", given)
    try:
        folder = platformdirs.user_cache_path("tl-bench", appauthor=False)
    except RuntimeError:
        folder = Path("~")
    if not folder.is_absolute():  # older versions of platformdirs return `~` where there is no home
        raise UserError("this user has no home folder for the cache; set TL_CACHE to a folder")
    return folder


def check_cache() -> str:
    """Return why files can't be kept in the cache folder that there is, in words; empty if they can.

    The folder isn't created if it is missing. Raises `UserError` if it can't be: it is something else than a folder, or
    it would be in a folder that can't be written.
    """
    existing = folder = cache_dir()
    exists = False
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            folder.stat()  # raises for links in a circle, and for a name that is too long
        while not os.path.lexists(existing):
            existing = existing.parent
        if (kind := kind_of(existing) or "a link that leads to nothing") != _FOLDER:
            raise UserError(_no_cache(folder, f"{existing} is {kind}"))
        exists = existing == folder
        with tempfile.TemporaryFile(dir=existing):  # permissions alone don't say that a file system can be written
            return ""
    except OSError as error:
        why = error.strerror or str(error)
        if not exists:
            raise UserError(_no_cache(folder, why)) from error
        return f"{folder} can't be written: {why}"


def _no_cache(folder: Path, why: str) -> str:
    return f"the cache {shortened(repr(os.fspath(folder)))} can't be used: {why}; set TL_CACHE to a folder"


def expand_user(path: str | Path) -> Path:
    """Return a path with `~` or `~user` at its start expanded as a shell does. Raises `ValueError`, in plain words."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError("there is no such user, or no home folder") from error


def user_path(name: str, given: str | Path) -> Path:
    """Return a path that a user gave, expanded. `name` says where it was given, such as `TL_CACHE=`.

    Raises `UserError` if it is empty, or begins with the name of a user that there isn't.
    """
    try:
        if os.fspath(given):
            return expand_user(given)
        raise ValueError("is empty; give the path of a file or folder")
    except ValueError as error:
        raise UserError(f"{name}{shortened(repr(os.fspath(given)))}: {error}") from error


def is_folder(path: Path) -> bool:
    """Return True if a path leads to a folder. Raises `UserError` if that can't be found out."""
    try:
        return path.is_dir()
    except OSError as error:
        raise UserError(f"{shortened(path)}: can't be read: {error.strerror or error}") from error


def is_file(path: Path) -> bool:
    """Return True if a path leads to a file; False also where that can't be found out."""
    return os.path.isfile(path)  # noqa: PTH113 (raises nothing)


def offline() -> bool:
    """Return True if `$TL_OFFLINE` forbids downloads."""
    return os.environ.get("TL_OFFLINE", "") not in ("", "0")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) atomically: a reader sees the old file or the new one, never half of it.

    A link stays what it is, and the file that it leads to gets the content. Raises `OSError` if the folder can't be
    written, or if the path exists and is not a regular file; see `write_output` for those.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    kind = kind_of(path)
    if kind not in ("", REGULAR):
        raise OSError(errno.EINVAL, f"is {kind}, not {REGULAR}", os.fspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Only the beginning of the name, since the whole one may be as long as a file system allows.
    temporary = path.with_name(f".{path.name[:_NAME_PART]}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(_encoded(content))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = os.fspath(path), None  # a full disk names no file
        raise


def write_output(path: Path, content: str | bytes) -> None:
    """Write `content` to a path that a user gave for output.

    A regular file is written as by `write_atomic`. A device, a pipe or an open file of this process (`/dev/stdout`,
    `/dev/fd/3`) is written through and stays what it is; a named pipe waits for its reader. Raises `OSError`.
    """
    number = _own_descriptor(path)
    if number is None and kind_of(path) in ("", REGULAR, _FOLDER):
        write_atomic(path, content)
        return
    # Another name of an open file would begin at its start again, and overwrite what was printed before.
    descriptor = os.dup(number) if number is not None else os.open(path, os.O_WRONLY | os.O_NOCTTY)
    if number is not None and sys.stdout is not None:
        sys.stdout.flush()
    with os.fdopen(descriptor, "wb") as file:
        file.write(_encoded(content))


def read_bounded(path: Path, limit: int, *, pipe: bool = False) -> bytes:
    """Read a regular file of at most `limit` bytes; with `pipe`, also what comes through a pipe.

    Nothing else is read: a named pipe without a writer would wait for ever, and a device may have no end. Raises
    `OSError`, whose `strerror` says why.
    """
    descriptor = os.open(path, os.O_RDONLY | _WITHOUT_WAITING)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) and not (pipe and stat.S_ISFIFO(found.st_mode)):
            raise OSError(errno.EINVAL, f"is {_name(found.st_mode)}, not {REGULAR}", os.fspath(path))
        if stat.S_ISFIFO(found.st_mode):
            os.set_blocking(descriptor, True)
        parts, total, wanted = [], 0, min(found.st_size, limit) + 1
        while total <= limit and (part := os.read(descriptor, wanted)):
            parts.append(part)
            total, wanted = total + len(part), _CHUNK
    finally:
        os.close(descriptor)
    if total > limit:
        raise OSError(errno.EFBIG, f"has more than the {limit:,} bytes that are read", os.fspath(path))
    return b"".join(parts)


_CHUNK = 1 << 16
_NAME_PART = 50
"""Characters of a file's name in the name of its temporary file."""
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
REGULAR, _FOLDER = "a regular file", "a folder"
_KINDS = {
    stat.S_IFREG: REGULAR,
    stat.S_IFDIR: _FOLDER,
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind_of(path: Path) -> str:
    """Return what a path leads to, in words; empty if there is nothing. Raises `OSError` for links in a circle."""
    try:
        return _name(path.stat().st_mode)
    except FileNotFoundError:
        return ""


def _name(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


def _own_descriptor(path: Path) -> int | None:
    """Return the number of the open file of this process that a path such as `/dev/stdout` names, or None."""
    kind_of(path)  # raises for links in a circle, which would be followed for ever
    own = {os.path.realpath("/proc/self/fd"), "/dev/fd"}
    while True:
        if path.name.isdecimal() and os.path.realpath(path.parent) in own:
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()


def _encoded(content: str | bytes) -> bytes:
    return content.encode(errors="replace") if isinstance(content, str) else content


def to_json(value: Any) -> str:
    """Serialise to JSON that diffs well: indented, UTF-8 not escaped, one newline at the end. NaN is an error."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_text(path: Path, limit: int) -> str:
    """Read a text file (UTF-8) as `read_bounded` does. Raises `UserError` that names the file and says why it can't."""
    try:
        return decoded(read_bounded(path, limit))
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def decoded(content: bytes) -> str:
    """Return the text of a file, without the byte order mark that some editors put before it.

    Raises `ValueError` in plain words if it isn't UTF-8.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # also the beginning of UTF-32
        raise ValueError("is text in UTF-16 or UTF-32; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"is not text in UTF-8 (byte 0x{content[error.start]:02x} in line {line})") from error
