"""Writes the answer of a report in sentences."""

from __future__ import annotations

from dataclasses import dataclass

from bench.analysis.claims import HALF_THE_TIME, Claim
from bench.analysis.groups import Group
from bench.analysis.metrics import METRICS, RATED_BY, costs, what_matters
from bench.analysis.recommend import Choice
from bench.analysis.stats import MIN_SAMPLES
from bench.analysis.verdicts import Finding, overall, tally
from bench.report.settings_text import accuracy_name
from bench.report.summary import Summary
from bench.report.tables import accuracy, show, spread
from bench.store.records import USUAL

MOST_NAMES = 4
"""Largest number of combinations that a sentence lists."""


def answers(summary: Summary) -> list[str]:
    """Paragraphs of the answer: what to use on each device, and whether training the head takes half the time."""
    paragraphs = [_choice(choice, summary) for choice in summary.choices]
    paragraphs += [_nothing_beats(group, summary) for group in summary.nothing_beats]
    if summary.groups and all(group.accuracy is None for group in summary.groups):
        paragraphs.append(f"No cell had pretrained weights: accuracy says nothing here, {what_matters(costs())} hold.")
    elif summary.groups and not summary.choices and not summary.nothing_beats:
        paragraphs.append("Only controls have an accuracy here: there is nothing to recommend.")
    if not summary.groups:
        paragraphs.append("No cell has a result yet.")
    if summary.speed_ups:
        timed = [row.finding for row in summary.speed_ups]
        verdicts = f"{tally(timed)}{_lost(HALF_THE_TIME, summary)}."
        paragraphs.append(f"{HALF_THE_TIME.statement}? {verdicts}{_ratios(summary)}{_more_seeds(timed)}")
    return paragraphs


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A number that the page begins with."""

    value: str
    what: str
    """Meaning of the number."""
    detail: str
    """Its interval or spread, or the number of findings that support it."""


def headlines(summary: Summary) -> list[Headline]:
    """Accuracy and time of the recommendation for the first device, and the speed-up of training only the head.

    Without a recommendation, the accuracy of always answering the largest class, if nothing beats that.
    """
    found = []
    if summary.choices:
        choice = summary.choices[0]
        pick, where = choice.pick, _where(choice, summary)
        named = f"{_named(pick)}{where}"
        rated = f"{accuracy_name(pick.config)} of {named}"
        detail = f"{spread(pick, RATED_BY)}; {_largest_class(pick)}".removesuffix("; ")
        found.append(Headline(value=show(pick, RATED_BY), what=rated, detail=detail))
        if pick.values("epoch_seconds"):
            seconds = METRICS["epoch_seconds"].say(pick.typical("epoch_seconds"))
            found.append(Headline(value=seconds, what=f"per epoch of {named}", detail=spread(pick, "epoch_seconds")))
    elif summary.nothing_beats:
        best = summary.nothing_beats[0]
        name, rate = best.largest_class or ("", 0.0)
        what = f"by always answering {name!r}, the largest class: nothing here is more accurate"
        detail = f"the most accurate: {_named(best)}, {show(best, RATED_BY)}"
        found.append(Headline(value=METRICS[RATED_BY].show(rate), what=what, detail=detail))
    timed = [row for row in summary.speed_ups if row.speed_up]
    if timed:
        values = [row.speed_up.value for row in timed if row.speed_up]
        alike = len({HALF_THE_TIME.show(value) for value in values}) == 1
        ends = HALF_THE_TIME.show(min(values)) + ("" if alike else f"–{HALF_THE_TIME.show(max(values))}")
        what = "as fast as fine-tuning, per epoch with only the head in training"
        detail = f"“about half the time”? {tally([row.finding for row in timed])}"
        found.append(Headline(value=ends, what=what, detail=detail))
    return found


def overalls(summary: Summary) -> list[tuple[Claim, str]]:
    """Pairs of each claim and the report's overall verdict on it."""
    verdicts = []
    for claim in summary.claims:
        about = [finding for finding in summary.findings if finding.claim == claim]
        nothing = f"not tested: no result of {claim.subject} and {claim.against} for the same backbone and device"
        verdicts.append((claim, (f"{overall(about)}. {tally(about)}" if about else nothing) + _lost(claim, summary)))
    return verdicts


def _lost(claim: Claim, summary: Summary) -> str:
    lost = summary.without_result[claim.name]
    return f"; {lost} more have no result on one side" if lost else ""


