"""Code of one's own that a config names by import path, such as `my_module:make_loss`. Loads no torch.

A command finds the source of such code without running it: so it can name a mistake and take the digest of the source,
which is a part of each cell's identity, and torch stays unloaded. The code itself is imported where it trains. Modules
may be anywhere on Python's path, and in the working folder, which comes last: nothing there replaces another module.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import os
import pkgutil
import re
import secrets
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, TypeVar

from tl.digest import file_digest
from tl.errors import ConfigError, DivergedError, NotApplicable, UserError, near_matches
from tl.own_modules import is_file_of, is_installed, is_ours, make_way, place_of
from tl.text import shortened

PARTS = ("head", "loss", "optimizer")
"""Settings that may name code of one's own in place of one of our own names."""
MAIN = "__main__"
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
Made = TypeVar("Made")


@dataclass(frozen=True)
class ImportPath:
    """Where something of one's own is: `MODULE:NAME`. `str(path)` is the text that configs and records have."""

    setting: str
    """The setting that names it, for messages."""
    module: str
    name: str

    @classmethod
    def parse(cls, setting: str, text: str) -> ImportPath:
        """Take a text apart. Raises `ConfigError` if it can't be an import path."""
        if not _PATH.fullmatch(text):
            raise ConfigError(
                f"{setting}={shortened(repr(_shown(setting, text)))}: must be "
                f"{_shown(setting, 'MODULE:NAME')}, such as {_shown(setting, f'my_module:make_{setting}')!r}"
            )
        module, _, name = text.partition(":")
        return cls(setting, module, name)

    def wrong(self, why: str) -> ConfigError:
        """The error for a mistake in this code, in one line that names it."""
        return ConfigError(f"{self}: {' '.join(why.split())}")

    @property
    def text(self) -> str:
        """`MODULE:NAME`."""
        return f"{self.module}:{self.name}"

    def __str__(self) -> str:
        return f"{self.setting}={_shown(self.setting, self.text)!r}"


@dataclass(frozen=True)
class Elsewhere(ImportPath):
    """A backbone that is no code of one's own: `module` is what its source knows it by, such as a file's place."""

    source: str = ""

    @property
    def text(self) -> str:
        """The name as configs have it, without its source."""
        return ":".join(filter(None, [self.module, self.name]))

    def __str__(self) -> str:
        return f"backbone={f'{self.source}:{self.text}'!r}"


def _shown(setting: str, text: str) -> str:
    """An import path as a config has it: a backbone's stands behind its source."""
    return f"module:{text}" if setting == "backbone" else text


def is_import_path(value: str) -> bool:
    """True if a setting's value is meant as an import path: names of our own have no colon."""
    return ":" in value


def digest_of(path: ImportPath) -> str:
    """Return the SHA-256 of the source of some code, in hex: of its module, and of all modules that it imports.

    The standard library is left out. So are installed packages: if the code itself is in one, the versions of its
    distribution count. Nothing is imported. Raises `ConfigError` if there is no such module, if its source has no such
    name, or if it can't be read.
    """
    if (path.setting, path.text) in _given:
        return _given[path.setting, path.text].digest
    return _source(path)[0]


