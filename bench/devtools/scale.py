"""Measures what the suite itself costs with many cells: time and memory of whole commands on cells that take no time.

python -m bench.devtools.scale --out results/scale --rounds 3
python -m bench.devtools.scale --render results/scale/*.json > reports/scale.md
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from bench.execution.monitor import busy_warning
from bench.program import end
from bench.store.environment import Environment, environment
from tl.cache import to_json, write_atomic
from tl.errors import UserError
from tl.strict import Strict

ROOT = Path(__file__).parent.parent.parent
SIZES = (1_000, 3_000, 10_000)
FAR = 1_000_000
REGIMES, SEEDS = ("finetune", "frozen", "cached", "frozen-tutorial"), 2
STEPS: dict[str, tuple[str, ...]] = {
    "plan": ("run", "--grid", "grid.toml", "--dry-run", "--name", "plan"),
    "run": ("run", "--grid", "grid.toml", "--no-report"),
    "resume": ("run", "--grid", "grid.toml", "--no-report"),
    "export": ("export", "grid", "--output", "cells.csv"),
    "show": ("show", "grid"),
    "report": ("report", "grid", "--no-images"),
}
"""Step → the command's arguments. The order matters: `resume` finds everything that `run` did."""
BOUNDS: dict[str, tuple[float, float | None]] = {
    "plan": (2.0, None),
    "resume": (5.0, None),
    "export": (10.0, 1e9),
    "show": (10.0, 1e9),
    "report": (60.0, None),
}
"""Step → bounds for 10,000 cells: seconds, and bytes of memory or None."""
LINEAR = 12.0
"""Largest ratio of the time for 10,000 cells to that for 1,000."""


class Sample(Strict):
    """Figures of one command."""

    step: str
    cells: int
    seconds: float
    peak_memory_bytes: int
    """Largest resident size of its process, from `wait4`."""


class Scale(Strict):
    """All samples that one call measured."""

    command: str
    environment: Environment
    samples: tuple[Sample, ...]


def measure(cells: int, steps: Sequence[str]) -> list[Sample]:
    """Run the commands on a grid of that many cells, in a temporary folder."""
    backbones = [f"b{number:05}" for number in range(cells // (len(REGIMES) * SEEDS))]
    grid = f'dataset = "synthetic-mini"\n[matrix]\nbackbones = {json.dumps(backbones)}\n'
    grid += f"regimes = {json.dumps(REGIMES)}\nseeds = {SEEDS}\n"
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "grid.toml").write_text(grid, encoding="utf-8")
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TL_CACHE": str(Path(scratch) / "cache"), "TL_OFFLINE": "1"}
        _timed(Path(scratch), STEPS["plan"], env)  # makes the images, and fills the caches of Python and the suite
        for step in steps:
            seconds, memory = _timed(Path(scratch), STEPS[step], env)
            found.append(Sample(step=step, cells=cells, seconds=seconds, peak_memory_bytes=memory))
            print(f"{cells} cells, {step}: {seconds:.2f} s, {memory / 2**20:.0f} MiB", flush=True)
    return found


def _timed(folder: Path, arguments: Sequence[str], env: dict[str, str]) -> tuple[float, int]:
    """Run a command. Returns its seconds and its peak memory in bytes. Raises `UserError` if it fails."""
    argv = [sys.executable, "-m", "bench.devtools.instant", *arguments]
    started = time.perf_counter()
    with (folder / "out.txt").open("wb") as out:
        # `subprocess` doesn't report the memory that a single child used; `wait4` does.
        actions = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2)]
        before = Path.cwd()
        os.chdir(folder)
        try:
            pid = os.posix_spawn(sys.executable, argv, env, file_actions=actions)
        finally:
            os.chdir(before)
        _, status, used = os.wait4(pid, 0)
    seconds = time.perf_counter() - started
    if status:
        last = (folder / "out.txt").read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise UserError(f"{shlex.join(arguments)}: exit status {os.waitstatus_to_exitcode(status)}: {' '.join(last)}")
    return seconds, used.ru_maxrss * 1024


