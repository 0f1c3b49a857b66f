"""Tests comparisons of two sides: estimates, verdicts, pairing, what can't be compared, and output."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from scipy.stats import gmean, ttest_ind, ttest_rel

from bench import cli
from bench.analysis.stats import ratio_of_means
from bench.compare.changes import Comparison, compare
from bench.compare.gate import INCOMPLETE, NOT_COMPARABLE, PASSED, REGRESSED, decide, read_rules
from bench.compare.render import show
from bench.compare.rules import Rule
from bench.compare.sides import SECONDS, Quantity, Side, SideCell, quantities, read_sides
from bench.store.records import Record
from bench.store.runs import RunFolder
from tests.commands import command as own_process
from tests.commands import here as command
from tests.runs import RANDOM, record, write_run
from tl.errors import UserError
from tl.results import Work

COUNTER = Quantity(name="flops", label="flops", compared="exact", better="lower")
STEADY = (1.0, 1.001, 0.999, 1.0005)


def side(name: str, cells: dict[str, Any]) -> Side:
    """A side whose cells have these samples. `cells` maps a cell to seconds, or to a table of quantity → samples."""
    cell_table = {}
    for label, given in cells.items():
        samples = given if isinstance(given, dict) else {"seconds": given}
        by_sample = {quantity: dict(enumerate(values)) for quantity, values in samples.items() if len(values)}
        done = {sample for values in by_sample.values() for sample in values}
        cell_table[label] = SideCell(label=label, repeats="seed", samples=dict(by_sample), done=set(done))
    return Side(name=name, cells=cell_table, quantities={"seconds": SECONDS, "flops": COUNTER})


def verdicts(comparison: Comparison) -> list[str]:
    return [change.verdict for change in comparison.changes]


def seeds(backbone: str, seconds: tuple[float, ...], **fields: Any) -> list[Record]:
    """One record per seed."""
    return [record(backbone, "frozen", seed=seed, seconds=value, **fields) for seed, value in enumerate(seconds)]


def test_independent_samples_use_welchs_test() -> None:
    """Value, interval and p-value equal scipy's for samples of unequal size and scatter."""
    above, below = [1.1, 1.3, 1.2, 1.25], [0.9, 1.4, 1.0]
    estimate = ratio_of_means(above, below)
    scipy = ttest_ind(np.log(above), np.log(below), equal_var=False)
    low, high = np.exp(scipy.confidence_interval(0.95))
    assert estimate is not None and estimate.n == 3
    assert estimate.value == pytest.approx(gmean(above) / gmean(below))
    assert (estimate.low, estimate.high, estimate.p) == (
        pytest.approx(low),
        pytest.approx(high),
        pytest.approx(scipy.pvalue),
    )
    few = ratio_of_means(above, below[:2])
    assert few is not None and few.low is None and few.p == 1.0
    assert ratio_of_means(above, []) is None and ratio_of_means([0.0], [1.0]) is None
    equal = ratio_of_means([2.0] * 3, [1.0] * 3)
    assert equal is not None and equal.p == 0.0 and equal.low == equal.high == 2.0


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        (1.2, "worse"),
        (0.8, "better"),
        (1.02, "same"),
        (1.0, "same"),
    ],
)
def test_a_change_counts_from_a_factor_on(new: float, verdict: str) -> None:
    """A significant change beyond the factor is worse or better. If the interval lies within it, it is the same."""
    sides = [side("old", {"a": STEADY}), side("new", {"a": [new * value for value in STEADY]})]
    assert verdicts(compare(sides)) == [verdict]


def test_undecided_changes() -> None:
    """Noise can hide a change and doesn't show that there is none. Two samples show nothing, even equal ones."""
    noisy = [1.0, 1.3, 0.8, 1.1]
    assert verdicts(compare([side("o", {"a": noisy}), side("n", {"a": noisy[::-1]})])) == ["inconclusive"]
    assert verdicts(compare([side("o", {"a": noisy}), side("n", {"a": [v * 1.2 for v in noisy]})])) == ["inconclusive"]
    assert verdicts(compare([side("o", {"a": [1, 1]}), side("n", {"a": [9, 9]})])) == ["too few samples"]
    assert verdicts(compare([side("o", {"a": [1, 1]}), side("n", {"a": {"seconds": []}})])) == ["unknown"]


def test_one_error_rate_for_all() -> None:
    """A change that is significant alone is not significant among a hundred, since p-values are adjusted."""
    old, new = [1.0, 1.02, 0.98, 1.01], [1.09, 1.05, 1.12, 1.06]
    assert verdicts(compare([side("o", {"a": old}), side("n", {"a": new})])) == ["worse"]
    many = {f"cell {i}": old for i in range(100)}
    found = compare([side("o", {"a": old, **many}), side("n", {"a": new, **many})])
    assert found.changes[0].verdict == "inconclusive" and found.changes[0].p > found.changes[0].estimate.p  # type: ignore


def test_equal_sides_seldom_alarm_and_slow_ones_are_found() -> None:
    """For random times of eight benchmarks with 2% scatter and ten rounds, at most 5% of gates give a false alarm."""
    draws = np.random.default_rng(0)

    def times(factor: float = 1.0) -> dict[str, Any]:
        return {str(i): (factor if i == 0 else 1.0) * draws.lognormal(0, 0.02, 10) for i in range(8)}

    alarms = sum("worse" in verdicts(compare([side("o", times()), side("n", times())])) for _ in range(200))
    found = sum(verdicts(compare([side("o", times()), side("n", times(1.1))]))[0] == "worse" for _ in range(200))
    assert alarms <= 10 and found >= 195


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ([10], [10], "same"),
        ([10], [11], "worse"),
        ([10], [9], "better"),
        ([10, 10], [10, 11], "worse"),
        ([10, 20], [20, 10], "worse"),  # the same values, but of other samples
        ([2**60], [2**60 + 1], "worse"),  # beyond the precision of a float
        ([10**400], [10**400 - 1], "better"),
        ([10], [10, 11], "worse"),  # a sample that base lacks, with a value that base never had
        ([10], [10, 10], "same"),
    ],
)
def test_any_change_of_a_counter_counts(old: list[int], new: list[int], verdict: str) -> None:
    """One sample is enough. An improvement fails a gate too, since the baseline is then out of date."""
    found = compare([side("o", {"a": {"flops": old}}), side("n", {"a": {"flops": new}})])
    assert verdicts(found) == [verdict]
    assert decide(found).status == (PASSED if verdict == "same" else REGRESSED)


