"""Switches on the precisions of `tl.config.PRECISIONS`, and checks which devices support them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from tl.config import AUTO, PRECISIONS
from tl.errors import NotApplicable

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precision → type of the numbers in which suitable operations run; others stay in `float32`."""
_TF32_CAPABILITY = (8, 0)
"""Compute capability of the first NVIDIA generation with TF32, Ampere."""


def check_precision(precision: str, device: torch.device) -> None:
    """Raise `NotApplicable` if the device doesn't support the precision."""
    if precision == "tf32" and not (
        device.type == "cuda" and torch.cuda.get_device_capability(device) >= _TF32_CAPABILITY
    ):
        raise NotApplicable("tf32 needs an NVIDIA GPU of the Ampere generation or newer; fp32 runs here")
    if precision == "fp16" and device.type == "cpu":
        raise NotApplicable("fp16 needs a GPU; bf16 runs here")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise NotApplicable("bf16 needs an NVIDIA GPU of the Ampere generation or newer; fp16 runs here")


def supported(device: torch.device) -> list[str]:
    """Return the precisions that the device supports, `fp32` first."""
    found = []
    for precision in PRECISIONS:
        with suppress(NotApplicable):
            check_precision(precision, device)
            found.append(precision)
    found.remove(AUTO)
    return found


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return a context in which `bf16` and `fp16` run suitable operations in half precision; no effect with others.

    Casts aren't cached, since a replayed graph must repeat them: parameters have changed by then.
    """
    dtype = HALF.get(precision, torch.bfloat16)
    return torch.autocast(device.type, dtype=dtype, enabled=precision in HALF, cache_enabled=False)


def gradient_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return a scaler that keeps small gradients of `fp16` from vanishing; no effect with other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@contextmanager
def single_precision(precision: str) -> Iterator[None]:
    """Set the arithmetic of `float32` inside the block: with `tf32` factors of products are rounded, else exact.

    By default newer GPUs silently round the inputs of convolutions to TF32.
    """
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
