"""Records as data frames with one row per cell, for `bench export` and `bench.load_results`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bench.analysis.metrics import METRICS, finished
from bench.analysis.paired import Comparisons, PairedComparison
from bench.store.environment import MachineState
from bench.store.pairs import PairRecord, TimedSide, Turns
from bench.store.records import Cell, Record
from bench.store.runs import RunFolder, find_runs
from tl.config import READ_BY_REGIME
from tl.errors import ConfigError
from tl.gpu import GpuState
from tl.regimes import REGIMES
from tl.results import PHASES, EpochResult
from tl.tasks import TASKS


def _of_machine(value: Callable[[MachineState], Any]) -> Callable[[str, Record], Any]:
    return lambda run, record: value(record.machine) if record.machine else None


def _of_gpu(
    value: Callable[[GpuState], Any], when: Literal["gpu_before", "gpu_after"] = "gpu_after"
) -> Callable[[str, Record], Any]:
    def read(machine: MachineState) -> Any:
        state = getattr(machine, when)
        return value(state) if state else None

    return _of_machine(read)


def _of_others(value: Callable[[PairedComparison], Any]) -> Callable[[PairedComparison], Any]:
    """Unknown for the cell that the others of its rotation are compared with."""
    return lambda found: value(found) if found.cell.repeats != found.against.repeats else None


def _setting(name: str) -> Callable[[str, Record], Any]:
    """A setting that only some regimes read; None for others."""

    def value(run: str, record: Record) -> Any:
        config = record.cell.config
        return getattr(config, name) if READ_BY_REGIME[name](REGIMES[config.regime], config.execution) else None

    return value


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
    "epochs": lambda run, record: _of_steps(record, record.cell.config.epochs),
    "trained_epochs": lambda run, record: _of_steps(record, len(record.result.epochs)) if record.result else None,
    "batch_size": lambda run, record: _of_steps(record, record.cell.config.batch_size),
    "protocol": lambda run, record: record.cell.config.protocol,
    "task": lambda run, record: record.cell.config.task,
    "score": lambda run, record: TASKS[record.cell.config.task].score,
    "learning_rate": lambda run, record: _learning_rate(record),
    "threads": lambda run, record: record.result.threads if record.result else None,
    "memory_format": lambda run, record: record.result.memory_format if record.result else None,
    "compile": lambda run, record: record.cell.config.compile,
    "checkpointing": lambda run, record: record.cell.config.checkpointing,
    "lora_rank": _setting("lora_rank"),
    "rate_after_head": _setting("rate_after_head"),
    "unfreeze_every": _setting("unfreeze_every"),
    "freeze_bn": _setting("freeze_bn"),
    "layer_decay": _setting("layer_decay"),
    "ema": _setting("ema"),
    "early_stopping": _setting("early_stopping"),
    "chosen_precision": lambda run, record: _chosen(record),
    "folded_layers": lambda run, record: record.result.folded_layers if record.result else None,
    "packed_layers": lambda run, record: record.result.packed_layers if record.result else None,
    "lookahead": lambda run, record: record.result.lookahead if record.result else None,
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
_PAIRED: dict[str, Callable[[PairedComparison], Any]] = {
    "pairs": lambda found: found.pairs,
    "paired_seconds": lambda found: found.seconds,
    "paired_memory_bytes": lambda found: found.peak_bytes,
    "paired_in_turns": lambda found: not found.apart if found.pairs else None,
    "paired_against": _of_others(lambda found: found.against.config.regime),
    "speed_up": _of_others(lambda found: found.speed_up.value if found.speed_up else None),
    "speed_up_low": _of_others(lambda found: found.speed_up.low if found.speed_up else None),
    "speed_up_high": _of_others(lambda found: found.speed_up.high if found.speed_up else None),
}
"""Column → its value for a cell that process pairs timed. It is the same for all seeds."""
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
_TURN_COLUMNS = (
    "reason",
    "pair_id",
    "pair",
    "in_turns",
    "turn",
    "turn_train_seconds",
    "turn_train_images",
    "turn_val_seconds",
    "turn_val_images",
    "start_seconds",
    "turns_peak_memory_bytes",
)
"""Columns of raw values that only turns of paired timing have."""
_BOOLEANS = (
    "frozen_verified",
    "git_dirty",
    "compile",
    "checkpointing",
    "freeze_bn",
    "cuda_graph",
    "features_reused",
    "paired_in_turns",
)
_INTEGERS = {
    "pairs",
    "folded_layers",
    "packed_layers",
    "lookahead",
    "seed",
    "epochs",
    "trained_epochs",
    "batch_size",
    "lora_rank",
    "unfreeze_every",
    "early_stopping",
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
_FLOATS = (
    "load_before",
    "load_after",
    "other_cpu_share",
    "steal_share",
    "learning_rate",
    "rate_after_head",
    "layer_decay",
    "ema",
    "paired_seconds",
    "paired_memory_bytes",
    "speed_up",
    "speed_up_low",
    "speed_up_high",
)


def columns() -> list[str]:
    """All columns in order: facts about a cell, what process pairs measured of it, then its metrics.

    Raises `ConfigError` if a metric from outside has the name of another column.
    """
    if taken := [name for name in METRICS if name in _FACTS or name in _PAIRED]:
        raise ConfigError(f"metric {taken[0]!r}: another column of the table has this name; rename the metric")
    return [*_FACTS, *_PAIRED, *METRICS]


def _chosen(record: Record) -> str | None:
    choice = record.result.choice if record.result else None
    return choice.precision if choice else None


def _of_steps(record: Record, setting: int) -> int | None:
    """A setting of training by steps; None for regimes that fit their head at once, which don't read it."""
    return setting if REGIMES[record.cell.config.regime].fit == "steps" else None


