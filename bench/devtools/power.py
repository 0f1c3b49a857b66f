"""Measures the statistical power of the gates: how often they detect a planted change, and how often they fail falsely.

    python -m bench.devtools.power record  --out results/gate-power --rounds 40
    python -m bench.devtools.power live    --out results/gate-power --gates 20 --planted "10% slower"
    python -m bench.devtools.power runs    --out results/gate-power --data FOLDER
    python -m bench.devtools.power exact   --out results/gate-power
    python -m bench.devtools.power --render results/gate-power/*.json > reports/gate-power.md

`record` runs rounds of one tree on both sides and keeps their times. From these it replays hundreds of gates, with the
times of one benchmark multiplied by a slowdown. `live` runs whole gates of this commit against itself, with code
planted in one training step. `runs` plants a leak and a loss of accuracy, and compares runs of the suite. `exact`
plants changes of counters. `nox -s gate_power` does all four.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count as numbers
from pathlib import Path

import numpy as np

from bench.compare import pytest_benchmark
from bench.compare.changes import Change, compare
from bench.compare.gate import GATE_LEVEL, PASSED, REGRESSED, Decision, decide
from bench.compare.sides import SECONDS, read_sides
from bench.devtools import counters
from bench.devtools.gate import (
    BASE,
    MOST,
    NEW,
    ROOT,
    SELECTED,
    Runner,
    Tree,
    checked_out,
    commit_of,
    rounds,
    run_round,
    variables,
)
from bench.devtools.power_report import MOVED, NOTHING, VICTIM, How, Outcome, Power, render
from bench.execution.monitor import Monitor, busy_warning
from bench.execution.signals import ending_as_interrupt
from bench.program import end
from bench.store.environment import environment
from tl.cache import to_json, write_atomic
from tl.errors import UserError

SELECT = "test_step and shufflenet and (finetune or frozen) and not tutorial"
"""The benchmarks of live gates: a training step with a trained backbone, and one with a frozen backbone."""
FACTORS = {NOTHING: 1.0, "5% slower": 1.05, "10% slower": 1.1, "20% slower": 1.2, "50% slower": 1.5}
REPLAYED = 200
"""Number of gates that are replayed from the recorded rounds, per slowdown."""
SEEDS = 5
"""Seeds of each run that is compared with another."""

_STEP = """

_planted_run = TrainStep.run


def _planted(self, *given, **named):
{body}


TrainStep.run = _planted
"""
# The planted slowdown works on all cores, as a slower step would: while merely waiting, torch's threads fall asleep,
# which doubled the measured time. Dispatch modes don't see the work, so the counters don't change.
_SLOW = """    import time
    from torch.utils._python_dispatch import _disable_current_modes
    begun = time.perf_counter()
    _planted_run(self, *given, **named)
    if self._trains_body:
        end = begun + (time.perf_counter() - begun) * {factor}
        with _disable_current_modes():
            while time.perf_counter() < end:
                _ones @ _ones


_ones = torch.ones(128, 128)"""
_LEAK = """    _planted_run(self, *given, **named)
    _leaked.append(torch.ones(1 << 18))


