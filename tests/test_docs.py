"""Tests that the documents match the code."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from bench.analysis import selection
from bench.analysis.claims import CLAIMS
from bench.analysis.metrics import METRICS
from bench.analysis.picking import seconds_to_train
from bench.analysis.verdicts import PAIRED, show_share
from bench.export.frame import columns
from bench.report.answers import answers
from bench.report.pick_text import duration
from bench.report.summary import summarise
from bench.report.tables import accuracy
from bench.report.write import write_report
from bench.store.records import Status
from bench.store.runs import find_runs
from bench.sweep.grid import shipped
from tl.config import EXECUTIONS, PRECISIONS, PROTOCOLS
from tl.datasets import DATASETS
from tl.regimes import REGIMES
from tl.tasks import TASKS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
MANUAL = "\n".join([README, *PAGES.values()])
REFERENCE = PAGES["reference.md"]
FORMAT = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    {line.strip() for line in re.findall(r"^(?:\$ )?python -m bench (?!\.)[^#\n]*", MANUAL, flags=re.MULTILINE)}
)
"""Every command of the README and the pages, each on a line of its own."""


NAMES = (*shipped(), *REGIMES, *TASKS, *DATASETS, *PROTOCOLS, *EXECUTIONS, *CLAIMS, selection.NAME, "auto")


@pytest.mark.parametrize("name", NAMES)
def test_the_pages_name(name: str) -> None:
    """README and pages name every grid, regime, task, data set, protocol, execution and claim."""
    assert f"`{name}`" in MANUAL


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    """It is read in five minutes, and no page is out of its reach."""
    assert len(README.split()) <= 800
    assert all(f"](docs/{name})" in README for name in PAGES)


def test_the_table_of_claims_is_the_codes() -> None:
    """Each claim with its statement, and what decides it."""
    for claim in CLAIMS.values():
        row = re.search(rf"^\| `{claim.name}` \| (.*) \| (.*) \|$", PAGES["timing.md"], flags=re.MULTILINE)
        assert row and row[1] == claim.statement
        exact = METRICS[claim.metric].compared == "exact"
        assert row[2] == ("a count" if exact else "process pairs" if claim.metric in PAIRED else "seeds")


def test_the_format_names_every_column_and_nothing_else() -> None:
    """Columns are in the order of the export. Metrics have the unit and meaning of the code."""
    assert re.findall(r"^\| `(\w+)` \|", FORMAT, flags=re.MULTILINE) == columns()
    for word in (*get_args(Status), *PRECISIONS, *EXECUTIONS, *PROTOCOLS):
        assert f"`{word}`" in FORMAT
    for name, metric in METRICS.items():
        unit = metric.unit
        assert f"| `{name}` | {unit} | {metric.meaning} |" in FORMAT


def test_the_reference_figures_are_those_of_the_committed_run() -> None:
    """The table at the top, the commit and the command are those of the committed run."""
    summary = summarise(find_runs([ROOT / "results" / "reference-cpu-default"]), "reference")
    assert len(summary.speed_ups) == 5
    for row in summary.speed_ups:
        finding = row.finding
        loop = "the tutorial's" if finding.claim.execution == "plain" else "this suite's"
        speed = [show_share(row.speed_up, finding.claim), finding.shown, finding.claim.show(finding.predicted)]
        accuracies = [accuracy(row.slow), accuracy(row.fast)]
        cells = [row.fast.config.spec.name, loop, *speed, *accuracies, finding.words]
        assert f"| {' | '.join(cells)} |" in REFERENCE
    _, manifest = summary.runs[0]
    assert f"`{manifest.invocations[0].command}`" in REFERENCE
    assert all(f"`{record.environment.git_commit[:12]}`" in REFERENCE for _, record in summary.records)
    assert all(record.environment.git_dirty is False for _, record in summary.records)


def test_the_run_that_the_readme_shows_is_the_committed_one() -> None:
    """Its command, what it prints at its end, as far as the README quotes it, and its table in docs/reference.md."""
    name = "reference-cpu-pretrained"
    summary = summarise(find_runs([ROOT / "results" / name]), name)
    ((_, manifest),) = summary.runs
    assert f"$ {manifest.invocations[0].command}\n" in README and f"`{manifest.invocations[0].command}`" in REFERENCE
    quoted = README.partition("process pairs done\n")[2].partition("report: ")[0]
    said = " ".join(answers(summary))
    assert quoted.count("…") == 2
    assert all(" ".join(part.split()) in said for part in quoted.split("…"))
    for row in summary.speed_ups:
        scores = [accuracy(group).partition(" (")[0] for group in (row.slow, row.fast)]
        times = [duration(seconds_to_train(group) or 0.0) for group in (row.slow, row.fast)]
        share = show_share(row.speed_up, row.finding.claim)
        cells = [row.fast.config.spec.name, share, *scores, *times, row.finding.words]
        assert f"| {' | '.join(cells)} |" in REFERENCE
    assert all(f"`{record.environment.git_commit[:12]}`" in REFERENCE for _, record in summary.records)
    assert all(record.environment.git_dirty is False for _, record in summary.records)


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "results").glob("reference-*"))])
def test_committed_reports_are_what_the_records_say(name: str, tmp_path: Path) -> None:
    """They are equal word for word, so that no committed report is out of date."""
    written, _ = write_report(summarise(find_runs([ROOT / "results" / name]), name), tmp_path)
    assert written.read_text(encoding="utf-8") == (ROOT / "reports" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line.removeprefix("python -m ").strip())
def test_commands_of_the_pages_exist(line: str) -> None:
    """`--help` lists the subcommand and its options."""
    words = shlex.split(line.removeprefix("$ ").partition(" > ")[0].partition(" | ")[0])[3:]
    for option in (word for word in words if word.startswith("--")):
        assert option in _help(words[0])


@cache
def _help(subcommand: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "bench", subcommand, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    ).stdout


def test_every_subcommand_is_in_the_pages() -> None:
    """No subcommand is undocumented."""
    text = subprocess.run([sys.executable, "-m", "bench", "--help"], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"^│ (\w[\w-]*) ", text, flags=re.MULTILINE)
    assert {"run", "report", "export", "list", "new-grid", "doctor"} <= set(names)
    assert all(f"python -m bench {name}" in PAGES["commands.md"] for name in names)


def test_the_library_example_runs(tmp_path: Path) -> None:
    """It runs unchanged in an empty folder, has at most ten lines, and writes both pictures. Only the synthetic set,
    which it falls back to, is a small one here."""
    blocks = re.findall(r"```python\n(.*?)```", PAGES["commands.md"], flags=re.DOTALL)
    code = next(block for block in blocks if "import tl" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    quiet = "import warnings, tl, tl.datasets\nwarnings.simplefilter('ignore', tl.FallbackWarning)\n"
    quiet += "tl.datasets.DATASETS['synthetic'] = tl.datasets.DATASETS['synthetic-mini']\n"
    command = [sys.executable, "-W", "error", "-c", quiet + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("batch.png", "predictions.png"))


COMMITTED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.splitlines()
DOCUMENTS = [ROOT / name for name in COMMITTED if name.endswith(".md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """They lead to committed files, so that they also work in a clean clone."""
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    places = [(document.parent / link).resolve() for link in links if "://" not in link]
    committed = {place for name in COMMITTED for place in (ROOT / name, *(ROOT / name).parents)}
    assert [str(place) for place in places if place not in committed] == []


def test_every_promise_names_an_existing_test() -> None:
    """Every row in the table of faults names one."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", text)
    assert len(named) > 25 and all(f"def {name}(" in (ROOT / file).read_text(encoding="utf-8") for file, name in named)
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| what", "| ---"))]
    assert all("`tests/" in row for row in rows)


