"""The pages for newcomers and for those who extend the suite: their commands run as they stand, one after the other."""

from __future__ import annotations

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
    "export my-work --format latex": (r"\usepackage{booktabs}", r"\begin{tabular}", "last-block"),
    "report my-work --pdf": ("figures: reports/my-work (", " PDF)"),
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


def test_the_job_to_paste_is_a_job(tmp_path: Path) -> None:
    """It is YAML, and its gate's rule is one."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "first-hour.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (job,) = yaml.safe_load(text)["jobs"].values()
    script = job["steps"][-1]["run"]
    (rule,) = read_rules(None, re.findall(r"--rule '([^']*)'", script), tmp_path, repeats=["round"])
    assert (rule.metric, rule.factor) == ("seconds", 1.1) and "tl-bench gate base head" in script
