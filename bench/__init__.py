"""The sweep: which backbone, trained how, on which device, at what cost. `python -m bench --help`; in a notebook:

    import bench

    run = bench.run("default", data="photos", epochs=3)   # runs what is missing
    run.frame()                                           # one row per cell
    run.claims()                                          # one row per comparison, with its verdict
    run.report()                                          # reports/NAME.md and reports/NAME.html

`import bench` is cheap: what a name needs is loaded when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import Run, load_results, run

__all__ = ["Run", "load_results", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("bench.api"), name)