def test_runs_pair_on_every_setting(tmp_path: Path) -> None:
    """Cells pair by backbone, regime and settings, over seeds. Cells that one side lacks are reported."""
    old = [*seeds("timm:a", (10, 10.1, 9.9)), *seeds("timm:b", (5, 5.1, 4.9)), *seeds("timm:c", (7,))]
    new = [*seeds("timm:a", (13, 13.1, 12.9)), *seeds("timm:b", (5, 5.1, 4.9)), *seeds("timm:d", (7,))]
    write_run(tmp_path / "old", old), write_run(tmp_path / "new", new)
    found = compare(read_sides([str(tmp_path / "old"), str(tmp_path / "new")]), metrics=["epoch_seconds"])
    assert [(change.cell, change.verdict) for change in found.changes] == [
        ("timm:a frozen cpu", "worse"),
        ("timm:b frozen cpu", "same"),
    ]
    assert found.changes[0].estimate is not None and found.changes[0].estimate.value == pytest.approx(1.3, rel=0.01)
    assert found.only_new == (("timm:d frozen cpu", "new"),)
    assert found.incomplete == (("timm:c frozen cpu", "new has no such cell"),)
    assert decide(found).status == REGRESSED


def test_a_newly_failing_cell_is_a_regression(tmp_path: Path) -> None:
    """A cell that failed before, was skipped or never ran leaves the gate undecided instead."""
    good = seeds("timm:a", (10, 10.1, 9.9))
    for number, (old, new, status) in enumerate(
        [
            (good, [*good[:2], good[2].replace(status="oom", result=None, reason="8 GiB")], REGRESSED),
            (good, [*good[:2], good[2].replace(status="skipped", result=None)], INCOMPLETE),
            ([*good[:2], good[2].replace(status="failed", result=None)], good, INCOMPLETE),
            (good, good, PASSED),
        ]
    ):
        folders = [tmp_path / f"{name}{number}" for name in ("old", "new")]
        for folder, records in zip(folders, (old, new), strict=True):
            write_run(folder, records)
        found = compare(read_sides([str(folder) for folder in folders]), rules=[Rule(points=10)])
        assert decide(found).status == status, number
        assert [words for _, words in found.newly_failing] == ([f"new{number}: oom: 8 GiB"] if status == 1 else [])
    write_run(tmp_path / "part", good)
    (tmp_path / "part" / "cells" / f"{good[2].cell_id}.json").unlink()
    found = compare(read_sides([str(tmp_path / "old3"), str(tmp_path / "part")]), rules=[Rule(points=10)])
    assert ("timm:a frozen cpu", "part: not run") in found.incomplete and decide(found).status == INCOMPLETE


def counted(one: Record, flops: int = 100, **fields: Any) -> Record:
    """The record with counted work and with these fields of its environment."""
    assert one.result is not None
    work = Work(
        step_images=4,
        forward_flops=flops,
        backward_flops=2,
        saved_activation_bytes=3,
        parameter_bytes=4,
        gradient_bytes=5,
        optimizer_state_bytes=6,
    )
    return one.replace(result=one.result.replace(work=work), environment=one.environment.replace(**fields))


def test_times_of_two_machines_do_not_compare(tmp_path: Path) -> None:
    """The conditions that differ are reported. Accuracies and counters are still compared."""
    old = [counted(one, cpu="A", packages={"torch": "1"}) for one in seeds("timm:a", (10, 10, 10))]
    new = [counted(one, cpu="B", packages={"torch": "2"}) for one in seeds("timm:a", (20, 20, 20))]
    write_run(tmp_path / "old", old), write_run(tmp_path / "new", new)
    found = compare(read_sides([str(tmp_path / "old"), str(tmp_path / "new")]), rules=[Rule(points=10)])
    changes = {change.quantity.name: change for change in found.changes}
    assert changes["epoch_seconds"].verdict == changes["peak_memory_bytes"].verdict == "not comparable"
    assert [str(each) for each in changes["epoch_seconds"].mismatches] == ["cpu: A → B", "torch: 1 → 2"]
    assert changes["epoch_seconds"].estimate is not None
    assert changes["val_accuracy_last"].verdict == changes["forward_flops"].verdict == "same"
    assert decide(found).status == NOT_COMPARABLE
    more = [counted(one, 101) for one in new]
    write_run(tmp_path / "more", more)
    found = compare(read_sides([str(tmp_path / "old"), str(tmp_path / "more")]))
    assert decide(found).status == REGRESSED
    assert any("forward work +0.25: changed" in line for line in decide(found).reasons)


def test_accuracies_are_compared_over_seeds_and_images(tmp_path: Path) -> None:
    """Fewer right predictions on the same images are worse. Random weights have no accuracy to compare."""
    for name, right in (("old", 95), ("new", 60)):
        write_run(tmp_path / name, [record("timm:a", "frozen", seed=seed, right=right) for seed in range(3)])
    folders = [str(tmp_path / "old"), str(tmp_path / "new")]
    (change,) = compare(read_sides(folders), metrics=["val_accuracy_best"]).changes
    assert change.verdict == "worse" and change.estimate is not None
    assert change.estimate.value == pytest.approx(-0.35)
    (change,) = compare(read_sides(folders), metrics=["val_accuracy_best"], rules=[Rule(points=90)]).changes
    assert change.verdict == "same"
    for name in ("x", "y"):
        write_run(tmp_path / name, [record("timm:a", "frozen", seed=seed, weights=RANDOM) for seed in range(3)])
    found = compare(read_sides([str(tmp_path / "x"), str(tmp_path / "y")]))
    assert [change.quantity.name for change in found.having("unknown", "worse")] == ["val_accuracy_last"]


def test_levels_of_an_axis(tmp_path: Path) -> None:
    """Regimes of one run are sides. The base is the first, or the one in `base`."""
    records = [record("timm:a", "finetune", seed=s, seconds=10 + s / 100) for s in range(3)]
    records += [record("timm:a", "frozen", seed=s, seconds=5 + s / 100) for s in range(3)]
    records += [record("timm:b", "frozen", seed=s, seconds=2) for s in range(3)]
    run = write_run(tmp_path / "r", records)
    sides = read_sides([str(run.folder)], by="regime")
    assert [one.name for one in sides] == ["finetune", "frozen"]
    (change,) = compare(sides, metrics=["epoch_seconds"]).changes
    assert change.cell == "timm:a cpu" and change.estimate is not None
    assert change.estimate.value == pytest.approx(0.5, abs=0.01) and change.verdict == "better"
    assert [one.name for one in read_sides([str(run.folder)], by="regime", base="frozen")] == ["frozen", "finetune"]
    (change,) = compare(read_sides([str(run.folder)], by="backbone"), metrics=["epoch_seconds"]).changes
    assert (change.cell, change.verdict) == ("frozen cpu", "better")
    found = compare(read_sides([str(run.folder)], by="seed"), metrics=["epoch_seconds"])
    assert {change.verdict for change in found.changes} == {"too few samples"} and len(found.others) == 2
    with pytest.raises(UserError, match="at least two are needed, but there is only cpu"):
        read_sides([str(run.folder)], by="device")
    with pytest.raises(UserError, match=r"--base='frozn': not one of .* did you mean 'frozen'"):
        read_sides([str(run.folder)], by="regime", base="frozn")


