"""`bench.run` and what it returns: all that the command does, from Python."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bench
import tl
from bench.execution import executors
from bench.store.runs import RunFolder
from tests import light
from tests.commands import command, here
from tests.conftest import TINY
from tests.runs import record, write_run
from tl.datasets import Splits
from tl.errors import ConfigError, UserError


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Cells take a moment and no torch; their backbones' names are not real ones, so the cache is the test's own."""
    monkeypatch.setitem(executors.EXECUTORS, "process", lambda address: light.LightExecutor())
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def light_run(**given: object) -> bench.Run:
    arguments = {"backbones": light.QUICK[:2], "regimes": ["frozen"], "data": "synthetic-mini", "name": "r"} | given
    return bench.run("smoke", **arguments)  # type: ignore[arg-type]


def test_a_sweep_is_a_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs what is missing, says what it does, and returns the run; a second call has nothing to do."""
    run = light_run(seeds=2, epochs=3)
    said = capsys.readouterr().out
    assert "images: synthetic-mini" in said and "[4/4]" in said
    assert run.folder == Path("results/r") and repr(run) == "Run('results/r': 4 cells done)"
    written = {path: path.read_bytes() for path in (tmp_path / "results" / "r" / "cells").iterdir()}
    again = light_run(seeds=2, epochs=3, progress=False)
    assert capsys.readouterr().out == "" and again.records() == run.records()
    assert {path: path.read_bytes() for path in written} == written


def test_axes_and_settings_are_those_of_the_command(mini: Splits) -> None:
    """Whoever starts the sweep, its cells have the same ids; a path may be a `Path`, axes any sequence."""
    words = ["--grid", "smoke", "--backbone", "timm:test_resnet", "--regime", "frozen", "--epochs", "2", "--batch-size"]
    words += ["8", "--weights", "random", "--device", "cpu", "--data", str(mini.root)]
    done = command("run", *words, "--name", "typed", "--no-report", "--dry-run", TL_CACHE=str(mini.root.parent))
    assert done.returncode == 0, done.stderr
    run = bench.run(
        "smoke",
        backbones=(light.QUICK[0],),
        regimes=("frozen",),
        devices=("cpu",),
        data=mini.root,
        weights="random",
        epochs=2,
        batch_size=8,
        name="called",
        progress=False,
    )
    (only,) = run.records().values()
    assert only.cell.config.epochs == 2 and only.cell.config.batch_size == 8 and only.cell.device == "cpu"
    assert only.cell.dataset_digest == mini.digest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"regimes": "frozen"}, "regimes='frozen': must be a list, such as ['frozen']"),
        ({"regimes": b"frozen"}, "regimes=b'frozen': must be a list"),
        ({"regimes": [Path("frozen")]}, "regimes=[PosixPath('frozen')]: must be a list of texts"),
        ({"devices": 5}, "devices=5: must be a list"),
        ({"seeds": "3"}, "seeds='3': must be a number of seeds, or a list of them"),
        ({"seeds": True}, "seeds=True: must be a number of seeds"),
        ({"seeds": [0.5]}, "seeds=[0.5]: must be a list of whole numbers"),
        ({"data": b"x"}, "data=b'x': must be text or a Path"),
        ({"weights": None}, "weights=None: input should be a valid string"),
        ({"name": Path("r")}, "name=PosixPath('r'): input should be a valid string"),
        ({"results": "a\0b"}, "results='a\\x00b': can't be a path: embedded null"),
        ({"results": "x" * 5000}, "x': can't be a path: File name too long"),
        ({"weights_dir": 5}, "weights_dir=5: must be text or a Path"),
        ({"timeout": "5"}, "timeout='5': input should be a valid number"),
        ({"timeout": True}, "timeout=True: input should be a valid number"),
        ({"executor": ["process"]}, "executor=['process']: input should be a valid string"),
        ({"fresh": "False"}, "fresh='False': input should be a valid boolean"),
        ({"wait": "no"}, "wait='no': input should be a valid boolean"),
        ({"wait": True, "epochs": 0}, "epochs=0: input should be greater"),
        ({"max_pairs": 2.0}, "max_pairs=2.0: input should be a valid integer"),
        ({"live": True}, "live=True: must be text or a Path"),
        ({"plugins": "p.py"}, "plugins='p.py': must be a list, such as ['p.py']"),
        ({"plugins": ["p.py", 5]}, "element 1 is 5: must be text or a Path"),
        ({"plugins": ["p.py", ""]}, "element 1 is '': is empty"),
        ({"regimes": ["frozen", "frozen", 5]}, "must be a list of texts; element 2 is 5"),
        ({"seeds": [1, "2"]}, "must be a list of whole numbers; element 1 is '2'"),
        ({"seeds": itertools.count()}, "at most 100,000 are possible"),
        ({"regimes": itertools.repeat("frozen")}, "at most 100,000 are possible"),
        ({"epochs": "1"}, "epochs='1': must be a number"),
        ({"epochs": Decimal(1)}, "epochs=Decimal('1'): must be one value"),
        ({"learning_rates": 0.1}, "learning_rates=0.1: must be a list of numbers"),
        ({"regime": "frozen"}, "settings.regime: unknown key"),
        ({"seed": 3}, "settings.seed: unknown key"),
        ({"epoch": 3}, "settings.epoch: unknown key; nearest valid key: 'epochs'"),
    ],
)
def test_a_slip_in_an_argument_is_one_line(given: dict[str, object], message: str) -> None:
    """None of them is dropped without a word, and nothing is written."""
    with pytest.raises(ConfigError) as caught:
        light_run(**given)
    assert message in str(caught.value) and len(str(caught.value)) < 500
    assert not Path("results").exists()


def test_numbers_and_lists_of_numpy_are_numbers_and_lists(tmp_path: Path) -> None:
    """The cells and the manifest are those of the same call with Python's own."""
    (tmp_path / "my.toml").write_text('[matrix]\nbackbones = ["quick0"]\nregimes = ["frozen"]\n[train]\nepochs = 1\n')
    given = {"data": "synthetic-mini", "progress": False, "name": "r"}
    run = bench.run(
        Path("my.toml"),
        **given,  # type: ignore[arg-type]
        backbones=np.array(light.QUICK[:2]),
        seeds=np.int64(2),
        timeout=np.float32(60),
        epochs=np.int64(2),
        learning_rate=np.float32(0.5),
        compile=np.bool_(False),
    )
    found = run.records()
    same = {"backbones": light.QUICK[:2], "epochs": 2, "learning_rate": 0.5} | given
    assert bench.run("./my.toml", seeds=iter(range(2)), **same).records() == found  # type: ignore[arg-type]
    assert len(found) == 4 and len(list(Path("results/r/cells").iterdir())) == 4


