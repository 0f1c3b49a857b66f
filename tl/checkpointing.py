"""Activation checkpointing: blocks of a network forget their activations, and run again in the backward pass.

It takes less memory and more time, and changes no number: a block runs again on the same inputs, with the same random
numbers, by `torch.utils.checkpoint`. What is ours is which blocks do so, in networks of any library, and that their
BatchNorm statistics move once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tl.errors import NotApplicable

LEAST_BLOCKS = 2
"""A single block would run again as a whole, with all its activations in memory."""
_CHAINS = (nn.Sequential, nn.ModuleList)
_SIMPLE = (torch.Tensor, bool, int, float, str, type(None))
"""Types of arguments that nobody changes between the two runs of a block."""


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network that can run again one by one: the links of its chains, such as residual blocks.

    A chain is a `Sequential` or a `ModuleList`, or a module with nothing in it but blocks of one class. A link that has
    a chain of blocks in it is a stage, and its blocks are returned instead. Single layers are no blocks.
    """
    found: list[nn.Module] = []
    for child in network.children():
        if not _is_chain(network) or _is_chain(child) or _is_stage(child):
            found += blocks(child)
        elif _children(child) and products(child):
            found.append(child)
    return found


def _is_chain(module: nn.Module) -> bool:
    """A chain of single layers alone is not one: it is a block itself."""
    children = _children(module)
    if isinstance(module, _CHAINS):
        return any(_children(child) for child in children)
    # In a dense block, a dictionary, each layer is given the outputs of all those before it: it is one block.
    if isinstance(module, nn.ModuleDict) or len({type(child) for child in children}) != 1:
        return False
    return all(products(child) > 1 and _children(child) and not isinstance(child, _CHAINS) for child in children)


def _is_stage(module: nn.Module) -> bool:
    """A module with a chain of several blocks of one class, not of convolutions that have their norm beside them."""
    for chain in module.children():
        if isinstance(chain, _CHAINS):
            kinds = [type(link) for link in chain if products(link) > 1]
            if any(kinds.count(kind) > 1 and not issubclass(kind, _CHAINS) for kind in kinds):
                return True
    return False


def _children(module: nn.Module) -> list[nn.Module]:
    return list(module.children())


def products(module: nn.Module) -> int:
    """Number of weights in a module by which something is multiplied, such as those of convolutions."""
    return sum(parameter.ndim > 1 for parameter in module.parameters())


@contextmanager
def checkpointed(network: nn.Module, *, compiles: bool = False) -> Iterator[None]:
    """Let the blocks of a network that train run again in backward passes inside the context.

    Modules keep their places and names, and passes without gradients run as always. Raises `NotApplicable` for a
    network that `torch.compile` will compile (`compiles`), and for one with too few such blocks. The first pass raises
    it too if no block can run again: those that are called with lists or the like don't, since these may have changed
    by then.
    """
    if compiles:
        raise NotApplicable("torch.compile chooses itself what to compute again: use either compile or checkpointing")
    chosen = [block for block in blocks(network) if any(p.requires_grad for p in block.parameters())]
    if len(chosen) < LEAST_BLOCKS:
        raise NotApplicable(
            f"checkpointing needs {LEAST_BLOCKS} or more blocks that train, such as residual blocks; this backbone has "
            f"{len(chosen) or 'none'}"
        )
    runs: list[nn.Module] = []
    for block in chosen:
        block.forward = partial(_forward, block, block.forward, runs)

    def prove(*_: object) -> None:
        if torch.is_grad_enabled() and not runs:
            raise NotApplicable("checkpointing needs blocks that are called with tensors, and this backbone has none")

    handle = network.register_forward_hook(prove)
    try:
        yield
    finally:
        handle.remove()
        for block in chosen:
            del block.forward  # of the instance: that of its class is back


def _forward(
    block: nn.Module, forward: Callable[..., Any], runs: list[nn.Module], *arguments: Any, **named: Any
) -> Any:
    """Run a block so that it can run again. `runs` gets the first block that does."""
    if not torch.is_grad_enabled() or not all(isinstance(value, _SIMPLE) for value in (*arguments, *named.values())):
        return forward(*arguments, **named)
    if not runs:
        runs.append(block)
    return checkpoint(
        forward,
        *arguments,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _without_statistics(block)),
        **named,
    )


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Keep the running statistics of the block's normalisation layers as they are: what moves inside are copies.

    In train mode these layers don't read them. The copies are needed, since the backward pass is given statistics for
    as many layers as the forward pass had.
    """
    kept: list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor]] = []
    for module in block.modules():
        if module.training and module._buffers.get("running_mean") is not None:
            for name, value in module._buffers.items():
                if value is not None:
                    kept.append((module._buffers, name, value))
                    module._buffers[name] = value.clone()
    try:
        yield
    finally:
        for buffers, name, value in kept:
            buffers[name] = value
