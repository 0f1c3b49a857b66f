"""The command line as a user types it, and small grids for it."""

from __future__ import annotations

import os
import subprocess
import sys

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
