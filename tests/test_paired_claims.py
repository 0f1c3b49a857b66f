"""Comparisons by process pairs: the estimator against an independent reference, verdicts, and what a report says."""

from __future__ import annotations

import json
import math
import re
import statistics
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench.analysis.claims import CLAIMS
from bench.analysis.groups import make_groups
from bench.analysis.paired import Comparisons, compare, epoch_seconds
from bench.analysis.prediction import counted_shares
from bench.analysis.stats import Estimate
from bench.analysis.verdicts import Finding, decide_claims, decide_together, show_ratio, show_share
from bench.report.answers import answers
from bench.report.summary import summarise
from bench.report.tables import paired_remarks
from bench.report.write import write_report
from bench.store.pairs import PairRecord
from bench.store.records import Cell, Record
from tests.commands import command
from tests.runs import TRUTH, pair_record, record, write_run
from tl.results import Work

SLOW, FAST = record("timm:a", "finetune", seconds=10.0), record("timm:a", "frozen", seconds=5.0)
CELLS = (SLOW.cell, FAST.cell)


def pairs(
    seconds: tuple[float, float], *, count: int = 5, noise: float = 0.02, cells: tuple[Cell, ...] = CELLS
) -> list[PairRecord]:
    return [pair_record(cells, seconds, number=number, noise=noise) for number in range(count)]


def reference(records: list[PairRecord]) -> tuple[float, float, float]:
    """Ratio and 95% interval, by scipy alone and from the raw turns."""
    logs = []
    for one in records:
        slow, fast = (
            np.array(side.turns.train_seconds) / np.array(side.turns.train_images) * one.train_images
            + np.array(side.turns.val_seconds) / np.array(side.turns.val_images) * one.val_images
            + side.start_seconds
            for side in one.sides
            if side.turns
        )
        logs.append(np.median(np.log(slow / fast)))
    low, high = stats.t.interval(0.95, len(logs) - 1, np.mean(logs), stats.sem(logs))
    return math.exp(np.mean(logs)), math.exp(low), math.exp(high)


def test_the_estimate_is_that_of_an_independent_reference() -> None:
    """Median over rounds, Student's t over pairs, on logarithms; workers' starts belong to an epoch."""
    records = [pair_record(CELLS, (9.0, 4.0), number=n, noise=0.05, start_seconds=0.5) for n in range(4)]
    found = compare(*reversed(CELLS), records)
    assert found and found.speed_up
    assert (found.speed_up.value, found.speed_up.low, found.speed_up.high) == pytest.approx(reference(records))
    assert found.share == pytest.approx(1 / found.speed_up.value)
    swapped = compare(*CELLS, records)
    assert swapped and swapped.speed_up and swapped.speed_up.value == pytest.approx(1 / found.speed_up.value)
    assert (found.pairs, found.rounds, found.lost, found.apart) == (4, (8, 8, 8, 8), (), "")


def test_an_epoch_is_weighted_by_the_images_of_the_data_set() -> None:
    """Turns have their own proportion of training to validation."""
    one = pair_record(CELLS, (10.0, 5.0), train_images=1000, val_images=3)
    assert epoch_seconds(one, one.sides[0]) == pytest.approx([10.0] * 8)
    assert epoch_seconds(one.replace(train_images=2000), one.sides[0]) == pytest.approx([18.0] * 8)


def test_one_wild_round_changes_nothing_and_one_wild_pair_widens() -> None:
    """The median is over rounds, so a disturbed turn is outvoted. A disturbed pair is not: none is left out."""
    records = pairs((10.0, 5.0))
    side = records[0].sides[0]
    assert side.turns
    wild = side.turns.replace(val_seconds=(50.0, *side.turns.val_seconds[1:]))
    disturbed = records[0].replace(sides=(side.replace(turns=wild), records[0].sides[1]))
    before, after = compare(*reversed(CELLS), records), compare(*reversed(CELLS), [disturbed, *records[1:]])
    assert before and after and before.speed_up and after.speed_up
    assert after.speed_up.value == pytest.approx(before.speed_up.value, rel=0.02)
    odd = [*records[:-1], pair_record(CELLS, (20.0, 5.0), number=4)]
    widened = compare(*reversed(CELLS), odd)
    assert widened and widened.speed_up and widened.pairs == 5
    assert (widened.speed_up.half_width or 0) > 5 * (before.speed_up.half_width or 1)


