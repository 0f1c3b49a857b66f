"""What a comparison by process pairs says: the predicted speed-up, and a verdict in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.paired import PairedComparison
from bench.analysis.prediction import SAME, epoch_flops
from bench.analysis.verdicts import NEGLIGIBLE, ClaimVerdict, as_claimed, decide_together, in_words_of
from tl.results import Work


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A comparison by process pairs, with what it says."""

    comparison: PairedComparison
    claim: Claim | None
    """The claim about the speed-up of these two regimes; None if there is none."""
    predicted: float | None
    """Speed-up that the counted work predicts; None if the work was not counted."""
    predicted_training: float | None
    """The same for training alone, without validation."""
    verdict: str | None
    """Where the 95% interval of the speed-up lies; None without a speed-up.

    With a claim: `supported` inside the claim's region, the claim's own words outside it, else `inconclusive`; with one
    error rate for all comparisons with a claim that were looked at together (Holm). Without a claim: `faster` or
    `slower` by more than `NEGLIGIBLE`, else `same` (to within `SAME`), else `inconclusive`. Below `MIN_SAMPLES` pairs,
    with or without a claim: `too few samples`.
    """

    @property
    def explanation(self) -> str | None:
        """Why the measured speed-up of a regime isn't the predicted one; None if it is, or without a prediction.

        Predictions assume one rate for all work, so the rates explain the difference.
        """
        found = self.comparison
        if found.axis != "regime" or found.speed_up is None or self.predicted is None:
            return None
        if 1 / SAME < found.speed_up.value / self.predicted < SAME:
            return None
        (ours, trained), (theirs, against_trained) = _rates(self.comparison)
        if None in (ours, theirs, trained, against_trained):
            return None
        validation = (
            "validation (with the start of its workers)" if found.cell.config.execution == "plain" else "validation"
        )
        ours_name, their_name = found.names
        return (
            f"The measured {found.speed_up.value:.2f}× isn't the predicted {self.predicted:.2f}×, because not all work "
            f"runs at one rate: training of {their_name} runs at {against_trained:,.0f} GFLOP/s and of {ours_name} at "
            f"{trained:,.0f}, {validation} at {theirs:,.0f} and {ours:,.0f}."
        )


def look_at(comparisons: Sequence[PairedComparison], claims: Collection[Claim] = tuple(CLAIMS.values())) -> list[Timed]:
    """Find the claims about comparisons, decide them together, and find what the counted work predicts."""
    about = [_claim_about(comparison, claims) for comparison in comparisons]
    expected = [_predicted(each, each.train_images, each.val_images) for each in comparisons]
    claimed = [
        (claim, as_claimed(claim, comparison.speed_up, ratio))
        for claim, comparison, ratio in zip(about, comparisons, expected, strict=True)
        if claim is not None
    ]
    verdicts = iter(decide_together(claimed))
    return [
        Timed(
            comparison=comparison,
            claim=claim,
            predicted=ratio,
            predicted_training=_predicted(comparison, comparison.train_images, 0),
            verdict=_unclaimed(comparison) if claim is None else _claimed(claim, next(verdicts)[0]),
        )
        for claim, comparison, ratio in zip(about, comparisons, expected, strict=True)
    ]


def _claim_about(comparison: PairedComparison, claims: Iterable[Claim]) -> Claim | None:
    """The claim about the time per epoch of these two cells, if they differ in their regime alone."""
    config, against = comparison.cell.config, comparison.against.config
    about = (
        claim
        for claim in claims
        if claim.metric == "epoch_seconds"
        and claim.against == against.regime
        and config.execution == against.execution
        and claim.is_about(config.regime, config.execution)
    )
    return next(about, None)


def _claimed(claim: Claim, verdict: ClaimVerdict) -> str | None:
    return None if verdict == "unknown" else in_words_of(claim, verdict)


def _unclaimed(comparison: PairedComparison) -> str | None:
    found = comparison.speed_up
    if found is None:
        return None
    return "too few samples" if found.low is None or found.high is None else in_words(found.low, found.high)


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
