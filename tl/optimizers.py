"""Builds the optimiser, the learning-rate schedule and the loss that a `TrainConfig` names.

To add one, add its name to the table in `tl.config` and its builder here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.optim.lr_scheduler import LRScheduler

from tl.config import TrainConfig
from tl.errors import ConfigError
from tl.learning import Loss
from tl.own_code import is_import_path
from tl.own_parts import own_loss, own_optimizer


def _sgd(config: TrainConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.SGD:
    settings: dict[str, Any] = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    if config.execution == "plain":
        return torch.optim.SGD(parameters, lr=config.learning_rate, **settings)
    return _with_momentum(torch.optim.SGD(parameters, lr=config.learning_rate, fused=True, **settings))


def _adamw(config: TrainConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    settings: dict[str, Any] = {"betas": (config.momentum, 0.999), "weight_decay": config.weight_decay}
    if config.execution == "fast":
        settings |= {"fused": True, "capturable": parameters[0].is_cuda}  # so that a CUDA graph can count its steps
    return torch.optim.AdamW(parameters, lr=config.learning_rate, **settings)


def _with_momentum(optimizer: torch.optim.SGD) -> torch.optim.SGD:
    """Start momentum at zero; the first step is the same as torch's own.

    Torch's fused SGD starts from uninitialised memory, and trains on it if the first step is skipped because scaled
    gradients overflowed (fp16).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def joined(optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Make one optimiser of several of the same kind. It does to each parameter what the parameter's own one would do.

    Their groups of parameters are its groups, in order.
    """
    first, *others = optimizers
    for other in others:
        for group in other.param_groups:
            first.add_param_group(group)
        first.state.update(other.state)
    return first


def with_layer_decay(
    optimizer: torch.optim.Optimizer, config: TrainConfig, parts: Sequence[Collection[nn.Parameter]]
) -> torch.optim.Optimizer:
    """Give the parameters of each part `layer_decay` times the rate of the part before it.

    `parts` has all of the optimiser's parameters, from the output of the network on. The first one keeps the rate, and
    its group of parameters is the first. Schedules multiply the rates of all groups. Raises `ConfigError` for an
    optimiser of one's own whose groups have no rate.
    """
    if any("lr" not in group for group in optimizer.param_groups):
        raise ConfigError(
            f"layer_decay={config.layer_decay:g}: optimizer={config.optimizer!r} has parameters without a rate `lr`"
        )
    optimizer.param_groups = [
        {**group, "params": found, "lr": group["lr"] * config.layer_decay**depth}
        for depth, part in enumerate(parts)
        for group in optimizer.param_groups
        if (found := [parameter for parameter in group["params"] if parameter in part])
    ]
    return optimizer


def class_weights(config: TrainConfig, labels: Sequence[int], classes: int) -> torch.Tensor | None:
    """How much an image of each class counts in the loss, `(classes,) float32`; None if all count the same.

    `labels` are those of the training images. A class that none of them has counts as if it had one, so that the loss
    of other images stays finite.
    """
    if config.class_weights == "none":
        return None
    counts = Counter(labels)
    return torch.tensor([len(labels) / (classes * max(counts[label], 1)) for label in range(classes)])


def _focal(
    logits: torch.Tensor, labels: torch.Tensor, *, weight: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    per_image = cross_entropy(logits, labels, weight, reduction="none", label_smoothing=smoothing)
    share = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    loss = (1 - share) ** 2 * per_image
    return loss.mean() if weight is None else loss.sum() / weight[labels].sum()


def _sum_of_losses(losses: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of a detector's own losses of a batch, `(L,) float32`; they have read the targets already."""
    return losses.sum()


def make_optimizer(config: TrainConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimiser that a config names. Raises `ConfigError` for one of one's own that has a mistake."""
    if is_import_path(config.optimizer):
        return own_optimizer(config, parameters)
    return OPTIMIZER_BUILDERS[config.optimizer](config, parameters)


def make_loss(config: TrainConfig, weight: torch.Tensor | None) -> Loss:
    """Make the loss that a config names; `weight` is what `class_weights` returned. Raises as `make_optimizer`."""
    return own_loss(config, weight) if is_import_path(config.loss) else LOSS_BUILDERS[config.loss](config, weight)


OPTIMIZER_BUILDERS: dict[str, Callable[[TrainConfig, Sequence[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}
"""With execution `plain` torch chooses the implementation, as in the tutorial; otherwise it is the fused one."""
SCHEDULE_BUILDERS: dict[str, Callable[[TrainConfig, torch.optim.Optimizer], LRScheduler]] = {
    "step": lambda c, optimizer: torch.optim.lr_scheduler.StepLR(optimizer, c.step_size, c.gamma),
    "cosine": lambda c, optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.epochs),
    "constant": lambda c, optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
}
LOSS_BUILDERS: dict[str, Callable[[TrainConfig, torch.Tensor | None], Loss]] = {
    "cross_entropy": lambda c, weight: partial(cross_entropy, weight=weight, label_smoothing=c.label_smoothing),
    "focal": lambda c, weight: partial(_focal, weight=weight, smoothing=c.label_smoothing),
    "bce": lambda c, weight: binary_cross_entropy_with_logits,
    "detector": lambda c, weight: _sum_of_losses,
}
"""A config and its `class_weights` → the loss. Each is the mean, over the images of a batch, of a figure of the image
alone: `tl.heads` relies on that. With class weights it is the weighted mean, as torch's `CrossEntropyLoss` has it: the
sum over the images divided by the sum of the weights of their classes. `detector` adds up what the head has computed.
"""
