"""The cell of `plain_loop`, written as a user of fastai would write it: what this suite's speed is compared with.

    python -m bench.devtools.fastai_loop --data FOLDER --regime frozen --epochs 3

Network, weights and the optimiser's numbers are the plain loop's; crops and flips are fastai's own, flips in the
batch; the rate stays as it is. Workers are as many as the machine has cores, up to the plain loop's number. `nox -s
peers` installs fastai for itself. https://docs.fast.ai/vision.data.html https://docs.fast.ai/learner.html
"""

from __future__ import annotations

import time
import warnings

import fastai
import torch
from fastai.vision.all import (
    SGD,
    Callback,
    Flip,
    ImageDataLoaders,
    Learner,
    Normalize,
    RandomResizedCrop,
    accuracy,
    params,
)
from torch import nn

from bench.devtools.plain_loop import BATCH, WORKERS, network
from bench.devtools.side import PLAIN_REGIMES, options, tell_end, tell_epoch
from tl.backbones import Classifier
from tl.machine import usable_cores


class TellEpochs(Callback):
    """A line an epoch, of training and validation."""

    order = 100
    """After fastai's own callbacks, which gather the metrics."""

    def before_epoch(self) -> None:
        """An epoch begins."""
        self.begun = time.perf_counter()

    def before_validate(self) -> None:
        """Its training is over."""
        self.trained = time.perf_counter()

    def after_epoch(self) -> None:
        """Its validation is over."""
        (right,) = self.recorder.metrics
        tell_epoch(self.epoch, self.trained - self.begun, time.perf_counter() - self.trained, float(right.value))


def body_and_head(model: Classifier) -> list[list[nn.Parameter]]:
    """Parameter groups, of which `freeze` leaves the last to train."""
    return [params(model.backbone), params(model.head)]


def main() -> None:
    """Train, a line an epoch."""
    given = options(__doc__, PLAIN_REGIMES)
    warnings.simplefilter("ignore")
    begun = time.perf_counter()
    torch.manual_seed(given.seed)
    model, preprocessing, trained = network(given)
    only_head = trained is model.head
    device = torch.device(given.device)
    normalise = Normalize.from_stats(preprocessing.mean, preprocessing.std, cuda=device.type == "cuda")
    loaders = ImageDataLoaders.from_folder(
        given.data,
        train="train",
        valid="val",
        item_tfms=RandomResizedCrop(preprocessing.size),
        batch_tfms=[Flip(), normalise],
        bs=BATCH,
        num_workers=min(WORKERS, usable_cores()),
        device=device,
    )
    learner = Learner(
        loaders,
        model,
        loss_func=nn.CrossEntropyLoss(),
        opt_func=lambda groups, lr: SGD(groups, lr, mom=0.9),
        metrics=accuracy,
        splitter=body_and_head,
        train_bn=not only_head,
        cbs=TellEpochs(),
    )
    if only_head:
        learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit(given.epochs, 1e-3)
    tell_end(time.perf_counter() - begun, library=f"fastai {fastai.__version__}")


if __name__ == "__main__":
    main()
