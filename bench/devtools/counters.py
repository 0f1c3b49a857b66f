"""The exact gate: what a training step takes, counted, against the committed baseline. No noise; seconds.

python -m bench.devtools.counters             # compare; exit status 0 equal, 1 changed, 4 other libraries
python -m bench.devtools.counters --update    # write the baseline anew: the change shows up in the diff
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.compare.gate import NOT_COMPARABLE, PASSED, REGRESSED
from bench.devtools.steps import NETWORKS, TRAINING, make_step
from bench.store.environment import NETWORK_PACKAGES, package_version
from tl.cache import to_json, write_atomic
from tl.errors import UserError

BASELINE = Path(__file__).parent.parent.parent / "results" / "baseline" / "counters.json"
CONSTRAINTS = "constraints.txt"
"""Beside it: the same versions for pip, so that CI counts with them."""
Counters = dict[str, dict[str, int]]


def libraries() -> dict[str, str]:
    """Versions without a build's suffix: kernels differ, operations don't."""
    return {name: package_version(name).partition("+")[0] for name in NETWORK_PACKAGES}


def count() -> Counters:
    """Network and regime → counters of a step."""
    return {f"{network} {regime}": make_step(network, regime).counted() for network in NETWORKS for regime in TRAINING}


def changes(base: Counters, new: Counters) -> Iterator[str]:
    """A line for each counter that is not what it was, missing ones included."""
    for step in dict.fromkeys([*base, *new]):
        there, here = base.get(step, {}), new.get(step, {})
        for name in dict.fromkeys([*there, *here]):
            before, after = there.get(name), here.get(name)
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
        raise UserError(f"{BASELINE}: is not there: write it with --update") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{BASELINE}: is no baseline ({error}): write it anew with --update") from error


def constraints(libraries: dict[str, str]) -> str:
    """Versions as pip has them, a line each."""
    return "".join(f"{name}=={version}\n" for name, version in libraries.items())


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the baseline anew")
    given, here = parser.parse_args(), libraries()
    try:
        there, before = baseline()
    except UserError:
        if not given.update:
            raise
        there, before = {}, {}
    counted = count()
    lines = list(changes(before, counted))
    print("\n".join([*lines, f"{sum(map(len, counted.values()))} counters, {len(lines)} changed"]))
    if given.update:
        write_atomic(BASELINE, to_json({"libraries": here, "counters": counted}))
        write_atomic(BASELINE.parent / CONSTRAINTS, constraints(here))
        return PASSED
    if there != here:
        print(f"not comparable: the baseline is of {there}, here is {here}; write it anew with --update")
        return NOT_COMPARABLE
    return REGRESSED if lines else PASSED


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:  # Python's own status is 1, which says that a counter changed
        traceback.print_exc()
        sys.exit(2)
