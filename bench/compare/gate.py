"""`bench gate` turns a comparison into an exit status. Rules come from `pyproject.toml` and from options."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.analysis.deciding import MOST
from bench.analysis.words import counted
from bench.compare.answer import change_text
from bench.compare.changes import Change, Comparison
from bench.compare.render import unknown_lines
from bench.compare.rules import Rule
from bench.compare.sides import SOURCE, Repeats
from tl.cache import read_text
from tl.errors import ConfigError, not_one_of

PASSED, REGRESSED, INCOMPLETE, NOT_COMPARABLE = 0, 1, 3, 4
TABLE = "tool.bench.gate"
LARGEST = 1 << 20
"""Largest size of a file with rules, in bytes."""
GATE_LEVEL = 0.01
"""Error rate of a gate over all its comparisons. It is low, since gates run often and a false alarm costs a day."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The outcome of a gate, with one line per reason."""

    status: int
    headline: str
    reasons: tuple[str, ...]
    worse: tuple[Change, ...] = ()
    """Times, memory and accuracies that fail the gate."""
    lost: bool
    """True if more samples would not decide it: something that the base side has is missing, failed or unknown on the
    new side, a round has a single raw time, or conditions other than a benchmark's own code differ."""

    @property
    def is_noise(self) -> bool:
        """True if the gate is undecided only because times are too noisy, or because a benchmark's own code changed."""
        return self.status in (INCOMPLETE, NOT_COMPARABLE) and not self.lost


def decide(comparison: Comparison) -> Decision:
    """Decide a gate. The status is the first that holds of regressed, not comparable and incomplete.

    The gate is undecided if a time is neither shown to be the same nor shown to be no worse, if only one side knows a
    value, or if a time or size is unknown for all cells. Values that neither side knows for some cells are only
    reported. The reasons list everything that was found, whatever the status.
    """
    regressed = [f"{cell}: newly failing: {words}" for cell, words in comparison.newly_failing]
    regressed += [f"{cell}: {words}" for cell, words in comparison.beyond_limits]
    incomparable, noisy, obstructed, other_machine = [], [], [], False
    for change in comparison.changes:
        what = f"{change.cell}: {change.quantity.label} {change_text(change)}"
        exact = change.quantity.compared == "exact"
        if change.verdict == "worse" or (exact and change.verdict == "better"):
            regressed.append(f"{what}: " + ("changed" if exact else change.verdict))
        elif change.verdict == "not comparable":
            incomparable.append(f"{what}: {', '.join(map(str, change.mismatches))}")
            other_machine |= any(mismatch.condition != SOURCE for mismatch in change.mismatches)
        elif change.is_open:
            noisy.append(f"{what}: {change.verdict}{_to_decide(change, comparison)}")
        elif change.obstacle:
            obstructed.append(f"{what}: {change.verdict}: {change.obstacle}")
    faster = [
        f"{change.cell}: {change.quantity.label} {change_text(change)}: better"
        for change in comparison.having("better")
        if change.quantity.compared != "exact"
    ]
    unknown = comparison.having("unknown")
    known = {change.quantity.name for change in comparison.changes if change.base or change.new}
    never = [change for change in unknown if change.quantity.compared == "ratio" and change.quantity.name not in known]
    lost = [f"{cell}: {words}" for cell, words in (*comparison.incomplete, *comparison.unchecked)]
    lost += obstructed
    lost += unknown_lines(comparison, [change for change in unknown if change.base] + never)
    without_base = unknown_lines(comparison, [change for change in unknown if change.new and not change.base])
    rest = [change for change in unknown if not change.base and not change.new and change not in never]
    status, word = PASSED, "passed"
    if regressed:
        status, word = REGRESSED, "failed: regressed"
    elif incomparable:
        status, word = NOT_COMPARABLE, "undecided: not comparable"
    elif lost or without_base:
        status, word = INCOMPLETE, "undecided: incomplete"
    elif noisy:
        status, word = INCOMPLETE, "undecided: samples are too noisy or too few"
    noisy += without_base
    reasons = (*regressed, *incomparable, *lost, *noisy, *faster, *unknown_lines(comparison, rest))
    return Decision(
        status=status,
        headline=f"Gate {word}.",
        reasons=reasons,
        worse=tuple(change for change in comparison.having("worse") if change.quantity.compared != "exact"),
        lost=bool(lost) or other_machine,
    )


