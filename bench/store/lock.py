"""Whose turn it is in a run's folder: one command at a time, since two would disturb each other's times.

The kernel's lock ends with the process that holds it, however that ends: what a dead one left is no hindrance.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import filelock

from tl.cache import to_json, write_atomic
from tl.errors import ConfigError, UserError
from tl.strict import Strict

_HOLDER = ".holder"


class Holder(Strict):
    """Who is at work in a folder."""

    command: str
    host: str
    pid: int
    since: datetime

    def __str__(self) -> str:
        return f"`{self.command}` (process {self.pid} on {self.host}, since {self.since:%Y-%m-%d %H:%M} UTC)"


@contextlib.contextmanager
def locked(folder: Path, command: str, *, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a run's folder, which exists. Who holds it already may take it again.

    While another holds it: with `wait`, tell that who it is, and wait; else raise `UserError`, which names it.
    """
    lock = filelock.FileLock(folder / ".lock", is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        said = f"{folder}: {_holder(folder)} is at work there"
        if wait is None:
            raise UserError(f"{said}; wait for it (--wait does), or give a --name") from error
        wait(f"{said}: waiting for it to end")
        lock.acquire()
    try:
        if lock.lock_counter == 1:
            holder = Holder(command=command, host=platform.node(), pid=os.getpid(), since=datetime.now(UTC))
            write_atomic(folder / _HOLDER, to_json(holder.model_dump(mode="json")))
        yield
    finally:
        if lock.lock_counter == 1:
            with contextlib.suppress(OSError):
                (folder / _HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        return str(Holder.from_json((folder / _HOLDER).read_bytes()))
    except (OSError, ValueError, ConfigError):  # it has only just begun, or has just ended
        return "another `bench run`"
