"""Tests that a network gets its weights from a file without a second copy, and is the one of the usual way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.execution.executors import make_executor
from tests.conftest import TINY
from tests.jobs import WIDTH
from tests.weights import network
from tl.backbones import make_backbone
from tl.filling import filled

USUAL = nn.Module.load_state_dict


def built(make: Callable[[], nn.Module], given: dict[str, Any]) -> tuple[nn.Module, int]:
    """The network with these weights, and how often it was made."""
    attempts: list[bool] = []

    def build() -> nn.Module:
        attempts.append(True)
        module = make()
        module.load_state_dict(given)
        return module

    return filled(build), len(attempts)


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether names, order, values, layout and gradients of all tensors are the same."""
    pairs = [*zip(one.named_parameters(), other.named_parameters(), strict=True)]
    pairs += zip(one.named_buffers(), other.named_buffers(), strict=True)
    return all(
        (name, tensor.dtype, tensor.stride(), tensor.requires_grad)
        == (again, usual.dtype, usual.stride(), usual.requires_grad)
        and torch.equal(tensor, usual)
        for (name, tensor), (again, usual) in pairs
    )


@pytest.mark.parametrize("spec", [*TINY, "timm:test_vit", "timm:test_efficientnet", "torchvision:squeezenet1_1"])
def test_a_network_is_that_of_the_usual_way(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to the bit. It is made once, without memory for tensors that are replaced."""
    torch.save(network(spec).state_dict(), tmp_path / f"{spec.replace(':', '-')}.pth")
    counts: list[int] = []

    def counting(build: Callable[[], nn.Module]) -> nn.Module:
        counts.append(0)

        def counted() -> nn.Module:
            counts[-1] += 1
            return build()

        return filled(counted)

    loaded = {}
    for way, function in {"new": counting, "usual": lambda build: build()}.items():
        for source in ("timm", "torchvision"):
            monkeypatch.setattr(f"tl.{source}_models.filled", function)
        loaded[way] = make_backbone(spec, weights="pretrained", weights_dir=tmp_path).module
    assert counts == [1] and same(loaded["new"], loaded["usual"])


class Counts(nn.Module):
    """Has what a file may lack, computed when it is made."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        if kind == "buffer":
            self.register_buffer("table", torch.arange(3.0), persistent=False)
        elif kind == "table":
            self.register_buffer("table", torch.empty(3).fill_(2.0), persistent=False)
        elif kind == "indices":
            self.register_buffer("table", torch.empty(3, dtype=torch.long).fill_(2), persistent=False)
        elif kind == "attribute":
            self.tables = [torch.empty(3).fill_(2.0)]
        elif kind == "shared":
            self.again = self.layer
        elif kind == "number":
            self.rate = float(torch.linspace(0, 1, 3)[1])


@pytest.mark.parametrize(
    ("kind", "expected"), [("buffer", 1), ("number", 1), ("indices", 1), ("table", 2), ("attribute", 2), ("shared", 2)]
)
def test_what_the_file_lacks_is_computed_as_usual(kind: str, expected: int) -> None:
    """If that needs what was left out, the network is made a second time, in the usual way."""
    given = Counts(kind).state_dict()
    module, times = built(lambda: Counts(kind), given)
    assert times == expected and not same(module, Counts(kind))
    usual = Counts(kind)
    usual.load_state_dict(given)
    assert same(module, usual) and not any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
    if kind == "attribute":
        assert isinstance(module, Counts) and torch.equal(module.tables[0], torch.full((3,), 2.0))
    assert nn.Module.load_state_dict is USUAL


def test_tensors_become_those_that_the_network_would_have() -> None:
    """With its type, contiguous and aligned, and none shares memory with another, whatever the file has."""
    whole = torch.arange(40.0)
    given = {"0.weight": whole[1:17].view(4, 4).t(), "0.bias": whole[:4], "1.weight": torch.ones(4, 4).half()}
    given["1.bias"] = given["0.bias"]

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    module, times = built(make, given)
    usual = make()
    usual.load_state_dict(given)
    assert times == 1 and same(module, usual)
    places = [tensor.untyped_storage().data_ptr() for tensor in module.parameters()]
    assert len(set(places)) == 4 and all(tensor.data_ptr() % 64 == 0 for tensor in module.parameters())
    assert all(tensor.untyped_storage().nbytes() == 4 * tensor.numel() for tensor in module.parameters())


def test_what_does_not_fit_is_refused_as_usual() -> None:
    """With the words of the usual way."""
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"bias\"") as found:
        built(lambda: nn.Linear(2, 2), {"weight": torch.ones(2, 2)})
    with pytest.raises(RuntimeError) as usual:
        nn.Linear(2, 2).load_state_dict({"weight": torch.ones(2, 2)})
    assert str(found.value) == str(usual.value) and nn.Module.load_state_dict is USUAL


@pytest.mark.skipif(sys.platform != "linux", reason="needs high-water marks that can be reset")
def test_there_is_no_second_copy(tmp_path: Path) -> None:
    """The peak of memory grows by the weights once; in the usual way it grows by them twice.

    Each way has a process of its own, since one may go on with memory that another has freed.
    """
    file = tmp_path / "big.pth"
    torch.save(nn.Linear(WIDTH, WIDTH, bias=False).state_dict(), file)
    executor = make_executor("process")
    grown = [executor.call("tests.jobs:growth_of_loading", str(file), way).value for way in ("filled", "usual")]
    assert grown[0] < 1.5 < grown[1]
