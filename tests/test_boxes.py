"""Data sets with boxes around objects: COCO files, masks, drawn insects; what is wrong with them; their digest."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tl
from bench.store.records import DatasetIdentity
from tests.boxes import SIZE, TRAIN, VAL, coco, write_coco, write_images, write_masks
from tests.commands import here as command
from tl import boxes_coco, synthetic, synthetic_boxes
from tl.boxed import divide_boxed
from tl.boxes import Box, fault_of
from tl.datasets import DATASETS, digest_at
from tl.decoding import decode
from tl.folds import every_image
from tl.survey import survey


def load(place: Path | str) -> tl.Splits:
    return tl.load_splits(place, task="detection")


@pytest.mark.parametrize("layout", ["coco", "roboflow", "flat"])
def test_layouts_of_coco_files(tmp_path: Path, layout: str) -> None:
    """The split is that of the files, classes are in the order of ids, edges are shares."""
    root = write_coco(tmp_path / "set", layout)
    splits = load(root)
    assert (splits.classes, splits.task, splits.name) == (("dog", "cat"), "detection", "set")
    assert [Path(file).name for file in splits.train.files] == list(TRAIN)
    assert [Path(file).name for file in splits.val.files] == list(VAL)
    assert splits.train.objects == (
        (Box(0, 0.1, 0.1, 0.6, 0.6), Box(1, 0, 0, 0.25, 0.25)),
        (Box(1, 0.5, 0.5, 1, 1),),
        (),
    )
    assert splits.val.truth == splits.val.objects == ((Box(0, 0.25, 0.25, 0.5, 0.5),),)
    assert splits.train.labels == splits.train.targets == () and splits.test is None
    assert all((splits.root / file).is_file() for file in splits.train.files)
    assert splits.assigned and "boxes and splits are those of" in splits.origin


@pytest.mark.parametrize("layout", ["coco", "roboflow", "flat", "masks"])
def test_without_the_task_a_folder_with_boxes_gets_a_hint(tmp_path: Path, layout: str) -> None:
    """It has no folders of classes, so the message names the task that reads it; one about other folders doesn't."""
    root = write_masks(tmp_path / "set") if layout == "masks" else write_coco(tmp_path / "set", layout)
    with pytest.raises(tl.DataError, match="may have boxes around objects: try `--task detection`"):
        tl.load_splits(root)
    write_images(tmp_path / "plain" / "one", ["1.png", "2.png"])
    with pytest.raises(tl.DataError, match="at least 2 are needed") as raised:
        tl.load_splits(tmp_path / "plain")
    assert "boxes" not in str(raised.value)


def test_a_relative_folder_is_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_coco(tmp_path / "set", "coco")
    monkeypatch.chdir(root)
    assert load(".") == load(root)
    (tmp_path / "link").symlink_to(root)
    assert load(tmp_path / "link").digest == load(root).digest


def test_images_elsewhere(tmp_path: Path) -> None:
    """Paths in a file may leave its folder; the root is then the folder that has all images."""
    write_images(tmp_path / "pictures", ["1.png", "2.png"])
    write_images(tmp_path / "more", ["3.png"])
    for split, images in (("train", ["../pictures/1.png", "..\\pictures\\2.png"]), ("val", ["../more/3.png"])):
        (tmp_path / "set").mkdir(exist_ok=True)
        content = coco({name: [("dog", (1, 1, 5, 5))] for name in images})
        (tmp_path / "set" / f"{split}.json").write_text(json.dumps(content))
    splits = load(tmp_path / "set")
    assert splits.root == tmp_path and splits.name == "set"
    assert (splits.train.files, splits.val.files) == (("pictures/1.png", "pictures/2.png"), ("more/3.png",))


