"""Metrics: what is measured, how it is shown and how it is compared. To add one, add an entry to `METRICS`.

Tables, pages, exports, comparisons, gates and claims take all facts about a metric from its entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.analysis.scores import BINS, balanced_accuracy, calibration_error, largest_class, macro_f1
from bench.store.records import Record
from tl.errors import ConfigError, UserError
from tl.results import Phases, Predictions, TrainResult, Work

Number = float | int | None
ComparedBy = Literal["ratio", "difference", "exact"]
"""How two values are compared: by their ratio, by their difference in percentage points, or exactly."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A cell with a result: the input of every metric."""

    record: Record
    result: TrainResult
    truth: tuple[Any, ...] | None
    """What is true of the validation images, by the task: their classes; None if only the record is available."""

    @property
    def classes(self) -> tuple[int, ...] | None:
        """True classes of the validation images; None if they are unknown, and for other tasks than classification."""
        return self.truth if self.result.config.task == "classification" else None


def finished(record: Record, truth: tuple[Any, ...] | None = None) -> Finished | None:
    """The cell of a record; None if the record has no result."""
    return None if record.result is None else Finished(record=record, result=record.result, truth=truth)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that is measured for every cell."""

    label: str
    unit: str
    """Unit of what `value` returns and of exports: `s`, `B`, `share`, `count`, …"""
    value: Callable[[Finished], Number]
    """Computes the value; None if it is unknown. Callers use `of`, which also handles damaged records."""
    meaning: str

    style: str = ".3g"
    """Format of a value in the unit that is shown."""
    scale: float = 1.0
    """Factor from `unit` to the unit that is shown."""
    shown_unit: str | None = None
    """Unit that is shown; None for `unit` itself, empty for a pure number."""
    whole: bool = False
    """True if the value is always a whole number."""
    over_seeds: Literal["mean", "median"] = "median"
    """How several seeds are summarised. A mean is shown ± one standard deviation, a median with its extremes."""
    column: bool = False
    """True if the report's table always has a column for it."""
    where_known: bool = False
    """True if the report's table has a column for it where a cell has a value."""
    once: str = ""
    """For work that is done once, before all epochs: its name. The report's table has a column if a cell did it."""
    matters: str = ""
    """The metric in one word, for headline metrics, which every summary shows. Empty for all others."""
    on_request: bool = False
    """True if it is measured only when asked for (`run --inference`). The report's table has a column if a cell has it,
    and so has the table of what matters most; nothing else shows it as a headline metric."""
    phrase: str = "{}"
    """Words in a line that reports several metrics; `{}` stands for the value and its unit."""

    better: Literal["lower", "higher"] | None = None
    """Which direction is an improvement; None if neither is. Metrics without one are not compared."""
    compared: ComparedBy = "ratio"
    """`exact` is for counts: every repetition has the same count, so any change is real."""
    by_signs: bool = False
    """True for a small whole number that differs from seed to seed, such as a number of epochs: its ratios are tested
    by their signs (`bench.analysis.stats.ratio_by_signs`), since such ratios are often equal by chance."""
    by_default: bool = False
    """True if it is compared when no metrics are named. `exact` metrics always are."""
    predictions: Callable[[TrainResult], Predictions] | None = None
    """For accuracies: the predictions they are computed from. None for other metrics."""

    def __post_init__(self) -> None:
        if self.compared == "difference" and not self.percent:
            raise ConfigError(
                f"{self.label}: compared='difference' is only for shares shown in percent: shown_unit='%'"
            )
        if self.by_signs and self.compared != "ratio":
            raise ConfigError(f"{self.label}: by_signs=True is only for compared='ratio'")

    @property
    def percent(self) -> bool:
        """True if it is a share that is shown in percent."""
        return self.shown_unit == "%"

    @property
    def in_bytes(self) -> bool:
        """True if it is an amount of memory."""
        return self.unit == "B"

    @property
    def in_seconds(self) -> bool:
        """True if it is a time."""
        return self.unit == "s"

    @property
    def page_unit(self) -> str:
        """The unit that is shown; empty for a pure number."""
        return self.unit if self.shown_unit is None else self.shown_unit

    @property
    def unit_beside(self) -> str:
        """The unit that is shown after a value or in a heading. Empty for percentages: `%` is part of the value."""
        return "" if self.percent else self.page_unit

    @property
    def unit_unscaled(self) -> str:
        """The unit of an unscaled value with all its digits; empty for plain counts."""
        return "" if self.unit == "count" else self.unit

    @property
    def heading(self) -> str:
        """Label and unit, as a column heading."""
        return f"{self.label}, {self.unit_beside}" if self.unit_beside else self.label

    def of(self, cell: Finished) -> Number:
        """The value for a cell; None if unknown. Raises `UserError` if it can't be computed.

        Then the record is damaged (someone may have edited it), or a metric from outside has a bug.
        """
        try:
            return self.value(cell)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            record = cell.record
            problem = f"damaged, or the metric {self.label!r} can't read it: {type(error).__name__}: {error}"
            raise UserError(f"record {record.cell_id} ({record.cell}): {problem}") from error

    def show(self, value: float | int | None) -> str:
        """Format a value for people; `n/a` if it is unknown."""
        if value is None:
            return "n/a"
        text = format(value * self.scale, self.style)
        text = f"{float(text):,.0f}" if "e+" in text else text  # 12,200 rather than 1.22e+04
        return f"{text}%" if self.percent else text

    def say(self, value: float | int | None) -> str:
        """Format a value with its unit; `n/a` if it is unknown."""
        return self.show(value) if value is None else f"{self.show(value)} {self.unit_beside}".rstrip()


