"""Chooses the folder of a sweep, checks that it can be written, and locks it against other commands."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from bench.console import say
from bench.store.lock import LOCK, locked
from bench.store.runs import RunFolder
from bench.sweep.options import Options
from tl.errors import ConfigError, UserError
from tl.text import visible

LONGEST_NAME = 200
"""Bytes of a run's name: with endings such as `.html` it must be the name of a file, which has at most 255."""


def check_output(folder: Path) -> None:
    """Raise `UserError` if files can't be written below `folder`. The check creates no files."""
    existing = folder
    while not existing.exists():
        if existing.is_symlink():
            raise UserError(
                f"{folder}: can't be written: {existing} is a link that leads nowhere ({existing.readlink()})"
            )
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{folder}: can't be written: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: can't be written: no permission for {existing}")


def check_name(option: str, name: str) -> None:
    """Raise `ConfigError` if `name`, the value of `option`, is not the plain name of a file or folder."""
    if not name or Path(name).name != name or name.startswith((".", "-")):
        raise ConfigError(f"{option} {name!r} must be a plain name, without folders, that begins with neither . nor -")
    if visible(name) != name:
        raise ConfigError(f"{option} {visible(name)!r} has hidden or control characters; leave them out")
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise ConfigError(
            f"{option} {name[:20]}… has {len(os.fsencode(name))} bytes; at most {LONGEST_NAME} are possible"
        )
    if name.lower() == "index":
        raise ConfigError(f"{option} {name!r} is reserved for the list of all reports; choose another name")


def run_folder(options: Options) -> Path:
    """Choose the folder that a command writes to. It need not exist. Raises `UserError` if it is not a run's folder."""
    check_name("--name", options.name)
    folder = options.results / options.name
    number = 2
    while options.fresh and folder.exists():
        folder = options.results / f"{options.name}-{number}"
        number += 1
    check_output(folder)
    check_output(folder / "cells")
    # Hidden files don't count: a command that ended before it wrote anything leaves its lock file.
    foreign = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []
    if foreign and not (folder / "manifest.json").is_file():
        raise UserError(f"{folder}: exists and is not a run (no manifest.json); choose another --name")
    return folder


def tidy(run: RunFolder, options: Options) -> None:
    """Remove files of killed commands. Raises `UserError` if another command is working there, and `OSError`."""
    if run.leftovers():
        with locked(run.folder, options.command):
            for path in run.leftovers():
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def held(run: RunFolder, options: Options, console: Console) -> Iterator[None]:
    """Hold the lock of a run's folder, and create the folder if it doesn't exist. Raises `UserError`."""
    try:
        run.folder.mkdir(parents=True, exist_ok=not options.fresh)
    except FileExistsError as error:
        raise UserError(f"{run.folder}: another command has just created it; try again") from error
    with locked(run.folder, options.command, wait=_waiter(options, console)):
        yield


@contextlib.contextmanager
def held_from_the_start(options: Options, console: Console) -> Iterator[None]:
    """Hold the lock already while planning if `--wait` is given: the plan includes what another command has done."""
    check_name("--name", options.name)
    folder = options.results / options.name
    if not options.wait or options.dry_run or options.fresh:
        yield
        return
    check_output(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)  # two commands may start at once; then one waits for the other
    try:
        with locked(folder, options.command, wait=_waiter(options, console)):
            try:
                yield
            except BaseException:
                if made and not (folder / "manifest.json").exists():
                    (folder / LOCK).unlink(missing_ok=True)  # while it is held: whoever waits for it finds it gone
                raise
    except BaseException:
        for path in made:  # the innermost first; what others have put there stays
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _waiter(options: Options, console: Console) -> Callable[[str], None] | None:
    """Prints which command we wait for; None without `--wait`."""
    return (lambda text: say(console, text, style="yellow")) if options.wait else None
