"""Tests that commands which only read don't import heavy libraries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tl
from tests.runs import record, write_run
from tl.sources import SOURCES

ROOT = Path(__file__).parent.parent
OPTIONAL = ("transformers", "keras", "tensorflow")
"""Packages that only some sources need."""
TORCH_SIDE = {"bench.execution.worker", "bench.execution.preloaded"}
"""Modules of `bench` that run in a cell's process, or in the server that it is forked from."""


def modules(package: str) -> list[str]:
    """All modules that users load. `bench.devtools`, which measures the suite itself, is left out."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if not name.endswith("__main__") and not name.startswith("bench.devtools")]


def loaded(*names: str) -> set[str]:
    """The modules that a process has after it imported these."""
    code = "\n".join(["import sys", *(f"import {name}" for name in names), "print(*sys.modules)"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_reading_commands_do_not_import_torch() -> None:
    """All of `bench` but the work itself, and `import tl`, leave torch and timm alone. So do the names of sources."""
    names = [source.names.partition(":")[0] for source in SOURCES.values() if source.names]
    found = loaded("tl", *names, *(name for name in modules("bench") if name not in TORCH_SIDE))
    assert "bench.cli.report" in found and not {"torch", "timm", "sklearn", *OPTIONAL} & found


def test_the_work_does_not_import_packages_of_single_sources() -> None:
    """A cell's process loads them if its backbone is of that source: the fork server would hold them for all others."""
    makers = [source.library.partition(":")[0] for source in SOURCES.values()]
    assert not {*OPTIONAL} & loaded("bench.execution.worker", *makers)


def test_no_module_needs_the_tests() -> None:
    """The packages that are installed don't have them."""
    sources = [*(ROOT / "bench").rglob("*.py"), *(ROOT / "tl").rglob("*.py")]
    assert len(sources) > 100
    needs = re.compile(r"^\s*(from|import) tests\b", re.MULTILINE)
    assert [str(path) for path in sources if needs.search(path.read_text(encoding="utf-8"))] == []


def test_every_public_name_of_tl_loads() -> None:
    """The names that load when they are first used are those of `__all__`."""
    assert set(tl.__all__) == set(tl._LAZY) and all(getattr(tl, name) is not None for name in tl.__all__)


def test_only_logistic_regression_needs_scikit_learn() -> None:
    """A cell's process doesn't load it before it fits such a head: the fork server would hold it for all others."""
    assert "sklearn" not in loaded("bench.execution.worker", "tl.fits", "tl.train")


READING = (
    *("--help", "list grids", "list regimes", "export r", "claims r", "report r"),
    *("compare r s", "gate r s --metric total_params"),
)


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Exit status and errors of each of these commands, in one process in which importing torch or timm is an error."""
    folder = tmp_path_factory.mktemp("reading")
    for name in ("r", "s"):
        write_run(folder / "results" / name, [record("timm:a", "finetune"), record("timm:a", "frozen")])
    code = (
        "import contextlib, io, json, sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, *_):\n"
        "        assert name.partition('.')[0] not in ('torch', 'timm', 'torchvision', 'sklearn'), name\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from bench.cli import main\n"
        "ended = {}\n"
        "for words in sys.argv[1:]:\n"
        "    sys.argv, err = ['bench', *words.split()], io.StringIO()\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):\n"
        "        try:\n"
        "            main()\n"
        "        except SystemExit as error:\n"
        "            ended[words] = [str(error.code), err.getvalue()]\n"
        "print(json.dumps(ended))\n"
    )
    command = [sys.executable, "-c", code, *READING]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("words", READING)
def test_reading_commands_run_without_torch(words: str, without_torch: dict[str, list[str]]) -> None:
    """Also what is imported on the way."""
    assert without_torch[words][0] == "0", without_torch[words][1]


def test_a_sweep_runs_without_scipy_and_pandas() -> None:
    """They take a second to load, and only `--until-decided`, reports and exports calculate with them."""
    found = loaded("bench.cli", "bench.sweep.run", "bench.execution.process")
    assert "bench.sweep.execute" in found and not {"scipy", "pandas", "matplotlib", "sklearn"} & found


def test_help_is_quick_to_load() -> None:
    """`--help` loads the command line, and no library that reads, checks or draws results."""
    heavy = ("pandas", "scipy", "sklearn", "matplotlib", "rich.progress", "pydantic", "numpy", "PIL")
    code = f"import sys, bench.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
