"""Writes the answer of a report in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from bench.analysis import selection
from bench.analysis.claims import HALF_THE_TIME, Claim
from bench.analysis.groups import Group
from bench.analysis.metrics import METRICS, RATED_BY, costs, what_matters
from bench.analysis.recommend import NO_WORSE, Cheaper, Choice, Rival, Undecided
from bench.analysis.rising import epochs_to_try, still_rising
from bench.analysis.speedups import SpeedUp
from bench.analysis.stats import MIN_SAMPLES
from bench.analysis.verdicts import ClaimVerdict, Finding, overall, show_share, verdict_counts
from bench.report.pick_text import sentence
from bench.report.settings_text import accuracy_name
from bench.report.summary import Summary
from bench.report.tables import accuracy, show
from bench.store.records import USUAL
from bench.sweep.pairs import without_turns
from tl.config import TrainConfig
from tl.machine import DeviceKey
from tl.regimes import REGIMES

MOST_SENTENCES = 6
"""Largest number of comparisons that have a sentence each."""
MOST_NAMES = 4
"""Largest number of combinations that a sentence lists."""


def answers(summary: Summary) -> list[str]:
    """Paragraphs of the answer: what to use on each device, and whether training the head takes half the time."""
    return [*recommendations(summary), *half_answers(summary), *doubts(summary)]


def recommendations(summary: Summary) -> list[str]:
    """Paragraphs on what to use on each device, what was not considered, and why."""
    return [summary.words(text) for text in _recommended(summary)]


def half_answers(summary: Summary) -> list[str]:
    """A paragraph for each loop on whether training the head takes half the time."""
    return [summary.words(text) for text in _halves(summary)]


def doubts(summary: Summary) -> list[str]:
    """A sentence on rows of the table whose times are in doubt; none if there are no such rows."""
    return [summary.words(text) for text in _doubtful(summary)]


def _recommended(summary: Summary) -> list[str]:
    paragraphs = [sentence(pick) for _, pick in summary.picks]
    paragraphs += [_choice(choice, summary) for choice in summary.choices]
    paragraphs += [_undecided(one, summary) for one in summary.undecided]
    paragraphs += [_nothing_beats(group, summary) for group in summary.nothing_beats]
    picked = {run for run, _ in summary.picks}  # a pick has said what to use, times no pairs, and asks another question
    others = [group for group in summary.groups if group.run not in picked]
    if others and all(group.accuracy is None for group in others):
        which = "No cell that has ended" if summary.missing else "No cell"
        paragraphs.append(
            f"{which} had pretrained weights, so accuracy says nothing here; {what_matters(costs())} are valid."
        )
    elif others and not (summary.choices or summary.nothing_beats or summary.undecided):
        paragraphs.append("Only controls have an accuracy here: there is nothing to recommend.")
    if not summary.groups:
        paragraphs.append("No cell has a result yet.")
    return paragraphs


def half_comparisons(summary: Summary) -> Iterator[tuple[Claim, list[SpeedUp]]]:
    """Yield each claim on half the time that was measured, with its comparisons. A pick asks another question."""
    picked = {run for run, _ in summary.picks}
    for claim in HALF_THE_TIME:
        if timed := [row for row in summary.speed_ups if row.finding.claim == claim and row.fast.run not in picked]:
            yield claim, timed


def _halves(summary: Summary) -> list[str]:
    return [_half(claim, timed, summary) for claim, timed in half_comparisons(summary)]


def _doubtful(summary: Summary) -> list[str]:
    """A sentence on rows of the table whose times are in doubt; none if there are no such rows."""
    found = [group for group in summary.groups if group.doubt]
    if not found:
        return []
    rows = "the only row" if len(summary.groups) == 1 else f"{len(found)} of {len(summary.groups)} rows of the table"
    named = _listed([f"{_named(group)} ({group.doubt})" for group in found])
    return [f"Times are in doubt in {rows}: {named}."]


START: dict[ClaimVerdict, str] = {
    "supported": "Yes",
    "above": "No, it takes less than that",
    "below": "No, it takes more than that",
}
"""Verdict on half the time → the beginning of its answer; all others are undecided, or on the edge."""


_NEEDED = f"A verdict needs more `--epochs`, or {MIN_SAMPLES} process pairs."
"""What would decide a claim on times of trainings of a single epoch."""


def _half(claim: Claim, timed: Sequence[SpeedUp], summary: Summary) -> str:
    """The answer to whether training only the head takes about half the time, in words to read out."""
    findings = [row.finding for row in timed]
    known = [row for row in timed if row.speed_up]
    lost = _lost(claim, summary)
    if not known and all(one.group.only_epoch_seconds or one.against.only_epoch_seconds for one in findings):
        said = f" Undecided: a training of a single epoch has only a cold one. {_NEEDED}{f' {lost}.' if lost else ''}"
    elif not known or len(known) > MOST_SENTENCES:
        said = f" {verdict_counts(findings)}{f'; {lost}' if lost else ''}.{_range(known)}"
    else:
        said = " " + " ".join(_sentences(known, summary)) + _apart(known, later=bool(summary.missing_pairs))
        said += f" {lost}." if lost else ""
    return f"{claim.statement}?{said}{_more_samples(findings, left=len(summary.missing_pairs))}"


def _sentences(rows: Iterable[SpeedUp], summary: Summary) -> list[str]:
    """Whether the claim holds for each backbone, and the share of time: a sentence for all with the same answer."""
    several = len({other.fast.config.regime for other in summary.speed_ups}) > 1
    parts: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        start = "On the edge" if row.finding.edge else START.get(row.finding.verdict, "Undecided")
        where = device_words(row.fast.cell.device)
        epoch = f"the {row.fast.config.regime} epoch" if several else "the frozen epoch"
        some = parts.setdefault((start, where, epoch), [])
        name = summary.short_name(row.fast.cell, row.fast.run, "device", "execution")
        takes = "" if some else f" on {where} {epoch} takes"
        of = "" if some else " of the time"
        share = show_share(row.speed_up, row.finding.claim)
        some.append(f"with {name}{takes} {share}{of}{_basis(row)}{_not_clear(row.finding)}")
    return [f"{start}: {'; '.join(some)}." for (start, _, _), some in parts.items()]


def _basis(row: SpeedUp) -> str:
    """What a share rests on, if that is less than usual; empty otherwise."""
    if row.speed_up and row.speed_up.low is None:
        return f" ({row.speed_up.n} of {MIN_SAMPLES} {row.finding.by})"
    return ", timed one after the other" if row.finding.paired and row.finding.paired.apart else ""


def _not_clear(finding: Finding) -> str:
    """Why a finding is undecided though its share is known, or its interval is clear; empty for all others."""
    if finding.edge:
        begins = finding.edge == finding.claim.bounds[1]
        return f", and “about half” {'begins' if begins else 'ends'} at {finding.claim.share(finding.edge)}"
    if not finding.clear_alone:
        return ""
    return f", which is not clear enough where {finding.tests} verdicts must hold together"


def _apart(known: Sequence[SpeedUp], *, later: bool) -> str:
    """Sentences that say which answers rest on seeds, and why; empty if none does. `later`: pairs are planned."""
    by_seeds = [row for row in known if row.speed_up and row.finding.by == "seeds"]
    untimed = [row for row in by_seeds if not row.finding.all_lost]
    said = "".join(_all_failed(row, several=len(known) > 1) for row in by_seeds if row.finding.all_lost)
    if not untimed:
        return said
    counts = sorted({row.speed_up.n for row in untimed if row.speed_up})
    counted = _seeds(*dict.fromkeys((counts[0], counts[-1])))
    if len(untimed) == len(known):
        why = "no process pairs are timed yet" if later else "no process pairs were timed"
        return f" By {counted}, timed minutes apart, since {why}."
    names = [row.fast.config.backbone for row in untimed]
    return f"{said} By {counted}, timed minutes apart: {', '.join(dict.fromkeys(names))}."


def _all_failed(row: SpeedUp, *, several: bool) -> str:
    """A sentence on a comparison by seeds, since all its process pairs failed, with the reason of the last one."""
    lost = row.finding.all_lost.lost if row.finding.all_lost else ()
    n = row.speed_up.n if row.speed_up else 0
    which = "The only process pair" if len(lost) == 1 else f"All {len(lost)} process pairs"
    which += f" of {row.fast.config.backbone}" if several else ""
    seeds = f"{_seeds(n)} decide" if n >= MIN_SAMPLES else f"there {'is' if n == 1 else 'are'} only {_seeds(n)}"
    return f" {which} failed ({lost[-1].status}: {lost[-1].reason}), so {seeds}, timed minutes apart."


def _seeds(*counts: int) -> str:
    counted = "–".join(map(str, counts))
    return f"{counted} seed" if counted == "1" else f"{counted} seeds"


def device_words(device: str) -> str:
    """A device in words to read out: that of the machine of the report."""
    key = DeviceKey.parse(device)
    kind = "CPU" if key.kind == "cpu" else "GPU"
    if key.machine:
        return f"the {kind} of {key.machine}"
    return f"this {kind}" if ":" not in key.name or key.name.endswith(":0") else f"this {kind} ({key.name})"


def _range(known: Sequence[SpeedUp]) -> str:
    values = [row.speed_up.value for row in known if row.speed_up]
    if not values:
        return ""
    low, high = f"{min(values):.1f}×", f"{max(values):.1f}×"
    return f" All speed-ups are {low}." if low == high else f" Speed-ups from {low} to {high}."


def overalls(summary: Summary) -> list[tuple[Claim, str]]:
    """Pairs of each claim and the report's overall verdict on it."""
    verdicts = []
    for claim in summary.claims:
        about = [finding for finding in summary.findings if finding.claim == claim]
        lost = _lost(claim, summary)
        if METRICS[claim.metric].on_request and any(_unmeasured(finding) for finding in about):
            lost = f"{lost}; " * bool(lost) + "cells that ran without `run --inference` have no figure for it"
        in_words = claim.replace(statement=summary.words(claim.statement, by_image=True))
        nothing = f"not tested: no result of {claim.subject} and {claim.against} for the same backbone and device"
        verdicts.append(
            (
                in_words,
                (f"{overall(about)}. {verdict_counts(about)}" if about else nothing) + (f"; {lost}" if lost else ""),
            )
        )
    return verdicts


