"""Names of sources `hub` and `hub-local`: networks of PyTorch Hub, and of a folder like one of its. Loads no torch.

Code of a repository runs on this machine, so it is used only if the user trusts the repository (`--trust`). A name is
pinned to a commit before anything else happens, and records have the commit.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tl.cache import cache_dir, user_path
from tl.digest import file_digest, files_below
from tl.errors import ConfigError, near_matches
from tl.network import unreachable
from tl.own_code import ImportPath, check_name, files_from
from tl.sources import Names

API, ARCHIVES = "https://api.github.com", "https://codeload.github.com"
VARIABLE = "TL_TRUST"
"""The environment variable with the repositories that are trusted, for child processes."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*/(?!\.{1,2}(?:$|:))[A-Za-z0-9_.-]+")
_NAME = re.compile(rf"({_REPOSITORY.pattern})(?::((?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./@+-]*))?:([A-Za-z_]\w*)")
"""No part of a name can lead an address or a folder elsewhere, as `..`, `?` and `#` would."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PAGE, _MOST_PAGES = 100, 20
"""Branches or tags in an answer, and answers that are read to find a commit among them."""
_NOT_THERE = (404, 422)
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
        return Entry("backbone", os.fspath(Path(folder)), last, source)  # `./a/` is `a`
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


@contextmanager
def trust_ends() -> Iterator[None]:
    """Let what is trusted within the context, such as by `trust`, be trusted there alone."""
    before = os.environ.get(VARIABLE)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def _trusted() -> list[str]:
    return [name for one in os.environ.get(VARIABLE, "").split(",") if (name := one.strip())]


def folder_of(entry: Entry) -> Path:
    """The folder with an entry's `hubconf.py`; that of a pinned repository is downloaded if it isn't in the cache.

    Raises `ConfigError`, also for a repository that isn't trusted, and for a commit that isn't its own.
    """
    if entry.source == "hub-local":
        folder = user_path(f"{entry}: folder ", entry.module)
        if not (folder / "hubconf.py").is_file():
            raise entry.wrong(f"{entry.module} has no hubconf.py")
        return folder
    _check_trust(entry)
    if not _COMMIT.fullmatch(entry.ref):
        raise entry.wrong("is not pinned to a commit")
    folder = cache_dir() / "hub" / f"{entry.module.replace('/', '+')}+{entry.ref}"
    if not folder.is_dir():
        _download(entry, folder)
    if not (folder / "hubconf.py").is_file():
        raise entry.wrong("the repository has no hubconf.py at this commit")
    return folder


def _canonical(name: str) -> str:
    """Check trust and pin the commit."""
    entry = entry_of("hub", name)
    _check_trust(entry)
    if _COMMIT.fullmatch(entry.ref):
        return entry.text
    try:
        commit = _commit_of(entry, entry.ref or "HEAD")
    except _NotThereError as error:
        raise entry.wrong(_what_is_not_there(entry)) from error
    return Entry("backbone", entry.module, entry.name, "hub", commit).text


def _what_is_not_there(entry: Entry) -> str:
    """Say whether GitHub lacks a repository or only its branch, tag or commit, with near matches as far as it says."""
    repository, owner = f"{API}/repos/{entry.module}", entry.module.partition("/")[0]
    if entry.ref and _is_there(entry, repository):
        known = [name for kind in ("branches", "tags") for name in _named_at(entry, f"{repository}/{kind}")]
        return f"the repository has no branch, tag or commit {entry.ref!r}{near_matches(entry.ref, known)}"
    known = [f"{owner}/{name}" for name in _named_at(entry, f"{API}/users/{owner}/repos")]
    return f"GitHub has no such repository, or it is private{near_matches(entry.module, known)}"


def _is_there(entry: Entry, repository: str) -> bool:
    try:
        _get(entry, repository, "application/vnd.github+json", f"{entry.ref} can't be pinned to a commit")
    except _NotThereError:
        return False
    return True


def _named_at(entry: Entry, address: str) -> list[str]:
    """Names in the first answer of a list of GitHub's; none without an answer: a hint is not worth a second error."""
    try:
        found = _asked(entry, f"{address}?per_page={_PAGE}", "")
    except ConfigError:
        return []
    return [str(one.get("name")) for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _check_trust(entry: Entry) -> None:
    if entry.module.lower() not in map(str.lower, _trusted()):
        raise entry.wrong(f"runs code of that repository on this machine: add --trust {entry.module} if you trust it")


def _commit_of(entry: Entry, ref: str) -> str:
    address, what = f"{API}/repos/{entry.module}/commits/{quote(ref, safe='')}", f"{ref} can't be pinned to a commit"
    answer = _get(entry, address, "application/vnd.github.sha", what).decode(errors="replace").strip()
    if not _COMMIT.fullmatch(answer):
        raise entry.wrong(f"{what}: {address} gave an unexpected answer")
    return answer


def _check_commit(entry: Entry) -> None:
    """Raise `ConfigError` for a commit that isn't the repository's own.

    GitHub shows commits of forks and of pull requests under the name of the repository that they are made from, and
    anybody can make those. So a commit must be in the history of the default branch, or the last one of a branch or a
    tag.
    """
    commit, what = entry.ref, f"whether {entry.ref[:8]} is a commit of this repository can't be found out"
    head = _commit_of(entry, "HEAD")
    if commit == head:
        return
    repository = f"{API}/repos/{entry.module}"
    compared = _asked(entry, f"{repository}/compare/{head}...{commit}?per_page=1", what, missing={})
    if isinstance(compared, dict) and compared.get("status") in ("behind", "identical"):
        return
    for kind in ("branches", "tags"):
        for page in range(1, _MOST_PAGES + 1):
            found = _asked(entry, f"{repository}/{kind}?per_page={_PAGE}&page={page}", what)
            names = found if isinstance(found, list) else []
            if any(isinstance(one, dict) and (one.get("commit") or {}).get("sha") == commit for one in names):
                return
            if len(names) < _PAGE:
                break
    raise entry.wrong(
        f"{commit[:8]} is neither in the history of the repository's default branch nor the last commit of a branch or "
        "tag; it may be of a fork or a pull request, whose code you haven't said that you trust"
    )


def _asked(entry: Entry, address: str, what: str, missing: object = None) -> object:
    """What an address answers as JSON; `missing`, if it is given, where there is no such thing."""
    try:
        return json.loads(_get(entry, address, "application/vnd.github+json", what))
    except _NotThereError:
        if missing is None:
            raise
        return missing
    except ValueError as error:
        raise entry.wrong(f"{what}: {address} gave an unexpected answer") from error


class _NotThereError(ConfigError):
    """A server has no such thing."""


def _get(entry: Entry, address: str, accept: str, what: str) -> bytes:
    if problem := unreachable(address):
        raise entry.wrong(f"{what}: {problem}")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers={"Accept": accept}), timeout=60) as answer:
            content: bytes = answer.read(_MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        wrong = entry.wrong(f"{what}: {address} answered {error.code}{_about_limit(error)}")
        raise (_NotThereError(str(wrong)) if error.code in _NOT_THERE else wrong) from error
    except OSError as error:
        raise entry.wrong(f"{what}: {error}") from error
    if len(content) > _MOST_BYTES:
        raise entry.wrong(f"{what}: it has more than {_MOST_BYTES >> 20} MiB")
    return content


def _about_limit(error: urllib.error.HTTPError) -> str:
    """Say whether GitHub refuses because of its limit on requests without an account."""
    used_up = error.code in (403, 429) and error.headers.get("x-ratelimit-remaining") == "0"
    return ": its limit on requests from here is used up for up to an hour" if used_up else ""


def _download(entry: Entry, folder: Path) -> None:
    """Unpack a commit into the cache, whole or not at all."""
    _check_commit(entry)
    content = _get(entry, f"{ARCHIVES}/{entry.module}/zip/{entry.ref}", "*/*", "its code can't be downloaded")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                archive.extractall(scratch)  # never outside: zipfile drops `..` and the root
            (top,) = (each for each in Path(scratch).iterdir() if each.is_dir())
            try:
                top.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, and has the same commit
                    raise
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise entry.wrong(f"its code can't be unpacked: {error}") from error


def digest_of_entry(entry: Entry) -> str:
    """Return the SHA-256 of all Python files of an entry's repository, and of all else that it imports.

    Links are followed. Raises `ConfigError` without such an entry.
    """
    folder = folder_of(entry).absolute()
    check_name(entry, folder / "hubconf.py", "hubconf.py")
    below = (file for file in files_below(folder, hidden=False) if file.suffix == ".py")
    files = {file.relative_to(folder).as_posix(): file for file in below}
    imported = files_from(entry, "hubconf", folder / "hubconf.py", [os.fspath(folder)])
    # Its own modules that aren't Python are extensions.
    files |= {name: file for name, file in imported.items() if not file.is_relative_to(folder) or file.suffix != ".py"}
    lines = [f"{name} {file_digest(file)}" for name, file in sorted(files.items())]
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
