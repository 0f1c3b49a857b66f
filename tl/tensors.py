"""A network's parameters and buffers as a file of safetensors, which holds numbers and no code."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from tl.cache import read_bounded, write_atomic
from tl.errors import ModelError

_MOST_BYTES = 1 << 36
"""Largest file that is read."""


def tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's parameters and buffers by name, each contiguous, in main memory, and in memory of its own.

    Raises `ModelError` if one is no plain tensor, as in an int8 network.
    """
    found: dict[str, torch.Tensor] = {}
    for name, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.is_quantized:
            kind = "quantised" if isinstance(value, torch.Tensor) else f"of type {type(value).__name__}"
            raise ModelError(f"{name!r} is {kind}, which a file of safetensors can't hold")
        found[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return found


def file_bytes(network: nn.Module) -> int | None:
    """Return the size that the network's file has; None if it can't have one."""
    try:
        return len(save(tensors_of(network)))
    except ModelError:
        return None


def write_tensors(network: nn.Module, path: Path) -> None:
    """Write a network's tensors atomically. Raises `OSError`."""
    write_atomic(path, save(tensors_of(network)))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file. Raises `ModelError` if it can't be read, or is no file of safetensors."""
    try:
        return load(read_bounded(path, _MOST_BYTES))
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: damaged, or no file of safetensors: {error}") from error
