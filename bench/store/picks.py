"""The record of a pick: what `bench pick` chose, and how far each candidate came. Its cells have records of their own.

results/NAME/pick.json holds the latest one; earlier ones are in `superseded/`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from bench.store.records import SCHEMA_VERSION
from tl.strict import Count, Positive, Seconds, Share, Strict

Rung = Literal["trained", "one epoch", "probe", "not tried"]
"""How far a backbone came; the furthest first."""


class Combination(Strict):
    """A backbone and how it is trained."""

    backbone: str
    regime: str

    def __str__(self) -> str:
        return f"{self.backbone}, {self.regime}"


class Tied(Combination):
    """A combination that is as accurate as a chosen one, as far as the images can tell."""

    accuracy: Share
    seconds_to_train: Seconds | None = None


class Chosen(Combination):
    """A combination that was chosen, with its figures; what is unknown is None."""

    cell: str = Field(description="id of the cell of its first seed")
    device: str
    seeds: Positive = Field(description="trainings that its figures are of")
    accuracy: Share = Field(description="mean over seeds after the last epoch, on the validation images")
    low: Share | None = Field(None, description="95% interval over other images like these (Wilson)")
    high: Share | None = None
    baseline: Share | None = Field(None, description="accuracy of always answering the largest class")
    largest_class: str | None = None
    seconds_to_train: Seconds | None = Field(None, description="all epochs, and what runs once before; median of seeds")
    peak_memory_bytes: Count | None = Field(
        None, description="median of seeds; if others extracted its features, theirs, since that takes most"
    )
    latency_seconds: Seconds | None = Field(
        None, description="median time to predict one image; if it was not measured, that of the same backbone's others"
    )
    tied: tuple[Tied, ...] = Field(
        (), description="statistically tied with it, the most accurate first; only where accuracy matters most"
    )


class Tested(Strict):
    """How the choice does on the test images of the data set, which nothing was chosen by."""

    images: Positive
    accuracy: Share
    low: Share = Field(description="95% interval over other images like these (Wilson)")
    high: Share


class Considered(Strict):
    """A backbone that could have been chosen, and how far it came."""

    backbone: str
    rung: Rung
    probe: Share | None = Field(
        None, description="share of training images that are classified right by others, in its features"
    )
    low: Share | None = Field(None, description="95% interval of the probe over images")
    high: Share | None = None
    tied: bool | None = Field(None, description="True if its probe is statistically tied with the best one")
    accuracies: dict[str, Share] = Field(default_factory=dict, description="regime → accuracy, as in `Chosen`")
    reason: str = Field("", description="why it came no further; empty if nothing kept it")


class PickRecord(Strict):
    """The outcome of one command."""

    schema_version: int = SCHEMA_VERSION
    command: str = Field(description="as typed")
    ended: AwareDatetime
    priority: str = Field(description="what matters most; a key of `bench.analysis.picking.PRIORITIES`")
    cards: dict[str, Chosen] = Field(description="priority → what is chosen if it matters most; empty without a pick")
    why_none: str = Field("", description="why nothing is picked; empty if something is")
    candidates: tuple[Considered, ...] = Field(description="all backbones, those that came furthest first")
    more: tuple[str, ...] = Field((), description="what would change the answer, a sentence each")
    notes: tuple[str, ...] = Field((), description="what a reader of the accuracies must know, a sentence each")
    val_images: Count
    test: Tested | None = Field(None, description="of the pick, trained once more; None without test images or time")
    first_answer_seconds: Seconds = Field(description="time until all backbones were ranked by their probe")
    seconds: Seconds = Field(description="time until the last cell had ended")

    @property
    def pick(self) -> Chosen | None:
        """The choice for `priority`; None if there is none."""
        return self.cards.get(self.priority)