def _to_decide(change: Change, comparison: Comparison) -> str:
    """How many more samples would decide a change, in words; empty for scores, whose scatter is also that of images."""
    if change.quantity.compared != "ratio":
        return ""
    rounds = all(cell.repeats == "round" for cell in comparison.base.cells.values())
    noun = "round" if rounds else "seed"
    if (more := change.more) is None:
        return f"; even {MOST} more {noun}s on each side would hardly decide it"
    return f"; about {counted(more, f'more {noun}')} on each side would decide it, if they scatter as so far"


def read_rules(
    file: Path | None,
    given: Sequence[str],
    folder: Path = Path(),
    *,
    repeats: Collection[Repeats] = ("seed", "round"),
    metrics: Collection[str] = (),
) -> list[Rule]:
    """Read the rules of `[tool.bench.gate]` in a TOML file, then those of options. Raises `UserError`.

    A project's file serves gates of runs and of benchmarks. So its rules that can't apply are left out: those for
    metrics of runs if there are only benchmarks, those for `seconds` if there are only runs, and those for metrics that
    are not compared. Such a rule in an option is a mistake.

    Args:
        file: a file, which must have rules; None for `pyproject.toml` in `folder`, if there is one.
        given: rules in the syntax of `--rule`.
        folder: folder of `pyproject.toml`.
        repeats: what the samples of the sides are; see `SideCell.repeats`.
        metrics: the metrics that are compared; empty for all.
    """
    place = folder / "pyproject.toml" if file is None else file
    rules: list[Rule] = []
    if file is not None or os.path.lexists(place):  # what can't be read is a mistake, not an absence of rules
        try:
            content: Any = tomllib.loads(read_text(place, LARGEST))
        except ValueError as error:
            raise ConfigError(f"{place}: can't be read as TOML: {error}") from error
        rules += [_rule(f"{place}: {TABLE}", each) for each in _tables(place, content)]
        if file is not None and not rules:
            raise ConfigError(f"{place}: has no rules; write them as tables [[{TABLE}.rule]]")
    rules = [rule for rule in rules if not rule.is_elsewhere(repeats, metrics)]
    return rules + [_rule(f"--rule {text!r}", _parsed(text)) for text in given]


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""A number as everyone writes it. Python's `float` also takes `1_5`, digits of other scripts, and `nan`."""


def _tables(place: Path, content: Any) -> list[Mapping[str, Any]]:
    own = content.get("tool", {}).get("bench", {}) if isinstance(content.get("tool", {}), dict) else {}
    table = _only(own, "gate", f"{place}: tool.bench")
    rules = _only(table, "rule", f"{place}: {TABLE}") or []
    if not isinstance(rules, list) or not all(isinstance(each, dict) for each in rules):
        raise ConfigError(f"{place}: {TABLE}: rules must be tables [[{TABLE}.rule]]")
    return rules


def _only(table: Any, key: str, where: str) -> Any:
    """The value of the only key that a table may have; an empty table if it is missing. Raises for any other key."""
    if not isinstance(table, dict) or table.keys() - {key}:
        odd = next(iter(table.keys() - {key}), "") if isinstance(table, dict) else table
        raise ConfigError(f"{where}: {not_one_of('key', odd, [key])}")
    return table.get(key, {})


def _parsed(text: str) -> dict[str, Any]:
    """Parse a rule such as `epoch_seconds: factor=1.1, cells=*frozen*` into a table."""
    metric, colon, rest = text.partition(":")
    table: dict[str, Any] = {"metric": metric.strip()}
    for part in rest.split(",") if rest.strip() else []:
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not value:
            raise ConfigError(f"--rule {text!r}: {part.strip()!r}: must be NAME=VALUE")
        if name in table:
            raise ConfigError(f"--rule {text!r}: {name}: given twice")
        if name != "cells" and not _NUMBER.fullmatch(value):
            raise ConfigError(f"--rule {text!r}: {name}={value!r}: must be a number such as 1.05")
        table[name] = value if name == "cells" else float(value)
    if not colon or not metric.strip():
        raise ConfigError(f"--rule {text!r}: must be like 'epoch_seconds: factor=1.1, cells=*frozen*'")
    return table


def _rule(where: str, table: Mapping[str, Any]) -> Rule:
    try:
        return Rule(**table)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
