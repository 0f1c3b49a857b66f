"""The matrix runner: what to run, run it safely, compare, report. `python -m bench --help`.

import bench

frame = bench.load_results(["results/default"])   # one row a cell
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["load_results"]


def load_results(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Read runs into one frame, one row a cell; the columns are those of `bench export` (results/README.md).

    Unknown values are missing (`NA`), never 0. Raises `tl.UserError` for a path that is not a run.
    """
    from bench.export.frame import load_results

    return load_results(paths)
