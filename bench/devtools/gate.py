"""The timed gate: this working tree's benchmarks against those of another commit, in turn, until it is decided.

    python -m bench.devtools.gate --base main
    python -m bench.devtools.gate --base HEAD~1 --select test_step --budget 5m

The base is checked out beside the working tree and each side runs its own benchmarks, one process a round, with raw
samples kept; the two processes of a round take turns, A B A B, and each side begins in turn (see `turns`). A benchmark
whose code differs is not comparable. After a few rounds the sides are compared;
while something is undecided and the budget lasts, more rounds follow. Looking several times gives chance several
chances, so each look has its share of the error rate. Nothing is downloaded where both sides need the same packages:
otherwise an environment of its own is made for the base. Exit status as `bench gate`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import traceback
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from bench.compare.changes import Comparison, Rule, compare
from bench.compare.gate import GATE_LEVEL, PASSED, REGRESSED, Decision, decide, read_rules
from bench.compare.render import show
from bench.compare.sides import SECONDS, read_sides
from bench.devtools.turns import VARIABLE
from bench.execution.monitor import busy_warning
from bench.execution.signals import sigterm_as_interrupt
from bench.sweep.adaptive import seconds
from tl.cache import write_atomic
from tl.errors import UserError

ROOT = Path(__file__).parent.parent.parent
BASE, NEW = "base", "new"
FEWEST, STEP, MOST = 5, 5, 20
"""Rounds before the first look, from one look to the next, and at most."""
SELECTED = "test_step or test_image_path"
"""Benchmarks that take turns: `timed` of `turns`."""
MISTAKES = (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)
"""Of options, not of code."""
ROUND_SECONDS = 3600.0
"""A round that takes longer hangs: a benchmark alone has its limit from pytest."""


class NewlyFailing(UserError):
    """Benchmarks fail in the new tree, and don't in the base."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One side: where its files are, and the Python that has its packages."""

    folder: Path
    python: str


Runner = Callable[[dict[str, Tree], dict[str, Path], str], None]
"""Runs a round of all sides and writes a file for each; the side that is named begins."""


def commit_of(reference: str, root: Path) -> str:
    """The full hash. Raises `UserError` for a reference that is none."""
    asked = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{reference}^{{commit}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode != 0:
        raise UserError(f"--base {reference}: no such commit in {root}; a branch, a tag or a hash is one")
    return asked.stdout.strip()


@contextlib.contextmanager
def checked_out(commit: str, root: Path) -> Iterator[Path]:
    """A work tree of that commit, gone at the end. Needs no network."""
    with tempfile.TemporaryDirectory(prefix="gate-") as place:
        folder = Path(place) / "base"
        add = ["git", "-C", str(root), "worktree", "add", "--detach", "--quiet", str(folder), commit]
        added = subprocess.run(add, capture_output=True, text=True, check=False)
        if added.returncode != 0:
            raise UserError(f"{commit[:12]} can't be checked out beside {root}: {' '.join(added.stderr.split())}")
        try:
            yield folder
        finally:
            subprocess.run(["git", "-C", str(root), "worktree", "remove", "--force", str(folder)], check=False)


def needs(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The packages that a tree's tests ask for; where they are the same, one environment serves both."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    extra = project.get("optional-dependencies", {}).get("test", [])
    return tuple(sorted(project.get("dependencies", []))), tuple(sorted(extra))


def python_for(folder: Path, root: Path) -> str:
    """This Python, or that of an environment made for a base that asks for other packages.

    It has all packages of this one and, before them, what the base asks for and they don't satisfy: torch is not
    installed twice.
    """
    if needs(folder) == needs(root):
        return sys.executable
    print("the base asks for other packages: an environment is made for it", flush=True)
    place = folder.parent / "environment"
    venv.create(place, with_pip=True)
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    names = {"base": str(place), "platbase": str(place)}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=names))
    parent = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (packages / "parent.pth").write_text(parent, encoding="utf-8")
    if asked := [one for some in needs(folder) for one in some]:
        own = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}  # of the new tree
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *asked], env=own, check=True)
    return str(python)


