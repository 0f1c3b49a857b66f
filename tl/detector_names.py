"""The detectors that can train, by name. This module doesn't import torch; `tl.detectors` builds them."""

from __future__ import annotations

from tl.specs import Spec

DETECTORS = ("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn")
"""torchvision's names of them."""


def is_detector(spec: Spec) -> bool:
    """True if a backbone's name is that of a detector, with or without its source and the tag of its weights."""
    return spec.source in ("", "torchvision") and spec.architecture in DETECTORS
