"""`TrainConfig`: everything that can change a number, and nothing else.

No paths, device names or worker counts: two machines that train one config on one dataset mean the same
experiment. Defaults are those of the PyTorch transfer-learning tutorial
(https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from tl.errors import ConfigError, not_one_of
from tl.regimes import REGIMES
from tl.strict import Strict

WEIGHTS_POLICIES = ("auto", "pretrained", "random")
PRECISIONS = {
    "fp32": "single precision throughout",
    "bf16": "bfloat16 autocast in forward and backward; weights and optimiser state stay fp32",
}
OPTIMIZERS = {
    "sgd": "stochastic gradient descent with `momentum`",
    "adamw": "AdamW; `momentum` is its beta1, beta2 is 0.999",
}
SCHEDULES = {
    "step": "the learning rate times `gamma` every `step_size` epochs",
    "cosine": "from the learning rate to 0 over all epochs along half a cosine",
    "constant": "the learning rate stays",
}
LOSSES = {
    "cross_entropy": "cross-entropy, with `label_smoothing`",
    "focal": "cross-entropy weighted by (1 - p)^2 (Lin et al. 2017, gamma = 2)",
}
HEADS = {
    "linear": "one linear layer on the pooled features",
    "mlp": "linear to 256, ReLU, linear to the classes",
}


class TrainConfig(Strict):
    """One training run. Frozen; make variants with `config.replace(epochs=3)`.

    Raises `ConfigError` for a field that is out of range or unknown.
    """

    backbone: str = Field(description="`torchvision:NAME`, `timm:NAME[.TAG]`, or a bare name that only one of them has")
    regime: str = Field("frozen", description="a key of `tl.regimes.REGIMES`")
    weights: str = Field("auto", description="`pretrained`, `random`, or `auto`: pretrained where they can be had")
    precision: str = Field("fp32", description="a key of `PRECISIONS`")
    epochs: int = Field(25, ge=1, description="passes over the training images")
    batch_size: int = Field(4, ge=1, description="images a training step")
    optimizer: str = Field("sgd", description="a key of `OPTIMIZERS`")
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="at the first epoch")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    schedule: str = Field("step", description="a key of `SCHEDULES`")
    step_size: int = Field(7, ge=1, description="epochs between two steps of schedule `step`")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of a step of schedule `step`")
    loss: str = Field("cross_entropy", description="a key of `LOSSES`")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    head: str = Field("linear", description="a key of `HEADS`")
    seed: int = Field(0, ge=0, description="decides the head's start, the order of images, crops and flips")

    @property
    def passes(self) -> int:
        """Validation passes: one an epoch, or a single one where the regime trains nothing."""
        return self.epochs if REGIMES[self.regime].trains else 1

    @field_validator("regime", "weights", "precision", "optimizer", "schedule", "loss", "head")
    @classmethod
    def _known(cls, value: str, info: Any) -> str:
        choices = {
            "regime": REGIMES,
            "weights": WEIGHTS_POLICIES,
            "precision": PRECISIONS,
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "loss": LOSSES,
            "head": HEADS,
        }[info.field_name]
        if value not in choices:
            raise ConfigError(not_one_of(info.field_name, value, choices))
        return value