def _unmeasured(finding: Finding) -> bool:
    """True if a side of a comparison lacks the metric that it is about."""
    return not all(group.values(finding.claim.metric) for group in (finding.group, finding.against))


def selection_overall(summary: Summary) -> str:
    """The overall verdict on whether a probe picks the winner, or why it is unknown."""
    found = summary.selections
    if not found:
        return f"unknown: {selection.why_none(summary.groups)}"
    words = [f"{selection.name_of(one.score)} {one.words}" for one in found]
    counts = ", ".join(f"{count}× {word}" if count > 1 else word for word, count in Counter(words).items())
    reasons = "; ".join(dict.fromkeys(one.reason for one in found if one.reason))
    return f"{selection.overall(found)}. {counts}{f' ({reasons})' if reasons else ''}"


def _lost(claim: Claim, summary: Summary) -> str:
    """How many comparisons can't be made; empty without any."""
    lost = summary.without_result[claim.name]
    return f"{lost} more {'has' if lost == 1 else 'have'} no result on one side" if lost else ""


def _more_samples(findings: list[Finding], *, left: int) -> str:
    """Advice where pairs or seeds are too few for a verdict; empty otherwise. What can't be paired needs seeds.

    So many process pairs are `left`, planned and not timed yet.
    """
    few = [finding for finding in findings if finding.verdict == "too few samples"]
    can_pair = [not (without_turns(one.group.cell) or without_turns(one.against.cell)) for one in few]
    said = ""
    if any(can_pair):
        said += f" A verdict needs {MIN_SAMPLES} process pairs"
        said += (
            f", and {left} {'is' if left == 1 else 'are'} still to be timed: the same command continues."
            if left
            else ": the same command with more `--pairs` adds them to this run."
        )
    if not all(can_pair):
        which = "the others need" if said else "a verdict needs"
        said += (
            f" {which[0].upper()}{which[1:]} {MIN_SAMPLES} seeds, since no pairs can be timed: `--seeds {MIN_SAMPLES}`."
        )
    return said


