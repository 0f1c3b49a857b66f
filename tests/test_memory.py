"""Tests of memory, measured separately for training and validation."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tl
import tl.prepare
import tl.train
from bench.analysis.metrics import METRICS, Finished
from tests.conftest import TINY
from tests.nvml import UUID, FakeNvml
from tests.runs import record
from tl import devices
from tl.memory import MemoryMarks

MIB = 2**20
HOG = 96 * MIB
SLACK = 24 * MIB
"""Memory that a tiny network may need itself."""
CPU = torch.device("cpu")
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can reset the mark")


def hog() -> None:
    """Use memory and free it. It is not from the C library, which may keep it."""
    with mmap.mmap(-1, HOG) as block:
        for place in range(0, HOG, mmap.PAGESIZE):
            block[place] = 1


def hogging(function: Callable[..., Any]) -> Callable[..., Any]:
    def with_hog(*arguments: Any, **named: Any) -> Any:
        hog()
        return function(*arguments, **named)

    return with_hog


@pytest.mark.alone
@linux
@pytest.mark.parametrize("place", ["open_store", "_train_pass", "val_pass"])
def test_memory_shows_in_the_phase_that_needs_it(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """A block that set-up, training or validation holds briefly is in its own mark and in the total only."""
    config = tl.TrainConfig(backbone=TINY[1], regime="frozen", weights="random", epochs=2)
    tl.train_model(config, mini, device="cpu")  # loads library code for the first time
    home = tl.prepare if place == "open_store" else tl.train
    monkeypatch.setattr(home, place, hogging(getattr(home, place)))
    result = tl.train_model(config, mini, device="cpu")
    marks = {"_train_pass": result.train_rss_bytes, "val_pass": result.val_rss_bytes}
    for phase, mark in marks.items():
        assert mark is not None
        above = mark - result.baseline_rss_bytes
        assert above > HOG - SLACK if phase == place else above < SLACK, phase
    assert result.peak_rss_bytes - result.baseline_rss_bytes > HOG - SLACK
    assert result.peak_rss_bytes >= max(marks.values())


def test_a_mark_that_cannot_be_reset_has_no_phases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The mark of the whole process says nothing about a pass: its memory is unknown, not 0."""
    monkeypatch.setattr("tl.memory._CLEAR", tmp_path / "nowhere" / "clear_refs")
    marks = MemoryMarks(CPU)
    marks.begin("train")
    hog()
    figures = marks.figures()
    assert figures["memory_method"] == "ru_maxrss, whole process"
    assert figures["train_rss_bytes"] is None and figures["val_rss_bytes"] is None
    assert figures["peak_rss_bytes"] >= figures["baseline_rss_bytes"] > 0


@pytest.mark.alone
@linux
def test_reading_takes_little_of_an_epoch() -> None:
    """Reading happens between training and validation; a millisecond would show in times of small networks."""
    marks, seconds = MemoryMarks(CPU), []
    for _ in range(50):
        started = time.perf_counter()
        marks.begin("train")
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 1e-3


@linux
def test_own_and_shared_memory_are_told_apart(mini: tl.Splits) -> None:
    """What a process shares is no part of its own; a proportional share lies between."""
    config = tl.TrainConfig(backbone=TINY[1], weights="random", epochs=1)
    result = tl.train_model(config, mini, device="cpu")
    own, proportional = result.baseline_private_bytes, result.baseline_pss_bytes
    assert own is not None and proportional is not None
    assert 0 < own <= proportional <= result.baseline_rss_bytes + SLACK


def test_elsewhere_own_memory_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tl.memory._ROLLUP", tmp_path / "smaps_rollup")
    assert set(MemoryMarks(CPU).baseline) == {"baseline_rss_bytes"}


def test_marks_are_shown_above_the_baseline_and_unknown_ones_are_none() -> None:
    """Resident memory includes libraries, so the baseline is subtracted; an unknown mark gives None."""
    one = record("timm:a", "frozen")
    assert one.result is not None
    known = one.result.replace(train_rss_bytes=one.result.baseline_rss_bytes + 7, cuda_val_allocated_bytes=5)
    cell = Finished(record=one, result=known, truth=None)
    read = {name: metric.of(cell) for name, metric in METRICS.items() if metric.unit == "B"}
    expected = {"train_rss_above_baseline_bytes": 7, "val_rss_above_baseline_bytes": None}
    expected |= {"cuda_val_allocated_bytes": 5, "cuda_train_allocated_bytes": None, "gpu_process_bytes": None}
    assert read | expected == read


