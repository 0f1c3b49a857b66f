"""Draws the two figures that a page begins with: what accuracy costs, and what training only the head changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator, PercentFormatter

from bench.analysis.groups import Group
from bench.analysis.metrics import METRICS, RATED_BY
from bench.analysis.picking import seconds_to_train
from bench.analysis.recommend import TIE
from bench.analysis.speedups import SpeedUp
from bench.report.naming import PointName, name_points
from bench.report.palette import COLOURS, GREY, INK, markers
from bench.report.pick_text import duration
from bench.report.summary import Summary
from bench.report.tables import show
from tl.regimes import REGIMES

WIDTH = 4.6
"""Inches of a figure without its labels. At the width of a phone its letters still have 11 pixels."""
NARROW = 1.8
"""Inches of a figure that has names on both sides."""
LETTERS = 11
MOST_LABELS = 6
"""Largest number of points that have their names beside them."""
FEW_POINTS = 3
"""Up to so many points all have names; of more, those that none beats."""
LONGEST_NAME = 22
"""Letters of a name beside a point; the middle of a longer one is left out."""
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000, 86400)
"""Seconds that stand at the axis of times."""
_FEWEST_TICKS, _MOST_TICKS = 3, 6
_MARK, _RING = 4.0, 8.5
"""Points from the middle of a mark, and of the ring around the recommended one, to their edges."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A group on the plane of accuracy and time."""

    number: int
    """Its place among the groups of the summary."""
    group: Group
    seconds: float
    accuracy: float


def places(summary: Summary) -> list[Place]:
    """The groups with an accuracy and a time to train to the end, with extraction and quantisation."""
    return [
        Place(number=number, group=group, seconds=seconds, accuracy=group.accuracy)
        for number, group in enumerate(summary.groups)
        if group.accuracy is not None and (seconds := seconds_to_train(group))
    ]


def front_of(several: Sequence[Place]) -> list[Place]:
    """Those that no other beats in accuracy and time, the fastest first. Controls are none of them."""
    found: list[Place] = []
    able = [one for one in several if not REGIMES[one.group.config.regime].control and one.group.beats_same_answer]
    for one in sorted(able, key=lambda one: (one.seconds, -one.accuracy)):
        if not found or one.accuracy > found[-1].accuracy:
            found.append(one)
    return found


def _fronts(summary: Summary) -> list[list[Place]]:
    """The front of each device of each run."""
    by_place: dict[tuple[str, str], list[Place]] = {}
    for one in places(summary):
        by_place.setdefault((one.group.run, one.group.cell.device), []).append(one)
    return [front for some in by_place.values() if (front := front_of(some))]


def front(summary: Summary) -> Figure | None:
    """Accuracy against the time of a whole training, with the step line of those that none beats."""
    several = places(summary)
    if not several:
        return None
    figure, axes = _blank()
    fronts = _fronts(summary)
    best = {one.number for some in fronts for one in some}
    picks = {id(choice.pick) for choice in summary.choices}
    for one in sorted(several, key=lambda one: one.number in best):
        colour = COLOURS[0] if one.number in best else GREY
        shape: dict[str, Any] = {"marker": markers()[one.group.config.regime], "ls": "", "color": colour}
        _seeds(axes, one, shape)
        filled = {"mfc": "none", "mew": 1.4} if REGIMES[one.group.config.regime].control else {"mew": 0}
        (point,) = axes.plot([one.seconds], [one.accuracy], ms=2 * _MARK, zorder=3, **shape, **filled)
        point.set_gid(f"point-{one.number}")
        if id(one.group) in picks:
            axes.plot([one.seconds], [one.accuracy], marker="o", ms=2 * _RING, mfc="none", mec=INK, mew=1.6, zorder=2)
    for some in fronts:
        axes.step([one.seconds for one in some], [one.accuracy for one in some], where="post", color=COLOURS[0], lw=1.2)
    axes.set_xscale("log")
    low, high = (math.log(end([one.seconds for one in several])) for end in (min, max))
    span = max(high - low, math.log(2))
    few = len(several) <= FEW_POINTS
    right = 0.9 if few and len(several) > len(best) else 0.1  # those that are beaten have their names there
    axes.set_xlim(math.exp(low - 0.9 * span), math.exp(high + right * span))  # names stand at the left of their points
    axes.margins(y=0.14)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", color=GREY, alpha=0.25, lw=0.8)
    _axis_of_times(axes)
    lowest, highest = axes.get_ylim()
    marks = [round(tick, 9) for tick in axes.get_yticks()]
    axes.set_yticks([mark for mark in marks if max(0.0, lowest) <= mark <= min(1.0, highest)])
    axes.set_ylim(lowest, highest)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if _wide(axes) else 1))
    axes.set_xlabel("time to train")
    axes.set_ylabel(summary.words("accuracy after the last epoch"))
    shown = _labelled(several if few else [one for some in fronts for one in some], picks)
    all_groups = [one.group for one in several]
    name_points(
        axes,
        [
            PointName(
                x=one.seconds,
                y=one.accuracy,
                text=_label(one.group, all_groups, summary),
                right=one.number not in best,  # what beats it lies to its upper left
                needed=few or id(one.group) in picks,
            )
            for one in shown
        ],
        [(one.seconds, one.accuracy, _RING if id(one.group) in picks else _MARK) for one in several],
        [[(one.seconds, one.accuracy) for one in some] for some in fronts],
    )
    return figure


