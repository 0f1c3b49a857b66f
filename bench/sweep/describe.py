"""Describes a sweep before it starts. It warns of synthetic, missing and repeated images, and of random weights."""

from __future__ import annotations

from rich.console import Console

from bench.analysis.scores import largest_class
from bench.analysis.tally import tally
from bench.analysis.words import counted, in_words
from bench.console import say
from bench.sweep.plan import Sweep
from bench.sweep.weights import KEPT
from tl.config import PROTOCOLS
from tl.folds import evaluated_images, origin
from tl.regimes import REGIMES
from tl.tasks import TASKS

MOST_NAMED = 5
"""Cells that are named in a line; the others are counted."""


def describe(sweep: Sweep, console: Console, *, inference: bool = False) -> None:
    """Print the images, the protocol, the run's folder and its cells, and a warning for each fallback.

    With `inference`, the command measures what trained networks cost in use.
    """
    splits = sweep.splits
    config = next(iter(sweep.cells.values())).config
    classes = counted(len(splits.classes), "class", "classes")
    images = f"{len(splits.train)} training + {len(splits.val)} validation images, {classes}"
    left_out = sum(each.count for each in splits.left_out)
    task = TASKS[config.task]
    rate = task.same_answer(evaluated_images(config, splits).truth)
    largest = f"task {config.task}; the same answer for all images has {task.score} {rate:.1%}"
    if config.task == "classification":
        label, rate = largest_class(evaluated_images(config, splits).labels)
        largest = f"the largest class, {splits.classes[label]!r}, has {rate:.1%} of the evaluated images"
    missing = f"; {left_out} left out" if left_out else ""
    say(console, f"images: {splits.name} ({images}{missing}; {largest})")
    for said in filter(None, (origin(config, splits), *sweep.survey.notes)):
        say(console, f"        {said}")
    for said in sweep.survey.warnings:
        say(console, f"WARNING: {in_words(said, task)}", style="bold yellow")
    if config.protocol != "fixed":
        say(console, f"protocol: {config.protocol}: {PROTOCOLS[config.protocol]}")
    if sweep.images_from:
        say(console, f"        will be downloaded in place of these: the real ants and bees, {sweep.images_from}")
    elif splits.fallback:
        kept = KEPT if sweep.keeps_images else ""
        say(console, f"WARNING: the images are {in_words(splits.fallback, task)}{kept}", style="bold yellow")
    _describe_weights(sweep, console)
    say(console, f"run: {sweep.run.folder}: {counted(len(sweep.cells), 'cell')}{_compared_with_before(sweep)}")
    say(console, f"        {_axes(sweep)}{_trainings(sweep)}")
    if only := _one_epoch(sweep):
        say(console, f"WARNING: {only}", style="yellow")
    say(console, f"speed: {_paired(sweep)}")
    if inference:
        say(console, f"inference: {_measured(sweep)}")


def _axes(sweep: Sweep) -> str:
    """What the cells are made of, in words; precisions and executions only where there are several."""
    cells = sweep.cells.values()
    counts = {
        "backbone": len({cell.config.backbone for cell in cells}),
        "regime": len({cell.config.regime for cell in cells}),
        "device": len({cell.device for cell in cells}),
        "precision": len({cell.config.precision for cell in cells}),
        "execution": len({cell.config.execution for cell in cells}),
        "seed": len({cell.config.seed for cell in cells}),
    }
    several = {noun: count for noun, count in counts.items() if count > 1 or noun not in ("precision", "execution")}
    return ", ".join(counted(count, noun) for noun, count in several.items())


def _trainings(sweep: Sweep) -> str:
    """How many trainings a cell is, where it may be several."""
    most = max(cell.config.trainings for cell in sweep.cells.values())
    return "; each cell is one training" if most == 1 else f"; a cell is up to {most} trainings"


def _one_epoch(sweep: Sweep) -> str:
    """Say what times mean where trainings have a single epoch; empty if they have more, or all are done."""
    cells = [cell for cell_id, cell in sweep.cells.items() if cell_id not in sweep.done]
    if not any(cell.config.epochs == 1 and REGIMES[cell.config.regime].by_steps for cell in cells):
        return ""
    turns = "speeds are compared by process pairs" if sweep.pairs else "more `--epochs` give warm ones"
    return f"a single epoch is a cold one, so its time includes all warm-up; {turns}"


