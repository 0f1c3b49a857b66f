"""The tables of a report, as frames of text."""

from __future__ import annotations

import pandas as pd

from bench.metrics import METRICS
from bench.report.summary import Group, HeadOnly, Summary
from bench.stats import Interval


def cells_table(summary: Summary) -> pd.DataFrame:
    """A row a group of cells that differ in their seed alone."""
    several_seeds = any(len(group.records) > 1 for group in summary.groups)
    rows = []
    for group in summary.groups:
        first = group.results[0]
        cells = {
            "weights": first.weights.kind,
            "best accuracy": accuracy(group),
            "last accuracy": _mean(group, "val_accuracy_last"),
            "s an epoch": median(group, "epoch_seconds"),
            "first epoch, s": median(group, "first_epoch_seconds"),
            "images/s": median(group, "images_per_second"),
            "peak MiB": median(group, "peak_memory_bytes"),
            "trained / all parameters": f"{first.trainable_params:,} / {first.total_params:,}",
            "frozen": _frozen(group),
        }
        seeds = {"seeds": str(len(group.records))} if several_seeds else {}
        rows.append(_axes(group, summary) | seeds | cells)
    return pd.DataFrame(rows)


def _frozen(group: Group) -> str:
    """Verified where every seed is; a single one that isn't shows."""
    checks = [result.frozen_verified for result in group.results]
    if False in checks:
        return "NOT FROZEN"
    return "verified" if True in checks else ""


def comparison_table(summary: Summary) -> pd.DataFrame:
    """A row a comparison of training only the head with fine-tuning."""
    return pd.DataFrame([_comparison_row(row, summary) for row in summary.comparisons])


def _comparison_row(row: HeadOnly, summary: Summary) -> dict[str, str]:
    saved, slow = row.memory_saved_bytes, row.slow.median(lambda r: r.peak_memory_bytes)
    memory = "n/a"
    if saved is not None and slow is not None:
        share = f" ({saved / slow:.0%})" if slow > 0 else ""
        memory = f"{saved / 2**20:,.0f} MiB{share}"
    difference = "n/a"
    if row.accuracy_difference is not None:
        p = "" if row.accuracy_p is None else f" (p = {row.accuracy_p:.2g})"
        difference = f"{100 * row.accuracy_difference:+.1f} points{p}"
    return _axes(row.fast, summary) | {
        "speed-up": _interval(row.speed_up, "×"),
        "memory saved": memory,
        "accuracy difference": difference,
        "“about half the time”": row.verdict,
    }


def _axes(group: Group, summary: Summary) -> dict[str, str]:
    several_runs = {"run": group.run} if len(summary.runs) > 1 else {}
    precise = {"precision": group.precision} if {g.precision for g in summary.groups} != {"fp32"} else {}
    return several_runs | {"backbone": group.backbone, "regime": group.regime, "device": group.device} | precise


def accuracy(group: Group) -> str:
    """Best accuracy with its interval (one seed) or standard deviation (more)."""
    if group.accuracy is None:
        return "n/a"
    if interval := group.accuracy_interval:
        return f"{interval.value:.1%} ({100 * interval.low:.1f}–{100 * interval.high:.1f})"
    spread = pd.Series([result.val_accuracy_best for result in group.results]).std()
    return f"{group.accuracy:.1%} ± {100 * spread:.1f}"


def _values(group: Group, metric: str) -> pd.Series:
    read = METRICS[metric].value
    return pd.Series(
        [read(record, record.result) for record in group.records if record.result], dtype="Float64"
    ).dropna()


def median(group: Group, metric: str) -> str:
    """Median over seeds of a metric, as text."""
    values = _values(group, metric)
    return METRICS[metric].show(values.median() if len(values) else None)


def _mean(group: Group, metric: str) -> str:
    values = _values(group, metric)
    return METRICS[metric].show(values.mean() if len(values) else None)


def _interval(interval: Interval | None, unit: str) -> str:
    return "n/a" if interval is None else f"{interval.value:.2f}{unit} ({interval.low:.2f}–{interval.high:.2f})"
