"""Times the epochs of some regimes, executions, precisions or settings against each other by process pairs.

Nothing is trained to the end.

It does what a sweep does for its pairs, but keeps no run: the records are returned. Weights are random, since times
don't depend on them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.analysis.paired import PairedComparison, compare
from bench.console import say
from bench.execution import discovery
from bench.execution.base import Executor, PairAttempt, PairJob
from bench.execution.monitor import busy_warning
from bench.execution.signals import ending_as_interrupt
from bench.store.pairs import PairRecord
from bench.store.records import Cell, PlannedPair
from bench.sweep.grid import SHARED_SETTINGS, Grid, Matrix, Paired, check_settings, expand
from bench.sweep.options import DEFAULT_TIMEOUT_SECONDS
from bench.sweep.pairs import make_pair_record, plan_pairs, time_limit, without_turns
from bench.sweep.plan import find_images, with_code
from bench.sweep.progress import Reporter, make_reporter
from bench.sweep.settings import values_of
from bench.sweep.ways import choose_ways
from tl.config import TrainConfig
from tl.datasets import Splits
from tl.errors import ConfigError
from tl.images import open_store
from tl.specs import canonical
from tl.tasks import TASKS
from tl.weights import Weights

REGIMES_TIMED = {"fast": ("finetune", "frozen"), "plain": ("finetune", "frozen-tutorial")}
"""Execution → the regimes that are timed unless others are given: those of the claim that the suite exists for."""
USUAL_AGAINST = "finetune"
"""The regime that the others are compared with if it is among them. Otherwise it is the first one."""
NAME = "time"
RANDOM = Weights(kind="random", source="random", reason="times don't depend on weights")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What is to be timed."""

    splits: Splits
    rotations: tuple[tuple[Cell, ...], ...]
    """Cells that take turns: first the one that the others are compared with."""
    paired: Paired

    @property
    def pairs(self) -> tuple[PlannedPair, ...]:
        """All process pairs, in the order in which they run."""
        return tuple(plan_pairs(self.rotations, self.paired.pairs, self.paired.seconds, NAME).values())


def plan_timing(
    backbones: Sequence[str],
    regimes: Sequence[str],
    executor: Executor,
    *,
    executions: Sequence[str] = ("fast",),
    precisions: Sequence[str] = ("fp32",),
    settings: Sequence[str] = (),
    device: str = "auto",
    data: str = "auto",
    task: str | None = None,
    batch_size: int | None = None,
    pairs: int = Paired().pairs,
    seconds: float = Paired().seconds,
) -> Timing:
    """Check what is to be timed, and find the images.

    Cells are compared that differ in one thing, so of regimes, executions, precisions and settings only one can have
    several values. Without regimes they are those of `REGIMES_TIMED`, or `USUAL_AGAINST` if something else has several.
    `settings` are those of a grid's `[train]`, as `NAME=VALUE` or `NAME=VALUE,VALUE`. `data` is a folder or a name, as
    for a sweep. Raises `UserError` for mistakes that the user can correct.
    """
    paired = Paired(pairs=pairs, seconds=seconds)
    given = _settings(settings, {"batch_size": batch_size, "task": task})
    varied = {name: values for name, values in given.items() if len(values) > 1}
    chosen = _axes(regimes, executions, precisions, varied)
    shared = {name: values[0] for name, values in given.items() if name not in varied}
    matrix = Matrix(
        backbones=list(backbones),
        regimes=chosen["regime"],
        devices=[device],
        precision=chosen["precision"],
        execution=chosen["execution"],
    )
    names: dict[str, list[str]] = {}

    def spec(given: str) -> str:
        if not names:
            names.update(discovery.backbone_names(executor))
        return canonical(given, names)

    grid = Grid(name=NAME, dataset=data, matrix=matrix, train=shared, paired=paired)
    planned = with_code(expand(grid, weights="random", spec=spec, devices=executor.devices))
    if "task" in varied:
        raise ConfigError(f"task={','.join(given['task'])}: images are for one task; give one")
    TASKS[grid.shared_settings["task"]].check_packages()
    splits = find_images(grid.dataset, task=grid.shared_settings["task"], download=True)
    open_store(splits)
    rotations: dict[tuple[str, str], list[Cell]] = {}
    for device_name, config in ((item.device, one) for item in planned for one in _with_each(item.config, varied)):
        cell = Cell(config=config, weights_digest="", dataset_digest=splits.digest, device=device_name)
        if why := without_turns(cell):
            raise ConfigError(f"regime={cell.config.regime!r}: can't be timed in turns: {why}; leave it out")
        rotations.setdefault((cell.device, cell.config.backbone), []).append(cell)
    return Timing(splits=splits, rotations=tuple(map(_in_order, rotations.values())), paired=paired)


