"""Files are replaced whole, devices and pipes are written through, and only regular files of bounded size are read."""

from __future__ import annotations

import contextlib
import html
import json
import math
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bench.execution.log import log_size, open_log, shorten, tail
from bench.export.trackers import export_to
from bench.report import write
from bench.store.lock import locked
from bench.store.runs import RunFolder, seal
from tests.commands import here, light_command
from tests.runs import of_images, record, write_run
from tl.cache import read_bounded, to_json, write_atomic, write_output
from tl.errors import UserError
from tl.results import PHASES, Work
from tl.text import visible

resource = pytest.importorskip("resource", reason="needs limits of a Unix process")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Two seeds of two regimes."""
    cells = [record("timm:a", regime, seed=seed) for regime in ("finetune", "frozen") for seed in range(2)]
    return write_run(tmp_path / "results" / "r", cells)


@pytest.fixture
def null(tmp_path: Path) -> Path:
    """A device of our own that takes everything."""
    try:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except OSError:
        pytest.skip("only the administrator may make a device")
    return tmp_path / "null"


@pytest.fixture
def full_disk(run: RunFolder) -> Iterator[None]:
    """Files of more than 100 bytes can't be written, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # Python ignores the signal that comes with it
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Reader(threading.Thread):
    """Reads a pipe to its end."""

    def __init__(self, pipe: Path) -> None:
        super().__init__(daemon=True)
        self.pipe, self.found = pipe, b""
        self.start()

    def run(self) -> None:
        self.found = self.pipe.read_bytes()

    def end(self) -> bytes:
        self.join(60)
        return self.found


OUTPUTS = {
    "compare": ["compare", "r", "--by", "regime", "--format", "md"],
    "gate": ["gate", "r", "s", "--format", "json"],
    "csv": ["export", "r", "--format", "csv"],
    "json": ["export", "r", "--format", "json"],
    "parquet": ["export", "r", "--format", "parquet"],
    "latex": ["export", "r", "--format", "latex"],
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_output_leaves_devices_pipes_and_links_what_they_are(case: str, run: RunFolder, null: Path) -> None:
    """A device and a pipe are written through. A link stays, and its file is replaced whole."""
    write_run(run.folder.parent / "s", [record("timm:a", regime, seed=3) for regime in ("finetune", "frozen")])
    folder = null.parent
    os.mkfifo(folder / "pipe")
    (folder / "elsewhere").mkdir()
    (folder / "link").symlink_to("second")
    (folder / "second").symlink_to("elsewhere/file")
    reader = Reader(folder / "pipe")
    for name in ("plain", "null", "pipe", "link"):
        done = here(*OUTPUTS[case], "--output", name)
        assert done.returncode in (0, 3), done.stderr
    expected = (folder / "plain").read_bytes()
    assert len(expected) > 100 and reader.end() == expected == (folder / "elsewhere" / "file").read_bytes()
    assert (folder / "link").readlink() == Path("second") and (folder / "second").is_symlink()
    assert stat.S_ISCHR(null.stat().st_mode) and (folder / "pipe").is_fifo()
    assert not list(folder.rglob(".*.tmp"))


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="this system has no /dev/stdout")
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_the_name_of_standard_output_is_standard_output(kind: str, run: RunFolder, tmp_path: Path) -> None:
    """`/dev/stdout` is neither replaced nor overwritten, also if it is a file."""
    words = [sys.executable, "-m", "bench", "gate", "r", "r/../r2", "--format", "md", "-o", "/dev/stdout"]
    write_run(run.folder.parent / "r2", [record("timm:a", "frozen", seed=seed) for seed in range(3)])
    place = tmp_path / "out.txt"
    with place.open("w") as out:
        out.write("before\n")
        out.flush()
        to = subprocess.PIPE if kind == "pipe" else out
        done = subprocess.run(words, stdout=to, stderr=subprocess.PIPE, text=True, check=False)
    found = f"before\n{done.stdout}" if kind == "pipe" else place.read_text()
    assert done.returncode in (0, 3) and done.stderr == ""
    assert found.startswith("before\n# ") and "\nGate " in found, "the page, and then the decision"


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("case", ["csv", "json", "parquet", "latex", "compare"])
def test_a_full_disk_leaves_the_earlier_file(case: str, tmp_path: Path) -> None:
    """It ends in one line and exit status 2; the earlier file is whole, and nothing is left beside it."""
    (tmp_path / "file").write_text("the earlier one")
    done = here(*OUTPUTS[case], "--output", "file")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "File too large" in done.stderr, done.stderr
    assert (tmp_path / "file").read_text() == "the earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "results"]


