"""What a report says, worked out from records; how it looks is decided elsewhere."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from bench.analysis.claims import HALF_THE_TIME, Claim
from bench.analysis.groups import Group, make_groups, most_accurate, varying_settings
from bench.analysis.metrics import RATED_BY, costs
from bench.analysis.prediction import explain, predicted
from bench.analysis.stats import LEVEL, MIN_SAMPLES, Estimate, Test, accuracy_difference, holm, mcnemar, ratio
from bench.analysis.verdicts import Finding, claims_of, judge, without_result
from bench.store.records import Cell, Manifest, Record
from bench.store.runs import Run
from tl.machine import DeviceKey
from tl.regimes import REGIMES
from tl.results import Note


@dataclass(frozen=True, kw_only=True)
class Adjusted:
    """A p-value among several: adjusted (Holm), and whether so many images and seeds could have shown anything."""

    p: float
    can_show: bool


@dataclass(frozen=True, kw_only=True)
class HeadOnly:
    """Training only the head against fine-tuning, all else being equal."""

    finding: Finding
    """On the time of an epoch, training and validation."""
    training: Estimate | None
    """The same for training passes alone."""
    training_predicted: float | None
    explanation: str | None
    """Why the measured speed-up is not the predicted one; None where work was not counted."""
    memory_saved_bytes: float | None
    accuracy: Estimate | None
    """Best accuracy of head-only minus fine-tuned; None where nothing can be paired."""
    accuracy_test: Adjusted | None
    """That they are equal, among all comparisons of the table; None where nothing can be paired."""

    @property
    def slow(self) -> Group:
        """Fine-tuned."""
        return self.finding.against

    @property
    def fast(self) -> Group:
        """The head alone."""
        return self.finding.group

    @property
    def speed_up(self) -> Estimate | None:
        """Of an epoch; None where there is no warm one."""
        return self.finding.estimate


@dataclass(frozen=True, kw_only=True)
class Priority:
    """What to use on one device where one thing matters most."""

    metric: str
    groups: tuple[Group, ...]
    """The best first, then those that can't be told from it, the quickest of them first."""


