"""Comparison with other programs: order, pairs, ratios, peers that fail, and the training loops of all sides."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from scipy.stats import gmean, ttest_1samp

import tl
from bench.devtools import our_loop, peers, plain_loop
from bench.devtools.samples import Samples, SideRun, render
from bench.store.environment import MachineState, environment
from tests.conftest import TINY
from tests.images import write_folder
from tl import plain
from tl.errors import UserError

ROOT = Path(__file__).parent.parent
RESNET = "torchvision:resnet18"
SCRIPT = """
import json, os, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("a library's greeting")
for epoch in range(int(given["--epochs"])):
    print(json.dumps({"epoch_seconds": SECONDS + 100 * (epoch == 0), "val_accuracy": 0.5, **given}))
print(json.dumps({"total_seconds": 6.5, "cache": os.environ["TL_CACHE"], "at": os.environ["PYTHONPATH"]}))
"""


def samples(ours: list[float], theirs: list[float], side: str = "plain", **fields: Any) -> Samples:
    """Rounds with these figures: the median of the epochs' seconds without a long first one, or MiB, or percent."""
    runs = [
        SideRun(
            side=name,
            round=number,
            started="2024-01-02T03:04:05+00:00",
            wall_seconds=1,
            printed=(
                *(
                    {"epoch_seconds": seconds, "val_accuracy": accuracy}
                    for seconds, accuracy in ((99.0, 0.99), (0.9 * value, 0.98), (1.1 * value, value / 100))
                ),
                {"total_seconds": value},
            ),
            peak_pss_bytes=int(value * 2**20),
            machine=MachineState(warnings=("others",) if (name, number) == (side, 0) else ()),
        )
        for name, values in (("ours", ours), (side, theirs))
        for number, value in enumerate(values)
    ]
    settings = {"what": "epoch", "regime": "finetune", "against": "finetune", "device": "cpu", "epochs": 3} | fields
    return Samples(
        command="python -m bench.devtools.peers --rounds 3",
        sides={"ours": "ours", side: f"{side} {{data}}"},
        dataset="synthetic",
        dataset_digest="0" * 64,
        images=40,
        environment=environment(),
        runs=tuple(runs),
        **({"backbone": RESNET, "against_epochs": settings["epochs"]} | settings),
    )


def rows(markdown: str) -> list[dict[str, str]]:
    """The rows of all tables."""
    cut = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return [dict(zip(cut[0], cells, strict=True)) for cells in cut if cells[0].isdigit()]


def test_the_order_alternates() -> None:
    """The order is A B C, C B A, A B C."""
    assert "".join(side for _, side in peers.order("ABC", 3)) == "ABCCBAABC"
    assert [number for number, _ in peers.order("AB", 2)] == [0, 0, 1, 1]


def test_placeholders_are_replaced_without_a_shell() -> None:
    """A value with blanks and quotes stays one word, placeholders in values are not replaced, and other braces stay."""
    values = {"data": "/a b/'{epochs}'", "epochs": "3"}
    found = peers.words("""mine "{data}/x" {epochs} $HOME;ls '{"k": 1}' {other}""", values)
    assert found == ["mine", "/a b/'{epochs}'/x", "3", "$HOME;ls", '{"k": 1}', "{other}"]


def test_ratios_are_of_pairs() -> None:
    """The geometric mean over rounds and Student's interval of its logarithm equal scipy's, without warm-up epochs."""
    ours, theirs = [1.0, 2.1, 3.9], [2.0, 4.0, 8.0]
    ratios = np.divide(ours, theirs)
    interval = ttest_1samp(np.log(ratios), 0).confidence_interval(0.95)
    (row,) = rows(render([samples(ours, theirs)]))
    assert row["ratio (min–max, n)"] == f"{gmean(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f}, n = 3)"
    assert row["95%"] == f"{math.exp(interval.low):.3f}–{math.exp(interval.high):.3f}"
    assert (row["ours"], row["theirs"], row["disturbed"]) == ("2.1", "4", "1 of 6")
    (row,) = rows(render([samples(ours[:2], theirs[:2])]))
    assert row["95%"] == "n/a"


