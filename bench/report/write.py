"""Writes a report as Markdown with picture files, and as one self-contained HTML file."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from bench.analysis import selection
from bench.analysis.metrics import METRICS, RATED_BY, costs, listed, what_matters
from bench.report import figures, settings_text
from bench.report.answers import answers, doubts, half_answers, overalls, recommendations, selection_overall
from bench.report.cards import decks
from bench.report.data import group_id, page_data
from bench.report.headline import half_the_time, sentences
from bench.report.heatmap import make_heatmap
from bench.report.hero import SLOPES
from bench.report.leaderboard import FIRST, by_backbone, leaderboard
from bench.report.notes import footnotes, notes_of
from bench.report.pages import environment_for, html_table, markdown_table, script, style
from bench.report.pick_text import reasons
from bench.report.pictures import GALLERIES, LEFT_OUT, galleries, montage
from bench.report.scorecard import scorecard
from bench.report.strip import strip_of
from bench.report.summary import Summary, summarise
from bench.report.tables import (
    candidates_table,
    cells_table,
    claims_table,
    paired_findings,
    paired_remarks,
    paired_table,
    priorities_table,
    selection_table,
    speed_up_table,
    without_alike,
)
from bench.report.without import without_result
from bench.report.written import check_replaceable, check_report
from bench.store.runs import RunFolder
from tl.cache import write_atomic
from tl.datasets import Splits
from tl.errors import UserError
from tl.text import visible


def write_report(
    summary: Summary, folder: Path, images: Splits | str = LEFT_OUT, *, pdf: bool = False
) -> tuple[Path, Path]:
    """Write `folder/NAME.md`, with pictures in `folder/NAME/`, and `folder/NAME.html`. Returns both paths.

    NAME is the summary's name. `images` are those of the first run, or the reason why the report has no pictures. With
    `pdf` each figure is a PDF file too. An older report of that name is replaced. Raises `UserError` if the folder
    can't be written, or if that would replace a file that no report wrote.
    """
    check_report(folder, summary.name)
    if not summary.task.right_or_wrong and not isinstance(images, str):
        images = "No pictures: they are titled by one class for each image."
    name, drawn = summary.name, figures.draw(summary, pdf=pdf)
    shown = [] if isinstance(images, str) else galleries(summary, images)
    more = {"figures": drawn, "galleries": shown, "no_pictures": images if isinstance(images, str) else ""}
    paths = folder / f"{name}.md", folder / f"{name}.html"
    try:
        pictures: dict[str, str | bytes] = {}
        for stem, figure in drawn.items():
            pictures |= {f"{stem}.svg": figure.svg, f"{stem}.png": figure.png}
            pictures |= {f"{stem}.pdf": figure.pdf} if pdf else {}
        for gallery in shown:
            buffer = io.BytesIO()
            montage(gallery).save(buffer, format="jpeg", quality=85)
            pictures[f"{gallery.name}.jpg"] = buffer.getvalue()
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file, content in pictures.items():
            write_atomic(folder / name / file, content)
        write_atomic(paths[0], _page("md", summary, more))
        write_atomic(paths[1], _page("html", summary, more | _for_html(summary, drawn)))
        for stem in (*figures.FIGURES, *figures.EARLIER, *GALLERIES):  # files of an earlier report may be out of date
            for file in {f"{stem}.{suffix}" for suffix in ("png", "svg", "pdf", "jpg")} - pictures.keys():
                (folder / name / file).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the report can't be written: {error.strerror}") from error
    return paths


MOST_LEFT_OUT = 30
"""Rows of the matrix that are named where figures leave them out; more are counted."""
REFRESH_SECONDS = 10
"""Time between reloads of the page of an unfinished run."""


def write_live(run: RunFolder, folder: Path, *, ended: bool = False) -> Path:
    """Write `folder/NAME.html` for an unfinished run. Returns its path.

    The page has no figures, since they take long to draw. It reloads itself unless the run has `ended`. Raises
    `UserError` as `write_report` does.
    """
    summary = summarise([run], run.folder.resolve().name)
    more: dict[str, Any] = {
        "figures": {},
        "galleries": [],
        "no_pictures": "",
        "refresh": None if ended else REFRESH_SECONDS,
        "written": f"{datetime.now(UTC):%H:%M:%S} UTC",
    }
    path = folder / f"{summary.name}.html"
    check_replaceable(path)
    try:
        write_atomic(path, _page("html", summary, more | _for_html(summary, {})))
    except OSError as error:
        raise UserError(f"{folder}: the report can't be written: {error.strerror}") from error
    return path


def _page(suffix: str, summary: Summary, more: dict[str, Any]) -> str:
    content = {"refresh": None} | _content(summary, suffix) | more
    return environment_for(suffix).get_template(f"report.{suffix}.j2").render(**content)


FOLDED = {
    "Training loss": ("loss-curve",),
    "Time of an epoch, and memory": ("time", "memory"),
    "Parts of the memory": ("memory-parts",),
}
"""Heading of each fold of the section that says why → its figures; that section shows all others openly."""
IN_PLACE = (*figures.MESSAGES, "speed-up", "matrix", "confusion")
"""Figures that the page shows in another section, or replaces by an interactive element."""


_ONE_SEED = "; for accuracies with one seed, the 95% interval"
"""Part of a caption in the page's script: scores that are no shares of right images have no such interval."""


