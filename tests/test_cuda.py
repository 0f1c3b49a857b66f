"""Tests that need an NVIDIA GPU; skipped without one."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tl
import tl.prepare
from bench.execution.executors import make_executor
from bench.execution.turns import run_pair
from bench.store.runs import RunFolder
from tests.commands import here
from tests.conftest import TINY
from tests.images import write_image
from tests.test_turns import cell, job_of
from tests.weights import published
from tl.backbones import make_backbone
from tl.batches import Batches, resident_pixels
from tl.clock import Clock
from tl.heads import train_heads
from tl.images import open_store
from tl.precision import supported
from tl.regimes import REGIMES
from tl.timing import timed_training

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
DEVICE = "cuda"
LEARNING = [name for name, regime in REGIMES.items() if regime.by_steps and regime.extractor == "float"]


def train(splits: tl.Splits, device: str, **settings: object) -> tl.TrainResult:
    given = {"backbone": TINY[1], "weights": "random", "epochs": 3, **settings}
    return tl.train_model(tl.TrainConfig(**given), splits, device=device)


@pytest.mark.parametrize("regime", LEARNING)
def test_a_gpu_trains_the_same_network(mini: tl.Splits, regime: str) -> None:
    """Losses equal those on the CPU up to rounding; frozen backbones stay bit-identical."""
    here, there = (train(mini, device, regime=regime) for device in ("cpu", "cuda"))
    for one, other in zip(here.epochs, there.epochs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=2e-3)
        assert other.val_loss == pytest.approx(one.val_loss, rel=2e-3)
    assert there.frozen_verified is here.frozen_verified
    assert there.cuda_graph and not any("without CUDA graphs" in note.text for note in there.notes)
    assert there.work == here.work or there.work.forward_flops == here.work.forward_flops


@pytest.mark.parametrize("regime", LEARNING)
@pytest.mark.parametrize(
    "settings", [{}, {"optimizer": "adamw"}, {"precision": "bf16"}, {"precision": "fp16"}], ids=str
)
def test_graphs_train_as_plain_steps_do(mini: tl.Splits, regime: str, settings: dict[str, object]) -> None:
    """Losses agree with a learning rate that changes every epoch and a last batch of another size."""
    config = tl.TrainConfig(
        **{"backbone": TINY[1], "weights": "random", "epochs": 5, "regime": regime, "batch_size": 5, **settings},
        step_size=1,
        gamma=0.7,
    )
    plain, graphed = (tl.train_model(config, mini, device="cuda", cuda_graphs=graphs) for graphs in (False, True))
    assert (plain.cuda_graph, graphed.cuda_graph) == (False, True)
    for one, other in zip(plain.epochs, graphed.epochs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-3 if "precision" in settings else 1e-4)
        assert other.val_loss == pytest.approx(one.val_loss, rel=1e-2 if "precision" in settings else 1e-3)
    assert graphed.cuda_allocated_bytes < 1.5 * plain.cuda_allocated_bytes


@pytest.mark.parametrize(
    "settings", [{"fold": True}, {"lookahead": 3}, {"fold": True, "lookahead": "auto", "precision": "bf16"}], ids=str
)
def test_frozen_backbones_folded_and_ahead_replay_graphs(mini: tl.Splits, settings: dict[str, object]) -> None:
    """The same losses as without either, up to rounding, and the first step counts the same work."""
    usual = {name: value for name, value in settings.items() if name == "precision"}
    plain = train(mini, "cuda", regime="frozen", epochs=4, **usual)
    found = train(mini, "cuda", regime="frozen", epochs=4, **settings)
    assert found.cuda_graph and not any("without CUDA graphs" in note.text for note in found.notes)
    for one, other in zip(plain.epochs, found.epochs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=2e-2 if usual else 1e-4)
        assert other.val_loss == pytest.approx(one.val_loss, rel=2e-2 if usual else 1e-3)
    assert found.frozen_verified and found.work == plain.work
    assert found.packed_layers in (None, 0)


@pytest.mark.parametrize("regime", ["finetune", "frozen"])
def test_a_precision_is_chosen(mini: tl.Splits, regime: str) -> None:
    """All precisions of the GPU are tried, in its usual layouts and then in the others."""
    found = train(mini, "cuda", regime=regime, precision="auto")
    assert found.choice is not None and found.precision in supported(torch.device("cuda"))
    assert {each.precision for each in found.choice.tried} == set(supported(torch.device("cuda")))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_heads_are_trained_at_once_as_if_alone(mini: tl.Splits, optimizer: str) -> None:
    """Their own training replays graphs, theirs together doesn't."""
    given = {"backbone": TINY[1], "weights": "random", "epochs": 3, "regime": "cached", "optimizer": optimizer}
    configs = [tl.TrainConfig(**given, learning_rate=rate) for rate in (1e-3, 1e-2)]
    for one in train_heads(configs, mini, device="cuda"):
        alone = tl.train_model(one.config, mini, device="cuda")
        for row, other in zip(one.epochs, alone.epochs, strict=True):
            assert row.train_loss == pytest.approx(other.train_loss, rel=1e-4)
            assert row.val_loss == pytest.approx(other.val_loss, rel=1e-4)


