"""Names of sources `hub` and `hub-local`: networks of PyTorch Hub, and of a folder like one of its. Loads no torch.

Code of a repository runs on this machine, so it is used only if the user trusts the repository (`--trust`). A name is
pinned to a commit before anything else happens, and records have the commit.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tl.cache import cache_dir, user_path
from tl.digest import file_digest
from tl.errors import ConfigError
from tl.network import unreachable
from tl.own_code import ImportPath, check_name
from tl.sources import Names

API, ARCHIVES = "https://api.github.com", "https://codeload.github.com"
VARIABLE = "TL_TRUST"
"""The environment variable with the repositories that are trusted, for child processes."""
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?::([^:\s]+))?:([A-Za-z_]\w*)")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST_BYTES = 200 << 20
"""Largest archive of a repository that is downloaded."""


@dataclass(frozen=True)
class Entry(ImportPath):
    """An entry of a `hubconf.py`: `module` is the repository or folder, and `name` the entry."""

    source: str = "hub"
    ref: str = ""
    """The branch, tag or commit; empty for the default branch, and for a folder."""

    @property
    def text(self) -> str:
        """The name as configs have it, without its source."""
        return ":".join(filter(None, [self.module, self.ref, self.name]))

    def __str__(self) -> str:
        return f"backbone={f'{self.source}:{self.text}'!r}"


def entry_of(source: str, name: str) -> Entry:
    """Take a name apart. Raises `ConfigError`."""
    if source == "hub-local":
        folder, _, last = name.rpartition(":")
        if not folder or not last.isidentifier():
            raise ConfigError(f"backbone={f'{source}:{name}'!r}: must be hub-local:FOLDER:ENTRY")
        return Entry("backbone", folder, last, source)
    found = _NAME.fullmatch(name)
    if not found:
        raise ConfigError(f"backbone={f'{source}:{name}'!r}: must be hub:OWNER/REPO[:REF]:ENTRY")
    return Entry("backbone", found[1], found[3], source, found[2] or "")


def trust(repositories: Iterable[str]) -> None:
    """Trust these repositories, `OWNER/REPO`, in this process and those that it starts. Raises `ConfigError`."""
    given = list(repositories)
    for one in given:
        if not _REPOSITORY.fullmatch(one):
            raise ConfigError(f"--trust {one!r}: must be a repository on GitHub, OWNER/REPO")
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*_trusted(), *given]))


def _trusted() -> list[str]:
    return [one for one in os.environ.get(VARIABLE, "").split(",") if one]


def folder_of(entry: Entry) -> Path:
    """The folder with an entry's `hubconf.py`; that of a pinned repository is downloaded if it isn't in the cache.

    Raises `ConfigError`.
    """
    if entry.source == "hub-local":
        folder = user_path(f"{entry}: folder ", entry.module)
        if not (folder / "hubconf.py").is_file():
            raise entry.wrong(f"{entry.module} has no hubconf.py")
        return folder
    folder = cache_dir() / "hub" / f"{entry.module.replace('/', '+')}+{entry.ref}"
    if not folder.is_dir():
        _download(entry, folder)
    if not (folder / "hubconf.py").is_file():
        raise entry.wrong("the repository has no hubconf.py at this commit")
    return folder


def _canonical(name: str) -> str:
    """Check trust and pin the commit."""
    entry = entry_of("hub", name)
    if entry.module.lower() not in map(str.lower, _trusted()):
        raise entry.wrong(f"runs code of that repository on this machine: add --trust {entry.module} if you trust it")
    if _COMMIT.fullmatch(entry.ref):
        return entry.text
    ref = entry.ref or "HEAD"
    address = f"{API}/repos/{entry.module}/commits/{ref}"
    answer = _get(entry, address, "application/vnd.github.sha", f"{ref} can't be pinned to a commit").decode().strip()
    if not _COMMIT.fullmatch(answer):
        raise entry.wrong(f"{ref} can't be pinned to a commit: {address} answered something else")
    return Entry("backbone", entry.module, entry.name, "hub", answer).text


def _get(entry: Entry, address: str, accept: str, what: str) -> bytes:
    if problem := unreachable(address):
        raise entry.wrong(f"{what}: {problem}")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers={"Accept": accept}), timeout=60) as answer:
            content: bytes = answer.read(_MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise entry.wrong(f"{what}: {address} answered {error.code}") from error
    except OSError as error:
        raise entry.wrong(f"{what}: {error}") from error
    if len(content) > _MOST_BYTES:
        raise entry.wrong(f"{what}: it has more than {_MOST_BYTES >> 20} MiB")
    return content


def _download(entry: Entry, folder: Path) -> None:
    """Unpack a commit into the cache, whole or not at all."""
    content = _get(entry, f"{ARCHIVES}/{entry.module}/zip/{entry.ref}", "*/*", "its code can't be downloaded")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                archive.extractall(scratch)  # never outside: zipfile drops `..` and the root
            (top,) = (each for each in Path(scratch).iterdir() if each.is_dir())
            shutil.move(os.fspath(top), os.fspath(folder))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise entry.wrong(f"its code can't be unpacked: {error}") from error


def digest_of_entry(entry: Entry) -> str:
    """Return the SHA-256 of all Python files of an entry's repository. Raises `ConfigError` without such an entry."""
    folder = folder_of(entry)
    check_name(entry, folder / "hubconf.py", "hubconf.py")
    files = sorted(file for file in folder.rglob("*.py") if file.is_file())
    lines = [f"{file.relative_to(folder).as_posix()} {file_digest(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


NAMES = Names(
    form="OWNER/REPO[:REF]:ENTRY",
    summary="a network of PyTorch Hub, with --trust OWNER/REPO",
    canonical=_canonical,
    digest=lambda name: digest_of_entry(entry_of("hub", name)),
    allow=lambda name: trust([entry_of("hub", name).module]),
)
LOCAL_NAMES = Names(
    form="FOLDER:ENTRY",
    summary="a network of a folder with a hubconf.py",
    canonical=lambda name: entry_of("hub-local", name).text,
    digest=lambda name: digest_of_entry(entry_of("hub-local", name)),
)
