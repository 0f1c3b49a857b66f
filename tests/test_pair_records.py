"""Records of paired timing on disk: what is kept, what is refused, and runs from before they existed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.store import runs
from bench.store.pairs import PairRecord
from bench.store.runs import RunFolder, seal
from tests.runs import pair_record, record, write_run
from tl.cache import write_atomic
from tl.errors import ConfigError, UserError

SLOW, FAST = record("a", "finetune"), record("a", "frozen", seconds=4.0)
CELLS = (SLOW.cell, FAST.cell)


def a_run(folder: Path, *pairs: PairRecord) -> RunFolder:
    return write_run(folder, [SLOW, FAST], pairs=pairs)


def test_pairs_come_back_in_the_order_of_the_plan(tmp_path: Path) -> None:
    """Seeds of the cells don't matter: a pair has seed 0 and serves all."""
    pairs = [pair_record(CELLS, (10.0, 4.0), number=number, noise=0.1) for number in (2, 0, 1)]
    run = a_run(tmp_path / "run", *pairs)
    found = list(run.pairs().values())
    assert [one.pair.number for one in found] == [2, 0, 1]
    assert [one.sides for one in found] == [one.sides for one in pairs]
    assert found[0].side(FAST.cell.but(seed=9)) == found[0].sides[1]
    assert found[0].side(record("b", "frozen").cell) is None
    assert len({one.pair.id for one in pairs}) == 3


def test_an_earlier_record_is_kept(tmp_path: Path) -> None:
    """A pair that failed and is timed again moves aside; nothing is lost."""
    run = a_run(tmp_path / "run", pair_record(CELLS, (10.0, 4.0), status="oom"))
    run.write_pair(pair_record(CELLS, (10.0, 4.0)))
    assert [one.status for one in run.pairs().values()] == ["done"]
    (kept,) = (run.folder / "superseded").glob("*.json")
    assert json.loads(kept.read_text())["status"] == "oom"


def test_a_run_from_before_pairs_has_none(tmp_path: Path) -> None:
    """Its manifest doesn't name them, and there is no folder."""
    run = a_run(tmp_path / "run")
    path = run.folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["digest"], data["pairs"]
    path.write_bytes(seal((json.dumps({"schema_version": 8} | data | {"schema_version": 8}, indent=1) + "\n").encode()))
    assert run.manifest().pairs == {} and run.pairs() == {} and run.survey_pairs() == ({}, {})


def changed(run: RunFolder, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the only pair of a run, and seal it again."""
    (path,) = (run.folder / "pairs").glob("*.json")
    data = json.loads(path.read_text())
    del data["digest"]
    change(data)
    path.write_bytes(seal((json.dumps(data, indent=1) + "\n").encode()))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["pair"].update(number=5), "its content is that of pair"),
        (lambda d: d.update(train_images=3), "train_images=3: the run has 244"),
        (lambda d: d.update(val_images=3), "val_images=3: the run has 100"),
        (lambda d: d.update(steps=40), "40 batches have at most 5 images each"),
        (lambda d: d["sides"][0]["turns"]["val_images"].__setitem__(2, 16), "has 16: 3 batches"),
        (lambda d: d["sides"][0].update(turns=None), "without turns"),
        (lambda d: d["sides"].pop(), "1 sides, and the pair has 2 cells"),
        (lambda d: d.update(status="failed"), "with 2 sides that are done"),
        (lambda d: d.update(together=False), "apart=''"),
        (lambda d: d["sides"][0]["turns"]["train_seconds"].pop(), "train_seconds has 7 values"),
        (lambda d: d["sides"][0]["turns"].update(train_seconds=[], train_images=[]), "its regime trains"),
        (lambda d: d["sides"][0]["turns"]["val_seconds"].__setitem__(0, -1.0), "val_seconds.0=-1.0"),
        (lambda d: d["pair"].update(seconds=0), "pair.seconds=0"),
        (lambda d: d["pair"]["cells"][0]["config"].update(seed=3), "cells of a pair have seed 0"),
    ],
)
def test_a_record_that_can_not_be_true_is_damaged(
    change: Callable[[dict[str, Any]], object], words: str, tmp_path: Path
) -> None:
    """It was edited and sealed again. The path, the field and the value are said."""
    run = a_run(tmp_path / "run", pair_record(CELLS, (10.0, 4.0)))
    path = changed(run, change)
    with pytest.raises(UserError) as caught:
        run.pairs()
    assert str(caught.value).startswith(f"{path}: damaged") and words in str(caught.value), str(caught.value)
    assert "runs its pair again" in str(caught.value)
    intact, damaged = run.survey_pairs()
    assert intact == {} and list(damaged) == [path]
    kept = run.set_aside(path)
    assert kept.is_file() and run.pairs() == {}


def test_turns_of_other_numbers_can_not_be_compared(tmp_path: Path) -> None:
    """Neighbouring turns are compared, so each needs its neighbour."""

    def cut(data: dict[str, Any]) -> None:
        for values in data["sides"][0]["turns"].values():
            values.pop()

    changed(run := a_run(tmp_path / "run", pair_record(CELLS, (10.0, 4.0))), cut)
    with pytest.raises(UserError, match="its sides took 7 and 8 turns"):
        run.pairs()


def test_a_pair_of_other_images_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It belongs to another run, and was put here by hand."""
    other = pair_record([cell.replace(dataset_digest="1" * 64) for cell in CELLS], (10.0, 4.0))
    run = a_run(tmp_path / "run")
    run.write_pair(other)
    assert run.pairs() == {}
    assert "is of another run" in capsys.readouterr().err


def test_a_pair_needs_two_cells() -> None:
    """One regime alone has nothing to be compared with."""
    with pytest.raises(ConfigError, match="cells"):
        pair_record(CELLS[:1], (10.0,))


@pytest.mark.parametrize(
    ("fails_for_good", "words"), [(False, "was saved in the space reserved for it"), (True, "was NOT saved")]
)
def test_a_full_disk_loses_no_pair_if_the_reserved_space_suffices(
    fails_for_good: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the pair, and says whether it was saved. Its earlier record is kept in any case."""
    run = a_run(tmp_path / "run", pair_record(CELLS, (10.0, 4.0), status="oom"))
    reserve = run.folder / ".reserve"

    def full(path: Path, content: str | bytes) -> None:
        if path.parent.name == "pairs" and (fails_for_good or reserve.exists()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_atomic(path, content)

    monkeypatch.setattr(runs, "write_atomic", full)
    with run.reserved(0), pytest.raises(UserError) as caught:
        run.write_pair(pair_record(CELLS, (10.0, 4.0)))
    assert f"the pair that has just ended (a finetune and frozen cpu, pair 1) {words}" in str(caught.value)
    assert "No space left on device" in str(caught.value) and "\n" not in str(caught.value)
    assert [one.status for one in run.pairs().values()] == ["oom" if fails_for_good else "done"]
    (kept,) = (run.folder / "superseded").glob("*.json")
    assert json.loads(kept.read_text())["status"] == "oom"


def test_temporary_files_of_a_killed_command_are_removed(tmp_path: Path) -> None:
    """The next command that writes there removes them, but no record."""
    run = a_run(tmp_path / "run", pair_record(CELLS, (10.0, 4.0)))
    (left := run.folder / "pairs" / ".some.1.tmp").write_text("half a record")
    assert run.leftovers() == [left]
    with run.reserved(0):
        assert not left.exists()
    assert len(run.pairs()) == 1 and run.leftovers() == []