@pytest.mark.parametrize("value", [None, 5, True, b"r", {}, "", "a\0b", "x" * 5000], ids=lambda value: repr(value)[:9])
def test_what_is_no_path_is_one_line(value: Any) -> None:
    """Wherever a notebook names a run or a folder."""
    write_run(Path("results/r"), [record("timm:a", "frozen")])
    run = bench.Run("r")
    calls: dict[str, Callable[[], object]] = {
        "name": lambda: bench.Run(value),
        "results": lambda: bench.Run("r", value),
        "paths": lambda: bench.load_results(value),
        "folder": lambda: run.report(value, images=False),
    }
    for name, call in calls.items():
        with pytest.raises(
            ConfigError, match=rf"^{name}=.*: (must be text or a Path|is empty|can't be a path)"
        ) as caught:
            call()
        assert len(str(caught.value)) < 500
    with pytest.raises(ConfigError, match=r"images='no': input should be a valid boolean"):
        run.report(images="no")  # type: ignore[arg-type]
    assert sorted(path.name for path in Path().iterdir()) == ["results"]


def test_a_wrong_element_of_a_list_of_runs_is_named() -> None:
    """As that of any other list; whatever can be iterated over is a list."""
    write_run(Path("results/r"), [record("timm:a", "frozen")])
    for value, said in (
        (["r", 5], "element 1 is 5: must be text or a Path"),
        (["r", "r", ""], "element 2 is '': is empty"),
        ([None], "element 0 is None: must be text or a Path"),
    ):
        with pytest.raises(ConfigError, match=rf"^paths=.*: must be a list of paths; {said}"):
            bench.load_results(value)  # type: ignore[arg-type]
    for names in (["r"], ("r",), {"r"}, iter(["r"]), np.array(["r"])):
        assert len(bench.load_results(names)) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("size", ["0", "-5", "", "many", "9" * 30])
