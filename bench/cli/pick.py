"""`bench pick`: find the backbone and the regime for a folder of images."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bench.cli.app import FAILED, app
from bench.cli.arguments import (
    REPORTS,
    RESULTS,
    SEVERAL,
    ExecutorOption,
    ImagesOption,
    MemoryLimitOption,
    PluginOption,
    RayAddressOption,
    ReportsOption,
    ResultsOption,
    TimeoutOption,
    TrustOption,
    WaitOption,
    each,
    expanded,
)
from bench.console import say
from bench.program import INTERRUPTED

if TYPE_CHECKING:
    from rich.console import Console

    from bench.sweep.pick import Outcome
    from bench.sweep.plan import Sweep


@app.command()
def pick(
    data: Annotated[
        str,
        typer.Argument(metavar="PATH|NAME", help="A folder of images by class, a table of them, or a data set's name."),
    ],
    budget: Annotated[str, typer.Option(metavar="TIME", help="Time for everything, such as 90s, 10m or 2h.")] = "10m",
    priority: Annotated[
        Literal["accuracy", "time", "inference", "memory"],
        typer.Option(
            help="What matters most. With time, inference or memory, the cheapest wins that is at most 2 points less "
            "accurate than the best."
        ),
    ] = "accuracy",
    tune_top: Annotated[int, typer.Option(help="How many backbones to train: those with the best probe.")] = 3,
    backbone: Annotated[
        list[str] | None,
        typer.Option(help=f"Choose only among these {SEVERAL}.", show_default="twelve small ones; see grid pick"),
    ] = None,
    regime: Annotated[
        list[str] | None, typer.Option(help=f"Train with this regime {SEVERAL}.", show_default="finetune and frozen")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda[:i], mps or auto (the best).")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16, fp16, or auto, the fastest here.")] = "fp32",
    seeds: Annotated[int, typer.Option(help="Number of seeds of whole trainings.")] = 3,
    epochs: Annotated[int, typer.Option(help="Epochs of whole trainings.")] = 5,
    weights_dir: Annotated[
        Path | None, typer.Option(callback=expanded, help="A folder of weight files to search first.")
    ] = None,
    timeout: TimeoutOption = None,
    memory_limit: MemoryLimitOption = None,
    executor: ExecutorOption = "process",
    ray_address: RayAddressOption = None,
    wait: WaitOption = False,
    name: Annotated[
        str | None, typer.Option(help="The run's folder below --results.", show_default="pick- and the images' name")
    ] = None,
    results: ResultsOption = RESULTS,
    reports: ReportsOption = REPORTS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a new folder; nothing is deleted.")] = False,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    images: ImagesOption = True,
    format: Annotated[Literal["text", "json"], typer.Option(help="text or json.")] = "text",
    plugin: PluginOption = None,
    trust: TrustOption = None,
) -> None:
    """Pick a backbone for your images, and say whether to fine-tune it or to train only its head.

    First all backbones are probed: features are extracted once, and simple classifiers are fitted to them. Then the
    best are trained for one epoch. Those that are not clearly worse are trained with several seeds. The same command
    continues from where it ended.

    Exit status: 0 something is picked, 1 nothing is, 2 usage error, 130 interrupted.
    """
    from bench.execution.executors import start_early

    if not dry_run:
        start_early(executor)
    from rich.console import Console

    from bench.report.pick_text import as_json, print_pick, print_ranking
    from bench.report.written import check_report
    from bench.sweep.adaptive import seconds
    from bench.sweep.folder import check_output
    from bench.sweep.pick import prepare, run_pick

    console = Console(stderr=True)
    grid, options, aim = prepare(
        data,
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        budget_seconds=seconds("--budget", budget),
        priority=priority,
        top=tune_top,
        backbones=each(backbone),
        regimes=each(regime),
        device=device,
        precision=precision,
        seeds=seeds,
        epochs=epochs,
        weights_dir=weights_dir,
        timeout=timeout,
        memory_limit=memory_limit,
        executor=executor,
        address=ray_address,
        wait=wait,
        name=name,
        results=results,
        fresh=fresh,
        dry_run=dry_run,
    )
    if report:
        check_output(reports)
    sweeps: list[Sweep] = []

    def planned(sweep: Sweep) -> None:
        if report:
            check_report(reports, sweep.run.folder.name, sweep.run.folder)
        sweeps.append(sweep)

    try:
        outcome = run_pick(
            grid,
            options,
            console,
            aim,
            on_plan=planned,
            on_ranking=lambda ranking, spent: print_ranking(ranking, spent, console),
        )
    except KeyboardInterrupt:
        again = "the same command continues"
        if fresh and sweeps:
            again = f"`--name {sweeps[0].run.folder.name}` without --fresh continues"
        say(console, f"interrupted: finished cells are kept; {again} from there")
        raise typer.Exit(INTERRUPTED) from None
    if outcome is None:
        return
    folder = str(outcome.sweep.run.folder)
    if format == "json":
        print(as_json(outcome.record, folder, outcome.sweep.survey.model_dump(mode="json")))
    else:
        print_pick(outcome.record, folder, Console())
    if report:
        _report(outcome, reports, console, images=images)
    if outcome.record.pick is None:
        raise typer.Exit(FAILED)


def _report(outcome: Outcome, reports: Path, console: Console, *, images: bool) -> None:
    from bench.report.answers import doubts
    from bench.report.pictures import LEFT_OUT
    from bench.report.summary import summarise
    from bench.report.write import write_report

    summary = summarise([outcome.sweep.run], outcome.sweep.run.folder.name)
    for doubt in doubts(summary):
        say(console, doubt, style="yellow")
    for path in write_report(summary, reports, outcome.sweep.splits if images else LEFT_OUT):
        say(console, f"report: {path}")