@dataclass(frozen=True, kw_only=True)
class _Spread:
    """See `Summary.short_name`."""

    specs: dict[str, set[str]]
    devices: set[str]
    precisions: set[str]
    weights: dict[str, set[str]]
    settings: tuple[str, ...]


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
    priorities: tuple[Priority, ...]
    """By accuracy, by time and by memory."""
    front: tuple[Group, ...]
    """Groups that none beats in accuracy, time and memory at once (Pareto), the most accurate first."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Everything that a report shows."""

    name: str
    runs: tuple[tuple[str, Manifest], ...]
    groups: tuple[Group, ...]
    findings: tuple[Finding, ...]
    """Of all claims, with one error rate for all."""
    claims: tuple[Claim, ...]
    without_result: dict[str, int]
    """Claim → comparisons that were planned and have no result on one side."""
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
            on_cpu = DeviceKey.parse(record.cell.device).kind == "cpu"
            gpu = record.result.device_name if record.result and not on_cpu else ""
            names[f"{gpu}; {record.environment}" if gpu else str(record.environment)] = None
        return list(names)

    @property
    def not_frozen(self) -> list[Record]:
        """Cells in which something changed that should have stayed frozen."""
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
        told_elsewhere = {("images", reason) for reason in self.stand_ins}
        told_elsewhere |= {("weights", reason) for reason in self.random_weights.values()}
        notes = [
            note.text
            for _, record in self.records
            for note in (record.result.notes if record.result else ())
            if (note.about, _reason(note, record)) not in told_elsewhere
        ]
        return [*dict.fromkeys(notes), *self.busy, *self.mixed]

    @property
    def busy(self) -> list[str]:
        """That the machine did something else beside cells, if it did: how many, and one of them."""
        found = [record for _, record in self.records if record.machine and record.machine.warnings]
        if not found:
            return []
        one = found[0]
        warning = one.machine.warnings[0] if one.machine else ""
        return [f"{len(found)} of {len(self.records)} cells were disturbed, such as {one.cell}: {warning}"]

    @property
    def mixed(self) -> list[str]:
        """That seeds which are pooled were measured in different environments, if they were: in what they differ."""
        found = []
        for group in self.groups:
            first, *others = (record.environment for record in group.records)
            names = {name for other in others for name in first.differences(other)}
            names |= {"commit of this suite" for other in others if other.suite != first.suite}
            if names:
                found.append((group.label, sorted(names)))
        if not found:
            return []
        label, unlike = found[0]
        counted = f"{len(found)} of {len(self.groups)} groups"
        return [f"{counted} pool seeds of different {' and '.join(unlike)}, such as {label}"]

    @cached_property
    def settings(self) -> list[str]:
        """Fields of a config, other than those shown anyway, in which the groups differ: they need a column."""
        return varying_settings(group.config for group in self.groups)

    @property
    def noise(self) -> str:
        """How much the time of an epoch of one and the same cell differs from seed to seed; empty with one seed."""
        spreads = []
        for group in self.groups:
            values = list(group.values("epoch_seconds").values())
            if len(values) > 1 and min(values) > 0:
                spreads.append((max(values) / min(values) - 1, group.label))
        if not spreads:
            return ""
        worst, label = max(spreads)
        median = statistics.median(spread for spread, _ in spreads)
        return (
            f"the largest median epoch of a cell's seeds is {median:.0%} above the smallest (median of {len(spreads)} "
            f"groups; at most {worst:.0%}, {label})"
        )

    def short(self, group: Group) -> str:
        """The least that tells a group from those of other backbones, devices, runs and settings in this report."""
        return self.short_name(group.cell, group.run)

    def short_name(self, cell: Cell, run: str) -> str:
        """The same of a cell, which need not have a result."""
        config, spread = cell.config, self._spread
        bare = config.spec.name
        parts = [bare if len(spread.specs[bare]) == 1 else config.backbone]
        parts += [cell.device] if len(spread.devices) > 1 else []
        parts += [config.precision] if len(spread.precisions) > 1 else []
        if len(spread.weights.get(config.backbone, ())) > 1:
            parts.append(f"{config.weights} weights")
        parts += [f"{name} {getattr(config, name)}" for name in spread.settings]
        parts += [run] if len(self.runs) > 1 else []
        return " · ".join(parts)

    @cached_property
    def levels(self) -> dict[str, set[str]]:
        """Precision, weights and protocol → what the groups have of it."""
        names = ("precision", "weights", "protocol")
        return {name: {str(getattr(group.config, name)) for group in self.groups} for name in names}

    @cached_property
    def _spread(self) -> _Spread:
        """What there is of each axis in all cells that were planned."""
        cells = [cell for _, manifest in self.runs for cell in manifest.cells.values()]
        specs: dict[str, set[str]] = {}
        weights: dict[str, set[str]] = {}
        for cell in cells:
            config = cell.config
            specs.setdefault(config.spec.name, set()).add(config.backbone)
            if REGIMES[config.regime].start == "pretrained":
                weights.setdefault(config.backbone, set()).add(config.weights)
        return _Spread(
            specs=specs,
            devices={cell.device for cell in cells},
            precisions={cell.config.precision for cell in cells},
            weights=weights,
            settings=tuple(varying_settings(cell.config for cell in cells)),
        )


def _reason(note: Note, record: Record) -> str:
    """The record's own reason for what a note is about; empty for a note on figures."""
    weights = record.weights.reason if record.weights else ""
    return {"images": record.stand_in, "weights": weights, "figures": ""}[note.about]


def summarise(runs: Iterable[Run], name: str) -> Summary:
    """Read runs and work out what there is to say. Raises `UserError` for a run that can't be read."""
    manifests, records, missing = [], [], []
    for run in runs:
        manifest, found = run.manifest(), run.records()
        manifests.append((run.name, manifest))
        records += [(run.name, record) for record in found.values()]
        missing += [(run.name, cell) for cell_id, cell in manifest.cells.items() if cell_id not in found]
    groups = make_groups(records, {name: manifest.dataset.val_labels for name, manifest in manifests})
    own = {run_name: claims_of(manifest) for run_name, manifest in manifests}
    claims = tuple(dict.fromkeys(claim for some in own.values() for claim in some))
    findings = judge(own, groups)
    lost = {claim.name: 0 for claim in claims}
    for run_name, manifest in manifests:
        for claim in own[run_name]:
            lost[claim.name] += without_result(claim, run_name, manifest, findings)
    return Summary(
        name=name,
        runs=tuple(manifests),
        groups=tuple(groups),
        findings=tuple(findings),
        claims=claims,
        without_result=lost,
        comparisons=tuple(_comparisons(findings)),
        choices=tuple(_choices(groups)),
        records=tuple(records),
        missing=tuple(missing),
    )


def _comparisons(findings: list[Finding]) -> list[HeadOnly]:
    timed = [finding for finding in findings if finding.claim == HALF_THE_TIME]
    tests = _compare_accuracy([(finding.against, finding.group) for finding in timed])
    return [_compare(finding, test) for finding, test in zip(timed, tests, strict=True)]


