"""Transfer learning on small image sets: data, pretrained backbones, regimes, and one `train_model`.

    import tl

    splits = tl.load_splits("auto")
    config = tl.TrainConfig(backbone="timm:tf_efficientnet_lite0", regime="frozen", epochs=5)
    result = tl.train_model(config, splits)
    print(result.val_accuracy_best, result.epoch_seconds)

`import tl` is cheap: torch is loaded by the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tl.config import TrainConfig
from tl.datasets import DATASETS, Splits, load_splits
from tl.errors import ConfigError, DataError, DeviceError, NotApplicable, StandInWarning, UserError, WeightsError
from tl.regimes import REGIMES, Regime

if TYPE_CHECKING:
    from tl import visualize
    from tl.backbones import Backbone, Classifier, make_backbone
    from tl.protocols import run_protocol
    from tl.results import EpochResult, TrainResult
    from tl.train import train_model
    from tl.visualize import show_batch, show_predictions

_LAZY = {
    "Backbone": "tl.backbones",
    "Classifier": "tl.backbones",
    "make_backbone": "tl.backbones",
    "EpochResult": "tl.results",
    "TrainResult": "tl.results",
    "run_protocol": "tl.protocols",
    "train_model": "tl.train",
    "show_batch": "tl.visualize",
    "show_predictions": "tl.visualize",
    "visualize": "tl.visualize",
}

__all__ = [
    "DATASETS",
    "REGIMES",
    "Backbone",
    "Classifier",
    "ConfigError",
    "DataError",
    "DeviceError",
    "EpochResult",
    "NotApplicable",
    "Regime",
    "Splits",
    "StandInWarning",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "WeightsError",
    "load_splits",
    "make_backbone",
    "run_protocol",
    "show_batch",
    "show_predictions",
    "train_model",
    "visualize",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_LAZY[name])
    return module if _LAZY[name] == f"tl.{name}" else getattr(module, name)