def test_sizes_of_a_terminal_that_there_is_not(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They change nothing, and other libraries of the notebook find them as they were."""
    for name in ("COLUMNS", "LINES"):
        monkeypatch.setenv(name, size)
    before = dict(os.environ)
    light_run()
    with pytest.raises(UserError):
        light_run(epochs=0)
    assert dict(os.environ) == before


def test_a_page_of_the_user_s_is_no_live_page() -> None:
    """It is told before a cell runs, and the page stays."""
    Path("r.html").write_text("mine")
    with pytest.raises(UserError, match=r"r\.html: was not written by a report"):
        light_run(live=".")
    assert Path("r.html").read_text() == "mine" and not Path("results").exists()


UNGUARDED = """
import bench
import tl
from bench.execution import executors
from tests import light

executors.EXECUTORS["process"] = lambda address: light.LightExecutor()
bench.run("smoke", backbones=light.QUICK[:1], regimes=["frozen"], data="synthetic-mini", name="r", progress=False)
"""


def test_a_script_that_calls_it_while_it_is_imported(tmp_path: Path) -> None:
    """The processes of cells import the script. One error says what to change, and nothing is written."""
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1, done.stderr
    assert done.stderr.splitlines()[-1].endswith('put the call below `if __name__ == "__main__":`')
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("words", ['"$1" < script.py', '"$1" <(cat script.py)', 'cat script.py | "$1" -'])
def test_a_script_that_is_no_file(words: str, tmp_path: Path) -> None:
    """The processes of cells can't read it again, and would wait for it. With `-c` there is nothing to read."""
    guarded = UNGUARDED.replace("\nbench.run(", "\nif __name__ == '__main__':\n    bench.run(")
    (tmp_path / "script.py").write_text(guarded)
    shell = ["bash", "-c", words, "-", sys.executable]
    done = subprocess.run(shell, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1, done.stderr
    assert "which is not a file that the processes of cells can import: save it as one" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "results").exists()
    done = subprocess.run([sys.executable, "-c", guarded], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and len(list((tmp_path / "results" / "r" / "cells").iterdir())) == 1, done.stderr


def test_a_deleted_working_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python as on the command line, where Python itself would name nothing."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for call in (light_run, lambda: bench.Run("r"), lambda: bench.load_results(["r"])):
        with pytest.raises(UserError, match=r"the working folder /.*/gone has been deleted; change to one that exists"):
            call()


def test_a_run_knows_how_it_was_called(tmp_path: Path) -> None:
    """The report shows the call as it would be typed again; a script's entries are there, too."""
    (tmp_path / "my_script.py").write_text("from tl.regimes import HEAD, REGIMES, Regime\n")
    run = light_run(epochs=2, plugins=[tmp_path / "my_script.py"], progress=False)
    (once,) = RunFolder(run.folder).manifest().invocations
    assert once.command.startswith("bench.run(grid='smoke', backbones=")
    assert "name='r'" in once.command and once.command.endswith("epochs=2)") and "my_script.py" in once.command
    assert "fresh" not in once.command


@pytest.mark.parametrize("call", [bench.run, bench.pick])
def test_only_processes_of_cells_import_the_script(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So with another executor a script that they couldn't import is no mistake."""

    def refuse() -> None:
        raise ConfigError("the script can't be imported")

    monkeypatch.setattr("bench.api._check_script", refuse)
    with pytest.raises(ConfigError, match="the script can't be imported"):
        call(data="nowhere")
    with pytest.raises(UserError, match="no such folder"):
        call(data="nowhere", backbones=[TINY[1]], executor="inline", progress=False)


def test_what_a_run_has() -> None:
    """Frames, claims, answers and the report: those of the commands that print them."""
    write_run(Path("results/r"), [record("timm:a", name, seed=s) for name in ("finetune", "frozen") for s in range(3)])
    run = bench.Run("r")
    pd.testing.assert_frame_equal(run.frame(), bench.load_results("r"))
    assert len(run.frame(per_epoch=True)) == sum(len(one.result.epochs) for one in run.records().values() if one.result)
    typed = json.loads(command("claims", "r", "--format", "json").stdout)
    found = run.claims()
    assert list(found.columns) == list(typed[0]) and len(found) == len(typed) > 0
    for name in ("claim", "verdict", "overall", "seeds"):
        assert [None if value is pd.NA else value for value in found[name]] == [row[name] for row in typed]
    measured = [None if value is pd.NA else float(value) for value in found["measured"]]
    assert measured == pytest.approx([row["measured"] for row in typed])
    assert any(answer.startswith(("Use ", "No cell")) for answer in run.answers())
    markdown, page = run.report("out", images=False)
    assert markdown == Path("out/r.md") and page.read_text().startswith("<!doctype html>")


def test_failed_cells_are_rows_not_exceptions() -> None:
    """One that crashes is in the frame with its reason; the others have their results."""
    run = light_run(backbones=[light.CRASHES, light.QUICK[0]], progress=False)
    statuses = dict(zip(run.frame()["backbone"], run.frame()["status"], strict=True))
    assert statuses == {light.CRASHES: "failed", light.QUICK[0]: "done"}


def test_it_runs_in_a_thread() -> None:
    """A notebook's kernel or a server may call it from any thread; signals are the main one's."""
    found: list[bench.Run] = []
    thread = threading.Thread(target=lambda: found.append(light_run(progress=False)))
    thread.start()
    thread.join()
    assert len(found[0].records()) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "epoch"),
        ({"epochs": 0}, "epochs=0"),
        ({"within": 3.0}, "--within 3.0 needs --until-decided"),
        ({"memory_limit": "plenty"}, "must be a size"),
        ({"regimes": ["frozn"]}, "did you mean 'frozen'"),
        ({"data": "nowhere"}, "no such folder"),
    ],
)
def test_mistakes(given: dict[str, object], message: str) -> None:
    """Each is one line, raised before anything is written."""
    with pytest.raises(UserError, match=message):
        light_run(**given)
    assert not Path("results").exists()


