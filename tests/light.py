"""An executor with real processes whose cells are quick and don't need torch, for tests of what can go wrong.

In a cell's process this module replaces `bench.execution.worker`. The name of the backbone (`SPECS`) selects what a
cell does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import bench.execution.process as process
from bench.devtools.made_up import PRETRAINED, result_of
from bench.execution.base import NO_LIMITS, Emit, Limits
from bench.execution.turns import END, Prepared, Taken, Warm
from tl.datasets import Splits
from tl.folds import evaluated_images
from tl.regimes import REGIMES
from tl.results import Probe, TrainResult
from tl.weights import Weights

QUICK = tuple(f"timm:quick{number}" for number in range(12))
SLOW, HANGS, CRASHES, LEAVES, UNTELLABLE, LOUD, GREEDY, HUNGRY, FILLS, NODE_KILLER, WAITS, ASKS, NIBBLES, LIMPS = (
    ODD
) = (
    "timm:slow",
    "timm:hangs",
    "timm:crashes",
    "timm:leaves",
    "timm:untellable",
    "timm:loud",
    "timm:greedy",
    "timm:hungry",
    "timm:fills",
    "timm:node-killer",
    "timm:waits",
    "timm:asks",
    "timm:nibbles",
    "timm:limps",
)
SPECS = (*QUICK, *ODD)
LOUD_BYTES = 5 << 20
GO = "limps.go"
"""A process of a pair of `LIMPS` crashes in its first turn if its regime is `frozen-tutorial`, unless this file is in
the working folder. (A fork server that runs already doesn't know a variable of the environment.)"""


class LightExecutor(process.ProcessExecutor):
    """Runs the functions of this module in real processes."""

    def __init__(self, preload: str = "tests.light") -> None:
        """In a test's own process `preload` is what all tests share: a process has one fork server."""
        super().__init__(preload=preload)

    def start(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, takes_orders: bool = True) -> Any:
        name = function.rpartition(":")[2]
        return super().start(f"tests.light:{name}", *arguments, limits=limits, takes_orders=takes_orders)


def get_ready(emit: Emit) -> None:
    pass


def list_names(emit: Emit) -> dict[str, list[str]]:
    return {"timm": [spec.partition(":")[2] for spec in SPECS], "torchvision": []}


def list_devices(emit: Emit) -> dict[str, str]:
    return {"cpu": "light"}


def resolve_weights(
    specs: list[str], policy: str, weights_dir: Path | None, download: bool, emit: Emit
) -> dict[str, Weights]:
    if policy == "pretrained":
        return dict.fromkeys(specs, PRETRAINED)
    return {spec: Weights(kind="random", source="random") for spec in specs}


def files_for(specs: list[str], folder: Path, emit: Emit) -> dict[str, tuple[tuple[str, ...], str]]:
    return {spec: ((spec.replace(":", "-"),), "") for spec in specs}


def _taken(path: Path) -> bool:
    """Remove a file; False if there is none."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


class _Untellable(Exception):
    """An exception that can be neither pickled nor printed."""

    def __init__(self) -> None:
        super().__init__(lambda: None)

    def __str__(self) -> str:
        raise ValueError("no words")


def run_cell(
    cell: Any, splits: Splits, weights: Weights, threads: int, checked: object, inference: bool, emit: Emit
) -> tuple[TrainResult, str]:
    """Return what `bench.execution.worker:run_cell` returns, or misbehave as the backbone's name says."""
    backbone = cell.config.backbone
    if ledger := os.environ.get("LIGHT_LEDGER"):
        with Path(ledger).open("a", encoding="ascii") as file:
            file.write(f"{cell.id}\n")
    if backbone == SLOW:
        emit("slowly")
        time.sleep(1.0)
    elif backbone == HANGS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1000)
    elif backbone == CRASHES:
        os.kill(os.getpid(), signal.SIGSEGV)
    elif backbone == LEAVES:
        os._exit(0)
    elif backbone == UNTELLABLE:
        raise _Untellable
    elif backbone == LOUD:
        sys.stderr.write("first words\n" + "x" * LOUD_BYTES + "\nlast words\n")
    elif backbone == GREEDY:
        np.empty(1 << 30)
    elif backbone == FILLS:
        with contextlib.suppress(OSError), Path(os.environ["LIGHT_FILLS"]).open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    elif backbone == WAITS:
        while not Path(os.environ["LIGHT_GO"]).exists():
            time.sleep(0.05)
    elif backbone == ASKS:  # as `WAITS`, and it takes the file away, so each cell needs one of its own
        while not _taken(Path(os.environ["LIGHT_GO"])):
            time.sleep(0.05)
    elif backbone == NIBBLES:
        held = []
        while True:
            held.append(bytearray(4096))
    elif backbone == NODE_KILLER:  # kill the worker of the node, which is an ancestor of this process
        (worker,) = [one for one in psutil.Process().parents() if one.name().startswith("ray::")][:1]
        worker.kill()
        time.sleep(1000)
    elif backbone == HUNGRY and cell.config.batch_size > 2:
        raise MemoryError(f"Unable to allocate {cell.config.batch_size}.0 GiB for an array")
    else:
        time.sleep(0.05)
    truth = evaluated_images(cell.config, splits).labels
    made_up = result_of(cell.config, weights, truth=truth, classes=splits.classes, seconds=1e-5)
    if not REGIMES[cell.config.regime].by_steps and REGIMES[cell.config.regime].trains:
        known = list(splits.train.labels)
        made_up = made_up.replace(probe=Probe(labels=known, truth=known, chosen=1.0))
    return made_up.replace(device=cell.device), "default"


def time_cell(
    cell: Any, splits: Splits, weights: Weights, threads: int, checked: object, number: int, orders: Any, emit: Emit
) -> dict[str, Any]:
    """Return what `bench.execution.worker:time_cell` returns, or misbehave as the backbone's name says.

    Fine-tuning takes twice the time of everything else.
    """
    if ledger := os.environ.get("LIGHT_LEDGER"):
        with Path(ledger).open("a", encoding="ascii") as file:
            file.write(f"pair {cell.id}\n")
    emit(Prepared(train_batches=6, val_batches=4, seconds=0.01))
    orders.recv()
    emit(Warm(step_seconds=0.01, batch_seconds=0.005))
    images, unit = cell.config.batch_size, 2 if cell.config.regime == "finetune" else 1
    while (order := orders.recv()) != END:
        if cell.config.backbone == HANGS:
            time.sleep(1000)
        if cell.config.backbone == CRASHES and cell.config.regime != "finetune":
            os.kill(os.getpid(), signal.SIGSEGV)
        lame = cell.config.backbone == LIMPS and cell.config.regime == "frozen-tutorial"
        if lame and not Path(GO).exists():
            os.kill(os.getpid(), signal.SIGSEGV)
        if cell.config.backbone == WAITS:
            while not Path(os.environ["LIGHT_GO"]).exists():
                time.sleep(0.05)
        steps, batches = order
        emit(
            Taken(
                train_seconds=0.01 * unit * steps,
                train_images=images * steps,
                val_seconds=0.005 * batches,
                val_images=images * batches,
            )
        )
    return {"start_seconds": 0.0, "peak_memory_bytes": unit << 20, "memory_method": "light", "threads": threads}


def main() -> None:
    """Run the command line with this executor."""
    from bench import cli
    from bench.execution import executors

    executors.EXECUTORS["process"] = lambda address: LightExecutor()
    cli.main()
