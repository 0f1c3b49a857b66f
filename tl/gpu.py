"""What NVIDIA's management library (NVML) knows of a GPU that torch doesn't: other processes, clocks, throttling.

GPUs go by their UUID: torch and NVML can number the same ones differently. No torch here. Whatever can't be
had, for want of a GPU, of the library or of permission, is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import Field

from tl.strict import Strict

T = TypeVar("T")

SLOWDOWNS = ("HwSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "SwThermalSlowdown")
"""Reasons for low clocks that are no part of ordinary work, as a power limit or an idle GPU is."""


class GpuState(Strict):
    """A GPU at one moment."""

    name: str | None = Field(None, description="model")
    driver: str | None = Field(None, description="version")
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_celsius: int | None = None
    utilisation_percent: int | None = Field(
        None, description="share of the last second, or part of it, in which some kernel ran, whoever's it was"
    )
    throttle_reasons: tuple[str, ...] | None = Field(
        None, description="NVML's names for why the clocks are not at their highest; empty where they are"
    )
    other_processes: int | None = Field(
        None,
        description="compute processes on it but this one; None where none at all is listed, this one included: "
        "in a container processes can be hidden",
    )


def state(uuid: str, *, in_use: bool = False) -> GpuState:
    """The GPU now. `uuid` as torch or as NVML writes it.

    `in_use` says that this process has work on it. Where NVML then doesn't list it, it numbers processes as the
    world outside of our container does, and which of them are others can't be known.
    """
    with _gpu(uuid) as (nvml, handle):
        if handle is None:
            return GpuState()
        listed = _processes(nvml, handle)
        others = [pid for pid in listed if pid != os.getpid()]
        known = os.getpid() in listed if in_use else bool(listed)
        return GpuState(
            name=_ask(nvml, lambda: nvml.nvmlDeviceGetName(handle)),
            driver=_ask(nvml, nvml.nvmlSystemGetDriverVersion),
            sm_clock_mhz=_ask(nvml, lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            memory_clock_mhz=_ask(nvml, lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            temperature_celsius=_ask(nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            utilisation_percent=_ask(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            throttle_reasons=_ask(nvml, lambda: _reasons(nvml, handle)),
            other_processes=len(others) if known else None,
        )


def process_memory_bytes(uuid: str, pid: int) -> int | None:
    """GPU memory that a process holds, its CUDA context included; None where NVML doesn't list it or won't say."""
    with _gpu(uuid) as (nvml, handle):
        return None if handle is None else _processes(nvml, handle).get(pid)


@contextmanager
def _gpu(uuid: str) -> Iterator[tuple[Any, Any]]:
    """NVML, and its handle of the GPU or None."""
    try:
        import pynvml
    except ImportError:
        yield None, None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver on this machine
        yield None, None
        return
    try:
        name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        yield pynvml, _ask(pynvml, lambda: pynvml.nvmlDeviceGetHandleByUUID(name.encode()))
    finally:
        pynvml.nvmlShutdown()


def _ask(nvml: Any, question: Callable[[], T]) -> T | None:
    """The answer, or None where the GPU, its driver or the installed bindings don't know the question."""
    try:
        return question()
    except (nvml.NVMLError, AttributeError):
        return None


def _processes(nvml: Any, handle: Any) -> dict[int, int | None]:
    """Process id → bytes on that GPU, of compute processes: a desktop is on its GPU all the time."""
    listed = _ask(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return {process.pid: process.usedGpuMemory for process in listed}


def _reasons(nvml: Any, handle: Any) -> tuple[str, ...]:
    bits = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    prefix = "nvmlClocksEventReason"
    # By bit: some have two names. `All` and `None` are no reasons but masks; a reason is one bit.
    named = {getattr(nvml, name): name.removeprefix(prefix) for name in sorted(dir(nvml)) if name.startswith(prefix)}
    return tuple(sorted(name for bit, name in named.items() if bit.bit_count() == 1 and bits & bit))
