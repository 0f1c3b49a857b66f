"""Says when a training ends early: when its validation loss has not fallen for a while."""

from __future__ import annotations

from collections.abc import Sequence


def has_ended(val_losses: Sequence[float], patience: int) -> bool:
    """Return whether none of the last `patience` epochs had a lower validation loss than all before them.

    `val_losses` are those of the epochs so far. A patience of 0 ends no training.
    """
    if not patience or len(val_losses) <= patience:
        return False
    return min(val_losses[-patience:]) >= min(val_losses[:-patience])


def epochs_until_end(val_losses: Sequence[float], patience: int, most: int) -> int:
    """Return after how many epochs a training with these validation losses ends, which may have `most`."""
    ends = (count for count in range(1, len(val_losses) + 1) if has_ended(val_losses[:count], patience))
    return next(ends, most)
