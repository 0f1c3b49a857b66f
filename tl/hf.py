"""Names of sources `hf` and `hf-local`: networks of a repository on the Hugging Face hub, and of a folder like one.

Loads no torch. A name is pinned to a commit before anything else happens, and records have the commit. Only files of
settings are read here (`config.json` and that of the preprocessing); no code of a repository ever runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl.cache import user_path
from tl.digest import file_digest
from tl.errors import ConfigError, near_matches
from tl.extras import require
from tl.network import unreachable
from tl.own_code import Elsewhere
from tl.sources import Names, package_version

WEIGHTS = "model.safetensors"
"""The one file of weights that is read: those of other kinds can run code, or are parts of a larger one."""
CONFIG = "config.json"
PREPROCESSING = ("preprocessor_config.json", "processor_config.json")
"""Files that may say what images must go through, for networks of transformers, which decides between them."""
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?!.*\.\.)(?![^@]*--)(?![^@]*\.git(?:@|$))({_PART}/{_PART})(?:@([\w./-]+))?")
"""Names that the hub's client takes: others would be an error of its own."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST_NAMES = 300
"""Repositories of an owner among which near matches are looked for."""


class NoSuchFile(ConfigError):
    """A file that a repository doesn't have."""


@dataclass(frozen=True)
class Repository(Elsewhere):
    """A repository on the hub (`module`) at a revision (`name`), or a folder (`module`)."""

    source: str = "hf"

    @property
    def text(self) -> str:
        """The name as configs have it, without its source."""
        return "@".join(filter(None, [self.module, self.name]))

    def __str__(self) -> str:
        return f"backbone={f'{self.source}:{self.text}'!r}"


def repository_of(source: str, name: str) -> Repository:
    """Take a name apart. Raises `ConfigError`."""
    if source == "hf-local":
        if not name:
            raise ConfigError("backbone='hf-local:': must be hf-local:FOLDER")
        return Repository("backbone", os.fspath(Path(name)), "", source)  # `./a/` is `a`
    found = _NAME.fullmatch(name)
    if not found:
        raise ConfigError(f"backbone={f'{source}:{name}'!r}: must be hf:OWNER/NAME[@REVISION]")
    return Repository("backbone", found[1], found[2] or "", source)


@dataclass(frozen=True)
class Described:
    """What the settings of a repository say."""

    folder: Path
    """Where its files are on this machine: `config.json`, and that of the preprocessing."""
    config: dict[str, Any]

    @property
    def by_timm(self) -> bool:
        """True for a network of timm, False for one of transformers."""
        return isinstance(self.config.get("architecture"), str)


def described(repository: Repository) -> Described:
    """Read the settings of a repository or folder; those of a pinned one are downloaded if they aren't in the cache.

    Raises `ConfigError`, also if a package is missing that such a network needs.
    """
    if repository.source == "hf-local":
        path = user_path(f"{repository}: folder ", repository.module) / CONFIG
        if not path.is_file():
            raise repository.wrong(f"{repository.module} has no {CONFIG}")
    else:
        path = fetched(repository, CONFIG)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise repository.wrong(f"its {CONFIG} can't be read: {error}") from error
    if not isinstance(config, dict) or not (config.get("architecture") or config.get("model_type")):
        raise repository.wrong(f"its {CONFIG} names neither a network of timm nor one of transformers")
    found = Described(path.parent, config)
    if not found.by_timm:
        require("transformers", "transformers", repository)
        _settle_preprocessing(repository, path.parent)
    return found


def _settle_preprocessing(repository: Repository, folder: Path) -> None:
    """Have all files of the preprocessing in the folder that there are, so that it follows from the repository alone.

    Raises `ConfigError` if there is none.
    """
    there = False
    for name in PREPROCESSING:
        if (folder / name).is_file():
            there = True
        elif repository.source == "hf" and not (there and _can_not_be_asked()):
            there |= _fetch_if_there(repository, name)
    if not there:
        raise repository.wrong(
            f"it has no {PREPROCESSING[0]}, so it is unknown what images its weights expect; a function of yours can "
            "make a tl.Backbone of it (module:MODULE:NAME)"
        )


