"""The smallest difference in epoch time that a machine can show, `doctor --noise`."""

from __future__ import annotations

import io
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import ttest_1samp

from bench.execution.base import PairAttempt, PairEvents, PairJob
from bench.execution.executors import EXECUTORS
from bench.execution.process import PRELOAD
from bench.store.environment import environment
from bench.store.pairs import PairRecord
from bench.store.records import Cell
from bench.sweep import noise as module
from bench.sweep.noise import Measurement, measure, noise
from tests import light
from tests.runs import pair_record, record
from tl.datasets import Splits
from tl.errors import UserError

CELL = record("timm:a", "finetune").cell
PAIRS = [(1.00, 1.02), (1.05, 0.99), (0.98, 1.01), (1.02, 1.03)]
"""Seconds per epoch of both processes, by pair. With four pairs no serial correlation is looked at."""


def pairs(seconds: Sequence[tuple[float, float]]) -> list[PairRecord]:
    """Pairs of two processes of one cell."""
    return [pair_record((CELL, CELL), each, number=number) for number, each in enumerate(seconds)]


def test_the_interval_is_students() -> None:
    """Half-width and mean of the log ratios equal scipy's one-sample test."""
    interval = ttest_1samp([math.log(b / a) for a, b in PAIRS], 0).confidence_interval(0.95)
    found = noise(pairs(PAIRS))
    assert found.pairs == 4 and found.within == pytest.approx(0, abs=1e-9)
    assert found.smallest == pytest.approx(math.expm1((interval.high - interval.low) / 2))
    assert found.mean == pytest.approx(math.expm1((interval.high + interval.low) / 2))


def test_drift_is_distinguished_from_noise() -> None:
    """A machine that gets 5% slower with every pair drifts by 1.05⁴ in five, and has no noise."""
    found = noise(pairs([(1.05**number, 1.01 * 1.05**number) for number in range(5)]))
    assert found.drift == pytest.approx(1.05**4 - 1)
    assert found.mean == pytest.approx(0.01)
    assert found.smallest == pytest.approx(0, abs=1e-9)


class FakeExecutor:
    """Each pair takes the next of the given ratios, and advances the clock by `wall` seconds."""

    def __init__(self, ratios: Iterable[float], patch: pytest.MonkeyPatch, wall: float = 1.0) -> None:
        self.ratios, self.wall, self.now = iter(ratios), wall, 100.0
        self.jobs: list[PairJob] = []
        self.status, self.apart = "done", 0
        """`apart` is how many of the first pairs are timed one after the other."""
        patch.setattr(module.time, "monotonic", lambda: self.now)

    def run_pairs(self, jobs: Iterable[PairJob], events: PairEvents, stop: Callable[[], bool]) -> None:
        for job in jobs:
            if stop():
                return
            events.pair_started(job.pair)
            self.jobs.append(job)
            limit = job.timeout_seconds
            assert limit is not None and limit > 0
            events.pair_ended(job.pair, self.attempt(job, "timeout" if limit < self.wall else self.status))
            self.now += min(self.wall, limit)

    def attempt(self, job: PairJob, status: Any) -> PairAttempt:
        made = pair_record(job.pair.cells, (1.0, next(self.ratios)), number=job.pair.number, status=status)
        return PairAttempt(
            status=status,
            reason=made.sides[1].reason,
            apart="no memory" if job.pair.number < self.apart else "",
            steps=4,
            batches=3,
            sides=made.sides,
            started=datetime.now(UTC),
            wall_seconds=self.wall,
            environment=environment(),
        )


def run_measure(executor: Any, mini: Splits) -> tuple[Measurement, list[str]]:
    text = io.StringIO()
    cell = Cell(config=module.CONFIG, weights_digest="", dataset_digest=mini.digest, device="cpu")
    found = measure(cell, mini, executor, Console(file=text, width=200))
    return found, text.getvalue().splitlines()


