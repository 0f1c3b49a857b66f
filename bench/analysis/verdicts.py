"""Verdicts on claims: tests every claim on every pair of groups that it is about, with one error rate for all tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.groups import Counterparts, Group, all_else
from bench.analysis.metrics import METRICS, points, signed
from bench.analysis.paired import Comparisons, PairedComparison
from bench.analysis.prediction import predicted
from bench.analysis.stats import (
    LEVEL,
    Estimate,
    accuracy_difference,
    difference,
    holm,
    holm_levels,
    ratio_by_signs,
    ratio_in_order,
)
from bench.store.pairs import PairRecord
from bench.store.records import Cell, Manifest

ClaimVerdict = Literal["supported", "above", "below", "inconclusive", "too few samples", "unknown"]
PRECISE = 0.05
"""Half-width of a ratio's interval, relative, from which on the ratio counts as known."""
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
    """Over process pairs (`paired`), or else over seeds. None if nothing can be compared: random weights, no seed in
    common, or no warm epoch."""
    paired: PairedComparison | None = None
    """The comparison by process pairs, which `estimate` is of; None for accuracies, and where no pair has a result."""
    all_lost: PairedComparison | None = None
    """The process pairs where none of them has a result, so that seeds decide; None otherwise."""
    predicted: float | None
    """The value that the counted work predicts, 1 for a claim about predictions; None if it predicts nothing."""
    verdict: ClaimVerdict
    p: float | None
    """The verdict's p-value, adjusted (Holm) over all findings of the report; None if there was nothing to test."""
    tests: int
    """How many findings of the report were tested."""
    level: float | None = None
    """The error rate of the interval that the verdict rests on: the share of `LEVEL` that Holm leaves this finding.

    None if there was nothing to test."""

    @property
    def by(self) -> Literal["pairs", "seeds"]:
        """What the estimate's interval is over."""
        return "pairs" if self.paired else "seeds"

    @property
    def adjusted(self) -> tuple[float, float] | None:
        """Both ends of the interval that the verdict rests on: it is decided where that lies on one side of each bound.

        It is wider than the 95% interval, since all verdicts of a report share one error rate. None below
        `MIN_SAMPLES`.
        """
        return None if self.level is None or self.estimate is None else self.estimate.interval(self.level)

    @property
    def shown(self) -> str:
        """The estimate with its interval, as text; see `show_estimate`."""
        return show_estimate(self.claim, self.estimate, self.by)

    @property
    def words(self) -> str:
        """The verdict in the claim's own words."""
        return in_words_of(self.claim, self.verdict)

    @property
    def edge(self) -> float | None:
        """The claim's bound on which the estimate lies: known to within `PRECISE`, with the bound in its interval.

        None for a finding that is decided, or that is known less well.
        """
        estimate = self.estimate
        if self.verdict != "inconclusive" or estimate is None or estimate.low is None or estimate.high is None:
            return None
        if not self.claim.is_ratio or (estimate.half_width or 0.0) > PRECISE:
            return None
        return next((bound for bound in self.claim.bounds if estimate.low <= bound <= estimate.high), None)

    @property
    def clear_alone(self) -> bool:
        """True if the finding is undecided only because so many are decided together."""
        ((verdict, _),) = decide_together([(self.claim, self.estimate)])
        return self.verdict == "inconclusive" and verdict in DECIDED


def show_estimate(claim: Claim, estimate: Estimate | None, by: str = "seeds") -> str:
    """Format a ratio or difference with its interval, or with the number of seeds or pairs if those are too few."""
    if estimate is None:
        return "n/a"
    if estimate.low is None or estimate.high is None:
        return f"{claim.show(estimate.value)} ({estimate.n} of {estimate.fewest} {by})"
    if claim.is_ratio:
        return show_ratio(estimate, by, claim)
    n = f"n = {estimate.n}" if by == "seeds" else f"{estimate.n} {by}"
    return f"{claim.show(estimate.value)} ({points(estimate.low)} to {points(estimate.high)}, {n})"


def show_ratio(estimate: Estimate | None, by: str = "seeds", claim: Claim | None = None) -> str:
    """Format a ratio as `show_estimate` does."""
    if estimate is None:
        return "n/a"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}× ({estimate.n} of {estimate.fewest} {by})"
    n = f"n = {estimate.n}" if by == "seeds" else f"{estimate.n} {by}"
    order = f", r = {signed(estimate.dependence.correlation, '.2f')}" if estimate.dependence and by == "seeds" else ""
    digits = digits_of_ratio(estimate, claim)
    return f"{estimate.value:.{digits}f}× ({estimate.low:.{digits}f}–{estimate.high:.{digits}f}, {n}{order})"


