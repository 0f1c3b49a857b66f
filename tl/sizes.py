"""Numbers of parameters of networks, which are known without building them. Loads no torch.

`sizes.json` has been counted with some versions of the libraries, and serves with others: the weights that are
published under a name must fit its network, so its size stays. `python -m bench.devtools.sizes --update` counts anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tl.specs import Spec

FILE = Path(__file__).parent / "sizes.json"


def known_sizes(specs: Iterable[str]) -> dict[str, int | None]:
    """Backbone → number of its parameters without the classifier, for those that are in the file.

    None is for networks that can't be counted. A name has the size of its architecture unless its tag has one of its
    own.
    """
    sizes, found = _sizes(), {}
    for spec in specs:
        parts = Spec.parse(spec)
        for name in (spec, f"{parts.source}:{parts.architecture}"):
            if name in sizes:
                found[spec] = sizes[name]
                break
    return found


@cache
def _sizes() -> dict[str, int | None]:
    sizes: dict[str, int | None] = json.loads(FILE.read_text(encoding="utf-8"))["parameters"]
    return sizes
