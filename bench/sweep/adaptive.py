"""Adaptive sampling, `run --until-decided`: add process pairs until every speed-up is known precisely enough."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from rich.console import Console

from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.groups import make_groups
from bench.analysis.metrics import METRICS
from bench.analysis.stats import LEVEL, MIN_IN_ORDER, Dependence, holm
from bench.analysis.verdicts import DECIDED, PRECISE, Finding, decide_claims, planned
from bench.analysis.words import counted
from bench.console import say
from bench.execution.base import Executor
from bench.store.pairs import PairRecord, TimedSide
from bench.store.records import PlannedPair, Record
from bench.sweep.execute import execute
from bench.sweep.folder import held
from bench.sweep.grid import MOST_PAIRS, Grid
from bench.sweep.options import Options
from bench.sweep.pairs import claims_timed, in_random_order
from bench.sweep.plan import Sweep, settled_pairs
from tl.errors import ConfigError

MAX_PAIRS = 20
"""Maximum number of process pairs per comparison if neither `--max-pairs` nor `--budget` is given."""
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}
Pairing = tuple[str, ...]
"""See `PlannedPair.pairing`."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When to stop adding pairs."""

    within: float = PRECISE
    """Largest half-width of every speed-up's 95% interval, relative to the speed-up."""
    max_pairs: int = MAX_PAIRS
    """Largest number of process pairs per comparison; those that failed, and those that were timed one after the other
    beside others that took turns, don't count.
    """
    budget_seconds: float | None = None
    """Time for the whole command, in seconds; None for no limit."""


def make_goal(
    grid: Grid, *, until_decided: bool, within: float | None, max_pairs: int | None, budget: str | None
) -> Goal | None:
    """The goal that the options ask for; None without `--until-decided`.

    `within` is in percent. Raises `ConfigError` if a value is out of range, or if the grid times no pairs.
    """
    if not until_decided:
        for option, value in {"--within": within, "--max-pairs": max_pairs, "--budget": budget}.items():
            if value is not None:
                raise ConfigError(f"{option} {value} needs --until-decided")
        return None
    within_percent = 100 * PRECISE if within is None else within
    if not 0 < within_percent < 100:
        raise ConfigError(f"--within {within_percent:g} must be a percentage above 0 and below 100")
    if grid.paired is None:
        raise ConfigError(
            "--until-decided adds process pairs, and this grid times none; leave out --no-paired, or give --pairs"
        )
    least = grid.paired.pairs
    if max_pairs is not None and not least <= max_pairs <= MOST_PAIRS:
        raise ConfigError(
            f"--max-pairs {max_pairs} must be at least {least}, the grid's pairs, and at most {MOST_PAIRS}"
        )
    return Goal(
        within=within_percent / 100,
        max_pairs=max_pairs or max(MAX_PAIRS if budget is None else MOST_PAIRS, least),
        budget_seconds=None if budget is None else seconds("--budget", budget),
    )


def refuse_max_seeds(option: str, value: object) -> None:
    """Raise `ConfigError` if a value is given for what `--max-pairs` has replaced."""
    if value is not None:
        raise ConfigError(f"{option} {value}: --until-decided adds process pairs, not seeds; give --max-pairs")


