"""Times a training in turns of a few steps, so that several trainings can be compared on a machine that drifts.

A turn is a number of training steps followed by a number of validation batches, timed apart. It contains what those
steps take in an epoch of `train_model`, with the same network, images, batches and execution. It leaves out what
happens once per epoch: with execution `plain` that is starting and ending the loaders' workers, which is measured
beside the turns.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from tl import devices
from tl.clock import synchronize
from tl.config import TrainConfig
from tl.datasets import Splits
from tl.errors import DivergedError, NotApplicable
from tl.images import batch_bounds
from tl.machine import wait_for_processes, wait_for_threads
from tl.memory import MemoryMarks
from tl.plain import PlainBatches
from tl.results import Work
from tl.step import WARM_UP
from tl.train import WAYS, Inputs, Loop, Setup, ready, work_of
from tl.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one turn took."""

    train_seconds: float | None
    """None if nothing trains."""
    train_images: int
    """Images of its training steps; 0 if nothing trains."""
    val_seconds: float
    val_images: int


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most memory that the turns took."""

    bytes: int | None
    """Measured as `TrainResult.peak_memory_bytes`; None if it is unknown."""
    method: str


class TimedTraining:
    """A training that has been prepared, and takes turns. Use `timed_training` to make one."""

    def __init__(self, setup: Setup, loop: Loop, memory: MemoryMarks) -> None:
        self._setup, self._loop, self._memory = setup, loop, memory
        size = setup.config.batch_size
        self._val = _Endless(loop.val, lambda epoch: loop.val.evaluation(size))
        self._train = _Endless(
            loop.train, lambda epoch: loop.train.training(size, seed=setup.config.seed, epoch=epoch, mark=None)
        )

    @property
    def trains(self) -> bool:
        """True if anything trains."""
        return self._loop.step is not None

    @property
    def train_batches(self) -> int:
        """Training batches per epoch."""
        return len(batch_bounds(len(self._loop.train), self._setup.config.batch_size))

    @property
    def val_batches(self) -> int:
        """Validation batches per epoch."""
        return len(batch_bounds(len(self._loop.val), self._setup.config.batch_size))

    def warm_up(self, *, count_work: bool = True) -> tuple[float, float]:
        """Run the first steps, in which libraries load their kernels and CUDA graphs are captured.

        `count_work` counts the work of the first step, which takes a moment.

        Returns the seconds of one more training step (0.0 if nothing trains) and of one more validation batch.
        """
        if count_work and self._loop.step:
            self._setup.freezing.train_mode()
            inputs, labels = next(self._train)
            self._loop.step.start()
            self._loop.step.run(inputs, labels, _no_mark, self._loop.work)
        steps = WARM_UP + 2 if self._loop.graphs else 1  # the last of them is the first that replays a graph
        self.turn(steps, steps)
        last = self.turn(1, 1)
        return last.train_seconds or 0.0, last.val_seconds

    def turn(self, steps: int, batches: int) -> Turn:
        """Run training steps, unless nothing trains, and then validation batches.

        It returns when no thread and no worker of this process is running any more. Raises `DivergedError` if the
        weights have become NaN or infinite: such numbers take other times.
        """
        setup, loop, train_seconds, train_images = self._setup, self._loop, None, 0
        with setup.way.timed():
            if loop.step:
                setup.freezing.train_mode()
                self._memory.begin("train")
                with self._timed(self._train) as timer:
                    loop.step.start()
                    for inputs, labels in islice(self._train, steps):
                        loop.step.run(inputs, labels, _no_mark)
                        train_images += len(labels)
                    loss, _ = loop.step.sums()
                train_seconds = timer.seconds
                if not math.isfinite(loss):
                    raise DivergedError("the training loss is not finite any more", ())
            setup.model.eval()
            self._memory.begin("val")
            with self._timed(self._val) as timer:
                found = loop.evaluation.over(islice(self._val, batches), loop.loss_function)
            self._memory.end()
        wait_for_threads()
        return Turn(
            train_seconds=train_seconds,
            train_images=train_images,
            val_seconds=timer.seconds,
            val_images=len(found.predicted),
        )

    def close(self) -> None:
        """End the workers of the loaders."""
        self._train.close()
        self._val.close()

    @property
    def start_seconds(self) -> float:
        """Seconds per epoch for starting and ending workers, as a median over passes; 0.0 without workers.

        Call it after `close`, which ends the last passes.
        """
        passes = (self._train.start_seconds, self._val.start_seconds)
        return sum(statistics.median(each) for each in passes if each)

    def work(self) -> Work | None:
        """The work of the first step; None if nothing trains or it was not counted."""
        return work_of(self._loop.work, self._setup) if self._loop.work.forward_flops else None

    def peak(self) -> Peak:
        """The most memory so far, from the preparation on."""
        figures = self._memory.figures()
        if (allocated := figures["cuda_allocated_bytes"]) is not None:
            used = allocated - (self._setup.images.resident_bytes or 0)
        else:
            used = figures["peak_rss_bytes"] - figures["baseline_rss_bytes"] or None
        return Peak(bytes=used, method=figures["memory_method"])

    @contextmanager
    def _timed(self, batches: _Endless) -> Iterator[_Timer]:
        """Time what happens inside, until the device and the loader's workers have nothing left to do.

        Workers load as many batches ahead at the end as at the beginning, so the time includes as many loads as there
        are steps.
        """
        synchronize(self._setup.device)
        starting, timer = batches.starting, _Timer()
        begun = time.perf_counter()
        yield timer
        synchronize(self._setup.device)
        ended = time.perf_counter()
        if batches.workers:
            ended = max(ended, wait_for_processes(batches.workers))
        timer.seconds = ended - begun - (batches.starting - starting)


@dataclass
class _Timer:
    seconds: float = 0.0


class _Endless(Iterator[Any]):
    """Batches of one split, pass after pass."""

    def __init__(self, inputs: Inputs, make: Any) -> None:
        self._inputs, self._make = inputs, make
        self._epochs = count()
        self._pass: Any = None
        self._before = 0.0
        self.start_seconds: list[float] = []
        """Seconds that starting and ending the workers of each pass took; none without workers."""

    @property
    def starting(self) -> float:
        """Seconds that starting and ending workers has taken so far."""
        return self._inputs.start_seconds if isinstance(self._inputs, PlainBatches) else 0.0

    @property
    def workers(self) -> tuple[int, ...]:
        """Ids of the workers of the running pass."""
        return self._inputs.workers if isinstance(self._inputs, PlainBatches) else ()

    def __next__(self) -> Any:
        while True:
            if self._pass is None:
                self._before = self.starting
                self._pass = self._make(next(self._epochs))
            for batch in self._pass:
                return batch
            self.close()

    def close(self) -> None:
        """End the running pass and its workers."""
        if self._pass is not None:
            self._pass.close()
            self._pass = None
            if isinstance(self._inputs, PlainBatches):
                self.start_seconds.append(self.starting - self._before)


@contextmanager
def timed_training(
    config: TrainConfig, splits: Splits, *, device: str = "auto", weights: Weights | None = None
) -> Iterator[TimedTraining]:
    """Prepare a training, as `train_model` does, whose steps can be timed in turns.

    Arguments and errors are those of `train_model`. Raises `NotApplicable` for a regime whose features are extracted
    once: its steps don't see images, and the extraction belongs to no epoch.
    """
    target = devices.resolve(device)
    memory = MemoryMarks(target, without=WAYS[config.execution].others)
    with ready(config, splits, target, weights) as (setup, loop, _):
        if loop.extraction:
            raise NotApplicable(f"regime {config.regime!r} extracts its features once, so it has no step on images")
        with closing(TimedTraining(setup, loop, memory)) as timed:
            yield timed


def _no_mark(phase: str | None) -> None:
    """Time no phase."""
