"""Predicts the ratio of two regimes' times from their counted work, and explains why the measured ratio differs.

If all operations ran at the same rate and nothing else took time, times would be proportional to the counted work.
Real ratios differ because operations run at unequal rates, or because of other work (reading images, the optimiser).
The measured phases show which of the two it is, and how much.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import methodcaller
from statistics import fmean

from bench.analysis.groups import Group
from tl.results import Phases, Work

SAME = 1.05
"""Two ratios within this factor of each other count as the same."""
OTHER = 1.1
"""A measured ratio further than this factor from that of the trainings is another one, and its explanation says so."""
LARGE_SHARE = 0.05
"""An explanation leaves out phases below this share of an epoch."""
ARITHMETIC = ("forward", "backward")
"""Phases that consist only of the network's arithmetic."""
REST = {
    name: field.title or name for name, field in Phases.model_fields.items() if name not in (*ARITHMETIC, "validation")
}
"""Phases that are not the network's arithmetic → words. `_share` adds the reading of validation images."""


def predicted(metric: str, above: Group, below: Group) -> float | None:
    """Ratio of a metric, `above` / `below`, that the counted work predicts; None without a prediction or a count."""
    work_of = PREDICTED.get(metric)
    top, bottom = (work_of(above), work_of(below)) if work_of else (None, None)
    return top / bottom if top and bottom else None


def _epoch_flops(group: Group) -> float | None:
    """FLOPs per epoch of training and validation; None if they were not counted."""
    return _flops(group, len(group.truth))


def _training_flops(group: Group) -> float | None:
    return _flops(group, 0)


def _flops(group: Group, val_images: int) -> float | None:
    """FLOPs per epoch with that many validation images: the mean of those epochs whose seconds count."""
    result = group.counted
    works = [result.work_in(row.epoch) for row in result.epochs[1:] or result.epochs]
    known = [epoch_flops(work, group.records[0].train_images, val_images) for work in works if work]
    return fmean(known) if known else None


def epoch_flops(work: Work, train_images: int, val_images: int) -> float:
    """FLOPs per epoch of training and validation. `work` is that of a training step."""
    training = (work.forward_flops + work.backward_flops) / work.step_images * train_images
    return training + work.forward_flops / work.step_images * val_images


PREDICTED: dict[str, Callable[[Group], float | None]] = {
    "epoch_seconds": _epoch_flops,
    "train_epoch_seconds": _training_flops,
}
"""Metric → the counted quantity that it is predicted to be proportional to."""


def explain(slow: Group, fast: Group, measured: float | None) -> str | None:
    """Explain in a sentence why the measured speed-up per epoch differs from the predicted one.

    `measured` is None if no epochs can be compared. Returns None if the work was not counted.
    """
    expected = predicted("epoch_seconds", slow, fast)
    if expected is None:
        return None
    if measured is None:
        return f"{expected:.2f}× is predicted; no warm epochs of the same seed were measured to compare"
    pace = f"{measured:.2f}× faster" if measured >= 1 else f"{1 / measured:.2f}× slower"
    if _same(measured, expected):
        return f"{pace}, as the {expected:.2f}× predicted"
    reasons = _reasons(slow, fast, measured, expected)
    text = f"{pace}, not the {expected:.2f}× predicted"
    if reasons and (trained := _trained(slow, fast)) and not 1 / OTHER < measured / trained < OTHER:
        reasons.append(f"these phases are those of the trainings, which gave {trained:.2f}×")
    return f"{text}: {'; '.join(reasons)}" if reasons else text


def _trained(slow: Group, fast: Group) -> float | None:
    """The speed-up of the trainings' own epochs, whose phases are known; `measured` may be of process pairs."""
    above, below = (group.typical("epoch_seconds") for group in (slow, fast))
    return above / below if above and below else None


LITTLE = 0.1
"""With fewer validation images per training image than this, validation hardly counts."""


