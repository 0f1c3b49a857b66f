"""Records as data frames with one row per cell, for `bench export` and `bench.load_results`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bench.analysis.metrics import METRICS, finished
from bench.store.environment import MachineState
from bench.store.records import Record
from bench.store.runs import RunFolder, find_runs
from tl.errors import ConfigError
from tl.gpu import GpuState
from tl.regimes import REGIMES
from tl.results import PHASES, EpochResult


def _of_machine(value: Callable[[MachineState], Any]) -> Callable[[str, Record], Any]:
    return lambda run, record: value(record.machine) if record.machine else None


def _of_gpu(
    value: Callable[[GpuState], Any], when: Literal["gpu_before", "gpu_after"] = "gpu_after"
) -> Callable[[str, Record], Any]:
    def read(machine: MachineState) -> Any:
        state = getattr(machine, when)
        return value(state) if state else None

    return _of_machine(read)


_FACTS: dict[str, Callable[[str, Record], Any]] = {
    "run": lambda run, record: run,
    "cell_id": lambda run, record: record.cell_id,
    "status": lambda run, record: record.status,
    "reason": lambda run, record: record.reason or None,
    "dataset": lambda run, record: record.dataset,
    "dataset_digest": lambda run, record: record.cell.dataset_digest,
    "fallback": lambda run, record: record.fallback or None,
    "backbone": lambda run, record: record.cell.config.backbone,
    "weights": lambda run, record: record.cell.config.weights,
    "weights_source": lambda run, record: record.weights.source if record.weights else None,
    "weights_label": lambda run, record: (record.weights.label or None) if record.weights else None,
    "regime": lambda run, record: record.cell.config.regime,
    "device": lambda run, record: record.cell.device,
    "device_name": lambda run, record: record.result.device_name if record.result else None,
    "precision": lambda run, record: record.cell.config.precision,
    "execution": lambda run, record: record.cell.config.execution,
    "seed": lambda run, record: record.cell.config.seed,
    "epochs": lambda run, record: record.cell.config.epochs,
    "batch_size": lambda run, record: record.cell.config.batch_size,
    "protocol": lambda run, record: record.cell.config.protocol,
    "learning_rate": lambda run, record: _learning_rate(record),
    "threads": lambda run, record: record.result.threads if record.result else None,
    "memory_format": lambda run, record: record.result.memory_format if record.result else None,
    "compile": lambda run, record: record.cell.config.compile,
    "cuda_graph": lambda run, record: record.result.cuda_graph if record.result else None,
    "views": lambda run, record: _views(record),
    "features_reused": lambda run, record: record.result.features_reused if record.result else None,
    "torch_version": lambda run, record: record.environment.packages.get("torch"),
    "cpu_model": lambda run, record: record.environment.cpu,
    "git_commit": lambda run, record: record.environment.git_commit or None,
    "git_dirty": lambda run, record: record.environment.git_dirty,
    "frozen_verified": lambda run, record: record.result.frozen_verified if record.result else None,
    "constant_prediction": lambda run, record: record.result.constant_prediction if record.result else None,
    "started": lambda run, record: record.started.isoformat(),
    "block": lambda run, record: record.block,
    "order": lambda run, record: record.order,
    "attempts": lambda run, record: record.attempts,
    "governor": _of_machine(lambda machine: machine.governor or None),
    "load_before": _of_machine(lambda machine: machine.load_before),
    "load_after": _of_machine(lambda machine: machine.load_after),
    "memory_available_bytes": _of_machine(lambda machine: machine.memory_available_bytes),
    "other_cpu_share": _of_machine(lambda machine: machine.other_cpu_share),
    "steal_share": _of_machine(lambda machine: machine.steal_share),
    "cpu_capability": _of_machine(lambda machine: machine.cpu_capability or None),
    "cuda_version": _of_machine(lambda machine: machine.cuda_version or None),
    "cudnn_version": _of_machine(lambda machine: machine.cudnn_version or None),
    "gpu_driver": _of_gpu(lambda state: state.driver),
    "gpu_utilisation_before": _of_gpu(lambda state: state.utilisation_percent, "gpu_before"),
    "gpu_other_processes": _of_gpu(lambda state: state.other_processes),
    "gpu_sm_clock_mhz": _of_gpu(lambda state: state.sm_clock_mhz),
    "gpu_memory_clock_mhz": _of_gpu(lambda state: state.memory_clock_mhz),
    "gpu_temperature_celsius": _of_gpu(lambda state: state.temperature_celsius),
    "gpu_throttle": _of_gpu(lambda state: ", ".join(state.throttle_reasons or ()) or None),
    "machine_warnings": _of_machine(lambda machine: "; ".join(machine.warnings) or None),
}
_CELL_COLUMNS = (
    "run",
    "cell_id",
    "status",
    "dataset",
    "backbone",
    "weights",
    "regime",
    "device",
    "precision",
    "execution",
    "seed",
    "batch_size",
)
"""Columns of a cell that are repeated in the row of each epoch."""
_BOOLEANS = ("frozen_verified", "git_dirty", "compile", "cuda_graph", "features_reused")
_INTEGERS = {
    "seed",
    "epochs",
    "batch_size",
    "threads",
    "views",
    "block",
    "order",
    "attempts",
    "memory_available_bytes",
    "gpu_utilisation_before",
    "gpu_other_processes",
    "gpu_sm_clock_mhz",
    "gpu_memory_clock_mhz",
    "gpu_temperature_celsius",
}
_FLOATS = ("load_before", "load_after", "other_cpu_share", "steal_share", "learning_rate")


def columns() -> list[str]:
    """All columns in order: facts about a cell, then its metrics.

    Raises `ConfigError` if a metric from outside has the name of a fact.
    """
    if taken := [name for name in METRICS if name in _FACTS]:
        raise ConfigError(f"metric {taken[0]!r}: another column of the table has this name; rename the metric")
    return [*_FACTS, *METRICS]


def _views(record: Record) -> int | None:
    """Number of views per training image; None for regimes that make new crops every epoch."""
    config = record.cell.config
    return config.views if REGIMES[config.regime].features == "once" else None


def _learning_rate(record: Record) -> float | None:
    """Learning rate at the first epoch; None if nothing is trained, or if it was not yet chosen."""
    config = record.cell.config
    if record.result:
        return record.result.learning_rate
    chosen_later = config.protocol == "tuned" or not REGIMES[config.regime].trains
    return None if chosen_later else config.learning_rate


def row(run: str, record: Record, truth: tuple[int, ...] | None = None) -> dict[str, Any]:
    """One record as a flat row with all `columns`; unknown values are None.

    `truth` has the true labels of the run's validation images; without it, metrics that need it are unknown.
    """
    cell = finished(record, truth)
    facts = {name: fact(run, record) for name, fact in _FACTS.items()}
    return facts | {name: metric.of(cell) if cell else None for name, metric in METRICS.items()}


def frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Make a frame of rows, with nullable types so that columns with unknown integers stay integers."""
    kinds = dict.fromkeys(_INTEGERS, "Int64") | dict.fromkeys(_FLOATS, "Float64") | dict.fromkeys(_BOOLEANS, "boolean")
    kinds |= {name: "Int64" if metric.whole else "Float64" for name, metric in METRICS.items()}
    table = pd.DataFrame(list(rows), columns=columns())
    return table.astype({name: kinds.get(name, "string") for name in columns()})


