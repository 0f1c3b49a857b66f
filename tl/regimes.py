"""Regimes: which parts of a classifier train, from which weights, how, and how the backbone runs meanwhile.

To add one, add an entry to `REGIMES`; the tests, `bench list regimes` and the grids use it. `Regime.trainable` alone
says what trains: gradients, train and eval modes, the optimiser's parameters, the kept weights of the best epoch, the
proof that the rest stayed frozen, and what claims compare all follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tl.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """Which parts of a classifier train; everything else in it is frozen.

    A module that trains does so with everything inside it: its parameters get gradients, and it runs in train mode, so
    its BatchNorm statistics move and its dropout is active.
    """

    head: bool
    backbone: Callable[[nn.Module], Iterable[nn.Module | nn.Parameter]] | None = None
    """Maps a backbone to those of its modules that train; None if none does. It may also return single parameters,
    which train within a module that stays in eval mode. For example, the last stage of a ResNet is
    `lambda network: [network.layer4]`, and all biases are
    `lambda network: [p for name, p in network.named_parameters() if name.endswith("bias")]`."""

    in_turn: Callable[[nn.Module], Iterable[Sequence[nn.Module | nn.Parameter]]] | None = None
    """Maps a backbone to parts of it that join the head one after the other, one every `unfreeze_every` epochs; when
    all have joined, `backbone` says what trains. None if all trains from the first epoch."""

    def __post_init__(self) -> None:
        if self.in_turn and not (self.head and self.backbone):
            raise ConfigError("in_turn: needs a head, which trains first, and a `backbone` whose parts join it")

    @property
    def only_head(self) -> bool:
        """True if the head trains and nothing else does."""
        return self.head and self.backbone is None

    def in_order(self, network: nn.Module) -> list[Trainable]:
        """Return what trains at first, and after each part of a backbone that joins; a single rule without any."""
        if self.in_turn is None:
            return [self]
        parts = list(self.in_turn(network))
        joined = [[part for some in parts[:count] for part in some] for count in range(1, len(parts))]
        return [
            Trainable(head=True),
            *(Trainable(head=True, backbone=_these(some)) for some in joined),
            replace(self, in_turn=None),
        ]


def _these(
    parts: Sequence[nn.Module | nn.Parameter],
) -> Callable[[nn.Module], Iterable[nn.Module | nn.Parameter]]:
    return lambda network: parts


def _low_rank_updates(network: nn.Module) -> list[nn.Module]:
    from tl.blocks import LOW_RANK

    return [module for name, module in network.named_modules() if name.rpartition(".")[2] == LOW_RANK]


def last(count: int) -> Trainable:
    """The last `count` stages of a network and its head; `tl.stages` says what a stage is."""

    def parts(network: nn.Module) -> Iterable[nn.Module | nn.Parameter]:
        from tl.stages import last_stages

        return last_stages(network, count)

    return Trainable(head=True, backbone=parts)


def last_stage_first(network: nn.Module) -> Iterable[Sequence[nn.Module | nn.Parameter]]:
    """Return the stages of a network from output to input; `tl.stages` says what a stage is."""
    from tl.stages import stages

    return reversed(stages(network))


def norms(network: nn.Module) -> list[nn.Module]:
    """Return the normalisation layers of a network: modules called so that have parameters of one dimension each.

    Libraries have classes of their own for them, from which no common base class follows.
    """
    found = []
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if "norm" in type(module).__name__.lower() and own and all(parameter.ndim == 1 for parameter in own):
            found.append(module)
    return found


def biases(network: nn.Module) -> list[nn.Parameter]:
    """Return the biases of a network, those of its normalisation layers too: one number per channel, named so."""
    named = ((name.rpartition(".")[2], parameter) for name, parameter in network.named_parameters())
    return [each for name, each in named if each.ndim == 1 and (name == "bias" or name.endswith("_bias"))]


EVERYTHING = Trainable(head=True, backbone=lambda network: [network])
HEAD = Trainable(head=True)
NOTHING = Trainable(head=False)
LOW_RANK_UPDATES = Trainable(head=True, backbone=_low_rank_updates)
STAGE_BY_STAGE = replace(EVERYTHING, in_turn=last_stage_first)


@dataclass(frozen=True, kw_only=True)
class Regime:
    """A way to train a classifier on a backbone."""

    summary: str
    start: Literal["pretrained", "random"]
    """Where the backbone's weights come from. `random` is intended here, so accuracy is meaningful."""
    trainable: Trainable
    frozen_mode: Literal["eval", "train"] = "eval"
    """The mode of frozen modules in training passes. With `train`, as in the tutorial, BatchNorm statistics move
    although no parameter does, so nothing is proved to stay unchanged."""
    head: Literal["new", "own"] = "new"
    """`new`: the one that `TrainConfig.head` names. `own`: the classifier that the pretrained network was published
    with, reduced to the rows of the data set's classes."""
    head_start: Literal["random", "ridge", "logistic"] = "random"
    """What a new head begins with: random weights, or those that are fitted to features of the untouched backbone
    before the first epoch (`tl.fits`). After a fitted start, learning rates are multiplied by `rate_after_head`."""
    features: Literal["each step", "once"] = "each step"
    """`once`: the backbone runs over all images before training, and the head trains on its outputs."""
    fit: Literal["steps", "knn", "ridge", "logistic"] = "steps"
    """How training finds the weights: by `steps` of an optimiser, or the head at once from all features (`tl.fits`)."""
    extractor: Literal["float", "int8"] = "float"
    """`int8`: what is judged is an int8 backbone, calibrated on training images. A frozen one is quantised after
    loading (`tl.quantize`). One that trains rounds as in int8 while it stays float, and is converted for each
    validation pass (`tl.qat`)."""
    adapter: Literal["none", "lora"] = "none"
    """What is added to the backbone after loading, and merged into its weights after training (`tl.adapters`). With
    `lora`, `trainable` finds the added modules by their name, `tl.blocks.LOW_RANK`."""
    control: bool = False
    """True for a mere yardstick: no report recommends the regime or compares its time with that of fine-tuning."""

    def __post_init__(self) -> None:
        if self.features != "each step" and not self.fixed_features:
            raise ConfigError(
                f"features={self.features!r}: needs a backbone that is frozen in eval mode, or use 'each step'"
            )
        if self.extractor != "float" and not self.fixed_features and self.trainable != EVERYTHING:
            raise ConfigError(
                f"extractor={self.extractor!r}: needs a backbone that is frozen in eval mode or trains as a whole "
                "(trainable=EVERYTHING), or use 'float'"
            )
        whole = self.trainable.head and self.trainable.backbone is not None
        if self.head_start != "random" and not (whole and self.by_steps and self.head == "new"):
            raise ConfigError(
                f"head_start={self.head_start!r}: needs a new head, and a backbone that trains with it by steps"
            )
        if self.head_start != "random" and self.rounds:
            raise ConfigError(f"head_start={self.head_start!r}: needs a float backbone; use extractor='float'")
        if self.trainable.in_turn and (self.frozen_mode != "eval" or self.adapter != "none"):
            raise ConfigError("in_turn: needs frozen_mode='eval', in which parts stay as they are, and no adapter")
        if self.adapter != "none" and self.trainable.backbone is None:
            raise ConfigError(f"adapter={self.adapter!r}: `trainable` must name what the adapter adds, or use 'none'")
        if self.fit != "steps" and not (self.trainable.only_head and self.features == "once" and self.head == "new"):
            raise ConfigError(f"fit={self.fit!r}: fits a new head alone, to features that are extracted once")

    @property
    def trains(self) -> bool:
        """True if anything trains. Otherwise one validation pass is all, and neither seed nor epochs matter."""
        return self.trainable.head or self.trainable.backbone is not None

    @property
    def by_steps(self) -> bool:
        """True if an optimiser trains something in epochs of steps. Otherwise there is a single pass at most."""
        return self.trains and self.fit == "steps"

    @property
    def fixed_features(self) -> bool:
        """True if an image has the same features in every epoch: the backbone is unchanged and runs in eval mode."""
        return self.trainable.backbone is None and self.frozen_mode == "eval"

    @property
    def foldable(self) -> bool:
        """True if the backbone can run as a network for inference: nothing in it changes, and it isn't int8."""
        return self.fixed_features and self.extractor == "float"

    @property
    def rounds(self) -> bool:
        """True if the backbone trains and becomes int8: its steps round as in int8, and its int8 copy is judged."""
        return self.extractor == "int8" and not self.fixed_features

    @property
    def looks_ahead(self) -> bool:
        """True if the backbone may run on several batches at once, ahead of the head's steps."""
        return self.fixed_features and self.features == "each step"

    @property
    def plain(self) -> bool:
        """True if each step runs the backbone itself on its images, not an int8 copy, and no features are kept."""
        return self.features == "each step" and self.extractor == "float" and self.head_start == "random"


