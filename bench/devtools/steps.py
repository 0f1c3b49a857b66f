"""One training step of each regime on a small network, and exact counters of its cost."""

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
from tl.adapters import ADAPTERS
from tl.backbones import Classifier, make_backbone
from tl.freezing import freeze
from tl.optimizers import OPTIMIZER_BUILDERS
from tl.qat import rounding_copy
from tl.quantize import quantized
from tl.regimes import REGIMES
from tl.step import TrainStep
from tl.work import StepWork, optimizer_state_bytes, tensor_bytes

NETWORKS = ("torchvision:shufflenet_v2_x0_5", "timm:mobilenetv3_small_050")
"""Real networks whose training step takes tens of milliseconds."""
TRAINING = tuple(name for name, regime in REGIMES.items() if regime.by_steps)
BATCH, SIDE = 4, 224


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step with its batch. It can be run any number of times."""

    run: Callable[[], None]
    """Runs forward pass, backward pass and update."""
    counted: Callable[[], dict[str, int]]
    """Runs the step and counts. The counters are equal on all machines with the same libraries."""


def make_step(backbone: str, regime: str) -> Step:
    """Make a training step with random weights and pixels, on the CPU."""
    config = tl.TrainConfig(backbone=backbone, regime=regime, weights="random")
    kind, device = REGIMES[regime], torch.device("cpu")
    made = make_backbone(backbone, weights="random", seed=0)
    model = Classifier(made, 2, config)
    model.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    if kind.extractor == "int8":
        model.eval()
        given = model.backbone
        model.backbone = rounding_copy(given, images, device) if kind.rounds else quantized(given, [images], device)
    if adapter := ADAPTERS.get(kind.adapter):
        adapter.insert(model.eval().backbone, config, images)
    freezing = freeze(model, kind)
    optimizer = OPTIMIZER_BUILDERS["sgd"](config, freezing.parameters)
    body: Any = model.backbone
    if kind.features == "once":
        with torch.inference_mode():
            images = model.backbone.eval()(images).clone()
        images, body = images.clone().detach(), nn.Identity()
    freezing.train_mode()
    step = TrainStep(model, body, body, cross_entropy, optimizer, config, device)
    labels = torch.arange(BATCH) % 2

    def counted() -> dict[str, int]:
        work, dispatches, gradients = StepWork(), Dispatches(), list[int]()

        def count_gradients(*_: object) -> None:
            gradients.append(tensor_bytes(p.grad for p in model.parameters() if p.grad is not None))

        # A step may free its gradients as soon as the optimiser has read them.
        hook = optimizer.register_step_pre_hook(count_gradients)
        step.run(images, labels, _no_mark, work)
        hook.remove()
        with dispatches:
            step.run(images, labels, _no_mark)
        count_gradients()
        return {
            "forward_flops": work.forward_flops,
            "backward_flops": work.backward_flops,
            "saved_bytes": work.saved_bytes,
            "operations": dispatches.count,
            "allocations": dispatches.allocations,
            "allocated_bytes": dispatches.allocated_bytes,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "trained_parameters": sum(parameter.numel() for parameter in freezing.parameters),
            "gradient_bytes": max(gradients),
            "optimizer_state_bytes": optimizer_state_bytes(optimizer),
        }

    return Step(run=partial(step.run, images, labels, _no_mark), counted=counted)


def _no_mark(_: str | None) -> None:
    pass


class Dispatches(TorchDispatchMode):
    """Counts the operations that reach a device's kernels, including backward pass and update, and their allocations.

    An allocation is memory of an operation's results that was not memory of its arguments. Temporary memory of a kernel
    is not counted: it depends on the processor.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = self.allocations = self.allocated_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += 1
        before, after = _storages((args, kwargs)), _storages(result)
        new = [size for address, size in after.items() if address not in before]
        self.allocations += len(new)
        self.allocated_bytes += sum(new)
        return result


def _storages(tree: Any) -> dict[int, int]:
    """Address → bytes of the storages of all tensors in a tree, without empty ones."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}