def show_share(estimate: Estimate | None, claim: Claim | None = None) -> str:
    """Format a ratio of times as a share with its interval, such as `49% (48–51%)`; `n/a` if it is unknown.

    It has so many digits, up to two, that the ends of the interval differ and none is shown as a bound of the claim.
    """
    if estimate is None:
        return "n/a"
    if estimate.low is None or estimate.high is None:
        return f"{100 / estimate.value:.0f}%"
    low, high = 100 / estimate.high, 100 / estimate.low
    digits = _digits(low, high, [100 / bound for bound in _finite(claim)], least=0)
    return f"{100 / estimate.value:.{digits}f}% ({low:.{digits}f}–{high:.{digits}f}%)"


def digits_of_ratio(estimate: Estimate, claim: Claim | None) -> int:
    """Decimals that a ratio is shown with: two, or up to four, so that no end is shown as a bound of the claim."""
    if estimate.low is None or estimate.high is None:
        return 2
    return _digits(estimate.low, estimate.high, _finite(claim), least=2)


def _finite(claim: Claim | None) -> list[float]:
    """The bounds of a claim about a ratio."""
    return [bound for bound in claim.bounds if math.isfinite(bound)] if claim else []


def _digits(low: float, high: float, bounds: Sequence[float], *, least: int) -> int:
    """The smallest number of decimals, up to two more than `least`, that keeps these numbers apart."""
    for digits in range(least, least + 2):
        shown = f"{low:.{digits}f}", f"{high:.{digits}f}"
        if (shown[0] != shown[1] or low == high) and not {f"{bound:.{digits}f}" for bound in bounds} & set(shown):
            return digits
    return least + 2


def claims_of(manifest: Manifest) -> list[Claim]:
    """The claims of a run: `CLAIMS`, and those of its latest grid. Some are left out where no cells are compared."""
    own = manifest.invocations[-1].grid.get("claims", ()) if manifest.invocations else ()
    claims = [*CLAIMS.values(), *(Claim(**given) for given in own)]
    cells = manifest.cells.values()
    return [claim for claim in claims if not claim.where_planned or planned(claim, cells)]


def planned(claim: Claim, cells: Collection[Cell]) -> int:
    """Number of comparisons that these cells allow. Seeds are repetitions, so they don't count separately."""
    cells = [cell for cell in cells if claim.execution in (None, cell.config.execution)]
    against = [cell for cell in cells if cell.config.regime == claim.against]
    count = 0
    for regime in {cell.config.regime for cell in cells if claim.is_about(cell.config.regime)}:
        ours = {all_else(cell, claim.against) for cell in cells if cell.config.regime == regime}
        count += len(ours & {all_else(cell, regime) for cell in against})
    return count


def planned_without_result(claim: Claim, run: str, manifest: Manifest, findings: Iterable[Finding]) -> int:
    """Number of planned comparisons of a run that lack a result on one side or on both."""
    found = sum(finding.claim == claim and finding.group.run == run for finding in findings)
    return planned(claim, manifest.cells.values()) - found


NEGLIGIBLE = 0.01
"""A ratio closer to 1 than this is no difference: a claim that something takes less is not supported by it."""
PAIRED: dict[str, Callable[[PairedComparison], Estimate | None]] = {
    "epoch_seconds": lambda found: found.speed_up,
    "train_epoch_seconds": lambda found: found.training,
    "peak_memory_bytes": lambda found: found.memory,
}
"""Metric that process pairs measure → its estimate. Claims about it are judged by pairs where there are some."""


def decide_claims(
    claims: Mapping[str, Sequence[Claim]],
    groups: Sequence[Group],
    timed: Mapping[str, Sequence[PairRecord]] | None = None,
) -> list[Finding]:
    """Test every claim on every pair of groups that it is about.

    `claims` maps a run's name to its claims, and `timed` to its process pairs. Claims about times and memory are judged
    by process pairs, and those about accuracy by seeds. Where no pair has a result, seeds judge times too.

    The error rate of all verdicts of one call together is at most 5% (Holm 1979). A verdict's p-value belongs to the
    widest interval that still lies inside, or outside, the claim's region.
    """
    counterparts = Counterparts(groups)
    pairs = [
        (claim, group, against)
        for claim in dict.fromkeys(claim for own in claims.values() for claim in own)
        for group in groups
        if claim in claims[group.run] and claim.is_about(group.config.regime, group.config.execution)
        if (against := counterparts.of(group, claim.against))
    ]
    by_run = {run: Comparisons(records) for run, records in (timed or {}).items()}
    attempted = [_paired(claim, group, against, by_run.get(group.run)) for claim, group, against in pairs]
    compared = [
        found if found and PAIRED[claim.metric](found) else None
        for (claim, _, _), found in zip(pairs, attempted, strict=True)
    ]
    expected = [predicted(claim.metric, against, group) for claim, group, against in pairs]
    estimates = [
        as_claimed(claim, PAIRED[claim.metric](found) if found else _estimate(claim, group, against), ratio)
        for (claim, group, against), found, ratio in zip(pairs, compared, expected, strict=True)
    ]
    decided = _decide([(claim, estimate) for (claim, _, _), estimate in zip(pairs, estimates, strict=True)])
    tests = sum(one.p is not None for one in decided)
    findings = []
    for place, ((claim, group, against), estimate) in enumerate(zip(pairs, estimates, strict=True)):
        findings.append(
            Finding(
                claim=claim,
                group=group,
                against=against,
                estimate=estimate,
                paired=compared[place],
                all_lost=found if (found := attempted[place]) and not found.pairs else None,
                predicted=1.0 if claim.of_prediction and expected[place] else expected[place],
                verdict=decided[place].verdict,
                p=decided[place].p,
                tests=tests,
                level=decided[place].level,
            )
        )
    return findings