def _where(choice: Choice, summary: Summary) -> str:
    """Words for the device and run of a choice, each after a blank; empty if all answers have the same."""
    return place_of(choice.run, choice.device, summary)


def place_of(run: str, device: str, summary: Summary) -> str:
    """Words for a device and a run, each after a blank; empty if all answers have the same."""
    all_places = {(one.run, one.device) for one in summary.choices}
    all_places |= {(one.run, one.device) for one in summary.undecided}
    all_places |= {(group.run, group.cell.device) for group in summary.nothing_beats}
    runs, devices = ({place[part] for place in all_places} for part in (0, 1))
    return (f" on {device}" if len(devices) > 1 else "") + (f" in {run}" if len(runs) > 1 else "")


def _choice(choice: Choice, summary: Summary) -> str:
    where = _where(choice, summary).strip()
    use = f"{where[0].upper()}{where[1:]}: use" if where else "Use"
    pick, best = choice.pick, choice.best
    rated = f"{accuracy_name(pick.config)} {accuracy(pick)}"
    text = f"{use} {_named(pick)}: {rated}, {_pace(pick)}."
    if largest := _largest_class(pick):
        text += f" {largest[0].upper()}{largest[1:]}."
    if pick is not best:
        text += f" The most accurate is {_named(best)} with {accuracy(best)}: it is shown to be at most "
        text += f"{100 * NO_WORSE:g} points ahead, and takes {_times(best, pick)} as long."
    if one := choice.cheaper:
        text += f" Faster, and perhaps as accurate: {_named(one.group)}, {accuracy(one.group)}, {_pace(one.group)}"
        text += f"; {_loses(one)}."
    elif choice.tied and pick is best:
        are = "is" if choice.tied == 1 else "are"
        text += f" {choice.tied} more {are} statistically tied with it on these images, but not faster."
    if said := _constant(pick):
        text += f" {said}."
    if still_rising(pick):
        text += f" Its accuracy was still rising at the last epoch: try `--epochs {epochs_to_try(pick)}`."
    text += _no_weights(choice.left_out)
    if choice.not_above:
        bound = "the largest class" if pick.largest_class else "the same answer for all images"
        text += f" Not considered (not above {bound}): {_listed([_named(one) for one in choice.not_above])}."
    if choice.failed:
        names = [f"{_named_cell(one)} ({one.status})" for one in choice.failed]
        text += f" Not considered (no result): {_listed(names)}."
    return text + _synthetic(choice.run, summary)


