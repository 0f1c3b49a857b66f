"""Batches of tensors: preprocessing as the weights want it, for training (random crops) and validation."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tl.datasets import ImageList
from tl.images import Store, batch_bounds, crops, order
from tl.machine import usable_cores
from tl.seeding import seed_for


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What the weights were trained with; taken from their own config, never from the architecture."""

    size: int
    """Side of the square the network sees, pixels."""
    resize: int
    """Length of the shorter side before the centre crop of validation, pixels."""
    mean: tuple[float, float, float]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, float, float]
    interpolation: str
    """`bilinear` or `bicubic`; always with antialiasing."""
    squash: bool = False
    """Validation resizes to a square and ignores the aspect ratio, as a few timm configs ask for."""


Indices = npt.NDArray[np.int64]
_RESIDENT_SHARE = 4
"""Images live on a GPU where they take at most one part in so many of its free memory."""
_CHUNK_BYTES = 16 << 20
_MOST_WORKERS = 8
_FILL = 4
"""Views that are made at a time where all are kept."""


def resident_pixels(store: Store, device: torch.device) -> torch.Tensor | None:
    """All decoded pixels, `(bytes,) uint8`, in the memory of a GPU; None elsewhere, and where they don't fit."""
    if device.type != "cuda" or store.pixels is None:
        return None
    count = store.pixels.stat().st_size
    if count > torch.cuda.mem_get_info(device)[0] // _RESIDENT_SHARE:
        return None
    flat = torch.empty(count, dtype=torch.uint8, device=device)
    for start in range(0, count, _CHUNK_BYTES):
        part = np.fromfile(store.pixels, dtype=np.uint8, count=min(_CHUNK_BYTES, count - start), offset=start)
        flat[start : start + len(part)] = torch.from_numpy(part)
    return flat


