"""Prints what `bench pick` found: a sentence, a card per priority, and a row per backbone; or all of it as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bench.analysis.metrics import METRICS, RATED_BY, listed
from bench.analysis.picking import PRIORITIES
from bench.analysis.probe import Ranked
from bench.analysis.recommend import NO_WORSE, TIE
from bench.console import say
from bench.store.picks import Chosen, Considered, PickRecord, Tied
from tl.text import visible, visible_json

_CARD = 25
"""Columns of a card, so that three fit beside each other in 80."""
MOST_TIED = 3
"""Most combinations that the sentence names as tied."""


def print_pick(found: PickRecord, run: str, console: Console) -> None:
    """Print the answer as text, at most 80 columns wide but for names and reasons. `run` is the run's folder."""
    console.print(Text(visible(sentence(found)), style="bold"))
    if found.cards:
        console.print()
        console.print(Columns([_panel(*each) for each in by_choice(found)], padding=(0, 1, 0, 0)))
        if said := rule(found.cards):
            console.print(Text(f"{said}.", style="dim"))
    if some := tried(found):
        console.print()
        console.print(_table(some))
    console.print()
    for text in reasons(found.candidates):
        say(console, text, style="yellow")
    for text in found.more:
        say(console, text)
    for text in found.notes:
        say(console, f"note: {text}", style="dim")
    if found.pick:
        say(console, f"next: python -m bench train {shlex.quote(run)}")
    took = f"{duration(found.first_answer_seconds)} to the first ranking, {duration(found.seconds)} in all"
    say(console, f"{took}; run: {run}", style="dim")


def print_ranking(ranking: Sequence[Ranked], seconds: float, console: Console) -> None:
    """Print the first answer: backbones by their probe, before any is trained."""
    for place, one in enumerate(ranking, 1):
        tie = ", tied with the best" if one.tied and place > 1 else ""
        say(console, f"  {place}. {one.backbone}: {share(one.probe, one.low, one.high)}{tie}")
    say(console, f"  ({duration(seconds)}; share of training images that their neighbours classify right)", style="dim")


def sentence(found: PickRecord) -> str:
    """The answer in words."""
    pick = found.pick
    if pick is None:
        return f"Nothing is picked: {found.why_none}."
    always = ""
    if pick.baseline is not None:
        always = f", where always answering {pick.largest_class!r} has {METRICS[RATED_BY].show(pick.baseline)}"
    text = (
        f"Use {pick}: it classifies {share(pick.accuracy, pick.low, pick.high)} of {found.val_images} validation "
        f"images right{always}."
    )
    if left_out := len(found.candidates) - len(tried(found)):
        text += f" {left_out} of {len(found.candidates)} candidates {'was' if left_out == 1 else 'were'} not tried."
    if len(found.candidates) == 1:
        text = f"{pick.backbone} is the only candidate, so this says how to train it, not which one to take. {text}"
    text += f" Training it takes {costs}." if (costs := costs_of(pick)) else ""
    if found.test:
        tested = share(found.test.accuracy, found.test.low, found.test.high)
        images = f"{found.test.images} test images, which played no part in the choice"
        text += f" Of {images}, it classifies {tested} right."
    if said := tied_with(pick):
        text += f" {said}"
        if faster := [other for other in pick.tied if _is_near_and_faster(other, pick)]:
            which = ", and" if len(pick.tied) == 1 else f"; {len(faster)} of them {'is' if len(faster) == 1 else 'are'}"
            names = [f"{other} ({_tied_costs(other)})" for other in faster[:MOST_TIED]]
            more = f"; {len(faster) - MOST_TIED} more" if len(faster) > MOST_TIED else ""
            text += f"{which} faster to train, with an accuracy in its interval: {'; '.join(names)}{more}"
        text += "."
    return text


def tied_with(one: Chosen) -> str:
    """How many others are statistically tied with a choice, without a full stop; empty without any."""
    return (
        f"{len(one.tied)} more {'is' if len(one.tied) == 1 else 'are'} statistically tied with it" if one.tied else ""
    )


def rule(priorities: Iterable[str]) -> str:
    """Among which combinations the choices for these priorities are the best, without a full stop; empty among all."""
    limited = [PRIORITIES[name].words for name in priorities if PRIORITIES[name].may_lose]
    if not limited:
        return ""
    words = listed(limited)
    return (
        f"{words[0].upper()}{words[1:]}: among those measured at most {100 * NO_WORSE:g} points less accurate than the "
        "best"
    )


