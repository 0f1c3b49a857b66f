"""What a command line adds to a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.records import Run


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
    executor: str = "process"
    dry_run: bool = False
    fresh: bool = False
    command: str = ""
    """As typed, for the manifest."""
    on_record: Callable[[Run], None] | None = None
    """Called with the run whenever a record was written, between two cells."""
