"""The order of cells: blocks of seeds, neighbouring regimes, and the regime that runs first."""

from __future__ import annotations

from collections import Counter
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from bench.store.records import Cell
from bench.sweep.order import arrange
from tl.config import TrainConfig

REGIMES = ("finetune", "frozen")


def cells(backbones: str, seeds: int, regimes: tuple[str, ...] = REGIMES) -> dict[str, Cell]:
    made = [
        Cell(
            config=TrainConfig(
                backbone=b, regime=r, seed=s, weights="random" if r == "scratch" else "pretrained", epochs=1
            ),
            weights_digest="" if r == "scratch" else "d",
            dataset_digest="0",
            device="cpu",
        )
        for b, r, s in product(backbones, regimes, range(seeds))
    ]
    return {cell.id: cell for cell in made}


@given(st.text("abcdefgh", min_size=1, max_size=6), st.integers(1, 4), st.text(max_size=5))
def test_blocks_and_neighbours(backbones: str, seeds: int, run: str) -> None:
    """Every cell comes once, seed after seed, with the regimes of a backbone next to each other, also `scratch`."""
    given_cells = cells("".join(sorted(set(backbones))), seeds, (*REGIMES, "scratch"))
    arranged = arrange(given_cells, run)
    assert arranged == given_cells, "the same cells"
    assert [c.config.seed for c in arranged.values()] == sorted(c.config.seed for c in given_cells.values())
    listed = [(c.config.seed, c.config.backbone) for c in arranged.values()]
    for start in range(0, len(listed), 3):
        assert len(set(listed[start : start + 3])) == 1
    assert list(arranged) == list(arrange(dict(reversed(given_cells.items())), run)), "the input's order is irrelevant"


def test_each_regime_goes_first_equally_often() -> None:
    """In each block another regime goes first."""
    arranged = list(arrange(cells("abc", 10), "run").values())
    first = Counter((c.config.backbone, c.config.regime) for c in arranged[::2])
    assert set(first.values()) == {5} and len(first) == 6


def test_regimes_alternate_though_seeds_are_added_one_by_one() -> None:
    """They alternate even if a control that trains nothing is in the first block only."""
    everything = cells("abc", 6) | cells("abc", 1, ("zeroshot",))
    first: Counter[tuple[str, str]] = Counter()
    for seed in range(6):
        left = {cell_id: cell for cell_id, cell in everything.items() if cell.config.seed == seed}
        arranged = [c.config for c in arrange(left, "run", seeds=range(seed + 1)).values()]
        arranged = [config for config in arranged if config.regime != "zeroshot"]
        first.update((config.backbone, config.regime) for config in arranged[::2])
    assert set(first.values()) == {3} and len(first) == 6


def test_the_order_of_backbones_is_random() -> None:
    """It differs between runs and between blocks, and every backbone comes first at some time."""
    orders = set()
    for run in range(40):
        arranged = list(arrange(cells("abcd", 2), str(run)).values())
        for block in (arranged[:8], arranged[8:]):
            orders.add("".join(c.config.backbone for c in block[::2]))
    assert len(orders) > 15
    assert {order[0] for order in orders} == set("abcd")
