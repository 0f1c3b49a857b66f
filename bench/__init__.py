"""Runs sweeps over backbones, regimes and devices, and reports on them. See `python -m bench --help`. In a notebook:

    import bench

    run = bench.run("default", data="photos", epochs=3)   # runs the missing cells
    run.frame()                                           # one row per cell
    run.claims()                                          # one row per comparison, with its verdict
    bench.pick("photos").pick()                           # which backbone, fine-tuned or head-only
    run.report()                                          # reports/NAME.md and reports/NAME.html

`import bench` is fast: a name loads what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
"""As in `typing`, which `python -m bench` must not import from the working folder; see `bench.__main__`."""
if TYPE_CHECKING:
    from typing import Any

    from bench.api import Run, load_results, pick, run

__all__ = ["Run", "load_results", "pick", "run"]


def __dir__() -> list[str]:
    """Names that completion offers in a notebook, before any is loaded."""
    return __all__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("bench.api"), name)
