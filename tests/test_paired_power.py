"""The program `paired_power`: what replays of made-up pools find, and what the report says of it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.analysis.paired import compare_twins
from bench.devtools import paired_power
from bench.devtools.made_up import this_environment
from bench.devtools.paired_power import LOAD, read, write
from bench.devtools.paired_power_report import COUNTS, Outcome, Pool, _estimate, _log_ratio, render, replay
from bench.execution.executors import EXECUTORS
from bench.execution.process import PRELOAD
from bench.store.pairs import PairRecord
from bench.store.records import Cell
from tests import light
from tests.runs import pair_record, record
from tl.errors import UserError

TUNED, FROZEN = record("timm:a", "finetune").cell, record("timm:a", "frozen").cell


def twins(cell: Cell, scatter: float, bias: float = 0.0, count: int = 40) -> list[PairRecord]:
    """Pairs of one cell whose log ratios have this scatter around a bias."""
    draws = np.random.default_rng(3)
    ratios = np.exp(draws.normal(bias, scatter, count)).tolist()
    return [
        pair_record((cell, cell), (1.0, ratio), number=number).replace(wall_seconds=8.0)
        for number, ratio in enumerate(ratios)
    ]


def pool(*records: PairRecord, load: str = "") -> Pool:
    return Pool(command="python -m x", environment=this_environment(), load=load, records=records)


def share(outcome: Outcome, planted: str, pairs: int = 5) -> float:
    tried = outcome.of(planted, pairs)
    assert tried
    return tried.found / tried.replays


def test_a_quiet_machine_shows_what_was_planted() -> None:
    """With a scatter of 0.3%, 5% and 10% are found and nothing else is, and intervals cover the truth."""
    (outcome,) = replay(pool(*twins(TUNED, 0.003)), 200)
    assert (outcome.pool, outcome.lost, outcome.pair_seconds) == (40, 0, 8.0)
    assert share(outcome, "nothing") == 0 and share(outcome, "5%") > 0.95 and share(outcome, "10%") == 1
    assert outcome.scatter == pytest.approx(0.003, rel=0.3)
    for planted in ("nothing", "5%", "10%"):
        tried = outcome.of(planted, 5)
        assert tried and tried.covered / tried.replays > 0.92 and 0 < tried.half_width < 0.02
    assert outcome.needed("10%") == 3


def test_a_noisy_machine_needs_more_pairs() -> None:
    """With a scatter of 8%, five pairs don't find 5%, and more find more."""
    (outcome,) = replay(pool(*twins(TUNED, 0.08)), 200)
    assert share(outcome, "5%") < 0.5 and share(outcome, "nothing") < 0.1
    assert share(outcome, "10%", 20) > share(outcome, "10%", 5) + 0.2
    assert outcome.needed("5%") is None


def test_which_process_is_first_makes_no_difference() -> None:
    """The sides are swapped at random, so a bias of the second process is scatter, not a difference."""
    (outcome,) = replay(pool(*twins(TUNED, 0.005, bias=0.06)), 200)
    assert share(outcome, "nothing") < 0.1
    tried = outcome.of("nothing", 8)
    assert tried and tried.covered / tried.replays > 0.9


def test_replays_depend_on_the_pool_alone() -> None:
    """The same pool gives the same outcomes, whatever the order of its records."""
    records = twins(TUNED, 0.03, count=10)
    in_time = [one.replace(started=one.started.replace(microsecond=number)) for number, one in enumerate(records)]
    assert replay(pool(*in_time), 20) == replay(pool(*reversed(in_time)), 20)


def test_cells_are_replayed_apart_and_lost_pairs_count() -> None:
    """A pair without a result is in no replay. A pool allows no more pairs than it has."""
    failed = pair_record((FROZEN, FROZEN), (1.0, 1.0), number=99, status="failed")
    tuned, frozen = replay(pool(*twins(TUNED, 0.01, count=6), *twins(FROZEN, 0.01, count=4), failed), 10)
    assert (tuned.cell.config.regime, tuned.pool, tuned.lost) == ("finetune", 6, 0)
    assert (frozen.cell.config.regime, frozen.pool, frozen.lost) == ("frozen", 4, 1)
    assert {one.pairs for one in tuned.tried} == {3, 5} and {one.pairs for one in frozen.tried} == {3}
    with pytest.raises(UserError, match="no pair of the pool has a result"):
        replay(pool(failed), 10)


