"""Batches of tensors: preprocessing as the weights want it, for training (random crops) and validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from tl.datasets import ImageList
from tl.images import Store, batch_bounds, crops, order
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


class Batches:
    """Batches of one split on one device.

    Images are `(B, 3, S, S) float32`, normalised, channels_last; labels `(B,) int64`.
    """

    def __init__(self, store: Store, images: ImageList, preprocessing: Preprocessing, device: torch.device) -> None:
        self.store = store
        self.images = images
        self.preprocessing = preprocessing
        self.device = device
        self._labels = torch.tensor(images.labels)
        self._sizes = store.sizes(images)
        self._mode = InterpolationMode(preprocessing.interpolation)
        self._mean = torch.tensor(preprocessing.mean, device=device).mul(255).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=device).mul(255).view(1, 3, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def training(
        self, batch_size: int, *, seed: int, epoch: int, mark: Callable[[str], None] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch in random order, each image cropped and flipped at random.

        Order and crops depend on seed, epoch and image alone. `mark` is told when a batch's pixels are ready
        (`data`), and when they are on the device and normalised (`transfer`).
        """
        boxes = crops(self._sizes, seed_for("crops", seed, epoch))
        shuffled = order(len(self), seed_for("order", seed, epoch))
        for start, stop in batch_bounds(len(self), batch_size):
            chosen = shuffled[start:stop]
            pixels = self._stacked([self._augmented(int(i), boxes[i].tolist()) for i in chosen])
            if mark:
                mark("data")
            batch = self._on_device(pixels, torch.from_numpy(chosen))
            if mark:
                mark("transfer")
            yield batch

    def evaluation(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All images in their order, resized and centre-cropped."""
        for start, stop in batch_bounds(len(self), batch_size):
            pixels = self._stacked([self._centred(i) for i in range(start, stop)])
            yield self._on_device(pixels, torch.arange(start, stop))

    def _read(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.store.read(self.images.files[index])).permute(2, 0, 1)

    def _augmented(self, index: int, box: list[int]) -> torch.Tensor:
        top, left, height, width, flipped = box
        size = [self.preprocessing.size] * 2
        image = F.resized_crop(
            self._read(index), top, left, height, width, size, interpolation=self._mode, antialias=True
        )
        return image.flip(-1) if flipped else image

    def _centred(self, index: int) -> torch.Tensor:
        side = self.preprocessing.resize
        shape = [side, side] if self.preprocessing.squash else [side]
        image = F.resize(self._read(index), shape, interpolation=self._mode, antialias=True)
        return F.center_crop(image, [self.preprocessing.size] * 2)

    def _stacked(self, images: list[torch.Tensor]) -> torch.Tensor:
        """`(B, 3, S, S) uint8`, channels_last, on the CPU; in pinned memory where a GPU is to fetch it."""
        size = self.preprocessing.size
        batch = torch.empty((len(images), size, size, 3), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        for row, image in zip(batch, images, strict=True):
            row.copy_(image.permute(1, 2, 0))
        return batch.permute(0, 3, 1, 2)

    def _on_device(self, pixels: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # From pinned memory a copy is queued like any other work: the host needn't wait for the batch before it.
        labels = self._labels[indices]
        if self.device.type == "cuda":
            labels = labels.pin_memory()
        images = pixels.to(self.device, non_blocking=True).float().sub_(self._mean).div_(self._std)
        return images, labels.to(self.device, non_blocking=True)
