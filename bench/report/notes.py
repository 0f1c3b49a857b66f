"""Paragraphs that explain a report, the same in Markdown and in HTML. A paragraph that doesn't apply is empty."""

from __future__ import annotations

from dataclasses import dataclass

from bench.analysis.metrics import METRICS
from bench.analysis.recommend import TIE
from bench.analysis.stats import MIN_SAMPLES
from bench.report.settings_text import accuracy_note
from bench.report.summary import Summary
from tl.regimes import REGIMES

_TIES = (
    "Statistically tied: accuracies on these images and seeds (adjusted over all groups, Holm), times and memory by "
    f"less than {TIE - 1:.0%} or within the scatter of seeds."
)
_TABLE = "n/a: unknown, or random weights in place of pretrained ones. Times are medians of all epochs but the first."
_LEAKAGE = (
    "These ants and bees are a small part of ImageNet, so a backbone pretrained on ImageNet may have seen them: "
    "accuracies are higher than on images that are new to it."
)
_CONTROLS = "Controls are yardsticks: they are not recommended, and not compared with fine-tuning."
_TRAINING_BELOW_VALIDATION = (
    "Training accuracy is often below validation accuracy: it is a running figure over the epoch, on cropped and "
    "flipped images, and with the training mode of BatchNorm and dropout."
)
_PREDICTED = (
    "Predicted: the ratio of the counted floating-point operations, of an epoch with validation and of training alone. "
    f"The accuracy difference is over the seeds that both have; p is that of no difference, from {MIN_SAMPLES} seeds "
    "on by the interval's own standard error, below that the smallest of the seeds' exact McNemar tests on the same "
    "images, adjusted (Holm) over all comparisons of this table; “too few to tell”: so few images on which one alone "
    "is right could not have shown a difference."
)
_CLAIMS = (
    "The figure is, for accuracies, the first regime minus the other, and for all else the other divided by the first. "
    "Intervals: 95%, over n seeds: of ratios Student's t on their logarithms, of accuracies with the scatter of seeds "
    f"and of images; below {MIN_SAMPLES} seeds there is none, since the epochs of one seed say nothing about the next. "
    "A verdict stands where it is wrong at most one time in twenty, over all verdicts of this report together (Holm); "
    "else it is inconclusive. Unknown: nothing could be measured, or accuracies of random weights."
)
_OTHER_SHARES = (
    "Shares that are no accuracies are subtracted too; their intervals are Student's t over seeds and say nothing of "
    "other images."
)


@dataclass(frozen=True, kw_only=True)
class Notes:
    """The paragraphs, by subject."""

    ties: str
    table: str
    leakage: str
    controls: str
    training: str
    predicted: str
    claims: str


def notes_of(summary: Summary) -> Notes:
    """The notes that explain the tables of a report."""
    compared = [METRICS[claim.metric] for claim in summary.claims]
    other_shares = any(metric.compared == "difference" and not metric.predictions for metric in compared)
    return Notes(
        ties=_TIES,
        table=f"{accuracy_note(summary)} {_TABLE}",
        leakage=_LEAKAGE if any(m.dataset.name == "hymenoptera" for _, m in summary.runs) else "",
        controls=_controls(summary),
        training=_TRAINING_BELOW_VALIDATION,
        predicted=_PREDICTED,
        claims=f"{_CLAIMS} {_OTHER_SHARES}" if other_shares else _CLAIMS,
    )


def _controls(summary: Summary) -> str:
    """An explanation of the controls in the table; empty without controls."""
    shown = {group.config.regime for group in summary.groups}
    controls = [f"{name}: {regime.summary}." for name, regime in REGIMES.items() if regime.control and name in shown]
    return " ".join([_CONTROLS, *controls]) if controls else ""
