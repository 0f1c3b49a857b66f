"""Tests of the clock and the exact counters against known values."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import tl
from tests.conftest import TINY
from tests.weights import TRAINING
from tl.backbones import Classifier, make_backbone
from tl.clock import Clock
from tl.freezing import freeze
from tl.regimes import REGIMES
from tl.results import PHASES
from tl.work import StepWork, optimizer_state_bytes, tensor_bytes


def step(model: nn.Module, images: torch.Tensor, classes: int) -> StepWork:
    """Return the work of one step of `model`."""
    work = StepWork()
    with work.forward(model):
        loss = cross_entropy(model(images), torch.zeros(len(images), dtype=torch.int64))
    with work.backward():
        loss.backward()
    return work


def network(spec: str) -> nn.Module:
    made = make_backbone(spec, weights="random")
    return nn.Sequential(made.module, nn.Linear(made.width, 2))


def test_resnet18_takes_what_is_published() -> None:
    """An image of 224 pixels takes 3.63 GFLOP forward and 1.93 times that backward."""
    work = step(network("torchvision:resnet18"), torch.zeros(2, 3, 224, 224), 2)
    assert work.forward_flops / 2 == pytest.approx(3.63e9, rel=0.005)
    assert work.backward_flops / work.forward_flops == pytest.approx(1.93, abs=0.01)


def test_bytes_kept_by_resnet18_by_hand() -> None:
    """They are inputs and outputs of convolutions and outputs of ReLU, each once, and the indices of the pooling.

    A block keeps four maps: outputs of two convolutions and of two ReLUs. A block with downsampling keeps five.
    """
    stem = 3 * 224**2 + 2 * 64 * 112**2 + (1 + 2) * 64 * 56**2  # image, convolution, ReLU; pooled, indices of 8 bytes
    blocks = (4 + 4) * 64 * 56**2 + sum((5 + 4) * c * s**2 for c, s in ((128, 28), (256, 14), (512, 7)))
    work = step(network("torchvision:resnet18"), torch.zeros(8, 3, 224, 224), 2)
    assert work.saved_bytes / 8 == pytest.approx(4 * (stem + blocks), rel=0.005)


@pytest.mark.parametrize(
    ("spec", "forward"),
    [
        ("timm:tf_efficientnet_lite0", 0.77e9),
        ("torchvision:mobilenet_v2", 0.60e9),
        ("timm:mobilenetv3_small_100", 0.11e9),
    ],
)
def test_depthwise_networks_are_not_overstated(spec: str, forward: float) -> None:
    """The backward pass is about twice the forward pass; torch's own counter gives nineteen times and more."""
    work = step(network(spec), torch.zeros(2, 3, 224, 224), 2)
    assert work.forward_flops / 2 == pytest.approx(forward, rel=0.02)
    assert 1.8 < work.backward_flops / work.forward_flops < 2.0


def test_a_transformer_is_counted_whole() -> None:
    """The reference counts patches and 12 layers with four projections, an MLP four times as wide, and attention."""
    tokens, width = 14 * 14 + 1, 192
    layer = 2 * tokens * width * (4 * width + 8 * width) + attention_flops(1, tokens, width)
    expected = 2 * (tokens - 1) * width * 3 * 16 * 16 + 12 * layer + 2 * width * 2
    work = step(network("timm:vit_tiny_patch16_224"), torch.zeros(2, 3, 224, 224), 2)
    assert work.forward_flops == 2 * expected
    assert 1.8 < work.backward_flops / work.forward_flops < 2.2


def attention_flops(images: int, tokens: int, width: int) -> int:
    """Count the two products of attention: queries with keys, and attention weights with values."""
    return 2 * 2 * images * tokens * tokens * width


def test_fused_attention_is_counted_as_the_products_it_fuses() -> None:
    """The reference is the formula by hand; backward has the gradients of two products and recomputes one."""
    query, key, value = (torch.zeros(2, 3, 17, 8, requires_grad=True) for _ in range(3))
    work = StepWork()
    with work.forward(nn.Identity()):
        out = nn.functional.scaled_dot_product_attention(query, key, value)
    with work.backward():
        out.sum().backward()
    assert work.forward_flops == attention_flops(2, 17, 24)
    assert work.backward_flops == 2.5 * work.forward_flops


