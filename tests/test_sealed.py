"""Files that begin with their digest, and what users see if a cache is damaged."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import pytest

import tl
from bench.store.runs import RunFolder
from tests.commands import ONE_CELL, here
from tests.damage import DAMAGES, flip, zero
from tl.sealed import CacheDamage, cache_warnings_to, read_sealed, warn_rebuilt, write_sealed

pytestmark = pytest.mark.timeout(120)  # a FIFO must not be waited for


@pytest.mark.parametrize("content", [b"", b"text", b"\n\n", bytes(range(256)) * 50])
def test_a_sealed_file_has_what_was_written(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "below" / "file"
    assert read_sealed(path) is None
    write_sealed(path, content)
    assert read_sealed(path) == content
    assert [place.name for place in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_written_over(damage: str, tmp_path: Path) -> None:
    """The error is one line with the path, also if the path is odd."""
    path = tmp_path / "odd\nname"
    write_sealed(path, b"some content")
    DAMAGES[damage](path)
    with pytest.raises(CacheDamage, match=r"odd name: damaged: it") as caught:
        read_sealed(path)
    assert "\n" not in str(caught.value)
    write_sealed(path, b"other content")
    assert read_sealed(path) == b"other content"


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_sealed(path, b"content")
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            with pytest.raises(CacheDamage):
                read_sealed(path)


@pytest.mark.parametrize("operation", ["open", "read"])
def test_a_file_that_cannot_be_read_is_damaged(operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its folder may not be read."""
    write_sealed(tmp_path / "file", b"content")

    def barred(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(f"tl.cache.os.{operation}", barred)
        with pytest.raises(CacheDamage, match="file: damaged: it can't be read: Permission denied"):
            read_sealed(tmp_path / "file")


def test_a_link_to_nowhere_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "file")
    assert read_sealed(tmp_path / "link") is None
    write_sealed(tmp_path / "link", b"content")
    assert read_sealed(tmp_path / "link") == b"content" and not (tmp_path / "nowhere").exists()


def test_warnings_reach_their_reader_whatever_the_filters_are(tmp_path: Path) -> None:
    """Others are left alone. Filters are as before afterwards."""
    told: list[str] = []
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("ignore", tl.CacheWarning)
        warnings.simplefilter("always", RuntimeWarning)
        before = list(warnings.filters)
        with cache_warnings_to(told.append):
            for _ in range(2):
                warn_rebuilt(CacheDamage(tmp_path, "why"))
            warnings.warn("another", RuntimeWarning, stacklevel=1)
        assert warnings.filters == before
        warn_rebuilt(CacheDamage(tmp_path, "why"))
    assert told == [f"{tmp_path}: damaged: why; it is rebuilt"] * 2
    assert [str(other.message) for other in others] == ["another"]
    assert str(pickle.loads(pickle.dumps(tl.CacheWarning("text")))) == "text", "a cell's process sends it"


def test_a_run_on_damaged_caches_says_so_and_has_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, images, pixels and features are damaged at once. Each is rebuilt, with one line, and is intact then."""
    monkeypatch.setenv("TL_CACHE", str(cache := tmp_path / "cache"))
    Path("one.toml").write_text(ONE_CELL.replace('"frozen"', '"cached"'))
    words = ["run", "--grid", "one.toml", "--executor", "inline", "--weights", "random", "--epochs", "1"]

    def figures(name: str) -> tuple[list[str], object]:
        """What is said outside the cell, and by the cell; and the cell's losses."""
        done = here(*words, "--name", name)
        assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr, done.stderr
        (record,) = RunFolder(Path("results", name)).records().values()
        assert record.result is not None
        told = [line.strip() for line in done.stdout.splitlines() if "is rebuilt" in line]
        losses = [(row.train_loss, row.val_loss) for row in record.result.epochs]
        return [*done.stderr.splitlines(), *(f"cell: {line}" for line in told)], losses

    quiet, intact = figures("first")
    assert quiet == []
    files = [
        *cache.glob("backbones-*.json"),
        *cache.glob("synthetic-mini-v*/val/bees/003.jpg"),
        *cache.glob("pixels/*/pixels-*.bin"),
        *cache.glob("features/*/centre.features"),
    ]
    assert len(files) == 4
    for path, damage in zip(files, [flip, flip, zero, flip], strict=True):
        damage(path)
    lines, rebuilt = figures("second")
    assert rebuilt == intact
    named = [f"WARNING: {path}: damaged: " for path in (files[0], files[1].parents[2], files[2], files[3])]
    named[3] = f"cell: {named[3]}"
    assert all(line.startswith(start) for line, start in zip(lines, named, strict=True)), lines
    assert figures("third") == ([], intact)


def test_list_says_that_names_are_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is on standard output, and the warning is not."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    first = here("list", "backbones", "test_resnet")
    assert first.returncode == 0 and first.stderr == ""
    (file,) = tmp_path.glob("backbones-*.json")
    flip(file)
    second = here("list", "backbones", "test_resnet")
    assert second.returncode == 0 and second.stdout == first.stdout
    assert second.stderr.startswith(f"WARNING: {file}: damaged: ") and second.stderr.count("\n") == 1
