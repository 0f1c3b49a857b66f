"""`bench time`: compare the epoch times of some regimes, executions, precisions or settings, by process pairs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from bench.cli.app import FAILED, app
from bench.cli.arguments import PluginOption, TaskOption, TrustOption
from bench.console import say, tell
from bench.program import INTERRUPTED


@app.command()
def time(
    backbones: Annotated[list[str], typer.Argument(metavar="BACKBONE…", help="Names as `list backbones` shows them.")],
    regime: Annotated[
        list[str] | None,
        typer.Option(
            help="A regime to time (repeatable, or joined by commas). Each is compared with finetune, or with the "
            "first if finetune is not given.",
            show_default="finetune and frozen, or frozen-tutorial if plain",
        ),
    ] = None,
    execution: Annotated[
        str, typer.Option(help="fast, or plain: the tutorial's own loop; plain,fast compares fast with plain.")
    ] = "fast",
    precision: Annotated[
        str,
        typer.Option(help="fp32, tf32, bf16, fp16 or auto; several, joined by commas, are compared with the first."),
    ] = "fp32",
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE[,VALUE]",
            help="A setting of training (repeatable); fold=false,true compares true with false.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda[:i], mps, auto (the best) or all.")] = "auto",
    data: Annotated[
        str,
        typer.Option(metavar="PATH|NAME", help="A folder of images by class, a table of them, or a data set's name."),
    ] = "auto",
    task: TaskOption = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per training step.", show_default="the tutorial's, 4")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Process pairs per comparison, 3 or more.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds for the turns of a pair, after its warm-up.")] = 6.0,
    format: Annotated[Literal["text", "json"], typer.Option(help="text or json.")] = "text",
    plugin: PluginOption = None,
    trust: TrustOption = None,
) -> None:
    """Compare how long an epoch of each regime takes. Fresh processes take turns, and nothing is kept.

    Exit status: 0 all pairs timed, 1 some pair has no result, 2 usage error, 130 interrupted.
    """
    from bench.execution.executors import make_executor, start_early

    start_early("process")
    from rich.console import Console

    from bench.analysis.timed import look_at
    from bench.report.timed_text import print_timed
    from bench.sweep.timing import comparisons, plan_timing, time_in_turns

    executor, console = make_executor("process"), Console(stderr=True)
    try:
        timing = plan_timing(
            backbones,
            [name for value in regime or () for name in value.split(",")],
            executor,
            executions=execution.split(","),
            precisions=precision.split(","),
            settings=set or (),
            device=device,
            data=data,
            task=task,
            batch_size=batch_size,
            pairs=pairs,
            seconds=seconds,
        )
        if timing.splits.fallback:
            say(console, f"WARNING: the images are {timing.splits.fallback}", style="bold yellow")
        records = time_in_turns(timing, executor, console)
    except KeyboardInterrupt:
        tell("interrupted: there is no answer, and nothing is kept")
        raise typer.Exit(INTERRUPTED) from None
    timed = look_at(comparisons(timing, records))
    print_timed(timed, format, timing.splits.name, timing.splits.fallback)
    if any(each.comparison.lost for each in timed):
        raise typer.Exit(FAILED)