def _source(path: ImportPath) -> tuple[str, dict[str, Path]]:
    """The digest of the source of some code, and the files of its modules."""
    file = _located(path)
    check_name(path, file)
    if is_installed(os.fspath(file)):
        top = path.module.partition(".")[0]
        owners = metadata.packages_distributions().get(top, [])
        lines = [f"{name} {metadata.version(name)}" for name in sorted(set(owners))] + [file_digest(file)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest(), {path.module: file}
    files = files_from(path, path.module, file)
    lines = [f"{name} {file_digest(file)}" for name, file in sorted(files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest(), files


def load(path: ImportPath, digest: str = "") -> Callable[..., Any]:
    """Import some code and return it. With a digest, the source must still have it.

    Raises `ConfigError`, which names it, if it can't be imported, can't be called, or has changed.
    """
    if (path.setting, path.text) in _given:
        return _given[path.setting, path.text].code
    now, files = _source(path)
    if digest and now != digest:
        raise path.wrong(f"its source has changed since this was planned ({digest[:8]}, now {now[:8]}); start again")
    if _imported.setdefault(path.module, now) != now:
        raise path.wrong("its source has changed since this process imported it; restart Python to use it as it is now")
    here = os.fspath(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    make_way(files)
    try:
        found: Any = import_module(path.module)
    except (Exception, SystemExit) as error:  # a module that ends the process has decided nothing
        _imported.pop(path.module, None)
        raise path.wrong(f"{path.module} can't be imported: {_said(error)}") from error
    for name, file in files.items():
        if name in sys.modules and not is_file_of(sys.modules[name], file):
            place = place_of(sys.modules[name]) or "built into Python"
            raise path.wrong(f"{name} is {file}, but Python has another module of that name ({place}); rename yours")
    for number, name in enumerate(parts := path.name.split(".")):
        if not hasattr(found, name):
            raise path.wrong(_no_name(".".join([path.module, *parts[:number]]), name, dir(found)))
        found = getattr(found, name)
    if not callable(found):
        raise path.wrong(f"is of type {type(found).__name__}, which can't be called")
    code: Callable[..., Any] = found
    return code


_imported: dict[str, str] = {}
"""Module → digest of its source when this process imported it: Python doesn't import it again."""


@contextlib.contextmanager
def named(path: ImportPath, what: str = "") -> Iterator[None]:
    """Raise `ConfigError` that names some code for whatever goes wrong in it, `what` before the reason.

    Running out of memory stays what it is. So do the suite's own errors.
    """
    try:
        yield
    except (UserError, DivergedError, NotApplicable, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if _is_out_of_memory(error):
            raise
        raise path.wrong(f"{what}{_said(error)}") from error


def _is_out_of_memory(error: BaseException) -> bool:
    """True for what torch raises, on a GPU and on a CPU; errors of code may be about a memory of its own."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(re.search("out of memory|(allocate|enough) memory", str(error)))


def _said(error: BaseException) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}".rstrip(": "), 300, placeholder=" …")


def call(path: ImportPath, code: Callable[..., Made], *arguments: Any, **offered: Any) -> Made:
    """Call some code with these arguments, and by name with those of `offered` that it takes.

    Raises `ConfigError`, which names it, for whatever it raises.
    """
    given = {name: value for name, value in offered.items() if takes(code, name)}
    with named(path):
        return code(*arguments, **given)


def takes(code: Callable[..., Any], name: str) -> bool:
    """True if some code has a parameter of that name. Code that takes everything by `**` has none."""
    try:
        parameter = inspect.signature(code).parameters.get(name)
    except (TypeError, ValueError):  # of a builtin
        return False
    return parameter is not None and parameter.kind is not parameter.POSITIONAL_ONLY


@dataclass(frozen=True)
class _Given:
    code: Callable[..., Any]
    digest: str


_given: dict[tuple[str, str], _Given] = {}
"""Setting and import path → what a notebook gave in its place, during a training."""


def path_given(setting: str, code: Callable[..., Any]) -> ImportPath:
    """The import path that stands for a function which a notebook gives itself."""
    place = f"{getattr(code, '__module__', '') or MAIN}:{getattr(code, '__qualname__', '') or type(code).__name__}"
    return ImportPath.parse(setting, re.sub(r"[^\w.:]+", "", place.replace(".<locals>.", ".")))


@contextlib.contextmanager
def given(codes: Mapping[str, tuple[ImportPath, Callable[..., Any]]]) -> Iterator[None]:
    """Let import paths mean these functions, in the context alone. Keys are settings.

    A digest is of the function's own source, since what it uses in the notebook can't be known. It is random for a
    function without source.
    """
    before = dict(_given)
    for setting, (path, code) in codes.items():
        try:
            text = inspect.getsource(code)
        except (OSError, TypeError):
            text = secrets.token_hex()
        _given[setting, path.text] = _Given(code, hashlib.sha256(text.encode()).hexdigest())
    try:
        yield
    finally:
        _given.clear()
        _given.update(before)


def once(setting: str, text: str) -> str:
    """A key for caches that no other call has, for a function that a notebook gave itself; empty for other code.

    What such a function computes can change without its source.
    """
    return secrets.token_hex() if (setting, text) in _given else ""


def _located(path: ImportPath) -> Path:
    """Find the file of a module without importing it or its packages.

    Raises `ConfigError` without such a module, and for one without a file.
    """
    if path.module == MAIN:
        raise path.wrong(
            "is in the notebook or script that runs; other processes can't import it from there: put it into a module, "
            "my_module.py, or give the function itself to tl.train_model"
        )
    PathFinder.invalidate_caches()  # a file may be newer than what Python remembers of its folder
    spec, where = _find(path.module)
    if spec is None:
        missing = path.module.removeprefix(f"{where}.").partition(".")[0] if where else path.module.partition(".")[0]
        inside = _find(where)[0] if where else None
        places = list(inside.submodule_search_locations or []) if inside else _search_path()
        names = [module.name for module in pkgutil.iter_modules(places)]
        lacks = f"{where} has no module {missing!r}" if where else f"no module {missing!r}"
        hint = near_matches(missing, names)
        raise path.wrong(f"{lacks} in the working folder or on Python's path{hint}" if not where else f"{lacks}{hint}")
    if not spec.origin or not Path(spec.origin).is_file():
        raise path.wrong(f"{path.module} has no file: name a module, not a folder")
    return Path(spec.origin)


def _find(module: str, first: Sequence[str] = ()) -> tuple[ModuleSpec | None, str]:
    """The spec of a module; or None, and the innermost package around it that there is.

    It is looked for in the places `first` before all others.
    """
    places: list[str] | None = [*first, *_search_path()]
    found, name = None, ""
    for part in module.split("."):
        around, name = name, f"{name}.{part}" if name else part
        # By its own name alone: a folder without __init__.py would look for the package around it among the imported.
        found = None if places is None else PathFinder.find_spec(part, places)
        if found is None and not around:
            found = _by_other_finders(part)
        if found is None:
            return None, around
        places = list(found.submodule_search_locations) if found.submodule_search_locations is not None else None
    return found, ""


def _by_other_finders(package: str) -> ModuleSpec | None:
    """The spec of a package that Python finds elsewhere than on its path, as one that is installed editable."""
    ours = (PathFinder, BuiltinImporter, FrozenImporter)
    for finder in sys.meta_path:
        if finder in ours or not (find := getattr(finder, "find_spec", None)):
            continue
        found: ModuleSpec | None = find(package, None)
        if found and (found.origin or found.submodule_search_locations):
            return found
    return None


def _search_path() -> list[str]:
    here = os.fspath(Path.cwd())
    return [*(place for place in sys.path if place not in ("", here)), here]


def _no_name(where: str, name: str, names: Any) -> str:
    return f"{where} has no {name!r}{near_matches(name, names)}"


def _tree(path: ImportPath, file: Path) -> ast.Module | None:
    """The syntax of a Python file; None for a file that isn't Python.

    Raises `ConfigError` for what is no Python inside, or can't be read.
    """
    if file.suffix != ".py":
        return None
    try:
        return ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise path.wrong(f"{file.name} is no valid Python: {error.msg} (line {error.lineno})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise path.wrong(f"{file.name} can't be read: {error}") from error


def check_name(path: ImportPath, file: Path, where: str = "") -> None:
    """Raise `ConfigError` if the source of a module, called `where`, surely has no such name."""
    tree = _tree(path, file)
    if tree is None:
        return
    names = set(_bound(tree))
    first = path.name.partition(".")[0]
    if first not in names and not {"*", "__getattr__"} & names:
        raise path.wrong(_no_name(where or path.module, first, sorted(names)))


def _bound(tree: ast.AST) -> Iterator[str]:
    """Names that the statements of a module bind at its top level; `*` for an import of all names."""
    waiting: list[ast.AST] = [tree]  # no recursion: a long sum is as deep as it has terms
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name
                continue
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            waiting.append(node)


def files_from(path: ImportPath, module: str, file: Path, first: Sequence[str] = ()) -> dict[str, Path]:
    """Module → file: of a module, the packages around it, and all modules that these import, one by another.

    Modules of the standard library, of installed packages and of the suite are left out, but for the first one. The
    places `first` are searched before all others. Raises `ConfigError` for a file that is no valid Python.
    """
    found = {module: file}
    waiting = [module, *_imports_of(path, file, module)]
    while waiting:
        parts = waiting.pop().split(".")
        for name in (".".join(parts[: count + 1]) for count in range(len(parts))):
            spec = None if name in found else _find(name, first)[0]
            if spec is None or not spec.origin or is_installed(spec.origin) or is_ours(spec.origin):
                continue
            if (place := Path(spec.origin)).is_file():
                found[name] = place
                waiting += _imports_of(path, place, name)
    return found


def _imports_of(path: ImportPath, file: Path, name: str) -> list[str]:
    """What a module's file imports."""
    tree = _tree(path, file)
    return _imports(tree, name if file.stem == "__init__" else name.rpartition(".")[0]) if tree else []


def _imports(tree: ast.Module, package: str) -> list[str]:
    """Names that may be modules, of all imports in a file of that package."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*around, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)] if base else []
    return names
