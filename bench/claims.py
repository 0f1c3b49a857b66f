"""Claims that a run is held against. A claim is data: a statement, and the region in which it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.stats import Interval

Verdict = Literal["supported", "faster than claimed", "slower than claimed", "inconclusive", "too few samples"]
MIN_SAMPLES = 3
"""Warm epochs on each side below which no verdict is given."""


def can_be_judged(ratio: Interval) -> bool:
    """Whether enough epochs stand behind a ratio to say something of it."""
    return ratio.n >= MIN_SAMPLES


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement about a ratio, and where it comes from."""

    statement: str
    source: str
    low: float
    high: float

    def verdict(self, ratio: Interval) -> Verdict:
        """Supported where the whole interval lies in the region, refuted where none of it does."""
        if not can_be_judged(ratio):
            return "too few samples"
        if self.low <= ratio.low and ratio.high <= self.high:
            return "supported"
        if ratio.low > self.high:
            return "faster than claimed"
        if ratio.high < self.low:
            return "slower than claimed"
        return "inconclusive"


HALF_THE_TIME = Claim(
    statement="Training only the head takes about half the time of fine-tuning",
    source="PyTorch transfer-learning tutorial, on training with a fixed backbone on a CPU",
    low=1.6,
    high=2.5,
)
