"""The timed gate: compares the benchmarks of this working tree with those of another commit, in interleaved rounds.

    python -m bench.devtools.gate --base main
    python -m bench.devtools.gate --base HEAD~1 --select test_step --budget 5m

The base is checked out into a folder of its own. Each side runs its own benchmarks, in one process per round. The two
processes of a round take turns, A B A B, and the sides alternate in going first (see `turns`). Raw samples are kept. A
benchmark whose code differs is not comparable.

After a few rounds the sides are compared. More rounds follow while a comparison is undecided and the budget lasts.
Several looks at the data give chance several chances, so each look gets a share of the error rate. If both sides need
the same packages, nothing is downloaded; otherwise the base gets an environment of its own. The exit status is that of
`bench gate`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.compare.changes import Comparison, compare
from bench.compare.gate import GATE_LEVEL, PASSED, REGRESSED, Decision, decide, read_rules
from bench.compare.render import show
from bench.compare.rules import Rule
from bench.compare.sides import SECONDS, read_sides
from bench.devtools.turns import VARIABLE
from bench.execution.monitor import busy_warning
from bench.execution.signals import ending_as_interrupt
from bench.program import end
from bench.sweep.adaptive import seconds
from tl.cache import write_output
from tl.errors import UserError

ROOT = Path(__file__).parent.parent.parent
BASE, NEW = "base", "new"
FEWEST, STEP, MOST = 5, 5, 20
"""Rounds before the first comparison, between comparisons, and at most."""
SELECTED = "test_step or test_image_path"
"""The benchmarks that take turns; they use `timed` of `turns`."""
TESTS_FAILED, INTERRUPTED = 1, 2
"""Exit statuses of pytest. It also ends with the second if a module of tests can't be imported."""
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)
"""Signals with which a process ends by itself. The others come from outside, for instance from a full memory."""
FAILURES = ("FAILED ", "ERROR ")
"""How the lines of pytest's summary begin that name a failure."""
ROUND_SECONDS = 3600.0
"""Time limit for a round, in seconds. A longer one hangs, since pytest limits the time of each benchmark."""


class NewlyFailing(UserError):
    """Benchmarks fail in the new tree but not in the base."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One side: the folder with its files, and the Python that has its packages."""

    folder: Path
    python: str


Runner = Callable[[dict[str, Tree], dict[str, Path], str], None]
"""Runs a round of both sides and writes a file for each. The last argument is the side that goes first."""


def commit_of(reference: str, root: Path) -> str:
    """The full hash of a commit. Raises `UserError` if the reference is not a commit."""
    found = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{reference}^{{commit}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode != 0:
        raise UserError(f"--base {reference}: no such commit in {root}; give a branch, a tag or a hash")
    return found.stdout.strip()


@contextlib.contextmanager
def checked_out(commit: str, root: Path) -> Iterator[Path]:
    """Check out a commit into a temporary work tree, and yield its folder. This needs no network."""
    with tempfile.TemporaryDirectory(prefix="gate-") as place:
        folder = Path(place) / "base"
        add = ["git", "-C", str(root), "worktree", "add", "--detach", "--quiet", str(folder), commit]
        added = subprocess.run(add, capture_output=True, text=True, check=False)
        if added.returncode != 0:
            raise UserError(f"{commit[:12]} of {root} can't be checked out: {' '.join(added.stderr.split())}")
        try:
            yield folder
        finally:
            subprocess.run(["git", "-C", str(root), "worktree", "remove", "--force", str(folder)], check=False)


def needs(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The packages that a tree and its tests require. If they are the same, both sides use one environment."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    extra = project.get("optional-dependencies", {}).get("test", [])
    return tuple(sorted(project.get("dependencies", []))), tuple(sorted(extra))


def python_for(folder: Path, root: Path) -> str:
    """This Python, or the Python of a new environment if the base requires other packages.

    The new environment sees all packages of this one, so that torch is not installed twice. Packages that the base
    requires in other versions are installed in front of them.
    """
    if needs(folder) == needs(root):
        return sys.executable
    print("the base requires other packages: making an environment for it", flush=True)
    place = folder.parent / "environment"
    venv.create(place, with_pip=True)
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    names = {"base": str(place), "platbase": str(place)}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=names))
    parent = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (packages / "parent.pth").write_text(parent, encoding="utf-8")
    if required := [one for some in needs(folder) for one in some]:
        # PIP_CONSTRAINT holds versions for the new tree, not for the base.
        own = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *required], env=own, check=True)
    return str(python)


