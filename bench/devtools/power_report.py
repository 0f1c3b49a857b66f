"""Raw outcomes of `power`, and the report on them in Markdown: rates with intervals, rounds and seconds."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator
from tabulate import tabulate

from bench.analysis.stats import Interval, wilson
from bench.compare.gate import REGRESSED
from bench.store.environment import Environment
from tl.strict import Strict

How = Literal["replayed", "live", "runs", "exact"]
NOTHING, MOVED = "nothing", "a counter moved by one"
VICTIM = "finetune-torchvision"
"""Part of the name of the benchmark that is slowed down."""
HEADINGS: dict[How, str] = {
    "replayed": "The timed gate, replayed",
    "live": "The timed gate, live",
    "runs": "Runs of the suite",
    "exact": "The exact gate",
}
METHODS: dict[How, str] = {
    "replayed": "We recorded rounds of every benchmark of the gate, with one commit on both sides. For each gate, as "
    "many rounds as it may run were sampled without replacement and kept in order. In each round the two sides were "
    "swapped at random, and the new side's times of one benchmark were multiplied. The gates share the recorded "
    "rounds, so they are not independent, and the intervals are too narrow. A round's ratio is that of its two sides, "
    "which ran the same code; its scatter is the standard deviation of its logarithm.",
    "live": "Whole gates: a commit against itself, with work on all cores planted in the training step of a backbone "
    "that trains; two benchmarks, at most 20 rounds. Others' share of the cores is what other programs used meanwhile.",
    "runs": "One cell per seed on the real images, against a first run of the unchanged commit, as `bench gate` does; "
    "seconds are those of the new run.",
    "exact": "Counters of a training step of each regime on two networks, against the committed baseline. `a counter "
    "moved by one` changes each counter in turn, up and down; it tests the comparison alone.",
}
TARGETS: dict[tuple[How, str], tuple[str, float]] = {
    ("replayed", NOTHING): ("at most", 0.02),
    ("live", NOTHING): ("at most", 0.02),
    ("exact", NOTHING): ("at most", 0.0),
    ("replayed", "10% slower"): ("at least", 0.95),
    ("live", "10% slower"): ("at least", 0.95),
}
"""(Kind of gate, planted change) → bound for the share of gates that find it; without a change, that fail."""


class Outcome(Strict):
    """The outcome of one gate."""

    planted: str
    how: How
    status: int
    """Exit status of `bench gate`: 0 passed, 1 failed, 3 and 4 undecided."""
    found: bool
    """True if it failed because of the planted change; without a planted change, if it failed at all."""
    rounds: int
    """Rounds per side; for runs, their seeds."""
    seconds: float | None = None
    """Duration of the gate; None if it was replayed."""
    other_cpu_share: float | None = None
    """Share of the cores' time that other processes used; see `MachineState`."""
    reasons: tuple[str, ...] = ()
    """The gate's reasons, in words."""
    slower: tuple[float, ...] | None = Field(None, validate_default=True)
    """Measured slowdowns of the slowed benchmark, new ÷ base, if the gate decided that it is slower."""

    @field_validator("slower")
    @classmethod
    def _upgraded(cls, given: tuple[float, ...] | None, info: Any) -> tuple[float, ...]:
        """Read the slowdowns from the reasons, for outcomes that were written before this field existed."""
        if given is not None:
            return given
        worse = [reason for reason in info.data.get("reasons", ()) if VICTIM in reason and reason.endswith(": worse")]
        times = (re.search(r"time (\d+\.\d+)×", reason) for reason in worse)
        return tuple(float(time[1]) for time in times if time)


class Power(Strict):
    """All outcomes of one command."""

    command: str
    environment: Environment
    recorded: tuple[dict[str, dict[str, float]], ...] = ()
    """Per round: side → benchmark → median seconds."""
    outcomes: tuple[Outcome, ...]


