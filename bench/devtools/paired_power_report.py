"""Pools of pairs of one cell against itself, what replays of them find, and the report on them in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
from pydantic import Field
from tabulate import tabulate

from bench.analysis.paired import compare_twins
from bench.analysis.stats import MIN_SAMPLES, Estimate, Interval, ratio_of_pairs, wilson
from bench.analysis.timed import in_words
from bench.analysis.verdicts import NEGLIGIBLE
from bench.store.environment import Environment
from bench.store.pairs import PairRecord
from bench.store.records import Cell
from tl.errors import UserError
from tl.seeding import seed_for
from tl.strict import Count, Positive, Seconds, Strict

REPLAYS = 500
"""Comparisons that are replayed from a pool, per number of pairs and planted difference."""
USUAL_PAIRS = 5
"""Pairs of a comparison unless something else is asked for."""
COUNTS = (MIN_SAMPLES, USUAL_PAIRS, 8, 10, 15, 20)
"""Numbers of pairs that are tried, to find how many are needed."""
PLANTED = {"nothing": 1.0, "5%": 1.05, "10%": 1.1}
"""Planted difference → factor of the second process's times."""
TARGETS = {"nothing": ("at most", 0.02), "5%": ("at least", 0.9), "10%": ("at least", 0.99)}
"""Planted difference → bound of the share of comparisons that find one."""
COVERAGE = (0.93, 0.97)
"""Bounds of the share of intervals that contain the true ratio."""


class Pool(Strict):
    """Process pairs whose two processes ran the same cell, of all cells that one command recorded."""

    command: str
    environment: Environment
    load: str = Field(description="what ran beside the pairs on purpose; empty for nothing")
    records: tuple[PairRecord, ...] = Field(min_length=1)

    def cells(self) -> dict[Cell, list[PairRecord]]:
        """Cell → its pairs, in the order in which they ran."""
        found: dict[Cell, list[PairRecord]] = {}
        for record in sorted(self.records, key=lambda each: each.started):
            found.setdefault(record.pair.cells[0], []).append(record)
        return found


class Tried(Strict):
    """Replayed comparisons of one cell with itself, with the same number of pairs and the same planted difference."""

    planted: str
    pairs: Positive = Field(description="pairs of each comparison")
    replays: Positive
    found: Count = Field(description="comparisons with verdict `faster` or `slower`, in the planted direction if any")
    covered: Count = Field(description="comparisons whose 95% interval contains the true ratio")
    half_width: float = Field(description="median half-width of the interval, relative")


class Neighbours(Strict):
    """Comparisons of pairs as they ran, one after the other: nothing is drawn, swapped or planted."""

    pairs: Positive = Field(description="pairs of each comparison")
    compared: Positive = Field(description="comparisons: one from each pair of the pool that has enough after it")
    found: Count = Field(description="comparisons with verdict `faster` or `slower`")
    covered: Count = Field(description="comparisons whose 95% interval contains 1")


class Outcome(Strict):
    """All replays of one cell of a pool."""

    cell: Cell
    load: str
    environment: Environment
    command: str
    pool: Positive = Field(description="pairs with a result in the pool")
    lost: Count = Field(description="pairs without a result")
    pair_seconds: Seconds = Field(description="median wall time of a pair, with its start and warm-up")
    scatter: float | None = Field(description="standard deviation of the pairs' log ratios; None below two pairs")
    tried: tuple[Tried, ...]
    neighbours: tuple[Neighbours, ...]

    def of(self, planted: str, pairs: int) -> Tried | None:
        """The replays with that difference and number of pairs; None if the pool is too small."""
        return next((each for each in self.tried if (each.planted, each.pairs) == (planted, pairs)), None)

    def needed(self, planted: str) -> int | None:
        """Smallest number of pairs, of `COUNTS`, that finds a planted difference often enough; None if none does."""
        tried = [each for pairs in COUNTS if (each := self.of(planted, pairs))]
        return next((each.pairs for each in tried if each.found / each.replays >= TARGETS[planted][1]), None)