def test_a_full_disk_ends_an_export_to_tensorboard_in_one_line(
    run: RunFolder, tmp_path: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    """No thread dies with a traceback, no cell counts as written, and the next export writes them all."""
    pytest.importorskip("tensorboardX", reason="the extra tensorboard isn't installed")
    limit = request.getfixturevalue("full_disk")
    assert limit is None
    done = here("export", "r", "--to", "tensorboard", "--output", "tb")
    assert done.returncode == 2 and done.stderr == "error: tb: can't be written: File too large\n"
    assert capfd.readouterr() == ("", "") and list((tmp_path / "tb" / "r").iterdir()) == []
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert export_to("tensorboard", [run], tmp_path / "tb").startswith("4 of 4 cells written")


def test_events_are_those_that_tensorboard_reads(run: RunFolder, tmp_path: Path) -> None:
    """Each has its length and checksums before and after it; the first names the version of the format."""
    pytest.importorskip("tensorboardX", reason="the extra tensorboard isn't installed")
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    export_to("tensorboard", [run], tmp_path / "tb")
    for path in (tmp_path / "tb").rglob("*tfevents*"):
        content, events = path.read_bytes(), []
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            assert struct.unpack("<I", content[8:12]) == (masked_crc32c(content[:8]),)
            assert struct.unpack("<I", content[12 + length : 16 + length]) == (
                masked_crc32c(content[12 : 12 + length]),
            )
            events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
        assert events[0].file_version == "brain.Event:2"
        tags = {value.tag for event in events for value in event.summary.value}
        assert {"epoch/val_accuracy", "cell/epoch_seconds", "config/text_summary"} <= tags


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_earlier_report(tmp_path: Path) -> None:
    """Pages and pictures of the earlier report are whole."""
    (tmp_path / "reports" / "r").mkdir(parents=True)
    earlier = {
        tmp_path / "reports" / "r.md": "- **r**: 4 cells on own (2 classes; digest `0`)\n",
        tmp_path / "reports" / "r.html": "<title>r · which backbone, which regime, at what cost</title>\n<style>",
        tmp_path / "reports" / "r" / "curves.png": "another figure",
        tmp_path / "reports" / "r" / "matrix.svg": '<svg ><g id="figure_1">',
    }
    for path, text in earlier.items():
        path.write_text(text)
    done = here("report", "r", "--no-images")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "can't be written" in done.stderr, done.stderr
    assert {path: path.read_text() for path in (tmp_path / "reports").rglob("*.*")} == earlier


@pytest.mark.usefixtures("full_disk")
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The system gives no name where a write fails; the temporary file's would help nobody."""
    with pytest.raises(OSError, match="File too large") as caught:
        write_atomic(tmp_path / "manifest.json", "x" * 200)
    assert caught.value.filename == str(tmp_path / "manifest.json") and caught.value.filename2 is None


def test_files_of_the_suite_are_not_written_into_pipes(tmp_path: Path) -> None:
    """Nobody reads a pipe in a run's folder, so writing to it would wait for ever. A link's file is written."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a pipe, not a regular file"):
        write_atomic(tmp_path / "pipe", "x")
    (tmp_path / "to-pipe").symlink_to("pipe")
    with pytest.raises(OSError, match="is a pipe, not a regular file"):
        write_atomic(tmp_path / "to-pipe", "x")
    (tmp_path / "link").symlink_to(tmp_path / "new" / "file")
    write_atomic(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "new" / "file").read_text() == "x"
    (tmp_path / "circle").symlink_to("circle")
    for writes in (write_atomic, write_output):
        with pytest.raises(OSError, match="symbolic links"):
            writes(tmp_path / "circle", "x")
        with pytest.raises(OSError, match="a folder"):
            writes(tmp_path, "x")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "circle").is_symlink()


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    """The temporary file beside it has a shorter one."""
    write_atomic(tmp_path / ("é" * 127), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["é" * 127]


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path, null: Path) -> None:
    """A pipe, a device, a folder and a file that is too large are refused at once, through links too."""
    (tmp_path / "file").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(null)
    assert read_bounded(tmp_path / "file", 5) == b"12345"
    for name, limit, said in [
        ("file", 4, "has more than the 4 bytes that are read"),
        ("pipe", 9, "is a pipe, not a regular file"),
        ("link", 9, "is a device, not a regular file"),
        (".", 9, "is a folder, not a regular file"),
        ("nowhere", 9, "No such file"),
    ]:
        with pytest.raises(OSError, match=said) as caught:
            read_bounded(tmp_path / name, limit)
        assert caught.value.filename == str(tmp_path / name)


def test_a_pipe_is_read_to_its_end_where_it_is_allowed() -> None:
    """Also if it is written in parts, and not beyond the limit."""
    for sent, limit in ((b"[matrix]\n" * 20_000, 1 << 20), (b"x" * 200_000, 1_000)):
        reading, writing = os.pipe()

        def send(writing: int = writing, sent: bytes = sent) -> None:
            with contextlib.suppress(BrokenPipeError):
                while sent:
                    sent = sent[os.write(writing, sent) :]
            os.close(writing)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        path = Path(f"/dev/fd/{reading}")
        try:
            if len(sent) <= limit:
                assert read_bounded(path, limit, pipe=True) == sent
            else:
                with pytest.raises(OSError, match="more than the 1,000 bytes"):
                    read_bounded(path, limit, pipe=True)
        finally:
            os.close(reading)
            sender.join()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_record_that_is_no_file_is_refused(kind: str, run: RunFolder, null: Path) -> None:
    """Every command that reads it ends in one line, and none waits or fills the memory."""
    path = sorted((run.folder / "cells").iterdir())[0]
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(null)
    for words in (["show", "r"], ["export", "r"], ["report", "r"], ["claims", "r"], ["compare", "r", "--by", "regime"]):
        done = here(*words)
        assert done.returncode == 2, done.stdout
        assert (
            done.stderr == f"error: {path.relative_to(null.parent)}: can't be read: is a {kind}, not a regular file\n"
        )
    done = here("report", "--index")
    assert (
        done.returncode == 0 and f"is a {kind}, not a regular file" in (null.parent / "reports/index.html").read_text()
    )


def test_a_manifest_that_is_no_file_is_no_run(run: RunFolder) -> None:
    """Whoever asks for the run is told what it is."""
    (run.folder / "manifest.json").unlink()
    os.mkfifo(run.folder / "manifest.json")
    assert "manifest.json: can't be read: is a pipe, not a regular file" in here("show", "r").stderr
    with pytest.raises(UserError, match="is a pipe"):
        run.manifest()


def test_a_lock_whose_holder_is_a_pipe_is_refused(tmp_path: Path) -> None:
    """Neither the writer nor the reader of `.holder` waits for the pipe."""
    os.mkfifo(tmp_path / ".holder")
    with pytest.raises(OSError, match="is a pipe"), locked(tmp_path, "one"):
        pass


def test_a_log_that_is_a_pipe_is_no_log(tmp_path: Path) -> None:
    """Opening it to write would wait for a reader; it is never read, cut or removed."""
    os.mkfifo(tmp_path / "log")
    holder = os.open(tmp_path / "log", os.O_RDWR)  # a reader, so that even opening without waiting succeeds
    try:
        with pytest.raises(OSError, match="is not a regular file"):
            open_log(tmp_path / "log")
    finally:
        os.close(holder)
    with pytest.raises(OSError, match="No such device"):
        open_log(tmp_path / "log")
    shorten(tmp_path / "log")
    assert log_size(tmp_path / "log") == 0 and tail(tmp_path / "log", 0) == "" and (tmp_path / "log").is_fifo()


GRID = 'dataset = "synthetic-mini"\npaired = false\n[matrix]\nbackbones = ["quick0"]\n'


def test_a_grid_may_come_through_a_pipe(tmp_path: Path) -> None:
    """As with a shell's `--grid <(…)`; the run needs a name then, or is named after the descriptor."""
    reading, writing = os.pipe()
    os.write(writing, GRID.encode())
    os.close(writing)
    try:
        done = light_command("run", "--dry-run", "--grid", f"/dev/fd/{reading}", "--name", "piped")
    finally:
        os.close(reading)
    assert done.returncode == 0 and "run: results/piped: 2 cells" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.symlink_to("null"), "is a device, not a regular file"),
        (lambda path: path.mkdir(), "is a folder, not a regular file"),
        (lambda path: path.write_bytes(bytes((1 << 20) + 1)), "has more than the 1,048,576 bytes that are read"),
        (lambda path: path.write_bytes(b"\xff"), "can't be read: is not text in UTF-8 (byte 0xff in line 1)"),
        (lambda path: os.mkfifo(path), "matrix: missing"),
        (lambda path: path.write_text("a = " + "[" * 10_000), "nested too deeply"),
        (lambda path: path.write_text("a = " + "[" * 10_000 + "]" * 10_000), "nested too deeply"),
        (lambda path: path.write_text("a" + ".a" * 10_000 + " = 1"), "unknown key"),
        (lambda path: path.write_text("[matrix]\nseeds = " + "9" * 6_000), "not valid TOML: Exceeds the limit"),
        (lambda path: path.write_text(GRID + "seeds = " + "9" * 4_000), "at most 100,000"),
    ],
    ids=["device", "folder", "large", "binary", "pipe", "unclosed", "nested", "dotted", "digits", "number"],
)
def test_a_grid_that_cannot_be_one_is_refused_in_one_line(make: Any, said: str, null: Path) -> None:
    """It ends at once, with the grid's name and the reason."""
    make(null.parent / "grid.toml")
    done = light_command("run", "--grid", "grid.toml", "--dry-run")
    assert done.returncode == 2 and done.stderr.startswith("error: grid") and said in done.stderr, done.stderr[:500]
    assert done.stderr.count("\n") == 1


