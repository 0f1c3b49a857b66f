"""Prints the verdicts on each claim, for `bench claims`: the answers first, then what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.analysis import selection
from bench.analysis.claims import Claim
from bench.analysis.metrics import RATED_BY
from bench.analysis.selection import Selection
from bench.analysis.stats import MIN_SAMPLES
from bench.analysis.verdicts import Finding, overall
from bench.console import say
from bench.report.answers import overalls, selection_overall
from bench.report.fitted import fit_frame
from bench.report.notes import SELECTION, intervals
from bench.report.pages import environment_for, markdown_table
from bench.report.summary import Summary
from bench.report.tables import claims_table, selection_table
from bench.report.terminal import COLOURS
from bench.store.records import USUAL
from tl.text import visible, visible_json

LEGEND = (
    "Measured: for times and memory, the second regime ÷ the first; for accuracies, the first − the second; with a 95% "
    f"interval from {MIN_SAMPLES} pairs or seeds on. The error rate of all verdicts together is at most 5%."
)


_LEFT_OUT_FIRST = {"predicted": 1, "device": 2, "precision": 3, "execution": 3, "weights": 3}
"""Column of the terminal's tables → its rank; see `bench.report.fitted`."""
_OVERALL = {"supported": "green", "refuted": "yellow", "mixed": "yellow"}
"""The verdict on a claim over all backbones → its style."""


def print_claims(summary: Summary, format: str) -> None:
    """Print every claim with its verdicts, as text for a terminal, Markdown (`md`) or JSON.

    See `rows` for the rows of JSON.
    """
    if format == "json":
        print(visible_json(json.dumps(rows(summary), indent=1, ensure_ascii=False)))
    elif format == "md":
        print(_markdown(summary), end="")
    else:
        _print_text(summary, Console())


def _markdown(summary: Summary) -> str:
    return (
        environment_for("md")
        .get_template("claims.md.j2")
        .render(
            answers=[
                *(f"{claim.name}: {claim.statement}? {said}" for claim, said in overalls(summary)),
                f"{selection.NAME}: {selection.STATEMENT}? {selection_overall(summary)}",
            ],
            unlike=_unlike(summary),
            findings=markdown_table(claims_table(summary)) if summary.findings else "",
            legend=_legend(summary),
            selections=markdown_table(selection_table(summary)) if summary.selections else "",
            selection=SELECTION,
        )
    )


def _print_text(summary: Summary, console: Console) -> None:
    answers = Table.grid(padding=(0, 2, 0, 0))
    about: dict[Claim, list[int]] = {}
    for place, finding in enumerate(summary.findings):
        about.setdefault(finding.claim, []).append(place)
    untested = []
    for claim, said in overalls(summary):
        if said.startswith("not tested"):
            untested.append(claim.name)
            continue
        word, _, counts = said.partition(". ")
        text = Text.assemble((visible(claim.name), "bold"), visible(f": {claim.statement}? {counts}"))
        answers.add_row(Text(word, style=_OVERALL.get(word, "dim")), text)
    if summary.selections:
        word, _, counts = selection_overall(summary).partition(". ")
        text = Text.assemble((selection.NAME, "bold"), visible(f": {selection.STATEMENT}? {counts}"))
        answers.add_row(Text(word, style=_OVERALL.get(word, "dim")), text)
    else:
        untested.append(selection.NAME)
    if answers.row_count:
        console.print(answers)
    else:
        say(console, "No claim is tested yet: none has results of both its regimes for the same backbone and device.")
    if untested:
        say(console, f"not tested here: {', '.join(untested)}", style="dim")
    if unlike := _unlike(summary):
        say(console, unlike, style="yellow")
    left_out: dict[str, None] = {}
    table = claims_table(summary)
    for places in about.values():
        found = [summary.findings[place] for place in places]
        left_out |= dict.fromkeys(_print_findings(found, table.iloc[places], summary, console))
    if summary.selections:
        console.print()
        left_out |= dict.fromkeys(_print_selections(summary, console))
    if left_out:
        console.print()
        say(console, f"no room for the columns {'; '.join(left_out)}. `--format md` has all", style="dim")
    for legend in ([_legend(summary)] if summary.findings else []) + ([SELECTION] if summary.selections else []):
        console.print()
        say(console, legend, style="dim")


def _print_findings(found: Sequence[Finding], table: pd.DataFrame, summary: Summary, console: Console) -> list[str]:
    """Print the findings on one claim; `table` is the part of `claims_table` on them. Returns what has no room."""
    table = table.drop(columns=["claim", "holds if"])
    constant = [name for name in table if name not in _ALWAYS and table[name].nunique() == 1]
    constant += ["predicted"] if set(table["predicted"]) == {"n/a"} else []
    claim, compared = found[0].claim, f" ({table['regime'].iloc[0]})" if "regime" in constant else ""
    console.print()
    what = "ratio" if claim.is_ratio else "difference"
    say(console, f"{claim.name}{compared}: holds if the {what} is {summary.words(claim.region)}", style="bold")
    specs = [finding.group.config.spec for finding in found]
    distinct = len({spec.name for spec in specs}) == len(set(specs))
    styles = {finding.words: COLOURS.get(finding.verdict, "") for finding in found}
    shown, left_out = fit_frame(
        table.drop(columns=constant),
        console.width,
        names={"backbone": [spec.name for spec in specs] if distinct else [], "run": []},
        ranks=_LEFT_OUT_FIRST,
        wraps=("regime", "measured", "verdict"),
        styles={"verdict": lambda text: styles.get(text, "")},
    )
    console.print(shown)
    return left_out


