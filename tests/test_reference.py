"""Tests of `train_model` against a plain loop, as a reader of the tutorial would write it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import tl
from tl.backbones import Classifier, make_backbone
from tl.batches import Batches
from tl.config import EXECUTIONS
from tl.datasets import ImageList
from tl.images import open_store
from tl.prepare import WAYS

EPOCHS = 2
WEIGHTS = {"timm:test_resnet": "random", "timm:tf_efficientnet_lite0": "pretrained"}


def plain_loop(
    config: tl.TrainConfig,
    splits: tl.Splits,
    *,
    only_head: bool = False,
    only: tuple[str, ...] = (),
    head: nn.Module | None = None,
) -> tuple[list[dict[str, float]], nn.Module]:
    """Train with the tutorial's loop: `.item()` after every batch, and small validation batches.

    With `only` these modules are in the optimiser, and in train mode while all others are in eval mode. With `head` it
    begins with that head.
    """
    backbone = make_backbone(config.backbone, weights=config.weights, seed=config.seed)
    model = Classifier(backbone, len(splits.classes), config).to(memory_format=torch.channels_last)
    if head:
        model.head.load_state_dict(head.state_dict())
    if only_head:
        for parameter in model.backbone.parameters():
            parameter.requires_grad = False
    store = open_store(splits)
    train = Batches(store, splits.train, backbone.preprocessing, torch.device("cpu"))
    val = Batches(store, splits.val, backbone.preprocessing, torch.device("cpu"))
    trained = [model.get_submodule(name) for name in only] or [model.head if only_head else model]
    parameters = [parameter for module in trained for parameter in module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=config.learning_rate, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    criterion = nn.CrossEntropyLoss()
    rows, best, best_state = [], 0.0, copy.deepcopy(model.state_dict())
    for epoch in range(config.epochs):
        row = {}
        for phase in ("train", "val"):
            model.train(phase == "train" and not only)
            for name in only:
                model.get_submodule(name).train(phase == "train")
            loss_sum, correct, seen = 0.0, 0, 0
            batches = train.training(4, seed=config.seed, epoch=epoch) if phase == "train" else val.evaluation(4)
            for images, labels in batches:
                images = images.contiguous(memory_format=torch.channels_last)
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    logits = model(images)
                    loss = criterion(logits, labels)
                if phase == "train":
                    loss.backward()
                    optimizer.step()
                loss_sum += loss.item() * len(labels)
                correct += int((logits.argmax(1) == labels).sum())
                seen += len(labels)
            row[f"{phase}_loss"], row[f"{phase}_accuracy"] = loss_sum / seen, correct / seen
        scheduler.step()
        rows.append(row)
        if row["val_accuracy"] > best:
            best, best_state = row["val_accuracy"], copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    return rows, model


def every(step: int, images: ImageList) -> ImageList:
    return ImageList(files=images.files[::step], labels=images.labels[::step])


class DoubleClassifier(Classifier):
    """The same network in double precision."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.double()
        self.backbone.register_forward_pre_hook(lambda _, images: (images[0].double(),))


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("backbone", WEIGHTS)
@pytest.mark.parametrize("regime", ["finetune", "frozen-tutorial"])
def test_same_losses_and_weights_as_a_plain_loop(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, regime: str, backbone: str, execution: str
) -> None:
    """With the same weights, batches and order both give the same numbers, in double precision, in every execution.

    Two epochs of BatchNorm on batches of four magnify a change of the weights by 1e-7 to one of the losses by 1e-3. In
    single precision that hides mistakes, and a sum taken in another order, as an array's place in memory decides, looks
    like one.
    """
    for module in (__name__, "tl.prepare"):
        monkeypatch.setattr(f"{module}.Classifier", DoubleClassifier)
    monkeypatch.setitem(WAYS, execution, replace(WAYS[execution], images=WAYS["fast"].images))
    config = tl.TrainConfig(
        backbone=backbone, regime=regime, epochs=EPOCHS, weights=WEIGHTS[backbone], execution=execution
    )
    few = replace(mini, train=every(4, mini.train), val=every(3, mini.val))  # the last batch holds two
    expected, reference = plain_loop(config, few, only_head=regime == "frozen-tutorial")
    result = tl.train_model(config, few, device="cpu")
    assert len(result.epochs) == EPOCHS
    for row, wanted in zip(result.epochs, expected, strict=True):
        for name, value in wanted.items():
            assert getattr(row, name) == pytest.approx(value, rel=1e-6), name  # its sum is in single precision
    trained = result.model.state_dict()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("backbone", WEIGHTS)
def test_the_memory_layout_changes_rounding_only(mini: tl.Splits, backbone: str) -> None:
    """In double precision, in which rounding can't hide a mistake, both layouts give the same gradients."""
    made = make_backbone(backbone, weights=WEIGHTS[backbone])
    config = tl.TrainConfig(backbone=backbone)
    train = Batches(open_store(mini), mini.train, made.preprocessing, torch.device("cpu"))
    images, labels = next(train.training(4, seed=0, epoch=0))
    gradients = []
    for layout in (torch.channels_last, torch.contiguous_format):
        model = (
            Classifier(make_backbone(backbone, weights=WEIGHTS[backbone]), 2, config)
            .double()
            .to(memory_format=layout)
            .train()
        )
        nn.functional.cross_entropy(model(images.double().contiguous(memory_format=layout)), labels).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
