"""Prepares a training: the network, the images, what trains in it, and the steps of its execution.

`train_model` runs epochs of them, `tl.timing` runs them in turns, and `tl.heads` trains on the features alone.
"""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from tl import devices, plugins
from tl.adapters import ADAPTERS
from tl.averaging import AveragedWeights
from tl.backbones import Classifier, make_backbone
from tl.batches import Batches, resident_pixels
from tl.checkpointing import checkpointed
from tl.choice import Choice
from tl.config import AUTO, TrainConfig
from tl.datasets import Splits
from tl.deferred import deferred, load_compiler
from tl.devices import LAYOUTS, memory_format, seeded
from tl.errors import ConfigError, NotApplicable
from tl.features import Extraction, Features, images_at_once
from tl.fits import FITS, Fitted
from tl.folds import groups_in
from tl.freezing import Freezing, batch_norms, freeze, with_batch_norm_frozen
from tl.images import open_store
from tl.inference import InferenceNetwork, OnDemand, inference_network
from tl.learning import LEARNING, Learning, Loss
from tl.library import Backbone, Maker, maker
from tl.lookahead import Ahead, batches_ahead
from tl.machine import without_garbage_collection
from tl.optimizers import SCHEDULE_BUILDERS, class_weights, make_loss, make_optimizer, with_layer_decay
from tl.own_code import once
from tl.own_models import check_in_train_mode
from tl.plain import WORKERS, PlainBatches, PlainEvaluation, PlainStep, check_execution
from tl.precision import autocast, check_precision, single_precision
from tl.qat import Int8Copies, rounding_copy
from tl.quantize import CALIBRATION_IMAGES, quantized
from tl.regimes import REGIMES, Regime
from tl.seeding import seed_for
from tl.sources import SOURCES, package_version
from tl.specs import Spec
from tl.stages import parameters_of, stages
from tl.step import (
    Body,
    Evaluation,
    GraphedEvaluation,
    GraphedStep,
    Graphs,
    Replayed,
    TrainStep,
    own_stream,
)
from tl.tasks import TASKS
from tl.unfreezing import Unfreezing
from tl.weights import Weights
from tl.work import StepWork


@contextmanager
def ready(
    config: TrainConfig,
    splits: Splits,
    device: torch.device,
    weights: Weights | None,
    weights_dir: str | Path | None = None,
    *,
    cuda_graphs: bool = True,
    choice: Choice | None = None,
) -> Iterator[tuple[Setup, Loop, float]]:
    """Prepare everything before the first step of a training, and yield it with the seconds that took.

    Those seconds are without quantisation and extraction. Arguments and errors are those of `train_model`; `choice` is
    what `chosen` returned for them. Steps must run inside the context, which sets the random seed, the precision and
    the stream.
    """
    started = time.perf_counter()
    layout = choice.memory_format if choice else None
    config = config.replace(precision=choice.precision) if choice else config
    assert config.precision != AUTO
    check_precision(config.precision, device)
    check_execution(config.execution, config.regime, config.precision)
    compiler = nullcontext if needs_compiler(config) else deferred
    with compiler():
        setup = _prepare(config, splits, device, weights, weights_dir, layout)
    with (
        compiler(),
        checkpointed(setup.model.backbone, compiles=config.compile) if config.checkpointing else nullcontext(),
        seeded(seed_for("train", config.seed)),
        single_precision(config.precision),
        own_stream(device),
        _one_value_explained(config),
    ):
        ahead = _batches_ahead(setup)
        body, inference = _body(setup, ahead)
        setup_seconds = time.perf_counter() - started - (setup.quantization_seconds or 0.0)
        # Code of one's own may read values on the host, which a graph would keep as they were at its capture.
        plain = config.checkpointing or bool(config.own_parts) or not setup.learning.same_shapes
        with_graphs = device.type == "cuda" and cuda_graphs and setup.way.graphs and not plain
        graphs = Graphs() if with_graphs else None
        yield setup, _make_loop(setup, body, inference, ahead, graphs), setup_seconds


def check_task(config: TrainConfig, splits: Splits) -> None:
    """Raise `ConfigError` for images of another task and for a package that the task needs and isn't installed, and
    `NotApplicable` for a regime that has no meaning with the task."""
    if config.task != splits.task:
        raise ConfigError(
            f"task={config.task!r}: the images of {splits.name} are for {splits.task!r}; load them with "
            f"tl.load_splits(…, task={config.task!r})"
        )
    TASKS[config.task].check_packages()
    if why := TASKS[config.task].no_regime(REGIMES[config.regime]):
        raise NotApplicable(f"regime {config.regime!r} has no meaning with task {config.task!r}: {why}")


