"""Tests of settings of fine-tuning, against loops by hand, in double precision as in `tests/test_checkpointing.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch import nn

import tl
from bench.analysis.claims import Claim
from bench.analysis.groups import all_else, make_groups
from bench.analysis.verdicts import decide_claims
from bench.report.settings_text import settings
from bench.store.consistency import contradiction
from bench.store.records import Cell, Record
from bench.sweep import run as runner
from bench.sweep.describe import list_cells
from bench.sweep.final import plan_final
from bench.sweep.grid import load_grid
from bench.sweep.options import Options
from bench.sweep.pairs import pairings
from tests.commands import ONE_CELL
from tests.runs import TRUTH, record, write_run
from tests.test_reference import DoubleClassifier, every
from tests.weights import TRAINING
from tl import train as train_module
from tl.averaging import AveragedWeights
from tl.backbones import Classifier, make_backbone
from tl.batches import Batches
from tl.config import one_training
from tl.freezing import Freezing
from tl.heads import trainable_at_once
from tl.images import open_store
from tl.optimizers import with_layer_decay
from tl.prepare import WAYS
from tl.protocols import run_protocol
from tl.regimes import EVERYTHING, REGIMES
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
def six(mini: tl.Splits) -> tl.Splits:
    """Six and four images."""
    return replace(mini, train=every(4, mini.train), val=every(4, mini.val))


@pytest.fixture
def few(six: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> tl.Splits:
    """The same, for networks in double precision."""
    monkeypatch.setattr("tl.prepare.Classifier", Stirred)
    return six


def fresh(given: tl.TrainConfig) -> Classifier:
    made = Stirred(make_backbone(given.backbone, weights="random", seed=given.seed), 2, given)
    return made.to(memory_format=torch.channels_last)


def train(given: tl.TrainConfig, splits: tl.Splits, **more: Any) -> TrainResult:
    return tl.train_model(given, splits, device="cpu", **{"keep": "last", **more})


def by_hand(
    given: tl.TrainConfig,
    splits: tl.Splits,
    optimizer: Callable[[Classifier], torch.optim.Optimizer],
    after_step: Callable[[Classifier], None] = lambda model: None,
    after_epoch: Callable[[Classifier], None] = lambda model: None,
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
            after_step(model)
        schedule.step()
        after_epoch(model)
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
        ({"backbone": "timm:test_vit", "regime": "gradual"}, r"^freeze_bn=true: no BatchNorm layer of this backbone"),
        ({"regime": "bias-only"}, r"^freeze_bn=true: regime 'bias-only' trains nothing else of this backbone"),
        ({"regime": "norm-only"}, r"^freeze_bn=true: regime 'norm-only' trains nothing else of this backbone"),
    ],
    ids=["no BatchNorm", "not even later", "bias-only", "norm-only"],
)
def test_frozen_batch_norm_without_a_meaning_is_skipped(few: tl.Splits, given: dict[str, Any], message: str) -> None:
    with pytest.raises(tl.NotApplicable, match=message):
        train(config(freeze_bn=True, **given), few)


def decayed(model: nn.Module, decay: float, parts: list[list[str]]) -> torch.optim.Optimizer:
    groups = []
    for depth, names in enumerate(parts):
        own = [parameter for name in names for parameter in model.get_submodule(name).parameters()]
        groups.append({"params": own, "lr": 0.01 * decay**depth})
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


PARTS = [["head"], *([f"backbone.layer{number}"] for number in (4, 3, 2, 1)), ["backbone.conv1", "backbone.bn1"]]


@pytest.mark.parametrize("settings", [{}, {"execution": "plain", "epochs": 3, "step_size": 1}], ids=str)
def test_layer_decay(few: tl.Splits, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    """It is a loop by hand with a group of parameters per stage, whose rates the schedule multiplies."""
    monkeypatch.setitem(WAYS, "plain", replace(WAYS["plain"], images=WAYS["fast"].images))
    given = config(layer_decay=0.5, **settings)
    result = train(given, few)
    same(result, by_hand(given, few, lambda model: decayed(model, 0.5, PARTS)))
    assert [row.learning_rate for row in result.epochs][:2] == pytest.approx([0.01, 0.001 if settings else 0.01])
    with pytest.raises(AssertionError, match="backbone"):
        same(result, by_hand(given, few, lambda model: decayed(model, 0.9, PARTS)))


@pytest.mark.parametrize(("backbone", "but"), [(BACKBONE, ()), ("timm:test_vit", ("norm.weight", "norm.bias"))])
def test_rates_are_those_of_timm(
    few: tl.Splits, monkeypatch: pytest.MonkeyPatch, backbone: str, but: tuple[str, ...]
) -> None:
    """timm's own groups of these networks are a stage each. Its last norm is with the head, ours is in a stage."""
    made = grouped(monkeypatch)
    given = config(backbone=backbone, layer_decay=0.7, epochs=1, schedule="constant")
    result = train(given, few)
    rates = {parameter: group["lr"] for group in made[0].param_groups for parameter in group["params"]}
    assert rates.keys() == set(result.model.parameters())
    network = timm.create_model(backbone.partition(":")[2])
    scales = {
        parameter: group["lr_scale"]
        for group in param_groups_layer_decay(network, layer_decay=0.7)
        for parameter in group["params"]
    }
    wanted = {name: 0.01 * scales[parameter] for name, parameter in network.named_parameters()}
    for name, parameter in result.model.backbone.named_parameters():
        if name not in but:
            assert rates[parameter] == pytest.approx(wanted[name]), name
    assert rates[result.model.head.weight] == 0.01 and min(rates.values()) < 0.003


