"""Tests the contents of reports, and that names from data are escaped."""

from __future__ import annotations

import html
import math
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.analysis.metrics import METRICS
from bench.report.answers import answers
from bench.report.figures import _boxes_told, draw
from bench.report.pages import with_code
from bench.report.palette import colours
from bench.report.summary import summarise
from bench.report.terminal import lines_without_result
from bench.report.without import without_result
from bench.report.write import write_report
from bench.store.runs import RunFolder, find_runs
from tests.runs import RANDOM, judged, record, untrained, write_run
from tl.errors import UserError
from tl.regimes import REGIMES


def test_commands_in_the_answer_are_code() -> None:
    """Backticks become code, and names from data are escaped."""
    assert str(with_code("use `--seeds 3` on <b>")) == "use <code>--seeds 3</code> on &lt;b&gt;"


def test_no_two_regimes_have_the_same_colour() -> None:
    """Nor similar ones, in red, green and blue from 0 to 1."""
    found = [[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in colours().values()]
    apart = [math.dist(one, other) for place, one in enumerate(found) for other in found[:place]]
    assert len(found) == len(REGIMES) > 10 and min(apart) > 0.09


def pages(run: RunFolder, tmp_path: Path) -> tuple[str, str]:
    markdown, page = write_report(summarise([run], run.name), tmp_path / "reports")
    return markdown.read_text(), page.read_text()


def test_speed_up_memory_and_accuracy_against_fine_tuning(tmp_path: Path) -> None:
    """Known times, memory and accuracies give the right ratio, share and difference."""
    run = write_run(
        tmp_path / "r",
        [
            *(record("timm:a", "finetune", seconds=20 + s / 10, right=96, seed=s) for s in range(3)),
            *(record("timm:a", "frozen", seconds=10, right=94, frozen=True, seed=s) for s in range(3)),
        ],
    )
    (comparison,) = summarise([run], "r").speed_ups
    assert comparison.speed_up is not None and comparison.training is not None
    assert comparison.speed_up.value == pytest.approx(2.01, abs=0.01)
    assert comparison.training.value == pytest.approx(2.01, abs=0.01)
    assert comparison.finding.words == "supported"
    markdown, page = pages(run, tmp_path)
    assert "10 MiB (50%)" in markdown and "-2.0 points (p = 0.31)" in markdown and "| supported" in markdown
    assert "half-the-time`: 1.60× to 2.50×" in markdown and "supported. 1 comparison: 1 supported" in markdown
    assert "verified" in page


def test_one_seed_has_no_interval_and_no_verdict(tmp_path: Path) -> None:
    """Epochs of one seed don't show the scatter between runs. The report says how to get a verdict."""
    records = [record("timm:a", "finetune", seconds=20), record("timm:a", "frozen", seconds=5)]
    markdown, _ = pages(write_run(tmp_path / "r", records), tmp_path)
    assert "4.00× (1 of 3 seeds)" in markdown and "1 with too few samples" in markdown
    assert "more `--pairs`" in markdown.splitlines()[3]


def test_accuracy_is_not_given_away_because_nothing_is_proven(tmp_path: Path) -> None:
    """What is faster and only tied is a second answer with its price. A clearly less accurate one is none."""
    records = [
        record(
            f"timm:{name}", regime, seconds=seconds, right=right, seed=seed, frozen=True if regime == "frozen" else None
        )
        for seed in range(3)
        for name, regime, seconds, right in (
            ("best", "finetune", 30, 97),
            ("close", "frozen", 6, 96),
            ("quick", "frozen", 1, 60),
        )
    ]
    run = write_run(tmp_path / "r", records)
    (choice,) = summarise([run], "r").choices
    assert (choice.best.config.backbone, choice.pick, choice.tied) == ("timm:best", choice.best, 1)
    assert choice.cheaper is not None and choice.cheaper.group.config.backbone == "timm:close"
    answer = pages(run, tmp_path)[0].splitlines()[2]
    assert answer.startswith("- Use timm:best, finetune")
    assert "Faster, and perhaps as accurate: timm:close, frozen, 96.0%" in answer
    assert "it is 1.0 points less accurate (-" in answer and "not shown to be at most 2." in answer


def test_what_is_shown_to_be_about_as_accurate_and_faster_is_the_answer(tmp_path: Path) -> None:
    """On many images a difference of half a point is known to be below two."""
    truth = (0, 1) * 1000
    records = []
    for seed in range(3):
        for name, seconds, right in (("best", 30, 1950), ("close", 6, 1940), ("less", 3, 1900)):
            records.append(judged(record(f"timm:{name}", "frozen", seconds=seconds, seed=seed), right, truth))
    run = write_run(tmp_path / "r", records, truth=truth)
    (choice,) = summarise([run], "r").choices
    assert (choice.best.config.backbone, choice.pick.config.backbone) == ("timm:best", "timm:close")
    assert choice.cheaper is None, "2.5 points less is no tie on 2,000 images"
    (answer,) = answers(summarise([run], "r"))[:1]
    assert "The most accurate is timm:best, frozen with 97.5%" in answer
    assert "it is shown to be at most 2 points ahead, and takes 5× as long" in answer


@pytest.mark.parametrize("seeds", [1, 3, 6, 8])
def test_a_clear_loser_never_wins_by_speed(tmp_path: Path, seeds: int) -> None:
    """60% and 97% are distinguished with any number of seeds and groups."""
    records = [
        record(f"timm:{name}", "frozen", seconds=seconds, right=right - seed % 2, seed=seed)
        for seed in range(seeds)
        for name, seconds, right in [("best", 30, 97), ("quick", 1, 60), *((f"other{i}", 40, 96) for i in range(6))]
    ]
    (choice,) = summarise([write_run(tmp_path / "r", records)], "r").choices
    assert choice.pick.config.backbone == "timm:best"


def test_groups_without_a_seed_in_common_are_tied(tmp_path: Path) -> None:
    """The slower one is the answer, and the other one is not called worse."""
    records = [record("timm:best", "frozen", seconds=30, right=97), record("timm:quick", "frozen", right=96, seed=1)]
    (choice,) = summarise([write_run(tmp_path / "r", records)], "r").choices
    assert (choice.pick.config.backbone, choice.tied) == ("timm:best", 1)
    assert choice.cheaper is not None and choice.cheaper.group.config.backbone == "timm:quick"
    assert "3 seeds of both would say how much less accurate it is" in pages(RunFolder(tmp_path / "r"), tmp_path)[0]


def test_random_weights_have_no_accuracy_anywhere(tmp_path: Path) -> None:
    """Accuracy is n/a, with the reason, and the cell is never chosen. `scratch` keeps its accuracy."""
    records = [
        record("timm:a", "finetune", weights=RANDOM, right=21),
        record("timm:a", "frozen", weights=RANDOM, right=22),
        record("timm:a", "scratch", weights=RANDOM, right=93),
    ]
    run = write_run(tmp_path / "r", records)
    for page in pages(run, tmp_path):
        assert "21.0%" not in page and "22.0%" not in page and "93.0%" in page
        assert "n/a" in page and "the moon is in the way" in page
    assert summarise([run], "r").choices == ()


def test_controls_are_marked_and_never_the_answer(tmp_path: Path) -> None:
    """Even the most accurate controls are only in the table, with a note, and in no comparison."""
    records = [
        record("timm:a", "finetune", seconds=20, right=92),
        record("timm:a", "frozen", seconds=10, right=91, frozen=True),
        record("timm:a", "scratch", seconds=1, right=100, weights=RANDOM),
        untrained("timm:a", right=99),
    ]
    run = write_run(tmp_path / "r", records)
    summary = summarise([run], "r")
    (choice,) = summary.choices
    assert choice.best.config.regime == choice.pick.config.regime == "finetune"
    assert choice.cheaper is not None and choice.cheaper.group.config.regime == "frozen"
    assert choice.tied == 1, "controls are not counted as tied"
    assert [c.fast.config.regime for c in summary.speed_ups] == ["frozen"]
    for page in pages(run, tmp_path):
        assert "zeroshot (control)" in page and "scratch (control)" in page and "finetune (control)" not in page
        assert page.count("Controls are yardsticks") == 1 and REGIMES["zeroshot"].summary in html.unescape(page)
    row = next(line for line in pages(run, tmp_path)[0].splitlines() if "zeroshot (control)" in line)
    shown = [cell.strip() for cell in row.split("|")][1:-1]
    expected = ["99.0%", "99.0% (94.6–99.8)", "n/a", "n/a", "n/a", "10", "0", "0.00", "verified"]
    assert shown[4:] == expected


def test_without_controls_there_is_no_note_on_them(tmp_path: Path) -> None:
    """With controls only, the report says that there is nothing to recommend."""
    plain = pages(write_run(tmp_path / "plain", [record("timm:a", "finetune")]), tmp_path)
    assert not any("yardsticks" in page for page in plain)
    only = pages(write_run(tmp_path / "only", [untrained("timm:a")]), tmp_path)
    assert all("there is nothing to recommend" in page and "Use timm" not in page for page in only)


def test_skipped_cells_are_shown_with_their_reason(tmp_path: Path) -> None:
    """They are listed with other cells without a result, but not marked as bad."""
    run = write_run(tmp_path / "r", [record("timm:a", "finetune"), record("timm:a", "zeroshot", status="skipped")])
    markdown, page = pages(run, tmp_path)
    assert r"- **skipped** timm:a zeroshot cpu seed 0: took \| too" in markdown
    assert "<strong>skipped</strong> timm:a zeroshot cpu seed 0: took" in page and 'class="bad">skipped' not in page


def test_failed_and_missing_cells_are_shown(tmp_path: Path) -> None:
    """They have a status and a reason. Cells that never ran are listed too."""
    done, late = record("timm:a", "finetune"), record("timm:a", "frozen", status="timeout")
    run = write_run(tmp_path / "r", [done, late, record("timm:b", "frozen")])
    (run.folder / "cells" / f"{record('timm:b', 'frozen').cell_id}.json").unlink()
    markdown, page = pages(run, tmp_path)
    for text in (markdown, page):
        assert "timeout" in text and "not run yet" in text and "timm:b frozen cpu seed 0" in text
    assert summarise([run], "r").speed_ups == ()


def test_what_ended_alike_is_listed_once(tmp_path: Path) -> None:
    """Seeds of a cell, and cells, with one status and reason, whatever the figures in it. Others stand apart."""
    records = [
        record("timm:a", "finetune"),
        *(
            record("timm:a", "frozen", seed=seed, status="oom").replace(reason=f"needs 1.{seed} GiB")
            for seed in (1, 2, 5)
        ),
        record("timm:b", "frozen", status="oom").replace(reason="needs 12.25 GiB"),
        record("timm:a", "frozen", seed=7, status="oom").replace(reason="no room"),
        *(
            record("timm:e", "frozen", seed=seed, status="failed").replace(reason=f"it ended with exit status {code}")
            for seed, code in ((0, 1), (1, 137))
        ),
        *(record("timm:c", "frozen", seed=seed, status="skipped").replace(reason="no such layer") for seed in range(4)),
    ]
    run = write_run(tmp_path / "r", records, missing=[record("timm:d", "frozen", seed=3).cell])
    said = [(one.status, one.names, one.reason, one.bad) for one in without_result(summarise([run], "r"))]
    assert sorted(said) == sorted(
        [
            ("oom", ("timm:a frozen cpu seeds 1, 2 and 5", "timm:b frozen cpu seed 0"), "such as: needs 1.1 GiB", True),
            ("oom", ("timm:a frozen cpu seed 7",), "no room", True),
            ("failed", ("timm:e frozen cpu seed 0",), "it ended with exit status 1", True),
            ("failed", ("timm:e frozen cpu seed 1",), "it ended with exit status 137", True),
            ("skipped", ("timm:c frozen cpu seeds 0–3",), "no such layer", False),
            ("not run yet", ("timm:d frozen cpu seed 3",), "", True),
        ]
    )
    lines = [text for text, _ in lines_without_result(summarise([run], "r"))]
    assert "oom: timm:a frozen cpu seeds 1, 2 and 5; timm:b frozen cpu seed 0: such as: needs 1.1 GiB" in lines
    assert len(lines) == 5, "each reason has its line, and what was not run yet none"
    for page in pages(run, tmp_path):
        assert page.count("timm:b frozen cpu seed 0") == page.count("seeds 0–3") == 1 and "seeds 1, 2 and 5" in page


def test_a_backbone_that_changed_is_reported_at_the_top(tmp_path: Path) -> None:
    """A frozen cell whose backbone changed has a warning before the results."""
    run = write_run(tmp_path / "r", [record("timm:a", "frozen", frozen=False)])
    for page in pages(run, tmp_path):
        assert page.index("Not frozen") < page.index("Results") and "NOT FROZEN" in page


def test_several_seeds_are_mean_and_standard_deviation(tmp_path: Path) -> None:
    """The table has the number of seeds."""
    run = write_run(tmp_path / "r", [record("timm:a", "frozen", seed=s, right=r) for s, r in ((0, 90), (1, 94))])
    markdown, _ = pages(run, tmp_path)
    row = next(line for line in markdown.splitlines() if line.startswith("| timm:a"))
    assert "92.0% ± 2.8 (sd, n = 2)" in row and re.search(r"\| 2 +\|", row)


def test_every_seed_counts_for_frozen(tmp_path: Path) -> None:
    """One seed with a changed backbone is enough for NOT FROZEN."""
    seeds = [record("timm:a", "frozen", seed=0, frozen=True), record("timm:a", "frozen", seed=1, frozen=False)]
    assert "NOT FROZEN" in pages(write_run(tmp_path / "r", seeds), tmp_path)[0]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.scripts = 0
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag in ("script", "b")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_names_from_data_are_text(tmp_path: Path) -> None:
    """Markup in classes, reasons and names of runs has no effect."""
    classes = ("<script>alert(1)</script>", "a|b")
    records = [record("timm:a", "frozen", classes=classes), record("timm:a", "finetune", status="failed")]
    run = write_run(tmp_path / "<b>r", records, classes=classes, fallback="synthetic <b>images</b>")
    markdown, page = pages(run, tmp_path)
    assert "<script>" not in markdown and "<b>" not in re.sub(r"`[^`]*`", "", markdown)
    tags = _Tags()
    tags.feed(page)
    assert tags.scripts == 2, "the page's data and its own script"
    assert "&lt;script&gt;alert(1)" in page


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    """The page fetches nothing: all addresses are anchors within it. Pictures of the Markdown are files next to it."""
    run = write_run(tmp_path / "r", [record("timm:a", r, seconds=s) for r, s in (("finetune", 20), ("frozen", 10))])
    markdown, page = pages(run, tmp_path)
    tags = _Tags()
    tags.feed(page)
    assert all(address.startswith("#") for address in tags.addresses)
    assert "url(http" not in page and "@import" not in page
    pictures = re.findall(r"\]\((\S+?\.png)\)", markdown)
    assert len(pictures) == 11 and page.count("<svg") == 10, "the page's matrix is a table"
    assert all((tmp_path / "reports" / name).with_suffix(".svg").is_file() for name in pictures)
    assert all((tmp_path / "reports" / name).is_file() for name in pictures)


def test_a_report_is_the_same_every_time(tmp_path: Path) -> None:
    """It is equal byte for byte, so that a committed report changes only with its records."""
    run = write_run(tmp_path / "r", [record("timm:a", r, seconds=s) for r, s in (("finetune", 20), ("frozen", 10))])
    assert pages(run, tmp_path) == pages(run, tmp_path)


def test_figures_for_a_paper(tmp_path: Path) -> None:
    """Each is a PDF file with its fonts, the same every time; a report without them leaves none that is out of date."""
    run = write_run(tmp_path / "r", [record("timm:a", r, seconds=s) for r, s in (("finetune", 20), ("frozen", 10))])
    summary, folder = summarise([run], "r"), tmp_path / "reports" / "r"

    def papers() -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in folder.glob("*.pdf")}

    write_report(summary, tmp_path / "reports", pdf=True)
    first = papers()
    assert first.keys() == {path.stem for path in folder.glob("*.svg")} and len(first) > 5
    for content in first.values():
        assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF") and b"/FontFile2" in content
    write_report(summary, tmp_path / "reports", pdf=True)
    assert papers() == first
    write_report(summary, tmp_path / "reports")
    assert papers() == {} and list(folder.glob("*.svg"))