def test_both_processes_run_the_same_cell(mini: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair has a line of output, up to the largest number of pairs."""
    executor = FakeExecutor([1.01] * 99, monkeypatch)
    found, lines = run_measure(executor, mini)
    assert len(found.records) == len(lines) == module.MOST_PAIRS
    assert all(job.pair.cells[0] == job.pair.cells[1] for job in executor.jobs)
    assert len({job.pair.id for job in executor.jobs}) == module.MOST_PAIRS
    assert "pair 1: the second process was 1.0% slower than the first" in lines[0]
    _, lines = run_measure(FakeExecutor([0.99] * 99, monkeypatch), mini)
    assert "pair 1: the second process was 1.0% faster than the first" in lines[0]


def test_it_ends_in_a_minute(mini: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pair is started that would need longer than what is left, if there are enough without it."""
    executor = FakeExecutor([1.0] * 99, monkeypatch, wall=10.0)
    found, _ = run_measure(executor, mini)
    assert len(found.records) == 5 and executor.now - 100 == 50


def test_too_few_pairs_say_nothing(mini: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pair that isn't done when the time is up is ended. It ends in one line and no figures."""
    executor = FakeExecutor([1.0] * 99, monkeypatch, wall=20.0)
    with pytest.raises(UserError, match=r"only 2 process pairs ended in 55 s, and 3 are needed"):
        run_measure(executor, mini)
    assert executor.now - 100 == module.BUDGET_SECONDS


def test_pairs_that_took_no_turns_do_not_count(mini: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is said with its reason. If too few others are left, the error says why."""
    executor = FakeExecutor([1.5, 1.5, *[1.01] * 99], monkeypatch)
    executor.apart = 2
    found, lines = run_measure(executor, mini)
    assert len(found.records) == module.MOST_PAIRS - 2
    said = "doesn't count: it was timed one after the other, because no memory"
    assert lines[:2] == [f"  WARNING: pair 1 {said}", f"  WARNING: pair 2 {said}"]
    assert noise(found.records).mean == pytest.approx(0.01)
    executor = FakeExecutor([1.0] * 99, monkeypatch)
    executor.apart = 99
    with pytest.raises(UserError, match=r"only 0 process pairs took turns, and 3 are needed: .* because no memory"):
        run_measure(executor, mini)


def test_a_cell_that_fails(mini: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the cell's reason, and no further pair is tried."""
    executor = FakeExecutor([1.0] * 99, monkeypatch)
    executor.status = "failed"
    with pytest.raises(UserError, match="failed: took"):
        run_measure(executor, mini)
    assert len(executor.jobs) == 1


@pytest.mark.parametrize(
    ("seconds", "busy", "words"),
    [
        ([(1, 1.001), (1, 0.999), (1, 1.0)], True, ""),
        ([(1, 1.5), (1, 0.7), (1, 1.0)], True, "end other programs on this machine"),
        ([(1, 1.5), (1, 0.7), (1, 1.0)], False, "give `run` and `time` more --pairs"),
        ([(1, 1.0), (1.5, 1.5), (2, 2.001)], False, ""),
    ],
)
def test_advice_where_the_noise_is_large(seconds: list[tuple[float, float]], busy: bool, words: str) -> None:
    """The advice is one line that fits the cause. There is none if the noise is small, whatever the drift."""
    advice = module._advice(noise(pairs(seconds)), busy=busy)
    assert words in advice and bool(advice) is bool(words)


def test_the_command_from_start_to_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Real processes take turns; each reports the same times, so no noise is found."""
    monkeypatch.setitem(EXECUTORS, "process", lambda address: light.LightExecutor(PRELOAD))
    monkeypatch.setattr(module, "CONFIG", module.CONFIG.replace(backbone=light.QUICK[0]))
    monkeypatch.setattr(module, "MOST_PAIRS", 3)
    monkeypatch.setattr(module, "PAIR_SECONDS", 0.01)
    monkeypatch.setattr(module, "BUDGET_SECONDS", 300.0)  # tests may run together with other work
    module.examine_noise()
    output = capsys.readouterr().out
    assert len(re.findall(r"pair \d: the second process was 0\.0% \w+ than the first, over \d+ rounds", output)) == 3
    assert "in a minute (95%): 0.0%" in output and "over 3 process pairs" in output
    assert "scatter by 0.0%, those of the rounds within a pair by 0.0%" in output
    assert "drift of the epoch time" in output


def test_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    """It ends with exit status 130 and one line, without a traceback."""
    arguments = [sys.executable, "-m", "bench", "doctor", "--noise"]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        with process.stdout:
            assert "in turns, for about a minute" in process.stdout.readline()
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
            assert "interrupted" in process.stdout.readline()
    finally:
        process.kill()  # otherwise a failed assertion would leave a minute of load behind
    assert (tmp_path / "errors").read_text() == ""
