"""Packages that only some sources need, and that are not installed with the suite. Nothing is imported here."""

from __future__ import annotations

from importlib.util import find_spec

from tl.own_code import ImportPath


def require(package: str, extra: str, path: ImportPath) -> None:
    """Raise `ConfigError`, with the command that installs it, unless a package is installed."""
    if find_spec(package) is None:
        raise path.wrong(f"needs {package}, which isn't installed: pip install 'tl-bench[{extra}]'")
