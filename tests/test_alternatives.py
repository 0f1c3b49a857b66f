"""What is recommended needs an alternative; what a reader must know beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.analysis.rising import epochs_to_try, still_rising
from bench.report.answers import answers
from bench.report.headline import sentences
from bench.report.summary import Summary, summarise
from bench.report.tables import columns, priorities_table
from bench.store.records import Record
from bench.store.runs import RunFolder
from tests.commands import here as command
from tests.runs import RANDOM, TRUTH, record, untrained, write_run
from tests.test_headline_accuracy import ALWAYS_BEES, UNEQUAL, predicting
from tests.test_report import pages


def summary_of(folder: Path, records: list[Record], **more: Any) -> Summary:
    return summarise([write_run(folder / "r", records, **more)], "r")


def answer_of(folder: Path, records: list[Record], **more: Any) -> str:
    return answers(summary_of(folder, records, **more))[0]


def test_one_candidate_is_no_recommendation(tmp_path: Path) -> None:
    """Controls and random weights are no alternative to it."""
    done = [record("timm:a", "frozen"), untrained("timm:a"), record("timm:b", "frozen", weights=RANDOM)]
    summary = summary_of(tmp_path, done)
    assert summary.choices == () and priorities_table(summary).empty
    assert sentences(summary)[0].startswith("Nothing is recommended yet: a, frozen has nothing to compare with")
    assert answers(summary)[0] == (
        "Nothing is recommended yet: only timm:a, frozen has an accuracy, 95.0% (88.8–97.8), and nothing to compare it "
        "with; always answering 'ants', the largest class, has 50.0%. Not considered (no pretrained weights here): "
        "timm:b."
    )
    two = answer_of(tmp_path / "two", [record("timm:a", "frozen"), record("timm:a", "finetune", right=80)])
    assert two.startswith("Use timm:a, frozen")


def test_nothing_is_recommended_while_others_have_no_result(tmp_path: Path) -> None:
    """They are named, four of them; seeds that are missing are not candidates."""
    done = [record("timm:a", "frozen"), record("timm:b", "frozen", right=90)]
    waiting = [record(f"timm:w{number}", "frozen").cell for number in range(6)]
    said = answer_of(tmp_path, done, missing=waiting)
    assert said.startswith(
        "Nothing is recommended yet: 6 of the combinations have no result yet: timm:w0, frozen; timm:w1, frozen; "
        "timm:w2, frozen; timm:w3, frozen and 2 more. The most accurate so far is timm:a, frozen: accuracy after the "
        "last epoch 95.0% (88.8–97.8)"
    )
    seeds = answer_of(tmp_path / "seeds", done, missing=[record("timm:a", "frozen", seed=1).cell])
    assert seeds.startswith("Use timm:a, frozen")
    controls = answer_of(tmp_path / "controls", done, missing=[record("timm:a", "scratch").cell])
    assert controls.startswith("Use timm:a, frozen")


def test_what_ended_without_a_result_is_named_and_waits_for_nothing(tmp_path: Path) -> None:
    done = [record("timm:a", "frozen"), record("timm:b", "frozen", right=90)]
    said = answer_of(tmp_path, [*done, record("timm:c", "frozen", status="oom")])
    assert said.startswith("Use timm:a, frozen")
    assert said.endswith("Not considered (no result): timm:c, frozen (oom).")
    one = answer_of(tmp_path / "one", [done[0], record("timm:c", "frozen", status="oom")])
    assert one.startswith("Nothing is recommended yet: only timm:a, frozen")
    assert one.endswith("Without a result: timm:c, frozen (oom).")


def test_cells_of_an_earlier_command_are_not_waited_for(tmp_path: Path) -> None:
    """A later command left them out; they are named as not run."""
    done = [record("timm:a", "frozen"), record("timm:b", "frozen", right=90)]
    run = write_run(tmp_path / "r", done, missing=[record("timm:c", "frozen").cell])
    manifest = run.manifest()
    later = manifest.invocations[0].replace(cell_ids=tuple(one.cell_id for one in done))
    run.write_manifest(manifest.replace(invocations=(*manifest.invocations, later)))
    said = answers(summarise([run], "r"))[0]
    assert said.startswith("Use timm:a, frozen") and said.endswith("(no result): timm:c, frozen (not run).")


def test_devices_decide_apart(tmp_path: Path) -> None:
    """One that has its results gets its answer, another waits."""

    def on(device: str, one: Record) -> Record:
        assert one.result is not None
        cell = one.cell.replace(device=device)
        return one.replace(cell=cell, cell_id=cell.id, result=one.result.replace(device=device))

    done = [record("timm:a", "frozen"), record("timm:b", "frozen", right=90)]
    other = on("cuda:0", record("timm:a", "frozen"))
    summary = summary_of(tmp_path, [*done, other])
    first, second, *_ = answers(summary)
    assert first.startswith("On cpu: use timm:a") and second.startswith("On cuda:0: nothing is recommended yet: only")


def test_every_place_shows_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", [record("timm:a", "frozen")])
    shown = " ".join(command("show", str(run.folder)).stdout.split())
    for text in (*pages(run, tmp_path), shown):
        assert "Nothing is recommended yet: only timm:a, frozen has an accuracy" in text.replace("&#39;", "'")


def curve(one: Record, losses: list[float], accuracies: list[float]) -> Record:
    """The record with these validation losses and accuracies, epoch by epoch."""
    assert one.result is not None
    rows = tuple(
        row.replace(val_loss=loss, val_accuracy=rate)
        for row, loss, rate in zip(one.result.epochs, losses, accuracies, strict=True)
    )
    best = one.result.last.replace(epoch=accuracies.index(max(accuracies)))
    return one.replace(result=one.result.replace(epochs=rows, best=best))


RISING = ([0.9, 0.7, 0.6, 0.5], [0.7, 0.8, 0.9, 0.95])
FLAT = ([0.9, 0.7, 0.5, 0.5], [0.7, 0.8, 0.9, 0.95])
EARLY = ([0.9, 0.7, 0.6, 0.5], [0.7, 0.95, 0.9, 0.95])


@pytest.mark.parametrize(
    ("curves", "rising"),
    [
        ([RISING], True),
        ([FLAT], False),
        ([EARLY], False),
        ([RISING, RISING, FLAT], True),
        ([RISING, FLAT], False),
        ([([0.9, 0.7, 0.504, 0.5], RISING[1])], False),
    ],
    ids=[
        "rising",
        "the loss no longer falls",
        "best early",
        "most seeds",
        "half of the seeds",
        "falls by less than 1%",
    ],
)
def test_a_curve_that_ends_too_early(tmp_path: Path, curves: list[Any], rising: bool) -> None:
    records = [curve(record("timm:a", "frozen", seed=seed), *each) for seed, each in enumerate(curves)]
    summary = summary_of(tmp_path, [*records, record("timm:b", "frozen", right=80)])
    (group,) = [one for one in summary.groups if one.config.backbone == "timm:a"]
    assert still_rising(group) is rising and epochs_to_try(group) == 8
    notes = [note for note in summary.notes if "still rising" in note]
    assert len(notes) == rising
    if rising:
        assert notes[0].startswith("accuracy was still rising at the last epoch with a, frozen: ")
        assert notes[0].endswith("`--epochs 8` would show where it ends")
    assert ("try `--epochs 8`" in answers(summary)[0]) is rising


def test_too_few_epochs_and_no_training_say_nothing(tmp_path: Path) -> None:
    two = curve(record("timm:a", "frozen", epochs=2), [0.9, 0.5], [0.5, 0.95])
    summary = summary_of(tmp_path, [two, untrained("timm:b"), record("timm:c", "frozen")])
    assert not any(still_rising(group) for group in summary.groups)


def test_a_recommended_combination_that_answers_one_class_says_so(tmp_path: Path) -> None:
    """One of its seeds does, though the mean is above the largest class."""
    good = [0, 0, 0, 0, 0, *[1] * 95]
    records = [predicting("timm:a", good, seed=0), predicting("timm:a", ALWAYS_BEES, seed=1)]
    records.append(predicting("timm:b", ALWAYS_BEES))
    said = answer_of(tmp_path, records, truth=UNEQUAL)
    assert said.startswith("Use timm:a, frozen")
    assert "It predicts 'bees' for every image with 1 of 2 seeds." in said


def test_unequal_classes_have_more_columns(tmp_path: Path) -> None:
    """Balanced accuracy and macro-F1 stand beside the accuracy, in pages and in a terminal; else they don't."""

    def run_of(name: str, truth: tuple[int, ...]) -> RunFolder:
        labels = [1 - truth[0], *truth[1:]]
        records = [predicting("timm:a", labels, truth), predicting("timm:b", [1] * 100, truth)]
        return write_run(tmp_path / name, records, truth=truth)

    unequal, equal = run_of("unequal", UNEQUAL), run_of("equal", TRUTH)
    headings = [column.heading for column in columns(summarise([unequal], "x"))]
    place = headings.index("last accuracy")
    assert headings[place + 1 : place + 3] == ["balanced accuracy", "macro-F1"]
    assert "macro-F1" not in [column.heading for column in columns(summarise([equal], "x"))]
    markdown = pages(unequal, tmp_path)[0]
    row = next(line for line in markdown.splitlines() if line.startswith("| timm:a"))
    assert "90.0%" in row, "four of five ants and all bees: their mean"
    note = "Classes have unequal numbers of images, so look at balanced accuracy"
    assert note in markdown and note not in pages(equal, tmp_path)[0]
    shown = command("show", str(unequal.folder)).stdout
    assert "balanced" in shown


def test_three_equal_classes_are_not_unequal(tmp_path: Path) -> None:
    """The limit is 1.5 times an equal share, of as many classes as there are."""
    classes = ("a", "b", "c")

    def unequal(*counts: int) -> bool:
        truth = tuple(label for label, count in enumerate(counts) for _ in range(count))
        name = "-".join(map(str, counts))
        one = record("timm:a", "frozen", classes=classes)
        run = write_run(tmp_path / name, [predicting_of(one, truth)], classes=classes, truth=truth)
        return summarise([run], name).unequal_classes

    assert [unequal(5, 3, 2), unequal(6, 2, 2)] == [False, True]


def predicting_of(one: Record, labels: tuple[int, ...]) -> Record:
    """The record with these predictions."""
    assert one.result is not None
    said = one.result.last.replace(labels=list(labels), confidences=[0.9] * len(labels))
    rows = tuple(row.replace(val_accuracy=1.0) for row in one.result.epochs)
    return one.replace(result=one.result.replace(best=said.replace(epoch=0), last=said, epochs=rows))
