"""Names of source `savedmodel`: folders with a SavedModel of TensorFlow. Loads neither torch nor TensorFlow."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tl.cache import user_path
from tl.digest import file_digest
from tl.extras import require
from tl.own_code import Elsewhere
from tl.sources import Names, package_version

PYTHON = "TL_TENSORFLOW_PYTHON"
"""The environment variable with the Python that has TensorFlow, if that is another than this one."""
GRAPH = "saved_model.pb"


def saved_model(name: str) -> Elsewhere:
    """A SavedModel as messages name it."""
    return Elsewhere("backbone", name, "", "savedmodel")


def folder_of(path: Elsewhere) -> Path:
    """The folder of a SavedModel. Raises `ConfigError` if it is none, or if TensorFlow isn't installed."""
    folder = user_path(f"{path}: folder ", path.module)
    if not (folder / GRAPH).is_file():
        raise path.wrong(f"{path.module} has no {GRAPH}: name the folder of a SavedModel")
    if not os.environ.get(PYTHON):
        require("tensorflow", "tensorflow", path)
    return folder


def digest_of_folder(name: str) -> str:
    """Return the SHA-256 of all files of a SavedModel: its graph and its weights."""
    folder = folder_of(saved_model(name))
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(folder).as_posix()} {file_digest(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _digest(name: str) -> str:
    """Return the SHA-256 of a SavedModel and of the version of TensorFlow, as far as that is installed here."""
    version = next(filter(None, map(package_version, ("tensorflow", "tensorflow-cpu"))), "")
    return hashlib.sha256(f"tensorflow {version} {digest_of_folder(name)}".encode()).hexdigest()


def _canonical(name: str) -> str:
    folder_of(saved_model(name))
    return name


NAMES = Names(
    form="FOLDER",
    summary="a SavedModel of TensorFlow, for regimes that extract features once",
    canonical=_canonical,
    digest=_digest,
)
