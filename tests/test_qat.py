"""Tests of networks that train for int8: they round as int8 kernels do, and what is judged is integers."""

from __future__ import annotations

import copy
import itertools
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm.layers
import torch
from torch import nn
from torch.ao.nn.intrinsic.qat import ConvBn2d
from torch.ao.quantization import disable_fake_quant, disable_observer

import tl
from tests.conftest import TINY
from tests.images import write_folder
from tests.test_kept import bytes_alive
from tests.test_quantize import Looks
from tl.backbones import make_backbone
from tl.batches import Batches
from tl.devices import LAYOUTS
from tl.errors import NotApplicable
from tl.images import open_store
from tl.qat import Int8Copies, Rounding, int8_copy, rounding_copy
from tl.quantize import quantized_weights
from tl.regimes import EVERYTHING, HEAD, Regime, last

CPU = torch.device("cpu")
NAME = "quantized-finetune"
CONFIG = tl.TrainConfig(backbone=TINY[1], regime=NAME, weights="random", epochs=2)


def small() -> nn.Module:
    """A network with all that is folded or padded in a way of its own, and with a weight of BatchNorm that is 0."""
    torch.manual_seed(0)
    made = nn.Sequential(
        timm.layers.Conv2dSame(3, 8, 3, stride=2, bias=False),
        timm.layers.BatchNormAct2d(8, act_layer=nn.ReLU6, momentum=0.3),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.BatchNorm2d(8, momentum=0.2),
        nn.ReLU6(inplace=True),
        nn.Conv2d(8, 12, 1),
        nn.BatchNorm2d(12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 6),
    )
    with torch.no_grad():
        made[1].weight.mul_(3)  # so that much is above 6
        made[1].bias.fill_(3)
        made[6].weight[0] = 0
        made.train()(torch.randn(64, 3, 16, 16))
    return made.eval()


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a backbone in eval mode and eight images of its size, in the layout of a CPU's training."""
    torch.manual_seed(1)
    if name == "small":
        module, size = small(), 16
    else:
        made = make_backbone(name, weights="random")
        module, size = made.module.eval(), made.preprocessing.size
    images = torch.randn(8, 3, size, size).contiguous(memory_format=LAYOUTS["channels_last"])
    return module.to(memory_format=LAYOUTS["channels_last"]), images


NETWORKS = ("small", *TINY, "timm:test_efficientnet")


