"""Tests that commands which only read don't import heavy libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import record, write_run

ROOT = Path(__file__).parent.parent
TORCH_SIDE = {"bench.execution.worker"}
"""Modules of `bench` that run in a cell's process."""


def modules(package: str) -> list[str]:
    """All modules that users load. `bench.devtools`, which measures the suite itself, is left out."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if not name.endswith("__main__") and not name.startswith("bench.devtools")]


@pytest.mark.parametrize("heavy", ["torch", "timm"])
def test_reading_commands_do_not_import(heavy: str) -> None:
    """Neither `import tl` nor `bench`, apart from the worker, imports torch or timm."""
    names = ["tl", *(name for name in modules("bench") if name not in TORCH_SIDE)]
    imports = "\n".join(f"import {name}" for name in names)
    code = f"{imports}\nimport sys; assert {heavy!r} not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


READING = (
    *("--help", "list grids", "list regimes", "export r", "claims r", "report r"),
    *("compare r s", "gate r s --metric total_params"),
)


@pytest.mark.parametrize("words", READING)
def test_reading_commands_run_without_torch(words: str, tmp_path: Path) -> None:
    """Importing torch or timm is an error here, so that late imports are found too."""
    for name in ("r", "s"):
        write_run(tmp_path / "results" / name, [record("timm:a", "finetune"), record("timm:a", "frozen")])
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, *_):\n"
        "        assert name.partition('.')[0] not in ('torch', 'timm', 'torchvision'), name\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from bench.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_is_quick_to_load() -> None:
    """`--help` loads the command line, and no library that reads, checks or draws results."""
    heavy = ("pandas", "scipy", "matplotlib", "rich.progress", "pydantic", "numpy", "PIL")
    code = f"import sys, bench.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
