"""Tests of the report on a data set before anything trains: `tl.survey`, and the command `bench data`."""

from __future__ import annotations

import json
import shutil
import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tl
from bench.report.summary import summarise
from bench.store.records import DatasetIdentity
from tests.commands import here
from tests.images import picture, write_pictures
from tests.runs import record, write_run
from tl.errors import ConfigError
from tl.survey import Survey, survey

KEYS = (
    *("images", "classes", "splits", "sizes", "baseline", "duplicates_within_splits", "duplicates_across_splits"),
    *("conflicting_labels", "unreadable", "left_out"),
)


def loaded(root: Path) -> tl.Splits:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tl.DataWarning)
        return tl.load_splits(root)


def made(root: Path) -> Path:
    """A set with one of everything: ants 4 + 2 + 1, bees 12 + 1 + 1, and what is wrong with it."""
    write_pictures(root / "train", {"ants": 4, "bees": 12})
    write_pictures(root / "val", {"ants": 2, "bees": 1}, first=50)
    write_pictures(root / "test", {"ants": 1, "bees": 1}, first=60)
    shutil.copy(root / "train/ants/0.png", root / "val/ants/same.png")
    picture(1).resize((80, 60)).save(root / "val/ants/smaller.jpg", quality=70)
    picture(2).resize((200, 150)).save(root / "train/bees/an ant.png")
    shutil.copy(root / "train/bees/3.png", root / "train/bees/again.png")
    picture(50).save(root / "test/ants/of val.jpg")
    (root / "train/bees/x.png").write_text("no image")
    (root / "val/bees/y.jpg").write_text("no image either")
    (root / "train/bees/notes.txt").write_text("")
    return root


def test_everything_is_counted(tmp_path: Path) -> None:
    """Each image once: identical ones are not also nearly identical."""
    root = made(tmp_path / "mine")
    found = survey(loaded(root), test=True)
    assert found.images == 28 and found.splits == {"train": 19, "val": 6, "test": 3}
    assert found.classes == {"ants": {"train": 4, "val": 4, "test": 2}, "bees": {"train": 15, "val": 2, "test": 1}}
    assert found.sizes and (found.sizes.width.min, found.sizes.width.median, found.sizes.width.max) == (80, 160, 200)
    assert (found.sizes.height.min, found.sizes.height.median, found.sizes.height.max) == (60, 120, 150)
    assert (found.baseline.name, round(found.baseline.rate, 3)) == ("ants", 0.667) and found.imbalance == 3.75
    across, within, conflicts = (
        found.duplicates_across_splits,
        found.duplicates_within_splits,
        found.conflicting_labels,
    )
    assert (across.identical, across.near, across.count) == (1, 2, 3)
    assert [(pair.file, pair.other) for pair in across.examples] == [
        ("val/ants/same.png", "train/ants/0.png"),
        ("val/ants/smaller.jpg", "train/ants/1.png"),
        ("test/ants/of val.jpg", "val/ants/0.png"),
    ]
    assert across.examples[0].distance == 0
    assert (within.identical, within.near) == (1, 1)
    assert (conflicts.identical, conflicts.near) == (0, 2)
    assert found.unreadable.count == 2
    assert [each.file for each in found.unreadable.first] == ["train/bees/x.png", "val/bees/y.jpg"]
    assert [(each.reason, each.count) for each in found.left_out] == [("file without an image's ending", 1)]
    said = "\n".join(found.warnings)
    for text in (
        "2 images can't be decoded, such as 'train/bees/x.png'",
        "repair or remove them before you train",
        "1 validation image is also a training image, such as 'val/ants/same.png' = 'train/ants/0.png'",
        "1 validation image is nearly the same as a training image, such as 'val/ants/smaller.jpg' ~ 'train/ants/1.p",
        "1 image is nearly the same as one of another class, such as 'train/ants/2.png' ~ 'train/bees/an ant.png'",
        "1 test image repeats training or validation images, such as 'test/ants/of val.jpg'",
    ):
        assert text in said
    assert any(
        note.startswith("the classes are imbalanced: 'bees' has 15 training images, 3.8") for note in found.notes
    )


def test_trainings_do_not_look_at_the_test_images(tmp_path: Path) -> None:
    """What a run records has nothing of them, and they may even be missing by then."""
    root = made(tmp_path / "mine")
    splits = loaded(root)
    shutil.rmtree(root / "test")
    found = survey(splits)
    assert found.splits == {"train": 19, "val": 6} and found.duplicates_across_splits.near == 1
    assert not any("test image" in said for said in found.warnings)


