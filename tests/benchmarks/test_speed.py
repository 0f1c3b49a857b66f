"""Benchmarks (pytest-benchmark). In a normal test run, each runs once as a test of correctness.

python -m pytest tests/benchmarks --benchmark-enable --benchmark-only
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console

import tl
from bench.compare.sides import SOURCE
from bench.devtools.instant import InstantExecutor
from bench.devtools.steps import NETWORKS, TRAINING, make_step
from bench.devtools.turns import timed
from bench.report.summary import summarise
from bench.report.write import write_report
from bench.store.records import Record
from bench.store.runs import RunFolder, seal
from bench.sweep.execute import execute, executor_for
from bench.sweep.grid import load_grid
from bench.sweep.options import Options
from bench.sweep.plan import plan
from tests.conftest import TINY
from tests.runs import record, write_run
from tests.weights import policy, published
from tl.backbones import make_backbone
from tl.batches import Batches
from tl.cache import to_json
from tl.clock import Clock
from tl.features import Extraction
from tl.images import batch_bounds, crops, open_store
from tl.regimes import REGIMES

MARKS_PER_STEP = 7
"""Marks of the clock in a training step; see `_train_pass` and `Batches.training`."""


@pytest.mark.alone
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("regime", TRAINING)
def test_step(benchmark: BenchmarkFixture, network: str, regime: str) -> None:
    """Time a training step on four images, and check that its counters are exact."""
    step = make_step(network, regime)
    benchmark.extra_info.update(step.counted())
    timed(benchmark, step.run, repeats=50 if REGIMES[regime].features == "once" else 1)
    assert step.counted() == {name: v for name, v in benchmark.extra_info.items() if name != SOURCE}


@pytest.mark.parametrize("regime", REGIMES)
def test_epoch(benchmark: BenchmarkFixture, mini: tl.Splits, regime: str) -> None:
    """Time one epoch of 24 + 16 images on a tiny network, including set-up."""
    config = tl.TrainConfig(backbone=TINY[1], regime=regime, weights=policy(regime), epochs=1)
    result = benchmark(tl.train_model, config, mini, device="cpu", weights_dir=published())
    assert len(result.epochs) == 1
    benchmark.extra_info["total_params"] = result.total_params
    benchmark.extra_info["trainable_params"] = result.trainable_params


@pytest.mark.alone
def test_clock(benchmark: BenchmarkFixture, mini: tl.Splits) -> None:
    """Time the clock's marks of one training step; they take under 1% of the smallest network's step."""
    config = tl.TrainConfig(backbone=TINY[0], regime="frozen", weights="random", epochs=3)
    epoch = tl.train_model(config, mini, device="cpu").train_epoch_seconds
    assert epoch is not None
    clock = Clock(torch.device("cpu"))

    def marks() -> float:
        clock.start()
        begun = time.perf_counter()
        for _ in range(MARKS_PER_STEP):
            clock.mark("forward")
        return time.perf_counter() - begun

    cost = min(marks() for _ in range(100))
    benchmark(marks)
    step = epoch / len(batch_bounds(len(mini.train), config.batch_size))
    benchmark.extra_info["share_of_a_step"] = cost / step
    assert cost < 0.01 * step


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_image_path(benchmark: BenchmarkFixture, mini: tl.Splits, kind: str) -> None:
    """Time the path of 24 images from stored pixels to normalised batches."""
    preprocessing = make_backbone(TINY[1], weights="random").preprocessing
    batches = Batches(open_store(mini), mini.train, preprocessing, torch.device("cpu"))

    def epoch() -> int:
        pairs = batches.training(4, seed=0, epoch=0) if kind == "training" else batches.evaluation(16)
        return sum(len(labels) for _, labels in pairs)

    timed(benchmark, epoch)
    assert epoch() == 24
    if benchmark.stats is not None:
        benchmark.extra_info["images_per_second"] = 24 / benchmark.stats.stats.median


def test_crop_table(benchmark: BenchmarkFixture) -> None:
    """Time the crops of 10,000 images for one epoch."""
    sizes = torch.randint(200, 600, (10_000, 2)).numpy()
    assert benchmark(crops, sizes, 0).shape == (10_000, 5)


def test_extraction(benchmark: BenchmarkFixture, mini: tl.Splits) -> None:
    """Time the extraction of features of 24 images."""
    backbone = make_backbone(NETWORKS[0], weights="random")
    network = backbone.module.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = Batches(open_store(mini), mini.train, backbone.preprocessing, torch.device("cpu"))
    rounds = iter(range(10**9))

    def extract() -> int:
        with torch.inference_mode():
            return len(Extraction(network, {"round": next(rounds)}).features(batches, 1))

    assert benchmark(extract) == 24


def _options(folder: Path) -> Options:
    return Options(
        data="synthetic-mini",
        weights="random",
        weights_dir=None,
        name="large",
        results=folder,
        timeout=None,
        executor="inline",
        dry_run=False,
        fresh=False,
        command="python -m bench run",
    )


def test_planning(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Time the planning of a grid of 1,000 cells."""
    grid = load_grid("smoke").override({"backbones": list(TINY), "regimes": ["finetune", "frozen"], "seeds": 250}, {})
    options = _options(tmp_path)
    worker = executor_for(options)
    sweep = benchmark(plan, grid, options, worker, Console(quiet=True))
    assert len(sweep.cells) == 1000


