"""Tests of data sets: finding, checking, generating and downloading them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tl
from tests.damage import DAMAGES, flip, make_fifo, warned_once
from tests.images import write_folder, write_image
from tests.servers import serve
from tl import hymenoptera, synthetic
from tl.datasets import DATASETS, scan
from tl.digest import file_digests
from tl.errors import DataError

UNREACHABLE = "http://127.0.0.1:9/hymenoptera_data.zip"


@pytest.mark.parametrize("name", [name for name, each in DATASETS.items() if each.task == "classification"])
def test_contract(name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Every named data set is found, has two splits with the same classes, and says if it is synthetic.

    Those with boxes have a test of their own in `tests/test_boxes.py`.
    """
    if name == "hymenoptera":
        monkeypatch.setenv("TL_DATA", str(request.getfixturevalue("real_images")))
    splits = tl.load_splits(name)
    assert splits.name == name
    assert len(splits.classes) >= 2
    assert set(splits.train.labels) == set(splits.val.labels) == set(range(len(splits.classes)))
    assert all((splits.root / file).is_file() for file in (*splits.train.files, *splits.val.files))
    assert bool(splits.fallback) == (name != "hymenoptera")
    assert tl.load_splits(splits.root).name == name, "its content identifies it in any folder"
    assert tl.load_splits(splits.root).fallback == splits.fallback


def test_the_digest_is_that_of_the_definition(tmp_path: Path) -> None:
    """The digest is the SHA-256 over the sorted lines `relative/path sha256`."""
    root = write_folder(tmp_path / "set", ("b c", "a"))
    lines = [
        f"{path.relative_to(root).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in root.rglob("*.jpg")
    ]
    assert scan(root).digest == hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def test_moving_a_folder_keeps_its_digest_and_changing_a_file_does_not(tmp_path: Path) -> None:
    """The digest depends only on the content."""
    root = write_folder(tmp_path / "one")
    shutil.copytree(root, tmp_path / "two")
    assert scan(root).digest == scan(tmp_path / "two").digest
    write_image(tmp_path / "two" / "val" / "a" / "0.jpg", seed=99)
    assert scan(root).digest != scan(tmp_path / "two").digest


def _without(path: str):
    return lambda root: shutil.rmtree(root / path)


def _more(path: str):
    return lambda root: write_image(root / path)


def test_folders_without_images_are_no_classes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "notes.txt").write_text("no image")
    with pytest.raises(tl.DataError, match=r"set: 0 classes in the folder; at least 2 are needed$"):
        tl.load_splits(tmp_path / "set")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("train"), "has no folder train/"),
        (lambda root: [_without("val")(root), _without("train/b")(root)], "1 class in train/; at least 2"),
        (lambda root: [_without("train/b")(root), _without("val/b")(root)], "1 class in train/; at least 2"),
        (lambda root: [p.unlink() for p in (root / "train/a").iterdir()], "class 'a' has no images"),
        (_more("val/c/0.jpg"), "different classes: 'c' is only in val/"),
        (_without("val/b"), "different classes: 'b' is only in train/"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, spoil, message: str) -> None:
    """One line says what is wrong."""
    root = write_folder(tmp_path / "set")
    spoil(root)
    with pytest.raises(DataError) as error:
        tl.load_splits(root)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_has_a_near_match() -> None:
    """The name is neither a folder nor a data set."""
    with pytest.raises(DataError, match="did you mean 'hymenoptera'"):
        tl.load_splits("hymenoptra")


def test_synthetic_images_have_the_same_bytes_every_time(tmp_path: Path, mini: tl.Splits) -> None:
    """A set that is generated again elsewhere has the same files."""
    synthetic.write_set(synthetic.MINI, tmp_path / "again")
    assert scan(tmp_path / "again").digest == mini.digest


