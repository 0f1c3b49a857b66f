"""Detection: detectors train by the one loop, their boxes are scored as COCO does, and runs say so."""

from __future__ import annotations

import csv
import json
import random
from collections import OrderedDict
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import tl
from bench.analysis.words import in_words
from bench.store.consistency import contradiction
from bench.store.records import AS_BEFORE
from bench.store.runs import RunFolder
from bench.sweep.grid import load_grid
from tests.boxes import write_coco
from tests.commands import here as command
from tests.conftest import TINY
from tests.drawn_boxes import COLOURS, drawn_boxes
from tests.runs import says_nothing_of_accuracies, shown_on
from tl.backbones import Classifier, find_weights, make_backbone
from tl.batches import Batches, channel_scale
from tl.box_precision import mean_average_precision, of_images, overlap
from tl.boxes import Box
from tl.detector_names import DETECTORS
from tl.detectors import SIZE, OneStageHead, TwoStageHead, preprocessing
from tl.images import crops, mirrors, open_store
from tl.learning import LEARNING, Objects, coco_precision
from tl.plain import PlainBatches
from tl.regimes import REGIMES
from tl.tasks import TASKS

SSD, RCNN = (f"torchvision:{name}" for name in DETECTORS)
GIVEN: dict[str, Any] = {"backbone": SSD, "task": "detection", "weights": "random", "batch_size": 4, "epochs": 1}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tl.Splits:
    return drawn_boxes(tmp_path_factory.mktemp("drawn"))


def scattered(seed: int) -> tuple[list[list[tuple[float, ...]]], list[tuple[Box, ...]]]:
    """Boxes that were found around true ones, some with equal scores, some of other classes, some of no image."""
    rng = random.Random(seed)
    found, truth = [], []
    for _ in range(10):
        boxes, some = [], []
        for _ in range(rng.randrange(5)):
            left, top = rng.uniform(0, 0.6), rng.uniform(0, 0.6)
            sides = rng.uniform(0.05, 0.4), rng.uniform(0.05, 0.4)
            boxes.append(Box(rng.randrange(3), left, top, left + sides[0], top + sides[1]))
        for box in boxes * 3:
            left, top, right, bottom = (min(max(edge + rng.gauss(0, 0.02), 0.0), 1.0) for edge in box[1:])
            label = box.label if rng.random() < 0.8 else rng.randrange(4)
            if rng.random() < 0.8:
                score = round(rng.random(), 1 if seed % 2 else 5)
                edges = (left, top, max(right, left + 1e-3), max(bottom, top + 1e-3))
                some.append((label, score, *(round(edge, 5) for edge in edges)))
        found.append(some)
        truth.append(tuple(boxes))
    return found, truth


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_of_boxes_is_torchmetrics(seed: int) -> None:
    """Over all images, and of each image alone at an overlap of 0.5."""
    from torchmetrics.detection import MeanAveragePrecision

    found, truth = scattered(seed)
    expected = coco_precision(found, truth)
    assert 0 < expected < 1
    assert mean_average_precision(found, truth) == pytest.approx(expected, abs=1e-6)
    for ours, some, boxes in zip(of_images(found, truth), found, truth, strict=True):
        if not boxes:
            assert ours == 1.0
            continue
        metric = MeanAveragePrecision(backend="faster_coco_eval", iou_thresholds=[0.5])
        table, true = torch.tensor(some, dtype=torch.float64).reshape(-1, 6), torch.tensor(boxes, dtype=torch.float64)
        metric.update(
            [{"boxes": table[:, 2:], "scores": table[:, 1], "labels": table[:, 0].long()}],
            [{"boxes": true[:, 1:], "labels": true[:, 0].long()}],
        )
        assert ours == pytest.approx(float(metric.compute()["map"]), abs=1e-6)


@pytest.mark.parametrize("found", [[], [(1, 0.9, 0.0, 0.0, 0.5, 0.5)]], ids=["nothing", "another class"])
def test_finding_nothing_has_no_precision(found: list[tuple[float, ...]]) -> None:
    """By torchmetrics and by our own code; it has -1 for what it can't know, which no score may be."""
    truth = [(Box(0, 0.0, 0.0, 0.5, 0.5),), ()]
    assert coco_precision([found, []], truth) == mean_average_precision([found, []], truth) == 0.0


