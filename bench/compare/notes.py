"""Says what a comparison rests on: what the sides share, in which order they were measured, what medians hide."""

from __future__ import annotations

from collections.abc import Iterator

from bench.compare.changes import Comparison, order_of
from bench.compare.sides import Side

LONGEST = 60
"""Longest value of a condition that is shown, in characters; of others, only the name is."""


def notes(comparison: Comparison) -> list[str]:
    """What the comparison rests on, a line each."""
    return [*_conditions(comparison), *_order(comparison), *_obstacles(comparison)]


def warnings(comparison: Comparison) -> list[str]:
    """Slow raw times that medians don't show, a line per cell. They decide nothing."""
    return [
        f"WARNING: {change.cell}: the median decides, and hides that {change.new_side} has slower rounds: "
        + ", ".join(map(str, change.tails))
        for change in comparison.changes
        if change.tails
    ]


def _conditions(comparison: Comparison) -> Iterator[str]:
    """What is equal on all sides, and what nobody knows."""
    sides = (comparison.base, *comparison.others)
    shared = [key for key in comparison.base.cells if any(key in side.cells for side in comparison.others)]
    differs = {mismatch.condition for change in comparison.changes for mismatch in change.mismatches}
    values: dict[str, set[str]] = {}
    for side in sides:
        for key in shared:
            for name, by_sample in side.cells[key].conditions.items() if key in side.cells else ():
                values.setdefault(name, set()).update(by_sample.values())
    equal, unknown = [], []
    for name, found in values.items():
        if "" in found:
            unknown.append(name)
        elif name not in differs:
            value = next(iter(found)) if len(found) == 1 else ""
            equal.append(f"{name} {value}" if value and len(value) <= LONGEST else name)
    hosts = [side.hosts for side in sides]
    unknown += sorted({what for side in sides for what in side.unstated})
    if len(set(hosts)) == 1 and len(hosts[0]) == 1:
        equal.insert(0, f"machine {hosts[0][0]}")
    elif all(hosts):
        names = ", ".join(f"{' and '.join(side.hosts)} ({side.name})" for side in sides)
        yield f"Measured on machines of different names: {names}"
    if equal:
        yield f"Equal on both sides: {', '.join(equal)}"
    if unknown:
        yield f"Not known: {', '.join(unknown)}"


def _order(comparison: Comparison) -> Iterator[str]:
    """Whether rounds are pairs, and whether one side was measured after the other."""
    base = comparison.base
    for side in comparison.others:
        if not base.rounds or not side.rounds:
            continue
        order = order_of(base, side)
        if order == "in turn":
            yield f"Rounds of {base.name} and {side.name} were measured in turn, and are compared as pairs"
            continue
        why = {
            "not in turn": "were not measured in turn (BASE, NEW, NEW, BASE and so on)",
            "unknown": "don't all say when they were measured (datetime)",
            "no pairs": "have no names in common",
        }[order]
        yield f"Rounds of {base.name} and {side.name} {why}, so they are compared as independent samples"
        if _apart(base, side):
            yield (
                f"All rounds of one side were measured before those of the other ({base.name}, {side.name}): a change "
                "of the machine in between would look like a change of the code; run the sides in turn"
            )


def _apart(base: Side, side: Side) -> bool:
    there, here = base.written.values(), side.written.values()
    return bool(there and here) and (max(there) < min(here) or max(here) < min(there))


def _obstacles(comparison: Comparison) -> list[str]:
    found: dict[str, list[str]] = {}
    for change in comparison.changes:
        if change.obstacle:
            found.setdefault(f"{change.quantity.label}: {change.obstacle}", []).append(change.cell)
    return [
        f"No verdict on {what}: {cells[0]}" + (f" and {len(cells) - 1} more" if cells[1:] else "")
        for what, cells in found.items()
    ]
