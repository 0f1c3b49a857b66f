"""Bad input to the command line ends in one clear line and exit status 2, and nothing is written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ONE, command, here
from tests.images import write_folder
from tests.runs import record, write_run


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
    "epochs text": ([*ONE, "--epochs", "many"], "(given: 'many')"),
    "batch size": ([*ONE, "--batch-size", "0"], "batch_size=0"),
    "seeds": ([*ONE, "--seeds", "0"], "seeds=0"),
    "protocol": ([*ONE, "--protocol", "k-fold"], "protocol='k-fold': not one of fixed, tuned, kfold; did you mean"),
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
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """Not even a short output that Python would write only when it ends."""
    write_run(tmp_path / "results" / "r", [record("timm:a", "frozen")])
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "bench", "show", "r"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