def grouped(monkeypatch: pytest.MonkeyPatch) -> list[torch.optim.Optimizer]:
    """The optimisers that get groups of parameters from now on."""
    made: list[torch.optim.Optimizer] = []

    def with_groups(*arguments: Any) -> torch.optim.Optimizer:
        made.append(with_layer_decay(*arguments))
        return made[-1]

    monkeypatch.setattr("tl.prepare.with_layer_decay", with_groups)
    return made


def test_layer_decay_of_parts(few: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """What trains first from the output on has the rate itself, also if the head doesn't; what is frozen has none."""
    made = grouped(monkeypatch)
    train(config(regime="last-2", layer_decay=0.5, epochs=1, schedule="constant"), few)
    train(config(regime="gradual", layer_decay=0.5, epochs=2, schedule="constant"), few)
    alone = replace(REGIMES["finetune"], trainable=replace(EVERYTHING, head=False))
    monkeypatch.setitem(REGIMES, "backbone alone", alone)
    result = train(config(regime="backbone alone", layer_decay=0.5, epochs=1), few)
    assert [[group["lr"] for group in each.param_groups] for each in made[:2]] == [[0.01, 0.005, 0.0025], [0.01, 0.005]]
    assert [group["lr"] for group in made[2].param_groups] == [0.01 * 0.5**depth for depth in range(5)]
    assert result.epochs[0].learning_rate == 0.01


def own_groups(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Without weight decay for vectors, as is usual."""
    return torch.optim.SGD(
        [
            {"params": [each for each in parameters if each.ndim > 1], "weight_decay": 0.1},
            {"params": [each for each in parameters if each.ndim == 1]},
        ],
        lr=lr,
    )


class Rateless(torch.optim.SGD):
    """An optimiser that keeps its rate elsewhere."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, lr=lr)
        del self.param_groups[0]["lr"]


def test_layer_decay_of_ones_own_optimiser(few: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its groups are divided, and keep what else they have."""
    made = grouped(monkeypatch)
    train(config(layer_decay=0.5, epochs=1, momentum=0.9), few, optimizer=own_groups)
    groups = made[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0] * 6
    assert [group["lr"] for group in groups] == [0.01 * 0.5 ** (place // 2) for place in range(12)]
    assert all(parameter.ndim == 1 for group in groups[1::2] for parameter in group["params"])
    with pytest.raises(tl.ConfigError, match=r"^layer_decay=0\.5: optimizer='.*:Rateless' has parameters without a"):
        train(config(layer_decay=0.5), few, optimizer=Rateless)


def test_layer_decay_without_stages_is_skipped(few: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(network: nn.Module) -> None:
        raise tl.NotApplicable("no two stages can be found in this backbone")

    monkeypatch.setattr("tl.prepare.stages", none)
    with pytest.raises(tl.NotApplicable, match="no two stages"):
        train(config(layer_decay=0.5), few)
    train(config(epochs=1), few)


def sgd(model: Classifier) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


@pytest.mark.parametrize("settings", [{"batch_size": 2}, {"execution": "plain", "freeze_bn": True}], ids=str)
def test_averaged_weights_are_those_of_timm(
    few: tl.Splits, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """What is validated in each epoch and kept at the end is timm's average; training goes on with the weights."""
    monkeypatch.setitem(WAYS, "plain", replace(WAYS["plain"], images=WAYS["fast"].images))
    given = config(ema=0.6, epochs=3, **settings)
    average = ModelEmaV3(fresh(given), decay=0.6)
    losses = []

    def validate(model: Classifier) -> None:
        network = average.module.eval()
        preprocessing = make_backbone(given.backbone, weights="random").preprocessing
        batches = Batches(open_store(few), few.val, preprocessing, torch.device("cpu"))
        with torch.no_grad():
            (images, labels), *others = batches.evaluation(4)
            images = images.contiguous(memory_format=torch.channels_last)
            losses.append(nn.functional.cross_entropy(network(images).float(), labels).item())
        assert not others

    weights = by_hand(given, few, sgd, after_step=average.update, after_epoch=validate)
    result = train(given, few)
    averages = {name: value for name, value in average.module.state_dict().items() if value.is_floating_point()}
    same(result, averages)
    assert [row.val_loss for row in result.epochs] == pytest.approx(losses, rel=1e-6)
    with pytest.raises(AssertionError):
        same(result, weights)
    assert result.frozen_verified is (True if given.freeze_bn else None)


@pytest.mark.parametrize("regime", ["finetune", "gradual", "cached"])
def test_the_best_average_comes_back(six: tl.Splits, monkeypatch: pytest.MonkeyPatch, regime: str) -> None:
    """It is what was validated in the best epoch, and what has not joined yet is not changed by an average."""
    validated, states = train_module.val_pass, []

    def falling(evaluation: Any, *given: Any) -> Any:
        states.append({name: value.clone() for name, value in evaluation._model.state_dict().items()})
        accuracy = 1 / len(states)
        return replace(validated(evaluation, *given), score=lambda: accuracy)

    monkeypatch.setattr(train_module, "val_pass", falling)
    result = train(config(regime=regime, ema=0.5, epochs=3, learning_rate=0.1), six, keep="best")
    assert result.best.epoch == 0 and result.frozen_verified is (None if regime == "finetune" else True)
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, states[0][name]), name
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])


