"""Tests which files of a folder are images, that whatever else lies in it is counted, and advice on other layouts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

import tl
from bench.report.summary import summarise
from tests.commands import ONE, here
from tests.images import write_folder
from tests.runs import record, write_run
from tl.datasets import IMAGE_SUFFIXES, scan
from tl.errors import DataError

TREES = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def write(path: Path, content: str = "") -> None:
    """Write a file whose content differs from that of all others, unless it is given. No listing decodes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content or str(path))


def small(root: Path, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """Write a set with one image per class and split, which can't be decoded."""
    for split in ("train", "val"):
        for name in classes:
            write(root / split / name / "0.jpg")
    return root


def link(path: Path, target: str | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)  # the path of a socket must be short
        one.bind(path.name)


LEFT_OUT: dict[str, tuple[Callable[[Path], object], str, str, bool]] = {
    "link to nothing": (lambda root: link(root / "train/a/x.jpg", "nowhere"), "broken link", "train/a/x.jpg", True),
    "link to itself": (lambda root: link(root / "train/a/x.jpg", "x.jpg"), "broken link", "train/a/x.jpg", True),
    "link through a file": (lambda root: link(root / "val/a/x", "0.jpg/x.jpg"), "broken link", "val/a/x", True),
    "class that is a broken link": (lambda root: link(root / "val/c", "gone"), "broken link", "val/c", True),
    "link to its own folder": (lambda root: link(root / "val/a/x", "."), "loop of links", "val/a/x", True),
    "link to the class": (lambda root: link(root / "val/a/deep/x", ".."), "loop of links", "val/a/deep/x", True),
    "link to the split": (lambda root: link(root / "val/a/x", root / "val"), "loop of links", "val/a/x", True),
    "link to the set": (lambda root: link(root / "train/a/x", root), "loop of links", "train/a/x", True),
    "class that is the set": (lambda root: link(root / "train/x", root), "loop of links", "train/x", True),
    "image without a class": (
        lambda root: write(root / "train/x.png"),
        "image outside a class folder",
        "train/x.png",
        True,
    ),
    "photo of a phone": (
        lambda root: write(root / "train/a/x.HEIC"),
        "image in a format that is not read",
        "train/a/x.HEIC",
        True,
    ),
    "named pipe": (
        lambda root: pipe(root / "train/a/x.jpg"),
        "entry that is not a regular file",
        "train/a/x.jpg",
        False,
    ),
    "socket": (
        lambda root: listening(root / "train/a/x.jpg"),
        "entry that is not a regular file",
        "train/a/x.jpg",
        False,
    ),
    "link to a device": (
        lambda root: link(root / "train/a/x.jpg", "/dev/zero"),
        "entry that is not a regular file",
        "train/a/x.jpg",
        False,
    ),
    "text": (lambda root: write(root / "train/a/x.txt"), "file without an image's ending", "train/a/x.txt", False),
    "no ending": (lambda root: write(root / "train/a/jpg"), "file without an image's ending", "train/a/jpg", False),
    "table of labels": (lambda root: write(root / "val/x.csv"), "file without an image's ending", "val/x.csv", False),
    "hidden file": (lambda root: write(root / "val/a/.x.jpg"), "hidden file", "val/a/.x.jpg", False),
    "hidden folder": (lambda root: write(root / "val/.git/x"), "hidden folder", "val/.git/", False),
    "hidden class": (lambda root: write(root / "val/.c/x.jpg"), "hidden folder with images", "val/.c/", True),
    "hidden subfolder": (lambda root: write(root / "val/a/.c/x.jpg"), "hidden folder with images", "val/a/.c/", True),
    **{
        f"leftover {name}": (
            lambda root, name=name: write(root / "train" / name / "x.jpg"),
            "system leftover",
            f"train/{name}/",
            False,
        )
        for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN", "lost+found")
    },
    **{
        f"leftover {name}": (
            lambda root, name=name: write(root / "train" / "a" / name),
            "system leftover",
            f"train/a/{name}",
            False,
        )
        for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._0.jpg")
    },
}


@pytest.mark.parametrize("case", LEFT_OUT)
@pytest.mark.timeout(60)
def test_whatever_is_left_out_is_counted_by_reason(case: str, tmp_path: Path) -> None:
    """The result has count and example, the images are those without it, and lost images give a warning."""
    add, reason, example, serious = LEFT_OUT[case]
    root = small(tmp_path / "set")
    before = tl.load_splits(root)
    add(root)
    if serious:
        with pytest.warns(tl.DataWarning, match=reason):
            splits = tl.load_splits(root)
    else:
        splits = tl.load_splits(root)
    (left_out,) = splits.left_out
    assert (left_out.reason, left_out.count, left_out.example) == (reason, 1, example)
    assert left_out.serious is serious
    assert (splits.train, splits.val, splits.digest) == (before.train, before.val, before.digest)


def test_reasons_are_counted_together_and_told_before_a_run(tmp_path: Path) -> None:
    """The terminal has the number in the line of the images, and count and example of each reason below it."""
    root = write_folder(tmp_path / "set", train=4)
    for number in range(3):
        link(root / "train" / "b" / f"{number}0.jpg", f"../../../.git/annex/objects/{number}.jpg")
    write(root / "val" / "a" / "notes.txt")
    write(root / "val" / "a" / "line\nbreak.txt")
    done = here(*ONE, "--data", str(root), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "images: set (8 training + 4 validation images, 2 classes; 5 left out; the largest class, " in done.stdout
    assert "\n        left out 2 files without an image's ending, such as 'val/a/line\\nbreak.txt'\n" in done.stdout
    assert "\nWARNING: left out 3 broken links, such as 'train/b/00.jpg'\n" in done.stdout
    assert done.stderr == "", "the warning of the library is told once"


def test_a_hidden_name_that_is_not_text_is_shown_safely(tmp_path: Path) -> None:
    """Such names of visible files are refused. A hidden one is no reason to refuse the set, and can be saved."""
    root = small(tmp_path / "set")
    write(root / "val" / "a" / os.fsdecode(b".caf\xe9"), "x")
    (left_out,) = tl.load_splits(root).left_out
    assert left_out.example.encode() == rb"val/a/.caf\udce9" and str(left_out).isprintable()


def test_a_folder_with_nothing_to_say_has_no_more_lines(tmp_path: Path) -> None:
    """Neither notes nor warnings."""
    done = here(*ONE, "--data", str(write_folder(tmp_path / "set", val=5)), "--dry-run")
    assert done.stdout.startswith("images: set (6 training + 10 validation images, 2 classes; the largest class, ")
    assert done.stdout.splitlines()[1].startswith("run: ")


@pytest.mark.parametrize("ending", [*IMAGE_SUFFIXES, ".JPG", ".TiFf"])
def test_every_ending_is_listed(ending: str, tmp_path: Path) -> None:
    """In either case."""
    root = small(tmp_path / "set")
    write(root / "train" / "a" / f"x{ending}")
    splits = tl.load_splits(root)
    assert splits.train.files == ("train/a/0.jpg", f"train/a/x{ending}", "train/b/0.jpg") and splits.left_out == ()


def test_the_placeholder_is_known_by_its_content(tmp_path: Path) -> None:
    """Another GIF of that name is an image like any other."""
    root = small(tmp_path / "set")
    write(root / "train" / "a" / "imageNotFound.gif", "another one")
    assert "train/a/imageNotFound.gif" in tl.load_splits(root).train.files


def as_image_folder(folder: Path, endings: tuple[str, ...]) -> list[tuple[str, str]]:
    """Class and path of each image that `ImageFolder` finds, in its order; without links that lead to no file."""
    found = ImageFolder(str(folder), is_valid_file=lambda path: path.lower().endswith(endings))
    return [
        (found.classes[label], Path(path).relative_to(folder.parent).as_posix())
        for path, label in found.samples
        if Path(path).is_file()
    ]


def ours(root: Path) -> dict[str, list[tuple[str, str]]]:
    splits = scan(root)
    return {
        split: [(splits.classes[label], file) for file, label in zip(images.files, images.labels, strict=True)]
        for split, images in (("train", splits.train), ("val", splits.val))
    }


NAMES = st.sampled_from(["a", "b", "c", "a-", "a.", "B", "é", "0", "x y"])
FILES = st.sampled_from(
    ["0.jpg", "1.JPG", "1.png", "10.tif", "2.pgm", "x.txt", "z", "é.webp", "a.jpg", "-.bmp", "b.gif"]
)
PARTS = st.lists(NAMES, max_size=3).map("/".join)
PLACES = st.lists(st.tuples(PARTS, FILES), max_size=12, unique=True)


@TREES
@given(places=PLACES, links=st.lists(st.tuples(PARTS, NAMES, PARTS), max_size=4))
def test_the_images_are_those_of_image_folder(
    places: list[tuple[str, str]], links: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    """Drawn trees with subfolders, and with links to folders, files and nothing, have the same images in its order."""
    root, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    for folder in (root, elsewhere):
        shutil.rmtree(folder, ignore_errors=True)
    small(root)
    for number, (place, name) in enumerate(places):
        where = (root / "train" / "a", root / "val" / "b", elsewhere)[number % 3]
        write(where / place / name)
    for place, name, target in links:
        for where in (root / "train" / "a", root / "val" / "a"):
            if not (where / place / f"to {name}").is_symlink():
                link(where / place / f"to {name}", elsewhere / target)
    found = ours(root)
    for split in ("train", "val"):
        assert found[split] == as_image_folder(root / split, IMAGE_SUFFIXES)


@TREES
@given(place=PARTS, target=PARTS)
@pytest.mark.timeout(300)
def test_a_loop_adds_no_image(place: str, target: str, tmp_path: Path) -> None:
    """`ImageFolder` walks around it until the system ends that. It finds the same files, again and again."""
    root = tmp_path / "set"
    shutil.rmtree(root, ignore_errors=True)
    small(root)
    write(root / "train" / "a" / "a" / "b" / "1.jpg")
    (root / "train" / "a" / target).mkdir(parents=True, exist_ok=True)
    link(root / "train" / "a" / place / "loop", root / "train" / "a" / target)
    files = [root / file for _, file in ours(root)["train"]]
    theirs = as_image_folder(root / "train", IMAGE_SUFFIXES)
    assert {file.resolve() for file in files} == {(root / file).resolve() for _, file in theirs}


@pytest.mark.timeout(60)
def test_many_loops_end(tmp_path: Path) -> None:
    """Five folders, each with links to all others and to itself: each walk without a repeat is walked, and no other."""
    root = small(tmp_path / "set")
    names = [f"d{number}" for number in range(5)]
    for name in names:
        write(root / "train" / "a" / name / "x.jpg")
        for other in names:
            link(root / "train" / "a" / name / other, root / "train" / "a" / other)
    splits = scan(root)
    walks = 5 + 5 * 4 + 5 * 4 * 3 + 5 * 4 * 3 * 2 + 5 * 4 * 3 * 2
    assert len(splits.train) == walks + 2 and splits.left_out[0].reason == "loop of links"


@pytest.mark.timeout(60)
def test_links_that_branch_at_every_level_are_refused(tmp_path: Path) -> None:
    """Two links per folder, forty levels: 2 to the power of 40 folders, and no loop."""
    root = small(tmp_path / "set")
    for level in range(40):
        for name in ("x", "y"):
            link(tmp_path / "levels" / str(level) / name, tmp_path / "levels" / str(level + 1))
    (tmp_path / "levels" / "40").mkdir()
    link(root / "train" / "a" / "x", tmp_path / "levels" / "0")
    with pytest.raises(DataError, match="links lead into the same folders more than"):
        tl.load_splits(root)


@pytest.mark.timeout(60)
def test_folders_of_any_depth_are_walked(tmp_path: Path) -> None:
    """Deeper than Python's limit for recursion."""
    root = small(tmp_path / "set")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root / "train" / "a")
            for _ in range(1200):
                Path("d").mkdir()
                os.chdir("d")
            write(Path("deep.jpg"), "deep")
        assert f"train/a/{'d/' * 1200}deep.jpg" in tl.load_splits(root).train.files
    finally:  # pytest's own removal is recursive
        subprocess.run(["rm", "-r", str(root)], check=True)


@TREES
@given(names=st.lists(FILES, max_size=8, unique=True))
def test_a_set_without_subfolders_is_listed_as_ever(names: list[str], tmp_path: Path) -> None:
    """By name, class after class, as every version did: its digest and the ids of its cells stay the same."""
    root = tmp_path / "set"
    shutil.rmtree(root, ignore_errors=True)
    small(root)
    for name in names:
        write(root / "train" / "b" / name)
    known = (".jpg", ".jpeg", ".png", ".webp", ".bmp", *IMG_EXTENSIONS, ".gif")
    images = sorted(
        (path for path in (root / "train" / "b").iterdir() if path.name.lower().endswith(known)), key=lambda p: p.name
    )
    assert scan(root).train.files == ("train/a/0.jpg", *(f"train/b/{path.name}" for path in images))


@pytest.mark.parametrize(
    ("folders", "advice"),
    [
        (
            ["train/a", "dev/a", "valid/a"],
            "there is 'valid/', 'dev/', and only one folder can have the validation images: call that one val/",
        ),
        (
            ["Train/a", "training set/a", "val/a"],
            "there is 'Train/', 'training set/', and only one folder can have the training images: call that one "
            "train/",
        ),
        (["Test/a", "val/a"], "has no folder train/ beside 'Test/', 'val/'"),
        (["cats", "dogs", "valid/cats"], "has no folder train/ beside 'valid/'"),
        (["set/train/a", "set/val/a"], "'set/' has both: give that folder"),
        (["train/a"], "1 class in train/; at least 2 are needed"),
        ([".train/a", "__MACOSX/a"], "has no folders of classes; the layout is train/CLASS/*.jpg and val/CLASS/*.jpg"),
        (["images/train/a", "images/val/a"], "'images/' has both: give that folder"),
        (["a/train", "a/val", "b/train", "b/val"], "'a/', 'b/' has both, with images in them: classes belong into"),
        (
            ["train/train/a", "train/val/a", "val/train/a", "val/val/a"],
            "mine: train/ has 'train/', 'val/' where its classes should be: give {root}/train, if that is the data set",
        ),
        (["train/a", "train/train/a", "train/val/a", "val/a"], "train/ has 'train/', 'val/' where its classes should"),
        (["train/Train/a", "train/test/a", "val/a"], "train/ has 'Train/', 'test/' where its classes should be"),
        (["train/a", "train/b", "val/train/a", "val/val/a"], "val/ has 'train/', 'val/' where its classes should be"),
        (
            ["train/train", "train/val", "val/train", "val/val"],
            "where its classes should be: the layout is train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg without "
            "a split, or a CSV or Parquet file of path and label; if they are classes, rename them",
        ),
        (
            ["train/train/a", "train/train/b", "val/val/a", "val/val/b"],
            "'train' is only in train/; 'train/train/' holds 'a/', 'b/': if these are the classes, move them up into "
            "train/; 'val/val/' holds 'a/', 'b/': if these are the classes, move them up into val/",
        ),
        (
            ["train/images/a", "train/images/b", "val/a", "val/b"],
            "'a' is only in val/; 'train/images/' holds 'a/', 'b/': if these are the classes, move them up into train/",
        ),
        (
            ["train/images/a", "train/images/b", "val/images/a", "val/images/b"],
            "1 class in train/; at least 2 are needed; 'train/images/' holds 'a/', 'b/': if these are the classes",
        ),
        (
            ["train/a", "train/.b", "val/a", "val/.b"],
            "1 class in train/; at least 2 are needed; left out 2 hidden folders with images, such as 'train/.b/'",
        ),
        (["train/a", "train/.b", "val/a", "val/b"], "'b' is only in val/; left out 1 hidden folder with images: "),
        (["train", "val"], "0 classes in train/; at least 2 are needed; left out 2 images outside a class folder"),
        (["train/Ants", "train/b", "val/ants", "val/b"], "'Ants' is only in train/, and 'ants' only in val/"),
        (["train/bee", "train/a", "val/bees", "val/a"], "'bee' is only in train/, and 'bees' only in val/"),
        (["train/bee", "train/a", "val/b\u0435e", "val/a"], r"'bee' is only in train/, and 'b\u0435e' only in val/"),
        (["train/\xe9", "train/a", "val/e\u0301", "val/a"], r"the classes '\xe9' in train/ and 'e\u0301' in val/ look"),
        (
            [f"{split}/{name}" for split in ("train", "val") for name in ("\xe9", "e\u0301")],
            r"'e\u0301' in train/ and '\xe9' in train/ look alike, and differ only in Unicode normalisation",
        ),
    ],
)
def test_advice_on_other_layouts(folders: list[str], advice: str, tmp_path: Path) -> None:
    """The refusal names what is there, and says what to do."""
    for folder in folders:
        write(tmp_path / "mine" / folder / "0.jpg")
    with pytest.raises(DataError) as error:
        tl.load_splits(tmp_path / "mine")
    assert advice.format(root=tmp_path / "mine") in str(error.value)


@pytest.mark.parametrize("hidden", ["\u200b", "\xad", "\ufe0f", "\u202e"], ids=ascii)
def test_classes_that_differ_in_what_nobody_sees_are_refused(hidden: str, tmp_path: Path) -> None:
    """Both splits have both, so nothing else tells them apart. The code point is shown."""
    root = small(tmp_path / "set", ("bee", f"be{hidden}e"))
    said = "look alike, and differ only in hidden characters; rename one of them"
    with pytest.raises(DataError, match=said) as error:
        tl.load_splits(root)
    assert f"'be{ascii(hidden)[1:-1]}e'" in str(error.value) and hidden not in str(error.value)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("Bee", "bee"), "the classes 'Bee' and 'bee' differ only in the case or the form of their letters"),
        (("bee", "\uff42ee"), r"the classes 'bee' and '\uff42ee' differ only in the case or the form of their letters"),
        (("bee", "wasp"), ""),
    ],
)
def test_classes_that_differ_in_case_alone_are_told(classes: tuple[str, str], said: str, tmp_path: Path) -> None:
    """They may be meant, as those of letters are: a warning says which, in the terminal and in the report."""
    root = write_folder(tmp_path / "set", classes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert tl.load_splits(root).classes == classes
    assert [str(warning.message) for warning in caught] == ([f"{root}: {said}"] if said else [])
    run = write_run(tmp_path / "r", [record("timm:a", "frozen", classes=classes)])
    assert summarise([run], "r").image_warnings == ([said] if said else [])
    done = here(*ONE, "--data", str(root), "--dry-run")
    assert done.returncode == 0 and done.stdout.count("WARNING: the classes") == bool(said)


@pytest.mark.parametrize("classes", [("a", "test"), ("dev", "test"), ("bus", "test", "train"), ("a", "train")])
def test_classes_may_have_the_names_of_splits(classes: tuple[str, ...], tmp_path: Path) -> None:
    """Also with subfolders, unless they are splits in every respect."""
    root = small(tmp_path / "set", classes)
    for name in classes:
        write(root / "train" / name / f"photos of {name}" / "1.jpg")
    assert tl.load_splits(root).classes == classes


def test_a_split_given_for_the_set_is_corrected(tmp_path: Path) -> None:
    """The folder above has both."""
    root = small(tmp_path / "set")
    with pytest.raises(DataError, match=rf"{root} has both: give that folder"):
        tl.load_splits(root / "train")


def test_a_split_that_is_a_broken_link_is_named(tmp_path: Path) -> None:
    """It isn't simply missing."""
    root = small(tmp_path / "set")
    (root / "val").rename(root / "other")
    link(root / "val", "gone")
    with pytest.raises(DataError, match="no folder val/; 'val' is a link that leads to no folder"):
        tl.load_splits(root)


def test_a_class_without_images_says_what_it_has(tmp_path: Path) -> None:
    """Broken links and formats that are not read are named; so is a class that is itself a broken link."""
    root = small(tmp_path / "set")
    (root / "val" / "b" / "0.jpg").unlink()
    with pytest.raises(DataError, match=r"class 'b' has no images \(\.jpg, .*\): the folder is empty"):
        tl.load_splits(root)
    link(root / "val" / "b" / "0.jpg", "gone")
    write(root / "val" / "b" / "1.heic")
    with pytest.raises(
        DataError, match=r"has no images .*: left out 1 broken link: 'val/b/0.jpg'; left out 1 image in a format"
    ):
        tl.load_splits(root)
    shutil.rmtree(root / "val" / "b")
    link(root / "val" / "b", "gone")
    with pytest.raises(DataError, match="'b' is only in train/, and 'val/b' is a broken link"):
        tl.load_splits(root)


def test_a_marker_that_is_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    """The file that identifies synthetic images is read only if it is a regular one."""
    root = small(tmp_path / "set")
    pipe(root / "DRAWN")
    assert tl.load_splits(root).name == "set"


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders that exist are never left out because they can't be read now."""
    root = small(tmp_path / "set")
    write(root / "train" / "a" / "deep" / "1.jpg")
    real = os.scandir

    def scandir(folder: str | Path) -> object:
        if Path(folder).name == "deep":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="train/a/deep: can't be read: Permission denied"):
        tl.load_splits(root)
