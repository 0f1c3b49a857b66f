"""What is compared: cells with their samples, read from runs and from pytest-benchmark files. No torch, no pandas."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.groups import varying_settings
from bench.metrics import METRICS
from bench.records import Cell, Manifest, Record, Run, find_run
from tl.errors import UserError, not_one_of

Axis = Literal["run", "regime", "device", "backbone", "precision", "seed"]
Kind = Literal["ratio", "difference", "exact"]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a sample is a figure of. Ratios belong to a machine; accuracies and exact counters don't."""

    name: str
    label: str
    kind: Kind
    better: Literal["lower", "higher"]

    def show(self, value: float) -> str:
        """For people, with its unit."""
        if self.name in METRICS:
            metric = METRICS[self.name]
            unit = metric.shown_unit or metric.unit
            if self.kind == "exact":  # to the last digit: a change of one is a change
                return f"{value:,.12g}" + ("" if metric.unit == "count" else f" {metric.unit}")
            return metric.show(value) + ("" if unit in ("share", "count", "index") else f" {unit}")
        if self.kind == "exact":
            return f"{value:,.12g}"
        step, unit = next(((s, u) for s, u in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")) if value >= s), (1e-9, "ns"))
        return f"{value / step:.3g} {unit}"


SECONDS = Quantity(name="seconds", label="time", kind="ratio", better="lower")
"""Of a round of a benchmark."""


def quantity_of(metric: str) -> Quantity | None:
    """A metric of `bench.metrics` as something to compare; None where neither direction is the better one."""
    found = METRICS[metric]
    if found.better is None:
        return None
    kind: Kind = "exact" if found.exact else "difference" if found.unit == "share" else "ratio"
    return Quantity(name=metric, label=found.label, kind=kind, better=found.better)


QUANTITIES: dict[str, Quantity] = {name: found for name in METRICS if (found := quantity_of(name))}
COMPARED = ("epoch_seconds", "peak_memory_bytes", "val_accuracy_last")
"""Metrics of a run that are compared when none are named, and with them every exact one."""
Sample = int | str
"""A seed, or a round of a benchmark."""


@dataclass(kw_only=True)
class Entry:
    """A cell on one side; its samples are those of its seeds, or of a benchmark's rounds."""

    label: str
    samples: dict[str, dict[Sample, float]] = field(default_factory=dict)
    """Quantity → sample → figure; unknown figures are missing."""
    right: dict[str, dict[int, list[bool]]] = field(default_factory=dict)
    """Accuracy → seed → whether each validation image was judged right."""
    lost: dict[Sample, str] = field(default_factory=dict)
    """Samples without a result → status and reason."""
    conditions: dict[str, set[str]] = field(default_factory=dict)
    """What times and memory depend on."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """All cells of one side."""

    name: str
    entries: dict[str, Entry]
    """By what must be equal on both sides."""
    quantities: dict[str, Quantity]
    told: tuple[str, ...] = ()
    """Of the machine and libraries, each once."""


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    run: Run
    manifest: Manifest
    records: dict[str, Record]


def read_sides(names: Sequence[str], *, by: Axis = "run", base: str | None = None) -> list[Side]:
    """The sides of a comparison, the first of which is what the others are held against.

    By run, each name is a side: a run's name or folder, a pytest-benchmark file, a folder of such files (each a round,
    its figure the median), or several of these joined by commas. By another axis all names are runs, put together, and
    the sides are the levels that they have of it. Raises `UserError`.
    """
    if by == "run":
        if len(names) < 2:
            raise UserError(f"{names[0]}: is compared with what? name another run, or give --by regime, for one")
        if base is not None:
            raise UserError(f"--base {base}: goes with --by regime and the like; of runs the first is the base")
        parts = [part for name in names for part in name.split(",")]
        if twice := next((part for part in parts if parts.count(part) > 1), None):
            raise UserError(f"{twice}: named twice")
        loaded = [_open(name) for name in names]
        settings = varying_settings(
            cell.config for runs, _ in loaded for run in runs for cell in run.manifest.cells.values()
        )
        return [
            _side(name, runs, files, by, settings) for name, (runs, files) in zip(_called(names), loaded, strict=True)
        ]
    runs = [_load(find_run(name)) for name in names]
    return _levels(runs, by, base)


def _called(names: Sequence[str]) -> list[str]:
    """Short names where they tell the sides apart."""
    short = [",".join(Path(part).name or part for part in name.split(",")) for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _open(name: str) -> tuple[list[_Loaded], list[tuple[str, Any]]]:
    """The runs and the benchmark files of one side."""
    runs, files = [], []
    for part in name.split(","):
        place = Path(part)
        if place.is_file():
            files.append((place.stem, _benchmarks(place)))
        elif place.is_dir() and not (place / "manifest.json").is_file() and (there := sorted(place.glob("*.json"))):
            files += [(file.stem, _benchmarks(file)) for file in there]
        else:
            runs.append(_load(find_run(part)))
    return runs, files


def _load(run: Run) -> _Loaded:
    loaded = _Loaded(run=run, manifest=run.manifest(), records=run.records())
    if not loaded.records:
        raise UserError(f"{run.folder}: has no records: nothing ran there yet")
    return loaded


def _levels(runs: list[_Loaded], by: Axis, base: str | None) -> list[Side]:
    cells = {cell_id: cell for run in runs for cell_id, cell in run.manifest.cells.items()}
    if len(cells) < sum(len(run.manifest.cells) for run in runs):
        raise UserError(f"--by {by}: these runs share cells: give one of them")
    levels = list(dict.fromkeys(_level(cell, by) for cell in cells.values()))
    if base is not None and base not in levels:
        raise UserError(not_one_of("--base", base, levels))
    if len(levels) < 2:
        raise UserError(f"--by {by}: there is only {levels[0]}")
    first = levels[0] if base is None else base
    settings = [name for name in varying_settings(cell.config for cell in cells.values()) if name != by]
    return [
        _side(level, runs, [], by, settings, level) for level in [first, *(each for each in levels if each != first)]
    ]


def _level(cell: Cell, by: Axis) -> str:
    return cell.device if by == "device" else str(getattr(cell.config, by))


def _key(cell: Cell, by: Axis) -> str:
    """What two cells must have in common to be compared."""
    bare = cell.but(seed=0)
    if by in ("regime", "backbone"):
        # Other backbones have other weights, and so has a regime that starts from random ones.
        bare = bare.but(**{by: "finetune" if by == "regime" else "any"}, weights="auto").replace(weights_digest="")
    if by == "precision":
        bare = bare.but(precision="fp32")
    if by == "device":
        bare = bare.replace(device="any")
    return bare.id


def _label(cell: Cell, by: Axis, settings: Sequence[str]) -> str:
    config = cell.config
    parts = {"backbone": config.backbone, "regime": config.regime, "device": cell.device}
    shown = [value for name, value in parts.items() if name != by]
    shown += [config.precision] if config.precision != "fp32" and by != "precision" else []
    return " ".join([*shown, *(f"{name} {getattr(config, name)}" for name in settings)])


def _side(
    name: str,
    runs: Sequence[_Loaded],
    files: Sequence[tuple[str, Any]],
    by: Axis,
    settings: Sequence[str],
    level: str | None = None,
) -> Side:
    entries: dict[str, Entry] = {}
    machines: dict[str, None] = {}
    for run in runs:
        truth = run.manifest.dataset.val_labels
        for cell_id, cell in run.manifest.cells.items():
            if level is not None and _level(cell, by) != level:
                continue
            entry = entries.setdefault(_key(cell, by), Entry(label=_label(cell, by, settings)))
            # Levels of an axis are compared seed by seed; the seed itself as an axis leaves one sample.
            sample = 0 if by == "seed" else cell.config.seed
            record = run.records.get(cell_id)
            if record is None:
                entry.lost[sample] = "not run"
            elif record.result is None or record.status != "done":
                entry.lost[sample] = f"{record.status}: {record.reason}"
            else:
                if sample in entry.samples.get("total_params", {}):
                    raise UserError(f"{name}: has {cell} twice")
                _add(entry, record, sample, truth, by)
                machines[str(record.environment)] = None
    quantities = dict(QUANTITIES) if runs else {}
    for stem, data in files:
        _add_benchmarks(entries, quantities, data, stem if len(files) > 1 else None)
        machines[_benchmark_machine(data)] = None
    return Side(name=name, entries=entries, quantities=quantities, told=tuple(machines))


def _add(entry: Entry, record: Record, seed: int, truth: Sequence[int], by: Axis) -> None:
    result = record.result
    assert result is not None
    for name in QUANTITIES:
        value = METRICS[name].value(record, result)
        if value is not None:
            entry.samples.setdefault(name, {})[seed] = float(value)
            if predictions := METRICS[name].predictions:
                pairs = zip(predictions(result).labels, truth, strict=True)
                entry.right.setdefault(name, {})[seed] = [said == true for said, true in pairs]
    machine = record.environment
    told = {
        "cpu": machine.cpu,
        "cores": str(machine.cores),
        "threads": str(result.threads),
        **({} if by == "device" else {"device": result.device_name}),
        "allocator": record.allocator,
        **{name: machine.packages.get(name, "none") for name in ("torch", "torchvision", "timm", "numpy")},
    }
    for name, text in told.items():
        entry.conditions.setdefault(name, set()).add(text)


def _benchmarks(path: Path) -> Any:
    """A pytest-benchmark file with raw data. Raises `UserError`."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("benchmarks"), list) or "machine_info" not in data:
        raise UserError(f"{path}: neither a run's folder nor a file of pytest-benchmark (--benchmark-json)")
    if not data["benchmarks"]:
        raise UserError(f"{path}: has no benchmarks")
    for one in data["benchmarks"]:
        try:
            values = one["stats"]["data"]
            fine = one["fullname"] and values and all(type(v) in (int, float) and 0 < v < math.inf for v in values)
        except (KeyError, TypeError):
            fine = False
        if not fine:
            name = one.get("fullname", "a benchmark") if isinstance(one, dict) else "a benchmark"
            raise UserError(f"{path}: {name} has no raw data: write the file with --benchmark-json, or --save-data")
    return data


def _add_benchmarks(
    entries: dict[str, Entry], quantities: dict[str, Quantity], data: Any, round_name: str | None
) -> None:
    for one in data["benchmarks"]:
        entry = entries.setdefault(f"benchmark {one['fullname']}", Entry(label=one["fullname"]))
        seconds = entry.samples.setdefault(SECONDS.name, {})
        quantities[SECONDS.name] = SECONDS
        values = one["stats"]["data"]
        if round_name is None:
            seconds |= dict(enumerate(values))
        else:
            seconds[round_name] = statistics.median(values)
        for name, value in (one.get("extra_info") or {}).items():
            if type(value) is int:
                quantities.setdefault(name, Quantity(name=name, label=name, kind="exact", better="lower"))
                entry.samples.setdefault(name, {})[round_name or 0] = float(value)
            elif isinstance(value, str):
                entry.conditions.setdefault(name, set()).add(value)
        info = data["machine_info"]
        cpu = info.get("cpu") or {}
        told = {"cpu": cpu.get("brand_raw"), "cores": cpu.get("count"), "python": info.get("python_version")}
        for key, text in (told | (info.get("packages") or {})).items():
            entry.conditions.setdefault(key, set()).add(str(text))


def _benchmark_machine(data: Any) -> str:
    info = data["machine_info"]
    packages = ", ".join(f"{name} {version}" for name, version in (info.get("packages") or {}).items())
    commit = (data.get("commit_info") or {}).get("id") or ""
    parts = [(info.get("cpu") or {}).get("brand_raw") or "unknown processor", f"Python {info.get('python_version')}"]
    parts += [packages] if packages else []
    return "; ".join(parts) + (f", commit {commit[:12]}" if commit else "")