def test_the_interval_holds_the_truth_in_95_of_100() -> None:
    """Pairs scatter by more than their rounds, and the interval is over pairs."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        shifts = rng.normal(0, 0.03, 5)
        records = [pair_record(CELLS, (10.0 * math.exp(s), 5.0), number=n) for n, s in enumerate(shifts)]
        found = compare(*reversed(CELLS), records)
        assert found and found.speed_up and found.speed_up.low and found.speed_up.high
        held += found.speed_up.low <= 2.0 <= found.speed_up.high
    assert 0.92 <= held / 300 <= 0.995


def test_pairs_without_a_result_are_counted_and_those_one_after_the_other_are_not_mixed_in() -> None:
    """A pair that failed is named. Cells that were timed apart count only where nothing else does."""
    records = [*pairs((10.0, 5.0), count=3), pair_record(CELLS, (10.0, 5.0), number=3, status="oom")]
    records.append(pair_record(CELLS, (90.0, 5.0), number=4, apart="together they need 9 GiB"))
    found = compare(*reversed(CELLS), records)
    assert found and found.speed_up and found.speed_up.value == pytest.approx(2.0, rel=0.05)
    assert found.pairs == 3 and [(one.number, one.status) for one in found.lost] == [(3, "oom")]
    alone = compare(*reversed(CELLS), records[-1:])
    assert alone and alone.apart == "together they need 9 GiB" and alone.speed_up and alone.speed_up.low is None
    assert compare(record("timm:b", "frozen").cell, SLOW.cell, records) is None


def test_all_pairs_of_two_cells_count_whatever_rotation_they_are_of() -> None:
    """A rotation of three cells serves two comparisons."""
    tutorial = record("timm:a", "frozen-tutorial").cell
    three = [pair_record((*CELLS, tutorial), (10.0, 5.0, 4.0), number=n) for n in range(2)]
    found = compare(FAST.cell, SLOW.cell, [*pairs((10.0, 5.0), count=3), *three])
    other = compare(tutorial, SLOW.cell, three)
    assert found and found.pairs == 5 and other and other.pairs == 2
    assert other.speed_up and other.speed_up.value == pytest.approx(2.5)


def finding(
    claim: str, seconds: tuple[float, float], noise: float = 0.01, memory: tuple[int, int] = (200, 100), **config: str
) -> Finding:
    regime = "frozen-tutorial" if claim == "half-the-time" else "frozen"
    execution = {"execution": "plain"} if claim == "half-the-time" else config
    cells = tuple(record("timm:a", each, **execution) for each in ("finetune", regime))
    timed = [pair_record([one.cell for one in cells], seconds, number=n, noise=noise, memory=memory) for n in range(5)]
    groups = make_groups((("r", one) for one in cells), {"r": TRUTH})
    (found,) = decide_claims({"r": [CLAIMS[claim]]}, groups, {"r": timed})
    return found


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ((10.0, 5.0), "supported"),
        ((10.0, 4.2), "supported"),
        ((10.0, 5.8), "supported"),
        ((10.0, 3.5), "faster than claimed"),
        ((10.0, 7.0), "slower than claimed"),
        ((10.0, 4.02), "inconclusive"),
    ],
)
@pytest.mark.parametrize("claim", ["half-the-time", "half-the-time-fast"])
def test_one_seed_and_five_pairs_decide(claim: str, seconds: tuple[float, float], words: str) -> None:
    """It holds from 40 to 62.5% of the time. The cells were trained once, and their seeds say nothing here."""
    found = finding(claim, seconds, noise=0.02)
    assert (found.words, found.by) == (words, "pairs")


def test_the_tutorials_claim_is_of_the_tutorials_loop() -> None:
    """Its own regime in execution plain; the suite's own loop has a claim of its own, and neither is of the other."""
    tutorial, ours = CLAIMS["half-the-time"], CLAIMS["half-the-time-fast"]
    assert tutorial.is_about("frozen-tutorial", "plain") and not tutorial.is_about("frozen-tutorial", "fast")
    assert not tutorial.is_about("frozen", "plain")
    assert ours.is_about("frozen", "fast") and not ours.is_about("frozen", "plain")
    assert tutorial.region == "1.60× to 2.50×, 40% to 62.5% of fine-tuning's time"


