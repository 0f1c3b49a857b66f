"""Prints the answer, the claim and the table to a terminal of any width, for `bench show`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.analysis.metrics import headline
from bench.analysis.verdicts import show_share
from bench.console import say
from bench.report.answers import answers
from bench.report.settings_text import largest_class_note
from bench.report.summary import Summary
from bench.report.tables import BESIDE_ACCURACY, Column, columns
from tl.text import visible

COLOURS = {"supported": "green", "above": "yellow", "below": "yellow", "inconclusive": "dim"}
NARROWEST = 2
"""Number of headline metrics that even the narrowest terminal shows."""


def print_summary(summary: Summary, console: Console) -> None:
    """Print the main results of a report. Columns that don't fit are left out, and a line names them."""
    for reason in summary.fallbacks:
        say(console, f"WARNING: the images are {reason}", style="bold yellow")
    for warning in summary.image_warnings:
        say(console, f"WARNING: {warning}", style="bold yellow")
    for answer in answers(summary):
        console.print(Text(visible(answer), style="bold"))
    for said in summary.progress:
        say(console, said, style="yellow")
    if summary.speed_ups:
        console.print()
        console.print(_claim(summary))
    if summary.groups:
        console.print()
        table, left_out = _cells(summary, console.width)
        console.print(table)
        if largest := largest_class_note(summary):
            say(console, largest, style="dim")
        if left_out:
            say(console, f"no room for: {', '.join(left_out)}", style="dim")
    for record in summary.unfinished:
        style = "yellow" if record.status == "skipped" else "red"
        say(console, f"{record.status}: {record.cell}: {record.reason}", style=style)
    for pair in summary.lost_pairs:
        for status, reason in pair.lost:
            say(console, f"{status}: {pair}: {reason}", style="red")
    for note in summary.notes:
        say(console, f"note: {note}", style="dim")


def _claim(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("only the head", "share", "speed-up", "predicted", "“about half the time”"):
        table.add_column(name, overflow="fold")
    several = len({row.fast.config.regime for row in summary.speed_ups}) > 1
    for row in summary.speed_ups:
        claim = row.finding.claim
        name = summary.short(row.fast) + (f", {row.fast.config.regime}" if several else "")
        table.add_row(
            Text(visible(name)),
            show_share(row.speed_up, row.finding.claim),
            row.finding.shown,
            claim.show(row.finding.predicted),
            Text(row.finding.words, style=COLOURS.get(row.finding.verdict, "")),
        )
    return table


def _cells(summary: Summary, width: int) -> tuple[Table, list[str]]:
    """The table, and the headings that don't fit. Names of rows come first, then headline metrics, then the others."""
    available, first = columns(summary), headline()
    least = first[:NARROWEST]
    first = [*first, *BESIDE_ACCURACY]
    names = [column for column in available if not column.metric and column.heading not in ("weights", "frozen")]
    # A column with the same text in all rows identifies none of them.
    names = [column for column in names if column.heading in ("backbone", "regime") or len(set(column.texts)) > 1]
    if sum(map(_width, names)) + sum(_width(column) for column in available if column.metric in least) > width:
        available = [_briefly(column, summary) for column in available]
        names = [_briefly(column, summary) for column in names]
    ranked = sorted(
        (column for column in available if column.metric),
        key=lambda column: first.index(column.metric) if column.metric in first else len(first),
    )
    chosen, used = list(names), sum(_width(column) for column in names)
    for column in ranked:
        if column.metric in least or used + _width(column) <= width:
            chosen.append(column)
            used += _width(column)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in chosen:
        right: Literal["left", "right"] = "right" if column.metric else "left"
        table.add_column(column.heading, overflow="fold", justify=right, min_width=max(map(len, column.texts)))
    for row in range(len(summary.groups)):
        table.add_row(*(Text(visible(column.texts[row])) for column in chosen))
    return table, [column.heading for column in ranked if column not in chosen]


def _briefly(column: Column, summary: Summary) -> Column:
    """The column in its shortest form: backbones without their library, accuracies without their interval."""
    if column.heading == "backbone":
        return replace(column, texts=tuple(group.config.spec.name for group in summary.groups))
    return replace(column, texts=column.brief or column.texts)


def _width(column: Column) -> int:
    return max(map(len, (column.heading, *column.texts))) + 2