def _seeds(axes: Axes, one: Place, shape: dict[str, Any]) -> None:
    """Faint dots, one for each seed, if there are several."""
    values = one.group.values(RATED_BY)
    if len(values) < 2:
        return
    seconds = {
        record.cell.config.seed: record.result.training_seconds + record.result.once_seconds
        for record in one.group.records
        if record.result
    }
    both = [(seconds[seed], value) for seed, value in values.items() if seconds.get(seed)]
    axes.plot(*zip(*both, strict=True), ms=3.5, alpha=0.35, mew=0, zorder=1, **shape)


def _labelled(several: Sequence[Place], picks: set[int]) -> list[Place]:
    """The points that have names, the first ones the best places.

    First come the recommended ones and both ends, then others from the most accurate.
    """
    ranked = sorted(several, key=lambda one: -one.accuracy)
    first = [one for one in ranked if id(one.group) in picks]
    ordered = {one.number: one for one in (*first, *ranked[:1], *ranked[-1:], *ranked)}
    return list(ordered.values())[:MOST_LABELS]


def _label(group: Group, others: Sequence[Group], summary: Summary) -> str:
    return f"{shortened(short_among(group, others, summary))}\n{group.config.regime}"


def short_among(group: Group, others: Sequence[Group], summary: Summary) -> str:
    """Its short name, without the execution and the device that all others have, too."""
    alike = {
        "device": len({one.cell.device for one in others}) == 1,
        "execution": len({one.config.execution for one in others}) == 1,
    }
    return summary.short_name(group.cell, group.run, *(name for name, same in alike.items() if same))


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """The name, or its beginning and end if it is too long to stand beside a point."""
    if len(name) <= longest:
        return name
    end = longest // 3
    return f"{name[: longest - end - 1]}…{name[-end:]}"


def _axis_of_times(axes: Axes) -> None:
    low, high = axes.get_xlim()
    inside = [tick for tick in _TICKS if low <= tick <= high]
    while len(inside) > _MOST_TICKS:
        inside = inside[::2]
    if len(inside) < _FEWEST_TICKS:
        middle = math.sqrt(low * high)
        axes.set_xlim(min(low, middle / 2), max(high, middle * 2))
        low, high = axes.get_xlim()
        inside = [tick for tick in _TICKS if low <= tick <= high] or [middle]
    axes.xaxis.set_major_locator(FixedLocator(inside))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _brief(seconds)))
    axes.xaxis.set_minor_locator(NullLocator())


def _brief(seconds: float) -> str:
    for size, name in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:g} {name}"
    return f"{seconds:g} s"


def _wide(axes: Axes) -> bool:
    low, high = axes.get_ylim()
    return high - low > 0.04