@pytest.mark.parametrize(
    ("memory", "words"), [((200, 100), "supported"), ((1000, 1000), "inconclusive"), ((1000, 995), "inconclusive")]
)
def test_memory_is_judged_by_pairs_and_equal_is_not_less(memory: tuple[int, int], words: str) -> None:
    """A difference below 1% is none, however precisely it is measured."""
    found = finding("less-memory", (10.0, 5.0), memory=memory)
    assert (found.words, found.by) == (words, "pairs")


def test_accuracy_is_judged_by_seeds_whatever_was_timed() -> None:
    """Pairs say nothing of it."""
    assert (finding("no-worse", (10.0, 5.0)).by, finding("no-worse", (10.0, 5.0)).words) == ("seeds", "too few samples")


def written(folder: Path, seconds: tuple[float, float], *more: PairRecord, seeds: int = 1, count: int = 5) -> Path:
    found: list[Record] = []
    for seed in range(seeds):
        found += [record("timm:a", "finetune", seconds=10.0, seed=seed), record("timm:a", "frozen", seed=seed)]
    return write_run(folder, found, pairs=[*pairs(seconds, count=count), *more]).folder


@pytest.mark.parametrize(
    ("seconds", "start"),
    [
        ((10.0, 4.9), "Yes: with a on this CPU the frozen epoch takes 49% ("),
        ((10.0, 2.0), "No, it takes less than that: with a on this CPU the frozen epoch takes 19.9% ("),
        ((10.0, 9.0), "No, it takes more than that: with a on this CPU the frozen epoch takes 90% ("),
        ((10.0, 4.0), "On the edge: with a on this CPU the frozen epoch takes 39.9% ("),
    ],
)
def test_the_answer_can_be_read_out(seconds: tuple[float, float], start: str, tmp_path: Path) -> None:
    """It has the share of time and its interval."""
    folder = written(tmp_path / "r", seconds)
    from bench.store.runs import RunFolder

    said = " ".join(answers(summarise([RunFolder(folder)], "r")))
    assert start in said and "% of the time" not in said.replace("%) of the time", "")


def test_backbones_with_the_same_answer_share_a_sentence(tmp_path: Path) -> None:
    found, timed = [], []
    for name, seconds in (("a", 4.9), ("b", 2.0), ("c", 5.1)):
        slow, fast = (record(f"timm:{name}", regime, seconds=10.0) for regime in ("finetune", "frozen"))
        found += [slow, fast]
        timed += pairs((10.0, seconds), cells=(slow.cell, fast.cell), noise=0.002)
    said = next(
        text
        for text in answers(summarise([write_run(tmp_path / "r", found, pairs=timed)], "r"))
        if "suite's loop" in text
    )
    assert re.sub(r"\d[\d.–]*%", "#", said).endswith(
        "? Yes: with a on this CPU the frozen epoch takes # (#) of the time; with c # (#). "
        "No, it takes less than that: with b on this CPU the frozen epoch takes # (#) of the time."
    ), said


