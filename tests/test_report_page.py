"""Tests the parts of a report's page: priorities, heat map, data for scripts and pictures; and exports."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

import bench
import tl
from bench.analysis.metrics import RATED_BY
from bench.export.trackers import TAG, export_to
from bench.report.data import page_data
from bench.report.heatmap import make_heatmap
from bench.report.index import write_index
from bench.report.pictures import find_images, galleries
from bench.report.summary import summarise
from bench.report.terminal import print_summary
from bench.report.write import write_live, write_report
from bench.report.written import check_report
from bench.store.runs import RunFolder
from tests.commands import ONE
from tests.commands import here as command
from tests.runs import RANDOM, record, write_run
from tl.errors import UserError
from tl.results import Work


def seeds(backbone: str, regime: str, seconds: float, right: int = 95, count: int = 3, **fields: Any) -> list[Any]:
    return [
        record(backbone, regime, seed=seed, seconds=seconds * (1 + seed / 100), right=right + seed, **fields)
        for seed in range(count)
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with two accurate groups, a fast and poor one, a failed seed, a skipped cell and one not yet run."""
    records = [
        *seeds("timm:a", "finetune", 10, 90),
        *seeds("timm:a", "frozen", 4, 90),
        *seeds("timm:b", "finetune", 2, 60),
        record("timm:b", "frozen", seed=0, status="oom"),
        record("timm:b", "cached", status="skipped"),
    ]
    run = write_run(tmp_path / "run", records, missing=[record("timm:a", "cached").cell])
    # A later command left that cell out: nothing would be recommended while it was waited for.
    manifest = run.manifest()
    latest = manifest.invocations[0].replace(cell_ids=tuple(one.cell_id for one in records))
    run.write_manifest(manifest.replace(invocations=(*manifest.invocations, latest)))
    return run


def test_priorities_and_the_front(run: RunFolder) -> None:
    """Priorities include statistical ties. The front has the groups that none beats in accuracy, time and memory."""
    (choice,) = summarise([run], "run").choices
    named = {
        priority.metric: [f"{g.config.backbone} {g.config.regime}" for g in priority.groups]
        for priority in choice.priorities
    }
    assert named[RATED_BY][0].startswith("timm:a") and len(named[RATED_BY]) == 2
    assert named["epoch_seconds"] == ["timm:b finetune"] == named["peak_memory_bytes"]
    assert [f"{g.config.backbone} {g.config.regime}" for g in choice.front] == ["timm:a frozen", "timm:b finetune"]


def test_times_that_scatter_are_tied(tmp_path: Path) -> None:
    """With several seeds, groups tie if the difference isn't significant; with one seed, if it is below 5%."""
    fast = [record("timm:a", "frozen", seed=s, seconds=v) for s, v in enumerate((10.0, 14.0, 8.0))]
    slow = [record("timm:b", "frozen", seed=s, seconds=v) for s, v in enumerate((13.0, 11.0, 14.0))]
    (choice,) = summarise([write_run(tmp_path / "r", [*fast, *slow])], "r").choices
    assert [len(priority.groups) for priority in choice.priorities if priority.metric == "epoch_seconds"] == [2]
    one = [record("timm:a", "frozen", seconds=10), record("timm:b", "frozen", seconds=10.4)]
    (choice,) = summarise([write_run(tmp_path / "s", one)], "s").choices
    assert [len(p.groups) for p in choice.priorities if p.metric == "epoch_seconds"] == [2]
    one[1] = record("timm:b", "frozen", seconds=10.8)
    (choice,) = summarise([write_run(tmp_path / "t", one)], "t").choices
    assert [len(p.groups) for p in choice.priorities if p.metric == "epoch_seconds"] == [1]


def test_the_page_shows_each_headline_metric_of_the_heatmap(run: RunFolder, tmp_path: Path) -> None:
    """One at a time, by a rule of the style sheet; without its rule a metric's squares would be empty."""
    summary = summarise([run], "run")
    page = write_report(summary, tmp_path / "reports")[1].read_text(encoding="utf-8")
    metrics = make_heatmap(summary).metrics
    assert metrics[0] == RATED_BY and f'value="{RATED_BY}" checked' in page
    for name in metrics:
        assert f'.matrix:has([value="{name}"]:checked) [data-metric="{name}"] {{ display: block; }}' in page


