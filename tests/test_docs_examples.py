"""The pages for newcomers and for those who extend the suite: their commands run as they stand, one after the other."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench.compare.gate import read_rules

DOCS = Path(__file__).parent.parent / "docs"
FIRST = {"first-hour.md": "my_work.py", "extending.md": "my_plugin.py"}
"""Page → the file that its first block of Python is saved as. Later blocks begin with a comment that is their name."""
SAID = {
    "claims my-work": ("last-block", "Training the last stages"),
    "claims my-plugin --plugin my_plugin.py": ("Training convolutions without norms",),
    "export my-plugin --plugin my_plugin.py": ("last_loss",),
    "list backbones pooled --plugin my_source.py": ("mine:pooled",),
    "export my-work --format latex": (r"\begin{tabular}", "last-block"),
}
"""Command → what it prints."""


@pytest.mark.parametrize("name", FIRST)
def test_commands_run_as_they_stand(name: str, tmp_path: Path) -> None:
    """With the modules of the page, in a folder that has nothing else."""
    text = (DOCS / name).read_text(encoding="utf-8")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)):
        called = re.match(r"# (\w+\.py)\n", block)
        (tmp_path / (called[1] if called else FIRST[name])).write_text(block)
        assert called or number == 0
    commands = re.findall(r"^\$ python (-m bench .*)$", text, flags=re.MULTILINE)
    assert len(commands) > 3
    for line in commands:
        words = shlex.split(line)
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert words[2] != "run" or "done in" in done.stdout
        for said in SAID.get(line.removeprefix("-m bench "), ()):
            assert said in done.stdout, (line, done.stdout)


PYTEST = """#!{python}
import json, pathlib, sys
place = pathlib.Path(sys.argv[-1].partition("=")[2])
number, head = int(place.stem), place.parent.name == "head"
late = head == bool(number % 2)  # in turn: base, head, head, base
data = [(1 + number / 1000 + head / 10000) * value * ({factor} if head else 1.0) for value in (1.0, 1.001, 1.002)]
place.write_text(json.dumps({{
    "machine_info": {{"node": "host", "cpu": {{"brand_raw": "A", "count": 2}}, "system": "Linux",
                     "machine": "x86_64", "python_version": "3.11", "python_implementation": "CPython"}},
    "datetime": f"2026-01-01T{{number:02}}:{{10 * late:02}}:00+00:00",
    "benchmarks": [{{"fullname": "t::a", "stats": {{"data": data}}}}],
}}))
"""
"""It replaces pytest, and writes a file of pytest-benchmark: the head takes `factor` times the time of the base."""


@pytest.mark.parametrize(
    ("factor", "status", "rounds", "said"),
    [
        ("1.3", 1, 5, "Gate failed: regressed."),
        ("1.0", 0, 5, "Gate passed."),
        ("(1.6 if number % 2 else 1 / 1.6)", 0, 20, "::warning::The gate could not decide after 20 rounds"),
    ],
)
def test_the_job_to_paste_is_a_job(factor: str, status: int, rounds: int, said: str, tmp_path: Path) -> None:
    """It is YAML, and its script fails for a slowdown and passes with a warning where it can't tell."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "first-hour.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (job,) = yaml.safe_load(text)["jobs"].values()
    script = job["steps"][-1]["run"]
    (rule,) = read_rules(None, re.findall(r"--rule '([^']*)'", script), tmp_path, repeats=["round"])
    assert (rule.metric, rule.factor) == ("seconds", 1.1)
    programs = {
        "pip": "#!/bin/sh",
        "git": "#!/bin/sh\nmkdir -p ../base",
        "pytest": PYTEST.format(python=sys.executable, factor=factor),
        "tl-bench": f'#!/bin/sh\nexec "{sys.executable}" -m bench "$@"',
    }
    for name, content in programs.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GITHUB_WORKSPACE": str(work)}
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status and said in done.stdout, (done.stdout, done.stderr)
    assert len(list((work / "head").glob("*.json"))) == len(list((work / "base").glob("*.json"))) == rounds
