"""Tests of the contract of all regimes, on one network per source."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import tl
from tests.conftest import TINY
from tests.weights import TRAINING, policy, weights_for
from tl import freezing, optimizers
from tl import train as train_module
from tl.adapters import ADAPTERS
from tl.backbones import HEAD_BUILDERS, find_weights, make_backbone
from tl.batches import Batches
from tl.blocks import LOW_RANK
from tl.config import HEADS, LOSSES, OPTIMIZERS, SCHEDULES
from tl.errors import NotApplicable
from tl.images import open_store
from tl.regimes import REGIMES, Regime
from tl.tasks import TASKS


def train(splits: tl.Splits, regime: str, backbone: str = TINY[1], **settings: object) -> tl.TrainResult:
    config = tl.TrainConfig(backbone=backbone, regime=regime, epochs=2, weights=policy(regime), **settings)
    return tl.train_model(config, splits, device="cpu", weights_dir=weights_for(config.regime))


def fresh(config: tl.TrainConfig) -> torch.nn.Module:
    return make_backbone(
        config.backbone, weights=config.weights, weights_dir=weights_for(config.regime), seed=config.seed
    ).module


def changed(result: tl.TrainResult) -> tuple[set[str], set[str]]:
    """Names of parameters, and of buffers, of the backbone that differ from a fresh one's."""
    before, trained = fresh(result.config), result.model.backbone
    if REGIMES[result.config.regime].extractor == "int8":  # another network by then: see test_quantize.py, test_qat.py
        return set(), set()
    parameters = zip(before.named_parameters(), trained.parameters(), strict=True)
    buffers = zip(before.named_buffers(), trained.buffers(), strict=True)
    return tuple({name for (name, a), b in pairs if not torch.equal(a, b)} for pairs in (parameters, buffers))


