"""Cells are counted in one way: by the progress, the last line of `run`, lists, pages and notebooks."""

from __future__ import annotations

import html
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

import bench
from bench.analysis.tally import Tally, tally, tally_of_run
from bench.store.records import Record
from bench.store.runs import RunFolder
from bench.sweep.progress import make_reporter
from tests import light
from tests.commands import here, light_here
from tests.runs import record, write_pick, write_run


@pytest.mark.parametrize(
    ("statuses", "left", "said", "short"),
    [
        (["done"], 0, "1 cell done", "1/1 cells"),
        (["done", "done"], 0, "2 cells done", "2/2 cells"),
        (["done", "done"], 3, "2 of 5 cells done, 3 left", "2/5 cells"),
        (["failed", "oom", "timeout", "diverged"], 0, "0 of 4 cells done, 4 failed", "4/4 cells, 4 failed"),
        (
            ["done", "skipped", "oom", "done", "skipped", "skipped"],
            2,
            "2 of 8 cells done, 3 skipped, 1 failed, 2 left",
            "6/8 cells, 3 skipped, 1 failed",
        ),
        ([], 1, "0 of 1 cell done, 1 left", "0/1 cells"),
    ],
)
def test_a_tally_in_words(statuses: list[str], left: int, said: str, short: str) -> None:
    """Every planned cell is counted once, and what there is none of isn't named."""
    count = tally(statuses, left)
    assert (str(count), count.short) == (said, short)
    assert count.planned == len(statuses) + left and count.ended == len(statuses)


def some() -> list[Record]:
    """Three cells that are done, one skipped, and two that failed in different ways."""
    done = [record("timm:a", "finetune", seed=seed) for seed in range(3)]
    return [
        *done,
        record("timm:b", "frozen", status="skipped"),
        record("timm:b", "finetune", status="oom"),
        record("timm:c", "finetune", status="timeout"),
    ]


SAID = "3 of 8 cells done, 1 skipped, 2 failed, 2 left"


def test_everything_that_reads_a_run_counts_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`show`, `list runs`, the index, the header of a page and a notebook, for a run with cells in all states."""
    monkeypatch.chdir(tmp_path)
    missing = [record("timm:c", "frozen", seed=seed).cell for seed in (0, 1)]
    run = write_run(tmp_path / "results" / "r", some(), missing=missing)
    assert here("report", "r", "--no-images").returncode == 0 and here("report", "--index").returncode == 0
    page = html.unescape(Path("reports/r.html").read_text())
    shown = {
        "terminal": here("show", "r", "--format", "text").stdout,
        "Markdown": here("show", "r", "--format", "md").stdout,
        "list": here("list", "runs").stdout,
        "index": html.unescape(Path("reports/index.html").read_text()),
        "strip": page[page.index("<body") : page.index("<h2")],
        "report": Path("reports/r.md").read_text(),
        "notebook": repr(bench.Run("r")),
        "run": str(tally_of_run(run)),
    }
    assert {name: text.count(SAID) > 0 for name, text in shown.items()} == dict.fromkeys(shown, True)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_counts_what_ended_before(terminal: bool) -> None:
    """A command that goes on begins where the last one ended, and ends with the number of all cells."""
    text, (one, other, *_) = io.StringIO(), some()
    before = [record("timm:z", "frozen"), record("timm:z", "finetune", status="diverged")]
    console = Console(file=text, width=120, force_terminal=terminal)
    with make_reporter(console, [one.cell, other.cell], before=before) as reporter:
        for each in (one, other.replace(status="failed", reason="why", result=None)):
            reporter.started(each.cell)
            reporter.ended(each)
    if terminal:
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
        seen = re.findall(r"\d/\d cells[, a-z0-9]*?(?= +\d:\d\d:\d\d)", plain)
        assert list(dict.fromkeys(seen)) == ["2/4 cells, 1 failed", "3/4 cells, 1 failed", "4/4 cells, 2 failed"]
    else:
        assert re.findall(r"\[\d/\d\]", text.getvalue()) == ["[3/4]", "[4/4]"]


@pytest.mark.usefixtures("light_commands")
def test_a_command_counts_as_the_report_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its progress, its last line, and its first line when it goes on."""
    monkeypatch.chdir(tmp_path)
    sizes = "".join(f'[[include]]\nbackbone = "{light.HUNGRY}"\nbatch_size = {size}\n' for size in (2, 8, 16))
    Path("grid.toml").write_text(
        f'dataset = "synthetic-mini"\npaired = false\n[matrix]\nbackbones = {json.dumps([light.HUNGRY])}\n'
        f'regimes = ["frozen"]\ndevices = ["cpu"]\n[train]\nbatch_size = 4\n{sizes}'
    )
    words = ("run", "--grid", "grid.toml", "--name", "skipping", "--skip-larger-after-oom", "--no-report")
    done = light_here(*words)
    run = RunFolder(Path("results/skipping"))
    count = tally_of_run(run)
    assert (count.done, count.left) == (1, 0) and count.skipped and count.failed and count.planned == 4
    assert f"\n{count}\n" in done.stdout and re.findall(r"\[\d/\d\]", done.stdout) == [f"[{n}/4]" for n in range(1, 5)]
    assert f"{count}" in here("list", "runs").stdout
    again = light_here(*words)
    assert "4 cells, 1 of them done before" in again.stdout
    assert re.findall(r"\[\d/\d\]", again.stdout) == ["[2/4]", "[3/4]", "[4/4]"]
    assert f"\n{tally_of_run(run)}\n" in again.stdout


def test_a_pick_leaves_no_cell(tmp_path: Path) -> None:
    """It plans more than it has time for, and says so of its candidates."""
    one = record("timm:a", "frozen")
    run = write_run(tmp_path / "r", [one], missing=[record("timm:b", "frozen").cell])
    assert tally_of_run(run) == Tally(done=1, left=1)
    write_pick(run, one)
    assert tally_of_run(run) == Tally(done=1) and repr(bench.Run(run.folder)).endswith(": 1 cell done)")


def test_a_run_that_can_t_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason; the others have their counts. Names are chosen as in other lists."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "results" / "good", [record("timm:a", "frozen")])
    write_run(tmp_path / "results" / "odd", [record("timm:a", "frozen")])
    (tmp_path / "results" / "odd" / "manifest.json").write_text("{")
    listed = here("list", "runs")
    assert listed.returncode == 0 and re.search(r"^good +1 cell done; own; 2026-01-01 *$", listed.stdout, re.MULTILINE)
    assert re.search(r"^odd +.*manifest\.json", listed.stdout, re.MULTILINE)
    assert "odd" not in here("list", "runs", "good").stdout
    assert "has no runs yet" in here("list", "runs", "--results", "nowhere").stderr
