"""`train_model`: the one training loop that every regime shares.

It follows the PyTorch transfer-learning tutorial's protocol (a validation pass every epoch, the best weights
kept and loaded at the end) and reports what it did: raw figures of every epoch, predictions for every
validation image, and proof that the frozen part did not change. It prepares, runs the epochs, and makes the result.
"""

from __future__ import annotations

import gc
import math
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from tl import devices, plugins
from tl.backbones import Backbone, Classifier, find_weights, known_names, make_backbone
from tl.batches import Batches, resident_pixels
from tl.calls import Place, checked
from tl.checkpointing import checkpointed
from tl.choice import Choice, Prepared, Turn, Ways, choose
from tl.clock import Clock
from tl.config import AUTO, READ_BY, TrainConfig
from tl.datasets import Splits
from tl.deferred import deferred, load_compiler
from tl.devices import LAYOUTS, memory_format, seeded
from tl.errors import ConfigError, DivergedError, NotApplicable
from tl.features import Extraction, Features, images_at_once
from tl.freezing import Freezing, freeze
from tl.images import batch_bounds, open_store
from tl.inference import InferenceNetwork, OnDemand, inference_network
from tl.kept import KeptState
from tl.lookahead import Ahead, batches_ahead
from tl.machine import allocator
from tl.memory import MemoryMarks
from tl.optimizers import LOSS_BUILDERS, OPTIMIZER_BUILDERS, SCHEDULE_BUILDERS
from tl.plain import WORKERS, PlainBatches, PlainEvaluation, PlainStep, check_execution
from tl.precision import autocast, check_precision, single_precision, supported
from tl.quantize import CALIBRATION_IMAGES, quantized, quantized_weights
from tl.regimes import REGIMES, Regime
from tl.results import EpochResult, Note, Phases, Predictions, TrainResult, Work
from tl.seeding import seed_for
from tl.sources import SOURCES, package_version
from tl.specs import Spec
from tl.specs import find as find_spec
from tl.step import (
    Body,
    Evaluation,
    GraphedEvaluation,
    GraphedStep,
    Graphs,
    Loss,
    Replayed,
    TrainStep,
    own_stream,
)
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
) -> TrainResult:
    """Train a new head, and with some regimes the backbone, on `splits`, once; a regime may also train nothing.

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
    target = devices.resolve(device)
    choice = chosen(config, splits, target, weights, weights_dir)
    memory = MemoryMarks(target, without=WAYS[config.execution].others)
    with ready(config, splits, target, weights, weights_dir, cuda_graphs=cuda_graphs, choice=choice) as (
        setup,
        loop,
        setup_seconds,
    ):
        trained = _epochs(setup, loop, memory, keep, on_epoch)
    result = _result(setup, loop, trained, memory, setup_seconds)
    if choice is None:
        return result
    why = Note(about="figures", text=f"precision `auto`: {choice.reason}")
    return result.replace(config=config, choice=choice, notes=(*result.notes, why))


@contextmanager
def ready(
    config: TrainConfig,
    splits: Splits,
    device: torch.device,
    weights: Weights | None,
    weights_dir: str | Path | None = None,
    *,
    cuda_graphs: bool = True,
    choice: Choice | None = None,
) -> Iterator[tuple[Setup, Loop, float]]:
    """Prepare everything before the first step of a training, and yield it with the seconds that took.

    Those seconds are without quantisation and extraction. Arguments and errors are those of `train_model`; `choice` is
    what `chosen` returned for them. Steps must run inside the context, which sets the random seed, the precision and
    the stream.
    """
    started = time.perf_counter()
    layout = choice.memory_format if choice else None
    config = config.replace(precision=choice.precision) if choice else config
    assert config.precision != AUTO
    check_precision(config.precision, device)
    check_execution(config.execution, config.regime, config.precision)
    compiler = nullcontext if needs_compiler(config) else deferred
    with compiler():
        setup = _prepare(config, splits, device, weights, weights_dir, layout)
    with (
        compiler(),
        checkpointed(setup.model.backbone, config) if config.checkpointing else nullcontext(),
        seeded(seed_for("train", config.seed)),
        single_precision(config.precision),
        own_stream(device),
    ):
        ahead = _batches_ahead(setup)
        body, inference = _body(setup, ahead)
        setup_seconds = time.perf_counter() - started - (setup.quantization_seconds or 0.0)
        with_graphs = device.type == "cuda" and cuda_graphs and setup.way.graphs and not config.checkpointing
        graphs = Graphs() if with_graphs else None
        yield setup, _make_loop(setup, body, inference, ahead, graphs), setup_seconds


def chosen(
    config: TrainConfig,
    splits: Splits,
    device: torch.device,
    weights: Weights | None,
    weights_dir: str | Path | None = None,
) -> Choice | None:
    """Choose precision and layout for `precision = "auto"`; None for any other. Takes seconds if it isn't cached.

    Arguments and errors are those of `train_model`.
    """
    if config.precision != AUTO:
        return None
    check_execution(config.execution, config.regime, config.precision)
    regime, way = REGIMES[config.regime], WAYS[config.execution]
    if regime.extractor == "int8":
        layout = way.layout(device, "fp32")
        return Choice(precision="fp32", memory_format=layout, reason="an int8 backbone needs fp32")
    if regime.features == "once":
        # It has no steps on images. Those of a frozen backbone take what its extraction takes.
        alike = next(name for name, each in REGIMES.items() if each.looks_ahead and each.trains and each.foldable)
        ahead = max(1, images_at_once(device) // config.batch_size)
        config = config.replace(regime=alike, fold=config.runs_folded, lookahead=ahead, views=1)

    def layouts(precision: str) -> list[str]:
        usual = way.layout(device, precision)
        return [usual, *(each for each in LAYOUTS if each != usual)]

    def start(precision: str, layout: str) -> AbstractContextManager[Prepared]:
        choice = Choice(precision=precision, memory_format=layout, reason="it is tried")
        return _prepared(config, splits, device, weights, weights_dir, choice)

    if weights is None:
        spec = str(find_spec(config.backbone, known_names()))
        policy = "random" if regime.start == "random" else config.weights
        weights = find_weights(spec, policy, weights_dir=Path(weights_dir) if weights_dir else None)
    # What tells apart the trainings of one cell, such as the trials of learning rates, must not lead to another choice.
    ignored = {"seed", "epochs", "precision", "views", "weights", "protocol", *READ_BY}
    ignored |= {"schedule", "step_size", "gamma"}  # they are read after the first epoch
    identity = {
        "config": {name: value for name, value in config.model_dump(mode="json").items() if name not in ignored},
        "weights": weights.digest or "random",
        "dataset": splits.digest,
        "device": devices.present()[str(device)],
        "threads": torch.get_num_threads(),
        "allocator": allocator(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "libraries": {name: package_version(name) for name in ("torch", "torchvision", "timm")},
        "source": [SOURCES[Spec.parse(config.backbone).source].versions, plugins.fingerprint()],
    }
    return choose(Ways(supported(device), layouts), start, identity)


@contextmanager
def _prepared(
    config: TrainConfig,
    splits: Splits,
    device: torch.device,
    weights: Weights | None,
    weights_dir: str | Path | None,
    choice: Choice,
) -> Iterator[Prepared]:
    """Prepare a training that takes turns on the same first batches."""
    with ready(config, splits, device, weights, weights_dir, choice=choice) as (setup, loop, _):
        train, val, size = loop.train, loop.val, config.batch_size
        counted: StepWork | None = StepWork()  # see `Ahead`: the first step of all counts its work

        def run(steps: int) -> Turn:
            nonlocal counted
            # What is set for the process is that of the training that was prepared last.
            with seeded(seed_for("train", config.seed)), single_precision(choice.precision):
                seconds, loss = 0.0, math.nan
                if loop.step:
                    setup.freezing.train_mode()
                    loop.step.start()
                    images, begun = 0, time.perf_counter()
                    with closing(train.training(size, seed=config.seed, epoch=0)) as batches:
                        for inputs, labels in islice(batches, steps):
                            loop.step.run(inputs, labels, lambda phase: None, counted)
                            counted = None
                            images += len(labels)
                    loss = loop.step.sums()[0] / images
                    seconds = (time.perf_counter() - begun) / images * len(train)
                setup.freezing.eval_mode()
                begun = time.perf_counter()
                with closing(val.evaluation(size)) as batches:
                    found = loop.evaluation.over(islice(batches, steps), loop.loss_function)
                seconds += (time.perf_counter() - begun) / len(found.predicted) * len(val)
                return Turn(seconds=seconds, loss=loss if loop.step else found.loss_sum / len(found.predicted))

        yield Prepared(run=run, group=train.count if isinstance(train, Ahead) else 1)


def needs_compiler(config: TrainConfig) -> bool:
    """Return whether a training loads torch's compiler: to compile, or to trace a network that becomes int8.

    Torch's activation checkpointing asks for the compiler's settings.
    """
    return config.compile or config.checkpointing or REGIMES[config.regime].extractor == "int8"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything prepared before the first epoch: the network, the images, and which part of the network trains."""

    config: TrainConfig
    splits: Splits
    device: torch.device
    backbone: Backbone
    model: Classifier
    layout: str
    total_params: int
    """Counted before quantisation, which packs parameters away."""
    quantization_seconds: float | None
    images: _Images
    freezing: Freezing
    frozen_digest: str | None
    optimizer: torch.optim.Optimizer | None
    """None if nothing trains."""
    schedule: LRScheduler | None

    @property
    def regime(self) -> Regime:
        """The regime of the config."""
        return REGIMES[self.config.regime]

    @property
    def way(self) -> Way:
        """How the config is executed."""
        return WAYS[self.config.execution]


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Both splits, ready to be read in batches."""

    train: Batches | PlainBatches
    val: Batches | PlainBatches
    resident_bytes: int | None = None
    """Size of the pixels in the GPU's memory; None if pixels are not on the GPU."""
    decoded_once: bool = False


