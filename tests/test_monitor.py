"""The monitor of what else a machine does while a cell runs."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bench.cli.pick import _report
from bench.execution import monitor as module
from bench.execution.executors import make_executor
from bench.execution.monitor import Counters, Monitor, parse_stat, read_counters, shares
from bench.export.frame import frame, row
from bench.report.answers import doubts
from bench.report.summary import summarise
from bench.report.tables import DOUBT, cells_table
from bench.store.environment import MachineState
from bench.store.records import Record
from bench.store.runs import RunFolder, find_runs
from bench.sweep.progress import make_reporter
from tests.commands import ONE, command
from tests.nvml import UUID, FakeNvml
from tests.runs import record, write_run
from tests.test_executors import wait_until
from tl.gpu import GpuState

ROOT = Path(__file__).parent.parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="counters of Linux")
STAT = """cpu  999 999 999 999 999 999 999 999 0 0
cpu0 100 20 30 4000 500 6 7 80 50 5
cpu1 200 0 100 5000 0 0 0 0 0 0
cpu10 9000 0 0 0 0 0 0 900 0 0
intr 1 2 3
"""


def test_stat_by_hand() -> None:
    """Busy time is user, nice, system and interrupts of the given cores. Waiting is idle, and guests count once."""
    tick = os.sysconf("SC_CLK_TCK")
    assert parse_stat(STAT, {0, 1}) == pytest.approx(((100 + 20 + 30 + 6 + 7 + 300) / tick, 80 / tick))


def test_shares_by_hand() -> None:
    """In 10 s on two cores, all processes used 12 s, this suite 9 s, and 2 s were stolen."""
    before = Counters(at=100.0, busy=50.0, stolen=7.0, own=30.0)
    after = Counters(at=110.0, busy=62.0, stolen=9.0, own=39.0)
    assert shares(before, after, 2) == pytest.approx((3 / 20, 2 / 20))
    assert shares(before, Counters(at=110.0, busy=55.0, stolen=6.0, own=39.0), 2) == (0.0, 0.0), "never negative"


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Counters]]:
    """The readings that the monitor will get, on a machine with two cores."""
    readings: list[Counters] = []
    monkeypatch.setattr(module, "read_counters", lambda: readings.pop(0))
    monkeypatch.setattr(module, "core_numbers", lambda: {0, 1})
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    yield readings
    assert readings == []


def reading(at: float, *, other: float = 0.0, stolen: float = 0.0) -> Counters:
    """A reading after `at` seconds in which this suite used 1.5 cores."""
    return Counters(at=at, busy=1.5 * at + other, stolen=stolen, own=1.5 * at)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (reading(10, other=0.9), []),
        (reading(10, other=1.1), ["other processes took 0.11 of 2 cores"]),
        (reading(10, other=12.0, stolen=0.9), ["other processes took 1.2 of 2 cores"]),
        (reading(10, stolen=3.0), ["hypervisor took 0.3 of 2 cores"]),
        (reading(10, other=5.0, stolen=3.0), ["other processes took 0.5", "hypervisor took 0.3"]),
    ],
)
def test_more_than_a_tenth_of_a_core_is_a_warning(counters: list[Counters], after: Counters, words: list[str]) -> None:
    """It is reported at once and kept in the state. Less than that is only kept as a figure."""
    reported: list[str] = []
    counters += [reading(0), after]
    state = Monitor(reported.append).end()
    assert list(state.warnings) == reported and len(reported) == len(words)
    assert all(word in text for word, text in zip(words, reported, strict=True))
    assert state.other_cpu_share == pytest.approx((after.busy - after.own) / 20)
    assert state.steal_share == pytest.approx(after.stolen / 20)


def test_a_large_machines_own_services_are_no_warning(
    counters: list[Counters], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One core of 64 is no reason for a warning; two are."""
    monkeypatch.setattr(module, "core_numbers", lambda: set(range(64)))
    for other, warned in ((10.0, False), (20.0, True)):
        counters += [reading(0), reading(10, other=other)]
        assert bool(Monitor(lambda text: None).end().warnings) is warned


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (reading(0.25, other=0.02), ""),
        (reading(0.25, other=0.25), "other processes use 1.0 of 2 cores now"),
        (reading(0.25, stolen=0.1), "the hypervisor takes 0.4 of 2 cores now"),
    ],
)
def test_the_check_before_a_sweep(counters: list[Counters], after: Counters, words: str) -> None:
    """It returns one line if the machine is busy."""
    counters += [reading(0), after]
    warning = module.busy_warning()
    assert warning.startswith(words) and bool(warning) is bool(words)


