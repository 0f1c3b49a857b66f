"""What the work of two regimes predicts for their times, and why the measured ratio is another.

Were every operation as quick as every other, times would stand in the ratio of the work. They aren't, and what
is not training's arithmetic (reading images, the optimiser) takes its share: the phases tell which it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from tl.results import TrainResult

SAME = 1.05
"""Within this factor the prediction is called met."""
LARGE_SHARE = 0.05
"""Phases below this share of the quicker epoch are not worth a word."""
_CALLED = {
    "data": "reading and cropping images",
    "transfer": "moving and normalising images",
    "optimizer": "the optimiser",
    "other": "the rest",
}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The speed-up that the counted work predicts, and a sentence on the measured one."""

    with_validation: float
    """Of an epoch, training and validation."""
    explanation: str


def predict(
    slow: TrainResult, fast: TrainResult, *, train_images: int, val_images: int, measured: float | None
) -> Prediction | None:
    """Compare fine-tuning with training the head alone; None where the work was not counted.

    `measured` is the speed-up of an epoch with validation.
    """
    if slow.work is None or fast.work is None:
        return None
    step_slow, step_fast = (r.work.forward_flops + r.work.backward_flops for r in (slow, fast) if r.work)
    forward = slow.work.forward_flops
    per_slow, per_fast = step_slow / slow.work.step_images, step_fast / fast.work.step_images
    validation = val_images * forward / slow.work.step_images
    with_validation = (train_images * per_slow + validation) / (train_images * per_fast + validation)
    return Prediction(
        with_validation=with_validation,
        explanation=_explain(slow, fast, with_validation, measured, train_images),
    )


def _explain(slow: TrainResult, fast: TrainResult, predicted: float, measured: float | None, train_images: int) -> str:
    if measured is None:
        return f"{predicted:.1f}× is predicted; too few epochs were measured to compare"
    met = 1 / SAME < measured / predicted < SAME
    text = f"{measured:.1f}× faster, {'as' if met else 'not the'} {predicted:.1f}× predicted"
    reasons = [*_rates(slow, fast, train_images), *_shares(fast)]
    return text + (f": {'; '.join(reasons)}" if reasons and not met else f" ({'; '.join(reasons)})" if reasons else "")


def _rates(slow: TrainResult, fast: TrainResult, train_images: int) -> list[str]:
    """How quickly the arithmetic ran: where backward is the slower, freezing saves more than its share."""
    forward, backward = slow.phase_seconds("forward"), slow.phase_seconds("backward")
    frozen = fast.phase_seconds("forward")
    if not (forward and backward and frozen and slow.work and fast.work):
        return []

    def rate(flops: int, images: int, seconds: float) -> str:
        return f"{flops / images * train_images / seconds / 1e9:.0f} GFLOP/s"

    work = slow.work
    return [
        f"fine-tuning runs forward at {rate(work.forward_flops, work.step_images, forward)} and backward at "
        f"{rate(work.backward_flops, work.step_images, backward)}, the frozen backbone forward at "
        f"{rate(fast.work.forward_flops, fast.work.step_images, frozen)}"
    ]


def _shares(fast: TrainResult) -> list[str]:
    """What takes a good part of the quicker epoch and is not arithmetic: freezing can't save it."""
    if fast.epoch_seconds is None:
        return []
    shares = {name: (fast.phase_seconds(name) or 0.0) / fast.epoch_seconds for name in _CALLED}
    return [
        f"{_CALLED[name]} takes {share:.0%} of the frozen epoch"
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
        if share >= LARGE_SHARE
    ]
