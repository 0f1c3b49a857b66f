"""Execution `plain`: the same training as `fast`, carried out as in the tutorial's own loop."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import RandomResizedCrop

import tl
from bench.execution.base import Limits
from bench.execution.executors import make_executor
from bench.store.runs import RunFolder
from tests.commands import here
from tests.conftest import TINY
from tests.test_reference import DoubleClassifier, every
from tl import plain
from tl.backbones import make_backbone
from tl.batches import Batches, Preprocessing
from tl.config import EXECUTIONS
from tl.decoding import decode, open_rgb
from tl.errors import DataError, NotApplicable
from tl.images import open_store
from tl.machine import PAGES_KEPT
from tl.plain import PlainBatches, PlainEvaluation, PlainStep, training_transform, validation_transform
from tl.prepare import WAYS
from tl.regimes import REGIMES
from tl.results import TrainResult
from tl.step import TrainStep

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(size=48, resize=56, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), interpolation="bilinear")
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load images in this process, which is quicker for a few of them."""
    monkeypatch.setattr(plain, "WORKERS", 0)


@pytest.fixture
def same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both executions read the same batches, and train in double precision, where rounding hides no mistake."""
    monkeypatch.setitem(WAYS, "plain", replace(WAYS["plain"], images=WAYS["fast"].images))
    monkeypatch.setattr("tl.prepare.Classifier", DoubleClassifier)


def train(splits: tl.Splits, execution: str, regime: str = "finetune", **settings: Any) -> TrainResult:
    given = {"epochs": 2, "weights": "random"} | settings
    return tl.train_model(
        tl.TrainConfig(backbone=TINY[1], regime=regime, execution=execution, **given), splits, device="cpu"
    )


def few(splits: tl.Splits) -> tl.Splits:
    """Six training images, so that the last batch holds two, and six for validation."""
    return replace(splits, train=every(4, splits.train), val=every(3, splits.val))


def check_equal(one: TrainResult, other: TrainResult) -> None:
    """Losses, accuracies, predictions and final weights are equal but for rounding."""
    for row, wanted in zip(one.epochs, other.epochs, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate"):
            assert getattr(row, name) == pytest.approx(getattr(wanted, name), rel=1e-5), name
    for name in ("best", "last"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a.epoch, a.labels) == (b.epoch, b.labels)
        assert a.confidences == pytest.approx(b.confidences, abs=2e-6)
    trained = one.model.state_dict()
    for name, value in other.model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("same_batches")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("regime", ["finetune", "frozen", "frozen-tutorial"])
def test_both_executions_are_the_same_training(mini: tl.Splits, regime: str, optimizer: str) -> None:
    """On the same batches both have the same losses, predictions and final weights. Only `plain` fuses nothing."""
    fast, slow = (train(few(mini), execution, regime, optimizer=optimizer) for execution in EXECUTIONS)
    check_equal(slow, fast)
    assert (fast.memory_format, slow.memory_format) == ("channels_last", "contiguous")
    assert fast.frozen_verified == slow.frozen_verified == (True if regime == "frozen" else None)


def _without_zeroing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.optim.SGD, "zero_grad", lambda *_, **__: None)


def _unweighted(patch: pytest.MonkeyPatch) -> None:
    def tally(step: Any) -> None:
        step._running_loss += step._loss.item()
        step._running_correct += int((step._logits.argmax(1) == step._labels).sum())

    patch.setattr(PlainStep, "_tally", tally)


def _without_backbone(patch: pytest.MonkeyPatch) -> None:
    original = PlainStep._forward
    patch.setattr(PlainStep, "_forward", lambda step, body: original(step, lambda inputs: body(inputs).detach()))


def _updates_twice(patch: pytest.MonkeyPatch) -> None:
    original = PlainStep._update
    patch.setattr(PlainStep, "_update", lambda step: (original(step), original(step)))


def _validates_while_training(patch: pytest.MonkeyPatch) -> None:
    original = PlainEvaluation.run

    def run(evaluation: Any, inputs: torch.Tensor) -> torch.Tensor:
        evaluation._model.train()
        return original(evaluation, inputs)

    patch.setattr(PlainEvaluation, "run", run)


@pytest.mark.usefixtures("same_batches")
@pytest.mark.parametrize(
    "plant", [_without_zeroing, _unweighted, _without_backbone, _updates_twice, _validates_while_training]
)
def test_a_planted_mistake_is_seen(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The comparison above fails for a loop that does something else."""
    fast = train(few(mini), "fast")
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_equal(train(few(mini), "plain"), fast)