def _row(planted: str, some: Sequence[Outcome], how: How) -> dict[str, str]:
    found = sum(outcome.found for outcome in some)
    rate, seconds = wilson(found, len(some)), [o.seconds for o in some if o.seconds is not None]
    shares = [outcome.other_cpu_share for outcome in some if outcome.other_cpu_share is not None]
    word, bound = TARGETS.get((how, planted), ("", 0.0))
    row = {
        "planted": planted,
        "gates": str(len(some)),
        "found": str(found),
        "failed otherwise": str(sum(outcome.status == REGRESSED and not outcome.found for outcome in some)),
        "passed": str(sum(outcome.status == 0 for outcome in some)),
        "undecided": str(sum(outcome.status > REGRESSED for outcome in some)),
        "share found (95%)": f"{rate.value:.1%} ({rate.low:.1%}–{rate.high:.1%})",
        "target": f"{word} {bound:.0%}" if word else "",
        "": _verdict(rate, word, bound) if word else "",
        "rounds, median (most)": f"{statistics.median(o.rounds for o in some):g} ({max(o.rounds for o in some)})",
        "seconds, median (most)": f"{statistics.median(seconds):.0f} ({max(seconds):.0f})" if seconds else "",
    }
    others = f"{statistics.median(shares):.0%} ({max(shares):.0%})" if shares else ""
    return row | {"others' share of the cores, median (most)": others}


def _verdict(rate: Interval, word: str, bound: float) -> str:
    """Say whether the target is met. That is certain if the whole interval is on one side of the bound."""
    below = word == "at most"
    met = rate.value <= bound if below else rate.value >= bound
    certain = (rate.high <= bound or rate.low > bound) if below else (rate.low >= bound or rate.high < bound)
    return ("met" if met else "missed") + ("" if certain else ", not certain")


def _measured(some: Sequence[tuple[str, Outcome]]) -> dict[str, str]:
    """The slowdowns that live gates measured, by commit; they may differ from the intended ones."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for suite, outcome in some:
        if outcome.how == "live" and outcome.found and outcome.slower:
            ratios.setdefault((suite, outcome.planted), []).extend(outcome.slower)
    return {
        f"{name}, as measured at {suite}": f"median {statistics.median(all_):.2f}× ({min(all_):.2f}–{max(all_):.2f})"
        for (suite, name), all_ in ratios.items()
    }


def _scatter(power: Power) -> dict[str, str]:
    """The scatter of the ratio of the two sides of a recorded round, by benchmark: the noise for a gate."""
    scatter = {}
    for name in power.recorded[0]["base"] if len(power.recorded) > 1 else ():
        logs = [math.log(one["new"][name] / one["base"][name]) for one in power.recorded]
        short = name.rpartition("::")[2]
        scatter[f"{short} at {power.environment.suite}"] = (
            f"a round's ratio scatters by {statistics.stdev(logs):.1%}, {len(logs)} rounds"
        )
    return scatter


def render(all_power: Sequence[Power]) -> str:
    """The report in Markdown: a table and remarks for each kind of gate, then commands with their machines."""
    parts = [
        "# How well the gates detect changes",
        "A gate finds a planted change if it fails and names it. If nothing was planted, a failure is a false alarm. "
        "Undecided: shown neither to be worse nor to be no worse, exit status 3. Intervals are Wilson's; a verdict is "
        "not certain if the interval contains the target.",
    ]
    outcomes = [(power.environment.suite, outcome) for power in all_power for outcome in power.outcomes]
    several = len({suite for suite, _ in outcomes}) > 1
    for how, heading in HEADINGS.items():
        here = [(suite, outcome) for suite, outcome in outcomes if outcome.how == how]
        if not here:
            continue
        kinds: dict[tuple[str, str], list[Outcome]] = {}
        for suite, outcome in here:
            kinds.setdefault((suite, outcome.planted), []).append(outcome)
        rows = [({"commit": suite} if several else {}) | _row(name, some, how) for (suite, name), some in kinds.items()]
        rows = [{key: value for key, value in row.items() if any(other[key] for other in rows)} for row in rows]
        table = tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)
        parts += [f"## {heading}", METHODS[how], table]
        remarks = {o.planted: o.reasons[0] for _, o in here if how == "runs" and o.reasons} | _measured(here)
        if how == "replayed":
            remarks |= {name: text for power in all_power for name, text in _scatter(power).items()}
        parts += ["\n".join(f"- {name}: {text}" for name, text in remarks.items())] if remarks else []
    lines = [f"- `{power.command}`: {len(power.outcomes)} gates; {power.environment}" for power in all_power]
    return "\n\n".join([*parts, "## Commands", "\n".join(lines)]) + "\n"
