"""Tests of low-rank updates: regime `lora` and `tl.lora`, against products by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import tl
from bench.analysis.claims import CLAIMS
from bench.analysis.prediction import epoch_flops
from bench.analysis.verdicts import claims_of
from bench.devtools.made_up import record
from bench.store.records import Cell
from tests.conftest import TINY
from tests.runs import write_run
from tests.test_trainable import stirred
from tests.test_work import attention_flops
from tl import lora
from tl import train as train_module
from tl.adapters import ADAPTERS
from tl.backbones import make_backbone
from tl.blocks import blocks
from tl.freezing import Freezing, freeze
from tl.lora import ALPHA, LowRank
from tl.regimes import HEAD, Regime
from tl.step import TrainStep
from tl.work import StepWork

VIT = "timm:vit_tiny_patch16_224"
TOKENS, WIDTH, LAYERS = 14 * 14 + 1, 192, 12
LINEAR = ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH))
"""Inputs and outputs of the four linear layers of a ViT-Tiny's block: qkv, proj, fc1 and fc2."""


def config(backbone: str = TINY[0], **settings: Any) -> tl.TrainConfig:
    given = {"regime": "lora", "weights": "pretrained", "epochs": 2, "learning_rate": 0.1, **settings}
    return tl.TrainConfig(backbone=backbone, **given)


def train(splits: tl.Splits, given: tl.TrainConfig, **settings: Any) -> tl.TrainResult:
    return tl.train_model(given, splits, device="cpu", weights_dir=stirred(), **settings)


def updates(network: nn.Module) -> dict[str, LowRank]:
    return {name: module for name, module in network.named_modules() if isinstance(module, LowRank)}