def front_message(summary: Summary) -> str:
    """What the figure shows, in a sentence."""
    fronts = _fronts(summary)
    if not fronts:
        return summary.words("Nothing here is more accurate than the same answer for all images")
    if len(fronts) > 1:
        return summary.words(f"What accuracy costs on {len(fronts)} devices")
    first, last = fronts[0][0], fronts[0][-1]
    if first is last:
        rated = [one.group for one in places(summary)]
        name = f"{short_among(first.group, rated, summary)}, {first.group.config.regime}"
        others = len(rated) > 1
        return f"{name} {summary.words('is the most accurate and the fastest') if others else 'is alone'}"
    accuracies, times = (
        (show(one.group, RATED_BY) for one in (first, last)),
        (duration(first.seconds), duration(last.seconds)),
    )
    low, high = accuracies
    return f"From {low} in {times[0]} to {high} in {times[1]}: {len(fronts[0])} combinations are worth their time"


def front_table(summary: Summary) -> pd.DataFrame:
    """The numbers behind `front`, one row per group."""
    best = {one.number for some in _fronts(summary) for one in some}
    return pd.DataFrame(
        {
            "combination": f"{summary.short(one.group)}, {one.group.config.regime}",
            "device": one.group.cell.device,
            summary.words("accuracy"): one.accuracy,
            "seconds to train": one.seconds,
            "on the front": one.number in best,
        }
        for one in places(summary)
    )


@dataclass(frozen=True, kw_only=True)
class Slope:
    """What training only the head changes, by one measure."""

    of: Callable[[Group], float | None]
    axis: str
    show: Callable[[float], str]
    ratio: bool
    """True for a measure with a logarithmic axis."""


SLOPES: dict[str, Slope] = {
    "time": Slope(of=seconds_to_train, axis="time to train", show=duration, ratio=True),
    "memory": Slope(
        of=lambda group: group.typical("peak_memory_bytes"),
        axis="peak memory",
        show=METRICS["peak_memory_bytes"].say,
        ratio=True,
    ),
    "accuracy": Slope(
        of=lambda group: group.accuracy, axis="accuracy after the last epoch", show=METRICS[RATED_BY].show, ratio=False
    ),
}
"""What the slope chart can show, the first one first."""


def _slopes(summary: Summary, slope: Slope) -> list[tuple[SpeedUp, float, float]]:
    """Comparisons with their two values, fine-tuned first: those of one way to train only the head."""
    regimes = [row.fast.config.regime for row in summary.speed_ups]
    chosen = "frozen" if "frozen" in regimes else next(iter(regimes), "")
    found = []
    for row in summary.speed_ups:
        before, after = slope.of(row.slow), slope.of(row.fast)
        if row.fast.config.regime != chosen or before is None or after is None:
            continue
        if not slope.ratio or min(before, after) > 0:
            found.append((row, before, after))
    return found


_LEAST = {True: 4.0, False: 0.1}
"""Ratio, or else difference, from which a slope may fill its figure; a smaller one is to look small."""


def _ends(values: Sequence[float], *, ratio: bool) -> tuple[float, float]:
    """Ends of an axis that has room for these values, and shows at least `_LEAST`."""
    at, back = (math.log, math.exp) if ratio else (float, float)
    low, high = at(min(values)), at(max(values))
    least = at(_LEAST[ratio])
    half = max(1.16 * (high - low), least) / 2
    return back((low + high) / 2 - half), back((low + high) / 2 + half)


def slopes(name: str) -> Callable[[Summary], Figure | None]:
    """The figure of one of `SLOPES`: a line for each backbone, from fine-tuning to training only the head."""
    slope = SLOPES[name]

    def function(summary: Summary) -> Figure | None:
        rows = _slopes(summary, slope)
        if not rows:
            return None
        figure, axes = _blank(len(rows), NARROW)
        picks = {id(choice.pick) for choice in summary.choices}
        axes.set_xlim(-0.02, 1.02)
        if slope.ratio:
            axes.set_yscale("log")
        for row, before, after in rows:
            chosen = id(row.fast) in picks or id(row.slow) in picks
            colour, width = (COLOURS[0], 2.4) if chosen else (GREY, 1.4)
            axes.plot(
                [0, 1],
                [before, after],
                color=colour,
                lw=width,
                marker="o",
                ms=6,
                zorder=3 if chosen else 2,
                clip_on=False,
            )
        axes.set_xticks([0, 1], ["fine-tuning", "only the head"])
        axes.set_ylabel("")
        axes.yaxis.set_major_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.spines["left"].set_visible(False)
        low, high = _ends([value for _, *values in rows for value in values], ratio=slope.ratio)
        axes.set_ylim(low, high)
        both = [group for row, _, _ in rows for group in (row.fast, row.slow)]
        names = [shortened(short_among(row.fast, both, summary)) for row, _, _ in rows]
        starts = [f"{name}  {slope.show(before)}" for name, (_, before, _) in zip(names, rows, strict=True)]
        ends = [f"{slope.show(after)}{change(slope, before, after)}" for _, before, after in rows]
        _beside(axes, [(before, text) for (_, before, _), text in zip(rows, starts, strict=True)], right=False)
        _beside(axes, [(after, text) for (_, _, after), text in zip(rows, ends, strict=True)], right=True)
        return figure

    return function


