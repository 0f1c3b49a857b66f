"""The program `power`: planted changes have an effect, replayed gates find them, and the report adds up."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tl
from bench.compare.changes import Change
from bench.compare.gate import INCOMPLETE, PASSED, REGRESSED, Decision
from bench.compare.sides import SECONDS, Quantity, quantities
from bench.devtools import power
from bench.devtools.power import NOTHING, PLANTS
from bench.devtools.power_report import VICTIM, Outcome, Power, render
from bench.devtools.steps import make_step
from bench.store.environment import environment
from tests.conftest import TINY
from tl.step import TrainStep

ROOT = Path(__file__).parent.parent
NETWORK = "timm:mobilenetv3_small_050"


def recorded(scatter: float, rounds: int = 40) -> list[dict[str, dict[str, float]]]:
    """Recorded rounds of two benchmarks on both sides."""
    draws = np.random.default_rng(0)
    names = ("t::step[finetune-torchvision]", "t::step[frozen]")
    sides = ("base", "new")
    return [{side: {n: float(draws.lognormal(0, scatter)) for n in names} for side in sides} for _ in range(rounds)]


def share(outcomes: list[Outcome], planted: str, status: int = REGRESSED) -> float:
    here = [outcome for outcome in outcomes if outcome.planted == planted]
    return sum(o.found if status == REGRESSED else o.status == status for o in here) / len(here)


def test_replayed_gates() -> None:
    """With little scatter, no gate fails without a planted change, and all large slowdowns are found."""
    outcomes = list(power.replay(recorded(0.02), gates=10))
    assert share(outcomes, NOTHING) == 0 and share(outcomes, "20% slower") == share(outcomes, "50% slower") == 1
    assert {outcome.how for outcome in outcomes} == {"replayed"}
    assert all(5 <= outcome.rounds <= 20 and outcome.seconds is None for outcome in outcomes)
    noisy = list(power.replay(recorded(0.5), gates=10))
    assert share(noisy, "10% slower", INCOMPLETE) > 0.5


def test_only_what_was_planted_counts_as_found() -> None:
    """A gate that fails for another benchmark has found nothing."""
    rounds = recorded(0.001)
    for one in rounds:
        one["new"]["t::step[frozen]"] = one["base"]["t::step[frozen]"] = 1.0
    slow_other = [{side: dict(times) for side, times in one.items()} for one in rounds]
    for turn, one in enumerate(slow_other):
        one["new" if turn % 2 else "base"]["t::step[frozen]"] *= 1 + turn / 1e6
    outcomes = list(power.replay(slow_other, gates=2))
    assert share(outcomes, "50% slower") == 1 and share(outcomes, NOTHING) == 0
    decision = failed("t::step[frozen]", SECONDS)
    assert not power._outcome("10% slower", "live", decision, 5).found
    assert power._outcome(NOTHING, "live", decision, 5).found
    for what, shown in power.SHOWS.items():
        for metric in ("epoch_seconds", shown):
            decision = failed("a cpu", quantities()[metric])
            assert power._outcome(what, "runs", decision, 5).found == (metric == shown)


def failed(cell: str, quantity: Quantity) -> Decision:
    """A gate that fails because one quantity of one cell is worse."""
    worse = Change(
        cell=cell, quantity=quantity, base={}, new={}, new_side="new", estimate=None, allowed=None, verdict="worse"
    )
    return Decision(status=REGRESSED, headline="", reasons=(f"{cell}: worse",), worse=(worse,), lost=False)


def test_how_slow_it_was_measured_is_a_figure() -> None:
    """It is that of the slowed benchmark, for any names and reasons. Older outcomes have it in a reason."""
    times = recorded(0.02)
    (outcome, *_) = (one for one in power.replay(times, gates=1) if one.planted == "50% slower")
    assert outcome.slower is not None and outcome.slower == pytest.approx([1.5], rel=0.1)
    names = {"t::step[frozen]": f"t::step[{VICTIM}-time 9.999× of frozen]: worse"}
    renamed = [{side: {names.get(n, n): v for n, v in one[side].items()} for side in one} for one in times]
    (other, *_) = (one for one in power.replay(renamed, gates=1) if one.planted == "50% slower")
    assert other.slower is not None and other.slower == pytest.approx([1.5, 1.5], rel=0.1), "both have the name"
    old = outcome.model_dump(exclude={"slower"}) | {"reasons": (f"t[{VICTIM}]: time 1.300× (1.2–1.4): worse",)}
    assert Outcome(**old).slower == (1.3,)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plant a change in this process, as the gates do in a copy of the tree."""

    def put(what: str) -> dict[str, Any]:
        names: dict[str, Any] = {"TrainStep": TrainStep, "torch": torch}
        monkeypatch.setattr(TrainStep, "run", TrainStep.run)
        exec(power._STEP.format(body=PLANTS[what]), names)
        return names

    return put


