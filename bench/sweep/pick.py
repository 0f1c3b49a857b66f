"""Picks a backbone for a set of images in rungs: probe all, train the best for one epoch, train the rest with seeds.

Each rung is a sweep whose cells are ordinary cells. Probes and whole trainings are in one run. Trainings of one epoch
have a run beside it, since a run has one number of epochs, and so has the evaluation on test images, if there are any.
The same command continues where it ended: cells that are done are not run again, and all decisions follow from records.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from bench.analysis.groups import Group, make_groups
from bench.analysis.picking import (
    PRIORITIES,
    Candidate,
    Card,
    cards,
    chosen,
    considered,
    expected_seconds,
    first_guess,
    interval,
    survivors,
)
from bench.analysis.probe import Ranked, rank_by_probe
from bench.analysis.rising import epochs_to_try, still_rising
from bench.analysis.stats import wilson
from bench.console import say
from bench.execution.base import Executor
from bench.execution.signals import ending_as_interrupt
from bench.store.picks import PickRecord, Rung, Tested
from bench.store.records import Cell, Record
from bench.store.runs import RunFolder
from bench.sweep.describe import describe
from bench.sweep.execute import execute, executor_for
from bench.sweep.folder import check_name, held, run_folder
from bench.sweep.grid import Grid
from bench.sweep.options import Options, make_options
from bench.sweep.plan import Sweep, check_same_run, choose_grid, name_of_images, plan
from tl.datasets import DATASETS
from tl.errors import ConfigError, UserError, not_one_of
from tl.regimes import REGIMES
from tl.weights import Weights

RANKED_BY = "knn"
"""The probe that ranks backbones: no cheaper score chose better in 42,000 experiments (arXiv 2503.18528)."""
BESIDE = "-1-epoch"
"""Ending of the name of the run with trainings of one epoch."""
TESTED = "-test"
"""Ending of the name of the run that evaluates the pick on the test images."""
REPORT_SECONDS = 15.0
"""Seconds of the budget that are kept for the report."""
MOST_MISTAKEN = 60.0
"""Seconds up to which a budget may have been meant in minutes."""
MOST_TOP = 100
"""Largest value of `--tune-top`."""


Combination = tuple[str, str]
"""A backbone, and a regime that trains it."""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a pick is to find, and how long it may take."""

    top: int = 3
    """How many backbones are trained, the best by their probe. Others that are tied with the best follow while there is
    time."""
    priority: str = "accuracy"
    """What matters most: a key of `PRIORITIES`."""
    budget_seconds: float | None = None
    """Time for the whole command, in seconds; None for no limit."""

    def __post_init__(self) -> None:
        if not 1 <= self.top <= MOST_TOP:
            raise ConfigError(f"--tune-top {self.top} must be a number from 1 to {MOST_TOP}")
        if self.priority not in PRIORITIES:
            raise ConfigError(not_one_of("--priority", self.priority, PRIORITIES))
        if self.budget_seconds is not None and self.budget_seconds <= REPORT_SECONDS:
            raise ConfigError(
                f"--budget {self.budget_seconds:g}s must be more than {REPORT_SECONDS:g} s, which the report may take; "
                f"{_in_minutes(self.budget_seconds)}"
            )


@dataclass
class Budget:
    """The time of a command."""

    seconds: float | None
    """For all cells; None for no limit."""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    @property
    def left(self) -> float | None:
        """Seconds that are left; None for no limit."""
        return None if self.seconds is None else self.seconds - self.spent

    def refuses(self, expected: float | None, planned: float = 0.0) -> str:
        """Why there is no time for something of `expected` seconds after what is `planned`; empty if there is.

        With None for an unknown time it may start as long as any time is left.
        """
        if self.seconds is None:
            return ""
        left = self.seconds - self.spent - planned
        if (expected or 0.0) < left:
            return ""
        if left <= 0:
            return f"no time left of the {self.seconds:.0f} s for trainings"
        return (
            f"it would take about {expected:.0f} s, and {left:.0f} s are left of the {self.seconds:.0f} s for trainings"
        )


