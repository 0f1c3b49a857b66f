"""Shared by the sides of `peers` that other libraries train: the network, and loaders of the images."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

import tl
from bench.devtools.side import weights_in
from tl.backbones import Classifier
from tl.batches import Preprocessing
from tl.datasets import ImageList
from tl.plain import WORKERS, PlainImages, training_transform, validation_transform

BATCH = int(tl.TrainConfig.model_fields["batch_size"].default)
__all__ = ["BATCH", "WORKERS", "loaders", "network"]


def loaders(splits: tl.Splits, preprocessing: Preprocessing, **options: Any) -> list[DataLoader[Any]]:
    """Loaders of both splits: the plain side's images, in batches of `BATCH`, of which only those for training are
    shuffled. `options` are further options of `DataLoader`.
    """

    def load(images: ImageList, *, training: bool) -> DataLoader[Any]:
        transform = (training_transform if training else validation_transform)(preprocessing)
        return DataLoader(PlainImages(splits.root, images, transform), batch_size=BATCH, shuffle=training, **options)

    return [load(splits.train, training=True), load(splits.val, training=False)]


def network(given: argparse.Namespace) -> tuple[Classifier, Preprocessing, nn.Module]:
    """The classifier, its preprocessing of images, and its trained part."""
    backbone = tl.make_backbone(given.backbone, weights=weights_in(given.weights_file) or "auto", seed=given.seed)
    classes = len(tl.load_splits(given.data).classes)
    model = Classifier(backbone, classes, tl.TrainConfig(backbone=given.backbone, seed=given.seed))
    if tl.REGIMES[given.regime].trainable.only_head:
        model.backbone.requires_grad_(False)
        return model, backbone.preprocessing, model.head
    return model, backbone.preprocessing, model
