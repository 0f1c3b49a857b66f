"""Quantisation-aware training: a backbone trains with the rounding of int8, and int8 copies of it are what is judged.

Torch's FX graph mode makes a copy of the network that rounds weights and activations to the steps of int8 while they
stay floats; gradients pass the rounding unchanged, and are 0 where a value lies outside its range
(arXiv 1712.05877, https://docs.pytorch.org/docs/stable/quantization.html). BatchNorm is folded into the convolution
before it for the rounding alone: it still trains, and normalises by the batch. The copy has the parameters and
statistics of the network itself, so both train at once. What becomes int8, and which networks can't, is as in
`tl.quantize`.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from types import MethodType
from typing import Any

import timm.layers
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from tl.errors import NotApplicable
from tl.quantize import (
    LEAST_STEP,
    check_is_int8,
    forget_networks,
    has_joined_integers,
    has_wide_sums,
    layers_of,
    padding_by_size,
    plain_convolution,
    refusals,
    select_engine,
    settings,
    split_norms,
    symmetric,
    untraced,
    weight_range,
)
from tl.tensors import in_memory_order

try:
    from torch.ao.nn.intrinsic.qat import ConvBn2d, ConvBnReLU2d
    from torch.ao.quantization import (
        FakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        QConfig,
        disable_fake_quant,
        disable_observer,
        enable_fake_quant,
        enable_observer,
        get_default_qat_qconfig_mapping,
    )
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx
except ImportError:  # torch will remove this module, and `select_engine` says so
    FakeQuantize = nn.Module  # type: ignore[assignment, misc]

_SAME = 1e-3
"""Largest difference of the features without rounding, relative to their norm. That of two orders of addition is 1e-6.
"""
_PADDING = "uneven_padding"
"""Attribute of a convolution that pads by the size of its input: the rows and columns that it adds in all."""


def rounding_copy(backbone: nn.Module, images: torch.Tensor, device: torch.device) -> nn.Module:
    """Return a copy of a backbone, with the same parameters and buffers, that rounds as int8 kernels do.

    Args:
        backbone: maps `(B, 3, S, S) float32` to features `(B, width) float32`, in eval mode.
        images: some preprocessed images, in the layout of those that it will get.
        device: the device that it will run on.

    The copy is in eval mode. Its ranges begin with those of the first batch that it gets, and move with every batch, in
    either mode. Torch's engine of int8 kernels stays selected.

    Raises `NotApplicable` as `tl.quantize.quantized` does, and if the network computes something else in eval mode than
    its graph, which is made in train mode.
    """
    engine = select_engine(device)
    with torch.no_grad(), refusals():
        layers = layers_of(backbone)
        made, warned = _tried(backbone, images, engine, layers if has_wide_sums(backbone) else None)
        if has_joined_integers(warned):
            made, _ = _tried(backbone, images, engine, layers)
    forget_networks()
    return made


def int8_copy(network: nn.Module) -> nn.Module:
    """Return the int8 network of what `rounding_copy` returned. Each call makes the same one from the same numbers."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization|.*quantized tensor creation")  # they are there today
        shared = {id(parameter): parameter for parameter in network.parameters()}
        changed: Any = copy.deepcopy(network, shared).eval()
        for part in changed.modules():
            if total := getattr(part, _PADDING, None):
                assert isinstance(part, nn.Conv2d)
                weight, part.padding = symmetric(part.weight, total)
                part.weight = nn.Parameter(weight, requires_grad=False)
                part.kernel_size = (weight.shape[2], weight.shape[3])
            part._forward_pre_hooks.clear()
            part._forward_hooks.clear()
        made: nn.Module = convert_fx(changed)
        return made