def variables(folder: Path) -> dict[str, str]:
    """An environment in which that folder's modules are the ones used, and nothing is written beside them."""
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def run_round(trees: dict[str, Tree], files: dict[str, Path], first: str, select: str) -> None:
    """All benchmarks of each side in a process of its own, in turn.

    Raises `UserError` with the last words of one that fails, `NewlyFailing` where only tests of the new tree do.
    """
    until = time.monotonic() + ROUND_SECONDS
    pipes = {side: os.pipe() for side in trees}
    other = dict(zip(trees, reversed(trees), strict=True))
    with contextlib.ExitStack() as stack:
        running = {}
        for side, tree in trees.items():
            ends = (pipes[side][0], pipes[other[side]][1])
            said = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)]
            process = _start(tree, files[side], select, ends, begins=side == first, said=said)
            stack.callback(_end, process)
            running[side] = process, said
        for ends in pipes.values():  # only then does the other see that a process has ended
            for end in ends:
                os.close(end)
        statuses = {}
        for side, (process, _) in running.items():
            try:
                statuses[side] = process.wait(timeout=max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise UserError(f"{side}: a round of benchmarks has not ended after {ROUND_SECONDS:.0f} s") from None
        for side, (process, said) in running.items():
            if statuses[side] != 0:
                newly = side == NEW and statuses[side] not in MISTAKES
                error = NewlyFailing if newly else UserError  # those of the base come first
                raise error(f"{side}: the benchmarks fail: {_last_words(said, process.returncode)}")


def _start(
    tree: Tree, file: Path, select: str, ends: tuple[int, int], *, begins: bool, said: Sequence[IO[str]]
) -> subprocess.Popen[str]:
    argv = [tree.python, "-m", "pytest", "tests/benchmarks", "--benchmark-enable", "--benchmark-only", "-q"]
    argv += [f"--benchmark-json={file}", "--benchmark-min-rounds=3", "--benchmark-max-time=0.3"]
    argv += ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", *(["-k", select] if select else [])]
    env = {**variables(tree.folder), VARIABLE: f"{ends[0]},{ends[1]},{int(begins)}"}
    return subprocess.Popen(
        argv,
        cwd=tree.folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=said[0],
        stderr=said[1],
        text=True,
        pass_fds=ends,
    )


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def _last_words(said: Sequence[IO[str]], status: int) -> str:
    """What fails first, by pytest's summary; else how it ended, with the last line of standard error or output."""
    lines = []
    for stream in said:
        stream.seek(0)
        lines += [line for line in stream.read().splitlines() if line.strip()]
    if failed := next((line for line in lines if line.startswith(("FAILED ", "ERROR "))), None):
        return failed
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return ": ".join([how, *lines[-1:]])


def decided(comparison: Comparison, decision: Decision) -> bool:
    """Whether more rounds could change nothing: no comparison is open, or one has failed the gate already."""
    return decision.status == REGRESSED or not any(change.is_open for change in comparison.changes)


def rounds(
    trees: dict[str, Tree], out: Path, run: Runner, *, rules: Sequence[Rule], most: int, budget: float | None
) -> tuple[Comparison, Decision, int]:
    """Run rounds until all is decided, `most` are run, or one more would overrun the budget of seconds.

    All looks that there may be share the error rates, of a failure and of a pass.
    """
    looks = 1 + math.ceil((most - FEWEST) / STEP)
    begun, count = time.perf_counter(), 0
    while True:
        before, count = count, min(most, count + STEP if count else FEWEST)
        for turn in range(before, count):
            files = {side: out / side / f"round-{turn:02}.json" for side in trees}
            run(trees, files, list(trees)[turn % len(trees)])
        sides = read_sides([str(out / side) for side in (BASE, NEW)])
        comparison = compare(sides, rules=rules, level=GATE_LEVEL, looks=looks)
        decision = decide(comparison)
        spent = time.perf_counter() - begun
        print(f"{count} rounds, {spent:.0f} s: {decision.headline}", flush=True)
        over = budget is not None and spent + spent / count * STEP > budget
        if decided(comparison, decision) or count >= most or over:
            return comparison, decision, count


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.devtools.gate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--base", required=True, metavar="REF", help="the commit to compare with")
    parser.add_argument(
        "--select", default=SELECTED, help="benchmarks, as pytest's -k; '' for all, though not all of them take turns"
    )
    parser.add_argument("--rounds", type=int, default=MOST, help=f"at most, of each side; at least {FEWEST}")
    parser.add_argument("--budget", metavar="TIME", help="90s, 10m, 2h: no further rounds are begun beyond")
    parser.add_argument("--rule", action="append", default=[], help="as `bench gate`; after those of pyproject.toml")
    parser.add_argument(
        "--pass-noise", action="store_true", help="exit status 0 where nothing is lost, but times are undecided"
    )
    parser.add_argument("--out", type=Path, help="keep the raw samples in this folder")
    parser.add_argument("--output", type=Path, help="Markdown of the whole comparison")
    return parser


def gate(arguments: Sequence[str], root: Path = ROOT) -> int:
    """The whole gate. Returns the exit status; raises `UserError` for mistakes."""
    given = _options().parse_args(arguments)
    if given.rounds < FEWEST:
        raise UserError(f"--rounds {given.rounds}: must be at least {FEWEST}")
    budget = seconds("--budget", given.budget) if given.budget else None
    rules = read_rules(None, given.rule, root, kinds=["round"])
    if wrong := next((rule for rule in rules if rule.is_of_runs), None):
        raise UserError(f"--rule {wrong}: {wrong.metric} is of runs; benchmarks have {SECONDS.name} and exact counters")
    if given.out and given.out.exists() and any(given.out.iterdir()):
        raise UserError(f"{given.out} is not empty, and nothing is overwritten: give another --out")
    commit = commit_of(given.base, root)
    new = f"this tree, {state_of(root)}"
    print(f"base: {given.base} ({commit[:12]}); new: {new}", flush=True)
    if warning := busy_warning():
        print(f"WARNING: {warning}", file=sys.stderr)
    with checked_out(commit, root) as folder, tempfile.TemporaryDirectory() as scratch:
        if not (folder / "tests" / "benchmarks" / "conftest.py").is_file():
            raise UserError(f"--base {given.base}: that commit has no benchmarks to compare with")
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
            findings = [*decision.reasons, f"{count} rounds of each side, in turn", *sides]
            page = show(comparison, "md", title=title, headline=decision.headline, findings=findings)
            status = decision.status
            if given.pass_noise and decision.is_noise:
                page += "\nTimes are undecided, and nothing is lost: let through (--pass-noise).\n"
                status = PASSED
    print(page, end="")
    if given.output:
        write_atomic(given.output, page)
    return status


def state_of(root: Path) -> str:
    """The commit of a work tree, and whether it has changes, files that git doesn't know included."""
    status = ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=normal"]
    dirty = subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()
    return f"{commit_of('HEAD', root)[:12]}{' with uncommitted changes' if dirty else ''}"


def main() -> None:
    """The command line; a mistake ends in one line and exit status 2."""
    try:
        with sigterm_as_interrupt():
            sys.exit(gate(sys.argv[1:]))
    except (UserError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # Python's own status is 1, which says that there is a regression
        traceback.print_exc()
        sys.exit(2)


if __name__ == "__main__":
    if shutil.which("git") is None:
        print("error: git: is not installed", file=sys.stderr)
        sys.exit(2)
    main()
