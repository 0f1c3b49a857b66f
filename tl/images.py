"""Decodes images once, and computes crops, order and batches.

Every image is decoded once into a flat file of uint8 pixels in the cache. The file is keyed by the data set's digest
and shared by all cells and processes. Decoding also finds damaged images before any training. This module doesn't
import torch; `tl.batches` makes the tensors.

Pixels that changed after they were written are noticed when the store is opened: the index begins with its SHA-256 and
has a CRC-32 of each image's pixels. A process checks all of them once, at about 2 GiB/s: 0.1 s for 400 photographs of
500 × 375, 5 s for the largest store. It is done before the first epoch, since a check of each image that is read would
count as time of the training. A command checks for its cells' processes too, unless the file changes in the meantime
or has only just been written.
A damaged store is rebuilt, with a `CacheWarning`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tl.cache import cache_dir
from tl.datasets import ImageList, Splits
from tl.decoding import Pixels, decode, decode_or_say_why, in_threads
from tl.errors import DataError
from tl.sealed import CacheDamage, read_sealed, warn_rebuilt, write_sealed

STORE_VERSION = 2
STORE_LIMIT_BYTES = 8 << 30
"""If pixels take more bytes than this, or than half of the free disk, images are decoded every time."""
MOST_NAMED = 10
"""Damaged images that an error names; it counts the rest."""
SCALE = (0.08, 1.0)
"""Range of a crop's area as a share of the image's."""
RATIO = (3 / 4, 4 / 3)
"""Range of a crop's width over its height; ratios are uniform in their logarithm."""
_CHUNK_BYTES = 1 << 18
_SETTLED_SECONDS = 1.0
"""A file is checked again if it changed less than this before: another change could leave the same time stamp."""
FileState = tuple[str | int, ...]
"""The path of a file, and what changes with every change of it."""
_checked: set[FileState] = set()
"""Files of pixels that this process, or one that it trusts, has found intact."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """The decoded pixels of a data set's images. The object is small enough to send to another process."""

    root: Path
    files: dict[str, tuple[int, int, int]]
    """Height, width, and offset of the pixels in `pixels` in bytes, of each file."""
    pixels: Path | None
    """Flat file of uint8 pixels; None if they are too large for the disk, and images are decoded from `root`."""

    def read(self, file: str) -> Pixels:
        """Return one image, `(H, W, 3) uint8` RGB."""
        if self.pixels is None:
            return decode(self.root / file)
        height, width, offset = self.files[file]
        try:
            # Read, not mapped: mapped pages would count as this process's memory.
            flat = np.fromfile(self.pixels, dtype=np.uint8, count=height * width * 3, offset=offset)
        except FileNotFoundError:  # another process has replaced the store by one of other images
            return decode(self.root / file)
        return flat.reshape(height, width, 3)

    def sizes(self, images: ImageList) -> npt.NDArray[np.int64]:
        """Return height and width of each image, `(N, 2) int64`."""
        return np.array([self.files[file][:2] for file in images.files], dtype=np.int64)


def open_store(splits: Splits) -> Store:
    """Open the decoded pixels of a data set; decode them first if the cache doesn't have them.

    The first call of a process checks the pixels; see the module. A damaged store is decoded again, with a
    `CacheWarning`. Raises `DataError` with the number of images that can't be decoded, and the names of the first.
    """
    folder = cache_dir() / "pixels" / f"{splits.digest[:16]}-v{STORE_VERSION}"
    store = None
    try:
        store = _opened(splits, folder)
    except CacheDamage as damage:
        warn_rebuilt(damage)
    return store or _build(splits, folder)


