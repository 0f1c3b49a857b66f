"""Tests regimes that train a part of the backbone. Each is one entry of `REGIMES`; everything else follows from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import bench
import tl
from bench.analysis.claims import CLAIMS, KINDS
from bench.report.summary import summarise
from bench.report.write import write_report
from bench.sweep import run as runner
from bench.sweep.grid import load_grid
from bench.sweep.options import Options
from tests.commands import ONE_CELL
from tests.conftest import TINY
from tests.test_reference import plain_loop
from tests.weights import network
from tl import optimizers
from tl import train as train_module
from tl.backbones import Classifier, make_backbone
from tl.freezing import Freezing, freeze
from tl.regimes import EVERYTHING, HEAD, REGIMES, Regime, Trainable
from tl.step import TrainStep

HALF = CLAIMS["half-the-time-fast"]
PARTS = ("last-block", "last-2", "norm-only", "bias-only", "backbone alone")
ALONE = Regime(
    summary="the head stays",
    start="pretrained",
    trainable=Trainable(head=False, backbone=lambda network: [network]),
)
LAST = {
    "last-block": {TINY[0]: ("stage4", "conv5"), TINY[1]: ("layer4",)},
    "last-2": {TINY[0]: ("stage3", "stage4", "conv5"), TINY[1]: ("layer3", "layer4")},
}
"""Names of the last stages in each library."""


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add an entry that no shipped regime is like, and nothing else."""
    monkeypatch.setitem(REGIMES, "backbone alone", ALONE)


def by_hand(regime: str, backbone: str) -> tuple[set[str], set[str], set[str]]:
    """Names in a fresh classifier: trained parameters, buffers that may change, and, of the modules that hold some of
    either, those in train mode."""
    fresh = classifier(backbone)
    if regime == "bias-only":
        names = {name for name, _ in fresh.backbone.named_parameters(prefix="backbone") if name.endswith(".bias")}
        return names | {"head.weight", "head.bias"}, set(), {"head"}
    if regime in LAST:
        modules = {f"backbone.{name}" for name in LAST[regime][backbone]} | {"head"}
    elif regime == "norm-only":
        modules = {name for name, module in fresh.named_modules() if type(module).__name__.startswith("BatchNorm")}
        modules |= {"head"}
    else:
        modules = {"backbone"}

    def inside(name: str) -> bool:
        return any(name == module or name.startswith(f"{module}.") for module in modules)

    return (
        {name for name, _ in fresh.named_parameters() if inside(name)},
        {name for name, _ in fresh.named_buffers() if inside(name)},
        {name for name, module in fresh.named_modules() if inside(name) and holds(module)},
    )


def holds(module: nn.Module) -> bool:
    """Whether a module itself has parameters or buffers; the mode of others, such as a chain's, means nothing."""
    return any(True for tensors in (module.parameters, module.buffers) for _ in tensors(recurse=False))


@cache
def stirred() -> Path:
    """Weights with noise on norms and biases. Some start at 0, and no gradient passes a frozen 0."""
    folder = Path(os.environ["TL_CACHE"]).parent / "stirred"
    folder.mkdir()
    for spec in TINY:
        whole = network(spec)
        with torch.no_grad():
            for parameter in whole.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        torch.save(whole.state_dict(), folder / f"{spec.replace(':', '-')}.pth")
    return folder


def classifier(backbone: str) -> Classifier:
    made = make_backbone(backbone, weights="pretrained", weights_dir=stirred())
    return Classifier(made, 2, tl.TrainConfig(backbone=backbone))


def train(
    splits: tl.Splits, regime: str, backbone: str = TINY[1], *, keep: str = "best", **settings: Any
) -> tl.TrainResult:
    given = {"epochs": 2, "learning_rate": 0.1, "weights": "pretrained", **settings}
    config = tl.TrainConfig(backbone=backbone, regime=regime, **given)
    return tl.train_model(config, splits, device="cpu", weights_dir=stirred(), keep=keep)


def moved(result: tl.TrainResult) -> set[str]:
    """Names of parameters and buffers, unsaved ones too, that differ from a fresh classifier."""
    fresh, trained = classifier(result.config.backbone), result.model
    pairs = zip(
        [*fresh.named_parameters(), *fresh.named_buffers()], [*trained.parameters(), *trained.buffers()], strict=True
    )
    return {name for (name, before), after in pairs if not torch.equal(before, after)}


