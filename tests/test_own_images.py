"""Tests of the layouts in which people have their images: with and without a split, under other names, as tables."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import tl
from bench.execution import ray_node
from tests.commands import ONE, here, light_command
from tests.images import picture, write_folder, write_pictures
from tl.datasets import digest_at, scan
from tl.digest import file_digests, set_digest
from tl.errors import ConfigError, DataError
from tl.folds import check_protocol, every_image, fold_splits, origin
from tl.images import open_store

COUNTS = {"ants": 10, "bees": 6, "wasps": 2}


def classes_of(splits: tl.Splits, images: tl.datasets.ImageList | None) -> dict[str, int]:
    assert images is not None
    return {name: list(images.labels).count(label) for label, name in enumerate(splits.classes)}


def write_table(path: Path, rows: list[dict[str, str]], *, delimiter: str = ",") -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_classes_without_a_split_get_one(tmp_path: Path) -> None:
    """A rounded fifth of each class, at least one; the same images wherever the folder is and whatever it is called."""
    root = write_pictures(tmp_path / "mine", COUNTS)
    splits = tl.load_splits(root)
    assert (splits.name, splits.classes, splits.root) == ("mine", ("ants", "bees", "wasps"), root)
    assert classes_of(splits, splits.val) == {"ants": 2, "bees": 1, "wasps": 1}
    assert classes_of(splits, splits.train) == {"ants": 8, "bees": 5, "wasps": 1}
    assert sorted(every_image(splits).files) == sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*.png")
    )
    assert all((splits.root / file).is_file() for file in every_image(splits).files)
    assert splits.origin.startswith("no split was given: 4 of 18 images, a fifth of each class, are for validation")
    moved = tmp_path / "other"
    shutil.copytree(root, moved)
    again = tl.load_splits(moved)
    assert (again.train, again.val, again.digest) == (splits.train, splits.val, splits.digest)


def test_the_choice_depends_on_content_not_on_names(tmp_path: Path) -> None:
    """Renamed files stay on their side."""
    root = write_pictures(tmp_path / "mine", COUNTS)
    before = tl.load_splits(root)
    chosen = {file_digests(root, [file])[file] for file in before.val.files}
    for number, path in enumerate(sorted(root.rglob("*.png"), reverse=True)):
        path.rename(path.with_name(f"renamed {number}.png"))
    after = tl.load_splits(root)
    assert {file_digests(root, [file])[file] for file in after.val.files} == chosen
    assert after.digest != before.digest


def test_the_digest_covers_the_assignment(tmp_path: Path) -> None:
    """The same files with another side, or another class, are another data set."""
    root = write_pictures(tmp_path / "mine", COUNTS)
    splits = tl.load_splits(root)
    files = {file: file_digests(root, [file])[file] for file in every_image(splits).files}
    assert splits.digest != set_digest(files)
    rows = [
        {"path": file, "label": splits.classes[label], "split": split}
        for split, images in (("train", splits.train), ("val", splits.val))
        for file, label in zip(images.files, images.labels, strict=True)
    ]
    same = tl.load_splits(write_table(root / "table.csv", rows))
    assert same.digest == splits.digest, "a table that says the same is the same data set"
    rows[0]["split"], rows[-4]["split"] = "val", "train"
    moved = tl.load_splits(write_table(root / "table.csv", rows))
    rows[0]["split"], rows[-4]["split"] = "train", "val"
    rows[0]["label"], rows[8]["label"] = rows[8]["label"], rows[0]["label"]
    relabelled = tl.load_splits(write_table(root / "table.csv", rows))
    assert len({splits.digest, moved.digest, relabelled.digest}) == 3


def test_images_that_look_the_same_stay_on_one_side(tmp_path: Path) -> None:
    """Identical files, smaller copies and copies under another label. Without them the copies would be torn."""
    root = write_pictures(tmp_path / "mine", {"ants": 10, "bees": 10})
    for index in range(6):
        shutil.copy(root / "ants" / f"{index}.png", root / "ants" / f"same {index}.png")
        picture(10 + index).resize((80, 60)).save(root / "bees" / f"smaller {index}.jpg", quality=80)
    shutil.copy(root / "ants" / "7.png", root / "bees" / "ant.png")
    with pytest.warns(tl.DataWarning, match="in two classes"):
        splits = tl.load_splits(root)
    groups = {frozenset(group) for group in splits.together}
    assert groups == {
        *(frozenset({f"ants/{n}.png", f"ants/same {n}.png"}) for n in range(6)),
        *(frozenset({f"bees/{n}.png", f"bees/smaller {n}.jpg"}) for n in range(6)),
        frozenset({"ants/7.png", "bees/ant.png"}),
    }
    sides = (set(splits.train.files), set(splits.val.files))
    assert all(any(group <= side for side in sides) for group in groups)
    assert "images that look the same stay on one side (13 groups)" in splits.origin
    assert "train and val" not in {each.kind for each in splits.duplicates}


@pytest.mark.parametrize(
    ("train", "val"),
    [("Training", "valid"), ("TRAIN", "Validation"), ("train", "dev"), ("training set", "val"), ("trn", "VAL")],
)
def test_other_names_of_the_splits_are_understood(train: str, val: str, tmp_path: Path) -> None:
    """And said."""
    root = write_folder(tmp_path / "mine")
    before = tl.load_splits(root)
    (root / "train").rename(root / train)
    (root / "val").rename(root / val)
    splits = tl.load_splits(root)
    assert splits.train.files == tuple(file.replace("train/", f"{train}/", 1) for file in before.train.files)
    assert splits.val.files == tuple(file.replace("val/", f"{val}/", 1) for file in before.val.files)
    said = {f"training images are those in '{train}/'": train != "train"}
    said |= {f"validation images are those in '{val}/'": val != "val"}
    assert {text: text in splits.origin for text in said} == said
    assert not before.origin


def write_in(root: Path, folders: tuple[str, ...]) -> Path:
    """Write four pictures directly into each folder."""
    for number, folder in enumerate(folders):
        write_pictures(root, {folder: 4}, first=10 * number)
    return root


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train", "bus", "car"), "'train' is a class, not a split"),
        (("Training", "bus"), "'Training' is a class, not a split"),
        (("train", "val", "bus/london", "bus/berlin"), "'train' and 'val' are classes, not splits"),
        (("Test", "valid", "bus"), "'Test' and 'valid' are classes, not splits"),
        (("dev", "eval", "validation", "bus"), "'dev', 'eval' and 'validation' are classes, not splits"),
    ],
)
def test_a_class_may_be_called_like_a_split(folders: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """A train is a vehicle: its images lie directly in its folder, and other classes are beside it."""
    splits = tl.load_splits(write_in(tmp_path / "vehicles", folders))
    assert splits.classes == tuple(sorted({Path(folder).parts[0] for folder in folders}))
    assert len(every_image(splits)) == 4 * len(folders) and splits.test is None
    assert splits.origin.startswith(f"{said}; no split was given: ")


@pytest.mark.parametrize("beside", ["val", "Validation", "test"])
def test_a_folder_with_images_beside_the_splits_is_told(beside: str, tmp_path: Path) -> None:
    """Class folders in two splits leave no doubt. A folder without images, such as one of labels, is nothing to say."""
    folders = ("train/a", "train/b", f"{beside}/a", f"{beside}/b")
    root = write_in(tmp_path / "mine", folders)
    (root / "labels").mkdir()
    before = tl.load_splits(root)
    assert before.left_out == ()
    write_in(root, ("raw/1", "other"))
    with pytest.warns(tl.DataWarning, match="left out 2 folders with images beside the splits, such as 'other/'"):
        after = tl.load_splits(root)
    assert (after.digest, after.classes) == (before.digest, ("a", "b"))


@pytest.mark.parametrize("name", ["test", "Testing"])
def test_a_test_part_is_kept_apart(name: str, tmp_path: Path) -> None:
    """It changes neither digest nor images, and its files may even be damaged."""
    root = write_folder(tmp_path / "mine", train=4)
    before = tl.load_splits(root)
    for label in "ab":
        (root / name / label).mkdir(parents=True)
        (root / name / label / "0.jpg").write_text(f"no image {label}")
    splits = tl.load_splits(root)
    assert splits.test is not None and splits.test.files == (f"{name}/a/0.jpg", f"{name}/b/0.jpg")
    assert (splits.train, splits.val, splits.digest) == (before.train, before.val, before.digest)
    assert splits.origin == "2 test images are kept apart, and no training looks at them"
    open_store(splits)
    with pytest.raises(DataError, match="2 of 10 images can't be decoded"):
        open_store(splits.for_test())


def test_the_test_part_is_evaluated_as_a_data_set_of_its_own(tmp_path: Path) -> None:
    """With the same training images, and a digest that covers the test images."""
    root = write_folder(tmp_path / "mine")
    write_pictures(root / "test", {"a": 2, "b": 1})
    splits = tl.load_splits(root)
    final = splits.for_test()
    assert (final.train, final.val, final.test) == (splits.train, splits.test, None)
    assert final.classes == splits.classes and final.name == "mine:test" and "the test images" in final.origin
    picture(99).save(root / "test" / "b" / "0.png")
    assert tl.load_splits(root).digest == splits.digest
    assert len({splits.digest, final.digest, tl.load_splits(root).for_test().digest}) == 3
    with pytest.raises(DataError, match="has no test images"):
        final.for_test()


def test_validation_images_are_split_off_where_there_is_only_a_test_part(tmp_path: Path) -> None:
    """They come from the training images; the test images stay apart."""
    write_pictures(tmp_path / "mine" / "train", {"a": 10, "b": 5})
    root = write_pictures(tmp_path / "mine" / "test", {"a": 2, "b": 2}, first=50).parent
    splits = tl.load_splits(root)
    assert classes_of(splits, splits.val) == {"a": 2, "b": 1} and classes_of(splits, splits.test) == {"a": 2, "b": 2}
    assert all(file.startswith("train/") for file in every_image(splits).files)
    assert "'train' has no validation images beside it: 3 of 15 images" in splits.origin
    shutil.rmtree(root / "test")
    assert tl.load_splits(root).digest == splits.digest


@pytest.mark.parametrize(
    ("add", "said", "lost"),
    [
        (lambda test: picture(9).save(test / "0.png"), "it has no class folders", 1),
        (lambda test: write_pictures(test, {"a": 1, "c": 2}), "its class 'c' is no class of the training images", 3),
        (lambda test: (test / "a").mkdir(), "a class in it has no images", 0),
    ],
)
@pytest.mark.filterwarnings("ignore::tl.DataWarning")
def test_a_test_part_that_cannot_be_used_is_left_out(
    add: Callable[[Path], object], said: str, lost: int, tmp_path: Path
) -> None:
    """No training needs it, so the set can be used; it says so, and the images count as left out."""
    root = write_folder(tmp_path / "mine")
    (root / "test").mkdir()
    add(root / "test")
    splits = tl.load_splits(root)
    assert splits.test is None and splits.origin.startswith(f"'test/' is left out: {said}")
    assert sum(each.count for each in splits.left_out) == lost
    done = here("data", str(root))
    assert done.returncode == 0 and f"left out: {lost or 'none'}" in done.stdout.splitlines()
    several = "s" if lost > 1 else ""
    assert (f"WARNING: left out {lost} image{several} of a test folder that can't be used" in done.stdout) == (lost > 0)


def test_a_folder_that_is_empty_or_a_link_is_no_second_part(tmp_path: Path) -> None:
    """Nothing in it would be left out."""
    root = write_folder(tmp_path / "mine")
    expected = tl.load_splits(root).val
    (root / "valid" / "a").mkdir(parents=True)
    (root / "validation").symlink_to("val")
    assert tl.load_splits(root).val == expected


def rows_of(root: Path) -> list[dict[str, str]]:
    """A row for each image of a folder `SPLIT/CLASS/*`."""
    files = sorted(path.relative_to(root) for path in root.rglob("*.jpg"))
    return [{"path": file.as_posix(), "label": file.parts[1], "split": file.parts[0]} for file in files]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "jsonl"])
def test_a_table_has_paths_labels_and_splits(ending: str, tmp_path: Path) -> None:
    """The images are those of the folders, whatever the order of its rows and whatever else the table has."""
    root = write_folder(tmp_path / "mine")
    folders = tl.load_splits(root)
    rows = [{**row, "photographer": "me, myself"} for row in reversed(rows_of(root))]
    table = write_table(root / f"labels.{ending}", rows, delimiter="\t" if ending == "tsv" else ",")
    splits = tl.load_splits(table)
    assert (splits.train, splits.val, splits.classes) == (folders.train, folders.val, folders.classes)
    assert (splits.name, splits.root) == ("labels", root)
    assert splits.origin == f"labels and splits are those of 'labels.{ending}'"
    write_table(table, rows[::-1], delimiter="\t" if ending == "tsv" else ",")
    assert tl.load_splits(table) == splits


@pytest.mark.parametrize("path", ["image", "file", "filename", "file_name", "filepath", "Path", "FILE NAME"])
@pytest.mark.parametrize("label", ["class", "target", "Label"])
def test_usual_names_of_columns_are_understood(path: str, label: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine")
    rows = [{"id": str(n), path: row["path"], label: row["label"]} for n, row in enumerate(rows_of(root))]
    splits = tl.load_splits(write_table(root / "labels.csv", rows, delimiter=";"))
    assert len(every_image(splits)) == 10 and splits.classes == ("a", "b")
    assert "it has no split: 2 of 10 images" in splits.origin


def test_labels_of_a_parquet_file_may_be_numbers_or_categories(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine")
    frame = pd.DataFrame(rows_of(root)).astype({"label": "category", "split": "category"})
    frame.to_parquet(root / "labels.parquet")
    assert tl.load_splits(root / "labels.parquet").classes == ("a", "b")
    frame.assign(label=frame["label"].cat.codes).to_parquet(root / "labels.parquet")
    assert tl.load_splits(root / "labels.parquet").classes == ("0", "1")


def test_a_table_may_have_a_test_part_and_no_validation_images(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", train=5)
    rows = [{**row, "split": "TEST" if row["split"] == "val" else "Train"} for row in rows_of(root)]
    splits = tl.load_splits(write_table(root / "labels.csv", rows))
    assert classes_of(splits, splits.test) == {"a": 2, "b": 2} and classes_of(splits, splits.val) == {"a": 1, "b": 1}
    assert "4 test images are kept apart" in splits.origin and "it has no validation images: 2 of 10" in splits.origin


@pytest.mark.parametrize("absolute", [True, False])
def test_images_may_lie_outside_of_the_tables_folder(absolute: bool, tmp_path: Path) -> None:
    """The set's root is then the folder that has them all, so that no name depends on where that is."""
    root = write_folder(tmp_path / "photos")
    (tmp_path / "tables").mkdir()
    rows = [
        {**row, "path": str(root / row["path"]) if absolute else f"../photos/{row['path']}"} for row in rows_of(root)
    ]
    splits = tl.load_splits(write_table(tmp_path / "tables" / "labels.csv", rows))
    assert (splits.root, splits.train) == (root, tl.load_splits(root).train)