def variables(folder: Path) -> dict[str, str]:
    """Environment variables with which Python imports modules from that folder and writes no bytecode into it."""
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def run_round(trees: dict[str, Tree], files: dict[str, Path], first: str, select: str) -> None:
    """Run the benchmarks of both sides, each in a process of its own; the processes take turns.

    Raises `UserError` with the last output of a process that fails, or `NewlyFailing` if only the new tree fails.
    """
    deadline = time.monotonic() + ROUND_SECONDS
    pipes = {side: os.pipe() for side in trees}
    other = dict(zip(trees, reversed(trees), strict=True))
    with contextlib.ExitStack() as stack:
        running = {}
        for side, tree in trees.items():
            ends = (pipes[side][0], pipes[other[side]][1])
            output = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)]
            process = _start(tree, files[side], select, ends, goes_first=side == first, output=output)
            stack.callback(_end, process)
            running[side] = process, output
        for ends in pipes.values():  # otherwise a process would not notice that the other one has ended
            for end in ends:
                os.close(end)
        statuses = {}
        for side, (process, _) in running.items():
            try:
                statuses[side] = process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise UserError(f"{side}: a round of benchmarks has not ended after {ROUND_SECONDS:.0f} s") from None
        for side, (process, output) in running.items():  # the base comes first
            if statuses[side] != 0:
                words = _failure(output, process.returncode)
                error = NewlyFailing if side == NEW and _code_fails(statuses[side], words) else UserError
                raise error(f"{side}: the benchmarks fail: {words}")


def _start(
    tree: Tree, file: Path, select: str, ends: tuple[int, int], *, goes_first: bool, output: Sequence[IO[str]]
) -> subprocess.Popen[str]:
    argv = [tree.python, "-m", "pytest", "tests/benchmarks", "--benchmark-enable", "--benchmark-only", "-q"]
    argv += [f"--benchmark-json={file}", "--benchmark-min-rounds=3", "--benchmark-max-time=0.3"]
    argv += ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", *(["-k", select] if select else [])]
    env = {**variables(tree.folder), VARIABLE: f"{ends[0]},{ends[1]},{int(goes_first)}"}
    return subprocess.Popen(
        argv,
        cwd=tree.folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output[0],
        stderr=output[1],
        text=True,
        pass_fds=ends,
    )


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def _code_fails(status: int, words: str) -> bool:
    """True if the code that was run is what failed, rather than pytest's options or whoever ended the process."""
    if status < 0:
        return -status in CRASHES
    return status == TESTS_FAILED or (status == INTERRUPTED and words.startswith(FAILURES))


def _failure(output: Sequence[IO[str]], status: int) -> str:
    """The first failure in pytest's summary; otherwise the exit status with the last line of the output."""
    lines = []
    for stream in output:
        stream.seek(0)
        lines += [line for line in stream.read().splitlines() if line.strip()]
    if failed := next((line for line in lines if line.startswith(FAILURES)), None):
        return failed
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return ": ".join([how, *lines[-1:]])


def decided(comparison: Comparison, decision: Decision) -> bool:
    """True if more rounds can't change the result: no comparison is undecided, or one has already failed the gate."""
    return decision.status == REGRESSED or not any(change.is_open for change in comparison.changes)


