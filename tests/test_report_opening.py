"""Tests what a page begins with: the strip, the sentence, the line on half the time, the cards; and the scorecard."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.claims import CLAIMS
from bench.analysis.deciding import more_images, more_samples
from bench.analysis.verdicts import DECIDED, Finding
from bench.analysis.words import counted
from bench.report.cards import _price, decks
from bench.report.headline import half_the_time, sentences
from bench.report.scorecard import scorecard
from bench.report.strip import device_names, strip_of
from bench.report.summary import Summary, summarise
from bench.report.write import write_report
from bench.store.picks import Chosen
from tests.runs import RANDOM, record, write_run


def seeds(backbone: str, regime: str, seconds: float, right: int, count: int = 3, **more: Any) -> list[Any]:
    return [
        record(backbone, regime, seed=seed, seconds=seconds * (1 + seed / 100), right=right, **more)
        for seed in range(count)
    ]


def summary_of(folder: Path, records: list[Any], **more: Any) -> Summary:
    return summarise([write_run(folder / "r", records, **more)], "r")


def on(device: str, name: str, *records: Any) -> list[Any]:
    """The records as those of another device."""
    found = []
    for one in records:
        cell = one.cell.replace(device=device)
        found.append(
            one.replace(cell=cell, cell_id=cell.id, result=one.result.replace(device=device, device_name=name))
        )
    return found


def test_the_strip_says_what_was_run(tmp_path: Path) -> None:
    """Images and their number, device, epochs, seeds, date and state; and no chip where nothing is wrong."""
    strip = strip_of(summary_of(tmp_path, [*seeds("timm:a", "finetune", 10, 95), *seeds("timm:a", "frozen", 4, 95)]))
    facts = {fact.label: fact.text for fact in strip.facts}
    assert (
        facts["images"] == "own: 244 training + 100 validation images, 2 classes"
        and facts["epochs"] == "4"
        and facts["seeds"] == "3"
    )
    assert facts["date"] == "2026-01-01" and facts["run"] == "r" and facts["status"] == "complete: 6 cells done"
    assert strip.chips == ()


def test_the_strip_warns_in_chips(tmp_path: Path) -> None:
    """Synthetic images, random weights and what is missing are seen at once."""
    records = [record("timm:a", "frozen"), record("timm:b", "frozen", weights=RANDOM), record("timm:c", "frozen")]
    late = record("timm:a", "finetune").cell
    failed = record("timm:c", "finetune", status="oom")
    strip = strip_of(summary_of(tmp_path, [*records, failed], fallback="synthetic", missing=[late]))
    assert [chip.text for chip in strip.chips] == ["synthetic images", "random weights: 1 of 3 backbones"]
    (status,) = (fact.text for fact in strip.facts if fact.label == "status")
    assert status == "not complete: 3 of 5 cells done, 1 failed, 1 left"


@pytest.mark.parametrize(
    ("cpu", "shown"),
    [
        ("AMD EPYC 9R14 96-Core Processor", "AMD EPYC 9R14 (2 cores)"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "Intel Xeon (2 cores)"),
        ("Apple M3 Pro", "Apple M3 Pro (2 cores)"),
    ],
)
def test_devices_have_their_marketing_names(cpu: str, shown: str, tmp_path: Path) -> None:
    """That of a GPU is in its record."""
    one = record("timm:a", "frozen")
    one = one.replace(environment=one.environment.replace(cpu=cpu, cores=2))
    gpu = on("cuda:0", "NVIDIA H100 80GB HBM3", record("timm:a", "frozen"))
    names = device_names(summary_of(tmp_path, [one, *gpu]))
    assert names == {"cpu": shown, "cuda:0": "NVIDIA H100 80GB HBM3"}


def test_the_sentence_compares_with_fine_tuning(tmp_path: Path) -> None:
    """It has the whole training's time, the device, and the accuracy and time of fine-tuning the same backbone."""
    same = summary_of(tmp_path, [*seeds("timm:a", "finetune", 10, 95), *seeds("timm:a", "frozen", 4, 95)])
    (said,) = sentences(same)
    (where,) = device_names(same).values()
    assert said.startswith("Train only the head of a: 95.0% in 16 s on ") and where in said
    assert said.endswith(", statistically tied with fine-tuning it and 2.5× faster")
    better = [*seeds("timm:a", "finetune", 10, 98), *seeds("timm:a", "frozen", 4, 80)]
    (said,) = sentences(summary_of(tmp_path / "better", better))
    assert said.startswith("Fine-tune a: 98.0%")
    assert said.endswith("18.0 points more accurate than training only its head and 2.5× slower")


