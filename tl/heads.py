"""Trains several heads at once on the features of a regime that extracts them once.

A head's own products are so small that a step spends most of its time on calls. Several heads share the calls: a layer
of all heads is one batched product. The heads may differ in their seed, thus in initial weights and order of images,
and in their learning rate. Each has the figures of `train_model`, up to rounding, since the heads don't mix: the
gradient of a head comes from its own loss alone, and the optimiser changes each parameter by its own gradient and rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from tl import devices
from tl.backbones import HEAD_BUILDERS, Classifier
from tl.choice import Choice
from tl.clock import Clock
from tl.config import TrainConfig
from tl.datasets import Splits
from tl.devices import seeded
from tl.errors import ConfigError, DivergedError
from tl.features import Features
from tl.optimizers import OPTIMIZER_BUILDERS, SCHEDULE_BUILDERS, joined
from tl.prepare import Loop, Setup, ready
from tl.regimes import REGIMES
from tl.results import EpochResult, Phases
from tl.step import Evaluation
from tl.train import diverged, fault_of, val_pass
from tl.tryout import chosen
from tl.weights import Weights

EXACT = ("fp32", "tf32")
"""Precisions in which a head's product alone and in a batch differ only by single precision's rounding. Half precision
also scales gradients, by one factor for all."""
_ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Identity)
"""Layers without parameters that treat each value alone, so heads can share them."""


def trainable_at_once(config: TrainConfig, choice: Choice | None = None) -> bool:
    """Return True if `train_heads` can train the heads of such configs. Otherwise `train_model` trains each alone.

    For `precision = "auto"` that depends on what was chosen.
    """
    regime, precision = REGIMES[config.regime], choice.precision if choice else config.precision
    if config.own_parts or config.ema:  # own parts may do anything, and an average is one of a single head
        return False
    if regime.features != "once" or regime.head != "new" or not regime.by_steps or precision not in EXACT:
        return False
    with seeded(0):
        layers = list(HEAD_BUILDERS[config.head](1, 1).modules())
    return all(
        isinstance(layer, (nn.Sequential, *_ELEMENTWISE)) or (isinstance(layer, nn.Linear) and layer.bias is not None)
        for layer in layers
    )


@dataclass(kw_only=True)
class TrainedHead:
    """What `train_heads` found for one of its heads."""

    config: TrainConfig
    head: nn.Module
    """In eval mode, with the weights of the last epoch."""
    epochs: list[EpochResult] = field(default_factory=list)
    """Its losses and accuracies are the head's own. Its seconds are an equal share of those of all heads together."""
    diverged: DivergedError | None = None
    """Says where a loss or an output was not finite, as `train_model` does; `epochs` are those before."""


