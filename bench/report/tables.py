"""The tables of a report, as frames of text."""

from __future__ import annotations

import statistics

import pandas as pd

from bench.claims import can_be_judged
from bench.metrics import METRICS
from bench.report.protocol import chosen_rates
from bench.report.summary import Group, HeadOnly, Summary
from bench.stats import Interval

SHOWN = (
    *("val_accuracy_last", "epoch_seconds", "first_epoch_seconds", "images_per_second", "peak_memory_bytes"),
    *("trainable_params", "total_params"),
)
"""Metrics with a column of their own in the table of cells; the best accuracy, with its interval, comes before."""


def cells_table(summary: Summary) -> pd.DataFrame:
    """A row a group of cells that differ in their seed alone."""
    several_seeds = any(len(group.records) > 1 for group in summary.groups)
    rows = []
    for group in summary.groups:
        seeds = {"seeds": str(len(group.records))} if several_seeds else {}
        figures = {METRICS[name].heading: show(group, name) for name in SHOWN}
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
    if row.accuracy_difference is not None:
        p = "" if row.accuracy_p is None else f" (p = {row.accuracy_p:.2g})"
        difference = f"{100 * row.accuracy_difference:+.1f} points{p}"
    return _axes(row.fast, summary) | {
        "speed-up": _interval(row.speed_up, "×"),
        "predicted": f"{row.prediction.with_validation:.2f}×" if row.prediction else "n/a",
        "memory saved": memory,
        "accuracy difference": difference,
        "“about half the time”": row.verdict,
    }


def _axes(group: Group, summary: Summary) -> dict[str, str]:
    """What identifies a row: always backbone, regime and device, else what differs within the report."""
    config = group.config
    row = {"run": group.run} if len(summary.runs) > 1 else {}
    row |= {"backbone": config.backbone, "regime": config.regime, "device": group.cell.device}
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
    return f"{group.accuracy:.1%} ± {100 * spread:.1f}"


def show(group: Group, name: str) -> str:
    """A metric of a group as text: accuracies as their mean over seeds, all else as the median."""
    metric = METRICS[name]
    read = (metric.value(record, record.result) for record in group.records if record.result)
    values = [value for value in read if value is not None]
    summary = statistics.fmean if metric.unit == "share" else statistics.median
    return metric.show(summary(values) if values else None)


def _interval(interval: Interval | None, unit: str) -> str:
    if interval is None:
        return "n/a"
    if not can_be_judged(interval):
        return f"{interval.value:.2f}{unit} (n = {interval.n})"
    return f"{interval.value:.2f}{unit} ({interval.low:.2f}–{interval.high:.2f})"
