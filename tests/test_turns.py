"""Process pairs: the protocol of turns, with processes that only pretend to train, and real trainings in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import tl
from bench.execution import turns
from bench.execution.base import PairAttempt, PairJob
from bench.execution.executors import make_executor
from bench.execution.process import ProcessExecutor
from bench.execution.turns import LEAST_ROUNDS, Prepared, Warm, run_pair, turn_size
from bench.store.pairs import PairRecord
from bench.store.records import Cell, PlannedPair
from tl.batches import Batches
from tl.config import TrainConfig
from tl.errors import ConfigError, NotApplicable
from tl.timing import timed_training
from tl.weights import Weights

RANDOM = Weights(kind="random", source="random", reason="for a test")


def cell(
    splits: tl.Splits,
    regime: str = "finetune",
    backbone: str = "timm:test_resnet",
    *,
    device: str = "cpu",
    **settings: Any,
) -> Cell:
    config = TrainConfig(backbone=backbone, regime=regime, weights="random", seed=0, **settings)
    return Cell(config=config, weights_digest="", dataset_digest=splits.digest, device=device)


def job_of(cells: list[Cell], splits: tl.Splits, log: Path, seconds: float = 0.01, **more: Any) -> PairJob:
    """A job whose log is in the folder `log`."""
    pair = PlannedPair(cells=tuple(cells), number=0, seconds=seconds)
    return PairJob(pair=pair, splits=splits, weights=(RANDOM,) * len(cells), log=log / "pair.log", **more)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PairAttempt]:
    """Times pairs whose processes misbehave as the regimes' backbones say; see `tests.jobs.pretend_to_train`."""
    monkeypatch.setattr(turns, "TIME_CELL", "tests.jobs:pretend_to_train")
    executor = ProcessExecutor()
    executor.prepare()

    def run(job: PairJob) -> PairAttempt:
        elsewhere = replace(job, splits=replace(job.splits, root=job.log.parent))  # for the diary
        return run_pair(executor.start, elsewhere, lambda text: None)

    return run


def record_of(job: PairJob, attempt: PairAttempt) -> PairRecord:
    """The record that a sweep writes. Its own checks pass."""
    return PairRecord(
        pair_id=job.pair.id,
        pair=job.pair,
        dataset="x",
        train_images=8,
        val_images=4,
        status=attempt.status,
        reason=attempt.reason,
        together=not attempt.apart,
        apart=attempt.apart,
        steps=attempt.steps,
        batches=attempt.batches,
        sides=attempt.sides,
        started=attempt.started,
        wall_seconds=attempt.wall_seconds,
        environment=attempt.environment,
        machine=attempt.machine,
    )


def pretending(splits: tl.Splits, *names: str) -> list[Cell]:
    return [cell(splits, backbone=f"timm:{name}") for name in names]


def test_turns_alternate_and_never_overlap(
    mini: tl.Splits, tmp_path: Path, pretended: Callable[..., PairAttempt]
) -> None:
    """Every second round has the opposite order, warm-up included one process runs at a time, and counts are even."""
    job = job_of(pretending(mini, "one", "two", "three"), mini, tmp_path)
    attempt = pretended(job)
    assert attempt.status == "done" and not attempt.apart and attempt.reason == ""
    lines = [line.split() for line in (tmp_path / "diary").read_text().splitlines()]
    assert all(
        a[:2] == b[:2] and (a[2], b[2]) == ("begins", "ends") for a, b in zip(lines[::2], lines[1::2], strict=True)
    )
    order = [name for name, what, when in lines if when == "begins" and what == "turn"]
    rounds = [order[start : start + 3] for start in range(0, len(order), 3)]
    forwards = ["one", "two", "three"]
    assert rounds == [forwards[::-1], *([forwards, forwards[::-1]] * (LEAST_ROUNDS // 2))]
    assert [len(side.turns or ()) for side in attempt.sides] == [LEAST_ROUNDS] * 3
    record_of(job, attempt)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.5, LEAST_ROUNDS), (8.5, 10), (9.5, 10), (10.5, 12)])
