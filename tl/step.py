"""One training step and one evaluation, run eagerly or replayed from CUDA graphs.

With small batches a GPU waits for the host, which takes longer to launch a network's many small operations than the
GPU to run them. A graph launches all of them at once. It is captured after a few eager steps, which are part of the
training, and then replayed on fixed tensors. Shapes without a graph, such as a last, smaller batch, run eagerly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from tl.backbones import Classifier
from tl.config import TrainConfig
from tl.learning import CLASSIFICATION, Judged, Learning, Loss
from tl.precision import autocast, gradient_scaler
from tl.work import StepWork

Body = Callable[[torch.Tensor], torch.Tensor]
Mark = Callable[[str | None], None]
WARM_UP = 3
"""Eager steps of a shape before its capture, in which libraries choose and load their kernels."""


class TrainStep:
    """Runs training steps: forward pass, backward pass and update.

    The sums of losses and of correct predictions stay on the device, since reading them would make the host wait.

    Args:
        model: the whole network; its `head` maps features to logits.
        body: maps inputs to features; without gradients if none of the backbone's parameters has them.
        counted: the same as plain operations of torch, for the step whose work is counted. A compiled network doesn't
            dispatch single operations, and one for inference has others.
        learning: what the training's task makes of features and targets: the loss, and which outputs are right.
    """

    def __init__(
        self,
        model: Classifier,
        body: Body,
        counted: Body,
        loss_function: Loss,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        device: torch.device,
        learning: Learning = CLASSIFICATION,
    ) -> None:
        self._model, self._body, self._counted = model, body, counted
        self._learning = learning
        self._loss_function = loss_function
        self._optimizer = optimizer
        self._config, self._device = config, device
        self._scaler = gradient_scaler(config.precision, device)
        self._trains_body = _trains(model.backbone)
        self.loss_sum = torch.zeros((), device=device)
        self.correct = torch.zeros((), device=device, dtype=torch.int64)
        self._nothing = torch.empty(0)
        self._inputs = self._labels = self._logits = self._loss = self._nothing

    def adapt(self) -> None:
        """Train what has gradients now, which is other parameters of the optimiser than before."""
        self._trains_body = _trains(self._model.backbone)

    def start(self) -> None:
        """Begin an epoch: set the sums to 0."""
        self.loss_sum.zero_()
        self.correct.zero_()

    def sums(self) -> tuple[float, int | None]:
        """Return the sum of losses over images and the number of right ones; waits for the device.

        The number is None if the task counts none in training.
        """
        return self.loss_sum.item(), int(self.correct) if self._learning.counts_hits else None

    def run(self, inputs: torch.Tensor, labels: torch.Tensor, mark: Mark, work: StepWork | None = None) -> None:
        """Train on one batch. Calls `mark` at the end of each phase; with `work`, also counts the step's work."""
        self._inputs, self._labels = inputs, labels
        with work.forward(self._model) if work else nullcontext():
            self._forward(self._counted if work else self._body)
        mark("forward")
        with work.backward() if work else nullcontext():
            self._backward()
        mark("backward")
        self._update()
        self._free_gradients()
        mark("optimizer")
        self._tally()
        self._free_batch()
        mark(None)

    def _forward(self, body: Body) -> None:
        with autocast(self._config.precision, self._device):
            with torch.set_grad_enabled(self._trains_body):
                features = body(self._inputs)
            self._logits, self._loss = self._learning.loss(
                self._model.head, features, self._labels, self._loss_function
            )

    def _backward(self) -> None:
        self._scaler.scale(self._loss).backward()

    def _update(self) -> None:
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _tally(self) -> None:
        self.loss_sum += self._loss.detach() * len(self._labels)
        if self._learning.counts_hits:
            self.correct += self._learning.hits(self._logits, self._labels)

    def _free_gradients(self) -> None:
        """Free the gradients now, not before the next backward pass: a validation pass may come first."""
        self._optimizer.zero_grad(set_to_none=True)

    def _free_batch(self) -> None:
        """Free the batch, its outputs and their graph before the next one is made."""
        self._inputs = self._labels = self._logits = self._loss = self._nothing