@pytest.mark.parametrize("name", PAGES)
def test_python_of_the_pages_is_python(name: str) -> None:
    """Each block can be compiled, and the modules that it imports from this suite have those names."""
    for block in re.findall(r"```python\n(.*?)```", PAGES[name], flags=re.DOTALL):
        for node in ast.walk(compile(block, name, "exec", ast.PyCF_ONLY_AST)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("bench", "tl"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, each.name) for each in node.names)


def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: no link, anchor or name of the API leads nowhere. Reading it asks nothing of the network."""
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = sorted(tmp_path.rglob("*.html"))
    assert (tmp_path / "docs" / "api" / "index.html").read_text(encoding="utf-8").count("doc-object") > 20
    loaded = r"<(?:script|img|iframe)[^>]+src=\"(https?:[^\"]+)|<link[^>]+rel=\"stylesheet\"[^>]+href=\"(https?:[^\"]+)"
    assert len(pages) > 20 and not any(re.findall(loaded, page.read_text(encoding="utf-8")) for page in pages)


def test_ci_runs_the_readmes_test_command() -> None:
    """CI runs the README's commands for installing and testing."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, test = re.search(r'^(python -m pip install -e "\.\[test\]") && (.*)$', README, flags=re.MULTILINE).groups()
    assert install.replace("install", "install --quiet") in script and test in script
