"""The smallest difference in epoch time that a machine can show, `doctor --noise`."""

from __future__ import annotations

import io
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import ttest_1samp

from bench.execution.base import NO_LIMITS, Limits, Outcome
from bench.execution.monitor import Monitor
from bench.store.environment import MachineState
from bench.store.records import Cell
from bench.sweep import noise as module
from bench.sweep.noise import measure, noise
from tests.conftest import TINY
from tests.runs import record
from tl.datasets import Splits
from tl.errors import UserError
from tl.gpu import GpuState

PAIRS = [(1.00, 1.02), (1.05, 0.99), (0.98, 1.01), (1.02, 1.03), (0.97, 1.00)]


def test_the_interval_is_students() -> None:
    """Half-width and mean of the log ratios equal scipy's one-sample test; a single pair's is √n times as wide."""
    interval = ttest_1samp([math.log(b / a) for a, b in PAIRS], 0).confidence_interval(0.95)
    half = (interval.high - interval.low) / 2
    found = noise(PAIRS)
    assert found.pairs == 5
    assert found.all_runs == pytest.approx(math.expm1(half))
    assert found.one_run == pytest.approx(math.expm1(half * math.sqrt(5)))
    assert found.mean == pytest.approx(math.expm1((interval.high + interval.low) / 2))


def test_drift_is_distinguished_from_noise() -> None:
    """A machine that gets 1% slower with every run drifts by 1.01⁹ in ten runs, and has no noise."""
    times = [1.01**run for run in range(10)]
    found = noise(list(zip(times[::2], times[1::2], strict=True)))
    assert found.drift == pytest.approx(1.01**9 - 1)
    assert found.mean == pytest.approx(0.01)
    assert found.one_run == pytest.approx(0, abs=1e-9)


class FakeExecutor:
    """Each run takes the next of the given epoch times, and advances the clock by `wall` seconds."""

    def __init__(self, seconds: Iterable[float], patch: pytest.MonkeyPatch, wall: float = 1.0) -> None:
        self.seconds, self.wall, self.now = iter(seconds), wall, 100.0
        self.calls: list[tuple[Any, ...]] = []
        patch.setattr(module.time, "monotonic", lambda: self.now)

    def call(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, on_event: Any = None) -> Outcome:
        timeout = limits.seconds
        assert function == "bench.execution.worker:run_cell" and timeout is not None
        self.calls.append(arguments)
        self.now += min(self.wall, timeout)
        if timeout < self.wall:
            return Outcome(status="timeout", reason="late", wall_seconds=timeout)
        on_event(MachineState(gpu_after=GpuState(other_processes=1)))
        result = record("timm:a", "frozen", seconds=next(self.seconds)).result
        return Outcome(status="done", value=(result, ""), wall_seconds=self.wall)


def run_measure(executor: FakeExecutor, mini: Splits) -> tuple[list[tuple[float, float]], str]:
    text = io.StringIO()
    cell = Cell(config=module.CONFIG, weights_digest="", dataset_digest=mini.digest, device="cpu")
    monitor = Monitor(lambda warning: None)
    pairs = measure(cell, mini, executor, Console(file=text, width=200), monitor)
    assert any("on the GPU" in warning for warning in monitor.end().warnings), "the GPU's state is received"
    return pairs, text.getvalue()


def test_runs_are_paired_in_turn(mini: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same cell runs A B A B. Neighbours are a pair with one line of output, up to the largest number of pairs."""
    executor = FakeExecutor(range(10, 90), monkeypatch)
    pairs, output = run_measure(executor, mini)
    steps = [second - first for first, second in pairs]
    assert len(pairs) == module.MOST_PAIRS and steps == pytest.approx([1.0] * len(pairs))
    assert [first for first, _ in pairs] == pytest.approx([10 + 2 * n + 0.02 for n in range(len(pairs))])
    assert len({str(arguments) for arguments in executor.calls}) == 1
    assert len(output.splitlines()) == len(pairs)


def test_it_ends_in_about_a_minute(mini: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, a run that is not done when the time is up is ended and doesn't count."""
    executor = FakeExecutor(range(10, 90), monkeypatch, wall=7.0)
    pairs, _ = run_measure(executor, mini)
    assert len(pairs) == 3 and executor.now - 100 == module.BUDGET_SECONDS


def test_too_few_pairs_say_nothing(mini: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in one line and no figures."""
    with pytest.raises(UserError, match=r"only 1 pairs of runs in 55 s, and 3 are needed"):
        run_measure(FakeExecutor(range(10, 90), monkeypatch, wall=20.0), mini)


def test_a_cell_that_fails(mini: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the cell's reason."""
    executor = FakeExecutor([], monkeypatch)
    failed = Outcome(status="failed", reason="the moon", wall_seconds=1)
    monkeypatch.setattr(executor, "call", lambda *_, **__: failed)
    with pytest.raises(UserError, match="failed: the moon"):
        run_measure(executor, mini)


@pytest.mark.parametrize(
    ("pairs", "busy", "words"),
    [
        ([(1, 1.001), (1, 0.999), (1, 1.0)], True, ""),
        ([(1, 1.5), (1, 0.7), (1, 1.0)], True, "end other programs"),
        ([(1, 1.5), (1, 0.7), (1, 1.0)], False, "--seeds"),
        ([(1, 1.1), (1.2, 1.3), (1.41, 1.54), (1.68, 1.82)], False, "drifts"),
    ],
)
def test_advice_where_the_noise_is_large(pairs: list[tuple[float, float]], busy: bool, words: str) -> None:
    """The advice is one line that fits the cause; there is none if the noise is small."""
    advice = module._advice(noise(pairs), busy=busy)
    assert words in advice and bool(advice) is bool(words)


def test_the_command_from_start_to_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny network and few pairs run in real processes. The output has n, the kind of interval and the drift."""
    monkeypatch.setattr(module, "CONFIG", module.CONFIG.replace(backbone=TINY[1], regime="frozen", epochs=2))
    monkeypatch.setattr(module, "MOST_PAIRS", 3)
    monkeypatch.setattr(module, "BUDGET_SECONDS", 300.0)  # tests may run together with other work
    monkeypatch.setattr(module, "usable_cores", lambda: 1)
    module.examine_noise()
    output = capsys.readouterr().out
    assert len(re.findall(r"pair \d of at most 3: A [\d.]+ s per epoch, B", output)) == 3
    assert re.search(r"\(95%\): [\d.]+% between two cells with one run each, [\d.]+% with 3 runs each", output)
    assert "n = 3 pairs" in output and "t interval of log ratios" in output and "drift from the first run" in output


def test_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    """It ends with exit status 130 and one line, without a traceback."""
    arguments = [sys.executable, "-m", "bench", "doctor", "--noise"]
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    try:
        with process.stdout:
            assert "again and again" in process.stdout.readline()
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
            assert "interrupted" in process.stdout.readline()
    finally:
        process.kill()  # otherwise a failed assertion would leave a minute of load behind
    assert (tmp_path / "errors").read_text() == ""
