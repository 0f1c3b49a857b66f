"""`train_model`: the one training loop that every regime shares.

It follows the PyTorch transfer-learning tutorial's protocol (a validation pass every epoch, the best weights
kept and loaded at the end) and reports what it did: raw figures of every epoch, predictions for every
validation image, and proof that a frozen backbone stayed as it was.
"""

from __future__ import annotations

import gc
import hashlib
import math
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import timm
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LRScheduler

from tl import devices
from tl.backbones import Backbone, Classifier, make_backbone
from tl.batches import Batches, resident_pixels
from tl.clock import Clock
from tl.config import TrainConfig
from tl.datasets import Splits
from tl.devices import LAYOUTS, memory_format, seeded
from tl.errors import ConfigError, NotApplicable
from tl.features import EXTRACTION_BATCH, Extraction, Features
from tl.images import batch_bounds, open_store
from tl.memory import MemoryMarks
from tl.precision import autocast, check_precision, single_precision
from tl.quantize import CALIBRATION_IMAGES, quantized, quantized_weights
from tl.regimes import REGIMES, Regime
from tl.results import EpochResult, Note, Phases, Predictions, TrainResult, Work
from tl.seeding import seed_for
from tl.step import (
    Body,
    Evaluation,
    GraphedEvaluation,
    GraphedStep,
    Graphs,
    Loss,
    TrainStep,
    own_stream,
)
from tl.weights import Weights
from tl.work import StepWork, optimizer_state_bytes, tensor_bytes


