"""The result of a training: plain data that can be saved as a record, and the trained model."""

from __future__ import annotations

import statistics
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tl.choice import Choice
from tl.config import TrainConfig
from tl.regimes import REGIMES
from tl.strict import Count, PassSeconds, Positive, Seconds, Share, Strict
from tl.weights import Weights


class Phases(Strict):
    """Seconds of an epoch by phase; together they are the whole epoch.

    Clock, metrics, figures and explanations follow this list. A title is what a sentence calls a phase.
    """

    data: Seconds = Field(
        title="reading and cropping images", description="reading, cropping and stacking training images"
    )
    transfer: Seconds = Field(
        title="moving and normalising images",
        description="moving and normalising training images; in `data` where they live on the GPU",
    )
    forward: Seconds = Field(title="forward passes", description="forward passes of training steps, with the loss")
    backward: Seconds = Field(title="backward passes", description="backward passes")
    optimizer: Seconds = Field(title="the optimiser", description="optimiser steps and zeroing of gradients")
    validation: Seconds = Field(title="validation", description="the validation pass, its images included")
    other: float = Field(title="the rest", description="what the phases leave of the whole")


PHASES = tuple(Phases.model_fields)
MEASURED_PHASES = tuple(name for name in PHASES if name != "other")
"""Those that a clock marks; `other` is what they leave."""


class Work(Strict):
    """Exact work and memory of a training step, free of noise."""

    step_images: Positive = Field(description="images in that step")
    forward_flops: Count = Field(description="operations of the forward pass; multiply and add count as two")
    backward_flops: Count = Field(description="operations of the backward pass, with what checkpointing runs again")
    saved_activation_bytes: Count = Field(
        description="tensors kept from forward to backward pass, each storage once, without parameters"
    )
    parameter_bytes: Count
    gradient_bytes: Count
    optimizer_state_bytes: Count


class Period(Strict):
    """A stretch of epochs in which the same parts train, of a regime whose parts join one after the other."""

    first_epoch: Count = Field(description="counted from 0; the period lasts until the next one begins")
    trainable_params: Positive
    work: Work = Field(description="of its first step")


class InferenceCost(Strict):
    """What the trained network costs in use, beside its training: raw seconds of forward passes on prepared images.

    The network is the one that `tl.load_model` gives: in eval mode, neither compiled nor folded nor replayed from a
    graph. Reading, cropping and normalising images is no part of it.
    """

    latency_seconds: tuple[Seconds, ...] = Field(
        min_length=1, description="forward passes of one image, in the order in which they ran"
    )
    batch_size: Positive = Field(description="images per pass in `batch_seconds`")
    batch_seconds: tuple[Seconds, ...] = Field(
        min_length=1, description="forward passes of `batch_size` images, which took turns with those of one image"
    )
    model_bytes: Count | None = Field(
        description="size of `model.safetensors` with all parameters and buffers; of an int8 network, which has no "
        "such file, that of its numbers with 8-bit weights. None for one in records from before it was defined"
    )
    seconds: Seconds = Field(description="all that measuring took, with its warm-up")

    @property
    def latency(self) -> float:
        """Median seconds from one prepared image to its logits."""
        return statistics.median(self.latency_seconds)

    @property
    def images_per_second(self) -> float | None:
        """Images of a batch over the median seconds of its pass; None if the clock didn't advance."""
        middle = statistics.median(self.batch_seconds)
        return self.batch_size / middle if middle else None


class EpochResult(Strict):
    """One epoch: a training and a validation pass, or only the latter if the regime trains nothing.

    A regime that fits its head at once has a single epoch.
    """

    epoch: Count = Field(description="counted from 0")
    learning_rate: float | None = Field(description="this and other figures of steps are None without any")
    train_seconds: PassSeconds | None = Field(
        description="the training pass, or the fit of the head with its predictions of training images; None without"
    )
    val_seconds: PassSeconds
    train_loss: float | None = Field(description="mean over images, while training")
    train_accuracy: Share | None = Field(
        description="share in [0, 1] on augmented images, counted while weights change; None if the task counts none"
    )
    val_loss: float | None = Field(
        description="None for task `detection`, whose networks give either losses or boxes for an image"
    )
    val_accuracy: Share = Field(description="the score of the config's task, which is accuracy for classification")
    phases: Phases | None = Field(None, description="None without steps, and in records of format version 1")

    @property
    def seconds(self) -> float | None:
        """Training plus validation; None without a training pass, since half an epoch is not comparable to a whole."""
        return None if self.train_seconds is None else self.train_seconds + self.val_seconds


