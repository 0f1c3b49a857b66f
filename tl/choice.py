"""Chooses the precision and the memory layout of a training by measuring its steps: `precision = "auto"`.

Which is fastest depends on the network, on what trains, and on the processor. On one with AVX512-BF16, ResNet-18 trains
in bf16 in 0.6 of the time and EfficientNet-Lite0 in 1.2 times, since the backward pass of its depthwise convolutions
has no fast kernel there. So both ways run the same few batches in turn, and the faster one is taken if it is faster in
nearly every round and its loss stays close to that of single precision. The choice is kept in the cache by all that it
depends on, so that later trainings of the same kind make the same one, and begin at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from tl.cache import cache_dir, to_json
from tl.errors import NotApplicable, UserError
from tl.sealed import read_or_warn, write_sealed
from tl.strict import Seconds, Strict

CHOICE_VERSION = 1
ROUNDS = 7
"""Rounds of turns. Each way has one turn per round, in alternating order."""
MORE_ROUNDS = 21
"""Rounds of a second try, where those of the first don't agree, as on a busy machine."""
WON_ROUNDS = 0.75
"""Share of the rounds in which a way must be faster to be taken. Of two equally fast ways, one is so in 6% of tries
with `ROUNDS`, and in 1% with `MORE_ROUNDS`."""
LEAST_GAIN = 0.03
"""A way must take less time by this share, as a median over rounds. Otherwise the earlier one stays."""
FIRST_STEPS = 8
"""Steps whose loss is compared."""
MOST_STEPS = 64
"""Steps of a timed turn, at most: on a GPU, each pass over images has a part of its own beside its steps."""
TURN_SECONDS = 0.3
"""About the length of a timed turn."""
TOLERANCE = 0.02
"""Largest accepted difference of the mean loss on the same batches, as a share of that of `fp32`."""


class Tried(Strict):
    """One way to run the steps, and what was measured."""

    precision: str
    memory_format: str
    epoch_seconds: Seconds | None = Field(
        None,
        description="of an epoch with validation, by the median of turns of a few steps; None if it can't run here",
    )
    loss: float | None = Field(
        None, description="mean over the first steps, which begin with the same weights; or None"
    )
    reason: str = Field("", description="why it can't run here; empty if it can")


class Choice(Strict):
    """The precision and layout of a training, and why."""

    precision: str = Field(description="a key of `tl.config.PRECISIONS`, never `auto`")
    memory_format: str = Field(description="a key of `tl.devices.LAYOUTS`")
    reason: str = Field(description="one sentence")
    tried: tuple[Tried, ...] = Field((), description="all ways that were compared; empty if there was one only")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a few steps took."""

    seconds: float
    """Of an epoch at the speed of these steps, with validation."""
    loss: float
    """Mean loss of the steps."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training that can take turns."""

    run: Callable[[int], Turn]
    """Runs that many training steps, and validation batches in proportion; each time on the same batches."""
    group: int = 1
    """The number of steps is a multiple of this."""


@dataclass(frozen=True)
class Ways:
    """The ways among which to choose."""

    precisions: Sequence[str]
    """The first one is `fp32`."""
    layouts: Callable[[str], Sequence[str]]
    """Precision → layouts; the first one is the usual one."""


Start = Callable[[str, str], AbstractContextManager[Prepared]]
"""Prepares a training in a precision and a layout. Raises `NotApplicable` if it can't run here."""


def choose(ways: Ways, start: Start, identity: dict[str, Any]) -> Choice:
    """Return the fastest way, from the cache if it was chosen before.

    `identity` lists all that the choice depends on, as JSON.
    """
    text = json.dumps([CHOICE_VERSION, identity], sort_keys=True)
    place = cache_dir() / "choices" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.choice"
    if (kept := _read(place)) is not None:
        return kept
    choice, sure = _measured(ways, start)
    if not sure:  # another time, memory may suffice
        return choice
    with contextlib.suppress(OSError):  # without a writable cache, it is only measured again
        write_sealed(place, to_json(choice.model_dump(mode="json")).encode())
    return choice


def _read(place: Path) -> Choice | None:
    content = read_or_warn(place)
    if content is None:
        return None
    try:
        return Choice.from_json(content)
    except UserError:  # of another version of this suite
        return None


def _measured(ways: Ways, start: Start) -> tuple[Choice, bool]:
    """Compare the usual way with each other precision, and then the best precision's layouts.

    Also returns False if something went wrong that may not be so the next time.
    """
    usual = ways.precisions[0]
    comparing = _Comparing((usual, ways.layouts(usual)[0]), start)
    for precision in ways.precisions[1:]:
        comparing.challenge((precision, ways.layouts(precision)[0]))
    for layout in ways.layouts(comparing.best[0])[1:]:
        comparing.challenge((comparing.best[0], layout))
    precision, layout = comparing.best
    choice = Choice(
        precision=precision, memory_format=layout, reason=comparing.reason(), tried=tuple(comparing.tried.values())
    )
    return choice, comparing.sure


