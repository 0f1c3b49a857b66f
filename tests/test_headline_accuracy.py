"""The accuracy that is recommended and tested: that after the last epoch, beside that of the largest class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import bench
from bench.analysis.claims import CLAIMS
from bench.analysis.groups import make_groups
from bench.analysis.metrics import RATED_BY
from bench.analysis.recommend import nothing_beats, recommend
from bench.analysis.scores import largest_class
from bench.analysis.verdicts import decide_claims
from bench.report.answers import answers
from bench.report.headline import sentences
from bench.report.index import write_index
from bench.report.summary import summarise
from bench.store.records import Record
from bench.store.runs import RunFolder
from bench.sweep.progress import _end_text
from tests.commands import ONE_CELL
from tests.commands import here as command
from tests.images import write_folder
from tests.runs import RANDOM, TRUTH, record, untrained, write_run
from tests.test_report import pages

UNEQUAL = (0,) * 5 + (1,) * 95
"""Labels of which 95% are of one class, `bees`."""


def predicting(backbone: str, labels: list[int], truth: tuple[int, ...] = UNEQUAL, **given: Any) -> Record:
    """A record with these predictions after every epoch."""
    one = record(backbone, given.pop("regime", "frozen"), **given)
    assert one.result is not None
    said = one.result.last.replace(labels=labels)
    rate = sum(a == b for a, b in zip(labels, truth, strict=True)) / len(truth)
    rows = tuple(row.replace(val_accuracy=rate) for row in one.result.epochs)
    return one.replace(result=one.result.replace(best=said.replace(epoch=0), last=said, epochs=rows))


def run_of(folder: Path, records: list[Record], truth: tuple[int, ...] = UNEQUAL) -> RunFolder:
    return write_run(folder, records, truth=truth)


def lucky(backbone: str, regime: str = "frozen", *, best: int, last: int, **given: Any) -> Record:
    """A record whose first epoch has `best` of 100 images right, and whose last has `last`."""
    one, other = record(backbone, regime, right=best, **given), record(backbone, regime, right=last, **given)
    assert one.result is not None and other.result is not None
    rows = (one.result.epochs[0], *other.result.epochs[1:])
    return one.replace(result=one.result.replace(epochs=rows, last=other.result.last))


ALWAYS_BEES, SKILLED = [1] * 100, [0, 0, 0, 1, 1, *[1] * 95]


@pytest.mark.parametrize(
    ("truth", "found"), [((1, 1, 0), (1, 2 / 3)), ((0, 1), (0, 0.5)), ((2, 1, 2, 1), (1, 0.5)), (UNEQUAL, (1, 0.95))]
)
def test_the_largest_class(truth: tuple[int, ...], found: tuple[int, float]) -> None:
    """It is the first of several with as many images."""
    assert largest_class(truth) == found


def test_one_class_for_all_images_is_not_recommended(tmp_path: Path) -> None:
    """95% of such images take no network: the answer says so, and what the most accurate one predicts."""
    run = run_of(tmp_path / "r", [predicting("timm:a", ALWAYS_BEES), predicting("timm:b", [1] * 99 + [0])])
    summary = summarise([run], "r")
    assert summary.choices == ()
    (answer,) = answers(summary)
    assert answer == (
        "Nothing is recommended: nothing beats always answering 'bees', the largest class, which is right for "
        "95.0% of the validation images. The most accurate, timm:a, frozen, has accuracy after the last epoch 95.0% "
        "(88.8–97.8): it predicts 'bees' for every image."
    )
    (text,) = sentences(summary)
    assert text.startswith("Nothing beats always answering 'bees'") and text.endswith(", with 95.0%")
    shown = " ".join(command("show", str(run.folder)).stdout.split())
    for text in (*pages(run, tmp_path), shown):
        plain = text.replace("&#39;", "'").replace("&#x27;", "'")
        assert "Use timm" not in plain and "nothing beats always answering 'bees'" in plain
        assert "timm:a frozen cpu seed 0 predicts 'bees' for every image" in plain
    assert "always answering" in write_index([run], tmp_path / "reports").read_text()


def test_a_backbone_that_beats_the_largest_class_is_recommended_beside_its_rate(tmp_path: Path) -> None:
    """Others are named as not considered, though they are cheaper and no test tells them apart."""
    records = [predicting("timm:a", SKILLED, seconds=20), predicting("timm:b", ALWAYS_BEES, seconds=1)]
    summary = summarise([run_of(tmp_path / "r", records)], "r")
    (choice,) = summary.choices
    assert choice.pick.config.backbone == "timm:a" and summary.nothing_beats == ()
    assert all(g.config.backbone == "timm:a" for priority in choice.priorities for g in priority.groups)
    (answer,) = answers(summary)
    assert answer.startswith(
        "Use timm:a, frozen: accuracy after the last epoch 98.0% (93.0–99.4), 20 s per epoch. Always answering 'bees', "
        "the largest class, has 95.0%."
    )
    assert "Not considered (not above the largest class): timm:b, frozen." in answer


def test_several_seeds_of_a_constant_do_not_round_above_it() -> None:
    """Their mean is exactly the rate."""
    records = [("r", predicting("timm:a", ALWAYS_BEES, seed=seed)) for seed in range(7)]
    groups = make_groups(records, {"r": UNEQUAL})
    assert recommend(groups) == [] and len(nothing_beats(groups)) == 1


def test_random_weights_are_no_case_of_it() -> None:
    """Their accuracy says nothing, so nothing is said of it."""
    groups = make_groups([("r", predicting("timm:a", ALWAYS_BEES, weights=RANDOM))], {"r": UNEQUAL})
    assert recommend(groups) == nothing_beats(groups) == []


def test_the_rate_stands_with_every_table_and_in_exports(tmp_path: Path) -> None:
    """Once below a table; as a column of exports, with the class that a cell predicts for all images."""
    run = run_of(tmp_path / "r", [predicting("timm:a", SKILLED), predicting("timm:b", ALWAYS_BEES)])
    note = "Always answering 'bees', the largest class, is right for 95.0% of the validation images."
    for page in pages(run, tmp_path):
        assert note in page.replace("&#39;", "'").replace("&#x27;", "'")
    assert note in " ".join(command("show", str(run.folder)).stdout.split())
    table = bench.load_results(run.folder).set_index("backbone")
    assert list(table["largest_class_rate"]) == [0.95, 0.95]
    assert pd.isna(table["constant_prediction"]["timm:a"]) and table["constant_prediction"]["timm:b"] == "bees"
    other = run_of(tmp_path / "other", [predicting("timm:a", SKILLED, TRUTH)], truth=TRUTH)
    markdown = pages(run, tmp_path)[0]
    assert markdown.count("'bees' for every image") == 1
    both = summarise([run, other], "both")
    assert "r: 'bees' 95.0%; other: 'ants' 50.0%" in pages_of(both, tmp_path)


def pages_of(summary: Any, folder: Path) -> str:
    from bench.report.write import write_report

    return write_report(summary, folder / "reports")[0].read_text()


def test_a_sweep_says_it_at_both_ends(tmp_path: Path) -> None:
    """The rate stands beside the number of images, and a cell's last line says that it predicts one class."""
    folder = write_folder(tmp_path / "set", ("ants", "bees"), train=4, val=2)
    for extra in range(6):
        image = next((folder / "val" / "bees").iterdir())
        (image.parent / f"more{extra}{image.suffix}").write_bytes(image.read_bytes() + bytes(extra + 1))
    Path("one.toml").write_text(ONE_CELL + "[train]\nepochs = 1\nlearning_rate = 1e30\n")
    done = command("run", "--grid", "one.toml", "--data", str(folder), "--weights", "random", "--no-report")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the largest class, 'bees', has 80.0% of the evaluated images)" in done.stdout
    assert "predicts 'bees' for every image" in done.stdout or "predicts 'ants' for every image" in done.stdout


