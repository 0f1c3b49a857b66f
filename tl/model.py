"""Trained models in files: saves one, loads it without code and without pretrained weights, and predicts with it.

    path = tl.save_model(result, splits, "models/bees")
    model = tl.load_model(path)
    model.predict(["photo.jpg"])

A network is rebuilt by its library from its name, and gets its tensors from the file. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tl import devices
from tl.backbones import Classifier, make_backbone
from tl.batches import Preprocessing, centre_view, channel_scale, normalised
from tl.calls import Place, checked
from tl.datasets import Splits
from tl.decoding import Pixels, decode, decode_or_say_why, to_rgb
from tl.devices import LAYOUTS
from tl.digest import file_digest
from tl.errors import ConfigError, ModelError, NotApplicable, not_one_of
from tl.head_kinds import rebuilt_head, saved_head
from tl.images import batch_bounds
from tl.machine import usable_cores
from tl.plain import validation_transform
from tl.precision import autocast, check_precision, single_precision
from tl.results import TrainResult
from tl.saved import (
    TENSORS,
    Measured,
    ModelCard,
    SavedPreprocessing,
    TrainedOn,
    check_tensors,
    check_unused,
    new_folder,
    read_card,
    why_not_saved,
    write_card,
)
from tl.sources import SOURCES, package_version
from tl.specs import Spec
from tl.tensors import read_tensors, write_tensors
from tl.weights import Weights

BATCH_SIZE = 32
"""Images per forward pass where nothing else is said."""
Given = str | Path | Image.Image | Pixels
"""An image: the path of a file, an image of Pillow, or pixels `(H, W, 3) uint8`."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of an image."""

    label: int
    """Index of the predicted class."""
    name: str
    """The predicted class."""
    confidence: float
    """Softmax probability of that class."""
    probabilities: dict[str, float]
    """Class → its probability."""