def test_a_pair_goes_on_for_its_seconds(
    seconds: float,
    rounds: int,
    mini: tl.Splits,
    tmp_path: Path,
    pretended: Callable[..., PairAttempt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There are as many rounds as fit, and an even number of them. A round takes a second of this clock."""
    ticks = count()
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    attempt = pretended(job_of(pretending(mini, "one", "two"), mini, tmp_path, seconds=seconds))
    assert [len(side.turns or ()) for side in attempt.sides] == [rounds] * 2


def test_preparing_is_timed_by_the_process_that_does_it(
    mini: tl.Splits, tmp_path: Path, pretended: Callable[..., PairAttempt]
) -> None:
    """The second of two doesn't count its wait for the first."""
    attempt = pretended(job_of(pretending(mini, "one", "two"), mini, tmp_path))
    assert [side.setup_seconds for side in attempt.sides] == [7.0, 7.0]


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("crashes-in-a-turn", "failed", "the cell's process ended without a result (exit status 7)"),
        ("fails-in-a-turn", "failed", "ValueError: in a turn"),
        ("fails-to-prepare", "failed", "the folder is empty"),
        ("dies-in-a-turn", "oom", "killed by the system, most likely because memory ran out"),
        ("diverges-in-a-turn", "diverged", "the training loss is not finite any more"),
        ("is-skipped", "skipped", "these don't go together"),
    ],
)
def test_a_process_that_ends_early_fails_and_the_others_go_on(
    name: str, status: str, reason: str, mini: tl.Splits, tmp_path: Path, pretended: Callable[..., PairAttempt]
) -> None:
    """With two left there is a result; with one there is none, and its reason is the first one's."""
    three = job_of(pretending(mini, "one", name, "two"), mini, tmp_path)
    attempt = pretended(three)
    assert (attempt.status, attempt.reason, attempt.apart) == ("done", "", "")
    assert [side.status for side in attempt.sides] == ["done", status, "done"]
    assert attempt.sides[1].reason.startswith(reason)
    assert record_of(three, attempt).settled is (status in ("skipped", "diverged"))
    two = job_of(pretending(mini, "one", name), mini, tmp_path)
    attempt = pretended(two)
    assert attempt.status == status and attempt.reason.startswith(f"finetune: {reason}")
    assert record_of(two, attempt).settled is (status == "diverged")


def test_cells_that_need_more_memory_than_there_is_are_timed_one_after_the_other(
    mini: tl.Splits, tmp_path: Path, pretended: Callable[..., PairAttempt]
) -> None:
    """The sizes are said, no two are alive at once, and all have the same number of turns."""
    huge = psutil.virtual_memory().total
    job = job_of(pretending(mini, "one", "two"), mini, tmp_path, needed_bytes=(huge, huge))
    attempt = pretended(job)
    assert attempt.status == "done" and "of memory" in attempt.apart and "free" in attempt.apart
    names = [line.split()[0] for line in (tmp_path / "diary").read_text().splitlines()]
    assert names == sorted(names, key=["one", "two"].index)
    assert len({len(side.turns or ()) for side in attempt.sides}) == 1
    record_of(job, attempt)


def test_a_process_that_dies_alone_shortens_no_other(
    mini: tl.Splits, tmp_path: Path, pretended: Callable[..., PairAttempt]
) -> None:
    """Only the turns of one that is done are a measure for those after it."""
    huge = psutil.virtual_memory().total
    cells = pretending(mini, "crashes-in-a-turn", "one", "two")
    job = job_of(cells, mini, tmp_path, needed_bytes=(huge,) * 3)
    attempt = pretended(job)
    assert attempt.apart and [side.status for side in attempt.sides] == ["failed", "done", "done"]
    counts = [len(side.turns or ()) for side in attempt.sides]
    assert counts[0] == 0 and counts[1] == counts[2] >= LEAST_ROUNDS
    record_of(job, attempt)


def test_memory_that_runs_out_beside_the_others_is_tried_alone(
    mini: tl.Splits, tmp_path: Path, pretended: Callable[..., PairAttempt]
) -> None:
    """What each of them has alone may suffice, and the sizes that are known are said. Three take no turns before that.

    One that has too little alone fails in the end.
    """
    job = job_of(pretending(mini, "one", "needs-much-beside-others"), mini, tmp_path, needed_bytes=(None, 5 << 20))
    attempt = pretended(job)
    assert attempt.status == "done"
    assert attempt.apart.startswith("finetune failed beside the others: out of memory: asked for")
    assert attempt.apart.endswith("; known peaks: finetune 3 MiB, finetune 5 MiB")
    (tmp_path / "diary").unlink()
    three = job_of(pretending(mini, "one", "needs-much-beside-others", "two"), mini, tmp_path)
    attempt = pretended(three)
    assert [side.status for side in attempt.sides] == ["done"] * 3 and attempt.apart
    lines = (tmp_path / "diary").read_text().splitlines()
    assert [line.split()[1] for line in lines[:6]] == ["warm-up"] * 6, "one and two together, then one alone"
    record_of(three, attempt)
    hopeless = job_of(pretending(mini, "one", "dies-in-a-turn"), mini, tmp_path)
    attempt = pretended(hopeless)
    assert attempt.status == "oom" and attempt.apart
    assert [side.status for side in attempt.sides] == ["done", "oom"]
    record_of(hopeless, attempt)


