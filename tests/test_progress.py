"""The display of progress, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from bench.sweep.progress import LiveReporter, PlainReporter, make_reporter
from tests.runs import RANDOM, record, untrained


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_line_shows_what_moves(width: int) -> None:
    """It shows cells, time left, epoch and accuracy, also on a narrow terminal. A line per ended cell stays."""
    text = io.StringIO()
    one = record("timm:a_network_with_quite_a_long_name", "finetune")
    assert one.result is not None
    with make_reporter(Console(file=text, width=width, force_terminal=True), 3, 12) as reporter:
        assert isinstance(reporter, LiveReporter)
        reporter.started(one.cell)
        for row in one.result.epochs:
            reporter.epoch(one.cell, row)
        reporter.ended(one)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert re.search(r"0/3 cells .*about \d+ s left · epoch 4/4, accuracy 95\.0%", plain)
    assert "1/3 cells" in plain
    assert re.search(r"✓ timm:a_network_with_quite_a_long_name finetune cpu seed 0 +done in 41 s", plain)


@pytest.mark.parametrize("terminal", [True, False])
def test_trainings_of_one_cell_are_distinguished(terminal: bool) -> None:
    """It shows which training runs and counts the epochs of all. A cell that ends early leaves no epochs to do."""
    text = io.StringIO()
    one = record("timm:a", "frozen", protocol="kfold", folds=2)
    late = record("timm:b", "frozen", protocol="kfold", folds=2, status="timeout")
    assert one.result is not None
    with make_reporter(Console(file=text, width=120, force_terminal=terminal), 2, 16) as reporter:
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
    with make_reporter(Console(file=text, width=80), 2, 8) as reporter:
        assert isinstance(reporter, PlainReporter)
        reporter.started(one.cell)
        reporter.epoch(one.cell, one.result.epochs[0])
        reporter.ended(one)
        reporter.started(late.cell)
        reporter.ended(late)
    lines = text.getvalue().splitlines()
    assert lines[0] == "[1/2] timm:a frozen cpu seed 0"
    assert lines[1].startswith("    epoch 1/4: accuracy n/a, loss 0.500, 10.0 s, about")
    assert lines[3] == "[2/2] timm:b frozen cpu seed 0" and lines[4] == "    timeout: took | too <b>long</b>"
    assert "\x1b" not in text.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_cell_without_training_is_one_pass(terminal: bool) -> None:
    """It has no epochs, loss or epoch time. The sweep ends with its pass, although its config has four epochs."""
    text = io.StringIO()
    one, other = untrained("timm:a"), record("timm:a", "zeroshot", status="skipped")
    assert one.result is not None
    with make_reporter(Console(file=text, width=120, force_terminal=terminal), 2, 2) as reporter:
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
