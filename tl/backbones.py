"""Backbones: a network without its classifier, what it must be fed, and where its weights came from.

To add a library of networks, add an entry to `SOURCES`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from huggingface_hub import constants as hf_constants
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from timm.models import get_pretrained_cfg
from torch import nn

from tl.batches import Preprocessing
from tl.config import TrainConfig
from tl.devices import seeded
from tl.errors import ConfigError, NotApplicable, StandInWarning, WeightsError
from tl.imagenet import CLASSES, head_of, output, probe_image, rows
from tl.seeding import seed_for
from tl.specs import Spec
from tl.specs import find as find_spec
from tl.weights import Checkpoint, Weights, find, load_state_dict


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network that maps `(B, 3, S, S) float32` to pooled features `(B, width)`.

    All that a network does before its last linear layer belongs to the backbone (and to what is frozen),
    a hidden layer of its classifier included (torchvision's MobileNetV3 and VGG, timm's `conv_head`).
    """

    spec: str
    module: nn.Module
    width: int
    preprocessing: Preprocessing
    weights: Weights
    head: nn.Linear | None = None
    """`(B, width)` → logits of some classes, from the classifier that the weights came with; None if not asked for."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A library of networks. Names are the library's own."""

    names: Callable[[], list[str]]
    checkpoint: Callable[[str], Checkpoint]
    preprocessing: Callable[[str], Preprocessing]
    classes: Callable[[str], int]
    """How many classes the published weights tell apart: 1000 are those of ImageNet-1k."""
    load: Callable[[str, Weights], nn.Module]
    """The whole network."""
    cut: Callable[[nn.Module], tuple[object, int]]
    """Takes a whole network's classifier off in place, and returns it and the width of the features."""


def known_names() -> dict[str, list[str]]:
    """All names by source."""
    return {source: entry.names() for source, entry in SOURCES.items()}


def find_weights(spec: str, policy: str, *, weights_dir: Path | None = None, download: bool = True) -> Weights:
    """Which weights `spec` (with its source) gets: see `tl.weights.find`."""
    parts = Spec.parse(spec)
    checkpoint = SOURCES[parts.source].checkpoint(parts.name)
    bare = parts.architecture
    if any(bare in entry.names() for other, entry in SOURCES.items() if other != parts.source):
        # Both libraries have a network of that name: a bare `NAME.pth` could be either's.
        checkpoint = replace(checkpoint, file_names=tuple(n for n in checkpoint.file_names if n != bare))
    return find(spec, checkpoint, policy, weights_dir=weights_dir, download=download)


def make_backbone(
    spec: str,
    *,
    weights: str | Weights = "auto",
    weights_dir: str | Path | None = None,
    seed: int = 0,
    own_head_for: tuple[str, ...] | None = None,
) -> Backbone:
    """Build a backbone on the CPU.

    Args:
        spec: `torchvision:NAME`, `timm:NAME[.TAG]`, or a bare name that only one of them has.
        weights: a policy (`auto`, `pretrained`, `random`) or weights that `find_weights` returned.
        weights_dir: a folder looked at first, for `SOURCE-NAME.pth` (or `.safetensors`, `.pt`, `.bin`), `NAME.pth`
            where only one source has that name, or the published file name.
        seed: decides random weights; pretrained ones don't depend on it.
        own_head_for: classes of a data set, to keep as `head` what the weights' own ImageNet classifier knows of them.

    Warns with `StandInWarning` when `auto` falls back to random weights. Raises `ConfigError` for an unknown
    name, `WeightsError` when weights are missing or don't fit, `NotApplicable` where no such head can be had.
    The global random state is left as it was.
    """
    found = find_spec(spec, known_names())
    spec, name = str(found), found.name
    if isinstance(weights, str):
        weights = find_weights(spec, weights, weights_dir=Path(weights_dir) if weights_dir else None)
        if weights.reason and own_head_for is None:
            warnings.warn(f"{spec} has random weights: {weights.reason}", StandInWarning, stacklevel=2)
    entry, head = SOURCES[found.source], None
    preprocessing = entry.preprocessing(name)
    with seeded(seed_for("init", spec, seed)):
        if own_head_for is None:
            module = entry.load(name, weights)
            _, width = entry.cut(module)
        else:
            chosen = rows(own_head_for)
            _check_imagenet(name, entry, weights)
            module, image = entry.load(name, weights), probe_image(preprocessing.size)
            logits = output(module, image)
            layer, width = entry.cut(module)
            head = head_of(layer, chosen, backbone=module, image=image, logits=logits)
    return Backbone(spec=spec, module=module, width=width, preprocessing=preprocessing, weights=weights, head=head)


