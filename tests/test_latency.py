"""Inference as a cost: latency, throughput and file size of a trained network, measured only when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tl
from bench.analysis.groups import make_groups
from bench.analysis.metrics import METRICS, costs, costs_on_request, finished, headline
from bench.analysis.recommend import recommend
from bench.report.summary import Summary, summarise
from bench.report.tables import cells_table, priorities_table
from bench.store.records import Record
from tests.conftest import TINY
from tests.runs import TRUTH, record, write_run
from tests.test_model import trained
from tl import latency, train
from tl.datasets import Splits
from tl.latency import BATCH_SIZE, LEAST, MOST, SINGLES, inference_cost
from tl.quantize import quantized_weights
from tl.results import InferenceCost, TrainResult
from tl.saved import TENSORS

COST = InferenceCost(
    latency_seconds=(0.5, 0.1, 0.2), batch_size=32, batch_seconds=(4.0, 1.0, 2.0), model_bytes=2**20, seconds=9.0
)
HEADINGS = {"latency, ms", "inference speed, images/s", "model file, MiB"}


def measured(one: Record, latency: float) -> Record:
    assert one.result is not None
    return one.replace(
        result=one.result.replace(inference=COST.replace(latency_seconds=(latency,))), wall_seconds=one.wall_seconds + 9
    )


def test_a_median_of_raw_passes() -> None:
    """An image's seconds, and the images of a batch over its seconds."""
    assert COST.latency == 0.2 and COST.images_per_second == 16
    assert COST.replace(batch_seconds=(0.0,)).images_per_second is None


@pytest.fixture(scope="module")
def model(mini: Splits) -> Any:
    return trained(mini).model


def measure(model: Any) -> InferenceCost:
    return inference_cost(model, 64, "fp32", torch.device("cpu"), "channels_last")


