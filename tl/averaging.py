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
        self._averages = {
            name: (value, value.clone())
            for name, value in freezing.tensors().items()
            if name in freezing.changing and value.is_floating_point()
        }
        self._decay = decay
        self._shown = False
        self.follow(freezing)
        optimizer.register_step_post_hook(lambda *_: self._update())

    def follow(self, freezing: Freezing) -> None:
        """Average only what this lets train, which is a part of what the first one did.

        What waits for its turn has its average already. Moving it would turn a weight of -0.0 to 0.0.
        """
        pairs = [pair for name, pair in self._averages.items() if name in freezing.changing]
        self._weights, self._average = [weight for weight, _ in pairs], [average for _, average in pairs]

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