def test_seeds_that_only_one_side_has(tmp_path: Path) -> None:
    """Seeds that only base has leave the gate undecided. Seeds that only the new side has are reported."""
    old, new = seeds("timm:a", (10, 10.1, 9.9, 10)), seeds("timm:a", (10, 10.1, 9.9, 10))
    write_run(tmp_path / "old", old), write_run(tmp_path / "few", new[:2]), write_run(tmp_path / "later", new[1:])
    found = compare(read_sides([str(tmp_path / "old"), str(tmp_path / "few")]), rules=[Rule(points=10)])
    assert found.incomplete == (("timm:a frozen cpu", "few has no seeds 2, 3"),)
    assert decide(found).status == INCOMPLETE
    found = compare(read_sides([str(tmp_path / "few"), str(tmp_path / "old")]), rules=[Rule(points=10)])
    assert found.incomplete == () and found.only_new == (("timm:a frozen cpu, seeds 2, 3", "old"),)
    failed = [*new[:2], new[3].replace(status="failed", result=None, reason="x")]
    write_run(tmp_path / "failed", failed)
    found = compare(read_sides([str(tmp_path / "few"), str(tmp_path / "failed")]), rules=[Rule(points=10)])
    assert not found.newly_failing, "base never ran that seed"
    assert found.incomplete == (("timm:a frozen cpu", "failed: failed: x"),)
    # Values of accuracies are those of the compared seeds.
    sides = read_sides([str(tmp_path / "old"), str(tmp_path / "later")])
    (change,) = compare(sides, metrics=["val_accuracy_last"]).changes
    assert list(change.base) == list(change.new) == [1, 2, 3]


def test_a_cell_that_a_later_part_of_a_side_finished(tmp_path: Path) -> None:
    """The cell isn't lost, whichever part comes first."""
    good = seeds("timm:a", (10, 10.1, 9.9))
    write_run(tmp_path / "old", good)
    write_run(tmp_path / "a", [*good[:2], good[2].replace(status="failed", result=None)])
    write_run(tmp_path / "b", good[2:])
    for parts in ("ab", "ba"):
        name = ",".join(str(tmp_path / part) for part in parts)
        found = compare(read_sides([str(tmp_path / "old"), name]), rules=[Rule(points=10)])
        assert not found.newly_failing and not found.incomplete and decide(found).status == PASSED


def test_values_that_no_side_knows_are_reported(tmp_path: Path) -> None:
    """A limit on them leaves a gate undecided, and a metric that no cell has is refused."""
    for name in ("x", "y"):
        records = [record("timm:a", "frozen", seed=seed, weights=RANDOM, seconds=10 + seed / 10) for seed in range(3)]
        write_run(tmp_path / name, records)
    sides = read_sides([str(tmp_path / "x"), str(tmp_path / "y")])
    decision = decide(compare(sides))
    assert decision.status == PASSED
    assert decision.reasons == ("last accuracy: unknown in x and y: timm:a frozen cpu",)
    decision = decide(
        compare(sides, rules=[Rule(metric="epoch_seconds", max=99), Rule(metric="total_seconds", max=99)])
    )
    assert decision.status == PASSED
    with pytest.raises(UserError, match="none of the cells that fit has that metric"):
        compare(sides, rules=[Rule(metric="val_accuracy_last", min=0.9)])
    with pytest.raises(UserError, match="no cell of either side has val_accuracy_last"):
        compare(sides, metrics=["epoch_seconds", "val_accuracy_last"])
    known = [record("timm:b", "frozen", seed=seed) for seed in range(3)]
    for name in ("x2", "y2"):
        write_run(tmp_path / name, [*(r for r in RunFolder(tmp_path / "x").records().values()), *known])
    sides = read_sides([str(tmp_path / "x2"), str(tmp_path / "y2")])
    decision = decide(compare(sides, rules=[Rule(metric="val_accuracy_last", min=0.1), Rule(points=10)]))
    assert decision.status == INCOMPLETE
    assert decision.reasons[0].startswith(
        "timm:a frozen cpu weights random: y2: last accuracy is unknown, so its limit can't be checked"
    )


def test_limits_hold_for_cells_that_base_has_not(tmp_path: Path) -> None:
    """Limits concern only the new side."""
    a, b = seeds("timm:a", (1, 1, 1)), seeds("timm:b", (9, 9, 9))
    write_run(tmp_path / "old", a), write_run(tmp_path / "new", [*a, *b])
    rules = [Rule(metric="epoch_seconds", max=5)]
    found = compare(read_sides([str(tmp_path / "old"), str(tmp_path / "new")]), rules=rules)
    assert found.beyond_limits == (("timm:b frozen cpu", "epoch: 9.02 s is above max 5 s"),)
    assert decide(found).status == REGRESSED


def test_rules_are_checked_against_what_they_would_hold(tmp_path: Path) -> None:
    """A rule is refused if its cell exists and its metric exists, but no cell has both."""
    names = []
    for name in ("old", "new"):
        write_run(tmp_path / name, seeds("timm:a", (10, 10, 10)))
        benchmark_file(tmp_path / f"{name}.json", {"t::a[x]": [1, 1, 1]})
        names.append(f"{tmp_path / name},{tmp_path / name}.json")
    sides = read_sides(names)
    with pytest.raises(UserError, match="none of the cells that fit has that metric"):
        compare(sides, rules=[Rule(metric="epoch_seconds", cells="t::*", factor=2.0)])
    (change,) = (c for c in compare(sides, rules=[Rule(cells="t::a[x]", factor=2.0)]).changes if c.cell == "t::a[x]")
    assert change.allowed == 2.0, "brackets are literal"
    (change,) = (c for c in compare(sides, rules=[Rule(cells="*[x]", factor=2.0)]).changes if c.cell == "t::a[x]")
    assert change.allowed == 2.0


def test_a_rule_for_a_cell_that_is_lost(tmp_path: Path) -> None:
    """The rule is no mistake: the gate reports the missing or failed cell."""
    a, b = seeds("timm:a", (10, 10.1, 9.9)), seeds("timm:b", (5, 5.1, 4.9))
    write_run(tmp_path / "old", [*a, *b]), write_run(tmp_path / "gone", b)
    write_run(tmp_path / "oom", [*(one.replace(status="oom", result=None, reason="8 GiB") for one in a), *b])
    for name, status in (("oom", REGRESSED), ("gone", INCOMPLETE)):
        sides = read_sides([str(tmp_path / "old"), str(tmp_path / name)])
        for rule in (Rule(metric="epoch_seconds", cells="timm:a*", max=30), Rule(cells="timm:a*", factor=1.2)):
            assert decide(compare(sides, rules=[rule])).status == status


