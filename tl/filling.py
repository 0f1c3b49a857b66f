"""Builds a network from a file of weights without ever holding its tensors twice.

Usually a network is built with random weights, and those of the file are copied over them. Here it is built without
memory for its weights, and those that were read become its own. The result is the same, bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_ALIGNMENT = 64
"""Bytes. Torch aligns its own memory so; kernels may add numbers in another order where it is not."""


def filled(build: Callable[[], nn.Module]) -> nn.Module:
    """Return the network that `build` makes, which must load all its weights by `load_state_dict`.

    `build` is called again, in the usual way, if some tensor that it makes empty is not in the file, such as a table
    that it fills itself, if two layers share one, or if it fails. So its errors are those of the usual way.
    """
    try:
        with warnings.catch_warnings(), _Unfilled(), _assigning():
            warnings.simplefilter("ignore")
            module = build()
        if not any(tensor.is_meta for tensor in _all_tensors(module)):
            return module
    except Exception:  # whatever it is, the usual way raises it too, or does without
        pass
    return build()


class _Unfilled(TorchFunctionMode):
    """Gives empty tensors no memory, and leaves out what would fill them. All others are made and computed as usual.

    For tensors without memory torch would fill nothing either, but by a slow way that loads a library for formulas.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, or return the tensor that it would fill."""
        kwargs = kwargs or {}
        numbers = kwargs.get("dtype") or torch.get_default_dtype()  # integers are tables of indices, and no weights
        if func is torch.empty and kwargs.get("device") is None and numbers.is_floating_point:
            return func(*args, **{**kwargs, "device": "meta"})
        if getattr(func, "__name__", "") in _FILL:
            filled_one = args[0] if args else kwargs.get("tensor")  # `torch.nn.init` names it
            if isinstance(filled_one, torch.Tensor) and filled_one.is_meta:
                return filled_one
        return func(*args, **kwargs)


_FILL = frozenset(
    {"normal_", "uniform_", "trunc_normal_", "fill_", "zero_", "copy_", "mul_", "add_", "clamp_", "erfinv_"}
)
"""Methods of tensors and functions of `torch.nn.init` that change nothing but values."""


@contextmanager
def _assigning() -> Iterator[None]:
    """Make `load_state_dict` of all modules put the given tensors in the place of their own."""
    usual = nn.Module.load_state_dict

    def load(self: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        if len(list(self.parameters())) != len(list(self.named_parameters(remove_duplicate=False))):
            raise ValueError("two layers share a tensor, and each would get its own")
        own, seen = self.state_dict(), set[int]()
        given = {name: _exclusive(value, own.get(name), seen) for name, value in state_dict.items()}
        return usual(self, given, strict=strict, assign=True)

    nn.Module.load_state_dict = load  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.load_state_dict = usual  # type: ignore[method-assign]


def _exclusive(given: torch.Tensor, own: torch.Tensor | None, seen: set[int]) -> torch.Tensor:
    """Return a tensor as a new network would have it: with its type, contiguous, aligned, in memory of its own."""
    tensor = given.to(given.dtype if own is None else own.dtype).contiguous()
    memory = tensor.untyped_storage()
    shared = memory.data_ptr() in seen or memory.nbytes() != tensor.numel() * tensor.element_size()
    if shared or tensor.data_ptr() % _ALIGNMENT:
        tensor = tensor.clone()
    seen.add(tensor.untyped_storage().data_ptr())
    return tensor


def _all_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield parameters, buffers, and tensors that are plain attributes, also in lists."""
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        for value in vars(part).values():
            several = (
                value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
            )
            yield from (each for each in several if isinstance(each, torch.Tensor))