@pytest.mark.parametrize("backbone", [*TINY, VIT])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_it_begins_exactly_as_the_frozen_network(backbone: str, mode: str) -> None:
    """B is zero, so outputs are equal bit for bit; with another B they differ, and merging gives the same function."""
    network = make_backbone(backbone, weights="random").module.eval()
    names, images = list(network.state_dict()), torch.randn(2, 3, 224, 224)
    lora.insert(network, config(backbone), images[:1])
    adapted = updates(network)
    plain = make_backbone(backbone, weights="random").module.train(mode == "train")
    network.train(mode == "train")
    with torch.no_grad():
        torch.manual_seed(0)
        before = plain(images)
        torch.manual_seed(0)
        assert adapted and torch.equal(network(images), before)
        network.eval()
        before = network(images)
        for update in adapted.values():
            nn.init.normal_(update.up.weight, std=0.02)
        moved = network(images)
        lora.merge(network)
        assert not torch.allclose(moved, before, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(network(images), moved, rtol=1e-3, atol=1e-5)
    assert list(network.state_dict()) == names and not updates(network)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 10), nn.Conv2d(6, 10, 1, stride=2), nn.Conv2d(6, 10, 1, bias=False)],
    ids=["linear", "strided convolution", "convolution"],
)
def test_an_update_is_its_formula(layer: Any) -> None:
    """The output is that of the weight W + (8 / rank) B A."""
    inputs = torch.randn(4, 6) if isinstance(layer, nn.Linear) else torch.randn(4, 6, 5, 5)
    network = nn.Sequential(layer)
    lora.insert(network, config(lora_rank=3), inputs)
    (update,) = updates(network).values()
    nn.init.normal_(update.up.weight)
    down, up = (part.weight.flatten(1) for part in (update.down, update.up))
    assert (down.shape, up.shape) == ((3, 6), (10, 3))
    weight = layer.weight + (ALPHA / 3 * up @ down).view_as(layer.weight)
    if isinstance(layer, nn.Linear):
        expected = nn.functional.linear(inputs, weight, layer.bias)
    else:
        expected = nn.functional.conv2d(inputs, weight, layer.bias, stride=layer.stride)
    torch.testing.assert_close(network(inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", TINY)
def test_the_base_stays_frozen_and_the_updates_are_merged(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    """At the end of training every tensor of the base is as it was loaded, bit for bit; then each update joins its
    weight. Only updates and head have gradients and optimiser state, and nothing of the backbone is in train mode."""
    base = make_backbone(backbone, weights="pretrained", weights_dir=stirred()).module.state_dict()
    at_end: list[dict[str, torch.Tensor]] = []
    modes: list[set[str]] = []
    merge, run = lora.merge, TrainStep.run

    def seen(network: nn.Module) -> None:
        at_end.append({name: value.clone() for name, value in network.state_dict().items()})
        merge(network)

    def recorded(self: TrainStep, *arguments: Any) -> None:
        modes.append({name for name, part in self._model.named_modules() if part.training and "low_rank" not in name})
        run(self, *arguments)

    monkeypatch.setitem(ADAPTERS, "lora", replace(ADAPTERS["lora"], merge=seen))
    monkeypatch.setattr(TrainStep, "run", recorded)
    result = train(mini, config(backbone), keep="last")
    (adapted,) = at_end
    for name, value in base.items():
        assert torch.equal(adapted[name], value), name
    assert result.frozen_verified is True
    assert modes and all(one == {"head"} for one in modes)
    layers = {name.partition(".low_rank.")[0] for name in adapted if ".low_rank." in name}
    for name, value in result.model.backbone.state_dict().items():
        layer = name.removesuffix(".weight")
        expected = base[name]
        if layer in layers and name.endswith(".weight"):
            down, up = (adapted[f"{layer}.low_rank.{part}.weight"].flatten(1) for part in ("down", "up"))
            assert up.count_nonzero()
            expected = expected + (up @ down).view_as(expected)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    size = sum(value.numel() for name, value in adapted.items() if ".low_rank." in name)
    size += sum(p.numel() for p in result.model.head.parameters())
    assert result.trainable_params == size < result.total_params
    assert result.work.gradient_bytes == result.work.optimizer_state_bytes == 4 * size


def test_a_base_that_moves_is_reported(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug trains one weight of the base."""

    def plant(model: Any, entry: Regime) -> Freezing:
        found = freeze(model, entry)
        first = next(p for name, p in model.backbone.named_parameters() if "low_rank" not in name)
        return replace(found, parameters=(*found.parameters, first.requires_grad_(True)))

    monkeypatch.setattr("tl.prepare.freeze", plant)
    assert train(mini, config()).frozen_verified is False


def test_the_best_epochs_updates_come_back(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """If accuracy only falls, the merged network is that after one epoch."""
    original, accuracies = train_module.val_pass, iter([0.9, 0.6, 0.9])
    monkeypatch.setattr(
        train_module, "val_pass", lambda *arguments: replace(original(*arguments), score=lambda: next(accuracies))
    )
    longer, short = (train(mini, config(epochs=epochs, schedule="constant")) for epochs in (2, 1))
    assert longer.best.epoch == 0
    for name, value in short.model.state_dict().items():
        assert torch.equal(longer.model.state_dict()[name], value), name


def test_the_work_of_a_transformer_by_hand(mini: tl.Splits) -> None:
    """Forward: the network and two thin products per layer. Backward: the gradient of each layer's input, but of the
    first, which has nothing below that trains; the gradients of A, B and their inputs; that of attention; the head."""
    rank, images = 8, 4
    given = config(VIT, weights="random", epochs=1, batch_size=images, lora_rank=rank)
    result = tl.train_model(given, mini, device="cpu")
    work = result.work
    dense = sum(2 * TOKENS * inputs * outputs for inputs, outputs in LINEAR)
    thin = sum(2 * TOKENS * rank * (inputs + outputs) for inputs, outputs in LINEAR)
    attention = attention_flops(1, TOKENS, WIDTH)
    patches, head = 2 * (TOKENS - 1) * WIDTH * 3 * 16 * 16, 2 * WIDTH * 2
    forward = patches + LAYERS * (dense + thin + attention) + head
    first = 2 * TOKENS * WIDTH * 3 * WIDTH + 2 * TOKENS * rank * WIDTH
    backward = LAYERS * (dense + 2 * thin + 2.5 * attention) - first + 2 * head
    assert work.forward_flops == pytest.approx(images * forward, rel=0.01)
    assert work.backward_flops == pytest.approx(images * backward, rel=0.01)
    assert epoch_flops(work, 10, 5) == pytest.approx(10 * (forward + backward) + 5 * forward, rel=0.01)
    numbers = LAYERS * sum(rank * (inputs + outputs) for inputs, outputs in LINEAR)
    assert result.trainable_params == numbers + 2 * WIDTH + 2
    whole = tl.train_model(given.replace(regime="finetune"), mini, device="cpu").work
    parts = ("parameter_bytes", "gradient_bytes", "optimizer_state_bytes", "saved_activation_bytes")
    assert sum(getattr(work, part) for part in parts) < 0.85 * sum(getattr(whole, part) for part in parts)
    assert work.backward_flops < 0.65 * whole.backward_flops


@pytest.mark.parametrize("groups", [1, 6])
def test_the_work_of_a_convolution_by_hand(groups: int) -> None:
    """Only the 1x1 convolution without groups gets an update; its input's gradient isn't needed here."""
    network = nn.Sequential(nn.Conv2d(6, 12, 1, groups=groups, bias=False), nn.Conv2d(12, 24, 1, bias=False))
    network.requires_grad_(False)
    images = torch.randn(3, 6, 5, 5)
    lora.insert(network, config(lora_rank=2), images)
    work = StepWork()
    with work.forward(network):
        out = network(images)
    with work.backward():
        out.sum().backward()
    pixels = 3 * 5 * 5
    first, second = 2 * pixels * 6 * 12 // groups, 2 * pixels * 12 * 24
    thin = [2 * pixels * 2 * (6 + 12) * (groups == 1), 2 * pixels * 2 * (12 + 24)]
    assert work.forward_flops == first + second + sum(thin)
    below = second + 2 * pixels * 2 * 12 if groups == 1 else 0  # gradients that the first layer's update needs
    half = 2 * pixels * 2 * 24  # of B's input
    assert work.backward_flops == below + thin[1] + half + (thin[0] + 2 * pixels * 2 * 12) * (groups == 1)


class Standardised(nn.Conv2d):
    """Transforms its weight first, so that adding a product to the weight would be another function."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(inputs, self.weight - self.weight.mean(), self.bias)


class Shared(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.other(self.one(inputs))


class ByKeyword(nn.Module):
    """Calls a layer by keyword, so a hook sees no inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(input=inputs)


class Attention(nn.Module):
    """torch's attention, which reads the weight of its output layer without a call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 9)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.inner(inputs, inputs, inputs, need_weights=False)[0])


@pytest.mark.parametrize(
    ("network", "inputs", "fitting"),
    [
        (lambda: nn.Sequential(Standardised(6, 6, 1)), torch.randn(1, 6, 4, 4), []),
        (Shared, torch.randn(1, 8), []),
        (Attention, torch.randn(1, 5, 8), ["last"]),
        (lambda: nn.Sequential(nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 1, groups=4)), torch.randn(1, 6, 9, 9), []),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), torch.randn(1, 8), ["0", "1"]),
        (lambda: nn.Sequential(nn.Linear(8, 1), nn.Linear(1, 1)), torch.randn(1, 8), []),
        (lambda: nn.Sequential(spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 8)), torch.randn(1, 8), ["1"]),
        (lambda: nn.Sequential(weight_norm(nn.Conv2d(6, 8, 1)), nn.Conv2d(8, 8, 1)), torch.randn(1, 6, 4, 4), ["1"]),
        (lambda: nn.Sequential(ByKeyword(), nn.Linear(8, 8)), torch.randn(1, 8), ["1"]),
    ],
    ids=[
        *("standardised", "shared", "attention", "no 1x1", "linear", "too small"),
        *("spectral norm", "weight norm", "by keyword"),
    ],
)
def test_which_layers_fit(network: Any, inputs: torch.Tensor, fitting: list[str]) -> None:
    """Layers whose update couldn't be merged, or wouldn't be smaller, get none; without any the cell is skipped."""
    made = network().eval()
    if not fitting:
        with pytest.raises(tl.NotApplicable):
            lora.insert(made, config(lora_rank=1), inputs)
        assert not updates(made) and not any(module._forward_hooks for module in made.modules())
        return
    lora.insert(made, config(lora_rank=1), inputs)
    assert [name.removesuffix(".low_rank") for name in updates(made)] == fitting


def test_a_backbone_without_such_layers_is_skipped(mini: tl.Splits) -> None:
    """The reason says what is missing, or that the rank is too large for the layers that there are."""
    no_layer = "^low-rank updates need linear layers or 1x1 convolutions that use their weight as it is, and this "
    with pytest.raises(tl.NotApplicable, match=no_layer):
        tl.train_model(config("timm:nf_resnet26", weights="random"), mini, device="cpu")
    with pytest.raises(tl.NotApplicable, match=r"^lora_rank=4096: the update of no layer of this backbone would be"):
        train(mini, config(lora_rank=4096))
    with pytest.raises(tl.ConfigError, match="lora_rank"):
        config(lora_rank=0)


@pytest.mark.parametrize("backbone", ["torchvision:vit_b_32", "torchvision:convnext_tiny", *TINY, "timm:test_vit"])
def test_blocks_are_those_of_the_network_itself(backbone: str) -> None:
    """A linear layer with an update in it is still a single layer, and runs again only with its block."""
    network = make_backbone(backbone, weights="random").module.eval()
    names = {module: name for name, module in network.named_modules()}
    before = [names[block] for block in blocks(network)]
    lora.insert(network, config(backbone), torch.randn(1, 3, 224, 224))
    assert updates(network) and before == [names[block] for block in blocks(network)]


def test_updates_that_are_most_of_a_network_are_told(mini: tl.Splits) -> None:
    """A note says so; with a lower rank there is none."""
    given = {"backbone": "timm:test_vit", "weights": "random", "epochs": 1}
    notes = {rank: [str(note) for note in train(mini, config(**given, lora_rank=rank)).notes] for rank in (1, 32)}
    (said,) = [note for note in notes[32] if "low-rank" in note]
    assert said.startswith("low-rank updates of rank 32 and the head have ") and "a lower `lora_rank` has fewer" in said
    assert not any("low-rank" in note for note in notes[1])


def test_the_rank_is_read_by_this_regime_alone() -> None:
    """Elsewhere it is the default, and the default is no part of a cell's id."""
    other = config(regime="finetune", lora_rank=4)
    assert other.lora_rank == 8 and config(lora_rank=4).lora_rank == 4
    ids = [_cell(lora_rank=rank).id for rank in (8, 4)]
    assert ids[0] == _cell().id != ids[1]


def _cell(**settings: Any) -> Cell:
    return Cell(config=config(**settings), weights_digest="d" * 64, dataset_digest="0" * 64, device="cpu")


def test_the_seed_decides_the_initial_updates() -> None:
    """A regime whose rule trains nothing can't have an adapter."""
    first, again, other = (_initial(config(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(tl.ConfigError, match="adapter='lora': `trainable` must name what the adapter adds"):
        Regime(summary="x", start="pretrained", trainable=HEAD, adapter="lora")


def _initial(given: tl.TrainConfig) -> torch.Tensor:
    network = nn.Sequential(nn.Linear(32, 32))
    lora.insert(network, given, torch.randn(1, 32))
    (update,) = updates(network).values()
    return update.down.weight.detach()


def test_a_merged_model_is_saved_and_loaded(mini: tl.Splits, tmp_path: Path) -> None:
    """Its library alone rebuilds it, with its own names; outputs are the same bit for bit."""
    result = train(mini, config())
    loaded = tl.load_model(tl.save_model(result, mini, tmp_path / "model"))
    images = torch.randn(2, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(loaded(images), result.model(images))
    assert (
        loaded.network.backbone.state_dict().keys()
        == make_backbone(TINY[0], weights="random").module.state_dict().keys()
    )


def test_the_claim_is_about_memory(tmp_path: Path) -> None:
    """A run without the regime doesn't list it; one with it does."""
    claim = CLAIMS["lora-memory"]
    assert (claim.regime, claim.against, claim.metric) == ("lora", "finetune", "peak_memory_bytes")
    for regimes, listed in ((("finetune", "frozen"), False), (("finetune", "lora"), True)):
        records = [record("timm:a", regime) for regime in regimes]
        manifest = write_run(tmp_path / "-".join(regimes), records).manifest()
        assert (claim in claims_of(manifest)) is listed