@pytest.mark.parametrize(
    ("fields", "ours", "target", "verdict"),
    [
        ({}, [0.70, 0.71, 0.70], "0.75", "met"),
        ({}, [0.70, 0.71], "0.75", "met, not certain"),
        ({}, [0.80, 0.60, 0.70], "0.75", "met, not certain"),
        ({}, [0.80, 0.81, 0.80], "0.75", "missed"),
        ({}, [0.70, 0.90, 0.80], "0.75", "missed, not certain"),
        ({"precision": "auto"}, [0.70] * 3, "0.5", "missed"),
        ({"precision": "bf16"}, [0.70] * 3, "0.75", "met"),
        ({"regime": "frozen", "against": "frozen", "settings": {"fold": True}}, [0.8] * 3, "0.55", "missed"),
        ({"backbone": "timm:tf_efficientnet_lite0"}, [0.5] * 3, "0.52", "met"),
        ({"backbone": "timm:other"}, [0.65] * 3, "", ""),
        ({"device": "cuda:0", "backbone": "timm:other"}, [0.09] * 3, "0.1", "met"),
        ({"what": "memory", "backbone": "timm:other"}, [0.8] * 3, "0.7", "missed"),
        ({"side": "lightning"}, [0.8] * 3, "", ""),
        ({"what": "whole", "regime": "cached", "against": "frozen", "epochs": 25}, [0.5] * 3, "0.0222", "met"),
        ({"what": "whole", "regime": "cached", "against": "frozen", "epochs": 9}, [0.8] * 3, "", ""),
    ],
)
def test_targets(fields: dict[str, Any], ours: list[float], target: str, verdict: str) -> None:
    """The mean meets or misses a target, certainly if the interval doesn't contain it. Each target has its own row."""
    theirs = [1.0] * len(ours)
    (row,) = rows(render([samples(ours, theirs, **{"against_epochs": 3, **fields})]))
    assert (row["target"], row["verdict"]) == (target, verdict)


@pytest.mark.parametrize(
    ("fields", "points", "target", "verdict"),
    [
        ({}, [0.0, -0.4, -0.8], "-1", "met, not certain"),
        ({}, [0.0, -0.1, 0.1], "-1", "met"),
        ({}, [-2.0, -2.1, -2.2], "-1", "missed"),
        ({}, [-2.0, -3.0, 1.0], "-1", "missed, not certain"),
        ({"regime": "cached", "against": "frozen"}, [-1.4] * 3, "-1.5", "met"),
        ({"regime": "quantized", "against": "frozen"}, [-2.1] * 3, "-2", "missed"),
        ({"side": "fastai"}, [0.0] * 3, "", ""),
    ],
)
def test_accuracy_is_a_difference_over_seeds(
    fields: dict[str, Any], points: list[float], target: str, verdict: str
) -> None:
    """It is that of the last epochs, in points, with scipy's t interval. The allowed loss depends on the job."""
    theirs = [90.0, 92.0, 91.0]
    ours = [a + b for a, b in zip(theirs, points, strict=True)]
    (row,) = rows(render([samples(ours, theirs, what="accuracy", **fields)]))
    assert (row["ours"], row["theirs"]) == (f"{np.mean(ours):.1f}", "91.0")
    assert row["difference (min–max, n)"] == f"{np.mean(points):+.2f} ({min(points):+.2f} to {max(points):+.2f}, n = 3)"
    assert (row["target"], row["verdict"]) == (target, verdict)
    if len(set(points)) > 1:
        interval = ttest_1samp(np.subtract(ours, theirs), 0).confidence_interval(0.95)
        assert row["95%"] == f"{interval.low:+.2f} to {interval.high:+.2f}"