def _prepare(
    config: TrainConfig,
    splits: Splits,
    device: torch.device,
    weights: Weights | None,
    weights_dir: str | Path | None,
    layout: str | None,
) -> Setup:
    """Build the network, open the images, and freeze what the regime doesn't train.

    Without a layout it is that of the execution.
    """
    regime = REGIMES[config.regime]
    backbone = _backbone(config, regime, splits, weights, weights_dir)
    way = WAYS[config.execution]
    model, layout = Classifier(backbone, len(splits.classes), config), layout or way.layout(device, config.precision)
    model.to(device=device, memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    total_params = sum(p.numel() for p in model.parameters())
    images = way.images(splits, backbone, device, layout, regime)
    quantization_seconds = _quantize(model, config, images.train) if regime.extractor == "int8" else None
    freezing = freeze(model, regime)
    optimizer = OPTIMIZER_BUILDERS[config.optimizer](config, freezing.parameters) if freezing.parameters else None
    return Setup(
        config=config,
        splits=splits,
        device=device,
        backbone=backbone,
        model=model,
        layout=layout,
        total_params=total_params,
        quantization_seconds=quantization_seconds,
        images=images,
        freezing=freezing,
        frozen_digest=freezing.digest(),
        optimizer=optimizer,
        schedule=SCHEDULE_BUILDERS[config.schedule](config, optimizer) if optimizer else None,
    )


def _stored_images(splits: Splits, backbone: Backbone, device: torch.device, layout: str, regime: Regime) -> _Images:
    """Open the images that are decoded once; keep them on a GPU if they fit."""
    store = open_store(splits)
    resident = resident_pixels(store, device)
    train, val = (
        Batches(store, images, backbone.preprocessing, device, memory_format=LAYOUTS[layout], resident=resident)
        for images in (splits.train, splits.val)
    )
    resident_bytes = None if resident is None else resident.nbytes
    if resident_bytes is not None and regime.features == "each step":
        resident_bytes += val.keep_centred()
    return _Images(train=train, val=val, resident_bytes=resident_bytes, decoded_once=store.pixels is not None)


def _loaded_images(splits: Splits, backbone: Backbone, device: torch.device, layout: str, regime: Regime) -> _Images:
    """Images that workers load from their files in every pass."""
    train, val = (
        PlainBatches(splits.root, images, backbone.preprocessing, device) for images in (splits.train, splits.val)
    )
    return _Images(train=train, val=val)


def _backbone(
    config: TrainConfig, regime: Regime, splits: Splits, weights: Weights | None, weights_dir: str | Path | None
) -> Backbone:
    """Return the config's backbone with the weights that its regime starts from."""
    policy = "random" if regime.start == "random" else config.weights
    if weights and policy != "auto" and weights.kind != policy:
        raise ConfigError(f"weights={weights.kind!r}: regime {config.regime!r} must start from {policy} weights")
    return make_backbone(
        config.backbone,
        weights=weights or policy,
        weights_dir=weights_dir,
        seed=config.seed,
        own_head_for=splits.classes if regime.head == "own" else None,
    )


Images = Batches | PlainBatches
Inputs = Images | Ahead | Features


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The inputs and steps of every epoch. Inputs are images, or features that were extracted from them."""

    train: Inputs
    val: Inputs
    loss_function: Loss
    step: TrainStep | None
    """None if nothing trains."""
    evaluation: Evaluation
    graphs: Graphs | None
    extraction: Extraction | None
    inference: InferenceNetwork | None
    """None if the backbone runs as it is."""
    work: StepWork
    """The work of the first step, which is warm-up anyway."""


def _make_loop(setup: Setup, body: Body, inference: InferenceNetwork | None, ahead: int, graphs: Graphs | None) -> Loop:
    """Make the steps. Extract features first if the regime extracts them once."""
    config, model, device = setup.config, setup.model, setup.device
    train: Inputs = setup.images.train
    val: Inputs = setup.images.val
    counted: Body = model.backbone
    extraction: Extraction | None = None
    if setup.regime.features == "once":
        assert isinstance(train, Batches) and isinstance(val, Batches)  # see `check_execution`
        model.eval()
        extraction = _extraction(body, setup)
        train, val = extraction.features(train, config.views), extraction.features(val, 1)
        inference = body.made if isinstance(body, OnDemand) else inference
        body = counted = nn.Identity()
    elif ahead > 1:
        assert isinstance(train, Batches) and isinstance(val, Batches)  # it is not read by execution `plain`
        forward = _without_head(body, setup)
        if graphs:
            forward = Replayed(forward, graphs)
        train, val = Ahead(train, forward, ahead), Ahead(val, forward, ahead)
        body = train.features
    loss_function = LOSS_BUILDERS[config.loss](config)
    return Loop(
        train=train,
        val=val,
        loss_function=loss_function,
        step=setup.way.step(graphs, model, body, counted, loss_function, setup.optimizer, config, device)
        if setup.optimizer
        else None,
        evaluation=setup.way.evaluation(graphs, model, body, config.precision, device),
        graphs=graphs,
        extraction=extraction,
        inference=inference,
        work=StepWork(),
    )


def _without_head(body: Body, setup: Setup) -> Body:
    """Return the forward pass of the backbone alone, in the config's precision."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        with autocast(setup.config.precision, setup.device):
            return body(images)

    return forward


def _example(setup: Setup, images: int) -> torch.Tensor:
    """Return made-up images, on which modules of the backbone show their order and shapes."""
    size = setup.backbone.preprocessing.size
    with torch.inference_mode(False):
        made_up = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
        return made_up.to(device=setup.device, memory_format=LAYOUTS[setup.layout])


def _batches_ahead(setup: Setup) -> int:
    """Return the number of batches per forward pass."""
    config = setup.config
    if config.lookahead != "auto":
        return config.lookahead
    setup.model.eval()
    return batches_ahead(setup.model.backbone, _example(setup, 1), config.batch_size)


def _body(setup: Setup, ahead: int) -> tuple[Body, InferenceNetwork | None]:
    """Return the backbone as it runs, and the network for inference that it is, if it is one already."""
    config = setup.config
    if config.runs_folded and setup.regime.features == "once" and not config.compile:
        return OnDemand(partial(_inference, setup, ahead)), None
    inference = _inference(setup, ahead) if config.runs_folded else None
    network = inference.network if inference else setup.model.backbone
    return _compiled(network) if config.compile else network, inference


def _inference(setup: Setup, ahead: int) -> InferenceNetwork:
    """Make the backbone a network for inference, for the batches that it will get."""
    config, model = setup.config, setup.model
    batch = images_at_once(setup.device) if setup.regime.features == "once" else config.batch_size * ahead
    model.eval()
    # A compiler lays out weights itself, and doesn't know those of our operators.
    return inference_network(
        model.backbone, _example(setup, 2), config.precision, batch_size=batch, pack=not config.compile
    )


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """The results of all epochs."""

    history: tuple[EpochResult, ...]
    best: Predictions
    """Predictions of the epoch whose weights the model keeps."""
    last: Predictions


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
    best = last = None
    with KeptState(setup.freezing) as kept:
        for _ in range(setup.config.passes):
            if best and best is last and keep == "best":
                kept.keep()  # the epoch that begins may be a worse one
            row, last = _epoch(setup, loop, memory, clock, history)
            if best is None or keep == "last" or row.val_accuracy > history[best.epoch].val_accuracy:
                best = last
            history.append(row)
            if on_epoch:
                on_epoch(row)
        assert best is not None and last is not None  # there is at least one pass
        if best is not last:
            kept.restore()
    setup.model.eval()
    return _Trained(history=tuple(history), best=best, last=last)


def _epoch(
    setup: Setup, loop: Loop, memory: MemoryMarks, clock: Clock, history: Sequence[EpochResult]
) -> tuple[EpochResult, Predictions]:
    """Run a training pass, unless nothing trains, and a validation pass. `history` has the epochs before.

    Raises `DivergedError` if a figure that each pass reads at its end is not finite.
    """
    epoch, optimizer, step = len(history), setup.optimizer, loop.step
    rate = optimizer.param_groups[0]["lr"] if optimizer else None
    trained, train_seconds = None, 0.0
    with setup.way.timed():
        memory.begin("train" if step else "val")
        clock.start()
        if step:
            setup.freezing.train_mode()
            work = loop.work if epoch == 0 else None
            trained = _train_pass(step, loop.train, setup.config, epoch, clock, work)
            if trained.fault:
                raise diverged(f"training {trained.fault}", setup.config, rate, history)
            train_seconds = clock.elapsed()
            memory.begin("val")
            clock.mark(None)
        setup.freezing.eval_mode()
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
        train_seconds=train_seconds if trained else None,
        val_seconds=whole - train_seconds,
        phases=Phases(**parts, other=whole - sum(parts.values())) if trained else None,
        train_loss=trained.loss if trained else None,
        train_accuracy=trained.accuracy if trained else None,
        val_loss=validated.loss,
        val_accuracy=validated.accuracy,
    )
    return row, Predictions(epoch=epoch, labels=validated.predicted, confidences=validated.confidences)


