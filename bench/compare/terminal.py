"""Prints a comparison on a terminal of any width: the answer first, then what changed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from bench.analysis.words import counted
from bench.compare.answer import change_text, equal_counters, parts, sentence
from bench.compare.changes import Comparison
from bench.compare.notes import notes, warnings
from bench.compare.render import MANY, change_frame, machines, mismatches, note_of, unknown_lines
from bench.console import say
from bench.report.fitted import fit_frame
from tl.text import visible

MOST_FINDINGS = 10
"""Reasons of a gate that are printed; the others are counted."""
STYLES = {"worse": "red", "better": "green", "not comparable": "yellow", "inconclusive": "dim", "same": "dim"}
"""Verdict → its style."""
_RANKS = {"new": 1, "base": 1, "counts from": 2, "slower tails": 3}
"""Column → its rank; see `bench.report.fitted`."""


def print_comparison(
    comparison: Comparison,
    console: Console,
    *,
    title: str,
    headline: str = "",
    findings: Sequence[str] = (),
) -> None:
    """Print the comparison. `headline` and `findings`, such as a gate's decision and reasons, come first."""
    answer = f"{headline} {title}: {sentence(comparison)}".strip()
    console.print(Text(visible(answer), style="bold"))
    found = parts(comparison)
    changed = [change for part in found if part.sign != "same" for change in part.changes]
    same = [change for part in found if part.sign == "same" for change in part.changes]
    listed = [f"{change.cell}: {change.quantity.label} {change_text(change)}: " for change in changed]
    listed += [f"{cell}: newly failing: " for cell, _ in comparison.newly_failing]
    reasons = [line for line in findings if not line.startswith(tuple(listed))]
    for line in reasons[:MOST_FINDINGS]:
        say(console, f"  {line}")
    if len(reasons) > MOST_FINDINGS:
        say(console, f"  … and {len(reasons) - MOST_FINDINGS} more; `--format md` has all")
    for cell, words in comparison.newly_failing:
        say(console, f"newly failing: {cell}: {words}", style="red")
    for line in warnings(comparison):
        say(console, line, style="yellow")
    shown = [*changed, *(same if len(same) <= MANY else ())]
    left_out: list[str] = []
    if shown:
        frame = change_frame(shown, comparison)
        base, new = f"base: {comparison.base.name}", f"new: {comparison.others[0].name}"
        frame = frame.rename(columns={base: "base", new: "new", "change (95%)": "change"})
        table, left_out = fit_frame(
            frame,
            console.width,
            names={"cell": [], "side": []},
            ranks=_RANKS,
            wraps=("verdict", "metric", "slower tails"),
            styles={"verdict": lambda text: STYLES.get(text, "")},
        )
        console.print()
        console.print(table)
        console.print()
    if left_out:
        say(console, f"no room for the columns {', '.join(left_out)}; `--format md` has all", style="dim")
    if len(same) > MANY:
        say(console, f"{len(same)} are the same on both sides; `--format md` lists them", style="dim")
    if exact := equal_counters(comparison):
        are = "is" if exact == 1 else "are"
        say(console, f"{counted(exact, 'exact counter')} {are} equal on both sides", style="dim")
    said = set(reasons[:MOST_FINDINGS])
    for line in unknown_lines(comparison, comparison.having("unknown")):
        if line not in said:
            say(console, f"not compared: {line}", style="dim")
    for mismatch in mismatches(comparison):
        say(console, f"times and memory don't compare: {mismatch}", style="yellow")
    for cell, words in comparison.incomplete:
        if f"{cell}: {words}" not in said:
            say(console, f"without a comparison: {cell}: {words}", style="dim")
    for cell, name in comparison.only_new:
        say(console, f"without a comparison: {cell}: only in {name}", style="dim")
    for line in notes(comparison):
        say(console, line, style="dim")
    for sides, machine in machines(comparison):
        say(console, f"{sides}: {machine}", style="dim")
    console.print()
    say(console, note_of(comparison), style="dim")