_leaked = []"""
_LOSSY = """    kept = [parameter.detach().clone() for parameter in self._model.parameters()]
    _planted_run(self, *given, **named)
    with torch.no_grad():
        for parameter, before in zip(self._model.parameters(), kept, strict=True):
            parameter.copy_(before)"""
_OPERATION = """    _planted_run(self, *given, **named)
    torch.zeros(1)"""
_PARAMETERS = """    _planted_run(self, *given, **named)
    for parameter in self._model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad"""
_RETAINED = """    self.kept_alive = given[0].clone().requires_grad_()
    _planted_run(self, self.kept_alive, *given[1:], **named)"""
PLANTS: dict[str, str] = {
    **{name: _SLOW.format(factor=factor) for name, factor in FACTORS.items() if name != NOTHING},
    "a leak of 1 MiB a step": _LEAK,
    "weights that don't train": _LOSSY,
    "one more operation a step": _OPERATION,
    "gradients of what doesn't train": _PARAMETERS,
    "a gradient of the images": _RETAINED,
}
"""Planted change → body of the function that replaces `TrainStep.run`."""
SHOWS = {"a leak of 1 MiB a step": "peak_memory_bytes", "weights that don't train": "val_accuracy_last"}
"""Change planted in runs → the metric that it must make worse."""


@contextlib.contextmanager
def planted(what: str, commit: str) -> Iterator[Path]:
    """Check out a commit with a change planted in its training step, and yield the folder."""
    with checked_out(commit, ROOT) as folder:
        if what != NOTHING:
            with (folder / "tl" / "step.py").open("a", encoding="utf-8") as file:
                file.write(_STEP.format(body=PLANTS[what]))
        yield folder


def record(count: int, commit: str) -> list[dict[str, dict[str, float]]]:
    """Run interleaved rounds with one tree on both sides. Returns, per round, side → benchmark → median seconds."""
    found: list[dict[str, dict[str, float]]] = [{} for _ in range(count)]
    with checked_out(commit, ROOT) as folder, tempfile.TemporaryDirectory() as scratch:
        trees = dict.fromkeys((BASE, NEW), Tree(folder=folder, python=sys.executable))
        for number in range(count):
            files = {side: Path(scratch) / f"{side}-{number}.json" for side in trees}
            run_round(trees, files, list(trees)[number % 2], SELECTED)
            for side, file in files.items():
                benchmarks = pytest_benchmark.read(file).benchmarks
                found[number][side] = {one.fullname: float(np.median(one.stats.data)) for one in benchmarks}
            print(f"round {number + 1} of {count}", flush=True)
    return found


def replay(recorded: Sequence[dict[str, dict[str, float]]], gates: int) -> Iterator[Outcome]:
    """Replay gates from recorded rounds.

    Each gate samples as many rounds as it may run, without replacement and in their order. The sides of a round are
    swapped at random, since both ran the same code. Then the times of one benchmark are multiplied by a slowdown.
    """
    draws = np.random.default_rng(0)
    for _ in range(gates):
        chosen = np.sort(draws.choice(len(recorded), MOST, replace=False))
        swapped = draws.integers(0, 2, MOST).astype(bool)
        for name, factor in FACTORS.items():
            with tempfile.TemporaryDirectory() as scratch:
                runner = _replayed(recorded, chosen, swapped, factor)
                trees = {side: Tree(folder=Path(side), python="") for side in (BASE, NEW)}
                with contextlib.redirect_stdout(None):
                    _, decision, count = rounds(trees, Path(scratch), runner, rules=[], most=MOST, budget=None)
            yield _outcome(name, "replayed", decision, count)


def _replayed(
    recorded: Sequence[dict[str, dict[str, float]]], chosen: np.ndarray, swapped: np.ndarray, factor: float
) -> Runner:
    rounds_so_far = numbers()

    def run(trees: dict[str, Tree], files: dict[str, Path], first: str) -> None:
        number = next(rounds_so_far)
        for side, file in files.items():
            source = side if not swapped[number] else NEW if side == BASE else BASE
            rows = [
                # Only the median of the raw times was recorded. A single raw time would be no sample.
                {"fullname": name, "stats": {"data": 3 * [value * (factor if side == NEW and VICTIM in name else 1.0)]}}
                for name, value in recorded[chosen[number]][source].items()
            ]
            machine = {"cpu": {"brand_raw": "recorded", "count": 1}, "python_version": "recorded", "system": "recorded"}
            file.parent.mkdir(parents=True, exist_ok=True)
            written = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number, seconds=int(side == NEW))
            content = {"machine_info": machine, "benchmarks": rows, "datetime": written.isoformat()}
            file.write_text(json.dumps(content), encoding="utf-8")

    return run


def _outcome(planted: str, how: How, decision: Decision, count: int, **measured: float | None) -> Outcome:
    """The outcome of a gate. It has found the change if it fails for it; without a change, any failure counts."""
    shows, slower = SHOWS.get(planted), [change for change in decision.worse if VICTIM in change.cell]
    named = any(change.quantity.name == shows for change in decision.worse) if shows else bool(slower)
    return Outcome(
        planted=planted,
        how=how,
        status=decision.status,
        found=decision.status == REGRESSED and (named or planted == NOTHING),
        rounds=count,
        reasons=decision.reasons,
        slower=tuple(change.estimate.value for change in slower if _is_time(change) and change.estimate),
        **measured,
    )


def _is_time(change: Change) -> bool:
    return change.quantity.name == SECONDS.name


def live(what: str, gates: int, commit: str) -> Iterator[Outcome]:
    """Run whole gates: this commit against itself with a planted change."""
    with checked_out(commit, ROOT) as base, planted(what, commit) as new:
        trees = {BASE: Tree(folder=base, python=sys.executable), NEW: Tree(folder=new, python=sys.executable)}
        for number in range(gates):
            with tempfile.TemporaryDirectory() as scratch:
                out = Path(scratch)
                for side in trees:
                    (out / side).mkdir()
                monitor, started = Monitor(lambda _: None), time.perf_counter()
                _, decision, count = rounds(
                    trees, out, partial(run_round, select=SELECT), rules=[], most=MOST, budget=None
                )
            seconds, state = time.perf_counter() - started, monitor.end()
            print(f"gate {number + 1} of {gates}, {what}: {decision.headline}", flush=True)
            yield _outcome(what, "live", decision, count, seconds=seconds, other_cpu_share=state.other_cpu_share)


def runs(data: str, commit: str) -> Iterator[Outcome]:
    """Compare runs of the suite with a first one: of the same code, of code that leaks, of code that doesn't train."""
    grid = ["--backbone", "timm:tf_efficientnet_lite0", "--regime", "frozen", "--epochs", "2", "--seeds", str(SEEDS)]
    data = str(Path(data).resolve()) if Path(data).is_dir() else data  # the runs have another working folder
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        for what in ("", NOTHING, "a leak of 1 MiB a step", "weights that don't train"):
            name = what.replace(" ", "-") or "first"
            with planted(what or NOTHING, commit) as folder:
                argv = [sys.executable, "-m", "bench", "run", *grid, "--device", "cpu", "--data", data, "--no-report"]
                argv += ["--out", str(out), "--name", name]
                begun = time.perf_counter()
                _run(argv, folder)
            if what:
                sides = read_sides([str(out / "first"), str(out / name)])
                decision = decide(compare(sides, level=GATE_LEVEL))
                print(f"{what}: {decision.headline}", flush=True)
                yield _outcome(what, "runs", decision, SEEDS, seconds=time.perf_counter() - begun)


