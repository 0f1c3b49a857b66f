"""Writes a report: Markdown with pictures beside it, and one self-contained HTML file."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from bench.report import figures, protocol
from bench.report.answers import answers, overalls
from bench.report.pages import environment_for, html_table, markdown_table, style
from bench.report.summary import Summary
from bench.report.tables import cells_table, claims_table, comparison_table
from bench.stats import MIN_SAMPLES
from tl.cache import write_atomic
from tl.errors import UserError
from tl.regimes import REGIMES

LEAKAGE = (
    "These ants and bees are a small part of ImageNet, so a backbone pretrained on ImageNet may have seen them: "
    "accuracies are higher than on images that are new to it."
)
CONTROLS = "Controls are yardsticks: they are not recommended, and not compared with fine-tuning."
TRAINING_BELOW_VALIDATION = (
    "Training accuracy is often below validation accuracy: it is a running figure over the epoch, on cropped and "
    "flipped images, and with the training mode of BatchNorm and dropout."
)


def write_report(summary: Summary, folder: Path) -> tuple[Path, Path]:
    """Write `folder/NAME.md` (pictures in `folder/NAME/`) and `folder/NAME.html`; returns both paths.

    NAME is the summary's. A report is derived from records and replaces an older one of its name. Raises
    `UserError` when the folder can't be written.
    """
    name = summary.name
    drawn = figures.draw_svg(summary)
    try:
        (folder / name).mkdir(parents=True, exist_ok=True)
        figures.save_png(summary, folder / name)
        pages = {
            suffix: environment_for(suffix)
            .get_template(f"report.{suffix}.j2")
            .render(**_content(summary, suffix), figures=drawn, style=style())
            for suffix in ("md", "html")
        }
        paths = {suffix: folder / f"{name}.{suffix}" for suffix in pages}
        for suffix, page in pages.items():
            write_atomic(paths[suffix], page)
    except OSError as error:
        raise UserError(f"{folder}: the report can't be written: {error.strerror}") from error
    return paths["md"], paths["html"]


def _fence(lines: list[str]) -> str:
    """A Markdown fence longer than any run of backticks in what it encloses."""
    runs = re.findall("`+", "\n".join(lines))
    return "`" * max(3, *(len(run) + 1 for run in runs)) if runs else "```"


def _with_code(text: str) -> Markup:
    """Text for HTML, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text)))


def _content(summary: Summary, suffix: str) -> dict[str, Any]:
    as_table = markdown_table if suffix == "md" else html_table
    return {
        "summary": summary,
        "answers": answers(summary) if suffix == "md" else [_with_code(answer) for answer in answers(summary)],
        "protocol": protocol,
        "min_samples": MIN_SAMPLES,
        "cells": as_table(cells_table(summary)),
        "comparisons": as_table(comparison_table(summary)) if summary.comparisons else "",
        "claims": as_table(claims_table(summary)) if summary.findings else "",
        "claims_overall": overalls(summary),
        "leakage": LEAKAGE if any(m.dataset.name == "hymenoptera" for _, m in summary.runs) else "",
        "controls": _controls(summary),
        "training_below": TRAINING_BELOW_VALIDATION,
        "overhead": _overhead(summary),
        "fence": _fence(summary.commands),
    }


def _controls(summary: Summary) -> str:
    """What the controls in the table are; empty where there are none."""
    there = {group.config.regime for group in summary.groups}
    told = [f"{name}: {regime.summary}." for name, regime in REGIMES.items() if regime.control and name in there]
    return " ".join([CONTROLS, *told]) if told else ""


def _overhead(summary: Summary) -> str:
    values = [r.overhead_seconds for _, r in summary.records if r.overhead_seconds is not None]
    if not values:
        return ""
    series = pd.Series(values)
    return f"median {series.median():.2f} s, largest {series.max():.2f} s"
