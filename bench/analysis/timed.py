"""What a comparison by process pairs says: the predicted speed-up, and a verdict in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.paired import PairedComparison
from bench.analysis.prediction import SAME, epoch_flops
from bench.analysis.verdicts import NEGLIGIBLE, alone
from tl.results import Work


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A comparison by process pairs, with what it says."""

    comparison: PairedComparison
    claim: Claim | None
    """The claim about the speed-up of these two regimes; None if there is none."""
    predicted: float | None
    """Speed-up that the counted work predicts; None if the work was not counted."""
    predicted_training: float | None = None
    """The same for training alone, without validation."""

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
        return in_words(found.low, found.high) if self.claim is None else alone(self.claim, found)

    @property
    def explanation(self) -> str | None:
        """Why the measured speed-up isn't the predicted one, in a sentence; None if it is, or without a prediction.

        Predictions assume one rate for all work, so the rates explain the difference.
        """
        found = self.comparison
        if found.speed_up is None or self.predicted is None or 1 / SAME < found.speed_up.value / self.predicted < SAME:
            return None
        (ours, trained), (theirs, against_trained) = _rates(self.comparison)
        if None in (ours, theirs, trained, against_trained):
            return None
        validation = (
            "validation (with the start of its workers)" if found.cell.config.execution == "plain" else "validation"
        )
        regime, against = found.cell.config.regime, found.against.config.regime
        return (
            f"The measured {found.speed_up.value:.2f}× isn't the predicted {self.predicted:.2f}×, because not all work "
            f"runs at one rate: training of {against} runs at {against_trained:,.0f} GFLOP/s and of {regime} at "
            f"{trained:,.0f}, {validation} at {theirs:,.0f} and {ours:,.0f}."
        )


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
    return Timed(
        comparison=comparison,
        claim=next(about, None),
        predicted=_predicted(comparison, comparison.train_images, comparison.val_images),
        predicted_training=_predicted(comparison, comparison.train_images, 0),
    )


def _predicted(comparison: PairedComparison, train_images: int, val_images: int) -> float | None:
    ours, theirs = comparison.work
    if ours is None or theirs is None:
        return None
    below = epoch_flops(ours, train_images, val_images)
    return epoch_flops(theirs, train_images, val_images) / below if below else None


def _rates(comparison: PairedComparison) -> list[tuple[float | None, float | None]]:
    """GFLOP/s of validation and of training, of this cell and of the other; None if unknown."""
    sides = zip(
        comparison.work,
        (comparison.seconds, comparison.against_seconds),
        (comparison.train_seconds, comparison.against_train_seconds),
        strict=True,
    )
    return [_side_rates(comparison, *side) for side in sides]


def _side_rates(
    comparison: PairedComparison, work: Work | None, seconds: float | None, training: float | None
) -> tuple[float | None, float | None]:
    if work is None or not seconds or not training or seconds <= training:
        return None, None
    validated, trained = (
        epoch_flops(work, *images) / 1e9 for images in ((0, comparison.val_images), (comparison.train_images, 0))
    )
    return validated / (seconds - training), trained / training


def in_words(low: float, high: float) -> str:
    """What the interval of a speed-up says where there is no claim; see `Timed.verdict`."""
    if low > 1 + NEGLIGIBLE:
        return "faster"
    if high < 1 / (1 + NEGLIGIBLE):
        return "slower"
    return "same" if low > 1 / SAME and high < SAME else "inconclusive"
