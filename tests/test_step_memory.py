"""Tests of how long tensors of a training live, by the bytes of all that are alive: no clock and no allocator."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import tl
from tests.alive import Alive
from tests.conftest import TINY
from tl import train as train_module
from tl.backbones import Classifier, make_backbone
from tl.checkpointing import checkpointed
from tl.config import OPTIMIZERS
from tl.freezing import Freezing, freeze
from tl.optimizers import OPTIMIZER_BUILDERS
from tl.plain import PlainStep
from tl.regimes import REGIMES
from tl.step import Evaluation, TrainStep
from tl.work import StepWork, tensor_bytes

CPU = torch.device("cpu")


@dataclass
class Made:
    """A training step with what it trains."""

    config: tl.TrainConfig
    freezing: Freezing
    optimizer: torch.optim.Optimizer
    step: TrainStep
    evaluation: Evaluation

    def run(self, work: StepWork | None = None) -> None:
        """Train on a batch that nobody else holds."""
        size = 160 if self.config.backbone.endswith("vit") else 64
        self.freezing.train_mode()
        self.step.run(torch.randn(4, 3, size, size), torch.arange(4) % 2, lambda phase: None, work)

    @property
    def standing(self) -> list[torch.Tensor]:
        """What must be alive between two steps."""
        model, state = self.freezing.model, self.optimizer.state.values()
        values = [value for values in state for value in values.values() if isinstance(value, torch.Tensor)]
        return [*model.parameters(), *model.buffers(), *values]

    @property
    def standing_bytes(self) -> int:
        """Bytes of what must be alive between two steps."""
        return tensor_bytes(self.standing)


def make(kind: type[TrainStep], regime: str = "finetune", backbone: str = TINY[0], **settings: Any) -> Made:
    config = tl.TrainConfig(backbone=backbone, regime=regime, weights="random", **settings)
    model = Classifier(make_backbone(backbone, weights="random"), 2, config)
    freezing = freeze(model, REGIMES[regime])
    optimizer = OPTIMIZER_BUILDERS[config.optimizer](config, freezing.parameters)
    body = model.backbone
    step = kind(model, body, body, cross_entropy, optimizer, config, CPU)
    step.start()
    return Made(config, freezing, optimizer, step, Evaluation(model, body, "fp32", CPU))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_of_a_step_lives_on(optimizer: str, precision: str) -> None:
    """Its gradients, batch, outputs and graph are gone before the next batch is made. Only sums stay."""
    made = make(TrainStep, optimizer=optimizer, precision=precision)
    with Alive(made.standing) as alive:
        for _ in range(3):
            made.run()
            assert 0 <= alive.bytes - made.standing_bytes < 100
    assert alive.peak > made.standing_bytes + tensor_bytes(made.freezing.parameters)


def test_the_tutorials_step_keeps_its_gradients() -> None:
    """Its loop zeroes them before the next step. It is a yardstick and does nothing to save memory."""
    made = make(PlainStep)
    with Alive(made.standing) as alive:
        made.run()
        assert alive.bytes - made.standing_bytes > tensor_bytes(made.freezing.parameters)


@pytest.mark.parametrize("regime", ["finetune", "frozen", "frozen-tutorial"])
def test_validation_takes_less_than_training(regime: str) -> None:
    """In batches of the same size, after a step: without gradients and activations, beside the optimiser's state."""
    made = make(TrainStep, regime)
    with Alive(made.standing) as alive:
        for _ in range(2):
            made.run()
        training, alive.peak = alive.peak, 0
        made.freezing.model.eval()
        batches = ((torch.randn(4, 3, 64, 64), torch.arange(4) % 2) for _ in range(5))
        made.evaluation.over(batches, cross_entropy)
    assert made.standing_bytes < alive.peak
    assert alive.peak <= training * (1.0 if regime == "finetune" else 1.02)


def test_a_validation_pass_of_a_training_finds_no_gradients(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """So fine-tuning's peak in validation is smaller by all that trains, and its results are the same."""
    found, original = [], train_module.val_pass
    made: list[Freezing] = []

    def freezing(*given: Any) -> Freezing:
        made.append(freeze(*given))
        return made[-1]

    def validated(*given: Any) -> Any:
        found.extend(parameter.grad for parameter in made[-1].parameters)
        return original(*given)

    monkeypatch.setattr("tl.prepare.freeze", freezing)
    monkeypatch.setattr(train_module, "val_pass", validated)
    config = tl.TrainConfig(backbone=TINY[1], regime="finetune", weights="random", epochs=1)
    tl.train_model(config, mini, device="cpu")
    assert found and all(gradient is None for gradient in found)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_step_whose_work_is_counted_takes_hardly_more(checkpointing: bool) -> None:
    """It is the first one, so its peak would be that of the training. Epochs run without garbage collection."""
    made = make(TrainStep, backbone="timm:test_vit", checkpointing=checkpointing)
    peaks = []
    again = checkpointed(made.freezing.model.backbone) if checkpointing else nullcontext()
    gc.collect()
    gc.disable()
    try:
        with again, Alive(made.standing) as alive:
            for work in (StepWork(), None, None):
                alive.peak = 0
                made.run(work)
                peaks.append(alive.peak)
    finally:
        gc.enable()
    assert max(peaks) < 1.15 * peaks[-1]
