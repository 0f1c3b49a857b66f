"""Networks of torchvision (https://docs.pytorch.org/vision/stable/models.html)."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torchvision
from torch import nn

from tl.batches import Preprocessing
from tl.filling import filled
from tl.imagenet import CLASSES
from tl.library import Library, checkpoint_at, fitting
from tl.weights import Checkpoint, Weights, load_state_dict

_WITH_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""Networks with auxiliary classifiers, which are dropped after loading."""


@cache  # see `tl.timm_models`
def _names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def _checkpoint(name: str) -> Checkpoint:
    weights = torchvision.models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    return checkpoint_at(str(weights), weights.url, (f"torchvision-{name}", name))


def _preprocessing(name: str) -> Preprocessing:
    given = torchvision.models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    return Preprocessing(
        size=given.crop_size[0],
        resize=given.resize_size[0],
        mean=tuple(given.mean),
        std=tuple(given.std),
        interpolation=given.interpolation.value,
    )


def _classes(name: str) -> int:
    return len(torchvision.models.get_model_weights(name).DEFAULT.meta["categories"])  # type: ignore[attr-defined]


def _load(name: str, weights: Weights) -> nn.Module:
    arguments: dict[str, Any] = {}
    if name in _WITH_AUXILIARY:
        arguments = {"transform_input": True, "init_weights": weights.kind == "random"}
    elif name.startswith("vit_"):
        arguments = {"image_size": _preprocessing(name).size}

    def build() -> nn.Module:
        network: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
        if given:
            network.load_state_dict(given)
        return network

    given: dict[str, Any] = {}
    if weights.kind == "pretrained":
        given = load_state_dict(weights, {})
        if name.startswith("densenet"):
            # The published files still have the names of an older layout: `norm.1` for `norm1`.
            given = {re.sub(r"\.(norm|relu|conv)\.(\d)\.", r".\1\2.", key): value for key, value in given.items()}
        with fitting(name, weights):
            module = filled(build)
    else:
        module = build()
    if name in _WITH_AUXILIARY:
        module.aux_logits = False  # type: ignore[assignment]
        for auxiliary in _WITH_AUXILIARY[name]:
            setattr(module, auxiliary, None)
    return module


def _cut(module: nn.Module) -> tuple[object, int]:
    last, width = "", 0
    for path, part in module.named_modules():
        if isinstance(part, nn.Linear) and part.out_features == CLASSES:
            last, width = path, part.in_features
        elif isinstance(part, nn.Conv2d) and part.out_channels == CLASSES:
            last, width = path, part.in_channels
    layer = module.get_submodule(last)
    module.set_submodule(last, nn.Identity())
    return layer, width


LIBRARY = Library(
    names=_names,
    checkpoint=_checkpoint,
    preprocessing=_preprocessing,
    classes=_classes,
    load=_load,
    cut=_cut,
)
