"""Draws the figures of a report with seaborn. A regime has the same colour in all of them."""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from bench.analysis.claims import HALF_THE_TIME
from bench.analysis.groups import Group, most_accurate
from bench.analysis.metrics import METRICS, headline, listed
from bench.console import tell
from bench.report import hero
from bench.report.bars import Bar, draw_bars
from bench.report.curves import curves
from bench.report.palette import INK, colours
from bench.report.palette import PARTS as PART_COLOURS
from bench.report.summary import Summary
from tl.regimes import REGIMES
from tl.results import PHASES
from tl.text import visible

MOST_CLASSES = 30
"""Largest number of classes for which a confusion matrix is drawn."""
MOST_NAMES = 12
"""Largest number of backbones (or other row names) in a figure; more would be unreadable."""
MOST_BARS = 60
"""Largest number of bars in a figure, if it has several backbones; more would fill pages."""


@dataclass(frozen=True, kw_only=True)
class RenderedFigure:
    """One figure."""

    caption: str
    svg: str
    """An `<svg>` element on white, for a file of its own."""
    png: bytes
    pdf: bytes = b""
    """Empty unless it was asked for."""
    message: str = ""
    """What it shows, in a sentence that stands above it; empty for most."""
    csv: str = ""
    """The numbers behind it; empty for most."""

    @property
    def inline(self) -> str:
        """The `<svg>` element for a page: transparent, in the page's text colour, as wide as its container."""
        text = self.svg.replace(INK, "currentColor").replace(_WHITE, "", 1)
        return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)

    @property
    def least(self) -> int:
        """Width in CSS pixels from which its smallest letters have `LETTERS` pixels."""
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", self.svg)]
        found = re.search(r'viewBox="0 0 ([\d.]+)', self.svg)
        return math.ceil(float(found[1]) * LETTERS / min(sizes)) if found and sizes else 0


LETTERS = 11
"""Pixels that the letters of a figure have at least, also on a phone, where a wide figure is scrolled."""
_WHITE = ' style="background: white"'
_IN_PDF = {"Creator": "tl-bench", "Producer": None, "CreationDate": None}
"""What a PDF says of itself: who made it, by which a later report knows it as its own, and nothing that changes."""


def _style() -> dict[Any, Any]:
    coloured = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a `$` in a name is not mathematics
        "svg.hashsalt": "report",  # fixed, so that the same figure has the same text every time
        "pdf.fonttype": 42,  # TrueType, which journals accept
        "font.family": "sans-serif",
        "font.size": hero.LETTERS,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    } | dict.fromkeys(coloured, INK)


def draw(summary: Summary, *, pdf: bool = False) -> dict[str, RenderedFigure]:
    """Draw all figures that the records allow, by name. See `part` for runs with many backbones.

    With `pdf` they are drawn for paper too, which takes as long as all else, since each has its fonts.
    """
    rendered, some, few = {}, part(summary), part(summary, MOST_BARS)
    with matplotlib.rc_context(_style()), _boxes_told():
        for name, (caption, function) in FIGURES.items():
            shown = summary if name in WHOLE else few if name in BARS else some
            if figure := function(shown):
                text, pixels, paper = io.StringIO(), io.BytesIO(), io.BytesIO()
                # `tight`: a figure grows with its names and is never smaller than them.
                whole: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.05}
                figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None}, **whole)
                figure.savefig(pixels, format="png", dpi=120, facecolor="white", metadata={"Software": None}, **whole)
                if pdf:
                    figure.savefig(paper, format="pdf", metadata=_IN_PDF, **whole)
                svg = text.getvalue()[text.getvalue().index("<svg") :].replace("<svg", f"<svg{_WHITE}", 1)
                rendered[name] = RenderedFigure(
                    caption=_caption(caption, shown) + (_fewer(few, some) if name in BARS else ""),
                    svg=svg,
                    png=pixels.getvalue(),
                    pdf=paper.getvalue(),
                    message=MESSAGES[name](shown) if name in MESSAGES else "",
                    csv=TABLES[name](shown).to_csv(index=False, lineterminator="\n") if name in TABLES else "",
                )
    return rendered


_NO_GLYPH = re.compile(r"Glyph (\d+) .* missing from font")
"""The warning of matplotlib that no font has a character; it comes again for each text and file."""