def test_steps_are_gradient_descent() -> None:
    """Loss, accuracy and weights equal those of softmax regression with momentum, written in numpy."""
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(size, 3)), rng.integers(0, 2, size)) for size in (4, 4, 3)]
    model: Any = nn.Module()
    model.backbone, model.head = nn.Identity(), nn.Linear(3, 2, bias=False).double()
    # Losses are in single precision (`tl.learning`), so weights near 0 would have larger relative errors.
    weights = np.array([[0.5, -0.4, 0.3], [-0.2, 0.6, -0.5]])
    model.head.load_state_dict({"weight": torch.tensor(weights)})
    velocity, loss, correct = np.zeros_like(weights), 0.0, 0
    for x, y in batches:
        scores = np.exp(x @ weights.T)
        shares = scores / scores.sum(1, keepdims=True)
        loss += -np.log(shares[range(len(y)), y]).sum()
        correct += int((shares.argmax(1) == y).sum())
        velocity = 0.9 * velocity + (shares - np.eye(2)[y]).T @ x / len(y)
        weights = weights - 0.1 * velocity
    config = tl.TrainConfig(backbone="x", execution="plain")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = PlainStep(model, model.backbone, model.backbone, nn.functional.cross_entropy, optimizer, config, CPU)
    for _ in range(2):  # an epoch begins anew
        step.start()
    for x, y in batches:
        step.run(torch.tensor(x), torch.tensor(y), lambda phase: None)
    assert step.sums() == (pytest.approx(loss, rel=1e-6), correct)
    np.testing.assert_allclose(model.head.weight.detach().numpy(), weights, rtol=1e-6)


def test_autograd_decides_what_needs_no_gradient() -> None:
    """The frozen backbone runs with gradients switched on, unlike in `fast`; nothing in it gets one."""
    seen: dict[type[TrainStep], bool] = {}
    for kind in (TrainStep, PlainStep):
        model: Any = nn.Module()
        model.backbone, model.head = nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 2)
        model.backbone.register_forward_hook(lambda *_, kind=kind: seen.update({kind: torch.is_grad_enabled()}))
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        config = tl.TrainConfig(backbone="x")
        step = kind(model, model.backbone, model.backbone, nn.functional.cross_entropy, optimizer, config, CPU)
        step.start()
        step.run(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), lambda phase: None)
        assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert seen == {TrainStep: False, PlainStep: True}


def test_the_same_config_gives_the_same_losses(mini: tl.Splits) -> None:
    """With four workers too. Another seed gives others, and so does another epoch."""
    rates = {"learning_rate": 1e-9, "regime": "frozen"}  # only the crops differ from epoch to epoch
    one, again, other = (train(few(mini), "plain", seed=seed, **rates) for seed in (0, 0, 1))
    assert [row.train_loss for row in one.epochs] == [row.train_loss for row in again.epochs]
    assert one.last == again.last
    losses = {row.train_loss for result in (one, other) for row in result.epochs}
    assert len(losses) == 4


def normalised(image: Image.Image, given: Preprocessing) -> npt.NDArray[np.float32]:
    array = (np.asarray(image, np.float32) / 255 - np.float32(given.mean)) / np.float32(given.std)
    return array.transpose(2, 0, 1)