@pytest.mark.parametrize(("limit", "rounds"), [(0.0, LEAST), (1e9, MOST)])
def test_passes_take_turns(limit: float, rounds: int, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the warm-up, a batch and then single images, however long it takes."""
    counts: list[int] = []

    class Counted:
        def __init__(self, *_: Any) -> None:
            pass

        def run(self, images: torch.Tensor) -> None:
            assert images.is_contiguous(memory_format=torch.channels_last)
            counts.append(len(images))

    monkeypatch.setattr(latency, "Evaluation", Counted)
    monkeypatch.setattr(latency, "SECONDS", limit)
    found = measure(model)
    warm_up = 2 * latency._WARM_UP
    assert set(counts[:warm_up]) == {1, BATCH_SIZE}
    assert counts[warm_up:] == [BATCH_SIZE, *[1] * SINGLES] * rounds
    assert (len(found.batch_seconds), len(found.latency_seconds)) == (rounds, SINGLES * rounds)
    assert found.batch_size == BATCH_SIZE


def test_the_network_runs_as_it_is_used(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In eval mode and without gradients, and it stays the same."""
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    seen: list[bool] = []
    hook = model.head.register_forward_hook(lambda head, given, made: seen.append(head.training or made.requires_grad))
    found = measure(model)
    hook.remove()
    assert seen and not any(seen) and not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(seconds > 0 for seconds in (*found.latency_seconds, *found.batch_seconds))
    assert found.seconds > sum(found.latency_seconds) + sum(found.batch_seconds)


@pytest.mark.parametrize("spec", TINY)
def test_the_size_is_that_of_the_file(spec: str, mini: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte."""
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    result = trained(mini, spec)
    path = tl.save_model(result, mini, tmp_path / "model")
    assert measure(result.model).model_bytes == (path / TENSORS).stat().st_size


def test_the_size_of_an_int8_network(mini: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no file, but numbers: a byte for each of its weights, and a little for their steps; a float head."""
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    model = trained(mini, regime="quantized").model
    found = measure(model)
    weights = sum(weight.numel() for _, weight in quantized_weights(model))
    head = sum(4 * parameter.numel() for parameter in model.head.parameters())
    assert weights + head < found.model_bytes < 1.2 * (weights + head)
    assert len(found.latency_seconds) == SINGLES * LEAST


def without_times(result: TrainResult) -> list[Any]:
    return [(row.train_loss, row.val_loss, row.val_accuracy) for row in result.epochs]


@pytest.mark.parametrize(
    ("settings", "trainings"), [({}, 1), ({"protocol": "tuned"}, 5), ({"protocol": "kfold", "folds": 2}, 2)], ids=str
)
def test_it_is_measured_once_and_only_if_asked_for(
    settings: dict[str, Any], trainings: int, mini: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the protocol's own network, or one fold's. It changes no other figure."""
    calls: list[str] = []

    def count(*_: Any) -> InferenceCost:
        calls.append("measured")
        return COST

    monkeypatch.setattr(train, "inference_cost", count)
    config = tl.TrainConfig(backbone=TINY[1], epochs=1, batch_size=8, weights="random", **settings)
    assert config.trainings == trainings
    plain = tl.run_protocol(config, mini, device="cpu")
    assert plain.inference is None and calls == []
    asked = tl.run_protocol(config, mini, device="cpu", inference=True)
    assert asked.inference == COST and calls == ["measured"]
    assert without_times(asked) == without_times(plain)


def test_measuring_is_no_overhead() -> None:
    """The seconds that it took are those of a request."""
    one = record("timm:a", "frozen")
    assert measured(one, 0.1).overhead_seconds == pytest.approx(one.overhead_seconds)


def test_the_metrics() -> None:
    """Of a cell that has them; unknown for all others."""
    names = ("latency_seconds", "inference_images_per_second", "model_bytes")
    one = record("timm:a", "frozen")
    cell, without = finished(measured(one, 0.25)), finished(one)
    assert cell and without
    assert [METRICS[name].of(cell) for name in names] == [0.25, 16, 2**20]
    assert [METRICS[name].of(without) for name in names] == [None] * 3
    assert METRICS["latency_seconds"].say(0.25) == "250 ms" and METRICS["model_bytes"].say(2**20) == "1 MiB"
    assert costs_on_request() == ["latency_seconds"] and not {*headline(), *costs()} & set(names)


def summary(tmp_path: Path, *, asked: bool) -> Summary:
    """Two backbones that are equally accurate; the slower one to train is the quicker one in use."""
    records = [
        record(f"timm:{name}", "frozen", seed=seed, seconds=seconds)
        for name, seconds in (("a", 10.0), ("b", 20.0))
        for seed in range(3)
    ]
    if asked:
        records = [measured(one, 0.4 if one.cell.config.backbone == "timm:a" else 0.1) for one in records]
    return summarise([write_run(tmp_path / "r", records)], "r")


def test_inference_is_a_priority_where_it_was_measured(tmp_path: Path) -> None:
    """The table of what matters most has a row and a column for it, and the table of cells its columns."""
    found = summary(tmp_path, asked=True)
    (choice,) = recommend(make_groups([("r", one) for _, one in found.records], {"r": TRUTH}))
    priorities = {priority.metric: priority.groups[0].config.backbone for priority in choice.priorities}
    assert priorities["epoch_seconds"] == "timm:a" and priorities["latency_seconds"] == "timm:b"
    table = priorities_table(found)
    assert list(table["what matters most"])[-1] == "inference" and list(table["latency, ms"])[-1] == "100"
    assert set(cells_table(found)) >= HEADINGS


def test_without_it_nothing_is_shown(tmp_path: Path) -> None:
    """Reports of runs that didn't ask for it are as before."""
    found = summary(tmp_path, asked=False)
    table = priorities_table(found)
    assert list(table["what matters most"]) == ["accuracy", "time", "memory"] and "latency, ms" not in table
    assert not set(cells_table(found)) & HEADINGS
