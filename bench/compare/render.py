"""Renders a comparison as Markdown for a pull request, as one HTML file, or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from bench.analysis.metrics import points
from bench.analysis.stats import MIN_SAMPLES, MIN_SIGNS
from bench.compare.changes import Change, ChangeVerdict, Comparison
from bench.compare.notes import notes, warnings
from bench.compare.sides import SampleName, Value, exact_text
from bench.report.pages import environment_for, html_table, markdown_table, style

Format = Literal["md", "html", "json"]
MANY = 20
"""Largest number of unchanged rows that are shown unfolded."""
ORDER: tuple[ChangeVerdict, ...] = (
    *("worse", "not comparable", "inconclusive", "too few samples", "unknown", "better", "same"),
)


NOTE = (
    "Change: the new side ÷ {base}; for shares such as accuracies, the new side − {base}; with a 95% interval from "
    "{fewest} samples on. Samples are seeds, or rounds of a benchmark, where each process is one round, and the median "
    "of its raw times counts: slower tails are named, but decide nothing. A change is "
    "worse or better if it is at least as large as the column “counts from” says and a test of no change fails, at "
    "{percent}% over this whole comparison (Holm). It is the same if it is shown to be smaller than that, at "
    "95%{looks}, or if both sides were right on the very same images with each seed. Times and memory are compared as "
    "independent samples (Welch, on logarithms), rounds that were measured in turn as pairs, accuracies over seeds and "
    "images, other shares over seeds alone, which says nothing about other images, numbers of epochs by sign tests, "
    "which need {fewest_signs} seeds, and counters sample by sample."
)


def show(
    comparison: Comparison,
    suffix: Format,
    *,
    title: str,
    headline: str = "",
    findings: Sequence[str] = (),
    status: int | None = None,
) -> str:
    """Render the whole comparison. `headline` and `findings`, such as a gate's decision and reasons, come first.

    `status` is the gate's exit status; only JSON has it.
    """
    if suffix == "json":
        content = _as_json(comparison) | {"status": status, "headline": headline, "findings": list(findings)}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    table = markdown_table if suffix == "md" else html_table
    changed, same, exact = changed_and_same(comparison)
    content = {
        "title": title,
        "headline": headline,
        "findings": list(findings),
        "tally": tally(comparison),
        "warnings": warnings(comparison),
        "notes": notes(comparison),
        "comparison": comparison,
        "changed": table(change_frame(changed, comparison)) if changed else "",
        "same": table(change_frame(same, comparison)) if same else "",
        "fold": len(same) > MANY,
        "exact": len(exact),
        "unknown": unknown_lines(comparison, comparison.having("unknown")),
        "mismatches": list(dict.fromkeys(str(each) for change in comparison.changes for each in change.mismatches)),
        "machines": machines(comparison),
        "note": note_of(comparison),
        "style": style(),
    }
    return environment_for(suffix).get_template(f"compare.{suffix}.j2").render(**content)


def changed_and_same(comparison: Comparison) -> tuple[list[Change], list[Change], list[Change]]:
    """The changes with a verdict that is to be looked at, worst first, those that are the same, and equal counters."""
    changed = [change for change in comparison.changes if change.verdict not in ("same", "unknown")]
    changed.sort(key=lambda change: ORDER.index(change.verdict))
    same = comparison.having("same")
    exact = [change for change in same if change.quantity.compared == "exact"]
    return changed, [change for change in same if change.quantity.compared != "exact"], exact


def note_of(comparison: Comparison) -> str:
    """How to read a comparison: what its figures are, and when a change counts."""
    return NOTE.format(
        base=comparison.base.name,
        fewest=MIN_SAMPLES,
        fewest_signs=MIN_SIGNS,
        percent=f"{100 * comparison.level:.2g}",
        looks=f" shared among {comparison.looks} looks" if comparison.looks > 1 else "",
    )


def unknown_lines(comparison: Comparison, changes: Sequence[Change]) -> list[str]:
    """Describe what can't be compared since a value is unknown: one line per metric and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        samples = {comparison.base.name: change.base, change.new_side: change.new}
        without = " and ".join(name for name, some in samples.items() if not some)
        apart = change.quantity.compared == "difference" and not change.base.keys() & change.new.keys()
        zero = " and ".join(
            f"{', '.join(str(sample) for sample, value in some.items() if value <= 0)} of {name}"
            for name, some in samples.items()
            if any(value <= 0 for value in some.values())
        )
        if without:
            why = f"unknown in {without}"
        elif apart:
            why = "no seed in common"
        else:
            why = f"not above 0 in {zero}" if zero else "can't be estimated"
        found.setdefault((change.quantity.label, why), []).append(change.cell)
    return [
        f"{label}: {what}: {cells[0]}" + (f" and {len(cells) - 1} more" if cells[1:] else "")
        for (label, what), cells in found.items()
    ]