def _for_html(summary: Summary, drawn: Mapping[str, figures.RenderedFigure]) -> dict[str, Any]:
    """Content that only the page has: an interactive heat map, table and explorer."""
    heatmap, board, why = make_heatmap(summary), leaderboard(summary), _why(drawn)
    explained = [row for row in summary.speed_ups if row.explanation]
    without = without_result(summary)
    sections = {
        "answer": "Answer",
        "candidates": "Candidates" if summary.picks else "",
        "claim": "Half the time?" if summary.speed_ups else "",
        "paired": "In pairs" if paired_findings(summary) else "",
        "results": "Leaderboard" if summary.groups else "",
        "matrix": "Matrix" if heatmap.metrics else "",
        "explorer": "Explorer" if len(summary.groups) > 1 else "",
        "why": "Why" if why or explained else "",
        "claims": "Claims" if summary.findings else "",
        "selection": "Probes" if summary.selections else "",
        "pictures": "Pictures",
        "trust": "Can I trust this?",
        "without": "Without a result" if without else "",
    }
    # `<` must not end the element that JSON stands in.
    data = json.dumps(_shown(page_data(summary)), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return {
        "style": style(),
        "script": script() if summary.task.right_or_wrong else script().replace(_ONE_SEED, ""),
        "data": Markup(data),
        "sections": [(anchor, label) for anchor, label in sections.items() if label],
        "strip": strip_of(summary),
        "sentences": sentences(summary),
        "half_lines": half_the_time(summary),
        "recommendations": [*recommendations(summary), *doubts(summary)],
        "half_answers": half_answers(summary),
        "decks": decks(summary),
        "slopes": [name for name in SLOPES if f"slope-{name}" in drawn],
        "scorecard": scorecard(summary),
        "heatmap": heatmap,
        "metrics": {name: replace(each, label=summary.words(each.label)) for name, each in METRICS.items()},
        "board": board,
        "board_first": FIRST,
        "backbones": by_backbone(board, heatmap),
        "row_id": group_id,
        "why": why,
        "explained": explained,
        **_tables_for_html(summary),
        "footnotes": footnotes(summary),
    }


def _tables_for_html(summary: Summary) -> dict[str, Any]:
    """Tables with many columns, without those that have the same text in all rows, which `…_alike` says."""
    found = {"speed_ups": speed_up_table(summary), "paired": paired_table(summary)}
    content: dict[str, Any] = {}
    for name, table in found.items():
        differing, alike = without_alike(table)
        content |= {name: "" if table.empty else html_table(differing), f"{name}_alike": alike}
    return content


def _why(drawn: Mapping[str, figures.RenderedFigure]) -> list[tuple[str, list[str]]]:
    """The figures of the section that says why, by fold; the first ones, under an empty heading, are in none."""
    folded = {name: title for title, names in FOLDED.items() for name in names}
    found: dict[str, list[str]] = {title: [] for title in ("", *FOLDED)}
    for name in drawn:
        if name not in IN_PLACE:
            found[folded.get(name, "")].append(name)
    return [(title, names) for title, names in found.items() if names]


def _shown(data: Any) -> Any:
    """The same data with hidden characters in its texts made visible: a script would show them as they are."""
    if isinstance(data, dict):
        return {visible(key): _shown(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_shown(value) for value in data]
    return visible(data) if isinstance(data, str) else data


def _fence(lines: list[str]) -> str:
    """A Markdown fence longer than any run of backticks in what it encloses."""
    runs = re.findall("`+", "\n".join(lines))
    return "`" * max(3, *(len(run) + 1 for run in runs)) if runs else "```"


def _content(summary: Summary, suffix: str) -> dict[str, Any]:
    as_table = markdown_table if suffix == "md" else html_table
    return {
        "summary": summary,
        "answers": answers(summary),
        "settings_text": settings_text,
        "notes": notes_of(summary),
        "cells": as_table(cells_table(summary)),
        "speed_ups": as_table(speed_up_table(summary)) if summary.speed_ups else "",
        "paired": as_table(paired) if not (paired := paired_table(summary)).empty else "",
        "paired_remarks": paired_remarks(summary),
        "priorities": _wrapping(priorities_table(summary), suffix) if summary.choices else "",
        "picks": [
            (run, _wrapping(candidates_table(pick), suffix), (*reasons(pick.candidates), *pick.more, *pick.notes))
            for run, pick in summary.picks
        ],
        "in_words": summary.words,
        "front_axes": summary.words(what_matters([RATED_BY, *costs()])),
        "half": _progress(summary),
        "figures_show": _figures_show(summary),
        "without": without_result(summary),
        "claims": as_table(claims_table(summary)) if summary.findings else "",
        "claims_overall": overalls(summary),
        "selections": as_table(selection_table(summary)) if summary.selections else "",
        "selection": selection,
        "selection_overall": selection_overall(summary),
        "overhead": _overhead(summary),
        "fence": _fence(summary.commands),
    }


def _wrapping(table: pd.DataFrame, suffix: str) -> Markup:
    """A table whose texts may be long."""
    return markdown_table(table) if suffix == "md" else html_table(table, "wraps")


def _figures_show(summary: Summary) -> str:
    """A note that figures show only a part of the rows; empty if they show all."""
    shown, names = figures.part(summary), {summary.short(group) for group in summary.groups}
    if shown is summary:
        return ""
    most, rest = figures.MOST_NAMES, sorted(names - {summary.short(group) for group in shown.groups})
    more = [f"{len(rest) - MOST_LEFT_OUT} more"] if len(rest) > MOST_LEFT_OUT else []
    return summary.words(
        f"Figures show the {most} most accurate of {len(names)} rows of the matrix, or the fastest. Not in them: "
        f"{listed([*rest[:MOST_LEFT_OUT], *more])}."
    )


def _progress(summary: Summary) -> str:
    """A note on how many planned cells and pairs have ended; empty for a complete run."""
    said = [*summary.progress]
    said += ["missing cells are listed at the end"] if said and summary.missing else []
    return "; ".join(said)


def _overhead(summary: Summary) -> str:
    values = [r.overhead_seconds for _, r in summary.records if r.overhead_seconds is not None]
    if not values:
        return ""
    series = pd.Series(values)
    return f"median {series.median():.2f} s, largest {series.max():.2f} s"
