"""Int8 feature extractors: convolutions and linear layers of a backbone run in 8-bit integers, on a CPU.

This is post-training static quantisation with torch's FX graph mode. Ranges of activations come from calibration
images, and weights have one scale per output channel. Operations without an int8 kernel run in single precision.
The newer API, torchao's PT2E, is fast only with a compiler; this one needs none. `tl.qat` trains networks that become
int8 in the same way.
"""

from __future__ import annotations

import copy
import gc
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import timm.layers
import torch
from torch import nn
from torch.fx.proxy import TraceError

from tl.errors import NotApplicable

try:
    from torch.ao.nn.intrinsic import ConvReLU2d
    from torch.ao.quantization import (
        FusedMovingAvgObsFakeQuantize,
        HistogramObserver,
        MovingAverageMinMaxObserver,
        QConfig,
        QConfigMapping,
        default_per_channel_weight_observer,
        get_default_qconfig_mapping,
    )
    from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
    from torch.ao.quantization.fx.utils import assert_and_get_unique_device
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
except ImportError:  # torch will remove this module; all else here works without it
    prepare_fx = None  # type: ignore[assignment]

ENGINES = ("onednn", "qnnpack")
"""Libraries of int8 kernels, best first: one for processors of Intel and AMD, one for those of ARM."""
CALIBRATION_IMAGES = 64
"""Number of images from which ranges of activations are measured."""
LEAST_STEP = torch.finfo(torch.float32).tiny
"""Smallest step of integers. Torch's own default is 1e-7, but networks with random weights can have smaller features.
"""


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
    engine = select_engine(device)
    images = list(calibration)
    with torch.no_grad(), refusals():
        layers = layers_of(backbone)
        converted, warned = _converted(backbone, images, _settings(engine, layers if has_wide_sums(backbone) else None))
        if has_joined_integers(warned):
            converted, _ = _converted(backbone, images, _settings(engine, layers))
    check_is_int8(converted)
    forget_networks()
    return converted


def forget_networks() -> None:
    """Free the memory of networks that torch has converted and nobody needs any more.

    Torch keeps each of them, and their float weights, in a cache of the devices that they are on. Their graphs are
    cycles, which wait for the garbage collector.
    """
    assert_and_get_unique_device.cache_clear()
    gc.collect()


def select_engine(device: torch.device) -> str:
    """Select torch's best engine of int8 kernels, and return its name. Raises `NotApplicable` if there is none."""
    if device.type != "cpu":
        raise NotApplicable(f"int8 kernels exist only on a CPU; torch has none for device {device}")
    if prepare_fx is None:
        raise NotApplicable(f"torch {torch.__version__} can no longer convert networks to int8; an older version can")
    engine = next((name for name in ENGINES if name in torch.backends.quantized.supported_engines), None)
    if engine is None:
        raise NotApplicable("this build of torch has no int8 kernels for this processor")
    torch.backends.quantized.engine = engine
    return engine


