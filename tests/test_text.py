"""Names, reasons and paths from data are shown as text: no terminal, spreadsheet or page acts on them."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import bench
from bench.console import say
from bench.execution.executors import EXECUTORS
from bench.execution.process import PRELOAD
from bench.export.formats import csv_table
from bench.report.index import write_index
from bench.report.pages import environment_for, html_table, markdown_table
from bench.report.summary import summarise
from bench.report.write import write_report
from bench.store.records import Record
from bench.store.runs import RunFolder
from bench.sweep.progress import make_reporter
from tests.commands import here, light_command
from tests.images import write_folder
from tests.light import LightExecutor
from tests.runs import record, write_run
from tl.errors import ConfigError
from tl.results import Note
from tl.text import csv_text, visible, visible_json

ACTING = "\x1b]0;evil\x07\x1b[2J\x9b1m\u202etxt.\u2066\u2028\u200b\ufeff\U000e0041\x7f"
"""A terminal's title and cleared screen, an order of writing turned round, and characters that nobody sees."""
MARKUP = "|`[a](javascript:x)![i](//x/y.png)<img src=x onerror=alert(1)></script><!--&amp;*"
NASTY = f"=cmd{ACTING}{MARKUP}"
SHOWN = visible(NASTY)


def test_every_character_that_acts_or_is_not_seen_is_an_escape() -> None:
    """The escape is that of Python, and visible text, which is nearly all, stays as it is."""
    for number in range(0x110000):
        character = chr(number)
        acts = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in (
            *("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"),
        )
        if acts:
            assert re.fullmatch(r"\\(x..|u....|U.{8}|[tnr])", visible(character)), hex(number)
    for word in ("Café × “½” – Ж 漢字 🐜 é\u0301", "a b", r"C:\new", "-0.5"):
        assert visible(word) == word
    assert visible("a\x1b[31m\u202eb\udcff\n") == r"a\x1b[31m\u202eb\udcff\n"
    assert visible("\u200b\u200d\u2060\ufeff\xad") == r"\u200b\u200d\u2060\ufeff\xad"
    assert visible(visible(NASTY)) == SHOWN and visible("a\tb\nc", keep="\n") == "a\\tb\nc" and visible(5) == "5"


def test_json_means_the_same() -> None:
    """Escapes of JSON itself, also of characters beyond 16 bits."""
    text = json.dumps({"a": [NASTY, "plain"]}, ensure_ascii=False, indent=1)
    assert visible_json(text) != text and json.loads(visible_json(text)) == json.loads(text)
    assert inert(visible_json(text).replace("\n", ""))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", " =1", "\t=1", "\r=1", "\u200b=1", "＝1", "-", "=\x1b"])
def test_a_text_is_no_formula(text: str) -> None:
    """A spreadsheet takes an apostrophe for the sign of a text, and an escape for its letters."""
    assert csv_text(text).startswith(("'", "\\")) and inert(csv_text(text))


def test_a_text_that_is_no_formula_stays() -> None:
    """Nothing is put before other texts."""
    assert [csv_text(text) for text in ("timm:a", "a=b", "", "1.5", "'x")] == ["timm:a", "a=b", "", "1.5", "'x"]


def inert(text: str) -> bool:
    """True if no character of a text acts on a terminal or is hidden."""
    return visible(text, keep="\n") == text


@pytest.fixture
def nasty(tmp_path: Path) -> RunFolder:
    """A run whose data set, classes, device, notes, reasons, command and claims have nasty names."""

    def spoilt(one: Record) -> Record:
        cell = one.cell.replace(device=f"cpu@{SHOWN[:4]}{ACTING}|<b>")
        result = one.result
        if result:
            notes = (Note(about="figures", text=NASTY),)
            result = result.replace(classes=(f"ants{NASTY}", NASTY), notes=notes, device=cell.device)
        return one.replace(
            cell=cell,
            cell_id=cell.id,
            dataset=NASTY,
            fallback=NASTY,
            reason=NASTY if one.reason else "",
            traceback=f"Traceback\n\t{NASTY}" if one.reason else "",
            result=result,
        )

    cells = [record("timm:a", regime, seed=seed) for regime in ("finetune", "frozen") for seed in range(2)]
    failed = record("timm:b", "frozen", status="failed")
    run = write_run(
        tmp_path / "results" / "r",
        [spoilt(one) for one in [*cells, failed]],
        classes=(f"ants{NASTY}", NASTY),
        fallback=NASTY,
    )
    manifest = run.manifest()
    call = manifest.invocations[0].replace(command=f"python -m bench run --data '\n```\n{NASTY}'")
    run.write_manifest(manifest.replace(dataset=manifest.dataset.replace(name=NASTY), invocations=(call,)))
    return run


