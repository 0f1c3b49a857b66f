"""Turns a frozen backbone into a network for inference: the same mathematics in fewer and faster operations.

In eval mode BatchNorm multiplies and adds constants, which the convolution before it can do by itself. On a CPU the
weights of convolutions are laid out once in the blocks that oneDNN's kernels read, where that would otherwise happen in
every forward pass, and an activation that follows at once becomes part of its convolution. In bf16 the weights are
converted once too.

Nothing here knows a family of networks. One forward pass shows which modules follow each other, each folded convolution
is compared with what it replaces, and the whole network with the original, whose tensors stay as they are.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tl.precision import HALF, autocast, single_precision

_SAME = 1e-4
"""Largest difference of a folded convolution's outputs, relative to their norm. Rounding makes it 1e-7 to 1e-6."""
_ALLOWED = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 0.1, "fp16": 0.1}
"""Precision → the same for the features of the packed network in it, against the original's in fp32.

Rounding makes it 4e-7 to 1e-6 in fp32 and 0.003 to 0.02 in bf16; a network that lost an activation is off by 0.3.
Before it is packed, the folded network is held to `_SAME` in fp32.
"""
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
}
"""Activations that oneDNN's convolutions can apply to their outputs → name and constants there."""


@dataclass(frozen=True, kw_only=True)
class InferenceNetwork:
    """A frozen backbone, ready for inference."""

    network: nn.Module
    """Maps images to features as the original does, with which it shares all tensors that didn't have to change."""
    folded: int = 0
    """BatchNorm layers that became part of a convolution."""
    packed: int = 0
    """Convolutions whose weights are laid out for their kernels."""
    failure: str = ""
    """Why `network` is the original although there was something to fold or to pack."""


def inference_network(
    network: nn.Module, images: torch.Tensor, precision: str, *, batch_size: int, pack: bool = True
) -> InferenceNetwork:
    """Make the network for inference of a backbone. The original stays as it is.

    Args:
        network: a backbone in eval mode, whose parameters need no gradients.
        images: a few images `(N, 3, S, S) float32`, on the network's device and in its layout.
        precision: a key of `tl.config.PRECISIONS`. Forward passes must run in `tl.precision.autocast` of it.
        batch_size: weights are packed for batches of this size; others give the same result.
        pack: pack the weights of convolutions too, where the device is a CPU and torch's oneDNN has kernels for the
            precision on it.

    If outputs differ by more than rounding, the original is returned, with the reason.
    """
    # Tensors of inference mode don't count their changes, which `_Last` needs.
    with torch.inference_mode(False), torch.no_grad():
        # Whether modules do the same is seen in exact arithmetic only, whatever surrounds this call.
        with single_precision("fp32"), torch.autocast(images.device.type, enabled=False):
            calls = _Calls(network)
            expected = calls.follow(images)
            folds = calls.folds()
            convolutions = calls.convolutions() if pack and images.device.type == "cpu" and _can_pack(precision) else []
            if not folds and not convolutions:
                return InferenceNetwork(network=network)
            names = {module: name for name, module in network.named_modules()}
            changed = _copy_with_same_tensors(network)
            for fold in folds:
                changed.set_submodule(names[fold.convolution], fold.folded)
                changed.set_submodule(names[fold.norm], fold.rest)
            difference = _difference(changed(images), expected) if folds else 0.0
            if not difference <= _SAME:  # NaN is a difference too
                return _refused(network, difference)
        for seen in convolutions:
            convolution = changed.get_submodule(names[seen.convolution])
            assert isinstance(convolution, nn.Conv2d)
            rows = seen.input_shape[0] * batch_size // len(images)
            packed = _PackedConvolution(convolution, [rows, *seen.input_shape[1:]], seen.activation, precision)
            changed.set_submodule(names[seen.convolution], packed)
            if seen.absorbed:
                changed.set_submodule(names[seen.absorbed], nn.Identity())
        if convolutions:
            with single_precision(precision), autocast(precision, images.device):
                difference = _difference(changed(images), expected)
            if not difference <= _ALLOWED[precision]:
                return _refused(network, difference)
    return InferenceNetwork(network=changed, folded=len(folds), packed=len(convolutions))


def _refused(network: nn.Module, difference: float) -> InferenceNetwork:
    return InferenceNetwork(network=network, failure=f"its features would differ by {difference:.2g} of their norm")


class OnDemand:
    """A network for inference that is made when it gets its first images: kept features may make it superfluous."""

    def __init__(self, make: Callable[[], InferenceNetwork]) -> None:
        self._make = make
        self.made: InferenceNetwork | None = None
        """None as long as nothing has asked for features."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Map images to features."""
        if self.made is None:
            self.made = self._make()
        features: torch.Tensor = self.made.network(images)
        return features


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """A BatchNorm layer and the convolution whose outputs it normalises."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    folded: nn.Conv2d
    """The convolution that does both."""
    rest: nn.Module
    """What the layer did beside normalising."""


@dataclass(kw_only=True)
class _Convolution:
    """A convolution by torch's own rules, and the activation that is applied to its outputs, normalised or not."""

    convolution: nn.Conv2d
    input_shape: list[int]
    activation: nn.Module | None = None
    absorbed: nn.Module | None = None
    """The module that has nothing left to do if the convolution applies the activation."""
    norm: nn.Module | None = None
    """The BatchNorm layer between the two; None if there is none."""


