"""The contract that every regime keeps, on a network of each source."""

from __future__ import annotations

import copy

import pytest
import torch

import tl
from tests.conftest import TINY
from tl.backbones import make_backbone
from tl.batches import Batches
from tl.images import open_store
from tl.regimes import REGIMES


def train(splits: tl.Splits, regime: str, backbone: str = TINY[1], **settings: object) -> tl.TrainResult:
    config = tl.TrainConfig(backbone=backbone, regime=regime, epochs=2, weights="random", **settings)
    return tl.train_model(config, splits, device="cpu")


def changed(result: tl.TrainResult) -> tuple[bool, bool]:
    """Whether parameters, and whether buffers, of the backbone differ from a fresh one's."""
    fresh = make_backbone(result.config.backbone, weights="random", seed=result.config.seed).module
    trained = result.model.backbone
    parameters = any(not torch.equal(a, b) for a, b in zip(fresh.parameters(), trained.parameters(), strict=True))
    buffers = any(not torch.equal(a, b) for a, b in zip(fresh.buffers(), trained.buffers(), strict=True))
    return parameters, buffers


@pytest.mark.parametrize("backbone", TINY)
@pytest.mark.parametrize("regime", REGIMES)
def test_contract(mini: tl.Splits, regime: str, backbone: str) -> None:
    """What changes is what the regime says; history, predictions and the returned model agree."""
    result = train(mini, regime, backbone)
    entry = REGIMES[regime]
    assert changed(result) == (entry.trains_backbone, entry.backbone_mode == "train")
    assert result.frozen_verified is (True if entry.must_stay_frozen else None)
    head = sum(p.numel() for p in result.model.head.parameters())
    assert result.trainable_params == (result.total_params if entry.trains_backbone else head)
    assert [row.epoch for row in result.epochs] == [0, 1]
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
    """Planted bug: the whole model in train mode, so that BatchNorm statistics of a `frozen` backbone move."""
    monkeypatch.setattr("tl.train.set_mode", lambda model, regime: model.train())
    assert train(mini, "frozen").frozen_verified is False


def test_frozen_features_carry_no_graph(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is recorded for a backward pass through a frozen backbone."""
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
    """For one seed, images, crops, flips and order are the same in every regime; another seed differs."""
    shown: dict[str, list[torch.Tensor]] = {}

    def watch(name: str, regime: str, seed: int) -> None:
        original = Batches.training

        def training(self: Batches, batch_size: int, *, seed: int, epoch: int):
            for images, labels in original(self, batch_size, seed=seed, epoch=epoch):
                shown.setdefault(name, []).append(images.clone())
                yield images, labels

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Batches, "training", training)
            train(mini, regime, seed=seed)

    for regime in REGIMES:
        watch(regime, regime, 0)
    watch("other seed", "frozen", 1)
    first = shown["finetune"]
    for regime in REGIMES:
        assert len(shown[regime]) == len(first)
        assert all(torch.equal(a, b) for a, b in zip(shown[regime], first, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(shown["other seed"], first, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first[:6], first[6:], strict=True)), "epochs differ"


def test_same_seed_same_result(mini: tl.Splits) -> None:
    """Two calls agree in every number but the times, and leave the caller's random state alone."""
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second = train(mini, "finetune"), train(mini, "finetune")
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.epochs, second.epochs, strict=True):
        assert (a.train_loss, a.val_loss, a.val_accuracy) == (b.train_loss, b.val_loss, b.val_accuracy)
    assert first.best == second.best


def test_ties_keep_the_earliest_epoch(mini: tl.Splits) -> None:
    """With a learning rate that changes nothing every epoch ties, and the first one stays the best."""
    result = train(mini, "frozen", learning_rate=1e-12)
    assert result.epochs[0].val_accuracy == result.epochs[1].val_accuracy
    assert result.best.epoch == 0


def test_best_weights_are_a_copy(mini: tl.Splits) -> None:
    """The best epoch's weights come back even though training went on and made them worse."""
    config = tl.TrainConfig(backbone=TINY[1], regime="frozen", weights="random", epochs=1, schedule="constant")
    short = tl.train_model(config, mini, device="cpu")
    longer = tl.train_model(config.replace(epochs=4), mini, device="cpu")
    if longer.best.epoch == 0:
        assert torch.equal(longer.model.head.weight, short.model.head.weight)
    else:
        again = tl.train_model(config.replace(epochs=longer.best.epoch + 1), mini, device="cpu")
        assert torch.equal(longer.model.head.weight, again.model.head.weight)


def test_bf16_runs_close_to_fp32(mini: tl.Splits) -> None:
    """The precision setting changes the arithmetic, a little."""
    plain, short = train(mini, "finetune"), train(mini, "finetune", precision="bf16")
    a, b = plain.epochs[0].train_loss, short.epochs[0].train_loss
    assert a is not None and b is not None
    assert a != b
    assert a == pytest.approx(b, rel=0.05)


@pytest.mark.parametrize(
    "settings",
    [{"optimizer": "adamw"}, {"schedule": "cosine"}, {"schedule": "constant"}, {"loss": "focal"}, {"head": "mlp"}],
    ids=str,
)
def test_settings_change_what_they_name(mini: tl.Splits, settings: dict[str, str]) -> None:
    """Every optimiser, schedule, loss and head trains, and differs from the default."""
    default, other = train(mini, "frozen"), train(mini, "frozen", **settings)
    assert all(row.train_loss is not None for row in other.epochs)
    if "schedule" in settings:
        rates = [row.learning_rate for row in other.epochs]
        assert rates == pytest.approx({"cosine": [1e-3, 5e-4], "constant": [1e-3, 1e-3]}[settings["schedule"]])
    else:
        assert [r.train_loss for r in default.epochs] != [r.train_loss for r in other.epochs]


def test_step_schedule_falls_after_seven_epochs(mini: tl.Splits) -> None:
    """StepLR(7, 0.1), as in the tutorial."""
    config = tl.TrainConfig(backbone=TINY[1], regime="frozen", weights="random", epochs=8)
    rates = [row.learning_rate for row in tl.train_model(config, mini, device="cpu").epochs]
    assert rates == pytest.approx([1e-3] * 7 + [1e-4])


def test_more_than_two_classes_and_a_lonely_last_image(tmp_path) -> None:
    """Three classes; nine images at batch 4 leave one, which joins the batch before: none is lost."""
    from tests.images import write_folder

    splits = tl.load_splits(write_folder(tmp_path / "set", ("a", "b", "c"), train=3, val=1))
    result = train(splits, "finetune")
    assert result.classes == ("a", "b", "c")
    assert result.model.head.out_features == 3
    assert any("leave one over" in note for note in result.notes)


def test_a_diverging_loss_is_unknown_not_nan(mini: tl.Splits) -> None:
    """A loss that overflows is None in the record, with a note, so that the record stays valid JSON."""
    result = train(mini, "finetune", learning_rate=1e30)
    assert result.epochs[-1].train_loss is None
    assert any("not finite" in note for note in result.notes)
    assert "NaN" not in copy.copy(result).model_dump_json()
