"""Records and manifests: what a run has on disk, in the folder of `bench.store.runs`. Imports neither torch nor pandas.

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
5   a file begins with its `digest`, by which a changed one is told; a record has `attempts`, None where older versions
    are read
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from bench.store.environment import Environment, MachineState
from tl.config import TrainConfig
from tl.regimes import REGIMES
from tl.results import TrainResult
from tl.strict import Strict
from tl.weights import Weights

SCHEMA_VERSION = 5
SEALED_SINCE = 5
"""Version from which on a file without a digest is a damaged one."""
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

ANY_REGIME = next(iter(REGIMES))
"""Stands for all regimes where cells of several are compared; it doesn't matter which it is, only that it is one."""

Status = Literal["done", "failed", "oom", "timeout", "skipped"]
STATUSES: tuple[str, ...] = get_args(Status)


_NOTHING = object()


class Cell(Strict):
    """One experiment: a config, the images, the weights and the device. Its id is a hash of just that."""

    config: TrainConfig = Field(description="with weights `pretrained` or `random`, never `auto`")
    weights_digest: str = Field(description="SHA-256 of the weights file; empty for random or missing weights")
    dataset_digest: str
    device: str

    @cached_property
    def id(self) -> str:
        """12 hex digits. Moving a folder keeps it; anything that can change a number changes it."""
        return self._digest(PROTOCOL_VERSION)

    def was_called(self, cell_id: str) -> bool:
        """Whether a cell like this has, or had under an earlier version of the protocol, that id."""
        return any(self._digest(version) == cell_id for version in range(PROTOCOL_VERSION, 0, -1))

    def key(self, *but: str) -> str:
        """The same for all cells that differ in those fields of their config alone."""
        return self._digest(PROTOCOL_VERSION, but)

    @cached_property
    def repeats(self) -> str:
        """The same for all cells that differ in their seed alone."""
        return self.key("seed")

    @cached_property
    def bare(self) -> Cell:
        """What cells of other regimes and seeds must have in common with this one to be compared with it."""
        return self.but(regime=ANY_REGIME, seed=0)

    @cached_property
    def without_start(self) -> Cell:
        """As `bare`, for regimes that start from other weights."""
        return self.bare.but(weights="auto").replace(weights_digest="")

    def _digest(self, version: int, but: tuple[str, ...] = ()) -> str:
        content = self.model_dump(mode="json")
        config = content["config"].items()
        content["config"] = {
            name: value for name, value in config if AS_BEFORE.get(name, _NOTHING) != value and name not in but
        }
        text = json.dumps([version, content], sort_keys=True)
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
    attempts: int | None = Field(
        None, description="how often the cell was begun: more than once where machines of a cluster were lost"
    )
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