@pytest.mark.parametrize("interpolation", RESAMPLING)
def test_crops_are_the_tutorials(mini: tl.Splits, interpolation: str) -> None:
    """Random crops and flips equal those made by hand with Pillow, from the same random numbers."""
    given = replace(PREPROCESSING, interpolation=interpolation)
    flips = set()
    for number, file in enumerate(mini.train.files[:8]):
        image = open_rgb(mini.root / file)
        torch.manual_seed(number)
        made = training_transform(given)(image)
        torch.manual_seed(number)
        top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        cut = image.crop((left, top, left + width, top + height)).resize((48, 48), RESAMPLING[interpolation])
        flipped = bool(torch.rand(1) < 0.5)
        flips.add(flipped)
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else cut
        np.testing.assert_allclose(made.numpy(), normalised(cut, given), atol=1e-5)
        assert made.is_contiguous() and made.dtype == torch.float32
    assert flips == {True, False}


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("interpolation", RESAMPLING)
def test_validation_is_on_what_pillow_reads(mini: tl.Splits, interpolation: str, squash: bool) -> None:
    """The images come in order, resized and cropped as by hand."""
    given = replace(PREPROCESSING, interpolation=interpolation, squash=squash)
    batches = PlainBatches(mini.root, mini.val, given, CPU)
    images, labels = map(torch.cat, zip(*batches.evaluation(4), strict=True))
    assert labels.tolist() == list(mini.val.labels) and images.is_contiguous()
    for made, file in zip(images, mini.val.files, strict=True):
        with Image.open(mini.root / file) as opened:
            image = opened.convert("RGB")
        sides = tuple(given.resize if squash else given.resize * side // min(image.size) for side in image.size)
        left, top = (round((side - given.size) / 2) for side in sides)
        image = image.resize(sides, RESAMPLING[interpolation])
        cut = image.crop((left, top, left + given.size, top + given.size))
        np.testing.assert_allclose(made.numpy(), normalised(cut, given), atol=1e-5)


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize(("count", "sizes"), [(12, [4, 4, 4]), (13, [4, 4, 5]), (14, [4, 4, 4, 2])])
def test_batches_have_the_images_of_the_fast_ones(mini: tl.Splits, count: int, sizes: list[int]) -> None:
    """The order is the same in every epoch, and one image that is left over joins the batch before it."""
    images = replace(mini.train, files=mini.train.files[:count], labels=tuple(range(count)))  # a label is a number
    slow = PlainBatches(mini.root, images, PREPROCESSING, CPU)
    fast = Batches(open_store(mini), images, PREPROCESSING, CPU)
    for epoch in (0, 1):
        found, wanted = (
            [labels.tolist() for _, labels in each.training(4, seed=3, epoch=epoch)] for each in (slow, fast)
        )
        assert found == wanted and list(map(len, found)) == sizes
    assert [len(labels) for _, labels in slow.evaluation(4)] == sizes


def test_phases_are_marked(mini: tl.Splits) -> None:
    """The wait for the loader is `data`, and the way to the device is `transfer`."""
    marks: list[str] = []
    images = every(8, mini.train)
    for _ in PlainBatches(mini.root, images, PREPROCESSING, CPU).training(2, seed=0, epoch=0, mark=marks.append):
        marks.append("step")
    assert marks == ["data", "transfer", "step"]


@pytest.mark.usefixtures("no_workers")
def test_predictions_are_in_the_order_of_the_images(mini: tl.Splits) -> None:
    """Each is that of the trained network for the image at its place."""
    result = train(mini, "plain", learning_rate=0.05)
    shown = make_backbone(TINY[1], weights="random").preprocessing
    images = torch.stack([validation_transform(shown)(open_rgb(mini.root / file)) for file in mini.val.files])
    with torch.no_grad():
        confidences, labels = result.model(images).softmax(1).max(1)
    assert result.best.labels == labels.tolist()
    assert result.best.confidences == pytest.approx(confidences.tolist(), abs=1e-3)
    assert len(set(result.best.confidences)) > 1


def test_pillow_images_have_the_pixels_of_the_store(mini: tl.Splits, tmp_path: Path) -> None:
    """Also those that aren't plain: with an alpha channel, or of 16 bits."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (9, 7, 4), dtype=np.uint8), "RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(rng.integers(0, 65536, (9, 7), dtype=np.uint16)).save(tmp_path / "deep.png")
    for path in (tmp_path / "alpha.png", tmp_path / "deep.png", mini.root / mini.val.files[0]):
        image = open_rgb(path)
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), decode(path))


@pytest.mark.parametrize("regime", [name for name, regime in REGIMES.items() if not regime.plain])
def test_regimes_that_have_no_such_step_are_not_applicable(mini: tl.Splits, regime: str) -> None:
    """The message names the regime, and what would do."""
    with pytest.raises(NotApplicable, match=f"regime '{regime}' doesn't; use execution 'fast', or one of finetune, "):
        train(mini, "plain", regime)


def workers() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if one.name() == "pt_data_worker"]


def until_gone() -> bool:
    _, alive = psutil.wait_procs(workers(), timeout=10)
    return not alive


def test_a_damaged_image_ends_in_one_line_that_names_it(mini: tl.Splits, tmp_path: Path) -> None:
    """It may be damaged after it was checked. No worker is left."""
    for name in mini.train.files[:6]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((mini.root / name).read_bytes())
    damaged = tmp_path / mini.train.files[4]
    damaged.write_bytes(b"\xff\xd8\xff no image")
    images = replace(mini.train, files=mini.train.files[:6], labels=mini.train.labels[:6])
    with pytest.raises(DataError) as caught:
        list(PlainBatches(tmp_path, images, PREPROCESSING, CPU).evaluation(2))
    assert str(caught.value).startswith(f"{damaged}: can't be decoded: damaged or not an image")
    assert caught.value.args[0].count("\n") == 0
    assert until_gone()


@pytest.mark.skipif(not psutil.LINUX, reason="torch's message is that of Linux")
def test_a_worker_that_the_system_kills_is_a_lack_of_memory(mini: tl.Splits) -> None:
    """The kernel kills what takes the most memory, which may be a worker."""
    outcome = make_executor("process").call("tests.jobs:lose_a_worker", mini)
    assert outcome.status == "oom", (outcome.reason, outcome.traceback)
    assert "is killed by signal: Killed" in outcome.reason


def test_an_error_of_a_step_ends_the_workers(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """They don't live as long as somebody holds the error."""

    def fails(*_: object) -> None:
        assert workers()
        raise ValueError("a step")

    monkeypatch.setattr(PlainStep, "run", fails)
    with pytest.raises(ValueError, match="a step") as caught:
        train(mini, "plain")
    assert caught.tb is not None and until_gone()


def test_a_worker_leaves_ctrl_c_to_its_parent(mini: tl.Splits) -> None:
    """A terminal sends it to all processes of a group. The first one lets a cell end, so its workers go on."""
    before = signal.signal(signal.SIGINT, lambda *_: pytest.fail("the parent's handler ran in a worker"))
    try:
        batches = PlainBatches(mini.root, mini.train, PREPROCESSING, CPU).evaluation(2)
        found = [next(batches)]
        for one in workers():
            one.send_signal(signal.SIGINT)
        found += batches
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(found) == 12


@pytest.mark.skipif(not psutil.LINUX, reason="workers of other systems start in another way")
def test_workers_of_a_cell_end_with_it(mini: tl.Splits, tmp_path: Path) -> None:
    """They belong to its group, and are ended with it, when it takes too long."""
    process = make_executor("process")
    process.prepare()
    seen = tmp_path / "ids"
    for seconds in (8, 40, 200):  # on a busy machine the workers may not be there after the first limit
        call = process.call("tests.jobs:load_and_hang", mini, seen, limits=Limits(seconds=seconds))
        assert call.status == "timeout"
        if seen.is_file():
            break
    ids = [int(text) for text in seen.read_text().split()]
    assert len(ids) == 4 and all(not psutil.pid_exists(pid) or _ended(pid) for pid in ids)


def _ended(pid: int) -> bool:
    try:
        psutil.Process(pid).wait(10)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small network with both executions, and its report. Returns the folder it is in."""
    place = tmp_path_factory.mktemp("both")
    (place / "own.toml").write_text(
        'dataset = "synthetic-mini"\n[matrix]\nbackbones = ["timm:test_resnet"]\nregimes = ["frozen", "cached"]\n'
        'devices = ["cpu"]\nexecution = ["fast"]\n[train]\nepochs = 2\n'
    )
    options = ["--grid", "own.toml", "--weights", "random", "--execution", "fast,plain", "--no-images"]
    before = Path.cwd()
    os.chdir(place)
    try:
        done = here("run", *options)
    finally:
        os.chdir(before)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_a_grid_runs_with_both(both: Path) -> None:
    """Every cell has a record, which says what the execution changed; what makes no sense is skipped."""
    records = RunFolder(both / "results" / "own-random").records().values()
    found = {(one.cell.config.regime, one.cell.config.execution): one for one in records}
    assert {key: one.status for key, one in found.items()} == {
        ("frozen", "fast"): "done",
        ("frozen", "plain"): "done",
        ("cached", "fast"): "done",
        ("cached", "plain"): "skipped",
    }
    fast, slow = found["frozen", "fast"], found["frozen", "plain"]
    assert (str(fast.cell), str(slow.cell)) == (
        "timm:test_resnet frozen cpu seed 0",
        "timm:test_resnet frozen cpu plain seed 0",
    )
    assert slow.allocator == fast.allocator in (PAGES_KEPT, "default")
    assert fast.result is not None and slow.result is not None
    assert slow.result.frozen_verified is True and slow.result.memory_format == "contiguous"
    notes = {str(note) for note in slow.result.notes} - {str(note) for note in fast.result.notes}
    assert notes == {
        "memory is that of the training's own process, without its loader's 4 worker processes",
        "images were decoded in every epoch, so times include decoding",
    }
    assert slow.result.memory_method == f"{fast.result.memory_method}, without its loader's 4 worker processes"


def test_tables_show_it_where_it_varies(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has a column, and so has an export; names of cells have it unless it is the usual one."""
    monkeypatch.chdir(both)
    report = (both / "reports" / "own-random.md").read_text()
    assert "| execution " in report and "| plain " in report
    exported = here("export", "own-random", "--format", "csv").stdout
    rows = csv.DictReader(exported.splitlines())
    assert sorted(row["execution"] for row in rows) == ["fast", "fast", "plain", "plain"]


def test_executions_are_compared(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times compare; memory doesn't, since that of the workers isn't in it."""
    monkeypatch.chdir(both)
    text = here("compare", "own-random", "--by", "execution").stdout
    row = {cells[3].strip(): cells[1].strip() for line in text.splitlines() if len(cells := line.split("|")) > 4}
    assert row["peak memory"] == "not comparable" and row["epoch"] == "too few samples"
    assert "base: fast" in text
