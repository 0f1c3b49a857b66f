"""Tells the files that reports wrote from those of the user, which no report replaces.

A file of a report is known by what every version wrote into it. What the user has changed in such a file is replaced,
as it always was: a report is made anew from its records.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from bench.store.runs import folder_of_run
from bench.sweep.folder import check_output
from tl.cache import REGULAR, kind_of
from tl.errors import UserError

_SIGNS = {
    ".md": re.compile(rb"^- \*\*.+\*\*: \d+ cells? on .+ digest `[^`\n]+`\)$", re.MULTILINE),
    ".html": re.compile(rb"<title>(?:All runs|[^<]* which backbone, which regime, at what cost)</title>\n<style>"),
    # Matplotlib notes a date and a program, and we leave both out; a PNG of ours has 120 dots per inch.
    ".svg": re.compile(rb'\A<svg (?!.*<dc:(?:date|creator)).*<g id="figure_1">', re.DOTALL),
    ".png": re.compile(rb"\A\x89PNG(?:(?!IDAT|tEXt|zTXt|iTXt).)*pHYs\x00\x00\x12\x74\x00\x00\x12\x74\x01", re.DOTALL),
    ".pdf": re.compile(rb"\A%PDF-.*/Creator \(tl-bench\)", re.DOTALL),
    # A gallery is four pictures wide, 592 pixels, and has no EXIF data, as a camera's file has.
    ".jpg": re.compile(rb"\A\xff\xd8\xff\xe0..JFIF(?:(?!\xff\xda|Exif).)*\xff\xc0..\x08..\x02\x50\x03", re.DOTALL),
}
"""Ending of a file → what its beginning has if a report wrote it."""
_PICTURES = (".svg", ".png", ".pdf", ".jpg")
_BEGINNING = 1 << 20


def check_replaceable(*paths: Path, run: Path | None = None) -> None:
    """Raise `UserError` if one of these paths can't be written, or is a file which no report wrote.

    They may not be in the folder of a run; `run` is one that is yet to be written.
    """
    for path in paths:
        check_output(path.parent)
        _check_outside(path, run)
        if foreign := _foreign(path):
            raise UserError(f"{path}: {foreign}; move it away, or choose another folder for reports")


def check_report(folder: Path, name: str, run: Path | None = None) -> None:
    """Raise `UserError` if the report `name` can't be written to `folder`, or would replace files of the user's.

    `run` is the folder of its run, if that is yet to be written.
    """
    check_replaceable(folder / f"{name}.md", folder / f"{name}.html", run=run)
    check_output(folder / name)
    _check_outside(folder / name, run)
    pictures = [path for path in sorted((folder / name).glob("*.*")) if path.suffix in _PICTURES]
    foreign = [path for path in pictures if _foreign(path)]
    if foreign:  # only now, since matplotlib takes seconds to load
        from bench.report.figures import EARLIER, FIGURES
        from bench.report.pictures import GALLERIES

        check_replaceable(*(path for path in foreign if path.stem in {*FIGURES, *EARLIER, *GALLERIES}))


def _check_outside(path: Path, run: Path | None) -> None:
    """Raise `UserError` if a path is in the folder of a run, or is one."""
    planned = [] if run is None else [Path(os.path.realpath(run))]
    target = Path(os.path.realpath(path))
    if found := folder_of_run(path) or next((each for each in planned if each in (target, *target.parents)), None):
        raise UserError(
            f"{path}: is in the folder of the run {found.name}, which holds its results alone; choose another folder "
            "for reports"
        )


def _foreign(path: Path) -> str:
    """Say why no report may replace what is there; empty if nothing of the user's is lost with it."""
    if not os.path.lexists(path):
        return ""
    try:
        if (kind := kind_of(path)) != REGULAR:
            return f"is {kind or 'a link that leads nowhere'}, so no report can be written there"
        with path.open("rb") as file:
            beginning = file.read(_BEGINNING)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    if beginning and not _SIGNS[path.suffix].search(beginning):
        return "was not written by a report, so no report replaces it"
    return ""
