"""Executors: every way in which a call can end, in a process and inline."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from bench.execution import process
from bench.execution.base import NO_LIMITS, Executor, Limits
from bench.execution.discovery import backbone_names
from bench.execution.executors import make_executor
from bench.execution.process import ProcessExecutor

GET_READY_OF_TESTS = "tests.light:get_ready"
ROOT = Path(__file__).parent.parent


@pytest.fixture(params=["process", "inline"])
def executor(request: pytest.FixtureRequest) -> Executor:
    return make_executor(request.param)


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_value_comes_back_and_events_before_it(executor: Executor) -> None:
    """A call passes its arguments, emits events and returns the value."""
    events: list[str] = []
    outcome = executor.call("tests.jobs:double", 21, on_event=events.append)
    assert (outcome.status, outcome.value, events) == ("done", 42, ["half way"])
    assert outcome.wall_seconds > 0


def test_an_exception_is_a_failure_with_reason_and_traceback(executor: Executor) -> None:
    """The reason is one line, and the outcome has the whole traceback."""
    outcome = executor.call("tests.jobs:fail")
    assert (outcome.status, outcome.reason) == ("failed", "ValueError: first line")
    assert "second line" in outcome.traceback and "jobs.py" in outcome.traceback


def test_a_user_error_keeps_its_words(executor: Executor) -> None:
    """The reason is the message without the name of its class."""
    outcome = executor.call("tests.jobs:user_error")
    assert (outcome.status, outcome.reason) == ("failed", "the folder is empty")


def test_what_is_not_applicable_is_skipped(executor: Executor) -> None:
    """The outcome has a reason but no traceback, since it is not a failure."""
    outcome = executor.call("tests.jobs:not_applicable")
    assert (outcome.status, outcome.reason, outcome.traceback) == ("skipped", "these don't go together", "")


def test_memory_that_cannot_be_had_is_oom(executor: Executor) -> None:
    """torch's own allocation error gives status `oom`."""
    assert executor.call("tests.jobs:run_out_of_memory").status == "oom"


def test_a_killed_process_is_oom_and_a_crash_a_failure() -> None:
    """The kernel sends SIGKILL when memory runs out."""
    process = make_executor("process")
    killed = process.call("tests.jobs:be_killed")
    assert killed.status == "oom" and "memory" in killed.reason
    crashed = process.call("tests.jobs:crash")
    assert crashed.status == "failed" and "exit status 7" in crashed.reason
    assert process.call("tests.jobs:double", 1).value == 2, "the next call is not affected"


def test_a_crash_under_a_limit_on_memory_names_the_limit() -> None:
    """Native code that gets no memory crashes without a word."""
    outcome = make_executor("process").call("tests.jobs:crash", limits=Limits(memory_bytes=1 << 30))
    assert outcome.status == "failed" and "limited to 1 GiB" in outcome.reason


def test_a_folder_for_temporary_files_may_have_a_long_path(tmp_path: Path) -> None:
    """Paths of sockets have at most 107 bytes, and the fork server has one."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    code = "from bench.execution.executors import make_executor as m; print(m('process').call('tests.jobs:double', 21))"
    words, env = [sys.executable, "-c", code], {**os.environ, "TMPDIR": str(long)}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert "value=42" in done.stdout, done.stderr


@pytest.mark.alone
def test_a_timeout_ends_the_process_and_its_children(tmp_path: Path) -> None:
    """The whole process group ends soon after the time limit."""
    process = make_executor("process")
    process.prepare()  # the first call would wait for the libraries, and its limit with it
    outcome = process.call("tests.jobs:hang", tmp_path / "ids", limits=Limits(seconds=3))
    assert outcome.status == "timeout" and "3 s" in outcome.reason
    assert 3 <= outcome.wall_seconds < 5
    ids = [int(text) for text in (tmp_path / "ids").read_text().split()]
    assert wait_until(lambda: not any(_alive(pid) for pid in ids))


@pytest.mark.parametrize("end", ["tests.jobs:leave_a_child", "tests.jobs:leave_a_child_and_crash"])
def test_what_work_leaves_behind_is_ended(tmp_path: Path, end: str) -> None:
    """Children of a call are ended, whether the call succeeds or crashes."""
    make_executor("process").call(end, tmp_path / "id")
    child = int((tmp_path / "id").read_text())
    assert wait_until(lambda: not _alive(child))


def test_a_crash_is_noticed_though_a_child_holds_the_pipe() -> None:
    """The call ends at once, not at the timeout."""
    outcome = make_executor("process").call("tests.jobs:fork_and_crash", limits=Limits(seconds=60))
    assert outcome.status == "failed" and "SIGSEGV" in outcome.reason


def test_the_end_of_the_log_is_that_of_this_attempt(tmp_path: Path) -> None:
    """Output of an earlier attempt in the same log doesn't count."""
    process, limits = make_executor("process"), Limits(log=tmp_path / "cell.log", memory_bytes=1 << 30)
    first = process.call("tests.jobs:say_and_crash", "std::bad_alloc\n", limits=limits)
    second = process.call("tests.jobs:say_and_crash", "others\n", limits=limits)
    assert first.status == "oom" and "std::bad_alloc" in first.traceback
    assert second.status == "failed" and second.traceback.startswith("others")
    assert (tmp_path / "cell.log").read_text().startswith("std::bad_alloc"), "the earlier output is kept"


