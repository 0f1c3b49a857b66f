"""Adds to pytest-benchmark's files what comparisons need: the machine, and a digest of each benchmark's code."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import json
import platform
import sys
import textwrap
from collections.abc import Callable, Collection, Generator, Iterator
from types import CodeType, ModuleType
from typing import Any

import pytest
import torch

from bench.compare.sides import SOURCE
from bench.devtools.turns import TURNS
from bench.store.environment import environment
from tl.machine import PAGES_KEPT, keep_freed_pages

ALLOCATOR = pytest.StashKey[str]()
"""The allocator's setting, as in `Record.allocator`."""
HOMES = ("tests.", "bench.devtools.")
"""Packages with the code of benchmarks themselves; the code that they measure is elsewhere."""


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """Return everything that times depend on: processor, system, libraries, threads and allocator.

    It replaces pytest-benchmark's own function, which calls py-cpuinfo: that takes a second per process and can fail.
    """
    here = environment()
    own = {"threads": str(torch.get_num_threads()), "allocator": config.stash.get(ALLOCATOR, "default")}
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "release": platform.release(),
        "python_version": here.python,
        "cpu": {"brand_raw": here.cpu, "count": here.cores},
        "packages": {**here.packages, **own},
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Run all benchmarks in this process's turns. Modules are loaded before that, and files are written after it.

    If benchmarks are timed, the allocator has the setting of a cell's process. With glibc's defaults, page faults in a
    step depend on what ran before it: in some processes a frozen step took 20% longer.
    """
    if session.config.getoption("benchmark_enable") and keep_freed_pages():
        session.config.stash[ALLOCATOR] = PAGES_KEPT
    TURNS.take()
    try:
        return (yield)
    finally:
        TURNS.end()


@pytest.fixture(autouse=True)
def _source(request: pytest.FixtureRequest) -> None:
    """Record a digest of the benchmark's own code. If it changes, its times measure something else."""
    if "benchmark" in request.fixturenames:
        digest = source_digest(request.function, request.fixturenames)
        request.getfixturevalue("benchmark").extra_info[SOURCE] = digest


def source_digest(function: Callable[..., object], fixtures: Collection[str] = ()) -> str:
    """Digest of a benchmark's code, what it uses of its own module, other modules of tests that it uses, and fixtures.

    Comments and docstrings don't count.
    """
    seen: set[Any] = set()
    shared = ast.parse(inspect.getsource(sys.modules["tests.conftest"])).body
    used = [node for node in shared if isinstance(node, ast.FunctionDef) and node.name in fixtures]
    texts = {*_sources(function, seen), *(_code(ast.unparse(node)) for node in used)}
    return hashlib.sha256("\0".join(sorted(texts)).encode()).hexdigest()[:12]


def _code(source: str) -> str:
    """The code without comments, docstrings and layout."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def _sources(function: Any, seen: set[Any]) -> Iterator[str]:
    seen.add(function)
    yield _code(inspect.getsource(function))
    function = inspect.unwrap(function)
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType):
            home = value.__name__
        elif inspect.isfunction(value) or inspect.isclass(value):
            home = value.__module__
        else:
            with contextlib.suppress(TypeError, ValueError):  # not a constant
                yield f"{name} = {json.dumps(value, sort_keys=True)}"
            continue
        if home == function.__module__ and inspect.isfunction(value):
            yield from _sources(value, seen) if value not in seen else ()
        elif home.startswith(HOMES):
            yield from _modules(home, seen)


def _modules(name: str, seen: set[Any]) -> Iterator[str]:
    """Yield the source of a module of tests, and of the other modules of tests that it imports from."""
    if name in seen:
        return
    seen.add(name)
    module = sys.modules[name]
    yield _code(inspect.getsource(module))
    for value in vars(module).values():
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(home, str) and home.startswith(HOMES) and home in sys.modules:
            yield from _modules(home, seen)


def _names(code: CodeType) -> set[str]:
    """All names that a function's code looks up, including its inner functions."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))
