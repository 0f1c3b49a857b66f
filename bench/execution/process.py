"""Runs each piece of work in a process of its own, forked from a server that has torch loaded.

Importing torch, torchvision and timm takes seconds; a fork takes a tenth of one and still gives every cell
fresh memory and nothing left over from the cell before. The parent sleeps until something happens: polling
would take a core from the measurement.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import multiprocessing
import os
import platform
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing import forkserver, util
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import psutil

from bench.execution.attempt import GET_READY, run_one_by_one
from bench.execution.base import NO_LIMITS, Emit, Events, Job, Limits, Outcome, load
from bench.execution.discovery import local_devices
from bench.execution.failure import describe, readable
from bench.execution.log import last_words, log_size
from bench.execution.signals import signals_delivered
from tl.machine import lift_memory_limit, limit_memory

PRELOAD = "bench.execution.worker"
_LONGEST_WAIT_SECONDS = 86_400.0
"""The operating system's own limit is a few weeks."""


class ProcessExecutor:
    """See the module."""

    has_limits = True
    runs_here = True

    def __init__(self, preload: str = PRELOAD) -> None:
        """`preload` is the module that the server loads before it forks."""
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(method)
        _own_sockets()
        if method == "forkserver":
            self._context.set_forkserver_preload([preload])

    def prepare(self) -> None:
        """Load the libraries into the server that cells are forked from."""
        self.call(GET_READY)

    def devices(self) -> dict[str, str]:
        """Devices of this machine."""
        return local_devices(self)

    def run_jobs(self, jobs: Iterable[Job], events: Events, stop: Callable[[], bool]) -> None:
        """One after the other, each in a process of its own."""
        run_one_by_one(self, jobs, events, stop)

    def call(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, on_event: Emit | None = None) -> Outcome:
        """See `bench.execution.base.Executor`."""
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(theirs, function, arguments, limits))
        if self._context.get_start_method() == "forkserver":
            with _interrupts_ignored():
                forkserver.ensure_running()
        before = log_size(limits.log)
        started = time.perf_counter()
        deadline = None if limits.seconds is None else started + limits.seconds
        try:
            process.start()
            theirs.close()
            end = _listen(ours, process, deadline, on_event)
        finally:
            _kill_group(process)
            ours.close()
        wall = time.perf_counter() - started
        if end == "timeout":
            reason = f"took longer than the timeout of {limits.seconds:g} s"
            return Outcome(status="timeout", reason=reason, wall_seconds=wall)
        if isinstance(end, str):
            return _died(process.exitcode, wall, limits, last_words(limits.log, before))
        reason = end.reason
        if end.status == "oom" and limits.memory_bytes:
            reason = f"{reason} (it may allocate {readable(limits.memory_bytes)})"
        return replace(end, reason=reason, wall_seconds=wall)


HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
"""This machine in the names of folders: others, whose processes have the same numbers, may write beside it."""
SCRATCH = f"tl-bench-{HERE}-"
"""Begins the names of temporary folders, followed by the number of the process that they are of."""
_LONGEST_SOCKET = 107 - len("/listener-12345678")
"""Bytes of a socket's folder, unix(7)."""


def _own_sockets() -> None:
    """The server's socket goes into a folder that tells whose it is, so that one that `kill -9` left can go."""
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # as multiprocessing.util does
    if "tempdir" in config:
        return
    clear_dead(Path(tempfile.gettempdir()), SCRATCH)
    folder = Path(tempfile.gettempdir()) / f"{SCRATCH}{os.getpid()}"
    if len(os.fsencode(folder)) > _LONGEST_SOCKET:
        return  # then it is where Python puts it
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        config["tempdir"] = os.fspath(folder)
        util.Finalize(None, shutil.rmtree, args=[folder, True], exitpriority=-100)


def clear_dead(place: Path, prefix: str) -> None:
    """Remove folders of processes that are no more, named PREFIX, the process's number, and perhaps more."""
    for folder in place.glob(f"{prefix}*"):
        number = folder.name.removeprefix(prefix).partition("-")[0]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _listen(
    connection: Connection, process: Any, deadline: float | None, on_event: Emit | None
) -> Outcome | Literal["timeout", "gone"]:
    """Pass events on until the work is over: its outcome, or `timeout`, or `gone`.

    Where a process has ended without a word, what it had started may hold its end of the connection open.
    """
    sources: list[Any] = [connection, process.sentinel]
    while True:
        left = None if deadline is None else max(0.0, deadline - time.perf_counter())
        with signals_delivered():
            ready = wait(sources, None if left is None else min(left, _LONGEST_WAIT_SECONDS))
        if not ready:
            if left is not None and left <= _LONGEST_WAIT_SECONDS:
                return "timeout"
            continue
        if connection not in ready and not connection.poll():
            if not _lives(process.pid):
                return "gone"
            sources = [connection]  # it is the fork server that has ended, and the work goes on without it
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


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _died(exit_code: int | None, wall: float, limits: Limits, said: str) -> Outcome:
    if exit_code == -signal.SIGKILL:
        reason = "killed by the system, most likely because memory ran out; a smaller batch size needs less"
        return Outcome(status="oom", reason=reason, traceback=said, wall_seconds=wall)
    if exit_code == -signal.SIGABRT and limits.memory_bytes and "bad_alloc" in said:
        reason = f"out of memory in native code: it may allocate {readable(limits.memory_bytes)}"
        return Outcome(status="oom", reason=reason, traceback=said, wall_seconds=wall)
    how = f"signal {signal.Signals(-exit_code).name}" if exit_code and exit_code < 0 else f"exit status {exit_code}"
    reason = f"the cell's process ended without a result ({how})"
    return Outcome(status="failed", reason=reason, traceback=said, wall_seconds=wall)


def _kill_group(process: Any) -> None:
    """End the process and all that it started, also where the process itself has ended."""
    if process.pid is None:
        return  # interrupted before it began
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()  # it had no time to found its group
    process.join()


def _work(connection: Connection, function: str, arguments: tuple[Any, ...], limits: Limits) -> None:
    """The child's side."""
    os.setsid()  # Ctrl-C in the terminal goes to the parent alone, which ends this group
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes, not the parent

    def emit(event: Any) -> None:
        connection.send(("event", event))

    try:
        if limits.log:
            _write_to(limits.log)
        if limits.memory_bytes is not None:
            limit_memory(limits.memory_bytes)
        value = load(function)(*arguments, emit)
        connection.send(("end", Outcome(status="done", value=value, wall_seconds=0.0)))
    except BaseException as error:  # what can't be pickled, too
        lift_memory_limit()  # to tell of it takes some memory, too
        status, reason, trace = describe(error)
        with contextlib.suppress(OSError):  # the parent may be gone
            connection.send(("end", Outcome(status=status, reason=reason, traceback=trace, wall_seconds=0.0)))
    connection.close()


def _write_to(log: Path) -> None:
    """All that this process writes, native code and what it starts included, goes to the end of a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    faulthandler.enable()  # a crash in native code says where


def _end_with_parent() -> None:
    """The parent is gone: so is this process, with all that it started."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """While the server is started: it inherits this, so that Ctrl-C while it imports torch is the parent's alone."""
    if threading.current_thread() is not threading.main_thread():  # in a node's worker, which has no terminal
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
