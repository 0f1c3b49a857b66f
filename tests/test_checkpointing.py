"""Tests of activation checkpointing against the same trainings without it.

They run in double precision: in single precision two runs of one training may differ, since an array's place in memory
decides in which order some sums are taken.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import tl
from tests.conftest import TINY
from tests.test_reference import DoubleClassifier, every
from tl.backbones import make_backbone
from tl.blocks import blocks
from tl.checkpointing import checkpointed
from tl.config import EXECUTIONS
from tl.errors import NotApplicable
from tl.regimes import REGIMES, Regime, Trainable
from tl.results import TrainResult

CONFIG = tl.TrainConfig(backbone="timm:test_resnet", regime="finetune", weights="random", epochs=2)
BLOCKS = {
    "torchvision:resnet18": "BasicBlock",
    "torchvision:efficientnet_b0": "MBConv",
    "torchvision:mobilenet_v3_small": "InvertedResidual",
    "torchvision:densenet121": "_DenseBlock",
    "torchvision:regnet_y_400mf": "ResBottleneckBlock",
    "torchvision:vit_b_16": "EncoderBlock",
    "torchvision:swin_t": "SwinTransformerBlock",
    "timm:mobilenetv3_small_050": "InvertedResidual",
    "timm:regnety_002": "Bottleneck",
    "timm:convnext_atto": "ConvNeXtBlock",
    "timm:densenet121": "DenseBlock",
    "timm:test_vit": "Block",
}
"""Network → class of its residual blocks, or what there is in their place."""


def few(images: tl.Splits) -> tl.Splits:
    """A few images, with a last batch that is smaller."""
    return replace(images, train=every(4, images.train), val=every(4, images.val))


def train(config: tl.TrainConfig, images: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> TrainResult:
    monkeypatch.setattr("tl.prepare.Classifier", DoubleClassifier)
    return tl.train_model(config, images, device="cpu")


@pytest.mark.parametrize(
    "backbone",
    [*TINY, "torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_050", "timm:test_vit"],
)
def test_a_training_gives_the_same_numbers_and_keeps_less(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    """BatchNorm's statistics move once, and dropout and stochastic depth draw the same masks in both passes."""
    config = CONFIG.replace(backbone=backbone)
    whole = train(config, few(mini), monkeypatch)
    again = train(config.replace(checkpointing=True), few(mini), monkeypatch)
    for row, other in zip(whole.epochs, again.epochs, strict=True):
        for name in ("train_loss", "val_loss"):
            assert getattr(other, name) == pytest.approx(getattr(row, name), rel=1e-6), name
    state = again.model.state_dict()
    assert state.keys() == whole.model.state_dict().keys(), "modules keep their names"
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-10)
    assert whole.work is not None and again.work is not None
    assert again.work.saved_activation_bytes < 0.8 * whole.work.saved_activation_bytes
    assert again.work.forward_flops == whole.work.forward_flops
    extra = again.work.backward_flops - whole.work.backward_flops
    assert 0 < extra <= whole.work.forward_flops, "what runs again is counted"


class Block(nn.Module):
    """A residual block with all that a second run could change."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=momentum), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inside(x)


@pytest.mark.parametrize("frozen", [False, True], ids=["train mode", "eval mode"])
def test_gradients_statistics_and_random_numbers_are_the_same(frozen: bool) -> None:
    """Also those after the pass, and where BatchNorm is frozen or averages over all batches."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(8, 8), Block(), Block(momentum=None), nn.Linear(8, 2)).double()
    again, images = copy.deepcopy(whole), torch.randn(16, 8, dtype=torch.float64)
    drawn = []
    for network in (whole, again):
        network.train(not frozen)
        torch.manual_seed(1)
        with checkpointed(network, CONFIG) if network is again else nullcontext():
            for _ in range(2):
                network(images).square().sum().backward()
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)
    for (name, one), other in zip(whole.named_buffers(), again.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)
    tracked = whole[1].inside[1].num_batches_tracked
    assert tracked is not None and tracked.item() == (0 if frozen else 2)


