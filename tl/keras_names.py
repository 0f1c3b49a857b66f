"""Names of source `keras`: networks of `keras.applications`. Loads neither torch nor Keras."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from tl.errors import near_matches
from tl.extras import require
from tl.own_code import Elsewhere
from tl.sources import Names, package_version


def application(name: str) -> Elsewhere:
    """A network as messages name it."""
    return Elsewhere("backbone", name, "", "keras")


@cache
def _listed() -> list[str]:
    """Names of the networks of the installed Keras, read from its source; none if it isn't installed."""
    found = PathFinder.find_spec("keras")
    if not found or not found.origin:
        return []
    file = Path(found.origin).parent / "applications" / "__init__.py"
    tree = ast.parse(file.read_bytes()) if file.is_file() else ast.Module([], [])
    names = [
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    return sorted(name for name in names if name[:1].isupper())


def _canonical(name: str) -> str:
    path = application(name)
    require("keras", "keras", path)
    if name not in (known := _listed()):
        hint = near_matches(name, known) or f"; it has {', '.join(known)}"
        raise path.wrong(f"keras.applications {package_version('keras')} has no such network{hint}")
    return name


def _digest(name: str) -> str:
    """Return the SHA-256 of the version of Keras and a name: they say which network it is."""
    return hashlib.sha256(f"keras {package_version('keras')} {_canonical(name)}".encode()).hexdigest()


NAMES = Names(
    form="NAME",
    summary="a network of keras.applications, by Keras on torch",
    canonical=_canonical,
    digest=_digest,
    listed=_listed,
)