def machines(comparison: Comparison) -> list[tuple[str, str]]:
    """Pairs of sides and the machine and libraries that they were measured on."""
    found: dict[str, list[str]] = {}
    for side in (comparison.base, *comparison.others):
        for machine in side.machines:
            found.setdefault(machine, []).append(side.name)
    return [(", ".join(sides), machine) for machine, sides in found.items()]


def tally(comparison: Comparison) -> str:
    """Count the comparisons by verdict, in words."""
    given = [change.verdict for change in comparison.changes]
    counts = ", ".join(f"{given.count(verdict)} {verdict}" for verdict in ORDER if verdict in given)
    return f"{len(given)} comparison{'s' if len(given) != 1 else ''}: {counts}"


def change_frame(changes: Sequence[Change], comparison: Comparison) -> pd.DataFrame:
    """A table of texts with one row per change."""
    several, tails = len(comparison.others) > 1, any(change.tails for change in changes)
    rows = []
    for change in changes:
        base, new = change.typical
        row = {"verdict": change.verdict, "cell": change.cell} | ({"side": change.new_side} if several else {})
        name = "new" if several else f"new: {comparison.others[0].name}"
        rows.append(
            row
            | {
                "metric": change.quantity.label,
                f"base: {comparison.base.name}": _value(change, base, change.base),
                name: _value(change, new, change.new),
                "change (95%)": change_text(change),
                "counts from": _allowed(change),
            }
            | ({"slower tails": ", ".join(map(str, change.tails))} if tails else {})
        )
    return pd.DataFrame(rows)


def _value(change: Change, value: Value, samples: Mapping[SampleName, Value]) -> str:
    if not samples:
        return "n/a"
    if change.quantity.compared == "exact":
        return " and ".join(change.quantity.show(each) for each in sorted(set(samples.values())))
    return f"{change.quantity.show(value)} (n = {len(samples)})"


def change_text(change: Change) -> str:
    """Format the estimate with its interval; for exact counters, the difference."""
    if change.quantity.compared == "exact":
        base, new = set(change.base.values()), set(change.new.values())
        one = len(base) == len(new) == 1
        return exact_text(new.pop() - base.pop(), "+") if one else "several values" if base and new else "n/a"
    if change.estimate is None:
        return "n/a"
    value, low, high = change.estimate.value, change.estimate.low, change.estimate.high
    if change.estimate.compared == "ratio":
        return f"{value:.3f}×" + ("" if low is None or high is None else f" ({low:.3f}–{high:.3f})")
    return f"{points(value)} points" + ("" if low is None or high is None else f" ({points(low)} to {points(high)})")


def _allowed(change: Change) -> str:
    if change.allowed is None:
        return "any change"
    return f"{change.allowed:g}×" if change.quantity.compared == "ratio" else f"{100 * change.allowed:g} points"


def _as_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "level": comparison.level,
        "base": comparison.base.name,
        "sides": [side.name for side in comparison.others],
        "measured_on": {side.name: list(side.machines) for side in (comparison.base, *comparison.others)},
        "beyond_limits": [list(pair) for pair in comparison.beyond_limits],
        "unchecked": [list(pair) for pair in comparison.unchecked],
        "newly_failing": [list(pair) for pair in comparison.newly_failing],
        "incomplete": [list(pair) for pair in comparison.incomplete],
        "only_new": [list(pair) for pair in comparison.only_new],
        "warnings": warnings(comparison),
        "notes": notes(comparison),
        "changes": [_change_as_json(change) for change in comparison.changes],
    }


def _change_as_json(change: Change) -> dict[str, Any]:
    estimate = change.estimate
    return {
        "cell": change.cell,
        "side": change.new_side,
        "metric": change.quantity.name,
        "kind": change.quantity.compared,
        "better": change.quantity.better,
        "base": change.base,
        "new": change.new,
        "value": _finite(estimate.value) if estimate else None,
        "low": _finite(estimate.low) if estimate else None,
        "high": _finite(estimate.high) if estimate else None,
        "counts_from": change.allowed,
        "p": change.p,
        "paired": change.paired,
        "tails": {tail.name: _finite(tail.estimate.value) for tail in change.tails},
        "verdict": change.verdict,
        "differs": [str(each) for each in change.mismatches],
    }


def _finite(value: float | None) -> float | None:
    """None for an infinite value, which JSON can't express."""
    return value if value is not None and math.isfinite(value) else None
