"""Tests rankings by probes, and the claim that a probe picks the winner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.analysis.groups import make_groups
from bench.analysis.probe import Ranked, rank_by_probe
from bench.analysis.selection import Selection, overall, selections
from bench.analysis.stats import mcnemar, regret, weighted_kendall, wilson
from bench.report.summary import summarise
from bench.report.write import write_report
from bench.store.records import Record
from tests.commands import here as command
from tests.runs import RANDOM, TRUTH, judged, record, write_run
from tl.errors import ConfigError
from tl.results import Probe

IMAGES = 244
LARGE = (0, 1) * 1000


def probe(right: int, *, logme: float | None = -0.1, images: int = IMAGES, shift: int = 0) -> Probe:
    """A probe that gets so many of the training images right: those from `shift` on, around the end."""
    truth = [place % 2 for place in range(images)]
    hits = {(place + shift) % images for place in range(right)}
    labels = [label if place in hits else 1 - label for place, label in enumerate(truth)]
    return Probe(labels=labels, truth=truth, chosen=20.0, logme=logme)


def probes(**right: int) -> list[Record]:
    return [record(f"timm:{name}", "knn", probe=probe(count)) for name, count in right.items()]


def test_backbones_are_ranked_with_intervals_and_ties() -> None:
    """Tied is what McNemar's test on the same images, adjusted for all backbones, doesn't tell from the first."""
    ranking = rank_by_probe(probes(worst=150, best=240, next=236))
    assert [one.backbone for one in ranking] == ["timm:best", "timm:next", "timm:worst"]
    assert [one.tied for one in ranking] == [True, True, False]
    share = wilson(240, IMAGES)
    assert ranking[0] == Ranked(backbone="timm:best", probe=share.value, low=share.low, high=share.high, tied=True)


def test_ties_are_paired_and_adjusted() -> None:
    """The same difference is clear on images that are right with both, and not with many comparisons."""
    alone = rank_by_probe(probes(a=240, b=233))
    assert mcnemar(probe(240).right, probe(233).right).p < 0.05 and [one.tied for one in alone] == [True, False]
    many = rank_by_probe(probes(a=240, b=233, c=233, d=233, e=233))
    assert all(one.tied for one in many), "0.016 of one comparison is 0.06 of four"


def test_equal_accuracies_are_ranked_by_logme() -> None:
    """An unknown LogME is the last."""
    records = [
        record(f"timm:{name}", "ridge", probe=probe(200, logme=value))
        for name, value in (("a", None), ("b", -0.5), ("c", 0.2))
    ]
    assert [one.backbone for one in rank_by_probe(records, "ridge")] == ["timm:c", "timm:b", "timm:a"]
    assert rank_by_probe(records) == [], "of another regime"


def test_what_has_no_probe_is_not_ranked() -> None:
    """Nor is what has random weights in place of pretrained ones. Of several seeds the smallest counts."""
    records = [
        record("timm:a", "knn", seed=1, probe=probe(100)),
        record("timm:a", "knn", probe=probe(200)),
        record("timm:b", "knn", weights=RANDOM, probe=probe(240)),
        record("timm:c", "knn"),
        record("timm:d", "knn", status="failed"),
        record("timm:e", "frozen"),
    ]
    (only,) = rank_by_probe(records)
    assert (only.backbone, only.probe, only.tied) == ("timm:a", 200 / IMAGES, True)


def test_probes_of_other_images_are_not_ranked_together() -> None:
    """Their accuracies would say nothing about backbones."""
    records = [*probes(a=200), record("timm:b", "knn", probe=probe(100, images=120))]
    with pytest.raises(ConfigError, match="probes of 2 different sets of training images: give the records of one run"):
        rank_by_probe(records)


def results(
    scores: dict[str, int], trained: dict[str, float], *, seeds: int = 3, regime: str = "frozen"
) -> list[Record]:
    """Records of a run with probes, and with trainings that have so many percent of the validation images right."""
    found = [record(f"timm:{name}", "knn", probe=probe(right)) for name, right in scores.items()]
    for name, right in trained.items():
        found += [record(f"timm:{name}", regime, right=right, seed=seed) for seed in range(seeds)]
    return found


def found(records: list[Record], truth: tuple[int, ...] = TRUTH) -> list[Selection]:
    return selections(make_groups([("r", one) for one in records], {"r": truth}))


def of_images(records: list[Record], truth: tuple[int, ...]) -> list[Record]:
    """The same records for other validation images, with the same shares of them right."""
    return [judged(one, round(one.result.val_accuracy_last * len(truth)), truth) for one in records]


SCORES = {"a": 240, "b": 220, "c": 180}


def test_a_probe_that_picks_the_best_is_supported_with_enough_images() -> None:
    """On few images the same is inconclusive: another one may be the best."""
    records = results(SCORES, {"a": 95, "b": 90, "c": 80})
    by_score = {one.score: one for one in found(of_images(records, LARGE), LARGE)}
    knn = by_score["knn"]
    assert list(by_score) == ["knn", "logme"] and knn.verdict == "supported" and knn.agreement == pytest.approx(1)
    assert (knn.picked, knn.best, knn.backbones, knn.regret.value) == ("timm:a", "timm:a", 3, 0.0)
    assert knn.chance == pytest.approx(0.95 - (0.95 + 0.9 + 0.8) / 3) and 0.0 <= knn.regret.high < 0.02
    few = found(results(SCORES, {"a": 92, "b": 92, "c": 80}))[0]
    assert few.verdict == "inconclusive" and few.regret.value == 0 and few.regret.high > 0.02


def test_a_probe_that_picks_a_bad_one_is_refuted() -> None:
    """Its regret is clearly above 2 points, and the orders disagree."""
    knn = found(of_images(results(SCORES, {"a": 70, "b": 80, "c": 95}), LARGE), LARGE)[0]
    assert (knn.verdict, knn.words, knn.picked, knn.best) == ("above", "picks a worse one", "timm:a", "timm:c")
    assert knn.regret.value == pytest.approx(0.25) and knn.regret.low > 0.2 and knn.agreement == pytest.approx(-1)


@pytest.mark.parametrize(
    ("trained", "seeds", "verdict", "reason"),
    [
        ({"a": 95, "b": 90}, 3, "unknown", "2 backbones have both a score and trainings, and 3 are needed"),
        ({"a": 95, "b": 90, "c": 80}, 2, "too few samples", "2 of 3 seeds"),
    ],
)
def test_too_little_to_decide(trained: dict[str, float], seeds: int, verdict: str, reason: str) -> None:
    """The reason is given."""
    knn = found(results(SCORES, trained, seeds=seeds))[0]
    assert (knn.verdict, knn.reason) == (verdict, reason)


def test_only_trainings_and_scores_of_the_same_kind_are_compared() -> None:
    """Each regime and setting of trainings is a test of its own; without probes or trainings there is none."""
    both = [
        *results(SCORES, {"a": 95, "b": 90, "c": 80}),
        *results({}, {"a": 80, "b": 90, "c": 95}, regime="finetune"),
    ]
    assert [(one.trained.config.regime, one.score) for one in found(both)] == [
        ("frozen", "knn"),
        ("frozen", "logme"),
        ("finetune", "knn"),
        ("finetune", "logme"),
    ]
    assert found(results({}, {"a": 95, "b": 90, "c": 80})) == [] == found(results(SCORES, {}))
    assert found(results(SCORES, {"a": 95, "b": 90, "c": 80}, regime="cached")) == []


def test_verdicts_of_all_scores_share_one_error_rate() -> None:
    """p-values are adjusted by Holm, so with more tests they are larger."""
    records = of_images(results(SCORES, {"a": 95, "b": 90, "c": 80}), LARGE)
    knn, evidence = found(records, LARGE)
    assert knn.p == pytest.approx(min(1.0, 2 * knn.regret.verdict[1])) and evidence.p is not None


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        (["supported", "unknown"], "supported"),
        (["above", "above"], "refuted"),
        (["supported", "above"], "mixed"),
        (["supported", "inconclusive"], "open"),
        (["unknown"], "open"),
    ],
)
def test_all_scores_together(verdicts: list[str], word: str) -> None:
    """One word for all."""
    one = found(results(SCORES, {"a": 95, "b": 90, "c": 80}))[0]
    assert overall([replace(one, verdict=verdict) for verdict in verdicts]) == word


def test_the_interval_of_a_regret_holds_the_truth() -> None:
    """In 95% of simulations or more: seeds move accuracies, images are drawn anew, and the best may change."""
    rng, inside, rounds = np.random.default_rng(0), 0, 100
    truth = np.array([0.90, 0.93, 0.88])
    for _ in range(rounds):
        skill = np.log(truth / (1 - truth))[:, None, None] + rng.normal(0, 0.1, (3, 4, 1))
        chances = 1 / (1 + np.exp(-(skill + rng.normal(0, 0.01, (1, 1, 150)))))
        right = rng.random((3, 4, 150)) < chances
        said = regret([{seed: list(row) for seed, row in enumerate(each)} for each in right], 0, 0.02)
        inside += said.low <= 0.03 <= said.high
    assert inside / rounds >= 0.93


def test_equal_candidates_are_not_told_apart() -> None:
    """Of twelve that are equally good, the first is called a worse one in 5% of simulations at most.

    A bootstrap of the best one's lead did so in 14%, and its interval held the truth in 65%.
    """
    rng, refuted, inside, rounds = np.random.default_rng(1), 0, 0, 60
    for _ in range(rounds):
        chances = 1 / (1 + np.exp(-(np.log(9) + rng.normal(0, 0.1, (12, 3, 1)) + rng.normal(0, 1.5, (1, 1, 150)))))
        right = rng.random((12, 1, 150)) + rng.normal(0, 0.02, (12, 3, 150)) < chances
        said = regret([{seed: list(row) for seed, row in enumerate(each)} for each in right], 0, 0.02)
        within, p = said.verdict
        refuted += p < 0.05 and not within
        inside += said.low == 0.0
    assert refuted <= 0.05 * rounds and inside >= 0.95 * rounds


def test_a_regret_is_paired_and_repeatable() -> None:
    """Candidates with the same answers have no regret, and two calls agree; without a common seed it is unknown."""
    same = {seed: [True] * 950 + [False] * 50 for seed in range(3)}
    said = regret([same, same, same], 0, 0.02)
    assert said == regret([same, same, same], 0, 0.02) and said.value == 0 and said.verdict[0] and said.high < 0.01
    assert regret([{0: [True]}, {1: [True]}], 0, 0.02) is None
    assert weighted_kendall([1, 1, 1], [1, 2, 3]) is None and weighted_kendall([1, 2, 3], [1, 2, 3]) == pytest.approx(1)


def test_commands_and_reports_say_it(tmp_path: Path) -> None:
    """Text, JSON and both pages have one row per score; a run without probes has a reason, and no section."""
    run = write_run(tmp_path / "r", results(SCORES, {"a": 95, "b": 90, "c": 80}))
    said = command("claims", str(run.folder)).stdout
    words = "supported. knn without the image supported, LogME supported"
    assert f"probe-picks: The probe picks the winner? {words}" in said
    assert "0.0 points (0.0 to" in said
    rows = json.loads(command("claims", str(run.folder), "--format", "json").stdout)
    assert len({tuple(row) for row in rows}) == 1, "all rows have the same keys"
    knn = next(row for row in rows if row["score"] == "knn")
    assert (knn["claim"], knn["picked"], knn["best"], knn["measured"], knn["seeds"]) == (
        *("probe-picks", "timm:a", "timm:a"),
        *(0.0, 3),
    )
    for page in write_report(summarise([run], "r"), tmp_path / "pages"):
        assert "Does a probe pick the winner?" in page.read_text() and "knn without the image" in page.read_text()
    bare = write_run(tmp_path / "bare", results({}, {"a": 95, "b": 90, "c": 80}))
    why = "no cell of the regimes knn, ridge, logistic has a probe"
    assert f"probe-picks: The probe picks the winner? unknown: {why}" in command("claims", str(bare.folder)).stdout
    assert "pick the winner" not in write_report(summarise([bare], "bare"), tmp_path / "pages")[0].read_text()


def test_a_score_that_may_have_decided_what_was_trained_has_no_verdict() -> None:
    """As after a pick, which trains those that the probe ranks first: the others could have been better."""
    trained = {"a": 96.0, "b": 90.0, "c": 85.0}
    whole = [one for one in found(results({"a": 240, "b": 200, "c": 150}, trained)) if one.score == "knn"]
    assert whole[0].untrained == 0 and whole[0].regret
    (picked,) = [one for one in found(results({"a": 240, "b": 200, "c": 150, "d": 140}, trained)) if one.score == "knn"]
    assert (picked.untrained, picked.regret, picked.verdict) == (1, None, "unknown")
    assert picked.reason.startswith("1 scored backbone was not trained")
