"""Verdicts on claims: tests every claim on every pair of groups that it is about, with one error rate for all tests."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.groups import Counterparts, Group, all_else
from bench.analysis.metrics import METRICS, points
from bench.analysis.prediction import predicted
from bench.analysis.stats import LEVEL, MIN_SAMPLES, Estimate, accuracy_difference, difference, holm, ratio_in_order
from bench.store.records import Cell, Manifest

ClaimVerdict = Literal["supported", "above", "below", "inconclusive", "too few samples", "unknown"]
DECIDED: tuple[ClaimVerdict, ...] = ("supported", "above", "below")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The verdict on a claim for one backbone on one device."""

    claim: Claim
    group: Group
    """The group with the claim's regime."""
    against: Group
    """The group that it is compared with."""
    estimate: Estimate | None
    """None if nothing can be compared: random weights, no seed in common, or no warm epoch."""
    predicted: float | None
    """The value that the counted work predicts; None if it predicts nothing."""
    verdict: ClaimVerdict
    p: float | None
    """The verdict's p-value, adjusted (Holm) over all findings of the report; None if there was nothing to test."""

    @property
    def words(self) -> str:
        """The verdict in the claim's own words."""
        return {"above": self.claim.above, "below": self.claim.below}.get(self.verdict, self.verdict)


def show_estimate(claim: Claim, estimate: Estimate | None) -> str:
    """Format a ratio or difference with its interval, or with the number of seeds if they are too few for one."""
    if estimate is None:
        return "n/a"
    if estimate.low is None or estimate.high is None:
        return f"{claim.show(estimate.value)} ({estimate.n} of {MIN_SAMPLES} seeds)"
    if claim.is_ratio:
        order = f", r = {estimate.dependence.correlation:+.2f}" if estimate.dependence else ""
        return f"{claim.show(estimate.value)} ({estimate.low:.2f}–{estimate.high:.2f}, n = {estimate.n}{order})"
    return f"{claim.show(estimate.value)} ({points(estimate.low)} to {points(estimate.high)}, n = {estimate.n})"


def claims_of(manifest: Manifest) -> list[Claim]:
    """The claims of a run: `CLAIMS`, and those of its latest grid."""
    own = manifest.invocations[-1].grid.get("claims", ()) if manifest.invocations else ()
    return [*CLAIMS.values(), *(Claim(**given) for given in own)]


def planned(claim: Claim, cells: Collection[Cell]) -> int:
    """Number of comparisons that these cells allow. Seeds are repetitions, so they don't count separately."""
    against = [cell for cell in cells if cell.config.regime == claim.against]
    count = 0
    for regime in {cell.config.regime for cell in cells if claim.is_about(cell.config.regime)}:
        ours = {all_else(cell, claim.against) for cell in cells if cell.config.regime == regime}
        count += len(ours & {all_else(cell, regime) for cell in against})
    return count


def without_result(claim: Claim, run: str, manifest: Manifest, findings: Iterable[Finding]) -> int:
    """Number of planned comparisons of a run that lack a result on one side or on both."""
    found = sum(finding.claim == claim and finding.group.run == run for finding in findings)
    return planned(claim, manifest.cells.values()) - found


def decide_claims(claims: Mapping[str, Sequence[Claim]], groups: Sequence[Group]) -> list[Finding]:
    """Test every claim on every pair of groups that it is about. `claims` maps a run's name to its claims.

    The error rate of all verdicts of one call together is at most 5% (Holm 1979). A verdict's p-value belongs to the
    widest interval that still lies inside, or outside, the claim's region.
    """
    counterparts = Counterparts(groups)
    pairs = [
        (claim, group, against)
        for claim in dict.fromkeys(claim for own in claims.values() for claim in own)
        for group in groups
        if claim in claims[group.run] and claim.is_about(group.config.regime)
        if (against := counterparts.of(group, claim.against))
    ]
    estimates = [_estimate(claim, group, against) for claim, group, against in pairs]
    tested = {
        place: _likeliest(claim, estimate)
        for place, ((claim, _, _), estimate) in enumerate(zip(pairs, estimates, strict=True))
        if estimate is not None and estimate.error is not None
    }
    adjusted = dict(zip(tested, holm([p for _, p in tested.values()]), strict=True))
    findings = []
    for place, ((claim, group, against), estimate) in enumerate(zip(pairs, estimates, strict=True)):
        verdict: ClaimVerdict = "unknown" if estimate is None else "too few samples"
        if place in tested:
            verdict = tested[place][0] if adjusted[place] < LEVEL else "inconclusive"
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


def tally(findings: Collection[Finding]) -> str:
    """Count the comparisons by verdict, in words."""
    given = [finding.words for finding in findings]
    counts = ", ".join(f"{given.count(verdict)} {verdict}" for verdict in dict.fromkeys(given))
    return f"{len(given)} comparison{'s' if len(given) != 1 else ''}: {counts}"


def overall(findings: Iterable[Finding]) -> str:
    """One word for all backbones and devices together.

    It is `mixed` if some findings support the claim and others refute it, else `open` if some are undecided, else
    `supported` or `refuted`.
    """
    verdicts = {finding.verdict for finding in findings} - {"unknown"}
    refuted = verdicts & {"above", "below"}
    if "supported" in verdicts and refuted:
        return "mixed"
    if not verdicts or verdicts - set(DECIDED):
        return "open"
    return "refuted" if refuted else "supported"


def _estimate(claim: Claim, group: Group, against: Group) -> Estimate | None:
    metric = METRICS[claim.metric]
    ours, theirs = group.values(claim.metric), against.values(claim.metric)
    if claim.is_ratio:
        return ratio_in_order(theirs, ours)
    if not ours or not theirs or metric.predictions is None:
        return difference(ours, theirs)  # None if accuracies say nothing
    return accuracy_difference(group.right(metric.predictions), against.right(metric.predictions))


def _likeliest(claim: Claim, estimate: Estimate) -> tuple[ClaimVerdict, float]:
    """The verdict with the smallest p-value, and that p-value, two-sided."""
    low, high = claim.bounds
    inside = max(estimate.p_not_above(low), estimate.p_not_below(high))
    choices: dict[ClaimVerdict, float] = {
        "supported": inside,
        "above": estimate.p_not_above(high),
        "below": estimate.p_not_below(low),
    }
    verdict = min(choices, key=lambda name: choices[name])
    return verdict, min(1.0, 2 * choices[verdict])
