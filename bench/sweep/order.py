"""The order in which cells run: random, so that a machine that drifts doesn't favour what comes first or last.

Seeds are blocks. Within a block the backbones come in random order, the regimes of each next to one another;
from block to block another regime goes first, so that none always runs on the warmer machine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from bench.store.records import Cell
from tl.regimes import REGIMES
from tl.seeding import seed_for


def arrange(cells: Mapping[str, Cell], run: str, *, seeds: Collection[int] = ()) -> dict[str, Cell]:
    """The cells in the order in which they are to run; it depends on the arguments alone.

    `seeds` are all that the run has, those done before included: a seed's place among them decides which regime
    goes first, so that it is another one in turn also where seeds are added one by one.
    """
    ranks = {seed: rank for rank, seed in enumerate(sorted({*seeds, *(c.config.seed for c in cells.values())}))}
    blocks: dict[int, dict[str, list[str]]] = {}
    for cell_id, cell in cells.items():
        together = cell.bare.replace(weights_digest="").model_dump_json(exclude=_WEIGHTS)
        blocks.setdefault(cell.config.seed, {}).setdefault(together, []).append(cell_id)
    arranged: list[str] = []
    for seed in sorted(blocks):
        groups = blocks[seed]
        shuffled = np.random.default_rng(seed_for("order of backbones", run, seed)).permutation(sorted(groups))
        for key in shuffled.tolist():
            ids = sorted(groups[key], key=lambda cell_id: cells[cell_id].config.regime)
            # What trains nothing has no time to compare, and is not in every block: it doesn't take turns.
            timed = [cell_id for cell_id in ids if REGIMES[cells[cell_id].config.regime].trains]
            first = (seed_for("first regime", run, key) + ranks[seed]) % max(1, len(timed))
            arranged += [*timed[first:], *timed[:first], *(cell_id for cell_id in ids if cell_id not in timed)]
    return {cell_id: cells[cell_id] for cell_id in arranged}


_WEIGHTS = {"config": {"weights"}}
"""`scratch` has other weights than its neighbours and still belongs beside them."""