def test_only_seeds_are_pooled(tmp_path: Path) -> None:
    """Cells that differ in epochs or weights have separate rows with different names."""
    records = [
        *(record("timm:a", regime, seconds=s) for regime, s in (("finetune", 20), ("frozen", 10))),
        record("timm:a", "frozen", seconds=3, epochs=9),
        record("timm:a", "frozen", seconds=5, weights=RANDOM),
    ]
    run = write_run(tmp_path / "r", records)
    summary = summarise([run], "r")
    assert len(summary.groups) == 4
    assert len(summary.speed_ups) == 1, "only what is equal in all but the regime is compared"
    assert len({summary.short(group) for group in summary.groups if group.config.regime == "frozen"}) == 3
    header = next(line for line in pages(run, tmp_path)[0].splitlines() if line.startswith("| backbone"))
    assert "| epochs" in header


def test_runs_of_one_name_are_distinguished(tmp_path: Path) -> None:
    """They are named by their paths. A run that is given twice is refused, since its cells would count twice."""
    for place, right in (("here", 90), ("there", 94)):
        write_run(tmp_path / place / "r", [record("timm:a", "frozen", right=right)])
    runs = find_runs([tmp_path / "here" / "r", tmp_path / "there" / "r"])
    summary = summarise(runs, "both")
    assert [len(group.records) for group in summary.groups] == [1, 1]
    assert len({group.run for group in summary.groups}) == 2
    with pytest.raises(UserError, match="named twice"):
        find_runs([tmp_path / "here" / "r", tmp_path / "there" / ".." / "here" / "r"])


