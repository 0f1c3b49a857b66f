"""Claims that runs are tested against. A claim is data: a statement, what it compares, and the region where it holds.

To add a claim for all runs, add an entry to `CLAIMS`. For the runs of one grid, add a `[[claims]]` table to its file.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import Any

from pydantic import Field, field_validator, model_validator

from bench.analysis.metrics import METRICS, RATED_BY, points
from bench.analysis.prediction import PREDICTED
from tl.config import EXECUTIONS
from tl.errors import ConfigError, not_one_of
from tl.regimes import REGIMES, Regime
from tl.strict import Strict

KINDS: dict[str, Callable[[Regime], bool]] = {
    "head-only": lambda regime: regime.trainable.only_head and regime.plain and not regime.control,
}
"""Kinds of regimes that a claim can be about. A kind depends on what a regime does, not on its name."""


class Claim(Strict):
    """A statement about two regimes of the same backbone, on the same device and images.

    For accuracies, the measured value is `regime` minus `against`. For other metrics it is `against` divided by
    `regime`: how many times less time or memory the regime takes. With `of_prediction` that ratio is divided by the one
    that the counted work predicts. The claim holds if the value lies between `low` and `high`.
    """

    name: str = Field(min_length=1)
    statement: str = Field(min_length=1)
    source: str = ""
    metric: str = Field(description="the metric that is compared, a key of `bench.analysis.metrics.METRICS`")
    regime: str | None = Field(
        None, description="the regime that the claim is about, or a pattern with * and ?; give this or `kind`"
    )
    kind: str | None = Field(None, description="the kind of regimes, a key of `KINDS`; give this or `regime`")
    against: str = Field("finetune", description="the regime that it is compared with")
    execution: str | None = Field(None, description="the execution that the claim is about; any without it")
    as_share: bool = Field(False, description="show a ratio also as the share of `against` that `regime` takes")
    of_prediction: bool = Field(
        False, description="divide the ratio by the predicted one, so that 1 means as predicted"
    )
    where_planned: bool = Field(
        False, description="leave the claim out of reports on runs that plan no such comparison"
    )
    low: float | None = Field(None, description="lowest value for which the claim holds; no bound without it")
    high: float | None = Field(None, description="highest value for which the claim holds; no bound without it")
    above: str = Field("above the claim", description="the verdict's words if the value is certainly above `high`")
    below: str = Field("below the claim", description="the verdict's words if the value is certainly below `low`")

    @field_validator("metric", "against", "regime", "kind", "execution")
    @classmethod
    def _known(cls, value: str | None, info: Any) -> str | None:
        tables: dict[str, Collection[str]] = {"metric": METRICS, "kind": KINDS, "execution": EXECUTIONS}
        choices = tables.get(info.field_name, REGIMES)
        fits = fnmatchcase if info.field_name == "regime" else operator.eq
        if value is not None and not any(fits(name, value) for name in choices):
            raise ConfigError(not_one_of(info.field_name, value, choices))
        return value

    @model_validator(mode="after")
    def _a_region(self) -> Claim:
        given = [bound for bound in (self.low, self.high) if bound is not None]
        low, high = self.bounds
        if not low < high or not given:
            raise ConfigError(f"low={self.low}, high={self.high}: give one finite bound, or a low below a high")
        if self.is_ratio and min(given) <= 0:
            raise ConfigError(f"low={self.low}, high={self.high}: bounds of a ratio must be above 0")
        if self.as_share and not self.is_ratio:
            raise ConfigError(f"as_share=True: metric {self.metric!r} is compared by its difference, not by a ratio")
        if self.of_prediction and self.metric not in PREDICTED:
            raise ConfigError(
                f"of_prediction=True: work predicts no {self.metric!r}, only {' and '.join(PREDICTED)}; leave it out"
            )
        if self.as_share and self.of_prediction:
            raise ConfigError(
                "as_share=True: a ratio that is divided by another one is no share; leave one of them out"
            )
        if (self.regime is None) == (self.kind is None):
            raise ConfigError(f"regime={self.regime!r}, kind={self.kind!r}: give exactly one of them")
        if self.regime == self.against:
            raise ConfigError(f"against={self.against!r}: must be another regime than `regime`")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """`low` and `high`; a missing bound is infinite."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    @property
    def is_ratio(self) -> bool:
        """True if the claim is about a ratio, False if it is about a difference of shares."""
        return METRICS[self.metric].compared != "difference"

    @property
    def by_signs(self) -> bool:
        """True if the claim's ratio is tested by signs, over seeds; see `Metric.by_signs`."""
        return METRICS[self.metric].by_signs

    def is_about(self, regime: str, execution: str | None = None) -> bool:
        """True if the claim compares this regime with `against`, in this execution if one is given."""
        if regime == self.against or (execution is not None and self.execution not in (None, execution)):
            return False
        return KINDS[self.kind](REGIMES[regime]) if self.kind else fnmatchcase(regime, self.regime or "")

    @property
    def subject(self) -> str:
        """The regimes that the claim is about, as words for a sentence."""
        return f"{self.kind} regimes" if self.kind else self.regime or ""

    @property
    def region(self) -> str:
        """The region where the claim holds, in words."""
        text = _range(self.show, self.low, self.high)
        if self.of_prediction:
            return f"{text} of what the counted work predicts"
        if not self.as_share:
            return text
        metric = METRICS[self.metric]
        what = "time" if metric.in_seconds else "memory" if metric.in_bytes else "value"
        whose = "fine-tuning" if self.against == "finetune" else self.against
        return f"{text}, {_range(self.share, self.high, self.low)} of {whose}'s {what}"

    def share(self, value: float | None) -> str:
        """Format the share that belongs to a ratio; `n/a` if it is unknown."""
        return "n/a" if value is None else f"{percent(1 / value)}%"

    def show(self, value: float | None) -> str:
        """Format a ratio or a difference; `n/a` if it is unknown."""
        if value is None:
            return "n/a"
        return f"{value:.2f}×" if self.is_ratio else f"{points(value)} points"