@pytest.mark.parametrize("place", ["default", "images/default", "train2017", "images/train2017"])
def test_images_in_a_folder_with_the_name_of_their_file(tmp_path: Path, place: str) -> None:
    """CVAT calls it `default` where images have no split. Another year's images may have the same names."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / f"annotations/instances_{Path(place).name}.json").write_text(json.dumps(coco(TRAIN)))
    write_images(tmp_path / place, list(TRAIN))
    write_images((tmp_path / place).with_name("train2014"), list(TRAIN))
    found = boxes_coco.read(tmp_path)
    assert [found.root / image.file for image in found.images] == [tmp_path / place / name for name in TRAIN]


def test_ids_may_be_whole_numbers_with_a_fraction(tmp_path: Path) -> None:
    """Programs that keep ids in tables of numbers write `1.0`, in all places or in some."""
    root = write_coco(tmp_path / "set", "coco")
    expected = load(root)
    file = root / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    for each in content["categories"]:
        each["id"] = float(each["id"])
    for each in content["annotations"]:
        each["image_id"] = float(each["image_id"])
    file.write_text(json.dumps(content))
    assert load(root) == expected


def many(root: Path, count: int = 20) -> Path:
    """Write one COCO file of so many images; the first has a class of its own beside the usual one, and so has the
    second; the last has no object."""
    images = {f"{number}.png": [("dog", (number, 2, 20, 20))] for number in range(count)}
    images["0.png"].append(("cat", (1, 1, 9, 9)))
    images["1.png"].append(("cat", (1, 1, 9, 9)))
    images[f"{count - 1}.png"] = []
    write_images(root, list(images))
    (root / "all.json").write_text(json.dumps(coco(images)))
    return root


def test_one_file_is_split_by_content(tmp_path: Path) -> None:
    """A fifth are validation images, every class stays in both parts, and names have no influence."""
    root = many(tmp_path / "one")
    splits = load(root / "all.json")
    assert (len(splits.train), len(splits.val), splits.name) == (15, 5, "all")
    assert "there is no split: 5 of 20 images, about a fifth, are for validation" in splits.origin
    for images in (splits.train, splits.val):
        assert {box.label for some in images.objects for box in some} == {0, 1}
    assert load(root).val == splits.val and load(root).name == "one"
    other = tmp_path / "other"
    shutil.copytree(root, other)
    content = json.loads((root / "all.json").read_text())
    for each in content["images"]:
        (other / each["file_name"]).rename(other / f"x{each['file_name']}")
        each["file_name"] = f"x{each['file_name']}"
    (other / "all.json").write_text(json.dumps(content))
    assert {file.removeprefix("x") for file in load(other).val.files} == set(splits.val.files)


def test_a_train_file_alone_is_split_and_a_val_file_is_not_enough(tmp_path: Path) -> None:
    root = many(tmp_path / "one")
    (root / "all.json").rename(root / "instances_train.json")
    assert "there are no validation images: 5 of 20 images" in load(root).origin
    (root / "instances_train.json").rename(root / "instances_val.json")
    with pytest.raises(tl.DataError, match=r"has no JSON file for train, only instances_val.json; give the path of a"):
        load(root)
    assert len(load(root / "instances_val.json").val) == 5


def test_images_that_look_the_same_stay_on_one_side(tmp_path: Path) -> None:
    """Ten pictures, each twice, in another size: no pair is divided."""
    images = {f"{number}.png": [("dog", (1, 1, 9, 9))] for number in range(10)}
    write_images(tmp_path, list(images))
    content = coco(images)
    for number in range(10):
        with Image.open(tmp_path / f"{number}.png") as image:
            image.resize((160, 120)).save(tmp_path / f"{number}-large.png")
        content["images"].append({"id": f"l{number}", "file_name": f"{number}-large.png", "width": 160, "height": 120})
        content["annotations"].append(
            {"id": number, "image_id": f"l{number}", "category_id": 1, "bbox": [2, 2, 18, 18.3]}
        )
    (tmp_path / "all.json").write_text(json.dumps(content))
    splits = load(tmp_path)
    assert len(splits.together) == 10 and len(splits.val) == 4
    assert {file.replace("-large", "") for file in splits.val.files}.isdisjoint(
        file.replace("-large", "") for file in splits.train.files
    )
    assert survey(splits).conflicting_labels.count == 0, "boxes of copies differ by rounding, their classes don't"


def test_a_class_that_would_only_be_validated_is_refused() -> None:
    """A class whose images all have rarer ones may end on the wrong side; one with a single image can't be split."""
    names = [f"{number}" for number in range(10)]
    box = Box(0, 0, 0, 1, 1)
    usual, rare = box, box._replace(label=1)
    groups = np.arange(10)
    with pytest.raises(tl.DataError, match="class 'b' has 1 image; at least 2 are needed"):
        divide_boxed([[usual, rare], *[[usual]] * 9], groups, names, ("a", "b"), names)
    with pytest.raises(
        tl.DataError, match=r"class 'b' can't be split: .* give the split yourself \(a COCO file for each"
    ):
        divide_boxed([[rare], [rare], *[[usual]] * 8], np.array([0, 0, *range(2, 10)]), names, ("a", "b"), names)


