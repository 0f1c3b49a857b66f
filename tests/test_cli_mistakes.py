"""Bad input to the command line ends in one clear line and exit status 2, and nothing is written."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bench
import tl
from bench.sweep.doctor import examine
from bench.sweep.grid import load_grid
from bench.sweep.plan import run_name
from tests.commands import ONE, command, here
from tests.images import write_folder
from tests.runs import record, write_run
from tl import hymenoptera
from tl.cache import cache_dir
from tl.errors import ConfigError


def _set_with(tmp_path: Path, spoil) -> str:
    root = write_folder(tmp_path / "set")
    spoil(root)
    return str(root)


BAD = {
    "grid": (["run", "--grid", "defualt"], "did you mean 'default'"),
    "backbone": ([*ONE, "--backbone", "resnet81"], "near matches: resnet18"),
    "ambiguous backbone": ([*ONE, "--backbone", "resnet18"], "say torchvision:resnet18 or timm:resnet18"),
    "regime": ([*ONE, "--regime", "frozn"], "did you mean 'frozen'"),
    "device": ([*ONE, "--device", "tpu"], "device='tpu': not on this machine, which has"),
    "epochs": ([*ONE, "--epochs", "0"], "epochs=0"),
    "setting": ([*ONE, "--set", "fodl=true"], "fodl: unknown key; nearest valid key: 'fold'"),
    "setting without a value": ([*ONE, "--set", "fold"], "--set 'fold': must be NAME=VALUE"),
    "setting with several values": ([*ONE, "--set", "fold=true,false"], "fold must have one value"),
    "setting twice": ([*ONE, "--epochs", "2", "--set", "epochs=3"], "--set 'epochs=3': epochs is given twice"),
    "precision": ([*ONE, "--precision", "fp8"], "precision='fp8': not one of"),
    "epochs text": ([*ONE, "--epochs", "many"], "(given: 'many')"),
    "batch size": ([*ONE, "--batch-size", "0"], "batch_size=0"),
    "seeds": ([*ONE, "--seeds", "0"], "seeds=0"),
    "protocol": ([*ONE, "--protocol", "k-fold"], "protocol='k-fold': not one of fixed, tuned, kfold; did you mean"),
    "execution": ([*ONE, "--execution", "fast,plane"], "execution='plane': not one of fast, plain; did you mean"),
    "weights": ([*ONE, "--weights", "best"], "weights='best': not one of auto, pretrained, random"),
    "weights dir": ([*ONE, "--weights-dir", "nowhere"], "no such folder"),
    "executor": ([*ONE, "--executor", "rai"], "executor='rai': not one of process, inline, ray; did you mean 'ray'?"),
    "address": ([*ONE, "--ray-address", "auto"], "--ray-address 'auto' needs --executor ray"),
    "memory": ([*ONE, "--memory-limit", "plenty"], "--memory-limit 'plenty' must be a size of at least 1MiB"),
    "little memory": ([*ONE, "--memory-limit", "512"], "must be a size of at least 1MiB"),
    "inline memory": ([*ONE, "--executor", "inline", "--memory-limit", "1GiB"], "executor 'inline' can't end a cell"),
    "timeout": ([*ONE, "--timeout", "0"], "--timeout 0 must be a number of seconds above 0"),
    "endless timeout": ([*ONE, "--timeout", "inf"], "--timeout inf must be"),
    "no timeout": ([*ONE, "--timeout", "nan"], "--timeout nan must be"),
    "reports": ([*ONE, "--reports", "file.txt/reports"], "can't be written"),
    "run folder": ([*ONE, "--out", ".", "--name", "file.txt"], "can't be written"),
    "inline timeout": ([*ONE, "--executor", "inline", "--timeout", "5"], "inline"),
    "name": ([*ONE, "--name", "../x"], "must be a plain name"),
    "data": ([*ONE, "--data", "nowhere"], "no such folder"),
    "out": ([*ONE, "--out", "file.txt/results"], "can't be written"),
    "option": ([*ONE, "--epoch", "3"], "--epoch"),
    "run": (["report", "nowhere"], "no such run"),
    "export": (["export", "nowhere"], "no such run"),
    "format": (["export", "nowhere", "--format", "xls"], "xls"),
    "axis": (
        ["compare", "nowhere", "--by", "fruit"],
        "Invalid value for '--by': 'fruit' is not one of 'run', 'regime'",
    ),
    "list": (["list", "fruits"], "fruits"),
    "list text": (["list", "regimes", "zzz"], "no name contains"),
    "command": (["runn"], "runn"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case: str, tmp_path: Path) -> None:
    """It ends in exit status 2 and one line on standard error without a traceback, and writes nothing."""
    (tmp_path / "file.txt").write_text("")
    arguments, message = BAD[case]
    for way in (here, command) if case in ("grid", "option") else (here,):
        done = way(*arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "train"), "has no folder train/"),
        (lambda root: [shutil.rmtree(root / s / "b") for s in ("train", "val")], "at least 2 are needed"),
        (lambda root: shutil.rmtree(root / "val" / "b"), "different classes"),
        (lambda root: [p.unlink() for p in (root / "val" / "b").iterdir()], "class 'b' has no images"),
        (lambda root: (root / "val/b/1.jpg").write_bytes(b"\xff\xd8"), "val/b/1.jpg: can't be decoded"),
    ],
    ids=["no train", "one class", "other classes", "empty class", "damaged image"],
)
def test_a_bad_folder_is_refused_before_training(tmp_path: Path, spoil, message: str) -> None:
    """It ends in one line, and no results folder is made."""
    done = here(*ONE, "--data", _set_with(tmp_path, spoil))
    assert done.returncode == 2 and message in done.stderr, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists() and not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("protocol", "message"),
    [("kfold", "folds=5: class 'a' has 4 images"), ("tuned", "class 'a' has 1 training image; at least 2 are needed")],
)
def test_too_few_images_for_a_protocol_are_refused_before_training(tmp_path: Path, protocol: str, message: str) -> None:
    """It ends in one line, and no results folder is made."""
    data = write_folder(tmp_path / "set", train=1, val=3)
    done = here(*ONE, "--data", str(data), "--protocol", protocol)
    assert done.returncode == 2 and message in done.stderr, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists() and not (tmp_path / "reports").exists()


NO_HOME = """
import os, pwd, sys

