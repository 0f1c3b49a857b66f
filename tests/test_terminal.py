"""What people read on a terminal: the answer comes first, and tables fit its width."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from bench.report.answers import half_answers
from bench.report.fitted import Fitted, cut, fit
from bench.report.summary import summarise
from bench.report.terminal import print_summary
from bench.store.records import Record
from bench.store.runs import RunFolder
from tests.commands import here as command
from tests.runs import record, write_run

LONG = "timm:a_network_{}_with_quite_a_long_name.and_a_tag_of_its_weights"


def lines(columns: list[Fitted], width: int) -> tuple[list[str], list[str]]:
    """The lines of the table, and what has no room."""
    console = Console(width=width)
    table, left_out = fit(columns, width)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()], left_out


def columns_of(*names: str) -> list[Fitted]:
    return [
        Fitted(heading="name", texts=names, brief=tuple(n.partition(":")[2] for n in names), is_name=True),
        Fitted(
            heading="accuracy", texts=("97.4% (93.5–99.0)",) * len(names), brief=("97.4%",) * len(names), right=True
        ),
        Fitted(heading="seconds per epoch", texts=("1.23",) * len(names), rank=1, right=True),
        Fitted(heading="note", texts=("12345678901234567890",) * len(names), rank=2),
    ]


@pytest.mark.parametrize("width", range(34, 140))
def test_a_table_fits_any_width(width: int) -> None:
    """Names lose their library, then their middle; then columns are left out, the least important one first."""
    names = [LONG.format(number) for number in (1, 2)]
    shown, left_out = lines(columns_of(*names), width)
    assert all(cell_len(line) <= width for line in shown)
    assert len(shown) in (3, 4, 5) and shown[-1] != shown[-2], "one line a row, below a heading; rows still differ"
    assert left_out in ([], ["note"], ["seconds per epoch", "note"])
    text = "\n".join(shown)
    if left_out:
        assert "…" in text, "no column goes before names are as short as they can be"
    elif "…" in text:
        assert "timm:" not in text, "the library goes before the middle"
    assert ("97.4% (93.5–99.0)" in text) or left_out == ["seconds per epoch", "note"]


def test_what_fits_is_as_it_is() -> None:
    """Nothing is shortened where there is room, and headings stand on one line."""
    shown, left_out = lines(columns_of("timm:a", "timm:b"), 80)
    assert left_out == [] and len(shown) == 3
    assert shown[1].split() == ["timm:a", "97.4%", "(93.5–99.0)", "1.23", "12345678901234567890"]


@pytest.mark.parametrize("text", ["abcdefgh", "日本語の名前です", "a", ""])
def test_a_cut_text_has_its_ends(text: str) -> None:
    """Its beginning and its end are left, in no more columns than there are."""
    for width in range(1, 20):
        short = cut(text, width)
        assert cell_len(short) <= width
        assert short == text if cell_len(text) <= width else "…" in short
    assert cut("abcdefgh", 5) == "ab…gh"


def trained(slower: float = 1.0) -> list[Record]:
    """Records of two backbones with long names, fine-tuned and frozen, with three seeds."""
    return [
        record(LONG.format(number), regime, seed=seed, seconds=slower * seconds + seed / 100)
        for number in (1, 2)
        for regime, seconds in (("finetune", 20.0), ("frozen", 9.0 + number / 2))
        for seed in range(3)
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of `trained`."""
    return write_run(tmp_path / "results" / "r", trained())


TABLES = (["show", "r"], ["claims", "r"], ["compare", "r", "s"], ["gate", "r", "s"], ["compare", "r", "--by", "regime"])


