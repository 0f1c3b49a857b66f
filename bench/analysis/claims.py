"""Claims that a run is held against. A claim is data: a statement, what it compares, and the region in which it holds.

To add one for everybody, add an entry to `CLAIMS`; for one's own runs, a `[[claims]]` table in the grid's file.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from typing import Any

from pydantic import Field, field_validator, model_validator

from bench.analysis.metrics import METRICS
from tl.errors import ConfigError, not_one_of
from tl.regimes import REGIMES, Regime
from tl.strict import Strict

KINDS: dict[str, Callable[[Regime], bool]] = {
    "head-only": lambda regime: regime.trainable.only_head and regime.plain and not regime.control,
}
"""Kinds of regimes that a claim can be about: by what regimes do, whatever they are called."""


class Claim(Strict):
    """A statement about two regimes of the same backbone, on the same device and images.

    What is measured is, for an accuracy, `regime` minus `against`; for all else `against` divided by `regime`: of
    seconds and bytes, how many times less the regime takes. The claim holds where that lies between `low` and `high`.
    """

    name: str = Field(min_length=1)
    statement: str = Field(min_length=1)
    source: str = ""
    metric: str = Field(description="a key of `bench.analysis.metrics.METRICS`")
    regime: str | None = Field(None, description="a regime, or a pattern with * and ?; None with `kind`")
    kind: str | None = Field(None, description="a key of `KINDS`; None with `regime`")
    against: str = Field("finetune", description="a regime")
    low: float | None = Field(None, description="None where it has no lower bound")
    high: float | None = None
    above: str = Field("above the claim", description="verdict where it lies above the region for certain")
    below: str = "below the claim"

    @field_validator("metric", "against", "regime", "kind")
    @classmethod
    def _known(cls, value: str | None, info: Any) -> str | None:
        tables: dict[str, Collection[str]] = {"metric": METRICS, "kind": KINDS}
        choices = tables.get(info.field_name, REGIMES)
        fits = fnmatchcase if info.field_name == "regime" else operator.eq
        if value is not None and not any(fits(name, value) for name in choices):
            raise ConfigError(not_one_of(info.field_name, value, choices))
        return value

    @model_validator(mode="after")
    def _a_region(self) -> Claim:
        given = [bound for bound in (self.low, self.high) if bound is not None]
        low, high = self.bounds
        if not low < high or not given or not all(map(math.isfinite, given)):
            raise ConfigError(f"low={self.low}, high={self.high}: give one of them, or a low below a high")
        if self.is_ratio and min(given) <= 0:
            raise ConfigError(f"low={self.low}, high={self.high}: a ratio is above 0, and so must be its bounds")
        if (self.regime is None) == (self.kind is None):
            raise ConfigError(f"regime={self.regime!r}, kind={self.kind!r}: give one of them")
        if self.regime == self.against:
            raise ConfigError(f"against={self.against!r}: is the regime itself; name another")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """`low` and `high`, infinite where there is none."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    @property
    def is_ratio(self) -> bool:
        """Whether it is about a ratio; else it is about a difference of shares."""
        return METRICS[self.metric].compared != "difference"

    def is_about(self, regime: str) -> bool:
        """Whether a regime is one that it compares with `against`."""
        if regime == self.against:
            return False
        return KINDS[self.kind](REGIMES[regime]) if self.kind else fnmatchcase(regime, self.regime or "")

    @property
    def subject(self) -> str:
        """The regimes that it is about, for a sentence."""
        return f"{self.kind} regimes" if self.kind else self.regime or ""

    @property
    def region(self) -> str:
        """Where it holds, in words."""
        low, high = self.show(self.low), self.show(self.high)
        if self.high is None:
            return f"above {low}"
        return f"below {high}" if self.low is None else f"{low} to {high}"

    def show(self, value: float | None) -> str:
        """A ratio or a difference as text; `n/a` where it is not known."""
        if value is None:
            return "n/a"
        return f"{value:.2f}×" if self.is_ratio else f"{100 * value:+.1f} points"


CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        Claim(
            name="half-the-time",
            statement="Training only the head takes about half the time of fine-tuning",
            source="PyTorch transfer-learning tutorial, on training with a fixed backbone on a CPU",
            metric="epoch_seconds",
            kind="head-only",
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
            metric="val_accuracy_best",
            kind="head-only",
            low=-0.02,
        ),
        Claim(
            name="transfer-helps",
            statement="Fine-tuning beats training from random weights",
            source="common advice; the reason for transfer learning",
            metric="val_accuracy_best",
            regime="finetune",
            against="scratch",
            low=0.0,
        ),
    )
}
HALF_THE_TIME = CLAIMS["half-the-time"]
