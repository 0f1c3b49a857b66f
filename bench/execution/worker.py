"""Functions that need torch; executors call them. Importing this module loads torch, torchvision and timm.

The fork server imports it in advance, so every cell's process starts with the libraries in memory.
"""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.execution.base import Emit
from bench.execution.model_jobs import FinalJob, FinalModel, PredictJob
from bench.execution.monitor import gpu_before
from bench.execution.turns import END, Prepared, Taken, Warm
from bench.store.environment import MachineState
from bench.store.records import Cell
from tl import devices, gpu
from tl.backbones import checkpoint_of, count_parameters, find_weights, has_checkpoint, known_names
from tl.choice import Choice
from tl.config import one_training
from tl.datasets import Splits
from tl.deferred import load_compiler
from tl.errors import CacheWarning, ConfigError, ModelError, WeightsError
from tl.exporting import export
from tl.images import FileState, batch_bounds, trust
from tl.machine import DeviceKey, allocator, keep_freed_pages
from tl.model import BATCH_SIZE, Model, load_model, trained_on, write_model
from tl.own_parts import allow, load_parts
from tl.plugins import load_as_parent
from tl.precision import single_precision
from tl.prepare import needs_compiler
from tl.progress import progress_to
from tl.protocols import run_protocol
from tl.results import TrainResult
from tl.saved import write_card
from tl.sealed import cache_warnings_to
from tl.sizes import known_sizes
from tl.timing import timed_training
from tl.train import train_model
from tl.tryout import chosen
from tl.weights import SUFFIXES, ToDownload, Weights, file_in, published_in, where_published

known_names()  # in the server that cells are forked from, not in the time and memory of a cell


def get_ready(emit: Emit) -> None:
    """Do nothing. Calling it loads the libraries before the first cell is timed."""


def list_names(emit: Emit) -> dict[str, list[str]]:
    """Source → names of its backbones."""
    load_as_parent()
    return known_names()


def describe_backbones(
    asked: list[str], more: list[str], seconds: float, emit: Emit
) -> dict[str, tuple[int | None, str, list[tuple[str, str]] | None]]:
    """Backbone → number of its parameters, and where its published weights may be, as `published_in` says it.

    `asked` are counted where their sizes are not known, for so many seconds; `more` are not. Those without a size are
    left out.
    """
    load_as_parent()
    known, deadline = known_sizes([*asked, *more]), time.monotonic() + seconds
    for spec in asked:
        if spec not in known and time.monotonic() < deadline:
            known[spec] = count_parameters(spec)
    found = {}
    for spec, size in known.items():
        bundled_as, places = published_in(checkpoint_of(spec))
        at = None if places is None else [(place.file, place.repository) for place in places]
        found[spec] = size, bundled_as, at
    return found


def find_published(specs: list[str], emit: Emit) -> dict[str, str]:
    """Backbone → where its published weights are, in words; empty if they aren't here."""
    load_as_parent()
    return {spec: where_published(checkpoint_of(spec)) for spec in specs}


def list_devices(emit: Emit) -> dict[str, str]:
    """Devices of this machine → their models, best first."""
    return devices.present()


def resolve_weights(
    specs: list[str], policy: str, weights_dir: Path | None, download: bool, emit: Emit
) -> dict[str, Weights | str | ConfigError]:
    """Backbone → its weights, the reason why there are none, or what is wrong with its code.

    Downloads weights if `download` allows it.

    Weights that a download would bring, but for that, are pretrained ones with the address in `download_from`.
    """
    load_as_parent()
    found: dict[str, Weights | str | ConfigError] = {}
    for spec in specs:
        emit(spec)
        allow(spec)
        try:
            one = find_weights(spec, policy, weights_dir=weights_dir, download=download)
            found[spec] = one.replace(kind="pretrained", source="download") if one.download_from else one
        except ToDownload as error:
            found[spec] = Weights(kind="pretrained", source="download", reason=str(error), download_from=error.url)
        except WeightsError as error:
            found[spec] = str(error)
        except ConfigError as error:  # a mistake in code of one's own
            found[spec] = error
    return found