def render(several: Sequence[Scale]) -> str:
    """The report in Markdown: seconds and memory per command and size, their growth, and those of a million cells."""
    samples = [sample for scale in several for sample in scale.samples]
    sizes = sorted({sample.cells for sample in samples})
    small, large = sizes[0], sizes[-1]
    rows = []
    for step in STEPS:
        here = [sample for sample in samples if sample.step == step]
        if not here:
            continue
        seconds = {size: [s.seconds for s in here if s.cells == size] for size in sizes}
        memory = {size: [s.peak_memory_bytes for s in here if s.cells == size] for size in sizes}
        middle = {size: statistics.median(values) for size, values in seconds.items()}
        most = {size: max(values) for size, values in memory.items()}
        growth = middle[large] / middle[small]
        rows.append(
            {
                "command": step,
                **{f"{size:,} cells, s": spread(values) for size, values in seconds.items()},
                f"{large:,} cells, MiB": f"{most[large] / 2**20:.0f}",
                "bound": _bound(step),
                "met": _met(step, max(seconds[large]), most[large]),
                f"{large // small}× the cells, × the time": f"{growth:.1f}",
                f"at most {LINEAR:g}": "met" if growth <= LINEAR else "missed",
                f"{FAR:,} cells": f"{_far(middle) / 60:.0f} min, {_far(most) / 2**30:.0f} GiB",
            }
        )
    table = tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)
    parts = [
        "# Many cells",
        "Whole commands, from the start of Python to its end, on a grid whose cells take no time: "
        f"{len(REGIMES)} regimes and {SEEDS} seeds of as many backbones as are needed. Median over rounds (lowest to "
        "highest); memory is the largest resident size. `plan` is `run --dry-run`, `resume` the same `run` when all "
        "cells are done. A bound is met if the slowest round meets it.",
        table,
        f"**{FAR:,} cells** is extrapolated from {sizes[-2]:,} and {large:,} cells. Time would be acceptable, memory "
        "would not: commands hold all records at once. Such a run needs commands that read records one by one, or a "
        "grid split into runs of ten thousand, which `report` takes together. "
        "A record is a file of its own: a million of them take about 8 GB, and some file systems slow down with so "
        "many names in a folder.",
    ]
    lines = [f"- `{scale.command}`: {scale.environment}" for scale in several]
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, smallest and largest value, and their number, in words."""
    middle, least, most = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least}–{most}, n = {len(values)})"


def _bound(step: str) -> str:
    if step not in BOUNDS:
        return ""
    seconds, memory = BOUNDS[step]
    return f"{seconds:g} s" + (f", {memory / 1e9:g} GB" if memory else "")


def _met(step: str, seconds: float, memory: float) -> str:
    if step not in BOUNDS:
        return ""
    most_seconds, most_memory = BOUNDS[step]
    return "yes" if seconds <= most_seconds and memory <= (most_memory or float("inf")) else "**no**"


def _far(values: Mapping[int, float]) -> float:
    """The value for `FAR` cells, on the line through the two largest sizes."""
    (x, a), (y, b) = sorted(values.items())[-2:]
    return a + (b - a) / (y - x) * (FAR - x)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.devtools.scale", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/scale"), help="folder for the raw samples")
    parser.add_argument("--rounds", type=int, default=3, help="how often to run each command")
    parser.add_argument("--cells", type=int, nargs="+", default=list(SIZES), help="sizes of the grids")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS), help="commands to measure")
    parser.add_argument("--render", nargs="+", type=Path, metavar="FILE", help="only print raw samples as Markdown")
    return parser


def main() -> int:
    """Run the command line. A mistake of the user ends in one line and exit status 2."""
    given = _options().parse_args()
    try:
        if given.render:
            texts = [path.read_text(encoding="utf-8") for path in sorted(given.render)]
            print(render([Scale.from_json(text) for text in texts]), end="")
            return 0
        path = given.out / f"scale-{environment().git_commit[:12]}.json"
        if path.exists():
            raise UserError(f"{path}: exists, and nothing is overwritten; give another --out")
        if len(set(given.cells)) < 2:
            raise UserError(f"--cells {given.cells[0]}: give at least two sizes, to show how time grows")
        if warning := busy_warning():
            print(f"WARNING: {warning}", file=sys.stderr)
        samples = [s for _ in range(given.rounds) for cells in given.cells for s in measure(cells, given.steps)]
        command = shlex.join(["python", "-m", "bench.devtools.scale", *sys.argv[1:]])
        scale = Scale(command=command, environment=environment(), samples=tuple(samples))
        write_atomic(path, to_json(scale.model_dump(mode="json")))
        print(f"{path}\n\n{render([scale])}", end="")
    except ValueError as error:
        raise UserError(str(error)) from error
    return 0


if __name__ == "__main__":
    end(main)
