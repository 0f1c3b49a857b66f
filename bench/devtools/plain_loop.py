"""A plain transfer-learning loop as in the PyTorch tutorial. `peers` compares this suite's speed with it.

    python -m bench.devtools.plain_loop --data FOLDER --regime frozen --epochs 3

PIL decodes and crops the images in four worker processes, again in every epoch. The loss is read after every batch. A
frozen backbone is in train mode too. Network, weights, input size and normalisation are those that the suite uses for
that backbone. Tensors have torch's default layout, and images are resized bilinearly.
https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import tl
from bench.devtools.side import PLAIN_REGIMES, emit_end, emit_epoch, options, weights_in
from tl.backbones import Classifier
from tl.batches import Preprocessing
from tl.datasets import load_splits

BATCH, WORKERS = 4, 4


def loader(
    folder: Path, preprocessing: Preprocessing, *, augment: bool, **options: Any
) -> DataLoader[tuple[torch.Tensor, int]]:
    """The images of one split in random order, as in the tutorial also for validation. `options` override defaults."""
    if augment:
        crop = [transforms.RandomResizedCrop(preprocessing.size), transforms.RandomHorizontalFlip()]
    else:
        crop = [transforms.Resize(preprocessing.resize), transforms.CenterCrop(preprocessing.size)]
    normalise = transforms.Normalize(preprocessing.mean, preprocessing.std)
    images = ImageFolder(folder, transforms.Compose([*crop, transforms.ToTensor(), normalise]))
    return DataLoader(images, **{"batch_size": BATCH, "shuffle": True, "num_workers": WORKERS, **options})


def network(given: argparse.Namespace) -> tuple[Classifier, Preprocessing, nn.Module]:
    """The classifier, its preprocessing of images, and its trained part."""
    backbone = tl.make_backbone(given.backbone, weights=weights_in(given.weights_file) or "auto", seed=given.seed)
    classes = len(load_splits(given.data).classes)
    model = Classifier(backbone, classes, tl.TrainConfig(backbone=given.backbone, seed=given.seed))
    if tl.REGIMES[given.regime].trainable.only_head:
        model.backbone.requires_grad_(False)
        return model, backbone.preprocessing, model.head
    return model, backbone.preprocessing, model


def one_pass(
    model: nn.Module,
    batches: DataLoader[tuple[torch.Tensor, int]],
    device: torch.device,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[float, float, float]:
    """Train for one epoch, or validate without an optimiser. Returns mean loss, accuracy in [0, 1] and seconds."""
    started = time.perf_counter()
    model.train(optimizer is not None)
    loss_sum, correct, seen = 0.0, 0, 0
    with torch.set_grad_enabled(optimizer is not None):
        for inputs, targets in batches:
            images, labels = inputs.to(device), targets.to(device)
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            if optimizer:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum().item()
            seen += len(labels)
    return loss_sum / seen, correct / seen, time.perf_counter() - started


def main() -> None:
    """Train, and emit one line per epoch. As in the tutorial, the best weights are saved, and loaded at the end."""
    given = options(__doc__, PLAIN_REGIMES)
    started = time.perf_counter()
    torch.manual_seed(given.seed)
    device, folder = torch.device(given.device), Path(given.data)
    model, preprocessing, trained = network(given)
    model.to(device)
    train = loader(folder / "train", preprocessing, augment=True)
    val = loader(folder / "val", preprocessing, augment=False)
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    with tempfile.TemporaryDirectory() as scratch:
        best, best_accuracy = Path(scratch) / "best.pt", -1.0
        for epoch in range(given.epochs):
            _, _, train_seconds = one_pass(model, train, device, optimizer)
            schedule.step()
            _, accuracy, val_seconds = one_pass(model, val, device)
            if accuracy > best_accuracy:
                best_accuracy = accuracy
                torch.save(model.state_dict(), best)
            emit_epoch(epoch, train_seconds, val_seconds, accuracy)
        model.load_state_dict(torch.load(best, weights_only=True))
    emit_end(time.perf_counter() - started)


if __name__ == "__main__":
    main()
