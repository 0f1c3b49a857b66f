"""Compares training only the head with fine-tuning: speed-up, memory and accuracy of each comparable pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.analysis.claims import HALF_THE_TIME
from bench.analysis.groups import Group
from bench.analysis.prediction import counted_shares, explain, predicted
from bench.analysis.stats import LEVEL, MIN_SAMPLES, Estimate, Test, accuracy_difference, holm, mcnemar, ratio_in_order
from bench.analysis.verdicts import Finding


@dataclass(frozen=True, kw_only=True)
class Adjusted:
    """A p-value that is adjusted for several tests (Holm)."""

    p: float
    can_show: bool
    """True if a test with so few images and seeds could have found a difference at all."""


@dataclass(frozen=True, kw_only=True)
class SpeedUp:
    """Training only the head compared with fine-tuning, all else being equal."""

    finding: Finding
    """The claim's finding on the time per epoch, training and validation together."""
    training: Estimate | None
    """The speed-up of training passes alone."""
    training_predicted: float | None
    explanation: str | None
    """Why the measured speed-up is not the predicted one; None if the work was not counted."""
    counted: str | None
    """A sentence on the share of time that the counted work predicts; None if the work was not counted."""
    memory_saved_bytes: float | None
    """By process pairs where they measured it, otherwise by trainings; None if it is unknown."""
    memory_before_bytes: float | None
    """What fine-tuning takes."""
    accuracy: Estimate | None
    """Accuracy after the last epoch of head-only minus fine-tuned; None if nothing can be paired."""
    accuracy_test: Adjusted | None
    """Test that both accuracies are equal, adjusted for all comparisons; None if nothing can be paired."""

    @property
    def slow(self) -> Group:
        """The fine-tuned group."""
        return self.finding.against

    @property
    def fast(self) -> Group:
        """The group that trains only the head."""
        return self.finding.group

    @property
    def speed_up(self) -> Estimate | None:
        """Time per epoch of fine-tuning, divided by that of the head alone; None without a warm epoch of both."""
        return self.finding.estimate


def speed_ups(findings: Sequence[Finding]) -> list[SpeedUp]:
    """One comparison for each finding on the time per epoch."""
    timed = [finding for finding in findings if finding.claim in HALF_THE_TIME]
    tests = compare_accuracy([(finding.against, finding.group) for finding in timed])
    return [_compare(finding, test) for finding, test in zip(timed, tests, strict=True)]


def _compare(finding: Finding, test: Adjusted | None) -> SpeedUp:
    slow, fast, paired = finding.against, finding.group, finding.paired
    memory = [group.median(lambda r: r.peak_memory_bytes) for group in (slow, fast)]
    if paired and paired.memory:
        memory = [paired.against_peak_bytes, paired.peak_bytes]
    saved = None if memory[0] is None or memory[1] is None else memory[0] - memory[1]
    counts = slow.accuracy is not None and fast.accuracy is not None
    return SpeedUp(
        finding=finding,
        training=paired.training
        if paired
        else ratio_in_order(slow.values("train_epoch_seconds"), fast.values("train_epoch_seconds")),
        training_predicted=predicted("train_epoch_seconds", slow, fast),
        explanation=explain(slow, fast, finding.estimate.value if finding.estimate else None),
        counted=counted_shares(slow, fast),
        memory_saved_bytes=saved,
        memory_before_bytes=memory[0],
        accuracy=accuracy_difference(fast.by_image(), slow.by_image()) if counts else None,
        accuracy_test=test,
    )


def compare_accuracy(pairs: Sequence[tuple[Group, Group]]) -> list[Adjusted | None]:
    """Test for each pair of groups that both are equally accurate; p-values are Holm-adjusted over all pairs.

    With three or more seeds the test is that of `accuracy_difference`. With fewer it is McNemar's exact test on the
    images of each seed, and the smallest p-value counts. None for a pair without a meaningful accuracy, or without a
    seed in common.
    """
    tests: list[tuple[int, Test]] = []
    for number, (first, second) in enumerate(pairs):
        if first.accuracy is None or second.accuracy is None:
            continue
        one, other = first.by_image(), second.by_image()
        both = [seed for seed in one if seed in other]
        estimate = accuracy_difference(one, other)
        if estimate and len(both) >= MIN_SAMPLES:
            tests.append((number, Test(p=estimate.p, smallest=0.0)))
        else:
            tests += [(number, mcnemar(one[seed], other[seed])) for seed in both]
    adjusted = holm([test.p for _, test in tests])
    found: list[Adjusted | None] = [None] * len(pairs)
    for (number, test), p in zip(tests, adjusted, strict=True):
        before = found[number]
        found[number] = Adjusted(
            p=min(p, before.p if before else 1.0),
            can_show=test.smallest * len(tests) < LEVEL or bool(before and before.can_show),
        )
    return found
