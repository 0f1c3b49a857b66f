"""Metrics: what is measured, in which unit. To add one, add an entry to `METRICS`.

Tables, reports and exports read this; `value` takes a finished record and returns a number, or None where
it is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bench.store.records import Record
from tl.results import Predictions, TrainResult, Work

Number = float | int | None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a cell."""

    label: str
    unit: str
    value: Callable[[Record, TrainResult], Number]
    meaning: str
    style: str = ".3g"
    """Format of a figure in a table, in `shown_unit`."""
    scale: float = 1.0
    """From `unit` to `shown_unit`."""
    shown_unit: str = ""
    predictions: Callable[[TrainResult], Predictions] | None = None
    """Of an accuracy: the predictions that it is the share of right ones of."""
    better: Literal["lower", "higher"] | None = None
    """Which direction is an improvement; None where neither is."""
    exact: bool = False
    """Counted, not measured: the same in every repetition, so that any change is a real one."""

    @property
    def heading(self) -> str:
        """Label and unit, for the head of a column."""
        unit = self.shown_unit or self.unit
        return self.label if unit in ("share", "count", "index") else f"{self.label}, {unit}"

    def show(self, value: float | int | None) -> str:
        """A figure for people; `n/a` where it is not known."""
        if value is None:
            return "n/a"
        text = format(value * self.scale, self.style)
        return f"{float(text):,.0f}" if "e+" in text else text  # 12,200 rather than 1.22e+04


def _accuracy(value: Callable[[TrainResult], float]) -> Callable[[Record, TrainResult], Number]:
    """Unknown where random weights stand in for pretrained ones: it would say nothing about the backbone."""
    return lambda record, result: value(result) if result.accuracy_counts else None


def _images_per_second(record: Record, result: TrainResult) -> Number:
    images = record.train_images
    return images / result.train_epoch_seconds if images and result.train_epoch_seconds else None


def _bytes(label: str, value: Callable[[TrainResult], Number], meaning: str, *, exact: bool = False) -> Metric:
    return Metric(
        label=label,
        unit="B",
        value=lambda record, result: value(result),
        style=",.0f",
        scale=1 / 2**20,
        shown_unit="MiB",
        meaning=meaning,
        better="lower",
        exact=exact,
    )


def _above_baseline(mark: int | None, result: TrainResult) -> Number:
    return None if mark is None else mark - result.baseline_rss_bytes


def _phase(name: str, meaning: str) -> Metric:
    return Metric(
        label=name,
        unit="s",
        value=lambda record, result: result.phase_seconds(name),
        meaning=f"median an epoch: {meaning}",
        better="lower",
    )


def _flops(label: str, value: Callable[[Work], int], meaning: str) -> Metric:
    return Metric(
        label=label,
        unit="FLOP",
        value=lambda record, result: value(result.work) / result.work.step_images if result.work else None,
        scale=1e-9,
        shown_unit="GFLOP",
        meaning=meaning,
        better="lower",
        exact=True,
    )


def _step_bytes(label: str, value: Callable[[Work], int], meaning: str) -> Metric:
    return _bytes(label, lambda result: value(result.work) if result.work else None, meaning, exact=True)


