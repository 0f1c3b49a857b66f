"""Trained models in files: what is loaded is what was trained, bit for bit, and damage is one line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tl
from tests.conftest import TINY
from tests.images import write_image
from tests.weights import policy, weights_for
from tl import backbones
from tl.backbones import HEAD_BUILDERS
from tl.config import EXECUTIONS, HEADS
from tl.datasets import Splits
from tl.digest import file_digest
from tl.errors import ConfigError, ModelError, UserError
from tl.folds import on_all_images
from tl.head_kinds import KINDS, rebuilt_head, saved_head
from tl.model import VIEWS
from tl.regimes import REGIMES
from tl.results import TrainResult
from tl.saved import CARD, FORMAT_VERSION, TENSORS, SavedHead, new_folder, read_card
from tl.sources import SOURCES

BATCH = 8
SAVED = [name for name, regime in REGIMES.items() if regime.extractor == "float"]


def trained(splits: Splits, spec: str = TINY[1], regime: str = "finetune", **settings: Any) -> TrainResult:
    given: dict[str, Any] = {"epochs": 1, "batch_size": BATCH, "weights": policy(regime)} | settings
    config = tl.TrainConfig(backbone=spec, regime=regime, **given)
    return tl.train_model(config, splits, device="cpu", weights_dir=weights_for(regime))


@pytest.fixture(scope="module")
def result(mini: Splits) -> TrainResult:
    return trained(mini)


@pytest.fixture(scope="module")
def kept(mini: Splits, result: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, which no test may change."""
    return tl.save_model(result, mini, tmp_path_factory.mktemp("models") / "kept")


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(kept, tmp_path / "model"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / CARD).read_text())
    change(data)
    (folder / CARD).write_text(json.dumps(data))


def images(side: int, count: int = 3) -> torch.Tensor:
    made = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    return made.contiguous(memory_format=torch.channels_last)


def test_every_source_is_tested() -> None:
    """The networks of the tests below are from each that lists them; models of others aren't saved."""
    assert {spec.partition(":")[0] for spec in TINY} == {name for name, source in SOURCES.items() if source.lists}


@pytest.mark.parametrize("regime", SAVED)
@pytest.mark.parametrize("spec", TINY)
def test_what_is_loaded_is_what_was_trained(
    spec: str, regime: str, mini: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same logits bit for bit, and the predictions of the run's own validation pass. No weights are looked for, and
    nothing is unpickled."""
    result = trained(mini, spec, regime)
    path = tl.save_model(result, mini, tmp_path / "model")
    monkeypatch.setattr(backbones, "find_weights", lambda *_, **__: pytest.fail("weights were looked for"))
    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something was unpickled"))
    model = tl.load_model(path, device="cpu")
    batch = images(model.preprocessing.size)
    with torch.no_grad():
        assert torch.equal(model(batch), result.model(batch))
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert not any(module.training for module in model.network.modules())
    files = [mini.root / file for file in mini.val.files]
    found = dict(model.predict_files(files, batch_size=BATCH))
    assert list(found) == files and all(not isinstance(one, str) for one in found.values())
    predicted: Any = list(found.values())
    assert [one.label for one in predicted] == result.best.labels
    assert [one.confidence for one in predicted] == pytest.approx(result.best.confidences, abs=2e-5)
    assert {one.name for one in predicted} <= set(model.classes) and model.classes == mini.classes
    for one in predicted:
        assert one.probabilities[one.name] == one.confidence == max(one.probabilities.values())
        assert sum(one.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_images_are_prepared_as_in_validation(execution: str, mini: Splits, tmp_path: Path) -> None:
    """Also those of the tutorial's own loop, which resizes Pillow's images."""
    result = trained(mini, regime="frozen-tutorial", execution=execution)
    model = tl.load_model(tl.save_model(result, mini, tmp_path / "model"), device="cpu")
    found = model.predict([mini.root / file for file in mini.val.files], batch_size=BATCH)
    assert [one.label for one in found] == result.best.labels
    assert [one.confidence for one in found] == pytest.approx(result.best.confidences, abs=1e-6)


def test_every_execution_and_head_has_an_entry() -> None:
    """Otherwise its models could not be saved."""
    assert set(VIEWS) == set(EXECUTIONS) and set(KINDS) >= set(HEADS)


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_rebuilt(name: str) -> None:
    """From their kind, their sizes and their tensors alone."""
    head = HEAD_BUILDERS[name](5, 3)
    saved = saved_head(head)
    assert saved.kind == name
    made = rebuilt_head(saved, dict(head.state_dict()))
    features = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made(features), head(features))


def test_a_head_without_bias_is_rebuilt() -> None:
    """As ImageNet's own may be."""
    head = nn.Linear(5, 3, bias=False)
    made = rebuilt_head(saved_head(head), dict(head.state_dict()))
    assert isinstance(made, nn.Linear) and made.bias is None and torch.equal(made.weight, head.weight)


@pytest.mark.parametrize("head", [nn.Identity(), nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))], ids=str)
def test_other_heads_are_refused(head: nn.Module) -> None:
    """A head of two layers is not taken for one of `mlp`."""
    with pytest.raises(ModelError, match="can't be saved: none of linear, mlp, knn"):
        saved_head(head)


