"""On the real ants and bees; skipped, with the reason, where they aren't."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import tl
from tl.backbones import find_weights


def test_frozen_efficientnet_lite0_reaches_090(real_images: Path) -> None:
    """Best validation accuracy within five epochs, from the weights of the package index."""
    config = tl.TrainConfig(backbone="timm:tf_efficientnet_lite0", regime="frozen", weights="pretrained", epochs=5)
    result = tl.train_model(config, tl.load_splits(real_images), device="cpu")
    assert result.val_accuracy_best >= 0.90
    assert result.frozen_verified


def test_zeroshot_is_the_original_networks_own_answer(real_images: Path) -> None:
    """EfficientNet-Lite0 with all 1,000 classes, fed by timm's own transform: the same images right, 0.974 of them.

    That is more than training its head reaches: these images are no test of what is new to the backbone.
    """
    spec = "timm:tf_efficientnet_lite0"
    splits = tl.load_splits(real_images)
    result = tl.train_model(tl.TrainConfig(backbone=spec, regime="zeroshot", weights="pretrained"), splits)
    original = timm.create_model(spec.partition(":")[2]).eval()
    own = [name for name in original.state_dict() if not name.endswith("num_batches_tracked")]
    file = torch.load(find_weights(spec, "pretrained").path, weights_only=True)
    given = [value for name, value in file.items() if not name.endswith("num_batches_tracked")]
    original.load_state_dict(dict(zip(own, given, strict=True)), strict=False)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(original))
    said = []
    with torch.inference_mode():
        for file_name in splits.val.files:
            with Image.open(splits.root / file_name) as image:
                logits = original(transform(image.convert("RGB"))[None])[0]
            said.append(0 if logits[310] > logits[309] else 1)
    # Resizing by another library may turn an image on the border.
    assert sum(a != b for a, b in zip(result.best.labels, said, strict=True)) <= 1
    right = [a == b for a, b in zip(said, splits.val.labels, strict=True)]
    assert result.val_accuracy_last == pytest.approx(sum(right) / len(right), abs=1.01 / len(right))
    assert round(result.val_accuracy_last, 3) == 0.974