def test_a_report_over_a_pipe_is_refused(run: RunFolder, tmp_path: Path) -> None:
    """A page is a file that is replaced; a pipe of that name would wait for a reader."""
    (tmp_path / "reports").mkdir()
    os.mkfifo(tmp_path / "reports" / "r.html")
    with pytest.raises(UserError, match=r"r\.html: is a pipe, so no report can be written there"):
        write.write_live(run, tmp_path / "reports")


def _first_epoch(content: dict[str, Any]) -> dict[str, Any]:
    return content["result"]["epochs"][0]  # type: ignore[no-any-return]


def resealed(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a record or a manifest, and give it the digest of its new content."""
    content = json.loads(path.read_bytes())
    del content["digest"]
    edit(content)
    path.write_bytes(seal(json.dumps(content, indent=1).encode()))


WORK = dict.fromkeys([*Work.model_fields], 0)


IMPOSSIBLE: dict[str, Callable[[dict[str, Any]], object]] = {
    "result.epochs=[]": lambda content: content["result"].update(epochs=[]),
    "result.epochs.0.val_seconds=-5.0": lambda content: _first_epoch(content).update(val_seconds=-5.0),
    "result.epochs.0.train_seconds=1e+308": lambda content: _first_epoch(content).update(train_seconds=1e308),
    "result.epochs.0.val_loss=nan": lambda content: _first_epoch(content).update(val_loss=math.nan),
    "result.epochs.0.val_accuracy=1.7": lambda content: _first_epoch(content).update(val_accuracy=1.7),
    "result.last.labels.0=-1": lambda content: content["result"]["last"].update(labels=[-1]),
    "result.last.confidences.0=nan": lambda content: content["result"]["last"].update(confidences=[math.nan]),
    "last has class 99, and there are 2": lambda content: content["result"]["last"]["labels"].__setitem__(0, 99),
    "last has 99 labels and 100 confidences": lambda content: content["result"]["last"]["labels"].pop(),
    "best is of epoch 99, and there are": lambda content: content["result"]["best"].update(epoch=99),
    "best has class 1, and there are 0": lambda content: content["result"].update(classes=[]),
    f"result.peak_rss_bytes={10**30}": lambda content: content["result"].update(peak_rss_bytes=10**30),
    "wall_seconds=-1.0": lambda content: content.update(wall_seconds=-1.0),
    "status 'done' without a result": lambda content: content.update(result=None),
    "status 'failed' with a result": lambda content: content.update(status="failed", reason="x"),
    "started='2026-01-01T00:00:00'": lambda content: content.update(started="2026-01-01T00:00:00"),
    "result.epochs.0.train_seconds=5e-324": lambda content: _first_epoch(content).update(train_seconds=5e-324),
    "result.epochs.0.val_seconds=0.0": lambda content: _first_epoch(content).update(val_seconds=0.0),
    "result.setup_seconds=1e-320": lambda content: content["result"].update(setup_seconds=1e-320),
    "result.work.step_images=0": lambda content: content["result"].update(work=WORK),
    "train_images=0": lambda content: content.update(train_images=0),
    "machine.other_cpu_share=-3.0": lambda content: content.update(machine={"other_cpu_share": -3.0}),
    "machine.steal_share=1e+300": lambda content: content.update(machine={"steal_share": 1e300}),
    f"cell.config.seed={10**23}": lambda content: content["cell"]["config"].update(seed=10**23),
    f"environment.memory_bytes={10**30}": lambda content: content["environment"].update(memory_bytes=10**30),
}
"""What the message says of a value that can't have been measured → how to put it into a record."""
CONTRADICTIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "result.epochs.0.val_accuracy=0.99: of its predictions, 0.95 are right": lambda content: [
        row.update(val_accuracy=0.99) for row in content["result"]["epochs"]
    ],
    "result.last has 99 predictions, and the run has 100 images": lambda content: [
        content["result"]["last"][name].pop() for name in ("labels", "confidences")
    ],
    "result.config has learning_rate=77.0, and its cell has 0.001": lambda content: content["result"]["config"].update(
        learning_rate=77.0
    ),
    "result.weights are other ones than the cell's pretrained weights": lambda content: content["result"][
        "weights"
    ].update(digest="e" * 64),
    "result.epochs.1.epoch=0: epochs are counted from 0": lambda content: [
        row.update(epoch=0) for row in content["result"]["epochs"]
    ],
    "result.epochs.4.epoch=0: epochs are counted from 0": lambda content: content["result"].update(
        epochs=content["result"]["epochs"] * 50
    ),
    "result.epochs has 5 epochs, and the cell has 4": lambda content: content["result"]["epochs"].append(
        {**_first_epoch(content), "epoch": 4}
    ),
    "result.epochs.0.train_loss=None: regime 'finetune' trains": lambda content: _first_epoch(content).update(
        train_loss=None
    ),
    "result.epochs.0.phases take 7.0 s, and the epoch takes 10.0": lambda content: _first_epoch(content).update(
        phases=dict.fromkeys(PHASES, 1.0)
    ),
    "result.classes=('x', 'y', 'z'): the run's images have ('ants', 'bees')": lambda content: content["result"].update(
        classes=["x", "y", "z"]
    ),
    "result.best is of epoch 1, and the best is 0": lambda content: content["result"]["best"].update(epoch=1),
    "result.last is of epoch 2, and the last is 3": lambda content: content["result"]["last"].update(epoch=2),
    "result.training_seconds=1.0: its epochs took 40": lambda content: content["result"].update(training_seconds=1.0),
    "result.trainable_params=11: there are 10 parameters": lambda content: content["result"].update(
        trainable_params=11
    ),
    "result.learning_rate_chosen=-2.0: the cell has [] to try": lambda content: content["result"].update(
        learning_rate_chosen=-2.0
    ),
    "result.tuning_seconds=5.0: its trials took None": lambda content: content["result"].update(tuning_seconds=5.0),
    "result.trials are of 1 learning rates, and the cell has [] to try": lambda content: content["result"].update(
        trials=[{"learning_rate": 1.0, "held_out_accuracy": 0.5, "held_out_loss": 1.0, "seconds": 1.0}]
    ),
    "result.folds has 1 folds, and the cell has 0": lambda content: content["result"].update(
        folds=[content["result"]["epochs"]]
    ),
    "status 'done' with epochs beside the result": lambda content: content.update(epochs=[_first_epoch(content)]),
    "started=2100-01-01 00:00: it is 20": lambda content: content.update(started="2100-01-01T00:00:00Z"),
    "reason='because' of a cell that is done": lambda content: content.update(reason="because"),
    "attempts=0, and status 'done'": lambda content: content.update(attempts=0),
    "train_images=245: the run has 244": lambda content: content.update(train_images=245),
    "wall_seconds=30.0: its trainings and extractions took 40": lambda content: content.update(wall_seconds=30.0),
    "wall_seconds=41.06: its trainings and extractions took 50": lambda content: [
        content.update(wall_seconds=41.06),
        content["result"].update(extraction_seconds=20.0, extracting_seconds=10.0),
    ],
    "result.weights are other ones than the record's": lambda content: content["weights"].update(label="y"),
    "result.threads=0: a training has at least one": lambda content: content["result"].update(threads=0),
    "result.device='cuda:0', and its cell's is 'cpu'": lambda content: content["result"].update(device="cuda:0"),
    "result.trainable_params=0: regime 'finetune' trains": lambda content: content["result"].update(trainable_params=0),
    "result.epochs.0.learning_rate=0.1: the training begins with 0.001": lambda content: _first_epoch(content).update(
        learning_rate=0.1
    ),
    "result.epochs.0.learning_rate=-1.0: is never below 0": lambda content: _first_epoch(content).update(
        learning_rate=-1.0
    ),
    "result.epochs.0.val_loss=-0.4: is never below 0": lambda content: _first_epoch(content).update(val_loss=-0.4),
    "result.epochs.0.train_loss=-0.4: is never below 0": lambda content: _first_epoch(content).update(train_loss=-0.4),
    "result.work.step_images=9: the batch size is 4": lambda content: content["result"].update(
        work={**WORK, "step_images": 9}
    ),
    "result.train_rss_bytes=10000000000: result.peak_rss_bytes is": lambda content: content["result"].update(
        train_rss_bytes=10**10
    ),
    "result.cuda_allocated_bytes=6: result.cuda_reserved_bytes is 5": lambda content: content["result"].update(
        cuda_allocated_bytes=6, cuda_reserved_bytes=5
    ),
    "result.resident_image_bytes=7: result.cuda_allocated_bytes is 6": lambda content: content["result"].update(
        cuda_allocated_bytes=6, resident_image_bytes=7
    ),
    "result.extracting_seconds=0.5, and all features were cached": lambda content: content["result"].update(
        extraction_seconds=1.0, extracting_seconds=0.5, features_reused=True
    ),
    "result.epochs.2.val_accuracy=0.945: of 100 images, 94.5 would be right": lambda content: content["result"][
        "epochs"
    ][2].update(val_accuracy=0.945),
    "it diverged after 4 of 4 epochs": lambda content: content.update(
        status="diverged", reason="x", epochs=content["result"]["epochs"], result=None
    ),
}
"""What the message says of figures that can't all be true → how to put them into a record of a fine-tuning."""


