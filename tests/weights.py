"""Weights that a test may take for published ones, and what each regime needs of them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import timm
import torch
import torchvision

from tests.conftest import TINY
from tl.regimes import REGIMES

TRAINING = [name for name, regime in REGIMES.items() if regime.trains]


def network(spec: str, seed: int = 5) -> torch.nn.Module:
    """A whole network as its library makes it, classifier included, in eval mode."""
    source, _, name = spec.partition(":")
    torch.manual_seed(seed)
    made = torchvision.models.get_model(name, weights=None) if source == "torchvision" else timm.create_model(name)
    return made.eval()


@cache
def published() -> Path:
    """A folder for `weights_dir` with a file for each of `TINY`."""
    folder = Path(os.environ["TL_CACHE"]).parent / "published"
    folder.mkdir()
    for spec in TINY:
        torch.save(network(spec).state_dict(), folder / f"{spec.replace(':', '-')}.pth")
    return folder


def policy(regime: str) -> str:
    """Random weights wherever the regime can do with them."""
    return "pretrained" if REGIMES[regime].head == "own" else "random"
