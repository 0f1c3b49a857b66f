"""Counts the exact work of a training step: floating-point operations, and bytes kept for the backward pass.

The operations that a real step dispatches are counted while it runs. Counts have no noise, and are the same on every
machine with the same libraries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_backward_flop_count, sdpa_flop_count

aten: Any = torch.ops.aten


def _conv_backward_flops(
    grad_out: Any,
    x: Any,
    w: Any,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    *rest: Any,
    **_: Any,
) -> int:
    """Count the gradients of input and weight, which take as many operations each as the forward pass.

    This holds for any number of groups. torch's own formula treats the weight's gradient of a grouped convolution as
    that of a dense one, which overstates depthwise networks twentyfold.
    """
    wanted = rest[2]  # output_padding, groups, output_mask
    return (bool(wanted[0]) + bool(wanted[1])) * conv_flop_count(x, w, grad_out, transposed=transposed)


def _native_attention_flops(query: Any, _key: Any, _value: Any, width: int, *_: Any, **__: Any) -> int:
    """Count self-attention as one operation, which `nn.MultiheadAttention` uses without gradients.

    It has four projections of width × width, and two products of every token with every other.
    """
    images, tokens, _width = query
    return int(2 * images * tokens * width * (4 * width + 2 * tokens))


def _int8_convolution_flops(x: Any, packed: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Count as in single precision. The weight is packed in the format of the kernel's library."""
    weight, _bias = packed.unpack()
    return int(conv_flop_count(x, weight.shape, out_shape))


def _int8_linear_flops(x: Any, packed: Any, *_: Any, **__: Any) -> int:
    weight, _bias = packed.unpack()
    return int(2 * math.prod(x) * weight.shape[0])


_INT8 = torch.ops.quantized
_FORMULAS = {
    _INT8.conv2d: _int8_convolution_flops,
    _INT8.conv2d_relu: _int8_convolution_flops,
    _INT8.linear: _int8_linear_flops,
    _INT8.linear_relu: _int8_linear_flops,
    aten.convolution_backward: _conv_backward_flops,
    aten._native_multi_head_attention: _native_attention_flops,
    # Fused attention on a CPU; torch registers its formula only under the names on a GPU.
    aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, query, key, value, *_, **__: (
        sdpa_backward_flop_count(grad, query, key, value)
    ),
}


@dataclass
class StepWork:
    """The work of one training step, for the whole batch."""

    forward_flops: int = 0
    """Multiply and add count as two. Only convolutions and matrix products are counted; the rest is small."""
    backward_flops: int = 0
    saved_bytes: int = 0
    """Bytes of tensors kept for the backward pass, each storage once, without parameters and buffers."""

    @contextmanager
    def forward(self, model: nn.Module) -> Iterator[None]:
        """Count operations inside as the forward pass of `model`."""
        # Keyed by address. Tensors stay alive until the end, so that no address is used twice.
        known = {tensor.untyped_storage().data_ptr(): tensor for tensor in [*model.parameters(), *model.buffers()]}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                known[storage.data_ptr()] = tensor
                self.saved_bytes += storage.nbytes()
            return tensor

        with _counting() as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        self.forward_flops += counter.get_total_flops()

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Count operations inside as the backward pass."""
        with _counting() as counter:
            yield
        self.backward_flops += counter.get_total_flops()


class _OneModule(nullcontext[None]):
    """Stands for the tracker of torch's counter, by which it knows in which module an operation runs.

    The tracker keeps inputs and outputs of all modules alive, so that the counted step would set the peak of memory.
    """

    parents = frozenset({"Global"})
    """The name under which torch sums everything."""


def _counting() -> FlopCounterMode:
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    return counter


def tensor_bytes(tensors: Any) -> int:
    """Return the bytes of tensors, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of the state that an optimiser keeps between steps."""
    state = (value for values in optimizer.state.values() for value in values.values())
    return tensor_bytes(value for value in state if isinstance(value, torch.Tensor))
