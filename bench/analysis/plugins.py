"""Loads the entries that users add to our registries; see `tl.plugins`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.metrics import METRICS, Metric
from tl.plugins import add_entry_points, load_script
from tl.plugins import load_entry_points as load_sources_and_regimes


def load_plugins(paths: Iterable[Path] = ()) -> None:
    """Load the entries of installed packages, once, and those of scripts. Raises `ConfigError` in one line."""
    _load_entry_points()
    for path in paths:
        load_script(path)


@cache
def _load_entry_points() -> None:
    load_sources_and_regimes()
    add_entry_points("bench.metrics", METRICS, Metric)
    add_entry_points("bench.claims", CLAIMS, Claim)
