"""Runs each call in a process of its own, forked from a server that has torch loaded.

Importing torch, torchvision and timm takes seconds. A fork takes 0.1 s and still gives every cell fresh memory and no
state of earlier cells. The parent sleeps until it receives an event: polling would take CPU time from the measurement.
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
from functools import cache
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from bench.execution.base import GET_READY, NO_LIMITS, Emit, Events, Job, Limits, Outcome, PairEvents, PairJob, load
from bench.execution.failure import ended_by, readable
from bench.execution.log import log_size, open_log, tail
from bench.execution.signals import (
    block_terminal_signals,
    deliver_terminal_signals,
    ignore_terminal_signals,
    signals_delivered,
)
from tl.errors import ConfigError, UserError
from tl.machine import lift_memory_limit, limit_memory

if TYPE_CHECKING:
    from bench.execution.turns import RunningCall

PRELOAD = "bench.execution.preloaded"
_LONGEST_WAIT_SECONDS = 86_400.0
"""Longest single wait; the operating system refuses more than a few weeks."""


class ProcessExecutor:
    """See the module."""

    has_limits = True
    runs_here = True
    takes_turns = True

    def __init__(self, preload: str = PRELOAD) -> None:
        """`preload` is the module that the fork server imports in advance."""
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(method)
        _own_sockets()
        if method == "forkserver":
            self._context.set_forkserver_preload([preload])

    def start_early(self) -> None:
        """Start the fork server, if it isn't running, without waiting for its libraries.

        It ends with this process, at once, whatever it does. What goes wrong here does so again when it is needed.
        """
        if self._context.get_start_method() == "forkserver":
            with contextlib.suppress(OSError, RuntimeError):
                _start_server()

    def prepare(self) -> None:
        """Load the libraries into the fork server. Raises `UserError` if that can't be done."""
        outcome = self.call(GET_READY)
        if outcome.status != "done":
            raise UserError(f"no cell can run: {outcome.reason}")

    def devices(self) -> dict[str, str]:
        """Devices of this machine."""
        from bench.execution.discovery import local_devices

        return local_devices(self)

    def run_jobs(self, jobs: Iterable[Job], events: Events, stop: Callable[[], bool]) -> None:
        """Run one job after the other, each in a process of its own."""
        from bench.execution.attempt import run_one_by_one

        run_one_by_one(self, jobs, events, stop)

    def run_pairs(self, jobs: Iterable[PairJob], events: PairEvents, stop: Callable[[], bool]) -> None:
        """Time one pair after the other."""
        from bench.execution.turns import run_pairs_one_by_one

        run_pairs_one_by_one(self.start, jobs, events, stop)

    def call(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, on_event: Emit | None = None) -> Outcome:
        """See `bench.execution.base.Executor`. Raises `ConfigError` for a script that `end_if_imported` ends."""
        with self.start(function, *arguments, limits=limits, takes_orders=False) as running:
            while not isinstance(event := running.receive(), Outcome):
                if on_event:
                    on_event(event)
            return event

    def start(
        self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, takes_orders: bool = True
    ) -> RunningCall:
        """Start `function(*arguments, emit)` and return at once; see `bench.execution.turns.RunningCall`.

        With `takes_orders` the function gets a connection before `emit`, from which it receives what is sent to it.
        """
        return _RunningCall(self._context, function, arguments, limits, takes_orders=takes_orders)


