"""What a report says, worked out from records; how it looks is decided elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.claims import HALF_THE_TIME, Verdict, can_be_judged
from bench.prediction import Prediction, predict
from bench.records import Cell, Manifest, Record, Run
from bench.stats import Interval, holm, mcnemar, ratio_of_medians, wilson
from tl.config import TrainConfig
from tl.regimes import REGIMES
from tl.results import TrainResult

AXES = ("backbone", "regime", "precision", "seed", "weights")
"""Fields of a config that every table shows, or that make up a group."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The finished cells of a run that differ in their seed alone."""

    run: str
    cell: Cell
    """With seed 0, whichever seeds there are."""
    records: tuple[Record, ...]
    truth: tuple[int, ...]
    """True labels of the validation images."""

    @property
    def config(self) -> TrainConfig:
        """Of all its cells, but for the seed."""
        return self.cell.config

    @property
    def results(self) -> list[TrainResult]:
        """One a seed."""
        return [record.result for record in self.records if record.result]

    @property
    def counted(self) -> TrainResult:
        """The first result whose work was counted, else the first."""
        return next((result for result in self.results if result.work), self.results[0])

    @property
    def label(self) -> str:
        """Backbone and regime, for a sentence."""
        return f"{self.config.backbone} {self.config.regime}"

    @property
    def accuracy(self) -> float | None:
        """Mean best accuracy over seeds; None where it says nothing (random weights in place of pretrained ones)."""
        values = [r.val_accuracy_best for r in self.results if r.accuracy_counts]
        return statistics.fmean(values) if values else None

    @property
    def accuracy_interval(self) -> Interval | None:
        """Wilson 95% interval of the best accuracy, with one seed."""
        if len(self.results) != 1 or self.accuracy is None:
            return None
        return wilson(round(self.accuracy * len(self.truth)), len(self.truth))

    def median(self, figure: Callable[[TrainResult], float | None]) -> float | None:
        """Median over seeds of a figure; None where no seed has it."""
        values = [value for result in self.results if (value := figure(result)) is not None]
        return statistics.median(values) if values else None

    @property
    def seconds(self) -> float:
        """Median time of an epoch; infinite where it is not known."""
        value = self.median(lambda result: result.epoch_seconds)
        return float("inf") if value is None else value

    @property
    def warm_epochs(self) -> list[float]:
        """Seconds of every epoch but the first, all seeds together."""
        rows = (row for result in self.results for row in result.epochs[1:])
        return [row.seconds for row in rows if row.seconds is not None]

    def right(self) -> dict[int, list[bool]]:
        """Seed → whether each validation image was judged right at the best epoch."""
        return {
            record.cell.config.seed: [a == b for a, b in zip(record.result.best.labels, self.truth, strict=True)]
            for record in self.records
            if record.result
        }