class Int8Copies:
    """The int8 copy of a network that trains: it stays as it is until it is made anew."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._made: nn.Module | None = None
        self.seconds = 0.0
        """What all conversions together took."""

    def renew(self) -> float:
        """Convert the network as it is now. Returns the seconds that this took."""
        started = time.perf_counter()
        self._made = None  # its memory is free for the next one
        self._made = int8_copy(self._network)
        forget_networks()
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return seconds

    def forget(self) -> None:
        """Free the last copy, which is of no use while the network trains on."""
        if self._made is not None:
            self._made = None
            forget_networks()

    def fault(self) -> str:
        """Say what of the network is not finite, so that it can't be converted; empty if all is."""
        if not all(bool(value.isfinite().all()) for value in self._network.parameters()):
            return "weights were not finite after training"
        roundings = [part for part in self._network.modules() if isinstance(part, Rounding)]
        if not all(bool(part.scale.isfinite().all()) for part in roundings if part.is_per_channel):
            return "weights were not finite after training"
        if not all(_has_range(part.activation_post_process) for part in roundings if not part.is_per_channel):
            return "activations were not finite in training"
        return ""

    @property
    def newest(self) -> nn.Module:
        """The int8 network of the last conversion."""
        if self._made is None:
            self.renew()
        assert self._made is not None
        return self._made

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Map images to features by the int8 network."""
        features: torch.Tensor = self.newest(images)
        return features


class Rounding(FakeQuantize):
    """Rounds a tensor to the steps of int8, by a range that it finds itself; torch's own is slower.

    Torch's kernel takes nine times as long as making integers and floats of them again, and its fused one widens steps
    below 6e-5, which conversion doesn't. Its observers find a range by forty small operations; of them this uses the
    settings and, for activations, the place of the range.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Observe the range, if that is switched on, and round, if that is."""
        if self.observer_enabled[0]:
            observe = self._observe_channels if self.is_per_channel else self._observe
            if not observe(values.detach()):
                return values  # the loss, or `Int8Copies.fault`, will say so
        if not self.fake_quant_enabled[0]:
            return values
        rounded: torch.Tensor = _Rounded.apply(values, self.scale, self.zero_point, self.is_per_channel)
        return rounded

    def calculate_qparams(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the step and the zero that it rounds with, which are those of the int8 network."""
        return self.scale.clone(), self.zero_point.long()

    def _observe(self, values: torch.Tensor) -> bool:
        """Move the range towards that of a batch; the first one is taken whole. Returns False if it is not finite."""
        range_of = self.activation_post_process
        # A range is found eight times as fast in the order of memory.
        ends = [float(end) for end in torch.aminmax(in_memory_order(values))]
        before = [float(range_of.min_val), float(range_of.max_val)]
        if before != [math.inf, -math.inf]:
            ends = [old + range_of.averaging_constant * (new - old) for old, new in zip(before, ends, strict=True)]
        range_of.min_val.fill_(ends[0])
        range_of.max_val.fill_(ends[1])
        if not all(map(math.isfinite, ends)):
            return False
        low, high = min(ends[0], 0.0), max(ends[1], 0.0)  # zero has an integer, for padding
        self.scale.fill_(max((high - low) / (self.quant_max - self.quant_min), LEAST_STEP))
        step = self.scale.item()
        zero = min(max(self.quant_min - round(low / step), self.quant_min), self.quant_max)
        self.zero_point.fill_(zero)
        return True

    def _observe_channels(self, weight: torch.Tensor) -> bool:
        """Take the range of each channel of a weight as it is now. Returns False if one is not finite."""
        largest = torch.linalg.vector_norm(weight, math.inf, dim=list(range(1, weight.ndim)))
        steps = (largest / ((self.quant_max - self.quant_min) / 2)).clamp_(min=LEAST_STEP)
        self.scale.resize_(steps.shape).copy_(steps)
        self.zero_point.resize_(steps.shape).zero_()
        return bool(steps.isfinite().all())


def _has_range(observer: Any) -> bool:
    """Whether what an observer has seen was finite. One that has seen nothing has a minimum above its maximum."""
    low, high = observer.min_val, observer.max_val
    return bool(((high - low).isfinite() | (low > high)).all())


def _ends(step: float, zero: int) -> tuple[float, float]:
    """The range of values that integers from 0 to 255 stand for."""
    return (-0.5 - zero) * step, (255.5 - zero) * step


