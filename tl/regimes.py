"""Regimes: which parameters train, if any, from which start, and in which mode the backbone runs.

To add one, add an entry to `REGIMES`; the tests, `bench list regimes` and the grids pick it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How a backbone gets to tell the classes of a data set apart."""

    summary: str
    start: Literal["pretrained", "random"]
    """Where the backbone's weights come from. `random` is meant, not a fallback: accuracy counts."""
    trains_backbone: bool
    """Backbone parameters get gradients and are in the optimiser."""
    backbone_mode: Literal["train", "eval"]
    """BatchNorm, dropout and drop-path mode of the backbone during training passes."""
    head: Literal["new", "own"] = "new"
    """`new`: as `TrainConfig.head` says, and trained. `own`: those rows of the classifier that the pretrained network
    was published with that belong to the classes of the data set; they stay as they are."""
    features: Literal["each step", "once"] = "each step"
    """`once`: the backbone runs over all images before training, and the head trains on what it gave."""
    extractor: Literal["float", "int8"] = "float"
    """`int8`: the backbone is quantised after loading, calibrated on training images."""
    control: bool = False
    """A yardstick: no report recommends it or compares its time with that of fine-tuning."""

    @property
    def trains_head(self) -> bool:
        """Head parameters get gradients and are in the optimiser."""
        return self.head == "new"

    @property
    def trains(self) -> bool:
        """There is something to train. Without it one validation pass is all, and neither seed nor epochs matter."""
        return self.trains_backbone or self.trains_head

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
    "cached": Regime(
        summary="as frozen, but features are extracted once, of centre views unless `views` says more",
        start="pretrained",
        trains_backbone=False,
        backbone_mode="eval",
        features="once",
    ),
    "quantized": Regime(
        summary="as frozen, with the backbone quantised to int8 after loading; the head stays in single precision",
        start="pretrained",
        trains_backbone=False,
        backbone_mode="eval",
        extractor="int8",
    ),
    "scratch": Regime(
        summary="all parameters are trained from random weights: the control that shows what transfer buys",
        start="random",
        trains_backbone=True,
        backbone_mode="train",
        control=True,
    ),
    "zeroshot": Regime(
        summary="nothing is trained, the backbone's own ImageNet classifier decides: the control for what it knew",
        start="pretrained",
        trains_backbone=False,
        backbone_mode="eval",
        head="own",
        control=True,
    ),
}
