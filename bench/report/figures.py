"""Figures of a report, drawn with seaborn. One colour a regime, the same everywhere."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.claims import HALF_THE_TIME
from bench.groups import Group
from bench.report.summary import Summary
from tl.regimes import REGIMES

_INK = "#123456"
"""Stands for the text colour; `draw_svg` puts the page's own in its place, so that figures follow light and dark."""
PAPER_INK = "#222222"


def _style(ink: str) -> dict[Any, Any]:
    coloured = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    } | dict.fromkeys(coloured, ink)


def colours() -> dict[str, tuple[float, float, float]]:
    """A colour for each regime, from a palette that colour-blind readers can tell apart."""
    return dict(zip(REGIMES, sns.color_palette("colorblind", len(REGIMES)), strict=True))


def draw_svg(summary: Summary) -> dict[str, tuple[str, str]]:
    """All figures that the records allow: name → caption and an `<svg>` element to put into a page.

    Transparent, in the page's text colour, scaling to the width that it is given.
    """
    drawn = {}
    with matplotlib.rc_context({**_style(_INK), "svg.hashsalt": "report"}):
        for name, (caption, function) in FIGURES.items():
            if figure := function(summary):
                text = io.StringIO()
                figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
                svg = text.getvalue()[text.getvalue().index("<svg") :].replace(_INK, "currentColor")
                drawn[name] = (caption, re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2))
    return drawn


def save_png(summary: Summary, folder: Path) -> None:
    """The same figures as `folder/NAME.png`, on white, for Markdown."""
    with matplotlib.rc_context(_style(PAPER_INK)):
        for name, (_, function) in FIGURES.items():
            if figure := function(summary):
                figure.savefig(folder / f"{name}.png", dpi=120, facecolor="white", metadata={"Software": None})


def _blank(rows: int = 0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, max(2.4, 1.2 + 0.42 * rows)), layout="constrained")
    return figure, figure.subplots()


def _speed_up(summary: Summary) -> Figure | None:
    rows = [(c.fast, c.speed_up, c.finding.predicted) for c in summary.comparisons if c.speed_up]
    if not rows:
        return None
    figure, axes = _blank(len(rows))
    axes.axvspan(*HALF_THE_TIME.bounds, color="tab:gray", alpha=0.18, lw=0)
    ink = matplotlib.rcParams["text.color"]
    axes.axvline(1, color=ink, lw=0.8, ls=":")
    several = len({group.config.regime for group, _, _ in rows}) > 1
    for place, (group, ratio, predicted) in enumerate(rows):
        low, high = ratio.low or ratio.value, ratio.high or ratio.value
        ends = [[ratio.value - low], [high - ratio.value]]
        axes.errorbar([ratio.value], [place], xerr=ends, fmt="o", color=colours()[group.config.regime], capsize=3)
        if predicted:
            axes.plot([predicted], [place], marker="d", mfc="none", color=ink, ls="")
    names = [summary.short(group) + (f" · {group.config.regime}" if several else "") for group, _, _ in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlim(left=min(0.9, *(0.95 * (ratio.low or ratio.value) for _, ratio, _ in rows)))
    axes.set_xlabel("times faster than fine-tuning, an epoch with validation")
    return figure


def _accuracy_against_time(summary: Summary) -> Figure | None:
    rows = [
        {
            "regime": group.config.regime,
            "backbone": summary.short(group),
            "epoch seconds": group.median(lambda r: r.epoch_seconds),
            "best validation accuracy": group.accuracy,
        }
        for group in summary.groups
    ]
    table = pd.DataFrame(rows)
    if table.empty or not (table := table.dropna()).shape[0]:
        return None
    figure, axes = _blank(5)
    sns.scatterplot(
        table,
        x="epoch seconds",
        y="best validation accuracy",
        hue="regime",
        style="backbone",
        palette=colours(),
        s=70,
        ax=axes,
    )
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.set_xlim(left=0)
    _legend_beside(axes)
    return figure


def _legend_beside(axes: Axes) -> None:
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.02), borderaxespad=0)


def _bars(figure_of: Callable[[Group], float | None], label: str) -> Callable[[Summary], Figure | None]:
    def function(summary: Summary) -> Figure | None:
        rows = [{"regime": g.config.regime, "backbone": summary.short(g), label: figure_of(g)} for g in summary.groups]
        table = pd.DataFrame(rows)
        if table.empty or not (table := table.dropna()).shape[0]:
            return None
        figure, axes = _blank(table["backbone"].nunique() * table["regime"].nunique() // 2 + 2)
        order = [name for name in REGIMES if name in set(table["regime"])]
        sns.barplot(table, x=label, y="backbone", hue="regime", hue_order=order, palette=colours(), ax=axes)
        axes.set_ylabel("")
        axes.legend(fontsize=8, title="")
        return figure

    return function


def _curves(quantity: str, label: str, *, accuracy: bool) -> Callable[[Summary], Figure | None]:
    def function(summary: Summary) -> Figure | None:
        rows = [
            {"regime": g.config.regime, "backbone": summary.short(g), "epoch": row.epoch, label: getattr(row, quantity)}
            for g in summary.groups
            for result in g.results
            if result.accuracy_counts or not accuracy
            for row in result.epochs
        ]
        table = pd.DataFrame(rows)
        if table.empty or not (table := table.dropna()).shape[0]:
            return None
        figure, axes = _blank(5)
        several = table["backbone"].nunique() > 1
        sns.lineplot(
            table,
            x="epoch",
            y=label,
            hue="regime",
            style="backbone" if several else None,
            palette=colours(),
            errorbar=("sd", 1),
            marker="o",
            markersize=4,
            ax=axes,
        )
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        if accuracy:
            axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        _legend_beside(axes)
        return figure

    return function


FIGURES: dict[str, tuple[str, Callable[[Summary], Figure | None]]] = {
    "speed-up": (
        "How many times faster an epoch is when only the head is trained. Dots: measured, with the 95% interval over "
        "seeds where there are enough of them. Diamonds: predicted from the counted work. "
        f"Grey: the claim, {HALF_THE_TIME.region}. Dotted: no difference.",
        _speed_up,
    ),
    "accuracy-time": (
        "Best validation accuracy against the time of an epoch; up and left is better.",
        _accuracy_against_time,
    ),
    "time": (
        "Time of an epoch, training plus validation, median of all epochs but the first.",
        _bars(lambda g: g.median(lambda r: r.epoch_seconds), "seconds an epoch"),
    ),
    "memory": (
        "Peak memory: on CUDA what torch allocated, elsewhere resident memory above the baseline.",
        _bars(lambda g: None if (v := g.median(lambda r: r.peak_memory_bytes)) is None else v / 2**20, "MiB"),
    ),
    "accuracy-curve": (
        "Validation accuracy by epoch; with several seeds the mean, and ± one standard deviation as a band.",
        _curves("val_accuracy", "validation accuracy", accuracy=True),
    ),
    "loss-curve": (
        "Training loss by epoch; with several seeds the mean, and ± one standard deviation as a band.",
        _curves("train_loss", "training loss", accuracy=False),
    ),
}