def test_a_network_is_as_it_was_after_the_context() -> None:
    """A copy or a saved file of it must not run the blocks of the original."""
    network = nn.Sequential(Block(), Block())
    with checkpointed(network, CONFIG):
        assert all("forward" in vars(block) for block in network)
    assert not any("forward" in vars(module) for module in network.modules()) and not network._forward_hooks


@pytest.mark.parametrize("spec", BLOCKS)
def test_blocks_are_found_by_structure(spec: str) -> None:
    """All blocks of that class are found, whatever they are in, and no block is inside another."""
    network = make_backbone(spec, weights="random").module
    found = blocks(network)
    wanted = [module for module in network.modules() if type(module).__name__ == BLOCKS[spec]]
    assert len(wanted) > 1 and {*wanted} <= {*found}
    inside = [module for block in found for module in block.modules()]
    assert len(inside) == len({*inside})


class Listed(Block):
    """A block that is called with a list, which it changes."""

    def forward(self, x: list[torch.Tensor]) -> list[torch.Tensor]:
        x[0] = super().forward(x[0])
        return x


class Listing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Listed(), Listed()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for block in self.blocks:
            values = block(values)
        return values[0]


def test_what_cannot_run_again_is_refused() -> None:
    """Single layers, one block alone, blocks that are called with lists, and a compiled network."""
    for network in (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), nn.Sequential(Block())):
        with pytest.raises(NotApplicable, match="needs 2 or more blocks"), checkpointed(network, CONFIG):
            pass
    with (
        pytest.raises(NotApplicable, match="blocks that are called with tensors"),
        checkpointed(listing := Listing(), CONFIG),
    ):
        with torch.no_grad():
            listing(torch.zeros(4, 8))
        listing(torch.zeros(4, 8))
    with (
        pytest.raises(NotApplicable, match="use either compile or checkpointing"),
        checkpointed(nn.Sequential(Block(), Block()), CONFIG.replace(compile=True)),
    ):
        pass


def test_a_network_without_blocks_is_a_skipped_cell(mini: tl.Splits) -> None:
    with pytest.raises(NotApplicable, match="this backbone has none"):
        tl.train_model(CONFIG.replace(backbone="timm:dla46_c", checkpointing=True), mini, device="cpu")


def test_a_regime_that_trains_nothing_of_the_backbone_does_not_read_it() -> None:
    """So a grid may set it for all regimes, and their cells keep their ids."""
    for name, regime in REGIMES.items():
        given = CONFIG.replace(regime=name, checkpointing=True)
        assert given.checkpointing is (regime.trainable.backbone is not None)


def test_frozen_blocks_do_not_run_again(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep no activations, so there is nothing to gain; those that train are enough in number here."""
    last = Trainable(head=True, backbone=lambda network: [network.layer3, network.layer4])
    monkeypatch.setitem(REGIMES, "last", Regime(summary="last", start="pretrained", trainable=last))
    config = CONFIG.replace(regime="last")
    whole = train(config, few(mini), monkeypatch)
    again = train(config.replace(checkpointing=True), few(mini), monkeypatch)
    assert again.epochs[-1].val_loss == pytest.approx(whole.epochs[-1].val_loss, rel=1e-6)
    assert whole.work is not None and again.work is not None
    assert again.work.backward_flops > whole.work.backward_flops
    assert again.work.saved_activation_bytes < whole.work.saved_activation_bytes
    assert again.frozen_verified and whole.frozen_verified


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_it_works_with_every_execution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, execution: str) -> None:
    """A tutorial's loop may use it too: it is a property of the network, and no shortcut."""
    images = few(tl.load_splits("synthetic-mini"))
    config = CONFIG.replace(execution=execution)
    whole, again = (
        train(config.replace(checkpointing=given), images, monkeypatch).epochs[-1].train_loss for given in (False, True)
    )
    assert again == pytest.approx(whole, rel=1e-6)
