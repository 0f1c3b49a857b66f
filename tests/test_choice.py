"""`precision = "auto"`: which way is taken, why, and that it is what runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY
from tl import choice as choices
from tl.choice import Choice, Prepared, Turn, Ways, choose
from tl.config import AUTO, PRECISIONS, TrainConfig
from tl.datasets import Splits
from tl.devices import LAYOUTS, memory_format
from tl.errors import CacheWarning, NotApplicable
from tl.precision import supported
from tl.protocols import run_protocol
from tl.timing import timed_training
from tl.train import train_model
from tl.tryout import chosen

CPU = torch.device("cpu")
WAYS = Ways(["fp32", "bf16", "fp16"], lambda precision: ["channels_last", "contiguous"])


class Machine:
    """Pretends to run steps: `speeds` has the seconds per way in each round, over and over, and `losses` its loss."""

    def __init__(self, speeds: dict[str, list[float]], losses: dict[str, float] | None = None) -> None:
        self.speeds, self.losses = speeds, losses or {}
        self.started: list[str] = []

    @contextmanager
    def start(self, precision: str, layout: str) -> Iterator[Prepared]:
        name = f"{precision} {layout}"
        self.started.append(name)
        if name not in self.speeds:
            raise NotApplicable(f"there is no {name}")
        turns = 0

        def run(steps: int) -> Turn:
            nonlocal turns
            turns += 1
            speeds = self.speeds[name]
            return Turn(seconds=speeds[turns % len(speeds)], loss=self.losses.get(name, 0.5))

        yield Prepared(run=run)


def choice_of(speeds: dict[str, list[float]], losses: dict[str, float] | None = None) -> Choice:
    return choose(WAYS, Machine(speeds, losses).start, {"test": [speeds, losses]})


def way(choice: Choice) -> str:
    return f"{choice.precision} {choice.memory_format}"


EQUAL = {f"{precision} {layout}": [1.0] for precision in WAYS.precisions for layout in LAYOUTS}


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, "fp32 channels_last"),
        ({"bf16 channels_last": [0.6]}, "bf16 channels_last"),
        ({"bf16 channels_last": [0.98]}, "fp32 channels_last"),  # less than a gain that counts
        ({"bf16 channels_last": [1.3]}, "fp32 channels_last"),
        ({"bf16 channels_last": [0.6], "fp16 channels_last": [0.5]}, "fp16 channels_last"),
        ({"bf16 channels_last": [0.5], "fp16 channels_last": [0.6]}, "bf16 channels_last"),
        ({"bf16 channels_last": [0.5], "bf16 contiguous": [0.4]}, "bf16 contiguous"),
        ({"fp32 contiguous": [0.8]}, "fp32 contiguous"),
    ],
)
def test_the_fastest_way_is_taken(changes: dict[str, list[float]], taken: str) -> None:
    """Layouts are compared in the best precision only."""
    found = choice_of(EQUAL | changes)
    assert way(found) == taken
    if taken != "fp32 channels_last":
        assert found.reason.startswith(f"{taken} takes {(EQUAL | changes)[taken][0]:.2f} of the time of fp32")
    else:
        assert found.reason.startswith("fp32 channels_last stays, since nothing is clearly faster")
    assert {f"{each.precision} {each.memory_format}" for each in found.tried} >= {taken, "fp32 channels_last"}


@pytest.mark.parametrize("loss", [0.52, 0.48, float("nan"), float("inf")])
def test_a_way_whose_loss_is_off_is_not_taken(loss: float) -> None:
    found = choice_of(EQUAL | {"bf16 channels_last": [0.5]}, {"bf16 channels_last": loss})
    assert way(found) == "fp32 channels_last"
    assert "bf16 channels_last takes 0.50 of the time, but its loss is off by" in found.reason


def test_losses_are_compared_with_those_of_fp32() -> None:
    """Two steps within the tolerance are not one: errors of precision and layout add up."""
    found = choice_of(
        EQUAL | {"bf16 channels_last": [0.5], "bf16 contiguous": [0.3]},
        {"bf16 channels_last": 0.5075, "bf16 contiguous": 0.515},
    )
    assert way(found) == "bf16 channels_last"


def test_a_way_that_cannot_run_is_kept_with_its_reason() -> None:
    found = choice_of({name: [1.0] for name in EQUAL if not name.startswith("fp16")})
    (refused,) = [each for each in found.tried if each.precision == "fp16"]
    assert (refused.reason, refused.epoch_seconds, refused.loss) == ("there is no fp16 channels_last", None, None)
    assert "fp16 channels_last can't run here" in found.reason


def test_rounds_that_do_not_agree_are_followed_by_more() -> None:
    """On a busy machine a few rounds may mislead. What stays unclear changes nothing."""
    machine = Machine({name: [1.0] for name in EQUAL} | {"bf16 channels_last": [0.5, 0.5, 1.5]})
    found = choose(WAYS, machine.start, {"test": "unclear"})
    assert machine.started.count("bf16 channels_last") == 2
    assert way(found) == "fp32 channels_last"


def test_a_choice_is_made_once_and_damage_is_noticed(
    cache: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    first, second = Machine(EQUAL | {"bf16 channels_last": [0.6]}), Machine(EQUAL)
    found = choose(WAYS, first.start, {"test": "once"})
    assert choose(WAYS, second.start, {"test": "once"}) == found
    assert second.started == []
    assert way(choose(WAYS, second.start, {"test": "another"})) == "fp32 channels_last"
    (place,) = [each for each in (tmp_path / "choices").iterdir() if b"takes 0.60" in each.read_bytes()]
    place.write_bytes(place.read_bytes().replace(b"0.60", b"0.10"))
    with pytest.warns(CacheWarning, match="rebuilt"):
        assert way(choose(WAYS, second.start, {"test": "once"})) == "fp32 channels_last"


def test_steps_are_few_where_they_are_slow_and_whole_groups() -> None:
    """All turns of both ways have the same number of steps, a multiple of the batches of a forward pass."""
    asked: list[int] = []

    @contextmanager
    def start(precision: str, layout: str) -> Iterator[Prepared]:
        def run(steps: int) -> Turn:
            asked.append(steps)
            return Turn(seconds=1.0, loss=0.5)

        yield Prepared(run=run, group=3)

    choose(Ways(["fp32", "bf16"], lambda precision: ["channels_last"]), start, {"test": "groups"})
    assert asked[:4] == [9] * 4  # at least FIRST_STEPS, while a turn's length isn't known
    assert len(set(asked[4:])) == 1 and asked[4] % 3 == 0 and asked[4] <= choices.MOST_STEPS


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"backbone": TINY[1], "weights": "random", "epochs": 2, "precision": AUTO, **settings})


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Decide for bf16, contiguous, whatever the steps take; they are run all the same. Returns the ways that ran."""
    started: list[str] = []

    def measured(ways: Ways, start: choices.Start) -> tuple[Choice, bool]:
        for precision in ways.precisions:
            for layout in ways.layouts(precision):
                with start(precision, layout) as prepared:
                    turns = [prepared.run(2 * prepared.group) for _ in range(2)]
                assert all(turn.seconds > 0 and turn.loss > 0 for turn in turns)
                started.append(f"{precision} {layout}")
        return Choice(precision="bf16", memory_format="contiguous", reason="a test says so"), True

    monkeypatch.setattr(choices, "_measured", measured)
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    return started


