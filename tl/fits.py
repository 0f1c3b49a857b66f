"""Fits a head at once to the features of all training images, instead of training it by steps.

Each fit also predicts every training image by a head that has not seen it: by leave-one-out, or by folds where that
would take too long. The share of these predictions that are right compares backbones without a validation image.
Images that look the same are left out together, where the caller says which: a copy would give an image's class away.

Nothing here depends on a seed. Fits run on the CPU, in double precision where they solve systems of equations. Besides
the features themselves, in double precision, they need memory for a square matrix: `min(images, width)` on a side for
`ridge` and `logistic`, and a block of `BLOCK` similarities for `knn`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import normalize, one_hot

from tl.alike import members
from tl.folds import grouped_folds, stratified_folds
from tl.regimes import Regime
from tl.seeding import seed_for

NEIGHBOURS = 20
"""Training images that vote. The number and `TEMPERATURE` are those of DINO (arXiv 2104.14294), fixed beforehand:
choosing them by the same leave-one-out predictions would flatter those."""
TEMPERATURE = 0.07
"""A neighbour's vote counts exp(cosine similarity / TEMPERATURE)."""
BLOCK = 1 << 24
"""Most similarities in memory at a time: 64 MiB."""
LEAST_SHARE = 1e-6
"""Share of a class without votes. Its logarithm is then finite, as a logit must be."""
RIDGE_GRID = tuple(10.0**power for power in range(2, -5, -1))
"""Weights of the penalty to choose from, relative to the mean squared length of centred features."""
LOGISTIC_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of C, the inverse weight of the penalty, to choose from, for standardised features."""
LEAST_DEVIATION = 1e-3
"""Smallest deviation by which `logistic` divides a feature, relative to the mean deviation."""
FOLDS = 5
"""Folds by which `logistic` predicts its training images."""
UNSEEN = -30.0
"""Logit of a class without a training image, for `logistic`."""
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A fitted head, and what heads without each image say about the training images."""

    head: nn.Module
    """Maps features `(B, width)` to logits `(B, classes)`."""
    labels: list[int]
    """For each training image, the class that is predicted without it."""
    chosen: float
    """The setting that was chosen; `Fit.setting` names it."""