class _RunningCall:
    """A call in a process of its own. Leaving its context ends the process and all its descendants."""

    def __init__(
        self, context: Any, function: str, arguments: tuple[Any, ...], limits: Limits, *, takes_orders: bool
    ) -> None:
        self._limits = limits
        self._log_before = log_size(limits.log)
        self._outcome: Outcome | None = None
        """Set as soon as the call has ended."""
        self._ours: Connection | None = None
        self._orders: Connection | None = None
        self._process: Any = None
        self._started = time.perf_counter()
        theirs: list[Connection] = []
        try:
            self._ours, their_events = context.Pipe(duplex=False)
            theirs.append(their_events)
            if takes_orders:
                their_orders, self._orders = context.Pipe(duplex=False)
                theirs.append(their_orders)
                arguments = (*arguments, their_orders)
            self._process = context.Process(target=_work, args=(their_events, function, arguments, limits))
            if context.get_start_method() == "forkserver":
                _start_server()
            self._started = time.perf_counter()
            self._process.start()
        # The server has ended, or can't be reached or started, or there can be no more files, processes or threads.
        except (EOFError, OSError, RuntimeError) as error:
            self._outcome = _not_started(error, time.perf_counter() - self._started)
        except BaseException:
            self._end()
            raise
        finally:
            for end in theirs:
                end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def send(self, order: Any) -> None:
        """Send something to the function. Nothing happens if its process has ended: `receive` says so."""
        assert self._orders is not None
        with contextlib.suppress(OSError):
            self._orders.send(order)

    def receive(self) -> Any:
        """Wait for the next event of the function and return it; or return the `Outcome` once the call has ended."""
        if self._outcome is None:
            assert self._ours is not None
            deadline = None if self._limits.seconds is None else self._started + self._limits.seconds
            try:
                kind, value = _receive(self._ours, self._process, deadline)
            except BaseException:
                self._end()
                raise
            if kind == "event":
                return value
            self._end()
            self._outcome = self._ended(kind, value)
        return self._outcome

    def _end(self) -> None:
        if self._process is not None:
            _kill_group(self._process)
        for end in (self._ours, self._orders):
            if end is not None:
                end.close()

    def _ended(self, kind: str, value: Any) -> Outcome:
        """The outcome of a call whose process has been ended."""
        limits, wall = self._limits, time.perf_counter() - self._started
        if kind == "gone" and self._process.exitcode == _IMPORTED:
            raise ConfigError(
                "this script calls bench.run when it is imported, and the processes of cells import it: put the call "
                'below `if __name__ == "__main__":`'
            )
        if kind == "timeout":
            reason = f"took longer than the timeout of {limits.seconds:g} s"
            return Outcome(status="timeout", reason=reason, wall_seconds=wall)
        if kind == "gone":
            return _died(self._process.exitcode, wall, limits, tail(limits.log, self._log_before))
        assert isinstance(value, Outcome)
        reason = value.reason
        at_limit = value.status == "oom" and limits.memory_bytes is not None
        if at_limit and limits.memory_bytes:
            reason = f"{reason} (limit: {readable(limits.memory_bytes)})"
        return replace(value, reason=reason, wall_seconds=wall, at_limit=at_limit)


_IMPORTED = 91
"""Exit status of a process that `end_if_imported` ends."""


def end_if_imported() -> None:
    """End this process if it is that of a cell which still imports the script that started the sweep.

    The script would otherwise start the same sweep again in there, and multiprocessing refuses that at length. The
    parent's `ProcessExecutor.call` raises in its place.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(_IMPORTED)


HERE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
"""Identifies this machine in names of folders. Several machines may share a folder and use the same process ids."""
SCRATCH = f"tl-bench-{HERE}-"
"""Prefix of the names of temporary folders; the id of the process that owns the folder follows."""
_LONGEST_SOCKET = 107 - len("/listener-12345678")
"""Longest path of a socket's folder, in bytes; see unix(7)."""


def _own_sockets() -> None:
    """Put the server's socket into a folder named after this process, so that it can be removed after a `kill -9`."""
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # as multiprocessing.util does
    if "tempdir" in config:
        return
    place = _short_enough(Path(tempfile.gettempdir()))
    clear_dead(place, SCRATCH)
    folder = place / f"{SCRATCH}{os.getpid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        config["tempdir"] = os.fspath(folder)
        util.Finalize(None, shutil.rmtree, args=[folder, True], exitpriority=-100)


def _short_enough(place: Path) -> Path:
    """The folder for temporary files, or `/tmp` if its path is too long for sockets."""
    longest = _LONGEST_SOCKET - len(f"/{SCRATCH}12345678")
    if len(os.fsencode(place)) <= longest:
        return place
    if (system := Path("/tmp")).is_dir() and os.access(system, os.W_OK):  # the folder in it is private
        return system
    raise UserError(f"TMPDIR={place} is too long a path for sockets; set one with at most {longest} bytes")


def clear_dead(place: Path, prefix: str) -> None:
    """Remove the folders in `place` of processes that have ended; their names are `PREFIX<pid>` or `PREFIX<pid>-…`."""
    for folder in place.glob(f"{prefix}*"):
        pid = folder.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _receive(connection: Connection, process: Any, deadline: float | None) -> tuple[str, Any]:
    """Wait for the next message of a call: `event` or `end` with a value, or `timeout`, or `gone` if it died.

    We also wait for the process itself: if it dies, its children may still hold its end of the connection open.
    """
    sources: list[Any] = [connection, process.sentinel]
    while True:
        left = None if deadline is None else max(0.0, deadline - time.perf_counter())
        with signals_delivered():
            ready = wait(sources, None if left is None else min(left, _LONGEST_WAIT_SECONDS))
        if not ready:
            if left is not None and left <= _LONGEST_WAIT_SECONDS:
                return "timeout", None
            continue
        if connection not in ready and not connection.poll():
            if not _lives(process.pid):
                return "gone", None
            sources = [connection]  # the fork server has ended, but the process still runs
            continue
        try:
            kind, value = connection.recv()
        except (EOFError, OSError):
            return "gone", None
        return kind, value


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _not_started(error: EOFError | OSError | RuntimeError, wall: float) -> Outcome:
    """The outcome of a call whose process could not be started."""
    if isinstance(error, EOFError | ConnectionError):
        reason = "the process that cells are forked from ended while it started, as it does when memory runs out"
        most = _address_space()
        reason += f" (this program may use {readable(most)}; see `ulimit -v`)" if most else ""
    else:
        reason = f"its process can't be started: {getattr(error, 'strerror', None) or error}"
    return Outcome(status="failed", reason=reason, wall_seconds=wall)


