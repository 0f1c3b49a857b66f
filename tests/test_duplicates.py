"""Tests that equal images are found and told: in training and validation, under two classes, and as plain copies."""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import tl
from bench.report.index import write_index
from bench.report.summary import summarise
from bench.report.write import write_report
from bench.store.records import SCHEMA_VERSION
from bench.store.runs import RunFolder, seal
from tests.commands import here, light_command
from tests.images import write_folder
from tests.runs import of_images, record, write_run
from tl.datasets import scan
from tl.findings import Duplicate, LeftOut


def copy(root: Path, source: str, target: str) -> None:
    shutil.copy(root / source, root / target)


CASES = {
    "train and val": ("train/a/0.jpg", "val/a/x.jpg", ("val/a/x.jpg", "train/a/0.jpg")),
    "two classes": ("train/a/0.jpg", "train/b/x.jpg", ("train/a/0.jpg", "train/b/x.jpg")),
    "copies": ("val/b/0.jpg", "val/b/x.jpg", ("val/b/x.jpg", "val/b/0.jpg")),
}


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_has_its_count_and_a_pair(kind: str, tmp_path: Path) -> None:
    """Python warns of what falsifies accuracy, not of plain copies. Re-encoded copies are no equal files."""
    source, target, pair = CASES[kind]
    root = write_folder(tmp_path / "set")
    assert tl.load_splits(root).duplicates == ()
    copy(root, source, target)
    if kind == "copies":
        splits = tl.load_splits(root)
    else:
        with pytest.warns(tl.DataWarning, match="accuracy is too high|labels is right"):
            splits = tl.load_splits(root)
    (found,) = splits.duplicates
    assert (found.kind, found.count, found.example) == (kind, 1, pair)
    assert found.serious is (kind != "copies") and all(repr(name) in str(found) for name in pair)
    with Image.open(root / source) as image:
        image.save(root / target, quality=50)
    assert tl.load_splits(root).duplicates == ()


def test_an_image_may_be_all_three(tmp_path: Path) -> None:
    """It is in both splits, in both classes of one of them, and twice in one class."""
    root = write_folder(tmp_path / "set")
    for target in ("train/a/x.jpg", "train/b/x.jpg", "val/b/x.jpg", "val/b/y.jpg"):
        copy(root, "train/a/0.jpg", target)
    with pytest.warns(tl.DataWarning) as warned:
        splits = tl.load_splits(root)
    assert {each.kind: each.count for each in splits.duplicates} == {"train and val": 2, "two classes": 1, "copies": 2}
    assert [str(each.message) for each in warned] == [f"{root}: {each}" for each in splits.duplicates if each.serious]


def test_a_link_to_an_image_of_the_other_split_is_the_same_image(tmp_path: Path) -> None:
    """Sets are often split by links."""
    root = write_folder(tmp_path / "set")
    (root / "val" / "a" / "x.jpg").symlink_to(root / "train" / "a" / "1.jpg")
    assert [each.kind for each in scan(root).duplicates] == ["train and val"]