def test_backbones_of_one_name_are_distinguished(tmp_path: Path) -> None:
    """Otherwise a figure would average torchvision's network with timm's."""
    records = [record("timm:a", "frozen"), record("torchvision:a", "frozen"), record("timm:b", "frozen")]
    summary = summarise([write_run(tmp_path / "r", records)], "r")
    assert [summary.short(group) for group in summary.groups] == ["timm:a", "torchvision:a", "b"]


def test_a_head_that_is_slower_than_fine_tuning_is_in_the_figure(tmp_path: Path) -> None:
    """The axis includes ratios below 1."""
    from bench.report.figures import _speed_up

    records = [record("timm:a", "finetune", seconds=10), record("timm:a", "frozen", seconds=20)]
    figure = _speed_up(summarise([write_run(tmp_path / "r", records)], "r"))
    assert figure is not None and figure.axes[0].get_xlim()[0] < 0.5


def test_p_values_are_adjusted_over_all_comparisons(tmp_path: Path) -> None:
    """With twice as many comparisons, the smallest p-value doubles (Holm)."""

    def smallest(backbones: str) -> float:
        records = [
            record(f"timm:{name}", regime, right=right)
            for name in backbones
            for regime, right in (("finetune", 95), ("frozen", 85))
        ]
        comparisons = summarise([write_run(tmp_path / backbones, records)], "r").speed_ups
        return min(c.accuracy_test.p for c in comparisons if c.accuracy_test)

    assert smallest("a") == pytest.approx(2 * 0.5**10)
    assert smallest("ab") == pytest.approx(2 * smallest("a"))


