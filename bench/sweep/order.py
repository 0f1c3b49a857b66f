"""The order in which cells run. It is random, so that a machine that drifts doesn't favour the first or last cells.

Each seed is a block. Within a block the backbones come in random order, and the regimes of a backbone run one after
the other. From block to block another regime runs first, so that none always runs on the warmer machine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from bench.store.records import Cell
from tl.regimes import REGIMES
from tl.seeding import seed_for


def arrange(cells: Mapping[str, Cell], run: str, *, seeds: Collection[int] = ()) -> dict[str, Cell]:
    """Put the cells into the order in which they should run. It depends only on the arguments.

    `seeds` are all seeds of the run, including those done before. A seed's position among them decides which regime
    runs first, so that regimes alternate even if seeds are added one by one.
    """
    ranks = {seed: rank for rank, seed in enumerate(sorted({*seeds, *(c.config.seed for c in cells.values())}))}
    blocks: dict[int, dict[str, list[str]]] = {}
    for cell_id, cell in cells.items():
        group = cell.bare.replace(weights_digest="").model_dump_json(exclude=_WEIGHTS)
        blocks.setdefault(cell.config.seed, {}).setdefault(group, []).append(cell_id)
    arranged: list[str] = []
    for seed in sorted(blocks):
        groups = blocks[seed]
        shuffled = np.random.default_rng(seed_for("order of backbones", run, seed)).permutation(sorted(groups))
        for key in shuffled.tolist():
            ids = sorted(groups[key], key=lambda cell_id: cells[cell_id].config.regime)
            # Regimes without steps have no epoch time to compare and are not in every block: they run last.
            timed = [cell_id for cell_id in ids if REGIMES[cells[cell_id].config.regime].by_steps]
            first = (seed_for("first regime", run, key) + ranks[seed]) % max(1, len(timed))
            arranged += [*timed[first:], *timed[:first], *(cell_id for cell_id in ids if cell_id not in timed)]
    return {cell_id: cells[cell_id] for cell_id in arranged}


_WEIGHTS = {"config": {"weights"}}
"""Excluded from the key of a group: `scratch` has other weights than the regimes that it is compared with."""
