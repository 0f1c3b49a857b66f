"""Tests of decoding, cropping and batching against torchvision and Pillow."""

from __future__ import annotations

import json
import os
import shutil
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torchvision import transforms as v1

import tl
from tests.conftest import TINY
from tests.damage import DAMAGES, flip, warned_once, zero
from tests.images import write_folder
from tl.batches import Batches, Preprocessing
from tl.datasets import ImageList
from tl.decoding import Pixels, decode
from tl.errors import DataError
from tl.images import Store, batch_bounds, checked_files, crops, open_store, order, trust

DRAWS = 6_000
PREPROCESSING = Preprocessing(
    size=96, resize=112, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear"
)


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (64, 64), (40, 400)], ids=str)
def test_crops_are_distributed_as_in_torchvision(size: tuple[int, int]) -> None:
    """Kolmogorov-Smirnov tests compare area, ratio and position with torchvision's own crops."""
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    draw = v1.RandomResizedCrop.get_params
    theirs = np.array([draw(image, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3]) for _ in range(DRAWS)])
    ours = crops(np.tile(np.array(size), (DRAWS, 1)), seed=1)[:, :4]

    def features(boxes: np.ndarray) -> dict[str, np.ndarray]:
        top, left, height, width = boxes.T
        spare = np.maximum(1, np.array(size)[:, None] - np.stack([height, width]))
        return {"area": height * width, "ratio": width / height, "top": top / spare[0], "left": left / spare[1]}

    for name, (a, b) in {k: (v, features(theirs)[k]) for k, v in features(ours).items()}.items():
        assert ks_2samp(a, b).pvalue > 0.001, name


def test_flips_are_half() -> None:
    """Half of the images are flipped, within four standard deviations."""
    flips = crops(np.tile([100, 100], (DRAWS, 1)), seed=3)[:, 4]
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / DRAWS**0.5


def test_an_image_that_no_crop_fits_is_cut_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extreme shapes fall back as torchvision does."""
    monkeypatch.setattr("tl.images.SCALE", (1.0, 1.0))
    for size in ((10, 2_000), (2_000, 10)):
        expected = v1.RandomResizedCrop.get_params(torch.empty(3, *size), scale=[1.0, 1.0], ratio=[3 / 4, 4 / 3])
        got = crops(np.array([size]), seed=0)[0, :4]
        assert tuple(got) == expected


def test_crops_of_an_image_do_not_depend_on_the_others() -> None:
    """Row i depends only on the seed and i."""
    sizes = np.random.default_rng(0).integers(50, 500, (20, 2))
    assert np.array_equal(crops(sizes, 5)[:7], crops(sizes[:7], 5))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_pixels_agree_with_pillow(mini: tl.Splits, interpolation: str) -> None:
    """Crops differ from Pillow's own crop and resize by 1 grey level on average and 12 at most."""
    store = open_store(mini)
    batches = Batches(store, mini.train, replaced(interpolation=interpolation, plain=True), torch.device("cpu"))
    shown, labels = next(batches.training(len(mini.train), seed=0, epoch=0))
    boxes = crops(store.sizes(mini.train), tl_seed("crops", 0, 0))
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    for position, index in enumerate(order(len(mini.train), tl_seed("order", 0, 0))):
        assert labels[position] == mini.train.labels[index]
        top, left, height, width, flipped = boxes[index].tolist()
        image = Image.open(mini.root / mini.train.files[index]).convert("RGB")
        image = image.crop((left, top, left + width, top + height)).resize((96, 96), resample)
        expected = np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else image, dtype=float)
        difference = np.abs(shown[position].permute(1, 2, 0).numpy() * 255 - expected)
        assert difference.mean() < 1 and difference.max() <= 12


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t"])
def test_validation_agrees_with_the_weights_own_transforms(mini: tl.Splits, name: str) -> None:
    """Images differ from torchvision's preset, which uses Pillow, by 0.02 on average after normalisation."""
    from torchvision.models import get_model_weights

    from tl.library import library

    assert_validation_is(get_model_weights(name).DEFAULT.transforms(), library("torchvision").preprocessing(name), mini)


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "vit_tiny_patch16_224", "test_resnet"])
def test_validation_agrees_with_timms_own_transforms(mini: tl.Splits, name: str) -> None:
    """Images differ from timm's transform, which uses Pillow, by 0.02 on average after normalisation."""
    from timm.data import create_transform, resolve_data_config
    from timm.models import get_pretrained_cfg

    from tl.library import library

    preset = create_transform(**resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict()))
    assert_validation_is(preset, library("timm").preprocessing(name), mini)


