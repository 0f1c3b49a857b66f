"""Synthetic ants and bees: a fallback with the size and layout of the photographs, if those are not available.

Each picture is generated from its own seed, so the bytes are always the same with one build of Pillow. Size,
pose, colour, light, background, clutter and noise vary, and both classes share their palettes. They differ in
shape: a narrow waist and long legs against a plump, banded body with wings.
"""

from __future__ import annotations

import math
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tl.cache import cache_dir
from tl.digest import file_digests, set_digest
from tl.errors import DataError
from tl.sealed import CacheDamage, read_regular, warn_rebuilt
from tl.seeding import seed_for

VERSION = 2
"""Version of the pictures; part of the cache folder's name and of every picture's seed."""
SYNTHETIC_NOTE = "synthetic: times and memory are valid, accuracy says nothing about real images"
_MARKER = "DRAWN"
"""Name of a file at the root of a synthetic set. It identifies the set in whatever folder it is."""
SCALE = 2
"""Pictures are drawn at so many times their size and reduced, which smooths edges."""
_SKIN = [(38, 28, 22), (66, 36, 20), (96, 54, 26), (128, 74, 30), (24, 22, 26), (150, 98, 42)]
_BAND = [(214, 158, 46), (190, 128, 52), (226, 188, 98), (168, 112, 60), (140, 100, 70)]
_GROUND = [
    (92, 122, 62),
    (146, 132, 96),
    (176, 168, 150),
    (120, 96, 70),
    (188, 150, 160),
    (84, 96, 104),
    (206, 196, 120),
]

Point = tuple[float, float]
Colour = tuple[int, int, int]


class Set(Protocol):
    """A synthetic set: which files it has, and how they are made."""

    @property
    def name(self) -> str:
        """A key of `tl.datasets.DATASETS`."""

    def paths(self) -> list[str]:
        """Return the paths of all its files relative to its root, but for the marker."""

    def write(self, root: Path) -> None:
        """Write these files below a folder."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The number of pictures of a synthetic set, and their size."""

    name: str
    train: dict[str, int]
    """Number of training pictures by class."""
    val: dict[str, int]
    """Number of validation pictures by class."""
    longest: tuple[int, int]
    """Range of the longer side, in pixels."""

    def paths(self) -> list[str]:
        """See `Set.paths`."""
        return [path for path, *_ in self._pictures()]

    def write(self, root: Path) -> None:
        """See `Set.write`. The pictures are `train/CLASS/NNN.jpg` and `val/CLASS/NNN.jpg`."""

        def one(job: tuple[str, str, str, int]) -> None:
            path, split, kind, index = job
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(seed_for("synthetic", VERSION, self.name, split, kind, index))
            picture = draw(kind, rng, longest=int(rng.integers(*self.longest, endpoint=True)))
            picture.save(root / path, quality=int(rng.integers(80, 95)))

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, self._pictures()))

    def _pictures(self) -> list[tuple[str, str, str, int]]:
        """Return path, split, class and number of each picture."""
        return [
            (f"{split}/{kind}/{index:03d}.jpg", split, kind, index)
            for split, counts in (("train", self.train), ("val", self.val))
            for kind, count in counts.items()
            for index in range(count)
        ]


FULL = Size(name="synthetic", train={"ants": 123, "bees": 121}, val={"ants": 70, "bees": 83}, longest=(360, 500))
MINI = Size(name="synthetic-mini", train={"ants": 12, "bees": 12}, val={"ants": 8, "bees": 8}, longest=(120, 180))


def find(kind: Set) -> Path:
    """Return the folder of a synthetic set in the user's cache; generate the set if it is missing.

    Every call checks that it holds the files that were generated and no others. If not, the set is generated again,
    with a `CacheWarning`. Raises `DataError` if the cache can't be written.
    """
    folder = cache_dir() / f"{kind.name}-v{VERSION}"
    try:
        if os.path.lexists(folder):
            _check(folder, kind)
            return folder
    except CacheDamage as damage:
        warn_rebuilt(damage)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".drawing-", ignore_cleanup_errors=True) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            write_set(kind, new)
            if not _intact(folder, kind):
                if os.path.lexists(folder):
                    folder.rename(old)
                try:
                    new.rename(folder)
                except OSError:
                    # Another process was faster, with the same bytes.
                    if not _intact(folder, kind):
                        raise
    except OSError as error:
        raise DataError(f"{folder}: can't be written ({error.strerror}); set TL_CACHE to a folder that can") from error
    return folder


