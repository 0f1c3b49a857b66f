"""Tests how a comparison is told: its sentence, its parts and their order, its dot plot, and the words of its task."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.analysis.stats import holm, holm_levels
from bench.compare.answer import ICONS, SIGNS, counts, parts, sentence
from bench.compare.changes import Comparison, compare
from bench.compare.gate import decide
from bench.compare.plot import MOST_DOTS, Panel, panels
from bench.compare.render import note_of, show
from bench.compare.rules import Rule
from bench.compare.sides import Quantity, Side, read_sides
from bench.compare.terminal import print_comparison
from tests.runs import record, write_run
from tests.test_compare import COUNTER, STEADY, side

NOISY = (1.0, 1.3, 0.8, 1.1)


def times(factor: float, of: Sequence[float] = STEADY) -> list[float]:
    return [factor * value for value in of]


def mixed() -> Comparison:
    """Two cells that are worse, one better, one undecided, one with too few samples, and one that is the same."""
    factors = {"slow": 1.2, "slower": 1.5, "fast": 0.7, "same": 1.0}
    base: dict[str, Any] = {name: times(1.0) for name in factors} | {"noisy": NOISY, "few": [1, 1]}
    new: dict[str, Any] = {name: times(factor) for name, factor in factors.items()}
    return compare([side("old", base), side("new", new | {"noisy": NOISY[::-1], "few": [3, 3]})])


def test_the_sentence_says_what_is_worse_and_the_level() -> None:
    """First how many, the largest by name, then all others, and the error rate."""
    assert sentence(mixed()) == (
        "2 of 6 comparisons are worse: most of all time 1.500× with slower; 1 better, 1 undecided, 1 with too few "
        "samples, 1 the same (error rate 5% over all comparisons)"
    )
    gate = compare([side("o", {"a": STEADY}), side("n", {"a": times(1.2)})], level=0.01)
    assert sentence(gate) == "the only comparison is worse: time 1.200× with a (error rate 1% over all comparisons)"


@pytest.mark.parametrize(
    ("new", "says"),
    [
        ({"a": STEADY, "b": STEADY}, "nothing is worse; 2 the same ("),
        ({"a": STEADY, "b": times(0.5)}, "nothing is worse; 1 better, 1 the same ("),
        ({"a": STEADY, "b": NOISY}, "nothing is shown to be worse; 1 undecided, 1 the same ("),
        ({"a": STEADY}, "nothing is shown to be worse; 1 the same ("),
        ({"a": NOISY, "b": NOISY}, "no time, memory or score is decided; 2 undecided ("),
    ],
)
def test_a_sentence_where_nothing_is_worse(new: dict[str, Any], says: str) -> None:
    """It doesn't say that nothing is worse where something is open or without a comparison."""
    assert sentence(compare([side("o", {"a": STEADY, "b": STEADY}), side("n", new)])).startswith(says)


def test_newly_failing_cells_come_first(tmp_path: Path) -> None:
    """In the sentence, on the page, in Markdown and on a terminal."""
    old = [
        record(name, "frozen", seed=seed, seconds=10 + seed / 100) for name in ("timm:a", "timm:b") for seed in range(3)
    ]
    new = [
        one.replace(status="oom", result=None, reason="8 GiB") if "b" in one.cell.config.backbone else one
        for one in old
    ]
    write_run(tmp_path / "old", old), write_run(tmp_path / "new", new)
    found = compare(read_sides([str(tmp_path / "old"), str(tmp_path / "new")]), rules=[Rule(points=10)])
    assert sentence(found).startswith("1 cell newly fails; ")
    for text in (show(found, "html", title="t"), show(found, "md", title="t"), printed(found)):
        said = text[text.index("newly fails") :].lower()
        assert said.index("newly failing") < said.index("8 gib") < said.index("timm:a")


def printed(comparison: Comparison) -> str:
    text = io.StringIO()
    print_comparison(comparison, Console(file=text, width=100), title="new against old")
    return text.getvalue()


def test_parts_are_ordered_by_what_matters() -> None:
    """Worse, better, undecided, the same; within each the largest first, and what has no interval last."""
    found = parts(mixed())
    assert [(part.sign, [change.cell for change in part.changes]) for part in found] == [
        ("worse", ["slower", "slow"]),
        ("better", ["fast"]),
        ("open", ["noisy", "few"]),
        ("same", ["same"]),
    ]
    assert [part.sign for part in found if part.folded] == ["open", "same"]


