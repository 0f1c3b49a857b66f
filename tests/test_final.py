"""`bench train` and `bench predict`: from a run to predictions of new images, and every mistake in one line."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len

import bench
import tl
from bench.report.predicted_text import WIDTH, show_predictions
from bench.store.runs import RunFolder
from bench.sweep.predict import Photograph, Predicted, Predictions
from tests.commands import command as own_process
from tests.commands import here
from tests.conftest import TINY
from tests.images import write_image
from tests.runs import record, write_run
from tests.weights import network, published
from tl.datasets import Splits
from tl.folds import on_all_images
from tl.machine import usable_cores
from tl.saved import CARD, TENSORS, ModelCard, SavedHead, SavedPreprocessing, TrainedOn, read_card
from tl.weights import Weights

SPEC = TINY[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small run, and a model that was trained from it. No test may change it."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ("run", "--grid", "smoke", "--backbone", SPEC, "--device", "cpu", "--epochs", "2", "--name", "r")
        done = here(*words, "--weights-dir", str(published()), "--no-report", "--no-paired", "--inference")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "inference: latency, throughput and file size of each trained network" in done.stdout
        done = here("train", "r", "--cell", cell(folder, "finetune"), "--weights-dir", str(published()), "--out", "m")
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "output.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def inside(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder."""
    shutil.copytree(home, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def cell(folder: Path, regime: str) -> str:
    run = RunFolder(folder / "results" / "r")
    return next(key for key, one in run.manifest().cells.items() if one.config.regime == regime)


def refused(*words: str) -> str:
    """Run a command that must end with a mistake; return its line."""
    done = here(*words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, (done.stdout, done.stderr)
    return done.stderr


def test_a_run_measures_inference_when_asked(home: Path) -> None:
    """Every cell has latency, throughput and the size of the file; a cell that is done doesn't run again for it."""
    frame = bench.load_results(home / "results" / "r")
    for name in ("latency_seconds", "inference_images_per_second", "model_bytes"):
        assert (frame[name] > 0).all(), name
    model = frame[frame["regime"] == "finetune"].iloc[0]
    assert model["model_bytes"] == (home / "m" / TENSORS).stat().st_size


def test_cells_without_inference_are_said(tmp_path: Path) -> None:
    """They don't run again."""
    words = ("run", "--grid", "smoke", "--backbone", SPEC, "--regime", "frozen", "--device", "cpu", "--epochs", "1")
    more = ("--weights", "random", "--no-report", "--no-paired", "--name", "r")
    assert here(*words, *more).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "r" / "cells").iterdir()}
    assert len(before) == 1
    done = here(*words, *more, "--inference")
    assert done.returncode == 0 and "; 1 cell done before has none of these" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_model_of_all_images(home: Path, mini: Splits) -> None:
    """Its card says what it was trained on, what the run measured, and that this isn't the model's own accuracy."""
    card = read_card(home / "m")
    one = RunFolder(home / "results" / "r").records()[cell(home, "finetune")]
    assert one.result is not None and card.measured is not None
    assert (card.trained_on.images, card.trained_on.parts) == (len(mini.train) + len(mini.val), "train and val")
    assert card.weights.digest == one.cell.weights_digest and card.trained_on.digest == mini.digest
    assert card.measured.values["val_accuracy_last"] == one.result.val_accuracy_last
    assert (card.measured.run, card.measured.cell, card.measured.images) == ("r", one.cell_id, 16)
    assert "was trained on these images too, so it has no accuracy of its own" in card.measured.note
    said = (home / "output.txt").read_text()
    assert "40 to train on (training and validation)" in said and "epoch 2/2: loss" in said
    assert "This model was trained on these images too" in said and "python -m bench predict m IMAGES" in said
    assert sorted(path.name for path in (home / "m").iterdir()) == [CARD, TENSORS]
    assert not [path for path in home.iterdir() if path.name.endswith(".tmp")]


def test_the_last_epoch_is_saved_and_all_images_train(home: Path, mini: Splits) -> None:
    """The same training by hand, with as many threads, gives the same tensors."""
    card = read_card(home / "m")
    config = tl.TrainConfig(**card.settings)
    assert config.protocol == "fixed"
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    try:
        result = tl.train_model(config, on_all_images(mini), device="cpu", weights_dir=published(), keep="last")
    finally:
        torch.set_num_threads(before)
    loaded = tl.load_model(home / "m", device="cpu").network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in result.model.state_dict().items())


