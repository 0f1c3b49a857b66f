"""Ways in which a file of the cache is damaged. Each takes the path of an intact file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

import tl

T = TypeVar("T")


def _replaced_by(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def flip(path: Path, place: float = 0.6) -> None:
    """Flip one bit at this share of the file."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("")


def make_fifo(path: Path) -> None:
    """Put a FIFO in the file's place: whoever reads it waits for a writer."""
    path.unlink()
    os.mkfifo(path)


def zero(path: Path) -> None:
    """Overwrite a file with as many zeros, and keep its time stamp."""
    facts = path.stat()
    path.write_bytes(bytes(facts.st_size))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": _replaced_by(b""),
    "list": _replaced_by(b"[]"),
    "object": _replaced_by(b"{}"),
    "no text": _replaced_by(b"\xff\xfe"),
    "no digest": lambda path: path.write_bytes(path.read_bytes().partition(b"\n")[2]),
    "flipped bit": flip,
    "flipped bit of the digest": lambda path: flip(path, 0.0),
    "truncated": _truncate,
    "zeros": zero,
    "folder": _make_folder,
    "FIFO": make_fifo,
}
"""For files that begin with their digest."""


def warned_once(call: Callable[[], T], about: Path) -> T:
    """Return what `call` returns; it must warn once, in one line about this file, that the cache is rebuilt."""
    with pytest.warns(tl.CacheWarning) as caught:
        value = call()
    (text,) = [str(warning.message) for warning in caught]
    assert text.startswith(str(about)) and text.endswith("; it is rebuilt") and "\n" not in text
    return value
