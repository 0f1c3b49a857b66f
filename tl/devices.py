"""Devices by name: `cpu`, `cuda[:i]`, `mps`, and `auto` for the best one that this machine has."""

from __future__ import annotations

import platform

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


def resolve(device: str) -> torch.device:
    """The device of that name. Raises `DeviceError` when this machine hasn't got it."""
    have = present()
    name = pick(device, have)
    return torch.device(name)
