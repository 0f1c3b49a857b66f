"""The setting `class_weights`, against torch's own weighted loss."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tl
from bench.analysis.groups import all_else
from bench.store.records import Cell
from tests.commands import ONE_CELL
from tests.commands import here as command
from tests.conftest import TINY
from tests.test_heads import compare, several
from tests.weights import TRAINING, published
from tl.datasets import ImageList
from tl.optimizers import LOSS_BUILDERS, class_weights
from tl.prepare import check_execution
from tl.protocols import run_protocol
from tl.tasks import TASKS

BALANCED = {"class_weights": "balanced"}


def unequal(splits: tl.Splits) -> tl.Splits:
    """The images without three quarters of the first class's training images."""
    first = [place for place, label in enumerate(splits.train.labels) if label == 0]
    gone = set(first[: 3 * len(first) // 4])
    kept = [place for place in range(len(splits.train)) if place not in gone]
    train = ImageList(
        files=tuple(splits.train.files[place] for place in kept),
        labels=tuple(splits.train.labels[place] for place in kept),
    )
    return replace(splits, train=train, digest=f"unequal {splits.digest}"[:64])


def test_the_weights_are_their_formula() -> None:
    """n / (k n_c): together they count as much as the images; a class without images leaves the loss finite."""
    config = tl.TrainConfig(backbone="x", **BALANCED)
    labels = [0] * 6 + [1] * 3 + [2]
    found = class_weights(config, labels, 3)
    torch.testing.assert_close(found, torch.tensor([10 / 18, 10 / 9, 10 / 3]))
    assert sum(found[label] for label in labels) == pytest.approx(len(labels))
    assert class_weights(config, [0, 1, 1], 3).isfinite().all()
    assert class_weights(tl.TrainConfig(backbone="x"), labels, 3) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs_own(smoothing: float) -> None:
    """Its mean is over the weights of a batch's labels, and its gradient is that of `CrossEntropyLoss`."""
    torch.manual_seed(0)
    labels, weight = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([0.5, 2.0, 1.0])
    config = tl.TrainConfig(backbone="x", label_smoothing=smoothing, **BALANCED)
    logits = [torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    ours = LOSS_BUILDERS["cross_entropy"](config, weight)(logits[0], labels)
    theirs = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)(logits[1], labels)
    ours.backward()
    theirs.backward()
    assert torch.equal(ours, theirs) and torch.equal(logits[0].grad, logits[1].grad)
    if not smoothing:
        each = -logits[0].detach().log_softmax(1)[range(6), labels] * weight[labels]
        torch.testing.assert_close(ours.detach(), each.sum() / weight[labels].sum())
        focal = LOSS_BUILDERS["focal"](config, weight)(logits[0].detach(), labels)
        p = logits[0].detach().softmax(1)[range(6), labels]
        torch.testing.assert_close(focal, ((1 - p) ** 2 * each).sum() / weight[labels].sum())


@pytest.mark.parametrize("loss", TASKS["classification"].losses)
def test_equal_weights_are_no_weights(loss: str) -> None:
    """With as many images of each class nothing changes, up to rounding."""
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    config = tl.TrainConfig(backbone="x", label_smoothing=0.1)
    plain, weighted = (LOSS_BUILDERS[loss](config, weight) for weight in (None, torch.ones(3)))
    torch.testing.assert_close(plain(logits, labels), weighted(logits, labels))


class Spy:
    """Stands for the loss; keeps what it was given, and checks it against torch's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights: list[torch.Tensor | None] = []
        self.steps: list[tuple[float, int, bool]] = []
        """Loss, number of images, and whether gradients were on."""
        original = LOSS_BUILDERS["cross_entropy"]

        def build(config: tl.TrainConfig, weight: torch.Tensor | None) -> Any:
            self.weights.append(weight)
            expected = nn.CrossEntropyLoss(weight=weight, label_smoothing=config.label_smoothing)
            inner = original(config, weight)

            def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
                found = inner(logits, labels)
                assert torch.equal(found, expected(logits, labels))
                self.steps.append((float(found.detach()), len(labels), found.requires_grad))
                return found

            return loss

        monkeypatch.setitem(LOSS_BUILDERS, "cross_entropy", build)


def expected_weights(splits: tl.Splits) -> torch.Tensor:
    counts = Counter(splits.train.labels)
    n, k = len(splits.train), len(splits.classes)
    return torch.tensor([n / (k * counts[label]) for label in range(k)])


def trains(regime: str, execution: str) -> bool:
    try:
        check_execution(execution, regime, "fp32")
    except tl.NotApplicable:
        return False
    return True


LOOPS = [
    (regime, execution)
    for regime in ("finetune", "frozen", "frozen-tutorial", "cached", "scratch")
    for execution in ("fast", "plain")
    if trains(regime, execution)
]


@pytest.mark.parametrize(("regime", "execution"), LOOPS)
def test_every_loop_trains_with_them(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, regime: str, execution: str
) -> None:
    """Each epoch's losses are the means of its batches' weighted means, weighted by their images."""
    splits, spy = unequal(mini), Spy(monkeypatch)
    config = tl.TrainConfig(
        backbone=TINY[1],
        regime=regime,
        execution=execution,
        weights="random",
        epochs=1,
        batch_size=5,
        label_smoothing=0.1,
        **BALANCED,
    )
    (row,) = tl.train_model(config, splits, device="cpu").epochs
    torch.testing.assert_close(spy.weights[-1], expected_weights(splits))
    trained = [(loss, n) for loss, n, gradients in spy.steps if gradients][-_steps(len(splits.train), 5) :]
    assert sum(n for _, n in trained) == len(splits.train)
    assert row.train_loss == pytest.approx(sum(loss * n for loss, n in trained) / len(splits.train), rel=1e-5)
    validated = [(loss, n) for loss, n, gradients in spy.steps if not gradients]
    done, images = [], 0
    for loss, n in reversed(validated):
        if images == len(splits.val):
            break
        done.append(loss * n)
        images += n
    assert row.val_loss == pytest.approx(sum(done) / len(splits.val), rel=1e-5)


def _steps(images: int, batch: int) -> int:
    """Number of steps of an epoch: a last batch of one image joins the one before."""
    return images // batch + (images % batch > 1)


def test_it_changes_what_is_trained(mini: tl.Splits) -> None:
    """The rare class gets a higher probability than without."""
    splits = unequal(mini)
    common = {"backbone": TINY[1], "regime": "cached", "weights": "pretrained", "epochs": 3, "learning_rate": 1e-2}
    shares = []
    for setting in ("none", "balanced"):
        config = tl.TrainConfig(**common, class_weights=setting)
        result = tl.train_model(config, splits, device="cpu", weights_dir=published())
        said = zip(result.last.labels, result.last.confidences, strict=True)
        shares.append(sum(p if label == 0 else 1 - p for label, p in said) / len(splits.val))
    assert shares[0] + 0.05 < shares[1]


@pytest.mark.parametrize("loss", TASKS["classification"].losses)
def test_heads_trained_at_once_are_as_if_alone(mini: tl.Splits, loss: str) -> None:
    """Each has a weighted mean of its own in every step, since its images are others."""
    compare(unequal(mini), several(loss=loss, label_smoothing=0.1, batch_size=5, **BALANCED), published())


def test_a_part_of_the_images_has_its_own_weights(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """With folds each training counts its own images."""
    spy = Spy(monkeypatch)
    config = tl.TrainConfig(
        backbone=TINY[1], regime="frozen", weights="random", epochs=1, protocol="kfold", folds=3, **BALANCED
    )
    run_protocol(config, unequal(mini), device="cpu")
    made = {tuple(weight.tolist()) for weight in spy.weights if weight is not None}
    assert len(made) > 1, "folds have other numbers of each class"


def cell(regime: str, **settings: Any) -> Cell:
    config = tl.TrainConfig(backbone="timm:a", regime=regime, weights="pretrained", **settings)
    return Cell(config=config, weights_digest="d" * 64, dataset_digest="0" * 64, device="cpu")


def test_ids_and_comparisons() -> None:
    """The default changes no id; regimes compare only with equal weights, unless one of them doesn't read them."""
    assert cell("frozen").id == cell("frozen", class_weights="none").id != cell("frozen", **BALANCED).id
    assert cell("zeroshot", **BALANCED) == cell("zeroshot")
    both = cell("frozen", **BALANCED), cell("finetune", **BALANCED)
    assert all_else(both[0], "finetune") == all_else(both[1], "frozen")
    assert all_else(both[0], "finetune") != all_else(cell("finetune"), "frozen")
    assert all_else(cell("zeroshot"), "finetune") == all_else(both[1], "zeroshot")


@pytest.mark.parametrize("regime", TRAINING)
def test_regimes_that_train_read_it(regime: str) -> None:
    assert tl.TrainConfig(backbone="x", regime=regime, **BALANCED).class_weights == "balanced"
    assert tl.TrainConfig(backbone="x", regime="zeroshot", **BALANCED).class_weights == "none"


def test_on_the_command_line(mini: tl.Splits, tmp_path: Path) -> None:
    """`--set` takes it; the cell's name, the record and the report have it, and a wrong value is told what is right."""
    Path("one.toml").write_text(ONE_CELL + "[train]\nepochs = 1\n")
    words = ("run", "--grid", "one.toml", "--weights", "random", "--no-images")
    done = command(*words, "--set", "class_weights=balanced")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "class_weights=balanced" in done.stdout
    (report,) = Path("reports").glob("*.md")
    assert "cross_entropy with balanced class weights, head linear" in report.read_text()
    wrong = command(*words, "--set", "class_weights=balance")
    assert wrong.returncode == 2 and "did you mean 'balanced'" in wrong.stderr and wrong.stderr.count("\n") == 1
