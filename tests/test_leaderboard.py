"""Tests the leaderboard of a page, the shades of its heat map, and its first two figures."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from bench.analysis.metrics import RATED_BY
from bench.report import hero
from bench.report.figures import draw
from bench.report.heatmap import make_heatmap
from bench.report.leaderboard import aligned, leaderboard, verdicts
from bench.report.summary import Summary, summarise
from tests.runs import RANDOM, record, untrained, write_run


def seeds(backbone: str, regime: str, seconds: float, right: int, count: int = 3) -> list[Any]:
    return [
        record(backbone, regime, seed=seed, seconds=seconds * (1 + seed / 100), right=right + seed)
        for seed in range(count)
    ]


def summary_of(folder: Path, records: list[Any]) -> Summary:
    return summarise([write_run(folder / "r", records)], "r")


@pytest.fixture
def several(tmp_path: Path) -> Summary:
    """A poor, a good and a tied combination, one of random weights, and a control that is far off."""
    records = [
        *seeds("timm:poor", "frozen", 1, 60),
        *seeds("timm:good", "finetune", 20, 96),
        *seeds("timm:good", "frozen", 8, 95),
        record("timm:blind", "frozen", weights=RANDOM),
        untrained("timm:good", right=1),
    ]
    return summary_of(tmp_path, records)


def test_the_best_comes_first_and_ties_are_marked(several: Summary) -> None:
    """What has no accuracy comes last. The verdict stands beside the name."""
    board = leaderboard(several)
    assert board.order == (1, 2, 0, 4, 3) and board.tied == {1, 2}
    assert [column.heading for column in board.columns[:2]] == ["backbone", "verdict"]
    assert verdicts(several) == ["less accurate", "recommended", "tied with the best", "random weights", "control"]


def test_only_columns_that_differ_are_there(several: Summary) -> None:
    """What all rows share is said below. An accuracy, its spread and n have a column each, at the right."""
    board = leaderboard(several)
    shown = {column.heading: column for column in board.columns}
    assert ("device", "cpu") in board.alike and "device" not in shown and "weights" not in shown
    assert {"seeds", "last accuracy", "to train, s", "epoch, s", "peak memory, MiB"} <= set(shown)
    assert all(shown[name].numbers for name in ("seeds", "last accuracy", "to train, s"))
    assert [entry.text for entry in shown["last accuracy"].entries][:2] == ["61.0%", "97.0%"]
    assert shown["epoch, s"].entries[1].share == 1.0 and shown["epoch, s"].entries[4].share is None


def test_digits_of_one_size_stand_below_each_other() -> None:
    """All have as many decimals as the smallest needs."""
    assert aligned([0.0235, 5.62, None], "epoch_seconds") == ["0.024", "5.620", "n/a"]
    assert aligned([12.3, 120.0], "epoch_seconds") == ["12", "120"]
    assert aligned([], "epoch_seconds") == []


def test_controls_do_not_stretch_the_shades(several: Summary) -> None:
    """The worst of the others has share 0 with them and without them."""
    squares = {
        (name, regime): s
        for name, row in make_heatmap(several).rows
        for regime, s in zip(make_heatmap(several).regimes, row, strict=True)
    }
    poor, control = squares["poor", "frozen"], squares["good", "zeroshot"]
    assert poor is not None and control is not None
    assert poor.shades[RATED_BY].share == 0 and control.shades[RATED_BY].share == 0


def test_two_values_have_no_shade(tmp_path: Path) -> None:
    """Darker than one other says nothing."""
    records = [record("timm:a", "frozen", right=90), record("timm:a", "finetune", right=60)]
    ((_, squares),) = make_heatmap(summary_of(tmp_path, records)).rows
    assert [square.shades[RATED_BY].share for square in squares if square] == [None, None]


def test_the_front_has_what_no_other_beats(several: Summary) -> None:
    """In accuracy and the time of the whole training; controls are no part of it, and random weights no point."""
    front = hero.front_of(hero.places(several))
    assert [one.number for one in front] == [0, 2, 1]
    assert len(hero.places(several)) == 4
    assert hero.front_message(several).startswith("From 61.0% in 4.1 s to 97.0% in ")
    table = hero.front_table(several)
    assert list(table["on the front"]) == [True, True, True, False] and table["accuracy"][0] == pytest.approx(0.61)


def test_names_beside_lines_are_apart() -> None:
    """They keep their order and move as little as possible."""
    assert hero.spread([0, 100, 200], 10) == [0, 100, 200]
    close = hero.spread([50, 51, 52, 300], 10)
    assert all(later - earlier >= 10 - 1e-9 for earlier, later in pairwise(close))
    assert close[:3] == pytest.approx([41, 51, 61]) and close[3] == 300
    assert hero.spread([50, 51, 52, 300], 10, 45) == pytest.approx([45, 55, 65, 300]), "none below a bound"


def test_names_of_equal_lines_leave_the_axis_its_words(tmp_path: Path) -> None:
    """However many end at the same value, which is the lowest one."""
    records = [
        one
        for name in "abcdefgh"
        for one in (*seeds(f"timm:{name}", "finetune", 20, 95), *seeds(f"timm:{name}", "frozen", 10, 95))
    ]
    figure = hero.slopes("time")(summary_of(tmp_path, records))
    assert figure is not None
    FigureCanvasSVG(figure).draw()
    (axes,) = figure.axes
    lowest = min(text.get_window_extent().y0 for text in axes.texts)
    assert len(axes.texts) == 16 and lowest > max(tick.get_window_extent().y1 for tick in axes.get_xticklabels())


def test_a_line_that_rises_says_more() -> None:
    """Never a fraction of a time less, and no change where there is hardly one."""
    assert [hero.change(hero.SLOPES["time"], 20.0, after) for after in (8.0, 19.9, 20.0, 20.2, 50.0)] == [
        ", 2.5× less",
        ", about the same",
        ", about the same",
        ", about the same",
        ", 2.5× more",
    ]
    assert hero.change(hero.SLOPES["accuracy"], 0.95, 0.94) == ", -1.0"


def test_no_accuracy_beyond_all_and_none(tmp_path: Path) -> None:
    """The axis has no mark above 100% or below 0%, though points may be at both."""
    records = [*seeds("timm:a", "finetune", 20, 100), *seeds("timm:a", "frozen", 10, 0)]
    figure = hero.front(summary_of(tmp_path, records))
    assert figure is not None
    (axes,) = figure.axes
    marks = list(axes.get_yticks())
    assert min(marks) == 0.0 and max(marks) == 1.0 and axes.get_ylim()[0] < 0.0 and axes.get_ylim()[1] > 1.0


def test_each_figure_says_what_it_shows(tmp_path: Path) -> None:
    """And has its numbers as CSV."""
    records = [*seeds("timm:a", "finetune", 20, 95), *seeds("timm:a", "frozen", 10, 95)]
    drawn = draw(summary_of(tmp_path, records))
    assert drawn["slope-time"].message == "Training only the head takes 50% of the time to train"
    assert drawn["slope-accuracy"].message == "Training only the head changes accuracy by +0.0 points"
    assert drawn["slope-memory"].csv.splitlines()[0] == "backbone,fine-tuning,frozen"
    assert 'id="point-0"' in drawn["front"].svg and 'id="point-1"' in drawn["front"].svg


def assert_free(figure: Figure, name: Bbox, places: Sequence[hero.Place]) -> None:
    """Assert that a name stands inside the axes or just above them, and on none of the marks of these places."""
    (axes,) = figure.axes
    area, unit = axes.bbox, figure.dpi / 72
    assert area.x0 <= name.x0 and name.x1 <= area.x1, "it leaves the axes"
    assert area.y0 <= name.y0 and name.y1 <= area.y1 + name.height, "it leaves the axes"
    for x, y in axes.transData.transform([(one.seconds, one.accuracy) for one in places]):
        beside = max(name.x0 - x, x - name.x1, 0), max(name.y0 - y, y - name.y1, 0)
        assert math.hypot(*beside) >= 4 * unit, "it covers a mark"


@pytest.mark.parametrize("own", [(8, 8.3), (20, 8), (8, 20)])
@pytest.mark.parametrize("right", [(90, 90), (91, 90), (97, 40)])
@pytest.mark.parametrize("others", [[], [("frozen", 5, 93)], [("knn", 8, 89), ("zeroshot", 7, 91), ("scratch", 9, 90)]])
def test_names_of_ones_own_networks_have_their_places(
    own: tuple[float, float], right: tuple[int, int], others: list[tuple[str, float, int]], tmp_path: Path
) -> None:
    """Long names of points that are close to each other, and to marks of controls, which have no names."""
    both = zip(("last-block", "finetune"), own, right, strict=True)
    records = [
        record("my_work:make_backbone_with_a_long_name", regime, seconds=seconds, right=correct)
        for regime, seconds, correct in (*both, *others)
    ]
    summary = summary_of(tmp_path, records)
    figure = hero.front(summary)
    assert figure is not None
    figure.draw_without_rendering()
    names = [Text.get_window_extent(one) for one in figure.axes[0].texts]
    assert names and (others[1:] or len(names) == len(records)), "few points all have names"
    for place, name in enumerate(names):
        assert_free(figure, name, hero.places(summary))
        assert not any(name.overlaps(other) for other in names[:place])


@pytest.mark.parametrize("count", [1, 4, 30, 100])
def test_letters_are_never_cut_off(count: int, tmp_path: Path) -> None:
    """Whatever the number of rows and the length of their names, the picture holds all that is drawn."""
    long = "timm:a_backbone_with_a_very_long_name_{}_patch16_clip_224.some_pretraining_and_finetuning_in22k"
    records = [
        record(
            long.format(number),
            regime,
            seconds=(1 + number) * (2 if regime == "finetune" else 1),
            right=60 + number % 40,
        )
        for number in range(-(-count // 2))
        for regime, factor in (("finetune", 2), ("frozen", 1))[: 1 if count == 1 else 2]
    ]
    summary = summary_of(tmp_path, records)
    for name, function in (("front", hero.front), *((name, hero.slopes(name)) for name in hero.SLOPES)):
        figure = function(summary)
        if figure is None:
            assert count == 1 and name != "front"
            continue
        FigureCanvasSVG(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", pad_inches=0.05)
        figure.canvas.draw()
        whole = figure.get_tightbbox()
        ((width, height),) = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)', text.getvalue())
        assert float(width) >= 72 * whole.width and float(height) >= 72 * whole.height
        named = [Text.get_window_extent(one) for one in figure.axes[0].texts]  # without the lines to their points
        for place, one in enumerate(named):
            assert not any(one.overlaps(other) for other in named[:place]), (name, count)
            if name == "front":
                assert_free(figure, one, hero.places(summary))
        for line in figure.axes[0].lines if name != "front" else ():
            seen, area = line.get_window_extent(), figure.axes[0].bbox
            assert not line.get_clip_on() or (area.x0 <= seen.x0 and seen.x1 <= area.x1), "its ends are whole dots"
