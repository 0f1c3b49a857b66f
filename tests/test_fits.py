"""Tests fits of heads against scikit-learn and brute force, and LogME against a direct maximum of the evidence."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tl import fits
from tl.fits import FITS, FOLDS, NEIGHBOURS, RIDGE_GRID, TEMPERATURE
from tl.folds import grouped_folds, stratified_folds
from tl.head_kinds import rebuilt_head, saved_head
from tl.logme import logme
from tl.regimes import Regime
from tl.seeding import seed_for

SHAPES = [(40, 12, 2), (30, 90, 2), (50, 20, 4), (45, 130, 3)]
"""Images, width and classes: more images than features, and fewer."""


def made(images: int, width: int, classes: int, *, signal: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features whose mean depends on the class, with an offset and unequal scales, and labels of unequal number."""
    rng = np.random.default_rng(images + width)
    labels = np.concatenate([np.arange(classes), np.arange(classes), rng.integers(0, classes, images - 2 * classes)])
    labels[labels == classes - 1] = rng.integers(0, classes, int((labels == classes - 1).sum()))
    labels[:classes] = np.arange(classes)
    centres = rng.normal(size=(classes, width)) * signal
    features = (centres[labels] + rng.normal(size=(images, width)) * 1.5) * rng.uniform(0.2, 3.0, width) + 4.0
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def with_copies(shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `made`, with near copies of some images, of which one has another label; and the group of each image."""
    features, labels = made(*shape, signal=0.2)
    rows = torch.tensor([0, 1, 2, 3, 3, 3, 4])
    copies = features[rows] + 1e-3 * torch.randn(len(rows), shape[1], generator=torch.Generator().manual_seed(0))
    told = labels[rows].clone()
    told[-1] = (told[-1] + 1) % shape[2]
    groups = torch.cat([torch.arange(shape[0]), rows])
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(1))
    return torch.cat([features, copies])[order], torch.cat([labels, told])[order], groups[order]


def accuracy(found: fits.Fitted, labels: torch.Tensor) -> float:
    return float((torch.tensor(found.labels) == labels).float().mean())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ridge_leaves_one_out_as_brute_force_does(shape: tuple[int, int, int]) -> None:
    """Each prediction is that of a regression with intercept that was solved without the image."""
    features, labels = made(*shape, signal=0.4)
    found = FITS["ridge"].run(features, labels, shape[2])
    table, truth = features.double().numpy(), 2.0 * np.eye(shape[2])[labels.numpy()] - 1
    brute = []
    for place in range(shape[0]):
        rest = np.arange(shape[0]) != place
        model = Ridge(alpha=found.chosen, solver="svd").fit(table[rest], truth[rest])
        brute.append(int(model.predict(table[place : place + 1])[0].argmax()))
    assert found.labels == brute
    assert 0.0 < accuracy(found, labels) < 1.0, "some are wrong, so the comparison can fail"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ridge_is_that_of_scikit_learn(shape: tuple[int, int, int]) -> None:
    """The penalty that is chosen, and the outputs for other images."""
    features, labels = made(*shape, signal=0.4)
    found = FITS["ridge"].run(features, labels, shape[2])
    table = features.double().numpy()
    scale = ((table - table.mean(0)) ** 2).sum() / len(table)
    reference = RidgeClassifierCV(alphas=[scale * each for each in RIDGE_GRID]).fit(table, labels.numpy())
    assert found.chosen == pytest.approx(reference.alpha_, rel=1e-6)
    others = torch.randn(200, shape[1]) * 3 + 4
    expected = reference.decision_function(others.double().numpy())
    with torch.no_grad():
        said = found.head(others).numpy()
    np.testing.assert_allclose(said[:, 1] if shape[2] == 2 else said, expected, atol=2e-4)


def test_ridge_without_information_is_wrong_about_every_image() -> None:
    """If all features are equal, the majority of the others decides: with equal classes that is the other one.

    Without the intercept's share 1 / N in each image's own influence, the answers would not depend on that.
    """
    labels = torch.arange(20) % 2
    assert accuracy(FITS["ridge"].run(torch.ones(20, 5), labels, 2), labels) == 0.0


@pytest.mark.parametrize("fit", FITS)
def test_no_image_has_a_say_about_itself(fit: str) -> None:
    """Where labels are random, predictions are no better than chance, although any head fits all images perfectly.

    They may be worse: of equal classes, that of the image is the smaller one among all others.
    """
    rng = np.random.default_rng(0)
    features, labels = torch.tensor(rng.normal(size=(120, 400)), dtype=torch.float32), torch.arange(120) % 2
    found = FITS[fit].run(features, labels, 2)
    assert accuracy(found, labels) < 0.7
    far, told = made(120, 400, 2)
    assert accuracy(FITS[fit].run(far, told, 2), told) > 0.9, "and where they are not, they are better"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ridge_leaves_groups_out_as_brute_force_does(shape: tuple[int, int, int]) -> None:
    """Each prediction is that of a regression that was solved without all images of the group."""
    features, labels, groups = with_copies(shape)
    found = FITS["ridge"].run(features, labels, shape[2], groups)
    table, truth = features.double().numpy(), 2.0 * np.eye(shape[2])[labels.numpy()] - 1
    brute = []
    for place in range(len(table)):
        rest = (groups != groups[place]).numpy()
        model = Ridge(alpha=found.chosen, solver="svd").fit(table[rest], truth[rest])
        brute.append(int(model.predict(table[place : place + 1])[0].argmax()))
    assert found.labels == brute
    assert found.labels != FITS["ridge"].run(features, labels, shape[2]).labels, "the copies gave classes away"


@pytest.mark.parametrize("block", [fits.BLOCK, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_neighbours_of_the_same_group_do_not_vote(
    shape: tuple[int, int, int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image gets the class that those of other groups vote for, as with scikit-learn without its group."""
    monkeypatch.setattr(fits, "BLOCK", block)
    features, labels, groups = with_copies(shape)
    features = features - 3.5  # so that cosines differ
    found = FITS["knn"].run(features, labels, shape[2], groups)
    table, truth = features.double().numpy(), labels.numpy()
    brute = []
    for place in range(len(table)):
        rest = (groups != groups[place]).numpy()
        model = reference_knn(NEIGHBOURS).fit(table[rest], truth[rest])
        brute.append(int(model.classes_[model.predict_proba(table[place : place + 1])[0].argmax()]))
    assert found.labels == brute
    assert found.labels != FITS["knn"].run(features, labels, shape[2]).labels, "the copies gave classes away"


def test_a_group_that_is_nearly_all_leaves_its_images_to_the_rest() -> None:
    """Fewer others than neighbours vote then, and a fold without any other image is none."""
    features, labels = made(30, 8, 2)
    groups = torch.zeros(30, dtype=torch.int64)
    groups[:2] = 1
    others = labels[:2]
    assert set(others.tolist()) == {0, 1}
    for fit in FITS.values():
        found = fit.run(features, labels, 2, groups)
        assert len(found.labels) == 30 and found.head(features).isfinite().all()


def reference_knn(count: int) -> KNeighborsClassifier:
    def votes(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / TEMPERATURE)

    return KNeighborsClassifier(count, weights=votes, metric="cosine", algorithm="brute")


@pytest.mark.parametrize("block", [fits.BLOCK, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_neighbours_vote_as_those_of_scikit_learn(
    shape: tuple[int, int, int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Confidences are the shares of weighted votes, whole or in blocks; and each image is left out in turn."""
    monkeypatch.setattr(fits, "BLOCK", block)
    features, labels = made(*shape, signal=0.4)
    features = features - 3.5  # so that cosines differ
    found = FITS["knn"].run(features, labels, shape[2])
    table, truth = features.double().numpy(), labels.numpy()
    others = torch.randn(30, shape[1])
    expected = reference_knn(NEIGHBOURS).fit(table, truth).predict_proba(others.double().numpy())
    np.testing.assert_allclose(found.head(others).softmax(1).numpy(), expected, atol=1e-4)
    brute = []
    for place in range(shape[0]):
        rest = np.arange(shape[0]) != place
        model = reference_knn(NEIGHBOURS).fit(table[rest], truth[rest])
        brute.append(int(model.classes_[model.predict_proba(table[place : place + 1])[0].argmax()]))
    assert found.labels == brute and found.chosen == NEIGHBOURS


def test_fewer_images_than_neighbours_all_vote() -> None:
    """The setting says how many."""
    features, labels = made(6, 4, 2)
    found = FITS["knn"].run(features, labels, 2)
    assert found.chosen == 5 and found.head(features).isfinite().all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logistic_regression_keeps_groups_in_one_fold(shape: tuple[int, int, int]) -> None:
    """Each image is predicted by scikit-learn's pipeline without any image that looks like it."""
    features, labels, groups = with_copies(shape)
    found = FITS["logistic"].run(features, labels, shape[2], groups)
    folds = grouped_folds(labels.tolist(), groups.tolist(), FOLDS, seed_for("folds of a fit"))
    assert all(len(set(folds[(groups == each).numpy()])) == 1 for each in groups.unique())
    scaled, truth = StandardScaler().fit_transform(features.double().numpy()), labels.numpy()
    brute = np.empty(len(truth), dtype=int)
    for fold in range(FOLDS):
        model = LogisticRegression(C=found.chosen, tol=1e-8, max_iter=10_000)
        brute[folds == fold] = model.fit(scaled[folds != fold], truth[folds != fold]).predict(scaled[folds == fold])
    assert found.labels == brute.tolist()
    assert found.labels != FITS["logistic"].run(features, labels, shape[2]).labels, "the copies gave classes away"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logistic_regression_is_that_of_scikit_learn(shape: tuple[int, int, int]) -> None:
    """Probabilities are those of its own pipeline, and images are predicted out of their fold."""
    features, labels = made(*shape, signal=0.4)
    found = FITS["logistic"].run(features, labels, shape[2])
    table, truth = features.double().numpy(), labels.numpy()
    exact = {"C": found.chosen, "tol": 1e-8, "max_iter": 10_000}
    reference = make_pipeline(StandardScaler(), LogisticRegression(**exact)).fit(table, truth)
    others = torch.randn(50, shape[1]) * 3 + 4
    with torch.no_grad():
        said = found.head(others).softmax(1).numpy()
    np.testing.assert_allclose(said, reference.predict_proba(others.double().numpy()), atol=0.002)
    scaled, brute = StandardScaler().fit_transform(table), np.empty(len(truth), dtype=int)
    folds = stratified_folds(truth.tolist(), FOLDS, seed_for("folds of a fit"))
    for fold in range(FOLDS):
        model = LogisticRegression(**exact).fit(scaled[folds != fold], truth[folds != fold])
        brute[folds == fold] = model.predict(scaled[folds == fold])
    assert np.mean(np.array(found.labels) == brute) > 0.95, "an image on the border may be on either side"
    assert 0.0 < accuracy(found, labels) < 1.0


@pytest.mark.parametrize("fit", FITS)
def test_rare_and_missing_classes(fit: str) -> None:
    """A class with one image can't be predicted without it; one without any is never predicted."""
    features, labels = made(20, 8, 2)
    labels = torch.where(torch.arange(20) == 3, 3, labels)  # of five classes, 2 and 4 have no image
    found = FITS[fit].run(features, labels, 5)
    assert found.labels[3] != 3 and not {2, 4} & set(found.labels)
    with torch.no_grad():
        said = found.head(features)
    assert said.shape == (20, 5) and said.isfinite().all() and not {2, 4} & set(said.argmax(1).tolist())


@pytest.mark.parametrize("fit", FITS)
def test_the_smallest_set(fit: str) -> None:
    """Of two images of two classes, each is predicted as the other."""
    found = FITS[fit].run(torch.eye(2), torch.tensor([0, 1]), 2)
    assert found.labels == [1, 0] and found.head(torch.eye(2)).argmax(1).tolist() == [0, 1]


def test_every_fit_that_a_regime_can_name_is_there() -> None:
    """And no other."""
    assert {"steps", *FITS} == set(get_args(get_type_hints(Regime)["fit"]))


@pytest.mark.parametrize("shape", [(25, 6, 2), (20, 40, 3)], ids=str)
def test_logme_is_the_largest_evidence(shape: tuple[int, int, int]) -> None:
    """A direct search for the likeliest variances, on the full covariance of the labels, finds the same value."""
    features, labels = made(*shape)
    products = (features.double() @ features.double().T).numpy()
    expected = []
    for label in range(shape[2]):
        column = (labels == label).double().numpy()

        def negative(logs: np.ndarray, column: np.ndarray = column) -> float:
            covariance = np.exp(-logs[1]) * np.eye(len(column)) + np.exp(-logs[0]) * products
            return -float(multivariate_normal.logpdf(column, cov=covariance, allow_singular=True))

        starts = [(0.0, 0.0), (5.0, 2.0), (8.0, 1.0)]
        best = min(
            (minimize(negative, x0=start, method="Nelder-Mead", options={"maxiter": 4000}) for start in starts),
            key=lambda found: found.fun,
        )
        expected.append(-best.fun / len(column))
    assert logme(features, labels) == pytest.approx(np.mean(expected), abs=1e-4)


def test_logme_rises_with_what_features_say() -> None:
    """It is unknown where they say nothing at all, and a class without images changes nothing."""
    weak, labels = made(60, 20, 2, signal=0.1)
    strong, same = made(60, 20, 2, signal=2.0)
    assert torch.equal(labels, same) and logme(strong, labels) > logme(weak, labels)
    assert logme(torch.zeros(10, 4), torch.arange(10) % 2) is None
    assert logme(strong, labels * 2) == pytest.approx(logme(strong, labels))


def test_neighbours_can_be_exported() -> None:
    """For batches of any size, as `bench train --export` does."""
    features, labels = made(30, 12, 3)
    head = FITS["knn"].run(features, labels, 3).head.eval()
    sizes = {"features": {0: torch.export.Dim("batch", min=1)}}
    exported = torch.export.export(head, (torch.zeros(2, 12),), dynamic_shapes=sizes).module()
    for count in (1, 5, 40):
        batch = torch.randn(count, 12) + 4
        torch.testing.assert_close(exported(batch), head(batch))


def test_neighbours_are_saved_and_rebuilt() -> None:
    """A head that holds features is rebuilt from its kind, its sizes and its tensors."""
    features, labels = made(30, 12, 3)
    head = FITS["knn"].run(features, labels, 3).head
    saved = saved_head(head)
    assert saved.kind == "knn" and saved.sizes == {"images": 30, "width": 12, "classes": 3}
    again = rebuilt_head(saved, dict(head.state_dict()))
    assert torch.equal(again(features), head(features)) and not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e6])
def test_logme_of_labels_that_features_explain_exactly(scale: float) -> None:
    """It is a number or unknown: the noise that is left may round to nothing."""
    features = torch.diag(torch.tensor([2.0, 1.0, 1.0])) * scale
    found = logme(features, torch.tensor([0, 1, 1]))
    assert found is None or np.isfinite(found)
    wide = torch.cat([10 * torch.eye(6).repeat_interleave(5, 0), 1e-9 * torch.randn(30, 90)], 1)
    found = logme(wide * scale, torch.arange(6).repeat_interleave(5))
    assert found is None or np.isfinite(found)
