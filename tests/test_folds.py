"""Tests of splits that are derived from a data set's own: the tuning split and folds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tl
from tests.images import write_folder
from tl.folds import check_protocol, every_image, fold_splits, hold_out, stratified_folds, tuning_splits

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80)
SEEDS = st.integers(0, 2**63 - 1)


def within_one(counts: list[int]) -> bool:
    return max(counts) - min(counts) <= 1


@given(LABELS, st.integers(2, 9), SEEDS)
def test_folds_are_a_partition_that_is_even_in_every_class(labels: list[int], folds: int, seed: int) -> None:
    """Each image has one fold; sizes per class and in total differ by at most one; folds are reproducible."""
    assigned = stratified_folds(labels, folds, seed)
    assert assigned.shape == (len(labels),) and set(assigned.tolist()) <= set(range(folds))
    assert within_one(np.bincount(assigned, minlength=folds).tolist())
    for label in set(labels):
        of_class = assigned[np.asarray(labels) == label]
        assert within_one(np.bincount(of_class, minlength=folds).tolist())
    assert assigned.tolist() == stratified_folds(labels, folds, seed).tolist()


@given(LABELS, SEEDS)
def test_a_fifth_of_each_class_is_held_out(labels: list[int], seed: int) -> None:
    """The number is rounded, but at least one; no image is held out twice."""
    held = hold_out(labels, seed).tolist()
    assert len(set(held)) == len(held)
    assert Counter(labels[place] for place in held) == {
        label: max(1, round(count / 5)) for label, count in Counter(labels).items()
    }


def test_images_are_assigned_at_random() -> None:
    """Over many seeds each of ten images is in each of five folds about equally often, and held out likewise."""
    labels = [0] * 5 + [1] * 5
    seen = np.zeros((10, 5))
    held = np.zeros(10)
    for seed in range(500):
        seen[np.arange(10), stratified_folds(labels, 5, seed)] += 1
        held[hold_out(labels, seed)] += 1
    assert (abs(seen - 100) < 45).all(), "five standard deviations"
    assert (abs(held - 100) < 45).all()


def test_the_images_held_out_for_tuning_are_training_images(mini: tl.Splits) -> None:
    """A fifth of the 12 + 12 is held out, and the rest trains; no validation image is in either part."""
    parts = tuning_splits(mini)
    assert sorted(parts.train.files + parts.val.files) == sorted(mini.train.files)
    assert Counter(parts.val.labels) == {0: 2, 1: 2}
    truth = dict(zip(mini.train.files, mini.train.labels, strict=True))
    for part in (parts.train, parts.val):
        assert [truth[file] for file in part.files] == list(part.labels)


def test_the_validation_images_don_t_decide_what_is_held_out(mini: tl.Splits) -> None:
    """With other validation images and another digest the tuning split is the same."""
    other = replace(mini, digest="f" * 64, val=tl.datasets.ImageList(files=("val/a/x.jpg",), labels=(0,)))
    assert tuning_splits(other).train == tuning_splits(mini).train
    assert tuning_splits(other).val == tuning_splits(mini).val


def test_folds_of_a_data_set(mini: tl.Splits) -> None:
    """Every image, training and validation, is evaluated once, by a network that was not trained on it."""
    images = every_image(mini)
    assert images.files == mini.train.files + mini.val.files
    truth = dict(zip(images.files, images.labels, strict=True))
    evaluated: list[str] = []
    for parts, places in fold_splits(mini, 5, seed=0):
        assert [images.files[place] for place in places] == list(parts.val.files)
        assert sorted(parts.train.files + parts.val.files) == sorted(images.files)
        assert len(set(parts.train.files) & set(parts.val.files)) == 0
        for part in (parts.train, parts.val):
            assert [truth[file] for file in part.files] == list(part.labels)
        evaluated += parts.val.files
    assert sorted(evaluated) == sorted(images.files)


def test_each_repeat_has_folds_of_its_own(mini: tl.Splits) -> None:
    """The same seed gives the same folds, and another seed gives other folds."""

    def folds(seed: int) -> list[tuple[str, ...]]:
        return [parts.val.files for parts, _ in fold_splits(mini, 5, seed)]

    assert folds(0) == folds(0)
    assert len({tuple(folds(seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "kfold", "folds": 4}, "folds=4: class 'a' has 3 images, training and validation together"),
        ({"protocol": "tuned"}, "protocol='tuned': class 'a' has 1 training image; at least 2 are needed"),
    ],
)
def test_too_few_images_for_a_protocol(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    """One line names the class, its number of images, and what is needed; one image more is enough."""
    splits = tl.load_splits(write_folder(tmp_path / "few", train=1, val=2))
    config = tl.TrainConfig(backbone="x", **settings)
    with pytest.raises(tl.ConfigError) as error:
        check_protocol(config, splits)
    assert message in str(error.value)
    check_protocol(config, tl.load_splits(write_folder(tmp_path / "enough", train=2, val=2)))
    check_protocol(tl.TrainConfig(backbone="x"), splits)