@pytest.mark.parametrize("name", NETWORKS)
def test_without_rounding_it_trains_as_the_network_itself(name: str) -> None:
    """Outputs, gradients and BatchNorm statistics are the same, of the same parameters and buffers."""
    module, images = network(name)
    alone = copy.deepcopy(module)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    made = rounding_copy(module, images, CPU)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert {id(p) for p in made.parameters()} == {id(p) for p in module.parameters()}
    made.apply(disable_fake_quant)
    outputs = [each.train()(images) for each in (alone, made)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-4)
    for output in outputs:
        (output * torch.linspace(0, 1, output.shape[1])).sum().backward()
    total = torch.cat([p.grad.flatten() for p in alone.parameters()]).norm()
    for (key, one), other in zip(alone.named_parameters(), module.parameters(), strict=True):
        assert (one.grad - other.grad).norm() < 0.02 * total, key
    for (key, one), other in zip(alone.named_buffers(), module.buffers(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_integers_are_what_training_rounds_to(name: str) -> None:
    """Weights are the rounded ones, and features are near: a rounding of an activation that falls on the other side
    shifts those after it by a step."""
    module, images = network(name)
    made = rounding_copy(module, images, CPU)
    with torch.no_grad():
        for _ in range(30):
            made.train()(images)
        made.eval()(images)  # the range of features in eval mode is another one
        for _ in range(300):
            made(images)
        made.apply(disable_observer)
        expected = made(images)
        integers = int8_copy(made)
        got = integers(images)
        assert torch.equal(int8_copy(made)(images), got)
    assert (got - expected).norm() < 0.06 * expected.norm()
    weights = [weight for _, weight in quantized_weights(integers)]
    layers = sum(isinstance(part, nn.Conv2d | nn.Linear) for part in module.modules())
    assert all(weight.dtype == torch.qint8 for weight in weights) and len(weights) == layers
    assert not any(isinstance(part, nn.BatchNorm2d) for part in integers.modules()), "BatchNorm folds into convolutions"


def test_a_single_layer_is_off_by_a_rounding_step_at_most() -> None:
    """With two roundings in a row, of its input and of its output, which the kernel does in integers."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    images = torch.randn(8, 3, 16, 16)
    made = rounding_copy(module, images, CPU)
    with torch.no_grad():
        made(images)
        expected, got = made(images), int8_copy(made)(images)
    step = [part for part in made.modules() if isinstance(part, Rounding)][-1].scale.item()
    assert (got - expected).abs().max() <= 1.01 * step
    assert ((got - expected).abs() > 0.01 * step).float().mean() < 0.01
    assert not torch.equal(expected, module(images))


def test_a_gradient_passes_where_a_value_is_in_its_range() -> None:
    rounding = Rounding(
        torch.ao.quantization.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
    )
    rounding(torch.tensor([0.0, 2.55]))
    rounding.apply(disable_observer)
    values = torch.tensor([-1.0, 0.004, 1.006, 2.549, 3.0], requires_grad=True)
    rounded = rounding(values)
    torch.testing.assert_close(rounded, torch.tensor([0.0, 0.0, 1.01, 2.55, 2.55]))
    rounded.sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 0]
    theirs = torch.fake_quantize_per_tensor_affine(values, rounding.scale, rounding.zero_point, 0, 255)
    assert torch.equal(rounded, theirs)


def test_ranges_begin_with_the_first_batch_of_training() -> None:
    """Those of random weights in eval mode are tiny, and would leave nothing of what BatchNorm gives in train mode."""
    module, images = network(TINY[0])
    made = rounding_copy(module, images, CPU)
    observers = [part.activation_post_process for part in made.modules() if isinstance(part, Rounding)]
    assert all((each.min_val > each.max_val).all() for each in observers)
    made.train()(images)
    assert all((each.min_val <= each.max_val).all() for each in observers)


def test_parts_of_different_ranges_are_joined_as_floats() -> None:
    """Also where their layers fold with BatchNorm and an activation."""

    class Joins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (
                nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2)
            )

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.first(images), 50 * self.second(images).sigmoid()], 1).mean((2, 3))

    torch.manual_seed(0)
    module, images = Joins().eval(), torch.randn(4, 3, 16, 16)
    made = rounding_copy(module, images, CPU)
    with torch.no_grad():
        made(images)
        expected, got = module(images), int8_copy(made)(images)
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize(
    ("module", "device", "reason"),
    [
        (Looks(), "cpu", "can't be quantised: symbolically traced variables cannot be used"),
        (nn.AvgPool2d(8), "cpu", "no layer of this network has int8 kernels"),
        (nn.Conv2d(3, 4, 3), "cuda", "int8 kernels exist only on a CPU"),
    ],
    ids=["decides by values", "no weights", "a GPU"],
)
def test_what_cannot_be_prepared_says_why_in_one_line(module: nn.Module, device: str, reason: str) -> None:
    """The cell is skipped with that reason."""
    with pytest.raises(NotApplicable) as error:
        rounding_copy(module.eval(), torch.randn(2, 3, 8, 8), torch.device(device))
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_a_network_that_is_another_in_training_is_refused() -> None:
    """Its graph, which is made in train mode, has no branch for validation."""

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = self.layer(images)
            return 2 * features if self.training else features

    with pytest.raises(NotApplicable, match="the features of its traced graph differ by 1 of their norm"):
        rounding_copy(Other().eval(), torch.randn(2, 3, 8, 8), CPU)


def test_conversions_leave_nothing_behind() -> None:
    """Torch would keep the float weights of each."""
    module, images = network(TINY[1])
    copies = Int8Copies(rounding_copy(module, images, CPU))
    with torch.no_grad():
        copies._network(images)
        copies(images)
    alive = bytes_alive()
    for _ in range(2):
        copies.renew()
    assert bytes_alive() <= alive + 20_000


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"precision": "bf16"}, "an int8 backbone needs fp32 without torch.compile"),
        ({"compile": True}, "an int8 backbone needs fp32 without torch.compile"),
        ({"checkpointing": True}, "checkpointing runs blocks again, and a backbone that trains for int8 has none"),
        ({"ema": 0.9}, "ema=0.9: an average of weights has no ranges for int8; leave it out"),
        ({"execution": "plain"}, "execution 'plain' runs the network on images in every step"),
        ({"backbone": "timm:test_vit"}, "can't be quantised: "),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_not_applicable(mini: tl.Splits, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotApplicable) as error:
        tl.train_model(CONFIG.replace(**settings), mini, device="cpu")
    assert str(error.value).startswith(reason) and "\n" not in str(error.value)


def test_which_regimes_may_round() -> None:
    """All of a backbone trains, from a head that isn't fitted to features, which depend on ranges."""
    made = Regime(summary="x", start="pretrained", trainable=EVERYTHING, extractor="int8")
    assert made.rounds and not replace(made, extractor="float").rounds and not replace(made, trainable=HEAD).rounds
    with pytest.raises(tl.ConfigError, match=r"or trains as a whole \(trainable=EVERYTHING\), or use 'float'"):
        replace(made, trainable=last(1))
    with pytest.raises(tl.ConfigError, match="head_start='logistic': needs a float backbone; use extractor='float'"):
        replace(made, head_start="logistic")


def validated(result: tl.TrainResult, splits: tl.Splits) -> list[float]:
    """Confidences of the network of a result for the validation images."""
    val = Batches(
        open_store(splits), splits.val, result.model.preprocessing, CPU, memory_format=LAYOUTS["channels_last"]
    )
    with torch.inference_mode():
        said = torch.cat([result.model(images) for images, _ in val.evaluation(4)])
    return said.softmax(1).amax(1).tolist()


@pytest.fixture(scope="module")
def trained(mini: tl.Splits) -> tl.TrainResult:
    """A training whose last epoch is kept."""
    return tl.train_model(CONFIG.replace(backbone=TINY[0]), mini, device="cpu", keep="last", inference=True)


def test_the_int8_network_is_judged(trained: tl.TrainResult, mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what the result has, and what its confidences are from. The planted bug validates the float network."""
    assert any(True for _ in quantized_weights(trained.model.backbone))
    assert validated(trained, mini) == pytest.approx(trained.last.confidences, abs=1e-5)
    monkeypatch.setattr(Int8Copies, "__call__", lambda self, images: self._network(images))
    planted = tl.train_model(CONFIG.replace(backbone=TINY[0]), mini, device="cpu", keep="last")
    assert validated(planted, mini) != pytest.approx(planted.last.confidences, abs=1e-5)


def test_figures_are_those_of_the_float_training(trained: tl.TrainResult, mini: tl.Splits) -> None:
    """The work is that of `finetune`; the network in use takes a quarter of the bytes."""
    plain = tl.train_model(
        CONFIG.replace(backbone=TINY[0], regime="finetune", epochs=1), mini, device="cpu", inference=True
    )
    work, expected = trained.work, plain.work
    assert (work.forward_flops, work.backward_flops) == (expected.forward_flops, expected.backward_flops)
    assert work.parameter_bytes == expected.parameter_bytes and work.gradient_bytes == expected.gradient_bytes
    assert work.saved_activation_bytes > expected.saved_activation_bytes
    assert (trained.total_params, trained.trainable_params) == (plain.total_params, plain.trainable_params)
    assert trained.frozen_verified is None and trained.quantization_seconds > 0
    assert 0.25 < trained.inference.model_bytes / plain.inference.model_bytes < 0.4
    with pytest.raises(tl.ModelError, match="is quantised, which a file of safetensors can't hold"):
        tl.save_model(trained, mini, Path("nowhere"))
    assert not Path("nowhere").exists()


def test_conversion_is_no_part_of_an_epoch(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves by a hundred seconds in conversions, one in preparation and one per epoch."""
    seconds = itertools.count(0.0, 1e-4)
    added = 0.0

    def convert(given: nn.Module) -> nn.Module:
        nonlocal added
        added += 100
        return int8_copy(given)

    for module in ("tl.clock", "tl.prepare", "tl.qat"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(perf_counter=lambda: next(seconds) + added))
    monkeypatch.setattr("tl.qat.int8_copy", convert)
    result = tl.train_model(CONFIG, mini, device="cpu", keep="last")
    assert all(0 < row.train_seconds < 1 and 0 < row.val_seconds < 1 for row in result.epochs)
    assert all(abs(row.phases.other) < 1 for row in result.epochs)
    assert 300 < result.quantization_seconds < 301 and result.setup_seconds < 1


def test_no_int8_copy_is_alive_while_the_network_trains(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory would count as that of a training step."""
    renew, train_pass = Int8Copies.renew, tl.train._train_pass
    made: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []

    def renewed(self: Int8Copies) -> float:
        seconds = renew(self)
        made.append(weakref.ref(self.newest))
        return seconds

    def counted(*arguments: Any) -> Any:
        alive.append(sum(one() is not None for one in made))
        return train_pass(*arguments)

    monkeypatch.setattr(Int8Copies, "renew", renewed)
    monkeypatch.setattr("tl.train._train_pass", counted)
    result = tl.train_model(CONFIG.replace(epochs=3), mini, device="cpu", keep="last")
    assert alive == [0, 0, 0] and len(made) == 3 and made[-1]() is result.model.backbone


def test_what_is_rounded_for_training_is_what_torch_rounds() -> None:
    """A convolution and its BatchNorm give what torch's own module gives by dividing its output, gradients too."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, bias=True), nn.BatchNorm2d(8), nn.ReLU()).eval()
    with torch.no_grad():
        module[1].weight.uniform_(-1, 2)
        module.train()(3 * torch.randn(16, 3, 16, 16) + 1)
    images = torch.randn(8, 3, 16, 16)
    made = rounding_copy(module.eval(), images, CPU)
    (ours,) = (part for part in made.modules() if isinstance(part, ConvBn2d))
    theirs = copy.deepcopy(ours)
    del theirs._forward  # of the instance
    for part in (ours, theirs):
        part.train().zero_grad()
        found = part(images)
        (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.weight_fake_quant.scale, theirs.weight_fake_quant.scale)
    for one, other in ((ours.weight, theirs.weight), (ours.bn.bias, theirs.bn.bias)):
        assert (one.grad - other.grad).norm() < 0.03 * other.grad.norm()
    for name, value in theirs.bn.named_buffers():
        torch.testing.assert_close(ours.bn.get_buffer(name), value, rtol=1e-4, atol=1e-5)


def test_weights_that_are_not_finite_end_the_training(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the loss of the last step was: there is nothing to convert."""
    train_pass = tl.train._train_pass

    def spoils(step: Any, *arguments: Any) -> Any:
        found = train_pass(step, *arguments)
        with torch.no_grad():
            next(step._model.backbone.parameters())[0] = float("nan")
        return found

    monkeypatch.setattr("tl.train._train_pass", spoils)
    with pytest.raises(tl.DivergedError, match="the weights were not finite after training in epoch 1 of 2"):
        tl.train_model(CONFIG, mini, device="cpu")


def test_it_learns_what_fine_tuning_learns(tmp_path: Path) -> None:
    """On images of two colours, which both tell apart after a few epochs."""
    splits = tl.load_splits(write_folder(tmp_path / "set", ("a", "b"), train=8, val=6))
    settings = {"epochs": 4, "learning_rate": 0.01, "schedule": "constant"}
    found = {
        regime: tl.train_model(CONFIG.replace(regime=regime, **settings), splits, device="cpu")
        for regime in ("finetune", NAME)
    }
    assert found[NAME].val_accuracy_best >= found["finetune"].val_accuracy_best - 0.1
    losses = [row.train_loss for row in found[NAME].epochs]
    assert losses[-1] < losses[0]


def test_settings_of_fine_tuning_work(mini: tl.Splits) -> None:
    """BatchNorm layers are inside those that round, and are found there; stages are those of the network as loaded."""
    result = tl.train_model(CONFIG.replace(freeze_bn=True, layer_decay=0.5, epochs=1), mini, device="cpu")
    assert result.frozen_verified is True and result.trainable_params < result.total_params
