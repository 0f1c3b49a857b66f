"""Frozen backbones as networks for inference, and on several batches at once: the same numbers up to rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.store.records import Cell
from tests.conftest import TINY
from tests.weights import FITTED
from tl import inference
from tl.backbones import make_backbone
from tl.config import EXECUTIONS, TrainConfig
from tl.datasets import Splits
from tl.devices import LAYOUTS, seeded
from tl.errors import ConfigError
from tl.features import images_at_once
from tl.freezing import digest
from tl.inference import inference_network
from tl.lookahead import batches_ahead
from tl.precision import autocast
from tl.regimes import REGIMES
from tl.step import WARM_UP, Replayed
from tl.train import train_model

CPU = torch.device("cpu")
FAMILIES = (
    *TINY,
    "timm:test_efficientnet",  # BatchNorm with its activation inside; depthwise convolutions
    "timm:test_convnext",  # convolutions without BatchNorm
    "timm:test_vit",  # a single convolution
    "timm:test_byobnet",
    "timm:test_nfnet",  # convolutions that standardise their weights
    "timm:densenetblur121d",  # BatchNorm before convolutions
    "torchvision:mobilenet_v3_small",
)
HAS_NORMS = {"torchvision:shufflenet_v2_x0_5", "timm:test_resnet", "timm:test_efficientnet", "timm:test_byobnet"}


def randomise(network: nn.Module) -> nn.Module:
    """Give BatchNorm statistics and parameters of a trained network, so that each matters, and freeze the network."""
    with seeded(1), torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                assert module.running_var is not None
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return network.eval().requires_grad_(False)


def images(count: int, side: int, layout: str = "channels_last", seed: int = 0) -> torch.Tensor:
    made = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=LAYOUTS[layout])


def close(found: torch.Tensor, expected: torch.Tensor, most: float) -> bool:
    return float((found - expected).norm() / expected.norm()) < most


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spec", FAMILIES)
def test_features_are_the_same_up_to_rounding(spec: str, layout: str) -> None:
    """For batches of any size, and the original keeps all its tensors."""
    backbone = make_backbone(spec, weights="random")
    network = randomise(backbone.module).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    names = {name for name, _ in [*network.named_parameters(), *network.named_buffers()]}
    before, side = digest(network, names), backbone.preprocessing.size
    made = inference_network(network, images(2, side, layout), "fp32", batch_size=3)
    assert made.failure == ""
    assert (made.folded > 0) or spec not in HAS_NORMS
    assert made.packed > 0
    with torch.no_grad():
        for count in (1, 3, 5):
            batch = images(count, side, layout, seed=count)
            assert close(made.network(batch), network(batch), 1e-5)
    assert digest(network, names) == before


@pytest.mark.parametrize("spec", TINY)
def test_bf16_is_as_close_as_autocast(spec: str) -> None:
    """Weights that were converted once give what autocast gives, which converts them in every pass."""
    backbone = make_backbone(spec, weights="random")
    network, batch = randomise(backbone.module), images(3, backbone.preprocessing.size)
    made = inference_network(network, batch, "bf16", batch_size=3)
    assert made.failure == ""
    with torch.no_grad():
        exact = network(batch)
        with autocast("bf16", CPU):
            usual, found = network(batch).float(), made.network(batch).float()
    assert not torch.equal(found, exact)
    assert (found - exact).norm() < 1.5 * (usual - exact).norm()


class Residual(nn.Module):
    """A residual block that adds in place, as in timm: the activation gets the tensor that BatchNorm returned."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.convolution(x))
        y += x
        return self.act(y).flatten(1)  # type: ignore[no-any-return]


def test_what_comes_after_a_residual_is_no_part_of_the_convolution() -> None:
    network = randomise(Residual())
    made = inference_network(network, images(2, 8), "fp32", batch_size=2)
    assert (made.folded, made.packed, made.failure) == (1, 1, "")
    assert isinstance(made.network.get_submodule("act"), nn.ReLU)


class Reused(nn.Module):
    """Something is used twice; `what` says what."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.other, self.act = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.what == "convolution":
            x = self.act(self.norm(self.second(x))) + self.other(self.second(2 * x))
        elif self.what == "norm":
            x = self.act(self.norm(self.norm(self.second(x)))) + self.other(x)
        elif self.what == "activation":
            x = self.act(self.norm(self.second(self.act(x)))) + self.other(x)
        else:  # the output of a convolution
            y = self.second(x)
            x = self.act(self.norm(y)) + self.other(x) + y
        return x.mean((2, 3))


@pytest.mark.parametrize("what", ["convolution", "norm", "activation"])
def test_modules_that_run_twice_stay(what: str) -> None:
    """They can't be folded into the convolution of one of their calls."""
    network = randomise(Reused(what))
    made = inference_network(network, images(2, 8), "fp32", batch_size=2)
    assert made.failure == ""
    assert made.folded == {"convolution": 0, "norm": 0, "activation": 1}[what]
    with torch.no_grad():
        assert close(made.network(images(2, 8, seed=5)), network(images(2, 8, seed=5)), 1e-5)