def files_for(specs: list[str], folder: Path, emit: Emit) -> dict[str, tuple[tuple[str, ...], str]]:
    """Backbone → names of files that are taken for its weights, and the one that the folder has; empty for none."""
    load_as_parent()
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for spec in specs:
        if not has_checkpoint(spec) or not (checkpoint := checkpoint_of(spec)).file_names:
            continue
        try:
            taken = file_in(folder, checkpoint)
        except WeightsError:  # said where the weights are looked up
            taken = None
        names = checkpoint.file_names
        if SUFFIXES[0] not in checkpoint.suffixes:
            names = tuple(f"{name}{checkpoint.suffixes[0]}" for name in names)
        found[spec] = names, taken.name if taken else ""
    return found


def run_cell(
    cell: Cell,
    splits: Splits,
    weights: Weights,
    threads: int,
    checked: frozenset[FileState],
    inference: bool,
    emit: Emit,
) -> tuple[TrainResult, str]:
    """Train one cell. Returns the result without its model, and the allocator's setting.

    `checked` are files of pixels that the caller has found intact; this process doesn't check them again. With
    `inference` it also measures what the trained network costs in use.

    Emits each `EpochResult`, and a `PassProgress` every few seconds of a pass; for protocols of several trainings, a
    few words before each training; before and after training a `MachineState` with what only this process
    knows; and each `CacheWarning`. Raises `DivergedError`, among others.
    """
    device, uuid = _begin(cell, threads, checked, emit)
    try:
        with cache_warnings_to(lambda text: emit(CacheWarning(text))), progress_to(emit):
            result = run_protocol(
                cell.config,
                splits,
                device=device,
                weights=weights,
                on_epoch=emit,
                on_stage=emit,
                inference=inference,
            )
    finally:  # also if memory ran out: another process may hold it, and the GPU's state shows that
        if uuid:
            emit(MachineState(gpu_after=gpu.state(uuid, in_use=True)))
    return result.model_copy(update={"model": None}), allocator()


def choose_way(
    cell: Cell, splits: Splits, weights: Weights, threads: int, checked: frozenset[FileState], emit: Emit
) -> Choice | None:
    """Choose the precision and layout of a cell that leaves them open; see `tl.choice`. Arguments: see `run_cell`."""
    device, _ = _begin(cell, threads, checked, emit)
    return chosen(one_training(cell.config), splits, devices.resolve(device), weights)


def train_final(job: FinalJob, checked: frozenset[FileState], emit: Emit) -> FinalModel:
    """Train, save the network of the last epoch, and see that the files give what the network gives.

    Emits each `EpochResult`, a few words before each later step, a `MachineState`, and each `CacheWarning`. Raises
    `UserError`, among others.
    """
    device, _ = _begin(job.cell, job.threads, checked, emit)
    with cache_warnings_to(lambda text: emit(CacheWarning(text))):
        result = train_model(
            job.cell.config, job.splits, device=device, weights=job.weights, keep="last", on_epoch=emit
        )
    emit("saving")
    card = write_model(job.folder, result, trained_on(job.splits, job.parts), job.measured)
    model = load_model(job.folder, device=device)
    batches = [model.prepare(job.compared_on[a:b]) for a, b in batch_bounds(len(job.compared_on), BATCH_SIZE)]
    _check_saved(model, result, batches)
    exports, not_kept = [], {}
    for form in job.exports:
        emit(f"exporting {form}")
        load_compiler()
        try:
            exports.append(export(model, job.folder, form, batches))
        except ModelError as error:
            not_kept[form] = str(error)
    if exports:
        card = card.replace(exports=tuple(exports))
        write_card(job.folder, card)
    return FinalModel(card=card, not_kept=not_kept)


def _check_saved(model: Model, result: TrainResult, batches: list[torch.Tensor]) -> None:
    """Raise `ModelError` unless a loaded model gives the logits of the network that was saved."""
    # Both in the same arithmetic: otherwise a GPU rounds the products of one of them to TF32.
    with torch.inference_mode(), single_precision("fp32"):
        for batch in batches:
            if not torch.allclose(model(batch), result.model(batch), rtol=1e-4, atol=1e-5):
                raise ModelError(
                    f"{model.card.backbone}: the saved files give other outputs than the trained network: its library "
                    "keeps more of it than parameters and buffers"
                )


