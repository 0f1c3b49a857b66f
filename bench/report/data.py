"""The figures of a report for its scripts: what the table can show beyond its columns, and what the explorer plots."""

from __future__ import annotations

import math
import statistics
from typing import Any

from matplotlib.colors import to_hex

from bench.analysis.groups import Group
from bench.analysis.metrics import METRICS
from bench.analysis.stats import wilson
from bench.report.figures import colours
from bench.report.summary import Summary


def page_data(summary: Summary) -> dict[str, Any]:
    """JSON for the page: metrics that some group knows, and of each group its figures, `[value, low, high]`.

    Figures are in the unit that is shown; accuracies in percent. Value: mean of accuracies, median of all else. Low
    and high: with one seed an accuracy's Wilson interval, else ± one standard deviation; of all else the extremes.
    """
    known = [name for name in METRICS if any(group.values(name) for group in summary.groups)]
    paint = {name: to_hex(colour) for name, colour in colours().items()}
    return {
        "name": summary.name,
        "metrics": [
            {
                "key": name,
                "label": METRICS[name].label,
                "unit": _unit(name),
                "better": METRICS[name].better,
                "meaning": METRICS[name].meaning,
            }
            for name in known
        ],
        "colours": {regime: paint[regime] for regime in dict.fromkeys(g.config.regime for g in summary.groups)},
        "groups": [
            {
                "id": group_id(number),
                "name": f"{summary.short(group)}, {group.config.regime}",
                "regime": group.config.regime,
                "device": group.cell.device,
                "seeds": len(group.records),
                "figures": {name: figure for name in known if (figure := _figure(group, name))},
            }
            for number, group in enumerate(summary.groups)
        ],
    }


def group_id(number: int) -> str:
    """Of a group's row in the page, by its place in the summary."""
    return f"cell-{number}"


def _unit(name: str) -> str:
    metric = METRICS[name]
    unit = metric.shown_unit or metric.unit
    return "%" if unit == "share" else "" if unit in ("count", "index") else unit


def _figure(group: Group, name: str) -> list[float] | None:
    metric, values, value = METRICS[name], list(group.values(name).values()), group.typical(name)
    if value is None:
        return None
    if metric.unit == "share":
        scale = 100.0
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        low, high = value - spread, value + spread
        if len(values) == 1 and metric.predictions and group.truth:
            interval = wilson(round(value * len(group.truth)), len(group.truth))
            low, high = interval.low, interval.high
    else:
        low, high, scale = min(values), max(values), metric.scale
    if not all(map(math.isfinite, (low, high))):
        return None
    # Six significant digits: more are noise, and a page of a thousand groups is half as large.
    return [float(f"{scale * each:.6g}") for each in (value, low, high)]
