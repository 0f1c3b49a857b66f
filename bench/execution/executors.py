"""All executors by name. To add one, add an entry to `EXECUTORS`. Each imports its libraries only when it is made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from bench.execution.base import Executor
from tl.errors import UserError


def make_executor(name: str, address: str | None = None) -> Executor:
    """Make the executor of that name. `address` is the cluster's address, for executors that use a cluster.

    Raises `ConfigError` if it is not available here.
    """
    return EXECUTORS[name](address)


def start_early(name: str) -> None:
    """Let an executor start in the background what its cells need, if it runs them here in processes of their own.

    For commands that are about to run cells: they plan meanwhile. A mistake of the user's is reported later on.
    """
    if name != "process":
        return
    from bench.execution.process import ProcessExecutor

    with contextlib.suppress(UserError):
        executor = make_executor(name)
        if isinstance(executor, ProcessExecutor):
            executor.start_early()


def _process(address: str | None) -> Executor:
    from bench.execution.process import ProcessExecutor

    return ProcessExecutor()


def _inline(address: str | None) -> Executor:
    from bench.execution.inline import InlineExecutor

    return InlineExecutor()


def _ray(address: str | None) -> Executor:
    from bench.execution.ray import RayExecutor

    return RayExecutor(address)


EXECUTORS: dict[str, Callable[[str | None], Executor]] = {"process": _process, "inline": _inline, "ray": _ray}