def seconds(option: str, text: str) -> float:
    """Convert a time such as `90`, `90s`, `10m` or `1.5h` to seconds. Raises `ConfigError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip())
    if not match or float(match[1]) == 0:
        raise ConfigError(f"{option} {text!r} must be a time above 0, such as 90s, 10m or 1.5h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def run_until_decided(
    whole: Sweep, grid: Grid, options: Options, executor: Executor, console: Console, goal: Goal
) -> dict[str, Record]:
    """Run the grid's cells and pairs, then add pairs until the goal is reached or the budget is spent.

    A speed-up is decided if its interval is narrow enough, or if its claim has a verdict. That must hold with the last
    pair and without it, and with `MIN_IN_ORDER` pairs: with few pairs an interval is sometimes narrow by chance, and
    stopping at the first one would favour such chances. Pairs are added only to rotations that are not decided.

    Intervals keep their promise only if pairs are independent. They are widened where the order of `MIN_IN_ORDER` pairs
    or more clearly speaks against that (`ratio_of_pairs`), and the last lines say what was found. Stopped like this, at
    most 20 pairs whose scatter is 4% cover the true value in 94% of simulated runs if they are independent, and in 76%
    if neighbours correlate by 0.5. A speed-up that lies exactly on a claim's edge is called above it in 2%, or in 11%
    (`tests/test_adaptive.py`).

    A round of pairs is expected to take as long as the longest pairs before it; one that would exceed the budget is not
    started. The grid's own cells and pairs run in any case. At the end, the speed-ups that stay undecided are printed.
    What failed is not retried by the same command.

    `whole` is the sweep of the grid. Returns the records of its cells. Raises what `execute` raises, and `ConfigError`
    if the grid compares no speeds.
    """
    if not whole.pairs:
        raise ConfigError(f"--until-decided: no pairs are timed: {whole.unpaired}")
    if not _comparisons(whole, _claims(grid)):
        raise ConfigError("--until-decided: no claim about time compares two of these cells")
    same_folder = replace(options, fresh=False, name=whole.run.folder.name)  # --fresh has made a folder for all pairs
    with held(whole.run, options, console):  # also between two pairs
        return _Rounds(_with_later_pairs(whole), grid, same_folder, executor, console, goal).run()


def _claims(grid: Grid) -> list[Claim]:
    """The claims about times that process pairs measure."""
    return [claim for claim in claims_timed(grid.claims) if METRICS[claim.metric].in_seconds]


def _comparisons(sweep: Sweep, claims: Iterable[Claim]) -> int:
    return sum(planned(claim, sweep.cells.values()) for claim in claims)


def _with_later_pairs(whole: Sweep) -> Sweep:
    """The sweep with pairs that earlier commands added beyond the grid's, so that they count and are tried again."""
    before = whole.previous.pairs if whole.previous else {}
    keys = {(pair.pairing, pair.seconds) for pair in whole.pairs.values()}
    later = {pair_id: pair for pair_id, pair in before.items() if (pair.pairing, pair.seconds) in keys}
    done = settled_pairs(whole.run, later)[0] if later else {}
    return replace(whole, pairs={**whole.pairs, **later}, done_pairs={**done, **whole.done_pairs})


