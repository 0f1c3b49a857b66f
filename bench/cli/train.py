"""`bench train`: train the model that a run recommends, on all images, and save it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli import completion
from bench.cli.app import FAILED, app
from bench.cli.arguments import RESULTS, PluginOption, ResultsOption, expanded
from bench.console import say, tell
from bench.program import INTERRUPTED


@app.command()
def train(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", autocompletion=completion.runs, help="A run's name below --results, or its folder."
        ),
    ],
    cell: Annotated[
        str | None,
        typer.Option(metavar="ID", help="A cell's id, or its beginning.", show_default="what the run recommends"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", callback=expanded, help="The model's new folder.", show_default="models/ID"),
    ] = None,
    all_images: Annotated[
        bool,
        typer.Option(
            "--all-images/--train-only", help="Train on the validation images too, or on the training images alone."
        ),
    ] = True,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH|NAME", help="The run's images.", show_default="where the run found them"),
    ] = None,
    weights_dir: Annotated[
        Path | None, typer.Option(callback=expanded, help="A folder of weight files to search first.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda[:i], mps or auto (the best).", show_default="the cell's")
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            metavar="onnx|torch",
            help="Also write model.onnx or model.pt2 and compare it with the model (repeatable, or joined by commas).",
        ),
    ] = None,
    results: ResultsOption = RESULTS,
    plugin: PluginOption = None,
) -> None:
    """Train once more with a cell's settings, on all images, and save the network: model.safetensors and model.json.

    It starts from the weights that the cell started from; a run whose images or weights are no longer here is refused.
    The test part of a data set is never trained on. The network of the last epoch is saved, since no image is left to
    choose an epoch by.

    Exit status: 0 all done, 1 an export was not kept, 2 usage error or no model, 130 interrupted.
    """
    from bench.execution.executors import make_executor, start_early

    start_early("process")
    from rich.console import Console

    from bench.execution.signals import ending_as_interrupt
    from bench.store.runs import find_run
    from bench.sweep.final import plan_final, train_final
    from tl.exporting import check_forms
    from tl.results import EpochResult
    from tl.saved import check_unused

    forms = [form for value in export or () for form in value.split(",")]
    check_forms(forms)
    if out:
        check_unused(out)
    executor, console = make_executor("process"), Console()
    final = plan_final(
        find_run(run, results),
        executor,
        cell=cell,
        data=data,
        weights_dir=weights_dir,
        device=device,
        all_images=all_images,
    )
    folder = out or Path("models") / final.record.cell_id
    epochs, parts = final.cell.config.epochs, "training and validation" if all_images else "training"
    say(console, f"cell {final.record.cell_id}: {final.record.cell.name}")
    say(console, f"images: {final.splits.name}, {len(final.images.train)} to train on ({parts})")
    if final.splits.fallback:
        say(console, f"WARNING: the images are {final.splits.fallback}", style="bold yellow")
    if not final.record.result or not final.record.result.accuracy_counts:
        say(console, "WARNING: the cell started from random weights, so its accuracy was n/a", style="bold yellow")

    def show(event: object) -> None:
        if not isinstance(event, EpochResult):
            say(console, f"{'' if isinstance(event, str) else 'WARNING: '}{event}")
        elif event.train_loss is not None:
            say(console, f"epoch {event.epoch + 1}/{epochs}: loss {event.train_loss:.4f} while training")

    try:
        with ending_as_interrupt():
            trained = train_final(final, folder, executor, exports=forms, on_event=show)
    except KeyboardInterrupt:
        tell(f"interrupted: nothing was written to {folder}")
        raise typer.Exit(INTERRUPTED) from None
    card = trained.card
    say(console, f"model: {folder} ({card.tensors_bytes / 2**20:.1f} MiB, {len(card.classes)} classes)", style="bold")
    accuracy = final.measured.values.get("val_accuracy_last")
    if accuracy is not None:
        say(console, f"accuracy: {100 * accuracy:.1f}%. {final.measured.note}")
    for one in card.exports:
        text = f"same classes for {one.images} images, logits differ by at most {one.largest_difference:.2g}"
        say(console, f"export: {folder / one.file}: {text}")
    say(console, f"try it: python -m bench predict {folder} IMAGES")
    for why in trained.not_kept.values():
        say(console, f"not kept: {why}", style="red")
    if trained.not_kept:
        raise typer.Exit(FAILED)
