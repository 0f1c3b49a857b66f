"""`train_model`: the one training loop that every regime shares.

It follows the PyTorch transfer-learning tutorial's protocol (a validation pass every epoch, the best weights
kept and loaded at the end) and reports what it did: raw figures of every epoch, predictions for every
validation image, and proof that the frozen part did not change. It prepares, runs the epochs, and makes the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import InstanceOf

from tl import devices
from tl.calls import Place, checked
from tl.clock import Clock
from tl.config import TrainConfig
from tl.datasets import Splits
from tl.errors import ConfigError, DivergedError
from tl.fits import load_fits
from tl.images import batch_bounds
from tl.kept import KeptState
from tl.latency import inference_cost
from tl.learning import Loss
from tl.library import Backbone
from tl.logme import logme
from tl.lookahead import Ahead
from tl.memory import MemoryMarks
from tl.own_code import ImportPath, given, path_given
from tl.prepare import HeadFit, Inputs, Loop, Setup, ready, way_of
from tl.progress import counted
from tl.quantize import quantized_weights
from tl.regimes import REGIMES
from tl.results import EpochResult, Note, Period, Phases, Predictions, Probe, TrainResult, Work
from tl.step import (
    Evaluation,
    GraphedStep,
    TrainStep,
)
from tl.stopping import has_ended
from tl.tasks import TASKS
from tl.tryout import chosen
from tl.weights import Weights
from tl.work import StepWork, optimizer_state_bytes, tensor_bytes


@checked
def train_model(
    config: TrainConfig,
    splits: Splits,
    *,
    device: str = "auto",
    weights: Weights | None = None,
    weights_dir: Place | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    keep: Literal["best", "last"] = "best",
    cuda_graphs: bool = True,
    inference: bool = False,
    backbone: InstanceOf[Backbone] | Callable[..., Any] | None = None,
    head: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    optimizer: Callable[..., Any] | None = None,
) -> TrainResult:
    """Train a new head, and with some regimes the backbone, on `splits`, once; a regime may also train nothing.

    A regime that fits its head at once has one epoch, whose training pass is the fit.

    `run_protocol` follows protocols that train several times.

    Args:
        config: what to train; see `TrainConfig`. Its protocol must be `fixed`.
        splits: training and validation images, from `tl.load_splits`.
        device: `cpu`, `cuda[:i]`, `mps` or `auto`.
        weights: what the backbone starts from; by default found by `config.weights`.
        weights_dir: a folder of weight files, which is searched first.
        on_epoch: called after each epoch, outside its timing.
        keep: which epoch's weights and predictions count as `best`; with `last` the validation images choose none.
        cuda_graphs: replay steps from CUDA graphs, on a GPU where that works. It changes only times. Execution `plain`
            has none.
        inference: measure what the trained network costs in use, too; see `InferenceCost`. It takes seconds, and
            changes no other figure.
        backbone: a `Backbone` of one's own, or a function that makes one, in place of the config's. What is given is
            not changed; the result's `model` has the trained copy.
        head: a function in place of the config's head, as in `tl.own_parts`; so are `loss` and `optimizer`.

    Returns:
        A `TrainResult`; its `model` is a `Classifier` in eval mode with the weights of the epoch that was kept.

    Raises `UserError` for mistakes that the caller can correct: `ConfigError`, `DataError`, `WeightsError`,
    `DeviceError`, and `NotApplicable` for a regime that has no meaning with these classes or weights. Raises
    `DivergedError`, which has the epochs so far, as soon as an epoch's training or validation loss is NaN or infinite,
    or an output for a validation image is: such a network has no accuracy, and more epochs would not give it one.

    On a CPU the same config, images and thread count give the same losses. Cached features that were extracted for
    other images give the same losses only up to rounding. So do other devices, since some of their operations add in no
    fixed order.
    """
    if config.protocol != "fixed":
        raise ConfigError(
            f"protocol={config.protocol!r}: train_model trains once; tl.run_protocol follows any protocol"
        )
    codes = _given_codes(backbone=backbone, head=head, loss=loss, optimizer=optimizer)
    names = {name: f"module:{path.text}" if name == "backbone" else path.text for name, (path, _) in codes.items()}
    planned = tuple((name, digest) for name, digest in config.code if name not in codes)
    with given(codes):
        config = config.replace(code=planned, **names).with_code()
        return _train(config, splits, device, weights, weights_dir, on_epoch, keep, cuda_graphs, inference)


def _given_codes(
    *, backbone: Backbone | Callable[..., Any] | None, **codes: Callable[..., Any] | None
) -> dict[str, tuple[ImportPath, Callable[..., Any]]]:
    """Setting → a function that a notebook gives, with the import path that stands for it. A backbone becomes one."""
    found = {name: (path_given(name, code), code) for name, code in codes.items() if code is not None}
    if isinstance(backbone, Backbone):
        path = path_given("backbone", type(backbone.module))
        return found | {"backbone": (path, partial(replace, backbone))}  # whose network is copied, as any code's is
    return found if backbone is None else found | {"backbone": (path_given("backbone", backbone), backbone)}


def _train(
    config: TrainConfig,
    splits: Splits,
    device: str,
    weights: Weights | None,
    weights_dir: str | Path | None,
    on_epoch: Callable[[EpochResult], None] | None,
    keep: Literal["best", "last"],
    cuda_graphs: bool,
    inference: bool,
) -> TrainResult:
    """Train as `train_model` does, by code that the config names alone."""
    target = devices.resolve(device)
    choice = chosen(config, splits, target, weights, weights_dir)
    load_fits(REGIMES[config.regime])
    memory = MemoryMarks(target, without=way_of(config).others)
    with ready(config, splits, target, weights, weights_dir, cuda_graphs=cuda_graphs, choice=choice) as (
        setup,
        loop,
        setup_seconds,
    ):
        trained = _epochs(setup, loop, memory, keep, on_epoch)
    result = _result(setup, loop, trained, memory, setup_seconds)
    setup.merge_adapter()
    setup.become_int8()
    result = result.replace(probe=_probe(loop.fit)) if loop.fit else result
    if inference:  # after the result has read the marks of memory
        size = setup.backbone.preprocessing.size
        cost = inference_cost(setup.model, size, setup.config.precision, setup.device, setup.layout)
        result = result.replace(inference=cost)
    if choice is None:
        return result
    why = Note(about="figures", text=f"precision `auto`: {choice.reason}")
    return result.replace(config=config, choice=choice, notes=(*result.notes, why))


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """The results of all epochs."""

    history: tuple[EpochResult, ...]
    best: Predictions
    """Predictions of the epoch whose weights the model keeps."""
    last: Predictions
    periods: tuple[Period, ...]
    """A single one if the same trains in all epochs; none without steps."""


def _epochs(
    setup: Setup,
    loop: Loop,
    memory: MemoryMarks,
    keep: Literal["best", "last"],
    on_epoch: Callable[[EpochResult], None] | None,
) -> _Trained:
    """Train and validate in every epoch. The model ends with the weights of the epoch that is kept."""
    clock = Clock(setup.device)
    history: list[EpochResult] = []
    periods: list[Period] = []
    best = last = None
    with KeptState(setup.freezing) as kept:
        for epoch in range(setup.config.passes):
            if best and best is last and keep == "best":
                kept.keep()  # the epoch that begins may be a worse one
            work = None
            if setup.unfreezing.begin(epoch) and loop.step:
                loop.step.adapt()
                if loop.averaged:
                    loop.averaged.follow(setup.unfreezing.now)
                work = StepWork()
            row, last = _epoch(setup, loop, memory, clock, history, work)
            if work and (counted := work_of(work, setup)):
                trained = sum(parameter.numel() for parameter in setup.unfreezing.now.parameters)
                periods.append(Period(first_epoch=epoch, trainable_params=trained, work=counted))
            if best is None or keep == "last" or row.val_accuracy > history[best.epoch].val_accuracy:
                best = last
            history.append(row)
            if on_epoch:
                on_epoch(row)
            if has_ended([each.val_loss for each in history if each.val_loss is not None], setup.config.early_stopping):
                break
        assert best is not None and last is not None  # there is at least one pass
        if best is not last:
            kept.restore()
            if setup.copies:
                setup.copies.renew()
    setup.model.eval()
    return _Trained(history=tuple(history), best=best, last=last, periods=tuple(periods))


def _epoch(
    setup: Setup,
    loop: Loop,
    memory: MemoryMarks,
    clock: Clock,
    history: Sequence[EpochResult],
    work: StepWork | None,
) -> tuple[EpochResult, Predictions]:
    """Run a training pass or a fit, unless nothing trains, and a validation pass. `history` has the epochs before.

    With `work`, the work of the first step is counted, which is warm-up. Converting a network between the two passes,
    so that validation runs its int8 copy, is no part of the epoch's seconds. Raises `DivergedError` if a figure that
    each pass reads at its end is not finite.
    """
    epoch, optimizer, step = len(history), setup.optimizer, loop.step
    rate = optimizer.param_groups[0]["lr"] if optimizer else None
    trained, train_seconds, converting = None, 0.0, 0.0
    if setup.copies:
        setup.copies.forget()
    with setup.way.timed():
        memory.begin("train" if setup.regime.trains else "val")
        clock.start()
        if loop.fit:
            if loop.fit.fault:
                raise diverged(loop.fit.fault, setup.config, rate, history)
            loop.fit.run()
            train_seconds = clock.elapsed()
            memory.begin("val")
            clock.mark(None)
        if step:
            if loop.averaged:
                loop.averaged.hide()
                clock.mark(None)
            setup.unfreezing.now.train_mode()
            trained = _train_pass(step, loop.train, setup.config, epoch, clock, work)
            if trained.fault:
                raise diverged(f"training {trained.fault}", setup.config, rate, history)
            train_seconds = clock.elapsed()
            memory.begin("val")
            clock.mark(None)
            if loop.averaged:
                loop.averaged.show()
        setup.unfreezing.now.eval_mode()
        if setup.copies:
            if fault := setup.copies.fault():
                raise diverged(fault, setup.config, rate, history)
            converting = setup.copies.renew()
            clock.mark(None)
        validated = val_pass(loop.evaluation, loop.val, loop.loss_function, setup.config)
        if validated.fault:
            raise diverged(f"validation {validated.fault}", setup.config, rate, history)
        clock.mark("validation")
        whole, parts = clock.read()
        memory.end()
    if setup.schedule:
        setup.schedule.step()
    row = EpochResult(
        epoch=epoch,
        learning_rate=rate,
        train_seconds=train_seconds if setup.regime.trains else None,
        val_seconds=whole - train_seconds - converting,
        phases=Phases(**parts, other=whole - sum(parts.values()) - converting) if trained else None,
        train_loss=trained.loss if trained else None,
        train_accuracy=trained.score() if trained else None,
        val_loss=validated.loss,
        val_accuracy=validated.score(),
    )
    return row, Predictions(epoch=epoch, **validated.said)


def diverged(what: str, config: TrainConfig, rate: float | None, history: Sequence[EpochResult]) -> DivergedError:
    """Return the error for a figure of the epoch after `history` that is not finite."""
    if rate is None:
        return DivergedError(f"the {what} although no step was taken; are the weights damaged?", history)
    return DivergedError(
        f"the {what} in epoch {len(history) + 1} of {config.epochs}, at learning rate {rate:g}", history
    )


def _result(setup: Setup, loop: Loop, trained: _Trained, memory: MemoryMarks, setup_seconds: float) -> TrainResult:
    """Assemble the result after the last epoch."""
    config, model, device, extraction = setup.config, setup.model, setup.device, loop.extraction
    on_cuda = device.type == "cuda"
    trainable = sum(p.numel() for p in setup.unfreezing.now.parameters)
    fitted = sum(p.numel() for p in model.head.parameters()) if loop.fit else trainable
    return TrainResult(
        config=config,
        weights=setup.backbone.weights,
        classes=setup.splits.classes,
        device=str(device),
        device_name=devices.present()[str(device)],
        threads=torch.get_num_threads(),
        precision=config.precision,
        memory_format=setup.layout,
        folded_layers=loop.inference.folded if loop.inference else None,
        packed_layers=loop.inference.packed if loop.inference else None,
        lookahead=loop.train.count if isinstance(loop.train, Ahead) else None,
        cuda_graph=isinstance(loop.step, GraphedStep) and loop.step.replayed if on_cuda else None,
        score=TASKS[config.task].score,
        epochs=trained.history,
        best=trained.best,
        last=trained.last,
        total_params=setup.total_params - trainable + fitted,
        trainable_params=fitted,
        frozen_verified=setup.unfreezing.verified(),
        setup_seconds=setup_seconds,
        extraction_seconds=extraction.seconds if extraction else None,
        extracting_seconds=extraction.spent if extraction else None,
        head_start_seconds=loop.head_start_seconds,
        quantization_seconds=None
        if setup.quantization_seconds is None
        else setup.quantization_seconds + (setup.copies.seconds if setup.copies else 0.0),
        features_reused=extraction.spent == 0 if extraction else None,
        training_seconds=sum((row.train_seconds or 0.0) + row.val_seconds for row in trained.history),
        **memory.figures(),
        resident_image_bytes=(setup.images.resident_bytes or 0) if on_cuda else None,
        work=trained.periods[-1].work if trained.periods else None,
        periods=trained.periods if len(trained.periods) > 1 else (),
        notes=_notes(setup, loop),
        model=model,
    )


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a pass over a split found."""

    loss: float | None
    """None for validation if the task has no loss there."""
    score: Callable[[], Any]
    """Returns the score of the task, outside of all times; None after training if the task knows it only afterwards."""
    said: dict[str, Any]
    """Fields of `Predictions`, but for the epoch; empty after training."""
    fault: str
    """What is not finite, such as `loss was NaN`; empty if all is, and only then the other figures mean something."""