def test_each_device_has_a_sentence_with_its_name(tmp_path: Path) -> None:
    """5 seconds on a CPU and on a GPU never look like the same number."""
    here = [record("timm:a", "frozen"), record("timm:a", "finetune", right=60)]
    said = sentences(summary_of(tmp_path, [*here, *on("cuda:0", "NVIDIA H100", *here)]))
    assert len(said) == 2 and "on NVIDIA H100," in said[1] and "NVIDIA" not in said[0]


def test_without_an_answer_the_sentence_says_why(tmp_path: Path) -> None:
    """Random weights, no result, one candidate, and nothing above the largest class."""
    random = [record("timm:a", "frozen", weights=RANDOM)]
    (said,) = sentences(summary_of(tmp_path / "1", random))
    assert said == "Accuracy says nothing without pretrained weights; time and memory hold"
    (said,) = sentences(summary_of(tmp_path / "2", [record("timm:a", "frozen", status="oom")]))
    assert said == "No cell has a result yet"
    (said,) = sentences(summary_of(tmp_path / "3", [record("timm:a", "frozen")]))
    assert said == "Nothing is recommended yet: a, frozen has nothing to compare with, with 95.0%"
    poor = [record("timm:a", "frozen", right=50), record("timm:b", "frozen", right=40)]
    (said,) = sentences(summary_of(tmp_path / "4", poor))
    assert said == "Nothing beats always answering 'ants', the largest class, with 50.0%"


def test_half_the_time_is_answered_below_the_sentence(tmp_path: Path) -> None:
    """One word, the share of time and the count of verdicts."""
    records = [*seeds("timm:a", "finetune", 10, 95), *seeds("timm:a", "frozen", 5, 95)]
    (line,) = half_the_time(summary_of(tmp_path, records))
    assert (line.word, line.icon) == ("supported", "✓")
    assert line.detail == "50% of it per epoch, where “about half” is 40–62.5%; 1 comparison: 1 supported"
    page = write_report(summary_of(tmp_path, records), tmp_path / "reports")[1].read_text()
    assert (
        page.index('class="strip"') < page.index("<h1>") < page.index('class="verdict"') < page.index('class="cards"')
    )


def test_cards_have_the_best_for_each_thing_and_its_price(tmp_path: Path) -> None:
    """Cheaper ones lose at most two points. What each costs is said against the most accurate."""
    records = [
        *seeds("timm:best", "finetune", 20, 97),
        *seeds("timm:near", "frozen", 5, 96),
        *seeds("timm:poor", "frozen", 1, 70),
    ]
    (deck,) = decks(summary_of(tmp_path, records))
    first, second = deck.cards
    assert (first.name, first.best_for, first.price) == ("timm:best, finetune", "most accurate", "")
    assert first.accuracy == "97.0% (91.5–99.0)" and ("to train", "81 s") in first.facts
    assert second.name == "timm:near, frozen" and second.best_for == "fastest to train and least memory"
    assert second.price == "Against the most accurate: 1.0 points less accurate, 25% of its time, 25% of its memory"
    said = "Fastest to train and least memory: among those measured at most 2 points less accurate than the best"
    assert deck.rule == said, "the poor one is faster still"
    assert f"{said}." in write_report(summary_of(tmp_path, records), tmp_path / "reports")[1].read_text()


def test_a_price_is_a_share_or_a_factor() -> None:
    """What takes more than the most accurate is said as a factor, and what takes as much is left out."""
    known: dict[str, Any] = {"seeds": 3, "cell": "x", "device": "cpu", "regime": "frozen"}
    best = Chosen(backbone="timm:a", accuracy=0.9, seconds_to_train=10, peak_memory_bytes=100, **known)
    other = Chosen(backbone="timm:b", accuracy=0.9, seconds_to_train=64, peak_memory_bytes=100, **known)
    assert _price(other, best) == "Against the most accurate: as accurate, 6.4× its time"


def test_one_card_if_it_is_the_best_for_all(tmp_path: Path) -> None:
    records = [*seeds("timm:a", "finetune", 20, 90), *seeds("timm:a", "frozen", 5, 97)]
    ((card,),) = (deck.cards for deck in decks(summary_of(tmp_path, records)))
    assert card.best_for == "most accurate, fastest to train and least memory"


