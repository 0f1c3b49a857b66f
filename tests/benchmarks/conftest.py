"""What a file of pytest-benchmark must say of the machine and of the benchmark for its times to be compared."""

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
from tl.machine import keep_freed_pages

ALLOCATOR = pytest.StashKey[str]()
"""As `Record.allocator` has it."""
HOMES = ("tests.", "bench.devtools.")
"""Where a benchmark may have code of its own; what it measures lies elsewhere."""


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """All that times depend on: processor, system, libraries, threads and allocator.

    In place of pytest-benchmark's own, which asks py-cpuinfo: that takes a second a process and can fail.
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
    """All that benchmarks do is done in this process's turn; loading modules before them and writing after needn't.

    Where they are timed the allocator is that of a cell's process. With glibc's own settings it depends on what ran
    before whether a step has page faults: some processes took a fifth longer for a frozen one.
    """
    if session.config.getoption("benchmark_enable") and keep_freed_pages():
        session.config.stash[ALLOCATOR] = "glibc, freed pages kept"
    TURNS.take()
    try:
        return (yield)
    finally:
        TURNS.end()


@pytest.fixture(autouse=True)
def _source(request: pytest.FixtureRequest) -> None:
    """The benchmark's own code: times of a benchmark that was changed are those of something else."""
    if "benchmark" in request.fixturenames:
        digest = source_digest(request.function, request.fixturenames)
        request.getfixturevalue("benchmark").extra_info[SOURCE] = digest


def source_digest(function: Callable[..., object], fixtures: Collection[str] = ()) -> str:
    """Of a benchmark's code, with what it uses of its own module, other modules of tests that it uses, and fixtures.

    Comments and docstrings are no part of it.
    """
    seen: set[Any] = set()
    shared = ast.parse(inspect.getsource(sys.modules["tests.conftest"])).body
    used = [node for node in shared if isinstance(node, ast.FunctionDef) and node.name in fixtures]
    texts = {*_sources(function, seen), *(_code(ast.unparse(node)) for node in used)}
    return hashlib.sha256("\0".join(sorted(texts)).encode()).hexdigest()[:12]


def _code(source: str) -> str:
    """The code alone, however it is laid out."""
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
            with contextlib.suppress(TypeError, ValueError):  # no constant
                yield f"{name} = {json.dumps(value, sort_keys=True)}"
            continue
        if home == function.__module__ and inspect.isfunction(value):
            yield from _sources(value, seen) if value not in seen else ()
        elif home.startswith(HOMES):
            yield from _modules(home, seen)


def _modules(name: str, seen: set[Any]) -> Iterator[str]:
    """The source of a module of tests, and of those that it has from other modules of tests."""
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
    """All names that a function's code looks up, its inner functions' included."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))
