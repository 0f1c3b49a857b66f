"""What a shell offers after Tab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import record, write_run
from tl.config import EXECUTIONS, PRECISIONS, PROTOCOLS
from tl.regimes import REGIMES
from tl.tasks import TASKS

PROGRAM = Path(sys.executable).parent / "tl-bench"


def offered(words: str) -> list[str]:
    """What bash gets for a command line, whose last word is not complete."""
    given = {"_TL_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": f"tl-bench {words}"}
    count = {"COMP_CWORD": str(len(words.split(" ")))}
    done = subprocess.run(
        [PROGRAM], env={**os.environ, **given, **count}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_names_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs, of grids, and of everything that has a table."""
    monkeypatch.chdir(tmp_path)
    for place in ("results/mine", "elsewhere/other"):
        write_run(Path(place), [record("timm:a", "frozen")])
    Path("my.toml").touch()
    assert offered("show m") == offered("claims m") == offered("compare m") == ["mine"]
    assert offered("show --results elsewhere o") == ["other"]
    assert offered("run --grid m") == ["my.toml"] and "default" in offered("run --grid ")
    assert set(offered("run --regime ")) == {*REGIMES, "all"}
    assert offered("run --regime frozen,fin") == ["frozen,finetune"], "the last of several"
    for option, names in (
        ("precision", PRECISIONS),
        ("execution", EXECUTIONS),
        ("protocol", PROTOCOLS),
        ("task", TASKS),
    ):
        assert set(offered(f"run --{option} ")) == set(names)
    assert "epoch_seconds" in offered("compare --metric ep")


def test_nothing_to_complete_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert offered("show a") == offered("run --regime zzz") == []


def test_names_that_no_shell_can_show_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line end would make two names of one."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a\nb", "a\x1b[31m"):
        write_run(Path("results") / name, [record("timm:a", "frozen")])
    assert offered("show a") == ["a"]


def test_the_program_installs_its_completion(tmp_path: Path) -> None:
    """Into the user's own files; `python -m bench` has no name that a shell could complete."""
    # The shell is an argument then; typer would look for the one that started this process.
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    given = {"env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([PROGRAM, "--install-completion", "bash"], **given)
    assert done.returncode == 0 and "tl-bench" in (tmp_path / ".bash_completions" / "tl-bench.sh").read_text()
    done = subprocess.run([sys.executable, "-m", "bench", "--install-completion", "bash"], **given)
    assert done.returncode == 2 and "No such option" in done.stderr
