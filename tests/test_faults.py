"""Real faults in a sweep: finished cells are never lost, and every other cell has a record with the reason."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from bench.execution import attempt
from bench.execution import process as process_executor
from bench.execution.failure import describe, readable
from bench.execution.log import LOG_BYTES
from bench.execution.signals import ending_as_interrupt, signals_deferred, signals_delivered, stop_between_cells
from bench.store import runs
from bench.store.records import SCHEMA_VERSION
from bench.store.runs import RunFolder
from bench.sweep import recorder
from bench.sweep.execute import execute
from bench.sweep.folder import held_from_the_start
from bench.sweep.grid import load_grid
from bench.sweep.options import Options
from bench.sweep.plan import plan
from tests import light
from tests.commands import LIGHT, light_here
from tests.test_executors import wait_until
from tl.cache import write_atomic
from tl.errors import UserError

pytestmark = pytest.mark.usefixtures("light_commands")
FAMILY = "TEST_FAMILY"
"""An environment variable that marks all processes that a test starts."""
KILLS = 30
"""Number of `kill -9` at random moments, from a fixed seed."""


def write_grid(*backbones: str, regimes: str = '"frozen"', seeds: int = 1, more: str = "") -> None:
    Path("grid.toml").write_text(
        f'dataset = "synthetic-mini"\npaired = false\n[matrix]\nbackbones = {json.dumps(backbones)}\n'
        f'regimes = [{regimes}]\ndevices = ["cpu"]\nseeds = {seeds}\n{more}'
    )


RUN = ("run", "--grid", "grid.toml", "--no-report")


def run(*more: str) -> subprocess.CompletedProcess[str]:
    """The command in this process: where its own process, and the environment of its cells, are not what is tested."""
    return light_here(*RUN, *more)


def run_apart(*more: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run([*LIGHT, *RUN, *more], capture_output=True, text=True, check=False, timeout=120)


def begin(*more: str) -> subprocess.Popen[str]:
    """The command in a process of its own, which is not waited for."""
    return subprocess.Popen(
        [*LIGHT, *RUN, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def the_run() -> RunFolder:
    return RunFolder(Path("results/grid"))


def statuses() -> dict[str, str]:
    return {f"{r.cell.config.backbone} {r.cell.config.batch_size}": r.status for r in the_run().records().values()}


# Ends of a cell


@pytest.mark.alone
def test_ends_of_a_cell() -> None:
    """Each of these cells has a record, and the sweep goes on: a hang that ignores SIGTERM, a crash in native code, an
    exit without a result, an exception that can be neither pickled nor printed, megabytes on stderr, too much memory.
    """
    odd = (light.HANGS, light.CRASHES, light.LEAVES, light.UNTELLABLE, light.LOUD, light.GREEDY, light.QUICK[0])
    write_grid(*odd)
    done = run_apart("--timeout", "2", "--memory-limit", "1GiB")
    assert done.returncode == 1 and done.stderr == "", "output of cells is not on the terminal"
    found = {record.cell.config.backbone: record for record in the_run().records().values()}
    assert {name: record.status for name, record in found.items()} == {
        light.HANGS: "timeout",
        light.CRASHES: "failed",
        light.LEAVES: "failed",
        light.UNTELLABLE: "failed",
        light.LOUD: "done",
        light.GREEDY: "oom",
        light.QUICK[0]: "done",
    }
    assert "SIGSEGV" in found[light.CRASHES].reason and "run_cell" in found[light.CRASHES].traceback
    assert "exit status 0" in found[light.LEAVES].reason
    assert "_Untellable" in found[light.UNTELLABLE].reason
    assert found[light.GREEDY].reason == "out of memory: asked for 8.00 GiB (limit: 1 GiB)"
    logs = {path.stem: path.read_text(errors="replace") for path in the_run().logs.iterdir()}
    assert set(logs) == {found[light.CRASHES].cell_id, found[light.LOUD].cell_id}, "no output, no log"
    log = logs[found[light.LOUD].cell_id]
    assert log.startswith("first words") and log.endswith("last words\n") and "bytes left out" in log
    assert len(log) < 1.1 * LOG_BYTES < light.LOUD_BYTES


def test_memory_that_runs_out_bit_by_bit() -> None:
    """The error is reported although no memory is left for the report."""
    write_grid(light.NIBBLES)
    assert run("--memory-limit", "64MiB").returncode == 1
    assert statuses() == {f"{light.NIBBLES} 4": "oom"}


def test_ctrl_c_in_the_last_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit status is 130 there too, and nothing else starts."""
    go = tmp_path / "go"
    monkeypatch.setenv("LIGHT_GO", str(go))
    write_grid(light.ASKS, regimes='"finetune", "frozen"', more="[train]\nepochs = 2\n")
    for more in ([], ["--until-decided", "--pairs", "3", "--name", "adaptive"]):
        process = begin(*more)
        _line(process, "[1/2]")
        go.touch()
        _line(process, "[2/2]")
        process.send_signal(signal.SIGINT)
        _line(process, "stopping: the running cell or pair ends first")
        go.touch()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130 and "[pair" not in out and "adding" not in out and err == "", out + err