@pytest.mark.parametrize(
    "words",
    [
        ["show", "r"],
        ["claims", "r"],
        ["claims", "r", "--format", "json"],
        ["compare", "r", "--by", "regime"],
        ["compare", "r", "--by", "regime", "--format", "html"],
        ["compare", "r", "--by", "regime", "--format", "json"],
        ["gate", "r", "s", "-o", "x.json"],
        ["export", "r"],
        ["export", "r", "--raw"],
        ["export", "r", "--format", "json"],
        ["export", "r", "--format", "latex"],
        ["report", "r", "--collect"],
        ["report", "r\x1b[2J"],
        ["list", "regimes", "\x1b[2J"],
        ["run", "--grid", "\x1b[2J"],
        ["run", "--data", "\x1b[2J\u202e"],
    ],
    ids=" ".join,
)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_nothing_acts_on_a_terminal(words: list[str], nasty: RunFolder) -> None:
    """Neither output nor errors of any command have a character that acts."""
    write_run(nasty.folder.parent / "s", list(nasty.records().values()), classes=nasty.manifest().dataset.classes)
    done = here(*words)
    assert done.returncode in (0, 2, 3, 4) and inert(done.stdout) and inert(done.stderr), (done.stdout, done.stderr)
    assert done.stdout or done.stderr


def test_nothing_acts_while_a_sweep_runs(nasty: RunFolder) -> None:
    """The live display and the plain lines show escapes; colours are ours alone."""
    for terminal in (True, False):
        text = io.StringIO()
        console = Console(file=text, width=400, force_terminal=terminal, color_system=None)
        with make_reporter(console, [one.cell for one in nasty.records().values()]) as reporter:
            for one in nasty.records().values():
                reporter.started(one.cell)
                reporter.stage(one.cell, NASTY)
                for row in one.result.epochs if one.result else ():
                    reporter.epoch(one.cell, row)
                reporter.warned(NASTY)
                reporter.ended(one)
        plain = re.sub(r"\x1b\[(\d*[AK]|\?25[lh])|\r", "", text.getvalue())
        assert inert(plain) and SHOWN in plain.replace("\n", "")


def test_a_line_is_one_line() -> None:
    """A name with a new line can't pretend to be a message of ours."""
    text = io.StringIO()
    say(Console(file=text), "data: a\nerror: b")
    assert text.getvalue() == "data: a\\nerror: b\n"


def test_large_counts_are_exact_in_csv() -> None:
    """Also beside an unknown one: whole numbers above 2^53 have no place in a float."""
    table = pd.DataFrame({"count": pd.array([2**53 + 1, None], dtype="Int64"), "name": ["=a", None]})
    assert csv_table(table).to_csv(index=False) == f"count,name\n{2**53 + 1},'=a\n,\n"


def test_csv_is_no_program_and_numbers_stay_numbers(nasty: RunFolder) -> None:
    """Text cells are quoted; numbers, also negative ones, aren't. The frame has every text as it is."""
    rows = list(csv.DictReader(io.StringIO(here("export", "r").stdout)))
    assert len(rows) == 5 and {row["dataset"] for row in rows} == {f"'{SHOWN}"}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
    assert float(rows[0]["epoch_seconds"]) > 0
    table = bench.load_results("r")
    exported = json.loads(here("export", "r", "--format", "json").stdout)
    assert set(table["dataset"]) == {NASTY} == {row["dataset"] for row in exported}
    shown = csv_table(pd.DataFrame({"=x": ["-a", None], "y": [-0.5, 1.0], "z": [-1, 2]}))
    assert shown.to_csv(index=False) == "'=x,y,z\n'-a,-0.5,-1\n,1.0,2\n"


