"""The command line. Each subcommand imports what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import gc
import io
import math
import os
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from bench.console import say
from bench.execution.signals import ended_by_signals
from tl.cache import cache_dir, offline
from tl.errors import ConfigError, UserError

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

ImagesOption = Annotated[
    bool, typer.Option("--images/--no-images", help="Pictures of the images in the report; without, it can be shared.")
]
RunArgument = Annotated[list[str], typer.Argument(metavar="RUN…", help="Names below results/, or folders.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from bench.store.environment import package_version

        print(f"tl-bench {package_version('tl-bench')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit status 2, and so does a mistake of ours.

    Python's own status for an exception is 1, which says that a gate found a regression.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without × shows \\xd7
    gc.set_threshold(50_000, 20, 100)  # records are many objects, few of them garbage: look at them seldom
    os.environ.setdefault("MPLCONFIGDIR", str(cache_dir() / "matplotlib"))  # its list of fonts, else in the home folder
    try:
        status = app(prog_name="python -m bench", standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except ClickError as error:
        _fail(error.format_message() + _given(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Exception as error:
        traceback.print_exc()
        _fail(f"{type(error).__name__}: {error}: this is a mistake in the suite; please report the lines above")
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
    protocol: Annotated[str | None, typer.Option(help="fixed, tuned or kfold, instead of the grid's.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="PATH|NAME", help="A folder with train/ and val/, or a data set's name.")
    ] = None,
    weights: Annotated[str, typer.Option(help="auto, pretrained or random.")] = "auto",
    weights_dir: Annotated[Path | None, typer.Option(help="A folder of weight files, looked at first.")] = None,
    name: Annotated[str | None, typer.Option(help="The run's folder; by default made from the grid's name.")] = None,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Where the report is written.")] = Path("reports"),
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Add seeds until every speed-up is known to within --within.")
    ] = False,
    within: Annotated[
        float | None, typer.Option(metavar="PERCENT", help="Half-width of 95% intervals to reach.", show_default="5")
    ] = None,
    max_seeds: Annotated[
        int | None, typer.Option(help="At most so many with --until-decided.", show_default="10 without --budget")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="With --until-decided: 90s, 10m, 2h; no seed is begun beyond.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="S", help="Seconds a training after which a cell is ended.", show_default="3600"),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Main memory that a cell may allocate, such as 2GiB; more is `oom`. Linux."),
    ] = None,
    skip_larger_after_oom: Annotated[
        bool, typer.Option("--skip-larger-after-oom", help="Skip larger batches of what has run out of memory.")
    ] = False,
    executor: Annotated[
        str, typer.Option(help="process, inline (for debuggers: no limits, no protection), or ray (a cluster).")
    ] = "process",
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="auto|ADDRESS", help="The cluster; without, --executor ray starts one on this machine."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="If another command is at work in the run, wait for it to end.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a new folder; nothing is deleted.")] = False,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    live: Annotated[
        bool, typer.Option("--live", help="Keep the report's page up to date as cells end; it loads itself anew.")
    ] = False,
    images: ImagesOption = True,
) -> None:
    """Run a grid: only what is missing. Exit status: 0 done, 1 some cell failed, 2 usage, 130 interrupted."""
    from rich.console import Console

    from bench.sweep import run as runner
    from bench.sweep.grid import load_grid
    from bench.sweep.options import Options

    console = Console()
    axes = {"backbones": backbone, "regimes": regime, "devices": device, "seeds": seeds}
    settings = {"epochs": epochs, "batch_size": batch_size, "protocol": protocol}
    chosen = load_grid(grid).override(
        {axis: value for axis, value in axes.items() if value is not None},
        {key: value for key, value in settings.items() if value is not None},
    )
    page = _LivePage(reports)
    options = Options(
        data=data,
        weights=weights,
        weights_dir=weights_dir,
        name=name or runner.run_name(chosen, data, weights, epochs, batch_size),
        results=out,
        timeout=timeout if timeout is not None or executor == "inline" else DEFAULT_TIMEOUT_SECONDS,
        memory_bytes=None if memory_limit is None else _size("--memory-limit", memory_limit),
        skip_larger_after_oom=skip_larger_after_oom,
        executor=executor,
        address=ray_address,
        wait=wait,
        dry_run=dry_run,
        fresh=fresh,
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        on_record=page.write if live else None,
    )
    if live and not report:
        raise ConfigError("--live: keeps the report up to date, and --no-report wants none")
    goal = _goal(chosen, until_decided, within, max_seeds, budget)
    with ended_by_signals(), runner.in_turn(options, console):
        worker = runner.executor_for(options)
        if report:
            runner.check_output(reports)
        sweep = runner.plan(chosen, options, worker, console)
        _describe(sweep, console, dry_run)
        if dry_run:
            _list_cells(sweep)
            return
        try:
            if goal:
                from bench.sweep.adaptive import run_until_decided

                records = run_until_decided(sweep, chosen, options, worker, console, goal)
            else:
                records = runner.execute(sweep, chosen, options, worker, console)
        except BaseException as error:
            if sweep.run.exists():
                page.end(sweep.run)
            if not isinstance(error, KeyboardInterrupt):
                raise
            ended = sweep.run.survey()[0] if sweep.run.exists() else {}
            cells = sweep.run.manifest().cells if sweep.run.exists() else sweep.cells
            done = sum(record.status == "done" for record in ended.values())
            on = f"`--name {sweep.run.folder.name}` without --fresh goes" if fresh else "the same command goes"
            say(console, f"interrupted: {done} of {len(cells)} cells are done; {on} on from there")
            raise typer.Exit(INTERRUPTED) from None
    for record in records.values():
        if record.status == "skipped":
            say(console, f"skipped: {record.cell}: {record.reason}", style="yellow")
    failed = [record for record in records.values() if record.status not in ("done", "skipped")]
    if failed:
        say(console, f"{len(failed)} of {len(records)} cells have no result:", style="red")
        for record in failed:
            say(console, f"  {record.status}: {record.cell}: {record.reason}")
    if report:
        from bench.report.answers import answers
        from bench.report.pictures import LEFT_OUT
        from bench.report.summary import summarise
        from bench.report.write import write_report

        try:
            summary = summarise([sweep.run], sweep.run.folder.name)
            paths = write_report(summary, reports, sweep.splits if images else LEFT_OUT)
        except BaseException:
            page.end(sweep.run)
            raise
        for answer in answers(summary):
            say(console, answer, style="bold")
        for path in paths:
            say(console, f"report: {path}")
    if failed:
        raise typer.Exit(FAILED)


class _LivePage:
    """Keeps the report's page up to date; of a large run seldom enough to take a twentieth of the time at most."""

    def __init__(self, reports: Path) -> None:
        self._reports, self._due, self._begun = reports, 0.0, False

    def write(self, run: Any) -> None:
        """After a cell."""
        begun = time.monotonic()
        if begun < self._due:
            return
        self._put(run, ended=False)
        self._begun, self._due = True, max(self._due, time.monotonic() + 20 * (time.monotonic() - begun))

    def end(self, run: Any) -> None:
        """It no longer loads itself anew. A page that isn't this command's is left alone."""
        if self._begun:
            self._put(run, ended=True)

    def _put(self, run: Any, *, ended: bool) -> None:
        from bench.report.write import write_live

        try:
            write_live(run, self._reports, ended=ended)
        except UserError as error:  # a run is worth more than its page
            print(f"WARNING: --live: {error}", file=sys.stderr)
            self._due = math.inf


