"""The command line as a user types it, and small grids for it."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

LIGHT = (sys.executable, "-c", "from tests.light import main; main()")
"""The command line with quick cells; see `tests.light`."""
ONE_CELL = (
    'dataset = "synthetic-mini"\n[matrix]\nbackbones = ["timm:test_resnet"]\nregimes = ["frozen"]\ndevices = ["cpu"]\n'
)
ONE = ["run", "--grid", "smoke", "--backbone", "timm:test_resnet", "--device", "cpu", "--weights", "random"]


def here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, where libraries are loaded already; its cells have their own processes."""
    from bench import cli

    out, err, collecting = io.StringIO(), io.StringIO(), gc.get_threshold()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["bench", *arguments])
        patch.setenv("MPLCONFIGDIR", str(Path(os.environ["TL_CACHE"]) / "matplotlib"))
        with pytest.raises(SystemExit) as ended:
            cli.main()
    gc.set_threshold(*collecting)
    assert isinstance(ended.value.code, int)
    return subprocess.CompletedProcess(["bench", *arguments], ended.value.code, out.getvalue(), err.getvalue())


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def light_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `LIGHT`'s command line in this process.

    Cells have the environment in which this process started its fork server.
    """
    from bench.execution.executors import EXECUTORS
    from bench.execution.process import PRELOAD
    from tests.light import LightExecutor

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EXECUTORS, "process", lambda address: LightExecutor(PRELOAD))
        return here(*arguments)


def light_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`light_here` with a cache in the working folder, since its names of backbones are not the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TL_CACHE", str(Path.cwd() / "cache"))
        return light_here(*arguments)
