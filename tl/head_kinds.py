"""Kinds of heads that a saved model may have: how each is rebuilt. To add one, add an entry to `KINDS`.

The numbers of a head are tensors of the model's file. Sizes are its shapes, and what no tensor says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tl.backbones import HEAD_BUILDERS
from tl.errors import ModelError, not_one_of
from tl.fits import NearestNeighbours
from tl.saved import SavedHead


@dataclass(frozen=True, kw_only=True)
class HeadKind:
    """A kind of head."""

    sizes: Callable[[nn.Module], dict[str, int] | None]
    """Returns the sizes of a head of this kind; None for any other head."""
    build: Callable[..., nn.Module]
    """Makes a head of these sizes, which are given by name. Its numbers don't matter."""


def _linear(head: nn.Module) -> dict[str, int] | None:
    if type(head) is not nn.Linear:
        return None
    return {"width": head.in_features, "classes": head.out_features, "bias": int(head.bias is not None)}


def _mlp(head: nn.Module) -> dict[str, int] | None:
    layers = [part for part in head.modules() if isinstance(part, nn.Linear)]
    if not isinstance(head, nn.Sequential) or len(layers) < 2:
        return None
    width, classes = layers[0].in_features, layers[-1].out_features
    with torch.device("meta"):
        same = repr(HEAD_BUILDERS["mlp"](width, classes)) == repr(head)
    return {"width": width, "classes": classes} if same else None


def _knn(head: nn.Module) -> dict[str, int] | None:
    if type(head) is not NearestNeighbours:
        return None
    return dict(zip(("images", "width"), head.features.shape, strict=True)) | {"classes": head.classes}


KINDS: dict[str, HeadKind] = {
    "linear": HeadKind(sizes=_linear, build=lambda width, classes, bias: nn.Linear(width, classes, bias=bool(bias))),
    "mlp": HeadKind(sizes=_mlp, build=lambda width, classes: HEAD_BUILDERS["mlp"](width, classes)),
    "knn": HeadKind(
        sizes=_knn,
        build=lambda images, width, classes: NearestNeighbours(
            torch.empty(images, width), torch.empty(images, dtype=torch.int64), classes
        ),
    ),
}


def saved_head(head: nn.Module) -> SavedHead:
    """Return what a head is rebuilt from. Raises `ModelError` for a kind that `KINDS` doesn't have."""
    for name, kind in KINDS.items():
        if (sizes := kind.sizes(head)) is not None:
            return SavedHead(kind=name, sizes=sizes)
    raise ModelError(f"a head of type {type(head).__name__} can't be saved: none of {', '.join(KINDS)}")


def rebuilt_head(saved: SavedHead, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Return a head with these tensors. Raises `ModelError` if they don't fit its kind and sizes."""
    if saved.kind not in KINDS:
        raise ModelError(not_one_of("head.kind", saved.kind, KINDS))
    try:
        with torch.device("meta"):  # no memory for numbers that are replaced, whatever the sizes are
            head = KINDS[saved.kind].build(**saved.sizes)
        # Memory of its own, which torch aligns: kernels may add numbers in another order where it is not aligned.
        head.load_state_dict({name: value.clone() for name, value in tensors.items()}, strict=True, assign=True)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise ModelError(f"head {saved.kind!r} of sizes {saved.sizes}: {' '.join(str(error).split())}") from error
    return head