def test_a_frozen_transformer_does_the_same_forward_work() -> None:
    """torchvision's attention runs other operations without gradients, which must not change the count."""
    made = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=2
    )
    images = torch.randn(3, 3, 32, 32)
    counts = []
    for training in (True, False):
        work = StepWork()
        with work.forward(made), torch.set_grad_enabled(training):
            made.train(training)(images)
        counts.append(work.forward_flops)
    assert counts[0] == counts[1]
    assert counts[0] > 2 * attention_flops(3, 17, 16)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_by_hand(groups: int) -> None:
    """The forward pass and both gradients take 2 · outputs · (channels / groups) · kernel each."""
    model = nn.Conv2d(8, 16, 3, padding=1, groups=groups)
    images = torch.zeros(3, 8, 10, 10, requires_grad=True)
    work = StepWork()
    with work.forward(model):
        out = model(images)
    with work.backward():
        out.sum().backward()
    forward = 2 * 3 * 16 * 10 * 10 * (8 // groups) * 3 * 3
    assert work.forward_flops == forward
    assert work.backward_flops == 2 * forward


def test_bytes_kept_for_the_backward_pass_by_hand() -> None:
    """Two linear layers with ReLU keep the input and ReLU's output, each once, but no weights."""
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    work = StepWork()
    with work.forward(model):
        out = model(torch.zeros(7, 10))
    assert work.saved_bytes == 4 * (7 * 10 + 7 * 20)
    with work.backward():
        out.sum().backward()
    # The first layer's input needs no gradient.
    assert work.forward_flops == 2 * 7 * (10 * 20 + 20 * 5)
    assert work.backward_flops == 2 * 7 * (10 * 20 + 2 * 20 * 5)


def test_a_storage_counts_once() -> None:
    """Views of a tensor, and a tensor that two operations keep, count once."""
    x = torch.zeros(100, requires_grad=True)
    work = StepWork()
    with work.forward(nn.Identity()):
        y = x * 2
        _ = (y[:50].sin() + y[50:].sin()).sum()
    assert work.saved_bytes == 4 * 100


def test_memory_of_parameters_and_optimiser() -> None:
    """SGD with momentum keeps one tensor per parameter."""
    model = nn.Linear(10, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert tensor_bytes(model.parameters()) == 4 * 55 and optimizer_state_bytes(optimizer) == 0
    model(torch.zeros(1, 10)).sum().backward()
    optimizer.step()
    assert optimizer_state_bytes(optimizer) == 4 * 55


@pytest.mark.parametrize(
    "regime", [name for name in TRAINING if REGIMES[name].extractor == "float" and REGIMES[name].adapter == "none"]
)
def test_work_of_each_regime(mini: tl.Splits, regime: str) -> None:
    """The reference adds up layers: a weight's gradient where it trains, an input's where something below trains."""
    config = tl.TrainConfig(backbone=TINY[1], regime=regime, weights="random", epochs=2)
    result = tl.train_model(config, mini, device="cpu")
    work, entry = result.work, REGIMES[regime]
    assert work is not None and work.step_images == 4
    model, trained = reference(regime)
    assert work.gradient_bytes == work.optimizer_state_bytes == 4 * trained == 4 * result.trainable_params
    assert work.parameter_bytes == 4 * result.total_params
    forward, backward = by_layers(model, torch.zeros(4, 3, 160, 160))
    if entry.features == "once":
        forward = 2 * 4 * model.head.in_features * 2
    assert (work.forward_flops, work.backward_flops) == (forward, backward)
    if entry.trainable.backbone:
        assert work.saved_activation_bytes > 100_000
    else:
        assert work.backward_flops == 2 * 4 * model.head.in_features * 2, "the gradient of one weight"
        assert work.saved_activation_bytes < 10_000


def reference(regime: str) -> tuple[Classifier, int]:
    """A fresh network with gradients where the regime's rule asks for them, and how many parameters have some."""
    made = make_backbone(TINY[1], weights="random")
    model, rule = Classifier(made, 2, tl.TrainConfig(backbone=TINY[1])), REGIMES[regime].trainable
    trained = set(model.head.parameters())
    parts = rule.backbone(made.module) if rule.backbone else ()
    for part in next(iter(rule.in_turn(made.module))) if rule.in_turn else parts:  # the first joins in the second epoch
        trained |= {part} if isinstance(part, nn.Parameter) else set(part.parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in trained)
    return model, sum(parameter.numel() for parameter in trained)


def by_layers(model: nn.Module, images: torch.Tensor) -> tuple[int, int]:
    """FLOPs of the forward and the backward pass, from what each convolution and linear layer was given."""
    forward = backward = 0

    def add(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal forward, backward
        flops = 2 * output.numel() * layer.weight[0].numel()
        forward += flops
        backward += flops * (layer.weight.requires_grad + inputs[0].requires_grad)

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    model(images)
    return forward, backward


class Three(nn.Sequential):
    """Three convolutions, each halves the resolution; the last one is depthwise. `(B, 3, 32, 32)` → `(B, 16)`."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for ins, outs, groups in ((3, 8, 1), (8, 16, 1), (16, 16, 16)):
            layers += [nn.Conv2d(ins, outs, 3, stride=2, padding=1, groups=groups), nn.BatchNorm2d(outs), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


FIRST, SECOND, THIRD = 2 * 8 * 16**2 * 3 * 9, 2 * 16 * 8**2 * 8 * 9, 2 * 16 * 4**2 * 9
THREE_HEAD = 2 * 16 * 2
"""FLOPs per image of the forward pass of each convolution of `Three`, and of a head for two classes."""


@pytest.mark.parametrize(
    ("regime", "backward"),
    [
        ("finetune", FIRST + 2 * SECOND + 2 * THIRD + 2 * THREE_HEAD),  # no image has a gradient
        ("last-2", SECOND + 2 * THIRD + 2 * THREE_HEAD),
        ("last-block", THIRD + 2 * THREE_HEAD),
        ("norm-only", SECOND + THIRD + 2 * THREE_HEAD),  # down to the first norm; no convolution's weight trains
        ("bias-only", SECOND + THIRD + 2 * THREE_HEAD),  # a bias's gradient is a sum, without products
        ("frozen", THREE_HEAD),
    ],
)
def test_a_small_network_by_hand(regime: str, backward: int) -> None:
    """The backward pass ends at the lowest parameter that trains, and weights have gradients only where they train."""
    made = replace(make_backbone(TINY[1], weights="random"), module=Three(), width=16)
    freezing = freeze(Classifier(made, 2, tl.TrainConfig(backbone=TINY[1])), REGIMES[regime])
    freezing.train_mode()
    work = step(freezing.model, torch.zeros(5, 3, 32, 32), 2)
    assert work.forward_flops == 5 * (FIRST + SECOND + THIRD + THREE_HEAD)
    assert work.backward_flops == 5 * backward


@pytest.mark.parametrize("regime", ["finetune", "last-block", "last-2", "norm-only", "bias-only"])
def test_a_residual_network_by_torchs_own_counter(regime: str) -> None:
    """ResNet-18 has no grouped convolution, which torch's counter gets wrong; it counts what really runs."""
    made = make_backbone("torchvision:resnet18", weights="random")
    freezing = freeze(Classifier(made, 2, tl.TrainConfig(backbone="torchvision:resnet18")), REGIMES[regime])
    freezing.train_mode()
    images = torch.zeros(2, 3, 64, 64)
    counts = []
    with FlopCounterMode(display=False) as counter:
        loss = freezing.model(images).sum()
        counts.append(counter.get_total_flops())
        loss.backward()
        counts.append(counter.get_total_flops() - counts[0])
    work = step(freezing.model, images, 2)
    assert [work.forward_flops, work.backward_flops] == pytest.approx(counts, rel=0.01)
    assert counts[1] < counts[0] if regime == "last-block" else counts[1] > 0


def test_frozen_stages_keep_nothing_for_the_backward_pass() -> None:
    """Memory for activations is that of the stages that train. Norms need all activations before them."""
    saved = {}
    for regime in ("last-block", "last-2", "last-3", "norm-only", "finetune"):
        made = make_backbone("torchvision:resnet18", weights="random")
        freezing = freeze(Classifier(made, 2, tl.TrainConfig(backbone="torchvision:resnet18")), REGIMES[regime])
        freezing.train_mode()
        saved[regime] = step(freezing.model, torch.zeros(2, 3, 224, 224), 2).saved_bytes
    image = 4 * 512 * 7**2
    # Its input, what both convolutions and ReLUs of both blocks give, and a first shortcut; the head's input.
    assert saved["last-block"] == pytest.approx(2 * (4 * 256 * 14**2 + 9 * image + 4 * 512), rel=0.01)
    assert saved["last-block"] < 0.2 * saved["last-3"] < 0.2 * saved["finetune"]
    assert saved["norm-only"] > 0.7 * saved["finetune"]


def test_counting_changes_no_number(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are the same with and without counting."""
    config = tl.TrainConfig(backbone=TINY[0], regime="finetune", weights="random", epochs=2)
    counted = tl.train_model(config, mini, device="cpu")
    from contextlib import nullcontext

    monkeypatch.setattr(StepWork, "forward", lambda self, model: nullcontext())
    monkeypatch.setattr(StepWork, "backward", lambda self: nullcontext())
    plain = tl.train_model(config, mini, device="cpu")
    assert [e.train_loss for e in counted.epochs] == [e.train_loss for e in plain.epochs]


@pytest.mark.alone
def test_phases_are_the_epoch(mini: tl.Splits) -> None:
    """Phases add up to the epoch within 2%, and each has a plausible share."""
    config = tl.TrainConfig(backbone=TINY[0], regime="finetune", weights="random", epochs=3)
    result = tl.train_model(config, mini, device="cpu")
    for row in result.epochs:
        assert row.phases is not None
        parts = row.phases.model_dump()
        assert sum(parts.values()) == pytest.approx(row.train_seconds + row.val_seconds, rel=0.02)
        assert all(value >= 0 for value in parts.values())
        assert parts["validation"] == pytest.approx(row.val_seconds, rel=0.02, abs=1e-3)
        assert parts["backward"] > parts["optimizer"]
        assert parts["other"] < 0.05 * sum(parts.values())
        assert tuple(parts) == PHASES


@pytest.mark.alone
def test_the_clock_puts_time_where_it_was_spent() -> None:
    """Sleeps of known length are the reference; time of no phase is only in the total."""
    clock = Clock(torch.device("cpu"))
    clock.start()
    for _ in range(3):
        time.sleep(0.02)
        clock.mark("data")
        time.sleep(0.01)
        clock.mark(None)
        time.sleep(0.03)
        clock.mark("forward")
    whole, parts = clock.read()
    assert {*parts, "other"} == set(PHASES)
    assert parts["data"] == pytest.approx(0.06, abs=0.01)
    assert parts["forward"] == pytest.approx(0.09, abs=0.01)
    assert whole - sum(parts.values()) == pytest.approx(0.03, abs=0.01)
    clock.start()
    assert sum(clock.read()[1].values()) == 0, "each epoch begins at 0"


@pytest.mark.alone
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_the_clock_on_cuda_measures_the_device() -> None:
    """The time of a matrix product is in its phase, though the host doesn't wait for it."""
    device = torch.device("cuda")
    matrix = torch.randn(8192, 8192, device=device)
    matrix @ matrix
    clock = Clock(device)
    clock.start()
    clock.mark("data")
    for _ in range(10):
        matrix @ matrix
    clock.mark("forward")
    whole, parts = clock.read()
    assert parts["forward"] > 0.8 * whole
    assert sum(parts.values()) == pytest.approx(whole, rel=0.02)
