"""Finds images that look the same, such as copies in another size, format or quality, by perceptual hashes.

Two images look the same if the 64 bits of their pHash (library `imagehash`) differ in at most `DISTANCE`, and if their
colours, averaged over 8 × 8 cells, differ by at most `COLOUR` on average. The hash alone sees no colours, so a red and
a blue circle would be the same. Groups are transitive: what looks like a member belongs to the group.

Hashes are kept in the cache, by the content of the files. This module doesn't import torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tl.cache import cache_dir
from tl.decoding import decode_or_say_why, in_threads
from tl.sealed import read_or_warn, write_sealed

DISTANCE = 4
"""Most bits of 64 in which the hashes of images that look the same differ. Those of copies in other sizes, formats and
qualities differ in 0 to 4; of all pairs of 397 photographs of ants and bees none differs in fewer than 14."""
COLOUR = 12.0
"""Largest mean difference of the colours of images that look the same, in levels of 0 to 255."""
CELLS = 8
"""Colours are averaged over this number of rows and columns."""
VERSION = 1
"""Version of the kept hashes."""
_PAIRS = 1 << 22
"""Pairs whose distances are in memory at the same time."""

Groups = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What is known of N images: hash, colours and size of each, or why it can't be decoded."""

    hashes: npt.NDArray[np.uint64]
    """`(N,) uint64`; 0 for an image that can't be decoded."""
    colours: npt.NDArray[np.uint8]
    """`(N, 192) uint8`: red, green and blue of each cell."""
    sizes: npt.NDArray[np.int64]
    """`(N, 2) int64`: height and width in pixels; 0 for an image that can't be decoded."""
    reasons: tuple[str, ...]
    """Why an image can't be decoded, in one line; empty for all others."""


def looks_of(root: Path, digests: Mapping[str, str]) -> Looks:
    """Hash each image below `root`, equal files once. `digests` are the files' SHA-256, in the order of the result.

    Hashes come from the cache if the same files were hashed before. Images that can't be decoded are no error.
    """
    first: dict[str, str] = {}
    for name, digest in digests.items():
        first.setdefault(digest, name)
    distinct = sorted(first)
    key = hashlib.sha256("\n".join(distinct).encode()).hexdigest()[:16]
    place = cache_dir() / "hashes" / f"{key}-v{VERSION}"
    found = _kept(place, len(distinct))
    if found is None:
        found = _hashed(root, [first[digest] for digest in distinct])
        if not any(found.reasons):  # another version of a library may read what this one can't
            with contextlib.suppress(OSError):
                write_sealed(place, _packed(found))
    index = {digest: number for number, digest in enumerate(distinct)}
    rows = np.array([index[digest] for digest in digests.values()], dtype=np.int64)
    return Looks(
        hashes=found.hashes[rows],
        colours=found.colours[rows],
        sizes=found.sizes[rows],
        reasons=tuple(found.reasons[row] for row in rows),
    )


def groups_of(looks: Looks, digests: Sequence[str]) -> Groups:
    """Number the groups of images that look the same: `(N,) int64`, the index of the first image of each one's group.

    `digests` are the SHA-256 of the files: equal files are in one group, whether they can be decoded or not. Time grows
    with the square of the number of images (at about 10⁸ pairs per second), memory in proportion to it.
    """
    first: dict[str, int] = {}
    group = np.array([first.setdefault(digest, number) for number, digest in enumerate(digests)], dtype=np.int64)
    rows = np.array([row for row in first.values() if not looks.reasons[row]], dtype=np.int64)
    hashes, colours = looks.hashes[rows], looks.colours[rows].astype(np.int16)
    label = rows.copy()
    block = max(1, _PAIRS // max(1, len(rows)))
    for start in range(0, len(rows), block):
        distances = np.bitwise_count(hashes[start : start + block, None] ^ hashes[None, start:])
        near = distances <= DISTANCE
        for offset in np.flatnonzero(near.sum(axis=1) > 1):
            row = start + int(offset)
            others = start + np.flatnonzero(near[offset])
            others = others[(others > row) & (label[others] != label[row])]
            alike = others[np.abs(colours[others] - colours[row]).mean(axis=1) <= COLOUR]
            if len(alike):
                joined = np.unique(label[np.append(alike, row)])
                label[np.isin(label, joined)] = joined[0]
    group[rows] = label
    return group[group]  # equal files follow the first of them


def members(groups: Groups) -> list[npt.NDArray[np.int64]]:
    """The indices of the images of each group with at least two of them, in order."""
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(groups) else []
    return [part for part in parts if len(part) > 1]


def _hashed(root: Path, names: Sequence[str]) -> Looks:
    found = [look for _, look in in_threads(root, names, _look)]
    blank = np.zeros(3 * CELLS * CELLS, dtype=np.uint8)
    return Looks(
        hashes=np.array([0 if isinstance(look, str) else look[0] for look in found], dtype=np.uint64),
        colours=np.array([blank if isinstance(look, str) else look[1] for look in found], dtype=np.uint8).reshape(
            -1, len(blank)
        ),
        sizes=np.array([(0, 0) if isinstance(look, str) else look[2] for look in found], dtype=np.int64).reshape(-1, 2),
        reasons=tuple(look if isinstance(look, str) else "" for look in found),
    )


def _look(path: Path) -> tuple[int, npt.NDArray[np.uint8], tuple[int, int]] | str:
    """Hash, colours and size of an image, or why it can't be decoded."""
    import imagehash  # with scipy, which takes longer to load than a few images to hash

    pixels = decode_or_say_why(path)
    if isinstance(pixels, str):
        return pixels
    image = Image.fromarray(pixels)
    bits = np.packbits(imagehash.phash(image).hash.reshape(-1))
    colours = np.asarray(image.resize((CELLS, CELLS), Image.Resampling.BOX)).reshape(-1)
    return int.from_bytes(bits.tobytes(), "big"), colours, (pixels.shape[0], pixels.shape[1])


def _packed(looks: Looks) -> bytes:
    data = io.BytesIO()
    np.savez(data, hashes=looks.hashes, colours=looks.colours, sizes=looks.sizes)
    return data.getvalue()


def _kept(place: Path, count: int) -> Looks | None:
    """The kept looks of so many images; None if there are none."""
    content = read_or_warn(place)
    if content is None:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as data:
        return Looks(hashes=data["hashes"], colours=data["colours"], sizes=data["sizes"], reasons=("",) * count)