def _opened(splits: Splits, folder: Path) -> Store | None:
    """Open the store in `folder`. Returns None if it is missing or incomplete, or has no pixels though they now fit.

    Parts of a data set have the digest of the whole, so a store that was built from one part lacks other images.
    Raises `CacheDamage`.
    """
    if not os.path.lexists(folder):
        return None
    content = read_sealed(folder / "index.json")
    if content is None:
        raise CacheDamage(folder, "it has no index.json")
    index = json.loads(content)
    files = {name: (height, width, offset) for name, height, width, offset, _ in index["files"]}
    if not files.keys() >= {*splits.train.files, *splits.val.files}:
        return None
    pixels = folder / index["pixels"]
    try:
        if not index["stored"]:
            return None if index["bytes"] <= _limit(folder) else Store(root=splits.root, files=files, pixels=None)
        _check_pixels(pixels, index)
    except OSError as error:
        raise CacheDamage(pixels, f"it can't be read: {error.strerror or error}") from error
    return Store(root=splits.root, files=files, pixels=pixels)


def checked_files() -> frozenset[FileState]:
    """The files of pixels that this process has found intact. A process that works for this one may `trust` them."""
    return frozenset(_checked)


def trust(files: frozenset[FileState]) -> None:
    """Don't check these files again in this process, unless they change: another process has found them intact."""
    _checked.update(files)


def _check_pixels(path: Path, index: dict[str, Any]) -> None:
    """Compare the pixels of all images with the CRCs in the index, unless it is known that they are equal.

    Raises `CacheDamage` naming the first image whose pixels differ, and `OSError`.
    """
    file = path.stat()
    if not stat.S_ISREG(file.st_mode) or file.st_size != index["bytes"]:
        raise CacheDamage(path, f"it is not a file of {index['bytes']} bytes")
    state = (os.fspath(path), file.st_dev, file.st_ino, file.st_mtime_ns, file.st_ctime_ns)
    if state in _checked:
        return
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as flat:
        for name, height, width, _, crc in index["files"]:  # in the order in which they are in the file
            found, left = 0, height * width * 3
            while left and (count := flat.readinto(buffer[:left])):
                found, left = zlib.crc32(buffer[:count], found), left - count
            if left or found != crc:
                raise CacheDamage(path, f"the pixels of {name} are not those that were written")
    if time.time() - max(file.st_mtime, file.st_ctime) > _SETTLED_SECONDS:
        _checked.add(state)