def _measured(sweep: Sweep) -> str:
    """Say what is measured of trained networks, and how many cells will be without it."""
    results = [record.result for record in sweep.done.values() if record.result]
    without = sum(result.inference is None for result in results)
    have = "has" if without == 1 else "have"
    kept = f"; {counted(without, 'cell')} done before {have} none of these (--fresh starts over)" if without else ""
    return f"latency, throughput and file size of each trained network, on prepared images{kept}"


def _describe_weights(sweep: Sweep, console: Console) -> None:
    """Print which weights will be downloaded, which are others than usual, and a warning for each that is missing."""
    before = sweep.previous.resolved if sweep.previous else {}
    fallbacks: dict[tuple[str, bool], list[str]] = {}
    for key, answer in sweep.resolved.items():
        if answer.download_from:
            say(console, f"        will be downloaded: the weights of {key.backbone}, {answer.download_from}")
        elif answer.reason:
            fallbacks.setdefault((answer.reason, key in before), []).append(key.backbone)
        elif answer.tag:
            say(
                console,
                f"        {key.backbone}: {answer.label} ({answer.source}), with the preprocessing of these weights",
            )
    for (reason, is_kept), specs in fallbacks.items():
        score = TASKS[sweep.splits.task].score
        text = f"WARNING: random weights for {', '.join(specs)}, so {score} will be n/a: {reason}"
        say(console, text + (KEPT if is_kept else ""), style="yellow")
    answers = (sweep.weights[cell_id] for cell_id in sweep.cells)
    for reason in dict.fromkeys(answer for answer in answers if isinstance(answer, str)):
        say(console, f"WARNING: cells will fail without pretrained weights: {reason}", style="yellow")


def _paired(sweep: Sweep) -> str:
    """How speeds are compared, and which cells have nothing to be compared with."""
    if not sweep.pairs:
        return f"not timed in pairs of processes that take turns: {sweep.unpaired}"
    rotations = dict.fromkeys(pair.pairing for pair in sweep.pairs.values())
    comparisons, each = sum(len(cells) - 1 for cells in rotations), next(iter(sweep.pairs.values())).seconds
    per = len(sweep.pairs) // len(rotations)
    kept = f", {len(sweep.done_pairs)} of them done before" if sweep.done_pairs else ""
    times = f"each by {counted(per, 'pair')} of processes that take turns for {each:g} s"
    text = f"{counted(comparisons, 'comparison')}, {times}{kept}"
    paired = {cell.repeats for pair in sweep.pairs.values() for cell in pair.cells}
    alone = list(dict.fromkeys(cell.name for cell in sweep.cells.values() if cell.repeats not in paired))
    more = f" and {len(alone) - MOST_NAMED} more" if len(alone) > MOST_NAMED else ""
    return text + (f"; not compared: {', '.join(alone[:MOST_NAMED])}{more}" if alone else "")


def _compared_with_before(sweep: Sweep) -> str:
    """How many cells are done, how many are new in an existing run, and how many the run has beyond this command's."""
    if sweep.previous is None:
        return ""
    before = sweep.previous.cells
    new, gone = len(sweep.cells.keys() - before.keys()), len(before.keys() - sweep.cells.keys())
    ended = tally(record.status for record in sweep.done.values())
    parts = [f"{ended.done} of them done before"] if ended.done else []
    parts += [f"{ended.failed} diverged before and would diverge again"] if ended.failed else []
    parts += [f"{new} new"] if new else []
    parts += [f"and {gone} of earlier commands, which are kept"] if gone else []
    return "".join(f", {part}" for part in parts)


def list_cells(sweep: Sweep, console: Console) -> None:
    """Print each cell with its state: `done`, `diverged` or `to do`."""
    for cell_id, cell in sweep.cells.items():
        state = sweep.done[cell_id].status if cell_id in sweep.done else "to do"
        regime, size = REGIMES[cell.config.regime], f", batch {cell.config.batch_size}"
        most = "up to " if cell.config.early_stopping else ""
        epochs = f"{most}{counted(cell.config.epochs, 'epoch')}"
        passes = f"{epochs if regime.by_steps else 'one validation pass'}{size}"
        work = passes if regime.by_steps or not regime.trains else "the head is fitted at once"
        settings = f"{work}, {cell.config.weights} weights"
        say(console, f"  {state:8}  {cell} ({settings})")
    for pair_id, pair in sweep.pairs.items():
        state = "done" if pair_id in sweep.done_pairs else "to do"
        say(console, f"  {state:8}  {pair} ({pair.seconds:g} s of turns)")
