"""Heads that are trained at once, against `train_model`, which trains each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tl
from tests.conftest import TINY
from tests.weights import published
from tl import heads as heads_module
from tl.backbones import HEAD_BUILDERS
from tl.choice import Choice
from tl.config import HEADS, OPTIMIZERS, SCHEDULES
from tl.folds import tuning_splits
from tl.heads import TrainedHead, train_heads, trainable_at_once
from tl.optimizers import OPTIMIZER_BUILDERS, joined
from tl.protocols import run_protocol
from tl.results import MEASURED_PHASES
from tl.tasks import TASKS

ABSURD = 3e38
"""A learning rate at which the first update overflows."""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tests of this module share their features, and find those of no other test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TL_CACHE", str(tmp_path_factory.mktemp("heads") / "cache"))
        yield


@pytest.fixture(scope="module")
def weights_dir() -> Path:
    """Weights that don't depend on the seed."""
    return published()


def config(**settings: Any) -> tl.TrainConfig:
    given = {"backbone": TINY[1], "regime": "cached", "weights": "pretrained", "epochs": 4, "step_size": 2}
    return tl.TrainConfig(**{**given, **settings})


def several(**settings: Any) -> list[tl.TrainConfig]:
    """Two heads share a seed, two a rate."""
    pairs = [(0, 1e-3), (1, 1e-2), (0, 1e-2)]
    return [config(seed=seed, learning_rate=rate, **settings) for seed, rate in pairs]


def check_equal(one: TrainedHead, alone: tl.TrainResult) -> None:
    """Its figures are those of the training alone, up to rounding."""
    assert one.diverged is None and len(one.epochs) == len(alone.epochs)
    for row, expected in zip(one.epochs, alone.epochs, strict=True):
        assert (row.epoch, row.learning_rate) == (expected.epoch, expected.learning_rate)
        assert (row.train_accuracy, row.val_accuracy) == (expected.train_accuracy, expected.val_accuracy)
        assert row.train_loss == pytest.approx(expected.train_loss, rel=1e-6, abs=2e-7)
        assert row.val_loss == pytest.approx(expected.val_loss, rel=1e-6, abs=2e-7)
    state = alone.model.head.state_dict()
    for name, value in one.head.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-5)


def compare(splits: tl.Splits, configs: list[tl.TrainConfig], weights_dir: Path) -> None:
    found = train_heads(configs, splits, device="cpu", weights_dir=weights_dir)
    assert [one.config for one in found] == configs
    losses = set()
    for one in found:
        alone = tl.train_model(one.config, splits, device="cpu", weights_dir=weights_dir, keep="last")
        check_equal(one, alone)
        losses.add(round(one.epochs[-1].val_loss, 5))
    assert len(losses) == len(configs), "heads differ, so a head that trained as another would be found"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", TASKS["classification"].losses)
def test_each_head_is_trained_as_if_alone(
    mini: tl.Splits, weights_dir: Path, head: str, optimizer: str, loss: str
) -> None:
    """With weight decay and label smoothing, and crops that take turns."""
    settings = {"weight_decay": 0.01, "label_smoothing": 0.1, "views": 2}
    compare(mini, several(head=head, optimizer=optimizer, loss=loss, **settings), weights_dir)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("batch_size", [5, 23])
def test_batches_and_rates_are_those_of_a_training_alone(
    mini: tl.Splits, weights_dir: Path, schedule: str, batch_size: int
) -> None:
    """Of 24 images 23 leave one over, which joins the batch before."""
    compare(mini, several(schedule=schedule, batch_size=batch_size), weights_dir)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_joined_optimisers_go_on_where_they_were(optimizer: str) -> None:
    """Each parameter keeps its momentum and its rate."""

    def made() -> tuple[list[nn.Parameter], list[torch.optim.Optimizer]]:
        parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
        optimizers = []
        for parameter, rate in zip(parameters, (1e-2, 1e-1), strict=True):
            optimizers.append(OPTIMIZER_BUILDERS[optimizer](config(learning_rate=rate), [parameter]))
            parameter.grad = torch.full((3,), rate)
            optimizers[-1].step()
            parameter.grad = torch.full((3,), -2 * rate)
        return parameters, optimizers

    (apart, own), (together, others) = made(), made()
    for one in own:
        one.step()
    joined(others).step()
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))
    assert not torch.equal(apart[0], apart[1])


