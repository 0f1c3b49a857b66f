"""What a comparison by process pairs says: the predicted speed-up, and a verdict in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.paired import PairedComparison
from bench.analysis.prediction import SAME, epoch_flops
from bench.analysis.stats import Estimate
from bench.analysis.verdicts import NEGLIGIBLE


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A comparison by process pairs, with what it says."""

    comparison: PairedComparison
    claim: Claim | None
    """The claim about the speed-up of these two regimes; None if there is none."""
    predicted: float | None
    """Speed-up that the counted work predicts; None if the work was not counted."""

    @property
    def verdict(self) -> str | None:
        """Where the 95% interval of the speed-up lies; None without a speed-up.

        With a claim: `supported` inside the claim's region, the claim's own words outside it, else `inconclusive`.
        Without a claim: `faster` or `slower` by more than `NEGLIGIBLE`, else `same` (to within `SAME`), else
        `inconclusive`. Below `MIN_SAMPLES` pairs, with or without a claim: `too few samples`.
        """
        found = self.comparison.speed_up
        if found is None:
            return None
        if found.low is None or found.high is None:
            return "too few samples"
        return _of_claim(self.claim, found.low, found.high) if self.claim else in_words(found.low, found.high)


def look_at(comparison: PairedComparison, claims: Iterable[Claim] = CLAIMS.values()) -> Timed:
    """Find the claim about a comparison, and what its counted work predicts."""
    config, against = comparison.cell.config, comparison.against.config.regime
    about = (
        claim
        for claim in claims
        if claim.metric == "epoch_seconds"
        and claim.against == against
        and claim.is_about(config.regime, config.execution)
    )
    return Timed(comparison=comparison, claim=next(about, None), predicted=_predicted(comparison))


def share_of(speed_up: Estimate) -> tuple[float, float | None, float | None]:
    """The share of the other's time that belongs to a speed-up, with both ends of its interval."""
    low, high = (None if end is None else 1 / end for end in (speed_up.high, speed_up.low))
    return 1 / speed_up.value, low, high


def _predicted(comparison: PairedComparison) -> float | None:
    ours, theirs = comparison.work
    if ours is None or theirs is None:
        return None
    images = comparison.train_images, comparison.val_images
    below = epoch_flops(ours, *images)
    return epoch_flops(theirs, *images) / below if below else None


def _of_claim(claim: Claim, low: float, high: float) -> str:
    least, most = claim.bounds
    if least <= low and high <= most:
        return "supported"
    if low > most:
        return claim.above
    return claim.below if high < least else "inconclusive"


def in_words(low: float, high: float) -> str:
    """What the interval of a speed-up says where there is no claim; see `Timed.verdict`."""
    if low > 1 + NEGLIGIBLE:
        return "faster"
    if high < 1 / (1 + NEGLIGIBLE):
        return "slower"
    return "same" if low > 1 / SAME and high < SAME else "inconclusive"
