"""The API for notebooks: `bench.run` and `bench.pick` are the commands as functions, and a `Run` is what is on disk."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from bench.analysis.plugins import load_plugins
from bench.console import LastingOutput, deleted_working_folder, tell, without_impossible_sizes
from bench.store.runs import find_run
from tl.calls import Given, Place, PlaceOrPlaces, Places, Returned, Seeds, Texts, checked, plain
from tl.errors import ConfigError, UserError

if TYPE_CHECKING:
    import pandas as pd

    from bench.store.picks import PickRecord
    from bench.store.records import Record

_RESULTS, _REPORTS = "results", "reports"


class Run:
    """A run on disk, whether it is complete or not."""

    @checked
    def __init__(self, name: Place, results: Place = _RESULTS) -> None:
        """`name` is a folder, or the name of one below `results`. Raises `tl.UserError` if there is no such run."""
        load_plugins()
        self._run = find_run(name, Path(results))

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._run.folder

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self._run.folder.resolve().name

    def records(self) -> dict[str, Record]:
        """Cell id → record, in the order in which the cells were planned."""
        return self._run.records()

    @checked
    def frame(self, *, per_epoch: bool = False) -> pd.DataFrame:
        """One row per cell, or per epoch of each finished cell. results/README.md describes the columns.

        Unknown values are missing (`NA`), never 0. Cells without a result have a row with their status and reason.
        """
        from bench.export.frame import epoch_rows, load_runs

        return epoch_rows([self._run]) if per_epoch else load_runs([self._run])

    def pick(self) -> PickRecord | None:
        """What `bench.pick` chose here, with its figures, and how far each candidate came; None for other runs."""
        return self._run.pick()

    def turns(self) -> pd.DataFrame:
        """Raw values of paired timing: one row per turn of each cell of a process pair, as in `export --raw`."""
        from bench.export.frame import turn_rows

        return turn_rows([self._run])

    def claims(self) -> pd.DataFrame:
        """One row per comparison of each claim, with `measured`, `low`, `high`, `predicted`, `p` and `verdict`.

        `by` says what the interval is over, `pairs` or `seeds`, and the column of that name how many there are.
        `share` is the regime's share of the other's time, for claims that are shown as a share. `correlation` and
        `correlation_p` say how much neighbouring pairs, or seeds, are alike; see `bench.analysis.stats.ratio_of_pairs`
        and `ratio_in_order`.

        A claim that this run does not test has one row, whose verdict is `not tested`. Rows of `probe-picks`, one per
        cheap `score`, have the regret of the backbone that it ranks first as `measured`; only they have `backbones`,
        `picked`, `best`, `agreement` (weighted Kendall's tau), `chance` (the regret of a random pick) and `because`.
        """
        import pandas as pd

        from bench.report.claims_text import rows

        return pd.DataFrame(rows(self._summary())).convert_dtypes()  # an unknown number of seeds is no float

    def answers(self) -> list[str]:
        """Which backbone to use and which claims hold, in sentences."""
        from bench.report.answers import answers

        return answers(self._summary())

    @checked
    def report(
        self, folder: Place = _REPORTS, *, images: bool = True, data: Place | None = None, pdf: bool = False
    ) -> tuple[Path, Path]:
        """Write `folder/NAME.md` and `folder/NAME.html`, and return both paths. An older report is replaced.

        Args:
            folder: the folder for the report; it is created if it doesn't exist.
            images: embed images; without them the report is safe to share.
            data: the folder of the images, if they have moved since the run.
            pdf: write each figure as a PDF file too, for a paper.

        Raises `tl.UserError` if the folder can't be written, or has files with the report's names that no report wrote.
        """
        from bench.report.pictures import LEFT_OUT, images_or_reason
        from bench.report.write import write_report

        summary = self._summary()
        shown = images_or_reason(summary, None if data is None else os.fspath(data)) if images else LEFT_OUT
        return write_report(summary, Path(folder), shown, pdf=pdf)

    def _summary(self) -> Any:
        from bench.report.summary import summarise

        return summarise([self._run], self.name)

    def __repr__(self) -> str:
        from bench.analysis.tally import tally_of_run

        return f"Run({os.fspath(self.folder)!r}: {tally_of_run(self._run)})"


def _trusting(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Let each call trust the repositories that it is given, and those after it not."""

    @wraps(function)
    def call(*positional: Given.args, **by_name: Given.kwargs) -> Returned:
        from tl.hub import trust_ends

        with trust_ends():
            return function(*positional, **by_name)

    return call


@checked
@_trusting
def run(
    grid: Place = "default",
    *,
    backbones: Texts | None = None,
    regimes: Texts | None = None,
    devices: Texts | None = None,
    precision: Texts | None = None,
    execution: Texts | None = None,
    seeds: Seeds | None = None,
    data: Place | None = None,
    weights: str = "auto",
    weights_dir: Place | None = None,
    name: str | None = None,
    results: Place = _RESULTS,
    pairs: int | None = None,
    paired: bool = True,
    until_decided: bool = False,
    within: float | None = None,
    max_pairs: int | None = None,
    budget: str | None = None,
    timeout: float | None = None,
    memory_limit: str | None = None,
    skip_larger_after_oom: bool = False,
    executor: str = "process",
    ray_address: str | None = None,
    inference: bool = False,
    wait: bool = False,
    fresh: bool = False,
    live: Place | None = None,
    progress: bool = True,
    plugins: Places = (),
    trust: Texts = (),
    **settings: Any,
) -> Run:
    """Run the cells of a grid that have no result yet, and time its process pairs: the command `bench run`.

    A script calls it below `if __name__ == "__main__":`, since the processes of cells import the script.

    Args:
        grid: a shipped grid's name, or the path of a TOML file.
        backbones: such as `timm:resnet26`; each axis that is given replaces the grid's.
        regimes: such as `finetune` and `frozen`.
        devices: `cpu`, `cuda[:i]`, `mps`, `auto` (the best) or `all`.
        precision: such as `fp32` and `bf16`.
        execution: `fast`, or `plain` as the tutorial's own loop; with both, their times can be compared.
        seeds: the number of seeds, counted from 0, or a list of seeds.
        data: a folder of images by class, with or without a split, a table of images, or a data set's name.
        weights: `auto`, `pretrained` or `random`.
        weights_dir: a folder of weight files to search first.
        name: the run's folder below `results`; by default made from the grid's name.
        results: the folder where runs are kept.
        pairs: process pairs per comparison of speeds, 3 or more, in place of the grid's.
        paired: compare speeds in turns, apart from the trainings, if the grid says so.
        until_decided: add process pairs until every speed-up has a verdict or is known to within `within` percent (5
            by default), at most `max_pairs` of each, and add none that would overrun `budget`, such as `"10m"`. The
            intervals assume that pairs are independent; from five on they are widened if pairs clearly resemble those
            before.
        timeout: time limit per training, in seconds; an hour by default.
        memory_limit: main memory that a cell may allocate, such as `"2GiB"`; Linux only.
        skip_larger_after_oom: skip larger batches of a cell that ran out of memory.
        executor: `process`, `inline` or `ray`; `ray_address` is the cluster's.
        inference: after each training, measure the trained network's latency and throughput, and the size of its file.
            Cells that are done don't run again for it.
        wait: wait for another command that is working in the run's folder.
        fresh: start over in a new folder; nothing is deleted.
        live: a folder for reports, where the run's page is updated whenever a cell ends.
        progress: print the progress.
        plugins: scripts that add regimes, sources, metrics or claims. Entries that a notebook itself adds don't reach
            the processes of cells; those of a script do.
        trust: repositories, `OWNER/REPO`, whose code may run in this call, for backbones of source `hub`.
        settings: fields of `tl.TrainConfig` that are not axes, such as `epochs=3` or `batch_size=16`.

    Returns the run. A cell that failed or diverged doesn't raise; its record has the reason. The next call tries failed
    cells again, but not diverged ones, since the same settings would diverge again.

    Raises `tl.UserError` for mistakes that the caller can correct, before anything is written, and `KeyboardInterrupt`:
    finished cells are kept, and the same call continues from there.
    """
    settings = {name: plain(value) for name, value in settings.items()}
    called = _as_called(run, locals())
    from bench.execution.process import end_if_imported

    end_if_imported()
    if executor == "process":
        _check_script()
    if gone := deleted_working_folder():
        raise UserError(gone)
    load_plugins(map(Path, plugins))
    _trust(trust)
    from rich.console import Console

    from bench.execution.executors import start_early
    from bench.report.live import LivePage
    from bench.report.written import check_replaceable
    from bench.sweep.adaptive import make_goal, refuse_max_seeds
    from bench.sweep.folder import check_output
    from bench.sweep.options import make_options
    from bench.sweep.plan import Sweep, choose_grid, run_name
    from bench.sweep.run import run_sweep

    axes = {
        "backbones": backbones,
        "regimes": regimes,
        "devices": devices,
        "precision": precision,
        "execution": execution,
        "seeds": seeds,
    }
    refuse_max_seeds("max_seeds", settings.get("max_seeds"))
    chosen = choose_grid(os.fspath(grid), axes, settings, pairs=pairs, paired=paired)
    images = None if data is None else os.fspath(data)
    page = None if live is None else LivePage(Path(live), tell)
    if live is not None:
        check_output(Path(live))
    options = make_options(
        data=images,
        weights=weights,
        weights_dir=None if weights_dir is None else Path(weights_dir),
        name=run_name(chosen, images, weights, settings) if name is None else name,
        results=Path(results),
        timeout=timeout,
        memory_limit=memory_limit,
        skip_larger_after_oom=skip_larger_after_oom,
        executor=executor,
        address=ray_address,
        inference=inference,
        wait=wait,
        fresh=fresh,
        command=called,
        on_record=page.write if page else None,
    )
    goal = make_goal(chosen, until_decided=until_decided, within=within, max_pairs=max_pairs, budget=budget)
    start_early(executor)
    sweeps: list[Sweep] = []

    def planned(sweep: Sweep) -> None:
        if live is not None:
            check_replaceable(Path(live) / f"{sweep.run.folder.name}.html", run=sweep.run.folder)
        sweeps.append(sweep)

    try:
        # In place of standard output, since multiprocessing, too, fails on what can't be flushed there.
        output = cast("IO[str]", LastingOutput(sys.stdout)) if sys.stdout else None
        with without_impossible_sizes(), contextlib.redirect_stdout(output):
            run_sweep(chosen, options, Console(quiet=not progress), goal=goal, on_plan=planned)
    finally:
        if page and sweeps:
            page.end(sweeps[0].run)
    return Run(sweeps[0].run.folder)


def _trust(repositories: Iterable[str]) -> None:
    """Let code of these repositories run. Raises `ConfigError`."""
    if repositories:
        from tl.hub import trust

        trust(repositories)


def _check_script() -> None:
    """Raise `ConfigError` if the processes of cells can't import the script that is running, as they do at their start.

    One that comes through standard input or another pipe can be read only once.
    """
    script = sys.modules["__main__"]
    file = getattr(script, "__file__", None)
    if getattr(script, "__spec__", None) is None and file is not None and not Path(file).is_file():
        raise ConfigError(
            f"this script is {file}, which is not a file that the processes of cells can import: save it as one, or "
            'give executor="inline"'
        )


def _as_called(function: Callable[..., object], given: Mapping[str, Any]) -> str:
    """Return the call as text, for the run's list of commands: the arguments that are not the defaults."""
    defaults = {name: parameter.default for name, parameter in signature(function).parameters.items()}
    named = {name: value for name, value in given.items() if name != "settings" and value is not defaults[name]}
    words = [
        f"{name}={(os.fspath(value) if isinstance(value, Path) else value)!r}"
        for name, value in {**named, **given.get("settings", {})}.items()
    ]
    return f"bench.{function.__name__}({', '.join(words)})"


@checked
@_trusting
def pick(
    data: Place,
    *,
    budget: str = "10m",
    priority: str = "accuracy",
    tune_top: int = 3,
    backbones: Texts | None = None,
    regimes: Texts | None = None,
    device: str = "auto",
    precision: str = "fp32",
    seeds: Seeds = 3,
    epochs: int = 5,
    weights_dir: Place | None = None,
    timeout: float | None = None,
    memory_limit: str | None = None,
    executor: str = "process",
    ray_address: str | None = None,
    wait: bool = False,
    name: str | None = None,
    results: Place = _RESULTS,
    fresh: bool = False,
    progress: bool = True,
    trust: Texts = (),
) -> Run:
    """Pick a backbone and a regime for a set of images, within a budget of time: the command `bench pick`.

    A script calls it below `if __name__ == "__main__":`, since the processes of cells import the script.

    Args:
        data: a folder of images by class, or a data set's name.
        budget: time for all of it, such as `"90s"` or `"10m"`; no cell starts that would overrun it.
        priority: what matters most: `accuracy`, or `time`, `inference` or `memory`: the cheapest that is at most 2
            points less accurate than the best.
        tune_top: how many backbones are trained, the best by their probe.
        backbones: candidates in place of those of the grid `pick`.
        regimes: how they are trained, in place of `finetune` and `frozen`.
        device: `cpu`, `cuda[:i]`, `mps` or `auto`, the best.
        precision: `fp32`, `tf32`, `bf16`, `fp16`, or `auto`, the fastest here.
        seeds: of whole trainings: their number, counted from 0, or a list.
        epochs: passes of whole trainings over the training images.
        weights_dir: a folder of weight files to search first.
        timeout: time limit per training, in seconds; an hour by default.
        memory_limit: main memory that a cell may allocate, such as `"2GiB"`; Linux only.
        executor: `process`, `inline` or `ray`; `ray_address` is the cluster's.
        wait: wait for another command that is working in the run's folder.
        name: the run's folder below `results`; by default `pick-` and the images' name.
        results: the folder where runs are kept.
        fresh: start over in a new folder; nothing is deleted.
        progress: print the progress on standard error.
        trust: repositories, `OWNER/REPO`, whose code may run in this call, for backbones of source `hub`.

    Returns the run; `Run.pick()` has the choice, and `Run.answers()` says it.

    Raises `tl.UserError` for mistakes that the caller can correct, and `KeyboardInterrupt`: finished cells are kept,
    and the same call continues from there.
    """
    called = _as_called(pick, locals())
    from bench.execution.process import end_if_imported

    end_if_imported()
    if executor == "process":
        _check_script()
    if gone := deleted_working_folder():
        raise UserError(gone)
    load_plugins()
    _trust(trust)
    from rich.console import Console

    from bench.execution.executors import start_early
    from bench.sweep.adaptive import seconds
    from bench.sweep.pick import prepare, run_pick

    grid, options, aim = prepare(
        os.fspath(data),
        command=called,
        budget_seconds=seconds("budget", budget),
        priority=priority,
        top=tune_top,
        backbones=backbones,
        regimes=regimes,
        device=device,
        precision=precision,
        seeds=seeds,
        epochs=epochs,
        weights_dir=None if weights_dir is None else Path(weights_dir),
        timeout=timeout,
        memory_limit=memory_limit,
        executor=executor,
        address=ray_address,
        wait=wait,
        name=name,
        results=Path(results),
        fresh=fresh,
    )
    start_early(executor)
    with without_impossible_sizes():
        outcome = run_pick(grid, options, Console(stderr=True, quiet=not progress), aim)
    assert outcome is not None
    return Run(outcome.sweep.run.folder)


@checked
def load_results(paths: PlaceOrPlaces, results: Place = _RESULTS) -> pd.DataFrame:
    """Read runs into one frame with one row per cell and the columns of `bench export` (results/README.md).

    `paths` are folders, or names of runs below `results`. Unknown values are missing (`NA`), never 0.
    Raises `tl.UserError` if a path is not a run.
    """
    load_plugins()
    from bench.export import frame

    return frame.load_results(paths, Path(results))
