"""`bench export --to`: a run's cells for experiment trackers, each in its own format below a folder. No server.

To add a tracker, add an entry to `TRACKERS`. Their packages are optional, and loaded when they are asked for.
"""

from __future__ import annotations

import importlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.analysis.metrics import METRICS
from bench.store.records import Record
from bench.store.runs import Run
from tl.errors import UserError

EPOCH_FIGURES = (
    *("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    *("train_seconds", "val_seconds", "learning_rate"),
)
TAG = "tl_bench.cell"
"""Of an MLflow run: what it is called here, by which a second export knows what is there."""


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """Where cells can be sent."""

    package: str
    """What is imported; the extra has the tracker's name."""
    write: Callable[[Iterable[tuple[Run, Record]], Path], int]
    """Writes the cells below a folder, and returns how many were new."""
    folder: str
    """Below `reports`, where no other is given."""
    hint: str
    """The command that shows it."""


def export_to(name: str, runs: Iterable[Run], folder: Path | None) -> str:
    """Write all finished cells that the folder hasn't got; returns what was done, in a line. Raises `UserError`."""
    tracker = TRACKERS[name]
    try:
        importlib.import_module(tracker.package)
    except ImportError as error:
        raise UserError(f"--to {name}: needs a package: pip install 'tl-bench[{name}]'") from error
    place = folder or Path("reports") / tracker.folder
    cells = [(run, record) for run in runs for record in run.records().values() if record.status == "done"]
    if not cells:
        raise UserError(f"--to {name}: no cell has a result")
    try:
        place.mkdir(parents=True, exist_ok=True)
        new = tracker.write(cells, place)
    except OSError as error:
        raise UserError(f"{place}: can't be written: {error.strerror or error}") from error
    return f"{new} of {len(cells)} cells written to {place}, the others were there; {tracker.hint.format(place)}"


def _parameters(record: Record) -> dict[str, Any]:
    """What a cell was asked to do, with its device and images."""
    config = {name: value for name, value in record.cell.config.model_dump(mode="json").items() if value is not None}
    config = {name: ", ".join(map(str, v)) if isinstance(v, list) else v for name, v in config.items()}
    return config | {"device": record.cell.device, "dataset": record.dataset}


def _metrics(record: Record) -> dict[str, float]:
    """All that is known of a cell."""
    assert record.result is not None
    found = {name: metric.value(record, record.result) for name, metric in METRICS.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _epochs(record: Record) -> Iterator[tuple[int, dict[str, float]]]:
    assert record.result is not None
    for row in record.result.epochs:
        figures = {name: getattr(row, name) for name in EPOCH_FIGURES}
        yield row.epoch, {name: float(value) for name, value in figures.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class _Name:
    """What a cell is called here; `str(name)` is RUN/CELL."""

    run: str
    cell: str
    """Both are plain file names."""

    def __str__(self) -> str:
        return f"{self.run}/{self.cell}"


def _name(run: Run, record: Record) -> _Name:
    """A cell that was run again has another name."""
    config = record.cell.config
    parts = (config.backbone, config.regime, record.cell.device, f"seed{config.seed}", record.cell_id)
    when = f"{record.started:%Y%m%dT%H%M%S}"
    return _Name(run=_plain(run.name), cell=_plain("-".join((*parts, when))))


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).lstrip(".") or "run"


def _tensorboard(cells: Iterable[tuple[Run, Record]], folder: Path) -> int:
    from tensorboardX import SummaryWriter

    new = 0
    for run, record in cells:
        called = _name(run, record)
        place = folder / called.run / called.cell
        if place.exists():
            continue
        new += 1
        place.parent.mkdir(parents=True, exist_ok=True)
        # Under another name until it is whole: an export that was ended midway is done again.
        with (
            tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as scratch,
            SummaryWriter(f"{scratch}/cell", write_to_disk=True) as writer,
        ):
            for epoch, figures in _epochs(record):
                for name, value in figures.items():
                    writer.add_scalar(f"epoch/{name}", value, epoch)
            for name, value in _metrics(record).items():
                writer.add_scalar(f"cell/{name}", value, 0)
            table = "\n".join(f"| {name} | {value} |" for name, value in _parameters(record).items())
            writer.add_text("config", f"| setting | value |\n| --- | --- |\n{table}")
            writer.close()
            Path(scratch, "cell").rename(place)
    return new


def _mlflow(cells: Iterable[tuple[Run, Record]], folder: Path) -> int:
    # Files need no server and no database; MLflow 3 wants to be told that they are meant.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=folder.resolve().as_uri())
    new = 0
    for run, record in cells:
        called = _name(run, record)
        experiment = client.get_experiment_by_name(called.run)
        identity = experiment.experiment_id if experiment else client.create_experiment(called.run)
        if client.search_runs([identity], f"tags.`{TAG}` = '{called}' and status = 'FINISHED'", max_results=1):
            continue
        new += 1
        begun = int(record.started.timestamp() * 1000)
        there = client.create_run(identity, start_time=begun, tags={TAG: str(called)}, run_name=called.cell)
        for key, value in _parameters(record).items():
            client.log_param(there.info.run_id, key, value)
        for epoch, figures in _epochs(record):
            for key, value in figures.items():
                client.log_metric(there.info.run_id, f"epoch_{key}", value, step=epoch)
        for key, value in _metrics(record).items():
            client.log_metric(there.info.run_id, key, value)
        client.set_terminated(there.info.run_id, end_time=begun + int(record.wall_seconds * 1000))
    return new


TRACKERS: dict[str, Tracker] = {
    "tensorboard": Tracker(
        package="tensorboardX", write=_tensorboard, folder="tensorboard", hint="show them: tensorboard --logdir {}"
    ),
    "mlflow": Tracker(
        package="mlflow", write=_mlflow, folder="mlruns", hint="show them: mlflow ui --backend-store-uri {}"
    ),
}