def test_the_same_images_right(tmp_path: Path) -> None:
    """With the same images right for each of three seeds, a run is the same. With one image different it isn't."""
    for name, right in (("old", 95), ("new", 95), ("other", 94)):
        write_run(tmp_path / name, seeds("timm:a", (10, 10.01, 9.99), right=right))
    for name, verdict in (("new", "same"), ("other", "inconclusive")):
        sides = read_sides([str(tmp_path / "old"), str(tmp_path / name)])
        assert verdicts(compare(sides, metrics=["val_accuracy_last"])) == [verdict]
    regimes = [record("timm:a", name, seed=seed) for name in ("finetune", "frozen") for seed in range(3)]
    sides = read_sides([str(write_run(tmp_path / "regimes", regimes).folder)], by="regime")
    assert verdicts(compare(sides, metrics=["val_accuracy_last"])) == ["inconclusive"], (
        "two networks need not be equally good"
    )
    few = [write_run(tmp_path / f"few {name}", seeds("timm:a", (10, 10))) for name in ("old", "new")]
    sides = read_sides([str(run.folder) for run in few])
    assert verdicts(compare(sides, metrics=["val_accuracy_last"])) == ["too few samples"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("system", "Darwin arm64", "system: Linux x86_64 → Darwin arm64"),
        ("python", "3.13.0", "python: 3.11.0 → 3.13.0"),
        ("packages", {"torch": "2", "pillow": "1"}, "pillow: none → 1"),
    ],
)
def test_other_machines_do_not_compare(field: str, value: Any, words: str, tmp_path: Path) -> None:
    """Times and memory are not comparable, and the difference is named. Accuracies are."""
    here: dict[str, Any] = {"system": "Linux x86_64", "python": "3.11.0", "packages": {"torch": "2"}}
    for name, own in (("old", here), ("new", here | {field: value})):
        records = seeds("timm:a", (10, 10.01, 9.99))
        write_run(tmp_path / name, [one.replace(environment=one.environment.replace(**own)) for one in records])
    found = compare(read_sides([str(tmp_path / "old"), str(tmp_path / "new")]))
    changes = {change.quantity.name: (change.verdict, [*map(str, change.mismatches)]) for change in found.changes}
    assert changes["epoch_seconds"] == changes["peak_memory_bytes"] == ("not comparable", [words])
    assert changes["val_accuracy_last"][0] == "same"


def test_memory_of_different_methods_does_not_compare(tmp_path: Path) -> None:
    """Times are still compared."""
    for name, method in (("old", "VmHWM"), ("new", "torch.cuda")):
        records = seeds("timm:a", (10, 10.01, 9.99))
        results = [one.result.replace(memory_method=method) for one in records if one.result]
        write_run(tmp_path / name, [one.replace(result=two) for one, two in zip(records, results, strict=True)])
    found = compare(read_sides([str(tmp_path / "old"), str(tmp_path / "new")]))
    changes = {change.quantity.name: change for change in found.changes}
    assert changes["epoch_seconds"].verdict == "same"
    assert [str(each) for each in changes["peak_memory_bytes"].mismatches] == ["memory method: VmHWM → torch.cuda"]


def test_a_time_that_is_known_of_no_cell_passes_nothing(tmp_path: Path) -> None:
    """A single epoch is warm-up, so the gate has no time and is undecided."""
    for name in ("old", "new"):
        write_run(tmp_path / name, seeds("timm:a", (10, 10.01, 9.99), epochs=1))
    decision = decide(compare(read_sides([str(tmp_path / "old"), str(tmp_path / "new")])))
    assert decision.status == INCOMPLETE and decision.lost
    assert decision.reasons == ("epoch: unknown in old and new: timm:a frozen cpu",)


def test_losses_are_distinguished_from_noise(tmp_path: Path) -> None:
    """More rounds can decide noise, but not a loss."""
    noisy = {"a": [1.0, 1.3, 0.8, 1.1]}
    decision = decide(compare([side("o", noisy), side("n", {"a": noisy["a"][::-1]})]))
    assert decision.status == INCOMPLETE and decision.is_noise
    assert decision.headline == "Gate undecided: samples are too noisy or too few."
    decision = decide(compare([side("o", noisy | {"b": STEADY}), side("n", {"a": noisy["a"][::-1]})]))
    assert decision.status == INCOMPLETE and not decision.is_noise
    assert decision.headline == "Gate undecided: incomplete."
    flops = {"seconds": noisy["a"], "flops": [1] * 4}
    decision = decide(compare([side("o", noisy), side("n", {"a": flops})]))
    assert decision.status == INCOMPLETE and decision.is_noise, "a new counter is no loss"
    decision = decide(compare([side("o", {"a": flops}), side("n", noisy)]))
    assert decision.status == INCOMPLETE and not decision.is_noise
    for new in (1.0, 1.2):
        decision = decide(compare([side("o", {"a": STEADY}), side("n", {"a": [new * value for value in STEADY]})]))
        assert decision.status in (PASSED, REGRESSED) and not decision.is_noise


@pytest.mark.parametrize(
    ("old", "new", "is_noise"),
    [
        ({"source": "a"}, {"source": "b"}, True),
        ({"source": "a", "allocator": "kept"}, {"source": "b", "allocator": "default"}, False),
        ({"cpu": ""}, {"cpu": ""}, False),
    ],
)
def test_only_a_benchmarks_own_code_may_differ(old: Any, new: Any, is_noise: bool, tmp_path: Path) -> None:
    """Only then it counts as noise: a change of the machine or libraries may hide any slowdown."""
    for name, given in (("old", old), ("new", new)):
        for turn in range(5):
            benchmark_file(tmp_path / name / f"{turn}.json", {"t::a": [1.0]}, **given)
    decision = decide(compare(read_sides([str(tmp_path / "old"), str(tmp_path / "new")])))
    assert decision.status == NOT_COMPARABLE and decision.is_noise is is_noise


def test_rules_of_a_project_serve_runs_and_benchmarks(tmp_path: Path) -> None:
    """Rules of the other kind, and of metrics that aren't compared, are left out. A misspelt rule never is."""
    file = tmp_path / "rules.toml"
    metrics = ("epoch_seconds", "seconds", "*")
    file.write_text("".join(f'[[tool.bench.gate.rule]]\nmetric = "{name}"\nfactor = 1.2\n' for name in metrics))

    def left(**given: Any) -> list[str]:
        return [rule.metric for rule in read_rules(file, [], **given)]

    assert left() == ["epoch_seconds", "seconds", "*"]
    assert left(repeats=["round"]) == ["seconds", "*"] and left(repeats=["seed"]) == ["epoch_seconds", "*"]
    assert left(metrics=["peak_memory_bytes"]) == ["*"]
    (rule,) = read_rules(None, ["epoch_seconds: factor=2"], tmp_path, repeats=["round"])
    assert rule.metric == "epoch_seconds", "a rule in an option is always kept"
    file.write_text('[[tool.bench.gate.rule]]\nmetric = "epoch_secnds"\nfactor = 1.2\n')
    assert left(repeats=["seed"]) == left(metrics=["peak_memory_bytes"]) == ["epoch_secnds"]
    file.write_text('[[tool.bench.gate.rule]]\nmetric = "forward_flops"\nmax = 5\n')
    assert left(repeats=["round"]) == left(repeats=["seed"]) == ["forward_flops"], "both can have it"