def set_name(folder: Path) -> str:
    """Return the name of the synthetic set that a folder holds, or an empty string."""
    try:
        return (read_regular(folder / _MARKER) or b"").decode().partition(" ")[0]
    except (CacheDamage, UnicodeDecodeError):
        return ""


def _check(folder: Path, kind: Set) -> None:
    """Raise `CacheDamage` unless a folder holds the pictures that its marker names, and nothing else.

    Hidden files are allowed: they are no part of a data set.
    """
    pictures = [Path(path) for path in kind.paths()]
    folders = {parent for path in pictures for parent in path.parents if parent.name}
    wanted = {Path(_MARKER), *pictures, *folders}
    try:
        below = (path.relative_to(folder) for path in folder.rglob("*"))
        found = {path for path in below if not any(part.startswith(".") for part in path.parts)}
        for path in sorted(wanted ^ found):
            raise CacheDamage(folder / path, "it is missing" if path in wanted else "it was not generated")
        for path in pictures:
            if not (folder / path).is_file():  # reading a FIFO could wait forever
                raise CacheDamage(folder / path, "it is not a regular file")
        marker = _marker_text(folder, kind)
    except (OSError, DataError) as error:
        raise CacheDamage(folder, str(error)) from error
    if read_regular(folder / _MARKER) != marker.encode():
        raise CacheDamage(folder, "its pictures are not those that were generated")


def _intact(folder: Path, kind: Set) -> bool:
    try:
        _check(folder, kind)
    except CacheDamage:
        return False
    return True


def _marker_text(root: Path, kind: Set) -> str:
    """Return the content of a synthetic set's marker file: the set's name, and the digest of its pictures."""
    return f"{kind.name} {set_digest(file_digests(root, kind.paths()))}\n"


def write_set(kind: Set, root: Path) -> None:
    """Write all files of a set below `root`, with the marker that says which set it is."""
    kind.write(root)
    (root / _MARKER).write_text(_marker_text(root, kind), encoding="utf-8")


def draw(kind: str, rng: np.random.Generator, *, longest: int) -> Image.Image:
    """Draw one RGB picture of `kind` (`ants` or `bees`), with a longer side of `longest` pixels."""
    shorter = int(longest * rng.uniform(0.62, 1.0))
    width, height = (longest, shorter) if rng.random() < 0.75 else (shorter, longest)
    canvas = ground(rng, width * SCALE, height * SCALE)
    pen = ImageDraw.Draw(canvas, "RGBA")
    clutter(pen, rng, canvas.size, count=int(rng.integers(6, 26)))
    for _ in range(1 + (rng.random() < 0.15)):
        unit = rng.uniform(0.07, 0.20) * min(canvas.size)
        turn = rng.uniform(0, 2 * math.pi)
        centre = (rng.uniform(0.3, 0.7) * canvas.width, rng.uniform(0.3, 0.7) * canvas.height)
        insect(pen, kind, rng, unit=unit, turn=turn, centre=centre)
    clutter(pen, rng, canvas.size, count=int(rng.integers(4, 18)))
    small = canvas.resize((width, height), Image.Resampling.BOX)
    if rng.random() < 0.7:
        small = small.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 2.2))))
    return light(small, rng)


