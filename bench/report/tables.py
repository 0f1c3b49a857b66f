"""Makes the tables of a report, as frames of text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from bench.analysis import selection
from bench.analysis.groups import APART, Group
from bench.analysis.metrics import METRICS, RATED_BY, costs, costs_on_request, headline, points, signed
from bench.analysis.paired import PairedComparison
from bench.analysis.selection import Selection
from bench.analysis.speedups import SpeedUp
from bench.analysis.verdicts import Finding, show_estimate, show_ratio, show_share
from bench.report.pick_text import row, tried
from bench.report.settings_text import chosen_rates
from bench.report.summary import Summary
from bench.store.picks import PickRecord
from bench.store.records import USUAL
from tl.regimes import REGIMES

MOST_TIED = 4
"""Largest number of tied groups that a table cell names."""


BESIDE_ACCURACY = ("balanced_accuracy_last", "macro_f1_last")
"""Metrics with a column where classes are unequal: each class weighs the same in them."""

DOUBT = "times in doubt"
"""Heading of the column that marks disturbed times; it is there if some row has any."""
_DOUBT = (
    "seeds whose cells other work on the machine disturbed, and by how much the times per epoch of seeds differ if the "
    f"longest is more than {APART:g} times the shortest"
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table of cells."""

    heading: str
    texts: tuple[str, ...]
    """One text per group."""
    metric: str = ""
    """The metric in the column; empty if the column shows no metric."""
    meaning: str = ""
    brief: tuple[str, ...] = ()
    """The texts without intervals, for narrow places; empty for a column that has no intervals."""


def columns(summary: Summary) -> list[Column]:
    """The columns of the main table, which has one row per group of seeds."""
    groups = summary.groups
    facts = [
        _identifying_columns(g, summary) | {"weights": g.config.weights} | chosen_rates(g, summary) for g in groups
    ]
    if any(len(group.records) > 1 for group in groups):
        facts = [fact | {"seeds": str(len(group.records))} for fact, group in zip(facts, groups, strict=True)]
    known = [name for name, metric in METRICS.items() if metric.once or metric.on_request or metric.where_known]
    some = [name for name in known if any(group.values(name) for group in groups)]
    shown = [name for name, metric in METRICS.items() if metric.column]
    doubts = tuple(group.doubt for group in groups)
    if summary.unequal_classes:
        after = shown.index(RATED_BY) + 1
        shown[after:after] = BESIDE_ACCURACY
    return [
        *(Column(heading=name, texts=tuple(fact[name] for fact in facts)) for name in (facts[0] if facts else ())),
        *(_column(name, groups, summary) for name in (*shown, *some)),
        *([Column(heading=DOUBT, texts=doubts, meaning=_DOUBT)] if any(doubts) else []),
        Column(heading="frozen", texts=tuple(_frozen(group) for group in groups)),
    ]


def _column(name: str, groups: Sequence[Group], summary: Summary) -> Column:
    """A metric's column. Only the accuracy that combinations are ranked by has intervals."""
    metric, brief = METRICS[name], tuple(show(group, name) for group in groups)
    texts = tuple(accuracy(group) for group in groups) if name == RATED_BY else brief
    heading, meaning = summary.words(metric.heading), summary.words(metric.meaning)
    return Column(heading=heading, texts=texts, metric=name, meaning=meaning, brief=brief)


def headline_columns(summary: Summary) -> list[Column]:
    """The columns of the main table that a narrow place has: what tells rows apart, and headline metrics."""
    first = headline()
    return [column for column in columns(summary) if (column.metric in first if column.metric else tells_apart(column))]


def tells_apart(column: Column) -> bool:
    """True for columns that identify rows or mark some. The same text in all rows identifies none of them."""
    if column.heading in ("weights", "frozen"):
        return False
    return column.heading in ("backbone", "regime", DOUBT) or len(set(column.texts)) > 1


def cells_table(summary: Summary) -> pd.DataFrame:
    """The main table of a report; see `columns`."""
    return pd.DataFrame({column.heading: column.texts for column in columns(summary)})


