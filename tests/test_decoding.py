"""Tests of what image files become: pixels against the arrays they were drawn from, refusals, and damaged files."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, features

import tl
from tests.commands import ONE, here
from tests.images import write_folder, write_image
from tl import decoding
from tl.datasets import digest_at, scan
from tl.decoding import FORMATS, decode, to_rgb
from tl.errors import DataError, UserError
from tl.images import MOST_NAMED, open_store

NO_AVIF = pytest.mark.skipif(not features.check("avif"), reason="this build of Pillow has no AVIF")
SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def decoded(content: bytes, folder: Path) -> np.ndarray:
    """Pixels of a file whose suffix says nothing about its content."""
    (folder / "image.jpg").write_bytes(content)
    return decode(folder / "image.jpg")


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, axis=2)


def rounded(values: np.ndarray, highest: int) -> np.ndarray:
    """Scale to 0 … 255 in whole numbers, half a level up."""
    return ((values.astype(np.int64) * 2 * 255 + highest) // (2 * highest)).astype(np.uint8)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The formula for compositing, in whole numbers: colour · alpha + white · (1 - alpha), to the nearest level."""
    a = alpha.astype(np.int64)[..., None]
    return ((2 * (colours * a + 255 * (255 - a)) + 255) // 510).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes, *, key: tuple[int, ...] = ()) -> bytes:
    """A PNG written by hand: Pillow doesn't write keys of less or more than 8 bits. `rows` have no filter bytes."""
    width, height = size
    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[start : start + stride] for start in range(0, len(rows), stride))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    trns = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    return b"\x89PNG\r\n\x1a\n" + head + trns + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def tiff(size: tuple[int, int], bits: int, rows: bytes, *, white: int = 1, kind: int = 1) -> bytes:
    """A little-endian grey TIFF. `white` 1 means that 0 is black; `kind` is 1 for unsigned, 2 signed, 3 float."""
    tags = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: white, 273: 8, 277: 1, 278: size[1], 279: len(rows)}
    tags[339] = kind
    body = rows + b"\0" * (len(rows) % 2)
    entries = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + b"\0" * 4


# -- plain images ------------------------------------------------------------------------------------------------------

