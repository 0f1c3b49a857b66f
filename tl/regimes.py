"""Regimes: which parameters train, from which start, and in which mode the backbone runs.

To add one, add an entry to `REGIMES`; the tests, `bench list regimes` and the grids pick it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How a backbone is used while the new head is trained."""

    summary: str
    start: Literal["pretrained", "random"]
    """Where the backbone's weights come from. `random` is meant, not a fallback: accuracy counts."""
    trains_backbone: bool
    """Backbone parameters get gradients and are in the optimiser."""
    backbone_mode: Literal["train", "eval"]
    """BatchNorm, dropout and drop-path mode of the backbone during training passes."""

    @property
    def must_stay_frozen(self) -> bool:
        """No parameter or buffer of the backbone may change: verified after training."""
        return not self.trains_backbone and self.backbone_mode == "eval"


REGIMES: dict[str, Regime] = {
    "finetune": Regime(
        summary="all parameters are trained, from pretrained weights",
        start="pretrained",
        trains_backbone=True,
        backbone_mode="train",
    ),
    "frozen": Regime(
        summary="only the new head is trained; the backbone runs in eval mode and nothing in it changes",
        start="pretrained",
        trains_backbone=False,
        backbone_mode="eval",
    ),
    "frozen-tutorial": Regime(
        summary="only the new head is trained, but BatchNorm statistics keep moving, as in the PyTorch tutorial",
        start="pretrained",
        trains_backbone=False,
        backbone_mode="train",
    ),
    "scratch": Regime(
        summary="all parameters are trained from random weights: the control that shows what transfer buys",
        start="random",
        trains_backbone=True,
        backbone_mode="train",
    ),
}
