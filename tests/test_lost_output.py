"""A sweep whose output is lost goes on: results and report are on disk, and the exit status says what happened."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pytest
from rich.console import Console

import bench
from bench.console import LastingOutput, tell
from bench.execution.executors import EXECUTORS
from bench.execution.process import PRELOAD
from bench.execution.signals import ending_as_interrupt, signals_deferred
from bench.store.runs import RunFolder
from bench.sweep.progress import LiveReporter, PlainReporter, make_reporter
from tests import light
from tests.commands import LIGHT
from tests.runs import record

pytestmark = pytest.mark.usefixtures("light_commands")
FULL = Path("/dev/full")
GRID = 'dataset = "synthetic-mini"\n[matrix]\nbackbones = ["{}"]\nregimes = ["frozen"]\ndevices = ["cpu"]\nseeds = 2\n'
RUN = (*LIGHT, "run", "--grid", "grid.toml", "--no-images")


def statuses() -> list[str]:
    return [one.status for one in RunFolder(Path("results/grid")).records().values()]


def write_grid(backbone: str = light.QUICK[0]) -> None:
    Path("grid.toml").write_text(GRID.format(backbone))


def ended(*words: str, shell: str) -> subprocess.CompletedProcess[str]:
    """Run a command line with a redirection of a shell, `"$@"` being the command."""
    line = ["bash", "-c", shell, "bash", *words]
    return subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=240)


needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@pytest.mark.parametrize(
    ("shell", "status", "why"),
    [
        ('"$@" | head -1 >first; exit ${PIPESTATUS[0]}', 141, "Broken pipe"),
        pytest.param('"$@" >/dev/full', 2, "No space left on device", marks=needs_full),
        ('"$@" >&-', 2, "Bad file descriptor"),
    ],
    ids=["pipe", "full", "closed"],
)
def test_a_sweep_goes_on_without_its_output(shell: str, status: int, why: str) -> None:
    """All cells are done and the report is written; one line on standard error says what was lost."""
    write_grid()
    done = ended(*RUN, shell=shell)
    assert done.returncode == status, done.stderr
    assert done.stderr == f"standard output: {why}: nothing more is shown, but the sweep goes on and writes its files\n"
    assert statuses() == ["done", "done"] and Path("reports/grid.html").is_file()
    again = subprocess.run(RUN, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "2 of them done before" in again.stdout


@pytest.mark.parametrize(
    ("shell", "status"),
    [
        ('"$@" 2>&1 | head -1 >first; exit ${PIPESTATUS[0]}', 141),
        pytest.param('"$@" >/dev/full 2>&1', 2, marks=needs_full),
        ('"$@" >&- 2>&- <&-', 2),
    ],
    ids=["pipe", "full", "closed"],
)
def test_a_sweep_goes_on_without_standard_error_too(shell: str, status: int) -> None:
    """There is nobody to tell, and the exit status is the same."""
    write_grid()
    assert ended(*RUN, shell=shell).returncode == status
    assert statuses() == ["done", "done"] and Path("reports/grid.html").is_file()
    logs = [path.read_text() for path in Path("results/grid/logs").iterdir()]
    assert logs == [], "no file has got the number of a closed stream"


def test_a_failed_cell_comes_first() -> None:
    """Exit status 1 says more than that the output was lost."""
    write_grid(light.LEAVES)
    assert ended(*RUN, shell='"$@" | true; exit ${PIPESTATUS[0]}').returncode == 1
    assert statuses() == ["failed", "failed"]


@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        pytest.param('"$@" >/dev/full', 2, "No space left on device", marks=needs_full),
        pytest.param('"$@" >/dev/full 2>&1', 2, "", marks=needs_full),
        ('"$@" >&-', 2, "Bad file descriptor"),
        ('"$@" >&- 2>&-', 2, ""),
        ('"$@" 2>&1 | true; exit ${PIPESTATUS[0]}', 141, ""),
    ],
)
@pytest.mark.parametrize("command", ["--help", "run"])
def test_other_output_that_is_lost_ends_the_command(command: str, shell: str, status: int, said: str) -> None:
    """It ends with the documented status, whatever standard error is. A dry run only prints."""
    write_grid()
    done = ended(*(RUN if command == "run" else LIGHT), "--dry-run" if command == "run" else "--help", shell=shell)
    assert done.returncode == status and said in done.stderr and done.stderr.count("\n") == bool(said)


def test_a_mistake_is_status_2_if_nobody_can_be_told() -> None:
    """Python's own exit status for an error while an error is printed is 1, which would mean "regressed"."""
    for shell in ('"$@" 2>&-', *(['"$@" 2>/dev/full'] if FULL.exists() else [])):
        done = ended(*LIGHT, "gate", "r", "s", shell=shell)
        assert (done.returncode, done.stdout) == (2, "")