@pytest.mark.parametrize(
    ("passed", "waits", "warned"), [(0.1, 0.15, True), (5.0, 0.0, True), (module.RECENT_SECONDS + 1, 0.25, False)]
)
def test_the_check_may_have_begun_before(
    counters: list[Counters], monkeypatch: pytest.MonkeyPatch, passed: float, waits: float, warned: bool
) -> None:
    """It waits only for what is left of its time, unless it began so long ago that it says little about now."""
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    counters += [reading(passed, other=passed), reading(passed + 0.25, other=passed)]
    assert bool(module.busy_warning(reading(0))) is warned
    assert slept == [pytest.approx(waits)]


@pytest.mark.parametrize("text", [None, "cpu0 0 0 0 0 0 0 0 0 0 0\n"])
def test_without_counters_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None) -> None:
    """Without /proc/stat, or with only zeros in it, the shares are unknown, not 0."""
    if text:
        (tmp_path / "stat").write_text(text)
    monkeypatch.setattr(module, "_STAT", tmp_path / "stat")
    state = Monitor(lambda text: None).end()
    assert (state.other_cpu_share, state.steal_share, state.warnings) == (None, None, ())
    assert module.busy_warning() == ""


def start_stranger(code: str) -> int:
    """Start a process whose parent has ended, so that it is not our descendant. Returns its id."""
    start = f"subprocess.Popen([sys.executable, '-c', {code!r}], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"
    script = f"import subprocess, sys; print({start}.pid)"
    return int(subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True).stdout)


@pytest.mark.alone
@linux
@pytest.mark.parametrize("job", ["tests.jobs:burn", "tests.jobs:burn_and_be_killed"])
def test_what_a_cell_uses_is_its_own(job: str) -> None:
    """However a cell ends, its CPU time counts as the suite's own afterwards."""
    executor = make_executor("process")
    executor.call("tests.jobs:double", 1)  # starts the server
    before = read_counters()
    executor.call(job, 1.0)
    after = read_counters()
    assert before is not None and after is not None
    assert 0.95 < after.own - before.own < 2
    assert after.busy - before.busy > 0.9


@pytest.mark.alone
@linux
def test_what_a_stranger_uses_is_not() -> None:
    """The CPU time of a process that is not our descendant counts as busy, but not as our own."""
    before = read_counters()
    stranger = start_stranger("import time\nwhile time.process_time() < 1: pass")
    assert wait_until(lambda: not _runs(stranger), 30)
    after = read_counters()
    assert before is not None and after is not None
    assert (after.busy - before.busy) - (after.own - before.own) > 0.8


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_the_cells_process_sends_is_added(counters: list[Counters]) -> None:
    """Each part is added when it comes. Later parts don't overwrite earlier ones."""
    counters += [reading(0), reading(1)]
    monitor = Monitor(lambda text: None)
    monitor.receive(MachineState(cpu_capability="AVX2", cuda_version="13.0", gpu_before=GpuState(driver="1")))
    monitor.receive(MachineState(gpu_after=GpuState(sm_clock_mhz=1980)))
    state = monitor.end()
    assert (state.cpu_capability, state.cuda_version) == ("AVX2", "13.0")
    assert state.gpu_before == GpuState(driver="1") and state.gpu_after == GpuState(sm_clock_mhz=1980)
    assert state.load_before is not None and state.load_after is not None
    assert state.memory_available_bytes and state.other_cpu_share == 0.0


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (GpuState(), None),
        (GpuState(other_processes=0, utilisation_percent=10, throttle_reasons=("GpuIdle", "SwPowerCap")), None),
        (GpuState(other_processes=1), "1 other process on the GPU"),
        (GpuState(other_processes=2), "2 other processes on the GPU"),
        (GpuState(utilisation_percent=11), "11% busy before the cell"),
        (
            GpuState(throttle_reasons=("HwThermalSlowdown",)),
            "slowed itself down before the cell began (HwThermalSlowdown)",
        ),
    ],
)
def test_a_gpu_in_use_is_a_warning(counters: list[Counters], state: GpuState, words: str | None) -> None:
    """It warns of other processes, of work before the cell began and of throttling by heat, not of an idle or
    power-limited GPU.
    """
    reported: list[str] = []
    counters += [reading(0), reading(1)]
    monitor = Monitor(reported.append)
    monitor.receive(MachineState(gpu_before=state))
    assert len(reported) == (words is not None) and (not words or words in reported[0])
    assert list(monitor.end().warnings) == reported


