"""Writes the sentence that a page begins with, and the line on half the time below it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.analysis.groups import Counterparts, Group
from bench.analysis.metrics import METRICS, RATED_BY, costs, what_matters
from bench.analysis.picking import seconds_to_train
from bench.analysis.recommend import TIE, Choice, Undecided
from bench.analysis.speedups import Adjusted, compare_accuracy
from bench.analysis.stats import LEVEL
from bench.analysis.verdicts import overall, verdict_counts
from bench.report.answers import half_comparisons, place_of, same_answer_of
from bench.report.pick_text import costs_of, duration
from bench.report.strip import device_names
from bench.report.summary import Summary
from bench.report.tables import show
from bench.store.picks import PickRecord
from bench.store.records import Cell
from tl.regimes import REGIMES

YARDSTICKS = {"finetune": ("frozen", "frozen-tutorial")}
"""Regime → those that a headline compares it with, the first that was run; all others are compared with `finetune`."""


def sentences(summary: Summary) -> list[str]:
    """What to do on each device, how accurate it is, how long it takes and what fine-tuning would give."""
    found = [_picked(pick) for _, pick in summary.picks]
    found += [_choice(choice, summary) for choice in summary.choices]
    found += [_undecided(one, summary) for one in summary.undecided]
    found += [_nothing_beats(group, summary) for group in summary.nothing_beats]
    if not found:
        found = [_without_an_answer(summary)]
    return [summary.words(text) for text in found]


def action(cell: Cell, run: str, summary: Summary) -> str:
    """What to do with a backbone, in words."""
    name, regime = summary.short_name(cell, run, "device", "execution"), REGIMES[cell.config.regime]
    if cell.config.regime == "finetune":
        return f"Fine-tune {name}"
    if regime.fit != "steps":
        return f"Fit a {cell.config.regime} head to {name}"
    if regime.trainable.only_head:
        kind = "" if cell.config.regime == "frozen" else f" ({cell.config.regime})"
        return f"Train only the head of {name}{kind}"
    return f"Train {name} with {cell.config.regime}"


def _picked(pick: PickRecord) -> str:
    if (one := pick.pick) is None:
        return "Nothing is picked"
    cost = f" in {costs_of(one)}" if costs_of(one) else ""
    return f"Use {one}: {METRICS[RATED_BY].show(one.accuracy)}{cost}"


def _choice(choice: Choice, summary: Summary) -> str:
    pick, seconds = choice.pick, seconds_to_train(choice.pick)
    took = "" if seconds is None else f" in {duration(seconds)}"
    place = f" on {device_names(summary).get(choice.device, choice.device)}"
    place += f" in {choice.run}" if len(summary.runs) > 1 else ""
    text = f"{action(pick.cell, pick.run, summary)}: {show(pick, RATED_BY)}{took}{place}"
    return text + _against(pick, summary)


def _against(pick: Group, summary: Summary) -> str:
    """How it compares with the yardstick of its own backbone; empty without one."""
    counterparts = Counterparts(summary.groups)
    regimes = YARDSTICKS.get(pick.config.regime, ("finetune",))
    other = next((found for regime in regimes if (found := counterparts.of(pick, regime))), None)
    if other is None or other.accuracy is None or pick.accuracy is None:
        return ""
    name = "fine-tuning it" if other.config.regime == "finetune" else "training only its head"
    said = f", {_compared(pick, other, summary)} {name}"
    mine, theirs = seconds_to_train(pick), seconds_to_train(other)
    if not mine or not theirs:
        return said
    times = theirs / mine
    if max(times, 1 / times) < TIE:
        return f"{said} and as fast"
    return f"{said} and {times:.2g}× faster" if times > 1 else f"{said} and {1 / times:.2g}× slower"


def _compared(pick: Group, other: Group, summary: Summary) -> str:
    """Whether it is more or less accurate, by the test of the page's table where that has one."""
    test = _table_test(pick, other, summary) or compare_accuracy([(pick, other)])[0]
    points = 100 * ((pick.accuracy or 0.0) - (other.accuracy or 0.0))
    if test is None or test.p >= LEVEL:
        return "statistically tied with"
    return f"{abs(points):.1f} points {'more' if points > 0 else 'less'} accurate than"


def _table_test(one: Group, other: Group, summary: Summary) -> Adjusted | None:
    both = {id(one), id(other)}
    tests = (row.accuracy_test for row in summary.speed_ups if {id(row.fast), id(row.slow)} == both)
    return next(tests, None)


def _undecided(one: Undecided, summary: Summary) -> str:
    where = place_of(one.run, one.device, summary)
    best = summary.short_name(one.best.cell, one.best.run, "device")
    ahead = "is ahead so far" if any(not rival.status for rival in one.rivals) else "has nothing to compare with"
    return (
        f"Nothing is recommended{where} yet: {best}, {one.best.config.regime} {ahead}, with {show(one.best, RATED_BY)}"
    )


def _nothing_beats(best: Group, summary: Summary) -> str:
    where = place_of(best.run, best.cell.device, summary)
    return f"Nothing{where} beats {same_answer_of(best)}, with {METRICS[RATED_BY].show(best.same_answer)}"


def _without_an_answer(summary: Summary) -> str:
    if not summary.groups:
        return "No cell has a result yet"
    if all(group.accuracy is None for group in summary.groups):
        disturbed = all(group.doubt for group in summary.groups)
        rest = "times are in doubt" if disturbed else f"{what_matters(costs())} hold"
        return f"Accuracy says nothing without pretrained weights; {rest}"
    return "Only controls have an accuracy here, so nothing is recommended"


ICONS = {"supported": "✓", "refuted": "✗", "mixed": "◐", "open": "?"}
"""Overall verdict on a claim → its sign, which stands beside the word."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """The overall verdict on a claim in one line."""

    word: str
    """A key of `ICONS`."""
    statement: str
    detail: str

    @property
    def icon(self) -> str:
        """The sign of its word."""
        return ICONS[self.word]


def half_the_time(summary: Summary) -> list[Line]:
    """Whether training only the head takes about half the time, for each loop that was measured."""
    found = []
    for claim, timed in half_comparisons(summary):
        shares = [1 / row.speed_up.value for row in timed if row.speed_up and row.speed_up.value > 0]
        if not shares:
            continue
        ends = dict.fromkeys(f"{100 * end:.0f}" for end in (min(shares), max(shares)) if math.isfinite(end))
        about = [row.finding for row in timed]
        low, high = (f"{100 / bound:g}" for bound in reversed(claim.bounds))
        detail = f"{'–'.join(ends)}% of it per epoch, where “about half” is {low}–{high}%; {verdict_counts(about)}"
        found.append(Line(word=overall(about), statement=claim.statement, detail=detail))
    return found
