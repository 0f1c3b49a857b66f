"""Options of a sweep: everything that a command adds to a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.store.records import Cell
from bench.store.runs import RunFolder
from tl.datasets import Splits
from tl.errors import ConfigError
from tl.survey import Survey

DEFAULT_TIMEOUT_SECONDS = 3600.0
SMALLEST_LIMIT, LARGEST_LIMIT = 1 << 20, 1 << 60
"""Bounds of `--memory-limit`, in bytes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run a grid. The paths of data and weights are here, since cells hold only their digests."""

    data: str | None = None
    splits: Splits | None = None
    """The images themselves, where `data` doesn't say them, such as a set's test images; None to find them."""
    survey: Survey | None = None
    """What was found among `splits`, so that their files aren't read for it again; None to look."""
    weights: str = "auto"
    weights_dir: Path | None = None
    name: str
    """The run's folder below `results`."""
    results: Path = Path("results")
    timeout: float | None = None
    """Time limit per training of a cell, in seconds; some protocols train several times. None for no limit."""
    memory_bytes: int | None = None
    """Main memory that a cell may allocate; None for no limit."""
    skip_larger_after_oom: bool = False
    """Skip a cell if the same cell with a smaller batch ran out of memory."""
    executor: str = "process"
    address: str | None = None
    """The cluster's address, for an executor that uses one; None starts a cluster."""
    wait: bool = False
    """Wait for another command that is working in the run's folder, instead of refusing."""
    inference: bool = False
    """Measure what each trained network costs in use, too. It is no part of a cell's id: no figure depends on it."""
    dry_run: bool = False
    fresh: bool = False
    command: str = ""
    """The command as typed, for the manifest."""
    on_record: Callable[[RunFolder], None] | None = None
    """Called with the run after each record, between two cells."""
    admit: Callable[[Cell], bool] | None = None
    """Called just before a cell starts; if it returns False, the cell is left for a later command. None: all start."""


def make_options(*, timeout: float | None, memory_limit: str | None, executor: str, **others: Any) -> Options:
    """Make `Options` from what a user gave: the memory limit is text, and the time limit has a default.

    Args:
        timeout: seconds; None means an hour, or no limit with the inline executor, which can't end a cell.
        memory_limit: such as `2GiB`.
        executor: its name.
        others: the other fields of `Options`.

    Raises `ConfigError`.
    """
    return Options(
        timeout=DEFAULT_TIMEOUT_SECONDS if timeout is None and executor != "inline" else timeout,
        memory_bytes=None if memory_limit is None else _bytes("--memory-limit", memory_limit),
        executor=executor,
        **others,
    )


def _bytes(option: str, text: str) -> int:
    """Convert a size such as `512MiB` or `2GB` to bytes. Raises `ConfigError`."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if not SMALLEST_LIMIT <= size < LARGEST_LIMIT:
        raise ConfigError(f"{option} {text!r} must be a size of at least 1MiB, such as 512MiB or 2GiB")
    return size
