"""Raw samples of `peers`, their ratios, and the report on them in Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from tabulate import tabulate

from bench.analysis.stats import Estimate, difference, ratio
from bench.store.environment import Environment, MachineState
from tl.errors import UserError
from tl.machine import DeviceKey
from tl.strict import Strict

OURS, PLAIN = "ours", "plain"
What = Literal["epoch", "whole", "memory", "accuracy"]
HEADINGS: dict[What, str] = {
    "epoch": "Seconds per epoch",
    "whole": "Seconds of a whole job",
    "memory": "Peak memory",
    "accuracy": "Accuracy",
}
METHODS: dict[What, str] = {
    "epoch": "An epoch is training and validation. For each process: the median of all epochs but the first, which is "
    "warm-up.",
    "whole": "Ours: everything the process did after loading its libraries, with an empty cache, so decoding the "
    "images is included. Theirs: their epochs alone, without anything before, between or after them. If they ran fewer "
    "epochs than the job has, it is their median epoch without the first, times the job's number of epochs.",
    "memory": "MiB of a process and all its descendants, libraries included; each shared page counts once "
    "(proportional set size). It is read four times a second from outside, so shorter peaks are missed. Reading slows "
    "the process down, so these runs gave no times. GPU memory is not included.",
    "accuracy": "Percentage of validation images classified correctly after the last epoch, one seed per round; means "
    "over seeds. The sides use different random crops. Difference: ours − theirs, in points. The target "
    "is the smallest acceptable difference. These runs gave no times.",
}
TARGETS: dict[tuple[What, str, str, str], float] = {
    ("epoch", "cpu", "finetune", "torchvision:resnet18"): 0.75,
    ("epoch", "cpu", "finetune in auto", "torchvision:resnet18"): 0.50,
    ("epoch", "cpu", "frozen", "torchvision:resnet18"): 0.55,
    ("epoch", "cpu", "frozen in auto", "torchvision:resnet18"): 0.35,
    ("epoch", "cpu", "finetune", "timm:tf_efficientnet_lite0"): 0.52,
    ("epoch", "cpu", "frozen", "timm:tf_efficientnet_lite0"): 0.30,
    ("epoch", "cpu", "frozen in auto", "timm:tf_efficientnet_lite0"): 0.22,
    ("epoch", "cuda", "finetune", ""): 1 / 10,
    ("epoch", "cuda", "frozen", ""): 1 / 10,
    ("memory", "cpu", "finetune", ""): 0.7,
    ("whole", "cpu", "cached against frozen, 25 epochs", ""): 1 / 45,
}
"""(Figure, kind of device, job, backbone) → largest ratio of ours ÷ the plain side's. An empty backbone means all.

A job without a precision has this target in any that has none of its own.
"""
MOST_LOST: dict[str, float] = {
    "finetune": 1,
    "frozen": 1,
    "cached against frozen": 1.5,
    "quantized against frozen": 2,
}
"""Job → percentage points of accuracy that it may lose against the plain side."""


class SideRun(Strict):
    """One process of one side."""

    side: str
    round: int
    started: str
    wall_seconds: float
    printed: tuple[dict[str, Any], ...]
    """The JSON lines that it printed."""
    peak_pss_bytes: int | None
    machine: MachineState

    @property
    def epoch_seconds(self) -> list[float]:
        """Seconds of each epoch, training and validation together."""
        return [line["epoch_seconds"] for line in self.printed if "epoch_seconds" in line]


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class Samples(Strict):
    """All samples that one command measured."""

    what: What
    command: str
    sides: dict[str, str]
    """Name of a side → its command line, with placeholders."""
    dataset: str
    dataset_digest: str
    images: int
    backbone: str
    regime: str
    precision: str = "fp32"
    """Our precision. The plain side on a GPU uses TF32, which is torch's default for convolutions."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Our other settings."""
    against: str
    """Regime of the other sides."""
    device: str
    epochs: int
    against_epochs: int
    """Epochs that the other sides ran."""
    environment: Environment
    runs: tuple[SideRun, ...]

    @property
    def job(self) -> str:
        """The regimes, and for whole jobs the number of epochs."""
        regimes = self.regime if self.regime == self.against else f"{self.regime} against {self.against}"
        return f"{regimes}, {self.epochs} epochs" if self.what == "whole" else regimes

    @property
    def named(self) -> str:
        """The job, our precision if it is not fp32, and our other settings."""
        precision = [] if self.precision == "fp32" else [f"in {self.precision}"]
        ours = [*precision, *(f"with {name}={_shown(value)}" for name, value in self.settings.items())]
        return self.job if not ours else f"{self.job}, ours {' '.join(ours)}"

    def figure(self, run: SideRun) -> float:
        """The compared figure of one process: seconds, bytes or percent."""
        if self.what == "accuracy":
            return 100 * float([line["val_accuracy"] for line in run.printed if "epoch_seconds" in line][-1])
        if self.what == "memory":
            assert run.peak_pss_bytes is not None
            return run.peak_pss_bytes
        warm = statistics.median(run.epoch_seconds[1:])
        if self.what == "epoch":
            return warm
        if run.side == OURS:
            return float(run.printed[-1]["total_seconds"])
        return sum(run.epoch_seconds) if self.against_epochs == self.epochs else warm * self.epochs

    def library(self, side: str) -> str:
        """The library of a side, in parentheses; empty if it printed none."""
        named = {line["library"] for run in self.runs if run.side == side for line in run.printed if "library" in line}
        return f" ({', '.join(sorted(named))})" if named else ""

    def figures(self, side: str) -> dict[int, float]:
        """Round → figure."""
        return {run.round: self.figure(run) for run in self.runs if run.side == side}

    def target(self, side: str) -> float | None:
        """The largest ratio that meets the target; None if there is no target."""
        kind = DeviceKey.parse(self.device).kind
        jobs = (f"{self.job} in {self.precision}", self.job)
        found = [TARGETS.get((self.what, kind, job, each)) for job in jobs for each in (self.backbone, "")]
        return next((value for value in found if value is not None and side == PLAIN), None)