def test_average_precision_of_boxes_by_hand() -> None:
    """One object found with an overlap of 0.64 counts up to 0.60, after a wrong box with half of the precision."""
    true, near, far = Box(0, 0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 0.9, 0.9)
    assert overlap(near, true[1:]) == pytest.approx(0.64)
    assert overlap(far, true[1:]) == 0.0
    alone = mean_average_precision([[(0, 0.9, *near)]], [(true,)])
    assert alone == pytest.approx(3 / 10)
    after = [[(0, 0.95, *far), (0, 0.9, *near)]]
    assert mean_average_precision(after, [(true,)]) == pytest.approx(0.5 * 3 / 10)
    assert mean_average_precision([[(1, 0.9, *near)]], [(true,)]) == 0.0, "of another class"
    twice = [[(0, 0.9, *near), (0, 0.8, *near)]]
    assert of_images(twice, [(true, Box(0, 0.5, 0.5, 1.0, 1.0))]) == [pytest.approx(51 / 101)], "one box, one object"
    assert of_images([[(0, 0.9, *near)], []], [(), (true,)]) == [1.0, 0.0]


def test_the_score_of_a_record_is_that_of_its_boxes() -> None:
    """What outputs say is rounded, and the score is that of the rounded boxes, by whoever reads them."""
    found, truth = scattered(2)
    outputs = torch.zeros(len(found), 100, 6)
    outputs[:, :, 0] = -1
    for rows, some in zip(outputs, found, strict=True):
        for row, one in zip(rows, sorted(some, key=lambda each: -each[1]), strict=False):
            row[:] = torch.tensor(one)
    images = tl.datasets.ImageList(files=tuple(map(str, range(len(truth)))), objects=tuple(truth))
    judged = LEARNING["detection"].judged(outputs, Objects().targets(images, 3))
    said = tl.results.Predictions(epoch=0, **judged.said)
    assert said.images == len(truth) and judged.unknown == 0
    assert TASKS["detection"].overall(said, truth) == pytest.approx(judged.score(), abs=1e-6)
    outputs[3, 0, 1] = torch.nan
    assert LEARNING["detection"].judged(outputs, Objects().targets(images, 3)).unknown == 1


def in_colour(image: torch.Tensor, label: int, edges: torch.Tensor) -> bool:
    """True if the pixels just inside a box have the colour of its class, and those just outside of it have not."""
    left, top, right, bottom = (edges * SIZE).tolist()
    middle = (top + bottom) / 2

    def is_so(x: float) -> bool:
        pixel = image[:, int(min(max(middle, 0), SIZE - 1)), int(min(max(x, 0), SIZE - 1))]
        return bool((pixel - torch.tensor(COLOURS[label], dtype=torch.float32)).abs().max() < 40)

    outside = [x for x in (left - 6, right + 6) if 0 <= x < SIZE]
    return is_so(left + 6) and is_so(right - 6) and not any(map(is_so, outside))


@pytest.mark.parametrize("execution", ["fast", "plain"])
def test_boxes_are_mirrored_with_their_images(splits: tl.Splits, execution: str) -> None:
    """In training each box stays around its object; some images are mirrored, and none is cropped."""
    learning, given = LEARNING["detection"], preprocessing(SSD.partition(":")[2])
    rows = learning.rows(splits.train, 2)
    if execution == "fast":
        store = open_store(splits)
        batches: Any = Batches(store, splits.train, given, CPU, targets=torch.stack(list(rows)), learning=learning)
    else:
        batches = PlainBatches(splits.root, splits.train, given, CPU, rows, learning)
    mean, std = channel_scale(given, CPU)
    as_they_are = {tuple(row.flatten().tolist()) for row in rows}
    mirrored = objects = 0
    for images, targets in batches.training(4, seed=0, epoch=0):
        for image, target in zip(images * std + mean, targets, strict=True):
            mirrored += tuple(target.flatten().tolist()) not in as_they_are
            for label, *edges in target[target[:, 0] >= 0].tolist():
                objects += 1
                assert in_colour(image[0] if image.ndim == 4 else image, int(label), torch.tensor(edges))
    assert objects == sum(map(len, splits.train.objects)) and 0 < mirrored < len(splits.train)
    (images, targets), *_ = batches.evaluation(4)
    assert all(in_colour((images * std + mean)[0], int(row[0]), row[1:]) for row in targets[0] if row[0] >= 0)


