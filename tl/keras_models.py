"""Networks of `keras.applications`, run by Keras on torch, as modules of torch.

In Keras's own modules `train()` and `eval()` do nothing, BatchNorm statistics are parameters, and no hook is called. So
each layer becomes a module here that owns the layer's tensors: trained ones are parameters, statistics are buffers, and
its mode is what the layer is told. A layer of Keras is used as a function of these tensors, so modules may be copied.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from tl.batches import Preprocessing
from tl.errors import WeightsError
from tl.keras_names import application
from tl.library import Backbone, Maker, fitting
from tl.observed import scale_of
from tl.own_code import named
from tl.own_models import as_backbone
from tl.weights import Checkpoint, Weights

_FIRST, _LAST = "channels_first", "channels_last"
_SIZE = 224
"""Side of the images of networks that don't say it."""
_LARGER = 256 / 224
"""How much larger images are before the crop: as usual, since Keras doesn't say it."""
_COUNTERS = "object_name_uids"
"""Where Keras counts the layers of each kind that a process has made."""
_NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
"""Keras's names of a norm's tensors → torch's, by which regimes know them."""


def _keras() -> Any:
    """Load Keras on torch. Raises `RuntimeError` if this process has it on something else."""
    before = os.environ.get("KERAS_BACKEND")
    os.environ["KERAS_BACKEND"] = "torch"
    try:
        import keras
    finally:
        if before is None:
            del os.environ["KERAS_BACKEND"]
        else:
            os.environ["KERAS_BACKEND"] = before
    if (loaded := keras.backend.backend()) != "torch":
        raise RuntimeError(f"this process has loaded Keras on {loaded} already; set KERAS_BACKEND=torch before that")
    return keras


@dataclass(frozen=True)
class _File:
    """The file of weights that Keras asks for."""

    name: str
    url: str
    digest: str
    """Of its content, MD5 or SHA-256 in hex; empty if Keras doesn't say it."""


class _Asked(Exception):
    def __init__(self, file: _File) -> None:
        super().__init__(file.url)
        self.file = file


@dataclass
class _Built:
    network: Any
    size: int
    channels_last: bool


