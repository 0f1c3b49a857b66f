"""Makes the table that a page ranks all combinations by: the best first, ties marked, and only columns that differ.

Phones have cards in its place, one for each backbone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.analysis.groups import Group
from bench.analysis.metrics import METRICS, RATED_BY, headline
from bench.analysis.picking import seconds_to_train
from bench.report.heatmap import Heatmap, Square
from bench.report.summary import Summary
from bench.report.tables import BESIDE_ACCURACY, columns
from tl.regimes import REGIMES

FIRST = 15
"""Rows that a page shows before it is asked for all."""
VERDICT = "verdict"
"""Heading of the column that says what each row is to a reader who looks for the best one."""
RANDOM = "random weights"
"""Verdict on a group whose accuracy says nothing."""
DIGITS = 2
"""Significant digits of the smallest value in a column; all others have as many decimals."""
_SPREAD = {"interval": "{low}–{high}", "deviation": "± {deviation}", "extremes": ""}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell of the table."""

    text: str
    share: float | None = None
    """Length of its bar, from 0 to 1; None without a bar."""


@dataclass(frozen=True, kw_only=True)
class BoardColumn:
    """One column."""

    heading: str
    entries: tuple[Entry, ...]
    """One for each group of the summary, in its order."""
    metric: str = ""
    """The metric in the column; empty if it shows none."""
    meaning: str = ""
    numbers: bool = False
    """True if it is aligned at the right."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """The table, without its order."""

    columns: tuple[BoardColumn, ...]
    order: tuple[int, ...]
    """Numbers of the groups, the best first."""
    tied: frozenset[int]
    """Numbers of the most accurate groups and of those that are statistically tied with them."""
    alike: tuple[tuple[str, str], ...]
    """Headings and texts of columns that are left out, since all rows have the same."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One regime on the card of a backbone."""

    regime: str
    square: Square
    verdict: str


@dataclass(frozen=True, kw_only=True)
class BackboneCard:
    """A row of the matrix as a card, for screens that are too narrow for the table and the matrix."""

    name: str
    lines: tuple[Line, ...]
    """Its regimes in the table's order; those without a result come last."""


def by_backbone(board: Board, heatmap: Heatmap) -> list[BackboneCard]:
    """A card for each row of the matrix, with all its squares, in the order of the table."""
    places = {number: place for place, number in enumerate(board.order)}
    said = next(column.entries for column in board.columns if column.heading == VERDICT) if board.order else ()

    def place_of(line: Line) -> int:
        return len(places) if line.square.number is None else places[line.square.number]

    found = []
    for name, squares in heatmap.rows:
        lines = [
            Line(regime=regime, square=one, verdict="" if one.number is None else said[one.number].text)
            for regime, one in zip(heatmap.regimes, squares, strict=True)
            if one is not None
        ]
        found.append(BackboneCard(name=name, lines=tuple(sorted(lines, key=place_of))))
    return sorted(found, key=lambda card: place_of(card.lines[0]))


def leaderboard(summary: Summary) -> Board:
    """All groups, the most accurate first and the faster one of equals; those without an accuracy come last."""
    groups = summary.groups
    order = sorted(range(len(groups)), key=lambda number: (-_rank(groups[number]), groups[number].seconds))
    first = {*headline(), *BESIDE_ACCURACY}
    wanted = [one for one in columns(summary) if not _on_request(one.metric) or one.metric in first]
    every = [_column(one.heading, one.texts, one.metric, one.meaning, groups) for one in wanted]
    place = next((at + 1 for at, one in enumerate(every) if one.metric == RATED_BY), len(every))
    every[place:place] = [*_spread(groups), *_to_train(groups)]
    said = verdicts(summary)
    every = [one for one in every if one.heading != "weights" or not _says_weights(said, one)]
    every.insert(1, BoardColumn(heading=VERDICT, entries=tuple(map(_plain, said))))
    several = len(groups) > 1
    kept, alike = [], []
    for number, one in enumerate(every):
        texts = {entry.text for entry in one.entries}
        if number == 0 or not several or len(texts) > 1 or one.metric in headline() or one.heading == VERDICT:
            kept.append(one)
        elif texts != {""}:
            alike.append((one.heading, texts.pop()))
    return Board(columns=tuple(kept), order=tuple(order), tied=frozenset(_tied(summary)), alike=tuple(alike))


def _plain(text: str) -> Entry:
    return Entry(text=text)


def _says_weights(said: Sequence[str], weights: BoardColumn) -> bool:
    """True if the verdicts tell random weights from others, so that no column has to."""
    return all((text == RANDOM) is (entry.text == "random") for text, entry in zip(said, weights.entries, strict=True))


