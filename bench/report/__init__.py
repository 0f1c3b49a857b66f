"""Reports: what a run found, as Markdown and as one self-contained HTML file."""

from bench.report.write import write_report

__all__ = ["write_report"]