def test_a_limit_of_its_own_is_not_tried_alone(
    mini: tl.Splits, tmp_path: Path, pretended: Callable[..., PairAttempt]
) -> None:
    """It would be the same there."""
    job = job_of(pretending(mini, "one", "needs-much-beside-others"), mini, tmp_path, memory_bytes=1 << 32)
    attempt = pretended(job)
    assert (attempt.status, attempt.apart) == ("oom", "") and "(limit: 4 GiB)" in attempt.reason
    record_of(job, attempt)


def test_the_time_limit_is_that_of_each_process(
    mini: tl.Splits, tmp_path: Path, pretended: Callable[..., PairAttempt]
) -> None:
    """A process that hangs in its turn ends with it, and so does the pair."""
    diary = tmp_path / "diary"
    for limit in (2.0, 8.0, 60.0):  # on a busy machine it may not get as far as a turn
        diary.unlink(missing_ok=True)
        attempt = pretended(job_of(pretending(mini, "one", "hangs"), mini, tmp_path, timeout_seconds=limit))
        if diary.exists() and "hangs turn begins\n" in diary.read_text():
            break
    assert "hangs turn begins\n" in diary.read_text() and "hangs turn ends" not in diary.read_text()
    assert attempt.status == "timeout" and f"timeout of {limit:g} s" in attempt.reason


def test_a_turn_has_the_proportion_of_an_epoch() -> None:
    """It has at least one step and one batch, and at most an epoch of each."""
    epoch = Prepared(train_batches=61, val_batches=38, seconds=1.0)
    slow, quick = Warm(step_seconds=0.08, batch_seconds=0.02), Warm(step_seconds=0.01, batch_seconds=0.01)
    assert turn_size([(epoch, slow), (epoch, quick)], 0.3) == (3, 2)
    assert turn_size([(epoch, quick)], 0.3) == (18, 11)
    assert turn_size([(epoch, Warm(step_seconds=9.0, batch_seconds=3.0))], 0.3) == (1, 1)
    assert turn_size([(epoch, Warm(step_seconds=1e-6, batch_seconds=1e-6))], 0.3) == (61, 38)
    nothing = Prepared(train_batches=0, val_batches=38, seconds=1.0)
    assert turn_size([(nothing, Warm(step_seconds=0.0, batch_seconds=0.1))], 0.3) == (0, 3)


def test_a_turn_has_whole_groups_of_batches() -> None:
    """A forward pass for several batches belongs to the turn that trains on them."""
    alone, ahead, further = (Prepared(train_batches=61, val_batches=38, seconds=1.0, group=g) for g in (1, 4, 6))
    slow = Warm(step_seconds=0.08, batch_seconds=0.02)
    assert turn_size([(alone, slow), (alone, slow)], 0.3) == (3, 2)
    assert turn_size([(alone, slow), (ahead, slow)], 0.3) == (4, 4)
    assert turn_size([(further, slow), (ahead, slow)], 0.3) == (12, 38)  # a pass of 38 has few groups of 12
    loading = Prepared(train_batches=610, val_batches=380, seconds=1.0, group=4, margin=5, least=10)
    steps, batches = turn_size([(loading, slow), (loading, slow)], 0.3)
    assert steps % 4 == batches % 4 == 0 and min(steps, batches) >= 10


