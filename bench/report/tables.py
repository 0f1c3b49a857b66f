"""The tables of a report, as frames of text."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import pandas as pd

from bench.analysis.claims import CLAIMS
from bench.analysis.groups import Group
from bench.analysis.metrics import METRICS
from bench.analysis.verdicts import Finding, show_estimate
from bench.report.protocol import chosen_rates
from bench.report.summary import HeadOnly, Summary
from tl.regimes import REGIMES

SHOWN = (
    *("val_accuracy_last", "epoch_seconds", "first_epoch_seconds", "images_per_second", "peak_memory_bytes"),
    *("trainable_params", "total_params"),
)
"""Metrics with a column of their own in the table of cells; the best accuracy, with its interval, comes before."""
WORDS = {"val_accuracy_best": "accuracy", "epoch_seconds": "time", "peak_memory_bytes": "memory"}
"""What may matter most, in a word."""
MOST_TIED = 4
"""Named in a cell of a table, of those that can't be told apart."""
ONCE = {"extraction_seconds": "extracting features", "quantization_seconds": "quantisation"}
"""What some regimes do once, in words; a metric has a column where one of them is in the report."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table of cells."""

    heading: str
    texts: tuple[str, ...]
    """One a group."""
    metric: str = ""
    """Whose figures these are, empty for what is no metric."""
    meaning: str = ""


def columns(summary: Summary) -> list[Column]:
    """The columns that every report shows; a row a group of cells that differ in their seed alone."""
    groups = summary.groups
    facts = [_axes(g, summary) | {"weights": g.config.weights} | chosen_rates(g, summary) for g in groups]
    if any(len(group.records) > 1 for group in groups):
        facts = [fact | {"seeds": str(len(group.records))} for fact, group in zip(facts, groups, strict=True)]
    once = [name for name in ONCE if any(group.values(name) for group in groups)]
    best = METRICS["val_accuracy_best"]
    return [
        *(Column(heading=name, texts=tuple(fact[name] for fact in facts)) for name in (facts[0] if facts else ())),
        Column(
            heading=best.heading,
            texts=tuple(accuracy(group) for group in groups),
            metric="val_accuracy_best",
            meaning=best.meaning,
        ),
        *(
            Column(
                heading=METRICS[name].heading,
                texts=tuple(show(group, name) for group in groups),
                metric=name,
                meaning=METRICS[name].meaning,
            )
            for name in (*SHOWN, *once)
        ),
        Column(heading="frozen", texts=tuple(_frozen(group) for group in groups)),
    ]


def cells_table(summary: Summary) -> pd.DataFrame:
    """The same as a frame of text."""
    return pd.DataFrame({column.heading: column.texts for column in columns(summary)})


def priorities_table(summary: Summary) -> pd.DataFrame:
    """What to use where accuracy, time or memory matters most, on each device of each run."""
    rows = []
    for choice in summary.choices:
        place = {"run": choice.run} if len({c.run for c in summary.choices}) > 1 else {}
        place |= {"device": choice.device} if len({c.device for c in summary.choices}) > 1 else {}
        for priority in choice.priorities:
            first, *tied = priority.groups
            names = [_pick(group, summary) for group in tied]
            more = f" and {len(names) - MOST_TIED} more" if len(names) > MOST_TIED else ""
            rows.append(
                place
                | {
                    "what matters most": WORDS[priority.metric],
                    "use": _pick(first, summary),
                    METRICS["val_accuracy_best"].heading: accuracy(first),
                    **{METRICS[name].heading: show(first, name) for name in ("epoch_seconds", "peak_memory_bytes")},
                    "can't be told from it": ", ".join(names[:MOST_TIED]) + more if names else "none",
                }
            )
    return pd.DataFrame(rows)


def _pick(group: Group, summary: Summary) -> str:
    return f"{summary.short(group)}, {group.config.regime}"


def comparison_table(summary: Summary) -> pd.DataFrame:
    """A row a comparison of training only the head with fine-tuning."""
    return pd.DataFrame([_comparison_row(row, summary) for row in summary.comparisons])


def _comparison_row(row: HeadOnly, summary: Summary) -> dict[str, str]:
    saved, slow = row.memory_saved_bytes, row.slow.median(lambda r: r.peak_memory_bytes)
    memory = "n/a"
    if saved is not None and slow:
        memory = f"{saved / 2**20:,.0f} MiB ({saved / slow:.0%})"
    difference = "n/a"
    if row.accuracy is not None and row.accuracy_test is not None:
        test = row.accuracy_test
        told = f"p = {test.p:.2g}" if test.can_show else "too few to tell"
        difference = f"{CLAIMS['no-worse'].show(row.accuracy.value)} ({told})"
    claim = row.finding.claim
    return _axes(row.fast, summary) | {
        "speed-up": show_estimate(claim, row.speed_up),
        "predicted": claim.show(row.finding.predicted),
        "training alone": show_estimate(claim, row.training),
        "predicted, training alone": claim.show(row.training_predicted),
        "memory saved": memory,
        "accuracy difference": difference,
        "“about half the time”": row.finding.words,
    }


def claims_table(summary: Summary) -> pd.DataFrame:
    """A row for each claim and pair of groups that it is about."""
    return pd.DataFrame([_claim_row(finding, summary) for finding in summary.findings])


def _claim_row(finding: Finding, summary: Summary) -> dict[str, str]:
    claim, group = finding.claim, finding.group
    axes = _axes(group, summary) | {"regime": f"{group.config.regime} against {claim.against}"}
    if len(summary.levels["weights"]) > 1:
        axes["weights"] = group.config.weights
    return (
        {"claim": claim.name}
        | axes
        | {
            "measured": show_estimate(claim, finding.estimate),
            "predicted": claim.show(finding.predicted),
            "holds if": claim.region,
            "verdict": finding.words,
        }
    )


def _axes(group: Group, summary: Summary) -> dict[str, str]:
    """What identifies a row: always backbone, regime and device, else what differs within the report."""
    config = group.config
    row = {"run": group.run} if len(summary.runs) > 1 else {}
    control = " (control)" if REGIMES[config.regime].control else ""
    row |= {"backbone": config.backbone, "regime": f"{config.regime}{control}", "device": group.cell.device}
    if len(summary.levels["precision"]) > 1:
        row["precision"] = config.precision
    return row | {name.replace("_", " "): str(getattr(config, name)) for name in summary.settings}


def _frozen(group: Group) -> str:
    """Verified where every seed is; a single one that isn't shows."""
    checks = [result.frozen_verified for result in group.results]
    if False in checks:
        return "NOT FROZEN"
    return "verified" if True in checks else ""


def accuracy(group: Group) -> str:
    """Best accuracy with its interval (one seed) or standard deviation (more)."""
    if group.accuracy is None:
        return "n/a"
    if interval := group.accuracy_interval:
        return f"{interval.value:.1%} ({100 * interval.low:.1f}–{100 * interval.high:.1f})"
    spread = statistics.stdev(result.val_accuracy_best for result in group.results)
    return f"{group.accuracy:.1%} ± {100 * spread:.1f} (sd, n = {len(group.results)})"


def show(group: Group, name: str) -> str:
    """A metric of a group as text: accuracies as their mean over seeds, all else as the median."""
    return METRICS[name].show(group.typical(name))