@dataclass(frozen=True, kw_only=True)
class _Lack:
    """The time of what was not trained."""

    seconds: float
    """0 if nothing of it is known."""
    whole: bool
    """False if more follows whose time is unknown."""

    def __str__(self) -> str:
        size = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{math.ceil(self.seconds / 60)} minutes"
        return f"{'about' if self.whole else 'at least'} {size}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a pick found, and the run that has its records."""

    record: PickRecord
    sweep: Sweep
    """The sweep of the probes, with the images and the run's folder."""


def prepare(
    data: str,
    *,
    budget_seconds: float,
    priority: str,
    top: int,
    backbones: Iterable[str] | None,
    regimes: Iterable[str] | None,
    device: str,
    precision: str,
    seeds: int | Iterable[int],
    epochs: int,
    name: str | None,
    **how: Any,
) -> tuple[Grid, Options, Aim]:
    """Make what `run_pick` takes from what a user gave; `Aim` says what it means, and `make_options` what `how` has.

    Raises `ConfigError`.
    """
    axes = {
        "backbones": backbones,
        "regimes": regimes,
        "devices": [device],
        "precision": [precision],
        "seeds": seeds,
    }
    grid = choose_grid("pick", axes, {"epochs": epochs})
    options = make_options(data=data, weights="pretrained", name=pick_name(data) if name is None else name, **how)
    return grid, options, Aim(top=top, priority=priority, budget_seconds=budget_seconds)


def run_pick(
    grid: Grid,
    options: Options,
    console: Console,
    aim: Aim,
    *,
    on_plan: Callable[[Sweep], object] = lambda sweep: None,
    on_ranking: Callable[[list[Ranked], float], object] = lambda ranking, seconds: None,
) -> Outcome | None:
    """Probe the backbones of a grid, train the most promising ones, and choose.

    Args:
        grid: its backbones are the candidates; its regimes, seeds and settings are those of the whole trainings.
        options: how to run cells, and where. `weights` must be `pretrained`: random ones choose nothing.
        console: where progress is printed.
        aim: what to find, and how long it may take.
        on_plan: called with the sweep of the probes before anything is written.
        on_ranking: called with the first answer, the backbones ranked by their probe, and the seconds so far.

    Returns None for a dry run. Raises `UserError` for mistakes that the user can correct, and if no candidate has
    pretrained weights, and `KeyboardInterrupt` for Ctrl-C: finished cells are kept, and the same call continues.
    """
    with ending_as_interrupt():
        limit = None if aim.budget_seconds is None else aim.budget_seconds - REPORT_SECONDS
        return _Rungs(grid, options, console, aim, Budget(limit), executor_for(options), on_plan, on_ranking).run()


def pick_name(data: str) -> str:
    """The default name of a pick's folder, by its images."""
    if data in DATASETS or data == "auto":
        return f"pick-{data}"
    return f"pick-{name_of_images(data)}"


def probes() -> list[str]:
    """Regimes that fit a head to kept features, the one that ranks first."""
    fitted = [name for name, regime in REGIMES.items() if regime.fit != "steps"]
    return sorted(fitted, key=lambda name: name != RANKED_BY)


def _beside(options: Options) -> Options:
    return replace(options, name=f"{options.name}{BESIDE}")