def exact(commit: str) -> Iterator[Outcome]:
    """Run the exact gate on this commit, with and without planted changes; then change each counter by one."""
    kinds = ("one more operation a step", "gradients of what doesn't train", "a gradient of the images")
    for what in (NOTHING, *kinds):
        with planted(what, commit) as folder:
            begun = time.perf_counter()
            status = _run([sys.executable, "-m", "bench.devtools.counters"], folder, allowed=(0, 1, 4))
        seconds = time.perf_counter() - begun
        print(f"exact, {what}: exit status {status}", flush=True)
        found = status == REGRESSED
        yield Outcome(planted=what, how="exact", status=status, found=found, rounds=1, seconds=seconds)
    _, base = counters.baseline()
    for step, counted in base.items():
        for name, value in counted.items():
            for moved in (value - 1, value + 1):
                lines = list(counters.changes(base, {**base, step: {**counted, name: moved}}))
                found = len(lines) == 1
                status = REGRESSED if found else PASSED
                yield Outcome(planted=MOVED, how="exact", status=status, found=found, rounds=1)


def _run(argv: Sequence[str], folder: Path, allowed: Sequence[int] = (0,)) -> int:
    done = subprocess.run(
        argv, cwd=folder, env=variables(folder), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode not in allowed:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"{shlex.join(argv[1:4])}: exit status {done.returncode}: {' '.join(last)}")
    return done.returncode


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.devtools.power", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["record", "live", "runs", "exact"])
    parser.add_argument("--out", type=Path, default=Path("results/gate-power"), help="folder for the raw outcomes")
    parser.add_argument("--rounds", type=int, default=2 * MOST, help=f"record: number of rounds, at least {MOST}")
    parser.add_argument("--gates", type=int, default=20, help="live: number of gates")
    parser.add_argument("--planted", default="10% slower", choices=list(FACTORS), help="live: the planted change")
    parser.add_argument("--data", default="auto", help="runs: a folder of images, or a data set's name")
    parser.add_argument("--render", nargs="+", type=Path, metavar="FILE", help="only print raw outcomes as Markdown")
    return parser


def main() -> int:
    """Run the command line. A mistake of the user ends in one line and exit status 2."""
    given = _options().parse_args()
    with ending_as_interrupt():
        _main(given)
    return 0


def _main(given: argparse.Namespace) -> None:
    try:
        if given.render:
            texts = [path.read_text(encoding="utf-8") for path in sorted(given.render)]
            print(render([Power.from_json(text) for text in texts]), end="")
            return
        if not given.what:
            raise UserError("nothing to do: give record, live, runs, exact or --render")
        name = "-".join([given.what, *([given.planted] if given.what == "live" else [])])
        path = given.out / f"{name.replace('% ', '-').replace(' ', '-')}.json"
        if path.exists():
            raise UserError(f"{path}: exists, and nothing is overwritten; give another --out")
        if warning := busy_warning():
            print(f"WARNING: {warning}", file=sys.stderr)
        if given.what == "record" and given.rounds < MOST:
            raise UserError(f"--rounds {given.rounds} must be at least {MOST}, the most rounds that a gate runs")
        commit, machine = commit_of("HEAD", ROOT), environment()  # HEAD may change during the hours that follow
        recorded = record(given.rounds, commit) if given.what == "record" else []
        tried = {
            "record": lambda: replay(recorded, REPLAYED),
            "live": lambda: live(given.planted, given.gates, commit),
            "runs": lambda: runs(given.data, commit),
            "exact": lambda: exact(commit),
        }
        outcomes: list[Outcome] = []
        try:
            for outcome in tried[given.what]():
                outcomes.append(outcome)
        finally:  # gates take hours, so the finished ones are kept in any case
            if outcomes:
                power = Power(
                    command=shlex.join(["python", "-m", "bench.devtools.power", *sys.argv[1:]]),
                    environment=machine,
                    recorded=tuple(recorded),
                    outcomes=tuple(outcomes),
                )
                write_atomic(path, to_json(power.model_dump(mode="json")))
                print(f"{path}\n\n{render([power])}", end="")
    except ValueError as error:
        raise UserError(str(error)) from error


if __name__ == "__main__":
    end(main)