def test_a_report_shows_pairs_their_scatter_and_what_failed(tmp_path: Path) -> None:
    """In Markdown, on the page, on the terminal, in JSON and in exports."""
    lost = pair_record(CELLS, (10.0, 5.0), number=7, status="timeout")
    folder = written(tmp_path / "results" / "r", (10.0, 5.0), lost)
    done = command("report", str(folder), "--no-images", "--reports", str(tmp_path / "reports"))
    assert done.returncode == 0, done.stderr
    markdown, page = ((tmp_path / "reports" / f"r.{kind}").read_text() for kind in ("md", "html"))
    for text in (markdown, page):
        assert "Speed, measured in pairs" in text and "5, 1 more without a result" in text and "in turns" in text
        assert "timeout" in text and "5 pairs)" in text
    shown = command("show", str(folder)).stdout
    assert "Yes: with a on this CPU" in shown and "timeout: timm:a finetune and frozen cpu, pair 8" in " ".join(
        shown.split()
    )
    assert "5 pairs); 50% (" in command("claims", str(folder)).stdout, "the claim is shown as a share, too"
    row = next(r for r in json.loads(command("claims", str(folder), "--format", "json").stdout) if r["measured"])
    assert (row["by"], row["pairs"], row["seeds"]) == ("pairs", 5, None) and row["share"] == pytest.approx(
        0.5, rel=0.02
    )


def test_a_run_without_pairs_is_judged_by_its_seeds(tmp_path: Path) -> None:
    """As before there were any: three seeds, and the finding says so."""
    records = [
        record("timm:a", r, seconds=s, seed=n) for n in range(3) for r, s in (("finetune", 10.0), ("frozen", 5.0))
    ]
    (found,) = summarise([write_run(tmp_path / "r", records)], "r").speed_ups
    assert (found.finding.by, found.finding.words) == ("seeds", "supported") and "n = 3" in found.finding.shown


def test_pairs_that_resemble_their_neighbours_widen_the_interval() -> None:
    """A machine that drifts for minutes makes neighbouring pairs alike."""
    rising = [pair_record(CELLS, (10.0 * 1.02**n, 5.0), number=n) for n in range(8)]
    shuffled = [replace_start(one, place) for place, one in zip((0, 7, 2, 5, 4, 3, 6, 1), rising, strict=True)]
    ordered, mixed = compare(*reversed(CELLS), rising), compare(*reversed(CELLS), shuffled)
    assert ordered and mixed and ordered.speed_up and mixed.speed_up
    assert ordered.speed_up.value == pytest.approx(mixed.speed_up.value)
    assert (ordered.speed_up.half_width or 0) > 1.5 * (mixed.speed_up.half_width or 1)
    assert ordered.scatter == pytest.approx(statistics.stdev(math.log(1.02) * n for n in range(8)))


def replace_start(one: PairRecord, place: int) -> PairRecord:
    return one.replace(started=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=place))


def test_an_index_finds_the_same_comparisons() -> None:
    """With several backbones and rotations, each comparison is that of its own pairs alone."""
    tutorial, other = (
        record("timm:a", "frozen-tutorial").cell,
        [record("timm:b", r).cell for r in ("finetune", "frozen")],
    )
    records = [
        *pairs((10.0, 5.0), count=3),
        *(pair_record((*CELLS, tutorial), (10.0, 5.0, 4.0), number=n, noise=0.02) for n in range(3)),
        *(pair_record(other, (6.0, 5.0), number=n, noise=0.02) for n in range(3)),
    ]
    index = Comparisons(records)
    for cell, against in ((FAST.cell, SLOW.cell), (tutorial, SLOW.cell), (other[1], other[0]), (FAST.cell, other[0])):
        assert index.of(cell, against) == compare(cell, against, records)
    assert index.of(FAST.cell.but(seed=3), SLOW.cell) is index.of(FAST.cell, SLOW.cell), "computed once"
    assert index.of(FAST.cell, other[0]) is None
    assert (index.base(tutorial), index.base(SLOW.cell), index.base(record("timm:c", "frozen").cell)) == (
        SLOW.cell,
        SLOW.cell,
        None,
    )


