"""Says what trains in which epoch, and proves that nothing changed before its turn.

With most regimes the same trains in all epochs. Where parts join one after the other (`Trainable.in_turn`), a training
has periods: stretches of epochs in which the same parts train.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tl.freezing import Freezing, digest


class Unfreezing:
    """Takes a training through its periods.

    Args:
        periods: what trains in each period, in their order. Each period trains what those before it do.
        every: epochs of each period but the last, which has the rest.
        parts: how many parts may join the head. Where epochs are too few for all, there are fewer periods.
    """

    def __init__(self, periods: Sequence[Freezing], every: int, parts: int) -> None:
        self._periods, self._every, self.parts = tuple(periods), every, parts
        self._period: int | None = None
        # What waits for each later period, and what never trains. Frozen parts become fewer, so each waits once.
        waiting = [before.frozen - after.frozen for before, after in pairwise(self._periods)]
        self._waiting = [(names, self._digest(names)) for names in (*waiting, self.whole.frozen)]
        self._checked = 0
        self._unchanged = True

    @property
    def whole(self) -> Freezing:
        """All that trains at some time, and what never does."""
        return self._periods[-1]

    @property
    def now(self) -> Freezing:
        """What trains in the epoch that began last."""
        return self._periods[self._period or 0]

    @property
    def joined(self) -> int:
        """How many parts join the head over all epochs."""
        return len(self._periods) - 1

    def begin(self, epoch: int) -> bool:
        """Begin an epoch, counted from 0, after those before it. Returns True if it is the first of a period.

        What joins is checked to be as it was at the start.
        """
        period = min(epoch // self._every, len(self._periods) - 1)
        if period == self._period:
            return False
        self._check(period)
        self._period = period
        if self.joined:
            self.now.switch_gradients()
        return True

    def verified(self) -> bool | None:
        """Return True if nothing has changed before its turn, bit for bit; None if nothing was ever frozen.

        Call it once, at the end.
        """
        self._check(len(self._waiting))
        return self._unchanged if self._periods[0].frozen else None

    def _check(self, period: int) -> None:
        """Check what waited for the periods up to this one, and was not checked before."""
        for names, before in self._waiting[self._checked : period]:
            self._unchanged &= self._digest(names) == before
        self._checked = max(self._checked, period)

    def _digest(self, names: frozenset[str]) -> str | None:
        return digest(self.whole.model, names) if names else None