@dataclass
class _Rounds:
    """Runs a sweep, looks at its speed-ups, and adds a round of pairs as often as it is needed."""

    sweep: Sweep
    grid: Grid
    options: Options
    executor: Executor
    console: Console
    goal: Goal

    def __post_init__(self) -> None:
        self.claims = _claims(self.grid)
        self.records: dict[str, Record] = {}

    def run(self) -> dict[str, Record]:
        """Return the records of the cells."""
        started, ran = time.monotonic(), 0
        while True:
            added = len(self.sweep.missing_pairs)
            found = execute(self.sweep, self.grid, self.options, self.executor, self.console, first_pair=ran)
            self.records = self.records or found  # later rounds have no cells
            ran += added
            timed = self.sweep.run.pairs()
            findings, undecided = self._look(timed)
            status = self._status(findings, undecided)
            following = self._next(undecided, timed)
            expected = sum(_longest(pair.pairing, timed.values()) for pair in following.values())
            if why := self._why_stop(undecided, following, time.monotonic() - started + expected):
                text, is_warning = _independence(findings)
                say(self.console, f"until decided: {text}", style="yellow" if is_warning else "")
                say(self.console, f"{status}; {_counted(findings)}, {why}")
                return self.records
            say(self.console, f"{status}; adding {len(following)} pair{'s' if len(following) > 1 else ''}")
            self.sweep = replace(
                self.sweep,
                pairs={**self.sweep.pairs, **following},
                done={**self.sweep.done, **self.records},
                done_pairs={pair_id: timed[pair_id] for pair_id in self.sweep.pairs if pair_id in timed},
                damaged={},
                previous=self.sweep.run.manifest(),
            )

    def _look(self, timed: Mapping[str, PairRecord]) -> tuple[list[Finding], list[Finding]]:
        """All speed-ups, and those that are not decided with their last pair and without it."""
        now = self._speed_ups(timed.values())
        before = self._speed_ups(without_last(timed.values()))
        decided = {_key(finding) for finding in before if _is_decided(finding, self.goal)}
        enough = {_key(one) for one in now if one.estimate and one.estimate.n >= MIN_IN_ORDER}
        return now, [
            one for one in now if not (_is_decided(one, self.goal) and _key(one) in decided and _key(one) in enough)
        ]

    def _speed_ups(self, timed: Iterable[PairRecord]) -> list[Finding]:
        """Verdicts as a report has them: with one error rate for all claims of the run."""
        run = self.sweep.run.name
        truth = {run: self.sweep.run.manifest().dataset.truth}
        groups = make_groups(((run, record) for record in self.records.values()), truth)
        findings = decide_claims({run: [*CLAIMS.values(), *self.grid.claims]}, groups, {run: list(timed)})
        return [finding for finding in findings if finding.claim in self.claims and finding.paired]

    def _next(self, undecided: Collection[Finding], timed: Mapping[str, PairRecord]) -> dict[str, PlannedPair]:
        """One more pair of each rotation with an undecided speed-up, unless that has as many as allowed.

        A pair that doesn't count uses up none of them, but there are at most twice as many in all. A speed-up that the
        last pair lost asks for none: the next would most likely lose it too.
        """
        wanted = {
            (finding.group.cell.repeats, finding.against.cell.repeats)
            for finding in undecided
            if not self._has_all(finding)
        }
        more = [
            PlannedPair(cells=pair.cells, number=pair.number + 1, seconds=pair.seconds)
            for pair in self._newest.values()
            if pair.number + 1 < 2 * self.goal.max_pairs
            and pair.id in timed
            and any((pair.cells[place].repeats, pair.cells[0].repeats) in wanted for place in _compared(timed[pair.id]))
        ]
        ordered = in_random_order(more, self.sweep.run.folder.name, max((pair.number for pair in more), default=0))
        return {pair.id: pair for pair in ordered}

    @property
    def _newest(self) -> dict[Pairing, PlannedPair]:
        """The last pair of each rotation."""
        return {pair.pairing: pair for pair in sorted(self.sweep.pairs.values(), key=lambda pair: pair.number)}

    def _has_all(self, finding: Finding) -> bool:
        """True if a speed-up is of as many pairs as allowed."""
        return finding.paired is not None and finding.paired.pairs >= self.goal.max_pairs

    def _why_stop(self, undecided: Collection[Finding], following: Collection[str], seconds_after_next: float) -> str:
        """Why no pair is added; empty to add some. `seconds_after_next` is the time that would be spent after them."""
        if not undecided:
            return "nothing left to decide"
        if not following:
            open_cells = {finding.group.cell.repeats for finding in undecided}
            tried = any(
                pair.number + 1 >= 2 * self.goal.max_pairs
                for pair in self._newest.values()
                if open_cells & {cell.repeats for cell in pair.cells}
            )
            allowed = f"as many as allowed (--max-pairs {self.goal.max_pairs})"
            all_there = tried or any(map(self._has_all, undecided))
            return allowed if all_there else "no pair is added where the last one failed"
        if self.goal.budget_seconds is not None and seconds_after_next > self.goal.budget_seconds:
            return f"one more pair would overrun the budget of {self.goal.budget_seconds:g} s"
        return ""

    def _status(self, findings: list[Finding], undecided: list[Finding]) -> str:
        """How many speed-ups are decided, and which are not."""
        count = len(findings) - len(undecided)
        text = f"until decided: {count} of {len(findings)} speed-ups decided or within ±{100 * self.goal.within:g}%"
        text += f"; undecided: {', '.join(map(_label, undecided))}" if undecided else ""
        lost = _comparisons(self.sweep, self.claims) - len(findings)
        return text + (f"; {lost} more can't be compared, because a cell or a pair has no result" if lost > 0 else "")


