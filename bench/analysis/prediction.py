"""What the work of two regimes predicts for their ratio, and why the measured ratio is another.

Were every operation as quick as every other, times would stand in the ratio of the work. They aren't, and what is not
arithmetic (reading images, the optimiser) takes its share: the phases tell which of the two it is, and how much.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import methodcaller

from bench.analysis.groups import Group
from tl.results import Phases, Work

SAME = 1.05
"""Within this factor two ratios are called the same."""
LARGE_SHARE = 0.05
"""Phases below this share of an epoch are not worth a word."""
ARITHMETIC = ("forward", "backward")
"""Phases that are the network's arithmetic, and no more."""
REST = {
    name: field.title or name for name, field in Phases.model_fields.items() if name not in (*ARITHMETIC, "validation")
}
"""Phases that are no arithmetic of the network → words. Reading the validation images joins them: see `_share`."""


def predicted(metric: str, above: Group, below: Group) -> float | None:
    """Ratio of a metric that the counted work predicts; None where it predicts nothing or was not counted."""
    figure = PREDICTED.get(metric)
    top, bottom = (figure(above), figure(below)) if figure else (None, None)
    return top / bottom if top and bottom else None


def _epoch_flops(group: Group) -> float | None:
    """Of training and validation."""
    work, training = group.counted.work, _training_flops(group)
    return None if work is None or training is None else training + _validation_flops(group, work)


def _training_flops(group: Group) -> float | None:
    work, images = group.counted.work, group.records[0].train_images
    return (work.forward_flops + work.backward_flops) / work.step_images * images if work else None


def _validation_flops(group: Group, work: Work) -> float:
    return work.forward_flops / work.step_images * len(group.truth)


PREDICTED: dict[str, Callable[[Group], float | None]] = {
    "epoch_seconds": _epoch_flops,
    "train_epoch_seconds": _training_flops,
}
"""Metric → the counted quantity that it would be proportional to."""


def explain(slow: Group, fast: Group, measured: float | None) -> str | None:
    """A sentence on the measured speed-up of an epoch against the predicted one; None where work was not counted.

    `measured` is None where no epoch can be compared.
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
    return f"{text}: {'; '.join(reasons)}" if reasons else text


def _reasons(slow: Group, fast: Group, measured: float, expected: float) -> list[str]:
    """Take the measured ratio apart: operations at unequal rates, then what is not arithmetic."""
    arithmetic = [_arithmetic(group) for group in (slow, fast)]
    if not arithmetic[0] or not arithmetic[1]:
        return []
    at_rates = arithmetic[0] / arithmetic[1]
    reasons = []
    if not _same(at_rates, expected):
        reasons.append(f"{_rates(slow, fast)}, so the arithmetic alone is {at_rates:.2f}× faster")
    if not _same(measured, at_rates):
        reasons.append(
            f"what is not arithmetic takes {_share(fast)} of the frozen epoch and {_share(slow)} of the fine-tuning one"
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
        f"{rate(slow, 'backward', lambda w: w.backward_flops)}, the frozen backbone forward at "
        f"{rate(fast, 'forward', lambda w: w.forward_flops)}"
    )


def _arithmetic(group: Group) -> float | None:
    """Seconds of an epoch that the network's own operations take, in training and validation."""
    training, validation = _seconds(group, ARITHMETIC), _validation_forward(group)
    return None if training is None or validation is None else training + validation


def _validation_forward(group: Group) -> float | None:
    """What of the validation pass is arithmetic, were its forward passes as quick as those of training."""
    forward, whole = _seconds(group, ("forward",)), _seconds(group, ("validation",))
    if forward is None or whole is None:
        return None
    return min(whole, forward * len(group.truth) / group.records[0].train_images)


def _share(group: Group) -> str:
    """What is not arithmetic as a share of an epoch, with its large parts, largest first."""
    rest = {words: _seconds(group, (phase,)) or 0.0 for phase, words in REST.items()}
    validation, forward = _seconds(group, ("validation",)) or 0.0, _validation_forward(group) or 0.0
    rest["reading validation images"] = validation - forward
    whole = sum(rest.values()) + (_arithmetic(group) or 0.0) or math.inf
    shares = {words: seconds / whole for words, seconds in sorted(rest.items(), key=lambda item: -item[1])}
    parts = [f"{words} {share:.0%}" for words, share in shares.items() if share >= LARGE_SHARE]
    return f"{sum(shares.values()):.0%}" + (f" ({', '.join(parts)})" if parts else "")


def _seconds(group: Group, phases: tuple[str, ...]) -> float | None:
    """Sum of the medians of some phases; None where they were not measured."""
    total = 0.0
    for phase in phases:
        part = group.median(methodcaller("phase_seconds", phase))
        if part is None:
            return None
        total += part
    return total


def _same(one: float, other: float) -> bool:
    return 1 / SAME < one / other < SAME