@dataclass
class _Rungs:
    """Runs one rung after the other, and notes for each backbone how far it came and why not further."""

    grid: Grid
    options: Options
    console: Console
    aim: Aim
    budget: Budget
    executor: Executor
    on_plan: Callable[[Sweep], object]
    on_ranking: Callable[[list[Ranked], float], object]
    candidates: dict[str, Candidate] = field(default_factory=dict)
    probed: dict[str, Record] = field(default_factory=dict)
    """Backbone → the record of its probe that ranks."""
    lacking: int = 0
    """How many candidates have no pretrained weights."""
    tried: dict[Combination, Record] = field(default_factory=dict)
    """Combination → its record of one epoch, if it has a result."""
    asked: dict[str, Cell] = field(default_factory=dict)
    """Id → cell of the run that this command asks for. The run may have others, of earlier commands."""
    refused: dict[Combination, float | None] = field(default_factory=dict)
    """Combination of which some cell had no time → the seconds that this cell takes, None if unknown; in order."""

    def run(self) -> Outcome | None:
        grid = self.grid.override({"regimes": probes(), "seeds": [self._seeds[0]]}, {})
        sweep = self._with_weights(plan(grid, self.options, self.executor, self.console))
        if sweep.cells:
            describe(sweep, self.console)
        self.on_plan(sweep)
        if self.options.dry_run:
            self._say_plan(sweep)
            return None
        if not sweep.cells:
            names = ", ".join(self.candidates)
            reason = next(iter(self.candidates.values())).reason
            raise UserError(f"no candidate has pretrained weights here ({names}): {reason}")
        self.options = replace(self.options, name=sweep.run.folder.name)
        self._check_beside(sweep)
        with held(sweep.run, self.options, self.console):  # also between two rungs
            # Images can't change between two rungs, and are neither looked for nor surveyed again.
            self.options = replace(self.options, fresh=False, splits=sweep.splits, survey=sweep.survey)
            self._rung(f"probe {_count(len(self._open()), 'backbone')} on features that are extracted once")
            ranking = self._probe(sweep, grid)
            first = self.budget.spent
            self.on_ranking(ranking, first)
            self._one_epoch(ranking)
            record = self._record(self._whole(sweep), first)
            try:
                record = self._tested(record, sweep)
            finally:  # Ctrl-C in the last step doesn't cost the choice
                sweep.run.write_pick(record)
        return Outcome(record=record, sweep=sweep)

    def _check_beside(self, sweep: Sweep) -> None:
        """Raise `UserError` if a run beside this one can't be used, before anything is trained."""
        check_name("--name", f"{self.options.name}{BESIDE}")
        beside = RunFolder(run_folder(replace(_beside(self.options), fresh=False)))
        if beside.exists():
            check_same_run(beside, beside.manifest(), self.grid.override({}, {"epochs": 1}), sweep.splits)

    def _with_weights(self, sweep: Sweep) -> Sweep:
        """The sweep without backbones that have no pretrained weights. Those are candidates that are not tried."""
        able = {}
        for cell_id, cell in sweep.cells.items():
            answer, name = sweep.weights[cell_id], cell.config.backbone
            if isinstance(answer, Weights):
                able[cell_id] = cell
                self.candidates.setdefault(name, Candidate(backbone=name, rung="not tried"))
            else:
                self.candidates[name] = Candidate(
                    backbone=name, rung="not tried", reason=answer.removeprefix(f"{name}: ")
                )
        self.lacking = sum(bool(one.reason) for one in self.candidates.values())
        return replace(sweep, cells=able)

    def _open(self) -> list[str]:
        """Backbones with pretrained weights."""
        return [name for name, one in self.candidates.items() if not one.reason]

    def _say_plan(self, sweep: Sweep) -> None:
        say(self.console, f"would probe: {', '.join(self._open()) or 'none'}")
        for one in self.candidates.values():
            if one.reason:
                say(self.console, f"not tried:   {one.backbone}: {one.reason}", style="yellow")
        say(
            self.console,
            f"would train: the best {self.aim.top} by their probe, {' and '.join(self.grid.matrix.regimes)}, for one "
            f"epoch; then what is not clearly worse for {_count(self._epochs, 'epoch')} with "
            f"{_count(len(self._seeds), 'seed')}",
        )

    @property
    def _seeds(self) -> Sequence[int]:
        seeds = self.grid.matrix.seeds
        return range(seeds) if isinstance(seeds, int) else seeds

    @property
    def _epochs(self) -> int:
        return int(self.grid.shared_settings["epochs"])

    def _rung(self, text: str) -> None:
        say(self.console, f"{self.budget.spent:4.0f} s: {text}", style="bold")

    def _execute(
        self, sweep: Sweep, grid: Grid, options: Options, expected: Mapping[str, float | None]
    ) -> list[Record]:
        """Run the cells of a sweep as long as there is time. `expected` has the seconds of cells, by id.

        A cell that there is no time for has no record, and `Candidate.reason` says why. Returns the records of the
        sweep.
        """

        def admit(cell: Cell) -> bool:
            return self._has_time((cell.config.backbone, cell.config.regime), expected.get(cell.id))

        # A cell that takes longer than was expected ends with the budget.
        if (left := self.budget.left) is not None and self.executor.has_limits:
            options = replace(options, timeout=max(1.0, min(left, options.timeout or left)))
        records = execute(sweep, grid, replace(options, admit=admit), self.executor, self.console)
        for record in records.values():
            if record.status != "done":
                self._note(record.cell.config.backbone, f"{record.cell.config.regime}: {record.reason}")
        return [record for cell_id, record in records.items() if cell_id in sweep.cells]

    def _has_time(self, combination: Combination, expected: float | None, planned: float = 0.0) -> bool:
        """True if there is time for a cell after what is planned; else it is noted what was refused, and why."""
        reason = self.budget.refuses(expected, planned)
        if reason and combination not in self.refused:
            self.refused[combination] = expected
            self._note(combination[0], f"{combination[1]}: {reason}")
        return not reason

    def _able(
        self, wanted: Iterable[Combination], sweep: Sweep, seconds: Callable[[Cell], float | None]
    ) -> tuple[Sweep, dict[str, float | None]]:
        """The part of a sweep with the combinations that there is time for, in the order given, and what each takes.

        What is done already takes no time.
        """
        cells = {(cell.config.backbone, cell.config.regime): cell for cell in sweep.cells.values()}
        expected: dict[str, float | None] = {}
        planned = 0.0
        for combination in wanted:
            cell = cells[combination]
            needed = 0.0 if cell.id in sweep.done else seconds(cell)
            if cell.id in sweep.done or self._has_time(combination, needed, planned):
                expected[cell.id] = needed
                planned += needed or 0.0
        return replace(sweep, cells={cell_id: sweep.cells[cell_id] for cell_id in expected}), expected

    def _note(self, backbone: str, reason: str) -> None:
        """Add a reason why something of a backbone came no further."""
        one = self.candidates[backbone]
        if reason not in one.reason:
            self.candidates[backbone] = replace(one, reason="; ".join(filter(None, (one.reason, reason))))

    def _probe(self, sweep: Sweep, grid: Grid) -> list[Ranked]:
        """Run the probes, and return the backbones in the order of their score on training images alone.

        First come those that rank: they extract the features, and say what each network costs in use.
        """
        self.asked |= sweep.cells
        records: list[Record] = []
        for first in (True, False):
            cells = {key: cell for key, cell in sweep.cells.items() if (cell.config.regime == RANKED_BY) is first}
            if not cells:
                continue
            part = plan(grid, self.options, self.executor, Console(quiet=True)) if records else sweep
            options = replace(self.options, inference=first)
            records += self._execute(replace(part, cells=cells), grid, options, {})
        ranking = rank_by_probe(records, regime=RANKED_BY)
        for one in ranking:
            self.candidates[one.backbone] = replace(self.candidates[one.backbone], rung="probe", ranked=one)
        self.probed = {
            record.cell.config.backbone: record
            for record in sorted(records, key=lambda record: record.cell.config.regime == RANKED_BY)
            if record.result
        }
        return ranking

    def _one_epoch(self, ranking: list[Ranked]) -> None:
        """Train the best backbones for one epoch."""
        first, others = ranking[: self.aim.top], ranking[self.aim.top :]
        for one in others:
            if not one.tied:
                self._note(one.backbone, f"its probe is clearly below the best, and not among the best {self.aim.top}")
        options = _beside(self.options)
        # Ties of the best come after the others have had their turn, one by one, while there is time.
        later = [[one.backbone] for one in others if one.tied]
        for names in filter(None, ([one.backbone for one in first], *later)):
            grid = self.grid.override({"backbones": names, "seeds": [self._seeds[0]]}, {"epochs": 1})
            sweep = plan(grid, options, self.executor, Console(quiet=True))
            wanted = sorted(
                ((cell.config.backbone, cell.config.regime) for cell in sweep.cells.values()),
                key=lambda combination: names.index(combination[0]),
            )
            able, expected = self._able(wanted, sweep, self._guess)
            if not able.cells:
                continue
            self._rung(f"train {_count(len(able.cells), 'combination')} for one epoch: {', '.join(names)}")
            for record in self._execute(able, grid, options, expected):
                if record.result:
                    self.tried[record.cell.config.backbone, record.cell.config.regime] = record
                    self._came("one epoch", record.cell.config.backbone)

    def _came(self, rung: Rung, backbone: str) -> None:
        self.candidates[backbone] = replace(self.candidates[backbone], rung=rung)

    def _guess(self, cell: Cell) -> float | None:
        """Seconds that one epoch takes, by the backbone's probe; None if unknown."""
        probe, splits = self.probed.get(cell.config.backbone), self.options.splits
        if probe is None or probe.result is None or splits is None:
            return None
        images = len(splits.train) + len(splits.val)
        return first_guess(probe.result, probe.wall_seconds, cell.config.regime, images, len(splits.train))

    def _whole(self, probed: Sweep) -> list[Group]:
        """Train with one seed after the other what is not clearly worse. Returns all groups that were asked for."""
        left = self._after_one_epoch(self._groups(self.tried.values(), probed))
        kept = {_combination(group) for group in left}
        for backbone, regime in self.tried.keys() - kept:
            some_left = any(name == backbone for name, _ in kept)
            which = f"{regime}: " if some_left else ""
            self._note(backbone, f"{which}after one epoch it is clearly less accurate than the best")
        records: dict[str, Record] = {}
        for seed in self._seeds:
            records |= self._seed(seed, [_combination(group) for group in left])
            left = survivors(self._groups(records.values(), probed)) or left
        found = probed.run.records()
        return self._groups((found[cell_id] for cell_id in self.asked if cell_id in found), probed)

    def _after_one_epoch(self, groups: list[Group]) -> list[Group]:
        """Those that are not clearly worse than the best of their regime, in the order of their accuracy.

        Regimes are not compared yet: fine-tuning has the slower start, and says little of its end after one epoch.
        """
        left = [
            group
            for regime in dict.fromkeys(group.config.regime for group in groups)
            for group in survivors([group for group in groups if group.config.regime == regime])
        ]
        return sorted(left, key=lambda group: -(group.accuracy or 0.0))

    def _seed(self, seed: int, wanted: Sequence[Combination]) -> dict[str, Record]:
        """Train combinations with one seed, in the order given as far as there is time. Returns id → record."""
        if not wanted:
            return {}
        names = list(dict.fromkeys(backbone for backbone, _ in wanted))
        grid = self.grid.override({"backbones": names, "seeds": [seed]}, {})
        sweep = plan(grid, self.options, self.executor, Console(quiet=True))
        able, expected = self._able(wanted, sweep, self._whole_seconds)
        if not able.cells:
            return {}
        self.asked |= able.cells
        self._rung(f"train {_count(len(able.cells), 'combination')} for {_count(self._epochs, 'epoch')}, seed {seed}")
        records = self._execute(able, grid, self.options, expected)
        for record in records:
            if record.result:
                self._came("trained", record.cell.config.backbone)
        return {record.cell_id: record for record in records}

    def _whole_seconds(self, cell: Cell) -> float | None:
        """Seconds of a whole training, by that of one epoch; None if that has no result, or other epochs train more."""
        record = self.tried.get((cell.config.backbone, cell.config.regime))
        if record is None or record.result is None or REGIMES[cell.config.regime].trainable.in_turn:
            return None
        return expected_seconds(record.result, record.wall_seconds, self._epochs)

    def _groups(self, records: Iterable[Record], sweep: Sweep) -> list[Group]:
        run, labels = sweep.run.folder.name, sweep.splits.val.labels
        return make_groups(((run, record) for record in records), {run: labels})

    def _record(self, groups: list[Group], first_answer_seconds: float) -> PickRecord:
        """The outcome, from all groups of the run."""
        candidates = [
            replace(one, groups=tuple(group for group in groups if group.config.backbone == name))
            for name, one in self.candidates.items()
        ]
        rated = [group for group in groups if group.accuracy is not None]
        found = cards(rated)
        why = self._why_none(rated, found)
        return PickRecord(
            command=self.options.command,
            ended=datetime.now(UTC),
            priority=self.aim.priority,
            cards={} if why else {card.priority: chosen(card) for card in found},
            why_none=why,
            candidates=considered(candidates),
            more=tuple(self._more(found)),
            notes=tuple(self._notes(groups)),
            val_images=len(groups[0].truth) if groups else 0,
            first_answer_seconds=first_answer_seconds,
            seconds=self.budget.spent,
        )

    def _tested(self, record: PickRecord, sweep: Sweep) -> PickRecord:
        """The outcome with what the pick does on the test images, if there are any and there is time.

        It is trained again, with its first seed: a run keeps no network. Only here is a test image decoded.
        """
        pick = record.pick
        if pick is None or sweep.splits.test is None:
            return record
        images = _count(len(sweep.splits.test), "test image")

        def without(why: str) -> PickRecord:
            return record.replace(notes=(*record.notes, f"The {images} {why}."))

        seed = self.asked[pick.cell].config.seed
        grid = self.grid.override({"backbones": [pick.backbone], "regimes": [pick.regime], "seeds": [seed]}, {})
        options = replace(self.options, name=f"{self.options.name}{TESTED}")
        try:
            options = replace(options, splits=sweep.splits.for_test(), survey=None)
            planned = plan(grid, options, self.executor, Console(quiet=True))
            why = "" if planned.done else self.budget.refuses(2 * (pick.seconds_to_train or 0.0))
            if why:
                return without(f"were not used: {why}")
            self._rung(f"evaluate the pick on {images}, which played no part in the choice")
            (found,) = execute(planned, grid, options, self.executor, self.console).values()
        except UserError as error:  # such as a damaged image, which nobody has looked at before
            return without(f"can't be used: {error}")
        if found.result is None:
            return without(f"were not evaluated: {found.reason}")
        truth = planned.splits.val.labels
        right = sum(label == true for label, true in zip(found.result.last.labels, truth, strict=True))
        share = wilson(right, len(truth))
        looks, notes = len(planned.run.records()), list(record.notes)
        # In this data set the test images are those for validation; what the pick was chosen by is in neither part.
        if leaked := planned.survey.duplicates_across_splits.count:
            what = "repeats a training image" if leaked == 1 else "repeat training images"
            notes.append(f"{leaked} of the {images} {what}, so the accuracy on them is too high for new images.")
        if looks > 1:
            notes.append(f"The {images} have been used for {looks} picks by now, so they are no longer quite new.")
        return record.replace(
            test=Tested(images=len(truth), accuracy=share.value, low=share.low, high=share.high),
            notes=tuple(notes),
            seconds=self.budget.spent,
        )

    def _why_none(self, rated: list[Group], found: list[Card]) -> str:
        """Why nothing is picked; empty if something is."""
        if not rated:
            return "no training has a result"
        if len(rated) == 1:
            return f"only {rated[0].label} has a result, and there is nothing to compare it with"
        with_result = {group.config.backbone for group in rated}
        if len(with_result) == 1 and (rivals := len(self.candidates) - 1):
            (only,) = with_result
            return (
                f"only {only} has a result, and {_count(rivals, 'rival')} {'has' if rivals == 1 else 'have'} none; "
                f"`--backbone {only}` picks how to train it"
            )
        if not found:
            largest = rated[0].largest_class
            return f"nothing beats always answering {largest[0] if largest else ''!r}, the largest class"
        if not any(card.priority == self.aim.priority for card in found):
            return f"--priority {self.aim.priority}: no training has a figure for it"
        return ""

    def _more(self, found: list[Card]) -> Iterator[str]:
        """What would change the answer."""
        if self.refused:
            yield self._with_more_time()
        if self.lacking:
            yield (
                f"With their pretrained weights, downloaded or in --weights-dir, "
                f"{_count(self.lacking, 'more candidate')} could be tried."
            )
        if tied := next((card for card in found if card.tied), None):
            width = interval(tied.group)
            known = f"give an accuracy to ±{50 * (width.high - width.low):.1f} points" if width else "give none"
            yield f"With more images: {len(tied.group.truth)} validation images {known}."

    def _with_more_time(self) -> str:
        """What could be trained with a larger budget, and how long the least and all of it take."""
        lacks = {combination: self._lacks(combination) for combination in self.refused}
        names = {combination: " ".join(combination) for combination in lacks}
        known = {combination: lack for combination, lack in lacks.items() if lack.seconds}
        text = f"With more time (--budget), {'this' if len(lacks) == 1 else 'these'} could be trained: "
        text += f"{', '.join(sorted(names.values()))}."
        if known:
            least = min(known, key=lambda combination: known[combination].seconds)
            whole = _Lack(
                seconds=sum(lack.seconds for lack in known.values()), whole=all(lack.whole for lack in lacks.values())
            )
            if len(lacks) == 1:
                text += f" It takes {whole}."
            else:
                text += f" {names[least]} alone takes {known[least]}, all {len(lacks)} together take {whole}."
        if self.aim.budget_seconds is not None and self.aim.budget_seconds <= MOST_MISTAKEN:
            text += f" {_in_minutes(self.aim.budget_seconds)}."
        return text

    def _lacks(self, combination: Combination) -> _Lack:
        """The time of the cells of a combination that have no record."""
        record = self.tried.get(combination)
        one = None if record is None else self._whole_seconds(record.cell)
        if one is None:
            return _Lack(seconds=self.refused[combination] or 0.0, whole=False)
        ended = sum((cell.config.backbone, cell.config.regime) == combination for cell in self.asked.values())
        return _Lack(seconds=(len(self._seeds) - ended) * one, whole=True)

    def _notes(self, groups: list[Group]) -> Iterator[str]:
        """What a reader of the accuracies must know."""
        yield "The choice was made by these accuracies, so that of the pick is optimistic."
        if rising := [group for group in groups if still_rising(group)]:
            names = ", ".join(group.label for group in rising)
            more = epochs_to_try(rising[0])
            yield f"Accuracy was still rising at the last epoch: {names}; try --epochs {more} --fresh."


def _combination(group: Group) -> Combination:
    return group.config.backbone, group.config.regime


def _in_minutes(seconds: float) -> str:
    """How a budget of so many minutes is written."""
    minutes = "1 minute" if seconds == 1 else f"{seconds:g} minutes"
    return f"`--budget {seconds:g}m` is {minutes}, a number alone is seconds"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
