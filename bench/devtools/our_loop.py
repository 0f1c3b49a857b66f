"""This suite's side of `peers`: one training in a process that is set up as by `bench.execution.worker.run_cell`.

python -m bench.devtools.our_loop --data FOLDER --regime frozen --epochs 3
"""

from __future__ import annotations

import json
import time

import torch

import tl
from bench.devtools.side import emit_end, emit_result_epoch, options, weights_in
from tl.config import PRECISIONS
from tl.machine import keep_freed_pages, usable_cores


def main() -> None:
    """Train. The total time includes scanning the folder, and decoding its images if they are not cached."""
    regimes = [name for name, regime in tl.REGIMES.items() if regime.by_steps]
    given = options(__doc__, regimes, precisions=PRECISIONS, settings=True)
    started = time.perf_counter()
    torch.set_num_threads(usable_cores())
    keep_freed_pages()
    config = tl.TrainConfig(
        backbone=given.backbone,
        regime=given.regime,
        epochs=given.epochs,
        seed=given.seed,
        precision=given.precision,
        **json.loads(given.settings),
    )
    weights = weights_in(given.weights_file)
    tl.run_protocol(
        config, tl.load_splits(given.data), device=given.device, weights=weights, on_epoch=emit_result_epoch
    )
    emit_end(time.perf_counter() - started)


if __name__ == "__main__":
    main()
