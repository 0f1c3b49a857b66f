"""Builds the optimiser, the learning-rate schedule and the loss that a `TrainConfig` names.

To add one, add its name to the table in `tl.config` and its builder here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LRScheduler

from tl.config import TrainConfig
from tl.step import Loss


def _with_momentum(optimizer: torch.optim.SGD) -> torch.optim.SGD:
    """Start momentum at zero; the first step is the same as torch's own.

    Torch's fused SGD starts from uninitialised memory, and trains on it if the first step is skipped because scaled
    gradients overflowed (fp16).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _focal(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    per_image = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    share = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    return ((1 - share) ** 2 * per_image).mean()


OPTIMIZER_BUILDERS: dict[str, Callable[[TrainConfig, Sequence[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda c, parameters: _with_momentum(
        torch.optim.SGD(parameters, lr=c.learning_rate, momentum=c.momentum, weight_decay=c.weight_decay, fused=True)
    ),
    "adamw": lambda c, parameters: torch.optim.AdamW(
        parameters,
        lr=c.learning_rate,
        betas=(c.momentum, 0.999),
        weight_decay=c.weight_decay,
        fused=True,
        capturable=parameters[0].is_cuda,  # so that a CUDA graph can count its steps
    ),
}
SCHEDULE_BUILDERS: dict[str, Callable[[TrainConfig, torch.optim.Optimizer], LRScheduler]] = {
    "step": lambda c, optimizer: torch.optim.lr_scheduler.StepLR(optimizer, c.step_size, c.gamma),
    "cosine": lambda c, optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.epochs),
    "constant": lambda c, optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
}
LOSS_BUILDERS: dict[str, Callable[[TrainConfig], Loss]] = {
    "cross_entropy": lambda c: partial(cross_entropy, label_smoothing=c.label_smoothing),
    "focal": lambda c: partial(_focal, smoothing=c.label_smoothing),
}
