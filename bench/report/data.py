"""Data of a report for its scripts: metrics that the table can add as columns, and values that the explorer plots."""

from __future__ import annotations

import math
from typing import Any

from bench.analysis.groups import Group
from bench.analysis.metrics import METRICS, RATED_BY, costs
from bench.report.palette import colours, markers
from bench.report.summary import Summary


def page_data(summary: Summary) -> dict[str, Any]:
    """JSON data for the page: the metrics that some group has, and each group's values as `[value, low, high]`.

    Values are in the unit that is shown, shares in percent. See `OverSeeds` for their meaning. `axes` are the initial
    axes of the explorer: a headline cost as x, the accuracy that combinations are ranked by as y.
    """
    known = [name for name in METRICS if any(group.values(name) for group in summary.groups)]
    paint, shapes = colours(), markers()
    return {
        "name": summary.name,
        "metrics": [
            {
                "key": name,
                "label": summary.words(METRICS[name].label),
                "unit": METRICS[name].page_unit,
                "better": METRICS[name].better,
                "meaning": summary.words(METRICS[name].meaning),
            }
            for name in known
        ],
        "axes": {"x": costs()[0], "y": RATED_BY},
        "colours": {regime: paint[regime] for regime in dict.fromkeys(g.config.regime for g in summary.groups)},
        "shapes": {regime: shapes[regime] for regime in dict.fromkeys(g.config.regime for g in summary.groups)},
        "groups": [
            {
                "id": group_id(number),
                "name": f"{summary.short(group)}, {group.config.regime}",
                "regime": group.config.regime,
                "device": group.cell.device,
                "seeds": len(group.records),
                "figures": {name: values for name in known if (values := _values(group, name))},
            }
            for number, group in enumerate(summary.groups)
        ],
    }


def group_id(number: int) -> str:
    """The HTML id of a group's row, from the group's place in the summary."""
    return f"cell-{number}"


def _values(group: Group, name: str) -> list[float] | None:
    seeds, scale = group.over_seeds(name), METRICS[name].scale
    if seeds is None or not all(map(math.isfinite, (seeds.low, seeds.high))):
        return None
    # Six significant digits are enough: more are noise and double the size of a page of a thousand groups.
    return [float(f"{scale * each:.6g}") for each in (seeds.value, seeds.low, seeds.high)]
