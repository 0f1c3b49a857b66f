"""Devices by name: `cpu`, `cuda[:i]`, `mps`, and `auto` for the best one that this machine has."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tl.machine import cpu_name, pick


def present() -> dict[str, str]:
    """Device → its name, best first, `cpu` last."""
    found: dict[str, str] = {}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if torch.backends.mps.is_available():
        found["mps"] = f"{platform.machine()} GPU (Metal)"
    found["cpu"] = cpu_name()
    return found


def gpu_uuid(device: torch.device) -> str | None:
    """What NVML knows the GPU by; None for other devices, and where torch doesn't say."""
    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else str(uuid)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside; afterwards the caller's random state is as it was, on every device in use."""
    on_mps = torch.backends.mps.is_available()
    before = torch.mps.get_rng_state() if on_mps else None
    # An accelerator that nothing has used yet has no state to keep, and asking for it would start it.
    started = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=started):
        torch.manual_seed(seed)
        yield
    if before is not None:
        torch.mps.set_rng_state(before)


@contextmanager
def exact_single_precision() -> Iterator[None]:
    """`float32` means float32: by default newer GPUs round the inputs of convolutions to TF32."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def resolve(device: str) -> torch.device:
    """The device of that name. Raises `DeviceError` when this machine hasn't got it."""
    have = present()
    name = pick(device, have)
    return torch.device(name)
