"""Devices by name: `cpu`, `cuda[:i]`, `mps`, and `auto` for the best one that this machine has."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

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


LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def memory_format(device: torch.device, precision: str) -> str:
    """The layout of images and convolutions in which networks run fastest: a key of `LAYOUTS`.

    A GPU's exact single-precision kernels are faster, and load far faster, on contiguous tensors; its half-precision
    ones and a CPU's are faster on channels_last. Results differ by rounding alone.
    """
    exact = device.type == "cuda" and precision == "fp32"
    return "contiguous" if exact else "channels_last"


def resolve(device: str) -> torch.device:
    """The device of that name. Raises `DeviceError` when this machine hasn't got it."""
    have = present()
    name = pick(device, have)
    return torch.device(name)