def test_larger_batches_after_running_out_of_memory() -> None:
    """Larger batches are tried, unless an option says otherwise; smaller ones are always tried."""
    sizes = "".join(f'[[include]]\nbackbone = "{light.HUNGRY}"\nbatch_size = {size}\n' for size in (2, 8, 16))
    write_grid(light.HUNGRY, more=f"[train]\nbatch_size = 4\n{sizes}")
    assert run().returncode == 1
    hungry = {f"{light.HUNGRY} {size}": "oom" for size in (4, 8, 16)} | {f"{light.HUNGRY} 2": "done"}
    assert statuses() == hungry
    reason = next(record.reason for record in the_run().records().values() if record.cell.config.batch_size == 16)
    assert reason == "out of memory: asked for 16.0 GiB"
    assert run("--skip-larger-after-oom", "--name", "skipping").returncode == 1
    found = RunFolder(Path("results/skipping")).records().values()
    ended = [record for record in sorted(found, key=lambda r: r.order or 0) if record.cell.config.batch_size > 2]
    smallest = 1_000
    for record in ended:  # sorted by the order in which they ran
        size = record.cell.config.batch_size
        assert record.status == ("skipped" if size > smallest else "oom"), ended
        assert record.status == "oom" or f"batch size {smallest} ran out of memory" in record.reason
        smallest = min(smallest, size) if record.status == "oom" else smallest
    assert len({record.status for record in ended}) == 2, "the order of this run tries a smaller one first"


def test_what_an_error_says_of_memory() -> None:
    """We read the size from messages of torch (CPU and GPU) and numpy; some messages have none."""
    reasons = {
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 2147483648 bytes. Error code 12 (Cannot allocate memory)": "out of memory: asked for 2 GiB",
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has": "out of memory: asked for 2.50 GiB",
    }
    for text, reason in reasons.items():
        assert describe(RuntimeError(text))[:2] == ("oom", reason)
    assert describe(MemoryError())[:2] == ("oom", "out of memory: MemoryError")
    assert describe(RuntimeError("something else"))[0] == "failed"
    assert [readable(size) for size in (5, 1536, 3 << 29)] == ["5 bytes", "1.5 KiB", "1.5 GiB"]


# Ends of the command