def replay(pool: Pool, replays: int = REPLAYS) -> list[Outcome]:
    """Replay comparisons from each cell's pairs, which are drawn without replacement and kept in order.

    In each pair the two processes are swapped at random, so the true ratio is exactly 1, or the planted factor. Nothing
    but the arguments decides what is drawn. Cells with fewer than `MIN_SAMPLES` pairs have no replays.
    """
    outcomes = []
    for cell, records in pool.cells().items():
        done = [record for record in records if record.sides[0].turns and record.sides[1].turns]
        if not done:
            raise UserError(f"{cell}: no pair of the pool has a result")
        logs = [_log_ratio(record) for record in done]
        outcomes.append(
            Outcome(
                cell=cell,
                load=pool.load,
                environment=pool.environment,
                command=pool.command,
                pool=len(done),
                lost=len(records) - len(done),
                pair_seconds=statistics.median(record.wall_seconds for record in done),
                scatter=statistics.stdev(logs) if len(logs) > 1 else None,
                tried=tuple(
                    _try(cell, logs, planted, pairs, replays)
                    for pairs in COUNTS
                    for planted in PLANTED
                    if pairs <= len(logs)
                ),
                neighbours=tuple(_as_they_ran(logs, pairs) for pairs in COUNTS if pairs <= len(logs)),
            )
        )
    return outcomes


def _log_ratio(record: PairRecord) -> float:
    found = compare_twins([record])
    assert found and found.speed_up
    return found.speed_up.centre


def _try(cell: Cell, logs: Sequence[float], planted: str, pairs: int, replays: int) -> Tried:
    draws = np.random.default_rng(seed_for("paired power", cell.id, planted, pairs))
    truth, found, covered, widths = PLANTED[planted], 0, 0, []
    wanted = ("faster", "slower") if truth == 1 else ("faster",)
    for _ in range(replays):
        chosen = np.sort(draws.choice(len(logs), pairs, replace=False))
        swapped = draws.choice([-1.0, 1.0], pairs)
        estimate = _estimate(truth * math.exp(logs[place] * swapped[n]) for n, place in enumerate(chosen.tolist()))
        assert estimate.low is not None and estimate.high is not None
        found += in_words(estimate.low, estimate.high) in wanted
        covered += estimate.low <= truth <= estimate.high
        widths.append(estimate.half_width or 0.0)
    return Tried(
        planted=planted,
        pairs=pairs,
        replays=replays,
        found=found,
        covered=covered,
        half_width=statistics.median(widths),
    )


def _as_they_ran(logs: Sequence[float], pairs: int) -> Neighbours:
    """Compare each run of `pairs` pairs that follow each other. These comparisons overlap."""
    ends = []
    for start in range(len(logs) - pairs + 1):
        estimate = _estimate(math.exp(log) for log in logs[start : start + pairs])
        assert estimate.low is not None and estimate.high is not None
        ends.append((estimate.low, estimate.high))
    return Neighbours(
        pairs=pairs,
        compared=len(ends),
        found=sum(in_words(*each) in ("faster", "slower") for each in ends),
        covered=sum(low <= 1 <= high for low, high in ends),
    )


def _estimate(ratios: Iterable[float]) -> Estimate:
    """What `bench time` would say of pairs with these ratios, in the order in which they ran."""
    values = dict(enumerate(ratios))
    estimate = ratio_of_pairs(values, dict.fromkeys(values, 1.0))
    assert estimate
    return estimate


