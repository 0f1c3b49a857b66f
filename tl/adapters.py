"""What a regime adds to a backbone after loading, and takes out of it after training.

To add one, add its name to `Regime.adapter` (`tl/regimes.py`) and an entry to `ADAPTERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tl import lora
from tl.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A change of a backbone for the time of a training. Both functions change it in place."""

    insert: Callable[[nn.Module, TrainConfig, torch.Tensor], None]
    """Called before anything is frozen, with the backbone in eval mode on its device, and an example of its input.
    The network must compute the same as before. Raises `NotApplicable` for a backbone that it doesn't fit."""
    merge: Callable[[nn.Module], None]
    """Called after training and after the proof of what stayed frozen. It leaves a plain network, with the names that
    it had when it was loaded, which computes the same up to rounding."""


ADAPTERS: dict[str, Adapter] = {"lora": Adapter(insert=lora.insert, merge=lora.merge)}
"""The adapter of each `Regime.adapter` other than `none`."""