def verdict(estimate: Estimate, target: float) -> str:
    """Decide whether a ratio is at most the target, or a difference at least. Certain if the whole interval is."""
    most = estimate.compared == "ratio"
    met = estimate.value <= target if most else estimate.value >= target
    edge = estimate.high if met is most else estimate.low
    certain = edge is not None and (edge <= target if most else edge >= target) is met
    return ("met" if met else "missed") + ("" if certain else ", not certain")


def _identifying_columns(samples: Samples, number: int, side: str) -> dict[str, str]:
    """The first columns of every table: what was compared."""
    return {
        "run": str(number),
        "backbone": samples.backbone,
        "regime": samples.named,
        "device": samples.device,
        "against": side,
    }


def _accuracy_row(samples: Samples, number: int, side: str) -> dict[str, str]:
    ours, theirs = samples.figures(OURS), samples.figures(side)
    estimate = difference(ours, theirs)
    if estimate is None:
        raise UserError(f"{samples.command}: no round has both {OURS} and {side}")
    differences = [ours[number] - theirs[number] for number in ours if number in theirs]
    most_lost = MOST_LOST.get(samples.job) if side == PLAIN else None
    known = estimate.low is not None and estimate.high is not None
    return {
        **_identifying_columns(samples, number, side),
        "ours": f"{statistics.fmean(ours.values()):.1f}",
        "theirs": f"{statistics.fmean(theirs.values()):.1f}",
        "difference (min–max, n)": f"{estimate.value:+.2f} ({min(differences):+.2f} to {max(differences):+.2f}, "
        f"n = {estimate.n})",
        "95%": f"{estimate.low:+.2f} to {estimate.high:+.2f}" if known else "n/a",
        "target": "" if most_lost is None else f"{-most_lost:g}",
        "verdict": "" if most_lost is None else verdict(estimate, -most_lost),
    }


def _row(samples: Samples, number: int, side: str) -> dict[str, str]:
    ours, theirs = samples.figures(OURS), samples.figures(side)
    estimate = ratio(ours, theirs)
    if estimate is None:
        raise UserError(f"{samples.command}: no round has both {OURS} and {side}")
    ratios = [ours[number] / theirs[number] for number in ours if number in theirs]
    target, unit = samples.target(side), 2**20 if samples.what == "memory" else 1
    style = ",.0f" if samples.what == "memory" else ".3g"
    disturbed = [bool(run.machine.warnings) for run in samples.runs if run.side in (OURS, side)]
    known = estimate.low is not None and estimate.high is not None
    return {
        **_identifying_columns(samples, number, side),
        "ours": format(statistics.median(ours.values()) / unit, style),
        "theirs": format(statistics.median(theirs.values()) / unit, style),
        "ratio (min–max, n)": f"{estimate.value:.3f} ({min(ratios):.3f}–{max(ratios):.3f}, n = {estimate.n})",
        "95%": f"{estimate.low:.3f}–{estimate.high:.3f}" if known else "n/a",
        "target": "" if target is None else f"{target:.3g}",
        "verdict": "" if target is None else verdict(estimate, target),
        "disturbed": f"{sum(disturbed)} of {len(disturbed)}",
    }


def render(all_samples: Sequence[Samples]) -> str:
    """The report in Markdown: a table per kind of figure, then the command, images and machine of each numbered run."""
    parts = [
        "# Compared with other programs",
        "Each side ran in processes of its own, one at a time, in alternating order (A B B A). Ratio: ours ÷ theirs "
        "for the two processes of a round, geometric mean over n rounds; below 1 ours needs less. Ours and theirs: "
        "medians over rounds. 95%: Student's t on the logarithms, with at least three rounds. A verdict is not certain "
        "if that interval contains the target or is missing. Disturbed: processes during which something else used "
        "the machine.",
    ]
    numbered = list(enumerate(all_samples, 1))
    for what, heading in HEADINGS.items():
        rows = [
            (_accuracy_row if what == "accuracy" else _row)(samples, number, side)
            for number, samples in numbered
            if samples.what == what
            for side in samples.sides
            if side != OURS
        ]
        if rows:
            table = tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)
            parts += [f"## {heading}", METHODS[what], table]
    parts.append("## Runs")
    for number, samples in numbered:
        others = [
            f"`{name}`: `{line}`{samples.library(name)}"
            for name, line in samples.sides.items()
            if name not in (OURS, PLAIN)
        ]
        epochs = f"{samples.epochs} epochs of ours, {samples.against_epochs} of theirs"
        images = f"{samples.dataset}, {samples.images} images, digest `{samples.dataset_digest[:12]}`"
        items = [f"`{samples.command}`", f"{samples.runs[0].started}; {epochs}; {images}", *others]
        parts.append(f"{number}. " + "\n   - ".join([*items, str(samples.environment)]))
    return "\n\n".join(parts) + "\n"