def changing(entry: Regime, config: tl.TrainConfig, backbone: torch.nn.Module) -> tuple[set[str], set[str], int]:
    """Names of parameters, and of buffers, of a backbone that may change with a regime, and how many numbers train."""
    if entry.adapter != "none":  # what was added trains, and is merged into the weights beside it
        adapted = deepcopy(backbone).eval()
        ADAPTERS[entry.adapter].insert(adapted, config, torch.randn(1, 3, 64, 64))
        added = {name: p.numel() for name, p in adapted.named_parameters() if f".{LOW_RANK}." in name}
        return {f"{name.partition(f'.{LOW_RANK}.')[0]}.weight" for name in added}, set(), sum(added.values())
    chosen = list(entry.trainable.backbone(backbone)) if entry.trainable.backbone else []
    if entry.trainable.in_turn:  # as many as join in time
        parts = [*entry.trainable.in_turn(backbone)][: (config.epochs - 1) // config.unfreeze_every]
        chosen = [each for part in parts for each in part]
    modules = [part for part in chosen if isinstance(part, torch.nn.Module)]
    parameters = {id(p) for part in modules for p in part.parameters()} | {id(part) for part in chosen}
    moving = [backbone] if entry.frozen_mode == "train" else modules
    buffers = {id(b) for part in moving for b in part.buffers()}
    return (
        {name for name, p in backbone.named_parameters() if id(p) in parameters},
        {name for name, b in backbone.named_buffers() if id(b) in buffers},
        sum(p.numel() for p in backbone.parameters() if id(p) in parameters),
    )


@pytest.mark.parametrize("backbone", TINY)
@pytest.mark.parametrize("regime", REGIMES)
def test_contract(mini: tl.Splits, regime: str, backbone: str) -> None:
    """Only what the regime trains changes; history, predictions and the returned model agree."""
    result = train(mini, regime, backbone)
    entry = REGIMES[regime]
    before = fresh(result.config)
    parameters, buffers, trained = changing(entry, result.config, before)
    head_alone = entry.trainable.in_turn is not None and result.best.epoch == 0  # nothing had joined it by then
    for moved, may_move in zip(changed(result), (parameters, buffers), strict=True):
        assert moved <= may_move and bool(moved) is (bool(may_move) and not head_alone and not entry.rounds)
    whole = parameters == {name for name, _ in before.named_parameters()} and entry.trainable.head
    assert result.frozen_verified is (None if whole or entry.frozen_mode == "train" else True)
    head = sum(p.numel() for p in result.model.head.parameters())
    assert result.trainable_params == trained + (head if entry.trainable.head else 0)
    assert result.total_params == sum(p.numel() for p in before.parameters()) + head
    assert [row.epoch for row in result.epochs] == ([0, 1] if entry.by_steps else [0])
    truth = torch.tensor(mini.val.labels)
    best = (torch.tensor(result.best.labels) == truth).float().mean().item()
    assert best == pytest.approx(result.val_accuracy_best) == max(row.val_accuracy for row in result.epochs)
    assert not result.model.training
    preprocessing = make_backbone(backbone, weights="random").preprocessing
    val = Batches(open_store(mini), mini.val, preprocessing, torch.device("cpu"))
    with torch.inference_mode():
        said = torch.cat([result.model(images) for images, _ in val.evaluation(32)])
    assert said.argmax(1).tolist() == result.best.labels
    assert said.softmax(1).amax(1).tolist() == pytest.approx(result.best.confidences, abs=1e-4)


def test_a_backbone_that_moves_is_reported(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug puts the whole model into train mode, so a `frozen` backbone's BatchNorm statistics change."""
    monkeypatch.setattr("tl.freezing.Freezing.train_mode", lambda self: self.model.train())
    assert train(mini, "frozen").frozen_verified is False


def test_frozen_features_carry_no_graph(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """autograd records nothing for a backward pass through a frozen backbone."""
    seen: list[bool] = []
    original = torch.nn.Linear.forward

    def forward(self: torch.nn.Linear, features: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append(features.requires_grad or features.grad_fn is not None)
        return original(self, features)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    train(mini, "frozen")
    assert seen and not any(seen)


def test_regimes_see_the_same_images(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one seed, images, crops, flips and order are the same in every regime; another seed differs."""
    shown: dict[str, list[torch.Tensor]] = {}

    def record(name: str, regime: str, seed: int) -> None:
        original = Batches.training

        def training(self: Batches, batch_size: int, **settings: Any):
            for images, labels in original(self, batch_size, **settings):
                shown.setdefault(name, []).append(images.clone())
                yield images, labels

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Batches, "training", training)
            train(mini, regime, seed=seed)

    with_images = [regime for regime in TRAINING if REGIMES[regime].features == "each step"]
    for regime in with_images:
        record(regime, regime, 0)
    record("other seed", "frozen", 1)
    first = shown["finetune"]
    for regime in with_images:
        assert len(shown[regime]) == len(first)
        assert all(torch.equal(a, b) for a, b in zip(shown[regime], first, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(shown["other seed"], first, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[:6], first[6:], strict=True)), "epochs differ"


def test_same_seed_same_result(mini: tl.Splits) -> None:
    """Two calls agree in every number except times, and keep the caller's random state."""
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second = train(mini, "finetune"), train(mini, "finetune")
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.epochs, second.epochs, strict=True):
        assert (a.train_loss, a.val_loss, a.val_accuracy) == (b.train_loss, b.val_loss, b.val_accuracy)
    assert first.best == second.best


def test_ties_keep_the_earliest_epoch(mini: tl.Splits) -> None:
    """With a learning rate that changes nothing all epochs tie, and the first one stays the best."""
    result = train(mini, "frozen", learning_rate=1e-12)
    assert result.epochs[0].val_accuracy == result.epochs[1].val_accuracy
    assert result.best.epoch == 0


@pytest.mark.parametrize("regime", TRAINING)
def test_best_weights_are_a_copy(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, regime: str) -> None:
    """If accuracy only falls, the first epoch's weights are returned, whatever later epochs change."""
    original, accuracies = train_module.val_pass, iter([0.9, 0.6, 0.9, 0.8, 0.7])

    def falling(*arguments: object) -> object:
        return replace(original(*arguments), score=lambda: next(accuracies))

    monkeypatch.setattr(train_module, "val_pass", falling)
    config = tl.TrainConfig(backbone=TINY[1], regime=regime, weights="random", schedule="constant")
    longer = tl.train_model(config.replace(epochs=2), mini, device="cpu")
    assert longer.best.epoch == 0
    short = tl.train_model(config.replace(epochs=1), mini, device="cpu")
    for name, value in short.model.state_dict().items():
        assert torch.equal(longer.model.state_dict()[name], value), name


def test_bf16_runs_close_to_fp32(mini: tl.Splits) -> None:
    """The precision setting changes the arithmetic, a little."""
    plain, short = train(mini, "finetune"), train(mini, "finetune", precision="bf16")
    a, b = plain.epochs[0].train_loss, short.epochs[0].train_loss
    assert a is not None and b is not None
    assert a != b
    assert a == pytest.approx(b, rel=0.05)


def test_a_compiled_backbone_trains_the_same_head(mini: tl.Splits) -> None:
    """Losses and counted work are the same; the compiler's time is in the cold seconds, not in a warm epoch."""
    plain, compiled = train(mini, "frozen"), train(mini, "frozen", compile=True)
    for one, other in zip(plain.epochs, compiled.epochs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)
        assert other.val_loss == pytest.approx(one.val_loss, rel=1e-3)
    assert compiled.work == plain.work
    assert compiled.cold_seconds > compiled.epoch_seconds + 1


def test_without_headers_a_compiled_cell_is_skipped(
    mini: tl.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some systems Python's headers are a separate package."""
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(NotApplicable, match=r"needs Python's headers, and .*Python\.h is not there"):
        train(mini, "frozen", compile=True)


def test_without_a_compiler_a_compiled_cell_is_skipped(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(NotApplicable, match="needs a C\\+\\+ compiler"):
        train(mini, "frozen", compile=True)


@pytest.mark.parametrize(
    ("table", "builders"),
    [
        (OPTIMIZERS, optimizers.OPTIMIZER_BUILDERS),
        (SCHEDULES, optimizers.SCHEDULE_BUILDERS),
        (LOSSES, optimizers.LOSS_BUILDERS),
        (HEADS, HEAD_BUILDERS),
    ],
)
def test_every_setting_that_can_be_named_can_be_built(table: dict[str, str], builders: dict[str, Any]) -> None:
    """Both tables have the same names."""
    assert table.keys() == builders.keys()


@pytest.mark.parametrize(
    "settings",
    [
        *({"optimizer": name} for name in OPTIMIZERS if name != "sgd"),
        *({"loss": name} for name in TASKS["classification"].losses if name != "cross_entropy"),
        *({"head": name} for name in HEADS if name != "linear"),
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"label_smoothing": 0.1},
        {"learning_rate": 1e-2},
        {"batch_size": 8},
    ],
    ids=str,
)
def test_a_setting_changes_what_is_trained(mini: tl.Splits, settings: dict[str, object]) -> None:
    """Every value other than the default trains, with other losses than the default."""
    default, other = train(mini, "frozen"), train(mini, "frozen", **settings)
    assert all(row.train_loss is not None for row in other.epochs)
    assert [row.train_loss for row in default.epochs] != [row.train_loss for row in other.epochs]


def test_optimisers_are_torchs_own() -> None:
    """They get the settings under torch's names."""
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    config = tl.TrainConfig(backbone="x", learning_rate=0.2, momentum=0.7, weight_decay=0.3)
    sgd = optimizers.OPTIMIZER_BUILDERS["sgd"](config, parameters)
    adamw = optimizers.OPTIMIZER_BUILDERS["adamw"](config, parameters)
    assert isinstance(sgd, torch.optim.SGD) and isinstance(adamw, torch.optim.AdamW)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.2, 0.7, 0.3)
    assert (adamw.defaults["lr"], adamw.defaults["betas"], adamw.defaults["weight_decay"]) == (0.2, (0.7, 0.999), 0.3)


def test_a_first_step_that_overflows_leaves_no_trace() -> None:
    """With scaled gradients (fp16) the step is skipped, and the next step is like a first one."""
    parameter = torch.nn.Parameter(torch.zeros(1000))
    config = tl.TrainConfig(backbone="x", learning_rate=1.0, momentum=0.9)
    optimizer = optimizers.OPTIMIZER_BUILDERS["sgd"](config, [parameter])
    scaler = torch.amp.GradScaler("cpu")
    for gradient in (float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((parameter * gradient).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(parameter.detach(), -torch.ones(1000))


def test_focal_loss_is_its_formula() -> None:
    """It is the mean of -(1 - p)^2 log p of the true class."""
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    p = logits.softmax(1)[range(6), labels]
    focal = optimizers.LOSS_BUILDERS["focal"](tl.TrainConfig(backbone="x"), None)
    torch.testing.assert_close(focal(logits, labels), (-((1 - p) ** 2) * p.log()).mean())
    plain = optimizers.LOSS_BUILDERS["cross_entropy"](tl.TrainConfig(backbone="x", label_smoothing=0.2), None)
    torch.testing.assert_close(plain(logits, labels), cross_entropy(logits, labels, label_smoothing=0.2))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "cosine"}, [1e-3, 7.5e-4, 2.5e-4]),
        ({"schedule": "constant"}, [1e-3] * 3),
        ({"schedule": "step", "step_size": 1, "gamma": 0.5}, [1e-3, 5e-4, 2.5e-4]),
    ],
    ids=["cosine", "constant", "step"],
)
def test_schedules(mini: tl.Splits, settings: dict[str, object], expected: list[float]) -> None:
    """Each epoch has the learning rate of the schedule's formula."""
    config = tl.TrainConfig(backbone=TINY[1], regime="frozen", weights="random", epochs=3, **settings)
    assert [row.learning_rate for row in tl.train_model(config, mini, device="cpu").epochs] == pytest.approx(expected)


def test_weights_must_be_what_the_regime_starts_from(mini: tl.Splits) -> None:
    """`scratch` refuses pretrained weights that are passed as an argument."""
    weights = find_weights("timm:tf_efficientnet_lite0", "pretrained")
    config = tl.TrainConfig(backbone="timm:tf_efficientnet_lite0", regime="scratch", epochs=1)
    with pytest.raises(tl.ConfigError, match="regime 'scratch' must start from random weights"):
        tl.train_model(config, mini, device="cpu", weights=weights)


def test_random_weights_in_place_of_pretrained_ones_are_reported(mini: tl.Splits) -> None:
    """There is a warning, a note in the result, and the accuracy doesn't count."""
    config = tl.TrainConfig(backbone=TINY[1], regime="frozen", epochs=1)
    with pytest.warns(tl.FallbackWarning, match="random weights"):
        result = tl.train_model(config, mini, device="cpu")
    assert not result.accuracy_counts
    assert any(note.about == "weights" and note.text.startswith("random weights: ") for note in result.notes)
    assert any(note.about == "images" and "the images are synthetic" in note.text for note in result.notes)


def test_a_changed_buffer_that_is_not_saved_is_noticed() -> None:
    """The check of frozen backbones covers buffers that a state dict leaves out."""
    module = torch.nn.Linear(1, 1)
    module.register_buffer("hidden", torch.zeros(2), persistent=False)
    names = {"weight", "bias", "hidden"}
    before = freezing.digest(module, names)
    module.hidden.add_(1)
    assert freezing.digest(module, names) != before


def test_step_schedule_falls_after_seven_epochs(mini: tl.Splits) -> None:
    """The schedule is StepLR(7, 0.1), as in the tutorial."""
    config = tl.TrainConfig(backbone=TINY[1], regime="frozen", weights="random", epochs=8)
    rates = [row.learning_rate for row in tl.train_model(config, mini, device="cpu").epochs]
    assert rates == pytest.approx([1e-3] * 7 + [1e-4])


def test_more_than_two_classes_and_a_single_last_image(tmp_path) -> None:
    """There are three classes. Nine images at batch size 4 leave one, which joins the batch before it."""
    from tests.images import write_folder

    splits = tl.load_splits(write_folder(tmp_path / "set", ("a", "b", "c"), train=3, val=1))
    result = train(splits, "finetune")
    assert result.classes == ("a", "b", "c")
    assert result.model.head.out_features == 3
    assert any("leave one over" in note.text for note in result.notes)