def test_rounds_that_share_some_names_are_pairs(tmp_path: Path) -> None:
    """Common rounds are pairs, and the others are reported. Without common names, rounds are independent samples."""
    for name, turns in (("b", range(5)), ("n", range(1, 6)), ("z", range(10, 15))):
        for turn in turns:
            benchmark_file(tmp_path / name / f"{turn}.json", {"t::a": [2.0**turn]})
    found = compare(read_sides([str(tmp_path / "b"), str(tmp_path / "n")]))
    assert found.changes[0].estimate is not None and found.changes[0].estimate.n == 4
    assert found.changes[0].verdict == "same", "as pairs, whatever the drift"
    assert found.incomplete == (("t::a", "n has no round 0"),) and found.only_new == (("t::a, round 5", "n"),)
    found = compare(read_sides([str(tmp_path / "b"), str(tmp_path / "z")]))
    assert not found.incomplete and found.changes[0].base.keys() == {"0", "1", "2", "3", "4"}
    for folder in ("p", "q"):
        benchmark_file(tmp_path / folder / "1.json", {"t::a": [1.0]})
    with pytest.raises(UserError, match=r"two files are called 1\.json"):
        read_sides([f"{tmp_path / 'p'},{tmp_path / 'q'}", str(tmp_path / "b")])


def test_a_value_that_is_missing_in_some_samples(tmp_path: Path) -> None:
    """The gate is undecided and a limit unchecked if base has it. All values of a counter are checked."""
    for name in ("b", "n", "m"):
        for turn in range(4):
            flops = {"flops": 10} if name != "n" or turn == 0 else {"flops": 99.5}
            benchmark_file(tmp_path / name / f"{turn}.json", {"t::a": [1.0]}, **flops)
    sides = [str(tmp_path / name) for name in "bn"]
    found = compare(read_sides(sides))
    assert found.incomplete == (("t::a", "n: flops is unknown in rounds 1, 2, 3"),)
    assert decide(found).status == INCOMPLETE
    found = compare(read_sides(sides), rules=[Rule(metric="flops", max=10)])
    assert found.unchecked == (("t::a", "n: flops is unknown in rounds 1, 2, 3, so its limit can't be checked"),)
    benchmark_file(tmp_path / "m" / "2.json", {"t::a": [1.0]}, flops=7)
    found = compare(read_sides([str(tmp_path / name) for name in "bm"]), rules=[Rule(metric="flops", min=8)])
    assert found.beyond_limits == (("t::a", "flops: 7 is below min 8"),)


def test_conditions_from_extra_info(tmp_path: Path) -> None:
    """They may not repeat a condition of the machine. A condition that only some rounds have is unknown."""
    for name in ("a", "b"):
        benchmark_file(tmp_path / name / "0.json", {"t::a": [1.0]}, cpu=name, **{"cores": "x"})
    with pytest.raises(UserError, match="extra_info has 'cores', which machine_info has too"):
        read_sides([str(tmp_path / "a"), str(tmp_path / "b")])
    for name in ("c", "d"):
        for turn in range(3):
            more = {"source": "s"} if name == "c" or turn == 0 else {}
            benchmark_file(tmp_path / name / f"{turn}.json", {"t::a": [1.0]}, **more)
    (change,) = compare(read_sides([str(tmp_path / "c"), str(tmp_path / "d")])).changes
    assert [str(each) for each in change.mismatches] == ["source: s → s and unknown"]


def test_unknown_or_mixed_conditions_do_not_compare(tmp_path: Path) -> None:
    """Sides don't compare if neither names its processor, or if a side has two."""
    for name, cpus in (("a", ("",) * 3), ("b", ("",) * 3), ("c", ("A", "B", "A")), ("d", ("A", "B", "A"))):
        for turn, cpu in enumerate(cpus):
            benchmark_file(tmp_path / name / f"{turn}.json", {"t::a": [1.0]}, cpu=cpu)
    for pair, words in (("ab", "cpu: unknown → unknown"), ("cd", "cpu: A and B → A and B")):
        (change,) = compare(read_sides([str(tmp_path / name) for name in pair])).changes
        assert change.verdict == "not comparable" and [str(each) for each in change.mismatches] == [words]


@pytest.mark.parametrize(
    ("field", "value"), [("best", {"labels": [0]}), ("best", {"epoch": 99}), ("total_seconds", float("nan"))]
)
def test_records_that_were_edited_by_hand(field: str, value: Any, tmp_path: Path) -> None:
    """The error is one line that names the record."""
    run = write_run(tmp_path / "a", seeds("timm:a", (1, 1, 1)))
    write_run(tmp_path / "b", seeds("timm:a", (1, 1, 1)))
    path = next(iter((run.folder / "cells").glob("*.json")))
    data = json.loads(path.read_text())
    if field == "best":
        data["result"]["best"].update(value)
        if "epoch" not in value:
            data["result"]["best"]["confidences"] = data["result"]["best"]["confidences"][:1]
    else:
        data["wall_seconds"] = value
    del data["digest"]  # from here on as an older version wrote it, whose files have none
    path.write_text(json.dumps(data | {"schema_version": 4}))
    ran = command("gate", str(tmp_path / "a"), str(tmp_path / "b"))
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and path.stem in ran.stderr, ran.stderr


def test_names_from_data_are_text_in_every_format() -> None:
    """Names have no line breaks, links, code or markup, and columns differ even for equal names of runs."""
    odd = "t::a[`x`|\n<b>*y*]"
    sides = [side("metric", {odd: STEADY}), side("verdict", {odd: [value * 2 for value in STEADY]})]
    page = show(compare(sides), "md", title="a\n# b")
    (row,) = (line for line in page.splitlines() if line.startswith("| worse"))
    assert r"t::a\[\`x\`\| &lt;b&gt;\*y\*\]" in row and "\n# b" not in page
    assert "| base: metric" in page and "| new: verdict" in page
    content = json.loads(show(compare(sides), "json", title="", status=1))
    assert (
        content["status"] == 1
        and content["level"] == 0.05
        and content["changes"][0]["base"] == {str(seed): value for seed, value in enumerate(STEADY)}
    )


def test_labels_have_weights_if_cells_differ_in_them(tmp_path: Path) -> None:
    """Two cells never have the same label."""
    records = [*seeds("timm:a", (1, 1, 1)), *seeds("timm:a", (1, 1, 1), weights=RANDOM)]
    write_run(tmp_path / "a", records), write_run(tmp_path / "b", records)
    found = compare(read_sides([str(tmp_path / "a"), str(tmp_path / "b")]), metrics=["epoch_seconds"])
    assert len({change.cell for change in found.changes}) == 2