class _Rounded(torch.autograd.Function):
    """Values of int8, as floats. The gradient passes; that of an activation outside its range is 0.

    Values are kept for the backward pass also where none of a batch lies outside, so that all steps do the same work.
    """

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, per_channel: bool
    ) -> torch.Tensor:
        ctx.ends = None
        if per_channel:  # a weight, whose range is known, so none is outside of it
            return torch.quantize_per_channel(values, scale, zero, 0, torch.qint8).dequantize()
        step, start = scale.item(), int(zero.item())
        ctx.ends = _ends(step, start)
        ctx.save_for_backward(values)
        return torch.quantize_per_tensor(values, step, start, torch.quint8).dequantize()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        if ctx.ends is None:
            return gradient, None, None, None
        (values,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, values, *ctx.ends), None, None, None


def _rounding(engine: str) -> QConfig:
    """Return what rounds activations, to ranges that are averaged over batches, and weights, to ranges of now."""
    return QConfig(
        activation=Rounding.with_args(  # type: ignore[no-untyped-call]
            observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, reduce_range=False, eps=LEAST_STEP
        ),
        weight=Rounding.with_args(  # type: ignore[no-untyped-call]
            observer=MovingAveragePerChannelMinMaxObserver,
            averaging_constant=1.0,
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
            eps=LEAST_STEP,
            **weight_range(engine),
        ),
    )


def _tried(
    backbone: nn.Module, images: torch.Tensor, engine: str, layers: list[str] | None
) -> tuple[nn.Module, list[str]]:
    """Return the network that rounds, and the warnings of torch while its int8 copy was made and run."""
    made = _prepared(backbone, images, engine, layers).eval()
    expected = backbone(images)
    if not expected.isfinite().all():
        return made, []  # the first epoch ends with an error
    made.apply(disable_fake_quant)
    made.apply(disable_observer)
    difference = float((made(images) - expected).norm() / expected.norm())
    if not difference <= _SAME:
        raise NotApplicable(
            f"can't be quantised: the features of its traced graph differ by {difference:.2g} of their norm"
        )
    made.apply(enable_observer)
    made.apply(enable_fake_quant)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made(images)
        converted = int8_copy(made)
        check_is_int8(converted)
        converted(images)
    for part in made.modules():
        if isinstance(part, Rounding):  # BatchNorm in train mode has other ranges
            part.activation_post_process.reset_min_max_vals()
    return made, [str(warning.message) for warning in caught]


def _prepared(backbone: nn.Module, images: torch.Tensor, engine: str, layers: list[str] | None) -> Any:
    """Return the network that rounds, in train mode.

    ReLU6 folds into a convolution as ReLU does, see `tl.quantize`: its output is cut off at 6 before its range is
    measured.
    """
    separate: set[str] = set()
    while True:
        shared = {id(tensor): tensor for tensor in [*backbone.parameters(), *backbone.buffers()]}
        network = copy.deepcopy(backbone, shared).eval()
        split_norms(network)
        convolutions = _convolutions_before(network, images)
        padded: dict[int, list[int]] = {}
        for name, (total, part) in padding_by_size(network, images).items():
            plain = plain_convolution(part, (part.kernel_size[0], part.kernel_size[1]), (0, 0))
            plain.weight, plain.bias = part.weight, part.bias
            padded[id(part.weight)] = total
            network.set_submodule(name, plain)
        folded = {
            name: nn.ReLU()
            for name, part in network.named_modules()
            if isinstance(part, nn.ReLU6) and name in convolutions and name not in separate
        }
        for name, relu in folded.items():
            network.set_submodule(name, relu)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torchao, which is as fast only with a compiler
            prepared: Any = prepare_qat_fx(
                network.train(),
                settings(_rounding(engine), get_default_qat_qconfig_mapping, engine, layers),
                (images,),
                untraced(StochasticDepth, timm.layers.DropPath),
            )
        remaining = set(prepared.modules())
        unfolded = {name for name, relu in folded.items() if relu in remaining}
        if not unfolded:
            break
        separate |= unfolded
    capped = {weight for name in folded for weight in convolutions[name]}
    for part in prepared.modules():
        if isinstance(part, ConvBnReLU2d) and id(part.weight) in capped:
            part.forward = MethodType(_at_most_six_of, part)  # type: ignore[method-assign]
        elif isinstance(part, nn.Conv2d) and id(part.weight) in capped:
            part.register_forward_hook(_at_most_six)
        if isinstance(part, nn.Conv2d) and id(part.weight) in padded:
            setattr(part, _PADDING, padded[id(part.weight)])
            part.register_forward_pre_hook(_pad)
        if isinstance(part, ConvBn2d):
            part._forward = MethodType(_convolved, part)  # type: ignore[method-assign]
    return prepared