class FakeCuda:
    """Fakes torch's memory counters of a GPU."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = self.peak = self.reserved = 0
        patch.setattr(torch.cuda, "memory_stats", lambda device: self.stats())
        patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(self, "peak", self.now))
        patch.setattr(torch.cuda, "memory_reserved", lambda device: self.reserved)
        patch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("nothing may wait for the device"))
        patch.setattr(devices, "gpu_uuid", lambda device: UUID)

    def stats(self) -> dict[str, int]:
        return {"allocated_bytes.all.peak": self.peak, "reserved_bytes.all.peak": self.reserved}

    def use(self, most: int, left: int) -> None:
        self.now, self.peak = left, max(self.peak, most)
        self.reserved = max(self.reserved, self.peak)


def epochs(marks: MemoryMarks, *passes: Callable[[], None]) -> None:
    """Run training and validation passes alternately."""
    for number, one in enumerate(passes):
        marks.begin("train" if number % 2 == 0 else "val")
        one()
        marks.end()


def test_phases_on_cuda(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> None:
    """Each pass is measured from its start; the total is the maximum with set-up; nothing waits for the device."""
    cuda = FakeCuda(monkeypatch)
    cuda.use(9000, 0)  # used before our marks begin
    marks = MemoryMarks(torch.device("cuda:0"))
    cuda.use(800, 100)
    passes = [(500, 100), (200, 100), (600, 100), (300, 100)]
    epochs(marks, *(lambda p=p: cuda.use(*p) for p in passes))
    nvml.processes = [(os.getpid(), 10_000), (1, 77)]
    figures = marks.figures()
    assert figures["cuda_train_allocated_bytes"] == 600
    assert figures["cuda_val_allocated_bytes"] == 300
    assert figures["cuda_allocated_bytes"] == 800
    assert figures["gpu_process_bytes"] == 10_000
    assert figures["mps_current_bytes"] is None and figures["mps_driver_bytes"] is None


@pytest.mark.parametrize("listed", [[], [(1, 10_000)], [(os.getpid(), None)], [(os.getpid(), 10)]])
def test_gpu_memory_of_a_process_that_is_not_ours_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
    nvml: FakeNvml,
    listed: list[tuple[int, int | None]],
) -> None:
    """Memory is None if the process is not listed, not reported, or reported with less than torch holds."""
    cuda = FakeCuda(monkeypatch)
    marks = MemoryMarks(torch.device("cuda:0"))
    cuda.use(500, 100)
    nvml.processes = listed
    assert marks.figures()["gpu_process_bytes"] is None


def test_metal_is_read_as_passes_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest reading counts, of tensors and of the driver, since Metal has no high-water mark."""
    held = [0, 0]
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: held[0])
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: held[1])
    marks = MemoryMarks(torch.device("mps"))
    held[:] = 900, 990  # set-up: no pass
    epochs(marks, *(lambda p=p: held.__setitem__(slice(None), p) for p in [(300, 400), (200, 500)]))
    held[:] = 900, 990
    figures = marks.figures()
    assert (figures["mps_current_bytes"], figures["mps_driver_bytes"]) == (300, 500)
    assert figures["cuda_allocated_bytes"] is None and figures["gpu_process_bytes"] is None


@pytest.mark.alone
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_fine_tuning_on_cuda_needs_more_than_validation(mini: tl.Splits) -> None:
    """Training keeps all activations and gradients, validation those of one layer; NVML's figure includes torch's."""
    config = tl.TrainConfig(backbone=TINY[0], regime="finetune", weights="random", epochs=2)
    result = tl.train_model(config, mini, device="cuda")
    assert result.cuda_train_allocated_bytes > result.cuda_val_allocated_bytes > 0
    assert result.cuda_allocated_bytes >= result.cuda_train_allocated_bytes
    assert result.gpu_process_bytes is None or result.gpu_process_bytes >= result.cuda_reserved_bytes
