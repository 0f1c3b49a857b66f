"""What a node of a cluster does: finds a cell's images and weights, or unpacks those it was sent, and runs the cell.

Nothing here imports Ray but to fetch what was sent.
"""

from __future__ import annotations

import os
import queue
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from bench.execution.attempt import run_job
from bench.execution.base import Attempt, Executor, Job
from bench.execution.process import HERE, SCRATCH, ProcessExecutor, clear_dead
from tl.cache import cache_dir
from tl.datasets import Splits, scan
from tl.digest import file_digest
from tl.errors import UserError
from tl.images import open_store
from tl.machine import usable_cores
from tl.weights import Weights

PART_BYTES = 64 << 20
"""Of files in one object that is sent: a node takes one after the other, and needs no room for all at once."""
MakeExecutor = Callable[[], Executor]


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Files by name, for nodes that don't have them."""

    parts: tuple[Any, ...]
    """Ray references, each to a dictionary of names and contents."""


Message = (
    tuple[Literal["progressed"], Any]
    | tuple[Literal["warned"], str]
    | tuple[Literal["missing"]]
    | tuple[Literal["ended"], Attempt, bytes]
)
"""`missing`: images or weights are not here, and were not sent. `ended` has what the cell wrote."""


class _Missing(Exception):
    """Files that are not on this node, and no payload came with the task."""


def describe_node() -> tuple[dict[str, str], int]:
    """Devices of this node, best first, with their models; and its logical cores."""
    return _executor(ProcessExecutor).devices(), usable_cores()


def run_cell(job: Job, images: Payload | None, weights: Payload | None, make: MakeExecutor) -> Iterator[Message]:
    """Run a cell on this node, and tell how it goes. Its log is sent back, not left here."""
    sent: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            clear_dead(Path(tempfile.gettempdir()), SCRATCH)
            with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-") as scratch:
                log = Path(scratch) / job.log.name
                splits, file = find_images(job.splits, images), find_file(job.weights, weights)
                here, executor = replace(job, log=log, splits=splits, weights=file), _executor(make)
                executor.prepare()
                end = run_job(
                    executor,
                    here,
                    progressed=lambda event: sent.put(("progressed", event)),
                    warned=lambda text: sent.put(("warned", text)),
                )
                sent.put(("ended", end, log.read_bytes() if log.exists() else b""))
        except _Missing:
            sent.put(("missing",))
        finally:
            sent.put(None)

    # Events come by a callback, and are sent by a generator: one of the two needs a thread of its own.
    with ThreadPoolExecutor(1) as pool:
        over = pool.submit(run)
        while (message := sent.get()) is not None:
            yield message
        over.result()


@cache
def _executor(make: MakeExecutor) -> Executor:
    """One a process, which keeps its fork server from cell to cell."""
    return make()


_KNOWN: dict[str, Splits] = {}
"""By digest: images that this process has found."""


def find_images(splits: Splits, payload: Payload | None) -> Splits:
    """The same images on this node: where they are on the driver's, or unpacked into the cache.

    They are decoded here and now, as before a sweep at home: not in the first cell's time and memory.
    """
    if splits.digest not in _KNOWN:
        unpacked = cache_dir() / "sent" / splits.digest
        found = next((root for root in (splits.root, unpacked) if _digest(root) == splits.digest), None)
        if found is None:
            if payload is None:
                raise _Missing
            _unpack(payload, unpacked)
            found = unpacked
            if _digest(found) != splits.digest:
                raise UserError(f"{found}: not the images that were sent; remove that folder")
        _KNOWN[splits.digest] = replace(splits, root=found)
        open_store(_KNOWN[splits.digest])
    return _KNOWN[splits.digest]


def _digest(root: Path) -> str:
    """Of the images below a folder; empty where it is none."""
    try:
        return scan(root).digest if root.is_dir() else ""
    except (UserError, OSError):  # a folder that may not be looked at, too
        return ""


def find_file(weights: Weights, payload: Payload | None) -> Weights:
    """The same weights on this node: where they are on the driver's, or unpacked into the cache."""
    if weights.path is None:
        return weights
    if _has(weights.path, weights.digest):
        return weights
    folder = cache_dir() / "sent" / weights.digest
    path = folder / sent_name(weights.path)
    if not _has(path, weights.digest):
        if payload is None:
            raise _Missing
        _unpack(payload, folder)
        if not _has(path, weights.digest):
            raise UserError(f"{folder}: doesn't hold the weights that were sent; remove that folder")
    return weights.replace(path=path)


def _has(path: Path, digest: str) -> bool:
    """Whether a file is there, may be read, and has that content."""
    try:
        return path.is_file() and file_digest(path) == digest
    except OSError:
        return False


def _unpack(payload: Payload, folder: Path) -> None:
    """Into its place in one step: another process of this node may do the same at this moment."""
    import ray

    folder.parent.mkdir(parents=True, exist_ok=True)
    begins = f".sent-{HERE}-"
    clear_dead(folder.parent, begins)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{begins}{os.getpid()}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        for part in payload.parts:
            for name, content in ray.get(part).items():
                place = new / name
                if not place.resolve().is_relative_to(new.resolve()):
                    raise UserError(f"{name}: would be unpacked outside its folder")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
        try:
            new.rename(folder)
        except OSError:  # the other process was quicker
            if not folder.is_dir():
                raise


def sent_name(path: Path) -> str:
    """What a weights file is called on a node: its own name is no part of what it is, but its kind is."""
    return f"weights{path.suffix}"


def pack(files: Mapping[str, Path], put: Callable[[dict[str, bytes]], Any]) -> Payload:
    """Files under their names, in parts of about `PART_BYTES`, each handed to `put`, which returns a reference."""
    parts, part, size = [], {}, 0
    for name, path in files.items():
        part[name] = path.read_bytes()
        size += len(part[name])
        if size >= PART_BYTES:
            parts.append(put(part))
            part, size = {}, 0
    return Payload(parts=(*parts, put(part)) if part else tuple(parts))