@pytest.mark.parametrize("words", TABLES, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_and_are_markdown_elsewhere(
    words: list[str], columns: int, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line of a table is wider than the terminal; what a pipe gets is Markdown, and so is `--format md`."""
    write_run(run.folder.parent / "s", trained(2.0))
    monkeypatch.setenv("COLUMNS", str(columns))
    text = command(*words, "--format", "text").stdout
    assert "| " not in text and "---" not in text
    rows = [line for line in text.splitlines() if len(re.findall(r"\S {2,}\S", line)) > 1]
    assert len(rows) > 4 and ("…" in text or columns == 120) and all(cell_len(line) <= columns for line in rows)
    piped = command(*words).stdout
    assert re.search(r"^\|[:|-]+\|$", piped, re.MULTILINE) and "…" not in piped
    assert piped == command(*words, "--format", "md").stdout


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["show", "r"], r"Use timm:a_network"),
        (["claims", "r"], r"(supported|refuted|open|mixed) +half-the-time-fast: "),
        (
            ["compare", "r", "--by", "regime"],
            r"frozen against finetune: nothing is shown to be worse; 4 better, 2 undecided, .*\(error rate 5% over all",
        ),
        (
            ["gate", "r", "s"],
            r"Gate failed: regressed\. s against r: 8 of 20 comparisons are worse: .*\(error rate 1% over all",
        ),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_the_answer_comes_first(words: list[str], first: str, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any table."""
    write_run(run.folder.parent / "s", trained(2.0))
    monkeypatch.setenv("COLUMNS", "80")
    said = command(*words, "--format", "text").stdout
    assert re.match(first, " ".join(said.split()[:40])), said


@pytest.mark.parametrize("words", [["show", "r"], ["claims", "r"], ["compare", "r", "--by", "regime"]], ids=" ".join)
def test_a_terminal_gets_text(words: list[str], run: RunFolder) -> None:
    """A real one, of a process of its own."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-m", "bench", *words], stdout=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        try:
            while chunk := os.read(ours, 4096):
                said += chunk
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    assert b"| " not in said and b"\x1b[1m" in said


def test_text_is_not_written_to_a_file(run: RunFolder, tmp_path: Path) -> None:
    """A file is for other programs, or for people who look at pages."""
    done = command("compare", "r", "--by", "regime", "--format", "text", "-o", "x.md")
    assert done.returncode == 2 and "--format text is for the terminal: --output x.md needs" in done.stderr
    assert not (tmp_path / "x.md").exists()


def test_claims_of_nothing_say_so_first(tmp_path: Path) -> None:
    """On the first line, which is not empty."""
    write_run(tmp_path / "results" / "lost", [record("timm:a", "frozen", status="oom")])
    first, second = command("claims", "lost", "--format", "text", "--results", str(tmp_path / "results")).stdout.split(
        "\n", 1
    )
    assert first.startswith("No claim is tested yet: none has results of both") and second.startswith("not tested here")


def test_speed_ups_that_are_all_the_same_have_no_range(tmp_path: Path) -> None:
    """Where there are too many comparisons for a sentence each."""
    for name, apart in (("same", 0.0), ("apart", 1.0)):
        records = [
            record(f"timm:{place}", regime, seed=seed, seconds=seconds + apart * place + seed / 100)
            for place in range(7)
            for regime, seconds in (("finetune", 22.0), ("frozen", 10.0))
            for seed in range(3)
        ]
        said = summarise([write_run(tmp_path / name, records)], name)
        wanted = "All speed-ups are 2.2×." if not apart else "Speed-ups from 1.7× to 2.2×."
        assert half_answers(said)[0].endswith(wanted)


def test_claims_without_a_result_take_one_line(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal they are named; Markdown says of each why."""
    said = command("claims", "r", "--format", "text").stdout
    (line,) = [line for line in said.splitlines() if line.startswith("not tested here: ")]
    assert "half-the-time" in line.split(": ")[1].split(", ") and "probe-picks" in line
    assert "transfer-helps: Fine-tuning beats training from random weights? not tested" in command("claims", "r").stdout
    print_summary(summarise([run], "r"), Console(width=80))
    assert "half" in capsys.readouterr().out