def test_times_are_equal_shares(mini: tl.Splits, weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four heads take an epoch of 4 s: each has 1 s, its phases included."""

    class Fixed(heads_module.Clock):
        """Says what an epoch took without having measured it."""

        def elapsed(self) -> float:
            return 2.0

        def read(self) -> tuple[float, dict[str, float]]:
            return 4.0, {**dict.fromkeys(MEASURED_PHASES, 0.0), "forward": 1.0, "backward": 0.5, "validation": 2.0}

    monkeypatch.setattr(heads_module, "Clock", Fixed)
    seen: list[tl.EpochResult] = []
    configs = [config(learning_rate=rate, epochs=2) for rate in (1e-3, 2e-3, 3e-3, 4e-3)]
    found = train_heads(configs, mini, device="cpu", weights_dir=weights_dir, on_epoch=seen.append)
    assert seen == [one.epochs[epoch] for epoch in range(2) for one in found]
    for row in seen:
        assert (row.train_seconds, row.val_seconds) == (0.5, 0.5)
        phases = row.phases.model_dump()
        assert (phases["forward"], phases["validation"], phases["other"]) == (0.25, 0.5, 0.125)
        assert sum(phases.values()) == row.seconds


@pytest.mark.parametrize("rate", [3e37, ABSURD])
def test_a_head_that_diverges_says_so_and_leaves_the_others_alone(
    mini: tl.Splits, weights_dir: Path, rate: float
) -> None:
    """The others are the same to the last bit as beside a head that doesn't diverge."""
    seen: list[tl.EpochResult] = []

    def beside(other: float) -> list[TrainedHead]:
        configs = [config(learning_rate=one) for one in (1e-3, other, 1e-2)]
        return train_heads(configs, mini, device="cpu", weights_dir=weights_dir, on_epoch=seen.append)

    calm = beside(2e-3)
    seen.clear()
    wild = beside(rate)
    with pytest.raises(tl.DivergedError) as alone:
        tl.train_model(config(learning_rate=rate), mini, device="cpu", weights_dir=weights_dir)
    assert str(wild[1].diverged) == str(alone.value)
    assert len(wild[1].epochs) == len(alone.value.epochs) == len(wild[1].diverged.epochs)
    assert len(seen) == 8 + len(wild[1].epochs)
    for one, other in ((calm[0], wild[0]), (calm[2], wild[2])):
        assert [(r.train_loss, r.val_loss) for r in one.epochs] == [(r.train_loss, r.val_loss) for r in other.epochs]
        assert all(torch.equal(a, b) for a, b in zip(one.head.parameters(), other.head.parameters(), strict=True))


def test_nothing_is_trained_when_all_have_diverged(
    mini: tl.Splits, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epochs that are left would only take time."""
    epochs: list[int] = []
    original = heads_module._Together.run

    def run(self: Any, epoch: int, on_epoch: Any) -> None:
        epochs.append(epoch)
        original(self, epoch, on_epoch)

    monkeypatch.setattr(heads_module._Together, "run", run)
    configs = [config(learning_rate=rate) for rate in (ABSURD / 2, ABSURD)]
    found = train_heads(configs, mini, device="cpu", weights_dir=weights_dir)
    assert epochs == [0] and all(one.diverged and not one.epochs for one in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 5}, "may differ in nothing but seed and learning_rate"),
        ({"regime": "frozen"}, "regime='frozen'.*train_model trains one"),
        ({"precision": "bf16"}, "precision='bf16'.*train_model trains one"),
        ({"seed": 1, "weights": "random"}, "different seeds need pretrained weights"),
    ],
)
def test_what_can_not_be_trained_at_once_is_refused(mini: tl.Splits, change: dict[str, Any], message: str) -> None:
    """The first differs from its neighbour alone; the others are wrong in themselves."""
    base = config(weights="random")
    others = {name: value for name, value in change.items() if name not in ("epochs", "seed")}
    with pytest.raises(tl.ConfigError, match=message):
        train_heads([base.replace(**others), base.replace(**change)], mini, device="cpu")


def test_unknown_layers_are_trained_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout would draw other random numbers in a batch of heads, and a layer without bias has no such product."""
    assert all(trainable_at_once(config(head=head)) for head in HEADS)
    for odd in (
        lambda width, classes: nn.Sequential(nn.Linear(width, classes), nn.Dropout()),
        lambda width, classes: nn.Linear(width, classes, bias=False),
    ):
        monkeypatch.setitem(HEAD_BUILDERS, "linear", odd)
        assert not trainable_at_once(config())


RATES = (1e-3, 3e-2, ABSURD)


def test_tuned_tries_all_rates_at_once(mini: tl.Splits, weights_dir: Path) -> None:
    """Trials and choice are those of one training after the other; the final training is `train_model`'s."""
    stages: list[str] = []
    epochs: list[tl.EpochResult] = []
    settings = config(protocol="tuned", learning_rates=RATES)
    result = run_protocol(
        settings, mini, device="cpu", weights_dir=weights_dir, on_stage=stages.append, on_epoch=epochs.append
    )
    assert stages == ["tuning 3 rates at once", f"training at {result.learning_rate_chosen:g}"]
    assert len(epochs) == 3 * settings.epochs, "two rates that don't diverge, and the final training"
    for trial, rate in zip(result.trials[:2], RATES, strict=False):
        alone = tl.train_model(
            config(learning_rate=rate), tuning_splits(mini), device="cpu", weights_dir=weights_dir
        ).epochs[-1]
        assert (trial.learning_rate, trial.reason) == (rate, "")
        assert trial.held_out_accuracy == alone.val_accuracy
        assert trial.held_out_loss == pytest.approx(alone.val_loss, rel=1e-6)
    wild = result.trials[2]
    assert (wild.held_out_accuracy, wild.held_out_loss) == (None, None)
    assert wild.reason.startswith("the training loss was") and wild.reason.endswith("at learning rate 3e+38")
    assert len({trial.seconds for trial in result.trials}) == 1
    assert sum(trial.seconds for trial in result.trials) == result.tuning_seconds
    assert any("tried at once" in note.text for note in result.notes)
    final = tl.train_model(
        config(learning_rate=result.learning_rate_chosen), mini, device="cpu", weights_dir=weights_dir
    )
    assert [row.val_loss for row in result.epochs] == [row.val_loss for row in final.epochs]


@pytest.mark.parametrize("settings", [{"regime": "frozen"}, {"precision": "bf16"}])
def test_other_trials_run_one_after_the_other(mini: tl.Splits, settings: dict[str, str]) -> None:
    """Their times are their own."""
    stages: list[str] = []
    tuned = config(protocol="tuned", learning_rates=RATES[:2], weights="random", epochs=1, **settings)
    result = run_protocol(tuned, mini, device="cpu", on_stage=stages.append)
    assert stages[:2] == ["tuning 1/2", "tuning 2/2"]
    assert not any("at once" in note.text for note in result.notes)


@pytest.mark.parametrize(("precision", "stage"), [("fp32", "tuning 2 rates at once"), ("bf16", "tuning 1/2")])
def test_a_precision_left_open_is_chosen_first(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str, stage: str
) -> None:
    """What is chosen decides whether the rates are tried at once."""
    choice = Choice(precision=precision, memory_format="contiguous", reason="a test says so")
    monkeypatch.setattr("tl.choice._measured", lambda *_: (choice, True))
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    stages: list[str] = []
    tuned = config(protocol="tuned", learning_rates=RATES[:2], weights="random", epochs=1, precision="auto")
    result = run_protocol(tuned, mini, device="cpu", on_stage=stages.append)
    assert stages[0] == stage and result.precision == precision


def test_all_rates_may_diverge(mini: tl.Splits, weights_dir: Path) -> None:
    """The error is that of one training after the other."""
    settings = config(protocol="tuned", learning_rates=(ABSURD / 2, ABSURD))
    with pytest.raises(tl.DivergedError, match=r"all 2 learning rates diverged; the smallest: the training loss was"):
        run_protocol(settings, mini, device="cpu", weights_dir=weights_dir)
