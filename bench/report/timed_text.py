"""Prints how long epochs take, compared by process pairs, for `bench time`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench.analysis.metrics import signed
from bench.analysis.stats import MIN_IN_ORDER, MIN_SAMPLES
from bench.analysis.timed import Timed
from bench.analysis.verdicts import digits_of_ratio, show_share
from tl.text import visible, visible_json

WIDTH = 80
"""Columns of the table's lines; only the name of a backbone, on a line of its own, may be longer."""
_FIGURES = ("share", "speed-up", "s/epoch", "MiB")
_GAP = "  "


def print_timed(timed: Sequence[Timed], format: str, dataset: str, fallback: str = "") -> None:
    """Print comparisons as text or as JSON; see `row`. `fallback` says why the images are synthetic."""
    if format == "json":
        rows = [row(each, dataset, fallback) for each in timed]
        print(visible_json(json.dumps(rows, indent=1, ensure_ascii=False)))
        return
    names = labels(timed)
    sentences = [
        line
        for each in timed
        for line in (
            sentence(each, names[each.comparison.cell.config.backbone]),
            *filter(None, (spread(each), each.explanation)),
        )
    ]
    for line in (*table(timed), "", *sentences, *lost(timed)):
        print(visible(line))


def row(timed: Timed, dataset: str, fallback: str = "") -> dict[str, Any]:
    """All that a comparison says, for JSON. What is unknown is None."""
    found = timed.comparison
    speed_up, config = found.speed_up, found.cell.config
    dependence = speed_up.dependence if speed_up else None
    return {
        "dataset": dataset,
        "backbone": config.backbone,
        "device": found.cell.device,
        "execution": config.execution,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "settings": found.cell.extras(),
        "ran_in": found.precisions[0] or None,
        "against_ran_in": found.precisions[1] or None,
        "regime": config.regime,
        "compared": found.axis,
        "value": found.names[0],
        "against": found.names[1],
        "speed_up": speed_up.value if speed_up else None,
        "low": speed_up.low if speed_up else None,
        "high": speed_up.high if speed_up else None,
        "pairs": found.pairs,
        "share": found.share,
        "share_low": 1 / speed_up.high if speed_up and speed_up.high else None,
        "share_high": 1 / speed_up.low if speed_up and speed_up.low else None,
        "predicted": timed.predicted,
        "predicted_training": timed.predicted_training,
        "explanation": timed.explanation,
        "claim": timed.claim.name if timed.claim else None,
        "verdict": timed.verdict,
        "seconds": found.seconds,
        "against_seconds": found.against_seconds,
        "peak_bytes": found.peak_bytes,
        "against_peak_bytes": found.against_peak_bytes,
        "memory_ratio": found.memory.value if found.memory else None,
        "rounds": list(found.rounds),
        "scatter": found.scatter,
        "within": found.within,
        "drift": found.drift,
        "trend": found.trend,
        "correlation": dependence.correlation if dependence else None,
        "apart": found.apart or None,
        "lost": [{"pair": each.number + 1, "status": each.status, "reason": each.reason} for each in found.lost],
        "train_images": found.train_images,
        "val_images": found.val_images,
        "fallback": fallback or None,
    }


