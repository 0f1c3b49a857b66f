"""Measures the statistical power of process pairs: what they find where there is no difference, and where there is one.

    python -m bench.devtools.paired_power record --out results/paired-power --pairs 40
    python -m bench.devtools.paired_power record --out results/paired-power --pairs 40 --loaded
    python -m bench.devtools.paired_power replay results/paired-power/pool-*.json --out results/paired-power
    python -m bench.devtools.paired_power render results/paired-power/replayed-*.json > reports/paired-power.md

`record` times two processes of one cell against each other, for `finetune` and `frozen` of the default grid's networks,
and keeps the raw turns. `replay` draws pairs from these pools and compares them as `bench time` does, with nothing
planted, and with the times of one side multiplied. `render` makes the report.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from bench.devtools.paired_power_report import COUNTS, REPLAYS, USUAL_PAIRS, Outcome, Pool, render, replay
from bench.execution.base import Executor
from bench.execution.executors import make_executor
from bench.program import end
from bench.store.environment import environment
from bench.store.pairs import PairRecord
from bench.sweep.grid import Paired, load_grid
from bench.sweep.timing import REGIMES_TIMED, Timing, plan_timing, time_in_turns
from tl.cache import read_text, to_json, write_atomic
from tl.config import EXECUTIONS
from tl.errors import ConfigError, UserError
from tl.strict import Strict

LOAD = "the standard library is compiled, again and again"
_COMPILING = """
import itertools, pathlib, sys
files = sorted(pathlib.Path(sys.argv[1]).glob("*.py"))
for file in itertools.cycle(files):
    compile(file.read_bytes(), str(file), "exec")
"""
"""Keeps one core busy. What is compiled is not written."""
_LARGEST = 1 << 30
"""Largest file of a pool or of outcomes, in bytes."""
Kept = TypeVar("Kept", bound=Strict)


def record(
    timing: Timing, executor: Executor, console: Console, on_end: Callable[[PairRecord], object], *, loaded: bool
) -> None:
    """Time each cell of the plan against itself. `on_end` is called with each record as its pair ends."""
    cells = [cell for rotation in timing.rotations for cell in rotation]
    twins = Timing(splits=timing.splits, rotations=tuple((cell, cell) for cell in cells), paired=timing.paired)
    with compiling() if loaded else contextlib.nullcontext():
        time_in_turns(twins, executor, console, on_end)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Keep a core busy with a compiler in this block."""
    process = subprocess.Popen([sys.executable, "-c", _COMPILING, sysconfig.get_path("stdlib")])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def read(kind: type[Kept], paths: Sequence[Path]) -> Iterator[Kept]:
    """Read files that `record` or `replay` wrote. Raises `UserError` for what is no such file."""
    for path in paths:
        try:
            yield from (kind.from_json(json.dumps(one)) for one in json.loads(read_text(path, _LARGEST)))
        except (OSError, ValueError, TypeError, ConfigError) as error:
            raise UserError(f"{path}: can't be read as a list of {kind.__name__}: {error}") from error


def write(folder: Path, name: str, content: Sequence[Strict]) -> Path:
    """Write a new file with the time in its name, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.json"
    write_atomic(path, to_json([one.model_dump(mode="json") for one in content]))
    return path


def main() -> int:
    """Run the command line. A mistake of the user ends in one line and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    recording = commands.add_parser("record", help="time cells against themselves, and keep the turns")
    recording.add_argument("--backbone", nargs="+", default=load_grid("default").matrix.backbones)
    recording.add_argument("--execution", choices=list(EXECUTIONS), default="fast")
    recording.add_argument("--data", default="auto", help="a folder or a data set's name")
    recording.add_argument("--device", default="auto")
    recording.add_argument("--pairs", type=int, default=40, help="pairs of each cell")
    recording.add_argument("--seconds", type=float, default=Paired().seconds, help="seconds of a pair's turns")
    recording.add_argument("--loaded", action="store_true", help="compile beside it on one core")
    recording.add_argument("--out", type=Path, required=True, help="the folder of the pool's file")
    replaying = commands.add_parser("replay", help="compare pairs that are drawn from pools")
    replaying.add_argument("pools", type=Path, nargs="+")
    replaying.add_argument("--replays", type=int, default=REPLAYS)
    replaying.add_argument("--out", type=Path, required=True, help="the folder of the outcomes' file")
    rendering = commands.add_parser("render", help="print the report on outcomes, in Markdown")
    rendering.add_argument("outcomes", type=Path, nargs="+")
    rendering.add_argument("--pairs", type=int, choices=COUNTS, default=USUAL_PAIRS, help="pairs per comparison")
    given = parser.parse_args()
    if given.what == "render":
        print(render(list(read(Outcome, given.outcomes)), given.pairs), end="")
    elif given.what == "replay":
        if given.replays < 1:
            raise UserError(f"--replays {given.replays} must be at least 1")
        outcomes = [outcome for pool in read(Pool, given.pools) for outcome in replay(pool, given.replays)]
        print(write(given.out, "replayed", outcomes))
    else:
        _record(given)
    return 0


def _record(given: argparse.Namespace) -> None:
    executor = make_executor("process")
    timing = plan_timing(
        given.backbone,
        REGIMES_TIMED[given.execution],
        executor,
        executions=[given.execution],
        device=given.device,
        data=given.data,
        pairs=given.pairs,
        seconds=given.seconds,
    )
    machine = environment()
    records: list[PairRecord] = []
    try:
        record(timing, executor, Console(stderr=True), records.append, loaded=given.loaded)
    finally:  # pairs take an hour, so those that have ended are kept in any case
        if records:
            pool = Pool(
                command=shlex.join(["python", "-m", "bench.devtools.paired_power", *sys.argv[1:]]),
                environment=machine,
                load=LOAD if given.loaded else "",
                records=tuple(records),
            )
            print(write(given.out, "pool", [pool]))


if __name__ == "__main__":
    end(main)