def test_training_images_alone(inside: Path, mini: Splits) -> None:
    """A prefix of the id is enough, and the model's folder is named after the cell."""
    wanted = cell(inside, "frozen")
    done = here("train", "r", "--cell", wanted[:6].upper(), "--train-only", "--weights-dir", str(published()))
    assert done.returncode == 0, done.stderr
    card = read_card(inside / "models" / wanted)
    assert (card.trained_on.images, card.trained_on.parts) == (24, "train")
    assert card.measured is not None and "another training with the same settings" in card.measured.note
    kept = RunFolder(inside / "results" / "r").records()[wanted].result
    assert kept is not None
    predicted = tl.load_model(inside / "models" / wanted, device="cpu").predict([mini.root / f for f in mini.val.files])
    assert [one.label for one in predicted] == kept.last.labels, (
        "the same training as the run's, so the same predictions"
    )


def test_an_export_is_compared(inside: Path) -> None:
    """The output and the card say how, and its file is beside the model."""
    words = ("train", "r", "--cell", cell(inside, "frozen"), "--weights-dir", str(published()), "--out", "e")
    done = here(*words, "--export", "torch")
    assert done.returncode == 0, done.stderr
    assert "e/model.pt2: same classes for 16 images, logits differ by at most" in done.stdout
    (made,) = read_card(inside / "e").exports
    assert (made.kind, made.file, made.images) == ("torch", "model.pt2", 16)
    tl.load_model(inside / "e", device="cpu")


