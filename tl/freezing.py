"""Divides a classifier into what trains and what is frozen, and proves that the frozen part did not change.

`freeze` applies the regime's rule once to the modules and tensors of one network, and switches gradients on and off.
The optimiser, the modes, the kept weights of the best epoch and the digest of the frozen part read its result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tl.backbones import Classifier
from tl.errors import NotApplicable
from tl.quantize import quantized_weights
from tl.regimes import Regime


@dataclass(frozen=True, kw_only=True)
class Freezing:
    """A classifier, divided into what trains and what is frozen."""

    model: Classifier
    parameters: tuple[nn.Parameter, ...]
    """Parameters that the optimiser may change, in the order of the model."""
    in_train_mode: tuple[nn.Module, ...]
    """Modules that are in train mode during training passes, with those inside them; all others are in eval mode."""
    kept_in_eval_mode: tuple[nn.Module, ...] = ()
    """Modules inside those that are in eval mode all the same."""
    changing: frozenset[str]
    """Names of the parameters and buffers that training may change."""
    frozen: frozenset[str]
    """Names of the parameters, int8 weights and buffers that must stay bit-identical. It is empty for a regime whose
    frozen modules run in train mode, which promises no such thing."""

    def switch_gradients(self) -> None:
        """Switch gradients on for what trains, and off for the rest."""
        trained = set(self.parameters)
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter in trained)

    def train_mode(self) -> None:
        """Put each module into its mode of a training pass. Before, all are in eval mode."""
        for module in self.in_train_mode:
            module.train()
        for module in self.kept_in_eval_mode:
            module.eval()

    def eval_mode(self) -> None:
        """Put all modules back into eval mode. Others than those that `train_mode` changes cost no time."""
        for module in self.in_train_mode:
            module.eval()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all parameters and buffers of the model, including buffers that a state dict leaves out."""
        return {name: value.detach() for name, value in _tensors(self.model)}

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of everything that training may change."""
        return {name: value.clone() for name, value in self.tensors().items() if name in self.changing}

    @torch.no_grad()
    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put what `state` or `tensors` returned back into the model."""
        for name, value in _tensors(self.model):
            if name in state:
                value.copy_(state[name])

    def digest(self) -> str | None:
        """Return the SHA-256 of what is frozen; None if nothing is."""
        return digest(self.model, self.frozen) if self.frozen else None


def freeze(model: Classifier, regime: Regime) -> Freezing:
    """Switch gradients on for what the regime trains, and off for the rest, and put the model into eval mode.

    Raises `NotApplicable` if the regime trains part of a backbone and this one has no such part.
    """
    rule = regime.trainable
    chosen = list(rule.backbone(model.backbone)) if rule.backbone else []
    chosen += [model.head] if rule.head else []
    modules = tuple(part for part in chosen if isinstance(part, nn.Module))
    trained = {part for part in chosen if isinstance(part, nn.Parameter)}
    trained |= {parameter for module in modules for parameter in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
    model.eval()
    if rule.backbone and not trained.intersection(model.backbone.parameters()):
        raise NotApplicable("this backbone has no part that the regime trains")
    in_train_mode = modules if regime.frozen_mode == "eval" else (model,)
    moving = trained.union(*(module.buffers() for module in in_train_mode))
    changing = frozenset(name for name, value in _tensors(model) if value in moving)
    everything = {name for name, _ in [*_tensors(model), *quantized_weights(model)]}
    return Freezing(
        model=model,
        parameters=tuple(parameter for parameter in model.parameters() if parameter.requires_grad),
        in_train_mode=in_train_mode,
        changing=changing,
        frozen=frozenset(everything - changing) if regime.frozen_mode == "eval" else frozenset(),
    )


def with_batch_norm_frozen(freezing: Freezing) -> Freezing:
    """Freeze the BatchNorm layers of the backbone too: neither their parameters nor their statistics change.

    Switches their gradients off.
    """
    norms = tuple(batch_norms(freezing.model.backbone))
    fixed = {tensor for norm in norms for tensor in (*norm.parameters(), *norm.buffers())}
    names = {name for name, value in _tensors(freezing.model) if value in fixed}
    found = replace(
        freezing,
        parameters=tuple(parameter for parameter in freezing.parameters if parameter not in fixed),
        kept_in_eval_mode=norms,
        changing=freezing.changing - names,
        frozen=freezing.frozen | names,
    )
    found.switch_gradients()
    return found


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """Return the BatchNorm layers of a network: torch's, and those of others that have such statistics and train."""
    return [module for module in network.modules() if _is_batch_norm(module)]


def _is_batch_norm(module: nn.Module) -> bool:
    has_statistics = module._buffers.get("running_mean") is not None
    return isinstance(module, _BatchNorm) or (has_statistics and any(True for _ in module.parameters(recurse=False)))


def digest(module: nn.Module, names: Collection[str]) -> str:
    """Return the SHA-256 over the bits of the parameters, int8 weights and buffers with these names."""
    sha = hashlib.sha256()
    integers = ((name, value.int_repr()) for name, value in quantized_weights(module))
    for name, value in [*_tensors(module), *integers]:
        if name in names:
            sha.update(name.encode())
            sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return parameters and buffers by name, including buffers that a state dict leaves out."""
    return [*module.named_parameters(), *module.named_buffers()]
