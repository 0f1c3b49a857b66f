"""What a command line adds to a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.store.runs import Run


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to run a grid. Data and weights are in here too: cells know them by their digests, not by their places."""

    data: str | None = None
    weights: str = "auto"
    weights_dir: Path | None = None
    name: str
    """Folder below `results`."""
    results: Path = Path("results")
    timeout: float | None = None
    """Seconds for each training of a cell, of which some protocols have several; None for no limit."""
    memory_bytes: int | None = None
    """That a cell may allocate; None for no limit."""
    skip_larger_after_oom: bool = False
    """Skip a cell whose twin with a smaller batch ran out of memory."""
    executor: str = "process"
    address: str | None = None
    """Of the cluster, for an executor that uses one; None for one that it starts."""
    wait: bool = False
    """Wait for a command that is at work in the run's folder, instead of refusing."""
    dry_run: bool = False
    fresh: bool = False
    command: str = ""
    """As typed, for the manifest."""
    on_record: Callable[[Run], None] | None = None
    """Called with the run whenever a record was written, between two cells."""
