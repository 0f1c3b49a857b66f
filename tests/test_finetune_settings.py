"""Tests of settings of fine-tuning, against loops by hand, in double precision as in `tests/test_checkpointing.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import tl
from bench.report.settings_text import settings
from bench.store.records import Cell
from tests.runs import record, write_run
from tests.test_reference import DoubleClassifier, every
from tl.backbones import Classifier, make_backbone
from tl.batches import Batches
from tl.freezing import Freezing
from tl.images import open_store
from tl.prepare import WAYS
from tl.regimes import REGIMES
from tl.results import TrainResult

BACKBONE = "timm:test_resnet"


class Stirred(DoubleClassifier):
    """Its norms begin without a 0, through which no gradient would pass if it is frozen."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)


def config(**given: Any) -> tl.TrainConfig:
    more = {"backbone": BACKBONE, "regime": "finetune", "weights": "random", "epochs": 2, "learning_rate": 0.01}
    return tl.TrainConfig(**{**more, **given})


@pytest.fixture
def few(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> tl.Splits:
    """Six and four images, for networks in double precision."""
    monkeypatch.setattr("tl.prepare.Classifier", Stirred)
    return replace(mini, train=every(4, mini.train), val=every(4, mini.val))


def fresh(given: tl.TrainConfig) -> Classifier:
    made = Stirred(make_backbone(given.backbone, weights="random", seed=given.seed), 2, given)
    return made.to(memory_format=torch.channels_last)


def train(given: tl.TrainConfig, splits: tl.Splits, **more: Any) -> TrainResult:
    return tl.train_model(given, splits, device="cpu", **{"keep": "last", **more})


def by_hand(
    given: tl.TrainConfig, splits: tl.Splits, optimizer: Callable[[Classifier], torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    """The state after a plain loop with this optimiser. With `freeze_bn` it keeps all BatchNorm layers in eval mode."""
    model = fresh(given)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and given.freeze_bn]
    for norm in norms:
        norm.requires_grad_(False)
    updates = optimizer(model)
    preprocessing = make_backbone(given.backbone, weights="random").preprocessing
    batches = Batches(open_store(splits), splits.train, preprocessing, torch.device("cpu"))
    schedule = torch.optim.lr_scheduler.StepLR(updates, given.step_size, given.gamma)
    for epoch in range(given.epochs):
        model.train()
        for norm in norms:
            norm.eval()
        for images, labels in batches.training(given.batch_size, seed=given.seed, epoch=epoch):
            updates.zero_grad()
            images = images.contiguous(memory_format=torch.channels_last)
            nn.functional.cross_entropy(model(images).float(), labels).backward()
            updates.step()
        schedule.step()
    return model.state_dict()


def same(result: TrainResult, wanted: dict[str, torch.Tensor]) -> None:
    found = result.model.state_dict()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9, msg=name)


def cell(**given: Any) -> Cell:
    return Cell(config=config(**given), weights_digest="", dataset_digest="0" * 64, device="cpu")


def of_norms(model: nn.Module) -> set[str]:
    """Names of all tensors of BatchNorm layers."""
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    return {name for name in model.state_dict() if name.rpartition(".")[0] in norms}


def changed(result: TrainResult) -> set[str]:
    before = fresh(result.config).state_dict()
    return {name for name, value in result.model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("execution", ["fast", "plain"])
def test_frozen_batch_norm(few: tl.Splits, monkeypatch: pytest.MonkeyPatch, execution: str) -> None:
    """All trains as in a loop by hand but BatchNorm layers, which are proved to be as they were."""
    monkeypatch.setitem(WAYS, execution, replace(WAYS[execution], images=WAYS["fast"].images))
    given = config(freeze_bn=True, execution=execution)
    result = train(given, few)
    assert result.frozen_verified is True
    assert changed(result) == set(result.model.state_dict()) - of_norms(result.model)
    same(result, by_hand(given, few, lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)))
    norms = [module for module in result.model.modules() if isinstance(module, nn.BatchNorm2d)]
    trained = sum(parameter.numel() for norm in norms for parameter in norm.parameters())
    assert result.trainable_params == result.total_params - trained


@pytest.mark.parametrize("regime", ["last-block", "gradual"])
def test_frozen_batch_norm_of_parts(few: tl.Splits, regime: str) -> None:
    """Whatever else trains, BatchNorm layers don't."""
    result = train(config(regime=regime, freeze_bn=True), few)
    usual = train(config(regime=regime), few)
    assert result.frozen_verified is usual.frozen_verified is True
    assert changed(result) == changed(usual) - of_norms(usual.model)


def test_batch_norm_that_moves_is_reported(few: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug forgets about modes, so statistics move."""
    monkeypatch.setattr(Freezing, "train_mode", lambda self: self.model.train())
    assert train(config(freeze_bn=True), few).frozen_verified is False


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone": "timm:test_vit"}, r"^freeze_bn=true: no BatchNorm layer of this backbone would train"),
        ({"regime": "bias-only"}, r"^freeze_bn=true: regime 'bias-only' trains nothing else of this backbone"),
        ({"regime": "norm-only"}, r"^freeze_bn=true: regime 'norm-only' trains nothing else of this backbone"),
    ],
    ids=["no BatchNorm", "bias-only", "norm-only"],
)
def test_frozen_batch_norm_without_a_meaning_is_skipped(few: tl.Splits, given: dict[str, Any], message: str) -> None:
    with pytest.raises(tl.NotApplicable, match=message):
        train(config(freeze_bn=True, **given), few)


def test_who_reads_the_settings() -> None:
    """Where they mean nothing they have their defaults, so a grid may set them for all regimes."""
    read = {name for name in REGIMES if config(regime=name, freeze_bn=True).freeze_bn}
    assert read == {"finetune", "lp-ft", "gradual", "last-block", "last-2", "last-3", "norm-only", "bias-only"}
    assert cell().id == cell(freeze_bn=False).id != cell(freeze_bn=True).id


def test_the_report_has_the_settings(tmp_path: Any) -> None:
    manifest = write_run(tmp_path / "r", [record("timm:a", "finetune")]).manifest()
    usual = settings(manifest)
    told = settings(manifest.replace(protocol={**manifest.protocol, "freeze_bn": True}))
    assert told == f"{usual}; BatchNorm layers stay frozen where a pretrained backbone trains"