def _times(slow: Group, fast: Group) -> str:
    """Such as `2.5×`: the time of a whole training by that of another."""
    return f"{slow.seconds / fast.seconds:.2g}×"


def _loses(one: Cheaper) -> str:
    """How much less accurate a faster combination is, and what is not shown."""
    if one.loses is None or one.loses.low is None or one.loses.high is None:
        return f"{MIN_SAMPLES} seeds of both would say how much less accurate it is"
    low, high = (f"{100 * end:.1f}" for end in (one.loses.low, one.loses.high))
    task = one.group.task
    if not task.right_or_wrong:
        return (
            f"its {task.image_score} is lower by {100 * one.loses.value:.1f} points ({low} to {high}), not shown to be "
            f"at most {100 * NO_WORSE:g}"
        )
    less = f"it is {100 * one.loses.value:.1f} points less accurate ({low} to {high})"
    return f"{less}, not shown to be at most {100 * NO_WORSE:g}"


def _synthetic(run: str, summary: Summary) -> str:
    """A sentence on images that are not real; empty for real ones."""
    if any(name == run and manifest.dataset.fallback for name, manifest in summary.runs):
        return " These images are synthetic: on real ones the choice may be another."
    return ""


def _undecided(one: Undecided, summary: Summary) -> str:
    """The answer where a choice would have no alternative, and which candidates are missing."""
    where = place_of(one.run, one.device, summary).strip()
    start = f"{where[0].upper()}{where[1:]}: nothing" if where else "Nothing"
    best = f"{_named(one.best)}: {accuracy_name(one.best.config)} {accuracy(one.best)}"
    waiting = [_named_cell(rival) for rival in one.rivals if not rival.status]
    failed = [f"{_named_cell(rival)} ({rival.status})" for rival in one.rivals if rival.status]
    text = f"{start} is recommended yet: "
    if waiting:
        text += f"{len(waiting)} of the combinations {'has' if len(waiting) == 1 else 'have'} no result yet: "
        text += f"{_listed(waiting)}. The most accurate so far is {best}"
    else:
        text += f"only {_named(one.best)} has an accuracy, {accuracy(one.best)}, and nothing to compare it with"
    if said := _largest_class(one.best):
        text += f"; {said}"
    text += "."
    if said := _constant(one.best):
        text += f" {said}."
    if still_rising(one.best):
        text += f" Its accuracy was still rising at the last epoch: try `--epochs {epochs_to_try(one.best)}`."
    text += _no_weights(one.left_out)
    if failed:
        text += f" Without a result: {_listed(failed)}."
    return text + _synthetic(one.run, summary)


