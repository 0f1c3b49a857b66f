"""Keeps the page of an unfinished run up to date, for `--live`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from bench.store.runs import RunFolder
from tl.errors import UserError

_SHARE = 20
"""Writing the page takes at most one part in this many of the run's time."""


class LivePage:
    """Rewrites a run's page as its cells end."""

    def __init__(self, reports: Path, warn: Callable[[str], object]) -> None:
        """`reports` is the page's folder. `warn` receives a line if the page can't be written: the run goes on."""
        self._reports, self._warn, self._due, self._begun = reports, warn, 0.0, False

    def write(self, run: RunFolder) -> None:
        """Write the page after a cell has ended, unless it was written too recently."""
        begun = time.monotonic()
        if begun < self._due:
            return
        self._put(run, ended=False)
        self._begun, self._due = True, max(self._due, time.monotonic() + _SHARE * (time.monotonic() - begun))

    def end(self, run: RunFolder) -> None:
        """Write the page a last time, so that it no longer reloads itself. Leaves a page alone that we didn't write."""
        if self._begun and run.exists():
            self._put(run, ended=True)

    def _put(self, run: RunFolder, *, ended: bool) -> None:
        from bench.report.write import write_live  # imported only now, since matplotlib takes seconds to load

        try:
            write_live(run, self._reports, ended=ended)
        except UserError as error:  # a page that can't be written must not end the run
            self._warn(f"WARNING: the live page: {error}")
            self._due = math.inf