def test_drift_is_reported_within_pairs_and_from_pair_to_pair() -> None:
    """Each alone: pairs that grow by 2% while their rounds stay, and rounds that grow while the pairs stay."""
    between = compare(*reversed(CELLS), [pair_record(CELLS, (10.0 * 1.02**n, 5.0), number=n) for n in range(5)])
    assert between and between.trend == pytest.approx(0.02) and between.drift == pytest.approx(0.0, abs=1e-9)

    def slower(one: PairRecord) -> PairRecord:
        side = one.sides[0]
        assert side.turns
        grown = {
            name: tuple(each * 1.01**place for place, each in enumerate(getattr(side.turns, name)))
            for name in ("train_seconds", "val_seconds")
        }
        return one.replace(sides=(side.replace(turns=side.turns.replace(**grown)), one.sides[1]))

    inside = compare(*reversed(CELLS), [slower(one) for one in pairs((10.0, 5.0), noise=0.0)])
    assert inside and inside.drift == pytest.approx(1.01**7 - 1) and inside.trend == pytest.approx(0.0, abs=1e-9)
    two = compare(*reversed(CELLS), pairs((10.0, 5.0), count=2))
    assert two and two.trend is None


def test_memory_that_was_measured_in_two_ways_is_not_compared() -> None:
    """The times of such pairs count all the same."""
    records = [
        one.replace(sides=(one.sides[0].replace(memory_method="torch"), one.sides[1])) for one in pairs((10.0, 5.0))
    ]
    found = compare(*reversed(CELLS), records)
    assert found and found.memory is None and found.speed_up and found.speed_up.n == 5


@pytest.mark.parametrize(("train_images", "third"), [(244, False), (2440, True)])
def test_a_data_set_with_little_to_validate_tends_to_a_third(train_images: int, third: bool) -> None:
    """The predicted shares have the proportion of this data set's images, and say when it hardly matters."""
    step = {"step_images": 4, "forward_flops": 400, "saved_activation_bytes": 1, "parameter_bytes": 1}
    step |= {"gradient_bytes": 1, "optimizer_state_bytes": 1}
    records = []
    for one, backward in ((SLOW, 800), (FAST, 0)):
        assert one.result
        counted = one.result.replace(work=Work(**step, backward_flops=backward))
        records.append(("r", one.replace(result=counted, train_images=train_images)))
    said = counted_shares(*make_groups(records, {"r": TRUTH}))
    share = (train_images + 100) / (3 * train_images + 100)
    assert said and said.startswith(f"Counted work alone predicts {share:.0%} of the time, or 33% without validation (")
    assert f"(100 validation images for {train_images} in training)." in said and ("tends to a third" in said) is third


def test_comparisons_that_were_timed_one_after_the_other_are_marked(tmp_path: Path) -> None:
    """In the answer, and with the sizes in the section on pairs; so are pairs that failed, with their reason."""
    apart = "together they need 9.1 GiB, and 8.0 GiB are free"
    records = [record("timm:a", "finetune", seconds=10.0), record("timm:a", "frozen")]
    timed = [pair_record(CELLS, (10.0, 5.0), number=n, noise=0.02, apart=apart) for n in range(5)]
    timed.append(pair_record(CELLS, (10.0, 5.0), number=5, status="oom"))
    summary = summarise([write_run(tmp_path / "r", records, pairs=timed)], "r")
    assert "of the time, timed one after the other." in " ".join(answers(summary))
    after, lost = paired_remarks(summary)
    assert apart in after and "one after the other" in after and lost.endswith("pair 6: oom: took | too <b>long</b>")
    write_report(summary, tmp_path / "reports")
    markdown, page = ((tmp_path / "reports" / f"r.{kind}").read_text() for kind in ("md", "html"))
    assert f"{apart}." in markdown and f"{apart}." in page and "<b>long</b>" not in page.split("<script")[0]
    section = markdown.split("## Speed, measured in pairs")[1].split("\n## ")[0]
    assert "frozen against finetune" in section and "5, 1 more without a result" in section and "50%" in section


