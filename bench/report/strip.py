"""Writes the strip at the top of a page: what was run, on what, when, and what to know before a figure is believed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC

from bench.analysis.words import counted
from bench.report.settings_text import image_counts
from bench.report.summary import Summary
from bench.store.records import Manifest
from tl.machine import DeviceKey
from tl.regimes import REGIMES

_NOISE_IN_NAMES = re.compile(r"\((?:R|TM)\)|\s+(?:CPU\b|Processor\b|\d+-Core\b|@.*)", re.IGNORECASE)
"""What a processor's name has beside its maker and model."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One thing about a run."""

    label: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A warning in two or three words."""

    text: str
    detail: str
    """What is behind it, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The first line of a page."""

    facts: tuple[Fact, ...]
    chips: tuple[Chip, ...]


def strip_of(summary: Summary) -> Strip:
    """What was run: images, devices by the names that their makers sell them under, epochs, seeds, date, and whether
    all of it has ended; and a chip for each thing that limits what the figures mean."""
    planned = [cell for _, manifest in summary.runs for cell in manifest.cells.values()]
    epochs = sorted({cell.config.epochs for cell in planned if REGIMES[cell.config.regime].by_steps})
    seeds = len({cell.config.seed for cell in planned})
    texts = {
        "images": "; ".join(dict.fromkeys(_images(summary))),
        "device": "; ".join(dict.fromkeys(device_names(summary).values())),
        "epochs": " or ".join(map(str, epochs)),
        "seeds": str(seeds) if seeds else "",
        "date": " to ".join(dict.fromkeys(_dates(summary))),
        "run": ", ".join(name for name, _ in summary.runs),
        "status": _status(summary),
    }
    facts = tuple(Fact(label=label, text=text) for label, text in texts.items() if text)
    return Strip(facts=facts, chips=tuple(_chips(summary)))


def device_names(summary: Summary) -> dict[str, str]:
    """Device → the name that its maker sells it under, with the cores of a processor; in the order of the records.

    A device of several machines has all their names. One that no record names is called as torch calls it.
    """
    found: dict[str, dict[str, None]] = {}
    for _, record in summary.records:
        device, environment = record.cell.device, record.environment
        if DeviceKey.parse(device).kind == "cpu":
            cores = counted(environment.cores, "core")
            name = f"{_NOISE_IN_NAMES.sub('', environment.cpu).strip()} ({cores})"
        else:
            name = record.result.device_name if record.result else ""
        found.setdefault(device, {})
        if name:
            found[device][name] = None
    return {device: " and ".join(names) or device for device, names in found.items()}


def _images(summary: Summary) -> list[str]:
    return [
        f"{manifest.dataset.name}: {_parts(manifest)}, {counted(len(manifest.dataset.classes), 'class', 'classes')}"
        for _, manifest in summary.runs
    ]


def _parts(manifest: Manifest) -> str:
    kinds = ("training", "validation images") if len(counts := image_counts(manifest)) > 1 else ("images",)
    return " + ".join(f"{count} {kind}" for count, kind in zip(counts, kinds, strict=True))


def _dates(summary: Summary) -> list[str]:
    """The first and the last day, in UTC, on which a command added to a run."""
    days = sorted(call.started.astimezone(UTC) for _, manifest in summary.runs for call in manifest.invocations)
    return [f"{day:%Y-%m-%d}" for day in (*days[:1], *days[-1:])]


def _status(summary: Summary) -> str:
    if summary.progress:
        return f"not complete: {'; '.join(summary.progress)}"
    return f"complete: {summary.tally}"


def _chips(summary: Summary) -> list[Chip]:
    chips = [Chip(text="synthetic images", detail=f"The images are {reason}.") for reason in summary.fallbacks]
    if random := summary.random_weights:
        reasons = "; ".join(dict.fromkeys(random.values()))
        backbones = {cell.config.backbone for _, manifest in summary.runs for cell in manifest.cells.values()}
        text = f"random weights: {len(random)} of {len(backbones)} backbones"
        chips.append(Chip(text=text, detail=f"{', '.join(random)}: {reasons}."))
    chips += [Chip(text="busy machine", detail=f"{said}.") for said in summary.busy[:1]]
    if summary.unlike_machines > 1:
        detail = "Times from one don't compare with times from another."
        chips.append(Chip(text=f"{summary.unlike_machines} machines or sets of libraries", detail=detail))
    return chips
