"""What a training run returns: plain data that can be written down, and the trained model beside it."""

from __future__ import annotations

import statistics
from typing import Any

from pydantic import Field

from tl.config import TrainConfig
from tl.regimes import REGIMES
from tl.strict import Strict
from tl.weights import Weights


class Phases(Strict):
    """Seconds of an epoch by phase; together they are the whole epoch."""

    data: float = Field(description="reading, cropping and stacking training images on the CPU")
    transfer: float = Field(description="training images onto the device, and normalising them")
    forward: float = Field(description="of training steps, with the loss")
    backward: float
    optimizer: float
    validation: float = Field(description="the validation pass, its images included")
    other: float = Field(description="what the phases leave of the whole")


class Work(Strict):
    """Exact work and memory of the first training step; no noise."""

    step_images: int = Field(description="images in that step")
    forward_flops: int = Field(description="of the step: a multiplication and an addition count as two")
    backward_flops: int
    saved_activation_bytes: int = Field(description="kept for the backward pass, each storage once, without parameters")
    parameter_bytes: int
    gradient_bytes: int
    optimizer_state_bytes: int


class EpochResult(Strict):
    """One epoch: a training pass and a validation pass; where nothing is trained, a validation pass alone."""

    epoch: int = Field(ge=0, description="counted from 0")
    learning_rate: float | None = Field(description="this and all of training: None without a training pass")
    train_seconds: float | None
    val_seconds: float
    train_loss: float | None = Field(description="mean over images, while training; None if not finite")
    train_accuracy: float | None = Field(
        description="share in [0, 1], running while the weights change, on augmented images"
    )
    val_loss: float | None
    val_accuracy: float
    phases: Phases | None = Field(
        None, description="None without a training pass, and in records before version 2 of the format"
    )

    @property
    def seconds(self) -> float | None:
        """Training plus validation; None without a training pass: half an epoch is not comparable to a whole one."""
        return None if self.train_seconds is None else self.train_seconds + self.val_seconds


class Trial(Strict):
    """What protocol `tuned` saw of one learning rate: a training without the held-out images, judged on them."""

    learning_rate: float
    held_out_accuracy: float = Field(description="share in [0, 1], at the last epoch")
    held_out_loss: float | None = Field(description="at the last epoch; None if not finite")
    seconds: float = Field(description="of the whole trial, its set-up included")


class Predictions(Strict):
    """What the model said of each validation image, in the order of the data set.

    With protocol `kfold` of each image, training images first, by the network that was trained without it.
    """

    epoch: int
    labels: list[int] = Field(description="index of the predicted class")
    confidences: list[float | None] = Field(description="softmax probability of that class; None if not finite")


