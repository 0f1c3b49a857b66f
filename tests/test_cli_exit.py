"""Exit statuses: 1 is a decision of a gate or a sweep, so no exception, no signal and no missing library ends in it."""

from __future__ import annotations

import compileall
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from bench import program
from bench.devtools import gate as timed_gate
from tests.commands import here
from tests.runs import record, write_run
from tl.errors import UserError


class Panic(BaseException):
    """As libraries written in Rust raise it: it is no `Exception`."""


PLANTED = [
    (ZeroDivisionError("x"), 2, "ZeroDivisionError: x: this is a bug in the suite"),
    (MemoryError(), 2, "out of memory"),
    (RecursionError("deep"), 2, "RecursionError: deep"),
    (ImportError("No module named 'scipy'"), 2, "No module named 'scipy': is everything installed"),
    (Panic("x"), 2, "Panic: x"),
    (SystemExit(1), 2, "sys.exit(1)"),
    (SystemExit("gone"), 2, "sys.exit('gone')"),
    (OSError(5, "Input/output error", "a.json"), 2, "error: a.json: Input/output error"),
    (UserError("wrong\nname"), 2, "error: wrong name"),
    (subprocess.CalledProcessError(1, ["git"]), 2, "returned non-zero exit status 1"),
    (EOFError("x"), 2, "EOFError: x: this is a bug in the suite"),
    (KeyboardInterrupt(), 130, "interrupted\n"),
    (BrokenPipeError(32, "Broken pipe"), 141, ""),
]


