"""Computes the content of a report from records. Other modules lay it out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.analysis.claims import Claim
from bench.analysis.groups import Group, make_groups, varying_settings
from bench.analysis.recommend import Choice, Undecided, nothing_beats, recommend, rivals_of, undecided
from bench.analysis.rising import epochs_to_try, still_rising
from bench.analysis.scores import largest_class
from bench.analysis.selection import Selection, selections
from bench.analysis.speedups import SpeedUp, speed_ups
from bench.analysis.tally import Tally, tally
from bench.analysis.verdicts import Finding, claims_of, decide_claims, planned_without_result
from bench.analysis.words import counted, in_words
from bench.store.environment import Environment, MachineState
from bench.store.pairs import PairRecord
from bench.store.picks import PickRecord
from bench.store.records import USUAL, Cell, Manifest, PlannedPair, Record
from bench.store.runs import RunFolder
from tl.errors import UserError
from tl.layout import alike
from tl.machine import DeviceKey
from tl.regimes import REGIMES
from tl.results import Note
from tl.survey import imbalance_note
from tl.tasks import TASKS, Task
from tl.text import visible

MOST_NAMED = 4
"""Groups that a note names; the others are counted."""
UNEQUAL = 1.5
"""How many times an equal share the largest class has where accuracy alone is no measure."""


@dataclass(frozen=True, kw_only=True)
class _Spread:
    """The values that planned cells have on each axis; see `Summary.short_name`."""

    specs: dict[str, set[str]]
    devices: set[str]
    axes: dict[str, set[str]]
    """Axis in `USUAL` → its values."""
    weights: dict[str, set[str]]
    settings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of a report."""

    name: str
    runs: tuple[tuple[str, Manifest], ...]
    groups: tuple[Group, ...]
    findings: tuple[Finding, ...]
    """Findings on all claims, with one error rate for all."""
    claims: tuple[Claim, ...]
    without_result: dict[str, int]
    """Claim → number of planned comparisons that lack a result on a side."""
    speed_ups: tuple[SpeedUp, ...]
    choices: tuple[Choice, ...]
    nothing_beats: tuple[Group, ...]
    """The most accurate group of each run and device without a choice; see `recommend.nothing_beats`."""
    undecided: tuple[Undecided, ...]
    """Runs and devices where a choice would have no alternative; see `recommend.undecided`."""
    records: tuple[tuple[str, Record], ...]
    missing: tuple[tuple[str, Cell], ...]
    selections: tuple[Selection, ...] = ()
    """How well each cheap score picks the backbone whose trainings turn out best."""
    pairs: tuple[tuple[str, PairRecord], ...] = ()
    """Process pairs, each with the name of its run."""
    planned_pairs: tuple[tuple[str, PlannedPair], ...] = ()
    """Process pairs that each run's latest command planned, each with the name of its run."""
    picks: tuple[tuple[str, PickRecord], ...] = ()
    """What `bench pick` chose, each with the name of its run."""

    @property
    def task(self) -> Task:
        """What the networks are to say of an image; all runs have the same task."""
        return TASKS[self.runs[0][1].dataset.task if self.runs else "classification"]

    def words(self, text: str, *, by_image: bool = False) -> str:
        """A text about accuracies in the words of the task's score; see `bench.analysis.words`."""
        return in_words(text, self.task, by_image=by_image)

    @property
    def missing_pairs(self) -> list[tuple[str, PlannedPair]]:
        """Planned process pairs without a record, each with the name of its run."""
        known = {(run, record.pair_id) for run, record in self.pairs}
        return [(run, pair) for run, pair in self.planned_pairs if (run, pair.id) not in known]

    @property
    def progress(self) -> list[str]:
        """How far the planned cells and process pairs are, where some are left."""
        return [str(each) for each in (self.tally, self._pair_tally) if each.left]

    @property
    def tally(self) -> Tally:
        """How far the planned cells are; see `bench.analysis.tally.tally_of`."""
        picked = {run for run, _ in self.picks}
        return tally((record.status for _, record in self.records), sum(run not in picked for run, _ in self.missing))

    @property
    def _pair_tally(self) -> Tally:
        """How far the planned process pairs are."""
        planned = {(run, pair.id) for run, pair in self.planned_pairs}
        ended = [record.status for run, record in self.pairs if (run, record.pair_id) in planned]
        return tally(ended, len(planned) - len(ended), "process pair")

    @property
    def fallbacks(self) -> list[str]:
        """Distinct reasons for synthetic images."""
        return list(dict.fromkeys(m.dataset.fallback for _, m in self.runs if m.dataset.fallback))

    @property
    def image_warnings(self) -> list[str]:
        """What is seriously wrong with the images: some are missing, or the same in training and validation."""
        classes = dict.fromkeys(manifest.dataset.classes for _, manifest in self.runs)
        return [*self._findings(serious=True), *(said for names in classes for said in alike(names))]

    def _findings(self, *, serious: bool) -> list[str]:
        """Distinct findings in the images, with the data set's name if there are several."""
        datasets = [manifest.dataset for _, manifest in self.runs]
        several = len({dataset.digest for dataset in datasets}) > 1
        found = [(dataset.name, each) for dataset in datasets for each in dataset.findings if each.serious is serious]
        said = [(name, self.words(str(each))) for name, each in found]
        return list(dict.fromkeys(f"{name}: {text}" if several else text for name, text in said))

    @property
    def commands(self) -> list[str]:
        """Distinct commands that were typed."""
        return list(dict.fromkeys(call.command for _, manifest in self.runs for call in manifest.invocations))

    @property
    def sampled_adaptively(self) -> bool:
        """True if some command added pairs until the answers were precise enough (`--until-decided`).

        A manifest has that only in the text of its commands, as typed in a terminal or called from a notebook.
        """
        return any("--until-decided" in text or "until_decided=True" in text for text in self.commands)

    @property
    def machines(self) -> list[str]:
        """Distinct machine and library descriptions, of cells and of process pairs."""
        return list(dict.fromkeys(f"{gpu}; {each}" if gpu else str(each) for gpu, each in self._environments))

    @property
    def unlike_machines(self) -> int:
        """Number of machines or sets of libraries whose times don't compare. Commits of this suite don't count."""
        return len(
            {
                (gpu, one.cpu, one.cores, tuple(sorted(one.packages.items())))
                for gpu, one in self._environments
                if gpu is not None
            }
        )

    @property
    def _environments(self) -> list[tuple[str | None, Environment]]:
        """The GPU (empty on a CPU, None if unknown) and the environment of every cell and process pair."""
        found = [
            (record.cell.device, record.result.device_name if record.result else "", record.environment)
            for _, record in self.records
        ]
        for _, pair in self.pairs:
            name = next((side.device_name for side in pair.sides if side.device_name), "")
            found.append((pair.pair.cells[0].device, name, pair.environment))
        return [("" if DeviceKey.parse(device).kind == "cpu" else name or None, each) for device, name, each in found]

    @property
    def not_frozen(self) -> list[Record]:
        """Records of cells whose frozen parameters changed."""
        return [record for _, record in self.records if record.result and record.result.frozen_verified is False]

    @property
    def random_weights(self) -> dict[str, str]:
        """Backbone with random weights in place of pretrained ones → the reason."""
        return {
            record.cell.config.backbone: record.weights.reason or "random weights were asked for"
            for _, record in self.records
            if record.weights and record.result and not record.result.accuracy_counts
        }

    @property
    def notes(self) -> list[str]:
        """Distinct notes of cells, such as on odd batches, and of images."""
        shown_elsewhere = {("images", reason) for reason in self.fallbacks}
        shown_elsewhere |= {("weights", reason) for reason in self.random_weights.values()}
        notes = [
            note.text
            for _, record in self.records
            for note in (record.result.notes if record.result else ())
            if (note.about, _reason(note, record)) not in shown_elsewhere
        ]
        about_images = [*self._split_and_balance, *self._findings(serious=False)]
        return [
            *about_images,
            *dict.fromkeys(notes),
            *self.constant,
            *self.rising,
            *self.busy,
            *self.mixed,
        ]

    @property
    def _split_and_balance(self) -> list[str]:
        """How the split of the images came about, if not by their folders, and whether classes are imbalanced."""
        datasets = {manifest.dataset.digest: manifest.dataset for _, manifest in self.runs}
        found = [
            (dataset.name, said)
            for dataset in datasets.values()
            for said in (dataset.origin, *imbalance_note(dataset.train_counts or (), dataset.classes, dataset.task))
            if said
        ]
        return [f"{name}: {said}" if len(datasets) > 1 else said for name, said in found]

    @property
    def constant(self) -> list[str]:
        """A note on cells that predict one class for every image, with an example; empty without any."""
        said = [(r.cell, name) for _, r in self.records if r.result and (name := r.result.constant_prediction)]
        if not said:
            return []
        cell, name = said[0]
        first = f"{cell} predicts {name!r} for every image after the last epoch"
        return [first if len(said) == 1 else f"{len(said)} cells predict one class for every image, such as: {first}"]

    @property
    def rising(self) -> list[str]:
        """A note on groups whose accuracy was still rising at the last epoch, with epochs to try; empty without any."""
        found = [group for group in self.groups if still_rising(group)]
        if not found:
            return []
        names = list(dict.fromkeys(f"{self.short(group)}, {group.config.regime}" for group in found))
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        epochs = ", ".join(dict.fromkeys(f"`--epochs {epochs_to_try(group)}`" for group in found))
        return [
            self.words("accuracy was still rising at the last epoch with ")
            + f"{'; '.join(names[:MOST_NAMED])}{more}: in most seeds the last epoch has the lowest validation loss and "
            + self.words("the best accuracy came in the last third of the epochs; ")
            + f"{epochs} would show where it ends"
        ]

    @property
    def unequal_classes(self) -> bool:
        """True if in some run the largest class of the validation images is well above an equal share."""
        return any(
            largest_class(manifest.dataset.val_labels)[1] > UNEQUAL / len(manifest.dataset.classes)
            for _, manifest in self.runs
            if manifest.dataset.val_labels
        )

    @property
    def largest_classes(self) -> dict[str, tuple[str, float]]:
        """Run → the largest class of its validation images, and its share of them."""
        found = {}
        for name, manifest in self.runs:
            if manifest.dataset.val_labels:
                label, rate = largest_class(manifest.dataset.val_labels)
                found[name] = manifest.dataset.classes[label], rate
        return found

    @property
    def busy(self) -> list[str]:
        """Notes on cells and process pairs that other work on the machine disturbed, each with an example."""
        cells = [(str(record.cell), record.machine) for _, record in self.records]
        pairs = [(str(pair), pair.machine) for _, pair in self.pairs]
        return [*_disturbed("cell", cells), *_disturbed("process pair", pairs)]

    @property
    def mixed(self) -> list[str]:
        """Notes on seeds and on process pairs that are pooled although their environments differ, with what differs."""
        seeds = [(group.label, [record.environment for record in group.records]) for group in self.groups]
        rotations: dict[tuple[str, tuple[str, ...]], list[PairRecord]] = {}
        for run, record in self.pairs:
            rotations.setdefault((run, record.pair.pairing), []).append(record)
        pairs = [(records[0].pair.name, [record.environment for record in records]) for records in rotations.values()]
        return [
            *_mixed("groups", "seeds", seeds),
            *_mixed("sets of cells timed in turns", "process pairs", pairs),
            *(
                f"seeds of {group.label} ran in {ways}, and are pooled"
                for group in self.groups
                if (ways := _ways(group))
            ),
        ]

    @cached_property
    def settings(self) -> list[str]:
        """Config fields that need a column: groups differ in them, and no table shows them anyway."""
        return varying_settings(group.config for group in self.groups)

    @property
    def noise(self) -> str:
        """How much the time per epoch of the same cell varies between seeds, in words; empty with one seed."""
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
            f"the largest median epoch of a cell's seeds is {median:.0%} above the smallest (median of "
            f"{counted(len(spreads), 'group')}; at most {worst:.0%}, {label})"
        )

    def short(self, group: Group) -> str:
        """The shortest name that distinguishes a group from those with other backbones, devices, runs and settings."""
        return self.short_name(group.cell, group.run)

    def short_name(self, cell: Cell, run: str, *but: str) -> str:
        """The short name of a cell, which need not have a result, without the axes in `but`; see `short`."""
        config, spread = cell.config, self._spread
        bare = config.spec.name
        parts = [bare if len(spread.specs[bare]) == 1 else config.backbone]
        parts += [cell.device] if len(spread.devices) > 1 and "device" not in but else []
        axes = {axis: values for axis, values in spread.axes.items() if axis not in but}
        parts += [getattr(config, axis) for axis, values in axes.items() if len(values) > 1]
        if len(spread.weights.get(config.backbone, ())) > 1:
            parts.append(f"{config.weights} weights")
        parts += [f"{name} {getattr(config, name)}" for name in spread.settings]
        parts += [run] if len(self.runs) > 1 else []
        return visible(" · ".join(parts))

    @cached_property
    def levels(self) -> dict[str, set[str]]:
        """Precision, execution, weights and protocol → the values that groups have."""
        names = (*USUAL, "weights", "protocol")
        return {name: {str(getattr(group.config, name)) for group in self.groups} for name in names}

    @cached_property
    def _spread(self) -> _Spread:
        """The values on each axis in all planned cells."""
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
            axes={axis: {getattr(cell.config, axis) for cell in cells} for axis in USUAL},
            weights=weights,
            settings=tuple(varying_settings(cell.config for cell in cells)),
        )