def assert_validation_is(
    preset: Callable[[Image.Image], torch.Tensor], preprocessing: Preprocessing, splits: tl.Splits
) -> None:
    """Compare each validation image with the output of `preset`."""
    val = Batches(open_store(splits), splits.val, preprocessing, torch.device("cpu"))
    shown = torch.cat([images for images, _ in val.evaluation(5)])
    for image, file in zip(shown, splits.val.files, strict=True):
        expected = preset(Image.open(splits.root / file).convert("RGB"))
        assert image.shape == expected.shape
        assert (image - expected).abs().mean() < 0.02


def replaced(*, interpolation: str, plain: bool) -> Preprocessing:
    mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else (PREPROCESSING.mean, PREPROCESSING.std)
    return Preprocessing(size=96, resize=112, mean=mean, std=std, interpolation=interpolation)


def tl_seed(purpose: str, *axes: int) -> int:
    from tl.seeding import seed_for

    return seed_for(purpose, *axes)


def test_normalisation_is_that_of_torchvision(mini: tl.Splits) -> None:
    """It is (x / 255 - mean) / std, to float precision."""
    store = open_store(mini)
    plain = Batches(store, mini.val, replaced(interpolation="bilinear", plain=True), torch.device("cpu"))
    normed = Batches(store, mini.val, PREPROCESSING, torch.device("cpu"))
    (raw, labels), (shown, again) = next(plain.evaluation(32)), next(normed.evaluation(32))
    torch.testing.assert_close(shown, v1.Normalize(PREPROCESSING.mean, PREPROCESSING.std)(raw), rtol=1e-5, atol=1e-5)
    assert labels.tolist() == again.tolist() == list(mini.val.labels)


@given(st.integers(1, 500), st.integers(1, 64))
def test_batches_cover_every_image_once_and_none_is_alone(count: int, batch_size: int) -> None:
    """Bounds are contiguous from 0 to the count; only batch size 1 or a set of one gives a batch of one."""
    bounds = batch_bounds(count, batch_size)
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == count
    if batch_size > 1 and count > 1:
        assert all(stop - start > 1 for start, stop in bounds)
    assert all(stop - start <= batch_size + 1 for start, stop in bounds)


def test_the_store_holds_what_decoding_gives(tmp_path: Path) -> None:
    """Pixels of the store equal decoded images, even after the images are deleted."""
    splits = tl.load_splits(write_folder(tmp_path / "set"))
    expected = {file: decode(splits.root / file) for file in (*splits.train.files, *splits.val.files)}
    store = open_store(splits)
    assert store.pixels is not None
    for file, pixels in expected.items():
        (splits.root / file).unlink()
        assert np.array_equal(store.read(file), pixels)
    assert open_store(splits) == store, "the second call only opens it"


def test_a_store_that_another_process_replaces_is_not_misread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of a part has other offsets; whoever has opened it goes on with the images that it names."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    whole = tl.load_splits(write_folder(tmp_path / "set"))
    part = replace(whole, train=ImageList(files=whole.train.files[2:], labels=whole.train.labels[2:]))
    store = open_store(part)
    assert open_store(whole).pixels != store.pixels
    for file in part.train.files:
        assert np.array_equal(store.read(file), decode(whole.root / file))


def _rewritten(change: Callable[[list[Any]], object]) -> Callable[[Path], None]:
    """Change the rows of an index, and leave its digest as it is."""

    def damage(path: Path) -> None:
        digest, _, text = path.read_text().partition("\n")
        index = json.loads(text)
        for row in index["files"]:
            change(row)
        path.write_text(f"{digest}\n{json.dumps(index)}")

    return damage


