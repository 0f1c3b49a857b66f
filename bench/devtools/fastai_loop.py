"""The training of `plain_loop`, as a user of fastai would write it. `peers` compares this suite's speed with it.

    python -m bench.devtools.fastai_loop --data FOLDER --regime frozen --epochs 3

Network, weights and hyperparameters of the optimiser are those of the plain side. Crops and flips are fastai's own,
flips on whole batches. The learning rate is constant. There is one worker per core, up to the plain side's number.
`nox -s peers` installs fastai into its own environment.
https://docs.fast.ai/vision.data.html https://docs.fast.ai/learner.html
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

from bench.devtools.other_loops import BATCH, WORKERS, network
from bench.devtools.side import PLAIN_REGIMES, emit_end, emit_epoch, options
from tl.backbones import Classifier
from tl.machine import usable_cores


class EmitEpochs(Callback):
    """Emits one line per epoch."""

    order = 100
    """Runs after fastai's own callbacks, which compute the metrics."""

    def before_epoch(self) -> None:
        """Note when an epoch starts."""
        self.started = time.perf_counter()

    def before_validate(self) -> None:
        """Note when the training of an epoch has ended."""
        self.trained = time.perf_counter()

    def after_epoch(self) -> None:
        """Emit the line when the validation has ended."""
        (accuracy,) = self.recorder.metrics
        emit_epoch(self.epoch, self.trained - self.started, time.perf_counter() - self.trained, float(accuracy.value))


def body_and_head(model: Classifier) -> list[list[nn.Parameter]]:
    """The parameter groups; fastai's `freeze` freezes all but the last."""
    return [params(model.backbone), params(model.head)]


def main() -> None:
    """Train, and emit one line per epoch."""
    given = options(__doc__, PLAIN_REGIMES)
    warnings.simplefilter("ignore")
    started = time.perf_counter()
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
        cbs=EmitEpochs(),
    )
    if only_head:
        learner.freeze()
    with learner.no_bar(), learner.no_logging():
        learner.fit(given.epochs, 1e-3)
    emit_end(time.perf_counter() - started, library=f"fastai {fastai.__version__}")


if __name__ == "__main__":
    main()
