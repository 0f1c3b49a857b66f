"""`bench claims`: what runs say of each claim."""

from __future__ import annotations

import json
from typing import Any

from tabulate import tabulate

from bench.claims import Claim
from bench.findings import Finding, claim_row, claims_of, judge, overall, verdicts
from bench.groups import make_groups
from bench.records import Run


def print_claims(runs: list[Run], format: str) -> None:
    """Print every claim with its verdicts, as text or as JSON. Raises `UserError` for a run that can't be read."""
    manifests = {run.name: run.manifest() for run in runs}
    records = [(run.name, record) for run in runs for record in run.records().values()]
    groups = make_groups(records, {name: manifest.dataset.val_labels for name, manifest in manifests.items()})
    claims = claims_of(manifests.values())
    findings = judge(claims, groups)
    if format == "json":
        print(json.dumps(_rows(claims, findings), indent=1, ensure_ascii=False))
        return
    if findings:
        rows = [({"run": f.group.run} if len(runs) > 1 else {}) | claim_row(f) for f in findings]
        print(tabulate(rows, headers="keys", disable_numparse=True), end="\n\n")
    for claim in claims:
        about = [finding for finding in findings if finding.claim.name == claim.name]
        said = f"{overall(about)}. {verdicts(about)}" if about else f"not tested: {_wanted(claim)}"
        print(f"{claim.name}: {claim.statement}? {said}")


def _wanted(claim: Claim) -> str:
    return f"no backbone has both {claim.regime} and {claim.against}"


def _rows(claims: list[Claim], findings: list[Finding]) -> list[dict[str, Any]]:
    """A row a finding, and one with nulls for each claim that nothing was found of."""
    rows = [_row(finding.claim, finding) for finding in findings]
    tested = {finding.claim.name for finding in findings}
    return rows + [_row(claim, None) for claim in claims if claim.name not in tested]


def _row(claim: Claim, finding: Finding | None) -> dict[str, Any]:
    estimate = finding.estimate if finding else None
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
        "against": claim.against,
        "device": cell.device if cell else None,
        "precision": cell.config.precision if cell else None,
        "measured": estimate.value if estimate else None,
        "low": estimate.low if estimate else None,
        "high": estimate.high if estimate else None,
        "seeds": estimate.n if estimate else None,
        "predicted": finding.predicted if finding else None,
        "holds_from": claim.low,
        "holds_to": claim.high,
        "p": finding.p if finding else None,
        "verdict": finding.verdict if finding else "not tested",
    }