def test_the_machine_is_that_of_the_records(tmp_path: Path) -> None:
    """The report doesn't take it from the last command, and counts two machines as two."""
    one, other = record("timm:a", "finetune"), record("timm:a", "frozen")
    other = other.replace(environment=other.environment.replace(cpu="another processor"))
    for page in pages(write_run(tmp_path / "r", [one, other]), tmp_path):
        assert "another processor" in page and "2 machines" in page


def test_synthetic_images_are_named_in_the_answer(tmp_path: Path) -> None:
    """A recommendation from synthetic images says so."""
    run = write_run(tmp_path / "r", [record("timm:a", "frozen")], fallback="synthetic")
    assert "These images are synthetic" in pages(run, tmp_path)[0]


def test_a_command_cannot_leave_its_fence(tmp_path: Path) -> None:
    """A command with backticks gets a longer fence."""
    run = write_run(tmp_path / "r", [record("timm:a", "frozen")])
    manifest = run.manifest()
    evil = manifest.invocations[0].replace(command="x\n```\n<script>")
    run.write_manifest(manifest.replace(invocations=(evil,)))
    assert "````\nx\n```\n<script>\n````" in pages(run, tmp_path)[0]


def test_records_survive_being_written_again(tmp_path: Path) -> None:
    """A later attempt replaces the record and keeps all earlier ones, even if a number in between is missing."""
    run = write_run(tmp_path / "r", [record("timm:a", "frozen", status="failed")])
    failed = record("timm:a", "frozen", status="failed")
    for _ in range(2):
        run.write_record(failed)
    attic = run.folder / "superseded"
    (attic / f"{failed.cell_id}-1.json").unlink()
    run.write_record(record("timm:a", "frozen"))
    assert sorted(path.name for path in attic.iterdir()) == [f"{failed.cell_id}-{n}.json" for n in (2, 3)]
    assert run.records()[failed.cell_id].status == "done"


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_be_shown(name: str) -> None:
    """It shows integers, fractions and unknown values."""
    for value in (3, 3.5):
        assert METRICS[name].show(value)
    assert METRICS[name].show(None) == "n/a"