@pytest.mark.parametrize(("error", "status", "words"), PLANTED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    ("command", "function"),
    [
        (["gate", "a", "b"], "bench.compare.sides.read_sides"),
        (["gate", "a", "b"], "bench.compare.render.show"),
        (["compare", "a", "b"], "bench.compare.sides.read_sides"),
        (["show", "a"], "bench.report.summary.summarise"),
        (["list", "regimes"], "bench.sweep.choices.choices"),
    ],
    ids=["gate reads", "gate shows", "compare", "show", "list"],
)
def test_no_exception_is_a_decision(
    command: list[str], function: str, error: BaseException, status: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every exception has a status that says it, and one last line; a bug shows its traceback as well."""

    def fail(*_: object, **__: object) -> None:
        raise error

    for name in ("a", "b"):
        write_run(Path("results") / name, [record("timm:a", "frozen", seed=seed) for seed in range(3)])
    monkeypatch.setattr(function, fail)
    ran = here(*command)
    assert ran.returncode == status, ran.stderr
    assert words in ran.stderr
    known = UserError | OSError | SystemExit | ImportError | subprocess.CalledProcessError
    explained = status != 2 or isinstance(error, known)
    assert ("Traceback" in ran.stderr) is not explained and ran.stderr.count("error: ") == (status == 2)


def started(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m …` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "gate", "a", "b"],
        ["bench", "run"],
        ["bench.devtools.gate", "--base", "HEAD"],
        ["bench.devtools.counters"],
        ["bench.devtools.scale"],
    ],
    ids=lambda words: " ".join(words),
)
@pytest.mark.parametrize("line", ["raise ImportError('libx.so: gone')", "1 / 0"])
def test_a_library_that_cannot_be_imported(words: list[str], line: str, tmp_path: Path) -> None:
    """Python alone would end with 1, before any function of the suite runs."""
    (tmp_path / "pydantic.py").write_text(line)
    ran = started(*words, PYTHONPATH=f"{tmp_path}{os.pathsep}{Path(program.__file__).parent.parent}")
    assert ran.returncode == 2, ran.stderr
    assert re.search(r"^error: .*(libx\.so: gone|ZeroDivisionError)", ran.stderr.splitlines()[-1])


INTERRUPTED_AT = {
    "before the suite is there": ("subprocess", ["list", "regimes"]),
    "the command line": ("pydantic", ["list", "regimes"]),
    "a command": ("pandas", ["export", "r"]),
}


@pytest.mark.parametrize("where", INTERRUPTED_AT)
def test_ctrl_c_while_libraries_load(where: str, tmp_path: Path) -> None:
    """It ends in one line and the status of an interrupt, whatever is being imported."""
    module, words = INTERRUPTED_AT[where]
    write_run(Path("results") / "r", [record("timm:a", "frozen")])
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt")
    ran = started("bench", *words, PYTHONPATH=f"{tmp_path}{os.pathsep}{Path(program.__file__).parent.parent}")
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&- 2>&-", "2> >(true)"])
@pytest.mark.parametrize("module", ["tl", "subprocess"])
def test_the_first_message_that_nobody_reads(module: str, redirection: str, tmp_path: Path) -> None:
    """The suite can't be loaded and can't say so: the status says it all the same."""
    (tmp_path / f"{module}.py").write_text("import sys\nsys.exit(1)" if module == "subprocess" else "")
    shell = ["bash", "-c", f'"$@" {redirection}', "-", sys.executable, "-m", "bench", "gate", "a", "b"]
    place = f"{tmp_path}{os.pathsep}{Path(program.__file__).parent.parent}"
    ran = subprocess.run(
        shell, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": place}, cwd="/"
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", "")


DAMAGED = ["bench/program", "bench/cli/app", "bench/cli/list", "tl/errors", "tl/regimes"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the suite with its compiled files."""
    root, place = Path(program.__file__).parent.parent, tmp_path_factory.mktemp("installed")
    for package in ("bench", "tl"):
        shutil.copytree(root / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(place / package, quiet=2)
    return place


@pytest.mark.parametrize("module", DAMAGED)
@pytest.mark.parametrize("kind", ["compiled", "half", "zeros", "empty"])
def test_a_damaged_file_of_the_suite_is_one_line(module: str, kind: str, installed: Path) -> None:
    """As a disk that was full during an installation leaves it. The line names the file, or who imports it."""
    path = installed / f"{module}.py"
    if kind == "compiled":
        path = Path(cache_from_source(str(path)))
    intact = path.read_bytes()
    damaged = {"half": intact[: len(intact) // 2] + b"(", "zeros": bytes(100), "compiled": intact[:300]}
    path.write_bytes(damaged.get(kind, b""))
    try:
        ran = started("bench", "list", "regimes", PYTHONPATH=str(installed))
    finally:
        path.write_bytes(intact)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1), ran.stderr
    named = path.name if kind in ("compiled", "half") else str(installed)
    assert ran.stderr.startswith("error: ")
    assert (kind, module) == ("empty", "bench/cli/list") or named in ran.stderr


@pytest.mark.parametrize("kind", ["compiled", "half"])
def test_a_damaged_file_that_only_cells_load_is_one_line(kind: str, installed: Path, tmp_path: Path) -> None:
    """The server that they are forked from meets it first, and ends neither with a traceback nor without a word."""
    path = installed / "bench" / "execution" / "worker.py"
    path = Path(cache_from_source(str(path))) if kind == "compiled" else path
    intact = path.read_bytes()
    path.write_bytes(intact[: len(intact) // 2] + b"(")
    try:
        ran = started("bench", "list", "backbones", PYTHONPATH=str(installed), TL_CACHE=str(tmp_path / "cache"))
    finally:
        path.write_bytes(intact)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1), ran.stderr
    assert f"the libraries of networks can't be loaded: {path}" in ran.stderr and ": damaged: " in ran.stderr


SHADOWS = sorted({*sys.stdlib_module_names, "numpy", "pydantic", "tl", "torch"})
RUN = [
    "run",
    "--grid",
    "smoke",
    "--backbone",
    "quick0",
    "--regime",
    "frozen",
    "--data",
    "synthetic-mini",
    "--no-report",
]


def test_files_of_the_working_folder_replace_no_module(tmp_path: Path) -> None:
    """Neither here nor in the processes of cells: a user may keep a `tl.py` or `json.py` beside the images."""
    light = [sys.executable, "-c", "import sys; sys.path.remove(''); from tests.light import main; main()", *RUN]
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("import sys\nsys.exit(1)\n")
    for words in (["list", "regimes"], ["gate", "nowhere", "b"]):
        ran = started("bench", *words)
        assert (ran.returncode, ran.stderr.count("\n")) == ((0, 0) if words[0] == "list" else (2, 1)), ran.stderr
    cache = {**os.environ, "TL_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parent.parent)}
    ran = subprocess.run([*light, "--no-report"], env=cache, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "done in" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.parametrize("before", [True, False])
def test_an_empty_entry_of_the_path_is_not_the_working_folder(before: bool, tmp_path: Path) -> None:
    """`PYTHONPATH=$PYTHONPATH:folder` has one where the variable was empty. A folder that is named is meant."""
    (tmp_path / "psutil.py").write_text("open('imported', 'w')\nraise ImportError('psutil of the working folder')")
    suite, light = str(Path(__file__).parent.parent), "from tests.light import LightExecutor, main"
    place = f"{os.pathsep}{suite}" if before else f"{suite}{os.pathsep}"
    ran = started("bench", "list", "regimes", PYTHONPATH=place)
    assert (ran.returncode, ran.stderr) == (0, "")
    (tmp_path / "script.py").write_text(
        f"import sys\nhere = {str(tmp_path)!r}\nsys.path[:] = [p for p in sys.path if p not in ('', here)]\n{light}\n"
        "if __name__ == '__main__':\n    outcome = LightExecutor().call('get_ready')\n    print(outcome.status)\n"
    )
    ran = subprocess.run(
        [sys.executable, "script.py"],
        env={**os.environ, "PYTHONPATH": place},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("done\n", "") and not (tmp_path / "imported").exists()
    named = started("bench", "list", "regimes", PYTHONPATH=f"{tmp_path}{os.pathsep}{place}")
    assert named.returncode == 2 and "psutil of the working folder" in named.stderr


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tl.py": "x = 1"}, "tl.py is imported as tl, which is a package of the suite; rename it, or take it off"),
        ({"tl/__init__.py": ""}, "__init__.py is imported as tl, which is a package of the suite"),
        ({"subprocess.py": "import sys\nsys.exit(1)"}, "SystemExit: 1 (raised in "),
        ({"subprocess.py": "x ="}, "SyntaxError: invalid syntax (subprocess.py, line 1)"),
    ],
)
def test_a_file_that_replaces_a_module_is_named(files: dict[str, str], said: str, tmp_path: Path) -> None:
    """`PYTHONPATH` is what the user says. Not even what happens before `bench.program` is there ends with 1."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    ran = started("bench", "gate", "a", "b", PYTHONPATH=f"{tmp_path}{os.pathsep}{Path(program.__file__).parent.parent}")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1), ran.stderr
    assert ran.stderr.startswith("error: the suite can't be loaded: ") and said in ran.stderr


@pytest.mark.parametrize("words", [["gate", "nowhere", "b"], ["gate", "a", "b"]])
def test_a_message_that_nobody_reads(words: list[str]) -> None:
    """A closed or full standard error doesn't change the status. Without standard output nobody sees a decision."""
    for name, seconds in (("a", 1), ("b", 2)):
        write_run(Path("results") / name, [record("timm:a", "frozen", seed=seed, seconds=seconds) for seed in range(3)])
    expected = 1 if words[1] == "a" else 2
    for redirection in ("2>/dev/full", "2> >(true)", ">&- 2>&-"):
        script = f'"$@" {redirection}'
        ran = subprocess.run(
            ["bash", "-c", script, "-", sys.executable, "-m", "bench", *words], capture_output=True, check=False
        )
        assert ran.returncode == (2 if ">&-" in redirection else expected), (redirection, ran)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_are_no_decision(number: signal.Signals, tmp_path: Path) -> None:
    """The status is that of an interrupt, or of the signal itself."""
    script = tmp_path / "slow_metric.py"
    script.write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "bench", "gate", "a", "b", "--plugin", str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "loading\n"
        time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number), errors


@pytest.mark.parametrize("status", ["", "0", "1", "'text'"])
def test_a_plugin_cannot_decide(status: str, tmp_path: Path) -> None:
    """A script that ends the process would make a gate pass or fail."""
    for name in ("a", "b"):
        write_run(Path("results") / name, [record("timm:a", "frozen", seed=seed) for seed in range(3)])
    script = tmp_path / f"ends_{status.strip(chr(39))}.py"
    script.write_text(f"import sys\nsys.exit({status})\n")
    ran = here("gate", "a", "b", "--plugin", str(script))
    assert ran.returncode == 2 and "SystemExit" in ran.stderr and ran.stderr.count("\n") == 1


def test_no_memory_for_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the traceback can't be printed, the status is that of an error."""

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(program.traceback, "print_exc", full)
    monkeypatch.setattr(program.traceback, "print_exception", full)
    for failing in (lambda: 1 // 0, full):
        with pytest.raises(SystemExit) as caught:
            program.end(failing)  # type: ignore[arg-type]
        assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        program._uncaught(MemoryError, MemoryError(), None)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("status", "words", "newly"),
    [
        (1, "FAILED tests/benchmarks/test_speed.py::test_step", True),
        (2, "ERROR tests/benchmarks/test_speed.py - SyntaxError", True),
        (2, "exit status 2: !!! KeyboardInterrupt !!!", False),
        (3, "exit status 3: INTERNALERROR> OSError: No space left on device", False),
        (4, "exit status 4: unknown option", False),
        (5, "exit status 5: no tests ran", False),
        (-signal.SIGSEGV, "signal 11", True),
        (-signal.SIGABRT, "signal 6", True),
        (-signal.SIGKILL, "signal 9", False),
        (-signal.SIGTERM, "signal 15", False),
    ],
)
def test_which_ends_of_benchmarks_are_failures_of_the_code(status: int, words: str, newly: bool) -> None:
    """A process that was ended from outside, or pytest's own error, is no regression."""
    assert timed_gate._code_fails(status, words) is newly
