"""The tables of a report, as frames of text."""

from __future__ import annotations

import statistics

import pandas as pd

from bench.claims import CLAIMS
from bench.findings import Finding, show_estimate
from bench.groups import Group
from bench.metrics import METRICS
from bench.report.protocol import chosen_rates
from bench.report.summary import HeadOnly, Summary
from tl.regimes import REGIMES

SHOWN = (
    *("val_accuracy_last", "epoch_seconds", "first_epoch_seconds", "images_per_second", "peak_memory_bytes"),
    *("trainable_params", "total_params"),
)
"""Metrics with a column of their own in the table of cells; the best accuracy, with its interval, comes before."""
ONCE = {"extraction_seconds": "extracting features", "quantization_seconds": "quantisation"}
"""What some regimes do once, in words; a metric has a column where one of them is in the report."""


def cells_table(summary: Summary) -> pd.DataFrame:
    """A row a group of cells that differ in their seed alone."""
    several_seeds = any(len(group.records) > 1 for group in summary.groups)
    once = [name for name in ONCE if any(group.values(name) for group in summary.groups)]
    rows = []
    for group in summary.groups:
        seeds = {"seeds": str(len(group.records))} if several_seeds else {}
        figures = {METRICS[name].heading: show(group, name) for name in (*SHOWN, *once)}
        rows.append(
            _axes(group, summary)
            | {"weights": group.config.weights}
            | chosen_rates(group, summary)
            | seeds
            | {METRICS["val_accuracy_best"].heading: accuracy(group)}
            | figures
            | {"frozen": _frozen(group)}
        )
    return pd.DataFrame(rows)


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
    if len({other.config.weights for other in summary.groups}) > 1:
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
    if len({other.config.precision for other in summary.groups}) > 1:
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
    metric = METRICS[name]
    read = (metric.value(record, record.result) for record in group.records if record.result)
    values = [value for value in read if value is not None]
    summary = statistics.fmean if metric.unit == "share" else statistics.median
    return metric.show(summary(values) if values else None)
