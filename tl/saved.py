"""The files of a saved model: `model.safetensors` has its numbers, and `model.json`, a `ModelCard`, all else.

Nothing in them is code: a model is rebuilt from the names in its card (`tl.model`). This module doesn't import torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AwareDatetime, Field, model_validator

from tl.cache import is_folder, read_bounded, to_json, write_atomic
from tl.config import TrainConfig
from tl.digest import file_digest
from tl.errors import ConfigError, ModelError
from tl.own_code import is_import_path
from tl.sources import SOURCES
from tl.strict import Count, Positive, Strict
from tl.text import shortened
from tl.weights import Weights

FORMAT_VERSION = 1
CARD, TENSORS = "model.json", "model.safetensors"
HOW_TO_LOAD = (
    'In Python: `import tl; model = tl.load_model("FOLDER"); model.predict(["image.jpg"])`. '
    "On the command line: `python -m bench predict FOLDER image.jpg`."
)
_MOST_BYTES = 1 << 26
"""Largest card that is read."""


class SavedHead(Strict):
    """What the head is rebuilt from, beside its tensors."""

    kind: str = Field(description="a key of `tl.head_kinds.KINDS`")
    sizes: dict[str, Count]


class SavedPreprocessing(Strict):
    """How a photograph becomes the network's input; see `tl.batches.Preprocessing`.

    The shorter side becomes `resize` pixels (with `squash` both sides), antialiased; the centre of `size` by `size` is
    cut out; pixels are divided by 255; `mean` is subtracted and the result divided by `std`.
    """

    size: Positive
    resize: Positive
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    squash: bool
    execution: str = Field(
        description="a key of `tl.config.EXECUTIONS`: whether tensors are resized, or Pillow's images"
    )


class TrainedOn(Strict):
    """The images that the model was trained on."""

    dataset: str
    digest: str = Field(description="of the whole data set, as in the run's records")
    images: Positive
    parts: str = Field(description="the splits that they are from, in words")


class Measured(Strict):
    """What a run measured on images that its own training had not seen. This model may have seen them since."""

    run: str
    cell: str
    images: Positive = Field(description="images that the run evaluated")
    values: dict[str, float | int | None] = Field(description="metric → value; None if it is unknown")
    note: str = Field(description="what the values say of this model, in a sentence")


class Exported(Strict):
    """Another file of the same network, and how it was compared with it."""

    kind: str
    file: str
    images: Positive = Field(description="images on which the two were compared")
    largest_difference: float = Field(ge=0, description="of all logits of these images")
    same_classes: Literal[True] = Field(description="an export that predicts another class for an image isn't kept")


class ModelCard(Strict):
    """The content of `model.json`."""

    format_version: Positive = FORMAT_VERSION
    backbone: str = Field(description="its name with its source")
    head: SavedHead
    classes: tuple[str, ...] = Field(min_length=1, description="in the order of the network's outputs")
    preprocessing: SavedPreprocessing
    precision: str = Field(description="the precision in which the model was trained, and predicts where it can")
    memory_format: str = Field(description="layout of its tensors, a key of `tl.devices.LAYOUTS`")
    regime: str
    settings: dict[str, Any] = Field(description="all settings of the training")
    weights: Weights = Field(description="what the training started from")
    trained_on: TrainedOn
    measured: Measured | None
    created: AwareDatetime
    libraries: dict[str, str] = Field(description="package → version")
    tensors_digest: str = Field(description="SHA-256 of `model.safetensors`, in hex")
    tensors_bytes: Positive
    exports: tuple[Exported, ...] = ()
    how_to_load: str = HOW_TO_LOAD

    @model_validator(mode="after")
    def _an_output_for_each_class(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes has a name twice")
        if (outputs := self.head.sizes.get("classes")) != len(self.classes):
            raise ValueError(f"head has {outputs} outputs, and there are {len(self.classes)} classes")
        return self


def read_card(folder: Path) -> ModelCard:
    """Read the card of a model. Raises `ModelError` if it is missing, damaged or of a newer version."""
    path = _place(folder) / CARD
    try:
        text = read_bounded(path, _MOST_BYTES)
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{path}: damaged: it is no JSON: {error}") from error
    except RecursionError as error:
        raise ModelError(f"{path}: damaged: it is nested too deeply") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is not int or version < 1:
        raise ModelError(f"{path}: has no format_version: not written by this suite")
    if version > FORMAT_VERSION:
        raise ModelError(
            f"{path}: version {version} is newer than this suite knows ({FORMAT_VERSION}); update the suite"
        )
    try:
        return ModelCard.from_json(text)
    except ConfigError as error:
        raise ModelError(f"{path}: damaged: {error}") from error


def check_tensors(folder: Path, card: ModelCard) -> Path:
    """Return the path of a model's tensors. Raises `ModelError` if they are not those that were saved with the card."""
    path = folder / TENSORS
    try:
        size = path.stat().st_size
        if path.is_file() and size == card.tensors_bytes and file_digest(path) == card.tensors_digest:
            return path
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: has no {TENSORS}, which {CARD} belongs to") from error
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error
    raise ModelError(f"{path}: damaged: it is not the file that was saved with {CARD} (its digest doesn't match)")