def ground(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A canvas of this size, with patches of similar colours."""
    base = np.array(_GROUND[rng.integers(len(_GROUND))], dtype=np.float64)
    cells = int(rng.integers(3, 24))
    shade, hue = rng.uniform(10, 40), rng.uniform(2, 12)
    patches = base + rng.normal(0, shade, size=(cells, cells, 1)) + rng.normal(0, hue, size=(cells, cells, 3))
    tile = Image.fromarray(np.clip(patches, 0, 255).astype(np.uint8))
    return tile.resize((width, height), Image.Resampling.BICUBIC)


def clutter(pen: ImageDraw.ImageDraw, rng: np.random.Generator, size: tuple[int, int], *, count: int) -> None:
    """Draw pebbles, leaves and blades of grass."""
    for _ in range(count):
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        colour = _tinted(_GROUND[rng.integers(len(_GROUND))], rng, spread=40)
        turn = rng.uniform(0, 2 * math.pi)
        if rng.random() < 0.45:
            reach = rng.uniform(0.1, 0.5) * max(size)
            end = (x + reach * math.cos(turn), y + reach * math.sin(turn))
            pen.line([(x, y), end], fill=(*colour, int(rng.integers(120, 255))), width=int(rng.uniform(2, 14)))
        else:
            long = rng.uniform(0.01, 0.09) * max(size)
            points = _ellipse((x, y), long, long * rng.uniform(0.3, 1.0), turn)
            pen.polygon(points, fill=(*colour, int(rng.integers(120, 255))))


def insect(
    pen: ImageDraw.ImageDraw, kind: str, rng: np.random.Generator, *, unit: float, turn: float, centre: Point
) -> None:
    """Draw one of `kind` (`ants` or `bees`). `unit` is half the length of a body, about, in pixels of the canvas."""
    # Mixed with up to two thirds of a colour of the ground, so that many insects are hard to see.
    skin = _mixed(_SKIN[rng.integers(len(_SKIN))], _GROUND[rng.integers(len(_GROUND))], rng.uniform(0, 0.66))
    skin = _tinted(skin, rng, spread=14)
    part = _Pose(centre=centre, unit=unit, turn=turn, squash=rng.uniform(0.7, 1.0))
    (_ant if kind == "ants" else _bee)(pen, part, skin, rng)


@dataclass(frozen=True, kw_only=True)
class _Pose:
    """Converts a body's own coordinates (x towards the head, in body units) to pixels."""

    centre: Point
    unit: float
    turn: float
    squash: float

    def at(self, x: float, y: float) -> Point:
        x, y = x * self.unit, y * self.unit * self.squash
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return self.centre[0] + x * cos - y * sin, self.centre[1] + x * sin + y * cos

    def blob(self, x: float, y: float, rx: float, ry: float) -> list[Point]:
        return [self.at(x + rx * math.cos(t), y + ry * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 40)]


def _ant(pen: ImageDraw.ImageDraw, pose: _Pose, skin: Colour, rng: np.random.Generator) -> None:
    width = max(2, int(pose.unit * rng.uniform(0.05, 0.09)))
    for side in (-1, 1):
        for root, lean in ((0.30, 0.55), (0.10, 0.0), (-0.12, -0.7)):
            knee = pose.at(root + lean * 0.5 + rng.normal(0, 0.06), side * rng.uniform(0.6, 0.8))
            foot = pose.at(root + lean * 1.2 + rng.normal(0, 0.15), side * rng.uniform(0.75, 1.2))
            pen.line([pose.at(root, 0), knee, foot], fill=skin, width=width, joint="curve")
        elbow = pose.at(1.15, side * rng.uniform(0.3, 0.5))
        pen.line([pose.at(0.85, side * 0.1), elbow, pose.at(1.6, side * rng.uniform(0.2, 0.7))], fill=skin, width=width)
    pen.line([pose.at(-0.5, 0), pose.at(0.5, 0)], fill=skin, width=width * 2)
    for blob in (
        pose.blob(-0.95, 0, rng.uniform(0.5, 0.62), rng.uniform(0.30, 0.42)),
        pose.blob(0.12, 0, rng.uniform(0.34, 0.44), rng.uniform(0.16, 0.22)),
        pose.blob(0.78, 0, rng.uniform(0.24, 0.32), rng.uniform(0.22, 0.30)),
    ):
        pen.polygon(blob, fill=skin)
    if rng.random() < 0.6:
        _bands(pen, pose, skin, rng, start=-1.35, stop=-0.6, ry=0.28, contrast=rng.uniform(0.0, 0.8))
    if rng.random() < 0.3:
        _wings(pen, pose, rng)  # some ants have wings
    pen.polygon(pose.blob(-1.0, -0.12, 0.22, 0.07), fill=(255, 255, 255, int(rng.integers(20, 90))))


def _bee(pen: ImageDraw.ImageDraw, pose: _Pose, skin: Colour, rng: np.random.Generator) -> None:
    width = max(2, int(pose.unit * rng.uniform(0.06, 0.10)))
    for side in (-1, 1):
        for root in (0.45, 0.2, -0.1):
            foot = pose.at(root + rng.normal(0, 0.3), side * rng.uniform(0.6, 1.1))
            pen.line([pose.at(root, 0), foot], fill=skin, width=width)
        tip = pose.at(1.35, side * rng.uniform(0.15, 0.4))
        pen.line([pose.at(0.95, side * 0.1), tip], fill=skin, width=width)
    plump = rng.uniform(0.32, 0.50)
    pen.polygon(pose.blob(-0.62, 0, rng.uniform(0.72, 0.86), plump), fill=skin)
    _bands(pen, pose, skin, rng, start=-1.25, stop=-0.1, ry=plump * 0.86, contrast=rng.uniform(0.0, 0.8))
    fuzz = _tinted(_BAND[rng.integers(len(_BAND))], rng, spread=20) if rng.random() < 0.7 else skin
    pen.polygon(pose.blob(0.32, 0, 0.46, rng.uniform(0.40, 0.48)), fill=fuzz)
    pen.polygon(pose.blob(0.85, 0, 0.26, 0.30), fill=skin)
    if rng.random() < 0.75:
        _wings(pen, pose, rng)


def _wings(pen: ImageDraw.ImageDraw, pose: _Pose, rng: np.random.Generator) -> None:
    spread = rng.uniform(0.3, 0.9)
    for side in (-1, 1):
        wing = [(0.3, 0.2), (-0.2, 0.35 + spread * 0.6), (-1.0, 0.3 + spread), (-1.15, 0.1 + spread * 0.6), (-0.4, 0.2)]
        pen.polygon([pose.at(x, side * y) for x, y in wing], fill=(225, 228, 232, int(rng.integers(20, 110))))


def _bands(
    pen: ImageDraw.ImageDraw,
    pose: _Pose,
    skin: Colour,
    rng: np.random.Generator,
    *,
    start: float,
    stop: float,
    ry: float,
    contrast: float,
) -> None:
    colour = _mixed(skin, _BAND[rng.integers(len(_BAND))], contrast)
    middle, half = (start + stop) / 2, (stop - start) / 2 * 1.15
    for x in np.linspace(start, stop, int(rng.integers(3, 6))):
        reach = ry * math.sqrt(max(0.0, 1 - ((x - middle) / half) ** 2))
        pen.polygon(pose.blob(float(x), 0, 0.07, reach), fill=colour)


def light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Vary brightness, contrast and colour cast, and add a gradient of light and sensor noise."""
    pixels = np.asarray(image, dtype=np.float32)
    height, width, _ = pixels.shape
    slope = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * np.float32(rng.normal(0, 0.12))
    slope = slope + np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * np.float32(rng.normal(0, 0.12))
    cast = rng.normal(1, 0.06, size=3).astype(np.float32)
    pixels = (pixels - 128) * np.float32(rng.uniform(0.6, 1.15)) + np.float32(rng.uniform(95, 165))
    pixels = pixels * (1 + slope) * cast
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(2, 14))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (int(a * (1 - share) + b * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _tinted(colour: Colour, rng: np.random.Generator, *, spread: int) -> Colour:
    red, green, blue = (int(np.clip(v + rng.integers(-spread, spread + 1), 0, 255)) for v in colour)
    return red, green, blue


def _ellipse(centre: Point, rx: float, ry: float, turn: float) -> list[Point]:
    return _Pose(centre=centre, unit=1.0, turn=turn, squash=1.0).blob(0, 0, rx, ry)