def test_without_a_warm_epoch_there_is_no_speed_up(tmp_path: Path) -> None:
    """The claim's verdict is unknown, and no speed-up is shown."""
    short = [
        record("timm:a", regime, seconds=seconds, epochs=1) for regime, seconds in (("finetune", 20), ("frozen", 1))
    ]
    markdown, _ = pages(write_run(tmp_path / "r", short), tmp_path)
    assert (
        "Undecided: a training of a single epoch has only a cold one. A verdict needs more `--epochs`, or" in markdown
    )
    assert "Speed-ups:" not in markdown and "speed-up.png" not in markdown


def test_a_tuned_report_says_which_rates_were_tried_and_chosen(tmp_path: Path) -> None:
    """The line of settings has the tried rates. A column has the chosen ones, which may differ by seed."""
    records = [
        record("timm:a", "finetune", protocol="tuned", rate=1e-3),
        *(record("timm:a", "frozen", seed=seed, protocol="tuned", rate=rate) for seed, rate in ((0, 1e-2), (1, 3e-3))),
    ]
    run = write_run(tmp_path / "r", records)
    for page in pages(run, tmp_path):
        assert "sgd at the best of 0.0003, 0.001, 0.003, 0.01, momentum 0.9" in page
        assert "the validation images choose nothing" in page and "244 + 100" in page
        assert (
            "of validation images that were predicted right after the last epoch" in page and "optimistic" not in page
        )
    results = pages(run, tmp_path)[0].partition("## Results")[2]
    rows = [line.split("|") for line in results.splitlines() if line.startswith("| ")]
    column = [cell.strip() for cell in rows[0]].index("learning rate")
    assert [row[column].strip() for row in rows[1:3]] == ["0.001", "0.003, 0.01"]
    plain = write_run(tmp_path / "plain", [record("timm:a", "frozen")])
    assert "learning rate" not in pages(plain, tmp_path)[0] and "tuned" not in pages(plain, tmp_path)[0]


