"""Features of images, extracted once and kept in the cache: what regime `cached` trains its head on.

A frozen backbone gives the same features of the same view each time, so a forward pass an epoch buys nothing but
new crops. Kept features belong to a backbone with its weights, a view, a precision and the kind of device that made
them; other seeds, learning rates and runs use them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tl.batches import Batches
from tl.cache import cache_dir, write_atomic
from tl.images import batch_bounds, crops, order
from tl.seeding import seed_for

FEATURES_VERSION = 1
EXTRACTION_BATCH = {"cpu": 16, "cuda": 64}
"""Images a forward pass of the extraction."""
Table = dict[str, npt.NDArray[np.float32]]
"""File → its features, `(width,)`."""
CENTRE = -1
"""The number of the centre view; crops are counted from 0."""


class Features:
    """Batches of one split's features, `(B, width) float32`, with labels `(B,) int64`; used as `tl.batches.Batches`.

    Args:
        views: `(V, N, width)`; each epoch trains on the next.
        labels: `(N,)`.
    """

    def __init__(self, views: torch.Tensor, labels: torch.Tensor) -> None:
        self._views, self._labels = views, labels
        self.device = views.device

    def __len__(self) -> int:
        return len(self._labels)

    def training(
        self, batch_size: int, *, seed: int, epoch: int, mark: Callable[[str], None] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch, in the order in which `Batches.training` has the images."""
        view = self._views[epoch % len(self._views)]
        shuffled = torch.from_numpy(order(len(self), seed_for("order", seed, epoch))).to(self.device)
        features, labels = view[shuffled], self._labels[shuffled]
        for start, stop in batch_bounds(len(self), batch_size):
            if mark:
                mark("data")
            yield features[start:stop], labels[start:stop]

    def evaluation(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All images in their order, at their first view."""
        for start, stop in batch_bounds(len(self), batch_size):
            yield self._views[0, start:stop], self._labels[start:stop]


class Extraction:
    """Extracts features, or reads those that are there.

    Args:
        forward: maps a batch of images to features; runs without gradients.
        identity: what tells these features from others, as JSON; see the module.
    """

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], identity: dict[str, Any]) -> None:
        self._forward = forward
        text = json.dumps([FEATURES_VERSION, identity], sort_keys=True)
        self._folder = cache_dir() / "features" / hashlib.sha256(text.encode()).hexdigest()[:24]
        self._seconds: dict[Path, float] = {}
        self.spent = 0.0
        """What was extracted now took; 0 where all was at hand."""

    @property
    def seconds(self) -> float:
        """What the extraction took of all views that were asked for, when it was done."""
        return sum(self._seconds.values())

    def features(self, batches: Batches, views: int) -> Features:
        """Of one split: the centre view, or `views` random crops of each image."""
        numbers = [CENTRE] if views == 1 else list(range(views))
        stacked = np.stack([self._view(batches, number) for number in numbers])
        labels = torch.tensor(batches.images.labels, device=batches.device)
        return Features(torch.from_numpy(stacked).to(batches.device), labels)

    def _view(self, batches: Batches, number: int) -> npt.NDArray[np.float32]:
        """`(N, width)`, in the order of the images."""
        place = self._folder / ("centre.npz" if number == CENTRE else f"crops-{number}.npz")
        table, seconds = _read(place)
        files = batches.images.files
        if missing := [index for index, file in enumerate(files) if file not in table]:
            started = time.perf_counter()
            wanted = batches.part(missing)
            table |= dict(zip(wanted.images.files, self._extract(wanted, number), strict=True))
            spent = time.perf_counter() - started
            seconds, self.spent = seconds + spent, self.spent + spent
            _write(place, table, seconds)
        self._seconds[place] = seconds
        return np.stack([table[file] for file in files])

    def _extract(self, batches: Batches, number: int) -> npt.NDArray[np.float32]:
        size = EXTRACTION_BATCH.get(batches.device.type, 16)
        views = (
            (images for images, _ in batches.evaluation(size))
            if number == CENTRE
            else batches.views(size, _boxes(batches, number))
        )
        with torch.inference_mode():
            return torch.cat([self._forward(images).float() for images in views]).cpu().numpy()


def _boxes(batches: Batches, number: int) -> npt.NDArray[np.int64]:
    """A crop of each image. It follows from the file's name: the same in every part of a data set."""
    files, sizes = batches.images.files, batches.sizes
    return np.concatenate(
        [crops(size[None], seed_for("view", number, file)) for file, size in zip(files, sizes, strict=True)]
    )


def _read(place: Path) -> tuple[Table, float]:
    """Features by file and the seconds they took; nothing where there are none, or the file is not whole."""
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return dict(zip(kept["files"].tolist(), kept["features"], strict=True)), float(kept["seconds"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}, 0.0


def _write(place: Path, table: Table, seconds: float) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, files=np.array(list(table)), features=np.stack(list(table.values())), seconds=seconds)
    with contextlib.suppress(OSError):  # a cache that can't be written is no reason to fail
        write_atomic(place, buffer.getvalue())