def without_alike(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A table without the columns that have the same text in all of its several rows, and these texts in words.

    The first column always stays.
    """
    alike = [name for name in table.columns[1:] if len(table) > 1 and table[name].nunique() == 1]
    said = [f"{name} {table[name].iloc[0]}" for name in alike]
    return table.drop(columns=alike), f"The same in all rows: {'; '.join(said)}." if said else ""


def candidates_table(pick: PickRecord) -> pd.DataFrame:
    """The backbones that a pick tried, and how far each came."""
    return pd.DataFrame([row(one) for one in tried(pick)])


def priorities_table(summary: Summary) -> pd.DataFrame:
    """What to use if accuracy or one of the costs matters most, on each device of each run."""
    rows = []
    asked_for = {priority.metric for choice in summary.choices for priority in choice.priorities} - {RATED_BY, *costs()}
    shown = [*costs(), *(name for name in costs_on_request() if name in asked_for)]
    for choice in summary.choices:
        place = {"run": choice.run} if len({c.run for c in summary.choices}) > 1 else {}
        place |= {"device": choice.device} if len({c.device for c in summary.choices}) > 1 else {}
        for priority in choice.priorities:
            first, *tied = priority.groups
            names = [_pick(group, summary) for group in tied]
            more = f" and {len(names) - MOST_TIED} more" if len(names) > MOST_TIED else ""
            rows.append(
                place
                | {
                    "what matters most": summary.words(METRICS[priority.metric].matters),
                    "use": _pick(first, summary),
                    summary.words(METRICS[RATED_BY].heading): accuracy(first),
                    **{METRICS[name].heading: show(first, name) for name in shown},
                    "statistically tied with it": ", ".join(names[:MOST_TIED]) + more if names else "none",
                }
            )
    return pd.DataFrame(rows)


def _pick(group: Group, summary: Summary) -> str:
    return f"{summary.short(group)}, {group.config.regime}"


def speed_up_table(summary: Summary) -> pd.DataFrame:
    """One row per comparison of training only the head with fine-tuning."""
    return pd.DataFrame([_speed_up_row(row, summary) for row in summary.speed_ups])


def _speed_up_row(row: SpeedUp, summary: Summary) -> dict[str, str]:
    saved, slow = row.memory_saved_bytes, row.memory_before_bytes
    memory = "n/a"
    if saved is not None and slow:
        memory = f"{METRICS['peak_memory_bytes'].say(saved)} ({saved / slow:.0%})"
    difference = "n/a"
    if row.accuracy is not None and row.accuracy_test is not None:
        test = row.accuracy_test
        p_text = f"p = {test.p:.2g}" if test.can_show else "too few images"
        difference = f"{points(row.accuracy.value)} points ({p_text})"
    claim = row.finding.claim
    return _identifying_columns(row.fast, summary) | {
        "share of the time": show_share(row.speed_up, claim),
        "speed-up": row.finding.shown,
        "predicted": claim.show(row.finding.predicted),
        "training alone": show_estimate(claim, row.training, row.finding.by),
        "predicted, training alone": claim.show(row.training_predicted),
        "memory saved": memory,
        summary.words("accuracy difference", by_image=True): difference,
        "“about half the time”": row.finding.words,
    }


def paired_findings(summary: Summary) -> list[tuple[Finding, PairedComparison]]:
    """The comparisons by process pairs, each with its first finding. Those without any result are among them."""
    found: dict[tuple[str, str, str], tuple[Finding, PairedComparison]] = {}
    for finding in summary.findings:
        if paired := finding.paired or finding.all_lost:
            found.setdefault((finding.group.run, paired.cell.id, paired.against.id), (finding, paired))
    return list(found.values())


def paired_table(summary: Summary) -> pd.DataFrame:
    """One row per comparison by process pairs: what was measured, and how much it scatters."""
    return pd.DataFrame([_paired_row(finding, paired, summary) for finding, paired in paired_findings(summary)])


def _paired_row(finding: Finding, paired: PairedComparison, summary: Summary) -> dict[str, str]:
    seconds, memory = METRICS["epoch_seconds"], METRICS["peak_memory_bytes"]
    rounds = sorted(set(paired.rounds))
    dependence = paired.speed_up.dependence if paired.speed_up else None
    against = f"{paired.cell.config.regime} against {paired.against.config.regime}"
    return _identifying_columns(finding.group, summary) | {
        "regime": against,
        "share of the time": show_share(paired.speed_up),
        "speed-up": show_ratio(paired.speed_up, "pairs"),
        "s per epoch": f"{seconds.show(paired.seconds)} against {seconds.show(paired.against_seconds)}",
        "memory, MiB": f"{memory.show(paired.peak_bytes)} against {memory.show(paired.against_peak_bytes)}",
        "pairs": _count(paired),
        "rounds per pair": "–".join(str(end) for end in dict.fromkeys((rounds[0], rounds[-1]))) if rounds else "n/a",
        "scatter of pairs": _relative(paired.scatter),
        "of rounds": _relative(paired.within),
        "drift per pair": signed(paired.trend, ".1%"),
        "within a pair": signed(paired.drift, ".1%"),
        "correlation": signed(dependence.correlation if dependence else None, ".2f"),
        "timed": "n/a" if not paired.pairs else "one after the other" if paired.apart else "in turns",
    }


def _count(paired: PairedComparison) -> str:
    """How many pairs have a result, and how many have none."""
    if not paired.lost:
        return f"{paired.pairs}"
    return f"{paired.pairs}, {len(paired.lost)}{' more' if paired.pairs else ''} without a result"


def paired_remarks(summary: Summary) -> list[str]:
    """What was not as planned: comparisons that were timed one after the other, and pairs that failed, with reasons."""
    found = []
    for finding, paired in paired_findings(summary):
        name = f"{summary.short(finding.group)}, {paired.cell.config.regime} against {paired.against.config.regime}"
        if paired.apart:
            found.append(f"{name}: timed one after the other, so drift of the machine counts fully: {paired.apart}")
        if paired.precisions[0] != paired.precisions[1]:
            found.append(
                f"{name}: the two ran in {' and '.join(each or 'an unknown precision' for each in paired.precisions)}, "
                "as was chosen for each, so the ratio is not that of equal arithmetic"
            )
        if paired.unused:
            were = "1 pair was" if paired.unused == 1 else f"{paired.unused} pairs were"
            found.append(f"{name}: {were} timed one after the other, and left out, since others took turns")
        found += [f"{name}, pair {one.number + 1}: {one.status}: {one.reason}" for one in paired.lost]
    return found


def _relative(deviation: float | None) -> str:
    return "n/a" if deviation is None else f"{deviation:.1%}"


def claims_table(summary: Summary) -> pd.DataFrame:
    """One row per claim and pair of groups."""
    return pd.DataFrame([_claim_row(finding, summary) for finding in summary.findings])


def _claim_row(finding: Finding, summary: Summary) -> dict[str, str]:
    claim, group = finding.claim, finding.group
    identity = _identifying_columns(group, summary) | {"regime": f"{group.config.regime} against {claim.against}"}
    if len(summary.levels["weights"]) > 1:
        identity["weights"] = group.config.weights
    share = f"; {show_share(finding.estimate, claim)}" if claim.as_share and finding.estimate else ""
    return (
        {"claim": claim.name}
        | identity
        | {
            "measured": f"{finding.shown}{share}",
            "predicted": claim.show(finding.predicted),
            "holds if": claim.region,
            "verdict": finding.words,
        }
    )


def selection_table(summary: Summary) -> pd.DataFrame:
    """One row per cheap score and set of trainings that it is tested on."""
    return pd.DataFrame([_selection_row(one, summary) for one in summary.selections])


def _selection_row(one: Selection, summary: Summary) -> dict[str, str]:
    identity = _identifying_columns(one.trained, summary)
    del identity["backbone"]
    trained = {"trained with" if name == "regime" else name: text for name, text in identity.items()}
    return (
        {"score": selection.name_of(one.score)}
        | trained
        | {
            "backbones": str(one.backbones),
            "picks": one.picked,
            "most accurate": one.best,
            "agreement": signed(one.agreement, ".2f"),
            "regret": one.shown,
            "of a random pick": one.by_chance,
            "verdict": f"{one.words} ({one.reason})" if one.reason else one.words,
        }
    )


def _identifying_columns(group: Group, summary: Summary) -> dict[str, str]:
    """The columns that identify a row: backbone, regime, device, and settings that differ within the report."""
    config = group.config
    row = {"run": group.run} if len(summary.runs) > 1 else {}
    control = " (control)" if REGIMES[config.regime].control else ""
    row |= {"backbone": config.backbone, "regime": f"{config.regime}{control}", "device": group.cell.device}
    row |= {axis: getattr(config, axis) for axis in USUAL if len(summary.levels[axis]) > 1}
    return row | {name.replace("_", " "): str(getattr(config, name)) for name in summary.settings}


def _frozen(group: Group) -> str:
    """`verified`, `NOT FROZEN` if the frozen part changed with any seed, or empty if nothing was checked."""
    checks = [result.frozen_verified for result in group.results]
    if False in checks:
        return "NOT FROZEN"
    return "verified" if True in checks else ""


def accuracy(group: Group) -> str:
    """Accuracy after the last epoch with its interval (one seed) or standard deviation (several seeds)."""
    return f"{show(group, RATED_BY)} {spread(group, RATED_BY)}".rstrip()


def show(group: Group, name: str) -> str:
    """Format a metric of a group: the mean or median over seeds. The time of an only epoch is marked as cold."""
    if name == "epoch_seconds" and (only := group.only_epoch_seconds) is not None:
        return f"{METRICS[name].show(only)} cold"
    return METRICS[name].show(group.typical(name))


def seeds_once(column: Column) -> tuple[Column, int | None]:
    """A column whose rows all have a standard deviation over equally many seeds, without this number, and the number.

    Any other column is returned as it is, and None.
    """
    numbers = {found[1] if (found := _DEVIATION.search(text)) else None for text in column.texts if text != "n/a"}
    if len(numbers) != 1 or not (number := numbers.pop()):
        return column, None
    return replace(column, texts=tuple(_DEVIATION.sub("", text) for text in column.texts)), int(number)


_DEVIATION = re.compile(r" \(sd, n = (\d+)\)$")
"""What `spread` says of a standard deviation."""


def spread(group: Group, name: str) -> str:
    """Format the uncertainty of a metric: an interval, a standard deviation or the range of seeds; empty if unknown."""
    metric, seeds = METRICS[name], group.over_seeds(name)
    if seeds is None:
        return ""
    low, high, deviation = (
        format(metric.scale * each, metric.style) for each in (seeds.low, seeds.high, seeds.deviation)
    )
    if seeds.bars == "interval":
        return f"({low}–{high})"
    if seeds.bars == "deviation":
        return f"± {deviation} (sd, n = {seeds.n})"
    return f"{low}–{high} over {seeds.n} seeds" if seeds.n > 1 else "one seed"