@contextlib.contextmanager
def _boxes_told() -> Iterator[None]:
    """Say once which characters no font has. A page's own figures are text, for which a browser finds a font."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=_NO_GLYPH.pattern)
        yield
    missing: dict[str, None] = {}
    for one in caught:
        if found := _NO_GLYPH.match(str(one.message)):
            missing[chr(int(found[1]))] = None
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if missing:
        some = "".join(list(missing)[:_MOST_SHOWN]) + ("…" if len(missing) > _MOST_SHOWN else "")
        tell(f"WARNING: no font here has {some}: figures show boxes instead in PNG and PDF files, not on the page")


_MOST_SHOWN = 20
"""Largest number of such characters that are named."""


def _caption(text: str, summary: Summary) -> str:
    """A caption of `FIGURES` with the metrics that the heat map shows in place of `{headline}`."""
    shown = listed([f"{METRICS[name].over_seeds} {METRICS[name].matters}" for name in _in_heat(summary)])
    return summary.words(text.replace("{headline}", shown[:1].upper() + shown[1:]))


def _in_heat(summary: Summary) -> list[str]:
    """The headline metrics that some group has."""
    return [name for name in headline() if any(group.values(name) for group in summary.groups)]


def _fewer(shown: Summary, usual: Summary) -> str:
    """What a caption adds if a figure has not even the backbones that the others have."""
    count, of = (len({one.short(group) for group in one.groups}) for one in (shown, usual))
    return f" More bars have no room here: these are the {count} most accurate backbones." if count < of else ""


def part(summary: Summary, most: float = math.inf) -> Summary:
    """The summary with the groups that figures show: of many backbones, the most accurate, then the fastest.

    With `most` there are no more groups than that, but at least all of one backbone.
    """
    names: dict[str, tuple[float, float]] = {}
    for group in summary.groups:
        rank = (-(group.accuracy or 0.0), group.seconds)
        names[summary.short(group)] = min(rank, names.get(summary.short(group), rank))
    of_name = Counter(map(summary.short, summary.groups))
    ranked = sorted(names, key=lambda name: names[name])[:MOST_NAMES]
    rows = list(accumulate(of_name[name] for name in ranked))
    chosen = {name for name, so_far in zip(ranked, rows, strict=True) if so_far <= most} or set(ranked[:1])
    if len(chosen) == len(names):
        return summary
    return replace(
        summary,
        groups=tuple(group for group in summary.groups if summary.short(group) in chosen),
        speed_ups=tuple(row for row in summary.speed_ups if summary.short(row.fast) in chosen),
    )


_USUAL_NAME = 50
"""Letters of a row's name that have room in a figure of the usual width."""


def _blank(rows: float = 0, names: Collection[str] = ()) -> tuple[Figure, Axes]:
    """An empty figure for so many rows. It is wider if the names of rows are long."""
    width = hero.WIDTH + 0.09 * max(0, max(map(len, names), default=0) - _USUAL_NAME)
    figure = Figure(figsize=(width, max(2.4, 1.2 + 0.42 * rows)), layout="constrained")
    return figure, figure.subplots()


def _speed_up(summary: Summary) -> Figure | None:
    rows = [(c.fast, c.speed_up, c.finding.predicted) for c in summary.speed_ups if c.speed_up]
    if not rows:
        return None
    several = len({group.config.regime for group, _, _ in rows}) > 1
    names = [" · ".join([summary.short(group), *([group.config.regime] if several else [])]) for group, _, _ in rows]
    figure, axes = _blank(len(rows), names)
    axes.axvspan(*HALF_THE_TIME[0].bounds, color="tab:gray", alpha=0.18, lw=0)
    axes.axvline(1, color=INK, lw=0.8, ls=":")
    for place, (group, ratio, predicted) in enumerate(rows):
        low, high = ratio.low or ratio.value, ratio.high or ratio.value
        ends = [[ratio.value - low], [high - ratio.value]]
        axes.errorbar([ratio.value], [place], xerr=ends, fmt="o", color=colours()[group.config.regime], capsize=3)
        if predicted:
            axes.plot([predicted], [place], marker="d", mfc="none", color=INK, ls="")
    axes.set_yticks([place - 0.16 for place in range(len(rows))], names, ha="left", va="bottom")
    axes.tick_params(axis="y", length=0, pad=-2)  # names stand above their dots, so that both fit a phone
    axes.set_ylim(len(rows) - 0.6, -0.75)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(left=min(1.0, *(0.95 * (ratio.low or ratio.value) for _, ratio, _ in rows)))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    axes.set_xlabel("times faster than fine-tuning,\nper epoch with validation")
    return figure