class Model:
    """A trained classifier from a folder, in eval mode. `load_model` makes it."""

    def __init__(self, network: Classifier, card: ModelCard, device: torch.device) -> None:
        self.network = network
        self.card = card
        self.device = device
        self.precision = _precision(card.precision, device)
        """That of the training, or `fp32` where this device doesn't support it."""
        kept = card.preprocessing
        self.preprocessing = Preprocessing(
            **{name: getattr(kept, name) for name in SavedPreprocessing.model_fields if name != "execution"}
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.card.classes

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of prepared images `(B, 3, S, S) float32`, in `float32`."""
        with torch.inference_mode(), single_precision("fp32"):
            logits: torch.Tensor = self.network(images)
            return logits

    def predict(self, images: Given | Iterable[Given], *, batch_size: int = BATCH_SIZE) -> list[Prediction]:
        """Predict the class of each image, prepared as in validation.

        Raises `DataError` for a file that can't be decoded, and `ConfigError` for what is no image.
        """
        several = [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else list(images)
        found: list[Prediction] = []
        for start, stop in _bounds(len(several), batch_size):
            found += self._of_batch(self.prepare(several[start:stop]))
        return found

    def predict_files(
        self, files: Sequence[Path], *, batch_size: int = BATCH_SIZE
    ) -> Iterator[tuple[Path, Prediction | str]]:
        """Yield each file with its prediction, or with the reason why it can't be decoded, in the order of `files`.

        Memory doesn't grow with the number of files.
        """
        for start, stop in _bounds(len(files), batch_size):
            with ThreadPoolExecutor(usable_cores()) as pool:
                views = list(pool.map(self._view_or_say_why, files[start:stop]))
            readable = [view for view in views if isinstance(view, torch.Tensor)]
            found = iter(self._of_batch(self._batch(readable)) if readable else [])
            for file, view in zip(files[start:stop], views, strict=True):
                yield file, view if isinstance(view, str) else next(found)

    def prepare(self, images: Iterable[Given]) -> torch.Tensor:
        """Return images of any sizes as a batch `(B, 3, S, S) float32` for `__call__`, on the model's device."""
        with ThreadPoolExecutor(usable_cores()) as pool:  # a thread keeps one image at a time, and then its view
            return self._batch(list(pool.map(lambda image: self._view(_pixels(image)), images)))

    def _view(self, pixels: Pixels) -> torch.Tensor:
        return VIEWS[self.card.preprocessing.execution](pixels, self.preprocessing)

    def _view_or_say_why(self, file: Path) -> torch.Tensor | str:
        pixels = decode_or_say_why(file)
        return pixels if isinstance(pixels, str) else self._view(pixels)

    def _batch(self, views: list[torch.Tensor]) -> torch.Tensor:
        layout, size = LAYOUTS[self.card.memory_format], self.preprocessing.size
        batch = torch.empty((len(views), 3, size, size), dtype=views[0].dtype, memory_format=layout)
        for row, view in zip(batch, views, strict=True):
            row.copy_(view)
        if batch.dtype == torch.uint8:
            return normalised(batch, channel_scale(self.preprocessing, self.device))
        return batch.to(self.device)

    def _of_batch(self, images: torch.Tensor) -> list[Prediction]:
        with torch.inference_mode(), single_precision(self.precision), autocast(self.precision, self.device):
            logits: torch.Tensor = self.network(images)
        shares = logits.float().softmax(1)
        confidences, labels = shares.max(1)
        rows = zip(shares.tolist(), labels.tolist(), confidences.tolist(), strict=True)
        return [
            Prediction(
                label=label,
                name=self.classes[label],
                confidence=confidence,
                probabilities=dict(zip(self.classes, row, strict=True)),
            )
            for row, label, confidence in rows
        ]


def _bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: at least 1 image is needed")
    return batch_bounds(count, batch_size) if count else []


@checked
def load_model(path: Place, *, device: str = "auto") -> Model:
    """Load a trained model from its folder.

    Args:
        path: the folder, with `model.safetensors` and `model.json`.
        device: `cpu`, `cuda[:i]`, `mps` or `auto`.

    Nothing is downloaded, and no code is in the files. Raises `ModelError` if one is missing, damaged or of a newer
    version, `ConfigError` if the installed libraries don't have the network, and `DeviceError`.
    """
    folder, target = Path(path), devices.resolve(device)
    card = read_card(folder)
    tensors = read_tensors(check_tensors(folder, card))
    for field, value, known in (
        ("memory_format", card.memory_format, LAYOUTS),
        ("preprocessing.execution", card.preprocessing.execution, VIEWS),
    ):
        if value not in known:
            raise ModelError(f"{folder}: {not_one_of(field, value, known)}")
    if (source := Spec.parse(card.backbone).source) in SOURCES and not SOURCES[source].lists:
        raise ModelError(f"{folder}: its backbone {card.backbone!r} is made by code, and loading a model runs none")
    backbone = make_backbone(card.backbone, weights=Weights(kind="random", source="random"))
    parts: dict[str, dict[str, torch.Tensor]] = {"backbone": {}, "head": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ModelError(f"{folder / TENSORS}: its tensor {name!r} is neither the backbone's nor the head's")
        parts[part][rest] = tensor
    try:
        head = rebuilt_head(card.head, parts["head"])
        backbone.module.load_state_dict(parts["backbone"], strict=True)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    except RuntimeError as error:
        if "memory" in str(error):
            raise
        why = " ".join(str(error).split())
        raise ModelError(f"{folder}: its tensors don't fit {card.backbone}: {why}") from error
    network = Classifier.of(backbone, head).requires_grad_(False).eval()
    network.to(device=target, memory_format=LAYOUTS[card.memory_format])  # type: ignore[call-overload]
    return Model(network, card, target)


@checked
def save_model(result: TrainResult, splits: Splits, path: Place) -> Path:
    """Save the network of a result into a new folder, and return the folder.

    `splits` are those that it was trained on. Raises `ModelError` if there is something at `path` already, or if the
    network can't be saved, such as an int8 one or that of protocol `kfold`, which has none.
    """
    folder = Path(path)
    check_unused(folder)
    if result.model is None:
        raise ModelError("the result has no network: protocol 'kfold' trains several, and records keep none")
    measured = Measured(
        run="",
        cell="",
        images=len(splits.val),
        values={"val_accuracy_best": result.val_accuracy_best},
        note="Measured with this model on the validation images, which it was not trained on.",
    )
    with new_folder(folder) as made:
        write_model(made, result, trained_on(splits, "train"), measured)
    return folder


def trained_on(splits: Splits, parts: str) -> TrainedOn:
    """Return what a card says of the training images of `splits`; `parts` are the data set's splits they are from."""
    return TrainedOn(dataset=splits.name, digest=splits.digest, images=len(splits.train), parts=parts)


def write_model(folder: Path, result: TrainResult, images: TrainedOn, measured: Measured | None) -> ModelCard:
    """Write the files of a result's network into an existing folder. Raises `ModelError` if it can't be saved."""
    config, network = result.config, result.model
    if config.protocol == "kfold" or not isinstance(network, Classifier):
        raise ModelError("the result has no network")
    if why := why_not_saved(config):
        raise ModelError(why)
    head = saved_head(network.head)
    write_tensors(network, folder / TENSORS)
    card = ModelCard(
        backbone=_published_name(network.spec, result.weights),
        head=head,
        classes=result.classes,
        preprocessing=_saved(network.preprocessing, config.execution),
        precision=result.precision or config.precision,
        memory_format=result.memory_format,
        regime=config.regime,
        settings=config.model_dump(mode="json"),
        weights=result.weights,
        trained_on=images,
        measured=measured,
        created=datetime.now(UTC),
        libraries=_versions(Spec.parse(network.spec)),
        tensors_digest=file_digest(folder / TENSORS),
        tensors_bytes=(folder / TENSORS).stat().st_size,
    )
    write_card(folder, card)
    return card


def _saved(preprocessing: Preprocessing, execution: str) -> SavedPreprocessing:
    fields = {name: getattr(preprocessing, name) for name in SavedPreprocessing.model_fields if name != "execution"}
    return SavedPreprocessing(**fields, execution=execution)


def _published_name(spec: str, weights: Weights) -> str:
    """Return a backbone's name with the tag of its weights, if they have one that the name doesn't stand for.

    The tag may decide what the network is: some weights are for larger images.
    """
    found = Spec.parse(spec)
    return str(Spec(found.source, f"{found.architecture}.{weights.tag}")) if weights.tag else spec


def _versions(spec: Spec) -> dict[str, str]:
    names = ("tl-bench", "torch", "torchvision", "timm", "safetensors")
    return {name: package_version(name) for name in names} | SOURCES[spec.source].versions


def _precision(wanted: str, device: torch.device) -> str:
    try:
        check_precision(wanted, device)
    except NotApplicable:
        return "fp32"
    return wanted


def _pixels(image: Given) -> Pixels:
    """Return the pixels of an image, `(H, W, 3) uint8`."""
    if isinstance(image, str | Path):
        return decode(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"an array {image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ConfigError(f"images: {what}: give paths, images of Pillow, or arrays (H, W, 3) uint8")
    return image


def _as_in_fast(pixels: Pixels, preprocessing: Preprocessing) -> torch.Tensor:
    return centre_view(torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1), preprocessing)


def _as_in_plain(pixels: Pixels, preprocessing: Preprocessing) -> torch.Tensor:
    return validation_transform(preprocessing)(Image.fromarray(pixels))


VIEWS: dict[str, Callable[[Pixels, Preprocessing], torch.Tensor]] = {"fast": _as_in_fast, "plain": _as_in_plain}
"""How validation of each execution of `tl.config.EXECUTIONS` sees an image: `(3, S, S)`, pixels or normalised."""