def work_of(step: StepWork, setup: Setup) -> Work | None:
    """Return the work of a step of the usual batch size in what trains now; None without steps."""
    if setup.optimizer is None:
        return None
    model, first = setup.model, batch_bounds(len(setup.splits.train), setup.config.batch_size)[0]
    return Work(
        step_images=first[1] - first[0],
        forward_flops=step.forward_flops,
        backward_flops=step.backward_flops,
        saved_activation_bytes=step.saved_bytes,
        parameter_bytes=tensor_bytes([*model.parameters(), *(weight for _, weight in quantized_weights(model))]),
        gradient_bytes=tensor_bytes(setup.unfreezing.now.parameters),
        optimizer_state_bytes=optimizer_state_bytes(setup.optimizer),
    )


def _probe(fit: HeadFit) -> Probe:
    """Return what the fit says of its training images. LogME is computed here, so no time or memory includes it."""
    assert fit.fitted is not None  # it ran in the only epoch
    return Probe(
        labels=fit.fitted.labels,
        truth=fit.labels.tolist(),
        chosen=fit.fitted.chosen,
        logme=logme(fit.features, fit.labels),
    )


def _train_pass(
    step: TrainStep, batches: Inputs, config: TrainConfig, epoch: int, clock: Clock, work: StepWork | None
) -> Pass:
    step.start()
    # Closed, so that nothing loads further batches after an error.
    with closing(batches.training(config.batch_size, seed=config.seed, epoch=epoch, mark=clock.mark)) as epoch_batches:
        for inputs, labels in counted(epoch_batches, len(batches), "training"):
            step.run(inputs, labels, clock.mark, work)
            work = None
    loss_sum, correct = step.sums()
    loss = loss_sum / len(batches)
    share = None if correct is None else correct / len(batches)
    return Pass(loss=loss, score=lambda: share, said={}, fault=fault_of(loss))


