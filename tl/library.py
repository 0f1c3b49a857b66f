"""The interface of sources of networks, and functions that libraries share. `tl.sources` lists the sources."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from tl.batches import Preprocessing
from tl.errors import ConfigError, WeightsError
from tl.sources import SOURCES, at
from tl.weights import Checkpoint, Place, Weights, first_of, torch_hub


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library of networks. It uses its own names of networks."""

    names: Callable[[], list[str]]
    checkpoint: Callable[[str], Checkpoint]
    """Returns the weights that are published for a network."""
    preprocessing: Callable[[str], Preprocessing]
    """Returns the preprocessing that a network's published weights expect."""
    classes: Callable[[str], int]
    """Returns the number of classes of the published weights; 1000 means those of ImageNet-1k."""
    load: Callable[[str, Weights], nn.Module]
    """Builds the whole network, with the weights in it."""
    cut: Callable[[nn.Module], tuple[object, int]]
    """Removes a whole network's classifier in place; returns it and the width of the features."""
    detector: Callable[[str, Weights], Backbone | None] | None = None
    """Makes a detector; None for a network that is none. Without it the library has no detectors."""


NO_WEIGHTS = Weights(kind="random", source="random")


@dataclass(frozen=True)
class Backbone:
    """A network that maps `(B, 3, S, S) float32` to pooled features `(B, width)`.

    Everything before the last linear layer belongs to the backbone, and to what is frozen, including a hidden layer of
    the network's classifier (torchvision's MobileNetV3 and VGG, timm's `conv_head`).

    A network of one's own becomes one by `tl.Backbone(network, width, tl.Preprocessing(…))`.
    """

    module: nn.Module
    width: int
    preprocessing: Preprocessing
    spec: str = ""
    """The backbone's name, with its source; empty for one of one's own, until it is known by what name it was asked
    for."""
    weights: Weights = NO_WEIGHTS
    head: nn.Linear | None = None
    """`(B, width)` → logits of some classes, from the classifier that the weights came with; None unless requested."""
    detector_head: Callable[[int], nn.Module] | None = None
    """Of a detector, whose module maps images to maps of features and whose `width` is that of the last map: makes all
    that follows the module, for a number of classes (`tl.detectors`). None for other networks."""
    parameters_elsewhere: int = 0
    """Number of parameters that the module doesn't have, since another process holds them."""


@dataclass(frozen=True, kw_only=True)
class Maker:
    """A source that can't list its networks, and makes backbones by name. It uses its own names of them."""

    weights: Callable[[str, str, bool], Weights] | None = None
    """Returns the weights of a backbone by a policy, `auto` or `pretrained`; the last argument says whether anything
    may be downloaded. Raises as `tl.weights.find`. None if there is a checkpoint."""
    checkpoint: Callable[[str], Checkpoint] | None = None
    """Returns the weights that are published for a backbone as a file; None if code brings them."""
    make: Callable[[str, Weights], Backbone]
    """Makes a backbone with these weights, or with random ones. Raises `NotApplicable` where there are none."""
    load: Callable[[str], object]
    """Loads the code behind a name, so that what it loads counts for no training. Raises `UserError`."""
    frozen_because: str = ""
    """Why its networks serve only regimes that extract features once; empty if they serve all."""
    others: str = ""
    """Other processes that hold memory of its networks, in words; empty if there are none."""


@cache
def maker(source: str) -> Maker:
    """The maker of a source that can't list its networks."""
    found: Maker = at(SOURCES[source].library)
    return found


@cache
def library(source: str) -> Library:
    """The library of a source that lists its networks. Raises `ConfigError` if it can't be loaded."""
    where = SOURCES[source].library
    try:
        found: Library = at(where)
    except Exception as error:  # another's module may raise anything
        problem = f"{type(error).__name__}: {error}"
        raise ConfigError(f"source {source!r}: its library {where!r} can't be loaded: {problem}") from error
    return found


@contextmanager
def fitting(name: str, weights: Weights) -> Iterator[None]:
    """Raise `WeightsError` for tensors that don't fit a network; running out of memory stays what it is."""
    try:
        yield
    except (RuntimeError, LookupError, AttributeError, TypeError, ValueError) as error:
        if "memory" in str(error):
            raise
        # torch names every tensor; the first ones say what is wrong.
        why = textwrap.shorten(str(error), 300, placeholder=" …")
        raise WeightsError(f"{name}: {weights.label} does not fit the network: {why}") from error


def checkpoint_at(label: str, url: str, names: tuple[str, ...], bundled_as: str = "") -> Checkpoint:
    """Return the weights that are published under a URL and kept in torch hub's cache."""
    file_name = url.rpartition("/")[2]
    place, places = torch_hub() / "checkpoints" / file_name, (Place(file=file_name),)

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
        cached=partial(first_of, places),
        places=places,
        download=download,
        url=url,
    )
