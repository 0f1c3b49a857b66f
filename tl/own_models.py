"""Networks of one's own, which a function makes: source `module`, and backbones that a notebook gives itself.

The function returns a `Backbone`. It may have a parameter `pretrained`, which says whether the network is to have its
pretrained weights or random ones; without it, the weights are its own, and count as pretrained.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import nn

from tl.batches import Preprocessing
from tl.devices import seeded
from tl.errors import NotApplicable
from tl.freezing import Freezing, digest
from tl.imagenet import output
from tl.library import Backbone, Maker
from tl.own_code import Elsewhere, ImportPath, call, load, named, takes
from tl.own_copies import copy_of
from tl.seeding import seed_for
from tl.specs import Spec
from tl.weights import Weights

_IMAGES = 2
"""Images on which a network shows the shape of its features."""
_INTERPOLATIONS = ("bilinear", "bicubic")


def _weights(name: str, policy: str, download: bool) -> Weights:
    path = ImportPath.parse("backbone", name)
    with seeded(seed_for("init", f"module:{name}", 0)):
        return weights_of(_made(path, pretrained=True), name)


def weights_of(made: Backbone, name: str) -> Weights:
    """Return the weights that code has given to a network, by the digest of its tensors."""
    everything = [key for key, _ in [*made.module.named_parameters(), *made.module.named_buffers()]]
    return Weights(kind="pretrained", source="own code", label=name, digest=digest(made.module, everything))


def _make(name: str, weights: Weights) -> Backbone:
    path = ImportPath.parse("backbone", name)
    return with_weights(path, _made(path, pretrained=weights.kind == "pretrained"), weights)


def with_weights(path: ImportPath, made: Backbone, weights: Weights) -> Backbone:
    """Return what code made, if it has the weights that were found. Raises `ConfigError`, which names the code."""
    if weights.kind == "pretrained" and (now := weights_of(made, weights.label).digest) != weights.digest:
        raise path.wrong(
            f"made other weights than before ({weights.digest[:8]}, now {now[:8]}): whatever is random in it needs a "
            "fixed seed"
        )
    return made


def _made(path: ImportPath, *, pretrained: bool) -> Backbone:
    """Make a backbone and check it. Raises `ConfigError`, which names the function."""
    code = load(path)
    if not pretrained and not takes(code, "pretrained"):
        raise NotApplicable(f"{path}: makes no random weights: it has no parameter `pretrained`")
    made: object = call(path, code, pretrained=pretrained)
    if isinstance(made, Backbone):
        made = copy_of(path, made)
    return as_backbone(path, made, "a tl.Backbone(module, width, preprocessing)")


def as_backbone(path: ImportPath, made: object, wanted: str) -> Backbone:
    """Return what code made, if it is a sound backbone. Raises `ConfigError`, which names the code.

    `wanted` says what it should have made, for the message.
    """
    if not isinstance(made, Backbone):
        raise path.wrong(f"returned a value of type {type(made).__name__}, not {wanted}")
    with named(path):
        fault = _fault_of(made)
    if fault:
        raise path.wrong(fault)
    return made


def _fault_of(made: Backbone) -> str:
    """Say what is wrong with a backbone; empty if its network in eval mode maps images to features of its width."""
    if not isinstance(made.module, nn.Module):
        return f"its module is of type {type(made.module).__name__}, not a torch.nn.Module"
    if made.head is not None:
        return "it has a head, which is for networks whose classes are known; name a head by the setting `head`"
    if fault := _fault_of_preprocessing(made.preprocessing):
        return f"its preprocessing {fault}"
    size = made.preprocessing.size
    images = torch.randn(_IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    if fault := _fault_of_features(output(made.module, images), images, made):
        return f"its output for {_IMAGES} images of {size} pixels is {fault}"
    return ""


def _fault_of_features(features: object, images: torch.Tensor, made: Backbone) -> str:
    """Say what an output for some images is, if that isn't features; empty if it is."""
    if not isinstance(features, torch.Tensor):
        return f"of type {type(features).__name__}, not a tensor of features"
    wanted = (len(images), made.width)
    if tuple(features.shape) != wanted or features.dtype != torch.float32:
        kind = str(features.dtype).removeprefix("torch.")
        return f"{tuple(features.shape)} {kind}, not (images, width) = {wanted} float32"
    return ""


def _fault_of_preprocessing(given: object) -> str:
    """Say what is wrong with a preprocessing; empty if it makes images of its size."""
    if not isinstance(given, Preprocessing):
        return f"is of type {type(given).__name__}, not a tl.Preprocessing"
    sizes = (given.size, given.resize)
    if not all(isinstance(one, Integral) and one > 0 for one in sizes) or given.resize < given.size:
        return f"has size={given.size!r} and resize={given.resize!r}: they must be whole numbers, size at most resize"
    for name, values in (("mean", given.mean), ("std", given.std)):
        if not isinstance(values, tuple | list) or len(values) != 3 or not all(map(_is_finite, values)):
            return f"has {name}={values!r}: it must be three numbers, of red, green and blue"
    if not all(value > 0 for value in given.std):
        return f"has std={given.std!r}: each must be above 0"
    if given.interpolation not in _INTERPOLATIONS:
        return f"has interpolation={given.interpolation!r}: it must be {' or '.join(_INTERPOLATIONS)}"
    return ""


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def check_in_train_mode(spec: Spec, made: Backbone, freezing: Freezing, images: torch.Tensor) -> None:
    """Raise `NotApplicable` for a network that gives something else than features in the mode of a training pass.

    Such are networks with classifiers of intermediate features, as torchvision's Inception v3 has one for training.
    `images` are examples of its input, two or more. Buffers, such as statistics, stay as they were.
    """
    path = Elsewhere("backbone", spec.name, "", spec.source)
    before = {name: buffer.clone() for name, buffer in made.module.named_buffers()}
    freezing.train_mode()
    try:
        with named(path, "in train mode: "), seeded(0), torch.no_grad():
            fault = _fault_of_features(made.module(images), images, made)
    finally:
        freezing.eval_mode()
        with torch.no_grad():
            for name, buffer in made.module.named_buffers():
                buffer.copy_(before[name])
    if fault:
        raise NotApplicable(f"{path}: its output in train mode is {fault}")


MAKER = Maker(weights=_weights, make=_make, load=lambda name: load(ImportPath.parse("backbone", name)))