def _compare(finding: Finding, test: Adjusted | None) -> HeadOnly:
    slow, fast = finding.against, finding.group
    memory = [group.median(lambda r: r.peak_memory_bytes) for group in (slow, fast)]
    saved = None if memory[0] is None or memory[1] is None else memory[0] - memory[1]
    counts = slow.accuracy is not None and fast.accuracy is not None
    return HeadOnly(
        finding=finding,
        training=ratio(slow.values("train_epoch_seconds"), fast.values("train_epoch_seconds")),
        training_predicted=predicted("train_epoch_seconds", slow, fast),
        explanation=explain(slow, fast, finding.estimate.value if finding.estimate else None),
        memory_saved_bytes=saved,
        accuracy=accuracy_difference(fast.right(), slow.right()) if counts else None,
        accuracy_test=test,
    )


def _compare_accuracy(pairs: list[tuple[Group, Group]]) -> list[Adjusted | None]:
    """For each pair a test that both are equally accurate, Holm-adjusted over all of them.

    From three seeds on that of `accuracy_difference`; below, McNemar's exact test on the images of each seed, the
    smallest of which counts. None where an accuracy says nothing, or no seed is on both sides.
    """
    tests: list[tuple[int, Test]] = []
    for number, (first, second) in enumerate(pairs):
        if first.accuracy is None or second.accuracy is None:
            continue
        one, other = first.right(), second.right()
        both = [seed for seed in one if seed in other]
        estimate = accuracy_difference(one, other)
        if estimate and len(both) >= MIN_SAMPLES:
            tests.append((number, Test(p=estimate.p, smallest=0.0)))
        else:
            tests += [(number, mcnemar(one[seed], other[seed])) for seed in both]
    adjusted = holm([test.p for _, test in tests])
    found: list[Adjusted | None] = [None] * len(pairs)
    for (number, test), p in zip(tests, adjusted, strict=True):
        before = found[number]
        found[number] = Adjusted(
            p=min(p, before.p if before else 1.0),
            can_show=test.smallest * len(tests) < LEVEL or bool(before and before.can_show),
        )
    return found


TIE = 1.05
"""A smaller factor of time or memory is no reason to choose."""


def _least(groups: list[Group], metric: str) -> Priority | None:
    """The group that takes least, with those that take less than `TIE` times as much or, by Student's t over seeds
    (Holm), can't be told from it."""
    known = [(group, statistics.geometric_mean(values)) for group in groups if (values := _above_0(group, metric))]
    if not known:
        return None
    least, _ = min(known, key=lambda pair: pair[1])
    others = [group for group, _ in known if group is not least]
    ratios = [ratio(group.values(metric), least.values(metric)) for group in others]
    tests = holm([found.p if found and found.error is not None else 0.0 for found in ratios])
    tied = [
        group
        for group, found, p in zip(others, ratios, tests, strict=True)
        if found is None or found.value < TIE or p >= LEVEL
    ]
    return Priority(metric=metric, groups=(least, *sorted(tied, key=lambda group: group.seconds)))


def _above_0(group: Group, metric: str) -> list[float]:
    values = list(group.values(metric).values())
    return values if values and min(values) > 0 else []


def _front(groups: list[Group]) -> list[Group]:
    """Groups that none beats in all of accuracy, time and memory; what isn't known of a group beats nobody."""

    def taken(group: Group) -> tuple[float, ...]:
        known = (list(group.values(name).values()) for name in costs())
        return (-(group.accuracy or 0.0), *(statistics.median(values) if values else math.inf for values in known))

    rated = [(group, taken(group)) for group in groups]
    front = [
        group
        for group, mine in rated
        if not any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for _, other in rated)
    ]
    return sorted(front, key=lambda group: -(group.accuracy or 0.0))


def _choices(groups: list[Group]) -> list[Choice]:
    choices = []
    for run, device in dict.fromkeys((group.run, group.cell.device) for group in groups):
        here = [group for group in groups if (group.run, group.cell.device) == (run, device)]
        rated = [g for g in here if g.accuracy is not None and not REGIMES[g.config.regime].control]
        best = most_accurate(rated)
        if best is None:
            continue
        others = [group for group in rated if group is not best]
        told = _compare_accuracy([(best, other) for other in others])
        tied = [other for other, test in zip(others, told, strict=True) if test is None or test.p >= LEVEL]
        tied = sorted(tied, key=lambda group: group.seconds)
        choices.append(
            Choice(
                run=run,
                device=device,
                best=best,
                pick=min([best, *tied], key=lambda group: group.seconds),
                tied=len(tied),
                left_out=tuple(dict.fromkeys(group.config.backbone for group in here if group.accuracy is None)),
                priorities=(
                    Priority(metric=RATED_BY, groups=(best, *tied)),
                    *(found for name in costs() if (found := _least(rated, name))),
                ),
                front=tuple(_front(rated)),
            )
        )
    return choices