def _range(show: Callable[[float | None], str], low: float | None, high: float | None) -> str:
    if high is None:
        return f"above {show(low)}"
    return f"below {show(high)}" if low is None else f"{show(low)} to {show(high)}"


def percent(share: float) -> str:
    """Format a share in percent: with one decimal where that is not 0, as in 62.5 and 40."""
    return f"{100 * share:.1f}".removesuffix(".0")


CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        Claim(
            name="half-the-time",
            statement="With the tutorial's own loop, training only the head takes about half the time of fine-tuning",
            source="PyTorch transfer-learning tutorial, on training with a fixed backbone on a CPU",
            metric="epoch_seconds",
            regime="frozen-tutorial",
            execution="plain",
            as_share=True,
            low=1.6,
            high=2.5,
            above="faster than claimed",
            below="slower than claimed",
        ),
        Claim(
            name="half-the-time-fast",
            statement="With this suite's loop, training only the head takes about half the time of fine-tuning",
            source="the tutorial's claim, asked of execution `fast`",
            metric="epoch_seconds",
            kind="head-only",
            execution="fast",
            as_share=True,
            low=1.6,
            high=2.5,
            above="faster than claimed",
            below="slower than claimed",
        ),
        Claim(
            name="less-memory",
            statement="Training only the head needs less memory than fine-tuning",
            source="common advice; what is kept for the backward pass and the optimiser falls away",
            metric="peak_memory_bytes",
            kind="head-only",
            low=1.0,
        ),
        Claim(
            name="no-worse",
            statement="Training only the head loses at most 2 points of accuracy",
            source="PyTorch transfer-learning tutorial: 93% fine-tuned, 95% with the head alone",
            metric=RATED_BY,
            kind="head-only",
            low=-0.02,
        ),
        Claim(
            name="transfer-helps",
            statement="Fine-tuning beats training from random weights",
            source="common advice; the reason for transfer learning",
            metric=RATED_BY,
            regime="finetune",
            against="scratch",
            low=0.0,
        ),
        Claim(
            name="lp-ft-no-worse",
            statement="Fitting the head before fine-tuning loses at most 2 points of accuracy",
            source="arXiv 2202.10054: one point better in distribution, ten outside it",
            metric=RATED_BY,
            regime="lp-ft",
            where_planned=True,
            low=-0.02,
        ),
        Claim(
            name="lp-ft-sooner",
            statement="After fitting the head, fine-tuning reaches its best in fewer epochs",
            source="arXiv 2202.10054: the head needn't be found while features change",
            metric="epochs_to_best",
            regime="lp-ft",
            where_planned=True,
            low=1.0,
        ),
        Claim(
            name="gradual-no-worse",
            statement="Unfreezing stage by stage loses at most 2 points of accuracy",
            source="Howard and Ruder 2018 (ULMFiT, arXiv 1801.06146): lower layers are disturbed less",
            metric=RATED_BY,
            regime="gradual",
            where_planned=True,
            low=-0.02,
        ),
        Claim(
            name="lora-memory",
            statement="Low-rank updates need less memory than fine-tuning",
            source="arXiv 2106.09685: no gradient and no optimiser state for what is frozen",
            metric="peak_memory_bytes",
            regime="lora",
            where_planned=True,
            low=1.0,
        ),
        Claim(
            name="quantized-finetune-no-worse",
            statement="Fine-tuned for int8, a network loses at most 2 points of accuracy",
            source="Jacob et al. 2018 (arXiv 1712.05877): int8 networks that trained so are about as accurate as float",
            metric=RATED_BY,
            regime="quantized-finetune",
            where_planned=True,
            low=-0.02,
        ),
        Claim(
            name="quantized-finetune-faster",
            statement="Fine-tuned for int8, a network predicts an image faster than the fine-tuned float network",
            source="Jacob et al. 2018 (arXiv 1712.05877): int8 networks trade latency for accuracy better than float",
            metric="latency_seconds",
            regime="quantized-finetune",
            where_planned=True,
            low=1.0,
        ),
        Claim(
            name="last-stages-cost",
            statement="Training the last stages and the head takes the time that its work predicts",
            source="the backward pass ends at the first stage that trains",
            metric="epoch_seconds",
            regime="last-*",
            execution="fast",
            of_prediction=True,
            where_planned=True,
            low=0.8,
            high=1.25,
            above="faster than predicted",
            below="slower than predicted",
        ),
        Claim(
            name="last-stages-accuracy",
            statement="Training the last stages and the head loses at most 2 points of accuracy",
            source="Lee et al. 2022 (surgical fine-tuning, arXiv 2210.11466): tuning one block can match tuning all",
            metric=RATED_BY,
            regime="last-*",
            where_planned=True,
            low=-0.02,
        ),
        Claim(
            name="few-parameters",
            statement="Training only norms, or only biases, trains less than a twentieth of the parameters",
            source="Frankle et al. 2021 (arXiv 2003.00152), Ben Zaken et al. 2022 (BitFit, arXiv 2106.10199)",
            metric="trainable_params",
            regime="*-only",
            where_planned=True,
            low=20.0,
        ),
        Claim(
            name="not-half-the-time",
            statement="Training only norms, or only biases, takes more than about half the time of fine-tuning",
            source="the backward pass still runs through the whole backbone",
            metric="epoch_seconds",
            regime="*-only",
            as_share=True,
            where_planned=True,
            high=1.6,
            above="about half the time, or less",
        ),
    )
}
HALF_THE_TIME = (CLAIMS["half-the-time"], CLAIMS["half-the-time-fast"])
"""The claim that the suite exists for, of each execution."""
