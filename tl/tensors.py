"""A network's parameters and buffers as a file of safetensors, which holds numbers and no code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a tensor with its axes in the order of memory, as far as it has such an order."""
    return tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))


def file_bytes(network: nn.Module) -> int:
    """Return the size of a network's file.

    An int8 network has none that could be loaded. Its size is that of a file of safetensors with the same numbers:
    weights as 8-bit integers, the steps and zeros of their channels, and all else in single precision.
    """
    try:
        return len(save(tensors_of(network)))
    except ModelError:
        named = enumerate(part for value in network.state_dict().values() for part in _numbers(value))
        return len(save({str(place): value.contiguous() for place, value in named}))


def _numbers(value: Any) -> Iterator[torch.Tensor]:
    """Yield the plain tensors of an entry of a state dict."""
    if isinstance(value, tuple | list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, torch.Tensor) and value.is_quantized:
        yield value.int_repr()
        if value.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
            yield value.q_per_channel_scales().float()
            yield value.q_per_channel_zero_points().int()
        else:
            yield torch.tensor([value.q_scale(), value.q_zero_point()])
    elif isinstance(value, torch.Tensor):
        yield value.detach().cpu().clone()
    elif isinstance(value, float | int):
        yield torch.tensor(value)


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
