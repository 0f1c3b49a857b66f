"""Files of pytest-benchmark as users make them: copies, order in time, tails, older versions, storage folders."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.analysis.stats import ratio, ratio_of_means
from bench.compare import pytest_benchmark
from bench.compare.changes import Comparison, compare, order_of
from bench.compare.gate import INCOMPLETE, NOT_COMPARABLE, PASSED, REGRESSED, decide
from bench.compare.notes import notes, warnings
from bench.compare.render import show
from bench.compare.rules import Rule
from bench.compare.sides import Side, read_sides
from bench.store.runs import RunFolder
from tests.commands import here as command
from tests.runs import record, write_run
from tl.cache import read_text
from tl.errors import UserError

START = datetime(2026, 1, 1, tzinfo=UTC)
STEADY = [1.0, 1.001, 0.999, 1.0005, 1.0002]
Content = dict[str, Any]


def content(raw: list[float], minute: float, **machine: Any) -> Content:
    """A file of pytest-benchmark with one benchmark."""
    known = {"node": "host", "cpu": {"brand_raw": "A", "count": 2}, "python_version": "3.11", "system": "Linux"}
    known |= {"machine": "x86_64", "python_implementation": "CPython"}
    return {
        "machine_info": {name: value for name, value in (known | machine).items() if value is not None},
        "benchmarks": [{"fullname": "t::a", "stats": {"data": raw}}],
        "datetime": (START + timedelta(minutes=minute)).isoformat(),
    }


def write(path: Path | str, data: Content) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def rounds(
    name: str,
    first: float = 0,
    apart: float = 10,
    count: int = 3,
    slow: Callable[[int], float] = lambda _: 1.0,
    **kind: Any,
) -> None:
    """Write the rounds of a side. `slow` maps a raw time's place to a factor."""
    draws = np.random.default_rng(sum(name.encode()))
    for number in range(count):
        raw = [value * slow(place) * float(draws.lognormal(0, 0.002)) for place, value in enumerate(STEADY)]
        write(f"{name}/{number}.json", content(raw, first + apart * number, **kind))


def test_a_fair_comparison_passes() -> None:
    """Rounds in turn are pairs. The page says what both sides share, and what nobody knows."""
    rounds("base"), rounds("new", first=1)
    ran = command("gate", "base", "new")
    assert (ran.returncode, ran.stderr) == (PASSED, "")
    assert "- Rounds of base and new were measured in turn, and are compared as pairs\n" in ran.stdout
    equal = "machine host, cpu A, cores 2, system Linux x86_64, python 3.11, python implementation CPython"
    assert f"- Equal on both sides: {equal}\n- Not known: versions of libraries\n" in ran.stdout
    as_json = json.loads(command("compare", "base", "new", "--format", "json").stdout)
    assert as_json["changes"][0]["paired"] is True and as_json["warnings"] == [] and len(as_json["notes"]) == 3
    assert command("gate", "base", "new", "-o", "g.md").stdout.count("Equal on both sides") == 1
    assert "Equal on both sides" in show(compare(read_sides(["base", "new"])), "html", title="t")


def _again(number: int) -> Content:
    loaded: Content = json.loads(Path(f"base/{number}.json").read_text())
    return loaded


def _moved(number: int, **changed: Any) -> Content:
    return _again(number) | changed


@pytest.mark.parametrize("command_name", ["gate", "compare"])
@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({"0": lambda: _again(0)}, "new/0.json: has the datetime of base/0.json (2026-01-01T00:00:00+00:00)"),
        ({"0": lambda: _moved(0, datetime="2026-01-01T01:00:00+01:00")}, "new/0.json: has the datetime of base/0.json"),
        ({"0": lambda: _moved(0, datetime="2026-01-01T00:00:00")}, "new/0.json: has the datetime of base/0.json"),
        ({"0": lambda: _moved(2, datetime="2026-02-01T00:00:00Z")}, "new/0.json: has the raw times of base/2.json"),
        ({"0": lambda: _moved(1, datetime=None)}, "new/0.json: has the raw times of base/1.json"),
        ({n: lambda: content(STEADY, 3) for n in "012"}, "new/1.json: has the datetime of new/0.json"),
        ({n: lambda n=n: content(STEADY, int(n) + 3) for n in "012"}, "new/1.json: has the raw times of new/0.json"),
    ],
    ids=["bytes", "time zone", "naive", "another time", "no time", "thrice", "thrice at other times"],
)
def test_copies_are_refused(new: dict[str, Callable[[], Content]], words: str, command_name: str) -> None:
    """One line says which file is a copy of which, and nothing is decided."""
    rounds("base")
    for name, make in new.items():
        write(f"new/{name}.json", make())
    ran = command(command_name, "base", "new")
    assert ran.returncode == 2 and words in ran.stderr and ran.stderr.count("\n") == 1
    assert "a copy shows nothing" in ran.stderr and ran.stdout == ""


