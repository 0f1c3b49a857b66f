"""Records and manifests: the format of a run on disk. Imports neither torch nor pandas.

    results/NAME/manifest.json            what was planned, with which data and weights, by which commands
    results/NAME/cells/CELL_ID.json       one record a cell: done, failed, oom, timeout or skipped
    results/NAME/superseded/…             records of failed attempts that a later attempt replaced

History of the format (`SCHEMA_VERSION`):
1   first
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import Field

from bench.environment import Environment
from tl.cache import to_json, write_atomic
from tl.config import TrainConfig
from tl.errors import ConfigError, UserError
from tl.results import TrainResult
from tl.strict import Strict
from tl.weights import Weights

SCHEMA_VERSION = 1
PROTOCOL_VERSION = 1
"""Part of every cell's id: raised when the same config begins to mean other work."""

Status = Literal["done", "failed", "oom", "timeout", "skipped"]
STATUSES: tuple[str, ...] = get_args(Status)


class Cell(Strict):
    """One experiment: a config, the images, the weights and the device. Its id is a hash of just that."""

    config: TrainConfig = Field(description="with weights `pretrained` or `random`, never `auto`")
    weights_digest: str = Field(description="SHA-256 of the weights file; empty for random weights")
    dataset_digest: str
    device: str

    @property
    def id(self) -> str:
        """12 hex digits. Moving a folder keeps it; anything that can change a number changes it."""
        text = json.dumps([PROTOCOL_VERSION, self.model_dump(mode="json")], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

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
    train_images: int
    stand_in: str = Field("", description="why the images are drawn ones; empty for real images")
    weights: Weights | None = Field(description="what the backbone started from; None where none could be had")
    status: Status
    reason: str = Field("", description="one line; empty when done")
    traceback: str = ""
    started: datetime
    wall_seconds: float = Field(description="of the whole cell, from the start of its process to its end")
    allocator: str = Field("", description="setting of the C library's allocator during the cell")
    environment: Environment
    result: TrainResult | None = None

    @property
    def overhead_seconds(self) -> float | None:
        """Wall time outside training and validation passes; None without a result."""
        return None if self.result is None else self.wall_seconds - self.result.training_seconds


class DatasetIdentity(Strict):
    """The images of a run. No paths: the same files elsewhere are the same data set."""

    name: str
    digest: str
    classes: tuple[str, ...]
    train_images: int
    val_files: tuple[str, ...] = Field(description="in the order of every record's predictions")
    val_labels: tuple[int, ...]
    stand_in: str = ""


class Invocation(Strict):
    """One command that added to a run."""

    command: str
    started: datetime
    environment: Environment
    cell_ids: tuple[str, ...] = Field(description="cells that it planned, done before or not")


class Manifest(Strict):
    """What a run is: one data set, one protocol, and a matrix of cells that may grow."""

    schema_version: int = SCHEMA_VERSION
    name: str
    grid: dict[str, Any]
    protocol: dict[str, Any]
    dataset: DatasetIdentity
    weights: dict[str, Weights] = Field(
        description="resolved once by policy and backbone, then kept: `POLICY BACKBONE`"
    )
    cells: dict[str, Cell] = Field(description="all cells planned so far, by id, in order")
    invocations: tuple[Invocation, ...]


class Run:
    """The folder of a run, for reading and for adding records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

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
        """All records by cell id. Raises `UserError` as `manifest` does."""
        paths = sorted((self.folder / "cells").glob("*.json"))
        return {record.cell_id: record for record in (_parse(path, Record) for path in paths)}

    def write_manifest(self, manifest: Manifest) -> None:
        """Atomically. Raises `OSError`."""
        write_atomic(self.folder / "manifest.json", to_json(manifest.model_dump(mode="json")))

    def write_record(self, record: Record) -> None:
        """Atomically; an earlier record of the cell moves to `superseded/`, nothing is lost."""
        path = self.folder / "cells" / f"{record.cell_id}.json"
        if path.exists():
            attic = self.folder / "superseded"
            attic.mkdir(exist_ok=True)
            taken = len(list(attic.glob(f"{record.cell_id}-*.json")))
            # A link first: at no moment is the old record nowhere.
            os.link(path, attic / f"{record.cell_id}-{taken + 1}.json")
        write_atomic(path, to_json(record.model_dump(mode="json")))


Format = TypeVar("Format", Manifest, Record)


def _parse(path: Path, kind: type[Format]) -> Format:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as JSON: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{path}: has no schema_version: not written by this suite")
    if version > SCHEMA_VERSION:
        raise UserError(f"{path}: schema {version} is newer than this suite knows ({SCHEMA_VERSION}); update the suite")
    try:
        return kind.model_validate(data)
    except ConfigError as error:
        raise UserError(f"{path}: damaged: {error}") from error


def find_run(name: str | Path, results: Path = Path("results")) -> Run:
    """A run by folder, or by name under `results`. Raises `UserError` naming the runs that there are."""
    for folder in (Path(name), results / name):
        if (folder / "manifest.json").is_file():
            return Run(folder)
    there = sorted(path.parent.name for path in results.glob("*/manifest.json"))
    known = (
        f"{results}/ has {', '.join(there)}"
        if there
        else f"{results}/ has no runs yet; `python -m bench run` makes one"
    )
    raise UserError(f"{name}: no such run; {known}")


def find_runs(names: Iterable[str | Path], results: Path = Path("results")) -> list[Run]:
    """Several runs; see `find_run`."""
    return [find_run(name, results) for name in names]