@pytest.mark.parametrize(
    "sizes", [{"width": 9, "classes": 3, "bias": 1}, {"width": 5}, {"width": 5, "classes": 3, "x": 1}]
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int]) -> None:
    """Whatever is wrong with them."""
    with pytest.raises(ModelError, match="head 'linear' of sizes"):
        rebuilt_head(SavedHead(kind="linear", sizes=sizes), dict(nn.Linear(5, 3).state_dict()))


def test_huge_sizes_need_no_memory() -> None:
    """They are compared with the tensors before anything is allocated."""
    with pytest.raises(ModelError, match="head 'linear' of sizes"):
        rebuilt_head(
            SavedHead(kind="linear", sizes={"width": 2**40, "classes": 2**20, "bias": 1}),
            dict(nn.Linear(5, 3).state_dict()),
        )


def test_the_card_says_where_the_model_is_from(mini: Splits, result: TrainResult, kept: Path) -> None:
    """Its network, images, weights, settings, libraries and how it is loaded."""
    card = read_card(kept)
    assert card.backbone == TINY[1] and card.classes == mini.classes and card.regime == "finetune"
    assert (card.trained_on.digest, card.trained_on.images, card.trained_on.parts) == (mini.digest, 24, "train")
    assert card.settings == result.config.model_dump(mode="json") and card.weights == result.weights
    assert card.measured is not None
    assert (card.measured.images, card.measured.values) == (16, {"val_accuracy_best": result.val_accuracy_best})
    assert (
        card.libraries["torch"] == torch.__version__.partition("+")[0] or torch.__version__ == card.libraries["torch"]
    )
    assert card.tensors_digest == file_digest(kept / TENSORS) and "tl.load_model" in card.how_to_load
    assert sorted(path.name for path in kept.iterdir()) == [CARD, TENSORS]
    assert str(kept) not in (kept / CARD).read_text(), "no path of this machine"


def test_the_tag_of_the_weights_is_kept(mini: Splits, tmp_path: Path) -> None:
    """The name alone stands for other weights, whose network may be another."""
    result = trained(mini, TINY[0])
    tagged = result.replace(weights=result.weights.replace(tag="IMAGENET1K_V1"))
    model = tl.load_model(tl.save_model(tagged, mini, tmp_path / "model"), device="cpu")
    assert model.card.backbone == f"{TINY[0]}.IMAGENET1K_V1"
    batch = images(model.preprocessing.size)
    with torch.no_grad():
        assert torch.equal(model(batch), result.model(batch))


def test_images_may_be_files_pictures_or_arrays(kept: Path, tmp_path: Path) -> None:
    """One or several, and of any size. They give the same."""
    path = write_image(tmp_path / "x.png", size=(50, 70))
    picture = Image.open(path)
    model = tl.load_model(str(kept), device="cpu")
    (one,) = model.predict(path)
    assert model.predict(str(path)) == model.predict(picture) == model.predict(np.array(picture)) == [one]
    assert model.predict([]) == []
    assert [each.label for each in model.predict([path, picture], batch_size=1)] == [one.label] * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [(np.zeros((3, 4), np.uint8), "an array"), (np.zeros((4, 4, 3)), "float64"), (5, "int"), (None, "NoneType")],
    ids=str,
)
def test_what_is_no_image_is_refused(given: Any, said: str, kept: Path) -> None:
    """With what is meant."""
    with pytest.raises(ConfigError, match=f"images: .*{said}.*: give paths, images of Pillow, or arrays"):
        tl.load_model(kept, device="cpu").predict([given])


def test_a_damaged_image_does_not_stop_the_others(kept: Path, tmp_path: Path) -> None:
    """It has a reason in place of a prediction, wherever it is among the others."""
    files = [write_image(tmp_path / f"{number}.png", seed=number) for number in range(5)]
    for bad in (0, 3, 4):
        files[bad].write_bytes(b"no image")
    model = tl.load_model(kept, device="cpu")
    found = list(model.predict_files(files, batch_size=2))
    assert [path for path, _ in found] == files
    assert [isinstance(one, str) for _, one in found] == [True, False, False, True, True]
    alone = model.predict(files[1:3])
    for (_, one), other in zip(found[1:3], alone, strict=True):
        assert not isinstance(one, str) and one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    with pytest.raises(tl.DataError, match=r"0\.png: can't be decoded"):
        model.predict(files)
    with pytest.raises(ConfigError, match="batch_size=0"):
        list(model.predict_files(files, batch_size=0))


def _truncate(folder: Path) -> None:
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[:-1])


def _flip(folder: Path) -> None:
    content = bytearray((folder / TENSORS).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS).write_bytes(content)


