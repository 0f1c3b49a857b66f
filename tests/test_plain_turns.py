"""Turns of execution `plain`: which batches of a pass they have, and what its workers do meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import tl
from bench.execution.turns import WHOLE_SECONDS, Prepared, Warm, turn_size
from tests.test_executors import wait_until
from tests.test_turns import RANDOM, cell
from tl.batches import Batches
from tl.plain import LOADED_AHEAD, PlainBatches
from tl.timing import TimedTraining, timed_training

AHEAD = 2
"""Batches at each end of a pass that pieces leave out, in these tests: the passes of `mini` are short."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The place in its pass of each batch that the loop was given, with its split."""
    monkeypatch.setattr(PlainBatches, "loaded_ahead", AHEAD)
    seen: list[tuple[str, int]] = []
    for name in ("training", "evaluation"):
        original = getattr(PlainBatches, name)

        def batches(
            self: PlainBatches, *given: Any, original: Any = original, name: str = name, **settings: Any
        ) -> Iterator[Any]:
            inner = original(self, *given, **settings)
            try:
                for place, batch in enumerate(inner):
                    seen.append((name, place))
                    yield batch
            finally:
                inner.close()

        monkeypatch.setattr(PlainBatches, name, batches)
    return seen


@pytest.fixture
def timed(mini: tl.Splits, asked: list[tuple[str, int]]) -> Iterator[TimedTraining]:
    """A training with passes of 24 training and 16 validation batches."""
    config = cell(mini, execution="plain", regime="frozen-tutorial", batch_size=1).config
    with timed_training(config, mini, device="cpu", weights=RANDOM) as made:
        assert (made.train_batches, made.val_batches, made.margin) == (24, 16, AHEAD)
        yield made


def test_pieces_are_from_the_middle_of_a_pass(timed: TimedTraining, asked: list[tuple[str, int]]) -> None:
    """The first batches of a pass are taken before the clock starts, and the last ones never. Starts are counted."""
    for number in range(8):
        asked.clear()
        turn = timed.turn(5, 3)
        assert (turn.train_images, turn.val_images) == (5, 3)
        train = [place for name, place in asked if name == "training"]
        val = [place for name, place in asked if name == "evaluation"]
        assert train[-5:] == list(range(train[-5], train[-5] + 5)) and val[-3:] == list(range(val[-3], val[-3] + 3))
        assert train[-5] >= AHEAD and train[-1] < 24 - AHEAD and val[-3] >= AHEAD and val[-1] < 16 - AHEAD
        assert len(train) == (5 + AHEAD if number % 4 == 0 else 5), "a pass has room for four pieces of five"
    timed.close()
    assert timed.start_seconds > 0


def test_a_whole_pass_has_its_start_and_its_end(timed: TimedTraining, asked: list[tuple[str, int]]) -> None:
    """Workers start and end in the turn, so nothing is added to it, whatever the warm-up took."""
    before = set(psutil.Process().children())  # the servers of other tests
    timed.warm_up()
    for _ in range(2):
        asked.clear()
        turn = timed.turn(24, 16)
        assert (turn.train_images, turn.val_images) == (24, 16)
        assert asked == [*(("training", n) for n in range(24)), *(("evaluation", n) for n in range(16))]
        assert not set(psutil.Process().children()) - before, "the workers have ended"
    timed.close()
    assert timed.start_seconds == 0.0


def test_a_whole_pass_includes_its_start(mini: tl.Splits) -> None:
    """A pause in the loader at the start of each pass is in the turn, and in the epoch of a training."""
    config = cell(mini, execution="plain", regime="frozen-tutorial", epochs=1).config
    pause = 0.7

    def slowly(
        self: PlainBatches, *given: Any, original: Any = PlainBatches.training, **settings: Any
    ) -> Iterator[Any]:

        time.sleep(pause)
        yield from original(self, *given, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainBatches, "training", slowly)
        with timed_training(config, mini, device="cpu", weights=RANDOM) as made:
            assert (made.turn(made.train_batches, made.val_batches).train_seconds or 0) > pause
        assert tl.train_model(config, mini, device="cpu", weights=RANDOM).epochs[0].train_seconds > pause


@pytest.mark.skipif(sys.platform == "win32", reason="processes have other states there")
def test_workers_rest_between_turns(timed: TimedTraining) -> None:
    """They load nothing while another process has its turn, and go on in the next."""
    before = set(psutil.Process().children())
    timed.turn(5, 3)
    workers = set(psutil.Process().children()) - before
    assert len(workers) >= 8
    assert wait_until(lambda: {each.status() for each in workers} == {psutil.STATUS_STOPPED})
    timed.turn(5, 3)
    timed.close()
    assert wait_until(lambda: not any(each.is_running() for each in workers))


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Linux continues stopped groups that lost their parent"
)
def test_resting_workers_end_with_a_killed_training() -> None:
    """Stopped as they are, they can't see it, but the kernel ends them."""
    code = """
import time, tl
from tl.timing import timed_training
config = tl.TrainConfig(
    backbone="timm:test_resnet", weights="random", regime="frozen-tutorial", execution="plain", batch_size=1
)
with timed_training(config, tl.load_splits("synthetic-mini"), device="cpu") as timed:
    timed.turn(4, 4)  # each worker has given a batch
    print("resting", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "resting\n"
            workers = psutil.Process(process.pid).children()
            assert len(workers) >= 4
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(each.is_running() for each in workers), seconds=30)


def test_pieces_and_whole_passes_are_chosen_by_size() -> None:
    """A turn is a whole pass if the epoch is short, or if a pass has no room for a piece with its margins."""
    epoch = Prepared(train_batches=61, val_batches=38, margin=LOADED_AHEAD, seconds=1.0)
    assert turn_size([(epoch, Warm(step_seconds=0.15, batch_seconds=0.1))], 0.6) == (3, 2)
    quick = WHOLE_SECONDS / 100
    assert turn_size([(epoch, Warm(step_seconds=quick, batch_seconds=quick))], 0.6) == (61, 38)
    few = Prepared(train_batches=61, val_batches=17, margin=LOADED_AHEAD, seconds=1.0)
    assert turn_size([(few, Warm(step_seconds=0.15, batch_seconds=0.1))], 0.6) == (3, 1)
    fewer = Prepared(train_batches=61, val_batches=16, margin=LOADED_AHEAD, seconds=1.0)
    assert turn_size([(fewer, Warm(step_seconds=0.15, batch_seconds=0.1))], 0.6) == (3, 16)


def test_threads_that_decode_have_nothing_left_to_do_after_a_turn(
    mini: tl.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pixels are not stored, a turn has as many batches loaded as taken, and none in another process's turn."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    monkeypatch.setattr("tl.images.STORE_LIMIT_BYTES", 0)
    monkeypatch.setattr("tl.batches._MOST_WORKERS", 1)
    loaded: list[int] = []
    original = Batches._stacked

    def slowly(self: Batches, images: list[Any]) -> Any:
        time.sleep(0.02)
        loaded.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Batches, "_stacked", slowly)
    config = cell(mini, regime="frozen", batch_size=1).config
    with timed_training(config, mini, device="cpu", weights=RANDOM) as made:
        assert made.margin == 3
        for number in range(3):
            before = len(loaded)
            made.turn(4, 3)
            assert len(loaded) == before + 4 + 3 + (0 if number else 2 * (2 * made.margin - 1))
            before = len(loaded)
            time.sleep(0.1)
            assert len(loaded) == before, "threads go on"
