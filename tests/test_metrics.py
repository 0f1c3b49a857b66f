"""Tests scores against independent implementations, unknown values, and that a new metric needs only one entry."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

import bench
from bench.analysis.claims import Claim
from bench.analysis.groups import make_groups
from bench.analysis.metrics import METRICS, RATED_BY, Finished, Metric, costs, finished, headline, share
from bench.analysis.scores import BINS, balanced_accuracy, calibration_error, macro_f1
from bench.analysis.verdicts import decide_claims
from bench.compare.answer import change_text
from bench.compare.changes import compare
from bench.compare.gate import PASSED, REGRESSED, decide, read_rules
from bench.compare.render import show
from bench.compare.rules import Rule
from bench.compare.sides import compared_by_default, read_sides
from bench.export.trackers import export_to
from bench.report.data import page_data
from bench.report.figures import draw
from bench.report.heatmap import make_heatmap
from bench.report.summary import summarise
from bench.report.tables import columns, priorities_table
from bench.report.write import write_report
from bench.store.records import Record
from bench.store.runs import RunFolder
from bench.sweep.progress import _end_text
from tests.runs import RANDOM, TRUTH, record, untrained, write_run
from tl.errors import ConfigError, UserError

ROOT = Path(__file__).parent.parent
SCORES = ("macro_f1_last", "balanced_accuracy_last", "calibration_error_last")

LABELS = [0, 1, 1, 1, 0, 0, 2, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 1, 1, 2, 0, 0, 1, 0, 0, 0, 0, 2]
SAID = [3, 1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 3, 1, 0, 3, 0, 0, 1]
CONFIDENCES = [
    *(0.48, 0.86, 0.77, 0.79, 0.74, 0.98, 0.53, 0.58, 0.44, 0.34, 0.45, 0.94, 0.89, 0.38, 0.72),
    *(0.64, 0.72, 0.76, 0.51, 0.97, 0.63, 0.74, 0.74, 0.43, 0.34, 0.59, 0.83, 0.87, 0.81, 0.39),
]
"""Three classes with images, one of them never predicted, and one class that is predicted but has no images."""


def test_scores_are_those_of_the_libraries() -> None:
    """They equal scikit-learn 1.9.1 (`f1_score`, macro; `balanced_accuracy_score`) and torchmetrics 1.9.0 (15 bins)."""
    assert macro_f1(SAID, LABELS) == pytest.approx(0.349071207430)
    assert balanced_accuracy(SAID, LABELS) == pytest.approx(0.477124183007)
    assert calibration_error(SAID, CONFIDENCES, LABELS) == pytest.approx(0.2520000, abs=1e-6)


PREDICTIONS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0, 1)), min_size=1, max_size=60)


@given(predictions=PREDICTIONS)
def test_scores_follow_their_definitions(predictions: list[tuple[int, int, float]]) -> None:
    """They equal scores computed class by class and bin by bin from precision, recall, accuracy and mean confidence."""
    said, truth, confidences = (list(column) for column in zip(*predictions, strict=True))
    f1s, recalls = [], []
    for label in {*said, *truth}:
        hits = sum(a == b == label for a, b in zip(said, truth, strict=True))
        precision = hits / said.count(label) if label in said else 0.0
        recall = hits / truth.count(label) if label in truth else 0.0
        f1s.append(2 * precision * recall / (precision + recall) if hits else 0.0)
        recalls += [recall] if label in truth else []
    assert macro_f1(said, truth) == pytest.approx(statistics.fmean(f1s))
    assert balanced_accuracy(said, truth) == pytest.approx(statistics.fmean(recalls))
    error = 0.0
    for place in range(BINS):
        low, high = place / BINS, (place + 1) / BINS
        inside = [i for i, c in enumerate(confidences) if low < c <= high or (c == 0 and place == 0)]
        if inside:
            right = sum(said[i] == truth[i] for i in inside) / len(inside)
            error += len(inside) / len(said) * abs(right - sum(confidences[i] for i in inside) / len(inside))
    assert calibration_error(said, confidences, truth) == pytest.approx(error, abs=1e-12)


def test_conventions_of_scores() -> None:
    """A class that is never right has F1 0. A class without images has no recall. Bins contain their upper edge."""
    assert macro_f1([0, 0], [0, 1]) == pytest.approx((2 / 3 + 0) / 2), "never predicted"
    assert macro_f1([0, 7], [0, 0]) == pytest.approx((2 / 3 + 0) / 2), "predicted, but without images"
    assert balanced_accuracy([0, 7], [0, 0]) == 0.5 and balanced_accuracy([0, 0], [0, 1]) == 0.5
    assert calibration_error([0, 0], [1.0, 1.0], [0, 0]) == 0 and calibration_error([1], [1.0], [0]) == 1
    # At the edge of a bin both are in the lower bin and cancel out. Slightly above it, each bin has its own gap.
    assert calibration_error([0, 1], [2 / BINS, 2 / BINS - 0.01], [0, 0]) == pytest.approx(abs(4 / BINS - 1.01) / 2)
    above = 2 / BINS + 1e-9
    apart = calibration_error([0, 1], [above, 2 / BINS - 0.01], [0, 0])
    assert apart == pytest.approx((1 - above + 2 / BINS - 0.01) / 2)
    with pytest.raises(ValueError, match="zip"):
        macro_f1([0], [0, 1])


def test_scores_are_of_the_last_epochs_predictions() -> None:
    """They don't use the best predictions, which were chosen on the same images."""
    one = record("timm:a", "frozen", right=90)
    assert one.result is not None
    all_right = one.result.best.replace(labels=list(TRUTH))
    cell = Finished(record=one, result=one.result.replace(best=all_right), truth=TRUTH)
    read = {name: METRICS[name].of(cell) for name in SCORES}
    assert read["balanced_accuracy_last"] == pytest.approx((1 + 0.8) / 2)
    assert read["macro_f1_last"] == pytest.approx((2 * 50 / 110 + 2 * 40 / 90) / 2)
    assert read["calibration_error_last"] == pytest.approx(0, abs=1e-12), "90 of 100 are right, with confidence 0.9"
    last = one.result.last.replace(confidences=[0.5] * 100)
    sure = replace(cell, result=one.result.replace(last=last))
    assert METRICS["calibration_error_last"].of(sure) == pytest.approx(0.4)


