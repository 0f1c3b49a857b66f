"""ImageNet's own classes: the classifier of a pretrained network, cut down to the classes of a data set.

To let a data set's classes be found in ImageNet, add them to `INDEX`.
"""

from __future__ import annotations

import torch
from torch import nn

from tl.errors import NotApplicable

CLASSES = 1000
"""Of ImageNet-1k (ILSVRC 2012)."""
INDEX: dict[str, int] = {"ants": 310, "bees": 309}
"""A data set's class → its index in ILSVRC's order, that of `meta["categories"]` of torchvision's weights."""
_TOLERANCE = 1e-3
"""Of the largest logit; rounding stays far below it."""


def rows(classes: tuple[str, ...]) -> list[int]:
    """ImageNet's indices of a data set's classes. Raises `NotApplicable` naming those that `INDEX` doesn't have."""
    if unknown := [name for name in classes if name not in INDEX]:
        raise NotApplicable(f"no ImageNet class is known for {', '.join(unknown)}, only for {', '.join(INDEX)}")
    return [INDEX[name] for name in classes]


def probe_image(size: int) -> torch.Tensor:
    """A noise image `(1, 3, S, S) float32`, the same every time; the global random state is left alone."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def output(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """What a network makes of an image in eval mode; the mode it had is restored."""
    was_training = network.training
    made: torch.Tensor = network.eval()(image)
    network.train(was_training)
    return made


def head_of(
    layer: object, chosen: list[int], *, backbone: nn.Module, image: torch.Tensor, logits: torch.Tensor
) -> nn.Linear:
    """The classifier that was cut off a network, reduced to some of its classes.

    Args:
        layer: what the network's library calls its classifier.
        chosen: indices of the classes to keep, in order.
        backbone: the network without it.
        image: `(1, 3, S, S)`.
        logits: `(1, 1000)`, what the whole network makes of `image`.

    Networks differ too much for a rule by name (some average two classifiers, some have an activation behind
    the last layer), so the head is proved right: on `image`, backbone and head must give the network's logits.
    Raises `NotApplicable` where they don't.
    """
    wrong = NotApplicable(f"its own classifier ({type(layer).__name__}) is not one linear layer on pooled features")
    if not (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))):
        raise wrong
    weight, bias = layer.weight.detach().flatten(1)[chosen], None if layer.bias is None else layer.bias.detach()[chosen]
    # Not initialised at random: that would move the global random state.
    head = nn.Linear(weight.shape[1], len(chosen), bias=bias is not None, device="meta")
    head.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}), assign=True)
    features = output(backbone, image)
    if features.shape[1:] != weight.shape[1:]:
        raise wrong
    error = (output(head, features) - logits[:, chosen]).abs().max()
    if not error <= _TOLERANCE * logits.abs().max():
        raise wrong
    return head
