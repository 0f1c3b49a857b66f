"""Exports of a model: they are compared with it, and what disagrees is not kept."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tl
from tests.conftest import TINY
from tests.test_model import trained
from tl import exporting
from tl.datasets import Splits
from tl.errors import ConfigError, ModelError
from tl.exporting import FORMS, check_forms, export
from tl.model import Model


@pytest.fixture(scope="module", params=[*((spec, "finetune") for spec in TINY), (TINY[1], "knn")], ids=str)
def model(request: pytest.FixtureRequest, mini: Splits, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Networks of each source, and a head that holds features."""
    folder = tmp_path_factory.mktemp("models") / "model"
    return tl.load_model(tl.save_model(trained(mini, *request.param), mini, folder), device="cpu")


@pytest.fixture(scope="module")
def batches(model: Model, mini: Splits) -> list[torch.Tensor]:
    files = [mini.root / file for file in mini.val.files]
    return [model.prepare(files[:7]), model.prepare(files[7:8])]


@pytest.mark.parametrize("form", FORMS)
def test_an_export_says_what_the_model_says(
    form: str, model: Model, batches: list[torch.Tensor], tmp_path: Path
) -> None:
    """For batches of any size, a single image among them."""
    for name in FORMS[form].packages:
        pytest.importorskip(name)
    made = export(model, tmp_path, form, batches)
    assert made.same_classes and made.images == 8 and made.largest_difference < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == [made.file == FORMS[form].file and made.file]
    for batch in batches:
        found = FORMS[form].run(tmp_path / made.file, batch)
        assert torch.allclose(found, model(batch), atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda logits: -logits, "another class for 8 of 8 images"),
        (lambda logits: logits * 1.01, "logits differ by up to"),
    ],
    ids=["other classes", "other logits"],
)
def test_an_export_that_disagrees_is_not_kept(
    wrong: Any, said: str, model: Model, batches: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how much it disagrees, and its file is gone."""
    form = replace(FORMS["torch"], run=lambda path, images: wrong(model(images)))
    monkeypatch.setitem(FORMS, "torch", form)
    with pytest.raises(ModelError, match=f"the export disagrees with the model: .*{said}.*it isn't kept"):
        export(model, tmp_path, "torch", batches)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_is_one_line(
    model: Model, batches: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exporters raise anything, at length, and may have written a part already."""

    def write(network: Any, example: Any, path: Path) -> None:
        path.write_text("part")
        raise RuntimeError("no such operator\nmany\nlines")

    monkeypatch.setitem(FORMS, "torch", replace(FORMS["torch"], write=write))
    with pytest.raises(ModelError, match=r"can't be exported: no such operator$"):
        export(model, tmp_path, "torch", batches)
    assert list(tmp_path.iterdir()) == []


def test_the_model_stays_as_it_is(model: Model, batches: list[torch.Tensor], tmp_path: Path) -> None:
    """An export is made of a copy."""
    before = model(batches[0])
    export(model, tmp_path, "torch", batches)
    assert torch.equal(model(batches[0]), before)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    present = importlib.util.find_spec
    monkeypatch.setattr(
        exporting.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else present("json")
    )
    with pytest.raises(
        ConfigError, match=r"--export onnx needs onnxscript, which is not installed: pip install 'tl-bench\[onnx\]'"
    ):
        check_forms(["torch", "onnx"])
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs onnx, onnxscript, onnxruntime, which are not installed"):
        check_forms(["onnx"])


def test_an_unknown_form_is_refused() -> None:
    """With the known ones."""
    with pytest.raises(ConfigError, match="--export='onx': not one of torch, onnx; did you mean 'onnx'"):
        check_forms(["onx"])
