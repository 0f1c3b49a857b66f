"""Loads the entries that users add to our registries; see `tl.plugins`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.metrics import METRICS, Metric
from tl.plugins import add_entry_points, check_entries, load_script
from tl.plugins import load_entry_points as load_sources_and_regimes
from tl.regimes import REGIMES, Regime
from tl.sources import SOURCES, Source


def load_plugins(paths: Iterable[Path] = ()) -> None:
    """Load the entries of installed packages, once, and those of scripts. Raises `ConfigError` in one line.

    Entries that a notebook has added are checked, too.
    """
    _load_entry_points()
    _check("")
    for path in paths:
        load_script(path)
        _check(f"--plugin {os.fspath(path)!r}: ")


def _check(where: str) -> None:
    """Raise `ConfigError` if a registry has something else than its entries; `where` says who has just filled it."""
    check_entries(where, "SOURCES", SOURCES, Source)
    check_entries(where, "REGIMES", REGIMES, Regime)
    check_entries(where, "METRICS", METRICS, Metric)
    check_entries(where, "CLAIMS", CLAIMS, Claim)


@cache
def _load_entry_points() -> None:
    load_sources_and_regimes()
    add_entry_points("bench.metrics", METRICS, Metric)
    add_entry_points("bench.claims", CLAIMS, Claim)