def test_kill_9_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill a cell, the command or its whole group: finished cells keep their bytes and don't run again, at most the
    running cell does, no record is half written, and no processes or files are left behind.
    """
    draw = random.Random(7)
    ledger = tmp_path / "ledger"
    monkeypatch.setenv("LIGHT_LEDGER", str(ledger))
    monkeypatch.setenv(FAMILY, str(tmp_path))
    temporary = Path(tempfile.mkdtemp(prefix="kills-"))  # a short path, for sockets
    monkeypatch.setenv("TMPDIR", str(temporary))
    regimes = '"finetune", "frozen", "cached", "frozen-tutorial"'
    write_grid(*light.QUICK, regimes=regimes, seeds=8)
    assert run_apart("--dry-run").returncode == 0, "makes the images"
    kept: dict[str, bytes] = {}
    tries: Counter[str] = Counter()
    cut_short = killed_cells = 0
    for _ in range(KILLS):
        victim = draw.choice(("cell", "command", "group"))
        tries[victim] += 1
        before_try, killed = len(_begun(ledger)), 0
        process = begin()
        family = psutil.Process(process.pid)
        if draw.random() < 0.8:  # otherwise it is killed before its first cell
            _line(process, "] timm:")
        time.sleep(draw.uniform(0.0, 0.8))
        if victim == "cell":
            killed = _kill_a_cell(family)
            killed_cells += killed
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
        elif victim == "command":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)
        cut_short += process.returncode != 0
        assert wait_until(lambda: not _family()), f"no orphan: {_family()}"
        if not the_run().exists():
            continue
        now = {cell_id: _bytes(cell_id) for cell_id, one in the_run().records().items() if one.status == "done"}
        assert {cell_id: now[cell_id] for cell_id in kept} == kept
        kept = now
        # A kill costs the cell that is running and no other. After a cell the command is killed too, with its next one.
        assert len(set(_begun(ledger)[before_try:]) - kept.keys()) <= 1 + killed
    assert cut_short > KILLS / 2 and killed_cells and len(tries) == 3 and len(kept) > 20, (cut_short, tries, len(kept))
    begun = Counter(_begun(ledger))
    # A cell ran again only if a kill hit it: at most once per kill, and never after it was done.
    assert sum(begun.values()) - len(begun) <= KILLS + killed_cells
    before = dict(begun)
    again = sum(begun.values()) - len(begun)
    counts = f"{cut_short} of them in time; {len(kept)} cells finished, 0 lost, {again} ran again"
    print(f"{KILLS} tries {dict(tries)}, {counts}")  # noqa: T201
    assert run_apart().returncode == 0
    begun = Counter(_begun(ledger))
    assert all(begun[cell_id] == before[cell_id] for cell_id in kept), "none that was done ran again"
    assert set(statuses().values()) == {"done"} and len(the_run().records()) == len(the_run().manifest().cells)
    files = [path for path in the_run().folder.rglob("*") if path.is_file() and path.suffix != ".json"]
    left = [path.name for path in files if path.suffix != ".log" or not path.stat().st_size]
    assert left == [".lock"], "no temporary file, no reserved space"
    assert list(temporary.iterdir()) == [], "no temporary files elsewhere"


def _begun(ledger: Path) -> list[str]:
    """The cells that were begun, in order, each as often as it was."""
    return ledger.read_text().split() if ledger.exists() else []


def _bytes(cell_id: str) -> bytes:
    return (the_run().folder / "cells" / f"{cell_id}.json").read_bytes()


def _kill_a_cell(family: psutil.Process) -> int:
    """Kill the newest descendant that leads a session, which is a cell's process. Returns 1 if there was one."""
    for process in reversed(family.children(recursive=True)):
        try:
            if os.getsid(process.pid) == process.pid:
                process.kill()
                return 1
        except (ProcessLookupError, psutil.Error):
            continue
    return 0


def _family() -> list[psutil.Process]:
    """All processes that commands of this test have started, including orphans."""
    return [one for one in psutil.process_iter() if one.pid != os.getpid() and _is_of_the_family(one)]


def _is_of_the_family(process: psutil.Process) -> bool:
    try:
        mine = process.environ().get(FAMILY) == os.environ[FAMILY]
        return mine and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it has ended, or belongs to another user
        return False


def test_ctrl_c_once_ends_the_sweep_after_the_cell() -> None:
    """The running cell ends and is recorded, and no new one starts. The next run continues from there."""
    write_grid(light.SLOW, *light.QUICK[:3], seeds=2)
    process = begin()
    logs = the_run().logs
    assert wait_until(logs.is_dir, 30)
    assert _asks_slowly(process), "a slow cell runs"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "no new one starts" in out and "interrupted: " in out and err == ""
    found = the_run().records()
    assert any(r.cell.config.backbone == light.SLOW and r.status == "done" for r in found.values())
    assert 0 < len(found) < len(the_run().manifest().cells)
    assert run().returncode == 0 and set(statuses().values()) == {"done"}


@pytest.mark.alone
def test_ctrl_c_twice_ends_it_at_once() -> None:
    """The command ends within seconds, even if the cell would never end."""
    write_grid(light.QUICK[0], light.HANGS)
    process = begin("--timeout", "1000")
    line = _line(process, "[2/2]") if light.HANGS not in _line(process, "[1/2]") else ""
    assert light.HANGS in line or not line
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _line(process, "no new one starts")
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130 and time.monotonic() - begun < 5
    assert set(statuses().values()) <= {"done"}


def _line(process: subprocess.Popen[str], wanted: str) -> str:
    """The next line of the output that contains a text."""
    assert process.stdout is not None
    for line in process.stdout:
        if wanted in line:
            return line
    raise AssertionError(f"no line with {wanted!r}")


def _asks_slowly(process: subprocess.Popen[str]) -> bool:
    return bool(_line(process, "slowly"))