def test_a_coarse_clock_makes_no_copies() -> None:
    """It may show the same few values in every process."""
    for side, first in (("base", 0), ("new", 1)):
        for number in range(3):
            write(f"{side}/{number}.json", content([0.0625, 0.0625, 0.078125], first + 10 * number))
    assert command("gate", "base", "new").returncode == PASSED


@pytest.mark.parametrize("command_name", ["gate", "compare"])
def test_copied_records_are_refused(tmp_path: Path, command_name: str) -> None:
    """A copied folder of a run is no second run, nor is one with a single record of the other."""
    records = [record("timm:a", "frozen", seed=seed) for seed in range(3)]
    write_run(tmp_path / "results" / "old", records)
    write_run(tmp_path / "results" / "part", records)
    shutil.copytree("results/old", "results/copy")
    one = next(Path("results/old/cells").iterdir())
    shutil.copy(one, Path("results/part/cells") / one.name)
    for name in ("copy", "part"):
        ran = command(command_name, "old", name)
        assert ran.returncode == 2 and ran.stderr.count("\n") == 1
        assert f"results/{name}: its record of timm:a frozen cpu" in ran.stderr
        assert "is a copy of that in results/old (started 2026-01-01 00:00:00)" in ran.stderr
    assert RunFolder(Path("results/part")).records()