def val_pass(evaluation: Evaluation, batches: Inputs, loss_function: Loss, config: TrainConfig) -> Pass:
    """Evaluate all validation inputs."""
    with closing(batches.evaluation(config.batch_size)) as pass_batches:
        count = len(batches)
        found = evaluation.over(counted(pass_batches, count, "validation"), loss_function)
    judged = found.judged
    loss = None if found.loss_sum is None else found.loss_sum / count
    outputs_fault = f"outputs of {judged.unknown} of {count} images were not finite" if judged.unknown else ""
    return Pass(loss=loss, score=judged.score, said=judged.said, fault=fault_of(loss) or outputs_fault)


def fault_of(loss: float | None) -> str:
    """Say how a loss is not finite; empty if it is, or if there is none."""
    if loss is None or math.isfinite(loss):
        return ""
    return "loss was NaN" if math.isnan(loss) else "loss was infinite"


MANY = 1 / 3
"""Share of a network's parameters above which low-rank updates are no longer few."""


def _notes(setup: Setup, loop: Loop) -> tuple[Note, ...]:
    """Return what a reader of the figures must know."""
    splits, weights, size = setup.splits, setup.backbone.weights, setup.config.batch_size
    images = len(splits.train)
    fallbacks, notes = [], []
    if splits.fallback:
        fallbacks.append(Note(about="images", text=f"the images are {splits.fallback}"))
    if weights.reason:
        fallbacks.append(Note(about="weights", text=f"random weights: {weights.reason}"))
    if loop.graphs and loop.graphs.failure:
        notes.append(f"without CUDA graphs: {loop.graphs.failure}")
    if setup.config.checkpointing and setup.device.type == "cuda" and setup.way.graphs:
        notes.append(
            "without CUDA graphs: checkpointing reads and sets the state of random numbers, which a graph can't"
        )
    if not setup.learning.same_shapes and setup.device.type == "cuda" and setup.way.graphs:
        notes.append("without CUDA graphs: what a detector's step computes depends on its images")
    notes += _other_work(loop)
    if loop.inference and loop.inference.failure:
        notes.append(f"the backbone ran as it is, since as a network for inference {loop.inference.failure}")
    if loop.extraction and loop.extraction.spent == 0 and setup.regime.fixed_features:
        notes.append("features were cached, so the memory of their extraction is unknown")
    if setup.way.others:
        notes.append(f"memory is that of the training's own process, without {setup.way.others}")
    if not setup.images.decoded_once:
        notes.append("images were decoded in every epoch, so times include decoding")
    if setup.config.early_stopping:
        notes.append(
            "the validation images decided when the training ended, so its accuracies are optimistic, the last one too"
        )
    if (joined := setup.unfreezing.joined) < (parts := setup.unfreezing.parts):
        notes.append(
            f"epochs were too few for all stages: {joined} of {parts} joined the head, the others stayed frozen"
        )
    share = sum(parameter.numel() for parameter in setup.unfreezing.now.parameters) / setup.total_params
    if setup.regime.adapter == "lora" and share > MANY:
        notes.append(
            f"low-rank updates of rank {setup.config.lora_rank} and the head have {share:.0%} as many parameters as "
            "the network, so they save little; a lower `lora_rank` has fewer"
        )
    if setup.regime.by_steps and max(stop - start for start, stop in batch_bounds(images, size)) > size:
        notes.append(f"{images} images leave one over at batch size {size}: it joins the batch before")
    return (*fallbacks, *(Note(about="figures", text=text) for text in notes))


def _other_work(loop: Loop) -> list[str]:
    """Say how a frozen backbone's epochs were not the plain work, which regimes are compared by."""
    inference, how = loop.inference, []
    if loop.extraction:
        return []
    if inference and not inference.failure:
        how.append(f"ran as a network for inference ({inference.folded} BatchNorm layers folded, ")
        how[-1] += f"{inference.packed} convolutions packed)"
    if isinstance(loop.train, Ahead):
        how.append(f"ran on up to {loop.train.count} batches at once")
    if not how:
        return []
    return [f"the frozen backbone {' and '.join(how)}, so times and memory are not those of plain steps"]
