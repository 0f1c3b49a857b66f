"""Records and manifests: the format of a run on disk. Imports neither torch nor pandas.

    results/NAME/manifest.json            what was planned, with which data and weights, by which commands
    results/NAME/cells/CELL_ID.json       one record a cell: done, failed, oom, timeout or skipped
    results/NAME/superseded/…             records of attempts without a result that a later attempt replaced

History of the format (`SCHEMA_VERSION`):
1   first
2   an epoch has `phases`, a result has `work`, a record its `block` and `order`; None where version 1 is read
3   a result has memory by kind of pass, of the process on its GPU, and of Metal; a record has its `machine`;
    None where older versions are read; a record may be `skipped`; figures of training are None where nothing is
    trained (regime `zeroshot`); a config has `protocol`, `learning_rates` and `folds` (see `AS_BEFORE` where an older
    version is read), a result `trials`, `learning_rate_chosen` and `tuning_seconds`; with protocol `kfold`
    predictions are of all images
4   a config has `views` and `compile`; a result has `cuda_graph`, `extraction_seconds`, `extracting_seconds`,
    `features_reused`, `quantization_seconds` and `resident_image_bytes`, None where older versions are read; with
    protocol `kfold` the epochs of each fold
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import Field, ValidationError, field_validator

from bench.environment import Environment
from bench.watch import MachineState
from tl.cache import to_json, write_atomic
from tl.config import TrainConfig
from tl.errors import ConfigError, UserError
from tl.results import TrainResult
from tl.strict import Strict
from tl.weights import Weights

SCHEMA_VERSION = 4
PROTOCOL_VERSION = 1
"""Part of every cell's id: raised when the same config begins to mean other work."""

AS_BEFORE: dict[str, Any] = {
    "protocol": "fixed",
    "learning_rates": [3e-4, 1e-3, 3e-3, 1e-2],
    "folds": 5,
    "views": 1,
    "compile": False,
}
"""Fields of a config that came after version 1 of the format, and the value that means what was done before.

A field with that value is no part of a cell's id, so that cells keep the ids that they had without the field. Not
the field's default, which may change one day: this may not.
"""

Status = Literal["done", "failed", "oom", "timeout", "skipped"]
STATUSES: tuple[str, ...] = get_args(Status)


_NOTHING = object()


