"""A head, a loss and an optimiser of one's own: calls the functions that a config names, and checks what they return.

    head = "my_module:make_head"             # make_head(width, classes) → torch.nn.Module
    loss = "my_module:make_loss"             # make_loss() → f(logits, labels), the mean over a batch's images
    optimizer = "my_module:make_optimizer"   # make_optimizer(parameters, lr) → torch.optim.Optimizer

A function gets by name what it has a parameter for: `config`, and of the settings `class_weights` (or `weight`) and
`label_smoothing` for a loss; `lr` (or `learning_rate`), `momentum` and `weight_decay` for an optimiser. A setting that
would change the training but that the function doesn't take is a mistake, and so is whatever goes wrong in a function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn

from tl.config import TrainConfig
from tl.library import library, maker
from tl.own_code import ImportPath, call, load, named, takes
from tl.own_copies import copy_of
from tl.sources import SOURCES, names_of
from tl.specs import Spec


def load_parts(config: TrainConfig) -> None:
    """Load all code that a training runs and that isn't the suite's: its source, and what its settings name.

    Raises `ConfigError` if some can't be loaded, or has another digest than the config says.
    """
    allow(config.backbone)
    config = config.with_code()
    if SOURCES[config.spec.source].lists:
        library(config.spec.source)
    else:
        maker(config.spec.source).load(config.spec.name)
    for path in config.own_parts:
        load(path, dict(config.code)[path.setting])


def allow(backbone: str) -> None:
    """Let this process use a backbone that the process which started it has checked, such as for trust."""
    spec = Spec.parse(backbone)
    if names := names_of(spec.source):
        names.allow(spec.name)


def own_head(text: str, width: int, classes: int) -> nn.Module:
    """Make a head `(B, width)` → logits `(B, classes)`. Raises `ConfigError` that names the function."""
    path = ImportPath.parse("head", text)
    head = call(path, load(path), width, classes)
    if not isinstance(head, nn.Module):
        raise path.wrong(f"returned a value of type {type(head).__name__}, not a torch.nn.Module")
    head = copy_of(path, head)
    with named(path), torch.no_grad():  # as `tl.imagenet.output`
        logits: object = head.eval()(torch.zeros(2, width))
    head.train()
    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != (2, classes):
        raise path.wrong(f"its output for features (2, {width}) is {found}, not logits (2, {classes})")
    return head


def own_loss(config: TrainConfig, weight: torch.Tensor | None) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Make the loss that a config names, with class weights or None. Raises `ConfigError` that names the function."""
    path = ImportPath.parse("loss", config.loss)
    code = load(path)
    if weight is not None and not _takes_any(code, "class_weights", "weight", "config"):
        raise path.wrong(f"class_weights={config.class_weights!r} needs a loss with a parameter `class_weights`")
    if config.label_smoothing and not _takes_any(code, "label_smoothing", "config"):
        raise path.wrong(f"label_smoothing={config.label_smoothing:g} needs a loss with a parameter `label_smoothing`")
    weights = {"class_weights": weight, "weight": weight}
    loss = call(path, code, config=config, label_smoothing=config.label_smoothing, **weights)
    if not callable(loss):
        raise path.wrong(
            f"returned a value of type {type(loss).__name__}, which can't be called with logits and labels"
        )
    if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
        raise path.wrong("has parameters, which no optimiser trains; put them into the head")
    return _OwnLoss(path, copy_of(path, loss))


class _OwnLoss:
    """Calls a loss and checks each result. Both are nothing beside the backward pass."""

    def __init__(self, path: ImportPath, loss: Callable[..., Any]) -> None:
        self._path, self._loss = path, loss

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if isinstance(self._loss, nn.Module):
            self._loss.to(logits.device)
        with named(self._path):
            loss: object = self._loss(logits, labels)
        if not isinstance(loss, torch.Tensor) or loss.dim():
            found = (
                f"a tensor {tuple(loss.shape)}"
                if isinstance(loss, torch.Tensor)
                else f"a value of type {type(loss).__name__}"
            )
            raise self._path.wrong(f"gave {found} for a batch, not one number: the mean over its images")
        if logits.requires_grad and not loss.requires_grad:
            raise self._path.wrong("gave a number without a gradient: it must be computed from the logits by torch")
        return loss


def own_optimizer(config: TrainConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimiser that a config names. Raises `ConfigError` that names the function."""
    path = ImportPath.parse("optimizer", config.optimizer)
    code = load(path)
    if not _takes_any(code, "lr", "learning_rate", "config"):
        raise path.wrong(f"learning_rate={config.learning_rate:g} needs an optimiser with a parameter `lr`")
    rates = {"lr": config.learning_rate, "learning_rate": config.learning_rate}
    others = {"momentum": config.momentum, "weight_decay": config.weight_decay, "config": config}
    optimizer = call(path, code, list(parameters), **rates, **others)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise path.wrong(f"returned a value of type {type(optimizer).__name__}, not a torch.optim.Optimizer")
    has = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if has != set(parameters):
        both = len(has.intersection(parameters))
        raise path.wrong(
            f"has {both} of the {len(parameters)} parameters that train, and {len(has) - both} others; it must have "
            "all of the first and none of the second"
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise path.wrong(f"{type(optimizer).__name__} needs a closure for its steps, which no step here gives")
    step = type(optimizer).step

    def named_step(self: torch.optim.Optimizer, *given: Any, **by_name: Any) -> Any:
        with named(path):
            return step(self, *given, **by_name)

    optimizer.step = MethodType(named_step, optimizer)  # type: ignore[method-assign]
    return optimizer


def _takes_any(code: Callable[..., Any], *names: str) -> bool:
    return any(takes(code, name) for name in names)