def train_heads(
    configs: Sequence[TrainConfig],
    splits: Splits,
    *,
    device: str = "auto",
    weights: Weights | None = None,
    weights_dir: str | Path | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> list[TrainedHead]:
    """Train a head per config, all at once, on features of the same images. Other arguments: see `train_model`.

    The configs differ in `seed` and `learning_rate` alone; the backbone is that of the first one. `on_epoch` is called
    for each head that has not diverged. A head that diverges doesn't disturb the others.

    Raises `UserError` as `train_model` does, but no `DivergedError`: each head says whether it diverged. Raises
    `ConfigError` for configs that differ in more, or that `trainable_at_once` refuses. Random weights of a backbone
    depend on the seed, so configs with such weights must have one seed.
    """
    target = devices.resolve(device)
    choice = chosen(configs[0], splits, target, weights, weights_dir)
    _check(configs, choice)
    with ready(configs[0], splits, target, weights, weights_dir, choice=choice) as (setup, loop, _):
        together = _Together(configs, setup, loop)
        for epoch in range(configs[0].epochs):
            if not all(one.diverged for one in together.heads):
                together.run(epoch, on_epoch or (lambda row: None))
    return together.heads


def _check(configs: Sequence[TrainConfig], choice: Choice | None) -> None:
    """Raise `ConfigError` for configs that can't be trained at once."""
    first = configs[0]
    if any(config.replace(seed=first.seed, learning_rate=first.learning_rate) != first for config in configs):
        raise ConfigError("heads that are trained at once may differ in nothing but seed and learning_rate")
    if first.protocol != "fixed" or not trainable_at_once(first, choice):
        raise ConfigError(
            f"protocol={first.protocol!r}, regime={first.regime!r}, precision={first.precision!r}, head={first.head!r}:"
            " such heads can't be trained at once; tl.train_model trains one"
        )


class _Together:
    """The heads in training, with their optimiser."""

    def __init__(self, configs: Sequence[TrainConfig], setup: Setup, loop: Loop) -> None:
        assert isinstance(loop.train, Features)  # see `trainable_at_once`
        if setup.backbone.weights.kind == "random" and len({config.seed for config in configs}) > 1:
            raise ConfigError("heads with different seeds need pretrained weights: random ones depend on the seed")
        self._setup, self._loop, self._features, self._config = setup, loop, loop.train, configs[0]
        models = [Classifier(setup.backbone, len(setup.splits.classes), config).eval() for config in configs]
        self.heads = [TrainedHead(config=c, head=m.head.to(setup.device)) for c, m in zip(configs, models, strict=True)]
        self._evaluations = [
            Evaluation(m, nn.Identity(), setup.config.precision, setup.device, setup.learning) for m in models
        ]
        self._layers, self._parameters = _batched([one.head for one in self.heads])
        self._optimizer, self._groups = _optimizer(self.heads)
        self._schedule = SCHEDULE_BUILDERS[self._config.schedule](self._config, self._optimizer)
        self._clock = Clock(setup.device)

    def run(self, epoch: int, on_epoch: Callable[[EpochResult], None]) -> None:
        """Train and validate in one epoch. Heads that have diverged are not validated any more."""
        clock, size = self._clock, len(self.heads)
        with self._setup.way.timed():
            clock.start()
            trained = self._train_pass(epoch)
            train_seconds = clock.elapsed()
            clock.mark(None)
            found = [self._validated(number, *trained[number]) for number in range(size)]
            clock.mark("validation")
            whole, parts = clock.read()
        self._schedule.step()
        phases = Phases(**{k: v / size for k, v in parts.items()}, other=(whole - sum(parts.values())) / size)
        shares = {"train_seconds": train_seconds / size, "val_seconds": (whole - train_seconds) / size}
        for one, figures in zip(self.heads, found, strict=True):
            if figures:
                one.epochs.append(EpochResult(epoch=epoch, **figures, **shares, phases=phases))
                on_epoch(one.epochs[-1])

    def _train_pass(self, epoch: int) -> list[tuple[float, float]]:
        """Run the steps of an epoch. Returns each head's mean loss and its accuracy while training."""
        seeds, outputs, truths = [one.config.seed for one in self.heads], [], []
        batches = self._features.training_at_once(
            self._config.batch_size, seeds=seeds, epoch=epoch, mark=self._clock.mark
        )
        for features, labels in batches:
            logits = features
            for layer in self._layers:
                logits = layer(logits)
            loss = self._loss(logits, labels)
            self._clock.mark("forward")
            for parameter, gradients in zip(
                self._parameters, torch.autograd.grad(loss, [p.stacked for p in self._parameters]), strict=True
            ):
                parameter.receive(gradients)
            self._clock.mark("backward")
            self._optimizer.step()
            self._clock.mark("optimizer")
            outputs.append(logits.detach())
            truths.append(labels)
        losses = self._mean_losses(outputs, truths)
        logits, labels = torch.cat(outputs, 1), torch.cat(truths, 1)
        correct = (logits.argmax(2) == labels).sum(1)
        return [(loss, count / labels.shape[1]) for loss, count in zip(losses.tolist(), correct.tolist(), strict=True)]

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of the heads' losses, so that the gradient of each is that of its own loss."""
        if self._config.class_weights == "none":
            # The mean over all heads' images, times the number of heads: in one call.
            return self._loop.loss_function(logits.flatten(0, 1), labels.flatten()) * len(labels)
        # Heads see other images in a step, whose classes have other weights: each has a weighted mean of its own.
        return self._losses(logits, labels).sum()

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Each head's loss, `(heads,)`."""
        return torch.stack([self._loop.loss_function(*one) for one in zip(logits, labels, strict=True)])

    def _mean_losses(self, outputs: Sequence[torch.Tensor], truths: Sequence[torch.Tensor]) -> torch.Tensor:
        """Each head's loss over an epoch: the mean of its batches' losses, weighted by their images."""
        if self._config.class_weights == "none":
            return self._losses(torch.cat(list(outputs), 1), torch.cat(list(truths), 1))
        losses = [self._losses(*batch) * batch[1].shape[1] for batch in zip(outputs, truths, strict=True)]
        return torch.stack(losses).sum(0) / sum(labels.shape[1] for labels in truths)

    def _validated(self, number: int, train_loss: float, train_accuracy: float) -> dict[str, float] | None:
        """Validate a head. Returns its figures of the epoch but for times; None if it has diverged, now or before."""
        one, loop = self.heads[number], self._loop
        if one.diverged:
            return None
        rate = float(self._optimizer.param_groups[self._groups[number]]["lr"])
        if fault := fault_of(train_loss):
            one.diverged = diverged(f"training {fault}", one.config, rate, one.epochs)
            return None
        validated = val_pass(self._evaluations[number], loop.val, loop.loss_function, one.config)
        if validated.fault:
            one.diverged = diverged(f"validation {validated.fault}", one.config, rate, one.epochs)
            return None
        return {
            "learning_rate": rate,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": validated.loss,
            "val_accuracy": validated.score(),
        }


def _optimizer(heads: Sequence[TrainedHead]) -> tuple[torch.optim.Optimizer, list[int]]:
    """Make one optimiser for all heads, with a group of parameters for each rate. Also returns each head's group."""
    rates = list(dict.fromkeys(one.config.learning_rate for one in heads))
    optimizers = []
    for rate in rates:
        group = [one for one in heads if one.config.learning_rate == rate]
        parameters = [parameter for one in group for parameter in one.head.parameters()]
        optimizers.append(OPTIMIZER_BUILDERS[group[0].config.optimizer](group[0].config, parameters))
    return joined(optimizers), [rates.index(one.config.learning_rate) for one in heads]


class _Stacked:
    """The same parameter of all heads in one tensor, `(heads, …)`. Those of the heads become views of it."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self.stacked = torch.stack([parameter.detach() for parameter in parameters]).requires_grad_()
        for parameter, own in zip(parameters, self.stacked.detach(), strict=True):
            parameter.data = own

    def receive(self, gradients: torch.Tensor) -> None:
        """Give each head its own gradient."""
        # Fused optimisers take for granted that parameters and gradients have the same layout.
        for parameter, own in zip(self._parameters, gradients.contiguous().unbind(), strict=True):
            parameter.grad = own


Layer = Callable[[torch.Tensor], torch.Tensor]


def _batched(layers: Sequence[nn.Module]) -> tuple[list[Layer], list[_Stacked]]:
    """Return functions that apply the same layer of all heads, `(heads, B, in)` → `(heads, B, out)`, in order.

    Also returns their parameters.
    """
    first = layers[0]
    if isinstance(first, nn.Sequential):
        parts = [_batched(same) for same in zip(*(layer.children() for layer in layers), strict=True)]
        return [f for functions, _ in parts for f in functions], [p for _, stacked in parts for p in stacked]
    if isinstance(first, nn.Linear):
        weight, bias = (_Stacked([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
        # This order of factors gives the weight's gradient the weight's own layout, so nothing has to be copied.
        return [lambda x: torch.baddbmm(bias.stacked[..., None], weight.stacked, x.mT).mT], [weight, bias]
    return [first], []