def test_the_synthetic_set_is_as_large_as_the_real_one_and_not_trivial() -> None:
    """244 + 153 images of many sizes; mean colour and size don't separate ants from bees."""
    splits = tl.load_splits("synthetic")
    assert (len(splits.train), len(splits.val)) == (244, 153)
    expected = hymenoptera.expected()
    for split, images in (("train", splits.train), ("val", splits.val)):
        for label, name in enumerate(splits.classes):
            assert images.labels.count(label) == sum(file.startswith(f"{split}/{name}/") for file in expected)

    def features(images) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for file in images.files:
            pixels = np.asarray(Image.open(splits.root / file), dtype=float)
            rows.append([*pixels.mean((0, 1)), *pixels.std((0, 1)), *pixels.shape[:2], 1.0])
        return np.array(rows), np.array(images.labels) * 2.0 - 1

    (x, y), (x_val, y_val) = features(splits.train), features(splits.val)
    scale = np.abs(x).max(0)
    weights = np.linalg.lstsq(x / scale, y, rcond=None)[0]
    assert ((x_val / scale @ weights > 0) == (y_val > 0)).mean() < 0.75
    assert len({tuple(row[6:8]) for row in x}) > 50


def test_auto_prefers_real_images_and_falls_back_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without real images `auto` takes synthetic ones, and says so with the reason."""
    monkeypatch.delenv("TL_OFFLINE")
    monkeypatch.setattr(hymenoptera, "URL", UNREACHABLE)
    with pytest.warns(tl.FallbackWarning, match="the images are synthetic"):
        splits = tl.load_splits("auto")
    assert splits.name == "synthetic"
    assert splits.fallback.startswith(synthetic.SYNTHETIC_NOTE) and "could not be downloaded" in splits.fallback
    with pytest.raises(hymenoptera.Unavailable):
        tl.load_splits("hymenoptera")


def test_a_wrong_folder_is_an_error_not_a_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `TL_DATA` that is no folder, or another set, is an error; synthetic images never replace it."""
    monkeypatch.setenv("TL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"TL_DATA=.*no such folder"):
        tl.load_splits("auto")
    monkeypatch.setenv("TL_DATA", str(write_folder(tmp_path / "set", ("ants", "bees"))))
    with pytest.raises(DataError, match=r"not the hymenoptera set: train/ants/0\.jpg is not part of it"):
        tl.load_splits("auto")


def test_the_real_set_is_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is `$TL_DATA`, `data/hymenoptera_data`, cache. A small set replaces the real one here."""
    places = {"TL_DATA": tmp_path / "given", "local": tmp_path / "data" / "hymenoptera_data"}
    drawn = tl.load_splits("synthetic").root  # drawing them again would take longest
    shutil.copytree(drawn, tmp_path / "cache" / drawn.name)
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    places["cache"] = tmp_path / "cache" / "hymenoptera_data"
    for folder in places.values():
        write_folder(folder)
    monkeypatch.setattr(hymenoptera, "expected", lambda: file_digests(folder, _files(folder)))
    monkeypatch.setenv("TL_DATA", str(places["TL_DATA"]))
    assert tl.load_splits("auto").root == places["TL_DATA"].resolve()
    monkeypatch.delenv("TL_DATA")
    for name in ("local", "cache"):
        splits = tl.load_splits("auto")
        assert splits.root == places[name].resolve() and splits.name == "hymenoptera" and not splits.fallback
        shutil.rmtree(places[name])
    with pytest.warns(tl.FallbackWarning):
        assert tl.load_splits("auto").name == "synthetic"


def _files(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in root.rglob("*.jpg")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": (), "labels": ()}, "val has 0 images and 0 labels; one image at least is needed"),
        ({"labels": (0, 1)}, "val has 16 images and 2 labels; one image at least is needed, and a label for each"),
        ({"labels": (7,) * 16}, "val has the label 7; labels of 2 classes are 0 to 1"),
        ({"labels": np.full(16, -1)}, "val has the label -1; labels of 2 classes are 0 to 1"),
        ({"labels": (0.5,) * 16}, "val has the label 0.5; labels of 2 classes are 0 to 1"),
    ],
)
def test_splits_that_no_folder_has_are_refused(changes: dict[str, Any], said: str, mini: tl.Splits) -> None:
    """Whoever makes them gets the message, so nothing is trained on them."""
    with pytest.raises(DataError, match=f"synthetic-mini: {said}"):
        dataclasses.replace(mini, val=dataclasses.replace(mini.val, **changes))
    labels = np.array(mini.val.labels)
    assert dataclasses.replace(mini, val=dataclasses.replace(mini.val, labels=labels)).classes == mini.classes


def test_a_folder_named_like_a_known_set_is_not_that_set(tmp_path: Path) -> None:
    """Its name gets a prefix that says that it is a folder."""
    assert tl.load_splits(write_folder(tmp_path / "hymenoptera")).name == "folder:hymenoptera"
    assert tl.load_splits(write_folder(tmp_path / "mine")).name == "mine"


def _in_place_of(path: Path, other: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    other.rename(path)


DAMAGED_SETS: dict[str, Callable[[Path], object]] = {
    "missing": lambda root: (root / "train/ants/003.jpg").unlink(),
    "changed": lambda root: flip(root / "train/ants/003.jpg"),
    "two exchanged": lambda root: shutil.copy(root / "val/ants/000.jpg", root / "val/bees/000.jpg"),
    "one too many": lambda root: shutil.copy(root / "val/ants/000.jpg", root / "val/ants/more.jpg"),
    "one too many of another kind": lambda root: write_image(root / "train/bees/more.png"),
    "no image": lambda root: (root / "val/bees/notes.txt").write_text(""),
    "class too many": lambda root: write_image(root / "train/wasps/0.png"),
    "empty class": lambda root: (root / "train/wasps").mkdir(),
    "folder for an image": lambda root: [(root / "val/ants/001.jpg").unlink(), (root / "val/ants/001.jpg").mkdir()],
    "FIFO for an image": lambda root: make_fifo(root / "val/ants/001.jpg"),
    "link to nowhere": lambda root: [
        (root / "val/ants/001.jpg").unlink(),
        (root / "val/ants/001.jpg").symlink_to("nowhere"),
    ],
    **{
        f"marker: {name}": lambda root, damage=damage: damage(root / "DRAWN")
        for name, damage in DAMAGES.items()
        if name != "no digest"
    },
    "marker: missing": lambda root: (root / "DRAWN").unlink(),
    "split: a file": lambda root: _in_place_of(root / "val", root / "DRAWN"),
    "root: a file": lambda root: _in_place_of(root, Path(shutil.copy(root / "DRAWN", root.with_name("copy")))),
    "root: a link to nowhere": lambda root: [shutil.rmtree(root), root.symlink_to("nowhere")],
}


@pytest.mark.timeout(120)  # a FIFO must not be waited for
@pytest.mark.parametrize("damage", DAMAGED_SETS)
def test_a_damaged_synthetic_set_is_generated_again(
    damage: str, mini: tl.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the same pictures then, and nothing else is left in the cache."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    root = tmp_path / mini.root.name
    shutil.copytree(mini.root, root)
    assert tl.load_splits("synthetic-mini").digest == mini.digest, "without a warning"
    DAMAGED_SETS[damage](root)
    splits = warned_once(lambda: tl.load_splits("synthetic-mini"), root)
    assert splits == dataclasses.replace(mini, root=root)
    assert tl.load_splits("synthetic-mini") == splits
    assert list(tmp_path.iterdir()) == [root]


def test_hidden_files_in_a_synthetic_set_are_allowed(
    mini: tl.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File managers leave them behind. No data set reads them."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    root = Path(shutil.copytree(mini.root, tmp_path / mini.root.name))
    (root / "train" / ".DS_Store").write_text("")
    (root / ".cache" / "below").mkdir(parents=True)
    assert tl.load_splits("synthetic-mini").digest == mini.digest
    assert (root / "train" / ".DS_Store").exists()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("marker", ["folder", "FIFO", "no text"])
def test_a_folder_with_an_odd_marker_is_not_synthetic(marker: str, tmp_path: Path) -> None:
    """The name of the marker's file may mean anything in a user's folder."""
    root = write_folder(tmp_path / "mine")
    (root / "DRAWN").write_text("")
    DAMAGES[marker](root / "DRAWN")
    assert (tl.load_splits(root).name, tl.load_splits(root).fallback) == ("mine", "")


@pytest.mark.parametrize("name", ["auto", "hymenoptera", "synthetic-mini"])
def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The message has one line and says what to do."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.delenv("TL_OFFLINE")
    with pytest.raises(DataError, match=r"can't be written|could not be downloaded"):
        tl.load_splits(name)


def test_a_file_name_that_is_not_text_is_named(tmp_path: Path) -> None:
    """Old archives have such names."""
    root = write_folder(tmp_path / "set")
    write_image(root / "x.jpg").rename(os.fsdecode(os.fsencode(root / "train" / "a") + b"/caf\xe9.jpg"))
    with pytest.raises(DataError, match="not valid text"):
        tl.load_splits(root)


def test_the_real_images_are_recognised_in_any_folder(real_images: Path) -> None:
    """Given by path they are `hymenoptera` too; the GIF among them is left out."""
    splits = tl.load_splits(real_images)
    assert splits.name == "hymenoptera" and splits.digest == hymenoptera.DIGEST
    assert (len(splits.train), len(splits.val)) == (244, 153)
    (left_out,) = splits.left_out
    assert (left_out.count, left_out.example) == (1, "train/ants/imageNotFound.gif") and not left_out.serious
    assert splits.duplicates == ()


def test_a_changed_real_image_is_named(real_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the first file, in sorted order, that differs, is missing or is not part of the set."""
    copy = shutil.copytree(real_images, tmp_path / "copy", copy_function=shutil.copy)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o755)
    names = sorted(hymenoptera.expected())
    monkeypatch.setenv("TL_DATA", str(copy))
    with (copy / names[200]).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=f"{names[200]} differs"):
        tl.load_splits("hymenoptera")
    (copy / names[100]).unlink()
    with pytest.raises(DataError, match=f"{names[100]} is missing"):
        tl.load_splits("hymenoptera")