def test_mirrored_images_are_whole() -> None:
    """The flips are those that crops with the same seed have, so half of many images are mirrored."""
    sizes = torch.tensor([[60, 80]] * 200).numpy()
    whole = mirrors(sizes, seed=3)
    assert (whole[:, :2] == 0).all() and (whole[:, 2:4] == sizes).all()
    assert (whole[:, 4] == crops(sizes, seed=3)[:, 4]).all() and 70 < whole[:, 4].sum() < 130


def divided(name: str) -> tuple[Any, torch.nn.Module, torch.nn.Module]:
    """A detector of torchvision for two classes, and the same in two parts, as a training has it."""
    torch.manual_seed(3)
    most = {"detections_per_img": 100} if name == DETECTORS[0] else {}
    whole = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=3, **most)
    for module in whole.modules():  # statistics as of a trained network, so that boxes differ
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.05)
            module.running_var.uniform_(0.5, 1.0)
    whole.score_thresh = 0.0
    copied = deepcopy(whole)
    if name == DETECTORS[0]:
        head: Any = OneStageHead(copied, 2)
        head.head.classification_head = deepcopy(whole.head.classification_head)
        return whole, _Chain(whole.backbone.features), head
    head = TwoStageHead(copied, 2)
    head.roi_heads.box_predictor = deepcopy(whole.roi_heads.box_predictor)
    return whole, whole.backbone.body, head


class _Chain(torch.nn.Module):
    """Maps of the parts of an SSDlite's backbone."""

    def __init__(self, parts: torch.nn.Sequential) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = OrderedDict()
        for place, part in enumerate(self.parts):
            images = maps[str(place)] = part(images)
        return maps


@pytest.mark.parametrize("name", DETECTORS)
def test_a_divided_detector_is_torchvisions(name: str) -> None:
    """It has the same losses in training and finds the same boxes, image by image, as torchvision's whole network."""
    whole, body, head = divided(name)
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    given = preprocessing(name)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (given.mean, given.std))
    targets = torch.tensor([[[0, 0.1, 0.2, 0.5, 0.6], [1, 0.4, 0.4, 0.9, 0.8]], [[-1, 0, 0, 0, 0]] * 2])
    theirs = [
        {"boxes": rows[rows[:, 0] >= 0][:, 1:] * SIZE, "labels": rows[rows[:, 0] >= 0][:, 0].long() + 1}
        for rows in targets
    ]
    with torch.no_grad():
        whole.eval(), head.eval()
        found, boxes = head(body((images - mean) / std)), whole(list(images))
        assert sum(len(each["scores"]) for each in boxes) > 10
        for rows, one in zip(found, boxes, strict=True):
            rows = rows[rows[:, 0] >= 0]
            assert torch.equal(rows[:, 0].long() + 1, one["labels"])
            assert torch.allclose(rows[:, 1], one["scores"], atol=1e-5)
            assert torch.allclose(rows[:, 2:] * SIZE, one["boxes"], atol=1e-2)
        for module in (*whole.modules(), *head.modules()):  # only what decides between losses and boxes
            module.training = not isinstance(module, torch.nn.BatchNorm2d | torch.nn.Dropout)
        torch.manual_seed(5)
        expected = whole(list(images), theirs)
        torch.manual_seed(5)
        losses = head(body((images - mean) / std), targets)
    assert sorted(losses.tolist()) == pytest.approx(sorted(value.item() for value in expected.values()), rel=1e-4)


@pytest.mark.parametrize("regime", ["frozen", "last-block", "finetune", "gradual"])
def test_what_is_frozen_stays(splits: tl.Splits, regime: str) -> None:
    """Against a backbone that is built again: each tensor changes or stays, as the regime says."""
    result = tl.train_model(tl.TrainConfig(**GIVEN | {"regime": regime, "epochs": 2}), splits, device="cpu")
    before, after = make_backbone(SSD, weights="random").module.state_dict(), result.model.backbone.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    early, late = ({name for name in before if name.startswith(f"parts.{part}.")} for part in ("0.0", "1"))
    if regime == "finetune":
        assert result.frozen_verified is None and changed == {*before}
    else:
        assert result.frozen_verified is True and not changed & early
        assert bool(changed & late) is (regime != "frozen")
    row = result.epochs[-1]
    assert (result.score, row.val_loss, row.train_accuracy) == ("mAP", None, None) and row.train_loss > 0
    assert result.work.forward_flops > 0 and result.work.backward_flops > 0
    assert row.val_accuracy == pytest.approx(TASKS["detection"].overall(result.last, splits.val.objects), abs=1e-6)