def test_a_network_that_would_change_stays_as_it_is() -> None:
    """A convolution's output goes elsewhere too, past its BatchNorm layer: only the comparison of features sees it."""
    network = randomise(Reused("output"))
    made = inference_network(network, images(2, 8), "fp32", batch_size=2)
    assert made.network is network
    assert "features would differ by" in made.failure


def test_a_lost_activation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that didn't apply it would be off by far more than rounding, in bf16 too."""
    monkeypatch.setitem(inference._ACTIVATIONS, nn.ReLU, ("none", []))
    network = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()))
    assert inference._can_pack("fp32")
    for precision in filter(inference._can_pack, ("fp32", "bf16")):  # where kernels are called at all
        assert inference_network(network, images(2, 8), precision, batch_size=2).failure


class Twice(nn.Module):
    """BatchNorm runs twice, so it stays between a convolution and its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.act = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.act(self.norm(self.convolution(x))) + self.norm(x)[:, :, 1:-1, 1:-1]).flatten(1)


def test_an_activation_after_a_norm_that_stays_is_no_part_of_the_convolution() -> None:
    network = randomise(Twice())
    made = inference_network(network, images(2, 8), "fp32", batch_size=2)
    assert (made.folded, made.packed, made.failure) == (0, 1, "")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_structure_is_seen_in_exact_arithmetic(precision: str) -> None:
    """Whatever surrounds the call, and whatever the network will run in: rounding hides no mistake and makes none."""
    wrong, right = randomise(Reused("output")), randomise(Reused("activation"))
    for around in (torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode()):
        with around:
            assert inference_network(wrong, images(2, 8), precision, batch_size=2).failure
            assert inference_network(right, images(2, 8), precision, batch_size=2).folded == 1


def test_nothing_to_fold_is_no_failure() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5)).eval()
    made = inference_network(network, images(2, 8), "fp32", batch_size=2)
    assert (made.network, made.folded, made.packed, made.failure) == (network, 0, 0, "")


@pytest.mark.parametrize(
    ("precision", "lacks"), [("fp32", "torch's oneDNN"), ("bf16", "torch's oneDNN"), ("bf16", "instructions")]
)
def test_without_kernels_networks_are_folded_alone(precision: str, lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of bfloat16 need instructions that many processors lack."""
    if lacks == "instructions":
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    else:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network, batch = randomise(Reused("activation")), images(2, 8)
    made = inference_network(network, batch, precision, batch_size=2)
    assert (made.folded, made.packed, made.failure) == (1, 0, "")
    with torch.no_grad(), autocast(precision, batch.device):
        assert close(made.network(batch).float(), network(batch).float(), 0.02)
    kept = inference_network(network, batch, "fp32", batch_size=2)
    assert (kept.packed > 0) is (lacks == "instructions")


def config(spec: str = TINY[1], **settings: Any) -> TrainConfig:
    return TrainConfig(**{"backbone": spec, "weights": "random", "epochs": 2, "regime": "frozen", **settings})


@pytest.mark.parametrize(
    "settings", [{"fold": True}, {"lookahead": 3}, {"lookahead": "auto"}, {"fold": True, "lookahead": 2}], ids=str
)
@pytest.mark.parametrize("spec", TINY)
def test_losses_of_two_epochs_are_the_same(mini: Splits, spec: str, settings: dict[str, Any]) -> None:
    """Same batches in the same order, same steps, same predictions, same counted work, and the proof of frozenness."""
    usual = train_model(config(spec, batch_size=5), mini)
    found = train_model(config(spec, batch_size=5, **settings), mini)
    for one, other in zip(usual.epochs, found.epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=2e-6)
        assert one.val_loss == pytest.approx(other.val_loss, rel=2e-6)
        assert (one.train_accuracy, one.val_accuracy) == (other.train_accuracy, other.val_accuracy)
    assert found.last.labels == usual.last.labels
    assert found.work == usual.work
    assert found.frozen_verified
    assert (found.folded_layers is not None) is ("fold" in settings)
    if settings.get("lookahead") != "auto":  # which may be 1 for a tiny network
        assert found.lookahead == settings.get("lookahead")
    assert (usual.folded_layers, usual.packed_layers, usual.lookahead) == (None, None, None)