def test_a_hugging_face_folder_with_class_folders(tmp_path: Path) -> None:
    """`train/`, `validation/`, `test/`, also in `data/`; the set is named after the folder that was given."""
    root = write_folder(tmp_path / "org--set")
    (root / "val").rename(root / "validation")
    write_pictures(root / "test", {"a": 1, "b": 1})
    plain = tl.load_splits(root)
    assert len(plain.val) == 4 and len(plain.test or ()) == 2
    (root / "data").mkdir()
    for name in ("train", "validation", "test"):
        (root / name).rename(root / "data" / name)
    (root / "README.md").write_text("---\n")
    inner = tl.load_splits(root)
    assert (inner.name, inner.digest, inner.root) == ("org--set", plain.digest, root / "data")


def flat(root: Path, folder: str, rows: list[tuple[str, str, int]], header: str = "file_name,label") -> None:
    """Write pictures into a folder, and a `metadata.csv` with a row for each."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, _, number in rows:
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(root / folder / name)
    lines = [f"{name},{label}" for name, label, _ in rows]
    (root / folder / "metadata.csv").write_text("\n".join([header, *lines]))


def test_a_hugging_face_folder_with_metadata_for_each_split(tmp_path: Path) -> None:
    """File names are relative to the metadata's folder."""
    root = tmp_path / "set"
    flat(root, "train", [(f"{n}.png", "ab"[n % 2], n) for n in range(6)])
    flat(root, "validation", [(f"images/{n}.png", "ab"[n % 2], 50 + n) for n in range(2)])
    splits = tl.load_splits(root)
    assert splits.train.files == tuple(f"train/{n}.png" for n in (0, 2, 4, 1, 3, 5))
    assert splits.val.files == ("validation/images/0.png", "validation/images/1.png")
    assert (splits.classes, splits.name) == (("a", "b"), "set")