def test_a_bug_is_no_regression(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An exception has another exit status than a regression. A terminal that can't show × gets an escape."""
    monkeypatch.setattr("bench.compare.sides.read_sides", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("sys.argv", ["bench", "gate", "a", "b"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2 and "ZeroDivisionError" in capsys.readouterr().err
    for name in ("a", "b"):
        write_run(Path("results") / name, seeds("timm:a", (1, 1, 1)))
    ran = own_process("compare", "a", "b", PYTHONIOENCODING="ascii")
    assert ran.returncode == 0 and "1.000\\xd7" in ran.stdout


def test_devices_compare_by_design(tmp_path: Path) -> None:
    """With `--by device`, different devices are comparable."""
    cpu = seeds("timm:a", (10, 10, 10))
    gpu = []
    for one in seeds("timm:a", (1, 1, 1)):
        cell = one.cell.replace(device="cuda:0")
        assert one.result is not None
        result = one.result.replace(device="cuda:0", device_name="a GPU")
        gpu.append(one.replace(cell=cell, cell_id=cell.id, result=result))
    run = write_run(tmp_path / "r", [*cpu, *gpu])
    (change,) = compare(read_sides([str(run.folder)], by="device"), metrics=["epoch_seconds"]).changes
    assert (change.new_side, change.verdict) == ("cuda:0", "better")


def benchmark_file(path: Path, times: dict[str, list[float]], cpu: str = "A", **extra: Any) -> Path:
    """Write a file as pytest-benchmark does. Files that are named by their round were measured in turn."""
    round_ = int(path.stem) if path.stem.isdigit() else 0
    # Each file has its own microsecond, except for one that is written again.
    seconds, microseconds = (
        crc32(f"{word}{path.resolve()}".encode()) % most for word, most in (("", 300), ("µ", 10**6))
    )
    written = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(
        minutes=10 * round_, seconds=seconds, microseconds=microseconds
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpu": {"brand_raw": cpu, "count": 2}, "python_version": "3.11", "packages": {"torch": "2"}}
    machine |= {"system": "Linux", "machine": "x86_64"}
    raw = {name: data if len(data) > 1 else 3 * data for name, data in times.items()}
    rows = [{"fullname": name, "stats": {"data": data}, "extra_info": extra} for name, data in raw.items()]
    content = {"machine_info": machine, "commit_info": {"id": "c" * 40}, "benchmarks": rows}
    path.write_text(json.dumps(content | {"datetime": written.isoformat(), "version": "5.2.3"}))
    return path


def test_pytest_benchmark_files(tmp_path: Path) -> None:
    """One file is one sample. Each file of a folder is a round, and rounds of equal names are pairs. Whole numbers in
    extra_info are exact counters."""
    old = benchmark_file(tmp_path / "old.json", {"t::a": [1, 1.01, 0.99]}, flops=5, share=0.5)
    new = benchmark_file(tmp_path / "new.json", {"t::a": [1.2, 1.21, 1.19]}, flops=6, share=0.7)
    found = compare(read_sides([str(old), str(new)]))
    changes = [(c.quantity.name, c.verdict) for c in found.changes]
    assert changes == [("seconds", "too few samples"), ("flops", "worse")]
    assert found.changes[0].typical == (1, 1.2) and not found.incomplete
    # On a machine that drifts from round to round, pairs show a change that means hide.
    drift = [1.0, 1.5, 2.0, 3.0]
    for name, factor in (("b", 1.0), ("n", 1.1)):
        for turn, value in enumerate(drift):
            seconds = value * factor ** (1 + turn / 10)
            benchmark_file(tmp_path / name / f"{turn}.json", {"t::a": [seconds, 9e8, 1e-9]})
    (change,) = compare(read_sides([str(tmp_path / "b"), str(tmp_path / "n")])).changes
    ratios = ttest_rel(np.log(list(change.new.values())), np.log(list(change.base.values())))
    assert change.verdict == "worse" and change.estimate is not None
    assert change.estimate.p == pytest.approx(ratios.pvalue)
    elsewhere = benchmark_file(tmp_path / "elsewhere.json", {"t::a": [1, 1, 1]}, cpu="B")
    (change, _) = compare(read_sides([str(old), str(elsewhere)])).changes
    assert change.verdict == "not comparable" and [str(each) for each in change.mismatches] == ["cpu: A → B"]


def test_a_side_can_be_a_run_and_a_file(tmp_path: Path) -> None:
    """They are joined by a comma, and each is compared with its own kind."""
    names = []
    for name in ("old", "new"):
        write_run(tmp_path / name, seeds("timm:a", (10, 10, 10)))
        files = [benchmark_file(tmp_path / "rounds" / name / f"{turn}.json", {"t::a": [1]}) for turn in range(3)]
        names.append(",".join(map(str, [tmp_path / name, *files])))
    found = compare(read_sides(names), rules=[Rule(points=10)])
    assert {change.cell for change in found.changes} == {"timm:a frozen cpu", "t::a"} and decide(found).status == PASSED


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "can't be read as JSON"),
        ("[]", "must be a run's folder or a file of pytest-benchmark"),
        ('{"benchmarks": [], "machine_info": {}}', "has no benchmarks"),
        ('{"benchmarks": [{"fullname": "t::a", "stats": {}}], "machine_info": {}}', "no raw data"),
        ('{"benchmarks": [{"fullname": "t::a", "stats": {"data": []}}], "machine_info": {}}', "no raw data"),
        ('{"benchmarks": [{"fullname": "t::a"}], "machine_info": {}}', "no raw data"),
        ('{"benchmarks": [{"fullname": "t::a", "stats": {"data": [-1]}}], "machine_info": {}}', "raw time -1: Input"),
        ('{"benchmarks": [{"fullname": "t::a", "stats": {"data": [1e400]}}], "machine_info": {}}', "raw time inf: "),
        (
            '{"benchmarks": [{"fullname": "t::a", "stats": {"data": [1%s]}}], "machine_info": {}}' % ("0" * 400),
            "raw time",
        ),
        ('{"benchmarks": {}, "machine_info": {}}', "benchmarks: Input should be a valid list"),
        ("{}", "must be a run's folder or a file of pytest-benchmark"),
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ('{"a": ' * 10_000, "nested too deeply"),
        ("\udcff", "is not text in UTF-8"),
        (
            '{"benchmarks": [{"fullname": "t", "stats": {"data": [1]}}], "machine_info": {}, "datetime": 7}',
            "datetime: 7 is",
        ),
        (
            '{"benchmarks": [{"fullname": "t", "stats": {"data": [1]}}], "machine_info": {}, "datetime": "today"}',
            "datetime: 'today' is not a date and time such as 2026-01-31T12:00:00+00:00",
        ),
        (
            '{"benchmarks": [{"fullname": "t", "stats": {"data": [1]}}], "machine_info": {},'
            '"datetime": "9999-12-31T23:59:59-23:00"}',
            "is not a date and time",
        ),
        ('{"benchmarks": [7], "machine_info": {}}', "benchmarks.0"),
        ('{"benchmarks": [{"fullname": "t", "stats": {"data": [NaN]}}], "machine_info": {}}', "raw time nan: "),
        ('{"benchmarks": [{"fullname": "t", "stats": {"data": [1]}}], "machine_info": 7}', "machine_info"),
        ('{"benchmarks": [{"fullname": 7, "stats": {"data": [1]}}], "machine_info": {}}', "fullname"),
        ('{"benchmarks": [{"fullname": "t", "stats": {"data": [1]}}], "machine_info": {"cpu": 7}}', "machine_info.cpu"),
        ('{"benchmarks": [{"fullname": "t", "stats": {"data": [1]}, "extra_info": 7}], "machine_info": {}}', "extra"),
        (
            '{"benchmarks": [{"fullname": "t", "stats": {"data": [1]}}, {"fullname": "t", "stats": {"data": [2]}}],'
            '"machine_info": {}}',
            "contains t twice",
        ),
        (
            '{"benchmarks": [{"fullname": "t", "stats": {"data": [1]}, "extra_info": {"seconds": 5}}],'
            '"machine_info": {}}',
            "extra_info has 'seconds', which is the name of a metric",
        ),
    ],
)
def test_invalid_files(content: str, words: str, tmp_path: Path) -> None:
    """The error is one line with the name of the file, and the gate doesn't pass."""
    Path("odd.json").write_text(content, errors="surrogateescape")
    benchmark_file(Path("fine.json"), {"t::a": [1, 1, 1]})
    ran = command("gate", "fine.json", "odd.json")
    assert ran.returncode == 2 and words in ran.stderr and "odd.json" in ran.stderr and ran.stderr.count("\n") == 1


def test_mistakes_in_the_names_of_sides(tmp_path: Path) -> None:
    """Sides without common cells, a single side, duplicates, empty runs and missing runs are refused."""
    write_run(tmp_path / "a", seeds("timm:a", (1,)))
    write_run(tmp_path / "b", seeds("timm:b", (1,)))
    write_run(tmp_path / "longer", seeds("timm:a", (1,), epochs=5))
    write_run(tmp_path / "empty", [], missing=[seeds("timm:a", (1,))[0].cell])
    a = str(tmp_path / "a")
    for names, words in (
        ([a, str(tmp_path / "b")], "no cell in common with b: a has timm:a frozen cpu, b has timm:b frozen cpu"),
        ([a, str(tmp_path / "longer")], "no cell in common|differ in images, weights or settings"),
        ([a], "a comparison needs a second run"),
        ([a, a], "named twice"),
        ([a, str(tmp_path / "b" / ".." / "a")], "named twice"),
        ([f"{a},{a}/", str(tmp_path / "b")], "named twice"),
        ([a, str(tmp_path / "empty")], "has no records"),
        ([a, "nowhere"], "nowhere: no such run"),
        ([a, ""], "has an empty name between commas, or is empty"),
    ):
        with pytest.raises(UserError, match=words):
            compare(read_sides(names))
    with pytest.raises(UserError, match=r"--metric='epoch_second': not one of .* did you mean 'epoch_seconds'"):
        compare(read_sides([a, str(tmp_path / "b")]), metrics=["epoch_second"])


def test_rules_from_a_file_and_from_options() -> None:
    """Rules of options come last, and the last rule that fits applies."""
    Path("pyproject.toml").write_text('[[tool.bench.gate.rule]]\nmetric = "seconds"\nfactor = 1.5\nmax = 2.0\n')
    rules = read_rules(None, ["seconds: factor=1.1, cells=b*"])
    assert rules == [Rule(metric="seconds", factor=1.5, max=2.0), Rule(metric="seconds", cells="b*", factor=1.1)]
    slower = {name: [value * 1.2 for value in STEADY] for name in ("a", "b")}
    sides = [side("o", {"a": STEADY, "b": STEADY}), side("n", slower)]
    found = compare(sides, rules=rules)
    assert verdicts(found) == ["same", "worse"] and not found.beyond_limits
    found = compare(sides, rules=[Rule(metric="seconds", factor=1.5, max=1.1, min=0.1)])
    assert verdicts(found) == ["same", "same"] and decide(found).status == REGRESSED
    assert decide(found).reasons[0] == "a: time: 1.2 s is above max 1.1 s"


def test_a_rule_brings_its_metric(tmp_path: Path) -> None:
    """A metric that isn't compared by default is compared if a rule names it."""
    for name in ("old", "new"):
        write_run(tmp_path / name, seeds("timm:a", (1, 1, 1)))
    sides = read_sides([str(tmp_path / "old"), str(tmp_path / "new")])
    rules = [Rule(metric="total_seconds", max=4.5), Rule(points=10)]
    found = compare(sides, rules=rules)
    assert [words.partition(":")[0] for _, words in found.beyond_limits] == ["whole cell"]
    assert decide(found).status == REGRESSED
    assert "total_seconds" not in {change.quantity.name for change in compare(sides).changes}


def test_no_comparison_is_no_pass(tmp_path: Path) -> None:
    """A metric that no cell has is refused."""
    for name in ("old", "new"):
        write_run(tmp_path / name, seeds("timm:a", (1, 1, 1)))
    sides = read_sides([str(tmp_path / "old"), str(tmp_path / "new")])
    with pytest.raises(UserError, match="nothing to compare: no cell of either side has tuning_seconds"):
        compare(sides, metrics=["tuning_seconds"])


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("epoch_second: factor=1.1", "rule .*metric='epoch_second': not one of .*; did you mean 'epoch_seconds'"),
        (
            "epoch_seconds: factor=1.1, cells=timm:z*",
            "no cell fits cells='timm:z\\*'; an existing cell is 'timm:a frozen cpu'",
        ),
        ("epoch_seconds: points=1", "epoch_seconds can't have points: times and memory have factor"),
        ("epoch_seconds: factor=0.9", "factor"),
        ("epoch_seconds: factor=nan", "factor"),
        ("epoch_seconds: max=inf", "max='inf': must be a number"),
        ("epoch_seconds: max=1e400", "max=inf: input should be a finite number"),
        ("epoch_seconds: factor=1_5", "factor='1_5': must be a number"),
        ("epoch_seconds: factor=\u0661.\u0665", "must be a number"),
        ("epoch_seconds: min=2, max=1", "min=2, max=1: no value is at least min and at most max"),
        ("epoch_seconds: max=-1", "max=-1.0: input should be greater than or equal to 0"),
        ("epoch_seconds: min=-1", "min=-1.0: input should be greater than or equal to 0"),
        ("epoch_seconds: factor=quick", "factor='quick': must be a number"),
        ("epoch_seconds: factor", "'factor': must be NAME=VALUE"),
        ("epoch_seconds: fctor=1.1", "fctor"),
        ("epoch_seconds: factor=1.1, factor=9", "factor: given twice"),
        ("epoch_seconds", "must be like"),
        ("epoch_seconds:", "a rule needs factor, points, max or min"),
    ],
)
def test_rules_that_fit_nothing(rule: str, words: str, tmp_path: Path) -> None:
    """Each is refused, so that no gate passes by mistake."""
    for name in ("old", "new"):
        write_run(tmp_path / name, seeds("timm:a", (1, 1, 1)))
    with pytest.raises(UserError, match=words) as caught:
        compare(read_sides([str(tmp_path / "old"), str(tmp_path / "new")]), rules=read_rules(None, [rule]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.bench.gate", "can't be read as TOML"),
        ("[tool.bench.gate]\nrules = 1", "key='rules': not one of rule"),
        ("[[tool.bench.gat.rule]]\nfactor = 2", "key='gat': not one of gate"),
        ("[tool.other]", "has no rules"),
        ("[tool.bench.gate]\nrule = []", "has no rules"),
        ("[tool.bench.gate]\nrule = 1", "rules must be tables"),
        ("[[tool.bench.gate.rule]]\nfactor = 'a'", "factor"),
        ("[[tool.bench.gate.rule]]\nmin = 2\nmax = 1", "min=2, max=1: no value"),
        ("[[tool.bench.gate.rule]]\nmax = -1", "max=-1: input should be greater"),
    ],
)
def test_files_of_rules_with_mistakes(text: str, words: str) -> None:
    """The error names the file."""
    Path("gate.toml").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_rules(Path("gate.toml"), [])
    assert str(caught.value).startswith("gate.toml: ")
    with pytest.raises(UserError, match=r"nowhere\.toml: can't be read: No such file"):
        read_rules(Path("nowhere.toml"), [])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: path.symlink_to(path.name), "symbolic links"),
        (Path.mkdir, "is a folder, not a regular file"),
        (os.mkfifo, "is a pipe, not a regular file"),
        (lambda path: path.write_bytes(b"\xff"), "is not text in UTF-8"),
    ],
    ids=["link to nothing", "loop of links", "folder", "pipe", "bytes"],
)
def test_rules_that_cannot_be_read_are_not_left_out(make: Callable[[Path], object], words: str) -> None:
    """A `pyproject.toml` that exists has rules, so a gate without them would pass what they forbid."""
    make(Path("pyproject.toml"))
    with pytest.raises(UserError, match=rf"^pyproject\.toml: .*{words}"):
        read_rules(None, [])
    assert read_rules(None, [], folder=Path("nowhere")) == []


