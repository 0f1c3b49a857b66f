"""A backbone that should stay frozen but changes is reported everywhere that a user looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import bench
from bench.report.summary import summarise
from bench.report.write import write_report
from bench.sweep.execute import execute, executor_for
from bench.sweep.grid import load_grid
from bench.sweep.options import Options
from bench.sweep.plan import plan
from tests.commands import ONE_CELL
from tl import train
from tl.backbones import Classifier
from tl.freezing import Freezing, freeze
from tl.regimes import Regime
from tl.step import TrainStep


def as_it_should_be(freezing: Freezing) -> Freezing:
    return freezing


def parameters_are_trained(freezing: Freezing) -> Freezing:
    freezing.model.requires_grad_(True)
    return replace(freezing, parameters=tuple(freezing.model.parameters()))


def statistics_move(freezing: Freezing) -> Freezing:
    return replace(freezing, in_train_mode=(freezing.model,))


def _sweep(folder: Path) -> tuple[str, tuple[str, str]]:
    """Run one cell of regime `frozen` in this process; return the terminal's text and both reports."""
    (folder / "one.toml").write_text(ONE_CELL + "[train]\nepochs = 1\n")
    grid = load_grid(str(folder / "one.toml"))
    options = Options(name="x", weights="random", executor="inline", results=folder / "results")
    worker, console = executor_for(options), Console(record=True, width=200)
    sweep = plan(grid, options, worker, console)
    execute(sweep, grid, options, worker, console)
    markdown, page = write_report(summarise([sweep.run], "x"), folder / "reports")
    return console.export_text(), (markdown.read_text(), page.read_text())


@pytest.mark.parametrize(
    ("plant", "moved"),
    [(as_it_should_be, False), (parameters_are_trained, True), (statistics_move, True)],
    ids=["as it should be", "parameters are trained", "BatchNorm statistics move"],
)
def test_a_backbone_that_moves_is_reported_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Freezing], Freezing], moved: bool
) -> None:
    """A bug planted in what freezes shows on the terminal, twice in both reports, and in the export."""

    def careless(model: Classifier, regime: Regime) -> Freezing:
        return plant(freeze(model, regime))

    monkeypatch.setattr("tl.prepare.freeze", careless)
    said, pages = _sweep(tmp_path)
    assert ("NOT FROZEN" in said) is moved
    for page in pages:
        assert ("NOT FROZEN" in page) is moved and ("verified" in page) is not moved
        assert ("Not frozen." in page[: page.index("Results")]) is moved
    assert bench.load_results(tmp_path / "results" / "x")["frozen_verified"].tolist() == [not moved]


def test_a_single_changed_number_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug planted in the loop changes one weight of the backbone by the smallest possible step."""
    original = train._train_pass

    def careless(step: TrainStep, *arguments: object) -> object:
        done = original(step, *arguments)
        weight = next(step._model.backbone.parameters()).data
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
        return done

    monkeypatch.setattr(train, "_train_pass", careless)
    said, _ = _sweep(tmp_path)
    assert "NOT FROZEN" in said
    assert bench.load_results(tmp_path / "results" / "x")["frozen_verified"].tolist() == [False]
