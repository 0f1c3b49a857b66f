"""What reports, the terminal and `claims` say of process pairs: what failed, what is missing, what answers rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from bench.analysis.metrics import points, signed
from bench.analysis.prediction import explain
from bench.report import figures
from bench.report.answers import answers
from bench.report.claims_text import print_claims
from bench.report.notes import notes_of
from bench.report.summary import Summary, summarise
from bench.report.tables import paired_remarks, paired_table, speed_up_table
from bench.report.terminal import print_summary
from bench.report.write import write_report
from bench.store.pairs import PairRecord
from bench.store.records import PlannedPair, Record
from bench.store.runs import RunFolder
from tests.runs import pair_record, record, write_run
from tests.test_prediction import AT_ONE_RATE
from tests.test_prediction import pair as groups

REGIMES = (("finetune", 10.0), ("frozen", 5.0))


def seeds(count: int = 1, backbone: str = "timm:a", **settings: Any) -> list[Record]:
    return [record(backbone, one, seconds=s, seed=n, **settings) for n in range(count) for one, s in REGIMES]


CELLS = tuple(one.cell for one in seeds())


def timed(*seconds: float, count: int = 5, first: int = 0, **fields: Any) -> list[PairRecord]:
    return [pair_record(CELLS, seconds, number=first + n, noise=0.02, **fields) for n in range(count)]


def summary_of(folder: Path, records: list[Record], some: Sequence[PairRecord], **more: Any) -> Summary:
    return summarise([write_run(folder, records, pairs=some, **more)], folder.name)


def terminal(summary: Summary) -> str:
    console = Console(width=400, record=True, file=None)
    with console.capture() as captured:
        print_summary(summary, console)
    return captured.get()


def markdown(summary: Summary, folder: Path) -> str:
    return write_report(summary, folder)[0].read_text()


def planned_by(run: RunFolder, *plans: dict[str, Any] | None, command: str = "python -m bench run") -> RunFolder:
    """The run with a command for each of these values of `paired` in its grid."""
    manifest = run.manifest()
    (call,) = manifest.invocations
    calls = tuple(call.replace(grid={"paired": plan}, command=command) for plan in plans)
    run.write_manifest(manifest.replace(invocations=calls))
    return run


@pytest.mark.parametrize(("value", "said"), [(-0.0004, "+0.0%"), (0.0, "+0.0%"), (-0.0006, "-0.1%"), (None, "n/a")])
def test_no_zero_is_negative(value: float | None, said: str) -> None:
    """A change that rounds to zero has no direction."""
    assert signed(value, ".1%") == said
    assert points(-0.0004) == "+0.0" and points(-0.0006) == "-0.1"


def test_pairs_that_all_failed_are_told(tmp_path: Path) -> None:
    """Seeds decide then, with the reason, and the pairs' own table has a row without figures."""
    summary = summary_of(tmp_path / "r", seeds(3), timed(10.0, 5.0, status="oom"))
    said = " ".join(answers(summary))
    assert "All 5 process pairs failed (oom: took | too <b>long</b>), so 3 seeds decide, timed minutes apart." in said
    assert "no process pairs were timed" not in said
    (row,) = paired_table(summary).to_dict("records")
    assert (row["pairs"], row["speed-up"]) == ("0, 5 without a result", "n/a")
    assert row["rounds per pair"] == row["timed"] == "n/a"
    assert len(paired_remarks(summary)) == 5
    assert summary.speed_ups[0].finding.by == "seeds" and summary.speed_ups[0].finding.words == "supported"


def test_one_seed_decides_nothing_where_all_pairs_failed(tmp_path: Path) -> None:
    """The sentence doesn't say that it does."""
    said = " ".join(answers(summary_of(tmp_path / "r", seeds(1), timed(10.0, 5.0, status="oom"))))
    assert "so there is only 1 seed, timed minutes apart." in said and "decide, timed" not in said


def test_pairs_that_failed_are_of_their_backbone(tmp_path: Path) -> None:
    """Beside a backbone without pairs, and without the same sentence for both."""
    said = " ".join(
        answers(summary_of(tmp_path / "r", seeds(3) + seeds(3, "timm:b"), timed(10.0, 5.0, status="timeout")))
    )
    assert "All 5 process pairs of timm:a failed (timeout: " in said
    assert "By 3 seeds, timed minutes apart: timm:b." in said