PLAIN = [
    *((mode, "PNG") for mode in ("1", "L", "P", "RGB")),
    *((mode, "JPEG") for mode in ("L", "RGB", "CMYK")),
    *((mode, "TIFF") for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB")),
    *((mode, name) for name in ("BMP", "GIF") for mode in ("1", "L", "P", "RGB")),
    *((mode, name) for name in ("PPM", "JPEG2000") for mode in ("L", "RGB")),
    ("RGB", "WEBP"),
    pytest.param("RGB", "AVIF", marks=NO_AVIF),
]


@pytest.mark.parametrize(("mode", "format_name"), PLAIN)
def test_plain_images_are_what_pillow_makes_of_them(tmp_path: Path, mode: str, format_name: str) -> None:
    """8 bits without transparency: to the byte, and the digest of such a set is that of its files alone."""
    drawn = Image.fromarray(np.random.default_rng(1).integers(0, 256, (21, 34, 3), dtype=np.uint8))
    image = Image.frombytes("LAB", drawn.size, drawn.tobytes()) if mode == "LAB" else drawn.convert(mode)
    content = encoded(image, format_name)
    with Image.open(io.BytesIO(content)) as opened:
        assert np.array_equal(decoded(content, tmp_path), np.asarray(opened.convert("RGB")))
    if (mode, format_name) in {("RGB", name) for name in ("PNG", "BMP", "TIFF", "PPM", "JPEG2000")}:
        assert np.array_equal(decoded(content, tmp_path), np.asarray(drawn)), "these keep what was drawn"
    assert decoding.conversions(tmp_path, ["image.jpg"]) == ()


@given(values=hnp.arrays(np.uint16, st.tuples(SIDES, st.just((3,))).map(lambda parts: (*parts[0], *parts[1]))))
@QUICK
def test_16_bit_colour_keeps_its_upper_8_bits(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    """As before, since Pillow does that."""
    height, width, _ = values.shape
    content = png((width, height), 16, 2, values.astype(">u2").tobytes())
    assert np.array_equal(decoded(content, tmp_path_factory.getbasetemp()), (values >> 8).astype(np.uint8))


# -- more than 8 bits --------------------------------------------------------------------------------------------------

SIXTEEN: dict[str, Callable[[np.ndarray], bytes]] = {
    "PNG": lambda values: encoded(Image.fromarray(values), "PNG"),
    "TIFF": lambda values: encoded(Image.fromarray(values), "TIFF"),
    "compressed TIFF": lambda values: encoded(Image.fromarray(values), "TIFF", compression="tiff_lzw"),
    "TIFF, most significant byte first": lambda values: encoded(
        Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()), "TIFF"
    ),
    "TIFF in which 0 is white": lambda values: tiff(
        values.shape[::-1], 16, (65_535 - values).astype("<u2").tobytes(), white=0
    ),
    "PGM": lambda values: b"P5 %d %d 65535\n" % values.shape[::-1] + values.astype(">u2").tobytes(),
    "PGM as text": lambda values: (
        b"P2 %d %d 65535\n" % values.shape[::-1] + b" ".join(b"%d" % value for value in values.ravel().tolist())
    ),
    "JPEG 2000": lambda values: encoded(Image.fromarray(values), "JPEG2000"),
}


@pytest.mark.parametrize("kind", SIXTEEN)
@given(values=hnp.arrays(np.uint16, SIDES))
@QUICK
def test_16_bit_grey_is_scaled(kind: str, tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    """0 is black, 65535 is white, and between them each value is rounded to the nearest level."""
    folder = tmp_path_factory.getbasetemp()
    assert np.array_equal(decoded(SIXTEEN[kind](values), folder), grey(rounded(values, 65_535)))
    assert decoding.conversions(folder, ["image.jpg"]) == (decoding.CONVERSION,)


def test_every_16_bit_value_is_rounded(tmp_path: Path) -> None:
    """All 65,536."""
    values = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    pixels = decoded(encoded(Image.fromarray(values), "PNG"), tmp_path)
    assert np.array_equal(pixels, grey(np.rint(values / 257).astype(np.uint8)))
    assert np.unique(pixels).size == 256


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_all_of_pillows_16_bit_modes_are_scaled(mode: str) -> None:
    """Which one a file gets depends on Pillow's version: older ones open a 16-bit PNG as `I`."""
    values = np.random.default_rng(2).integers(0, 65_536, (5, 7))
    kind = {"I;16B": ">u2", "I": "=i4"}.get(mode, "<u2")
    image = Image.frombytes(mode, (7, 5), values.astype(kind).tobytes())
    image.format = "PNG"
    assert np.array_equal(to_rgb(image), grey(rounded(values, 65_535)))


def test_12_bits_and_other_ranges_are_scaled_by_their_range(tmp_path: Path) -> None:
    """TIFF files with 12 bits say so, and PGM files state their largest value."""
    values = np.random.default_rng(3).integers(0, 4096, (6, 8))
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    expected = grey(rounded(values, 4095))
    assert np.array_equal(decoded(tiff((8, 6), 12, packed.astype(np.uint8).tobytes()), tmp_path), expected)
    pgm = b"P5 8 6 4095\n" + values.astype(">u2").tobytes()
    assert np.abs(decoded(pgm, tmp_path).astype(int) - expected).max() <= 1, "Pillow rounds it to 16 bits first"


@given(values=hnp.arrays(np.float32, SIDES, elements=st.floats(0, 1, width=32)))
@QUICK
def test_floats_from_0_to_1_are_scaled(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    """In TIFF and PFM files."""
    expected = grey(np.rint(values.astype(np.float64) * 255).astype(np.uint8))
    folder = tmp_path_factory.getbasetemp()
    pfm = b"Pf\n%d %d\n-1.0\n" % values.shape[::-1] + values[::-1].astype("<f4").tobytes()
    for content in (encoded(Image.fromarray(values), "TIFF"), pfm):
        assert np.array_equal(decoded(content, folder), expected)
        assert decoding.conversions(folder, ["image.jpg"]) == (decoding.CONVERSION,)


FOUR = np.array([[0.0, 1.0], [0.5, 0.25]], dtype=np.float32)
REFUSED = {
    "floats above 1": (encoded(Image.fromarray(FOUR * 255), "TIFF"), "its floats are from 0 to 255; only 0 to 1"),
    "floats below 0": (encoded(Image.fromarray(FOUR - 1), "TIFF"), "from -1 to 0"),
    "not a number": (encoded(Image.fromarray(FOUR * np.float32("nan")), "TIFF"), "from nan to nan"),
    "infinity": (encoded(Image.fromarray(FOUR + np.float32("inf")), "TIFF"), "its floats are"),
    "32-bit integers": (encoded(Image.fromarray(np.int32([[1, 70_000]])), "TIFF"), "whose range isn't known"),
    "signed integers": (tiff((2, 1), 16, struct.pack("<2h", -5, 5), kind=2), "whose range isn't known"),
    "16-bit colour with a key": (png((1, 1), 16, 2, b"\1\2" * 3, key=(1, 2, 3)), "save it with an alpha channel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_stated_meaning_is_refused_by_name(tmp_path: Path, case: str) -> None:
    """The message names the file and the reason, and is a single line."""
    content, reason = REFUSED[case]
    with pytest.raises(DataError, match=r"image\.jpg: can't be decoded: ") as caught:
        decoded(content, tmp_path)
    assert reason in str(caught.value) and len(str(caught.value).splitlines()) == 1


# -- transparency ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_name", "options"),
    [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True}), ("JPEG2000", {})],
    ids=lambda value: value if isinstance(value, str) else "",
)
@given(values=hnp.arrays(np.uint8, SIDES.map(lambda sides: (*sides, 4))))
@QUICK
def test_an_alpha_channel_is_laid_on_white(
    format_name: str, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, values: np.ndarray
) -> None:
    """Colours below fully transparent pixels don't show, and the rest follows the formula to the level."""
    folder = tmp_path_factory.getbasetemp()
    content = encoded(Image.fromarray(values), format_name, **options)
    with Image.open(io.BytesIO(content)) as opened:
        has_alpha = opened.mode == "RGBA"
    assert has_alpha or values[..., 3].min() == 255, "WEBP leaves out an alpha channel that is opaque everywhere"
    assert np.array_equal(decoded(content, folder), on_white(values[..., :3], values[..., 3]))
    assert decoding.conversions(folder, ["image.jpg"]) == (decoding.CONVERSION,) * has_alpha


def test_every_colour_and_alpha_follows_the_formula(tmp_path: Path) -> None:
    """All 65,536 pairs."""
    colour, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    pixels = decoded(encoded(Image.fromarray(np.stack([colour] * 3 + [alpha], axis=2)), "PNG"), tmp_path)
    assert np.array_equal(pixels, on_white(grey(colour), alpha))
    assert (pixels[0] == 255).all() and np.array_equal(pixels[255], grey(colour)[0])


def test_all_kinds_of_transparency_are_laid_on_white(tmp_path: Path) -> None:
    """Grey with alpha, palettes with one or several transparent colours, keys, and premultiplied colours."""
    rng = np.random.default_rng(4)
    levels, alpha = rng.integers(0, 256, (2, 6, 8), dtype=np.uint8)
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    alphas = rng.integers(0, 256, 256, dtype=np.uint8)
    colours = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    key = (levels != levels[2, 3]).astype(np.uint8) * 255
    colour_key = (colours != colours[2, 3]).any(axis=2).astype(np.uint8) * 255

    indexed = Image.fromarray(levels).copy()
    indexed.putpalette(palette.tobytes())
    with_alpha = Image.merge("LA", (Image.fromarray(levels), Image.fromarray(alpha)))
    one, rgb_key = int(levels[2, 3]), tuple(colours[2, 3].tolist())
    bits = rng.integers(0, 2, (6, 8)).astype(bool)
    cases = {
        "LA": (encoded(with_alpha, "PNG"), on_white(grey(levels), alpha)),
        "LA in TIFF": (encoded(with_alpha, "TIFF"), on_white(grey(levels), alpha)),
        "palette": (encoded(indexed, "PNG", transparency=alphas.tobytes()), on_white(palette[levels], alphas[levels])),
        "one colour of a palette": (encoded(indexed, "PNG", transparency=one), on_white(palette[levels], key)),
        "GIF": (encoded(indexed, "GIF", transparency=one), on_white(palette[levels], key)),
        "grey key": (encoded(Image.fromarray(levels), "PNG", transparency=one), on_white(grey(levels), key)),
        "colour key": (
            encoded(Image.fromarray(colours), "PNG", transparency=rgb_key),
            on_white(colours, colour_key),
        ),
        "black key of a bitmap": (
            encoded(Image.fromarray(bits), "PNG", transparency=0),
            np.full((6, 8, 3), 255, np.uint8),
        ),
    }
    for name, (content, expected) in cases.items():
        assert np.array_equal(decoded(content, tmp_path), expected), name
        assert decoding.conversions(tmp_path, ["image.jpg"]) == (decoding.CONVERSION,), name
    assert np.array_equal(to_rgb(with_alpha.convert("La")), to_rgb(with_alpha.convert("La").convert("LA")))
    rgba = Image.fromarray(np.dstack([colours, alpha]))
    premultiplied = np.asarray(rgba.convert("RGBa")).astype(int)
    expected = premultiplied[..., :3] + 255 - premultiplied[..., 3:]
    assert np.array_equal(to_rgb(rgba.convert("RGBa")), expected.clip(0, 255))
    pa = Image.merge("PA", (indexed.copy(), Image.fromarray(alpha)))
    pa.putpalette(palette.tobytes())
    assert np.array_equal(to_rgb(pa), on_white(palette[levels], alpha))


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
@pytest.mark.parametrize("high", [0, 1], ids=["", "upper bits set"])
def test_the_key_of_a_grey_png_has_as_many_bits_as_its_pixels(tmp_path: Path, depth: int, high: int) -> None:
    """Pillow expands pixels to 8 bits but not the key; bits above the depth are ignored."""
    levels = np.arange(min(2**depth, 256)).reshape(-1, 2 ** min(depth, 4)) * (257 if depth == 16 else 1)
    highest, chosen = 2**depth - 1, int(levels.ravel()[-2])
    bits = (levels.reshape(*levels.shape, 1) >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(len(levels), -1).astype(np.uint8), axis=1).tobytes()
    key = chosen + (high << depth if depth < 16 else 0)
    expected = np.where(levels == chosen, 255, rounded(levels, highest)).astype(np.uint8)
    size = (levels.shape[1], levels.shape[0])
    assert np.array_equal(decoded(png(size, depth, 0, rows, key=(key,)), tmp_path), grey(expected))
    assert np.array_equal(decoded(png(size, depth, 0, rows), tmp_path), grey(rounded(levels, highest))), "no key"


def test_the_colour_key_ignores_bits_above_8(tmp_path: Path) -> None:
    """As the format says."""
    pixels = decoded(png((2, 1), 8, 2, bytes([1, 2, 3, 4, 5, 6]), key=(0x101, 0x202, 0x303)), tmp_path)
    assert pixels.tolist() == [[[255, 255, 255], [4, 5, 6]]]


@NO_AVIF
def test_transparent_avif_is_laid_on_white(tmp_path: Path) -> None:
    """It is lossy, so only a wide band is certain."""
    image = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
    image.paste((200, 40, 40, 255), (0, 0, 8, 16))
    pixels = decoded(encoded(image, "AVIF", quality=100), tmp_path).astype(int)
    assert np.abs(pixels[:, 1:6] - [200, 40, 40]).max() < 12 and pixels[:, 10:].min() > 245


def test_the_first_frame_and_page_count(tmp_path: Path) -> None:
    """Of animated GIF, PNG and WEBP files, and of TIFF files with several pages."""
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "lime", "blue")]
    for name in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if name == "WEBP" else {}
        content = encoded(frames[0], name, save_all=True, append_images=frames[1:], **options)
        assert (decoded(content, tmp_path) == (255, 0, 0)).all(), name