@pytest.mark.parametrize(
    "settings",
    [{"execution": "fast"}, {"execution": "plain"}, {"regime": "frozen", "lookahead": 3, "fold": True}],
    ids=str,
)
def test_turns_do_the_steps_of_a_training(settings: dict[str, Any], mini: tl.Splits) -> None:
    """The same batches in the same order: after an epoch of turns the weights are those of `train_model`."""
    config = cell(mini, **settings, epochs=1).config
    with timed_training(config, mini, device="cpu", weights=RANDOM) as timed:
        for _ in range(timed.train_batches):
            turn = timed.turn(1, 1)
            assert turn.train_seconds and turn.train_seconds > 0 and turn.val_seconds > 0
            assert turn.train_images == turn.val_images == config.batch_size
        ours = timed._setup.freezing.tensors()
        ours = {name: value.clone() for name, value in ours.items()}
    trained = tl.train_model(config, mini, device="cpu", weights=RANDOM, keep="last").model
    theirs = dict([*trained.named_parameters(), *trained.named_buffers()])  # type: ignore[union-attr]
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_turns_may_begin_with_another_epoch(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process gets the number of its pair, so that pairs don't all time the same images."""
    epochs: list[int] = []
    original = Batches.training

    def training(self: Batches, *given: Any, epoch: int, **settings: Any) -> Any:
        epochs.append(epoch)
        return original(self, *given, epoch=epoch, **settings)

    monkeypatch.setattr(Batches, "training", training)
    with timed_training(cell(mini).config, mini, device="cpu", weights=RANDOM, first_epoch=3) as timed:
        timed.turn(timed.train_batches + 1, 1)
    assert epochs == [3, 4]


def test_an_epoch_of_turns_may_be_followed_by_another(mini: tl.Splits) -> None:
    """Turns go over the end of a pass, and workers' starts are counted per pass."""
    config = cell(mini, execution="plain", regime="frozen-tutorial").config
    with timed_training(config, mini, device="cpu", weights=RANDOM) as timed:
        images = [timed.turn(timed.train_batches + 1, 1).train_images for _ in range(2)]
        timed.close()
        assert timed.start_seconds > 0
    assert sum(images) > 2 * len(mini.train)
    fast = config.replace(execution="fast")
    with timed_training(fast, mini, device="cpu", weights=RANDOM) as timed:
        timed.turn(1, 1)
        timed.close()
        assert timed.start_seconds == 0.0


def test_a_regime_without_steps_on_images_has_no_turns(mini: tl.Splits) -> None:
    """Features that are extracted once belong to no epoch. A regime that trains nothing has validation alone."""
    with pytest.raises(NotApplicable, match="extracts its features once"):
        timed_training(cell(mini, regime="cached").config, mini, device="cpu", weights=RANDOM).__enter__()


def test_real_cells_take_turns(mini: tl.Splits, tmp_path: Path) -> None:
    """The whole way, with torch: raw turns, memory and work of each process, and a record of them."""
    cells = [cell(mini, regime) for regime in ("finetune", "frozen")]
    job = job_of(cells, mini, tmp_path)
    attempt = run_pair(make_executor("process").start, job, lambda text: None)  # type: ignore[attr-defined]
    assert attempt.status == "done", [side.traceback for side in attempt.sides]
    record = record_of(job, attempt)
    slow, fast = record.sides
    assert slow.turns and fast.turns and len(slow.turns) == len(fast.turns) >= LEAST_ROUNDS
    assert slow.turns.train_images == fast.turns.train_images
    assert slow.work and fast.work and slow.work.backward_flops > fast.work.backward_flops
    assert slow.work.forward_flops == fast.work.forward_flops
    assert slow.peak_memory_bytes and slow.start_seconds == 0.0 and slow.threads
    assert record.side(cells[1].but(seed=7)) == fast


def test_rates_of_a_grid_are_no_obstacle(mini: tl.Splits, tmp_path: Path) -> None:
    """Protocol `tuned` with rates of its own is timed as one training, which doesn't read them."""
    cells = [cell(mini, regime, protocol="tuned", learning_rates=(0.1, 0.2)) for regime in ("finetune", "frozen")]
    attempt = run_pair(make_executor("process").start, job_of(cells, mini, tmp_path), lambda text: None)  # type: ignore[attr-defined]
    assert attempt.status == "done", attempt.reason


def test_an_executor_with_one_process_refuses(mini: tl.Splits, tmp_path: Path) -> None:
    """It says which executor can."""
    executor = make_executor("inline")
    assert not executor.takes_turns
    with pytest.raises(ConfigError, match="use executor 'process'"):
        executor.run_pairs([], None, lambda: False)  # type: ignore[arg-type]


def test_a_training_that_diverges_takes_no_more_turns(mini: tl.Splits, tmp_path: Path) -> None:
    """NaN takes other times than numbers."""
    cells = [cell(mini, learning_rate=9e9, optimizer="sgd"), cell(mini, "frozen")]
    job = job_of(cells, mini, tmp_path)
    attempt = run_pair(make_executor("process").start, job, lambda text: None)  # type: ignore[attr-defined]
    assert attempt.status == "diverged" and "not finite" in attempt.reason
    assert record_of(job, attempt).settled, "the same settings would diverge again"
    assert attempt.sides[0].turns is None
