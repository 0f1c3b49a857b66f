"""Tests verdicts on claims, their error rate, claims in a grid's file, and the command that prints them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.groups import make_groups
from bench.analysis.paired import compare
from bench.analysis.stats import LEVEL, ratio
from bench.analysis.timed import look_at
from bench.analysis.verdicts import decide_claims, likeliest_verdict, overall
from bench.report.answers import answers, overalls
from bench.report.summary import summarise
from bench.store.records import Record
from bench.sweep.grid import load_grid
from tests.commands import ONE_CELL
from tests.commands import here as command
from tests.runs import RANDOM, TRUTH, pair_record, record, write_run
from tl.errors import ConfigError
from tl.regimes import REGIMES
from tl.results import InferenceCost, Work

HALF = CLAIMS["half-the-time-fast"]
OWN = """
[[claims]]
name = "a-third"
statement = "A third of the memory"
metric = "peak_memory_bytes"
regime = "frozen"
low = 2.9
"""
MATRIX = '[matrix]\nbackbones = ["timm:test_resnet"]\n'


def dumped_grid(tmp_path: Path) -> dict[str, object]:
    path = tmp_path / "own.toml"
    path.write_text(MATRIX + OWN)
    return load_grid(str(path)).model_dump(mode="json")


def seeds(regime: str, times: list[float], backbone: str = "timm:a", **given: object) -> list[Record]:
    return [record(backbone, regime, seconds=s, seed=seed, **given) for seed, s in enumerate(times)]  # type: ignore[arg-type]


def verdict(fast: list[float], slow: tuple[float, ...] = (20.0, 20.2, 19.9)) -> str:
    records = [("r", one) for one in [*seeds("finetune", list(slow)), *seeds("frozen", fast)]]
    (finding,) = decide_claims({"r": [HALF]}, make_groups(records, {"r": TRUTH}))
    return finding.words


@pytest.mark.parametrize(
    ("fast", "expected"),
    [
        ([10.0, 10.1, 9.9], "supported"),
        ([5.0, 5.05, 4.95], "faster than claimed"),
        ([16.0, 16.1, 15.9], "slower than claimed"),
        ([8.1, 8.0, 7.9], "inconclusive"),
        ([10.0, 16.0, 6.0], "inconclusive"),
        ([10.0, 10.0], "too few samples"),
    ],
)
def test_verdicts(fast: list[float], expected: str) -> None:
    """A claim is supported only if the interval is inside the region; above or below only if it is outside."""
    assert verdict(fast) == expected


@pytest.mark.parametrize("truth", [1.6, 2.5])
@pytest.mark.parametrize("count", [3, 6])
def test_a_verdict_is_wrong_one_time_in_twenty_at_most(truth: float, count: int) -> None:
    """At the edge of the region, any verdict but `inconclusive` is wrong. At most 5% are, on both sides together."""
    rng = np.random.default_rng(count)
    wrong = 0
    for _ in range(2_000):
        logs = np.log(truth) + rng.normal(0, 0.02, count)
        estimate = ratio(dict(enumerate(np.exp(logs))), dict.fromkeys(range(count), 1.0))
        assert estimate is not None
        wrong += likeliest_verdict(HALF, estimate)[1] < LEVEL
    assert wrong / 2_000 <= 0.06  # 5%, and two standard errors of 2,000 draws


def test_verdicts_of_a_report_share_one_error_rate(tmp_path: Path) -> None:
    """A verdict on one comparison may become inconclusive among ten (Holm)."""
    fast = [9.0, 9.3, 8.9]
    alone = verdict(fast, (20.0, 20.0, 20.0))
    slow = [[20.0, 20.0, 20.0], fast]
    records = [
        ("r", one)
        for name in "abcdefghij"
        for regime, times in zip(("finetune", "frozen"), slow, strict=True)
        for one in seeds(regime, times, f"timm:{name}")
    ]
    together = {finding.verdict for finding in decide_claims({"r": [HALF]}, make_groups(records, {"r": TRUTH}))}
    assert (alone, together) == ("supported", {"inconclusive"})


def test_accuracies_are_compared_image_by_image_and_only_where_they_count() -> None:
    """If random weights replaced pretrained ones, the verdict is unknown, not a difference of 0."""

    def found(**given: object) -> tuple[str, float | None]:
        records = [
            ("r", r)
            for regime, right in (("finetune", 90), ("frozen", 95))
            for r in seeds(regime, [9.0] * 3, right=right, **given)
        ]
        (finding,) = decide_claims({"r": [CLAIMS["no-worse"]]}, make_groups(records, {"r": TRUTH}))
        return finding.verdict, finding.estimate.value if finding.estimate else None

    word, value = found()
    assert word == "supported" and value == pytest.approx(0.05)
    assert found(weights=RANDOM) == ("unknown", None)


def test_scratch_is_compared_with_fine_tuning_though_its_weights_differ() -> None:
    """`scratch` starts from random weights by design."""
    records = [
        *(("r", one) for one in seeds("finetune", [9.0] * 3, right=95)),
        *(("r", one) for one in seeds("scratch", [9.0] * 3, right=60, weights=RANDOM)),
    ]
    (finding,) = decide_claims({"r": [CLAIMS["transfer-helps"]]}, make_groups(records, {"r": TRUTH}))
    assert finding.verdict == "supported" and finding.against.config.regime == "scratch"
    mixed = [
        *(("r", one) for one in seeds("finetune", [9.0] * 3)),
        *(("r", one) for one in seeds("frozen", [9.0] * 3, weights=RANDOM)),
    ]
    assert decide_claims({"r": [HALF]}, make_groups(mixed, {"r": TRUTH})) == [], (
        "for other regimes, weights must be equal"
    )


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "unknown"], "supported"),
        (["above", "below"], "refuted"),
        (["supported", "below"], "mixed"),
        (["supported", "inconclusive"], "open"),
        (["inconclusive", "too few samples"], "open"),
        (["unknown"], "open"),
        (["supported", "below", "inconclusive"], "mixed"),
        (["above", "below", "inconclusive"], "open"),
    ],
)
def test_all_backbones_together(verdicts: list[str], word: str) -> None:
    """The overall verdict is open unless all comparisons agree, or two contradict each other."""
    (finding,) = decide_claims(
        {"r": [HALF]},
        make_groups([("r", r) for r in [record("timm:a", "finetune"), record("timm:a", "frozen")]], {"r": TRUTH}),
    )
    assert overall([replace(finding, verdict=one) for one in verdicts]) == word  # type: ignore[arg-type]


WORK = Work(
    step_images=4,
    forward_flops=4_000_000,
    backward_flops=8_000_000,
    saved_activation_bytes=1,
    parameter_bytes=1,
    gradient_bytes=1,
    optimizer_state_bytes=1,
)
PREDICTED = (3 * 244 + len(TRUTH)) / (1.5 * 244 + len(TRUTH))
"""By how much less work an epoch with half a forward pass of backward work is than one with two."""


def partly(times: list[float], *, regime: str = "last-block", backward: int | None = 2_000_000) -> list[Record]:
    """Fine-tuning of about 20 s per epoch and a regime that trains a part; without `backward` nothing was counted."""
    found = []
    for name, seconds, flops in (("finetune", [20.0, 20.2, 19.9], WORK.backward_flops), (regime, times, backward)):
        for one in seeds(name, seconds):
            assert one.result is not None
            work = None if flops is None else WORK.replace(backward_flops=flops)
            found.append(one.replace(result=one.result.replace(work=work)))
    return found


@pytest.mark.parametrize(
    ("factor", "words", "region"),
    [
        (1.0, "supported", "0.80× to 1.25× of what the counted work predicts"),
        (1.1, "supported", ""),
        (1.5, "slower than predicted", ""),
        (0.7, "faster than predicted", ""),
    ],
)
def test_a_claim_about_predictions_is_of_the_measured_by_the_predicted_ratio(
    factor: float, words: str, region: str
) -> None:
    """Its bounds have the same meaning for every backbone and regime, whatever speed-up is predicted."""
    claim = CLAIMS["last-stages-cost"]
    times = [factor * seconds / PREDICTED for seconds in (20.0, 20.1, 19.9)]
    groups = make_groups([("r", one) for one in partly(times)], {"r": TRUTH})
    (finding,) = decide_claims({"r": [claim]}, groups)
    assert finding.words == words and finding.estimate is not None and finding.predicted == 1.0
    assert finding.estimate.value == pytest.approx(1 / factor, rel=0.01)
    assert region in claim.region
    assert claim.is_about("last-3", "fast") and not claim.is_about("last-3", "plain")


def test_without_counted_work_a_claim_about_predictions_is_unknown() -> None:
    groups = make_groups([("r", one) for one in partly([9.0, 9.1, 9.2], backward=None)], {"r": TRUTH})
    (finding,) = decide_claims({"r": [CLAIMS["last-stages-cost"]]}, groups)
    assert (finding.verdict, finding.estimate, finding.predicted) == ("unknown", None, None)


def test_pairs_decide_a_claim_about_predictions_too() -> None:
    """In a report, and in `bench time`, whose JSON keeps the speed-up itself."""
    records = partly([9.0, 9.1, 9.2])
    cells = (records[0].cell, records[3].cell)
    works = (WORK, WORK.replace(backward_flops=2_000_000))
    timed = [pair_record(cells, (20.0, 20.0 / PREDICTED), number=number, noise=0.01) for number in range(5)]
    timed = [
        one.replace(sides=tuple(s.replace(work=w) for s, w in zip(one.sides, works, strict=True))) for one in timed
    ]
    groups = make_groups([("r", one) for one in records], {"r": TRUTH})
    (finding,) = decide_claims({"r": [CLAIMS["last-stages-cost"]]}, groups, {"r": timed})
    assert (finding.by, finding.words) == ("pairs", "supported")
    found = compare(cells[1], cells[0], timed)
    assert found is not None
    (said,) = look_at([found])
    assert said.claim == CLAIMS["last-stages-cost"] and said.verdict == "supported"
    assert said.predicted == pytest.approx(PREDICTED) == pytest.approx(found.speed_up.value, rel=0.02)
    (other,) = look_at([replace(found, work=(works[1], works[1]))])  # no speed-up is predicted
    assert other.verdict == "faster than predicted"


@pytest.mark.parametrize(
    ("seconds", "trained", "expected"),
    [
        ([15.0, 15.2, 14.9], 100, ("supported", "supported")),
        ([9.0, 9.1, 8.9], 100, ("supported", "about half the time, or less")),
        ([15.0, 15.2, 14.9], 5_000, ("below the claim", "supported")),
    ],
)
@pytest.mark.parametrize("regime", ["norm-only", "bias-only"])
def test_few_parameters_are_not_half_the_time(
    regime: str, seconds: list[float], trained: int, expected: tuple[str, str]
) -> None:
    """Each of the two can be refuted alone."""
    records = [
        one.replace(
            result=one.result.replace(
                total_params=10_000,
                trainable_params=10_000 if one.cell.config.regime == "finetune" else trained,
            )
        )
        for one in partly(seconds, regime=regime)
        if one.result is not None
    ]
    claims = [CLAIMS["few-parameters"], CLAIMS["not-half-the-time"]]
    findings = decide_claims({"r": claims}, make_groups([("r", one) for one in records], {"r": TRUTH}))
    assert tuple(finding.words for finding in findings) == expected


def test_claims_about_regimes_that_a_run_lacks_are_not_mentioned(tmp_path: Path) -> None:
    """A report of `finetune` and `frozen` says nothing of norms; one that planned them does, also without a result."""
    half = [*seeds("finetune", [20.0] * 3), *seeds("frozen", [10.0] * 3)]
    few = CLAIMS["few-parameters"]
    run = write_run(tmp_path / "half", half)
    assert few not in summarise([run], "x").claims and HALF in summarise([run], "x").claims
    run = write_run(tmp_path / "norms", half, missing=[record("timm:a", "norm-only").cell])
    summary = summarise([run], "x")
    assert few in summary.claims and summary.without_result["few-parameters"] == 1


def test_a_claim_about_inference_says_how_it_is_measured(tmp_path: Path) -> None:
    """Without `--inference` nothing is known, and the verdict alone wouldn't say why."""
    name = "quantized-finetune-faster"
    cost = InferenceCost(latency_seconds=(0.01,), batch_size=32, batch_seconds=(0.1,), model_bytes=4, seconds=1.0)
    pair = [record("timm:a", regime) for regime in ("finetune", "quantized-finetune")]
    said = {}
    for place, sides in (
        ("without", pair),
        ("half", [_with(pair[0], cost), pair[1]]),
        ("with", [_with(one, cost) for one in pair]),
    ):
        summary = summarise([write_run(tmp_path / place, sides)], place)
        said[place] = next(text for claim, text in overalls(summary) if claim.name == name)
    told = "; cells that ran without `run --inference` have no figure for it"
    assert said["without"] == said["half"] == f"open. 1 comparison: 1 unknown{told}"
    assert told not in said["with"]


