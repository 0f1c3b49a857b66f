"""Networks of torchvision (https://docs.pytorch.org/vision/stable/models.html)."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import torchvision
from torch import nn

from tl import detectors
from tl.batches import Preprocessing
from tl.detector_names import DETECTORS
from tl.filling import filled
from tl.imagenet import CLASSES
from tl.library import Library, checkpoint_at, fitting
from tl.weights import Checkpoint, Published, Weights, load_state_dict

_WITH_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""Networks with auxiliary classifiers, which are dropped after loading."""


@cache  # see `tl.timm_models`
def _names() -> list[str]:
    """Each network alone, which means its default weights, and with the tag of each of its weights.

    These are the networks for classification, and the detectors that can train.
    """
    networks = [*torchvision.models.list_models(module=torchvision.models), *DETECTORS]
    return [*networks, *(f"{name}.{each.name}" for name in networks for each in _published(name))]


def _published(name: str) -> list[Any]:
    """All weights of a network; of a detector, also those of its backbone for ImageNet."""
    network = name.partition(".")[0]
    own = torchvision.models.get_model_weights(network)
    return [*own, *detectors.BACKBONE_WEIGHTS] if network in DETECTORS else [*own]


def _default(name: str) -> Any:
    """The weights that a name without a tag stands for."""
    published: Any = torchvision.models.get_model_weights(name.partition(".")[0])
    return published.DEFAULT


def _weights(name: str) -> Any:
    """The weights that a name stands for."""
    tag = name.partition(".")[2]
    return next(each for each in _published(name) if each.name == tag) if tag else _default(name)


def _checkpoint(name: str) -> Checkpoint:
    network, _, tag = name.partition(".")
    published, chosen = _published(name), _weights(name)
    tags = {
        each.name: Published(
            spec=f"torchvision:{network}.{each.name}",
            label=str(each),
            file_names=(
                each.url.rpartition("/")[2],
                f"torchvision-{network}.{each.name}",
                f"{network}.{each.name}",
            ),
        )
        for each in published
    }
    # A file without a tag in its name is taken for the default weights, unless its digest is that of others.
    names = (f"torchvision-{network}", network) if chosen is _default(name) else ()
    others = () if tag else tuple(file for one in tags.values() for file in one.file_names)
    at = checkpoint_at(str(chosen), chosen.url, (*names, *tags[chosen.name].file_names), f"torchvision:{network}")
    return replace(
        at,
        file_names=tuple(dict.fromkeys((*at.file_names, *others))),
        tag=chosen.name,
        any_tag=not tag,
        tags=tags,
    )


def _preprocessing(name: str) -> Preprocessing:
    if name.partition(".")[0] in DETECTORS:
        return detectors.preprocessing(name)
    given = _weights(name).transforms()
    return Preprocessing(
        size=given.crop_size[0],
        resize=given.resize_size[0],
        mean=tuple(given.mean),
        std=tuple(given.std),
        interpolation=given.interpolation.value,
    )


def _classes(name: str) -> int:
    return len(_weights(name).meta["categories"])


def _load(name: str, weights: Weights) -> nn.Module:
    arguments: dict[str, Any] = {}
    network_name = name.partition(".")[0]
    if network_name in _WITH_AUXILIARY:
        arguments = {"transform_input": True, "init_weights": weights.kind == "random"}
    elif name.startswith("vit_"):
        arguments = {"image_size": _preprocessing(name).size}

    def build() -> nn.Module:
        network: nn.Module = torchvision.models.get_model(network_name, weights=None, **arguments)
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
    if network_name in _WITH_AUXILIARY:
        module.aux_logits = False  # type: ignore[assignment]
        for auxiliary in _WITH_AUXILIARY[network_name]:
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
    detector=detectors.make,
)