def diverged(what: str, config: TrainConfig, rate: float | None, history: Sequence[EpochResult]) -> DivergedError:
    """Return the error for a figure of the epoch after `history` that is not finite."""
    if rate is None:
        return DivergedError(f"the {what} although nothing was trained; are the weights damaged?", history)
    return DivergedError(
        f"the {what} in epoch {len(history) + 1} of {config.epochs}, at learning rate {rate:g}", history
    )


def _result(setup: Setup, loop: Loop, trained: _Trained, memory: MemoryMarks, setup_seconds: float) -> TrainResult:
    """Assemble the result after the last epoch."""
    config, model, device, extraction = setup.config, setup.model, setup.device, loop.extraction
    on_cuda = device.type == "cuda"
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
        epochs=trained.history,
        best=trained.best,
        last=trained.last,
        total_params=setup.total_params,
        trainable_params=sum(p.numel() for p in setup.freezing.parameters),
        frozen_verified=None if setup.frozen_digest is None else setup.freezing.digest() == setup.frozen_digest,
        setup_seconds=setup_seconds,
        extraction_seconds=extraction.seconds if extraction else None,
        extracting_seconds=extraction.spent if extraction else None,
        quantization_seconds=setup.quantization_seconds,
        features_reused=extraction.spent == 0 if extraction else None,
        training_seconds=sum((row.train_seconds or 0.0) + row.val_seconds for row in trained.history),
        **memory.figures(),
        resident_image_bytes=(setup.images.resident_bytes or 0) if on_cuda else None,
        work=work_of(loop.work, setup),
        notes=_notes(setup, loop),
        model=model,
    )


