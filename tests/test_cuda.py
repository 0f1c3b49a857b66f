"""What only a GPU can show. Skipped where there is none."""

from __future__ import annotations

import time
import warnings

import pytest
import torch

import tl
from tests.conftest import TINY
from tl.clock import Clock
from tl.regimes import REGIMES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
LEARNING = [name for name, regime in REGIMES.items() if regime.start == "random" or name.startswith(("fine", "frozen"))]


def train(splits: tl.Splits, device: str, **settings: object) -> tl.TrainResult:
    given = {"backbone": TINY[1], "weights": "random", "epochs": 3, **settings}
    return tl.train_model(tl.TrainConfig(**given), splits, device=device)


@pytest.mark.parametrize("regime", LEARNING)
def test_a_gpu_trains_the_same_network(mini: tl.Splits, regime: str) -> None:
    """The same losses as on the CPU, up to rounding; what must stay frozen stays so bit for bit."""
    here, there = (train(mini, device, regime=regime) for device in ("cpu", "cuda"))
    for one, other in zip(here.epochs, there.epochs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=2e-3)
        assert other.val_loss == pytest.approx(one.val_loss, rel=2e-3)
    assert there.frozen_verified is here.frozen_verified
    assert there.work == here.work or there.work.forward_flops == here.work.forward_flops


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_phases_add_up_to_the_epoch(mini: tl.Splits, precision: str) -> None:
    """Within 2%, by events on the device's own queue."""
    for row in train(mini, "cuda", regime="finetune", precision=precision).epochs[1:]:
        parts = row.phases.model_dump()
        assert sum(parts.values()) == pytest.approx(row.train_seconds + row.val_seconds, rel=0.02)
        assert min(parts.values()) >= -1e-4 and parts["other"] < 0.1 * sum(parts.values())


def test_the_host_waits_once_an_epoch_not_once_a_batch(mini: tl.Splits) -> None:
    """Ten batches more, of training and validation, are not ten synchronisations more, nor five."""

    def waits(batch_size: int) -> int:
        train(mini, "cuda", regime="finetune", batch_size=batch_size, epochs=1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train(mini, "cuda", regime="finetune", batch_size=batch_size, epochs=1)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    assert waits(2) - waits(4) < 5


def test_frozen_needs_less_memory_than_fine_tuning(mini: tl.Splits) -> None:
    """Both what was allocated and what was reserved; training holds more than validation."""
    slow, fast = (train(mini, "cuda", regime=regime, batch_size=8) for regime in ("finetune", "frozen"))
    assert slow.cuda_allocated_bytes > fast.cuda_allocated_bytes > 0
    for result in (slow, fast):
        assert result.cuda_reserved_bytes >= result.cuda_allocated_bytes


def test_a_seed_repeats_itself(mini: tl.Splits) -> None:
    """Up to the order of additions."""
    one, other = (train(mini, "cuda", regime="finetune") for _ in range(2))
    assert one.epochs[-1].train_loss == pytest.approx(other.epochs[-1].train_loss, rel=1e-4)


def test_the_clock_takes_less_than_a_hundredth_of_a_step(mini: tl.Splits) -> None:
    """Seven marks, on a step of the smallest network."""
    device = torch.device("cuda")
    result = train(mini, "cuda", regime="frozen", backbone=TINY[0])
    steps = -(-len(mini.train) // 4)
    clock = Clock(device)

    def epoch() -> float:
        clock.start()
        begun = time.perf_counter()
        for _ in range(7 * steps):
            clock.mark("forward")
        torch.cuda.synchronize()
        return (time.perf_counter() - begun) / steps

    marks = sorted(epoch() for _ in range(51))[25]  # but for the first the events are there already, as in training
    share = marks / (result.train_epoch_seconds / steps)
    assert share < 0.01, f"{1e6 * marks:.0f} µs of a step, {share:.2%}"


def test_single_precision_is_not_rounded_to_tf32(mini: tl.Splits) -> None:
    """Known by its error: TF32 keeps ten bits of what a product's factors have."""
    from tl.devices import exact_single_precision

    torch.manual_seed(0)
    one = torch.randn(512, 512, device="cuda")
    exact = one.double() @ one.double()
    with exact_single_precision():
        error = float(((one @ one).double() - exact).abs().max())
    assert error < 1e-3
