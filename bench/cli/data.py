"""`bench data`: report on a data set before anything trains."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from bench.cli.app import app
from bench.cli.arguments import TaskOption


@app.command()
def data(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH|NAME",
            help="A folder of images by class, a table of them (CSV, Parquet), COCO files, or a data set's name.",
        ),
    ],
    task: TaskOption = None,
    format: Annotated[Literal["text", "json"], typer.Option(help="text or json.")] = "text",
) -> None:
    """Say what a data set holds: counts, sizes, repeated images, conflicting labels, damaged files. Nothing is trained.

    Exit status: 0 whatever was found, 2 for a set that can't be used.
    """
    from bench.console import tell
    from bench.report.survey_text import print_survey
    from bench.sweep.plan import find_images
    from tl.survey import survey

    splits = find_images(path, task=task or "classification", download=True)
    if splits.fallback:
        tell(f"WARNING: the images are {splits.fallback}")
    print_survey(survey(splits, test=True), format)