def _check_imagenet(name: str, entry: Source, weights: Weights) -> None:
    """Raise `NotApplicable` for weights that don't know ImageNet-1k's classes."""
    if weights.kind == "random":
        why = weights.reason or "random weights were asked for"
        raise NotApplicable(f"only pretrained weights come with an ImageNet classifier: {why}")
    if (classes := entry.classes(name)) != CLASSES:
        has = f"give {classes} figures" if classes else "have no classifier"
        raise NotApplicable(f"the published weights of {name} {has}, where ImageNet-1k has {CLASSES} classes")


@contextmanager
def _fitting(name: str, weights: Weights) -> Iterator[None]:
    """Tell tensors that don't fit a network as a `WeightsError`; want of memory stays what it is."""
    try:
        yield
    except (RuntimeError, KeyError, AttributeError) as error:
        if "memory" in str(error):
            raise
        raise WeightsError(f"{name}: {weights.label} does not fit the network: {error}") from error


# torchvision

_WITH_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""Networks with auxiliary classifiers, which are dropped after loading."""


def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def _torchvision_checkpoint(name: str) -> Checkpoint:
    weights = torchvision.models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    return _from_url(str(weights), weights.url, (f"torchvision-{name}", name))


def _from_url(label: str, url: str, names: tuple[str, ...], bundled_as: str = "") -> Checkpoint:
    file_name = url.rpartition("/")[2]
    place = Path(torch.hub.get_dir()) / "checkpoints" / file_name

    def download() -> Path:
        place.parent.mkdir(parents=True, exist_ok=True)
        # The published name ends in the first digits of the file's SHA-256.
        digits = re.search(r"-([0-9a-f]{8,})\.", file_name)
        torch.hub.download_url_to_file(url, os.fspath(place), hash_prefix=digits.group(1) if digits else None)
        return place

    return Checkpoint(
        label=label,
        file_names=(*names, file_name),
        bundled_as=bundled_as,
        cached=lambda: (place, "torch hub cache") if place.is_file() else None,
        download=download,
        url=url,
    )


def _torchvision_preprocessing(name: str) -> Preprocessing:
    given = torchvision.models.get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    return Preprocessing(
        size=given.crop_size[0],
        resize=given.resize_size[0],
        mean=tuple(given.mean),
        std=tuple(given.std),
        interpolation=given.interpolation.value,
    )


def _torchvision_classes(name: str) -> int:
    return len(torchvision.models.get_model_weights(name).DEFAULT.meta["categories"])  # type: ignore[attr-defined]


def _torchvision_load(name: str, weights: Weights) -> nn.Module:
    arguments: dict[str, Any] = {}
    if name in _WITH_AUXILIARY:
        arguments = {"transform_input": True, "init_weights": weights.kind == "random"}
    elif name.startswith("vit_"):
        arguments = {"image_size": _torchvision_preprocessing(name).size}
    module: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    if weights.kind == "pretrained":
        given = load_state_dict(weights, module.state_dict())
        if name.startswith("densenet"):
            # The published files still have the names of an older layout: `norm.1` for `norm1`.
            given = {re.sub(r"\.(norm|relu|conv)\.(\d)\.", r".\1\2.", key): value for key, value in given.items()}
        with _fitting(name, weights):
            module.load_state_dict(given)
    if name in _WITH_AUXILIARY:
        module.aux_logits = False  # type: ignore[assignment]
        for auxiliary in _WITH_AUXILIARY[name]:
            setattr(module, auxiliary, None)
    return module


def _torchvision_cut(module: nn.Module) -> tuple[object, int]:
    last, width = "", 0
    for path, part in module.named_modules():
        if isinstance(part, nn.Linear) and part.out_features == CLASSES:
            last, width = path, part.in_features
        elif isinstance(part, nn.Conv2d) and part.out_channels == CLASSES:
            last, width = path, part.in_channels
    layer = module.get_submodule(last)
    module.set_submodule(last, nn.Identity())
    return layer, width


# timm


def _timm_names() -> list[str]:
    return [*timm.list_models(), *timm.list_pretrained()]


def _timm_config(name: str) -> Any:
    return get_pretrained_cfg(name)


def _timm_checkpoint(name: str) -> Checkpoint:
    config = _timm_config(name)
    label = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    # A file without a tag in its name is taken for the architecture's default weights, and for those only.
    is_default = _timm_config(config.architecture).tag == config.tag
    plain = (f"timm-{config.architecture}", config.architecture) if is_default else ()
    names = (f"timm-{label}", label, *plain)
    bundled_as = f"timm:{config.architecture}" if is_default else ""
    if not config.hf_hub_id and config.url:
        return _from_url(label, config.url, names, bundled_as)
    # `model.safetensors` is what timm publishes today; a few repositories hold only the older file.
    published = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]

    def cached() -> tuple[Path, str] | None:
        for file_name in published if config.hf_hub_id else []:
            found = try_to_load_from_cache(config.hf_hub_id, file_name)
            if isinstance(found, str):
                return Path(found), "Hugging Face cache"
        return _from_url(label, config.url, names).cached() if config.url else None

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
        cached=cached,
        download=download,
        url=f"{hf_constants.ENDPOINT}/{config.hf_hub_id}" if config.hf_hub_id else "",
    )


def _timm_preprocessing(name: str) -> Preprocessing:
    config = _timm_config(name)
    height, width = config.input_size[1:]
    if height != width or config.crop_mode not in ("center", "squash"):
        raise ConfigError(
            f"backbone='timm:{name}': its input is {height}x{width} with crop mode {config.crop_mode!r}; "
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


def _timm_load(name: str, weights: Weights) -> nn.Module:
    # With all 1,000 classes timm insists that every tensor of the file is used; the classifier goes afterwards.
    if weights.kind == "random":
        module: nn.Module = timm.create_model(name, pretrained=False)
    elif weights.in_order:
        module = timm.create_model(name, pretrained=False)
        given = load_state_dict(weights, module.state_dict())
        with _fitting(name, weights):
            module.load_state_dict(given)
    else:
        given = load_state_dict(weights, {})
        with _fitting(name, weights):
            module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": given})
    return module


def _timm_cut(module: Any) -> tuple[object, int]:
    layer = module.get_classifier()
    module.reset_classifier(0)
    return layer, getattr(module, "head_hidden_size", None) or module.num_features


SOURCES: dict[str, Source] = {
    "torchvision": Source(
        names=_torchvision_names,
        checkpoint=_torchvision_checkpoint,
        preprocessing=_torchvision_preprocessing,
        classes=_torchvision_classes,
        load=_torchvision_load,
        cut=_torchvision_cut,
    ),
    "timm": Source(
        names=_timm_names,
        checkpoint=_timm_checkpoint,
        preprocessing=_timm_preprocessing,
        classes=lambda name: _timm_config(name).num_classes,
        load=_timm_load,
        cut=_timm_cut,
    ),
}


class Classifier(nn.Module):
    """A backbone and a head: `(B, 3, S, S)` → logits `(B, classes)`.

    The head is the backbone's own where it has one, else new: its start depends on the seed and its shape alone.
    """

    def __init__(self, backbone: Backbone, classes: int, config: TrainConfig) -> None:
        super().__init__()
        self.backbone = backbone.module
        with seeded(seed_for("head", config.seed)):
            self.head = backbone.head or HEAD_BUILDERS[config.head](backbone.width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of normalised images."""
        logits: torch.Tensor = self.head(self.backbone(images))
        return logits


HEAD_BUILDERS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": nn.Linear,
    "mlp": lambda width, classes: nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, classes)),
}