def points(difference: float) -> str:
    """Format a difference of shares in percentage points, with its sign and without the unit."""
    return signed(100 * difference)


def signed(value: float | None, style: str = ".1f") -> str:
    """Format a number with its sign, and zero as `+0.0`, never as `-0.0`; `n/a` if it is unknown."""
    return "n/a" if value is None else format(value, f"+z{style}")


def share(label: str, value: Callable[[Finished], Number], meaning: str, **more: Any) -> Metric:
    """A metric that is a share in [0, 1]: shown in percent, averaged over seeds, compared by differences."""
    shown: dict[str, Any] = {"style": ".1f", "scale": 100.0, "shown_unit": "%"}
    read: dict[str, Any] = {"over_seeds": "mean", "compared": "difference"}
    return Metric(label=label, unit="share", value=value, meaning=meaning, **{**shown, **read, **more})


def _counts(value: Callable[[Finished], Number]) -> Callable[[Finished], Number]:
    """Make a value unknown if random weights replaced pretrained ones: it would say nothing about the backbone."""
    return lambda cell: value(cell) if cell.result.accuracy_counts else None


def _score(score: Callable[[Predictions, tuple[int, ...]], Number]) -> Callable[[Finished], Number]:
    """A score of the last epoch's predictions, which were not chosen by any score. Unknown without true labels."""
    return _counts(lambda cell: None if cell.classes is None else score(cell.result.last, cell.classes))


def _seconds(label: str, value: Callable[[TrainResult], Number], meaning: str, **more: Any) -> Metric:
    return Metric(
        label=label, unit="s", value=lambda cell: value(cell.result), meaning=meaning, **{"better": "lower", **more}
    )


def _epochs_to_best(result: TrainResult) -> int:
    accuracies = [row.val_accuracy for row in result.epochs]
    return accuracies.index(max(accuracies)) + 1


def _images_per_second(cell: Finished) -> Number:
    images, seconds = cell.record.train_images, cell.result.train_epoch_seconds
    return images / seconds if images and seconds else None


def _bytes(label: str, value: Callable[[TrainResult], Number], meaning: str, **more: Any) -> Metric:
    return Metric(
        label=label,
        unit="B",
        value=lambda cell: value(cell.result),
        meaning=meaning,
        style=",.0f",
        scale=1 / 2**20,
        shown_unit="MiB",
        whole=True,
        **{"better": "lower", **more},
    )


def _above_baseline(mark: int | None, result: TrainResult) -> Number:
    return None if mark is None else mark - result.baseline_rss_bytes


def _phase(name: str, meaning: str) -> Metric:
    return _seconds(name, lambda result: result.phase_seconds(name), f"median per epoch: {meaning}")


def _flops(label: str, value: Callable[[Work], int], meaning: str) -> Metric:
    def per_image(cell: Finished) -> Number:
        work = cell.result.work
        return value(work) / work.step_images if work else None

    return Metric(
        label=label,
        unit="FLOP",
        value=per_image,
        scale=1e-9,
        shown_unit="GFLOP",
        meaning=meaning,
        better="lower",
        compared="exact",
    )


def _step_bytes(label: str, value: Callable[[Work], int], meaning: str) -> Metric:
    return _bytes(label, lambda result: value(result.work) if result.work else None, meaning, compared="exact")


def _parameters(label: str, value: Callable[[TrainResult], Number], meaning: str, **shown: Any) -> Metric:
    return Metric(
        label=label,
        unit="count",
        value=lambda cell: value(cell.result),
        meaning=meaning,
        whole=True,
        better="lower",
        compared="exact",
        column=True,
        **shown,
    )