def _more_seeds(findings: list[Finding]) -> str:
    """Advice to run more seeds; empty if there are enough."""
    if all(finding.verdict != "too few samples" for finding in findings):
        return ""
    return f" A verdict needs {MIN_SAMPLES} seeds: `--seeds {MIN_SAMPLES}`, or `--until-decided`, adds to this run."


def _ratios(summary: Summary) -> str:
    """The speed-ups by name, or only their range if there are more than six."""
    ratios = [(row.fast, row.speed_up.value) for row in summary.speed_ups if row.speed_up]
    if not ratios:
        return ""
    if len(ratios) > 6:
        values = [value for _, value in ratios]
        return f" Speed-ups from {min(values):.1f}× to {max(values):.1f}×."
    several = len({group.config.regime for group, _ in ratios}) > 1
    named = (f"{summary.short(g)}{' ' + g.config.regime if several else ''} {value:.1f}×" for g, value in ratios)
    return f" Speed-ups: {', '.join(named)}."


def _where(choice: Choice, summary: Summary) -> str:
    """Words for the device and run of a choice, each after a blank; empty if all answers have the same."""
    return _place(choice.run, choice.device, summary)


def _place(run: str, device: str, summary: Summary) -> str:
    all_places = {(c.run, c.device) for c in summary.choices} | {(g.run, g.cell.device) for g in summary.nothing_beats}
    runs, devices = ({place[part] for place in all_places} for part in (0, 1))
    return (f" on {device}" if len(devices) > 1 else "") + (f" in {run}" if len(runs) > 1 else "")


def _choice(choice: Choice, summary: Summary) -> str:
    where = _where(choice, summary).strip()
    use = f"{where[0].upper()}{where[1:]}: use" if where else "Use"
    pick, best = choice.pick, choice.best
    rated = f"{accuracy_name(pick.config)} {accuracy(pick)}"
    text = f"{use} {_named(pick)}: {rated}, {show(pick, 'epoch_seconds')} s per epoch"
    once = {name: metric for name, metric in METRICS.items() if metric.once and pick.values(name)}
    text += "".join(f" after {metric.say(pick.typical(name))} of {metric.once}" for name, metric in once.items())
    text += "."
    if largest := _largest_class(pick):
        text += f" {largest[0].upper()}{largest[1:]}."
    if pick is not best:
        text += f" It is the fastest of {choice.tied + 1} that are statistically tied on these images;"
        text += f" {_named(best)} has {accuracy(best)}."
    elif choice.tied:
        are = "is" if choice.tied == 1 else "are"
        text += f" {choice.tied} more {are} statistically tied with it on these images, but not faster."
    if choice.left_out:
        text += f" Not considered (no pretrained weights here): {', '.join(choice.left_out)}."
    if choice.not_above:
        names = [_named(group) for group in choice.not_above]
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        text += f" Not considered (not above the largest class): {'; '.join(names[:MOST_NAMES])}{more}."
    if any(name == choice.run and manifest.dataset.fallback for name, manifest in summary.runs):
        text += " These images are synthetic: on real ones the choice may be another."
    return text


def _nothing_beats(best: Group, summary: Summary) -> str:
    """The answer where no group is more accurate than always answering the largest class."""
    where = _place(best.run, best.cell.device, summary).strip()
    name, rate = best.largest_class or ("", 0.0)
    start = f"{where[0].upper()}{where[1:]}: nothing" if where else "Nothing"
    text = (
        f"{start} is to be recommended: nothing beats always answering {name!r}, the largest class, which is right for "
        f"{METRICS[RATED_BY].show(rate)} of the validation images. The most accurate, {_named(best)}, has "
        f"{accuracy_name(best.config)} {accuracy(best)}"
    )
    said = {result.constant_prediction for result in best.results}
    if None not in said and len(said) == 1:
        text += f": it predicts {said.pop()!r} for every image"
    return f"{text}."


def _largest_class(group: Group) -> str:
    """The accuracy of always answering the largest class, in words; empty if unknown."""
    if group.largest_class is None:
        return ""
    name, rate = group.largest_class
    return f"always answering {name!r}, the largest class, has {METRICS[RATED_BY].show(rate)}"


def _named(group: Group) -> str:
    precision = f" in {group.config.precision}" if group.config.precision != USUAL["precision"] else ""
    execution = f", {group.config.execution} execution" if group.config.execution != USUAL["execution"] else ""
    return f"{group.config.backbone}, {group.config.regime}{precision}{execution}"