def _with(one: Record, cost: InferenceCost) -> Record:
    assert one.result is not None
    return one.replace(result=one.result.replace(inference=cost))


def test_a_claim_of_a_grid_can_be_about_a_kind_of_regimes(tmp_path: Path) -> None:
    """As the built-in ones are: about every regime that trains only the head on equal terms."""
    path = tmp_path / "own.toml"
    path.write_text((MATRIX + OWN).replace('regime = "frozen"', 'kind = "head-only"'))
    (claim,) = load_grid(str(path)).claims
    assert {name for name in REGIMES if claim.is_about(name)} == {"frozen", "frozen-tutorial"}
    assert Claim(**claim.model_dump(mode="json")) == claim


@pytest.mark.parametrize(
    ("given", "region"),
    [
        ({"low": 1.6, "high": 2.5}, "1.60× to 2.50×, 40% to 62.5% of fine-tuning's time"),
        ({"low": 1.6}, "above 1.60×, below 62.5% of fine-tuning's time"),
        ({"high": 2.5}, "below 2.50×, above 40% of fine-tuning's time"),
        ({"low": 2.5, "metric": "peak_memory_bytes"}, "above 2.50×, below 40% of fine-tuning's memory"),
        ({"low": 2.5, "as_share": False}, "above 2.50×"),
    ],
)
def test_a_region_is_shown_as_speed_up_and_as_share(given: dict[str, object], region: str) -> None:
    """The larger a speed-up, the smaller the share."""
    base = {"name": "x", "statement": "X", "metric": "epoch_seconds", "regime": "frozen", "as_share": True}
    assert Claim(**{**base, **given}).region == region


