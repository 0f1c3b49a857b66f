"""Plans a sweep: its cells, their images and weights, and which cells are already done."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.console import say
from bench.execution import discovery
from bench.execution.base import Executor
from bench.execution.monitor import Counters, read_counters
from bench.store.pairs import PairRecord
from bench.store.records import SETTLED, Cell, DatasetIdentity, Manifest, PlannedPair, Record, WeightsKey
from bench.store.runs import RunFolder
from bench.sweep.folder import run_folder
from bench.sweep.grid import SHARED_SETTINGS, Grid, Planned, check_keys, check_settings, expand, load_grid
from bench.sweep.options import Options
from bench.sweep.order import arrange
from bench.sweep.pairs import claims_timed, pairings, plan_pairs, why_unpaired
from bench.sweep.weights import Answer, resolve_weights, weights_key
from tl import hymenoptera
from tl.cache import check_cache, user_path
from tl.config import code_digest
from tl.datasets import Splits, load_splits
from tl.errors import ConfigError, DataWarning, FallbackWarning
from tl.folds import check_protocol
from tl.images import open_store
from tl.network import unreachable
from tl.specs import canonical
from tl.survey import Survey, survey
from tl.tables import is_table
from tl.tasks import TASKS
from tl.weights import Weights, check_folder


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The plan of a command: its cells, and which of them need not run."""

    run: RunFolder
    splits: Splits
    survey: Survey
    """What the images are, and what was found among them."""
    cells: dict[str, Cell]
    weights: dict[str, Answer]
    """Cell id → weights, or why there are none."""
    resolved: dict[WeightsKey, Weights]
    """Weights for the manifest."""
    done: dict[str, Record]
    """Cell id → record, if the cell need not run: it has a result, or it diverged."""
    damaged: dict[Path, str]
    """Path of a damaged record → what is wrong with it. These are set aside, and their cells run."""
    pairs: dict[str, PlannedPair]
    """Id → pair of paired timing, in the order in which they run."""
    done_pairs: dict[str, PairRecord]
    """Id → record, if the pair need not run; see `PairRecord.settled`."""
    unpaired: str
    """Why no pair is timed; empty if some are."""
    previous: Manifest | None
    """The manifest before this command; None for a new run."""
    counters: Counters | None = None
    """Counters of the machine when planning began; None if they are unknown."""
    keeps_images: bool = False
    """True if the run continues with the synthetic images that it started with, and doesn't look for real ones."""
    images_from: str = ""
    """Address from which a run would download real images, where a dry run has synthetic ones; else empty."""

    @property
    def missing_pairs(self) -> dict[str, PlannedPair]:
        """Pairs that are left to run, in the order in which they should."""
        return {pair_id: pair for pair_id, pair in self.pairs.items() if pair_id not in self.done_pairs}

    @property
    def missing(self) -> dict[str, Cell]:
        """Cells that are left to run, in the order in which they should."""
        left = {cell_id: cell for cell_id, cell in self.cells.items() if cell_id not in self.done}
        return arrange(left, self.run.folder.name, seeds={cell.config.seed for cell in self.cells.values()})


def choose_grid(
    name: str,
    axes: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    pairs: int | None = None,
    paired: bool = True,
) -> Grid:
    """Load a grid by name or file, and override its axes and settings by those that are not None.

    `pairs` replaces the grid's number of pairs, and without `paired` there are none. Raises `ConfigError`.
    """
    check_keys("settings", settings, SHARED_SETTINGS)
    given = {key: value for key, value in settings.items() if value is not None}
    grid = load_grid(name)
    check_settings("", given, SHARED_SETTINGS, others=grid.train | given)
    chosen = grid.override({axis: value for axis, value in axes.items() if value is not None}, given)
    return chosen.with_pairs(pairs, paired=paired)


