"""The command line as a user types it, and small grids for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LIGHT = (sys.executable, "-c", "from tests.light import main; main()")
"""The command line with quick cells; see `tests.light`."""
ONE_CELL = (
    'dataset = "synthetic-mini"\n[matrix]\nbackbones = ["timm:test_resnet"]\nregimes = ["frozen"]\ndevices = ["cpu"]\n'
)
ONE = ["run", "--grid", "smoke", "--backbone", "timm:test_resnet", "--device", "cpu", "--weights", "random"]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def light_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `LIGHT` with a cache in the working folder, since its names of backbones are not the real ones."""
    root = Path(__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(root), "TL_CACHE": str(Path.cwd() / "cache")}
    return subprocess.run([*LIGHT, *arguments], capture_output=True, text=True, check=False, env=env)
