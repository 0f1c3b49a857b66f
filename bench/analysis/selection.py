"""Tests the claim that a probe picks the winner: the backbone whose trainings turn out best.

Every cheap score of a run is tested on the run's own trainings: do they rank backbones alike, and how many points of
accuracy does it cost to take the backbone that the score ranks first?
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from bench.analysis.groups import Group
from bench.analysis.probe import in_order, logme_of, probes_of
from bench.analysis.stats import LEVEL, MIN_SAMPLES, Regret, holm, regret, weighted_kendall
from bench.analysis.verdicts import ClaimVerdict
from tl.regimes import REGIMES

NAME = "probe-picks"
STATEMENT = "The probe picks the winner"
SOURCE = "k-NN as an estimator of transferability, arXiv 2503.18528"
WITHIN = 0.02
"""The claim holds if the regret is at most this share."""
TRAINED = ("finetune", "frozen")
"""Regimes whose trainings say which backbone is best."""
MIN_BACKBONES = 3
"""With two, a coin picks the winner every other time."""
LOGME = "logme"
REGION = f"regret of at most {100 * WITHIN:g} points"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a run's trainings say of one cheap score."""

    run: str
    trained: Group
    """One of the groups of trainings, which differ in their backbone alone."""
    score: str
    """A regime that fits its head, for the accuracy of its probe, or `logme`."""
    backbones: int
    """How many have both the score and trainings."""
    untrained: int
    """How many have the score alone."""
    picked: str
    """The backbone that the score ranks first among those that were trained."""
    best: str
    """The backbone whose trainings are most accurate."""
    chance: float
    """Regret of a backbone that is picked at random, on average, as a share."""
    agreement: float | None
    """Weighted Kendall's tau of score and accuracy: 1 for the same order, in which high ranks count more; None if one
    of them has the same value everywhere."""
    regret: Regret | None
    """None with fewer than `MIN_BACKBONES`, or without a seed that all have."""
    verdict: ClaimVerdict = "unknown"
    p: float | None = None
    """The verdict's p-value, adjusted (Holm) over all scores of the report; None if there was nothing to test."""

    @property
    def reason(self) -> str:
        """Why the verdict is not a decision; empty if it is one, or if the interval says it."""
        if self.backbones < MIN_BACKBONES:
            have = "1 backbone has" if self.backbones == 1 else f"{self.backbones} backbones have"
            return f"{have} both a score and trainings, and {MIN_BACKBONES} are needed"
        if self.untrained:
            one = "backbone was" if self.untrained == 1 else "backbones were"
            return f"{self.untrained} scored {one} not trained, and the score itself may have decided that"
        if self.regret is None:
            return "no seed was trained with all backbones"
        return f"{self.regret.n} of {MIN_SAMPLES} seeds" if self.regret.low is None else ""

    @property
    def words(self) -> str:
        """The verdict in words."""
        return "picks a worse one" if self.verdict == "above" else self.verdict

    @property
    def by_chance(self) -> str:
        """The regret of a random pick, as text."""
        return f"{100 * self.chance:.1f} points"

    @property
    def shown(self) -> str:
        """The regret with its interval, as text."""
        if self.regret is None:
            return "n/a"
        value = f"{100 * self.regret.value:.1f} points"
        if self.regret.low is None or self.regret.high is None:
            return value
        return f"{value} ({100 * self.regret.low:.1f} to {100 * self.regret.high:.1f}, n = {self.regret.n})"


def selections(groups: Sequence[Group]) -> list[Selection]:
    """Test every score of every run on each set of trainings that differ in their backbone alone.

    All verdicts together have one error rate, apart from that of the other claims.
    """
    trained: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        if group.config.regime in TRAINED and group.accuracy is not None:
            alike = group.cell.but(backbone="any").replace(weights_digest="")
            trained.setdefault((group.run, alike.id), []).append(group)
    found = [one for some in trained.values() for one in _of(some, groups)]
    return _decided(found)


def _of(trained: Sequence[Group], groups: Iterable[Group]) -> list[Selection]:
    """The scores of the same run, device and precision, against these trainings; without verdicts."""
    first = trained[0]
    here = [
        group
        for group in groups
        if REGIMES[group.config.regime].fit != "steps"
        and (group.run, group.cell.device, group.config.precision)
        == (first.run, first.cell.device, first.config.precision)
    ]
    scored: dict[str, dict[str, float]] = {}
    """Score → backbone → value, the best first."""
    for regime in REGIMES:
        records = [record for group in here if group.config.regime == regime for record in group.records]
        if probes := probes_of(records):
            scored[regime] = {name: probe.accuracy for name, probe in in_order(probes).items()}
    features = probes_of(record for group in here for record in group.records)
    if evidence := {name: value for name, probe in features.items() if math.isfinite(value := logme_of(probe))}:
        scored[LOGME] = dict(sorted(evidence.items(), key=lambda item: -item[1]))
    by_backbone = {group.config.backbone: group for group in trained}
    return [
        _selection(score, values, by_backbone) for score, values in scored.items() if values.keys() & by_backbone.keys()
    ]


def _selection(score: str, scores: dict[str, float], trained: dict[str, Group]) -> Selection:
    values = {name: value for name, value in scores.items() if name in trained}
    both = [trained[name] for name in values]
    accuracies = [group.accuracy or 0.0 for group in both]
    # Where some were not trained, the score itself may have decided that: then it can't be refuted any more.
    enough = len(both) >= MIN_BACKBONES and len(both) == len(scores)
    return Selection(
        run=both[0].run,
        trained=both[0],
        score=score,
        backbones=len(both),
        untrained=len(scores) - len(both),
        picked=both[0].config.backbone,
        best=both[accuracies.index(max(accuracies))].config.backbone,
        chance=max(accuracies) - fmean(accuracies),
        agreement=weighted_kendall(list(values.values()), accuracies) if enough else None,
        regret=regret([group.by_image() for group in both], 0, WITHIN) if enough else None,
    )


def overall(found: Iterable[Selection]) -> str:
    """One word for all scores together.

    It is `mixed` if some pick well and others don't, else `open` if some are undecided.
    """
    verdicts = {one.verdict for one in found} - {"unknown"}
    if {"supported", "above"} <= verdicts:
        return "mixed"
    if len(verdicts) != 1 or not verdicts & {"supported", "above"}:
        return "open"
    return "supported" if "supported" in verdicts else "refuted"


def _decided(found: Sequence[Selection]) -> list[Selection]:
    tests = {place: one.regret.verdict for place, one in enumerate(found) if one.regret and one.regret.verdict}
    adjusted = dict(zip(tests, holm([p for _, p in tests.values()]), strict=True))
    decided = []
    for place, one in enumerate(found):
        verdict: ClaimVerdict = "too few samples" if one.regret else "unknown"
        if place in tests:
            within = tests[place][0]
            verdict = ("supported" if within else "above") if adjusted[place] < LEVEL else "inconclusive"
        decided.append(replace(one, verdict=verdict, p=adjusted.get(place)))
    return decided


def name_of(score: str) -> str:
    """A score in words."""
    return "LogME" if score == LOGME else f"{score} without the image"


def why_none(groups: Sequence[Group]) -> str:
    """Why runs have no selection to test, in words."""
    fitted = [name for name, regime in REGIMES.items() if regime.fit != "steps"]
    if not any(record.result and record.result.probe for group in groups for record in group.records):
        return f"no cell of the regimes {', '.join(fitted)} has a probe"
    return f"no backbone has both a probe and trainings of {' or '.join(TRAINED)} that count"