def run_name(grid: Grid, data: str | None, weights: str, settings: Mapping[str, Any]) -> str:
    """The default name of a run's folder: the grid's name, with the options that change data, weights or settings.

    `settings` are those that a command gives in place of the grid's; None counts as not given. A protocol other than
    `fixed` is always part of the name.
    """
    parts = [grid.name]
    parts += [grid.shared_settings["protocol"]] if grid.shared_settings["protocol"] != "fixed" else []
    if data and data not in ("auto", grid.dataset, "hymenoptera"):
        parts.append(name_of_images(data))
    short = {"epochs": "epochs", "batch_size": "batch", "task": ""}
    for name, value in settings.items():
        if value is not None and name != "protocol":
            shown = re.sub(r"[^a-z0-9.]+", "-", str(value).lower()).strip("-")
            parts.append(f"{short[name]}{shown}" if name in short else f"{name}-{shown}")
    parts += [weights] if weights != "auto" else []
    return "-".join(parts)


def name_of_images(data: str) -> str:
    """The last part of a path to images, without the ending of a table; `data` if it has none."""
    place = user_path("data=", data).resolve()
    return (place.stem if is_table(place) else place.name) or "data"


def plan(grid: Grid, options: Options, executor: Executor, console: Console) -> Sweep:
    """Check everything that can be checked before anything is written, and find out which cells are missing.

    Raises `UserError` for mistakes that the user can correct.
    """
    counters = read_counters()
    if problem := check_cache():
        lost = "what it lacks, such as decoded images, is made again for each cell"
        say(console, f"WARNING: the cache {problem}; {lost}", style="yellow")
    if options.weights_dir:
        check_folder("--weights-dir ", options.weights_dir)
    names: dict[str, list[str]] = {}

    def spec(given: str) -> str:
        if not names:
            names.update(discovery.backbone_names(executor))
        return canonical(given, names)

    TASKS[grid.shared_settings["task"]].check_packages()
    planned = with_code(expand(grid, weights=options.weights, spec=spec, devices=executor.devices))
    run = RunFolder(run_folder(options))
    previous = run.manifest() if run.exists() else None
    kept = _kept_images(grid, options, previous)
    splits = _dataset(grid, options, kept)
    if (task := grid.shared_settings["task"]) != splits.task:
        raise ConfigError(
            f"task={task!r}: the images of {splits.name} are for task {splits.task!r}, which `run` and `time` have"
        )
    open_store(splits)
    found_out = options.survey or survey(splits)
    for item in planned:
        check_protocol(item.config, splits)
    if previous:
        check_same_run(run, previous, grid, splits)
        check_same_code(run, previous, planned)
    answers = resolve_weights(planned, options, previous.resolved if previous else {}, executor, console)
    cells: dict[str, Cell] = {}
    weights: dict[str, Answer] = {}
    for item in planned:
        found = answers[weights_key(item)]
        kind, digest = (found.kind, found.digest) if isinstance(found, Weights) else ("pretrained", "")
        config = item.config.replace(weights=kind)
        cell = Cell(config=config, weights_digest=digest, dataset_digest=splits.digest, device=item.device)
        cells[cell.id], weights[cell.id] = cell, found
    done, damaged = done_records(run, cells) if previous else ({}, {})
    pairs, unpaired = _pairs(grid, cells, executor, run.folder.name)
    done_pairs, damaged_pairs = settled_pairs(run, pairs) if previous else ({}, {})
    return Sweep(
        run=run,
        splits=splits,
        survey=found_out,
        cells=cells,
        weights=weights,
        resolved={key: answer for key, answer in answers.items() if isinstance(answer, Weights)},
        done=done,
        damaged=damaged | damaged_pairs,
        pairs=pairs,
        done_pairs=done_pairs,
        unpaired=unpaired,
        previous=previous,
        counters=counters,
        keeps_images=kept is not None,
        images_from=_images_from(grid, options, splits) if kept is None else "",
    )


def _pairs(grid: Grid, cells: dict[str, Cell], executor: Executor, run: str) -> tuple[dict[str, PlannedPair], str]:
    """The pairs of a grid; or why there are none, in words."""
    if grid.paired is None:
        return {}, "the grid or --no-paired says so"
    claims = claims_timed(grid.claims)
    rotations = pairings(list(cells.values()), claims)
    if not rotations:
        return {}, why_unpaired(list(cells.values()), claims)
    if not executor.takes_turns:
        return {}, "this executor can't keep several processes alive; executor 'process' can"
    return plan_pairs(rotations, grid.paired.pairs, grid.paired.seconds, run), ""


