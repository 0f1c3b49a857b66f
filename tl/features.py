"""Features of images, extracted once and cached. Regime `cached` trains its head on them; others fit one (`tl.fits`).

A frozen backbone always gives the same features for the same view, so running it in every epoch gains nothing but new
crops. Cached features are keyed by backbone, weights, images, view, precision and kind of device; trainings with other
seeds or learning rates, and later runs, use them again. A file of features begins with the SHA-256 of its rest, which
is checked whenever the file is read (1.4 GiB/s, so under a millisecond for 400 images). A damaged file is extracted
again, with a `CacheWarning`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tl.batches import Batches
from tl.cache import cache_dir
from tl.images import batch_bounds, crops, order
from tl.progress import EXTRACTING, counted
from tl.sealed import read_or_warn, write_sealed
from tl.seeding import seed_for

FEATURES_VERSION = 2
EVALUATED_AT_ONCE = 4096
"""Features in a validation batch, which need little memory; the batch size is for images, which need much."""
Table = dict[str, npt.NDArray[np.float32]]
"""Features of each file, `(width,)`."""
CENTRE = -1
"""Number of the centre view; random crops are counted from 0."""


def images_at_once(device: torch.device) -> int:
    """Return how many images a forward pass of the extraction has. More gain nothing on a CPU, and need more memory."""
    return 64 if device.type == "cuda" else 16


class Features:
    """Batches of one split's features, `(B, width) float32`, with their labels; used like `tl.batches.Batches`.

    Args:
        views: features of V views of N images, `(V, N, width)`; epoch e trains on view e modulo V.
        labels: targets of the images, `(N, …)`.
    """

    def __init__(self, views: torch.Tensor, labels: torch.Tensor) -> None:
        self._views, self._labels = views, labels
        self.device = views.device

    def __len__(self) -> int:
        return len(self._labels)

    def training(
        self, batch_size: int, *, seed: int, epoch: int, mark: Callable[[str], None] | None = None
    ) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield one epoch, with the images in the order of `Batches.training`."""
        view = self._views[epoch % len(self._views)]
        shuffled = torch.from_numpy(order(len(self), seed_for("order", seed, epoch))).to(self.device)
        features, labels = view[shuffled], self._labels[shuffled]
        for start, stop in batch_bounds(len(self), batch_size):
            if mark:
                mark("data")
            yield features[start:stop], labels[start:stop]

    def training_at_once(
        self, batch_size: int, *, seeds: Sequence[int], epoch: int, mark: Callable[[str], None]
    ) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield one epoch for several heads: features `(heads, B, width)` and labels `(heads, B)`.

        Each head has the batches that `training` yields with its seed.
        """
        view = self._views[epoch % len(self._views)]
        orders = np.stack([order(len(self), seed_for("order", seed, epoch)) for seed in seeds])
        shuffled = torch.from_numpy(orders).to(self.device)
        for start, stop in batch_bounds(len(self), batch_size):
            chosen = shuffled[:, start:stop]
            features, labels = view[chosen], self._labels[chosen]
            mark("data")
            yield features, labels

    @property
    def first_view(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The first view of all images, in order, with their labels."""
        return self._views[0], self._labels

    def evaluation(self, batch_size: int) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the first view of all images, in order; `EVALUATED_AT_ONCE` in a batch, unless `batch_size` is more."""
        for start, stop in batch_bounds(len(self), max(batch_size, EVALUATED_AT_ONCE)):
            yield self._views[0, start:stop], self._labels[start:stop]


class Extraction:
    """Extracts features, or reads them from the cache.

    Args:
        forward: maps a batch of images to features; it runs without gradients.
        identity: all that features depend on except the view, as JSON; it is the key of the cache.
        at_once: images of a forward pass; None for `images_at_once`.
    """

    def __init__(
        self, forward: Callable[[torch.Tensor], torch.Tensor], identity: dict[str, Any], at_once: int | None = None
    ) -> None:
        self._forward, self._at_once = forward, at_once
        text = json.dumps([FEATURES_VERSION, identity], sort_keys=True)
        self._folder = cache_dir() / "features" / hashlib.sha256(text.encode()).hexdigest()[:24]
        self._seconds: dict[Path, float] = {}
        self.spent = 0.0
        """Seconds of extraction by this object; 0 if all features were cached."""

    @property
    def seconds(self) -> float:
        """Seconds that the extraction of all requested views took, whenever it was done."""
        return sum(self._seconds.values())

    def features(self, batches: Batches, views: int) -> Features:
        """Return the features of one split: of the centre view if `views` is 1, else of that many crops per image."""
        numbers = [CENTRE] if views == 1 else list(range(views))
        stacked = np.stack([self._view(batches, number) for number in numbers])
        return Features(torch.from_numpy(stacked).to(batches.device), batches.targets.to(batches.device))

    def _view(self, batches: Batches, number: int) -> npt.NDArray[np.float32]:
        """Return the features of one view, `(N, width)`, in the order of the images."""
        place = self._folder / ("centre.features" if number == CENTRE else f"crops-{number}.features")
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
        size = self._at_once or images_at_once(batches.device)
        views = (
            (images for images, _ in batches.evaluation(size))
            if number == CENTRE
            else batches.views(size, _boxes(batches, number))
        )
        table, stop = torch.empty(0), 0
        with torch.inference_mode():
            for images in counted(views, len(batches), EXTRACTING):
                found, start = self._forward(images), stop
                stop += len(found)
                if not start:
                    table = torch.empty(len(batches), *found.shape[1:], dtype=torch.float32, device=found.device)
                # A copy: features may be a view, as a transformer's first token is of all tokens, and keep all of it.
                table[start:stop] = found
        return table.cpu().numpy()


def _boxes(batches: Batches, number: int) -> npt.NDArray[np.int64]:
    """Return a crop per image. It depends on the file's name, so it is the same in every part of a data set."""
    files, sizes = batches.images.files, batches.sizes
    return np.concatenate(
        [crops(size[None], seed_for("view", number, file)) for file, size in zip(files, sizes, strict=True)]
    )


def _read(place: Path) -> tuple[Table, float]:
    """Read features and the seconds they took; empty if the file is missing, or damaged, which is warned of."""
    content = read_or_warn(place)
    if content is None:
        return {}, 0.0
    with np.load(io.BytesIO(content), allow_pickle=False) as kept:
        return dict(zip(kept["files"].tolist(), kept["features"], strict=True)), float(kept["seconds"])


def _write(place: Path, table: Table, seconds: float) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, files=np.array(list(table)), features=np.stack(list(table.values())), seconds=seconds)
    with contextlib.suppress(OSError):  # without a writable cache, features are only extracted again
        write_sealed(place, buffer.getvalue())
