"""Records and manifests, the files of a run (`bench.store.runs`). Imports neither torch nor pandas.

History of the format (`SCHEMA_VERSION`). New fields are None in files of older versions, unless stated otherwise.
1   first version
2   an epoch has `phases`, a result has `work`, a record has `block` and `order`
3   a result has memory per kind of pass, memory of the process on its GPU, and memory of Metal; a record has `machine`
    and may be `skipped`; figures of training are None if nothing is trained (regime `zeroshot`); a config has
    `protocol`, `learning_rates` and `folds` (older files: see `AS_BEFORE`); a result has `trials`,
    `learning_rate_chosen` and `tuning_seconds`; for protocol `kfold`, predictions cover all images
4   a config has `views` and `compile` (older files: see `AS_BEFORE`); a result has `cuda_graph`, `extraction_seconds`,
    `extracting_seconds`, `features_reused`, `quantization_seconds` and `resident_image_bytes`; for protocol `kfold`, it
    has the epochs of each fold
5   a file begins with its `digest`, which detects changes; a record has `attempts`
6   a manifest has weights by policy and backbone, and an invocation has `data`; older versions had both as texts. A
    note of a result has a subject. `stand_in` is renamed to `fallback`, and no longer contains text that was meant for
    the terminal. Older versions are upgraded on reading, see `bench.store.upgrade`
7   a manifest's data set has `left_out` and `duplicates`. A record may be `diverged`, and then has `epochs`. Before,
    such a cell was `done`, with an empty loss and with NaN counted as predictions of the first class; it is upgraded on
    reading. A trial has `reason`, and no accuracy if it diverged
8   a config has `execution` (older files: see `AS_BEFORE`)
9   a manifest has `pairs`, empty in older files; `pairs/` has their records (`bench.store.pairs`)
10  a config has `checkpointing`, `fold` and `lookahead` (older files: see `AS_BEFORE`), and its precision may be
    `auto`; a result has `precision`, `choice`, `folded_layers`, `packed_layers`, `lookahead`, `baseline_private_bytes`
    and `baseline_pss_bytes`
11  a config has `class_weights` (older files: see `AS_BEFORE`); a result has `probe` and `inference`; a manifest's
    data set has `origin` and `train_counts`, and its `duplicates` also images that look the same (`near`)
12  a config has `code`, `lora_rank`, `rate_after_head`, `unfreeze_every`, `freeze_bn`, `layer_decay`, `ema`,
    `early_stopping` and `task` (older files: see `AS_BEFORE`), and its backbone, head, loss and optimiser may be one's
    own; a result has `head_start_seconds`, `periods` and `score`, and its predictions `probabilities` and
    `detections`; the `val_loss` of an epoch may be None, with task `detection`; a manifest's
    data set has `task` (`classification` in older files), `val_targets` and `val_objects`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import AwareDatetime, Field, field_validator, model_validator

from bench.store.environment import Environment, MachineState
from tl.boxes import Box, fault_of
from tl.config import READ_BY_REGIME, TrainConfig
from tl.errors import not_one_of
from tl.findings import Duplicate, LeftOut
from tl.regimes import REGIMES
from tl.results import EpochResult, TrainResult
from tl.strict import Count, Positive, Seconds, Share, Strict
from tl.tasks import TASKS
from tl.weights import Weights

SCHEMA_VERSION = 12
SEALED_SINCE = 5
"""First version whose files have a digest; a file of this version or later without one is damaged."""
ID_VERSION = 1
"""Part of every cell's id. It is raised when the meaning of a config changes."""

AS_BEFORE: dict[str, Any] = {
    "protocol": "fixed",
    "learning_rates": [3e-4, 1e-3, 3e-3, 1e-2],
    "folds": 5,
    "views": 1,
    "compile": False,
    "execution": "fast",
    "checkpointing": False,
    "fold": None,
    "lookahead": 1,
    "class_weights": "none",
    "code": [],
    "task": "classification",
    "lora_rank": 8,
    "rate_after_head": 0.1,
    "unfreeze_every": 1,
    "freeze_bn": False,
    "layer_decay": 1.0,
    "ema": 0.0,
    "early_stopping": 0,
}
"""Field of a config that is younger than version 1 of the format → the value that means the earlier behaviour.

A field with that value is left out of a cell's id, so that cells keep the ids that they had before the field existed.
The value is not the field's default: a default may change, this value may not.
"""

AIMS = ("class_weights", "ema", "early_stopping")
"""Settings that only some regimes read, and that change what a training aims at, or what comes out of any training by
steps: regimes that read them compare only where they are equal."""

OF_PARTS = ("freeze_bn", "layer_decay", "checkpointing")
"""Settings of a backbone that trains: two regimes that read them compare only where they are equal, and each compares
with one that doesn't read them, such as `frozen`, whatever they are."""

