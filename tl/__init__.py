"""Transfer learning on small image sets: data, pretrained backbones, regimes, and one `train_model`.

    import tl

    splits = tl.load_splits("auto")
    config = tl.TrainConfig(backbone="timm:tf_efficientnet_lite0", regime="frozen", epochs=5)
    result = tl.train_model(config, splits)
    print(result.val_accuracy_best, result.epoch_seconds)

`import tl` is cheap: each name loads what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl import visualize
    from tl.backbones import Classifier, make_backbone
    from tl.batches import Preprocessing
    from tl.config import TrainConfig
    from tl.datasets import DATASETS, Splits, load_splits
    from tl.errors import (
        CacheWarning,
        ConfigError,
        DataError,
        DataWarning,
        DeviceError,
        DivergedError,
        FallbackWarning,
        ModelError,
        NotApplicable,
        UserError,
        WeightsError,
    )
    from tl.library import Backbone
    from tl.model import Model, load_model, save_model
    from tl.protocols import run_protocol
    from tl.regimes import REGIMES, Regime, Trainable
    from tl.results import EpochResult, TrainResult
    from tl.tasks import TASKS
    from tl.train import train_model
    from tl.visualize import show_batch, show_predictions

_HOMES = {
    "tl.backbones": ("Classifier", "make_backbone"),
    "tl.batches": ("Preprocessing",),
    "tl.config": ("TrainConfig",),
    "tl.datasets": ("DATASETS", "Splits", "load_splits"),
    "tl.errors": (
        *("ConfigError", "DataError", "DeviceError", "DivergedError", "ModelError", "NotApplicable"),
        *("CacheWarning", "DataWarning", "FallbackWarning", "UserError", "WeightsError"),
    ),
    "tl.library": ("Backbone",),
    "tl.model": ("Model", "load_model", "save_model"),
    "tl.protocols": ("run_protocol",),
    "tl.regimes": ("REGIMES", "Regime", "Trainable"),
    "tl.results": ("EpochResult", "TrainResult"),
    "tl.tasks": ("TASKS",),
    "tl.train": ("train_model",),
    "tl.visualize": ("show_batch", "show_predictions", "visualize"),
}
_LAZY = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "DATASETS",
    "REGIMES",
    "TASKS",
    "Backbone",
    "CacheWarning",
    "Classifier",
    "ConfigError",
    "DataError",
    "DataWarning",
    "DeviceError",
    "DivergedError",
    "EpochResult",
    "FallbackWarning",
    "Model",
    "ModelError",
    "NotApplicable",
    "Preprocessing",
    "Regime",
    "Splits",
    "TrainConfig",
    "TrainResult",
    "Trainable",
    "UserError",
    "WeightsError",
    "load_model",
    "load_splits",
    "make_backbone",
    "run_protocol",
    "save_model",
    "show_batch",
    "show_predictions",
    "train_model",
    "visualize",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with import_module("tl.deferred").deferred():
        module = import_module(_LAZY[name])
    import_module("tl.plugins").load_entry_points()
    return module if _LAZY[name] == f"tl.{name}" else getattr(module, name)
