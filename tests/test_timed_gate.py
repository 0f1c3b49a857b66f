"""The timed gate: its rounds, when it stops, its messages, and whole gates on a small repository."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from bench.compare.gate import INCOMPLETE, NOT_COMPARABLE, PASSED, REGRESSED
from bench.devtools import gate, steps, turns
from bench.devtools.gate import BASE, NEW, Tree
from bench.store.environment import environment
from tests.benchmarks import conftest, test_speed
from tests.benchmarks.conftest import source_digest
from tl import machine
from tl.errors import UserError

TREES = {name: Tree(folder=Path(name), python=sys.executable) for name in (BASE, NEW)}


@pytest.fixture(autouse=True)
def _as_outside_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-benchmark times nothing in processes that inherit the variables of workers of pytest-xdist."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
        monkeypatch.delenv(name)


class Machine:
    """Runs no benchmark, but writes made-up times with scatter, and with a factor for the new side."""

    def __init__(self, factor: float = 1.0, scatter: float = 0.01, seed: int = 0) -> None:
        self.factor, self.scatter = factor, scatter
        self.draws = np.random.default_rng(seed)
        self.turns: list[str] = []
        self.written = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self, trees: dict[str, Tree], files: dict[str, Path], first: str) -> None:
        assert trees is TREES
        self.turns.append(first)
        for side, file in files.items():
            self.write(side, file)

    def write(self, side: str, file: Path) -> None:
        times = (self.draws.lognormal(0, self.scatter, 4) * (self.factor if side == NEW else 1.0)).tolist()
        self.written += timedelta(seconds=1)
        rows = [
            {"fullname": f"t::{i}", "stats": {"data": 3 * [value if i == 0 else 1.0]}, "extra_info": {"source": "s"}}
            for i, value in enumerate(times)
        ]
        file.parent.mkdir(parents=True, exist_ok=True)
        machine = {"cpu": {"brand_raw": "A", "count": 2}, "python_version": "3", "system": "Linux"}
        content = {"machine_info": machine, "benchmarks": rows, "datetime": self.written.isoformat()}
        file.write_text(json.dumps(content))


def test_sides_take_turns_and_a_clear_case_ends_early(tmp_path: Path) -> None:
    """Each side goes first in every other round. Five rounds are enough if nothing is undecided."""
    machine = Machine()
    _, decision, count = gate.rounds(TREES, tmp_path, machine, rules=[], most=20, budget=None)
    assert (decision.status, count) == (PASSED, 5)
    assert machine.turns == [BASE, NEW, BASE, NEW, BASE]
    assert len(list(tmp_path.glob("*/round-*.json"))) == 10


def test_more_rounds_while_something_is_undecided(tmp_path: Path) -> None:
    """Rounds are added until everything is decided, or until rounds or budget are used up."""
    _, decision, count = gate.rounds(TREES, tmp_path / "a", Machine(1.1, 0.04), rules=[], most=20, budget=None)
    assert decision.status == REGRESSED and 5 < count < 20
    _, decision, count = gate.rounds(TREES, tmp_path / "b", Machine(1.0, 0.5), rules=[], most=10, budget=None)
    assert (decision.status, count) == (INCOMPLETE, 10)
    _, decision, count = gate.rounds(TREES, tmp_path / "c", Machine(1.0, 0.5), rules=[], most=20, budget=0.0)
    assert (decision.status, count) == (INCOMPLETE, 5)


def test_false_alarms_and_planted_slowdowns(tmp_path: Path) -> None:
    """With 3% scatter, at most 2 of 100 gates with equal sides fail, and at least 95 of 100 find a slowdown of 10%."""
    alarms = found = 0
    for seed in range(100):
        for factor in (1.0, 1.1):
            out = tmp_path / f"{seed}-{factor}"
            _, decision, _ = gate.rounds(TREES, out, Machine(factor, 0.03, seed), rules=[], most=20, budget=None)
            alarms += factor == 1.0 and decision.status == REGRESSED
            found += factor == 1.1 and decision.status == REGRESSED
    assert alarms <= 2 and found >= 95


def test_a_slowdown_of_the_allowed_factor_seldom_passes(tmp_path: Path) -> None:
    """It passes at most 25 times in 1,000, however often the sides are compared."""
    passed = 0
    for seed in range(400):
        machine = Machine(1.05, 0.04, seed)
        _, decision, _ = gate.rounds(TREES, tmp_path / str(seed), machine, rules=[], most=20, budget=None)
        passed += decision.status == PASSED
    assert passed <= binom.ppf(0.999, 400, 0.025)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one benchmark, whose module says how long it takes."""
    root = tmp_path / "repository"
    place = root / "tests" / "benchmarks"
    place.mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\ndependencies = []\n')
    (root / "speed.py").write_text("SECONDS = 0.01\n")
    (place / "conftest.py").write_text("")
    (place / "test_it.py").write_text(
        "import time\nimport speed\ndef test_it(benchmark):\n    benchmark(lambda: time.sleep(speed.SECONDS))\n"
    )
    git(root, "init", "--quiet", "--initial-branch=main")
    commit(root, "first")
    return root


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True)


