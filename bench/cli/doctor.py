"""`bench doctor`: what this machine has, and how noisy it is."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli.app import INTERRUPTED, app


@app.command()
def doctor(
    noise: Annotated[
        bool,
        typer.Option("--noise", help="Measure instead how small a difference in epoch time shows here; one minute."),
    ] = False,
) -> None:
    """Say what this machine has: devices, threads, images and weights, and what is missing and why."""
    if not noise:
        from bench.sweep.doctor import examine

        examine()
        return
    from bench.execution.signals import sigterm_as_interrupt
    from bench.sweep.noise import examine_noise

    try:
        with sigterm_as_interrupt():
            examine_noise()
    except KeyboardInterrupt:
        print("interrupted: the measurement did not finish")
        raise typer.Exit(INTERRUPTED) from None
