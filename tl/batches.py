"""Batches of image tensors, preprocessed as the weights require: random crops for training, centre crops otherwise."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tl.datasets import ImageList
from tl.images import Store, batch_bounds, crops, mirrors, order
from tl.learning import CLASSIFICATION, Learning
from tl.machine import usable_cores
from tl.seeding import seed_for


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing that the weights were trained with. It comes from the weights' own config, not the architecture."""

    size: int
    """Side of the square input image, in pixels."""
    resize: int
    """Length of the shorter side before validation's centre crop, in pixels."""
    mean: tuple[float, float, float]
    """Mean per channel of pixels in [0, 1]."""
    std: tuple[float, float, float]
    """Standard deviation per channel of pixels in [0, 1]."""
    interpolation: str
    """`bilinear` or `bicubic`; antialiasing is always on."""
    squash: bool = False
    """True if validation resizes to a square and ignores the aspect ratio, as a few timm configs require."""


Indices = npt.NDArray[np.int64]
_RESIDENT_SHARE = 4
"""Pixels are kept on a GPU if they take at most 1/_RESIDENT_SHARE of its free memory."""
_CHUNK_BYTES = 16 << 20
_MOST_WORKERS = 8
_VIEWS_AT_A_TIME = 4
"""Views made at a time when all centre views are kept on the device."""


def resident_pixels(store: Store, device: torch.device) -> torch.Tensor | None:
    """Copy all decoded pixels to a GPU, as `(bytes,) uint8`. Returns None if they don't fit, or for other devices."""
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