@contextmanager
def _one_value_explained(config: TrainConfig) -> Iterator[None]:
    """Raise `NotApplicable` where torch says that a BatchNorm layer has one value per channel to train on.

    A batch of one image gives it that where maps are one pixel, which depends on the network.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise NotApplicable(
            f"batch_size={config.batch_size}: a batch of one image gives a BatchNorm layer of this network one value "
            "per channel, which it can't train on; use 2 or more images, and batches of 2 or more"
        ) from error


def needs_compiler(config: TrainConfig) -> bool:
    """Return whether a training loads torch's compiler: to compile, or to trace a network that becomes int8.

    Torch's activation checkpointing asks for the compiler's settings.
    """
    return config.compile or config.checkpointing or REGIMES[config.regime].extractor == "int8"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything prepared before the first epoch: the network, the images, and which part of the network trains."""

    config: TrainConfig
    splits: Splits
    device: torch.device
    backbone: Backbone
    model: Classifier
    layout: str
    total_params: int
    """Counted before quantisation, which packs parameters away, and without what an adapter adds for a while."""
    quantization_seconds: float | None
    """Preparing the int8 backbone; `copies` counts what converting it for each validation pass takes."""
    copies: Int8Copies | None
    """What validation runs in place of a backbone that rounds; None if it runs the backbone itself."""
    images: _Images
    freezing: Freezing
    """What trains at the end, which all that trains before is a part of."""
    unfreezing: Unfreezing
    """What trains in which epoch."""
    optimizer: torch.optim.Optimizer | None
    """None if nothing trains by steps."""
    schedule: LRScheduler | None

    @property
    def regime(self) -> Regime:
        """The regime of the config."""
        return REGIMES[self.config.regime]

    @property
    def learning(self) -> Learning:
        """What the config's task makes of images and outputs."""
        return LEARNING[self.config.task]

    @property
    def way(self) -> Way:
        """How the config is executed."""
        return way_of(self.config)

    def example(self, images: int) -> torch.Tensor:
        """Return made-up images for the backbone."""
        return _example(self.backbone, self.device, self.layout, images)

    def become_int8(self) -> None:
        """Put the last int8 copy in the place of a backbone that rounds. Nothing can be trained then."""
        if self.copies:
            self.model.backbone = self.copies.newest

    def merge_adapter(self) -> None:
        """Leave the network as one of its library, if the regime has an adapter. Nothing can be trained then."""
        if adapter := ADAPTERS.get(self.regime.adapter):
            adapter.merge(self.model.backbone)


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Both splits, ready to be read in batches."""

    train: Batches | PlainBatches
    val: Batches | PlainBatches
    resident_bytes: int | None = None
    """Size of the pixels in the GPU's memory; None if pixels are not on the GPU."""
    decoded_once: bool = False