def test_the_gates_exit_status(tmp_path: Path) -> None:
    """The command line gives the documented status and the reasons, and writes the table to a file if asked."""
    runs = {
        "base": [counted(one) for one in seeds("timm:a", (10, 10.1, 9.9))],
        "slow": [counted(one) for one in seeds("timm:a", (12, 12.1, 11.9))],
        "short": [counted(one) for one in seeds("timm:a", (10,))],
        "other": [counted(one, cpu="another") for one in seeds("timm:a", (10, 10.1, 9.9))],
        "again": [counted(one) for one in seeds("timm:a", (10, 10.1, 9.9))],
    }
    for name, records in runs.items():
        write_run(tmp_path / "results" / name, records)
    points = ("--rule", "val_accuracy_last: points=10", "--rule", "peak_memory_bytes: factor=9")
    for name, status, words in (
        ("again", 0, "Gate passed."),
        ("slow", 1, "timm:a frozen cpu: epoch 1.200× "),
        ("short", 3, "too few samples"),
        ("other", 4, "cpu: "),
    ):
        ran = command("gate", "base", name, *points)
        assert (ran.returncode, ran.stderr) == (status, "") and words in ran.stdout, ran.stdout
    ran = command("gate", "base", "slow", *points, "-o", "gate.html")
    assert ran.returncode == 1 and ran.stdout.startswith("Gate failed: regressed.\n  timm:a frozen cpu: epoch")
    assert Path("gate.html").read_text().startswith("<!doctype html>")
    for wrong, words in (
        (["base"], "a gate has two sides"),
        (["base", "slow", "-o", "gate.txt"], "must end in .md, .html or .json; or give --format"),
        (["base", "slow", "-o", "nowhere.md/x.md", "--metric", "x"], "--metric"),
    ):
        ran = command("gate", *wrong)
        assert ran.returncode == 2 and words in ran.stderr and ran.stderr.count("\n") == 1


