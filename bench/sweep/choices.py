"""The choices for a sweep: grids, backbones, regimes, tasks, executions, precisions, data sets, devices."""

from __future__ import annotations

from collections.abc import Callable

from bench.execution import discovery
from bench.execution.executors import make_executor
from bench.sweep.grid import load_grid, shipped
from tl.config import EXECUTIONS, PRECISIONS
from tl.datasets import DATASETS
from tl.errors import UserError
from tl.regimes import REGIMES
from tl.sources import SOURCES, names_of
from tl.specs import Spec
from tl.tasks import TASKS
from tl.weights import BUNDLED

LISTS = {
    "grids": "the grids that come with the suite",
    "backbones": "networks of the installed libraries; `backbones TEXT` finds more",
    "regimes": "which parts of a network train",
    "tasks": "what a network is to say of an image",
    "executions": "how a training is carried out",
    "precisions": "the arithmetic of a training",
    "datasets": "images to train on",
    "devices": "the devices of this machine",
}
"""Name of a list → what it lists."""
MOST_DESCRIBED = 400
"""Largest number of backbones whose parameters and weights a list has: a network takes some hundredths of a second."""


def choices(what: str, text: str | None = None) -> dict[str, str]:
    """Names of one kind → what they mean. With `text`, only names that contain it.

    `what` is grids, backbones, regimes, tasks, executions, precisions, datasets or devices. Raises `UserError` if no
    name contains `text`.
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
    }
    rows = lists[what]()
    rows = {name: meaning for name, meaning in rows.items() if not text or text in name}
    if not rows:
        raise UserError(f"list {what} {text!r}: no name contains that; `list {what}` shows all")
    return rows


def _datasets() -> dict[str, str]:
    auto = {"auto": "hymenoptera if available, else synthetic; the default"}
    folder = {
        "PATH": "a folder of CLASS/*.jpg or of train/ and val/ with these, a CSV or Parquet file of path and label, or "
        "for task detection COCO files or masks"
    }
    return auto | {name: dataset.summary for name, dataset in DATASETS.items()} | folder


def _backbones(text: str | None) -> dict[str, str]:
    used: dict[str, list[str]] = {}
    for grid in shipped():
        for spec in load_grid(grid).matrix.backbones:
            used.setdefault(spec, []).append(grid)
    executor = make_executor("process")
    listed = discovery.backbone_names(executor)
    everything = [str(Spec(source, name)) for source, some in listed.items() for name in some]
    chosen = (
        [spec for spec in everything if text in spec] if text else [s for s in everything if s in used or s in BUNDLED]
    )
    details = discovery.backbone_details(executor, chosen) if text and len(chosen) <= MOST_DESCRIBED else {}
    rows = {}
    for spec in chosen:
        notes = _described(details[spec]) if spec in details else []
        notes += [f"in grid {', '.join(used[spec])}"] if spec in used else []
        notes += [f"weights from package {BUNDLED[spec].distribution}"] if spec in BUNDLED else []
        rows[spec] = "; ".join(notes)
    if text and len(chosen) > MOST_DESCRIBED:
        rows["…"] = f"{len(chosen)} names: a longer text also says how large they are, and whether weights are here"
    for source in SOURCES:
        names = names_of(source)
        if names and (not text or f"{source}:".startswith(text)):
            rows[f"{source}:{names.form}"] = names.summary
        if names and text:
            rows |= {f"{source}:{name}": "" for name in names.listed() if text in f"{source}:{name}"}
    if not text:
        rows["…"] = f"{len(everything)} names in all: `python -m bench list backbones TEXT` finds more"
    return rows


def _described(found: discovery.Described) -> list[str]:
    """The size of a network and where its weights are, in words."""
    size = [] if found.parameters is None else [f"{found.parameters / 1e6:.1f} M parameters"]
    return [*size, f"weights here ({found.weights})" if found.weights else "weights not here"]
