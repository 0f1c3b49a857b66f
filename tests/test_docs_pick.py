"""The page for newcomers, from images to a prediction: its commands run as they stand and print what it shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tl.weights import BUNDLED

PAGE = (Path(__file__).parent.parent / "docs" / "pick.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(\$ .*?)```", PAGE, flags=re.DOTALL)


def _first_words(text: str) -> list[str]:
    """The first word of each line. The figures after it depend on the machine, and on what was chosen."""
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def test_a_newcomer_gets_from_images_to_a_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands succeed, and print what is shown as far as it doesn't depend on the trainings."""
    monkeypatch.setenv("COLUMNS", "80")
    # The page is of a machine with one backbone's weights, so packages with others' are hidden by empty ones.
    for spec, bundled in BUNDLED.items():
        if spec != "timm:tf_efficientnet_lite0":
            (tmp_path / "hidden" / bundled.module).mkdir(parents=True)
            (tmp_path / "hidden" / bundled.module / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "hidden"), os.environ.get("PYTHONPATH", "")]))
    shown: dict[str, str] = {}
    printed: dict[str, str] = {}
    for line in re.split(r"(?m)^\$ python ", "\n".join(BLOCKS))[1:]:
        command, _, output = line.partition("\n")
        words = shlex.split(command)
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        shown[words[2]], printed[words[2]] = output, done.stdout
    assert list(shown) == ["photos", "data", "pick", "train", "new", "predict"]
    assert printed["photos"] == printed["new"] == ""
    assert printed["data"].split() == shown["data"].split()
    for name in ("train", "predict"):
        assert _first_words(printed[name]) == _first_words(shown[name])
    answer = " ".join(printed["pick"].split())
    assert answer.startswith("timm:tf_efficientnet_lite0 is the only candidate")
    for text in (
        "Use timm:tf_efficientnet_lite0",
        "backbone probe came to",
        "next: python -m bench train results/pick",
    ):
        assert text in answer and text in " ".join(shown["pick"].split())