def commit(root: Path, message: str) -> None:
    git(root, "add", "-A")
    git(root, "-c", "user.name=x", "-c", "user.email=x@y.z", "commit", "--quiet", "-m", message)


@pytest.mark.alone
def test_a_slower_working_tree(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole gate finds a change that isn't committed, and leaves no work tree behind."""
    (repository / "speed.py").write_text("SECONDS = 0.013\n")
    options = ["--base", "main", "--select", "test_it", "--rounds", "5"]
    status = gate.gate([*options, "--out", str(tmp_path / "raw"), "--output", str(tmp_path / "g.md")], repository)
    output = capsys.readouterr().out
    assert status == REGRESSED, output
    assert re.search("new: this tree, [0-9a-f]{12} with uncommitted changes", output)
    assert "test_it.py::test_it: time 1." in output
    page = (tmp_path / "g.md").read_text()
    assert page in output and "with uncommitted changes" in page and len(list(tmp_path.glob("raw/*/*.json"))) == 10
    trees = subprocess.run(
        ["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True, check=True
    )
    assert len(trees.stdout.splitlines()) == 1
    with pytest.raises(UserError, match="nothing is overwritten"):
        gate.gate([*options, "--out", str(tmp_path / "raw")], repository)


def test_turns() -> None:
    """Each process sets up in its own turn, and rounds alternate strictly. When one ends, the other continues alone."""
    to_first, to_second = os.pipe(), os.pipe()
    log = os.pipe()
    code = (
        "import os, sys; from bench.devtools.turns import Alternation; turns = Alternation.given()\n"
        "name, count, log = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])\n"
        "turns.take(); os.write(log, name.upper().encode())\n"
        "for _ in range(count):\n    turns.next(); os.write(log, name.encode())\n"
        "turns.end(); os.write(log, b'.')"
    )
    processes = []
    for name, count, read, write in (("a", 3, to_first[0], to_second[1]), ("b", 5, to_second[0], to_first[1])):
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code, name, str(count), str(log[1])],
                env={**os.environ, "BENCHMARK_TURNS": f"{read},{write},{int(name == 'b')}"},
                pass_fds=(read, write, log[1]),
                cwd=Path(__file__).parent.parent,
            )
        )
    for end in (*to_first, *to_second, log[1]):
        os.close(end)
    assert [process.wait() for process in processes] == [0, 0]
    written = os.read(log[0], 100).decode()
    assert written.replace(".", "") == "BAbabababb"
    assert written.index(".") >= len("BAbababab")  # the first to end waits for the other's round
    os.close(log[0])


@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't show which threads run")
def test_a_turn_ends_when_no_thread_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for a thread that computes, but not for one that sleeps."""
    stop, done = time.perf_counter() + 0.03, threading.Event()

    def compute() -> None:
        while time.perf_counter() < stop:
            hashlib.sha256(bytes(1 << 16))
        done.set()

    threading.Thread(target=compute).start()
    machine.wait_for_threads()
    assert done.is_set()
    sleeper, waits = threading.Event(), []
    threading.Thread(target=sleeper.wait).start()
    monkeypatch.setattr(machine, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    machine.wait_for_threads()
    sleeper.set()
    assert len(waits) < 100, "it gave up"


def test_benchmarks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first turn begins before all tests, the last ends after them, and each round of a benchmark has a turn."""
    calls: list[str] = []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            return lambda: calls.append(name)

    class Benchmark:
        def pedantic(self, function: Any, setup: Any, **_: Any) -> None:
            for _ in range(2):
                setup()
                function()

    monkeypatch.setattr(conftest, "TURNS", Recorder())
    monkeypatch.setattr(turns, "TURNS", Recorder())
    session: Any = SimpleNamespace(config=SimpleNamespace(getoption=lambda name: False))
    loop: Any = conftest.pytest_runtestloop(session)
    next(loop)
    turns.timed(Benchmark(), lambda: calls.append("round"))  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        loop.send(True)
    assert calls == ["take", "next", "round", "next", "round", "end"]
    loop = conftest.pytest_runtestloop(session)
    next(loop)
    with pytest.raises(KeyboardInterrupt):
        loop.throw(KeyboardInterrupt)
    assert calls[-1] == "end", "otherwise the other process would wait"


