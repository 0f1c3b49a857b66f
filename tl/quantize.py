"""Int8 feature extractors: a backbone's convolutions and linear layers in 8-bit integers, on a CPU.

Post-training static quantisation with torch's FX graph mode: ranges of activations come from calibration images,
weights have a scale for each output channel. What has no int8 kernel runs in single precision between the others.
No compiler is needed, where the newer way (torchao's PT2E) is fast only behind one.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import timm.layers
import torch
from torch import nn
from torch.fx.proxy import TraceError

from tl.errors import NotApplicable

try:
    from torch.ao.nn.intrinsic import ConvReLU2d
    from torch.ao.quantization import (
        HistogramObserver,
        MovingAverageMinMaxObserver,
        QConfig,
        QConfigMapping,
        default_per_channel_weight_observer,
        get_default_qconfig_mapping,
    )
    from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
except ImportError:  # torch has announced that it will go; all else here works without
    prepare_fx = None  # type: ignore[assignment]

ENGINES = ("onednn", "qnnpack")
"""Libraries of int8 kernels, best first: for processors of Intel and AMD, and for those of ARM."""
CALIBRATION_IMAGES = 64


def quantized(backbone: nn.Module, calibration: Iterable[torch.Tensor], device: torch.device) -> nn.Module:
    """A copy of a backbone that computes in int8; the backbone stays as it is.

    Args:
        backbone: maps `(B, 3, S, S) float32` to features `(B, width) float32`, in eval mode.
        calibration: batches of images as the backbone will see them.
        device: where it is to run.

    The copy takes batches of any size, and is quickest with the size that it meets first. Torch's engine of int8
    kernels stays set.

    Raises `NotApplicable` where there are no int8 kernels, or the network's graph can't be had: networks that decide
    by values or shapes what to compute.
    """
    if device.type != "cpu":
        raise NotApplicable(f"int8 kernels are a CPU's; device {device} has none in torch")
    if prepare_fx is None:
        raise NotApplicable(f"torch {torch.__version__} can't convert networks to int8 any more: an older one can")
    engine = next((name for name in ENGINES if name in torch.backends.quantized.supported_engines), None)
    if engine is None:
        raise NotApplicable("this build of torch has no int8 kernels for this processor")
    torch.backends.quantized.engine = engine
    images = list(calibration)
    with torch.no_grad():
        try:
            # What transformers and their kin add up between their large layers has too wide a range for eight bits.
            layers_only = any(isinstance(part, nn.LayerNorm) for part in backbone.modules())
            converted, said = _converted(backbone, images, _settings(engine, layers_only=layers_only))
            if any("cat operator" in words for words in said):
                # Torch joins integers of different ranges as if they had one: floats are to be joined.
                converted, _ = _converted(backbone, images, _settings(engine, layers_only=True))
        except (TraceError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
            if "allocate memory" in str(error) or "not enough memory" in str(error):
                raise
            why = str(error).strip().partition("\n")[0]
            raise NotApplicable(f"can't be quantised: {why or type(error).__name__}") from error
    if not any(True for _ in quantized_weights(converted)):
        raise NotApplicable("can't be quantised: no layer of it has int8 kernels")
    return converted


def _converted(
    backbone: nn.Module, images: list[torch.Tensor], settings: QConfigMapping
) -> tuple[nn.Module, list[str]]:
    """The int8 network, and what torch warned of while it ran on the first images.

    It always announces a successor of this module (torchao), which needs a compiler to be as quick.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepared: Any = _prepared(backbone, images[0], settings)
        for some in images:
            prepared(some)
        made: nn.Module = convert_fx(prepared)
        # A copy is tried: each layer keeps the kernel for the first batch size that it meets, which is to be the
        # caller's.
        copy.deepcopy(made)(images[0])
    return made, [str(warning.message) for warning in caught]


def _prepared(backbone: nn.Module, images: torch.Tensor, settings: QConfigMapping) -> nn.Module:
    """The float network with observers of ranges, each ReLU6 part of the convolution before it where that can be.

    Only ReLU folds into a convolution's kernel. But integers that begin at 0 and end at 6 are cut off there: with
    ranges measured behind ReLU6, ReLU does the same. As an operation of its own it would leave most of the
    convolution's 256 steps to values that it then throws away.
    """
    alone: set[str] = set()
    while True:
        network = copy.deepcopy(backbone).eval()
        _split_norms(network)
        _fix_padding(network, images)
        folded = {
            name: nn.ReLU().eval()
            for name, part in network.named_modules()
            if isinstance(part, nn.ReLU6) and name not in alone
        }
        for name, relu in folded.items():
            network.set_submodule(name, relu)
        prepared: nn.Module = prepare_fx(network, settings, (images,), _untraced())
        for part in list(prepared.modules()):
            if isinstance(part, ConvReLU2d) and any(part[1] is relu for relu in folded.values()):
                part[1] = nn.ReLU6()
        there = set(prepared.modules())
        unfolded = {name for name, relu in folded.items() if relu in there}
        if not unfolded:
            return prepared
        alone |= unfolded


