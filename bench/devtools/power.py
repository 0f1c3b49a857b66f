"""The gates as instruments: how often each finds what was planted, and how often it cries wolf.

    python -m bench.devtools.power record  --out results/gate-power --rounds 40
    python -m bench.devtools.power live    --out results/gate-power --gates 20 --planted "10% slower"
    python -m bench.devtools.power runs    --out results/gate-power --data FOLDER
    python -m bench.devtools.power exact   --out results/gate-power
    python -m bench.devtools.power --render results/gate-power/*.json > reports/gate-power.md

`record` runs rounds of one tree on both sides and keeps their times; from them gates are replayed, hundreds of them,
with slowdowns multiplied in. `live` runs whole gates of this commit against itself with code planted in one training
step. `runs` plants a leak and a loss of accuracy and holds runs of the suite against each other; `exact` plants
changes of counters. `nox -s gate_power` does all four.
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
from bench.execution.signals import sigterm_as_interrupt
from bench.store.environment import environment
from tl.cache import to_json, write_atomic
from tl.errors import UserError

SELECT = "test_step and shufflenet and (finetune or frozen) and not tutorial"
"""Of whole gates two benchmarks: steps of a backbone that trains and of one that doesn't."""
FACTORS = {NOTHING: 1.0, "5% slower": 1.05, "10% slower": 1.1, "20% slower": 1.2, "50% slower": 1.5}
REPLAYED = 200
"""Gates from the recorded rounds, of each factor."""
SEEDS = 5
"""Of each run that is held against another."""

_STEP = """

_planted_run = TrainStep.run


def _planted(self, *given, **named):
{body}


TrainStep.run = _planted
"""
# Work on all cores, as a slower step would have it: a mere wait lets torch's threads fall asleep, and was measured as
# twice as long. No dispatch mode sees it, so that counters stay as they are.
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
"""What is planted → the body of a function in place of `TrainStep.run`."""
SHOWS = {"a leak of 1 MiB a step": "peak_memory_bytes", "weights that don't train": "val_accuracy_last"}
"""What is planted in runs → the metric that must be worse for it."""


@contextlib.contextmanager
def planted(what: str, commit: str) -> Iterator[Path]:
    """A work tree of that commit with something planted in its training step."""
    with checked_out(commit, ROOT) as folder:
        if what != NOTHING:
            with (folder / "tl" / "step.py").open("a", encoding="utf-8") as file:
                file.write(_STEP.format(body=PLANTS[what]))
        yield folder


def record(count: int, commit: str) -> list[dict[str, dict[str, float]]]:
    """Rounds of one tree on both sides, in turn: of each round side → benchmark → its median, in seconds."""
    found: list[dict[str, dict[str, float]]] = [{} for _ in range(count)]
    with checked_out(commit, ROOT) as folder, tempfile.TemporaryDirectory() as scratch:
        trees = dict.fromkeys((BASE, NEW), Tree(folder=folder, python=sys.executable))
        for turn in range(count):
            files = {side: Path(scratch) / f"{side}-{turn}.json" for side in trees}
            run_round(trees, files, list(trees)[turn % 2], SELECTED)
            for side, file in files.items():
                benchmarks = pytest_benchmark.read(file).benchmarks
                found[turn][side] = {one.fullname: float(np.median(one.stats.data)) for one in benchmarks}
            print(f"round {turn + 1} of {count}", flush=True)
    return found


def replay(recorded: Sequence[dict[str, dict[str, float]]], gates: int) -> Iterator[Outcome]:
    """Gates from recorded rounds: as many as a gate may run, drawn without replacement and kept in order, with the
    sides of each swapped or not by a coin, since they ran the same code; then one benchmark's times are multiplied."""
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
    turns = numbers()

    def run(trees: dict[str, Tree], files: dict[str, Path], first: str) -> None:
        turn = next(turns)
        for side, file in files.items():
            source = side if not swapped[turn] else NEW if side == BASE else BASE
            rows = [
                {"fullname": name, "stats": {"data": [value * (factor if side == NEW and VICTIM in name else 1.0)]}}
                for name, value in recorded[chosen[turn]][source].items()
            ]
            machine = {"cpu": {"brand_raw": "recorded", "count": 1}, "python_version": "recorded", "system": "recorded"}
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"machine_info": machine, "benchmarks": rows}), encoding="utf-8")

    return run


