"""Finds trainings that ended too early: their accuracy was still rising at the last epoch."""

from __future__ import annotations

import math

from bench.analysis.groups import Group
from tl.results import TrainResult

FEWEST_EPOCHS = 3
"""With fewer epochs nothing can be said of how an accuracy develops."""
FALL = 0.01
"""Share by which the validation loss must have fallen in the last epoch; less could be rounding or chance."""
FACTOR = 2
"""How many times as many epochs are suggested."""


def still_rising(group: Group) -> bool:
    """True if more epochs would probably have given a higher accuracy, in more than half of the seeds.

    A learning rate that falls to 0 flattens every curve, so the absence of this sign is no proof of the opposite.
    """
    if group.accuracy is None:
        return False
    rising = [_rising(result) for result in group.results]
    return 2 * sum(rising) > len(rising)


def epochs_to_try(group: Group) -> int:
    """The number of epochs to try if the accuracy was still rising."""
    return FACTOR * group.config.epochs


def _rising(result: TrainResult) -> bool:
    """True if the last epoch has clearly the lowest validation loss, and the best accuracy came in the last third.

    Without validation losses, as with task `detection`, nothing can be said.
    """
    rows = result.epochs
    losses = [row.val_loss for row in rows if row.train_loss is not None and row.val_loss is not None]
    if len(rows) < FEWEST_EPOCHS or len(losses) < len(rows):
        return False
    accuracies = [row.val_accuracy for row in rows]
    late = accuracies.index(max(accuracies)) >= len(rows) - math.ceil(len(rows) / 3)
    return late and losses[-1] < (1 - FALL) * min(losses[:-1])
