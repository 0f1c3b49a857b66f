"""Tests the ratio predicted from counted work, and the sentence that explains the measured ratio."""

from __future__ import annotations

import pytest

from bench.analysis.groups import Group, make_groups
from bench.analysis.prediction import explain, predicted
from tests.runs import TRUTH, record
from tl.results import Phases, Work

FORWARD, BACKWARD = 4_000_000_000, 8_000_000_000
"""FLOPs of a step of 4 images."""


def group(regime: str, seconds: dict[str, float], *, backward: int, counted: bool = True) -> Group:
    """A group of one cell. Each epoch takes these seconds by phase, for 244 training and 100 validation images."""
    one = record("timm:a", regime)
    assert one.result is not None
    phases = Phases(**{**dict.fromkeys(Phases.model_fields, 0.0), **seconds})
    val = phases.validation
    train = sum(phases.model_dump().values()) - val
    epochs = tuple(e.replace(phases=phases, train_seconds=train, val_seconds=val) for e in one.result.epochs)
    work = Work(
        step_images=4,
        forward_flops=FORWARD,
        backward_flops=backward,
        saved_activation_bytes=600 if backward else 0,
        parameter_bytes=100,
        gradient_bytes=100 if backward else 1,
        optimizer_state_bytes=100 if backward else 1,
    )
    result = one.result.replace(epochs=epochs, work=work if counted else None)
    return make_groups([("r", one.replace(result=result))], {"r": TRUTH})[0]


def pair(slow: dict[str, float], fast: dict[str, float], **given: bool) -> tuple[Group, Group]:
    return group("finetune", slow, backward=BACKWARD, **given), group("frozen", fast, backward=0, **given)


AT_ONE_RATE = (
    {"forward": 24.4, "backward": 48.8, "validation": 10.0},
    {"forward": 24.4, "validation": 10.0},
)
"""Seconds by phase for 244 training and 100 validation images, with 0.1 s per image and forward pass."""


def test_the_prediction_counts_training_and_validation() -> None:
    """If backward is twice forward, the ratio is (244 · 3 + 100) / (244 + 100) with validation, and 3 without."""
    slow, fast = pair(*AT_ONE_RATE)
    assert predicted("epoch_seconds", slow, fast) == pytest.approx((244 * 3 + 100) / (244 + 100))
    assert predicted("train_epoch_seconds", slow, fast) == pytest.approx(3.0)
    assert predicted("peak_memory_bytes", slow, fast) is predicted("val_accuracy_best", slow, fast) is None
    assert predicted("epoch_seconds", *pair(*AT_ONE_RATE, counted=False)) is None, "None without counted work"


def sentence(slow: dict[str, float], fast: dict[str, float]) -> str:
    one, other = pair(slow, fast)
    text = explain(one, other, one.seconds / other.seconds)
    assert text is not None
    return text


def test_a_prediction_that_is_met_needs_no_reason() -> None:
    """The sentence gives both factors and no reason."""
    assert sentence(*AT_ONE_RATE) == "2.42× faster, as the 2.42× predicted"


def test_unequal_rates_are_named_and_nothing_else() -> None:
    """If backward runs at half the rate of forward, the sentence has the rates in GFLOP/s and their effect."""
    text = sentence(AT_ONE_RATE[0] | {"backward": 97.6}, AT_ONE_RATE[1])
    assert text.startswith(
        "3.84× faster, not the 2.42× predicted: fine-tuning runs forward at 10 GFLOP/s and backward at 5 "
    )
    assert "training only the head runs forward at 10 GFLOP/s, so the arithmetic alone is 3.84× faster" in text
    assert "outside arithmetic" not in text


def test_what_is_not_arithmetic_is_named_and_nothing_else() -> None:
    """If reading images takes equally long in both regimes, the sentence has the shares, large parts first."""
    text = sentence(*({**side, "data": 40.0, "other": 6.0} for side in AT_ONE_RATE))
    assert text == (
        "1.61× faster, not the 2.42× predicted: training only the head spends 57% (reading and cropping images 50%, "
        "the rest 7%) of an epoch outside arithmetic, fine-tuning 36% (reading and cropping images 31%)"
    )


def test_both_reasons_can_hold() -> None:
    """The sentence has each reason with its effect, in order."""
    text = sentence({**AT_ONE_RATE[0], "backward": 97.6, "data": 10.0}, {**AT_ONE_RATE[1], "data": 10.0})
    assert (
        text.index("GFLOP/s")
        < text.index("so the arithmetic alone is 3.84× faster")
        < text.index("training only the head spends")
    )


def test_reading_validation_images_is_no_arithmetic() -> None:
    """It is the time of the validation pass beyond its forward passes. All rates are equal here."""
    text = sentence(*({**side, "validation": 50.0} for side in AT_ONE_RATE))
    assert text == (
        "1.66× faster, not the 2.42× predicted: training only the head spends 54% (reading validation images 54%) of "
        "an epoch outside arithmetic, fine-tuning 32% (reading validation images 32%)"
    )


def test_slower_is_called_slower() -> None:
    """The sentence doesn't say "0.5× faster"."""
    assert sentence(AT_ONE_RATE[0], {**AT_ONE_RATE[1], "data": 132.0}).startswith(
        "2.00× slower, not the 2.42× predicted"
    )


def test_without_a_measured_ratio_only_the_prediction_is_given() -> None:
    """Without counted work there is no sentence."""
    slow, fast = pair(*AT_ONE_RATE)
    assert explain(slow, fast, None) == "2.42× is predicted; no warm epochs of the same seed were measured to compare"
    assert explain(*pair(*AT_ONE_RATE, counted=False), 2.0) is None