@pytest.mark.parametrize(
    "settings", [{}, {"regime": "finetune"}, {"fold": True, "lookahead": 2}, {"regime": "cached"}], ids=str
)
def test_the_chosen_way_is_what_runs(settings: dict[str, Any], mini: Splits, decided: list[str]) -> None:
    """The cell stays the one that asked for a choice, and another seed makes the same one."""
    found = train_model(config(**settings), mini, device="cpu")
    assert decided == [f"{one} {layout}" for one in ("fp32", "bf16") for layout in ("channels_last", "contiguous")]
    assert (found.config.precision, found.precision, found.memory_format) == (AUTO, "bf16", "contiguous")
    assert found.choice is not None and found.choice.reason == "a test says so"
    named = train_model(config(precision="bf16", **settings), mini, device="cpu")
    assert (named.precision, named.choice, named.memory_format) == ("bf16", None, memory_format(CPU, "bf16"))
    for one, other in zip(found.epochs, named.epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=0.02)
    assert found.epochs[0].train_loss != train_model(config(precision="fp32", **settings), mini).epochs[0].train_loss
    train_model(config(seed=1, **settings), mini, device="cpu")
    assert len(decided) == 4


def test_all_trials_of_a_cell_make_the_same_choice(mini: Splits, decided: list[str]) -> None:
    """They differ in their learning rates, and the training after them too."""
    tuned = run_protocol(config(protocol="tuned", epochs=1), mini, device="cpu")
    assert tuned.precision == "bf16"
    assert len(decided) == 4


def test_protocols_and_turns_use_the_choice(mini: Splits, decided: list[str]) -> None:
    folds = run_protocol(config(protocol="kfold", folds=2, epochs=1), mini, device="cpu")
    assert (folds.config.precision, folds.precision) == (AUTO, "bf16")
    assert len(decided) == 4
    with timed_training(config(), mini, device="cpu") as timed:
        assert timed._setup.config.precision == "bf16"
        assert timed._setup.layout == "contiguous"
    assert len(decided) == 4  # steps on the same images have been measured


def test_measuring_really_decides(mini: Splits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From start to end: whatever is fastest here, it is one of the ways, and says why."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path))
    made = chosen(config(), mini, CPU, None)
    assert made is not None
    assert made.precision in supported(CPU) and made.memory_format in LAYOUTS
    assert {each.precision for each in made.tried} == set(supported(CPU))
    losses = [each.loss for each in made.tried]
    assert None not in losses and losses == pytest.approx([losses[0]] * len(losses), rel=0.05)


def test_an_int8_backbone_and_the_tutorials_loop_have_no_choice(mini: Splits) -> None:
    made = chosen(config(regime="quantized"), mini, CPU, None)
    assert made is not None and (made.precision, made.tried) == ("fp32", ())
    with pytest.raises(NotApplicable, match="execution 'plain' chooses no precision: name one"):
        train_model(config(execution="plain"), mini, device="cpu")
    assert chosen(config(precision="fp32"), mini, CPU, None) is None


def test_supported_precisions_are_those_with_a_name() -> None:
    assert supported(CPU) == ["fp32", "bf16"]
    assert AUTO in PRECISIONS
