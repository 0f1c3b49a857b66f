"""Measures what a set of images costs before anything is trained: finding it, decoding it, and checking the caches.

    python -m bench.devtools.images --images 400 50000

It draws JPEG files, and prints a table in Markdown. Each step is a process of its own; the times are within it, without
the start of Python and torch.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from bench.devtools.scale import spread
from bench.program import end
from bench.store.environment import environment

STEPS = {
    "list the files, and read them all for the digest": "tl.load_splits(root)",
    "decode all images, and store their pixels": "open_store(splits)",
    "open the stored pixels, with the check of every byte": "open_store(splits)",
    "open them in a process that was told that they are intact": "trust(seen); open_store(splits)",
}
"""What is measured → its code. Each step finds what the one before it left."""
_MEASURE = """
import sys, time, tl
from tl.images import checked_files, open_store, trust
root, code = sys.argv[1:]
if "open_store" in code:
    splits = tl.load_splits(root)
if "trust" in code:
    open_store(splits)
    seen = checked_files()
    from tl import images
    images._checked.clear()
begun = time.perf_counter()
exec(code)
print(time.perf_counter() - begun)
"""


def draw(folder: Path, count: int, width: int, height: int) -> None:
    """Draw so many images of two classes below `folder`, a fifth of them in `val`."""
    for number in range(count):
        split, name = ("val" if number % 5 == 0 else "train"), ("even", "odd")[number % 2]
        path = folder / split / name / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.Random(number).randbytes(12 * 16 * 3)  # no two images are equal
        Image.frombytes("RGB", (16, 12), pixels).resize((width, height)).save(path, quality=90)


def measure(folder: Path, cache: Path, rounds: int) -> dict[str, list[float]]:
    """Step → seconds of each round. Decoding happens once, since it leaves the pixels."""
    found: dict[str, list[float]] = {}
    variables: Mapping[str, str] = {**os.environ, "TL_CACHE": str(cache)}
    for step, code in STEPS.items():
        for _ in range(1 if step.startswith("decode") else rounds):
            command = [sys.executable, "-c", _MEASURE, str(folder), code]
            done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
            found.setdefault(step, []).append(float(done.stdout))
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[400, 50_000], help="numbers of images")
    parser.add_argument("--size", type=int, nargs=2, default=[160, 120], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    columns: dict[str, dict[str, list[float]]] = {}
    for count in given.images:
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder, "images"), count, *given.size)
            columns[f"{count:,} images, s"] = measure(Path(folder, "images"), Path(folder, "cache"), given.rounds)
    rows = [{"step": step} | {name: spread(found[step], 3) for name, found in columns.items()} for step in STEPS]
    print(tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True))
    print(f"\nJPEG files of {given.size[0]}×{given.size[1]} pixels. {environment()}")
    return 0


if __name__ == "__main__":
    end(main)