def test_a_kfold_report_says_what_its_accuracy_is(tmp_path: Path) -> None:
    """Accuracy is over all images at the last epoch. It is not called optimistic, and there is one set of images."""
    records = [
        record("timm:a", regime, protocol="kfold", right=right) for regime, right in (("finetune", 95), ("frozen", 85))
    ]
    run = write_run(tmp_path / "r", records)
    for page in pages(run, tmp_path):
        assert "stratified 5-fold cross-validation over all images, one repeat per seed" in page
        assert "each by the network that was trained without it" in page
        assert "optimistic" not in page and "244 +" not in page
        assert "Use timm:a, finetune: 5-fold accuracy 95.0% (88.8–97.8)" in page
    assert "(100 images, 2 classes" in pages(run, tmp_path)[0]
    (comparison,) = summarise([run], "r").speed_ups
    assert comparison.accuracy_test is not None and comparison.accuracy_test.p == pytest.approx(2 * 0.5**10)


def test_a_report_of_several_protocols_explains_each_accuracy(tmp_path: Path) -> None:
    """It explains each protocol once by name, and the table has a column for it."""
    runs = [
        write_run(tmp_path / name, [record("timm:a", "frozen", protocol=name, rate=1e-3 if name == "tuned" else None)])
        for name in ("fixed", "tuned", "kfold")
    ]
    text = write_report(summarise(runs, "all"), tmp_path / "reports")[0].read_text()
    assert text.count("Accuracy (fixed) is the share of validation images") == 1
    assert text.count("Accuracy (tuned) is the share of validation images") == 1
    assert text.count("Accuracy (kfold) is the share of all images") == 1
    header = next(line for line in text.partition("## Results")[2].splitlines() if line.startswith("| run"))
    assert "| protocol" in header