def _bars(metric: str, label: str) -> Callable[[Summary], Figure | None]:
    """A bar for each group, in the unit that is shown and the colour of its regime. `label` is that of the axis."""

    def function(summary: Summary) -> Figure | None:
        known = [(group, value) for group in summary.groups if (value := group.typical(metric)) is not None]
        shown = [
            Bar(
                backbone=summary.short(group),
                name=group.config.regime,
                parts=((value * METRICS[metric].scale, colours()[group.config.regime]),),
                text=METRICS[metric].show(value),
            )
            for group, value in known
        ]
        return draw_bars(shown, label) if shown else None

    return function


PARTS = {
    "parameter_bytes": "parameters",
    "gradient_bytes": "gradients",
    "optimizer_state_bytes": "optimiser",
    "saved_activation_bytes": "saved for backward",
}


def _stacked(
    parts_of: Callable[[Group], dict[str, float] | None], names: Sequence[str], label: str
) -> Callable[[Summary], Figure | None]:
    """A bar for each group, stacked from parts. Groups with unknown parts have no bar, and unused parts no key."""

    def function(summary: Summary) -> Figure | None:
        rows = [(group, parts) for group in summary.groups if (parts := parts_of(group))]
        if not rows:
            return None
        paint = dict(zip(names, PART_COLOURS, strict=False))
        shown = [
            Bar(
                backbone=summary.short(group),
                name=group.config.regime,
                parts=tuple((parts[name], colour) for name, colour in paint.items() if parts.get(name)),
            )
            for group, parts in rows
        ]
        used = {name for _, parts in rows for name, value in parts.items() if value}
        return draw_bars(shown, label, {name: colour for name, colour in paint.items() if name in used})

    return function


def _phases(group: Group) -> dict[str, float] | None:
    values = {name: group.typical(f"{name}_seconds") for name in PHASES}
    return {name: value for name, value in values.items() if value is not None} or None


def _memory_parts(group: Group) -> dict[str, float] | None:
    """MiB of a training step's tensors, and the rest of the measured peak; None if the parts exceed the peak."""
    peak = group.typical("peak_memory_bytes")
    counted = {name: value for key, name in PARTS.items() if (value := group.typical(key)) is not None}
    if peak is None or not counted:
        return None
    scale = METRICS["peak_memory_bytes"].scale
    parts = {name: value * scale for name, value in counted.items()}
    rest = peak * scale - sum(parts.values())
    return parts | {"rest": rest} if rest >= 0 else None  # parts that exceed the peak never existed at the same time


def _heat(summary: Summary) -> Figure | None:
    """One static heat map per headline metric, side by side, for places without a script."""
    regimes = [name for name in REGIMES if any(group.config.regime == name for group in summary.groups)]
    names = list(dict.fromkeys(summary.short(group) for group in summary.groups))
    maps = _in_heat(summary)
    if (len(names) < 2 and len(regimes) < 2) or not maps:
        return None
    width = 1.6 + len(maps) * (0.6 + 0.75 * len(regimes))
    figure = Figure(figsize=(max(5.6, width), 1.6 + 0.38 * len(names)), layout="constrained")
    for place, (axes, name) in enumerate(zip(np.atleast_1d(figure.subplots(1, len(maps))), maps, strict=True)):
        metric = METRICS[name]
        table = pd.DataFrame(index=names, columns=regimes, dtype=float)
        for group in summary.groups:
            if (middle := group.typical(name)) is not None:
                table.loc[summary.short(group), group.config.regime] = middle
        sns.heatmap(
            table,
            annot=table.map(metric.show),
            fmt="",
            annot_kws={"fontsize": 9},
            cmap="crest" if metric.better == "higher" else "crest_r",
            norm=None if metric.compared == "difference" else LogNorm(),
            cbar=False,
            linewidths=1,
            yticklabels=place == 0,
            ax=axes,
        )
        axes.set_title(summary.words(metric.heading), fontsize=10)
        axes.tick_params(axis="x", rotation=40, labelsize=9)
        axes.tick_params(axis="y", rotation=0, labelsize=9)
    return figure