def test_benchmarks_run_as_cells_do(tmp_path: Path) -> None:
    """Timed benchmarks run with an allocator that keeps freed pages. The file has everything that times depend on."""
    file = tmp_path / "one.json"
    argv = [sys.executable, "-m", "pytest", "tests/benchmarks/test_speed.py", "-k", "crop_table", "--benchmark-enable"]
    argv += ["-p", "no:cacheprovider", "--benchmark-max-time=0.01", f"--benchmark-json={file}"]
    done = subprocess.run(argv, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    machine, here = json.loads(file.read_text())["machine_info"], environment()
    assert machine["cpu"] == {"brand_raw": here.cpu, "count": here.cores}
    assert (f"{machine['system']} {machine['machine']}", machine["python_version"]) == (here.system, here.python)
    packages = machine["packages"]
    kept = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    assert packages["allocator"] == ("glibc, freed pages kept" if kept else "default")
    assert {"threads", "torch", "torchvision", "timm", "numpy"} <= packages.keys()


def test_a_benchmark_that_fails(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure in the new tree only is a regression, with its first failing test. One in the base ends the gate."""
    broken = "SECONDS = 'slow'\n"
    (repository / "speed.py").write_text(broken)
    page = tmp_path / "g.md"
    assert gate.gate(["--base", "HEAD", "--select", "test_it", "--output", str(page)], repository) == REGRESSED
    assert re.search(
        r"Gate failed: regressed.* new: the benchmarks fail: FAILED .*test_it\.py::test_it", page.read_text()
    )
    commit(repository, "broken")
    with pytest.raises(UserError, match=r"base: the benchmarks fail: FAILED .*test_it"):
        gate.gate(["--base", "HEAD", "--select", "test_it"], repository)
    (repository / "tests" / "benchmarks" / "conftest.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match=r"new: the benchmarks fail: exit status 4: .*nothing_of_that_name"):
        gate.gate(["--base", "HEAD~1", "--select", "test_it"], repository)


def test_a_process_that_is_killed(repository: Path) -> None:
    """The message has the signal, since the output doesn't say why it ended."""
    (repository / "tests" / "benchmarks" / "conftest.py").write_text(
        "import os, signal\ndef pytest_sessionfinish():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    commit(repository, "killed")
    with pytest.raises(UserError, match=r"base: the benchmarks fail: signal 9"):
        gate.gate(["--base", "HEAD", "--select", "test_it"], repository)


def test_noise_may_pass(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With --pass-noise an undecided gate passes and says so, unless a benchmark is missing."""
    page = tmp_path / "g.md"

    def status(lost: bool, *words: str) -> int:
        machine = Machine(1.0, 0.5)

        def run_round(trees: dict[str, Tree], files: dict[str, Path], first: str, select: str) -> None:
            for side, file in files.items():
                machine.write(side, file)
                if lost and side == NEW:
                    data = json.loads(file.read_text())
                    file.write_text(json.dumps(data | {"benchmarks": data["benchmarks"][:2]}))

        monkeypatch.setattr(gate, "run_round", run_round)
        return gate.gate(["--base", "HEAD", "--rounds", "5", "--output", str(page), *words], repository)

    assert status(False) == INCOMPLETE
    assert status(False, "--pass-noise") == PASSED and "because of --pass-noise" in page.read_text()
    assert status(True, "--pass-noise") == INCOMPLETE and "because of --pass-noise" not in page.read_text()


def test_mistakes(repository: Path, tmp_path: Path) -> None:
    """An unknown commit, one without benchmarks, too few rounds and a useless rule each end in a message."""
    git(repository, "rm", "--quiet", "tests/benchmarks/conftest.py")
    commit(repository, "without")
    for words, message in (
        (["--base", "nowhere"], "--base nowhere: no such commit"),
        (["--base=--help"], "no such commit"),
        (["--base", "HEAD"], "that commit has no benchmarks"),
        (["--base", "HEAD", "--rounds", "2"], "must be at least 5"),
        (["--base", "HEAD", "--budget", "soon"], "--budget"),
        (["--base", "HEAD", "--rule", "x"], "must be like"),
        (["--base", "HEAD", "--rule", "epoch_seconds: max=9"], "only runs have epoch_seconds; benchmarks have seconds"),
    ):
        with pytest.raises(UserError, match=message):
            gate.gate(words, repository)


@pytest.mark.parametrize(("most", "looks"), [(5, 1), (6, 2), (10, 2), (12, 3), (20, 4)])
def test_the_error_rate_is_shared_among_all_looks(most: int, looks: int, tmp_path: Path) -> None:
    """The share doesn't depend on the number of rounds before the last look."""
    machine = Machine(1.0, 0.5)
    comparison, _, count = gate.rounds(TREES, tmp_path, machine, rules=[], most=most, budget=None)
    assert comparison.level == pytest.approx(0.01 / looks) and count == most


def test_a_benchmarks_source_is_all_that_it_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest covers its function, what that uses of its module and other modules of tests, but not docstrings."""
    monkeypatch.syspath_prepend(tmp_path)
    base = "SIZE = 1\ndef helper():\n    return SIZE\ndef other():\n    return 0\ndef bench():\n    return helper()\n"
    digests = []
    commented = base.replace("def bench():", 'def bench():\n    """All that it does."""  # and more')
    for number, text in enumerate(
        (base, base.replace("SIZE = 1", "SIZE = 2"), base.replace("return SIZE", "return -SIZE"), commented)
    ):
        (tmp_path / f"bench_{number}.py").write_text(text)
        digests.append(source_digest(importlib.import_module(f"bench_{number}").bench))
    assert digests[3] == digests[0] and len(set(digests[:3])) == 3
    step = source_digest(test_speed.test_step)
    real = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda value: "x = 1" if value is steps else real(value))
    assert source_digest(test_speed.test_step) != step
    monkeypatch.setattr(inspect, "getsource", real)
    assert source_digest(test_speed.test_step, ["mini"]) != step == source_digest(test_speed.test_step, ["benchmark"])


def test_a_benchmark_with_other_code_is_not_comparable(tmp_path: Path) -> None:
    """If a benchmark's source differs, its times measure something else."""

    made_up = Machine()

    def machine(trees: dict[str, Tree], files: dict[str, Path], first: str) -> None:
        made_up(trees, files, first)
        files[NEW].write_text(files[NEW].read_text().replace('"source": "s"', '"source": "other"'))

    _, decision, _ = gate.rounds(TREES, tmp_path, machine, rules=[], most=5, budget=None)
    assert decision.status == NOT_COMPARABLE and "source: s → other" in decision.reasons[0]


def test_one_environment_if_both_need_the_same_packages(repository: Path, tmp_path: Path) -> None:
    """The order of the packages doesn't matter, but their versions do."""
    other = tmp_path / "other"
    other.mkdir()
    for listed, same in (('["b", "a"]', True), ('["a", "b>=2"]', False)):
        (repository / "pyproject.toml").write_text('[project]\ndependencies = ["a", "b"]\n')
        (other / "pyproject.toml").write_text(f"[project]\ndependencies = {listed}\n")
        assert (gate.needs(other) == gate.needs(repository)) is same
    (other / "pyproject.toml").write_text('[project]\ndependencies = ["b", "a"]\n')
    assert gate.python_for(other, repository) == sys.executable


def test_an_environment_for_other_needs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees the packages of this environment, installs none of them twice, and needs no network."""
    base = tmp_path / "place" / "base"
    base.mkdir(parents=True)
    (base / "pyproject.toml").write_text('[project]\ndependencies = ["numpy>=1"]\n')
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "missing.txt"))
    python = gate.python_for(base, repository)
    assert python != sys.executable
    done = subprocess.run([python, "-c", "import numpy; print(numpy.__file__)"], capture_output=True, text=True)
    assert Path(done.stdout.strip()) == Path(np.__file__), done.stderr
