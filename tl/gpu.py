"""Reads from NVIDIA's management library (NVML) what torch doesn't know of a GPU: other processes, clocks, throttling.

GPUs are identified by UUID, since torch and NVML can number them differently. A reading is None if there is no GPU,
no library or no permission. This module doesn't import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import Field

from tl.strict import Count, Strict

T = TypeVar("T")

SLOWDOWNS = ("HwSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "SwThermalSlowdown")
"""Reasons for low clocks that are not normal. A power limit and an idle GPU are."""


class GpuState(Strict):
    """The state of a GPU at one moment."""

    name: str | None = Field(None, description="name of the model")
    driver: str | None = Field(None, description="version of the driver")
    sm_clock_mhz: Count | None = None
    memory_clock_mhz: Count | None = None
    temperature_celsius: Count | None = None
    utilisation_percent: Count | None = Field(
        None, description="share of the last second, or part of it, in which a kernel of any process ran"
    )
    throttle_reasons: tuple[str, ...] | None = Field(
        None, description="NVML's names of the reasons for clocks below their maximum; empty if there are none"
    )
    other_processes: Count | None = Field(
        None,
        description="number of compute processes other than this one; None if NVML lists no process at all, since a "
        "container can hide them",
    )


def state(uuid: str, *, in_use: bool = False) -> GpuState:
    """Read the state of a GPU. `uuid` may have the form of torch or that of NVML.

    `in_use` says that this process works on the GPU. If NVML then doesn't list it, NVML uses the process ids of our
    container's host, and which of the listed processes are others is unknown.
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
    """Return the GPU memory of a process, with its CUDA context; None if NVML doesn't list it or its memory."""
    with _gpu(uuid) as (nvml, handle):
        return None if handle is None else _processes(nvml, handle).get(pid)


@contextmanager
def _gpu(uuid: str) -> Iterator[tuple[Any, Any]]:
    """Yield NVML and its handle of the GPU; each is None if it is not available."""
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
    """Return the answer, or None if the GPU, its driver or the installed bindings don't support the question."""
    try:
        return question()
    except (nvml.NVMLError, AttributeError):
        return None


def _processes(nvml: Any, handle: Any) -> dict[int, int | None]:
    """Return the GPU memory of each compute process by its id. Graphics is left out: a desktop always uses its GPU."""
    listed = _ask(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return {process.pid: process.usedGpuMemory for process in listed}


def _reasons(nvml: Any, handle: Any) -> tuple[str, ...]:
    bits = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    prefix = "nvmlClocksEventReason"
    # Keyed by bit, since some have two names. A reason is one bit; `All` and `None` are masks.
    named = {getattr(nvml, name): name.removeprefix(prefix) for name in sorted(dir(nvml)) if name.startswith(prefix)}
    return tuple(sorted(name for bit, name in named.items() if bit.bit_count() == 1 and bits & bit))
