"""Tests of readings from NVML, and of readings that it refuses."""

from __future__ import annotations

import os
import sys

import pytest

from tests.nvml import UUID, FakeNvml
from tl import gpu
from tl.gpu import GpuState


def test_the_state_of_a_gpu(nvml: FakeNvml) -> None:
    """Each reading is in its field; reasons have names and no masks; this process isn't counted as another."""
    nvml.processes = [(os.getpid(), 1), (1, 2), (2, None)]
    nvml.utilisation, nvml.reasons = [35], 4 | 64
    assert gpu.state(UUID) == GpuState(
        name="GPU 9000",
        driver="580.1",
        sm_clock_mhz=1980,
        memory_clock_mhz=2619,
        temperature_celsius=51,
        utilisation_percent=35,
        throttle_reasons=("HwThermalSlowdown", "SwPowerCap"),
        other_processes=2,
    )
    assert nvml.open == 0


def test_a_gpu_is_identified_by_its_uuid(nvml: FakeNvml) -> None:
    """The UUID may have the form of torch or of NVML; an unknown UUID gives no readings."""
    assert gpu.state(f"GPU-{UUID}").driver == gpu.state(UUID).driver == "580.1"
    assert gpu.state(UUID.replace("0a1b", "ffff")) == GpuState()
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("question", "fields"),
    [
        ("name", {"name"}),
        ("driver", {"driver"}),
        ("clocks", {"sm_clock_mhz", "memory_clock_mhz"}),
        ("temperature", {"temperature_celsius"}),
        ("utilisation", {"utilisation_percent"}),
        ("reasons", {"throttle_reasons"}),
        ("processes", {"other_processes"}),
    ],
)
def test_what_is_refused_is_unknown_and_the_rest_is_known(
    nvml: FakeNvml,
    question: str,
    fields: set[str],
) -> None:
    """A refused reading is None, never 0, and the other readings are still there."""
    nvml.processes = [(os.getpid(), 1)]
    nvml.refuses = {question}
    assert {name for name, value in gpu.state(UUID).model_dump().items() if value is None} == fields


def test_bindings_without_a_function_count_as_a_refusal(
    nvml: FakeNvml,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Older bindings lack functions; the other readings are still there."""
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetCurrentClocksEventReasons")
    state = gpu.state(UUID)
    assert state.throttle_reasons is None and state.driver == "580.1"


def test_an_empty_list_of_processes_proves_nothing(nvml: FakeNvml) -> None:
    """A container can hide processes. If only this process is listed, there is no other."""
    assert gpu.state(UUID).other_processes is None
    nvml.processes = [(os.getpid(), 1)]
    assert gpu.state(UUID).other_processes == 0


def test_a_working_process_that_is_not_listed_has_another_id_there(nvml: FakeNvml) -> None:
    """A listed process may be this one under its id on the container's host, so others are unknown."""
    nvml.processes = [(123_456, 1)]
    assert gpu.state(UUID).other_processes == 1, "before it works, it can't be the listed one"
    assert gpu.state(UUID, in_use=True).other_processes is None
    nvml.processes += [(os.getpid(), 1)]
    assert gpu.state(UUID, in_use=True).other_processes == 1


def test_memory_of_one_process(nvml: FakeNvml) -> None:
    """The memory is that of the process only; None if it isn't listed or its memory isn't reported."""
    nvml.processes = [(1, 500), (2, 700), (3, None)]
    assert [gpu.process_memory_bytes(UUID, pid) for pid in (1, 2, 3, 4)] == [500, 700, None, None]


def test_without_a_driver_or_the_bindings_nothing_is_known(
    nvml: FakeNvml,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither is an error; readings are None."""
    nvml.refuses = {"init"}
    assert gpu.state(UUID) == GpuState() and gpu.process_memory_bytes(UUID, 1) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu.state(UUID) == GpuState() and gpu.process_memory_bytes(UUID, 1) is None