def _kept_images(grid: Grid, options: Options, previous: Manifest | None) -> DatasetIdentity | None:
    """The synthetic images that a run started with under `auto` and keeps; None if it looks for images."""
    wanted = options.data or grid.dataset
    return previous.dataset if wanted == "auto" and previous and previous.dataset.fallback else None


def _dataset(grid: Grid, options: Options, kept: DatasetIdentity | None) -> Splits:
    """Load the images. Images that a run keeps also keep the reason why they are synthetic."""
    wanted = options.data or grid.dataset
    if options.splits:
        return options.splits
    task = grid.shared_settings["task"]
    if kept and task == kept.task:
        return replace(load_splits(kept.name), fallback=kept.fallback)
    return find_images(wanted, task=task, download=not options.dry_run)


def _images_from(grid: Grid, options: Options, splits: Splits) -> str:
    """The address of the real images, if a dry run has found that they would be downloaded."""
    wanted = options.data or grid.dataset
    to_download = options.dry_run and wanted == "auto" and splits.fallback and not unreachable(hymenoptera.URL)
    return hymenoptera.URL if to_download else ""


def find_images(wanted: str, *, download: bool, task: str = "classification") -> Splits:
    """Load the images of a task by name or folder, without the warnings that a command shows in its own words."""
    with warnings.catch_warnings():
        for shown in (FallbackWarning, DataWarning):
            warnings.simplefilter("ignore", shown)
        return load_splits(wanted, task=task, download=download)


def check_same_run(run: RunFolder, previous: Manifest, grid: Grid, splits: Splits) -> None:
    """Raise `ConfigError` if this command would mix two data sets or protocols in one folder."""
    advice = "give this command another --name, or --fresh"
    if previous.dataset.digest != splits.digest:
        raise ConfigError(
            f"{run.folder} holds a run on {previous.dataset.name} ({previous.dataset.digest[:8]}), "
            f"and this command would use {splits.name} ({splits.digest[:8]}); {advice}"
        )
    for key, value in grid.shared_settings.items():
        if previous.protocol.get(key) != value:
            raise ConfigError(
                f"{run.folder} holds a run with {key}={previous.protocol.get(key)!r}, "
                f"and this command has {key}={value!r}; {advice}"
            )


def with_code(planned: Sequence[Planned]) -> list[Planned]:
    """Add the digests of the code of one's own that configs name. Raises `UserError` if there is no such code.

    The source is read, and nothing of it runs.
    """
    look = cache(code_digest)
    return [replace(item, config=item.config.with_code(look)) for item in planned]


def check_same_code(run: RunFolder, previous: Manifest, planned: Sequence[Planned]) -> None:
    """Raise `ConfigError` if code of one's own has changed since the run used it: results of both can't be mixed."""
    used = {
        (setting, getattr(cell.config, setting)): digest
        for cell in previous.cells.values()
        for setting, digest in cell.config.code
    }
    for config in (item.config for item in planned):
        for setting, digest in config.code:
            named = getattr(config, setting)
            if (before := used.get((setting, named), digest)) != digest:
                raise ConfigError(
                    f"{setting}={named!r}: its source has changed since {run.folder} used it ({before[:8]}, now "
                    f"{digest[:8]}); give this command another --name, or --fresh"
                )


def done_records(run: RunFolder, cells: dict[str, Cell]) -> tuple[dict[str, Record], dict[Path, str]]:
    """Cell id → record of the cells that need not run; and path → what is wrong, for all damaged records.

    A cell that diverged is among them: the same settings would diverge again.
    """
    found, damaged = run.survey()
    done = {cell_id: found[cell_id] for cell_id in cells if cell_id in found and found[cell_id].status in SETTLED}
    return done, damaged


def settled_pairs(run: RunFolder, pairs: Mapping[str, PlannedPair]) -> tuple[dict[str, PairRecord], dict[Path, str]]:
    """Id → record of the pairs that need not run; and path → what is wrong, for all damaged records of pairs."""
    found, damaged = run.survey_pairs()
    return {pair_id: found[pair_id] for pair_id in pairs if pair_id in found and found[pair_id].settled}, damaged