class FitFunction(Protocol):
    """Fits a head to features."""

    def __call__(
        self, features: torch.Tensor, labels: torch.Tensor, classes: int, groups: torch.Tensor | None = None
    ) -> Fitted:
        """Fit to the features of at least two images.

        Args:
            features: `(N, width) float32`, finite and on the CPU.
            labels: `(N,) int64`, on the CPU.
            classes: their number.
            groups: `(N,) int64`, with at least two groups: images of the same one are left out together. None to leave
                each image out alone.
        """


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A way to fit a head."""

    run: FitFunction
    setting: str
    """Name of the setting that it chooses, or that is fixed."""
    load: Callable[[], object] = lambda: None
    """Imports the libraries that it needs, so that neither its time nor its memory includes that."""


class NearestNeighbours(nn.Module):
    """A head that holds features: the nearest ones by cosine similarity vote, weighted by similarity.

    Logits are logarithms of the classes' shares of the votes, so a confidence (softmax) is a share of weighted votes.

    Args:
        features: of the training images, `(N, width)`. They are kept with length 1.
        labels: classes of the training images, `(N,) int64`.
        classes: number of classes.
    """

    labels: torch.Tensor

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
        super().__init__()
        # A parameter, since training set it: it counts as such, and is saved with the network.
        self.features = nn.Parameter(normalize(features.float()), requires_grad=False)
        self.register_buffer("labels", labels)
        self.classes = classes

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of features, in single precision."""
        return self.shares(features).clamp(min=LEAST_SHARE).log()

    def shares(self, features: torch.Tensor, groups: torch.Tensor | None = None) -> torch.Tensor:
        """Return each class's share of the votes, `(B, classes)`.

        With `groups`, `(B,) int64`, the queries are the images whose features are kept, in the same order, and none of
        an image's own group votes.
        """
        if torch.compiler.is_exporting():  # a program of one block, for any number of queries
            with torch.autocast(features.device.type, enabled=False):
                return self._shares(features.float(), None)
        rows = max(1, BLOCK // len(self.features))
        parts = features.float().split(rows)
        own = groups.split(rows) if groups is not None else [None] * len(parts)
        apart = [None if some is None else some[:, None] == groups for some in own]
        with torch.autocast(features.device.type, enabled=False):  # half precision would confuse near neighbours
            return torch.cat([self._shares(part, mine) for part, mine in zip(parts, apart, strict=True)])

    def _shares(self, features: torch.Tensor, apart: torch.Tensor | None) -> torch.Tensor:
        """The shares of a block; `apart`, `(B, N) bool`, has the kept features that don't vote for each query."""
        similarity = normalize(features) @ self.features.T
        if apart is not None:
            similarity.masked_fill_(apart, -torch.inf)
        nearest, places = similarity.topk(min(NEIGHBOURS, len(self.features) - (apart is not None)))
        votes = (nearest / TEMPERATURE).softmax(1)
        return votes.new_zeros(votes.shape[0], self.classes).scatter_add_(1, self.labels[places], votes)


def _knn(features: torch.Tensor, labels: torch.Tensor, classes: int, groups: torch.Tensor | None = None) -> Fitted:
    head = NearestNeighbours(features, labels, classes)
    with torch.inference_mode():
        without = head.shares(features, torch.arange(len(features)) if groups is None else groups).argmax(1)
    return Fitted(head=head, labels=without.tolist(), chosen=min(NEIGHBOURS, len(features) - 1))


@dataclass(frozen=True, kw_only=True)
class Rotated:
    """Features in coordinates along their principal axes, as many as there are images or less."""

    coordinates: torch.Tensor
    """`(N, r)`."""
    variances: torch.Tensor
    """Sum of squares of each coordinate, `(r,)`."""
    back: Callable[[torch.Tensor], torch.Tensor]
    """Maps weights of the coordinates, `(r, classes)`, to those of the features, `(width, classes)`."""


def rotated(features: torch.Tensor) -> Rotated:
    """Rotate features `(N, width) float64`, by the eigenvectors of the smaller of their two matrices of products."""
    wide = features.shape[1] > len(features)
    variances, axes = torch.linalg.eigh(features @ features.T if wide else features.T @ features)
    real = variances > 1e-13 * variances[-1].clamp(min=torch.finfo(variances.dtype).tiny)
    variances, axes = variances[real], axes[:, real]
    if not wide:
        return Rotated(coordinates=features @ axes, variances=variances, back=lambda weights: axes @ weights)
    lengths = variances.sqrt()
    return Rotated(
        coordinates=axes * lengths,
        variances=variances,
        back=lambda weights: features.T @ (axes @ (weights / lengths[:, None])),
    )


def _ridge(features: torch.Tensor, labels: torch.Tensor, classes: int, groups: torch.Tensor | None = None) -> Fitted:
    """Regress one column per class, 1 for its images and -1 for others, on the features, with an intercept.

    The penalty doesn't apply to the intercept. Of the grid, the penalty with the least squared error of leave-one-out
    predictions is chosen. Softmax of the outputs is no calibrated probability. Where features say nothing, these
    predictions are worse than chance: of equal classes, that of the image is the smaller one among all others.
    """
    centred, mean = features.double(), features.double().mean(0)
    centred -= mean
    targets = 2.0 * one_hot(labels, classes).double() - 1.0
    level = targets.mean(0)
    by_axis = rotated(centred)
    coordinates, variances = by_axis.coordinates, by_axis.variances
    products = coordinates.T @ (targets - level)
    scale = float(variances.sum()) / len(features) or 1.0
    together = [] if groups is None else [torch.from_numpy(some) for some in members(groups.numpy())]
    best: tuple[float, float, torch.Tensor] | None = None
    for relative in RIDGE_GRID:  # the largest penalty first, which is also the choice among equals
        shrunk = 1.0 / (variances + relative * scale)
        # The share that each image's own target has in its fitted value; 1 / N of it is that of the intercept.
        own = 1.0 / len(features) + coordinates.square() @ shrunk
        residuals = targets - level - coordinates @ (shrunk[:, None] * products)
        errors = residuals / (1.0 - own)[:, None]
        for some in together:
            shares = 1.0 / len(features) + (coordinates[some] * shrunk) @ coordinates[some].T
            errors[some] = torch.linalg.solve(torch.eye(len(some), dtype=shares.dtype) - shares, residuals[some])
        if best is None or float(errors.square().mean()) < best[0]:
            best = float(errors.square().mean()), relative * scale, targets - errors
    assert best is not None  # the grid is not empty
    _, penalty, without = best
    weights = by_axis.back(products / (variances + penalty)[:, None])
    return Fitted(head=_linear(weights.T, level - mean @ weights), labels=without.argmax(1).tolist(), chosen=penalty)


def _logistic(features: torch.Tensor, labels: torch.Tensor, classes: int, groups: torch.Tensor | None = None) -> Fitted:
    """Fit multinomial logistic regression with an L2 penalty to standardised features.

    C has the least cross-entropy on images out of their fold. Features are standardised over all training images once:
    that uses no label, so it hardly helps those out of a fold. A single thread multiplies the small matrices: several
    wait for each other, for most of the time where another program uses a core.
    """
    from threadpoolctl import threadpool_limits

    inputs = features.double()
    deviation, mean = torch.std_mean(inputs, 0, correction=0)
    # A feature that hardly varies is mostly rounding, which must not be magnified.
    deviation = deviation.clamp(min=LEAST_DEVIATION * float(deviation.mean()) or 1.0)
    inputs = (inputs - mean) / deviation
    # The penalty doesn't change under a rotation, and an optimum has no part outside the images' own axes.
    by_axis = rotated(inputs) if inputs.shape[1] > len(inputs) else None
    table, truth = (by_axis.coordinates if by_axis else inputs).numpy(), labels.numpy()
    seed = seed_for("folds of a fit")
    if groups is None:
        folds = stratified_folds(truth.tolist(), min(FOLDS, len(truth)), seed)
    else:
        folds = grouped_folds(truth.tolist(), groups.tolist(), min(FOLDS, len(groups.unique())), seed)
    shares = np.zeros((len(LOGISTIC_GRID), len(truth), classes))
    with threadpool_limits(1, user_api="blas"):
        for fold in np.unique(folds):
            inside = folds == fold
            for place, model in enumerate(_path(table[~inside], truth[~inside])):
                shares[place][np.ix_(inside, model.classes_)] = model.predict_proba(table[inside])
        own = shares[:, np.arange(len(truth)), truth].clip(min=1e-12)
        best = int((-np.log(own)).mean(1).argmin())  # the strongest penalty among equals
        (model,) = _path(table, truth, LOGISTIC_GRID[best : best + 1], tolerance=1e-6)
    weights, bias = _coefficients(model, classes)
    weights = (by_axis.back(weights) if by_axis else weights) / deviation[:, None]
    return Fitted(
        head=_linear(weights.T, bias - mean @ weights),
        labels=shares[best].argmax(1).tolist(),
        chosen=LOGISTIC_GRID[best],
    )


def _path(
    table: npt.NDArray[np.float64], truth: Labels, grid: Sequence[float] = LOGISTIC_GRID, tolerance: float = 1e-4
) -> Iterator[Any]:
    """Yield scikit-learn's model for each C of the grid. It is the same object, which begins at its last optimum.

    `tolerance` is the largest gradient at an optimum.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(truth)) == 1:  # where a fold has all images of the only other class
        yield from [DummyClassifier(strategy="most_frequent").fit(table, truth)] * len(grid)
        return
    model = LogisticRegression(warm_start=True, max_iter=5000, tol=tolerance)
    for inverse in grid:
        yield model.set_params(C=inverse).fit(table, truth)


def _coefficients(model: Any, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights `(r, classes)` and intercepts `(classes,)` whose softmax gives the model's probabilities."""
    found, intercept = np.atleast_2d(model.coef_), np.asarray(model.intercept_)
    if len(found) == 1:  # of two classes scikit-learn has the difference
        found, intercept = np.concatenate([-found / 2, found / 2]), np.concatenate([-intercept / 2, intercept / 2])
    weights, bias = np.zeros((found.shape[1], classes)), np.full(classes, UNSEEN)
    weights[:, model.classes_], bias[model.classes_] = found.T, intercept
    return torch.from_numpy(weights), torch.from_numpy(bias)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """Return the layer with these weights, `(classes, width)`, and biases, in single precision."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return layer


FITS: dict[str, Fit] = {
    "knn": Fit(run=_knn, setting="k"),
    "ridge": Fit(run=_ridge, setting="alpha"),
    "logistic": Fit(run=_logistic, setting="C", load=lambda: import_module("sklearn.linear_model")),
}
"""The fit of each `Regime.fit` other than `steps`."""


def load_fits(regime: Regime) -> None:
    """Import the libraries that a regime's fits need. Memory is measured from there on."""
    for name in (regime.fit, regime.head_start):
        if name in FITS:
            FITS[name].load()
