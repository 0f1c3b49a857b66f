"""The cached names of backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.execution.base import Outcome
from bench.execution.discovery import backbone_names

NAMES = {"timm": ["a", "b"], "torchvision": ["c"]}


class Asked:
    """Counts how often it is asked for the names."""

    def __init__(self) -> None:
        self.times = 0

    def call(self, function: str, *arguments: Any) -> Outcome:
        self.times += 1
        return Outcome(status="done", value=NAMES, wall_seconds=0.0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"[]",
        lambda good: b"{}",
        lambda good: b"",
        lambda good: b"\xff\xfe",
        lambda good: good.replace(b'"a"', b'"e"'),
        lambda good: good[:-1],
        lambda good: good.partition(b"\n")[2],
    ],
)
def test_a_damaged_list_of_names_is_made_anew(damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong list would refuse networks that there are, or promise others."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    executor: Any = Asked()
    assert backbone_names(executor) == backbone_names(executor) == NAMES and executor.times == 1
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert backbone_names(executor) == backbone_names(executor) == NAMES and executor.times == 2
