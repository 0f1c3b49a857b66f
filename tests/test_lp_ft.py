"""Tests of a fitted start: regime `lp-ft` and `Regime.head_start`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tl
from bench.analysis.claims import CLAIMS
from bench.analysis.groups import all_else, make_groups
from bench.analysis.metrics import METRICS, finished
from bench.analysis.verdicts import claims_of, decide_claims
from bench.devtools.made_up import TRUTH, record
from bench.store.consistency import contradiction
from bench.store.records import Cell
from tests.conftest import TINY
from tests.runs import write_run
from tests.test_reference import plain_loop
from tests.weights import with_statistics
from tl import train as train_module
from tl.features import Extraction
from tl.fits import FITS
from tl.protocols import run_protocol
from tl.regimes import EVERYTHING, HEAD, REGIMES, Regime
from tl.step import TrainStep
from tl.timing import timed_training
from tl.tryout import _with_the_same_steps


def config(**settings: Any) -> tl.TrainConfig:
    given = {"backbone": TINY[1], "regime": "lp-ft", "weights": "pretrained", "epochs": 2, **settings}
    return tl.TrainConfig(**given)


def train(splits: tl.Splits, given: tl.TrainConfig, **settings: Any) -> tl.TrainResult:
    return tl.train_model(given, splits, device="cpu", weights_dir=with_statistics(), **settings)


def test_it_begins_where_the_fit_ends(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step the backbone is as loaded and the head is that of `logistic`; then both move, by the
    optimiser that was built before."""
    fitted = train(mini, config(regime="logistic", fold=False)).model
    seen: list[dict[str, torch.Tensor]] = []
    run = TrainStep.run

    def first(self: TrainStep, *arguments: Any) -> None:
        if not seen:
            seen.append({name: value.clone() for name, value in self._model.state_dict().items()})
        run(self, *arguments)

    monkeypatch.setattr(TrainStep, "run", first)
    result = train(mini, config(), keep="last")
    expected = fitted.state_dict()
    assert seen[0].keys() == expected.keys()
    for name, value in seen[0].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
    moved = {name for name, value in result.model.named_parameters() if not torch.equal(value, seen[0][name])}
    assert {"head.weight", "head.bias"} < moved
    assert any(name.startswith("backbone.") for name in moved)


def test_losses_are_those_of_a_plain_loop(mini: tl.Splits) -> None:
    """A loop by hand trains from the fitted head at a tenth of the rate."""
    given = config(weights="random", epochs=1, learning_rate=0.01)
    head = tl.train_model(given.replace(regime="logistic", fold=False), mini, device="cpu").model.head
    expected, _ = plain_loop(given.replace(regime="finetune", learning_rate=0.001), mini, head=head)
    result = tl.train_model(given, mini, device="cpu")
    for row, wanted in zip(result.epochs, expected, strict=True):
        assert row.train_loss == pytest.approx(wanted["train_loss"], rel=1e-3)
        assert row.val_loss == pytest.approx(wanted["val_loss"], rel=1e-3)
    assert [row.learning_rate for row in result.epochs] == pytest.approx([0.001])
    assert result.learning_rate == pytest.approx(0.001)


