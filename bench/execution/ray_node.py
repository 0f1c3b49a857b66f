"""The part of a cluster run that happens on a node: find or unpack a cell's images and weights, and run the cell.

Only unpacking imports Ray.
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
from bench.execution.base import Attempt, Executor, Job, PairAttempt, PairJob
from bench.execution.process import HERE, SCRATCH, ProcessExecutor, clear_dead
from bench.store.records import PlannedPair
from tl.cache import cache_dir
from tl.datasets import Splits, digest_at
from tl.digest import file_digest
from tl.errors import UserError
from tl.images import open_store
from tl.machine import usable_cores
from tl.sealed import CacheDamage, cache_warnings_to, warn_rebuilt
from tl.weights import Weights

PART_BYTES = 64 << 20
"""Size of one part of a payload, in bytes. A node fetches part after part, so it never holds all of them in memory."""
MakeExecutor = Callable[[], Executor]


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Files for nodes that don't have them."""

    parts: tuple[Any, ...]
    """Ray references; each refers to a dictionary of file names and contents."""


Message = (
    tuple[Literal["progressed"], Any]
    | tuple[Literal["warned"], str]
    | tuple[Literal["missing"]]
    | tuple[Literal["ended"], Attempt | PairAttempt, bytes]
)
"""`missing`: this node lacks images or weights, and got no payload with them. `ended` includes the cell's log."""


class _Missing(Exception):
    """This node lacks files, and the task came without a payload."""


def describe_node() -> tuple[dict[str, str], int]:
    """Devices of this node → their models, best first; and the number of its logical cores."""
    return _executor(ProcessExecutor).devices(), usable_cores()


def run(
    job: Job | PairJob, images: Payload | None, weights: Mapping[str, Payload], make: MakeExecutor
) -> Iterator[Message]:
    """Run a cell or time a process pair on this node, and yield messages on its progress.

    `weights` are payloads by the digest of their file. The log is sent back and not kept on the node.
    """
    outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def run_here() -> None:
        try:
            clear_dead(Path(tempfile.gettempdir()), SCRATCH)
            with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-") as scratch:
                log = Path(scratch) / job.log.name
                with cache_warnings_to(lambda text: outbox.put(("warned", text))):
                    splits = find_images(job.splits, images)
                    given = job.weights if isinstance(job, PairJob) else (job.weights,)
                    files = tuple(find_file(each, weights.get(each.digest)) for each in given)
                executor = _executor(make)
                executor.prepare()
                end: Attempt | PairAttempt
                if isinstance(job, PairJob):
                    end = _timed(executor, replace(job, log=log, splits=splits, weights=files), outbox)
                else:
                    end = run_job(
                        executor,
                        replace(job, log=log, splits=splits, weights=files[0]),
                        progressed=lambda event: outbox.put(("progressed", event)),
                        warned=lambda text: outbox.put(("warned", text)),
                    )
                outbox.put(("ended", end, log.read_bytes() if log.exists() else b""))
        except _Missing:
            outbox.put(("missing",))
        finally:
            outbox.put(None)

    # A callback receives the events, but a generator sends them: one of the two needs a thread of its own.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run_here)
        while (message := outbox.get()) is not None:
            yield message
        future.result()


def _timed(executor: Executor, job: PairJob, outbox: queue.SimpleQueue[Message | None]) -> PairAttempt:
    """Time a pair with the executor of this node."""
    found: list[PairAttempt] = []

    class Events:
        def pair_started(self, pair: PlannedPair) -> None:
            pass

        def warned(self, text: str) -> None:
            outbox.put(("warned", text))

        def pair_ended(self, pair: PlannedPair, attempt: PairAttempt) -> None:
            found.append(attempt)

    executor.run_pairs([job], Events(), lambda: False)
    return found[0]


@cache
def _executor(make: MakeExecutor) -> Executor:
    """The executor of this process; it keeps its fork server from cell to cell."""
    return make()


_KNOWN: dict[str, Splits] = {}
"""Digest → images that this process has found."""


def find_images(splits: Splits, payload: Payload | None) -> Splits:
    """The same images on this node: at their path on the driver, or unpacked into the cache.

    They are decoded now, as before a sweep on one machine, so that the first cell's time and memory exclude it.
    """
    if splits.digest not in _KNOWN:
        unpacked = cache_dir() / "sent" / splits.digest
        found = next((root for root in (splits.root, unpacked) if _has_images(root, splits)), None)
        if found is None:
            if payload is None:
                raise _Missing
            _unpack(payload, unpacked, lambda: _has_images(unpacked, splits))
            found = unpacked
        _KNOWN[splits.digest] = replace(splits, root=found)
        open_store(_KNOWN[splits.digest])
    return _KNOWN[splits.digest]


def _has_images(root: Path, splits: Splits) -> bool:
    """True if a folder has these images; False also if there is no such folder, or if it can't be read."""
    try:
        return root.is_dir() and digest_at(splits, root) == splits.digest
    except (UserError, OSError):
        return False


def find_file(weights: Weights, payload: Payload | None) -> Weights:
    """The same weights on this node: at their path on the driver, or unpacked into the cache."""
    if weights.path is None:
        return weights
    if _has(weights.path, weights.digest):
        return weights
    folder = cache_dir() / "sent" / weights.digest
    path = folder / sent_name(weights.path)
    if not _has(path, weights.digest):
        if payload is None:
            raise _Missing
        _unpack(payload, folder, lambda: _has(path, weights.digest))
    return weights.replace(path=path)


def _has(path: Path, digest: str) -> bool:
    """True if the file exists, can be read, and has that digest."""
    try:
        return path.is_file() and file_digest(path) == digest
    except OSError:
        return False


def _unpack(payload: Payload, folder: Path, intact: Callable[[], bool]) -> None:
    """Write the payload's files to a folder. The folder appears in one step, since several processes may unpack it.

    What is there already is replaced, with a `CacheWarning`, unless it is `intact`. Raises `UserError` if the folder
    doesn't become so.
    """
    import ray

    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".sent-{HERE}-"
    clear_dead(folder.parent, prefix)
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f"{prefix}{os.getpid()}-", ignore_cleanup_errors=True
    ) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        for part in payload.parts:
            for name, content in ray.get(part).items():
                place = new / name
                if not place.resolve().is_relative_to(new.resolve()):
                    raise UserError(f"{name}: would be unpacked outside its folder")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
        if os.path.lexists(folder) and not intact():
            warn_rebuilt(CacheDamage(folder, "it doesn't hold what was sent to this node"))
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:  # another process was quicker
            if not folder.is_dir():
                raise
    if not intact():
        raise UserError(f"{folder}: doesn't hold what was sent to this node; remove that folder")


def sent_name(path: Path) -> str:
    """Name of a weights file on a node. The original name doesn't matter; its suffix does, which gives the format."""
    return f"weights{path.suffix}"


def pack(files: Mapping[str, Path], put: Callable[[dict[str, bytes]], Any]) -> Payload:
    """Pack files in parts of about `PART_BYTES`. `put` stores a part, names → contents, and returns a reference."""
    parts, part, size = [], {}, 0
    for name, path in files.items():
        part[name] = path.read_bytes()
        size += len(part[name])
        if size >= PART_BYTES:
            parts.append(put(part))
            part, size = {}, 0
    return Payload(parts=(*parts, put(part)) if part else tuple(parts))