def test_an_export_that_is_not_kept_is_said(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is kept without it, and the exit status says that something is missing."""
    (inside / "limits.py").write_text(
        "from dataclasses import replace\nfrom tl import exporting\n"
        "form = exporting.FORMS['torch']\n"
        "exporting.FORMS['torch'] = replace(form, run=lambda path, images: -form.run(path, images))\n"
    )
    words = ("train", "r", "--cell", cell(inside, "frozen"), "--weights-dir", str(published()), "--out", "e")
    done = own_process(*words, "--export", "torch", "--plugin", "limits.py")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not kept: torch: the export disagrees with the model: another class for 16 of 16 images" in done.stdout
    assert sorted(path.name for path in (inside / "e").iterdir()) == [CARD, TENSORS]
    assert read_card(inside / "e").exports == ()


def test_mistakes_of_train(inside: Path) -> None:
    """Each is one line that says what is right, and nothing is written."""
    shutil.rmtree(inside / "models", ignore_errors=True)
    before = sorted(path for path in inside.rglob("*"))
    here_ = ("--weights-dir", str(published()))
    known = cell(inside, "frozen")
    wrong = known[:-1] + ("0" if known[-1] != "0" else "1")
    assert f"--cell '{wrong}': r has no such cell; near matches: {known} ({SPEC} frozen" in refused(
        "train", "r", "--cell", wrong
    )
    assert "no such run; results/ has r" in refused("train", "x", "--cell", known)
    assert "m: exists already, and is not overwritten" in refused("train", "r", "--cell", known, "--out", "m")
    assert f"{SPEC}: not on this machine" in refused("train", "r", "--cell", known)
    (inside / "w").mkdir()
    torch.save(network(SPEC, seed=6).state_dict(), inside / "w" / f"{SPEC.replace(':', '-')}.pth")
    said = refused("train", "r", "--cell", known, "--weights-dir", "w")
    assert (
        f"{SPEC}: the available weights (weights-dir, " in said
        and f"are not those that cell {known} started from" in said
    )
    shutil.rmtree(inside / "w")
    said = refused("train", "r", "--cell", known, *here_, "--data", "synthetic")
    assert "the images of r are not here: synthetic has other images" in said
    assert "no such folder" in refused("train", "r", "--cell", known, *here_, "--data", "nowhere")
    assert "--export='x': not one of torch, onnx" in refused("train", "r", "--cell", known, "--export", "x")
    assert "device='cuda:9'" in refused("train", "r", "--cell", known, *here_, "--device", "cuda:9")
    assert "--weights-dir 'nowhere': no such folder" in refused(
        "train", "r", "--cell", known, "--weights-dir", "nowhere"
    )
    assert sorted(path for path in inside.rglob("*")) == before


def test_which_cell_is_meant(tmp_path: Path) -> None:
    """One that begins like several, has no result, or trains an int8 network is refused; without one, what is
    recommended is taken."""
    records = [record(f"timm:b{number}", "frozen", right=90 - number) for number in range(17)]
    failed, int8 = record("timm:c", "frozen", status="failed"), record("timm:d", "quantized", right=50)
    write_run(tmp_path / "results" / "r", [*records, failed, int8], missing=[record("timm:e", "frozen").cell])
    first = [one.cell_id[0] for one in records]
    twice = next(each for each in first if first.count(each) > 1)
    assert f"--cell '{twice}': " in (said := refused("train", "r", "--cell", twice)) and "cells begin like that" in said
    assert "has no result (failed: took" in refused("train", "r", "--cell", failed.cell_id)
    assert "has not run yet" in refused("train", "r", "--cell", record("timm:e", "frozen").cell.id)
    assert "an int8 network, which a file of safetensors can't hold" in refused("train", "r", "--cell", int8.cell_id)
    assert "r recommends nothing yet: timm:e frozen cpu has no result; wait" in refused("train", "r")
    write_run(tmp_path / "results" / "whole", [*records, failed, int8])
    assert "the images of whole are not here: own: there is no such folder" in refused("train", "whole"), (
        "b0 is recommended"
    )
    write_run(tmp_path / "results" / "s", [record("timm:a", "frozen", right=10)])
    assert "s recommends nothing, so --cell is needed" in refused("train", "s")


def test_predictions_of_a_labelled_folder(home: Path, mini: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text, CSV and JSON agree with each other and with the model."""
    monkeypatch.chdir(home)
    folder = str(mini.root / "val")
    model = tl.load_model(home / "m", device="cpu")
    files = [mini.root / file for file in mini.val.files]
    expected = {str(path): one for path, one in zip(files, model.predict(files), strict=True)}
    done = here("predict", "m", folder, "--format", "json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert {one["path"] for one in said["images"]} == set(expected) and said["unreadable"] == []
    for one in said["images"]:
        wanted = expected[one["path"]]
        assert one["class"] == wanted.name and one["true_class"] == Path(one["path"]).parent.name
        assert one["confidence"] == pytest.approx(wanted.confidence, abs=1e-5)
        assert one["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
    right = sum(one["class"] == one["true_class"] for one in said["images"])
    assert said["accuracy"] == right / 16 and sum(map(sum, said["confusion"])) == 16
    assert said["trained_on_these_images"] is None, "a folder that is a part of a set may be of any"
    done = here("predict", "m", folder, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["path"], row["class"], row["true_class"]) for row in rows] == [
        (one["path"], one["class"], one["true_class"]) for one in said["images"]
    ]
    done = here("predict", "m", folder)
    assert f"accuracy: {right / 16:.1%} ({right} of 16 images)" in done.stdout
    assert "true class  ants  bees" in done.stdout and max(map(len, done.stdout.splitlines())) <= WIDTH
    done = here("predict", "m", "synthetic-mini", "--format", "json")
    assert len(json.loads(done.stdout)["images"]) == 40 and json.loads(done.stdout)["trained_on_these_images"] is True


def test_an_image_that_cannot_be_read_is_listed(inside: Path) -> None:
    """With its reason; the others are predicted, and the exit status says that one is missing."""
    write_image(inside / "new" / "a.png")
    write_image(inside / "new" / "deep" / "b.jpg")
    (inside / "new" / "c.jpg").write_bytes(b"no image")
    (inside / "new" / "notes.txt").write_text("no image's name")
    (inside / "new" / "d.heic").write_bytes(b"of a telephone")
    done = here("predict", "m", "new", "new/a.png")
    assert done.returncode == 1 and done.stderr == "", done.stderr
    assert "can't be read: 1 of 3 images\n  new/c.jpg: " in done.stdout and "accuracy" not in done.stdout
    assert "left out 1 image in a format that is not read: 'new/d.heic'" in done.stdout
    done = here("predict", "m", "new", "--format", "json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert [one["path"] for one in said["unreadable"]] == ["new/c.jpg"] and said["accuracy"] is None
    rows = list(csv.DictReader(io.StringIO(here("predict", "m", "new", "--format", "csv").stdout)))
    assert [(row["path"], bool(row["class"]), bool(row["reason"])) for row in rows] == [
        ("new/a.png", True, False),
        ("new/c.jpg", False, True),
        ("new/deep/b.jpg", True, False),
    ]


def test_a_folder_of_one_class_is_labelled(inside: Path) -> None:
    """A folder of which only a part is in folders of classes is not."""
    for name in ("ants/a.png", "bees/b.png", "c.png"):
        write_image(inside / "new" / name)
    labels = {
        folder: [
            one["true_class"] for one in json.loads(here("predict", "m", folder, "--format", "json").stdout)["images"]
        ]
        for folder in ("new", "new/ants", "new/c.png")
    }
    assert labels == {"new": [None] * 3, "new/ants": ["ants"], "new/c.png": [None]}
    (inside / "new" / "c.png").unlink()
    assert json.loads(here("predict", "m", "new", "--format", "json").stdout)["accuracy"] is not None


def test_mistakes_of_predict(inside: Path) -> None:
    """Each is one line that says what is right."""
    write_image(inside / "a.png")
    (inside / "empty").mkdir()
    assert "nothing: no such folder; a model is a folder with model.json" in refused("predict", "nothing", "a.png")
    assert "give its folder, m" in refused("predict", "m/model.json", "a.png")
    said = refused("predict", "m", "b.png", "c.png", "a.png")
    assert "b.png: no such file or folder, and no data set has that name" in said and "1 more are missing" in said
    assert "empty: no images in it: the folder is empty" in refused("predict", "m", "empty")
    assert "device='cuda:9'" in refused("predict", "m", "a.png", "--device", "cuda:9")
    assert "batch" in refused("predict", "m", "a.png", "--batch-size", "0")
    with (inside / "m" / TENSORS).open("ab") as file:
        file.write(b"x")
    assert "model.safetensors: damaged: it is not the file that was saved" in refused("predict", "m", "a.png")


def predictions(classes: Sequence[str], rows: Sequence[tuple[str, str | None, int]]) -> Predictions:
    """Made-up predictions: path, true class and predicted class; a negative one is an image that can't be read."""
    count = len(classes)
    card = ModelCard(
        backbone="timm:a",
        head=SavedHead(kind="linear", sizes={"width": 1, "classes": count, "bias": 1}),
        classes=tuple(classes),
        preprocessing=SavedPreprocessing(
            size=1, resize=1, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear", squash=False, execution="fast"
        ),
        precision="fp32",
        memory_format="contiguous",
        regime="frozen",
        settings={},
        weights=Weights(kind="random", source="random"),
        trained_on=TrainedOn(dataset="x", digest="", images=1, parts="train"),
        measured=None,
        created=datetime.now(UTC),
        libraries={},
        tensors_digest="",
        tensors_bytes=1,
    )

    def one(path: str, label: str | None, predicted: int) -> Predicted:
        shares = tuple(0.9 if number == predicted else 0.1 / max(1, count - 1) for number in range(count))
        photograph = Photograph(path=Path(path), label=label)
        if predicted < 0:
            return Predicted(photograph=photograph, probabilities=(), reason="it is cut off")
        return Predicted(photograph=photograph, probabilities=shares)

    return Predictions(folder=Path("m"), card=card, all=tuple(one(*row) for row in rows), same_data=False, left_out=())


def test_the_text_fits() -> None:
    """Long paths lose their beginning, long and wide names of classes their end, and only in the text."""
    long = "/".join(["folder"] * 30)
    classes = ["ants", "b" * 60, "蜂" * 40]
    rows: list[Any] = [(f"{long}/{number}.jpg", None, number) for number in range(3)] + [(f"{long}/x.jpg", None, -1)]
    found = predictions(classes, rows)
    text = show_predictions(found, "text")
    assert max(map(cell_len, text.splitlines())) <= WIDTH
    for number in range(3):
        assert f"folder/{number}.jpg  " in text
    assert "…" in text and "x.jpg: it is cut off" in text
    for form in ("csv", "json"):
        assert f"{long}/0.jpg" in show_predictions(found, form) and "蜂" * 40 in show_predictions(found, form)  # type: ignore[arg-type]


def test_a_wide_matrix_becomes_a_list() -> None:
    """The most frequent confusions first, each with its class's number of images."""
    classes = [f"class-{number:02}" for number in range(20)]
    rows = [
        (f"{number}.jpg", name, (index + (number < 3)) % 20)
        for index, name in enumerate(classes)
        for number in range(4)
    ]
    rows.append(("more.jpg", "class-07", 9))
    text = show_predictions(predictions(classes, rows), "text")
    assert max(map(len, text.splitlines())) <= WIDTH and "predicted class, by true class" not in text
    assert "3 of 5 class-07 taken for class-08" in text and "… and 1 more pairs of classes" in text
    assert f"accuracy: {20 / 81:.1%} (20 of 81 images)" in text


def test_the_matrix_counts_right() -> None:
    """Rows are true classes. An image that can't be read counts nowhere."""
    rows: list[Any] = [("1", "ants", 0), ("2", "ants", 1), ("3", "ants", 1), ("4", "bees", 1), ("5", "bees", -1)]
    found = predictions(["ants", "bees"], rows)
    assert found.confusion == [[1, 2], [0, 1]] and found.accuracy == 0.5
    assert "true class  ants  bees\nants           1     2\nbees           0     1\n" in show_predictions(found, "text")
    assert predictions(["ants", "bees"], [("1", None, 0)]).confusion is None


def test_names_act_nowhere() -> None:
    """Escape sequences are shown, and a spreadsheet takes no path for a formula."""
    found = predictions(["\x1b[31mants", "=1+1"], [("=cmd.jpg", None, 1), ("\x1b[2J.jpg", "\x1b[31mants", 0)])
    for form in ("text", "csv", "json"):
        assert "\x1b" not in show_predictions(found, form)  # type: ignore[arg-type]
    rows = list(csv.reader(io.StringIO(show_predictions(found, "csv"))))
    assert rows[1][:2] == ["'=cmd.jpg", "'=1+1"]
    assert json.loads(show_predictions(found, "json"))["images"][1]["path"] == "\x1b[2J.jpg"
