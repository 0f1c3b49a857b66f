"""Which weights each backbone of a run gets: resolved once, written into the manifest, and kept.

Were `auto` decided anew by every command, a run that began without a network would mix random and pretrained
weights as soon as there is one, and compare the two.
"""

from __future__ import annotations

from rich.console import Console

from bench.execution.base import Executor
from bench.store.records import Cell, WeightsKey
from bench.sweep.grid import Planned
from bench.sweep.options import Options
from tl.errors import ConfigError, UserError
from tl.regimes import REGIMES
from tl.weights import Weights

KEPT = "; so this run began, and --fresh looks again"
"""The terminal says this behind the reason for a stand-in that a run goes on with."""
Answer = Weights | str
"""Weights, or why there are none though pretrained ones were insisted on."""


def weights_key(item: Planned) -> WeightsKey:
    """What an answer depends on."""
    policy = "random" if REGIMES[item.config.regime].start == "random" else item.config.weights
    return WeightsKey(policy=policy, backbone=item.config.backbone)


def resolve_weights(
    planned: list[Planned], options: Options, before: dict[WeightsKey, Weights], executor: Executor, console: Console
) -> dict[WeightsKey, Answer]:
    """An answer for each key: what the manifest has, else looked up, downloading unless it is a dry run."""
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
            found = _look_up(specs, policy, options, executor, download=not options.dry_run)
        answers |= {WeightsKey(policy=policy, backbone=spec): answer for spec, answer in found.items()}
    return answers


def locate(
    answers: dict[str, Answer], cells: dict[str, Cell], options: Options, executor: Executor
) -> dict[str, Answer]:
    """The same answers with the files' places, which a manifest doesn't keep. Both arguments are by cell.

    Raises `UserError` when a file is not the one that the run began with.
    """
    lost = {
        cells[cell_id].config.backbone: answer
        for cell_id, answer in answers.items()
        if isinstance(answer, Weights) and answer.kind == "pretrained" and answer.path is None
    }
    if not lost:
        return answers
    found = _look_up(list(lost), "pretrained", options, executor, download=True)
    for spec, answer in found.items():
        if isinstance(answer, Weights) and answer.digest != lost[spec].digest:
            raise UserError(
                f"{spec}: the weights at hand ({answer.source}) are not those that this run began with "
                f"({lost[spec].source}, {lost[spec].digest[:8]}): use --fresh"
            )
    return {
        cell_id: found.get(cells[cell_id].config.backbone, answer)
        if isinstance(answer, Weights) and answer.kind == "pretrained"
        else answer
        for cell_id, answer in answers.items()
    }


def _refuse_late_weights(
    before: dict[WeightsKey, Weights], keys: list[WeightsKey], options: Options, executor: Executor
) -> None:
    """Raise `ConfigError` where `--weights-dir` now has a file for a backbone that this run began without."""
    without = [key.backbone for key in keys if before[key].reason]
    found = _look_up(without, "auto", options, executor, download=False) if without else {}
    for spec, answer in found.items():
        if isinstance(answer, Weights) and answer.source == "weights-dir":
            raise ConfigError(
                f"--weights-dir {str(options.weights_dir)!r}: this run began with random weights for {spec} and keeps "
                "them: give it a --name of its own, or --fresh"
            )


def _look_up(
    specs: list[str], policy: str, options: Options, executor: Executor, *, download: bool
) -> dict[str, Answer]:
    outcome = executor.call("bench.execution.worker:resolve_weights", specs, policy, options.weights_dir, download)
    if outcome.status != "done":
        raise UserError(f"pretrained weights could not be looked up: {outcome.reason}")
    answers: dict[str, Answer] = outcome.value
    return answers