def _listed(names: Sequence[str]) -> str:
    """The first of several names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{'; '.join(names[:MOST_NAMES])}{more}"


def _no_weights(backbones: Sequence[str]) -> str:
    """A sentence on backbones without pretrained weights; empty without any."""
    return f" Not considered (no pretrained weights here): {', '.join(backbones)}." if backbones else ""


def _constant(group: Group) -> str:
    """Says with how many seeds a group predicts one class for every image; empty if it never does."""
    said = [name for result in group.results if (name := result.constant_prediction) is not None]
    if not said:
        return ""
    seeds = "" if len(group.results) == 1 else f" with {len(said)} of {len(group.results)} seeds"
    return f"It predicts {said[0]!r} for every image{seeds}"


def _pace(group: Group) -> str:
    """The time of an epoch, or that of a fit with its validation, and of what runs once before, in words."""
    if (only := group.only_epoch_seconds) is not None:
        text = f"{METRICS['epoch_seconds'].say(only)} for its only epoch, a cold one"
    elif REGIMES[group.config.regime].by_steps:
        text = f"{show(group, 'epoch_seconds')} s per epoch"
    else:
        first = METRICS["first_epoch_seconds"]
        text = f"{first.say(group.typical('first_epoch_seconds'))} to fit its head and validate"
    once = {name: metric for name, metric in METRICS.items() if metric.once and group.values(name)}
    return text + "".join(f" after {metric.say(group.typical(name))} of {metric.once}" for name, metric in once.items())


def _nothing_beats(best: Group, summary: Summary) -> str:
    """The answer where no group is more accurate than always answering the largest class."""
    where = place_of(best.run, best.cell.device, summary).strip()
    start = f"{where[0].upper()}{where[1:]}: nothing" if where else "Nothing"
    rate = METRICS[RATED_BY].show(best.same_answer)
    reached = f"is right for {rate} of the validation images" if best.largest_class else f"has accuracy {rate}"
    text = (
        f"{start} is recommended: nothing beats {same_answer_of(best)}, which {reached}. The most accurate, "
        f"{_named(best)}, has {accuracy_name(best.config)} {accuracy(best)}"
    )
    said = {result.constant_prediction for result in best.results}
    if None not in said and len(said) == 1:
        text += f": it predicts {said.pop()!r} for every image"
    return f"{text}."


def _largest_class(group: Group) -> str:
    """The accuracy of the best answer that is the same for all images, in words; empty if unknown."""
    if not group.truth:
        return ""
    comma = "," if group.largest_class else ""
    return f"{same_answer_of(group)}{comma} has {METRICS[RATED_BY].show(group.same_answer)}"


def same_answer_of(group: Group) -> str:
    """The best of all answers that are the same for all images, in words."""
    if group.largest_class is None:
        return group.task.answering
    return f"always answering {group.largest_class[0]!r}, the largest class"


def _named(group: Group) -> str:
    return _combination(group.config)


def _named_cell(rival: Rival) -> str:
    return _combination(rival.cell.config)


def _combination(config: TrainConfig) -> str:
    """Backbone, regime, and what else is not as usual."""
    precision = f" in {config.precision}" if config.precision != USUAL["precision"] else ""
    execution = f", {config.execution} execution" if config.execution != USUAL["execution"] else ""
    return f"{config.backbone}, {config.regime}{precision}{execution}"