def quantized_weights(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value, a quantised tensor, of each int8 weight."""
    for name, value in module.state_dict().items():
        parts = value if isinstance(value, tuple | list) else (value,)
        for part in parts:
            if isinstance(part, torch.Tensor) and part.is_quantized:
                yield name, part


def _settings(engine: str, *, layers_only: bool) -> QConfigMapping:
    """What becomes integers: all that the engine can, or convolutions and linear layers alone.

    Ranges are averaged over batches: quicker than by histogram, torch's own way, and no less accurate here.
    """
    ranges = QConfig(
        # By default steps are no smaller than 1e-7; networks with random weights can have features below that.
        activation=MovingAverageMinMaxObserver.with_args(reduce_range=False, eps=torch.finfo(torch.float32).tiny),
        weight=default_per_channel_weight_observer,
    )
    if layers_only:
        mapping = QConfigMapping()
        for layer in (nn.Conv2d, nn.Linear, nn.functional.linear):
            mapping.set_object_type(layer, ranges)
        return mapping
    mapping = get_default_qconfig_mapping(engine)

    def quicker(given: QConfig | None) -> QConfig | None:
        by_histogram = given is not None and isinstance(given.activation(), HistogramObserver)
        return ranges if by_histogram else given  # functions of known range, such as sigmoid, keep theirs

    mapping.global_qconfig = quicker(mapping.global_qconfig)
    for kind, given in mapping.object_type_qconfigs.items():
        mapping.object_type_qconfigs[kind] = quicker(given)
    return mapping


def _split_norms(network: nn.Module) -> None:
    """Turn timm's layers of BatchNorm and activation into two of torch's, which fold into the convolution before."""
    joint = {name: part for name, part in network.named_modules() if isinstance(part, timm.layers.BatchNormAct2d)}
    for name, part in joint.items():
        norm = nn.BatchNorm2d(part.num_features, part.eps, affine=part.affine)
        norm.load_state_dict({key: value for key, value in part.state_dict().items() if key in norm.state_dict()})
        # An identity between them would keep them from folding.
        rest = [layer for layer in (part.drop, part.act) if not isinstance(layer, nn.Identity)]
        network.set_submodule(name, nn.Sequential(norm, *rest).eval())


def _fix_padding(network: nn.Module, images: torch.Tensor) -> None:
    """Give convolutions that pad by the size of their input, as TensorFlow does, the padding of these images' size."""
    sizes: dict[str, tuple[int, int]] = {}

    def remember(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sizes[name] = (inputs[0].shape[-2], inputs[0].shape[-1])

        return hook

    same = {name: part for name, part in network.named_modules() if isinstance(part, timm.layers.Conv2dSame)}
    handles = [part.register_forward_pre_hook(remember(name)) for name, part in same.items()]
    network(images[:1])
    for handle in handles:
        handle.remove()
    for name, part in same.items():
        total = [
            timm.layers.get_same_padding(size, kernel, stride, dilation)
            for size, kernel, stride, dilation in zip(
                sizes[name], part.kernel_size, part.stride, part.dilation, strict=True
            )
        ]
        # It pads more after than before. A kernel with rows of zeros before makes that symmetric: what int8 kernels
        # take, where a padded copy of the input would go through single precision.
        after, uneven = [whole - whole // 2 for whole in total], [whole % 2 for whole in total]
        if any(odd and step > 1 for odd, step in zip(uneven, part.dilation, strict=True)):
            raise ValueError(f"{name} pads unevenly, with dilation")
        weight = nn.functional.pad(part.weight, (uneven[1], 0, uneven[0], 0))
        plain = nn.Conv2d(
            part.in_channels,
            part.out_channels,
            (weight.shape[2], weight.shape[3]),
            _pair(part.stride),
            padding=(after[0], after[1]),
            dilation=_pair(part.dilation),
            groups=part.groups,
            bias=part.bias is not None,
        )
        plain.load_state_dict({**part.state_dict(), "weight": weight})
        network.set_submodule(name, plain.eval())


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def _untraced() -> PrepareCustomConfig:
    """Layers that timm knows to have no static graph run as they are."""
    return PrepareCustomConfig().set_non_traceable_module_classes(list(timm.layers.get_notrace_modules()))  # type: ignore[no-untyped-call]
