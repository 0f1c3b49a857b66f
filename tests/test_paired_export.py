"""What exports have of paired timing: raw turns, and speed-ups beside each cell."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import bench
from bench.analysis.paired import compare
from bench.export.frame import load_runs, raw_rows, turn_rows
from bench.store.runs import RunFolder
from tests.commands import here as command
from tests.runs import pair_record, record, write_run

REGIMES = ("finetune", "frozen", "frozen-tutorial")
CELLS = [record("timm:a", regime).cell for regime in REGIMES]
TIMED = [pair_record(CELLS, (10.0, 5.0, 4.0), number=n, noise=0.02, memory=(300, 200, None)) for n in range(3)]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Three regimes with two seeds each, timed in three pairs, and a fourth in which the last process failed."""
    records = [record("timm:a", regime, seed=seed) for regime in REGIMES for seed in range(2)]
    lost = pair_record(CELLS, (10.0, 5.0, 4.0), number=3, status="oom")
    return write_run(tmp_path / "results" / "r", [*records, record("timm:b", "frozen")], pairs=[*TIMED, lost])


def test_every_turn_is_exported_as_it_was_measured(run: RunFolder) -> None:
    """Also those of a pair in which another process failed; that one has a row with its reason."""
    turns = turn_rows([run])
    assert len(turns) == 3 * 3 * 8 + 2 * 8 + 1
    for pair in TIMED:
        for cell, side in zip(pair.pair.cells, pair.sides, strict=True):
            rows = turns[(turns["pair_id"] == pair.pair_id) & (turns["cell_id"] == cell.id)]
            assert side.turns and rows["turn"].tolist() == list(range(8))
            assert rows["turn_train_seconds"].tolist() == list(side.turns.train_seconds)
            assert rows["turn_val_images"].tolist() == list(side.turns.val_images)
            assert set(rows["status"]) == {"done"} and rows["in_turns"].all()
    (failed,) = turns[turns["status"] == "oom"].to_dict("records")
    assert (failed["regime"], failed["pair"]) == ("frozen-tutorial", 3) and "took" in failed["reason"]
    assert pd.isna(failed["turn"]) and pd.isna(failed["turn_train_seconds"])
    assert bench.Run(run.folder).turns().equals(turns)


def test_turns_join_cells_of_any_seed_by_their_axes(tmp_path: Path) -> None:
    """A pair has seed 0, so a run without it has no cell with a turn's id; `results/README.md` says what to do."""
    records = [record("timm:a", regime, seed=seed) for regime in REGIMES for seed in (1, 2)]
    raw = raw_rows([write_run(tmp_path / "results" / "s", records, pairs=TIMED)])
    epochs, turns = raw[raw["epoch"].notna()], raw[raw["pair_id"].notna()]
    assert not set(turns["cell_id"]) & set(epochs["cell_id"]) and set(turns["seed"]) == {0}
    axes = ["run", "backbone", "weights", "regime", "device", "precision", "execution", "batch_size"]
    assert set(map(tuple, turns[axes].values)) == set(map(tuple, epochs[axes].values))


def test_turns_are_no_epochs(run: RunFolder) -> None:
    """Neither has values in the other's columns, so that nobody averages over both."""
    raw = raw_rows([run])
    epochs, turns = raw[raw["epoch"].notna()], raw[raw["pair_id"].notna()]
    assert len(epochs) + len(turns) == len(raw) and len(turns) == len(turn_rows([run]))
    assert turns[["train_seconds", "val_seconds", "val_accuracy"]].isna().all(axis=None)
    assert epochs[["turn", "turn_val_seconds", "pair"]].isna().all(axis=None)
    assert bench.Run(run.folder).frame(per_epoch=True)["epoch"].notna().all()


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_the_command_writes_turns(run: RunFolder, kind: str, tmp_path: Path) -> None:
    """In every format, and equal."""
    path = tmp_path / f"raw.{kind}"
    done = command("export", str(run.folder), "--raw", "--format", kind, "--output", str(path))
    assert done.returncode == 0, done.stderr
    read = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[kind](path)
    expected = turn_rows([run])["turn_val_seconds"].dropna()
    assert read["turn_val_seconds"].dropna().tolist() == pytest.approx(expected.tolist())


def test_a_cell_has_its_speed_up_beside_it(run: RunFolder) -> None:
    """It is the same for all seeds, and empty for the cell that the others are compared with, and without pairs."""
    table = load_runs([run]).set_index(["backbone", "regime", "seed"])
    for regime, cell in zip(REGIMES[1:], CELLS[1:], strict=True):
        found = compare(cell, CELLS[0], run.pairs().values())
        assert found and found.speed_up
        for seed in range(2):
            row = table.loc[("timm:a", regime, seed)]
            shown = row[["speed_up", "speed_up_low", "speed_up_high"]].tolist()
            assert shown == pytest.approx([found.speed_up.value, found.speed_up.low, found.speed_up.high])
            assert (row["paired_against"], row["paired_in_turns"]) == ("finetune", True)
    assert (
        table.loc[("timm:a", "frozen", 0), "pairs"] == 4 and table.loc[("timm:a", "frozen-tutorial", 0), "pairs"] == 3
    )
    assert table.loc[("timm:a", "frozen", 0), "paired_seconds"] == pytest.approx(5.0, rel=0.03)
    assert table.loc[("timm:a", "frozen", 0), "paired_memory_bytes"] == 200
    first = table.loc[("timm:a", "finetune", 1)]
    assert first["paired_seconds"] == pytest.approx(10.0, rel=0.03) and first["pairs"] == 4
    assert first[["paired_against", "speed_up", "speed_up_low"]].isna().all()
    names = ["pairs", "paired_seconds", "paired_memory_bytes", "paired_in_turns", "speed_up"]
    assert table.loc[("timm:b", "frozen", 0), names].isna().all()