def rounds(
    trees: dict[str, Tree], out: Path, run: Runner, *, rules: Sequence[Rule], most: int, budget: float | None
) -> tuple[Comparison, Decision, int]:
    """Run rounds until the result is decided, `most` rounds were run, or more would exceed the budget (in seconds).

    All comparisons that may follow share the error rates, both that of failing and that of passing. Returns the last
    comparison, the decision and the number of rounds.
    """
    looks = 1 + math.ceil((most - FEWEST) / STEP)
    started, count = time.perf_counter(), 0
    while True:
        before, count = count, min(most, count + STEP if count else FEWEST)
        for number in range(before, count):
            files = {side: out / side / f"round-{number:02}.json" for side in trees}
            run(trees, files, list(trees)[number % len(trees)])
        sides = read_sides([str(out / side) for side in (BASE, NEW)])
        comparison = compare(sides, rules=rules, level=GATE_LEVEL, looks=looks)
        decision = decide(comparison)
        spent = time.perf_counter() - started
        print(f"{count} rounds, {spent:.0f} s: {decision.headline}", flush=True)
        exceeds_budget = budget is not None and spent + spent / count * STEP > budget
        if decided(comparison, decision) or count >= most or exceeds_budget:
            return comparison, decision, count


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.devtools.gate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", required=True, metavar="REF", help="the commit to compare with")
    parser.add_argument(
        "--select", default=SELECTED, help="benchmarks, as pytest's -k; '' runs all, though some don't take turns"
    )
    parser.add_argument("--rounds", type=int, default=MOST, help=f"most rounds per side; at least {FEWEST}")
    parser.add_argument("--budget", metavar="TIME", help="90s, 10m, 2h; start no rounds that would exceed it")
    parser.add_argument("--rule", action="append", default=[], help="as in `bench gate`; adds to pyproject.toml")
    parser.add_argument(
        "--pass-noise", action="store_true", help="exit status 0 if times are undecided but no benchmark is missing"
    )
    parser.add_argument("--out", type=Path, help="keep the raw samples in this folder")
    parser.add_argument("--output", type=Path, help="write the comparison to this Markdown file")
    return parser


def gate(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Run the gate. Returns the exit status. Raises `UserError` for mistakes of the user."""
    given = _options().parse_args(arguments)
    if given.rounds < FEWEST:
        raise UserError(f"--rounds {given.rounds} must be at least {FEWEST}")
    budget = seconds("--budget", given.budget) if given.budget else None
    rules = read_rules(None, given.rule, root, repeats=["round"])
    if wrong := next((rule for rule in rules if rule.is_of_runs), None):
        raise UserError(f"--rule {wrong}: only runs have {wrong.metric}; benchmarks have {SECONDS.name} and counters")
    if given.out and given.out.exists() and any(given.out.iterdir()):
        raise UserError(f"--out {given.out} is not empty, and nothing is overwritten; give another folder")
    commit = commit_of(given.base, root)
    new = f"this tree, {state_of(root)}"
    print(f"base: {given.base} ({commit[:12]}); new: {new}", flush=True)
    if warning := busy_warning():
        print(f"WARNING: {warning}", file=sys.stderr)
    with checked_out(commit, root) as folder, tempfile.TemporaryDirectory() as scratch:
        if not (folder / "tests" / "benchmarks" / "conftest.py").is_file():
            raise UserError(f"--base {given.base}: that commit has no benchmarks; choose a later one")
        out = given.out or Path(scratch)
        trees = {
            BASE: Tree(folder=folder, python=python_for(folder, root)),
            NEW: Tree(folder=root, python=sys.executable),
        }
        for side in trees:
            (out / side).mkdir(parents=True)

        def run(trees: dict[str, Tree], files: dict[str, Path], first: str) -> None:
            run_round(trees, {side: file.resolve() for side, file in files.items()}, first, given.select)

        title = f"This tree against {given.base}"
        sides = [f"base: {commit[:12]}; new: {new}"]
        try:
            comparison, decision, count = rounds(trees, out, run, rules=rules, most=given.rounds, budget=budget)
        except NewlyFailing as failing:
            page = f"# {title}\n\n**Gate failed: regressed.** {failing}\n\n- {sides[0]}\n"
            status = REGRESSED
        else:
            findings = [*decision.reasons, f"{count} interleaved rounds per side", *sides]
            page = show(comparison, "md", title=title, headline=decision.headline, findings=findings)
            status = decision.status
            if given.pass_noise and decision.is_noise:
                page += "\nTimes are undecided and no benchmark is missing: passed because of --pass-noise.\n"
                status = PASSED
    print(page, end="")
    if given.output:
        write_output(given.output, page)
    return status


def state_of(root: Path) -> str:
    """The commit of a work tree, and whether it has uncommitted changes or untracked files."""
    status = ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain", "--untracked-files=normal"]
    dirty = subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()
    return f"{commit_of('HEAD', root)[:12]}{' with uncommitted changes' if dirty else ''}"


def main() -> int:
    """Run the command line. Returns the exit status. Raises `UserError` for mistakes of the user."""
    if shutil.which("git") is None:
        raise UserError("git is not installed; the gate checks out the base with it")
    with ending_as_interrupt():
        return gate(sys.argv[1:])


if __name__ == "__main__":
    end(main)