def test_a_class_beside_rarer_ones_stays_in_training_images() -> None:
    """Its two images count for other classes, so both can become validation images; then the set is refused."""
    names = [f"{number}" for number in range(10)]
    labels = [{4, 2}, {4, 3}, {2}, {3}, *[{0}] * 6]
    boxes = [[Box(label, 0, 0, 1, 1) for label in sorted(some)] for some in labels]
    refused = 0
    for seed in range(40):
        try:
            chosen = divide_boxed(boxes, np.arange(10), [f"{seed} {name}" for name in names], "abcde", names)
        except tl.DataError as error:
            assert "class 'e' can't be split: its 2 images would all become validation images, since" in str(error)
            refused += 1
        else:
            assert {box.label for some, val in zip(boxes, chosen, strict=True) if not val for box in some} == {
                0,
                2,
                3,
                4,
            }
    assert 0 < refused < 20


def test_annotations_of_crowds_are_left_out_and_counted(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "set", "coco")
    file = root / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][2] |= {"iscrowd": 1, "bbox": []}
    file.write_text(json.dumps(content))
    splits = load(root)
    assert splits.train.objects[1:] == ((), ())
    assert [str(each) for each in splits.left_out] == ["left out 1 annotation of a crowd: 'train2017/1.png'"]
    assert "note: left out 1 annotation of a crowd" in command("data", str(root), "--task", "detection").stdout


def test_edges_are_moved_into_the_image(tmp_path: Path) -> None:
    """Annotators' boxes leave the image by parts of a pixel."""
    write_images(tmp_path, ["0.png", "1.png"])
    content = coco({"0.png": [("dog", (-0.5, -3, 90, 33))], "1.png": [("dog", (79.5, 0, 9, 60))]})
    content["images"][0] |= {"width": 80.0, "height": 60.0}
    content["images"][1] = {"id": 11, "file_name": "1.png"}  # the size is that of the file
    (tmp_path / "train.json").write_text(json.dumps(content))
    shutil.copy(tmp_path / "train.json", tmp_path / "val.json")
    (tmp_path / "valid").mkdir()
    write_images(tmp_path / "valid", ["0.png", "1.png"])
    with pytest.warns(tl.DataWarning, match="also training images"):
        splits = load(tmp_path)
    assert splits.train.objects == ((Box(0, 0, 0, 1, 0.5),), (Box(0, 79.5 / 80, 0, 1, 1),))
    assert splits.val.files == ("valid/0.png", "valid/1.png")


def test_categories_without_objects_are_no_classes(tmp_path: Path) -> None:
    """Roboflow's files have one for the whole set."""
    root = write_coco(tmp_path / "set", "roboflow")
    for file in root.glob("*/*.json"):
        content = json.loads(file.read_text())
        content["categories"] = [{"id": 0, "name": "pets"}, *content["categories"]]
        file.write_text(json.dumps(content))
    assert load(root).classes == ("dog", "cat")


def test_a_category_without_annotations_may_repeat_a_name(tmp_path: Path) -> None:
    """Roboflow's category of the whole set has the name of a class where the set has the name of that class."""
    root = write_coco(tmp_path / "set", "roboflow")
    expected = load(root)
    for file in root.glob("*/*.json"):
        content = json.loads(file.read_text())
        content["categories"] = [{"id": 0, "name": "cat"}, {"id": 9, "name": "dog"}, *content["categories"]]
        file.write_text(json.dumps(content))
    found = load(root)
    assert (found.classes, found.train.objects) == (expected.classes, expected.train.objects)


Edit = Callable[[dict[str, Any]], Any]


def _annotation(**changes: Any) -> Edit:
    return lambda content: content["annotations"][1].update(changes)


def _image(**changes: Any) -> Edit:
    return lambda content: content["images"][1].update(changes)