def test_tuning_is_not_overhead() -> None:
    """The overhead of a cell is its wall time without training and tuning."""
    one, other = record("timm:a", "frozen"), record("timm:a", "frozen", protocol="tuned", rate=1e-3)
    assert (one.overhead_seconds, other.overhead_seconds) == (1.0, 0.5)


def test_pooled_seeds_of_different_machines_or_suites_have_a_note(tmp_path: Path) -> None:
    """The note has the number of such groups, what differs, and an example. Without such groups there is none."""
    old, new = (record("timm:a", "frozen", seed=seed) for seed in (0, 1))
    assert summarise([write_run(tmp_path / "alike", [old, new])], "r").mixed == []
    here = old.environment
    for number, (changed, words) in enumerate(
        [
            ({"git_commit": "b" * 40}, "of different commit of this suite, such as timm:a frozen"),
            ({"cpu": "another", "cores": here.cores + 1}, "of different cores and cpu, such as"),
        ]
    ):
        other = new.replace(environment=here.replace(**changed))
        alone = record("timm:b", "frozen").replace(environment=here.replace(cpu="a third"))
        (note,) = summarise([write_run(tmp_path / f"mixed{number}", [old, other, alone])], "r").mixed
        assert note.startswith("1 of 2 groups pool seeds") and words in note


def test_characters_that_no_font_has_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a line, without matplotlib's own warnings; other warnings stay."""
    records = [record(f"timm:a{name}", regime) for name in ("🐜", "🐝") for regime in ("finetune", "frozen")]
    with pytest.warns(UserWarning, match="something else") as caught, _boxes_told():
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = draw(summarise([write_run(tmp_path / "r", records)], "r"))
    said = capsys.readouterr().err
    assert re.fullmatch(r"WARNING: no font here has (🐜🐝|🐝🐜): figures show boxes [^\n]*\n", said)
    assert any("🐜" in figure.svg for figure in figures.values())
