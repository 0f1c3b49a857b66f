"""The display of progress, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from bench.store.records import Cell
from bench.sweep.pace import Pace
from bench.sweep.progress import LiveReporter, PlainReporter, make_reporter
from tests.runs import RANDOM, record, untrained
from tl.progress import EXTRACTING, PassProgress


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_line_shows_what_moves(width: int) -> None:
    """It shows cells, time left, epoch and accuracy, also on a narrow terminal. A line per ended cell stays."""
    text = io.StringIO()
    one = record("timm:a_network_with_quite_a_long_name", "finetune")
    cells = [one.cell, *(record("timm:a_network_with_quite_a_long_name", "finetune", seed=n).cell for n in (1, 2))]
    assert one.result is not None
    with make_reporter(Console(file=text, width=width, force_terminal=True), cells) as reporter:
        assert isinstance(reporter, LiveReporter)
        reporter.started(one.cell)
        for row in one.result.epochs:
            reporter.epoch(one.cell, row)
        reporter.ended(one)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert re.search(r"\repoch 4/4, accuracy 95\.0%[^\r]* 0/3 cells +\d:\d\d:\d\d about [\d.]+ s left", plain)
    assert "1/3 cells" in plain
    assert re.search(r"✓ timm:a_network_with_quite_a_long_name finetune cpu seed 0 +done in 41 s", plain)


@pytest.mark.parametrize("terminal", [True, False])
def test_trainings_of_one_cell_are_distinguished(terminal: bool) -> None:
    """It shows which training runs and counts the epochs of all. A cell that ends early leaves no epochs to do."""
    text = io.StringIO()
    one = record("timm:a", "frozen", protocol="kfold", folds=2)
    late = record("timm:b", "frozen", protocol="kfold", folds=2, status="timeout")
    assert one.result is not None
    with make_reporter(Console(file=text, width=120, force_terminal=terminal), [one.cell, late.cell]) as reporter:
        reporter.started(one.cell)
        for fold in ("fold 1/2", "fold 2/2"):
            reporter.stage(one.cell, fold)
            for row in one.result.epochs:
                reporter.epoch(one.cell, row)
        assert (reporter._count.epochs_done, reporter._count.epochs) == (8, 16)
        reporter.ended(one)
        reporter.started(late.cell)
        reporter.ended(late)
        assert (reporter._count.epochs_done, reporter._count.epochs) == (8, 8)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    if terminal:
        assert "fold 2/2, epoch 4/4, accuracy 95.0% · frozen a cpu" in plain
    else:
        assert re.search(r"\n    fold 2/2\n    epoch 1/4: accuracy 95\.0%", plain)


def test_plain_lines_without_a_terminal() -> None:
    """There are no control codes, accuracy with random weights is n/a, and a failure has its reason."""
    text = io.StringIO()
    one, late = record("timm:a", "frozen", weights=RANDOM), record("timm:b", "frozen", status="timeout")
    assert one.result is not None
    with make_reporter(Console(file=text, width=80), [one.cell, late.cell]) as reporter:
        assert isinstance(reporter, PlainReporter)
        reporter.started(one.cell)
        reporter.epoch(one.cell, one.result.epochs[0])
        reporter.ended(one)
        reporter.started(late.cell)
        reporter.ended(late)
    lines = text.getvalue().splitlines()
    assert lines[0] == "[1/2] timm:a frozen cpu seed 0"
    assert lines[1].startswith("    epoch 1/4: accuracy n/a, loss 0.500, 10.0 s")
    assert lines[3] == "[2/2] timm:b frozen cpu seed 0" and lines[4] == "    timeout: took | too <b>long</b>"
    assert "\x1b" not in text.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_cell_without_training_is_one_pass(terminal: bool) -> None:
    """It has no epochs, loss or epoch time. The sweep ends with its pass, although its config has four epochs."""
    text = io.StringIO()
    one, other = untrained("timm:a"), record("timm:a", "zeroshot", status="skipped")
    assert one.result is not None
    with make_reporter(Console(file=text, width=120, force_terminal=terminal), [one.cell, other.cell]) as reporter:
        reporter.started(one.cell)
        reporter.epoch(one.cell, one.result.epochs[0])
        reporter.ended(one)
        reporter.started(other.cell)
        reporter.ended(other)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert re.search(r"validation pass[:,] accuracy 95\.0%", plain)
    assert re.search(r"done in 4 s: accuracy 95\.0%, 10 MiB", plain)
    assert re.search(r"– timm:a zeroshot cpu seed 0 +skipped: " if terminal else r"\n    skipped: ", plain)
    assert "None" not in plain and "epoch" not in plain and "n/a" not in plain
    if not terminal:
        assert "0 s left" in plain.splitlines()[1].replace("about ", ""), "one more pass, as quick as the first"


def test_a_pass_that_goes_on_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no live display, a line comes after half a minute without one, and no sooner."""
    now = [0.0]
    monkeypatch.setattr("bench.sweep.progress.time.monotonic", lambda: now[0])
    one = record("timm:a", "finetune")
    text = io.StringIO()
    with make_reporter(Console(file=text, width=80), [one.cell]) as reporter:
        reporter.started(one.cell)
        for seconds in range(5, 95, 5):
            now[0] = float(seconds)
            reporter.moved(one.cell, PassProgress(what="training", done=seconds, total=100))
        reporter.moved(one.cell, PassProgress(what=EXTRACTING, done=1, total=2))
    lines = text.getvalue().splitlines()[1:]
    assert lines == ["    epoch 1/4: training 30%", "    epoch 1/4: training 60%", "    epoch 1/4: training 90%"]
    text = io.StringIO()
    with make_reporter(Console(file=text, width=120, force_terminal=True), [one.cell]) as reporter:
        reporter.started(one.cell)
        reporter.moved(one.cell, PassProgress(what="validation", done=1, total=3))
        reporter.moved(one.cell, PassProgress(what=EXTRACTING, done=1, total=2))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert "epoch 1/4: validation 33% · finetune a cpu" in plain and "\rextracting features 50% · finetune" in plain


