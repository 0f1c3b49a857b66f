"""Prints lines on the terminal. Importing this module doesn't import rich, so that `--help` answers at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line unchanged: nothing in it is taken for markup, and long paths are not wrapped."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