class Batches:
    """Batches of one split on one device.

    Images are `(B, 3, S, S) float32`, normalised, in `memory_format`; labels `(B,) int64`. Where `resident` has
    the decoded pixels of all images, crops are made where they lie.
    """

    def __init__(
        self,
        store: Store,
        images: ImageList,
        preprocessing: Preprocessing,
        device: torch.device,
        *,
        memory_format: torch.memory_format = torch.channels_last,
        resident: torch.Tensor | None = None,
    ) -> None:
        self.store = store
        self.images = images
        self.preprocessing = preprocessing
        self.device = device
        self._format = memory_format
        self._resident = resident
        self._centred_views: torch.Tensor | None = None
        self._labels = torch.tensor(images.labels)
        self.sizes = store.sizes(images)
        """Height and width of each image, `(N, 2) int64`."""
        self._mode = InterpolationMode(preprocessing.interpolation)
        self._mean = torch.tensor(preprocessing.mean, device=device).mul(255).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=device).mul(255).view(1, 3, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def part(self, indices: list[int]) -> Batches:
        """Batches of some of the images."""
        files, labels = self.images.files, self.images.labels
        some = replace(self.images, files=tuple(files[i] for i in indices), labels=tuple(labels[i] for i in indices))
        return Batches(
            self.store, some, self.preprocessing, self.device, memory_format=self._format, resident=self._resident
        )

    def keep_centred(self) -> int:
        """Make all centre views now and keep them on the device, where they fit as `resident_pixels` would; bytes.

        Filled batch by batch: at no moment is a view there twice.
        """
        size = self.preprocessing.size
        shape = (len(self), 3, size, size)
        if math.prod(shape) > torch.cuda.mem_get_info(self.device)[0] // _RESIDENT_SHARE:
            return 0
        kept = torch.empty(shape, dtype=torch.uint8, device=self.device, memory_format=self._format)
        for start in range(0, len(self), _FILL):
            chosen = np.arange(start, min(start + _FILL, len(self)))
            kept[start : start + len(chosen)] = self._centred(chosen)
        self._centred_views = kept
        return kept.nbytes

    def training(
        self, batch_size: int, *, seed: int, epoch: int, mark: Callable[[str], None] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch in random order, each image cropped and flipped at random.

        Order and crops depend on seed, epoch and image alone. `mark` is told when a batch's pixels are ready
        (`data`), and when they are on the device and normalised (`transfer`); where they live there, all is `data`.
        """
        boxes = crops(self.sizes, seed_for("crops", seed, epoch))
        shuffled = order(len(self), seed_for("order", seed, epoch))
        labels = self._moved(self._labels[shuffled])
        bounds = batch_bounds(len(self), batch_size)
        stacks = self._ahead(lambda chosen: self._cropped(chosen, boxes), (shuffled[a:b] for a, b in bounds))
        for (start, stop), pixels in zip(bounds, stacks, strict=True):
            if mark and self._resident is None:
                mark("data")
            images = self._normalised(pixels)
            if mark:
                mark("transfer" if self._resident is None else "data")
            yield images, labels[start:stop]

    def evaluation(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All images in their order, resized and centre-cropped."""
        labels = self._moved(self._labels)
        bounds = batch_bounds(len(self), batch_size)
        kept = self._centred_views
        stacks = (
            self._ahead(self._centred, (np.arange(a, b) for a, b in bounds))
            if kept is None
            else (kept[a:b] for a, b in bounds)
        )
        for (start, stop), pixels in zip(bounds, stacks, strict=True):
            yield self._normalised(pixels), labels[start:stop]

    def views(self, batch_size: int, boxes: Indices) -> Iterator[torch.Tensor]:
        """All images in their order, each cropped and flipped as its row of `boxes` says (see `tl.images.crops`)."""
        bounds = batch_bounds(len(self), batch_size)
        for pixels in self._ahead(lambda chosen: self._cropped(chosen, boxes), (np.arange(a, b) for a, b in bounds)):
            yield self._normalised(pixels)

    def sample(self, batch_size: int, count: int) -> Iterator[torch.Tensor]:
        """Centre views of up to `count` images, evenly spaced over all of them, so that each class has its share."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))
        for start in range(0, len(chosen), batch_size):
            yield self._normalised(self._centred(chosen[start : start + batch_size]))

    def _ahead(self, load: Callable[[Indices], torch.Tensor], chunks: Iterable[Indices]) -> Iterator[torch.Tensor]:
        """What `load` makes of each chunk, in order; by threads ahead of the reader where images are to be decoded."""
        if self.store.pixels is not None:
            yield from map(load, chunks)
            return
        workers = min(_MOST_WORKERS, usable_cores())
        waiting: deque[Future[torch.Tensor]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            for chunk in chunks:
                waiting.append(pool.submit(load, chunk))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _read(self, index: int) -> torch.Tensor:
        """`(3, H, W) uint8`, where crops are to be made."""
        file = self.images.files[index]
        if self._resident is None:
            return torch.from_numpy(self.store.read(file)).permute(2, 0, 1)
        height, width, offset = self.store.files[file]
        return self._resident[offset : offset + height * width * 3].view(height, width, 3).permute(2, 0, 1)

    def _cropped(self, chosen: Indices, boxes: Indices) -> torch.Tensor:
        """Stacked crops of images, each by its row of `boxes`."""
        side = [self.preprocessing.size] * 2
        images = []
        for index in chosen.tolist():
            top, left, height, width, flipped = boxes[index].tolist()
            image = F.resized_crop(
                self._read(index), top, left, height, width, side, interpolation=self._mode, antialias=True
            )
            images.append(image.flip(-1) if flipped else image)
        return self._stacked(images)

    def _centred(self, chosen: Indices) -> torch.Tensor:
        """Stacked centre views."""
        side = self.preprocessing.resize
        shape = [side, side] if self.preprocessing.squash else [side]
        images = []
        for index in chosen.tolist():
            image = F.resize(self._read(index), shape, interpolation=self._mode, antialias=True)
            images.append(F.center_crop(image, [self.preprocessing.size] * 2))
        return self._stacked(images)

    def _stacked(self, images: list[torch.Tensor]) -> torch.Tensor:
        """`(B, 3, S, S) uint8`: where the images are, but in pinned memory where a GPU is to fetch it."""
        size, here = self.preprocessing.size, images[0].device
        batch = torch.empty(
            (len(images), 3, size, size),
            dtype=torch.uint8,
            device=here,
            memory_format=self._format,
            pin_memory=here.type == "cpu" and self.device.type == "cuda",
        )
        for row, image in zip(batch, images, strict=True):
            row.copy_(image)
        return batch

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.sub(pixels.to(self.device, non_blocking=True), self._mean).div_(self._std)

    def _moved(self, labels: torch.Tensor) -> torch.Tensor:
        # From pinned memory a copy is queued like any other work: the host needn't wait for the batch before it.
        if self.device.type == "cuda":
            labels = labels.pin_memory()
        return labels.to(self.device, non_blocking=True)