def test_a_log_that_can_t_be_written(tmp_path: Path) -> None:
    """The reason names the log, and no traceback is printed. A new process has the terminal as its fork server's."""
    code = (
        "import sys; from pathlib import Path; from bench.execution.base import Limits\n"
        "from bench.execution.executors import make_executor\n"
        "outcome = make_executor('process').call('tests.jobs:double', 1, limits=Limits(log=Path(sys.argv[1])))\n"
        "print(outcome.status, outcome.reason)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "none" / "cell.log")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("failed ") and "cell.log" in done.stdout and done.stderr == ""


@pytest.mark.alone
def test_a_call_goes_on_if_the_fork_server_ends(tmp_path: Path) -> None:
    """The call's result is kept, though a dying server makes all its processes look as if they had ended."""
    code = (
        "import os, signal, sys, threading\nfrom multiprocessing import forkserver\n"
        "from bench.execution.executors import make_executor\n"
        "process = make_executor('process')\n"
        "process.call('tests.jobs:double', 1)\n"
        "server = forkserver._forkserver._forkserver_pid\n"
        "threading.Timer(0.7, os.kill, [server, signal.SIGKILL]).start()\n"
        "print(process.call('tests.jobs:nap', 2.0).status)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "done\n", done.stdout + done.stderr


LIMITED = """
import resource
from bench.cli import main
from bench.execution import executors, process
resource.setrlimit(resource.RLIMIT_AS, (1 << 46, 1 << 46))
executors.EXECUTORS["process"] = lambda address: process.ProcessExecutor("ends_server")
main()
"""


def test_a_server_that_cannot_start(tmp_path: Path) -> None:
    """As with `ulimit -v` too small for the libraries: one line, and never the status of an interrupt."""
    (tmp_path / "ends_server.py").write_text("import os\n\nos.abort()\n")
    words = [sys.executable, "-c", LIMITED, "run", "--grid", "smoke", "--data", "synthetic-mini", "--weights", "random"]
    places = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "TL_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(words, env={**os.environ, **places}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "as it does when memory runs out (this program may use 64 TiB; see `ulimit -v`)" in done.stderr
    assert not (tmp_path / "results").exists()


EARLY = """
import sys
from multiprocessing import forkserver
import tl.datasets
from bench.cli import main
from bench.execution import executors, process

def server():
    return forkserver._forkserver._forkserver_pid

executors.EXECUTORS["process"] = lambda address: process.ProcessExecutor("sleeps")
load, started = tl.datasets.load_splits, []

def looked_for(*arguments, **settings):
    started.append(server() is not None)
    return load(*arguments, **settings)

tl.datasets.load_splits = looked_for
try:
    main()
finally:
    print("images", started, "server", server() or "", file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a fork server and devices that are known without torch")
@pytest.mark.parametrize(
    ("words", "early"),
    [
        (("run", "--grid", "smoke", "--device", "cpu", "--data", "nowhere"), True),
        (("run", "--grid", "smoke", "--device", "cpu", "--data", "nowhere", "--dry-run"), False),
        (("run", "--grid", "smoke", "--device", "cpu", "--data", "nowhere", "--executor", "inline"), False),
        (("time", "timm:test_resnet", "--device", "cpu", "--data", "nowhere"), True),
    ],
    ids=["run", "dry run", "inline", "time"],
)
def test_the_server_starts_before_images_are_looked_for(words: tuple[str, ...], early: bool, tmp_path: Path) -> None:
    """A command that ends with a mistake neither waits for what the server loads nor leaves it behind."""
    (tmp_path / "sleeps.py").write_text("import time\n\ntime.sleep(1000)\n")
    places = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    backbone_names(make_executor("process"))  # in the cache, so that the server isn't asked for them
    done = subprocess.run(
        [sys.executable, "-c", EARLY, *words],
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 2 and "'nowhere'" in done.stderr, done.stderr
    said = done.stderr.splitlines()[-1].split()
    assert said[:3] == ["images", f"[{early}]", "server"] and len(said) == 3 + early, done.stderr
    assert not early or not psutil.pid_exists(int(said[3]))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "Resource temporarily unavailable"),
        (OSError(24, "Too many open files"), "Too many open files"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_there_can_be_no_more_processes_or_threads(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the outcome of the call, so a cell has a row that says it, and the sweep ends as it should."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(forkserver, "ensure_running", fail)
    outcome = make_executor("process").call("tests.jobs:double", 1)
    assert (outcome.status, outcome.reason) == ("failed", f"its process can't be started: {said}")


@pytest.mark.parametrize("left", [0, 1, 2, 3])
def test_there_can_be_no_more_files(left: int) -> None:
    """Neither of the two pipes to the process, or only the first: nothing stays open, and the next call works."""
    resource = pytest.importorskip("resource", reason="needs limits of a Unix process")
    executor = ProcessExecutor()
    open_files, before = psutil.Process().num_fds(), resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare[-1] + 1, before[1]))
    try:
        for number in spare[:left]:
            os.close(number)
        with executor.start(GET_READY_OF_TESTS) as running:
            outcome = running.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for number in spare[left:]:
            os.close(number)
    assert (outcome.status, outcome.reason) == ("failed", "its process can't be started: Too many open files")
    assert psutil.Process().num_fds() == open_files
    assert executor.call(GET_READY_OF_TESTS).status == "done"


def _work_without_threads(connection: Connection) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threading.Thread.start = fail  # type: ignore[method-assign]  # in a process of its own
    process._work(connection, GET_READY_OF_TESTS, (), NO_LIMITS)


def test_a_cell_s_process_that_can_have_no_thread() -> None:
    """It watches its parent in one. Without it nothing runs, and the outcome says why."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_work_without_threads, args=(theirs,))
    child.start()
    theirs.close()
    kind, outcome = ours.recv()
    child.join()
    assert (kind, outcome.status, outcome.reason) == ("end", "failed", "RuntimeError: can't start new thread")


@pytest.mark.alone
def test_an_interrupt_while_the_server_starts(tmp_path: Path) -> None:
    """Importing torch takes seconds. Ctrl-C meanwhile ends the parent at once, and the server after the import."""
    code = (
        "from bench.execution.executors import make_executor\n"
        "print('ready', flush=True)\n"
        "make_executor('process').call('bench.execution.worker:get_ready')\n"
        "print('too late', flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    assert wait_until(lambda: bool(psutil.Process(parent.pid).children()))
    family = psutil.Process(parent.pid).children(recursive=True)
    time.sleep(0.3)
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.wait(timeout=5) != 0
    assert wait_until(lambda: not any(_alive(p.pid) for p in family), 60), "the server, once torch is imported"
    assert parent.communicate()[0] == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_server_is_looked_for_is_not_lost(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is delivered a moment later. The server, and the process of the call, don't receive it."""
    received: list[int] = []
    before = signal.signal(number, lambda signum, _: received.append(signum))
    start = forkserver.ensure_running

    def interrupted() -> None:
        os.kill(os.getpid(), number)
        start()

    monkeypatch.setattr(forkserver, "ensure_running", interrupted)
    try:
        outcome = make_executor("process").call("tests.jobs:signals_ignored", [signal.SIGINT, signal.SIGHUP])
    finally:
        signal.signal(number, before)
    assert received == [number]
    assert outcome.value == [True, True], outcome.traceback


@pytest.mark.alone
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_no_child_outlives_the_parent(tmp_path: Path, end: signal.Signals) -> None:
    """However the parent ends, its call, the children of that and the fork server end too."""
    code = (
        "import sys; from pathlib import Path; from bench.execution.executors import make_executor\n"
        "from bench.execution.signals import ending_as_interrupt\n"
        "with ending_as_interrupt():\n"
        "    make_executor('process').call('tests.jobs:hang', Path(sys.argv[1]))\n"
    )
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    ids = tmp_path / "ids"
    parent = subprocess.Popen([sys.executable, "-c", code, str(ids)], env=environment, stderr=subprocess.DEVNULL)
    try:
        assert wait_until(lambda: ids.exists() and len(ids.read_text().split()) == 2, 60)
        family = psutil.Process(parent.pid).children(recursive=True)
        work = int(ids.read_text().split()[0])
        started = time.monotonic()
        parent.send_signal(end)
        parent.wait(timeout=5)
        # After a hard kill of the parent, multiprocessing's resource tracker ends by itself, later.
        left = [p for p in family if end != signal.SIGKILL or p.pid == work or "forkserver" in " ".join(_command(p))]
        assert wait_until(lambda: not any(_alive(p.pid) for p in left), 5)
        assert time.monotonic() - started < 5
    finally:
        parent.kill()
        for pid in [int(text) for text in ids.read_text().split()] if ids.exists() else []:
            if _alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_what_work_starts_dies_with_a_killed_parent(tmp_path: Path) -> None:
    """The call's process waits for its parent to end, and then ends its whole group."""
    code = (
        "import sys; from pathlib import Path; from bench.execution.executors import make_executor\n"
        "make_executor('process').call('tests.jobs:hang', Path(sys.argv[1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    ids = tmp_path / "ids"
    with subprocess.Popen([sys.executable, "-c", code, str(ids)], env=environment) as parent:
        assert wait_until(lambda: ids.exists() and len(ids.read_text().split()) == 2, 60)
        parent.kill()
    assert wait_until(lambda: not any(_alive(int(text)) for text in ids.read_text().split()), 10)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
