"""What a pick lost against the whole grid on the same images: `bench.devtools.regret`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.devtools.regret import compare
from bench.store.records import Record
from bench.store.runs import RunFolder
from tests.runs import of_images, record, write_pick, write_run
from tl.errors import UserError


def picked(folder: Path, best: Record) -> RunFolder:
    """A run whose pick is the only record that it has."""
    run = write_run(folder, [best])
    write_pick(run, best)
    return run


def test_the_grid_says_what_the_pick_lost(tmp_path: Path) -> None:
    """By the grid's own trainings. A head that is fitted at once, and so has one seed, is compared with all seeds."""
    best = [record("timm:a", "finetune", right=97, seed=seed) for seed in range(3)]
    others = [record("timm:b", "frozen", right=90, seed=seed) for seed in range(3)]
    heads = [record("timm:b", "knn", right=94)]
    whole = write_run(tmp_path / "whole", [*others, *heads, *best])
    said = compare(picked(tmp_path / "p", record("timm:b", "knn", right=99)), whole).splitlines()
    assert said[0] == "picked: timm:b, knn, after 500 s (30 s to the first ranking)"
    assert said[1].startswith("regret: 3.0 points (0.0 to ") and said[1].endswith("n = 3 seeds, 100 images")
    assert said[2] == "place: 2 of 3 combinations"
    assert [line.split()[0] for line in said[3:]] == ["97.0%", "94.0%", "90.0%"]


def test_what_can_t_be_compared_is_one_line(tmp_path: Path) -> None:
    """No pick, other images, or a combination that the grid lacks."""
    whole = write_run(tmp_path / "whole", [record("timm:a", "finetune"), record("timm:a", "frozen")])
    with pytest.raises(UserError, match=r"has no pick$"):
        compare(whole, whole)
    with pytest.raises(UserError, match=r"has no result of timm:b, knn$"):
        compare(picked(tmp_path / "p", record("timm:b", "knn", right=99)), whole)
    other = write_run(tmp_path / "other", [of_images(record("timm:b", "knn"), "1" * 64)])
    with pytest.raises(UserError, match=r"are of different images$"):
        compare(picked(tmp_path / "q", record("timm:b", "knn", right=99)), other)
