"""Regime `cached` against an independent loop on features of centre views, and the cache of features."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tl
from tests.conftest import TINY
from tests.damage import DAMAGES, warned_once
from tl.backbones import Classifier, make_backbone
from tl.batches import Batches, Preprocessing
from tl.features import Extraction, Features
from tl.images import open_store, order
from tl.regimes import REGIMES
from tl.seeding import seed_for


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache of its own, so that no test finds features of another."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def config(**settings: object) -> tl.TrainConfig:
    return tl.TrainConfig(**{"backbone": TINY[1], "regime": "cached", "weights": "random", "epochs": 3, **settings})


def train(splits: tl.Splits, **settings: object) -> tl.TrainResult:
    return tl.train_model(config(**settings), splits, device="cpu")


def figures(result: tl.TrainResult) -> list[tuple[float | None, float | None, float]]:
    return [(row.train_loss, row.val_loss, row.val_accuracy) for row in result.epochs]


def test_the_head_equals_that_of_a_plain_loop_on_centre_views(mini: tl.Splits) -> None:
    """The reference is logistic regression by SGD on the same features, written out here."""
    settings = config()
    backbone = make_backbone(settings.backbone, weights="random", seed=0)
    model = Classifier(backbone, 2, settings).eval()
    cpu, store = torch.device("cpu"), open_store(mini)
    with torch.no_grad():
        images = [
            torch.cat([model.backbone(x) for x, _ in Batches(store, part, backbone.preprocessing, cpu).evaluation(5)])
            for part in (mini.train, mini.val)
        ]
    labels = [torch.tensor(part.labels) for part in (mini.train, mini.val)]
    optimizer = torch.optim.SGD(model.head.parameters(), lr=1e-3, momentum=0.9)
    losses = []
    for epoch in range(settings.epochs):
        for chosen in torch.from_numpy(order(len(mini.train), seed_for("order", 0, epoch))).split(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.head(images[0][chosen]), labels[0][chosen]).backward()
            optimizer.step()
        losses.append(nn.functional.cross_entropy(model.head(images[1]), labels[1]).item())
    result = train(mini)
    assert [row.val_loss for row in result.epochs] == pytest.approx(losses, rel=1e-4)
    assert result.frozen_verified and not result.features_reused
    x, _ = next(Batches(store, mini.val, backbone.preprocessing, cpu).evaluation(16))
    assert result.model(x).argmax(1).tolist() == result.best.labels, "the returned model takes images"


def test_features_are_extracted_once_for_all_seeds_and_rates(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    """With cached features all figures are the same to the last bit."""
    pretrained = {"backbone": "timm:tf_efficientnet_lite0", "weights": "pretrained", "epochs": 1}
    first = train(mini, **pretrained)
    assert first.features_reused is False and first.extraction_seconds > 0
    with monkeypatch.context() as patch:
        patch.setattr("tl.features.Extraction._extract", lambda *_: pytest.fail("extracted again"))
        again = train(mini, **pretrained)
        others = [train(mini, **pretrained, seed=1), train(mini, **pretrained, learning_rate=0.1)]
    assert figures(again) == figures(first)
    assert all(figures(other) != figures(first) for other in others)
    assert not any("cached" in note.text for note in first.notes) and any("cached" in note.text for note in again.notes)
    assert first.extracting_seconds == first.extraction_seconds and first.peak_memory_bytes > 0
    for result in (again, *others):
        assert result.extracting_seconds == 0
        assert result.peak_memory_bytes is None, "the memory of the extraction is unknown"
        assert result.features_reused and result.extraction_seconds == first.extraction_seconds
    assert len(list(own_cache.glob("*/*.features"))) == 1


@pytest.mark.parametrize("settings", [{"seed": 1}, {"precision": "bf16"}, {"backbone": TINY[0]}])
def test_other_networks_have_other_features(mini: tl.Splits, settings: dict[str, object]) -> None:
    """Another seed is another network, too: random weights depend on it."""
    train(mini)
    assert train(mini, **settings).features_reused is False


def _pickle(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), files=np.array(["a"], dtype=object), features=np.zeros((1, 4)), seconds=1.0)
    path.with_suffix(".npz").rename(path)


@pytest.mark.parametrize("damage", ["flipped bit", "pickle"])
def test_damaged_features_are_not_trained_on(mini: tl.Splits, own_cache: Path, damage: str) -> None:
    """A pickle is never loaded, since it could run code."""
    first = train(mini, epochs=1)
    (place,) = own_cache.glob("*/*")
    {**DAMAGES, "pickle": _pickle}[damage](place)
    again = warned_once(lambda: train(mini, epochs=1), place)
    assert again.features_reused is False and figures(again) == figures(first)
    third = train(mini, epochs=1)
    assert third.features_reused is True and figures(third) == figures(first)


@pytest.mark.timeout(120)  # a FIFO must not be waited for
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_extracted_again_with_a_word(mini: tl.Splits, own_cache: Path, damage: str) -> None:
    """The extractor here is quick: it returns the mean of each channel."""
    preprocessing = Preprocessing(size=8, resize=8, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear")
    batches = Batches(open_store(mini), mini.val, preprocessing, torch.device("cpu"))

    def extracted() -> tuple[torch.Tensor, bool]:
        extraction = Extraction(lambda images: images.mean((2, 3)), {"extractor": "means"})
        ((features, _),) = extraction.features(batches, 1).evaluation(len(batches))
        return features, extraction.spent > 0

    intact, _ = extracted()
    (place,) = own_cache.glob("*/*")
    DAMAGES[damage](place)
    features, anew = warned_once(extracted, place)
    assert torch.equal(features, intact) and anew
    features, anew = extracted()
    assert torch.equal(features, intact) and not anew
    assert list(own_cache.glob("*/*")) == [place]


def test_a_cache_that_cannot_be_written_costs_time_alone(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    first = train(mini)
    for place in own_cache.glob("*/*.features"):
        place.unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tl.features.write_sealed", full)
    assert figures(train(mini)) == figures(first)
    assert train(mini).features_reused is False


def test_views_take_turns(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two views the third epoch trains on the first view again. Both views are random crops."""
    seen: list[torch.Tensor] = []
    original = Features.training

    def training(self: Features, batch_size: int, **settings: object):
        for features, labels in original(self, batch_size, **settings):
            seen.append(torch.cat([features, labels[:, None].float()], 1))
            yield features, labels

    monkeypatch.setattr(Features, "training", training)
    train(mini, views=2)
    steps = len(seen) // 3
    first, second, third = (
        {tuple(row) for row in torch.cat(seen[k * steps : (k + 1) * steps]).tolist()} for k in range(3)
    )
    assert first == third and len(first) == len(mini.train) and not first & second
    seen.clear()
    train(mini)
    assert not first & {tuple(row) for row in torch.cat(seen).tolist()}, "one view is the centre"