def _goal(grid: Any, until_decided: bool, within: float | None, max_seeds: int | None, budget: str | None) -> Any:
    """What `--until-decided` is to reach, or None. Raises `ConfigError`."""
    given = {"--within": within, "--max-seeds": max_seeds, "--budget": budget}
    if not until_decided:
        for option, value in given.items():
            if value is not None:
                raise ConfigError(f"{option} {value}: says when --until-decided is to stop; add that option")
        return None
    from bench.sweep.adaptive import make_goal

    return make_goal(grid, 5.0 if within is None else within, max_seeds, budget)


def _describe(sweep: Any, console: Any, dry_run: bool) -> None:
    """What will be used, and loudly what stands in for what was wanted."""
    from bench.sweep.weights import KEPT
    from tl.config import PROTOCOLS

    splits = sweep.splits
    config = next(iter(sweep.cells.values())).config
    images = f"{len(splits.train)} + {len(splits.val)} images, {len(splits.classes)} classes"
    say(console, f"images: {splits.name} ({images})")
    if splits.ignored:
        say(console, f"        files that are not images, left out: {len(splits.ignored)}, such as {splits.ignored[0]}")
    if config.protocol != "fixed":
        say(console, f"protocol: {config.protocol}: {PROTOCOLS[config.protocol]}")
    unless = "unless it can be downloaded: " if dry_run and not offline() and not sweep.previous else ""
    if splits.stand_in:
        kept = KEPT if sweep.keeps_images else ""
        say(console, f"WARNING: {unless}the images are {splits.stand_in}{kept}", style="bold yellow")
    fallbacks: dict[tuple[str, bool], list[str]] = {}
    before = sweep.previous.resolved if sweep.previous else {}
    for key, answer in sweep.settled.items():
        if answer.reason:
            fallbacks.setdefault((answer.reason, key in before), []).append(key.backbone)
    for (reason, is_kept), specs in fallbacks.items():
        text = f"WARNING: {unless}random weights, so accuracy will be n/a, for {', '.join(specs)}: {reason}"
        say(console, text + (KEPT if is_kept else ""), style="yellow")
    say(console, f"run: {sweep.run.folder}: {len(sweep.cells)} cells{_told_apart(sweep)}")