def predict(job: PredictJob, emit: Emit) -> None:
    """Predict the classes of image files. Emits a `Predicted` for each, in order."""
    load_as_parent()
    torch.set_num_threads(job.threads)
    model = load_model(job.folder, device=job.device)
    for _, found in model.predict_files(job.files, batch_size=job.batch_size):
        emit(found if isinstance(found, str) else list(found.probabilities.values()))


_EPOCHS_APART = 1000
"""Epochs between the first ones of two pairs: more than a pair runs, so no two time the same images in one order."""


def time_cell(
    cell: Cell,
    splits: Splits,
    weights: Weights,
    threads: int,
    checked: frozenset[FileState],
    number: int,
    orders: Connection,
    emit: Emit,
) -> dict[str, Any]:
    """Time turns of one cell's training, as `bench.execution.turns` orders. Returns fields of a `TimedSide`.

    Arguments are those of `run_cell`. `number` is the pair's: each begins with the images of another epoch, so that
    what these images cost is a part of the pairs' scatter. Emits a `MachineState`, each `CacheWarning`, `Prepared`,
    `Warm`, and `Taken` for each turn.
    """
    begun = time.perf_counter()
    device, uuid = _begin(cell, threads, checked, emit)
    try:
        with (
            cache_warnings_to(lambda text: emit(CacheWarning(text))),
            timed_training(
                one_training(cell.config), splits, device=device, weights=weights, first_epoch=_EPOCHS_APART * number
            ) as timed,
        ):
            train_batches = timed.train_batches if timed.trains else 0
            emit(
                Prepared(
                    train_batches=train_batches,
                    val_batches=timed.val_batches,
                    margin=timed.margin,
                    least=timed.least,
                    group=timed.group,
                    seconds=time.perf_counter() - begun,
                )
            )
            orders.recv()  # `WARM_UP`: while another process warms up, this one must not run
            step_seconds, batch_seconds = timed.warm_up()
            emit(Warm(step_seconds=step_seconds, batch_seconds=batch_seconds, peak_bytes=timed.peak().bytes))
            while (order := orders.recv()) != END:
                turn = timed.turn(*order)
                emit(
                    Taken(
                        train_seconds=turn.train_seconds,
                        train_images=turn.train_images,
                        val_seconds=turn.val_seconds,
                        val_images=turn.val_images,
                    )
                )
            peak = timed.peak()
            timed.close()
            return {
                "start_seconds": timed.start_seconds,
                "peak_memory_bytes": peak.bytes,
                "memory_method": peak.method,
                "threads": torch.get_num_threads(),
                "device_name": devices.present()[str(devices.resolve(device))],
                "allocator": allocator(),
                "work": timed.work(),
                "precision": timed.precision,
                "memory_format": timed.memory_format,
            }
    finally:
        if uuid:
            emit(MachineState(gpu_after=gpu.state(uuid, in_use=True)))


def _begin(cell: Cell, threads: int, checked: frozenset[FileState], emit: Emit) -> tuple[str, str | None]:
    """Set this process up for a cell, and emit the machine's state. Returns torch's name of its device and its UUID."""
    load_as_parent()
    if needs_compiler(cell.config):
        load_compiler()
    load_parts(cell.config)  # what is from outside is loaded here, before anything is measured
    trust(checked)
    torch.set_num_threads(threads)
    device = DeviceKey.parse(cell.device).name
    keep_freed_pages()
    _touch_code()
    uuid = devices.gpu_uuid(devices.resolve(device))
    emit(_machine(uuid))
    return device, uuid


def _machine(uuid: str | None) -> MachineState:
    # Asking for cuDNN's version loads it: 50 MiB that a cell on the CPU doesn't need.
    cudnn = torch.backends.cudnn.version() if uuid else None
    return MachineState(
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        cuda_version=torch.version.cuda or "",
        cudnn_version=str(cudnn or ""),
        gpu_before=gpu_before(uuid) if uuid else None,
    )


def _touch_code() -> None:
    """Run one tiny training step, so that pages of library code don't count as the cell's memory."""
    network: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    images = torch.zeros(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    nn.functional.cross_entropy(network(images), torch.tensor([0, 1])).backward()
