"""`TrainConfig`: everything that can change a number, and nothing else.

No paths, device names or worker counts: two machines that train one config on one dataset mean the same
experiment. Defaults are those of the PyTorch transfer-learning tutorial
(https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from tl.errors import ConfigError, not_one_of
from tl.regimes import REGIMES
from tl.specs import Spec
from tl.strict import Strict

PROTOCOLS = {
    "fixed": "one training at `learning_rate`, judged on the validation images",
    "tuned": "the best of `learning_rates` on held-out training images, then one training at it on all of them",
    "kfold": "stratified k-fold over all images: `folds` trainings, each image judged by the one without it",
}
READ_BY = {"learning_rate": ("fixed", "kfold"), "learning_rates": ("tuned",), "folds": ("kfold",)}
"""Settings that not every protocol reads, and which do: with another one they must keep their defaults."""
WEIGHTS_POLICIES = ("auto", "pretrained", "random")
PRECISIONS = {
    "fp32": "single precision throughout",
    "tf32": "single precision with the factors of products rounded to 10 bits, on NVIDIA GPUs from Ampere on",
    "bf16": "bfloat16 autocast in forward and backward; weights and optimiser state stay fp32",
    "fp16": "half-precision autocast with scaled gradients, on GPUs; weights and optimiser state stay fp32",
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
    protocol: str = Field("fixed", description="a key of `PROTOCOLS`")
    learning_rates: tuple[float, ...] = Field(
        (3e-4, 1e-3, 3e-3, 1e-2), description="what `tuned` chooses among, ascending; two or more, all different"
    )
    folds: int = Field(
        5, ge=2, description="parts of the images with `kfold`; the seed decides which image is in which"
    )

    views: int = Field(
        1,
        ge=1,
        description="of each training image, where a regime extracts features once: 1 is the centre view, more are "
        "random crops, one an epoch in turn. Other regimes don't read it: it is 1 with them",
    )
    compile: bool = Field(False, description="run the backbone through torch.compile")

    @property
    def spec(self) -> Spec:
        """The backbone's name in its parts."""
        return Spec.parse(self.backbone)

    @property
    def passes(self) -> int:
        """Validation passes: one an epoch, or a single one where the regime trains nothing."""
        return self.epochs if REGIMES[self.regime].trains else 1

    @property
    def trainings(self) -> int:
        """How many times the protocol goes through all passes; once where there is nothing to tune."""
        if self.protocol == "tuned" and not REGIMES[self.regime].trains:
            return 1
        return {"tuned": len(self.learning_rates) + 1, "kfold": self.folds}.get(self.protocol, 1)

    @field_validator("views")
    @classmethod
    def _views(cls, value: int, info: Any) -> int:
        regime = REGIMES.get(info.data.get("regime", ""))
        return value if regime is None or regime.features == "once" else 1

    @field_validator("learning_rates")
    @classmethod
    def _rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < rate < math.inf for rate in value):
            raise ConfigError(f"learning_rates={list(value)!r}: each must be a number above 0")
        if len(set(value)) < len(value):
            raise ConfigError(f"learning_rates={list(value)!r}: one is there twice")
        if len(value) < 2:
            raise ConfigError(f"learning_rates={list(value)!r}: at least 2 are needed to choose among")
        return tuple(sorted(value))  # the order decides nothing, so it makes no other config

    @model_validator(mode="after")
    def _all_is_read(self) -> Self:
        for name, protocols in READ_BY.items():
            value = getattr(self, name)
            if self.protocol not in protocols and value != type(self).model_fields[name].default:
                shown = list(value) if isinstance(value, tuple) else value
                raise ConfigError(
                    f"{name}={shown!r}: not read by protocol {self.protocol!r}, only by {' and '.join(protocols)}; "
                    "leave it out"
                )
        return self

    @field_validator("protocol", "regime", "weights", "precision", "optimizer", "schedule", "loss", "head")
    @classmethod
    def _known(cls, value: str, info: Any) -> str:
        tables: dict[str, Collection[str]] = {
            "protocol": PROTOCOLS,
            "regime": REGIMES,
            "weights": WEIGHTS_POLICIES,
            "precision": PRECISIONS,
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "loss": LOSSES,
            "head": HEADS,
        }
        choices = tables[info.field_name]
        if value not in choices:
            raise ConfigError(not_one_of(info.field_name, value, choices))
        return value
