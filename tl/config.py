"""`TrainConfig`: everything that can change a number, and nothing else.

It has no paths, device names or worker counts, so two machines that train the same config on the same data set run
the same experiment. Defaults are those of the PyTorch transfer-learning tutorial
(https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tl.detector_names import DETECTORS, is_detector
from tl.errors import ConfigError, not_one_of
from tl.own_code import PARTS, ImportPath, digest_of, is_import_path
from tl.regimes import REGIMES, Regime
from tl.sources import SOURCES, names_of
from tl.specs import Spec
from tl.strict import Count, Positive, Strict
from tl.tasks import TASKS

PROTOCOLS = {
    "fixed": "one training at `learning_rate`, evaluated on the validation images",
    "tuned": "finds the best of `learning_rates` on held-out training images, then trains at that rate on all of them",
    "kfold": "stratified k-fold over all images: `folds` trainings; each image is evaluated by the one without it",
}
READ_BY = {
    "learning_rate": ("fixed", "kfold"),
    "learning_rates": ("tuned",),
    "folds": ("kfold",),
    "early_stopping": ("fixed",),  # the others promise that validation images choose nothing
}
"""Settings that only these protocols read. With any other protocol they must keep their defaults."""
READ_BY_STEPS = (
    *("epochs", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay", "schedule", "step_size"),
    *("gamma", "loss", "label_smoothing", "head", "learning_rates"),
)
"""Settings of training by steps. A regime that fits its head at once reads none of them, so they have their defaults.
"""


def _trains_pretrained_parts(regime: Regime) -> bool:
    """Return whether a regime trains what a pretrained backbone has, not only what an adapter adds to it."""
    return regime.start == "pretrained" and regime.trainable.backbone is not None and regime.adapter == "none"


READ_BY_REGIME: dict[str, Callable[[Regime, str], bool]] = {
    "views": lambda regime, execution: regime.features == "once" and regime.fit == "steps",
    "checkpointing": lambda regime, execution: regime.trainable.backbone is not None,
    "fold": lambda regime, execution: regime.foldable and execution == "fast",
    "lookahead": lambda regime, execution: regime.looks_ahead and execution == "fast",
    "class_weights": lambda regime, execution: regime.by_steps,
    "lora_rank": lambda regime, execution: regime.adapter == "lora",
    "rate_after_head": lambda regime, execution: regime.head_start != "random",
    "freeze_bn": lambda regime, execution: _trains_pretrained_parts(regime),
    "layer_decay": lambda regime, execution: _trains_pretrained_parts(regime),
    "ema": lambda regime, execution: regime.by_steps,
    "early_stopping": lambda regime, execution: regime.by_steps,
    "unfreeze_every": lambda regime, execution: regime.trainable.in_turn is not None,
}
"""Setting → whether a regime and an execution read it. Where they don't, it has its default, so that it makes no other
cell."""
WEIGHTS_POLICIES = ("auto", "pretrained", "random")
ANY_BACKBONE = "any"
"""Stands for a backbone where only the other settings are checked."""
AUTO = "auto"
"""The precision that stands for a choice, see `tl.choice`."""
PRECISIONS = {
    "fp32": "single precision throughout",
    "tf32": "single precision, but factors of products are rounded to 10 bits; on NVIDIA GPUs from Ampere on",
    "bf16": "bfloat16 autocast in forward and backward; weights and optimiser state stay fp32",
    "fp16": "half-precision autocast with scaled gradients, on GPUs; weights and optimiser state stay fp32",
    AUTO: "the fastest of these whose loss stays close to that of fp32, measured once on this machine",
}
EXECUTIONS = {
    "fast": "images decoded once and cropped as tensors, fused optimiser, fastest memory layout, CUDA graphs on GPUs",
    "plain": "the tutorial's own loop: a DataLoader decodes and crops with Pillow in every epoch, nothing is fused",
}
OPTIMIZERS = {
    "sgd": "stochastic gradient descent with `momentum`",
    "adamw": "AdamW; `momentum` is its beta1, beta2 is 0.999",
}
SCHEDULES = {
    "step": "multiplies the learning rate by `gamma` every `step_size` epochs",
    "cosine": "lowers the learning rate to 0 over all epochs along half a cosine",
    "constant": "keeps the learning rate",
}
LOSSES = {
    "cross_entropy": "cross-entropy, with `label_smoothing`",
    "focal": "cross-entropy weighted by (1 - p)^2 (Lin et al. 2017, gamma = 2)",
    "bce": "binary cross-entropy of each class, for task `multilabel` alone",
    "detector": "the sum of the detector's own losses, for task `detection` alone",
}
CLASS_WEIGHTS = {
    "none": "each image counts the same in the loss",
    "balanced": "each class counts the same: an image counts n / (k n_c), with n training images, k classes, and n_c "
    "images of its class",
}
HEADS = {
    "linear": "one linear layer on the pooled features",
    "mlp": "a linear layer to 256 features, ReLU, and a linear layer to the classes",
}

TABLES: dict[str, Collection[str]] = {
    "protocol": PROTOCOLS,
    "regime": REGIMES,
    "task": TASKS,
    "weights": WEIGHTS_POLICIES,
    "precision": PRECISIONS,
    "execution": EXECUTIONS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
    "class_weights": CLASS_WEIGHTS,
    "head": HEADS,
}
"""Setting → the values that it may have. Those in `PARTS` may also be an import path."""


class TrainConfig(Strict):
    """The settings of a training. Instances are frozen; make variants with `config.replace(epochs=3)`.

    Raises `ConfigError` if a field is unknown or out of range.
    """

    backbone: str = Field(
        description="`torchvision:NAME[.TAG]`, `timm:NAME[.TAG]`, a bare name that only one of these has, or a name of "
        "another source, such as `module:MODULE:NAME`"
    )
    regime: str = Field("frozen", description="a key of `tl.regimes.REGIMES`")
    task: str = Field("classification", description="a key of `tl.tasks.TASKS`: what the network predicts for an image")
    weights: str = Field("auto", description="`pretrained`, `random`, or `auto`: pretrained if available")
    precision: str = Field("fp32", description="a key of `PRECISIONS`")
    execution: str = Field("fast", description="a key of `EXECUTIONS`: how the same training is carried out")
    epochs: Positive = Field(
        25,
        description="passes over the training images. Regimes that fit their head at once don't read this and the "
        "other settings of training by steps (`READ_BY_STEPS`), which have their defaults then",
    )
    batch_size: Positive = Field(4, description="images per training step")
    optimizer: str = Field("sgd", description="a key of `OPTIMIZERS`, or one's own: `MODULE:NAME`")
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="rate of the first epoch")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of `sgd`, and beta1 of `adamw`")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="weight decay of the optimiser")
    schedule: str = Field("step", description="a key of `SCHEDULES`")
    step_size: Positive = Field(7, description="epochs between two steps of schedule `step`")
    gamma: float = Field(0.1, gt=0, le=1, description="factor by which schedule `step` multiplies the rate")
    loss: str = Field(
        "cross_entropy",
        validate_default=True,
        description="a key of `LOSSES`, or one's own: `MODULE:NAME`. `cross_entropy` stands for the task's own loss: "
        "`bce` with task `multilabel`, `detector` with task `detection`",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each label that the loss spreads evenly over all classes"
    )
    class_weights: str = Field(
        "none",
        description="a key of `CLASS_WEIGHTS`: how much the images of each class count in the loss. Regimes "
        "that don't train by steps don't read it: it is always `none`",
    )
    head: str = Field("linear", description="a key of `HEADS`, or one's own: `MODULE:NAME`")
    seed: Count = Field(0, description="seeds the head's weights, the order of images, their crops and flips")
    protocol: str = Field("fixed", description="a key of `PROTOCOLS`")
    learning_rates: tuple[float, ...] = Field(
        (3e-4, 1e-3, 3e-3, 1e-2), description="rates among which `tuned` chooses: two or more, all different, ascending"
    )
    folds: int = Field(5, ge=2, lt=2**63, description="number of folds with `kfold`; the seed assigns images to folds")

    views: Positive = Field(
        1,
        description="views per training image for regimes that extract features once: 1 is the centre view, more are "
        "random crops that epochs use in turn. Other regimes don't read it: it is always 1",
    )
    lora_rank: Positive = Field(
        8,
        description="rank of low-rank updates (`tl.lora`); their scale is 8 / rank. Regimes without such updates don't "
        "read it: it is always 8",
    )
    rate_after_head: float = Field(
        0.1,
        gt=0,
        le=1,
        description="factor of all learning rates in regimes that begin with a fitted head: steps at the full rate "
        "would destroy what the fit found. Other regimes don't read it: it is always 0.1",
    )
    unfreeze_every: Positive = Field(
        1,
        description="epochs until the next stage of the backbone joins, in regimes whose stages train one after the "
        "other. Other regimes don't read it: it is always 1",
    )
    freeze_bn: bool = Field(
        False,
        description="keep the backbone's BatchNorm layers in eval mode, with statistics and parameters as they are. "
        "Regimes that train nothing of a pretrained backbone itself don't read it: it is always false",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor of the learning rate from each stage of the backbone to the one before it, and from the "
        "head to the last stage. Regimes that don't read `freeze_bn` don't read this either: it is always 1",
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay, per step, of an exponential moving average of the weights (`tl.averaging`), which is "
        "validated and kept in their place; 0 for none. Regimes that don't train by steps don't read it: it is always "
        "0",
    )
    early_stopping: Count = Field(
        0,
        description="end the training when that many epochs in a row had no lower validation loss than those before; "
        "0 for never. The validation images choose the number of epochs then, so only protocol `fixed` reads it. Only "
        "regimes that train by steps do",
    )
    compile: bool = Field(False, description="run the backbone through torch.compile")
    checkpointing: bool = Field(
        False,
        description="run the backbone's blocks again in the backward pass, so that their activations need no memory. "
        "Regimes that train nothing of the backbone don't read it: it is always false",
    )
    fold: bool | None = Field(
        None,
        description="run a frozen backbone as a network for inference (`tl.inference`). Left out (None): only if "
        "features are extracted once. It isn't read, and always None, if the backbone trains or is int8, and in "
        "execution `plain`",
    )
    lookahead: Positive | Literal["auto"] = Field(
        1,
        description="batches per forward pass of a frozen backbone (`tl.lookahead`); `auto`: as many as need less "
        "memory than training it. It isn't read, and always 1, if the backbone trains, if features are extracted once, "
        "and in execution `plain`",
    )
    code: tuple[tuple[str, str], ...] = Field(
        (),
        description="setting (`backbone`, `head`, `loss` or `optimizer`) → digest of the code of one's own that it "
        "names, or of the settings by which a library makes a backbone, as pairs. It is filled in by `with_code` when "
        "a training is planned, and when it starts",
    )

    @property
    def own_parts(self) -> tuple[ImportPath, ...]:
        """The head, loss and optimiser of one's own."""
        given = ((name, getattr(self, name)) for name in PARTS)
        return tuple(ImportPath.parse(name, value) for name, value in given if is_import_path(value))

    def with_code(self, digest: Callable[[str, str], str] | None = None) -> TrainConfig:
        """The config with the digests of the code that it names, as its source is now, and with the backbone's whole
        name, such as its commit.

        `digest` maps a setting and its value to a digest; by default it is `code_digest`. Raises `ConfigError` if there
        is no such code, if it is not to be used (`tl.hub`), or if the config has other digests: the source has changed
        since the training was planned.
        """
        look = digest or code_digest
        named = {path.setting: path.text for path in self.own_parts}
        if names := names_of(self.spec.source):
            # First, since that asks whether the code may be used at all, and pins which code it is.
            named["backbone"] = str(Spec(self.spec.source, names.canonical(self.spec.name)))
        now = {setting: look(setting, value) for setting, value in sorted(named.items())}
        for setting, before in self.code:
            if setting in now and before != now[setting]:
                raise ConfigError(
                    f"{setting}={getattr(self, setting)!r}: its source has changed since this training was planned "
                    f"({before[:8]}, now {now[setting][:8]}); plan it again"
                )
        filled, backbone = tuple(now.items()), named.get("backbone", self.backbone)
        return (
            self if (self.code, self.backbone) == (filled, backbone) else self.replace(backbone=backbone, code=filled)
        )

    @property
    def spec(self) -> Spec:
        """The backbone's name in its parts."""
        return Spec.parse(self.backbone)

    @property
    def passes(self) -> int:
        """Number of validation passes: one per epoch, or a single one if the regime doesn't train by steps.

        With `early_stopping` there may be fewer.
        """
        return self.epochs if REGIMES[self.regime].by_steps else 1

    @property
    def trainings(self) -> int:
        """Number of trainings that the protocol runs; 1 if there is no learning rate to choose."""
        if self.protocol == "tuned" and not REGIMES[self.regime].by_steps:
            return 1
        return {"tuned": len(self.learning_rates) + 1, "kfold": self.folds}.get(self.protocol, 1)

    def first_rate(self, learning_rate: float) -> float:
        """Return the rate of the first epoch where that learning rate was given or chosen."""
        return learning_rate * (1.0 if REGIMES[self.regime].head_start == "random" else self.rate_after_head)

    @property
    def runs_folded(self) -> bool:
        """True if the backbone runs as a network for inference."""
        if self.fold is not None:
            return self.fold
        regime = REGIMES[self.regime]
        return regime.features == "once" and READ_BY_REGIME["fold"](regime, self.execution)

    @field_validator(*READ_BY_REGIME, *READ_BY_STEPS)
    @classmethod
    def _default_if_unread(cls, value: Any, info: Any) -> Any:
        name, regime, execution = info.field_name, REGIMES.get(info.data.get("regime", "")), info.data.get("execution")
        if not regime or not execution:
            return value
        is_read = regime.fit == "steps" if name in READ_BY_STEPS else READ_BY_REGIME[name](regime, execution)
        return value if is_read else cls.model_fields[name].default

    @field_validator("loss")
    @classmethod
    def _loss_of_the_task(cls, value: str, info: Any) -> str:
        task = TASKS.get(info.data.get("task", ""))
        return task.losses[0] if task and value == cls.model_fields["loss"].default else value

    @field_validator("learning_rates")
    @classmethod
    def _rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(rate > 0 for rate in value):
            raise ConfigError(f"learning_rates={list(value)!r}: each must be a number above 0")
        if len(set(value)) < len(value):
            raise ConfigError(f"learning_rates={list(value)!r}: rates must differ")
        if len(value) < 2:
            raise ConfigError(f"learning_rates={list(value)!r}: at least 2 are needed, to choose from")
        return tuple(sorted(value))  # order means nothing, so it must not make another config

    @field_validator("code")
    @classmethod
    def _only_of_own_code(cls, value: tuple[tuple[str, str], ...], info: Any) -> tuple[tuple[str, str], ...]:
        """Drop the digests of settings that name no code, such as those that the regime doesn't read."""
        given = info.data
        source = Spec.parse(given.get("backbone", "")).source
        made = source and not (source in SOURCES and SOURCES[source].lists)
        return tuple(
            (name, digest)
            for name, digest in sorted(value)
            if (name == "backbone" and made) or (name in PARTS and is_import_path(given.get(name, "")))
        )

    def replace(self, **changes: Any) -> Self:
        """See `Strict.replace`. The digest of what is replaced by other code goes."""
        if "code" not in changes:
            changes["code"] = tuple(
                (name, digest)
                for name, digest in self.code
                if name not in changes or changes[name] == getattr(self, name)
            )
        return super().replace(**changes)

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
        task = TASKS[self.task]
        if self.protocol not in task.protocols:
            raise ConfigError(
                f"protocol={self.protocol!r}: task {self.task!r} has only {' and '.join(task.protocols)}, since others "
                "divide images by their class"
            )
        known = self.loss in LOSSES or task.detects
        if REGIMES[self.regime].by_steps and known and self.loss not in task.losses:
            raise ConfigError(f"loss={self.loss!r}: task {self.task!r} needs {' or '.join(task.losses)}")
        for name in task.unread:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ConfigError(f"{name}={getattr(self, name)!r}: not read by task {self.task!r}; leave it out")
        if is_detector(self.spec) is not task.detects and self.backbone != ANY_BACKBONE:
            able = f"needs one of {', '.join(f'torchvision:{name}' for name in DETECTORS)}"
            what = "is no detector, and" if task.detects else "is a detector, which is for task 'detection';"
            wants = able if task.detects else "needs a network that has one row of features for an image"
            raise ConfigError(f"backbone={self.backbone!r}: {what} task {self.task!r} {wants}")
        return self

    @field_validator("backbone", *PARTS, mode="before")
    @classmethod
    def _no_function(cls, value: Any, info: Any) -> Any:
        if callable(value):
            raise ConfigError(
                f"{info.field_name}: is a function, which tl.train_model(config, splits, {info.field_name}=…) takes; a "
                f"config names it by its module: {'module:' if info.field_name == 'backbone' else ''}MODULE:NAME"
            )
        return value

    @field_validator(*TABLES)
    @classmethod
    def _known(cls, value: str, info: Any) -> str:
        choices = TABLES[info.field_name]
        if value in choices:
            return value
        if info.field_name not in PARTS:
            raise ConfigError(not_one_of(info.field_name, value, choices))
        if not is_import_path(value):
            raise ConfigError(f"{not_one_of(info.field_name, value, choices)} (or your own, MODULE:NAME)")
        return ImportPath.parse(info.field_name, value).text


def code_digest(setting: str, value: str) -> str:
    """Return the digest of the code of one's own that a setting names. Raises `UserError` if there is none."""
    if setting != "backbone":
        return digest_of(ImportPath.parse(setting, value))
    spec = Spec.parse(value)
    names = names_of(spec.source)
    assert names is not None  # see `TrainConfig.with_code`
    return names.digest(spec.name)


def one_training(config: TrainConfig, **settings: Any) -> TrainConfig:
    """Return the config of one training of a protocol: protocol `fixed`, without settings that it doesn't read."""
    unread = [name for name, protocols in READ_BY.items() if "fixed" not in protocols]
    plain = {name: TrainConfig.model_fields[name].default for name in unread}
    return config.replace(protocol="fixed", **plain, **settings)