def test_no_such_run() -> None:
    """The error names the runs that there are."""
    write_run(Path("results/one"), [record("timm:a", "frozen")])
    with pytest.raises(UserError, match="two: no such run; results/ has one"):
        bench.Run("two")
    with pytest.raises(UserError, match="results/ has one; did you mean 'one'"):
        bench.Run("onee")


def test_runs_elsewhere_are_found() -> None:
    """`--results` means the same in every command: the folder where runs are kept."""
    write_run(Path("elsewhere/r"), [record("timm:a", name) for name in ("finetune", "frozen")])
    write_run(Path("elsewhere/s"), [record("timm:a", name) for name in ("finetune", "frozen")])
    for words in (["show", "r"], ["claims", "r"], ["export", "r"], ["compare", "r", "s"], ["report", "r"]):
        done = here(*words, "--results", "elsewhere")
        assert done.returncode == 0, (words, done.stderr)
        lost = here(*words)
        assert lost.returncode == 2 and "results/ has no runs yet" in lost.stderr, words
    assert here("gate", "r", "s", "--results", "elsewhere").returncode in (0, 3)
    assert here("report", "--index", "--results", "elsewhere", "--reports", "lists").returncode == 0
    assert Path("lists/index.html").is_file() and Path("reports/r.html").is_file()


