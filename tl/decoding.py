"""Turns image files into pixels. All images are read here, so a file is the same picture everywhere.

| in the file | its pixels |
| --- | --- |
| 8 bits per channel, no transparency | Pillow's `convert("RGB")` |
| transparency: an alpha channel, a palette with alpha, a transparent colour | laid on white (`BACKGROUND`) |
| 16-bit grey | scaled, 65535 is white; in TIFF files with 12 bits, 4095 is |
| colour with more than 8 bits per channel | reduced to 8 bits by Pillow |
| floats | scaled if all are within 0 to 1 |
| several frames or pages | the first |

What has no stated meaning is refused: 32-bit and signed integers, floats outside 0 to 1, 16-bit colour with a single
transparent colour. EXIF orientation is ignored, as in torchvision's `ImageFolder`, and so are colour profiles. Only
TIFF files are turned upright, by Pillow itself. This module doesn't import torch.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from tl.errors import DataError

Pixels = npt.NDArray[np.uint8]
_Rgb = TypeVar("_Rgb")
_Done = TypeVar("_Done")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")
"""Formats that are read, by Pillow's names; a file's content decides which one it has, not its suffix.

All are decoded inside this process. Pillow knows others that aren't safe or aren't images: for EPS it starts
Ghostscript, for WMF, GRIB, BUFR and HDF5 it calls what other code has installed, IPTC, FLI and MPEG are containers.
"""
LIMIT_PIXELS = 100_000_000
"""An image with more pixels is refused, before it is decoded. Images that threads decode at the same time have no more
together, so a header that lies can't cost more memory than one image of this size: up to 17 bytes per pixel, 1.7 GB."""
BACKGROUND = (255, 255, 255)
"""Colour behind transparent pixels: white, as on most pages. The file's own colours there are often arbitrary."""
CONVERSION = "decoding 2"
"""Stands for how images that aren't plain are converted: a new number whenever their pixels change (see `set_digest`).

Version 1 clipped 16-bit grey to white and showed the colours below transparent pixels."""

