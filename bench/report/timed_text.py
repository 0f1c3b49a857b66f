"""Prints how long epochs take, compared by process pairs, for `bench time`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from bench.analysis.stats import MIN_SAMPLES, Estimate
from bench.analysis.timed import Timed, share_of
from bench.store.records import Cell
from tl.text import visible, visible_json

WIDTH = 80
"""Columns of the table's lines; only the name of a backbone, on a line of its own, may be longer."""
_HEADINGS = ("backbone", "regime", "share %", "speed-up", "s/epoch", "MiB")
_GAP = "  "


def print_timed(timed: Sequence[Timed], format: str, fallback: str = "") -> None:
    """Print comparisons as text or as JSON; see `rows`. `fallback` says why the images are synthetic."""
    if format == "json":
        print(visible_json(json.dumps([row(each, fallback) for each in timed], indent=1, ensure_ascii=False)))
        return
    for line in (*table(timed), "", *map(sentence, timed), *lost(timed)):
        print(visible(line))


def row(timed: Timed, fallback: str = "") -> dict[str, Any]:
    """All that a comparison says, for JSON. What is unknown is None."""
    found = timed.comparison
    speed_up, config = found.speed_up, found.cell.config
    share, share_low, share_high = share_of(speed_up) if speed_up else (None, None, None)
    return {
        "backbone": config.backbone,
        "device": found.cell.device,
        "execution": config.execution,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "regime": config.regime,
        "against": found.against.config.regime,
        "speed_up": speed_up.value if speed_up else None,
        "low": speed_up.low if speed_up else None,
        "high": speed_up.high if speed_up else None,
        "pairs": found.pairs,
        "share": share,
        "share_low": share_low,
        "share_high": share_high,
        "predicted": timed.predicted,
        "claim": timed.claim.name if timed.claim else None,
        "verdict": timed.verdict,
        "seconds": found.seconds,
        "against_seconds": found.against_seconds,
        "peak_bytes": found.peak_bytes,
        "against_peak_bytes": found.against_peak_bytes,
        "memory_ratio": found.memory.value if found.memory else None,
        "rounds": list(found.rounds),
        "scatter": found.scatter,
        "drift": found.drift,
        "apart": found.apart or None,
        "lost": [{"pair": each.number + 1, "status": each.status, "reason": each.reason} for each in found.lost],
        "train_images": found.train_images,
        "val_images": found.val_images,
        "fallback": fallback or None,
    }


def table(timed: Sequence[Timed]) -> list[str]:
    """One line per regime, at most `WIDTH` columns wide. A long name of a backbone has a line of its own."""
    devices = {each.comparison.cell.device for each in timed}
    blocks: dict[str, list[tuple[str, ...]]] = {}
    for each in timed:
        cell, found = each.comparison.cell, each.comparison
        name = cell.config.spec.name + (f" {cell.device}" if len(devices) > 1 else "")
        if name not in blocks:
            against = _costs(found.against_seconds, found.against_peak_bytes)
            blocks[name] = [(found.against.config.regime, "100", "1", *against)]
        share = _shown_share(found.speed_up) if found.speed_up else "unknown"
        speed_up = _shown(found.speed_up, "{:.2f}") if found.speed_up else "unknown"
        blocks[name].append((cell.config.regime, share, speed_up, *_costs(found.seconds, found.peak_bytes)))
    lines = [_HEADINGS[1:], *(line for block in blocks.values() for line in block)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = WIDTH - sum(widths) - len(_GAP) * len(widths)
    first = max(len(_HEADINGS[0]), *(len(name) for name in blocks if len(name) <= left))

    def laid_out(name: str, values: Sequence[str]) -> str:
        texts = [value.ljust(width) if n == 0 else value.rjust(width) for n, (value, width) in _each(values, widths)]
        return _GAP.join([name.ljust(first), *texts])

    laid = [laid_out(_HEADINGS[0], _HEADINGS[1:]), _GAP.join("-" * width for width in (first, *widths))]
    for name, block in blocks.items():
        fits = len(name) <= first
        laid += [] if fits else [name]
        laid += [laid_out(name if fits and not n else "", values) for n, values in enumerate(block)]
    return laid


def _each(values: Sequence[str], widths: Sequence[int]) -> Iterator[tuple[int, tuple[str, int]]]:
    return enumerate(zip(values, widths, strict=True))


def sentence(timed: Timed) -> str:
    """The comparison in a sentence."""
    found = timed.comparison
    regime, against = found.cell.config.regime, found.against.config.regime
    where = f"With {found.cell.config.spec.name} on {_place(found.cell)}"
    if found.speed_up is None:
        return f"{where}, nothing is known of {regime} against {against}: no pair has a result."
    share, speed_up = _shown_share(found.speed_up, "%"), _shown(found.speed_up, "{:.2f}", "×")
    enough = f" of {MIN_SAMPLES} needed" if found.pairs < MIN_SAMPLES else ""
    text = (
        f"{where}, an epoch of {regime} takes {share} of the time of {against}: {speed_up}, "
        f"{found.pairs} pair{'s' if found.pairs != 1 else ''}{enough}; {timed.verdict}"
    )
    text += f" ({timed.claim.region} is claimed)" if timed.claim else ""
    text += f"; counted work predicts {timed.predicted:.2f}×" if timed.predicted else ""
    return f"{text}; timed one after the other, because {found.apart}." if found.apart else f"{text}."


def lost(timed: Sequence[Timed]) -> list[str]:
    """One line per pair without a result."""
    return [
        f"{missing.status}: {each.comparison.cell.name} against {each.comparison.against.config.regime}, "
        f"pair {missing.number + 1}: {missing.reason}"
        for each in timed
        for missing in each.comparison.lost
    ]


def _place(cell: Cell) -> str:
    return ", ".join([cell.device, *cell.unusual()])


def _costs(seconds: float | None, peak_bytes: float | None) -> tuple[str, str]:
    return (
        "unknown" if seconds is None else f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}",
        "unknown" if peak_bytes is None else f"{peak_bytes / 2**20:.0f}",
    )


def _shown_share(speed_up: Estimate, unit: str = "") -> str:
    """The share in percent, with as many digits as its interval needs."""
    share, low, high = share_of(speed_up)
    narrow = low is not None and high is not None and high - low < 0.01
    return _with_interval(100 * share, low and 100 * low, high and 100 * high, "{:.1f}" if narrow else "{:.0f}", unit)


def _shown(estimate: Estimate, digits: str, unit: str = "") -> str:
    return _with_interval(estimate.value, estimate.low, estimate.high, digits, unit)


def _with_interval(value: float, low: float | None, high: float | None, digits: str, unit: str) -> str:
    shown = f"{digits.format(value)}{unit}"
    return shown if low is None or high is None else f"{shown} ({digits.format(low)}–{digits.format(high)}{unit})"