BAD: dict[str, tuple[Edit, str]] = {
    "empty box": (
        _annotation(bbox=[1, 1, 0, 5]),
        r"1 of 3 annotations have no box .*; the first: annotation 101 of '0.p",
    ),
    "inverted box": (_annotation(bbox=[9, 9, 5, -5]), r"has the bbox \[9, 9, 5, -5\], which is 5 wide and -5 high$"),
    "box outside": (_annotation(bbox=[80, 9, 5, 5]), r"has the bbox \[80, 9, 5, 5\], outside of 80 × 60 pixels$"),
    "no box": (_annotation(bbox=None), "has the bbox None, which is not four numbers$"),
    "box of text": (_annotation(bbox=[1, 2, 3, "4"]), "which is not four numbers$"),
    "box of NaN": (_annotation(bbox=[1, 2, 3, float("nan")]), "which is not four numbers$"),
    "huge integers": (_annotation(bbox=[1, 2, 3, 10**400]), "which is not four numbers$"),
    "thin box": (_annotation(bbox=[40, 30, 1e-9, 30]), "which is too thin for single precision$"),
    "crowd of text": (
        _annotation(iscrowd="0"),
        "1 of 3 annotations have an iscrowd .*: annotation 101 .* iscrowd '0'$",
    ),
    "category": (
        _annotation(category_id=7),
        r"unknown category, known are 1 \(dog\), 3 \(cat\); the first: annotation 101",
    ),
    "image": (
        _annotation(image_id=99),
        r"1 of 3 annotations are of no image in 'images'; the first: annotation 101 has t",
    ),
    "list for id": (_annotation(image_id=[1]), r"annotation 101 has the image_id \[1\]"),
    "gone": (
        _image(file_name="7.png"),
        r"1 of 3 images are not there, the first is '7.png'; file names are relative to ",
    ),
    "address": (
        _image(file_name="https://x.org/1.png"),
        "image 11 has the file_name 'https://x.org/1.png'; the path of",
    ),
    "no name": (_image(file_name=None), "image 11 has the file_name None; the path of a file is needed"),
    "twice": (_image(file_name="0.png"), "the image '0.png' is in the file twice"),
    "same id": (_image(id=10), "two images have the id 10"),
    "no id": (_image(id=None), "'images' has the id None at place 2; a whole number or a text is needed"),
    "size": (
        _image(width=81),
        "1 of 3 images have another size.*: '1.png' has 80 × 60 pixels, and the file says 81 × 60$",
    ),
    "turned": (
        _image(width=60, height=80),
        "says 60 × 80, perhaps by an EXIF orientation, which isn't applied: turn it",
    ),
    "no images": (lambda content: content["images"].clear(), "has no images$"),
    "no list": (
        lambda content: content.pop("categories"),
        "has no 'categories'; a COCO file is an object with the lists",
    ),
    "other list": (lambda content: content.update(images=3), "'images' is 3; it must be a list"),
    "other thing": (
        lambda content: content["images"].append("5.png"),
        "'images' has '5.png' at place 4; it must be an",
    ),
    "category name": (
        lambda content: content["categories"][0].pop("name"),
        "category 3 has the name None; a text is nee",
    ),
    "two names": (
        lambda content: content["categories"][0].update(name="dog"),
        "two categories with annotations have the name 'dog'",
    ),
    "two ids": (lambda content: content["categories"][0].update(id=1), "two categories have the id 1"),
    "no objects": (
        lambda content: content["annotations"].clear(),
        "the class 'dog' is only in val, so no training image",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_in_a_coco_file_is_one_line(tmp_path: Path, name: str) -> None:
    """It names the file, the number of faults, and the first."""
    root = write_coco(tmp_path / "set", "coco")
    load(root)  # it is right before
    file = root / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    edit, message = BAD[name]
    edit(content)
    file.write_text(json.dumps(content))
    with pytest.raises(tl.DataError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(root))


TEXTS = {
    "{": r"can't be read as JSON: .* in line 1$",
    "[]": "has no 'images' and 'categories' and 'annotations'; a COCO file is",
    "": "can't be read as JSON: Expecting value in line 1",
    "[" * 100_000: "can't be read as JSON: ",
}


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_what_is_no_coco_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(tl.DataError, match=TEXTS[text]) as caught:
        load(tmp_path / "a.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_faults_between_splits(tmp_path: Path) -> None:
    """An image in two splits, a class that is only validated, several files for one."""
    root = write_coco(tmp_path / "set", "flat")
    content = json.loads((root / "val.json").read_text())
    for change, message in (
        ({"images": [content["images"][0] | {"file_name": "0.png"}]}, "the image '0.png' is in train and val"),
        ({"categories": [{"id": 1, "name": "cow"}]}, "the class 'cow' is only in val, so no training image has it"),
        ({"annotations": []}, "set: no image of val has an object; there is nothing to learn or to score"),
        (
            {"categories": [{"id": 1, "name": "do\u200bg"}]},
            r"'dog' in train/ and 'do\\u200bg' in val/ look alike, and differ only in hidden",
        ),
    ):
        (root / "val.json").write_text(json.dumps(content | change))
        with pytest.raises(tl.DataError, match=message):
            load(root)
    (root / "val.json").write_text(json.dumps(content))
    shutil.copy(root / "val.json", root / "valid.json")
    with pytest.raises(
        tl.DataError, match=r"has 2 JSON files for val \(val.json, valid.json\), and one is needed: move"
    ):
        load(root)
    (root / "valid.json").rename(root / "instances_val.json")
    with pytest.raises(tl.DataError, match=r"has no JSON file for train, only instances_val.json"):
        load(root)


def test_other_data_is_refused(tmp_path: Path) -> None:
    """Each task says in a line what it needs."""
    write_images(tmp_path, ["0.png"])
    with pytest.raises(tl.DataError, match=r"has no boxes; needed are COCO files \(annotations/"):
        load(tmp_path)
    with pytest.raises(
        tl.DataError, match=r"is neither a folder nor a COCO file \(.json\); task 'detection' needs boxes"
    ):
        load(tmp_path / "0.png")
    with pytest.raises(
        tl.DataError, match=r"^data='auto': has one class for each image; sets with boxes are synthetic-b"
    ):
        load("auto")
    with pytest.raises(tl.DataError, match=r"^there is no such folder or COCO file, .*; did you mean 'synthetic-box"):
        load("synthetic-boxs")
    with pytest.raises(
        tl.DataError, match=r"^data='synthetic-boxes-mini': has boxes around objects; it is for task 'det"
    ):
        tl.load_splits("synthetic-boxes-mini")
    with pytest.raises(
        tl.DataError, match=r"^data='synthetic-boxes-mini': has boxes around objects; task 'multilabel' n"
    ):
        tl.load_splits("synthetic-boxes-mini", task="multilabel")


def test_boxes_of_a_turned_image_are_those_of_its_pixels(tmp_path: Path) -> None:
    """EXIF orientation isn't applied to JPEGs and is to TIFFs, here as where images are decoded."""
    image, exif = Image.new("RGB", (80, 60)), Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "tiff"):
        image.save(tmp_path / f"0.{suffix}", exif=exif)
        height, width, _ = decode(tmp_path / f"0.{suffix}").shape
        content = coco({f"0.{suffix}": [("dog", (0, 0, 30, 30))]}, size=(width, height))
        (tmp_path / "train.json").write_text(json.dumps(content))
        (part,) = boxes_coco.read(tmp_path).images
        assert part.objects[0][1:] == (0, 0, 30 / width, 30 / height)
        content["images"][0] |= {"width": height, "height": width}
        (tmp_path / "train.json").write_text(json.dumps(content))
        with pytest.raises(tl.DataError, match="perhaps by an EXIF orientation"):
            boxes_coco.read(tmp_path)


def test_masks_become_boxes(tmp_path: Path) -> None:
    """The box is the smallest around the pixels with a number; a part of the set becomes validation images."""
    splits = load(write_masks(tmp_path / "ped"))
    assert (splits.classes, len(splits.train), len(splits.val), splits.name) == (("person",), 8, 2, "ped")
    whole = every_image(splits)
    found = dict(zip(whole.files, whole.objects, strict=True))
    assert found["PNGImages/0.png"] == (Box(0, 30 / 80, 10 / 60, 50 / 80, 20 / 60), Box(0, 60 / 80, 0, 1, 0.5))
    assert len(found["PNGImages/1.png"]) == 1 and found["PNGImages/9.png"] == ()
    assert "boxes are those around the masks in 'PedMasks/'; there is no split: 2 of 10 images" in splits.origin


def _mask(pixels: np.ndarray) -> Callable[[Path], Any]:
    return lambda root: Image.fromarray(pixels).save(root / "PedMasks/4_mask.png")


BAD_MASKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no mask": (
        lambda root: (root / "PedMasks/4_mask.png").unlink(),
        "1 of 10 images have no mask, the first is 'PNGI",
    ),
    "no image": (
        lambda root: (root / "PNGImages/4.png").unlink(),
        "1 of 10 masks have no image, the first is 'PedMasks/4",
    ),
    "no folder": (lambda root: shutil.rmtree(root / "PedMasks"), "has no folder PedMasks/ beside PNGImages/"),
    "colours": (
        _mask(np.zeros((60, 80, 3), np.uint8)),
        "the first: 'PedMasks/4_mask.png': it has the channels RGB, and",
    ),
    "blurred": (
        lambda root: Image.new("L", SIZE).save(root / "PedMasks/4_mask.png", format="JPEG"),
        "the first: 'PedMasks/4_mask.png': it is a JPEG, which blurs the numbers of objects; masks are PNG files$",
    ),
    "size": (_mask(np.ones((60, 81), np.uint8)), "'PedMasks/4_mask.png' has 81 × 60 pixels, and its image 80 × 60"),
    "damaged": (
        lambda root: (root / "PedMasks/4_mask.png").write_text("x"),
        "'PedMasks/4_mask.png': damaged or not an",
    ),
    "twice": (
        lambda root: shutil.copy(root / "PNGImages/4.png", root / "PNGImages/4.jpg"),
        "1 names with several endi",
    ),
    "empty": (lambda root: [path.unlink() for path in root.glob("PNGImages/*")], "PNGImages: has no images"),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_a_mistake_in_masks_is_one_line(tmp_path: Path, name: str) -> None:
    root = write_masks(tmp_path)
    spoil, message = BAD_MASKS[name]
    spoil(root)
    with pytest.raises(tl.DataError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_masks_of_more_than_8_bits(tmp_path: Path) -> None:
    """Numbers of objects are read as they are, not scaled as grey is."""
    root = write_masks(tmp_path)
    mask = np.zeros(SIZE[::-1], dtype=np.uint16)
    mask[0:6, 0:8], mask[6:12, 0:8] = 300, 301
    Image.fromarray(mask).save(root / "PedMasks/1_mask.png")
    images = every_image(load(root))
    found = dict(zip(images.files, images.objects, strict=True))["PNGImages/1.png"]
    assert found == (Box(0, 0, 0, 0.1, 0.1), Box(0, 0, 0.1, 0.1, 0.2))


@pytest.mark.parametrize("name", [name for name, each in DATASETS.items() if each.task == "detection"])
def test_drawn_insects(name: str) -> None:
    """Every named set is found, has both classes in both splits, images without objects, and says it is synthetic."""
    splits = load(name)
    assert (splits.name, splits.classes) == (name, ("ants", "bees"))
    assert splits.fallback == synthetic.SYNTHETIC_NOTE == load(splits.root).fallback and load(splits.root).name == name
    for images in (splits.train, splits.val):
        assert {box.label for some in images.objects for box in some} == {0, 1}
        assert () in images.objects and max(map(len, images.objects)) > 2


def test_drawn_insects_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    synthetic.write_set(synthetic_boxes.MINI, tmp_path / "again")
    assert load(tmp_path / "again").digest == load("synthetic-boxes-mini").digest


def test_boxes_are_where_insects_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a ground of one colour, without clutter, light and blur, all other pixels are inside of the boxes."""
    plain = lambda rng, width, height: Image.new("RGB", (width, height), "white")  # noqa: E731
    monkeypatch.setattr(synthetic_boxes, "ground", plain)
    monkeypatch.setattr(synthetic_boxes, "clutter", lambda *_, **__: None)
    monkeypatch.setattr(synthetic_boxes, "light", lambda image, rng: image)
    monkeypatch.setattr(Image.Image, "filter", lambda image, _: image)
    seen = 0
    for seed in range(30):
        picture, insects = synthetic_boxes.draw(np.random.default_rng(seed), longest=200)
        drawn = (np.asarray(picture) < 255).any(axis=2)
        for _, (left, top, right, bottom) in insects:
            inner = drawn[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
            rows, columns = np.flatnonzero(inner.any(axis=1)), np.flatnonzero(inner.any(axis=0))
            assert rows[0] <= 2 and columns[0] <= 2, "the box is as small as it can be"
            assert inner.shape[0] - rows[-1] <= 3 and inner.shape[1] - columns[-1] <= 3
            seen += 1
        for _, (left, top, right, bottom) in insects:
            drawn[max(int(top) - 1, 0) : int(bottom) + 2, max(int(left) - 1, 0) : int(right) + 2] = False
        assert not drawn.any(), "nothing of an insect is outside of its box"
    assert seen > 30


def test_another_reader_finds_the_same_boxes() -> None:
    """An independent reader of the drawn set finds our boxes in pixels."""
    reader = pytest.importorskip("faster_coco_eval").COCO
    splits = load("synthetic-boxes-mini")
    reference = reader(str(splits.root / "annotations/instances_val.json"))
    names = [reference.cats[key]["name"] for key in sorted(reference.cats)]
    assert tuple(names) == splits.classes
    for file, boxes in zip(splits.val.files, splits.val.objects, strict=True):
        (image,) = [each for each in reference.imgs.values() if f"val/{each['file_name']}" == file]
        wide, high = image["width"], image["height"]
        theirs = [(each["category_id"] - 1, *each["bbox"]) for each in reference.imgToAnns[image["id"]]]
        ours = [
            (b.label, b.left * wide, b.top * high, (b.right - b.left) * wide, (b.bottom - b.top) * high) for b in boxes
        ]
        assert np.allclose(np.array(ours), np.array(theirs), atol=0.02)


def test_boxes_are_part_of_the_digest(tmp_path: Path) -> None:
    """Another edge, another class and another split make another data set; another folder doesn't."""
    root = write_coco(tmp_path / "set", "coco")
    before = load(root)
    assert before.digest == digest_at(before, root)
    shutil.copytree(root, tmp_path / "copy")
    assert load(tmp_path / "copy").digest == before.digest
    file, digests = root / "annotations/instances_train2017.json", {before.digest}
    for change in ({"bbox": [8, 6, 40, 30.01]}, {"image_id": 11}):
        content = json.loads((tmp_path / "copy/annotations/instances_train2017.json").read_text())
        content["annotations"][0] |= change
        file.write_text(json.dumps(content))
        digests.add(load(root).digest)
    assert len(digests) == 3


def test_faulty_boxes_are_refused(tmp_path: Path) -> None:
    """Whoever makes splits in Python, or edits a manifest, gets a line."""
    splits = load(write_coco(tmp_path / "set", "coco"))
    for box, said in (
        (Box(0, 0.5, 0, 0.5, 1), "its left and right are 0.5 and 0.5; both must be from 0 to 1, the first below"),
        (Box(0, 0, -0.1, 1, 1), "its top and bottom are -0.1 and 1; both must"),
        (Box(0, 0, 0, float("nan"), 1), "its left and right are 0 and nan"),
    ):
        assert said in fault_of(box)
        with pytest.raises(tl.DataError, match=f"an object of 'val2017/3.png' has a faulty box: {said}"):
            dataclasses.replace(splits, val=dataclasses.replace(splits.val, objects=((box,),)))
    assert fault_of(Box(0, 0, 0, 1, 1)) == ""
    with pytest.raises(tl.DataError, match="val has the label 2; labels of 2 classes are 0 to 1"):
        dataclasses.replace(splits, val=dataclasses.replace(splits.val, objects=((Box(2, 0, 0, 1, 1),),)))
    with pytest.raises(tl.DataError, match="val has 1 images and 0 labels"):
        dataclasses.replace(splits, val=dataclasses.replace(splits.val, objects=()))


def test_parts_of_lists_keep_their_boxes(tmp_path: Path) -> None:
    splits = load(write_coco(tmp_path / "set", "coco"))
    assert splits.train.subset([1, 0]).objects == (splits.train.objects[1], splits.train.objects[0])
    assert every_image(splits).objects == splits.train.objects + splits.val.objects


def test_test_images_are_kept_apart(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "set", "coco")
    write_images(root / "test2017", ["4.png"])
    (root / "annotations/instances_test2017.json").write_text(json.dumps(coco({"4.png": [("cat", (1, 1, 9, 9))]})))
    splits = load(root)
    assert splits.test.files == ("test2017/4.png",) and splits.test.objects[0][0].label == 1
    assert "1 test images are kept apart" in splits.origin and splits.digest == load(root).digest
    assert splits.for_test().val == splits.test


def identity(splits: tl.Splits) -> DatasetIdentity:
    given = {"name": splits.name, "digest": splits.digest, "classes": splits.classes, "train_images": len(splits.train)}
    return DatasetIdentity(
        **given, task="detection", val_files=splits.val.files, val_labels=(), val_objects=splits.val.objects
    )


def test_a_manifest_keeps_the_truth_of_validation_images() -> None:
    """It comes back from JSON as it was; sets of other tasks have none."""
    splits = load("synthetic-boxes-mini")
    made = identity(splits)
    read = DatasetIdentity.from_json(made.model_dump_json())
    assert read == made and read.truth == splits.val.objects
    assert all(isinstance(box, Box) for some in read.truth for box in some)
    assert made.model_dump(mode="json")["val_targets"] is None
    for objects, said in (
        (made.val_objects[1:], "val_files has 16 files and val_objects 15 labels"),
        (((((2, 0, 0, 1, 1)),), *made.val_objects[1:]), "val_objects has class 2, and there are 2"),
        (((((0, 0.5, 0, 0.5, 1)),), *made.val_objects[1:]), "has a faulty box of 'val/000.jpg': its left and right"),
        (
            ((((0, 0.5, 0, 1.5, 1)),), *made.val_objects[1:]),
            "val_objects.0.0.3=1.5: input should be less than or equal",
        ),
    ):
        with pytest.raises(tl.ConfigError, match=said):
            made.replace(val_objects=objects)
    old = {"name": "x", "digest": "d", "classes": ("a", "b"), "train_images": 2, "val_files": ("f",)}
    assert DatasetIdentity(**old, val_labels=(1,)).val_objects is None


def test_the_survey_counts_objects(tmp_path: Path) -> None:
    """By class and split, with the sizes of boxes and the images without; one class has no imbalance."""
    root = write_coco(tmp_path / "set", "coco")
    found = survey(load(root))
    assert found.classes == {"dog": {"train": 1, "val": 1}, "cat": {"train": 2, "val": 0}}
    boxes = found.boxes
    assert boxes.objects == {"dog": {"train": 1, "val": 1}, "cat": {"train": 2, "val": 0}}
    assert (boxes.without, boxes.most) == ({"train": 1, "val": 0}, 2)
    assert (boxes.width.min, boxes.width.median, boxes.width.max) == pytest.approx((0.25, 0.375, 0.5))
    assert (found.baseline, found.imbalance) == (None, 2.0)
    told = command("data", str(root), "--task", "detection", "--format", "json")
    assert told.returncode == 0 and json.loads(told.stdout)["boxes"]["most"] == 2
    text = command("data", str(root), "--task", "detection").stdout
    assert "objects of  train  val\ndog             1    1\ncat             2    0\nall             3    1\n" in text
    assert "images without objects: train 1; the most in an image: 2" in text
    assert "boxes, width × height: 25% to 50% (median 38%) × 25% to 50% (median 38%) of the image" in text
    one = command("data", str(write_masks(tmp_path / "ped")), "--task", "detection").stdout
    assert "ped: 10 images, 1 class\n" in one and "imbalance" not in one
    assert survey(tl.load_splits("synthetic-mini")).boxes is None


def test_objects_are_counted_once_for_each_and_images_once_for_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, ["0.png", "1.png"])
    for split, name in (("train", "0.png"), ("val", "1.png")):
        content = coco({name: [("dog", (1, 1, 9, 9)), ("dog", (20, 20, 9, 9)), ("dog", (40, 20, 9, 9))]})
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    found = survey(load(tmp_path))
    assert found.classes == {"dog": {"train": 1, "val": 1}}
    assert found.boxes.objects == {"dog": {"train": 3, "val": 3}}
