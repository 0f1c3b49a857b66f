"""Networks of PyTorch Hub: calls an entry of a `hubconf.py`, and cuts the classifier off its network."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tl.batches import Preprocessing
from tl.devices import seeded
from tl.errors import NotApplicable, near_matches
from tl.hub import API, Entry, digest_of_entry, entry_of, folder_of
from tl.imagenet import output
from tl.library import Backbone, Maker
from tl.own_code import call, named, takes
from tl.own_copies import copy_of
from tl.own_models import as_backbone, weights_of, with_weights
from tl.own_modules import modules_of
from tl.seeding import seed_for
from tl.weights import ToDownload, Weights

USUAL = Preprocessing(
    size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear"
)
"""That of most networks for ImageNet: an entry doesn't say its own. One that returns a `Backbone` does."""
_TOLERANCE = 1e-3
"""Largest error of the cut network with its classifier, relative to the largest output. Rounding stays far below."""


_loaded: dict[Path, str] = {}
"""Folder → digest of its code when this process loaded it: Python doesn't import its modules again."""


def _code(entry: Entry) -> Any:
    """Load an entry."""
    folder, digest = folder_of(entry).resolve(), digest_of_entry(entry)
    if _loaded.setdefault(folder, digest) != digest:
        raise entry.wrong("its source has changed since this process loaded it; restart Python to use it as it is now")
    spec = importlib.util.spec_from_file_location("hubconf", folder / "hubconf.py")
    assert spec and spec.loader
    hubconf = importlib.util.module_from_spec(spec)
    with named(entry), modules_of(folder):
        spec.loader.exec_module(hubconf)
        needed: object = getattr(hubconf, "dependencies", None) or []
        if not isinstance(needed, list | tuple) or not all(isinstance(name, str) for name in needed):
            raise entry.wrong("`dependencies` of hubconf.py is not a list of names")
        missing = [name for name in needed if not _is_there(name)]
    if missing:
        raise entry.wrong(f"needs packages that are not installed: {', '.join(missing)}")
    code = getattr(hubconf, entry.name, None)
    if not callable(code):
        names = sorted(name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_"))
        raise entry.wrong(f"hubconf.py has no function of that name{near_matches(entry.name, names)}")
    return code


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _made(entry: Entry, *, pretrained: bool) -> Backbone:
    """Make a backbone and check it. Raises `ConfigError`, which names the entry."""
    code = _code(entry)
    if not pretrained and not takes(code, "pretrained") and not takes(code, "weights"):
        raise NotApplicable(f"{entry}: makes no random weights: it has no parameter `pretrained` or `weights`")
    asked: dict[str, Any] = {"pretrained": pretrained}
    if not takes(code, "pretrained"):
        asked = {"weights": "DEFAULT" if pretrained else None}
    with modules_of(folder_of(entry).resolve()):
        made: object = call(entry, code, **asked)
    if isinstance(made, nn.Module | Backbone):
        made = copy_of(entry, made)
    if isinstance(made, nn.Module):
        with named(entry):
            made = _without_classifier(entry, made)
    return as_backbone(entry, made, "a torch.nn.Module or a tl.Backbone")


def _without_classifier(entry: Entry, network: nn.Module) -> Backbone:
    """Cut the last linear layer off, and prove that it was: with it, the rest gives the network's outputs."""
    images = torch.randn(2, 3, USUAL.size, USUAL.size, generator=torch.Generator().manual_seed(0))
    layers = [(name, part) for name, part in network.named_modules() if name and isinstance(part, nn.Linear)]
    logits: Any = output(network, images)
    if layers and isinstance(logits, torch.Tensor):
        name, layer = layers[-1]
        network.set_submodule(name, nn.Identity())
        features: Any = output(network, images)
        if isinstance(features, torch.Tensor) and features.shape == (2, layer.in_features):
            error = (output(layer, features) - logits).abs().max()
            if error <= _TOLERANCE * logits.abs().max():
                return Backbone(network, layer.in_features, USUAL)
    raise entry.wrong(
        "its classifier is not one linear layer on pooled features, so it can't be cut off; a function of yours can "
        "make a tl.Backbone of it (module:MODULE:NAME)"
    )


def _maker(source: str) -> Maker:
    def weights(name: str, policy: str, download: bool) -> Weights:
        entry = entry_of(source, name)
        if source == "hub" and not download:
            raise ToDownload(API, "an entry of PyTorch Hub fetches its weights itself, when a run asks it to")
        with seeded(seed_for("init", f"{source}:{name}", 0)):
            return weights_of(_made(entry, pretrained=True), name)

    def make(name: str, given: Weights) -> Backbone:
        entry = entry_of(source, name)
        return with_weights(entry, _made(entry, pretrained=given.kind == "pretrained"), given)

    return Maker(
        weights=weights,
        make=make,
        load=lambda name: _code(entry_of(source, name)),
    )


MAKER, LOCAL_MAKER = _maker("hub"), _maker("hub-local")