def _on_request(metric: str) -> bool:
    """True for a metric that a page shows when it is asked for more columns, so that the first ones fit a screen."""
    return bool(metric) and not METRICS[metric].on_request


def _to_train(groups: Sequence[Group]) -> list[BoardColumn]:
    """The time of a whole training, with what is done once before it."""
    seconds = [seconds_to_train(group) for group in groups]
    texts = [text.replace(",", "") for text in aligned(seconds, "epoch_seconds")]
    shares = _shares(seconds, "epoch_seconds")
    entries = tuple(Entry(text=text, share=share) for text, share in zip(texts, shares, strict=True))
    meaning = "all epochs, and what runs once before them"
    return [BoardColumn(heading="to train, s", entries=entries, meaning=meaning, numbers=True)]


def _rank(group: Group) -> float:
    return -1.0 if group.accuracy is None else group.accuracy


def _tied(summary: Summary) -> list[int]:
    numbers = {id(group): number for number, group in enumerate(summary.groups)}
    tied = [group for choice in summary.choices for one in choice.priorities[:1] for group in one.groups]
    return [numbers[id(group)] for group in tied]


def verdicts(summary: Summary) -> list[str]:
    """What each group is to a reader who looks for the best one."""
    tied = set(_tied(summary))
    best = {id(choice.best) for choice in summary.choices}
    picks = {id(choice.pick) for choice in summary.choices}
    said = []
    for number, group in enumerate(summary.groups):
        if id(group) in picks:
            said.append("recommended")
        elif REGIMES[group.config.regime].control:
            said.append("control")
        elif group.accuracy is None:
            said.append(RANDOM)
        elif not group.beats_same_answer:
            said.append("no better than one answer")
        elif id(group) in best:
            said.append("most accurate")
        else:
            said.append("tied with the best" if number in tied else "less accurate" if tied else "")
    return [summary.words(text) for text in said]


def _column(heading: str, texts: Sequence[str], metric: str, meaning: str, groups: Sequence[Group]) -> BoardColumn:
    if not metric:
        numbers = all(text.isdecimal() for text in texts)
        return BoardColumn(heading=heading, entries=tuple(map(_plain, texts)), numbers=numbers)
    values = [group.typical(metric) for group in groups]
    shares = _shares(values, metric) if metric in headline() else [None] * len(values)
    # What has no value may still have a text, such as the time of a cold epoch.
    shown = [
        own if value is not None else text
        for own, value, text in zip(aligned(values, metric), values, texts, strict=True)
    ]
    entries = tuple(Entry(text=text, share=each) for text, each in zip(shown, shares, strict=True))
    return BoardColumn(heading=heading, entries=entries, metric=metric, meaning=meaning, numbers=True)


def _spread(groups: Sequence[Group]) -> list[BoardColumn]:
    """How precise the accuracies are: an interval, or a standard deviation over seeds."""
    texts = []
    for group in groups:
        seeds = group.over_seeds(RATED_BY)
        ends = {"low": seeds.low, "high": seeds.high, "deviation": seeds.deviation} if seeds else {}
        shown = {name: f"{100 * value:.1f}" for name, value in ends.items()}
        texts.append(_SPREAD[seeds.bars].format(**shown) if seeds else "")
    bars = {seeds.bars for group in groups if (seeds := group.over_seeds(RATED_BY))}
    if not any(texts):
        return []
    heading = "sd" if bars == {"deviation"} else "95% interval" if bars == {"interval"} else "95% interval or sd"
    return [BoardColumn(heading=heading, entries=tuple(map(_plain, texts)), numbers=True)]


def aligned(values: Sequence[float | int | None], metric: str) -> list[str]:
    """The values with equally many decimals, so that digits of one size stand below each other."""
    one = METRICS[metric]
    if one.percent or one.whole or not one.style.endswith("g"):
        return [one.show(value) for value in values]
    sizes = [abs(value) * one.scale for value in values if value]
    least = min(sizes, default=1.0)
    decimals = max(0, DIGITS - 1 - math.floor(math.log10(least)))
    return ["n/a" if value is None else f"{value * one.scale:,.{decimals}f}" for value in values]


def _shares(values: Sequence[float | None], metric: str) -> list[float | None]:
    """Lengths of bars: of an accuracy the share itself, of a cost its part of the largest."""
    largest = 1.0 if METRICS[metric].percent else max((value for value in values if value is not None), default=0.0)
    return [None if value is None or largest <= 0 else round(value / largest, 4) for value in values]
