"""Tests the figures of a report that say why: learning curves, and bars that are stacked from parts."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from bench.report import figures
from bench.report.bars import Bar, draw_bars
from bench.report.curves import curves, panels
from bench.report.figures import MOST_BARS, MOST_NAMES, draw
from bench.report.palette import PARTS, colours, markers
from bench.report.summary import Summary, summarise
from bench.report.write import MOST_LEFT_OUT, write_report
from tests.runs import RANDOM, record, write_run
from tl.regimes import REGIMES

LONG = "timm:a_backbone_with_a_very_long_name_{}_patch16_clip_224.some_pretraining_and_finetuning_in22k"


def summary_of(folder: Path, records: list[Any]) -> Summary:
    return summarise([write_run(folder / "r", records)], "r")


def accuracy_of(summary: Summary) -> Figure:
    figure = curves("val_accuracy", "validation accuracy", percent=True)(summary)
    assert figure is not None
    return figure


def test_a_panel_for_each_backbone(tmp_path: Path) -> None:
    """With the same axes, epochs from 1, and regimes by their colours and shapes. Random weights have none."""
    records = [
        *(record("timm:a", regime, right=90 + seed, seed=seed) for regime in ("finetune", "frozen") for seed in (0, 1)),
        record("timm:b", "frozen", right=60),
        record("timm:blind", "frozen", weights=RANDOM),
    ]
    summary = summary_of(tmp_path, records)
    found = panels(summary, "val_accuracy")
    assert {name: [curve.regime for curve in some] for name, some in found.items()} == {
        "a": ["finetune", "frozen"],
        "b": ["frozen"],
    }
    first = found["a"][0]
    assert first.epochs == (1, 2, 3, 4) and first.means == pytest.approx((0.905,) * 4)
    assert first.deviations == pytest.approx((0.01 / 2**0.5,) * 4) and found["b"][0].deviations == (0.0,) * 4
    figure = accuracy_of(summary)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1
    drawn = [(line.get_color(), line.get_marker(), list(line.get_xdata())) for line in figure.axes[0].lines]
    assert drawn == [(colours()[name], markers()[name], [1, 2, 3, 4]) for name in ("finetune", "frozen")]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["finetune", "frozen"]


def test_without_pretrained_weights_there_is_no_curve(tmp_path: Path) -> None:
    drawn = draw(summary_of(tmp_path, [record("timm:a", "frozen", weights=RANDOM)]))
    assert "phases" not in drawn and not {"accuracy-curve", "loss-curve"} & drawn.keys() and "time" in drawn


def test_of_many_backbones_the_rest_is_named(tmp_path: Path) -> None:
    """Panels are those of the most accurate ones; what they leave out is named, as far as that can be read."""
    many = MOST_NAMES + MOST_LEFT_OUT + 5
    records = [record(f"timm:n{number:02}", "frozen", right=50 + number) for number in range(many)]
    summary = summary_of(tmp_path, records)
    markdown, page = (path.read_text() for path in write_report(summary, tmp_path / "reports"))
    for text in (markdown, page):
        assert f"{MOST_NAMES} most accurate of {many} rows" in text
        assert "Not in them: n00, n01, " in text and f"n{MOST_LEFT_OUT - 1:02} and 5 more." in text
    svg = (tmp_path / "reports" / "r" / "accuracy-curve.svg").read_text()
    titles = re.findall(r">(n\d\d)</text>", svg)
    assert sorted(titles) == [f"n{number:02}" for number in range(many - MOST_NAMES, many)]


def test_of_many_bars_the_rest_is_left_out(tmp_path: Path) -> None:
    """Those of the most accurate backbones stay, and the caption says so; other figures have all backbones."""
    regimes = [name for name in REGIMES if name not in ("zeroshot", "scratch")][:11]
    records = [
        record(f"timm:n{number}", regime, right=50 + number) for number in range(MOST_NAMES) for regime in regimes
    ]
    drawn = draw(summary_of(tmp_path, records))
    names = {figure: set(re.findall(r">(n\d+)</text>", drawn[figure].svg)) for figure in ("time", "matrix")}
    assert names["time"] == {f"n{number}" for number in range(MOST_NAMES - MOST_BARS // 11, MOST_NAMES)}
    assert "these are the 5 most accurate backbones." in drawn["time"].caption
    assert len(names["matrix"]) == MOST_NAMES and "no room" not in drawn["matrix"].caption
    alone = draw(summary_of(tmp_path / "one", records[: MOST_BARS // 5]))["time"].caption
    assert "no room" not in alone


def test_parts_of_bars_have_their_own_colours() -> None:
    """Bars of one backbone stand below its name, and only what has a length has a key."""
    bars = [
        Bar(backbone="a", name="finetune", parts=((2.0, PARTS[0]), (3.0, PARTS[1]))),
        Bar(backbone="a", name="frozen", parts=((1.0, PARTS[0]),), text="1"),
        Bar(backbone="b", name="frozen", parts=((4.0, PARTS[0]),)),
    ]
    figure = draw_bars(bars, "seconds", {"forward": PARTS[0], "backward": PARTS[1]})
    (axes,) = figure.axes
    patches = [(patch.get_x(), patch.get_width(), to_hex(patch.get_facecolor())) for patch in axes.patches]
    assert patches == [(0, 2, PARTS[0]), (2, 3, PARTS[1]), (0, 1, PARTS[0]), (0, 4, PARTS[0])]
    assert [text.get_text().strip() for text in axes.texts] == ["a", "finetune", "frozen", "1", "b", "frozen"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["forward", "backward"]


@pytest.mark.parametrize("count", [1, 4, 12])
@pytest.mark.parametrize("name", ["accuracy-curve", "time", "memory"])
def test_no_letter_is_cut_off_or_covers_another(name: str, count: int, tmp_path: Path) -> None:
    """Whatever the number of backbones and the length of their names; and a phone shows the whole width."""
    regimes = ("finetune", "frozen", "cached", "last-block", "norm-only", "scratch")
    records = [
        record(LONG.format(number), regime, seconds=1 + number, right=60 + number)
        for number in range(count)
        for regime in regimes
    ]
    text = io.StringIO()
    with matplotlib.rc_context(figures._style()):
        figure = figures.FIGURES[name][1](summary_of(tmp_path, records))
        assert figure is not None
        figure.savefig(text, format="svg", bbox_inches="tight", pad_inches=0.05)
        FigureCanvasAgg(figure).draw()
    whole = figure.get_tightbbox()
    ((width, height),) = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)', text.getvalue())
    assert float(width) >= 72 * whole.width and float(height) >= 72 * whole.height
    ticks = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels()}
    several = [one for one in figure.findobj(Text) if one.get_text() and one.get_visible() and one not in ticks]
    assert len(several) > len(regimes)
    boxes = [(one.get_text(), Text.get_window_extent(one)) for one in several]
    for place, (said, box) in enumerate(boxes):
        assert not [other for other, its in boxes[:place] if box.overlaps(its)], said