@contextmanager
def refusals() -> Iterator[None]:
    """Raise `NotApplicable` for what torch raises inside if it can't convert a network, but not for lack of memory."""
    try:
        yield
    except (TraceError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError, LookupError) as error:
        if "allocate memory" in str(error) or "not enough memory" in str(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise NotApplicable(f"can't be quantised: {reason or type(error).__name__}") from error


def has_wide_sums(backbone: nn.Module) -> bool:
    """In transformers and similar networks, sums between large layers have too wide a range for eight bits."""
    return any(isinstance(part, nn.LayerNorm) for part in backbone.modules())


def has_joined_integers(warned: Iterable[str]) -> bool:
    """Whether torch warned that it concatenates integers as if they had one range: floats must be instead."""
    return any("cat operator" in text for text in warned)


def check_is_int8(network: nn.Module) -> None:
    """Raise `NotApplicable` if a converted network has no int8 weights."""
    if not any(True for _ in quantized_weights(network)):
        raise NotApplicable("can't be quantised: no layer of this network has int8 kernels")


def _converted(backbone: nn.Module, images: list[torch.Tensor], mapping: QConfigMapping) -> tuple[nn.Module, list[str]]:
    """Return the int8 network, and the warnings of torch while it was made and run on the first images.

    One warning always announces torchao, which is as fast only with a compiler.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepared: Any = _prepared(backbone, images[0], mapping)
        for some in images:
            prepared(some)
        made: nn.Module = convert_fx(prepared)
        # Try a copy: each layer keeps the kernel for its first batch size, which should be the caller's.
        copy.deepcopy(made)(images[0])
    return made, [str(warning.message) for warning in caught]


def _prepared(backbone: nn.Module, images: torch.Tensor, mapping: QConfigMapping) -> nn.Module:
    """Return the float network with observers of ranges, and with ReLU6 folded into convolutions where possible.

    Only ReLU folds into a convolution's kernel. If the range is measured after ReLU6, its integers saturate at 0 and 6,
    so ReLU gives the same result. With a separate ReLU6 most of the convolution's 256 steps would be wasted on values
    that ReLU6 then cuts off.
    """
    separate: set[str] = set()
    while True:
        network = copy.deepcopy(backbone).eval()
        split_norms(network)
        _fix_padding(network, images)
        folded = {
            name: nn.ReLU().eval()
            for name, part in network.named_modules()
            if isinstance(part, nn.ReLU6) and name not in separate
        }
        for name, relu in folded.items():
            network.set_submodule(name, relu)
        prepared: nn.Module = prepare_fx(network, mapping, (images,), untraced())
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


def settings(
    ranges: QConfig, default: Callable[[str], QConfigMapping], engine: str, layers: Iterable[str] | None
) -> QConfigMapping:
    """Return the settings that quantise all that the engine can, or only some layers.

    Args:
        ranges: how ranges are found of what torch's `default` measures. Functions of known range, such as sigmoid, keep
            theirs.
        default: torch's own settings of an engine.
        engine: its name.
        layers: names of the only modules to be quantised, see `layers_of`; None for all.
    """
    if layers is not None:
        mapping = QConfigMapping().set_object_type(nn.functional.linear, ranges)
        for name in layers:  # by its type, torch would refuse a layer that folds with an activation
            mapping.set_module_name(name, ranges)
        return mapping
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of processors without VNNI, for which `weight_range` provides
        mapping = default(engine)

    def replaced(given: QConfig | None) -> QConfig | None:
        measured = given is not None and isinstance(
            given.activation(), HistogramObserver | FusedMovingAvgObsFakeQuantize
        )
        return ranges if measured else given

    mapping.global_qconfig = replaced(mapping.global_qconfig)
    for kind, given in mapping.object_type_qconfigs.items():
        mapping.object_type_qconfigs[kind] = replaced(given)
    return mapping


def layers_of(backbone: nn.Module) -> list[str]:
    """Return the names of the convolutions and linear layers of a network."""
    return [name for name, part in backbone.named_modules() if type(part) in (nn.Conv2d, nn.Linear)]


def _settings(engine: str, layers: Iterable[str] | None) -> QConfigMapping:
    """Ranges are averaged over batches. That is faster than torch's default, histograms, and as accurate here."""
    ranges = QConfig(
        activation=MovingAverageMinMaxObserver.with_args(reduce_range=False, eps=LEAST_STEP),
        weight=default_per_channel_weight_observer.with_args(**weight_range(engine)),
    )
    return settings(ranges, get_default_qconfig_mapping, engine, layers)


def weight_range(engine: str) -> dict[str, int]:
    """Return the integers of weights: 8 bits, torch's default, but 7 on x86 processors without VNNI instructions.

    Those add two products of an 8-bit activation and a weight in 16 bits: 2 * 255 * 127 overflows, 2 * 255 * 64 fits.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if engine == "onednn" and x86 and not torch.cpu._is_vnni_supported():
        return {"quant_min": -64, "quant_max": 63}
    return {"quant_min": -128, "quant_max": 127}


def split_norms(network: nn.Module) -> None:
    """Split timm's layers of BatchNorm and activation into two layers of torch, which fold into convolutions."""
    joint = {name: part for name, part in network.named_modules() if isinstance(part, timm.layers.BatchNormAct2d)}
    for name, part in joint.items():
        norm = nn.BatchNorm2d(part.num_features, part.eps, part.momentum, affine=part.affine)
        norm.weight, norm.bias = part.weight, part.bias
        for key, value in part.named_buffers(recurse=False):
            setattr(norm, key, value)
        # An identity between them would prevent folding.
        rest = [layer for layer in (part.drop, part.act) if not isinstance(layer, nn.Identity)]
        network.set_submodule(name, nn.Sequential(norm, *rest).train(part.training))


def _fix_padding(network: nn.Module, images: torch.Tensor) -> None:
    """Replace convolutions that pad by the size of their input, as in TensorFlow, by ones with fixed padding."""
    for name, (total, part) in padding_by_size(network, images).items():
        weight, padding = symmetric(part.weight, total)
        plain = plain_convolution(part, (weight.shape[2], weight.shape[3]), padding)
        plain.load_state_dict({**part.state_dict(), "weight": weight})
        network.set_submodule(name, plain.eval())


def padding_by_size(network: nn.Module, images: torch.Tensor) -> dict[str, tuple[list[int], nn.Conv2d]]:
    """Find the convolutions of a network in eval mode that pad by the size of their input.

    Returns their name → rows and columns that they add to these images, and the convolution. Raises `ValueError` if one
    can't be padded otherwise.
    """
    sizes: dict[str, tuple[int, int]] = {}

    def remember(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            sizes[name] = (inputs[0].shape[-2], inputs[0].shape[-1])

        return hook

    same = {name: part for name, part in network.named_modules() if isinstance(part, timm.layers.Conv2dSame)}
    handles = [part.register_forward_pre_hook(remember(name)) for name, part in same.items()]
    if same:
        network(images[:1])
    for handle in handles:
        handle.remove()
    found: dict[str, tuple[list[int], nn.Conv2d]] = {}
    for name, part in same.items():
        total = [
            timm.layers.get_same_padding(size, kernel, stride, dilation)
            for size, kernel, stride, dilation in zip(
                sizes[name], part.kernel_size, part.stride, part.dilation, strict=True
            )
        ]
        if any(whole % 2 and step > 1 for whole, step in zip(total, part.dilation, strict=True)):
            raise ValueError(f"{name} pads unevenly, with dilation")
        found[name] = (total, part)
    return found


def symmetric(weight: torch.Tensor, total: list[int]) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return the kernel and the padding on each side that do what uneven padding does, of `total` rows and columns.

    Such a convolution pads more after the image than before. Zeros in front of its kernel make the padding symmetric,
    as int8 kernels need it; a padded copy of the input would be made in single precision.
    """
    rows, columns = total
    padded = nn.functional.pad(weight, (columns % 2, 0, rows % 2, 0))
    return padded, (rows - rows // 2, columns - columns // 2)


def plain_convolution(part: nn.Conv2d, kernel: tuple[int, int], padding: tuple[int, int]) -> nn.Conv2d:
    """Return a convolution of torch like `part`, of another kernel size and padding. Its numbers are random."""
    return nn.Conv2d(
        part.in_channels,
        part.out_channels,
        kernel,
        _pair(part.stride),
        padding=padding,
        dilation=_pair(part.dilation),
        groups=part.groups,
        bias=part.bias is not None,
    )


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


def untraced(*more: type[nn.Module]) -> PrepareCustomConfig:
    """Return a config that leaves layers without a static graph, which timm lists, as they are, and `more` of them."""
    return PrepareCustomConfig().set_non_traceable_module_classes([*timm.layers.get_notrace_modules(), *more])  # type: ignore[no-untyped-call]
