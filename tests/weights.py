"""Files that replace published weights in tests, and the policy of weights for each regime."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import timm
import torch
import torchvision

from tests.conftest import TINY
from tl.regimes import REGIMES

TRAINING = [name for name, regime in REGIMES.items() if regime.by_steps]
FITTED = [name for name, regime in REGIMES.items() if regime.trains and not regime.by_steps]


def network(spec: str, seed: int = 5) -> torch.nn.Module:
    """Make a whole network with its library, with its classifier, in eval mode."""
    source, _, name = spec.partition(":")
    torch.manual_seed(seed)
    made = torchvision.models.get_model(name, weights=None) if source == "torchvision" else timm.create_model(name)
    return made.eval()


@cache
def published() -> Path:
    """Return a folder for `weights_dir` with a file for each of `TINY`."""
    folder = Path(os.environ["TL_CACHE"]).parent / "published"
    folder.mkdir()
    for spec in TINY:
        torch.save(network(spec).state_dict(), folder / f"{spec.replace(':', '-')}.pth")
    return folder


def policy(regime: str) -> str:
    """Return `random` if the regime accepts random weights, else `pretrained`."""
    return "pretrained" if REGIMES[regime].head == "own" else "random"
