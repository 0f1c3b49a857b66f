"""`bench new-grid`: write a grid file to begin with."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli.app import app


@app.command(name="new-grid")
def new_grid(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write, such as my.toml.")],
) -> None:
    """Write a grid file with a comment for each key, and beside it a schema for editors."""
    import shlex

    from bench.sweep.new_grid import write_grid
    from tl.text import visible

    path, schema = write_grid(file)
    print(visible(f"wrote {path}, and beside it {schema.name}, which editors use to complete and check it"))
    print(visible(f"next: python -m bench run --grid {shlex.quote(str(path))} --dry-run"))