@contextlib.contextmanager
def in_a_terminal(*words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a command in a session of its own in a new terminal. Yields its process and the terminal's other end."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(OSError):
            os.close(ours)


def test_a_sweep_goes_on_when_its_terminal_has_gone() -> None:
    """The live display of progress writes into nothing; without SIGHUP, as under `nohup`, the sweep goes on."""
    write_grid(light.SLOW)
    with in_a_terminal(*RUN) as (process, ours):
        seen = b""
        while b"cells" not in seen or b"2 cells" not in seen:
            read = os.read(ours, 4096)
            assert read, seen
            seen += read
        os.close(ours)
        assert process.wait(120) == 2
    assert statuses() == ["done", "done"] and Path("reports/grid.html").is_file()


def test_a_second_sighup_ends_nothing_later() -> None:
    """Signals that were deferred together end one thing together."""
    with pytest.raises(KeyboardInterrupt), ending_as_interrupt(), signals_deferred():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
    with ending_as_interrupt(), signals_deferred():
        pass


def test_a_second_sighup_does_not_disturb_the_end_of_a_command() -> None:
    """The command and the sweep inside it handle it together."""
    with pytest.raises(KeyboardInterrupt), ending_as_interrupt():
        try:
            with ending_as_interrupt():
                os.kill(os.getpid(), signal.SIGHUP)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)


@pytest.mark.parametrize("how", ["signal", "terminal"])
def test_sighup_ends_a_sweep_as_sigterm_does(how: str, tmp_path: Path) -> None:
    """The running cell ends at once, finished ones are kept, the exit status is 130, and nothing is left behind."""
    write_grid(light.WAITS)
    go = tmp_path / "go"
    environment = {**os.environ, "LIGHT_GO": str(go)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        RUN, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=environment
    )
    try:
        assert process.stdout
        while not (line := process.stdout.readline()).startswith("[1/2]"):
            assert line, process.communicate()
        if how == "terminal":
            process.stdout.close()
            process.stdout = None
        os.killpg(process.pid, signal.SIGHUP)
        os.killpg(process.pid, signal.SIGHUP)  # from the kernel and from the shell
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    if how == "signal":
        assert "interrupted: 0 of 2 cells done, 2 left; the same command continues from there" in out and err == ""
    run = RunFolder(Path("results/grid"))
    assert run.records() == {} and run.leftovers() == []


def test_sighup_is_ignored_where_the_caller_ignores_it() -> None:
    """`nohup` promises that."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_as_interrupt(), signals_deferred():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sighup_waits_until_a_record_is_written() -> None:
    """It is deferred as SIGTERM is, and the second one doesn't disturb what the first has begun."""
    written, cleaned = [], []
    with pytest.raises(KeyboardInterrupt), ending_as_interrupt():
        try:
            with signals_deferred():
                os.kill(os.getpid(), signal.SIGHUP)
                written.append(True)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)
    assert written and cleaned


class Failing(io.StringIO):
    """A stream that fails at the given write or flush, and at all after it."""

    def __init__(self, at: int, error: Exception) -> None:
        super().__init__()
        self.left, self.error = at, error

    def write(self, text: str) -> int:
        self._count()
        return super().write(text)

    def flush(self) -> None:
        self._count()

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error


ERRORS = [
    BrokenPipeError(32, "Broken pipe"),
    OSError(28, "No space left"),
    OSError(5, "I/O"),
    ValueError("closed file"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__ + str(error)[:8])
@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_survives_any_moment(error: Exception, terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever write fails first, no call raises, and one line says so."""
    one = record("timm:a", "finetune")
    assert one.result is not None
    for at in range(12):
        output = LastingOutput(Failing(at, error))
        console = Console(file=cast("IO[str]", output), width=80, force_terminal=terminal)
        with make_reporter(console, [one.cell, record("timm:b", "finetune").cell]) as reporter:
            assert isinstance(reporter, LiveReporter if terminal else PlainReporter)
            reporter.started(one.cell)
            reporter.stage(one.cell, "fold 1/2")
            for row in one.result.epochs:
                reporter.epoch(one.cell, row)
            reporter.warned("something")
            reporter.ended(one)
        said = capsys.readouterr().err
        assert output.lost is not None and said.count("\n") == 1 and said.startswith("standard output: ")


def test_what_a_terminal_cannot_encode_is_an_escape() -> None:
    """A character that the output's encoding lacks must not end a sweep."""
    raw = io.BytesIO()
    output = LastingOutput(io.TextIOWrapper(raw, encoding="ascii"))
    output.write("2 × 3")
    output.flush()
    assert raw.getvalue() == rb"2 \xd7 3" and output.lost is None


def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A standard error that is closed, full or missing raises nothing."""
    closed: Any = io.StringIO()
    closed.close()
    for stream in (closed, Failing(0, OSError(28, "No space left")), None):
        monkeypatch.setattr(sys, "stderr", stream)
        tell("something")


@pytest.mark.parametrize("error", ERRORS[:2], ids=["pipe", "full"])
def test_a_run_from_python_goes_on_too(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It returns its run, and one line on standard error says what was lost."""
    write_grid()
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(EXECUTORS, "process", lambda address: light.LightExecutor(PRELOAD))
    monkeypatch.setattr(sys, "stdout", Failing(3, error))
    found = bench.run("grid.toml", name="grid")
    monkeypatch.undo()
    os.chdir(tmp_path)
    assert statuses() == ["done", "done"] and len(found.records()) == 2
    assert capsys.readouterr().err.count("\n") == 1
