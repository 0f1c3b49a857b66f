"""Makes the cards of a page: the best combination for each thing that can matter most, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.analysis.metrics import METRICS, RATED_BY, listed
from bench.analysis.picking import PRIORITIES, cards, chosen
from bench.report.pick_text import by_choice, duration, latency_of, memory_of, rule, share, tied_with
from bench.report.strip import device_names
from bench.report.summary import Summary
from bench.store.picks import Chosen, PickRecord
from tl.tasks import TASKS

SAME = 0.01
"""A cost that differs by less is not mentioned."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One combination, and all that it is the best for."""

    best_for: str
    name: str
    accuracy: str
    facts: tuple[tuple[str, str], ...]
    """Words and values of what it costs."""
    price: str
    """What it loses and gains against the most accurate; empty for the most accurate itself."""
    tied: str
    """How many others are statistically tied with it; empty without any."""


@dataclass(frozen=True, kw_only=True)
class Deck:
    """The cards of one device."""

    device: str
    """The name that its maker sells it under."""
    cards: tuple[Card, ...]
    rule: str
    """Among which combinations they are the best; empty if among all."""


def decks(summary: Summary) -> list[Deck]:
    """The cards of each pick, and of each device of each run that has a recommendation."""
    names = device_names(summary)
    found = [_deck(by_choice(pick), names.get(_device(pick), ""), rated=True) for _, pick in summary.picks]
    for choice in summary.choices:
        here = [group for group in summary.groups if (group.run, group.cell.device) == (choice.run, choice.device)]
        one_each: dict[str, tuple[list[str], Chosen]] = {}
        for card in cards(here):
            one = chosen(card)
            one_each.setdefault(one.cell, ([], one))[0].append(card.priority)
        rated = TASKS[choice.best.config.task].right_or_wrong
        where = names.get(choice.device, choice.device)
        where += f", {choice.run}" if len({each.run for each in summary.choices}) > 1 else ""
        found.append(_deck(list(one_each.values()), where, rated=rated))
    return [_in_words(deck, summary) for deck in found if deck.cards]


def _in_words(deck: Deck, summary: Summary) -> Deck:
    """The cards in the words of the task's score. The points between two scores are of the score itself."""
    said = (replace(c, best_for=summary.words(c.best_for), price=summary.words(c.price)) for c in deck.cards)
    return replace(deck, cards=tuple(said), rule=summary.words(deck.rule))


def _device(pick: PickRecord) -> str:
    return next((one.device for one in pick.cards.values()), "")


def _deck(several: Sequence[tuple[list[str], Chosen]], device: str, *, rated: bool) -> Deck:
    best = next((one for priorities, one in several if "accuracy" in priorities), None)
    made = tuple(_card(priorities, one, best, rated=rated) for priorities, one in several)
    return Deck(device=device, cards=made, rule=rule(name for priorities, _ in several for name in priorities))


def _card(priorities: Sequence[str], one: Chosen, best: Chosen | None, *, rated: bool) -> Card:
    costs = {
        "to train": None if one.seconds_to_train is None else duration(one.seconds_to_train),
        "memory": None if one.peak_memory_bytes is None else memory_of(one),
        "an image": None if one.latency_seconds is None else latency_of(one),
    }
    return Card(
        best_for=listed([PRIORITIES[name].words for name in priorities]),
        name=str(one),
        accuracy=share(one.accuracy, one.low, one.high) if rated else METRICS[RATED_BY].show(one.accuracy),
        facts=tuple((words, text) for words, text in costs.items() if text is not None),
        price="" if best is None or one is best else _price(one, best),
        tied=tied_with(one),
    )


def _price(one: Chosen, best: Chosen) -> str:
    """What it loses and gains against the most accurate."""
    points = 100 * (best.accuracy - one.accuracy)
    said = [f"{points:.1f} points less accurate" if round(points, 1) else "as accurate"]
    for words, mine, theirs in (
        ("its time", one.seconds_to_train, best.seconds_to_train),
        ("its memory", one.peak_memory_bytes, best.peak_memory_bytes),
        ("its time an image", one.latency_seconds, best.latency_seconds),
    ):
        if not mine or not theirs or abs(mine / theirs - 1) < SAME:
            continue
        said.append(f"{100 * mine / theirs:.0f}% of {words}" if mine < theirs else f"{mine / theirs:.2g}× {words}")
    return f"Against the most accurate: {', '.join(said)}"
