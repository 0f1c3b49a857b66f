"""This suite's side of `peers`: one cell, in a process set up as `bench.execution.worker.run_cell` sets up its own.

python -m bench.devtools.our_loop --data FOLDER --regime frozen --epochs 3
"""

from __future__ import annotations

import time

import torch

import tl
from bench.devtools.side import options, tell_end, tell_epoch, weights_in
from tl.config import PRECISIONS
from tl.machine import keep_freed_pages, usable_cores
from tl.results import EpochResult


def on_epoch(row: EpochResult) -> None:
    """A line an epoch."""
    tell_epoch(row.epoch, row.train_seconds or 0.0, row.val_seconds, row.val_accuracy)


def main() -> None:
    """Train; the total includes reading the folder, and decoding its images where the cache hasn't got them."""
    given = options(__doc__, (name for name, regime in tl.REGIMES.items() if regime.trains), precisions=PRECISIONS)
    begun = time.perf_counter()
    torch.set_num_threads(usable_cores())
    keep_freed_pages()
    config = tl.TrainConfig(
        backbone=given.backbone,
        regime=given.regime,
        epochs=given.epochs,
        seed=given.seed,
        precision=given.precision,
    )
    weights = weights_in(given.weights_file)
    tl.run_protocol(config, tl.load_splits(given.data), device=given.device, weights=weights, on_epoch=on_epoch)
    tell_end(time.perf_counter() - begun)


if __name__ == "__main__":
    main()
