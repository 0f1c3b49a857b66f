"""Modules of several programs in one process, where two may have the same name. Loads no torch.

A repository of PyTorch Hub, and a user, may each have a module `utils`. Python knows one module of a name, so whoever
comes second would get the first one's.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_SUITE = tuple(Path(__file__).parent.parent / name for name in ("tl", "bench"))
_INSTALLED = {"site-packages", "dist-packages"}

_folders: dict[Path, dict[str, ModuleType]] = {}
"""Folder → the modules that were imported from it."""


@cache
def is_installed(file: str) -> bool:
    """True for a file of the standard library or of an installed package."""
    given = Path(file)
    places = {sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib", "platstdlib")}
    if _INSTALLED.intersection(given.parts):
        return True
    return any(one.is_relative_to(place) for one in (given, given.resolve()) for place in places if place)


def is_ours(file: str) -> bool:
    """True for a file of the suite."""
    return any(Path(file).is_relative_to(place) for place in _SUITE)


def place_of(module: ModuleType) -> str:
    """The file of a module, or its folder if it has no file; empty for one that is built into Python."""
    file = getattr(module, "__file__", None)
    try:
        return file or next(iter(getattr(module, "__path__", [])), "")
    except KeyError:  # a folder inside one that Python has forgotten
        return ""


@contextmanager
def modules_of(folder: Path) -> Iterator[None]:
    """Let modules be imported from a folder first, as torch.hub does.

    Modules of others that have its modules' names are put aside, and are back at the end. Those of installed packages
    are not: networks of torch and its libraries can't be there twice.
    """
    names = {each.stem for each in folder.iterdir() if each.suffix == ".py" or each.is_dir()} - {"__main__"}
    mine = _folders.setdefault(folder, {})
    others = {name for name in names if (module := sys.modules.get(name)) and _is_own(module, folder)}
    aside = _within(others)
    for name in aside:
        del sys.modules[name]
    sys.modules.update(mine)
    finder = _Finder(folder, names)
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.meta_path.remove(finder)
        mine.update({name: module for name, module in _within(names).items() if _is_in(module, folder)})
        _forget(mine, others)
        sys.modules.update(aside)


class _Finder(MetaPathFinder):
    """Finds modules in a folder, also those in folders without `__init__.py`, which Python would take last of all."""

    def __init__(self, folder: Path, names: set[str]) -> None:
        self._folder, self._names = folder, names

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module's spec; None for what the folder doesn't have."""
        if name not in self._names:
            return None
        found = PathFinder.find_spec(name, [str(self._folder)])
        if found is None or found.origin:
            return found
        elsewhere = PathFinder.find_spec(name)
        if elsewhere and elsewhere.origin and is_installed(elsewhere.origin):
            return None
        found.submodule_search_locations = [str(self._folder / name)]  # and no folders of that name elsewhere
        return found


def make_way(files: Mapping[str, Path]) -> None:
    """Let these modules be imported from these files, though a folder of `modules_of` has some of the same names."""
    for mine in _folders.values():
        taken = {name for name, file in files.items() if name in mine and not is_file_of(mine[name], file)}
        _forget(mine, {name.partition(".")[0] for name in taken})


def is_file_of(module: ModuleType, file: Path) -> bool:
    """True if a module was imported from a file."""
    place = place_of(module)
    return bool(place) and Path(place).resolve() == file.resolve()


def _within(packages: set[str]) -> dict[str, ModuleType]:
    """The modules that Python knows of some packages."""
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in packages}


def _forget(modules: Mapping[str, ModuleType], packages: set[str]) -> None:
    """Make Python forget those of the modules that are within these packages, if it knows them by their names."""
    for name, module in modules.items():
        if name.partition(".")[0] in packages and sys.modules.get(name) is module:
            del sys.modules[name]


def _is_own(module: ModuleType, folder: Path) -> bool:
    """True for a module that is neither installed, nor the suite's, nor in that folder."""
    place = place_of(module)
    return bool(place) and not is_installed(place) and not is_ours(place) and not _is_in(module, folder)


def _is_in(module: ModuleType, folder: Path) -> bool:
    place = place_of(module)
    return bool(place) and Path(place).is_relative_to(folder)