def _zip(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return data.getvalue()


def test_download_unpacks_into_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An archive becomes a folder, and no other files are left next to it."""
    root = write_folder(tmp_path / "set")
    files = {f"hymenoptera_data/{p.relative_to(root)}": p.read_bytes() for p in root.rglob("*.jpg")}
    wanted = file_digests(root, _files(root))
    with serve({"/set.zip": _zip(files)}) as address:
        hymenoptera.fetch(f"{address}/set.zip", tmp_path / "cache" / "images", wanted)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["images"]
    assert scan(tmp_path / "cache" / "images").digest == scan(root).digest
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a zip", "could not be downloaded"),
        (_zip({"../outside.txt": b"x"}), "unsafe member"),
        (_zip({"/tmp/outside.txt": b"x"}), "unsafe member"),
        (_zip({"readme.txt": b"x"}), "no folder with train/"),
        (_zip({"set/train/a/0.jpg": b"x"}), "val/a/0.jpg is missing"),
        (_zip({"set/train/a/0.jpg": b"x", "set/val/a/0.jpg": b"x", "set/val/b/1.jpg": b"x"}), "is not part of it"),
    ],
    ids=["garbage", "parent", "absolute", "empty", "incomplete", "other"],
)
def test_a_bad_archive_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Of a damaged archive, or one with members outside its folder, nothing is unpacked and nothing is left."""
    digest = hashlib.sha256(b"x").hexdigest()
    wanted = {"train/a/0.jpg": digest, "val/a/0.jpg": digest}
    with serve({"/set.zip": content}) as address, pytest.raises(hymenoptera.Unavailable, match=message):
        hymenoptera.fetch(f"{address}/set.zip", tmp_path / "cache" / "images", wanted)
    assert list((tmp_path / "cache").iterdir()) == []
    assert not (tmp_path / "outside.txt").exists()


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive must not unpack to more bytes than the limit."""
    monkeypatch.setattr(hymenoptera, "UNPACKED_LIMIT_BYTES", 100)
    (tmp_path / "set.zip").write_bytes(_zip({"x": b"0" * 101}))
    with pytest.raises(ValueError, match="101 bytes, more than 100"):
        hymenoptera.unpack(tmp_path / "set.zip", tmp_path / "out")