def _told_apart(sweep: Any) -> str:
    """Which cells are new to a run that there is already, and which are no longer in the grid."""
    if sweep.previous is None:
        return ""
    before = sweep.previous.cells
    new, gone = len(sweep.cells.keys() - before.keys()), len(before.keys() - sweep.cells.keys())
    parts = [f"{len(sweep.done)} of them done before"] if sweep.done else []
    parts += [f"{new} new"] if new else []
    parts += [f"and {gone} of earlier commands, which stay as they are"] if gone else []
    return "".join(f", {part}" for part in parts)


def _size(option: str, text: str) -> int:
    """`512MiB`, `2GB`, in bytes. Raises `ConfigError`."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if not 1 << 20 <= size < 1 << 60:
        raise ConfigError(f"{option} {text!r}: must be a size of at least 1MiB, such as 512MiB or 2GiB")
    return size


def _list_cells(sweep: Any) -> None:
    from tl.regimes import REGIMES

    for cell_id, cell in sweep.cells.items():
        state = "done" if cell_id in sweep.done else "to do"
        work = f"{cell.config.epochs} epochs" if REGIMES[cell.config.regime].trains else "one validation pass"
        settings = f"{work}, batch {cell.config.batch_size}, {cell.config.weights} weights"
        print(f"  {state:5}  {cell} ({settings})")


@app.command()
def report(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN…]", help="Names below results/, or folders.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The report's name; by default the runs' names.")] = None,
    out: Annotated[Path, typer.Option(help="Where the report is written.")] = Path("reports"),
    images: ImagesOption = True,
    data: Annotated[
        str | None, typer.Option(metavar="PATH|NAME", help="Where the images are, for pictures of them.")
    ] = None,
    index: Annotated[
        bool, typer.Option("--index", help="Instead: write OUT/index.html, a list of all runs (or of those named).")
    ] = False,
    collect: Annotated[
        bool,
        typer.Option("--collect", help="Instead: a quick look at a run that goes on: its page, no drawn figures."),
    ] = False,
) -> None:
    """Write reports/NAME.md and one self-contained reports/NAME.html; of a run that isn't complete, what there is."""
    from bench.store.runs import all_runs, find_runs
    from bench.sweep.run import check_name, check_output

    if index:
        if collect or name is not None:
            raise ConfigError(f"--index: lists runs, and takes no {'--collect' if collect else '--name'}")
        from bench.report.index import write_index

        print(f"index: {write_index(find_runs(runs) if runs else all_runs(), out)}")
        return
    if not runs:
        raise ConfigError("report: of which run? name one below results/, or a folder; --index lists all")
    found = find_runs(runs)
    if collect and (name is not None or len(found) > 1):
        raise ConfigError("--collect: a look at one run, and the page has its name: no --name, no other runs")
    name = name or "-".join(run.folder.resolve().name for run in found)
    check_name("--name", name)
    check_output(out)
    if collect:
        from bench.report.write import write_live

        print(f"report: {write_live(found[0], out, ended=True)}")
        return
    # Only now: drawing takes seconds to load, and a mistake is told at once.
    from bench.report.pictures import LEFT_OUT
    from bench.report.summary import summarise
    from bench.report.write import write_report

    summary = summarise(found, name)
    for path in write_report(summary, out, _images(summary, data) if images else LEFT_OUT):
        print(f"report: {path}")