@pytest.mark.parametrize("terminal", [True, False])
def test_the_same_warning_comes_once(terminal: bool) -> None:
    """Whatever its figures; how often it came stands at the end. Warnings of two files are two."""
    text = io.StringIO()
    with make_reporter(Console(file=text, width=200, force_terminal=terminal), ()) as reporter:
        for cores in ("0.5", "1.25", "0.7"):
            reporter.warned(f"other processes took {cores} of 2 cores while the cell ran")
        for number in (1, 2):
            reporter.warned(f"/cache/{number}: damaged")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert plain.count("other processes took") == 2 and plain.count("other processes took 0.5 of 2") == 2
    assert "2 more times: other processes took 0.5" in plain and plain.count(": damaged") == 2


def paced(cells: list[Cell], clock: list[float]) -> Pace:
    return Pace(cells, clock=lambda: clock[0])


def run_through(pace: Pace, cell: Cell, clock: list[float], seconds: float, first: float = 0.0) -> list[float | None]:
    """Run a cell whose epochs take so long, and the first one longer. Returns what was left after each epoch."""
    pace.start(cell)
    said, started = [], clock[0]
    for epoch in range(cell.config.epochs):
        clock[0] += seconds + (0.0 if epoch else first)
        pace.epoch(cell)
        said.append(pace.left())
    pace.end(cell, clock[0] - started)
    return said


def test_the_time_left_is_weighted_by_what_cells_take() -> None:
    """A large network and a small one, fine-tuned and frozen: after three of four cells the last one is foreseen."""
    cells = [record(name, regime).cell for name in ("timm:large", "timm:small") for regime in ("finetune", "frozen")]
    clock = [0.0]
    pace = paced(cells, clock)
    assert pace.left() is None, "nothing is known yet"
    said = run_through(pace, cells[0], clock, 100.0)
    assert said[0] is None and said[-1] is None, "nothing is known of the others"
    run_through(pace, cells[1], clock, 50.0)
    assert pace.left() is None, "nothing is known of the small network"
    said = run_through(pace, cells[2], clock, 10.0)
    assert said[0] is None and said[1] is not None
    assert pace.left() == pytest.approx(4 * 5.0, rel=0.25)
    said = run_through(pace, cells[3], clock, 5.0)
    assert said[1] == pytest.approx(10.0) and said[-1] == 0.0


def test_a_slow_first_epoch_frightens_nobody() -> None:
    """A single cell of ten epochs, of which the first takes 400 seconds: silence, then what warm ones take."""
    (cell,) = [record("timm:a", "finetune").cell]
    cell = cell.replace(config=cell.config.replace(epochs=10))
    clock = [0.0]
    said = run_through(paced([cell], clock), cell, clock, 5.0, first=395.0)
    assert said[0] is None and said[1:] == pytest.approx([40.0, 35.0, 30.0, 25.0, 20.0, 15.0, 10.0, 5.0, 0.0])


def test_seeds_are_alike_and_failures_say_nothing() -> None:
    """A cell that failed at once doesn't make the others seem quick."""
    cells = [record("timm:a", "finetune", seed=seed).cell for seed in range(5)]
    clock = [0.0]
    pace = paced(cells, clock)
    pace.start(cells[0])
    pace.end(cells[0], None)
    assert pace.left() is None
    run_through(pace, cells[1], clock, 10.0)
    assert pace.left() == pytest.approx(3 * 40.0)


def test_an_average_of_backbones_foresees_others() -> None:
    """From three on; one alone could be anything."""
    cells = [record(f"timm:{name}", "finetune").cell for name in "abcdefgh"]
    clock = [0.0]
    pace = paced(cells, clock)
    for number, cell in enumerate(cells[:3]):
        assert pace.left() is None, number
        run_through(pace, cell, clock, 10.0)
    assert pace.left() == pytest.approx(5 * 40.0)
