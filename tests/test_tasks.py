"""Tasks: the score of classification as before, and several labels for each image, from the table to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score

import bench
import tl
from bench.analysis.metrics import METRICS, finished
from bench.analysis.stats import mcnemar
from bench.analysis.words import in_words
from bench.store.consistency import contradiction
from bench.store.records import Cell, DatasetIdentity
from bench.store.runs import RunFolder
from tests.commands import here as command
from tests.conftest import TINY
from tests.label_sets import NAMES, draw, drawn, write_table
from tests.runs import says_nothing_of_accuracies, shown_on
from tests.weights import with_statistics
from tl.average_precision import average_precision, mean_average_precision, of_images
from tl.cache import to_json
from tl.config import LOSSES
from tl.learning import LEARNING
from tl.regimes import REGIMES
from tl.tasks import TASKS

MULTI = {"backbone": TINY[1], "task": "multilabel", "weights": "random", "batch_size": 4, "epochs": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="module")
def splits(folder: Path) -> tl.Splits:
    return tl.load_splits(folder, task="multilabel")


def indicators(targets: tuple[tuple[int, ...], ...], classes: int) -> np.ndarray:
    """0 or 1 for each image and class."""
    table = np.zeros((len(targets), classes), dtype=int)
    for row, some in zip(table, targets, strict=True):
        row[list(some)] = 1
    return table


def test_every_task_has_both_entries() -> None:
    """Each loss belongs to one task at least, and each task says what its images' score is called."""
    assert TASKS.keys() == LEARNING.keys()
    assert {loss for task in TASKS.values() for loss in task.losses} == LOSSES.keys()
    for name, task in TASKS.items():
        assert LEARNING[name].counts_hits is task.right_or_wrong
        assert LEARNING[name].val_loss is task.val_loss
        assert task.right_or_wrong or (task.compared and task.image_score != task.score)


LONGEST: dict[str, dict[str, Any]] = {
    "classification": {"labels": [9999] * 50, "confidences": [0.123456] * 50},
    "multilabel": {"labels": [], "confidences": [], "probabilities": [[0.123456] * 300] * 50},
    "detection": {"labels": [], "confidences": [], "detections": [[(9999, *[0.12345] * 5)] * 100] * 50},
}


@pytest.mark.parametrize("name", TASKS)
def test_the_space_that_predictions_take(name: str) -> None:
    """As much is reserved on the disk for a record as predictions take at most, and no more than twice of it."""

    def size(images: int) -> int:
        some = {key: value[:images] for key, value in LONGEST[name].items()}
        return len(to_json({"result": {"last": tl.results.Predictions(epoch=0, **some).model_dump(mode="json")}}))

    bound = TASKS[name].prediction_bytes(300)
    each = (size(50) - size(10)) / 40
    assert each <= bound <= max(2 * each, 100)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_scikit_learns(seed: int) -> None:
    """Also with equal scores, which are one threshold; classes without images are left out, and none is unknown."""
    rng = np.random.default_rng(seed)
    truth = rng.random((30, 4)) < rng.random(4)
    truth[:, 3] &= seed > 1  # no image has the last class
    scores = np.round(rng.random((30, 4)), 3 if seed % 2 else 1)  # many are equal
    sets = [tuple(np.flatnonzero(row).tolist()) for row in truth]
    known = truth.any(axis=0)
    expected = average_precision_score(truth[:, known], scores[:, known], average="macro")
    assert mean_average_precision(scores.tolist(), sets) == pytest.approx(expected, abs=1e-12)
    assert average_precision([0.3, 0.2], [False, False]) is None
    distinct = scores + 1e-6 * rng.permutation(scores.size).reshape(scores.shape)
    ours = of_images(distinct.tolist(), sets)
    assert np.mean(ours) == pytest.approx(label_ranking_average_precision_score(truth, distinct), abs=1e-12)
    assert all(value == 1 for value, some in zip(ours, sets, strict=True) if not some)


