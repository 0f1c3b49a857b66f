"""Says what a comparison found: the answer in one sentence, and all changes in parts, what matters most first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.analysis.metrics import points
from bench.analysis.words import counted
from bench.compare.changes import Change, ChangeVerdict, Comparison
from bench.compare.sides import exact_text


@dataclass(frozen=True, kw_only=True)
class Part:
    """Changes that a reader looks at together, the largest first."""

    title: str
    sign: str
    """A key of `ICONS`, and the class of its colour."""
    changes: tuple[Change, ...]
    folded: bool
    """True if pages show them only on request."""

    @property
    def icon(self) -> str:
        """Its sign, which stands beside the word."""
        return ICONS[self.sign]


ICONS = {"failing": "!", "worse": "✗", "better": "✓", "apart": "≠", "open": "?", "same": "="}
"""Sign of a verdict → its character. Colours alone would tell some readers nothing."""
SIGNS: dict[ChangeVerdict, str] = {
    "worse": "worse",
    "better": "better",
    "not comparable": "apart",
    "inconclusive": "open",
    "too few samples": "open",
    "unknown": "open",
    "same": "same",
}
"""Verdict → its sign, in the order in which pages and terminals show them."""
_TITLES = {"worse": "Worse", "better": "Better", "apart": "Not comparable", "open": "Undecided", "same": "The same"}
_FOLDED = ("apart", "open", "same")
_COUNTED: dict[ChangeVerdict, str] = {
    "inconclusive": "undecided",
    "too few samples": "with too few samples",
    "same": "the same",
}
"""Verdict → what it is called where it is counted, if not by its name."""


def parts(comparison: Comparison) -> list[Part]:
    """The changes in parts: worse, better, not comparable, undecided, the same. Only those that there are.

    Left out are equal counters, and what a side doesn't know; see `render.unknown_lines`.
    """
    found = []
    for sign, title in _TITLES.items():
        several = [change for change in comparison.changes if SIGNS[change.verdict] == sign and _is_listed(change)]
        if several:
            changes = tuple(sorted(several, key=_rank))
            found.append(Part(title=title, sign=sign, changes=changes, folded=sign in _FOLDED))
    return found


def _rank(change: Change) -> tuple[int, float]:
    """By verdict, then the largest first, and what has no size last."""
    return list(SIGNS).index(change.verdict), math.inf if math.isnan(change.size) else -abs(change.size)


def _is_listed(change: Change) -> bool:
    return change.verdict != "unknown" and (change.verdict != "same" or change.quantity.compared != "exact")


def equal_counters(comparison: Comparison) -> int:
    """How many exact counters are equal on both sides."""
    return sum(change.quantity.compared == "exact" for change in comparison.having("same"))


def counts(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Sign, icon and count in words of each kind of verdict that there is; see `ICONS`."""
    numbers = {("failing", "newly failing"): len(comparison.newly_failing)}
    for verdict, sign in SIGNS.items():
        numbers[sign, _COUNTED.get(verdict, verdict)] = len(comparison.having(verdict))
    equal = equal_counters(comparison)
    numbers["same", _COUNTED["same"]] -= equal
    numbers["same", "equal counter" if equal == 1 else "equal counters"] = equal
    return [(sign, ICONS[sign], f"{number} {word}") for (sign, word), number in numbers.items() if number]


def sentence(comparison: Comparison) -> str:
    """What changed, how much at most, and how many comparisons say what, with their error rate."""
    worse = next((part.changes for part in parts(comparison) if part.sign == "worse"), ())
    lead = []
    if failing := len(comparison.newly_failing):
        lead.append(f"{counted(failing, 'cell')} newly {'fails' if failing == 1 else 'fail'}")
    if worse:
        lead.append(f"{_of_all(len(worse), len(comparison.changes))} worse: {_largest(worse, comparison)}")
    if not lead:
        lead.append(_nothing_worse(comparison))
    rest = [text for sign, _, text in counts(comparison) if sign not in ("failing", "worse")]
    level = f"error rate {100 * comparison.level:.2g}% over all comparisons"
    return f"{' and '.join(lead)}{'; ' if rest else ''}{', '.join(rest)} ({level})"


def _of_all(number: int, total: int) -> str:
    if total == 1:
        return "the only comparison is"
    return f"{number} of {total} comparisons {'is' if number == 1 else 'are'}"


def _nothing_worse(comparison: Comparison) -> str:
    decided = comparison.having("better", "same")
    if len(decided) == len(comparison.changes) and not comparison.incomplete:
        return "nothing is worse"
    kinds = {change.quantity.compared for change in comparison.changes} - {"exact"}
    if kinds and kinds.isdisjoint(change.quantity.compared for change in decided):
        return "no time, memory or score is decided"
    return "nothing is shown to be worse" if decided else "nothing is decided"


def _largest(worse: Sequence[Change], comparison: Comparison) -> str:
    """The largest change for the worse: of the only one, or of several."""
    first = worse[0]
    where = first.cell if len(comparison.others) == 1 else f"{first.cell}, {first.new_side}"
    amount = change_text(first).partition(" (")[0]  # without its interval
    said = f"{first.quantity.label} {amount} with {where}"
    return said if len(worse) == 1 else f"most of all {said}"


def change_text(change: Change) -> str:
    """Format the estimate with its interval; for exact counters, the difference."""
    if change.quantity.compared == "exact":
        base, new = set(change.base.values()), set(change.new.values())
        one = len(base) == len(new) == 1
        return exact_text(new.pop() - base.pop(), "+") if one else "several values" if base and new else "n/a"
    if change.estimate is None:
        return "n/a"
    value, low, high = change.estimate.value, change.estimate.low, change.estimate.high
    if change.estimate.compared == "ratio":
        return f"{value:.3f}×" + ("" if low is None or high is None else f" ({low:.3f}–{high:.3f})")
    return f"{points(value)} points" + ("" if low is None or high is None else f" ({points(low)} to {points(high)})")
