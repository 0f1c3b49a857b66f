"""Tests of the division into training and validation images: by class, by content, and no group torn apart."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.datasets import ImageList, Splits
from tl.dividing import SHARE, divide
from tl.errors import DataError
from tl.folds import fold_splits, grouped_folds, tuning_splits

CLASSES = tuple("abcdef")
SINGLES = st.lists(st.integers(2, 40), min_size=2, max_size=6).map(
    lambda counts: [label for label, count in enumerate(counts) for _ in range(count)]
)
GROUPED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=60)


def keys_of(labels: list[int]) -> list[str]:
    return [f"key {index}" for index in range(len(labels))]


@given(labels=SINGLES, seed=st.integers(0, 5))
def test_a_fifth_of_each_class_without_groups(labels: list[int], seed: int) -> None:
    """Rounded, at least one, and never all."""
    chosen = divide(labels, range(len(labels)), keys_of(labels), CLASSES, seed, keys_of(labels))
    for label, count in Counter(labels).items():
        inside = sum(1 for one, side in zip(labels, chosen, strict=True) if one == label and side)
        assert inside == max(1, round(count / SHARE)) < count


@given(images=GROUPED, seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_groups_stay_together_whatever_the_order(
    images: list[tuple[int, int]], seed: int, order: random.Random
) -> None:
    """Also groups of several classes. Where it isn't possible, the message names a class, in any order."""
    labels, groups = [label for label, _ in images], [group for _, group in images]
    keys = keys_of(labels)
    shuffled = list(range(len(images)))
    order.shuffle(shuffled)

    def sides(indices: list[int]) -> dict[str, bool] | str:
        try:
            chosen = divide(
                [labels[i] for i in indices],
                [groups[i] for i in indices],
                [keys[i] for i in indices],
                CLASSES,
                seed,
                [keys[i] for i in indices],
            )
        except DataError as error:
            return str(error)
        return {keys[i]: bool(side) for i, side in zip(indices, chosen, strict=True)}

    found = sides(list(range(len(images))))
    assert sides(shuffled) == found
    if isinstance(found, str):
        assert any(f"class {CLASSES[label]!r}" in found for label in labels)
        return
    for group in set(groups):
        assert len({found[key] for key, own in zip(keys, groups, strict=True) if own == group}) == 1
    for label in set(labels):
        assert {found[key] for key, own in zip(keys, labels, strict=True) if own == label} == {False, True}


def test_another_seed_chooses_other_images() -> None:
    labels = [0, 1] * 50
    one, other = (
        divide(labels, range(100), keys_of(labels), CLASSES, seed, keys_of(labels)).tolist() for seed in (0, 1)
    )
    assert one != other


@pytest.mark.parametrize(
    ("labels", "groups", "said"),
    [
        ([0, 0, 1], [0, 1, 2], "class 'b' has 1 image; at least 2 are needed"),
        (
            [0, 0, 1, 1, 1],
            [0, 1, 2, 2, 2],
            "class 'b' can't be split: its 3 images look the same, such as 'key 2' ~ 'key 3', so some can't be for "
            "validation while others are for training: add different ones, leave the class out, or give the split "
            "yourself \\(folders train/ and val/, or a table with a column split\\)",
        ),
        (
            [0, 0, 1, 1, 2],
            [0, 1, 1, 1, 2],
            "class 'c' has 1 image; at least 2 are needed, .*: add another one, or leave the class out",
        ),
        (
            [2, 2, 0, 0, 1, 1],
            [1, 2, 0, 1, 1, 1],
            "class 'b' can't be split: its images look the same as some of 'a' and 'c', such as 'key 4' ~ 'key 0', and "
            "would all be on one side: remove those that are in two classes, add different ones, or give the split",
        ),
    ],
)
def test_a_class_that_cannot_be_split_is_named(labels: list[int], groups: list[int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        divide(labels, groups, keys_of(labels), CLASSES, 0, keys_of(labels))


@given(images=GROUPED, folds=st.integers(2, 5), seed=st.integers(0, 3))
def test_folds_keep_groups_together(images: list[tuple[int, int]], folds: int, seed: int) -> None:
    labels, groups = [label for label, _ in images], [group for _, group in images]
    assigned = grouped_folds(labels, groups, folds, seed)
    assert set(assigned.tolist()) <= set(range(folds))
    for group in set(groups):
        assert len({fold for fold, own in zip(assigned.tolist(), groups, strict=True) if own == group}) == 1


@given(labels=SINGLES, folds=st.integers(2, 5), seed=st.integers(0, 3))
def test_folds_without_groups_are_even(labels: list[int], folds: int, seed: int) -> None:
    """Sizes differ by one image at most in each class."""
    assigned = grouped_folds(labels, range(len(labels)), folds, seed)
    for label in set(labels):
        counts = np.bincount(assigned[np.array(labels) == label], minlength=folds)
        assert counts.max() - counts.min() <= 1


def test_parts_of_a_set_keep_its_groups_together(mini: Splits) -> None:
    """Both the folds and the images held out for learning rates, with two groups."""
    groups = (mini.train.files[:3], (*mini.train.files[12:14], mini.val.files[8]))
    splits = Splits(
        **{name: getattr(mini, name) for name in ("name", "root", "digest", "classes", "train", "val")}, together=groups
    )

    def torn(part: ImageList) -> bool:
        return any(0 < len(set(group) & set(part.files)) < len(group) for group in groups)

    assert not any(torn(part.val) for part, _ in fold_splits(splits, 4, 0))
    assert any(torn(part.val) for part, _ in fold_splits(mini, 4, 0)), "otherwise this shows nothing"
    held_out = tuning_splits(splits).val
    assert not 0 < len(set(groups[0]) & set(held_out.files)) < 3
    assert set(held_out.labels) == {0, 1}
