"""Ranks backbones by their probes: how many training images a fitted head predicts right without having seen them.

Nothing here uses a validation image, so a backbone can be chosen before anything is validated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bench.analysis.stats import LEVEL, holm, mcnemar, wilson
from bench.store.records import Record
from tl.errors import ConfigError
from tl.results import Probe


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A backbone's place in a ranking."""

    backbone: str
    probe: float
    """Share of the training images that are predicted right without them."""
    low: float
    high: float
    """Its 95% interval (Wilson)."""
    tied: bool
    """True for the first backbone, and for those that are statistically tied with it."""


def rank_by_probe(records: Iterable[Record], regime: str = "knn") -> list[Ranked]:
    """Rank the backbones of a run on one device by their probes with a regime that fits its head, the best first.

    Equal accuracies are ranked by LogME. A backbone is tied with the first one unless McNemar's exact test on the same
    training images tells them apart, adjusted for all backbones (Holm). Other records, such as those of other regimes,
    without a probe, or with random weights in place of pretrained ones, are left out. Raises `ConfigError` if probes
    are of different training images.
    """
    probes = in_order(probes_of(record for record in records if record.cell.config.regime == regime))
    if not probes:
        return []
    first, *others = [probe.right for probe in probes.values()]
    p_values = [1.0, *holm([mcnemar(first, other).p for other in others])]
    ranking = []
    for (backbone, probe), p in zip(probes.items(), p_values, strict=True):
        share = wilson(sum(probe.right), len(probe.right))
        ranking.append(Ranked(backbone=backbone, probe=share.value, low=share.low, high=share.high, tied=p >= LEVEL))
    return ranking


def probes_of(records: Iterable[Record]) -> dict[str, Probe]:
    """Backbone → its probe. Of several records of a backbone, that with the smallest seed counts.

    Raises `ConfigError` if probes are of different training images.
    """
    found: dict[str, Probe] = {}
    for record in sorted(records, key=lambda record: record.cell.config.seed):
        if record.result and record.result.probe and record.result.accuracy_counts:
            found.setdefault(record.cell.config.backbone, record.result.probe)
    if (sets := len({tuple(probe.truth) for probe in found.values()})) > 1:
        raise ConfigError(f"probes of {sets} different sets of training images: give the records of one run")
    return found


def in_order(probes: Mapping[str, Probe]) -> dict[str, Probe]:
    """Probes by accuracy, then by LogME, the best first."""
    ranked = sorted(probes.items(), key=lambda item: (-item[1].accuracy, -logme_of(item[1])))
    return dict(ranked)


def logme_of(probe: Probe) -> float:
    """LogME of a probe; minus infinity if it is unknown."""
    return -math.inf if probe.logme is None else probe.logme
