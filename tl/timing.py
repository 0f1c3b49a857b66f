"""Times a training in turns of a few steps, so that several trainings can be compared on a machine that drifts.

A turn is a number of training steps followed by a number of validation batches, timed apart. It contains what those
steps take in an epoch of `train_model`, with the same network, images, batches and execution. Averaged weights are
computed in its steps, and not put in the weights' place before its batches, which happens once per epoch.

Where batches are loaded in advance, a pass over the images is not the same everywhere: workers start, and the last
batches are taken while nothing is loaded. So a turn is either a whole pass, with its start and its end, or a piece from
the middle of one. Processes that load for execution `plain` are stopped between two turns, so that a piece ends with as
many batches loaded as a training would have there. Starting and ending them, once per epoch, is measured beside such
pieces. Threads that decode images, where their pixels are not stored, can't be stopped: a turn ends when they have
loaded as many batches as it took.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from tl import devices
from tl.clock import synchronize
from tl.config import TrainConfig
from tl.datasets import Splits
from tl.errors import DivergedError, NotApplicable
from tl.features import Features
from tl.images import batch_bounds
from tl.lookahead import Ahead
from tl.machine import wait_for_threads
from tl.memory import MemoryMarks
from tl.prepare import WAYS, Images, Loop, Setup, ready
from tl.regimes import REGIMES
from tl.results import Work
from tl.step import WARM_UP
from tl.train import work_of
from tl.tryout import chosen
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

    def __init__(self, setup: Setup, loop: Loop, memory: MemoryMarks, first_epoch: int) -> None:
        self._setup, self._loop, self._memory = setup, loop, memory
        size = setup.config.batch_size
        train, val = loop.train, loop.val
        assert not isinstance(train, Features) and not isinstance(val, Features)  # see `timed_training`
        self.group = train.count if isinstance(train, Ahead) else 1
        """Batches of a forward pass. A turn has a multiple of it, so that it has its share of such passes."""
        self._val = _Endless(val, self.val_batches, lambda epoch: val.evaluation(size))
        self._train = _Endless(
            train,
            self.train_batches,
            lambda epoch: train.training(size, seed=setup.config.seed, epoch=first_epoch + epoch),
        )

    @property
    def precision(self) -> str:
        """The precision that runs: the config's, or the one that was chosen."""
        return self._setup.config.precision

    @property
    def memory_format(self) -> str:
        """The layout of tensors."""
        return self._setup.layout

    @property
    def trains(self) -> bool:
        """True if anything trains."""
        return self._loop.step is not None

    @property
    def train_batches(self) -> int:
        """Training batches per epoch."""
        return len(batch_bounds(len(self._setup.images.train), self._setup.config.batch_size))

    @property
    def val_batches(self) -> int:
        """Validation batches per epoch."""
        return len(batch_bounds(len(self._setup.images.val), self._setup.config.batch_size))

    @property
    def least(self) -> int:
        """The smallest number of batches of a turn that takes what a share of an epoch takes."""
        return self._setup.images.val.least_piece

    @property
    def margin(self) -> int:
        """Batches at each end of a pass that are unlike those between them; 0 if all are alike.

        A turn that is no whole pass has none of them, unless passes are too short for that.
        """
        return self._val.margin

    def warm_up(self) -> tuple[float, float]:
        """Run the first steps, in which libraries load their kernels, CUDA graphs are captured, and work is counted.

        Returns the seconds of one more training step (0.0 if nothing trains) and of one more validation batch.
        """
        if self._loop.step:
            self._setup.freezing.train_mode()
            inputs, labels = next(self._train)
            self._loop.step.start()
            self._loop.step.run(inputs, labels, _no_mark, self._loop.work)
        if not self._loop.graphs:
            steps = batches = self.group
        elif self.train_batches + self.val_batches <= _SHORT:  # also the last batch of a pass, which has its own graph
            steps, batches = (WARM_UP + 2) * self.train_batches, (WARM_UP + 2) * self.val_batches
        else:
            steps = batches = (WARM_UP + 2) * self.group  # the last of them is the first that replays a graph
        self.turn(steps, batches)
        # Beside workers a single step takes now less, now more.
        few = max(3 if self.margin else 1, self.group)
        last = self.turn(few, few)
        return (last.train_seconds or 0.0) / few, last.val_seconds / few

    def turn(self, steps: int, batches: int) -> Turn:
        """Run training steps, unless nothing trains, and then validation batches.

        Before them, untimed, a new pass begins where `margin` asks for it. It returns when workers are told to stop and
        no thread of this process is running any more, or after 0.1 s. Raises `DivergedError` if the loss of the
        training steps is NaN or infinite: such numbers take other times.
        """
        train_seconds, train_images = None, 0
        with self._setup.way.timed():
            if self._loop.step:
                self._memory.begin("train")
                self._begin_steady(self._train, steps, self._run_steps)
                with self._timed(self._train, steps) as timer:
                    train_images = self._run_steps(steps)
                train_seconds = timer.seconds
            self._memory.begin("val")
            self._begin_steady(self._val, batches, self._run_batches)
            with self._timed(self._val, batches) as timer:
                val_images = self._run_batches(batches)
            self._memory.end()
        wait_for_threads()
        return Turn(
            train_seconds=train_seconds,
            train_images=train_images,
            val_seconds=timer.seconds,
            val_images=val_images,
        )

    def _run_steps(self, count: int) -> int:
        """Train on the next batches. Returns their number of images."""
        step, images = self._loop.step, 0
        if step is None:
            return 0
        self._setup.freezing.train_mode()
        step.start()
        for inputs, labels in islice(self._train, count):
            step.run(inputs, labels, _no_mark)
            images += len(labels)
        loss, _ = step.sums()
        if not math.isfinite(loss):
            raise DivergedError("the training loss is not finite any more", ())
        return images

    def _run_batches(self, count: int) -> int:
        """Evaluate the next batches. Returns their number of images."""
        self._setup.freezing.eval_mode()
        found = self._loop.evaluation.over(islice(self._val, count), self._loop.loss_function)
        return found.images

    def _begin_steady(self, batches: _Endless, wanted: int, run: Callable[[int], int]) -> None:
        """Make sure that the next batches are from the middle of a pass, unless they are all of it."""
        if unlike := batches.before_steady(wanted):
            batches.resume()
            run(unlike)
            batches.rest()

    def close(self) -> None:
        """End the workers of the loaders."""
        with closing(self._val):  # also if the other can't be closed: stopped workers would stay
            self._train.close()

    @property
    def start_seconds(self) -> float:
        """Seconds per epoch for starting and ending workers, where turns leave it out: a median over passes.

        0.0 without workers, and where turns are whole passes. Call it after `close`, which ends the last passes. Pieces
        end a pass while workers load, so the end takes a little longer than that of an epoch.
        """
        passes = (self._train.start_seconds, self._val.start_seconds)
        return sum(statistics.median(each) for each in passes if each)

    def work(self) -> Work | None:
        """The work of a step, counted by `warm_up`; None before it, and if nothing trains."""
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
    def _timed(self, batches: _Endless, wanted: int) -> Iterator[_Timer]:
        """Time what happens inside, until the device has nothing left to do; and the ends of a pass, if it is whole."""
        synchronize(self._setup.device)
        timer = _Timer()
        whole = batches.margin > 0 and wanted >= batches.per_pass
        if whole:
            batches.close()
            batches.start_seconds.clear()  # from here on all of it is in the turns
        batches.resume()
        begun = time.perf_counter()
        yield timer
        if whole:
            batches.close(in_turn=True)
        synchronize(self._setup.device)
        batches.finish()
        timer.seconds = time.perf_counter() - begun
        batches.rest()


