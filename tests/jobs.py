"""Functions that the tests of executors call. They are in a module of their own so that child processes import it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def double(value: int, emit: Any) -> int:
    emit("half way")
    return 2 * value


def fail(emit: Any) -> None:
    raise ValueError("first line\nsecond line")


def user_error(emit: Any) -> None:
    from tl.errors import DataError

    raise DataError("the folder is empty")


def not_applicable(emit: Any) -> None:
    from tl.errors import NotApplicable

    raise NotApplicable("these don't go together")


def run_out_of_memory(emit: Any) -> None:
    import torch

    torch.empty(1 << 60)


def run_out_of_gpu_memory(emit: Any) -> None:
    import torch

    torch.empty(2 * torch.cuda.mem_get_info()[1], dtype=torch.uint8, device="cuda")


def be_killed(emit: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash(emit: Any) -> None:
    os._exit(7)


def leave_a_child(file: Path, emit: Any) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    file.write_text(str(child.pid))


def leave_a_child_and_crash(file: Path, emit: Any) -> None:
    leave_a_child(file, emit)
    os._exit(7)


def fork_and_crash(emit: Any) -> None:
    """Crash, while a forked child keeps this process's end of the pipe open."""
    if os.fork() == 0:
        time.sleep(1000)
    os.kill(os.getpid(), signal.SIGSEGV)


def say_and_crash(words: str, emit: Any) -> None:
    sys.stderr.write(words)
    sys.stderr.flush()
    os.abort()


def hang(file: Path, emit: Any) -> None:
    """Write the ids of this process and of a child to a file, then hang."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    file.write_text(f"{os.getpid()} {child.pid}")
    emit("hanging")
    time.sleep(1000)


def nap(seconds: float, emit: Any) -> None:
    time.sleep(seconds)


def burn(seconds: float, emit: Any) -> None:
    """Use so many seconds of CPU time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def burn_and_be_killed(seconds: float, emit: Any) -> None:
    burn(seconds, emit)
    be_killed(emit)


def signals_ignored(numbers: list[int], emit: Any) -> list[bool]:
    """Whether this process ignores each of these signals, and holds none of them back."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return [signal.getsignal(number) == signal.SIG_IGN and number not in blocked for number in numbers]


def load_and_hang(splits: Any, file: Path, emit: Any) -> None:
    """Start the workers of a plain loader, write down their ids, and hang."""
    import psutil

    batches = _batches(splits)
    next(batches)
    file.write_text(" ".join(str(one.pid) for one in psutil.Process().children()))
    time.sleep(1000)


def lose_a_worker(splits: Any, emit: Any) -> None:
    """Load images, of which the first worker is killed."""
    import psutil

    for number, _ in enumerate(_batches(splits)):
        if number == 0:
            psutil.Process().children()[0].kill()


def pretend_to_train(
    cell: Any, splits: Any, weights: Any, threads: int, checked: object, number: int, orders: Any, emit: Any
) -> dict[str, Any]:
    """Take turns as `bench.execution.worker:time_cell` does, or misbehave as the backbone's name says.

    It writes into a file `diary` beside the images when it is busy.
    """
    import contextlib

    import psutil

    from bench.execution.turns import END, Prepared, Taken, Warm
    from tl.errors import DataError, DivergedError, NotApplicable

    name = cell.config.spec.name

    @contextlib.contextmanager
    def busy(what: str) -> Any:
        with (splits.root / "diary").open("a", buffering=1) as diary:
            diary.write(f"{name} {what} begins\n")
            yield
            diary.write(f"{name} {what} ends\n")

    if name == "fails-to-prepare":
        raise DataError("the folder is empty")
    if name == "needs-much-beside-others" and len(psutil.Process().parent().children()) > 1:
        raise MemoryError("Unable to allocate 8.0 GiB for an array")
    if name == "is-skipped":
        raise NotApplicable("these don't go together")
    emit(Prepared(train_batches=6, val_batches=4, seconds=7.0))
    orders.recv()
    with busy("warm-up"):
        time.sleep(0.01)
    emit(Warm(step_seconds=1.0, batch_seconds=0.5, peak_bytes=3 << 20))
    taken = 0
    while (order := orders.recv()) != END:
        taken += 1
        with busy("turn"):
            time.sleep(1000 if name == "hangs" else 0.005)
        if taken == 3 and name == "crashes-in-a-turn":
            crash(emit)
        if taken == 3 and name == "dies-in-a-turn":
            be_killed(emit)
        if taken == 3 and name == "fails-in-a-turn":
            raise ValueError("in a turn")
        if taken == 3 and name == "diverges-in-a-turn":
            raise DivergedError("the training loss is not finite any more", ())
        steps, batches = order
        emit(Taken(train_seconds=0.01, train_images=4 * steps, val_seconds=0.005, val_images=4 * batches))
    return {"start_seconds": 0.0, "peak_memory_bytes": 1 << 20, "memory_method": "x", "threads": threads}


def _batches(splits: Any) -> Any:
    import torch

    from tl.batches import Preprocessing
    from tl.plain import PlainBatches

    some = (0.5, 0.5, 0.5)
    shown = Preprocessing(size=48, resize=56, mean=some, std=some, interpolation="bilinear")
    return PlainBatches(splits.root, splits.train, shown, torch.device("cpu")).evaluation(1)


WIDTH = 4096


def growth_of_loading(file: str, way: str, emit: Any) -> float:
    """Load a layer of `WIDTH` × `WIDTH` weights; return by how many times its size the peak of memory grew."""
    import torch
    from torch import nn

    from tl.filling import filled
    from tl.memory import MemoryMarks

    def build() -> nn.Module:
        module = nn.Linear(WIDTH, WIDTH, bias=False)
        module.load_state_dict(torch.load(file, weights_only=True))
        return module

    marks = MemoryMarks(torch.device("cpu"))
    module = filled(build) if way == "filled" else build()
    marks.end()
    grown = marks.figures()["peak_rss_bytes"] - marks.baseline["baseline_rss_bytes"]
    return float(grown / (4 * module.weight.numel()))  # type: ignore[operator, union-attr]
