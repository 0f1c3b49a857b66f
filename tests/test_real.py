"""On the real ants and bees; skipped, with the reason, where they aren't."""

from __future__ import annotations

from pathlib import Path

import tl


def test_frozen_efficientnet_lite0_reaches_090(real_images: Path) -> None:
    """Best validation accuracy within five epochs, from the weights of the package index."""
    config = tl.TrainConfig(backbone="timm:tf_efficientnet_lite0", regime="frozen", weights="pretrained", epochs=5)
    result = tl.train_model(config, tl.load_splits(real_images), device="cpu")
    assert result.val_accuracy_best >= 0.90
    assert result.frozen_verified