def _trains(module: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


@dataclass
class _Captured:
    """The graphs of a step of one shape, and the tensors that they read and write."""

    inputs: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor
    gradients: list[torch.Tensor | None]
    forward: Any
    backward: Any
    update: Any
    rate: float
    """Learning rate, a constant of the captured update."""


class GraphedStep(TrainStep):
    """A step that replays CUDA graphs, one per phase, so that the clock's marks fit between them."""

    def __init__(self, *arguments: Any, graphs: Graphs) -> None:
        super().__init__(*arguments)
        self._graphs = graphs
        self._captured: dict[torch.Size, _Captured] = {}
        self._runs: Counter[torch.Size] = Counter()
        self.replayed = False
        """True once a step has been replayed."""

    def adapt(self) -> None:
        """See `TrainStep.adapt`. Steps that were captured would train as before, so they are captured anew."""
        super().adapt()
        if self._captured:
            with self._graphs.or_plain():
                self._graphs.hold()
        self._captured.clear()
        self._runs.clear()
        self._free_batch()
        self._free_gradients()

    def run(self, inputs: torch.Tensor, labels: torch.Tensor, mark: Mark, work: StepWork | None = None) -> None:
        """See `TrainStep.run`."""
        shape = inputs.shape
        if shape not in self._captured and self._runs[shape] >= WARM_UP:
            with self._graphs.or_plain():
                self._captured[shape] = self._capture(inputs, labels)
        captured = self._captured.get(shape)
        if captured is None:
            self._runs[shape] += self._graphs.usable
            self._optimizer.zero_grad(set_to_none=True)  # of a captured step, which keeps them
            super().run(inputs, labels, mark, work)
            return
        if captured.rate != self._rate:
            self._capture_update(captured)
        captured.inputs.copy_(inputs)
        captured.labels.copy_(labels)
        captured.forward.replay()
        mark("forward")
        captured.backward.replay()
        mark("backward")
        captured.update.replay()
        self.replayed = True
        mark("optimizer")

    @property
    def _rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def _capture(self, inputs: torch.Tensor, labels: torch.Tensor) -> _Captured:
        self._inputs, self._labels = inputs.clone(), labels.clone()
        # The captured backward pass allocates gradients itself, so a replay overwrites them and doesn't add to them.
        self._optimizer.zero_grad(set_to_none=True)
        forward, backward = self._graphs.record(lambda: self._forward(self._body)), self._graphs.record(self._backward)
        captured = _Captured(
            inputs=self._inputs,
            labels=self._labels,
            logits=self._logits,
            loss=self._loss,
            gradients=[parameter.grad for parameter in self._parameters],
            forward=forward,
            backward=backward,
            update=None,
            rate=self._rate,
        )
        self._capture_update(captured)
        return captured

    def _capture_update(self, captured: _Captured) -> None:
        """Capture the update for the current learning rate. Other shapes may have run eager steps since `_capture`."""
        self._labels, self._logits, self._loss = captured.labels, captured.logits, captured.loss
        for parameter, gradient in zip(self._parameters, captured.gradients, strict=True):
            parameter.grad = gradient
        captured.update, captured.rate = self._graphs.record(self._update_and_tally), self._rate

    @property
    def _parameters(self) -> list[torch.Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _update_and_tally(self) -> None:
        self._update()
        self._tally()


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What a validation pass found, with the images in the order of the batches."""

    loss_sum: float | None
    """Sum of the images' losses; None if the task has no loss in validation."""
    images: int
    """Number of images that were evaluated."""
    judged: Judged


class Evaluation:
    """Evaluates without gradients."""

    def __init__(
        self,
        model: Classifier,
        body: Body,
        precision: str,
        device: torch.device,
        learning: Learning = CLASSIFICATION,
    ) -> None:
        self._model, self._body = model, body
        self._precision, self._device = precision, device
        self._learning = learning

    def run(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs for one batch, `(B, …) float32`, such as logits `(B, classes)`."""
        with torch.inference_mode(), autocast(self._precision, self._device):
            logits: torch.Tensor = self._model.head(self._body(inputs))
            return logits.float()

    def over(self, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], loss_function: Loss) -> Evaluated:
        """Evaluate all batches of inputs and labels. Sums are read at the end, so no batch waits for the device."""
        loss_sum = torch.zeros((), device=self._device)
        outputs, truths = [], []
        with torch.inference_mode():
            for inputs, labels in batches:
                logits = self.run(inputs)
                if self._learning.val_loss:
                    loss_sum += loss_function(logits, labels) * len(labels)
                outputs.append(logits)
                truths.append(labels)
            logits = torch.cat(outputs)
            judged = self._learning.judged(logits, torch.cat(truths))
        known = self._learning.val_loss
        return Evaluated(loss_sum=loss_sum.item() if known else None, images=len(logits), judged=judged)


class Replayed:
    """A function of one tensor without gradients, which replays CUDA graphs, one per shape of the tensor."""

    def __init__(self, function: Body, graphs: Graphs) -> None:
        self._function, self._graphs = function, graphs
        self._captured: dict[torch.Size, tuple[Any, torch.Tensor, torch.Tensor]] = {}
        self._runs: Counter[torch.Size] = Counter()

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what the function returns, in a tensor of its own."""
        shape = inputs.shape
        if shape not in self._captured and self._runs[shape] >= WARM_UP:
            # Tensors of a validation pass are of inference mode; a training pass couldn't copy its inputs into those.
            with self._graphs.or_plain(), torch.inference_mode(False), torch.no_grad():
                fixed, outputs = inputs.clone(), []
                graph = self._graphs.record(lambda: outputs.append(self._function(fixed)))
                self._captured[shape] = (graph, fixed, outputs[0])
        if shape not in self._captured:
            self._runs[shape] += self._graphs.usable
            return self._function(inputs)
        graph, fixed, result = self._captured[shape]
        fixed.copy_(inputs)
        graph.replay()
        return result.clone()  # the next replay overwrites the original


class GraphedEvaluation(Evaluation):
    """An evaluation that replays CUDA graphs, one per shape."""

    def __init__(self, *arguments: Any, graphs: Graphs) -> None:
        super().__init__(*arguments)
        self._replayed = Replayed(super().run, graphs)

    def run(self, inputs: torch.Tensor) -> torch.Tensor:
        """See `Evaluation.run`."""
        return self._replayed(inputs)


class Graphs:
    """The CUDA graphs of one training. They share memory, so they must be replayed in the order of their capture."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._held: Any = None
        self.failure = ""
        """Reason of a failed capture, in one line; after one, shapes without a graph run eagerly."""

    @property
    def usable(self) -> bool:
        """True until a capture fails."""
        return not self.failure

    def record(self, part: Callable[[], object]) -> Any:
        """Capture the operations that `part` launches, without running them."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate pinned memory meanwhile, since they decode images that aren't stored decoded.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            part()
        return graph

    def hold(self) -> None:
        """Keep the shared memory for later graphs although those so far are dropped.

        Torch gives up memory that no graph uses any more, and captures nothing into it again.
        """
        self._held = self._held or self.record(lambda: torch.zeros(1, device="cuda"))

    @contextmanager
    def or_plain(self) -> Iterator[None]:
        """Let a capture inside fail: an operation may wait for the device, or memory for the graph may be missing."""
        try:
            yield
        except RuntimeError as error:
            self.failure = str(error).strip().partition("\n")[0] or type(error).__name__
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Queue work inside on a separate CUDA stream, as capture requires, in order with work outside the block."""
    if device.type != "cuda":
        yield
        return
    outside = torch.cuda.current_stream(device)
    inside = torch.cuda.Stream(device)
    inside.wait_stream(outside)
    with torch.cuda.stream(inside):
        yield
    outside.wait_stream(inside)
