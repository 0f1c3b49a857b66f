"""Tests entries that packages (entry points) and scripts (`--plugin`) add."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.execution.discovery import backbone_names
from bench.execution.executors import make_executor
from tests.commands import command
from tests.runs import record, write_run
from tl import plugins
from tl.errors import ConfigError

LIBRARY = """
import torch
from torch import nn

from tl.batches import Preprocessing
from tl.library import Library
from tl.weights import Checkpoint


def _load(name, weights):
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1000))


def _cut(module):
    layer = module[4]
    module[4] = nn.Identity()
    return layer, layer.in_features


LIBRARY = Library(
    names=lambda: ["pooled", "pooled.again"],
    checkpoint=lambda name: Checkpoint(
        label=name, file_names=(name,), bundled_as="", cached=lambda: None, download=lambda: None, url=""
    ),
    preprocessing=lambda name: Preprocessing(
        size=16, resize=18, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear"
    ),
    classes=lambda name: 1000,
    load=_load,
    cut=_cut,
)
"""
SOURCE = "from tl.sources import Source\n\nSOURCE = Source(packages=(), library='{module}:LIBRARY')\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an installed package that has a source. All processes that a test starts have it on their path."""
    site = tmp_path / "site"
    info = site / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tl.sources]\nmine = mine_source:SOURCE\n")
    (site / "mine_source.py").write_text(SOURCE.format(module="mine_library"))
    (site / "mine_library.py").write_text(LIBRARY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    return site


def test_a_package_adds_a_source(package: Path) -> None:
    """Its networks are listed, trained and reported like any other's, in a cell's process too."""
    listed = command("list", "backbones", "pooled")
    assert listed.returncode == 0 and "mine:pooled" in listed.stdout, listed.stderr
    words = ["--grid", "smoke", "--backbone", "mine:pooled", "--regime", "frozen", "--weights", "random"]
    done = command("run", *words, "--device", "cpu", "--name", "r", "--no-report")
    assert done.returncode == 0 and "done in" in done.stdout, done.stdout + done.stderr


def test_the_cached_names_are_those_of_all_sources(package: Path) -> None:
    """A new version of a package with entry points makes the list of names new, even if no library changed."""
    assert command("list", "backbones", "pooled").returncode == 0
    more = (package / "mine_library.py").read_text().replace('"pooled.again"', '"pooled.again", "pooled.third"')
    (package / "mine_library.py").write_text(more)
    (package / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.1\n")
    assert "mine:pooled.third" in command("list", "backbones", "pooled").stdout


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("mine = nowhere:SOURCE", "can't be loaded: ModuleNotFoundError"),
        ("mine = mine_library:LIBRARY", "is a Library, not a Source"),
        ("timm = mine_source:SOURCE", "the name is taken; taken are torchvision, timm"),
    ],
)
def test_a_bad_entry_point_is_one_line(package: Path, points: str, message: str) -> None:
    """The error names the entry point, and the exit status is that of a usage error."""
    (package / "mine-1.0.dist-info" / "entry_points.txt").write_text(f"[tl.sources]\n{points}\n")
    done = command("list", "backbones", "pooled")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_script_adds_a_source(tmp_path: Path) -> None:
    """This command and its cells' processes have the script's entries, and no other command has them."""
    script = tmp_path / "my_source.py"
    script.write_text(
        "from tl.sources import SOURCES, Source\n\n"
        "SOURCES['script'] = Source(packages=(), library='my_source_library:LIBRARY')\n"
    )
    (tmp_path / "my_source_library.py").write_text(LIBRARY)  # it finds its neighbours
    words = ["--grid", "smoke", "--backbone", "script:pooled", "--regime", "frozen", "--weights", "random"]
    words += ["--device", "cpu", "--name", "r", "--no-report"]
    done = command("run", *words, "--plugin", script.name)
    assert done.returncode == 0 and "done in" in done.stdout, done.stdout + done.stderr
    without = command("run", *words, "--fresh")
    assert without.returncode == 2 and "unknown source 'script'" in without.stderr