def as_claimed(claim: Claim, estimate: Estimate | None, expected: float | None) -> Estimate | None:
    """The estimate that a claim's bounds are about: divided by the predicted ratio, for a claim about predictions.

    None if such a claim has no prediction.
    """
    if estimate is None or not claim.of_prediction:
        return estimate
    return replace(estimate, centre=estimate.centre - math.log(expected)) if expected else None


def decide_together(tested: Sequence[tuple[Claim, Estimate | None]]) -> list[tuple[ClaimVerdict, float | None]]:
    """The verdicts on claims with their p-values, which are adjusted (Holm 1979): one error rate for all of them.

    The p-value is None if there is no estimate, or one without an interval.
    """
    return [(one.verdict, one.p) for one in _decide(tested)]


@dataclass(frozen=True, kw_only=True)
class _Decision:
    verdict: ClaimVerdict
    p: float | None
    level: float | None


def _decide(tested: Sequence[tuple[Claim, Estimate | None]]) -> list[_Decision]:
    """`decide_together`, with the error rate of the interval that each verdict rests on; see `holm_levels`."""
    likeliest = {
        place: likeliest_verdict(claim, estimate)
        for place, (claim, estimate) in enumerate(tested)
        if estimate is not None and estimate.error is not None
    }
    p_values = [p for _, p in likeliest.values()]
    adjusted = dict(zip(likeliest, holm(p_values), strict=True))
    levels = dict(zip(likeliest, holm_levels(p_values), strict=True))
    decided = []
    for place, (_, estimate) in enumerate(tested):
        verdict: ClaimVerdict = "unknown" if estimate is None else "too few samples"
        if place in likeliest:
            verdict = likeliest[place][0] if adjusted[place] < LEVEL else "inconclusive"
        decided.append(_Decision(verdict=verdict, p=adjusted.get(place), level=levels.get(place)))
    return decided


def in_words_of(claim: Claim, verdict: ClaimVerdict) -> str:
    """A verdict in the claim's own words."""
    return {"above": claim.above, "below": claim.below}.get(verdict, verdict)


def verdict_counts(findings: Collection[Finding]) -> str:
    """Count the comparisons by verdict, in words."""
    given = [finding.words for finding in findings]
    words = {"too few samples": "with too few samples"}
    counts = ", ".join(f"{given.count(verdict)} {words.get(verdict, verdict)}" for verdict in dict.fromkeys(given))
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


def _paired(claim: Claim, group: Group, against: Group, timed: Comparisons | None) -> PairedComparison | None:
    """The comparison by process pairs, whether they have results or not; None for metrics that they don't measure."""
    return timed.of(group.cell, against.cell) if claim.metric in PAIRED and timed is not None else None


def _estimate(claim: Claim, group: Group, against: Group) -> Estimate | None:
    metric = METRICS[claim.metric]
    ours, theirs = group.values(claim.metric), against.values(claim.metric)
    if claim.is_ratio:
        return (ratio_by_signs if metric.by_signs else ratio_in_order)(theirs, ours)
    if not ours or not theirs or metric.predictions is None:
        return difference(ours, theirs)  # None if accuracies say nothing
    return accuracy_difference(group.by_image(metric.predictions), against.by_image(metric.predictions))


def likeliest_verdict(claim: Claim, estimate: Estimate) -> tuple[ClaimVerdict, float]:
    """The verdict with the smallest p-value, and that p-value, two-sided and not adjusted."""
    low, high = claim.bounds
    same = 1 + NEGLIGIBLE if claim.is_ratio else 1.0
    # At a bound of 1, "less" and "more" need a difference that matters; between them nothing is decided.
    inner = low * same if low == 1.0 else low, high / same if high == 1.0 else high
    outer = low / same if low == 1.0 else low, high * same if high == 1.0 else high
    choices: dict[ClaimVerdict, float] = {
        "supported": max(estimate.p_not_above(inner[0]), estimate.p_not_below(inner[1])),
        "above": estimate.p_not_above(outer[1]),
        "below": estimate.p_not_below(outer[0]),
    }
    verdict = min(choices, key=lambda name: choices[name])
    return verdict, min(1.0, 2 * choices[verdict])