def train_model(
    config: TrainConfig,
    splits: Splits,
    *,
    device: str = "auto",
    weights: Weights | None = None,
    weights_dir: str | Path | None = None,
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
        weights_dir: a folder of weight files, looked at first.
        on_epoch: called after each epoch, outside its timing.
        keep: which epoch's weights and predictions count as `best`; with `last` the validation images choose none.
        cuda_graphs: replay steps from CUDA graphs, on a GPU where that works. It changes times alone.

    Returns:
        A `TrainResult`; its `model` is a `Classifier` in eval mode with the weights of the epoch that was kept.

    Raises `UserError` for what the caller can mend: `ConfigError`, `DataError`, `WeightsError`, `DeviceError`,
    and `NotApplicable` for a regime that has no meaning with these classes or weights. On a CPU the same config,
    images and thread count give the same losses (features at hand up to rounding, where they were extracted for
    another part of the images); on other devices up to rounding, since some of their operations
    add in no fixed order.
    """
    if config.protocol != "fixed":
        raise ConfigError(
            f"protocol={config.protocol!r}: train_model trains once; tl.run_protocol follows any protocol"
        )
    started = time.perf_counter()
    target = devices.resolve(device)
    check_precision(config.precision, target)
    memory = MemoryMarks(target)
    regime = REGIMES[config.regime]
    policy = "random" if regime.start == "random" else config.weights
    if weights and policy != "auto" and weights.kind != policy:
        raise ConfigError(f"weights={weights.kind!r}: regime {config.regime!r} was to start from {policy} weights")
    backbone = make_backbone(
        config.backbone,
        weights=weights or policy,
        weights_dir=weights_dir,
        seed=config.seed,
        own_head_for=splits.classes if regime.head == "own" else None,
    )
    model = Classifier(backbone, len(splits.classes), config)
    layout = memory_format(target, config.precision)
    model.to(device=target, memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    total_params = sum(p.numel() for p in model.parameters())
    store = open_store(splits)
    resident = resident_pixels(store, target)
    train_images, val_images = (
        Batches(store, images, backbone.preprocessing, target, memory_format=LAYOUTS[layout], resident=resident)
        for images in (splits.train, splits.val)
    )
    quantization_seconds = _quantize(model, config, train_images) if regime.extractor == "int8" else None
    trainable = _freeze(model, regime)
    optimizer = OPTIMIZER_BUILDERS[config.optimizer](config, trainable) if trainable else None
    schedule = SCHEDULE_BUILDERS[config.schedule](config, optimizer) if optimizer else None
    before = _digest(model.backbone) if regime.must_stay_frozen else None
    kept_bytes = 0 if resident is None else resident.nbytes
    if resident is not None and regime.features == "each step":
        kept_bytes += val_images.keep_centred()
    graphs = Graphs() if target.type == "cuda" and cuda_graphs else None

    clock, counted = Clock(target), StepWork()
    work: StepWork | None = counted
    history: list[EpochResult] = []
    best: _Best | None = None
    with seeded(seed_for("train", config.seed)), single_precision(config.precision), own_stream(target):
        body: Body = _compiled(model.backbone) if config.compile else model.backbone
        train: Batches | Features = train_images
        val: Batches | Features = val_images
        extraction: Extraction | None = None
        setup_seconds = time.perf_counter() - started - (quantization_seconds or 0.0)
        if regime.features == "once":
            model.eval()
            extraction = _extraction(body, backbone, config, splits, target, on_device=resident is not None)
            train, val = extraction.features(train_images, config.views), extraction.features(val_images, 1)
            body = nn.Identity()
        loss_function = LOSS_BUILDERS[config.loss](config)
        step = _step(model, body, loss_function, optimizer, config, target, graphs) if optimizer else None
        evaluation = _evaluation(model, body, config, target, graphs)
        for epoch in range(config.passes):
            rate = optimizer.param_groups[0]["lr"] if optimizer else None
            trained, train_seconds = None, 0.0
            with _garbage_later():
                memory.begin("train" if step else "val")
                clock.start()
                if step:
                    set_mode(model, regime)
                    trained = _train_pass(step, train, config, epoch, clock, work)
                    train_seconds = clock.elapsed()
                    memory.begin("val")
                    clock.mark(None)
                model.eval()
                judged = _val_pass(evaluation, val, loss_function, config)
                clock.mark("validation")
                whole, parts = clock.read()
                memory.end()
            if schedule:
                schedule.step()
            work = None  # counted on the first step alone, which is warm-up anyway
            history.append(
                EpochResult(
                    epoch=epoch,
                    learning_rate=rate,
                    train_seconds=train_seconds if trained else None,
                    val_seconds=whole - train_seconds,
                    phases=Phases(**parts, other=whole - sum(parts.values())) if trained else None,
                    train_loss=_finite(trained.loss) if trained else None,
                    train_accuracy=trained.accuracy if trained else None,
                    val_loss=_finite(judged.loss),
                    val_accuracy=judged.accuracy,
                )
            )
            last = Predictions(epoch=epoch, labels=judged.predicted, confidences=judged.confidences)
            if best is None or keep == "last" or judged.accuracy > best.accuracy:
                kept = model.head if regime.must_stay_frozen else model
                copied = {key: value.detach().clone() for key, value in kept.state_dict().items()}
                best = _Best(accuracy=judged.accuracy, predictions=last, state=copied, owner=kept)
            if on_epoch:
                on_epoch(history[-1])
        assert best is not None  # there is at least one pass
        best.owner.load_state_dict(best.state)
    model.eval()
    return TrainResult(
        config=config,
        weights=backbone.weights,
        classes=splits.classes,
        device=str(target),
        device_name=devices.present()[str(target)],
        threads=torch.get_num_threads(),
        memory_format=layout,
        cuda_graph=isinstance(step, GraphedStep) and step.replayed if target.type == "cuda" else None,
        epochs=tuple(history),
        best=best.predictions,
        last=last,
        total_params=total_params,
        trainable_params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        frozen_verified=None if before is None else _digest(model.backbone) == before,
        setup_seconds=setup_seconds,
        extraction_seconds=extraction.seconds if extraction else None,
        extracting_seconds=extraction.spent if extraction else None,
        quantization_seconds=quantization_seconds,
        features_reused=extraction.spent == 0 if extraction else None,
        training_seconds=sum((row.train_seconds or 0.0) + row.val_seconds for row in history),
        **memory.figures(),
        resident_image_bytes=kept_bytes if target.type == "cuda" else None,
        work=_work(counted, config, len(splits.train), model, optimizer) if optimizer else None,
        notes=_notes(
            history, splits, backbone.weights, config, graphs, extraction, decoded_once=store.pixels is not None
        ),
        model=model,
    )


def _compiled(backbone: nn.Module) -> Body:
    """Compiled when it is first called. Raises `NotApplicable` where there is no compiler, or none for Python."""
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


def _quantize(model: Classifier, config: TrainConfig, images: Batches) -> float:
    """Put an int8 backbone in the place of the model's; the seconds it took. Raises `NotApplicable`."""
    if config.precision != "fp32" or config.compile:
        raise NotApplicable("an int8 backbone knows neither another precision nor torch.compile: fp32 without it runs")
    started = time.perf_counter()
    calibration = images.sample(EXTRACTION_BATCH["cpu"], CALIBRATION_IMAGES)
    model.eval()
    model.backbone = quantized(model.backbone, calibration, images.device)
    return time.perf_counter() - started


def _step(
    model: Classifier,
    body: Body,
    loss_function: Loss,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    device: torch.device,
    graphs: Graphs | None,
) -> TrainStep:
    arguments = (model, body, loss_function, optimizer, config, device)
    return GraphedStep(*arguments, graphs=graphs) if graphs else TrainStep(*arguments)


def _evaluation(
    model: Classifier, body: Body, config: TrainConfig, device: torch.device, graphs: Graphs | None
) -> Evaluation:
    arguments = (model, body, config.precision, device)
    return GraphedEvaluation(*arguments, graphs=graphs) if graphs else Evaluation(*arguments)


def _extraction(
    body: Body, backbone: Backbone, config: TrainConfig, splits: Splits, device: torch.device, *, on_device: bool
) -> Extraction:
    """Features are the same where all of this is, up to rounding that depends on what was extracted together.

    Random weights follow from the seed.
    """

    def forward(images: torch.Tensor) -> torch.Tensor:
        with autocast(config.precision, device):
            return body(images)

    identity = {
        "backbone": backbone.spec,
        "weights": backbone.weights.digest or f"random, seed {config.seed}",
        "dataset": splits.digest,
        "precision": config.precision,
        "compile": config.compile,
        "device": devices.present()[str(device)],
        "threads": torch.get_num_threads(),
        "cropped on the device": on_device,
        "preprocessing": asdict(backbone.preprocessing),
        "libraries": [torch.__version__, torchvision.__version__, timm.__version__],
    }
    return Extraction(forward, identity)


@dataclass(frozen=True, kw_only=True)
class _Pass:
    loss: float
    accuracy: float
    predicted: list[int]
    confidences: list[float | None]


@dataclass(frozen=True, kw_only=True)
class _Best:
    accuracy: float
    predictions: Predictions
    state: dict[str, torch.Tensor]
    owner: nn.Module


def _work(step: StepWork, config: TrainConfig, images: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> Work:
    """Work of the first step, the largest number of images a step has but for a lonely last one."""
    first = batch_bounds(images, config.batch_size)[0]
    return Work(
        step_images=first[1] - first[0],
        forward_flops=step.forward_flops,
        backward_flops=step.backward_flops,
        saved_activation_bytes=step.saved_bytes,
        parameter_bytes=tensor_bytes([*model.parameters(), *(weight for _, weight in quantized_weights(model))]),
        gradient_bytes=tensor_bytes(p for p in model.parameters() if p.requires_grad),
        optimizer_state_bytes=optimizer_state_bytes(optimizer),
    )


def _freeze(model: Classifier, regime: Regime) -> list[nn.Parameter]:
    """Switch gradients on and off, and return what the optimiser may change."""
    model.backbone.requires_grad_(regime.trains_backbone)
    model.head.requires_grad_(regime.trains_head)
    return [p for p in model.parameters() if p.requires_grad]


def set_mode(model: Classifier, regime: Regime) -> None:
    """Train mode as the regime wants it: a frozen backbone stays in eval mode."""
    model.train()
    model.backbone.train(regime.backbone_mode == "train")


def _train_pass(
    step: TrainStep, batches: Batches | Features, config: TrainConfig, epoch: int, clock: Clock, work: StepWork | None
) -> _Pass:
    step.start()
    for inputs, labels in batches.training(config.batch_size, seed=config.seed, epoch=epoch, mark=clock.mark):
        step.run(inputs, labels, clock.mark, work)
        work = None
    return _Pass(
        loss=step.loss_sum.item() / len(batches),
        accuracy=step.correct.item() / len(batches),
        predicted=[],
        confidences=[],
    )


def _val_pass(evaluation: Evaluation, batches: Batches | Features, loss_function: Loss, config: TrainConfig) -> _Pass:
    loss_sum = torch.zeros((), device=batches.device)
    outputs, truths = [], []
    with torch.inference_mode():
        for inputs, labels in batches.evaluation(config.batch_size):
            logits = evaluation.run(inputs)
            loss_sum += loss_function(logits, labels) * len(labels)
            outputs.append(logits)
            truths.append(labels)
        confidences, predicted = torch.cat(outputs).softmax(1).max(1)
        correct = (predicted == torch.cat(truths)).sum()
    return _Pass(
        loss=loss_sum.item() / len(batches),
        accuracy=correct.item() / len(batches),
        predicted=predicted.tolist(),
        confidences=[None if (v := _finite(value)) is None else round(v, 6) for value in confidences.tolist()],
    )


def _focal(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    per_image = cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    share = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    return ((1 - share) ** 2 * per_image).mean()


def _with_momentum(optimizer: torch.optim.SGD) -> torch.optim.SGD:
    """Begin momentum at zero, which gives the first step that torch takes without.

    Torch's fused SGD begins it with memory as it finds it, and trains on that where the first step is skipped
    because scaled gradients have overflowed (fp16).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


OPTIMIZER_BUILDERS: dict[str, Callable[[TrainConfig, list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda c, parameters: _with_momentum(
        torch.optim.SGD(parameters, lr=c.learning_rate, momentum=c.momentum, weight_decay=c.weight_decay, fused=True)
    ),
    "adamw": lambda c, parameters: torch.optim.AdamW(
        parameters,
        lr=c.learning_rate,
        betas=(c.momentum, 0.999),
        weight_decay=c.weight_decay,
        fused=True,
        capturable=parameters[0].is_cuda,  # counts its steps where a CUDA graph can
    ),
}
SCHEDULE_BUILDERS: dict[str, Callable[[TrainConfig, torch.optim.Optimizer], LRScheduler]] = {
    "step": lambda c, optimizer: torch.optim.lr_scheduler.StepLR(optimizer, c.step_size, c.gamma),
    "cosine": lambda c, optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.epochs),
    "constant": lambda c, optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
}
LOSS_BUILDERS: dict[str, Callable[[TrainConfig], Loss]] = {
    "cross_entropy": lambda c: partial(cross_entropy, label_smoothing=c.label_smoothing),
    "focal": lambda c: partial(_focal, smoothing=c.label_smoothing),
}


def _digest(module: nn.Module) -> str:
    """SHA-256 over all parameters, int8 weights and buffers, bit for bit."""
    sha = hashlib.sha256()
    integers = ((name, value.int_repr()) for name, value in quantized_weights(module))
    # Not `state_dict` alone: it leaves out buffers that are not saved.
    for name, value in [*module.named_parameters(), *module.named_buffers(), *integers]:
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


@contextmanager
def _garbage_later() -> Iterator[None]:
    """Keep the garbage collector out of a timed epoch."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _notes(
    history: list[EpochResult],
    splits: Splits,
    weights: Weights,
    config: TrainConfig,
    graphs: Graphs | None,
    extraction: Extraction | None,
    *,
    decoded_once: bool,
) -> tuple[Note, ...]:
    """What a reader of the figures must know."""
    images, size = len(splits.train), config.batch_size
    fallbacks, notes = [], []
    if splits.stand_in:
        fallbacks.append(Note(about="images", text=f"the images are {splits.stand_in}"))
    if weights.reason:
        fallbacks.append(Note(about="weights", text=f"random weights: {weights.reason}"))
    if graphs and graphs.failure:
        notes.append(f"without CUDA graphs: {graphs.failure}")
    if extraction and extraction.spent == 0:
        notes.append("features were at hand: the memory that their extraction took is unknown")
    if not decoded_once:
        notes.append("images were decoded anew in every epoch: times hold more than with decoded images at hand")
    if any((row.train_loss is None and row.train_seconds is not None) or row.val_loss is None for row in history):
        notes.append("the loss was not finite in at least one epoch")
    if REGIMES[config.regime].trains and max(stop - start for start, stop in batch_bounds(images, size)) > size:
        notes.append(f"{images} images leave one over at batch size {size}: it joins the batch before")
    return (*fallbacks, *(Note(about="figures", text=text) for text in notes))
