"""Compares this suite's training with its execution `plain`, and with any program that prints a JSON line per epoch.

    python -m bench.devtools.peers --data FOLDER --regime frozen --rounds 5 --epochs 3
    python -m bench.devtools.peers --data FOLDER --regime frozen --precision auto --set fold=true
    python -m bench.devtools.peers --data FOLDER --memory
    python -m bench.devtools.peers --data FOLDER --accuracy --rounds 5 --epochs 5
    python -m bench.devtools.peers --data FOLDER --whole --regime frozen --epochs 25 --against-epochs 3
    python -m bench.devtools.peers --data FOLDER --peer "mine=python mine.py {data} {regime} {epochs}"
    python -m bench.devtools.peers --render results/peers-*/*.json > reports/peers.md

Each line has `epoch_seconds`, the time of training and validation together. Lines that are not JSON are ignored. In a
peer's command {data}, {regime}, {backbone}, {epochs}, {device} and {seed} are replaced; it runs without a shell. The
seed is the number of the round with --accuracy, otherwise 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import psutil

from bench.devtools.samples import OURS, PLAIN, Samples, SideRun, What, render
from bench.devtools.side import PLAIN_REGIMES
from bench.execution.monitor import Monitor, busy_warning
from bench.program import end
from bench.store.environment import environment
from bench.sweep.grid import SHARED_SETTINGS, check_settings
from bench.sweep.settings import settings_of
from tl.cache import to_json, write_atomic
from tl.datasets import load_splits
from tl.errors import UserError
from tl.images import open_store

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = {OURS: "our_loop", PLAIN: "plain_loop"}
PSS_INTERVAL_SECONDS = 0.25


def order(sides: Sequence[str], rounds: int) -> list[tuple[int, str]]:
    """Round and side of each process in the order A B, B A, A B …, so that drift of the machine favours neither."""
    return [(number, side) for number in range(rounds) for side in (sides if number % 2 == 0 else reversed(sides))]


def words(command: str, values: Mapping[str, str]) -> list[str]:
    """Split a command line into words, then replace placeholders, so that a path with blanks stays one word."""
    pattern = re.compile("{(" + "|".join(values) + ")}")
    return [pattern.sub(lambda found: values[found[1]], word) for word in shlex.split(command)]


def run_side(
    side: str, argv: Sequence[str], *, epochs: int, number: int, sample_memory: bool, env: Mapping[str, str]
) -> SideRun:
    """Run one process of round `number` to its end.

    Raises `UserError` with its last error line if it fails, or if it doesn't print a line for each epoch.
    """
    monitor = Monitor(lambda text: print(f"WARNING: {side}: {text}", file=sys.stderr))
    started, start = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    file = partial(tempfile.TemporaryFile, "w+", encoding="utf-8", errors="replace")
    with file() as output, file() as errors:
        try:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=env)
        except OSError as error:
            raise UserError(f"{side}: {argv[0]} can't be run: {error.strerror}") from error
        try:
            peak = _peak_pss(process) if sample_memory else None
            status = process.wait()
        finally:
            if process.poll() is None:
                _end(process)
        wall = time.perf_counter() - start
        printed = _json_lines(output)
        found = [line["epoch_seconds"] for line in printed if "epoch_seconds" in line]
        if status != 0 or len(found) != epochs or not all(map(_is_time, found)):
            errors.seek(0)
            last = next((line for line in reversed(errors.read().splitlines()) if line.strip()), "nothing")
            wrong = f"exit status {status}, printed {len(found)} epochs instead of {epochs} with seconds above 0"
            raise UserError(f"{side}: {wrong}; last line on its stderr: {last}")
    return SideRun(
        side=side,
        round=number,
        started=started,
        wall_seconds=wall,
        printed=tuple(printed),
        peak_pss_bytes=peak,
        machine=monitor.end(),
    )


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _json_lines(output: IO[str]) -> list[dict[str, Any]]:
    """All lines of the output that are JSON objects."""
    output.seek(0)
    lines = []
    for text in output:
        with contextlib.suppress(ValueError):
            line = json.loads(text, parse_constant=lambda name: None)  # NaN is neither JSON nor a valid time
            lines += [line] if isinstance(line, dict) else []
    return lines


def _peak_pss(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process, and return the largest proportional set size of it and its descendants, in bytes."""
    peak, root = 0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        with contextlib.suppress(psutil.Error):
            for member in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += member.memory_full_info().pss
        peak = max(peak, total)
        time.sleep(PSS_INTERVAL_SECONDS)
    return peak


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants."""
    root = psutil.Process(process.pid)
    for member in (*root.children(recursive=True), root):
        with contextlib.suppress(psutil.Error):
            member.kill()
    process.wait()


def measure(given: argparse.Namespace, command: str) -> Samples:
    """Run all sides, round after round, and print a line when a process has ended."""
    what = _what(given)
    against, against_epochs = given.against or given.regime, given.against_epochs or given.epochs
    splits = load_splits(given.data)
    if what != "whole":
        open_store(splits)  # otherwise only the first process would decode the images
    own = " --data {data} --regime {regime} --backbone {backbone} --epochs {epochs} --device {device} --seed {seed}"
    own += f" --weights-file {shlex.quote(given.weights_file)}" if given.weights_file else ""
    sides = {name: f"python -m bench.devtools.{module}{own}" for name, module in SCRIPTS.items()}
    sides[OURS] += f" --precision {given.precision}" if given.precision != "fp32" else ""
    settings = settings_of(given.set, {})
    for name in sorted(settings.keys() & {"epochs", "protocol", "precision"}):
        raise UserError(f"--set {name}: not for peers; epochs and precision have options of their own")
    check_settings("", settings, SHARED_SETTINGS, others=settings)
    sides[OURS] += f" --settings {shlex.quote(json.dumps(settings))}" if settings else ""
    sides |= _named(given.peer)
    shared = {"data": str(splits.root), "backbone": given.backbone, "device": given.device}
    runs = []
    for number, side in order(list(sides), given.rounds):
        epochs = given.epochs if side == OURS else against_epochs
        regime = given.regime if side == OURS else against
        seed = number if what == "accuracy" else 0
        argv = words(sides[side], shared | {"regime": regime, "epochs": str(epochs), "seed": str(seed)})
        env = dict(os.environ)
        with tempfile.TemporaryDirectory() as empty:
            if side in SCRIPTS:
                argv[0] = sys.executable
                env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
            if side == OURS and what == "whole":
                env["TL_CACHE"] = empty
            run = run_side(side, argv, epochs=epochs, number=number, sample_memory=what == "memory", env=env)
        seconds = ", ".join(f"{value:.3g}" for value in run.epoch_seconds)
        memory = f", {run.peak_pss_bytes / 2**20:,.0f} MiB" if run.peak_pss_bytes else ""
        print(f"round {number + 1} of {given.rounds}, {side}: epochs of {seconds} s{memory}", flush=True)
        runs.append(run)
    return Samples(
        what=what,
        command=command,
        sides=sides,
        dataset=splits.name,
        dataset_digest=splits.digest,
        images=len(splits.train) + len(splits.val),
        backbone=given.backbone,
        regime=given.regime,
        precision=given.precision,
        settings=settings,
        against=against,
        device=given.device,
        epochs=given.epochs,
        against_epochs=against_epochs,
        environment=environment(),
        runs=tuple(runs),
    )


def _named(peers: Sequence[str]) -> dict[str, str]:
    """Name → command of each `--peer NAME=COMMAND`. Raises `UserError`."""
    found: dict[str, str] = {}
    for given in peers:
        name, _, command = given.partition("=")
        if not name or not command.strip() or name in (*SCRIPTS, *found):
            raise UserError(f"--peer {given!r} must be NAME=COMMAND with a name that is not taken")
        found[name] = command
    return found


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.devtools.peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="auto", help="a folder with train/CLASS/* and val/CLASS/*, or a set's name")
    parser.add_argument("--backbone", default="torchvision:resnet18", help="torchvision:NAME or timm:NAME")
    parser.add_argument("--weights-file", help="a state dict for ours and plain")
    parser.add_argument("--regime", default="finetune", help="our regime")
    parser.add_argument("--precision", default="fp32", help="our precision; see tl.config.PRECISIONS")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="another setting of ours (repeatable)"
    )
    parser.add_argument("--against", help=f"regime of the others, {' or '.join(PLAIN_REGIMES)}; by default ours")
    parser.add_argument("--device", default="cpu", help="cpu, cuda[:i] or mps")
    parser.add_argument("--rounds", type=int, default=5, help="processes per side")
    parser.add_argument("--epochs", type=int, default=3, help="epochs per process; the first is warm-up")
    parser.add_argument("--against-epochs", type=int, help="with --whole: epochs of the others, which are scaled up")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="add a side (repeatable)")
    parser.add_argument("--out", type=Path, default=Path("results/peers"), help="folder for the raw samples")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--memory", action="store_true", help="measure peak memory of the process tree, not times")
    kind.add_argument("--accuracy", action="store_true", help="measure accuracy of the last epoch, one seed per round")
    kind.add_argument("--whole", action="store_true", help="measure all epochs together, not a single one")
    kind.add_argument("--render", nargs="+", type=Path, metavar="FILE", help="only print raw samples as Markdown")
    return parser


def _what(given: argparse.Namespace) -> What:
    return "memory" if given.memory else "whole" if given.whole else "accuracy" if given.accuracy else "epoch"


def _place(given: argparse.Namespace) -> Path:
    """The file for the samples. Raises `UserError` if it exists, or if the options are contradictory."""
    if given.rounds < 1 or min(given.epochs, given.against_epochs or given.epochs) < 2:
        raise UserError("--rounds must be at least 1 and --epochs at least 2: the first epoch is warm-up")
    if given.against_epochs and not given.whole:
        raise UserError(f"--against-epochs {given.against_epochs} needs --whole")
    if given.memory and not psutil.LINUX:
        raise UserError("--memory: proportional set sizes are only known on Linux")
    if (against := given.against or given.regime) not in PLAIN_REGIMES:
        others = " or ".join(f"--against {name}" for name in PLAIN_REGIMES)
        raise UserError(f"the plain loop has no regime {against!r}; use {others}")
    parts = [_what(given), given.backbone, *dict.fromkeys((given.regime, against)), given.device]
    parts += [given.precision] if given.precision != "fp32" else []
    parts += given.set
    path: Path = given.out / (re.sub(r"[^\w.-]+", "-", "-".join(parts)) + ".json")
    if path.exists():
        raise UserError(f"{path}: exists, and nothing is overwritten; give another --out")
    return path


def run(arguments: Sequence[str]) -> None:
    """Measure and write the raw samples, or render those of earlier runs."""
    given = _options().parse_args(arguments)
    if given.render:
        files = [path.read_text(encoding="utf-8") for path in sorted(given.render)]
        print(render([Samples.from_json(text) for text in files]), end="")
        return
    path = _place(given)
    if warning := busy_warning():
        print(f"WARNING: {warning}", file=sys.stderr)
    samples = measure(given, shlex.join(["python", "-m", "bench.devtools.peers", *arguments]))
    write_atomic(path, to_json(samples.model_dump(mode="json")))
    print(f"{path}\n\n{render([samples])}", end="")


def main() -> int:
    """Run the command line. A mistake of the user, or a side that fails, ends in one line and exit status 2."""
    try:
        run(sys.argv[1:])
    except ValueError as error:
        raise UserError(str(error)) from error
    return 0


if __name__ == "__main__":
    end(main)