PLUGIN = """
import torch

from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.metrics import METRICS, Metric
from tl.regimes import REGIMES, Regime, Trainable

REGIMES["norms"] = Regime(
    summary="the head and all BatchNorm layers are trained",
    start="pretrained",
    trainable=Trainable(
        head=True, backbone=lambda net: [part for part in net.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    ),
)
METRICS["losses_seen"] = Metric(
    label="losses", unit="count", value=lambda cell: len(cell.result.epochs), meaning="epochs with a loss"
)
CLAIMS["norms-cheaper"] = Claim(
    name="norms-cheaper", statement="Norms alone are cheaper", metric="epoch_seconds", regime="norms", low=1.01
)
"""


def test_a_script_adds_a_regime_a_metric_and_a_claim(tmp_path: Path) -> None:
    """Every command with the script has all three. Without it, its runs are still sound, and commands say so."""
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    plugin = ("--plugin", "my_plugin.py")
    words = ["--grid", "smoke", "--backbone", "timm:test_resnet", "--regime", "norms", "--regime", "finetune"]
    words += ["--weights", "random", "--device", "cpu", "--seeds", "1", "--name", "r", "--no-report"]
    done = command("run", *words, *plugin)
    assert done.returncode == 0 and done.stdout.count("done in") == 2, done.stdout + done.stderr
    exported = command("export", "r", *plugin)
    assert "losses_seen" in exported.stdout.splitlines()[0]
    assert "norms-cheaper" in command("claims", "r", *plugin).stdout
    records = {path: path.read_bytes() for path in (tmp_path / "results" / "r" / "cells").iterdir()}
    for without in (["show", "r"], ["run", *words[:4], "--weights", "random", "--device", "cpu", "--name", "r"]):
        refused = command(*without)
        assert refused.returncode == 2 and "unknown regime 'norms'" in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") == 1 and "--plugin" in refused.stderr
    assert {path: path.read_bytes() for path in records} == records, "nothing is set aside as damaged"