_Way = tuple[str, str]
"""Precision and layout."""


class _Comparing:
    """Holds the best way so far, which others challenge one by one."""

    def __init__(self, usual: _Way, start: Start) -> None:
        self.usual = self.best = usual
        self.tried: dict[_Way, Tried] = {}
        self.sure = True
        """False if a way failed for a reason that may not last, or no loss is known to compare with."""
        self._start = start
        self._shares = {usual: 1.0}
        """Way → its share of the usual way's time."""
        self._changes = {usual: 0.0}
        """Way → difference of its loss from the usual way's, as a share of that."""
        self._refused: list[str] = []

    def challenge(self, other: _Way) -> None:
        """Take `other` in place of the best way if it is better."""
        try:
            turns = _in_turn(self.best, other, self._start, ROUNDS)
            if _ratio(turns) <= 1 - LEAST_GAIN and not _agree(turns):
                turns = _in_turn(self.best, other, self._start, MORE_ROUNDS)
        except (NotApplicable, RuntimeError) as error:
            # Torch raises the latter where a precision has no kernel, but also where memory doesn't suffice.
            self.sure &= isinstance(error, NotApplicable) or "not implemented" in str(error)
            why = str(error).strip().partition("\n")[0]
            self.tried[other] = Tried(precision=other[0], memory_format=other[1], reason=why)
            self._refused.append(f"{_name(other)} can't run here")
            return
        for way, each in zip((self.best, other), turns, strict=True):
            self.tried[way] = _summary(way, each)
        first, second = turns
        self.sure &= math.isfinite(first[0].loss)
        share = _ratio(turns) * self._shares[self.best]
        change = self._changes[self.best] + (second[0].loss - first[0].loss) / first[0].loss
        if not abs(change) <= TOLERANCE:  # NaN is a difference too
            self._refused.append(f"{_name(other)} takes {share:.2f} of the time, but its loss is off by {change:+.1%}")
            return
        faster = _ratio(turns) <= 1 - LEAST_GAIN and _agree(turns)
        loser = self.best if faster else other
        self._shares[other], self._changes[other] = share, change
        if loser != self.usual:
            self._refused.append(f"{_name(loser)} takes {self._shares[loser]:.2f}")
        if faster:
            self.best = other

    def reason(self) -> str:
        """Say in one sentence why the best way is that."""
        if not self.tried:
            return f"{_name(self.best)} is the only way here"
        if self.best == self.usual:
            text = f"{_name(self.best)} stays, since nothing is clearly faster"
        else:
            text = (
                f"{_name(self.best)} takes {self._shares[self.best]:.2f} of the time of {_name(self.usual)}, and its "
                f"loss on the same batches is off by {self._changes[self.best]:+.1%}"
            )
        return "; ".join([text, *self._refused])


def _name(way: _Way) -> str:
    return " ".join(way)


def _summary(way: _Way, turns: Sequence[Turn]) -> Tried:
    loss = turns[0].loss
    return Tried(
        precision=way[0],
        memory_format=way[1],
        epoch_seconds=statistics.median(turn.seconds for turn in turns[2:]),
        loss=loss if math.isfinite(loss) else None,
    )


_Turns = tuple[list[Turn], list[Turn]]
"""Turns of two ways. The first of each has the loss, the second shows how long a turn is; the others are timed."""


def _ratios(turns: _Turns) -> list[float]:
    return [b.seconds / a.seconds for a, b in zip(turns[0][2:], turns[1][2:], strict=True)]


def _ratio(turns: _Turns) -> float:
    return statistics.median(_ratios(turns))


def _agree(turns: _Turns) -> bool:
    """Return True if the second way is faster in nearly all rounds."""
    ratios = _ratios(turns)
    return sum(ratio < 1 for ratio in ratios) >= WON_ROUNDS * len(ratios)


def _in_turn(one: _Way, other: _Way, start: Start, rounds: int) -> _Turns:
    """Run both ways in turn. The first two turns of each have `FIRST_STEPS`, the others take about `TURN_SECONDS`.

    In the first, kernels are loaded and graphs captured, so only the second shows how many steps a turn may have.
    """
    turns: _Turns = ([], [])
    with ExitStack() as stack:
        prepared = [stack.enter_context(start(*way)) for way in (one, other)]
        group = max(each.group for each in prepared)
        steps = math.ceil(FIRST_STEPS / group) * group
        for number in range(rounds + 2):
            begun = time.perf_counter()
            for index in (0, 1) if number % 2 == 0 else (1, 0):
                turns[index].append(prepared[index].run(steps))
            if number == 1:
                groups = 2 * TURN_SECONDS / (time.perf_counter() - begun) * steps / group
                steps = group * max(1, min(MOST_STEPS // group, round(groups)))
    return turns