def test_a_whole_job_is_scaled_up_only_where_it_was_cut_short() -> None:
    """Ours is its own total. Theirs is the sum of all epochs, or the median warm epoch times the job's epochs."""
    (whole,) = rows(render([samples([6.0], [4.0], what="whole", epochs=3)]))
    (scaled,) = rows(render([samples([6.0], [4.0], what="whole", epochs=25, against_epochs=3)]))
    assert (whole["ours"], whole["theirs"]) == ("6", "107") and (scaled["ours"], scaled["theirs"]) == ("6", "100")
    assert scaled["regime"] == "finetune, 25 epochs"


def test_several_files_are_rendered_in_order() -> None:
    """Each has a row with the number of its run, in the table of its kind."""
    text = render([samples([1], [2], what="memory"), samples([1], [2]), samples([1], [2], side="fastai")])
    assert [(row["run"], row["against"]) for row in rows(text)] == [("2", "plain"), ("3", "fastai"), ("1", "plain")]
    assert text.index("Seconds per epoch") < text.index("Peak memory") < text.index("\n1. `python -m")
    assert "`fastai`: `fastai {data}`" in text


@pytest.fixture
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the scripts of both sides by quick ones, and report an idle machine. Returns a folder of images."""
    place = tmp_path / "bench" / "devtools"
    place.mkdir(parents=True)
    for package in (place.parent, place):  # else an installed `bench` would be found instead
        (package / "__init__.py").write_text("")
    for name, seconds in (("our_loop", 2), ("plain_loop", 4)):
        (place / f"{name}.py").write_text(SCRIPT.replace("SECONDS", str(seconds)))
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(peers, "busy_warning", lambda: "")
    return write_folder(tmp_path / "my images")


def test_the_command_from_start_to_end(sides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real processes alternate, each with its options. Their lines are kept, rendered, and never overwritten."""
    code = (
        "import sys; [print('{\"epoch_seconds\": 8}') for _ in range(int(sys.argv[2]))]; sys.argv[1] == 'frozen' or 1/0"
    )
    peer = f"mine={sys.executable} -c {peers.shlex.quote(code)} {{regime}} {{epochs}}"
    command = ["--data", str(sides), "--regime", "frozen", "--rounds", "2", "--out", "out", "--peer", peer]
    peers.run(command)
    path = Path("out/epoch-torchvision-resnet18-frozen-cpu.json")
    kept = Samples.from_json(path.read_text())
    assert [run.side for run in kept.runs] == ["ours", "plain", "mine", "mine", "plain", "ours"]
    assert kept.runs[0].epoch_seconds == [102, 2, 2]
    line, last = kept.runs[1].printed[0], kept.runs[1].printed[-1]
    assert line["--data"] == str(sides) and line["--regime"] == "frozen" and line["--device"] == "cpu"
    assert last["at"] == str(peers.ROOT) and last["cache"] == os.environ["TL_CACHE"]
    assert kept.command.startswith("python -m bench.devtools.peers --data ") and kept.images == 10
    assert all(run.started and run.peak_pss_bytes is None for run in kept.runs)
    capsys.readouterr()
    peers.run(["--render", str(path)])
    found = rows(capsys.readouterr().out)
    assert [(row["against"], row["ours"], row["theirs"]) for row in found] == [("plain", "2", "4"), ("mine", "2", "8")]
    before = path.read_bytes()
    with pytest.raises(UserError, match="exists, and nothing is overwritten"):
        peers.run(command)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("kind", "seeds"), [([], ["0"] * 4), (["--accuracy"], ["0", "0", "1", "1"])])
def test_a_round_of_accuracies_is_a_seed(sides: Path, kind: list[str], seeds: list[str]) -> None:
    """Both sides of a round have the same seed. Times are all measured with one seed."""
    peers.run(["--data", str(sides), "--rounds", "2", "--out", "out", *kind])
    (path,) = Path("out").iterdir()
    assert [run.printed[0]["--seed"] for run in Samples.from_json(path.read_text()).runs] == seeds


