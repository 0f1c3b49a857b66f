"""An exponential moving average of the weights: it is validated and kept, while training goes on with the weights."""

from __future__ import annotations

import torch

from tl.freezing import Freezing


class AveragedWeights:
    """The moving average of all that a training changes, statistics of BatchNorm too. It begins with what there is.

    Each step of the optimiser moves it towards the weights by 1 - `decay` of the distance. It takes the weights' place
    in the network itself, so whatever reads the network, such as a CUDA graph, sees it. Integers, such as counts of
    batches, are not averaged.
    """

    def __init__(self, freezing: Freezing, optimizer: torch.optim.Optimizer, decay: float) -> None:
        tensors = (value for name, value in freezing.tensors().items() if name in freezing.changing)
        self._weights = [value for value in tensors if value.is_floating_point()]
        self._average = [value.clone() for value in self._weights]
        self._decay = decay
        self._shown = False
        optimizer.register_step_post_hook(lambda *_: self._update())

    def show(self) -> None:
        """Put the average in the network's place of the weights, which are kept."""
        self._exchange(True)

    def hide(self) -> None:
        """Put the weights back, to train on."""
        self._exchange(False)

    @torch.no_grad()
    def _update(self) -> None:
        torch._foreach_lerp_(self._average, self._weights, 1 - self._decay)

    @torch.no_grad()
    def _exchange(self, shown: bool) -> None:
        if shown is self._shown:
            return
        self._shown = shown
        for one, other in zip(self._weights, self._average, strict=True):
            before = one.clone()
            one.copy_(other)
            other.copy_(before)