def _confusion(summary: Summary) -> Figure | None:
    """The confusion matrix of the recommended group, summed over its seeds, in percent of each true class."""
    best = summary.choices[0].pick if summary.choices else most_accurate(summary.groups)
    if best is None or best.config.task != "classification":
        return None
    classes = tuple(map(visible, best.results[0].classes))
    if len(classes) > MOST_CLASSES:
        return None
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    for result in best.results:
        np.add.at(counts, (np.array(best.truth), np.array(result.last.labels)), 1)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    texts = np.vectorize(lambda share, count: f"{share:.0%}\n{count}")(shares, counts)
    figure, axes = _blank(1.4 * len(classes))
    sns.heatmap(
        pd.DataFrame(shares, index=classes, columns=classes),
        annot=texts,
        fmt="",
        cmap="crest",
        vmin=0,
        vmax=1,
        cbar=False,
        linewidths=1,
        ax=axes,
    )
    axes.set_title(f"{summary.short(best)} · {best.config.regime}", fontsize=10)
    axes.tick_params(axis="y", rotation=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure


_OF_SLOPE = {
    "time": " These are whole trainings, minutes apart. The claim is about an epoch, and is tested with process pairs."
}
"""Slope → what its caption adds."""
_CURVES = (
    "A panel for each backbone, all with the same axes; with several seeds the mean, and ± one standard deviation as a "
    "band where a panel has few curves. Trainings from random weights in place of pretrained ones are left out. "
    "Controls may lie beyond the axis."
)
FIGURES: dict[str, tuple[str, Callable[[Summary], Figure | None]]] = {
    "front": (
        "Up and left is better; the axis of time is logarithmic. It is the time of the whole training, with extraction "
        "and quantisation. Blue: no other is more accurate in less time. Ring: recommended. Small dots: single seeds. "
        "Each shape is a regime; hollow: controls.",
        hero.front,
    ),
    **{
        f"slope-{name}": (
            "Each line is a backbone, from fine-tuning on the left to training only its head on the right"
            f"{'; the scale is logarithmic' if slope.ratio else ''}. Blue: recommended.{_OF_SLOPE.get(name, '')}",
            hero.slopes(name),
        )
        for name, slope in hero.SLOPES.items()
    },
    "speed-up": (
        "How many times faster an epoch is when only the head is trained. Dots: measured, with the 95% interval over "
        "process pairs, or over seeds, if there are enough of them. Diamonds: predicted from the counted work. "
        f"Grey: the claim, {HALF_THE_TIME[0].region}. Dotted: no difference.",
        _speed_up,
    ),
    "matrix": (
        "{headline} by backbone and regime; darker is better. White: no result, or not known.",
        _heat,
    ),
    "time": (
        "Seconds per epoch, training plus validation: the median of all epochs but the first.",
        _bars("epoch_seconds", "seconds per epoch"),
    ),
    "memory": (
        "Peak memory: on CUDA what torch allocated, elsewhere resident memory above the baseline.",
        _bars("peak_memory_bytes", "MiB"),
    ),
    "phases": (
        "Phases of an epoch: medians over all epochs but the first and over seeds. With CUDA graphs and images on the "
        "GPU, `data` includes `transfer`.",
        _stacked(_phases, PHASES, "seconds per epoch"),
    ),
    "memory-parts": (
        "Parts of peak memory. Parameters, gradients, the optimiser's state and what is saved for the backward pass "
        "are counted. The rest is the measured peak minus their sum: workspaces, batches, the allocator's slack, and "
        "more if not all parts exist at the same moment. There is no bar if the parts exceed the peak.",
        _stacked(_memory_parts, (*PARTS.values(), "rest"), "MiB"),
    ),
    "confusion": (
        "Predictions of the recommended combination, or else of the most accurate one, after the last epoch: percent "
        "of each true class, and below it the number of images, all seeds together.",
        _confusion,
    ),
    "accuracy-curve": (
        f"Validation accuracy by epoch. {_CURVES}",
        curves("val_accuracy", "validation accuracy", percent=True),
    ),
    "loss-curve": (
        f"Training loss by epoch. {_CURVES}",
        curves("train_loss", "training loss", percent=False),
    ),
}
MESSAGES: dict[str, Callable[[Summary], str]] = {
    "front": hero.front_message,
    **{f"slope-{name}": hero.slope_message(name) for name in hero.SLOPES},
}
"""Figure → what it shows, in a sentence; only of the figures that a page begins with."""
TABLES: dict[str, Callable[[Summary], pd.DataFrame]] = {
    "front": hero.front_table,
    **{f"slope-{name}": hero.slope_table(name) for name in hero.SLOPES},
}
"""Figure → the numbers behind it, which a page offers as CSV."""
EARLIER = ("accuracy-time",)
"""Figures of earlier versions, whose files a new report deletes."""
WHOLE = ("front",)
"""Figures that show all groups of a run, however many there are."""
BARS = ("time", "memory", "phases", "memory-parts")
"""Figures with a bar for each group."""