def test_an_average_leaves_alone_what_waits(few: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an average with itself a weight of -0.0 would become 0.0, and its stage would count as changed too early."""

    class Negative(Stirred):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            with torch.no_grad():
                next(self.backbone.layer3.parameters())[0] = -0.0

    monkeypatch.setattr("tl.prepare.Classifier", Negative)
    given = config(regime="gradual", ema=0.9, epochs=3)  # layer3 joins in the last one
    assert train(given, few).frozen_verified is True
    follow, first = AveragedWeights.follow, []

    def all_at_once(self: AveragedWeights, freezing: Freezing) -> None:
        first.append(freezing)
        follow(self, first[0])

    monkeypatch.setattr(AveragedWeights, "follow", all_at_once)
    assert train(given, few).frozen_verified is False


def test_an_average_begins_with_the_fitted_head(few: tl.Splits) -> None:
    """With a decay of nearly 1 it stays there."""
    given = config(regime="logistic", fold=False)
    fitted = train(given, few).model.head
    kept = train(config(regime="lp-ft", ema=1 - 1e-12, learning_rate=1.0), few).model.head
    torch.testing.assert_close(kept.weight, fitted.weight.double(), rtol=1e-3, atol=1e-4)


def own_sgd(parameters: list[nn.Parameter], lr: float, momentum: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def test_an_average_with_ones_own_optimiser(few: tl.Splits) -> None:
    """Its steps move the average, too."""
    given = config(ema=0.5, epochs=1)
    same(train(given, few, optimizer=own_sgd), dict(train(given, few).model.state_dict()))


def test_heads_with_an_average_are_trained_one_by_one(six: tl.Splits) -> None:
    """Trials of a regime with kept features run at once only without."""
    given = config(regime="cached", protocol="tuned", learning_rate=1e-3, learning_rates=(1e-3, 1e-2))
    assert trainable_at_once(one_training(given)) and not trainable_at_once(one_training(given.replace(ema=0.5)))
    result = run_protocol(given.replace(ema=0.5), six, device="cpu")
    assert len(result.trials) == 2 and not any("at once" in str(note) for note in result.notes)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Let the validation passes of a training have these losses."""

    def with_losses(losses: list[float]) -> None:
        validated, given = train_module.val_pass, iter(losses)
        monkeypatch.setattr(
            train_module, "val_pass", lambda *arguments: replace(validated(*arguments), loss=next(given))
        )

    return with_losses


@pytest.mark.parametrize(
    ("losses", "patience", "epochs"),
    [
        ([0.9, 0.8, 0.9, 0.8, 0.7], 2, 4),
        ([0.9, 0.8, 0.9, 0.7, 0.8, 0.8], 2, 6),
        ([0.9, 0.8, 0.7, 0.6, 0.5], 1, 5),
        ([0.9, 0.9], 1, 2),
        ([0.9, 1.0, 1.0, 1.0], 3, 4),
        ([0.9, 1.0, 1.0, 1.0, 1.0], 0, 5),
    ],
    ids=str,
)
def test_a_training_ends_early(
    six: tl.Splits, judged: Callable[[list[float]], None], losses: list[float], patience: int, epochs: int
) -> None:
    """It ends after so many epochs without a loss below all before; an equal one is not lower."""
    judged([*losses, 0.1])
    result = train(config(regime="frozen", epochs=len(losses), early_stopping=patience), six)
    assert [row.val_loss for row in result.epochs] == losses[:epochs]
    assert result.last.epoch == epochs - 1
    notes = [str(note) for note in result.notes if "optimistic" in str(note)]
    told = "the validation images decided when the training ended, so its accuracies are optimistic, the last one too"
    assert notes == ([told] if patience else [])


def test_stages_that_did_not_join_in_time(six: tl.Splits, judged: Callable[[list[float]], None]) -> None:
    """Where a training ends before all stages have joined, its figures are of those that had."""
    judged([0.5, 0.4, 0.6])
    given = config(regime="gradual", epochs=6, early_stopping=1)
    result = train(given, six)
    assert len(result.epochs) == 3 and result.frozen_verified is True
    assert [period.first_epoch for period in result.periods] == [0, 1, 2]
    assert result.trainable_params == result.periods[-1].trainable_params < result.total_params
    assert any("2 of 5 joined the head" in str(note) for note in result.notes)


def test_only_protocol_fixed_ends_early() -> None:
    """The others promise that the validation images choose nothing; heads that train at once have no common end."""
    for protocol in ("tuned", "kfold"):
        with pytest.raises(
            tl.ConfigError, match=rf"^early_stopping=3: not read by protocol '{protocol}', only by fixed; leave it out$"
        ):
            config(protocol=protocol, learning_rate=1e-3, early_stopping=3)
    assert not trainable_at_once(config(regime="cached", early_stopping=3))


def test_a_record_that_ended_early(tmp_path: Path) -> None:
    """Its number of epochs follows from its losses, and the time of a whole training from that number."""
    whole = record("timm:a", "finetune", epochs=4, early_stopping=1)
    assert whole.result is not None
    rows = [row.replace(val_loss=loss) for row, loss in zip(whole.result.epochs, (0.9, 0.8, 0.8, 0.7), strict=True)]

    def of(count: int) -> Record:
        assert whole.result is not None
        seconds = sum((row.train_seconds or 0.0) + row.val_seconds for row in rows[:count])
        best = whole.result.best.replace(epoch=0)
        last = whole.result.last.replace(epoch=count - 1)
        given = {"epochs": tuple(rows[:count]), "best": best, "last": last, "training_seconds": seconds}
        return whole.replace(result=whole.result.replace(**given))

    manifest = write_run(tmp_path / "r", [of(3)]).manifest()
    assert contradiction(of(3), manifest) == ""
    assert contradiction(of(4), manifest) == "result.epochs has 4 epochs, and its losses end it after 3"
    assert contradiction(of(2), manifest) == "result.epochs has 2 epochs, and the cell has 4"
    (group,) = make_groups([("r", of(3))], {"r": TRUTH})
    assert group.seconds == pytest.approx(3 * of(3).result.epoch_seconds)


def test_the_final_training_is_as_long(tmp_path: Path) -> None:
    """It has no images left that could end it, so it takes as many epochs as the one that it repeats."""
    text = ONE_CELL + "[train]\nepochs = 5\nearly_stopping = 1\nlearning_rate = 1e-30\n"
    (tmp_path / "one.toml").write_text(text)
    grid = load_grid(str(tmp_path / "one.toml"))
    options = Options(name="x", weights="random", executor="inline", results=tmp_path / "results")
    worker, console = runner.executor_for(options), Console(record=True, width=200)
    sweep = runner.plan(grid, options, worker, console)
    list_cells(sweep, console)
    assert "up to 5 epochs" in console.export_text()
    (done,) = runner.execute(sweep, grid, options, worker, console).values()
    assert done.result is not None and len(done.result.epochs) == 2
    final = plan_final(sweep.run, worker, cell=done.cell_id, data=None, weights_dir=None, device=None, all_images=True)
    assert (final.cell.config.epochs, final.cell.config.early_stopping) == (2, 0)


def test_who_reads_the_settings() -> None:
    """Where they mean nothing they have their defaults, so a grid may set them for all regimes."""
    parts = {"finetune", "lp-ft", "gradual", "quantized-finetune", "last-block", "last-2", "last-3"}
    parts |= {"norm-only", "bias-only"}
    for name, value, readers in (
        ("freeze_bn", True, parts),
        ("layer_decay", 0.5, parts),
        ("ema", 0.9, set(TRAINING)),
        ("early_stopping", 3, set(TRAINING)),
    ):
        assert {
            regime for regime in REGIMES if getattr(config(regime=regime, **{name: value}), name) == value
        } == readers
        default = tl.TrainConfig.model_fields[name].default
        assert cell().id == cell(**{name: default}).id != cell(**{name: value}).id
    for setting in ({"ema": 0.9}, {"early_stopping": 3}):  # regimes that read these compare only where they are equal
        ours, theirs = cell(**setting), cell(regime="frozen", **setting)
        assert all_else(ours, "frozen") == all_else(theirs, "finetune")
        assert all_else(ours, "frozen") != all_else(cell(regime="frozen"), "finetune")
        assert all_else(ours, "knn") == all_else(cell(regime="knn"), "finetune")
    for setting in ({"layer_decay": 0.5}, {"freeze_bn": True}):
        assert all_else(cell(**setting), "frozen") == all_else(cell(regime="frozen"), "finetune")
    for setting in ({"layer_decay": 0.5}, {"freeze_bn": True}, {"checkpointing": True}):
        ours, plain = cell(**setting), cell()
        for other in ("lp-ft", "last-block", "gradual"):  # they read it too, so it must be the same
            assert (
                all_else(cell(regime=other, **setting), "finetune") == all_else(ours, other) != all_else(plain, other)
            )
        assert all_else(ours, "frozen") == all_else(plain, "frozen")
    for name, wrong in (("layer_decay", 0.0), ("layer_decay", 1.1), ("layer_decay", float("nan")), ("ema", 1.0)):
        with pytest.raises(tl.ConfigError, match=name):
            config(**{name: wrong})


def test_claims_and_pairs_compare_the_same_cells() -> None:
    """Where some cells have settings of their own: what both regimes read is equal, and the first such cell counts."""
    claim = Claim(name="x", statement="x", metric="epoch_seconds", regime="*", low=1.0)
    given: list[tuple[str, dict[str, Any]]] = [
        ("finetune", {}),
        ("frozen", {}),
        ("last-block", {}),
        ("finetune", {"layer_decay": 0.5}),
        ("last-block", {"layer_decay": 0.5}),
        ("last-2", {"layer_decay": 0.3}),
    ]
    records = [record("timm:a", regime, seed=seed, **settings) for seed in range(3) for regime, settings in given]
    findings = decide_claims({"r": [claim]}, make_groups([("r", one) for one in records], {"r": TRUTH}))
    compared = {(one.group.cell, one.against.cell) for one in findings}
    paired = {(cell, first) for first, *others in pairings([one.cell for one in records], [claim]) for cell in others}
    assert compared == paired
    decays = {(one.config.regime, one.config.layer_decay): other.config.layer_decay for one, other in compared}
    assert decays == {("frozen", 1.0): 1.0, ("last-block", 1.0): 1.0, ("last-block", 0.5): 0.5}


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"freeze_bn": True}, "BatchNorm layers stay frozen where a pretrained backbone trains"),
        (
            {"early_stopping": 1},
            "a training ends when 1 epoch in a row had no lower validation loss: the validation images choose the "
            "number of epochs, so accuracy after the last one is optimistic, too",
        ),
        ({"ema": 0.98}, "what is validated and kept are moving averages of the weights, with a decay of 0.98"),
        ({"layer_decay": 0.75}, "each stage of a pretrained backbone has 0.75 times the rate of the one after it"),
    ],
)
def test_the_report_has_the_settings(tmp_path: Any, setting: dict[str, Any], text: str) -> None:
    manifest = write_run(tmp_path / "r", [record("timm:a", "finetune")]).manifest()
    told = settings(manifest.replace(protocol={**manifest.protocol, **setting}))
    assert told == f"{settings(manifest)}; {text}"