USUAL = {"precision": "fp32", "execution": "fast"}
"""Axis of a cell that its name shows only where it has another value → the usual value."""

ANY_REGIME = next(iter(REGIMES))
"""Replaces the regime in keys that are equal for cells of all regimes; any regime would do."""

Status = Literal["done", "failed", "oom", "timeout", "skipped", "diverged"]
SETTLED: tuple[Status, ...] = ("done", "diverged")
"""Statuses that running the cell again would give again. Cells with any other status are tried again."""


_NOTHING = object()


class Cell(Strict):
    """One experiment: a config, the images, the weights and the device. Its id is a hash of exactly these."""

    config: TrainConfig = Field(description="with weights `pretrained` or `random`, never `auto`")
    weights_digest: str = Field(description="SHA-256 of the weights file; empty for random or missing weights")
    dataset_digest: str
    device: str

    @cached_property
    def id(self) -> str:
        """12 hex digits. It changes with anything that can change a number, and not when a folder is moved."""
        return self._digest(ID_VERSION)

    def was_called(self, cell_id: str) -> bool:
        """True if this cell has that id, or had it under an earlier `ID_VERSION`."""
        return any(self._digest(version) == cell_id for version in range(ID_VERSION, 0, -1))

    def key(self, *but: str) -> str:
        """A key that is equal for cells that differ only in these fields of their config."""
        return self._digest(ID_VERSION, but)

    @cached_property
    def repeats(self) -> str:
        """A key that is equal for cells that differ only in their seed."""
        return self.key("seed")

    @cached_property
    def bare(self) -> Cell:
        """This cell with a fixed regime and seed. Cells can be compared across regimes if this is equal."""
        unread = {name: TrainConfig.model_fields[name].default for name in READ_BY_REGIME if name not in AIMS}
        return self.but(regime=ANY_REGIME, seed=0, **unread)

    @cached_property
    def without_start(self) -> Cell:
        """`bare` without the weights, for comparisons with regimes that start from other weights."""
        return self.bare.but(weights="auto").replace(weights_digest="")

    def _digest(self, version: int, but: tuple[str, ...] = ()) -> str:
        content = self.model_dump(mode="json")
        # Where it isn't given, it is on for some regimes, and wasn't before it existed.
        config = {**content["config"], "fold": self.config.runs_folded or None}
        content["config"] = {
            name: value for name, value in config.items() if AS_BEFORE.get(name, _NOTHING) != value and name not in but
        }
        text = json.dumps([version, content], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def but(self, **settings: Any) -> Cell:
        """The same cell with these settings of its config replaced."""
        return self.replace(config=self.config.replace(**settings))

    @property
    def name(self) -> str:
        """What the cell is, without its seed."""
        return " ".join([self.config.backbone, self.config.regime, self.device, *self.unusual(), *self.extras()])

    def extras(self) -> list[str]:
        """The settings of how the network runs that have another value than usual, as `NAME=VALUE`."""
        fields = TrainConfig.model_fields
        given = {name: getattr(self.config, name) for name in (*READ_BY_REGIME, "compile")}
        return [f"{name}={str(value).lower()}" for name, value in given.items() if value != fields[name].default]

    def unusual(self, *but: str) -> list[str]:
        """The values of the axes in `USUAL`, apart from `but`, that are not the usual ones."""
        values = {axis: str(getattr(self.config, axis)) for axis in USUAL if axis not in but}
        return [value for axis, value in values.items() if value != USUAL[axis]]

    def __str__(self) -> str:
        return f"{self.name} seed {self.config.seed}"


class Record(Strict):
    """The outcome of a cell."""

    schema_version: int = SCHEMA_VERSION
    cell_id: str
    cell: Cell
    dataset: str
    train_images: Positive = Field(description="images per training epoch; for protocol `kfold`, summed over its folds")
    fallback: str = Field("", description="why the images are synthetic; empty for real images")
    weights: Weights | None = Field(description="weights that the backbone started from; None if none were available")
    status: Status
    reason: str = Field("", description="one line; empty when done")
    epochs: tuple[EpochResult, ...] = Field(
        (),
        description="epochs of a training that diverged, before the one in which it did; others: see `result`",
    )
    traceback: str = ""
    started: AwareDatetime
    block: Count | None = Field(None, description="position of the seed among the seeds of its command, from 0")
    order: Count | None = Field(None, description="position of the cell among the cells that its command ran, from 0")
    attempts: Count | None = Field(
        None, description="how often the cell was started; more than once if its node of a cluster was lost"
    )
    wall_seconds: Seconds = Field(description="wall time from the start of the cell's process to its end")
    allocator: str = Field("", description="setting of the C library's allocator during the cell")
    environment: Environment
    machine: MachineState | None = Field(None, description="None before version 3, and if the cell did not start")
    result: TrainResult | None = None

    @model_validator(mode="after")
    def _result_if_done(self) -> Record:
        if (self.status == "done") is not (self.result is not None):
            raise ValueError(f"status {self.status!r} {'without' if self.result is None else 'with'} a result")
        return self

    @property
    def overhead_seconds(self) -> float | None:
        """Wall time outside passes, tuning, fits, extraction, quantisation and measuring inference; None without a
        result."""
        if self.result is None:
            return None
        result = self.result
        once = (result.quantization_seconds, result.extracting_seconds, result.head_start_seconds)
        asked_for = result.inference.seconds if result.inference else None
        parts = (result.training_seconds, result.tuning_seconds, *once, asked_for)
        return self.wall_seconds - sum(part or 0.0 for part in parts)


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Why a planned cell has no result; `str(lost)` is the text for users."""

    status: Literal["failed", "oom", "timeout", "skipped", "diverged", "not run"]
    reason: str = ""
    """One line; empty if unknown."""

    @classmethod
    def of(cls, record: Record | None) -> Lost:
        """Take status and reason from a record without a result; `not run` if there is no record."""
        if record is None:
            return cls(status="not run")
        if record.status == "done":
            raise ValueError(f"{record.cell} has a result")
        return cls(status=record.status, reason=record.reason)

    @property
    def failed(self) -> bool:
        """True if the cell was started and should have had a result."""
        return self.status in ("failed", "oom", "timeout", "diverged")

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}" if self.reason else self.status


@dataclass(frozen=True, kw_only=True)
class WeightsKey:
    """The key of a choice of weights: it depends on the policy and the backbone."""

    policy: str
    """One of `tl.config.WEIGHTS_POLICIES`."""
    backbone: str
    """Name of the backbone with its source."""


class PlannedPair(Strict):
    """A process pair: cells that are timed in turns, each in a process of its own. Its id is a hash of exactly this.

    Cells have seed 0, since the seed doesn't change times: one pairing serves all seeds.
    """

    cells: tuple[Cell, ...] = Field(min_length=2, description="cells in the order in which they take their first turns")
    number: Count = Field(description="position among the pairs of the same cells, from 0")
    seconds: float = Field(gt=0, le=3600, description="time for the turns of all its cells together, after warm-up")

    @model_validator(mode="after")
    def _different_cells_with_seed_0(self) -> PlannedPair:
        if any(cell.config.seed for cell in self.cells):
            raise ValueError("cells of a pair have seed 0")
        return self

    @cached_property
    def id(self) -> str:
        """12 hex digits."""
        text = json.dumps([ID_VERSION, [cell.id for cell in self.cells], self.number, self.seconds])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def pairing(self) -> tuple[str, ...]:
        """A key that is equal for pairs that differ only in their number and seconds."""
        return tuple(cell.id for cell in self.cells)

    @property
    def name(self) -> str:
        """What is timed, in words, without the pair's number."""
        first = self.cells[0]
        regimes = dict.fromkeys(cell.config.regime for cell in self.cells)
        what = " and ".join(regimes) if len(regimes) > 1 else " and ".join(cell.name for cell in self.cells)
        return " ".join([first.config.backbone, what, first.device, *first.unusual()]) if len(regimes) > 1 else what

    def __str__(self) -> str:
        return f"{self.name}, pair {self.number + 1}"


_TRUTHS = {"classification": "val_labels", "multilabel": "val_targets", "detection": "val_objects"}
"""Task → the field of `DatasetIdentity` that has what is true of each image."""


class DatasetIdentity(Strict):
    """The images of a run. It holds no absolute paths: the same files in another folder are the same data set."""

    name: str
    digest: str
    classes: tuple[str, ...] = Field(min_length=1)
    train_images: Positive = Field(description="number of images in `train/`")
    val_files: tuple[str, ...] = Field(
        min_length=1,
        description="files in the order of every record's predictions; for protocol `kfold` all images, `train/` first",
    )
    task: str = Field("classification", description="a key of `tl.tasks.TASKS`: what the labels are for")
    val_labels: tuple[Count, ...] = Field(description="index of each file's class; empty for other tasks")
    val_targets: tuple[tuple[Count, ...], ...] | None = Field(
        None, description="indices of each file's classes for task `multilabel`; None for others"
    )
    val_objects: tuple[tuple[tuple[Count, Share, Share, Share, Share], ...], ...] | None = Field(
        None,
        description="for task `detection` each file's objects: class, left, top, right and bottom in shares of the "
        "image (`tl.boxes.Box`); None for others",
    )
    fallback: str = Field("", description="why the images are synthetic; empty for real images")
    left_out: tuple[LeftOut, ...] | None = Field(
        None,
        description="what lies beside the images, by reason, as a command last ran a cell; None before version 7",
    )
    duplicates: tuple[Duplicate, ...] | None = Field(
        None, description="images that are the same file, or look the same (`near`); None before version 7"
    )
    origin: str | None = Field(
        None, description="how the split came about; empty for folders train/ and val/, None before version 11"
    )
    train_counts: tuple[Count, ...] | None = Field(
        None, description="training images of each class, in the order of `classes`; None before version 11"
    )

    @model_validator(mode="after")
    def _every_image_has_a_class(self) -> DatasetIdentity:
        if self.task not in TASKS:
            raise ValueError(not_one_of("task", self.task, TASKS))
        name = _TRUTHS.get(self.task, "val_targets")
        if len(self.truth) != len(self.val_files):
            raise ValueError(f"val_files has {len(self.val_files)} files and {name} {len(self.truth)} labels")
        used = {*self.val_labels}.union(*(self.val_targets or ()))
        used |= {box[0] for some in self.val_objects or () for box in some}
        if max(used, default=0) >= len(self.classes):
            raise ValueError(f"{name} has class {max(used)}, and there are {len(self.classes)}")
        for file, some in zip(self.val_files, self.val_objects or (), strict=False):
            if why := next(filter(None, (fault_of(Box(*box)) for box in some)), ""):
                raise ValueError(f"val_objects has a faulty box of {file!r}: {why}")
        counts = self.train_counts
        whole = self.task != "classification" or counts is None or sum(counts) == self.train_images
        if counts is not None and (len(counts) != len(self.classes) or not whole):
            raise ValueError(
                f"train_counts has {sum(counts)} images of {len(counts)} classes; the run has {self.train_images} of "
                f"{len(self.classes)}"
            )
        return self

    @property
    def truth(self) -> tuple[Any, ...]:
        """What is true of each file, as scores of the task take it."""
        if self.task == "detection":
            return tuple(tuple(Box(*box) for box in some) for some in self.val_objects or ())
        return self.val_labels if self.task == "classification" else self.val_targets or ()

    @property
    def findings(self) -> tuple[LeftOut | Duplicate, ...]:
        """All that was found in the folder of images; nothing before version 7."""
        return (*(self.left_out or ()), *(self.duplicates or ()))


class Invocation(Strict):
    """One command that added to a run."""

    command: str = Field(description="the command as typed, for users to read")
    data: str | None = Field(None, description="the given folder or name of images; None for the grid's")
    started: AwareDatetime
    environment: Environment
    grid: dict[str, Any]
    cell_ids: tuple[str, ...] = Field(description="ids of the cells that it planned, including those done before")


class Manifest(Strict):
    """What a run is: one data set, one set of shared settings, and a matrix of cells that may grow."""

    schema_version: int = SCHEMA_VERSION
    name: str
    protocol: dict[str, Any] = Field(description="settings that all cells share: see `Grid.shared_settings`")
    dataset: DatasetIdentity
    weights: dict[str, dict[str, Weights]] = Field(
        description="policy → backbone → weights, resolved once and then kept; see `resolved`"
    )
    cells: dict[str, Cell] = Field(min_length=1, description="id → cell, for all cells planned so far, in their order")
    pairs: dict[str, PlannedPair] = Field(
        default_factory=dict, description="id → pair, for all pairs planned so far; empty before version 9"
    )
    invocations: tuple[Invocation, ...] = Field(min_length=1)

    @field_validator("protocol")
    @classmethod
    def _upgraded(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**{name: value for name, value in AS_BEFORE.items() if name not in {*USUAL, "code"}}, **given}

    @model_validator(mode="after")
    def _cells_are_of_its_images(self) -> Manifest:
        for cell_id, cell in self.cells.items():
            if cell.dataset_digest != self.dataset.digest:
                raise ValueError(
                    f"cell {cell_id} is of images {cell.dataset_digest[:8]}, not {self.dataset.digest[:8]}"
                )
        return self

    @property
    def resolved(self) -> dict[WeightsKey, Weights]:
        """All weights that the run has resolved so far, with their keys."""
        return {
            WeightsKey(policy=policy, backbone=backbone): weights
            for policy, some in self.weights.items()
            for backbone, weights in some.items()
        }


def by_policy(resolved: Mapping[WeightsKey, Weights]) -> dict[str, dict[str, Weights]]:
    """Policy → backbone → weights, the form in which a manifest keeps them."""
    found: dict[str, dict[str, Weights]] = {}
    for key, weights in resolved.items():
        found.setdefault(key.policy, {})[key.backbone] = weights
    return found