def test_a_hugging_face_folder_with_metadata_for_all(tmp_path: Path) -> None:
    """The splits are the folders that the images are in, where there are such."""
    root = tmp_path / "set"
    flat(root, ".", [(f"{'train' if n < 6 else 'test'}/{n}.png", "ab"[n % 2], n) for n in range(8)])
    splits = tl.load_splits(root)
    assert (len(splits.train), len(splits.val), len(splits.test or ())) == (4, 2, 2)
    shutil.rmtree(root)
    flat(root, ".", [(f"images/{n}.png", "ab"[n % 2], n) for n in range(8)], header="file_name,label")
    unsplit = tl.load_splits(root)
    assert (len(unsplit.train), len(unsplit.val), unsplit.test) == (6, 2, None)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
@pytest.mark.parametrize("folder", [".", "train"])
def test_metadata_without_labels_changes_nothing(folder: str, name: str, tmp_path: Path) -> None:
    """It may have captions or boxes; the class folders have the labels."""
    root = write_folder(tmp_path / "mine")
    before = tl.load_splits(root)
    write_table(root / folder / name, [{"file_name": "a/0.jpg", "text": "an ant"}])
    after = tl.load_splits(root)
    assert (after.train, after.val, after.digest) == (before.train, before.val, before.digest)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_metadata_with_labels_decides_whatever_the_folders_say(name: str, tmp_path: Path) -> None:
    """As in Hugging Face's `imagefolder`. Images that it lacks are counted, and nothing else is dropped."""
    root = write_folder(tmp_path / "mine")
    files = [file for file in every_image(tl.load_splits(root)).files if not file.endswith("b/1.jpg")]
    rows = [{"file_name": file, "label": "xy"[number % 2], "text": "!"} for number, file in enumerate(files)]
    write_table(root / name, rows)
    (root / "notes.txt").write_text("")
    with pytest.warns(tl.DataWarning, match="left out 2 images that the table of labels lacks, such as 'train/b/1.jpg"):
        splits = tl.load_splits(root)
    assert splits.classes == ("x", "y") and set(every_image(splits).files) == set(files)
    assert all(file.startswith("train/") for file in splits.train.files) and len(splits.val) == 3
    assert splits.origin == f"labels and splits are those of {name!r}"
    assert [(each.reason, each.example) for each in splits.left_out] == [
        ("image that the table of labels lacks", "train/b/1.jpg"),
        ("file without an image's ending", "notes.txt"),
    ]