def centre_view(image: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Return the view of an image that validation and prediction see: `(3, H, W) uint8` → `(3, S, S) uint8`."""
    side = preprocessing.resize
    shape = [side, side] if preprocessing.squash else [side]
    resized = F.resize(image, shape, interpolation=InterpolationMode(preprocessing.interpolation), antialias=True)
    view: torch.Tensor = F.center_crop(resized, [preprocessing.size] * 2)
    return view


def channel_scale(preprocessing: Preprocessing, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each channel in units of pixels, `(1, 3, 1, 1) float32`."""
    mean, std = (
        torch.tensor(values, device=device).mul(255).view(1, 3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return mean, std


def normalised(pixels: torch.Tensor, scale: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return pixels `(B, 3, S, S) uint8` as the network's input, on the device of `scale`; see `channel_scale`."""
    mean, std = scale
    return torch.sub(pixels.to(mean.device, non_blocking=True), mean).div_(std)


class Batches:
    """Batches of one split on one device.

    Images are `(B, 3, S, S) float32`, normalised, in `memory_format`; labels are rows of `targets`, by default the
    classes of the images, `(B,) int64`. If `resident` holds the decoded pixels of all images, crops are made on the
    device. `learning` says whether images may be cropped, and what becomes of targets when images are mirrored.
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
        targets: torch.Tensor | None = None,
        learning: Learning = CLASSIFICATION,
    ) -> None:
        self.store = store
        self._learning = learning
        self.images = images
        self.preprocessing = preprocessing
        self.device = device
        self._format = memory_format
        self._resident = resident
        self._centred_views: torch.Tensor | None = None
        self._workers = min(_MOST_WORKERS, usable_cores())
        self._waiting: deque[Future[torch.Tensor]] = deque()
        """Batches of the pass that began last which threads load, or have loaded."""
        self.start_seconds = 0.0
        """Seconds for starting and ending worker processes: there are none."""
        self.targets = torch.tensor(images.labels) if targets is None else targets
        self.sizes = store.sizes(images)
        """Height and width of each image, `(N, 2) int64`."""
        self._mode = InterpolationMode(preprocessing.interpolation)
        self._scale = channel_scale(preprocessing, device)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def loaded_ahead(self) -> int:
        """Batches that threads may have loaded before they are taken; 0 if no image must be decoded."""
        return 2 * self._workers + 1 if self.store.pixels is None else 0

    @property
    def least_piece(self) -> int:
        """Batches that threads must load one after the other to show their rate and not their latency."""
        return max(1, 2 * self.loaded_ahead)

    def finish(self) -> None:
        """Wait until threads have nothing left to load before the next batch is taken."""
        wait(self._waiting)

    def rest(self) -> None:
        """Load nothing until a batch is taken."""
        self.finish()

    def resume(self) -> None:
        """Nothing has to go on: threads load when a batch is taken."""

    def part(self, indices: list[int]) -> Batches:
        """Return batches of the images at `indices`."""
        return Batches(
            self.store,
            self.images.subset(indices),
            self.preprocessing,
            self.device,
            memory_format=self._format,
            resident=self._resident,
            targets=self.targets[indices],
            learning=self._learning,
        )

    def keep_centred(self) -> int:
        """Make all centre views now and keep them on the device. Returns their bytes, or 0 if they don't fit.

        Views are made a few at a time, so there is never a second copy of all of them.
        """
        size = self.preprocessing.size
        shape = (len(self), 3, size, size)
        if math.prod(shape) > torch.cuda.mem_get_info(self.device)[0] // _RESIDENT_SHARE:
            return 0
        kept = torch.empty(shape, dtype=torch.uint8, device=self.device, memory_format=self._format)
        for start in range(0, len(self), _VIEWS_AT_A_TIME):
            chosen = np.arange(start, min(start + _VIEWS_AT_A_TIME, len(self)))
            kept[start : start + len(chosen)] = self._centred(chosen)
        self._centred_views = kept
        return kept.nbytes

    def training(
        self, batch_size: int, *, seed: int, epoch: int, mark: Callable[[str], None] | None = None
    ) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield one epoch in random order, each image cropped and flipped at random, or only flipped.

        Order and crops depend only on seed, epoch and image. `mark` is called when a batch's pixels are ready
        (`data`) and when they are on the device and normalised (`transfer`). With resident pixels all is `data`.
        """
        whole, targets = self._learning.whole_images, self.targets
        boxes = (mirrors if whole else crops)(self.sizes, seed_for("crops", seed, epoch))
        shuffled = order(len(self), seed_for("order", seed, epoch))
        if whole:
            flipped = torch.from_numpy(boxes[:, 4] == 1)
            targets = targets.clone()
            targets[flipped] = self._learning.mirrored(targets[flipped])
        labels = self._moved(targets[shuffled])
        bounds = batch_bounds(len(self), batch_size)
        stacks = self._loaded(lambda chosen: self._cropped(chosen, boxes), (shuffled[a:b] for a, b in bounds))
        for (start, stop), pixels in zip(bounds, stacks, strict=True):
            if mark and self._resident is None:
                mark("data")
            images = self._normalised(pixels)
            if mark:
                mark("transfer" if self._resident is None else "data")
            yield images, labels[start:stop]

    def evaluation(self, batch_size: int) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield all images in order, resized and centre-cropped."""
        labels = self._moved(self.targets)
        bounds = batch_bounds(len(self), batch_size)
        kept = self._centred_views
        stacks = (
            self._loaded(self._centred, (np.arange(a, b) for a, b in bounds))
            if kept is None
            else (kept[a:b] for a, b in bounds)
        )
        for (start, stop), pixels in zip(bounds, stacks, strict=True):
            yield self._normalised(pixels), labels[start:stop]

    def views(self, batch_size: int, boxes: Indices) -> Iterator[torch.Tensor]:
        """Yield all images in order, each cropped and flipped by its row of `boxes` (see `tl.images.crops`)."""
        bounds = batch_bounds(len(self), batch_size)
        for pixels in self._loaded(lambda chosen: self._cropped(chosen, boxes), (np.arange(a, b) for a, b in bounds)):
            yield self._normalised(pixels)

    def sample(self, batch_size: int, count: int) -> Iterator[torch.Tensor]:
        """Yield centre views of up to `count` images, spread evenly over the list, so that every class is in it."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))
        for start in range(0, len(chosen), batch_size):
            yield self._normalised(self._centred(chosen[start : start + batch_size]))

    def _loaded(self, load: Callable[[Indices], torch.Tensor], chunks: Iterable[Indices]) -> Iterator[torch.Tensor]:
        """Yield `load(chunk)` for each chunk, in order. Threads load ahead of the reader if images must be decoded."""
        if self.store.pixels is not None:
            yield from map(load, chunks)
            return
        waiting = self._waiting = deque()
        with ThreadPoolExecutor(self._workers) as pool:
            for chunk in chunks:
                waiting.append(pool.submit(load, chunk))
                if len(waiting) >= self.loaded_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _read(self, index: int) -> torch.Tensor:
        """Return one image, `(3, H, W) uint8`: on the device if pixels are resident, else on the CPU."""
        file = self.images.files[index]
        if self._resident is None:
            return torch.from_numpy(self.store.read(file)).permute(2, 0, 1)
        height, width, offset = self.store.files[file]
        return self._resident[offset : offset + height * width * 3].view(height, width, 3).permute(2, 0, 1)

    def _cropped(self, chosen: Indices, boxes: Indices) -> torch.Tensor:
        """Return a stack of crops, each made by the image's row of `boxes`."""
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
        """Return a stack of centre views."""
        return self._stacked([centre_view(self._read(index), self.preprocessing) for index in chosen.tolist()])

    def _stacked(self, images: list[torch.Tensor]) -> torch.Tensor:
        """Stack images into `(B, 3, S, S) uint8` on their device; in pinned memory if a GPU will copy the stack."""
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
        return normalised(pixels, self._scale)

    def _moved(self, labels: torch.Tensor) -> torch.Tensor:
        # A copy from pinned memory is queued like other work, so the host needn't wait for the previous batch.
        if self.device.type == "cuda":
            labels = labels.pin_memory()
        return labels.to(self.device, non_blocking=True)
