"""Compares forward passes in int8 and in single precision, interleaved, with each other and with the cores' peak rate.

    python -m bench.devtools.forward --backbone timm:tf_efficientnet_lite0 --batch-size 16 --rounds 15

The peak is the best rate of a large matrix product in single precision, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from tabulate import tabulate

from bench.analysis.stats import ratio
from bench.store.environment import environment
from tl.backbones import make_backbone
from tl.errors import FallbackWarning
from tl.machine import keep_freed_pages, usable_cores
from tl.quantize import quantized
from tl.work import StepWork

MATRIX = 2048


def seconds(call: Callable[[], object]) -> float:
    """Duration of one call, in seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", action="append", required=True, help="network to measure (repeatable)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    warnings.simplefilter("ignore", FallbackWarning)  # random weights change no time
    torch.set_num_threads(usable_cores())
    keep_freed_pages()
    torch.manual_seed(0)
    left, right = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    rows = []
    for name in given.backbone:
        made = make_backbone(name)
        single = made.module.eval().to(memory_format=torch.channels_last)
        size = made.preprocessing.size
        images = torch.randn(given.batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
        started = time.perf_counter()
        integers = quantized(single, [images], torch.device("cpu"))
        conversion, work = time.perf_counter() - started, StepWork()
        with torch.inference_mode():
            with work.forward(single):
                single(images)
            calls = {
                "fp32": lambda: single(images),  # noqa: B023 - called within this iteration
                "int8": lambda: integers(images),  # noqa: B023
                "limit": lambda: left @ right,
            }
            for call in calls.values():
                call(), call()  # type: ignore[no-untyped-call]
            taken: dict[str, list[float]] = {side: [] for side in calls}
            for number in range(given.rounds):
                for side in calls if number % 2 == 0 else reversed(calls):
                    taken[side].append(seconds(calls[side]))
        estimate = ratio(dict(enumerate(taken["int8"])), dict(enumerate(taken["fp32"])))
        assert estimate is not None
        rate = work.forward_flops / statistics.median(taken["fp32"]) / 1e9
        peak = 2 * MATRIX**3 / min(taken["limit"]) / 1e9
        per_image = {side: 1e3 * statistics.median(taken[side]) / given.batch_size for side in ("fp32", "int8")}
        rows.append(
            {
                "backbone": name,
                "fp32, ms per image": f"{per_image['fp32']:.2f}",
                "int8, ms per image": f"{per_image['int8']:.2f}",
                "int8 / fp32 (95%, n)": f"{estimate.value:.3f} ({estimate.low:.3f}–{estimate.high:.3f}, {estimate.n})",
                "fp32, GFLOP/s": f"{rate:.0f} of {peak:.0f} ({rate / peak:.0%})",
                "conversion, s": f"{conversion:.1f}",
            }
        )
    print(f"batch size {given.batch_size}; {environment()}\n")
    print(tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
