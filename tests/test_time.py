"""`bench time`: epochs compared by process pairs, without training to the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.analysis.paired import compare
from bench.analysis.stats import MIN_IN_ORDER
from bench.analysis.timed import Timed, look_at
from bench.report.timed_text import WIDTH, labels, lost, print_timed, row, sentence, spread, table
from bench.store.pairs import PairRecord
from bench.sweep.options import DEFAULT_TIMEOUT_SECONDS
from bench.sweep.timing import Collector, _jobs, plan_timing
from tests import light
from tests.commands import LIGHT, light_command
from tests.runs import pair_record, record
from tl.datasets import Splits
from tl.results import Work

PAIRS = ("--data", "synthetic-mini", "--pairs", "3", "--seconds", "0.01")
QUICK, OTHER = light.QUICK[:2]


def time(*arguments: str) -> subprocess.CompletedProcess[str]:
    return light_command("time", *arguments, *PAIRS)


def rows(*arguments: str) -> list[dict[str, Any]]:
    done = time(*arguments, "--format", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_an_answer_in_words() -> None:
    """A table, and a sentence per comparison, on standard output; the progress is on standard error."""
    done = time(QUICK, OTHER)
    assert done.returncode == 0, done.stderr
    assert "With quick1 on cpu, an epoch of frozen takes " in done.stdout
    assert re.match("backbone +regime +share", done.stdout)
    assert re.search(r"^quick0 +finetune +100%", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^ +frozen +5\d\.?\d*% \(\d", done.stdout, re.MULTILINE), done.stdout
    assert "[pair 6/6]" in done.stderr and "synthetic" in done.stderr and "pair" not in done.stdout.split("\n\n")[0]
    assert not Path("results").exists(), "nothing is kept"


def test_json_has_a_row_per_comparison() -> None:
    """Fine-tuning takes twice the training time of the others here. What isn't known is null."""
    found = rows(QUICK, OTHER, "--regime", "frozen,finetune", "--regime", "frozen-tutorial")
    said = [(one["backbone"], one["regime"], one["against"]) for one in found]
    assert sorted(said) == [
        (one, regime, "finetune") for one in (QUICK, OTHER) for regime in ("frozen", "frozen-tutorial")
    ]
    for one in found:
        assert (one["device"], one["execution"], one["pairs"]) == ("cpu", "fast", 3)
        assert 1.5 < one["low"] <= one["speed_up"] <= one["high"] < 2
        assert one["share"] == pytest.approx(1 / one["speed_up"])
        assert one["predicted"] is None, "no work was counted"
        assert (one["verdict"], one["claim"]) == ("supported", "half-the-time-fast")
        assert one["against_peak_bytes"] == 2 * one["peak_bytes"] and one["lost"] == []


def test_without_fine_tuning_the_first_regime_is_compared_with() -> None:
    """No claim is about these regimes, so the verdict is a plain word."""
    (one,) = rows(QUICK, "--regime", "frozen-tutorial", "--regime", "frozen")
    assert (one["regime"], one["against"], one["speed_up"]) == ("frozen", "frozen-tutorial", pytest.approx(1))
    assert (one["verdict"], one["claim"]) == ("same", None)


def test_the_tutorials_regimes_are_those_of_its_loop() -> None:
    """Without --regime, execution `plain` times what the tutorial's claim is about."""
    (one,) = rows(QUICK, "--execution", "plain", "--batch-size", "2")
    assert (one["regime"], one["claim"], one["execution"]) == ("frozen-tutorial", "half-the-time", "plain")
    assert one["batch_size"] == 2


@pytest.mark.parametrize(
    ("axis", "values", "more"),
    [("execution", ("plain", "fast"), ("--regime", "frozen")), ("precision", ("fp32", "bf16"), ())],
)
def test_executions_and_precisions_are_compared(axis: str, values: tuple[str, str], more: tuple[str, ...]) -> None:
    """The first one given is what others are compared with, in one regime."""
    given = (QUICK, f"--{axis}", ",".join(values), *more)
    (one,) = rows(*given)
    assert (one["compared"], one["against"], one[axis]) == (axis, *values)
    assert one["regime"] == (more[1] if more else "finetune") and one["claim"] is None and one["verdict"] == "same"
    text = time(*given).stdout
    assert f"an epoch of {values[1]} takes" in text and f"of the time of {values[0]}: " in text
    assert f"With quick0 on cpu, {one['regime']}" in text
    assert re.match(rf"backbone +{axis} +share", text)


