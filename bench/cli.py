"""The command line. Each subcommand imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from tl.errors import UserError

app = typer.Typer(
    name="bench",
    help="Which pretrained backbone, fine-tuned or only its head, at what cost on this machine?",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
INTERRUPTED, FAILED, USAGE = 130, 1, 2
DEFAULT_TIMEOUT_SECONDS = 3600.0

ClickError: Any = typer.BadParameter.__mro__[2]
"""What typer raises for a wrong option or argument; it has no public name there."""

RunArgument = Annotated[list[str], typer.Argument(metavar="RUN…", help="Names below results/, or folders.")]


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit status 2."""
    try:
        status = app(prog_name="python -m bench", standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except ClickError as error:
        _fail(error.format_message() + _given(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has had enough.
        sys.stderr.close()
        sys.exit(0)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    if message:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(USAGE)


def _given(error: Any) -> str:
    """The value of the option that an error is about: typer's own words leave it out."""
    options = getattr(getattr(error, "param", None), "opts", [])
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in options:
            return f" (given: {value if equals else following!r})"
    return ""


@app.command()
def run(
    grid: Annotated[str, typer.Option(help="A shipped grid's name, or the path of a TOML file.")] = "default",
    backbone: Annotated[list[str] | None, typer.Option(help="Only this backbone; may be given several times.")] = None,
    regime: Annotated[list[str] | None, typer.Option(help="Only this regime; may be given several times.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="cpu, cuda[:i], mps, auto (the best) or all.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, counted from 0.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a training step.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH|NAME", help="A folder with train/ and val/, or a data set's name.")
    ] = None,
    weights: Annotated[str, typer.Option(help="auto, pretrained or random.")] = "auto",
    weights_dir: Annotated[Path | None, typer.Option(help="A folder of weight files, looked at first.")] = None,
    name: Annotated[str | None, typer.Option(help="The run's folder; by default made from the grid's name.")] = None,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Where the report is written.")] = Path("reports"),
    timeout: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds after which a cell is ended.", show_default="3600")
    ] = None,
    executor: Annotated[
        str, typer.Option(help="process, or inline (for debuggers: no timeout, no protection).")
    ] = "process",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a new folder; nothing is deleted.")] = False,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
) -> None:
    """Run a grid: only what is missing. Exit status: 0 all done, 1 some cell failed, 2 usage, 130 interrupted."""
    from rich.console import Console

    from bench import runner
    from bench.grid import load_grid
    from bench.options import Options

    console = Console()
    chosen = load_grid(grid)
    axes: dict[str, Any] = {"backbones": backbone, "regimes": regime, "devices": device, "seeds": seeds}
    matrix = chosen.matrix.replace(**{axis: value for axis, value in axes.items() if value is not None})
    train = {"epochs": epochs, "batch_size": batch_size}
    settings = chosen.train | {key: value for key, value in train.items() if value is not None}
    chosen = chosen.replace(matrix=matrix, train=settings)
    options = Options(
        data=data,
        weights=weights,
        weights_dir=weights_dir,
        name=name or runner.run_name(chosen, data, weights, epochs, batch_size),
        results=out,
        timeout=timeout if timeout is not None or executor != "process" else DEFAULT_TIMEOUT_SECONDS,
        executor=executor,
        dry_run=dry_run,
        fresh=fresh,
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
    )
    with _ended_by_signals():
        worker = runner.executor_for(options)
        sweep = runner.plan(chosen, options, worker, console)
        _describe(sweep, console, dry_run)
        if dry_run:
            _list_cells(sweep, console)
            return
        try:
            records = runner.execute(sweep, chosen, options, worker, console)
        except KeyboardInterrupt:
            done = sum(record.status == "done" for record in sweep.run.records().values())
            console.print(
                f"interrupted: {done} of {len(sweep.cells)} cells are done; the same command goes on from there"
            )
            raise SystemExit(INTERRUPTED) from None
    if report:
        from bench.report import write_report

        for path in write_report([sweep.run], reports, sweep.run.name):
            console.print(f"report: {path}", highlight=False, soft_wrap=True)
    failed = [record for record in records.values() if record.status != "done"]
    if failed:
        console.print(f"{len(failed)} of {len(records)} cells have no result:", style="red")
        for record in failed:
            console.print(
                f"  {record.status}: {record.cell}: {record.reason}", markup=False, highlight=False, soft_wrap=True
            )
        raise typer.Exit(FAILED)


def _describe(sweep: Any, console: Any, dry_run: bool) -> None:
    splits, run_folder = sweep.splits, sweep.run.folder
    images = f"{len(splits.train)} + {len(splits.val)} images, {len(splits.classes)} classes"
    lines = [f"images: {splits.name} ({images})"]
    lines += (
        [f"        {len(splits.ignored)} other files left out, such as {splits.ignored[0]}"] if splits.ignored else []
    )
    fallbacks: dict[str, list[str]] = {}
    for key, answer in sweep.settled.items():
        if answer.reason:
            fallbacks.setdefault(answer.reason, []).append(key.partition(" ")[2])
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if splits.stand_in:
        console.print(
            f"WARNING: the images are {splits.stand_in}",
            style="bold yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    unless = "unless they can be downloaded, " if dry_run else ""
    for reason, specs in fallbacks.items():
        text = f"WARNING: {unless}random weights, so accuracy will be n/a, for {', '.join(specs)}: {reason}"
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    again = f", {len(sweep.done)} of them done before" if sweep.done else ""
    console.print(f"run: {run_folder}: {len(sweep.cells)} cells{again}", markup=False, highlight=False, soft_wrap=True)


def _list_cells(sweep: Any, console: Any) -> None:
    for cell_id, cell in sweep.cells.items():
        state = "done" if cell_id in sweep.done else "to do"
        epochs = f"{cell.config.epochs} epochs, batch {cell.config.batch_size}, {cell.config.weights} weights"
        console.print(f"  {state:5}  {cell} ({epochs})", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does: children are ended, what is done is kept."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command()
def report(
    runs: RunArgument,
    name: Annotated[str | None, typer.Option(help="The report's name; by default the runs' names.")] = None,
    out: Annotated[Path, typer.Option(help="Where the report is written.")] = Path("reports"),
) -> None:
    """Write reports/NAME.md and one self-contained reports/NAME.html."""
    from bench.records import find_runs
    from bench.report import write_report

    found = find_runs(runs)
    for path in write_report(found, out, name or "-".join(run.name for run in found)):
        print(f"report: {path}")


@app.command()
def export(
    runs: RunArgument,
    format: Annotated[Literal["csv", "parquet", "json"], typer.Option(help="csv, parquet or json.")] = "csv",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; by default standard output.")] = None,
) -> None:
    """Print one row a cell; the columns are described in results/README.md."""
    from bench.export import export_runs

    export_runs(runs, format, output)


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["grids", "backbones", "regimes", "datasets", "devices"], typer.Argument(help="What to list.")
    ],
    text: Annotated[str | None, typer.Argument(help="Only names that contain this text.")] = None,
) -> None:
    """List what there is: grids, backbones, regimes, data sets or devices."""
    from bench.listing import print_list

    print_list(what, text)


@app.command()
def doctor() -> None:
    """Say what this machine has: devices, threads, images and weights, and what is missing and why."""
    from bench.doctor import examine

    examine()
