"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

import bench
from bench.store.records import SCHEMA_VERSION
from bench.store.runs import RunFolder
from tests import light
from tests.commands import ONE, ONE_CELL, light_command
from tests.commands import command as own_process
from tests.commands import here as command
from tests.images import write_folder
from tests.runs import record as made_up_record
from tests.runs import write_run
from tests.weights import published
from tl.errors import UserError
from tl.regimes import REGIMES

REQUIRED = {
    *("run", "cell_id", "status", "reason", "dataset", "dataset_digest", "backbone", "weights", "weights_source"),
    *("regime", "device", "device_name", "precision", "seed", "epochs", "batch_size", "val_accuracy_best"),
    *("val_accuracy_last", "best_epoch", "epoch_seconds", "train_epoch_seconds", "val_epoch_seconds", "total_seconds"),
    *("images_per_second", "peak_memory_bytes", "peak_rss_bytes", "cuda_allocated_bytes", "cuda_reserved_bytes"),
    *("total_params", "trainable_params", "frozen_verified"),
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the smoke grid has been run."""
    folder = tmp_path_factory.mktemp("smoke")
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", "--grid", "smoke", "--device", "cpu"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def in_smoke(smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the working folder."""
    shutil.copytree(smoke, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_a_run_from_start_to_report(smoke: Path) -> None:
    """It writes records, a manifest and both reports, prints plain progress lines, and warns of synthetic images."""
    run = RunFolder(smoke / "results" / "smoke")
    records = run.records()
    assert set(records) == set(run.manifest().cells) and len(records) == 4
    assert {record.status for record in records.values()} == {"done"}
    assert all("synthetic: times" in record.fallback for record in records.values())
    output = (smoke / "output.txt").read_text()
    assert "WARNING: the images are synthetic" in output
    assert "[4/4]" in output and "epoch 3/3" in output and "left" in output
    assert "training only the head takes about half the time" in output, "the answer is on the terminal too"
    for suffix in ("md", "html"):
        page = (smoke / "reports" / f"smoke.{suffix}").read_text()
        assert page.index("images are synthetic") < page.index("timm:test_resnet")
    for record in records.values():
        assert record.result is not None and record.result.threads == record.environment.cores


@pytest.mark.alone
def test_little_of_a_cell_is_overhead(tmp_path: Path) -> None:
    """Less than a second, of each cell of the smoke grid."""
    done = command("run", "--grid", "smoke", "--device", "cpu", "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    records = RunFolder(tmp_path / "results" / "smoke").records()
    assert len(records) == 4
    for record in records.values():
        assert record.overhead_seconds is not None and record.overhead_seconds < 1


def test_no_record_holds_a_path_of_this_machine(smoke: Path) -> None:
    """Records, manifest and reports don't name folders of this machine."""
    for path in [*(smoke / "results").rglob("*.json"), *(smoke / "reports").glob("*.*")]:
        assert str(smoke.parent) not in path.read_text()
        assert os.environ["TL_CACHE"] not in path.read_text()


def test_a_second_run_does_only_what_is_missing(in_smoke: Path) -> None:
    """A complete run trains nothing. If a record is deleted, its cell is trained, and the other files don't change."""
    cells = in_smoke / "results" / "smoke" / "cells"
    before = {path.name: path.read_bytes() for path in cells.iterdir()}
    again = command("run", "--grid", "smoke", "--device", "cpu", "--no-report")
    assert again.returncode == 0 and "[1/" not in again.stdout and "4 of them done before" in again.stdout
    assert {path.name: path.read_bytes() for path in cells.iterdir()} == before
    (cells / min(before)).unlink()
    more = command("run", "--grid", "smoke", "--device", "cpu", "--no-report")
    assert more.returncode == 0 and "[4/4]" in more.stdout and "\n4 cells done\n" in more.stdout
    after = {path.name: path.read_bytes() for path in cells.iterdir()}
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == [min(before)]


def test_fresh_starts_over_and_deletes_nothing(in_smoke: Path) -> None:
    """`--fresh` makes a new folder, and leaves the old one unchanged."""
    files = {path: path.read_bytes() for path in in_smoke.rglob("*.json")}
    done = command(*ONE, "--name", "smoke", "--fresh", "--regime", "frozen", "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(path.read_bytes() == content for path, content in files.items())
    assert len(RunFolder(in_smoke / "results" / "smoke-2").records()) == 1


def test_more_seeds_join_a_run(in_smoke: Path) -> None:
    """The matrix may grow; existing cells are kept."""
    done = command("run", "--grid", "smoke", "--device", "cpu", "--seeds", "2", "--backbone", "timm:test_resnet")
    assert done.returncode == 0 and "4 cells, 2 of them done before" in done.stdout, done.stdout + done.stderr
    assert len(RunFolder(in_smoke / "results" / "smoke").manifest().cells) == 6
    assert " ± " in (in_smoke / "reports" / "smoke.md").read_text()


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_export_has_a_row_a_cell_and_the_promised_columns(in_smoke: Path, kind: str) -> None:
    """Every format and `bench.load_results` have the same values. Unknown values are empty."""
    done = command("export", "smoke", "--format", kind, "--output", f"out.{kind}")
    assert done.returncode == 0, done.stderr
    read = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[kind]
    table, direct = read(f"out.{kind}"), bench.load_results("smoke")
    assert len(table) == len(direct) == 4
    assert set(table.columns) >= REQUIRED and list(table.columns) == list(direct.columns)
    assert table["cell_id"].tolist() == direct["cell_id"].tolist()
    assert table["epoch_seconds"].tolist() == pytest.approx(direct["epoch_seconds"].tolist())
    assert (table["epoch_seconds"] > 0).all() and (table["peak_memory_bytes"] > 0).all()
    assert table["cuda_allocated_bytes"].isna().all(), "unknown is empty, never 0"
    assert table["val_accuracy_best"].isna().all(), "accuracy with random weights is meaningless"
    assert direct.set_index("regime").loc["frozen", "frozen_verified"].all()


def test_raw_export_has_a_row_an_epoch(in_smoke: Path) -> None:
    """There is a row for every epoch, including the first, and the phases of an epoch add up to its time."""
    assert command("export", "smoke", "--raw", "--output", "raw.csv").returncode == 0
    table = pd.read_csv("raw.csv")
    assert len(table) == 4 * 3 and set(table["epoch"]) == {1, 2, 3}
    parts = ["data", "transfer", "forward", "backward", "optimizer", "validation", "other"]
    whole = table["train_seconds"] + table["val_seconds"]
    assert table[[f"{part}_seconds" for part in parts]].sum(axis=1).tolist() == pytest.approx(whole.tolist(), rel=0.02)


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a run `r` of two backbones and two regimes."""
    cells = [made_up_record(f"timm:{name}", regime) for name in "ab" for regime in ("finetune", "frozen")]
    write_run(tmp_path / "results" / "r", cells)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_an_export_of_some_columns(kind: str) -> None:
    """They come in the order in which they are asked for, each once, with the values that they have among all."""
    wanted = ("--columns", "regime,epoch_seconds", "--columns", "backbone", "--columns", "regime")
    done = command("export", "r", "--format", kind, "--output", f"out.{kind}", *wanted)
    assert done.returncode == 0, done.stderr
    read = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[kind]
    table, whole = read(f"out.{kind}"), bench.load_results("r")
    assert list(table.columns) == ["regime", "epoch_seconds", "backbone"]
    assert table["backbone"].tolist() == whole["backbone"].tolist()
    assert table["epoch_seconds"].tolist() == pytest.approx(whole["epoch_seconds"].tolist())


@pytest.mark.usefixtures("made_up")
def test_the_ending_of_a_file_says_its_format() -> None:
    """Unless another one is asked for; blanks after a comma are no part of a name."""
    for name in ("out.json", "out.parquet", "out.tex", "out.csv", "out"):
        done = command("export", "r", "--columns", "backbone, regime", "-o", name)
        assert done.returncode == 0, done.stderr
    assert pd.read_json("out.json").values.tolist() == pd.read_parquet("out.parquet").values.tolist()
    assert Path("out.tex").read_text().startswith("\\begin{tabular}")
    assert Path("out.csv").read_text() == Path("out").read_text() and list(pd.read_csv("out")) == ["backbone", "regime"]
    command("export", "r", "--format", "csv", "-o", "out.json")
    assert len(pd.read_csv("out.json")) == 4


@pytest.mark.usefixtures("made_up")
def test_a_table_for_a_paper_has_the_columns_that_are_asked_for() -> None:
    """By their heading, with or without its unit, or by their metric; numbers are on the right. `all` are all."""
    done = command("export", "r", "--format", "latex", "--columns", "epoch,regime,peak_memory_bytes,backbone")
    assert done.returncode == 0, done.stderr
    first, rule, heads, *rest = done.stdout.splitlines()
    assert (first, rule) == (r"\begin{tabular}{rlrl}", r"\toprule")
    assert heads == r"epoch, s & regime & peak memory, MiB & backbone \\"
    rows = [line.removesuffix(r" \\").split(" & ") for line in rest if line.endswith(r"\\")]
    assert len(rows) == 4 and {row[1] for row in rows} == {"finetune", "frozen"}
    assert all(re.fullmatch(r"[\d.,]+", row[place]) for row in rows for place in (0, 2))
    everything = command("export", "r", "--format", "latex", "--columns", "all").stdout.splitlines()
    usual = command("export", "r", "--format", "latex").stdout.splitlines()
    assert everything[2].count("&") > usual[2].count("&") > 2


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--columns", "regime,backbon"], "--columns 'backbon': no such column; near matches: backbone"),
        (["--raw", "--columns", "epochz"], "--columns 'epochz': no such column; near matches: epoch"),
        (["--format", "latex", "--columns", "regim"], "--columns 'regim': no such column; near matches: regime"),
        (["--columns", "xyzzy"], "--columns 'xyzzy': no such column; there are run, cell_id, "),
    ],
)
def test_an_unknown_column_is_one_line(words: list[str], said: str) -> None:
    """With names that look like it, or else all that there are; nothing is written."""
    done = command("export", "r", *words, "--output", "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert done.stdout == "" and not Path("out").exists()


def test_the_order_of_cells_is_recorded(smoke: Path) -> None:
    """Positions count from 0 without gaps, and the regimes of a backbone are next to each other."""
    records = sorted(RunFolder(smoke / "results" / "smoke").records().values(), key=lambda record: record.order or 0)
    assert [record.order for record in records] == [0, 1, 2, 3] and {record.block for record in records} == {0}
    backbones = [record.cell.config.backbone for record in records]
    assert backbones[0] == backbones[1] and backbones[2] == backbones[3]


def test_export_prints_what_it_would_write(in_smoke: Path) -> None:
    """Standard output has the same bytes as the CSV file, and nothing else."""
    command("export", "smoke", "--output", "out.csv")
    assert command("export", "smoke").stdout == (in_smoke / "out.csv").read_text()


def test_report_of_several_runs(in_smoke: Path) -> None:
    """Each row names its run."""
    shutil.copytree("results/smoke", "results/other")
    done = command("report", "smoke", "other", "--name", "both")
    assert done.returncode == 0, done.stderr
    page = Path("reports/both.md").read_text()
    assert "| other" in page and "| smoke" in page


def test_a_cell_that_makes_no_sense_is_skipped_and_no_failure(tmp_path: Path) -> None:
    """`zeroshot` without pretrained weights is skipped: exit status 0, shown in report and export, retried later."""
    shutil.copy(published() / "timm-test_resnet.pth", tmp_path / "timm-test_resnet.pth")
    options = ("--regime", "zeroshot", "--regime", "frozen", "--weights-dir", ".", "--name", "x", "--seeds", "2")
    done = command("run", "--grid", "smoke", "--device", "cpu", "--epochs", "1", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = "torchvision:shufflenet_v2_x0_5 zeroshot cpu seed 0: only pretrained weights come with an ImageNet"
    assert f"skipped: {skipped}" in done.stdout and "have no result" not in done.stdout
    assert "validation pass: accuracy" in done.stdout
    for suffix in ("md", "html"):
        page = Path(f"reports/x.{suffix}").read_text()
        assert skipped in page and "zeroshot (control)" in page
    run = RunFolder(tmp_path / "results" / "x")
    assert len(run.records()) == 6, "one cell for both seeds"
    assert all(not record.traceback for record in run.records().values())
    table = bench.load_results("x").set_index(["backbone", "regime", "seed"]).sort_index()
    cell = table.loc[("torchvision:shufflenet_v2_x0_5", "zeroshot", 0)]
    assert cell["status"] == "skipped" and "TL_OFFLINE" in cell["reason"] and pd.isna(cell["val_accuracy_best"])
    cell = table.loc[("timm:test_resnet", "zeroshot", 0)]
    assert cell["status"] == "done" and cell["trainable_params"] == 0 and cell["frozen_verified"]
    assert cell["val_accuracy_best"] == cell["val_accuracy_last"] and cell["peak_rss_bytes"] > 0
    for name in ("epoch_seconds", "first_epoch_seconds", "images_per_second", "forward_flops", "gradient_bytes"):
        assert pd.isna(cell[name]), name
    assert command("export", "x", "--raw", "--output", "raw.csv").returncode == 0
    raw = pd.read_csv("raw.csv").query("regime == 'zeroshot'")
    assert raw["epoch"].tolist() == [1] and raw["val_seconds"].notna().all()
    assert raw[["learning_rate", "train_seconds", "train_loss", "train_accuracy", "data_seconds"]].isna().all(axis=None)
    again = command("run", "--grid", "smoke", "--device", "cpu", "--epochs", "1", *options, "--no-report")
    assert again.returncode == 0 and "[6/6]" in again.stdout and "5 of them done before" in again.stdout


def test_a_timed_out_cell_is_a_record_and_the_sweep_goes_on(tmp_path: Path) -> None:
    """The exit status is 1, and the reason is in the record, in the report and on the terminal."""
    grid = tmp_path / "two.toml"
    grid.write_text(ONE_CELL.replace('"timm:test_resnet"', f'"{light.HANGS}", "{light.QUICK[0]}"'))
    done = light_command("run", "--grid", str(grid), "--timeout", "3")
    assert done.returncode == 1, done.stdout + done.stderr
    run = RunFolder(tmp_path / "results" / "two")
    records = {record.cell.config.backbone: record for record in run.records().values()}
    slow = records[light.HANGS]
    assert records[light.QUICK[0]].status == "done"
    assert slow.status == "timeout" and "3 s" in slow.reason and slow.result is None
    assert "timeout: " in done.stdout
    assert "took longer" in Path("reports/two.md").read_text()
    table = bench.load_results("two")
    assert set(table["status"]) == {"done", "timeout"} and table["reason"].notna().sum() == 1


def test_a_failing_cell_has_its_traceback(tmp_path: Path) -> None:
    """A cell whose weights don't fit has a failed record with the reason, and the other cells run."""
    import torch

    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save({"x": torch.zeros(1)}, folder / "test_resnet.pth")
    done = command(
        *(
            "run",
            "--grid",
            "smoke",
            "--device",
            "cpu",
            "--regime",
            "frozen",
            "--weights-dir",
            str(folder),
            "--name",
            "x",
        )
    )
    assert done.returncode == 1, done.stdout + done.stderr
    records = {
        record.cell.config.backbone: record for record in RunFolder(tmp_path / "results" / "x").records().values()
    }
    bad = records["timm:test_resnet"]
    assert bad.status == "failed" and "does not fit" in bad.reason and "WeightsError" in bad.traceback
    assert records["torchvision:shufflenet_v2_x0_5"].status == "done"
    assert "does not fit" in Path("reports/x.html").read_text()


def test_weights_that_cannot_be_had_fail_their_cell(tmp_path: Path) -> None:
    """`--weights pretrained` without a network fails the cell with advice. A later run with weights replaces it."""
    import timm
    import torch

    arguments = ("run", "--grid", "smoke", "--device", "cpu", "--weights", "pretrained", "--name", "x", "--no-report")
    done = own_process(*arguments, "--backbone", "timm:test_resnet", TL_OFFLINE="", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1, done.stdout + done.stderr
    run = RunFolder(tmp_path / "results" / "x")
    for record in run.records().values():
        assert record.status == "failed" and "--weights-dir" in record.reason
    (tmp_path / "weights").mkdir()
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights" / "test_resnet.pth")
    again = command(*arguments, "--backbone", "timm:test_resnet", "--weights-dir", str(tmp_path / "weights"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert {record.status for record in run.records().values()} == {"done"}
    assert run.records().keys() == run.manifest().cells.keys()
    assert len(list((run.folder / "superseded").iterdir())) == 2, "the failures are kept"


@pytest.mark.alone
def test_a_batch_that_memory_does_not_allow_is_a_failed_cell(tmp_path: Path) -> None:
    """torch's own allocation error becomes status `oom` with the requested size, and the other cells run.

    VGG-16 needs 528 MiB each for weights and gradients; the smallest network needs a tenth of the limit.
    """
    options = ("--backbone", "torchvision:vgg16", "--regime", "finetune", "--memory-limit", "800MiB", "--no-report")
    done = command(*ONE, *options)
    assert done.returncode == 1, done.stdout + done.stderr
    run = next((tmp_path / "results").iterdir())
    records = {r.cell.config.backbone: r for r in RunFolder(run).records().values()}
    small, large = records["timm:test_resnet"], records["torchvision:vgg16"]
    assert small.status == "done", (small.reason, small.traceback)
    assert large.status == "oom", (large.reason, large.traceback)
    assert re.fullmatch(r"out of memory: asked for [\d.]+ \w+ \(limit: 800 MiB\)", large.reason)


def test_the_version_is_that_of_the_package() -> None:
    """`--version` prints the installed version, for bug reports."""
    from importlib.metadata import version

    assert command("--version").stdout == f"tl-bench {version('tl-bench')}\n"


def test_weights_given_later_are_not_ignored(in_smoke: Path) -> None:
    """A run keeps the weights that it began with, and refuses a folder with others; an empty folder is accepted."""
    import timm
    import torch

    (in_smoke / "weights").mkdir()
    same = command("run", "--grid", "smoke", "--device", "cpu", "--weights-dir", "weights", "--no-report")
    assert same.returncode == 0 and "4 of them done before" in same.stdout, same.stderr
    torch.save(timm.create_model("test_resnet").state_dict(), in_smoke / "weights" / "test_resnet.pth")
    done = command("run", "--grid", "smoke", "--device", "cpu", "--weights-dir", "weights")
    assert done.returncode == 2 and "started with random weights" in done.stderr and "--fresh" in done.stderr


def test_a_lock_left_behind_does_not_make_a_folder_useless(tmp_path: Path) -> None:
    """A folder with only a lock, from a command that ended before it wrote anything, can be used."""
    (tmp_path / "results" / "smoke-random").mkdir(parents=True)
    (tmp_path / "results" / "smoke-random" / ".lock").touch()
    done = command(*ONE, "--regime", "frozen", "--no-report")
    assert done.returncode == 0, done.stderr
    (tmp_path / "results" / "other").mkdir()
    (tmp_path / "results" / "other" / "thesis.txt").touch()
    assert command(*ONE, "--name", "other").returncode == 2


def test_a_run_that_changed_meanwhile_is_left_alone(in_smoke: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that another command wrote between planning and locking are not overwritten."""
    from rich.console import Console

    from bench.sweep.execute import execute, executor_for
    from bench.sweep.grid import load_grid
    from bench.sweep.options import Options
    from bench.sweep.plan import plan

    grid = load_grid("smoke").override({"seeds": 2, "devices": ["cpu"]}, {})
    options = Options(name="smoke", executor="inline")
    worker = executor_for(options)
    sweep = plan(grid, options, worker, Console(quiet=True))
    run = RunFolder(in_smoke / "results" / "smoke")
    manifest = run.manifest()
    run.write_manifest(manifest.replace(invocations=(*manifest.invocations, manifest.invocations[0])))
    before = {path: path.read_bytes() for path in run.folder.rglob("*.json")}
    with pytest.raises(UserError, match="another command has changed this run meanwhile"):
        execute(sweep, grid, options, worker, Console(quiet=True))
    assert {path: path.read_bytes() for path in run.folder.rglob("*.json")} == before


def test_names_and_files_of_reports_and_exports(in_smoke: Path) -> None:
    """A report's name can't leave its folder, and the message for a file that can't be written has its name."""
    outside = command("report", "smoke", "--name", "../../outside")
    assert outside.returncode == 2 and "must be a plain name" in outside.stderr
    nested = command("export", "smoke", "--output", "new/out.csv")
    assert nested.returncode == 0 and Path("new/out.csv").is_file(), nested.stderr
    nowhere = command("export", "smoke", "--output", "new/out.csv/out.csv")
    assert nowhere.returncode == 2 and "new/out.csv" in nowhere.stderr and "None" not in nowhere.stderr
    piped = subprocess.run(
        f"{sys.executable} -m bench export smoke | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert piped.stdout.startswith("run,") and piped.stderr == ""


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    """The cells are listed with their state."""
    done = command("run", "--grid", "smoke", "--device", "cpu", "--dry-run")
    assert done.returncode == 0 and done.stdout.count("to do") == 4, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_inline_executor_gives_the_same_numbers(in_smoke: Path) -> None:
    """Losses and predictions are the same inline and in a process."""
    done = command(
        "run", "--grid", "smoke", "--device", "cpu", "--executor", "inline", "--name", "inline", "--no-report"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (RunFolder(in_smoke / "results" / name).records() for name in ("smoke", "inline"))
    assert one.keys() == two.keys()
    for cell_id, record in one.items():
        a, b = record.result, two[cell_id].result
        assert a is not None and b is not None
        assert [e.train_loss for e in a.epochs] == pytest.approx([e.train_loss for e in b.epochs], rel=1e-5)
        assert a.best.labels == b.best.labels


def test_two_data_sets_or_protocols_do_not_mix(in_smoke: Path) -> None:
    """A run has one data set and one protocol. Others need a name of their own."""
    before = sorted(path.read_bytes() for path in in_smoke.rglob("*.json"))
    data = str(write_folder(in_smoke / "own"))
    for more, message in ((["--data", data], "holds a run on synthetic-mini"), (["--epochs", "9"], "epochs=3")):
        done = command("run", "--grid", "smoke", "--device", "cpu", "--name", "smoke", *more)
        assert done.returncode == 2 and message in done.stderr and "--fresh" in done.stderr, done.stdout + done.stderr
    assert sorted(path.read_bytes() for path in (in_smoke / "results").rglob("*.json")) == before
    assert command("run", "--grid", "smoke", "--device", "cpu", "--epochs", "1", "--no-report").returncode == 0
    assert (in_smoke / "results" / "smoke-epochs1").is_dir(), "without a name, the protocol is in the name"


@pytest.mark.parametrize(
    "arguments", [("run", "--grid", "smoke", "--device", "cpu"), ("report", "smoke"), ("export", "smoke")]
)
def test_a_newer_schema_is_refused(in_smoke: Path, arguments: tuple[str, ...]) -> None:
    """The file is named and nothing is changed. (`run` sets such records aside: see `tests/test_faults.py`.)"""
    folder = in_smoke / "results" / "smoke"
    records = [next((folder / "cells").iterdir())] if arguments[0] != "run" else []
    for path in (folder / "manifest.json", *records):
        text = path.read_text()
        path.write_text(json.dumps({**json.loads(text), "schema_version": SCHEMA_VERSION + 1}))
        before = {p: p.read_bytes() for p in in_smoke.rglob("*.*") if p.is_file()}
        done = command(*arguments)
        assert done.returncode == 2 and f"{path.name}: schema {SCHEMA_VERSION + 1} is newer" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert {p: p.read_bytes() for p in in_smoke.rglob("*.*") if p.is_file()} == before
        path.write_text(text)


def test_a_damaged_record_is_named(in_smoke: Path) -> None:
    """The message for half a file names it."""
    path = next((in_smoke / "results" / "smoke" / "cells").iterdir())
    path.write_text(path.read_text()[:100])
    done = command("export", "smoke")
    assert done.returncode == 2 and path.name in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("what", "entry"),
    [
        ("grids", "tutorial"),
        ("backbones", "timm:tf_efficientnet_lite0"),
        ("regimes", "frozen-tutorial"),
        ("tasks", "multilabel"),
        ("executions", "plain"),
        ("precisions", "bf16"),
        ("datasets", "hymenoptera"),
        ("devices", "cpu"),
    ],
)
def test_lists(what: str, entry: str) -> None:
    """Each list has a known entry."""
    done = command("list", what)
    assert done.returncode == 0 and entry in done.stdout


def test_list_backbones_finds_text() -> None:
    """It lists the names of both sources that contain the text."""
    output = command("list", "backbones", "resnet18").stdout
    assert "torchvision:resnet18" in output and "timm:resnet18.a1_in1k" in output


def test_a_list_for_other_programs_has_a_line_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """However narrow a terminal would be; and a name is found in capital letters or not."""
    monkeypatch.setenv("COLUMNS", "30")
    lines = command("list", "regimes").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(REGIMES)
    assert all(line == line.rstrip() and line.endswith(REGIMES[line.split()[0]].summary) for line in lines)
    assert command("list", "regimes", "FroZen").stdout == command("list", "regimes", "frozen").stdout != ""


def test_a_list_says_which_backbones_are_not_counted_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time for counting is over; a name in other capital letters is found there, too."""
    monkeypatch.setattr("bench.execution.discovery.backbone_details", lambda executor, chosen, others: {})
    output = command("list", "backbones", "ResNet18").stdout
    assert "torchvision:resnet18" in output
    assert re.search(r"(?m)^… +\d+ are not counted yet: the same command counts on", output)
    assert re.search(r"(?m)^… +1 is not counted yet", command("list", "backbones", "torchvision:resnet18.").stdout)


def test_doctor_shows_what_this_machine_has_and_what_not() -> None:
    """It lists devices, threads, images and weights, and reasons for those that are missing."""
    done = command("doctor")
    assert done.returncode == 0, done.stderr
    for text in (
        "cores",
        "torch ",
        "device cpu",
        "images synthetic: 244 for training, 153 for validation, all decodable, in ",
        "images hymenoptera: the real images are",
    ):
        assert text in done.stdout
    assert "weights timm:tf_efficientnet_lite0: package" in done.stdout
    assert "weights torchvision:resnet18: not on this machine, and TL_OFFLINE is set\n" in done.stdout


@pytest.mark.parametrize("protocol", ["tuned", "kfold"])
def test_a_run_by_another_protocol(tmp_path: Path, protocol: str) -> None:
    """It works from the command line to report and export, has its own folder, resumes, and mixes with no other."""
    arguments = (*ONE, "--regime", "frozen", "--epochs", "1", "--protocol", protocol)
    done = command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFolder(tmp_path / "results" / f"smoke-{protocol}-epochs1-random")
    ((_, record),) = run.records().items()
    dataset, result = run.manifest().dataset, record.result
    assert result is not None and record.status == "done"
    assert (
        len(dataset.val_files)
        == len(dataset.val_labels)
        == len(result.last.labels)
        == {"tuned": 16, "kfold": 40}[protocol]
    )
    right = sum(a == b for a, b in zip(result.last.labels, dataset.val_labels, strict=True))
    assert result.val_accuracy_last == pytest.approx(right / len(dataset.val_labels))
    row = bench.load_results(run.folder).iloc[0]
    assert row["protocol"] == protocol and row["images_per_second"] is not None
    if protocol == "tuned":
        assert "tuning 4/4" in done.stdout and "training at" in done.stdout and record.train_images == 24
        assert row["learning_rate"] == result.learning_rate_chosen and row["tuning_seconds"] > 0
    else:
        assert "fold 5/5" in done.stdout and record.train_images == 4 * 40
        assert row["learning_rate"] == 1e-3 and pd.isna(row["tuning_seconds"])
    assert record.overhead_seconds is not None and record.overhead_seconds > 0
    trained = sum(trial.seconds for trial in result.trials) + sum(row.seconds or 0.0 for row in result.epochs)
    assert record.overhead_seconds == pytest.approx(record.wall_seconds - trained), "no trial or fold is overhead"
    again = command(*arguments, "--no-report")
    assert again.returncode == 0 and "1 cell, 1 of them done before" in again.stdout, again.stdout + again.stderr
    mixed = command(*ONE, "--regime", "frozen", "--epochs", "1", "--name", run.folder.name)
    assert mixed.returncode == 2 and f"holds a run with protocol='{protocol}'" in mixed.stderr


def test_a_run_of_version_2_goes_on(in_smoke: Path) -> None:
    """Version 2 had no protocols. The cells keep their ids, and the protocol is `fixed`."""
    folder = in_smoke / "results" / "smoke"
    later = ("protocol", "learning_rates", "folds")
    for path in [folder / "manifest.json", *(folder / "cells").iterdir()]:
        data = json.loads(path.read_text(), object_hook=lambda d: d if "val_files" in d else _without(d, later))
        path.write_text(
            json.dumps({key: value for key, value in data.items() if key != "digest"} | {"schema_version": 2})
        )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "folds" not in json.dumps(manifest)
    again = command("run", "--grid", "smoke", "--device", "cpu", "--no-report")
    assert again.returncode == 0 and "4 of them done before" in again.stdout, again.stdout + again.stderr


def _without(data: dict[str, object], names: tuple[str, ...]) -> dict[str, object]:
    """Drop settings by name, but keep a manifest's `protocol`, which is a table."""
    return {key: value for key, value in data.items() if key not in names or isinstance(value, dict)}


@pytest.mark.usefixtures("made_up")
def test_list_without_a_word_lists_the_lists() -> None:
    """Each of them can be listed."""
    from bench.sweep.choices import LISTS

    done = command("list")
    assert done.returncode == 0 and [line.split()[0] for line in done.stdout.splitlines()] == list(LISTS)
    for what in LISTS:
        assert command("list", what).returncode == 0


def test_list_backbones_says_how_large_they_are_and_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers are those of the networks without classifiers, counted once; files are looked for each time."""
    import torch

    from tl import make_backbone

    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def said(spec: str) -> str:
        output = own_process("list", "backbones", spec, COLUMNS="200").stdout
        return next(line for line in output.splitlines() if line.split()[0] == spec)

    for spec in ("torchvision:resnet18", "timm:test_resnet", "timm:test_vit"):
        module = make_backbone(spec, weights="random").module
        parameters = sum(parameter.numel() for parameter in module.parameters())
        assert f" {parameters / 1e6:.1f} M parameters; weights not here" in said(spec)
    (kept,) = (tmp_path / "cache").glob("details-*.json")
    before = kept.read_bytes()
    (tmp_path / "hub" / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({}, tmp_path / "hub" / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    assert "11.2 M parameters; weights here (torch hub cache)" in said("torchvision:resnet18")
    assert kept.read_bytes() == before


def test_all_regimes_in_a_word(tmp_path: Path) -> None:
    """`--regime all` means each of them once; several names may be joined by commas, as for the other axes."""
    from bench.sweep.grid import load_grid
    from bench.sweep.plan import choose_grid
    from tl.regimes import REGIMES

    assert choose_grid("smoke", {"regimes": ["frozen", "all"]}, {}).matrix.regimes == [
        "frozen",
        *(name for name in REGIMES if name != "frozen"),
    ]
    (tmp_path / "g.toml").write_text('[matrix]\nbackbones = ["timm:test_resnet"]\nregimes = ["all"]\n')
    assert load_grid(str(tmp_path / "g.toml")).matrix.regimes == list(REGIMES)
    done = command(*ONE, "--regime", "all", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert all(f"timm:test_resnet {name} cpu" in done.stdout for name in REGIMES)


def test_the_help_of_run_is_in_groups() -> None:
    """Every option has one, and each group has what belongs together."""
    import typer.main

    from bench.cli import app
    from bench.cli.run import GROUPS

    options = {param.name for param in typer.main.get_command(app).commands["run"].params}  # type: ignore[attr-defined]
    assert options - {name for names in GROUPS.values() for name in names} <= {"help"}
    done = command("run", "--help")
    places = [done.stdout.index(f"─ {name} ─") for name in GROUPS]
    assert places == sorted(places)
    between = done.stdout[places[0] : places[1]]
    assert "--backbone" in between and "--epochs" not in between


@pytest.mark.parametrize("name", ["run", "pick", "train"])
def test_the_help_fills_the_lines_of_its_paragraphs(name: str) -> None:
    """No line ends where only the source has a line break: the next line's first word would not fit."""
    said = own_process(name, "--help", COLUMNS="80", TERM="dumb").stdout.partition("╭")[0].partition("Usage:")[2]
    lines = [line.strip() for line in said.splitlines()]
    assert len(lines) > 8
    for one, following in pairwise(lines):
        if one and following:
            assert len(f"{one} {following.split()[0]}") > 78, (one, following)


def test_the_help_of_gate_names_its_table() -> None:
    """Brackets are no markup there."""
    assert "[[tool.bench.gate.rule]]" in " ".join(command("gate", "--help").stdout.replace("│", "").split())