def table(timed: Sequence[Timed]) -> list[str]:
    """One line per regime (or execution, precision, or value of a setting), at most `WIDTH` columns wide.

    A long name of a backbone has a line of its own.
    """
    headings = ("backbone", timed[0].comparison.axis if timed else "regime", *_FIGURES)
    names, devices = labels(timed), {each.comparison.cell.device for each in timed}
    blocks: dict[str, list[tuple[str, ...]]] = {}
    for each in timed:
        found = each.comparison
        name = names[found.cell.config.backbone] + (f" {found.cell.device}" if len(devices) > 1 else "")
        if name not in blocks:
            against = _costs(found.against_seconds, found.against_peak_bytes)
            blocks[name] = [(found.names[1], "100%", "1", *against)]
        costs = _costs(found.seconds, found.peak_bytes)
        blocks[name].append((found.names[0], show_share(found.speed_up, each.claim), _shown(each), *costs))
    rows = [headings[1:], *(values for block in blocks.values() for values in block)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = WIDTH - sum(widths) - len(_GAP) * len(widths)
    first = max(len(headings[0]), *(len(name) for name in blocks if len(name) <= left))

    def line(name: str, values: Sequence[str]) -> str:
        regime, *figures = (text.rjust(width) for text, width in zip(values, widths, strict=True))
        return _GAP.join([name.ljust(first), regime.strip().ljust(widths[0]), *figures])

    lines = [line(headings[0], headings[1:]), _GAP.join("-" * width for width in (first, *widths))]
    for name, block in blocks.items():
        fits = len(name) <= first
        lines += [] if fits else [name]
        lines += [line(name if fits and not number else "", values) for number, values in enumerate(block)]
    return lines


def labels(timed: Sequence[Timed]) -> dict[str, str]:
    """Backbone → its name, without its source unless two sources have that name."""
    specs = {each.comparison.cell.config.backbone: each.comparison.cell.config.spec for each in timed}
    times = Counter(spec.name for spec in specs.values())
    return {backbone: spec.name if times[spec.name] == 1 else backbone for backbone, spec in specs.items()}


def sentence(timed: Timed, label: str) -> str:
    """The comparison in a sentence. `label` is the backbone's name; see `labels`."""
    found = timed.comparison
    ours, against = found.names
    shared = [] if found.axis == "regime" else [found.cell.config.regime]
    extras = [text for text in found.cell.extras() if not text.startswith(f"{found.axis}=")]
    where = f"With {label} on {', '.join([found.cell.device, *shared, *found.cell.unusual(found.axis), *extras])}"
    if found.speed_up is None:
        return f"{where}, nothing is known of {ours} against {against}: no pair has a result."
    speed_up = _shown(timed, "×")
    enough = f" of {MIN_SAMPLES} needed" if found.pairs < MIN_SAMPLES else ""
    share = show_share(found.speed_up, timed.claim)
    text = (
        f"{where}, an epoch of {ours} takes {share} of the time of {against}: {speed_up}, "
        f"{found.pairs} pair{'s' if found.pairs != 1 else ''}{enough}. Verdict: {timed.verdict}"
    )
    if timed.claim:
        text += f" (claimed: {timed.claim.region})"
    if timed.predicted:
        text += f". Counted work predicts {timed.predicted:.2f}×"
        text += f", without validation {timed.predicted_training:.2f}×" if timed.predicted_training else ""
    if found.precisions[0] != found.precisions[1] and found.axis != "precision":
        text += f". {ours} ran in {found.precisions[0]} and {against} in {found.precisions[1]}, as was chosen for each"
    return f"{text}. They were timed one after the other, because {found.apart}." if found.apart else f"{text}."


def spread(timed: Timed) -> str:
    """How much the ratios scatter and drift, and how alike neighbouring pairs are; empty without a pair."""
    found = timed.comparison
    if found.speed_up is None:
        return ""
    dependence = found.speed_up.dependence
    alike = signed(dependence.correlation, ".2f") if dependence else f"unknown below {MIN_IN_ORDER} pairs"
    return (
        f"Ratios scatter by {_percent(found.scatter)} from pair to pair and by {_percent(found.within)} within a pair. "
        f"They drift by {signed(found.trend, '.1%')} per pair and by {signed(found.drift, '.1%')} within a pair. "
        f"The correlation of neighbouring pairs is {alike}."
    )


def _percent(deviation: float | None) -> str:
    return "n/a" if deviation is None else f"{deviation:.1%}"


def lost(timed: Sequence[Timed]) -> list[str]:
    """One line per pair without a result."""
    return [
        f"{missing.status}: {each.comparison.cell.name} against {each.comparison.names[1]}, "
        f"pair {missing.number + 1}: {missing.reason}"
        for each in timed
        for missing in each.comparison.lost
    ]


def _costs(seconds: float | None, peak_bytes: float | None) -> tuple[str, str]:
    return (
        "n/a" if seconds is None else f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}",
        "n/a" if peak_bytes is None else f"{peak_bytes / 2**20:.0f}",
    )


def _shown(timed: Timed, unit: str = "") -> str:
    speed_up = timed.comparison.speed_up
    if speed_up is None:
        return "n/a"
    digits = digits_of_ratio(speed_up, timed.claim)
    interval = "" if speed_up.low is None else f" ({speed_up.low:.{digits}f}–{speed_up.high:.{digits}f}{unit})"
    return f"{speed_up.value:.{digits}f}{unit}{interval}"
