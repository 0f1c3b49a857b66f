"""Options and arguments that several commands share, so that each means one thing everywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from bench.cli import completion
from tl.cache import user_path
from tl.errors import ConfigError


def expanded(param: typer.CallbackParam, path: Path | None) -> Path | None:
    """Expand `~` in a path: shells don't where it follows an equals sign, as in `--results=~/runs`."""
    return None if path is None else user_path(f"{param.opts[0]} ", path)


RunsArgument = Annotated[
    list[str],
    typer.Argument(metavar="RUN…", help="Names of runs below --results, or folders.", autocompletion=completion.runs),
]
ResultsOption = Annotated[Path, typer.Option(callback=expanded, help="The folder where runs are kept.")]
ReportsOption = Annotated[Path, typer.Option(callback=expanded, help="The folder where reports go.")]
HiddenOut = Annotated[Path | None, typer.Option("--out", callback=expanded, hidden=True)]
"""The old name of `--results` of `run` and of `--reports` of `report`."""
ImagesOption = Annotated[
    bool,
    typer.Option("--images/--no-images", help="Embed images; --no-images makes the report safe to share."),
]
TEXT_OR_MD = "text on a terminal, else md"
"""The default of `--format` of commands that print tables, for their help."""
TextOption = Annotated[
    Literal["text", "md"] | None, typer.Option("--format", help="text or md.", show_default=TEXT_OR_MD)
]
FormatOption = Annotated[
    Literal["text", "md", "html", "json"] | None,
    typer.Option(help="text, md, html or json.", show_default=f"by --output's ending, else {TEXT_OR_MD}"),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", callback=expanded, help="Write to this file.", show_default="standard output"),
]
TimeoutOption = Annotated[
    float | None, typer.Option(metavar="S", help="Time limit per training, in seconds.", show_default="3600")
]
MemoryLimitOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Main memory that a cell may allocate, such as 2GiB (Linux only).")
]
ExecutorOption = Annotated[
    str,
    typer.Option(
        help="Where cells run: process (each in its own), inline (for debuggers: no limits, no protection), or ray (on "
        "a cluster)."
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(metavar="auto|ADDRESS", help="The cluster's address.", show_default="start one on this machine"),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=completion.values("task"),
        help="What the network predicts for an image: classification (one class), multilabel (any number of labels), "
        "or detection (boxes).",
        show_default="classification",
    ),
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Wait for another command that is working in this run's folder.")
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        autocompletion=completion.metrics,
        help="Compare only this metric (repeatable); results/README.md lists them.",
    ),
]
SidesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="BASE NEW…",
        autocompletion=completion.runs,
        help="Runs, pytest-benchmark files, or folders of such files; each file is a round. Commas join several into "
        "one side.",
    ),
]


def _load_plugins(paths: list[Path] | None) -> list[Path] | None:
    """Load the files. Typer calls this for every command with the option, before it parses the other options."""
    from bench.analysis.plugins import load_plugins

    paths = [user_path("--plugin ", path) for path in paths or ()]
    load_plugins(paths)
    return paths


PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        callback=_load_plugins,
        is_eager=True,  # the values of other options may be names that the file adds
        help="A Python file that adds regimes, sources, metrics or claims (repeatable).",
    ),
]


def _trust(repositories: list[str] | None) -> list[str] | None:
    if repositories:
        from tl.hub import trust

        trust(repositories)
    return repositories


TrustOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OWNER/REPO",
        callback=_trust,
        help="Run code of this repository, for backbones of source hub (repeatable).",
    ),
]
SEVERAL = "(repeatable, or joined by commas)"
"""How several values of an option are given, for its help."""
RESULTS, REPORTS = Path("results"), Path("reports")
"""Defaults of `--results` and `--reports`."""


def text_or_markdown(format: str | None) -> str:
    """The format that was asked for, else `text` for people at a terminal, and `md` for pipes and files."""
    if format is not None:
        return format
    return "text" if sys.stdout.isatty() else "md"


def renamed(option: str, value: Path, default: Path, out: Path | None) -> Path:
    """The value of an option whose old name is `--out`. Raises `ConfigError` if both names are given."""
    if out is None:
        return value
    if value != default:
        raise ConfigError(f"--out {out} is the old name of {option}, which is also given ({value}); leave out --out")
    return out


def each(values: list[str] | None) -> list[str] | None:
    """All values of an option of which each may be several, joined by commas, without blanks around; see `SEVERAL`."""
    return None if values is None else [name.strip() for value in values for name in value.split(",")]
