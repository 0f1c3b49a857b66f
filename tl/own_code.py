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
import sysconfig
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, TypeVar

from tl.digest import file_digest
from tl.errors import ConfigError, DivergedError, NotApplicable, UserError, nearest
from tl.text import shortened

PARTS = ("head", "loss", "optimizer")
"""Settings that may name code of one's own in place of one of our own names."""
MAIN = "__main__"
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_OURS = ("tl", "bench")
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
    spec = _located(path)
    if _is_installed(spec.origin or ""):
        check_name(path, Path(spec.origin or ""))
        top = path.module.partition(".")[0]
        owners = metadata.packages_distributions().get(top, [])
        versions = [f"{name} {metadata.version(name)}" for name in sorted(set(owners))]
        return hashlib.sha256("\n".join([*versions, file_digest(Path(spec.origin or ""))]).encode()).hexdigest()
    check_name(path, Path(spec.origin or ""))
    files = _files(path)
    lines = [f"{name} {file_digest(file)}" for name, file in sorted(files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def load(path: ImportPath, digest: str = "") -> Callable[..., Any]:
    """Import some code and return it. With a digest, the source must still have it.

    Raises `ConfigError`, which names it, if it can't be imported, can't be called, or has changed.
    """
    if (path.setting, path.text) in _given:
        return _given[path.setting, path.text].code
    now = digest_of(path)
    if digest and now != digest:
        raise path.wrong(f"its source has changed since this was planned ({digest[:8]}, now {now[:8]}); start again")
    if _imported.setdefault(path.module, now) != now:
        raise path.wrong("its source has changed since this process imported it; restart Python to use it as it is now")
    here = os.fspath(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: Any = import_module(path.module)
    except (Exception, SystemExit) as error:  # a module that ends the process has decided nothing
        _imported.pop(path.module, None)
        raise path.wrong(f"{path.module} can't be imported: {_said(error)}") from error
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
def named(path: ImportPath) -> Iterator[None]:
    """Raise `ConfigError` that names some code for whatever goes wrong in it. Running out of memory stays what it is.

    So do the suite's own errors.
    """
    try:
        yield
    except (UserError, DivergedError, NotApplicable, MemoryError):
        raise
    except Exception as error:
        if "memory" in str(error):
            raise
        raise path.wrong(_said(error)) from error


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


def _located(path: ImportPath) -> ModuleSpec:
    """Find a module without importing it or its packages. Raises `ConfigError` without one, or one without a file."""
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
        hint = _near(missing, names)
        raise path.wrong(f"{lacks} in the working folder or on Python's path{hint}" if not where else f"{lacks}{hint}")
    if not spec.origin or not Path(spec.origin).is_file():
        raise path.wrong(f"{path.module} has no file: name a module, not a folder")
    return spec


def _find(module: str) -> tuple[ModuleSpec | None, str]:
    """The spec of a module; or None, and the innermost package around it that there is."""
    places: list[str] | None = _search_path()
    found, name = None, ""
    for part in module.split("."):
        around, name = name, f"{name}.{part}" if name else part
        found = None if places is None else PathFinder.find_spec(name, places)
        if found is None:
            return None, around
        places = list(found.submodule_search_locations) if found.submodule_search_locations is not None else None
    return found, ""


def _search_path() -> list[str]:
    here = os.fspath(Path.cwd())
    return [*(place for place in sys.path if place not in ("", here)), here]


def _near(name: str, names: Any) -> str:
    close = nearest(name, names, n=3)
    return f"; near matches: {', '.join(close)}" if close else ""


def _no_name(where: str, name: str, names: Any) -> str:
    return f"{where} has no {name!r}{_near(name, names)}"


def _tree(path: ImportPath, file: Path) -> ast.Module | None:
    """The syntax of a Python file; None for a file that isn't Python. Raises `ConfigError`."""
    if file.suffix != ".py":
        return None
    try:
        return ast.parse(file.read_bytes())
    except SyntaxError as error:
        raise path.wrong(f"{file.name} is no valid Python: {error.msg} (line {error.lineno})") from error
    except (OSError, ValueError) as error:
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
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        yield from _bound(node)


def _files(path: ImportPath) -> dict[str, Path]:
    """Module → file: of a path's module, the packages around it, and all modules that these import, one by another.

    Modules of the standard library, of installed packages and of the suite are left out.
    """
    found: dict[str, Path] = {}
    waiting = [path.module]
    while waiting:
        module = waiting.pop()
        parts = module.split(".")
        for name in (".".join(parts[: count + 1]) for count in range(len(parts))):
            if name in found or parts[0] in sys.stdlib_module_names or parts[0] in _OURS:
                continue
            spec = _find(name)[0]
            if spec is None or not spec.origin or _is_installed(spec.origin) or not Path(spec.origin).is_file():
                continue
            found[name] = Path(spec.origin)
            tree = _tree(path, found[name])
            package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
            waiting += _imports(tree, package) if tree else []
    return found


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


def _is_installed(file: str) -> bool:
    """True for a file of the standard library or of an installed package."""
    places = {sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib", "platstdlib")}
    return any(Path(file).is_relative_to(place) for place in places if place)