def _images(summary: Any, data: str | None) -> Any:
    """The images of a report, or why they aren't there."""
    from bench.report.pictures import find_images

    try:
        return find_images(summary, data)
    except UserError as error:
        if data is not None:
            raise
        return f"No pictures: {error}."


@app.command()
def show(runs: RunArgument) -> None:
    """Print the answer, the claim and the table."""
    from rich.console import Console

    from bench.report.summary import summarise
    from bench.report.terminal import print_summary
    from bench.store.runs import find_runs

    print_summary(summarise(find_runs(runs), "show"), Console())


@app.command()
def claims(
    runs: RunArgument,
    format: Annotated[Literal["text", "json"], typer.Option(help="text or json.")] = "text",
) -> None:
    """Print what runs say of each claim: measured, predicted, verdict."""
    from bench.report.claims_text import print_claims
    from bench.report.summary import summarise
    from bench.store.runs import find_runs

    print_claims(summarise(find_runs(runs), "claims"), format)


SideArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="BASE NEW…",
        help="Runs, pytest-benchmark files, or folders of such files, a round each; several of one side with commas.",
    ),
]
FormatOption = Annotated[
    Literal["md", "html", "json"] | None,
    typer.Option(help="md, html or json.", show_default="by --output's ending, else md"),
]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="A file; by default standard output.")]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Compare this metric alone; may be given several times. See results/README.md."),
]


