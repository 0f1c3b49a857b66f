"""torchvision's detectors, divided into what maps images to maps of features, and all that follows it.

The first part is a detector's backbone, in the sense of regimes: what `frozen` freezes, and whose stages `last-block`
counts. The second is its head: a feature pyramid, further layers, and what proposes and classifies boxes. The layers
that give scores of classes are new, for the classes of the data set; the rest of the head has the weights of the file
if it has any for it.

Images have one size, so a detector's own resizing and normalising are left out: `Preprocessing` says the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.detection import faster_rcnn, ssdlite
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteClassificationHead
from torchvision.models.mobilenetv3 import MobileNet_V3_Large_Weights
from torchvision.ops import box_iou

from tl.batches import Preprocessing
from tl.box_precision import MOST
from tl.detector_names import DETECTORS
from tl.library import Backbone, fitting
from tl.weights import Weights, load_state_dict

BACKBONE_WEIGHTS = tuple(MobileNet_V3_Large_Weights)
"""Weights that torchvision has published for the backbone of all `DETECTORS` alone, trained on ImageNet."""
SIZE = 320
"""Side of the square that images are resized to, in pixels, whatever their shape, as the SSDlite was trained."""
_MODULES = {"ssdlite320_mobilenet_v3_large": ssdlite, "fasterrcnn_mobilenet_v3_large_320_fpn": faster_rcnn}
"""Detector → the module of torchvision that builds it."""
_SCALES = {
    "ssdlite320_mobilenet_v3_large": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "fasterrcnn_mobilenet_v3_large_320_fpn": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Detector → mean and standard deviation of the channels that it expects."""
Maps = dict[str, torch.Tensor]
"""Maps of features by name, each `(B, C, H, W)`, the largest first."""
Detector = Any
"""A `FasterRCNN` or an `SSD` of torchvision, whose parts have no types."""
Boxes = list[dict[str, torch.Tensor]]
"""For each image `boxes`, `(N, 4)` in pixels, `labels`, `(N,)` with 0 for the background, and perhaps `scores`."""


def preprocessing(name: str) -> Preprocessing:
    """Return the preprocessing of a detector: the whole image is resized to a square."""
    mean, std = _SCALES[name.partition(".")[0]]
    return Preprocessing(size=SIZE, resize=SIZE, mean=mean, std=std, interpolation="bilinear", squash=True)


def make(name: str, weights: Weights) -> Backbone | None:
    """Make a detector with these weights; None if the name is that of another network.

    The tag of the weights, or that of the name, says whether they are of the whole detector or of its backbone alone.
    Raises `WeightsError` if they don't fit.
    """
    network, _, tag = name.partition(".")
    if network not in DETECTORS:
        return None
    with fitting(name, weights):
        detector = _built(network, tag in {each.name for each in BACKBONE_WEIGHTS}, weights)
    if _MODULES[network] is ssdlite:
        body: nn.Module = _Body(detector.backbone.features)
        width: int = detector.backbone.extra[0][0][0].in_channels
    else:
        body, width = detector.backbone.body, detector.backbone.fpn.inner_blocks[-1][0].in_channels
    return Backbone(module=body, width=width, preprocessing=preprocessing(name), detector_head=partial(_head, detector))


def _built(network: str, of_backbone: bool, weights: Weights) -> Detector:
    """Build a detector as torchvision does for these weights, and load them.

    Which layers it has depends on them: its Faster R-CNN doesn't change the statistics of BatchNorm of a trained
    backbone, and its SSDlite has fewer channels at the end of its backbone unless that was trained on ImageNet.
    """
    given = load_state_dict(weights, {}) if weights.kind == "pretrained" else {}
    trained = bool(given) and (of_backbone or _MODULES[network] is faster_rcnn)
    settings = {"detections_per_img" if _MODULES[network] is ssdlite else "box_detections_per_img": MOST}
    with _backbone_filled(_MODULES[network], given if of_backbone else {}):
        detector: Detector = torchvision.models.get_model(
            network, weights=None, weights_backbone=BACKBONE_WEIGHTS[0] if trained else None, **settings
        )
    if given and not of_backbone:
        detector.load_state_dict(given)
    return detector


