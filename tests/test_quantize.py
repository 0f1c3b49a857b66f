"""Tests of int8 backbones: close to float ones, really integers, and refused with a reason if not possible."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tl
from tests.conftest import TINY
from tl.backbones import make_backbone
from tl.errors import NotApplicable
from tl.quantize import quantized, quantized_weights
from tl.work import StepWork

CPU = torch.device("cpu")
NETWORKS = (*TINY, "timm:tf_efficientnet_lite0", "timm:vit_tiny_patch16_224")
"""Networks of both sources, with input-dependent padding, joint BatchNorm and activation, and attention."""


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a backbone in eval mode and six images of its size."""
    made = make_backbone(name, weights="random")
    torch.manual_seed(0)
    images = torch.randn(6, 3, made.preprocessing.size, made.preprocessing.size)
    module = made.module.eval().to(memory_format=torch.channels_last)
    return module, images.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_near_those_in_single_precision(name: str) -> None:
    """Features are reproducible for batches of any size, and the original network stays unchanged.

    They are bit-identical only for the same batch: processors have other kernels for other sizes, which may round
    differently. For a single image an Intel processor with AMX gave EfficientNet-Lite0's features a few steps of their
    scale apart, a difference as small as that to single precision.
    """
    module, images = network(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with torch.no_grad():
        expected = module(images)
        made = quantized(module, [images[:4], images[4:]], CPU)
        got = made(images)
        assert got.dtype == torch.float32 and got.shape == expected.shape
        assert nn.functional.cosine_similarity(got.double(), expected.double()).min() > 0.98
        assert not torch.equal(got, expected)
        assert torch.equal(made(images), got)
        for size in (1, 4):
            assert nn.functional.cosine_similarity(made(images[:size]).double(), got[:size].double()).min() > 0.999
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    layers = sum(isinstance(part, nn.Conv2d | nn.Linear) for part in module.modules())
    weights = [weight for _, weight in quantized_weights(made)]
    assert all(weight.dtype == torch.qint8 for weight in weights) and len(weights) >= 0.9 * layers
    assert not any(isinstance(part, nn.BatchNorm2d) for part in made.modules()), "BatchNorm folds into convolutions"


@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite0", "torchvision:resnet18"])
def test_the_work_is_that_of_the_float_network(name: str) -> None:
    """Integer operations count like floats; kernels that are padded with zeros count a little more."""
    module, images = network(name)
    made, counts = quantized(module, [images], CPU), []
    for each in (module, made):
        work = StepWork()
        with torch.no_grad(), work.forward(each):
            each(images)
        counts.append(work.forward_flops)
    assert counts[0] <= counts[1] < 1.1 * counts[0]


class Looks(nn.Module):
    """Decides by its values what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.layer(images).mean((2, 3))
        return features if features.sum() > 0 else -features


@pytest.mark.parametrize(
    ("module", "device", "reason"),
    [
        (Looks(), "cpu", "can't be quantised: symbolically traced variables cannot be used"),
        (nn.AvgPool2d(8), "cpu", "no layer of this network has int8 kernels"),
        (nn.Conv2d(3, 4, 3), "cuda", "int8 kernels exist only on a CPU"),
    ],
    ids=["decides by values", "no weights", "a GPU"],
)
def test_what_cannot_be_quantised_says_why_in_one_line(module: nn.Module, device: str, reason: str) -> None:
    """The cell is skipped with that reason."""
    with pytest.raises(NotApplicable) as error:
        quantized(module.eval(), [torch.randn(2, 3, 8, 8)], torch.device(device))
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_relu6_takes_no_steps_from_the_convolution_before() -> None:
    """In this network nine tenths of a convolution's outputs are above 6. If the range were measured before ReLU6,
    few steps would be left for the remaining values."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 1)).eval()
    with torch.no_grad():
        module[0].weight.mul_(100)
        images = torch.randn(4, 3, 16, 16)
        integers = quantized(module, [images], CPU)
        # With the rounded weights in the float network, only the steps of activations are left to differ.
        rounded = [value.dequantize() for _, value in quantized_weights(integers)]
        module[0].weight.copy_(rounded[0])
        module[2].weight.copy_(rounded[1])
        expected, got = module(images), integers(images)
    assert (got - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_parts_of_different_ranges_are_joined_as_floats() -> None:
    """As integers, the larger part would be cut off at the end of the smaller part's range."""

    class Joins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.relu(self.first(images)), 50 * self.second(images).sigmoid()], 1).mean((2, 3))

    torch.manual_seed(0)
    module, images = Joins().eval(), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected, got = module(images), quantized(module, [images], CPU)(images)
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_torch_without_this_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl.quantize.prepare_fx", None)
    with pytest.raises(NotApplicable, match="an older version can"):
        quantized(nn.Conv2d(3, 4, 3).eval(), [torch.randn(2, 3, 8, 8)], CPU)


def test_a_machine_without_int8_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl.quantize.ENGINES", ())
    with pytest.raises(NotApplicable, match="no int8 kernels for this processor"):
        quantized(nn.Conv2d(3, 4, 3).eval(), [torch.randn(2, 3, 8, 8)], CPU)


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"compile": True}], ids=str)
def test_one_precision_at_a_time(mini: tl.Splits, settings: dict[str, object]) -> None:
    config = tl.TrainConfig(backbone=TINY[1], regime="quantized", weights="random", epochs=1, **settings)
    with pytest.raises(NotApplicable, match="an int8 backbone needs fp32"):
        tl.train_model(config, mini, device="cpu")


def test_figures_of_a_quantised_training(mini: tl.Splits) -> None:
    """Parameters take a quarter of the memory, all are counted, and the conversion has its own time."""
    plain, small = (
        tl.train_model(
            tl.TrainConfig(backbone=TINY[0], regime=regime, weights="random", epochs=1),
            mini,
            device="cpu",
        )
        for regime in ("frozen", "quantized")
    )
    assert small.total_params == plain.total_params and small.trainable_params == plain.trainable_params
    assert 0.24 < small.work.parameter_bytes / plain.work.parameter_bytes < 0.27
    assert small.frozen_verified
    assert small.quantization_seconds > 0 and plain.quantization_seconds is None
    assert small.cold_seconds == small.epochs[0].seconds + small.quantization_seconds
    assert small.epochs[0].val_loss == pytest.approx(plain.epochs[0].val_loss, rel=0.1)
