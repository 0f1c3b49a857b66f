"""Writes `reports/index.html`, which lists all runs with their headlines, newest first."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench.report.answers import Headline, answers, headlines
from bench.report.pages import environment_for, style
from bench.report.summary import summarise
from bench.report.written import check_replaceable
from bench.store.runs import RunFolder
from tl.cache import write_atomic
from tl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """One run in the list."""

    name: str
    link: str
    """Link to its report, relative to the index; empty without a report."""
    started: str
    """Start of its last command in UTC, to the minute; empty if unreadable."""
    images: str
    cells: str
    headlines: tuple[Headline, ...]
    answers: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """Warnings about synthetic, missing or repeated images, and about frozen parameters that changed."""
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
    page = environment_for("html").get_template("index.html.j2").render(rows=rows, style=style())
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
        return IndexRow(
            name=name, link=link, started="", images="", cells="", headlines=(), answers=(), error=str(error)
        )
    _, manifest = summary.runs[0]
    last = manifest.invocations[-1].started if manifest.invocations else None
    return IndexRow(
        name=name,
        link=link,
        started=f"{last:%Y-%m-%d %H:%M}" if last else "",
        images=manifest.dataset.name,
        cells=str(summary.tally),
        headlines=tuple(headlines(summary)),
        answers=tuple(answers(summary)),
        warnings=(
            *(f"The images are {reason}." for reason in summary.fallbacks),
            *(f"Check the images: {warning}." for warning in summary.image_warnings),
            *(f"Not frozen: {record.cell}." for record in summary.not_frozen),
        ),
    )