def _disturbed(what: str, machines: Sequence[tuple[str, MachineState | None]]) -> list[str]:
    """A note on what was disturbed, with an example; empty without any. `machines` has names and states."""
    found = [(name, machine.warnings[0]) for name, machine in machines if machine and machine.warnings]
    if not found:
        return []
    name, warning = found[0]
    if len(machines) == 1:
        return [f"the only {what} was disturbed, {name}: {warning}"]
    were = "were disturbed, such as" if len(found) > 1 else "was disturbed,"
    return [f"{len(found)} of {len(machines)} {what}s {were} {name}: {warning}"]


def _ways(group: Group) -> str:
    """The precisions and layouts in which a group's seeds ran, if there are several."""
    ran = {f"{result.precision or result.config.precision} {result.memory_format}" for result in group.results}
    return " and ".join(sorted(ran)) if len(ran) > 1 else ""


def _mixed(sets: str, members: str, pooled: Sequence[tuple[str, Sequence[Environment]]]) -> list[str]:
    """A note on sets whose members have different environments, with an example; empty without any."""
    found = []
    for name, (first, *others) in pooled:
        unlike = {each for other in others for each in first.differences(other)}
        unlike |= {"commit of this suite" for other in others if other.suite != first.suite}
        if unlike:
            found.append((name, sorted(unlike)))
    if not found:
        return []
    name, differ = found[0]
    pool, such = ("pool", "such as ") if len(found) > 1 else ("pools", "")
    return [f"{len(found)} of {len(pooled)} {sets} {pool} {members} of different {' and '.join(differ)}, {such}{name}"]


