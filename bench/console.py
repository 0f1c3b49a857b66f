"""Lines on the terminal. Importing this loads no rich, so that `--help` answers at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def say(console: Console, text: str, style: str | None = None) -> None:
    """A line as it is: names from data are not markup, and a path is not broken."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
