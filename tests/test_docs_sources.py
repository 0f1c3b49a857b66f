"""The page about sources: its commands run as they stand, with the modules that it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tl
from tl.sources import SOURCES, names_of

PAGE = (Path(__file__).parent.parent / "docs" / "sources.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ python (.*)$", PAGE, flags=re.MULTILINE)
CODE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_described(source: str) -> None:
    """With the form of its names."""
    names = names_of(source)
    assert f"| `{source}` | `{source}:{names.form if names else 'NAME[.TAG]'}` |" in PAGE


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run_as_they_stand(line: str, tmp_path: Path) -> None:
    """In a folder with the module of the page."""
    (tmp_path / "my_backbone.py").write_text(CODE[0])
    done = subprocess.run([sys.executable, *shlex.split(line)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "done in" in done.stdout, done.stdout + done.stderr


def test_the_parts_of_the_page_train(tmp_path: Path) -> None:
    """By the import paths of its grid, without a warning."""
    (tmp_path / "my_backbone.py").write_text(CODE[0])
    (tmp_path / "my_parts.py").write_text(CODE[1])
    (grid,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    matrix = '[matrix]\nbackbones = ["module:my_backbone:make_backbone"]\nregimes = ["frozen"]\ndevices = ["cpu"]\n'
    text = f'dataset = "synthetic-mini"\npaired = false\n{matrix}{grid}epochs = 1\nclass_weights = "balanced"\n'
    (tmp_path / "g.toml").write_text(text)
    words = ["-m", "bench", "run", "--grid", "g.toml", "--name", "r", "--no-report"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "done in" in done.stdout, done.stdout + done.stderr
    assert tl.Preprocessing.__name__ in PAGE and tl.Backbone.__name__ in PAGE