def _replace_tensors(folder: Path) -> None:
    (folder / TENSORS).write_bytes(b"nothing of the kind")
    edit(folder, lambda card: card.update(tensors_bytes=19, tensors_digest=file_digest(folder / TENSORS)))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such folder; a model is a folder with model.json and model.safetensors"),
    "no card": (lambda f: (f / CARD).unlink(), "has no model.json: not a model"),
    "no tensors": (lambda f: (f / TENSORS).unlink(), "has no model.safetensors, which model.json belongs to"),
    "cut off": (_truncate, "model.safetensors: damaged: it is not the file that was saved"),
    "one bit": (_flip, "model.safetensors: damaged: it is not the file that was saved"),
    "other content": (_replace_tensors, "model.safetensors: damaged, or no file of safetensors"),
    "no JSON": (lambda f: (f / CARD).write_text("{"), "model.json: damaged: it is no JSON"),
    "nested": (lambda f: (f / CARD).write_text("[" * 10**6), "model.json: damaged"),
    "a list": (lambda f: (f / CARD).write_text("[]"), "model.json: has no format_version"),
    "newer": (
        lambda f: edit(f, lambda card: card.update(format_version=FORMAT_VERSION + 1)),
        f"model.json: version {FORMAT_VERSION + 1} is newer than this suite knows ({FORMAT_VERSION}); update the suite",
    ),
    "unknown key": (lambda f: edit(f, lambda card: card.update(clases=[])), "damaged: clases: unknown key"),
    "missing key": (lambda f: edit(f, lambda card: card.pop("backbone")), "damaged: backbone: missing"),
    "one class more": (
        lambda f: edit(f, lambda card: card["classes"].append("x")),
        "head has 2 outputs, and there are 3",
    ),
    "a class twice": (lambda f: edit(f, lambda card: card.update(classes=["a", "a"])), "classes has a name twice"),
    "other head": (lambda f: edit(f, lambda card: card["head"].update(kind="liner")), "did you mean 'linear'?"),
    "other sizes": (lambda f: edit(f, lambda card: card["head"]["sizes"].update(width=7)), "head 'linear' of sizes"),
    "other network": (
        lambda f: edit(f, lambda card: card.update(backbone=TINY[0])),
        f"its tensors don't fit {TINY[0]}: ",
    ),
    "unknown network": (
        lambda f: edit(f, lambda card: card.update(backbone="timm:nothing")),
        "no such network in timm",
    ),
    "unknown source": (lambda f: edit(f, lambda card: card.update(backbone="x:y")), "unknown source 'x'"),
    "other layout": (lambda f: edit(f, lambda card: card.update(memory_format="x")), "memory_format='x': not one of"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_one_line(case: str, folder: Path) -> None:
    """It says which file is wrong, and how."""
    damage, said = DAMAGE[case]
    damage(folder)
    with pytest.raises(UserError) as caught:
        tl.load_model(folder, device="cpu")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_in_place_of_the_folder(kept: Path) -> None:
    """The message names the folder."""
    with pytest.raises(ModelError, match=r"is a file of a model; give its folder, .*kept"):
        tl.load_model(kept / TENSORS)


def test_nothing_is_overwritten(mini: Splits, result: TrainResult, tmp_path: Path) -> None:
    """Not even an empty folder, and nothing else is left."""
    (tmp_path / "there").mkdir()
    with pytest.raises(ModelError, match="there: exists already, and is not overwritten; name another folder"):
        tl.save_model(result, mini, tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and not list((tmp_path / "there").iterdir())


def test_a_model_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """An error on the way leaves nothing, and neither does another folder that appears meanwhile."""
    target = tmp_path / "a" / "model"
    with pytest.raises(ZeroDivisionError), new_folder(target) as made:
        (made / "part").write_text("")
        assert not target.exists()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError, match="exists already"), new_folder(target) as made:
        target.mkdir()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]


def test_what_has_no_network_is_refused(mini: Splits, result: TrainResult, tmp_path: Path) -> None:
    """A result of several trainings, and one from a record."""
    with pytest.raises(ModelError, match="the result has no network"):
        tl.save_model(result.model_copy(update={"model": None}), mini, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_an_int8_network_is_refused(mini: Splits, tmp_path: Path) -> None:
    """Its weights are no plain tensors. Nothing is left of it."""
    result = trained(mini, regime="quantized")
    with pytest.raises(ModelError, match="which a file of safetensors can't hold"):
        tl.save_model(result, mini, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_all_images_are_trained_on(mini: Splits) -> None:
    """Once each, and none is held out."""
    whole = on_all_images(mini)
    assert whole.train.files == mini.train.files + mini.val.files
    assert whole.train.labels == mini.train.labels + mini.val.labels
    assert sorted(whole.val.labels) == [0, 1] and set(whole.val.files) <= set(whole.train.files)
    assert whole == replace(mini, train=whole.train, val=whole.val)
