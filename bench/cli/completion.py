"""What a shell offers after Tab: names of runs, grids, regimes and the like (`tl-bench --install-completion`).

A list of values joined by commas is completed at its last one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer


def runs(context: typer.Context, incomplete: str) -> list[str]:
    """Names of runs below `--results`."""
    folder = Path(context.params.get("results") or "results")
    try:
        names = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
    except OSError:
        return []
    return _ending(incomplete, names)


def grids(incomplete: str) -> list[str]:
    """Names of the grids that come with the suite, and files of the working folder that may be grids."""
    from importlib import resources

    files = resources.files("bench.sweep").joinpath("grids").iterdir()
    here = [path.name for path in Path().glob("*.toml") if path.name != "pyproject.toml"]
    return _ending(incomplete, sorted([*(file.name.removesuffix(".toml") for file in files), *here]))


def regimes(incomplete: str) -> list[str]:
    """Names of regimes, and `all`."""
    from tl.regimes import REGIMES

    return _ending(incomplete, [*REGIMES, "all"])


def precisions(incomplete: str) -> list[str]:
    """Names of precisions."""
    from tl.config import PRECISIONS

    return _ending(incomplete, PRECISIONS)


def executions(incomplete: str) -> list[str]:
    """Names of executions."""
    from tl.config import EXECUTIONS

    return _ending(incomplete, EXECUTIONS)


def protocols(incomplete: str) -> list[str]:
    """Names of protocols."""
    from tl.config import PROTOCOLS

    return _ending(incomplete, PROTOCOLS)


def tasks(incomplete: str) -> list[str]:
    """Names of tasks."""
    from tl.tasks import TASKS

    return _ending(incomplete, TASKS)


def metrics(incomplete: str) -> list[str]:
    """Names of metrics."""
    from bench.analysis.metrics import METRICS

    return _ending(incomplete, METRICS)


def _ending(incomplete: str, names: Iterable[str]) -> list[str]:
    """What the word may become: its last value completed, those before it as they are."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]
