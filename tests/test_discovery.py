"""The cached names of backbones, and what is said of them."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from bench.execution import worker
from bench.execution.base import Outcome
from bench.execution.discovery import backbone_details, backbone_names
from tests.damage import DAMAGES, warned_once
from tl.errors import UserError

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


class Worker:
    """Calls functions of the worker here, and notes what it was asked."""

    def __init__(self, seconds: float | None = None) -> None:
        self.asked: list[str] = []
        self.seconds = seconds

    def call(self, function: str, *arguments: Any) -> Outcome:
        self.asked.append(function.rpartition(":")[2])
        if self.seconds is not None:
            arguments = (*arguments[:-1], self.seconds)
        return Outcome(status="done", value=getattr(worker, self.asked[-1])(*arguments, print), wall_seconds=0.0)


def test_what_is_known_needs_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first question is for all names; later ones need no process that loads torch, and look for files anew."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(worker, "count_parameters", lambda spec: pytest.fail(f"{spec} is known"))
    names = ["torchvision:resnet18", "timm:resnet18.tv_in1k", "timm:vit_base_patch16_224"]
    executor: Any = Worker()
    first = backbone_details(executor, names[:1], names)
    assert executor.asked == ["describe_backbones"]
    assert (first[names[0]].parameters, first[names[0]].weights) == (11_176_512, "")
    found = backbone_details(executor, names)
    assert list(found) == names and executor.asked == ["describe_backbones"]
    assert found[names[1]].parameters == 11_176_512 and found[names[2]].parameters == 85_798_656
    (checkpoints := tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (checkpoints / "resnet18-f37072fd.pth").touch()
    assert backbone_details(executor, names[:1])[names[0]].weights == "torch hub cache"
    assert executor.asked == ["describe_backbones"]


def test_networks_are_counted_as_long_as_there_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next command goes on with the others. One that can't be counted has no number, and isn't tried again."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    monkeypatch.setattr(worker, "known_sizes", lambda specs: {})
    counts: list[str] = []
    monkeypatch.setattr(worker, "count_parameters", lambda spec: counts.append(spec))
    names = ["timm:test_vit", "timm:test_resnet"]
    slow: Any = Worker(seconds=-1.0)
    assert backbone_details(slow, names) == {} and counts == []
    executor: Any = Worker()
    found = backbone_details(executor, names[:1], names)
    assert counts == names[:1] and found[names[0]].parameters is None, "others are counted when they are asked for"
    assert list(backbone_details(executor, names)) == names and counts == names
    backbone_details(executor, names)
    assert counts == names


@pytest.mark.parametrize("reason", ["RuntimeError: operator torchvision::nms does not exist", "ImportError: no timm"])
def test_libraries_that_do_not_fit_together_are_named(reason: str, tmp_path: Path, monkeypatch: Any) -> None:
    """A torch for the CPU beside a torchvision for CUDA loads no network; the message says what to install."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path))

    class Broken:
        def call(self, function: str, *arguments: Any) -> Outcome:
            return Outcome(status="failed", reason=reason, wall_seconds=1.0)

    executor: Any = Broken()
    with pytest.raises(UserError, match=re.escape(reason)) as raised:
        backbone_names(executor)
    advice = f"torch {version('torch')} and torchvision {version('torchvision')} are of different builds"
    assert (advice in str(raised.value)) is ("torchvision" in reason)


def test_a_library_that_says_nothing_of_its_places_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether weights are here is as true of it as of others, each time."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    whole = worker.checkpoint_of
    monkeypatch.setattr(worker, "checkpoint_of", lambda spec: replace(whole(spec), places=None))
    name = "torchvision:resnet18"
    executor: Any = Worker()
    assert backbone_details(executor, [name])[name].weights == ""
    (checkpoints := tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (checkpoints / "resnet18-f37072fd.pth").touch()
    assert backbone_details(executor, [name])[name].weights == "torch hub cache"
    assert executor.asked == ["describe_backbones", "find_published", "find_published"]
