"""The figures of a report for its scripts: what the table can show beyond its columns, and what the explorer plots."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.colors import to_hex

from bench.analysis.groups import Group
from bench.analysis.metrics import METRICS, RATED_BY, costs
from bench.report.figures import colours
from bench.report.summary import Summary


def page_data(summary: Summary) -> dict[str, Any]:
    """JSON for the page: metrics that some group knows, and of each group its figures, `[value, low, high]`.

    Figures are in the unit that is shown, shares in percent; what they are is said at `OverSeeds`. `axes` are what the
    explorer begins with: a headline cost across, the accuracy that combinations are rated by up.
    """
    known = [name for name in METRICS if any(group.values(name) for group in summary.groups)]
    paint = {name: to_hex(colour) for name, colour in colours().items()}
    return {
        "name": summary.name,
        "metrics": [
            {
                "key": name,
                "label": METRICS[name].label,
                "unit": METRICS[name].page_unit,
                "better": METRICS[name].better,
                "meaning": METRICS[name].meaning,
            }
            for name in known
        ],
        "axes": {"x": costs()[0], "y": RATED_BY},
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


def _figure(group: Group, name: str) -> list[float] | None:
    seeds, scale = group.over_seeds(name), METRICS[name].scale
    if seeds is None or not all(map(math.isfinite, (seeds.low, seeds.high))):
        return None
    # Six significant digits: more are noise, and a page of a thousand groups is half as large.
    return [float(f"{scale * each:.6g}") for each in (seeds.value, seeds.low, seeds.high)]