@given(st.permutations(range(12)), st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_rounds_are_pairs_only_if_they_were_measured_in_turn(order: list[int], count: int) -> None:
    """They are if and only if the two files of each round follow each other, in whatever order."""
    order = [number for number in order if number < 2 * count]
    names, written = [str(number) for number in range(count)], {}
    for minute, number in enumerate(order):
        written[number] = START + timedelta(minutes=minute)
    base, new = (
        Side(
            name="x",
            cells={},
            quantities={},
            rounds=tuple(names),
            written={name: written[2 * place + side] for place, name in enumerate(names)},
        )
        for side in (0, 1)
    )
    adjacent = all(order[place] // 2 == order[place + 1] // 2 for place in range(0, len(order), 2))
    assert order_of(base, new) == order_of(new, base) == ("in turn" if adjacent else "not in turn")


@pytest.mark.parametrize("slower", [1.35, 1.0])
def test_an_undecided_gate_says_how_many_more_rounds_would_decide_it(slower: float) -> None:
    """With so many more of the same kind it is decided: a slowdown is shown, or that there is none. Half don't do."""

    def measured(count: int) -> Comparison:
        for number in range(count):
            scatter = 1.3 if number % 2 else 1 / 1.3
            for side, first, factor in (("base", 0, 1.0), ("new", 1, slower * scatter)):
                # In turn: A B, B A, and no two files alike.
                minute = 10 * number + (first if number % 2 else 1 - first)
                raw = [(1 + number / 1e6) * factor * value for value in STEADY]
                write(f"{count}-{side}/{number}.json", content(raw, minute))
        rule = Rule(metric="seconds", factor=1.25)
        return compare(read_sides([f"{count}-base", f"{count}-new"]), rules=[rule])

    (change,) = measured(4).changes
    assert change.verdict == "inconclusive" and change.more
    said = decide(measured(4))
    assert f"; about {change.more} more rounds on each side would decide it" in "".join(said.reasons)
    (later,) = measured(4 + change.more).changes
    assert not later.is_open and later.verdict == ("worse" if slower > 1 else "same")
    assert measured(4 + 2 * (change.more // 4)).changes[0].is_open  # an even number, as much scatter up as down


def test_rounds_that_were_not_measured_in_turn_are_no_pairs() -> None:
    """They are compared as independent samples, and the page says so, and that one side came after the other."""
    for number, drift in enumerate((1.0, 1.5, 2.0, 3.0)):
        for side, first, factor in (("base", 0, 1.0), ("new", 1, 1.2), ("later", 100, 1.2)):
            raw = [drift * factor * (1 + number / 1000) ** (side != "base") * value for value in STEADY]
            write(f"{side}/{number}.json", content(raw, first + 10 * number))
    in_turn = compare(read_sides(["base", "new"]))
    assert decide(in_turn).status == REGRESSED and in_turn.changes[0].paired
    apart = compare(read_sides(["base", "later"]))
    (change,) = apart.changes
    assert change.estimate == ratio_of_means(list(change.new.values()), list(change.base.values()))
    assert change.estimate != ratio(change.new, change.base) and change.verdict == "inconclusive"
    said = "\n".join(notes(apart))
    assert "were not measured in turn (BASE, NEW, NEW, BASE and so on), so they are compared as independent" in said
    assert "All rounds of one side were measured before those of the other (base, later)" in said
    data = json.loads(Path("new/1.json").read_text())
    write("new/1.json", {name: value for name, value in data.items() if name != "datetime"})
    unknown = compare(read_sides(["base", "new"]))
    assert not unknown.changes[0].paired and any("don't all say when" in line for line in notes(unknown))
    for number in range(4):
        shutil.copytree("later", "renamed", dirs_exist_ok=True)
        Path(f"renamed/{number}.json").rename(f"renamed/x{number}.json")
    for path in Path("renamed").glob("[0-9].json"):
        path.unlink()
    renamed = compare(read_sides(["base", "renamed"]))
    assert any("have no names in common" in line for line in notes(renamed))


def test_slow_tails_are_named_and_decide_nothing() -> None:
    """Two of five raw times are 20 times as slow: the median doesn't show it, but the page does."""
    rounds("base"), rounds("new", first=1, slow=lambda place: 20.0 if place < 2 else 1.0)
    ran = command("gate", "base", "new")
    assert ran.returncode == PASSED
    (line,) = (line for line in ran.stdout.splitlines() if "WARNING" in line)
    assert "t::a: the median decides, and hides that new has slower rounds: 90th percentile 20" in line
    assert "mean 8.6" in line and "slower tails" in ran.stdout
    found = json.loads(command("gate", "base", "new", "--format", "json").stdout)
    assert found["changes"][0]["tails"]["mean"] == pytest.approx(8.6, rel=0.02) and len(found["warnings"]) == 1
    assert (
        "WARNING" in command("gate", "base", "new", "-o", "g.html").stdout
        and "Slower tails." in Path("g.html").read_text()
    )
    assert not warnings(compare(read_sides(["new", "base"]))), "faster tails are no warning"
    slower = {"slow": lambda place: 1.3}
    rounds("all", first=2, **slower)
    ran = command("gate", "base", "all")
    assert ran.returncode == REGRESSED and "WARNING" not in ran.stdout, "the median shows it"


def test_tails_of_equal_sides_seldom_warn() -> None:
    """With 30% scatter of raw times and five rounds, at most a tenth of the comparisons have a warning."""
    draws, count = np.random.default_rng(0), 0
    for number in range(60):
        for side, first in (("base", 0), ("new", 1)):
            for place in range(5):
                raw = draws.lognormal(0, 0.3, 5).tolist()
                write(f"{number}/{side}/{place}.json", content(raw, first + 10 * place))
        count += bool(warnings(compare(read_sides([f"{number}/base", f"{number}/new"]))))
    assert count <= 6


def test_a_single_raw_time_decides_nothing() -> None:
    """It may be the warm-up. The gate is undecided, whether the new side looks the same or slower."""
    rounds("base")
    for factor in (1.0, 5.0):
        for number in range(3):
            write(f"new/{number}.json", content([factor * (1 + number / 1000)], 1 + 10 * number))
        ran = command("gate", "base", "new")
        assert ran.returncode == INCOMPLETE
        assert "a single raw time in rounds 0, 1, 2 of new; each needs at least two" in ran.stdout
        assert "No verdict on time: a single raw time" in ran.stdout


def test_a_single_raw_time_is_no_noise() -> None:
    """More rounds would not help, so a gate that lets noise pass doesn't let this pass."""
    rounds("base")
    for number in range(3):
        write(f"new/{number}.json", content([1 + number / 1000], 1 + 10 * number))
    comparison = compare(read_sides(["base", "new"]))
    assert not any(change.is_open for change in comparison.changes)
    decision = decide(comparison)
    assert decision.status == INCOMPLETE and decision.lost and not decision.is_noise


def test_rounds_that_are_no_pairs_may_differ_in_number() -> None:
    """Among independent samples none is missing; among pairs one is."""
    rounds("base", count=6), rounds("later", first=1_000, count=5), rounds("turn", first=1, count=5)
    assert command("gate", "base", "later").returncode == PASSED
    ran = command("gate", "base", "turn")
    assert ran.returncode == INCOMPLETE and "has no round 5" in ran.stdout


def test_machines_of_other_names_are_listed() -> None:
    """Their times compare if all else is equal, as on a fleet of equal machines, but the page names them."""
    rounds("base"), rounds("new", first=1, node="other")
    ran = command("gate", "base", "new")
    assert ran.returncode == PASSED
    assert "- Measured on machines of different names: host (base), other (new)\n" in ran.stdout
    rounds("new", first=1, node=None)
    assert "Not known: name of the machine, versions of libraries" in command("gate", "base", "new").stdout
    rounds("new", first=1, python_implementation="PyPy")
    ran = command("gate", "base", "new")
    assert ran.returncode == NOT_COMPARABLE and "python implementation: CPython → PyPy" in ran.stdout


def test_times_without_a_zone_are_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they are read."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        file = write("a.json", content(STEADY, 0) | {"datetime": "2026-01-01T00:00:00"})
        assert pytest_benchmark.read(file).written == START
    finally:
        monkeypatch.undo()
        time.tzset()


def test_older_files_name_the_processor_elsewhere() -> None:
    """Before version 6, py-cpuinfo called it `brand`, and pytest-benchmark wrote UTC without saying so."""
    for side, first, brand in (("base", 0, "i7"), ("new", 1, "i7"), ("other", 2, "i9")):
        rounds(side, first=first, cpu={"vendor_id": "GenuineIntel", "hardware": "unknown", "brand": brand, "count": 4})
        for path in Path(side).iterdir():
            data = json.loads(path.read_text())
            write(path, data | {"datetime": data["datetime"].removesuffix("+00:00"), "version": "3.2.2"})
    assert command("gate", "base", "new").returncode == PASSED
    ran = command("gate", "base", "other")
    assert ran.returncode == NOT_COMPARABLE and "cpu: i7 → i9" in ran.stdout


def test_a_clock_that_is_too_coarse() -> None:
    """A raw time of 0 is read like any other. A median of 0 has no ratio: the gate is undecided and names its round."""
    rounds("base"), rounds("new", first=1, slow=lambda place: 0.0 if place == 0 else 1.0)
    ran = command("gate", "base", "new")
    assert (ran.returncode, ran.stderr) == (PASSED, "")
    rounds("new", first=1, slow=lambda place: 0.0 if place < 3 else 1.0)
    rounds("third", first=2)
    Path("new/1.json").write_text(Path("third/1.json").read_text())
    ran = command("gate", "base", "new")
    assert ran.returncode == INCOMPLETE and "time: not above 0 in 0, 2 of new: t::a" in ran.stdout


def test_a_storage_folder() -> None:
    """`.benchmarks` has a folder per machine. One of them is taken; of several, one must be named."""
    rounds("base"), rounds("new", first=1)
    storage = Path(".benchmarks/Linux-CPython-3.11-64bit")
    storage.parent.mkdir()
    Path("new").rename(storage)
    assert command("gate", "base", ".benchmarks").returncode == PASSED
    assert command("gate", "base", str(storage)).returncode == PASSED
    rounds(".benchmarks/Linux-CPython-3.10-64bit", first=2)
    ran = command("gate", "base", ".benchmarks")
    assert ran.returncode == 2 and ran.stderr == (
        "error: .benchmarks: has files of 2 machines or versions of Python; name one of "
        ".benchmarks/Linux-CPython-3.10-64bit, .benchmarks/Linux-CPython-3.11-64bit\n"
    )


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_layouts_of_files(indent: int | None, mark: str) -> None:
    """Compact or indented, with or without a byte order mark, with or without fields that nobody needs."""
    data = content(STEADY, 0) | {"version": "4.0.0", "unknown": {"field": [1]}}
    Path("a.json").write_text(mark + json.dumps(data, indent=indent), encoding="utf-8")
    assert pytest_benchmark.read(Path("a.json")).benchmarks[0].stats.data == STEADY


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Path("odd").mkdir(), "odd: is a folder without a run (manifest.json) and without files"),
        (lambda: Path("odd/x.json").mkdir(parents=True), "odd/x.json: can't be read: is a folder, not a regular file"),
        (lambda: (Path("odd").mkdir(), os.mkfifo("odd/x.json")), "odd/x.json: can't be read: is a pipe, not a regular"),
        (lambda: os.mkfifo("odd"), "odd: is neither a folder nor a regular file"),
        (lambda: Path("odd").symlink_to("/dev/zero"), "odd: is neither a folder nor a regular file"),
        (lambda: (Path("odd").mkdir(), Path("odd/x.json").symlink_to("/dev/zero")), "can't be read: is a device"),
        (lambda: Path("odd").symlink_to("nowhere"), "odd: no such run"),
        (lambda: write_run(Path("odd/r"), [record("timm:a", "frozen")]), "odd: no such run"),
        (lambda: Path("ode").mkdir(), "odd: no such run, folder or file; did you mean 'ode'?"),
        (lambda: write("odd/x.txt", {}), "odd: is a folder without a run"),
        (
            lambda: write("odd/x.json", {"cells": {}}),
            "odd/x.json: must be a run's folder or a file of pytest-benchmark",
        ),
    ],
)
def test_odd_places(make: Callable[[], object], words: str) -> None:
    """Each is one line, at once: nothing is read from a pipe or a device."""
    rounds("base")
    make()
    for sides in (("base", "odd"), ("odd", "base")):
        ran = command("gate", *sides)
        assert ran.returncode == 2 and words in ran.stderr and ran.stderr.count("\n") == 1, ran.stderr


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([True, 1.0], "stats.data.0: raw time True: Input should be a valid number"),
        (["1.0", 1.0], "stats.data.0: raw time '1.0': Input should be a valid number"),
        ([1.0, None], "stats.data.1: raw time None: Input should be a valid number"),
        ([1.0, -1.0], "stats.data.1: raw time -1.0: Input should be greater than or equal to 0"),
        ([math.nan], "stats.data.0: raw time nan: Input should be a finite number"),
        ([math.inf], "stats.data.0: raw time inf: Input should be"),
        ([1.0, 1e308], "stats.data.1: raw time 1e+308: Input should be less than or equal to 1000000000"),
        ([1e-320], "stats.data.0: raw time 1e-320: should be 0 or at least 1e-12: no clock measures less"),
        ([10**400], "stats.data.0: raw time 1000"),
        ([], "no raw data"),
    ],
)
def test_raw_times_that_no_clock_measures(data: list[Any], words: str) -> None:
    """Each is one line that names the file; a ratio of such times would have hundreds of digits."""
    rounds("base")
    rounds("new", first=1)
    write("new/1.json", content(data, 11))
    for ran in (command("gate", "base", "new"), command("compare", "new", "base")):
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1), ran.stderr
        assert "new/1.json: benchmarks.0.stats.data" in ran.stderr and words in ran.stderr


