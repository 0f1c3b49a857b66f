"""Prints the answer, the claim and the table for `bench show`: to a terminal of any width, or as Markdown."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.analysis.metrics import headline
from bench.analysis.verdicts import show_share
from bench.console import say
from bench.report.answers import answers
from bench.report.fitted import Fitted, fit
from bench.report.pages import environment_for, markdown_table
from bench.report.settings_text import largest_class_note
from bench.report.summary import Summary
from bench.report.tables import BESIDE_ACCURACY, DOUBT, Column, cells_table, columns, speed_up_table, tells_apart
from bench.report.without import without_result
from tl.text import visible

COLOURS = {"supported": "green", "above": "yellow", "below": "yellow", "inconclusive": "dim"}
"""Verdict → its style."""


def summary_markdown(summary: Summary) -> str:
    """The main results of a report as Markdown, which ends with a newline."""
    return (
        environment_for("md")
        .get_template("show.md.j2")
        .render(
            warnings=warnings(summary),
            answers=answers(summary),
            progress=summary.progress,
            speed_ups=markdown_table(speed_up_table(summary)) if summary.speed_ups else "",
            cells=markdown_table(cells_table(summary)) if summary.groups else "",
            largest_class=largest_class_note(summary) if summary.groups else "",
            lost=[text for text, _ in lines_without_result(summary)],
            notes=summary.notes,
        )
    )


def print_summary(summary: Summary, console: Console) -> None:
    """Print the main results of a report. Columns that don't fit are left out, and a line names them."""
    for warning in warnings(summary):
        say(console, f"WARNING: {warning}", style="bold yellow")
    for answer in answers(summary):
        console.print(Text(visible(answer), style="bold"))
    for said in summary.progress:
        say(console, said, style="yellow")
    if summary.speed_ups:
        console.print()
        console.print(_claim(summary, console.width))
    if summary.groups:
        console.print()
        table, left_out = _cells(summary, console.width)
        console.print(table)
        if largest := largest_class_note(summary):
            say(console, largest, style="dim")
        if left_out:
            say(console, f"no room for the columns {'; '.join(left_out)}. `--format md` has all", style="dim")
    for text, style in lines_without_result(summary):
        say(console, text, style=style)
    for note in summary.notes:
        say(console, f"note: {note}", style="dim")


def warnings(summary: Summary) -> list[str]:
    """What is seriously wrong with the images of a report."""
    return [*(f"the images are {reason}" for reason in summary.fallbacks), *summary.image_warnings]


def lines_without_result(summary: Summary) -> list[tuple[str, str]]:
    """A line for all cells and process pairs without a result for the same reason, with its style."""
    started = [one for one in without_result(summary) if one.status != "not run yet"]
    return [(str(one), "red" if one.bad else "yellow") for one in started]


def _claim(summary: Summary, width: int) -> Table:
    rows = summary.speed_ups
    several = len({row.fast.config.regime for row in rows}) > 1
    named = [summary.short(row.fast) + (f", {row.fast.config.regime}" if several else "") for row in rows]
    verdicts = {row.finding.words: COLOURS.get(row.finding.verdict, "") for row in rows}
    table, _ = fit(
        [
            Fitted(heading="only the head", texts=tuple(named), is_name=True),
            Fitted(heading="share", texts=tuple(show_share(row.speed_up, row.finding.claim) for row in rows)),
            Fitted(heading="speed-up", texts=tuple(row.finding.shown for row in rows), rank=1),
            Fitted(
                heading="predicted",
                texts=tuple(row.finding.claim.show(row.finding.predicted) for row in rows),
                rank=2,
            ),
            Fitted(
                heading="“about half the time”",
                texts=tuple(row.finding.words for row in rows),
                wraps=True,
                styles=lambda text: verdicts.get(text, ""),
            ),
        ],
        width,
    )
    return table


def _cells(summary: Summary, width: int) -> tuple[Table, list[str]]:
    """The table, and the headings that don't fit. Names of rows come first, then headline metrics, then the others."""
    available = columns(summary)
    first = [*headline(), *BESIDE_ACCURACY]
    names = [column for column in available if not column.metric and tells_apart(column)]
    ranked = sorted(
        (column for column in available if column.metric),
        key=lambda column: first.index(column.metric) if column.metric in first else len(first),
    )
    return fit(
        [
            *(_name(column, summary) for column in names),
            *(
                Fitted(
                    heading=column.heading,
                    texts=column.texts,
                    brief=column.brief,
                    rank=max(0, place - NARROWEST + 1),
                    right=True,
                )
                for place, column in enumerate(ranked)
            ),
        ],
        width,
    )


NARROWEST = 2
"""Number of headline metrics that even the narrowest terminal shows."""


def _name(column: Column, summary: Summary) -> Fitted:
    """A column that identifies rows, with names of backbones without their library as its shorter form."""
    specs = {group.config.spec for group in summary.groups}
    bare = tuple(group.config.spec.name for group in summary.groups)
    distinct = column.heading == "backbone" and len({spec.name for spec in specs}) == len(specs)
    is_name = column.heading in ("backbone", "run", "device")
    in_doubt = column.heading == DOUBT
    return Fitted(
        heading=column.heading,
        texts=column.texts,
        brief=bare if distinct else (),
        is_name=is_name,
        wraps=in_doubt,
        styles=(lambda text: "yellow") if in_doubt else None,
    )