METRICS: dict[str, Metric] = {
    "val_accuracy_best": Metric(
        better="higher",
        label="best accuracy",
        unit="share",
        value=_accuracy(lambda result: result.val_accuracy_best),
        style=".1%",
        predictions=lambda result: result.best,
        meaning="best validation accuracy of all epochs, chosen on the images it is measured on",
    ),
    "val_accuracy_last": Metric(
        better="higher",
        label="last accuracy",
        unit="share",
        value=_accuracy(lambda result: result.val_accuracy_last),
        style=".1%",
        predictions=lambda result: result.last,
        meaning="validation accuracy after the last epoch",
    ),
    "best_epoch": Metric(
        label="best epoch",
        unit="index",
        value=_accuracy(lambda result: result.best.epoch),
        style=".0f",
        meaning="first epoch, counted from 0, that reached the best accuracy; the last one but with protocol `fixed`",
    ),
    "epoch_seconds": Metric(
        better="lower",
        label="epoch",
        unit="s",
        value=lambda record, result: result.epoch_seconds,
        meaning="median of training plus validation over all epochs but the first",
    ),
    "train_epoch_seconds": Metric(
        better="lower",
        label="training pass",
        unit="s",
        value=lambda record, result: result.train_epoch_seconds,
        meaning="median training pass over all epochs but the first",
    ),
    "val_epoch_seconds": Metric(
        better="lower",
        label="validation pass",
        unit="s",
        value=lambda record, result: result.val_epoch_seconds,
        meaning="median validation pass over all epochs but the first",
    ),
    "first_epoch_seconds": Metric(
        better="lower",
        label="first epoch",
        unit="s",
        value=lambda record, result: result.epochs[0].seconds,
        meaning="training plus validation of the first epoch, warm-up included",
    ),
    "extraction_seconds": Metric(
        better="lower",
        label="extraction",
        unit="s",
        value=lambda record, result: result.extraction_seconds,
        meaning="extracting features of all images, when it was done; empty where each epoch has forward passes",
    ),
    "quantization_seconds": Metric(
        better="lower",
        label="quantisation",
        unit="s",
        value=lambda record, result: result.quantization_seconds,
        meaning="calibrating and converting an int8 backbone; empty with others",
    ),
    "cold_seconds": Metric(
        better="lower",
        label="cold",
        unit="s",
        value=lambda record, result: result.cold_seconds,
        meaning="quantisation, extraction and first epoch, with all that is compiled, captured or loaded in it",
    ),
    "warm_epoch_seconds": Metric(
        better="lower",
        label="warm epoch",
        unit="s",
        value=lambda record, result: result.epoch_seconds,
        meaning="the same as `epoch_seconds`",
    ),
    "total_seconds": Metric(
        better="lower",
        label="whole cell",
        unit="s",
        value=lambda record, result: record.wall_seconds,
        meaning="wall time of the cell's process, from its start to its end",
    ),
    "overhead_seconds": Metric(
        better="lower",
        label="overhead",
        unit="s",
        value=lambda record, result: record.overhead_seconds,
        meaning="wall time of the cell outside its passes, tuning, extraction and quantisation",
    ),
    "tuning_seconds": Metric(
        better="lower",
        label="tuning",
        unit="s",
        value=lambda record, result: result.tuning_seconds,
        meaning="all trials of protocol `tuned` together, beside the training; empty with the others",
    ),
    "images_per_second": Metric(
        better="higher",
        label="training speed",
        unit="images/s",
        value=_images_per_second,
        meaning="training images over the median training pass",
    ),
    "peak_memory_bytes": _bytes(
        "peak memory",
        lambda result: result.peak_memory_bytes,
        "CUDA: torch's allocations at their peak, images left out; elsewhere: resident memory above the baseline",
    ),
    "peak_rss_bytes": _bytes(
        "peak resident memory",
        lambda result: result.peak_rss_bytes,
        "high-water mark of the process's resident memory, libraries included",
    ),
    "baseline_rss_bytes": _bytes(
        "baseline resident memory",
        lambda result: result.baseline_rss_bytes,
        "resident memory before weights and images were loaded, libraries included",
    ),
    "train_rss_above_baseline_bytes": _bytes(
        "training, resident",
        lambda result: _above_baseline(result.train_rss_bytes, result),
        "high-water mark of resident memory in training passes, above the baseline",
    ),
    "val_rss_above_baseline_bytes": _bytes(
        "validation, resident",
        lambda result: _above_baseline(result.val_rss_bytes, result),
        "the same in validation passes; memory that the C library keeps from training is in it",
    ),
    "cuda_allocated_bytes": _bytes(
        "GPU allocated", lambda result: result.cuda_allocated_bytes, "peak of torch's allocations on the GPU"
    ),
    "cuda_reserved_bytes": _bytes(
        "GPU reserved",
        lambda result: result.cuda_reserved_bytes,
        "peak of what torch's allocator held on the GPU",
    ),
    "cuda_train_allocated_bytes": _bytes(
        "GPU allocated, training",
        lambda result: result.cuda_train_allocated_bytes,
        "peak of torch's allocations on the GPU in training passes",
    ),
    "cuda_val_allocated_bytes": _bytes(
        "GPU allocated, validation",
        lambda result: result.cuda_val_allocated_bytes,
        "peak of torch's allocations on the GPU in validation passes",
    ),
    "resident_image_bytes": _bytes(
        "images on the GPU", lambda result: result.resident_image_bytes, "decoded images in the GPU's memory"
    ),
    "gpu_process_bytes": _bytes(
        "GPU, whole process",
        lambda result: result.gpu_process_bytes,
        "NVML: what the process held on the GPU after training, CUDA context included",
    ),
    "mps_current_bytes": _bytes(
        "Metal tensors",
        lambda result: result.mps_current_bytes,
        "Metal: largest of tensors at the end of a pass",
    ),
    "mps_driver_bytes": _bytes(
        "Metal driver",
        lambda result: result.mps_driver_bytes,
        "Metal: largest of what the driver held at the end of a pass",
    ),
    "total_params": Metric(
        better="lower",
        exact=True,
        label="parameters",
        unit="count",
        value=lambda record, result: result.total_params,
        style=".2f",
        scale=1e-6,
        shown_unit="M",
        meaning="of backbone and head",
    ),
    "trainable_params": Metric(
        better="lower",
        exact=True,
        label="trainable parameters",
        unit="count",
        value=lambda record, result: result.trainable_params,
        style=",.0f",
        meaning="parameters that get gradients",
    ),
    "data_seconds": _phase("data", "reading, cropping and stacking training images"),
    "transfer_seconds": _phase(
        "transfer", "moving and normalising training images; in `data` where they live on the GPU"
    ),
    "forward_seconds": _phase("forward", "forward passes of training steps, with the loss"),
    "backward_seconds": _phase("backward", "backward passes"),
    "optimizer_seconds": _phase("optimizer", "optimiser steps and zeroing of gradients"),
    "validation_seconds": _phase("validation", "the validation pass, its images included"),
    "other_seconds": _phase("other", "what the phases leave of the whole"),
    "forward_flops": _flops(
        "forward work",
        lambda work: work.forward_flops,
        "of a training step, an image: convolutions and matrix products",
    ),
    "backward_flops": _flops(
        "backward work", lambda work: work.backward_flops, "of a training step of that regime, an image"
    ),
    "saved_activation_bytes": _step_bytes(
        "saved for backward",
        lambda work: work.saved_activation_bytes,
        "kept for the backward pass of a step, each storage once, without parameters",
    ),
    "parameter_bytes": _step_bytes("parameter memory", lambda work: work.parameter_bytes, "of backbone and head"),
    "gradient_bytes": _step_bytes("gradient memory", lambda work: work.gradient_bytes, "of all trained parameters"),
    "optimizer_state_bytes": _step_bytes(
        "optimiser memory", lambda work: work.optimizer_state_bytes, "what the optimiser keeps between steps"
    ),
}
