"""How far a pass over images is, while it runs."""

from __future__ import annotations

import pytest
import torch

import tl
from tl import progress
from tl.config import TrainConfig
from tl.progress import PassProgress, counted, progress_to


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is reported, however soon it comes."""
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)


def test_without_a_listener_batches_are_what_they_were() -> None:
    """Not even a generator is between."""
    batches = [torch.zeros(2), torch.zeros(2)]
    assert counted(batches, 4, "training") is batches


def test_reports_come_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three batches in 4 seconds each, the one after 8 is reported; the last never is, since the epoch follows."""
    now = [0.0]
    monkeypatch.setattr("tl.progress.time.perf_counter", lambda: now[0])
    said: list[PassProgress] = []
    with progress_to(said.append):
        for batch in counted([(torch.zeros(3), torch.zeros(3))] * 3, 9, "training"):
            assert len(batch) == 2
            now[0] += 4.0
    assert [str(each) for each in said] == ["training 67%"]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("regime", ["frozen", "cached"])
def test_a_training_reports_and_stays_what_it_is(regime: str) -> None:
    """Training, validation and extraction are told apart, counts grow within a pass, and no number changes."""
    config = TrainConfig(backbone="timm:test_resnet", regime=regime, weights="random", epochs=1, batch_size=4)
    splits = tl.load_splits("synthetic-mini")
    before = tl.train_model(config, splits, device="cpu")
    said: list[PassProgress] = []
    with progress_to(said.append):
        again = tl.train_model(config.replace(seed=0), splits, device="cpu")
    assert [row.train_loss for row in before.epochs] == [row.train_loss for row in again.epochs]
    found = {each.what for each in said}
    assert found >= ({"training", "validation"} if regime == "frozen" else {"training"})
    for what, images in (("training", len(splits.train)), ("validation", len(splits.val))):
        done = [each.done for each in said if each.what == what]
        assert done == sorted(done) and all(each.total == images for each in said if each.what == what)
        assert not done or max(done) < images
    assert progress._tell is None
