"""Networks of timm (https://huggingface.co/docs/timm)."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants as hf_constants
from huggingface_hub import hf_hub_download
from timm.models import get_pretrained_cfg
from torch import nn

from tl.batches import Preprocessing
from tl.errors import ConfigError
from tl.filling import filled
from tl.library import Library, checkpoint_at, fitting
from tl.weights import Checkpoint, Place, Weights, first_of, load_state_dict


@cache  # in the server that cells are forked from: a list takes longer than a look
def _names() -> list[str]:
    return [*timm.list_models(), *timm.list_pretrained()]


def _config(name: str) -> Any:
    return get_pretrained_cfg(name)


def _checkpoint(name: str) -> Checkpoint:
    config = _config(name)
    label = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    # A file without a tag in its name is taken for the architecture's default weights, and for those only.
    is_default = _config(config.architecture).tag == config.tag
    plain = (f"timm-{config.architecture}", config.architecture) if is_default else ()
    names = (f"timm-{label}", label, *plain)
    bundled_as = f"timm:{config.architecture}" if is_default else ""
    if not config.hf_hub_id and config.url:
        return checkpoint_at(label, config.url, names, bundled_as)
    # `model.safetensors` is what timm publishes today; a few repositories hold only the older file.
    published = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]

    places = [Place(file=file_name, repository=config.hf_hub_id) for file_name in published if config.hf_hub_id]
    places += [Place(file=config.url.rpartition("/")[2])] if config.url else []

    def download() -> Path:
        from huggingface_hub.errors import EntryNotFoundError

        for file_name in published[:-1]:
            try:
                return Path(hf_hub_download(config.hf_hub_id, file_name))
            except EntryNotFoundError:
                continue
        return Path(hf_hub_download(config.hf_hub_id, published[-1]))

    return Checkpoint(
        label=label,
        file_names=names,
        bundled_as=bundled_as,
        cached=partial(first_of, places),
        places=tuple(places),
        download=download,
        url=f"{hf_constants.ENDPOINT}/{config.hf_hub_id}" if config.hf_hub_id else "",
    )


def preprocessing_of(config: Any, name: str) -> Preprocessing:
    """Return the preprocessing that a config of pretrained weights asks for. Raises `ConfigError`, which has `name`."""
    height, width = config.input_size[1:]
    if height != width or config.crop_mode not in ("center", "squash"):
        raise ConfigError(
            f"backbone={name!r}: its input is {height}x{width} with crop mode {config.crop_mode!r}; "
            "only square inputs with crop mode 'center' or 'squash' are supported"
        )
    return Preprocessing(
        size=height,
        resize=int(height / config.crop_pct),
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation=config.interpolation,
        squash=config.crop_mode == "squash",
    )


def _load(name: str, weights: Weights) -> nn.Module:
    # With all 1,000 classes timm insists that every tensor of the file is used; the classifier goes afterwards.
    if weights.kind == "random":
        module: nn.Module = timm.create_model(name, pretrained=False)
    elif weights.in_order:

        def build() -> nn.Module:
            network: nn.Module = timm.create_model(name, pretrained=False)
            given = load_state_dict(weights, network.state_dict())
            with fitting(name, weights):
                network.load_state_dict(given)
            return network

        module = filled(build)
    else:
        given = load_state_dict(weights, {})
        with fitting(name, weights):
            module = filled(
                lambda: timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": given})
            )
    return module


def cut(module: Any) -> tuple[object, int]:
    """Remove the classifier of a network in place; return it and the width of the features."""
    layer = module.get_classifier()
    module.reset_classifier(0)
    return layer, getattr(module, "head_hidden_size", None) or module.num_features


LIBRARY = Library(
    names=_names,
    checkpoint=_checkpoint,
    preprocessing=lambda name: preprocessing_of(_config(name), f"timm:{name}"),
    classes=lambda name: int(_config(name).num_classes),
    load=_load,
    cut=cut,
)
