"""Shared by the scripts of all sides of `peers`: options, weights, and the JSON lines that `peers` reads."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

from tl.digest import file_digest
from tl.errors import FallbackWarning
from tl.regimes import EVERYTHING, REGIMES
from tl.results import EpochResult
from tl.weights import Weights

PLAIN_REGIMES = tuple(
    name
    for name, regime in REGIMES.items()
    if regime.start == "pretrained" and regime.plain and regime.frozen_mode == "eval"
    if regime.trainable == EVERYTHING or regime.trainable.only_head
)
"""Regimes that the plain side and the other peers can run: either everything is trained, or only the head."""


def options(
    description: str | None, regimes: Iterable[str], *, precisions: Iterable[str] = ("fp32",), settings: bool = False
) -> argparse.Namespace:
    """Parse the command line, which describes one training, with `settings` of `TrainConfig` if they are known."""
    warnings.simplefilter("ignore", FallbackWarning)  # random weights don't change the times
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, help="a folder with train/CLASS/* and val/CLASS/*")
    parser.add_argument("--regime", choices=list(regimes), default="finetune")
    parser.add_argument("--backbone", default="torchvision:resnet18", help="torchvision:NAME or timm:NAME")
    parser.add_argument("--precision", choices=list(precisions), default="fp32")
    if settings:
        parser.add_argument("--settings", default="{}", metavar="JSON", help="other fields of tl.TrainConfig")
    parser.add_argument("--weights-file", type=Path, help="a state dict; by default what the suite finds, else random")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and crops")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def weights_in(file: Path | None) -> Weights | None:
    """The weights in a file. Without a file it returns None, and the suite searches for weights."""
    if file is None:
        return None
    return Weights(kind="pretrained", source="weights-file", label=file.name, digest=file_digest(file), path=file)


def emit(**values: object) -> None:
    """Print one JSON line and flush it, so that it isn't lost if the process fails later."""
    print(json.dumps(values), flush=True)


def emit_epoch(epoch: int, train_seconds: float, val_seconds: float, val_accuracy: float) -> None:
    """Print the line of one epoch. Its `epoch_seconds` are training and validation together."""
    emit(
        epoch=epoch,
        train_seconds=train_seconds,
        val_seconds=val_seconds,
        epoch_seconds=train_seconds + val_seconds,
        val_accuracy=val_accuracy,
    )


def emit_result_epoch(row: EpochResult) -> None:
    """Print the line of one epoch of this suite's training."""
    emit_epoch(row.epoch, row.train_seconds or 0.0, row.val_seconds, row.val_accuracy)


def emit_end(total_seconds: float, **more: object) -> None:
    """Print the last line: seconds since the libraries were loaded, the kernel's peaks of resident memory, and `more`.

    The peaks cost no time, but they are per process, and a page that two processes share counts in both. `peers
    --memory` measures the memory of all processes together.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peaks = {"peak_rss_bytes": own * unit, "largest_child_peak_rss_bytes": children * unit}
    emit(total_seconds=total_seconds, **peaks, **more)