@pytest.mark.parametrize("name", SCORES)
def test_an_unknown_score_is_none(name: str) -> None:
    """Scores are None without true labels and with random weights."""
    one, random = record("timm:a", "frozen"), record("timm:a", "frozen", weights=RANDOM)
    known, alone, chance = finished(one, TRUTH), finished(one), finished(random, TRUTH)
    assert known and alone and chance and METRICS[name].of(known) is not None
    assert METRICS[name].of(alone) is METRICS[name].of(chance) is None
    assert finished(record("timm:a", "frozen", status="failed"), TRUTH) is None


def test_a_record_that_does_not_fit_its_run_is_one_line(tmp_path: Path) -> None:
    """A record with predictions for fewer images gives a one-line error wherever it is read."""
    one = record("timm:a", "frozen")
    assert one.result is not None
    few = one.result.replace(last=one.result.last.replace(labels=[0] * 7, confidences=[0.5] * 7))
    run = write_run(tmp_path / "r", [one.replace(result=few)])
    for read in (lambda: bench.load_results(run.folder), lambda: page_data(summarise([run], "r"))):
        words = r"damaged: result\.last has 7 predictions, and the run has 100 images to validate"
        with pytest.raises(UserError, match=words) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_metric_from_outside_that_is_wrong_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One reads what a record doesn't have, the other has the name of a column that is there already."""
    run = write_run(tmp_path / "r", [record("timm:a", "frozen")])
    odd: dict[str, Any] = {"label": "odd", "unit": "count", "meaning": "nothing"}
    for name, value, words in (
        ("odd", lambda cell: cell.result.nothing, "the metric 'odd' can't read it: AttributeError: "),
        ("device", lambda cell: 1, "metric 'device': another column of the table has this name; rename the metric"),
    ):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=words):
            patch.setitem(METRICS, name, Metric(value=value, **odd))
            bench.load_results(run.folder)


