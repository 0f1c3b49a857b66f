"""Runs the same few steps in each precision and layout, so that `tl.choice` can choose one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from tl.backbones import find_weights, known_names
from tl.choice import Choice, Prepared, Turn, Ways, choose
from tl.config import AUTO, READ_BY, TrainConfig
from tl.datasets import Splits
from tl.devices import LAYOUTS, seeded
from tl.features import images_at_once
from tl.lookahead import Ahead
from tl.machine import allocator
from tl.plain import check_execution
from tl.precision import single_precision, supported
from tl.prepare import check_task, circumstances, ready, way_of
from tl.regimes import REGIMES, Regime
from tl.seeding import seed_for
from tl.specs import find as find_spec
from tl.weights import Weights
from tl.work import StepWork


def chosen(
    config: TrainConfig,
    splits: Splits,
    device: torch.device,
    weights: Weights | None,
    weights_dir: str | Path | None = None,
) -> Choice | None:
    """Choose precision and layout for `precision = "auto"`; None for any other. Takes seconds if it isn't cached.

    Arguments and errors are those of `train_model`.
    """
    if config.precision != AUTO:
        return None
    check_task(config, splits)
    check_execution(config.execution, config.regime, config.precision)
    regime, way = REGIMES[config.regime], way_of(config)
    if regime.extractor == "int8":
        layout = way.layout(device, "fp32")
        return Choice(precision="fp32", memory_format=layout, reason="an int8 backbone needs fp32")
    if regime.head_start != "random" or regime.trainable.in_turn:
        # Its steps take what those of a regime take that trains the same from a random head. After a fitted head losses
        # are too small to be compared by their ratio. Where stages join one after the other, those of the last epochs
        # take the most.
        config = config.replace(regime=_with_the_same_steps(config.regime))
    if regime.features == "once":
        # It has no steps on images. Those of a frozen backbone take what its extraction takes.
        alike = next(name for name, each in REGIMES.items() if each.looks_ahead and each.trains and each.foldable)
        ahead = max(1, images_at_once(device) // config.batch_size)
        config = config.replace(regime=alike, fold=config.runs_folded, lookahead=ahead, views=1)

    def layouts(precision: str) -> list[str]:
        usual = way.layout(device, precision)
        return [usual, *(each for each in LAYOUTS if each != usual)]

    def start(precision: str, layout: str) -> AbstractContextManager[Prepared]:
        choice = Choice(precision=precision, memory_format=layout, reason="it is tried")
        return _prepared(config, splits, device, weights, weights_dir, choice)

    if weights is None:
        spec = str(find_spec(config.backbone, known_names()))
        policy = "random" if regime.start == "random" else config.weights
        weights = find_weights(spec, policy, weights_dir=Path(weights_dir) if weights_dir else None)
    # What tells apart the trainings of one cell, such as the trials of learning rates, must not lead to another choice.
    ignored = {"seed", "epochs", "precision", "views", "weights", "protocol", *READ_BY}
    ignored |= set() if config.code else {"code"}
    ignored |= {"schedule", "step_size", "gamma"}  # they are read after the first epoch
    identity = {
        "config": {name: value for name, value in config.model_dump(mode="json").items() if name not in ignored},
        "weights": weights.digest or "random",
        "dataset": splits.digest,
        "allocator": allocator(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        **circumstances(config.backbone, device),
    }
    return choose(Ways(supported(device), layouts), start, identity)


def _with_the_same_steps(name: str) -> str:
    """Return a regime that trains as this one does, but from a random head, and all from the first epoch.

    It is the regime itself if there is none.
    """

    def steps(regime: Regime) -> Regime:
        at_once = replace(regime.trainable, in_turn=None)
        return replace(regime, summary="", control=False, head_start="random", trainable=at_once)

    wanted = steps(REGIMES[name])
    return next((other for other, each in REGIMES.items() if other != name and steps(each) == wanted), name)


@contextmanager
def _prepared(
    config: TrainConfig,
    splits: Splits,
    device: torch.device,
    weights: Weights | None,
    weights_dir: str | Path | None,
    choice: Choice,
) -> Iterator[Prepared]:
    """Prepare a training that takes turns on the same first batches."""
    with ready(config, splits, device, weights, weights_dir, choice=choice) as (setup, loop, _):
        train, val, size = loop.train, loop.val, config.batch_size
        counted: StepWork | None = StepWork()  # see `Ahead`: the first step of all counts its work

        def run(steps: int) -> Turn:
            nonlocal counted
            # What is set for the process is that of the training that was prepared last.
            with seeded(seed_for("train", config.seed)), single_precision(choice.precision):
                seconds, loss = 0.0, math.nan
                if loop.step:
                    setup.freezing.train_mode()
                    loop.step.start()
                    images, begun = 0, time.perf_counter()
                    with closing(train.training(size, seed=config.seed, epoch=0)) as batches:
                        for inputs, labels in islice(batches, steps):
                            loop.step.run(inputs, labels, lambda phase: None, counted)
                            counted = None
                            images += len(labels)
                    loss = loop.step.sums()[0] / images
                    seconds = (time.perf_counter() - begun) / images * len(train)
                setup.freezing.eval_mode()
                begun = time.perf_counter()
                with closing(val.evaluation(size)) as batches:
                    found = loop.evaluation.over(islice(batches, steps), loop.loss_function)
                seconds += (time.perf_counter() - begun) / found.images * len(val)
                if not loop.step and found.loss_sum is not None:
                    loss = found.loss_sum / found.images
                return Turn(seconds=seconds, loss=loss)

        yield Prepared(run=run, group=train.count if isinstance(train, Ahead) else 1)