def test_the_last_epoch_is_recommended_not_the_luckiest(tmp_path: Path) -> None:
    """A best epoch of 99 of 100 was chosen on the images it is judged on; after the last epoch, 80 are right."""
    records = [lucky("timm:a", best=99, last=80), lucky("timm:b", best=96, last=96)]
    run = write_run(tmp_path / "r", records)
    summary = summarise([run], "r")
    (choice,) = summary.choices
    assert choice.best.config.backbone == choice.pick.config.backbone == "timm:b"
    assert answers(summary)[0].startswith("Use timm:b, frozen: accuracy after the last epoch 96.0% (90.2–98.4), 10 s")
    assert sentences(summary)[0].startswith("Train only the head of b: 96.0% in ")
    assert RATED_BY == "val_accuracy_last"
    markdown, _ = pages(run, tmp_path)
    assert "99.0%" in markdown, "the tutorial's figure stays in the table"
    assert "best accuracy" in markdown and "optimistic: the best epoch was picked on the same images" in markdown
    assert (
        _end_text(records[0]) == "done in 41 s: accuracy 80.0% after the last epoch, 10 s per epoch, 10 MiB of memory"
    )
    assert _end_text(untrained("timm:a")) == "done in 4 s: accuracy 95.0%, 10 MiB of memory"


def test_no_worse_is_tested_after_the_last_epoch() -> None:
    """The head alone is as good at its best epoch, but loses 20 points by the last: the claim doesn't hold."""
    records = [
        ("r", lucky("timm:a", regime, best=95, last=last, seed=seed))
        for regime, last in (("finetune", 95), ("frozen", 75))
        for seed in range(3)
    ]
    (finding,) = decide_claims({"r": [CLAIMS["no-worse"]]}, make_groups(records, {"r": TRUTH}))
    assert finding.verdict == "below" and finding.estimate is not None
    assert finding.estimate.value == pytest.approx(-0.2)
    assert CLAIMS["transfer-helps"].metric == "val_accuracy_last"


def test_a_claim_of_a_grid_keeps_its_metric() -> None:
    """One that names the best accuracy is tested on that."""
    own = CLAIMS["no-worse"].replace(name="own", metric="val_accuracy_best")
    records = [
        ("r", lucky("timm:a", regime, best=95, last=last, seed=seed))
        for regime, last in (("finetune", 95), ("frozen", 75))
        for seed in range(3)
    ]
    (finding,) = decide_claims({"r": [own]}, make_groups(records, {"r": TRUTH}))
    assert finding.estimate is not None and finding.estimate.value == pytest.approx(0.0)