def gone(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = gone
for name in ("HOME", "TL_CACHE", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
from bench.cli import main
main()
"""


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--help"], 0, ""),
        (["show", "r"], 0, ""),
        (["list", "backbones"], 2, "error: this user has no home folder for the cache; set TL_CACHE to a folder\n"),
    ],
)
def test_a_user_without_a_home(words: list[str], status: int, message: str, tmp_path: Path) -> None:
    """What needs no cache works, and the rest is one line. No folder named `~` is made."""
    write_run(tmp_path / "results" / "r", [record("timm:a", "frozen")])
    done = subprocess.run([sys.executable, "-c", NO_HOME, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]


@pytest.mark.parametrize("size", ["0", "-5", "5", "", "wide", "²", "1" * 5000, str(10**12)])
@pytest.mark.parametrize("words", [["show", "r"], ["list", "regimes"], ["--help"]], ids=lambda words: words[0])
def test_a_size_that_no_terminal_has_is_unknown(
    words: list[str], size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed is what is printed without it: rich would print nothing for no columns."""
    write_run(tmp_path / "results" / "r", [record("timm:a", "frozen")])
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    usual = here(*words)
    monkeypatch.setenv("COLUMNS", size)
    monkeypatch.setenv("LINES", size)
    done = here(*words)
    assert (done.returncode, done.stdout, done.stderr) == (0, usual.stdout, "") and len(usual.stdout) > 100


NO_CACHE = {
    "a file": ("file", "the cache 'file' can't be used: file is a regular file; set TL_CACHE to a folder"),
    "below a file": (
        "file/a/b",
        "the cache 'file/a/b' can't be used: file is a regular file; set",
    ),
    "links in a circle": (
        "loop",
        "the cache 'loop' can't be used: Too many levels of symbolic links; set",
    ),
    "below such links": ("loop/a", "the cache 'loop/a' can't be used: Too many levels of symbolic links; set"),
    "a broken link": (
        "gone",
        "the cache 'gone' can't be used: gone is a link that leads to nothing; set",
    ),
    "a long name": ("x" * 5000, "x' can't be used: File name too long; set TL_CACHE to a folder"),
    "no such user": ("~nosuchuser/x", "TL_CACHE='~nosuchuser/x': there is no such user, or no home folder"),
}


@pytest.mark.parametrize("case", NO_CACHE)
@pytest.mark.parametrize(
    "words", [[*ONE, "--data", "set"], ["list", "backbones"], ["doctor"]], ids=lambda words: words[0]
)
def test_a_cache_that_is_no_folder_is_found_first(
    words: list[str], case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says so before anything runs, and `doctor` says it among the rest."""
    write_folder(tmp_path / "set")
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    cache, message = NO_CACHE[case]
    monkeypatch.setenv("TL_CACHE", cache)
    if words == ["doctor"]:
        monkeypatch.setattr("bench.sweep.doctor.make_executor", lambda name: pytest.fail("no devices"))
        with pytest.raises(pytest.fail.Exception), contextlib.redirect_stdout(io.StringIO()) as out:
            examine()
        assert "!! cache: " in out.getvalue() and message in out.getvalue()
    else:
        done = here(*words)
        assert done.returncode == 2 and done.stdout == "", done.stdout
        assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def _read_only(**arguments: Path) -> None:
    raise OSError(30, "Read-only file system")


def test_a_cache_that_cannot_be_written_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has can still be used, so a folder that exists is no reason to refuse."""
    write_folder(tmp_path / "set")
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("tl.cache.tempfile.TemporaryFile", _read_only)
    monkeypatch.setenv("TL_CACHE", "cache")
    done = here(*ONE, "--data", "set", "--dry-run")
    said = "cache can't be written: Read-only file system"
    assert done.returncode == 0 and done.stdout.startswith(f"WARNING: the cache {said}; what it lacks, such as decoded")
    monkeypatch.setenv("TL_CACHE", "cache/below")
    done = here(*ONE, "--data", "set", "--dry-run")
    assert done.returncode == 2 and "the cache 'cache/below' can't be used: Read-only file system" in done.stderr


def test_a_report_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib, which would keep its list of fonts there, prints nothing, and no file of it is left."""
    write_run(tmp_path / "results" / "r", [record("timm:a", "frozen")])
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "temporary").mkdir()
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    done = command("report", "r", "--no-images", TL_CACHE="loop", TMPDIR=str(tmp_path / "temporary"))
    assert (done.returncode, done.stderr) == (0, "") and list((tmp_path / "temporary").iterdir()) == []


def test_a_home_is_expanded_where_a_shell_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would otherwise be a folder named `~`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_folder(tmp_path / "home" / "set")
    write_run(tmp_path / "home" / "runs" / "r", [record("timm:a", "frozen")])
    monkeypatch.setenv("TL_CACHE", "~/cache")
    assert cache_dir() == tmp_path / "home" / "cache"
    monkeypatch.setenv("TL_CACHE", str(cache_dir()))  # where `here` also has matplotlib's files
    monkeypatch.setenv("TL_DATA", "~/set")
    assert hymenoptera.find(download=False) == tmp_path / "home" / "set"
    assert tl.load_splits("~/set").root == tmp_path / "home" / "set"
    assert bench.Run("r", "~/runs").folder == tmp_path / "home" / "runs" / "r"
    assert len(bench.load_results("~/runs/r")) == 1
    with pytest.raises(ConfigError, match="results='~nosuchuser': there is no such user"):
        bench.load_results("r", "~nosuchuser")
    assert run_name(load_grid("smoke"), "~", "auto", {}) == "smoke-home"
    assert here("export", "r", "--results=~/runs", "--output=~/r.csv").returncode == 0
    assert here("report", "r", "--results=~/runs", "--reports=~/pages", "--no-images").returncode == 0
    for option in ("--weights-dir", "--results", "--reports", "--plugin", "--data", "--grid"):
        done = here(*ONE, f"{option}=~nosuchuser/x.toml", "--dry-run")
        assert done.returncode == 2 and "~nosuchuser/x.toml': there is no such user" in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert {"r.csv", "pages"} < {path.name for path in (tmp_path / "home").iterdir()}


@pytest.mark.parametrize("words", [["show", "r"], ["export", "r"], ["gate", "r", "s"], ["--help"]])
def test_a_reader_that_has_gone_decides_nothing(words: list[str], tmp_path: Path) -> None:
    """Exit status 1 would say that a gate found a regression. It ends without a word, as `head` expects."""
    for name in ("r", "s"):
        write_run(tmp_path / "results" / name, [record("timm:a", "frozen", seed=seed) for seed in range(3)])
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command_line = [sys.executable, "-m", "bench", *words]
        done = subprocess.run(command_line, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["show", "r"], ["export", "r"], ["list", "regimes"], ["--help"]])
@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        (">/dev/full", "No space left on device"),
        (">&-", "Bad file descriptor"),
        (">part.txt", "File too large"),
    ],
)
def test_output_that_cannot_be_written_is_one_line(
    words: list[str], redirection: str, said: str, tmp_path: Path
) -> None:
    """It says that standard output is meant, even for a short output that Python would write only when it ends."""
    write_run(tmp_path / "results" / "r", [record("timm:a", "frozen")])
    (tmp_path / "part.txt").write_bytes(bytes(4096))
    limit = "ulimit -f 4; " if "part" in redirection else ""
    script = f'{limit}exec "$@" {redirection.replace(">part", ">>part")}'
    shell = ["bash", "-c", script, "-", sys.executable, "-m", "bench", *words]
    done = subprocess.run(shell, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: standard output: ") and said in done.stderr


@pytest.mark.parametrize("words", [["run", "--grid", "smoke", "--weights", "random"], ["report", "--index"]])
def test_a_working_folder_that_has_been_deleted(words: list[str], tmp_path: Path) -> None:
    """The system's own message has no name in it."""
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    shell = ["bash", "-c", script, "-", sys.executable, "-m", "bench", *words]
    done = subprocess.run(shell, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"the working folder {tmp_path / 'gone'} has been deleted; change to one that exists" in done.stderr


@pytest.mark.parametrize("option", ["--results", "--reports"])
@pytest.mark.parametrize("place", ["dangling", "dangling/deep", "circle"])
def test_a_link_that_leads_nowhere_is_no_place_to_write(option: str, place: str, tmp_path: Path) -> None:
    """It is told before anything is written, and so is a report over it."""
    (tmp_path / "dangling").symlink_to("nowhere/deep")
    (tmp_path / "circle").symlink_to("circle")
    before = sorted(tmp_path.iterdir())
    for more in ((), ("--wait",)):
        done = here(*ONE, "--data", "synthetic-mini", option, place, *more)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert f"can't be written: {place.partition('/')[0]} is a link that leads nowhere (" in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_a_long_name_is_shortened(tmp_path: Path) -> None:
    """The line shows its beginning and its end, where a path has its name."""
    for command_name in ("show", "export", "claims"):
        done = here(command_name, f"{'x/' * 500}name.json")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and len(done.stderr) < 600, done.stderr
        assert done.stderr.startswith("error: x/x/x/") and "/name.json: no such run" in done.stderr