def _settings(given: Sequence[str], options: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Setting → its values, each once, of options and of texts such as `fold=false,true`. Raises `ConfigError`."""
    found: dict[str, list[Any]] = {}
    for name, value in options.items():
        if value is not None:
            check_settings("", {name: value}, SHARED_SETTINGS)
            found[name] = [value]
    for text in given:
        name, values = values_of(text)
        if name in found:
            raise ConfigError(f"--set {text!r}: {name} is given twice")
        for value in values:
            check_settings("", {name: value}, SHARED_SETTINGS)
        found[name] = values
    return found


def _with_each(config: TrainConfig, varied: Mapping[str, Sequence[Any]]) -> list[TrainConfig]:
    """The config with each value of a setting. Raises `ConfigError` if it doesn't read the setting."""
    for name, values in varied.items():
        made = [config.replace(**{name: value}) for value in values]
        if len({getattr(each, name) for each in made}) < len(values):
            raise ConfigError(
                f"--set {name}={','.join(map(str, values))}: regime {config.regime!r} in execution "
                f"{config.execution!r} doesn't read all of these; give another --regime"
            )
        return made
    return [config]


def _axes(
    regimes: Sequence[str],
    executions: Sequence[str],
    precisions: Sequence[str],
    settings: Mapping[str, Sequence[Any]],
) -> dict[str, list[str]]:
    """Axis → its values, each once. `settings` are those with several values.

    Raises `ConfigError` unless exactly one axis or setting has several.
    """
    chosen = {
        axis: list(dict.fromkeys(values))
        for axis, values in {"regime": regimes, "execution": executions, "precision": precisions}.items()
    }
    several = [axis for axis, values in chosen.items() if len(values) > 1]
    settled = [f"--set {name}={','.join(map(str, values))}" for name, values in settings.items()]
    if not chosen["regime"]:
        usual = REGIMES_TIMED.get(chosen["execution"][0], REGIMES_TIMED["fast"])
        chosen["regime"] = [USUAL_AGAINST] if several or settled else list(usual)
    elif not several and not settled:
        (regime,) = chosen["regime"]
        check_settings("", {"regime": regime}, ["regime"])
        raise ConfigError(f"regime={regime!r}: is the only one; give another --regime to compare it with")
    if len(several) + len(settled) > 1:
        given = " and ".join([*(f"--{axis} {','.join(chosen[axis])}" for axis in several), *settled])
        raise ConfigError(f"{given}: only one of them can have several values, so that cells differ in one thing")
    return chosen


def _in_order(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    return tuple(sorted(cells, key=lambda cell: cell.config.regime != USUAL_AGAINST))  # sorting is stable


def time_in_turns(
    timing: Timing, executor: Executor, console: Console, on_end: Callable[[PairRecord], object] = lambda record: None
) -> list[PairRecord]:
    """Time all pairs, and return their records. The progress is printed to `console`.

    `on_end` is called with each record as its pair ends, also of those before an interruption.
    Raises `KeyboardInterrupt` for Ctrl-C, SIGTERM or SIGHUP, when all processes have been ended.
    """
    pairs = timing.pairs
    with ending_as_interrupt(), tempfile.TemporaryDirectory(prefix="tl-bench-") as logs:
        executor.prepare()
        if executor.runs_here and (busy := busy_warning()):
            say(console, f"WARNING: {busy}", style="yellow")
        choose_ways([(cell, RANDOM) for cells in timing.rotations for cell in cells], timing.splits, executor, console)
        with make_reporter(console, (), len(pairs)) as reporter:
            collector = Collector(timing.splits, reporter, on_end)
            executor.run_pairs(_jobs(pairs, timing.splits, Path(logs), collector), collector, lambda: False)
    return collector.records


def comparisons(timing: Timing, records: Sequence[PairRecord]) -> list[PairedComparison]:
    """The comparisons of each rotation, in its order."""
    found = [compare(cell, against, records) for against, *others in timing.rotations for cell in others]
    return [each for each in found if each is not None]


@dataclass
class Collector:
    """Makes a record of each pair that has ended, and reports progress. It implements `PairEvents`."""

    splits: Splits
    reporter: Reporter
    on_end: Callable[[PairRecord], object]
    records: list[PairRecord] = field(default_factory=list)

    def peak_bytes(self, cell: Cell) -> int | None:
        """The largest peak of memory of a cell's processes so far; None if it is unknown."""
        sides = [side for record in self.records if (side := record.side(cell))]
        return max((side.peak_memory_bytes for side in sides if side.peak_memory_bytes), default=None)

    def pair_started(self, pair: PlannedPair) -> None:  # noqa: D102 - see PairEvents
        self.reporter.pair_started(pair)

    def warned(self, text: str) -> None:  # noqa: D102 - see PairEvents
        self.reporter.warned(text)

    def pair_ended(self, pair: PlannedPair, attempt: PairAttempt) -> None:  # noqa: D102 - see PairEvents
        record = make_pair_record(pair, attempt, self.splits, order=len(self.records))
        self.records.append(record)
        self.reporter.pair_ended(record)
        self.on_end(record)


def _jobs(pairs: Sequence[PlannedPair], splits: Splits, logs: Path, collector: Collector) -> Iterator[PairJob]:
    """Yield the jobs of the pairs. Those that have ended say how much memory each cell needs."""
    for pair in pairs:
        yield PairJob(
            pair=pair,
            splits=splits,
            weights=(RANDOM,) * len(pair.cells),
            log=logs / f"{pair.id}.log",
            timeout_seconds=time_limit(pair, DEFAULT_TIMEOUT_SECONDS),
            needed_bytes=tuple(collector.peak_bytes(cell) for cell in pair.cells),
        )
