"""What runs say of claims: every claim against every pair of groups that it is about, with one error rate for all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from bench.claims import CLAIMS, Claim
from bench.groups import Group, counterpart
from bench.metrics import METRICS
from bench.prediction import predicted
from bench.records import Manifest
from bench.stats import LEVEL, MIN_SAMPLES, Estimate, accuracy_difference, difference, holm, ratio

Verdict = Literal["supported", "above the claim", "below the claim", "inconclusive", "too few samples", "unknown"]
DECIDED: tuple[Verdict, ...] = ("supported", "above the claim", "below the claim")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a run says of a claim for one backbone on one device."""

    claim: Claim
    group: Group
    """With the claim's regime."""
    against: Group
    estimate: Estimate | None
    """None where nothing can be compared: random weights, no seed in common, no warm epoch."""
    predicted: float | None
    """By the counted work; None where that predicts nothing."""
    verdict: Verdict
    p: float | None
    """Of the verdict, adjusted (Holm) over all findings of the report; None where there was nothing to test."""


def show_estimate(claim: Claim, estimate: Estimate | None) -> str:
    """A ratio or difference with its interval, or with the number of seeds where that is too small for one."""
    if estimate is None:
        return "n/a"
    if estimate.low is None or estimate.high is None:
        return f"{claim.show(estimate.value)} ({estimate.n} of {MIN_SAMPLES} seeds)"
    if claim.is_ratio:
        return f"{claim.show(estimate.value)} ({estimate.low:.2f}–{estimate.high:.2f})"
    return f"{claim.show(estimate.value)} ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"


def claim_row(finding: Finding) -> dict[str, str]:
    """A finding as text, for people."""
    claim, cell = finding.claim, finding.group.cell
    return {
        "claim": claim.name,
        "backbone": cell.config.backbone,
        "regimes": f"{cell.config.regime} against {claim.against}",
        "device": cell.device,
        "measured": show_estimate(claim, finding.estimate),
        "predicted": claim.show(finding.predicted),
        "holds if": claim.region,
        "verdict": finding.verdict,
    }


def claims_of(manifests: Iterable[Manifest]) -> list[Claim]:
    """Those for everybody, and those of the grids that were run; of two with one name the later one counts."""
    found = dict(CLAIMS)
    for manifest in manifests:
        for call in manifest.invocations:
            found |= {given["name"]: Claim(**given) for given in call.grid.get("claims", ())}
    return list(found.values())


def judge(claims: Iterable[Claim], groups: list[Group]) -> list[Finding]:
    """Hold every claim against every pair of groups that it is about.

    A verdict stands where it would be wrong at most one time in twenty, over all the verdicts of one call
    together (Holm 1979): its p-value is that of the interval which still lies inside, or outside, the region.
    """
    pairs = [
        (claim, group, against)
        for claim in claims
        for group in groups
        if fnmatchcase(group.config.regime, claim.regime) and group.config.regime != claim.against
        if (against := counterpart(group, claim.against, groups))
    ]
    estimates = [_estimate(claim, group, against) for claim, group, against in pairs]
    tried = {
        place: _likeliest(claim, estimate)
        for place, ((claim, _, _), estimate) in enumerate(zip(pairs, estimates, strict=True))
        if estimate is not None and estimate.error is not None
    }
    adjusted = dict(zip(tried, holm([p for _, p in tried.values()]), strict=True))
    findings = []
    for place, ((claim, group, against), estimate) in enumerate(zip(pairs, estimates, strict=True)):
        verdict: Verdict = "unknown" if estimate is None else "too few samples"
        if place in tried:
            verdict = tried[place][0] if adjusted[place] < LEVEL else "inconclusive"
        findings.append(
            Finding(
                claim=claim,
                group=group,
                against=against,
                estimate=estimate,
                predicted=predicted(claim.metric, against, group),
                verdict=verdict,
                p=adjusted.get(place),
            )
        )
    return findings


def verdicts(findings: Collection[Finding]) -> str:
    """How many comparisons have which verdict, in words."""
    given = [finding.verdict for finding in findings]
    counts = ", ".join(f"{given.count(verdict)} {verdict}" for verdict in dict.fromkeys(given))
    return f"Of {len(given)} comparison{'s' if len(given) != 1 else ''}: {counts}"


def overall(findings: Iterable[Finding]) -> str:
    """All backbones and devices together, in one word: `supported`, `refuted`, `mixed` or `open`."""
    verdicts = {finding.verdict for finding in findings} - {"unknown"}
    decided = verdicts & set(DECIDED)
    if not decided or (verdicts - decided and len(decided) == 1):
        return "open"
    if decided == {"supported"}:
        return "supported"
    return "mixed" if "supported" in decided else "refuted"


def _estimate(claim: Claim, group: Group, against: Group) -> Estimate | None:
    metric = METRICS[claim.metric]
    ours, theirs = group.values(claim.metric), against.values(claim.metric)
    if claim.is_ratio:
        return ratio(theirs, ours)
    if metric.predictions is None:
        return difference(ours, theirs)
    if not ours or not theirs:
        return None  # accuracies that say nothing
    return accuracy_difference(group.right(metric.predictions), against.right(metric.predictions))


def _likeliest(claim: Claim, estimate: Estimate) -> tuple[Verdict, float]:
    """The verdict with the smallest p-value, two-sided."""
    low, high = claim.bounds
    inside = max(estimate.p_not_above(low), estimate.p_not_below(high))
    choices: dict[Verdict, float] = {
        "supported": inside,
        "above the claim": estimate.p_not_above(high),
        "below the claim": estimate.p_not_below(low),
    }
    verdict = min(choices, key=lambda name: choices[name])
    return verdict, min(1.0, 2 * choices[verdict])
