"""Tests of the best epoch's weights: they come back bit for bit, and take no memory while later epochs train."""

from __future__ import annotations

import errno
import gc
import io
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tl
import tl.kept
from tests.conftest import TINY
from tl import train as train_module
from tl.backbones import Classifier, make_backbone
from tl.freezing import Freezing, freeze
from tl.kept import SMALL, KeptState
from tl.regimes import REGIMES
from tl.work import tensor_bytes


def network(regime: str = "finetune") -> Freezing:
    """A network in the layout of a CPU's training, with BatchNorm and integers among its buffers."""
    config = tl.TrainConfig(backbone=TINY[0], regime=regime, weights="random")
    model = Classifier(make_backbone(TINY[0], weights="random"), 2, config)
    return freeze(model.to(memory_format=torch.channels_last), REGIMES[regime])


def disturb(freezing: Freezing) -> None:
    """Change all that may change, as an epoch does."""
    with torch.no_grad():
        for name, value in freezing.tensors().items():
            if name in freezing.changing:
                value.add_(1)


def bytes_alive() -> int:
    """Bytes of all tensors that Python knows, without those that have none, such as what an export traces."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)
    return tensor_bytes(found for found in gc.get_objects() if type(found) in kinds)


def no_folder(**_: Any) -> Any:
    raise FileNotFoundError("no usable temporary directory")


class FullDisk(io.BytesIO):
    """A file that some tensors fit into."""

    def write(self, data: Any) -> int:
        if self.tell() > SMALL // 2:
            raise OSError(errno.ENOSPC, "no space left on device")
        return super().write(data)


def full_disk(**_: Any) -> Any:
    return FullDisk()


@pytest.mark.parametrize("regime", ["finetune", "frozen-tutorial", "frozen"])
@pytest.mark.parametrize("file", [tempfile.TemporaryFile, no_folder, full_disk])
def test_what_was_kept_last_comes_back(monkeypatch: pytest.MonkeyPatch, regime: str, file: Any) -> None:
    """Bit for bit, in the same layout, with or without a file. What is frozen is left alone."""
    monkeypatch.setattr(tempfile, "TemporaryFile", file)
    freezing = network(regime)
    with KeptState(freezing) as kept:
        kept.keep()
        disturb(freezing)
        kept.keep()
        wanted = {name: (value.clone(), value.stride()) for name, value in freezing.tensors().items()}
        disturb(freezing)
        kept.restore()
    for name, value in freezing.tensors().items():
        assert torch.equal(value, wanted[name][0]) and value.stride() == wanted[name][1], name


@pytest.mark.parametrize(
    ("regime", "limit", "in_memory"), [("finetune", SMALL, False), ("finetune", 1 << 40, True), ("frozen", SMALL, True)]
)
def test_a_network_is_kept_outside_of_memory(
    monkeypatch: pytest.MonkeyPatch, regime: str, limit: int, in_memory: bool
) -> None:
    """A copy in memory would take as much as all that trains. A head is small and stays there."""
    monkeypatch.setattr(tl.kept, "SMALL", limit)
    freezing = network(regime)
    state = tensor_bytes(freezing.state().values())
    gc.collect()  # what earlier tests have left behind must not go while this one counts
    before = bytes_alive()
    with KeptState(freezing) as kept:
        kept.keep()
        assert bytes_alive() - before == (state if in_memory else 0)
        disturb(freezing)
        kept.restore()
        assert bytes_alive() - before == (state if in_memory else 0)
    assert bytes_alive() == before


def test_a_file_that_was_cut_off_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights that are partly those of another epoch would be a wrong result."""
    place = tmp_path / "best"
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: place.open("w+b", buffering=0))
    with KeptState(network()) as kept:
        kept.keep()
        with place.open("r+b") as file:
            file.truncate(place.stat().st_size - 8)
        with pytest.raises(OSError, match="has become shorter"):
            kept.restore()


@pytest.mark.parametrize(
    ("accuracies", "keep", "calls"),
    [
        ([0.9, 0.6, 0.5], "best", ["keep", "restore"]),
        ([0.6, 0.9, 0.9], "best", ["keep", "keep", "restore"]),
        ([0.6, 0.7, 0.9], "best", ["keep", "keep"]),
        ([0.9], "best", []),
        ([0.9, 0.6, 0.5], "last", []),
    ],
    ids=str,
)
def test_only_what_may_be_needed_is_written(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, accuracies: list[float], keep: Any, calls: list[str]
) -> None:
    """The best epoch so far is written if another one follows, and read if that was worse."""
    original, given, done = train_module.val_pass, iter(accuracies), list[str]()
    monkeypatch.setattr(train_module, "val_pass", lambda *args: replace(original(*args), score=lambda: next(given)))
    for name in ("keep", "restore"):
        method = getattr(KeptState, name)
        monkeypatch.setattr(KeptState, name, lambda self, name=name, method=method: (done.append(name), method(self)))
    config = tl.TrainConfig(backbone=TINY[1], regime="finetune", weights="random", epochs=len(accuracies))
    tl.train_model(config, mini, device="cpu", keep=keep)
    assert done == calls