def _compiled(backbone: nn.Module) -> Body:
    """Return a backbone that is compiled at its first call.

    Raises `NotApplicable` without a C++ compiler or without Python's headers.
    """
    from torch._inductor import config, cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:  # of a private class
        raise NotApplicable("torch.compile needs a C++ compiler, such as g++, and there is none here") from error
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise NotApplicable(f"torch.compile needs Python's headers, and {header} is not there")
    config.compile_threads = 1  # in this process, whose memory is measured
    compiled: Body = torch.compile(backbone, dynamic=False)
    return compiled


def _quantize(model: Classifier, config: TrainConfig, images: Batches | PlainBatches) -> float:
    """Replace the model's backbone by an int8 copy. Return the seconds it took. Raises `NotApplicable`."""
    assert isinstance(images, Batches)  # see `check_execution`
    if config.precision != "fp32" or config.compile:
        raise NotApplicable("an int8 backbone needs fp32 without torch.compile")
    load_compiler()
    started = time.perf_counter()
    calibration = images.sample(images_at_once(images.device), CALIBRATION_IMAGES)
    model.eval()
    model.backbone = quantized(model.backbone, calibration, images.device)
    return time.perf_counter() - started


def _extraction(body: Body, setup: Setup) -> Extraction:
    """Make the extraction; `identity` lists all that features depend on.

    Rounding also depends on which images are extracted together. Random weights follow from the seed.
    """
    config, backbone, device = setup.config, setup.backbone, setup.device
    identity = {
        "backbone": backbone.spec,
        "weights": backbone.weights.digest or f"random, seed {config.seed}",
        "dataset": setup.splits.digest,
        "precision": config.precision,
        "compile": config.compile,
        "folded": config.runs_folded,
        "layout": setup.layout,
        "device": devices.present()[str(device)],
        "threads": torch.get_num_threads(),
        "cropped on the device": setup.images.resident_bytes is not None,
        "preprocessing": asdict(backbone.preprocessing),
        "extractor": _extractor(setup),
        "libraries": {name: package_version(name) for name in ("torch", "torchvision", "timm")},
        "source": [SOURCES[Spec.parse(backbone.spec).source].versions, plugins.fingerprint()],
    }
    return Extraction(_without_head(body, setup), identity)