def test_the_heatmap_has_every_planned_cell(run: RunFolder) -> None:
    """Squares have values and shares from worst to best, or a status and a reason."""
    heatmap = make_heatmap(summarise([run], "run"))
    assert heatmap.regimes == ("finetune", "frozen", "cached") and [name for name, _ in heatmap.rows] == ["a", "b"]
    squares = {(name, regime): s for name, row in heatmap.rows for regime, s in zip(heatmap.regimes, row, strict=True)}
    best, worst = squares["b", "finetune"], squares["a", "finetune"]
    assert best and worst and best.shades["epoch_seconds"].share == 1 and worst.shades["epoch_seconds"].share == 0
    assert best.shades[RATED_BY].share == 0
    lost = squares["b", "frozen"], squares["b", "cached"], squares["a", "cached"]
    assert [(s.status, s.bad, s.number) for s in lost if s] == [
        ("oom", True, None),
        ("skipped", False, None),
        ("not run", True, None),
    ]
    assert lost[0] is not None and lost[0].reason == "took | too <b>long</b>"


def test_a_failed_seed_is_shown_with_the_others(tmp_path: Path) -> None:
    """The value is that of the other seeds."""
    records = [*seeds("timm:a", "frozen", 4, count=2), record("timm:a", "frozen", seed=2, status="timeout")]
    heatmap = make_heatmap(summarise([write_run(tmp_path / "r", records)], "r"))
    ((_, (square,)),) = heatmap.rows
    assert square is not None and square.status == "1 of 3 seeds: timeout" and square.number == 0


def test_data_for_the_scripts(tmp_path: Path) -> None:
    """They have value, low and high in the unit that is shown, and leave out unknown values."""
    records = [*seeds("timm:a", "frozen", 4, 90), record("timm:b", "frozen", weights=RANDOM)]
    data = page_data(summarise([write_run(tmp_path / "r", records)], "r"))
    first, second = (group["figures"] for group in data["groups"])
    assert first["val_accuracy_best"] == [91.0, 90.0, 92.0] and "val_accuracy_best" not in second
    assert first["epoch_seconds"] == pytest.approx([4.055, 4.015, 4.095], abs=0.03)
    assert second["epoch_seconds"][0] == second["epoch_seconds"][1] == second["epoch_seconds"][2]
    assert set(data["colours"]) == {"frozen"} and re.fullmatch("#[0-9a-f]{6}", data["colours"]["frozen"])
    units = {metric["key"]: metric["unit"] for metric in data["metrics"]}
    assert units["val_accuracy_best"] == "%" and units["epoch_seconds"] == "s" and units["peak_memory_bytes"] == "MiB"


def test_a_dollar_in_a_name_is_a_dollar(tmp_path: Path) -> None:
    """It doesn't begin a formula."""
    records = [record("timm:a$_$b", regime, classes=("$x_$", "b $_$")) for regime in ("finetune", "frozen")]
    page = write_report(summarise([write_run(tmp_path / "r", records)], "r"), tmp_path / "reports")[1].read_text()
    assert "$x_$" in page and "a$_$b" in page


def test_parts_of_memory_never_exceed_their_whole(tmp_path: Path) -> None:
    """A cell whose counted tensors are larger than its peak has no bar."""
    from bench.report.figures import _memory_parts

    (group,) = summarise([write_run(tmp_path / "r", [record("timm:a", "frozen", seconds=5)])], "r").groups
    assert _memory_parts(group) is None, "no work was counted"
    one = group.records[0]
    assert one.result is not None
    for size, whole in ((1 << 20, 5.0), (1 << 30, None)):
        work = Work(
            step_images=4,
            forward_flops=1,
            backward_flops=1,
            saved_activation_bytes=size,
            parameter_bytes=size,
            gradient_bytes=0,
            optimizer_state_bytes=0,
        )
        counted = one.replace(result=one.result.replace(work=work))
        parts = _memory_parts(dataclasses.replace(group, records=(counted,)))
        assert (sum(parts.values()) if parts else None) == (pytest.approx(whole) if whole else None)


