"""Resolves the weights of each backbone of a run once. The manifest keeps the result.

If every command resolved `auto` again, a run that started without a network would later mix random and pretrained
weights, and compare them.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from rich.console import Console

from bench.console import say
from bench.execution.base import Executor
from bench.store.records import Cell, WeightsKey
from bench.sweep.grid import Planned
from bench.sweep.options import Options
from tl.errors import ConfigError, UserError
from tl.regimes import REGIMES
from tl.weights import SUFFIXES, Weights

KEPT = "; this run started like that, use --fresh to look again"
"""Printed after the reason for a fallback that a run has kept from an earlier command."""
MOST_NAMED = 5
"""Backbones and files that are named in a message; the others are counted."""
Answer = Weights | str
"""Weights, or the reason why the required pretrained weights are not available."""


def weights_key(item: Planned) -> WeightsKey:
    """The key of a cell's weights."""
    policy = "random" if REGIMES[item.config.regime].start == "random" else item.config.weights
    return WeightsKey(policy=policy, backbone=item.config.backbone)


def resolve_weights(
    planned: list[Planned], options: Options, before: dict[WeightsKey, Weights], executor: Executor, console: Console
) -> dict[WeightsKey, Answer]:
    """Resolve the weights of each key: those in the manifest, or else what is found or, unless dry, downloaded."""
    keys = list(dict.fromkeys(weights_key(item) for item in planned))
    answers: dict[WeightsKey, Answer] = {key: before[key] for key in keys if key in before}
    if options.weights_dir:
        _refuse_late_weights(before, list(answers), options, executor)
    for policy in ("random", "pretrained", "auto"):
        specs = [key.backbone for key in keys if key not in answers and key.policy == policy]
        found: dict[str, Answer] = {}
        if policy == "random":
            found = {spec: Weights(kind="random", source="random") for spec in specs}
        elif specs:
            console.print("looking for pretrained weights …", style="dim")
            found = look_up(specs, policy, options.weights_dir, executor, download=not options.dry_run)
        answers |= {WeightsKey(policy=policy, backbone=spec): answer for spec, answer in found.items()}
    if options.weights_dir:
        _say_what_is_not_taken(answers, options.weights_dir, executor, console)
    return answers


def locate(
    answers: dict[str, Answer], cells: dict[str, Cell], options: Options, executor: Executor
) -> dict[str, Answer]:
    """Add the paths of weights files, which a manifest doesn't keep. `answers` and `cells` have cell ids as keys.

    Raises `UserError` if a file is not the one that the run started with.
    """
    without_path = {
        cells[cell_id].config.backbone: answer
        for cell_id, answer in answers.items()
        if isinstance(answer, Weights) and answer.kind == "pretrained" and answer.path is None
    }
    if not without_path:
        return answers
    found = look_up(list(without_path), "pretrained", options.weights_dir, executor, download=True)
    for spec, answer in found.items():
        if isinstance(answer, Weights) and answer.digest != (first := without_path[spec]).digest:
            raise UserError(
                f"{spec}: the available weights ({answer.source}) are not those that this run started with "
                f"({first.source}, {first.digest[:8]}); use --fresh"
            )
    return {
        cell_id: found.get(cells[cell_id].config.backbone, answer)
        if isinstance(answer, Weights) and answer.kind == "pretrained"
        else answer
        for cell_id, answer in answers.items()
    }


def _say_what_is_not_taken(
    answers: dict[WeightsKey, Answer], folder: Path, executor: Executor, console: Console
) -> None:
    """Say which names were looked for in a folder of weights, if it has files and none of them is taken for a backbone.

    Files that are taken for other backbones don't count.
    """
    specs = list(dict.fromkeys(key.backbone for key in answers if key.policy != "random"))
    outcome = executor.call("bench.execution.worker:files_for", specs, folder) if specs else None
    if outcome is None or outcome.status != "done":
        return
    files_for: dict[str, tuple[tuple[str, ...], str]] = outcome.value
    taken = {name for _, name in files_for.values()}
    seen: list[str] = []
    with contextlib.suppress(OSError):
        seen = sorted(one.name for one in folder.iterdir() if one.name not in taken)
    without = {spec: names for spec, (names, name) in files_for.items() if not name}
    if not seen or not without:
        return
    others = f" and {len(seen) - MOST_NAMED} more" if len(seen) > MOST_NAMED else ""
    say(console, f"        --weights-dir has files that are not taken: {', '.join(seen[:MOST_NAMED])}{others}")
    for spec, names in list(without.items())[:MOST_NAMED]:
        looked = ", ".join(name if Path(name).suffix in (*SUFFIXES, ".h5") else f"{name}.pth" for name in names)
        others = f" (with {SUFFIXES[0]}, .pt or .bin in place of .pth, too)" if ".pth" in looked else ""
        say(console, f"        for {spec} these would be: {looked}{others}")
    if len(without) > MOST_NAMED:
        say(console, f"        it has none for {len(without) - MOST_NAMED} more backbones")


def _refuse_late_weights(
    before: dict[WeightsKey, Weights], keys: list[WeightsKey], options: Options, executor: Executor
) -> None:
    """Raise `ConfigError` if `--weights-dir` has a file for a backbone that this run started without."""
    without = [key.backbone for key in keys if before[key].reason]
    found = look_up(without, "auto", options.weights_dir, executor, download=False) if without else {}
    for spec, answer in found.items():
        if isinstance(answer, Weights) and answer.source == "weights-dir":
            raise ConfigError(
                f"--weights-dir {str(options.weights_dir)!r}: this run started with random weights for {spec} and "
                "keeps them; give this command another --name, or --fresh"
            )


def look_up(
    specs: list[str], policy: str, weights_dir: Path | None, executor: Executor, *, download: bool
) -> dict[str, Answer]:
    """Backbone → its weights by a policy, or why there are none.

    Raises `UserError` if the search itself fails, and for a mistake in code of one's own that makes a backbone.
    """
    outcome = executor.call("bench.execution.worker:resolve_weights", specs, policy, weights_dir, download)
    if outcome.status != "done":
        raise UserError(f"pretrained weights can't be looked up: {outcome.reason}")
    answers: dict[str, Answer] = {}
    for spec, answer in outcome.value.items():
        if isinstance(answer, ConfigError):
            raise answer
        answers[spec] = answer
    return answers