def test_the_old_name_of_an_option_still_works() -> None:
    """`--out` is what `--results` of `run` and `--reports` of `report` were called; both at once are a mistake."""
    write_run(Path("results/r"), [record("timm:a", "frozen")])
    assert here("report", "r", "--out", "old").returncode == 0 and Path("old/r.html").is_file()
    both = here("report", "r", "--out", "old", "--reports", "new")
    assert both.returncode == 2 and "--out old is the old name of --reports" in both.stderr
    assert "--out" not in here("report", "--help").stdout.replace("--output", "")


def test_the_inline_executor_takes_no_limit() -> None:
    """As on the command line, where there is no limit unless one is given."""
    with pytest.raises(ConfigError, match="can't end a cell"):
        light_run(executor="inline", timeout=5.0)


CONFIG = tl.TrainConfig(backbone="timm:test_resnet", weights="random", epochs=1)
WRONG: dict[str, tuple[Callable[[tl.Splits], object], str]] = {
    "no config": (
        lambda splits: tl.train_model(None, splits),
        "config=None: input should be an instance of TrainConfig",
    ),
    "a table": (
        lambda splits: tl.train_model({"epochs": 1}, splits),
        "config={'epochs': 1}: input should be an instance",
    ),
    "a folder": (lambda splits: tl.train_model(CONFIG, "d0"), "splits='d0': input should be an instance of Splits"),
    "exchanged": (lambda splits: tl.run_protocol(splits, CONFIG), "config=Splits(name='synthetic-mini', "),
    "no splits": (lambda splits: tl.run_protocol(CONFIG, None), "splits=None: input should be an instance of Splits"),
    "no device": (lambda splits: tl.train_model(CONFIG, splits, device=None), "device=None: input should be a valid"),
    "bytes": (lambda splits: tl.train_model(CONFIG, splits, device=b"cpu"), "device=b'cpu': input should be a valid"),
    "policy": (lambda splits: tl.train_model(CONFIG, splits, weights="random"), "weights='random': input should be an"),
    "keep": (lambda splits: tl.train_model(CONFIG, splits, keep="all"), "keep='all': input should be 'best' or 'last'"),
    "on_epoch": (lambda splits: tl.run_protocol(CONFIG, splits, on_epoch=5), "on_epoch=5: input should be callable"),
    "on_stage": (lambda splits: tl.run_protocol(CONFIG, splits, on_stage=5), "on_stage=5: input should be callable"),
    "no name": (lambda splits: tl.make_backbone(None), "spec=None: input should be a valid string"),
    "names": (lambda splits: tl.make_backbone(["x"]), "spec=['x']: input should be a valid string"),
    "folder of weights": (lambda splits: tl.make_backbone("x", weights_dir=5), "weights_dir=5: must be text or a Path"),
    "seed": (lambda splits: tl.make_backbone("x", seed="1"), "seed='1': input should be a valid integer"),
    "one class": (lambda splits: tl.make_backbone("x", own_head_for="ants"), "must be a list, such as ['ants']"),
    "no data": (lambda splits: tl.load_splits(None), "data=None: must be text or a Path"),
    "empty": (lambda splits: tl.load_splits(""), "data='': is empty"),
    "long": (lambda splits: tl.load_splits("x" * 5000), "x': can't be a path: File name too long"),
    "unnamed": (lambda splits: tl.TrainConfig("a"), "TrainConfig: give each value by its name, such as backbone='a'"),
    "count": (lambda splits: tl.show_batch(splits, "x", count="3"), "count='3': input should be a valid integer"),
    "result": (lambda splits: tl.show_predictions(splits, splits), "result=Splits(name='synthetic-mini', "),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_library_refuses_other_types_in_one_line(case: str, mini: tl.Splits) -> None:
    """Before anything is loaded or trained. A long value is cut off."""
    call, said = WRONG[case]
    with pytest.raises(ConfigError) as error:
        call(mini)
    assert said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_an_argument_too_many_names_the_function() -> None:
    """As Python itself does, with its own exception."""
    with pytest.raises(TypeError, match=r"^make_backbone\(\): too many positional arguments"):
        tl.make_backbone("timm:test_resnet", "random")