def _extractor(setup: Setup) -> list[str]:
    """Return what an extractor is made from. An int8 one is calibrated on the training images."""
    extractor = setup.regime.extractor
    if extractor == "float":
        return [extractor]
    return [extractor, torch.backends.quantized.engine, *setup.splits.train.files]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a pass over a split found."""

    loss: float
    accuracy: float
    predicted: list[int]
    confidences: list[float]
    fault: str
    """What is not finite, such as `loss was NaN`; empty if all is, and only then the other figures mean something."""


def work_of(step: StepWork, setup: Setup) -> Work | None:
    """Return the work of the first step, which has the usual batch size; None if nothing trains."""
    if setup.optimizer is None:
        return None
    model, first = setup.model, batch_bounds(len(setup.splits.train), setup.config.batch_size)[0]
    return Work(
        step_images=first[1] - first[0],
        forward_flops=step.forward_flops,
        backward_flops=step.backward_flops,
        saved_activation_bytes=step.saved_bytes,
        parameter_bytes=tensor_bytes([*model.parameters(), *(weight for _, weight in quantized_weights(model))]),
        gradient_bytes=tensor_bytes(setup.freezing.parameters),
        optimizer_state_bytes=optimizer_state_bytes(setup.optimizer),
    )


def _train_pass(
    step: TrainStep, batches: Inputs, config: TrainConfig, epoch: int, clock: Clock, work: StepWork | None
) -> Pass:
    step.start()
    # Closed, so that nothing loads further batches after an error.
    with closing(batches.training(config.batch_size, seed=config.seed, epoch=epoch, mark=clock.mark)) as epoch_batches:
        for inputs, labels in epoch_batches:
            step.run(inputs, labels, clock.mark, work)
            work = None
    loss_sum, correct = step.sums()
    loss = loss_sum / len(batches)
    return Pass(
        loss=loss,
        accuracy=correct / len(batches),
        predicted=[],
        confidences=[],
        fault=fault_of(loss),
    )


def val_pass(evaluation: Evaluation, batches: Inputs, loss_function: Loss, config: TrainConfig) -> Pass:
    """Evaluate all validation inputs."""
    with closing(batches.evaluation(config.batch_size)) as pass_batches:
        found, count = evaluation.over(pass_batches, loss_function), len(batches)
    loss = found.loss_sum / count
    outputs_fault = f"outputs of {found.unknown} of {count} images were not finite" if found.unknown else ""
    return Pass(
        loss=loss,
        accuracy=found.correct / count,
        predicted=found.predicted,
        confidences=[round(value, 6) for value in found.confidences],
        fault=fault_of(loss) or outputs_fault,
    )


def fault_of(loss: float) -> str:
    """Say how a loss is not finite; empty if it is."""
    if math.isfinite(loss):
        return ""
    return "loss was NaN" if math.isnan(loss) else "loss was infinite"


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Keep the garbage collector out of a timed epoch."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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
    notes += _other_work(loop)
    if loop.inference and loop.inference.failure:
        notes.append(f"the backbone ran as it is, since as a network for inference {loop.inference.failure}")
    if loop.extraction and loop.extraction.spent == 0:
        notes.append("features were cached, so the memory of their extraction is unknown")
    if setup.way.others:
        notes.append(f"memory is that of the training's own process, without {setup.way.others}")
    if not setup.images.decoded_once:
        notes.append("images were decoded in every epoch, so times include decoding")
    if setup.regime.trains and max(stop - start for start, stop in batch_bounds(images, size)) > size:
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


@dataclass(frozen=True, kw_only=True)
class Way:
    """What belongs to an execution: an entry of `WAYS` is all in which two executions of a config differ here.

    The optimiser's implementation differs too, see `tl.optimizers`.
    """

    layout: Callable[[torch.device, str], str]
    """Device and precision → layout of tensors, a key of `LAYOUTS`."""
    images: Callable[[Splits, Backbone, torch.device, str, Regime], _Images]
    step: Callable[..., TrainStep]
    """Makes a step of the graphs, or None, and the arguments of `TrainStep`."""
    evaluation: Callable[..., Evaluation]
    """Makes an evaluation of the graphs, or None, and the arguments of `Evaluation`."""
    graphs: bool
    """True if CUDA graphs may be used."""
    timed: Callable[[], AbstractContextManager[None]]
    """The context of a timed epoch."""
    others: str = ""
    """Other processes that hold memory of the training, in words; empty if there are none."""


WAYS: dict[str, Way] = {
    "fast": Way(
        layout=memory_format,
        images=_stored_images,
        step=lambda graphs, *given: GraphedStep(*given, graphs=graphs) if graphs else TrainStep(*given),
        evaluation=lambda graphs, *given: GraphedEvaluation(*given, graphs=graphs) if graphs else Evaluation(*given),
        graphs=True,
        timed=_without_garbage_collection,
    ),
    "plain": Way(
        layout=lambda device, precision: "contiguous",
        images=_loaded_images,
        step=lambda graphs, *given: PlainStep(*given),
        evaluation=lambda graphs, *given: PlainEvaluation(*given),
        graphs=False,
        timed=nullcontext,
        others=f"its loader's {WORKERS} worker processes",
    ),
}
"""The way of each execution of `tl.config.EXECUTIONS`."""
