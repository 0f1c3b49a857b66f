"""Writes runs as CSV, Parquet, JSON or LaTeX, with one row per cell, or per epoch and turn.

Parquet and JSON keep every text as it is. CSV and LaTeX are for people and spreadsheets: hidden characters are escapes
there, and in CSV a text that would be a formula has an apostrophe before it (`tl.text`).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from bench.export.frame import load_runs, raw_rows
from bench.store.runs import RunFolder
from tl.cache import write_output
from tl.errors import UserError, near_matches
from tl.text import csv_text, visible, visible_json


def export_runs(
    runs: list[RunFolder], format: str, output: Path | None, *, raw: bool, columns: Sequence[str] = ()
) -> None:
    """Write one row per cell, or with `raw` per epoch and turn, to `output` or standard output. Raises `UserError`.

    `columns` are names of columns, in the order in which they are wanted; empty for all, and for what fits a page in
    the case of `latex`, whose columns are called as its headings or by their metric.
    """
    if format == "latex":
        if raw:
            raise UserError("--format latex is the report's table, one row per group of seeds; leave out --raw")
        _put_latex(runs, output, columns)
        return
    table = raw_rows(runs) if raw else load_runs(runs)
    if columns:
        for name in columns:
            if name not in table:
                raise UserError(_no_column(name, map(str, table)))
        table = table[list(dict.fromkeys(columns))]
    if format == "parquet":
        if output is None and sys.stdout.isatty():
            raise UserError("--format parquet is not text: name a file with --output, or pipe it")
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        _put(buffer.getvalue(), output)
    elif format == "csv":
        _put(csv_table(table).to_csv(index=False), output)
    else:
        _put(visible_json(table.to_json(orient="records", indent=1, force_ascii=False)) + "\n", output)


def _no_column(name: str, columns: Iterable[str]) -> str:
    """What is said of a column that isn't there: names that look like it, or else all that there are."""
    known = list(columns)
    hint = near_matches(name, known) or f"; there are {', '.join(known)}"
    return f"--columns {name!r}: no such column{hint}"


def csv_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its texts and headings as `csv_text`; columns of numbers stay what they are, to the last digit."""
    shown = table.copy()
    for name in table:
        if not pd.api.types.is_numeric_dtype(table[name]):
            shown[name] = table[name].map(lambda cell: csv_text(cell) if isinstance(cell, str) else cell)
    return shown.rename(columns=csv_text)


def _put(content: str | bytes, output: Path | None) -> None:
    """Write to `output`, whole or not at all, or to standard output. Raises `UserError`."""
    try:
        if output is not None:
            write_output(output, content)
        elif isinstance(content, str):
            sys.stdout.write(content)
        else:
            sys.stdout.buffer.write(content)
    except BrokenPipeError:
        raise  # the program ends as for every output that nobody reads any more
    except OSError as error:
        raise UserError(f"{output or 'standard output'}: can't be written: {error.strerror or error}") from error


def _put_latex(runs: list[RunFolder], output: Path | None, wanted: Sequence[str]) -> None:
    """Write the report's main table as a `tabular` for `booktabs`, with figures on the right. Raises `UserError`.

    Comments above it say what a paper has to add: the package, and what its caption says of deviations.
    """
    from bench.report.summary import summarise
    from bench.report.tables import columns, headline_columns, seeds_once

    summary = summarise(runs, "table")
    if not summary.groups:
        raise UserError("--format latex: no cell has a result")
    chosen = headline_columns(summary)
    if wanted:
        known = {name: column for column in columns(summary) for name in (column.heading, column.metric) if name}
        known = {name.partition(",")[0]: column for name, column in known.items()} | known  # also without the unit
        chosen = list(known.values()) if wanted == ["all"] else []
        for name in () if wanted == ["all"] else wanted:
            if name not in known:
                raise UserError(_no_column(name, ["all", *known]))
            chosen.append(known[name])
        chosen = list({column.heading: column for column in chosen}.values())
    said = ["% needs \\usepackage{booktabs}"]
    for place, column in enumerate(chosen):
        chosen[place], seeds = seeds_once(column)
        if seeds:
            said.append(
                f"% for the caption: ± is the standard deviation of {visible(column.heading)} over {seeds} seeds"
            )
    table = pd.DataFrame({column.heading: column.texts for column in chosen}).map(visible).rename(columns=visible)
    text = (
        table.style.hide(axis="index")
        .format(escape="latex")
        .format_index(escape="latex", axis=1)
        .to_latex(hrules=True, column_format="".join("r" if column.metric else "l" for column in chosen))
    )
    _put("\n".join([*said, text]), output)