def test_resuming(benchmark: BenchmarkFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time the resuming of a run with 1,000 finished cells; forty in a normal test run."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))  # the names of networks, which are cached, are made up
    seeds = 10 if benchmark.disabled else 250
    matrix = {"backbones": ["b00000", "b00001"], "regimes": ["finetune", "frozen"], "seeds": seeds}
    grid, options, worker = load_grid("smoke").override(matrix, {}), _options(tmp_path), InstantExecutor()

    def run() -> dict[str, Record]:
        quiet = Console(quiet=True)
        return execute(plan(grid, options, worker, quiet), grid, options, worker, quiet)

    first = run()
    assert len(first) == 4 * seeds
    assert benchmark.pedantic(run, rounds=1 if benchmark.disabled else 3) == first


def many_records(folder: Path, count: int) -> RunFolder:
    """A run of finished cells that differ in their backbones' names. The files are written without fsync."""
    one = record("timm:BACKBONE", "frozen")
    run = write_run(folder, [], missing=[one.cell])
    (folder / "cells").mkdir()
    template, cells = to_json(one.model_dump(mode="json")), {}
    for number in range(count):
        cell = one.cell.but(backbone=f"timm:b{number}")
        text = template.replace("timm:BACKBONE", f"timm:b{number}").replace(one.cell_id, cell.id)
        (folder / "cells" / f"{cell.id}.json").write_bytes(seal(text.encode()))
        cells[cell.id] = cell
    run.write_manifest(run.manifest().replace(cells=cells))
    return run


def test_loading(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Time the reading of 10,000 records; a hundred in a normal test run."""
    count = 100 if benchmark.disabled else 10_000
    run = many_records(tmp_path / "run", count)
    records = benchmark.pedantic(run.records, rounds=1 if benchmark.disabled else 3)
    assert list(records) == list(run.manifest().cells) and len(records) == count


def test_report(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Time the report of a run of 24 cells: Markdown, HTML and figures."""
    names = ("finetune", "frozen")
    records = [record(f"timm:b{i}", regime, seconds=2.0 + i) for i in range(12) for regime in names]
    run = write_run(tmp_path / "run", records)
    page, _ = benchmark.pedantic(
        lambda: write_report(summarise([run], "run"), tmp_path / "reports"), rounds=1 if benchmark.disabled else 5
    )
    assert page.read_text().count("timm:b11") >= 1