def test_what_is_no_measurement_but_short() -> None:
    """A time of a picosecond and one of 31 years are read, and whole seconds are as good as others."""
    for number, times in enumerate(([1e-12, 2e-12], [10**9, 1e9 - 1], [0, 1])):
        write(f"x/{number}.json", content(times, number))
        assert pytest_benchmark.read(Path(f"x/{number}.json")).benchmarks[0].stats.data == times


@pytest.mark.parametrize("counter", [2**63, -(10**400)])
def test_a_counter_without_bounds(counter: int) -> None:
    """It is named in one line, without its digits."""
    data = content(STEADY, 0)
    data["benchmarks"][0]["extra_info"] = {"steps": counter}
    write("x.json", data)
    digits = len(str(abs(counter)))
    with pytest.raises(UserError, match=rf"^x\.json: .*'steps' has {digits} digits: counters are below 2\*\*63$"):
        pytest_benchmark.read(Path("x.json"))


def test_names_without_bounds_are_cut_in_errors() -> None:
    """A message is no longer than a screen, and begins with what is wrong."""
    rounds("base")
    data = content([2.0, 2.1], 99)
    data["benchmarks"][0]["fullname"] = "x" * 100_000
    write("x.json", data)
    ran = command("compare", "base", "x.json")
    assert ran.returncode == 2 and "base: has no cell in common with x.json" in ran.stderr and len(ran.stderr) < 500
    data["benchmarks"] *= 2
    write("y.json", data)
    ran = command("compare", "base", "y.json")
    assert ran.returncode == 2 and ran.stderr.endswith("x twice\n") and "…" in ran.stderr
    assert len(ran.stderr) < 500
    ran = command("compare", "base", "x.json", "--metric", "y" * 9_000 + "z")
    assert ran.returncode == 2 and " … " in ran.stderr and len(ran.stderr) < 5_000, len(ran.stderr)