def test_the_first_phase_is_part_of_the_record(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its seconds are in what is done once and in the time until the first warm epoch; a second training uses the
    features again, and its memory is known all the same."""
    sizes: list[int | None] = []
    made = Extraction.__init__

    def init(self: Extraction, forward: Any, identity: Any, at_once: int | None = None) -> None:
        sizes.append(at_once)
        made(self, forward, identity, at_once)

    monkeypatch.setattr(Extraction, "__init__", init)
    given = config(batch_size=5)
    monkeypatch.setenv("TL_CACHE", str(tmp_path))  # no features yet
    first = train(mini, given)
    assert sizes == [5], "extraction needs no more memory than training"
    again = train(mini, given)
    assert first.head_start_seconds > 0 and first.extraction_seconds == first.extracting_seconds > 0
    assert again.extracting_seconds == 0 and again.features_reused and again.extraction_seconds > 0
    raised = {"peak_rss_bytes": again.baseline_rss_bytes + 7}
    assert again.replace(**raised).peak_memory_bytes == 7
    assert again.replace(**raised, config=config(regime="cached")).peak_memory_bytes is None
    for result in (first, again):
        assert result.once_seconds == result.extraction_seconds + result.head_start_seconds
        assert result.cold_seconds == result.epochs[0].seconds + result.once_seconds
        assert not any("cached" in str(note) for note in result.notes)
    assert [row.train_loss for row in first.epochs] == pytest.approx([row.train_loss for row in again.epochs])
    whole = record("timm:a", "lp-ft")
    rest = whole.replace(result=whole.result.replace(head_start_seconds=0.25)).overhead_seconds
    assert whole.overhead_seconds - rest == pytest.approx(0.25)


def test_other_regimes_have_no_such_phase(mini: tl.Splits) -> None:
    result = train(mini, config(regime="finetune"))
    assert (result.head_start_seconds, result.extraction_seconds, result.once_seconds) == (None, None, 0.0)


@pytest.mark.parametrize("protocol", ["tuned", "kfold"])
def test_protocols(mini: tl.Splits, protocol: str) -> None:
    """Every training of a protocol fits its own images first; a record of it contradicts nothing."""
    more: dict[str, Any] = {"learning_rates": (1e-3, 1e-2)} if protocol == "tuned" else {"folds": 2}
    result = run_protocol(config(protocol=protocol, **more), mini, device="cpu", weights_dir=with_statistics())
    assert result.head_start_seconds > 0
    if protocol == "tuned":
        assert result.learning_rate == pytest.approx(0.1 * result.learning_rate_chosen)
    else:
        assert len(result.folds) == 2


class Measured(Exception):
    """Memory is measured from here on."""


@pytest.mark.parametrize("where", ["train", "timing", "protocols"])
def test_the_fits_library_is_loaded_before_memory_is_measured(
    mini: tl.Splits, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Its modules take more memory than the training of a small network, and are none of it."""
    loaded: list[str] = []
    run = {
        "train": lambda: train(mini, config()),
        "timing": lambda: timed_training(config(), mini, device="cpu").__enter__(),
        "protocols": lambda: run_protocol(config(protocol="tuned", learning_rates=(1e-3, 1e-2)), mini, device="cpu"),
    }

    def marks(*arguments: Any, **settings: Any) -> None:
        raise Measured

    monkeypatch.setitem(FITS, "logistic", replace(FITS["logistic"], load=lambda: loaded.append("logistic")))
    monkeypatch.setattr(f"tl.{where}.MemoryMarks", marks)
    with pytest.raises(Measured):
        run[where]()
    assert loaded == ["logistic"]


def test_the_rate_is_a_setting() -> None:
    """It is read by this regime alone, checked, and no part of an id at its default."""
    assert config(rate_after_head=0.5).first_rate(0.1) == pytest.approx(0.05)
    other = config(regime="finetune", rate_after_head=0.5)
    assert other.rate_after_head == 0.1 and other.first_rate(0.1) == 0.1
    assert cell().id == cell(rate_after_head=0.1).id != cell(rate_after_head=0.2).id
    assert all_else(cell(rate_after_head=0.2), "finetune") == all_else(cell(regime="finetune"), "lp-ft")
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(tl.ConfigError, match="rate_after_head"):
            config(rate_after_head=wrong)


def cell(**settings: Any) -> Cell:
    return Cell(config=config(**settings), weights_digest="d" * 64, dataset_digest="0" * 64, device="cpu")


def without_bias(width: int, classes: int) -> torch.nn.Module:
    return torch.nn.Linear(width, classes, bias=False)


def test_a_head_that_no_fit_gives_is_skipped(mini: tl.Splits) -> None:
    """Logistic regression is linear, so a cell with another head has no meaning; so have such regimes."""
    with pytest.raises(
        tl.NotApplicable, match=r"^head 'mlp': regime 'lp-ft' fits a linear head first; use head 'linear'"
    ):
        train(mini, config(head="mlp"))
    with pytest.raises(tl.NotApplicable, match=r"fits a linear head first, with a bias; use head 'linear'"):
        train(mini, config(), head=without_bias)
    for trainable in (HEAD, replace(EVERYTHING, head=False)):
        with pytest.raises(tl.ConfigError, match="head_start='ridge': needs a new head, and a backbone that trains"):
            Regime(summary="x", start="pretrained", trainable=trainable, head_start="ridge")


def test_precision_auto_tries_the_same_steps() -> None:
    """A choice compares losses, which are too small after a fit, so it tries the regime that differs in its start."""
    assert _with_the_same_steps("lp-ft") == "finetune"
    assert _with_the_same_steps("frozen-tutorial") == "frozen-tutorial"


def test_epochs_to_the_best(monkeypatch: pytest.MonkeyPatch, mini: tl.Splits) -> None:
    """They count from 1, also where a protocol keeps the last epoch; the first of equally good epochs counts."""
    original, accuracies = train_module.val_pass, iter([0.5, 0.9, 0.9])
    monkeypatch.setattr(
        train_module, "val_pass", lambda *arguments: replace(original(*arguments), score=lambda: next(accuracies))
    )
    result = train(mini, config(epochs=3, regime="frozen"), keep="last")
    made = record("timm:a", "frozen", epochs=3).replace(result=result)
    assert METRICS["epochs_to_best"].of(finished(made)) == 2 and result.best.epoch == 2


@pytest.mark.parametrize(("seeds", "verdict"), [(3, "too few samples"), (8, "supported")])
def test_claims(tmp_path: Path, seeds: int, verdict: str) -> None:
    """No worse by accuracy, sooner by epochs: a difference, and how many times fewer.

    Equal ratios of three seeds, which small numbers often have, decide nothing.
    """
    claims = [CLAIMS["lp-ft-no-worse"], CLAIMS["lp-ft-sooner"]]
    assert all((claim.regime, claim.against) == ("lp-ft", "finetune") for claim in claims)
    sides = [
        record("timm:a", regime, seed=seed, epochs=6, right=95)
        for regime in ("finetune", "lp-ft")
        for seed in range(seeds)
    ]
    slow = [_best_at(one, 4 if one.cell.config.regime == "finetune" else 1) for one in sides]
    run = write_run(tmp_path / "r", slow)
    assert all(claim in claims_of(run.manifest()) for claim in claims)
    assert all(contradiction(one, run.manifest()) == "" for one in sides)
    found = decide_claims({"r": claims}, make_groups([("r", one) for one in slow], {"r": TRUTH}))
    assert [finding.estimate.value for finding in found] == pytest.approx([0.0, 5 / 2])
    assert found[1].verdict == verdict
    assert found[1].shown == {3: "2.50× (3 of 6 seeds)", 8: "2.50× (2.50–2.50, n = 8)"}[seeds]


def _best_at(one: Any, best: int) -> Any:
    """The same record with a lower accuracy in all epochs before one."""
    rows = [row.replace(val_accuracy=0.5) if row.epoch < best else row for row in one.result.epochs]
    return one.replace(result=one.result.replace(epochs=tuple(rows), best=one.result.best.replace(epoch=best)))


def test_it_is_fine_tuning_in_all_else() -> None:
    assert replace(REGIMES["lp-ft"], summary="", head_start="random") == replace(REGIMES["finetune"], summary="")
