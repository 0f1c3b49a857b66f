"""Tests of regime `gradual`: the head first, then one stage more every few epochs, against a loop by hand.

Trainings are in double precision, for the reason that `tests/test_checkpointing.py` has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import tl
from bench.analysis.claims import CLAIMS, Claim
from bench.analysis.groups import Group, all_else, make_groups
from bench.analysis.prediction import epoch_flops, predicted
from bench.analysis.verdicts import claims_of, decide_claims
from bench.devtools.made_up import TRUTH, record
from bench.report.notes import notes_of
from bench.report.settings_text import settings
from bench.report.summary import summarise
from bench.store.consistency import contradiction
from bench.store.records import Cell
from bench.sweep.pairs import pairings, why_unpaired, without_turns
from tests.runs import write_run
from tests.test_reference import DoubleClassifier, every
from tl import train as train_module
from tl.backbones import make_backbone
from tl.batches import Batches
from tl.freezing import Freezing
from tl.images import open_store
from tl.prepare import WAYS
from tl.protocols import run_protocol
from tl.regimes import EVERYTHING, HEAD, REGIMES, STAGE_BY_STAGE
from tl.results import Period, TrainResult
from tl.step import GraphedStep, Graphs, TrainStep
from tl.timing import timed_training
from tl.tryout import _with_the_same_steps
from tl.unfreezing import Unfreezing

PARTS = [["head"], ["backbone.layer4"], ["backbone.layer3"], ["backbone.layer2"], ["backbone.layer1"]]
PARTS += [["backbone.conv1", "backbone.bn1"]]
"""The head and the stages of `timm:test_resnet` by name, in the order in which they join."""
State = dict[str, torch.Tensor]


def config(**given: Any) -> tl.TrainConfig:
    more = {"backbone": "timm:test_resnet", "regime": "gradual", "weights": "random", "epochs": 4, **given}
    return tl.TrainConfig(**more)


@pytest.fixture
def few(mini: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> tl.Splits:
    """Six and four images, for networks in double precision."""
    monkeypatch.setattr("tl.prepare.Classifier", DoubleClassifier)
    return replace(mini, train=every(4, mini.train), val=every(4, mini.val))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The state of the network at each validation pass."""
    states: list[State] = []
    original = train_module.val_pass

    def validated(evaluation: Any, *arguments: Any) -> Any:
        states.append({name: value.clone() for name, value in evaluation._model.state_dict().items()})
        return original(evaluation, *arguments)

    monkeypatch.setattr(train_module, "val_pass", validated)
    return states


def train(given: tl.TrainConfig, splits: tl.Splits, **more: Any) -> TrainResult:
    return tl.train_model(given, splits, device="cpu", **{"keep": "last", **more})