def test_a_faster_rcnn_trains(splits: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its proposals depend on the images and on random numbers, and the same seed gives the same losses."""
    usual = torchvision.models.get_model

    def small(*given: Any, **settings: Any) -> Any:
        return usual(*given, **settings, box_batch_size_per_image=16, rpn_post_nms_top_n_train=50)

    monkeypatch.setattr(torchvision.models, "get_model", small)
    few = tl.Splits(**{**vars(splits), "train": splits.train.subset([0, 1, 7]), "val": splits.val.subset([0])})
    config = tl.TrainConfig(**GIVEN | {"backbone": RCNN, "regime": "frozen", "batch_size": 3, "epochs": 1})
    first, again = (tl.train_model(config, few, device="cpu") for _ in range(2))
    assert first.frozen_verified is True and first.epochs[0].train_loss == again.epochs[0].train_loss > 0
    assert first.last == again.last and len(first.last.detections) == 1


def test_a_detector_learns_its_own_images(tmp_path: Path) -> None:
    """Validation images are the training images: its loss falls, and it finds most of what they show."""
    same = drawn_boxes(tmp_path, train=4, val=0, empty=0, same=True)
    given = {"regime": "finetune", "epochs": 40, "optimizer": "adamw", "learning_rate": 2e-3, "schedule": "constant"}
    result = tl.train_model(tl.TrainConfig(**GIVEN | given), same, device="cpu", keep="last")
    losses = [row.train_loss for row in result.epochs]
    assert losses[-1] < losses[0] / 10
    model, learning = result.model, LEARNING["detection"]
    targets = learning.targets(same.val, 2)
    ((images, _),) = Batches(open_store(same), same.val, model.preprocessing, CPU, targets=targets).evaluation(4)
    # The network's running statistics move by 3% a step, so after 40 steps they are still those of random weights.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum, module.training = None, True
            module.reset_running_stats()
    with torch.no_grad():
        model(images)
        judged = learning.judged(model.eval()(images), targets)
    assert judged.score() > 0.7
    scores = TASKS["detection"].image_scores(tl.results.Predictions(epoch=0, **judged.said), same.val.objects)
    assert len(scores) == 4 and min(scores) > 0.7


@pytest.mark.parametrize("settings", [{"execution": "plain"}, {"precision": "bf16"}, {"checkpointing": True}])
def test_ways_to_run_work(splits: tl.Splits, settings: dict[str, Any]) -> None:
    """Each trains, and with activations recomputed the losses are the same."""
    few = tl.Splits(**{**vars(splits), "train": splits.train.subset([0, 1, 2]), "val": splits.val.subset([0])})
    plain, other = (
        tl.train_model(tl.TrainConfig(**GIVEN | {"regime": "finetune"} | given), few, device="cpu")
        for given in ({}, settings)
    )
    assert other.epochs[0].train_loss == pytest.approx(plain.epochs[0].train_loss, rel=0.2)
    if "checkpointing" in settings:
        assert other.epochs[0].train_loss == pytest.approx(plain.epochs[0].train_loss, rel=1e-5)


@pytest.mark.parametrize("settings", [{"ema": 0.9}, {"layer_decay": 0.5}, {"freeze_bn": True}], ids=str)
def test_settings_of_fine_tuning_work(splits: tl.Splits, settings: dict[str, Any]) -> None:
    """Rates by depth move the first layer less, an average follows slowly, and BatchNorm may stay as it was."""
    few = tl.Splits(**{**vars(splits), "train": splits.train.subset([0, 1, 2]), "val": splits.val.subset([0])})
    usual, other = (
        tl.train_model(tl.TrainConfig(**GIVEN | {"regime": "finetune"} | given), few, device="cpu")
        for given in ({}, settings)
    )
    before = make_backbone(SSD, weights="random").module.state_dict()

    def moved(result: Any, ends: str, first: bool = False) -> float:
        after = result.model.backbone.state_dict()
        names = [name for name in before if name.endswith(ends)]
        return sum((after[name] - before[name]).abs().sum().item() for name in names[: 1 if first else None])

    if "freeze_bn" in settings:
        assert moved(other, "running_mean") == 0 < moved(usual, "running_mean")
    else:
        assert other.epochs[0].train_loss == pytest.approx(usual.epochs[0].train_loss, rel=1e-6), "one step"
        assert 0 < moved(other, "0.0.0.weight", first=True) < 0.5 * moved(usual, "0.0.0.weight", first=True)


def test_the_head_runs_in_single_precision(splits: tl.Splits) -> None:
    """In bf16 the backbone computes in it, and what proposes, classifies and scores boxes doesn't."""
    few = tl.Splits(**{**vars(splits), "train": splits.train.subset([0, 1]), "val": splits.val.subset([0])})
    seen: dict[torch.nn.Module, set[torch.dtype]] = {}
    usual = torch.nn.Conv2d.forward

    def noted(module: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        output = usual(module, images)
        seen.setdefault(module, set()).add(output.dtype)
        return output

    config = tl.TrainConfig(**GIVEN | {"regime": "finetune", "precision": "bf16"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Conv2d, "forward", noted)
        model = tl.train_model(config, few, device="cpu").model
    # The backbone runs once in single precision before the training, to find its stages.
    body = [seen[each] for each in model.backbone.modules() if isinstance(each, torch.nn.Conv2d)]
    head = [seen[each] for each in model.head.modules() if isinstance(each, torch.nn.Conv2d)]
    assert all(torch.bfloat16 in dtypes for dtypes in body) and all(dtypes == {torch.float32} for dtypes in head)


@pytest.mark.parametrize("regime", ["norm-only", "bias-only"])
def test_few_parameters_of_a_detector_train(splits: tl.Splits, regime: str) -> None:
    """In the backbone those that the regime names, and no other; the head trains whole."""
    few = tl.Splits(**{**vars(splits), "train": splits.train.subset([0, 1]), "val": splits.val.subset([0])})
    result = tl.train_model(tl.TrainConfig(**GIVEN | {"regime": regime}), few, device="cpu")
    before = dict(make_backbone(SSD, weights="random").module.named_parameters())
    after = dict(result.model.backbone.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    norms = {
        f"{name}.{kind}"
        for name, module in result.model.backbone.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    named = norms if regime == "norm-only" else {name for name in before if name.endswith("bias")}
    assert changed and changed <= named and result.frozen_verified is True


@pytest.mark.parametrize("regime", ["norm-only", "freeze_bn"])
def test_batch_norm_of_a_trained_faster_rcnn_is_fixed(splits: tl.Splits, tmp_path: Path, regime: str) -> None:
    """So there is nothing that `norm-only` trains, or `freeze_bn` freezes, and the cell is skipped."""
    name = RCNN.partition(":")[2]
    torch.save(dict(states(name))[f"{name}.pth"], tmp_path / f"{name}.pth")
    given = {"regime": regime} if regime == "norm-only" else {"regime": "finetune", "freeze_bn": True}
    config = tl.TrainConfig(**GIVEN | {"backbone": RCNN, "weights": "pretrained"} | given)
    why = "no part that the regime trains" if regime == "norm-only" else "freeze_bn=true: no BatchNorm layer"
    with pytest.raises(tl.NotApplicable, match=why):
        tl.train_model(config, splits, device="cpu", weights_dir=tmp_path)


@pytest.mark.parametrize("images", [1, 2])
def test_a_batch_of_one_image_is_refused(splits: tl.Splits, images: int) -> None:
    """BatchNorm of SSDlite's last map, one pixel, can't train on it: a batch size of 1, or one image to train on."""
    few = tl.Splits(
        **{**vars(splits), "train": splits.train.subset(list(range(images))), "val": splits.val.subset([0])}
    )
    config = tl.TrainConfig(**GIVEN | {"regime": "frozen", "batch_size": 4 if images == 1 else 1})
    with pytest.raises(tl.NotApplicable, match=f"^batch_size={config.batch_size}: a batch of one image gives a"):
        tl.train_model(config, few, device="cpu")


def test_the_cost_of_a_detector_in_use_is_measured(splits: tl.Splits) -> None:
    few = tl.Splits(**{**vars(splits), "train": splits.train.subset([0, 1]), "val": splits.val.subset([0])})
    config = tl.TrainConfig(**GIVEN | {"regime": "frozen", "batch_size": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tl.latency.LEAST", 1)
        patch.setattr("tl.latency.SECONDS", 0.0)
        patch.setattr("tl.latency.BATCH_SIZE", 2)
        found = tl.train_model(config, few, device="cpu", inference=True).inference
    assert found is not None and found.latency > 0 and found.model_bytes > 4_000_000


def test_a_detector_that_broke_has_diverged(splits: tl.Splits) -> None:
    """NaN in any layer gives no boxes, which would be a low score: it is noticed."""
    few = tl.Splits(**{**vars(splits), "train": splits.train.subset([0, 1]), "val": splits.val.subset([0])})
    with pytest.raises(tl.DivergedError, match=r"^the (training loss|validation outputs of 1 of 1 images)"):
        tl.train_model(tl.TrainConfig(**GIVEN | {"regime": "finetune", "learning_rate": 1e30}), few, device="cpu")
    model = Classifier(make_backbone(SSD, weights="random"), 2, tl.TrainConfig(**GIVEN)).eval()
    with torch.inference_mode():
        assert model(torch.rand(2, 3, SIZE, SIZE)).isfinite().all()
        model.head.extra[3][0][0].weight.fill_(torch.nan)
        assert model(torch.rand(2, 3, SIZE, SIZE)).isnan().all()


def states(name: str) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """File → its tensors: of a whole detector, and of its backbone alone, as torchvision publishes them."""
    torch.manual_seed(7)
    yield f"{name}.pth", torchvision.models.get_model(name, weights=None, weights_backbone=None).state_dict()
    yield "mobilenet_v3_large-8738ca79.pth", torchvision.models.mobilenet_v3_large(weights=None).state_dict()


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("which", ["detector", "backbone"])
def test_weights_of_a_detector_or_of_its_backbone(name: str, which: str, tmp_path: Path) -> None:
    """A file of either is found by its name, and no tensor of the backbone stays random."""
    file, given = list(states(name))[which == "backbone"]
    torch.save(given, tmp_path / file)
    spec = f"torchvision:{name}"
    weights = find_weights(spec, "pretrained", weights_dir=tmp_path)
    assert (weights.source, weights.tag) == ("weights-dir", "" if which == "detector" else "IMAGENET1K_V1")
    made = make_backbone(spec, weights=weights)
    values = [value for key, value in given.items() if "num_batches" not in key]
    own = {key: value for key, value in made.module.state_dict().items() if "num_batches" not in key}
    prefix = "backbone.features." if "ssd" in name else "backbone.body."
    start = "features." if which == "backbone" else prefix
    expected = [value for key, value in given.items() if key.startswith(start) and "num_batches" not in key]
    assert len(own) == len(expected) < len(values)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(own.values(), expected, strict=True))
    frozen = [each for each in made.module.modules() if "FrozenBatchNorm" in type(each).__name__]
    assert bool(frozen) is ("fasterrcnn" in name), "as torchvision trains them"
    head = made.detector_head(2)
    if which == "detector":
        key = "rpn.head.bbox_pred.weight" if "fasterrcnn" in name else "extra.0.0.0.weight"
        assert torch.equal(head.state_dict()[key], given[key if key in given else f"backbone.{key}"])
    outputs = Classifier.of(made, head).eval()(torch.rand(1, 3, SIZE, SIZE))
    assert outputs.shape == (1, 100, 6)


def test_weights_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    name, other = DETECTORS
    torch.save(
        torchvision.models.get_model(other, weights=None, weights_backbone=None).state_dict(), tmp_path / f"{name}.pth"
    )
    with pytest.raises(tl.WeightsError, match=f"^{name}: {name}.pth does not fit the network") as caught:
        make_backbone(SSD, weights="pretrained", weights_dir=tmp_path)
    assert "\n" not in str(caught.value)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "classifier": (
        {"backbone": TINY[0]},
        f"^backbone='{TINY[0]}': is no detector, and task 'detection' needs one of {SSD}, {RCNN}$",
    ),
    "detector": (
        {"task": "classification"},
        f"^backbone='{SSD}': is a detector, which is for task 'detection'; task 'classification' needs a network",
    ),
    "bare": ({"task": "multilabel", "backbone": DETECTORS[1]}, "^backbone='fasterrcnn.*: is a detector, which is for"),
    "loss": ({"loss": "focal"}, "^loss='focal': task 'detection' needs detector$"),
    "own loss": ({"loss": "my_module:loss"}, "^loss='my_module:loss': task 'detection' needs detector$"),
    "other task": ({"task": "classification", "backbone": TINY[0], "loss": "detector"}, "needs cross_entropy or focal"),
    "head": ({"head": "mlp"}, "^head='mlp': not read by task 'detection'; leave it out$"),
    "stopping": ({"early_stopping": 2}, "^early_stopping=2: not read by task 'detection'; leave it out$"),
    "fold": ({"regime": "frozen", "fold": True}, "^fold=True: not read by task 'detection'; leave it out$"),
    "lookahead": ({"regime": "frozen", "lookahead": 4}, "^lookahead=4: not read by task 'detection'; leave it out$"),
    "smoothing": ({"label_smoothing": 0.1}, "^label_smoothing=0.1: not read by task 'detection'"),
    "kfold": ({"protocol": "kfold"}, "^protocol='kfold': task 'detection' has only fixed"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_settings_is_one_line(name: str) -> None:
    given, message = MISTAKES[name]
    with pytest.raises(tl.ConfigError, match=message):
        tl.TrainConfig(**GIVEN | given)


SKIPPED = {
    **dict.fromkeys(("knn", "ridge", "logistic", "lp-ft"), "its head is fitted to one class for each image"),
    "zeroshot": "its head is ImageNet's, which has one class for each image",
    "cached": "a detector's features are maps of several sizes, which aren't kept",
    **dict.fromkeys(("quantized", "quantized-finetune"), "a detector isn't converted to int8"),
    "lora": "low-rank updates are for networks that return one row of features",
}


@pytest.mark.parametrize("regime", REGIMES)
def test_regimes_that_have_no_meaning_are_skipped(splits: tl.Splits, regime: str) -> None:
    """Each with its reason; all others train."""
    assert TASKS["detection"].no_regime(REGIMES[regime]) == SKIPPED.get(regime, "")
    if regime in SKIPPED:
        with pytest.raises(tl.NotApplicable, match=f"^regime '{regime}' has no meaning with task 'detection': "):
            tl.train_model(tl.TrainConfig(**GIVEN | {"regime": regime}), splits, device="cpu")


def test_a_missing_package_is_one_line(splits: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the packages and the command that installs them; a command ends with status 2 before anything runs."""
    monkeypatch.setattr("tl.tasks.find_spec", lambda name: None)
    said = "task='detection': needs torchmetrics and faster_coco_eval, which aren't installed: pip install"
    with pytest.raises(tl.ConfigError) as caught:
        tl.train_model(tl.TrainConfig(**GIVEN), splits, device="cpu")
    assert str(caught.value) == f"{said} 'tl-bench[detection]'"
    done = command("run", "--task", "detection", "--grid", "detection-smoke", "--dry-run")
    assert done.returncode == 2 and f"{said} 'tl-bench[detection]'" in " ".join(done.stderr.split())


def test_a_detector_is_no_backbone_of_the_default_grid() -> None:
    """Without a detector a run says in a line which ones there are."""
    done = command("run", "--task", "detection", "--data", "synthetic-boxes-mini", "--dry-run")
    assert done.returncode == 2 and f"needs one of {SSD}, {RCNN}" in " ".join(done.stderr.split())


def test_the_smoke_grid_has_both_detectors_and_each_depth() -> None:
    grid = load_grid("detection-smoke")
    assert grid.matrix.backbones == [SSD, RCNN] and grid.train["task"] == "detection"
    assert set(grid.matrix.regimes) == {"finetune", "last-block", "frozen"}
    assert AS_BEFORE["task"] == "classification"


def _trained(data: Path, regimes: str, *, seeds: int) -> list[str]:
    """Options of a run of one epoch on some images."""
    words = ["--task", "detection", "--data", str(data), "--backbone", SSD, "--device", "cpu", "--weights", "random"]
    words += ["--regime", regimes, "--seeds", str(seeds), "--epochs", "1", "--no-paired", "--executor", "inline"]
    return words


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two regimes and three seeds, and one that is skipped, on a COCO file, with its report."""
    place = tmp_path_factory.mktemp("run")
    data = write_coco(place / "data", "coco")
    arguments = [*_trained(data, "scratch,last-block,knn", seeds=3), "--name", "boxes"]
    done = command("run", *arguments, "--results", str(place / "results"), "--reports", str(place / "reports"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(3 + 1 images, 2 classes; task detection; the same answer for all images has mAP 0.0%)" in done.stdout
    assert "skipped: " in done.stdout and "has no meaning with task 'detection'" in done.stdout
    assert "accuracy" not in done.stdout.replace("--", "")
    return place


def test_a_run_has_boxes(run: Path) -> None:
    """In its manifest and records, which fit each other; a score that the boxes don't have is noticed."""
    folder = RunFolder(run / "results" / "boxes")
    manifest, records = folder.manifest(), folder.records()
    assert manifest.dataset.task == "detection" and manifest.dataset.val_labels == ()
    done = [record for record in records.values() if record.status == "done"]
    assert len(done) == 6 and len(records) == 7
    for record in done:
        assert contradiction(record, manifest) == ""
        assert len(record.result.last.detections) == 1 and record.result.last.labels == []
    record = done[0]
    result, last = record.result, record.result.epochs[-1]

    def with_last(**changes: Any) -> Any:
        return record.replace(result=result.replace(epochs=(*result.epochs[:-1], last.replace(**changes))))

    assert "its predictions have" in contradiction(with_last(val_accuracy=0.75), manifest)
    assert "val_loss=0.5: task 'detection' has none" in contradiction(with_last(val_loss=0.5), manifest)
    with pytest.raises(tl.ConfigError, match="must have boxes"):
        result.replace(last=result.last.replace(detections=None))
    with pytest.raises(tl.ConfigError, match="last has class 2, and there are 2"):
        result.replace(last=result.last.replace(detections=[[(2, 0.5, 0.0, 0.0, 1.0, 1.0)]]))
    text = json.loads(record.model_dump_json())["result"]["last"]["detections"]
    assert len(text[0]) <= 100 and all(len(row) == 6 for row in text[0])


@pytest.mark.parametrize("suffix", ["md", "html"])
def test_the_report_names_the_score(run: Path, suffix: str) -> None:
    """It says mAP and image AP50, and nothing of accuracies, largest classes or right images."""
    text = (run / "reports" / f"boxes.{suffix}").read_text(encoding="utf-8")
    body = text if suffix == "md" else shown_on(text)
    for said in (
        "mAP (mean average precision of boxes",
        "A single image has no mAP",
        "image AP50",
        "Finding nothing in",
    ):
        assert said in body
    says_nothing_of_accuracies(body)


def test_other_commands_on_such_a_run(run: Path, tmp_path: Path) -> None:
    """`show`, `claims`, `export` and `compare` work; `train` says in a line why not."""
    results = ["--results", str(run / "results")]
    again = [*_trained(run / "data", "last-block", seeds=1), "--name", "again", "--no-report", *results]
    assert command("run", *again).returncode == 0
    for words in (["show", "boxes"], ["claims", "boxes"], ["compare", "again", "boxes"]):
        done = command(*words, *results)
        assert done.returncode == 0, (words, done.stderr)
        assert words[0] == "claims" or "mAP" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr
        # The legend of `compare` explains all kinds of shares, accuracies among them.
        assert words[0] == "compare" or "ccurac" not in done.stdout.replace("val_accuracy", "")
    exported = command("export", "boxes", *results, "--raw")
    assert exported.returncode == 0 and "Traceback" not in exported.stderr
    epochs = list(csv.DictReader(exported.stdout.splitlines()))
    assert epochs and all(row["val_loss"] == "" and row["val_accuracy"] for row in epochs), "unknown is empty, not 0"
    records = RunFolder(run / "results" / "boxes").records().values()
    cell = next(record.cell_id for record in records if record.status == "done")
    refused = command("train", "boxes", *results, "--cell", cell, "--out", str(tmp_path / "model"))
    assert refused.returncode == 2 and "task='detection': can't be saved" in refused.stderr
    assert in_words("accuracy", TASKS["detection"], by_image=True) == "image AP50"