@dataclass(kw_only=True)
class _Last:
    """The last call of a convolution. Its tensors are kept until the next one's."""

    convolution: nn.Conv2d
    input: torch.Tensor
    output: torch.Tensor
    """What the convolution returned, or the BatchNorm layer after it."""
    version: int
    """How often `output` had been changed in place."""
    norm: nn.Module | None = None
    """That layer; None as long as there is none."""

    def is_given_to(self, given: tuple[Any, ...]) -> bool:
        """True if these arguments of a module begin with `output` as it was: a residual may have been added since."""
        return len(given) > 0 and given[0] is self.output and self.output._version == self.version


class _Calls:
    """Follows one forward pass, to see which modules are applied to the outputs of convolutions."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._modules = set(network.modules())
        self._count: Counter[nn.Module] = Counter()
        self._folds: list[_Fold] = []
        self._convolutions: dict[nn.Module, _Convolution] = {}
        self._last: _Last | None = None
        self._comparing = False

    def follow(self, images: torch.Tensor) -> torch.Tensor:
        """Run the network, and return its features."""
        # A hook of all modules, since a module's own would be copied with it.
        hook = register_module_forward_hook(self._called)
        try:
            features: torch.Tensor = self._network(images)
        finally:
            hook.remove()
            self._last = None
        return features

    def folds(self) -> list[_Fold]:
        """BatchNorm layers that can become part of a convolution: both ran once."""
        return [fold for fold in self._folds if self._once(fold.convolution, fold.norm)]

    def convolutions(self) -> list[_Convolution]:
        """Convolutions that ran once, each with its activation if that ran once too."""
        found = [each for each in self._convolutions.values() if self._once(each.convolution)]
        folded = {fold.norm for fold in self.folds()}
        for each in found:
            twice = each.absorbed is not None and not self._once(each.absorbed)
            if twice or (each.norm is not None and each.norm not in folded):
                each.activation = each.absorbed = None
        return found

    def _once(self, *modules: nn.Module) -> bool:
        return all(self._count[module] == 1 for module in modules)

    def _called(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if self._comparing or module not in self._modules:
            return
        self._count[module] += 1
        last = self._last
        if isinstance(module, nn.Conv2d):
            self._last = _Last(convolution=module, input=given[0], output=output, version=output._version)
            if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
                self._convolutions[module] = _Convolution(convolution=module, input_shape=list(given[0].shape))
        elif last is None or not last.is_given_to(given):
            return
        elif isinstance(module, nn.BatchNorm2d):
            if fold := self._fold(last, module, output):
                self._folds.append(fold)
                last.output, last.version, last.norm = output, output._version, module
                self._absorb(last, fold.rest, module)
        elif type(module) in _ACTIVATIONS:
            self._absorb(last, module, module)

    def _fold(self, last: _Last, norm: nn.BatchNorm2d, output: torch.Tensor) -> _Fold | None:
        """Fold a BatchNorm layer into the convolution before it; None if outputs would be others."""
        rest = _rest(norm)
        if rest is None or norm.training or norm.running_mean is None:
            return None
        folded = fuse_conv_bn_eval(last.convolution, norm)
        self._comparing = True
        try:
            difference = _difference(rest(folded(last.input)), output)
        finally:
            self._comparing = False
        if not difference <= _SAME:
            return None
        return _Fold(convolution=last.convolution, norm=norm, folded=folded, rest=rest)

    def _absorb(self, last: _Last, activation: nn.Module, place: nn.Module) -> None:
        seen = self._convolutions.get(last.convolution)
        if seen and seen.activation is None and type(activation) in _ACTIVATIONS:
            seen.activation, seen.absorbed, seen.norm = activation, place, last.norm


def _rest(norm: nn.BatchNorm2d) -> nn.Module | None:
    """What a layer does after normalising: nothing, or what timm's layers call `drop` and `act`; None if unknown."""
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    after = [getattr(norm, name, None) for name in ("drop", "act")]
    left = [each for each in after if isinstance(each, nn.Module) and not isinstance(each, nn.Identity)]
    if None in after:
        return None
    return left[0] if len(left) == 1 else nn.Sequential(*left)


class _PackedConvolution(nn.Module):
    """A convolution whose weights are laid out for batches of one shape, with the activation after it.

    The operator is the one that torch's own compiler calls on a CPU.
    """

    def __init__(
        self, convolution: nn.Conv2d, input_shape: list[int], activation: nn.Module | None, precision: str
    ) -> None:
        super().__init__()
        self._dtype = HALF.get(precision, torch.float32)
        self._bias = None if convolution.bias is None else convolution.bias.to(self._dtype)
        self._geometry = (
            list(convolution.padding),
            list(convolution.stride),
            list(convolution.dilation),
            convolution.groups,
        )
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            convolution.weight.to(self._dtype), *self._geometry, input_shape
        )
        name, constants = ("none", []) if activation is None else _ACTIVATIONS[type(activation)]
        self._after = (name, constants, "")

    @property
    def weight(self) -> torch.Tensor:
        """The packed weights: networks of transformers ask a convolution for the type of its weights."""
        packed: torch.Tensor = self._weight
        return packed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` → `(B, C', H', W')` in the precision of the weights."""
        result: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            images.to(self._dtype), self._weight, self._bias, *self._geometry, *self._after
        )
        return result


def _can_pack(precision: str) -> bool:
    """True if this torch has the operators of `_PackedConvolution`, which its compiler uses and nobody promises.

    In bfloat16 they also need a processor with AVX-512 or what came after it.
    """
    names = ("_reorder_convolution_weight", "_convolution_pointwise", "_is_mkldnn_bf16_supported")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return precision != "bf16" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _copy_with_same_tensors(network: nn.Module) -> nn.Module:
    """Copy the modules, so that some can be replaced, but not their parameters and buffers."""
    shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    return copy.deepcopy(network, shared)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())
