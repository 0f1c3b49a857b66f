"""The cached names of backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.execution.base import Outcome
from bench.execution.discovery import backbone_names
from tests.damage import DAMAGES, warned_once

NAMES = {"timm": ["a", "b"], "torchvision": ["c"]}


class Asked:
    """Counts how often it is asked for the names."""

    def __init__(self) -> None:
        self.times = 0

    def call(self, function: str, *arguments: Any) -> Outcome:
        self.times += 1
        return Outcome(status="done", value=NAMES, wall_seconds=0.0)


@pytest.mark.timeout(120)  # a FIFO must not be waited for
@pytest.mark.parametrize("damage", [*DAMAGES, "letter"])
def test_a_damaged_list_of_names_is_rebuilt(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong list would refuse networks that there are, or promise others."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    executor: Any = Asked()
    assert backbone_names(executor) == backbone_names(executor) == NAMES and executor.times == 1
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    spoil = {**DAMAGES, "letter": lambda path: path.write_bytes(whole.replace(b'"a"', b'"e"'))}[damage]
    spoil(file)
    assert warned_once(lambda: backbone_names(executor), file) == NAMES and executor.times == 2
    assert backbone_names(executor) == NAMES and executor.times == 2
    assert file.read_bytes() == whole and list(tmp_path.iterdir()) == [file]