@pytest.mark.parametrize(
    ("regime", "backbone", "optimizer"),
    [*((regime, backbone, "sgd") for regime in PARTS for backbone in TINY), ("last-block", TINY[1], "adamw")],
)
def test_exactly_the_named_part_trains(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, regime: str, backbone: str, optimizer: str
) -> None:
    """Its parameters and statistics change, its modules are in train mode, and only it has optimiser state. Everything
    else stays equal bit for bit and is reported as frozen."""
    parameters, buffers, modules = by_hand(regime, backbone)
    made: list[torch.optim.Optimizer] = []
    modes: list[set[str]] = []
    build, run = optimizers.OPTIMIZER_BUILDERS[optimizer], TrainStep.run

    def builder(*arguments: Any) -> torch.optim.Optimizer:
        made.append(build(*arguments))
        return made[-1]

    def recorded(self: TrainStep, *arguments: Any) -> None:
        modes.append({name for name, module in self._model.named_modules() if module.training and holds(module)})
        run(self, *arguments)

    monkeypatch.setitem(optimizers.OPTIMIZER_BUILDERS, optimizer, builder)
    monkeypatch.setattr(TrainStep, "run", recorded)
    result = train(mini, regime, backbone, optimizer=optimizer, keep="last")
    assert moved(result) == parameters | buffers
    assert result.frozen_verified is True
    assert modes and all(one == modules for one in modes)
    (made_once,) = made
    named = dict(result.model.named_parameters())
    trained = {id(named[name]) for name in parameters}
    assert {id(parameter) for group in made_once.param_groups for parameter in group["params"]} == trained
    assert {id(parameter) for parameter in made_once.state} == trained
    size = sum(named[name].numel() for name in parameters)
    assert result.trainable_params == size < result.total_params
    assert result.work.gradient_bytes == 4 * size
    assert {name for name, parameter in named.items() if parameter.requires_grad} == parameters


def unfreeze_one_more(freezing: Freezing) -> Freezing:
    first = next(freezing.model.backbone.parameters()).requires_grad_(True)
    return replace(freezing, parameters=(*freezing.parameters, first))


def a_frozen_norm_in_train_mode(freezing: Freezing) -> Freezing:
    first = next(module for module in freezing.model.modules() if isinstance(module, nn.BatchNorm2d))
    return replace(freezing, in_train_mode=(*freezing.in_train_mode, first))


@pytest.mark.parametrize(
    ("regime", "plant", "backbone"),
    [
        ("last-block", unfreeze_one_more, TINY[0]),
        ("last-block", unfreeze_one_more, TINY[1]),
        ("last-block", a_frozen_norm_in_train_mode, TINY[0]),
        ("last-block", a_frozen_norm_in_train_mode, TINY[1]),
        ("norm-only", unfreeze_one_more, TINY[1]),
        ("bias-only", a_frozen_norm_in_train_mode, TINY[1]),
        ("frozen", unfreeze_one_more, TINY[1]),
    ],
)
def test_a_change_of_the_frozen_part_is_reported(
    mini: tl.Splits,
    monkeypatch: pytest.MonkeyPatch,
    regime: str,
    plant: Callable[[Freezing], Freezing],
    backbone: str,
) -> None:
    """The planted fault is one trained parameter too many, or one BatchNorm in the wrong mode."""
    monkeypatch.setattr("tl.prepare.freeze", lambda model, entry: plant(freeze(model, entry)))
    assert train(mini, regime, backbone).frozen_verified is False


@pytest.mark.parametrize("backbone", TINY)
def test_losses_are_those_of_a_plain_loop(mini: tl.Splits, backbone: str) -> None:
    """The plain loop trains the last stage and the head, which it finds by the library's names."""
    given = tl.TrainConfig(backbone=backbone, regime="last-block", weights="random", epochs=2)
    only = (*(f"backbone.{name}" for name in LAST["last-block"][backbone]), "head")
    expected, reference = plain_loop(given, mini, only=only)
    result = tl.train_model(given, mini, device="cpu")
    for row, wanted in zip(result.epochs, expected, strict=True):
        assert row.train_loss == pytest.approx(wanted["train_loss"], rel=1e-5)
        assert row.val_loss == pytest.approx(wanted["val_loss"], rel=1e-5)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("regime", PARTS)
