"""The plain side of `peers`: execution `plain` (see `tl.plain`), as the PyTorch tutorial's own script would run it.

    python -m bench.devtools.plain_loop --data FOLDER --regime frozen --epochs 3

Nothing of the process is set up: threads and memory allocator are torch's and the system's defaults. A frozen backbone
is in train mode too. Where a GPU has TF32 it is used, as torch does by default for convolutions.
https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html
"""

from __future__ import annotations

import time

import tl
from bench.devtools.side import PLAIN_REGIMES, emit_end, emit_result_epoch, options, weights_in
from tl.devices import resolve
from tl.errors import NotApplicable
from tl.precision import check_precision
from tl.regimes import HEAD

TUTORIAL = next(
    name for name, regime in tl.REGIMES.items() if regime.trainable == HEAD and regime.frozen_mode == "train"
)
"""The regime of the tutorial's frozen backbone."""


def precision(device: str) -> str:
    """The precision that torch has by default on this device: `tf32` where there is TF32, else `fp32`."""
    try:
        check_precision("tf32", resolve(device))
    except NotApplicable:
        return "fp32"
    return "tf32"


def main() -> None:
    """Train, and emit one line per epoch. As in the tutorial, the best weights are saved, and loaded at the end."""
    given = options(__doc__, PLAIN_REGIMES)
    started = time.perf_counter()
    config = tl.TrainConfig(
        backbone=given.backbone,
        regime=TUTORIAL if tl.REGIMES[given.regime].trainable.only_head else given.regime,
        epochs=given.epochs,
        seed=given.seed,
        precision=precision(given.device),
        execution="plain",
    )
    weights = weights_in(given.weights_file)
    tl.train_model(config, tl.load_splits(given.data), device=given.device, weights=weights, on_epoch=emit_result_epoch)
    emit_end(time.perf_counter() - started)


if __name__ == "__main__":
    main()