def test_a_grid_can_have_claims(tmp_path: Path) -> None:
    """They stay when the command line replaces axes and settings."""
    path = tmp_path / "own.toml"
    path.write_text(MATRIX + OWN)
    grid = load_grid(str(path)).override({"seeds": 2}, {"epochs": 1})
    assert [claim.name for claim in grid.claims] == ["a-third"]
    assert grid.claims[0].bounds[0] == 2.9 and grid.claims[0].against == "finetune"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"peak_memory_bytes"', '"memory"'), r"claims\[1\]\.metric='memory': not one of"),
        (('"frozen"', '"frozn"'), r"claims\[1\]\.regime='frozn': not one of .* did you mean 'frozen'"),
        (("low = 2.9", ""), r"claims\[1\]\.low=None, high=None: give one finite bound, or a low below a high"),
        (
            ("low = 2.9", "low = 2.9\nhigh = 1"),
            r"claims\[1\]\.low=2.9, high=1.0: give one finite bound, or a low below a high",
        ),
        (("low = 2.9", "lower = 2.9"), r"claims\[1\]\.lower: unknown key; nearest valid key: 'low'"),
        (("[[claims]]", "[claims]"), r"claims="),
        (("low = 2.9", "low = -inf"), r"claims\[1\]\.low=-inf: input should be a finite number"),
        (("low = 2.9", "low = 0"), r"claims\[1\]\.low=0.0, high=None: bounds of a ratio must be above 0"),
        (('"frozen"', '"finetune"'), r"claims\[1\]\.against='finetune': must be another regime than `regime`"),
        (('"a-third"', '"no-worse"'), r"claims\[1\]\.name='no-worse': another claim has that name"),
        (('regime = "frozen"', 'kind = "head-olny"'), r"kind='head-olny': not one of .* did you mean 'head-only'"),
        (('regime = "frozen"', ""), r"claims\[1\]\.regime=None, kind=None: give exactly one of them"),
        (("low = 2.9", 'low = 2.9\nexecution = "slow"'), r"claims\[1\]\.execution='slow': not one of"),
        (
            ('"peak_memory_bytes"', '"val_accuracy_last"\nas_share = true'),
            r"claims\[1\]\.as_share=True: metric 'val_accuracy_last' is compared by its difference, not by a ratio",
        ),
        (
            ("low = 2.9", "low = 2.9\nof_prediction = true"),
            r"claims\[1\]\.of_prediction=True: work predicts no 'peak_memory_bytes', only epoch_seconds and train_ep",
        ),
        (
            ('"peak_memory_bytes"', '"epoch_seconds"\nof_prediction = true\nas_share = true'),
            r"claims\[1\]\.as_share=True: a ratio that is divided by another one is no share",
        ),
        (
            ('regime = "frozen"', 'regime = "frozen"\nkind = "head-only"'),
            r"claims\[1\]\.regime='frozen', kind='head-only': give exactly one of them",
        ),
    ],
)
def test_a_mistake_in_a_claim_is_reported_with_its_place(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    """The message names the key and the value."""
    path = tmp_path / "own.toml"
    path.write_text((MATRIX + OWN).replace(*change))
    with pytest.raises(ConfigError, match=message):
        load_grid(str(path))


def test_claims_that_a_grid_gets_later_are_known_to_its_run(tmp_path: Path) -> None:
    """The run gets them even if nothing is left to run."""
    (tmp_path / "one.toml").write_text(ONE_CELL + "[train]\nepochs = 1\n")
    arguments = ["run", "--grid", "one.toml", "--name", "one", "--weights", "random", "--no-report"]
    assert command(*arguments).returncode == 0
    (tmp_path / "one.toml").write_text(ONE_CELL + "[train]\nepochs = 1\n" + OWN)
    assert "1 of them done before" in command(*arguments).stdout
    assert "a-third: A third of the memory? not tested" in command("claims", "one").stdout


def test_comparisons_that_have_no_result_are_counted(tmp_path: Path) -> None:
    """A claim doesn't hold everywhere if a fine-tuning ran out of memory."""
    records = [
        *seeds("finetune", [20.0] * 3),
        *seeds("frozen", [10.0, 10.1, 9.9]),
        *seeds("finetune", [20.0] * 3, "timm:b", status="oom"),
        *seeds("frozen", [10.0] * 3, "timm:b"),
    ]
    run = write_run(tmp_path / "r", records)
    assert "1 supported; 1 more has no result on one side" in command("claims", str(run.folder)).stdout
    said = " ".join(answers(summarise([run], "r")))
    assert "the frozen epoch takes 50%" in said and "1 more has no result on one side." in said


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_every_claim_is_complete(claim: Claim) -> None:
    """It has a source, and a region in words."""
    assert claim.source and claim.region and claim.statement[0].isupper()


def test_the_command_prints_measured_predicted_and_verdict(tmp_path: Path) -> None:
    """Text and JSON include claims of the grid and untested claims."""
    own = dumped_grid(tmp_path)
    run = write_run(tmp_path / "r", [*seeds("finetune", [20.0] * 3), *seeds("frozen", [10.0, 10.1, 9.9])])
    manifest = run.manifest()
    run.write_manifest(manifest.replace(invocations=(manifest.invocations[0].replace(grid=own),)))
    rows = json.loads(command("claims", str(run.folder), "--format", "json").stdout)
    by_claim = {row["claim"]: row for row in rows}
    assert list(by_claim) == [
        "half-the-time",
        "half-the-time-fast",
        "less-memory",
        "no-worse",
        "transfer-helps",
        "a-third",
        "probe-picks",
    ]
    assert by_claim["half-the-time"]["verdict"] == "not tested", "no cell ran with execution plain"
    assert (by_claim["half-the-time-fast"]["overall"], by_claim["no-worse"]["overall"]) == ("supported", "open")
    half = by_claim["half-the-time-fast"]
    assert (half["by"], half["seeds"], half["pairs"], half["share"]) == ("seeds", 3, None, 1 / half["measured"])
    assert (half["backbone"], half["device"], half["regime"], half["verdict"]) == (
        "timm:a",
        "cpu",
        "frozen",
        "supported",
    )
    assert half["measured"] == pytest.approx(2.0, abs=0.01) and half["low"] < half["measured"] < half["high"]
    assert half["predicted"] is None, "None, since the work was not counted"
    assert by_claim["a-third"]["verdict"] == "below the claim"
    assert (by_claim["transfer-helps"]["verdict"], by_claim["transfer-helps"]["measured"]) == ("not tested", None)
    text = command("claims", str(run.folder)).stdout
    assert "2.00× (1.9" in text and "transfer-helps: Fine-tuning beats training from random weights? not tested" in text