def _limit(folder: Path) -> int:
    return min(STORE_LIMIT_BYTES, shutil.disk_usage(folder.parent).free // 2)


def _build(splits: Splits, folder: Path) -> Store:
    names = [*splits.train.files, *splits.val.files]
    try:
        return _stored(splits, names, folder)
    except OSError:
        # The cache can't be written or is full: still decode every image once, to find damaged ones.
        files = {name: (*pixels.shape[:2], 0) for name, pixels in _decoded(splits.root, names)}
        return Store(root=splits.root, files=files, pixels=None)


def _stored(splits: Splits, names: list[str], folder: Path) -> Store:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-", ignore_cleanup_errors=True) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        limit, total, rows = _limit(folder), 0, []
        with (new / "pixels.bin").open("wb") as out:
            for name, pixels in _decoded(splits.root, names):
                content = pixels.tobytes()
                rows.append([name, pixels.shape[0], pixels.shape[1], total, zlib.crc32(content)])
                if total + len(content) <= limit:
                    out.write(content)
                total += len(content)
        # Named after its content, so that who has opened a store of other images doesn't read this one.
        name = f"pixels-{zlib.crc32(json.dumps(rows).encode()):08x}.bin"
        if total > limit:
            (new / "pixels.bin").unlink()
        else:
            (new / "pixels.bin").rename(new / name)
        index = {"bytes": total, "stored": total <= limit, "pixels": name, "files": rows}
        write_sealed(new / "index.json", json.dumps(index).encode())
        with contextlib.suppress(OSError):
            # Another process may have built the same store in the meantime; that one is used then.
            if not _intact(splits, folder):
                if os.path.lexists(folder):
                    folder.rename(old)
                new.rename(folder)
    store = _intact(splits, folder)
    if store is None:
        raise OSError(f"{folder}: the store of pixels could not be moved to its place")
    return store


def _intact(splits: Splits, folder: Path) -> Store | None:
    """Open the store in `folder` if it is there, complete and intact."""
    with contextlib.suppress(CacheDamage):
        return _opened(splits, folder)
    return None


def _decoded(root: Path, names: list[str]) -> Iterator[tuple[str, Pixels]]:
    """Yield each image in order. Raises `DataError` at the end if any can't be decoded, so that it can count all."""
    damaged: list[tuple[str, str]] = []
    for name, decoded in in_threads(root, names, decode_or_say_why):
        if isinstance(decoded, str):
            damaged.append((name, decoded))
        elif not damaged:  # otherwise nobody needs the pixels
            yield name, decoded
    if len(damaged) == 1:
        name, reason = damaged[0]
        raise DataError(f"{root / name}: can't be decoded: {reason} (1 of {len(names)} images); repair or delete it")
    if damaged:
        named = [f"{name}: {reason}" for name, reason in damaged[:MOST_NAMED]]
        more = [f"and {len(damaged) - MOST_NAMED} more"] if len(damaged) > MOST_NAMED else []
        said = f"{root}: {len(damaged)} of {len(names)} images can't be decoded; repair or delete them"
        raise DataError(said, details=[*named, *more])


def crops(sizes: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return random crops and flips, distributed as torchvision's `RandomResizedCrop` and `RandomHorizontalFlip`.

    Args:
        sizes: height and width of each image, `(N, 2) int64`.
        seed: made of the config's seed and the epoch; row `i` of the result depends only on it and on `i`.

    Returns:
        `(N, 5) int64`: top, left, height, width, flipped (0 or 1).

    Ten attempts per image, then the largest centred crop within `RATIO`, as torchvision does
    (`torchvision.transforms.RandomResizedCrop.get_params`).
    """
    attempts = 10
    draws = np.random.default_rng(seed).random((len(sizes), 4 * attempts + 1))
    flip = draws[:, -1] < 0.5
    area_u, ratio_u, top_u, left_u = draws[:, :-1].reshape(len(sizes), 4, attempts).transpose(1, 0, 2)
    image_h, image_w = sizes[:, :1], sizes[:, 1:]
    area = image_h * image_w * (SCALE[0] + (SCALE[1] - SCALE[0]) * area_u)
    aspect = np.exp(np.log(RATIO[0]) + (np.log(RATIO[1]) - np.log(RATIO[0])) * ratio_u)
    width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (width > 0) & (width <= image_w) & (height > 0) & (height <= image_h)
    first = fits.argmax(axis=1)
    row = np.arange(len(sizes))
    height, width = height[row, first], width[row, first]
    top = (top_u[row, first] * (sizes[:, 0] - height + 1)).astype(np.int64)
    left = (left_u[row, first] * (sizes[:, 1] - width + 1)).astype(np.int64)
    for i in np.flatnonzero(~fits.any(axis=1)):
        top[i], left[i], height[i], width[i] = _largest_centred(int(sizes[i, 0]), int(sizes[i, 1]))
    return np.stack([top, left, height, width, flip.astype(np.int64)], axis=1)


def mirrors(sizes: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return whole images as `crops` returns parts of them, half of them flipped at random.

    The flips are those of `crops` with this seed.
    """
    flipped = crops(sizes, seed)[:, 4:]
    return np.concatenate([np.zeros_like(sizes), sizes, flipped], axis=1)


def _largest_centred(image_h: int, image_w: int) -> tuple[int, int, int, int]:
    height, width = image_h, image_w
    if image_w / image_h < RATIO[0]:
        height = round(image_w / RATIO[0])
    elif image_w / image_h > RATIO[1]:
        width = round(image_h * RATIO[1])
    return (image_h - height) // 2, (image_w - width) // 2, height, width


def order(count: int, seed: int) -> npt.NDArray[np.int64]:
    """Return a random order of `count` images, `(count,) int64`."""
    return np.random.default_rng(seed).permutation(count)


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """Return start and stop of each batch: every image is used, and no batch is a single image.

    A remainder of one joins the batch before it (244 images at batch size 3 end in a batch of 4), since BatchNorm
    can't be trained on one value per channel. Only batch size 1 gives batches of one.
    """
    starts = list(range(0, count, batch_size))
    if batch_size > 1 and len(starts) > 1 and count % batch_size == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))