def test_all_formats_have_the_same_order() -> None:
    """The sentence, then worse, better and undecided."""
    found = mixed()
    page, markdown, terminal = (
        show(found, "html", title="new against old"),
        show(found, "md", title="x"),
        printed(found),
    )
    for text in (page[page.index("<h1>") :], markdown, terminal):
        assert text.index("2 of 6 comparisons are worse") < text.index("error rate 5%")
    assert terminal.startswith("new against old: 2 of 6 comparisons are worse")
    rows = [re.findall(rf"\b(?:{'|'.join(SIGNS)})\b", line) for line in markdown.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows if row] == ["worse", "worse", "better", "inconclusive", "too few samples", "same"]
    titles = re.findall(r"<h2><span[^>]*><span[^>]*>(.)</span> ([^<]+)</span></h2>", page)
    assert titles == [("✗", "Worse"), ("✓", "Better"), ("?", "Undecided"), ("=", "The same")]
    folds = re.findall(r"<details>\s*<summary>(\d+) comparisons?</summary>", page)
    assert folds == ["2", "1"]


def test_every_verdict_has_an_icon_beside_its_word() -> None:
    """No verdict is told by its colour alone, and no two kinds have the same icon."""
    assert set(SIGNS.values()) <= set(ICONS) and len(set(ICONS.values())) == len(ICONS)
    page = show(mixed(), "html", title="t")
    badges = re.findall(r'<span class="badge (\w+)"><span aria-hidden="true">(.)</span> ([^<]+)</span>', page)
    assert len(badges) > 10 and all(ICONS[sign] == icon and word for sign, icon, word in badges)
    assert [text for _, _, text in counts(mixed())] == [
        "2 worse",
        "1 better",
        "1 undecided",
        "1 with too few samples",
        "1 the same",
    ]


def panel(comparison: Comparison) -> Panel:
    (found,) = panels(comparison)
    return found


def test_the_plot_diverges_from_no_change() -> None:
    """Slower is on the right of the middle, faster on the left, as far in ratio; intervals enclose their dots."""
    one = panel(compare([side("o", {"a": STEADY, "b": STEADY}), side("n", {"a": times(1.5), "b": times(1 / 1.5)})]))
    assert (one.left, one.right) == ("better", "worse")
    slow, fast = one.lines
    assert (slow.sign, fast.sign) == ("worse", "better")
    assert slow.dots.dot > 75 and slow.dots.dot - 50 == pytest.approx(50 - fast.dots.dot, abs=0.1)
    for line in one.lines:
        assert line.dots.thick and line.dots.thin
        ends = [(bar.left, bar.left + bar.width) for bar in (line.dots.thin, line.band, line.dots.thick)]
        assert ends[0][0] <= ends[2][0] <= line.dots.dot <= ends[2][1] <= ends[0][1]
        assert ends[1][0] < 50 < ends[1][1] and ends[1][1] - 50 == pytest.approx(50 - ends[1][0], abs=0.1)
        assert not ends[0][0] <= 50 <= ends[0][1], "the interval that the verdict rests on leaves out no change"
    texts = dict(one.marks)
    assert texts[50.0] == "1×" and all(5 < place < 95 for place in texts) and len(texts) == 3


def test_what_more_of_is_better_is_worse_on_the_left(tmp_path: Path) -> None:
    """An accuracy has a panel of its own, in points."""
    for name, right in (("old", 95), ("new", 60)):
        write_run(tmp_path / name, [record("timm:a", "frozen", seed=seed, right=right) for seed in range(3)])
    found = compare(read_sides([str(tmp_path / name) for name in ("old", "new")]))
    times_, accuracy = panels(found)
    assert (times_.left, accuracy.left, accuracy.right) == ("better", "worse", "better")
    assert accuracy.title == "last accuracy: new − old" and times_.title == "epoch, peak memory: new ÷ old"
    (line,) = accuracy.lines
    assert line.sign == "worse" and line.dots.dot < 25 and line.text.startswith("-35.0 points")
    assert dict(accuracy.marks)[50.0] == "0"


def test_one_wide_interval_does_not_squeeze_the_others() -> None:
    """It goes on beyond the end of the scale."""
    wild = [1.0, 40.0, 0.02, 3.0]
    one = panel(compare([side("o", {"a": STEADY, "b": wild}), side("n", {"a": times(1.5), "b": wild[::-1]})]))
    bars = {line.name: line.dots for line in one.lines}
    assert bars["b: time"].thick and (bars["b: time"].thick.left, bars["b: time"].thick.width) == (0.0, 100.0)
    assert bars["a: time"].dot > 60


def test_a_plot_of_many_changes_has_the_largest() -> None:
    """The rest is counted: tables have all."""
    old: dict[str, Any] = {str(number): STEADY for number in range(MOST_DOTS + 5)}
    new = {name: times(1.1 + int(name) / 100) for name in old}
    one = panel(compare([side("o", old), side("n", new)]))
    assert len(one.lines) == MOST_DOTS and one.left_out == 5 and one.lines[0].name == f"{MOST_DOTS + 4}: time"