class Trial(Strict):
    """Protocol `tuned`'s trial of one learning rate: trained without the held-out images, evaluated on them."""

    learning_rate: float
    held_out_accuracy: Share | None = Field(description="share in [0, 1], at the last epoch; None if it diverged")
    held_out_loss: float | None = Field(description="at the last epoch; None if it diverged")
    seconds: Seconds = Field(
        description="duration of the trial, with its set-up; an equal share if all rates were tried at once"
    )
    reason: str = Field("", description="where it diverged; empty if it did not, and before version 7")


class Probe(Strict):
    """What heads that were fitted without an image say about it, for all training images, in their order.

    No validation image has a part in it, so backbones can be chosen by it before anything is validated.
    """

    labels: list[Count] = Field(
        min_length=1, description="class predicted for each training image by a head that was fitted without it"
    )
    truth: list[Count] = Field(min_length=1, description="their true classes")
    chosen: float = Field(description="setting of the fit: neighbours (`knn`), penalty (`ridge`) or C (`logistic`)")
    logme: float | None = Field(None, description="LogME of the features (`tl.logme`); None if it is not finite")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.labels) != len(self.truth):
            raise ValueError(f"it has {len(self.labels)} labels, and {len(self.truth)} true ones")
        return self

    @property
    def right(self) -> list[bool]:
        """For each training image, True if the class predicted without it is right."""
        return [label == truth for label, truth in zip(self.labels, self.truth, strict=True)]

    @property
    def accuracy(self) -> float:
        """Share of the training images whose class is predicted without them."""
        return statistics.fmean(self.right)


Detection = tuple[Count, Share, Share, Share, Share, Share]
"""A box that was found: its class, its score, and its left, top, right and bottom edges as shares of width and height.
"""


class Predictions(Strict):
    """The model's predictions for the validation images, in the order of the data set.

    With protocol `kfold` they are for all images, training images first, each by the network trained without it.
    """

    epoch: Count
    labels: list[Count] = Field(description="index of the predicted class; empty for other tasks than classification")
    confidences: list[Share] = Field(description="softmax probability of that class; empty as before")
    probabilities: list[list[Share]] | None = Field(
        None, description="of each class, for task `multilabel`; None for others, and before version 12"
    )
    detections: list[list[Detection]] | None = Field(
        None, description="boxes of each image, for task `detection`; None for others, and before version 12"
    )

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.probabilities or self.detections or self.labels)


class Note(Strict):
    """Something that a reader of a result's figures must know; `str(note)` is its text."""

    about: Literal["images", "weights", "figures"] = Field(
        description="`images`: that they are synthetic; `weights`: that they are random although pretrained ones were "
        "looked for; `figures`: how they came about"
    )
    text: str

    def __str__(self) -> str:
        return self.text