def _convolved(part: Any, images: torch.Tensor) -> torch.Tensor:
    """Return what a convolution and its BatchNorm make of images, with the folded weight rounded.

    For the rounding the weight is multiplied by what BatchNorm does to a channel. Torch divides the output by that
    again; dividing the weight needs no copy of the output. Where BatchNorm's own weight is 0 there is nothing to divide
    by, and torch runs the convolution twice; here the weight is rounded as it is. Gradients pass the rounding
    unchanged, so the factor has none: multiplying and dividing by it changes nothing else.
    """
    with torch.no_grad():
        factor = part.bn.weight / (part.bn.running_var + part.bn.eps).sqrt()
        factor = torch.where(factor == 0, 1.0, factor).reshape(-1, 1, 1, 1)
        rounded = part.weight_fake_quant(part.weight * factor).div_(factor)
    output: torch.Tensor = part.bn(part._conv_forward(images, _InPlaceOf.apply(part.weight, rounded), part.bias))
    return output


class _InPlaceOf(torch.autograd.Function):
    """The second of two tensors, whose gradient is that of the first."""

    @staticmethod
    def forward(ctx: Any, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return other.view_as(other)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def _convolutions_before(network: nn.Module, images: torch.Tensor) -> dict[str, set[int]]:
    """Name of each ReLU6 → the identities of the weights of the convolutions before it, with BatchNorm between or not.

    ReLU6 layers that are also applied to something else are left out.
    """
    kept: list[torch.Tensor] = []  # so that no identity is used twice
    source: dict[int, int] = {}
    found: dict[str, set[int]] = {}
    others: set[str] = set()
    names = {part: name for name, part in network.named_modules() if isinstance(part, nn.ReLU6)}

    def before(part: nn.Module, given: tuple[Any, ...]) -> None:
        if part in names:
            if id(given[0]) in source:
                found.setdefault(names[part], set()).add(source[id(given[0])])
            else:
                others.add(names[part])

    def after(part: nn.Module, given: tuple[Any, ...], output: torch.Tensor) -> None:
        kept.extend((given[0], output))
        if isinstance(part, nn.Conv2d):
            source[id(output)] = id(part.weight)
        elif isinstance(part, nn.BatchNorm2d) and id(given[0]) in source:
            source[id(output)] = source[id(given[0])]

    followed = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.ReLU6)]
    handles = [part.register_forward_pre_hook(before) for part in followed]
    handles += [part.register_forward_hook(after) for part in followed]
    if names:
        network(images[:1])
    for handle in handles:
        handle.remove()
    return {name: weights for name, weights in found.items() if name not in others}


def _at_most_six(_part: nn.Module, _given: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return nn.functional.relu6(output)


def _at_most_six_of(part: Any, images: torch.Tensor) -> torch.Tensor:
    """The same without the ReLU of the module, which the cut at 0 and 6 has in it."""
    return nn.functional.relu6(_convolved(part, images))


def _pad(part: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Pad images as a convolution of TensorFlow does: what is left over of an odd number goes to the end."""
    rows, columns = getattr(part, _PADDING)
    sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return (nn.functional.pad(given[0], sides),)