FILES = st.lists(
    st.tuples(st.sampled_from(["train", "val"]), st.sampled_from(["a", "b", "c"]), st.integers(0, 5)), max_size=14
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(files=FILES)
def test_counts_are_those_of_their_definition(files: list[tuple[str, str, int]], tmp_path: Path) -> None:
    """Compared with a look at every pair of files."""
    root = tmp_path / "set"
    shutil.rmtree(root, ignore_errors=True)
    base = [(split, name, f"own {split} {name}") for split in ("train", "val") for name in "abc"]
    written = [*base, *((split, name, f"content {number}") for split, name, number in files)]
    for number, (split, name, content) in enumerate(written):
        path = root / split / name / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    pairs = [
        (one, other) for one, other in combinations(range(len(written)), 2) if written[one][2] == written[other][2]
    ]
    both = [pair for pair in pairs if written[pair[0]][0] != written[pair[1]][0]]
    unlike = [pair for pair in pairs if written[pair[0]][1] != written[pair[1]][1]]
    alike = [pair for pair in pairs if written[pair[0]][:2] == written[pair[1]][:2]]
    expected = {
        "train and val": len({i for pair in both for i in pair if written[i][0] == "val"}),
        "two classes": len({written[pair[0]][2] for pair in unlike}),
        "copies": len({other for _, other in alike}),
    }
    found = scan(root).duplicates
    assert {each.kind: each.count for each in found} == {kind: count for kind, count in expected.items() if count}
    for each in found:
        one, other = (root / name for name in each.example)
        assert one != other and one.read_bytes() == other.read_bytes()


def test_they_are_told_everywhere(tmp_path: Path) -> None:
    """By the terminal before and after the run, its manifest, the report in both forms, and the list of runs."""
    root = write_folder(tmp_path / "set", train=4)
    copy(root, "train/a/0.jpg", "val/a/<b>*x*.jpg")
    copy(root, "train/b/0.jpg", "train/b/x.jpg")
    (root / "train" / "b" / "gone.jpg").symlink_to("nowhere")
    grid = tmp_path / "g.toml"
    grid.write_text('[matrix]\nbackbones = ["timm:quick0"]\nregimes = ["frozen"]\ndevices = ["cpu"]\n')
    done = light_command("run", "--grid", str(grid), "--data", str(root), "--name", "r", "--no-images")
    assert done.returncode == 0, done.stderr
    leak = "1 validation image is also a training image, 'val/a/<b>*x*.jpg' = 'train/a/0.jpg'"
    copies = "1 image is in the same class again, 'train/b/x.jpg' = 'train/b/0.jpg'"
    lost = "left out 1 broken link: 'train/b/gone.jpg'"
    for line in (f"WARNING: {leak}", f"        {copies}", f"WARNING: {lost}"):
        assert line in done.stdout
    dataset = json.loads((tmp_path / "results" / "r" / "manifest.json").read_text())["dataset"]
    assert [(each["reason"], each["count"]) for each in dataset["left_out"]] == [("broken link", 1)]
    assert [(each["kind"], each["count"]) for each in dataset["duplicates"]] == [("train and val", 1), ("copies", 1)]
    run = RunFolder(tmp_path / "results" / "r")
    assert run.manifest().dataset.findings == scan(root).findings
    markdown, page = ((tmp_path / "reports" / f"r.{suffix}").read_text() for suffix in ("md", "html"))
    assert f"> **Check the images:** {lost}." in markdown
    assert r"training image, 'val/a/&lt;b&gt;\*x\*.jpg' = 'train/a/0.jpg'" in markdown
    assert f"- Note: {copies}" in markdown
    assert page.count("<strong>Check the images:</strong>") == 2 and "<dt>Note</dt><dd>1 image is in the same" in page
    assert "<b>*x*" not in page and "&lt;b&gt;*x*" in page
    shown = here("show", "r", "--format", "text").stdout.replace("\n", " ")
    assert f"WARNING: {lost}" in shown and f"WARNING: {leak}" in shown and f"note: {copies}" in shown
    piped = here("show", "r").stdout
    assert f"WARNING: {lost}" in piped and "<b>" not in piped and "&lt;b&gt;" in piped, "which is Markdown"
    assert "Check the images: left out 1 broken link" in write_index([run], tmp_path / "reports").read_text()


def test_clean_images_change_no_report(tmp_path: Path) -> None:
    """Nothing found, and a run of a version that didn't look, give the same pages."""
    run = write_run(tmp_path / "r", [record("timm:a", "frozen")])
    pages = []
    for found in (None, ()):
        manifest = run.manifest()
        run.write_manifest(manifest.replace(dataset=manifest.dataset.replace(left_out=found, duplicates=found)))
        pages.append([path.read_text() for path in write_report(summarise([run], "r"), tmp_path / "reports")])
        assert run.manifest().dataset.findings == ()
    assert pages[0] == pages[1]


def test_a_manifest_of_version_6_says_nothing_of_findings(tmp_path: Path) -> None:
    """Its fields are unknown, which is not the same as nothing found."""
    run = write_run(tmp_path / "r", [record("timm:a", "frozen")])
    path = run.folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["digest"], data["dataset"]["left_out"], data["dataset"]["duplicates"]
    assert data["schema_version"] == SCHEMA_VERSION >= 7
    path.write_bytes(seal((json.dumps(data | {"schema_version": 6}, indent=1) + "\n").encode()))
    assert (run.manifest().dataset.left_out, run.manifest().dataset.duplicates) == (None, None)


def test_a_report_on_several_sets_names_them(tmp_path: Path) -> None:
    """Each finding goes with its data set."""
    runs = []
    for name, count in (("one", 1), ("other", 2)):
        run = write_run(tmp_path / name, [of_images(record("timm:a", "frozen"), str(count) * 64)])
        manifest = run.manifest()
        left_out = (LeftOut(reason="broken link", count=count, example="train/a/x.jpg"),)
        copies = (Duplicate(kind="copies", count=count, example=("train/a/1.jpg", "train/a/0.jpg")),)
        dataset = manifest.dataset.replace(name=name, left_out=left_out, duplicates=copies)
        run.write_manifest(manifest.replace(dataset=dataset))
        runs.append(run)
    summary = summarise(runs, "r")
    assert summary.image_warnings == [
        "one: left out 1 broken link: 'train/a/x.jpg'",
        "other: left out 2 broken links, such as 'train/a/x.jpg'",
    ]
    assert [note.partition(":")[0] for note in summary.notes[:2]] == ["one", "other"]
