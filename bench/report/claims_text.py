"""Prints the verdicts on each claim, for `bench claims`."""

from __future__ import annotations

import json
from typing import Any

from tabulate import tabulate

from bench.analysis import selection
from bench.analysis.claims import Claim
from bench.analysis.metrics import RATED_BY
from bench.analysis.selection import Selection
from bench.analysis.stats import MIN_SAMPLES
from bench.analysis.verdicts import Finding, overall
from bench.report.answers import overalls, selection_overall
from bench.report.notes import SELECTION, intervals
from bench.report.summary import Summary
from bench.report.tables import claims_table, selection_table
from tl.text import visible, visible_json

LEGEND = (
    "Measured: for times and memory, the second regime ÷ the first; for accuracies, the first − the second; with a 95% "
    f"interval from {MIN_SAMPLES} pairs or seeds on. The error rate of all verdicts together is at most 5%."
)


def print_claims(summary: Summary, format: str) -> None:
    """Print every claim with its verdicts, as text or as JSON. See `rows` for the rows of JSON."""
    if format == "json":
        print(visible_json(json.dumps(rows(summary), indent=1, ensure_ascii=False)))
        return
    if summary.findings:
        print(tabulate(claims_table(summary).map(visible).to_dict("records"), headers="keys", disable_numparse=True))
        print(summary.words(f"\n{' '.join([LEGEND, *intervals(summary)])}\n", by_image=True))
    if summary.selections:
        rows_of_scores = selection_table(summary).map(visible).to_dict("records")
        print(f"{tabulate(rows_of_scores, headers='keys', disable_numparse=True)}\n\n{SELECTION}\n")
    for claim, said in overalls(summary):
        print(visible(f"{claim.name}: {claim.statement}? {said}"))
    print(visible(f"{selection.NAME}: {selection.STATEMENT}? {selection_overall(summary)}"))
    if summary.unlike_machines > 1:
        print(
            f"The runs used {summary.unlike_machines} machines or sets of libraries, so their times can't be compared."
        )


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
