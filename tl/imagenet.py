"""The ImageNet classifier of a pretrained network, reduced to the classes of a data set.

To map more classes to those of ImageNet, add them to `INDEX`.
"""

from __future__ import annotations

import torch
from torch import nn

from tl.errors import DivergedError, NotApplicable

CLASSES = 1000
"""Number of classes of ImageNet-1k (ILSVRC 2012)."""
INDEX: dict[str, int] = {"ants": 310, "bees": 309}
"""Index of each class in ILSVRC's order, which is that of `meta["categories"]` of torchvision's weights."""
_TOLERANCE = 1e-3
"""Largest error of a head, relative to the largest logit. Rounding stays far below it."""


def rows(classes: tuple[str, ...]) -> list[int]:
    """Return the indices of classes in ImageNet. Raises `NotApplicable` naming those that `INDEX` doesn't have."""
    if unknown := [name for name in classes if name not in INDEX]:
        raise NotApplicable(f"no ImageNet class is known for {', '.join(unknown)}, only for {', '.join(INDEX)}")
    return [INDEX[name] for name in classes]


def probe_image(size: int) -> torch.Tensor:
    """Return a noise image `(1, 3, S, S) float32`, always the same, without changing the global random state."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def output(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Return the output of a network in eval mode, and restore its mode.

    Not in inference mode: what a network keeps of a pass, such as positions, may be needed for gradients later.
    """
    was_training = network.training
    made: torch.Tensor = network.eval()(image)
    network.train(was_training)
    return made


def head_of(
    layer: object, chosen: list[int], *, backbone: nn.Module, image: torch.Tensor, logits: torch.Tensor
) -> nn.Linear:
    """Reduce the classifier of a network to some of its classes.

    Args:
        layer: the layer that the network's library calls the classifier.
        chosen: indices of the classes to keep, in order.
        backbone: the network without its classifier.
        image: an input, `(1, 3, S, S)`.
        logits: output of the whole network for `image`, `(1, 1000)`.

    Networks differ too much for a rule by name: some average two classifiers, some have an activation after the last
    layer. So the head is verified: backbone and head must give the network's logits for `image`. Raises
    `NotApplicable` if they don't, and `DivergedError` if these logits are no numbers to compare.
    """
    wrong = NotApplicable(f"its own classifier ({type(layer).__name__}) is not one linear layer on pooled features")
    if not (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))):
        raise wrong
    weight, bias = layer.weight.detach().flatten(1)[chosen], None if layer.bias is None else layer.bias.detach()[chosen]
    # On the meta device, since random initialisation would change the global random state.
    head = nn.Linear(weight.shape[1], len(chosen), bias=bias is not None, device="meta")
    head.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}), assign=True)
    features = output(backbone, image)
    if features.shape[1:] != weight.shape[1:]:
        raise wrong
    if not logits.isfinite().all():
        raise DivergedError("outputs for a test image were not finite; are the weights damaged?")
    error = (output(head, features) - logits[:, chosen]).abs().max()
    if not error <= _TOLERANCE * logits.abs().max():
        raise wrong
    return head