def change(slope: Slope, before: float, after: float) -> str:
    """What follows the second value of a line: how many times less it is than the first, or by how much it differs."""
    if not slope.ratio:
        return f", {100 * (after - before):+.1f}"
    times, word = (before / after, "less") if before > after else (after / before, "more")
    return ", about the same" if times < TIE else f", {times:.1f}× {word}"


def _beside(axes: Axes, named: Sequence[tuple[float, str]], *, right: bool) -> None:
    """Write texts beside the ends of lines, none over another or below the axis, where its own words stand."""
    axes.get_xlim(), axes.get_ylim()  # settles the scales, which are otherwise settled when drawn
    to_points = 72 / axes.figure.get_dpi()
    gap = 1.35 * LETTERS
    ordered = sorted(named)
    heights = [float((axes.transData.transform((0, value)) * to_points)[1]) for value, _ in ordered]
    bottom = float((axes.transAxes.transform((0, 0)) * to_points)[1])
    for (value, text), place, there in zip(ordered, spread(heights, gap, bottom + gap / 2), heights, strict=True):
        axes.annotate(
            text,
            (1 if right else 0, value),
            xytext=(12 if right else -12, place - there),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=LETTERS,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 4},
        )


def spread(values: Sequence[float], gap: float, least: float = -math.inf) -> list[float]:
    """Ascending values, moved as little as is needed to be `gap` apart and none below `least`, in the same order.

    This is the least-squares fit of ascending values to those without their gaps (isotonic regression).
    """
    from scipy.optimize import isotonic_regression

    steps = [gap * number for number in range(len(values))]
    fitted = isotonic_regression([value - step for value, step in zip(values, steps, strict=True)]).x
    return [max(float(value), least) + step for value, step in zip(fitted, steps, strict=True)]


def slope_message(name: str) -> Callable[[Summary], str]:
    """What the figure of one of `SLOPES` shows, in a sentence."""
    slope = SLOPES[name]

    def function(summary: Summary) -> str:
        rows = _slopes(summary, slope)
        if slope.ratio:
            shares = [100 * after / before for _, before, after in rows]
            ends = "–".join(dict.fromkeys(f"{end:.0f}" for end in (min(shares), max(shares))))
            what = "time to train" if name == "time" else "memory"
            return f"Training only the head takes {ends}% of the {what}"
        changes = [100 * (after - before) for _, before, after in rows]
        ends = " to ".join(dict.fromkeys(f"{end:+.1f}" for end in (min(changes), max(changes))))
        return summary.words(f"Training only the head changes accuracy by {ends} points")

    return function


def slope_table(name: str) -> Callable[[Summary], pd.DataFrame]:
    """The numbers behind the figure of one of `SLOPES`, one row per backbone."""
    slope = SLOPES[name]

    def function(summary: Summary) -> pd.DataFrame:
        return pd.DataFrame(
            {"backbone": summary.short(row.fast), "fine-tuning": before, row.fast.config.regime: after}
            for row, before, after in _slopes(summary, slope)
        )

    return function


def _blank(rows: int = 0, width: float = WIDTH) -> tuple[Figure, Axes]:
    with matplotlib.rc_context({"font.size": LETTERS}):
        figure = Figure(figsize=(width, max(3.4, 1.0 + 0.28 * rows)))
        axes = figure.subplots()
    axes.tick_params(labelsize=LETTERS)
    axes.xaxis.label.set_fontsize(LETTERS)
    axes.yaxis.label.set_fontsize(LETTERS)
    return figure, axes
