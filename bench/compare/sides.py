"""Reads what is compared: cells with their samples, from runs and pytest-benchmark files. No torch, no pandas."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.analysis.groups import varying_settings
from bench.analysis.metrics import METRICS, ComparedBy, Finished
from bench.analysis.words import in_words
from bench.compare import pytest_benchmark
from bench.store.environment import packages
from bench.store.records import USUAL, Cell, Lost, Manifest, Record
from bench.store.runs import RunFolder, each_once, find_run, find_runs
from tl.errors import UserError, nearest, not_one_of
from tl.tasks import TASKS
from tl.text import shortened

Axis = Literal["run", "regime", "device", "backbone", "precision", "execution", "seed"]
Repeats = Literal["seed", "round"]
"""What the samples of a cell are: seeds of a run, or rounds of a benchmark."""
Value = int | float


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A quantity that samples measure. Times and memory depend on the machine; shares and exact counters don't."""

    name: str
    label: str
    compared: ComparedBy
    better: Literal["lower", "higher"]
    by_signs: bool = False
    """See `Metric.by_signs`."""

    @property
    def in_bytes(self) -> bool:
        """True if it is an amount of memory."""
        return self.name in METRICS and METRICS[self.name].in_bytes

    def show(self, value: Value) -> str:
        """Format a value for people, with its unit."""
        metric = METRICS.get(self.name)
        if self.compared == "exact":
            return f"{exact_text(value)} {metric.unit_unscaled if metric else ''}".rstrip()
        if metric:
            return metric.say(value)
        step, unit = next(((s, u) for s, u in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")) if value >= s), (1e-9, "ns"))
        return f"{value / step:.3g} {unit}"


def exact_text(value: Value, sign: str = "") -> str:
    """Format a counter with all its digits, since any change of it counts."""
    whole = isinstance(value, float) and value.is_integer()
    return format(int(value) if whole else value, f"{sign},")


SECONDS = Quantity(name="seconds", label="time", compared="ratio", better="lower")
"""The time of one round of a benchmark."""
TAILS: dict[str, Callable[[Sequence[float]], float]] = {
    "90th percentile": lambda raw: float(np.quantile(raw, 0.9)),
    "mean": statistics.fmean,
}
"""Summaries of a round's raw times that show what the median hides. They are reported and decide nothing."""
FEW_VALUES = 3
"""Two processes have never measured so many different raw times alike. A coarse clock may show fewer values again."""


def quantities(task: str = "classification") -> dict[str, Quantity]:
    """The metrics of runs that can be compared: those for which more is better, or less is. Labels are of the task."""
    return {
        name: Quantity(
            name=name,
            label=in_words(metric.label, TASKS[task]),
            compared=metric.compared,
            better=metric.better,
            by_signs=metric.by_signs,
        )
        for name, metric in METRICS.items()
        if metric.better is not None
    }


def compared_by_default() -> list[str]:
    """Metrics that are compared when none are named, ratios first. Exact metrics are compared in addition."""
    names = [name for name, metric in METRICS.items() if metric.by_default]
    return sorted(names, key=lambda name: METRICS[name].compared != "ratio")


MEMORY_METHOD = "memory method"
"""The condition that only memory depends on."""
SOURCE = "source"
"""The condition for a benchmark's own code, if its `extra_info` has that key."""
SampleName = int | str
"""A seed, or the name of a round."""


@dataclass(kw_only=True)
class SideCell:
    """A cell on one side, with its samples: one per seed of a run, or one per round of a benchmark."""

    label: str
    repeats: Repeats
    done: set[SampleName] = field(default_factory=set)
    """Samples with a result."""
    samples: dict[str, dict[SampleName, Value]] = field(default_factory=dict)
    """Quantity → sample → value; unknown values are left out."""
    by_image: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    """Accuracy → seed → the score of each validation image, by its task: of a class, whether it is right."""
    lost: dict[SampleName, Lost] = field(default_factory=dict)
    """Sample without a result → the reason."""
    tails: dict[str, dict[SampleName, float]] = field(default_factory=dict)
    """Name in `TAILS` → round → its value in seconds. Runs have none."""
    single: set[SampleName] = field(default_factory=set)
    """Rounds in which a benchmark has a single raw time."""
    conditions: dict[str, dict[SampleName, str]] = field(default_factory=dict)
    """Condition that times and memory depend on → sample → value. An unknown value is empty or left out."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison."""

    name: str
    cells: dict[str, SideCell]
    """Key that must be equal on both sides → cell."""
    quantities: dict[str, Quantity]
    by: Axis = "run"
    task: str = "classification"
    """The task of its runs, whose score an accuracy is."""
    machines: tuple[str, ...] = ()
    """Distinct machine and library descriptions."""
    hosts: tuple[str, ...] = ()
    """Names of the machines in their network, sorted; empty if a part of the side doesn't say."""
    written: Mapping[SampleName, datetime] = field(default_factory=dict)
    """Round → when its file was written, where the file says so."""
    rounds: tuple[SampleName, ...] = ()
    """Names of all rounds."""
    unstated: tuple[str, ...] = ()
    """What times depend on and this side doesn't say."""


@dataclass(frozen=True, kw_only=True)
class _File:
    path: Path
    content: pytest_benchmark.BenchmarkFile


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    run: RunFolder
    manifest: Manifest
    records: dict[str, Record]


def read_sides(
    names: Sequence[str], *, by: Axis = "run", base: str | None = None, results: Path = Path("results")
) -> list[Side]:
    """Read the sides of a comparison. The first is the base that the others are compared with.

    By run, each name is a side: a run's name or folder, a pytest-benchmark file, a folder of such files, or several of
    these joined by commas. A file is one round, named like the file, with the median as its value. By another axis, all
    names are runs, which are pooled, and each level of the axis is a side. Runs are looked up below `results`.
    Raises `UserError`.
    """
    if by == "run":
        if len(names) < 2:
            raise UserError(f"{names[0]}: a comparison needs a second run; name one, or give --by, such as --by regime")
        if base is not None:
            raise UserError(f"--base {base} needs --by, such as --by regime; without it, the first run is the base")
        places = [_places(name, results) for name in names]
        each_once(part for runs, files in places for part in (*(run.folder for run in runs), *files))
        loaded = [([_load(run) for run in runs], [_read(path) for path in files]) for runs, files in places]
        _check_copies(loaded)
        settings = _settings([cell for runs, _ in loaded for run in runs for cell in run.manifest.cells.values()], by)
        return [
            _side(name, runs, files, by, settings) for name, (runs, files) in zip(_called(names), loaded, strict=True)
        ]
    return _levels([_load(run) for run in find_runs(names, results)], by, base)


def inputs_of(names: Sequence[str], *, by: Axis = "run", results: Path = Path("results")) -> list[Path]:
    """The folders of runs and the files that `read_sides` reads. Raises `UserError`."""
    if by != "run":
        return [run.folder for run in find_runs(names, results)]
    places = [_places(name, results) for name in names]
    return [path for runs, files in places for path in (*(run.folder for run in runs), *files)]


def _called(names: Sequence[str]) -> list[str]:
    """Short names of the sides; full names if short ones are not unique."""
    short = [",".join(Path(part).name or part for part in name.split(",")) for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _places(name: str, results: Path) -> tuple[list[RunFolder], list[Path]]:
    """The runs and the benchmark files of one side."""
    runs, files = [], []
    for part in name.split(","):
        if not part.strip():
            raise UserError(f"{name!r}: has an empty name between commas, or is empty")
        place = Path(part)
        if place.is_file():
            files.append(place)
        elif place.is_dir() and not any(os.path.lexists(run / "manifest.json") for run in (place, results / part)):
            files += _files_in(place, results)
        elif place.exists() and not place.is_dir():
            raise UserError(f"{part}: is neither a folder nor a regular file")
        else:
            runs.append(_run(part, results))
    stems = [file.stem for file in files]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise UserError(f"{name}: two files are called {twice}.json; each file is a round and needs a unique name")
    return runs, files


def _run(name: str, results: Path) -> RunFolder:
    """The run of that name. Raises `UserError`, which names a folder or file beside it that is called nearly so."""
    try:
        return find_run(name, results)
    except UserError:
        place = Path(name)
        beside = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        if os.path.lexists(place) or not (close := nearest(place.name, beside)):
            raise
        meant = os.fspath(place.parent / close[0])
        raise UserError(f"{shortened(name)}: no such run, folder or file; did you mean {meant!r}?") from None


def _files_in(folder: Path, results: Path) -> list[Path]:
    """The benchmark files of a folder, or of the only folder in a storage folder, which has one for each machine."""
    if inside := sorted(folder.glob("*.json")):
        return inside
    nested = sorted(folder.glob("*/*.json"))
    if any(path.name == "manifest.json" for path in nested):  # a folder of runs, of which one must be named
        find_run(folder, results)
    machines = list(dict.fromkeys(path.parent for path in nested))
    if len(machines) > 1:
        names = ", ".join(map(str, machines))
        raise UserError(f"{folder}: has files of {len(machines)} machines or versions of Python; name one of {names}")
    if not nested:
        raise UserError(f"{folder}: is a folder without a run (manifest.json) and without files of pytest-benchmark")
    return nested


def _read(path: Path) -> _File:
    return _File(path=path, content=pytest_benchmark.read(path))


def _check_copies(sides: Sequence[tuple[Sequence[_Loaded], Sequence[_File]]]) -> None:
    """Raise `UserError` if the same measurement is given twice: a copy says nothing about scatter or about a change."""
    records: dict[tuple[str, datetime, float], RunFolder] = {}
    for runs, _ in sides:
        for run in runs:
            for cell_id, record in run.records.items():
                known = records.setdefault((cell_id, record.started, record.wall_seconds), run.run)
                if known is not run.run:
                    raise UserError(
                        f"{run.run.folder}: its record of {record.cell} is a copy of that in {known.folder} (started "
                        f"{record.started:%Y-%m-%d %H:%M:%S}); a copy shows nothing: run the cell again"
                    )
    moments: dict[datetime, Path] = {}
    measured: dict[frozenset[tuple[str, tuple[float, ...]]], _File] = {}
    for file in (file for _, files in sides for file in files):
        again = f"each file must be a run of its own, since a copy shows nothing: measure {file.path} again"
        written, raw = file.content.written, file.content.raw_times
        if written is not None and (known_path := moments.setdefault(written, file.path)) is not file.path:
            raise UserError(f"{file.path}: has the datetime of {known_path} ({written.isoformat()}); {again}")
        known_file = measured.setdefault(raw, file)
        if known_file is not file:
            values = {value for _, data in raw for value in data}
            if len(values) >= FEW_VALUES or written is None or known_file.content.written is None:
                raise UserError(f"{file.path}: has the raw times of {known_file.path}; {again}")


def _load(run: RunFolder) -> _Loaded:
    loaded = _Loaded(run=run, manifest=run.manifest(), records=run.records())
    if not loaded.records:
        raise UserError(f"{run.folder}: has no records, since nothing has run yet")
    return loaded


def _levels(runs: list[_Loaded], by: Axis, base: str | None) -> list[Side]:
    cells = {cell_id: cell for run in runs for cell_id, cell in run.manifest.cells.items()}
    if len(cells) < sum(len(run.manifest.cells) for run in runs):
        raise UserError(f"--by {by}: these runs share cells; name only one of them")
    levels = list(dict.fromkeys(_level(cell, by) for cell in cells.values()))
    if base is not None and base not in levels:
        raise UserError(not_one_of("--base", base, levels))
    if len(levels) < 2:
        raise UserError(f"--by {by}: at least two are needed, but there is only {levels[0]}")
    first = levels[0] if base is None else base
    settings = _settings(list(cells.values()), by)
    return [
        _side(level, runs, [], by, settings, level) for level in [first, *(each for each in levels if each != first)]
    ]


def _settings(cells: Sequence[Cell], by: Axis) -> list[str]:
    """Settings that labels need, besides backbone, regime and device, so that no two cells have the same label."""
    found = varying_settings(cell.config for cell in cells)
    if by not in ("regime", "backbone") and len({cell.config.weights for cell in cells}) > 1:
        found.append("weights")
    return found


def _level(cell: Cell, by: Axis) -> str:
    return cell.device if by == "device" else str(getattr(cell.config, by))


def _key(cell: Cell, by: Axis) -> str:
    """A key that is equal for cells that can be compared."""
    if by == "regime":
        return cell.without_start.id
    bare = cell.but(seed=0)
    if by == "backbone":  # other backbones have other weights
        bare = bare.but(backbone="any", weights="auto").replace(weights_digest="")
    if by in USUAL:
        bare = bare.but(**{by: USUAL[by]})
    if by == "device":
        bare = bare.replace(device="any")
    return bare.id


def _label(cell: Cell, by: Axis, settings: Sequence[str]) -> str:
    config = cell.config
    parts = {"backbone": config.backbone, "regime": config.regime, "device": cell.device}
    shown = [value for name, value in parts.items() if name != by]
    return " ".join([*shown, *cell.unusual(by), *(f"{name} {getattr(config, name)}" for name in settings)])


def _side(
    name: str,
    runs: Sequence[_Loaded],
    files: Sequence[_File],
    by: Axis,
    settings: Sequence[str],
    level: str | None = None,
) -> Side:
    cells: dict[str, SideCell] = {}
    machines: dict[str, None] = {}
    for run in runs:
        truth = run.manifest.dataset.truth
        for cell_id, cell in run.manifest.cells.items():
            if level is not None and _level(cell, by) != level:
                continue
            side_cell = cells.setdefault(_key(cell, by), SideCell(label=_label(cell, by, settings), repeats="seed"))
            # Levels of an axis are compared seed by seed; the seed itself as an axis leaves one sample.
            sample = 0 if by == "seed" else cell.config.seed
            record = run.records.get(cell_id)
            if record is not None and record.result is not None and record.status == "done":
                if sample in side_cell.done:
                    raise UserError(f"{name}: has {cell} twice")
                _add(side_cell, record, sample, truth, by)
                machines[str(record.environment)] = None
            elif sample not in side_cell.done:
                side_cell.lost[sample] = Lost.of(record)
    task = runs[0].manifest.dataset.task if runs else "classification"
    known = quantities(task) if runs else {}
    for file in files:
        _add_benchmarks(cells, known, file.path, file.content)
        machines[str(file.content)] = None
    hosts = {file.content.machine_info.node for file in files} | ({""} if runs else set())
    said = {
        "name of the machine": "" not in hosts,
        "versions of libraries": all(file.content.machine_info.packages for file in files),
    }
    return Side(
        name=name,
        cells=cells,
        quantities=known,
        by=by,
        task=task,
        machines=tuple(machines),
        hosts=() if "" in hosts else tuple(sorted(hosts)),
        written={file.path.stem: file.content.written for file in files if file.content.written is not None},
        rounds=tuple(file.path.stem for file in files),
        unstated=tuple(what for what, known in said.items() if not known),
    )


def _add(side_cell: SideCell, record: Record, seed: int, truth: tuple[Any, ...], by: Axis) -> None:
    result = record.result
    assert result is not None
    cell = Finished(record=record, result=result, truth=truth)
    side_cell.done.add(seed)
    side_cell.lost.pop(seed, None)  # an earlier part of this side may have lost it
    for name, metric in METRICS.items():
        value = metric.of(cell) if metric.better else None
        if value is None:
            continue
        try:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"is {value}")
            if metric.predictions:
                task = TASKS[record.cell.config.task]
                side_cell.by_image.setdefault(name, {})[seed] = task.image_scores(metric.predictions(result), truth)
        except ValueError as error:  # a record that was edited by hand
            raise UserError(f"record {record.cell_id} ({record.cell}): damaged: {metric.label}: {error}") from error
        side_cell.samples.setdefault(name, {})[seed] = value
    machine = record.environment
    conditions = {
        "cpu": machine.cpu,
        "cores": str(machine.cores),
        "system": machine.system,
        "python": machine.python,
        "threads": str(result.threads),
        **({} if by == "device" else {"device": result.device_name}),
        "allocator": record.allocator or "as the C library sets it",
        MEMORY_METHOD: result.memory_method,
        **{name: machine.packages.get(name, "none") for name in packages()},
    }
    for name, text in conditions.items():
        side_cell.conditions.setdefault(name, {})[seed] = text


def benchmark_key(fullname: str) -> str:
    """The key of a benchmark's cell in `Side.cells`."""
    return f"benchmark {fullname}"


def _add_benchmarks(
    cells: dict[str, SideCell], known: dict[str, Quantity], path: Path, data: pytest_benchmark.BenchmarkFile
) -> None:
    """Add the benchmarks of one process. Each is one sample, its median, since its rounds are not independent."""
    of_runs = quantities()
    for one in data.benchmarks:
        side_cell = cells.setdefault(benchmark_key(one.fullname), SideCell(label=one.fullname, repeats="round"))
        known[SECONDS.name] = SECONDS
        side_cell.done.add(path.stem)
        side_cell.samples.setdefault(SECONDS.name, {})[path.stem] = statistics.median(one.stats.data)
        for tail, summary in TAILS.items():
            side_cell.tails.setdefault(tail, {})[path.stem] = summary(one.stats.data)
        if len(one.stats.data) == 1:
            side_cell.single.add(path.stem)
        conditions = dict(data.machine_info.conditions)
        for name, value in one.extra_info.items():
            if type(value) is int:
                if name == SECONDS.name or (name in of_runs and of_runs[name].compared != "exact"):
                    raise UserError(
                        f"{path}: {one.fullname}: extra_info has {name!r}, which is the name of a metric; rename it"
                    )
                known.setdefault(name, Quantity(name=name, label=name, compared="exact", better="lower"))
                side_cell.samples.setdefault(name, {})[path.stem] = value
            elif isinstance(value, str):
                if name in conditions:
                    raise UserError(
                        f"{path}: {one.fullname}: extra_info has {name!r}, which machine_info has too; rename it"
                    )
                conditions[name] = value
        for name, text in conditions.items():
            side_cell.conditions.setdefault(name, {})[path.stem] = text