@pytest.mark.parametrize("said", [*IMPOSSIBLE, *CONTRADICTIONS])
def test_a_record_with_impossible_values_is_damaged(said: str, run: RunFolder) -> None:
    """Commands say so in a line, and `run` sets the record aside and runs its cell again."""
    path = run.folder / "cells" / f"{next(iter(run.records()))}.json"
    resealed(path, {**IMPOSSIBLE, **CONTRADICTIONS}[said])
    for words in (["show", "r"], ["export", "r"], ["report", "r"], ["compare", "r", "--by", "regime"]):
        done = here(*words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert f"{path.name}: damaged: " in done.stderr and said in done.stderr, done.stderr
    sound, broken = run.survey()
    assert len(sound) == 3 and list(broken) == [path]


@pytest.mark.parametrize(
    ("said", "edit"),
    [
        ("result.trials are of 3 learning rates, and", lambda result: result["trials"].pop()),
        ("result.learning_rate_chosen=0.5: the cell has", lambda result: result.update(learning_rate_chosen=0.5)),
        ("result.learning_rate_chosen=None: the cell has", lambda result: result.update(learning_rate_chosen=None)),
        ("result.tuning_seconds=9.0: its trials took 0.5", lambda result: result.update(tuning_seconds=9.0)),
        (
            "result.learning_rate_chosen=0.0003: another rate was more accurate",
            lambda result: result["trials"][2].update(held_out_accuracy=0.95),
        ),
        (
            "result.trials.1 has an accuracy or a loss, and not both",
            lambda result: result["trials"][1].update(held_out_loss=None),
        ),
        ("result.best is of epoch 0, and the best is 3", lambda result: result["best"].update(epoch=0)),
    ],
)
def test_a_tuned_record_that_contradicts_itself_is_damaged(
    said: str, edit: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    """Its trials are those of its config, and the chosen rate is one of them."""
    run = write_run(tmp_path / "r", [record("timm:a", "frozen", protocol="tuned")])
    ((cell_id, sound),) = run.records().items()
    assert sound.result is not None
    resealed(run.folder / "cells" / f"{cell_id}.json", lambda content: edit(content["result"]))
    with pytest.raises(UserError, match=re.escape(said)):
        run.records()


def test_folds_that_contradict_their_sum_are_damaged(tmp_path: Path) -> None:
    """Seconds of an epoch are those of all folds together. A fold is named as a reader of the file finds it."""
    one = record("timm:a", "frozen", protocol="kfold", folds=2)
    assert one.result is not None
    halves = [
        row.replace(train_seconds=(row.train_seconds or 0.0) / 2, val_seconds=row.val_seconds / 2)
        for row in one.result.epochs
    ]
    run = write_run(tmp_path / "r", [one.replace(result=one.result.replace(folds=(tuple(halves), tuple(halves))))])
    (path,) = (run.folder / "cells").iterdir()
    assert len(run.records()) == 1
    for edit, said in (
        (lambda folds: folds[1][2].update(val_seconds=9.0), "result.epochs.2.val_seconds=2.0: its folds took 10.0"),
        (lambda folds: folds[1][2].update(epoch=3), "result.folds.1.2.epoch=3: epochs are counted from 0"),
    ):
        intact = path.read_bytes()
        resealed(path, lambda content, edit=edit: edit(content["result"]["folds"]))  # type: ignore[misc]
        with pytest.raises(UserError, match=re.escape(said)):
            run.records()
        path.write_bytes(intact)


def test_a_wrong_clock_damages_no_record(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the run's own commands began after now as well, it is the clock of this machine that is wrong."""

    class Past(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(1970, 1, 2, tzinfo=tz)

    monkeypatch.setattr("bench.store.consistency.datetime", Past)
    assert len(run.records()) == 4


def test_a_record_of_another_cell_than_planned_is_damaged(run: RunFolder) -> None:
    """A comparison would show the figures of one regime as those of the other."""
    first, *_, last = run.manifest().cells

    def exchange(content: dict[str, Any]) -> None:
        cells = content["cells"]
        cells[first], cells[last] = cells[last], cells[first]

    resealed(run.folder / "manifest.json", exchange)
    done = here("show", "r")
    assert done.returncode == 2 and "the manifest has another cell of this id" in done.stderr, done.stderr
    assert len(run.survey()[1]) == 2


def foreign_record(run: RunFolder, digest: str = "f" * 64) -> Path:
    """Copy a record of other images into a run; its accuracy would seem to be 5%."""
    one = of_images(record("timm:a", "finetune", right=5), digest)
    other = write_run(run.folder.parent.parent / digest, [one])
    (path,) = (other.folder / "cells").iterdir()
    return Path(shutil.copy(path, run.folder / "cells"))


READERS: dict[str, list[str]] = {
    "show": ["show", "r"],
    "claims": ["claims", "r"],
    "report": ["report", "r", "--collect"],
    "index": ["report", "--index"],
    "export": ["export", "r"],
    "raw": ["export", "r", "--raw"],
    "compare": ["compare", "r", "--by", "regime"],
    "gate": ["gate", "r", "s"],
}


@pytest.mark.parametrize("reader", READERS)
def test_records_of_other_images_are_left_out(reader: str, run: RunFolder) -> None:
    """They would be scored against labels that aren't theirs. One line names the first, and all else stays."""
    write_run(run.folder.parent / "s", [record("timm:a", "finetune", seed=seed) for seed in range(5, 8)])
    before, pages = here(*READERS[reader]), run.folder.parent.parent / "reports"
    written = {path: path.read_text() for path in pages.glob("*.html")}
    path = foreign_record(run)
    foreign_record(run, "e" * 64)
    after = here(*READERS[reader])
    assert (after.returncode, after.stdout) == (before.returncode, before.stdout)
    assert {path: path.read_text() for path in pages.glob("*.html")} == written
    line = after.stderr.removeprefix(before.stderr)
    assert line.startswith("WARNING: ") and line.count("\n") == 1 and "(and 1 more like it)" in line, line
    assert path.name in line or "its images are 'eeeeeeee', and this run's are '00000000'" in line


def test_records_of_other_images_are_set_aside(run: RunFolder) -> None:
    """They are no result of this run, so `bench run` moves them with the damaged ones."""
    before = run.records()
    path = foreign_record(run)
    sound, broken = run.survey()
    assert sound == before == run.records() and list(broken) == [path] and "is of another run" in broken[path]
    assert run.set_aside(path).is_file() and run.survey() == (before, {})


MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "cells={}": lambda content: content.update(cells={}),
    "invocations=[]": lambda content: content.update(invocations=[]),
    "dataset.classes=[]": lambda content: content["dataset"].update(classes=[]),
    "dataset.val_files=[]": lambda content: content["dataset"].update(val_files=[], val_labels=[]),
    "dataset.train_images=-1": lambda content: content["dataset"].update(train_images=-1),
    "dataset.val_labels.0=-1": lambda content: content["dataset"].update(val_labels=[-1] * 100),
    "val_labels has class 5, and there are 2": lambda content: content["dataset"].update(val_labels=[5] * 100),
    "val_files has 100 files and val_labels 0 labels": lambda content: content["dataset"].update(val_labels=[]),
    "is of images 00000000, not xxxxxxxx": lambda content: content["dataset"].update(digest="x" * 64),
}
"""What the message says of a manifest of no possible run → how to make it."""


@pytest.mark.parametrize("said", MANIFESTS)
def test_a_manifest_of_no_possible_run_is_damaged(said: str, run: RunFolder) -> None:
    """Commands say so in a line, and the list of all runs names it and shows the others."""
    shutil.copytree(run.folder, run.folder.parent / "sound")
    resealed(run.folder / "manifest.json", MANIFESTS[said])
    for words in (["show", "r"], ["export", "r"], ["report", "r"], ["compare", "r", "sound"], ["gate", "sound", "r"]):
        done = here(*words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "r/manifest.json: damaged: " in done.stderr and said in done.stderr, done.stderr
    assert here("report", "--index").returncode == 0
    page = html.unescape((run.folder.parent.parent / "reports" / "index.html").read_text())
    assert said in page and "4 cells done" in page


RUNS_FILES = ("manifest.json", "cells/x.json", "new.md", "logs/x")
INPUTS = {
    "compare": (["compare", "b/0.json", "b/1.json", "--format", "json"], "b/1.json"),
    "gate": (["gate", "b/0.json", "b/1.json", "--format", "md"], "b/0.json"),
    "folder": (["compare", "b", "n", "--format", "json"], "n/2.json"),
    "rules": (["gate", "b/0.json", "b/1.json", "--config", "rules.toml", "--format", "json"], "rules.toml"),
    "pyproject": (["gate", "b/0.json", "b/1.json", "--format", "json"], "pyproject.toml"),
    "plugin": (["export", "r", "--plugin", "mine.py"], "mine.py"),
    "link": (["compare", "b/0.json", "b/1.json", "--format", "json"], "to-an-input"),
}


@pytest.mark.parametrize("case", OUTPUTS)
@pytest.mark.parametrize("name", RUNS_FILES)
def test_output_never_lies_in_the_folder_of_a_run(case: str, name: str, run: RunFolder) -> None:
    """A manifest or a record that is replaced is a lost run. Another run's files are as safe as those of an input."""
    other = write_run(run.folder.parent / "s", [record("timm:a", regime, seed=3) for regime in ("finetune", "frozen")])
    unrelated = write_run(run.folder.parent / "t", [record("timm:a", "frozen", seed=4)])
    Path("link").symlink_to(unrelated.folder)
    before = {path: path.read_bytes() for path in run.folder.parent.rglob("*.json")}
    for folder in (run.folder, other.folder, unrelated.folder, Path("link")):
        done = here(*OUTPUTS[case], "--output", str(folder / name))
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "is in the folder of the run" in done.stderr and not done.stdout
    assert {path: path.read_bytes() for path in run.folder.parent.rglob("*.json")} == before
    assert here("export", "r", "--to", "tensorboard", "--output", str(run.folder / "cells")).returncode == 2


@pytest.mark.parametrize("case", INPUTS)
def test_output_never_replaces_an_input(case: str, run: RunFolder) -> None:
    """Not by another name either."""
    for side in "bn":
        for number in range(3):
            times = [1 + (number + index + ord(side)) / 1000 for index in range(4)]
            data = {"machine_info": {}, "benchmarks": [{"fullname": "t::a", "stats": {"data": times}}]}
            write_atomic(Path(side, f"{number}.json"), json.dumps(data))
    for name in ("rules.toml", "pyproject.toml"):
        Path(name).write_text('[[tool.bench.gate.rule]]\nmetric = "seconds"\nfactor = 1.5\n')
    Path("mine.py").write_text("")
    Path("to-an-input").symlink_to("b/1.json")
    words, name = INPUTS[case]
    before = Path(name).read_bytes()
    done = here(*words, "--output", name)
    assert (
        done.returncode == 2
        and done.stderr == f"error: --output {name} is a file that this command reads; name another one\n"
    )
    assert Path(name).read_bytes() == before
    assert here(*words, "--output", "b/page").returncode in (0, 4), "a folder of inputs may hold other files"


@pytest.mark.parametrize("version", [0, -3, True, None, "7", 7.0])
def test_a_record_of_no_version_is_damaged(version: object, run: RunFolder) -> None:
    """Versions are counted from 1."""
    path = sorted((run.folder / "cells").iterdir())[0]
    resealed(path, lambda content: content.update(schema_version=version))
    done = here("show", "r")
    assert done.returncode == 2 and f"{path.name}: has no schema_version" in done.stderr, done.stderr


def test_a_record_with_half_a_character_is_damaged(run: RunFolder) -> None:
    """JSON can say such a text, but no file can hold it."""
    path = sorted((run.folder / "cells").iterdir())[0]
    resealed(path, lambda content: content.update(reason="\ud800"))
    done = here("show", "r")
    assert done.returncode == 2 and f"{path.name}: damaged: " in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["python -m bench run --data 'x", "python -m bench run --data x\\", "\x00"])
def test_a_recorded_command_with_an_open_quote_is_shown(command: str, run: RunFolder, tmp_path: Path) -> None:
    """Nobody can run it, but the report is of the results. Old manifests, where it says which data it used, too."""
    manifest = run.manifest()
    call = manifest.invocations[0].replace(command=command)
    run.write_manifest(manifest.replace(invocations=(call,)))
    assert here("report", "r", "--collect").returncode == 0
    assert visible(command) in html.unescape((tmp_path / "reports" / "r.html").read_text())
    old = json.loads((run.folder / "manifest.json").read_bytes()) | {"schema_version": 5}
    old.pop("digest")
    del old["invocations"][0]["data"]
    (run.folder / "manifest.json").write_bytes(seal(to_json(old).encode()))
    assert here("show", "r").returncode == 0 and run.manifest().invocations[0].data is None