def test_one_batch_ahead_restores_the_usual_way_bit_for_bit(mini: Splits) -> None:
    usual, found = train_model(config(), mini), train_model(config(lookahead=1, fold=False), mini)
    assert [row.train_loss for row in usual.epochs] == [row.train_loss for row in found.epochs]


def test_a_model_that_was_trained_ahead_predicts_by_itself(mini: Splits) -> None:
    """Its weights are those of the original network, so it takes images."""
    result = train_model(config(fold=True, lookahead=2), mini)
    usual = train_model(config(), mini)
    batch = images(2, 160)
    with torch.no_grad():
        assert close(result.model.cpu()(batch), usual.model.cpu()(batch), 1e-4)


def test_zeroshot_and_extraction_read_the_settings() -> None:
    """By default only what is extracted once is folded, so that an epoch of `frozen` stays the plain work."""
    folded = {name: config(regime=name, learning_rate=1e-3).runs_folded for name in REGIMES}
    assert {name for name, yes in folded.items() if yes} == {"cached", *FITTED}
    assert {name for name in REGIMES if config(regime=name, fold=True).runs_folded} == {
        *("frozen", "cached", "zeroshot", *FITTED)
    }
    assert {name for name in REGIMES if config(regime=name, lookahead=2).lookahead == 2} == {
        *("frozen", "quantized", "zeroshot")
    }


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_where_they_are_not_read_they_are_no_part_of_a_cell(regime: str, execution: str) -> None:
    """So cells of other regimes, and of the tutorial's loop, are the same with them."""
    plain = config(regime=regime, execution=execution)
    given = config(regime=regime, execution=execution, fold=True, lookahead=4)
    read = REGIMES[regime].fixed_features and execution == "fast"
    assert (plain == given) is not read

    def made(which: TrainConfig) -> str:
        return Cell(config=which, weights_digest="", dataset_digest="0", device="cpu").id

    runs = [(each.runs_folded, each.lookahead) for each in (plain, given)]
    assert (made(plain) == made(given)) is (runs[0] == runs[1])
    assert made(plain) == made(plain.replace(fold=None, lookahead=1))


@pytest.mark.parametrize("value", [0, -1, 1.5, "many"])
def test_other_numbers_of_batches_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="lookahead"):
        config(lookahead=value)


def test_cached_features_are_those_of_the_network_as_it_is(
    mini: Splits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    folded, usual = (train_model(config(regime="cached", fold=fold), mini) for fold in (None, False))
    assert folded.folded_layers and usual.folded_layers is None
    half = train_model(config(regime="cached", precision="bf16"), mini)
    assert half.folded_layers == folded.folded_layers
    again = train_model(config(regime="cached", learning_rate=0.01), mini)
    assert again.features_reused and again.folded_layers is None  # nothing was folded for nothing
    for one, other in zip(folded.epochs, usual.epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=2e-6)


def test_the_number_of_batches_is_bounded_by_images_and_by_memory() -> None:
    """A deep network keeps many outputs for its backward pass, a shallow one as few as a forward pass has alive."""

    def layers(count: int) -> nn.Module:
        return nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(count)))

    batch = images(1, 8)
    assert batches_ahead(layers(100), batch, 4) == images_at_once(CPU) // 4
    assert batches_ahead(layers(9), batch, 4) == 2
    assert batches_ahead(layers(1), batch, 4) == 1
    assert batches_ahead(layers(100), batch, 64) == 1


def test_nothing_is_left_hooked() -> None:
    """Modules of other networks run as ever, and a copy of the network is independent."""
    network = randomise(Reused("activation"))
    made = inference_network(network, images(2, 8), "fp32", batch_size=2)
    from torch.nn.modules import module

    assert not module._global_forward_hooks
    assert copy.deepcopy(network).state_dict().keys() == network.state_dict().keys()
    assert made.network.training is False


class _Replay:
    """Stands for a CUDA graph: replaying it runs the same operations on the same tensors."""

    def __init__(self, part: Callable[[], object]) -> None:
        self.replay = part


class _Graphs:
    usable = True

    def record(self, part: Callable[[], object]) -> _Replay:
        part()
        return _Replay(part)

    @contextmanager
    def or_plain(self) -> Iterator[None]:
        yield


def test_a_graph_that_was_captured_in_validation_replays_in_training() -> None:
    """Tensors of a validation pass are of inference mode, and nothing outside of it may change such tensors."""
    replayed = Replayed(lambda inputs: 2 * inputs, _Graphs())  # type: ignore[arg-type]
    with torch.inference_mode():
        for _ in range(WARM_UP + 1):
            replayed(torch.ones(2, 3))
    assert replayed._captured
    features = replayed(torch.ones(2, 3))
    nn.functional.linear(features, torch.ones(1, 3, requires_grad=True)).sum().backward()