FILES = st.lists(
    st.tuples(st.sampled_from(["train", "val"]), st.sampled_from("ab"), st.integers(0, 3), st.booleans()), max_size=10
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(files=FILES)
def test_counts_are_those_of_their_definition(files: list[tuple[str, str, int, bool]], tmp_path: Path) -> None:
    """Compared with a look at every pair: the same picture looks the same, and twice the same file is identical."""
    root = tmp_path / "set"
    shutil.rmtree(root, ignore_errors=True)
    base = [
        (split, name, 10 + 2 * "ab".index(name) + (split == "val"), False)
        for split in ("train", "val")
        for name in "ab"
    ]
    written: list[tuple[str, str, int, bool]] = [*base, *files]
    place = {}
    for number, (split, name, which, small) in enumerate(written):
        path = root / split / name / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(which, size=(80, 60) if small else (160, 120)).save(path)
        place[path.relative_to(root).as_posix()] = number
    splits = loaded(root)
    rank = {number: index for index, number in enumerate(place[f] for f in (*splits.train.files, *splits.val.files))}
    pairs = [(i, j) for i, j in combinations(sorted(rank, key=rank.__getitem__), 2) if written[i][2] == written[j][2]]

    def count(*which: set[int]) -> tuple[int, int]:
        near, identical = which
        return len(identical), len(near - identical)

    def of(condition: Any) -> tuple[int, int]:
        near = {image for i, j in pairs for image in condition(i, j)}
        identical = {image for i, j in pairs if written[i][3] == written[j][3] for image in condition(i, j)}
        return count(near, identical)

    found = survey(splits)
    for repeats, condition in (
        (found.duplicates_across_splits, lambda i, j: [j] if written[i][0] != written[j][0] else []),
        (found.duplicates_within_splits, lambda i, j: [j] if written[i][0] == written[j][0] else []),
        (found.conflicting_labels, lambda i, j: [i, j] if written[i][1] != written[j][1] else []),
    ):
        assert (repeats.identical, repeats.near) == of(condition)
        for pair in repeats.examples:
            assert written[place[pair.file]][2] == written[place[pair.other]][2] and pair.file != pair.other


def test_the_command_prints_text_and_json(tmp_path: Path) -> None:
    """Exit status 0 with all findings, and nothing is written."""
    root = made(tmp_path / "mine")
    done = here("data", str(root), "--format", "json")
    assert done.returncode == 0 and done.stderr == ""
    content = json.loads(done.stdout)
    assert set(KEYS) <= content.keys() and Survey.from_json(done.stdout) == survey(loaded(root), test=True)
    assert content["unreadable"]["count"] == 2 and content["duplicates_across_splits"]["near"] == 2
    text = here("data", str(root))
    assert text.returncode == 0
    lines = text.stdout.splitlines()
    assert lines[0] == "mine: 28 images, 2 classes"
    assert lines[1].startswith("split: 3 test images are kept apart")
    assert lines[3:7] == [
        "class  train  val  test",
        "ants       4    4     2",
        "bees      15    2     1",
        "all       19    6     3",
    ]
    for line in (
        "width × height: 80 to 200 (median 160) × 60 to 150 (median 120) pixels",
        "baseline: always answering 'ants' is right for 66.7% of the validation images",
        "imbalance: the largest class has 3.8 times the training images of the smallest",
        "duplicates across splits: 1 identical, 2 nearly identical, such as 'val/ants/same.png' = 'train/ants/0.png'",
        "unreadable: 2",
        "left out: 1",
    ):
        assert line in lines
    assert not (tmp_path / "results").exists()


def test_conflicting_labels_say_what_is_counted(tmp_path: Path) -> None:
    """The line counts files, the warning images."""
    root = write_pictures(tmp_path / "mine" / "train", {"a": 3, "b": 3}).parent
    write_pictures(root / "val", {"a": 2, "b": 2}, first=50)
    (root / "train" / "b" / "9.png").write_bytes((root / "train" / "a" / "0.png").read_bytes())
    lines = here("data", str(root)).stdout.splitlines()
    (line,) = (one for one in lines if one.startswith("conflicting labels: "))
    assert line.startswith("conflicting labels: 2 identical, ")
    assert line.endswith(" (every file of such an image counts)")
    assert any(one.startswith("WARNING: 1 image is in two classes") for one in lines)


def test_a_clean_set_has_nothing_to_say(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "mine" / "train", {"a": 3, "b": 3}).parent
    write_pictures(root / "val", {"a": 2, "b": 2}, first=50)
    found = survey(loaded(root))
    assert (found.warnings, found.notes, found.near_duplicates, found.origin) == ((), (), (), "")
    text = here("data", str(root)).stdout
    assert text.count(": none") == 5 and "WARNING" not in text


def test_names_are_shown_safely(tmp_path: Path) -> None:
    """Escape sequences in names of classes and files don't reach the terminal."""
    root = write_pictures(tmp_path / "mine", {"a\x1b[31m": 3, "b": 3})
    for kind in ("text", "json"):
        done = here("data", str(root), "--format", kind)
        assert done.returncode == 0 and "\x1b" not in done.stdout


def test_all_damaged_images_may_be_all_images(tmp_path: Path) -> None:
    """Then there are no sizes."""
    for name in "ab":
        (tmp_path / "mine" / name).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "mine" / name / f"{number}.jpg").write_text(f"{name} {number}")
    found = survey(loaded(tmp_path / "mine"))
    assert found.sizes is None and found.unreadable.count == 8 and len(found.unreadable.first) == 5
    text = here("data", str(tmp_path / "mine")).stdout
    assert "\nunreadable: 8\n" in text and "\n  and 3 more\n" in text


def test_reports_say_what_matters(tmp_path: Path) -> None:
    """The split and an imbalance are notes of each data set; older runs, which don't know them, say nothing."""
    run = write_run(tmp_path / "r", [record("timm:a", "frozen")])
    assert summarise([run], "r").notes == []
    manifest = run.manifest()
    dataset = manifest.dataset.replace(origin="no split was given", train_counts=(61, 183))
    run.write_manifest(manifest.replace(dataset=dataset))
    assert summarise([run], "r").notes == ["no split was given"], "three times is not above three times"
    run.write_manifest(manifest.replace(dataset=dataset.replace(train_counts=(60, 184))))
    (_, said) = summarise([run], "r").notes
    assert said.startswith(
        "the classes are imbalanced: 'bees' has 184 training images, 3.1 times as many as 'ants' (60)"
    )


@pytest.mark.parametrize("counts", [(244,), (1, 2), (100, 100, 44)])
def test_counts_that_contradict_the_images_are_refused(counts: tuple[int, ...]) -> None:
    given: dict[str, Any] = {"name": "x", "digest": "0", "classes": ("a", "b"), "train_images": 244}
    with pytest.raises(ConfigError, match="train_counts has"):
        DatasetIdentity(**given, val_files=("0",), val_labels=(0,), train_counts=counts)