# -- what is opened at all ---------------------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start `gs` for a `.jpg` whose content is EPS."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    with pytest.raises(DataError, match=r"image\.jpg: can't be decoded: damaged or not an image \(JPEG, PNG"):
        decoded(EPS, tmp_path)
    assert decoding.conversions(tmp_path, ["image.jpg"]) == () and decoding.pixels_in(tmp_path / "image.jpg") == 0
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("name", ["TGA", "PCX", "SGI", "ICO", "DDS", "PDF"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    """What isn't listed isn't opened, whatever the suffix says."""
    assert name not in FORMATS
    with pytest.raises(DataError, match="damaged or not an image"):
        decoded(encoded(Image.new("RGB", (16, 16)), name), tmp_path)


def test_images_are_opened_in_one_place() -> None:
    """Otherwise training and prediction might see different pixels of one file."""
    folder = Path(tl.__file__).parent
    opening = {path.name for path in folder.rglob("*.py") if "Image.open(" in path.read_text(encoding="utf-8")}
    assert opening == {"decoding.py"}


def test_too_large_an_image_is_refused_by_its_header(tmp_path: Path) -> None:
    """Nothing is decoded; the message has the size and the limit. Pillow itself refuses from 179 million pixels on."""
    for width, height, size in ((20_000, 5_001, "20,000 × 5,001 pixels"), (40_000, 40_000, "1600000000 pixels")):
        with pytest.raises(DataError, match=r"image\.jpg: can't be decoded: ") as caught:
            decoded(png((width, height), 8, 2, b"\0" * height), tmp_path)
        assert size in str(caught.value) and "more than 100,000,000" in str(caught.value)


def test_an_image_at_the_limit_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel more is refused before it is loaded."""
    content = encoded(Image.new("RGB", (10, 10)), "PNG")
    monkeypatch.setattr(decoding, "LIMIT_PIXELS", 100)
    assert decoded(content, tmp_path).shape == (10, 10, 3)
    monkeypatch.setattr(decoding, "LIMIT_PIXELS", 99)
    monkeypatch.setattr(decoding, "to_rgb", lambda image: pytest.fail("it was loaded"))
    with pytest.raises(DataError, match="10 × 10 pixels, more than 99"):
        decoded(content, tmp_path)


def test_threads_decode_no_more_pixels_together_than_one_image_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large images wait for each other, small ones don't, and a failure gives its room back."""
    sizes = [(10, 10), (10, 6), (5, 4), (10, 5), (3, 3)] * 6
    files = [write_image(tmp_path / f"{index}.png", size=size) for index, size in enumerate(sizes)]
    lock, now, most, together = threading.Lock(), 0, 0, 0
    running = 0

    def slow(image: Image.Image) -> np.ndarray:
        nonlocal now, most, running, together
        count = image.width * image.height
        with lock:
            now, running = now + count, running + 1
            most, together = max(most, now), max(together, running)
        time.sleep(0.005)
        with lock:
            now, running = now - count, running - 1
        if count == 9:
            raise ValueError("made up")
        return to_rgb(image)

    monkeypatch.setattr(decoding, "LIMIT_PIXELS", 100)
    monkeypatch.setattr(decoding, "to_rgb", slow)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(decoding.decode_or_say_why, files))
    assert most <= 100 and together > 1
    assert [isinstance(result, str) for result in results] == [size == (3, 3) for size in sizes]


def test_decoding_ahead_keeps_few_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that wait for the reader count too, so that large ones don't pile up."""
    from tl import images

    root = write_folder(tmp_path / "set", train=10, size=(40, 32))
    monkeypatch.setattr(decoding, "LIMIT_PIXELS", 3 * 40 * 32)
    finished = 0

    def counted(path: Path) -> Any:
        nonlocal finished
        finished += 1
        return decoding.decode_or_say_why(path)

    monkeypatch.setattr(images, "decode_or_say_why", counted)
    names = list(scan(root).train.files)
    for read, (name, pixels) in enumerate(images._decoded(root, names)):
        time.sleep(0.002)
        assert name == names[read] and finished <= read + 3
        assert np.array_equal(pixels, decode(root / name))
    assert finished == len(names)


# -- damaged files -----------------------------------------------------------------------------------------------------


def _samples() -> dict[str, bytes]:
    """A valid file of each kind that a decoder treats differently."""
    colours = np.random.default_rng(5).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    rgb, rgba = Image.fromarray(colours[..., :3].copy()), Image.fromarray(colours)
    deep = Image.fromarray(colours[..., 0].astype(np.uint16) * 257)
    made = {
        "PNG": encoded(rgba, "PNG"),
        "PNG with palette": encoded(rgb.quantize(16), "PNG", transparency=3),
        "PNG of 16 bits": encoded(deep, "PNG"),
        "WEBP": encoded(rgb, "WEBP"),
        "lossless WEBP": encoded(rgba, "WEBP", lossless=True),
        "animated WEBP": encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)]),
        "TIFF": encoded(rgba, "TIFF"),
        "TIFF of 16 bits": encoded(deep, "TIFF"),
        "GIF": encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
        "JPEG": encoded(rgb, "JPEG"),
        "progressive JPEG": encoded(rgb, "JPEG", progressive=True),
        "BMP": encoded(rgba, "BMP"),
        "PPM": encoded(rgb, "PPM"),
        "PGM as text": SIXTEEN["PGM as text"](colours[..., 0].astype(np.uint16)),
        "JPEG 2000": encoded(rgba, "JPEG2000"),
        "JPEG 2000 codestream": encoded(rgb, "JPEG2000", no_jp2=True),
        **{f"TIFF, {kind}": encoded(rgb, "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg", "tiff_deflate")},
    }
    if features.check("avif"):
        made["AVIF"] = encoded(rgba, "AVIF")
    return made