@pytest.mark.parametrize("form", ["apart", "bars", "lines", "parquet"])
def test_forms_of_a_table_are_one_data_set(splits: tl.Splits, folder: Path, tmp_path: Path, form: str) -> None:
    """A column of labels and a column for each give the same classes, targets and digest, in every kind of file."""
    import pandas as pd

    place = drawn(tmp_path / "set", form="apart" if form == "apart" else "together")
    table = place / "labels.csv"
    if form == "bars":
        table.write_text(table.read_text(encoding="utf-8").replace(";", " | "), encoding="utf-8")
    elif form != "apart":
        rows = pd.read_csv(table, keep_default_na=False)
        table.unlink()
        table = place / f"labels.{'jsonl' if form == 'lines' else form}"
        rows.to_json(table, orient="records", lines=True) if form == "lines" else rows.to_parquet(table)
    for data in (place, table):
        found = tl.load_splits(data, task="multilabel")
        assert (found.classes, found.train, found.val) == (splits.classes, splits.train, splits.val)
        assert found.digest == splits.digest and found.task == "multilabel"
    assert splits.classes == NAMES and () in splits.train.targets and splits.train.labels == ()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_lists_of_labels(splits: tl.Splits, tmp_path: Path, form: str) -> None:
    """They are the labels, whatever separates them elsewhere; in a list of lists, or with the mark in one, none is."""
    import pandas as pd

    place = drawn(tmp_path / "set")
    rows = pd.read_csv(place / "labels.csv", keep_default_na=False)
    (place / "labels.csv").unlink()
    table = place / f"labels.{form}"

    def write(labels: list[Any]) -> None:
        made = rows.assign(labels=labels)
        made.to_json(table, orient="records", lines=True) if form == "jsonl" else made.to_parquet(table)

    given = [[each for each in text.split(";") if each] for text in rows["labels"]]
    write(given)
    assert tl.load_splits(table, task="multilabel").digest == splits.digest
    write([[each.replace("red", "red, dark|light") for each in some] for some in given])
    assert "red, dark|light" in tl.load_splits(table, task="multilabel").classes
    write([[each.replace("red", "red;dark") for each in some] for some in given])
    with pytest.raises(tl.DataError, match=r"rows have a list with ';' in one of its texts for 'labels'"):
        tl.load_splits(table, task="multilabel")
    write([[[each] for each in some] for some in given])
    with pytest.raises(
        tl.DataError, match=r"rows have a list or an object for 'labels', not a text or a list of texts"
    ):
        tl.load_splits(table, task="multilabel")


def test_a_label_may_have_a_comma(tmp_path: Path) -> None:
    """If it ends with the mark that separates labels."""
    for place, _, labels in ROWS:
        draw(tmp_path / place, labels, seed=int(place[0]))
    write_table(tmp_path / "labels.csv", [(place, split, ["red, dark", *labels, ""]) for place, split, labels in ROWS])
    assert tl.load_splits(tmp_path, task="multilabel").classes == ("blue", "red", "red, dark")


def test_the_labels_are_part_of_the_digest(splits: tl.Splits, tmp_path: Path) -> None:
    """One label more makes another data set, and so another cell."""
    place = drawn(tmp_path)
    text = (place / "labels.csv").read_text(encoding="utf-8")
    (place / "labels.csv").write_text(text.replace("1.png,train,", "1.png,train,red", 1), encoding="utf-8")
    assert tl.load_splits(place, task="multilabel").digest != splits.digest


ROWS = [("0.png", "train", ["red"]), ("1.png", "train", ["blue"]), ("2.png", "val", ["red"])]


def _edited(old: str, new: str) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        text = (root / "labels.csv").read_text(encoding="utf-8")
        assert old in text
        (root / "labels.csv").write_text(text.replace(old, new), encoding="utf-8")

    return edit