def test_names_from_data_are_text(tmp_path: Path) -> None:
    """They are escaped in HTML and in Markdown."""
    old = side("<b>old</b>", {"<script>a|b": STEADY, "c": STEADY})
    new = side("new", {"<script>a|b": [value * 2 for value in STEADY]})
    found = compare([old, new])
    for kind in ("html", "md"):
        page = show(found, kind, title="<i>t", headline="Gate <u>.", findings=["<s>"])  # type: ignore[arg-type]
        page = page.replace('<script>\n"use strict";', "", 1)  # the page's own
        assert not re.findall("<script|<b>|<i>|<u>|<s>", page)
        assert "&lt;script&gt;a" in page and "verdict" in page and "worse" in page
    content = json.loads(show(found, "json", title="", findings=[]))
    assert content["changes"][0]["verdict"] == "worse" and content["incomplete"] == [["c", "new has no such cell"]]
    assert list(content["changes"][0]["base"].values()) == list(STEADY)


def test_every_metric_with_a_direction_can_be_compared() -> None:
    """Shares are compared by difference, times and memory by ratio, and counts exactly."""
    known = quantities()
    compared = {name: quantity.compared for name, quantity in known.items()}
    assert compared["epoch_seconds"] == compared["peak_memory_bytes"] == compared["images_per_second"] == "ratio"
    assert compared["val_accuracy_best"] == "difference" and compared["forward_flops"] == "exact"
    assert known["images_per_second"].better == known["val_accuracy_last"].better == "higher"
    assert "best_epoch" not in known


def test_a_thousand_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of two runs pair in order, and every planted change is found."""
    one = seeds("timm:a", (10,))[0]
    monkeypatch.setattr("os.fsync", lambda _: None)

    def named(number: int, seconds: float) -> Record:
        cell = one.cell.but(backbone=f"timm:{number}")
        return record(f"timm:{number}", "frozen", seconds=seconds).replace(cell=cell, cell_id=cell.id)

    for name, factor in (("old", 1.0), ("new", 2.0)):
        write_run(tmp_path / name, [named(i, 10 * (factor if i % 100 == 0 else 1)) for i in range(1000)])

    found = compare(read_sides([str(tmp_path / "old"), str(tmp_path / "new")]), metrics=["epoch_seconds"])
    large = [c.cell for c in found.changes if c.estimate and c.estimate.value > 1.9]
    assert len(found.changes) == 1000 and large == [f"timm:{i} frozen cpu" for i in range(0, 1000, 100)]


def test_two_cells_of_one_side_are_not_mixed(tmp_path: Path) -> None:
    """Runs that share cells can't be one side or be pooled."""
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, seeds("timm:a", (1, 1, 1)))
    a, b, c = (str(tmp_path / name) for name in "abc")
    with pytest.raises(UserError, match="has timm:a frozen cpu seed 0 twice"):
        read_sides([f"{a},{b}", c])
    with pytest.raises(UserError, match="share cells"):
        read_sides([a, b], by="regime")
    assert RunFolder(tmp_path / "a").records()