def _build(name: str, *, pretrained: bool, ask: bool = False) -> _Built:
    """Build a network without its classifier, with pooled features.

    With `pretrained` it is built as for published weights, without loading any: some families have other layers then
    than with random ones (EfficientNet scales its input once more). With `ask`, raises `_Asked` for their file.
    """
    keras = _keras()
    for layout in (_FIRST, _LAST):
        try:
            with (
                _data_format(layout),
                _seen(ask=ask) as sizes,
                _repeatable(),
                keras.device("cpu"),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                make: Any = getattr(keras.applications, name)
                network = make(weights="imagenet" if pretrained else None, include_top=False, pooling="avg")
            return _Built(network, sizes[0] if sizes else _SIZE, layout == _LAST)
        except ValueError as error:  # a few families can't be built with channels first
            if layout not in str(error) or layout == _LAST:
                raise
    raise AssertionError("the loop returns or raises")


@contextmanager
def _data_format(layout: str) -> Iterator[None]:
    """Let Keras have this layout of images: layers ask for it when they are made, and some when they are called."""
    config: Any = _keras().config
    before = config.image_data_format()
    config.set_image_data_format(layout)
    try:
        yield
    finally:
        config.set_image_data_format(before)


@contextmanager
def _seen(*, ask: bool) -> Iterator[list[int]]:
    """Yield the size of the images that a network expects, once it is built, and let it load and download nothing.

    With `ask`, raises `_Asked` for the file of its weights.
    """
    from keras.src.applications import imagenet_utils
    from keras.src.utils import file_utils

    sizes: list[int] = []
    shape_of: Any = imagenet_utils.obtain_input_shape
    get_file: Any = file_utils.get_file
    load_weights: Any = _keras().Model.load_weights

    def obtain_input_shape(input_shape: Any, default_size: int, *given: Any, **settings: Any) -> Any:
        sizes.append(int(default_size))
        return shape_of(input_shape, default_size, *given, **settings)

    def file(fname: str = "", origin: str = "", *_: Any, **settings: Any) -> str:
        if ask:
            raise _Asked(_File(fname, origin, settings.get("file_hash") or settings.get("md5_hash") or ""))
        return ""

    imagenet_utils.obtain_input_shape, file_utils.get_file = obtain_input_shape, file
    _keras().Model.load_weights = lambda *_, **__: None
    try:
        yield sizes
    finally:
        imagenet_utils.obtain_input_shape, file_utils.get_file = shape_of, get_file
        _keras().Model.load_weights = load_weights


@contextmanager
def _repeatable() -> Iterator[None]:
    """Let random weights follow from torch's seed, and names of layers from the network alone.

    Keras takes seeds from Python's own random numbers, and counts the layers that a process has made.
    """
    from keras.src.backend.common import global_state

    before, counters = random.getstate(), global_state.get_global_attribute(_COUNTERS)
    random.seed(torch.initial_seed())
    global_state.set_global_attribute(_COUNTERS, defaultdict(int))
    try:
        yield
    finally:
        random.setstate(before)
        global_state.set_global_attribute(_COUNTERS, counters)


def _checkpoint(name: str) -> Checkpoint:
    path = application(name)
    with named(path):
        try:
            _build(name, pretrained=True, ask=True)
        except _Asked as asked:
            file = asked.file
        else:
            raise path.wrong("Keras asked for no file of weights")
        place = Path(_keras().src.backend.config.keras_home()) / "models" / file.name

    def cached() -> tuple[Path, str] | None:
        if not place.is_file():
            return None
        _check(place, file)
        return place, "Keras's cache"

    def download() -> Path:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(file.url, os.fspath(place), progress=False)
        try:
            _check(place, file)
        except WeightsError:
            place.unlink()
            raise
        return place

    return Checkpoint(
        label=file.name,
        file_names=(f"keras-{name}", Path(file.name).stem),
        suffixes=(".h5", ".weights.h5"),
        bundled_as="",
        cached=cached,
        download=download,
        url=file.url,
    )


def _check(path: Path, file: _File) -> None:
    """Raise `WeightsError` unless a file is the one that Keras asks for."""
    if file.digest:
        kind = "md5" if len(file.digest) == 32 else "sha256"
        if (found := hashlib.new(kind, path.read_bytes(), usedforsecurity=False).hexdigest()) != file.digest:
            raise WeightsError(f"{path} is damaged: its {kind} is {found[:8]}…, not {file.digest[:8]}…; remove it")


def _make(name: str, weights: Weights) -> Backbone:
    path = application(name)
    with named(path):
        pretrained = weights.kind == "pretrained"
        built = _build(name, pretrained=pretrained)
        if pretrained:
            _fill(built.network, name, weights)
        family = sys.modules[getattr(_keras().applications, name).__module__]
        scale = scale_of(partial(_preprocessed, family.preprocess_input))
        if scale is None:
            raise path.wrong("its preprocessing is more than a scale of each channel")
        module = KerasNetwork(
            built.network, built.size, channels_last=built.channels_last, reversed_channels=scale.reversed
        )
        preprocessing = Preprocessing(
            size=built.size,
            resize=int(built.size * _LARGER),
            mean=scale.mean,
            std=scale.std,
            interpolation="bilinear",
        )
        made = Backbone(module, int(built.network.output_shape[-1]), preprocessing)
    return as_backbone(path, made, "a tl.Backbone")


def _fill(network: Any, name: str, weights: Weights) -> None:
    """Load a file by Keras's own rules. Raises `WeightsError` if it can't be read, or doesn't fit."""
    assert weights.path is not None
    with fitting(str(application(name)), weights), _keras().device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Keras, about numpy
        try:
            network.load_weights(weights.path)
        except OSError as error:
            raise WeightsError(f"{weights.label}: can't be read as weights: it is damaged, or no HDF5 file") from error


def _preprocessed(preprocess: Callable[..., Any], image: torch.Tensor) -> torch.Tensor:
    """Return what a family's own preprocessing makes of an image `(3, H, W) uint8`."""
    made = preprocess(image.numpy().astype("float32")[None], data_format="channels_first")
    return torch.tensor(made[0].copy())


class _Shared:
    """Something of Keras that copies of a module share."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class _Graph(nn.Module):
    """A graph of layers of Keras; their names are Keras's."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self._network = _Shared(network)
        self._names: dict[int, str] = {}
        for operation in network.operations:
            if type(operation).__name__ != "InputLayer":
                name = operation.name.replace(".", "_")
                self._names[id(operation)] = name
                self.add_module(name, _module_of(operation))

    def forward(self, inputs: torch.Tensor, mask: None = None) -> torch.Tensor:
        """Run the layers in their order. Keras gives a mask to each sequence of layers, for texts."""
        made: Any = self._network.value._run_through_graph(
            inputs, operation_fn=lambda operation: self._modules[self._names[id(operation)]]
        )
        output: torch.Tensor = made[0] if isinstance(made, list | tuple) else made
        return output


class KerasNetwork(_Graph):
    """A network of Keras as a backbone: `(B, 3, S, S)` → pooled features `(B, width)`.

    Args:
        network: a network of Keras's functional interface, which this module's layers share.
        size: side of its images, in pixels.
        channels_last: True if it was built for images `(B, S, S, 3)`.
        reversed_channels: True if it expects blue first.
    """

    def __init__(self, network: Any, size: int, *, channels_last: bool, reversed_channels: bool) -> None:
        super().__init__(network)
        self.image_size = size
        self._channels_last, self._reversed = channels_last, reversed_channels

    def forward(self, inputs: torch.Tensor, mask: None = None) -> torch.Tensor:
        """Return the features of normalised images."""
        images = inputs.flip(1) if self._reversed else inputs
        images = images.permute(0, 2, 3, 1) if self._channels_last else images
        layout = _data_format(_LAST if self._channels_last else _FIRST)
        with layout, _keras().device(str(images.device)):  # else Keras moves tensors to a GPU if there is one
            return super().forward(images)


def _module_of(operation: Any) -> nn.Module:
    inner = getattr(operation, "_functional", None) or operation  # of a sequence of layers
    if hasattr(inner, "_run_through_graph"):
        return _Graph(inner)
    return _Norm(operation) if "norm" in type(operation).__name__.lower() else _Layer(operation)


class _Layer(nn.Module):
    """A layer of Keras, with tensors of its own and a mode of its own."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self._operation = _Shared(operation)
        self._variables: list[tuple[str, _Shared]] = []
        self._seeds: list[_Shared] = []
        self._has_modes = bool(getattr(operation, "_call_has_training_arg", False))
        for variable in getattr(operation, "variables", []):
            if not str(variable.dtype).startswith(("float", "bfloat")):
                self._seeds += [_Shared(variable)] if "seed" in variable.name else []
                continue
            name = _NAMES.get(variable.name, variable.name).replace(".", "_")
            while hasattr(self, name):
                name += "_"
            if variable.trainable:
                self.register_parameter(name, variable._value)
            else:
                self.register_buffer(name, variable._value.detach().clone())
            self._variables.append((name, _Shared(variable)))

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        """Call the layer with this module's tensors, in this module's mode."""
        for name, variable in self._variables:
            variable.value._value = getattr(self, name)
        if self._has_modes:
            settings["training"] = self.training
            if self.training:
                for seed in self._seeds:  # so that dropout follows torch's seed
                    state = seed.value._value
                    seed.value._value = torch.randint(0, 2**31, state.shape, dtype=state.dtype)
        return self._operation.value(*inputs, **settings)


class _Norm(_Layer):
    """A layer that normalises; regimes know it by this name."""


def _load(name: str) -> object:
    with named(application(name)):
        return _keras()


MAKER = Maker(checkpoint=_checkpoint, make=_make, load=_load)
