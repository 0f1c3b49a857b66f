"""Renders a comparison as Markdown for a pull request, as one HTML file, or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from bench.analysis.stats import MIN_SAMPLES, MIN_SIGNS
from bench.analysis.words import in_words
from bench.compare.answer import ICONS, SIGNS, Part, change_text, counts, equal_counters, parts, sentence
from bench.compare.changes import Change, Comparison
from bench.compare.notes import notes, warnings
from bench.compare.plot import panels
from bench.compare.sides import SampleName, Value
from bench.report.pages import environment_for, markdown_table, style, table_script
from tl.tasks import TASKS

Format = Literal["md", "html", "json"]
MANY = 20
"""Largest number of unchanged rows that Markdown and terminals show unfolded."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """What a table says of a change in one column."""

    text: str
    value: Value | None = None
    """The number that a page sorts by; None where it sorts by the text."""


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A part of a comparison as a table of a page."""

    headings: tuple[str, ...]
    numbers: tuple[str, ...]
    """Headings of the columns that are aligned at the right."""
    rows: tuple[tuple[str, str, dict[str, Field]], ...]
    """Sign, icon and fields of each change; see `answer.ICONS`."""


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
    content = {
        "title": title,
        "headline": headline,
        "sentence": sentence(comparison),
        "findings": list(findings),
        "warnings": warnings(comparison),
        "notes": notes(comparison),
        "comparison": comparison,
        "parts": parts(comparison),
        "many": MANY,
        "exact": equal_counters(comparison),
        "unknown": unknown_lines(comparison, comparison.having("unknown")),
        "mismatches": mismatches(comparison),
        "machines": machines(comparison),
        "note": note_of(comparison),
    }
    if suffix == "md":
        content["table"] = lambda part: markdown_table(change_frame(part.changes, comparison))
    else:
        more = {"panels": panels(comparison), "counts": counts(comparison), "style": style(), "script": table_script()}
        content |= more | {"table": lambda part: _page_table(part, comparison)}
    return environment_for(suffix).get_template(f"compare.{suffix}.j2").render(**content)


def note_of(comparison: Comparison) -> str:
    """How to read a comparison: what its figures are, and when a change counts.

    What is only of runs, or only of benchmarks, is left out where there are none.
    """
    task, base = TASKS[comparison.base.task], comparison.base.name
    repeats = {cell.repeats for side in (comparison.base, *comparison.others) for cell in side.cells.values()}
    runs, rounds = repeats != {"round"}, "round" in repeats
    score = in_words("accuracies", task)
    alike = (
        "both sides were right on the very same images with each seed"
        if task.right_or_wrong
        else f"all images have the same {task.image_score} on both sides with each seed"
    )
    samples = " or ".join([*(["seeds"] if runs else []), *(["rounds of a benchmark"] if rounds else [])])
    looks = f" shared among {comparison.looks} looks" if comparison.looks > 1 else ""
    said = [
        f"Change: the new side ÷ {base}{f'; for shares such as {score}, the new side − {base}' if runs else ''}.",
        f"It has a 95% interval from {MIN_SAMPLES} samples on. Samples are {samples}.",
        "Each process of a benchmark is one round, and the median of its raw times counts: slower tails are named, but "
        "decide nothing."
        if rounds
        else "",
        "A change is worse or better if it is at least as large as the column “counts from” says and a test of no "
        f"change fails, at {100 * comparison.level:.2g}% over this whole comparison (Holm).",
        f"It is the same if it is shown to be smaller than that, at 95%{looks}{f', or if {alike}' if runs else ''}.",
        f"Times{' and memory' if runs else ''} are compared as independent samples (Welch, on logarithms)"
        f"{', and rounds that were measured in turn as pairs' if rounds else ''}.",
        f"For {score}, seeds and images count; for other shares seeds alone, which says nothing about other images. "
        f"Numbers of epochs are compared by sign tests, which need {MIN_SIGNS} seeds."
        if runs
        else "",
        "Counters are compared sample by sample.",
    ]
    return " ".join(filter(None, said))


def mismatches(comparison: Comparison) -> list[str]:
    """The conditions that forbid a comparison of times and memory, each once."""
    several = (each for change in comparison.having("not comparable") for each in change.mismatches)
    return list(dict.fromkeys(map(str, several)))


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


def change_frame(changes: Sequence[Change], comparison: Comparison) -> pd.DataFrame:
    """A table of texts with one row per change."""
    rows = _fields(changes, comparison)
    return pd.DataFrame([{heading: field.text for heading, field in row.items()} for row in rows])


def _page_table(part: Part, comparison: Comparison) -> PageTable:
    rows = _fields(part.changes, comparison)
    signs = [SIGNS[change.verdict] for change in part.changes]
    return PageTable(
        headings=tuple(rows[0]),
        numbers=tuple(heading for heading in rows[0] if any(row[heading].value is not None for row in rows)),
        rows=tuple((sign, ICONS[sign], row) for sign, row in zip(signs, rows, strict=True)),
    )


def _fields(changes: Sequence[Change], comparison: Comparison) -> list[dict[str, Field]]:
    """The table of these changes: heading → field of each row."""
    several, tails = len(comparison.others) > 1, any(change.tails for change in changes)
    new_name = "new" if several else f"new: {comparison.others[0].name}"
    rows = []
    for change in changes:
        base, new = change.typical
        row = {"verdict": Field(text=change.verdict), "cell": Field(text=change.cell)}
        if several:
            row["side"] = Field(text=change.new_side)
        row |= {
            "metric": Field(text=change.quantity.label),
            f"base: {comparison.base.name}": Field(text=_value(change, base, change.base), value=_known(base)),
            new_name: Field(text=_value(change, new, change.new), value=_known(new)),
            "change (95%)": Field(text=change_text(change), value=_known(change.size)),
            "counts from": Field(text=_allowed(change)),
        }
        if tails:
            row["slower tails"] = Field(text=", ".join(map(str, change.tails)))
        rows.append(row)
    return rows


def _known(value: Value) -> Value | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _value(change: Change, value: Value, samples: Mapping[SampleName, Value]) -> str:
    if not samples:
        return "n/a"
    if change.quantity.compared == "exact":
        return " and ".join(change.quantity.show(each) for each in sorted(set(samples.values())))
    return f"{change.quantity.show(value)} (n = {len(samples)})"


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
