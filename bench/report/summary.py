"""What a report says, worked out from records; how it looks is decided elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.claims import HALF_THE_TIME, Verdict
from bench.records import Cell, Manifest, Record, Run
from bench.stats import Interval, mcnemar, ratio_of_medians, wilson
from tl.regimes import REGIMES
from tl.results import TrainResult

GroupKey = tuple[str, str, str, str, str]
"""Run, device, backbone, precision, regime."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The finished cells that differ in their seed alone."""

    run: str
    device: str
    backbone: str
    precision: str
    regime: str
    records: tuple[Record, ...]
    truth: tuple[int, ...]
    """True labels of the validation images."""

    @property
    def results(self) -> list[TrainResult]:
        """One a seed."""
        return [record.result for record in self.records if record.result]

    @property
    def label(self) -> str:
        """Backbone and regime, for a sentence."""
        return f"{self.backbone} {self.regime}"

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
        trials = len(self.results[0].best.labels)
        return wilson(round(self.accuracy * trials), trials)

    def median(self, figure: Callable[[TrainResult], float | None]) -> float | None:
        """Median over seeds of a figure; None where no seed has it."""
        values = [value for result in self.results if (value := figure(result)) is not None]
        return statistics.median(values) if values else None

    @property
    def warm_epochs(self) -> list[float]:
        """Seconds of every epoch but the first, all seeds together."""
        return [row.train_seconds + row.val_seconds for result in self.results for row in result.epochs[1:]]


@dataclass(frozen=True, kw_only=True)
class HeadOnly:
    """Training only the head against fine-tuning, for one backbone on one device."""

    slow: Group
    fast: Group
    speed_up: Interval | None
    verdict: Verdict
    memory_saved_bytes: float | None
    accuracy_difference: float | None
    """Best accuracy of head-only minus fine-tuned."""
    accuracy_p: float | None
    """Exact McNemar p on the images of the first seed that both have."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to use on one device."""

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
    unfinished: tuple[Record, ...]
    missing: tuple[tuple[str, Cell], ...]
    records: tuple[tuple[str, Record], ...]

    @property
    def stand_ins(self) -> list[str]:
        """Why images are drawn ones, each reason once."""
        return list(dict.fromkeys(m.dataset.stand_in for _, m in self.runs if m.dataset.stand_in))

    @property
    def commands(self) -> list[str]:
        """What was typed, each command once."""
        return list(dict.fromkeys(call.command for _, manifest in self.runs for call in manifest.invocations))

    @property
    def not_frozen(self) -> list[Record]:
        """Cells whose backbone should have stayed as it was and didn't."""
        return [record for _, record in self.records if record.result and record.result.frozen_verified is False]

    @property
    def random_weights(self) -> dict[str, str]:
        """Backbones that fell back to random weights, with the reason."""
        return {
            record.cell.config.backbone: record.weights.reason or "random weights were asked for"
            for _, record in self.records
            if record.weights and record.result and not record.result.accuracy_counts
        }


def summarise(runs: Iterable[Run], name: str) -> Summary:
    """Read runs and work out what there is to say. Raises `UserError` for a run that can't be read."""
    manifests, records, missing = [], [], []
    for run in runs:
        manifest, found = run.manifest(), run.records()
        manifests.append((run.name, manifest))
        order = [*manifest.cells, *(cell_id for cell_id in found if cell_id not in manifest.cells)]
        records += [(run.name, found[cell_id]) for cell_id in order if cell_id in found]
        missing += [(run.name, cell) for cell_id, cell in manifest.cells.items() if cell_id not in found]
    groups = _groups(records, {name: manifest.dataset.val_labels for name, manifest in manifests})
    return Summary(
        name=name,
        runs=tuple(manifests),
        groups=tuple(groups.values()),
        comparisons=tuple(_comparisons(groups)),
        choices=tuple(_choices(list(groups.values()))),
        unfinished=tuple(record for _, record in records if record.status != "done"),
        missing=tuple(missing),
        records=tuple(records),
    )


def _groups(records: list[tuple[str, Record]], truths: dict[str, tuple[int, ...]]) -> dict[GroupKey, Group]:
    found: dict[GroupKey, list[Record]] = {}
    for run, record in records:
        if record.status == "done":
            config = record.cell.config
            found.setdefault((run, record.cell.device, config.backbone, config.precision, config.regime), []).append(
                record
            )
    return {
        key: Group(
            run=key[0],
            device=key[1],
            backbone=key[2],
            precision=key[3],
            regime=key[4],
            records=tuple(some),
            truth=truths[key[0]],
        )
        for key, some in found.items()
    }


def _comparisons(groups: dict[GroupKey, Group]) -> Iterable[HeadOnly]:
    for key, fast in groups.items():
        slow = groups.get((*key[:-1], "finetune"))
        if slow and not REGIMES[fast.regime].trains_backbone:
            yield _compare(slow, fast)


def _compare(slow: Group, fast: Group) -> HeadOnly:
    speed_up = None
    if slow.warm_epochs and fast.warm_epochs:
        speed_up = ratio_of_medians(slow.warm_epochs, fast.warm_epochs)
    memory = [group.median(lambda r: r.peak_memory_bytes) for group in (slow, fast)]
    saved = None if memory[0] is None or memory[1] is None else memory[0] - memory[1]
    difference = None if slow.accuracy is None or fast.accuracy is None else fast.accuracy - slow.accuracy
    return HeadOnly(
        slow=slow,
        fast=fast,
        speed_up=speed_up,
        verdict=HALF_THE_TIME.verdict(speed_up) if speed_up else "too few samples",
        memory_saved_bytes=saved,
        accuracy_difference=difference,
        accuracy_p=None if difference is None else _same_images(slow, fast),
    )


def _same_images(first: Group, second: Group) -> float | None:
    """McNemar on the first seed that both groups have."""
    by_seed = {record.cell.config.seed: record for record in second.records}
    for record in first.records:
        other = by_seed.get(record.cell.config.seed)
        if other and other.result and record.result:
            return mcnemar(_right(record.result, first.truth), _right(other.result, second.truth))
    return None


def _right(result: TrainResult, truth: tuple[int, ...]) -> list[bool]:
    return [label == true for label, true in zip(result.best.labels, truth, strict=True)]


def _choices(groups: list[Group]) -> Iterable[Choice]:
    for device in dict.fromkeys((group.run, group.device) for group in groups):
        here = [group for group in groups if (group.run, group.device) == device]
        rated = [group for group in here if group.accuracy is not None and REGIMES[group.regime].start == "pretrained"]
        if not rated:
            continue
        best = max(rated, key=lambda group: (group.accuracy or 0.0, -_seconds(group)))
        level = [group for group in rated if group is best or (_same_images(best, group) or 0.0) >= 0.05]
        yield Choice(
            device=device[1],
            best=best,
            pick=min(level, key=_seconds),
            tied=len(level) - 1,
            left_out=tuple(dict.fromkeys(group.backbone for group in here if group.accuracy is None)),
        )


def _seconds(group: Group) -> float:
    value = group.median(lambda result: result.epoch_seconds)
    return float("inf") if value is None else value
