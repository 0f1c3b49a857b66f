"""Locks a run's folder for one command at a time, since two commands would disturb each other's times.

The kernel releases the lock when the process that holds it ends, even if it is killed. So no lock is ever stale.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import filelock

from tl.cache import read_bounded, to_json, write_atomic
from tl.errors import ConfigError, UserError
from tl.strict import Strict

LOCK, _HOLDER = ".lock", ".holder"
_MOST_BYTES = 1 << 20


class Holder(Strict):
    """The command that holds the lock of a folder."""

    command: str
    host: str
    pid: int
    since: datetime

    def __str__(self) -> str:
        return f"`{self.command}` (process {self.pid} on {self.host}, since {self.since:%Y-%m-%d %H:%M} UTC)"


@contextlib.contextmanager
def locked(folder: Path, command: str, *, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock of a run's folder, which must exist. A process that holds it may take it again.

    If another process holds it: with `wait`, call that with one line that names the holder, and wait; otherwise raise
    `UserError`, which names the holder.
    """
    lock = filelock.FileLock(folder / LOCK, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        busy = f"{folder}: {_holder(folder)} is working there"
        if wait is None:
            raise UserError(f"{busy}; use --wait to wait for it, or --name for another folder") from error
        wait(f"{busy}: waiting for it to end")
        _wait_for(lock, folder)
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


def _wait_for(lock: filelock.BaseFileLock, folder: Path) -> None:
    """Take the lock as soon as it is free. A command whose plan fails removes the folder that it made for its lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            lock.acquire()
            if (folder / LOCK).exists():
                return
            lock.release()


def _holder(folder: Path) -> str:
    try:
        return str(Holder.from_json(read_bounded(folder / _HOLDER, _MOST_BYTES)))
    except (OSError, ValueError, ConfigError):  # the other command has just started or just ended
        return "another `bench run`"