def _is_near_and_faster(other: Tied, pick: Chosen) -> bool:
    """True if it takes clearly less time, and its accuracy lies in the pick's interval.

    Few images leave far ones tied too. A time that is printed as the pick's own is none that is less.
    """
    mine, its = pick.seconds_to_train, other.seconds_to_train
    if mine is None or its is None or TIE * its > mine or duration(its) == duration(mine):
        return False
    return other.accuracy >= (pick.low or 0.0)


def _tied_costs(other: Tied) -> str:
    seconds = [] if other.seconds_to_train is None else [duration(other.seconds_to_train)]
    return ", ".join([METRICS[RATED_BY].show(other.accuracy), *seconds])


def costs_of(one: Chosen) -> str:
    """Time and memory of one training in words; empty if neither is known."""
    costs = [] if one.seconds_to_train is None else [duration(one.seconds_to_train)]
    costs += [] if one.peak_memory_bytes is None else [f"{memory_of(one)} of memory"]
    return " and ".join(costs)


def as_json(found: PickRecord, run: str, data: Any) -> str:
    """All of it as JSON; what is unknown is null. `data` is what was found in the images."""
    content = found.model_dump(mode="json")
    ranking = content.pop("candidates")
    content = {"pick": content["cards"].get(found.priority), "ranking": ranking, "data": data, "run": run, **content}
    return visible_json(json.dumps(content, indent=1, ensure_ascii=False))


def by_choice(found: PickRecord) -> list[tuple[list[str], Chosen]]:
    """Each combination that is chosen for some priority, with all priorities that it is chosen for."""
    several: dict[str, list[str]] = {}
    for priority, chosen in found.cards.items():
        several.setdefault(str(chosen), []).append(priority)
    return [(priorities, found.cards[priorities[0]]) for priorities in several.values()]


def _panel(priorities: Sequence[str], one: Chosen) -> Panel:
    """A card; a choice for several priorities has one."""
    names = [PRIORITIES[name].words for name in priorities]
    words = Text("\n".join(names), style="bold")
    lines = [
        visible(one.backbone.partition(":")[2]),
        visible(one.regime),
        share(one.accuracy, one.low, one.high),
        "" if one.seconds_to_train is None else f"{duration(one.seconds_to_train)} to train",
        "" if one.latency_seconds is None else f"{latency_of(one)} an image",
        "" if one.peak_memory_bytes is None else f"{memory_of(one)} of memory",
    ]
    return Panel(words + Text("\n" + "\n".join(filter(None, lines))), width=_CARD)


def _table(candidates: Sequence[Considered]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    rows = [row(one) for one in candidates]
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for each in rows:
        table.add_row(*(Text(visible(text)) for text in each.values()))
    return table


def row(one: Considered) -> dict[str, str]:
    """Column → text of a backbone's row in the table of candidates."""
    best = max(one.accuracies.items(), key=lambda pair: pair[1], default=None)
    return {
        "backbone": one.backbone,
        "probe": share(one.probe, one.low, one.high),
        "came to": one.rung,
        "most accurate as": f"{best[0]}, {METRICS[RATED_BY].show(best[1])}" if best else "n/a",
    }


def tried(found: PickRecord) -> list[Considered]:
    """The candidates that were probed at least, those that came furthest first."""
    return [one for one in found.candidates if one.rung != "not tried"]


def reasons(candidates: Sequence[Considered]) -> list[str]:
    """Why backbones came no further, each reason once, with all that came no further for it."""
    found: dict[str, list[str]] = {}
    for one in candidates:
        if one.reason:
            found.setdefault(one.reason, []).append(one.backbone)
    return [f"{', '.join(names)}: {reason}" for reason, names in found.items()]


def share(value: float | None, low: float | None, high: float | None) -> str:
    """Such as `95.1% (91.2–97.4)`; without the interval where it is unknown."""
    shown = METRICS[RATED_BY].show
    if value is None or low is None or high is None:
        return shown(value)
    return f"{shown(value)} ({shown(low).rstrip('%')}–{shown(high).rstrip('%')})"


def latency_of(one: Chosen) -> str:
    """The time to predict one image, in words."""
    return METRICS["latency_seconds"].say(one.latency_seconds)


def memory_of(one: Chosen) -> str:
    """The peak memory of a training, in words."""
    return METRICS["peak_memory_bytes"].say(one.peak_memory_bytes)


def duration(seconds: float) -> str:
    """A time in words, such as `2.4 s`, `45 s` or `12 min`."""
    if seconds < 600:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