def _address_space() -> int | None:
    """The limit of `ulimit -v`, in bytes; None if there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if most == resource.RLIM_INFINITY else most


def _died(exit_code: int | None, wall: float, limits: Limits, output: str) -> Outcome:
    """The outcome of a process that ended without sending one; `output` is the end of its log."""
    if exit_code == -signal.SIGKILL:
        reason = "killed by the system, most likely because memory ran out; a smaller batch size needs less"
        return Outcome(status="oom", reason=reason, traceback=output, wall_seconds=wall)
    if exit_code == -signal.SIGABRT and limits.memory_bytes and "bad_alloc" in output:
        reason = f"out of memory in native code (limit: {readable(limits.memory_bytes)})"
        return Outcome(status="oom", reason=reason, traceback=output, wall_seconds=wall, at_limit=True)
    how = f"signal {signal.Signals(-exit_code).name}" if exit_code and exit_code < 0 else f"exit status {exit_code}"
    reason = f"the cell's process ended without a result ({how})"
    if limits.memory_bytes:  # native code often doesn't check whether it got the memory that it asked for
        reason += f"; its memory was limited to {readable(limits.memory_bytes)}, and it may have needed more"
    return Outcome(status="failed", reason=reason, traceback=output, wall_seconds=wall)


def _kill_group(process: Any) -> None:
    """Kill the process and its descendants, even if the process itself has already ended."""
    if process.pid is None:
        return  # interrupted before the process started
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()  # it has not created its group yet
    process.join()


def _work(connection: Connection, function: str, arguments: tuple[Any, ...], limits: Limits) -> None:
    """Run the call in the child process, and send its events and its outcome."""
    os.setsid()  # Ctrl-C in the terminal then reaches the parent alone, which ends this group
    ignore_terminal_signals()  # one may have come before
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, kill this process, not the parent

    def emit(event: Any) -> None:
        connection.send(("event", event))

    try:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        if limits.log:
            _write_to(limits.log)
        if limits.memory_bytes is not None:
            limit_memory(limits.memory_bytes)
        value = load(function)(*arguments, emit)
        connection.send(("end", Outcome(status="done", value=value, wall_seconds=0.0)))
    except BaseException as error:  # also if the value can't be pickled
        lift_memory_limit()  # reporting the error needs some memory
        with contextlib.suppress(OSError):  # the parent may have ended
            connection.send(("end", ended_by(error)))
    connection.close()


def _write_to(log: Path) -> None:
    """Append all output of this process to a file, including that of native code and of its children."""
    file = open_log(log)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    faulthandler.enable()  # prints the traceback of a crash in native code


def _end_with_parent() -> None:
    """Wait for the parent to end, then kill this process and its descendants."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def _start_server() -> None:
    """Start the fork server if it isn't running. Ctrl-C and the end of the terminal must reach this process alone, and
    not be lost: the server inherits that they are held back, and this process receives them when it is started.
    """
    if threading.current_thread() is not threading.main_thread():  # a node's worker, which has no terminal
        with _without_working_folder():
            forkserver.ensure_running()
        return
    block_terminal_signals()
    try:
        _end_server_at_exit()
        with _without_working_folder():
            resource_tracker.ensure_running()
            block_terminal_signals()  # starting the tracker has undone it for SIGINT
            forkserver.ensure_running()
    finally:
        deliver_terminal_signals()


@cache
def _end_server_at_exit() -> None:
    """Kill the server when this process ends: by itself it would end only after it has loaded all libraries."""
    util.Finalize(None, _end_server, exitpriority=0)


def _end_server() -> None:
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if server is not None:
        with contextlib.suppress(OSError):  # it has ended
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


@contextlib.contextmanager
def _without_working_folder() -> Iterator[None]:
    """Make Python processes that start here look for modules where this one does, and not in the working folder.

    A `random.py` of the user's there would otherwise replace the standard library's. An empty entry of `PYTHONPATH`
    means the working folder, too.
    """
    before = {name: os.environ.get(name) for name in (_SAFE_PATH, _PATH)}
    os.environ[_SAFE_PATH] = "1"
    if places := before[_PATH]:
        os.environ[_PATH] = os.pathsep.join(filter(None, places.split(os.pathsep)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


_SAFE_PATH, _PATH = "PYTHONSAFEPATH", "PYTHONPATH"
"""Environment variables of Python's; the first is its option `-P`."""