def write_card(folder: Path, card: ModelCard) -> None:
    """Write the card of a model atomically. Raises `OSError`."""
    write_atomic(folder / CARD, to_json(card.model_dump(mode="json")))


def check_unused(folder: Path) -> None:
    """Raise `ModelError` if there is something where a model is to be saved: nothing is ever overwritten."""
    if os.path.lexists(folder):
        raise ModelError(f"{shortened(folder)}: exists already, and is not overwritten; name another folder")


def why_not_saved(config: TrainConfig) -> str:
    """Say why a network of this config can't be saved; empty if it can.

    A model's files have no code, and loading them runs none: a network is rebuilt by its library, from its name.
    """
    advice = "a saved model has no code; keep `tl.train_model(…).model` with torch.save"
    spec = config.spec
    if spec.source in SOURCES and not SOURCES[spec.source].lists:
        return f"backbone={config.backbone!r}: can't be saved, since source {spec.source!r} makes it by code: {advice}"
    if config.task != "classification":
        return f"task={config.task!r}: can't be saved, since a saved model predicts one class for each image"
    if is_import_path(config.head):
        return f"head={config.head!r}: can't be saved, since code makes it: {advice}"
    return ""


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder` at the end of the block, whole or, after an error, not at all.

    Raises `ModelError` if there is something already, or if it can't be written.
    """
    check_unused(folder)
    missing = [parent for parent in folder.parents if not os.path.lexists(parent)]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = folder.parent / f".{folder.name[:50]}-{secrets.token_hex(4)}.tmp"
        scratch.mkdir()
    except OSError as error:
        raise ModelError(f"{shortened(folder)}: can't be written: {error.strerror or error}") from error
    try:
        yield scratch
        check_unused(folder)
        scratch.rename(folder)
    except OSError as error:
        raise ModelError(f"{shortened(folder)}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # they stay where something is in them
            for parent in missing:
                parent.rmdir()


def _place(folder: Path) -> Path:
    """Return the folder. Raises `ModelError` if it is none, or has no card."""
    if folder.name in (CARD, TENSORS) and folder.is_file():
        raise ModelError(f"{shortened(folder)}: is a file of a model; give its folder, {shortened(folder.parent)}")
    if not is_folder(folder):
        what = "is not a folder" if os.path.lexists(folder) else "no such folder"
        raise ModelError(f"{shortened(folder)}: {what}; a model is a folder with {CARD} and {TENSORS}")
    if not os.path.lexists(folder / CARD):
        raise ModelError(f"{shortened(folder)}: has no {CARD}: not a model; `python -m bench train` makes one")
    return folder
