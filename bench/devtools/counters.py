"""The exact gate: counters of a training step against the committed baseline. It has no noise and takes seconds.

python -m bench.devtools.counters             # compare; exit status 0 equal, 1 changed, 4 other libraries
python -m bench.devtools.counters --update    # rewrite the baseline; git diff shows the change
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.compare.gate import NOT_COMPARABLE, PASSED, REGRESSED
from bench.devtools.steps import NETWORKS, TRAINING, make_step
from bench.program import end
from bench.store.environment import network_packages
from tl.cache import to_json, write_atomic
from tl.errors import UserError
from tl.sources import package_version

BASELINE = Path(__file__).parent.parent.parent / "results" / "baseline" / "counters.json"
CONSTRAINTS = "constraints.txt"
"""File next to the baseline with the same versions for pip, so that CI counts with them."""
Counters = dict[str, dict[str, int]]


def libraries() -> dict[str, str]:
    """Package → version, without the suffix of a build: builds differ in their kernels, not in the operations."""
    return {name: package_version(name).partition("+")[0] for name in network_packages()}


def count() -> Counters:
    """Network and regime → counters of a step on one thread: each further one may need memory of its own for a sum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {
            f"{network} {regime}": make_step(network, regime).counted() for network in NETWORKS for regime in TRAINING
        }
    finally:
        torch.set_num_threads(threads)


def changes(base: Counters, new: Counters) -> Iterator[str]:
    """Yield a line for each counter that has changed, appeared or disappeared."""
    for step in dict.fromkeys([*base, *new]):
        base_counters, new_counters = base.get(step, {}), new.get(step, {})
        for name in dict.fromkeys([*base_counters, *new_counters]):
            before, after = base_counters.get(name), new_counters.get(name)
            if before != after:
                known = before is not None and after is not None
                by = f" ({after - before:+,})" if known else ""  # type: ignore[operator]
                yield f"{step}: {name}: {_shown(before)} → {_shown(after)}{by}"


def _shown(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"


def baseline() -> tuple[dict[str, str], Counters]:
    """Libraries and counters of the committed file. Raises `UserError`."""
    try:
        data: Any = json.loads(BASELINE.read_text(encoding="utf-8"))
        return data["libraries"], data["counters"]
    except FileNotFoundError:
        raise UserError(f"{BASELINE}: doesn't exist; write it with --update") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{BASELINE}: is not a baseline ({error}); rewrite it with --update") from error


def constraints(libraries: dict[str, str]) -> str:
    """The versions as constraints for pip, one per line."""
    return "".join(f"{name}=={version}\n" for name, version in libraries.items())


def main() -> int:
    """Run the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--update", action="store_true", help="rewrite the baseline")
    given, installed = parser.parse_args(), libraries()
    try:
        expected, before = baseline()
    except UserError:
        if not given.update:
            raise
        expected, before = {}, {}
    counted = count()
    lines = list(changes(before, counted))
    print("\n".join([*lines, f"{sum(map(len, counted.values()))} counters, {len(lines)} changed"]))
    if given.update:
        write_atomic(BASELINE, to_json({"libraries": installed, "counters": counted}))
        write_atomic(BASELINE.parent / CONSTRAINTS, constraints(installed))
        return PASSED
    if expected != installed:
        print(f"not comparable: the baseline has {expected}, installed are {installed}; rewrite it with --update")
        return NOT_COMPARABLE
    return REGRESSED if lines else PASSED


if __name__ == "__main__":
    end(main)