def test_the_best_epochs_weights_come_back(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, regime: str) -> None:
    """If accuracy only falls, the model is that after one epoch. The frozen part is not copied."""
    original, accuracies, kept = train_module.val_pass, iter([0.9, 0.6, 0.9]), []
    state = Freezing.state

    def falling(*arguments: object) -> object:
        return replace(original(*arguments), score=lambda: next(accuracies))

    def copied(self: Freezing) -> dict[str, torch.Tensor]:
        kept.append(state(self))
        return kept[-1]

    monkeypatch.setattr(train_module, "val_pass", falling)
    monkeypatch.setattr(Freezing, "state", copied)
    monkeypatch.setattr("tl.kept.SMALL", 1 << 40)
    longer, short = (train(mini, regime, epochs=epochs, schedule="constant") for epochs in (2, 1))
    assert longer.best.epoch == 0 and len(kept) == 1
    for name, value in short.model.state_dict().items():
        assert torch.equal(longer.model.state_dict()[name], value), name
    parameters, buffers, _ = by_hand(regime, TINY[1])
    assert kept[0].keys() == parameters | buffers


def test_work_is_what_must_run_backward(mini: tl.Splits) -> None:
    """The last stage saves the backward pass through all that is below it. Norms save half of it: every activation
    still has its gradient, but no convolution's weight has."""
    backward = {
        name: train(mini, name, epochs=1).work.backward_flops
        for name in ("frozen", "last-block", "last-2", "last-3", "norm-only", "finetune")
    }
    assert list(backward.values()) == sorted(backward.values())
    assert backward["last-block"] < 0.1 * backward["finetune"] < 0.4 * backward["finetune"] < backward["norm-only"]


def test_a_network_without_such_a_part_is_not_applicable(mini: tl.Splits) -> None:
    """SqueezeNet has no norms, so the cell is not applicable; it doesn't silently train only the head."""
    with pytest.raises(tl.NotApplicable, match="this backbone has no part that the regime trains"):
        train(mini, "norm-only", "torchvision:squeezenet1_1", weights="random")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": "once"}, "features='once': needs a backbone that is frozen in eval mode, or use 'each step'"),
        (
            {"extractor": "int8"},
            "extractor='int8': needs a backbone that is frozen in eval mode or trains as a whole "
            "(trainable=EVERYTHING), or use 'float'",
        ),
    ],
    ids=["features", "extractor"],
)
@pytest.mark.parametrize("base", ["finetune", "frozen-tutorial", "last-block", "bias-only"])
def test_only_fixed_features_can_be_kept(base: str, changes: dict[str, Any], message: str) -> None:
    """Features of a changing backbone would be stale after a step, and a part of one can't be trained for int8."""
    replace(REGIMES["frozen"], **changes)
    if base == "finetune" and "extractor" in changes:
        assert replace(REGIMES[base], **changes).rounds
        return
    with pytest.raises(tl.ConfigError) as error:
        replace(REGIMES[base], **changes)
    assert str(error.value) == message


def test_claims_on_the_head_alone_follow_from_what_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names don't matter. Kept features, int8 and controls are not comparable, so they are left out."""
    monkeypatch.setitem(REGIMES, "probe", Regime(summary="x", start="pretrained", trainable=HEAD))
    monkeypatch.setitem(REGIMES, "frozen-not", Regime(summary="x", start="pretrained", trainable=EVERYTHING))
    monkeypatch.setitem(REGIMES, "noise", Regime(summary="x", start="random", trainable=HEAD, control=True))
    about = {name for name in REGIMES if HALF.is_about(name)}
    assert about == {"frozen", "frozen-tutorial", "probe"}
    assert HALF.kind in KINDS


def test_a_sweep_and_its_report_know_a_new_regime(tmp_path: Path) -> None:
    """It works from the grid to the export with only its entry."""
    (tmp_path / "one.toml").write_text(
        ONE_CELL.replace('["frozen"]', '["last-block", "frozen", "finetune"]') + "[train]\nepochs = 1\n"
    )
    grid = load_grid(str(tmp_path / "one.toml"))
    options = Options(name="x", weights="random", executor="inline", results=tmp_path / "results")
    worker, console = runner.executor_for(options), Console(record=True, width=200)
    sweep = runner.plan(grid, options, worker, console)
    runner.execute(sweep, grid, options, worker, console)
    write_report(summarise([sweep.run], "x"), tmp_path / "reports")
    table = bench.load_results(tmp_path / "results" / "x").set_index("regime")
    assert set(table.index) == {"last-block", "frozen", "finetune"}
    assert table.loc["last-block", "frozen_verified"] and table.loc["last-block", "status"] == "done"
    sizes = table["trainable_params"]
    assert sizes["frozen"] < sizes["last-block"] < sizes["finetune"] == table.loc["finetune", "total_params"]
