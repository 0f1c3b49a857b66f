"""`bench predict`: predict the classes of photographs with a model of `bench train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from bench.cli.app import FAILED, app
from bench.cli.arguments import PluginOption, expanded


@app.command()
def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", callback=expanded, help="The folder of a model that `train` wrote.")
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES…", help="Image files, folders with images anywhere in them, or a data set's name."
        ),
    ],
    format: Annotated[
        Literal["text", "csv", "json"], typer.Option(help="text, csv, or json with the probabilities of all classes.")
    ] = "text",
    device: Annotated[str, typer.Option(help="cpu, cuda[:i], mps or auto (the best).")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 32,
    plugin: PluginOption = None,
) -> None:
    """Predict the class of each image, with its confidence.

    If all images of a folder are in folders that are named after the model's classes, the accuracy is shown too, and
    how often each class was taken for another.

    Exit status: 0 all images predicted, 1 some can't be read (they are listed), 2 usage error, 130 interrupted.
    """
    from bench.execution.executors import make_executor, start_early

    start_early("process")
    from bench.report.predicted_text import show_predictions
    from bench.sweep.predict import predict as predict_images

    found = predict_images(model, images, make_executor("process"), device=device, batch_size=batch_size)
    sys.stdout.write(show_predictions(found, format))
    if found.unreadable:
        raise typer.Exit(FAILED)