@dataclass(frozen=True, kw_only=True)
class HeadOnly:
    """Training only the head against fine-tuning, all else being equal."""

    slow: Group
    fast: Group
    speed_up: Interval | None
    verdict: Verdict
    prediction: Prediction | None
    """From the counted work; None where that was not counted."""
    memory_saved_bytes: float | None
    accuracy_difference: float | None
    """Best accuracy of head-only minus fine-tuned, over the seeds that both have."""
    accuracy_p: float | None
    """Exact McNemar, adjusted over all comparisons and seeds of the report; None where nothing can be paired."""

    @property
    def judged(self) -> Interval | None:
        """The speed-up, where it can be judged."""
        return self.speed_up if self.speed_up and can_be_judged(self.speed_up) else None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to use on one device."""

    run: str
    device: str
    best: Group
    pick: Group
    """The quickest of those that can't be told from the best."""
    tied: int
    """How many other groups can't be told from the best."""
    left_out: tuple[str, ...]
    """Backbones without pretrained weights."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that a report shows."""

    name: str
    runs: tuple[tuple[str, Manifest], ...]
    groups: tuple[Group, ...]
    comparisons: tuple[HeadOnly, ...]
    choices: tuple[Choice, ...]
    records: tuple[tuple[str, Record], ...]
    missing: tuple[tuple[str, Cell], ...]

    @property
    def unfinished(self) -> list[Record]:
        """Records without a result."""
        return [record for _, record in self.records if record.status != "done"]

    @property
    def stand_ins(self) -> list[str]:
        """Why images are drawn ones, each reason once."""
        return list(dict.fromkeys(m.dataset.stand_in for _, m in self.runs if m.dataset.stand_in))

    @property
    def commands(self) -> list[str]:
        """What was typed, each command once."""
        return list(dict.fromkeys(call.command for _, manifest in self.runs for call in manifest.invocations))

    @property
    def machines(self) -> list[str]:
        """What the figures were measured on, each machine and set of libraries once."""
        names: dict[str, None] = {}
        for _, record in self.records:
            gpu = record.result.device_name if record.result and record.cell.device != "cpu" else ""
            names[f"{gpu}; {record.environment}" if gpu else str(record.environment)] = None
        return list(names)

    @property
    def not_frozen(self) -> list[Record]:
        """Cells whose backbone should have stayed as it was and didn't."""
        return [record for _, record in self.records if record.result and record.result.frozen_verified is False]

    @property
    def random_weights(self) -> dict[str, str]:
        """Backbones that have random weights where pretrained ones belong, with the reason."""
        return {
            record.cell.config.backbone: record.weights.reason or "random weights were asked for"
            for _, record in self.records
            if record.weights and record.result and not record.result.accuracy_counts
        }

    @property
    def notes(self) -> list[str]:
        """What cells noted of themselves, each once: odd batches, losses that overflowed."""
        said = (n for _, record in self.records if record.result for n in record.result.notes)
        told = (*(f"the images are {reason}" for reason in self.stand_ins), *self.random_weights.values())
        return [note for note in dict.fromkeys(said) if not any(note.endswith(reason) for reason in told)]

    @property
    def settings(self) -> list[str]:
        """Fields of a config, other than those shown anyway, in which the groups differ: they need a column."""
        fields = [name for name in TrainConfig.model_fields if name not in AXES]
        return [name for name in fields if len({getattr(group.config, name) for group in self.groups}) > 1]

    def short(self, group: Group) -> str:
        """The least that tells a group from those of other backbones, devices, runs and settings in this report."""
        bare = group.config.backbone.partition(":")[2]
        specs = {g.config.backbone for g in self.groups if g.config.backbone.partition(":")[2] == bare}
        parts = [bare if len(specs) == 1 else group.config.backbone]
        if len({g.cell.device for g in self.groups}) > 1:
            parts.append(group.cell.device)
        if len({g.config.precision for g in self.groups}) > 1:
            parts.append(group.config.precision)
        kinds = {
            other.config.weights
            for other in self.groups
            if other.config.backbone == group.config.backbone and REGIMES[other.config.regime].start == "pretrained"
        }
        if len(kinds) > 1:
            parts.append(f"{group.config.weights} weights")
        parts += [f"{name} {getattr(group.config, name)}" for name in self.settings]
        if len(self.runs) > 1:
            parts.append(group.run)
        return " · ".join(parts)


def summarise(runs: Iterable[Run], name: str) -> Summary:
    """Read runs and work out what there is to say. Raises `UserError` for a run that can't be read."""
    manifests, records, missing = [], [], []
    for run in runs:
        manifest, found = run.manifest(), run.records()
        manifests.append((run.name, manifest))
        records += [(run.name, record) for record in found.values()]
        missing += [(run.name, cell) for cell_id, cell in manifest.cells.items() if cell_id not in found]
    groups = _groups(records, {name: manifest.dataset.val_labels for name, manifest in manifests})
    return Summary(
        name=name,
        runs=tuple(manifests),
        groups=tuple(groups.values()),
        comparisons=tuple(_comparisons(groups)),
        choices=tuple(_choices(list(groups.values()))),
        records=tuple(records),
        missing=tuple(missing),
    )


