"""Benchmarks (pytest-benchmark). In the normal test run each runs once, as a test of correctness.

python -m pytest tests/benchmarks --benchmark-enable --benchmark-only
"""

from __future__ import annotations

import time

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import tl
from tests.conftest import TINY
from tests.weights import policy, published
from tl.backbones import make_backbone
from tl.batches import Batches
from tl.clock import Clock
from tl.images import batch_bounds, crops, open_store
from tl.regimes import REGIMES

MARKS_A_STEP = 7
"""See `_train_pass` and `Batches.training`."""


@pytest.mark.parametrize("regime", REGIMES)
def test_epoch(benchmark: BenchmarkFixture, mini: tl.Splits, regime: str) -> None:
    """One epoch of 24 + 16 images on a tiny network, set-up included."""
    config = tl.TrainConfig(backbone=TINY[1], regime=regime, weights=policy(regime), epochs=1)
    result = benchmark(tl.train_model, config, mini, device="cpu", weights_dir=published())
    assert len(result.epochs) == 1
    benchmark.extra_info["total_params"] = result.total_params
    benchmark.extra_info["trainable_params"] = result.trainable_params


def test_clock(benchmark: BenchmarkFixture, mini: tl.Splits) -> None:
    """The marks of one training step: under 1% of the smallest network's step."""
    config = tl.TrainConfig(backbone=TINY[0], regime="frozen", weights="random", epochs=3)
    epoch = tl.train_model(config, mini, device="cpu").train_epoch_seconds
    assert epoch is not None
    clock = Clock(torch.device("cpu"))

    def marks() -> float:
        clock.start()
        begun = time.perf_counter()
        for _ in range(MARKS_A_STEP):
            clock.mark("forward")
        return time.perf_counter() - begun

    cost = min(marks() for _ in range(100))
    benchmark(marks)
    step = epoch / len(batch_bounds(len(mini.train), config.batch_size))
    benchmark.extra_info["share_of_a_step"] = cost / step
    assert cost < 0.01 * step


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_image_path(benchmark: BenchmarkFixture, mini: tl.Splits, kind: str) -> None:
    """Pixels from the store to a normalised batch, 24 images."""
    preprocessing = make_backbone(TINY[1], weights="random").preprocessing
    batches = Batches(open_store(mini), mini.train, preprocessing, torch.device("cpu"))

    def epoch() -> int:
        pairs = batches.training(4, seed=0, epoch=0) if kind == "training" else batches.evaluation(16)
        return sum(len(labels) for _, labels in pairs)

    assert benchmark(epoch) == 24


def test_crop_table(benchmark: BenchmarkFixture) -> None:
    """Crops of 10,000 images for one epoch."""
    sizes = torch.randint(200, 600, (10_000, 2)).numpy()
    assert benchmark(crops, sizes, 0).shape == (10_000, 5)