@contextmanager
def _backbone_filled(module: Any, given: dict[str, torch.Tensor]) -> Iterator[None]:
    """Let a module of torchvision build backbones with the tensors that are given, where it would download some.

    Nothing else lets torchvision build a detector for weights of its backbone that are on this machine already.
    """
    usual = module.mobilenet_v3_large

    def build(*, weights: Any = None, **settings: Any) -> nn.Module:
        network: nn.Module = usual(weights=None, **settings)
        if given:
            network.load_state_dict(given)
        return network

    module.mobilenet_v3_large = build
    try:
        yield
    finally:
        module.mobilenet_v3_large = usual


class _Body(nn.Module):
    """Runs the parts of a network one after the other, and returns the map of each."""

    def __init__(self, parts: nn.Sequential) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, images: torch.Tensor) -> Maps:
        """Return the maps of images `(B, 3, S, S)`."""
        maps: Maps = OrderedDict()
        for name, part in self.parts.named_children():
            images = maps[name] = part(images)
        return maps


def _head(detector: Detector, classes: int) -> DetectorHead:
    """Make all of a detector that follows its body, with new layers for the scores of these classes."""
    return OneStageHead(detector, classes) if isinstance(detector, SSD) else TwoStageHead(detector, classes)


class DetectorHead(nn.Module):
    """Maps of features → in training, with targets, the detector's losses; else the boxes that it finds.

    It runs in single precision whatever the backbone's: half a pixel is lost in the coordinates of bfloat16.
    """

    def __init__(self) -> None:
        super().__init__()
        self._finite: list[torch.Tensor] = []

    def watch(self, *modules: nn.Module) -> None:
        """Notice numbers of these modules that are not finite: no box comes of them, so boxes wouldn't show them."""
        for module in modules:
            module.register_forward_hook(self._note)

    def _note(self, _module: nn.Module, _given: Any, output: Any) -> None:
        if not self.training:
            self._finite += [tensor.isfinite().all() for tensor in _tensors(output)]

    def forward(self, maps: Maps, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Return the losses of a batch, `(L,) float32`, or its boxes, `(B, 100, 6) float32`; see `tl.learning.Objects`.

        Args:
            maps: what the backbone returned.
            targets: `(B, M, 5) float32` in training; None otherwise.
        """
        first = next(iter(maps.values()))
        with torch.autocast(first.device.type, enabled=False):
            maps = OrderedDict((name, each.float()) for name, each in maps.items())
            # Nothing reads the images' pixels any more, only their size.
            images = ImageList(torch.empty(len(first), 3, SIZE, SIZE, device="meta"), [(SIZE, SIZE)] * len(first))
            if targets is not None:
                return torch.stack([*self.losses(maps, images, _in_pixels(targets)).values()])
            self._finite.clear()
            table = _table(self.boxes(maps, images), first.device)
            finite = torch.stack(self._finite).all()
            self._finite.clear()
            return torch.where(finite, table, torch.nan)

    def losses(self, maps: Maps, images: ImageList, targets: Boxes) -> dict[str, torch.Tensor]:
        """Return the losses of a batch by name."""
        raise NotImplementedError

    def boxes(self, maps: Maps, images: ImageList) -> Boxes:
        """Return the boxes that are found in each image, at most 100, the surest first."""
        raise NotImplementedError


class TwoStageHead(DetectorHead):
    """All of a Faster R-CNN that follows its body."""

    def __init__(self, detector: Detector, classes: int) -> None:
        super().__init__()
        detector.roi_heads.box_predictor = FastRCNNPredictor(
            detector.roi_heads.box_predictor.cls_score.in_features, classes + 1
        )
        self.fpn: Any = detector.backbone.fpn
        self.rpn: Any = detector.rpn
        self.roi_heads: Any = detector.roi_heads
        self.watch(self.fpn, self.rpn.head, self.roi_heads.box_predictor)

    def losses(self, maps: Maps, images: ImageList, targets: Boxes) -> dict[str, torch.Tensor]:
        """See `DetectorHead.losses`."""
        pyramid = self.fpn(maps)
        proposals, of_proposals = self.rpn(images, pyramid, targets)
        _, of_boxes = self.roi_heads(pyramid, proposals, images.image_sizes, targets)
        return {**of_boxes, **of_proposals}

    def boxes(self, maps: Maps, images: ImageList) -> Boxes:
        """See `DetectorHead.boxes`."""
        pyramid = self.fpn(maps)
        proposals, _ = self.rpn(images, pyramid)
        found: Boxes = self.roi_heads(pyramid, proposals, images.image_sizes)[0]
        return found


class OneStageHead(DetectorHead):
    """All of an SSDlite that follows its body."""

    def __init__(self, detector: Detector, classes: int) -> None:
        super().__init__()
        self.extra = detector.backbone.extra
        self.head: Any = detector.head
        widths = [each[0][0].in_channels for each in self.head.regression_head.module_list]
        anchors = detector.anchor_generator.num_anchors_per_location()
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)  # torchvision's own for this network
        self.head.classification_head = SSDLiteClassificationHead(widths, anchors, classes + 1, norm)
        detector.backbone = detector.head = nn.Identity()
        self.ssd: Detector = detector
        self.watch(self.head)

    def _outputs(self, maps: Maps) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """The scores and boxes of all anchors, and all maps."""
        found = [*maps.values()]
        for block in self.extra:
            found.append(block(found[-1]))
        return self.head(found), found

    def losses(self, maps: Maps, images: ImageList, targets: Boxes) -> dict[str, torch.Tensor]:
        """See `DetectorHead.losses`."""
        outputs, found = self._outputs(maps)
        anchors = self.ssd.anchor_generator(images, found)
        matched = [
            self.ssd.proposal_matcher(box_iou(target["boxes"], own))
            if len(target["boxes"])
            else torch.full((len(own),), -1, device=own.device)
            for own, target in zip(anchors, targets, strict=True)
        ]
        losses: dict[str, torch.Tensor] = self.ssd.compute_loss(targets, outputs, anchors, matched)
        return losses

    def boxes(self, maps: Maps, images: ImageList) -> Boxes:
        """See `DetectorHead.boxes`."""
        outputs, found = self._outputs(maps)
        anchors = self.ssd.anchor_generator(images, found)
        boxes: Boxes = self.ssd.postprocess_detections(outputs, anchors, images.image_sizes)
        return boxes


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors that a module returned, also in lists and dictionaries."""
    if isinstance(output, torch.Tensor):
        yield output
    else:
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)


def _in_pixels(targets: torch.Tensor) -> Boxes:
    """Return targets `(B, M, 5)` as torchvision's detectors take them. Its label 0 is the background."""
    objects = [rows[rows[:, 0] >= 0] for rows in targets]
    return [{"boxes": rows[:, 1:] * SIZE, "labels": rows[:, 0].long() + 1} for rows in objects]


def _table(boxes: Boxes, device: torch.device) -> torch.Tensor:
    """Return the boxes of all images as one table, `(B, 100, 6) float32`; see `tl.learning.Objects`."""
    nothing = torch.tensor([-1.0, *[0.0] * 5], device=device)
    tables = []
    for found in boxes:
        labels, scores = found["labels"][:, None] - 1, found["scores"][:, None]
        rows = torch.cat([labels, scores, found["boxes"] / SIZE], 1)
        tables.append(torch.cat([rows, nothing.expand(MOST - len(rows), 6)]))
    return torch.stack(tables)
