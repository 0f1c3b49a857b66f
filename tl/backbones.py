"""Backbones: networks without their classifier, with their preprocessing and the origin of their weights.

`tl.sources` lists the libraries that networks come from.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tl.batches import Preprocessing
from tl.calls import Place, Texts, checked
from tl.config import TrainConfig
from tl.devices import seeded
from tl.errors import FallbackWarning, NotApplicable
from tl.imagenet import CLASSES, head_of, output, probe_image, rows
from tl.library import NO_WEIGHTS, Backbone, Library, library, maker
from tl.own_code import is_import_path
from tl.own_parts import own_head
from tl.seeding import seed_for
from tl.sources import SOURCES
from tl.specs import Spec
from tl.specs import find as find_spec
from tl.stages import expect_size
from tl.weights import Checkpoint, Weights, find


def known_names() -> dict[str, list[str]]:
    """Return all names by source, of the sources that list their networks."""
    return {source: library(source).names() for source, entry in SOURCES.items() if entry.lists}


def find_weights(spec: str, policy: str, *, weights_dir: Path | None = None, download: bool = True) -> Weights:
    """Find the weights of a backbone whose name has its source. See `tl.weights.find`.

    Backbones that code makes bring their weights, so `weights_dir` isn't searched for them.
    """
    parts = Spec.parse(spec)
    if not has_checkpoint(spec):
        weights = maker(parts.source).weights
        assert weights is not None  # see `Maker`
        return NO_WEIGHTS if policy == "random" else weights(parts.name, policy, download)
    return find(spec, checkpoint_of(spec), policy, weights_dir=weights_dir, download=download)


def has_checkpoint(spec: str) -> bool:
    """True if the weights of a backbone whose name has its source are a file; False if code brings them."""
    source = Spec.parse(spec).source
    return SOURCES[source].lists or maker(source).checkpoint is not None


def checkpoint_of(spec: str) -> Checkpoint:
    """Return the weights that are published as a file for a backbone whose name has its source."""
    parts = Spec.parse(spec)
    if not SOURCES[parts.source].lists:
        published = maker(parts.source).checkpoint
        assert published is not None  # see `has_checkpoint`
        return published(parts.name)
    checkpoint = library(parts.source).checkpoint(parts.name)
    bare = parts.architecture
    if any(bare in library(other).names() for other, entry in SOURCES.items() if entry.lists and other != parts.source):
        # Another source has a network of that name, too: a bare `NAME.pth` could be either's.
        checkpoint = replace(checkpoint, file_names=tuple(n for n in checkpoint.file_names if n != bare))
    return checkpoint


class _WithoutValues(TorchFunctionMode):
    """Leaves out what sets the values of tensors in place, which takes most of the time of building a transformer."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_" and args:
            return args[0]
        return func(*args, **(kwargs or {}))


