"""Reports: what a run found, as Markdown and as one self-contained HTML file."""

from bench.report.answers import answers
from bench.report.summary import summarise
from bench.report.write import write_report

__all__ = ["answers", "summarise", "write_report"]
