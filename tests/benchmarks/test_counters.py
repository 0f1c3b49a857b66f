"""The exact gate: the committed baseline holds, and any change of a counter is found."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from bench.devtools import counters
from bench.devtools.steps import Dispatches
from tl.errors import UserError

BASE = {"net frozen": {"flops": 10, "operations": 3}}


@pytest.mark.alone
def test_counters_are_those_of_the_baseline() -> None:
    """After an intended change, run `python -m bench.devtools.counters --update`. CI has the baseline's libraries."""
    expected, base = counters.baseline()
    assert (counters.BASELINE.parent / counters.CONSTRAINTS).read_text() == counters.constraints(expected)
    if expected != counters.libraries():
        assert not os.environ.get("CI"), "install with PIP_CONSTRAINT=results/baseline/constraints.txt"
        pytest.skip(f"the baseline has {expected}, installed are {counters.libraries()}: rewrite it")
    assert list(counters.changes(base, counters.count())) == []


@pytest.mark.parametrize(
    ("new", "lines"),
    [
        ({"flops": 10, "operations": 3}, []),
        ({"flops": 11, "operations": 3}, ["net frozen: flops: 10 → 11 (+1)"]),
        ({"flops": 10, "operations": 2}, ["net frozen: operations: 3 → 2 (-1)"]),
        ({"flops": 10}, ["net frozen: operations: 3 → none"]),
        ({"flops": 10, "operations": 3, "more": 1}, ["net frozen: more: none → 1"]),
    ],
)
def test_any_change_is_found(new: dict[str, int], lines: list[str]) -> None:
    """Counters that increase, decrease, disappear and appear are found."""
    assert list(counters.changes(BASE, {"net frozen": new})) == lines


@pytest.mark.alone
def test_allocations_are_what_operations_make_anew() -> None:
    """Views and in-place changes don't count; both results of an operation with two do. Torch's profiler sees them too,
    together with temporary memory of kernels.
    """

    def work() -> None:
        ones = torch.ones(1000)
        table = (ones + 1).view(10, 100)
        table.mul_(2)
        table.t().contiguous().max(dim=0)

    with Dispatches() as counted:
        work()
    expected = [4000, 4000, 4000, 10 * 4, 10 * 8]
    assert (counted.count, counted.allocations, counted.allocated_bytes) == (7, len(expected), sum(expected))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = profiled.profiler.kineto_results.events()
    sizes = Counter(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0)
    assert sizes >= Counter(expected)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It has an exit status per outcome. An update writes the counters, and prints what has changed."""
    monkeypatch.setattr(counters, "BASELINE", tmp_path / "baseline" / "counters.json")
    monkeypatch.setattr(counters, "count", lambda: BASE)
    monkeypatch.setattr(sys, "argv", ["counters"])
    with pytest.raises(UserError, match="doesn't exist; write it with --update"):
        counters.main()
    for arguments, status, words in (
        (["--update"], counters.PASSED, "2 counters, 2 changed"),
        ([], counters.PASSED, "2 counters, 0 changed"),
    ):
        monkeypatch.setattr(sys, "argv", ["counters", *arguments])
        assert counters.main() == status and words in capsys.readouterr().out
    monkeypatch.setattr(counters, "count", lambda: {"net frozen": {"flops": 11, "operations": 3}})
    assert counters.main() == counters.REGRESSED and "10 → 11 (+1)" in capsys.readouterr().out
    assert (tmp_path / "baseline" / "constraints.txt").read_text() == counters.constraints(counters.libraries())
    data = json.loads(counters.BASELINE.read_text())
    counters.BASELINE.write_text(json.dumps({**data, "libraries": {"torch": "0"}}))
    assert counters.main() == counters.NOT_COMPARABLE
    for text in ("{", "[]", "{}"):
        counters.BASELINE.write_text(text)
        with pytest.raises(UserError, match="is not a baseline"):
            counters.main()