SAMPLES = _samples()


@pytest.mark.parametrize("kind", SAMPLES)
@given(data=st.data())
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
def test_a_damaged_file_is_an_image_or_is_named(
    kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any bytes changed, zeroed or cut off: never another exception or a warning, and no program is started."""
    content = bytearray(SAMPLES[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["flip", "byte", "zeros", "cut", "drop", "repeat"]))
        count = data.draw(st.integers(1, 64))
        if how == "flip":
            content[start] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "byte":
            content[start] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif how == "zeros":
            content[start : start + count] = bytes(len(content[start : start + count]))
        elif how == "cut":
            del content[start + 1 :]
        elif how == "drop" and len(content) > count:
            del content[start : start + count]
        elif how == "repeat":
            content[start:start] = content[start : start + count]
        if not content:
            break
    assert_image_or_named(bytes(content), tmp_path_factory.getbasetemp() / "damaged")


@given(content=st.binary(max_size=200), kind=st.sampled_from(sorted(SAMPLES)), keep=st.integers(0, 60))
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_bytes_of_any_kind_are_an_image_or_are_named(
    content: bytes, kind: str, keep: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The beginning of a valid file, then anything."""
    assert_image_or_named(SAMPLES[kind][:keep] + content, tmp_path_factory.getbasetemp() / "damaged")


def assert_image_or_named(content: bytes, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    before = list(warnings.filters)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("Popen", "call", "run", "check_call", "check_output"):
            patch.setattr(subprocess, name, lambda *args, **kwargs: pytest.fail("a program was started"))
        patch.setattr(os, "system", lambda command: pytest.fail("a program was started"))
        decoding.conversions(folder, ["image.jpg"])
        try:
            pixels = decoded(content, folder)
        except DataError as error:
            assert str(folder / "image.jpg") in str(error) and len(str(error).splitlines()) == 1
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    "error",
    [
        *(RuntimeError("x"), MemoryError(), struct.error("x"), zlib.error("x"), EOFError(), IndexError("x")),
        *(KeyError("x"), OverflowError("x"), TypeError("x"), AssertionError(), SyntaxError("x"), OSError("x")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_decoder_raises_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The message has a reason, also for exceptions without a text. An interrupt stays one."""

    def fail(image: Image.Image) -> np.ndarray:
        raise error

    monkeypatch.setattr(decoding, "to_rgb", fail)
    content = encoded(Image.new("RGB", (4, 4)), "PNG")
    with pytest.raises(DataError, match=r"image\.jpg: can't be decoded: \w+") as caught:
        decoded(content, tmp_path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    error = KeyboardInterrupt()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        decoded(content, tmp_path)


def test_nothing_is_printed_beside_the_message(tmp_path: Path) -> None:
    """Python prints what a library logs if nobody handles it; Pillow logs an error for this file."""
    content = tiff((2, 1), 8, b"ab").replace(struct.pack("<HHII", 277, 4, 1, 1), struct.pack("<HHII", 277, 4, 1, 99))
    (tmp_path / "x.tif").write_bytes(content)
    code = "import sys; from pathlib import Path; from tl import decoding as d; d.decode_or_say_why(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.tif")], capture_output=True, text=True, check=True
    )
    assert done.stderr == "", done.stderr


def test_an_unreadable_file_says_why(tmp_path: Path) -> None:
    """The message has the file's name once."""
    with pytest.raises(DataError) as caught:
        decode(tmp_path / "none.jpg")
    assert str(caught.value) == f"{tmp_path / 'none.jpg'}: can't be decoded: No such file or directory"


TWO_VALUES = struct.pack("<HHI", 282, 5, 2)
WARNING = encoded(Image.new("RGB", (9, 9)), "TIFF", dpi=(72, 72)).replace(struct.pack("<HHI", 282, 5, 1), TWO_VALUES)
"""Two resolutions where a TIFF has one: Pillow warns."""


def test_pillows_warnings_stay_inside(tmp_path: Path) -> None:
    """Also under `-W error`, and when several threads decode; the filters are as they were."""
    path = tmp_path / "odd.tif"
    path.write_bytes(WARNING)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with Image.open(path) as image:
            image.load()
    assert seen, "the file makes Pillow warn"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(decoding.decode_or_say_why, [path] * 200))
        assert not [result for result in results if isinstance(result, str)]
        assert list(warnings.filters) == before


def test_a_filter_that_changes_while_images_are_decoded_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread, which knows nothing of images, may change filters at any time."""
    entered, leave = threading.Event(), threading.Event()

    def waiting(image: Image.Image) -> np.ndarray:
        entered.set()
        leave.wait(10)
        return to_rgb(image)

    monkeypatch.setattr(decoding, "to_rgb", waiting)
    path = write_image(tmp_path / "x.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(decode, path)
        assert entered.wait(10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            leave.set()
            future.result()
            assert warnings.filters[0][0] == "ignore" and warnings.filters[0][3] is None
    decode(path)
    assert list(warnings.filters) == before


# -- sets of images ----------------------------------------------------------------------------------------------------


def _spoil(root: Path, count: int) -> list[str]:
    splits = scan(root)
    chosen = random.Random(0).sample([*splits.train.files, *splits.val.files], count)
    for name in chosen:
        (root / name).write_bytes(b"junk")
    return [name for name in (*splits.train.files, *splits.val.files) if name in chosen]


@pytest.mark.parametrize("cache_works", [True, False], ids=["", "no cache"])
@pytest.mark.parametrize("count", [2, MOST_NAMED, MOST_NAMED + 3])
def test_all_damaged_images_are_counted_and_the_first_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, cache_works: bool
) -> None:
    """In the set's order, each with its reason; the error crosses processes, and no store is left."""
    root = write_folder(tmp_path / "set", train=6, val=4)
    damaged = _spoil(root, count)
    cache = tmp_path / "cache"
    if not cache_works:
        cache.write_text("")
    monkeypatch.setenv("TL_CACHE", str(cache))
    with pytest.raises(DataError) as caught:
        open_store(scan(root))
    error = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(error, UserError)
    assert error.headline == f"{root.resolve()}: {count} of 20 images can't be decoded; repair or delete them"
    expected = [f"{name}: damaged or not an image ({', '.join(FORMATS)})" for name in damaged[:MOST_NAMED]]
    assert list(error.details) == expected + (["and 3 more"] if count > MOST_NAMED else [])
    assert str(error) == f"{error.headline}: {'; '.join(error.details)}"
    assert not cache_works or [path.name for path in (cache / "pixels").iterdir()] == []


def test_the_command_line_lists_damaged_images(tmp_path: Path) -> None:
    """The count, a line for each of the first ten, how many more, and exit status 2."""
    root = write_folder(tmp_path / "set", train=6, val=4)
    damaged = _spoil(root, 12)
    done = here(*ONE, "--data", str(root), "--out", str(tmp_path / "results"))
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert lines[0] == f"error: {root.resolve()}: 12 of 20 images can't be decoded; repair or delete them:"
    assert [line.partition(":")[0] for line in lines[1:-1]] == [f"  {name}" for name in damaged[:MOST_NAMED]]
    assert lines[-1] == "  and 2 more" and not (tmp_path / "results").exists()


def _digest(root: Path, more: str = "") -> str:
    """The digest of a set, written down once more; `more` was empty before conversions were a part of it."""
    files = sorted(path for split in ("train", "val") for path in (root / split).rglob("*") if path.is_file())
    lines = [f"{path.relative_to(root).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files]
    return hashlib.sha256(("".join(lines) + more).encode()).hexdigest()


def test_the_digest_changes_only_where_pixels_do(tmp_path: Path) -> None:
    """One 16-bit or transparent image among plain ones is enough, in either split; damage isn't."""
    root = write_folder(tmp_path / "set")
    write_image(root / "train" / "a" / "plain.png")
    assert scan(root).digest == _digest(root)
    (root / "val" / "b" / "damaged.png").write_bytes(SAMPLES["PNG"][:20])
    assert scan(root).digest == _digest(root)
    for split, kind in (("train", "PNG of 16 bits"), ("val", "PNG"), ("val", "GIF")):
        extra = root / split / "b" / "extra.png"
        extra.write_bytes(SAMPLES[kind])
        wanted = _digest(root) if kind == "GIF" else _digest(root, "decoding 2\n")
        assert scan(root).digest == wanted, kind
        extra.unlink()


def test_the_digest_is_that_of_the_same_files_elsewhere(tmp_path: Path) -> None:
    """A cluster's node finds the images by their digest, which it computes from the files that it was sent."""
    root = write_folder(tmp_path / "set")
    (root / "train" / "a" / "deep.png").write_bytes(SAMPLES["PNG of 16 bits"])
    splits = scan(root)
    assert digest_at(splits, root) == splits.digest == _digest(root, "decoding 2\n")
    (root / "train" / "a" / "deep.png").write_bytes(SAMPLES["PPM"])
    assert digest_at(splits, root) == _digest(root)


def test_the_store_has_converted_pixels(tmp_path: Path) -> None:
    """Training and validation read the same conversion, from the store or from the file."""
    root = write_folder(tmp_path / "set")
    kinds = {"deep.png": "PNG of 16 bits", "clear.png": "PNG", "first.webp": "animated WEBP"}
    for name, kind in kinds.items():
        for split in ("train", "val"):
            (root / split / "a" / name).write_bytes(SAMPLES[kind])
    splits = scan(root)
    store = open_store(splits)
    assert store.pixels is not None
    for split in ("train", "val"):
        for name in kinds:
            assert np.array_equal(store.read(f"{split}/a/{name}"), decode(root / split / "a" / name))