def test_pairs_of_the_present_plan_that_are_missing_are_counted(tmp_path: Path) -> None:
    """Not those of an earlier command with more pairs, or with other seconds."""
    some = timed(10.0, 5.0)
    more = [PlannedPair(cells=some[0].pair.cells, number=n, seconds=s) for n, s in ((5, 4.0), (6, 4.0), (7, 4.0))]
    more.append(PlannedPair(cells=some[0].pair.cells, number=0, seconds=9.0))
    run = write_run(tmp_path / "r", seeds(), pairs=some, missing_pairs=more)
    eight = {"pairs": 8, "seconds": 4.0}
    missing = summarise([planned_by(run, eight)], "r")
    assert missing.progress == ["5 of 8 process pairs done, 3 left"]
    assert "5 of 8 process pairs done, 3 left" in terminal(missing)
    assert "**Not complete.** 5 of 8 process pairs done, 3 left." in markdown(missing, tmp_path / "reports")
    assert "5 of 8 process pairs done, 3 left" in write_report(missing, tmp_path / "reports")[1].read_text()


def test_a_lower_number_of_pairs_leaves_none_missing(tmp_path: Path) -> None:
    """Nor does a command without pairs, or one of other cells."""
    some = timed(10.0, 5.0)
    later = [PlannedPair(cells=some[0].pair.cells, number=n, seconds=4.0) for n in (5, 6, 7)]
    run = write_run(tmp_path / "r", seeds(), pairs=some, missing_pairs=later)
    eight, five = {"pairs": 8, "seconds": 4.0}, {"pairs": 5, "seconds": 4.0}
    for latest in (five, None):
        assert summarise([planned_by(run, eight, latest)], "r").progress == []
        manifest = run.manifest()
        run.write_manifest(manifest.replace(invocations=manifest.invocations[:1]))
    planned_by(run, eight)
    manifest = run.manifest()
    (call,) = manifest.invocations
    run.write_manifest(manifest.replace(invocations=(call.replace(cell_ids=call.cell_ids[:1]),)))
    assert summarise([run], "r").progress == []


def test_a_pair_with_one_lost_side_says_which_and_why(tmp_path: Path) -> None:
    """On the terminal and in the report: not `done` in red, and not a reason without its regime."""
    three = (*CELLS, record("timm:a", "frozen-tutorial").cell)
    lost = pair_record(three, (10.0, 5.0, 4.0), number=5, status="oom")
    assert lost.status == "done"
    summary = summary_of(tmp_path / "r", seeds(), [*timed(10.0, 5.0), lost])
    said = "pair 6: frozen-tutorial: took | too <b>long</b>"
    assert "oom: timm:a " in terminal(summary) and said in terminal(summary)
    assert "done:" not in terminal(summary) and "ended early" not in terminal(summary)
    text = markdown(summary, tmp_path / "reports").split("## Cells without a result")[1]
    assert "- **oom** timm:a" in text and "pair 6: frozen-tutorial: took" in text
    page = (tmp_path / "reports" / "r.html").read_text()
    assert 'class="bad">oom</strong> timm:a' in page and "pair 6: frozen-tutorial: took | too" in page


@pytest.mark.parametrize(("protocol", "advice"), [("fixed", "more `--pairs` adds"), ("kfold", "`--seeds 3`")])
def test_advice_is_what_the_protocol_allows(protocol: str, advice: str, tmp_path: Path) -> None:
    """Trainings of kfold can't be timed in pairs, so they need seeds."""
    summary = summary_of(tmp_path / "r", seeds(protocol=protocol), [])
    (said,) = (each for each in answers(summary) if "half the time" in each)
    assert advice in said and ("--pairs" in said) is (protocol == "fixed")
    assert ("--pairs" in notes_of(summary).apart) is (protocol == "fixed")
    assert ("kfold" in notes_of(summary).apart) is (protocol == "kfold")


def test_pairs_that_do_not_count_are_counted(tmp_path: Path) -> None:
    """Pairs timed one after the other beside pairs that took turns."""
    apart = timed(10.0, 9.0, count=2, first=5, apart="together they need 9 GiB")
    summary = summary_of(tmp_path / "r", seeds(), [*timed(10.0, 5.0), *apart])
    assert paired_remarks(summary) == [
        "a, frozen against finetune: 2 pairs were timed one after the other, and left out, since others took turns"
    ]
    assert "No round and no pair" not in notes_of(summary).paired
    assert "count only where no pair took turns" in notes_of(summary).paired
    assert paired_remarks(summary_of(tmp_path / "s", seeds(), timed(10.0, 5.0))) == []


def test_pairs_of_unlike_environments_are_noted(tmp_path: Path) -> None:
    """Other libraries, another commit, and work beside them; cells alone don't show it."""
    first, second, *rest = timed(10.0, 5.0)
    assert summary_of(tmp_path / "r", seeds(), [first, second, *rest]).mixed == []
    unlike = second.replace(environment=second.environment.replace(packages={"torch": "0.1"}, git_commit="f" * 40))
    summary = summary_of(tmp_path / "s", seeds(), [first, unlike, *rest])
    assert summary.mixed == [
        "1 of 1 sets of cells timed in turns pools process pairs of different commit of this suite and packages, "
        "timm:a finetune and frozen cpu"
    ]
    assert (
        summary.unlike_machines == 2
        and len(summary.machines) == 2
        and "torch 0.1" in summary.machines[1]
        and summary.mixed[0] in summary.notes
    )


