"""Precisions of `tl.config.PRECISIONS`: what each switches on, and which devices have it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tl.errors import NotApplicable

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TF32_CAPABILITY = (8, 0)
"""The first NVIDIA generation (Ampere) with TF32."""


def check_precision(precision: str, device: torch.device) -> None:
    """Raise `NotApplicable` where the device has no such arithmetic."""
    if precision == "tf32" and not (
        device.type == "cuda" and torch.cuda.get_device_capability(device) >= _TF32_CAPABILITY
    ):
        raise NotApplicable("tf32 is there on NVIDIA GPUs from Ampere on alone; fp32 and bf16 run here")
    if precision == "fp16" and device.type == "cpu":
        raise NotApplicable("fp16 needs a GPU: this suite's CPU kernels have no fp16 arithmetic; bf16 runs here")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise NotApplicable("bf16 is there on NVIDIA GPUs from Ampere on alone; fp16 runs here")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Half precision for operations that gain from it, with `bf16` and `fp16`; nothing with the others.

    Casts aren't cached: a replayed graph has to make them anew, since parameters have changed by then.
    """
    dtype = _HALF.get(precision, torch.bfloat16)
    return torch.autocast(device.type, dtype=dtype, enabled=precision in _HALF, cache_enabled=False)


def gradient_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Keeps small gradients of `fp16` from vanishing; does nothing with other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@contextmanager
def single_precision(precision: str) -> Iterator[None]:
    """What `float32` means inside: with `tf32` products of rounded factors, else exact ones.

    By default newer GPUs round the inputs of convolutions to TF32, and don't say so.
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
