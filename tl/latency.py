"""Measures what a trained network costs in use: seconds for one image, images per second, and bytes of its file.

Passes of one image and of many take turns, so that a machine that becomes slower or faster meanwhile does so for both.
"""

from __future__ import annotations

import time

import torch

from tl.backbones import Classifier
from tl.clock import synchronize
from tl.devices import LAYOUTS
from tl.machine import without_garbage_collection
from tl.precision import single_precision
from tl.results import InferenceCost
from tl.step import Evaluation
from tl.tensors import file_bytes

BATCH_SIZE = 32
"""Images of the larger batch."""
SINGLES = 4
"""Passes of one image for each of a batch, since they are short."""
LEAST, MOST, SECONDS = 5, 25, 2.0
"""Fewest and most rounds, and the seconds after which no further one begins. A round is a batch and `SINGLES`."""
_WARM_UP = 2


def inference_cost(model: Classifier, size: int, precision: str, device: torch.device, layout: str) -> InferenceCost:
    """Measure a trained network.

    Args:
        model: the network, on its device and in its layout. It is in eval mode afterwards.
        size: side of its input images, in pixels.
        precision: the one in which it runs, a key of `tl.config.PRECISIONS` but not `auto`.
        device: its device.
        layout: that of its inputs, a key of `LAYOUTS`.
    """
    begun = time.perf_counter()
    evaluation = Evaluation(model.eval(), model.backbone, precision, device)
    one, several = (_noise(count, size, device, layout) for count in (1, BATCH_SIZE))

    def seconds(images: torch.Tensor) -> float:
        synchronize(device)
        started = time.perf_counter()
        evaluation.run(images)
        synchronize(device)
        return time.perf_counter() - started

    latency: list[float] = []
    batch: list[float] = []
    with single_precision(precision), without_garbage_collection():
        for _ in range(_WARM_UP):
            seconds(several)
            seconds(one)
        started = time.perf_counter()
        while len(batch) < LEAST or (len(batch) < MOST and time.perf_counter() - started < SECONDS):
            batch.append(seconds(several))
            latency += [seconds(one) for _ in range(SINGLES)]
    return InferenceCost(
        latency_seconds=tuple(latency),
        batch_size=BATCH_SIZE,
        batch_seconds=tuple(batch),
        model_bytes=file_bytes(model),
        seconds=time.perf_counter() - begun,
    )


def _noise(count: int, size: int, device: torch.device, layout: str) -> torch.Tensor:
    made_up = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return made_up.to(device=device, memory_format=LAYOUTS[layout])