def by_hand(given: tl.TrainConfig, splits: tl.Splits) -> list[State]:
    """The state after each epoch. Each part has an optimiser of its own, from the epoch in which it joins."""
    backbone = make_backbone(given.backbone, weights="random", seed=given.seed)
    model = DoubleClassifier(backbone, 2, given).to(memory_format=torch.channels_last)
    batches = Batches(open_store(splits), splits.train, backbone.preprocessing, torch.device("cpu"))
    optimizers: list[torch.optim.Optimizer] = []
    states = []
    for epoch in range(given.epochs):
        parts = PARTS[: 1 + epoch // given.unfreeze_every]
        for names in parts[len(optimizers) :]:
            own = [parameter for name in names for parameter in model.get_submodule(name).parameters()]
            made: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
            more: dict[str, Any] = {"momentum": 0.9, "weight_decay": given.weight_decay}
            if given.optimizer == "adamw":
                made, more = torch.optim.AdamW, {"betas": (0.9, 0.999), "weight_decay": given.weight_decay}
            optimizers.append(made(own, lr=given.learning_rate, **more))
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = given.learning_rate * given.gamma ** (epoch // given.step_size)
        model.eval()
        for name in (name for names in parts for name in names):
            model.get_submodule(name).train()
        for images, labels in batches.training(given.batch_size, seed=given.seed, epoch=epoch):
            model.zero_grad()
            images = images.contiguous(memory_format=torch.channels_last)
            nn.functional.cross_entropy(model(images).float(), labels).backward()
            for optimizer in optimizers:
                optimizer.step()
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    return states


def compare(found: list[State], wanted: list[State]) -> None:
    assert len(found) == len(wanted)
    for epoch, (one, other) in enumerate(zip(found, wanted, strict=True)):
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, rtol=1e-7, atol=1e-9, msg=f"{name} after epoch {epoch}")


def inside(names: list[list[str]]) -> Callable[[str], bool]:
    given = [f"{name}." for part in names for name in part]
    return lambda name: name.startswith(tuple(given))


@pytest.mark.parametrize(
    ("execution", "given"),
    [
        ("fast", {"epochs": 7, "step_size": 3}),
        ("plain", {"epochs": 5, "unfreeze_every": 2, "weight_decay": 0.01}),
        ("fast", {"optimizer": "adamw", "weight_decay": 0.1}),
        ("plain", {"epochs": 3, "checkpointing": True}),
    ],
    ids=str,
)
def test_it_is_the_loop_by_hand(
    few: tl.Splits, seen: list[State], monkeypatch: pytest.MonkeyPatch, execution: str, given: dict[str, Any]
) -> None:
    """After every epoch the network is that of a loop by hand. What joins starts with a momentum of zero, the rest
    keeps its own, and all have the schedule's rate."""
    monkeypatch.setitem(WAYS, execution, replace(WAYS[execution], images=WAYS["fast"].images))
    wanted = config(learning_rate=0.01, **given)
    result = train(wanted.replace(execution=execution), few)
    compare(seen, by_hand(wanted, few))
    assert result.frozen_verified is True
    all_join = wanted.epochs == 7
    assert (result.trainable_params == result.total_params) is all_join
    assert any("stages" in str(note) for note in result.notes) is not all_join


def fresh(given: tl.TrainConfig) -> State:
    made = DoubleClassifier(make_backbone(given.backbone, weights="random", seed=given.seed), 2, given)
    return {name: value.clone() for name, value in made.state_dict().items()}


def test_what_changes_in_which_epoch(few: tl.Splits, seen: list[State]) -> None:
    """Parameters and statistics of a part change in every epoch from its first one on, and in none before."""
    given = config(epochs=5, unfreeze_every=2, learning_rate=0.1)
    result = train(given, few)
    states = [fresh(given), *seen]
    for epoch, (before, after) in enumerate(zip(states, seen, strict=False)):
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed == set(filter(inside(PARTS[: 1 + epoch // 2]), before)), epoch
    assert [period.first_epoch for period in result.periods] == [0, 2, 4]
    assert result.trainable_params == sum(
        parameter.numel() for name, parameter in result.model.named_parameters() if inside(PARTS[:3])(name)
    )
    (note,) = [str(note) for note in result.notes if "stages" in str(note)]
    assert note == "epochs were too few for all stages: 2 of 5 joined the head, the others stayed frozen"


def test_modes_and_gradients(few: tl.Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages to come are in eval mode and have no gradients; nothing is in train mode in validation."""
    modes: list[tuple[set[str], set[str]]] = []

    def recorded(model: nn.Module) -> None:
        norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
        training = {name for name in norms if model.get_submodule(name).training}
        modes.append((training, {name for name, p in model.named_parameters() if p.requires_grad}))

    for place in ("tl.step.TrainStep._forward", "tl.step.Evaluation.run"):
        module, kind, name = place.rsplit(".", 2)
        owner = getattr(__import__(module, fromlist=[kind]), kind)
        original = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda self, *given, original=original: (recorded(self._model), original(self, *given))[1]
        )
    result = train(config(batch_size=6), few)
    steps, passes = modes[::2], modes[1::2]
    assert len(steps) == len(passes) == 4 and all(not training for training, _ in passes)
    names = dict(result.model.named_modules())
    for joined, (training, gradients) in enumerate(steps):
        part = inside(PARTS[: 1 + joined])
        assert training == {n for n, m in names.items() if isinstance(m, nn.BatchNorm2d) and part(f"{n}.")}
        assert gradients == set(filter(part, dict(result.model.named_parameters())))


def everything_gets_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Freezing, "switch_gradients", lambda self: self.model.requires_grad_(True))


def everything_is_in_train_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Freezing, "train_mode", lambda self: self.model.train())


def a_stage_joins_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Unfreezing, "now", property(lambda self: self._periods[min(self._period + 1, 2)]))


@pytest.mark.parametrize("plant", [everything_gets_gradients, everything_is_in_train_mode, a_stage_joins_early])
def test_a_stage_that_changes_early_is_reported(
    few: tl.Splits, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """At whatever time: see the next test."""
    plant(monkeypatch)
    assert train(config(epochs=3, learning_rate=0.1), few).frozen_verified is False


def test_a_change_is_reported_at_whatever_time() -> None:
    """What waits is checked when it joins, and what has not joined at the end; what joined may change."""
    model: Any = nn.ModuleList(nn.Linear(1, 1) for _ in range(3))
    names = ["2", "1", "0"]

    def unfreezing() -> Unfreezing:
        periods = []
        for count in (1, 2, 3):
            frozen = frozenset(f"{name}.{kind}" for name in names[count:] for kind in ("weight", "bias"))
            own = tuple(parameter for name in names[:count] for parameter in model.get_submodule(name).parameters())
            periods.append(Freezing(model=model, parameters=own, in_train_mode=(), changing=frozenset(), frozen=frozen))
        return Unfreezing(periods, 2, parts=2)

    def change(layer: int) -> None:
        with torch.no_grad():
            model[layer].bias.add_(1)

    for wrong, epoch in ((0, 0), (0, 3), (1, 1), (None, 0)):
        checked = unfreezing()
        assert [checked.begin(number) for number in range(epoch + 1)] == [True, False, True, False][: epoch + 1]
        if wrong is not None:
            change(wrong)
        assert [checked.begin(number) for number in range(epoch + 1, 6)].count(True) == 2 - epoch // 2
        for layer in range(3):
            change(layer)
        assert checked.verified() is (wrong is None)
    ended = unfreezing()  # in the first period
    ended.begin(0)
    change(0)
    assert ended.verified() is False


def test_a_lost_momentum_is_seen(few: tl.Splits, seen: list[State], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop by hand tells whether the head goes on with the momentum that it had when a stage joined."""
    adapt = TrainStep.adapt

    def forgets(self: TrainStep) -> None:
        adapt(self)
        self._optimizer.state.clear()

    monkeypatch.setattr("tl.step.TrainStep.adapt", forgets)
    given = config(learning_rate=0.01, epochs=2, execution="plain")
    monkeypatch.setitem(WAYS, "plain", replace(WAYS["plain"], images=WAYS["fast"].images))
    train(given, few)
    with pytest.raises(AssertionError, match="after epoch 1"):
        compare(seen, by_hand(given, few))


@pytest.mark.parametrize("best", [0, 1, 3])
def test_the_best_epoch_comes_back(
    few: tl.Splits, seen: list[State], monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    """Also what joined after it is again as it was then."""
    validated, epochs = train_module.val_pass, iter(range(4))

    def judged(*arguments: Any) -> Any:
        accuracy = 0.9 if next(epochs) == best else 0.1
        return replace(validated(*arguments), score=lambda: accuracy)

    monkeypatch.setattr(train_module, "val_pass", judged)
    result = train(config(learning_rate=0.1), few, keep="best")
    assert result.best.epoch == best and result.frozen_verified is True
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, seen[best][name]), name


def test_work_is_counted_for_each_period(few: tl.Splits) -> None:
    """It is that of the regimes that train the same in all epochs. Predictions are the mean over epochs."""
    result = train(config(epochs=7), few)
    alike = ["frozen", "last-block", "last-2", "last-3", None, "finetune"]
    for period, regime in zip(result.periods, alike, strict=True):
        if regime:
            other = train(config(regime=regime, epochs=1), few)
            ours, theirs = period.work, other.work
            assert theirs is not None and period.trainable_params == other.trainable_params
            assert ours.replace(optimizer_state_bytes=0) == theirs.replace(optimizer_state_bytes=0), regime
    assert result.work == result.periods[-1].work
    assert [result.work_in(epoch) for epoch in (0, 4, 6)] == [result.periods[place].work for place in (0, 4, 5)]
    made = record("timm:a", "gradual", epochs=7)
    group, plain = (
        make_groups([("r", one)], {"r": TRUTH})[0]
        for one in (
            made.replace(result=result.replace(config=made.cell.config)),
            record("timm:a", "finetune").replace(result=result.replace(periods=())),
        )
    )
    warm = [epoch_flops(result.periods[place].work, 244, 100) for place in (1, 2, 3, 4, 5, 5)]
    whole = epoch_flops(result.periods[5].work, 244, 100)
    assert predicted("epoch_seconds", group, plain) == pytest.approx(sum(warm) / 6 / whole)


def test_an_epoch_stands_for_others_only_as_a_mean() -> None:
    """A median of epochs that differ in what trains would be the time of one period."""
    whole = record("timm:a", "gradual", epochs=4)
    result = whole.result
    assert result is not None and result.work is None

    def of(result: TrainResult) -> Group:
        return make_groups([("r", whole.replace(result=result))], {"r": TRUTH})[0]

    work = dict.fromkeys(tl.results.Work.model_fields, 1)
    period = Period(first_epoch=0, trainable_params=1, work=tl.results.Work(**work))
    rows = tuple(
        row.replace(train_seconds=seconds, val_seconds=1.0, phases=None)
        for row, seconds in zip(result.epochs, (9.0, 1.0, 2.0, 6.0), strict=True)
    )
    made = result.replace(epochs=rows)
    assert (made.epoch_seconds, made.train_epoch_seconds, made.val_epoch_seconds) == (3.0, 2.0, 1.0)
    assert of(made).seconds == 4 * 3.0
    made = made.replace(periods=(period,))
    assert (made.epoch_seconds, made.train_epoch_seconds, made.val_epoch_seconds) == (4.0, 3.0, 1.0)
    assert of(made).seconds == 10.0 + 3 * 4.0 == sum(row.seconds or 0.0 for row in rows), "the whole training"


def cell(regime: str = "gradual", **given: Any) -> Cell:
    settings = config(regime=regime, **given)
    return Cell(config=settings, weights_digest="", dataset_digest="0" * 64, device="cpu")


def test_it_takes_no_turns(few: tl.Splits) -> None:
    """Its epochs differ, so pairs leave it out, and whoever asks for its turns is told in one line."""
    claim = Claim(name="x", statement="x", metric="epoch_seconds", regime="*", low=1.0)
    cells = [cell("finetune"), cell(), cell("frozen")]
    assert pairings(cells, [claim]) == [(cell("finetune"), cell("frozen"))]
    why = "regime 'gradual' can't be: it trains other stages in other epochs"
    assert pairings(cells[:2], [claim]) == [] and why_unpaired(cells[:2], [claim]) == why
    assert without_turns(cell()) == "it trains other stages in other epochs"
    with (
        pytest.raises(tl.NotApplicable, match=r"^regime 'gradual' trains other stages in other epochs, so its steps"),
        timed_training(config(), few, device="cpu"),
    ):
        pass


def test_other_ways(few: tl.Splits) -> None:
    """A compiler would start anew for each stage; precision `auto` tries the steps of the last epochs."""
    with pytest.raises(tl.NotApplicable, match=r"torch\.compile would compile again for each stage that joins"):
        train(config(compile=True), few)
    assert _with_the_same_steps("gradual") == "finetune"


def test_a_captured_step_is_captured_anew() -> None:
    """A graph would go on to train what it was captured with. The memory that graphs share is held meanwhile."""
    model: Any = SimpleNamespace(backbone=nn.Linear(2, 2).requires_grad_(False), head=nn.Linear(2, 2))
    graphs: Any = object.__new__(Graphs)
    graphs.failure, graphs._held, graphs.record = "", None, lambda part: "held"
    parameters = [*model.backbone.parameters(), *model.head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    step = GraphedStep(
        model, model.backbone, model.backbone, None, optimizer, config(), torch.device("cpu"), graphs=graphs
    )
    shape = torch.Size([4, 2])
    captured: Any = "a graph"
    step._captured[shape], step._runs[shape] = captured, 3
    model.backbone.requires_grad_(True)
    model.head.weight.grad = torch.ones(2, 2)
    assert not step._trains_body
    step.adapt()
    assert step._trains_body and not step._captured and not step._runs and graphs._held == "held"
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("protocol", ["tuned", "kfold"])
def test_protocols(few: tl.Splits, protocol: str) -> None:
    more: dict[str, Any] = {"learning_rates": (1e-3, 1e-2)} if protocol == "tuned" else {"folds": 2}
    result = run_protocol(config(protocol=protocol, epochs=2, **more), few, device="cpu")
    assert result.frozen_verified is True and [period.first_epoch for period in result.periods] == [0, 1]


def test_the_setting() -> None:
    """It is read by this regime alone, checked, and no part of an id at its default."""
    assert config(unfreeze_every=3).unfreeze_every == 3
    assert config(regime="finetune", unfreeze_every=3).unfreeze_every == 1
    assert cell().id == cell(unfreeze_every=1).id != cell(unfreeze_every=2).id
    assert all_else(cell(unfreeze_every=2), "finetune") == all_else(cell("finetune"), "gradual")
    with pytest.raises(tl.ConfigError, match="unfreeze_every"):
        config(unfreeze_every=0)
    for wrong in ({"trainable": replace(STAGE_BY_STAGE), "frozen_mode": "train"}, {"adapter": "lora"}):
        with pytest.raises(tl.ConfigError, match=r"^in_turn: needs frozen_mode='eval'"):
            replace(REGIMES["gradual"], **wrong)
    with pytest.raises(tl.ConfigError, match=r"^in_turn: needs a head"):
        replace(HEAD, in_turn=STAGE_BY_STAGE.in_turn)
    assert replace(REGIMES["gradual"], summary="", trainable=EVERYTHING) == replace(REGIMES["finetune"], summary="")


def test_a_record_and_its_report(tmp_path: Path, few: tl.Splits) -> None:
    """Periods that don't fit the settings contradict the record; the claim is judged; the report says what differs."""
    sides = [
        record("timm:a", regime, seed=seed, right=95, unfreeze_every=2)
        for regime in ("finetune", "gradual")
        for seed in range(3)
    ]
    trained = train(config(unfreeze_every=2), few)
    known = sides[3].result
    assert known is not None and trained.work is not None
    given = known.replace(
        periods=trained.periods, work=trained.work, trainable_params=trained.trainable_params, total_params=10**6
    )
    good = sides[3].replace(result=given)
    run = write_run(tmp_path / "r", [*sides[:3], good, *sides[4:]])
    manifest = run.manifest()
    assert contradiction(good, manifest) == ""
    first, second = trained.periods
    for periods, what in (
        ((first, second.replace(first_epoch=3)), "result.periods.1.first_epoch=3: one begins every 2"),
        ((first.replace(trainable_params=10**6), second), "result.periods train"),
        ((first, second.replace(work=first.work)), "result.work is not that of the last of result.periods"),
    ):
        wrong = good.replace(result=given.replace(periods=periods))
        assert contradiction(wrong, manifest).startswith(what)
    other = sides[0].result
    assert other is not None
    alike = sides[0].replace(result=other.replace(periods=trained.periods))
    assert contradiction(alike, manifest).startswith("result.periods of regime 'finetune', which trains the same")
    note = notes_of(summarise([run], "r")).table
    assert note.endswith(
        "Times are medians of all epochs but the first. Those of gradual are means, since its epochs differ."
    )
    claim = CLAIMS["gradual-no-worse"]
    assert claim in claims_of(manifest)
    (finding,) = decide_claims({"r": [claim]}, make_groups([("r", one) for one in sides], {"r": TRUTH}))
    assert finding.estimate.value == 0.0
    other_pace = manifest.replace(protocol={**manifest.protocol, "unfreeze_every": 2})
    assert "gradual trains one stage more every 2 epochs, and its times per epoch are means" in settings(other_pace)
    assert "gradual trains one stage more every epoch" in settings(manifest)


def test_the_last_period_is_fine_tuning() -> None:
    """Once all have joined, the rule is that of `finetune`, whatever the network has outside its stages."""
    network = make_backbone("timm:test_resnet", weights="random").module
    rules = STAGE_BY_STAGE.in_order(network)
    assert len(rules) == 6 and rules[0] == HEAD and rules[-1] == EVERYTHING
    assert EVERYTHING.in_order(network) == [EVERYTHING]