def test_a_whole_job_starts_with_an_empty_cache(sides: Path) -> None:
    """Each process of ours gets a new cache. The other sides run their own regime and number of epochs."""
    options = ["--whole", "--regime", "cached", "--against", "frozen", "--epochs", "25", "--against-epochs", "2"]
    peers.run(["--data", str(sides), "--rounds", "2", "--out", "out", *options])
    (path,) = Path("out").iterdir()
    ours, plain, _, again = Samples.from_json(path.read_text()).runs
    assert path.name == "whole-torchvision-resnet18-cached-frozen-cpu.json"
    assert len({os.environ["TL_CACHE"], ours.printed[-1]["cache"], again.printed[-1]["cache"]}) == 3
    assert [(run.printed[0]["--regime"], len(run.epoch_seconds)) for run in (ours, plain)] == [
        ("cached", 25),
        ("frozen", 2),
    ]


def test_a_busy_machine_is_reported_before_anything_runs(
    sides: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is one line on standard error."""
    monkeypatch.setattr(peers, "busy_warning", lambda: "other processes use 1.9 of 2 cores now")
    monkeypatch.setattr(peers, "measure", lambda *_: samples([1], [2]))
    peers.run(["--data", str(sides), "--out", "out"])
    assert capsys.readouterr().err == "WARNING: other processes use 1.9 of 2 cores now\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import sys; print('{\"epoch_seconds\": 1}\\n' * 2); sys.exit('first\\nthe last word\\n\\n')",
            "exit status 1",
        ),
        ("print('epoch 1 took 3 s')", "printed 0 epochs instead of 2 .* stderr: nothing"),
        ("print('{\"epoch_seconds\": 1}')", "printed 1 epochs instead of 2"),
        ("print('{\"epoch_seconds\": NaN}\\n' * 2)", "with seconds above 0"),
        ('print(\'{"epoch_seconds": "1"}\\n[1]\\n\' * 2)', "with seconds above 0"),
    ],
)
def test_a_peer_that_fails_ends_in_one_line(code: str, words: str) -> None:
    """The line has its name, what was wrong, and its last line on stderr."""
    with pytest.raises(UserError, match=words) as caught:
        peers.run_side("mine", [sys.executable, "-c", code], epochs=2, number=0, sample_memory=False, env=os.environ)
    assert str(caught.value).startswith("mine: ") and "\n" not in str(caught.value)
    assert ("the last word" in str(caught.value)) is ("sys.exit" in code)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "1"], "warm-up"),
        (["--rounds", "0"], "at least 1"),
        (["--against-epochs", "3"], "--against-epochs 3 needs --whole"),
        (["--regime", "scratch"], "no regime 'scratch'"),
        (["--peer", "plain=x"], "NAME=COMMAND"),
        (["--peer", "mine"], "NAME=COMMAND"),
        (["--peer", "a=x", "--peer", "a=y"], "a name that is not taken"),
        (["--data", "nowhere"], "no such folder"),
    ],
)
def test_mistakes_are_reported_before_anything_runs(
    options: list[str], words: str, sides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options are checked before a process starts."""
    monkeypatch.setattr(peers, "run_side", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(UserError, match=words):
        peers.run(["--data", str(sides), "--out", "out", *options])


def test_a_program_that_does_not_exist() -> None:
    """The message is one line with its name."""
    with pytest.raises(UserError, match="mine: no-such-program can't be run: No such file"):
        peers.run_side("mine", ["no-such-program"], epochs=2, number=0, sample_memory=False, env=os.environ)


@pytest.mark.alone
@pytest.mark.skipif(not psutil.LINUX, reason="proportional set sizes are only known on Linux")
def test_memory_is_that_of_the_whole_tree() -> None:
    """A parent and a child hold 64 MiB each, and share 128 MiB, which count once."""
    hold = "import time; held = bytearray(b'1') * (64 << 20); time.sleep(1.2)"
    both = f"import os; shared = bytearray(b'1') * (128 << 20); os.fork(); {hold}"
    code = f"import os; me = os.getpid(); {both}; os.getpid() == me and print('{{\"epoch_seconds\": 1}}')"
    run = peers.run_side("mine", [sys.executable, "-c", code], epochs=1, number=0, sample_memory=True, env=os.environ)
    assert run.peak_pss_bytes is not None
    assert 256 << 20 < run.peak_pss_bytes < 320 << 20


@pytest.mark.parametrize(("regime", "trained"), [("finetune", "finetune"), ("frozen", "frozen-tutorial")])
def test_the_plain_side_is_the_tutorials_training(
    regime: str, trained: str, mini: tl.Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is execution `plain` with the tutorial's settings, whose frozen backbone is in train mode too."""
    configs: list[tl.TrainConfig] = []
    monkeypatch.setattr(tl, "train_model", lambda config, *_, **__: configs.append(config))
    monkeypatch.setattr(sys, "argv", ["loop", "--data", str(mini.root), "--regime", regime, "--epochs", "3"])
    plain_loop.main()
    (config,) = configs
    tutorial = {"batch_size": 4, "optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.9, "weight_decay": 0.0}
    tutorial |= {"schedule": "step", "step_size": 7, "gamma": 0.1, "precision": "fp32", "epochs": 3}
    assert (config.execution, config.regime) == ("plain", trained)
    assert {name: getattr(config, name) for name in tutorial} == tutorial


@pytest.mark.parametrize("name", ["plain", "our", "lightning", "fastai"])
def test_all_sides_print_the_same_lines(
    name: str, mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each side prints a line per epoch and a last one. Our process is set up like a cell's process."""
    if name in ("lightning", "fastai"):
        pytest.importorskip(name, reason=f"only `nox -s peers` installs {name}")
    loop = importlib.import_module(f"bench.devtools.{name}_loop")
    monkeypatch.setattr(plain, "WORKERS", 0)
    monkeypatch.setattr(loop, "WORKERS", 0, raising=False)
    calls: list[Any] = []
    monkeypatch.setattr(our_loop, "keep_freed_pages", lambda: calls.append("pages kept"))
    monkeypatch.setattr(our_loop.torch, "set_num_threads", calls.append)
    monkeypatch.setattr(our_loop, "usable_cores", lambda: 7)
    options = ["--data", str(mini.root), "--backbone", TINY[1], "--regime", "frozen", "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", ["loop", *options])
    loop.main()
    *epochs, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["epoch"] for row in epochs] == [0, 1]
    loop.main()
    *again, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["val_accuracy"] for row in again] == [row["val_accuracy"] for row in epochs], "the seed decides"
    for row in epochs:
        assert row["epoch_seconds"] == row["train_seconds"] + row["val_seconds"] > row["val_seconds"] > 0
        assert 0 <= row["val_accuracy"] * len(mini.val) <= len(mini.val)
    assert last["total_seconds"] > sum(row["epoch_seconds"] for row in epochs) and last["peak_rss_bytes"] > 1 << 20
    assert calls == ([7, "pages kept"] * 2 if loop is our_loop else [])
    if name not in ("plain", "our"):
        assert last["library"].startswith(f"{name} ")


def test_the_committed_report_is_what_the_samples_say() -> None:
    """The report is rendered from all committed samples, word for word. Both exist, or neither."""
    report, files = ROOT / "reports" / "peers.md", sorted((ROOT / "results").glob("peers-*/*.json"))
    assert report.exists() == bool(files)
    if files:
        kept = [Samples.from_json(file.read_text(encoding="utf-8")) for file in files]
        assert report.read_text(encoding="utf-8") == render(kept)