class Page(HTMLParser):
    """The elements of a page, their attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_pages_show_names_as_text(nasty: RunFolder, tmp_path: Path) -> None:
    """No element, attribute, script, link or picture of a page or a Markdown file comes from a name."""
    summary = summarise([nasty], NASTY[:20].replace("/", ""))
    paths = write_report(summary, tmp_path / "reports")
    index = write_index([nasty], tmp_path / "reports")
    for path in (paths[1], index):
        text = path.read_text(encoding="utf-8")
        page = Page(text)
        assert inert(text.replace("\t", "")) and not {"img", "b"} & set(page.tags)
        assert page.tags.count("script") == (2 if path is paths[1] else 1)
        leads = [value for name, value in page.attributes if name in ("href", "src", "style")]
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        assert not [value for value in leads if "javascript" in value]
        assert any(SHOWN in each for each in page.texts)
    assert Page(paths[1].read_text()).texts[1].strip() == "" or SHOWN[:20] in paths[1].read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', paths[1].read_text(), re.S)
    assert data and inert(json.dumps(json.loads(data[1]), ensure_ascii=False))
    for path in (tmp_path / "reports").rglob("*.svg"):
        assert inert(path.read_text(encoding="utf-8").replace("\t", ""))
    markdown = paths[0].read_text(encoding="utf-8")
    outside = markdown[: markdown.index("## How to reproduce")]
    assert inert(markdown) and r"=cmd\\x1b\]0;evil" in outside
    assert not re.search(r"<(img|b|script)\b", outside) and not re.search(r"(?<!\\)\]\(javascript", outside)
    assert not re.search(r"!\[i\]|(?<!\\)\[a\]", outside)
    reasons = [line for line in outside.splitlines() if line.startswith("- **failed**")]
    assert len(reasons) == 1 and r"\|\`\[a\](javascript:x)!\[i\](//x/y.png)&lt;img" in reasons[0]
    blocks = itertools.groupby(outside.splitlines(), lambda line: line[:1] == "|")
    tables = [list(some) for is_row, some in blocks if is_row]
    assert len(tables) > 1 and all(len({len(re.findall(r"(?<!\\)\|", line)) for line in some}) == 1 for some in tables)
    fence = re.search(r"## How to reproduce\n\n(`{4,})\n(.*?)\n\1\n", markdown, re.S)
    assert fence and fence[2].count("\n") == 2, "the command's own fence ends nothing"


def test_tables_and_templates_are_inert() -> None:
    """Whatever a table or a template is given."""
    table = pd.DataFrame({NASTY: [NASTY, "x"]})
    assert inert(html_table(table)) and "<img" not in html_table(table)
    assert inert(markdown_table(table)) and markdown_table(table).count("\n") == 3
    for suffix in ("md", "html"):
        source = "{{ x }} {{ x | text }} {{ y }}" + ("{{ x | code }}" if suffix == "html" else "")
        text = environment_for(suffix).from_string(source).render(x=NASTY, y=_Shown())
        assert inert(text) and "<img" not in text
        assert suffix == "html" or not re.search(r"(?<!\\)\]\(javascript", text)


class _Shown:
    def __str__(self) -> str:
        return NASTY


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\x1b[2Jb", "has hidden or control characters"),
        ("a\nb", "has hidden or control characters"),
        ("a\u202eb", "has hidden or control characters"),
        ("a\u200bb", "has hidden or control characters"),
        ("a/b", "must be a plain name"),
        ("/", "must be a plain name"),
        ("..", "must be a plain name"),
        (".hidden", "must be a plain name"),
        ("-rf", "must be a plain name"),
        ("é" * 101, "has 202 bytes; at most 200"),
        ("x" * 300, "has 300 bytes; at most 200"),
        ("index", "is reserved"),
    ],
)
def test_a_name_is_a_plain_one(name: str, said: str, tmp_path: Path) -> None:
    """For `run` and `report`, from the command line and from Python; nothing is written."""
    write_run(tmp_path / "results" / "r", [record("timm:a", "frozen")])
    grid = tmp_path / "grid.toml"
    grid.write_text('dataset = "synthetic-mini"\npaired = false\n[matrix]\nbackbones = ["quick0"]\n')
    for words in (["run", "--grid", "grid.toml", f"--name={name}"], ["report", "r", f"--name={name}"]):
        done = light_command(*words)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and inert(done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["grid.toml", "results"]


def test_the_longest_name_works(tmp_path: Path) -> None:
    """Also as the name of a report and of its temporary file."""
    name = "é" * 100
    write_run(tmp_path / "results" / name, [record("timm:a", "frozen")])
    assert here("report", name, "--collect").returncode == 0 and (tmp_path / "reports" / f"{name}.html").is_file()


PATHS = ("--name", "--data", "--weights-dir", "--results", "--reports", "--out", "--grid", "--plugin")


@pytest.mark.parametrize("option", [*PATHS, "--backbone", "--regime", "--device", "--protocol", "--budget"])
@pytest.mark.parametrize("joined", [True, False])
def test_an_empty_value_is_a_mistake(option: str, joined: bool, tmp_path: Path) -> None:
    """It would otherwise mean the current folder, or that the option wasn't given."""
    done = here("run", *([f"{option}="] if joined else [option, ""]), "--dry-run")
    assert (done.returncode, done.stderr) == (2, f"error: {option} is empty; give it a value, or leave it out\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "r", "--output", ""], "--output is empty"),
        (["export", "r", "-o", ""], "-o is empty"),
        (["export", "r", "-o", "."], "can't be written: is a folder, not a regular file"),
        (["export", "r", "-o", "results"], "can't be written: is a folder, not a regular file"),
        (["compare", "r", "--by", "regime", "-o", "."], "must end in .md, .html or .json"),
        (
            ["compare", "r", "--by", "regime", "-o", "results", "--format", "md"],
            "results: is a folder",
        ),
        (["gate", "r", "r2", "-o", "results", "--format", "md"], "results: is a folder"),
        (["show", ""], "an argument is empty"),
        (["run", "--data", "~nosuchuser/x"], "data='~nosuchuser/x': there is no such user"),
        (["run", "--grid", "~nosuchuser/x.toml"], "grid='~nosuchuser/x.toml': there is no such user"),
        (["run", "--weights-dir", "~nosuchuser/x"], "--weights-dir '~nosuchuser/x': there is no such user"),
        (["run", "--weights-dir", "nowhere"], "no such folder"),
        (["run", "--weights-dir", "file"], "is not a folder"),
        (["run", "--plugin", "~nosuchuser/x.py"], "--plugin '~nosuchuser/x.py': there is no such user"),
        (["run", "--plugin", "nowhere.txt"], "must be a Python file"),
        (["run", "--seeds", "999999999"], "make 1,999,999,998 cells; at most 100,000 are possible"),
        (["run", "--seeds", "9" * 500], "make more than 1,000,000,000,000,000 cells"),
        (["run", "--seeds", "100000"], "make 200,000 cells"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_a_value_that_cannot_be_meant_is_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    """It ends in exit status 2, and nothing is written or changed."""
    for name in ("r", "r2"):
        cells = [record("timm:a", regime, seed=seed) for regime in ("finetune", "frozen") for seed in range(3)]
        write_run(tmp_path / "results" / name, cells)
    (tmp_path / "grid.toml").write_text('paired = false\n[matrix]\nbackbones = ["quick0"]\ndevices = ["cpu"]\n')
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    grid = ["--grid", "grid.toml"] if words[0] == "run" and "--grid" not in words else []
    done = light_command(*words, *grid)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


def test_such_values_are_refused_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many seeds are, before a list of them is made."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(EXECUTORS, "process", lambda address: LightExecutor(PRELOAD))
    (tmp_path / "grid.toml").write_text('paired = false\n[matrix]\nbackbones = ["quick0"]\n')
    with pytest.raises(ConfigError, match="at most 100,000"):
        bench.run("grid.toml", seeds=range(10**12), devices=["cpu"])
    with pytest.raises(ConfigError, match="data='': is empty; give it a value"):
        bench.run("grid.toml", data="")
    with pytest.raises(ConfigError, match="must be a plain name"):
        bench.run("grid.toml", name="")


def test_a_class_name_with_an_escape_trains_and_reports(tmp_path: Path) -> None:
    """A folder of images may be called anything that the file system allows; its name is shown as text."""
    root = write_folder(tmp_path / "set")
    for split in ("train", "val"):
        (root / split / "a").rename(root / split / "a\x1b[31m=|")
    grid = 'dataset = "synthetic-mini"\n[matrix]\nbackbones = ["quick0"]\nregimes = ["frozen"]\ndevices = ["cpu"]\n'
    (tmp_path / "grid.toml").write_text(grid)
    done = light_command("run", "--grid", "grid.toml", "--data", str(root), "--name", "x", "--no-images")
    assert done.returncode == 0 and inert(done.stdout), done.stderr
    assert r"a\\x1b\[31m=\|" in (tmp_path / "reports" / "x.md").read_text()
