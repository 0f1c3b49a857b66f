"""Int8 feature extractors: convolutions and linear layers of a backbone run in 8-bit integers, on a CPU.

This is post-training static quantisation with torch's FX graph mode. Ranges of activations come from calibration
images, and weights have one scale per output channel. Operations without an int8 kernel run in single precision.
The newer API, torchao's PT2E, is fast only with a compiler; this one needs none.
"""

from __future__ import annotations

import copy
import platform
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
except ImportError:  # torch will remove this module; all else here works without it
    prepare_fx = None  # type: ignore[assignment]

ENGINES = ("onednn", "qnnpack")
"""Libraries of int8 kernels, best first: one for processors of Intel and AMD, one for those of ARM."""
CALIBRATION_IMAGES = 64
"""Number of images from which ranges of activations are measured."""


def quantized(backbone: nn.Module, calibration: Iterable[torch.Tensor], device: torch.device) -> nn.Module:
    """Return a copy of a backbone that computes in int8; the backbone itself is not changed.

    Args:
        backbone: maps `(B, 3, S, S) float32` to features `(B, width) float32`, in eval mode.
        calibration: batches of preprocessed images, like those that the backbone will get.
        device: the device that the copy will run on.

    The copy accepts batches of any size and is fastest with that of its first batch. Torch's engine of int8 kernels
    stays selected.

    Raises `NotApplicable` if there are no int8 kernels, or if the network can't be traced, since values or shapes
    decide what it computes.
    """
    if device.type != "cpu":
        raise NotApplicable(f"int8 kernels exist only on a CPU; torch has none for device {device}")
    if prepare_fx is None:
        raise NotApplicable(f"torch {torch.__version__} can no longer convert networks to int8; an older version can")
    engine = next((name for name in ENGINES if name in torch.backends.quantized.supported_engines), None)
    if engine is None:
        raise NotApplicable("this build of torch has no int8 kernels for this processor")
    torch.backends.quantized.engine = engine
    images = list(calibration)
    with torch.no_grad():
        try:
            # In transformers and similar networks, sums between large layers have too wide a range for eight bits.
            layers_only = any(isinstance(part, nn.LayerNorm) for part in backbone.modules())
            converted, warned = _converted(backbone, images, _settings(engine, layers_only=layers_only))
            if any("cat operator" in text for text in warned):
                # Torch concatenates integers as if they had one range, so concatenate floats instead.
                converted, _ = _converted(backbone, images, _settings(engine, layers_only=True))
        except (TraceError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
            if "allocate memory" in str(error) or "not enough memory" in str(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            raise NotApplicable(f"can't be quantised: {reason or type(error).__name__}") from error
    if not any(True for _ in quantized_weights(converted)):
        raise NotApplicable("can't be quantised: no layer of this network has int8 kernels")
    return converted


def _converted(
    backbone: nn.Module, images: list[torch.Tensor], settings: QConfigMapping
) -> tuple[nn.Module, list[str]]:
    """Return the int8 network, and the warnings of torch while it was made and run on the first images.

    One warning always announces torchao, which is as fast only with a compiler.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepared: Any = _prepared(backbone, images[0], settings)
        for some in images:
            prepared(some)
        made: nn.Module = convert_fx(prepared)
        # Try a copy: each layer keeps the kernel for its first batch size, which should be the caller's.
        copy.deepcopy(made)(images[0])
    return made, [str(warning.message) for warning in caught]


def _prepared(backbone: nn.Module, images: torch.Tensor, settings: QConfigMapping) -> nn.Module:
    """Return the float network with observers of ranges, and with ReLU6 folded into convolutions where possible.

    Only ReLU folds into a convolution's kernel. If the range is measured after ReLU6, its integers saturate at 0 and 6,
    so ReLU gives the same result. With a separate ReLU6 most of the convolution's 256 steps would be wasted on values
    that ReLU6 then cuts off.
    """
    separate: set[str] = set()
    while True:
        network = copy.deepcopy(backbone).eval()
        _split_norms(network)
        _fix_padding(network, images)
        folded = {
            name: nn.ReLU().eval()
            for name, part in network.named_modules()
            if isinstance(part, nn.ReLU6) and name not in separate
        }
        for name, relu in folded.items():
            network.set_submodule(name, relu)
        prepared: nn.Module = prepare_fx(network, settings, (images,), _untraced())
        for part in list(prepared.modules()):
            if isinstance(part, ConvReLU2d) and any(part[1] is relu for relu in folded.values()):
                part[1] = nn.ReLU6()
        remaining = set(prepared.modules())
        unfolded = {name for name, relu in folded.items() if relu in remaining}
        if not unfolded:
            return prepared
        separate |= unfolded


def quantized_weights(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and value of each int8 weight; the value is a quantised tensor."""
    for name, value in module.state_dict().items():
        parts = value if isinstance(value, tuple | list) else (value,)
        for part in parts:
            if isinstance(part, torch.Tensor) and part.is_quantized:
                yield name, part


def _settings(engine: str, *, layers_only: bool) -> QConfigMapping:
    """Return the settings that quantise all that the engine can, or only convolutions and linear layers.

    Ranges are averaged over batches. That is faster than torch's default, histograms, and as accurate here.
    """
    ranges = QConfig(
        # By default steps are at least 1e-7, but networks with random weights can have smaller features.
        activation=MovingAverageMinMaxObserver.with_args(reduce_range=False, eps=torch.finfo(torch.float32).tiny),
        weight=_weight_observer(engine),
    )
    if layers_only:
        mapping = QConfigMapping()
        for layer in (nn.Conv2d, nn.Linear, nn.functional.linear):
            mapping.set_object_type(layer, ranges)
        return mapping
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of processors without VNNI, for which `_weight_observer` provides
        mapping = get_default_qconfig_mapping(engine)

    def averaged(given: QConfig | None) -> QConfig | None:
        by_histogram = given is not None and isinstance(given.activation(), HistogramObserver)
        return ranges if by_histogram else given  # functions of known range, such as sigmoid, keep their observers

    mapping.global_qconfig = averaged(mapping.global_qconfig)
    for kind, given in mapping.object_type_qconfigs.items():
        mapping.object_type_qconfigs[kind] = averaged(given)
    return mapping


def _weight_observer(engine: str) -> Any:
    """Weights have a scale per output channel, and 8 bits; 7 on x86 processors without VNNI instructions.

    Those add two products of an 8-bit activation and a weight in 16 bits: 2 * 255 * 127 overflows, 2 * 255 * 64 fits.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if engine == "onednn" and x86 and not torch.cpu._is_vnni_supported():
        return default_per_channel_weight_observer.with_args(quant_min=-64, quant_max=63)
    return default_per_channel_weight_observer


def _split_norms(network: nn.Module) -> None:
    """Split timm's layers of BatchNorm and activation into two layers of torch, which fold into convolutions."""
    joint = {name: part for name, part in network.named_modules() if isinstance(part, timm.layers.BatchNormAct2d)}
    for name, part in joint.items():
        norm = nn.BatchNorm2d(part.num_features, part.eps, affine=part.affine)
        norm.load_state_dict({key: value for key, value in part.state_dict().items() if key in norm.state_dict()})
        # An identity between them would prevent folding.
        rest = [layer for layer in (part.drop, part.act) if not isinstance(layer, nn.Identity)]
        network.set_submodule(name, nn.Sequential(norm, *rest).eval())


def _fix_padding(network: nn.Module, images: torch.Tensor) -> None:
    """Replace convolutions that pad by the size of their input, as in TensorFlow, by ones with fixed padding."""
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
        # Such a convolution pads more after the image than before. Zeros in front of its kernel make the padding
        # symmetric, as int8 kernels need it; a padded copy of the input would be made in single precision.
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
    """Return a config that leaves layers without a static graph, which timm lists, as they are."""
    return PrepareCustomConfig().set_non_traceable_module_classes(list(timm.layers.get_notrace_modules()))  # type: ignore[no-untyped-call]