def render(outcomes: Sequence[Outcome], pairs: int = USUAL_PAIRS) -> str:
    """The report in Markdown: a table for comparisons of `pairs` pairs, one of what is needed, and the commands."""
    parts = [
        "# How well process pairs detect differences",
        "Two processes of one cell were compared with each other, so there is no difference to find. From these pools "
        "of pairs we replayed comparisons: pairs were drawn without replacement and kept in order, the two processes "
        "of each were swapped at random, and the second one's times were multiplied by the planted difference. A "
        "difference counts as found if `bench time` says `faster` or `slower`: the whole 95% interval is more than "
        f"{NEGLIGIBLE:.0%} away from 1. Replays share the pool's pairs, so they are not independent, and the Wilson "
        "intervals are too narrow. Coverage: the share of 95% intervals that contain the true ratio.",
        "Drawing and swapping removes whatever neighbouring pairs have in common, and any advantage of one process. "
        "The last two columns keep both: each run of pairs that followed each other was compared as it was. Such "
        "comparisons overlap, so the numbers of them say little.",
        f"## Comparisons of {pairs} pairs",
        _table([_powers(outcome, pairs) for outcome in outcomes]),
        f"Targets: without a difference, found in {_target('nothing')}; 5% in {_target('5%')}; 10% in "
        f"{_target('10%')}; coverage {COVERAGE[0]:.0%} to {COVERAGE[1]:.0%}. Bold: missed.",
        "## Pairs and seconds needed",
        _table([_needed(outcome) for outcome in outcomes]),
        f"The smallest number of pairs, of {', '.join(map(str, COUNTS))}, that meets the target. Seconds include the "
        "start and the warm-up of every process.",
        "## Commands",
        "\n".join(dict.fromkeys(f"- `{each.command}`; {each.environment}" for each in outcomes)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[dict[str, str]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def _target(planted: str) -> str:
    word, bound = TARGETS[planted]
    return f"{word} {bound:.0%}"


def _what(outcome: Outcome) -> dict[str, str]:
    cell = outcome.cell
    name = " ".join([cell.config.backbone, cell.config.regime, *cell.unusual()])
    return {"cell": name, "device": cell.device, "beside it": outcome.load or "nothing"}


def _powers(outcome: Outcome, pairs: int) -> dict[str, str]:
    row = {**_what(outcome), "pool": f"{outcome.pool}" + (f" ({outcome.lost} lost)" if outcome.lost else "")}
    row["pairs scatter by"] = "n/a" if outcome.scatter is None else f"{outcome.scatter:.1%}"
    for planted in PLANTED:
        word, bound = TARGETS[planted]
        tried = outcome.of(planted, pairs)
        share = wilson(tried.found, tried.replays) if tried else None
        met = share is None or (share.value <= bound if word == "at most" else share.value >= bound)
        row[f"found: {planted}"] = _share(share, met=met)
    tried = outcome.of("nothing", pairs)
    coverage = wilson(tried.covered, tried.replays) if tried else None
    met = coverage is None or COVERAGE[0] <= coverage.value <= COVERAGE[1]
    row["coverage"] = _share(coverage, met=met)
    row["half-width, median"] = f"±{tried.half_width:.1%}" if tried else "n/a"
    near = next((each for each in outcome.neighbours if each.pairs == pairs), None)
    row["neighbours, found"] = f"{near.found} of {near.compared}" if near else "n/a"
    row["neighbours, covered"] = f"{near.covered} of {near.compared}" if near else "n/a"
    return row


def _needed(outcome: Outcome) -> dict[str, str]:
    row = _what(outcome) | {"s per pair": f"{outcome.pair_seconds:.1f}"}
    for planted in PLANTED:
        if PLANTED[planted] != 1:
            pairs = outcome.needed(planted)
            tried = max((each.pairs for each in outcome.tried), default=0)
            row[f"pairs for {planted}"] = str(pairs) if pairs else f"more than {tried}" if tried else "n/a"
            row[f"s for {planted}"] = f"{pairs * outcome.pair_seconds:.0f}" if pairs else "n/a"
    return row


def _share(share: Interval | None, *, met: bool) -> str:
    if share is None:
        return "n/a"
    text = f"{share.value:.1%} ({share.low:.1%}–{share.high:.1%})"
    return text if met else f"**{text}**"