def _groups(records: list[tuple[str, Record]], truths: dict[str, tuple[int, ...]]) -> dict[tuple[str, str], Group]:
    """By run and id of the cell with seed 0."""
    found: dict[tuple[str, str], list[Record]] = {}
    for run, record in records:
        if record.status == "done":
            found.setdefault((run, record.cell.but(seed=0).id), []).append(record)
    return {
        key: Group(run=key[0], cell=some[0].cell.but(seed=0), records=tuple(some), truth=truths[key[0]])
        for key, some in found.items()
    }


def _comparisons(groups: dict[tuple[str, str], Group]) -> list[HeadOnly]:
    pairs = []
    for (run, _), fast in groups.items():
        slow = groups.get((run, fast.cell.but(regime="finetune").id))
        regime = REGIMES[fast.config.regime]
        if slow and not regime.trains_backbone and not regime.control:
            pairs.append((slow, fast))
    adjusted = _adjusted_p(pairs)
    return [_compare(slow, fast, p) for (slow, fast), p in zip(pairs, adjusted, strict=True)]


def _compare(slow: Group, fast: Group, p: float | None) -> HeadOnly:
    speed_up = None
    if slow.warm_epochs and fast.warm_epochs:
        speed_up = ratio_of_medians(slow.warm_epochs, fast.warm_epochs)
    memory = [group.median(lambda r: r.peak_memory_bytes) for group in (slow, fast)]
    saved = None if memory[0] is None or memory[1] is None else memory[0] - memory[1]
    difference = None
    if slow.accuracy is not None and fast.accuracy is not None:
        one, other = slow.right(), fast.right()
        paired = [statistics.fmean(other[seed]) - statistics.fmean(one[seed]) for seed in one.keys() & other.keys()]
        difference = statistics.fmean(paired) if paired else None
    return HeadOnly(
        slow=slow,
        fast=fast,
        speed_up=speed_up,
        verdict=HALF_THE_TIME.verdict(speed_up) if speed_up else "too few samples",
        prediction=predict(
            slow.counted,
            fast.counted,
            train_images=slow.records[0].train_images,
            val_images=len(slow.truth),
            measured=speed_up.value if speed_up and can_be_judged(speed_up) else None,
        ),
        memory_saved_bytes=saved,
        accuracy_difference=difference,
        accuracy_p=None if difference is None else p,
    )


def _adjusted_p(pairs: list[tuple[Group, Group]]) -> list[float | None]:
    """For each pair the smallest of its seeds' McNemar p-values, Holm-adjusted over all pairs and seeds.

    Below 0.05 at least one seed tells the two apart, with an error rate of 5% over the whole report.
    """
    tests: list[tuple[int, float]] = []
    for number, (first, second) in enumerate(pairs):
        one, other = first.right(), second.right()
        if first.accuracy is not None and second.accuracy is not None:
            tests += [(number, mcnemar(one[seed], other[seed])) for seed in one.keys() & other.keys()]
    adjusted = holm([p for _, p in tests])
    smallest: list[float | None] = [None] * len(pairs)
    for (number, _), p in zip(tests, adjusted, strict=True):
        seen = smallest[number]
        smallest[number] = p if seen is None else min(p, seen)
    return smallest


def _choices(groups: list[Group]) -> list[Choice]:
    choices = []
    for run, device in dict.fromkeys((group.run, group.cell.device) for group in groups):
        here = [group for group in groups if (group.run, group.cell.device) == (run, device)]
        rated = [g for g in here if g.accuracy is not None and not REGIMES[g.config.regime].control]
        if not rated:
            continue
        best = max(rated, key=lambda group: (group.accuracy or 0.0, -group.seconds))
        others = [group for group in rated if group is not best]
        told = _adjusted_p([(best, other) for other in others])
        tied = [other for other, p in zip(others, told, strict=True) if p is not None and p >= 0.05]
        choices.append(
            Choice(
                run=run,
                device=device,
                best=best,
                pick=min([best, *tied], key=lambda group: group.seconds),
                tied=len(tied),
                left_out=tuple(dict.fromkeys(group.config.backbone for group in here if group.accuracy is None)),
            )
        )
    return choices