def _swap_sizes(row: list[Any]) -> None:
    row[1], row[2] = row[2], row[1]


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGED_STORES: dict[str, tuple[str, Callable[[Path], object]]] = {
    **{f"pixels: {name}": ("pixels-*.bin", DAMAGES[name]) for name in ("zeros", "flipped bit", "truncated", "empty")},
    **{f"pixels: {name}": ("pixels-*.bin", DAMAGES[name]) for name in ("folder", "FIFO")},
    "pixels: last bit": ("pixels-*.bin", lambda path: flip(path, 0.99999)),
    "pixels: missing": ("pixels-*.bin", Path.unlink),
    **{f"index: {name}": ("index.json", damage) for name, damage in DAMAGES.items()},
    "index: height and width swapped": ("index.json", _rewritten(_swap_sizes)),
    "index: offsets 0": ("index.json", _rewritten(lambda row: row.__setitem__(3, 0))),
    "index: missing": ("index.json", Path.unlink),
    "index: no permission": ("index.json", lambda path: path.chmod(0)),
    "folder: a file": (".", lambda path: [_remove(path), path.write_text("")]),
    "folder: a link to nowhere": (".", lambda path: [_remove(path), path.symlink_to("nowhere")]),
}


@pytest.mark.timeout(120)  # a FIFO must not be waited for
@pytest.mark.parametrize("damage", DAMAGED_STORES)
def test_a_damaged_store_is_rebuilt_with_a_word(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are decoded again, and nothing else is left in the cache."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    splits = tl.load_splits(write_folder(tmp_path / "set", size=(33, 21)))
    store = open_store(splits)
    assert store.pixels is not None
    whole, folder = store.pixels.read_bytes(), store.pixels.parent
    name, spoil = DAMAGED_STORES[damage]
    place = folder if name == "." else next(iter(folder.glob(name)), folder / name)
    spoil(place)
    if damage == "index: no permission" and os.access(place, os.R_OK):
        pytest.skip("this user may read every file")
    assert warned_once(lambda: open_store(splits), folder) == store
    assert store.pixels.read_bytes() == whole
    assert open_store(splits) == store, "without a warning"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_damaged_store_is_not_trained_on(tmp_path: Path, mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and predictions are those of an intact store, to the last bit."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    config = tl.TrainConfig(backbone=TINY[1], regime="frozen", weights="random", epochs=1)
    intact = tl.train_model(config, mini, device="cpu")
    (pixels,) = tmp_path.glob("pixels/*/pixels-*.bin")
    zero(pixels)
    damaged = warned_once(lambda: tl.run_protocol(config, mini, device="cpu"), pixels)
    assert [(row.train_loss, row.val_loss) for row in damaged.epochs] == [
        (row.train_loss, row.val_loss) for row in intact.epochs
    ]
    assert damaged.last == intact.last


def test_a_damaged_store_in_a_cache_that_cannot_be_written_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are then decoded each time."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    splits = tl.load_splits(write_folder(tmp_path / "set"))
    store = open_store(splits)
    assert store.pixels is not None
    expected = {file: store.read(file) for file in splits.train.files}
    zero(store.pixels)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tl.images.tempfile.TemporaryDirectory", read_only)
    for _ in range(2):
        again = warned_once(lambda: open_store(splits), store.pixels)
        assert again.pixels is None and all(np.array_equal(again.read(file), expected[file]) for file in expected)


def test_a_process_checks_pixels_once_and_after_every_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of one process open the store several times. Pixels that have just changed aren't remembered."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    splits = tl.load_splits(write_folder(tmp_path / "set"))
    store = open_store(splits)
    assert store.pixels is not None
    checked: list[int] = []
    crc32 = zlib.crc32

    def counted(content: memoryview, *before: int) -> int:
        checked.append(len(content))
        return crc32(content, *before)

    monkeypatch.setattr("tl.images.zlib.crc32", counted)

    def checked_bytes() -> int:
        checked.clear()
        assert open_store(splits) == store
        return sum(checked)

    whole = store.pixels.stat().st_size
    monkeypatch.setattr("tl.images._SETTLED_SECONDS", 1e9)
    assert [checked_bytes(), checked_bytes()] == [whole, whole]
    monkeypatch.setattr("tl.images._SETTLED_SECONDS", -1e9)
    assert [checked_bytes(), checked_bytes(), checked_bytes()] == [whole, 0, 0]
    os.utime(store.pixels)
    assert [checked_bytes(), checked_bytes()] == [whole, 0]
    known = checked_files()
    monkeypatch.setattr("tl.images._checked", set())  # as in a new process
    trust(known)
    assert checked_bytes() == 0
    os.utime(store.pixels, (0, 0))
    assert [checked_bytes(), checked_bytes()] == [whole, 0]
    zero(store.pixels)
    warned_once(lambda: open_store(splits), store.pixels)


def test_decoding_leaves_warning_filters_alone(tmp_path: Path) -> None:
    """Filters belong to the whole process, but several threads decode the images."""
    before = list(warnings.filters)
    open_store(tl.load_splits(write_folder(tmp_path / "set", train=40)))
    assert warnings.filters == before


def test_a_set_too_large_for_the_disk_is_decoded_on_the_fly(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit there is no pixel file, and the images give the same pixels."""
    monkeypatch.setattr("tl.images.STORE_LIMIT_BYTES", 10_000)
    splits = tl.load_splits(write_folder(tmp_path / "set", size=(61, 47)))
    store = open_store(splits)
    assert store.pixels is None
    assert open_store(splits) == store
    file = splits.val.files[0]
    assert np.array_equal(store.read(file), decode(splits.root / file))
    monkeypatch.undo()
    monkeypatch.setenv("TL_CACHE", str(cache / "tl"))
    assert open_store(splits).pixels is not None, "with room again, pixels are stored"


@pytest.mark.parametrize("workers", [1, 5])
def test_images_from_the_store_or_decoded_by_any_number_of_workers_train_the_same(
    mini: tl.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Losses and predictions are equal to the last bit."""
    config = tl.TrainConfig(backbone=TINY[1], regime="finetune", weights="random", epochs=2)
    stored = tl.train_model(config, mini, device="cpu")
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    monkeypatch.setattr("tl.images.STORE_LIMIT_BYTES", 10_000)
    monkeypatch.setattr("tl.batches.usable_cores", lambda: workers)
    threads: set[str] = set()
    read = Store.read

    def recorded(self: Store, file: str) -> Pixels:
        threads.add(threading.current_thread().name)
        return read(self, file)

    monkeypatch.setattr(Store, "read", recorded)
    decoded = tl.train_model(config, mini, device="cpu")
    assert any("decoded in every epoch" in note.text for note in decoded.notes)
    assert threading.main_thread().name not in threads and (len(threads) > 4) is (workers == 5)
    for one, other in zip(stored.epochs, decoded.epochs, strict=True):
        assert (one.train_loss, one.val_loss) == (other.train_loss, other.val_loss)
    assert stored.last == decoded.last


def test_without_a_writable_cache_images_are_decoded_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged images are still found first."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "file" / "below"))
    splits = tl.load_splits(write_folder(tmp_path / "set"))
    assert isinstance(open_store(splits), Store)
    (splits.root / splits.val.files[1]).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"val/a/1\.jpg"):
        open_store(splits)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_image_is_named(tmp_path: Path, damage: str) -> None:
    """The folder is refused, and the message names the file."""
    root = write_folder(tmp_path / "set", size=(80, 60))
    victim = root / "train" / "b" / "1.jpg"
    content = victim.read_bytes()
    victim.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"\xff\xd8junk", "empty": b""}[damage])
    with pytest.raises(
        DataError, match=r"train/b/1\.jpg: can't be decoded: .* \(1 of 10 images\); repair or delete it$"
    ):
        open_store(tl.load_splits(root))
