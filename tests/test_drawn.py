"""Pictures with any number of classes, drawn to try `bench pick` on."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.devtools.drawn import FILLS, SHAPES, class_names, write
from tl.digest import file_digests
from tl.errors import ConfigError


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    """All classes get the same number of pictures, and no two are equal."""
    for name in ("a", "b"):
        write(tmp_path / name, 4, 8)
    files = sorted(str(path.relative_to(tmp_path / "a")) for path in tmp_path.glob("a/*/*.jpg"))
    one, other = (file_digests(tmp_path / name, files) for name in ("a", "b"))
    assert one == other and len(set(one.values())) == 8
    assert {len(list(folder.iterdir())) for folder in (tmp_path / "a").iterdir()} == {2}


def test_every_pair_of_shape_and_fill_is_a_class() -> None:
    """Each comes once."""
    assert len(set(class_names(20))) == 20 == len(FILLS) * len(SHAPES)


@pytest.mark.parametrize(("classes", "images"), [(1, 10), (21, 100), (4, 7)])
def test_impossible_sets_are_refused(tmp_path: Path, classes: int, images: int) -> None:
    """Nothing is written."""
    with pytest.raises(ConfigError, match=r"--classes|--images"):
        write(tmp_path / "a", classes, images)
    assert not (tmp_path / "a").exists()