def test_one_of_something_is_said_in_the_singular(tmp_path: Path) -> None:
    """In the line on noise, and in all that is counted in words."""
    summary = summary_of(tmp_path, seeds("timm:a", "frozen", 5, 97))
    assert "(median of 1 group; at most" in summary.noise
    both = [*seeds("timm:a", "frozen", 5, 97), *seeds("timm:b", "frozen", 5, 97)]
    assert "(median of 2 groups; at most" in summary_of(tmp_path / "both", both).noise
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
    assert [counted(number, "core") for number in (1, 2)] == ["1 core", "2 cores"]


def findings(folder: Path, ratios: list[float], backbones: int = 1) -> list[Finding]:
    """Findings on half the time of backbones whose seeds have these ratios."""
    records = [
        record(f"timm:{name}", regime, seed=seed, seconds=10 if regime == "frozen" else 10 * ratio)
        for name in range(backbones)
        for seed, ratio in enumerate(ratios)
        for regime in ("finetune", "frozen")
    ]
    return [one for one in summary_of(folder, records).findings if one.claim.name == "half-the-time-fast"]


def test_a_verdict_is_where_its_adjusted_interval_lies(tmp_path: Path) -> None:
    """An interval of 95% may lie within the region where the adjusted one doesn't: that is what is undecided."""
    low, high = CLAIMS["half-the-time-fast"].bounds
    undecided_alone = 0
    for count, ratios in enumerate([[2.1, 2.15, 2.2], [2.0, 2.01, 2.02], [1.5, 2.0, 2.6], [3.0, 3.01, 3.02]]):
        for finding in findings(tmp_path / str(count), ratios, backbones=6):
            assert finding.adjusted is not None and finding.estimate is not None
            left, right = finding.adjusted
            assert left <= (finding.estimate.low or 0) and right >= (finding.estimate.high or math.inf)
            clear = (left > low and right < high) or left > high or right < low
            assert clear is (finding.verdict in DECIDED), (ratios, finding.verdict, finding.adjusted)
            undecided_alone += finding.clear_alone
    assert undecided_alone == 6


def test_what_would_decide_it_does(tmp_path: Path) -> None:
    """So many more seeds with the same scatter give a verdict, and one fewer doesn't."""
    (open_one,) = findings(tmp_path / "open", [2.1, 2.3, 2.5])
    extra = more_samples(open_one)
    assert open_one.verdict == "inconclusive" and extra is not None and extra > 1
    (few,) = findings(tmp_path / "few", [2.1])
    assert (few.verdict, more_samples(few)) == ("too few samples", 2)
    (edge,) = findings(tmp_path / "edge", [2.49, 2.50, 2.51])
    assert edge.verdict == "inconclusive" and more_samples(edge) is None
    (clear,) = findings(tmp_path / "clear", [2.0, 2.01, 2.02])
    assert clear.verdict == "supported" and more_samples(clear) is None and more_images(clear) is None


def test_the_scorecard_has_the_dot_on_the_claims_band(tmp_path: Path) -> None:
    """In percent of a logarithmic scale; the adjusted interval lies around the other one."""
    records = [*seeds("timm:a", "finetune", 20, 95), *seeds("timm:a", "frozen", 10, 95)]
    scores = {score.claim.name: score for score in scorecard(summary_of(tmp_path, records))}
    score = scores["half-the-time-fast"]
    (row,) = score.rows
    assert (score.sign, row.sign, row.verdict, row.deciding) == ("supported", "supported", "supported", "")
    assert score.band is not None and row.dots is not None and row.dots.thick is not None and row.dots.thin is not None
    left, width = score.band.left, score.band.width
    assert left < row.dots.thin.left <= row.dots.thick.left <= row.dots.dot < left + width
    assert scores["transfer-helps"].rows == () and scores["transfer-helps"].sign == ""
    assert [bool(one.rows) for one in scores.values()] == sorted(
        (bool(one.rows) for one in scores.values()), reverse=True
    )


def test_an_open_claim_says_what_would_decide_it(tmp_path: Path) -> None:
    """With the time that it takes; a page has both."""
    records = [*seeds("timm:a", "finetune", 20, 95, count=1), *seeds("timm:a", "frozen", 10, 95, count=1)]
    summary = summary_of(tmp_path, records)
    (row,) = next(s for s in scorecard(summary) if s.claim.name == "half-the-time-fast").rows
    assert re.fullmatch(r"2 more seeds, about \d+ s", row.deciding) and row.dots is not None and row.dots.thick is None
    assert row.deciding in write_report(summary, tmp_path / "reports")[1].read_text()