_ALWAYS = ("backbone", "measured", "predicted", "verdict")
"""Columns that stay although all their texts are the same."""


def _print_selections(summary: Summary, console: Console) -> list[str]:
    """Print how well cheap scores pick. Returns what has no room."""
    table = selection_table(summary)
    constant = [name for name in ("device", *USUAL) if name in table and table[name].nunique() == 1]
    shown, left_out = fit_frame(
        table.drop(columns=constant),
        console.width,
        names={"picks": [], "most accurate": [], "run": []},
        ranks={"backbones": 2, "agreement": 3, "of a random pick": 4, "trained with": 1},
        wraps=("score", "regret", "verdict"),
    )
    console.print(shown)
    return left_out


def _legend(summary: Summary) -> str:
    return summary.words(" ".join([LEGEND, *intervals(summary)]), by_image=True)


def _unlike(summary: Summary) -> str:
    """A warning of times from several machines; empty if all are from one."""
    if summary.unlike_machines < 2:
        return ""
    return f"The runs used {summary.unlike_machines} machines or sets of libraries, so their times can't be compared."


def rows(summary: Summary) -> list[dict[str, Any]]:
    """One row per comparison of each claim, and per score of `probe-picks`.

    An untested claim has one row, with None for measured values.
    """
    found = []
    for claim in summary.claims:
        about = [finding for finding in summary.findings if finding.claim == claim]
        together = overall(about) if about else "not tested"
        found += [_row(claim, finding, together) for finding in about]
        found += [] if about else [_row(claim, None, together)]
    scores = [_selection_row(one, summary) for one in summary.selections]
    found += scores or [_selection_row(None, summary)]
    return [_EMPTY | row for row in found]


_EMPTY: dict[str, Any] = dict.fromkeys(("score", "backbones", "picked", "best", "agreement", "chance", "because"))
"""What only rows of `probe-picks` have."""


def _selection_row(one: Selection | None, summary: Summary) -> dict[str, Any]:
    """The regret of a cheap score, as a row beside those of other claims."""
    cell, regret = (one.trained.cell, one.regret) if one else (None, None)
    return {
        **dict.fromkeys(_row(summary.claims[0], None, "")),
        "run": one.run if one else None,
        "claim": selection.NAME,
        "statement": selection.STATEMENT,
        "source": selection.SOURCE,
        "metric": RATED_BY,
        "is_ratio": False,
        "regime": cell.config.regime if cell else None,
        "device": cell.device if cell else None,
        "execution": cell.config.execution if cell else None,
        "config": cell.config.model_dump(mode="json", exclude={"backbone", "regime", "seed"}) if cell else None,
        "measured": regret.value if regret else None,
        "low": regret.low if regret else None,
        "high": regret.high if regret else None,
        "by": "seeds" if regret else None,
        "seeds": regret.n if regret else None,
        "holds_to": selection.WITHIN,
        "p": one.p if one else None,
        "verdict": one.words if one else "not tested",
        "overall": selection.overall(summary.selections) if one else "not tested",
        "score": one.score if one else None,
        "backbones": one.backbones if one else None,
        "picked": one.picked if one else None,
        "best": one.best if one else None,
        "agreement": one.agreement if one else None,
        "chance": one.chance if one else None,
        "because": (one.reason or None) if one else selection.why_none(summary.groups),
    }


def _row(claim: Claim, finding: Finding | None, together: str) -> dict[str, Any]:
    estimate = finding.estimate if finding else None
    dependence = estimate.dependence if estimate else None
    cell = finding.group.cell if finding else None
    return {
        "run": finding.group.run if finding else None,
        "claim": claim.name,
        "statement": claim.statement,
        "source": claim.source,
        "metric": claim.metric,
        "is_ratio": claim.is_ratio,
        "backbone": cell.config.backbone if cell else None,
        "regime": cell.config.regime if cell else claim.regime,
        "kind": claim.kind,
        "against": claim.against,
        "device": cell.device if cell else None,
        "execution": cell.config.execution if cell else claim.execution,
        "config": cell.config.model_dump(mode="json", exclude={"backbone", "regime", "seed"}) if cell else None,
        "measured": estimate.value if estimate else None,
        "low": estimate.low if estimate else None,
        "high": estimate.high if estimate else None,
        "by": finding.by if finding and estimate else None,
        "seeds": estimate.n if finding and estimate and finding.by == "seeds" else None,
        "pairs": estimate.n if finding and estimate and finding.by == "pairs" else None,
        "share": 1 / estimate.value if estimate and claim.as_share else None,
        "correlation": dependence.correlation if dependence else None,
        "correlation_p": dependence.p if dependence else None,
        "predicted": finding.predicted if finding else None,
        "holds_from": claim.low,
        "holds_to": claim.high,
        "p": finding.p if finding else None,
        "verdict": finding.words if finding else "not tested",
        "overall": together,
    }