REGIMES: dict[str, Regime] = {
    "finetune": Regime(
        summary="all parameters are trained, from pretrained weights",
        start="pretrained",
        trainable=EVERYTHING,
    ),
    "frozen": Regime(
        summary="only the new head is trained; the backbone runs in eval mode and nothing in it changes",
        start="pretrained",
        trainable=HEAD,
    ),
    "frozen-tutorial": Regime(
        summary="only the new head is trained, but BatchNorm statistics keep moving, as in the PyTorch tutorial",
        start="pretrained",
        trainable=HEAD,
        frozen_mode="train",
    ),
    "cached": Regime(
        summary="as frozen, but features are extracted once, of centre views unless `views` says more",
        start="pretrained",
        trainable=HEAD,
        features="once",
    ),
    "quantized": Regime(
        summary="as frozen, with the backbone quantised to int8 after loading; the head stays in single precision",
        start="pretrained",
        trainable=HEAD,
        extractor="int8",
    ),
    "scratch": Regime(
        summary="all parameters are trained from random weights: the control that shows what transfer buys",
        start="random",
        trainable=EVERYTHING,
        control=True,
    ),
    "zeroshot": Regime(
        summary="nothing is trained, the backbone's own ImageNet classifier predicts: the control for what it knew",
        start="pretrained",
        trainable=NOTHING,
        head="own",
        control=True,
    ),
    "knn": Regime(
        summary="there are no training steps: an image gets the class that its nearest training images vote for, by "
        "features as in cached",
        start="pretrained",
        trainable=HEAD,
        features="once",
        fit="knn",
    ),
    "ridge": Regime(
        summary="a linear head by ridge regression on features as in cached, in closed form",
        start="pretrained",
        trainable=HEAD,
        features="once",
        fit="ridge",
    ),
    "logistic": Regime(
        summary="a linear head by logistic regression on features as in cached, fitted to the optimum",
        start="pretrained",
        trainable=HEAD,
        features="once",
        fit="logistic",
    ),
    "last-block": Regime(
        summary="the last stage of the backbone and the head are trained; the stages before run in eval mode, and "
        "nothing in them changes",
        start="pretrained",
        trainable=last(1),
    ),
    "last-2": Regime(
        summary="as last-block, with the last two stages",
        start="pretrained",
        trainable=last(2),
    ),
    "last-3": Regime(
        summary="as last-block, with the last three stages",
        start="pretrained",
        trainable=last(3),
    ),
    "norm-only": Regime(
        summary="scales and shifts of all normalisation layers are trained, and the head; BatchNorm statistics move",
        start="pretrained",
        trainable=Trainable(head=True, backbone=norms),
    ),
    "bias-only": Regime(
        summary="all biases are trained, and the head; the backbone runs in eval mode",
        start="pretrained",
        trainable=Trainable(head=True, backbone=biases),
    ),
    "lp-ft": Regime(
        summary="the head is fitted to features of the pretrained backbone, then all parameters are trained at a small "
        "rate",
        start="pretrained",
        trainable=EVERYTHING,
        head_start="logistic",
    ),
    "lora": Regime(
        summary="low-rank updates of linear layers and 1x1 convolutions are trained, and the new head; all else is "
        "frozen",
        start="pretrained",
        trainable=LOW_RANK_UPDATES,
        adapter="lora",
    ),
    "gradual": Regime(
        summary="the head is trained first, then one stage more every `unfreeze_every` epochs, the last stage first; "
        "those to come run in eval mode, and nothing in them changes",
        start="pretrained",
        trainable=STAGE_BY_STAGE,
    ),
    "quantized-finetune": Regime(
        summary="all parameters are trained while the backbone rounds as in int8; its int8 copy is evaluated, on a "
        "CPU; the head stays in single precision",
        start="pretrained",
        trainable=EVERYTHING,
        extractor="int8",
    ),
}
