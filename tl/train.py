"""`train_model`: the one training loop that every regime shares.

It follows the PyTorch transfer-learning tutorial's protocol (a validation pass every epoch, the best weights
kept and loaded at the end) and reports what it did: raw figures of every epoch, predictions for every
validation image, and proof that a frozen backbone stayed as it was.
"""

from __future__ import annotations

import gc
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tl import devices
from tl.backbones import Classifier, make_backbone
from tl.batches import Batches
from tl.config import TrainConfig
from tl.datasets import Splits
from tl.images import open_store
from tl.memory import PeakMemory
from tl.regimes import REGIMES, Regime
from tl.results import EpochResult, Predictions, TrainResult
from tl.seeding import seed_for
from tl.weights import Weights

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
EVAL_BATCH_SIZE = 16
"""Validation is not part of the training protocol: its batch size changes time and memory, not results."""


def train_model(
    config: TrainConfig,
    splits: Splits,
    *,
    device: str = "auto",
    weights: Weights | None = None,
    weights_dir: str | Path | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> TrainResult:
    """Train a new head, and with some regimes the backbone, on `splits`.

    Args:
        config: what to train; see `TrainConfig`.
        splits: training and validation images, from `tl.load_splits`.
        device: `cpu`, `cuda[:i]`, `mps` or `auto`.
        weights: what the backbone starts from; by default found by `config.weights`.
        weights_dir: a folder of weight files, looked at first.
        on_epoch: called after each epoch, outside its timing.

    Returns:
        A `TrainResult`; its `model` is a `Classifier` in eval mode with the weights of the best epoch.

    Raises `UserError` (its kinds: `ConfigError`, `DataError`, `WeightsError`, `DeviceError`) for what the
    caller can mend. The same config, images, device and thread count give the same losses.
    """
    started = time.perf_counter()
    target = devices.resolve(device)
    memory = PeakMemory()
    if target.type == "cuda":
        torch.cuda.reset_peak_memory_stats(target)
    regime = REGIMES[config.regime]
    backbone = make_backbone(
        config.backbone,
        weights=weights or ("random" if regime.start == "random" else config.weights),
        weights_dir=weights_dir,
        seed=config.seed,
    )
    model = Classifier(backbone, len(splits.classes), config)
    # Convolutions run faster on this layout, on two-core CPUs and on GPUs alike; results are the same.
    model.to(device=target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(config, _freeze(model, regime))
    schedule = make_schedule(config, optimizer)
    loss_function = make_loss(config)
    before = _digest(model.backbone) if regime.must_stay_frozen else None
    store = open_store(splits)
    train = Batches(store, splits.train, backbone.preprocessing, target)
    val = Batches(store, splits.val, backbone.preprocessing, target)

    history: list[EpochResult] = []
    best: _Best | None = None
    setup_seconds = time.perf_counter() - started
    with _own_random_state(target, seed_for("train", config.seed)):
        for epoch in range(config.epochs):
            rate = optimizer.param_groups[0]["lr"]
            with _garbage_later():
                begun = _now(target)
                set_mode(model, regime)
                trained = _train_pass(model, regime, train, loss_function, optimizer, config, epoch)
                between = _now(target)
                model.eval()
                judged = _val_pass(model, val, loss_function, config)
                ended = _now(target)
            schedule.step()
            history.append(
                EpochResult(
                    epoch=epoch,
                    learning_rate=rate,
                    train_seconds=between - begun,
                    val_seconds=ended - between,
                    train_loss=_finite(trained.loss),
                    train_accuracy=trained.accuracy,
                    val_loss=_finite(judged.loss),
                    val_accuracy=judged.accuracy,
                )
            )
            last = Predictions(epoch=epoch, labels=judged.predicted, confidences=judged.confidences)
            if best is None or judged.accuracy > best.accuracy:
                kept = model.head if regime.must_stay_frozen else model
                copied = {key: value.detach().clone() for key, value in kept.state_dict().items()}
                best = _Best(accuracy=judged.accuracy, predictions=last, state=copied, owner=kept)
            if on_epoch:
                on_epoch(history[-1])
    assert best is not None  # config.epochs ≥ 1
    best.owner.load_state_dict(best.state)
    model.eval()
    on_cuda = target.type == "cuda"
    return TrainResult(
        config=config,
        weights=backbone.weights,
        classes=splits.classes,
        device=str(target),
        device_name=devices.present()[str(target)],
        threads=torch.get_num_threads(),
        memory_format="channels_last",
        epochs=tuple(history),
        best=best.predictions,
        last=last,
        total_params=sum(p.numel() for p in model.parameters()),
        trainable_params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        frozen_verified=None if before is None else _digest(model.backbone) == before,
        setup_seconds=setup_seconds,
        training_seconds=sum(row.train_seconds + row.val_seconds for row in history),
        baseline_rss_bytes=memory.baseline_bytes,
        peak_rss_bytes=memory.peak_bytes(),
        memory_method=memory.method,
        cuda_allocated_bytes=torch.cuda.max_memory_allocated(target) if on_cuda else None,
        cuda_reserved_bytes=torch.cuda.max_memory_reserved(target) if on_cuda else None,
        notes=_notes(history, len(splits.train), config.batch_size),
        model=model,
    )


@dataclass(frozen=True, kw_only=True)
class _Pass:
    loss: float
    accuracy: float
    predicted: list[int]
    confidences: list[float]


@dataclass(frozen=True, kw_only=True)
class _Best:
    accuracy: float
    predictions: Predictions
    state: dict[str, torch.Tensor]
    owner: nn.Module


def _freeze(model: Classifier, regime: Regime) -> list[nn.Parameter]:
    """Switch gradients on and off, and return what the optimiser may change."""
    model.backbone.requires_grad_(regime.trains_backbone)
    return [p for p in model.parameters() if p.requires_grad]


def set_mode(model: Classifier, regime: Regime) -> None:
    """Train mode as the regime wants it: a frozen backbone stays in eval mode."""
    model.train()
    model.backbone.train(regime.backbone_mode == "train")


def _train_pass(
    model: Classifier,
    regime: Regime,
    batches: Batches,
    loss_function: Loss,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
) -> _Pass:
    # Sums stay on the device: reading one would make the host wait for every batch.
    loss_sum = torch.zeros((), device=batches.device)
    correct = torch.zeros((), device=batches.device, dtype=torch.int64)
    for images, labels in batches.training(config.batch_size, seed=config.seed, epoch=epoch):
        optimizer.zero_grad(set_to_none=True)
        with _precision(config, batches.device):
            with torch.set_grad_enabled(regime.trains_backbone):
                features = model.backbone(images)
            logits = model.head(features)
            loss = loss_function(logits.float(), labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
    return _Pass(
        loss=loss_sum.item() / len(batches), accuracy=correct.item() / len(batches), predicted=[], confidences=[]
    )


def _val_pass(model: Classifier, batches: Batches, loss_function: Loss, config: TrainConfig) -> _Pass:
    loss_sum = torch.zeros((), device=batches.device)
    outputs, truths = [], []
    with torch.inference_mode(), _precision(config, batches.device):
        for images, labels in batches.evaluation(EVAL_BATCH_SIZE):
            logits = model(images).float()
            loss_sum += loss_function(logits, labels) * len(labels)
            outputs.append(logits)
            truths.append(labels)
        confidences, predicted = torch.cat(outputs).softmax(1).max(1)
        correct = (predicted == torch.cat(truths)).sum()
    return _Pass(
        loss=loss_sum.item() / len(batches),
        accuracy=correct.item() / len(batches),
        predicted=predicted.tolist(),
        confidences=[round(value, 6) for value in confidences.tolist()],
    )


def make_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a config, over the parameters that train."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, betas=(config.momentum, 0.999), weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)


def make_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule of a config; stepped once an epoch."""
    if config.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.epochs)
    if config.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=config.step_size, gamma=config.gamma)


def make_loss(config: TrainConfig) -> Loss:
    """The loss of a config: mean over images of logits `(B, classes)` against labels `(B,)`."""

    def focal(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        per_image = cross_entropy(logits, labels, reduction="none", label_smoothing=config.label_smoothing)
        share = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        return ((1 - share) ** 2 * per_image).mean()

    def plain(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, labels, label_smoothing=config.label_smoothing)

    return focal if config.loss == "focal" else plain


def _precision(config: TrainConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")


def _digest(module: nn.Module) -> str:
    """SHA-256 over all parameters and buffers, bit for bit."""
    sha = hashlib.sha256()
    for name, value in module.state_dict().items():
        sha.update(name.encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def _now(device: torch.device) -> float:
    """Seconds, after all work queued on the device is done. Called at the ends of passes only."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


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


@contextmanager
def _own_random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout and drop-path draw from `seed`; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _notes(history: list[EpochResult], images: int, batch_size: int) -> tuple[str, ...]:
    notes = []
    if any(row.train_loss is None or row.val_loss is None for row in history):
        notes.append("the loss was not finite in at least one epoch")
    if batch_size > 1 and images > batch_size and images % batch_size == 1:
        notes.append(f"{images} images leave one over at batch size {batch_size}: it joins the batch before")
    return tuple(notes)
