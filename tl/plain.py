"""Execution `plain`: what the PyTorch transfer-learning tutorial's own loop does, for any regime that trains on images.

It is the yardstick for execution `fast`: the same network, batches of the same images in the same order, loss,
schedule and freezing, without anything that this library does to be quick. Worker processes decode, crop and flip the
images with Pillow, again in every epoch. Tensors have torch's default layout. The whole network runs forward in every
step, and autograd alone decides what needs no gradient. Torch chooses the optimiser's implementation. The loss is read
after every batch.
https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html

Two things differ from the tutorial. Validation images are not shuffled, so that predictions belong to images; that
changes neither the work nor the accuracy. A single image that is left over joins the batch before it, as in `fast`.
Crops come from torchvision's own random numbers, so they are not those of `fast`.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from tl.batches import Preprocessing
from tl.config import AUTO
from tl.datasets import ImageList
from tl.decoding import open_rgb
from tl.errors import NotApplicable
from tl.images import batch_bounds, order
from tl.learning import CLASSIFICATION, Learning, Loss
from tl.machine import resume_processes, stop_processes
from tl.precision import autocast
from tl.regimes import REGIMES
from tl.seeding import seed_for
from tl.step import Body, Evaluated, Evaluation, Mark, TrainStep
from tl.work import StepWork

WORKERS = 4
"""Worker processes of each loader: the tutorial's `num_workers`. They are started anew for each pass, as there."""
LOADED_AHEAD = 2 * WORKERS
"""Batches that a loader asks its workers for before it needs them: torch's default of two for each."""
_CONTEXT = "fork" if sys.platform == "linux" else None
"""How workers start; None is torch's default. Forked ones belong to the process group of the training and end with it.
Newer versions of Python would fork them from a server that belongs to another program."""
_PR_SET_PDEATHSIG = 1
"""See prctl(2)."""
_FROM_WORKER = "Caught "
"""Torch's message for an exception of a worker begins with this, and has the worker's traceback in it."""


Transform = Callable[[Image.Image], torch.Tensor]


def check_execution(execution: str, regime: str, precision: str) -> None:
    """Raise `NotApplicable` for a regime that doesn't run the network itself on images in every step or keeps features,
    and for a precision that is chosen by measuring: the tutorial's own loop does what it is told.
    """
    if execution == "plain" and precision == AUTO:
        raise NotApplicable("execution 'plain' chooses no precision: name one, such as fp32, or use execution 'fast'")
    if execution == "plain" and not REGIMES[regime].plain:
        able = ", ".join(name for name, each in REGIMES.items() if each.plain)
        raise NotApplicable(
            f"execution 'plain' runs the network on images in every step, and regime {regime!r} doesn't; use execution "
            f"'fast', or one of {able}"
        )


def training_transform(preprocessing: Preprocessing) -> Transform:
    """Return the tutorial's random crops and flips: an image → `(3, S, S) float32`, normalised."""
    mode = InterpolationMode(preprocessing.interpolation)
    return _to_tensor(
        preprocessing,
        transforms.RandomResizedCrop(preprocessing.size, interpolation=mode),
        transforms.RandomHorizontalFlip(),
    )


def whole_transform(preprocessing: Preprocessing) -> Transform:
    """Return the resizing of a whole image to a square, without a crop: an image → `(3, S, S) float32`, normalised."""
    mode = InterpolationMode(preprocessing.interpolation)
    return _to_tensor(preprocessing, transforms.Resize([preprocessing.size] * 2, interpolation=mode))


def validation_transform(preprocessing: Preprocessing) -> Transform:
    """Return the tutorial's resizing and centre crop: an image → `(3, S, S) float32`, normalised."""
    side = preprocessing.resize
    return _to_tensor(
        preprocessing,
        transforms.Resize(
            [side, side] if preprocessing.squash else side, interpolation=InterpolationMode(preprocessing.interpolation)
        ),
        transforms.CenterCrop(preprocessing.size),
    )


def _to_tensor(preprocessing: Preprocessing, *crop: Any) -> Transform:
    normalise = transforms.Normalize(preprocessing.mean, preprocessing.std)
    made: Transform = transforms.Compose([*crop, transforms.ToTensor(), normalise])
    return made