RATED_BY = "val_accuracy_last"
"""The accuracy by which combinations are ranked, recommended and compared. No epoch is chosen by it."""
METRICS: dict[str, Metric] = {
    "val_accuracy_best": share(
        "best accuracy",
        _counts(lambda cell: cell.result.val_accuracy_best),
        "best validation accuracy of all epochs, the figure of the tutorial, chosen on the images it is measured on",
        better="higher",
        predictions=lambda result: result.best,
        column=True,
    ),
    "val_accuracy_last": share(
        "last accuracy",
        _counts(lambda cell: cell.result.val_accuracy_last),
        "validation accuracy after the last epoch",
        better="higher",
        predictions=lambda result: result.last,
        column=True,
        by_default=True,
        matters="accuracy",
        phrase="accuracy {}",
    ),
    "largest_class_rate": share(
        "largest class",
        lambda cell: largest_class(cell.classes)[1] if cell.classes else None,
        "share of the validation images in their largest class: the accuracy of always answering it",
    ),
    "best_epoch": Metric(
        label="best epoch",
        unit="index",
        value=_counts(lambda cell: cell.result.best.epoch + 1),
        style=".0f",
        shown_unit="",
        whole=True,
        meaning="first epoch, counted from 1, with the best accuracy; with protocols other than `fixed`, the last",
    ),
    "epochs_to_best": Metric(
        label="epochs to the best",
        unit="count",
        value=_counts(lambda cell: _epochs_to_best(cell.result)),
        style=".0f",
        shown_unit="",
        whole=True,
        meaning="epochs until the best accuracy of all epochs was reached for the first time",
        better="lower",
        by_signs=True,
    ),
    "macro_f1_last": share(
        "macro-F1",
        _score(lambda last, truth: macro_f1(last.labels, truth)),
        "mean over classes of F1 (precision and recall) on the validation images after the last epoch",
        better="higher",
    ),
    "balanced_accuracy_last": share(
        "balanced accuracy",
        _score(lambda last, truth: balanced_accuracy(last.labels, truth)),
        "mean recall over classes, on the validation images after the last epoch",
        better="higher",
    ),
    "calibration_error_last": share(
        "calibration error (ECE)",
        _score(lambda last, truth: calibration_error(last.labels, last.confidences, truth)),
        f"mean difference of confidence and accuracy after the last epoch, over {BINS} bins of equal width",
        better="lower",
    ),
    "probe_accuracy": share(
        "probe accuracy",
        _counts(lambda cell: cell.result.probe.accuracy if cell.result.probe else None),
        "share of the training images that a head fitted without them predicts right: `knn` and `ridge` leave out one "
        "image, `logistic` a fifth of them; no validation image is used",
        better="higher",
        where_known=True,
    ),
    "logme": Metric(
        label="LogME",
        unit="nat",
        value=_counts(lambda cell: cell.result.probe.logme if cell.result.probe else None),
        style="+.3f",
        shown_unit="",
        meaning="log evidence per training image of a linear model on the features; larger is better",
        where_known=True,
        # It has both signs, so it is compared by no ratio, and it is no share.
    ),
    "epoch_seconds": _seconds(
        "epoch",
        lambda result: result.epoch_seconds,
        "median of training plus validation over all epochs but the first",
        column=True,
        by_default=True,
        matters="time",
        phrase="{} per epoch",
    ),
    "train_epoch_seconds": _seconds(
        "training pass",
        lambda result: result.train_epoch_seconds,
        "median training pass over all epochs but the first",
    ),
    "val_epoch_seconds": _seconds(
        "validation pass",
        lambda result: result.val_epoch_seconds,
        "median validation pass over all epochs but the first",
    ),
    "first_epoch_seconds": _seconds(
        "first epoch",
        lambda result: result.epochs[0].seconds,
        "training plus validation of the first epoch, warm-up included",
        column=True,
    ),
    "extraction_seconds": _seconds(
        "extraction",
        lambda result: result.extraction_seconds,
        "time to extract features of images once; empty for regimes that keep no features",
        once="extracting features",
    ),
    "quantization_seconds": _seconds(
        "quantisation",
        lambda result: result.quantization_seconds,
        "time to prepare and convert an int8 backbone, with `quantized-finetune` for each validation pass; empty for "
        "other regimes",
        once="quantisation",
    ),
    "head_start_seconds": _seconds(
        "fit of the head",
        lambda result: result.head_start_seconds,
        "time to fit the head that training begins with, without the extraction; empty for regimes that don't",
        once="fitting the head",
    ),
    "cold_seconds": _seconds(
        "cold",
        lambda result: result.cold_seconds,
        "quantisation, extraction, fit of the head and first epoch, including all compiling, capturing and loading",
    ),
    "total_seconds": Metric(
        label="whole cell",
        unit="s",
        value=lambda cell: cell.record.wall_seconds,
        meaning="wall time of the cell's process, from its start to its end",
        better="lower",
    ),
    "overhead_seconds": Metric(
        label="overhead",
        unit="s",
        value=lambda cell: cell.record.overhead_seconds,
        meaning="wall time of the cell outside its passes, tuning, extraction, quantisation and measuring of inference",
        better="lower",
    ),
    "tuning_seconds": _seconds(
        "tuning",
        lambda result: result.tuning_seconds,
        "all trials of protocol `tuned`, without the final training; empty for other protocols",
    ),
    "images_per_second": Metric(
        label="training speed",
        unit="images/s",
        value=_images_per_second,
        meaning="training images over the median training pass",
        better="higher",
        column=True,
    ),
    "peak_memory_bytes": _bytes(
        "peak memory",
        lambda result: result.peak_memory_bytes,
        "CUDA: torch's allocations at their peak, images left out; elsewhere: resident memory above the baseline",
        column=True,
        by_default=True,
        matters="memory",
        phrase="{} of memory",
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
    "baseline_private_bytes": _bytes(
        "baseline memory, own",
        lambda result: result.baseline_private_bytes,
        "the part of the baseline that no other process shares: cells are forked from a server with the libraries",
    ),
    "baseline_pss_bytes": _bytes(
        "baseline memory, proportional",
        lambda result: result.baseline_pss_bytes,
        "the baseline where each shared page counts in equal parts for the processes that share it",
    ),
    "train_rss_above_baseline_bytes": _bytes(
        "training, resident",
        lambda result: _above_baseline(result.train_rss_bytes, result),
        "high-water mark of resident memory in training passes, above the baseline",
    ),
    "val_rss_above_baseline_bytes": _bytes(
        "validation, resident",
        lambda result: _above_baseline(result.val_rss_bytes, result),
        "the same in validation passes, with memory that the C library keeps from training",
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
    "trainable_params": _parameters(
        "trainable parameters",
        lambda result: result.trainable_params,
        "parameters that training sets: those that get gradients, or are fitted; for `knn` the features it keeps",
        style=",.0f",
        shown_unit="",
    ),
    "total_params": _parameters(
        "parameters",
        lambda result: result.total_params,
        "parameters of backbone and head",
        style=".2f",
        scale=1e-6,
        shown_unit="M",
    ),
    **{f"{name}_seconds": _phase(name, field.description or "") for name, field in Phases.model_fields.items()},
    "forward_flops": _flops(
        "forward work",
        lambda work: work.forward_flops,
        "per image of a training step: convolutions and matrix products of the forward pass",
    ),
    "backward_flops": _flops(
        "backward work",
        lambda work: work.backward_flops,
        "per image of a training step of that regime: those of the backward pass",
    ),
    "saved_activation_bytes": _step_bytes(
        "saved for backward",
        lambda work: work.saved_activation_bytes,
        "memory kept for the backward pass of a step, each storage once, without parameters",
    ),
    "parameter_bytes": _step_bytes(
        "parameter memory", lambda work: work.parameter_bytes, "memory of the parameters of backbone and head"
    ),
    "gradient_bytes": _step_bytes(
        "gradient memory", lambda work: work.gradient_bytes, "memory of the gradients of all trained parameters"
    ),
    "optimizer_state_bytes": _step_bytes(
        "optimiser memory", lambda work: work.optimizer_state_bytes, "memory that the optimiser keeps between steps"
    ),
    "latency_seconds": _seconds(
        "latency",
        lambda result: result.inference.latency if result.inference else None,
        "trained network: median forward pass of one prepared image; only with `run --inference`",
        scale=1e3,
        shown_unit="ms",
        matters="inference",
        on_request=True,
    ),
    "inference_images_per_second": Metric(
        label="inference speed",
        unit="images/s",
        value=lambda cell: cell.result.inference.images_per_second if cell.result.inference else None,
        meaning="trained network: images over the median forward pass of a batch of 32; only with `run --inference`",
        better="higher",
        on_request=True,
    ),
    "model_bytes": _bytes(
        "model file",
        lambda result: result.inference.model_bytes if result.inference else None,
        "size of the trained network's file, all parameters and buffers, or of an int8 network's numbers; only with "
        "`run --inference`",
        compared="exact",
        on_request=True,
    ),
}


def headline() -> list[str]:
    """The metrics that every summary shows: the accuracy that combinations are ranked by, and their costs."""
    return [name for name, metric in METRICS.items() if metric.matters and not metric.on_request]


def costs() -> list[str]:
    """The headline metrics where less is better, such as time and memory."""
    return [name for name in headline() if METRICS[name].better == "lower"]


def costs_on_request() -> list[str]:
    """The costs that matter where they were measured, which happens only when asked for."""
    return [name for name, metric in METRICS.items() if metric.matters and metric.on_request]


def listed(words: Sequence[str]) -> str:
    """Join words for a sentence, such as `accuracy, time and memory`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def what_matters(names: Iterable[str]) -> str:
    """The words of some headline metrics, joined for a sentence."""
    return listed([METRICS[name].matters for name in names])