def test_a_gpu_that_slows_down_or_is_shared_by_the_end_is_a_warning(counters: list[Counters]) -> None:
    """The GPU's state at the end counts too, even if it was idle before; utilisation then is the cell's own."""
    reported: list[str] = []
    counters += [reading(0), reading(1)]
    monitor = Monitor(reported.append)
    after = GpuState(other_processes=1, utilisation_percent=99, throttle_reasons=("HwThermalSlowdown",))
    monitor.receive(MachineState(gpu_before=GpuState(), gpu_after=after))
    assert list(monitor.end().warnings) == reported
    assert "1 other process on the GPU as training ended" in reported[0]
    assert "slowed itself down as training ended (HwThermalSlowdown)" in reported[1] and len(reported) == 2


def test_a_cell_too_short_for_the_counters_is_no_warning(counters: list[Counters]) -> None:
    """Counters advance in steps of 10 ms, which is too coarse for a short cell."""
    reported: list[str] = []
    counters += [reading(0), reading(0.1, other=0.03)]
    state = Monitor(reported.append).end()
    assert reported == [] and state.other_cpu_share == pytest.approx(0.15)


def test_the_cell_before_is_not_taken_for_another(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML averages utilisation over a second, so a high value is read again after a second."""
    slept: list[float] = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    nvml.utilisation = [80, 0]
    assert module.gpu_before(UUID).utilisation_percent == 0 and slept == [1.0]
    nvml.utilisation = [80, 70]
    assert module.gpu_before(UUID).utilisation_percent == 70
    nvml.utilisation = [5]
    assert module.gpu_before(UUID).utilisation_percent == 5 and len(slept) == 2


def disturbed(**fields: object) -> Record:
    return record("timm:a", "frozen").replace(machine=MachineState(**fields))


def test_columns_of_the_machine() -> None:
    """Columns have the readings at the end of training, or before it where that matters. Unknown values are missing."""
    full = disturbed(
        governor="powersave",
        load_before=0.5,
        other_cpu_share=0.25,
        gpu_before=GpuState(driver="1", utilisation_percent=30, sm_clock_mhz=345),
        gpu_after=GpuState(driver="1", utilisation_percent=99, sm_clock_mhz=1980, throttle_reasons=("A", "B")),
        warnings=("x", "y"),
    )
    table = frame([row("r", full), row("r", record("timm:a", "frozen")), row("r", disturbed())])
    first = table.iloc[0]
    assert (first["governor"], first["load_before"], first["other_cpu_share"]) == ("powersave", 0.5, 0.25)
    assert (first["gpu_utilisation_before"], first["gpu_sm_clock_mhz"], first["gpu_throttle"]) == (30, 1980, "A, B")
    assert (first["gpu_driver"], first["machine_warnings"]) == ("1", "x; y")
    names = [name for name in table.columns if name.startswith(("gpu_", "load_", "other_", "steal_", "machine_"))]
    assert table.iloc[1:][[*names, "governor", "cpu_capability"]].isna().all(axis=None)


def test_reports_say_what_was_disturbed(tmp_path: Path) -> None:
    """The report has the number of disturbed cells and one example, or nothing."""
    calm = record("timm:a", "finetune").replace(machine=MachineState())
    run = write_run(tmp_path / "r", [calm, disturbed(warnings=("the moon was in the way",))])
    assert any(
        "1 of 2 cells" in note and "timm:a frozen" in note and "moon" in note for note in summarise([run], "r").notes
    )
    assert summarise([write_run(tmp_path / "calm", [calm])], "r").busy == []


@pytest.mark.parametrize("terminal", [False, True])
def test_a_warning_is_a_line_on_the_terminal(terminal: bool) -> None:
    """Both kinds of progress print it as one unbroken line."""
    text = io.StringIO()
    with make_reporter(Console(file=text, width=60, force_terminal=terminal, no_color=True), ()) as reporter:
        reporter.warned("other processes took 0.5 of 2 cores while the cell ran: its times are too long")
    assert "other processes took 0.5 of 2 cores while the cell ran: its times are too long\n" in text.getvalue()


def test_times_in_doubt_are_named(tmp_path: Path) -> None:
    """Cells that were disturbed, and seeds that are far apart; the table marks the same rows."""
    busy = record("timm:a", "frozen").replace(machine=MachineState(warnings=("other processes",)))
    calm = record("timm:a", "finetune")
    apart = [record("timm:b", "frozen", seed=seed, seconds=seconds) for seed, seconds in enumerate((1, 20))]
    summary = summarise([write_run(tmp_path / "r", [busy, calm, *apart])], "r")
    assert doubts(summary) == [
        "Times are in doubt in 2 of 3 rows of the table: timm:a, frozen (disturbed); timm:b, frozen (seeds 20× apart)."
    ]
    assert sorted(cells_table(summary)[DOUBT].tolist()) == ["", "disturbed", "seeds 20× apart"]
    assert doubts(summarise([write_run(tmp_path / "calm", [calm])], "r")) == []


def test_a_pick_ends_with_what_is_in_doubt(tmp_path: Path) -> None:
    """Its costs are those of trainings that other work disturbed, and its warnings have scrolled away."""
    busy = record("timm:a", "frozen").replace(machine=MachineState(warnings=("other processes",)))
    run = write_run(tmp_path / "r", [busy])
    outcome: Any = SimpleNamespace(sweep=SimpleNamespace(run=run, splits=None))
    text = io.StringIO()
    _report(outcome, tmp_path / "reports", Console(file=text, width=200), images=False)
    first, *rest = text.getvalue().splitlines()
    assert first == "Times are in doubt in the only row: timm:a, frozen (disturbed)."
    assert all(line.startswith("report: ") for line in rest)


def test_old_records_have_no_machine() -> None:
    """Records of the committed run of version 1 have no machine state."""
    (run,) = find_runs([ROOT / "results" / "reference-cpu-2core"])
    assert all(one.machine is None and one.schema_version < 3 for one in run.records().values())


@pytest.mark.alone
@linux
def test_a_run_on_a_busy_machine(tmp_path: Path) -> None:
    """Another process on one of our two cores leads to a warning before the sweep and at the cell, and is recorded."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(usable)[:2]))
    stranger = start_stranger("while True: pass")
    try:
        ran = command(*ONE, "--regime", "frozen", "--epochs", "1", "--name", "busy", "--no-report")
    finally:
        os.kill(stranger, signal.SIGKILL)
        os.sched_setaffinity(0, usable)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "cores now: times will be too long" in ran.stdout
    assert "cores while the cell ran" in ran.stdout
    (one,) = RunFolder(tmp_path / "results" / "busy").records().values()
    assert one.machine is not None and one.machine.other_cpu_share is not None
    assert 0.2 < one.machine.other_cpu_share < 1 and one.machine.warnings
    assert one.machine.cpu_capability and one.machine.gpu_before is None