class TrainResult(Strict):
    """Raw figures of one run; summaries are derived from them. `model` holds the best epoch's weights.

    With protocol `tuned` the figures are those of the training at the chosen rate. With `kfold` they are those of
    all folds together: seconds are sums, losses and accuracies means over images, memory is the largest, `best` is
    the last epoch, and there is no `model`.
    """

    config: TrainConfig
    weights: Weights
    classes: tuple[str, ...]
    device: str
    device_name: str
    threads: int = Field(description="intra-op CPU threads of torch")
    memory_format: str
    cuda_graph: bool | None = Field(
        None, description="training steps were replayed from CUDA graphs; None on other devices, and before version 4"
    )
    epochs: tuple[EpochResult, ...]
    best: Predictions = Field(description="at the first epoch that reached the best validation accuracy")
    last: Predictions
    total_params: int
    trainable_params: int
    frozen_verified: bool | None = Field(
        description="all that the regime freezes is bit-identical after training; None if it freezes nothing"
    )
    setup_seconds: float = Field(description="from the call to the first epoch: weights, network, images")
    training_seconds: float = Field(description="all training and validation passes")
    extraction_seconds: float | None = Field(
        None, description="extracting features, when it was done; None where a forward pass an epoch is"
    )
    extracting_seconds: float | None = Field(
        None, description="of `extraction_seconds` those that this training spent; 0 where all was at hand"
    )
    quantization_seconds: float | None = Field(
        None, description="calibrating and converting an int8 backbone; None with others"
    )
    features_reused: bool | None = Field(
        None, description="features were at hand: `extraction_seconds` were spent by an earlier training"
    )
    baseline_rss_bytes: int = Field(description="resident memory at the call, libraries already loaded")
    peak_rss_bytes: int = Field(description="high-water mark of resident memory")
    memory_method: str
    cuda_allocated_bytes: int | None = Field(None, description="peak of torch's allocations on the GPU")
    cuda_reserved_bytes: int | None = Field(None, description="peak of what torch's allocator held on the GPU")
    train_rss_bytes: int | None = Field(None, description="high-water mark of resident memory in training passes")
    val_rss_bytes: int | None = Field(
        None, description="the same in validation passes; memory that the C library keeps from training is in it"
    )
    cuda_train_allocated_bytes: int | None = Field(None, description="torch's peak on the GPU in training passes")
    cuda_val_allocated_bytes: int | None = Field(None, description="torch's peak on the GPU in validation passes")
    gpu_process_bytes: int | None = Field(
        None, description="NVML: what the process held on the GPU after training, context included; None if not listed"
    )
    mps_current_bytes: int | None = Field(None, description="Metal: largest of tensors at the end of a pass")
    mps_driver_bytes: int | None = Field(
        None, description="Metal: largest of what the driver held at the end of a pass"
    )
    resident_image_bytes: int | None = Field(
        None, description="images in the GPU's memory, part of `cuda_allocated_bytes`; None on other devices"
    )
    work: Work | None = Field(
        None, description="None where nothing is trained, and in records before version 2 of the format"
    )
    trials: tuple[Trial, ...] = Field((), description="of protocol `tuned`, one a learning rate, ascending")
    learning_rate_chosen: float | None = Field(None, description="of protocol `tuned`; None with the others")
    tuning_seconds: float | None = Field(None, description="all trials together; None without them")
    folds: tuple[tuple[EpochResult, ...], ...] = Field((), description="of protocol `kfold`: the epochs of each fold")
    notes: tuple[str, ...] = ()
    model: Any = Field(None, exclude=True, repr=False)

    @property
    def val_accuracy_best(self) -> float:
        """The best of all epochs, chosen on the images that it is measured on, so it flatters; the last one's but with
        protocol `fixed`."""
        return self.epochs[self.best.epoch].val_accuracy

    @property
    def val_accuracy_last(self) -> float:
        """At the last epoch."""
        return self.epochs[-1].val_accuracy

    @property
    def learning_rate(self) -> float | None:
        """At the first epoch: the config's, or the chosen one; None where nothing is trained."""
        if not REGIMES[self.config.regime].trains:
            return None
        return self.config.learning_rate if self.learning_rate_chosen is None else self.learning_rate_chosen

    @property
    def accuracy_counts(self) -> bool:
        """False where weights are random though the regime starts from pretrained ones."""
        return accuracy_counts(self.config.regime, self.weights.kind)

    @property
    def train_epoch_seconds(self) -> float | None:
        """Median training pass, the first (warm-up) left out; None with fewer than two epochs."""
        return _median([row.train_seconds for row in self.epochs[1:] if row.train_seconds is not None])

    @property
    def val_epoch_seconds(self) -> float | None:
        """Median validation pass, the first left out; None with fewer than two epochs."""
        return _median([row.val_seconds for row in self.epochs[1:]])

    @property
    def epoch_seconds(self) -> float | None:
        """Median of training plus validation, the first epoch left out; None with fewer than two epochs."""
        return _median([row.seconds for row in self.epochs[1:] if row.seconds is not None])

    @property
    def once_seconds(self) -> float:
        """Quantisation and extraction, which come before all epochs; 0 for regimes that do neither."""
        return (self.extraction_seconds or 0.0) + (self.quantization_seconds or 0.0)

    @property
    def cold_seconds(self) -> float | None:
        """Quantisation, extraction and first epoch: what there is to wait for before an epoch is a warm one."""
        first = self.epochs[0].seconds
        return None if first is None else first + self.once_seconds

    def phase_seconds(self, name: str) -> float | None:
        """Median of a phase over all epochs but the first; None with fewer than two, or where it was not measured."""
        return _median([getattr(row.phases, name) for row in self.epochs[1:] if row.phases])

    @property
    def peak_memory_bytes(self) -> int | None:
        """On CUDA what torch allocated at its peak without the images; elsewhere resident memory above the baseline.

        None where the mark is that of the whole process and this run did not raise it, and where features were at
        hand, since their extraction is most of it: unknown, not 0.
        """
        if self.features_reused:
            return None
        if self.cuda_allocated_bytes is not None:
            return self.cuda_allocated_bytes - (self.resident_image_bytes or 0)
        return (self.peak_rss_bytes - self.baseline_rss_bytes) or None


def accuracy_counts(regime: str, weights: str) -> bool:
    """Whether the accuracy of a regime says something with weights of that kind (`pretrained` or `random`)."""
    return weights == "pretrained" or REGIMES[regime].start == "random"


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