def test_entries_that_fail_fail_again(package: Path) -> None:
    """A notebook that goes on after the error doesn't silently work without the entries."""
    (package / "mine-1.0.dist-info" / "entry_points.txt").write_text("[tl.sources]\nmine = nowhere:SOURCE\n")
    code = (
        "import tl\nfor _ in 1, 2:\n    try:\n        tl.REGIMES\n    except Exception as error:\n        print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("can't be loaded: ModuleNotFoundError") == 2, done.stdout


def test_a_script_on_the_path_by_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is on Python's path through a link: it is the same module."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "my_plugin.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "link"), os.environ.get("PYTHONPATH", "")]))
    done = command("list", "regimes", "--plugin", "real/my_plugin.py")
    assert done.returncode == 0, done.stderr


GROUPS = {
    "tl.regimes": ("my_entries:REGIME", ["list", "regimes"], "mine"),
    "bench.metrics": ("my_entries:METRIC", ["export", "r"], "mine"),
    "bench.claims": ("my_entries:CLAIM", ["claims", "r"], "mine"),
}
ENTRIES = """
from bench.analysis.claims import Claim
from bench.analysis.metrics import Metric
from tl.regimes import HEAD, Regime

REGIME = Regime(summary="mine", start="pretrained", trainable=HEAD)
METRIC = Metric(label="mine", unit="count", value=lambda cell: 1, meaning="one")
CLAIM = Claim(name="mine", statement="Mine", metric="epoch_seconds", regime="frozen", low=1.0)
"""


@pytest.mark.parametrize("group", GROUPS)
def test_a_package_adds_an_entry(group: str, package: Path) -> None:
    """Each registry has an entry point, and the command that shows the registry has its entry."""
    write_run(Path("results/r"), [record("timm:a", "finetune"), record("timm:a", "frozen")])
    target, words, seen = GROUPS[group]
    (package / "my_entries.py").write_text(ENTRIES)
    (package / "mine-1.0.dist-info" / "entry_points.txt").write_text(f"[{group}]\nmine = {target}\n")
    done = command(*words)
    assert done.returncode == 0 and seen in done.stdout, done.stdout + done.stderr


TABLES = {
    "METRICS": "from bench.analysis.metrics import METRICS as table, Metric as entry",
    "CLAIMS": "from bench.analysis.claims import CLAIMS as table",
    "REGIMES": "from tl.regimes import REGIMES as table",
    "SOURCES": "from tl.sources import SOURCES as table",
}
WRONG = {
    "METRICS['x']: must be a Metric, but is of type int": "entry = 5",
    "METRICS['x']: must be a Metric, but is of type type": "",
    "CLAIMS['x']: must be a Claim, but is of type dict": "entry = {}",
    "REGIMES['x']: must be a Regime, but is of type str": "entry = 'frozen'",
    "SOURCES['x']: must be a Source, but is of type NoneType": "entry = None",
    "METRICS[5]: the name of an entry must be a text": "name, entry = 5, table['epoch_seconds']",
}


@pytest.mark.parametrize("said", WRONG)
def test_an_entry_of_another_kind_is_refused_by_name(said: str, tmp_path: Path) -> None:
    """By every command, and in a notebook that adds it or goes on after the error; nothing is written."""
    text = f"name = 'x'\n{TABLES[said.partition('[')[0]]}\n{WRONG[said]}\ntable[name] = entry\n"
    (tmp_path / "my_plugin.py").write_text(text)
    done = command("list", "regimes", "--plugin", "my_plugin.py")
    assert (done.returncode, done.stderr) == (2, f"error: --plugin 'my_plugin.py': {said}\n")
    code = (
        "import bench, tl\nfor given in ['my_plugin.py'], []:\n    try:\n        bench.run('nowhere', plugins=given)\n"
    )
    code += "    except tl.UserError as error:\n        print(error)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"--plugin 'my_plugin.py': {said}\n{said}\n"
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["my_plugin.py"]


BAD = {
    "missing": ("nowhere.py", "", "must be a Python file"),
    "other kind": ("my_plugin.txt", "", "must be a Python file"),
    "two dots": ("my.plugin.py", "", "must be a Python file"),
    "broken": ("my_plugin.py", "1 / 0", "ZeroDivisionError: division by zero"),
    "taken": ("json.py", "", "another module is named 'json'; rename the file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_script_is_one_line(case: str, tmp_path: Path) -> None:
    """The error names the file and what is wrong; nothing is written."""
    name, text, message = BAD[case]
    if name != "nowhere.py":
        (tmp_path / name).write_text(text)
    done = command("run", "--plugin", name, "--name", "r")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "results").exists()


def test_a_script_is_loaded_once_and_by_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Naming the script twice does nothing more; a child process finds it in its environment."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    script = tmp_path / "counted_plugin.py"
    script.write_text(f"with open({str(tmp_path / 'loads')!r}, 'a') as file:\n    file.write('x')\n")
    plugins.load_script(script)
    plugins.load_script(script)
    assert (tmp_path / "loads").read_text() == "x" and plugins.scripts() == [script]
    code = "from tl.plugins import load_as_parent; load_as_parent(); import counted_plugin"
    root = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": root})
    assert (tmp_path / "loads").read_text() == "xx"
    sys.modules.pop("counted_plugin")


def test_a_script_can_t_go_to_a_cluster(tmp_path: Path) -> None:
    """The nodes don't have the file."""
    (tmp_path / "my_plugin.py").write_text("")
    done = command("run", "--executor", "ray", "--plugin", "my_plugin.py")
    assert done.returncode == 2 and "nodes of a cluster don't have this file" in done.stderr


def test_another_list_of_names_for_another_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of names is keyed by the scripts' content."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    asked: list[str] = []
    executor = make_executor("inline")
    monkeypatch.setattr("bench.execution.discovery._ask", lambda *_: asked.append("") or {"timm": ["a"]})
    script = tmp_path / "keyed_plugin.py"
    for text in ("", "x = 1", "x = 1"):
        script.write_text(text)
        monkeypatch.setenv(plugins.VARIABLE, str(script))
        backbone_names(executor)
    assert len(asked) == 2


def test_a_name_of_another_module_is_refused(tmp_path: Path) -> None:
    """Otherwise the script would replace that module."""
    script = tmp_path / "numpy.py"
    script.write_text("")
    with pytest.raises(ConfigError, match="another module is named 'numpy'"):
        plugins.load_script(script)
