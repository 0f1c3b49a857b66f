"""Renders pages from templates as Markdown and HTML. Names from data are always escaped."""

from __future__ import annotations

import html
import re
from importlib import resources
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from tl.text import visible

_BETWEEN_PARTS = re.compile(r"(?<=[:_/.])(?=\w)")
"""Where a name of a backbone may be broken."""
_IN_BRACKETS = re.compile(r"\([^()<>]{1,26}\)")
_WHOLE = r'<span class="whole">\g<0></span>'


def environment_for(suffix: str) -> jinja2.Environment:
    """The environment of templates for a suffix, `md` or `html`."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=suffix == "html",
        finalize=_inert if suffix == "md" else _shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["text"] = markdown_text if suffix == "md" else _one_line
    environment.filters["lines"] = _lines if suffix == "html" else lambda text: Markup(visible(text, keep="\n"))
    environment.filters["code"] = with_code
    environment.filters["parts"] = in_parts
    return environment


def style() -> str:
    """The style sheet of all pages."""
    return _asset("report.css")


def script() -> str:
    """The script of a report's page."""
    return _asset("tables.js") + _asset("report.js")


def table_script() -> str:
    """The script of other pages: tables that sort, and a filter."""
    return _asset("tables.js")


def markdown_table(table: pd.DataFrame) -> Markup:
    """Format a table as Markdown."""
    return Markup(
        table.map(markdown_text).rename(columns=markdown_text).to_markdown(index=False, disable_numparse=True)
    )


def markdown_text(text: object) -> Markup:
    """Escape a name from data, so that Markdown shows it as one line of plain text."""
    return Markup(re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(visible(_one_line(text)), quote=False)))


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def html_table(table: pd.DataFrame, classes: str = "wide") -> Markup:
    """Format a table as HTML. Each cell has the heading of its column, which a narrow screen shows beside it.

    The names in the first column may be broken where their parts end, and short texts in brackets are not.
    """
    headings = [_escaped(name) for name in table.columns]
    head = "".join(f'<th scope="col">{name}</th>' for name in headings)
    rows = [
        "".join(
            f'<td data-label="{name}">{in_parts(text) if place == 0 else _IN_BRACKETS.sub(_WHOLE, _escaped(text))}</td>'
            for place, (name, text) in enumerate(zip(headings, row, strict=True))
        )
        for row in table.itertuples(index=False, name=None)
    ]
    body = "\n".join(f"<tr>{cells}</tr>" for cells in rows)
    return Markup(f'<table class="{classes}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>')


def in_parts(text: object) -> Markup:
    """A name for HTML that may be broken where its parts end."""
    return Markup(_BETWEEN_PARTS.sub("<wbr>", _escaped(text)))


def _escaped(text: object) -> str:
    return html.escape(visible(text))


def with_code(text: str) -> Markup:
    """Escape text for HTML and turn words in backticks into `<code>`."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(visible(text))))


def _inert(value: Any) -> Any:
    """Escape HTML, links and images in a Markdown text, whose names come from data. `Markup` stays as it is.

    Its code and emphasis stay, since sentences of ours have them; `markdown_text` escapes these too.
    """
    if isinstance(value, Markup | jinja2.Undefined):
        return value
    return re.sub(r"([\[\]])", r"\\\1", html.escape(visible(value), quote=False))


def _shown(value: Any) -> Any:
    """Show hidden characters, before jinja escapes HTML. `Markup` stays as it is."""
    return value if isinstance(value, Markup | jinja2.Undefined) else visible(value)


def _lines(text: str) -> Markup:
    """Escape a text of several lines for HTML."""
    return Markup(html.escape(visible(text, keep="\n\t")))


def _asset(name: str) -> str:
    return resources.files("bench.report").joinpath("templates", name).read_text(encoding="utf-8")
