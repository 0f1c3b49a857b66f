"""Runs each piece of work in a process of its own, forked from a server that has torch loaded.

Importing torch, torchvision and timm takes seconds; a fork takes a tenth of one and still gives every cell
fresh memory and nothing left over from the cell before. The parent sleeps until something happens: polling
would take a core from the measurement.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.executors import Emit, Outcome, load
from bench.executors.failure import describe

PRELOAD = "bench.job"
_LONGEST_WAIT_SECONDS = 86_400.0
"""The operating system's own limit is a few weeks."""


class ProcessExecutor:
    """See the module."""

    has_timeout = True

    def __init__(self) -> None:
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload([PRELOAD])

    def call(
        self, function: str, *arguments: Any, timeout: float | None = None, on_event: Emit | None = None
    ) -> Outcome:
        """See `bench.executors.Executor`."""
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(theirs, function, arguments))
        if self._context.get_start_method() == "forkserver":
            with _interrupts_ignored():
                forkserver.ensure_running()
        started = time.perf_counter()
        deadline = None if timeout is None else started + timeout
        try:
            process.start()
            theirs.close()
            end = _listen(ours, deadline, on_event)
        finally:
            _kill_group(process)
            ours.close()
        wall = time.perf_counter() - started
        if end == "timeout":
            return Outcome(status="timeout", reason=f"took longer than the timeout of {timeout:g} s", wall_seconds=wall)
        if end == "gone":
            return _died(process.exitcode, wall)
        return Outcome(**{**vars(end), "wall_seconds": wall})


def _listen(connection: Connection, deadline: float | None, on_event: Emit | None) -> Outcome | str:
    """Pass events on until the work is over: its outcome, or `timeout`, or `gone`."""
    while True:
        left = None if deadline is None else max(0.0, deadline - time.perf_counter())
        if not wait([connection], None if left is None else min(left, _LONGEST_WAIT_SECONDS)):
            if left is not None and left <= _LONGEST_WAIT_SECONDS:
                return "timeout"
            continue
        try:
            kind, value = connection.recv()
        except (EOFError, OSError):
            return "gone"
        if kind == "end":
            assert isinstance(value, Outcome)
            return value
        if on_event:
            on_event(value)


def _died(exit_code: int | None, wall: float) -> Outcome:
    if exit_code == -signal.SIGKILL:
        reason = "killed by the system, most likely because memory ran out; a smaller batch size needs less"
        return Outcome(status="oom", reason=reason, wall_seconds=wall)
    how = f"signal {signal.Signals(-exit_code).name}" if exit_code and exit_code < 0 else f"exit status {exit_code}"
    return Outcome(status="failed", reason=f"the cell's process ended without a result ({how})", wall_seconds=wall)


def _kill_group(process: Any) -> None:
    """End the process and all that it started, also where the process itself has ended."""
    if process.pid is None:
        return  # interrupted before it began
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()  # it had no time to found its group
    process.join()


def _work(connection: Connection, function: str, arguments: tuple[Any, ...]) -> None:
    """The child's side."""
    os.setsid()  # Ctrl-C in the terminal goes to the parent alone, which ends this group
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes, not the parent

    def emit(event: Any) -> None:
        connection.send(("event", event))

    started = time.perf_counter()
    try:
        outcome = Outcome(
            status="done", value=load(function)(*arguments, emit), wall_seconds=time.perf_counter() - started
        )
    except BaseException as error:
        status, reason, trace = describe(error)
        wall = time.perf_counter() - started
        outcome = Outcome(status=status, reason=reason, traceback=trace, wall_seconds=wall)
    connection.send(("end", outcome))
    connection.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """While the server is started: it inherits this, so that Ctrl-C while it imports torch is the parent's alone."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