def test_values_of_a_setting_are_compared() -> None:
    """The first one given is what others are compared with; other settings hold for both."""
    given = (QUICK, "--regime", "frozen", "--set", "fold=false,true", "--set", "batch_size=2")
    (one,) = rows(*given)
    assert (one["compared"], one["value"], one["against"]) == ("fold", "fold=true", "fold=false")
    assert (one["regime"], one["batch_size"]) == ("frozen", 2)
    text = time(*given).stdout
    assert "an epoch of fold=true takes" in text and "of the time of fold=false: " in text
    assert re.match("backbone +fold +share", text)
    (several, _) = rows(QUICK, "--set", "batch_size=2,4,8")
    assert (several["value"], several["against"], several["regime"]) == ("batch_size=4", "batch_size=2", "finetune")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((QUICK, "--set", "fold"), "--set 'fold': must be NAME=VALUE"),
        ((QUICK, "--set", "fold="), "--set 'fold=': must be NAME=VALUE"),
        ((QUICK, "--set", "fodl=true"), "error: fodl: unknown key; nearest valid key: 'fold'"),
        ((QUICK, "--set", "fold=yes"), "fold='yes': must be true or false"),
        ((QUICK, "--set", "lookahead=many"), "lookahead='many'"),
        ((QUICK, "--set", "batch_size=2", "--batch-size", "4"), "batch_size is given twice"),
        ((QUICK, "--set", "fold=false,true"), "regime 'finetune' in execution 'fast' doesn't read all of these"),
        (
            (QUICK, "--set", "batch_size=2,4", "--precision", "fp32,bf16"),
            "--precision fp32,bf16 and --set batch_size=2,4: only one of them can have several values",
        ),
        (
            (QUICK, "--precision", "fp32,bf16", "--execution", "fast,plain"),
            "--execution fast,plain and --precision fp32,bf16: only one of them can have several values",
        ),
        (
            (QUICK, "--regime", "finetune,frozen", "--execution", "fast,plain"),
            "--regime finetune,frozen and --execution fast,plain: only one of them can have several values",
        ),
        ((QUICK, "--regime", "frozen"), "is the only one; give another --regime to compare it with"),
        ((QUICK, "--regime", "frozen,frozen"), "is the only one; give another --regime to compare it with"),
        ((QUICK, "--regime", "frozn"), "regime='frozn': not one of"),
        ((QUICK, "--regime", "frozen,cached"), "regime='cached': can't be timed in turns: its features are extracted"),
        ((QUICK, "--regime", "finetune,zeroshot"), "regime='zeroshot': can't be timed in turns: it trains nothing"),
        (("timm:quik0",), "backbone='timm:quik0'"),
        ((QUICK, "--execution", "plane"), "execution='plane': not one of fast, plain"),
        ((QUICK, "--precision", "fp8"), "precision='fp8': not one of"),
        ((QUICK, "--device", "tpu"), "device='tpu': not on this machine"),
        ((QUICK, "--batch-size", "0"), "batch_size=0"),
        ((QUICK, "--pairs", "1"), "pairs=1: input should be greater than or equal to 3"),
        ((QUICK, "--seconds", "0"), "seconds=0.0: input should be greater than 0"),
        ((QUICK, "--data", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_end_in_one_line(arguments: Sequence[str], message: str) -> None:
    """Nothing is timed."""
    done = light_command("time", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_process_that_dies_is_a_lost_pair() -> None:
    """The other backbone's answer is there, each lost pair has a line with its reason, and the status is 1."""
    done = time(QUICK, light.CRASHES)
    assert done.returncode == 1 and "With quick0 on cpu, an epoch of frozen takes" in done.stdout
    assert "With crashes on cpu, nothing is known of frozen against finetune: no pair has a result." in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("failed: timm:crashes frozen")]
    assert len(lines) == 3 and all("SIGSEGV" in line for line in lines)
    (one,) = json.loads(time(light.CRASHES, "--format", "json").stdout)
    assert one["speed_up"] is None and one["share"] is None and one["verdict"] is None and one["seconds"] is None
    assert [each["pair"] for each in one["lost"]] == [1, 2, 3]


@pytest.mark.usefixtures("light_commands")
def test_ctrl_c_ends_it_in_one_line() -> None:
    """The status is 130, standard output is empty, and no process is left."""
    words = (*LIGHT, "time", light.HANGS, *PAIRS)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while "[pair 1/3]" not in process.stderr.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert [line for line in err.splitlines() if "WARNING" not in line] == [
        "interrupted: there is no answer, and nothing is kept"
    ]


def test_verdicts_of_one_command_hold_together() -> None:
    """What is clear alone may not be clear beside many others, as in a report."""
    ratios = (2.0, 2.08, 1.92, 2.1, 1.98)
    near = made_up(*(ratio * 1.18 for ratio in ratios))
    assert near.verdict == "supported"
    assert {each.verdict for each in look_at([near.comparison] * 20)} == {"inconclusive"}


def made_up(*ratios: float, regimes: tuple[str, str] = ("finetune", "frozen"), **more: Any) -> Timed:
    """A comparison with these ratios, one per pair."""
    cells = (record("timm:a", regimes[0]).cell, record("timm:a", regimes[1]).cell)
    records = [pair_record(cells, (ratio, 1.0), number=number, **more) for number, ratio in enumerate(ratios)]
    found = compare(cells[1], cells[0], records)
    assert found
    return look_at([found])[0]


@pytest.mark.parametrize(
    ("ratios", "regimes", "verdict"),
    [
        ((2.0, 2.01, 1.99), ("finetune", "frozen"), "supported"),
        ((3.0, 3.01, 2.99), ("finetune", "frozen"), "faster than claimed"),
        ((1.2, 1.21, 1.19), ("finetune", "frozen"), "slower than claimed"),
        ((2.5, 2.6, 2.4), ("finetune", "frozen"), "inconclusive"),
        ((2.5, 2.6), ("finetune", "frozen"), "too few samples"),
        ((2.0, 2.1, 1.9), ("scratch", "finetune"), "faster"),
        ((0.5, 0.51, 0.49), ("scratch", "finetune"), "slower"),
        ((1.0, 1.01, 0.99), ("scratch", "finetune"), "same"),
        ((1.005, 1.006, 1.004), ("scratch", "finetune"), "same"),
        ((1.03, 1.031, 1.029), ("scratch", "finetune"), "faster"),
        ((1.0, 1.2, 0.9), ("scratch", "finetune"), "inconclusive"),
    ],
)
def test_the_verdict_says_where_the_interval_lies(
    ratios: Sequence[float], regimes: tuple[str, str], verdict: str
) -> None:
    """With a claim in its words, without one in plain ones."""
    assert made_up(*ratios, regimes=regimes).verdict == verdict


def counted(one: PairRecord, backward: tuple[int, int]) -> PairRecord:
    """The pair with 0.1 GFLOP per image forward, and as many times that backward as given; for 100 + 50 images."""
    sides = [
        side.replace(
            work=Work(
                step_images=4,
                forward_flops=4 * 10**8,
                backward_flops=4 * 10**8 * flops,
                saved_activation_bytes=0,
                parameter_bytes=0,
                gradient_bytes=0,
                optimizer_state_bytes=0,
            )
        )
        for side, flops in zip(one.sides, backward, strict=True)
    ]
    return one.replace(sides=tuple(sides))


def counted_pairs(*seconds: tuple[float, float], regimes: tuple[str, str] = ("finetune", "frozen")) -> Timed:
    cells = (record("timm:a", regimes[0]).cell, record("timm:a", regimes[1]).cell)
    images = {"train_images": 100, "val_images": 50}
    records = [counted(pair_record(cells, each, number=n, **images), (2, 0)) for n, each in enumerate(seconds)]
    found = compare(cells[1], cells[0], records)
    assert found
    return look_at([found])[0]


def test_what_counted_work_predicts() -> None:
    """Both passes count, each with its own images: 3 units per training image against 1, 1 per validation image."""
    found = counted_pairs((2.0, 1.0))
    assert found.predicted == pytest.approx((300 + 50) / (100 + 50))
    assert found.predicted_training == pytest.approx(3)
    assert ". Counted work predicts 2.33×, without validation 3.00×" in sentence(found, "a")
    said = row(found, "own")
    assert (said["predicted"], said["predicted_training"]) == (pytest.approx(7 / 3), pytest.approx(3))


def test_why_measured_and_predicted_differ() -> None:
    """By rates, which follow from the turns: four fifths of an epoch are training here, the rest validation."""
    found = counted_pairs((10.0, 5.0), (10.0, 5.0), (10.0, 5.0))
    assert found.explanation == (
        "The measured 2.00× isn't the predicted 2.33×, because not all work runs at one rate: training of finetune "
        "runs at 4 GFLOP/s and of frozen at 2, validation at 2 and 5."
    )
    assert row(found, "own")["explanation"] == found.explanation
    assert counted_pairs((7.0, 3.0)).explanation is None, "as predicted"
    assert made_up(2.0, 2.0, 2.0).explanation is None, "no prediction"
    plain = compare(
        found.comparison.cell.but(execution="plain"),
        found.comparison.against.but(execution="plain"),
        [
            counted(
                pair_record(
                    [one.but(execution="plain") for one in (found.comparison.against, found.comparison.cell)],
                    (10.0, 5.0),
                    start_seconds=0.5,
                ),
                (2, 0),
            )
        ],
    )
    assert plain and "validation (with the start of its workers) at" in (look_at([plain])[0].explanation or "")


def test_scatter_drift_and_correlation_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """In text with the sentence, and in JSON; correlation from enough pairs on, and no zero is negative."""
    few, many = made_up(2.0, 2.02, 2.0, noise=0.01), made_up(*(2.0, 2.04) * 5)
    print_timed([few], "text", "own")
    out = capsys.readouterr().out
    assert f"\n{spread(few)}\n" in out
    assert spread(few).startswith("Ratios scatter by ") and f"unknown below {MIN_IN_ORDER} pairs" in spread(few)
    assert re.search(r"correlation of neighbouring pairs is -0\.\d\d\.$", spread(many))
    assert "by 0.0% within a pair. They drift by +0.0% per pair" in spread(made_up(2.0, 2.0, 2.0))
    said = row(many, "own")
    assert said["dataset"] == "own" and said["correlation"] < -0.5 and said["within"] == pytest.approx(0)
    assert said["trend"] is not None and row(few, "own")["correlation"] is None


def test_the_page_names_all_keys_of_json() -> None:
    """In the section on this command."""
    section = Path(__file__).parents[1].joinpath("docs/timing.md").read_text().split("## The time of an epoch")[1]
    assert [key for key in row(made_up(2.0, 2.0, 2.0), "own") if f"`{key}`" not in section] == []


def test_the_table_fits_a_terminal() -> None:
    """80 columns, whatever the name of the backbone; names of two sources are told apart by the source."""
    one = made_up(2.0, 2.01, 1.99)

    def called(backbone: str) -> Timed:
        cell, against = one.comparison.cell, one.comparison.against
        found = compare(
            cell.but(backbone=backbone),
            against.but(backbone=backbone),
            [pair_record((against.but(backbone=backbone), cell.but(backbone=backbone)), (2.0, 1.0))],
        )
        assert found
        return look_at([found])[0]

    long = "timm:vit_base_patch16_clip_224.openai_ft_in12k_in1k"
    several = [one, called(long), called("timm:resnet18"), called("torchvision:resnet18")]
    lines = table(several)
    assert max(map(len, lines)) <= WIDTH and long.partition(":")[2] in lines
    assert labels(several)["timm:resnet18"] == "timm:resnet18" and labels(several)["timm:a"] == "a"
    assert len([line for line in lines if "frozen" in line]) == 4
    assert "(1 of" not in sentence(one, "a") and "1 pair of 3 needed" in sentence(several[1], "b")


def test_what_was_timed_one_after_the_other_says_so() -> None:
    """With the reason, in words and in JSON; and what was lost is listed."""
    found = made_up(2.0, 2.0, 2.0).comparison
    apart = replace(made_up(2.0, 2.0, 2.0), comparison=replace(found, apart="no memory"))
    assert sentence(apart, "a").endswith("timed one after the other, because no memory.")
    assert row(apart, "own")["apart"] == "no memory" and lost([apart]) == []


def test_later_pairs_know_the_memory_of_earlier_ones(mini: Splits, tmp_path: Path) -> None:
    """So those that can't be alive together aren't tried again. A pair has its own seconds beside those of a limit."""
    cells = (record("timm:a", "finetune").cell, record("timm:a", "frozen").cell)
    records = [pair_record(cells, (2.0, 1.0), number=number, memory=(9 << 20, None)) for number in range(2)]
    collector = Collector(mini, None, lambda one: None)  # type: ignore[arg-type]
    jobs = _jobs([one.pair for one in records], mini, tmp_path, collector)
    first = next(jobs)
    assert first.needed_bytes == (None, None)
    assert first.timeout_seconds == DEFAULT_TIMEOUT_SECONDS + 2 * first.pair.seconds
    collector.records.append(records[0])
    assert next(jobs).needed_bytes == (9 << 20, None)


@pytest.mark.usefixtures("light_commands")
def test_planning_finds_pairs_per_backbone() -> None:
    """The regime that the others are compared with is first, and pairs with one number are neighbours."""
    timing = plan_timing(
        [QUICK, OTHER, QUICK], ["frozen", "finetune"], light.LightExecutor(), data="synthetic-mini", pairs=4, seconds=1
    )
    regimes = [[cell.config.regime for cell in rotation] for rotation in timing.rotations]
    assert regimes == [["finetune", "frozen"]] * 2
    assert [pair.number for pair in timing.pairs] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {pair.cells[0].config.weights for pair in timing.pairs} == {"random"}