def test_a_folder_of_several_machines_does_not_compare() -> None:
    """Files of two processors in one folder are no side whose times compare."""
    rounds("base"), rounds("new", first=1)
    write("new/1.json", content(STEADY, 11, cpu={"brand_raw": "B", "count": 2}))
    ran = command("gate", "base", "new")
    assert ran.returncode == NOT_COMPARABLE and "cpu: A → A and B" in ran.stdout


def test_files_are_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger file is named, and isn't read."""
    file = tmp_path / "a.json"
    file.write_text("äb")
    assert read_text(file, 3) == "äb"
    with pytest.raises(UserError, match=r"a\.json: can't be read: has more than the 2 bytes that are read"):
        read_text(file, 2)
    with pytest.raises(UserError, match=r"nowhere: can't be read: No such file"):
        read_text(tmp_path / "nowhere", 2)
    with pytest.raises(UserError, match="is a folder, not a regular file"):
        read_text(tmp_path, 2)
    with pytest.raises(UserError, match="is a device, not a regular file"):
        read_text(Path("/dev/zero"), 2)
    sparse = tmp_path / "huge.json"
    with sparse.open("wb") as out:
        out.truncate(1 << 40)
    rounds("base")
    ran = command("gate", "base", str(sparse))
    assert ran.returncode == 2 and "has more than the 268,435,456 bytes that are read" in ran.stderr


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLACES = [
    ("machine_info",),
    ("machine_info", "cpu"),
    ("machine_info", "cpu", "brand_raw"),
    ("machine_info", "node"),
    ("machine_info", "python_implementation"),
    ("benchmarks",),
    ("benchmarks", 0),
    ("benchmarks", 0, "stats"),
    ("benchmarks", 0, "stats", "data"),
    ("benchmarks", 0, "stats", "data", 0),
    ("benchmarks", 0, "extra_info"),
    ("datetime",),
    ("commit_info",),
]


@given(st.sampled_from(PLACES), JSON)
@settings(max_examples=150, deadline=None)
def test_any_value_anywhere_is_read_or_refused_in_one_line(place: tuple[str | int, ...], value: Any) -> None:
    """A file with any JSON value in place of a right one never ends in a traceback."""
    data = copy.deepcopy(content(STEADY, 1))
    inside: Any = data
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    write("base.json", content(STEADY[::-1], 0)), write("new.json", data)
    try:
        comparison = compare(read_sides(["base.json", "new.json"]))
    except UserError as error:
        said = str(error)
        assert "\n" not in said and any(words in said for words in ("new.json", "has no cell in common"))
    else:
        assert decide(comparison).status != PASSED, "three rounds are the fewest"
        show(comparison, "json", title="t"), show(comparison, "md", title="t")