def test_another_commit_is_no_other_machine(tmp_path: Path) -> None:
    """Its description is there, and a note, but not the warning that times don't compare."""
    first, *rest = timed(10.0, 5.0)
    later = first.replace(environment=first.environment.replace(git_commit="f" * 40))
    summary = summary_of(tmp_path / "r", seeds(), [later, *rest])
    assert (len(summary.machines), summary.unlike_machines, len(summary.mixed)) == (2, 1, 1)
    assert "machines or sets of libraries" not in markdown(summary, tmp_path / "reports")


def test_pairs_that_were_disturbed_are_noted(tmp_path: Path) -> None:
    """With an example, beside the note on cells."""
    from bench.store.environment import MachineState

    first, *rest = timed(10.0, 5.0)
    busy = first.replace(machine=MachineState(warnings=("a compiler ran beside it",)))
    summary = summary_of(tmp_path / "r", seeds(), [busy, *rest])
    (note,) = summary.busy
    assert note == (
        "1 of 5 process pairs was disturbed, timm:a finetune and frozen cpu, pair 1: a compiler ran beside it"
    )


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("python -m bench run --grid default", False),
        ("python -m bench run --grid default --until-decided --max-pairs 20", True),
        ("bench.run('default', until_decided=True)", True),
    ],
)
def test_adaptive_sampling_is_told(command: str, told: bool, tmp_path: Path) -> None:
    """With what it costs, from any of a run's commands."""
    run = write_run(tmp_path / "r", seeds(), pairs=timed(10.0, 5.0))
    said = notes_of(summarise([planned_by(run, None, command=command)], "r")).paired
    assert ("--until-decided" in said) is told and ("94%" in said) is told


def test_phases_of_another_ratio_are_told() -> None:
    """Phases are those of trainings; pairs may have measured another speed-up."""
    slow, fast = groups(AT_ONE_RATE[0] | {"backward": 97.6}, AT_ONE_RATE[1])
    trained = slow.seconds / fast.seconds
    said = explain(slow, fast, trained * 1.2)
    assert said and said.endswith(f"; these phases are those of the trainings, which gave {trained:.2f}×")
    near = explain(slow, fast, trained * 1.05)
    assert near and "trainings" not in near


def test_intervals_are_told_of_what_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A paragraph for pairs, and one for seeds, each only where it decides something."""
    by_pairs = summary_of(tmp_path / "r", seeds(), timed(10.0, 5.0))
    by_seeds = summary_of(tmp_path / "s", seeds(3), [])
    print_claims(by_pairs, "text")
    legend = capsys.readouterr().out
    for text in (notes_of(by_pairs).claims, legend):
        assert "Intervals over process pairs" in text and "r is the correlation" not in text
    assert "Intervals over n seeds" in notes_of(by_pairs).claims, "accuracies are by seeds"
    only_times = replace(by_pairs, findings=tuple(one for one in by_pairs.findings if one.by == "pairs"))
    assert "seeds" not in notes_of(only_times).claims.split("Unknown:")[1].replace("pairs or seeds", "")
    assert (
        "Intervals over process pairs" not in notes_of(by_seeds).claims
        and "r is the correlation" in notes_of(by_seeds).claims
    )


def test_two_memories_are_told_apart(tmp_path: Path) -> None:
    """That of the turns, and that of the trainings, differ; the note says which is where."""
    paired = summary_of(tmp_path / "r", seeds(), timed(10.0, 5.0, memory=(400 * 2**20, 100 * 2**20)))
    assert "300 MiB" in speed_up_table(paired)["memory saved"][0]
    assert "the peaks are those of the turns" in notes_of(paired).predicted
    assert "the peaks are those of the turns" not in notes_of(summary_of(tmp_path / "s", seeds(3), [])).predicted


@pytest.mark.parametrize("backbone", ["timm:a", "timm:mobilenetv3_small_100", "timm:vit_base_patch16_clip_224.openai"])
def test_no_label_of_the_speed_ups_is_cut_off(backbone: str, tmp_path: Path) -> None:
    """Names of rows leave room for the axis and its label, with both executions beside each other."""
    records = [
        record(backbone, regime, seconds=seconds, execution=execution)
        for execution, frozen in (("fast", "frozen"), ("plain", "frozen-tutorial"))
        for regime, seconds in (("finetune", 10.0), (frozen, 5.0))
    ]
    with matplotlib.rc_context(figures._style()):
        figure = figures._speed_up(summary_of(tmp_path / "r", records, []))
        assert figure is not None
        FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    for text in (axes.xaxis.label, *axes.get_yticklabels()):
        ends = text.get_window_extent()
        assert figure.bbox.x0 <= ends.x0 < ends.x1 <= figure.bbox.x1, text.get_text()
