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
    still_rising,
    survivors,
)
from bench.analysis.probe import Ranked, rank_by_probe
from bench.analysis.stats import wilson
from bench.console import say
from bench.execution.base import Executor
from bench.execution.signals import ending_as_interrupt
from bench.store.picks import PickRecord, Rung, Tested
from bench.store.records import Cell, Record
from bench.sweep.describe import describe
from bench.sweep.execute import execute, executor_for
from bench.sweep.folder import held
from bench.sweep.grid import Grid
from bench.sweep.options import Options
from bench.sweep.plan import Sweep, name_of_images, plan
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
MOST_TOP = 100
"""Largest value of `--tune-top`."""


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
                f"--budget {self.budget_seconds:g}s must be more than {REPORT_SECONDS:g} s, which the report may take"
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
        return f"it would take about {expected:.0f} s, and {left:.0f} of {self.seconds:.0f} s for trainings are left"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a pick found, and the run that has its records."""

    record: PickRecord
    sweep: Sweep
    """The sweep of the probes, with the images and the run's folder."""


def run_pick(
    grid: Grid,
    options: Options,
    console: Console,
    aim: Aim,
    *,
    on_ranking: Callable[[list[Ranked], float], object] = lambda ranking, seconds: None,
) -> Outcome | None:
    """Probe the backbones of a grid, train the most promising ones, and choose.

    Args:
        grid: its backbones are the candidates; its regimes, seeds and settings are those of the whole trainings.
        options: how to run cells, and where. `weights` must be `pretrained`: random ones choose nothing.
        console: where progress is printed.
        aim: what to find, and how long it may take.
        on_ranking: called with the first answer, the backbones ranked by their probe, and the seconds so far.

    Returns None for a dry run. Raises `UserError` for mistakes that the user can correct, and if no candidate has
    pretrained weights, and `KeyboardInterrupt` for Ctrl-C: finished cells are kept, and the same call continues.
    """
    with ending_as_interrupt():
        limit = None if aim.budget_seconds is None else aim.budget_seconds - REPORT_SECONDS
        return _Rungs(grid, options, console, aim, Budget(limit), executor_for(options), on_ranking).run()


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
    on_ranking: Callable[[list[Ranked], float], object]
    candidates: dict[str, Candidate] = field(default_factory=dict)
    probed: dict[str, Record] = field(default_factory=dict)
    """Backbone → the record of its probe that ranks."""
    lacking: int = 0
    """How many candidates have no pretrained weights."""
    refused: dict[tuple[str, str], float] = field(default_factory=dict)
    """Backbone and regime that there was no time for → the seconds that all its seeds would take, 0 if unknown."""

    def run(self) -> Outcome | None:
        whole = self.grid.override({"regimes": probes(), "seeds": 1}, {})
        sweep = plan(whole, self.options, self.executor, self.console)
        sweep = self._with_weights(sweep)
        if sweep.cells:
            describe(sweep, self.console)
        if self.options.dry_run:
            self._say_plan(sweep)
            return None
        if not sweep.cells:
            names = ", ".join(self.candidates)
            reason = next(iter(self.candidates.values())).reason
            raise UserError(f"no candidate has pretrained weights here ({names}): {reason}")
        with held(sweep.run, self.options, self.console):  # also between two rungs
            self.options = replace(self.options, fresh=False, name=sweep.run.folder.name)
            self._rung(f"probe {_count(len(self._open()), 'backbone')} on features that are extracted once")
            ranking = self._probe(sweep, whole)
            first = self.budget.spent
            self.on_ranking(ranking, first)
            tried = self._one_epoch(ranking)
            record = self._tested(self._record(self._whole(tried, sweep), first), sweep)
            sweep.run.write_pick(record)
        return Outcome(record=record, sweep=sweep)

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
            f"epoch; then what is not clearly worse for {self._epochs} epochs with "
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

        records = execute(sweep, grid, replace(options, admit=admit), self.executor, self.console)
        for record in records.values():
            if record.status != "done":
                self._note(record.cell.config.backbone, f"{record.cell.config.regime}: {record.reason}")
        return [record for cell_id, record in records.items() if cell_id in sweep.cells]

    def _has_time(self, combination: tuple[str, str], expected: float | None, planned: float = 0.0) -> bool:
        """True if there is time for a cell after what is planned; else it is noted what was refused, and why."""
        reason = self.budget.refuses(expected, planned)
        if reason:
            self.refused[combination] = self.refused.get(combination, 0.0) + (expected or 0.0)
            self._note(combination[0], f"{combination[1]}: {reason}")
        return not reason

    def _note(self, backbone: str, reason: str) -> None:
        self.candidates[backbone] = replace(self.candidates[backbone], reason=reason)

    def _probe(self, sweep: Sweep, grid: Grid) -> list[Ranked]:
        """Run the probes, and return the backbones in the order of their score on training images alone."""
        measured = self.aim.priority == "inference"
        records = self._execute(sweep, grid, replace(self.options, inference=measured), {})
        ranking = rank_by_probe(records, regime=RANKED_BY)
        for one in ranking:
            self.candidates[one.backbone] = replace(self.candidates[one.backbone], rung="probe", ranked=one)
        self.probed = {
            record.cell.config.backbone: record
            for record in sorted(records, key=lambda record: record.cell.config.regime == RANKED_BY)
            if record.result
        }
        return ranking

    def _one_epoch(self, ranking: list[Ranked]) -> dict[tuple[str, str], Record]:
        """Train the best backbones for one epoch. Returns backbone and regime → record."""
        first, later = ranking[: self.aim.top], [one for one in ranking[self.aim.top :] if one.tied]
        for one in ranking[self.aim.top + len(later) :]:
            self._note(one.backbone, f"its probe is clearly below the best, and not among the first {self.aim.top}")
        found: dict[tuple[str, str], Record] = {}
        options = _beside(self.options)
        # Ties of the best come after the others have had their turn, one by one, while there is time.
        for names in ([one.backbone for one in first], *([one.backbone] for one in later)):
            if not names:
                continue
            grid = self.grid.override({"backbones": names, "seeds": 1}, {"epochs": 1})
            sweep = plan(grid, options, self.executor, Console(quiet=True))
            self._rung(f"train {_count(len(sweep.cells), 'combination')} for one epoch: {', '.join(names)}")
            expected = {cell_id: self._guess(cell, sweep) for cell_id, cell in sweep.cells.items()}
            for record in self._execute(sweep, grid, options, expected):
                if record.result:
                    found[record.cell.config.backbone, record.cell.config.regime] = record
                    self._came("one epoch", record.cell.config.backbone)
        return found

    def _came(self, rung: Rung, backbone: str) -> None:
        self.candidates[backbone] = replace(self.candidates[backbone], rung=rung)

    def _guess(self, cell: Cell, sweep: Sweep) -> float | None:
        probe = self.probed.get(cell.config.backbone)
        if probe is None or probe.result is None:
            return None
        images = len(sweep.splits.train) + len(sweep.splits.val)
        return first_guess(probe.result, probe.wall_seconds, cell.config.regime, images, len(sweep.splits.train))

    def _whole(self, tried: Mapping[tuple[str, str], Record], probed: Sweep) -> list[Group]:
        """Train with one seed after the other what is not clearly worse. Returns all groups of the run."""
        left = self._after_one_epoch(self._groups(tried.values(), probed))
        kept = {_combination(group) for group in left}
        for backbone in dict.fromkeys(name for name, _ in tried):
            if not any(name == backbone for name, _ in kept):
                self._note(backbone, "after one epoch it is clearly less accurate than the best")
        records: dict[str, Record] = {}
        for seed in self._seeds:
            ended = self._seed(seed, [_combination(group) for group in left], tried)
            if not ended:
                break
            records |= ended
            left = survivors(self._groups(records.values(), probed))
        everything = probed.run.records().values()
        return self._groups(everything, probed)

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

    def _seed(
        self, seed: int, wanted: Sequence[tuple[str, str]], tried: Mapping[tuple[str, str], Record]
    ) -> dict[str, Record]:
        """Train combinations with one seed, in the order given as far as there is time. Returns id → record."""
        if not wanted:
            return {}
        names = list(dict.fromkeys(backbone for backbone, _ in wanted))
        grid = self.grid.override({"backbones": names, "seeds": [seed]}, {})
        sweep = plan(grid, self.options, self.executor, Console(quiet=True))
        cells = {(cell.config.backbone, cell.config.regime): cell for cell in sweep.cells.values()}
        able: dict[str, Cell] = {}
        expected: dict[str, float | None] = {}
        planned = 0.0
        for combination in wanted:
            cell = cells[combination]
            seconds = 0.0 if cell.id in sweep.done else self._whole_seconds(tried[combination])
            if cell.id in sweep.done or self._has_time(combination, seconds, planned):
                able[cell.id], expected[cell.id] = cell, seconds
                planned += seconds
        if not able:
            return {}
        self._rung(f"train {_count(len(able), 'combination')} for {self._epochs} epochs, seed {seed}")
        # One seed is enough to say what each network costs in use.
        options = replace(self.options, inference=seed == self._seeds[0])
        records = self._execute(replace(sweep, cells=able), grid, options, expected)
        for record in records:
            if record.result:
                self._came("trained", record.cell.config.backbone)
        return {record.cell_id: record for record in records}

    def _whole_seconds(self, record: Record) -> float:
        assert record.result is not None
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
        if why := self.budget.refuses(2 * (pick.seconds_to_train or 0.0)):
            return record.replace(notes=(*record.notes, f"The {images} were not looked at: {why}."))
        self._rung(f"the pick on {images}, which nothing was chosen by")
        seed = sweep.run.records()[pick.cell].cell.config.seed
        axes = {"backbones": [pick.backbone], "regimes": [pick.regime], "seeds": [seed]}
        grid = self.grid.override(axes, {})
        try:
            options = replace(self.options, name=f"{self.options.name}{TESTED}", splits=sweep.splits.for_test())
            planned = plan(grid, options, self.executor, Console(quiet=True))
        except UserError as error:  # such as a damaged image, which nobody has looked at before
            return record.replace(notes=(*record.notes, f"The {images} can't be used: {error}."))
        for one in execute(planned, grid, options, self.executor, self.console).values():
            if one.result is None:
                return record.replace(notes=(*record.notes, f"The {images} were not evaluated: {one.reason}."))
            right = sum(a == b for a, b in zip(one.result.last.labels, planned.splits.val.labels, strict=True))
            share = wilson(right, len(planned.splits.val))
            tested = Tested(images=len(planned.splits.val), accuracy=share.value, low=share.low, high=share.high)
            record = record.replace(test=tested, seconds=self.budget.spent)
        return record

    def _why_none(self, rated: list[Group], found: list[Card]) -> str:
        """Why nothing is picked; empty if something is."""
        if not rated:
            return "no training has a result"
        if len(rated) == 1:
            return f"only {rated[0].label} has a result, and there is nothing to compare it with"
        if not found:
            largest = rated[0].largest_class
            return f"nothing beats always answering {largest[0] if largest else ''!r}, the largest class"
        if not any(card.priority == self.aim.priority for card in found):
            return f"--priority {self.aim.priority}: no training has what it is chosen by"
        return ""

    def _more(self, found: list[Card]) -> Iterator[str]:
        """What would change the answer."""
        if self.refused:
            names = ", ".join(f"{backbone} {regime}" for backbone, regime in self.refused)
            seconds = sum(self.refused.values())
            about = f"about {math.ceil(seconds / 60)} more minutes" if seconds else "more time"
            yield f"With {about} (--budget): {names}."
        if self.lacking:
            yield (
                f"With their pretrained weights, from a network or in --weights-dir, "
                f"{_count(self.lacking, 'more candidate')} could be tried."
            )
        if tied := next((card for card in found if card.tied), None):
            width = interval(tied.group)
            half = f"±{50 * (width.high - width.low):.1f} points" if width else "too little"
            yield f"With more images: {len(tied.group.truth)} for validation know an accuracy to {half}."

    def _notes(self, groups: list[Group]) -> Iterator[str]:
        """What a reader of the accuracies must know."""
        yield "The accuracies are those that the choice was made by, so that of the pick is slightly optimistic."
        if rising := [group.label for group in groups if still_rising(group)]:
            yield (
                f"The loss was still falling at the last of {self._epochs} epochs for {', '.join(rising)}: "
                f"try --epochs {2 * self._epochs}."
            )


def _combination(group: Group) -> tuple[str, str]:
    return group.config.backbone, group.config.regime


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