def test_names_cannot_end_the_script(tmp_path: Path) -> None:
    """JSON in a page contains no `<`."""
    run = write_run(tmp_path / "r", seeds("timm:</script><b>", "frozen", 4) + seeds("timm:x", "frozen", 4))
    page = write_report(summarise([run], "r"), tmp_path / "reports")[1].read_text()
    data = page[page.index('id="data">') + len('id="data">') :]
    data = data[: data.index("</script>")]
    assert "<" not in data and json.loads(data)["groups"][0]["name"] == "</script><b>, frozen"


@pytest.fixture(scope="module")
def real_run(tmp_path_factory: pytest.TempPathFactory, mini: tl.Splits) -> RunFolder:
    """A run on real files whose cells disagree on some images."""
    tmp_path = tmp_path_factory.mktemp("real_run")
    grid = ["run", "--grid", "smoke", "--data", str(mini.root), "--device", "cpu", "--epochs", "1", "--no-report"]
    done = command(*grid, "--name", "real_run", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    return RunFolder(tmp_path / "real_run")


def test_pictures(real_run: RunFolder, mini: tl.Splits, tmp_path: Path) -> None:
    """The page shows all galleries; with `--no-images` it has a line instead, and old pictures are deleted."""
    summary = summarise([real_run], "real_run")
    assert find_images(summary).digest == mini.digest and find_images(summary, str(mini.root)).root == mini.root
    shown = {gallery.name: gallery for gallery in galleries(summary, mini)}
    assert len(shown["augmented"].pictures) == 8
    page = write_report(summary, tmp_path / "with", mini)[1].read_text()
    assert page.count("data:image/jpeg;base64,") == sum(len(gallery.pictures) for gallery in shown.values())
    assert len(list((tmp_path / "with").rglob("*.jpg"))) == len(shown)
    markdown, page_without = write_report(summary, tmp_path / "with")
    assert "data:image/jpeg" not in page_without.read_text() and "left out (--no-images)" in markdown.read_text()
    assert not list((tmp_path / "with").rglob("*.jpg")), "pictures of an earlier report are deleted"


def test_crops_are_those_of_training(real_run: RunFolder, mini: tl.Splits) -> None:
    """After scaling down, they equal the images of that epoch's training batches."""
    import torch

    from tl.backbones import make_backbone
    from tl.batches import Batches
    from tl.images import open_store

    (gallery,) = [g for g in galleries(summarise([real_run], "real_run"), mini) if g.name == "augmented"]
    preprocessing = make_backbone("timm:test_resnet", weights="random").preprocessing
    batches = Batches(open_store(mini), mini.train, preprocessing, torch.device("cpu"))
    ((pixels, _),) = batches.training(len(mini.train), seed=0, epoch=1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    small = torch.nn.functional.interpolate(pixels * std + mean, size=(24, 24), mode="area").permute(0, 2, 3, 1) * 255

    def distance(number: int) -> float:
        """Mean distance over pixels between a picture and the nearest image of the epoch."""
        shown = np.asarray(gallery.pictures[number].image.resize((24, 24), Image.Resampling.BOX), dtype=float)
        return min(float(np.abs(shown - image.numpy()).mean()) for image in small)

    (first, second) = distance(1), distance(5)
    others = [distance(number) for number in (0, 2, 3, 4, 6, 7)]
    assert max(first, second) < 0.6 * min(others), "epoch 1 is nearer than any other"


def test_missing_images(run: RunFolder, mini: tl.Splits, tmp_path: Path) -> None:
    """The report has a line instead of pictures. Images in `--data` that aren't the run's are refused."""
    summary = summarise([run], "run")
    with pytest.raises(UserError, match=r"the images of own \(00000000\) were not found; see --data"):
        find_images(summary)
    with pytest.raises(UserError, match=f"--data {re.escape(str(mini.root))}: has other images"):
        find_images(summary, str(mini.root))
    done = command("report", str(run.folder), "--out", str(tmp_path / "out"))
    assert done.returncode == 0 and "No pictures: the images of own" in (tmp_path / "out" / "run.md").read_text()


@pytest.mark.parametrize("width", [40, 80, 300])
def test_on_a_terminal(width: int, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Answer, claim and table fit every width; only messages that aren't wrapped may be wider."""
    print_summary(summarise([run], "run"), Console(width=width))
    said = capsys.readouterr().out
    assert "oom" in said and "9 of 12 cells done, 1 skipped, 1 failed, 1 left" in said
    assert ("no room for" in said) is (width < 300)
    row = next(line for line in said.splitlines() if re.match(r"(timm:)?a +frozen ", line))
    assert re.search(r"91\.0%.* 4\.06\b", row) and len(row) <= width, "the row is on one line at any width"
    assert ("± 1.0 (sd, n = 3)" in row) is (width > 40)


def test_the_index(run: RunFolder, tmp_path: Path) -> None:
    """It lists runs newest first, with what they found and links, and also unreadable runs."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    write_report(summarise([run], "run"), tmp_path / "reports")
    page = write_index([RunFolder(broken), run], tmp_path / "reports").read_text()
    assert '<a href="run.html">run</a>' in page and "can&#39;t be read as JSON" in page
    assert page.index("run.html") < page.index("broken")
    cells = re.findall(r'<td data-label="([^"]+)"[^>]*>(.*?)</td>', page, re.DOTALL)
    said = {name: " ".join(re.sub("<[^>]+>", " ", text).split()) for name, text in cells[:7]}
    assert said["date (UTC)"] == "2026-01-01 00:00" and said["data"] == "own 244 + 100 images"
    assert said["best accuracy"] == "91.0% ± 1.0 (sd, n = 3) a, frozen" and said["time to train"] == "16 s"
    assert said["verdict"].startswith("Train only the head of a: 91.0% in 16 s") and "✓ supported" in said["verdict"]
    assert (
        said["status"] == "… not complete 9 of 12 cells done, 1 skipped, 1 failed, 1 left"
        and 'class="faint"' not in page
    )
    assert "report needs a run: name one below results/" in command("report").stderr
    assert "takes no --collect" in command("report", "--index", "--collect").stderr


def test_synthetic_images_in_the_index(tmp_path: Path) -> None:
    """Their run is grey and has a chip, and the page says what that means."""
    real = write_run(tmp_path / "real", seeds("timm:a", "frozen", 4))
    drawn = write_run(tmp_path / "drawn", seeds("timm:a", "frozen", 4), fallback="synthetic: no network")
    page = write_index([real, drawn], tmp_path / "reports").read_text()
    faint = re.findall(r'<tr data-row class="faint">\s*<th scope="row" class="name" data-value="(\w+)">', page)
    assert faint == ["drawn"] and page.count(">synthetic images</span>") == 1
    assert "Grey: on synthetic images, whose scores say nothing about real ones." in page
    assert "Grey" not in write_index([real], tmp_path / "reports").read_text()


@pytest.mark.parametrize(
    ("results", "why"), [("typo", " (there is no such folder)"), ("file", " (it is not a folder)"), ("empty", "")]
)
def test_a_slip_does_not_empty_the_index(results: str, why: str, run: RunFolder, tmp_path: Path) -> None:
    """One line says that there are no runs, and the index stays as it is."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    before = write_index([run], tmp_path / "reports").read_bytes()
    done = command("report", "--index", "--results", results)
    said = f"error: {results}/ has no runs yet{why}; `python -m bench run` makes one\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert (tmp_path / "reports" / "index.html").read_bytes() == before
    assert command("show", "r", "--results", results).stderr == said.replace("error: ", "error: r: no such run; ")


def _own_picture(path: Path) -> None:
    """Save a chart or a photograph of the user's, with the usual settings."""
    if path.suffix == ".jpg":
        Image.new("RGB", (600, 400)).save(path, quality=85)
    else:
        figure = Figure()
        figure.add_subplot().plot([1, 2])
        figure.savefig(path)


@pytest.mark.parametrize(
    "name", ["run.md", "run.html", "run/matrix.png", "run/matrix.svg", "run/matrix.pdf", "run/wrong.jpg"]
)
def test_a_report_replaces_only_what_a_report_wrote(name: str, run: RunFolder, tmp_path: Path) -> None:
    """A file of the user's with the same name stays, and one line says so. Files with other names are no hindrance."""
    summary, path = summarise([run], "run"), tmp_path / "reports" / name
    write_report(summary, tmp_path / "reports")
    (tmp_path / "reports" / "run" / "photo.png").write_bytes(b"mine")
    write_report(summary, tmp_path / "reports")
    others = {one: one.read_bytes() for one in (tmp_path / "reports").rglob("*.*") if one != path}
    if path.suffix in (".md", ".html"):
        path.write_text("# run\n\nMy own notes, with 8 cells on paper.\n")
    else:
        _own_picture(path)
    mine = path.read_bytes()
    for words in ((), ("--collect",)) if name == "run.html" else ((),):
        done = command("report", str(run.folder), *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert f"{name}: was not written by a report" in done.stderr
    assert path.read_bytes() == mine and all(one.read_bytes() == content for one, content in others.items())
    done = command(*ONE, "--name", "run", "--data", "synthetic-mini")
    assert done.returncode == 2 and f"{name}: was not written by a report" in done.stderr, done.stdout
    assert not Path("results").exists(), "it is told before anything runs"


def _folder(path: Path) -> None:
    path.mkdir(parents=True)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("name", ["run.md", "run.html", "run", "run/matrix.png"])
@pytest.mark.parametrize("make", [_folder, _pipe, _dangling])
def test_a_report_is_written_over_files_alone(
    make: Callable[[Path], None], name: str, run: RunFolder, tmp_path: Path
) -> None:
    """What else has one of its names is told before a run begins, and before anything of a report is written."""
    if (make, name) == (_folder, "run"):
        return  # the pictures' folder of an earlier report
    path = tmp_path / "reports" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    before = sorted((tmp_path / "reports").rglob("*"))
    said = {_folder: "is a folder", _pipe: "is a pipe", _dangling: "is a link that leads nowhere"}[make]
    said = f"{path.relative_to(tmp_path)}: {said}" if name != "run" else "reports/run: can't be written: "
    for words in (["report", str(run.folder)], [*ONE, "--name", "run", "--data", "synthetic-mini"]):
        done = command(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
    assert sorted((tmp_path / "reports").rglob("*")) == before and not Path("results").exists()


INSIDE = ["results/mine", "results/mine/cells", "results/mine/new/deep", "link/pages"]


@pytest.mark.parametrize("place", [*INSIDE, "results"])
def test_no_report_is_written_into_a_run(place: str, run: RunFolder, tmp_path: Path) -> None:
    """A run's folder holds its results alone. That of pictures has the run's name: below `results`, it is the run."""
    (tmp_path / "link").symlink_to("results/mine")
    done = command(*ONE, "--name", "mine", "--data", "synthetic-mini", "--reports", place)
    said = "is in the folder of the run mine, which holds its results alone; choose another folder for reports"
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr or place.startswith("link"), "a link that leads nowhere is refused as such"
    assert not Path("results").exists()
    shutil.copytree(run.folder, tmp_path / "results" / "mine")
    before = sorted((tmp_path / "results").rglob("*"))
    several = [["report", "mine"], ["report", "mine", "--name", "other"], ["report", "mine", "--collect"]]
    for words in (*several, ["report", "--index"]) if place != "results" else several[:1]:
        done = command(*words, "--reports", place)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and said in done.stderr, done.stderr
    with pytest.raises(UserError, match=said):
        bench.Run("mine").report(place)
    assert sorted((tmp_path / "results").rglob("*")) == before


def test_an_index_replaces_only_an_index(run: RunFolder, tmp_path: Path) -> None:
    """The folder may be that of a site with a page of its own."""
    (tmp_path / "index.html").write_text("<title>All runs of the club</title>")
    with pytest.raises(UserError, match=r"index\.html: was not written by a report"):
        write_index([run], tmp_path)
    (tmp_path / "index.html").write_text("")
    assert write_index([run], tmp_path).read_bytes() == write_index([run], tmp_path).read_bytes()


def test_reports_of_earlier_versions_are_replaced(real_run: RunFolder, mini: tl.Splits, tmp_path: Path) -> None:
    """All committed ones are known as reports, and so are all files of a new one."""
    committed = Path(__file__).parents[1] / "reports"
    names = [path.stem for path in committed.glob("reference-*.md")]
    assert len(names) > 3
    for name in names:
        check_report(committed, name)
    write_report(summarise([real_run], "real_run"), tmp_path, mini, pdf=True)
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".md", ".html", ".svg", ".png", ".pdf", ".jpg"}
    check_report(tmp_path, "real_run")


def test_runs_of_one_name_in_the_index(run: RunFolder, tmp_path: Path) -> None:
    """They are listed by their paths without a link, since the report may be of either."""
    shutil.copytree(run.folder, tmp_path / "other" / "run")
    write_report(summarise([run], "run"), tmp_path / "reports")
    page = write_index([RunFolder(tmp_path / "other" / "run"), run], tmp_path / "reports").read_text()
    assert "run.html" not in page and str(run.folder) in page and str(tmp_path / "other" / "run") in page


def test_a_page_that_follows_a_run(run: RunFolder, tmp_path: Path) -> None:
    """It says how many cells have ended, and reloads itself until the run is over."""
    write_live(run, tmp_path)
    page = (tmp_path / "run.html").read_text()
    assert 'id="live" data-seconds="10"' in page and "9 of 12 cells done, 1 skipped, 1 failed, 1 left" in page
    write_live(run, tmp_path, ended=True)
    assert 'id="live"' not in (tmp_path / "run.html").read_text()
    done = command(*ONE, "--live", "--name", "live", "--epochs", "1", "--data", "synthetic-mini")
    assert done.returncode == 0, done.stderr
    assert 'id="live"' not in Path("reports/live.html").read_text()
    assert command(*ONE, "--live", "--no-report").returncode == 2
    assert command(*ONE, "--name", "Index").returncode == 2


def test_collecting_an_unfinished_run(run: RunFolder, tmp_path: Path) -> None:
    """Only the page is written, with the number of missing cells, and only for one run."""
    done = command("report", "--collect", str(run.folder), "--out", str(tmp_path / "look"))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "look").iterdir()] == ["run.html"]
    page = (tmp_path / "look" / "run.html").read_text()
    assert "9 of 12 cells done, 1 skipped, 1 failed, 1 left" in page and 'id="live"' not in page
    assert "leave out --name" in command("report", "--collect", str(run.folder), "--name", "other").stderr


def test_tables_for_papers(run: RunFolder) -> None:
    """The report's table is exported as LaTeX, with special characters escaped."""
    done = command("export", str(run.folder), "--format", "latex")
    assert done.returncode == 0 and done.stdout.startswith(r"\begin{tabular}") and r"91.0\%" in done.stdout
    assert command("export", str(run.folder), "--format", "latex", "--raw").returncode == 2


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_trackers_that_are_not_installed(name: str, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is one line with the command that installs the package."""
    monkeypatch.setitem(sys.modules, {"tensorboard": "tensorboardX", "mlflow": "mlflow"}[name], None)
    with pytest.raises(UserError, match=rf"--to {name} needs another package: pip install 'tl-bench\[{name}\]'"):
        export_to(name, [run], None)


def test_tensorboard(run: RunFolder, tmp_path: Path) -> None:
    """Each cell gets one event file, which a second export doesn't repeat."""
    pytest.importorskip("tensorboardX", reason="the extra tensorboard isn't installed")
    said = export_to("tensorboard", [run], tmp_path / "tb")
    assert said.startswith("9 of 9 cells written") and len(list((tmp_path / "tb").rglob("events*"))) == 9
    again = export_to("tensorboard", [run], tmp_path / "tb")
    assert again.startswith("0 of 9 cells written") and "there already" in again and "there already" not in said


def test_mlflow(run: RunFolder, tmp_path: Path) -> None:
    """Each cell gets one run in a local store, with its parameters, epochs and metrics."""
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow isn't installed")
    assert export_to("mlflow", [run], tmp_path / "ml").startswith("9 of 9 cells written")
    assert export_to("mlflow", [run], tmp_path / "ml").startswith("0 of 9 cells written")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "ml").as_uri())
    (experiment,) = (e for e in client.search_experiments() if e.name == "run")
    runs = client.search_runs([experiment.experiment_id])
    one = next(r for r in runs if "timm-a-frozen-cpu-seed1" in r.data.tags[TAG])
    assert one.data.params["backbone"] == "timm:a" and one.data.metrics["val_accuracy_best"] == 0.91
    assert len(client.get_metric_history(one.info.run_id, "epoch_val_loss")) == 4


def test_pictures_are_small_squares(real_run: RunFolder, mini: tl.Splits) -> None:
    """They are, for images of any shape."""
    for gallery in galleries(summarise([real_run], "real_run"), mini):
        assert {picture.image.size for picture in gallery.pictures} == {(144, 144)}
        assert all(isinstance(picture.image, Image.Image) for picture in gallery.pictures)