class TrainResult(Strict):
    """Raw figures of one run; summaries are derived from them. `model` has the weights of the best epoch.

    With protocol `tuned` the figures are those of the training at the chosen rate. With `kfold` they combine all folds:
    seconds are sums, losses and accuracies are means over images, memory is the largest value, `best` is the last
    epoch, and `model` is None.
    """

    config: TrainConfig
    weights: Weights
    classes: tuple[str, ...]
    device: str
    device_name: str
    threads: Count = Field(description="intra-op CPU threads of torch")
    memory_format: str
    cuda_graph: bool | None = Field(
        None, description="True if steps were replayed from CUDA graphs; None on other devices, and before version 4"
    )
    precision: str | None = Field(
        None, description="the precision that ran: the config's, or the chosen one; None before version 10"
    )
    choice: Choice | None = Field(None, description="how precision and layout were chosen; None if they were given")
    folded_layers: Count | None = Field(
        None,
        description="BatchNorm layers that became part of a convolution; None if the backbone ran as it is, or not",
    )
    packed_layers: Count | None = Field(
        None, description="convolutions whose weights were laid out for the CPU's kernels beforehand; None as before"
    )
    lookahead: Positive | None = Field(
        None, description="batches per forward pass of a frozen backbone; None if each step has its own"
    )
    score: str | None = Field(
        None,
        description="what `val_accuracy` of an epoch is, by the task: `accuracy` or `mAP`; None before version 12, "
        "when it was always accuracy",
    )
    epochs: tuple[EpochResult, ...] = Field(min_length=1)
    best: Predictions = Field(description="predictions of the first epoch with the best validation accuracy")
    last: Predictions
    total_params: Count
    trainable_params: Count = Field(description="those that train in the last epoch")
    frozen_verified: bool | None = Field(
        description="True if all that the regime freezes is bit-identical after training, in the network as it was "
        "loaded, also if a folded copy ran; None if nothing is frozen, "
        "or if frozen layers run in train mode, which changes their buffers"
    )
    setup_seconds: Seconds = Field(description="time from the call to the first epoch: weights, network, images")
    training_seconds: Seconds = Field(description="all training and validation passes")
    extraction_seconds: Seconds | None = Field(
        None, description="extracting features once, now or earlier; None for regimes that keep no features"
    )
    extracting_seconds: Seconds | None = Field(
        None, description="the part of `extraction_seconds` spent by this training; 0 if all were cached"
    )
    head_start_seconds: Seconds | None = Field(
        None, description="fitting the head before the first epoch; None for regimes that don't"
    )
    quantization_seconds: Seconds | None = Field(
        None,
        description="preparing and converting an int8 backbone; if it trains, with its conversions for all validation "
        "passes. None with other backbones",
    )
    features_reused: bool | None = Field(
        None, description="True if all features were cached, so that an earlier training spent `extraction_seconds`"
    )
    baseline_rss_bytes: Count = Field(description="resident memory at the call, libraries already loaded")
    baseline_private_bytes: Count | None = Field(
        None, description="the part of `baseline_rss_bytes` that no other process shares; None where it is unknown"
    )
    baseline_pss_bytes: Count | None = Field(
        None, description="the same memory where each shared page counts in equal parts for those that share it"
    )
    peak_rss_bytes: Count = Field(description="high-water mark of resident memory")
    memory_method: str
    cuda_allocated_bytes: Count | None = Field(None, description="peak of torch's allocations on the GPU")
    cuda_reserved_bytes: Count | None = Field(None, description="peak of what torch's allocator held on the GPU")
    train_rss_bytes: Count | None = Field(None, description="high-water mark of resident memory in training passes")
    val_rss_bytes: Count | None = Field(
        None, description="the same in validation passes; includes memory that the C library keeps from training"
    )
    cuda_train_allocated_bytes: Count | None = Field(None, description="torch's peak on the GPU in training passes")
    cuda_val_allocated_bytes: Count | None = Field(None, description="torch's peak on the GPU in validation passes")
    gpu_process_bytes: Count | None = Field(
        None, description="NVML: memory of the process on the GPU after training, with its context; None if not listed"
    )
    mps_current_bytes: Count | None = Field(None, description="Metal: largest memory of tensors at the end of a pass")
    mps_driver_bytes: Count | None = Field(None, description="Metal: largest memory of the driver at the end of a pass")
    resident_image_bytes: Count | None = Field(
        None, description="images in the GPU's memory, part of `cuda_allocated_bytes`; None on other devices"
    )
    work: Work | None = Field(
        None,
        description="of the first training step; with `periods`, of the first step in which all train that ever do. "
        "None without steps, and in records of format version 1",
    )
    periods: tuple[Period, ...] = Field(
        (), description="periods of a regime whose parts join one after the other; empty for others"
    )
    probe: Probe | None = Field(
        None,
        description="the training images as predicted without them; None for regimes that train by steps or not at "
        "all, with protocol `kfold`, and before version 11",
    )
    trials: tuple[Trial, ...] = Field((), description="trials of protocol `tuned`, one per learning rate, ascending")
    learning_rate_chosen: float | None = Field(None, description="None with protocols other than `tuned`")
    tuning_seconds: Seconds | None = Field(None, description="all trials together; None without them")
    folds: tuple[tuple[EpochResult, ...], ...] = Field((), description="epochs of each fold of protocol `kfold`")
    inference: InferenceCost | None = Field(
        None,
        description="cost of the trained network in use; with `kfold` that of the first fold's. None unless it was "
        "asked for, and before version 11",
    )
    notes: tuple[Note, ...] = ()
    model: Any = Field(None, exclude=True, repr=False)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("best", "last"):
            found = getattr(self, name)
            if found.epoch >= len(self.epochs):
                raise ValueError(f"{name} is of epoch {found.epoch}, and there are {len(self.epochs)}")
            if (found.detections is not None) is not (self.config.task == "detection"):
                raise ValueError(f"{name} must have boxes if the task is 'detection', and only then")
            if found.detections is not None:
                if found.labels or found.confidences or found.probabilities is not None or not found.detections:
                    raise ValueError(f"{name} must have boxes for each image, and nothing else")
                most = max((box[0] for boxes in found.detections for box in boxes), default=0)
                if most >= len(self.classes):
                    raise ValueError(f"{name} has class {most}, and there are {len(self.classes)}")
                continue
            if self.config.task == "multilabel":
                if found.labels or found.confidences or not found.probabilities:
                    raise ValueError(f"{name} must have probabilities of classes, and nothing else")
                if wrong := next((row for row in found.probabilities if len(row) != len(self.classes)), None):
                    raise ValueError(f"{name} has {len(wrong)} probabilities of {len(self.classes)} classes")
                continue
            if not len(found.labels) == len(found.confidences) > 0 or found.probabilities is not None:
                raise ValueError(f"{name} has {len(found.labels)} labels and {len(found.confidences)} confidences")
            if max(found.labels) >= len(self.classes):
                raise ValueError(f"{name} has class {max(found.labels)}, and there are {len(self.classes)}")
        if self.probe and (most := max(*self.probe.labels, *self.probe.truth)) >= len(self.classes):
            raise ValueError(f"probe has class {most}, and there are {len(self.classes)}")
        return self

    @property
    def val_accuracy_best(self) -> float:
        """Validation accuracy of the best epoch, the tutorial's figure. With protocol `fixed` it is optimistic, since
        that epoch was picked on the same images; other protocols pick the last epoch."""
        return self.epochs[self.best.epoch].val_accuracy

    @property
    def val_accuracy_last(self) -> float:
        """Validation accuracy after the last epoch, which no image chose unless `early_stopping` let them.

        Recommendations and claims use this one."""
        return self.epochs[-1].val_accuracy

    @property
    def constant_prediction(self) -> str | None:
        """The class that was predicted for every validation image after the last epoch; None if there are several."""
        predicted = set(self.last.labels)
        return self.classes[predicted.pop()] if len(predicted) == 1 else None

    @property
    def learning_rate(self) -> float | None:
        """Learning rate of the first epoch, by the config's or the chosen one; None if nothing trains by steps."""
        if not REGIMES[self.config.regime].by_steps:
            return None
        given = self.config.learning_rate if self.learning_rate_chosen is None else self.learning_rate_chosen
        return self.config.first_rate(given)

    @property
    def accuracy_counts(self) -> bool:
        """False if weights are random though the regime starts from pretrained ones."""
        return accuracy_counts(self.config.regime, self.weights.kind)

    @property
    def train_epoch_seconds(self) -> float | None:
        """Median of training passes without the first (warm-up); None with fewer than two epochs.

        With `periods` this and other figures per epoch are means, since the epochs differ in what trains.
        """
        return self._typical([row.train_seconds for row in self.epochs[1:] if row.train_seconds is not None])

    @property
    def val_epoch_seconds(self) -> float | None:
        """Median of validation passes without the first; None with fewer than two epochs."""
        return self._typical([row.val_seconds for row in self.epochs[1:]])

    @property
    def epoch_seconds(self) -> float | None:
        """Median of training plus validation without the first epoch; None with fewer than two epochs."""
        return self._typical([row.seconds for row in self.epochs[1:] if row.seconds is not None])

    @property
    def once_seconds(self) -> float:
        """Quantisation, extraction and fitting the head, which run before all epochs, or between them in the case of a
        backbone that trains for int8; 0 for regimes without them."""
        parts = (self.extraction_seconds, self.quantization_seconds, self.head_start_seconds)
        return sum(part or 0.0 for part in parts)

    @property
    def cold_seconds(self) -> float | None:
        """Time until the first warm epoch: `once_seconds` and the first epoch."""
        first = self.epochs[0].seconds
        return None if first is None else first + self.once_seconds

    def phase_seconds(self, name: str) -> float | None:
        """Median of a phase without the first epoch; None with fewer than two epochs, or if it was not measured."""
        return self._typical([getattr(row.phases, name) for row in self.epochs[1:] if row.phases])

    def work_in(self, epoch: int) -> Work | None:
        """Return the work of a step in an epoch, counted from 0; None if it was not counted."""
        return next((period.work for period in reversed(self.periods) if period.first_epoch <= epoch), self.work)

    def _typical(self, seconds: list[float]) -> float | None:
        """The figure that stands for all epochs: their median if they are alike, else their mean."""
        if not seconds:
            return None
        return statistics.fmean(seconds) if self.periods else statistics.median(seconds)

    @property
    def peak_memory_bytes(self) -> int | None:
        """Peak on CUDA of torch's allocations without the images; elsewhere of resident memory above the baseline.

        It is unknown, None, if the mark is that of the whole process and this run didn't raise it. It is also unknown
        if a frozen backbone's features were cached, since most of the memory is needed for their extraction.
        """
        if self.features_reused and REGIMES[self.config.regime].fixed_features:
            return None
        if self.cuda_allocated_bytes is not None:
            return self.cuda_allocated_bytes - (self.resident_image_bytes or 0)
        return (self.peak_rss_bytes - self.baseline_rss_bytes) or None


def accuracy_counts(regime: str, weights: str) -> bool:
    """Return True if a regime's accuracy is meaningful with weights of this kind (`pretrained` or `random`)."""
    return weights == "pretrained" or REGIMES[regime].start == "random"