def _present_plan(manifest: Manifest) -> list[PlannedPair]:
    """The process pairs that the latest command planned: those of its cells, with its grid's number and seconds.

    A manifest also keeps pairs that earlier commands planned, with another number of pairs or other seconds.
    """
    latest = manifest.invocations[-1]
    if not (paired := latest.grid.get("paired")):
        return []
    cells = {manifest.cells[each].repeats for each in latest.cell_ids if each in manifest.cells}
    return [
        pair
        for pair in manifest.pairs.values()
        if pair.number < paired["pairs"]
        and pair.seconds == paired["seconds"]
        and all(cell.repeats in cells for cell in pair.cells)
    ]


def _reason(note: Note, record: Record) -> str:
    """The record's own reason for the subject of a note; empty for a note on measured values."""
    weights = record.weights.reason if record.weights else ""
    return {"images": record.fallback, "weights": weights, "figures": ""}[note.about]


def summarise(runs: Iterable[RunFolder], name: str) -> Summary:
    """Read runs and compute the content of their report. Raises `UserError` for an unreadable run."""
    manifests, records, missing = [], [], []
    planned_pairs: list[tuple[str, PlannedPair]] = []
    timed: dict[str, list[PairRecord]] = {}
    picks: list[tuple[str, PickRecord]] = []
    for run in runs:
        manifest, found = run.manifest(), run.records()
        manifests.append((run.name, manifest))
        timed[run.name] = list(run.pairs().values())
        picks += [(run.name, pick)] if (pick := run.pick()) else []
        planned_pairs += [(run.name, pair) for pair in _present_plan(manifest)]
        records += [(run.name, record) for record in found.values()]
        missing += [(run.name, cell) for cell_id, cell in manifest.cells.items() if cell_id not in found]
    tasks = {manifest.dataset.task: run_name for run_name, manifest in manifests}
    if len(tasks) > 1:
        several = " and ".join(f"{run_name} {task!r}" for task, run_name in tasks.items())
        raise UserError(f"these runs have different tasks, {several}: their scores can't be in one report")
    groups = make_groups(records, {name: manifest.dataset.truth for name, manifest in manifests})
    rivals = [
        rival
        for run_name, manifest in manifests
        for rival in rivals_of(run_name, manifest, (record for name, record in records if name == run_name))
    ]
    own = {run_name: claims_of(manifest) for run_name, manifest in manifests}
    claims = tuple(dict.fromkeys(claim for some in own.values() for claim in some))
    findings = decide_claims(own, groups, timed)
    lost = {claim.name: 0 for claim in claims}
    picked = {run_name for run_name, _ in picks}  # what a pick says takes the place of what its figures alone would
    own_words = [group for group in groups if group.run not in picked]
    for run_name, manifest in manifests:
        for claim in own[run_name]:
            lost[claim.name] += planned_without_result(claim, run_name, manifest, findings)
    return Summary(
        name=name,
        runs=tuple(manifests),
        groups=tuple(groups),
        findings=tuple(findings),
        claims=claims,
        without_result=lost,
        speed_ups=tuple(speed_ups(findings)),
        selections=tuple(selections(groups)),
        choices=tuple(recommend(own_words, rivals)),
        nothing_beats=tuple(nothing_beats(own_words, rivals)),
        undecided=tuple(undecided(own_words, rivals)),
        records=tuple(records),
        pairs=tuple((name, record) for name, some in timed.items() for record in some),
        missing=tuple(missing),
        planned_pairs=tuple(planned_pairs),
        picks=tuple(picks),
    )