def seeds(regime: str, rights: tuple[int, ...], **fields: Any) -> list[Record]:
    return [record("timm:a", regime, seed=seed, right=right, **fields) for seed, right in enumerate(rights)]


def test_scores_are_compared_over_seeds(tmp_path: Path) -> None:
    """Differences equal scipy's paired t-test. A larger calibration error is worse. Three seeds are needed."""
    old, new = (90, 92, 91, 90), (85, 86, 87, 84)
    for name, rights in (("old", old), ("new", new), ("short", new[:2])):
        write_run(tmp_path / name, seeds("frozen", rights))
    names = [str(tmp_path / name) for name in ("old", "new")]
    found = {c.quantity.name: c for c in compare(read_sides(names), metrics=SCORES).changes}
    assert set(found) == set(SCORES) and {c.quantity.compared for c in found.values()} == {"difference"}
    assert not set(SCORES) & {c.quantity.name for c in compare(read_sides(names)).changes}
    for name, change in found.items():
        test = ttest_rel(list(change.new.values()), list(change.base.values()))
        low, high = test.confidence_interval(0.95)
        estimate = change.estimate
        assert estimate is not None and not change.alike
        assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high)), name
        assert estimate.p == pytest.approx(test.pvalue) and change.verdict == "worse"
        assert change_text(change).startswith(f"{100 * estimate.value:+.1f} points (")
    assert found["calibration_error_last"].estimate.value > 0 > found["macro_f1_last"].estimate.value  # type: ignore[union-attr]
    few = compare(read_sides([names[0], str(tmp_path / "short")]), metrics=["macro_f1_last"])
    assert [change.verdict for change in few.changes] == ["too few samples"]
    rules = [Rule(metric="macro_f1_last", points=10)]
    assert decide(compare(read_sides(names), metrics=["macro_f1_last"], rules=rules)).status == PASSED


def test_a_claim_can_be_about_a_score(tmp_path: Path) -> None:
    """It uses the difference over seeds. Only a report with such a claim says what its interval leaves out."""
    claim = Claim(name="fair", statement="It is as fair", metric="macro_f1_last", regime="frozen", low=-0.02)
    records = [*seeds("finetune", (90, 91, 90)), *seeds("frozen", (95, 96, 97))]
    groups = make_groups([("r", one) for one in records], {"r": TRUTH})
    (finding,) = decide_claims({"r": [claim]}, groups)
    ours, theirs = (group.values("macro_f1_last") for group in (finding.group, finding.against))
    assert finding.estimate is not None and finding.verdict == "supported"
    assert finding.estimate.value == pytest.approx(statistics.fmean(ours[s] - theirs[s] for s in range(3)))
    run = write_run(tmp_path / "r", records)
    words = "Shares other than accuracies are subtracted too"
    assert all(words not in path.read_text() for path in write_report(summarise([run], "r"), tmp_path / "reports"))
    manifest = run.manifest()
    grid = {"claims": [claim.model_dump()]}
    run.write_manifest(manifest.replace(invocations=(manifest.invocations[0].replace(grid=grid),)))
    assert all(words in path.read_text() for path in write_report(summarise([run], "r"), tmp_path / "reports"))


def test_scores_are_in_exports_pages_and_trackers(tmp_path: Path) -> None:
    """Exports compute them with the true labels of the run. The report's table has no column for them."""
    run = write_run(tmp_path / "r", seeds("frozen", (90, 94)))
    table = bench.load_results(run.folder)
    expected = [balanced_accuracy(one.result.last.labels, TRUTH) for one in run.records().values() if one.result]
    assert table["balanced_accuracy_last"].tolist() == pytest.approx(expected)
    summary = summarise([run], "r")
    data = page_data(summary)
    (group,) = data["groups"]
    value, low, high = group["figures"]["balanced_accuracy_last"]
    middle, deviation = statistics.fmean(expected), statistics.stdev(expected)
    assert (value, low, high) == pytest.approx((100 * middle, 100 * (middle - deviation), 100 * (middle + deviation)))
    assert {m["unit"] for m in data["metrics"] if m["key"] in SCORES} == {"%"}
    assert not set(SCORES) & {column.metric for column in columns(summary)}
    pytest.importorskip("tensorboardX")
    export_to("tensorboard", [run], tmp_path / "events")
    logged = b"".join(path.read_bytes() for path in (tmp_path / "events").rglob("events*"))
    assert all(f"cell/{name}".encode() in logged for name in SCORES)


