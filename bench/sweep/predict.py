"""Predicts the classes of photographs with a saved model: finds the images, and counts what is right."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.execution.base import Executor
from bench.execution.model_jobs import PREDICT, PredictJob
from bench.sweep.plan import find_images
from tl.cache import is_folder
from tl.datasets import DATASETS, IMAGE_SUFFIXES
from tl.errors import UserError
from tl.findings import LeftOut, Tally
from tl.listing import list_images
from tl.machine import usable_cores
from tl.saved import ModelCard, check_tensors, read_card
from tl.text import shortened


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """An image to be predicted."""

    path: Path
    label: str | None
    """Its true class, if the folder that it is in has the name of one."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """An image with what the model says of it, or why it couldn't be read."""

    photograph: Photograph
    probabilities: tuple[float, ...]
    """Of each class, in the model's order; empty if the image couldn't be read."""
    reason: str = ""

    @property
    def best(self) -> int:
        """Index of the predicted class."""
        return self.probabilities.index(max(self.probabilities))


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions of some images by a model."""

    folder: Path
    card: ModelCard
    all: tuple[Predicted, ...]
    same_data: bool | None
    """True if they are of the data set that the model was trained on, False if of others; None if that is unknown, as
    of single files."""
    left_out: tuple[LeftOut, ...]
    """What lies in the given folders and is probably an image that isn't read, by reason."""

    @property
    def readable(self) -> list[Predicted]:
        """Images with a prediction."""
        return [one for one in self.all if not one.reason]

    @property
    def unreadable(self) -> list[Predicted]:
        """Images that couldn't be read."""
        return [one for one in self.all if one.reason]

    @property
    def confusion(self) -> list[list[int]] | None:
        """True class → predicted class → images, in the order of the classes. None if no image has a true class."""
        labelled = [one for one in self.readable if one.photograph.label is not None]
        if not labelled:
            return None
        index = {name: number for number, name in enumerate(self.card.classes)}
        counts = [[0] * len(index) for _ in index]
        for one in labelled:
            counts[index[str(one.photograph.label)]][one.best] += 1
        return counts

    @property
    def labelled(self) -> int:
        """Images that were read and have a true class."""
        return sum(map(sum, self.confusion or []))

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions among the images with a true class; None without any."""
        counts = self.confusion
        return None if counts is None else sum(row[i] for i, row in enumerate(counts)) / self.labelled


def predict(
    folder: Path,
    images: Sequence[str],
    executor: Executor,
    *,
    device: str = "auto",
    batch_size: int = 32,
    on_image: Callable[[int], None] = lambda count: None,
) -> Predictions:
    """Predict the classes of images.

    Args:
        folder: the model's folder.
        images: files, folders, which are searched with all that is in them, or names of data sets.
        executor: runs the model.
        device: `cpu`, `cuda[:i]`, `mps` or `auto`.
        batch_size: images per forward pass.
        on_image: called with the number of images so far.

    Raises `UserError` for a model that can't be loaded, and for images that don't exist.
    """
    card = read_card(folder)
    check_tensors(folder, card)
    found, same_data, left_out = _photographs(images, card)
    job = PredictJob(
        folder=folder,
        files=tuple(one.path for one in found),
        device=device,
        batch_size=batch_size,
        threads=usable_cores(),
    )
    said: list[list[float] | str] = []

    def receive(event: list[float] | str) -> None:
        said.append(event)
        on_image(len(said))

    outcome = executor.call(PREDICT, job, on_event=receive)
    if outcome.status != "done":
        raise UserError(f"no predictions: {outcome.reason}")
    return Predictions(
        folder=folder,
        card=card,
        all=tuple(
            Predicted(photograph=one, probabilities=(), reason=event)
            if isinstance(event, str)
            else Predicted(photograph=one, probabilities=tuple(event))
            for one, event in zip(found, said, strict=True)
        ),
        same_data=same_data,
        left_out=left_out,
    )


def _photographs(given: Sequence[str], card: ModelCard) -> tuple[list[Photograph], bool | None, tuple[LeftOut, ...]]:
    """Find the images, each once; say whether the model was trained on their data set, and what was left out."""
    missing = [name for name in given if name not in DATASETS and not os.path.lexists(name)]
    if missing:
        which = (
            f"{shortened(missing[0])}: no such file or folder, and no data set has that name ({', '.join(DATASETS)})"
        )
        raise UserError(f"{which}; {len(missing) - 1} more are missing" if len(missing) > 1 else which)
    found: dict[Path, Photograph] = {}
    digests: list[str | None] = []
    """Of the data sets that are given; None for what is none as a whole."""
    tally = Tally()
    for name in given:
        if name in DATASETS and not os.path.lexists(name):
            splits = find_images(name, download=True)
            digests.append(splits.digest)
            files = (*splits.train.files, *splits.val.files)
            some = list(_labelled(splits.root, [(splits.root / file, Path(file)) for file in files], card))
        elif is_folder(Path(name)):
            digests.append(_digest_of(name))
            some = list(_labelled(Path(name), list(_inside(Path(name), tally)), card))
        else:
            digests.append(None)
            some = [Photograph(path=Path(name), label=None)]
        for one in some:
            found.setdefault(one.path, one)
    same_data = True if card.trained_on.digest in digests else None if None in digests else False
    return list(found.values()), same_data, tuple(each for each in tally.left_out if each.serious)


def _digest_of(folder: str) -> str | None:
    """The digest of a folder as a data set; None if it is none."""
    try:
        return find_images(folder, download=False).digest
    except UserError:
        return None


def _inside(folder: Path, tally: Tally) -> Iterator[tuple[Path, Path]]:
    """Yield the path of each image in a folder and all its subfolders, and the same relative to the folder."""
    real, inside, given = os.path.realpath(folder), Tally(), os.fspath(folder)
    files = list_images(real, given, (real,), inside, IMAGE_SUFFIXES)
    if not files:
        why = "; ".join(map(str, inside.left_out)) or "the folder is empty"
        raise UserError(f"{shortened(folder)}: no images in it: {why}")
    tally.merge(inside)
    for file in files:
        yield Path(file), Path(file).relative_to(folder)


def _labelled(folder: Path, files: list[tuple[Path, Path]], card: ModelCard) -> Iterator[Photograph]:
    """Yield the images of a folder with their true classes, if each is in a folder that has the name of one."""
    labels = [next((part for part in inside.parts[:-1] if part in card.classes), None) for _, inside in files]
    if None in labels and folder.name in card.classes:
        labels = [label or folder.name for label in labels]
    known = None not in labels
    for (path, _), label in zip(files, labels, strict=True):
        yield Photograph(path=path, label=label if known else None)