@pytest.mark.parametrize(
    ("what", "counter"),
    [
        ("one more operation a step", "operations"),
        ("gradients of what doesn't train", "gradient_bytes"),
        ("a gradient of the images", "backward_flops"),
    ],
)
def test_planted_changes_of_counters(what: str, counter: str, plant: Any) -> None:
    """Each change increases its counter."""
    before = {regime: make_step(NETWORK, regime).counted() for regime in ("finetune", "frozen")}
    plant(what)
    after = {regime: make_step(NETWORK, regime).counted() for regime in ("finetune", "frozen")}
    assert any(after[regime][counter] > before[regime][counter] for regime in before)


def test_planted_slowness(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that trains the backbone takes 1.5 times as long, and other steps don't. The counters don't change, since
    the exact gate would find that instead of the time.

    Each step is compared with itself, so that other load of the machine doesn't matter.
    """
    inner: list[float] = []
    real = TrainStep.run

    def timed(*given: Any, **named: Any) -> None:
        begun = time.perf_counter()
        real(*given, **named)
        inner.append(time.perf_counter() - begun)

    monkeypatch.setattr(TrainStep, "run", timed)
    counters = {regime: make_step(NETWORK, regime).counted() for regime in ("finetune", "frozen")}
    plant("50% slower")
    assert counters == {regime: make_step(NETWORK, regime).counted() for regime in counters}

    def slower(regime: str) -> float:
        step, ratios = make_step(NETWORK, regime), []
        for _ in range(7):
            inner.clear()
            begun = time.perf_counter()
            step.run()
            ratios.append((time.perf_counter() - begun) / sum(inner))
        return statistics.median(ratios)

    assert 1.45 < slower("finetune") < 2.0
    assert slower("frozen") < 1.2


def test_planted_leak(plant: Any) -> None:
    """Each step keeps a MiB."""
    names = plant("a leak of 1 MiB a step")
    step = make_step(NETWORK, "frozen")
    step.run()
    step.run()
    assert sum(tensor.nbytes for tensor in names["_leaked"]) == 2 << 20


def test_planted_loss(mini: tl.Splits, plant: Any) -> None:
    """Training doesn't change the weights."""
    plant("weights that don't train")
    config = tl.TrainConfig(backbone=TINY[0], regime="finetune", weights="random", epochs=1)
    trained, again = (tl.train_model(config.replace(epochs=n), mini, device="cpu").model for n in (1, 2))
    assert trained is not None and again is not None
    for one, two in zip(trained.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_every_planted_code_compiles() -> None:
    """It is valid Python at the end of the module that it is appended to."""
    source = (ROOT / "tl" / "step.py").read_text(encoding="utf-8")
    for body in PLANTS.values():
        compile(source + power._STEP.format(body=body), "step.py", "exec")


def test_the_report_adds_up() -> None:
    """It has shares with Wilson's interval, targets, rounds and seconds, and no columns without a value."""
    outcomes = [
        Outcome(planted="10% slower", how="live", status=REGRESSED, found=True, rounds=5 + i, seconds=10.0 * i)
        for i in range(19)
    ]
    outcomes += [Outcome(planted="10% slower", how="live", status=INCOMPLETE, found=False, rounds=20, seconds=500.0)]
    outcomes += [Outcome(planted=NOTHING, how="live", status=PASSED, found=False, rounds=5, seconds=1.0)]
    page = render([Power(command="python -m x", environment=environment(), outcomes=tuple(outcomes))])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    row = dict(zip(rows[0], rows[2], strict=True))
    assert row["found"] == "19" and row["undecided"] == "1" and row["passed"] == "0"
    assert row["share found (95%)"] == "95.0% (76.4%–99.1%)" and row["target"] == "at least 95%"
    assert row[""] == "met, not certain" and row["rounds, median (most)"] == "14.5 (23)"
    assert row["seconds, median (most)"] == "95 (500)" and "others' share of the cores, median (most)" not in row
    assert dict(zip(rows[0], rows[3], strict=True))["target"] == "at most 2%" and "`python -m x`: 21 gates" in page


def test_the_committed_report_is_what_the_outcomes_say() -> None:
    """The report is rendered from all committed outcomes, word for word."""
    report, files = ROOT / "reports" / "gate-power.md", sorted((ROOT / "results").glob("gate-power*/*.json"))
    assert report.exists() == bool(files)
    if files:
        kept = [Power.from_json(file.read_text(encoding="utf-8")) for file in files]
        assert report.read_text(encoding="utf-8") == render(kept)