def test_one_seed_of_a_score_has_no_interval(tmp_path: Path) -> None:
    """Wilson's interval is only for accuracies."""
    data = page_data(summarise([write_run(tmp_path / "r", seeds("frozen", (90,)))], "r"))
    figures = data["groups"][0]["figures"]
    assert len(set(figures["macro_f1_last"])) == 1 and len(set(figures["val_accuracy_last"])) == 3


def energy(**more: Any) -> Metric:
    """A metric as a user would add it: half a watt-hour per second of an epoch."""
    fields: dict[str, Any] = {"label": "energy", "unit": "Wh", "meaning": "of an epoch", "better": "lower"}
    return Metric(value=lambda cell: (cell.result.epoch_seconds or 0.0) / 2, **(fields | more))


@pytest.fixture
def sides(tmp_path: Path) -> list[str]:
    """Two runs; the second takes twice as long."""
    for name, factor in (("old", 1), ("new", 2)):
        records = [record("timm:a", "frozen", seed=s, seconds=factor * (10 + s / 10)) for s in range(4)]
        write_run(tmp_path / name, records)
    return [str(tmp_path / name) for name in ("old", "new")]


def test_a_metric_from_outside_is_one_entry(sides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports, pages, comparisons and gates use it."""
    monkeypatch.setitem(METRICS, "watt_hours", energy())
    table = bench.load_results(sides)
    assert table.columns[-1] == "watt_hours" and str(table["watt_hours"].dtype) == "Float64"
    assert table["watt_hours"].tolist() == pytest.approx((table["epoch_seconds"] / 2).tolist())
    data = page_data(summarise([RunFolder(Path(sides[0]))], "old"))
    (menu,) = [metric for metric in data["metrics"] if metric["key"] == "watt_hours"]
    assert menu == {"key": "watt_hours", "label": "energy", "unit": "Wh", "better": "lower", "meaning": "of an epoch"}
    assert data["groups"][0]["figures"]["watt_hours"] == pytest.approx([5.085, 5.01, 5.16], abs=0.02)
    assert "watt_hours" not in {change.quantity.name for change in compare(read_sides(sides)).changes}
    (change,) = compare(read_sides(sides), metrics=["watt_hours"]).changes
    assert change.verdict == "worse" and change.estimate is not None and change.estimate.value == pytest.approx(2, 0.01)
    page = show(compare(read_sides(sides), metrics=["watt_hours"]), "md", title="t")
    assert re.search(r"\| energy +\| 5\.08 Wh \(n = 4\) +\| 10\.2 Wh \(n = 4\)", page)


def test_gate_rules_can_be_about_a_metric_from_outside(sides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule may set a factor and a limit. A rule for a missing entry, or of the wrong kind, is refused."""
    rules = read_rules(None, ["watt_hours: factor=3, max=8"], folder=Path(sides[0]))
    with pytest.raises(ConfigError, match="watt_hours"):
        compare(read_sides(sides), rules=rules)
    monkeypatch.setitem(METRICS, "watt_hours", energy())
    decision = decide(compare(read_sides(sides), metrics=["watt_hours"], rules=rules))
    assert decision.status == REGRESSED and "energy: 10.2 Wh is above max 8 Wh" in decision.reasons[0]
    wide = read_rules(None, ["watt_hours: factor=3, max=20"], folder=Path(sides[0]))
    assert decide(compare(read_sides(sides), metrics=["watt_hours"], rules=wide)).status == PASSED
    with pytest.raises(ConfigError, match="watt_hours can't have points"):
        compare(read_sides(sides), rules=[Rule(metric="watt_hours", points=1)])


def test_how_a_metric_is_compared_is_its_own(sides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact metrics are always compared, `by_default` ones if none are named, those without `better` never."""
    monkeypatch.setitem(METRICS, "counted", energy(compared="exact"))
    monkeypatch.setitem(METRICS, "usual", energy(by_default=True))
    monkeypatch.setitem(METRICS, "neither", energy(better=None))
    monkeypatch.setitem(METRICS, "part", share("part", lambda cell: 0.25, "a part", better="higher"))
    found = {change.quantity.name: change for change in compare(read_sides(sides)).changes}
    assert {"counted", "usual"} <= found.keys() and not {"neither", "part"} & found.keys()
    assert found["counted"].verdict == "worse" and found["counted"].estimate is None
    (part,) = compare(read_sides(sides), metrics=["part"]).changes
    assert part.quantity.compared == "difference" and part.quantity.show(0.25) == "25.0%" and part.verdict == "same"
    with pytest.raises(UserError, match="neither"):
        compare(read_sides(sides), metrics=["neither"])
    with pytest.raises(ConfigError, match="energy: compared='difference' is only for shares shown in percent"):
        energy(compared="difference")


def test_a_headline_metric_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heat map, its figure, the table, the priorities, the notes and the line of progress show it."""
    monkeypatch.setitem(METRICS, "watt_hours", energy(matters="energy", phrase="{} per epoch", column=True))
    assert headline() == ["val_accuracy_last", "epoch_seconds", "peak_memory_bytes", "watt_hours"]
    trained = {"finetune": 10, "frozen": 4, "frozen-tutorial": 7}
    records = [record("timm:a", regime, seconds=seconds) for regime, seconds in trained.items()]
    summary = summarise([write_run(tmp_path / "r", records)], "r")
    heatmap = make_heatmap(summary)
    ((_, squares),) = heatmap.rows
    assert heatmap.metrics[-1] == "watt_hours"
    worst, best, between = (square.shades["watt_hours"].share for square in squares if square)
    assert (worst, best) == (0, 1) and between is not None and 0 < between < 1
    assert [square.shades["watt_hours"].text for square in squares if square] == ["5.01", "2.01", "3.51"]
    assert priorities_table(summary)["what matters most"].tolist() == ["accuracy", "time", "memory", "energy"]
    assert "energy, Wh" in {column.heading for column in columns(summary)}
    figure = draw(summary)["matrix"]
    assert "energy, Wh" in figure.svg and "median time, median memory and median energy by backbone" in figure.caption
    page = write_report(summary, tmp_path / "reports")[1].read_text()
    assert 'name="matrix-metric" value="watt_hours"' in page and "For time, memory and energy: the" in page
    assert (
        _end_text(records[0])
        == "done in 41 s: accuracy 95.0% after the last epoch, 10 s per epoch, 10 MiB of memory, 5.01 Wh per epoch"
    )


def test_the_line_of_a_finished_cell_has_the_headline_metrics() -> None:
    """Unknown values are left out if nothing is trained, but an unknown accuracy is shown."""
    assert (
        _end_text(record("timm:a", "frozen"))
        == "done in 41 s: accuracy 95.0% after the last epoch, 10 s per epoch, 10 MiB of memory"
    )
    assert _end_text(record("timm:a", "frozen", weights=RANDOM)).startswith(
        "done in 41 s: accuracy n/a after the last epoch, 10 s"
    )
    assert _end_text(untrained("timm:a")) == "done in 4 s: accuracy 95.0%, 10 MiB of memory"
    assert _end_text(untrained("timm:a", weights=RANDOM)) == "done in 4 s: accuracy n/a, 10 MiB of memory"


def test_the_lists_follow_the_entries() -> None:
    """The accuracy that combinations are ranked by is the first headline metric and not a cost."""
    assert headline() == [RATED_BY, *costs()] and costs() == ["epoch_seconds", "peak_memory_bytes"]
    assert compared_by_default() == ["epoch_seconds", "peak_memory_bytes", "val_accuracy_last"]
    for name, metric in METRICS.items():
        assert metric.predictions is None or metric.compared == "difference", name


def test_only_metrics_decide_by_units() -> None:
    """No other module checks units or lists the headline metrics."""
    for path in (ROOT / "bench").rglob("*.py"):
        if path.name != "metrics.py":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\bunit\b *(==|!=|in\b|not in\b)", text), path
            assert not re.search(r'"epoch_seconds",\s*"peak_memory_bytes"', text), path
