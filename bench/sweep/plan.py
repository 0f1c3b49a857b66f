"""What a command amounts to: cells, their images and weights, and which of them are done already."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.execution import discovery
from bench.execution.base import Executor
from bench.store.records import Cell, DatasetIdentity, Manifest, Record, WeightsKey
from bench.store.runs import Run
from bench.sweep.folder import run_folder
from bench.sweep.grid import Grid, expand, load_grid
from bench.sweep.options import Options
from bench.sweep.order import arrange
from bench.sweep.weights import Answer, resolve_weights, weights_key
from tl.datasets import Splits, load_splits
from tl.errors import ConfigError, FallbackWarning
from tl.folds import check_protocol
from tl.images import open_store
from tl.specs import canonical
from tl.weights import Weights


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a command amounts to: the cells, and which of them are done."""

    run: Run
    splits: Splits
    cells: dict[str, Cell]
    weights: dict[str, Answer]
    """By cell."""
    resolved: dict[WeightsKey, Weights]
    """For the manifest."""
    done: dict[str, Record]
    damaged: dict[Path, str]
    """Records that can't be read as what this suite wrote, and why: they are set aside, and their cells run."""
    previous: Manifest | None
    keeps_images: bool = False
    """The run goes on with the synthetic images that it began with, without looking for real ones again."""

    @property
    def missing(self) -> dict[str, Cell]:
        """Cells without a finished record, in the order in which they are to run."""
        left = {cell_id: cell for cell_id, cell in self.cells.items() if cell_id not in self.done}
        return arrange(left, self.run.folder.name, seeds={cell.config.seed for cell in self.cells.values()})


def choose_grid(name: str, axes: Mapping[str, Any], settings: Mapping[str, Any]) -> Grid:
    """The grid of that name or file, with the axes and settings that are not None in place of its own.

    Raises `ConfigError`.
    """
    return load_grid(name).override(
        {axis: value for axis, value in axes.items() if value is not None},
        {key: value for key, value in settings.items() if value is not None},
    )


def run_name(grid: Grid, data: str | None, weights: str, epochs: int | None, batch_size: int | None) -> str:
    """The folder's name where none is given: the grid's, with what the command line changes about the protocol.

    Any protocol but `fixed` is named in any case.
    """
    parts = [grid.name]
    parts += [grid.shared_settings["protocol"]] if grid.shared_settings["protocol"] != "fixed" else []
    if data and data not in ("auto", grid.dataset, "hymenoptera"):
        parts.append(Path(data).resolve().name or "data")
    parts += [f"epochs{epochs}"] if epochs is not None else []
    parts += [f"batch{batch_size}"] if batch_size is not None else []
    parts += [weights] if weights != "auto" else []
    return "-".join(parts)


def plan(grid: Grid, options: Options, executor: Executor, console: Console) -> Sweep:
    """Check everything that can be checked before anything is written, and decide what is to be done.

    Raises `UserError` for whatever the user can mend.
    """
    if options.weights_dir and not options.weights_dir.is_dir():
        raise ConfigError(f"--weights-dir {os.fspath(options.weights_dir)!r}: no such folder")
    names: dict[str, list[str]] = {}

    def spec(given: str) -> str:
        if not names:
            names.update(discovery.backbone_names(executor))
        return canonical(given, names)

    planned = expand(grid, weights=options.weights, spec=spec, devices=executor.devices)
    run = Run(run_folder(options))
    previous = run.manifest() if run.exists() else None
    kept = _kept_images(grid, options, previous)
    splits = _dataset(grid, options, kept)
    open_store(splits)
    for item in planned:
        check_protocol(item.config, splits)
    if previous:
        _same_run(run, previous, grid, splits)
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
    return Sweep(
        run=run,
        splits=splits,
        cells=cells,
        weights=weights,
        resolved={key: answer for key, answer in answers.items() if isinstance(answer, Weights)},
        done=done,
        damaged=damaged,
        previous=previous,
        keeps_images=kept is not None,
    )


def _kept_images(grid: Grid, options: Options, previous: Manifest | None) -> DatasetIdentity | None:
    """The synthetic images that a run began with under `auto` and goes on with; None if images are looked for."""
    wanted = options.data or grid.dataset
    return previous.dataset if wanted == "auto" and previous and previous.dataset.fallback else None


def _dataset(grid: Grid, options: Options, kept: DatasetIdentity | None) -> Splits:
    """The images. Those that a run keeps have the reason that it began with."""
    wanted = options.data or grid.dataset
    if kept:
        return replace(load_splits(kept.name), fallback=kept.fallback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # the terminal, records and reports say it
        return load_splits(wanted, download=not options.dry_run)


def _same_run(run: Run, previous: Manifest, grid: Grid, splits: Splits) -> None:
    """Raise `ConfigError` where this command would mix two data sets or protocols in one folder."""
    way_out = "give this command a --name of its own, or --fresh"
    if previous.dataset.digest != splits.digest:
        raise ConfigError(
            f"{run.folder} holds a run on {previous.dataset.name} ({previous.dataset.digest[:8]}), "
            f"and this command would use {splits.name} ({splits.digest[:8]}): {way_out}"
        )
    for key, value in grid.shared_settings.items():
        if previous.protocol.get(key) != value:
            raise ConfigError(
                f"{run.folder} holds a run with {key}={previous.protocol.get(key)!r}, "
                f"and this command has {key}={value!r}: {way_out}"
            )


def done_records(run: Run, cells: dict[str, Cell]) -> tuple[dict[str, Record], dict[Path, str]]:
    """Finished records of some cells; and of all records the damaged ones, with the reasons."""
    found, damaged = run.survey()
    done = {cell_id: found[cell_id] for cell_id in cells if cell_id in found and found[cell_id].status == "done"}
    return done, damaged