# What Pillow logs would be printed beside the message about a damaged file, unless a program wants to see it.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_JPEG = b"\xff\xd8\xff"
_TO_8_BITS = ((np.arange(65_536) + 128) // 257).astype(np.uint8)
"""16-bit value → round(value · 255 / 65535); 65535 is 255 · 257."""
_EXPANDED = {"L;2": (3, 85), "L;4": (15, 17)}
"""Raw mode of a PNG with less than 8 bits → mask of a sample, and the factor by which Pillow expands it to 8 bits."""


def decode(path: Path) -> Pixels:
    """Decode an image to `(H, W, 3) uint8` RGB, as the table above says.

    Raises `DataError` naming the file if it is damaged, too large, not an image, or has no stated conversion.
    """
    try:
        return _decoded(path, to_rgb)
    except Exception as error:
        raise DataError(f"{path}: can't be decoded: {_reason(error)}") from error


def open_rgb(path: Path) -> Image.Image:
    """Decode an image to one of Pillow's in mode `RGB`, with the pixels of `decode`. Raises `DataError` as it does."""
    try:
        return _decoded(path, _rgb)
    except Exception as error:
        raise DataError(f"{path}: can't be decoded: {_reason(error)}") from error


def decode_or_say_why(path: Path) -> Pixels | str:
    """As `decode`, but return the reason in one line. An exception would keep the memory of what failed alive."""
    try:
        return _decoded(path, to_rgb)
    except Exception as error:
        return _reason(error)


def _decoded(path: Path, convert: Callable[[Image.Image], _Rgb]) -> _Rgb:
    """Decode an image, and return what `convert` makes of it.

    For damaged data, decoders raise anything, also `MemoryError` and `struct.error`.
    """
    with _silent(), path.open("rb") as file, Image.open(file, formats=_formats()) as image:
        width, height = image.size
        if width * height > LIMIT_PIXELS:
            raise ValueError(f"{width:,} × {height:,} pixels, more than {LIMIT_PIXELS:,}")
        with _decoding_now.pixels(width * height):
            return convert(image)


def in_threads(root: Path, names: Iterable[str], work: Callable[[Path], _Done]) -> Iterator[tuple[str, _Done]]:
    """Yield the name of each image below `root` and what `work` makes of its file, in order.

    Several threads work ahead of the reader: only on a few images, with no more than `LIMIT_PIXELS` together.
    """
    threads = (os.cpu_count() or 1) + 1
    waiting: deque[tuple[str, int, Future[_Done]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for name in names:
            size = pixels_in(root / name)
            while waiting and (len(waiting) >= 4 * threads or size + sum(s for _, s, _ in waiting) > LIMIT_PIXELS):
                first, _, done = waiting.popleft()
                yield first, done.result()
            waiting.append((name, size, pool.submit(work, root / name)))
        while waiting:
            first, _, done = waiting.popleft()
            yield first, done.result()


def pixels_in(path: Path) -> int:
    """Return the number of pixels that an image's header states; 0 if it can't be read or is above the limit."""
    width, height = size_of(path) or (0, 0)
    return width * height if width * height <= LIMIT_PIXELS else 0


def size_of(path: Path) -> tuple[int, int] | None:
    """Return width and height of an image as it is decoded, as its header states them; None if it can't be read."""
    try:
        with _silent(), path.open("rb") as file, Image.open(file, formats=_formats()) as image:
            return image.size
    except Exception:  # `decode` says why
        return None


def numbers_or_say_why(path: Path) -> npt.NDArray[np.int64] | str:
    """Read an image as the numbers of its pixels, `(H, W) int64`: levels of grey, or indices of a palette.

    Return the reason in one line if it is damaged, has several channels, or is a JPEG, which changes numbers.
    """
    try:
        return _decoded(path, _numbers)
    except Exception as error:
        return _reason(error)


def _numbers(image: Image.Image) -> npt.NDArray[np.int64]:
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;"):
        raise ValueError(f"it has the channels {image.mode}, and a mask has one, with a number for each object")
    if image.format == "JPEG":
        raise ValueError("it is a JPEG, which blurs the numbers of objects; masks are PNG files")
    return np.asarray(image).astype(np.int64)


def conversions(root: Path, files: Iterable[str]) -> tuple[str, ...]:
    """Return `CONVERSION` if the header of any of these files says that it isn't plain, else nothing.

    The digest of a data set covers it, so that results from before and after a change of the pixels differ in it.
    The digest of a data set of plain images is the same in all versions. A file that can't be read isn't plain or
    otherwise: it is refused when it is decoded.
    """
    # One after the other: a header takes microseconds, and threads would only wait for Python's lock.
    with _silent():
        return (CONVERSION,) if any(_converted(root / name) for name in files) else ()


def _converted(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(len(_JPEG)) == _JPEG:  # always plain, and most images are JPEGs
                return False
            with Image.open(file, formats=_formats()) as image:
                return not is_plain(image)
    except Exception:
        return False


def is_plain(image: Image.Image) -> bool:
    """True for 8 bits per channel without transparency. The header of the file is enough to know."""
    return not (_is_deep(image) or image.has_transparency_data)


def _is_deep(image: Image.Image) -> bool:
    """True for one channel of more than 8 bits. Colour has 8 bits in Pillow, whatever it has in the file."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def to_rgb(image: Image.Image) -> Pixels:
    """Convert an image of any of Pillow's modes, not yet loaded if it is from a file, to `(H, W, 3) uint8` RGB.

    Raises `ValueError` with the reason if there is no stated conversion.
    """
    if is_plain(image):
        return np.array(image.convert("RGB"))  # a copy: Pillow's memory is read-only, and torch needs it writable
    if _is_deep(image):
        return np.repeat(_grey(image)[:, :, None], 3, axis=2)
    return _on_background(image)


def _rgb(image: Image.Image) -> Image.Image:
    """As `to_rgb`; a plain image isn't copied to an array and back."""
    return image.convert("RGB") if is_plain(image) else Image.fromarray(to_rgb(image))


def _grey(image: Image.Image) -> Pixels:
    """Scale an image with one channel of more than 8 bits to `(H, W) uint8`."""
    if image.mode == "F":
        grey = _from_floats(np.asarray(image))
    elif image.mode != "I":
        grey = (_from_12_bits() if _tag(image, 258) == 12 else _TO_8_BITS)[np.asarray(image)]
    elif image.format in ("PNG", "PPM"):
        # Their integers have 16 bits at most; Pillow has scaled a smaller maximum of PPM files to 65535.
        grey = _TO_8_BITS[np.asarray(image)]
    else:
        raise ValueError("it has 32-bit or signed integers, whose range isn't known; save it with 8 or 16 bits")
    if _tag(image, 262) == 0:  # the smallest value is white; Pillow inverts only 8-bit images
        grey = 255 - grey
    if "transparency" in image.info:
        grey[np.asarray(image) == image.info["transparency"]] = BACKGROUND[0]
    return grey


def _from_floats(values: npt.NDArray[np.float32]) -> Pixels:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise ValueError(f"its floats are from {low:g} to {high:g}; only 0 to 1 has a known meaning")
    scaled = values.astype(np.float64)
    scaled *= 255
    return np.rint(scaled, out=scaled).astype(np.uint8)


@functools.cache
def _from_12_bits() -> Pixels:
    """12-bit value → round(value · 255 / 4095)."""
    return np.minimum((np.arange(65_536) * 510 + 4095) // 8190, 255).astype(np.uint8)


def _tag(image: Image.Image, number: int) -> int | None:
    """Return the first value of a TIFF tag: 258 is bits per sample, 262 the meaning of 0. None if there is none."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value


def _on_background(image: Image.Image) -> Pixels:
    """Lay an image with transparency on the background, rounding to the nearest level."""
    _correct_key(image)
    if image.mode == "La":  # Pillow converts premultiplied grey only to plain grey
        image = image.convert("LA")
    # Premultiplied colours stay as they are: undoing it would round them twice.
    image = image if image.mode in ("RGBA", "RGBa") else image.convert("RGBA")
    canvas = Image.new("RGB", image.size, BACKGROUND)
    canvas.paste(image, mask=image)
    return np.array(canvas)


def _correct_key(image: Image.Image) -> None:
    """Bring the transparent level of a grey PNG to the 8 bits to which Pillow brings its pixels, but not the level.

    A key has as many bits as a sample; the rest of its 16 bits are ignored, as the format says. Raises `ValueError`
    for 16-bit colour: of a pixel that Pillow has brought to 8 bits, it isn't known whether it had the key's colour.
    """
    tile = getattr(image, "tile", None)
    if image.format != "PNG" or image.mode not in ("L", "RGB") or not tile:
        return
    raw_mode = tile[0][3]
    if image.mode == "RGB" and raw_mode != "RGB":
        raise ValueError("16-bit colour with a transparent colour isn't supported; save it with an alpha channel")
    if image.mode == "L":
        mask, factor = _EXPANDED.get(raw_mode, (255, 1))
        image.info["transparency"] = (image.info["transparency"] & mask) * factor


def _reason(error: Exception) -> str:
    """Say in one line why an image can't be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return f"damaged or not an image ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {LIMIT_PIXELS:,} pixels ({error})"
    if isinstance(error, MemoryError):  # more often a header that lies than a machine without memory
        return "damaged, or its pixels take more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if text and isinstance(error, OSError | SyntaxError | ValueError):
        return text
    return f"damaged ({type(error).__name__}: {text})" if text else f"damaged ({type(error).__name__})"


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow can read; AVIF isn't part of all."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


class _Budget:
    """Lets threads decode at the same time as long as their images have no more than `LIMIT_PIXELS` together."""

    def __init__(self) -> None:
        self._used = 0
        self._released = threading.Condition()

    @contextmanager
    def pixels(self, count: int) -> Iterator[None]:
        """Wait until there is room for an image of `count` pixels, and take it."""
        with self._released:
            self._released.wait_for(lambda: self._used + count <= LIMIT_PIXELS)
            self._used += count
        try:
            yield
        finally:
            with self._released:
                self._used -= count
                self._released.notify_all()


_decoding_now = _Budget()

_FROM_PILLOW = r"PIL\.(?#while tl.decoding reads images)"
_silencing = 0
_silencing_lock = threading.Lock()


@contextmanager
def _silent() -> Iterator[None]:
    """Ignore Pillow's warnings, about odd metadata and large sizes: only whether there are pixels matters here.

    Filters belong to the whole process, and `warnings.catch_warnings` restores all of them, also what another thread
    has changed in the meantime. So the first thread that decodes adds one filter and the last removes it.
    """
    global _silencing
    with _silencing_lock:
        _silencing += 1
        warnings.filterwarnings("ignore", module=_FROM_PILLOW)  # moves to the front if it is there
    try:
        yield
    finally:
        with _silencing_lock:
            _silencing -= 1
            if not _silencing:
                # In place, as it was added, and wherever another thread's `catch_warnings` has left it.
                filters = cast("list[tuple[Any, ...]]", warnings.filters)
                filters[:] = [item for item in filters if getattr(item[3], "pattern", None) != _FROM_PILLOW]
