"""Tests the ids of cells, and reading records of earlier versions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from bench.store import environment
from bench.store.records import AS_BEFORE, USUAL, Cell
from bench.store.runs import RunFolder
from tl.config import TrainConfig

REFERENCE = Path(__file__).parent.parent / "results" / "reference-cpu-2core"
KNOWN = Cell(
    config=TrainConfig(backbone="torchvision:resnet18", regime="finetune", weights="random", epochs=5),
    weights_digest="",
    dataset_digest="41771d210287175073b7b183f7b57163e019b854f530d8edd91705379c9212ae",
    device="cpu",
)


def test_a_cell_keeps_the_id_that_it_had_in_version_1() -> None:
    """Later fields don't change the id while they have the values that mean the earlier behaviour."""
    assert KNOWN.id == "ddc5e8404fe7"
    assert KNOWN.but(**AS_BEFORE).id == "ddc5e8404fe7"


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "tuned"},
        {"protocol": "tuned", "learning_rates": [1e-3, 3e-3]},
        {"protocol": "tuned", "learning_rates": [1e-3, 3e-3, 1e-2]},
        {"protocol": "kfold"},
        {"protocol": "kfold", "folds": 10},
        {"execution": "plain"},
        {"checkpointing": True},
    ],
    ids=str,
)
def test_what_can_change_a_number_changes_the_id(settings: dict[str, object]) -> None:
    """Its id differs from that of protocol `fixed`, from that of its protocol's defaults, and between seeds."""
    cell = KNOWN.but(**settings)
    others = [KNOWN, cell.but(seed=1)]
    others += [KNOWN.but(protocol=settings["protocol"])] if len(settings) > 1 else []
    assert cell.id not in {other.id for other in others}


def test_the_order_of_learning_rates_is_no_part_of_a_cell() -> None:
    """The order has no effect, so it doesn't change the id."""
    one, other = (KNOWN.but(protocol="tuned", learning_rates=rates) for rates in ([1e-3, 1], [1, 1e-3]))
    assert one == other and one.id == other.id


def test_a_run_of_version_1_is_read_as_the_fixed_protocol() -> None:
    """Every cell of the committed run keeps its id, and the manifest gets all shared settings."""
    run = RunFolder(REFERENCE)
    assert json.loads((REFERENCE / "manifest.json").read_text())["schema_version"] == 1
    manifest = run.manifest()
    assert {cell_id: cell.id for cell_id, cell in manifest.cells.items()} == {key: key for key in manifest.cells}
    assert manifest.protocol["protocol"] == "fixed" and manifest.protocol.keys() >= AS_BEFORE.keys() - {*USUAL, "code"}
    assert "execution" not in manifest.protocol, "it is an axis of cells, not a setting that all share"
    for record in run.records().values():
        assert record.result is not None and record.result.trials == ()
        assert record.result.learning_rate == record.cell.config.learning_rate == 1e-3


def test_cells_of_before_version_10_ran_as_they_are() -> None:
    """Extraction is folded by default now, so a cell from before is another one, and keeps its id."""
    run = RunFolder(REFERENCE.with_name("reference-regimes-5seeds"))
    cached = [record.cell for record in run.records().values() if record.cell.config.regime == "cached"]
    assert cached
    for cell in cached:
        assert cell.config.fold is False and run.manifest().cells[cell.id] == cell
        assert cell.but(fold=None).id != cell.id == cell.but(fold=False).id
    frozen = KNOWN.but(regime="frozen")
    assert frozen.but(fold=False).id == frozen.id != frozen.but(fold=True).id


def test_asking_for_the_commit_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`git status` alone would write the index anew, and leave its lock behind if it were killed meanwhile."""

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@y.z", *words], cwd=tmp_path, check=True)

    module = tmp_path / "bench" / "store" / "environment.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    git("init", "--quiet")
    git("add", "-A")
    git("commit", "--quiet", "-m", "first")
    os.utime(module, (1, 1))  # the index says something else, so that it is not fresh
    index = (tmp_path / ".git" / "index").read_bytes()
    monkeypatch.setattr(environment, "__file__", str(module))
    found = environment.environment()
    assert len(found.git_commit) == 40 and found.git_dirty is False
    assert (tmp_path / ".git" / "index").read_bytes() == index
