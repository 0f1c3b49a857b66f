"""Makes tables that fit a terminal: names are shortened before a column is left out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from tl.text import visible

SHORTEST = 12
"""Columns of the terminal that a shortened name has at least."""
HEADS = (0.5, 0.1, 0.9)
"""Shares of a cut name that may be its beginning, the best one first."""
GAP = 2
"""Columns of the terminal between two columns of a table."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A column of a table on the terminal."""

    heading: str
    texts: tuple[str, ...]
    """One text per row."""
    brief: tuple[str, ...] = ()
    """The texts in a shorter form, for narrow terminals; empty if there is none."""
    rank: int = 0
    """Columns with the highest rank are left out first; those with rank 0 never are."""
    is_name: bool = False
    """True if the texts are names, which may be cut in the middle."""
    wraps: bool = False
    """True if the texts are sentences, which may take several lines."""
    right: bool = False
    """True for numbers, which are aligned on the right."""
    styles: Callable[[str], str] | None = None
    """Gives a text its style; None for plain texts."""

    @property
    def whole(self) -> int:
        """Width that no text needs more of; the heading may take several lines."""
        return max(_longest_word(self.heading), *map(cell_len, self.texts), 1)

    @cached_property
    def least(self) -> int:
        """Smallest width. Names that differ still differ at it, and no word of a sentence is broken."""
        least = _longest_word(self.heading)
        if self.wraps:
            return max(least, *map(_longest_word, self.texts))
        if not self.is_name:
            return self.whole
        widths = range(min(SHORTEST, self.whole), self.whole)
        return max(least, next((width for width in widths if self.head_at(width)), self.whole))

    def head_at(self, width: int) -> float | None:
        """The share of a cut name that is its beginning, so that names that differ still do; None if they can't."""
        different = set(self.texts)
        heads = (head for head in HEADS if len({cut(text, width, head) for text in different}) == len(different))
        return next(heads, None)


def fit(columns: Sequence[Fitted], width: int) -> tuple[Table, list[str]]:
    """A table that is at most `width` columns wide, and the headings of the columns that have no room.

    What is shortened, in this order: names lose what `brief` leaves out, names lose their middle, columns are left out
    by rank, and other texts are replaced by their brief form. A terminal that is too narrow for the columns of rank 0
    breaks their texts.
    """
    shown = [_visible(column) for column in columns]
    if _total(shown) > width:
        shown = [_briefly(column) if column.is_name else column for column in shown]
    if sum(each.least + GAP for each in shown if not each.rank) - GAP > width:
        shown = [_briefly(column) for column in shown]
    chosen = [column for column in shown if not column.rank]
    used = sum(column.least + GAP for column in chosen) - GAP
    for column in sorted((column for column in shown if column.rank), key=lambda column: column.rank):
        if used + GAP + column.least <= width:
            chosen.append(column)
            used += GAP + column.least
    chosen = [column for column in shown if column in chosen]
    return _table(chosen, _widths(chosen, width)), [column.heading for column in shown if column not in chosen]


def fit_frame(
    frame: pd.DataFrame,
    width: int,
    *,
    names: Mapping[str, Sequence[str]],
    ranks: Mapping[str, int],
    wraps: Collection[str] = (),
    styles: Mapping[str, Callable[[str], str]] | None = None,
) -> tuple[Table, list[str]]:
    """`fit` for a table of texts.

    Args:
        frame: the table; each value is a text.
        width: columns of the terminal.
        names: heading of a column of names → the names in a shorter form, empty if there is none.
        ranks: heading → rank; those that are not in it have rank 0.
        wraps: headings of columns with sentences.
        styles: heading → what gives its texts their style.
    """
    return fit(
        [
            Fitted(
                heading=heading,
                texts=tuple(frame[heading]),
                brief=tuple(names.get(heading, ())),
                rank=ranks.get(heading, 0),
                is_name=heading in names,
                wraps=heading in wraps,
                styles=(styles or {}).get(heading),
            )
            for heading in map(str, frame)
        ],
        width,
    )


def cut(text: str, width: int, head: float = HEADS[0]) -> str:
    """The text without its middle, if it is wider than `width` columns of the terminal.

    `head` is the share of what is left that is the text's beginning.
    """
    if cell_len(text) <= width:
        return text
    start = _start(text, round((width - 1) * head))
    end = _start(text[::-1], width - 1 - cell_len(start))[::-1]
    return f"{start}…{end}"


def _start(text: str, width: int) -> str:
    """As much of the beginning of a text as fits."""
    while cell_len(text) > width:
        text = text[:-1]
    return text


def _visible(column: Fitted) -> Fitted:
    return replace(
        column,
        heading=visible(column.heading),
        texts=tuple(map(visible, column.texts)),
        brief=tuple(map(visible, column.brief)),
    )


def _briefly(column: Fitted) -> Fitted:
    return replace(column, texts=column.brief or column.texts, brief=())


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _total(columns: Sequence[Fitted]) -> int:
    return sum(column.whole + GAP for column in columns) - GAP


def _widths(columns: Sequence[Fitted], width: int) -> list[int]:
    """Width of each column: its least one, and of the room that is left most for those that lack most.

    Sentences come first, then names; headings get what texts leave.
    """
    widths = [column.least for column in columns]
    room = width - sum(widths) - GAP * (len(columns) - 1)
    while room < 0:
        cuttable = [place for place, column in enumerate(columns) if _can_lose(column, widths[place])]
        if not cuttable:
            break
        widths[max(cuttable, key=lambda place: widths[place])] -= 1
        room += 1
    headings = [max(column.whole, cell_len(column.heading)) for column in columns]
    sentences = [column.whole if column.wraps else 0 for column in columns]
    for wanted in (sentences, [column.whole for column in columns], headings):
        lacking = [most - now for most, now in zip(wanted, widths, strict=True)]
        while room > 0 and max(lacking, default=0) > 0:
            place = lacking.index(max(lacking))
            widths[place] += 1
            lacking[place] -= 1
            room -= 1
    return widths


def _can_lose(column: Fitted, width: int) -> bool:
    """True for names that are still long where there is no room at all: they are cut even if they look alike then."""
    return column.is_name and width > max(SHORTEST, _longest_word(column.heading))


def _table(columns: Sequence[Fitted], widths: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            Text(column.heading), overflow="fold", justify="right" if column.right else "left", width=width
        )
    for row in zip(*(_cells(column, width) for column, width in zip(columns, widths, strict=True)), strict=True):
        table.add_row(*row)
    return table


def _cells(column: Fitted, width: int) -> list[Text]:
    head = (column.head_at(width) or HEADS[0]) if column.is_name and width < column.whole else HEADS[0]
    texts = [cut(text, width, head) for text in column.texts] if column.is_name else column.texts
    style = column.styles or (lambda text: "")
    return [Text(text, style=style(whole)) for text, whole in zip(texts, column.texts, strict=True)]
