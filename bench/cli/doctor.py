"""`bench doctor`: show what this machine has, and how noisy it is."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli.app import app
from bench.program import INTERRUPTED


@app.command()
def doctor(
    noise: Annotated[
        bool,
        typer.Option("--noise", help="Measure how small a difference in epoch time shows here; takes a minute."),
    ] = False,
) -> None:
    """Show what this machine has (devices, threads, images, weights), and what is missing and why."""
    if not noise:
        from bench.sweep.doctor import examine

        examine()
        return
    from bench.execution.signals import ending_as_interrupt
    from bench.sweep.noise import examine_noise

    try:
        with ending_as_interrupt():
            examine_noise()
    except KeyboardInterrupt:
        print("interrupted: the measurement did not finish")
        raise typer.Exit(INTERRUPTED) from None