def _outcome(planted: str, how: How, decision: Decision, count: int, **measured: float | None) -> Outcome:
    """Found is what the gate says of what was planted, not of anything else; of nothing planted, any failure."""
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
    """Whole gates: this commit against itself with something planted."""
    with checked_out(commit, ROOT) as base, planted(what, commit) as new:
        trees = {BASE: Tree(folder=base, python=sys.executable), NEW: Tree(folder=new, python=sys.executable)}
        for number in range(gates):
            with tempfile.TemporaryDirectory() as scratch:
                out = Path(scratch)
                for side in trees:
                    (out / side).mkdir()
                watch, begun = Monitor(lambda _: None), time.perf_counter()
                _, decision, count = rounds(
                    trees, out, partial(run_round, select=SELECT), rules=[], most=MOST, budget=None
                )
            seconds, state = time.perf_counter() - begun, watch.end()
            print(f"gate {number + 1} of {gates}, {what}: {decision.headline}", flush=True)
            yield _outcome(what, "live", decision, count, seconds=seconds, other_cpu_share=state.other_cpu_share)


def runs(data: str, commit: str) -> Iterator[Outcome]:
    """Runs of the suite, each against a first one: of the same code, of code that leaks, of code that doesn't train."""
    grid = ["--backbone", "timm:tf_efficientnet_lite0", "--regime", "frozen", "--epochs", "2", "--seeds", str(SEEDS)]
    data = str(Path(data).resolve()) if Path(data).is_dir() else data  # the runs stand elsewhere
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
    """The exact gate on this commit as it is and with changes planted, and on each counter moved by one."""
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
    parser.add_argument("--out", type=Path, default=Path("results/gate-power"), help="folder of the raw outcomes")
    parser.add_argument("--rounds", type=int, default=2 * MOST, help=f"record: at least {MOST}")
    parser.add_argument("--gates", type=int, default=20, help="live: how many")
    parser.add_argument("--planted", default="10% slower", choices=list(FACTORS), help="live: what")
    parser.add_argument("--data", default="auto", help="runs: a folder of images, or a set's name")
    parser.add_argument("--render", nargs="+", type=Path, metavar="FILE", help="only print Markdown of raw outcomes")
    return parser


def main() -> None:
    """The command line; a mistake ends in one line and exit status 2."""
    given = _options().parse_args()
    with sigterm_as_interrupt():
        _main(given)


def _main(given: argparse.Namespace) -> None:
    try:
        if given.render:
            texts = [path.read_text(encoding="utf-8") for path in sorted(given.render)]
            print(render([Power.from_json(text) for text in texts]), end="")
            return
        if not given.what:
            raise UserError("say what: record, live, runs, exact, or --render")
        name = "-".join([given.what, *([given.planted] if given.what == "live" else [])])
        path = given.out / f"{name.replace('% ', '-').replace(' ', '-')}.json"
        if path.exists():
            raise UserError(f"{path} is there already, and nothing is overwritten: give another --out")
        if warning := busy_warning():
            print(f"WARNING: {warning}", file=sys.stderr)
        if given.what == "record" and given.rounds < MOST:
            raise UserError(f"--rounds {given.rounds}: must be at least {MOST}, the most that a gate may run")
        commit, where = commit_of("HEAD", ROOT), environment()  # a checkout may move on meanwhile
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
        finally:  # gates take hours: those that have ended are kept, however it ends
            if outcomes:
                power = Power(
                    command=shlex.join(["python", "-m", "bench.devtools.power", *sys.argv[1:]]),
                    environment=where,
                    recorded=tuple(recorded),
                    outcomes=tuple(outcomes),
                )
                write_atomic(path, to_json(power.model_dump(mode="json")))
                print(f"{path}\n\n{render([power])}", end="")
    except (UserError, OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