@app.command()
def compare(
    sides: SideArgument,
    by: Annotated[
        Literal["run", "regime", "device", "backbone", "precision", "seed"],
        typer.Option(help="What the sides are; by anything but run, one run is enough."),
    ] = "run",
    base: Annotated[
        str | None,
        typer.Option(metavar="LEVEL", help="With --by regime and the like: what the others are held against."),
    ] = None,
    metric: MetricOption = None,
    format: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Compare runs, or regimes, devices, … of one: what is worse, better, the same or can't be told."""
    from bench.compare.changes import compare as judged
    from bench.compare.sides import read_sides

    found = read_sides(sides, by=by, base=base)
    comparison = judged(found, metrics=metric or ())
    from bench.compare.render import show

    first, *others = (side.name for side in found)
    title = f"{', '.join(others)} against {first}"
    _put(output, format, lambda kind: show(comparison, kind, title=title))


@app.command()
def gate(
    sides: SideArgument,
    rule: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help="Like 'epoch_seconds: factor=1.1, cells=*frozen*'; after those of --config."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with [[tool.bench.gate.rule]].", show_default="pyproject.toml")
    ] = None,
    metric: MetricOption = None,
    format: FormatOption = None,
    output: OutputOption = None,
) -> None:
    """Fail on a regression. Exit status: 0 passed, 1 regressed, 2 usage, 3 incomplete, 4 not comparable."""
    from bench.compare.changes import compare as judged
    from bench.compare.gate import GATE_LEVEL, decide, read_rules
    from bench.compare.sides import read_sides

    if len(sides) != 2:
        raise ConfigError(f"{' '.join(sides)}: a gate has two sides, BASE and NEW, and here are {len(sides)}")
    found = read_sides(sides)
    kinds = {entry.repeats for side in found for entry in side.entries.values()}
    rules = read_rules(config, rule or [], kinds=kinds, metrics=metric or ())
    comparison = judged(found, metrics=metric or (), rules=rules, level=GATE_LEVEL)
    decision = decide(comparison)
    from bench.compare.render import show

    title = f"{found[1].name} against {found[0].name}"
    told: Any = {"headline": decision.headline, "findings": decision.reasons, "status": decision.status}
    _put(output, format, lambda kind: show(comparison, kind, title=title, **told))
    if output:
        print(decision.headline)
        for reason in decision.reasons:
            print(f"  {reason}")
    raise typer.Exit(decision.status)


def _put(output: Path | None, format: str | None, make: Any) -> None:
    """Text of the wanted kind to a file or to standard output. Raises `ConfigError`."""
    from tl.cache import write_atomic

    ending = output.suffix[1:] if output else "md"
    kind = format or ending
    if kind not in ("md", "html", "json"):
        raise ConfigError(f"--output {output}: ends in none of .md, .html, .json: say which with --format")
    text = make(kind)
    if output is None:
        print(text, end="")
    else:
        write_atomic(output, text)


@app.command()
def export(
    runs: RunArgument,
    format: Annotated[
        Literal["csv", "parquet", "json", "latex"] | None,
        typer.Option(help="csv, parquet, json, or latex (the report's table).", show_default="csv"),
    ] = None,
    output: OutputOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="One row an epoch, with its raw figures.")] = False,
    to: Annotated[
        Literal["tensorboard", "mlflow"] | None,
        typer.Option(help="Instead: all cells as files of a tracker, below --output or reports/."),
    ] = None,
) -> None:
    """Print one row a cell; the columns are described in results/README.md."""
    if to:
        from bench.export.trackers import export_to
        from bench.store.runs import find_runs

        if format or raw:
            raise ConfigError(f"--to {to}: has a format of its own; leave out --{'format' if format else 'raw'}")
        print(export_to(to, find_runs(runs), output))
        return
    from bench.export.formats import export_runs

    export_runs(runs, format or "csv", output, raw=raw)


@app.command(name="list")
def list_(
    what: Annotated[
        Literal["grids", "backbones", "regimes", "datasets", "devices"], typer.Argument(help="What to list.")
    ],
    text: Annotated[str | None, typer.Argument(help="Only names that contain this text.")] = None,
) -> None:
    """List what there is: grids, backbones, regimes, data sets or devices."""
    from bench.cli.listing import print_list

    print_list(what, text)


@app.command()
def doctor(
    noise: Annotated[
        bool, typer.Option("--noise", help="Instead: how small a difference in epoch time shows here? Takes a minute.")
    ] = False,
) -> None:
    """Say what this machine has: devices, threads, images and weights, and what is missing and why."""
    if not noise:
        from bench.cli.doctor import examine

        examine()
        return
    from bench.cli.noise import examine_noise

    try:
        with ended_by_signals():
            examine_noise()
    except KeyboardInterrupt:
        print("interrupted: nothing was measured to the end")
        raise typer.Exit(INTERRUPTED) from None
