"""Writes a run's cells in the file formats of experiment trackers, for `bench export --to`. Needs no server.

To add a tracker, add an entry to `TRACKERS`. Its package is optional and is imported only for an export.
"""

from __future__ import annotations

import importlib
import os
import re
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bench.analysis.metrics import METRICS, Finished, finished
from bench.analysis.words import counted
from bench.store.records import Record
from bench.store.runs import RunFolder
from tl.cache import write_atomic
from tl.errors import UserError
from tl.results import EpochResult

EPOCH_VALUES = tuple(name for name in EpochResult.model_fields if name not in ("epoch", "phases"))
TAG = "tl_bench.cell"
"""Tag of an MLflow run with our name of the cell, by which a second export finds it."""


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """An experiment tracker that cells can be exported to."""

    package: str
    """The module that is imported. The extra that installs it has the tracker's name."""
    write: Callable[[Iterable[tuple[RunFolder, Finished]], Path], int]
    """Writes cells below a folder and returns the number of new ones."""
    folder: str
    """Default folder, below `reports`."""
    hint: str
    """The command that shows the exported cells, with `{}` for the folder."""


def export_to(name: str, runs: Iterable[RunFolder], folder: Path | None, reports: Path = Path("reports")) -> str:
    """Write all finished cells that the folder lacks. Returns a line on what was done. Raises `UserError`."""
    tracker = TRACKERS[name]
    try:
        importlib.import_module(tracker.package)
    except ImportError as error:
        raise UserError(f"--to {name} needs another package: pip install 'tl-bench[{name}]'") from error
    place = folder or reports / tracker.folder
    cells = [(run, cell) for run in runs for cell in _cells(run)]
    if not cells:
        raise UserError(f"--to {name}: no cell has a result")
    try:
        place.mkdir(parents=True, exist_ok=True)
        new = tracker.write(cells, place)
    except OSError as error:
        raise UserError(f"{place}: can't be written: {error.strerror or error}") from error
    there = ", the others were there already" if new < len(cells) else ""
    return f"{new} of {counted(len(cells), 'cell')} written to {place}{there}; {tracker.hint.format(place)}"


def _cells(run: RunFolder) -> Iterator[Finished]:
    truth = run.manifest().dataset.truth
    return (cell for record in run.records().values() if (cell := finished(record, truth)))


def _parameters(record: Record) -> dict[str, Any]:
    """The settings of a cell, with its device and images."""
    config = {name: value for name, value in record.cell.config.model_dump(mode="json").items() if value is not None}
    config = {name: ", ".join(map(str, v)) if isinstance(v, list) else v for name, v in config.items()}
    return config | {"device": record.cell.device, "dataset": record.dataset}


def _metrics(cell: Finished) -> dict[str, float]:
    """All known metrics of a cell."""
    found = {name: metric.of(cell) for name, metric in METRICS.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _epochs(cell: Finished) -> Iterator[tuple[int, dict[str, float]]]:
    for row in cell.result.epochs:
        figures = {name: getattr(row, name) for name in EPOCH_VALUES}
        yield row.epoch + 1, {name: float(value) for name, value in figures.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class _Name:
    """Our name of a cell; `str(name)` is RUN/CELL."""

    run: str
    cell: str
    """Both parts are valid file names."""

    def __str__(self) -> str:
        return f"{self.run}/{self.cell}"


def _name(run: RunFolder, record: Record) -> _Name:
    """The name of a record. It has the start time, so a cell that ran again gets another name."""
    config = record.cell.config
    parts = (config.backbone, config.regime, record.cell.device, f"seed{config.seed}", record.cell_id)
    when = f"{record.started:%Y%m%dT%H%M%S}"
    return _Name(run=_plain(run.name), cell=_plain("-".join((*parts, when))))


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).lstrip(".") or "run"


def _tensorboard(cells: Iterable[tuple[RunFolder, Finished]], folder: Path) -> int:
    new = 0
    for run, cell in cells:
        name = _name(run, cell.record)
        place = folder / name.run / name.cell
        if place.exists():
            continue
        new += 1
        place.parent.mkdir(parents=True, exist_ok=True)
        # Write under another name first, so that an interrupted export is repeated.
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as scratch:
            there = Path(scratch, "cell")
            began = int(cell.record.started.timestamp())
            write_atomic(there / f"events.out.tfevents.{began}.{cell.record.cell_id}", _events(cell))
            there.rename(place)
    return new


def _events(cell: Finished) -> bytes:
    """Return the content of a file of events.

    The package's own writer writes in another thread, whose errors, such as a full disk, don't reach the caller.
    """
    from tensorboardX import record_writer, summary
    from tensorboardX.proto import event_pb2

    make, checksum, event = cast(Any, summary), cast(Any, record_writer).masked_crc32c, cast(Any, event_pb2).Event

    def framed(entry: Any) -> bytes:
        data = entry.SerializeToString()
        length = struct.pack("<Q", len(data))
        return b"".join(part + struct.pack("<I", checksum(part)) for part in (length, data))

    at = cell.record.started.timestamp()
    table = "\n".join(f"| {key} | {value} |" for key, value in _parameters(cell.record).items())
    summaries = [
        *((epoch, make.scalar(f"epoch/{key}", value)) for epoch, some in _epochs(cell) for key, value in some.items()),
        *((0, make.scalar(f"cell/{key}", value)) for key, value in _metrics(cell).items()),
        (0, make.text("config", f"| setting | value |\n| --- | --- |\n{table}")),
    ]
    events = (event(wall_time=at, step=step, summary=values) for step, values in summaries)
    return b"".join(map(framed, (event(wall_time=at, file_version="brain.Event:2"), *events)))


def _mlflow(cells: Iterable[tuple[RunFolder, Finished]], folder: Path) -> int:
    # Plain files need no server and no database, but MLflow 3 has to be asked for them.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=folder.resolve().as_uri())
    new = 0
    for run, cell in cells:
        record, name = cell.record, _name(run, cell.record)
        experiment = client.get_experiment_by_name(name.run)
        identity = experiment.experiment_id if experiment else client.create_experiment(name.run)
        if client.search_runs([identity], f"tags.`{TAG}` = '{name}' and status = 'FINISHED'", max_results=1):
            continue
        new += 1
        begun = int(record.started.timestamp() * 1000)
        there = client.create_run(identity, start_time=begun, tags={TAG: str(name)}, run_name=name.cell)
        for key, value in _parameters(record).items():
            client.log_param(there.info.run_id, key, value)
        for epoch, figures in _epochs(cell):
            for key, value in figures.items():
                client.log_metric(there.info.run_id, f"epoch_{key}", value, step=epoch)
        for key, value in _metrics(cell).items():
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
