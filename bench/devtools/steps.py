"""One training step of each regime on a small network, and what it takes exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tl
from tl.backbones import Classifier, make_backbone
from tl.freezing import freeze
from tl.optimizers import OPTIMIZER_BUILDERS
from tl.quantize import quantized
from tl.regimes import REGIMES
from tl.step import TrainStep
from tl.work import StepWork, optimizer_state_bytes, tensor_bytes

NETWORKS = ("torchvision:shufflenet_v2_x0_5", "timm:mobilenetv3_small_050")
"""Real networks that train a batch in tens of milliseconds."""
TRAINING = tuple(name for name, regime in REGIMES.items() if regime.trains)
BATCH, SIDE = 4, 224


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step with its batch, ready to run any number of times."""

    run: Callable[[], None]
    """Forward and backward pass and update."""
    counted: Callable[[], dict[str, int]]
    """The same, counting: exact, the same on every machine with the same libraries."""


def make_step(backbone: str, regime: str) -> Step:
    """A training step on random weights and pixels, on the CPU."""
    config = tl.TrainConfig(backbone=backbone, regime=regime, weights="random")
    kind, device = REGIMES[regime], torch.device("cpu")
    made = make_backbone(backbone, weights="random", seed=0)
    model = Classifier(made, 2, config)
    model.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    if kind.extractor == "int8":
        model.eval()
        model.backbone = quantized(model.backbone, iter([images]), device)
    freezing = freeze(model, kind)
    optimizer = OPTIMIZER_BUILDERS["sgd"](config, freezing.parameters)
    body: Any = model.backbone
    if kind.features == "once":
        with torch.inference_mode():
            images = model.backbone.eval()(images).clone()
        images, body = images.clone().detach(), nn.Identity()
    freezing.train_mode()
    step = TrainStep(model, body, cross_entropy, optimizer, config, device)
    labels = torch.arange(BATCH) % 2

    def counted() -> dict[str, int]:
        work, dispatches = StepWork(), Dispatches()
        step.run(images, labels, _no_mark, work)
        with dispatches:
            step.run(images, labels, _no_mark)
        return {
            "forward_flops": work.forward_flops,
            "backward_flops": work.backward_flops,
            "saved_bytes": work.saved_bytes,
            "operations": dispatches.count,
            "allocations": dispatches.allocations,
            "allocated_bytes": dispatches.allocated_bytes,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "trained_parameters": sum(parameter.numel() for parameter in freezing.parameters),
            "gradient_bytes": tensor_bytes(p.grad for p in model.parameters() if p.grad is not None),
            "optimizer_state_bytes": optimizer_state_bytes(optimizer),
        }

    return Step(run=partial(step.run, images, labels, _no_mark), counted=counted)


def _no_mark(_: str | None) -> None:
    pass


class Dispatches(TorchDispatchMode):
    """Counts the operations that reach a device's kernels, backward pass and update included, and what they allocate.

    An allocation is memory that an operation gives back and wasn't given. What a kernel takes for itself meanwhile
    isn't in it: that depends on the processor.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = self.allocations = self.allocated_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.count += 1
        given, back = _storages((args, kwargs)), _storages(made)
        new = [size for place, size in back.items() if place not in given]
        self.allocations += len(new)
        self.allocated_bytes += sum(new)
        return made


def _storages(tree: Any) -> dict[int, int]:
    """Address → bytes of the memory of all tensors in there; empty ones have none."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}