def count_parameters(spec: str) -> int | None:
    """Return the number of parameters of a library's network without its classifier; None if that is unknown.

    Of a detector it is the part before its maps of features. The network is built without memory for its values, or,
    if that fails because it computes with some of them, with memory that nothing fills.
    """
    parts = Spec.parse(spec)
    entry = library(parts.source)
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), _WithoutValues(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return sum(parameter.numel() for parameter in _without_classifier(entry, parts.name).parameters())
        except Exception:  # libraries raise many kinds of errors, and a list goes on without the number
            continue
    return None


def _without_classifier(entry: Library, name: str) -> nn.Module:
    if entry.detector and (detector := entry.detector(name, NO_WEIGHTS)):
        return detector.module
    module = entry.load(name, NO_WEIGHTS)
    entry.cut(module)
    return module


@checked
def make_backbone(
    spec: str,
    *,
    weights: str | Weights = "auto",
    weights_dir: Place | None = None,
    seed: int = 0,
    own_head_for: Texts | None = None,
) -> Backbone:
    """Build a backbone on the CPU.

    Args:
        spec: `torchvision:NAME[.TAG]`, `timm:NAME[.TAG]`, a bare name that only one of these has, or a name of
            another source, such as `module:MODULE:NAME`.
        weights: a policy (`auto`, `pretrained`, `random`) or weights that `find_weights` returned.
        weights_dir: a folder that is searched first, for `SOURCE-NAME.pth` (or `.safetensors`, `.pt`, `.bin`),
            `NAME.pth` if only one source has that name, or the published file name.
        seed: decides random weights; pretrained ones don't depend on it.
        own_head_for: classes of a data set; `head` is then the weights' own ImageNet classifier, reduced to them.

    Warns with `FallbackWarning` if `auto` falls back to random weights. Raises `ConfigError` for an unknown name,
    `WeightsError` if weights are missing or don't fit, and `NotApplicable` if there is no such head.
    The global random state is left as it was.
    """
    found = find_spec(spec, known_names())
    spec, name = str(found), found.name
    if isinstance(weights, str):
        weights = find_weights(spec, weights, weights_dir=Path(weights_dir) if weights_dir else None)
        if weights.reason and own_head_for is None:
            warnings.warn(f"{spec} has random weights: {weights.reason}", FallbackWarning, stacklevel=2)
    if not SOURCES[found.source].lists:
        if own_head_for is not None:
            raise NotApplicable(f"{spec} has no classifier that is known to be ImageNet's")
        with seeded(seed_for("init", spec, 0 if weights.kind == "pretrained" else seed)):
            made = maker(found.source).make(name, weights)
        return replace(made, spec=spec, weights=weights)
    entry, head = library(found.source), None
    if weights.tag:  # the file has other published weights than those that the name stands for
        name = f"{found.architecture}.{weights.tag}"
    if entry.detector:
        with seeded(seed_for("init", spec, seed)):
            detector = entry.detector(name, weights)
        if detector:
            if own_head_for is not None:
                raise NotApplicable(f"{spec} is a detector, so it has no ImageNet classifier")
            return replace(detector, spec=spec, weights=weights)
    preprocessing = entry.preprocessing(name)
    with seeded(seed_for("init", spec, seed)):
        if own_head_for is None:
            module = entry.load(name, weights)
            _, width = entry.cut(module)
        else:
            chosen = rows(tuple(own_head_for))
            _check_imagenet(name, entry, weights)
            module, image = entry.load(name, weights), probe_image(preprocessing.size)
            logits = output(module, image)
            layer, width = entry.cut(module)
            head = head_of(layer, chosen, backbone=module, image=image, logits=logits)
    return Backbone(spec=spec, module=module, width=width, preprocessing=preprocessing, weights=weights, head=head)


def _check_imagenet(name: str, entry: Library, weights: Weights) -> None:
    """Raise `NotApplicable` for weights that don't know ImageNet-1k's classes."""
    if weights.kind == "random":
        why = weights.reason or "random weights were asked for"
        raise NotApplicable(f"only pretrained weights come with an ImageNet classifier: {why}")
    if (classes := entry.classes(name)) != CLASSES:
        has = f"have {classes} outputs" if classes else "have no classifier"
        raise NotApplicable(f"the published weights of {name} {has}, where ImageNet-1k has {CLASSES} classes")


class Classifier(nn.Module):
    """A backbone and a head: `(B, 3, S, S)` → logits `(B, classes)`.

    The head is the backbone's own if it has one, else a new one, whose initial weights depend only on seed and shape.
    That of a detector has all that follows the maps of features, and gives boxes `(B, 100, 6)`; see `tl.detectors`.
    """

    spec: str
    """The backbone's name, with its source."""
    preprocessing: Preprocessing
    """What images must go through before they are normalised images `(B, 3, S, S)`."""

    def __init__(self, backbone: Backbone, classes: int, config: TrainConfig) -> None:
        super().__init__()
        self.backbone = backbone.module
        self.spec, self.preprocessing = backbone.spec, backbone.preprocessing
        expect_size(backbone.module, backbone.preprocessing.size)
        with seeded(seed_for("head", config.seed)):
            if backbone.detector_head:
                self.head = backbone.detector_head(classes)
            else:
                self.head = backbone.head or make_head(config.head, backbone.width, classes)

    @classmethod
    def of(cls, backbone: Backbone, head: nn.Module) -> Classifier:
        """Join a backbone and a head that exist already."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.backbone, made.head = backbone.module, head
        made.spec, made.preprocessing = backbone.spec, backbone.preprocessing
        return made

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of normalised images."""
        logits: torch.Tensor = self.head(self.backbone(images))
        return logits


def make_head(name: str, width: int, classes: int) -> nn.Module:
    """Make a head `(B, width)` → logits `(B, classes)`: of `HEAD_BUILDERS`, or one's own by its import path."""
    if is_import_path(name):
        return own_head(name, width, classes)
    return HEAD_BUILDERS[name](width, classes)


HEAD_BUILDERS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": nn.Linear,
    "mlp": lambda width, classes: nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, classes)),
}
