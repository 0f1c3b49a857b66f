"""Writes `reports/index.html`, a table of all runs with what each of them found, newest first."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench.analysis.groups import most_accurate
from bench.analysis.metrics import RATED_BY
from bench.analysis.picking import seconds_to_train
from bench.report.headline import Line, half_the_time, sentences
from bench.report.pages import environment_for, style, table_script
from bench.report.pick_text import duration
from bench.report.settings_text import images
from bench.report.strip import Chip, device_names, strip_of
from bench.report.summary import Summary, summarise
from bench.report.tables import show, spread
from bench.report.written import check_replaceable
from bench.store.runs import RunFolder
from tl.cache import write_atomic
from tl.errors import UserError
from tl.regimes import REGIMES


@dataclass(frozen=True, kw_only=True)
class Best:
    """The most accurate combination of a run."""

    name: str
    text: str
    """Its accuracy, or the score of its task, with the interval or spread."""
    accuracy: float | None
    seconds: float | None
    """Seconds of a whole training."""

    @property
    def duration(self) -> str:
        """Its time to train, in words."""
        return "n/a" if self.seconds is None else duration(self.seconds)


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """One run in the table."""

    name: str
    link: str
    """Link to its report, relative to the index; empty without a report."""
    started: str = ""
    """Start of its last command in UTC, to the minute; empty if unreadable."""
    devices: tuple[str, ...] = ()
    dataset: str = ""
    images: str = ""
    synthetic: bool = False
    """True if its images are synthetic, so that its accuracies say nothing about real ones."""
    score: str = ""
    """What its task calls an accuracy."""
    best: Best | None = None
    """None if no accuracy has a meaning."""
    answers: tuple[str, ...] = ()
    half: tuple[Line, ...] = ()
    """Whether training only the head takes about half the time."""
    complete: bool = False
    cells: str = ""
    chips: tuple[Chip, ...] = ()
    warnings: tuple[str, ...] = ()
    """Warnings about missing or repeated images, and about frozen parameters that changed."""
    error: str = ""
    """Why the run can't be read."""


def write_index(runs: Iterable[RunFolder], folder: Path) -> Path:
    """Write `folder/index.html` and return its path. A run that can't be read is listed with the reason.

    Raises `UserError` when the folder can't be written, or has a file `index.html` that this function didn't write.
    """
    path, runs = folder / "index.html", list(runs)
    check_replaceable(path)
    names = Counter(run.folder.resolve().name for run in runs)
    rows = [_row(run, folder, linked=names[run.folder.resolve().name] == 1) for run in runs]
    rows.sort(key=lambda row: row.started, reverse=True)
    template = environment_for("html").get_template("index.html.j2")
    scores = sorted({row.score for row in rows if row.score})
    page = template.render(rows=rows, scores=scores, style=style(), script=table_script())
    try:
        write_atomic(path, page)
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror}") from error
    return path


def _row(run: RunFolder, folder: Path, *, linked: bool) -> IndexRow:
    """The row of a run. It is not `linked` if another run has the same name, since the report may be of either."""
    name = run.folder.resolve().name
    link = f"{quote(name)}.html" if linked and (folder / f"{name}.html").is_file() else ""
    name = name if linked else os.fspath(run.folder)
    try:
        summary = summarise([run], name)
    except UserError as error:
        return IndexRow(name=name, link=link, error=str(error))
    _, manifest = summary.runs[0]
    last = manifest.invocations[-1].started if manifest.invocations else None
    return IndexRow(
        name=name,
        link=link,
        started=f"{last:%Y-%m-%d %H:%M}" if last else "",
        devices=tuple(device_names(summary).values()),
        dataset=manifest.dataset.name,
        images=images(manifest),
        synthetic=bool(summary.fallbacks),
        score=summary.task.score,
        best=_best(summary),
        answers=tuple(f"{text}." for text in sentences(summary)),
        half=tuple(half_the_time(summary)),
        complete=not summary.progress,
        cells=str(summary.tally),
        chips=strip_of(summary).chips,
        warnings=(
            *(f"Check the images: {warning}." for warning in summary.image_warnings),
            *(f"Not frozen: {record.cell}." for record in summary.not_frozen),
        ),
    )


def _best(summary: Summary) -> Best | None:
    best = most_accurate(group for group in summary.groups if not REGIMES[group.config.regime].control)
    if best is None:
        return None
    return Best(
        name=f"{summary.short(best)}, {best.config.regime}",
        text=f"{show(best, RATED_BY)} {spread(best, RATED_BY)}",
        accuracy=best.accuracy,
        seconds=seconds_to_train(best),
    )
