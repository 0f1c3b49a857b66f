"""The choices for a sweep: grids, backbones, regimes, tasks, executions, precisions, data sets, devices; and runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.analysis.tally import tally_of_run
from bench.execution import discovery
from bench.execution.executors import make_executor
from bench.store.runs import RunFolder, all_runs
from bench.sweep.grid import load_grid, shipped
from tl.config import EXECUTIONS, PRECISIONS
from tl.datasets import DATASETS
from tl.errors import UserError
from tl.regimes import REGIMES
from tl.sources import SOURCES, names_of
from tl.specs import Spec
from tl.tasks import TASKS
from tl.text import shortened
from tl.weights import BUNDLED

LISTS = {
    "grids": "the grids that come with the suite",
    "backbones": "networks of the installed libraries; `backbones TEXT` finds more",
    "regimes": "which parts of a network train",
    "tasks": "what a network predicts for an image",
    "executions": "how a training is carried out",
    "precisions": "the arithmetic of a training",
    "datasets": "images to train on",
    "devices": "the devices of this machine",
    "runs": "the runs below --results, and how much of each is done",
}
"""Name of a list → what it lists."""


def choices(what: str, text: str | None = None, results: Path = Path("results")) -> dict[str, str]:
    """Names of one kind → what they mean. With `text`, only names that contain it, in capital letters or not.

    `what` is one of `LISTS`; `results` is the folder of the runs. Raises `UserError` if no name contains `text`.
    """
    lists: dict[str, Callable[[], dict[str, str]]] = {
        "grids": shipped,
        "regimes": lambda: {name: regime.summary for name, regime in REGIMES.items()},
        "tasks": lambda: {name: f"{task.summary}; its score is {task.score}" for name, task in TASKS.items()},
        "executions": lambda: EXECUTIONS,
        "precisions": lambda: PRECISIONS,
        "datasets": _datasets,
        "devices": lambda: make_executor("process").devices(),
        "backbones": lambda: _backbones(text),
        "runs": lambda: {run.name: _run(run) for run in all_runs(results)},
    }
    rows = lists[what]()
    if text and what != "backbones":  # whose own row "…" contains no text
        rows = {name: meaning for name, meaning in rows.items() if _contains(name, text)}
    if not rows:
        raise UserError(f"list {what} {shortened(text or '')!r}: no name contains that; `list {what}` shows all")
    return rows


def _contains(name: str, text: str) -> bool:
    return text.casefold() in name.casefold()


def _datasets() -> dict[str, str]:
    auto = {"auto": "hymenoptera if available, else synthetic; the default"}
    folder = {
        "PATH": "a folder of CLASS/*.jpg, alone or in train/ and val/; a CSV or Parquet file with paths and labels; "
        "COCO files or masks for task detection"
    }
    return auto | {name: dataset.summary for name, dataset in DATASETS.items()} | folder


def _run(run: RunFolder) -> str:
    """How far a run is, on which images, and when its latest command began; or why it can't be read."""
    try:
        manifest, count = run.manifest(), tally_of_run(run)
    except UserError as error:
        return str(error)
    return f"{count}; {manifest.dataset.name}; {manifest.invocations[-1].started:%Y-%m-%d}"


def _backbones(text: str | None) -> dict[str, str]:
    used: dict[str, list[str]] = {}
    for grid in shipped():
        for spec in load_grid(grid).matrix.backbones:
            used.setdefault(spec, []).append(grid)
    executor = make_executor("process")
    listed = discovery.backbone_names(executor)
    everything = [str(Spec(source, name)) for source, some in listed.items() for name in some]
    chosen = [spec for spec in everything if (_contains(spec, text) if text else spec in used or spec in BUNDLED)]
    details = discovery.backbone_details(executor, chosen, everything) if text else {}
    rows = {}
    for spec in chosen:
        notes = _described(details[spec]) if spec in details else []
        notes += [f"in grid {', '.join(used[spec])}"] if spec in used else []
        notes += [f"weights from package {BUNDLED[spec].distribution}"] if spec in BUNDLED and not text else []
        rows[spec] = "; ".join(notes)
    if text and (later := len(chosen) - len(details)):
        number = "1 is" if later == 1 else f"{later} are"
        rows["…"] = f"{number} not counted yet: the same command counts on, and keeps what it has counted"
    for source in SOURCES:
        names = names_of(source)
        if names and (not text or f"{source}:".startswith(text.casefold())):
            rows[f"{source}:{names.form}"] = names.summary
        if names and text:
            rows |= {f"{source}:{name}": "" for name in names.listed() if _contains(f"{source}:{name}", text)}
    if not text:
        rows["…"] = f"{len(everything)} names in all: `python -m bench list backbones TEXT` finds more"
    return rows


def _described(found: discovery.Described) -> list[str]:
    """The size of a network and where its weights are, in words."""
    size = [] if found.parameters is None else [f"{found.parameters / 1e6:.1f} M parameters"]
    return [*size, f"weights here ({found.weights})" if found.weights else "weights not here"]
