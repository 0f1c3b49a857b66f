"""Names of source `savedmodel`: folders with a SavedModel of TensorFlow. Loads neither torch nor TensorFlow."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from tl.cache import user_path
from tl.digest import file_digest, files_below
from tl.extras import require
from tl.own_code import Elsewhere
from tl.sources import Names

PYTHON = "TL_TENSORFLOW_PYTHON"
"""The environment variable with the Python that has TensorFlow, if that is another than this one."""
GRAPH = "saved_model.pb"
_VERSION = """
from importlib import metadata
for name in ("tensorflow", "tensorflow-cpu"):
    try:
        print(metadata.version(name))
        break
    except metadata.PackageNotFoundError:
        pass
"""
"""Code that prints the version of TensorFlow, which it doesn't load."""


def saved_model(name: str) -> Elsewhere:
    """A SavedModel as messages name it."""
    return Elsewhere("backbone", os.fspath(Path(name)) if name else "", "", "savedmodel")  # `./a/` is `a`


def folder_of(path: Elsewhere) -> Path:
    """The folder of a SavedModel. Raises `ConfigError` if it is none, or if TensorFlow isn't installed."""
    folder = user_path(f"{path}: folder ", path.module)
    if not (folder / GRAPH).is_file():
        raise path.wrong(f"{path.module} has no {GRAPH}: name the folder of a SavedModel")
    if not os.environ.get(PYTHON):
        require("tensorflow", "tensorflow", path)
    return folder


def digest_of_folder(name: str) -> str:
    """Return the SHA-256 of all files of a SavedModel, those behind links too: its graph and its weights."""
    folder = folder_of(saved_model(name))
    files = files_below(folder, hidden=True)
    lines = sorted(f"{file.relative_to(folder).as_posix()} {file_digest(file)}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def python_of() -> str:
    """The Python that runs TensorFlow."""
    return os.environ.get(PYTHON) or sys.executable


def _version_of(path: Elsewhere) -> str:
    """Return the version of TensorFlow that runs a SavedModel; empty if its Python doesn't say it."""
    try:
        return _version_in(python_of())
    except OSError as error:
        raise path.wrong(f"{python_of()} can't be started: {error.strerror or error}") from error


@cache
def _version_in(python: str) -> str:
    command = [python, "-c", _VERSION]
    asked = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def _digest(name: str) -> str:
    """Return the SHA-256 of a SavedModel and of the version of TensorFlow that runs it."""
    version, content = _version_of(saved_model(name)), digest_of_folder(name)
    return hashlib.sha256(f"tensorflow {version} {content}".encode()).hexdigest()


def _canonical(name: str) -> str:
    path = saved_model(name)
    folder_of(path)
    return path.module


NAMES = Names(
    form="FOLDER",
    summary="a SavedModel of TensorFlow, for regimes that extract features once",
    canonical=_canonical,
    digest=_digest,
)