def test_a_table_of_each_split_leaves_out_a_test_part_without_one(tmp_path: Path) -> None:
    """Test images often come without labels. Those of the tables' splits that have no row are counted too."""
    root = tmp_path / "set"
    flat(root, "train", [(f"{n}.png", "ab"[n % 2], n) for n in range(6)])
    flat(root, "validation", [(f"{n}.png", "ab"[n % 2], 50 + n) for n in range(2)])
    write_pictures(root, {"test": 3}, first=60)
    picture(70).save(root / "train" / "new.png")
    with pytest.warns(tl.DataWarning, match="left out 4 images that the table of labels lacks"):
        splits = tl.load_splits(root)
    assert (len(splits.train), len(splits.val), splits.test) == (6, 2, None)


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda root: root.mkdir(), "has no folders of classes; the layout is"),
    "images alone": (
        lambda root: write_pictures(root, {"": 3}),
        "has no folders of classes, only 3 images of unknown class; the layout is",
    ),
    "table": (
        lambda root: write_table(write_pictures(root, {"": 1}) / "y.csv", [{"path": "0.png", "label": "a"}]),
        "has no folders of classes; is 'y.csv' a table of its images? Give that file",
    ),
    "one class": (lambda root: write_pictures(root, {"a": 3}), "1 class in the folder; at least 2 are needed"),
    "one image": (lambda root: write_pictures(root, {"a": 3, "b": 1}), "class 'b' has 1 image; at least 2 are needed"),
    "one picture": (
        lambda root: [write_pictures(root, {"a": 3, "b": 1}), picture(3).save(root / "b" / "copy.jpg")],
        "class 'b' can't be split: its 2 images look the same, such as 'b/0.png' ~ 'b/copy.jpg', so some can't be for "
        "validation while others are for training: add different ones, leave the class out, or give the split yourself",
    ),
    "in two classes": (
        lambda root: [
            write_pictures(root, {"a": 3, "b": 0}),
            picture(0).save(root / "b" / "ant.png"),
            picture(0).resize((80, 60)).save(root / "b" / "small.png"),
        ],
        "class 'b' can't be split: its images look the same as some of 'a', such as 'b/ant.png' ~ 'a/0.png', and would "
        "all be on one side: remove those that are in two classes, add different ones, or give the split yourself",
    ),
    "too deep": (
        lambda root: write_pictures(root / "images", {"a": 2, "b": 2}),
        "'images/' holds 'a/', 'b/': if these are the classes, give that folder",
    ),
    "two names": (
        lambda root: [write_pictures(root / name, {"a": 2, "b": 2}) for name in ("train", "valid", "dev")],
        "there is 'valid/', 'dev/', and only one folder can have the validation images: call that one val/, and move "
        "the rest into it or elsewhere",
    ),
    "usual and other name": (
        lambda root: [write_pictures(root / name, {"a": 2, "b": 2}) for name in ("train", "valid", "val")],
        "there is 'val/', 'valid/', and only one folder can have the validation images",
    ),
    "two test parts": (
        lambda root: [write_pictures(root / name, {"a": 2, "b": 2}) for name in ("train", "val", "test", "testing")],
        "there is 'test/', 'testing/', and only one folder can have the test images: call that one test/",
    ),
    "no train": (
        lambda root: [write_pictures(root / name, {"a": 2, "b": 2}) for name in ("test", "valid")],
        "has no folder train/ beside 'test/', 'valid/'",
    ),
    "split beside classes": (
        lambda root: [write_pictures(root, {"a": 2, "b": 2}), write_pictures(root / "test", {"a": 1, "b": 1})],
        "has no folder train/ beside 'test/'",
    ),
    "split or class": (
        lambda root: write_in(root, ("train/a", "train/b", "other")),
        "'train/' may be a split, with the classes 'a/', 'b/', or a class beside 'other/': move 'other/' elsewhere if "
        "'train' is a split, rename 'train' if it is a class",
    ),
    "split or class, deeper": (
        lambda root: write_in(root, ("Train/bus", "Train/car", "bus/london", "car/london", "val")),
        "'Train/' may be a split, with the classes 'bus/', 'car/', or a class beside 'bus/', 'car/': move ",
    ),
    "split and class": (
        lambda root: write_in(root, ("train", "bus", "val/a", "val/b")),
        "'val/' has class folders, and 'train/' has images in none: rename them if they are classes",
    ),
    "splits without classes": (
        lambda root: write_in(root, ("train", "test1")),
        "0 classes in train/; at least 2 are needed; left out 4 images outside a class folder",
    ),
    "metadata of one split": (
        lambda root: [flat(root, "train", [(f"{n}.png", "ab"[n % 2], n) for n in range(4)]), write_in(root, ("dev",))],
        "'train/metadata.csv' has the labels of the training images, and 'dev/' has no such table",
    ),
    "metadata without labels": (
        lambda root: flat(root, "train", [("0.png", "a", 0)], header="file_name,text"),
        "0 classes in train/; at least 2 are needed; left out 1 image outside a class folder: 'train/0.png'; "
        "'metadata.csv' has no column label (or class, class_name, label_name, …); its columns are 'file_name', 'text'",
    ),
    "metadata of a single image": (
        lambda root: [write_in(root, ("a", "b")), flat(root, ".", [("a/0.png", "a", 0)])],
        "metadata.csv: has 1 class, 'a'; at least 2 are needed",
    ),
    "val is a file": (
        lambda root: [write_pictures(root / "train", {"a": 2, "b": 2}), (root / "val").write_text("")],
        "has no folder val/; 'val' is no folder",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_folder_that_cannot_be_used_is_one_line(case: str, tmp_path: Path) -> None:
    """Exit status 2, and nothing is written."""
    make, said = BAD_FOLDERS[case]
    make(tmp_path / "mine")
    refused(tmp_path / "mine", said)


@pytest.mark.parametrize("case", ["one picture", "in two classes"])
def test_what_cannot_be_split_can_be_given_split(case: str, tmp_path: Path) -> None:
    """As the message says: by folders or a column."""
    root = tmp_path / "mine"
    BAD_FOLDERS[case][0](root)
    files = sorted(root.rglob("*.*g"))
    rows = [{"path": str(file), "label": file.parent.name, "split": "train"} for file in files]
    rows[0]["split"] = rows[-1]["split"] = "val"
    for row in rows:
        (tmp_path / "given" / row["split"] / row["label"]).mkdir(parents=True, exist_ok=True)
        shutil.copy(row["path"], tmp_path / "given" / row["split"] / row["label"])
    for data in (write_table(tmp_path / "labels.csv", rows), tmp_path / "given"):
        with pytest.warns(tl.DataWarning) if case == "in two classes" else contextlib.nullcontext():
            splits = tl.load_splits(data)
        assert (len(splits.train), len(splits.val)) == (3, 2)


def refused(data: Path, said: str, *command: str) -> None:
    done = here(*(command or ("data", str(data))))
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line
    assert not Path("results").exists()


def test_run_refuses_them_too(tmp_path: Path) -> None:
    """With the same line, before anything is written."""
    make, said = BAD_FOLDERS["one image"]
    make(tmp_path / "mine")
    refused(tmp_path / "mine", said, *ONE, "--data", str(tmp_path / "mine"))


GOOD = [{"path": f"{n}.png", "label": "ab"[n % 2], "split": "train" if n < 4 else "val"} for n in range(6)]
BAD_TABLES: dict[str, tuple[list[dict[str, str]] | str, str]] = {
    "empty": ("", "is empty; its first line has the names of columns"),
    "no rows": ("path,label\n", "has no rows"),
    "missing files": (
        [*GOOD, {"path": "x.png", "label": "a", "split": "val"}, {"path": "y/z.png", "label": "a", "split": "val"}],
        "2 of 8 images are not there, the first is 'x.png' in row 7",
    ),
    "unknown columns": (
        [{"photo": "0.png", "kind": "a"}],
        "has no column path (or file_name, filename, file, …) and no column label (or class, class_name, label_name, "
        "…); its columns are 'photo', 'kind'; path and label are needed, split is optional",
    ),
    "no label column": ([{"path": "0.png", "kind": "a"}], "has no column label (or class, "),
    "label in one split": (
        [*GOOD[:-1], {"path": "5.png", "label": "c", "split": "val"}],
        "the label 'b' is only in train, not in val",
    ),
    "label in val alone": (
        [{**GOOD[5], "label": "c"}, *GOOD[:4], GOOD[4], {"path": "6.png", "label": "b", "split": "val"}],
        "the label 'c' is only in val, not in train",
    ),
    "label in test alone": (
        [*GOOD, {"path": "6.png", "label": "c", "split": "test"}],
        "the label 'c' is only in test, not in train",
    ),
    "one class": ([{**row, "label": "a"} for row in GOOD], "has 1 class, 'a'; at least 2 are needed"),
    "one image": (
        [{"path": "0.png", "label": "a"}, {"path": "1.png", "label": "b"}, {"path": "2.png", "label": "b"}],
        "class 'a' has 1 image; at least 2 are needed",
    ),
    "no training images": (
        [{**row, "split": "val"} for row in GOOD],
        "no image is a training image; its splits are val",
    ),
    "repeated rows": (
        [*GOOD, GOOD[1], GOOD[2], GOOD[2]],
        "2 images have more than one row, the first is '1.png' in rows 2 and 7",
    ),
    "two labels": ([*GOOD, {**GOOD[1], "label": "a"}], "'1.png' in rows 2 and 7, once as 'b' and once as 'a'"),
    "the same by another path": ([*GOOD, {**GOOD[1], "path": "./1.png"}], "'1.png' in rows 2 and 7"),
    "unknown split": (
        [*GOOD, {"path": "6.png", "label": "a", "split": "other"}],
        "1 of 7 rows have an unknown 'split', such as 'other'; known are train, val and test; the first is row 7",
    ),
    "no label": (
        [*GOOD, {"path": "6.png", "label": "", "split": "val"}],
        "1 of 7 rows have no 'label'; the first is row 7",
    ),
    "no split": (
        [*GOOD, {"path": "6.png", "label": "a", "split": ""}],
        "1 of 7 rows have no 'split', and others have one; known are train, val and test; the first is row 7",
    ),
    "address": (
        [*GOOD, {"path": "https://example.org/6.png", "label": "a", "split": "val"}],
        "1 of 7 rows have an address, such as 'https://example.org/6.png': addresses aren't downloaded, images must be "
        "files; the first is row 7",
    ),
    "folder": (
        [*GOOD, {"path": "../mine", "label": "a", "split": "val"}],
        "'../mine' in row 7 is a folder; each row is one image",
    ),
    "path in a message": (
        [{**row, "path": f"../mine/{row['path']}"} for row in [*GOOD, GOOD[1]]],
        "the first is '../mine/1.png' in rows 2 and 7",
    ),
    "short line": ("path,label\n0.png,a\n1.png\n", "line 3 has 1 values, and the first line 2"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_a_table_that_cannot_be_used_is_one_line(ending: str, case: str, tmp_path: Path) -> None:
    """The message counts what is wrong, and names the first."""
    content, said = BAD_TABLES[case]
    root = write_pictures(tmp_path / "mine", {"": 7})
    table = root / f"labels.{ending}"
    if isinstance(content, list):
        write_table(table, content)
    elif ending == "csv":
        table.write_text(content)
    else:
        pytest.skip("a mistake of CSV files alone")
    refused(table, said)


def test_errors_about_a_table_name_it(tmp_path: Path) -> None:
    """Not its folder, which may have several tables."""
    root = write_pictures(tmp_path / "mine", {"": 3})
    rows = [{"path": f"{n}.png", "label": "aab"[n]} for n in range(3)]
    table = write_table(root / "labels.csv", rows)
    refused(table, f"{table}: class 'b' has 1 image; at least 2 are needed")


@pytest.mark.parametrize("form", ["file://{root}/{split}/{label}/{name}", "{split}\\{label}\\{name}"])
def test_paths_of_other_programs_are_understood(form: str, tmp_path: Path) -> None:
    """`file://` addresses, with `%20` for a space, and the backslashes of Windows."""
    root = write_folder(tmp_path / "my images")
    rows = []
    for row in rows_of(root):
        split, label, name = row["path"].split("/")
        place = str(root).replace(" ", "%20")
        rows.append({**row, "path": form.format(root=place, split=split, label=label, name=name)})
    splits = tl.load_splits(write_table(root / "labels.csv", rows))
    expected = tl.load_splits(write_table(root / "plain.csv", rows_of(root)))
    assert (splits.train, splits.val, splits.digest) == (expected.train, expected.val, expected.digest)


def test_quotes_may_follow_a_space(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine")
    lines = [f'"{row["path"]}", "{row["label"]}", "{row["split"]}"' for row in rows_of(root)]
    (root / "labels.csv").write_text("\n".join(['"path", "label", "split"', *lines]))
    assert tl.load_splits(root / "labels.csv").classes == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.parquet", b"PAR1 and nothing else", "labels.parquet: can't be read as Parquet: "),
        (
            "labels.csv",
            "path,label\né.png,a\n".encode("latin-1"),
            "labels.csv: is not text in UTF-8 (byte 0xe9 in line 2)",
        ),
        ("labels.jsonl", b'{"path": "0.png", "label": "a"}\n\n{"path": ', "labels.jsonl: line 3 can't be read as JSON"),
        ("labels.jsonl", b'["0.png", "a"]', """line 1 has ["0.png", "a"], not an object such as {"path": "0.jpg","""),
        ("labels.jsonl", b"\n", "labels.jsonl: is empty; each line is an image's object"),
        (
            "labels.jsonl",
            b'{"path": "0.png", "label": {"id": 1}}',
            "1 of 1 rows have no text but a list or an object for 'label'; the first is row 1",
        ),
        ("labels.txt", b"path,label\n", "labels.txt: is neither a folder nor a table (.csv, .tsv, .parquet or .jsonl)"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, said)


def test_images_inside_of_a_parquet_file_are_refused(tmp_path: Path) -> None:
    """As Hugging Face stores them: there are no paths then."""
    frame = pd.DataFrame({"image": [{"bytes": b"x", "path": "0.png"}], "label": [0]})
    frame.to_parquet(tmp_path / "train.parquet")
    refused(tmp_path / "train.parquet", "the column 'image' has struct<bytes: binary, path: ")


def test_folders_without_images_beside_the_classes_are_told(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "mine", {"a": 3, "b": 3})
    (root / "notes").mkdir()
    (root / "notes" / "x.txt").write_text("")
    (root / "README.md").write_text("")
    with pytest.warns(tl.DataWarning, match="left out 1 folder without images: 'notes/'"):
        splits = tl.load_splits(root)
    assert {(each.reason, each.count) for each in splits.left_out} == {
        ("folder without images", 1),
        ("file without an image's ending", 2),
    }


def test_cross_validation_needs_no_split(tmp_path: Path) -> None:
    """Its folds have all images, and keep those together that look the same."""
    root = write_pictures(tmp_path / "mine", {"a": 6, "b": 6})
    for index in range(3):
        picture(index).resize((90, 70)).save(root / "a" / f"copy {index}.png")
    splits = tl.load_splits(root)
    made = fold_splits(splits, 3, 0)
    assert sorted(file for part, _ in made for file in part.val.files) == sorted(every_image(splits).files)
    for index in range(3):
        assert sum({f"a/{index}.png", f"a/copy {index}.png"} <= set(part.val.files) for part, _ in made) == 1
    config = tl.TrainConfig(backbone="x", protocol="kfold", folds=6)
    check_protocol(config, splits)
    assert origin(config, splits) == f"{splits.origin}; the folds take training and validation images together"
    assert origin(tl.TrainConfig(backbone="x"), splits) == splits.origin
    with pytest.raises(ConfigError, match=r"class 'a' has 6 images that don't look the same; use at most 6 folds"):
        check_protocol(tl.TrainConfig(backbone="x", protocol="kfold", folds=7), scan_more(root))


def scan_more(root: Path) -> tl.Splits:
    """The set with three more of class `b`, so that nine copies of class `a` are what there is too little of."""
    for index in range(3):
        picture(100 + index).save(root / "b" / f"more {index}.png")
    return tl.load_splits(root)


def test_a_run_on_images_without_a_split_says_how_they_were_split(tmp_path: Path) -> None:
    """In the terminal, the manifest and the report; a second command finds the same split."""
    root = write_pictures(tmp_path / "mine", {"a": 20, "b": 5})
    picture(3).resize((80, 60)).save(root / "a" / "copy.jpg")
    grid = tmp_path / "g.toml"
    grid.write_text('[matrix]\nbackbones = ["timm:quick0"]\nregimes = ["frozen"]\ndevices = ["cpu"]\n')
    command = ("run", "--grid", str(grid), "--data", str(root), "--name", "r", "--no-images")
    done = light_command(*command)
    assert done.returncode == 0, done.stderr
    split = "no split was given: 5 of 26 images, a fifth of each class, are for validation, chosen by a fixed seed"
    imbalanced = "the classes are imbalanced: 'a' has 17 training images, 4.2 times as many as 'b' (4)"
    alike = "1 image is nearly the same as another image of its class"
    markdown = (tmp_path / "reports" / "r.md").read_text()
    for text in (split, imbalanced, alike):
        assert f"\n        {text}" in done.stdout and f"- Note: {text}" in markdown
    again = light_command(*command)
    assert again.returncode == 0 and "1 of them done before" in again.stdout


def test_a_cluster_finds_the_images_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node has no table. It knows the images by their digest, and refuses others."""
    monkeypatch.setattr(ray_node, "_KNOWN", {})
    root = write_folder(tmp_path / "mine")
    splits = tl.load_splits(write_table(root / "labels.csv", rows_of(root)))
    (root / "labels.csv").unlink()
    assert digest_at(splits, root) == splits.digest
    assert ray_node.find_images(splits, None).root == root
    (root / splits.train.files[0]).unlink()
    with pytest.raises(DataError, match="can't be read"):
        digest_at(splits, root)


def test_known_layouts_keep_their_digest(tmp_path: Path) -> None:
    """Committed runs name it: the sorted lines of training and validation files, and nothing of a split."""
    root = write_folder(tmp_path / "mine")
    files = [path.relative_to(root).as_posix() for path in root.rglob("*.jpg")]
    write_pictures(root / "test", {"a": 1, "b": 1})
    assert scan(root).digest == set_digest(file_digests(root, files))