def _can_not_be_asked() -> bool:
    from huggingface_hub import constants

    return bool(unreachable(constants.ENDPOINT))


def _fetch_if_there(repository: Repository, name: str) -> bool:
    if _is_known_to_lack(repository, name):
        return False
    try:
        fetched(repository, name)
    except NoSuchFile:
        return False
    return True


def _is_known_to_lack(repository: Repository, name: str) -> bool:
    """True if the hub was asked for a file of this commit before, and had it not."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(repository.module, name, revision=repository.name or None) is _CACHED_NO_EXIST


def in_cache(repository: Repository, name: str) -> Path | None:
    """Return a file of a repository that Hugging Face's cache has; None if it has it not."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository.module, name, revision=repository.name or None)
    return Path(found) if isinstance(found, str) else None


def fetched(repository: Repository, name: str) -> Path:
    """Return a file of a repository from Hugging Face's cache, into which it is downloaded if it isn't there.

    Raises `ConfigError`: `NoSuchFile` if the repository doesn't have it.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    pinned = _COMMIT.fullmatch(repository.name)
    if pinned and (path := in_cache(repository, name)):
        return path
    if problem := unreachable(constants.ENDPOINT):
        if path := in_cache(repository, name):
            return path  # at the commit that the name meant when it was last asked for
        lacks = f"{name} is not in Hugging Face's cache" if pinned else "its commit is unknown"
        raise repository.wrong(f"{lacks}, and {problem}")
    try:
        revision = repository.name or None
        return Path(hf_hub_download(repository.module, name, revision=revision, endpoint=constants.ENDPOINT))
    except GatedRepoError as error:
        why = f"{constants.ENDPOINT} gives it only to those who have accepted its terms: accept them, and set HF_TOKEN"
        raise repository.wrong(why) from error
    except RepositoryNotFoundError as error:
        why = f"{constants.ENDPOINT} has no such model, or it is private{_near(repository)}"
        raise repository.wrong(why) from error
    except RevisionNotFoundError as error:
        raise repository.wrong(f"it has no revision {repository.name!r}") from error
    except Exception as error:  # the hub's client raises many kinds, of libraries below it too
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise NoSuchFile(f"{repository}: it has no {name}") from error
        said = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        raise repository.wrong(f"its {name} can't be downloaded from {constants.ENDPOINT}: {said}") from error


def _near(repository: Repository) -> str:
    """Name models of the same owner with a similar name, for a message; empty if there are none, or if nobody says."""
    from huggingface_hub import HfApi, constants

    owner = repository.module.partition("/")[0]
    try:
        found = HfApi(endpoint=constants.ENDPOINT).list_models(author=owner, limit=_MOST_NAMES)
        return near_matches(repository.module, [one.id for one in found])
    except Exception:  # a hint is not worth a second error
        return ""


def _canonical(name: str) -> str:
    """Pin the commit: the hub's client keeps a file in a folder of that name."""
    repository = repository_of("hf", name)
    if _COMMIT.fullmatch(repository.name):
        return repository.text
    commit = fetched(repository, CONFIG).parent.name
    if not _COMMIT.fullmatch(commit):
        raise repository.wrong(f"it can't be pinned to a commit: the hub's client says {commit!r}")
    return Repository("backbone", repository.module, commit).text


def digest_of_settings(repository: Repository) -> str:
    """Return the SHA-256 of the files that say how a network is built and what images go through.

    The version of transformers counts, where that builds it.
    """
    found = described(repository)
    files = [found.folder / name for name in (CONFIG, *PREPROCESSING)]
    lines = [] if found.by_timm else [f"transformers {package_version('transformers')}"]
    lines += [f"{file.name} {file_digest(file)}" for file in files if file.is_file()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


NAMES = Names(
    form="OWNER/NAME[@REVISION]",
    summary="a network of timm or transformers on the Hugging Face hub",
    canonical=_canonical,
    digest=lambda name: digest_of_settings(repository_of("hf", name)),
)
LOCAL_NAMES = Names(
    form="FOLDER",
    summary="the same from a folder with config.json and model.safetensors",
    canonical=lambda name: repository_of("hf-local", name).text,
    digest=lambda name: digest_of_settings(repository_of("hf-local", name)),
)