def test_the_crop_of_an_image_is_the_same_in_every_part_of_a_data_set(mini: tl.Splits) -> None:
    """Otherwise features cached by a training on one part would be wrong for a training on another."""
    half = dataclasses.replace(
        mini, train=dataclasses.replace(mini.train, files=mini.train.files[1::2], labels=mini.train.labels[1::2])
    )
    alone = train(mini, views=2)
    (place,) = {path.parent for path in Path("cache/features").glob("*/crops-0.features")}
    for path in place.iterdir():
        path.unlink()
    train(half, views=2)
    after = train(mini, views=2)
    for one, other in zip(alone.epochs, after.epochs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-5)


def test_features_are_validated_in_few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch size, which limits the memory of images, says nothing about them unless it is larger."""
    monkeypatch.setattr("tl.features.EVALUATED_AT_ONCE", 10)
    views, labels = torch.rand(2, 24, 3), torch.arange(24)
    for batch_size, sizes in ((4, [10, 10, 4]), (12, [12, 12]), (100, [24])):
        batches = list(Features(views, labels).evaluation(batch_size))
        assert [len(shown) for _, shown in batches] == sizes
        assert torch.equal(torch.cat([rows for rows, _ in batches]), views[0])
        assert torch.equal(torch.cat([shown for _, shown in batches]), labels)


def test_folds_share_their_features(mini: tl.Splits) -> None:
    """The centre view of an image is extracted once for all folds."""
    result = tl.run_protocol(config(protocol="kfold", folds=3, backbone=TINY[1], epochs=2), mini, device="cpu")
    assert len(result.folds) == 3 and all(len(rows) == 2 for rows in result.folds)
    for epoch, row in enumerate(result.epochs):
        assert row.seconds == pytest.approx(sum(rows[epoch].seconds for rows in result.folds))
    assert result.extraction_seconds > 0
    assert result.extracting_seconds == pytest.approx(result.extraction_seconds), "each image once for all folds"


def test_other_regimes_read_no_views() -> None:
    """A grid can set views for all regimes; where they have no effect, the config stays the same."""
    assert config(views=3).views == 3
    assert config(regime="frozen", views=3) == config(regime="frozen")


def test_an_int8_extractor_has_features_of_its_own(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not those of the float backbone, nor those of one that was calibrated on other images."""
    both = dataclasses.replace(REGIMES["cached"], extractor="int8")
    monkeypatch.setitem(REGIMES, "cached-int8", both)
    others = dataclasses.replace(mini, train=dataclasses.replace(mini.train, files=mini.train.files[::-1]))
    others = dataclasses.replace(others, train=dataclasses.replace(others.train, labels=mini.train.labels[::-1]))
    plain = train(mini)
    first = train(mini, regime="cached-int8")
    assert not first.features_reused and figures(first) != figures(plain)
    again = train(mini, regime="cached-int8")
    assert again.features_reused and figures(again) == figures(first)
    assert not train(others, regime="cached-int8").features_reused


def test_features_keep_nothing_of_what_they_are_a_part_of(mini: tl.Splits) -> None:
    """A transformer's features are its first token, a view of all tokens: these are gone after each batch, so memory
    doesn't grow with the number of images."""
    alive: list[weakref.ref[Any]] = []
    most = []

    def first_token(images: torch.Tensor) -> torch.Tensor:
        most.append(sum(one() is not None for one in alive))
        tokens = np.random.default_rng(len(alive)).random((len(images), 50, 8), np.float32)
        alive.append(weakref.ref(tokens))
        return torch.from_numpy(tokens)[:, 0]

    given = Preprocessing(size=32, resize=36, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    batches = Batches(open_store(mini), mini.train, given, torch.device("cpu"))
    table = Extraction(first_token, {"extractor": "tokens"}, at_once=4).features(batches, 1)
    assert len(alive) == 6 and max(most) <= 1 and not any(one() is not None for one in alive)
    assert len(table) == len(mini.train)
