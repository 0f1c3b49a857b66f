"""Runs a frozen backbone on several batches at once, ahead of the steps that train its head.

A frozen backbone's features don't depend on the head. So the features of the next few batches can come from one forward
pass, and the head's steps follow one by one, on the same batches in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from tl.batches import Batches
from tl.features import images_at_once

Batch = tuple[torch.Tensor, torch.Tensor]


class Ahead:
    """Batches of features, `(B, width) float32`, with labels `(B,) int64`; used like the `Batches` of their images.

    The first training batch of all comes as images: its step counts the work of the whole network.

    Args:
        images: batches of one split.
        forward: maps images `(B, 3, S, S)` to features; it runs without gradients.
        count: number of batches per forward pass.
    """

    def __init__(self, images: Batches, forward: Callable[[torch.Tensor], torch.Tensor], count: int) -> None:
        self._images, self._forward, self.count = images, forward, count
        self._begun = False

    def __len__(self) -> int:
        return len(self._images)

    @property
    def loaded_ahead(self) -> int:
        """See `Batches.loaded_ahead`."""
        return self._images.loaded_ahead

    @property
    def least_piece(self) -> int:
        """See `Batches.least_piece`."""
        return self._images.least_piece

    @property
    def start_seconds(self) -> float:
        """See `Batches.start_seconds`."""
        return self._images.start_seconds

    def finish(self) -> None:
        """See `Batches.finish`."""
        self._images.finish()

    def rest(self) -> None:
        """See `Batches.rest`."""
        self._images.rest()

    def resume(self) -> None:
        """See `Batches.resume`."""
        self._images.resume()

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the features of what the batches have: features already, or the first batch's images."""
        return inputs if inputs.ndim == 2 else self._forward(inputs)

    def training(
        self, batch_size: int, *, seed: int, epoch: int, mark: Callable[[str], None] | None = None
    ) -> Generator[Batch]:
        """Yield one epoch, in the order of `Batches.training`. `mark` is also called at the end of `forward`."""
        with closing(self._images.training(batch_size, seed=seed, epoch=epoch, mark=mark)) as batches:
            if not self._begun:
                self._begun = True
                yield next(batches)
            yield from self._computed(batches, mark)

    def evaluation(self, batch_size: int) -> Generator[Batch]:
        """Yield all images' features in order."""
        with closing(self._images.evaluation(batch_size)) as batches:
            yield from self._computed(batches, None)

    def _computed(self, batches: Iterator[Batch], mark: Callable[[str], None] | None) -> Iterator[Batch]:
        while found := self._group(batches):
            features, truths = found
            if mark:
                mark("forward")
            yield from zip(features.split([len(labels) for labels in truths]), truths, strict=True)

    def _group(self, batches: Iterator[Batch]) -> tuple[torch.Tensor, list[torch.Tensor]] | None:
        """Return the features of the next batches, together, and the labels of each; None if no batch is left.

        Their images are free again when it returns.
        """
        group = list(islice(batches, self.count))
        if not group:
            return None
        truths, images = [labels for _, labels in group], torch.cat([images for images, _ in group])
        del group
        with torch.no_grad():
            return self._forward(images), truths


def batches_ahead(network: nn.Module, images: torch.Tensor, batch_size: int) -> int:
    """Choose how many batches a forward pass may have without needing the memory of a training step.

    A step that trains the network keeps the outputs of all its modules for one batch. A forward pass needs only those
    that are alive at a time, but for several batches. `images` is an example batch `(N, 3, S, S)`.
    """
    kept = most_alive = 0

    def called(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        nonlocal kept, most_alive
        if any(True for _ in module.children()) or not isinstance(output, torch.Tensor):
            return
        inputs = sum(each.nbytes for each in given if isinstance(each, torch.Tensor))
        in_place = any(each is output for each in given)
        kept += 0 if in_place else output.nbytes
        # A residual connection may keep a third tensor, as large as the output.
        most_alive = max(most_alive, images.nbytes + inputs + 2 * output.nbytes)

    hook = register_module_forward_hook(called)
    try:
        with torch.no_grad():
            network(images)
    finally:
        hook.remove()
    by_memory = kept // most_alive if most_alive else 1
    by_images = images_at_once(images.device) // batch_size
    return max(1, min(by_memory, by_images))