class Cell(Strict):
    """One experiment: a config, the images, the weights and the device. Its id is a hash of just that."""

    config: TrainConfig = Field(description="with weights `pretrained` or `random`, never `auto`")
    weights_digest: str = Field(description="SHA-256 of the weights file; empty for random or missing weights")
    dataset_digest: str
    device: str

    @property
    def id(self) -> str:
        """12 hex digits. Moving a folder keeps it; anything that can change a number changes it."""
        content = self.model_dump(mode="json")
        config = content["config"].items()
        content["config"] = {name: value for name, value in config if AS_BEFORE.get(name, _NOTHING) != value}
        text = json.dumps([PROTOCOL_VERSION, content], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def but(self, **settings: Any) -> Cell:
        """The same cell with other settings."""
        return self.replace(config=self.config.replace(**settings))

    def __str__(self) -> str:
        config = self.config
        parts = [config.backbone, config.regime, self.device]
        parts += [config.precision] if config.precision != "fp32" else []
        return " ".join([*parts, f"seed {config.seed}"])


class Record(Strict):
    """What became of a cell."""

    schema_version: int = SCHEMA_VERSION
    cell_id: str
    cell: Cell
    dataset: str
    train_images: int = Field(description="that an epoch trains on; with protocol `kfold` in all its folds together")
    stand_in: str = Field("", description="that the images are drawn ones, and why; empty for real images")
    weights: Weights | None = Field(description="what the backbone started from; None where none could be had")
    status: Status
    reason: str = Field("", description="one line; empty when done")
    traceback: str = ""
    started: datetime
    block: int | None = Field(None, description="the seed's place among those of its command, counted from 0")
    order: int | None = Field(None, description="the cell's place among those that its command ran, counted from 0")
    wall_seconds: float = Field(description="of the whole cell, from the start of its process to its end")
    allocator: str = Field("", description="setting of the C library's allocator during the cell")
    environment: Environment
    machine: MachineState | None = Field(None, description="None before version 3, and where the cell did not start")
    result: TrainResult | None = None

    @property
    def overhead_seconds(self) -> float | None:
        """Wall time outside passes, tuning, extraction and quantisation; None without a result."""
        if self.result is None:
            return None
        result = self.result
        once = (result.quantization_seconds, result.extracting_seconds)
        parts = (result.training_seconds, result.tuning_seconds, *once)
        return self.wall_seconds - sum(part or 0.0 for part in parts)


class DatasetIdentity(Strict):
    """The images of a run. No paths: the same files elsewhere are the same data set."""

    name: str
    digest: str
    classes: tuple[str, ...]
    train_images: int = Field(description="in `train/`")
    val_files: tuple[str, ...] = Field(
        description="in the order of every record's predictions; with protocol `kfold` all images, `train/` first"
    )
    val_labels: tuple[int, ...]
    stand_in: str = ""


class Invocation(Strict):
    """One command that added to a run."""

    command: str
    started: datetime
    environment: Environment
    grid: dict[str, Any]
    cell_ids: tuple[str, ...] = Field(description="cells that it planned, done before or not")


class Manifest(Strict):
    """What a run is: one data set, one protocol, and a matrix of cells that may grow."""

    schema_version: int = SCHEMA_VERSION
    name: str
    protocol: dict[str, Any]
    dataset: DatasetIdentity
    weights: dict[str, Weights] = Field(
        description="resolved once by policy and backbone, then kept: `POLICY BACKBONE`"
    )
    cells: dict[str, Cell] = Field(description="all cells planned so far, by id, in order")
    invocations: tuple[Invocation, ...]

    @field_validator("protocol")
    @classmethod
    def _upgraded(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**AS_BEFORE, **given}


class Run:
    """The folder of a run, for reading and for adding records."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = folder
        self.name = name or folder.resolve().name
        """What tables call it; the folder's name unless another run has that too."""

    def manifest(self) -> Manifest:
        """Raises `UserError` when this folder is not a run, is damaged, or was written by a newer version."""
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise UserError(f"{self.folder}: not a run: it has no manifest.json")
        return _parse(path, Manifest)

    def exists(self) -> bool:
        """Whether there is a manifest to read."""
        return (self.folder / "manifest.json").is_file()

    def records(self) -> dict[str, Record]:
        """All records by cell id, in the order in which they were planned. Raises `UserError` as `manifest`."""
        paths = sorted((self.folder / "cells").glob("*.json"))
        found = {record.cell_id: record for record in (_parse(path, Record) for path in paths)}
        planned = [cell_id for cell_id in self.manifest().cells if cell_id in found]
        return {cell_id: found[cell_id] for cell_id in dict.fromkeys([*planned, *found])}

    def write_manifest(self, manifest: Manifest) -> None:
        """Atomically. Raises `OSError`."""
        write_atomic(self.folder / "manifest.json", to_json(manifest.model_dump(mode="json")))

    def write_record(self, record: Record) -> None:
        """Atomically; an earlier record of the cell is kept in `superseded/`. Raises `OSError`."""
        text = to_json(record.model_dump(mode="json"))
        path = self._record(record.cell_id)
        if path.exists():
            self._keep(path)
        write_atomic(path, text)

    def retire(self, cell_id: str) -> None:
        """Move the record of a cell that is no longer planned to `superseded/`. Raises `OSError`."""
        path = self._record(cell_id)
        if path.exists():
            self._keep(path)
            path.unlink()

    def _record(self, cell_id: str) -> Path:
        return self.folder / "cells" / f"{cell_id}.json"

    def _keep(self, path: Path) -> None:
        """A second name or a copy in `superseded/`: at no moment is the old record nowhere."""
        attic = self.folder / "superseded"
        attic.mkdir(exist_ok=True)
        numbers = [int(old.stem.rpartition("-")[2]) for old in attic.glob(f"{path.stem}-*.json")]
        kept = attic / f"{path.stem}-{max(numbers, default=0) + 1}.json"
        try:
            os.link(path, kept)
        except OSError:  # a file system without hard links
            shutil.copy2(path, kept)


Format = TypeVar("Format", Manifest, Record)


def _parse(path: Path, kind: type[Format]) -> Format:
    try:
        text = path.read_bytes()
        data = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as JSON: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{path}: has no schema_version: not written by this suite")
    if version > SCHEMA_VERSION:
        raise UserError(f"{path}: schema {version} is newer than this suite knows ({SCHEMA_VERSION}); update the suite")
    try:
        return kind.model_validate_json(text)
    except (ConfigError, ValidationError) as error:
        raise UserError(f"{path}: damaged: {error}") from error


def find_run(name: str | Path, results: Path = Path("results")) -> Run:
    """A run by folder, or by name under `results`. Raises `UserError` naming the runs that there are."""
    for folder in (Path(name), results / name):
        if (folder / "manifest.json").is_file():
            return Run(folder)
    there = sorted(path.parent.name for path in results.glob("*/manifest.json"))
    none = f"{results}/ has no runs yet; `python -m bench run` makes one"
    known = f"{results}/ has {', '.join(there)}" if there else none
    raise UserError(f"{name}: no such run; {known}")


def all_runs(results: Path = Path("results")) -> list[Run]:
    """Every run under `results`, by name."""
    return [Run(path.parent) for path in sorted(results.glob("*/manifest.json"))]


def each_once(places: Iterable[Path]) -> None:
    """Raises `UserError` for a run or file that is named twice, however it is spelt: it would count twice."""
    found: set[Path] = set()
    for place in places:
        if place.resolve() in found:
            raise UserError(f"{place}: named twice")
        found.add(place.resolve())


def find_runs(names: Iterable[str | Path], results: Path = Path("results")) -> list[Run]:
    """Several runs; see `find_run`. Runs whose folders have the same name are called by their paths.

    Raises `UserError` also for a run that is named twice: its cells would count twice.
    """
    runs = [find_run(name, results) for name in names]
    each_once(run.folder for run in runs)
    called = [run.name for run in runs]
    return [Run(run.folder, str(run.folder)) if called.count(run.name) > 1 else run for run in runs]
