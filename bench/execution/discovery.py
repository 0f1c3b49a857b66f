"""Discovery of backbones and devices without importing torch in this process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.execution.base import Executor
from tl import plugins
from tl.cache import cache_dir, check_cache
from tl.errors import UserError
from tl.machine import cpu_name
from tl.sealed import read_or_warn, write_sealed
from tl.sources import SOURCES
from tl.weights import Place, look_for

KIND = 3
"""Which names are listed. It is raised when a library gives others with the same versions: 2 with torchvision's
tags, 3 with its detectors."""


def backbone_names(executor: Executor) -> dict[str, list[str]]:
    """Source → names of its backbones. They are cached until a library, package or script that adds some changes.

    A damaged file is noticed by its digest. It is rebuilt, with a `CacheWarning`. Raises `UserError` if the cache can't
    be a folder.
    """
    check_cache()
    path = _cached("backbones")
    if (text := read_or_warn(path)) is not None:
        cached: dict[str, list[str]] = json.loads(text)
        return cached
    names: dict[str, list[str]] = _ask(executor, "list_names")
    with contextlib.suppress(OSError):  # without a cache, the next command needs a few seconds more
        write_sealed(path, json.dumps(names).encode())
    return names


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a list says of a backbone."""

    parameters: int | None
    """Number of its parameters, without the classifier; None if that is unknown."""
    weights: str
    """Where its published weights are on this machine, in words; empty if they aren't here."""


COUNT_SECONDS = 20.0
"""Time for counting parameters of networks that `tl.sizes` doesn't know, in seconds; each takes some hundredths."""
Details = dict[str, tuple[int | None, str, list[tuple[str, str]] | None]]
"""What `bench.execution.worker.describe_backbones` returns."""


def backbone_details(executor: Executor, specs: Sequence[str], others: Sequence[str] = ()) -> dict[str, Described]:
    """Backbone, with the source that lists it → its size, and whether its weights are here.

    Those that there is no time for are left out; the next call goes on. Sizes, and where weights may be, are cached as
    names are, also of `others` that need no counting: then no library has to be loaded. Raises `UserError` if the cache
    can't be a folder.
    """
    check_cache()
    path = _cached("details")
    text = read_or_warn(path)
    known: Details = {} if text is None else json.loads(text)
    if missing := [spec for spec in specs if spec not in known]:
        more = [spec for spec in others if spec not in known]
        known |= _ask(executor, "describe_backbones", missing, more, COUNT_SECONDS)
        with contextlib.suppress(OSError):
            write_sealed(path, json.dumps(known).encode())
    found = {spec: known[spec] for spec in specs if spec in known}
    unplaced = [spec for spec, (_, _, places) in found.items() if places is None]
    weights: dict[str, str] = _ask(executor, "find_published", unplaced) if unplaced else {}
    for spec, (_, bundled_as, places) in found.items():
        if places is not None:
            at = [Place(file=file, repository=repository) for file, repository in places]
            weights[spec] = look_for(bundled_as, at)
    return {spec: Described(parameters=size, weights=weights[spec]) for spec, (size, _, _) in found.items()}


def _cached(what: str) -> Path:
    """The cache's file for what a library, package or script that adds some may change."""
    versions = {name: source.versions for name, source in SOURCES.items()}
    deciding = json.dumps([KIND, versions, plugins.fingerprint()])
    return cache_dir() / f"{what}-{hashlib.sha256(deciding.encode()).hexdigest()[:16]}.json"


def local_devices(executor: Executor) -> dict[str, str]:
    """Devices of this machine → their models, best first. Torch is loaded only if there may be an accelerator.

    `executor` must make its calls on this machine.
    """
    if sys.platform == "linux" and not any(map(Path.exists, map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")))):
        return {"cpu": cpu_name()}
    found: dict[str, str] = _ask(executor, "list_devices")
    return found


def _ask(executor: Executor, function: str, *arguments: Any) -> Any:
    outcome = executor.call(f"bench.execution.worker:{function}", *arguments)
    if outcome.status != "done":
        raise UserError(f"the libraries of networks can't be loaded: {with_advice(outcome.reason)}")
    return outcome.value


def with_advice(reason: str) -> str:
    """Add what to do to the reason why libraries can't be loaded, where that is known."""
    if not re.search(r"torchvision::|torchvision.*undefined symbol|partially initialized module 'torchvision", reason):
        return reason
    versions = " and ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision"))
    return (
        f"{reason}. {versions} are of different builds: install both from one index, as in `python -m pip install "
        "--force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu` for a CPU"
    )
