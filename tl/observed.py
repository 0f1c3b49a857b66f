"""What a preprocessing of another library does to pixels, observed on made-up images.

Libraries name its parts differently and have defaults for what a file of settings leaves out; what comes out of a few
images says what all of that means together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

_SIDE = 64
"""Side of the images that show what happens to a colour, in pixels."""
_NOTHING = 1e-6
"""Change of an output channel, relative to the largest, that is no change."""


@dataclass(frozen=True)
class Scale:
    """What happens to colours: the network gets `(value - mean) / std` of each channel, with values in [0, 1]."""

    mean: tuple[float, float, float]
    """Of red, green and blue, in this order."""
    std: tuple[float, float, float]
    reversed: bool
    """True if the network gets channels in the order blue, green, red."""


def scale_of(process: Callable[[torch.Tensor], torch.Tensor]) -> Scale | None:
    """Find out what a preprocessing does to colours; None if it does more than to scale and to reverse channels.

    `process` maps an image `(3, H, W) uint8` to `(3, S, S)` floats.
    """

    def colour(*channels: int) -> torch.Tensor:
        image = torch.zeros(3, _SIDE, _SIDE, dtype=torch.uint8)
        image[list(channels)] = 255
        made = process(image).double()
        middle: tuple[slice | int, ...] = (slice(None), *(side // 2 for side in made.shape[1:]))
        return made[middle]

    black = colour()
    changes = torch.stack([colour(channel) - black for channel in range(3)])  # (input channel, output channel)
    if changes.shape != (3, 3) or not changes.isfinite().all():
        return None
    depends = changes.abs() > _NOTHING * changes.abs().max()
    upright, mirrored = torch.eye(3, dtype=torch.bool), torch.eye(3, dtype=torch.bool).flip(1)
    if not (torch.equal(depends, upright) or torch.equal(depends, mirrored)):
        return None
    flipped = torch.equal(depends, mirrored)
    slopes = changes[depends]  # by input channel
    offsets = black.flip(0) if flipped else black
    mean, std = (-offsets / slopes).tolist(), (1 / slopes).tolist()
    # Six digits of a quotient are right in single precision, so settings such as 0.485 come out as they were.
    return Scale(_rounded(mean), _rounded(std), flipped)


def _rounded(values: list[float]) -> tuple[float, float, float]:
    one, two, three = (float(f"{value:.6g}") + 0.0 for value in values)
    return one, two, three
