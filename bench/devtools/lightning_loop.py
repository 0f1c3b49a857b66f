"""The training of `plain_loop`, as a user of Lightning would write it. `peers` compares this suite's speed with it.

    python -m bench.devtools.lightning_loop --data FOLDER --regime frozen --epochs 3

Network, weights, images, batches and optimiser are those of the plain side. There is one worker per core, up to the
plain side's number; the workers live for all epochs. `nox -s peers` installs Lightning into its own environment.
https://lightning.ai/docs/pytorch/stable/
"""

from __future__ import annotations

import logging
import time
import warnings

import lightning
import torch
from torch import nn

import tl
from bench.devtools.other_loops import WORKERS, loaders, network
from bench.devtools.side import PLAIN_REGIMES, emit_end, emit_epoch, options
from tl.machine import usable_cores


class Cell(lightning.LightningModule):
    """Training and validation of a classifier, with the tutorial's optimiser and schedule."""

    def __init__(self, model: nn.Module, trained: nn.Module) -> None:
        super().__init__()
        self.model, self.trained, self.marks = model, trained, [0.0]

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the mean cross-entropy of a batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Log the accuracy; Lightning averages it over images."""
        images, labels = batch
        accuracy = (self.model(images).argmax(dim=1) == labels).float().mean()
        self.log("val_accuracy", accuracy, batch_size=len(labels))

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.StepLR]]:
        """SGD with momentum for the trained parameters, and its schedule."""
        optimizer = torch.optim.SGD(self.trained.parameters(), lr=1e-3, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)]

    def on_train_epoch_start(self) -> None:
        """Note when an epoch starts."""
        self.marks = [time.perf_counter()]

    def on_validation_epoch_start(self) -> None:
        """Note when the training of an epoch has ended."""
        self.marks.append(time.perf_counter())

    def on_train_epoch_end(self) -> None:
        """Emit the line of an epoch. Lightning calls this after the validation."""
        started, trained = self.marks
        accuracy = float(self.trainer.callback_metrics["val_accuracy"])
        emit_epoch(self.current_epoch, trained - started, time.perf_counter() - trained, accuracy)


def main() -> None:
    """Train, and emit one line per epoch."""
    given = options(__doc__, PLAIN_REGIMES)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    started = time.perf_counter()
    torch.manual_seed(given.seed)
    model, preprocessing, trained = network(given)
    workers = min(WORKERS, usable_cores())
    train, val = loaders(tl.load_splits(given.data), preprocessing, num_workers=workers, persistent_workers=workers > 0)
    trainer = lightning.Trainer(
        max_epochs=given.epochs,
        accelerator=torch.device(given.device).type,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Cell(model, trained), train, val)
    emit_end(time.perf_counter() - started, library=f"lightning {lightning.__version__}")


if __name__ == "__main__":
    main()