@dataclass
class _Timer:
    seconds: float = 0.0


class _Endless(Iterator[Any]):
    """Batches of one split, pass after pass."""

    def __init__(self, images: Images | Ahead, per_pass: int, make: Callable[[int], Generator[Any]]) -> None:
        self.per_pass = per_pass
        """Batches of a pass."""
        self.margin = images.loaded_ahead
        """See `TimedTraining.margin`."""
        self.start_seconds: list[float] = []
        """Seconds that starting and ending the workers of each pass took outside of turns; none without workers."""
        self._images, self._make = images, make
        self._epochs = count()
        self._pass: Generator[Any] | None = None
        self._taken = 0
        self._before = 0.0

    def before_steady(self, wanted: int) -> int:
        """How many batches to take before the next `wanted` ones are all from the middle of one pass.

        A new pass begins if too few are left. 0 for whole passes, and where passes are too short to have a middle.
        """
        if not self.margin or wanted >= self.per_pass or wanted + 2 * self.margin > self.per_pass:
            return 0
        if self._taken + wanted + self.margin > self.per_pass:
            self.close()
        return max(0, self.margin - self._taken)

    def finish(self) -> None:
        """Wait until what can't be stopped has loaded all that it was asked for."""
        if self._pass is not None:
            self._images.finish()

    def rest(self) -> None:
        """Load nothing until `resume`."""
        if self._pass is not None:
            self._images.rest()

    def resume(self) -> None:
        """Go on with loading."""
        if self._pass is not None:
            self._images.resume()

    def __next__(self) -> Any:
        while True:
            if self._pass is None:
                self._before = self._images.start_seconds
                self._pass, self._taken = self._make(next(self._epochs)), 0
            for batch in self._pass:
                self._taken += 1
                return batch
            self.close()

    def close(self, *, in_turn: bool = False) -> None:
        """End the running pass and its workers. What that takes belongs to a turn, or is added to `start_seconds`."""
        if self._pass is not None:
            self.resume()
            self._pass.close()
            self._pass, self._taken = None, 0
            if self.margin and not in_turn:
                self.start_seconds.append(self._images.start_seconds - self._before)


@contextmanager
def timed_training(
    config: TrainConfig,
    splits: Splits,
    *,
    device: str = "auto",
    weights: Weights | None = None,
    first_epoch: int = 0,
) -> Iterator[TimedTraining]:
    """Prepare a training, as `train_model` does, whose steps can be timed in turns.

    Arguments and errors are those of `train_model`. Turns begin with the images of `first_epoch`, in its order. Raises
    `NotApplicable` for a regime whose features are extracted once: its steps don't see images, and the extraction
    belongs to no epoch. So it does for one whose stages join one after the other: no turn would stand for its epochs.
    """
    if REGIMES[config.regime].features != "each step":
        raise NotApplicable(f"regime {config.regime!r} extracts its features once, so it has no step on images")
    if REGIMES[config.regime].trainable.in_turn:
        raise NotApplicable(f"regime {config.regime!r} trains other stages in other epochs, so its steps differ")
    target = devices.resolve(device)
    choice = chosen(config, splits, target, weights)
    memory = MemoryMarks(target, without=WAYS[config.execution].others)
    with (
        ready(config, splits, target, weights, choice=choice) as (setup, loop, _),
        closing(TimedTraining(setup, loop, memory, first_epoch)) as timed,
    ):
        yield timed


_SHORT = 500
"""Batches of an epoch that may be run several times to warm up: a few seconds on a GPU."""


def _no_mark(phase: str | None) -> None:
    """Time no phase."""
