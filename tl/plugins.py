"""Entries that users add to our registries without editing them.

An installed package names its entries as entry points, in a group per registry: `tl.sources`, `tl.regimes`,
`bench.metrics` and `bench.claims`. A script puts entries into the registries itself, and is loaded with
`--plugin FILE`. The processes that cells run in load the same entries.

Entries are loaded by whoever starts something (a command, `bench.run`, a cell's process, the first name of `tl`), not
when a registry is imported: a package may have all its entries in one module, which needs all registries.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from tl.digest import file_digest
from tl.errors import ConfigError
from tl.text import shortened

Entry = TypeVar("Entry")

VARIABLE = "TL_PLUGINS"
"""The environment variable that lists the scripts that child processes load."""


def add_entry_points(group: str, registry: dict[str, Entry], kind: type[Entry]) -> None:
    """Add the entries that installed packages have in a group to its registry.

    Raises `ConfigError` if one can't be loaded, is not of that kind, or has a name that is taken.
    """
    for point in _entry_points(group):
        where = f"entry point {point.name!r} of group {group} ({point.value})"
        try:
            entry = point.load()
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{where}: can't be loaded: {type(error).__name__}: {error}") from error
        if not isinstance(entry, kind):
            raise ConfigError(f"{where}: is a {type(entry).__name__}, not a {kind.__name__}")
        if registry.get(point.name, entry) is not entry:
            raise ConfigError(f"{where}: the name is taken; taken are {', '.join(registry)}")
        registry[point.name] = entry


def check_entries(where: str, name: str, registry: Mapping[Any, object], kind: type) -> None:
    """Raise `ConfigError` if the registry of that name has an entry that is not of that kind, or has no name."""
    for key, entry in registry.items():
        which = f"{where}{name}[{shortened(repr(key))}]"
        if not isinstance(key, str) or not key:
            raise ConfigError(f"{which}: the name of an entry must be a text")
        if not isinstance(entry, kind):
            raise ConfigError(f"{which}: must be a {kind.__name__}, but is of type {type(entry).__name__}")


_started: list[bool] = []
"""Not empty once entry points are being loaded: a package's module may itself use names of `tl`, which load them."""


def load_entry_points() -> None:
    """Add the sources and regimes of installed packages, once. Raises as `add_entry_points`."""
    if _started:
        return
    _started.append(True)
    from tl.regimes import REGIMES, Regime
    from tl.sources import SOURCES, Source

    try:
        add_entry_points("tl.sources", SOURCES, Source)
        add_entry_points("tl.regimes", REGIMES, Regime)
    except ConfigError:
        _started.clear()  # so that the next use fails as well, rather than goes on without the entries
        raise


def load_script(path: Path) -> None:
    """Run a script that adds entries, once, as a module named after its file. Child processes run it too.

    Raises `ConfigError` if it can't be run, or if its name is that of another module.
    """
    path = path.resolve()
    if not path.is_file() or path.suffix != ".py" or "." in path.stem:
        raise ConfigError(f"--plugin {os.fspath(path)!r} must be a Python file, NAME.py")
    # A folder on the path can shadow the standard library's modules: their names are refused in any case.
    place = _place(path.stem)
    if path.stem in sys.stdlib_module_names or (place is not None and (not place or Path(place).resolve() != path)):
        raise ConfigError(f"--plugin {os.fspath(path)!r}: another module is named {path.stem!r}; rename the file")
    if os.fspath(path.parent) not in sys.path:
        sys.path.append(os.fspath(path.parent))  # so that it can import modules beside it
    try:
        _digests[path] = file_digest(path)
        import_module(path.stem)
    except (Exception, SystemExit) as error:  # a script that ends the process has decided nothing
        raise ConfigError(f"--plugin {os.fspath(path)!r}: {type(error).__name__}: {error}") from error
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*map(os.fspath, scripts()), os.fspath(path)]))


def _place(module: str) -> str | None:
    """Return the file that a module is or would be imported from; None without such a module, empty without a file."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__file__", None) or ""
    found = find_spec(module)
    return None if found is None else found.origin or ""


def load_as_parent() -> None:
    """Load the entries of packages and the scripts that the parent process has loaded. Raises as both do."""
    load_entry_points()
    for path in scripts():
        load_script(path)


def scripts() -> list[Path]:
    """Return the scripts that this process or its parent has loaded, in that order."""
    return [Path(name) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


_digests: dict[Path, str] = {}
"""The digest of each loaded script when it was loaded: what runs is not what the file became since."""


def fingerprint() -> list[str]:
    """Return the versions of packages that add sources or regimes, and the digests of scripts.

    What is computed with a network depends on them; metrics and claims of packages change nothing that is cached.
    """
    points = [*_entry_points("tl.sources"), *_entry_points("tl.regimes")]
    packages = {f"{point.dist.name} {point.dist.version}" for point in points if point.dist}
    return [*sorted(packages), *(_digests.get(path) or file_digest(path) for path in scripts())]


@cache
def _entry_points(group: str) -> Any:
    return metadata.entry_points(group=group)