def test_answers_by_seeds_say_so(tmp_path: Path) -> None:
    """So that nobody takes them for answers by pairs; and answers by pairs don't."""

    def seeds(backbone: str) -> list[Record]:
        times = (("finetune", 10.0), ("frozen", 5.0))
        return [record(backbone, regime, seconds=s, seed=seed) for seed in range(3) for regime, s in times]

    def said(name: str, records: list[Record], timed: list[PairRecord]) -> str:
        return " ".join(answers(summarise([write_run(tmp_path / name, records, pairs=timed)], name)))

    alone = "of the time. By 3 seeds, timed minutes apart, since no process pairs were timed."
    assert alone in said("r", seeds("timm:a"), [])
    assert " By 3 seeds, timed minutes apart: timm:b." in said(
        "s", seeds("timm:a") + seeds("timm:b"), pairs((10.0, 5.0))
    )
    assert "timed minutes apart" not in said("t", seeds("timm:a"), pairs((10.0, 5.0)))


def ratio_of(value: float, half_width: float) -> Estimate:
    """A ratio whose 95% interval reaches this far, relatively, to both sides."""
    error = math.log1p(half_width) / float(stats.t.ppf(0.975, 7))
    return Estimate(compared="ratio", centre=math.log(value), error=error, freedom=7, n=8)


def test_no_end_of_an_interval_is_shown_as_a_bound_of_the_claim() -> None:
    """Whoever reads it must see on which side it lies: 40% to 62.5% of the time, 1.6 to 2.5 times as fast."""
    claim = CLAIMS["half-the-time-fast"]
    near = ratio_of(2.45, 0.02)
    assert near.high is not None and near.high < 2.5
    assert show_share(near) == "41% (40–42%)" and show_share(near, claim) == "40.82% (40.02–41.63%)"
    assert show_ratio(near, "pairs", claim) == "2.450× (2.402–2.499, 8 pairs)"
    assert show_share(ratio_of(2.0, 0.05), claim) == "50% (48–52%)"
    assert show_share(ratio_of(2.0, 0.001), claim) == "50.00% (49.95–50.05%)"


def test_a_share_on_the_edge_of_the_claim_is_said_to_be_there(tmp_path: Path) -> None:
    """It is known well, so more pairs would hardly help: the answer says where the claim's range begins."""
    ratios = (12.5, 12.4, 12.6, 12.45, 12.55)
    timed = [pair_record(CELLS, (ratio, 5.0), number=n) for n, ratio in enumerate(ratios)]
    summary = summarise([write_run(tmp_path / "r", [SLOW, FAST], pairs=timed)], "r")
    said = next(text for text in answers(summary) if "suite's loop" in text)
    assert "On the edge: with a on this CPU the frozen epoch takes 40." in said, said
    assert "of the time, and “about half” begins at 40%." in said
    (finding,) = [one for one in summary.findings if one.claim.name == "half-the-time-fast"]
    assert finding.verdict == "inconclusive" and finding.edge == 2.5


def test_an_answer_that_is_undecided_only_beside_others_says_so() -> None:
    """Its interval lies inside the claim's region, but all verdicts of a report hold together."""
    near = [pair_record(CELLS, (10.0 * ratio, 5.0), number=n) for n, ratio in enumerate((1.0, 1.04, 0.96, 1.05, 0.99))]
    found = compare(*reversed(CELLS), near)
    assert found and found.speed_up
    claim = CLAIMS["half-the-time-fast"].model_copy(update={"high": 2.12})
    (alone,) = decide_together([(claim, found.speed_up)])
    many = decide_together([(claim, found.speed_up)] * 20)
    assert alone[0] == "supported" and {verdict for verdict, _ in many} == {"inconclusive"}
    assert alone[1] is not None and many[0][1] == pytest.approx(20 * alone[1])