def epoch_rows(runs: Iterable[RunFolder]) -> pd.DataFrame:
    """Raw values with one row per epoch of every cell that has epochs, after the columns that identify the cell."""
    rows = []
    for run in runs:
        for record in run.records().values():
            cell = {name: _FACTS[name](run.name, record) for name in _CELL_COLUMNS}
            for epoch in record.result.epochs if record.result else record.epochs:
                phases = epoch.phases.model_dump() if epoch.phases else dict.fromkeys(PHASES)
                values = epoch.model_dump(exclude={"phases"})
                rows.append(cell | values | {f"{name}_seconds": seconds for name, seconds in phases.items()})
    known = [name for name in EpochResult.model_fields if name != "phases"]
    return pd.DataFrame(rows, columns=[*_CELL_COLUMNS, *known, *(f"{name}_seconds" for name in PHASES)])


def load_results(paths: str | Path | Iterable[str | Path], results: Path) -> pd.DataFrame:
    """See `bench.load_results`."""
    names = [paths] if isinstance(paths, str | Path) else list(paths)
    return load_runs(find_runs(names, results))


def load_runs(runs: Iterable[RunFolder]) -> pd.DataFrame:
    """All records of some runs, run by run, in the order in which their cells were planned."""
    rows = []
    for run in runs:
        truth = run.manifest().dataset.val_labels
        rows += [row(run.name, record, truth) for record in run.records().values()]
    return frame(rows)