def test_what_cannot_be_captured_runs_plainly(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that reads its own values runs eagerly: the reason is noted, and figures are the same."""

    class Looks(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images) if images.sum().item() else images

    original = tl.prepare.make_backbone

    def make(*arguments: object, **settings: object) -> object:
        made = original(*arguments, **settings)
        return replace(made, module=Looks(made.module))

    monkeypatch.setattr("tl.prepare.make_backbone", make)
    config = tl.TrainConfig(backbone=TINY[1], weights="random", epochs=3, regime="finetune")
    plain, tried = (tl.train_model(config, mini, device="cuda", cuda_graphs=graphs) for graphs in (False, True))
    assert tried.cuda_graph is False and any(note.text.startswith("without CUDA graphs: ") for note in tried.notes)
    for one, other in zip(plain.epochs, tried.epochs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)


@pytest.mark.parametrize("backbone", [*TINY, "timm:tf_efficientnet_lite0"])
def test_crops_made_on_the_gpu_are_those_of_the_cpu(mini: tl.Splits, backbone: str) -> None:
    """Pixels differ only by rounding, at most two of 255 levels, bilinear and bicubic."""
    made, store, gpu = make_backbone(backbone, weights="random"), open_store(mini), torch.device("cuda")
    resident = resident_pixels(store, gpu)
    assert resident is not None and resident.is_cuda
    there = Batches(store, mini.train, made.preprocessing, gpu, resident=resident)
    here = Batches(store, mini.train, made.preprocessing, torch.device("cpu"))
    levels = 255 * torch.tensor(made.preprocessing.std).view(1, 3, 1, 1)
    for which in ("training", "evaluation"):
        settings = {"seed": 0, "epoch": 0} if which == "training" else {}
        pairs = zip(getattr(here, which)(4, **settings), getattr(there, which)(4, **settings), strict=True)
        for (one, labels), (other, same) in pairs:
            assert labels.tolist() == same.tolist()
            assert ((one - other.cpu()) * levels).abs().max() <= 2.01
    again = [images for images, _ in there.evaluation(4)]
    assert all(torch.equal(a, b) for a, (b, _) in zip(again, there.evaluation(4), strict=True))


def test_images_on_the_gpu_are_not_counted_as_network_memory(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory is about the same whether images are kept on the GPU or copied to it."""
    with_them = train(mini, "cuda", regime="frozen")
    assert with_them.resident_image_bytes > 0
    monkeypatch.setattr("tl.prepare.resident_pixels", lambda *_: None)
    without = train(mini, "cuda", regime="frozen")
    assert without.resident_image_bytes == 0
    assert with_them.peak_memory_bytes == pytest.approx(without.peak_memory_bytes, rel=0.1)
    for one, other in zip(with_them.epochs, without.epochs, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=2e-2)


def test_replayed_evaluations_do_not_count_as_replayed_steps(mini: tl.Splits) -> None:
    """Three training steps are all eager, even if validation batches are replayed."""
    few = replace(mini, train=replace(mini.train, files=mini.train.files[:12], labels=mini.train.labels[:12]))
    assert train(few, "cuda", regime="frozen", epochs=1).cuda_graph is False


def test_tf32_is_close_to_fp32_and_not_the_same(mini: tl.Splits) -> None:
    """TF32 rounds factors to ten bits, which changes losses a little."""
    exact, rounded = (train(mini, "cuda", regime="finetune", precision=name) for name in ("fp32", "tf32"))
    assert rounded.epochs[0].train_loss != exact.epochs[0].train_loss
    assert rounded.epochs[0].train_loss == pytest.approx(exact.epochs[0].train_loss, rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_phases_add_up_to_the_epoch(mini: tl.Splits, precision: str) -> None:
    """Events in the device's queue give phases that add up within 2%."""
    for row in train(mini, "cuda", regime="finetune", precision=precision).epochs[1:]:
        parts = row.phases.model_dump()
        assert sum(parts.values()) == pytest.approx(row.train_seconds + row.val_seconds, rel=0.02)
        assert min(parts.values()) >= -1e-4 and parts["other"] < 0.1 * sum(parts.values())


def test_the_host_waits_once_per_epoch_not_once_per_batch(mini: tl.Splits) -> None:
    """Ten more batches of training and validation add fewer than five synchronisations."""

    def waits(batch_size: int) -> int:
        train(mini, "cuda", regime="finetune", batch_size=batch_size, epochs=1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train(mini, "cuda", regime="finetune", batch_size=batch_size, epochs=1)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    assert waits(2) - waits(4) < 5


def test_frozen_needs_less_memory_than_fine_tuning(mini: tl.Splits) -> None:
    """Fine-tuning allocates more; reserved memory is at least the allocated memory."""
    slow, fast = (train(mini, "cuda", regime=regime, batch_size=8) for regime in ("finetune", "frozen"))
    assert slow.cuda_allocated_bytes > fast.cuda_allocated_bytes > 0
    for result in (slow, fast):
        assert result.cuda_reserved_bytes >= result.cuda_allocated_bytes


def test_a_seed_repeats_itself(mini: tl.Splits) -> None:
    """Losses are equal up to the order of additions."""
    one, other = (train(mini, "cuda", regime="finetune") for _ in range(2))
    assert one.epochs[-1].train_loss == pytest.approx(other.epochs[-1].train_loss, rel=1e-4)


def test_the_clock_takes_less_than_a_hundredth_of_a_step(mini: tl.Splits) -> None:
    """The step has four marks. It fine-tunes the smallest network of the default grid, replayed from graphs.

    The share is an upper bound: marks take the host's time, and the GPU mostly takes longer than the host.
    """
    result = train(mini, "cuda", regime="finetune", backbone="timm:mobilenetv3_small_100")
    steps = -(-len(mini.train) // 4)
    clock = Clock(torch.device("cuda"))

    def step() -> float:
        clock.start()
        begun = time.perf_counter()
        for _ in range(4 * steps):
            clock.mark("forward")
        torch.cuda.synchronize()
        return (time.perf_counter() - begun) / steps

    marks = sorted(step() for _ in range(51))[25]  # after the first call events are reused, as in training
    share = marks / (result.train_epoch_seconds / steps)
    assert share < 0.01, f"{1e6 * marks:.0f} µs of a step, {share:.2%}"


def test_single_precision_is_not_rounded_to_tf32(mini: tl.Splits) -> None:
    """The error shows it: TF32 would keep only ten bits of each factor."""
    from tl.precision import single_precision

    torch.manual_seed(0)
    one = torch.randn(512, 512, device="cuda")
    exact = one.double() @ one.double()
    with single_precision("fp32"):
        error = float(((one @ one).double() - exact).abs().max())
    assert error < 1e-3


def test_more_memory_than_the_gpu_has() -> None:
    """The status is `oom` with the requested size, and the next cell is not affected."""
    executor = make_executor("process")
    outcome = executor.call("tests.jobs:run_out_of_gpu_memory")
    assert outcome.status == "oom" and outcome.reason.startswith("out of memory: asked for "), outcome.reason
    assert executor.call("tests.jobs:double", 1).value == 2


@pytest.mark.parametrize("execution", ["fast", "plain"])
def test_turns_do_the_steps_of_a_training(mini: tl.Splits, execution: str) -> None:
    """After an epoch of turns the weights are those of `train_model`, up to the order of additions."""
    config = tl.TrainConfig(
        backbone=TINY[1], weights="random", epochs=1, regime="finetune", execution=execution, batch_size=2
    )
    with timed_training(config, mini, device="cuda") as timed:
        images = [timed.turn(1, 1).train_images for _ in range(timed.train_batches)]
        ours = {name: value.clone() for name, value in timed._setup.freezing.tensors().items()}
        assert (timed.peak().bytes or 0) > 0
    assert sum(images) == len(mini.train)
    trained = tl.train_model(config, mini, device="cuda", keep="last").model
    theirs = dict([*trained.named_parameters(), *trained.named_buffers()])  # type: ignore[union-attr]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name].to(value), rtol=1e-2, atol=1e-4)


def test_cells_take_turns_on_a_gpu(mini: tl.Splits, tmp_path: Path) -> None:
    """Each process has its own memory there, and fine-tuning takes more of it."""
    cells = [cell(mini, regime, device="cuda:0") for regime in ("finetune", "frozen")]
    attempt = run_pair(make_executor("process").start, job_of(cells, mini, tmp_path), lambda text: None)  # type: ignore[attr-defined]
    assert attempt.status == "done", [side.traceback for side in attempt.sides]
    slow, fast = attempt.sides
    assert slow.turns and fast.turns and len(slow.turns) == len(fast.turns)
    assert slow.peak_memory_bytes and fast.peak_memory_bytes
    assert slow.peak_memory_bytes > fast.peak_memory_bytes


@pytest.mark.parametrize("regime", ["finetune", "ridge"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_model_trained_on_a_gpu_is_kept_and_predicts(tmp_path: Path, regime: str, precision: str) -> None:
    """What is saved is compared with what was trained, both in the arithmetic that the model predicts in."""
    words = ("run", "--grid", "smoke", "--backbone", TINY[1], "--regime", regime, "--device", DEVICE, "--name", "r")
    more = ("--epochs", "2", "--precision", precision, "--no-report", "--no-paired")
    done = here(*words, *more, "--weights-dir", str(published()))
    assert done.returncode == 0, done.stdout + done.stderr
    (cell_id,) = RunFolder(tmp_path / "results" / "r").manifest().cells
    done = here("train", "r", "--cell", cell_id, "--weights-dir", str(published()), "--out", "m")
    assert done.returncode == 0 and "accuracy:" in done.stdout, done.stdout + done.stderr
    write_image(tmp_path / "new.png")
    said = [here("predict", "m", "new.png", "--device", device, "--format", "json") for device in (DEVICE, "cpu")]
    assert [one.returncode for one in said] == [0, 0], said
    assert "new.png" in said[0].stdout