def test_the_report() -> None:
    """A row per cell in both tables; what misses its target is bold, and what can't be said is n/a."""
    outcomes = [
        *replay(pool(*twins(TUNED, 0.003)), 100),
        *replay(pool(*twins(FROZEN, 0.1), load=LOAD), 100),
        *replay(pool(*twins(FROZEN, 0.01, count=4)), 100),
    ]
    text = render(outcomes)
    powers, needed = (part.split("\n\n")[1].splitlines()[2:] for part in text.split("## ")[1:3])
    assert len(powers) == len(needed) == 3
    found = [cell.strip() for cell in powers[0].split("|")][6:9]
    assert "timm:a finetune" in powers[0] and found[0].startswith("0.0% (") and found[2].startswith("100.0% (")
    assert LOAD in powers[1] and "**" in powers[1]
    assert "n/a" in powers[2] and "**" not in powers[2]
    assert f"more than {COUNTS[-1]}" in needed[1] and "| 24 " in needed[0], "three pairs of 8 s"
    assert "`python -m x`" in text


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Raw turns are kept, and nothing is overwritten. Other files are refused in one line."""
    given = pool(*twins(TUNED, 0.01, count=3))
    paths = {write(tmp_path, "pool", [given]) for _ in range(3)}
    assert len(paths) == 3 and list(read(Pool, list(paths))) == [given] * 3
    other = tmp_path / "other.json"
    for content in ("[]x", '[{"a": 1}]', "3", '{"a": 1}'):
        other.write_text(content)
        with pytest.raises(UserError, match=r"other\.json: can't be read as a list of Pool"):
            list(read(Pool, [other]))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["paired_power", *arguments])
    return paired_power.main()


def test_from_start_to_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Real processes take turns; then their pool is replayed and reported."""
    monkeypatch.setitem(EXECUTORS, "process", lambda address: light.LightExecutor(PRELOAD))
    monkeypatch.setenv("TL_CACHE", str(Path.cwd() / "cache"))
    chosen = ("--backbone", light.QUICK[0], "--data", "synthetic-mini", "--pairs", "3", "--seconds", "0.01")
    assert call(monkeypatch, "record", *chosen, "--loaded", "--out", "out") == 0
    (path,) = Path("out").glob("pool-*.json")
    (kept,) = json.loads(path.read_text())
    assert kept["load"] == LOAD and len(kept["records"]) == 6
    assert all(len(side["turns"]["train_seconds"]) >= 6 for one in kept["records"] for side in one["sides"])
    assert call(monkeypatch, "replay", str(path), "--replays", "10", "--out", "out") == 0
    (replayed,) = Path("out").glob("replayed-*.json")
    capsys.readouterr()
    assert call(monkeypatch, "render", str(replayed), "--pairs", "3") == 0
    text = capsys.readouterr().out
    assert "Comparisons of 3 pairs" in text and "quick0 finetune" in text and "quick0 frozen" in text
    with pytest.raises(UserError, match="--replays 0 must be at least 1"):
        call(monkeypatch, "replay", str(path), "--replays", "0", "--out", "out")


def test_pairs_as_they_ran_show_what_drawing_hides() -> None:
    """An advantage of one process, or pairs that resemble their neighbours, make false differences there alone."""
    (fair,) = replay(pool(*twins(TUNED, 0.005)), 100)
    (biased,) = replay(pool(*twins(TUNED, 0.005, bias=0.06)), 100)
    for outcome, false in ((fair, 0), (biased, 36)):
        near = next(each for each in outcome.neighbours if each.pairs == 5)
        assert (near.compared, near.found) == (36, false)
        assert near.covered >= 32 if false == 0 else near.covered == 0
    assert "| 36 of 36" in render([biased])


def test_a_replay_compares_as_bench_time_does() -> None:
    """Pairs in the order in which they ran have the interval of `compare_twins`."""
    records = twins(TUNED, 0.02, count=5)
    found = compare_twins(records)
    assert found and found.speed_up
    ours = _estimate(math.exp(_log_ratio(one)) for one in records)
    assert (ours.low, ours.high) == pytest.approx((found.speed_up.low, found.speed_up.high))
