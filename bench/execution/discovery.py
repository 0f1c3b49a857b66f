"""Discovery of backbones and devices without importing torch in this process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from bench.execution.base import Executor
from tl import plugins
from tl.cache import cache_dir, check_cache
from tl.errors import UserError
from tl.machine import cpu_name
from tl.sealed import read_or_warn, write_sealed
from tl.sources import SOURCES

KIND = 3
"""Which names are listed. It is raised when a library gives others with the same versions: 2 with torchvision's
tags, 3 with its detectors."""


def backbone_names(executor: Executor) -> dict[str, list[str]]:
    """Source → names of its backbones. They are cached until a library, package or script that adds some changes.

    A damaged file is noticed by its digest. It is rebuilt, with a `CacheWarning`. Raises `UserError` if the cache can't
    be a folder.
    """
    check_cache()
    versions = {name: source.versions for name, source in SOURCES.items()}
    deciding = json.dumps([KIND, versions, plugins.fingerprint()])
    path = cache_dir() / f"backbones-{hashlib.sha256(deciding.encode()).hexdigest()[:16]}.json"
    if (text := read_or_warn(path)) is not None:
        cached: dict[str, list[str]] = json.loads(text)
        return cached
    names: dict[str, list[str]] = _ask(executor, "list_names")
    with contextlib.suppress(OSError):  # without a cache, the next command needs a few seconds more
        write_sealed(path, json.dumps(names).encode())
    return names


def local_devices(executor: Executor) -> dict[str, str]:
    """Devices of this machine → their models, best first. Torch is loaded only if there may be an accelerator.

    `executor` must make its calls on this machine.
    """
    if sys.platform == "linux" and not any(map(Path.exists, map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")))):
        return {"cpu": cpu_name()}
    found: dict[str, str] = _ask(executor, "list_devices")
    return found


def _ask(executor: Executor, function: str) -> Any:
    outcome = executor.call(f"bench.execution.worker:{function}")
    if outcome.status != "done":
        raise UserError(f"the libraries of networks can't be loaded: {outcome.reason}")
    return outcome.value
