"""Numbers of parameters of all networks of the installed libraries, against the file that lists take them from.

python -m bench.devtools.sizes             # compare; exit status 0 equal, 1 changed
python -m bench.devtools.sizes --update    # rewrite the file; git diff shows the change

It builds thousands of networks, without memory for their values, and takes some minutes.
"""

from __future__ import annotations

import argparse

from bench.compare.gate import PASSED, REGRESSED
from bench.devtools.counters import libraries
from bench.program import end
from tl.backbones import count_parameters, known_names
from tl.cache import to_json, write_atomic
from tl.sizes import FILE, known_sizes
from tl.specs import Spec


def count() -> dict[str, int | None]:
    """Backbone → number of its parameters without the classifier; a tag only where its architecture has another."""
    found: dict[str, int | None] = {}
    for source, names in known_names().items():
        for name in sorted(names):  # an architecture comes before its tags
            spec = Spec(source, name)
            size = count_parameters(str(spec))
            bare = f"{source}:{spec.architecture}"
            if bare == str(spec) or bare not in found or found[bare] != size:
                found[str(spec)] = size
    return found


def main() -> int:
    """Run the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--update", action="store_true", help="rewrite the file")
    given, counted = parser.parse_args(), count()
    before = known_sizes(counted) if FILE.exists() else {}
    changed = [name for name, size in counted.items() if name not in before or before[name] != size]
    for name in changed:
        print(f"{name}: {counted[name]}")
    print(f"{len(counted)} sizes, {len(changed)} changed")
    if given.update:
        write_atomic(FILE, to_json({"libraries": libraries(), "parameters": counted}))
        return PASSED
    return REGRESSED if changed else PASSED


if __name__ == "__main__":
    end(main)