BAD = {
    "label only in val": (_edited("2.png,val,red", "2.png,val,green"), "the label 'green' is only in val, so no train"),
    "no label in val": (_edited("2.png,val,red", "2.png,val,"), "no image of val has a label; there is nothing to"),
    "one label": (_edited("blue", "red"), r"have 1 label, 'red'; at least 2 are needed"),
    "no validation": (_edited("val", "train"), "no image is in val; its splits are train"),
    "unknown split": (_edited("val", "later"), "1 of 3 rows has an unknown 'split', 'later'; known"),
    "no split": (_edited("split", "part"), "has the columns 'path', 'part', 'labels'; needed are a path, a split"),
    "no labels": (_edited("labels", "caption"), "the column 'caption' has 'red' in row 1, and the column of a label"),
    "gone": (_edited("1.png", "7.png"), "1 of 3 images are not there, the first is '7.png'"),
    "twice": (_edited("1.png", "0.png"), "1 image has more than one row"),
    "commas": (
        _edited("0.png,train,red", '0.png,train,"red,blue"'),
        "has 'red,blue' in row 1, and labels are separated by",
    ),
    "two tables": (lambda root: write_table(root / "more.csv", ROWS), r"has 2 tables \(labels.csv, more.csv\)"),
    "no table": (lambda root: (root / "labels.csv").unlink(), "has no table; task 'multilabel' needs one"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_in_a_table_is_one_line(tmp_path: Path, name: str) -> None:
    for place, _, labels in ROWS:
        draw(tmp_path / place, labels, seed=int(place[0]))
    write_table(tmp_path / "labels.csv", ROWS)
    tl.load_splits(tmp_path, task="multilabel")  # it is right before
    edit, message = BAD[name]
    edit(tmp_path)
    with pytest.raises(tl.DataError, match=message) as caught:
        tl.load_splits(tmp_path, task="multilabel")
    assert "\n" not in str(caught.value)


def test_other_data_is_refused(folder: Path) -> None:
    """Sets of one class, and unknown tasks; a table of several labels is none of one class."""
    with pytest.raises(tl.DataError, match=r"^data='synthetic-mini': has one class for each image; task 'multilabel'"):
        tl.load_splits("synthetic-mini", task="multilabel")
    with pytest.raises(tl.DataError, match=r"^data='nowhere': is no folder and no table"):
        tl.load_splits("nowhere", task="multilabel")
    with pytest.raises(tl.ConfigError, match=r"^task='multi': not one of classification, multilabel"):
        tl.load_splits(folder, task="multi")
    with pytest.raises(tl.DataError, match="several labels for each image are for task 'multilabel'"):
        tl.load_splits(folder / "labels.csv")


@pytest.mark.parametrize(
    ("regime", "execution"), [("finetune", "fast"), ("finetune", "plain"), ("frozen", "fast"), ("cached", "fast")]
)
def test_a_training_is_scored_by_its_predictions(splits: tl.Splits, regime: str, execution: str) -> None:
    """The score is scikit-learn's of the probabilities, the loss that of torch, and training has no score."""
    config = tl.TrainConfig(**MULTI | {"regime": regime, "execution": execution, "epochs": 2})
    result = tl.train_model(config, splits, device="cpu")
    truth, found = indicators(splits.val.targets, 3), np.array(result.last.probabilities)
    row = result.epochs[-1]
    assert row.val_accuracy == pytest.approx(average_precision_score(truth, found), abs=1e-9)
    loss = torch.nn.functional.binary_cross_entropy(torch.tensor(found), torch.tensor(truth, dtype=torch.float64))
    assert row.val_loss == pytest.approx(loss.item(), abs=1e-4)
    assert (config.loss, result.score, row.train_accuracy) == ("bce", "mAP", None)
    assert result.last.labels == result.last.confidences == [] and result.constant_prediction is None
    assert row.train_loss is not None and row.train_loss > 0


def test_a_head_learns_the_labels_of_its_own_images(tmp_path: Path) -> None:
    """Validation images are the training images: only if targets go with their images can all be ranked right."""
    place = drawn(tmp_path, train=12, val=0)
    lines = (place / "labels.csv").read_text(encoding="utf-8").splitlines()
    again = [line.replace(".png,train", "-again.png,val") for line in lines[1:]]
    for number in range(12):
        (place / f"{number}-again.png").write_bytes((place / f"{number}.png").read_bytes())
    (place / "labels.csv").write_text("\n".join([*lines, *again]), encoding="utf-8")
    with pytest.warns(tl.DataWarning):
        same = tl.load_splits(place, task="multilabel")
    given = {"regime": "cached", "weights": "pretrained", "epochs": 150, "learning_rate": 0.03, "schedule": "constant"}
    config = tl.TrainConfig(**MULTI | given | {"optimizer": "adamw"})
    result = tl.train_model(config, same, device="cpu", weights_dir=with_statistics())
    assert result.val_accuracy_last == 1.0
    assert TASKS["multilabel"].image_scores(result.last, same.val.targets) == [1.0] * 12


@pytest.mark.parametrize("regime", REGIMES)
def test_regimes_with_one_class_for_each_image_are_skipped(splits: tl.Splits, regime: str) -> None:
    """Those that fit a head or use ImageNet's; a reason says so. All others train."""
    why = TASKS["multilabel"].no_regime(REGIMES[regime])
    assert bool(why) is (regime in ("knn", "ridge", "logistic", "lp-ft", "zeroshot"))
    assert not TASKS["classification"].no_regime(REGIMES[regime])
    if why:
        with pytest.raises(tl.NotApplicable, match=f"^regime '{regime}' has no meaning with task 'multilabel': its"):
            tl.train_model(tl.TrainConfig(**MULTI | {"regime": regime}), splits, device="cpu")


def test_the_same_answer_for_all_images_is_a_yardstick(splits: tl.Splits) -> None:
    """Equal probabilities have the mAP that a report shows beside that of networks; the largest class has its share."""
    task, equal = TASKS["multilabel"], np.tile([0.2, 0.7, 0.5], (len(splits.val), 1))
    expected = average_precision_score(indicators(splits.val.targets, 3), equal)
    assert task.same_answer(splits.val.targets) == pytest.approx(expected, abs=1e-12)
    assert mean_average_precision(equal.tolist(), splits.val.targets) == pytest.approx(expected, abs=1e-12)
    assert task.same_answer([(0,), (0, 1), (), ()]) == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert TASKS["classification"].same_answer([1, 1, 0, 2]) == 0.5


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "kfold": ({"protocol": "kfold"}, "^protocol='kfold': task 'multilabel' has only fixed"),
    "tuned": ({"protocol": "tuned"}, "^protocol='tuned': task 'multilabel' has only fixed"),
    "focal": ({"loss": "focal"}, "^loss='focal': task 'multilabel' needs bce"),
    "weights": ({"class_weights": "balanced"}, "^class_weights='balanced': not read by task 'multilabel'"),
    "smoothing": ({"label_smoothing": 0.1}, "^label_smoothing=0.1: not read by task 'multilabel'"),
    "bce": ({"task": "classification", "loss": "bce"}, "^loss='bce': task 'classification' needs cross_entropy or"),
    "unknown": ({"task": "multi-label"}, "^task='multi-label': not one of classification, multilabel, detection; did"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_a_task_does_not_read_are_refused(name: str) -> None:
    given, message = SETTINGS[name]
    with pytest.raises(tl.ConfigError, match=message):
        tl.TrainConfig(**MULTI | given)


def test_images_of_another_task_are_refused(splits: tl.Splits, mini: tl.Splits) -> None:
    for config, images in ((MULTI | {"task": "classification"}, splits), (MULTI, mini)):
        with pytest.raises(tl.ConfigError, match=r"^task='\w+': the images of .* are for '\w+'; load them with"):
            tl.train_model(tl.TrainConfig(**config), images, device="cpu")


def test_nothing_is_saved_or_shown_by_class(splits: tl.Splits, tmp_path: Path) -> None:
    """A saved model predicts one class, and pictures are titled by one: each says so in a line."""
    result = tl.train_model(tl.TrainConfig(**MULTI), splits, device="cpu")
    with pytest.raises(tl.ModelError, match=r"^task='multilabel': can't be saved"):
        tl.save_model(result, splits, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    for shown in (lambda: tl.show_batch(splits, TINY[1]), lambda: tl.show_predictions(result, splits)):
        with pytest.raises(tl.ConfigError, match=r"^task='multilabel': pictures are titled"):
            shown()


def test_the_default_task_changes_no_id() -> None:
    """A cell of classification has the id that it had before tasks existed, and one of another task another."""
    backbones = {"detection": "torchvision:ssdlite320_mobilenet_v3_large"}
    cell, *others = (
        Cell(
            config=tl.TrainConfig(backbone=backbones.get(task, "timm:x"), task=task),
            weights_digest="",
            dataset_digest="d",
            device="cpu",
        )
        for task in TASKS
    )
    assert cell.id == "72c807b070af" and len({cell.id, *(other.id for other in others)}) == len(TASKS)


def test_mcnemar_is_the_sign_test_of_right_or_wrong() -> None:
    """Of shares it counts which is larger, by however much."""
    first, second = [True, True, False, True, True, True, True], [False, True, False, False, False, False, False]
    shares = [0.9, 1.0, 0.2, 0.31, 0.5, 0.8, 1.0], [0.1, 1.0, 0.2, 0.3, 0.4, 0.5, 0.0]
    assert mcnemar(*shares) == mcnemar(first, second)
    assert mcnemar(*shares).p == pytest.approx(2 * 0.5**5)


def test_words_of_a_score() -> None:
    """Sentences on accuracies name the score of the task; names of backbones and files stay as they are."""
    text = "Accuracy of module:my.accuracy:net: the most accurate, accuracies are less accurate; ./accuracy, accuracy."
    assert in_words(text, TASKS["classification"]) == text
    said = in_words(text, TASKS["multilabel"])
    assert said == "mAP of module:my.accuracy:net: the best, mAP values are worse; ./accuracy, mAP."
    assert in_words("accuracy difference", TASKS["multilabel"], by_image=True) == "image AP difference"


def _trained(data: Path, regimes: str, *, seeds: int) -> list[str]:
    """Options of a run of two epochs on some images."""
    words = ["--task", "multilabel", "--data", str(data), "--backbone", TINY[1], "--device", "cpu"]
    words += ["--regime", regimes, "--seeds", str(seeds), "--epochs", "2", "--no-paired", "--executor", "inline"]
    return [*words, "--weights-dir", str(with_statistics())]


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two regimes and three seeds, and one that is skipped, with its report."""
    place = tmp_path_factory.mktemp("run")
    arguments = [*_trained(folder, "cached,frozen,knn", seeds=3), "--name", "several"]
    done = command("run", *arguments, "--results", str(place / "results"), "--reports", str(place / "reports"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "(12 training + 8 validation images, 3 classes; task multilabel; the same answer for all images has mAP "
        in done.stdout
    )
    assert "skipped: " in done.stdout and "has no meaning with task 'multilabel'" in done.stdout
    assert "mAP" in done.stdout and "accuracy" not in done.stdout.replace("--", "")
    return place


def test_a_run_says_its_task_and_score(run: Path, splits: tl.Splits) -> None:
    """In its manifest, its records and its exports; metrics of classes are unknown, and what is left is the score."""
    folder = RunFolder(run / "results" / "several")
    manifest, records = folder.manifest(), folder.records()
    assert manifest.dataset.task == manifest.protocol["task"] == "multilabel"
    assert manifest.dataset.truth == splits.val.targets and manifest.dataset.val_labels == ()
    done = [record for record in records.values() if record.status == "done"]
    assert len(done) == 6 and len(records) == 7
    for record in done:
        assert record.cell.config.task == "multilabel" and record.result.score == "mAP"
        cell = finished(record, manifest.dataset.truth)
        assert METRICS["val_accuracy_last"].of(cell) == record.result.epochs[-1].val_accuracy
        for name in ("macro_f1_last", "balanced_accuracy_last", "calibration_error_last", "largest_class_rate"):
            assert METRICS[name].of(cell) is None
    frame = bench.load_results(run / "results" / "several")
    assert set(frame["task"]) == {"multilabel"} and set(frame["score"]) == {"mAP"}


def test_a_record_that_was_edited_is_noticed(run: Path) -> None:
    """A score that its predictions don't have, predictions that are no longer whole, and a score of training."""
    folder = RunFolder(run / "results" / "several")
    manifest = folder.manifest()
    record = next(record for record in folder.records().values() if record.status == "done")
    assert contradiction(record, manifest) == ""
    result, last = record.result, record.result.epochs[-1]

    def with_last(**changes: Any) -> Any:
        return record.replace(result=result.replace(epochs=(*result.epochs[:-1], last.replace(**changes))))

    assert "its predictions have" in contradiction(with_last(val_accuracy=last.val_accuracy / 2), manifest)
    assert "train_accuracy=0.5" in contradiction(with_last(train_accuracy=0.5), manifest)
    fewer = result.last.replace(probabilities=result.last.probabilities[:-1])
    assert "has 7 predictions" in contradiction(record.replace(result=result.replace(last=fewer)), manifest)
    with pytest.raises(tl.ConfigError, match="must have probabilities of classes"):
        result.replace(last=result.last.replace(probabilities=None))
    with pytest.raises(tl.ConfigError, match="has 2 probabilities of 3 classes"):
        result.replace(last=result.last.replace(probabilities=[row[:2] for row in result.last.probabilities]))
    with pytest.raises(tl.ConfigError, match=r"val_targets has class 3, and there are 3"):
        manifest.dataset.replace(val_targets=((3,), *manifest.dataset.val_targets[1:]))
    with pytest.raises(tl.ConfigError, match="and val_targets 7 labels"):
        manifest.dataset.replace(val_targets=manifest.dataset.val_targets[1:])


def test_older_manifests_are_of_classification() -> None:
    old = {"name": "x", "digest": "d", "classes": ("a", "b"), "train_images": 2, "val_files": ("f",)}
    assert DatasetIdentity(**old, val_labels=(1,)).task == "classification"


@pytest.mark.parametrize("suffix", ["md", "html"])
def test_the_report_names_the_score(run: Path, suffix: str) -> None:
    """It says mAP, how cells are compared, and nothing of accuracies, largest classes or right images."""
    text = (run / "reports" / f"several.{suffix}").read_text(encoding="utf-8")
    body = text if suffix == "md" else shown_on(text)
    for said in (
        "last mAP",
        "mAP (mean average precision)",
        "A single image has no mAP",
        "image AP",
        "bce",
        "all images the same prob",
    ):
        assert said in body
    says_nothing_of_accuracies(body)
    assert not (run / "reports" / "several" / "confusion.png").exists()
    assert (run / "reports" / "several" / "accuracy-curve.png").exists()


def test_other_commands_on_such_a_run(run: Path, folder: Path, tmp_path: Path) -> None:
    """`show`, `claims` and `compare` work; `train`, `pick` and a report with another task say in a line why not."""
    results = ["--results", str(run / "results")]
    shown = command("show", "several", *results)
    assert shown.returncode == 0 and "mAP" in shown.stdout and "accuracy" not in shown.stdout
    claims = command("claims", "several", *results)
    assert claims.returncode == 0 and "points of image AP" in claims.stdout and "ccurac" not in claims.stdout
    one = [*_trained(folder, "frozen", seeds=1), "--name", "again", "--no-report", *results]
    assert command("run", *one).returncode == 0
    compared = command("compare", "again", "several", *results)
    assert compared.returncode == 0 and "Traceback" not in compared.stdout + compared.stderr
    assert "mAP" in compared.stdout and "ccurac" not in compared.stdout
    assert command("report", "--index", *results, "--reports", str(tmp_path)).returncode == 0
    page = (tmp_path / "index.html").read_text()
    assert ">best mAP</th>" in page and "ccurac" not in shown_on(page)
    refused = command("train", "several", *results, "--cell", _a_cell(run), "--out", str(tmp_path / "model"))
    assert refused.returncode == 2 and "task='multilabel': can't be saved" in refused.stderr
    picked = command("pick", str(folder / "labels.csv"), "--dry-run", *results)
    assert picked.returncode == 2 and "several labels for each image are for task 'multilabel'" in picked.stderr
    again = command("run", "--data", "synthetic-mini", "--task", "multilabel", "--grid", "smoke", *results)
    assert again.returncode == 2 and "has one class for each image" in again.stderr


def _a_cell(run: Path) -> str:
    records = RunFolder(run / "results" / "several").records().values()
    return next(record.cell_id for record in records if record.status == "done")


def test_the_survey_counts_labels(folder: Path) -> None:
    """`bench data` counts the images of each label; it has no largest class."""
    told = command("data", str(folder), "--task", "multilabel", "--format", "json")
    assert told.returncode == 0, told.stderr
    found, splits = json.loads(told.stdout), tl.load_splits(folder, task="multilabel")
    for number, name in enumerate(splits.classes):
        assert found["classes"][name]["train"] == sum(number in some for some in splits.train.targets)
    assert (found["task"], found["baseline"], found["splits"]) == ("multilabel", None, {"train": 12, "val": 8})
    assert command("data", str(folder), "--task", "multilabel").returncode == 0
