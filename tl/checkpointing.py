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

from tl.blocks import blocks
from tl.errors import NotApplicable

LEAST_BLOCKS = 2
"""A single block would run again as a whole, with all its activations in memory."""
_SIMPLE = (torch.Tensor, bool, int, float, str, type(None))
"""Types of arguments that nobody changes between the two runs of a block."""


@contextmanager
def checkpointed(network: nn.Module, *, compiles: bool = False) -> Iterator[None]:
    """Let the blocks of a network that train run again in backward passes inside the context.

    Blocks that have gradients now may be without some later, and run once while they are.

    Modules keep their places and names, and passes without gradients run as always. Raises `NotApplicable` for a
    network that `torch.compile` will compile (`compiles`), and for one with too few such blocks. The first pass raises
    it too if no block can run again: those that are called with lists or the like don't, since these may have changed
    by then.
    """
    if compiles:
        raise NotApplicable("torch.compile chooses itself what to compute again: use either compile or checkpointing")
    chosen = [block for block in blocks(network) if _trains(block)]
    if len(chosen) < LEAST_BLOCKS:
        raise NotApplicable(
            f"checkpointing needs {LEAST_BLOCKS} or more blocks that train, such as residual blocks; this backbone has "
            f"{len(chosen) or 'none'}"
        )
    runs: list[nn.Module] = []
    for block in chosen:
        block.forward = partial(_forward, block, block.forward, runs)

    def prove(*_: object) -> None:
        if torch.is_grad_enabled() and not runs and any(map(_trains, chosen)):
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
    simple = all(isinstance(value, _SIMPLE) for value in (*arguments, *named.values()))
    if not torch.is_grad_enabled() or not simple or not _trains(block):
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


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


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
