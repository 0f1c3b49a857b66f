"""What a shell offers after Tab: names of runs, grids, regimes and the like (`tl-bench --install-completion`).

A list of values joined by commas is completed at its last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from tl.text import visible


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Names of runs below `--results`."""
    from bench.store.runs import all_runs
    from tl.errors import UserError

    try:
        names = [run.name for run in all_runs(Path(context.params.get("results") or "results"))]
    except (UserError, OSError):
        return []
    return _ending(incomplete, [name for name in names if visible(name) == name])  # a shell has no escapes for others


def grids(incomplete: str) -> list[str]:
    """Names of the grids that come with the suite, and files of the working folder that may be grids."""
    from bench.sweep.grid import shipped_names

    here = [path.name for path in Path().glob("*.toml") if path.name != "pyproject.toml"]
    return _ending(incomplete, sorted([*shipped_names(), *here]))


def values(setting: str, *more: str) -> Callable[[str], list[str]]:
    """Complete the values of a setting that has a table of them (`tl.config.TABLES`), and these."""

    def complete(incomplete: str) -> list[str]:
        from tl.config import TABLES

        return _ending(incomplete, [*TABLES[setting], *more])

    return complete


def metrics(incomplete: str) -> list[str]:
    """Names of metrics."""
    from bench.analysis.metrics import METRICS

    return _ending(incomplete, METRICS)


def _ending(incomplete: str, names: Iterable[str]) -> list[str]:
    """What the word may become: its last value completed, those before it as they are."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]