class PlainImages(Dataset[tuple[torch.Tensor, Any]]):
    """The images of one split below `root`, each decoded and transformed whenever it is asked for.

    `rows` has the target of each, by default its class. `mirrored` maps a target to that of the mirrored image, and
    half of the images are mirrored then.
    """

    def __init__(
        self,
        root: Path,
        images: ImageList,
        transform: Transform,
        rows: Sequence[Any] | None = None,
        mirrored: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._root, self._images, self._transform = root, images, transform
        self._rows: Sequence[Any] = images.labels if rows is None else rows
        self._mirrored = mirrored

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        """Return an image, `(3, S, S) float32`, and its target. Raises `DataError` naming a file that is damaged."""
        image, row = self._transform(open_rgb(self._root / self._images.files[index])), self._rows[index]
        if self._mirrored and torch.rand(1) < 0.5:
            return image.flip(-1), self._mirrored(row)
        return image, row


class PlainBatches:
    """Batches of one split on one device, used like `tl.batches.Batches`.

    Images are `(B, 3, S, S) float32`, normalised and contiguous; labels are rows of `rows`, by default the classes of
    the images, `(B,) int64`. `learning` says whether images may be cropped.
    """

    def __init__(
        self,
        root: Path,
        images: ImageList,
        preprocessing: Preprocessing,
        device: torch.device,
        rows: Sequence[Any] | None = None,
        learning: Learning = CLASSIFICATION,
    ) -> None:
        self.images = images
        self.device = device
        self.start_seconds = 0.0
        """Seconds that starting and ending workers has taken so far, over all passes."""
        self._workers: tuple[int, ...] = ()
        """Ids of the processes of the pass that began last; none after its end."""
        self._train = (
            PlainImages(root, images, whole_transform(preprocessing), rows, learning.mirrored)
            if learning.whole_images
            else PlainImages(root, images, training_transform(preprocessing), rows)
        )
        self._val = PlainImages(root, images, validation_transform(preprocessing), rows)

    def __len__(self) -> int:
        return len(self.images)

    loaded_ahead = LOADED_AHEAD
    """Batches that the workers may have loaded before they are taken."""
    least_piece = 1
    """Batches that workers must load one after the other to show their rate: they are stopped, and not waited for."""

    def finish(self) -> None:
        """Nothing has to be finished: `rest` stops the workers as they are."""

    def rest(self) -> None:
        """Stop the workers of the pass that began last, until `resume`."""
        stop_processes(self._workers)

    def resume(self) -> None:
        """Let the workers go on."""
        resume_processes(self._workers)

    def training(
        self, batch_size: int, *, seed: int, epoch: int, mark: Callable[[str], None] | None = None
    ) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield one epoch, with the images in the order of `Batches.training`, each cropped and flipped at random.

        Crops depend only on seed, epoch and the number of workers. `mark` is called when the loader has given a batch
        (`data`) and when it is on the device (`transfer`).
        """
        shuffled = order(len(self), seed_for("order", seed, epoch)).tolist()
        chosen = [shuffled[start:stop] for start, stop in batch_bounds(len(self), batch_size)]
        for images, labels in self._loaded(self._train, chosen, seed_for("crops", seed, epoch)):
            if mark:
                mark("data")
            batch = images.to(self.device), labels.to(self.device)
            if mark:
                mark("transfer")
            yield batch

    def evaluation(self, batch_size: int) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield all images in order, resized and centre-cropped."""
        chosen = [list(range(start, stop)) for start, stop in batch_bounds(len(self), batch_size)]
        for images, labels in self._loaded(self._val, chosen, 0):
            yield images.to(self.device), labels.to(self.device)

    def _loaded(
        self, images: PlainImages, batches: Iterable[list[int]], seed: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield these batches of images, loaded by workers that start now. Their random numbers follow from `seed`.

        The workers end with the last batch, or when the generator is closed.

        An exception of a worker keeps its class, and its message is one line.
        """
        begun = time.perf_counter()
        loading = _start_loading(images, batches, seed)
        self._workers = tuple(worker.pid for worker in getattr(loading, "_workers", ()))
        self.start_seconds += time.perf_counter() - begun
        try:
            while (batch := _next(loading)) is not None:
                yield batch
        finally:
            begun, self._workers = time.perf_counter(), ()
            del loading  # ends the workers
            self.start_seconds += time.perf_counter() - begun


def _start_loading(images: PlainImages, batches: Iterable[list[int]], seed: int) -> Iterator[Any]:
    """Start the workers of one pass."""
    with warnings.catch_warnings():
        # Torch advises fewer workers where there are fewer cores, and Python warns of a fork beside threads: both are
        # as in the tutorial. Nothing that a worker runs needs a lock of those threads.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
        loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=batches,
            num_workers=WORKERS,
            generator=torch.Generator().manual_seed(seed),
            worker_init_fn=_leave_signals_to_parent,
            multiprocessing_context=_CONTEXT if WORKERS else None,
        )
        with _signals_held_back():
            return iter(loader)


_SIGNALS = {getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGTERM") if hasattr(signal, name)}


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Hold signals back while workers are forked: until a worker decides what they mean, it has the parent's handlers.

    The parent receives them at the end, and each worker in `_leave_signals_to_parent`.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where workers are not forked
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next(loading: Iterator[Any]) -> Any:
    """Return the next batch; None at the end.

    An error doesn't keep the workers alive: neither this frame nor, where another takes its place, those of torch.
    """
    try:
        return next(loading, None)
    except Exception as error:
        killed_by = _signal_of(getattr(loading, "_workers", ()), error)
        del loading
        if killed_by:
            text = f"a worker of the loader is killed by signal: {killed_by}"
            raise RuntimeError(text) from error.with_traceback(None)
        text = str(error.args[0]) if error.args else ""  # not `str(error)`, which may be in one line
        if not text.startswith(_FROM_WORKER):
            raise
        last = text.strip().splitlines()[-1]
        raise type(error)(last.partition(": ")[2] or last) from error.with_traceback(None)


def _signal_of(workers: Sequence[Any], error: Exception) -> str:
    """The signal that killed one of these processes, in words; empty if none was killed.

    Torch's own words differ with the moment at which it notices, and don't always say which signal it was. It raises
    an error from its handler of SIGCHLD too, wherever this process is then, until somebody asks for the exit code.
    """
    deadline = time.monotonic() + 1.0
    while True:
        codes = [worker.exitcode for worker in workers]
        # A worker whose connection breaks is about to end, and has no exit code yet.
        if any(codes) or not isinstance(error, ConnectionError | EOFError) or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return next((signal.strsignal(-code) or str(-code) for code in codes if code is not None and code < 0), "")


def _leave_signals_to_parent(worker: int) -> None:
    """Let the parent decide what Ctrl-C means: it ends its workers. A handler of the parent's would run here too.

    On Linux this process is killed when the parent ends. Torch's own watch over the parent can't see that while this
    process is stopped (`tl.timing`).
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


class PlainStep(TrainStep):
    """A step of the tutorial's loop: it reads the loss and the number of correct predictions after every batch."""

    def run(self, inputs: torch.Tensor, labels: torch.Tensor, mark: Mark, work: StepWork | None = None) -> None:
        """See `TrainStep.run`. Gradients and outputs of a step stay until the next one, as in the tutorial."""
        self._optimizer.zero_grad(set_to_none=True)
        mark("optimizer")
        super().run(inputs, labels, mark, work)

    def _free_gradients(self) -> None:
        pass

    def _free_batch(self) -> None:
        pass

    def start(self) -> None:
        """Begin an epoch: set the sums to 0."""
        self._running_loss, self._running_correct = 0.0, 0

    def sums(self) -> tuple[float, int | None]:
        """See `TrainStep.sums`."""
        return self._running_loss, self._running_correct if self._learning.counts_hits else None

    def _forward(self, body: Body) -> None:
        with autocast(self._config.precision, self._device):
            self._logits, self._loss = self._learning.loss(
                self._model.head, body(self._inputs), self._labels, self._loss_function
            )

    def _tally(self) -> None:
        self._running_loss += self._loss.item() * len(self._labels)
        if self._learning.counts_hits:
            self._running_correct += int(self._learning.hits(self._logits, self._labels).item())


class PlainEvaluation(Evaluation):
    """A validation pass of the tutorial's loop. The outputs are kept beside it, for the predictions."""

    def run(self, inputs: torch.Tensor) -> torch.Tensor:
        """See `Evaluation.run`."""
        with torch.no_grad(), autocast(self._precision, self._device):
            logits: torch.Tensor = self._model.head(self._body(inputs))
            return logits.float()

    def over(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], loss_function: Loss) -> Evaluated:
        """Evaluate all batches of inputs and labels, and read the loss and the right ones after every batch."""
        running_loss = 0.0
        outputs, truths = [], []
        with torch.no_grad():
            for inputs, labels in batches:
                logits = self.run(inputs)
                if self._learning.val_loss:
                    running_loss += loss_function(logits, labels).item() * len(labels)
                if self._learning.counts_hits:
                    self._learning.hits(logits, labels).item()  # the tutorial's loop reads it in every step
                outputs.append(logits)
                truths.append(labels)
            logits = torch.cat(outputs)
            judged = self._learning.judged(logits, torch.cat(truths))
        known = self._learning.val_loss
        return Evaluated(loss_sum=running_loss if known else None, images=len(logits), judged=judged)
