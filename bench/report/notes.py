"""Paragraphs that explain a report, the same in Markdown and in HTML. A paragraph that doesn't apply is empty."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from bench.analysis import selection
from bench.analysis.metrics import METRICS, costs, listed, what_matters
from bench.analysis.recommend import TIE
from bench.analysis.stats import MIN_IN_ORDER, MIN_SAMPLES, MIN_SIGNS
from bench.report.settings_text import INDEPENDENCE, accuracy_note, largest_class_note
from bench.report.summary import Summary
from bench.report.tables import paired_findings
from bench.sweep.pairs import without_turns
from tl.regimes import REGIMES

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
    "Share of the time: the time of an epoch that trains only the head ÷ that of fine-tuning; the speed-up is its "
    "reciprocal. Predicted: the ratio of the counted floating-point operations, per epoch with validation and "
    "for training alone. The accuracy difference is over the seeds that both regimes have. p is the p-value of "
    f"“no difference”, adjusted (Holm) over all comparisons of this table. From {MIN_SAMPLES} seeds on it uses the "
    "standard error of the interval; with fewer seeds it is the smallest p-value of exact McNemar tests, one per "
    "seed, on the same images. “too few images”: so few images are right with only one of the two regimes that no "
    "test could have shown a difference."
)
_CLAIMS = (
    "Measured: for accuracies, the first regime − the other; for all else, the other ÷ the first. A ratio within 1% of "
    "1 is no difference. A verdict stands if it is wrong at most one time in twenty, over all verdicts of this report "
    "together (Holm); otherwise it is inconclusive. Unknown: nothing could be measured, or accuracies are those of "
    f"random weights. Intervals are 95%; below {MIN_SAMPLES} pairs or seeds there is no interval."
)
_OF_PREDICTION = (
    "A claim about what work predicts divides the measured ratio by the predicted one, so 1.00× is as predicted."
)
SELECTION = (
    "Regret: by how many points the backbone that a score ranks first is less accurate, after its trainings, than the "
    f"most accurate one; the claim holds if that is at most {100 * selection.WITHIN:g} points. That must be shown "
    "against each other backbone; more than that, against one of them, adjusted for their number. The 95% interval "
    "follows from the same tests. Agreement: weighted Kendall's τ of score and accuracy, 1 for the same order. Scores "
    "are of training images alone: shares that a head fitted without them predicts right, or LogME. These verdicts "
    "have an error rate of their own, 5% for all together (Holm)."
)
_BY_PAIRS = (
    "Intervals over process pairs, for times and memory: Student's t on the logarithms of the pairs' ratios. They "
    "assume that pairs are independent; those of times are widened where the order of the pairs clearly speaks "
    "against it."
)
_BY_SEEDS = (
    "Intervals over n seeds: for accuracies with the scatter of seeds and of images; for times and memory that no "
    "process pair measured, Student's t on the logarithms of ratios. The epochs of one seed say nothing about the next."
)
_BY_SIGNS = (
    "Numbers of epochs are small whole numbers, so only their order counts: measured is the median of the seeds' "
    f"ratios, with sign tests and the interval that follows from them. Below {MIN_SIGNS} seeds they can decide "
    "nothing, and beside many other verdicts they need a few more."
)
_PAIRED = (
    "A process pair is a fresh process per regime. They take turns, so that a machine that drifts favours none: a "
    "round has one turn of each, in alternating order. A pair's value is the median ratio of its rounds, and the "
    "interval is Student's t over pairs. Every pair with a result counts, with all its rounds. Pairs timed one after "
    "the other count only where no pair took turns. Scatter: the standard deviation of the ratios of pairs, and "
    "within a pair of its rounds. Drift: the change of the ratio from one pair to the next, and "
    "within a pair from its first round to its last, both on a straight line. Correlation: that of pairs that follow "
    f"each other, from {MIN_IN_ORDER} on; intervals are widened where it is clear."
)
_ADAPTIVE = (
    "Pairs were added until the answers were precise enough (`--until-decided`). That can stop where an interval is "
    "narrow by chance: in simulations the 95% intervals held the true value in 94% of the runs, and in fewer where "
    "neighbouring pairs were alike."
)
_CANDIDATES = (
    "Probe: the share of training images that their nearest neighbours in the backbone's features classify right, each "
    "image left out in turn, with its 95% interval. It ranks backbones before any is trained; the best are trained for "
    "one epoch, and what is not clearly worse then is trained with several seeds. Accuracies are means over seeds "
    "after the last epoch, on the validation images."
)
_MEMORY = (
    "Memory saved: the difference of peak memory. For comparisons by process pairs, the peaks are those of the turns, "
    "as in the table of pairs; for all others those of the trainings, as in the table of results."
)
_APART = (
    "Comparisons that say “n = …” have no process pair with a result: their regimes were trained minutes apart, and "
    "their intervals are over n seeds."
)
_MORE_PAIRS = " `run` with more `--pairs` adds them to a run."
_NO_PAIRS = " Trainings of protocol kfold can't be timed in pairs: `run --seeds 5` adds seeds."
_OTHER_SHARES = (
    "Shares other than accuracies are subtracted too; their intervals are Student's t over seeds and say nothing about "
    "other images."
)


@dataclass(frozen=True, kw_only=True)
class Notes:
    """The paragraphs, by subject."""

    ties: str
    candidates: str
    table: str
    largest_class: str
    leakage: str
    controls: str
    training: str
    predicted: str
    paired: str
    apart: str
    claims: str
    selection: str


def notes_of(summary: Summary) -> Notes:
    """The notes that explain the tables of a report, in the words of its task."""
    said = _notes_of(summary)
    by_image = {name: summary.words(text, by_image=True) for name, text in asdict(said).items()}
    # Without right and wrong images a training pass has no score.
    training = said.training if summary.task.right_or_wrong else ""
    return replace(said, **by_image | {"table": said.table, "training": training})


def footnotes(summary: Summary) -> list[tuple[str, str, str]]:
    """Anchor, heading and text of each note that applies, for a page that has them all in one place."""
    notes = notes_of(summary)
    results = (notes.table, notes.largest_class, notes.leakage, notes.controls, notes.training)
    half = " ".join(filter(None, (notes.predicted, notes.apart)))
    found = [
        ("note-candidates", "Candidates", notes.candidates if summary.picks else ""),
        ("note-results", "Results", " ".join(filter(None, results)) if summary.groups else ""),
        ("note-ties", "Ties", notes.ties if summary.choices else ""),
        ("note-half", "Only the head", half if summary.speed_ups else ""),
        ("note-pairs", "Pairs", notes.paired if paired_findings(summary) else ""),
        ("note-claims", "Claims", notes.claims if summary.findings else ""),
        ("note-probes", "Probes", notes.selection if summary.selections else ""),
    ]
    return [(anchor, heading, text) for anchor, heading, text in found if text]


def _notes_of(summary: Summary) -> Notes:
    compared = [METRICS[claim.metric] for claim in summary.claims]
    by_pairs = any(row.finding.paired and row.finding.paired.memory for row in summary.speed_ups)
    other_shares = any(metric.compared == "difference" and not metric.predictions for metric in compared)
    return Notes(
        ties=_ties(),
        candidates=_CANDIDATES,
        table=f"{accuracy_note(summary)} {_TABLE}{_means(summary)}",
        largest_class=largest_class_note(summary),
        leakage=_LEAKAGE if any(m.dataset.name == "hymenoptera" for _, m in summary.runs) else "",
        controls=_controls(summary),
        training=_TRAINING_BELOW_VALIDATION,
        predicted=f"{_PREDICTED} {_MEMORY}" if by_pairs else _PREDICTED,
        paired=f"{_PAIRED} {_ADAPTIVE}" if summary.sampled_adaptively else _PAIRED,
        apart=_apart(summary),
        selection=SELECTION,
        claims=" ".join([_CLAIMS, *intervals(summary), *([_OTHER_SHARES] if other_shares else [])]),
    )


def _means(summary: Summary) -> str:
    """Which times in the table are no medians; empty if all are."""
    found = [group.config.regime for group in summary.groups if any(result.periods for result in group.results)]
    return f" Those of {listed(list(dict.fromkeys(found)))} are means, since its epochs differ." if found else ""


def intervals(summary: Summary) -> list[str]:
    """What claims about predictions measure, and what intervals are over: process pairs, seeds or both."""
    by_pairs = any(finding.by == "pairs" for finding in summary.findings)
    by_seeds = [finding for finding in summary.findings if finding.by == "seeds" and finding.estimate]
    said = [_OF_PREDICTION] if any(finding.claim.of_prediction for finding in summary.findings) else []
    said += [_BY_PAIRS] if by_pairs else []
    said += [_BY_SEEDS] if by_seeds else []
    said += [_BY_SIGNS] if any(finding.claim.by_signs for finding in by_seeds) else []
    in_order = any(finding.claim.is_ratio and not finding.claim.by_signs for finding in by_seeds)
    return said + ([INDEPENDENCE] if in_order else [])


def _apart(summary: Summary) -> str:
    """A note on speed-ups by seeds, and what makes them more precise; empty if there are none."""
    found = [row.finding for row in summary.speed_ups if row.finding.by == "seeds" and row.speed_up]
    if not found:
        return ""
    alone = {bool(without_turns(one.group.cell) or without_turns(one.against.cell)) for one in found}
    return _APART + (_MORE_PAIRS if False in alone else "") + (_NO_PAIRS if True in alone else "")


def _ties() -> str:
    return (
        "Statistically tied: a test of accuracies on these images and seeds (adjusted over all groups, Holm) finds no "
        f"difference. For {what_matters(costs())}: the difference is less than {TIE - 1:.0%}, or within the scatter of "
        "seeds."
    )


def _controls(summary: Summary) -> str:
    """An explanation of the controls in the table; empty without controls."""
    shown = {group.config.regime for group in summary.groups}
    controls = [f"{name}: {regime.summary}." for name, regime in REGIMES.items() if regime.control and name in shown]
    return " ".join([_CONTROLS, *controls]) if controls else ""
