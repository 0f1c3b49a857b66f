"""Tests of the control that trains nothing: a network's own ImageNet classifier for a data set's classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

import tl
from tests.conftest import TINY
from tests.images import write_folder
from tests.weights import network, published
from tl.backbones import Classifier, make_backbone
from tl.batches import Batches
from tl.imagenet import INDEX
from tl.images import open_store

ZEROSHOT = tl.TrainConfig(backbone=TINY[1], regime="zeroshot", weights="pretrained", epochs=3)


def test_the_classes_are_imagenets() -> None:
    """The table agrees with the names of classes in torchvision's weights."""
    names = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert {ours: names[index] for ours, index in INDEX.items()} == {"ants": "ant", "bees": "bee"}


@pytest.mark.parametrize(
    "spec",
    [
        *TINY,
        "torchvision:mobilenet_v3_small",  # a hidden layer in its classifier
        "torchvision:densenet121",
        "torchvision:convnext_tiny",
        "timm:mobilenetv3_small_100",  # a `conv_head` after the pooling
        "timm:test_vit",
        "timm:test_convnext",
        "timm:dla46_c",  # its classifier is a convolution
    ],
)
def test_the_head_gives_the_logits_of_the_whole_network(tmp_path: Path, spec: str) -> None:
    """Logits of bees and ants, in that order, are the network's columns 309 and 310."""
    whole = network(spec)
    torch.save(whole.state_dict(), tmp_path / f"{spec.replace(':', '-')}.pth")
    state = torch.get_rng_state()
    made = make_backbone(spec, weights="pretrained", weights_dir=tmp_path, own_head_for=("bees", "ants"))
    assert torch.equal(torch.get_rng_state(), state)
    model = Classifier(made, 2, ZEROSHOT).eval()
    images = torch.randn(2, 3, made.preprocessing.size, made.preprocessing.size)
    with torch.inference_mode():
        expected, said = whole(images), model(images)
    torch.testing.assert_close(said, expected[:, [309, 310]], rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("spec", ["torchvision:squeezenet1_1", "timm:deit_tiny_distilled_patch16_224"])
def test_a_classifier_that_is_more_than_one_layer_is_refused(tmp_path: Path, spec: str) -> None:
    """One network has an activation after the last layer, the other averages two classifiers."""
    torch.save(network(spec).state_dict(), tmp_path / f"{spec.replace(':', '-')}.pth")
    with pytest.raises(tl.NotApplicable, match="is not one linear layer on pooled features"):
        make_backbone(spec, weights="pretrained", weights_dir=tmp_path, own_head_for=("ants", "bees"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:vit_tiny_patch16_224.augreg_in21k", "have 21843 outputs, where ImageNet-1k has 1000 classes"),
        ("timm:vit_small_patch16_224.dino", "have no classifier, where ImageNet-1k has 1000 classes"),
    ],
)
def test_weights_of_another_task_are_refused(tmp_path: Path, spec: str, message: str) -> None:
    """They are refused even if their file exists, since their rows 309 and 310 have another meaning."""
    (tmp_path / f"{spec.replace(':', '-')}.pth").write_bytes(b"not read")
    with pytest.raises(tl.NotApplicable, match=message):
        make_backbone(spec, weights="pretrained", weights_dir=tmp_path, own_head_for=("ants", "bees"))


def test_random_weights_are_refused(mini: tl.Splits) -> None:
    """Requested or as a fallback, they are refused with the reason and without another warning."""
    for weights, reason in (("random", "random weights were asked for"), ("auto", "TL_OFFLINE is set")):
        with pytest.raises(tl.NotApplicable, match=f"only pretrained weights .*{reason}"):
            tl.train_model(ZEROSHOT.replace(weights=weights), mini, device="cpu")


def test_classes_without_a_known_imagenet_class_are_refused(tmp_path: Path) -> None:
    """The message names them and the known classes."""
    splits = tl.load_splits(write_folder(tmp_path / "set", ("ants", "beetles", "wasps")))
    with pytest.raises(tl.NotApplicable, match=r"known for beetles, wasps, only for ants, bees$"):
        tl.train_model(ZEROSHOT, splits, device="cpu", weights_dir=published())


@pytest.mark.parametrize("backbone", TINY)
def test_one_pass_and_nothing_else(mini: tl.Splits, backbone: str) -> None:
    """Predictions are the larger of the network's two logits; figures of training are unknown."""
    seen: list[tl.EpochResult] = []
    config = ZEROSHOT.replace(backbone=backbone)
    result = tl.train_model(config, mini, device="cpu", weights_dir=published(), on_epoch=seen.append)
    preprocessing = make_backbone(backbone, weights="random").preprocessing
    val = Batches(open_store(mini), mini.val, preprocessing, torch.device("cpu"))
    with torch.inference_mode():
        logits = torch.cat([network(backbone)(images) for images, _ in val.evaluation(4)])
    assert result.best.labels == [0 if ant >= bee else 1 for ant, bee in logits[:, [310, 309]].tolist()]
    assert result.best == result.last and tuple(seen) == result.epochs
    (row,) = result.epochs
    assert row.val_seconds > 0 and row.val_loss is not None
    assert {row.learning_rate, row.train_seconds, row.train_loss, row.train_accuracy, row.phases} == {None}
    assert (result.epoch_seconds, result.train_epoch_seconds, result.val_epoch_seconds) == (None, None, None)
    assert result.work is None and result.trainable_params == 0 and result.frozen_verified is True
    assert result.training_seconds == row.val_seconds and result.accuracy_counts
    assert not any("not finite" in note.text or "leave one over" in note.text for note in result.notes)
    assert tl.TrainResult.from_json(result.model_dump_json()).epochs == result.epochs


def test_the_seed_changes_nothing(mini: tl.Splits) -> None:
    """Therefore a sweep over seeds has a single cell of this regime."""
    one, other = (
        tl.train_model(ZEROSHOT.replace(seed=seed), mini, device="cpu", weights_dir=published()) for seed in (0, 1)
    )
    assert one.best == other.best