@pytest.mark.parametrize("moment", ["_kill_group", "shorten", "write_atomic", "end"])
def test_a_signal_while_a_cell_is_kept(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a SIGTERM anywhere between the end of a cell and its record, the record is written, then the command ends."""
    write_grid(*light.QUICK[:2])
    place = {"_kill_group": process_executor, "shorten": attempt, "write_atomic": runs, "end": attempt.Monitor}[moment]
    real = getattr(place, moment)
    sent: list[bool] = []

    def disturbed(*given: Any) -> Any:
        is_record = moment != "write_atomic" or given[0].parent.name == "cells"
        if the_run().exists() and is_record and not sent:
            sent.append(True)
            signal.raise_signal(signal.SIGTERM)
        return real(*given)

    monkeypatch.setattr(place, moment, disturbed)
    grid, options, console = load_grid("grid.toml"), Options(name="grid"), Console(quiet=True)
    sweep = plan(grid, options, light.LightExecutor(process_executor.PRELOAD), console)
    with pytest.raises(KeyboardInterrupt), ending_as_interrupt():
        execute(sweep, grid, options, light.LightExecutor(process_executor.PRELOAD), console)
    assert sent and list(statuses().values()) == ["done"]


def test_a_deferred_signal() -> None:
    """It is delivered in `signals_delivered` or at the end, as it would have been; an error discards it."""
    steps: list[str] = []
    with stop_between_cells(lambda: steps.append("announced")) as pressed:
        with signals_deferred():
            signal.raise_signal(signal.SIGINT)
            assert not pressed()
            with signals_delivered():
                assert pressed() and steps == ["announced"]
            with pytest.raises(KeyboardInterrupt), signals_delivered():
                signal.raise_signal(signal.SIGINT)
            steps.append("went on")
        with pytest.raises(UserError, match="disk"), signals_deferred():
            signal.raise_signal(signal.SIGINT)
            raise UserError("disk")
        with pytest.raises(KeyboardInterrupt), signals_deferred():
            signal.raise_signal(signal.SIGINT)
            steps.append("ended")
    assert steps == ["announced", "went on", "ended"]


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB at `results/`."""
    folder = tmp_path / "results"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a small file system can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell that has just ended is saved, the run stops with the reason, and continues when there is space."""
    monkeypatch.setenv("LIGHT_FILLS", str(small_disk / "filler"))
    write_grid(*light.QUICK[:2], light.FILLS, seeds=2)
    done = run_apart()
    assert done.returncode == 2 and "No space left on device" in done.stderr, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1 and "was saved in the space reserved for it" in done.stderr
    assert statuses()[f"{light.FILLS} 4"] == "done" and set(statuses().values()) == {"done"}
    before = {cell_id: _bytes(cell_id) for cell_id in the_run().records()}
    full = run_apart()
    assert full.returncode == 2 and "No space left on device" in full.stderr and len(full.stderr.splitlines()) == 1
    monkeypatch.setenv("LIGHT_FILLS", os.devnull + "/none")
    (small_disk / "filler").unlink()
    assert run_apart().returncode == 0
    assert {cell_id: _bytes(cell_id) for cell_id in before} == before
    assert len(the_run().records()) == 6


def test_a_folder_that_turns_unwritable() -> None:
    """The message is about the cell that was not saved, although other files can't be written either."""
    write_grid(light.SLOW)
    process = begin()
    assert _asks_slowly(process)
    frozen = subprocess.run(["chattr", "+i", "results/grid", "results/grid/logs"], check=False)
    out, err = process.communicate(timeout=120)
    subprocess.run(["chattr", "-i", "results/grid", "results/grid/logs"], check=False)
    if frozen.returncode:
        pytest.skip("a folder can't be made immutable here")
    assert process.returncode == 2 and err.count("\n") == 1 and "was NOT saved" in err, out + err


def test_a_disk_that_is_read_only(small_disk: Path) -> None:
    """The command refuses before anything runs, and existing records can be read."""
    write_grid(light.QUICK[0])
    assert run().returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = run("--seeds", "2")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "can't be written" in done.stderr
    assert set(statuses().values()) == {"done"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_for_good(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the reserved space doesn't help, the message says that the cell was not saved."""
    write_grid(*light.QUICK[:3])
    assert run("--backbone", light.QUICK[0]).returncode == 0

    def fail(path: Path, content: str | bytes) -> None:
        if path.parent.name == "cells":
            raise OSError(number, os.strerror(number), str(path))
        write_atomic(path, content)

    monkeypatch.setattr(runs, "write_atomic", fail)
    grid, options, console = load_grid("grid.toml"), Options(name="grid"), Console(quiet=True)
    sweep = plan(grid, options, light.LightExecutor(process_executor.PRELOAD), console)
    with pytest.raises(UserError, match=f"{os.strerror(number)}.*was NOT saved"):
        execute(sweep, grid, options, light.LightExecutor(process_executor.PRELOAD), console)
    assert statuses() == {f"{light.QUICK[0]} 4": "done"}
    assert not list(the_run().folder.rglob(".*.tmp")) and not (the_run().folder / ".reserve").exists()


def test_an_earlier_record_is_kept_on_a_full_disk_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reserved space also suffices to keep the earlier record, on a file system without hard links."""
    write_grid(light.LEAVES)
    assert run().returncode == 1
    (record,) = the_run().records().values()
    earlier = _bytes(record.cell_id)
    reserve = the_run().folder / ".reserve"

    def full(path: Path, content: str | bytes) -> None:
        if reserve.exists() and path != reserve:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_atomic(path, content)

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(runs, "write_atomic", full)
    monkeypatch.setattr(runs.os, "link", no_links)
    with the_run().reserved(0), pytest.raises(UserError, match="was saved in the space reserved for it"):
        the_run().write_record(record.replace(reason="a later attempt"))
    assert the_run().records()[record.cell_id].reason == "a later attempt"
    (kept,) = (the_run().folder / "superseded").iterdir()
    assert kept.read_bytes() == earlier


# Records


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: b"",
    "edited": lambda text: re.sub(rb'"val_accuracy": [0-9.]+', b'"val_accuracy": 0.125', text, count=1),
    "edited, without digest": lambda text: re.sub(rb' "digest": "[0-9a-f]{64}",\n', b"", text, count=1),
    "newer": lambda text: text.replace(b'"schema_version": %d' % SCHEMA_VERSION, b'"schema_version": 99', 1),
    "not JSON": lambda text: b"\x00\xff" * 20,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_set_aside(damage: str) -> None:
    """It is named with the reason and kept unchanged. Only its cell runs again."""
    write_grid(*light.QUICK[:2])
    assert run().returncode == 0
    first, second = (the_run().folder / "cells" / f"{cell_id}.json" for cell_id in the_run().records())
    other = second.read_bytes()
    broken = DAMAGES[damage](first.read_bytes())
    assert broken != first.read_bytes()
    first.write_bytes(broken)
    with pytest.raises(UserError, match=f"{first.name}.*`bench run` sets it aside"):
        the_run().records()
    done = run()
    assert done.returncode == 0 and "[1/2]" not in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("[2/2]") == 1
    assert f"WARNING: {first.relative_to(Path.cwd()) if first.is_absolute() else first}: " in done.stdout
    kept = the_run().folder / "set-aside" / f"{first.stem}-1.json"
    assert str(kept) in done.stdout and kept.read_bytes() == broken
    assert second.read_bytes() == other and set(statuses().values()) == {"done"}


def test_a_record_under_another_s_name() -> None:
    """A record that was copied by hand is not a result of that cell."""
    write_grid(*light.QUICK[:2])
    assert run().returncode == 0
    first, second = (the_run().folder / "cells" / f"{cell_id}.json" for cell_id in the_run().records())
    shutil.copy(second, first)
    done = run()
    assert done.returncode == 0 and f"its content is that of cell {second.stem}" in done.stdout
    assert set(statuses()) == {f"{name} 4" for name in light.QUICK[:2]}


def test_a_checkout_that_rewrites_line_ends() -> None:
    """Other line ends are not damage."""
    write_grid(light.QUICK[0])
    assert run().returncode == 0
    for path in the_run().folder.rglob("*.json"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert set(statuses().values()) == {"done"}


# Folders


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "nowhere"], "no such folder"),
        (["--backbone", "quick99"], "quick99"),
        (["--reports", "file"], "can't be written"),
    ],
)
def test_a_plan_that_fails_leaves_no_folder(words: list[str], said: str, tmp_path: Path) -> None:
    """`--wait` needs one for its lock. One with anything of others in it stays."""
    (tmp_path / "file").write_text("")
    write_grid(light.QUICK[0])
    command = ["run", "--grid", "grid.toml", "--wait", "--name", "new", "--results", "deep/results", *words]
    done = light_here(*command)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert not (tmp_path / "deep").exists()
    (tmp_path / "deep" / "results" / "other").mkdir(parents=True)
    assert light_here(*command).returncode == 2
    assert [path.name for path in (tmp_path / "deep" / "results").iterdir()] == ["other"]
    (tmp_path / "deep" / "results" / "new").mkdir()
    assert light_here(*command).returncode == 2
    assert (tmp_path / "deep" / "results" / "new").is_dir(), "it was there before"


def test_whoever_waited_for_a_plan_that_failed_has_the_folder(tmp_path: Path) -> None:
    """The folder that both need is taken away by the one that made it, and made again by the other."""
    waiting, said, root = threading.Event(), [], str(Path(__file__).parent.parent)
    options = Options(name="r", results=tmp_path / "results", wait=True, command="one")

    def wait_for_it() -> None:
        code = (
            "import sys; from pathlib import Path; from bench.store.lock import locked\n"
            "with locked(Path(sys.argv[1]), 'two', wait=lambda text: print(text, flush=True)):\n"
            "    print(Path(sys.argv[1], '.lock').exists(), flush=True)\n"
        )
        words = [sys.executable, "-c", code, str(tmp_path / "results" / "r")]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}) as two:
            assert two.stdout is not None
            said.append(two.stdout.readline())
            waiting.set()
            said.extend(two.stdout)

    other = threading.Thread(target=wait_for_it)
    with pytest.raises(ValueError, match="the plan"), held_from_the_start(options, Console(quiet=True)):
        other.start()
        assert waiting.wait(60)
        raise ValueError("the plan")
    other.join(60)
    assert "waiting for it to end" in said[0] and said[1:] == ["True\n"]


def test_two_commands_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second command names the first one and ends, or waits for it. The lock of a killed command is free."""
    write_grid(light.WAITS)
    monkeypatch.setenv("LIGHT_GO", str(tmp_path / "go"))
    first = begin()
    assert _line(first, "[1/1]")
    second = run()
    assert second.returncode == 2 and len(second.stderr.splitlines()) == 1
    assert f"process {first.pid} on" in second.stderr and "--grid grid.toml" in second.stderr
    third = begin("--wait", "--backbone", light.WAITS, "--backbone", light.QUICK[0])
    assert f"process {first.pid} on" in _line(third, "waiting for it to end")
    (tmp_path / "go").touch()
    assert _line(third, "1 of them done before, 1 new"), "planned after the wait"
    assert third.communicate(timeout=120) and third.returncode == 0
    assert first.communicate(timeout=120) and first.returncode == 0
    write_grid(light.HANGS)
    killed = begin("--name", "killed")
    assert wait_until(Path("results/killed/logs").is_dir, 30)
    killed.kill()
    killed.communicate()
    Path("grid.toml").write_text(Path("grid.toml").read_text().replace(light.HANGS, light.QUICK[0]))
    assert run("--name", "killed").returncode == 0, "the lock of a killed command is free"


def test_a_folder_that_moves_and_a_grid_that_changes() -> None:
    """Cells have the same ids elsewhere: finished ones are kept, new ones run, and the rest of the run is kept."""
    write_grid(*light.QUICK[:2])
    assert run().returncode == 0
    Path("elsewhere").mkdir()
    shutil.move("results/grid", "elsewhere/renamed")
    write_grid(*light.QUICK[1:4])
    done = run("--out", "elsewhere", "--name", "renamed")
    assert done.returncode == 0, done.stderr
    assert "3 cells, 1 of them done before, 2 new, and 1 of earlier commands, which are kept" in done.stdout
    assert (
        "[2/3]" in done.stdout
        and "[1/3]" not in done.stdout
        and len(RunFolder(Path("elsewhere/renamed")).records()) == 4
    )


def test_a_clock_that_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps back a day at every reading. Durations come from a monotonic clock, and nothing runs twice."""

    class Jumping(datetime):
        jumps = 0

        @classmethod
        def now(cls, tz: object = None) -> datetime:
            cls.jumps += 1
            return datetime.now(UTC) - timedelta(days=cls.jumps)

    monkeypatch.setattr(attempt, "datetime", Jumping)
    monkeypatch.setattr(recorder, "datetime", Jumping)
    write_grid(*light.QUICK[:2], light.LEAVES)
    grid, options, console = load_grid("grid.toml"), Options(name="grid"), Console(quiet=True)
    executor = light.LightExecutor(process_executor.PRELOAD)
    for expected in (3, 1):
        sweep = plan(grid, options, executor, console)
        assert len(sweep.missing) == expected
        found = execute(sweep, grid, options, executor, console)
        assert all(0 < record.wall_seconds < 60 for record in found.values())
    assert Jumping.jumps >= 4 and len(list((the_run().folder / "superseded").iterdir())) == 1