def _prepare(
    config: TrainConfig,
    splits: Splits,
    device: torch.device,
    weights: Weights | None,
    weights_dir: str | Path | None,
    layout: str | None,
) -> Setup:
    """Build the network, open the images, and freeze what the regime doesn't train.

    Without a layout it is that of the execution.
    """
    regime = REGIMES[config.regime]
    check_task(config, splits)
    backbone = _backbone(config, regime, splits, weights, weights_dir)
    way = way_of(config)
    model, layout = Classifier(backbone, len(splits.classes), config), layout or way.layout(device, config.precision)
    model.to(device=device, memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    total_params = sum(p.numel() for p in model.parameters()) + backbone.parameters_elsewhere
    images = way.images(splits, backbone, device, layout, regime)
    quantization_seconds = _quantize(model, config, images.train, regime) if regime.extractor == "int8" else None
    if adapter := ADAPTERS.get(regime.adapter):
        model.eval()
        adapter.insert(model.backbone, config, _example(backbone, device, layout, 1))
    if regime.head_start != "random":
        _check_fitted(model.head, config)
    unfreezing = _unfreezing(config, regime, model)
    freezing = unfreezing.whole
    if _maker_of(config) and regime.by_steps and not (regime.fixed_features or regime.rounds):
        check_in_train_mode(config.spec, backbone, freezing, _example(backbone, device, layout, 2))
    steps = config.replace(learning_rate=config.first_rate(config.learning_rate))
    optimizer = make_optimizer(steps, freezing.parameters) if regime.by_steps else None
    if optimizer and config.layer_decay != 1:
        optimizer = with_layer_decay(optimizer, config, _from_output_on(model.head, backbone.module, freezing))
    return Setup(
        config=config,
        splits=splits,
        device=device,
        backbone=backbone,
        model=model,
        layout=layout,
        total_params=total_params,
        quantization_seconds=quantization_seconds,
        copies=Int8Copies(model.backbone) if regime.rounds else None,
        images=images,
        freezing=freezing,
        unfreezing=unfreezing,
        optimizer=optimizer,
        schedule=SCHEDULE_BUILDERS[config.schedule](config, optimizer) if optimizer else None,
    )


def _check_fitted(head: nn.Module, config: TrainConfig) -> None:
    """Raise `NotApplicable` for a head that no fit gives."""
    if type(head) is not nn.Linear or head.bias is None:
        but = "" if type(head) is not nn.Linear else ", with a bias"
        raise NotApplicable(
            f"head {config.head!r}: regime {config.regime!r} fits a linear head first{but}; use head 'linear'"
        )


def _unfreezing(config: TrainConfig, regime: Regime, model: Classifier) -> Unfreezing:
    """Freeze what the regime doesn't train in the last epoch, and find what it trains in those before."""
    rules = regime.trainable.in_order(model.backbone)
    if len(rules) > 1 and config.compile:
        raise NotApplicable(
            f"regime {config.regime!r}: torch.compile would compile again for each stage that joins; leave compile out"
        )
    some = rules[: 1 + (config.epochs - 1) // config.unfreeze_every]
    periods = [freeze(model, replace(regime, trainable=rule)) for rule in some]
    if config.freeze_bn:
        periods, whole = [with_batch_norm_frozen(each) for each in periods], periods[-1].changing
        if periods[-1].changing != whole:
            if not any(parameter.requires_grad for parameter in model.backbone.parameters()):
                raise NotApplicable(f"freeze_bn=true: regime {config.regime!r} trains nothing else of this backbone")
        elif len(some) == len(rules) or not batch_norms(model.backbone):
            raise NotApplicable("freeze_bn=true: no BatchNorm layer of this backbone would train; leave it out")
    return Unfreezing(periods, config.unfreeze_every, parts=len(rules) - 1)


def _from_output_on(head: nn.Module, backbone: nn.Module, freezing: Freezing) -> list[set[nn.Parameter]]:
    """What trains of the head, and of each stage of the backbone, from the last to the first that has some.

    The backbone is the one that was loaded: one that is traced for int8 has the same parameters, but not its modules.
    """
    parts = [head.parameters(), *map(parameters_of, reversed(stages(backbone)))]
    trained = [set(freezing.parameters).intersection(part) for part in parts]
    first = next(place for place, part in enumerate(trained) if part)
    return trained[first:]


def _stored_images(splits: Splits, backbone: Backbone, device: torch.device, layout: str, regime: Regime) -> _Images:
    """Open the images that are decoded once; keep them on a GPU if they fit."""
    store = open_store(splits)
    resident = resident_pixels(store, device)
    train, val = (
        Batches(
            store,
            images,
            backbone.preprocessing,
            device,
            memory_format=LAYOUTS[layout],
            resident=resident,
            targets=LEARNING[splits.task].targets(images, len(splits.classes)),
            learning=LEARNING[splits.task],
        )
        for images in (splits.train, splits.val)
    )
    resident_bytes = None if resident is None else resident.nbytes
    if resident_bytes is not None and regime.features == "each step":
        resident_bytes += val.keep_centred()
    return _Images(train=train, val=val, resident_bytes=resident_bytes, decoded_once=store.pixels is not None)


def _loaded_images(splits: Splits, backbone: Backbone, device: torch.device, layout: str, regime: Regime) -> _Images:
    """Images that workers load from their files in every pass."""
    learning, classes = LEARNING[splits.task], len(splits.classes)
    train, val = (
        PlainBatches(splits.root, images, backbone.preprocessing, device, learning.rows(images, classes), learning)
        for images in (splits.train, splits.val)
    )
    return _Images(train=train, val=val)


def _backbone(
    config: TrainConfig, regime: Regime, splits: Splits, weights: Weights | None, weights_dir: str | Path | None
) -> Backbone:
    """Return the config's backbone with the weights that its regime starts from."""
    policy = "random" if regime.start == "random" else config.weights
    if weights and policy != "auto" and weights.kind != policy:
        raise ConfigError(f"weights={weights.kind!r}: regime {config.regime!r} must start from {policy} weights")
    found = _maker_of(config)
    if found and found.frozen_because and regime.features != "once":
        raise NotApplicable(f"{found.frozen_because}; only regimes that extract features once can use it")
    return make_backbone(
        config.backbone,
        weights=weights or policy,
        weights_dir=weights_dir,
        seed=config.seed,
        own_head_for=splits.classes if regime.head == "own" else None,
    )


_TRIED_IMAGES = 4
"""Images on which a backbone that trains for int8 is tried before."""
Images = Batches | PlainBatches
Inputs = Images | Ahead | Features


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The inputs and steps of every epoch. Inputs are images, or features that were extracted from them."""

    train: Inputs
    val: Inputs
    loss_function: Loss
    step: TrainStep | None
    """None if nothing trains by steps."""
    fit: HeadFit | None
    """None if no head is fitted at once."""
    evaluation: Evaluation
    graphs: Graphs | None
    extraction: Extraction | None
    head_start_seconds: float | None
    """What fitting the head took that training begins with, without the extraction; None without."""
    averaged: AveragedWeights | None
    """What is validated in place of the weights; None without."""
    inference: InferenceNetwork | None
    """None if the backbone runs as it is."""
    work: StepWork
    """The work of the first step, where nobody counts that of others."""


def _make_loop(setup: Setup, body: Body, inference: InferenceNetwork | None, ahead: int, graphs: Graphs | None) -> Loop:
    """Make the steps. Extract features first if the regime extracts them once."""
    config, model, device = setup.config, setup.model, setup.device
    train: Inputs = setup.images.train
    val: Inputs = setup.images.val
    counted: Body = model.backbone
    extraction: Extraction | None = None
    head_start_seconds: float | None = None
    if setup.regime.head_start != "random":
        extraction, head_start_seconds = _start_head(setup)
    if setup.regime.features == "once":
        assert isinstance(train, Batches) and isinstance(val, Batches)  # see `check_execution`
        extraction = _extraction(_without_head(body, setup), setup)
        train, val = extraction.features(train, config.views), extraction.features(val, 1)
        inference = body.made if isinstance(body, OnDemand) else inference
        body = counted = nn.Identity()
    elif ahead > 1:
        assert isinstance(train, Batches) and isinstance(val, Batches)  # it is not read by execution `plain`
        forward = _without_head(body, setup)
        if graphs:
            forward = Replayed(forward, graphs)
        train, val = Ahead(train, forward, ahead), Ahead(val, forward, ahead)
        body = train.features
    weight = class_weights(config, setup.splits.train.labels, len(setup.splits.classes))
    loss_function = make_loss(config, None if weight is None else weight.to(device))
    return Loop(
        train=train,
        val=val,
        loss_function=loss_function,
        step=setup.way.step(
            graphs, model, body, counted, loss_function, setup.optimizer, config, device, setup.learning
        )
        if setup.optimizer
        else None,
        fit=HeadFit(setup, train) if setup.regime.trains and not setup.regime.by_steps else None,
        evaluation=setup.way.evaluation(graphs, model, setup.copies or body, config.precision, device, setup.learning),
        graphs=graphs,
        extraction=extraction,
        head_start_seconds=head_start_seconds,
        # After the head is fitted, since the average begins with what training begins with.
        averaged=AveragedWeights(setup.freezing, setup.optimizer, config.ema)
        if setup.optimizer and config.ema
        else None,
        inference=inference,
        work=StepWork(),
    )


def _start_head(setup: Setup) -> tuple[Extraction, float]:
    """Fit the head to the centre views of the training images, for training to go on from there.

    Returns the extraction of the features, and the seconds that the fit took.
    """
    train = setup.images.train
    assert isinstance(train, Batches)  # see `check_execution`

    def forward(images: torch.Tensor) -> torch.Tensor:
        # What a network keeps of a pass, such as positions, may be needed for gradients later.
        with torch.inference_mode(False), torch.no_grad(), autocast(setup.config.precision, setup.device):
            features: torch.Tensor = setup.model.backbone(images.clone())
            return features

    # Batches of the training's size need less memory than its steps, so the peak is that of training.
    extraction = _extraction(forward, setup, setup.config.batch_size)
    features = extraction.features(train, 1)
    started = time.perf_counter()
    table, labels = (tensor.cpu() for tensor in features.first_view)
    if table.isfinite().all():  # else the first epoch ends with an error
        fitted = _fitted(setup, setup.regime.head_start, table, labels)
        setup.model.head.load_state_dict(fitted.head.state_dict())
    return extraction, time.perf_counter() - started


def _fitted(setup: Setup, fit: str, features: torch.Tensor, labels: torch.Tensor) -> Fitted:
    """Fit a head to the training images; those that look the same, where the set says which, are left out together."""
    splits = setup.splits
    groups = torch.tensor(groups_in(splits.train, splits)) if splits.together else None
    if groups is not None and len(groups.unique()) < 2:
        groups = None  # nothing would be left
    return FITS[fit].run(features, labels, len(splits.classes), groups)


class HeadFit:
    """Fits the head of a regime that doesn't train it by steps.

    Args:
        setup: what was prepared; `run` replaces the head of its model.
        train: features of the training images.
    """

    def __init__(self, setup: Setup, train: Inputs) -> None:
        assert isinstance(train, Features)  # see `Regime`
        self._setup = setup
        self.features, self.labels = (tensor.cpu() for tensor in train.first_view)
        unknown = int((~self.features.isfinite().all(1)).sum())
        self.fault = f"features of {unknown} of {len(train)} training images were not finite" if unknown else ""
        """What is not finite, so that nothing can be fitted; empty if all is."""
        self.fitted: Fitted | None = None

    def run(self) -> None:
        """Fit the head and put it into the model."""
        self.fitted = _fitted(self._setup, self._setup.regime.fit, self.features, self.labels)
        self._setup.model.head = self.fitted.head.to(self._setup.device).eval()


def _without_head(body: Body, setup: Setup) -> Body:
    """Return the forward pass of the backbone alone, in the config's precision."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        with autocast(setup.config.precision, setup.device):
            return body(images)

    return forward


def _example(backbone: Backbone, device: torch.device, layout: str, images: int) -> torch.Tensor:
    """Return made-up images, on which modules of the backbone show their order and shapes."""
    size = backbone.preprocessing.size
    with torch.inference_mode(False):
        made_up = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
        return made_up.to(device=device, memory_format=LAYOUTS[layout])


def _batches_ahead(setup: Setup) -> int:
    """Return the number of batches per forward pass."""
    config = setup.config
    if config.lookahead != "auto":
        return config.lookahead
    return batches_ahead(setup.model.backbone, setup.example(1), config.batch_size)


def _body(setup: Setup, ahead: int) -> tuple[Body, InferenceNetwork | None]:
    """Return the backbone as it runs, and the network for inference that it is, if it is one already."""
    config = setup.config
    if config.runs_folded and setup.regime.features == "once" and not config.compile:
        return OnDemand(partial(_inference, setup, ahead)), None
    inference = _inference(setup, ahead) if config.runs_folded else None
    network = inference.network if inference else setup.model.backbone
    return _compiled(network) if config.compile else network, inference


def _inference(setup: Setup, ahead: int) -> InferenceNetwork:
    """Make the backbone a network for inference, for the batches that it will get."""
    config = setup.config
    batch = images_at_once(setup.device) if setup.regime.features == "once" else config.batch_size * ahead
    # A compiler lays out weights itself, and doesn't know those of our operators.
    return inference_network(
        setup.model.backbone, setup.example(2), config.precision, batch_size=batch, pack=not config.compile
    )


def _compiled(backbone: nn.Module) -> Body:
    """Return a backbone that is compiled at its first call.

    Raises `NotApplicable` without a C++ compiler or without Python's headers.
    """
    from torch._inductor import config, cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:  # of a private class
        raise NotApplicable("torch.compile needs a C++ compiler, such as g++, and there is none here") from error
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise NotApplicable(f"torch.compile needs Python's headers, and {header} is not there")
    config.compile_threads = 1  # in this process, whose memory is measured
    compiled: Body = torch.compile(backbone, dynamic=False)
    return compiled


def _quantize(model: Classifier, config: TrainConfig, images: Batches | PlainBatches, regime: Regime) -> float:
    """Replace the model's backbone by an int8 copy, or by one that rounds as in int8 while it trains.

    Returns the seconds it took. Raises `NotApplicable`.
    """
    assert isinstance(images, Batches)  # see `check_execution`
    if config.precision != "fp32" or config.compile:
        raise NotApplicable("an int8 backbone needs fp32 without torch.compile")
    if config.checkpointing:
        raise NotApplicable("checkpointing runs blocks again, and a backbone that trains for int8 has none")
    if config.ema and regime.rounds:
        raise NotApplicable(f"ema={config.ema:g}: an average of weights has no ranges for int8; leave it out")
    load_compiler()
    started = time.perf_counter()
    model.eval()
    if regime.rounds:
        (some,) = images.sample(_TRIED_IMAGES, _TRIED_IMAGES)
        model.backbone = rounding_copy(model.backbone, some, images.device)
    else:
        calibration = images.sample(images_at_once(images.device), CALIBRATION_IMAGES)
        model.backbone = quantized(model.backbone, calibration, images.device)
    return time.perf_counter() - started


def _extraction(forward: Body, setup: Setup, at_once: int | None = None) -> Extraction:
    """Make the extraction by a forward pass of the backbone; `identity` lists all that features depend on.

    Rounding also depends on which images are extracted together. Random weights follow from the seed.
    """
    config, backbone, device = setup.config, setup.backbone, setup.device
    identity = {
        "backbone": backbone.spec,
        "weights": backbone.weights.digest or f"random, seed {config.seed}",
        "dataset": setup.splits.digest,
        "precision": config.precision,
        "compile": config.compile,
        "folded": config.runs_folded,
        "layout": setup.layout,
        "cropped on the device": setup.images.resident_bytes is not None,
        "preprocessing": asdict(backbone.preprocessing),
        "extractor": _extractor(setup),
        **({"code": code} if (code := dict(config.code).get("backbone")) else {}),
        **circumstances(backbone.spec, device),
    }
    return Extraction(forward, identity, at_once)


def circumstances(spec: str, device: torch.device) -> dict[str, Any]:
    """Return what anything depends on that this machine computes by a backbone, as JSON for the key of a cache."""
    return {
        "device": devices.present()[str(device)],
        "threads": torch.get_num_threads(),
        "libraries": {name: package_version(name) for name in ("torch", "torchvision", "timm")},
        "source": [SOURCES[Spec.parse(spec).source].versions, plugins.fingerprint()],
        **({"once": once_only} if (once_only := once("backbone", Spec.parse(spec).name)) else {}),
    }


def _extractor(setup: Setup) -> list[str]:
    """Return what an extractor is made from. An int8 one is calibrated on the training images."""
    extractor = setup.regime.extractor
    if extractor == "float":
        return [extractor]
    return [extractor, torch.backends.quantized.engine, *setup.splits.train.files]


@dataclass(frozen=True, kw_only=True)
class Way:
    """What belongs to an execution: an entry of `WAYS` is all in which two executions of a config differ here.

    The optimiser's implementation differs too, see `tl.optimizers`.
    """

    layout: Callable[[torch.device, str], str]
    """Device and precision → layout of tensors, a key of `LAYOUTS`."""
    images: Callable[[Splits, Backbone, torch.device, str, Regime], _Images]
    step: Callable[..., TrainStep]
    """Makes a step of the graphs, or None, and the arguments of `TrainStep`."""
    evaluation: Callable[..., Evaluation]
    """Makes an evaluation of the graphs, or None, and the arguments of `Evaluation`."""
    graphs: bool
    """True if CUDA graphs may be used."""
    timed: Callable[[], AbstractContextManager[None]]
    """The context of a timed epoch."""
    others: str = ""
    """Other processes that hold memory of the training, in words; empty if there are none."""


WAYS: dict[str, Way] = {
    "fast": Way(
        layout=memory_format,
        images=_stored_images,
        step=lambda graphs, *given: GraphedStep(*given, graphs=graphs) if graphs else TrainStep(*given),
        evaluation=lambda graphs, *given: GraphedEvaluation(*given, graphs=graphs) if graphs else Evaluation(*given),
        graphs=True,
        timed=without_garbage_collection,
    ),
    "plain": Way(
        layout=lambda device, precision: "contiguous",
        images=_loaded_images,
        step=lambda graphs, *given: PlainStep(*given),
        evaluation=lambda graphs, *given: PlainEvaluation(*given),
        graphs=False,
        timed=nullcontext,
        others=f"its loader's {WORKERS} worker processes",
    ),
}
"""The way of each execution of `tl.config.EXECUTIONS`."""


def way_of(config: TrainConfig) -> Way:
    """Return how a config is executed."""
    way, found = WAYS[config.execution], _maker_of(config)
    both = [way.others, found.others if found else ""]
    return replace(way, others=" and ".join(filter(None, both)))


def _maker_of(config: TrainConfig) -> Maker | None:
    """Return what makes a config's backbone; None for a library, and for a bare name, which is one of a library's."""
    source = config.spec.source
    return maker(source) if source in SOURCES and not SOURCES[source].lists else None