def without_last(timed: Iterable[PairRecord]) -> list[PairRecord]:
    """The records without the last pair of each comparison, in every rotation.

    The last one is the last that counts: with a result for both cells, and in turns if any pair of the two has that. A
    pair that is the last of one comparison alone keeps its other sides.
    """
    records = sorted(timed, key=lambda record: record.started)
    in_turns = {key for record in records if record.together for key in _keys(record).values()}
    last: dict[tuple[Pairing, int], str] = {}
    for record in records:
        for place, key in _keys(record).items():
            if record.together or key not in in_turns:
                last[record.pair.pairing, place] = record.pair_id
    left = []
    for record in records:
        gone = {place for place in _keys(record) if last.get((record.pair.pairing, place)) == record.pair_id}
        sides = tuple(_GONE if place in gone else side for place, side in enumerate(record.sides))
        if not gone:
            left.append(record)
        elif sum(side.status == "done" for side in sides) >= 2:
            left.append(record.replace(sides=sides))
    return left


def _compared(record: PairRecord) -> list[int]:
    """Places of the cells for which a pair has a comparison with its first one."""
    done = [place for place, side in enumerate(record.sides) if side.turns]
    return done[1:] if done[:1] == [0] else []


def _keys(record: PairRecord) -> dict[int, tuple[str, str]]:
    """Place of a cell → a key of its comparison with the first one, for those that a pair has."""
    cells = record.pair.cells
    return {place: (cells[0].repeats, cells[place].repeats) for place in _compared(record)}


_GONE = TimedSide(status="failed", reason="left out, to see what the others say")


def _key(finding: Finding) -> tuple[str, str, str]:
    return finding.claim.name, finding.group.cell.repeats, finding.against.cell.repeats


def _is_decided(finding: Finding, goal: Goal) -> bool:
    width = finding.estimate.half_width if finding.estimate else None
    return finding.verdict in DECIDED or (width is not None and width <= goal.within)


def _longest(pairing: Pairing, timed: Iterable[PairRecord]) -> float:
    """Seconds that the longest pair of a rotation took, including those of earlier commands."""
    return max((record.wall_seconds for record in timed if record.pair.pairing == pairing), default=0.0)


def _counted(findings: Iterable[Finding]) -> str:
    """How many pairs the speed-ups are of, in words."""
    counts = sorted({finding.paired.pairs for finding in findings if finding.paired})
    if not counts:
        return "no pairs"
    fewest, most = counts[0], counts[-1]
    return f"{counted(most, 'pair') if fewest == most else f'{fewest} to {most} pairs'} each"


def _independence(found: list[Finding]) -> tuple[str, bool]:
    """What the intervals assume, and whether the pairs' order speaks against it; and True if it does."""
    assumed = "the intervals assume that process pairs are independent of each other"
    looked: list[tuple[Finding, Dependence]] = [
        (finding, finding.estimate.dependence)
        for finding in found
        if finding.estimate is not None and finding.estimate.dependence is not None
    ]
    if not looked:
        return f"{assumed}, which needs {MIN_IN_ORDER} pairs to be tested", False
    adjusted = holm([dependence.p for _, dependence in looked])
    (finding, dependence), p = min(
        zip(looked, adjusted, strict=True), key=lambda pair: (pair[1], -pair[0][1].correlation)
    )
    n, name, r = len(dependence.values), finding.group.cell.name, dependence.correlation
    clearest = f"the clearest correlation of neighbouring pairs is {r:+.2f} ({name}, p = {p:.2g})"
    if p < LEVEL:
        return f"WARNING: {assumed}, and they are not: {clearest}; intervals are widened, and may still be narrow", True
    weak = f"a test of {n} pairs seldom finds one; intervals are widened only for a clear one"
    return f"{assumed}; {clearest}; {weak}", False


def _label(finding: Finding) -> str:
    width = finding.estimate.half_width if finding.estimate else None
    return f"{finding.group.cell.name} ({'±?' if width is None else f'±{width:.1%}'})"
