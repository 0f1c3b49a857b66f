"""Low-rank updates of a backbone's layers (LoRA, arXiv 2106.09685): `W x` becomes `W x + (ALPHA / rank) B A x`.

`W` stays frozen; `A` (`rank` × inputs) and `B` (outputs × `rank`) train. `B` begins at zero, so training begins with
exactly the network that was loaded. The product `B A` is never computed while training: a layer's weight needs no
gradient, and gradients and optimiser state are as small as `A` and `B`. After training `merge` adds it to `W`, which
leaves the plain network, with its own names and no extra cost.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tl.blocks import LOW_RANK
from tl.config import TrainConfig
from tl.devices import seeded
from tl.errors import NotApplicable
from tl.seeding import seed_for

ALPHA = 8.0
"""Numerator of the update's scale, the same for all ranks as in the paper; with the default rank the scale is 1."""
_TOLERANCE = 1e-3
"""Largest relative difference between a layer's output and the plain product of its weight. Rounding is far below."""


class LowRank(nn.Module):
    """The update of one layer: maps the layer's input to what is added to its output."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.scale = ALPHA / rank
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Conv2d):
            stride = layer.stride[0], layer.stride[1]
            self.down = nn.Conv2d(layer.in_channels, rank, 1, stride=stride, bias=False)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return `B A x`, without the scale."""
        update: torch.Tensor = self.up(self.down(inputs))
        return update

    def product(self) -> torch.Tensor:
        """Return the update of the layer's weight, in the weight's shape."""
        weight = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        return self.scale * (weight[..., None, None] if isinstance(self.up, nn.Conv2d) else weight)


def insert(backbone: nn.Module, config: TrainConfig, images: torch.Tensor) -> None:
    """Give each fitting layer of a backbone a low-rank update, in place.

    Fitting are linear layers and 1×1 convolutions that a forward pass calls, that compute the plain product of their
    weight, and whose update has fewer numbers than the weight. `images` are an example of the backbone's input.
    Initial values depend on the config's seed. Raises `NotApplicable` if no layer fits.
    """
    rank = config.lora_rank
    called = _plain_layers(backbone, images)
    fitting = [layer for layer in called if rank * sum(layer.weight.shape[:2]) < layer.weight.numel()]
    if not called:
        raise NotApplicable(
            "low-rank updates need linear layers or 1x1 convolutions that use their weight as it is, and this backbone "
            "has none"
        )
    if not fitting:
        raise NotApplicable(
            f"lora_rank={rank}: the update of no layer of this backbone would be smaller than the layer; try a lower "
            "rank"
        )
    with seeded(seed_for("lora", config.seed)):
        for layer in fitting:
            update = LowRank(layer, rank).to(layer.weight.device)
            if isinstance(layer, nn.Conv2d) and layer.weight.is_contiguous(memory_format=torch.channels_last):
                update.to(memory_format=torch.channels_last)
            layer.add_module(LOW_RANK, update)
            layer.register_forward_hook(_add_update)


@torch.no_grad()
def merge(backbone: nn.Module) -> None:
    """Add each update to the weight of its layer, and remove it: what remains is the network as it was loaded."""
    for layer in [module for module in backbone.modules() if isinstance(getattr(module, LOW_RANK, None), LowRank)]:
        layer.weight += getattr(layer, LOW_RANK).product()
        delattr(layer, LOW_RANK)
        for key in [key for key, hook in layer._forward_hooks.items() if hook is _add_update]:
            del layer._forward_hooks[key]


def _add_update(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
    """Add the update in place: no operation needs the output as it was for its backward pass."""
    update: LowRank = getattr(layer, LOW_RANK)
    return output.add_(update(inputs[0]), alpha=update.scale)


@torch.no_grad()
def _plain_layers(backbone: nn.Module, images: torch.Tensor) -> list[Any]:
    """Return the linear layers and 1×1 convolutions whose calls compute the plain product of their own weight.

    Left out are layers that other code reads the weight of without a call (as in torch's attention), that transform
    their weight first, also by a parametrisation, or that share it: adding a product to such a weight would mean
    something else. So are layers that are called by keyword, since a hook sees no such inputs.
    """
    users: dict[int, int] = {}
    for module in backbone.modules():
        for parameter in module.parameters(recurse=False):
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    plain: dict[nn.Module, bool] = {}

    def compare(layer: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if not inputs:  # it is called by keyword, which the update would not see
            plain[layer] = False
            return
        if isinstance(layer, nn.Conv2d):
            expected = nn.functional.conv2d(inputs[0], layer.weight, layer.bias, stride=layer.stride)
        else:
            expected = nn.functional.linear(inputs[0], layer.weight, layer.bias)
        other = expected.shape != output.shape or bool((output - expected).norm() > _TOLERANCE * expected.norm())
        plain[layer] = plain.get(layer, True) and not other  # of damaged weights, nothing is larger than anything

    handles = [
        module.register_forward_hook(compare)
        for module in backbone.modules()
        if _may_fit(module) and users.get(id(module.weight)) == 1
    ]
    try:
        backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    return [layer for layer in backbone.modules() if plain.get(layer)]


def _may_fit(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and tuple(module.kernel_size) == (1, 1)
    return isinstance(module, nn.Linear)
