"""Files that replace published weights in tests, and the policy of weights for each regime."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import timm
import torch
import torchvision

from tests.conftest import TINY
from tl.regimes import EVERYTHING, REGIMES

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


@cache
def with_statistics() -> Path:
    """Return a folder as `published`, of networks whose BatchNorm statistics are those of images.

    Without them features are tiny in eval mode, and a head that is fitted to them is far too large for train mode.
    """
    folder = Path(os.environ["TL_CACHE"]).parent / "with-statistics"
    folder.mkdir()
    for spec in TINY:
        whole = network(spec)
        for norm in whole.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
        with torch.no_grad():
            whole.train()(torch.randn(16, 3, 160, 160))
        torch.save(whole.state_dict(), folder / f"{spec.replace(':', '-')}.pth")
    return folder


def weights_for(regime: str) -> Path:
    """Return the folder of weights that a regime can train from."""
    return published() if REGIMES[regime].head_start == "random" else with_statistics()


def policy(regime: str) -> str:
    """Return `random` if the regime makes sense with random weights, else `pretrained`."""
    entry = REGIMES[regime]
    return "pretrained" if entry.head == "own" or entry.head_start != "random" else "random"


def proof_of(regime: str) -> bool | None:
    """Return what `frozen_verified` must be: True where anything is frozen that a regime promises to leave."""
    entry = REGIMES[regime]
    return True if entry.trainable is not EVERYTHING and entry.frozen_mode == "eval" else None


def epochs_for(regime: str) -> int:
    """Return as many epochs as it takes until a stage joins, in a regime where they do; else one."""
    return 2 if REGIMES[regime].trainable.in_turn else 1
