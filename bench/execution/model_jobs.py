"""What the process of a final training, or of predictions, is given and returns. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.store.records import Cell
    from tl.datasets import Splits
    from tl.saved import Measured, ModelCard
    from tl.weights import Weights

TRAIN_FINAL = "bench.execution.worker:train_final"
PREDICT = "bench.execution.worker:predict"


@dataclass(frozen=True, kw_only=True)
class FinalJob:
    """A training whose network is saved."""

    cell: Cell
    """The settings and the device. Its protocol is `fixed`, and its precision has a name."""
    splits: Splits
    """The images to train on. Those for validation choose nothing: the last epoch's network is saved."""
    parts: str
    """The splits of the data set that the training images are from, in words."""
    weights: Weights
    measured: Measured
    """What the run measured, for the model's card."""
    folder: Path
    """An existing folder for the model's files."""
    exports: tuple[str, ...]
    """Keys of `tl.exporting.FORMS`."""
    compared_on: tuple[Path, ...]
    """Images on which the saved model and its exports are compared with the trained network."""
    threads: int


@dataclass(frozen=True, kw_only=True)
class FinalModel:
    """The outcome of a `FinalJob`."""

    card: ModelCard
    not_kept: dict[str, str]
    """Form of an export → why there is none."""


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """Images to be predicted by a saved model."""

    folder: Path
    """The model's folder."""
    files: tuple[Path, ...]
    device: str
    batch_size: int
    threads: int


Predicted = list[float] | str
"""What is emitted for each file, in order: the probability of each class, or why the file can't be decoded."""