def counted_shares(slow: Group, fast: Group) -> str | None:
    """A sentence on the share of time that the counted work predicts, with and without validation.

    Returns None if the work was not counted.
    """
    expected, training = (predicted(metric, slow, fast) for metric in ("epoch_seconds", "train_epoch_seconds"))
    if expected is None or training is None:
        return None
    train, val = slow.records[0].train_images, len(slow.truth)
    text = (
        f"Counted work alone predicts {1 / expected:.0%} of the time, or {1 / training:.0%} without validation "
        f"({val} validation images for {train} in training)."
    )
    third = (
        " With so few to validate, the share tends to a third, since a backward pass costs about two forward passes, "
        "and training only the head needs one of these three."
    )
    return text + (third if val < LITTLE * train else "")


def _reasons(slow: Group, fast: Group, measured: float, expected: float) -> list[str]:
    """Reasons for the measured ratio: operations at unequal rates, then work that is not arithmetic."""
    arithmetic = [_arithmetic(group) for group in (slow, fast)]
    if not arithmetic[0] or not arithmetic[1]:
        return []
    at_rates = arithmetic[0] / arithmetic[1]
    reasons = []
    if not _same(at_rates, expected):
        reasons.append(f"{_rates(slow, fast)}, so the arithmetic alone is {at_rates:.2f}× faster")
    if not _same(measured, at_rates):
        reasons.append(
            f"training only the head spends {_share(fast)} of an epoch outside arithmetic, fine-tuning {_share(slow)}"
        )
    return reasons


def _rates(slow: Group, fast: Group) -> str:
    def rate(group: Group, phase: str, flops: Callable[[Work], int]) -> str:
        work, seconds = group.counted.work, _seconds(group, (phase,))
        if work is None or not seconds:
            return "unknown speed"
        per_image = flops(work) / work.step_images
        return f"{per_image * group.records[0].train_images / seconds / 1e9:,.0f} GFLOP/s"

    return (
        f"fine-tuning runs forward at {rate(slow, 'forward', lambda w: w.forward_flops)} and backward at "
        f"{rate(slow, 'backward', lambda w: w.backward_flops)}, training only the head runs forward at "
        f"{rate(fast, 'forward', lambda w: w.forward_flops)}"
    )


def _arithmetic(group: Group) -> float | None:
    """Seconds per epoch spent in the network's own operations, in training and validation."""
    training, validation = _seconds(group, ARITHMETIC), _validation_forward(group)
    return None if training is None or validation is None else training + validation


def _validation_forward(group: Group) -> float | None:
    """Estimated seconds of arithmetic per validation pass, assuming forward passes as fast as in training."""
    forward, whole = _seconds(group, ("forward",)), _seconds(group, ("validation",))
    if forward is None or whole is None:
        return None
    return min(whole, forward * len(group.truth) / group.records[0].train_images)


def _share(group: Group) -> str:
    """The share of an epoch that is not arithmetic, as text, with its large parts, largest first."""
    rest = {words: _seconds(group, (phase,)) or 0.0 for phase, words in REST.items()}
    validation, forward = _seconds(group, ("validation",)) or 0.0, _validation_forward(group) or 0.0
    rest["reading validation images"] = validation - forward
    whole = sum(rest.values()) + (_arithmetic(group) or 0.0) or math.inf
    shares = {words: seconds / whole for words, seconds in sorted(rest.items(), key=lambda item: -item[1])}
    parts = [f"{words} {share:.0%}" for words, share in shares.items() if share >= LARGE_SHARE]
    return f"{sum(shares.values()):.0%}" + (f" ({', '.join(parts)})" if parts else "")


def _seconds(group: Group, phases: tuple[str, ...]) -> float | None:
    """Sum of the median seconds of some phases; None if one was not measured."""
    total = 0.0
    for phase in phases:
        part = group.median(methodcaller("phase_seconds", phase))
        if part is None:
            return None
        total += part
    return total


def _same(one: float, other: float) -> bool:
    return 1 / SAME < one / other < SAME
