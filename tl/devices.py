"""Devices by name: `cpu`, `cuda[:i]`, `mps`, and `auto` for the best one of this machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tl.machine import cpu_name, pick


def present() -> dict[str, str]:
    """Return the model name of each device of this machine: the best device first, `cpu` last."""
    found: dict[str, str] = {}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if torch.backends.mps.is_available():
        found["mps"] = f"{platform.machine()} GPU (Metal)"
    found["cpu"] = cpu_name()
    return found


def gpu_uuid(device: torch.device) -> str | None:
    """Return the UUID by which NVML knows the GPU; None for other devices, or if torch doesn't report it."""
    if device.type != "cuda":
        return None
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else str(uuid)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the block; afterwards restore the caller's random state on every device in use."""
    on_mps = torch.backends.mps.is_available()
    before = torch.mps.get_rng_state() if on_mps else None
    # An accelerator that nothing has used yet has no state to restore, and asking for it would initialise CUDA.
    started = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=started):
        torch.manual_seed(seed)
        yield
    if before is not None:
        torch.mps.set_rng_state(before)


LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def memory_format(device: torch.device, precision: str) -> str:
    """Return the layout in which networks run fastest: a key of `LAYOUTS`.

    A GPU's exact single-precision kernels are faster, and load far faster, with contiguous tensors. Its half-precision
    kernels and a CPU's kernels are faster with channels_last. Results differ only by rounding.
    """
    exact = device.type == "cuda" and precision == "fp32"
    return "contiguous" if exact else "channels_last"


def resolve(device: str) -> torch.device:
    """Return the device of that name. Raises `DeviceError` if this machine doesn't have it."""
    have = present()
    name = pick(device, have)
    return torch.device(name)
