"""Tests that copies of a picture in another size, format or quality are found, and other pictures are not."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tl
from tests.damage import flip, warned_once
from tests.images import picture
from tl import alike
from tl.alike import CELLS, COLOUR, DISTANCE, Looks, groups_of, looks_of, members
from tl.digest import file_digests


def groups_in(root: Path) -> list[set[str]]:
    """The groups of the images in a folder, by their names without ending."""
    names = sorted(path.name for path in root.iterdir())
    digests = file_digests(root, names)
    found = members(groups_of(looks_of(root, digests), list(digests.values())))
    return [{Path(names[index]).stem for index in group} for group in found]


COPIES = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "twice the size": lambda image: image.resize((2 * image.width, 2 * image.height)),
    "a little wider": lambda image: image.resize((image.width + 7, image.height)),
}


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("change", COPIES)
def test_resized_copies_look_the_same(change: str, number: int, tmp_path: Path) -> None:
    for other in range(4):
        picture(other).save(tmp_path / f"{other}.png")
    COPIES[change](picture(number)).save(tmp_path / "copy.png")
    assert groups_in(tmp_path) == [{str(number), "copy"}]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(
    ("ending", "options"), [("jpg", {"quality": 30}), ("jpg", {"quality": 95}), ("webp", {}), ("bmp", {})]
)
def test_encoded_copies_look_the_same(ending: str, options: dict[str, int], number: int, tmp_path: Path) -> None:
    for other in range(4):
        picture(other).save(tmp_path / f"{other}.png")
    picture(number).save(tmp_path / f"copy.{ending}", **options)
    assert groups_in(tmp_path) == [{str(number), "copy"}]


def test_other_pictures_do_not_look_the_same(mini: tl.Splits, tmp_path: Path) -> None:
    """Neither those of the synthetic set, which share their palettes, nor two hundred of random blobs."""
    for number in range(200):
        picture(number).save(tmp_path / f"{number}.png")
    for split in (mini.train, mini.val):
        for file in split.files:
            shutil.copy(mini.root / file, tmp_path / file.replace("/", "-"))
    assert groups_in(tmp_path) == []


def test_the_real_photographs_do_not_look_the_same(real_images: Path) -> None:
    """Not even two of 397 photographs of ants and bees, many of them small things on plain ground."""
    splits = tl.load_splits(real_images)
    digests = file_digests(splits.root, [*splits.train.files, *splits.val.files])
    assert members(groups_of(looks_of(splits.root, digests), list(digests.values()))) == []


def test_the_same_shape_in_another_colour_is_another_picture(tmp_path: Path) -> None:
    """The hash is of brightness alone, and classes may be colours."""
    shape = np.zeros((64, 64, 3), dtype=np.uint8)
    rows, columns = np.ogrid[:64, :64]
    circle = (rows - 30) ** 2 + (columns - 36) ** 2 < 400
    for name, colour in (("red", (200, 0, 0)), ("green", (0, 102, 0))):  # equally bright
        image = shape.copy()
        image[circle] = colour
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    names = sorted(path.name for path in tmp_path.iterdir())
    looks = looks_of(tmp_path, file_digests(tmp_path, names))
    assert int(np.bitwise_count(looks.hashes[0] ^ looks.hashes[1])) <= DISTANCE
    assert groups_in(tmp_path) == []


def test_damaged_images_are_told_and_alone(tmp_path: Path) -> None:
    """Unless they are the same file. All others have a size."""
    picture(0).save(tmp_path / "0.png")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "c.jpg").write_text("another one")
    names = ["0.png", "a.jpg", "b.jpg", "c.jpg"]
    looks = looks_of(tmp_path, file_digests(tmp_path, names))
    assert [bool(reason) for reason in looks.reasons] == [False, True, True, True]
    assert looks.sizes.tolist() == [[120, 160], [0, 0], [0, 0], [0, 0]]
    assert groups_in(tmp_path) == [{"a", "b"}]


def looks_like(hashes: list[int], colours: list[int]) -> Looks:
    cells = np.repeat(np.array(colours, dtype=np.uint8)[:, None], 3 * CELLS * CELLS, axis=1)
    sizes = np.ones((len(hashes), 2), dtype=np.int64)
    return Looks(hashes=np.array(hashes, dtype=np.uint64), colours=cells, sizes=sizes, reasons=("",) * len(hashes))


@settings(max_examples=150)
@given(
    made=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2**12 - 1), st.integers(0, 40)), max_size=24),
    pairs=st.integers(1, 60),
)
def test_groups_are_the_connected_parts_of_all_pairs(made: list[tuple[int, int, int]], pairs: int) -> None:
    """Compared with a look at every pair, whatever number of pairs is in memory at the same time."""
    content = [f"{file}" for file, _, _ in made]
    first = {key: index for index, key in reversed(list(enumerate(content)))}
    made = [made[first[key]] for key in content]  # equal files look the same
    hashes, colours = [bits for _, bits, _ in made], [colour for _, _, colour in made]
    expected = list(range(len(made)))
    for one, other in combinations(range(len(made)), 2):
        near = (hashes[one] ^ hashes[other]).bit_count() <= DISTANCE and abs(colours[one] - colours[other]) <= COLOUR
        if near or content[one] == content[other]:
            low, high = sorted((expected[one], expected[other]))
            expected = [low if each == high else each for each in expected]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alike, "_PAIRS", pairs)
        assert groups_of(looks_like(hashes, colours), content).tolist() == expected


def test_hashes_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A moved folder isn't decoded again, and a damaged cache is rebuilt."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "set"
    root.mkdir()
    for number in range(3):
        picture(number).save(root / f"{number}.png")
    digests = file_digests(root, ["0.png", "1.png", "2.png"])
    before = looks_of(root, digests)
    moved = {f"x{name}": digest for name, digest in reversed(digests.items())}
    with monkeypatch.context() as patch:
        patch.setattr(alike, "_hashed", None)
        again = looks_of(tmp_path / "elsewhere", moved)
    assert again.hashes.tolist() == before.hashes.tolist()[::-1] and again.sizes.tolist() == before.sizes.tolist()
    (kept,) = (tmp_path / "cache" / "hashes").iterdir()
    flip(kept)
    rebuilt = warned_once(lambda: looks_of(root, digests), kept)
    assert rebuilt.hashes.tolist() == before.hashes.tolist()