def _views(record: Record) -> int | None:
    """Number of views per training image; None for regimes that make new crops every epoch."""
    config = record.cell.config
    return config.views if REGIMES[config.regime].features == "once" else None


def _learning_rate(record: Record) -> float | None:
    """Learning rate at the first epoch; None if nothing is trained, or if it was not yet chosen."""
    config = record.cell.config
    if record.result:
        return record.result.learning_rate
    chosen_later = config.protocol == "tuned" or not REGIMES[config.regime].by_steps
    return None if chosen_later else config.learning_rate


def row(
    run: str, record: Record, truth: tuple[int, ...] | None = None, timed: Comparisons | None = None
) -> dict[str, Any]:
    """One record as a flat row with all `columns`; unknown values are None.

    `truth` has the true labels of the run's validation images, and `timed` its process pairs; without them, values that
    need them are unknown.
    """
    cell = finished(record, truth)
    base = timed.base(record.cell) if timed else None
    found = timed.of(record.cell, base) if timed and base else None
    facts = {name: fact(run, record) for name, fact in _FACTS.items()}
    facts |= {name: value(found) if found else None for name, value in _PAIRED.items()}
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
                values = epoch.model_dump(exclude={"phases"}) | {"epoch": epoch.epoch + 1}
                rows.append(cell | values | {f"{name}_seconds": seconds for name, seconds in phases.items()})
    known = [name for name in EpochResult.model_fields if name != "phases"]
    return pd.DataFrame(rows, columns=[*_CELL_COLUMNS, *known, *(f"{name}_seconds" for name in PHASES)])


def turn_rows(runs: Iterable[RunFolder]) -> pd.DataFrame:
    """Raw values of paired timing, with one row per turn of each cell of a process pair.

    A cell whose process failed has one row for the pair, with its status and reason.
    """
    rows = [
        each
        for run in runs
        for record in run.pairs().values()
        for cell, side in zip(record.pair.cells, record.sides, strict=True)
        for each in _turns(run.name, record, cell, side)
    ]
    kinds = {name: "Int64" for name in _TURN_COLUMNS if name.endswith(("images", "bytes"))} | {
        "seed": "Int64",
        "batch_size": "Int64",
        "pair": "Int64",
        "turn": "Int64",
    }
    return pd.DataFrame(rows, columns=[*_CELL_COLUMNS, *_TURN_COLUMNS]).astype(kinds)


def raw_rows(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """`epoch_rows`, then `turn_rows`. Turns have columns of their own, which are empty in the rows of epochs."""
    epochs, turns = epoch_rows(runs), turn_rows(runs)
    names = list(dict.fromkeys([*epochs, *turns]))
    if not len(turns):
        return epochs.reindex(columns=names)
    return pd.concat([epochs.astype({"epoch": "Int64"}), turns]).reindex(columns=names).reset_index(drop=True)


def _turns(run: str, record: PairRecord, cell: Cell, side: TimedSide) -> list[dict[str, Any]]:
    config, turns = cell.config, side.turns
    of_all = {
        "run": run,
        "cell_id": cell.id,
        "status": side.status,
        "dataset": record.dataset,
        "backbone": config.backbone,
        "weights": config.weights,
        "regime": config.regime,
        "device": cell.device,
        "precision": config.precision,
        "execution": config.execution,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "reason": side.reason or None,
        "pair_id": record.pair_id,
        "pair": record.pair.number,
        "in_turns": record.together,
        "start_seconds": side.start_seconds,
        "turns_peak_memory_bytes": side.peak_memory_bytes,
    }
    if turns is None:
        return [of_all]
    values = {name: getattr(turns, name) or (None,) * len(turns) for name in Turns.model_fields}
    return [
        of_all | {"turn": number} | {f"turn_{name}": each[number] for name, each in values.items()}
        for number in range(len(turns))
    ]


def load_results(paths: str | Path | Iterable[str | Path], results: Path) -> pd.DataFrame:
    """See `bench.load_results`."""
    names = [paths] if isinstance(paths, str | Path) else list(paths)
    return load_runs(find_runs(names, results))


def load_runs(runs: Iterable[RunFolder]) -> pd.DataFrame:
    """All records of some runs, run by run, in the order in which their cells were planned."""
    rows = []
    for run in runs:
        truth, timed = run.manifest().dataset.truth, Comparisons(run.pairs().values())
        rows += [row(run.name, record, truth, timed) for record in run.records().values()]
    return frame(rows)
