"""Writes runs as CSV, Parquet, JSON or LaTeX, with one row per cell, or per epoch and turn.

Parquet and JSON keep every text as it is. CSV and LaTeX are for people and spreadsheets: hidden characters are escapes
there, and in CSV a text that would be a formula has an apostrophe before it (`tl.text`).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pandas as pd

from bench.export.frame import load_runs, raw_rows
from bench.store.runs import RunFolder
from tl.cache import write_output
from tl.errors import UserError
from tl.text import csv_text, visible, visible_json


def export_runs(runs: list[RunFolder], format: str, output: Path | None, *, raw: bool) -> None:
    """Write one row per cell, or with `raw` per epoch and turn, to `output` or standard output. Raises `UserError`."""
    if format == "latex":
        if raw:
            raise UserError("--format latex is the report's table, one row per group of seeds; leave out --raw")
        _put_latex(runs, output)
        return
    table = raw_rows(runs) if raw else load_runs(runs)
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


def _put_latex(runs: list[RunFolder], output: Path | None) -> None:
    """Write the report's main table as a `tabular` for `booktabs`. Raises `UserError`."""
    from bench.report.summary import summarise
    from bench.report.tables import cells_table

    table = cells_table(summarise(runs, "table")).map(visible).rename(columns=visible)
    if table.empty:
        raise UserError("--format latex: no cell has a result")
    text = (
        table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1).to_latex(hrules=True)
    )
    _put(text, output)