def test_the_plot_leaves_out_what_has_no_scale(tmp_path: Path) -> None:
    """Counters, and what doesn't compare."""
    counters = {"a": {"flops": [5], "seconds": STEADY}}
    found = compare([side("o", counters), side("n", {"a": {"flops": [6], "seconds": STEADY}})])
    assert [line.name for line in panel(found).lines] == ["a: time"] and found.having("worse")
    for name in ("old", "new"):
        records = [record("timm:a", "frozen", seed=seed) for seed in range(3)]
        cpu = [one.replace(environment=one.environment.replace(cpu=name)) for one in records]
        write_run(tmp_path / name, cpu)
    found = compare(read_sides([str(tmp_path / name) for name in ("old", "new")]))
    assert [one.title for one in panels(found)] == ["last accuracy: new − old"]
    for text in (show(found, "html", title="t"), show(found, "md", title="t")):
        assert text.count("cpu: old → new") == 1


def test_large_counters_and_scales_of_a_tiny_rule() -> None:
    """Neither a number without bounds nor the smallest change that counts breaks the page."""
    huge = compare([side("o", {"a": {"flops": [10**400]}}), side("n", {"a": {"flops": [10**400 + 1]}})])
    assert "+1" in show(huge, "html", title="t") and panels(huge) == []
    tiny = [Rule(factor=1.0000001)]
    one = panel(compare([side("o", {"a": [1.0] * 3}), side("n", {"a": [1.0] * 3})], rules=tiny))
    assert len(one.marks) == 3 and one.lines[0].dots.dot == 50


def test_the_size_of_a_change() -> None:
    """In units of the smallest one that counts, above 0 for the worse: so times and accuracies share an order."""
    (change,) = compare([side("o", {"a": STEADY}), side("n", {"a": times(1.05**3)})]).changes
    assert change.size == pytest.approx(3)
    more = replace(change, quantity=Quantity(name="speed", label="speed", compared="ratio", better="higher"))
    assert more.size == pytest.approx(-3)
    counter = replace(change, quantity=COUNTER, estimate=None, allowed=None, verdict="better")
    assert counter.size == -1


def test_levels_of_holm() -> None:
    """A p-value is at most its own level exactly where its adjusted one is at most the common level."""
    p_values = [0.03, 0.001, 0.5, 0.012]
    levels = holm_levels(p_values, 0.05)
    assert levels == pytest.approx([0.05 / 2, 0.05 / 4, 0.05 / 2, 0.05 / 3])
    for p, level, adjusted in zip(p_values, levels, holm(p_values), strict=True):
        assert (p < level) is (adjusted < 0.05)
    assert holm_levels([]) == []


def test_the_interval_that_a_verdict_rests_on() -> None:
    """It leaves out no change exactly where that is rejected: among many comparisons a 95% interval alone may do so."""
    old, new = [1.0, 1.02, 0.98, 1.01], [1.09, 1.05, 1.12, 1.06]
    many: dict[str, Any] = {f"cell {number}": old for number in range(50)}
    found = compare([side("o", {"a": old, **many}), side("n", {"a": new, **many})])
    for change in found.changes:
        assert change.adjusted and change.p is not None
        assert (change.adjusted[0] <= 1 <= change.adjusted[1]) is (change.p >= found.level)
    first = found.changes[0]
    assert first.verdict == "inconclusive" and first.adjusted and first.estimate and first.estimate.low
    assert first.adjusted[0] < 1 < first.estimate.low


def test_the_legend_leaves_out_what_is_not_compared() -> None:
    """Benchmarks have no accuracies, and runs no rounds."""

    def rounds(side: Side) -> Side:
        return replace(side, cells={key: replace(cell, repeats="round") for key, cell in side.cells.items()})

    runs = mixed()
    benchmarks = replace(runs, base=rounds(runs.base), others=tuple(map(rounds, runs.others)))
    assert "Samples are seeds." in note_of(runs) and "round" not in note_of(runs)
    said = note_of(benchmarks)
    assert "Samples are rounds of a benchmark." in said and not re.search("accurac|seed|memory", said)
    both = note_of(replace(runs, others=benchmarks.others))
    assert "seeds or rounds" in both and "accuracies" in both and "measured in turn" in both


def test_a_lost_cell_is_named_once() -> None:
    """Among a gate's reasons, or else below the table."""
    found = compare([side("o", {"a": STEADY, "b": STEADY}), side("n", {"a": STEADY})])
    text = io.StringIO()
    print_comparison(found, Console(file=text, width=100), title="n against o", findings=decide(found).reasons)
    assert text.getvalue().count("n has no such cell") == printed(found).count("n has no such cell") == 1


def test_the_legend_has_the_word_of_the_task() -> None:
    """Accuracies for classification; for other tasks the name of their score."""
    found = mixed()
    assert "for shares such as accuracies" in note_of(found) and "right on the very same images" in note_of(found)
    boxes = replace(found, base=replace(found.base, task="detection"))
    assert "for shares such as mAP values" in note_of(boxes) and "the same image AP50" in note_of(boxes)
    for text in (show(boxes, "html", title="t"), show(boxes, "md", title="t"), printed(boxes)):
        assert "ccurac" not in text
